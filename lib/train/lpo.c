/* The LPO trainer: its life and its optimiser steps. */
#include <math.h>
#include <string.h>

#include "lib/train/lpo_priv.h"

enum { BAD_STEPS = 5 };		/* not finite, in a row */

/* ----------------------------------------------------------------- life */

static int64_t
max64(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

static int
schedule_steps(lpo_lpo *l)
{
	int64_t *t, T = l->o.steps, i;
	int rc;

	l->ddim = lpo_alloc(l->ctx, (size_t)T, sizeof(*l->ddim));
	t = lpo_alloc(l->ctx, (size_t)T, sizeof(*t));
	if (l->ddim == NULL || t == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if ((rc = lpo_schedule_timesteps(l->ctx, l->in.schedule, t, T)) < 0)
		goto out;
	l->first = T;
	for (i = 0; i < T; i++) {
		lpo_schedule_ddim(l->in.schedule, &l->ddim[i], t[i], T,
		    l->o.eta, 1);
		if (t[i] < l->o.t_lo || t[i] > l->o.t_hi)
			continue;
		if (l->first == T)
			l->first = i;
		l->last = i + 1;
		if (!(l->ddim[i].sigma > 0)) {
			rc = lpo_fail(l->ctx, LPO_EINVAL, "no noise at "
			    "timestep %lld: eta must be above 0",
			    (long long)t[i]);
			goto out;
		}
	}
	if (l->first >= l->last)
		rc = lpo_fail(l->ctx, LPO_EINVAL, "no sampling step has a "
		    "timestep in %lld..%lld", (long long)l->o.t_lo,
		    (long long)l->o.t_hi);
out:
	lpo_free(t);
	return rc;
}

static int
scorer(lpo_lpo *l, size_t room)
{
	/* a device wants more rows at a time than a CPU */
	int64_t want = strcmp(l->in.be->k->name, "cpu") == 0 ? l->o.prompts :
	    4 * l->o.prompts, all = l->o.prompts * (l->last - l->first), g;
	int rc;

	if (l->o.cut.scoring > 0)
		want = l->o.cut.scoring;
	want = want < all ? want : all;
	for (g = want;; g = lpo_fewer_groups(want, g)) {
		if ((rc = lpo_lrm_scorer_new(l->ctx, &l->scorer, l->in.lrm,
		    l->o.candidates, g, l->o.h, l->o.w, &l->arena)) < 0)
			return rc;
		if (g == 1 || lpo_lrm_scorer_plan(l->scorer)->arena_bytes <=
		    room)
			break;
		lpo_lrm_scorer_free(l->scorer);
		l->scorer = NULL;
	}
	l->score_groups = g;
	return 0;
}

static struct lpo_policy_shape
shape(const lpo_lpo *l)
{
	struct lpo_policy_shape s = {
		.h = l->o.h, .w = l->o.w, .height_px = l->o.height_px,
		.width_px = l->o.width_px, .length = l->in.length,
		.dim = l->in.dim, .pooled_dim = l->in.pooled_dim,
		.guidance = l->o.guidance,
		.flat_uncond = lpo_policy_texts_flat_uncond(l->in.texts)
	};

	return s;
}

/*
 * The networks in one arena.  Rows go up to what fits; results do not
 * depend on them.
 */
static int
networks(lpo_lpo *l)
{
	struct lpo_policy_shape s = shape(l);
	const struct lpo_lpo_cut *cut = &l->o.cut;
	int64_t all = l->o.prompts * (l->last - l->first);
	int64_t want = l->o.batch < all ? l->o.batch : all;
	int64_t rollout = l->o.prompts;
	size_t room = l->o.memory_bytes > 0 ? l->o.memory_bytes : SIZE_MAX;
	int rc;

	if (cut->pairs > 0 && cut->pairs < want)
		want = cut->pairs;
	if (cut->rollout > 0 && cut->rollout < rollout)
		rollout = cut->rollout;
	if ((rc = lpo_policy_fit(l->ctx, &l->rollout, l->in.be, l->in.unet,
	    l->in.dtype, &s, LPO_SEGMENTS_OFF, rollout, room)) < 0)
		return rc;
	s.backward = 1;
	if ((rc = lpo_policy_fit(l->ctx, &l->train, l->in.be, l->in.unet,
	    l->in.dtype, &s, cut->segments, want, room)) < 0)
		return rc;
	l->segments = s.segments;
	s.backward = 0;
	if (l->in.lora == NULL && (rc = lpo_policy_fit(l->ctx, &l->reference,
	    l->in.be, l->in.reference, l->in.dtype, &s, LPO_SEGMENTS_OFF,
	    lpo_policy_groups(l->train), room)) < 0)
		return rc;
	if ((rc = scorer(l, room)) < 0 ||
	    (rc = lpo_policy_commit(l->rollout, &l->arena)) < 0 ||
	    (rc = lpo_policy_commit(l->train, &l->arena)) < 0 ||
	    (l->reference != NULL &&
	    (rc = lpo_policy_commit(l->reference, &l->arena)) < 0))
		return rc;
	return lpo_lrm_scorer_commit(l->scorer);
}

static void *
floats(lpo_lpo *l, int64_t n)
{
	return lpo_alloc(l->ctx, (size_t)n, sizeof(float));
}

static int
buffers(lpo_lpo *l)
{
	int64_t T = l->o.steps, P = l->o.prompts, K = l->o.candidates;
	int64_t m = lpo_policy_groups(l->train);
	int64_t rows = max64(m, lpo_policy_groups(l->rollout));
	int64_t g = l->score_groups;

	l->x = floats(l, (T + 1) * P * l->count);
	l->mu = floats(l, T * P * l->count);
	l->score = floats(l, T * P * K);
	l->pair = lpo_alloc(l->ctx, (size_t)(T * P), sizeof(*l->pair));
	l->prompt = lpo_alloc(l->ctx, (size_t)P, sizeof(int64_t));
	l->epoch = lpo_alloc(l->ctx, (size_t)P, sizeof(int64_t));
	l->cand = floats(l, g * K * l->count);
	l->chunk_score = floats(l, g * K);
	l->eps = floats(l, rows * l->count);
	l->eps_ref = floats(l, m * l->count);
	l->d_eps = floats(l, m * l->count);
	l->xt = floats(l, m * l->count);
	l->xw = floats(l, m * l->count);
	l->xl = floats(l, m * l->count);
	l->out = lpo_alloc(l->ctx, (size_t)m, sizeof(*l->out));
	l->t = lpo_alloc(l->ctx, (size_t)max64(rows, g * K),
	    sizeof(int64_t));
	l->who = lpo_alloc(l->ctx, (size_t)max64(rows, g), sizeof(int64_t));
	return lpo_errcode(l->ctx);
}

int
lpo_lpo_new(lpo_ctx *c, lpo_lpo **out, const struct lpo_lpo_parts *in,
    const struct lpo_lpo_options *o)
{
	lpo_lpo *l;
	int rc;

	*out = NULL;
	if (o->candidates < 2 || o->prompts < 1 || o->batch < 1)
		return lpo_fail(c, LPO_EINVAL,
		    "LPO needs 2 candidates, a prompt and a batch at least");
	if ((in->lora == NULL) != (in->reference != NULL))
		return lpo_fail(c, LPO_EINVAL, "LPO trains a LoRA, or a UNet "
		    "beside a reference");
	if ((l = lpo_alloc(c, 1, sizeof(*l))) == NULL)
		return LPO_ENOMEM;
	l->ctx = c;
	l->in = *in;
	l->o = *o;
	l->params = in->lora != NULL ? lpo_lora_params(in->lora) :
	    lpo_unet_params(in->unet);
	l->th = o->threshold;
	l->npairs = -1;
	l->scoring = l->referring = l->policing = -1;
	/* nothing is gained where the work is the host's own */
	l->ahead = strcmp(in->be->k->name, "cpu") != 0;
	l->count = o->h * o->w * lpo_unet_cfg(in->unet)->in_channels;
	if ((rc = schedule_steps(l)) < 0 || (rc = networks(l)) < 0 ||
	    (rc = buffers(l)) < 0) {
		lpo_lpo_free(l);
		return rc;
	}
	lpo_lpo_choose_prompts(l);
	*out = l;
	return 0;
}

void
lpo_lpo_free(lpo_lpo *l)
{
	if (l == NULL)
		return;
	lpo_policy_free(l->rollout);
	lpo_policy_free(l->train);
	lpo_policy_free(l->reference);
	lpo_lrm_scorer_free(l->scorer);
	lpo_arena_free(l->in.be, &l->arena);
	lpo_free(l->ddim);
	lpo_free(l->x);
	lpo_free(l->mu);
	lpo_free(l->score);
	lpo_free(l->pair);
	lpo_free(l->prompt);
	lpo_free(l->epoch);
	lpo_free(l->cand);
	lpo_free(l->chunk_score);
	lpo_free(l->eps);
	lpo_free(l->eps_ref);
	lpo_free(l->d_eps);
	lpo_free(l->xt);
	lpo_free(l->xw);
	lpo_free(l->xl);
	lpo_free(l->out);
	lpo_free(l->t);
	lpo_free(l->who);
	lpo_free(l->check_reference);
	lpo_free(l);
}

void
lpo_lpo_plan(const lpo_lpo *l, struct lpo_lpo_plan *p)
{
	const struct lpo_plan *r = lpo_policy_plan(l->rollout);
	const struct lpo_plan *t = lpo_policy_plan(l->train);
	const struct lpo_plan *s = lpo_lrm_scorer_plan(l->scorer);
	int64_t T = l->o.steps, P = l->o.prompts, K = l->o.candidates;
	int64_t landings;

	memset(p, 0, sizeof(*p));
	p->cut.rollout = lpo_policy_groups(l->rollout);
	p->cut.pairs = lpo_policy_groups(l->train);
	p->cut.scoring = l->score_groups;
	p->cut.segments = l->segments ? LPO_SEGMENTS_ON : LPO_SEGMENTS_OFF;
	p->activation_bytes = r->arena_bytes;
	if (t->arena_bytes > p->activation_bytes)
		p->activation_bytes = t->arena_bytes;
	if (s->arena_bytes > p->activation_bytes)
		p->activation_bytes = s->arena_bytes;
	p->state_bytes = sizeof(float) * (size_t)((2 * T + 1) * P * l->count +
	    T * P * K);
	p->host_bytes = p->state_bytes + sizeof(float) * (size_t)l->count *
	    (size_t)(l->score_groups * K + 6 * p->cut.pairs);
	/* what the networks give, two evaluations of each at a time */
	landings = p->cut.rollout + p->cut.pairs;
	if (l->reference != NULL)
		landings += lpo_policy_groups(l->reference);
	p->host_bytes += sizeof(float) * (size_t)(l->count * landings) * 2 *
	    (l->o.guidance == 1 ? 1 : 2);
	p->text_bytes = (size_t)(P < l->in.prompts ? P : l->in.prompts) *
	    (size_t)(lpo_policy_texts_row_bytes(l->in.texts) +
	    lpo_lrm_texts_row_bytes(l->in.lrm_texts));
	p->transitions = (l->last - l->first) * P;
	p->rollout_flops = r->fwd_flops / (double)p->cut.rollout *
	    (double)(l->last * P);
	p->score_flops = s->fwd_flops / (double)l->score_groups *
	    (double)((l->last - l->first) * P);
	p->pair_flops = (2 * t->fwd_flops + t->bwd_flops +
	    t->recompute_flops) / (double)p->cut.pairs;
	p->recompute_flops = t->recompute_flops / (double)p->cut.pairs;
	if (l->reference != NULL &&
	    lpo_policy_plan(l->reference)->arena_bytes > p->activation_bytes)
		p->activation_bytes =
		    lpo_policy_plan(l->reference)->arena_bytes;
}

int
lpo_lpo_time(lpo_lpo *l, struct lpo_lpo_time *out)
{
	struct lpo_policy_shape s = shape(l);
	double t[2];
	int rc;

	s.groups = lpo_policy_groups(l->train);
	s.backward = 1;
	s.segments = l->segments;
	if ((rc = lpo_policy_time(l->ctx, l->in.be, l->in.unet, l->in.dtype,
	    &s, t)) < 0)
		return rc;
	out->rollout = t[0];	/* the same network's forward */
	out->pair = 2 * t[0] + t[1];
	return lpo_lrm_scorer_time(l->ctx, l->in.lrm, l->o.candidates,
	    l->score_groups, l->o.h, l->o.w, &out->score);
}

/* -------------------------------------------------------------- training */

int64_t
lpo_lpo_batches(const lpo_lpo *l)
{
	return (l->npairs + l->o.batch - 1) / l->o.batch;
}

/* Inputs of n pairs from pair[from]. */
static void
stage_pairs(lpo_lpo *l, int64_t from, int64_t n)
{
	int64_t i;

#pragma omp parallel for schedule(dynamic)
	for (i = 0; i < n; i++) {
		const struct lpo_transition *tr = &l->pair[from + i];

		memcpy(l->xt + i * l->count, lpo_lpo_at(l->x, l, tr->s, tr->p),
		    (size_t)l->count * sizeof(float));
		lpo_lpo_candidate(l, l->xw + i * l->count, tr->s, tr->p,
		    tr->win);
		lpo_lpo_candidate(l, l->xl + i * l->count, tr->s, tr->p,
		    tr->lose);
		l->t[i] = l->ddim[tr->s].t;
		l->who[i] = l->prompt[tr->p];
	}
}

/* The batch's sums, added to the report when its step is taken. */
struct sums {
	double loss, implicit, ratio_win, ratio_lose;
	double clipped_win, clipped_lose;
	int64_t bad;		/* first pair whose loss is not finite, or -1 */
};

/* Pairs of the micro-batch that begins at pair[from]: of one batch. */
static int64_t
micro_size(const lpo_lpo *l, int64_t from)
{
	int64_t end = (from / l->o.batch + 1) * l->o.batch;
	int64_t m = lpo_policy_groups(l->train);

	end = end < l->npairs ? end : l->npairs;
	return end - from < m ? end - from : m;
}

/*
 * The frozen model on the micro-batch from pair[from], which is staged.
 * What does not fit into one evaluation but its last part is finished here.
 */
static int
start_reference(lpo_lpo *l, int64_t from)
{
	lpo_policy *p = l->reference != NULL ? l->reference : l->train;
	int flags = l->reference != NULL ? 0 : LPO_LORA_OFF, rc;
	int64_t n = micro_size(l, from), g = lpo_policy_groups(p), i;

	stage_pairs(l, from, n);
	for (i = 0; n - i > g; i += g)
		if ((rc = lpo_policy_eval(p, l->eps_ref + i * l->count,
		    l->in.texts, l->xt + i * l->count, l->t + i, l->who + i,
		    g, flags)) < 0)
			return rc;
	if ((rc = lpo_policy_start(p, l->in.texts, l->xt + i * l->count,
	    l->t + i, l->who + i, n - i, flags)) < 0)
		return rc;
	l->reference_rest = i;
	l->referring = from;
	return 0;
}

/* The policy on the same; the weights are what they will be by then. */
static int
start_policy(lpo_lpo *l, int64_t from)
{
	int rc = lpo_policy_start(l->train, l->in.texts, l->xt, l->t, l->who,
	    micro_size(l, from), 0);

	if (rc == 0)
		l->policing = from;
	return rc;
}

/* What both say of the micro-batch, started here where it is not yet. */
static int
evaluate(lpo_lpo *l, int64_t from)
{
	lpo_policy *p = l->reference != NULL ? l->reference : l->train;
	int rc;

	if ((l->referring != from && (rc = start_reference(l, from)) < 0) ||
	    (l->policing != from && (rc = start_policy(l, from)) < 0) ||
	    (rc = lpo_policy_finish(p, l->eps_ref + l->reference_rest *
	    l->count)) < 0 || (rc = lpo_policy_finish(l->train, l->eps)) < 0)
		return rc;
	l->referring = l->policing = -1;
	return 0;
}

/* Reference, policy, loss and backward of one micro-batch. */
static int
micro(lpo_lpo *l, struct sums *sum, int64_t from, int64_t n, int64_t batch)
{
	struct lpo_pair_out *o = l->out;
	int64_t i;
	int rc;

	if ((rc = evaluate(l, from)) < 0)
		return rc;
#pragma omp parallel for schedule(dynamic)
	for (i = 0; i < n; i++) {
		int64_t at = i * l->count;

		lpo_pair_loss_eval(&l->o.loss, &o[i], l->d_eps + at,
		    1.0 / (double)batch, &l->ddim[l->pair[from + i].s],
		    l->eps + at, l->eps_ref + at, l->xt + at, l->xw + at,
		    l->xl + at, l->count);
	}
	/* before the sums below: the device waits for this alone */
	if ((rc = lpo_policy_backward(l->train, l->d_eps, n)) < 0)
		return rc;
	for (i = 0; i < n; i++) {
		if (!isfinite(o[i].loss) && sum->bad < 0)
			sum->bad = from + i;
		sum->loss += o[i].loss;
		sum->implicit += o[i].ratio_win > o[i].ratio_lose;
		sum->ratio_win += o[i].ratio_win;
		sum->ratio_lose += o[i].ratio_lose;
		sum->clipped_win += o[i].clipped_win;
		sum->clipped_lose += o[i].clipped_lose;
	}
	return 0;
}

/* A step that is not finite is left out, and remembered. */
static void
leave_out(lpo_lpo *l, const struct sums *sum, int64_t from)
{
	struct lpo_lpo_report *r = &l->report;
	const struct lpo_transition *tr = &l->pair[sum->bad >= 0 ? sum->bad :
	    from];

	if (r->skipped_steps++ == 0) {
		r->bad_prompt = l->prompt[tr->p];
		r->bad_t = l->ddim[tr->s].t;
		r->bad_loss = sum->bad >= 0;
	}
	l->bad_in_a_row++;
}

/*
 * The batch of n pairs from pair[from] is summed: a step.  The reference, to
 * which the step is of no concern, is on the next batch meanwhile.
 */
static int
update(lpo_lpo *l, const struct sums *sum, int64_t from, int64_t n)
{
	struct lpo_adamw a = l->o.adamw;
	struct lpo_lpo_report *r = &l->report;
	double sq, norm;
	int rc;

	if ((rc = lpo_params_grad_sumsq_start(l->params)) < 0 ||
	    (l->ahead && from + n < l->npairs &&
	    (rc = start_reference(l, from + n)) < 0) ||
	    (rc = lpo_params_grad_sumsq_finish(l->params, &sq)) < 0)
		return rc;
	norm = sqrt(sq);
	if (!isfinite(norm) || !isfinite(sum->loss)) {
		leave_out(l, sum, from);
		return 0;
	}
	l->bad_in_a_row = 0;
	a.grad_scale = 1;
	if (l->o.max_grad_norm > 0 && norm > l->o.max_grad_norm)
		a.grad_scale = (float)(l->o.max_grad_norm / norm);
	a.step = ++l->optimiser_step;
	r->batches++;
	r->pairs += n;
	r->loss += sum->loss;
	r->implicit_accuracy += sum->implicit;
	r->ratio_win += sum->ratio_win;
	r->ratio_lose += sum->ratio_lose;
	r->clipped_win += sum->clipped_win;
	r->clipped_lose += sum->clipped_lose;
	r->grad_norm += norm;
	return lpo_params_adamw(l->params, &a);
}

static int
train_batch(lpo_lpo *l, int64_t b)
{
	int64_t from = b * l->o.batch, n, i, some;
	struct sums sum = { .bad = -1 };
	int rc;

	n = l->npairs - from < l->o.batch ? l->npairs - from : l->o.batch;
	if ((rc = lpo_params_zero_grad(l->params)) < 0)
		return rc;
	for (i = 0; i < n; i += some) {
		some = micro_size(l, from + i);
		if ((rc = micro(l, &sum, from + i, some, n)) < 0)
			return rc;
		if (l->ahead && i + some < n &&
		    ((rc = start_reference(l, from + i + some)) < 0 ||
		    (rc = start_policy(l, from + i + some)) < 0))
			return rc;
	}
	return update(l, &sum, from, n);
}

/* Sums to means; the texts of its prompts are done with; the next iteration. */
static void
finish(lpo_lpo *l)
{
	struct lpo_lpo_report *r = &l->report;
	double n = r->pairs > 0 ? (double)r->pairs : NAN;

	r->loss /= n;
	r->implicit_accuracy /= n;
	r->ratio_win /= n;
	r->ratio_lose /= n;
	r->clipped_win /= n;
	r->clipped_lose /= n;
	lpo_policy_texts_drop(l->in.texts);
	lpo_lrm_texts_drop(l->in.lrm_texts);
	r->grad_norm /= r->batches > 0 ? (double)r->batches : NAN;
	if (l->first_spread == 0 && isfinite(r->score_spread))
		l->first_spread = r->score_spread;
	l->iteration++;
	l->phase = LPO_PH_ROLLOUT;
	l->index = 0;
	l->npairs = -1;
}

/* One batch of the training phase; the index is past it even where it fails. */
static int
train_one(lpo_lpo *l)
{
	const struct lpo_lpo_report *r = &l->report;
	int rc;

	if (l->npairs < 0 && (rc = lpo_lpo_select(l)) < 0)
		return rc;
	if (l->index < lpo_lpo_batches(l)) {
		if ((rc = train_batch(l, l->index)) < 0)
			return rc;
		l->index++;
		if (l->bad_in_a_row >= BAD_STEPS)
			return lpo_fail(l->ctx, LPO_EFORMAT, "%lld optimiser "
			    "steps in a row were not finite (iteration %lld, "
			    "first at prompt %lld, timestep %lld): lower the "
			    "learning rate, or look at the weights it began "
			    "with", (long long)l->bad_in_a_row,
			    (long long)l->iteration + 1,
			    (long long)r->bad_prompt, (long long)r->bad_t);
	}
	/* the step is queued: the next batch's policy has its weights */
	if (l->index < lpo_lpo_batches(l))
		return l->ahead ? start_policy(l, l->index * l->o.batch) : 0;
	finish(l);
	return 1;
}

void
lpo_lpo_settle(lpo_lpo *l)
{
	lpo_policy_drop(l->rollout);
	lpo_policy_drop(l->train);
	lpo_policy_drop(l->reference);
	lpo_lrm_scorer_drop(l->scorer);
	l->scoring = l->referring = l->policing = -1;
}

static int
advance(lpo_lpo *l)
{
	int rc;

	if (lpo_ctx_stopped(l->ctx))
		return lpo_fail(l->ctx, LPO_ESTOP, "stopped");
	switch (l->phase) {
	case LPO_PH_ROLLOUT:
		if (l->index == 0) {
			memset(&l->report, 0, sizeof(l->report));
			l->report.iteration = l->iteration;
			lpo_lpo_choose_prompts(l);
		}
		if ((rc = lpo_lpo_rollout_step(l, l->index)) < 0)
			return rc;
		if (++l->index == l->last) {	/* later steps don't count */
			l->phase = LPO_PH_SCORE;
			l->index = 0;
		}
		return 0;
	case LPO_PH_SCORE:
		if ((rc = lpo_lpo_score_chunk(l, l->index)) < 0)
			return rc;
		if (++l->index == lpo_lpo_score_chunks(l)) {
			l->phase = LPO_PH_TRAIN;
			l->index = 0;
		}
		return 0;
	case LPO_PH_TRAIN:
		break;
	}
	return train_one(l);
}

int
lpo_lpo_advance(lpo_lpo *l)
{
	int rc = advance(l);

	if (rc < 0)
		lpo_lpo_settle(l);
	return rc;
}

int64_t
lpo_lpo_iteration(const lpo_lpo *l)
{
	return l->iteration;
}

const struct lpo_lpo_report *
lpo_lpo_report(const lpo_lpo *l)
{
	return &l->report;
}

enum lpo_lpo_phase
lpo_lpo_where(const lpo_lpo *l, int64_t *done, int64_t *total)
{
	*done = l->index;
	*total = l->phase == LPO_PH_ROLLOUT ? l->last :
	    l->phase == LPO_PH_SCORE ? lpo_lpo_score_chunks(l) :
	    l->npairs < 0 ? 0 : lpo_lpo_batches(l);
	return l->phase;
}

int64_t
lpo_lpo_optimiser_steps(const lpo_lpo *l)
{
	return l->optimiser_step;
}

lpo_params *
lpo_lpo_params(lpo_lpo *l)
{
	return l->params;
}

const struct lpo_threshold *
lpo_lpo_threshold(const lpo_lpo *l)
{
	return &l->th;
}

double
lpo_lpo_first_spread(const lpo_lpo *l)
{
	return l->first_spread;
}

int
lpo_lpo_health(const struct lpo_lpo_report *p, double first_spread)
{
	double clip = (p->clipped_win + p->clipped_lose) / 2;
	int h = 0;

	if (p->transitions == 0 ||
	    (double)p->valid < 0.05 * (double)p->transitions)
		h |= LPO_H_FEW_PAIRS;
	if (p->score_spread < first_spread / 2)
		h |= LPO_H_SPREAD;
	if (clip > 0.05)
		h |= LPO_H_CLIPPED;
	if (p->skipped_steps > 0)
		h |= LPO_H_STEPS;
	if (p->bad_scores > 0)
		h |= LPO_H_SCORES;
	return h;
}
