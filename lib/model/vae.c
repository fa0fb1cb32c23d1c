/* AutoencoderKL (models.md 5). */
#include "lib/model/vae.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/config.h"
#include "lib/model/weights.h"

#define MAX_BLOCKS 8
#define MAX_LAYERS 16
#define PATH_SIZE 96
#define EPS 1e-6f	/* of every norm here, unlike the UNet's 1e-5 */

struct resnet {
	lpo_norm_layer norm1, norm2;
	lpo_conv_layer conv1, conv2, shortcut;
};

struct block {
	struct resnet resnet[MAX_LAYERS + 1];
	int64_t layers;
	lpo_conv_layer sampler;		/* w NULL: none */
};

struct half {			/* encoder or decoder */
	lpo_conv_layer conv_in, conv_out, quant;	/* quant.w NULL: none */
	lpo_norm_layer norm_out, attn_norm;
	lpo_linear_layer q, k, v, out;	/* q.w NULL: no attention */
	struct resnet mid[2];
	struct block block[MAX_BLOCKS];
};

struct lpo_vae {
	lpo_ctx *ctx;
	struct lpo_vae_config cfg;
	int quant, post_quant, attention, parts;
	struct lpo_pool names;
	lpo_params params;
	struct half enc, dec;
};

static const struct lpo_config_field fields[] = {
	{ "block_out_channels", NULL }, { "layers_per_block", NULL },
	{ "latent_channels", NULL }, { "in_channels", NULL },
	{ "out_channels", NULL }, { "norm_num_groups", NULL },
	{ "scaling_factor", NULL }, { "use_quant_conv", NULL },
	{ "use_post_quant_conv", NULL }, { "mid_block_add_attention", NULL },
	{ "sample_size", NULL },	/* no numeric effect */
	{ "force_upcast", NULL },	/* about f16 only */
	{ "act_fn", "\"silu\"" },
	{ "down_block_types", "\"DownEncoderBlock2D\"" },
	{ "up_block_types", "\"UpDecoderBlock2D\"" },
	{ "shift_factor", "null" }, { "latents_mean", "null" },
	{ "latents_std", "null" }, { NULL, NULL }
};

static int
check_blocks(lpo_ctx *c, const struct lpo_vae_config *g, const json_t *j,
    const char *key)
{
	const json_t *list = lpo_json_get(j, key);

	if (list == NULL || json_array_size(list) == (size_t)g->blocks)
		return 0;
	return lpo_fail(c, LPO_EFORMAT, "'%s' does not name %d blocks", key,
	    g->blocks);
}

static int
read_config(lpo_ctx *c, lpo_vae *m, const json_t *j)
{
	struct lpo_vae_config *g = &m->cfg;
	double scale;
	int i, rc;

	if ((rc = lpo_json_ints(c, g->channels, &g->blocks, MAX_BLOCKS, j,
	    "block_out_channels")) < 0)
		return rc;
	if (g->blocks < 1)
		return lpo_fail(c, LPO_EFORMAT,
		    "'block_out_channels' is missing");
	if ((rc = lpo_config_ints(c, g->channels, g->blocks, j,
	    "block_out_channels", -1, 1, 1 << 16)) < 0 ||
	    (rc = check_blocks(c, g, j, "down_block_types")) < 0 ||
	    (rc = check_blocks(c, g, j, "up_block_types")) < 0 ||
	    (rc = lpo_config_int(c, &g->layers, j, "layers_per_block", 1, 1,
	    MAX_LAYERS)) < 0 ||
	    (rc = lpo_config_int(c, &g->latent_channels, j, "latent_channels",
	    4, 1, 1 << 10)) < 0 ||
	    (rc = lpo_config_int(c, &g->in_channels, j, "in_channels", 3, 1,
	    1 << 10)) < 0 ||
	    (rc = lpo_config_int(c, &g->out_channels, j, "out_channels", 3, 1,
	    1 << 10)) < 0 ||
	    (rc = lpo_config_int(c, &g->norm_groups, j, "norm_num_groups", 32,
	    1, 1 << 12)) < 0 ||
	    (rc = lpo_json_real(c, &scale, j, "scaling_factor",
	    0.18215)) < 0 ||
	    (rc = lpo_json_bool(c, &m->quant, j, "use_quant_conv", 1)) < 0 ||
	    (rc = lpo_json_bool(c, &m->post_quant, j, "use_post_quant_conv",
	    1)) < 0 ||
	    (rc = lpo_json_bool(c, &m->attention, j,
	    "mid_block_add_attention", 1)) < 0)
		return rc;
	if (!(scale > 0 && scale < 1e6))
		return lpo_fail(c, LPO_EFORMAT, "'scaling_factor' is %g",
		    scale);
	g->scaling_factor = (float)scale;
	g->factor = (int64_t)1 << (g->blocks - 1);
	for (i = 0; i < g->blocks; i++)
		if (g->channels[i] % g->norm_groups != 0)
			return lpo_fail(c, LPO_EFORMAT, "'norm_num_groups' "
			    "%lld does not divide 'block_out_channels' %lld",
			    (long long)g->norm_groups,
			    (long long)g->channels[i]);
	return 0;
}

