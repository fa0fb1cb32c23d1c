/* The UNet with guidance, and the texts it reads. */
#include "lib/train/policy.h"

#include <string.h>
#include <sys/mman.h>

#include "lib/base/file.h"
#include "lib/nn/dry.h"

/* ----------------------------------------------------------------- texts */

struct lpo_policy_texts {
	int64_t n, row, pooled;	/* floats per prompt: context, pooled */
	float *map;		/* n + 1 rows of row + pooled; last: uncond */
	size_t bytes;
	int flat_uncond;
	const lpo_backend *be;
};

static float *
row_of(const lpo_policy_texts *x, int64_t i)
{
	return x->map + i * (x->row + x->pooled);
}

/* Prompts i .. i+n-1 through small buffers into the map. */
static int
encode_some(lpo_ctx *c, lpo_policy_texts *x, lpo_text *text,
    const char *const *prompts, int64_t first, int64_t n)
{
	float *ctx, *pool;
	int64_t i;
	int rc = LPO_ENOMEM;

	ctx = lpo_alloc(c, (size_t)(n * x->row), sizeof(float));
	pool = lpo_alloc(c, (size_t)(n * x->pooled + 1), sizeof(float));
	if (ctx == NULL || pool == NULL)
		goto out;
	if ((rc = lpo_text_encode(text, ctx, x->pooled > 0 ? pool : NULL,
	    prompts, n)) < 0 || lpo_dry_is(x->be))
		goto out;
	for (i = 0; i < n; i++) {
		memcpy(row_of(x, first + i), ctx + i * x->row,
		    (size_t)x->row * sizeof(float));
		memcpy(row_of(x, first + i) + x->row, pool + i * x->pooled,
		    (size_t)x->pooled * sizeof(float));
	}
out:
	lpo_free(ctx);
	lpo_free(pool);
	return rc;
}

int
lpo_policy_texts_new(lpo_ctx *c, lpo_policy_texts **out, lpo_text *text,
    const char *const *prompts, int64_t n)
{
	enum { CHUNK = 64 };
	static const char *const empty[] = { "" };
	lpo_policy_texts *x;
	int64_t i, some;
	int rc = 0;

	*out = NULL;
	if ((x = lpo_alloc(c, 1, sizeof(*x))) == NULL)
		return LPO_ENOMEM;
	x->n = n;
	x->be = lpo_text_backend(text);
	x->row = lpo_text_length(text) * lpo_text_dim(text);
	x->pooled = lpo_text_pooled_dim(text);
	x->bytes = (size_t)(n + 1) * (size_t)(x->row + x->pooled) *
	    sizeof(float);
	rc = lpo_map_scratch(c, (void **)&x->map, x->bytes);
	for (i = 0; i < n && rc == 0; i += some) {
		some = n - i < CHUNK ? n - i : CHUNK;
		if (lpo_ctx_stopped(c))
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
		else
			rc = encode_some(c, x, text, prompts + i, i, some);
		lpo_policy_texts_drop(x);
		if (lpo_dry_is(x->be))
			break;		/* the next would be like it */
	}
	/* SDXL's unconditional row stays zero, as the file is */
	x->flat_uncond = lpo_text_zero_uncond(text);
	if (rc == 0 && !x->flat_uncond)
		rc = encode_some(c, x, text, empty, n, 1);
	if (rc < 0) {
		lpo_policy_texts_free(x);
		return rc;
	}
	*out = x;
	return 0;
}

void
lpo_policy_texts_free(lpo_policy_texts *x)
{
	if (x == NULL)
		return;
	if (x->map != NULL)
		munmap(x->map, x->bytes);
	lpo_free(x);
}

int64_t
lpo_policy_texts_row_bytes(const lpo_policy_texts *x)
{
	return (x->row + x->pooled) * (int64_t)sizeof(float);
}

void
lpo_policy_texts_drop(const lpo_policy_texts *x)
{
	lpo_map_drop(x->map, x->bytes);
}

int
lpo_policy_texts_flat_uncond(const lpo_policy_texts *x)
{
	return x->flat_uncond;
}

int64_t
lpo_policy_texts_bytes(const lpo_policy_texts *x)
{
	return (int64_t)x->bytes;
}

