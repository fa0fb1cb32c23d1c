/* lpo-encode: images and preferences to VAE moments. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/state.h"
#include "lib/io/db.h"
#include "lib/io/shard_join.h"
#include "tools/encode.h"

#define O(name, letter, arg, type, member, flags, min, max, help) \
	{ name, letter, arg, help, type, offsetof(struct encode_opts, member), \
	  flags, min, max }
static const struct lpo_cli_option options[] = {
	O("size", 's', "PX", LPO_CLI_I64, size_px, 0, 1, 16384,
	    "images become PX x PX (what the model was trained at)"),
	O("images-only", 0, NULL, LPO_CLI_FLAG, images_only, LPO_CLI_RESULT,
	    0, 0, "folders of images, no preferences"),
	LPO_CLI_FILTER_ROWS(struct encode_opts, filter),
	O("exif", 0, NULL, LPO_CLI_FLAG, exif, LPO_CLI_RESULT, 0, 0,
	    "turn images as their EXIF orientation says"),
	O("dtype", 0, "f2|f4", LPO_CLI_CHOICE, dtype, LPO_CLI_RESULT, 0, 0,
	    "type of the moments (f2)"),
	O("rows-per-shard", 0, "N", LPO_CLI_I64, rows_per_shard, 0, 1, 1e9,
	    "input rows in one shard (1000)"),
	O("part", 0, "I/N", LPO_CLI_STRING, part, 0, 0, 0,
	    "make only shards k with k mod N = I (for several machines)"),
	{ NULL, 0, NULL, NULL, LPO_CLI_FLAG, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-encode", "images and preferences to VAE moments",
	"-m DIR [options] prefs.csv|folder|tar ...\n"
	"-m DIR --images-only [options] folder ...", options
};

/* One input row on its way through the encoder. */
struct work_row {
	struct lpo_record r;
	uint8_t *data[2];
	int64_t bytes[2];
};

/* ---------------------------------------------------------- the encoder */

/* Open on `be`, activations in `room` bytes (0: any). */
static int
open_on(struct encode_job *j, lpo_backend *be, size_t room)
{
	lpo_cli *cli = j->cli;
	struct lpo_encoder_opts eo = { .size_px = j->size_px,
	    .exif = j->o->exif,
	    .dtype = j->o->dtype ? LPO_NPY_F4 : LPO_NPY_F2,
	    .memory_bytes = (int64_t)room, .batch = j->batch,
	    .cache_bytes = lpo_cli_memory(cli) / 8 };
	enum lpo_dtype dt = lpo_cli_precision(cli);
	char *dir;
	int rc;

	if ((rc = lpo_cli_model_part(cli, &dir, "vae")) != 0)
		return rc;
	rc = lpo_vae_load(cli->ctx, be, &j->vae, dir, dt, LPO_VAE_ENCODER);
	lpo_free(dir);
	if (rc != 0)
		return rc;
	return lpo_encoder_new(cli->ctx, &j->encoder, be, j->vae, dt, &eo);
}

static void
close_encoder(struct encode_job *j)
{
	lpo_encoder_free(j->encoder);
	lpo_vae_free(j->vae);
	j->encoder = NULL;
	j->vae = NULL;
}

static int64_t
images(const struct encode_job *j)
{
	return j->kept * (j->o->images_only ? 1 : 2);
}

static int64_t
moment_bytes(const struct encode_job *j)
{
	int64_t shape[3];

	lpo_encoder_shape(j->encoder, shape);
	return shape[0] * shape[1] * shape[2] * (j->o->dtype ? 4 : 2) + 256;
}

static int
make(void *arg, size_t room)
{
	struct encode_job *j = arg;
	int64_t cache, px = 3 * j->size_px * j->size_px;
	int rc;

	if ((rc = open_on(j, &j->dry.dry.be, room)) != 0)
		return rc;
	/* moments kept; pictures being decoded, as large as asked for, say */
	cache = images(j) * moment_bytes(j);
	if (cache > (int64_t)256 << 20)
		cache = (int64_t)256 << 20;
	j->dry.more = cache + 2 * px * lpo_cli_threads(j->cli);
	return 0;
}

