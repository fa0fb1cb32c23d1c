/* lpo-pairs: VAE moments to noisy latent pairs. */
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/philox.h"
#include "lib/base/state.h"
#include "lib/model/source.h"
#include "tools/pairs.h"

#define BATCH 64	/* pairs made at a time, by all threads */

#define O(name, letter, arg, type, member, flags, min, max, help) \
	{ name, letter, arg, help, type, offsetof(struct pairs_opts, member), \
	  flags, min, max }
static const struct lpo_cli_option options[] = {
	LPO_CLI_FILTER_ROWS(struct pairs_opts, filter),
	O("timesteps", 0, "LIST", LPO_CLI_STRING, timesteps, LPO_CLI_RESULT,
	    0, 0, "candidates, first:last:step or t,t,... (1:951:50)"),
	O("epochs", 'e', "N", LPO_CLI_I64, epochs, LPO_CLI_RESULT, 1, 65535,
	    "times through the input, reshuffled each time (1)"),
	O("noise-offset", 0, "X", LPO_CLI_F64, noise_offset, LPO_CLI_RESULT,
	    -100, 100, "noise added per channel as a whole (0)"),
	O("compare-timesteps", 0, "D", LPO_CLI_I64, compare, LPO_CLI_RESULT,
	    0, 1000, "more pairs: one image at t candidates D apart (0: off)"),
	O("skip", 0, "N", LPO_CLI_I64, skip, LPO_CLI_RESULT, 0, 1e15,
	    "leave out the first N output pairs (0)"),
	O("limit", 'n', "N", LPO_CLI_I64, limit, LPO_CLI_RESULT, 0, 1e15,
	    "at most N output pairs"),
	O("dtype", 0, "f2|f4", LPO_CLI_CHOICE, dtype, LPO_CLI_RESULT, 0, 0,
	    "type of the latents (f2)"),
	O("in-order", 0, NULL, LPO_CLI_FLAG, in_order, LPO_CLI_RESULT, 0, 0,
	    "keep the input's order instead of shuffling"),
	O("shuffle", 0, "N", LPO_CLI_I64, shuffle, LPO_CLI_RESULT, 1, 1e7,
	    "do not spool: stream through a shuffling buffer of N pairs"),
	O("pairs-per-shard", 0, "N", LPO_CLI_I64, per_shard, LPO_CLI_RESULT,
	    1, 1e9, "for -o with %d (10000)"),
	O("spool", 0, "DIR", LPO_CLI_STRING, spool, 0, 0, 0,
	    "folder for the copy of standard input ($TMPDIR, /var/tmp)"),
	O("allow-missing", 0, NULL, LPO_CLI_FLAG, allow_missing, 0, 0, 0,
	    "accept gaps in a sequence of shards"),
	O("stats", 0, NULL, LPO_CLI_FLAG, stats, 0, 0, 0,
	    "no tensors: count pairs by filter, label and timestep"),
	O("dump", 0, "DB", LPO_CLI_STRING, dump, 0, 0, 0,
	    "no tensors: the pairs' fields as an SQLite table 'pair'"),
	{ NULL, 0, NULL, NULL, LPO_CLI_FLAG, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-pairs", "VAE moments of preferred images to noisy latent pairs",
	"[options] [enc-*.tar ...]", options
};

/* ------------------------------------------- what the moments are made by */

/* Foreign shards say nothing of themselves: ask the model. */
static int
from_model(struct pairs_job *j, json_t **latent)
{
	lpo_ctx *c = j->cli->ctx;
	json_t *vae = NULL;
	char *path = NULL;
	double scale;
	int64_t channels;
	int rc;

	*latent = NULL;
	if (j->cli->o.model == NULL)
		return lpo_cli_usage(j->cli, "the input does not say how it "
		    "was encoded: give -m DIR");
	if ((rc = lpo_schedule_load(c, &j->schedule, j->cli->o.model)) != 0 ||
	    (rc = lpo_cli_model_part(j->cli, &path, "vae/config.json")) != 0 ||
	    (rc = lpo_source_json(c, &vae, path, 0)) != 0)
		goto out;
	if ((rc = lpo_json_real(c, &scale, vae, "scaling_factor",
	    0.18215)) != 0 ||
	    (rc = lpo_json_int(c, &channels, vae, "latent_channels", 4)) != 0) {
		lpo_fail_prefix(c, "%s", path);
		goto out;
	}
	*latent = json_pack("{s:f, s:I}", "scaling_factor", scale,
	    "channels", (json_int_t)channels);
out:
	json_decref(vae);
	lpo_free(path);
	return rc;
}

/*
 * Fill schedule and scaling factor from the input's run record, and start the
 * output's.
 */
static int
describe(struct pairs_job *j, const json_t *in)
{
	lpo_ctx *c = j->cli->ctx;
	json_t *latent = NULL, *sched;
	char *text = NULL;
	double scale = 0;
	int rc;

	if (in != NULL && json_object_get(in, "latent") != NULL) {
		latent = json_incref(json_object_get(in, "latent"));
		text = lpo_json_dumps(c, json_object_get(in, "scheduler"));
		if (text == NULL)
			rc = lpo_fail(c, LPO_EFORMAT, "the input's run.json "
			    "has no 'scheduler'");
		else
			rc = lpo_schedule_parse(c, &j->schedule, text,
			    "the input's run.json");
	} else
		rc = from_model(j, &latent);
	if (rc != 0)
		goto out;
	if ((rc = lpo_json_need_real(c, &scale, latent,
	    "scaling_factor")) != 0)
		goto out;
	j->pair.scaling_factor = (float)scale;
	lpo_free(text);
	if ((text = lpo_schedule_json(c, &j->schedule)) == NULL ||
	    (rc = lpo_json_load(c, &sched, text, strlen(text),
	    "scheduler")) != 0) {
		rc = rc != 0 ? rc : LPO_ENOMEM;
		goto out;
	}
	j->run = json_pack("{s:i, s:s, s:O, s:o, s:O?}", "format", 1, "kind",
	    "pairs", "latent", latent, "scheduler", sched, "size_px",
	    in != NULL ? json_object_get(in, "size_px") : NULL);
	lpo_cli_resolved(j->cli, "latent", json_incref(latent));
	lpo_cli_resolved(j->cli, "scheduler", json_incref(sched));
out:
	lpo_free(text);
	json_decref(latent);
	return rc;
}

/* ------------------------------------------------------------- the output */

/* run id, parents and the number of pairs complete the record. */
static void
finish_run_json(struct pairs_job *j, json_t *parents)
{
	json_object_set_new(j->run, "run",
	    json_string(lpo_cli_run(j->cli)));
	json_object_set_new(j->run, "parents", parents);
	json_object_set_new(j->run, "pairs", j->set != NULL ?
	    json_integer(j->total) : json_null());
}

static int
new_workers(struct pairs_job *j)
{
	int i;

	j->workers = lpo_cli_threads(j->cli);
	j->worker = lpo_alloc(j->cli->ctx, (size_t)j->workers,
	    sizeof *j->worker);
	if (j->worker == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < j->workers; i++)
		if ((j->worker[i] = lpo_ctx_new()) == NULL)
			return lpo_fail(j->cli->ctx, LPO_ENOMEM,
			    "out of memory");
	return 0;
}

/* The first failure among the workers, as the tool's own. */
static int
worker_error(struct pairs_job *j)
{
	int i, rc;

	for (i = 0; i < j->workers; i++)
		if ((rc = lpo_errcode(j->worker[i])) != 0)
			return lpo_fail(j->cli->ctx, rc, "%s",
			    lpo_errmsg(j->worker[i]));
	return 0;
}

/* Write s[0..n-1] in order and clear them. */
static int
put(struct pairs_job *j, struct lpo_sample *s, int n)
{
	int i, rc = worker_error(j);

	for (i = 0; i < n; i++) {
		if (rc == 0)
			rc = lpo_shardw_put(j->out, &s[i]);
		lpo_sample_clear(&s[i]);
	}
	if (rc == 0) {
		j->done += n;
		lpo_cli_progress(j->cli, "pairs", j->done, j->total, "pairs",
		    NULL);
		if (lpo_ctx_stopped(j->cli->ctx))
			rc = LPO_ESTOP;
	}
	return rc;
}

/* Output pairs first .. first + n - 1 into the open shard. */
static int
write_range(struct pairs_job *j, int64_t first, int64_t n)
{
	struct lpo_sample s[BATCH];
	int64_t at;
	int i, k, rc = 0;

	for (at = 0; at < n && rc == 0; at += k) {
		k = n - at < BATCH ? (int)(n - at) : BATCH;
		memset(s, 0, sizeof s);
#pragma omp parallel for schedule(dynamic)
		for (i = 0; i < k; i++) {
			lpo_ctx *c = j->worker[omp_get_thread_num()];
			struct lpo_pair_pick p;

			lpo_pairset_pick(j->set, &p, first + at + i,
			    j->pair.seed, !j->o->in_order);
			if (lpo_errcode(c) == 0)
				lpo_pairset_sample(c, &s[i], j->set,
				    &j->pair, &p);
		}
		rc = put(j, s, k);
	}
	return rc;
}

static int
write_shard(struct pairs_job *j, const char *path, int64_t first, int64_t n,
    int64_t k, int64_t shards)
{
	int rc;

	if ((rc = lpo_shardw_open(j->cli->ctx, &j->out, path, j->run)) != 0)
		return rc;
	if ((rc = write_range(j, first, n)) == 0)
		rc = lpo_shardw_finish(j->out, 0, k, shards);
	else
		lpo_shardw_abort(j->out);
	j->out = NULL;
	return rc;
}

static int
write_shards(struct pairs_job *j)
{
	int64_t per = j->o->per_shard, k, n, shards;
	char *path;
	int rc = 0, there, made = 0;

	shards = j->total / per + (j->total % per != 0 || j->total == 0);
	for (k = 0; k < shards && rc == 0; k++) {
		n = j->total - k * per < per ? j->total - k * per : per;
		path = lpo_cli_shard_path(j->cli, k);
		if (path == NULL)
			return LPO_ENOMEM;
		rc = lpo_cli_shard_there(j->cli, path, &there);
		if (rc == 0 && !there)
			rc = lpo_tmp_sweep(j->cli->ctx, path);
		if (rc == 0 && !there)
			rc = write_shard(j, path, j->o->skip + k * per, n, k,
			    shards);
		else if (rc == 0)
			j->done += n;
		made |= !there;
		lpo_free(path);
	}
	if (rc == 0 && !made)
		lpo_cli_note(j->cli, "'%s' is already done",
		    j->cli->o.output);
	return rc;
}

/* -------------------------------------------------------------- streaming */

/* The rows that a stream had so far, a bit each, in blocks as they come. */
enum { BLOCK = 8 << 10, BLOCKS = 32 << 10 };

struct rows {
	uint8_t *block[BLOCKS];
	int64_t n;
};

/* Draws belong to rows: two inputs with the same rows would share noise. */
static int
new_row(lpo_ctx *c, struct rows *r, int64_t row)
{
	int64_t k = row / (8 * BLOCK), at = row / 8 % BLOCK;
	uint8_t bit = (uint8_t)(1 << row % 8);

	if (k >= BLOCKS)
		return lpo_fail(c, LPO_EFORMAT, "row %lld is beyond %d",
		    (long long)row, INT32_MAX);
	if (r->block[k] == NULL &&
	    (r->block[k] = lpo_alloc(c, BLOCK, 1)) == NULL)
		return LPO_ENOMEM;
	if (r->block[k][at] & bit)
		return lpo_fail(c, LPO_EFORMAT, "row %lld is there twice: "
		    "give several inputs to one lpo-encode, which numbers "
		    "them through", (long long)row);
	r->block[k][at] |= bit;
	r->n++;
	return 0;
}

static void
rows_free(struct rows *r)
{
	int64_t k;

	for (k = 0; r != NULL && k < BLOCKS; k++)
		lpo_free(r->block[k]);
	lpo_free(r);
}

/* A pair that waits in the shuffling buffer. */
struct waiting {
	struct lpo_sample sample;
	struct lpo_record record;
};

static void
waiting_clear(struct waiting *w)
{
	lpo_sample_clear(&w->sample);
	lpo_record_clear(&w->record);
	memset(w, 0, sizeof *w);
}

/* Make and write w[0..n-1], which are cleared. */
static int
emit(struct pairs_job *j, struct waiting *w, int n)
{
	struct lpo_sample s[BATCH];
	int i;

	memset(s, 0, sizeof s);
#pragma omp parallel for schedule(dynamic)
	for (i = 0; i < n; i++) {
		static const char *const name[2] = { "moments_0.npy",
		    "moments_1.npy" };
		struct lpo_pair_in in = { .record = &w[i].record };
		lpo_ctx *c = j->worker[omp_get_thread_num()];
		int k;

		for (k = 0; k < 2; k++) {
			const struct lpo_member *m =
			    lpo_sample_find(&w[i].sample, name[k]);

			in.moments[k] = m != NULL ? m->bytes : NULL;
			in.bytes[k] = m != NULL ? m->size : 0;
		}
		if (lpo_errcode(c) == 0)
			lpo_pair_sample(c, &s[i], &j->pair, &in);
	}
	for (i = 0; i < n; i++)
		waiting_clear(&w[i]);
	return put(j, s, n);
}

/* The next pair that the filters keep; 1 at the end. */
static int
next_kept(struct pairs_job *j, lpo_shards *in, struct waiting *w,
    struct rows *rows)
{
	lpo_ctx *c = j->cli->ctx;
	int rc, keep = 0;

	for (;;) {
		if (lpo_ctx_stopped(c))
			return LPO_ESTOP;
		memset(w, 0, sizeof *w);
		if ((rc = lpo_shards_next(in, &w->sample)) != 0)
			return rc;
		rc = lpo_record_from_json(c, &w->record, w->sample.json);
		if (rc == 0)
			rc = new_row(c, rows, w->record.row);
		if (rc == 0)
			rc = lpo_filter_keep(j->filters, &keep, &w->record);
		else
			lpo_fail_prefix(c, "'%s'", w->sample.key);
		if (rc != 0 || !keep)
			waiting_clear(w);
		if (rc != 0 || keep)
			return rc;
	}
}

/*
 * A buffer of N pairs: a random one leaves, the next of the input takes its
 * place.  The draws are numbered by output pair.
 */
static int
stream(struct pairs_job *j, lpo_shards *in)
{
	struct lpo_draw d = { .seed = j->pair.seed,
	    .purpose = LPO_DRAW_SHUFFLE };
	struct waiting *buf, batch[BATCH];
	struct rows *rows = lpo_alloc(j->cli->ctx, 1, sizeof(*rows));
	int64_t n = 0, out = 0, cap = j->o->shuffle, pick;
	int64_t last = j->o->limit >= 0 ? j->o->skip + j->o->limit : INT64_MAX;
	int filled = 0, end = 0, rc = 0;

	memset(batch, 0, sizeof batch);
	buf = lpo_alloc(j->cli->ctx, (size_t)cap, sizeof *buf);
	if (buf == NULL || rows == NULL) {
		lpo_free(buf);
		lpo_free(rows);
		return LPO_ENOMEM;
	}
	while (rc == 0 && out < last) {
		while (!end && n < cap && rc == 0) {
			rc = next_kept(j, in, &buf[n], rows);
			if (rc == 0)
				n++;
			end = rc == 1;
			rc = rc == 1 ? 0 : rc;
		}
		if (rc != 0 || n == 0)
			break;
		pick = lpo_draw_below(&d, (uint64_t)out, (uint32_t)n);
		if (out++ >= j->o->skip)
			batch[filled++] = buf[pick];
		else
			waiting_clear(&buf[pick]);
		buf[pick] = buf[--n];
		memset(&buf[n], 0, sizeof buf[n]);
		if (filled == BATCH) {
			rc = emit(j, batch, filled);
			filled = 0;
		}
	}
	if (rc == 0)
		rc = emit(j, batch, filled);
	if (rc == 0 && end)
		rc = lpo_filter_rows(j->filters, rows->n);
	for (pick = 0; pick < cap; pick++)
		waiting_clear(&buf[pick]);
	for (pick = 0; pick < BATCH; pick++)
		waiting_clear(&batch[pick]);
	lpo_free(buf);
	rows_free(rows);
	return rc;
}

static unsigned
missing(const struct pairs_opts *o)
{
	return LPO_SHARDS_OPTIONAL |
	    (o->allow_missing ? LPO_SHARDS_ALLOW_MISSING : 0);
}

/* Foreign files say nothing of themselves: their bytes tell them apart. */
static int
add_foreign(struct pairs_job *j)
{
	lpo_cli *cli = j->cli;
	char **names = NULL;
	int64_t n = 0, i;
	int rc;

	if (cli->nargs == 0 || strcmp(cli->args[0], "-") == 0)
		return 0;
	rc = lpo_shards_expand(cli->ctx, &names, &n,
	    (const char *const *)cli->args, cli->nargs);
	for (i = 0; i < n && rc == 0; i++)
		rc = lpo_cli_input_file(cli, "moments", names[i]);
	lpo_names_free(names, n);
	return rc;
}

static int
work_stream(struct pairs_job *j)
{
	lpo_cli *cli = j->cli;
	lpo_state *lock = NULL;
	lpo_shards *in = NULL;
	const json_t *run;
	json_t *parents = NULL;
	const char *id;
	int rc;

	rc = lpo_shards_open(cli->ctx, &in, (const char *const *)cli->args,
	    cli->nargs, missing(j->o));
	if (rc != 0)
		return rc;
	run = lpo_shards_run(in);
	if ((rc = lpo_pair_kind_check(cli->ctx, run, cli->nargs > 0 ?
	    cli->args[0] : "standard input")) != 0 ||
	    (rc = describe(j, run)) != 0 ||
	    (rc = lpo_pair_opts_check(cli->ctx, &j->pair)) != 0)
		goto out;
	parents = json_array();
	id = json_string_value(json_object_get(run, "run"));
	if (id != NULL) {
		json_array_append_new(parents, json_string(id));
		rc = lpo_cli_input_run(cli, "moments", id);
	} else
		rc = add_foreign(j);
	if (rc != 0)
		goto out;
	rc = lpo_cli_begin(cli, lpo_cli_to_stdout(cli) ? NULL :
	    cli->o.output, lpo_cli_existing_tar);
	if (rc != 0)
		goto out;
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "order", "streaming through a buffer of "
		    "%lld pairs", (long long)j->o->shuffle);
		rc = LPO_CLI_DONE;
		goto out;
	}
	finish_run_json(j, json_incref(parents));
	if (!lpo_cli_to_stdout(cli) && (rc = lpo_state_lock(cli->ctx, &lock,
	    cli->o.output)) != 0)
		goto out;
	rc = lpo_shardw_open(cli->ctx, &j->out, lpo_cli_to_stdout(cli) ? "-" :
	    cli->o.output, j->run);
	if (rc != 0)
		goto out;
	if ((rc = stream(j, in)) == 0)
		rc = lpo_shardw_finish(j->out, 0, 0, 1);
	else
		lpo_shardw_abort(j->out);
