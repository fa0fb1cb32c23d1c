/*
 * The LPO trainer: values that are not finite never reach the weights; the
 * reference; micro-batches and state of a whole UNet; the held-out check; the
 * timestep that candidates are scored at; work that is started ahead.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/train/lpo_priv.h"
#include "tests/backend.h"

enum { PROMPTS = 2, ALL = 3, STEPS = 4, K = 2, BATCH = 2 };
#define RUN "0123456789abcdef"

static lpo_ctx *ctx;
static lpo_backend be;
static lpo_lrm *lrm;
static lpo_lrm_texts *lrm_texts;
static lpo_policy_texts *texts;
static struct lpo_schedule schedule;
static int64_t length, dim;

/* A trainer and what it works on. */
struct rig {
	lpo_unet *unet, *reference;
	lpo_lora_set *lora;
	lpo_lpo *l;
};

static void
drop(struct rig *r)
{
	lpo_lpo_free(r->l);
	lpo_lora_free(r->lora);
	lpo_unet_free(r->unet);
	lpo_unet_free(r->reference);
	memset(r, 0, sizeof(*r));
}

static struct lpo_lpo_options
options(void)
{
	struct lpo_lpo_options o = {
		.seed = 3, .h = 4, .w = 4, .height_px = 16, .width_px = 16,
		.steps = STEPS, .candidates = K, .prompts = PROMPTS,
		.batch = BATCH, .t_hi = 1000, .eta = 1, .guidance = 5,
		.threshold = { .kind = LPO_TH_STATIC, .scale = 1 },
		.loss = { .beta = 500, .clip = 0.1 },
		.adamw = { .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f,
		    .eps = 1e-8f, .weight_decay = 1e-4f },
		.memory_bytes = (size_t)1 << 30, .check_first = PROMPTS,
		.check_prompts = 1
	};

	return o;
}

static int
make(struct rig *r, int full, const struct lpo_lpo_options *o)
{
	struct lpo_lpo_parts in = { .be = &be, .dtype = LPO_F32,
	    .schedule = &schedule, .texts = texts, .prompts = PROMPTS,
	    .length = length, .dim = dim, .lrm = lrm,
	    .lrm_texts = lrm_texts };

	memset(r, 0, sizeof(*r));
	if (lpo_unet_load(ctx, &be, &r->unet, "demo/model/unet", LPO_F32,
	    0) < 0)
		return -1;
	if (full && (lpo_unet_load(ctx, &be, &r->reference,
	    "demo/model/unet", LPO_F32, 0) < 0 ||
	    lpo_params_train_all(lpo_unet_params(r->unet)) < 0))
		return -1;
	if (!full && lpo_lora_attach(ctx, &r->lora, r->unet,
	    LPO_LORA_ATTENTION, 2, 2, 3) < 0)
		return -1;
	in.unet = r->unet;
	in.reference = r->reference;
	in.lora = r->lora;
	return lpo_lpo_new(ctx, &r->l, &in, o);
}

/* Two of the same. */
static int
make_two(struct rig *a, struct rig *b, int full,
    const struct lpo_lpo_options *o)
{
	return make(a, full, o) < 0 || make(b, full, o) < 0 ? -1 : 0;
}

/* Nothing went wrong on the way; b may be NULL. */
static void
finish(struct rig *a, struct rig *b, const char *what)
{
	ok(lpo_errcode(ctx) == 0, "%s: no error %s", what, lpo_errmsg(ctx));
	lpo_clear(ctx);
	drop(a);
	if (b != NULL)
		drop(b);
}

static float *
weights(lpo_lpo *l, int64_t *n)
{
	float *w;

	*n = lpo_params_state_count(lpo_lpo_params(l), 0, 1 << 20);
	w = malloc((size_t)*n * sizeof(*w));
	lpo_params_get_state(lpo_lpo_params(l), 0, 1 << 20, w);
	return w;
}

static int
all_finite(lpo_lpo *l)
{
	int64_t n, i, bad = 0;
	float *w = weights(l, &n);

	for (i = 0; i < n; i++)
		bad += !isfinite(w[i]);
	free(w);
	return bad == 0;
}

static int
equal(lpo_lpo *a, lpo_lpo *b)
{
	int64_t n, m;
	float *x = weights(a, &n), *y = weights(b, &m);
	int same = n == m && memcmp(x, y, (size_t)n * sizeof(*x)) == 0;

	free(x);
	free(y);
	return same;
}

