/* A UNet's weights by diffusers' keys (models.md 2.2). */
#include <stdio.h>
#include <string.h>

#include "lib/model/unet_priv.h"

#define PATH_SIZE 160

struct load {
	lpo_unet *u;
	lpo_weights *w;
	int failed;		/* a note found no memory */
};

/* Note a layer for LoRA; its address must not change any more. */
static void
note(struct load *d, lpo_linear_layer *linear, lpo_conv_layer *conv,
    enum lpo_unet_part part)
{
	lpo_unet *u = d->u;
	struct lpo_unet_layer *p;
	int64_t cap;

	if (u->nlayers == u->layers_cap) {
		cap = u->layers_cap ? 2 * u->layers_cap : 64;
		p = lpo_realloc(u->ctx, u->layer, (size_t)cap * sizeof(*p));
		if (p == NULL) {
			d->failed = 1;
			return;
		}
		u->layer = p;
		u->layers_cap = cap;
	}
	p = &u->layer[u->nlayers++];
	p->path = linear != NULL ? linear->name : conv->name;
	p->linear = linear;
	p->conv = conv;
	p->attention = part == LPO_UNET_ATTENTION;
	p->part = part;
}

static void
linear(struct load *d, lpo_linear_layer *l, int64_t in, int64_t out, int bias,
    int as_conv, enum lpo_unet_part part, const char *at, const char *name)
{
	lpo_weights_linear(d->w, l, in, out, bias, as_conv, "%s%s%s", at,
	    at[0] ? "." : "", name);
	note(d, l, NULL, part);
}

static void
conv(struct load *d, lpo_conv_layer *l, int64_t in, int64_t out, int64_t k,
    int64_t stride, enum lpo_unet_part part, const char *at, const char *name)
{
	lpo_weights_conv(d->w, l, in, out, k, stride, "%s%s%s", at,
	    at[0] ? "." : "", name);
	note(d, NULL, l, part);
}

static void
norm(struct load *d, lpo_norm_layer *l, int64_t c, float eps, const char *at,
    const char *name)
{
	lpo_weights_norm(d->w, l, c, d->u->cfg.norm_groups, eps, "%s%s%s", at,
	    at[0] ? "." : "", name);
}

static void
load_resnet(struct load *d, struct lpo_unet_resnet *m, int64_t in, int64_t out,
    const char *at)
{
	const struct lpo_unet_config *g = &d->u->cfg;

	norm(d, &m->norm1, in, g->norm_eps, at, "norm1");
	conv(d, &m->conv1, in, out, 3, 1, LPO_UNET_BLOCK, at, "conv1");
	linear(d, &m->time, 4 * g->channels[0], out, 1, 0, LPO_UNET_TIME, at,
	    "time_emb_proj");
	norm(d, &m->norm2, out, g->norm_eps, at, "norm2");
	conv(d, &m->conv2, out, out, 3, 1, LPO_UNET_BLOCK, at, "conv2");
	if (in != out)
		conv(d, &m->shortcut, in, out, 1, 1, LPO_UNET_BLOCK, at,
		    "conv_shortcut");
}

static void
load_attn(struct load *d, struct lpo_unet_attn *m, int64_t c, int64_t ctx,
    const char *at)
{
	linear(d, &m->q, c, c, 0, 0, LPO_UNET_ATTENTION, at, "to_q");
	linear(d, &m->k, ctx, c, 0, 0, LPO_UNET_ATTENTION, at, "to_k");
	linear(d, &m->v, ctx, c, 0, 0, LPO_UNET_ATTENTION, at, "to_v");
	linear(d, &m->out, c, c, 1, 0, LPO_UNET_ATTENTION, at, "to_out.0");
}

static void
load_tblock(struct load *d, struct lpo_unet_tblock *m, int64_t c,
    const char *at)
{
	char sub[2 * PATH_SIZE + 16];

	norm(d, &m->norm1, c, 1e-5f, at, "norm1");
	snprintf(sub, sizeof(sub), "%s.attn1", at);
	load_attn(d, &m->self, c, c, sub);
	norm(d, &m->norm2, c, 1e-5f, at, "norm2");
	snprintf(sub, sizeof(sub), "%s.attn2", at);
	load_attn(d, &m->cross, c, d->u->cfg.context_dim, sub);
	norm(d, &m->norm3, c, 1e-5f, at, "norm3");
	linear(d, &m->ff_in, c, 8 * c, 1, 0, LPO_UNET_BLOCK, at,
	    "ff.net.0.proj");
	linear(d, &m->ff_out, 4 * c, c, 1, 0, LPO_UNET_BLOCK, at, "ff.net.2");
}

