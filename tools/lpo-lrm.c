/* lpo-lrm: noisy latent pairs to a reward model; and scoring with one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/state.h"
#include "lib/io/db.h"
#include "lib/train/lrm_pairs.h"
#include "tools/cli.h"

struct opts {
	const char *reward, *eval, *projection;
	int score, criterion, schedule, multi, multi_cfg, keep, dtype, freeze;
	int64_t steps, batch, micro_batch, warmup, eval_every;
	double lr, weight_decay, guidance, max_grad_norm, batch_coeff, aux;
};

#define OFF(m)	offsetof(struct opts, m)
#define R	LPO_CLI_RESULT

static const struct lpo_cli_option options[] = {
	{ "How long", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "steps", 0, "N", "optimiser steps (default: pairs / batch)",
	    LPO_CLI_I64, OFF(steps), R, 1, 1e9 },
	{ "batch", 0, "N", "pairs per step (default 128)", LPO_CLI_I64,
	    OFF(batch), R, 1, 1e6 },
	{ "micro-batch", 0, "N", "pairs at once; the result does not depend "
	    "on it", LPO_CLI_I64, OFF(micro_batch), 0, 1, 1e6 },
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
	{ "text-projection", 0, "FILE", "safetensors with "
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

#define SMALL_STATE	((int64_t)256 << 20)	/* bytes */

enum { KEEP_LAST, KEEP_BEST };
static const enum lpo_dtype storages[] = { LPO_F32, LPO_BF16, LPO_F16 };

/* All a run holds. */
struct run {
	lpo_cli *cli;
	const struct opts *o;
	char *output;		/* without trailing slashes */
	lpo_lrm *m;
	lpo_shards *in;
	struct lpo_sample first;	/* read ahead for the latents' size */
	int has_first;
	int64_t shape[3];
	lpo_lrm_batch *batch, *eval;
	lpo_lrm_trainer *trainer;
	struct lpo_lrm_train_opts t;
	lpo_state *state;
	lpo_snap *snap;
	int64_t used;		/* pairs taken from the stream ... */
	int64_t safe_used;	/* ... as of the last finished step, */
	uint32_t safe_crc;	/* and the sum over their KEY.json */
	int64_t saved_step;
	double best;		/* accuracy, -1: none yet */
	int64_t best_step, eval_step;
	double start_s;
};

/* ---------------------------------------------------------------- input */

static int
next_sample(struct run *r, struct lpo_sample *s)
{
	if (r->has_first) {
		*s = r->first;
		memset(&r->first, 0, sizeof(r->first));
		r->has_first = 0;
		return 0;
	}
	return lpo_shards_next(r->in, s);
}

/* What the run id has of the pairs: files by content, a stream by its run. */
static int
identify_input(struct run *r)
{
	lpo_cli *cli = r->cli;
	char **names = NULL;
	const char *id;
	int64_t n = 0, i;
	int rc;

	if (lpo_shards_files(r->in) == 0) {
		id = json_string_value(lpo_json_get(lpo_shards_run(r->in),
		    "run"));
		return lpo_cli_input_run(cli, "pairs", id ? id : "foreign");
	}
	if ((rc = lpo_shards_expand(cli->ctx, &names, &n,
	    (const char *const *)cli->args, cli->nargs)) < 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++)
		rc = lpo_cli_input_file(cli, "pairs", names[i]);
	lpo_names_free(names, n);
	return rc;
}

/* Open the pairs, hold them against the model, and look at the first one. */
static int
open_input(struct run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((cli->nargs == 0 || strcmp(cli->args[0], "-") == 0) &&
	    (rc = lpo_cli_binary_stdin(cli)) != 0)
		return rc;
	if ((rc = lpo_shards_open(cli->ctx, &r->in,
	    (const char *const *)cli->args, cli->nargs, 0)) < 0 ||
	    (rc = lpo_lrm_stream_check(cli->ctx, lpo_shards_run(r->in),
	    lpo_lrm_cfg(r->m))) < 0)
		return rc;
	if ((rc = lpo_shards_next(r->in, &r->first)) < 0)
		return rc;
	if (rc == 1)
		return lpo_fail(cli->ctx, LPO_EFORMAT, "there are no pairs");
	r->has_first = 1;
	return lpo_lrm_sample_shape(cli->ctx, r->shape, &r->first);
}