/* Until all candidates of the present iteration have scores. */
static int
to_scores(lpo_lpo *l)
{
	int64_t done, total;

	while (lpo_lpo_where(l, &done, &total) != LPO_PH_TRAIN)
		if (lpo_lpo_advance(l) < 0)
			return -1;
	return 0;
}

/* To the first batch of the present iteration, its pairs chosen. */
static int
to_training(lpo_lpo *l)
{
	return to_scores(l) < 0 ? -1 : lpo_lpo_select(l);
}

static int
iterations(lpo_lpo *l, int64_t n)
{
	int rc = 0;

	while (rc >= 0 && lpo_lpo_iteration(l) < n)
		rc = lpo_lpo_advance(l);
	return rc;
}

/* x_t of a pair, all of it */
static void
poison(lpo_lpo *l, const struct lpo_transition *tr, float v)
{
	float *x = lpo_lpo_at(l->x, l, tr->s, tr->p);
	int64_t i;

	for (i = 0; i < l->count; i++)
		x[i] = v;
}

/* ------------------------------------------------------------ not finite */

static void
one_bad_pair(float v, const char *what)
{
	struct lpo_lpo_options o = options();
	struct lpo_transition tr;
	struct rig a = { NULL }, b = { NULL };
	int64_t batches;

	if (make_two(&a, &b, 0, &o) < 0 || to_training(a.l) < 0)
		goto out;
	batches = lpo_lpo_batches(a.l);
	tr = a.l->pair[3];		/* of the second batch */
	poison(a.l, &tr, v);
	lpo_lpo_advance(a.l);
	lpo_lpo_advance(a.l);
	ok(a.l->report.skipped_steps == 1 && a.l->optimiser_step == 1 &&
	    a.l->bad_in_a_row == 1, "%s: one step left out", what);
	ok(a.l->report.bad_loss && a.l->report.bad_t == a.l->ddim[tr.s].t &&
	    a.l->report.bad_prompt == a.l->prompt[tr.p],
	    "%s: prompt and timestep are named", what);
	if (iterations(b.l, 0) < 0 || to_training(b.l) < 0)
		goto out;
	lpo_lpo_advance(b.l);
	ok(equal(a.l, b.l), "%s: weights and moments as without it", what);
	ok(iterations(a.l, 2) >= 0 && all_finite(a.l) &&
	    a.l->bad_in_a_row == 0, "%s: the run goes on, finite", what);
	ok(lpo_lpo_optimiser_steps(a.l) > batches - 1,
	    "%s: and takes steps", what);
out:
	finish(&a, &b, what);
}

/* Huge but finite: skipped or not, the weights stay finite. */
static void
huge(void)
{
	struct lpo_lpo_options o = options();
	struct rig a = { NULL };

	if (make(&a, 0, &o) == 0 && to_training(a.l) == 0) {
		poison(a.l, &a.l->pair[0], 1e38f);
		ok(iterations(a.l, 1) >= 0 && all_finite(a.l) &&
		    a.l->report.skipped_steps <= 1, "1e38: finite weights");
	}
	finish(&a, NULL, "1e38");
}

static int
save_to(lpo_lpo *l, const char *dir)
{
	lpo_snap *s = NULL;
	int rc = lpo_snap_open(ctx, &s, dir, RUN);

	if (rc == 0)
		rc = lpo_lpo_save(l, s);
	lpo_snap_close(s);
	return rc;
}

static int
restore_from(lpo_lpo *l, const char *dir)
{
	lpo_snap *s = NULL;
	int rc = lpo_snap_open(ctx, &s, dir, RUN);

	if (rc == 0)
		rc = lpo_lpo_restore(l, s);
	lpo_snap_close(s);
	return rc;
}

/* Saved after a skipped step and taken up again: the same to the end. */
static void
resumed(int full)
{
	const char *what = full ? "whole UNet" : "LoRA";
	char dir[] = "/tmp/lpo-train-XXXXXX";
	struct lpo_lpo_options o = options();
	struct rig a = { NULL }, b = { NULL };

	if (mkdtemp(dir) == NULL || make_two(&a, &b, full, &o) < 0 ||
	    to_training(a.l) < 0)
		goto out;
	poison(a.l, &a.l->pair[0], NAN);
	lpo_lpo_advance(a.l);
	lpo_lpo_advance(a.l);
	if (save_to(a.l, dir) < 0 || restore_from(b.l, dir) < 0)
		goto out;
	ok(equal(a.l, b.l) && b.l->report.skipped_steps == 1,
	    "%s: the state is back", what);
	ok(iterations(a.l, 2) >= 0 && iterations(b.l, 2) >= 0 &&
	    equal(a.l, b.l), "%s: and goes on to the same bits", what);
	ok(lpo_lpo_first_spread(a.l) > 0 &&
	    lpo_lpo_first_spread(a.l) == lpo_lpo_first_spread(b.l),
	    "%s: the first spread is remembered", what);
out:
	finish(&a, &b, what);
	lpo_rmtree(ctx, dir);
}