/* --------------------------------------------------------------- loading */

/* The attention's names before diffusers renamed them. */
int
lpo_vae_rename_key(char *out, size_t cap, const char *key)
{
	static const char *const names[][2] = {
		{ ".query.", ".to_q." }, { ".key.", ".to_k." },
		{ ".value.", ".to_v." }, { ".proj_attn.", ".to_out.0." }
	};
	const char *p;
	size_t i;

	if (strstr(key, ".attentions.") == NULL)
		return 0;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if ((p = strstr(key, names[i][0])) != NULL) {
			snprintf(out, cap, "%.*s%s%s", (int)(p - key), key,
			    names[i][1], p + strlen(names[i][0]));
			return 1;
		}
	return 0;
}

static void
load_resnet(lpo_weights *w, const struct lpo_vae_config *g, struct resnet *m,
    int64_t in, int64_t out, const char *at)
{
	lpo_weights_norm(w, &m->norm1, in, g->norm_groups, EPS, "%s.norm1",
	    at);
	lpo_weights_conv(w, &m->conv1, in, out, 3, 1, "%s.conv1", at);
	lpo_weights_norm(w, &m->norm2, out, g->norm_groups, EPS, "%s.norm2",
	    at);
	lpo_weights_conv(w, &m->conv2, out, out, 3, 1, "%s.conv2", at);
	if (in != out)
		lpo_weights_conv(w, &m->shortcut, in, out, 1, 1,
		    "%s.conv_shortcut", at);
}

static void
load_mid(lpo_weights *w, const lpo_vae *m, struct half *h, const char *part)
{
	const struct lpo_vae_config *g = &m->cfg;
	int64_t c = g->channels[g->blocks - 1];
	char at[PATH_SIZE];

	snprintf(at, sizeof(at), "%s.mid_block.resnets.0", part);
	load_resnet(w, g, &h->mid[0], c, c, at);
	if (m->attention) {
		snprintf(at, sizeof(at), "%s.mid_block.attentions.0", part);
		lpo_weights_norm(w, &h->attn_norm, c, g->norm_groups, EPS,
		    "%s.group_norm", at);
		lpo_weights_linear(w, &h->q, c, c, 1, 0, "%s.to_q", at);
		lpo_weights_linear(w, &h->k, c, c, 1, 0, "%s.to_k", at);
		lpo_weights_linear(w, &h->v, c, c, 1, 0, "%s.to_v", at);
		lpo_weights_linear(w, &h->out, c, c, 1, 0, "%s.to_out.0", at);
	}
	snprintf(at, sizeof(at), "%s.mid_block.resnets.1", part);
	load_resnet(w, g, &h->mid[1], c, c, at);
}