/* Pairs in all, -1: not known before the end. */
static int64_t
pairs_total(struct run *r)
{
	int64_t n;

	if (lpo_json_int(r->cli->ctx, &n, lpo_shards_run(r->in), "pairs",
	    -1) < 0)
		lpo_clear(r->cli->ctx);
	return lpo_json_get(lpo_shards_run(r->in), "pairs") != NULL ? n : -1;
}

static int
too_few(struct run *r)
{
	return lpo_fail(r->cli->ctx, LPO_EFORMAT, "the pairs end after %lld; "
	    "%lld steps of %lld need %lld (a smaller --steps, or more "
	    "--epochs in lpo-pairs)", (long long)r->used,
	    (long long)r->t.steps, (long long)r->t.batch,
	    (long long)(r->t.steps * r->t.batch));
}

static int
read_batch(struct run *r)
{
	struct lpo_sample s;
	int64_t i;
	int rc = 0;

	lpo_lrm_batch_clear(r->batch);
	for (i = 0; i < r->t.batch && rc == 0; i++) {
		memset(&s, 0, sizeof(s));
		if ((rc = next_sample(r, &s)) == 0 &&
		    (rc = lpo_lrm_batch_add(r->batch, &s)) == 0)
			r->used++;
		lpo_sample_clear(&s);
	}
	return rc == 1 ? too_few(r) : rc;
}

/* --eval: all of a second set of pairs. */
static int
read_eval(struct run *r)
{
	lpo_ctx *c = r->cli->ctx;
	lpo_shards *in = NULL;
	struct lpo_sample s;
	int rc;

	if (r->o->eval == NULL)
		return 0;
	if ((rc = lpo_shards_open(c, &in, &r->o->eval, 1, 0)) < 0 ||
	    (rc = lpo_lrm_stream_check(c, lpo_shards_run(in),
	    lpo_lrm_cfg(r->m))) < 0 ||
	    (rc = lpo_lrm_batch_new(c, &r->eval, r->m, r->shape)) < 0)
		goto out;
	do {
		memset(&s, 0, sizeof(s));
		if ((rc = lpo_shards_next(in, &s)) == 0)
			rc = lpo_lrm_batch_add(r->eval, &s);
		lpo_sample_clear(&s);
	} while (rc == 0);
	if (rc == 1)
		rc = lpo_lrm_batch_count(r->eval) > 0 ? 0 : lpo_fail(c,
		    LPO_EFORMAT, "'%s' has no pairs", r->o->eval);
out:
	if (rc < 0)
		lpo_fail_prefix(c, "--eval");
	lpo_shards_close(in);
	return rc;
}

/* -------------------------------------------------------------- agreement */

/* Lines on stderr and rows of metrics. */
static int
tell_rates(struct run *r, const struct lpo_lrm_rate *rate, int64_t n,
    int64_t step)
{
	char name[48], who[32];
	int64_t i;
	int rc = 0;

	for (i = 0; i < n && rc == 0; i++) {
		if (rate[i].t == -1) {
			snprintf(name, sizeof(name), "eval_accuracy");
			snprintf(who, sizeof(who), "all");
		} else if (rate[i].t == -2) {
			snprintf(name, sizeof(name), "eval_accuracy_mixed");
			snprintf(who, sizeof(who), "two timesteps");
		} else {
			snprintf(name, sizeof(name), "eval_accuracy_t%04lld",
			    (long long)rate[i].t);
			snprintf(who, sizeof(who), "t %lld",
			    (long long)rate[i].t);
		}
		if (rate[i].n > 0)
			lpo_cli_note(r->cli, "accuracy, %s: %.3f [%.3f, %.3f] "
			    "of %lld pairs", who, rate[i].rate, rate[i].low,
			    rate[i].high, (long long)rate[i].n);
		rc = lpo_cli_metric(r->cli, name, step, rate[i].rate);
	}
	return rc;
}