static void
five_in_a_row(void)
{
	char dir[] = "/tmp/lpo-train-XXXXXX";
	struct lpo_lpo_options o = options();
	struct rig a = { NULL }, b = { NULL }, fresh = { NULL };
	int64_t i, n;

	o.batch = 1;
	if (mkdtemp(dir) == NULL || make_two(&a, &b, 0, &o) < 0 ||
	    make(&fresh, 0, &o) < 0 || to_training(a.l) < 0)
		goto out;
	for (i = 0; i < a.l->npairs; i++)
		poison(a.l, &a.l->pair[i], NAN);
	for (n = 1; lpo_lpo_advance(a.l) == 0; n++)
		;
	ok(n == 5 && lpo_errcode(ctx) == LPO_EFORMAT,
	    "the fifth bad step in a row is an error: %s", lpo_errmsg(ctx));
	lpo_clear(ctx);
	ok(equal(a.l, fresh.l), "and nothing has moved");
	if (save_to(a.l, dir) < 0 || restore_from(b.l, dir) < 0)
		goto out;
	ok(b.l->bad_in_a_row == 5 && b.l->index == 5,
	    "the state can be saved and goes on behind it");
	ok(lpo_lpo_advance(b.l) == LPO_EFORMAT, "to the same end");
	lpo_clear(ctx);
out:
	finish(&a, &b, "five");
	drop(&fresh);
	lpo_rmtree(ctx, dir);
}

static void
bad_score(void)
{
	struct lpo_lpo_options o = options();
	int64_t i, hit = 0;
	struct rig a = { NULL };

	if (make(&a, 0, &o) < 0 || to_scores(a.l) < 0)
		goto out;
	/* step 1 of slot 1, step 2 of slot 0 */
	a.l->score[(1 * PROMPTS + 1) * K + 1] = NAN;
	a.l->score[(2 * PROMPTS + 0) * K] = INFINITY;
	lpo_lpo_select(a.l);
	for (i = 0; i < a.l->npairs; i++)
		hit += (a.l->pair[i].s == 1 && a.l->pair[i].p == 1) ||
		    (a.l->pair[i].s == 2 && a.l->pair[i].p == 0);
	ok(a.l->report.bad_scores == 2 && hit == 0 &&
	    a.l->npairs == STEPS * PROMPTS - 2,
	    "scores that are not finite make no pair, and are counted");
	ok(isfinite(a.l->report.score_mean) &&
	    lpo_lpo_health(&a.l->report, 0) == LPO_H_SCORES,
	    "the mean is of the others, and a word is due");
out:
	finish(&a, NULL, "bad scores");
}

/* ----------------------------------------------------------------- health */

static void
health(void)
{
	struct lpo_lpo_report p = { .transitions = 100, .valid = 5,
	    .score_spread = 0.5 };

	ok(lpo_lpo_health(&p, 1) == 0, "5 %% valid, half the spread: well");
	p.valid = 4;
	ok(lpo_lpo_health(&p, 1) == LPO_H_FEW_PAIRS, "4 %% valid: said");
	p.valid = 50;
	p.score_spread = 0.49;
	ok(lpo_lpo_health(&p, 1) == LPO_H_SPREAD, "the spread falls: said");
	p.score_spread = 1;
	p.clipped_win = 0.1;
	ok(lpo_lpo_health(&p, 1) == 0, "one ratio of twenty clipped: well");
	p.clipped_lose = 0.02;
	ok(lpo_lpo_health(&p, 1) == LPO_H_CLIPPED, "more: said");
	p.clipped_win = p.clipped_lose = 0;
	p.skipped_steps = 1;
	ok(lpo_lpo_health(&p, 1) == LPO_H_STEPS, "a step left out: said");
}

/* ---------------------------------------------------------------- the rest */

/*
 * Before the first step policy and reference are one.  In the check of a whole
 * UNet on CUDA the two are walked with different numbers of rows, of which
 * the last bits may depend; in training with as many, whatever the memory.
 */
