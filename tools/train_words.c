/* lpo-train: the plan, the step line, metrics, and what looks unhealthy. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/progress.h"
#include "tools/train.h"

static void
plan_settings(struct train_run *r)
{
	const struct lpo_lpo_options *o = &r->lo;
	lpo_cli *cli = r->cli;
	int64_t n = lpo_params_state_count(lpo_lpo_params(r->trainer), 0,
	    INT32_MAX) / 3;

	lpo_cli_plan(cli, "run", "%s", lpo_cli_run(cli));
	lpo_cli_plan(cli, "prompts", "%lld", (long long)r->trained);
	lpo_cli_plan(cli, "iterations", "%lld of %lld prompts",
	    (long long)r->iterations, (long long)o->prompts);
	lpo_cli_plan(cli, "transitions per iteration", "%lld",
	    (long long)(o->steps * o->prompts));
	lpo_cli_plan(cli, "pairs per optimiser step", "%lld",
	    (long long)o->batch);
	lpo_cli_plan(cli, "learning rate", "%g", r->lr);
	lpo_cli_plan(cli, "threshold", "%s", r->threshold);
	lpo_cli_plan(cli, "latent", "%lld x %lld", (long long)o->h,
	    (long long)o->w);
	if (r->lora != NULL)
		lpo_cli_plan(cli, "LoRA", "rank %lld, %lld parameters",
		    (long long)lpo_lora_rank(r->lora), (long long)n);
	else
		lpo_cli_plan(cli, "whole UNet", "%lld parameters",
		    (long long)n);
	if (r->check_every > 0)
		lpo_cli_plan(cli, "check", "%lld prompts each %lld iterations",
		    (long long)o->check_prompts, (long long)r->check_every);
}

/* What the run takes, part by part. */
static void
plan_memory(struct train_run *r, const struct lpo_lpo_plan *p)
{
	lpo_params *trained = lpo_lpo_params(r->trainer);
	lpo_cli *cli = r->cli;

	lpo_cli_plan(cli, "at once", "rollout %lld prompts, training %lld "
	    "pairs, scoring %lld transitions; segments %s",
	    (long long)p->cut.rollout, (long long)p->cut.pairs,
	    (long long)p->cut.scoring, p->cut.segments == LPO_SEGMENTS_ON ?
	    "on" : "off");
	if (r->lora != NULL) {
		lpo_cli_plan_bytes(cli, "UNet",
		    lpo_unet_params(r->unet)->bytes);
		lpo_cli_plan_bytes(cli, "LoRA and optimiser", trained->bytes);
	} else {
		lpo_cli_plan_bytes(cli, "UNet, gradients and optimiser",
		    trained->bytes);
		lpo_cli_plan_bytes(cli, "reference UNet",
		    lpo_unet_params(r->reference)->bytes);
	}
	lpo_cli_plan_bytes(cli, "reward model", r->reward_bytes);
	lpo_cli_plan_bytes(cli, "activations", (int64_t)p->activation_bytes);
	lpo_cli_plan_bytes(cli, "rollouts", (int64_t)p->host_bytes);
	lpo_cli_plan_bytes(cli, "encoded prompts, of an iteration",
	    (int64_t)p->text_bytes);
	lpo_cli_plan_bytes(cli, "program", lpo_cli_dry_program(&r->dry));
	lpo_cli_plan_memory(cli, &r->dry);
	lpo_cli_plan_bytes(cli, "encoded prompts on disk",
	    (lpo_policy_texts_row_bytes(r->texts) +
	    lpo_lrm_texts_row_bytes(r->lrm_texts)) * (r->prompts.n + 1));
	lpo_cli_plan_bytes(cli, "saved states on disk", 2 *
	    (int64_t)(sizeof(float) * (size_t)lpo_params_state_count(trained,
	    0, INT32_MAX) + p->state_bytes));
}

/* Share of the transitions that are pairs, as far as one can know before. */
static double
valid(const struct train_run *r)
{
	const struct lpo_threshold *th = &r->lo.threshold;

	return th->kind == LPO_TH_QUANTILE ? th->share : 0.5;
}

/*
 * What each phase takes, by the time of its networks' parts here and now; on
 * a device by its speed, of which the networks reach about half.
 */
