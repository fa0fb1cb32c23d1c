/*
 * Database files: opened to read and to write, and used as the tools do.
 * Whatever stands in one, calls fail with SQLite's words or do their work.
 */
#include "lib/io/db.h"
#include "tests/fuzz/fuzz.h"

static int
use(lpo_ctx *c, int read_only)
{
	const struct lpo_db_attempt a = { .run = "0123456789abcdef",
	    .tool = "lpo-x", .version = "1", .options = "{}", .seed = 42,
	    .argv = "lpo-x" };
	int64_t run, attempt, id;
	lpo_db *db = NULL;
	int rc;

	lpo_clear(c);
	if ((rc = lpo_db_open(c, &db, fuzz_path("lpo.db"), read_only)) < 0) {
		CHECK(rc == LPO_EDB);
		return rc;
	}
	if (!read_only && lpo_db_run_begin(db, &run, &attempt, &a) == 0) {
		lpo_db_input(db, run, "model", "m", "ab", 3);
		lpo_db_log(db, run, attempt, "info", "text");
		lpo_db_metric(db, run, 1, "loss", 0.5);
		lpo_db_preference(db, run, 0, "a", "a cat", 1, 0, "{}");
		lpo_db_system(db, &id, run, "base", "m", NULL);
		lpo_db_run_end(db, run, attempt, LPO_DB_DONE, 0, NULL);
	}
	rc = lpo_errcode(c);
	lpo_db_close(db);
	return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	int rc;

	unlink(fuzz_path("lpo.db-wal"));
	unlink(fuzz_path("lpo.db-shm"));
	unlink(fuzz_path("lpo.db-journal"));
	fuzz_put("lpo.db", p, n);
	use(c, 1);
	rc = use(c, 0);
	/*
	 * SQLite has 8 bytes for each overflow page that a row says it has: of
	 * 2^32 bytes at most, 508 in the smallest page.
	 */
	return fuzz_end(rc, (16 << 20) + (((size_t)8 << 32) / 508) + 64 * n);
}