/* The group norm here has eps 1e-6, not the config's. */
static int
load_transformer(struct load *d, struct lpo_unet_transformer *m, int64_t c,
    int64_t heads, int64_t depth, const char *at)
{
	char sub[2 * PATH_SIZE];
	int as_conv = !d->u->cfg.linear_projection;
	int64_t i;

	m->heads = heads;
	m->depth = depth;
	m->block = lpo_alloc(d->u->ctx, (size_t)depth, sizeof(*m->block));
	if (m->block == NULL)
		return LPO_ENOMEM;
	norm(d, &m->norm, c, 1e-6f, at, "norm");
	linear(d, &m->in, c, c, 1, as_conv, LPO_UNET_BLOCK, at, "proj_in");
	for (i = 0; i < depth; i++) {
		snprintf(sub, sizeof(sub), "%s.transformer_blocks.%lld", at,
		    (long long)i);
		load_tblock(d, &m->block[i], c, sub);
	}
	linear(d, &m->out, c, c, 1, as_conv, LPO_UNET_BLOCK, at, "proj_out");
	return 0;
}

/*
 * Layer i of a block: resnet in -> out, and the transformer of level `level`
 * where it has one.
 */
static int
load_layer(struct load *d, struct lpo_unet_block *b, int64_t i, int64_t in,
    int64_t out, int level, const char *at)
{
	const struct lpo_unet_config *g = &d->u->cfg;
	char sub[PATH_SIZE];

	snprintf(sub, sizeof(sub), "%s.resnets.%lld", at, (long long)i);
	load_resnet(d, &b->resnet[i], in, out, sub);
	if (!b->cross)
		return 0;
	snprintf(sub, sizeof(sub), "%s.attentions.%lld", at, (long long)i);
	return load_transformer(d, &b->attn[i], out, g->heads[level],
	    g->depth[level], sub);
}

static int
make_block(lpo_unet *u, struct lpo_unet_block *b, int64_t layers, int cross)
{
	b->layers = layers;
	b->cross = cross;
	b->resnet = lpo_alloc(u->ctx, (size_t)layers, sizeof(*b->resnet));
	if (b->resnet == NULL)
		return LPO_ENOMEM;
	if (!cross)
		return 0;
	b->attn = lpo_alloc(u->ctx, (size_t)layers, sizeof(*b->attn));
	return b->attn == NULL ? LPO_ENOMEM : 0;
}

static int
load_down(struct load *d, int level)
{
	const struct lpo_unet_config *g = &d->u->cfg;
	struct lpo_unet_block *b = &d->u->down[level];
	int64_t c = g->channels[level], i;
	int64_t in = level > 0 ? g->channels[level - 1] : g->channels[0];
	char at[32];
	int rc;

	snprintf(at, sizeof(at), "down_blocks.%d", level);
	if ((rc = make_block(d->u, b, g->layers[level],
	    g->down_cross[level])) < 0)
		return rc;
	for (i = 0; i < b->layers; i++)
		if ((rc = load_layer(d, b, i, i ? c : in, c, level, at)) < 0)
			return rc;
	if (level < g->blocks - 1)
		conv(d, &b->sampler, c, c, 3, 2, LPO_UNET_BLOCK, at,
		    "downsamplers.0.conv");
	return 0;
}

static int
load_mid(struct load *d)
{
	const struct lpo_unet_config *g = &d->u->cfg;
	struct lpo_unet_block *b = &d->u->mid;
	int last = g->blocks - 1, rc;
	int64_t c = g->channels[last];

	if ((rc = make_block(d->u, b, 2, 1)) < 0 ||
	    (rc = load_layer(d, b, 0, c, c, last, "mid_block")) < 0)
		return rc;
	load_resnet(d, &b->resnet[1], c, c, "mid_block.resnets.1");
	return 0;
}

/* Up block i works at level blocks-1-i, on [running state, skip]. */
static int
load_up(struct load *d, int i)
{
	const struct lpo_unet_config *g = &d->u->cfg;
	struct lpo_unet_block *b = &d->u->up[i];
	int level = g->blocks - 1 - i, rc;
	int64_t c = g->channels[level], j, h, skip;
	int64_t prev = g->channels[i > 0 ? level + 1 : level];
	int64_t next = g->channels[level > 0 ? level - 1 : 0];
	char at[32];

	snprintf(at, sizeof(at), "up_blocks.%d", i);
	if ((rc = make_block(d->u, b, g->layers[level] + 1,
	    g->up_cross[i])) < 0)
		return rc;
	for (j = 0; j < b->layers; j++) {
		h = j == 0 ? prev : c;
		skip = j == b->layers - 1 ? next : c;
		if ((rc = load_layer(d, b, j, h + skip, c, level, at)) < 0)
			return rc;
	}
	if (level > 0)
		conv(d, &b->sampler, c, c, 3, 1, LPO_UNET_BLOCK, at,
		    "upsamplers.0.conv");
	return 0;
}