static int
evaluate(struct run *r, int64_t step)
{
	struct lpo_lrm_rate *rate = NULL;
	lpo_ctx *c = r->cli->ctx;
	int64_t n = 0;
	char *path;
	float *score;
	int rc = LPO_ENOMEM;

	score = lpo_alloc(c, (size_t)(2 * lpo_lrm_batch_count(r->eval)),
	    sizeof(*score));
	if (score == NULL ||
	    (rc = lpo_lrm_batch_scores(r->eval, score)) < 0 ||
	    (rc = lpo_lrm_rates(r->eval, &rate, &n, score)) < 0)
		goto out;
	r->eval_step = step;
	lpo_cli_note(r->cli, "step %lld of %lld, held-out pairs:",
	    (long long)step, (long long)r->t.steps);
	if ((rc = tell_rates(r, rate, n, step)) < 0 ||
	    r->o->keep != KEEP_BEST || !(rate[0].rate > r->best))
		goto out;
	/* the folder waits in the state, in its final form, for the end */
	r->best = rate[0].rate;
	r->best_step = step;
	path = lpo_asprintf(c, "%s/best-%09lld", lpo_state_dir(r->state),
	    (long long)step);
	rc = path == NULL ? LPO_ENOMEM : lpo_lrm_save(r->m, path,
	    storages[r->o->dtype]);
	lpo_free(path);
out:
	lpo_free(score);
	lpo_free(rate);
	return rc;
}

/* ------------------------------------------------------------------ state */

static int
save_state(struct run *r)
{
	struct lpo_lrm_counters n;
	char text[320];
	int rc;

	lpo_lrm_trainer_counters(r->trainer, &n);
	snprintf(text, sizeof(text), "{\"step\":%lld,\"update\":%lld,"
	    "\"skipped\":%lld,\"skipped_in_a_row\":%lld,\"used\":%lld,"
	    "\"crc32c\":%lu,\"best\":%.17g,\"best_step\":%lld,"
	    "\"eval_step\":%lld}", (long long)n.step, (long long)n.update,
	    (long long)n.skipped, (long long)n.skipped_in_a_row,
	    (long long)r->safe_used, (unsigned long)r->safe_crc, r->best,
	    (long long)r->best_step, (long long)r->eval_step);
	if ((rc = lpo_snap_begin(r->snap)) < 0 ||
	    (rc = lpo_lrm_trainer_save(r->trainer, r->snap)) < 0)
		return rc;
	r->saved_step = n.step;
	return lpo_snap_commit(r->snap, text);
}

/*
 * Stopped or out of pairs: what is small is saved at once; what is large
 * would take longer than the two seconds a signal leaves.
 */
static int
save_last(struct run *r, int why)
{
	struct lpo_lrm_train_plan p;
	struct lpo_lrm_counters n;

	if (r->snap == NULL)
		return why;
	lpo_lrm_trainer_counters(r->trainer, &n);
	lpo_lrm_trainer_plan(r->trainer, &p);
	if (n.step > r->saved_step && 12 * p.parameters < SMALL_STATE)
		save_state(r);	/* the first failure's text stays */
	return why;
}

