/* lpo-lrm: noisy latent pairs to a reward model; and scoring with one. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/db.h"
#include "tools/lrm.h"

#define OPTIMISER_S	4e-9	/* a parameter's norm and AdamW */
#define STEP_LINE_S	5.0	/* between two step lines */

#define OFF(m)	offsetof(struct lrm_opts, m)
#define R	LPO_CLI_RESULT

static const struct lpo_cli_option options[] = {
	{ "How long", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "steps", 0, "N", "optimiser steps (default: pairs / batch)",
	    LPO_CLI_I64, OFF(steps), R, 1, 1e9 },
	{ "batch", 0, "N", "pairs per step (default 128)", LPO_CLI_I64,
	    OFF(batch), R, 1, 1e6 },
	{ "micro-batch", 0, "N", "pairs at once, at most (default: what fits)",
	    LPO_CLI_I64, OFF(micro_batch), 0, 1, 1e6 },
	{ "segments", 0, "auto|on|off", "walk the UNet's layers again in "
	    "backward instead of keeping them (default auto: where not one "
	    "pair fits without)", LPO_CLI_CHOICE, OFF(segments), 0, 0, 0 },
	{ "Optimiser", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "lr", 0, "X", "peak learning rate (default 1e-5)", LPO_CLI_F64,
	    OFF(lr), R, 0, 10 },
	{ "warmup", 0, "N", "steps of warm-up (default: steps / 8)",
	    LPO_CLI_I64, OFF(warmup), R, 0, 1e9 },
	{ "schedule", 0, "official|cosine|constant|linear", "official: log "
	    "warm-up, linear decay", LPO_CLI_CHOICE, OFF(schedule), R, 0, 0 },
	{ "weight-decay", 0, "X", "default 0.3", LPO_CLI_F64,
	    OFF(weight_decay), R, 0, 10 },
	{ "max-grad-norm", 0, "X", "default 1; 0: no clipping", LPO_CLI_F64,
	    OFF(max_grad_norm), R, 0, 1e9 },
	{ "criterion", 0, "pair|batch|both", "what a score is held against "
	    "(default pair)", LPO_CLI_CHOICE, OFF(criterion), R, 0, 0 },
	{ "batch-coeff", 0, "X", "weight of batch in both (default 1)",
	    LPO_CLI_F64, OFF(batch_coeff), R, 0, 1e6 },
	{ "aux-coeff", 0, "X", "weight of pairs with two timesteps "
	    "(default 1)", LPO_CLI_F64, OFF(aux), R, 0, 1e6 },
	{ "Model", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "guidance", 0, "X", "of the features (default 7.5; 1: none)",
	    LPO_CLI_F64, OFF(guidance), R, 0, 100 },
	{ "multi-scale", 0, "on|off", "pool the down blocks too",
	    LPO_CLI_CHOICE, OFF(multi), R, 0, 0 },
	{ "multi-scale-cfg", 0, "off|on", "guide them too", LPO_CLI_CHOICE,
	    OFF(multi_cfg), R, 0, 0 },
	{ "freeze-text", 0, NULL, "leave the text encoder as it is",
	    LPO_CLI_FLAG, OFF(freeze), R, 0, 0 },
	{ "text-projection", 0, "FILE", "file with "
	    "text_projection.weight to start from", LPO_CLI_STRING,
	    OFF(projection), 0, 0, 0 },
	{ "dtype", 0, "f32|bf16|f16", "of the weights written", LPO_CLI_CHOICE,
	    OFF(dtype), R, 0, 0 },
	{ "Checks", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "eval", 0, "PAIRS", "held-out pairs: accuracy by timestep",
	    LPO_CLI_STRING, OFF(eval), 0, 0, 0 },
	{ "eval-every", 0, "N", "steps between two checks (default: at the "
	    "end only)", LPO_CLI_I64, OFF(eval_every), R, 1, 1e9 },
	{ "keep", 0, "last|best", "which weights: the last, or the best by "
	    "--eval", LPO_CLI_CHOICE, OFF(keep), R, 0, 0 },
	{ "patience", 0, "N", "stop after N checks in a row that were no "
	    "better than an earlier one", LPO_CLI_I64, OFF(patience), R, 1,
	    1e9 },
	{ "Scoring", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "score", 0, NULL, "print the scores of PAIRS and train nothing",
	    LPO_CLI_FLAG, OFF(score), 0, 0, 0 },
	{ "reward", 'r', "DIR", "the reward model for --score",
	    LPO_CLI_STRING, OFF(reward), 0, 0, 0 },
	{ NULL, 0, NULL, NULL, 0, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-lrm", "noisy latent pairs to a latent reward model",
	"-m MODEL -o lrm/ [options] [pairs-*.tar ...]\n"
	"--score -r lrm/ [pairs-*.tar ...]", options
};

/* --------------------------------------------------------------- settings */

static int
settle(struct lrm_run *r)
{
	lpo_cli *cli = r->cli;
	const struct lrm_opts *o = r->o;
	int64_t pairs = lpo_lrmtool_pairs(r);

	r->t.batch = o->batch;
	r->t.micro_batch = o->micro_batch;
	r->t.segments = (enum lpo_segments)o->segments;
	r->t.steps = o->steps;
	if (!lpo_cli_given(cli, "steps")) {
		if (pairs < 0)
			return lpo_cli_usage(cli, "the stream does not say "
			    "how many pairs it has: --steps is needed");
		r->t.steps = pairs / o->batch;
		if (r->t.steps < 1)
			return lpo_cli_usage(cli, "%lld pairs are no batch of "
			    "%lld (--batch)", (long long)pairs,
			    (long long)o->batch);
		if (pairs % o->batch != 0)
			lpo_cli_note(cli, "the last %lld of %lld pairs are no "
			    "batch and stay unused",
			    (long long)(pairs % o->batch), (long long)pairs);
	} else if (pairs >= 0 && r->t.steps > pairs / o->batch)
		return lpo_fail(cli->ctx, LPO_EINVAL, "%lld steps of %lld "
		    "need %lld pairs, there are %lld", (long long)r->t.steps,
		    (long long)o->batch, (long long)(r->t.steps * o->batch),
		    (long long)pairs);
	r->t.warmup = lpo_cli_given(cli, "warmup") ? o->warmup :
	    r->t.steps / 8;
	r->t.lr = o->lr;
	r->t.weight_decay = o->weight_decay;
	r->t.max_grad_norm = o->max_grad_norm;
	r->t.schedule = (enum lpo_lr_schedule)o->schedule;
	r->t.criterion = (enum lpo_lrm_criterion)o->criterion;
	r->t.batch_coeff = o->batch_coeff;
	r->t.aux_coeff = o->aux;
	r->t.freeze_text = o->freeze;
	r->t.h = r->shape[1];
	r->t.w = r->shape[2];
	lpo_cli_resolved(cli, "steps", json_integer(r->t.steps));
	lpo_cli_resolved(cli, "warmup", json_integer(r->t.warmup));
	return 0;
}

/* What the model is and where it comes from, for lrm.json. */
static void
origin(struct lrm_run *r)
{
	struct lpo_lrm_config f = { 0 };
	const json_t *latent = lpo_json_get(lpo_shards_run(r->in), "latent");
	const char *sha = json_string_value(lpo_json_get(latent,
	    "vae_sha256"));

	snprintf(f.run, sizeof(f.run), "%s", lpo_cli_run(r->cli));
	snprintf(f.base_sha256, sizeof(f.base_sha256), "%s",
	    lpo_cli_input_value(r->cli, "model"));
	if (sha != NULL)
		snprintf(f.vae_sha256, sizeof(f.vae_sha256), "%s", sha);
	f.scaling_factor = json_number_value(lpo_json_get(latent,
	    "scaling_factor"));
	lpo_lrm_set_origin(r->m, &f);
}

/* The run that wrote a folder, "" for another's; ENOTFOUND: none there. */
static int
existing(lpo_ctx *c, const char *path, char run[17])
{
	char *file;
	json_t *j = NULL;
	const char *id;
	int rc;

	run[0] = '\0';
	if (!lpo_file_exists(path))
		return LPO_ENOTFOUND;
	if ((file = lpo_path_join(c, path, "lrm.json")) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_json_load_file(c, &j, file, 0)) != 0)
		rc = lpo_cli_foreign(c, rc);
	else if ((id = json_string_value(lpo_json_get(j, "run"))) != NULL &&
	    strlen(id) == 16)
		memcpy(run, id, 17);
	json_decref(j);
	lpo_free(file);
	return rc;
}

