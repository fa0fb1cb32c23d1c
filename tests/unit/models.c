/*
 * What the model loaders accept and what they refuse, with which words; LoRA
 * files likewise; and every allocation failing once.
 */
#include "lib/io/torch.h"
#include "lib/model/clip.h"
#include "lib/model/config.h"
#include "lib/model/lora.h"
#include "lib/model/weights.h"
#include "tests/golden/golden.h"

static char notice[1024];

static void
keep_notice(void *arg, const char *text)
{
	(void)arg;
	snprintf(notice, sizeof(notice), "%s", text);
}

static int
says(const struct golden *g, const char *word)
{
	return strstr(lpo_errmsg(g->c), word) != NULL;
}

/* --------------------------------------------------------------- weights */

struct rig {
	lpo_weights *w;
	lpo_params ps;
	struct lpo_pool pool;
};

static int
open_weights(struct golden *g, struct rig *r)
{
	int rc;

	memset(r, 0, sizeof(*r));
	lpo_clear(g->c);
	notice[0] = '\0';
	if ((rc = lpo_params_init(&r->ps, g->c, &g->be, LPO_F32)) < 0)
		return rc;
	return lpo_weights_open(g->c, &r->w, &r->ps, &r->pool, g->tmp, "w",
	    NULL);
}

static void
close_weights(struct rig *r)
{
	lpo_weights_close(r->w);
	lpo_params_free(&r->ps);
	lpo_pool_free(&r->pool);
}

/* w.safetensors: a, b, c of several types, and what old files carry along */
static void
write_weights(struct golden *g, const char *file, const char *second)
{
	static const float x[6] = { 1, -2, 0.5f, 4, 1.5f, -6 };
	static const float bad[2] = { 1, NAN };
	static const int64_t ids[2] = { 0, 1 };
	char path[128];
	lpo_stw *w;

	snprintf(path, sizeof(path), "%s/%s", g->tmp, file);
	lpo_stw_new(g->c, &w);
	lpo_stw_add_f32(w, "a.weight", LPO_F32, 2, (int64_t[]){ 2, 3 }, x);
	lpo_stw_add_f32(w, "module.b.weight", LPO_F16, 4,
	    (int64_t[]){ 3, 2, 1, 1 }, x);
	lpo_stw_add_f32(w, second, LPO_BF16, 1, (int64_t[]){ 2 }, x);
	lpo_stw_add_f32(w, "nan", LPO_F32, 1, (int64_t[]){ 2 }, bad);
	lpo_stw_add(w, "e.position_ids", LPO_I64, 2, (int64_t[]){ 1, 2 }, ids);
	lpo_stw_add(w, "whole", LPO_I64, 1, (int64_t[]){ 2 }, ids);
	ok(lpo_stw_write(w, path) == 0, "write %s", file);
	lpo_stw_free(w);
}

static void
expect_fail(struct golden *g, enum lpo_param_kind kind, int rank,
    const int64_t *shape, const char *key, const char *word)
{
	struct rig r;
	lpo_param *p = NULL;

	if (open_weights(g, &r) == 0) {
		p = lpo_weights_param(r.w, kind, rank, shape, key);
		ok(p == NULL && lpo_weights_error(r.w) == LPO_EFORMAT &&
		    lpo_weights_finish(r.w) == LPO_EFORMAT && says(g, key) &&
		    says(g, word), "'%s': %s", key, lpo_errmsg(g->c));
	} else {
		ok(0, "%s", lpo_errmsg(g->c));
	}
	close_weights(&r);
}

