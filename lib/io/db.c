/* SQLite: opening, statements, rows of runs and metrics. */
#include "lib/io/db_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>

#include "lib/base/file.h"

/* schemas/ as strings, by the Makefile. */
extern const char lpo_schema_lpo[];
extern const char lpo_schema_lpo_2[];

/* schema[i] leads from version i to i + 1; 0 is an empty database. */
static const char *const schema[] = { lpo_schema_lpo, lpo_schema_lpo_2 };

enum {
	APPLICATION_ID = 0x6c706f31,	/* "lpo1" */
	VERSION = sizeof(schema) / sizeof(*schema),
	BUSY_MS = 30000
};

int
lpo_db_error(lpo_db *db, const char *what)
{
	return lpo_fail(db->ctx, LPO_EDB, "database '%s': cannot %s: %s",
	    db->path, what, sqlite3_errmsg(db->sql));
}

/* --------------------------------------------------------------- opening */

/* WAL needs memory shared by one machine's processes. */
static int
on_network(lpo_ctx *c, const char *path)
{
	static const long kinds[] = { 0x6969 /* NFS */, 0x517b /* SMB */,
	    0xff534d42 /* CIFS */, 0xfe534d42 /* SMB2 */, 0x01021997 /* 9P */,
	    0x0bd00bd0 /* Lustre */, 0x65735546 /* FUSE */,
	    0x00c36400 /* Ceph */, 0x47504653 /* GPFS */ };
	char *dir = lpo_dirname(c, path);
	struct statfs fs;
	size_t i;
	int found = 0;

	if (dir != NULL && statfs(dir, &fs) == 0)
		for (i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
			found |= (long)fs.f_type == kinds[i];
	lpo_free(dir);
	return found;
}

static int
pragma_int(lpo_db *db, int64_t *out, const char *sql)
{
	sqlite3_stmt *st;

	if (sqlite3_prepare_v2(db->sql, sql, -1, &st, NULL) != SQLITE_OK)
		return lpo_db_error(db, "read it");
	if (sqlite3_step(st) != SQLITE_ROW) {
		sqlite3_finalize(st);
		return lpo_db_error(db, "read it");
	}
	*out = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return 0;
}

/*
 * In one exclusive transaction, since another process may have been quicker:
 * make the tables in an empty database, or bring an older one up to date.
 */
static int
write_schema(lpo_db *db)
{
	int64_t version;
	char pragmas[96];
	int rc;

	snprintf(pragmas, sizeof(pragmas), "PRAGMA application_id = %d; "
	    "PRAGMA user_version = %d", APPLICATION_ID, VERSION);
	if ((rc = lpo_db_exec(db, "BEGIN EXCLUSIVE")) < 0)
		return rc;
	if ((rc = pragma_int(db, &version, "PRAGMA user_version")) == 0)
		for (; rc == 0 && version < VERSION; version++)
			rc = lpo_db_exec(db, schema[version]);
	if (rc < 0 || (rc = lpo_db_exec(db, pragmas)) < 0) {
		lpo_db_rollback(db);
		return rc;
	}
	return lpo_db_exec(db, "COMMIT");
}

/* As of one moment: another process may just be making the tables. */
static int
what_it_is(lpo_db *db, int64_t *app, int64_t *version, int64_t *tables)
{
	int rc;

	if ((rc = lpo_db_exec(db, "BEGIN")) < 0)
		return rc;
	if ((rc = pragma_int(db, app, "PRAGMA application_id")) < 0 ||
	    (rc = pragma_int(db, version, "PRAGMA user_version")) < 0 ||
	    (rc = pragma_int(db, tables,
	    "SELECT count(*) FROM sqlite_master")) < 0) {
		lpo_db_rollback(db);
		return rc;
	}
	return lpo_db_exec(db, "COMMIT");
}

/*
 * Refuse a foreign or newer database.  One that is read only is taken at an
 * older version too: its tables are the same or fewer.
 */
static int
check_schema(lpo_db *db, int read_only)
{
	int64_t app, version, tables;
	int rc;

	if ((rc = what_it_is(db, &app, &version, &tables)) < 0)
		return rc;
	if (app == APPLICATION_ID && version > VERSION)
		return lpo_fail(db->ctx, LPO_EDB, "database '%s' is of a newer "
		    "lpo-tools (schema %lld, this one knows %d)", db->path,
		    (long long)version, VERSION);
	if (app == APPLICATION_ID && version >= 1)
		return version == VERSION || read_only ? 0 : write_schema(db);
	if (tables > 0 || read_only)
		return lpo_fail(db->ctx, LPO_EDB,
		    "'%s' is not a database of lpo-tools", db->path);
	return write_schema(db);
}

int
lpo_db_open(lpo_ctx *c, lpo_db **out, const char *path, int read_only)
{
	lpo_db *db;
	int rc;

	*out = NULL;
	if (strcmp(path, "none") == 0)
		return 0;
	if ((db = lpo_alloc(c, 1, sizeof(*db))) == NULL)
		return LPO_ENOMEM;
	db->ctx = c;
	db->read_only = read_only;
	if ((db->path = lpo_strdup(c, path)) == NULL) {
		lpo_free(db);
		return LPO_ENOMEM;
	}
	if (sqlite3_open_v2(path, &db->sql, read_only ? SQLITE_OPEN_READONLY :
	    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK) {
		rc = lpo_db_error(db, "open it");
		goto fail;
	}
	sqlite3_busy_timeout(db->sql, BUSY_MS);
	if ((rc = lpo_db_exec(db, "PRAGMA foreign_keys = ON")) < 0)
		goto fail;
	if (!read_only && on_network(c, path)) {
		lpo_notice(c, "database '%s' is on a network file system: "
		    "rollback journal instead of WAL", path);
		rc = lpo_db_exec(db, "PRAGMA journal_mode = DELETE");
	} else if (!read_only)
		rc = lpo_db_exec(db, "PRAGMA journal_mode = WAL; "
		    "PRAGMA synchronous = NORMAL");
	if (rc < 0 || (rc = check_schema(db, read_only)) < 0)
		goto fail;
	*out = db;
	return 0;
fail:
	sqlite3_close(db->sql);
	lpo_free(db->path);
	lpo_free(db);
	return rc;
}

int
lpo_db_close(lpo_db *db)
{
	int rc, i;

	if (db == NULL)
		return 0;
	rc = lpo_db_flush(db);
	for (i = 0; i < db->n_stmts; i++)
		sqlite3_finalize(db->stmt[i].st);
	sqlite3_close(db->sql);
	lpo_free(db->path);
	lpo_free(db);
	return rc;
}

sqlite3 *
lpo_db_handle(lpo_db *db)
{
	return db == NULL ? NULL : db->sql;
}

/* --------------------------------------------------------------- generic */

/*
 * SQLite does not wait, whatever the busy timeout, where it thinks that two
 * might wait for each other: as when several processes turn to WAL at once.
 */
int
lpo_db_exec(lpo_db *db, const char *sql)
{
	int waited_ms = 0, ms = 5, rc;

	if (db == NULL)
		return 0;
	while ((rc = sqlite3_exec(db->sql, sql, NULL, NULL, NULL)) ==
	    SQLITE_BUSY && sqlite3_get_autocommit(db->sql) &&
	    waited_ms < BUSY_MS) {
		sqlite3_sleep(ms);
		waited_ms += ms;
		ms = ms < 100 ? 2 * ms : 100;
	}
	return rc == SQLITE_OK ? 0 : lpo_db_error(db, "write to it");
}

int
lpo_db_begin(lpo_db *db)
{
	return lpo_db_exec(db, "BEGIN IMMEDIATE");
}

/* What cannot be committed must not stay open: the next BEGIN would fail. */
int
lpo_db_commit(lpo_db *db)
{
	int rc = lpo_db_exec(db, "COMMIT");

	if (rc != 0)
		lpo_db_rollback(db);
	return rc;
}

void
lpo_db_rollback(lpo_db *db)
{
	if (db != NULL && !sqlite3_get_autocommit(db->sql))
		sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
}

int
lpo_db_prepare(lpo_db *db, sqlite3_stmt **out, const char *sql)
{
	struct lpo_db_stmt *s;
	int i;

	*out = NULL;
	for (i = 0; i < db->n_stmts; i++)
		if (strcmp(sqlite3_sql(db->stmt[i].st), sql) == 0) {
			*out = db->stmt[i].st;
			sqlite3_reset(*out);
			sqlite3_clear_bindings(*out);
			return 0;
		}
	if (db->n_stmts == LPO_DB_STMTS) {	/* the oldest goes */
		sqlite3_finalize(db->stmt[0].st);
		memmove(db->stmt, db->stmt + 1, (size_t)--db->n_stmts *
		    sizeof(*db->stmt));
	}
	s = &db->stmt[db->n_stmts];
	if (sqlite3_prepare_v2(db->sql, sql, -1, &s->st, NULL) != SQLITE_OK)
		return lpo_db_error(db, "prepare a statement");
	db->n_stmts++;
	*out = s->st;
	return 0;
}

static int
bind_list(lpo_db *db, sqlite3_stmt *st, const char *types, va_list ap)
{
	const char *text;
	double v;
	int i, rc = SQLITE_OK;

	for (i = 1; *types != '\0' && rc == SQLITE_OK; types++, i++)
		switch (*types) {
		case 'i':
			rc = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
			break;
		case 'd':
			v = va_arg(ap, double);
			rc = v == v && v - v == 0 ?
			    sqlite3_bind_double(st, i, v) :
			    sqlite3_bind_null(st, i);
			break;
		case 's':
			text = va_arg(ap, const char *);
			rc = sqlite3_bind_text(st, i, text, -1,
			    SQLITE_TRANSIENT);
			break;
		default:
			rc = sqlite3_bind_null(st, i);
		}
	return rc == SQLITE_OK ? 0 : lpo_db_error(db, "bind a value");
}

int
lpo_db_bind(lpo_db *db, sqlite3_stmt *st, const char *types, ...)
{
	va_list ap;
	int rc;

	va_start(ap, types);
	rc = bind_list(db, st, types, ap);
	va_end(ap);
	return rc;
}

int
lpo_db_step(lpo_db *db, sqlite3_stmt *st)
{
	int rc;

	errno = 0;
	rc = sqlite3_step(st);
	if (rc == SQLITE_ROW)
		return 0;
	if (rc == SQLITE_DONE) {
		sqlite3_reset(st);
		return 1;
	}
	/* without memory json_valid() in a CHECK calls any text invalid */
	rc = rc == SQLITE_CONSTRAINT && errno == ENOMEM ?
	    lpo_fail(db->ctx, LPO_EDB, "database '%s': cannot write to it: "
	    "out of memory", db->path) : lpo_db_error(db, "write to it");
	sqlite3_reset(st);
	return rc;
}

int
lpo_db_run(lpo_db *db, int64_t *id, const char *sql, const char *types, ...)
{
	sqlite3_stmt *st;
	va_list ap;
	int rc;

	if (id != NULL)
		*id = 0;
	if (db == NULL)
		return 0;
	if ((rc = lpo_db_prepare(db, &st, sql)) < 0)
		return rc;
	va_start(ap, types);
	rc = bind_list(db, st, types, ap);
	va_end(ap);
	while (rc == 0)
		rc = lpo_db_step(db, st);
	if (rc == 1 && id != NULL)
		*id = sqlite3_last_insert_rowid(db->sql);
	return rc < 0 ? rc : 0;
}

/* One integer of the first row; 0 rows: LPO_ENOTFOUND without text. */
int
lpo_db_lookup(lpo_db *db, int64_t *out, const char *sql, const char *types,
    ...)
{
	sqlite3_stmt *st;
	va_list ap;
	int rc;

	if ((rc = lpo_db_prepare(db, &st, sql)) < 0)
		return rc;
	va_start(ap, types);
	rc = bind_list(db, st, types, ap);
	va_end(ap);
	if (rc == 0)
		rc = lpo_db_step(db, st);
	if (rc == 0)
		*out = sqlite3_column_int64(st, 0);
	sqlite3_reset(st);
	return rc == 1 ? LPO_ENOTFOUND : rc;
}