/* ------------------------------------------------------------------- plan */

static int
print_plan(struct lrm_run *r)
{
	struct lpo_lrm_train_plan p;
	lpo_cli *cli = r->cli;
	int64_t pairs = lpo_lrmtool_pairs(r);
	double s;
	int rc;

	lpo_lrm_trainer_plan(r->plan, &p);
	if (pairs >= 0)
		lpo_cli_plan(cli, "pairs", "%lld", (long long)pairs);
	lpo_cli_plan(cli, "latent", "%lld x %lld x %lld",
	    (long long)r->shape[0], (long long)r->shape[1],
	    (long long)r->shape[2]);
	lpo_cli_plan(cli, "steps", "%lld of %lld pairs",
	    (long long)r->t.steps, (long long)r->t.batch);
	lpo_cli_plan(cli, "warm-up", "%lld steps", (long long)r->t.warmup);
	lpo_cli_plan(cli, "micro-batch", "%lld pairs, %lld pass%s; segments "
	    "%s", (long long)p.micro_batch, (long long)p.passes,
	    p.passes == 1 ? "" : "es", p.segments == LPO_SEGMENTS_ON ? "on" :
	    "off");
	lpo_cli_plan(cli, "parameters", "%lld", (long long)p.parameters);
	lpo_cli_plan_bytes(cli, "weights", (int64_t)p.weight_bytes);
	lpo_cli_plan_bytes(cli, "gradients and optimiser",
	    (int64_t)p.state_bytes);
	lpo_cli_plan_bytes(cli, "activations", (int64_t)p.arena_bytes);
	lpo_cli_plan_bytes(cli, "program and input", lpo_cli_dry_program(&r->dry));
	lpo_cli_plan_memory(cli, &r->dry);
	lpo_cli_plan_bytes(cli, "saved states on disk", 2 * 12 *
	    p.parameters);
	lpo_cli_plan(cli, "GFLOP per step", "%.2f, %.2f of it by segments",
	    p.step_flops / 1e9, p.recompute_flops / 1e9);
	if ((rc = lpo_lrm_trainer_time(r->plan, &s)) < 0)
		return rc;
	if (isnan(s))
		s = p.step_flops / (lpo_cli_speed(cli, lpo_lrm_dtype(r->m)) *
		    1e9 / 2);
	else
		s += (double)p.parameters * OPTIMISER_S;
	lpo_cli_plan_seconds(cli, "time to load",
	    lpo_cli_load_s((int64_t)p.weight_bytes));
	lpo_cli_plan_seconds(cli, "time of a step", s);
	lpo_cli_plan_seconds(cli, "time in all",
	    lpo_cli_load_s((int64_t)p.weight_bytes) +
	    (double)r->t.steps * s);
	return LPO_CLI_DONE;
}