static void
test_weights(struct golden *g)
{
	lpo_linear_layer a = { 0 }, b = { 0 };
	lpo_param *c = NULL;
	float x[6] = { 0 };
	struct rig r;

	write_weights(g, "w.safetensors", "c.bias");
	if (open_weights(g, &r) < 0) {
		ok(0, "%s", lpo_errmsg(g->c));
		return;
	}
	lpo_weights_linear(r.w, &a, 3, 2, 0, 1, "%s", "a");
	lpo_weights_linear(r.w, &b, 2, 3, 0, 0, "b");
	c = lpo_weights_param(r.w, LPO_VECTOR, 1, (int64_t[]){ 2 }, "c.bias");
	ok(lpo_weights_error(r.w) == 0 && a.w != NULL && b.w != NULL &&
	    a.w->rank == 4 && b.w->rank == 2 && strcmp(b.name, "b") == 0 &&
	    c != NULL, "matrices from [o,i] and [o,i,1,1], 'module.' dropped "
	    "%s", lpo_errmsg(g->c));
	ok(b.w != NULL && lpo_param_export(&r.ps, b.w, x) == 0 && x[0] == 1 &&
	    x[5] == -6 && c != NULL && lpo_param_export(&r.ps, c, x) == 0 &&
	    x[1] == -2, "f16 and bf16 are widened exactly");
	lpo_weights_ignore(r.w, "na");
	ok(lpo_weights_finish(r.w) == 0 && strstr(notice, "1 unknown key ") &&
	    strstr(notice, "'whole'"), "a notice for what nobody asked for: "
	    "%s", notice);
	close_weights(&r);

	expect_fail(g, LPO_VECTOR, 1, (int64_t[]){ 2 }, "absent", "missing");
	expect_fail(g, LPO_VECTOR, 1, (int64_t[]){ 3 }, "c.bias",
	    "[2], config.json says [3]");
	expect_fail(g, LPO_MATRIX, 2, (int64_t[]){ 3, 2 }, "a.weight",
	    "[2,3]");
	expect_fail(g, LPO_KERNEL, 4, (int64_t[]){ 3, 2, 3, 3 }, "b.weight",
	    "[3,2,1,1]");
	expect_fail(g, LPO_VECTOR, 1, (int64_t[]){ 2 }, "nan", "element 1");
	expect_fail(g, LPO_VECTOR, 1, (int64_t[]){ 2 }, "whole", "I64");
	write_weights(g, "w.safetensors", "module.a.weight");
	ok(open_weights(g, &r) == LPO_EFORMAT && says(g, "module.a.weight"),
	    "two spellings of one key: %s", lpo_errmsg(g->c));
	close_weights(&r);

	/* an index is preferred to a file of the same stem */
	write_weights(g, "w-00001-of-00001.safetensors", "c.bias");
	g_write_text(g->c, g->tmp, "w.safetensors.index.json",
	    "{\"weight_map\": {\"a.weight\": \"w-00001-of-00001.safetensors\"}"
	    "}");
	ok(open_weights(g, &r) == 0 && lpo_weights_has(r.w, "a.weight"),
	    "by an index: %s", lpo_errmsg(g->c));
	close_weights(&r);
	/* a variant where it is there, the plain files and a word where not */
	write_weights(g, "w.fp16.safetensors", "only.fp16");
	lpo_ctx_set_variant(g->c, "fp16");
	ok(open_weights(g, &r) == 0 && lpo_weights_has(r.w, "only.fp16") &&
	    notice[0] == '\0', "a variant: %s%s", notice, lpo_errmsg(g->c));
	close_weights(&r);
	lpo_ctx_set_variant(g->c, "non_ema");
	ok(open_weights(g, &r) == 0 && !lpo_weights_has(r.w, "only.fp16") &&
	    strstr(notice, "non_ema"), "absent: %s", notice);
	close_weights(&r);
	lpo_ctx_set_variant(g->c, NULL);
	g_write_text(g->c, g->tmp, "w.safetensors.index.json",
	    "{\"weight_map\": {\"a.weight\": \"../w.safetensors\"}}");
	ok(open_weights(g, &r) == LPO_EFORMAT, "a shard elsewhere: %s",
	    lpo_errmsg(g->c));
	close_weights(&r);
}

/* ---------------------------------------------------------------- config */

/* The golden config with `field` in front: the first of equal keys loses. */
static int
load_with(struct golden *g, lpo_unet **u, const char *field)
{
	const char *config = lpo_st_meta(g->st, "config");
	size_t len = strlen(config);
	char *text = malloc(len + strlen(field) + 8);

	sprintf(text, "%.*s, %s}", (int)(len - 1), config, field);
	if (g_write_text(g->c, g->tmp, "config.json", text) < 0)
		ok(0, "%s", lpo_errmsg(g->c));
	free(text);
	lpo_clear(g->c);
	notice[0] = '\0';
	return lpo_unet_load(g->c, &g->be, u, g->tmp, LPO_F32, 0);
}