static size_t
unmake(void *arg)
{
	struct encode_job *j = arg;
	size_t bytes = lpo_encoder_plan(j->encoder)->arena_bytes;

	close_encoder(j);
	return bytes;
}

/* The batch that fits, before anything is loaded; or a refusal. */
static int
fit(struct encode_job *j)
{
	char parts[96], ways[64];
	int64_t need, vae;
	size_t room;
	int rc;

	lpo_cli_dry_begin(j->cli, &j->dry);
	if ((rc = lpo_cli_dry_fit(&j->dry, &room, make, unmake, j)) == 1) {
		lpo_cli_dry_phase(&j->dry, 0);
		j->batch = 1;
		if ((rc = make(j, 0)) == 0) {
			need = lpo_cli_dry_over(&j->dry) + j->dry.limit;
			vae = lpo_vae_params(j->vae)->bytes;
			snprintf(parts, sizeof parts, "VAE %lld, activations "
			    "of one image %zu MiB", (long long)(vae >> 20),
			    lpo_encoder_plan(j->encoder)->arena_bytes >> 20);
			snprintf(ways, sizeof ways, "%s", lpo_cli_precision(
			    j->cli) == LPO_F32 ? "--precision bf16" : "");
			rc = lpo_cli_refuse(j->cli, &j->dry, need, parts,
			    ways);
		}
	}
	if (rc == 0)
		j->batch = lpo_encoder_batch(j->encoder);
	lpo_cli_dry_end(j->cli);
	return rc;
}

static int
plan(struct encode_job *j)
{
	lpo_cli *cli = j->cli;
	const struct lpo_plan *p = lpo_encoder_plan(j->encoder);
	int64_t vae = lpo_vae_params(j->vae)->bytes, bad = 0, i, shape[3];
	double s;
	int rc;

	for (i = 0; i < j->rows; i++)
		bad += j->keep[i] == 2;
	lpo_encoder_shape(j->encoder, shape);
	lpo_cli_plan(cli, "run", "%s", lpo_cli_run(cli));
	lpo_cli_plan(cli, "rows", "%lld", (long long)j->rows);
	lpo_cli_plan(cli, "bad rows", "%lld", (long long)bad);
	lpo_cli_plan(cli, "rows after filters", "%lld", (long long)j->kept);
	lpo_cli_plan(cli, "images at most", "%lld", (long long)images(j));
	lpo_cli_plan(cli, "image", "%lldx%lld px", (long long)j->size_px,
	    (long long)j->size_px);
	lpo_cli_plan(cli, "moments", "%lldx%lldx%lld", (long long)shape[0],
	    (long long)shape[1], (long long)shape[2]);
	lpo_cli_plan(cli, "batch", "%lld images",
	    (long long)lpo_encoder_batch(j->encoder));
	lpo_cli_plan_bytes(cli, "VAE", vae);
	lpo_cli_plan_bytes(cli, "activations", (int64_t)p->arena_bytes);
	lpo_cli_plan_bytes(cli, "program, input and moments",
	    lpo_cli_dry_program(&j->dry) + j->dry.more);
	lpo_cli_plan_memory(cli, &j->dry);
	lpo_cli_plan(cli, "GFLOP in all", "%.1f", 1e-9 * p->fwd_flops /
	    (double)lpo_encoder_batch(j->encoder) * (double)images(j));
	lpo_cli_plan(cli, "output bytes", "%lld", (long long)(images(j) *
	    (moment_bytes(j) + 1280)));
	if ((rc = lpo_encoder_time(j->encoder, &s)) < 0)
		return rc;
	if (isnan(s))
		s = p->fwd_flops / (double)lpo_encoder_batch(j->encoder) /
		    (lpo_cli_speed(cli, lpo_cli_precision(cli)) * 1e9 / 2);
	s = s * (double)images(j) + lpo_cli_load_s(vae);
	lpo_cli_plan(cli, "time in all", "%.1f s, without decoding", s);
	return LPO_CLI_DONE;
}

/* -------------------------------------------------------------- database */