/* Folders of earlier bests, once no snapshot speaks of them. */
static int
sweep_best(struct run *r)
{
	char **names = NULL, *path, keep[32];
	int64_t i, n = 0;
	int rc;

	snprintf(keep, sizeof(keep), "best-%09lld", (long long)r->best_step);
	if ((rc = lpo_dir_list(r->cli->ctx, &names, &n,
	    lpo_state_dir(r->state))) < 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++) {
		if (strncmp(names[i], "best-", 5) != 0 ||
		    strcmp(names[i], keep) == 0)
			continue;
		path = lpo_state_file(r->cli->ctx, r->state, names[i]);
		rc = path == NULL ? LPO_ENOMEM : lpo_rmtree(r->cli->ctx,
		    path);
		lpo_free(path);
	}
	lpo_names_free(names, n);
	return rc;
}

static int
read_counters(struct run *r, struct lpo_lrm_counters *n, int64_t *used,
    int64_t *crc)
{
	const char *text = lpo_snap_counters(r->snap);
	lpo_ctx *c = r->cli->ctx;
	json_t *j = NULL;
	int rc;

	if ((rc = lpo_json_load(c, &j, text, strlen(text), "counters")) < 0)
		return rc;
	if ((rc = lpo_json_need_int(c, &n->step, j, "step")) < 0 ||
	    (rc = lpo_json_need_int(c, &n->update, j, "update")) < 0 ||
	    (rc = lpo_json_need_int(c, &n->skipped, j, "skipped")) < 0 ||
	    (rc = lpo_json_need_int(c, &n->skipped_in_a_row, j,
	    "skipped_in_a_row")) < 0 ||
	    (rc = lpo_json_need_int(c, used, j, "used")) < 0 ||
	    (rc = lpo_json_need_int(c, crc, j, "crc32c")) < 0 ||
	    (rc = lpo_json_need_real(c, &r->best, j, "best")) < 0 ||
	    (rc = lpo_json_need_int(c, &r->best_step, j, "best_step")) < 0 ||
	    (rc = lpo_json_need_int(c, &r->eval_step, j, "eval_step")) < 0)
		lpo_fail_prefix(c, "the saved counters");
	json_decref(j);
	return rc;
}

/* Read the pairs used before, and see that they are the same ones. */
static int
skip_used(struct run *r, int64_t used, uint32_t crc)
{
	struct lpo_sample s;
	int rc = 0;

	while (r->used < used && rc == 0) {
		memset(&s, 0, sizeof(s));
		if ((rc = next_sample(r, &s)) == 0)
			r->used++;
		lpo_sample_clear(&s);
		lpo_cli_progress(r->cli, "skip", r->used, used, "pairs",
		    NULL);
		if (rc == 0 && lpo_ctx_stopped(r->cli->ctx))
			rc = lpo_fail(r->cli->ctx, LPO_ESTOP, "stopped");
	}
	lpo_cli_progress_end(r->cli);
	if (rc == 1 || (rc == 0 && lpo_shards_crc32c(r->in) != crc))
		rc = lpo_fail(r->cli->ctx, LPO_EFORMAT, "these are not the "
		    "pairs that the first %lld steps used: give the same, or "
		    "start again with --fresh",
		    (long long)(used / r->t.batch));
	return rc;
}

static int
resume(struct run *r)
{
	lpo_cli *cli = r->cli;
	struct lpo_lrm_counters n;
	int64_t used, crc;
	int rc;

	if ((rc = lpo_state_open(cli->ctx, &r->state, r->output,
	    lpo_cli_run(cli), lpo_cli_run_options(cli), cli->o.fresh)) < 0 ||
	    (rc = lpo_snap_open(cli->ctx, &r->snap, lpo_state_dir(r->state),
	    lpo_cli_run(cli))) < 0 || !lpo_snap_found(r->snap))
		return rc;
	if ((rc = read_counters(r, &n, &used, &crc)) < 0 ||
	    (rc = lpo_lrm_trainer_restore(r->trainer, r->snap)) < 0)
		return rc;
	lpo_lrm_trainer_set_counters(r->trainer, &n);
	r->saved_step = n.step;
	r->safe_used = used;
	r->safe_crc = (uint32_t)crc;
	lpo_cli_note(cli, "goes on after step %lld of %lld",
	    (long long)n.step, (long long)r->t.steps);
	return skip_used(r, used, (uint32_t)crc);
}