/* --------------------------------------------------------------- network */

enum { AHEAD = 2 };

struct lpo_policy {
	lpo_ctx *ctx;
	lpo_unet *unet;
	lpo_tape *tape;
	struct lpo_policy_shape s;
	struct lpo_plan plan;
	struct lpo_unet_in in;
	lpo_var *out;
	int64_t count;		/* elements of one latent */
	int copies;
	float *x, *time, *ctxrow, *pooled, *ids;	/* host staging */
	float *d_eps;			/* with backward */
	/* evaluations not finished, the first of them at landing[first] */
	lpo_landing *landing[AHEAD];
	int64_t rows[AHEAD];
	int first, started;
	/* lpo_policy_ready(): of whom the inputs are there; NULL: of none */
	const lpo_policy_texts *ready_texts;
	int64_t *ready_t, *ready_prompt;	/* [groups] */
};

static int
staging(lpo_policy *p)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(p->unet);
	int64_t g = p->s.groups, k = p->copies;

	p->x = lpo_alloc(p->ctx, (size_t)(g * p->count), sizeof(float));
	p->time = lpo_alloc(p->ctx, (size_t)(g * cfg->channels[0]),
	    sizeof(float));
	p->ctxrow = lpo_alloc(p->ctx, (size_t)(g * k * p->s.length *
	    p->s.dim), sizeof(float));
	p->ready_t = lpo_alloc(p->ctx, (size_t)g, sizeof(int64_t));
	p->ready_prompt = lpo_alloc(p->ctx, (size_t)g, sizeof(int64_t));
	if (p->x == NULL || p->time == NULL || p->ctxrow == NULL ||
	    p->ready_t == NULL || p->ready_prompt == NULL)
		return LPO_ENOMEM;
	if (p->s.backward && (p->d_eps = lpo_alloc(p->ctx, (size_t)(g * k *
	    p->count), sizeof(float))) == NULL)
		return LPO_ENOMEM;
	if (!cfg->text_time)
		return 0;
	p->pooled = lpo_alloc(p->ctx, (size_t)(g * k * p->s.pooled_dim),
	    sizeof(float));
	p->ids = lpo_alloc(p->ctx, (size_t)(g * k * 6 * cfg->add_time_dim),
	    sizeof(float));
	return p->pooled != NULL && p->ids != NULL ? 0 : LPO_ENOMEM;
}

/* SDXL: (height, width, crop top, crop left, target height, width). */
static void
fill_time_ids(lpo_policy *p)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(p->unet);
	float v[6] = { (float)p->s.height_px, (float)p->s.width_px, 0, 0,
	    (float)p->s.height_px, (float)p->s.width_px };
	int64_t i;

	for (i = 0; i < p->s.groups * p->copies * 6; i++)
		lpo_sinusoid(p->ids + i * cfg->add_time_dim, v[i % 6],
		    cfg->add_time_dim, cfg->flip_sin_to_cos,
		    cfg->freq_shift);
}

int
lpo_policy_check_texts(lpo_ctx *c, const struct lpo_unet_config *u,
    int64_t dim, int64_t pooled_dim, const char *dir)
{
	int64_t pooled = u->text_time ? u->add_in_dim - 6 * u->add_time_dim :
	    0;

	if (u->context_dim != dim)
		return lpo_fail(c, LPO_EFORMAT, "'%s': the UNet reads texts of "
		    "width %lld, the text encoder%s %lld%s", dir,
		    (long long)u->context_dim, pooled_dim > 0 ? "s write" :
		    " writes", (long long)dim, pooled > 0 && pooled_dim == 0 ?
		    "; SDXL's second one, text_encoder_2/, is missing" : "");
	if (pooled > 0 && pooled != pooled_dim)
		return lpo_fail(c, LPO_EFORMAT, "'%s': the UNet takes a pooled "
		    "text of %lld values, text_encoder_2 gives %lld", dir,
		    (long long)pooled, (long long)pooled_dim);
	return 0;
}