out:
	rc = lpo_state_end(lock, rc);
	json_decref(parents);
	lpo_shards_close(in);
	return rc;
}

/* ------------------------------------------------------------- the whole */

/* Shared by all modes that have the whole input at hand. */
static int
work_set(struct pairs_job *j)
{
	lpo_cli *cli = j->cli;
	const struct pairs_opts *o = j->o;
	const char *out = lpo_cli_to_stdout(cli) ? NULL : cli->o.output;
	int pattern = lpo_cli_pattern(cli);
	json_t *parents, *p;
	lpo_state *lock;
	size_t i;
	int rc;

	rc = lpo_pairset_open(cli->ctx, &j->set,
	    (const char *const *)cli->args, cli->nargs, o->spool,
	    missing(o));
	if (rc != 0 || (rc = describe(j, lpo_pairset_run(j->set))) != 0 ||
	    (rc = lpo_pair_opts_check(cli->ctx, &j->pair)) != 0 ||
	    (rc = lpo_pairset_select(j->set, j->filters, o->compare > 0)) != 0)
		return rc;
	if (lpo_pairset_items(j->set) == 0 && !o->stats)
		return lpo_fail(cli->ctx, LPO_EFORMAT, "no pair is left of "
		    "%lld (--stats shows what each filter takes)",
		    (long long)lpo_pairset_rows(j->set));
	j->total = o->epochs * lpo_pairset_items(j->set) - o->skip;
	if (o->limit >= 0 && j->total > o->limit)
		j->total = o->limit;
	if (j->total < 0)
		j->total = 0;
	if (j->total == 0 && o->limit != 0 && lpo_pairset_items(j->set) > 0)
		lpo_cli_note(cli, "no pair is left after --skip %lld",
		    (long long)o->skip);
	if ((o->stats || o->dump != NULL) && !cli->o.dry_run) {
		if (o->dump != NULL && (rc = lpo_pairstool_dump(j)) != 0)
			return rc;
		return o->stats ? lpo_pairstool_stats(j) : 0;
	}
	parents = lpo_pairset_parents(j->set);
	json_array_foreach(parents, i, p)
		if ((rc = lpo_cli_input_run(cli, "moments",
		    json_string_value(p))) != 0)
			break;
	lpo_cli_resolved(cli, "rows", json_integer(lpo_pairset_rows(j->set)));
	lpo_cli_resolved(cli, "crc32c",
	    json_integer(lpo_pairset_crc32c(j->set)));
	if (rc == 0)
		rc = lpo_cli_begin(cli, out, pattern ? NULL :
		    lpo_cli_existing_tar);
	finish_run_json(j, parents);
	if (rc != 0)
		return rc;
	if (cli->o.dry_run)
		return lpo_pairstool_plan(j);
	if (out == NULL)
		return write_shard(j, "-", o->skip, j->total, 0, 1);
	if ((rc = lpo_state_lock(cli->ctx, &lock, out)) != 0)
		return rc;
	rc = pattern ? write_shards(j) : write_shard(j, out, o->skip,
	    j->total, 0, 1);
	return lpo_state_end(lock, rc);
}

