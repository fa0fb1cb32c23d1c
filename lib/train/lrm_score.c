/* Scoring latents with a frozen reward model, in chunks of one shape. */
#include <string.h>

#include "lib/train/lrm_loss.h"
#include "lib/train/lrm_score_priv.h"

enum { AHEAD = 2 };

/* A chunk that is started. */
struct job {
	lpo_landing *visual;
	const lpo_lrm_texts *texts;
	int64_t *prompt, n;		/* [groups] */
};

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
	float *host_context, *host_pooled, *host_latent;
	int64_t *host_t;
	struct job job[AHEAD];		/* not finished: `started` of them */
	int first, started;
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
	int i;

	s->host_context = lpo_alloc(s->ctx, (size_t)(n *
	    lpo_lrm_length(s->m) * lpo_lrm_context_dim(s->m)), sizeof(float));
	s->host_pooled = lpo_alloc(s->ctx, (size_t)(n * p + 1),
	    sizeof(float));
	s->host_latent = lpo_alloc(s->ctx, (size_t)(r * s->count),
	    sizeof(float));
	s->host_t = lpo_alloc(s->ctx, (size_t)r, sizeof(*s->host_t));
	for (i = 0; i < AHEAD; i++)
		s->job[i].prompt = lpo_alloc(s->ctx, (size_t)s->groups,
		    sizeof(int64_t));
	return s->host_context == NULL || s->host_pooled == NULL ||
	    s->host_latent == NULL || s->host_t == NULL ||
	    s->job[0].prompt == NULL || s->job[1].prompt == NULL ?
	    LPO_ENOMEM : 0;
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
	int i;

	if (s == NULL)
		return;
	for (i = 0; i < AHEAD; i++) {
		lpo_landing_free(s->job[i].visual);
		lpo_free(s->job[i].prompt);
	}
	lpo_tape_free(s->tape);
	lpo_free(s->host_context);
	lpo_free(s->host_pooled);
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
	int64_t to, g, i;
	const float *row;
	int rc;

#pragma omp parallel for schedule(static) private(g, i, row)
	for (to = 0; to < s->groups * s->copies; to++) {
		g = to / s->copies;
		i = to % s->copies == 1 ? x->n : prompt[g < n ? g : 0];
		row = x->rows + i * x->row;
		memcpy(s->host_context + to * x->context, row,
		    (size_t)x->context * sizeof(float));
		memcpy(s->host_pooled + to * x->pooled, row + x->context,
		    (size_t)x->pooled * sizeof(float));
	}
	rc = lpo_var_set(s->tape, s->context, s->host_context);
	if (rc == 0 && s->pooled != NULL)
		rc = lpo_var_set(s->tape, s->pooled, s->host_pooled);
	return rc;
}

int
lpo_lrm_scorer_commit(lpo_lrm_scorer *s)
{
	int rc, i;

	if (s->committed)
		return 0;
	if ((s->host_t == NULL && (rc = buffers(s)) < 0) ||
	    (rc = lpo_tape_commit(s->tape, s->arena)) < 0)
		return rc;
	for (i = 0; i < AHEAD; i++)
		if (s->job[i].visual == NULL && (s->job[i].visual =
		    lpo_landing_new(s->tape, s->visual)) == NULL)
			return lpo_errcode(s->ctx);
	s->committed = 1;
	return 0;
}

static int
known(lpo_lrm_scorer *s, const lpo_lrm_texts *x, const int64_t *prompt,
    int64_t n)
{
	int64_t i;

	for (i = 0; i < n; i++)
		if (prompt[i] < 0 || prompt[i] >= x->n)
			return lpo_fail(s->ctx, LPO_EINVAL,
			    "prompt %lld of %lld", (long long)prompt[i],
			    (long long)x->n);
	return 0;
}

/* What a chunk lacks repeats its first group. */
int
lpo_lrm_scorer_start(lpo_lrm_scorer *s, const lpo_lrm_texts *x,
    const float *latent, const int64_t *prompt, const int64_t *t, int64_t n)
{
	struct job *j = &s->job[(s->first + s->started) % AHEAD];
	int64_t i, from, r = s->rows;
	int rc;

	if (s->started == AHEAD || n < 1 || n > s->groups)
		return lpo_fail(s->ctx, LPO_EINVAL, "%lld prompts of %lld to "
		    "score, beside %d", (long long)n, (long long)s->groups,
		    s->started);
	if ((rc = known(s, x, prompt, n)) < 0 ||
	    (rc = lpo_lrm_scorer_commit(s)) < 0)
		return rc;
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
	    (rc = lpo_var_get_start(j->visual)) < 0)
		return rc;
	memcpy(j->prompt, prompt, (size_t)n * sizeof(*prompt));
	j->texts = x;
	j->n = n;
	s->started++;
	return 0;
}

int
lpo_lrm_scorer_finish(lpo_lrm_scorer *s, float *score, float *visual)
{
	const struct job *j = &s->job[s->first];
	const float *v;
	int64_t i, d, n;
	double scale;
	int rc;

	if (s->started == 0)
		return lpo_fail(s->ctx, LPO_EINVAL, "no scoring was started");
	rc = lpo_var_get_finish(j->visual, &v);
	s->first = (s->first + 1) % AHEAD;
	s->started--;
	if (rc < 0 || (rc = lpo_lrm_logit_scale(s->m, &scale)) < 0)
		return rc;
	d = j->texts->feature;
	n = j->n * s->rows;
	if (visual != NULL)
		memcpy(visual, v, (size_t)(n * d) * sizeof(float));
#pragma omp parallel for schedule(static)
	for (i = 0; i < n; i++)
		score[i] = (float)lpo_lrm_score(v + i * d,
		    lpo_lrm_texts_feature(j->texts, j->prompt[i / s->rows]),
		    d, scale);
	return 0;
}

void
lpo_lrm_scorer_drop(lpo_lrm_scorer *s)
{
	s->started = 0;
}

int
lpo_lrm_scorer_score(lpo_lrm_scorer *s, float *score, float *visual,
    const lpo_lrm_texts *x, const float *latent, const int64_t *prompt,
    const int64_t *t, int64_t groups)
{
	int64_t from, to, n, r = s->rows;
	int rc;

	if (s->started > 0)
		return lpo_fail(s->ctx, LPO_EINVAL,
		    "a scoring is not finished");
	rc = known(s, x, prompt, groups);
	for (from = to = 0; from < groups && rc == 0;) {
		/* one chunk ahead of the one that is waited for */
		if (to < groups && s->started < AHEAD) {
			n = groups - to < s->groups ? groups - to : s->groups;
			rc = lpo_lrm_scorer_start(s, x, latent + to * r *
			    s->count, prompt + to, t + to * r, n);
			to += n;
			continue;
		}
		n = s->job[s->first].n;
		rc = lpo_lrm_scorer_finish(s, score + from * r,
		    visual == NULL ? NULL : visual + from * r * x->feature);
		from += n;
	}
	if (rc < 0)
		lpo_lrm_scorer_drop(s);
	return rc;
}
