/* The LPO trainer's held-out check: the policy's scores beside the reference's. */
#include <math.h>
#include <string.h>

#include "lib/train/lpo_priv.h"

/* A network that draws: rows at a time, and how it is walked. */
struct drawer {
	lpo_policy *policy;
	int flags;
};

static void
noise(const lpo_lpo *l, float *x, int64_t row)
{
	struct lpo_draw d = {
		.seed = l->o.seed, .purpose = LPO_DRAW_CHECK,
		.item = (uint32_t)(row / l->o.candidates),
		.candidate = (uint32_t)(row % l->o.candidates)
	};

	lpo_draw_normal(&d, 0, x, l->count);
}

/* Denoise x[n], rows `first` on of the check, in place; eps: as large. */
static int
denoise(lpo_lpo *l, const struct drawer *w, float *x, float *eps,
    int64_t *prompt, int64_t *t, int64_t first, int64_t n)
{
	int64_t T = l->o.steps, s, i;
	struct lpo_ddim dd;
	float cx, ce;
	int rc;

	for (i = 0; i < n; i++) {
		noise(l, x + i * l->count, first + i);
		prompt[i] = l->o.check_first + (first + i) / l->o.candidates;
	}
	for (s = 0; s < T; s++) {
		lpo_schedule_ddim(l->in.schedule, &dd, l->ddim[s].t, T, 0, 1);
		cx = (float)dd.c_x;
		ce = (float)dd.c_eps;
		for (i = 0; i < n; i++)
			t[i] = dd.t;
		if ((rc = lpo_policy_eval(w->policy, eps, l->in.texts, x, t,
		    prompt, n, w->flags)) < 0)
			return rc;
		for (i = 0; i < n * l->count; i++)
			x[i] = cx * x[i] + ce * eps[i];
	}
	return 0;
}

/* score[check_prompts * K] of what a network draws. */
static int
scores(lpo_lpo *l, const struct drawer *w, float *score)
{
	int64_t P = l->o.check_prompts, K = l->o.candidates, rows = P * K;
	int64_t g = lpo_policy_groups(w->policy), i, n;
	int64_t *prompt, *t;
	float *x, *eps;
	int rc = LPO_ENOMEM;

	x = lpo_alloc(l->ctx, (size_t)(rows * l->count), sizeof(*x));
	eps = lpo_alloc(l->ctx, (size_t)(g * l->count), sizeof(*eps));
	prompt = lpo_alloc(l->ctx, (size_t)(rows + g), sizeof(*prompt));
	t = lpo_alloc(l->ctx, (size_t)(rows + g), sizeof(*t));
	if (x == NULL || eps == NULL || prompt == NULL || t == NULL)
		goto out;
	for (rc = 0, i = 0; i < rows && rc == 0; i += n) {
		n = rows - i < g ? rows - i : g;
		rc = denoise(l, w, x + i * l->count, eps, prompt, t, i, n);
	}
	if (rc < 0)
		goto out;
	for (i = 0; i < P; i++)
		prompt[i] = l->o.check_first + i;
	for (i = 0; i < rows; i++)
		t[i] = l->o.real_timestep ? l->ddim[l->o.steps - 1].prev :
		    l->ddim[l->o.steps - 1].t;
	rc = lpo_lrm_scorer_score(l->scorer, score, NULL, l->in.lrm_texts, x,
	    prompt, t, P);
out:
	lpo_free(x);
	lpo_free(eps);
	lpo_free(prompt);
	lpo_free(t);
	return rc;
}

/* The reference stays what it is, so its scores are made once. */
static int
reference_scores(lpo_lpo *l, int64_t n)
{
	struct drawer w = { l->rollout, LPO_LORA_OFF };
	float *score;
	int rc;

	if (l->check_reference != NULL)
		return 0;
	if (l->reference != NULL)
		w = (struct drawer){ l->reference, 0 };
	if ((score = lpo_alloc(l->ctx, (size_t)n, sizeof(*score))) == NULL)
		return LPO_ENOMEM;
	if ((rc = scores(l, &w, score)) < 0)
		lpo_free(score);
	else
		l->check_reference = score;
	return rc;
}

int
lpo_lpo_check(lpo_lpo *l, struct lpo_lpo_check *out)
{
	int64_t n = l->o.check_prompts * l->o.candidates, i;
	const struct drawer w = { l->rollout, 0 };
	float *score;
	double wins = 0;
	int rc;

	memset(out, 0, sizeof(*out));
	lpo_lpo_settle(l);
	if (n < 1)
		return lpo_fail(l->ctx, LPO_EINVAL, "a check of no prompts");
	if ((score = lpo_alloc(l->ctx, (size_t)n, sizeof(*score))) == NULL)
		return LPO_ENOMEM;
	if ((rc = reference_scores(l, n)) < 0 ||
	    (rc = scores(l, &w, score)) < 0)
		goto out;
	out->n = n;
	for (i = 0; i < n; i++) {
		out->policy += score[i];
		out->reference += l->check_reference[i];
		wins += score[i] > l->check_reference[i] ? 1 :
		    score[i] == l->check_reference[i] ? 0.5 : 0;
	}
	out->policy /= (double)n;
	out->reference /= (double)n;
	out->win_rate = wins / (double)n;
out:
	lpo_free(score);
	return rc;
}

double
lpo_lpo_check_flops(const lpo_lpo *l)
{
	const struct lpo_plan *r = lpo_policy_plan(l->rollout);
	const struct lpo_plan *s = lpo_lrm_scorer_plan(l->scorer);
	double rows = (double)(l->o.check_prompts * l->o.candidates);

	return r->fwd_flops / (double)lpo_policy_groups(l->rollout) * rows *
	    (double)l->o.steps + s->fwd_flops / (double)l->score_groups *
	    (double)l->o.check_prompts;
}