/* One transaction for many rows: a commit waits for the disk. */
static int
flush_rows(struct encode_job *j)
{
	lpo_db *db = lpo_cli_db(j->cli);
	int64_t run = lpo_cli_db_run(j->cli);
	char *extra;
	int i, rc = 0;

	if (db != NULL && j->n_row > 0)
		rc = lpo_db_begin(db);
	for (i = 0; i < j->n_row; i++) {
		struct lpo_record *r = &j->row[i];

		extra = NULL;
		if (rc == 0 && db != NULL && (extra = lpo_json_dumps(
		    j->cli->ctx, r->extra)) == NULL)
			rc = LPO_ENOMEM;
		if (rc == 0)
			rc = lpo_db_preference(db, run, r->row, r->id,
			    r->prompt, r->label_0, r->label_1, extra);
		lpo_free(extra);
		lpo_record_clear(r);
	}
	if (db != NULL && j->n_row > 0) {
		if (rc == 0)
			rc = lpo_db_commit(db);
		else
			lpo_db_rollback(db);
	}
	j->n_row = 0;
	return rc;
}

/* Takes the record over. */
static int
keep_row(struct encode_job *j, struct lpo_record *r)
{
	if (j->o->images_only || lpo_cli_db(j->cli) == NULL) {
		lpo_record_clear(r);
		return 0;
	}
	j->row[j->n_row++] = *r;
	memset(r, 0, sizeof *r);
	return j->n_row == KEPT_ROWS ? flush_rows(j) : 0;
}

/* --------------------------------------------------------------- encoding */

/* Said and listed; why may be the context's text, which is cleared. */
static int
skip_row(struct encode_job *j, int64_t row, const char *image, const char *why)
{
	char text[1024];

	if (image != NULL)
		snprintf(text, sizeof text, "row %lld: '%s': %s",
		    (long long)row, image, why);
	else
		snprintf(text, sizeof text, "row %lld: %s", (long long)row,
		    why);
	lpo_clear(j->cli->ctx);
	lpo_cli_skip(j->cli, "%s", text);
	j->shard_skipped++;
	return lpo_db_log(lpo_cli_db(j->cli), lpo_cli_db_run(j->cli),
	    lpo_cli_db_attempt(j->cli), "warning", text);
}

static void
row_clear(struct work_row *w)
{
	lpo_record_clear(&w->r);
	lpo_free(w->data[0]);
	lpo_free(w->data[1]);
	memset(w, 0, sizeof *w);
}

/*
 * Row i with its images' bytes.  1: skipped, said.
 */
static int
read_row(struct encode_job *j, struct work_row *w, int64_t i)
{
	lpo_ctx *c = j->cli->ctx;
	int k, rc;

	memset(w, 0, sizeof *w);
	if (j->keep[i] == 2)
		return (rc = skip_row(j, i, NULL, lpo_records_error(
		    j->records, i))) != 0 ? rc : 1;
	if ((rc = lpo_records_get(c, &w->r, j->records, i)) != 0)
		return rc;
	if (j->extra[i] != NULL) {
		json_decref(w->r.extra);
		w->r.extra = json_incref(j->extra[i]);
	}
	for (k = 0; k < (j->o->images_only ? 1 : 2); k++) {
		rc = lpo_records_image(c, &w->data[k], &w->bytes[k],
		    j->records, i, k);
		if (rc == 0)
			continue;
		/* the system's trouble is not the row's: again, not without */
		if (rc == LPO_ENOMEM || rc == LPO_ESTOP || rc == LPO_EIO) {
			lpo_fail_prefix(c, "row %lld", (long long)i);
			row_clear(w);
			return rc;
		}
		rc = skip_row(j, i, w->r.image[k], lpo_errmsg(c));
		row_clear(w);
		return rc != 0 ? rc : 1;
	}
	return 0;
}

static int
add_member(struct encode_job *j, struct lpo_sample *s, const char *name,
    const struct lpo_encode_item *it)
{
	uint8_t *copy = lpo_alloc(j->cli->ctx, (size_t)it->npy_bytes, 1);

	if (copy == NULL)
		return LPO_ENOMEM;
	memcpy(copy, it->npy, (size_t)it->npy_bytes);
	return lpo_sample_add(j->cli->ctx, s, name, copy, it->npy_bytes);
}