/* --------------------------------------------------------------- settings */

static int
settle(struct run *r)
{
	lpo_cli *cli = r->cli;
	const struct opts *o = r->o;
	int64_t pairs = pairs_total(r), room = lpo_cli_memory(cli);

	r->t.batch = o->batch;
	r->t.micro_batch = o->micro_batch;
	r->t.memory_bytes = room > 0 ? (size_t)room : 0;
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
origin(struct run *r)
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

	run[0] = '\0';
	if (!lpo_file_exists(path))
		return LPO_ENOTFOUND;
	if ((file = lpo_path_join(c, path, "lrm.json")) == NULL)
		return LPO_ENOMEM;
	if (lpo_json_load_file(c, &j, file, 0) == 0 &&
	    (id = json_string_value(lpo_json_get(j, "run"))) != NULL &&
	    strlen(id) == 16)
		memcpy(run, id, 17);
	lpo_clear(c);
	json_decref(j);
	lpo_free(file);
	return 0;
}

/* ------------------------------------------------------------------- plan */

/* GFLOP/s of a matrix product here, in a twentieth of a second. */
static double
speed(lpo_backend *be, enum lpo_dtype dt)
{
	const int64_t n = 512;
	size_t bytes = (size_t)(n * n) * lpo_dtype_bytes(dt);
	size_t need = be->k->linear_scratch_bytes(be, LPO_FWD, dt, n, n, n, 1);
	void *x = be->k->alloc(be, 3 * bytes + need + 64);
	double start, s, flops = 0;

	if (x == NULL || be->k->zero(be, x, 3 * bytes) < 0)
		return NAN;
	start = lpo_cli_now();
	do {
		be->k->linear_fwd(be, dt, (char *)x + 2 * bytes, x,
		    (char *)x + bytes, NULL, n, n, n, 1, 0,
		    (char *)x + 3 * bytes);
		flops += 2.0 * (double)(n * n * n);
		be->k->sync(be);
		s = lpo_cli_now() - start;
	} while (s < 0.05);
	be->k->free(be, x);
	return flops / s / 1e9;
}

static int
print_plan(struct run *r)
{
	struct lpo_lrm_train_plan p;
	lpo_cli *cli = r->cli;
	double rate = speed(&cli->be, lpo_lrm_dtype(r->m)), s;
	int64_t pairs = pairs_total(r);
	const double mib = 1048576;

	lpo_lrm_trainer_plan(r->trainer, &p);
	s = (double)r->t.steps * p.step_flops / (rate * 1e9 / 2);
	if (pairs >= 0)
		lpo_cli_plan(cli, "pairs", "%lld", (long long)pairs);
	lpo_cli_plan(cli, "latent", "%lld x %lld x %lld",
	    (long long)r->shape[0], (long long)r->shape[1],
	    (long long)r->shape[2]);
	lpo_cli_plan(cli, "steps", "%lld of %lld pairs",
	    (long long)r->t.steps, (long long)r->t.batch);
	lpo_cli_plan(cli, "warm-up", "%lld steps", (long long)r->t.warmup);
	lpo_cli_plan(cli, "micro-batch", "%lld pairs, %lld pass%s",
	    (long long)p.micro_batch, (long long)p.passes,
	    p.passes == 1 ? "" : "es");
	lpo_cli_plan(cli, "parameters", "%lld", (long long)p.parameters);
	lpo_cli_plan(cli, "weights", "%.1f MiB", (double)p.weight_bytes / mib);
	lpo_cli_plan(cli, "gradients and optimiser", "%.1f MiB",
	    (double)p.state_bytes / mib);
	lpo_cli_plan(cli, "activations", "%.1f MiB",
	    (double)p.arena_bytes / mib);
	lpo_cli_plan(cli, "saved states on disk", "%.1f MiB",
	    2 * 12 * (double)p.parameters / mib);
	lpo_cli_plan(cli, "GFLOP per step", "%.2f", p.step_flops / 1e9);
	lpo_cli_plan(cli, "time", "%.0f s at half of this machine's %.0f "
	    "GFLOP/s", s, rate);
	return LPO_CLI_DONE;
}