static void
load_encoder(lpo_weights *w, lpo_vae *m)
{
	const struct lpo_vae_config *g = &m->cfg;
	struct half *h = &m->enc;
	struct block *b;
	int64_t in = g->channels[0], c, j, z = 2 * g->latent_channels;
	char at[PATH_SIZE];
	int i;

	lpo_weights_conv(w, &h->conv_in, g->in_channels, in, 3, 1,
	    "encoder.conv_in");
	for (i = 0; i < g->blocks; i++, in = c) {
		b = &h->block[i];
		c = g->channels[i];
		b->layers = g->layers;
		for (j = 0; j < b->layers; j++) {
			snprintf(at, sizeof(at),
			    "encoder.down_blocks.%d.resnets.%d", i, (int)j);
			load_resnet(w, g, &b->resnet[j], j ? c : in, c, at);
		}
		if (i == g->blocks - 1)
			continue;
		lpo_weights_conv(w, &b->sampler, c, c, 3, 2,
		    "encoder.down_blocks.%d.downsamplers.0.conv", i);
		b->sampler.asymmetric = 1;
	}
	load_mid(w, m, h, "encoder");
	lpo_weights_norm(w, &h->norm_out, in, g->norm_groups, EPS,
	    "encoder.conv_norm_out");
	lpo_weights_conv(w, &h->conv_out, in, z, 3, 1, "encoder.conv_out");
	if (m->quant)
		lpo_weights_conv(w, &h->quant, z, z, 1, 1, "quant_conv");
}

static void
load_decoder(lpo_weights *w, lpo_vae *m)
{
	const struct lpo_vae_config *g = &m->cfg;
	struct half *h = &m->dec;
	struct block *b;
	int64_t in = g->channels[g->blocks - 1], c, j, z = g->latent_channels;
	char at[PATH_SIZE];
	int i;

	if (m->post_quant)
		lpo_weights_conv(w, &h->quant, z, z, 1, 1, "post_quant_conv");
	lpo_weights_conv(w, &h->conv_in, z, in, 3, 1, "decoder.conv_in");
	load_mid(w, m, h, "decoder");
	for (i = 0; i < g->blocks; i++, in = c) {
		b = &h->block[i];
		c = g->channels[g->blocks - 1 - i];
		b->layers = g->layers + 1;
		for (j = 0; j < b->layers; j++) {
			snprintf(at, sizeof(at),
			    "decoder.up_blocks.%d.resnets.%d", i, (int)j);
			load_resnet(w, g, &b->resnet[j], j ? c : in, c, at);
		}
		if (i < g->blocks - 1)
			lpo_weights_conv(w, &b->sampler, c, c, 3, 1,
			    "decoder.up_blocks.%d.upsamplers.0.conv", i);
	}
	lpo_weights_norm(w, &h->norm_out, in, g->norm_groups, EPS,
	    "decoder.conv_norm_out");
	lpo_weights_conv(w, &h->conv_out, in, g->out_channels, 3, 1,
	    "decoder.conv_out");
}

static int
load_weights(lpo_vae *m, const char *dir)
{
	lpo_weights *w = NULL;
	int rc;

	if ((rc = lpo_weights_open(m->ctx, &w, &m->params, &m->names, dir,
	    "diffusion_pytorch_model", lpo_vae_rename_key)) < 0)
		return rc;
	if (m->parts & LPO_VAE_ENCODER) {
		load_encoder(w, m);
	} else {
		lpo_weights_ignore(w, "encoder.");
		lpo_weights_ignore(w, "quant_conv.");
	}
	if (m->parts & LPO_VAE_DECODER) {
		load_decoder(w, m);
	} else {
		lpo_weights_ignore(w, "decoder.");
		lpo_weights_ignore(w, "post_quant_conv.");
	}
	rc = lpo_weights_finish(w);
	lpo_weights_close(w);
	return rc;
}

int
lpo_vae_load(lpo_ctx *c, lpo_backend *be, lpo_vae **out, const char *dir,
    enum lpo_dtype dt, int parts)
{
	json_t *j = NULL;
	lpo_vae *m;
	int rc;