static void
beginning(int full)
{
	const char *what = full ? "whole UNet" : "LoRA";
	struct lpo_lpo_options o = options();
	struct lpo_lpo_check c, again;
	struct rig a = { NULL }, b = { NULL };
	double far;

	o.batch = 100;
	if (make_two(&a, &b, full, &o) < 0 || lpo_lpo_check(a.l, &c) < 0)
		goto out;
	far = fabs(c.policy - c.reference);
	if (on_cuda(&be) && full)
		ok(c.n == K && far <= 1e-4 * (1 + fabs(c.reference)),
		    "%s: policy and reference begin %.2g apart", what, far);
	else
		ok(c.n == K && far == 0 && c.win_rate == 0.5,
		    "%s: policy and reference begin with the same score",
		    what);
	if (iterations(a.l, 1) < 0)
		goto out;
	ok(a.l->report.batches == 1 &&
	    fabs(a.l->report.loss - log(2)) < 1e-12 &&
	    a.l->report.ratio_win == 1 && a.l->report.ratio_lose == 1,
	    "%s: the first batch has ratio 1 and loss ln 2", what);
	if (lpo_lpo_check(a.l, &c) < 0 || lpo_lpo_check(a.l, &again) < 0)
		goto out;
	ok(c.policy != c.reference && memcmp(&c, &again, sizeof(c)) == 0,
	    "%s: after it they differ, and a check repeats", what);
	ok(iterations(a.l, 2) >= 0 && iterations(b.l, 2) >= 0 &&
	    equal(a.l, b.l), "%s: checks do not touch the training", what);
out:
	finish(&a, &b, what);
}

static void
micro_batches(void)
{
	struct lpo_lpo_options o = options();
	struct rig a = { NULL }, b = { NULL };

	o.batch = 5;
	o.cut.pairs = 1;
	if (make(&a, 1, &o) == 0) {
		o.cut.pairs = 3;
		if (make(&b, 1, &o) == 0)
			ok(iterations(a.l, 1) >= 0 &&
			    iterations(b.l, 1) >= 0 && equal(a.l, b.l),
			    "whole UNet: the same for pairs one by one and "
			    "three at a time");
	}
	finish(&a, &b, "micro-batches");
}

/* As in beginning(), where memory has the batch done in parts. */
static void
beginning_in_parts(void)
{
	struct lpo_lpo_options o = options();
	struct rig a;
	int64_t n;

	o.batch = 100;
	if (make(&a, 1, &o) < 0)
		goto out;
	o.memory_bytes = lpo_policy_plan(a.l->train)->arena_bytes / 3;
	drop(&a);
	if (make(&a, 1, &o) < 0 || iterations(a.l, 1) < 0)
		goto out;
	n = lpo_policy_groups(a.l->train);
	ok(n < o.batch && lpo_policy_groups(a.l->reference) == n &&
	    a.l->report.ratio_win == 1 && a.l->report.ratio_lose == 1,
	    "whole UNet, in parts of %d pairs: the first batch has ratio 1",
	    (int)n);
out:
	ok(lpo_errcode(ctx) == 0, "no error %s", lpo_errmsg(ctx));
	lpo_clear(ctx);
	drop(&a);
}

/* However the work is cut up, the LoRA is the same. */
static void
cuts(void)
{
	static const struct lpo_lpo_cut cut[] = {
		{ 0, 0, 0, LPO_SEGMENTS_ON },
		{ 1, 1, 1, LPO_SEGMENTS_ON },
		{ 1, 2, 3, LPO_SEGMENTS_OFF },
		{ 2, 3, 1, LPO_SEGMENTS_ON }
	};
	struct lpo_lpo_options o = options();
	struct rig a, b = { NULL };
	struct lpo_lpo_plan p;
	size_t i;

	o.batch = 5;
	if (make(&a, 0, &o) < 0 || iterations(a.l, 2) < 0)
		goto out;
	for (i = 0; i < sizeof(cut) / sizeof(*cut); i++) {
		o.cut = cut[i];
		if (make(&b, 0, &o) < 0)
			break;
		lpo_lpo_plan(b.l, &p);
		ok(p.cut.segments == cut[i].segments &&
		    (p.recompute_flops > 0) == (cut[i].segments ==
		    LPO_SEGMENTS_ON), "rollout %lld, pairs %lld, scoring "
		    "%lld, segments %s", (long long)p.cut.rollout,
		    (long long)p.cut.pairs, (long long)p.cut.scoring,
		    cut[i].segments == LPO_SEGMENTS_ON ? "on" : "off");
		ok(iterations(b.l, 2) >= 0 && equal(a.l, b.l),
		    "the same bits");
		drop(&b);
	}
out:
	ok(lpo_errcode(ctx) == 0, "no error %s", lpo_errmsg(ctx));
	lpo_clear(ctx);
	drop(&a);
	drop(&b);
}

