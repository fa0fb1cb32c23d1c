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

static void
noise(const lpo_lpo *l, float *z, int64_t s, int64_t p, int64_t k)
{
	struct lpo_draw d = draw(l, LPO_DRAW_CANDIDATE, p, s, k);

	lpo_draw_normal(&d, 0, z, l->count);
}

/* x[count], noise of step s of slot p, to the candidate that it makes. */
static void
shift(const lpo_lpo *l, float *x, int64_t s, int64_t p)
{
	const float *mu = lpo_lpo_at(l->mu, l, s, p);
	float sigma = (float)l->ddim[s].sigma;
	int64_t i;

	for (i = 0; i < l->count; i++)
		x[i] = mu[i] + sigma * x[i];
}

void
lpo_lpo_candidate(const lpo_lpo *l, float *x_out, int64_t s, int64_t p,
    int64_t k)
{
	noise(l, x_out, s, p, k);
	shift(l, x_out, s, p);
}

static void
first_latents(lpo_lpo *l)
{
	struct lpo_draw d;
	int64_t p;

#pragma omp parallel for schedule(dynamic) private(d)
	for (p = 0; p < l->o.prompts; p++) {
		d = draw(l, LPO_DRAW_LATENT, p, 0, 0);
		lpo_draw_normal(&d, 0, lpo_lpo_at(l->x, l, 0, p), l->count);
	}
}

/* Prompts of the part of a step that begins at slot p, in t their steps. */
static int64_t
part(lpo_lpo *l, int64_t s, int64_t p)
{
	int64_t g = lpo_policy_groups(l->rollout), i, n;

	n = l->o.prompts - p < g ? l->o.prompts - p : g;
	for (i = 0; i < n; i++)
		l->t[i] = l->ddim[s].t;
	return n;
}

static int
start_part(lpo_lpo *l, int64_t s, int64_t p)
{
	int64_t n = part(l, s, p);

	return lpo_policy_start(l->rollout, l->in.texts,
	    lpo_lpo_at(l->x, l, s, p), l->t, l->prompt + p, n, 0);
}

/* Texts and times of the next step's first part, behind what is started. */
static int
ready_next(lpo_lpo *l, int64_t s)
{
	int64_t n = part(l, s + 1, 0);

	return lpo_policy_ready(l->rollout, l->in.texts, l->t, l->prompt, n);
}

/* The noise of those who go on: known before the device has finished. */
static void
pick(lpo_lpo *l, int64_t s, int64_t p, int64_t n)
{
	struct lpo_draw d;
	int64_t i, k;

#pragma omp parallel for schedule(dynamic) private(d, k)
	for (i = 0; i < n; i++) {
		d = draw(l, LPO_DRAW_PICK, p + i, s, 0);
		k = lpo_draw_below(&d, 0, (uint32_t)l->o.candidates);
		noise(l, lpo_lpo_at(l->x, l, s + 1, p + i), s, p + i, k);
	}
}

static int
finish_part(lpo_lpo *l, int64_t s, int64_t p, int64_t n)
{
	float cx = (float)l->ddim[s].c_x, ce = (float)l->ddim[s].c_eps;
	int64_t i;
	int rc;

	if ((rc = lpo_policy_finish(l->rollout, l->eps)) < 0)
		return rc;
#pragma omp parallel for schedule(static)
	for (i = 0; i < n; i++) {
		const float *x = lpo_lpo_at(l->x, l, s, p + i);
		const float *eps = l->eps + i * l->count;
		float *mu = lpo_lpo_at(l->mu, l, s, p + i);
		int64_t j;

		for (j = 0; j < l->count; j++)
			mu[j] = cx * x[j] + ce * eps[j];
		shift(l, lpo_lpo_at(l->x, l, s + 1, p + i), s, p + i);
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

/* Transitions of chunk c. */
static int64_t
chunk_size(const lpo_lpo *l, int64_t c)
{
	int64_t all = (l->last - l->first) * l->o.prompts;
	int64_t from = c * l->score_groups;

	return all - from < l->score_groups ? all - from : l->score_groups;
}

/*
 * Chunk c of the transitions first .. last - 1, step-major.  Candidates are
 * scored at the timestep they came from, as the official code does, or at
 * their own (real_timestep; method.md 7.1).
 */
static int
start_chunk(lpo_lpo *l, int64_t c)
{
	int64_t K = l->o.candidates, i, k, s, p, n = chunk_size(l, c);
	int64_t from = c * l->score_groups;
	int rc;

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
	if ((rc = lpo_lrm_scorer_start(l->scorer, l->in.lrm_texts, l->cand,
	    l->who, l->t, n)) == 0)
		l->scoring = c;
	return rc;
}

int
lpo_lpo_score_chunk(lpo_lpo *l, int64_t c)
{
	int64_t K = l->o.candidates, from = c * l->score_groups;
	int rc;

	if (l->scoring != c && (rc = start_chunk(l, c)) < 0)
		return rc;
	if (l->ahead && c + 1 < lpo_lpo_score_chunks(l) &&
	    (rc = start_chunk(l, c + 1)) < 0)
		return rc;
	if ((rc = lpo_lrm_scorer_finish(l->scorer, l->chunk_score,
	    NULL)) < 0)
		return rc;
	memcpy(l->score + (l->first * l->o.prompts + from) * K,
	    l->chunk_score, (size_t)(chunk_size(l, c) * K) * sizeof(float));
	if (l->scoring == c)
		l->scoring = -1;
	return 0;
}

/* --------------------------------------------------------- a rollout step */

/*
 * What can be queued behind the last part of step s while that runs: what the
 * next step needs of texts and times or, after the last one, the first chunk
 * of scores, where that has no candidates of this step.
 */
static int
queue_next(lpo_lpo *l, int64_t s)
{
	if (s + 1 < l->last)
		return ready_next(l, s);
	if (l->ahead && l->first + (chunk_size(l, 0) - 1) / l->o.prompts < s)
		return start_chunk(l, 0);
	return 0;
}

int
lpo_lpo_rollout_step(lpo_lpo *l, int64_t s)
{
	int64_t p, n, P = l->o.prompts;
	int rc;

	if (s == 0)
		first_latents(l);
	if ((rc = start_part(l, s, 0)) < 0)
		return rc;
	for (p = 0; p < P; p += n) {
		n = part(l, s, p);
		if ((rc = p + n < P ? start_part(l, s, p + n) :
		    queue_next(l, s)) < 0)
			return rc;
		pick(l, s, p, n);
		if ((rc = finish_part(l, s, p, n)) < 0)
			return rc;
	}
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