/* One sample; a row with a bad image is left out and named. */
static int
write_row(struct encode_job *j, struct work_row *w,
    const struct lpo_encode_item *it)
{
	lpo_ctx *c = j->cli->ctx;
	struct lpo_sample s;
	int n = j->o->images_only ? 1 : 2, k, rc = 0;

	memset(&s, 0, sizeof s);
	for (k = 0; k < n; k++)
		if (it[k].npy == NULL)
			return skip_row(j, w->r.row, w->r.image[k],
			    it[k].error);
	if ((s.key = lpo_strdup(c, w->r.key)) == NULL)
		return LPO_ENOMEM;
	for (k = 0; k < n && rc == 0; k++)
		rc = add_member(j, &s, n == 1 ? "moments.npy" : k == 0 ?
		    "moments_0.npy" : "moments_1.npy", &it[k]);
	if (rc == 0)
		rc = lpo_record_to_json(c, &s.json, &w->r);
	if (rc == 0)
		rc = lpo_shardw_put(j->out, &s);
	if (rc == 0)
		rc = keep_row(j, &w->r);
	lpo_sample_clear(&s);
	return rc;
}

/* Input rows first .. last - 1 into the open shard, a window at a time. */
static int
encode_rows(struct encode_job *j, int64_t first, int64_t last)
{
	int per = j->o->images_only ? 1 : 2, n, k, rc = 0;
	int64_t window = lpo_encoder_window(j->encoder) / per, i = first;
	struct work_row *w;
	struct lpo_encode_item *it;

	window = window > 0 ? window : 1;
	w = lpo_alloc(j->cli->ctx, (size_t)window, sizeof *w);
	it = lpo_alloc(j->cli->ctx, (size_t)(window * per), sizeof *it);
	if (w == NULL || it == NULL)
		rc = LPO_ENOMEM;
	while (rc == 0 && i < last) {
		for (n = 0; n < window && i < last && rc >= 0; i++) {
			if (j->keep[i] == 0)
				continue;
			if ((rc = read_row(j, &w[n], i)) != 0)
				continue;
			for (k = 0; k < per; k++) {
				it[n * per + k].data = w[n].data[k];
				it[n * per + k].bytes = w[n].bytes[k];
			}
			n++;
		}
		rc = rc < 0 ? rc : lpo_encoder_run(j->encoder, it,
		    (int64_t)n * per);
		for (k = 0; k < n; k++) {
			if (rc == 0)
				rc = write_row(j, &w[k], &it[k * per]);
			row_clear(&w[k]);
		}
		j->done += n;
		lpo_cli_progress(j->cli, "encode", j->done, j->kept, "rows",
		    NULL);
		if (rc == 0 && lpo_ctx_stopped(j->cli->ctx))
			rc = LPO_ESTOP;
	}
	lpo_free(w);
	lpo_free(it);
	return rc;
}

/* One file with rows first .. last - 1, shard k of n. */
static int
write_shard(struct encode_job *j, const char *path, int64_t first, int64_t last,
    int64_t k, int64_t n)
{
	int rc;

	j->shard_skipped = 0;
	if ((rc = lpo_shardw_open(j->cli->ctx, &j->out, path, j->run)) != 0)
		return rc;
	rc = encode_rows(j, first, last);
	/* rows first: a shard that is there is never looked at again */
	if (rc == 0)
		rc = flush_rows(j);
	if (rc == 0)
		rc = lpo_shardw_finish(j->out, j->shard_skipped, k, n);
	else
		lpo_shardw_abort(j->out);
	j->out = NULL;
	return rc;
}


/* What a finished shard left out counts again: exit 3 also after a resume. */
static int
count_done(struct encode_job *j, const char *path)
{
	lpo_shard *s = NULL;
	int64_t skipped = 0;
	int rc;

	if ((rc = lpo_shard_open(j->cli->ctx, &s, path)) != 0)
		return rc;
	if (!json_equal(json_object_get(lpo_shard_run(s), "rows_per_shard"),
	    json_object_get(j->run, "rows_per_shard"))) {
		lpo_shard_close(s);
		return lpo_fail(j->cli->ctx, LPO_EINVAL, "'%s' was made with "
		    "another --rows-per-shard: give that one, or --fresh",
		    path);
	}
	rc = lpo_json_int(j->cli->ctx, &skipped, lpo_shard_end(s), "skipped",
	    0);
	j->cli->skipped += skipped;
	j->done += lpo_shard_samples(s);
	lpo_shard_close(s);
	return rc;
}

