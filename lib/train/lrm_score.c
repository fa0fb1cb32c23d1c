/* Scoring latents with a frozen reward model, in chunks of one shape. */
#include <string.h>

#include "lib/train/lrm_loss.h"
#include "lib/train/lrm_score_priv.h"

struct lpo_lrm_scorer {
	lpo_ctx *ctx;
	lpo_lrm *m;
	lpo_tape *tape;
	lpo_arena *arena;
	int committed;
	struct lpo_plan plan;
	struct lpo_lrm_image image;
	lpo_var *context, *pooled, *visual;
	int64_t rows, groups, copies, count;	/* count: floats of a latent */
	float *host_context, *host_pooled, *host_visual, *host_latent;
	int64_t *host_t;
};

static void
record(lpo_lrm_scorer *s, int64_t h, int64_t w)
{
	int64_t n = s->groups * s->copies;

	s->context = lpo_input(s->tape, n, lpo_lrm_length(s->m), 1,
	    lpo_lrm_context_dim(s->m), lpo_lrm_dtype(s->m), 0);
	if (lpo_lrm_pooled_dim(s->m) > 0)
		s->pooled = lpo_input(s->tape, n, 1, 1,
		    lpo_lrm_pooled_dim(s->m), LPO_F32, 0);
	s->visual = lpo_lrm_record_image(s->tape, s->m, &s->image, s->rows, h,
	    w, s->context, s->pooled);
	lpo_output(s->tape, s->visual, 0);
}

static int
buffers(lpo_lrm_scorer *s)
{
	int64_t n = s->groups * s->copies, r = s->groups * s->rows;
	int64_t p = lpo_lrm_pooled_dim(s->m);

	s->host_context = lpo_alloc(s->ctx, (size_t)(n *
	    lpo_lrm_length(s->m) * lpo_lrm_context_dim(s->m)), sizeof(float));
	s->host_pooled = lpo_alloc(s->ctx, (size_t)(n * p + 1),
	    sizeof(float));
	s->host_visual = lpo_alloc(s->ctx, (size_t)(r *
	    lpo_lrm_feature_dim(s->m)), sizeof(float));
	s->host_latent = lpo_alloc(s->ctx, (size_t)(r * s->count),
	    sizeof(float));
	s->host_t = lpo_alloc(s->ctx, (size_t)r, sizeof(*s->host_t));
	return s->host_context == NULL || s->host_pooled == NULL ||
	    s->host_visual == NULL || s->host_latent == NULL ||
	    s->host_t == NULL ? LPO_ENOMEM : 0;
}