/* ------------------------------------------------------------------ train */

static void
say_skip(struct lrm_run *r, int64_t step, const struct lpo_lrm_step *st)
{
	int64_t at = st->bad >= 0 ? st->bad : 0;

	lpo_cli_note(r->cli, "step %lld: %s is not finite, the weights stay "
	    "as they are (%s pair '%s', timestep %lld)", (long long)step,
	    st->bad >= 0 ? "a score" : "loss or gradient", st->bad >= 0 ?
	    "first at" : "the batch begins with",
	    lpo_lrm_batch_key(r->batch, at),
	    (long long)lpo_lrm_batch_pairs(r->batch)[at].t[0]);
}

static int
tell_step(struct lrm_run *r, int64_t step, const struct lpo_lrm_step *st)
{
	const struct { const char *name; double v; } m[] = {
		{ "loss", st->loss }, { "accuracy", st->accuracy },
		{ "margin", st->margin }, { "grad_norm", st->grad_norm },
		{ "lr", st->lr }, { "scale", st->scale },
		{ "skipped", st->skipped }
	};
	double s = lpo_cli_now() - r->start_s;
	char extra[96];
	size_t i;
	int rc = 0, one;

	/* all of them, also where one has to wait: the step has been made */
	for (i = 0; i < sizeof(m) / sizeof(*m); i++)
		if ((one = lpo_cli_metric(r->cli, m[i].name, step,
		    m[i].v)) < 0)
			rc = one;
	if (st->skipped)
		say_skip(r, step, st);
	/* every step where steps are long; else now and then, and the ends */
	if (lpo_cli_want_lines(r->cli) && (step == r->t.steps ||
	    lpo_cli_now() - r->told_s >= STEP_LINE_S)) {
		r->told_s = lpo_cli_now();
		lpo_cli_progress_end(r->cli);
		fprintf(stderr, "step %lld/%lld  loss %.4f  accuracy %.3f  "
		    "margin %.3f  grad %.3g  lr %.3g  scale %.2f  "
		    "%.1f pairs/s\n", (long long)step, (long long)r->t.steps,
		    st->loss, st->accuracy, st->margin, st->grad_norm, st->lr,
		    st->scale, (double)r->t.batch / fmax(s, 1e-9));
	}
	snprintf(extra, sizeof(extra), "loss %.4f  accuracy %.3f", st->loss,
	    st->accuracy);
	lpo_cli_progress(r->cli, "train", step, r->t.steps, "steps", extra);
	return rc;
}