int
lpo_policy_new(lpo_ctx *c, lpo_policy **out, lpo_backend *be, lpo_unet *unet,
    enum lpo_dtype dt, const struct lpo_policy_shape *s)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(unet);
	lpo_policy *p;
	lpo_tape *t;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((p = lpo_alloc(c, 1, sizeof(*p))) == NULL)
		return LPO_ENOMEM;
	p->ctx = c;
	p->unet = unet;
	p->s = *s;
	p->copies = s->guidance == 1 ? 1 : 2;
	p->count = s->h * s->w * cfg->in_channels;
	if ((t = p->tape = lpo_tape_new(c, be, dt, s->groups)) == NULL ||
	    (rc = staging(p)) < 0)
		goto fail;
	p->in.copies = p->copies;
	p->in.flat_uncond = s->flat_uncond;
	p->in.sample = lpo_input(t, s->groups, s->h, s->w, cfg->in_channels,
	    LPO_F32, 0);
	p->in.time = lpo_input(t, s->groups, 1, 1, cfg->channels[0], LPO_F32,
	    0);
	p->in.context = lpo_input(t, s->groups * p->copies, s->length, 1,
	    s->dim, LPO_F32, 0);
	if (cfg->text_time) {
		p->in.text_embeds = lpo_input(t, s->groups * p->copies, 1, 1,
		    s->pooled_dim, LPO_F32, 0);
		p->in.time_ids = lpo_input(t, s->groups * p->copies, 1, 1,
		    6 * cfg->add_time_dim, LPO_F32, 0);
		fill_time_ids(p);
	}
	lpo_unet_set_checkpoint(unet, s->backward && s->segments);
	p->out = lpo_unet_fwd(t, unet, &p->in);
	lpo_output(t, p->out, s->backward);
	if ((rc = lpo_tape_plan(t, s->backward, &p->plan)) < 0)
		goto fail;
	*out = p;
	return 0;
fail:
	lpo_policy_free(p);
	return rc;
}

void
lpo_policy_free(lpo_policy *p)
{
	int i;

	if (p == NULL)
		return;
	for (i = 0; i < AHEAD; i++)
		lpo_landing_free(p->landing[i]);
	lpo_tape_free(p->tape);
	lpo_free(p->x);
	lpo_free(p->time);
	lpo_free(p->ctxrow);
	lpo_free(p->pooled);
	lpo_free(p->ids);
	lpo_free(p->d_eps);
	lpo_free(p->ready_t);
	lpo_free(p->ready_prompt);
	lpo_free(p);
}

const struct lpo_plan *
lpo_policy_plan(const lpo_policy *p)
{
	return &p->plan;
}

/* A few of the groups are enough where the work is large. */
int
lpo_policy_time(lpo_ctx *c, lpo_backend *be, lpo_unet *unet,
    enum lpo_dtype dt, const struct lpo_policy_shape *shape, double s[2])
{
	struct lpo_policy_shape few = *shape;
	lpo_policy *p;
	double flops;
	int rc, i;

	for (;; few.groups = (few.groups + 1) / 2) {
		if ((rc = lpo_policy_new(c, &p, be, unet, dt, &few)) < 0)
			return rc;
		flops = p->plan.fwd_flops + p->plan.bwd_flops;
		if (few.groups == 1 || flops <= LPO_TIMED_FLOPS)
			break;
		lpo_policy_free(p);
	}
	if ((rc = lpo_tape_commit(p->tape, NULL)) == 0)
		rc = lpo_tape_time(p->tape, s);
	for (i = 0; i < 2 && rc == 0; i++)
		s[i] /= (double)few.groups;
	lpo_policy_free(p);
	return rc;
}

int64_t
lpo_policy_groups(const lpo_policy *p)
{
	return p->s.groups;
}

int
lpo_policy_commit(lpo_policy *p, lpo_arena *arena)
{
	int rc = lpo_tape_commit(p->tape, arena), i;

	for (i = 0; i < AHEAD && rc == 0; i++)
		if ((p->landing[i] = lpo_landing_new(p->tape, p->out)) == NULL)
			rc = lpo_errcode(p->ctx);
	return rc;
}

int64_t
lpo_fewer_groups(int64_t want, int64_t g)
{
	int64_t times = (want + g - 2) / (g - 1);

	return (want + times - 1) / times;
}

