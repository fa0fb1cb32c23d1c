/* LPO's rollout, scoring and selection of pairs. */
#include <math.h>
#include <string.h>

#include "lib/train/lpo_priv.h"

static struct lpo_draw
draw(const lpo_lpo *l, enum lpo_purpose purpose, int64_t p, int64_t step,
    int64_t candidate)
{
	struct lpo_draw d = {
		.seed = l->o.seed, .purpose = purpose,
		.item = (uint32_t)l->prompt[p],
		.epoch = (uint32_t)l->epoch[p],
		.step = (uint32_t)step, .candidate = (uint32_t)candidate
	};

	return d;
}

/*
 * Iterations walk through the epochs' keyed permutations of the prompts, over
 * their borders; a prompt meets an epoch once, so its draws never repeat.
 */
void
lpo_lpo_choose_prompts(lpo_lpo *l)
{
	int64_t n = l->in.prompts, p, at;
	struct lpo_draw d = { .seed = l->o.seed, .purpose = LPO_DRAW_SHUFFLE };

	for (p = 0; p < l->o.prompts; p++) {
		at = l->iteration * l->o.prompts + p;
		l->epoch[p] = at / n;
		d.epoch = (uint32_t)l->epoch[p];
		l->prompt[p] = (int64_t)lpo_draw_permute(&d,
		    (uint64_t)(at % n), (uint64_t)n);
	}
}

void
lpo_lpo_candidate(const lpo_lpo *l, float *x_out, int64_t s, int64_t p,
    int64_t k)
{
	struct lpo_draw d = draw(l, LPO_DRAW_CANDIDATE, p, s, k);
	const float *mu = lpo_lpo_at(l->mu, l, s, p);
	float sigma = (float)l->ddim[s].sigma;
	int64_t i;

	lpo_draw_normal(&d, 0, x_out, l->count);
	for (i = 0; i < l->count; i++)
		x_out[i] = mu[i] + sigma * x_out[i];
}

static void
first_latents(lpo_lpo *l)
{
	struct lpo_draw d;
	int64_t p;

	for (p = 0; p < l->o.prompts; p++) {
		d = draw(l, LPO_DRAW_LATENT, p, 0, 0);
		lpo_draw_normal(&d, 0, lpo_lpo_at(l->x, l, 0, p), l->count);
	}
}

int
lpo_lpo_rollout_step(lpo_lpo *l, int64_t s)
{
	const struct lpo_ddim *dd = &l->ddim[s];
	int64_t g = lpo_policy_groups(l->rollout), p, n, i, j, k;
	float cx = (float)dd->c_x, ce = (float)dd->c_eps;
	const float *x;
	struct lpo_draw d;
	float *mu;
	int rc;

	if (s == 0)
		first_latents(l);
	for (p = 0; p < l->o.prompts; p += n) {
		n = l->o.prompts - p < g ? l->o.prompts - p : g;
		for (i = 0; i < n; i++)
			l->t[i] = dd->t;
		x = lpo_lpo_at(l->x, l, s, p);
		if ((rc = lpo_policy_eval(l->rollout, l->eps, l->in.texts, x,
		    l->t, l->prompt + p, n, 0)) < 0)
			return rc;
		mu = lpo_lpo_at(l->mu, l, s, p);
		for (j = 0; j < n * l->count; j++)
			mu[j] = cx * x[j] + ce * l->eps[j];
#pragma omp parallel for schedule(dynamic) private(d, k)
		for (i = 0; i < n; i++) {
			d = draw(l, LPO_DRAW_PICK, p + i, s, 0);
			k = lpo_draw_below(&d, 0, (uint32_t)l->o.candidates);
			lpo_lpo_candidate(l, lpo_lpo_at(l->x, l, s + 1, p + i),
			    s, p + i, k);
		}
	}
	return 0;
}

/* -------------------------------------------------------------- scoring */

int64_t
lpo_lpo_score_chunks(const lpo_lpo *l)
{
	int64_t n = (l->last - l->first) * l->o.prompts;

	return (n + l->score_groups - 1) / l->score_groups;
}

/*
 * Chunk c of the transitions first .. last - 1, step-major.  Candidates are
 * scored at the timestep they came from, as the official code does, or at
 * their own (real_timestep; method.md 7.1).
 */
int
lpo_lpo_score_chunk(lpo_lpo *l, int64_t c)
{
	int64_t K = l->o.candidates, all, i, k, s, p, n;
	int64_t from = c * l->score_groups;
	int rc;

	all = (l->last - l->first) * l->o.prompts;
	n = all - from < l->score_groups ? all - from : l->score_groups;
#pragma omp parallel for private(k, s, p) schedule(dynamic)
	for (i = 0; i < n * K; i++) {
		k = i % K;
		s = l->first + (from + i / K) / l->o.prompts;
		p = (from + i / K) % l->o.prompts;
		if (k == 0)
			l->who[i / K] = l->prompt[p];
		l->t[i] = l->o.real_timestep ? l->ddim[s].prev :
		    l->ddim[s].t;
		lpo_lpo_candidate(l, l->cand + i * l->count, s, p, k);
	}
	if ((rc = lpo_lrm_scorer_score(l->scorer, l->chunk_score, NULL,
	    l->in.lrm_texts, l->cand, l->who, l->t, n)) < 0)
		return rc;
	memcpy(l->score + (l->first * l->o.prompts + from) * K,
	    l->chunk_score, (size_t)(n * K) * sizeof(float));
	return 0;
}

