/*
 * UNet2DConditionModel, written once, forward (models.md 2).
 *
 * Guidance with copies = 2: rows are doubled where the text first enters and
 * not before.  Skip tensors made before that are doubled when they are used.
 */
#include <assert.h>
#include <math.h>

#include "lib/model/unet_priv.h"

#define MAX_SKIPS (LPO_UNET_MAX_BLOCKS * (LPO_UNET_MAX_LAYERS + 1) + 1)

struct run {
	lpo_tape *t;
	const lpo_unet *u;
	int copies;
	int split;		/* 1: rows are doubled by now */
	lpo_var *emb[2];	/* silu of the embedding, before and after */
	lpo_var *context;
	lpo_var *flat;		/* a token of each context that has but one, [G],
				 * or NULL: context is without those then */
	lpo_var *skip[MAX_SKIPS];
	int skip_split[MAX_SKIPS];	/* made before (0) or after (1) */
	int skips;
};

void
lpo_sinusoid(float *out, float t, int64_t dim, int flip_sin_to_cos,
    float freq_shift)
{
	const float log_period = (float)-9.210340371976184;	/* -ln 1e4 */
	int64_t half = dim / 2, i;
	int64_t at_cos = flip_sin_to_cos ? 0 : half;
	float f, arg;

	for (i = 0; i < half; i++) {
		f = log_period * (float)i;
		f = f / ((float)half - freq_shift);
		arg = t * expf(f);
		out[at_cos + i] = cosf(arg);
		out[half - at_cos + i] = sinf(arg);
	}
	if (dim % 2 != 0)
		out[dim - 1] = 0;
}

/* ------------------------------------------------------------ embeddings */

static lpo_var *
mlp(struct run *r, const lpo_linear_layer *a, const lpo_linear_layer *b,
    lpo_var *x)
{
	lpo_var *h = lpo_linear(r->t, a, x);

	h = lpo_activation(r->t, LPO_SILU, h);
	return lpo_linear(r->t, b, h);
}

/*
 * emb [G*r*copies] + text [G*copies]: row i of the text goes to r rows, which
 * add_rows does if each row's r are seen as its positions.
 */
static lpo_var *
add_text(struct run *r, lpo_var *emb, lpo_var *text)
{
	int64_t n, c;

	if (emb == NULL || text == NULL)
		return NULL;
	n = emb->n;
	c = emb->c;
	emb = lpo_reshape(r->t, emb, text->n, n / text->n, 1, c);
	return lpo_reshape(r->t, lpo_add_rows(r->t, emb, text), n, 1, 1, c);
}

static void
embed(struct run *r, const struct lpo_unet_in *in)
{
	const lpo_unet *u = r->u;
	lpo_tape *t = r->t;
	enum lpo_dtype dt = lpo_tape_dtype(t);
	lpo_var *e, *x;

	e = mlp(r, &u->time1, &u->time2, lpo_cast(t, in->time, dt));
	if (!u->cfg.text_time) {
		r->emb[0] = lpo_activation(t, LPO_SILU, e);
		r->emb[1] = r->copies > 1 ?
		    lpo_repeat(t, r->emb[0], r->copies) : r->emb[0];
		return;
	}
	if (r->copies > 1)
		e = lpo_repeat(t, e, r->copies);
	x = lpo_concat(t, lpo_cast(t, in->text_embeds, dt),
	    lpo_cast(t, in->time_ids, dt));
	e = add_text(r, e, mlp(r, &u->add1, &u->add2, x));
	r->emb[0] = r->emb[1] = lpo_activation(t, LPO_SILU, e);
}

/* ---------------------------------------------------------------- blocks */

static lpo_var *
doubled(struct run *r, lpo_var *x)
{
	return r->copies > 1 ? lpo_repeat(r->t, x, r->copies) : x;
}

static lpo_var *
resnet(struct run *r, const struct lpo_unet_resnet *m, lpo_var *x)
{
	lpo_tape *t = r->t;
	lpo_var *h;

	h = lpo_conv(t, &m->conv1, lpo_norm_silu(t, &m->norm1, x));
	h = lpo_add_rows(t, h, lpo_linear(t, &m->time, r->emb[r->split]));
	h = lpo_norm_silu(t, &m->norm2, h);
	if (m->shortcut.w != NULL)
		x = lpo_conv(t, &m->shortcut, x);
	return lpo_conv_add(t, &m->conv2, h, x);
}