/* ------------------------------------------------------------------ train */

static int
tell_step(struct run *r, int64_t step, const struct lpo_lrm_step *st)
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
	int rc = 0;

	for (i = 0; i < sizeof(m) / sizeof(*m) && rc == 0; i++)
		rc = lpo_cli_metric(r->cli, m[i].name, step, m[i].v);
	if (st->skipped)
		lpo_cli_note(r->cli, "step %lld: loss or gradient is not "
		    "finite, the weights stay as they are (pairs '%s' to "
		    "'%s')", (long long)step, lpo_lrm_batch_key(r->batch, 0),
		    lpo_lrm_batch_key(r->batch, r->t.batch - 1));
	if (lpo_cli_want_lines(r->cli)) {
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
one_step(struct run *r, int64_t step)
{
	int64_t every = r->o->eval_every;
	struct lpo_lrm_step st;
	int rc, best = 0;

	r->start_s = lpo_cli_now();
	if ((rc = read_batch(r)) < 0 || (rc = lpo_lrm_trainer_step(r->trainer,
	    &st, lpo_lrm_batch_pairs(r->batch))) < 0 ||
	    (rc = tell_step(r, step, &st)) < 0)
		return rc;
	r->safe_used = r->used;
	r->safe_crc = lpo_shards_crc32c(r->in);
	if (r->eval != NULL && every > 0 && step % every == 0) {
		int64_t was = r->best_step;

		if ((rc = evaluate(r, step)) < 0)
			return rc;
		best = r->best_step != was;
	}
	/* a new best is only safe once a snapshot names it */
	if (best || lpo_snap_due(r->snap, r->cli->o.checkpoint_s)) {
		if ((rc = save_state(r)) == 0 && best)
			rc = sweep_best(r);
	}
	return rc;
}

/* What the stream still has: only its end record proves it was whole. */
static int
drain(struct run *r)
{
	struct lpo_sample s;
	int rc = 0;

	if (lpo_shards_files(r->in) > 0)
		return 0;
	while (rc == 0) {
		memset(&s, 0, sizeof(s));
		rc = next_sample(r, &s);
		lpo_sample_clear(&s);
		if (rc == 0 && lpo_ctx_stopped(r->cli->ctx))
			rc = lpo_fail(r->cli->ctx, LPO_ESTOP, "stopped");
	}
	return rc == 1 ? 0 : rc;
}

static int
publish(struct run *r)
{
	char *best = NULL, name[32];
	int rc;

	if (r->o->keep != KEEP_BEST || r->best_step == 0)
		return lpo_lrm_save(r->m, r->output, storages[r->o->dtype]);
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
	    storages[r->o->dtype])) == 0)
		lpo_cli_note(r->cli, "kept: step %lld, accuracy %.3f",
		    (long long)r->best_step, r->best);
	lpo_free(best);
	return rc;
}

static int
train_loop(struct run *r)
{
	struct lpo_lrm_counters n;
	int rc = 0;

	lpo_lrm_trainer_counters(r->trainer, &n);
	while (n.step < r->t.steps && rc == 0) {
		rc = one_step(r, n.step + 1);
		lpo_lrm_trainer_counters(r->trainer, &n);
	}
	lpo_cli_progress_end(r->cli);
	if (rc < 0)
		return save_last(r, rc);
	if (rc == 0 && (rc = drain(r)) == 0 && r->eval != NULL &&
	    r->eval_step != r->t.steps)
		rc = evaluate(r, r->t.steps);
	return rc < 0 ? rc : publish(r);
}

