/* Pictures from prompts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/io/image.h"
#include "lib/train/sample.h"
#include "lib/train/torch_rng.h"

struct lpo_sampler {
	lpo_ctx *ctx;
	lpo_backend *be;
	enum lpo_dtype dt;
	struct lpo_sampler_opts o;
	struct lpo_schedule schedule;
	struct lpo_ddim *step;	/* [steps] */
	lpo_policy_texts *texts;
	int64_t n_prompts, length, dim, pooled_dim;
	lpo_unet *unet;
	lpo_lora_set *lora;
	int flags;		/* of the walk: LoRA off */
	lpo_policy *policy;
	int64_t batch, h, w, c;	/* of the latent */
	lpo_vae *vae;
	lpo_tape *decoder;
	lpo_var *z, *image;
	int64_t decode_batch;
	struct lpo_plan decode_plan;
	lpo_arena arena;	/* the two tapes take turns in it */
	float *x, *eps, *noise;	/* [batch, h, w, c], noise [c, h, w] */
	float *pixels;		/* [decode_batch, size, size, 3] */
};

/* ----------------------------------------------------------------- open */

static int
open_texts(lpo_sampler *s, const char *dir, const char *const *prompts,
    int64_t n)
{
	lpo_text *text = NULL;
	int rc;

	rc = lpo_text_open(s->ctx, s->be, &text, dir, s->dt);
	if (rc == 0) {
		s->length = lpo_text_length(text);
		s->dim = lpo_text_dim(text);
		s->pooled_dim = lpo_text_pooled_dim(text);
		rc = lpo_policy_texts_new(s->ctx, &s->texts, text, prompts, n);
	}
	/* gone before the UNet comes: the two never need room together */
	lpo_text_free(text);
	return rc;
}

static int
open_steps(lpo_sampler *s, const char *dir)
{
	int64_t *t, i, n = s->o.steps;
	int rc;

	if ((rc = lpo_schedule_load(s->ctx, &s->schedule, dir)) != 0)
		return rc;
	t = lpo_alloc(s->ctx, (size_t)n, sizeof *t);
	s->step = lpo_alloc(s->ctx, (size_t)n, sizeof *s->step);
	rc = t == NULL || s->step == NULL ? LPO_ENOMEM :
	    lpo_schedule_timesteps(s->ctx, &s->schedule, t, n);
	for (i = 0; i < n && rc == 0; i++)
		lpo_schedule_ddim(&s->schedule, &s->step[i], t[i], n,
		    s->o.eta, 0);
	lpo_free(t);
	return rc;
}

static int
open_models(lpo_sampler *s, const char *dir, const char *lora, float strength)
{
	char *unet = lpo_asprintf(s->ctx, "%s/unet", dir);
	char *vae = lpo_asprintf(s->ctx, "%s/vae", dir);
	const struct lpo_unet_config *u;
	const struct lpo_vae_config *v;
	int rc = LPO_ENOMEM;

	if (unet == NULL || vae == NULL ||
	    (rc = lpo_unet_load(s->ctx, s->be, &s->unet, unet, s->dt,
	    0)) != 0 ||
	    (rc = lpo_policy_check_texts(s->ctx, lpo_unet_cfg(s->unet),
	    s->dim, s->pooled_dim, dir)) != 0 ||
	    (rc = lpo_vae_load(s->ctx, s->be, &s->vae, vae, s->dt,
	    LPO_VAE_DECODER)) != 0)
		goto out;
	if (lora != NULL && (rc = lpo_lora_load(s->ctx, &s->lora, s->unet,
	    lora, strength, 0)) != 0)
		goto out;
	u = lpo_unet_cfg(s->unet);
	v = lpo_vae_cfg(s->vae);
	s->c = v->latent_channels;
	if (u->in_channels != s->c || u->out_channels != s->c) {
		rc = lpo_fail(s->ctx, LPO_EFORMAT, "'%s': a UNet from %lld to "
		    "%lld channels does not go with %lld latent channels",
		    dir, (long long)u->in_channels, (long long)u->out_channels,
		    (long long)s->c);
		goto out;
	}
	if (s->o.size_px == 0)
		s->o.size_px = u->sample_size * v->factor;
	if (s->o.size_px % v->factor != 0) {
		rc = lpo_fail(s->ctx, LPO_EINVAL, "size %lld is not a "
		    "multiple of %lld, the VAE's pixels per latent",
		    (long long)s->o.size_px, (long long)v->factor);
		goto out;
	}
	s->h = s->w = s->o.size_px / v->factor;
out:
	lpo_free(unet);
	lpo_free(vae);
	return rc;
}