static int
one_step(struct lrm_run *r, int64_t step)
{
	struct lpo_lrm_step st;
	struct lpo_lrm_counters n;
	int rc, failed;

	r->start_s = lpo_cli_now();
	if ((rc = lpo_lrmtool_batch(r)) < 0)
		return rc;
	failed = lpo_lrm_trainer_step(r->trainer, &st,
	    lpo_lrm_batch_pairs(r->batch));
	/* the fifth bad step has counted, and its pairs are used */
	lpo_lrm_trainer_counters(r->trainer, &n);
	if (n.step == step) {
		r->safe_used = r->used;
		r->safe_crc = lpo_shards_crc32c(r->in);
		rc = tell_step(r, step, &st);
	}
	return failed < 0 ? failed : rc;
}

/* What follows a step: its evaluation, where one is due, and a snapshot. */
static int
after_step(struct lrm_run *r, int64_t step)
{
	int64_t every = r->o->eval_every, was = r->best_step;
	int rc, best;

	if (r->eval != NULL && every > 0 && step % every == 0 &&
	    r->eval_step != step && (rc = lpo_lrmtool_evaluate(r, step)) < 0)
		return rc;
	best = r->best_step != was && r->o->keep == LRM_KEEP_BEST;
	/* a new best is only safe once a snapshot names it */
	if (!best && (step == r->saved_step ||
	    !lpo_snap_due(r->snap, r->cli->o.checkpoint_s)))
		return 0;
	rc = lpo_lrmtool_save(r);
	return rc == 0 && best ? lpo_lrmtool_sweep(r) : rc;
}

/* What the stream still has: only its end record proves it was whole. */
static int
drain(struct lrm_run *r)
{
	int64_t said = lpo_lrmtool_pairs(r), n = r->used;
	struct lpo_sample s;
	int rc = 0;

	if (lpo_shards_files(r->in) > 0)
		return 0;
	while (rc == 0) {
		memset(&s, 0, sizeof(s));
		rc = lpo_lrmtool_next(r, &s);
		n += rc == 0;
		lpo_sample_clear(&s);
		if (rc == 0 && lpo_ctx_stopped(r->cli->ctx))
			rc = lpo_fail(r->cli->ctx, LPO_ESTOP, "stopped");
	}
	/* `cat a.tar b.tar |`: only the first was counted on */
	if (rc == 1 && said >= 0 && n > said)
		lpo_cli_note(r->cli, "the stream has %lld pairs, its first "
		    "run %lld: %lld stay unused (give the files by name to "
		    "use them all)", (long long)n, (long long)said,
		    (long long)(n - r->used));
	return rc == 1 ? 0 : rc;
}

