/*
 * Built-in scorers against transformers: pixels to the bit, embeddings,
 * cosines, logits and the aesthetic head within the usual limits; what is
 * wrong with a folder or a head is said by file and key.
 */
#include <omp.h>
#include <zlib.h>

#include "lib/base/json.h"
#include "lib/model/clip.h"
#include "lib/model/clip_image.h"
#include "lib/model/tokenizer.h"
#include "lib/model/vit.h"
#include "lib/score/embedder.h"
#include "lib/score/scorer.h"
#include "tests/golden/golden.h"

#define PICTURES 11
#define TOKENIZER "tests/golden/lrm/sd/tokenizer/"

static const char *const token_files[] = { "vocab.json", "merges.txt",
    "special_tokens_map.json", "tokenizer_config.json" };
static const int numbers[] = { 0, 2, 4, 6, 7 };
static const int64_t widths[] = { 32, 24, 16, 8, 1 };

/* How a folder or a head is spoiled, and what must be said of it. */
struct harm {
	const char *key;	/* of a tensor; NULL: of no one */
	const char *file, *from, *to;	/* a text file: from becomes to */
	enum { NONE, DROP, SHAPE, NOT_FINITE, WIDE, ZERO } how;
	const char *says;
};

static const struct harm *harm;		/* of the folder being written */

/* -------------------------------------------------------------- the files */

static int
spoil(char key[256], int *rank, int64_t shape[4])
{
	if (harm == NULL || harm->key == NULL || strcmp(key, harm->key) != 0)
		return 1;
	if (harm->how == SHAPE && *rank >= 2) {	/* as many elements */
		shape[*rank - 1] *= shape[0];
		shape[0] = 1;
	} else if (harm->how == SHAPE) {
		shape[1] = 1;
		*rank = 2;
	}
	return harm->how != DROP;
}

/* One element of a written safetensors file becomes NaN, or all zero. */
static int
poison(struct golden *g, const char *path, const char *key, int zero)
{
	const float nan_value = NAN;
	const struct lpo_st_tensor *t;
	char *bytes = NULL;
	size_t n, at;
	lpo_st *st = NULL;
	int rc;

	if ((rc = lpo_file_read(g->c, &bytes, &n, path, 1 << 28)) < 0 ||
	    (rc = lpo_st_open_memory(g->c, &st, bytes, n, path)) < 0)
		goto out;
	t = lpo_st_find(st, key);
	at = t == NULL ? 0 : (size_t)((const char *)t->data - bytes);
	if (zero)
		memset(bytes + at, 0, (size_t)t->bytes);
	else
		memcpy(bytes + at + 4, &nan_value, 4);
	rc = lpo_file_write(g->c, path, bytes, n);
out:
	lpo_st_close(st);
	lpo_free(bytes);
	return rc;
}

/* A text of the golden file's metadata, with `from` replaced. */
static int
write_text(struct golden *g, const char *name, const char *text)
{
	char *changed = NULL;
	const char *at;
	int rc;

	if (harm != NULL && harm->file != NULL &&
	    strcmp(harm->file, name) == 0) {
		if ((at = strstr(text, harm->from)) == NULL)
			return lpo_fail(g->c, LPO_EINVAL, "no '%s' in %s",
			    harm->from, name);
		changed = lpo_asprintf(g->c, "%.*s%s%s", (int)(at - text),
		    text, harm->to, at + strlen(harm->from));
		text = changed;
	}
	rc = g_write_text(g->c, g->tmp, name, text);
	lpo_free(changed);
	return rc;
}

static int
write_head(struct golden *g, int64_t in)
{
	int64_t shape[4];
	float *data[10];
	char key[256], path[256];
	lpo_stw *w = NULL;
	int i, rank, n = 0, rc = lpo_stw_new(g->c, &w);

	for (i = 0; i < 10 && rc == 0; i++) {
		int k = i / 2;

		rank = i % 2 ? 1 : 2;
		shape[0] = widths[k];
		shape[1] = in;
		if (i % 2)
			in = widths[k];
		snprintf(key, sizeof(key), "layers.%d.%s", numbers[k],
		    i % 2 ? "bias" : "weight");
		data[n++] = g_weight(key, rank, shape);
		if (harm != NULL && harm->key != NULL && harm->how == WIDE &&
		    strcmp(harm->key, key) == 0)
			shape[1]--;
		if (spoil(key, &rank, shape))
			rc = lpo_stw_add_f32(w, key, LPO_F32, rank, shape,
			    data[n - 1]);
	}
	snprintf(path, sizeof(path), "%s/head.safetensors", g->tmp);
	if (rc == 0)
		rc = lpo_stw_write(w, path);
	lpo_stw_free(w);
	while (n > 0)
		free(data[--n]);
	return rc;
}