/* Less and less memory: fewer pairs, then segments, then no. */
static void
memory(void)
{
	struct lpo_lpo_options o = options();
	struct lpo_lpo_plan p = { .activation_bytes = 0 };
	int64_t pairs = INT64_MAX;
	int order = 1, on = 0, seen = 0;
	struct rig a = { NULL };

	o.batch = 8;
	while (make(&a, 0, &o) == 0) {
		lpo_lpo_plan(a.l, &p);
		order &= o.memory_bytes == 0 ||
		    p.activation_bytes <= o.memory_bytes;
		if (p.cut.segments == LPO_SEGMENTS_ON && !on) {
			order &= pairs == 1;
			on = 1;
			pairs = INT64_MAX;
		}
		order &= on == (p.cut.segments == LPO_SEGMENTS_ON) &&
		    p.cut.pairs <= pairs;
		pairs = p.cut.pairs;
		seen |= on ? 2 : pairs > 1 ? 1 : 0;
		o.memory_bytes = p.activation_bytes - 1;
		drop(&a);
	}
	ok(order && seen == 3, "fewer pairs first, then segments with as many "
	    "as fit");
	ok(lpo_errcode(ctx) == LPO_ENOMEM && strstr(lpo_errmsg(ctx),
	    "needs") != NULL, "at last: %s", lpo_errmsg(ctx));
	lpo_clear(ctx);
	drop(&a);
}

/* Scores half done, gone on with in chunks of another size. */
static void
other_chunks(void)
{
	char dir[] = "/tmp/lpo-train-XXXXXX";
	struct lpo_lpo_options o = options();
	struct rig a, b = { NULL };
	int64_t done, total;

	o.cut.scoring = 1;
	if (mkdtemp(dir) == NULL || make(&a, 0, &o) < 0)
		return;
	while (lpo_lpo_where(a.l, &done, &total) != LPO_PH_SCORE || done < 5)
		if (lpo_lpo_advance(a.l) < 0)
			break;
	o.cut.scoring = 3;
	if (make(&b, 0, &o) == 0 && save_to(a.l, dir) == 0 &&
	    restore_from(b.l, dir) == 0) {
		lpo_lpo_where(b.l, &done, &total);
		ok(done == 1 && total == 3, "5 chunks of 1 are 1 of 3 (%lld "
		    "of %lld)", (long long)done, (long long)total);
		ok(iterations(a.l, 1) >= 0 && iterations(b.l, 1) >= 0 &&
		    equal(a.l, b.l), "and the same bits come out");
	}
	ok(lpo_errcode(ctx) == 0, "no error %s", lpo_errmsg(ctx));
	lpo_clear(ctx);
	drop(&a);
	drop(&b);
	lpo_rmtree(ctx, dir);
}

/* Candidates of step s lie at prev(t): `real` scores them there. */
static void
timestep(int real)
{
	struct lpo_lpo_options o = options();
	float *x, score[K];
	int64_t t[K], who, k, s = 1;
	int right;
	struct rig a = { NULL };

	o.real_timestep = real;
	if (make(&a, 0, &o) < 0 || to_scores(a.l) < 0)
		goto out;
	x = malloc((size_t)(K * a.l->count) * sizeof(*x));
	for (k = 0; k < K; k++) {
		lpo_lpo_candidate(a.l, x + k * a.l->count, s, 0, k);
		t[k] = real ? 251 : 501;
	}
	who = a.l->prompt[0];
	lpo_lrm_scorer_score(a.l->scorer, score, NULL, lrm_texts, x, &who, t,
	    1);
	/* on CUDA a row's bits may depend on how many there are */
	for (k = 0, right = 1; k < K; k++)
		right &= fabs(score[k] - a.l->score[s * PROMPTS * K + k]) <=
		    (on_cuda(&be) ? 1e-5 * fabs(score[k]) : 0);
	ok(a.l->ddim[s].t == 501 && a.l->ddim[s].prev == 251 && right,
	    "%s timestep: candidates of t 501 are scored at %lld",
	    real ? "real" : "official", (long long)t[0]);
	free(x);
out:
	finish(&a, NULL, "timestep");
}