static int
check(lpo_cli *cli, const struct pairs_opts *o)
{
	int pattern = lpo_cli_pattern(cli), rc;

	if (pattern < 0)
		return pattern;
	if (o->shuffle > 0 && (o->epochs != 1 || o->compare > 0 ||
	    o->in_order || o->stats || o->dump != NULL))
		return lpo_cli_usage(cli, "--shuffle streams: not with "
		    "--epochs, --compare-timesteps, --in-order, --stats or "
		    "--dump");
	if (o->shuffle > 0 && pattern)
		return lpo_cli_usage(cli, "--shuffle streams: the number of "
		    "shards is not known, give -o without %%d");
	if ((o->stats || o->dump != NULL) && !lpo_cli_to_stdout(cli))
		return lpo_cli_usage(cli, "--stats and --dump write no "
		    "tensors: no --output");
	if (o->dump != NULL && !cli->o.force && lpo_file_exists(o->dump))
		return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is there already: "
		    "--force overwrites it", o->dump);
	if ((cli->nargs == 0 || strcmp(cli->args[0], "-") == 0) &&
	    (rc = lpo_cli_binary_stdin(cli)) != 0)
		return rc;
	if (lpo_cli_to_stdout(cli) && !o->stats && o->dump == NULL &&
	    !cli->o.dry_run)
		return lpo_cli_binary_stdout(cli);
	return 0;
}