/* All of the folder, spoiled as `harm` says. */
static int
write_folder(struct golden *g, int64_t projection)
{
	char path[256], *text = NULL;
	size_t i, n;
	int rc;

	if ((rc = g_write_model(g, g->st, "model", spoil)) < 0 ||
	    (rc = write_text(g, "config.json", lpo_st_meta(g->st,
	    "config"))) < 0 ||
	    (rc = write_text(g, "preprocessor_config.json",
	    lpo_st_meta(g->st, "preprocessor"))) < 0 ||
	    (rc = write_head(g, projection)) < 0)
		return rc;
	for (i = 0; i < 4 && rc == 0; i++) {
		snprintf(path, sizeof(path), TOKENIZER "%s", token_files[i]);
		rc = lpo_file_read(g->c, &text, &n, path, 1 << 20);
		if (rc == 0)
			rc = write_text(g, token_files[i], text);
		lpo_free(text);
		text = NULL;
	}
	if (rc == 0 && harm != NULL && (harm->how == NOT_FINITE ||
	    harm->how == ZERO)) {
		snprintf(path, sizeof(path), "%s/%s.safetensors", g->tmp,
		    strncmp(harm->key, "layers.", 7) == 0 ? "head" : "model");
		rc = poison(g, path, harm->key, harm->how == ZERO);
	}
	return rc;
}

/* ------------------------------------------------------------ the pictures */

struct source {
	const struct golden *g;
	int bad;		/* this picture is cut short; -1: none */
	int64_t told;
	char why[256];
};

static const char *
prompt_of(const struct golden *g, int64_t i, char out[64])
{
	const char *s = lpo_st_meta(g->st, "prompts");

	for (; i > 0; i--)
		s = strchr(s, '\n') + 1;
	snprintf(out, 64, "%.*s", (int)strcspn(s, "\n"), s);
	return out;
}

/* The golden pictures, again and again. */
static int
get(void *arg, int64_t i, struct lpo_score_item *it)
{
	struct source *s = arg;
	const struct lpo_st_tensor *t;
	char name[32], prompt[64];

	snprintf(name, sizeof(name), "picture.%lld",
	    (long long)(i % PICTURES));
	t = lpo_st_find(s->g->st, name);
	it->size = i == s->bad ? (size_t)t->bytes / 2 : (size_t)t->bytes;
	it->bytes = lpo_alloc(s->g->c, it->size, 1);
	it->prompt = lpo_strdup(s->g->c, prompt_of(s->g, i % PICTURES,
	    prompt));
	it->name = lpo_strdup(s->g->c, name);
	if (it->bytes == NULL || it->prompt == NULL || it->name == NULL)
		return LPO_ENOMEM;
	memcpy(it->bytes, t->data, it->size);
	return 0;
}

static int
tell(void *arg, int64_t i, const char *why)
{
	struct source *s = arg;

	s->told = i;
	snprintf(s->why, sizeof(s->why), "%s", why);
	return 0;
}

/* ------------------------------------------------------------------ parts */

/* Pixels by their sums, embeddings by value. */
static void
test_pictures(struct golden *g, lpo_embedder *e, int64_t image_px)
{
	const struct lpo_st_tensor *t = lpo_st_find(g->st, "crc32");
	int64_t width = lpo_embedder_width(e), sum[PICTURES], i;
	int64_t px = image_px * image_px * 3;
	float *x = malloc((size_t)px * sizeof(*x));
	float *all = malloc((size_t)(PICTURES * width) * sizeof(*all));
	struct source s = { g, -1, 0, "" };
	struct lpo_clip_image prep;
	struct lpo_score_item it;
	struct lpo_image im;
	const float *embeds;
	int same = 0;

	if (lpo_clip_image_read(g->c, &prep, g->tmp, image_px) < 0 ||
	    lpo_st_i64(g->c, sum, t) < 0) {
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
		goto out;
	}
	lpo_embedder_begin(e);
	for (i = 0; i < PICTURES; i++) {
		get(&s, i, &it);
		if (lpo_image_decode(g->c, &im, it.bytes, it.size, NULL) == 0 &&
		    lpo_clip_image_pixels(g->c, x, &prep, &im) == 0 &&
		    lpo_embedder_put(g->c, e, i, &im) == 0)
			same += crc32(0, (const Bytef *)x, (uInt)px * 4) ==
			    (uLong)sum[i];
		lpo_image_free(&im);
		lpo_free(it.bytes);
		lpo_free(it.prompt);
		lpo_free(it.name);
	}
	ok(same == PICTURES, "%s: pixels of %d of %d pictures are the same",
	    g->name, same, PICTURES);
	if (lpo_embedder_get(e, &embeds, PICTURES) == 0) {
		memcpy(all, embeds, (size_t)(PICTURES * width) *
		    sizeof(*all));
		g_compare(g, "image_embeds", all, PICTURES * width);
	}
out:
	free(x);
	free(all);
}