/* The largest that fits, *out NULL where not even one group does. */
static int
fit_groups(lpo_ctx *c, lpo_policy **out, lpo_backend *be, lpo_unet *unet,
    enum lpo_dtype dt, struct lpo_policy_shape *s, int64_t want, size_t bytes,
    size_t *need)
{
	int rc;

	for (s->groups = want;;) {
		if ((rc = lpo_policy_new(c, out, be, unet, dt, s)) < 0)
			return rc;
		*need = (*out)->plan.arena_bytes;
		if (*need <= bytes)
			return 0;
		lpo_policy_free(*out);
		*out = NULL;
		if (s->groups == 1)
			return 0;
		s->groups = lpo_fewer_groups(want, s->groups);
	}
}

int
lpo_policy_fit(lpo_ctx *c, lpo_policy **out, lpo_backend *be, lpo_unet *unet,
    enum lpo_dtype dt, struct lpo_policy_shape *s, enum lpo_segments segments,
    int64_t want, size_t bytes)
{
	size_t need;
	int rc;

	s->segments = s->backward && segments == LPO_SEGMENTS_ON;
	rc = fit_groups(c, out, be, unet, dt, s, want, bytes, &need);
	if (rc == 0 && *out == NULL && s->backward &&
	    segments == LPO_SEGMENTS_AUTO) {
		s->segments = 1;
		rc = fit_groups(c, out, be, unet, dt, s, want, bytes, &need);
	}
	if (rc < 0 || *out != NULL)
		return rc;
	return lpo_fail(c, LPO_ENOMEM, "one %s needs %zu MiB for activations "
	    "and --memory leaves %zu MiB", s->backward ? "pair" : "prompt",
	    need >> 20, bytes >> 20);
}

/* Timesteps and texts of n groups; the rest repeat the last. */
static void
stage(lpo_policy *p, const lpo_policy_texts *x, const int64_t *t,
    const int64_t *prompt, int64_t n)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(p->unet);
	int64_t r, row = p->s.length * p->s.dim;

#pragma omp parallel for schedule(static)
	for (r = 0; r < p->s.groups * p->copies; r++) {
		int64_t g = r / p->copies, k = r % p->copies;
		int64_t i = g < n ? g : n - 1;
		const float *text = row_of(x, k == 0 ? prompt[i] : x->n);

		if (k == 0)
			lpo_sinusoid(p->time + g * cfg->channels[0],
			    (float)t[i], cfg->channels[0],
			    cfg->flip_sin_to_cos, cfg->freq_shift);
		memcpy(p->ctxrow + r * row, text,
		    (size_t)row * sizeof(float));
		if (cfg->text_time)
			memcpy(p->pooled + r * x->pooled, text + x->row,
			    (size_t)x->pooled * sizeof(float));
	}
}

/* Whether lpo_policy_ready() was about this evaluation. */
static int
is_ready(const lpo_policy *p, const lpo_policy_texts *x, const int64_t *t,
    const int64_t *prompt, int64_t n)
{
	int64_t g, i;

	if (p->ready_texts != x || !lpo_tape_undisturbed(p->tape))
		return 0;
	for (g = 0; g < p->s.groups; g++) {
		i = g < n ? g : n - 1;
		if (p->ready_t[g] != t[i] || p->ready_prompt[g] != prompt[i])
			return 0;
	}
	return 1;
}

int
lpo_policy_ready(lpo_policy *p, const lpo_policy_texts *x, const int64_t *t,
    const int64_t *prompt, int64_t n)
{
	int64_t g, i;
	int rc;

	p->ready_texts = NULL;
	stage(p, x, t, prompt, n);
	if ((rc = lpo_var_set(p->tape, p->in.time, p->time)) < 0 ||
	    (rc = lpo_var_set(p->tape, p->in.context, p->ctxrow)) < 0)
		return rc;
	if (p->in.text_embeds != NULL && ((rc = lpo_var_set(p->tape,
	    p->in.text_embeds, p->pooled)) < 0 ||
	    (rc = lpo_var_set(p->tape, p->in.time_ids, p->ids)) < 0))
		return rc;
	for (g = 0; g < p->s.groups; g++) {
		i = g < n ? g : n - 1;
		p->ready_t[g] = t[i];
		p->ready_prompt[g] = prompt[i];
	}
	p->ready_texts = x;
	return 0;
}