/* Inputs, run id, model, trainer: all before the first step. */
static int
prepare(struct run *r)
{
	struct lpo_lrm_config cfg = { .guidance = r->o->guidance,
	    .multi_scale = !r->o->multi, .multi_scale_cfg = r->o->multi_cfg };
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = lpo_lrm_new(cli->ctx, &cli->be, &r->m, cli->o.model,
	    lpo_cli_precision(cli), &cfg, r->o->projection,
	    cli->o.seed)) < 0 ||
	    (rc = open_input(r)) != 0 ||
	    (rc = lpo_cli_input_dir(cli, "model", cli->o.model)) < 0 ||
	    (rc = identify_input(r)) < 0 ||
	    (r->o->projection != NULL && (rc = lpo_cli_input_file(cli,
	    "text-projection", r->o->projection)) < 0) ||
	    (rc = settle(r)) != 0)
		return rc;
	/* it decides what is kept, else only what is told */
	if (r->o->keep == KEEP_BEST && (rc = lpo_cli_input_file(cli, "eval",
	    r->o->eval)) < 0)
		return rc;
	if ((rc = lpo_cli_begin(cli, r->output, existing)) != 0)
		return rc;
	origin(r);
	if ((rc = read_eval(r)) < 0 ||
	    (rc = lpo_lrm_batch_new(cli->ctx, &r->batch, r->m,
	    r->shape)) < 0)
		return rc;
	return lpo_lrm_trainer_new(cli->ctx, &r->trainer, r->m, &r->t);
}

static int
train(struct run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	if (lpo_cli_to_stdout(cli))
		return lpo_cli_usage(cli, "-o is needed: the folder of the "
		    "reward model");
	if (r->o->keep == KEEP_BEST && (r->o->eval == NULL ||
	    r->o->eval_every == 0))
		return lpo_cli_usage(cli, "--keep best needs --eval and "
		    "--eval-every");
	if ((rc = prepare(r)) != 0)
		return rc;
	if (cli->o.dry_run)
		return print_plan(r);
	if ((rc = resume(r)) < 0 || (rc = train_loop(r)) < 0)
		return rc;
	lpo_snap_close(r->snap);
	r->snap = NULL;
	rc = lpo_state_remove(r->state);
	r->state = NULL;
	return rc;
}

/* ------------------------------------------------------------------ score */

#define SCORE_CHUNK 256

static int
print_json(struct run *r, int64_t i, const float *s, double label)
{
	json_t *j = json_pack("{s:s, s:f, s:f, s:f}", "key",
	    lpo_lrm_batch_key(r->batch, i), "score_0", (double)s[0],
	    "score_1", (double)s[1], "label_0", label);
	char *text = j == NULL ? NULL : lpo_json_dumps(r->cli->ctx, j);

	json_decref(j);
	if (text == NULL)
		return lpo_fail(r->cli->ctx, LPO_ENOMEM, "out of memory");
	puts(text);
	lpo_free(text);
	return 0;
}

static int
print_chunk(struct run *r, struct lpo_lrm_rate **rate, int64_t *n)
{
	const struct lpo_lrm_pair *p = lpo_lrm_batch_pairs(r->batch);
	int64_t i, count = lpo_lrm_batch_count(r->batch);
	float score[2 * SCORE_CHUNK];
	int rc;

	if ((rc = lpo_lrm_batch_scores(r->batch, score)) < 0)
		return rc;
	for (i = 0; i < count && rc == 0; i++) {
		const float *s = score + 2 * i;

		if (r->cli->o.json)
			rc = print_json(r, i, s, p[i].label[0]);
		else {
			lpo_cli_tsv(stdout, lpo_lrm_batch_key(r->batch, i),
			    '\t');
			printf("%.9g\t%.9g\t%.9g\n", (double)s[0],
			    (double)s[1], p[i].label[0]);
		}
		if (rc == 0)
			rc = lpo_lrm_rate_add(r->cli->ctx, rate, n, p[i].t,
			    p[i].label, s);
	}
	r->used += count;
	lpo_lrm_batch_clear(r->batch);
	lpo_cli_progress(r->cli, "score", r->used, pairs_total(r), "pairs",
	    NULL);
	return rc;
}

