/* Pairs' fields as an SQLite table. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/pairdump.h"

static const char schema[] =
    "PRAGMA journal_mode = OFF;"
    "PRAGMA synchronous = OFF;"	/* fsync once, before the rename */
    "BEGIN;"
    "CREATE TABLE pair ("
    " key TEXT PRIMARY KEY, row INTEGER NOT NULL, id TEXT,"
    " prompt TEXT NOT NULL, label_0 REAL NOT NULL, label_1 REAL NOT NULL,"
    " num_example_per_prompt INTEGER NOT NULL,"
    " timestep_0 INTEGER NOT NULL, timestep_1 INTEGER NOT NULL,"
    " epoch INTEGER NOT NULL) STRICT;";
static const char insert_sql[] =
    "INSERT INTO pair (key, row, id, prompt, label_0, label_1,"
    " num_example_per_prompt, timestep_0, timestep_1, epoch)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";

struct lpo_pairdump {
	lpo_ctx *ctx;
	char *path, *tmp;
	sqlite3 *db;
	sqlite3_stmt *insert;
	json_t *columns;	/* names that are there beyond the schema's */
};

static int
fail(lpo_pairdump *d)
{
	return lpo_fail(d->ctx, LPO_EDB, "'%s': %s", d->path,
	    sqlite3_errmsg(d->db));
}

static int
exec(lpo_pairdump *d, char *sql)
{
	int rc;

	if (sql == NULL)
		return lpo_fail(d->ctx, LPO_ENOMEM, "out of memory");
	rc = sqlite3_exec(d->db, sql, NULL, NULL, NULL);
	sqlite3_free(sql);
	return rc == SQLITE_OK ? 0 : fail(d);
}

static void
dispose(lpo_pairdump *d)
{
	if (d == NULL)
		return;
	sqlite3_finalize(d->insert);
	sqlite3_close(d->db);
	json_decref(d->columns);
	lpo_free(d->path);
	lpo_free(d->tmp);
	lpo_free(d);
}

int
lpo_pairdump_open(lpo_ctx *c, lpo_pairdump **out, const char *path)
{
	lpo_pairdump *d = lpo_alloc(c, 1, sizeof *d);
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (d == NULL)
		return LPO_ENOMEM;
	d->ctx = c;
	d->columns = json_object();
	if ((d->path = lpo_strdup(c, path)) == NULL ||
	    (d->tmp = lpo_asprintf(c, "%s.tmp.%ld", path,
	    (long)getpid())) == NULL)
		goto out;
	unlink(d->tmp);
	if (sqlite3_open(d->tmp, &d->db) != SQLITE_OK) {
		rc = fail(d);
		goto out;
	}
	if ((rc = exec(d, sqlite3_mprintf("%s", schema))) != 0)
		goto out;
	rc = sqlite3_prepare_v2(d->db, insert_sql, -1, &d->insert, NULL) ==
	    SQLITE_OK ? 0 : fail(d);
out:
	if (rc != 0)
		lpo_pairdump_abort(d);
	else
		*out = d;
	return rc;
}

/* SQLite's names ignore case; a column that is ours already gets "extra.". */
static int
add_column(lpo_pairdump *d, const char *name)
{
	static const char *const ours[] = { "key", "row", "id", "prompt",
	    "label_0", "label_1", "num_example_per_prompt", "timestep_0",
	    "timestep_1", "epoch" };
	const char *prefix = "", *other;
	json_t *v;
	size_t i;
	int rc;

	for (i = 0; i < sizeof ours / sizeof *ours; i++)
		if (sqlite3_stricmp(name, ours[i]) == 0)
			prefix = "extra.";
	json_object_foreach(d->columns, other, v)
		if (sqlite3_stricmp(name, other) == 0)
			prefix = "extra.";
	if ((rc = lpo_json_set(d->ctx, d->columns, name,
	    json_sprintf("%s%s", prefix, name))) != 0)
		return rc;
	return exec(d, sqlite3_mprintf("ALTER TABLE pair ADD COLUMN \"%w\" "
	    "ANY", json_string_value(json_object_get(d->columns, name))));
}