static void
test_config(struct golden *g)
{
	static const char *const refused[][2] = {
		{ "\"act_fn\": \"gelu\"", "'act_fn'" },
		{ "\"only_cross_attention\": [false, true]",
		    "'only_cross_attention'" },
		{ "\"class_embed_type\": \"timestep\"", "'class_embed_type'" },
		{ "\"downsample_padding\": 0", "'downsample_padding'" },
		{ "\"resnet_time_scale_shift\": \"scale_shift\"",
		    "'resnet_time_scale_shift'" },
		{ "\"encoder_hid_dim\": 7", "'encoder_hid_dim'" },
		{ "\"num_attention_heads\": 4", "'num_attention_heads'" },
		{ "\"addition_embed_type\": \"image\"",
		    "'addition_embed_type'" },
		{ "\"addition_embed_type\": \"text_time\"",
		    "'addition_time_embed_dim'" },
		{ "\"down_block_types\": [\"AttnDownBlock2D\", "
		    "\"DownBlock2D\"]", "'down_block_types'" },
		{ "\"up_block_types\": [\"UpBlock2D\"]", "'up_block_types'" },
		{ "\"mid_block_type\": \"UNetMidBlock2D\"",
		    "'mid_block_type'" },
		{ "\"attention_head_dim\": [3, 4]", "'attention_head_dim'" },
		{ "\"attention_head_dim\": [2, 4, 4]",
		    "'attention_head_dim'" },
		{ "\"cross_attention_dim\": [20, 24]",
		    "'cross_attention_dim'" },
		{ "\"norm_num_groups\": 5", "'norm_num_groups'" },
		{ "\"norm_eps\": \"small\"", "'norm_eps'" },
		{ "\"layers_per_block\": [1, 0]", "'layers_per_block'" },
		{ "\"layers_per_block\": 1e30", "'layers_per_block'" },
		{ "\"block_out_channels\": []", "'block_out_channels'" },
		{ "\"_class_name\": \"UNet2DModel\"", "'_class_name'" },
		/* right in itself, but not what the weights are */
		{ "\"cross_attention_dim\": 24", "attn2.to_k.weight" },
		{ "\"layers_per_block\": 2", "is missing" }
	};
	static const char *const fine[] = {
		"\"class_embed_type\": null, \"num_class_embeds\": null",
		"\"cross_attention_dim\": [20, 20]",
		"\"upcast_attention\": true, \"dropout\": 0.0",
		"\"center_input_sample\": 0 , \"_use_default_values\": "
		    "[\"center_input_sample\"]",
		"\"norm_eps\": 7, \"_use_default_values\": [\"norm_eps\"]",
		"\"resnet_out_scale_factor\": 1, \"mid_block_scale_factor\": "
		    "1.0"
	};
	lpo_unet *u;
	size_t i;

	for (i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		u = NULL;
		ok(load_with(g, &u, refused[i][0]) == LPO_EFORMAT &&
		    u == NULL && says(g, refused[i][1]), "%s", lpo_errmsg(g->c));
		lpo_unet_free(u);
	}
	for (i = 0; i < sizeof(fine) / sizeof(fine[0]); i++) {
		u = NULL;
		ok(load_with(g, &u, fine[i]) == 0 && notice[0] == '\0',
		    "taken: %s %s%s", fine[i], lpo_errmsg(g->c), notice);
		lpo_unet_free(u);
	}
	u = NULL;
	ok(load_with(g, &u, "\"ema_decay\": 0.9") == 0 &&
	    strstr(notice, "'ema_decay'"), "unknown: %s", notice);
	lpo_unet_free(u);
}

/* ------------------------------------------------------------------ LoRA */

struct tensor {
	const char *key;
	int rank;
	int64_t shape[4];
};
static float fill[3];		/* the value of all elements of the i-th */

static int
load_lora(struct golden *g, lpo_unet *u, const struct tensor *t, int n)
{
	static float x[3][256];
	lpo_lora_set *s = NULL;
	char path[128];
	lpo_stw *w = NULL;
	int i, k, rc;

	snprintf(path, sizeof(path), "%s/lora.safetensors", g->tmp);
	lpo_clear(g->c);
	notice[0] = '\0';
	rc = lpo_stw_new(g->c, &w);
	for (i = 0; i < n && rc == 0; i++) {
		for (k = 0; k < 256; k++)
			x[i][k] = fill[i];
		rc = lpo_stw_add_f32(w, t[i].key, LPO_F32, t[i].rank,
		    t[i].shape, x[i]);
	}
	if (rc == 0 && (rc = lpo_stw_write(w, path)) == 0)
		rc = lpo_lora_load(g->c, &s, u, path, 1, 0);
	lpo_stw_free(w);
	lpo_lora_free(s);
	return rc;
}

