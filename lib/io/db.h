/*
 * The database (schemas/lpo.sql, lpo-db(5)): runs, metrics, preferences,
 * scores, the job log.  Every function takes a NULL db (--db none) and then
 * does nothing and succeeds, ids being 0.
 */
#ifndef LPO_IO_DB_H
#define LPO_IO_DB_H

#include <stdint.h>

#include <sqlite3.h>

#include "lib/base/ctx.h"

typedef struct lpo_db lpo_db;

/*
 * Opens or makes; "none" gives *db = NULL.  WAL, on a network file system a
 * rollback journal (said once by lpo_notice).  A newer schema than ours or a
 * database of another program: LPO_EDB.  Read only: never makes one.
 */
int	 lpo_db_open(lpo_ctx *, lpo_db **, const char *path, int read_only);
/* Flushes metrics; an open attempt is left as it is. */
int	 lpo_db_close(lpo_db *);
sqlite3	*lpo_db_handle(lpo_db *);

/* ---- Generic ---- */

int	 lpo_db_exec(lpo_db *, const char *sql);
/* Write transactions: BEGIN IMMEDIATE.  Keep them short. */
int	 lpo_db_begin(lpo_db *);
int	 lpo_db_commit(lpo_db *);
void	 lpo_db_rollback(lpo_db *);
/* Kept by the handle and reused for the same text; reset and unbound. */
int	 lpo_db_prepare(lpo_db *, sqlite3_stmt **, const char *sql);
/*
 * One letter an argument: i int64_t, d double (NaN: NULL), s const char *
 * (NULL: NULL), n no argument: NULL.  Text is copied.
 */
int	 lpo_db_bind(lpo_db *, sqlite3_stmt *, const char *types, ...);
/* 0: a row is there; 1: done; or LPO_EDB. */
int	 lpo_db_step(lpo_db *, sqlite3_stmt *);
/* prepare, bind, step to the end; *id (may be NULL) the last rowid. */
int	 lpo_db_run(lpo_db *, int64_t *id, const char *sql, const char *types,
	    ...);

/* ---- Runs ---- */

struct lpo_db_attempt {
	const char *run;	/* 16 hex digits */
	const char *tool, *version;
	const char *options;	/* canonical JSON */
	int64_t seed;
	const char *output;	/* path; NULL: stdout */
	const char *argv;	/* the command line as typed */
	const char *device, *isa, *precision;	/* NULL: not applicable */
	int threads;
};

enum lpo_db_status {
	LPO_DB_RUNNING, LPO_DB_DONE, LPO_DB_FAILED, LPO_DB_STOPPED
};

/*
 * One row in `run` per run id, one in `attempt` per process.  Host, pid and
 * times are added.  Ids are those of the tables.
 */
int	 lpo_db_run_begin(lpo_db *, int64_t *run_id, int64_t *attempt_id,
	    const struct lpo_db_attempt *);
/* Flushes metrics; message may be NULL. */
int	 lpo_db_run_end(lpo_db *, int64_t run_id, int64_t attempt_id,
	    enum lpo_db_status, int exit_status, const char *message);
/* A finished output of `run` was found: its row says so; none is fine. */
int	 lpo_db_run_done(lpo_db *, const char *run);
int	 lpo_db_input(lpo_db *, int64_t run_id, const char *role,
	    const char *path, const char *sha256, int64_t size_bytes);
int	 lpo_db_parent(lpo_db *, int64_t run_id, const char *parent_run);
/* level: "info", "warning", "error". */
int	 lpo_db_log(lpo_db *, int64_t run_id, int64_t attempt_id,
	    const char *level, const char *text);

/*
 * Cheap: collected in memory, written once a second or 512 rows in one
 * transaction.  The same (run, step, name) again replaces: a resumed run
 * repeats steps.  A value that is not finite is stored as NULL.  A failure is
 * one to write: what was given is kept for another try.
 */
int	 lpo_db_metric(lpo_db *, int64_t run_id, int64_t step,
	    const char *name, double value);
int	 lpo_db_flush(lpo_db *);

/* A published model file; check_score NaN: none. */
int	 lpo_db_checkpoint(lpo_db *, int64_t run_id, int64_t step,
	    const char *path, const char *sha256, double check_score);

/* ---- What is judged ---- */

/* id NULL: none.  The same (run, row) again replaces. */
int	 lpo_db_preference(lpo_db *, int64_t run_id, int64_t row,
	    const char *id, const char *prompt, double label_0,
	    double label_1, const char *extra_json);
/* A system of lpo-eval ("base", "aligned"); *system_id of the table. */
int	 lpo_db_system(lpo_db *, int64_t *system_id, int64_t run_id,
	    const char *name, const char *model, const char *lora);
int	 lpo_db_image(lpo_db *, int64_t *image_id, int64_t system_id,
	    const char *key, int64_t prompt_index, const char *prompt,
	    int64_t number, int64_t seed, const char *sha256);
int	 lpo_db_score(lpo_db *, int64_t image_id, const char *scorer,
	    double value);
/*
 * A comparison: mean paired difference and win rate of system over base with
 * their 95 % intervals, over n prompts.
 */
struct lpo_db_result {
	const char *scorer;
	int64_t system_id, base_id, n_prompts, n_images;
	double mean_system, mean_base;
	double difference, difference_low, difference_high;
	double win_rate, win_rate_low, win_rate_high;
};
int	 lpo_db_result(lpo_db *, int64_t run_id,
	    const struct lpo_db_result *);

/*
 * SHA-256 of a file, remembered by (device, inode, size, mtime) for files of
 * 1 MB and more.  db NULL: computed each time.  The second form has the
 * signature lpo_runid_folder() wants, arg = lpo_db *.
 */
int	 lpo_db_file_sha256(lpo_ctx *, lpo_db *, char out[65],
	    const char *path);
int	 lpo_db_file_sha256_cb(lpo_ctx *, void *db, char out[65],
	    const char *path);

#endif
