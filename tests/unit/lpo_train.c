/*
 * The LPO trainer: values that are not finite never reach the weights; the
 * reference; micro-batches and state of a whole UNet; the held-out check; the
 * timestep that candidates are scored at.
 */
#include <math.h>

#include "tests/unit/lpo_rig.h"

/* ------------------------------------------------------------ not finite */

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

/* x_t of a pair, all of it */
static void
poison(lpo_lpo *l, const struct lpo_transition *tr, float v)
{
	float *x = lpo_lpo_at(l->x, l, tr->s, tr->p);
	int64_t i;

	for (i = 0; i < l->count; i++)
		x[i] = v;
}

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
	if (in_folder(a.l, dir, lpo_lpo_save) < 0 ||
	    in_folder(b.l, dir, lpo_lpo_restore) < 0)
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
	if (in_folder(a.l, dir, lpo_lpo_save) < 0 ||
	    in_folder(b.l, dir, lpo_lpo_restore) < 0)
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
	if (make(&b, 0, &o) == 0 && in_folder(a.l, dir, lpo_lpo_save) == 0 &&
	    in_folder(b.l, dir, lpo_lpo_restore) == 0) {
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

static void
tests(void)
{
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
}

int
main(void)
{
	return each_device(tests);
}