/* ------------------------------------------------------------- selection */

static int
range_of(int64_t t)
{
	return t > 750 ? 0 : t > 500 ? 1 : t > 250 ? 2 : 3;
}

/*
 * Best and worst of one transition as a stable descending sort has them: the
 * first of equal best, the last of equal worst.  Returns 0 where a score is
 * not finite.
 */
static int
extremes(const float *score, int64_t K, struct lpo_transition *tr,
    double *mean, double *sd)
{
	double sum = 0, sq = 0;
	int64_t k;

	tr->win = tr->lose = 0;
	for (k = 0; k < K; k++) {
		if (!isfinite(score[k]))
			return 0;
		if (score[k] > score[tr->win])
			tr->win = (int32_t)k;
		if (score[k] <= score[tr->lose])
			tr->lose = (int32_t)k;
		sum += score[k];
	}
	*mean = sum / (double)K;
	for (k = 0; k < K; k++)
		sq += (score[k] - *mean) * (score[k] - *mean);
	*sd = K > 1 ? sqrt(sq / (double)(K - 1)) : 0;
	return 1;
}

/* All transitions with their margins; the scores' part of the report. */
static int64_t
margins(lpo_lpo *l, struct lpo_transition *tr, double *margin)
{
	struct lpo_lpo_report *r = &l->report;
	int64_t K = l->o.candidates, s, p, n = 0, all = 0;
	double mean, sd, scores = 0, spread = 0, sum = 0;
	const float *sc;

	r->bad_scores = 0;
	for (s = l->first; s < l->last; s++)
		for (p = 0; p < l->o.prompts; p++, all++) {
			sc = l->score + (s * l->o.prompts + p) * K;
			tr[n].s = (int32_t)s;
			tr[n].p = (int32_t)p;
			r->total_in[range_of(l->ddim[s].t)]++;
			if (!extremes(sc, K, &tr[n], &mean, &sd)) {
				r->bad_scores++;
				continue;
			}
			margin[n] = lpo_margin(sc[tr[n].win],
			    sc[tr[n].lose]);
			scores += mean;
			spread += sd;
			sum += margin[n];
			n++;
		}
	r->transitions = all;
	r->score_mean = n ? scores / (double)n : NAN;
	r->score_spread = n ? spread / (double)n : NAN;
	r->margin_mean = n ? sum / (double)n : NAN;
	return n;
}

int
lpo_lpo_select(lpo_lpo *l)
{
	struct lpo_draw d = { .seed = l->o.seed, .purpose = LPO_DRAW_SHUFFLE,
	    .item = (uint32_t)l->iteration, .step = 1 };
	int64_t T = l->o.steps, max = T * l->o.prompts, n, i, v = 0;
	struct lpo_transition *tr;
	double *margin, *th, *shape, *work;
	int rc = LPO_ENOMEM;

	memset(l->report.valid_in, 0, sizeof(l->report.valid_in));
	memset(l->report.total_in, 0, sizeof(l->report.total_in));
	tr = lpo_alloc(l->ctx, (size_t)max, sizeof(*tr));
	margin = lpo_alloc(l->ctx, (size_t)max, sizeof(*margin));
	shape = lpo_alloc(l->ctx, (size_t)max, sizeof(*shape));
	work = lpo_alloc(l->ctx, (size_t)max, sizeof(*work));
	th = lpo_alloc(l->ctx, (size_t)T, sizeof(*th));
	if (tr == NULL || margin == NULL || shape == NULL || work == NULL ||
	    th == NULL)
		goto out;
	n = margins(l, tr, margin);
	lpo_threshold_table(&l->th, th, l->ddim, T);
	if (l->th.kind == LPO_TH_QUANTILE && l->iteration == 0) {
		l->th.scale = 1;
		lpo_threshold_table(&l->th, th, l->ddim, T);
		for (i = 0; i < n; i++)
			shape[i] = th[tr[i].s];
		l->th.scale = lpo_threshold_scale(l->th.share, margin, shape,
		    work, n);
		lpo_threshold_table(&l->th, th, l->ddim, T);
	}
	for (i = 0; i < n; i++)
		if (margin[i] > th[tr[i].s]) {
			l->report.valid_in[range_of(l->ddim[tr[i].s].t)]++;
			tr[v++] = tr[i];
		}
	for (i = 0; i < v; i++)
		l->pair[i] = tr[lpo_draw_permute(&d, (uint64_t)i,
		    (uint64_t)v)];
	l->npairs = l->report.valid = v;
	rc = 0;
out:
	lpo_free(tr);
	lpo_free(margin);
	lpo_free(shape);
	lpo_free(work);
	lpo_free(th);
	return rc;
}