/* h + the attention to the context. */
static lpo_var *
cross_attention(struct run *r, const struct lpo_unet_tblock *m, int64_t heads,
    lpo_var *h, lpo_var *q)
{
	lpo_tape *t = r->t;
	lpo_var *k = lpo_linear(t, &m->cross.k, r->context);
	lpo_var *v = lpo_linear(t, &m->cross.v, r->context);

	return lpo_linear_add(t, &m->cross.out,
	    lpo_attention(t, q, k, v, heads, 0), h);
}

/* The same where half of the rows see the one token of r->flat. */
static lpo_var *
cross_or_flat(struct run *r, const struct lpo_unet_tblock *m, int64_t heads,
    lpo_var *h)
{
	lpo_tape *t = r->t;
	lpo_var *a, *b, *y;
	int64_t n;

	if (h == NULL)
		return NULL;
	n = h->n / lpo_tape_groups(t) / 2;
	a = lpo_slice_rows(t, h, 0, n);
	b = lpo_slice_rows(t, h, n, n);
	a = cross_attention(r, m, heads, a, lpo_linear(t, &m->cross.q,
	    lpo_layer_norm(t, &m->norm2, a)));
	y = lpo_linear(t, &m->cross.out, lpo_linear(t, &m->cross.v, r->flat));
	if (n > 1)
		y = lpo_repeat(t, y, n);
	return lpo_join_rows(t, a, lpo_add_rows(t, b, y));
}

/* The text enters at the cross-attention's keys: *res is the skip around. */
static lpo_var *
tblock(struct run *r, const struct lpo_unet_tblock *m, int64_t heads,
    lpo_var *h, lpo_var **res)
{
	lpo_tape *t = r->t;
	lpo_var *x, *q, *k, *v;

	x = lpo_layer_norm(t, &m->norm1, h);
	q = lpo_linear(t, &m->self.q, x);
	k = lpo_linear(t, &m->self.k, x);
	v = lpo_linear(t, &m->self.v, x);
	x = lpo_attention(t, q, k, v, heads, 0);
	h = lpo_linear_add(t, &m->self.out, x, h);

	if (r->flat != NULL) {
		h = cross_or_flat(r, m, heads, h);
	} else {
		q = lpo_linear(t, &m->cross.q,
		    lpo_layer_norm(t, &m->norm2, h));
		if (!r->split) {
			q = doubled(r, q);
			h = doubled(r, h);
			*res = doubled(r, *res);
			r->split = 1;
		}
		h = cross_attention(r, m, heads, h, q);
	}

	x = lpo_linear(t, &m->ff_in, lpo_layer_norm(t, &m->norm3, h));
	return lpo_linear_add(t, &m->ff_out, lpo_geglu(t, x), h);
}

static lpo_var *
transformer(struct run *r, const struct lpo_unet_transformer *m, lpo_var *x)
{
	lpo_tape *t = r->t;
	lpo_var *h = lpo_linear(t, &m->in, lpo_group_norm(t, &m->norm, x));
	int64_t i;

	for (i = 0; i < m->depth; i++)
		h = tblock(r, &m->block[i], m->heads, h, &x);
	return lpo_linear_add(t, &m->out, h, x);
}

/* Layer i of a block, one checkpointed segment; skip: NULL on the way down. */
static lpo_var *
layer(struct run *r, const struct lpo_unet_block *b, int64_t i, lpo_var *x,
    lpo_var *skip)
{
	if (r->u->checkpoint)
		lpo_segment_begin(r->t);
	if (skip != NULL)
		x = lpo_concat(r->t, x, skip);
	x = resnet(r, &b->resnet[i], x);
	if (b->cross)
		x = transformer(r, &b->attn[i], x);
	if (r->u->checkpoint)
		lpo_segment_end(r->t);
	return x;
}

static void
push(struct run *r, lpo_var *x)
{
	r->skip_split[r->skips] = r->split;
	r->skip[r->skips++] = x;
}

static lpo_var *
pop(struct run *r)
{
	int i = --r->skips;

	return r->skip_split[i] == r->split ? r->skip[i] :
	    doubled(r, r->skip[i]);
}