static void
test_text(struct golden *g)
{
	lpo_tokenizer *tok = NULL;
	lpo_clip *m = NULL;
	lpo_tape *t = lpo_tape_new(g->c, &g->be, LPO_F32, 1);
	lpo_var *ids = lpo_input(t, PICTURES, 6, 1, 1, LPO_I32, 0);
	lpo_var *eos = lpo_input(t, PICTURES, 1, 1, 1, LPO_I32, 0);
	int32_t id[PICTURES * 6], at[PICTURES];
	struct lpo_clip_out o;
	char prompt[64];
	int64_t i;

	if (lpo_tokenizer_open(g->c, &tok, g->tmp) < 0 ||
	    lpo_clip_load_joint(g->c, &g->be, &m, g->tmp, LPO_F32) < 0) {
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
		goto out;
	}
	lpo_clip_fwd(t, m, ids, eos, &o);
	lpo_output(t, o.projected, 0);
	for (i = 0; i < PICTURES; i++) {
		lpo_tokenizer_encode(tok, id + i * 6, prompt_of(g, i, prompt));
		at[i] = (int32_t)(i * 6 + lpo_clip_eos(m, id + i * 6, 6));
	}
	if (lpo_tape_plan(t, 0, NULL) < 0 || lpo_tape_commit(t, NULL) < 0 ||
	    lpo_var_set(t, ids, id) < 0 || lpo_var_set(t, eos, at) < 0 ||
	    lpo_tape_forward(t, 0) < 0)
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
	else
		g_check(g, t, o.projected, "text_embeds", 1, 0);
out:
	lpo_tape_free(t);
	lpo_clip_free(m);
	lpo_tokenizer_close(tok);
}

/* ------------------------------------------------------------------ whole */

/* clip: and aesthetic: of the folder in one set. */
static int
open_set(struct golden *g, lpo_scorers **set, int64_t memory)
{
	struct lpo_scorer_opts o = { .be = &g->be, .dtype = LPO_F32,
	    .memory_bytes = memory };
	char clip[128], head[256];
	int rc;

	snprintf(clip, sizeof(clip), "clip:%s", g->tmp);
	snprintf(head, sizeof(head), "aesthetic:%s/head.safetensors,%s",
	    g->tmp, g->tmp);
	if ((rc = lpo_scorers_new(g->c, set, &o)) == 0 &&
	    (rc = lpo_scorers_add(*set, "c", clip)) == 0)
		rc = lpo_scorers_add(*set, "a", head);
	return rc;
}

static int
score(struct golden *g, struct lpo_scores *out, int64_t n, int64_t memory,
    struct source *s)
{
	struct lpo_score_source src = { .arg = s, .n = n, .get = get,
	    .bad = s->bad >= 0 ? tell : NULL };
	lpo_scorers *set = NULL;
	int rc = open_set(g, &set, memory);

	if (rc == 0)
		rc = lpo_scorers_run(set, out, &src);
	lpo_scorers_free(set);
	return rc;
}

/*
 * How far n scores are from the golden pictures', again and again, relative
 * to them or to 1; bits that differ are never 0 off.
 */
static double
farthest(const struct lpo_scores *a, const struct lpo_scores *b, int64_t n)
{
	double far = 0, e, v;
	int64_t i;

	for (i = 0; i < 3 * n; i++) {
		v = a->value[i % (3 * PICTURES)];
		if (memcmp(&v, &b->value[i], sizeof(v)) == 0)
			continue;
		e = fabs(b->value[i] - v) / fmax(1, fabs(v)) + 1e-300;
		far = worse(far, e);
	}
	return far;
}

/*
 * The same bits whatever else is scored; on CUDA from run to run only, and
 * otherwise within what f32 sums in another order are off.
 */