static int
publish(struct lrm_run *r)
{
	char *best = NULL, name[32];
	int rc;

	if (r->o->keep != LRM_KEEP_BEST || r->best_step == 0)
		return lpo_lrm_save(r->m, r->output, lpo_lrmtool_storage(r));
	/* read and written again: the state stays whole until the end */
	snprintf(name, sizeof(name), "best-%09lld", (long long)r->best_step);
	if ((best = lpo_state_file(r->cli->ctx, r->state, name)) == NULL)
		return LPO_ENOMEM;
	lpo_lrm_trainer_free(r->trainer);
	r->trainer = NULL;
	lpo_lrm_batch_free(r->eval);
	lpo_lrm_batch_free(r->batch);
	r->eval = r->batch = NULL;
	lpo_lrm_free(r->m);
	r->m = NULL;
	if ((rc = lpo_lrm_open(r->cli->ctx, &r->cli->be, &r->m, best, NULL,
	    LPO_F32, NULL)) == 0 && (rc = lpo_lrm_save(r->m, r->output,
	    lpo_lrmtool_storage(r))) == 0)
		lpo_cli_note(r->cli, "kept: step %lld, accuracy %.3f",
		    (long long)r->best_step, r->best);
	lpo_free(best);
	return rc;
}

/*
 * --patience: so many checks without a better one.  A function of what a
 * snapshot holds, so that a resumed run ends where the other does.
 */
static int
enough(const struct lrm_run *r, int64_t step)
{
	return r->o->patience > 0 && r->eval_step == step && step > 0 &&
	    r->eval_step - r->best_step >= r->o->patience * r->o->eval_every;
}

static int
train_loop(struct lrm_run *r)
{
	struct lpo_lrm_counters n;
	int rc = 0;

	/* a step may be saved and its evaluation have been stopped */
	lpo_lrm_trainer_counters(r->trainer, &n);
	if (n.step > 0)
		rc = after_step(r, n.step);
	while (n.step < r->t.steps && rc == 0 && !enough(r, n.step)) {
		rc = one_step(r, n.step + 1);
		lpo_lrm_trainer_counters(r->trainer, &n);
		if (rc == 0)
			rc = after_step(r, n.step);
	}
	lpo_cli_progress_end(r->cli);
	if (rc < 0)
		return lpo_lrmtool_save_last(r, rc);
	/* of pairs that it was not patient enough for nothing is asked */
	if (n.step < r->t.steps)
		lpo_cli_note(r->cli, "ends at step %lld of %lld: no check "
		    "since step %lld was better", (long long)n.step,
		    (long long)r->t.steps, (long long)r->best_step);
	else
		rc = drain(r);
	if (rc == 0 && r->eval != NULL && r->eval_step != n.step)
		rc = lpo_lrmtool_evaluate(r, n.step);
	if (rc == 0)
		rc = lpo_db_flush(lpo_cli_db(r->cli));
	return rc < 0 ? rc : publish(r);
}

/* Inputs, run id, model, trainer: all before the first step. */
static int
prepare(struct lrm_run *r)
{
	struct lpo_lrm_config cfg = { .guidance = r->o->guidance,
	    .multi_scale = !r->o->multi, .multi_scale_cfg = r->o->multi_cfg };
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = lpo_lrm_new(cli->ctx, &cli->be, &r->m, cli->o.model,
	    lpo_cli_precision(cli), &cfg, r->o->projection,
	    cli->o.seed)) < 0 ||
	    (rc = lpo_lrmtool_open(r)) != 0 ||
	    (rc = lpo_cli_input_dir(cli, "model", cli->o.model)) < 0 ||
	    (rc = lpo_lrmtool_identify(r)) < 0 ||
	    (r->o->projection != NULL && (rc = lpo_cli_input_file(cli,
	    "text-projection", r->o->projection)) < 0) ||
	    (rc = settle(r)) != 0)
		return rc;
	/* it decides what is kept or how long, else only what is told */
	if ((r->o->keep == LRM_KEEP_BEST || r->o->patience > 0) &&
	    (rc = lpo_cli_input_file(cli, "eval", r->o->eval)) < 0)
		return rc;
	if ((rc = lpo_cli_begin(cli, r->output, existing)) != 0)
		return rc;
	origin(r);
	if ((rc = lpo_lrmtool_read_eval(r)) < 0 ||
	    (rc = lpo_lrm_batch_new(cli->ctx, &r->batch, r->m,
	    r->shape)) < 0)
		return rc;
	/* locked before the long loading, so that a second run is told soon */
	if (!cli->o.dry_run && (rc = lpo_state_open(cli->ctx, &r->state,
	    r->output, lpo_cli_run(cli), lpo_cli_run_options(cli),
	    cli->o.fresh)) < 0)
		return rc;
	if ((rc = lpo_lrmtool_fit(r, &cfg)) == 0 && !cli->o.dry_run)
		rc = lpo_lrm_trainer_new(cli->ctx, &r->trainer, r->m, &r->t);
	lpo_cli_tidy();
	/* no state of a run that cannot start: it would be in the way */
	if (rc != 0 && r->state != NULL && !lpo_state_found(r->state)) {
		lpo_state_remove(r->state);
		r->state = NULL;
	}
	return rc;
}