static int
score_all(struct run *r, struct lpo_lrm_rate **rate, int64_t *n)
{
	struct lpo_sample s;
	int rc = 0;

	while (rc == 0) {
		memset(&s, 0, sizeof(s));
		if ((rc = next_sample(r, &s)) == 0)
			rc = lpo_lrm_batch_add(r->batch, &s);
		lpo_sample_clear(&s);
		if (rc == 0 && lpo_lrm_batch_count(r->batch) == SCORE_CHUNK)
			rc = print_chunk(r, rate, n);
	}
	if (rc == 1)
		rc = lpo_lrm_batch_count(r->batch) > 0 ?
		    print_chunk(r, rate, n) : 0;
	lpo_cli_progress_end(r->cli);
	return rc;
}

static int
score(struct run *r)
{
	struct lpo_lrm_config cfg = { .guidance = NAN, .multi_scale = -1,
	    .multi_scale_cfg = -1 };
	struct lpo_lrm_rate *rate = NULL;
	lpo_cli *cli = r->cli;
	int64_t n = 0;
	int rc;

	if (r->o->reward == NULL)
		return lpo_cli_usage(cli, "--score needs -r, the reward "
		    "model");
	if (lpo_cli_given(cli, "guidance"))
		cfg.guidance = r->o->guidance;
	if (lpo_cli_given(cli, "multi-scale"))
		cfg.multi_scale = !r->o->multi;
	if (lpo_cli_given(cli, "multi-scale-cfg"))
		cfg.multi_scale_cfg = r->o->multi_cfg;
	if ((rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = lpo_lrm_open(cli->ctx, &cli->be, &r->m, r->o->reward,
	    cli->o.model, lpo_cli_precision(cli), &cfg)) < 0 ||
	    (rc = open_input(r)) != 0 ||
	    (rc = lpo_cli_input_dir(cli, "reward", r->o->reward)) < 0 ||
	    (rc = identify_input(r)) < 0 ||
	    (rc = lpo_cli_begin(cli, NULL, NULL)) != 0 ||
	    (rc = lpo_lrm_batch_new(cli->ctx, &r->batch, r->m,
	    r->shape)) < 0)
		return rc;
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "pairs", "%lld",
		    (long long)pairs_total(r));
		return LPO_CLI_DONE;
	}
	if (!cli->o.json)
		printf("key\tscore_0\tscore_1\tlabel_0\n");
	if ((rc = score_all(r, &rate, &n)) == 0)
		rc = tell_rates(r, rate, n, 0);
	lpo_free(rate);
	return rc;
}

/* "lrm/" is the folder lrm: its state and temporary names stand beside it. */
static int
trim_output(struct run *r)
{
	size_t n;

	if (r->cli->o.output == NULL)
		return 0;
	if ((r->output = lpo_strdup(r->cli->ctx, r->cli->o.output)) == NULL)
		return LPO_ENOMEM;
	for (n = strlen(r->output); n > 1 && r->output[n - 1] == '/';)
		r->output[--n] = '\0';
	return 0;
}

static void
release(struct run *r)
{
	lpo_snap_close(r->snap);
	lpo_state_close(r->state);
	lpo_lrm_trainer_free(r->trainer);
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
	struct opts o = { .batch = 128, .lr = 1e-5, .weight_decay = 0.3,
	    .guidance = LPO_LRM_GUIDANCE, .max_grad_norm = 1,
	    .batch_coeff = 1, .aux = 1 };
	struct run r = { .o = &o, .best = -1 };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	r.cli = &cli;
	if (rc == 0)
		rc = trim_output(&r);
	if (rc == 0)
		rc = o.score ? score(&r) : train(&r);
	release(&r);
	return lpo_cli_end(&cli, rc);
}