/* PEFT's keys without a prefix, as LPO's checkpoints have them, in a .bin. */
static int
load_lora_pickle(struct golden *g, lpo_unet *u, const struct tensor *t, int n)
{
	static float x[4096];
	struct lpo_torch_item it[4];
	lpo_lora_set *s = NULL;
	char path[128], outer[4][256];
	int i, rc;

	snprintf(path, sizeof(path), "%s/pytorch_lora_weights.bin", g->tmp);
	lpo_clear(g->c);
	notice[0] = '\0';
	for (i = 0; i < n; i++) {
		snprintf(outer[i], sizeof(outer[i]), "%.*s",
		    (int)(strlen(t[i].key) - strlen(".weight")), t[i].key);
		it[i] = (struct lpo_torch_item){ outer[i], "weight",
		    t[i].rank, t[i].shape, x };
	}
	if ((rc = lpo_torch_write(g->c, path, it, n)) == 0 &&
	    (rc = lpo_lora_load(g->c, &s, u, path, 1, 0)) == 0 &&
	    lpo_lora_rank(s) != t[0].shape[0])
		rc = -1;
	lpo_lora_free(s);
	return rc;
}

#define Q "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
#define KQ "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_" \
    "attn1_to_q"

static void
test_lora(struct golden *g, lpo_unet *u)
{
	static const struct tensor pair[] = {
		{ KQ ".lora_down.weight", 2, { 3, 16 } },
		{ KQ ".lora_up.weight", 2, { 16, 3 } },
		{ "lora_te_text_model_x.lora_up.weight", 1, { 2 } }
	};
	static const struct tensor other[] = {
		{ "unet." Q ".lora_A.weight", 2, { 3, 16 } },
		{ "unet." Q ".lora_B.weight", 2, { 16, 2 } },
		{ "unet." Q ".lora_B.weight", 2, { 15, 3 } }
	};
	static const struct tensor bad[] = {
		{ "unet.down_blocks.7.x.lora_A.weight", 2, { 3, 16 } },
		{ "unet." Q ".weird.weight", 2, { 3, 16 } },
		{ KQ ".dora_scale", 1, { 16 } },
		{ KQ ".hada_w1_a", 2, { 3, 16 } },
		{ KQ ".alpha", 1, { 1 } }
	};
	static const struct tensor bare[] = {
		{ Q ".lora_A.weight", 2, { 3, 16 } },
		{ Q ".lora_B.weight", 2, { 16, 3 } }
	};
	static const struct tensor whole[] = {
		{ KQ ".lora_down.weight", 2, { 3, 16 } },
		{ KQ ".lora_up.weight", 2, { 16, 3 } },
		{ KQ ".alpha", 0, { 0 } }
	};
	struct tensor two[2] = { other[0], other[1] };
	lpo_lora_set *s = NULL, *z = NULL;
	size_t i;

	ok(load_lora(g, u, pair, 2) == 0 && notice[0] == '\0', "a pair: %s",
	    lpo_errmsg(g->c));
	ok(load_lora_pickle(g, u, bare, 2) == 0 && notice[0] == '\0',
	    "a pickle with unprefixed keys: %s", lpo_errmsg(g->c));
	ok(load_lora_pickle(g, u, bare, 1) == LPO_EFORMAT && says(g,
	    "no up matrix") && says(g, ".bin"), "%s", lpo_errmsg(g->c));
	ok(load_lora(g, u, pair, 3) == 0 && strstr(notice, "text encoders"),
	    "text encoder's layers: %s", notice);
	ok(load_lora(g, u, pair, 1) == LPO_EFORMAT && says(g, "no up matrix"),
	    "%s", lpo_errmsg(g->c));
	ok(load_lora(g, u, two, 2) == LPO_EFORMAT && says(g, "differ in rank"),
	    "%s", lpo_errmsg(g->c));
	two[1] = other[2];
	ok(load_lora(g, u, two, 2) == LPO_EFORMAT && says(g, "does not fit"),
	    "%s", lpo_errmsg(g->c));
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ok(load_lora(g, u, &bad[i], 1) == LPO_EFORMAT &&
		    says(g, "lora.safetensors"), "%s", lpo_errmsg(g->c));
	fill[0] = NAN;
	ok(load_lora(g, u, whole, 3) == LPO_EFORMAT && says(g, "lora_down") &&
	    says(g, "not finite"), "%s", lpo_errmsg(g->c));
	fill[0] = 1;
	fill[2] = INFINITY;
	ok(load_lora(g, u, whole, 3) == LPO_EFORMAT && says(g, "alpha") &&
	    says(g, "not finite"), "%s", lpo_errmsg(g->c));
	fill[0] = fill[2] = 0;
	ok(load_lora(g, u, pair, 0) == LPO_EFORMAT, "%s", lpo_errmsg(g->c));

	lpo_clear(g->c);
	ok(lpo_lora_attach(g->c, &s, u, LPO_LORA_ATTENTION, 2, 2, 1) == 0 &&
	    lpo_lora_attach(g->c, &z, u, LPO_LORA_ATTENTION, 2, 2, 1) ==
	    LPO_EINVAL, "one LoRA at a time: %s", lpo_errmsg(g->c));
	lpo_lora_free(s);
	lpo_clear(g->c);
	ok(lpo_lora_attach(g->c, &z, u, LPO_LORA_ALL, 0, 2, 1) == LPO_EINVAL,
	    "%s", lpo_errmsg(g->c));
}