static int
plan_time(struct train_run *r, const struct lpo_lpo_plan *p)
{
	double n = (double)r->iterations, rate, load, all, flops = 0, s[3];
	double pairs = valid(r) * (double)p->transitions;
	const double rows = (double)(r->lo.steps * r->lo.prompts);
	struct lpo_lpo_time t;
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_lpo_time(r->trainer, &t)) < 0)
		return rc;
	if (isnan(t.rollout)) {
		rate = lpo_cli_speed(cli, r->parts.dtype) * 1e9 / 2;
		s[0] = p->rollout_flops / rate;
		s[1] = p->score_flops / rate;
		s[2] = p->pair_flops * pairs / rate;
		r->text_s = 0;
	} else {
		s[0] = t.rollout * rows;
		s[1] = t.score * (double)p->transitions;
		s[2] = t.pair * pairs;
	}
	load = r->text_s + lpo_cli_load_s(r->weights_bytes);
	if (r->check_every > 0)
		flops = (double)(r->iterations / r->check_every) *
		    lpo_lpo_check_flops(r->trainer);
	all = load + n * (s[0] + s[1] + s[2]) + (p->rollout_flops > 0 ?
	    flops / p->rollout_flops * s[0] : 0);
	lpo_cli_plan_seconds(cli, "time to load and to encode prompts", load);
	lpo_cli_plan_seconds(cli, "time of an iteration's rollout", s[0]);
	lpo_cli_plan_seconds(cli, "time of its scoring", s[1]);
	lpo_cli_plan(cli, "time of its training", "%.1f s, %.0f %% of the "
	    "transitions being valid", s[2], 100 * valid(r));
	lpo_cli_plan_seconds(cli, "time in all", all);
	return LPO_CLI_DONE;
}

int
lpo_traintool_plan(struct train_run *r)
{
	struct lpo_lpo_plan p;

	lpo_lpo_plan(r->trainer, &p);
	plan_settings(r);
	plan_memory(r, &p);
	lpo_cli_plan(r->cli, "GFLOP per iteration", "rollout %.1f, scoring "
	    "%.1f, %.2f per valid pair, %.2f of it by segments",
	    p.rollout_flops / 1e9, p.score_flops / 1e9, p.pair_flops / 1e9,
	    p.recompute_flops / 1e9);
	return plan_time(r, &p);
}

double
lpo_traintool_part(const struct train_run *r, const struct lpo_lpo_plan *p)
{
	double work[3] = { p->rollout_flops, p->score_flops, 0 }, sum, part;
	int64_t done, total;
	int phase = (int)lpo_lpo_where(r->trainer, &done, &total), i;

	/* pairs as in the last iteration, else as a plan has them */
	work[2] = p->pair_flops * (r->finished > 0 ? (double)r->pairs_done /
	    (double)r->finished : valid(r) * (double)p->transitions);
	sum = work[0] + work[1] + work[2];
	part = total > 0 ? work[phase] * (double)done / (double)total : 0;
	for (i = 0; i < phase; i++)
		part += work[i];
	return sum > 0 ? part / sum : 0;
}

/* ----------------------------------------------------------------- health */

static void
say_steps(struct train_run *r, const struct lpo_lpo_report *p)
{
	lpo_cli_note(r->cli, "iteration %lld: %lld of %lld steps had a loss or "
	    "gradient that is not finite and were left out, the first %s "
	    "prompt %lld ('%.60s'), timestep %lld: lower --lr, or try "
	    "--precision f32", (long long)p->iteration + 1,
	    (long long)p->skipped_steps,
	    (long long)(p->skipped_steps + p->batches),
	    p->bad_loss ? "for the loss of" : "in a batch that begins with",
	    (long long)p->bad_prompt, r->prompts.text[p->bad_prompt],
	    (long long)p->bad_t);
}

/* Skips are counted each time; the rest is said once. */
static void
health(struct train_run *r, const struct lpo_lpo_report *p)
{
	double first = lpo_lpo_first_spread(r->trainer);
	int h = lpo_lpo_health(p, first), new = h & ~r->warned;
	lpo_cli *cli = r->cli;

	r->warned |= h;
	if (new & LPO_H_FEW_PAIRS)
		lpo_cli_note(cli, "only %.1f %% of the transitions are valid "
		    "pairs: the reward model tells candidates apart by less "
		    "than the threshold; lower it, or let --threshold "
		    "quantile:0.6 set it from the scores", p->transitions ?
		    100 * (double)p->valid / (double)p->transitions : 0);
	if (new & LPO_H_SPREAD)
		lpo_cli_note(cli, "the candidates' scores spread half as much "
		    "as at the start (%.3f, was %.3f): the policy is "
		    "narrowing; an earlier --save-every file may be the "
		    "better one, or lower --lr", p->score_spread, first);
	if (new & LPO_H_CLIPPED)
		lpo_cli_note(cli, "%.0f %% of the probability ratios are "
		    "clipped: those pairs teach nothing; lower --lr or raise "
		    "--clip", 50 * (p->clipped_win + p->clipped_lose));
	if (h & LPO_H_STEPS)
		say_steps(r, p);
	if (h & LPO_H_SCORES)
		lpo_cli_note(cli, "iteration %lld: %lld of %lld transitions "
		    "had scores that are not finite and are no pairs: look at "
		    "the reward model, or lower --lr", (long long)p->iteration
		    + 1, (long long)p->bad_scores, (long long)p->transitions);
}

