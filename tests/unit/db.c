/*
 * The database: schema, runs and attempts, metrics in batches, what is
 * judged, the cache of file hashes, many writers at once; SQLite without
 * memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/io/db.h"
#include "tests/tap.h"

static char dir[] = "/tmp/lpo-db-XXXXXX";
static lpo_ctx *c;

static char *
at(const char *name)
{
	static char path[16][256];
	static int k;

	k = (k + 1) % 16;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

/* The first column of the first row as text; "-" where there is none. */
static const char *
ask(lpo_db *db, const char *sql)
{
	static char out[256];
	sqlite3_stmt *st = NULL;

	strcpy(out, "-");
	if (lpo_db_prepare(db, &st, sql) == 0 && lpo_db_step(db, st) == 0)
		snprintf(out, sizeof(out), "%s", sqlite3_column_text(st, 0) ?
		    (const char *)sqlite3_column_text(st, 0) : "NULL");
	sqlite3_reset(st);
	return out;
}

#define IS(db, sql, want) \
	ok(strcmp(ask(db, sql), want) == 0, "%s: %s %s", sql, ask(db, sql), \
	    lpo_errmsg(c))

static const struct lpo_db_attempt attempt = {
	.run = "0123456789abcdef", .tool = "lpo-train", .version = "0.1.0",
	.options = "{\"lr\":0.1}", .seed = 42, .output = "a.safetensors",
	.argv = "lpo-train -m x", .device = "cpu", .isa = "avx2",
	.precision = "f32", .threads = 2
};