/* ---------------------------------------------------------------- memory */

/* attach, save, free, load: 1 when all went well */
static int
lora_round(struct golden *g, lpo_unet *u)
{
	lpo_lora_set *s = NULL;
	char path[128];
	int rc;

	snprintf(path, sizeof(path), "%s/round.safetensors", g->tmp);
	rc = lpo_lora_attach(g->c, &s, u, LPO_LORA_ATTENTION, 2, 2, 1);
	if (rc == 0)
		rc = lpo_lora_save(g->c, s, path, LPO_LORA_BOTH, 0, NULL);
	lpo_lora_free(s);
	s = NULL;
	if (rc == 0)
		rc = lpo_lora_load(g->c, &s, u, path, 1, 1);
	lpo_lora_free(s);
	return rc;
}

/* The n-th allocation fails, for every n (every 11th after the first 200). */
static void
test_memory(struct golden *clip, struct golden *g, lpo_unet *u)
{
	lpo_clip *m;
	lpo_unet *v;
	long n;
	int kind, rc, odd;

	for (kind = 0; kind < 3; kind++) {
		for (n = odd = 0, rc = -1; rc != 0 && n < 100000;
		    n += n < 200 ? 1 : 11) {
			m = NULL;
			v = NULL;
			lpo_clear(g->c);
			lpo_clear(clip->c);
			lpo_alloc_fail_at(n);
			if (kind == 0)
				rc = lpo_clip_load(clip->c, &clip->be, &m,
				    clip->tmp, LPO_F32);
			else if (kind == 1)
				rc = lpo_unet_load(g->c, &g->be, &v, g->tmp,
				    LPO_BF16, 1);
			else
				rc = lora_round(g, u);
			lpo_alloc_fail_at(-1);
			odd += rc != 0 && rc != LPO_ENOMEM;
			odd += rc != 0 && (m != NULL || v != NULL);
			lpo_clip_free(m);
			lpo_unet_free(v);
		}
		ok(rc == 0 && odd == 0, "%s: %ld allocations fail cleanly",
		    kind == 0 ? "text encoder" : kind == 1 ? "UNet" : "LoRA",
		    n);
	}
}

int
main(void)
{
	struct golden g, clip;
	lpo_unet *u = NULL;

	if (!g_open(&g, "unet21", "auto") ||
	    !g_open(&clip, "clip", "auto"))
		return done_testing();
	lpo_ctx_on_notice(g.c, keep_notice, NULL);
	test_weights(&g);
	if (g_write_model(&clip, clip.st, "model", NULL) < 0 ||
	    g_write_model(&g, g.st, "diffusion_pytorch_model", NULL) < 0)
		ok(0, "%s %s", lpo_errmsg(g.c), lpo_errmsg(clip.c));
	test_config(&g);
	g_write_text(g.c, g.tmp, "config.json", lpo_st_meta(g.st, "config"));
	lpo_clear(g.c);
	if (lpo_unet_load(g.c, &g.be, &u, g.tmp, LPO_F32, 0) < 0) {
		ok(0, "%s", lpo_errmsg(g.c));
	} else {
		test_lora(&g, u);
		test_memory(&clip, &g, u);
	}
	lpo_unet_free(u);
	g_close(&g);
	g_close(&clip);
	return done_testing();
}