int
lpo_lrm_scorer_new(lpo_ctx *c, lpo_lrm_scorer **out, lpo_lrm *m, int64_t rows,
    int64_t groups, int64_t h, int64_t w, lpo_arena *arena)
{
	lpo_lrm_scorer *s;
	int rc;

	*out = NULL;
	if ((rc = lpo_lrm_load_unet(m)) < 0)
		return rc;
	if ((s = lpo_alloc(c, 1, sizeof(*s))) == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->m = m;
	s->arena = arena;
	s->rows = rows;
	s->groups = groups;
	s->copies = lpo_lrm_copies(m);
	s->count = h * w * lpo_lrm_cfg(m)->latent_channels;
	rc = LPO_ENOMEM;
	if ((s->tape = lpo_tape_new(c, lpo_lrm_backend(m), lpo_lrm_dtype(m),
	    groups)) == NULL)
		goto out;
	record(s, h, w);
	if ((rc = lpo_tape_plan(s->tape, 0, &s->plan)) < 0)
		goto out;
	*out = s;
	s = NULL;
out:
	lpo_lrm_scorer_free(s);
	return rc;
}

void
lpo_lrm_scorer_free(lpo_lrm_scorer *s)
{
	if (s == NULL)
		return;
	lpo_tape_free(s->tape);
	lpo_free(s->host_context);
	lpo_free(s->host_pooled);
	lpo_free(s->host_visual);
	lpo_free(s->host_latent);
	lpo_free(s->host_t);
	lpo_free(s);
}

const struct lpo_plan *
lpo_lrm_scorer_plan(const lpo_lrm_scorer *s)
{
	return &s->plan;
}

int
lpo_lrm_scorer_time(lpo_ctx *c, lpo_lrm *m, int64_t rows, int64_t groups,
    int64_t h, int64_t w, double *seconds)
{
	lpo_lrm_scorer *s;
	double t[2];
	int rc;

	for (;; groups = (groups + 1) / 2) {
		if ((rc = lpo_lrm_scorer_new(c, &s, m, rows, groups, h, w,
		    NULL)) < 0)
			return rc;
		if (groups == 1 || s->plan.fwd_flops <= LPO_TIMED_FLOPS)
			break;
		lpo_lrm_scorer_free(s);
	}
	if ((rc = lpo_tape_commit(s->tape, NULL)) == 0 &&
	    (rc = lpo_tape_time(s->tape, t)) == 0)
		*seconds = t[0] / (double)groups;
	lpo_lrm_scorer_free(s);
	return rc;
}

/* Per group the prompt's row, then, with guidance, the empty prompt's. */
static int
set_texts(lpo_lrm_scorer *s, const lpo_lrm_texts *x, const int64_t *prompt,
    int64_t n)
{
	int64_t g, k, to, i;
	const float *row;
	int rc;

	for (g = 0; g < s->groups; g++)
		for (k = 0; k < s->copies; k++) {
			i = k == 1 ? x->n : prompt[g < n ? g : 0];
			row = x->rows + i * x->row;
			to = g * s->copies + k;
			memcpy(s->host_context + to * x->context, row,
			    (size_t)x->context * sizeof(float));
			memcpy(s->host_pooled + to * x->pooled,
			    row + x->context, (size_t)x->pooled *
			    sizeof(float));
		}
	rc = lpo_var_set(s->tape, s->context, s->host_context);
	if (rc == 0 && s->pooled != NULL)
		rc = lpo_var_set(s->tape, s->pooled, s->host_pooled);
	return rc;
}

/* One chunk of n <= groups prompts; what is missing repeats the first. */
static int
chunk(lpo_lrm_scorer *s, float *score, float *visual, const lpo_lrm_texts *x,
    const float *latent, const int64_t *prompt, const int64_t *t, int64_t n,
    double scale)
{
	int64_t i, from, r = s->rows, d = x->feature;
	int rc;

	if (n < s->groups) {
		for (i = 0; i < s->groups * r; i++) {
			from = i < n * r ? i : i % r;
			memcpy(s->host_latent + i * s->count, latent +
			    from * s->count, (size_t)s->count * sizeof(float));
			s->host_t[i] = t[from];
		}
		latent = s->host_latent;
		t = s->host_t;
	}
	if ((rc = set_texts(s, x, prompt, n)) < 0 ||
	    (rc = lpo_lrm_set_image(s->tape, s->m, &s->image, latent,
	    t)) < 0 || (rc = lpo_tape_forward(s->tape, 0)) < 0 ||
	    (rc = lpo_var_get(s->tape, s->visual, s->host_visual)) < 0)
		return rc;
	if (visual != NULL)
		memcpy(visual, s->host_visual, (size_t)(n * r * d) *
		    sizeof(float));
	#pragma omp parallel for schedule(static)
	for (i = 0; i < n * r; i++)
		score[i] = (float)lpo_lrm_score(s->host_visual + i * d,
		    lpo_lrm_texts_feature(x, prompt[i / r]), d, scale);
	return 0;
}

int
lpo_lrm_scorer_commit(lpo_lrm_scorer *s)
{
	int rc;

	if (s->committed)
		return 0;
	if ((s->host_t == NULL && (rc = buffers(s)) < 0) ||
	    (rc = lpo_tape_commit(s->tape, s->arena)) < 0)
		return rc;
	s->committed = 1;
	return 0;
}

int
lpo_lrm_scorer_score(lpo_lrm_scorer *s, float *score, float *visual,
    const lpo_lrm_texts *x, const float *latent, const int64_t *prompt,
    const int64_t *t, int64_t groups)
{
	double scale = lpo_lrm_logit_scale(s->m);
	int64_t g, n, r = s->rows;
	int rc;

	for (g = 0; g < groups; g++)
		if (prompt[g] < 0 || prompt[g] >= x->n)
			return lpo_fail(s->ctx, LPO_EINVAL,
			    "prompt %lld of %lld", (long long)prompt[g],
			    (long long)x->n);
	if ((rc = lpo_lrm_scorer_commit(s)) < 0)
		return rc;
	for (g = 0; g < groups; g += n) {
		n = groups - g < s->groups ? groups - g : s->groups;
		if ((rc = chunk(s, score + g * r, visual == NULL ? NULL :
		    visual + g * r * x->feature, x, latent +
		    g * r * s->count, prompt + g, t + g * r, n, scale)) < 0)
			return rc;
	}
	return 0;
}