/* ------------------------------------------------------------- in halves */

/* Refused, and no harm done. */
static int
refused(int rc)
{
	lpo_clear(ctx);
	return rc == LPO_EINVAL;
}

/* Two evaluations under way beside one after the other; then another's. */
static void
policy_in_halves(void)
{
	struct lpo_lpo_options o = options();
	const int64_t t[2] = { 501, 251 }, who[2] = { 1, 0 };
	struct rig a = { NULL };
	lpo_policy *p, *other;
	size_t n;
	float *x, *y[4];
	int i;

	if (make(&a, 0, &o) < 0 || to_training(a.l) < 0)
		goto out;
	lpo_lpo_settle(a.l);
	p = a.l->train;
	other = a.l->rollout;
	x = lpo_lpo_at(a.l->x, a.l, 1, 0);	/* two latents */
	n = (size_t)(2 * a.l->count);
	for (i = 0; i < 4; i++)
		y[i] = calloc(n, sizeof(float));
	lpo_lpo_advance(a.l);		/* policy and reference are two now */
	lpo_lpo_settle(a.l);
	lpo_policy_eval(p, y[0], texts, x, t, who, 2, LPO_LORA_OFF);
	lpo_policy_eval(p, y[1], texts, x, t, who, 2, 0);
	lpo_policy_start(p, texts, x, t, who, 2, LPO_LORA_OFF);
	lpo_policy_start(p, texts, x, t, who, 2, 0);
	ok(refused(lpo_policy_start(p, texts, x, t, who, 2, 0)) &&
	    refused(lpo_policy_eval(p, y[2], texts, x, t, who, 2, 0)) &&
	    refused(lpo_policy_backward(p, x, 2)),
	    "a third evaluation is refused, eval and backward beside two");
	lpo_policy_finish(p, y[2]);
	lpo_policy_finish(p, y[3]);
	ok(memcmp(y[0], y[2], n * 4) == 0 && memcmp(y[1], y[3], n * 4) == 0 &&
	    memcmp(y[0], y[1], n * 4) != 0,
	    "two evaluations in halves have the bits of whole ones");
	ok(refused(lpo_policy_finish(p, y[3])),
	    "what was not started does not finish");
	/* inputs there early, alone and with another network between */
	lpo_policy_ready(p, texts, t, who, 2);
	lpo_policy_eval(p, y[2], texts, x, t, who, 2, 0);
	lpo_policy_ready(p, texts, t, who, 2);
	lpo_policy_eval(other, y[0], texts, x, who, who, 2, 0);
	lpo_policy_eval(p, y[3], texts, x, t, who, 2, 0);
	ok(memcmp(y[1], y[2], n * 4) == 0 && memcmp(y[1], y[3], n * 4) == 0,
	    "inputs set ahead: the same bits, also after another network");
	for (i = 0; i < 4; i++)
		free(y[i]);
out:
	finish(&a, NULL, "policy in halves");
}

static void
scorer_in_halves(void)
{
	struct lpo_lpo_options o = options();
	const int64_t t[4] = { 501, 501, 251, 251 }, who[2] = { 1, 0 };
	float *x, whole[4], part[4], v[4096], w[4096];
	struct rig a = { NULL };
	lpo_lrm_scorer *s;
	size_t bytes;

	o.cut.scoring = 1;
	if (make(&a, 0, &o) < 0 || to_scores(a.l) < 0)
		goto out;
	lpo_lpo_settle(a.l);
	s = a.l->scorer;
	x = a.l->x;
	bytes = (size_t)(4 * lpo_lrm_feature_dim(lrm)) * sizeof(float);
	ok(bytes <= sizeof(v) && lpo_lrm_scorer_score(s, whole, v, lrm_texts,
	    x, who, t, 2) == 0, "scored whole");
	lpo_lrm_scorer_start(s, lrm_texts, x, who, t, 1);
	lpo_lrm_scorer_start(s, lrm_texts, x + 2 * a.l->count, who + 1, t + 2,
	    1);
	ok(refused(lpo_lrm_scorer_start(s, lrm_texts, x, who, t, 1)) &&
	    refused(lpo_lrm_scorer_score(s, part, NULL, lrm_texts, x, who, t,
	    1)), "a third scoring is refused, and a whole one beside two");
	lpo_lrm_scorer_finish(s, part, w);
	lpo_lrm_scorer_finish(s, part + 2, w + bytes / 2 / sizeof(*w));
	ok(memcmp(whole, part, sizeof(part)) == 0 && memcmp(v, w, bytes) == 0,
	    "scored in halves: the same bits");
	ok(refused(lpo_lrm_scorer_finish(s, part, NULL)) &&
	    refused(lpo_lrm_scorer_start(s, lrm_texts, x, who, t, 2)),
	    "nothing to finish; more than a chunk is refused");
out:
	finish(&a, NULL, "scorer in halves");
}

