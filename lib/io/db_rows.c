/* Rows of our tables: runs, metrics, what is judged, hashes of files. */
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/hash.h"
#include "lib/base/progress.h"
#include "lib/io/db_priv.h"

static const char sql_run[] =
    "INSERT INTO run (run, tool, version, options, seed, output, started_at) "
    "VALUES (?,?,?,?,?,?,?) ON CONFLICT (run) DO UPDATE SET "
    "output = excluded.output, status = 'running', ended_at = NULL";
static const char sql_attempt[] =
    "INSERT INTO attempt (run_id, argv, host, pid, device, isa, precision, "
    "threads, started_at) VALUES (?,?,?,?,?,?,?,?,?)";
static const char sql_metric[] =
    "INSERT OR REPLACE INTO metric (run_id, name, step, value) "
    "VALUES (?,?,?,?)";

static int64_t
now(void)
{
	return (int64_t)time(NULL);
}

static const char *
status_name(enum lpo_db_status s)
{
	static const char *const names[] = { "running", "done", "failed",
	    "stopped" };

	return names[s];
}

/* ------------------------------------------------------------------ runs */

int
lpo_db_run_begin(lpo_db *db, int64_t *run_id, int64_t *attempt_id,
    const struct lpo_db_attempt *a)
{
	char host[256] = "";
	int rc;

	*run_id = *attempt_id = 0;
	if (db == NULL)
		return 0;
	(void)gethostname(host, sizeof(host) - 1);
	if ((rc = lpo_db_begin(db)) < 0)
		return rc;
	if ((rc = lpo_db_run(db, NULL, sql_run, "ssssisi", a->run, a->tool,
	    a->version, a->options, a->seed, a->output, now())) < 0 ||
	    (rc = lpo_db_lookup(db, run_id, "SELECT id FROM run WHERE run = ?",
	    "s", a->run)) < 0 ||
	    (rc = lpo_db_run(db, attempt_id, sql_attempt, "ississsii",
	    *run_id, a->argv, host, (int64_t)getpid(), a->device, a->isa,
	    a->precision, (int64_t)a->threads, now())) < 0) {
		lpo_db_rollback(db);
		return rc;
	}
	return lpo_db_commit(db);
}

int
lpo_db_run_end(lpo_db *db, int64_t run_id, int64_t attempt_id,
    enum lpo_db_status status, int exit_status, const char *message)
{
	int rc;

	if (db == NULL)
		return 0;
	if ((rc = lpo_db_flush(db)) < 0 || (rc = lpo_db_begin(db)) < 0)
		return rc;
	if ((rc = lpo_db_run(db, NULL, "UPDATE attempt SET status = ?, "
	    "exit_status = ?, message = ?, ended_at = ? WHERE id = ?",
	    "sisii", status_name(status), (int64_t)exit_status, message,
	    now(), attempt_id)) < 0 ||
	    (rc = lpo_db_run(db, NULL, "UPDATE run SET status = ?, "
	    "ended_at = ? WHERE id = ?", "sii", status_name(status), now(),
	    run_id)) < 0) {
		lpo_db_rollback(db);
		return rc;
	}
	return lpo_db_commit(db);
}

int
lpo_db_run_done(lpo_db *db, const char *run)
{
	return lpo_db_run(db, NULL, "UPDATE run SET status = 'done', "
	    "ended_at = ? WHERE run = ? AND status <> 'done'", "is", now(),
	    run);
}

int
lpo_db_input(lpo_db *db, int64_t run_id, const char *role, const char *path,
    const char *sha256, int64_t size_bytes)
{
	return lpo_db_run(db, NULL, "INSERT OR REPLACE INTO input (run_id, "
	    "role, path, sha256, size_bytes) VALUES (?,?,?,?,?)", "isssi",
	    run_id, role, path, sha256, size_bytes);
}

int
lpo_db_parent(lpo_db *db, int64_t run_id, const char *parent_run)
{
	return lpo_db_run(db, NULL, "INSERT OR IGNORE INTO parent (run_id, "
	    "parent) VALUES (?,?)", "is", run_id, parent_run);
}