static int
contradictions(struct lrm_run *r)
{
	const struct lrm_opts *o = r->o;
	lpo_cli *cli = r->cli;

	if (o->reward != NULL)
		return lpo_cli_usage(cli, "--reward is for --score; what "
		    "training starts from is --model");
	if ((o->keep == LRM_KEEP_BEST || o->patience > 0) &&
	    (o->eval == NULL || o->eval_every == 0))
		return lpo_cli_usage(cli, "%s needs --eval and --eval-every",
		    o->patience > 0 ? "--patience" : "--keep best");
	if (o->eval_every > 0 && o->eval == NULL)
		return lpo_cli_usage(cli, "--eval-every needs --eval");
	if (lpo_cli_given(cli, "batch-coeff") && o->criterion != LPO_LRM_BOTH)
		return lpo_cli_usage(cli, "--batch-coeff is for --criterion "
		    "both");
	if (o->multi_cfg && o->multi)
		return lpo_cli_usage(cli, "--multi-scale-cfg on and "
		    "--multi-scale off contradict each other");
	if (o->multi_cfg && o->guidance == 1)
		return lpo_cli_usage(cli, "--multi-scale-cfg on and "
		    "--guidance 1 contradict each other");
	return 0;
}

static int
train(struct lrm_run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	if (lpo_cli_to_stdout(cli))
		return lpo_cli_usage(cli, "-o is needed: the folder of the "
		    "reward model");
	if ((rc = contradictions(r)) != 0 || (rc = prepare(r)) != 0)
		return rc;
	if (cli->o.dry_run)
		return print_plan(r);
	if ((rc = lpo_lrmtool_resume(r)) < 0 || (rc = train_loop(r)) < 0)
		return rc;
	lpo_snap_close(r->snap);
	r->snap = NULL;
	rc = lpo_state_remove(r->state);
	r->state = NULL;
	return rc;
}

/* "lrm/" is the folder lrm: its state and temporary names stand beside it. */
static int
trim_output(struct lrm_run *r)
{
	size_t n;

	if (r->cli->o.output == NULL)
		return 0;
	if ((r->output = lpo_strdup(r->cli->ctx, r->cli->o.output)) == NULL)
		return LPO_ENOMEM;
	for (n = strlen(r->output); n > 1 && r->output[n - 1] == '/';)
		r->output[--n] = '\0';
	/* it is exchanged for a new one, at the end of all the work */
	if (strcmp(r->output, ".") == 0 || strcmp(r->output, "..") == 0 ||
	    lpo_ends_with(r->output, "/.") || lpo_ends_with(r->output, "/.."))
		return lpo_cli_usage(r->cli, "-o '%s': a folder needs a name "
		    "of its own", r->output);
	return 0;
}

static void
release(struct lrm_run *r)
{
	lpo_snap_close(r->snap);
	lpo_state_close(r->state);
	lpo_lrm_trainer_free(r->trainer);
	lpo_lrmtool_unfit(r);
	lpo_lrm_batch_free(r->batch);
	lpo_lrm_batch_free(r->eval);
	lpo_sample_clear(&r->first);
	lpo_shards_close(r->in);
	lpo_lrm_free(r->m);
	lpo_free(r->output);
}

int
main(int argc, char **argv)
{
	struct lrm_opts o = { .batch = 128, .lr = 1e-5, .weight_decay = 0.3,
	    .guidance = LPO_LRM_GUIDANCE, .max_grad_norm = 1,
	    .batch_coeff = 1, .aux = 1 };
	struct lrm_run r = { .o = &o, .best = -1, .told_s = -INFINITY };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	r.cli = &cli;
	if (rc == 0)
		rc = trim_output(&r);
	if (rc == 0)
		rc = o.score ? lpo_lrmtool_score(&r) : train(&r);
	release(&r);
	return lpo_cli_end(&cli, rc);
}