/* Rows are cut by number, so every part of --part makes the same files. */
static int
write_pattern(struct encode_job *j)
{
	int64_t per = j->o->rows_per_shard, k, last;
	int64_t n = j->rows / per + (j->rows % per != 0 || j->rows == 0);
	char *path;
	int there, made = 0, rc = 0;

	for (k = j->part; k < n && rc == 0; k += j->parts) {
		last = (k + 1) * per < j->rows ? (k + 1) * per : j->rows;
		if ((path = lpo_cli_shard_path(j->cli, k)) == NULL)
			return LPO_ENOMEM;
		rc = lpo_cli_shard_there(j->cli, path, &there);
		if (rc == 0 && there)
			rc = count_done(j, path);
		else if (rc == 0 && (rc = lpo_tmp_sweep(j->cli->ctx,
		    path)) == 0)
			rc = write_shard(j, path, k * per, last, k, n);
		made |= !there;
		lpo_free(path);
	}
	j->already = !made && k > j->part;
	return rc;
}

/*
 * One large file: parts of a shard's rows in the state folder, so that a kill
 * costs one part and not all.  The parts say how they are cut; the file, which
 * is the same for any cut, doesn't.
 */
static int
write_resumable(struct encode_job *j)
{
	lpo_ctx *c = j->cli->ctx;
	int64_t per = j->o->rows_per_shard, k, last;
	int64_t n = (j->rows + per - 1) / per;
	lpo_state *st = NULL;
	json_t *run = json_copy(j->run);
	char name[32], **path;
	int there, rc;

	if ((path = lpo_alloc(c, (size_t)n, sizeof *path)) == NULL ||
	    run == NULL || lpo_json_set(c, j->run, "rows_per_shard",
	    json_integer(per)) != 0) {
		json_decref(run);
		lpo_free(path);
		return LPO_ENOMEM;
	}
	rc = lpo_state_open(c, &st, j->cli->o.output, lpo_cli_run(j->cli),
	    lpo_cli_run_options(j->cli), j->cli->o.fresh);
	for (k = 0; k < n && rc == 0; k++) {
		last = (k + 1) * per < j->rows ? (k + 1) * per : j->rows;
		snprintf(name, sizeof name, "%06lld.tar", (long long)k);
		if ((path[k] = lpo_state_file(c, st, name)) == NULL) {
			rc = LPO_ENOMEM;
			break;
		}
		rc = lpo_cli_shard_there(j->cli, path[k], &there);
		if (rc == 0 && there)
			rc = count_done(j, path[k]);
		else if (rc == 0)
			rc = write_shard(j, path[k], k * per, last, k, n);
	}
	if (rc == 0)
		rc = lpo_shard_join(c, j->cli->o.output, run,
		    (const char *const *)path, n);
	json_decref(run);
	for (k = 0; k < n; k++)
		lpo_free(path[k]);
	lpo_free(path);
	return lpo_state_end(st, rc);
}

/* Parts write different files of one pattern at the same time. */
static int
lock_output(struct encode_job *j, lpo_state **lock)
{
	const char *out = j->cli->o.output;
	char *part = NULL;
	int rc;

	if (j->parts > 1 && (part = lpo_asprintf(j->cli->ctx,
	    "%.*spart%lldof%lld%%", (int)strcspn(out, "%"), out,
	    (long long)j->part, (long long)j->parts)) == NULL)
		return LPO_ENOMEM;
	rc = lpo_state_lock(j->cli->ctx, lock, part != NULL ? part : out);
	lpo_free(part);
	return rc;
}

static int
write_all(struct encode_job *j)
{
	const char *out = j->cli->o.output;
	lpo_state *lock;
	int rc;

	if (lpo_cli_to_stdout(j->cli))
		return write_shard(j, "-", 0, j->rows, 0, 1);
	if (!lpo_cli_pattern(j->cli) && j->rows > j->o->rows_per_shard)
		return write_resumable(j);
	if ((rc = lock_output(j, &lock)) != 0)
		return rc;
	rc = lpo_cli_pattern(j->cli) ? write_pattern(j) :
	    write_shard(j, out, 0, j->rows, 0, 1);
	return lpo_state_end(lock, rc);
}