static void
test_scores(struct golden *g)
{
	static const char *const name[] = { "c.cosine", "c.logit",
	    "a.score" };
	static const char *const golden[] = { "cosine", "logit",
	    "aesthetic" };
	struct source s = { g, -1, 0, "" };
	struct lpo_scores a = { .n = 0 }, b = { .n = 0 };
	float x[PICTURES];
	int64_t i, k;
	double off;

	if (score(g, &a, PICTURES, 0, &s) < 0 || a.names != 3) {
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
		goto out;
	}
	for (k = 0; k < 3; k++) {
		for (i = 0; i < PICTURES; i++)
			x[i] = (float)a.value[i * 3 + k];
		ok(strcmp(a.name[k], name[k]) == 0, "column %s", a.name[k]);
		g_compare(g, golden[k], x, PICTURES);
	}
	if (on_cuda(&g->be)) {
		if (score(g, &b, PICTURES, 0, &s) < 0) {
			ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
			goto out;
		}
		ok(memcmp(a.value, b.value, 3 * PICTURES *
		    sizeof(double)) == 0, "%s: run after run the same bits",
		    g->name);
		lpo_scores_free(&b);
	}
	/* three rounds in chunks of 16, batches of one, one thread */
	omp_set_num_threads(1);
	if (score(g, &b, 3 * PICTURES, 1, &s) < 0) {
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
		goto out;
	}
	omp_set_num_threads(2);
	off = farthest(&a, &b, 3 * PICTURES);
	ok(off <= (on_cuda(&g->be) ? 1e-5 : 0), "%s: batch, neighbours and "
	    "threads make %.2g", g->name, off);
	lpo_scores_free(&b);
	s.bad = 3;
	if (score(g, &b, PICTURES, 0, &s) < 0)
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
	else
		ok(s.told == 3 && isnan(b.value[9]) && isnan(b.value[11]) &&
		    memcmp(b.value, a.value, 9 * sizeof(double)) == 0 &&
		    memcmp(b.value + 12, a.value + 12, 7 * 3 *
		    sizeof(double)) == 0, "%s: a picture cut short is left "
		    "out: %s", g->name, s.why);
out:
	lpo_scores_free(&a);
	lpo_scores_free(&b);
}

static void
test_model(const char *name, int64_t image_px, int64_t projection,
    const char *level)
{
	struct lpo_scorer_opts o = { .dtype = LPO_F32 };
	lpo_embedder *e = NULL;
	struct golden g;

	harm = NULL;
	if (!g_open(&g, name, level))
		return;
	o.be = &g.be;
	if (write_folder(&g, projection) < 0 ||
	    lpo_embedder_open(g.c, &e, &o, g.tmp) < 0)
		ok(0, "%s: %s", name, lpo_errmsg(g.c));
	else {
		test_pictures(&g, e, image_px);
		test_text(&g);
		test_scores(&g);
	}
	lpo_embedder_close(e);
	g_close(&g);
}

/* ------------------------------------------------------------------- harm */

#define LAYER "vision_model.encoder.layers.1.self_attn.k_proj.weight"
#define CONFIG "config.json"
#define PREP "preprocessor_config.json"