/* ----------------------------------------------------------------- ahead */

/* Many small pieces: of 8 pairs at most, batches of 3 in parts of 2. */
static struct lpo_lpo_options
small_pieces(void)
{
	struct lpo_lpo_options o = options();

	o.batch = 3;
	o.cut = (struct lpo_lpo_cut){ 1, 2, 3, LPO_SEGMENTS_AUTO };
	return o;
}

/* What a snapshot would hold of the rollout and its scores. */
static int
same_state(const lpo_lpo *a, const lpo_lpo *b)
{
	int64_t rolled = a->phase == LPO_PH_ROLLOUT ? a->index : a->last;
	size_t row = (size_t)(PROMPTS * a->count) * sizeof(float);

	return a->phase == b->phase && a->index == b->index &&
	    memcmp(&a->report, &b->report, sizeof(a->report)) == 0 &&
	    memcmp(a->x, b->x, (size_t)(rolled + 1) * row) == 0 &&
	    memcmp(a->mu, b->mu, (size_t)rolled * row) == 0 &&
	    memcmp(a->score, b->score, (size_t)(STEPS * PROMPTS * K) *
	    sizeof(float)) == 0;
}

/*
 * One trainer works ahead and one does not.  After each piece they are the
 * same, and a third one goes on from the first's snapshot to the same end.
 */
static void
ahead(int full)
{
	const char *what = full ? "whole UNet" : "LoRA";
	struct lpo_lpo_options o = small_pieces();
	char dir[] = "/tmp/lpo-train-XXXXXX";
	struct rig a = { NULL }, b = { NULL }, c = { NULL }, end = { NULL };
	int same = 1, resumed_same = 1, started = 0, pieces = 0;

	if (mkdtemp(dir) == NULL || make_two(&a, &b, full, &o) < 0 ||
	    make(&end, full, &o) < 0 || iterations(end.l, 2) < 0)
		goto out;
	a.l->ahead = 1;
	b.l->ahead = 0;
	while (lpo_lpo_iteration(a.l) < 1) {
		if (lpo_lpo_advance(a.l) < 0 || lpo_lpo_advance(b.l) < 0 ||
		    save_to(a.l, dir) < 0 || make(&c, full, &o) < 0 ||
		    restore_from(c.l, dir) < 0)
			goto out;
		started |= a.l->scoring > 0 ? 1 : 0;
		started |= a.l->scoring == 0 ? 4 : 0;
		started |= a.l->referring >= 0 && a.l->policing >= 0 ? 2 : 0;
		same &= same_state(a.l, b.l) && equal(a.l, b.l);
		c.l->ahead = pieces++ % 2;
		resumed_same &= iterations(c.l, 2) >= 0 &&
		    equal(c.l, end.l);
		drop(&c);
	}
	ok(started == 7, "%s: chunks and batches are begun ahead", what);
	ok(same, "%s: after each of %d pieces the state is the same", what,
	    pieces);
	ok(resumed_same, "%s: and goes on from any to the same bits", what);
	ok(iterations(a.l, 2) >= 0 && equal(a.l, end.l), "%s: and does itself",
	    what);
out:
	finish(&a, &b, what);
	drop(&c);
	drop(&end);
	lpo_rmtree(ctx, dir);
}

/* A check between any two pieces takes the networks away. */
static void
ahead_and_checked(void)
{
	struct lpo_lpo_options o = small_pieces();
	struct lpo_lpo_check c;
	struct rig a = { NULL }, b = { NULL };
	int rc = 0;

	if (make_two(&a, &b, 0, &o) < 0)
		goto out;
	a.l->ahead = 1;
	while (rc >= 0 && lpo_lpo_iteration(a.l) < 2)
		if ((rc = lpo_lpo_advance(a.l)) >= 0)
			rc = lpo_lpo_check(a.l, &c);
	ok(rc >= 0 && iterations(b.l, 2) >= 0 && equal(a.l, b.l),
	    "a check after each piece: the same bits");
out:
	finish(&a, &b, "ahead and checked");
}