/* -------------------------------------------------------------- the whole */

static int
check(struct encode_job *j)
{
	lpo_cli *cli = j->cli;
	int rc, pattern = lpo_cli_pattern(cli);

	if (pattern < 0)
		return pattern;
	if ((rc = lpo_cli_need_model(cli)) != 0 || (rc = lpo_encodetool_part(j)) != 0)
		return rc;
	if (cli->nargs == 0)
		return lpo_cli_usage(cli, "no input: name a table, folder or "
		    "tar (%s --help)", cli->tool->name);
	if (j->o->part != NULL && !pattern)
		return lpo_cli_usage(cli, "--part needs several shards: "
		    "-o NAME-%%06d.tar");
	if (j->o->images_only && (j->o->filter.filter != NULL ||
	    j->o->filter.where != NULL || j->o->filter.scores != NULL ||
	    j->o->filter.drop_ties))
		return lpo_cli_usage(cli, "--images-only has no preferences "
		    "to filter");
	if (lpo_cli_to_stdout(cli) && !cli->o.dry_run)
		return lpo_cli_binary_stdout(cli);
	return 0;
}

/*
 * Cheap refusals first: options, backend, inputs, then the run id and what is
 * there already, and only then filters and weights.
 */
static int
prepare(struct encode_job *j)
{
	lpo_cli *cli = j->cli;
	int rc;

	if ((rc = check(j)) != 0 || (rc = lpo_cli_backend(cli)) != 0 ||
	    (rc = lpo_encodetool_size(j)) != 0)
		return rc;
	rc = lpo_records_open(cli->ctx, &j->records,
	    (const char *const *)cli->args, cli->nargs,
	    j->o->images_only ? LPO_RECORDS_IMAGES_ONLY : 0);
	if (rc != 0)
		return rc;
	j->rows = lpo_records_count(j->records);
	if ((rc = lpo_cli_filter_open(cli, &j->filters,
	    &j->o->filter)) != 0 || (rc = lpo_encodetool_inputs(j)) != 0)
		return rc;
	rc = lpo_cli_begin(cli, lpo_cli_to_stdout(cli) ? NULL :
	    cli->o.output, lpo_cli_pattern(cli) ? NULL :
	    lpo_cli_existing_tar);
	if (rc != 0 || (rc = lpo_encodetool_select(j)) != 0 ||
	    (rc = fit(j)) != 0)
		return rc;
	if (!cli->o.dry_run) {
		close_encoder(j);
		if ((rc = open_on(j, &cli->be, 0)) != 0)
			return rc;
	}
	j->row = lpo_alloc(cli->ctx, KEPT_ROWS, sizeof *j->row);
	return j->row != NULL ? lpo_encodetool_run_json(j) : LPO_ENOMEM;
}

static int
work(lpo_cli *cli, const struct encode_opts *o)
{
	struct encode_job j = { .cli = cli, .o = o };
	int64_t i, given, encoded;
	int rc;

	if ((rc = prepare(&j)) == 0)
		rc = cli->o.dry_run ? plan(&j) : write_all(&j);
	if (j.already && rc == 0)
		lpo_cli_note(cli, "'%s' is already done", cli->o.output);
	else if (j.encoder != NULL && rc == 0) {
		lpo_encoder_counts(j.encoder, &given, &encoded);
		lpo_cli_note(cli, "%lld rows, %lld distinct images encoded%s",
		    (long long)j.kept, (long long)encoded,
		    cli->skipped > 0 ? ", some skipped" : "");
	}
	for (i = 0; i < j.n_row; i++)
		lpo_record_clear(&j.row[i]);
	for (i = 0; j.extra != NULL && i < j.rows; i++)
		json_decref(j.extra[i]);
	lpo_free(j.row);
	lpo_free(j.extra);
	lpo_free(j.keep);
	lpo_encoder_free(j.encoder);
	lpo_vae_free(j.vae);
	lpo_filter_close(j.filters);
	lpo_records_close(j.records);
	json_decref(j.run);
	return rc;
}

int
main(int argc, char **argv)
{
	struct encode_opts o = { .rows_per_shard = 1000 };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	if (rc == 0)
		rc = work(&cli, &o);
	return lpo_cli_end(&cli, rc);
}