int
lpo_db_log(lpo_db *db, int64_t run_id, int64_t attempt_id, const char *level,
    const char *text)
{
	return lpo_db_run(db, NULL, "INSERT INTO log (run_id, attempt_id, "
	    "level, text, logged_at) VALUES (?,?,?,?,?)", "iissi", run_id,
	    attempt_id, level, text, now());
}

int
lpo_db_checkpoint(lpo_db *db, int64_t run_id, int64_t step, const char *path,
    const char *sha256, double check_score)
{
	return lpo_db_run(db, NULL, "INSERT OR REPLACE INTO checkpoint "
	    "(run_id, step, path, sha256, check_score, created_at) "
	    "VALUES (?,?,?,?,?,?)", "iissdi", run_id, step, path, sha256,
	    check_score, now());
}

/* --------------------------------------------------------------- metrics */

int
lpo_db_metric(lpo_db *db, int64_t run_id, int64_t step, const char *name,
    double value)
{
	struct lpo_db_metric_row *m;
	int rc;

	if (db == NULL)
		return 0;
	if (strlen(name) >= sizeof(m->name))
		return lpo_fail(db->ctx, LPO_EINVAL,
		    "'%s' is too long for a metric's name", name);
	if (db->n_metrics == LPO_DB_ROOM && (rc = lpo_db_flush(db)) < 0)
		return rc;
	m = &db->metric[db->n_metrics++];
	strcpy(m->name, name);
	m->run_id = run_id;
	m->step = step;
	m->value = value;
	if (db->flushed_s == 0)
		db->flushed_s = lpo_now_s();
	return db->n_metrics >= LPO_DB_METRICS ||
	    lpo_now_s() - db->flushed_s >= 1 ? lpo_db_flush(db) : 0;
}

int
lpo_db_flush(lpo_db *db)
{
	int i, n, rc = 0, own;

	if (db == NULL || db->n_metrics == 0)
		return 0;
	n = db->n_metrics;
	/* Inside a caller's transaction these rows are part of it. */
	own = sqlite3_get_autocommit(db->sql);
	if (own && (rc = lpo_db_begin(db)) < 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++)
		rc = lpo_db_run(db, NULL, sql_metric, "isid",
		    db->metric[i].run_id, db->metric[i].name,
		    db->metric[i].step, db->metric[i].value);
	if (rc < 0 && own)
		lpo_db_rollback(db);
	if (rc < 0 || (own && (rc = lpo_db_commit(db)) < 0))
		return rc;	/* they are kept for another try */
	db->n_metrics = 0;
	db->flushed_s = lpo_now_s();
	return 0;
}

/* -------------------------------------------------------- what is judged */

int
lpo_db_preference(lpo_db *db, int64_t run_id, int64_t row, const char *id,
    const char *prompt, double label_0, double label_1,
    const char *extra_json)
{
	return lpo_db_run(db, NULL, "INSERT OR REPLACE INTO preference "
	    "(run_id, row, user_id, prompt, label_0, label_1, extra) "
	    "VALUES (?,?,?,?,?,?,?)", "iissdds", run_id, row, id, prompt,
	    label_0, label_1, extra_json);
}

int
lpo_db_system(lpo_db *db, int64_t *system_id, int64_t run_id,
    const char *name, const char *model, const char *lora)
{
	int rc;

	*system_id = 0;
	if (db == NULL)
		return 0;
	if ((rc = lpo_db_run(db, NULL, "INSERT INTO system (run_id, name, "
	    "model, lora) VALUES (?,?,?,?) ON CONFLICT (run_id, name) DO "
	    "UPDATE SET model = excluded.model, lora = excluded.lora", "isss",
	    run_id, name, model, lora)) < 0)
		return rc;
	return lpo_db_lookup(db, system_id, "SELECT id FROM system WHERE "
	    "run_id = ? AND name = ?", "is", run_id, name);
}