/* ---------------------------------------------------------------- figures */

static int
metrics(struct train_run *r, const struct lpo_lpo_report *p)
{
	const struct { const char *name; double v; } m[] = {
		{ "transitions", (double)p->transitions },
		{ "valid", (double)p->valid },
		{ "valid_t0751", (double)p->valid_in[0] },
		{ "valid_t0501", (double)p->valid_in[1] },
		{ "valid_t0251", (double)p->valid_in[2] },
		{ "valid_t0000", (double)p->valid_in[3] },
		{ "bad_scores", (double)p->bad_scores },
		{ "score_mean", p->score_mean },
		{ "score_spread", p->score_spread },
		{ "margin_mean", p->margin_mean },
		{ "loss", p->loss },
		{ "implicit_accuracy", p->implicit_accuracy },
		{ "ratio_win", p->ratio_win },
		{ "ratio_lose", p->ratio_lose },
		{ "clipped_win", p->clipped_win },
		{ "clipped_lose", p->clipped_lose },
		{ "grad_norm", p->grad_norm },
		{ "skipped_steps", (double)p->skipped_steps },
		{ "optimiser_steps",
		    (double)lpo_lpo_optimiser_steps(r->trainer) },
		{ "threshold_scale", lpo_lpo_threshold(r->trainer)->scale },
		{ "check_score", r->check.policy },
		{ "check_reference", r->check.reference },
		{ "check_win_rate", r->check.win_rate }
	};
	size_t i, n = sizeof(m) / sizeof(*m);
	int rc = 0;

	if (r->checked != p->iteration + 1)
		n -= 3;
	for (i = 0; i < n && rc == 0; i++)
		rc = lpo_cli_metric(r->cli, m[i].name, p->iteration + 1,
		    m[i].v);
	return rc;
}

static void
step_line(struct train_run *r, const struct lpo_lpo_report *p)
{
	double s = lpo_cli_now() - r->start_s;
	int64_t left = r->iterations - p->iteration - 1;
	char time[48];

	r->pairs_done += p->pairs;
	r->finished++;
	if (!lpo_cli_want_lines(r->cli))
		return;
	lpo_cli_progress_end(r->cli);
	fprintf(stderr, "iteration %lld/%lld  pairs %lld/%lld "
	    "(t>750 %lld, >500 %lld, >250 %lld, rest %lld)  score %.3f "
	    "spread %.3f margin %.3f  loss %.4f acc %.2f clip %.2f/%.2f "
	    "grad %.3g  %.1f pairs/s", (long long)p->iteration + 1,
	    (long long)r->iterations, (long long)p->valid,
	    (long long)p->transitions, (long long)p->valid_in[0],
	    (long long)p->valid_in[1], (long long)p->valid_in[2],
	    (long long)p->valid_in[3], p->score_mean, p->score_spread,
	    p->margin_mean, p->loss, p->implicit_accuracy, p->clipped_win,
	    p->clipped_lose, p->grad_norm, (double)r->pairs_done / s);
	if (left > 0) {
		lpo_duration_text(time, sizeof(time), (double)left * s /
		    (double)r->finished);
		fprintf(stderr, ", %s left", time);
	}
	if (r->checked == p->iteration + 1)
		fprintf(stderr, "  check %.4f (reference %.4f, %+.4f; higher "
		    "in %.0f %% of %lld)", r->check.policy,
		    r->check.reference, r->check.policy - r->check.reference,
		    100 * r->check.win_rate, (long long)r->check.n);
	fputc('\n', stderr);
}

int
lpo_traintool_tell(struct train_run *r)
{
	const struct lpo_lpo_report *p = lpo_lpo_report(r->trainer);

	step_line(r, p);
	health(r, p);
	return metrics(r, p);
}