static void
opening(void)
{
	sqlite3 *raw = NULL;
	lpo_db *db = NULL, *two = NULL;

	ok(lpo_db_open(c, &db, at("absent.db"), 1) == LPO_EDB &&
	    !lpo_file_exists(at("absent.db")), "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_db_open(c, &db, "none", 0) == 0 && db == NULL, "none");
	ok(lpo_db_metric(db, 1, 1, "x", 1) == 0 && lpo_db_exec(db, "x") == 0
	    && lpo_db_begin(db) == 0 && lpo_db_commit(db) == 0 &&
	    lpo_db_close(db) == 0, "and everything on it is nothing");
	ok(lpo_db_open(c, &db, at("a.db"), 0) == 0, "made %s", lpo_errmsg(c));
	IS(db, "PRAGMA journal_mode", "wal");
	IS(db, "PRAGMA foreign_keys", "1");
	IS(db, "PRAGMA user_version", "2");
	IS(db, "SELECT count(*) > 0 FROM pragma_table_list WHERE strict "
	    "AND schema = 'main'", "1");
	IS(db, "SELECT count(*) FROM pragma_table_list WHERE NOT strict AND "
	    "type = 'table' AND schema = 'main' AND name NOT LIKE 'sqlite%'", "0");
	ok(lpo_db_open(c, &two, at("a.db"), 1) == 0, "a second, reading");
	ok(lpo_db_exec(two, "DELETE FROM run") == LPO_EDB, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_db_close(two);
	lpo_db_exec(db, "PRAGMA user_version = 99");
	lpo_db_close(db);
	ok(lpo_db_open(c, &db, at("a.db"), 0) == LPO_EDB && db == NULL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	sqlite3_open(at("other.db"), &raw);
	sqlite3_exec(raw, "CREATE TABLE t (x)", NULL, NULL, NULL);
	sqlite3_close(raw);
	ok(lpo_db_open(c, &db, at("other.db"), 0) == LPO_EDB, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_file_write(c, at("junk.db"), "no database, just words in a file "
	    "of more than a hundred bytes, or so one hopes when one writes "
	    "them down.", 104);
	ok(lpo_db_open(c, &db, at("junk.db"), 0) == LPO_EDB, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
}

/* A database of the first version gets what was added, and keeps its rows. */
static void
migration(void)
{
	extern const char lpo_schema_lpo[];
	sqlite3 *raw = NULL;
	lpo_db *db = NULL;

	sqlite3_open(at("old.db"), &raw);
	ok(sqlite3_exec(raw, lpo_schema_lpo, NULL, NULL, NULL) == SQLITE_OK &&
	    sqlite3_exec(raw, "PRAGMA application_id = 0x6c706f31; PRAGMA "
	    "user_version = 1; INSERT INTO run (run, tool, version, options, "
	    "seed, started_at) VALUES ('0123456789abcdef', 'lpo-x', '0', "
	    "'{\"lr\": 0.5}', 1, 0)", NULL, NULL, NULL) == SQLITE_OK,
	    "a database of version 1");
	sqlite3_close(raw);
	ok(lpo_db_open(c, &db, at("old.db"), 1) == 0, "read as it is %s",
	    lpo_errmsg(c));
	IS(db, "PRAGMA user_version", "1");
	lpo_db_close(db);
	ok(lpo_db_open(c, &db, at("old.db"), 0) == 0, "opened to write %s",
	    lpo_errmsg(c));
	IS(db, "PRAGMA user_version", "2");
	IS(db, "SELECT value FROM option WHERE name = 'lr'", "0.5");
	lpo_db_close(db);
}

static void
runs(lpo_db *db, int64_t *run, int64_t *att)
{
	int64_t run2, att2;

	ok(lpo_db_run_begin(db, run, att, &attempt) == 0 && *run > 0 &&
	    *att > 0, "begin %s", lpo_errmsg(c));
	IS(db, "SELECT status || (started_at > 1000000000) || (ended_at IS "
	    "NULL) FROM run", "running11");
	ok(lpo_db_run_end(db, *run, *att, LPO_DB_STOPPED, 4, "signal") == 0,
	    "end");
	IS(db, "SELECT status || exit_status || message FROM attempt",
	    "stopped4signal");
	ok(lpo_db_run_begin(db, &run2, &att2, &attempt) == 0 && run2 == *run
	    && att2 != *att, "a second attempt of the same run");
	IS(db, "SELECT group_concat(status) FROM run", "running");
	*att = att2;
	ok(lpo_db_input(db, *run, "model", "x", "ab", 3) == 0 &&
	    lpo_db_input(db, *run, "model", "x", "cd", 3) == 0 &&
	    lpo_db_parent(db, *run, "ffff") == 0 &&
	    lpo_db_parent(db, *run, "ffff") == 0 &&
	    lpo_db_log(db, *run, *att, "warning", "row 3") == 0 &&
	    lpo_db_checkpoint(db, *run, 200, "a-000200", "ef", NAN) == 0 &&
	    lpo_db_checkpoint(db, *run, 200, "a-000200", "ef", 1.5) == 0,
	    "what is repeated does no harm %s", lpo_errmsg(c));
	IS(db, "SELECT count(*) || max(sha256) FROM input", "1cd");
	IS(db, "SELECT count(*) FROM parent", "1");
	IS(db, "SELECT count(*) || max(check_score) FROM checkpoint", "11.5");
	ok(lpo_db_log(db, *run, *att, "shout", "x") == LPO_EDB, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_db_log(db, 999, *att, "info", "x") == LPO_EDB, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
}

static int
refuse_once(void *arg)
{
	int *times = arg;

	return (*times)-- > 0;
}

/* What a failed commit leaves: rows for another try, no open transaction. */
static void
failed_commits(lpo_db *db, int64_t run)
{
	int times = 1;

	sqlite3_commit_hook(lpo_db_handle(db), refuse_once, &times);
	ok(lpo_db_metric(db, run, 7, "again", 1) == 0 &&
	    lpo_db_flush(db) == LPO_EDB, "a commit fails: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_db_flush(db) == 0, "the next does not %s", lpo_errmsg(c));
	sqlite3_commit_hook(lpo_db_handle(db), NULL, NULL);
	IS(db, "SELECT count(*) FROM metric WHERE name = 'again'", "1");
	ok(lpo_db_begin(db) == 0 &&
	    lpo_db_exec(db, "PRAGMA defer_foreign_keys = ON") == 0 &&
	    lpo_db_log(db, 999, 0, "info", "x") == 0 &&
	    lpo_db_commit(db) == LPO_EDB, "another: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_db_begin(db) == 0 && lpo_db_commit(db) == 0,
	    "no transaction is left open %s", lpo_errmsg(c));
}

static void
metrics(lpo_db *db, int64_t run)
{
	int rc = 0, failures = 0;
	int64_t i;

	for (i = 0; i < 5000 && rc == 0; i++)
		rc = lpo_db_metric(db, run, i / 2, i % 2 ? "loss" : "lr",
		    (double)i);
	ok(rc == 0 && lpo_db_flush(db) == 0, "5000 metrics %s",
	    lpo_errmsg(c));
	IS(db, "SELECT count(*) FROM metric", "5000");
	IS(db, "SELECT value FROM metric WHERE name = 'loss' AND step = 100",
	    "201.0");
	lpo_db_metric(db, run, 100, "loss", -1);
	lpo_db_metric(db, run, 101, "loss", INFINITY);
	lpo_db_flush(db);
	IS(db, "SELECT value FROM metric WHERE name = 'loss' AND step = 100",
	    "-1.0");
	IS(db, "SELECT value FROM metric WHERE name = 'loss' AND step = 101",
	    "NULL");
	/* Within a caller's transaction. */
	lpo_db_begin(db);
	for (i = 0; i < 1000 && rc == 0; i++)
		rc = lpo_db_metric(db, run, i, "inside", 1);
	ok(rc == 0 && lpo_db_flush(db) == 0 && lpo_db_commit(db) == 0,
	    "inside a transaction %s", lpo_errmsg(c));
	IS(db, "SELECT count(*) FROM metric WHERE name = 'inside'", "1000");
	failed_commits(db, run);
	/* What cannot be written now is kept, also beyond a full batch. */
	lpo_db_exec(db, "CREATE TRIGGER no BEFORE INSERT ON metric BEGIN "
	    "SELECT RAISE(ABORT, 'no'); END");
	for (i = 0; i < 600; i++)
		failures += lpo_db_metric(db, run, i, "later", 1) == LPO_EDB;
	lpo_db_exec(db, "DROP TRIGGER no");
	ok(failures >= 600 - 511 && lpo_db_flush(db) == 0,
	    "%d failed", failures);
	IS(db, "SELECT count(*) FROM metric WHERE name = 'later'", "600");
	ok(lpo_db_metric(db, run, 1, "a_name_that_is_longer_than_any_of_the_"
	    "metrics_is_an_error", 1) == LPO_EINVAL, "%s", lpo_errmsg(c));
	ok(lpo_db_metric(db, 999, 1, "x", 1) == 0 && lpo_db_flush(db) ==
	    LPO_EDB, "%s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
judged(lpo_db *db, int64_t run)
{
	struct lpo_db_result r = { "judge", 0, 0, 200, 400, .7, .6, .1, .05,
	    .15, .55, .51, .59 };
	int64_t base = 0, aligned = 0, again, image = 0, image2;

	ok(lpo_db_preference(db, run, 3, NULL, "a cat", 1, 0, "{\"x\":1}") ==
	    0 && lpo_db_preference(db, run, 3, "i3", "a cat", 0, 1, NULL) ==
	    0, "preference");
	IS(db, "SELECT count(*) || user_id || label_1 FROM preference",
	    "1i31.0");
	ok(lpo_db_preference(db, run, 4, NULL, "x", 2, 0, NULL) == LPO_EDB,
	    "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_db_system(db, &base, run, "base", "m", NULL) == 0 &&
	    lpo_db_system(db, &aligned, run, "aligned", "m", "l") == 0 &&
	    lpo_db_system(db, &again, run, "base", "m2", NULL) == 0 &&
	    base == again && base != aligned, "systems");
	ok(lpo_db_image(db, &image, base, "000-0", 0, "a cat", 0, 42, NULL)
	    == 0 && lpo_db_image(db, &image2, base, "000-0", 0, "a cat", 0,
	    42, "ab") == 0 && image == image2 && image > 0, "image");
	ok(lpo_db_score(db, image, "judge", 0.5) == 0 &&
	    lpo_db_score(db, image, "judge", 0.75) == 0, "score");
	IS(db, "SELECT value FROM score JOIN image ON image.id = image_id",
	    "0.75");
	r.system_id = aligned;
	r.base_id = base;
	ok(lpo_db_result(db, run, &r) == 0, "result %s", lpo_errmsg(c));
	IS(db, "SELECT win_rate_high FROM result", "0.59");
	lpo_db_exec(db, "DELETE FROM run");
	IS(db, "SELECT (SELECT count(*) FROM metric) + (SELECT count(*) FROM "
	    "score) + (SELECT count(*) FROM result)", "0");
}

static void
hashes(lpo_db *db)
{
	struct timespec t[2] = { { 1000, 0 }, { 1000, 0 } };
	size_t n = 2 << 20;
	char *p = calloc(1, n), a[65], b[65];

	lpo_file_write(c, at("big"), p, n);
	utimensat(AT_FDCWD, at("big"), t, 0);
	ok(lpo_db_file_sha256(c, db, a, at("big")) == 0 &&
	    lpo_sha256_file(c, b, at("big")) == 0 && strcmp(a, b) == 0,
	    "hash of a large file");
	IS(db, "SELECT count(*) FROM file_hash", "1");
	lpo_db_exec(db, "UPDATE file_hash SET sha256 = printf('%064d', 7)");
	ok(lpo_db_file_sha256(c, db, b, at("big")) == 0 && b[63] == '7',
	    "remembered");
	t[1].tv_sec = 2000;
	utimensat(AT_FDCWD, at("big"), t, 0);
	ok(lpo_db_file_sha256_cb(c, db, b, at("big")) == 0 &&
	    strcmp(a, b) == 0, "another time: computed again");
	lpo_file_write(c, at("small"), p, 100);
	ok(lpo_db_file_sha256(c, db, b, at("small")) == 0, "small");
	IS(db, "SELECT count(*) FROM file_hash", "1");
	ok(lpo_db_file_sha256(c, NULL, b, at("big")) == 0 && strcmp(a, b) ==
	    0, "without a database");
	free(p);
}

/* Eight processes make and fill one database; one is killed on the way. */
static void
writers(void)
{
	enum { N = 8, EACH = 40 };
	struct lpo_db_attempt a = attempt;
	int64_t run, att, i;
	lpo_db *db = NULL;
	pid_t pid[N];
	int k, status, bad = 0, rc;
	char id[17], want[16];

	fflush(stdout);
	for (k = 0; k < N; k++) {
		if ((pid[k] = fork()) != 0)
			continue;
		snprintf(id, sizeof(id), "%016d", k);
		a.run = id;
		rc = lpo_db_open(c, &db, at("many.db"), 0);
		if (rc == 0)
			rc = lpo_db_run_begin(db, &run, &att, &a);
		for (i = 0; i < EACH && rc == 0; i++) {
			if (k == 0 && i == EACH / 2)
				raise(SIGKILL);
			if ((rc = lpo_db_metric(db, run, i, "m", 1)) == 0)
				rc = lpo_db_flush(db);
		}
		if (rc == 0)
			rc = lpo_db_run_end(db, run, att, LPO_DB_DONE, 0,
			    NULL);
		if (rc != 0)
			printf("# %d: %s\n", k, lpo_errmsg(c));
		fflush(stdout);
		_exit(rc != 0);
	}
	for (k = 0; k < N; k++) {
		waitpid(pid[k], &status, 0);
		bad += k > 0 && (!WIFEXITED(status) || WEXITSTATUS(status));
	}
	ok(bad == 0 && lpo_db_open(c, &db, at("many.db"), 0) == 0,
	    "eight writers, one killed %s", lpo_errmsg(c));
	if (db == NULL)
		return;
	IS(db, "PRAGMA integrity_check", "ok");
	snprintf(want, sizeof(want), "%d", (N - 1) * EACH + EACH / 2);
	IS(db, "SELECT count(*) FROM metric", want);
	IS(db, "SELECT count(*) FROM run WHERE status = 'done'", "7");
	lpo_db_close(db);
}

/* SQLite's own memory, of which the call number `left` from now fails. */
static sqlite3_mem_methods theirs;
static long left = -1;

static int
fails(void)
{
	if (left < 0 || left-- > 0)
		return 0;
	errno = ENOMEM;		/* as malloc does */
	return 1;
}

static void *
some_memory(int n)
{
	return fails() ? NULL : theirs.xMalloc(n);
}

static void *
more_memory(void *p, int n)
{
	return fails() ? NULL : theirs.xRealloc(p, n);
}

/* Before SQLite is first used. */
static void
watch_memory(void)
{
	sqlite3_mem_methods ours;

	sqlite3_config(SQLITE_CONFIG_GETMALLOC, &theirs);
	ours = theirs;
	ours.xMalloc = some_memory;
	ours.xRealloc = more_memory;
	sqlite3_config(SQLITE_CONFIG_MALLOC, &ours);
}

/*
 * A new database and a whole run in it; *done: 1 where no call failed,
 * 2 where the rows are there.  `opened`: the calls of opening do not count.
 */
static int
whole_run(long n, int opened, int *done)
{
	int64_t run, att;
	lpo_db *db = NULL;
	int rc;

	left = opened ? -1 : n;
	if ((rc = lpo_db_open(c, &db, ":memory:", 0)) == 0 && opened)
		left = n;
	if (rc == 0 &&
	    (rc = lpo_db_run_begin(db, &run, &att, &attempt)) == 0 &&
	    (rc = lpo_db_preference(db, run, 0, "a", "b", 1, 0, "{}")) == 0 &&
	    (rc = lpo_db_metric(db, run, 1, "loss", 0.5)) == 0 &&
	    (rc = lpo_db_flush(db)) == 0)
		rc = lpo_db_run_end(db, run, att, LPO_DB_DONE, 0, NULL);
	*done = left >= 0;
	left = -1;
	if (rc == 0)
		*done |= 2 * (strcmp(ask(db, "SELECT count(*) FROM run JOIN "
		    "metric WHERE status = 'done'"), "1") == 0);
	lpo_db_close(db);
	return rc;
}

/*
 * Failures say that memory is the matter, also where a CHECK fails since
 * json_valid() had none; success is a run that is done.
 */
static void
no_memory(int opened)
{
	int failed = 0, bad = 0, rc, met = 1, done;
	long n;

	for (n = 0; met; n += opened ? 1 : 1 + n / 40) {
		rc = whole_run(n, opened, &done);
		met = !(done & 1);
		failed += rc != 0;
		if (rc != 0 && strstr(lpo_errmsg(c), "memory") == NULL) {
			printf("# %ld: %s\n", n, lpo_errmsg(c));
			bad++;
		}
		bad += rc == 0 && !(done & 2);
		lpo_clear(c);
	}
	ok(failed > 50 && bad == 0, "%d of SQLite's allocations fail, %d are "
	    "not said to be memory's or leave something out", failed, bad);
}

int
main(void)
{
	int64_t run = 0, att = 0;
	sqlite3_stmt *st;
	lpo_db *db = NULL;
	int i, rc = 0;
	char sql[64];

	watch_memory();
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	opening();
	migration();
	if (ok(lpo_db_open(c, &db, at("b.db"), 0) == 0, "open")) {
		runs(db, &run, &att);
		metrics(db, run);
		lpo_db_close(db);	/* with the bad metric still in it */
		lpo_clear(c);
		lpo_db_open(c, &db, at("b.db"), 0);
		judged(db, run);
		hashes(db);
		for (i = 0; i < 200 && rc == 0; i++) {
			snprintf(sql, sizeof(sql), "SELECT %d", i);
			rc = lpo_db_prepare(db, &st, sql);
		}
		ok(rc == 0, "more statements than are kept");
		ok(lpo_db_prepare(db, &st, "SELECT nonsense") == LPO_EDB,
		    "%s", lpo_errmsg(c));
		lpo_clear(c);
		lpo_db_close(db);
	}
	writers();
	no_memory(0);
	no_memory(1);
	ok(lpo_rmtree(c, dir) == 0, "clean up");
	lpo_ctx_free(c);
	return done_testing();
}
