/* Inside of the database handle: db.c (SQLite), db_rows.c (our tables). */
#ifndef LPO_IO_DB_PRIV_H
#define LPO_IO_DB_PRIV_H

#include "lib/io/db.h"

/* Rows of metrics that are written at once, and room for those that wait. */
enum { LPO_DB_STMTS = 48, LPO_DB_METRICS = 512, LPO_DB_ROOM = 1024 };

struct lpo_db_stmt {
	sqlite3_stmt *st;
};

struct lpo_db_metric_row {
	int64_t run_id, step;
	char name[48];
	double value;
};

struct lpo_db {
	lpo_ctx *ctx;
	sqlite3 *sql;
	char *path;
	int read_only;
	struct lpo_db_stmt stmt[LPO_DB_STMTS];
	int n_stmts;
	struct lpo_db_metric_row metric[LPO_DB_ROOM];
	int n_metrics;
	double flushed_s;
};

int	 lpo_db_error(lpo_db *, const char *what);
int	 lpo_db_lookup(lpo_db *, int64_t *out, const char *sql,
	    const char *types, ...);

#endif