int
lpo_db_image(lpo_db *db, int64_t *image_id, int64_t system_id,
    const char *key, int64_t prompt_index, const char *prompt,
    int64_t number, int64_t seed, const char *sha256)
{
	int rc;

	*image_id = 0;
	if (db == NULL)
		return 0;
	if ((rc = lpo_db_run(db, NULL, "INSERT INTO image (system_id, key, "
	    "prompt_index, prompt, number, seed, sha256) VALUES "
	    "(?,?,?,?,?,?,?) ON CONFLICT (system_id, key) DO UPDATE SET "
	    "prompt = excluded.prompt, sha256 = excluded.sha256", "isisiis",
	    system_id, key, prompt_index, prompt, number, seed, sha256)) < 0)
		return rc;
	return lpo_db_lookup(db, image_id, "SELECT id FROM image WHERE "
	    "system_id = ? AND key = ?", "is", system_id, key);
}

int
lpo_db_score(lpo_db *db, int64_t image_id, const char *scorer, double value)
{
	return lpo_db_run(db, NULL, "INSERT OR REPLACE INTO score (image_id, "
	    "scorer, value) VALUES (?,?,?)", "isd", image_id, scorer, value);
}

int
lpo_db_result(lpo_db *db, int64_t run_id, const struct lpo_db_result *r)
{
	return lpo_db_run(db, NULL, "INSERT OR REPLACE INTO result (run_id, "
	    "scorer, system_id, base_id, n_prompts, n_images, mean_system, "
	    "mean_base, difference, difference_low, difference_high, "
	    "win_rate, win_rate_low, win_rate_high) VALUES "
	    "(?,?,?,?,?,?,?,?,?,?,?,?,?,?)", "isiiiidddddddd", run_id,
	    r->scorer, r->system_id, r->base_id, r->n_prompts, r->n_images,
	    r->mean_system, r->mean_base, r->difference, r->difference_low,
	    r->difference_high, r->win_rate, r->win_rate_low,
	    r->win_rate_high);
}

/* ---------------------------------------------------------------- hashes */

static const char sql_cached[] =
    "SELECT sha256 FROM file_hash WHERE device = ? AND inode = ? AND "
    "size_bytes = ? AND mtime_ns = ?";

int
lpo_db_file_sha256(lpo_ctx *c, lpo_db *db, char out[65], const char *path)
{
	enum { WORTH_IT = 1 << 20 };	/* smaller files are hashed at once */
	const unsigned char *hex;
	struct stat sb;
	sqlite3_stmt *st;
	int64_t mtime;
	int rc;

	if (db == NULL || stat(path, &sb) < 0 || sb.st_size < WORTH_IT)
		return lpo_sha256_file(c, out, path);
	mtime = (int64_t)sb.st_mtim.tv_sec * 1000000000 + sb.st_mtim.tv_nsec;
	if ((rc = lpo_db_prepare(db, &st, sql_cached)) < 0 ||
	    (rc = lpo_db_bind(db, st, "iiii", (int64_t)sb.st_dev,
	    (int64_t)sb.st_ino, (int64_t)sb.st_size, mtime)) < 0 ||
	    (rc = lpo_db_step(db, st)) < 0)
		return rc;
	if (rc == 0 && (hex = sqlite3_column_text(st, 0)) != NULL &&
	    sqlite3_column_bytes(st, 0) == 64) {
		memcpy(out, hex, 65);
		sqlite3_reset(st);
		return 0;
	}
	sqlite3_reset(st);
	if ((rc = lpo_sha256_file(c, out, path)) < 0 || db->read_only)
		return rc;
	return lpo_db_run(db, NULL, "INSERT OR REPLACE INTO file_hash "
	    "(device, inode, size_bytes, mtime_ns, sha256) VALUES "
	    "(?,?,?,?,?)", "iiiis", (int64_t)sb.st_dev, (int64_t)sb.st_ino,
	    (int64_t)sb.st_size, mtime, out);
}

int
lpo_db_file_sha256_cb(lpo_ctx *c, void *db, char out[65], const char *path)
{
	return lpo_db_file_sha256(c, db, out, path);
}