/* The latents' input; what is missing repeats the last. */
static int
set_latents(lpo_policy *p, const float *latent, int64_t n)
{
	int64_t g;

	if (n == p->s.groups)
		return lpo_var_set(p->tape, p->in.sample, latent);
	for (g = 0; g < p->s.groups; g++)
		memcpy(p->x + g * p->count, latent + (g < n ? g : n - 1) *
		    p->count, (size_t)p->count * sizeof(float));
	return lpo_var_set(p->tape, p->in.sample, p->x);
}

int
lpo_policy_start(lpo_policy *p, const lpo_policy_texts *x,
    const float *latent, const int64_t *t, const int64_t *prompt, int64_t n,
    int flags)
{
	int at = (p->first + p->started) % AHEAD, rc;

	if (p->started == AHEAD)
		return lpo_fail(p->ctx, LPO_EINVAL,
		    "more than %d evaluations at a time", (int)AHEAD);
	if (!is_ready(p, x, t, prompt, n) &&
	    (rc = lpo_policy_ready(p, x, t, prompt, n)) < 0)
		return rc;
	p->ready_texts = NULL;	/* the walk writes over its inputs */
	if ((rc = set_latents(p, latent, n)) < 0 ||
	    (rc = lpo_tape_forward(p->tape, flags)) < 0 ||
	    (rc = lpo_var_get_start(p->landing[at])) < 0)
		return rc;
	p->rows[at] = n;
	p->started++;
	return 0;
}

int
lpo_policy_finish(lpo_policy *p, float *out)
{
	float g = (float)p->s.guidance;
	const float *eps;
	int64_t i, n = p->rows[p->first];
	int rc;

	if (p->started == 0)
		return lpo_fail(p->ctx, LPO_EINVAL,
		    "no evaluation was started");
	rc = lpo_var_get_finish(p->landing[p->first], &eps);
	p->first = (p->first + 1) % AHEAD;
	p->started--;
	if (rc < 0)
		return rc;
#pragma omp parallel for schedule(static)
	for (i = 0; i < n; i++) {
		const float *c = eps + i * p->copies * p->count;
		const float *u = c + p->count;
		int64_t j;

		for (j = 0; j < p->count; j++)
			out[i * p->count + j] = p->copies == 1 ? c[j] :
			    u[j] + g * (c[j] - u[j]);
	}
	return 0;
}

void
lpo_policy_drop(lpo_policy *p)
{
	if (p != NULL)
		p->started = 0;
}

/* An eval or backward would take another evaluation for its own. */
static int
alone(lpo_policy *p)
{
	return p->started == 0 ? 0 : lpo_fail(p->ctx, LPO_EINVAL,
	    "an evaluation is not finished");
}

int
lpo_policy_eval(lpo_policy *p, float *out, const lpo_policy_texts *x,
    const float *latent, const int64_t *t, const int64_t *prompt, int64_t n,
    int flags)
{
	int rc;

	if ((rc = alone(p)) < 0 || (rc = lpo_policy_start(p, x, latent, t,
	    prompt, n, flags)) < 0)
		return rc;
	return lpo_policy_finish(p, out);
}

int
lpo_policy_backward(lpo_policy *p, const float *d_out, int64_t n)
{
	float g = (float)p->s.guidance;
	int64_t i;
	int rc;

	if ((rc = alone(p)) < 0)
		return rc;
	if (p->d_eps == NULL)
		return lpo_fail(p->ctx, LPO_EINVAL,
		    "backward of a policy planned without it");
	p->ready_texts = NULL;
#pragma omp parallel for schedule(static)
	for (i = 0; i < p->s.groups; i++) {
		float *c = p->d_eps + i * p->copies * p->count, d;
		int64_t j;

		for (j = 0; j < p->count; j++) {
			d = i < n ? d_out[i * p->count + j] : 0;
			c[j] = p->copies == 1 ? d : g * d;
			if (p->copies == 2)
				c[p->count + j] = (1 - g) * d;
		}
	}
	if ((rc = lpo_var_set_grad(p->tape, p->out, p->d_eps)) < 0)
		return rc;
	return lpo_tape_backward(p->tape);
}
