/* The DDIM sampler. */
#include "lib/train/sample.h"

#include <math.h>
#include <string.h>

#include "lib/base/philox.h"

struct lpo_sampler {
	lpo_ctx *ctx;
	lpo_backend *be;
	struct lpo_sample_options o;
	struct lpo_ddim *ddim;
	lpo_policy *policy;
	lpo_tape *decode;
	lpo_var *in, *out;
	struct lpo_plan decode_plan;
	int64_t decode_n;	/* pictures per decoder evaluation */
	float scaling;
	lpo_arena arena;
	int64_t n, count, pixels;	/* at once; floats per latent, picture */
	float *x, *eps, *z, *image;
	int64_t *t;
};

static int
schedule_steps(lpo_sampler *s, const struct lpo_schedule *sched)
{
	int64_t *t, i;
	int rc;

	s->ddim = lpo_alloc(s->ctx, (size_t)s->o.steps, sizeof(*s->ddim));
	t = lpo_alloc(s->ctx, (size_t)s->o.steps, sizeof(*t));
	rc = s->ddim == NULL || t == NULL ? LPO_ENOMEM :
	    lpo_schedule_timesteps(s->ctx, sched, t, s->o.steps);
	for (i = 0; rc == 0 && i < s->o.steps; i++)
		lpo_schedule_ddim(sched, &s->ddim[i], t[i], s->o.steps,
		    s->o.eta, 0);
	lpo_free(t);
	return rc;
}

/* The decoder for as many pictures as fit, at most as many as the UNet's. */
static int
decoder(lpo_sampler *s, lpo_vae *vae, enum lpo_dtype dt, int64_t h, int64_t w)
{
	const struct lpo_vae_config *v = lpo_vae_cfg(vae);
	int rc;

	for (s->decode_n = s->n;; s->decode_n = (s->decode_n + 1) / 2) {
		s->decode = lpo_tape_new(s->ctx, s->be, dt, 1);
		if (s->decode == NULL)
			return LPO_ENOMEM;
		s->in = lpo_input(s->decode, s->decode_n, h, w,
		    v->latent_channels, LPO_F32, 0);
		s->out = lpo_vae_decode(s->decode, vae, s->in);
		lpo_output(s->decode, s->out, 0);
		if ((rc = lpo_tape_plan(s->decode, 0, &s->decode_plan)) < 0)
			return rc;
		if (s->decode_n == 1 ||
		    s->decode_plan.arena_bytes <= s->o.memory_bytes)
			return lpo_tape_commit(s->decode, &s->arena);
		lpo_tape_free(s->decode);
	}
}