/* The n-th convolution from now on fails, once. */
static struct {
	const struct lpo_kernels *real;
	struct lpo_kernels table;
	int64_t left;
} fault;

static int
faulty_conv(lpo_backend *b, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s, void *scratch)
{
	return fault.left-- == 0 ? LPO_ENOMEM : fault.real->conv_fwd(b, dt, y,
	    x, w, bias, residual, s, scratch);
}

/* An error leaves nothing under way, and the piece can be done again. */
static void
ahead_and_failing(void)
{
	struct lpo_lpo_options o = small_pieces();
	struct rig a = { NULL }, b = { NULL };
	int64_t n, step;
	int failed = 0, same = 1, settled = 1;

	fault.real = be.k;
	fault.table = *be.k;
	fault.table.conv_fwd = faulty_conv;
	fault.left = INT64_MAX;
	be.k = &fault.table;
	if (make(&b, 0, &o) < 0 || iterations(b.l, 1) < 0)
		goto out;
	step = INT64_MAX - fault.left;	/* convolutions of an iteration */
	for (n = 0; n < 17; n++) {
		if (make(&a, 0, &o) < 0)
			goto out;
		a.l->ahead = 1;
		fault.left = n * step / 17;
		while (lpo_lpo_iteration(a.l) < 1) {
			if (lpo_lpo_advance(a.l) >= 0)
				continue;
			failed++;
			settled &= lpo_errcode(ctx) == LPO_ENOMEM &&
			    a.l->scoring < 0 && a.l->referring < 0 &&
			    a.l->policing < 0;
			lpo_clear(ctx);
		}
		same &= equal(a.l, b.l);
		drop(&a);
	}
	ok(failed >= 16 && settled, "%d failures on the way leave nothing "
	    "begun", failed);
	ok(same, "and what is done again has the same bits");
out:
	finish(&a, &b, "ahead and failing");
	be.k = fault.real;
}

static void
test_level(const char *level)
{
	static const char *const prompts[ALL] = { "a red circle",
	    "two large blue squares", "a small grey star" };
	lpo_text *text = NULL;

	printf("# at level %s\n", level);
	if (lpo_text_open(ctx, &be, &text, "demo/model", LPO_F32) < 0 ||
	    lpo_policy_texts_new(ctx, &texts, text, prompts, ALL) < 0 ||
	    lpo_lrm_new(ctx, &be, &lrm, "demo/model", LPO_F32, NULL, NULL,
	    1) < 0 || lpo_lrm_texts_new(ctx, &lrm_texts, lrm, prompts,
	    ALL) < 0 || lpo_schedule_load(ctx, &schedule, "demo/model") < 0) {
		ok(0, "%s: %s", level, lpo_errmsg(ctx));
		exit(1);
	}
	length = lpo_text_length(text);
	dim = lpo_text_dim(text);
	one_bad_pair(NAN, "NaN");
	one_bad_pair(-INFINITY, "-Inf");
	huge();
	resumed(0);
	resumed(1);
	five_in_a_row();
	bad_score();
	health();
	beginning(0);
	beginning(1);
	beginning_in_parts();
	/* a network that predicts v; the step itself: tests/golden/lpo.c */
	schedule.prediction = LPO_PREDICT_V;
	beginning(0);
	schedule.prediction = LPO_PREDICT_EPSILON;
	if (!on_cuda(&be)) {	/* there rows may depend on their number */
		micro_batches();
		cuts();
		other_chunks();
	}
	memory();
	timestep(0);
	timestep(1);
	policy_in_halves();
	scorer_in_halves();
	ahead(0);
	ahead(1);
	ahead_and_checked();
	ahead_and_failing();
	lpo_text_free(text);
	lpo_lrm_texts_free(lrm_texts);
	lpo_lrm_free(lrm);
	lpo_policy_texts_free(texts);
	lpo_schedule_free(&schedule);
}

int
main(void)
{
	static const char *const levels[] = { "auto", "cuda" };
	int i;

	ctx = lpo_ctx_new();
	for (i = 0; i < 2; i++)
		if (backend_open(&be, levels[i], 1, 0)) {
			test_level(levels[i]);
			backend_close(&be);
		}
	lpo_ctx_free(ctx);
	return done_testing();
}