static int
set_column(lpo_pairdump *d, const char *key, const char *column,
    const json_t *v)
{
	char *text, *sql;
	int rc;

	if (json_is_integer(v))
		sql = sqlite3_mprintf("UPDATE pair SET \"%w\" = %lld WHERE "
		    "key = %Q", column, (long long)json_integer_value(v),
		    key);
	else if (json_is_real(v))
		sql = sqlite3_mprintf("UPDATE pair SET \"%w\" = %!.17g WHERE "
		    "key = %Q", column, json_real_value(v), key);
	else if (json_is_string(v))
		sql = sqlite3_mprintf("UPDATE pair SET \"%w\" = %Q WHERE "
		    "key = %Q", column, json_string_value(v), key);
	else {
		if ((text = lpo_json_dumps(d->ctx, v)) == NULL)
			return LPO_ENOMEM;
		sql = sqlite3_mprintf("UPDATE pair SET \"%w\" = %Q WHERE "
		    "key = %Q", column, text, key);
		lpo_free(text);
	}
	rc = exec(d, sql);
	return rc;
}

int
lpo_pairdump_put(lpo_pairdump *d, const struct lpo_record *r, int64_t t0,
    int64_t t1, int64_t epoch)
{
	const char *name;
	json_t *v;
	int rc;

	sqlite3_bind_text(d->insert, 1, r->key, -1, SQLITE_TRANSIENT);
	sqlite3_bind_int64(d->insert, 2, r->row);
	sqlite3_bind_text(d->insert, 3, r->id, -1, SQLITE_TRANSIENT);
	sqlite3_bind_text(d->insert, 4, r->prompt, -1, SQLITE_TRANSIENT);
	sqlite3_bind_double(d->insert, 5, r->label_0);
	sqlite3_bind_double(d->insert, 6, r->label_1);
	sqlite3_bind_int64(d->insert, 7, r->num_example_per_prompt);
	sqlite3_bind_int64(d->insert, 8, t0);
	sqlite3_bind_int64(d->insert, 9, t1);
	sqlite3_bind_int64(d->insert, 10, epoch);
	if (sqlite3_step(d->insert) != SQLITE_DONE) {
		rc = fail(d);
		sqlite3_reset(d->insert);
		return rc;
	}
	sqlite3_reset(d->insert);
	json_object_foreach(r->extra, name, v) {
		if (json_is_null(v))
			continue;
		if (json_object_get(d->columns, name) == NULL &&
		    (rc = add_column(d, name)) != 0)
			return rc;
		rc = set_column(d, r->key, json_string_value(
		    json_object_get(d->columns, name)), v);
		if (rc != 0)
			return rc;
	}
	return 0;
}

int
lpo_pairdump_finish(lpo_pairdump *d)
{
	FILE *f;
	int rc;

	rc = exec(d, sqlite3_mprintf("COMMIT"));
	if (rc != 0)
		goto out;
	sqlite3_finalize(d->insert);
	d->insert = NULL;
	if (sqlite3_close(d->db) != SQLITE_OK) {
		rc = fail(d);
		goto out;
	}
	d->db = NULL;
	f = fopen(d->tmp, "r+e");
	if (f == NULL || fsync(fileno(f)) != 0 || rename(d->tmp, d->path) != 0)
		rc = lpo_fail(d->ctx, LPO_EIO, "cannot write '%s': %s",
		    d->path, strerror(errno));
	if (f != NULL)
		fclose(f);
out:
	if (rc != 0)
		unlink(d->tmp);
	dispose(d);
	return rc;
}

void
lpo_pairdump_abort(lpo_pairdump *d)
{
	if (d == NULL)
		return;
	if (d->tmp != NULL)
		unlink(d->tmp);
	dispose(d);
}