/* Contexts of one token only are set apart, where rows are doubled early. */
static void
contexts(struct run *r, const struct lpo_unet_in *in)
{
	lpo_tape *t = r->t;
	lpo_var *x = lpo_cast(t, in->context, lpo_tape_dtype(t));

	r->context = x;
	if (x == NULL || !in->flat_uncond || r->copies != 2 ||
	    !r->u->cfg.text_time)
		return;
	r->context = lpo_slice_rows(t, x, 0, 1);
	r->flat = lpo_slice_rows(t, lpo_reshape(t, x, x->n * x->h * x->w, 1, 1,
	    x->c), x->h * x->w, 1);
}

/* conv_in, embeddings, down blocks; pooled NULL or one per block. */
static lpo_var *
down_path(struct run *r, const struct lpo_unet_in *in, lpo_var **pooled)
{
	const lpo_unet *u = r->u;
	enum lpo_dtype dt = lpo_tape_dtype(r->t);
	const struct lpo_unet_block *b;
	lpo_var *x;
	int64_t j;
	int i;

	contexts(r, in);
	embed(r, in);
	x = lpo_conv(r->t, &u->conv_in, lpo_cast(r->t, in->sample, dt));
	if (u->cfg.text_time) {
		/* the embedding knows the text: all from here on does */
		x = doubled(r, x);
		r->split = 1;
	}
	push(r, x);
	for (i = 0; i < u->cfg.blocks; i++) {
		b = &u->down[i];
		for (j = 0; j < b->layers; j++) {
			x = layer(r, b, j, x, NULL);
			push(r, x);
		}
		if (pooled != NULL) {
			pooled[i] = lpo_mean_pool(r->t, x);
			if (!r->split)
				pooled[i] = doubled(r, pooled[i]);
		}
		if (b->sampler.w != NULL) {
			x = lpo_conv(r->t, &b->sampler, x);
			push(r, x);
		}
	}
	return x;
}

static lpo_var *
mid_block(struct run *r, lpo_var *x)
{
	const struct lpo_unet_block *b = &r->u->mid;

	x = layer(r, b, 0, x, NULL);
	if (r->u->checkpoint)
		lpo_segment_begin(r->t);
	x = resnet(r, &b->resnet[1], x);
	if (r->u->checkpoint)
		lpo_segment_end(r->t);
	return x;
}

/*
 * Doubling a size that was halved with rounding up would give one too many:
 * each block comes back to the size of the skip tensor it meets next.
 */
static lpo_var *
up_path(struct run *r, lpo_var *x)
{
	const lpo_unet *u = r->u;
	const struct lpo_unet_block *b;
	const lpo_var *next;
	int64_t j;
	int i;

	for (i = 0; i < u->cfg.blocks; i++) {
		b = &u->up[i];
		for (j = 0; j < b->layers; j++)
			x = layer(r, b, j, x, pop(r));
		if (b->sampler.w == NULL)
			continue;
		if ((next = r->skip[r->skips - 1]) == NULL)
			return NULL;
		x = lpo_upsample(r->t, x, next->h, next->w);
		x = lpo_conv(r->t, &b->sampler, x);
	}
	return x;
}

lpo_var *
lpo_unet_fwd(lpo_tape *t, lpo_unet *u, const struct lpo_unet_in *in)
{
	struct run r = { .t = t, .u = u, .copies = in->copies };
	lpo_var *x;

	assert(!u->half);
	x = up_path(&r, mid_block(&r, down_path(&r, in, NULL)));
	x = lpo_conv(t, &u->conv_out, lpo_norm_silu(t, &u->norm_out, x));
	return lpo_cast(t, x, LPO_F32);
}

int
lpo_unet_features(lpo_tape *t, lpo_unet *u, const struct lpo_unet_in *in,
    lpo_var *pooled[LPO_UNET_MAX_BLOCKS + 1])
{
	struct run r = { .t = t, .u = u, .copies = in->copies };
	lpo_var *x;

	x = mid_block(&r, down_path(&r, in, pooled));
	pooled[u->cfg.blocks] = lpo_mean_pool(t, x);
	return u->cfg.blocks + 1;
}