	*out = NULL;
	if ((m = lpo_alloc(c, 1, sizeof(*m))) == NULL)
		return LPO_ENOMEM;
	m->ctx = c;
	m->parts = parts;
	if ((rc = lpo_params_init(&m->params, c, be, dt)) < 0 ||
	    (rc = lpo_config_read(c, &j, NULL, dir, "AutoencoderKL")) < 0 ||
	    (rc = lpo_config_check(c, j, fields, dir)) < 0)
		goto out;
	if ((rc = read_config(c, m, j)) < 0) {
		lpo_fail_prefix(c, "%s/config.json", dir);
		goto out;
	}
	if ((rc = load_weights(m, dir)) < 0)
		goto out;
	*out = m;
	m = NULL;
out:
	json_decref(j);
	lpo_vae_free(m);
	return rc;
}

void
lpo_vae_free(lpo_vae *m)
{
	if (m == NULL)
		return;
	lpo_params_free(&m->params);
	lpo_pool_free(&m->names);
	lpo_free(m);
}

lpo_params *
lpo_vae_params(lpo_vae *m)
{
	return &m->params;
}

const struct lpo_vae_config *
lpo_vae_cfg(const lpo_vae *m)
{
	return &m->cfg;
}

/* --------------------------------------------------------------- forward */

static lpo_var *
resnet(lpo_tape *t, const struct resnet *m, lpo_var *x)
{
	lpo_var *h = lpo_conv(t, &m->conv1, lpo_norm_silu(t, &m->norm1, x));

	h = lpo_norm_silu(t, &m->norm2, h);
	if (m->shortcut.w != NULL)
		x = lpo_conv(t, &m->shortcut, x);
	return lpo_conv_add(t, &m->conv2, h, x);
}

/* One head as wide as the block, with biases. */
static lpo_var *
mid(lpo_tape *t, const struct half *m, lpo_var *x)
{
	lpo_var *h, *q, *k, *v;

	x = resnet(t, &m->mid[0], x);
	if (m->q.w != NULL) {
		h = lpo_group_norm(t, &m->attn_norm, x);
		q = lpo_linear(t, &m->q, h);
		k = lpo_linear(t, &m->k, h);
		v = lpo_linear(t, &m->v, h);
		h = lpo_attention(t, q, k, v, 1, 0);
		x = lpo_linear_add(t, &m->out, h, x);
	}
	return resnet(t, &m->mid[1], x);
}

lpo_var *
lpo_vae_encode(lpo_tape *t, lpo_vae *m, lpo_var *image)
{
	const struct half *h = &m->enc;
	const struct block *b;
	lpo_var *x;
	int64_t j;
	int i;

	assert(m->parts & LPO_VAE_ENCODER);
	x = lpo_conv(t, &h->conv_in, lpo_cast(t, image, lpo_tape_dtype(t)));
	for (i = 0; i < m->cfg.blocks; i++) {
		b = &h->block[i];
		for (j = 0; j < b->layers; j++)
			x = resnet(t, &b->resnet[j], x);
		if (b->sampler.w != NULL)
			x = lpo_conv(t, &b->sampler, x);
	}
	x = mid(t, h, x);
	x = lpo_conv(t, &h->conv_out, lpo_norm_silu(t, &h->norm_out, x));
	if (h->quant.w != NULL)
		x = lpo_conv(t, &h->quant, x);
	return lpo_cast(t, x, LPO_F32);
}

lpo_var *
lpo_vae_decode(lpo_tape *t, lpo_vae *m, lpo_var *latent)
{
	const struct half *h = &m->dec;
	const struct block *b;
	lpo_var *x;
	int64_t j;
	int i;

	assert(m->parts & LPO_VAE_DECODER);
	x = lpo_cast(t, latent, lpo_tape_dtype(t));
	if (h->quant.w != NULL)
		x = lpo_conv(t, &h->quant, x);
	x = mid(t, h, lpo_conv(t, &h->conv_in, x));
	for (i = 0; i < m->cfg.blocks; i++) {
		b = &h->block[i];
		for (j = 0; j < b->layers; j++)
			x = resnet(t, &b->resnet[j], x);
		if (b->sampler.w == NULL || x == NULL)
			continue;
		x = lpo_upsample(t, x, 2 * x->h, 2 * x->w);
		x = lpo_conv(t, &b->sampler, x);
	}
	x = lpo_conv(t, &h->conv_out, lpo_norm_silu(t, &h->norm_out, x));
	return lpo_cast(t, x, LPO_F32);
}