static int
load_all(struct load *d)
{
	lpo_unet *u = d->u;
	const struct lpo_unet_config *g = &u->cfg;
	int64_t c = g->channels[0], e = 4 * c;
	int i, rc = 0;

	conv(d, &u->conv_in, g->in_channels, c, 3, 1, LPO_UNET_OUTER, "",
	    "conv_in");
	linear(d, &u->time1, c, e, 1, 0, LPO_UNET_OUTER, "time_embedding",
	    "linear_1");
	linear(d, &u->time2, e, e, 1, 0, LPO_UNET_OUTER, "time_embedding",
	    "linear_2");
	if (g->text_time) {
		linear(d, &u->add1, g->add_in_dim, e, 1, 0, LPO_UNET_OUTER,
		    "add_embedding", "linear_1");
		linear(d, &u->add2, e, e, 1, 0, LPO_UNET_OUTER,
		    "add_embedding", "linear_2");
	}
	for (i = 0; i < g->blocks && rc == 0; i++)
		rc = load_down(d, i);
	if (rc == 0)
		rc = load_mid(d);
	if (u->half || rc < 0)
		return rc;
	for (i = 0; i < g->blocks && rc == 0; i++)
		rc = load_up(d, i);
	norm(d, &u->norm_out, c, g->norm_eps, "", "conv_norm_out");
	conv(d, &u->conv_out, c, g->out_channels, 3, 1, LPO_UNET_OUTER, "",
	    "conv_out");
	return rc;
}

static int
load_weights(lpo_unet *u, const char *dir)
{
	struct load d = { u, NULL, 0 };
	int rc;

	if ((rc = lpo_weights_open(u->ctx, &d.w, &u->params, &u->names, dir,
	    "diffusion_pytorch_model", NULL)) < 0)
		return rc;
	if (u->half) {
		lpo_weights_ignore(d.w, "up_blocks.");
		lpo_weights_ignore(d.w, "conv_norm_out.");
		lpo_weights_ignore(d.w, "conv_out.");
	}
	rc = load_all(&d);
	if (rc == 0)
		rc = lpo_weights_finish(d.w);
	if (rc == 0 && d.failed)
		rc = LPO_ENOMEM;
	lpo_weights_close(d.w);
	return rc;
}

int
lpo_unet_load(lpo_ctx *c, lpo_backend *be, lpo_unet **out, const char *dir,
    enum lpo_dtype dt, int half)
{
	lpo_unet *u;
	int rc;

	*out = NULL;
	if ((u = lpo_alloc(c, 1, sizeof(*u))) == NULL)
		return LPO_ENOMEM;
	u->ctx = c;
	u->half = half;
	if ((rc = lpo_params_init(&u->params, c, be, dt)) < 0 ||
	    (rc = lpo_unet_read_config(c, &u->cfg, &u->json, dir)) < 0 ||
	    (rc = load_weights(u, dir)) < 0) {
		lpo_unet_free(u);
		return rc;
	}
	*out = u;
	return 0;
}

static void
free_block(struct lpo_unet_block *b)
{
	int64_t i;

	for (i = 0; b->attn != NULL && i < b->layers; i++)
		lpo_free(b->attn[i].block);
	lpo_free(b->attn);
	lpo_free(b->resnet);
}

void
lpo_unet_free(lpo_unet *u)
{
	int i;

	if (u == NULL)
		return;
	for (i = 0; i < LPO_UNET_MAX_BLOCKS; i++) {
		free_block(&u->down[i]);
		free_block(&u->up[i]);
	}
	free_block(&u->mid);
	lpo_params_free(&u->params);
	lpo_pool_free(&u->names);
	lpo_free(u->layer);
	lpo_free(u->json);
	lpo_free(u);
}

const struct lpo_unet_config *
lpo_unet_cfg(const lpo_unet *u)
{
	return &u->cfg;
}

lpo_params *
lpo_unet_params(lpo_unet *u)
{
	return &u->params;
}

const char *
lpo_unet_config_json(const lpo_unet *u)
{
	return u->json;
}

const struct lpo_unet_layer *
lpo_unet_layers(const lpo_unet *u, int64_t *n)
{
	*n = u->nlayers;
	return u->layer;
}

void
lpo_unet_set_checkpoint(lpo_unet *u, int on)
{
	u->checkpoint = on;
}