int
lpo_sampler_new(lpo_ctx *c, lpo_sampler **out, lpo_backend *be,
    lpo_unet *unet, lpo_vae *vae, enum lpo_dtype dt,
    const struct lpo_schedule *sched, int64_t length, int64_t dim,
    int64_t pooled_dim, const struct lpo_sample_options *o)
{
	const struct lpo_vae_config *v = lpo_vae_cfg(vae);
	struct lpo_policy_shape p = {
		.h = o->height_px / v->factor, .w = o->width_px / v->factor,
		.height_px = o->height_px, .width_px = o->width_px,
		.length = length, .dim = dim, .pooled_dim = pooled_dim,
		.guidance = o->guidance
	};
	lpo_sampler *s;
	int rc;

	*out = NULL;
	if (o->height_px % v->factor != 0 || o->width_px % v->factor != 0 ||
	    o->height_px < v->factor || o->width_px < v->factor)
		return lpo_fail(c, LPO_EINVAL, "%lld x %lld pixels: want "
		    "multiples of %lld", (long long)o->width_px,
		    (long long)o->height_px, (long long)v->factor);
	if ((s = lpo_alloc(c, 1, sizeof(*s))) == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->be = be;
	s->o = *o;
	s->scaling = v->scaling_factor;
	s->count = p.h * p.w * lpo_unet_cfg(unet)->in_channels;
	s->pixels = o->height_px * o->width_px * 3;
	if ((rc = schedule_steps(s, sched)) < 0 ||
	    (rc = lpo_policy_fit(c, &s->policy, be, unet, dt, &p,
	    o->at_once ? o->at_once : 64, o->memory_bytes)) < 0)
		goto fail;
	s->n = p.groups;
	if ((rc = decoder(s, vae, dt, p.h, p.w)) < 0 ||
	    (rc = lpo_policy_commit(s->policy, &s->arena)) < 0)
		goto fail;
	s->x = lpo_alloc(c, (size_t)(s->n * s->count), sizeof(float));
	s->eps = lpo_alloc(c, (size_t)(s->n * s->count), sizeof(float));
	s->z = lpo_alloc(c, (size_t)s->count, sizeof(float));
	s->image = lpo_alloc(c, (size_t)(s->decode_n * s->pixels),
	    sizeof(float));
	s->t = lpo_alloc(c, (size_t)s->n, sizeof(*s->t));
	if ((rc = lpo_errcode(c)) < 0)
		goto fail;
	*out = s;
	return 0;
fail:
	lpo_sampler_free(s);
	return rc;
}

void
lpo_sampler_free(lpo_sampler *s)
{
	if (s == NULL)
		return;
	lpo_policy_free(s->policy);
	lpo_tape_free(s->decode);
	lpo_arena_free(s->be, &s->arena);
	lpo_free(s->ddim);
	lpo_free(s->x);
	lpo_free(s->eps);
	lpo_free(s->z);
	lpo_free(s->image);
	lpo_free(s->t);
	lpo_free(s);
}

int64_t
lpo_sampler_at_once(const lpo_sampler *s)
{
	return s->n;
}

size_t
lpo_sampler_bytes(const lpo_sampler *s)
{
	return s->arena.bytes;
}

double
lpo_sampler_flops(const lpo_sampler *s)
{
	return lpo_policy_plan(s->policy)->fwd_flops / (double)s->n *
	    (double)s->o.steps +
	    s->decode_plan.fwd_flops / (double)s->decode_n;
}

/* x of picture `index` after step i: mu + sigma z. */
static void
next_latent(lpo_sampler *s, int64_t i, int64_t at, int64_t index)
{
	const struct lpo_ddim *d = &s->ddim[i];
	struct lpo_draw draw = { .seed = s->o.seed, .purpose = LPO_DRAW_ETA,
	    .item = (uint32_t)index, .step = (uint32_t)i };
	float cx = (float)d->c_x, ce = (float)d->c_eps;
	float sigma = (float)d->sigma;
	float *x = s->x + at * s->count, *e = s->eps + at * s->count;
	int64_t j;

	for (j = 0; j < s->count; j++)
		x[j] = cx * x[j] + ce * e[j];
	if (!(sigma > 0))
		return;
	lpo_draw_normal(&draw, 0, s->z, s->count);
	for (j = 0; j < s->count; j++)
		x[j] += sigma * s->z[j];
}

/* [-1, 1] to bytes: clamp(y/2 + 1/2) * 255, half to even. */
static void
to_bytes(uint8_t *rgb, const float *y, int64_t n)
{
	int64_t i;
	float v;

	for (i = 0; i < n; i++) {
		v = y[i] * 0.5f + 0.5f;
		v = !(v > 0) ? 0 : v > 1 ? 1 : v;	/* NaN is black */
		rgb[i] = (uint8_t)rintf(v * 255.0f);
	}
}

static int
decode(lpo_sampler *s, uint8_t *rgb, int64_t n)
{
	int64_t i, j, some;
	float *z = s->eps;
	int rc;

	for (i = 0; i < n * s->count; i++)
		z[i] = s->x[i] / s->scaling;
	/* the last evaluation's spare rows decode old numbers, unused */
	for (i = 0; i < n; i += some) {
		some = n - i < s->decode_n ? n - i : s->decode_n;
		j = i + s->decode_n <= s->n ? i : s->n - s->decode_n;
		if ((rc = lpo_var_set(s->decode, s->in,
		    z + j * s->count)) < 0 ||
		    (rc = lpo_tape_forward(s->decode, 0)) < 0 ||
		    (rc = lpo_var_get(s->decode, s->out, s->image)) < 0)
			return rc;
		to_bytes(rgb + i * s->pixels, s->image + (i - j) * s->pixels,
		    some * s->pixels);
	}
	return 0;
}

int
lpo_sampler_run(lpo_sampler *s, uint8_t *rgb, float *latent,
    const lpo_policy_texts *texts, const int64_t *prompt,
    const int64_t *index, const float *start, int64_t n)
{
	struct lpo_draw d = { .seed = s->o.seed, .purpose = LPO_DRAW_LATENT };
	int64_t i, k;
	int rc;

	for (k = 0; k < n; k++) {
		d.item = (uint32_t)index[k];
		if (start != NULL)
			memcpy(s->x + k * s->count, start + k * s->count,
			    (size_t)s->count * sizeof(float));
		else
			lpo_draw_normal(&d, 0, s->x + k * s->count, s->count);
	}
	for (i = 0; i < s->o.steps; i++) {
		for (k = 0; k < n; k++)
			s->t[k] = s->ddim[i].t;
		if ((rc = lpo_policy_eval(s->policy, s->eps, texts, s->x, s->t,
		    prompt, n, 0)) < 0)
			return rc;
		for (k = 0; k < n; k++)
			next_latent(s, i, k, index[k]);
	}
	if (latent != NULL)
		memcpy(latent, s->x, (size_t)(n * s->count) * sizeof(float));
	return decode(s, rgb, n);
}