static struct lpo_policy_shape
shape(const lpo_sampler *s)
{
	struct lpo_policy_shape p = { .h = s->h, .w = s->w,
	    .height_px = s->o.size_px, .width_px = s->o.size_px,
	    .length = s->length, .dim = s->dim, .pooled_dim = s->pooled_dim,
	    .guidance = s->o.guidance,
	    .flat_uncond = lpo_policy_texts_flat_uncond(s->texts) };

	return p;
}

static int
plan_policy(lpo_sampler *s)
{
	struct lpo_policy_shape p = shape(s);
	size_t room = s->o.memory_bytes > 0 ? (size_t)s->o.memory_bytes :
	    SIZE_MAX;
	int64_t want = s->o.batch, all = s->n_prompts * s->o.per_prompt;
	int rc;

	/* small latents in large batches, 64 x 64 ones four at a time */
	if (want == 0)
		want = 16384 / (s->h * s->w);
	want = want < 1 ? 1 : want > 64 && s->o.batch == 0 ? 64 : want;
	want = want > all ? all : want;
	if ((rc = lpo_policy_fit(s->ctx, &s->policy, s->be, s->unet, s->dt,
	    &p, LPO_SEGMENTS_OFF, want, room)) != 0)
		return rc;
	s->batch = lpo_policy_groups(s->policy);
	return lpo_policy_commit(s->policy, &s->arena);
}

static int
plan_decoder(lpo_sampler *s)
{
	int64_t n = s->o.size_px >= 256 ? 1 : s->batch < 16 ? s->batch : 16;
	int rc;

	s->decode_batch = n;
	if ((s->decoder = lpo_tape_new(s->ctx, s->be, s->dt, 1)) == NULL)
		return LPO_ENOMEM;
	s->z = lpo_input(s->decoder, n, s->h, s->w, s->c, LPO_F32, 0);
	s->image = lpo_vae_decode(s->decoder, s->vae, s->z);
	lpo_output(s->decoder, s->image, 0);
	if ((rc = lpo_tape_plan(s->decoder, 0, &s->decode_plan)) != 0)
		return rc;
	return lpo_tape_commit(s->decoder, &s->arena);
}

static int
staging(lpo_sampler *s)
{
	size_t n = (size_t)(s->h * s->w * s->c), b = (size_t)s->batch;
	size_t size = (size_t)s->o.size_px;

	s->x = lpo_alloc(s->ctx, b * n, sizeof *s->x);
	s->eps = lpo_alloc(s->ctx, b * n, sizeof *s->eps);
	s->noise = lpo_alloc(s->ctx, n, sizeof *s->noise);
	s->pixels = lpo_alloc(s->ctx, (size_t)s->decode_batch * size,
	    size * 3 * sizeof *s->pixels);
	return s->x != NULL && s->eps != NULL && s->noise != NULL &&
	    s->pixels != NULL ? 0 : LPO_ENOMEM;
}