static const struct harm harms[] = {
	{ LAYER, NULL, NULL, NULL, DROP, "model.safetensors: '" LAYER "' is missing" },
	{ LAYER, NULL, NULL, NULL, SHAPE, "'" LAYER "' has shape [1,25600], config.json says [160,160]" },
	{ LAYER, NULL, NULL, NULL, NOT_FINITE, "element 1 of '" LAYER "' is not finite" },
	{ "logit_scale", NULL, NULL, NULL, DROP, "model.safetensors: 'logit_scale' is missing" },
	{ "visual_projection.weight", NULL, NULL, NULL, DROP, "'visual_projection.weight' is missing" },
	{ "text_projection.weight", NULL, NULL, NULL, DROP, "'text_projection.weight' is missing" },
	{ "text_model.final_layer_norm.bias", NULL, NULL, NULL, NOT_FINITE, "'text_model.final_layer_norm.bias' is not finite" },
	{ "vision_model.embeddings.class_embedding", NULL, NULL, NULL, SHAPE, "'vision_model.embeddings.class_embedding' has shape [160,1]" },
	{ "layers.4.bias", NULL, NULL, NULL, DROP, "layers.4.bias" },
	{ "layers.2.bias", NULL, NULL, NULL, SHAPE, "layers.2.bias" },
	{ "layers.6.weight", NULL, NULL, NULL, NOT_FINITE, "head.safetensors: element 1 of 'layers.6.weight' is not finite" },
	{ "layers.0.weight", NULL, NULL, NULL, WIDE, "head.safetensors: 'layers.0.weight' takes 39 values, the CLIP folder gives 40" },
	{ "layers.4.weight", NULL, NULL, NULL, WIDE, "'layers.4.weight' takes 23 values, the layer before gives 24" },
	{ NULL, CONFIG, "\"gelu\"", "\"mish\"", NONE, "'hidden_act' is 'mish'" },
	{ NULL, CONFIG, "\"clip\"", "\"siglip\"", NONE, "config.json: 'model_type' is \"siglip\"" },
	{ NULL, CONFIG, "\"vision_config\"", "\"visual_config\"", NONE, "no 'vision_config'" },
	{ NULL, CONFIG, "\"image_size\": 52", "\"image_size\": 50", NONE, "'crop_size' is 52, the model's 'image_size' 50" },
	{ NULL, CONFIG, "\"patch_size\": 10", "\"patch_size\": [10, 12]", NONE, "'patch_size' is no square" },
	{ NULL, CONFIG, "\"patch_size\": 10", "\"patch_size\": 99", NONE, "'patch_size' 99 is more than 'image_size' 52" },
	{ NULL, CONFIG, "\"patch_size\": 10", "\"patch_size\": 10, \"num_channels\": 4", NONE, "'num_channels' is 4" },
	{ NULL, CONFIG, "\"projection_dim\": 40", "\"projection_dim\": 41", NONE, "config.json says [41,160]" },
	{ NULL, CONFIG, "\"vocab_size\": 54", "\"vocab_size\": 50", NONE, "has shape [54,32], config.json says [50,32]" },
	{ NULL, CONFIG, "\"projection_dim\": 40", "\"projection_dim\": 1e99", NONE, "projection_dim" },
	{ NULL, PREP, "\"do_resize\": true", "\"do_resize\": false", NONE, "preprocessor_config.json: 'do_resize' is false" },
	{ NULL, PREP, "\"do_resize\": true", "\"do_resize\": true, \"do_pad\": true", NONE, "preprocessor_config.json: 'do_pad' is true" },
	{ NULL, PREP, "\"resample\": 3", "\"resample\": 1", NONE, "'resample' is 1" },
	{ NULL, PREP, "\"shortest_edge\"", "\"longest_edge\"", NONE, "'size' has no 'shortest_edge'" },
	{ NULL, PREP, "\"shortest_edge\": 60", "\"shortest_edge\": 40", NONE, "'size' 40 is less than 'crop_size' 52" },
	{ NULL, PREP, "\"shortest_edge\": 60", "\"shortest_edge\": -1", NONE, "'shortest_edge' is -1" },
	{ NULL, PREP, "0.125]", "0]", NONE, "'image_std' is not three positive numbers" },
	{ NULL, PREP, "[0.5, 0.4, 0.3]", "[0.5, 0.4]", NONE, "'image_mean' is not three numbers" },
	{ NULL, PREP, "\"width\": 52", "\"width\": 53", NONE, "'crop_size' is no square" },
	{ NULL, "vocab.json", "{", "[", NONE, "vocab.json" },
};

static void
test_harm(const struct harm *h)
{
	lpo_scorers *set = NULL;
	struct golden g;
	int rc;

	if (!g_open(&g, "score_vit80", "auto"))
		return;
	harm = h;
	if (write_folder(&g, 40) < 0)
		ok(0, "folder: %s", lpo_errmsg(g.c));
	else {
		rc = open_set(&g, &set, 0);
		ok(rc < 0 && strncmp(lpo_errmsg(g.c), "scorer '", 8) == 0 &&
		    strstr(lpo_errmsg(g.c), h->says) != NULL, "%s: %s",
		    h->key != NULL ? h->key : h->to, rc < 0 ?
		    lpo_errmsg(g.c) : "taken");
	}
	lpo_scorers_free(set);
	g_close(&g);
}

static int
same_prep(const struct lpo_clip_image *a, const struct lpo_clip_image *b)
{
	return a->short_px == b->short_px && a->crop_px == b->crop_px &&
	    a->bicubic == b->bicubic && a->rescale == b->rescale &&
	    memcmp(a->mean, b->mean, sizeof(a->mean)) == 0 &&
	    memcmp(a->std, b->std, sizeof(a->std)) == 0;
}