static int
timesteps(struct pairs_job *j)
{
	lpo_cli *cli = j->cli;
	int rc = lpo_pair_timesteps_parse(cli->ctx, &j->timesteps,
	    &j->pair.n_timesteps, j->o->timesteps);

	return rc == LPO_EINVAL ? lpo_cli_usage(cli, "--%s",
	    lpo_errmsg(cli->ctx)) : rc;
}

static int
work(lpo_cli *cli, const struct pairs_opts *o)
{
	struct pairs_job j = { .cli = cli, .o = o };
	int i, rc;

	if ((rc = check(cli, o)) != 0 ||
	    (rc = timesteps(&j)) != 0 ||
	    (rc = lpo_cli_filter_open(cli, &j.filters, &o->filter)) != 0 ||
	    (rc = new_workers(&j)) != 0)
		goto out;
	j.pair.seed = cli->o.seed;
	j.pair.schedule = &j.schedule;
	j.pair.noise_offset = (float)o->noise_offset;
	j.pair.timesteps = j.timesteps;
	j.pair.interval = o->compare;
	j.pair.dtype = o->dtype ? LPO_NPY_F4 : LPO_NPY_F2;
	rc = o->shuffle > 0 ? work_stream(&j) : work_set(&j);
out:
	for (i = 0; j.worker != NULL && i < j.workers; i++)
		lpo_ctx_free(j.worker[i]);
	lpo_free(j.worker);
	lpo_pairset_close(j.set);
	lpo_filter_close(j.filters);
	lpo_schedule_free(&j.schedule);
	lpo_free(j.timesteps);
	json_decref(j.run);
	return rc;
}

int
main(int argc, char **argv)
{
	struct pairs_opts o = { .timesteps = "1:951:50", .epochs = 1, .limit = -1,
	    .per_shard = 10000 };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	if (rc == 0)
		rc = work(&cli, &o);
	return lpo_cli_end(&cli, rc);
}