int
lpo_sampler_open(lpo_ctx *c, lpo_sampler **out, lpo_backend *be,
    enum lpo_dtype dt, const char *dir, const char *lora, float strength,
    const char *const *prompts, int64_t n, const struct lpo_sampler_opts *o)
{
	lpo_sampler *s = lpo_alloc(c, 1, sizeof *s);
	int rc;

	*out = NULL;
	if (s == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->be = be;
	s->dt = dt;
	s->o = *o;
	s->n_prompts = n;
	if ((rc = open_steps(s, dir)) != 0 ||
	    (rc = open_texts(s, dir, prompts, n)) != 0 ||
	    (rc = open_models(s, dir, lora, strength)) != 0 ||
	    (rc = plan_policy(s)) != 0 || (rc = plan_decoder(s)) != 0 ||
	    (rc = staging(s)) != 0)
		lpo_sampler_free(s);
	else
		*out = s;
	return rc;
}

void
lpo_sampler_free(lpo_sampler *s)
{
	if (s == NULL)
		return;
	lpo_policy_free(s->policy);
	lpo_tape_free(s->decoder);
	lpo_arena_free(s->be, &s->arena);
	lpo_lora_free(s->lora);
	lpo_unet_free(s->unet);
	lpo_vae_free(s->vae);
	lpo_policy_texts_free(s->texts);
	lpo_schedule_free(&s->schedule);
	lpo_free(s->step);
	lpo_free(s->x);
	lpo_free(s->eps);
	lpo_free(s->noise);
	lpo_free(s->pixels);
	lpo_free(s);
}

int64_t
lpo_sampler_count(const lpo_sampler *s)
{
	return s->n_prompts * s->o.per_prompt;
}

int64_t
lpo_sampler_batch(const lpo_sampler *s)
{
	return s->batch;
}

int64_t
lpo_sampler_size_px(const lpo_sampler *s)
{
	return s->o.size_px;
}

void
lpo_sampler_plan(const lpo_sampler *s, struct lpo_sampler_plan *p)
{
	const struct lpo_plan *u = lpo_policy_plan(s->policy);

	p->arena_bytes = s->arena.bytes;
	p->text_bytes = (size_t)lpo_policy_texts_bytes(s->texts);
	p->text_row_bytes = (size_t)lpo_policy_texts_row_bytes(s->texts);
	p->weight_bytes = (size_t)lpo_unet_params(s->unet)->bytes;
	if (s->lora != NULL)
		p->weight_bytes += (size_t)lpo_lora_params(s->lora)->bytes;
	p->vae_bytes = (size_t)lpo_vae_params(s->vae)->bytes;
	p->image_flops = (double)s->o.steps * u->fwd_flops /
	    (double)s->batch + s->decode_plan.fwd_flops /
	    (double)s->decode_batch;
}

/* ------------------------------------------------------------------ run */

/* N(0,1) for a picture, [c, h, w] in the order of a diffusers latent. */
static int
draw(lpo_sampler *s, int64_t number, int64_t step, float *out)
{
	struct lpo_draw d = { .seed = s->o.seed,
	    .purpose = step < 0 ? LPO_DRAW_LATENT : LPO_DRAW_ETA,
	    .item = (uint32_t)number,
	    .step = step < 0 ? 0 : (uint32_t)step };
	int64_t n = s->c * s->h * s->w;

	if (s->o.rng == LPO_RNG_TORCH_CPU)
		return lpo_torch_randn(s->ctx, out, n, s->o.seed +
		    (uint64_t)number, step + 1);
	if (s->o.rng == LPO_RNG_TORCH_CUDA)
		lpo_torch_cuda_randn(out, n, s->o.seed + (uint64_t)number,
		    step + 1);
	else
		lpo_draw_normal(&d, 0, out, n);
	return 0;
}

static int
start(lpo_sampler *s, int64_t first, int64_t n)
{
	int64_t hw = s->h * s->w, i, k, p;
	float *x;
	int rc;

	for (i = 0; i < n; i++) {
		if ((rc = draw(s, first + i, -1, s->noise)) != 0)
			return rc;
		x = s->x + i * hw * s->c;
		for (p = 0; p < hw; p++)
			for (k = 0; k < s->c; k++)
				x[p * s->c + k] = s->noise[k * hw + p];
	}
	return 0;
}

/* x = c_x x + c_eps e + sigma z, in f64 and rounded once. */
static int
advance(lpo_sampler *s, const struct lpo_ddim *d, int64_t first, int64_t n,
    int64_t step)
{
	int64_t hw = s->h * s->w, i, k, p;
	float *x, *e;
	double v;
	int rc;

	for (i = 0; i < n; i++) {
		x = s->x + i * hw * s->c;
		e = s->eps + i * hw * s->c;
		if (d->sigma > 0 && (rc = draw(s, first + i, step,
		    s->noise)) != 0)
			return rc;
		for (p = 0; p < hw; p++)
			for (k = 0; k < s->c; k++, x++, e++) {
				v = d->c_x * (double)*x + d->c_eps *
				    (double)*e;
				if (d->sigma > 0)
					v += d->sigma * (double)
					    s->noise[k * hw + p];
				*x = (float)v;
			}
	}
	return 0;
}

/* NaN would be a black picture like any other, and be scored as one. */
static int
check_finite(lpo_sampler *s, int64_t first, int64_t count)
{
	int64_t i, number, pixels = s->o.size_px * s->o.size_px * 3;
	char key[32];

	for (i = 0; i < count && isfinite(s->pixels[i]); i++)
		;
	if (i == count)
		return 0;
	number = first + i / pixels;
	lpo_sample_key(key, number / s->o.per_prompt, number %
	    s->o.per_prompt);
	return lpo_fail(s->ctx, LPO_EFORMAT, "picture '%s' is not finite: "
	    "weights of the model or the LoRA are too large for %s", key,
	    lpo_dtype_name(s->dt));
}

static int
decode(lpo_sampler *s, uint8_t *rgb, int64_t first, int64_t n)
{
	int64_t count = s->h * s->w * s->c, at, i, k, size;
	int64_t pixels = s->o.size_px * s->o.size_px * 3;
	float scale = lpo_vae_cfg(s->vae)->scaling_factor;
	int rc;

	for (at = 0; at < n; at += size) {
		size = n - at < s->decode_batch ? n - at : s->decode_batch;
		/* eps is free by now: the decoder's input goes there */
		for (i = 0; i < s->decode_batch; i++) {
			const float *x = s->x + (at + (i < size ? i : 0)) *
			    count;

			for (k = 0; k < count; k++)
				s->eps[i * count + k] = x[k] / scale;
		}
		if ((rc = lpo_var_set(s->decoder, s->z, s->eps)) != 0 ||
		    (rc = lpo_tape_forward(s->decoder, 0)) != 0 ||
		    (rc = lpo_var_get(s->decoder, s->image,
		    s->pixels)) != 0)
			return rc;
		if ((rc = check_finite(s, first + at, size * pixels)) != 0)
			return rc;
		lpo_image_from_float(rgb + at * pixels, s->pixels,
		    size * pixels);
	}
	return 0;
}

int
lpo_sampler_run(lpo_sampler *s, uint8_t *rgb, float *latent, int64_t first,
    int64_t n)
{
	int64_t hw = s->h * s->w, i, k, p, step;
	int64_t *t = NULL, *prompt = NULL;
	int rc = LPO_ENOMEM;

	t = lpo_alloc(s->ctx, (size_t)n, sizeof *t);
	prompt = lpo_alloc(s->ctx, (size_t)n, sizeof *prompt);
	if (t == NULL || prompt == NULL || (rc = start(s, first, n)) != 0)
		goto out;
	for (i = 0; i < n; i++)
		prompt[i] = (first + i) / s->o.per_prompt;
	for (step = 0; step < s->o.steps; step++) {
		for (i = 0; i < n; i++)
			t[i] = s->step[step].t;
		if ((rc = lpo_policy_eval(s->policy, s->eps, s->texts, s->x,
		    t, prompt, n, s->flags)) != 0 ||
		    (rc = advance(s, &s->step[step], first, n, step)) != 0)
			goto out;
	}
	for (i = 0; latent != NULL && i < n; i++)
		for (k = 0; k < s->c; k++)
			for (p = 0; p < hw; p++)
				latent[(i * s->c + k) * hw + p] =
				    s->x[(i * hw + p) * s->c + k];
	rc = rgb != NULL ? decode(s, rgb, first, n) : 0;
	lpo_policy_texts_drop(s->texts);
out:
	lpo_free(t);
	lpo_free(prompt);
	return rc;
}

int
lpo_sampler_time(lpo_sampler *s, double *seconds)
{
	struct lpo_policy_shape p = shape(s);
	double u[2], v[2];
	int rc;

	p.groups = s->batch;
	if ((rc = lpo_policy_time(s->ctx, s->be, s->unet, s->dt, &p,
	    u)) == 0 && (rc = lpo_tape_time(s->decoder, v)) == 0)
		*seconds = u[0] * (double)s->o.steps + v[0] /
		    (double)s->decode_batch;
	return rc;
}

/* ---------------------------------------------------------------- words */

void
lpo_sample_key(char out[32], int64_t prompt, int64_t picture)
{
	snprintf(out, 32, "%09lld-%lld", (long long)prompt,
	    (long long)picture);
}

char *
lpo_sample_parameters(lpo_ctx *c, const struct lpo_sampler_opts *o,
    const char *prompt, int64_t size_px, int64_t number,
    const char *model_hash, const char *lora_hash, double strength)
{
	static const char *const rng[] = { "Philox", "CPU", "GPU" };
	char lora[96] = "", eta[32] = "";

	if (lora_hash != NULL)
		snprintf(lora, sizeof lora, ", Lora hash: %.10s, Lora "
		    "strength: %g", lora_hash, strength);
	if (o->eta != 0)
		snprintf(eta, sizeof eta, ", Eta: %g", o->eta);
	return lpo_asprintf(c, "%s\nSteps: %lld, Sampler: DDIM, CFG scale: "
	    "%g, Seed: %llu, Size: %lldx%lld, Model hash: %.10s%s%s, RNG: %s, "
	    "Image: %lld", prompt, (long long)o->steps, o->guidance,
	    (unsigned long long)(o->rng == LPO_RNG_PHILOX ? o->seed : o->seed +
	    (uint64_t)number), (long long)size_px, (long long)size_px,
	    model_hash, lora, eta, rng[o->rng], (long long)number);
}