/* Newer folders have the same within processor_config.json; or nothing. */
static void
test_preprocessor(void)
{
	static const struct lpo_clip_image clip = { 336, 336, 1, 1.0 / 255,
	    { 0.48145466f, 0.4578275f, 0.40821073f },
	    { 0.26862954f, 0.26130258f, 0.27577711f } };
	struct lpo_clip_image want, is;
	char path[256], text[8192];
	struct golden g;
	int rc;

	harm = NULL;
	if (!g_open(&g, "score_vit80", "auto"))
		return;
	write_folder(&g, 40);
	rc = lpo_clip_image_read(g.c, &want, g.tmp, 52);
	snprintf(path, sizeof(path), "%s/%s", g.tmp, PREP);
	remove(path);
	snprintf(text, sizeof(text), "{\"image_processor\": %s, "
	    "\"processor_class\": \"CLIPProcessor\"}",
	    lpo_st_meta(g.st, "preprocessor"));
	write_text(&g, "processor_config.json", text);
	ok(rc == 0 && lpo_clip_image_read(g.c, &is, g.tmp, 52) == 0 &&
	    same_prep(&is, &want) && want.short_px == 60,
	    "processor_config.json %s", lpo_errmsg(g.c));
	write_text(&g, "processor_config.json", "{}");
	ok(lpo_clip_image_read(g.c, &is, g.tmp, 336) == 0 &&
	    same_prep(&is, &clip), "nothing in it: as CLIP does");
	write_text(&g, "processor_config.json", "{\"image_processor\": 1}");
	ok(lpo_clip_image_read(g.c, &is, g.tmp, 336) == LPO_EFORMAT &&
	    strstr(lpo_errmsg(g.c), "processor_config.json: not an object") !=
	    NULL, "%s", lpo_errmsg(g.c));
	lpo_clear(g.c);
	snprintf(path, sizeof(path), "%s/processor_config.json", g.tmp);
	remove(path);
	ok(lpo_clip_image_read(g.c, &is, g.tmp, 336) == 0 &&
	    same_prep(&is, &clip), "no file: as CLIP does");
	g_close(&g);
}

/* Files that are not there. */
static void
test_absent(void)
{
	static const char *const need[] = { "config.json",
	    "model.safetensors", "vocab.json", "head.safetensors" };
	lpo_scorers *set = NULL;
	char path[256];
	struct golden g;
	size_t i;
	int rc;

	for (i = 0; i < 4; i++) {
		harm = NULL;
		if (!g_open(&g, "score_vit80", "auto"))
			return;
		write_folder(&g, 40);
		snprintf(path, sizeof(path), "%s/%s", g.tmp, need[i]);
		remove(path);
		rc = open_set(&g, &set, 0);
		ok(rc < 0 && strstr(lpo_errmsg(g.c), need[i]) != NULL,
		    "without %s: %s", need[i], lpo_errmsg(g.c));
		lpo_scorers_free(set);
		set = NULL;
		g_close(&g);
	}
}

/* A picture without direction has no cosine. */
static void
test_zero(void)
{
	static const struct harm zero = { "visual_projection.weight", NULL,
	    NULL, NULL, ZERO, "'c.cosine' of 'picture.0' is not a finite "
	    "number" };
	struct lpo_scores out = { .n = 0 };
	struct source s = { NULL, -1, 0, "" };
	struct golden g;

	harm = &zero;
	if (!g_open(&g, "score_vit80", "auto"))
		return;
	s.g = &g;
	ok(write_folder(&g, 40) == 0 && score(&g, &out, 2, 0, &s) ==
	    LPO_EFORMAT && strcmp(lpo_errmsg(g.c), zero.says) == 0,
	    "no embedding: %s", lpo_errmsg(g.c));
	lpo_scores_free(&out);
	g_close(&g);
}

int
main(void)
{
	size_t i;

	test_model("score_vit64", 56, 24, "auto");
	test_model("score_vit80", 52, 40, "auto");
	test_model("score_vit64", 56, 24, "portable");
	test_model("score_vit80", 52, 40, "portable");
	test_model("score_vit64", 56, 24, "cuda");
	test_model("score_vit80", 52, 40, "cuda");
	for (i = 0; i < sizeof(harms) / sizeof(*harms); i++)
		test_harm(&harms[i]);
	test_absent();
	test_preprocessor();
	test_zero();
	return done_testing();
}
