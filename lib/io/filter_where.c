/*
 * An SQLite expression over a record's fields.  The record is bound as the one
 * row of a common table expression, so numbers compare as numbers.
 */
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/filter_priv.h"

/* Bytes of a value inside an expression; a field has 16 MB at most. */
enum { VALUE_LIMIT = 64 << 20 };

struct lpo_where {
	lpo_ctx *c;
	sqlite3 *db;
	sqlite3_stmt *stmt;
	char *sql;
	json_t *columns;	/* array of names, in the order bound */
	json_t *known;		/* the same names as an object */
	size_t core;		/* the first so many are not from extra */
	uint8_t *had;		/* per column: NUMBER | TEXT; TOLD */
};

enum { NUMBER = 1, TEXT = 2, TOLD = 4 };

/*
 * Reading only; no files, no extensions; no chance and no clock by name, for
 * the same command has to keep the same rows.  The arguments are not seen here,
 * so that date('now') passes.
 */
static int
authorize(void *arg, int action, const char *a, const char *b, const char *d,
    const char *e)
{
	static const char *const no[] = { "load_extension", "random",
	    "randomblob", "current_time", "current_date",
	    "current_timestamp" };
	size_t i;

	(void)arg, (void)a, (void)d, (void)e;
	for (i = 0; i < sizeof(no) / sizeof(*no); i++)
		if (action == SQLITE_FUNCTION && b != NULL &&
		    sqlite3_stricmp(b, no[i]) == 0)
			return SQLITE_DENY;
	return action == SQLITE_SELECT || action == SQLITE_READ ||
	    action == SQLITE_FUNCTION || action == SQLITE_RECURSIVE ?
	    SQLITE_OK : SQLITE_DENY;
}

/* An expression may be endless ("WITH RECURSIVE …"): a signal ends it. */
static int
on_progress(void *arg)
{
	return lpo_ctx_stopped(arg);
}

int
lpo_where_open(lpo_ctx *c, struct lpo_where **out, const char *sql)
{
	static const char *const core[] = {
		"key", "row", "id", "prompt", "label_0", "label_1",
		"num_example_per_prompt"
	};
	struct lpo_where *w = lpo_alloc(c, 1, sizeof(*w));
	size_t i;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (w == NULL)
		return rc;
	w->c = c;
	w->core = sizeof(core) / sizeof(*core);
	w->columns = json_array();
	w->known = json_object();
	if ((w->sql = lpo_strdup(c, sql)) == NULL)
		goto out;
	for (i = 0; i < w->core; i++)
		if (json_array_append_new(w->columns, json_string(core[i]))
		    != 0 ||
		    json_object_set_new(w->known, core[i], json_true()) != 0)
			goto out;
	if (sqlite3_open_v2(":memory:", &w->db, SQLITE_OPEN_READWRITE |
	    SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK)
		goto out;
	/* "no_such_column" must be an error, not the text of that name. */
	sqlite3_db_config(w->db, SQLITE_DBCONFIG_DQS_DML, 0, NULL);
	sqlite3_db_config(w->db, SQLITE_DBCONFIG_DQS_DDL, 0, NULL);
	sqlite3_set_authorizer(w->db, authorize, NULL);
	sqlite3_progress_handler(w->db, 10000, on_progress, c);
	sqlite3_limit(w->db, SQLITE_LIMIT_LENGTH, VALUE_LIMIT);
	*out = w;
	return 0;
out:
	lpo_fail(c, rc, "out of memory");
	lpo_where_close(w);
	return rc;
}

void
lpo_where_close(struct lpo_where *w)
{
	if (w == NULL)
		return;
	sqlite3_finalize(w->stmt);
	sqlite3_close(w->db);
	json_decref(w->columns);
	json_decref(w->known);
	lpo_free(w->had);
	lpo_free(w->sql);
	lpo_free(w);
}

/* WITH pair("a",…) AS (SELECT ?1,…) SELECT 1 FROM pair WHERE (EXPR) */
static int
compile(struct lpo_where *w)
{
	sqlite3_str *s = sqlite3_str_new(w->db);
	const char *tail = NULL;
	char *sql;
	size_t i;
	json_t *v;
	int rc;

	sqlite3_finalize(w->stmt);
	w->stmt = NULL;
	sqlite3_str_appendall(s, "WITH pair(");
	json_array_foreach(w->columns, i, v)
		sqlite3_str_appendf(s, "%s\"%w\"", i ? "," : "",
		    json_string_value(v));
	sqlite3_str_appendall(s, ") AS (SELECT ");
	for (i = 0; i < json_array_size(w->columns); i++)
		sqlite3_str_appendf(s, "%s?%d", i ? "," : "", (int)i + 1);
	/* A line end before ")": a comment in EXPR must not swallow it. */
	sqlite3_str_appendf(s, ") SELECT 1 FROM pair WHERE (%s\n)", w->sql);
	if ((sql = sqlite3_str_finish(s)) == NULL)
		return lpo_fail(w->c, LPO_ENOMEM, "out of memory");
	rc = sqlite3_prepare_v2(w->db, sql, -1, &w->stmt, &tail);
	if (rc != SQLITE_OK)
		rc = lpo_fail(w->c, LPO_EINVAL, "'%s': %s", w->sql,
		    sqlite3_errmsg(w->db));
	else if (tail != NULL && tail[strspn(tail, " \n\t;")] != '\0')
		rc = lpo_fail(w->c, LPO_EINVAL, "'%s' is more than one "
		    "expression", w->sql);
	sqlite3_free(sql);
	return rc;
}

static int
bind(struct lpo_where *w, int i, const json_t *v)
{
	char *text;
	int r;

	switch (v == NULL ? JSON_NULL : json_typeof(v)) {
	case JSON_NULL:
		r = sqlite3_bind_null(w->stmt, i);
		break;
	case JSON_INTEGER:
		r = sqlite3_bind_int64(w->stmt, i, json_integer_value(v));
		break;
	case JSON_REAL:
		r = sqlite3_bind_double(w->stmt, i, json_real_value(v));
		break;
	case JSON_TRUE:
	case JSON_FALSE:
		r = sqlite3_bind_int(w->stmt, i, json_is_true(v));
		break;
	case JSON_STRING:
		r = sqlite3_bind_text(w->stmt, i, json_string_value(v), -1,
		    SQLITE_TRANSIENT);
		break;
	default:
		if ((text = lpo_json_dumps(w->c, v)) == NULL)
			return LPO_ENOMEM;
		r = sqlite3_bind_text(w->stmt, i, text, -1,
		    SQLITE_TRANSIENT);
		lpo_free(text);
	}
	return r == SQLITE_OK ? 0 : lpo_fail(w->c, LPO_EDB, "cannot bind: %s",
	    sqlite3_errmsg(w->db));
}

/* Is the name a word of the expression?  Not "id" in "width". */
static int
mentions(const char *sql, const char *name)
{
	static const char word[] = "abcdefghijklmnopqrstuvwxyz"
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_";
	size_t n = strlen(name);
	const char *p = sql;

	while (n > 0 && (p = strcasestr(p, name)) != NULL) {
		if ((p == sql || strchr(word, p[-1]) == NULL) &&
		    (p[n] == '\0' || strchr(word, p[n]) == NULL))
			return 1;
		p++;
	}
	return 0;
}

/*
 * SQL's names ignore case: "Score" beside "score", or "ID" beside our id,
 * would silently stand for the first of them.  1: not in, and not asked for.
 */
static int
other_case(struct lpo_where *w, const char *key)
{
	json_t *v;
	size_t i;

	json_array_foreach(w->columns, i, v)
		if (sqlite3_stricmp(json_string_value(v), key) == 0)
			return !mentions(w->sql, key) ? 1 : lpo_fail(w->c,
			    LPO_EINVAL, "'%s': the columns '%s' and '%s' "
			    "differ in case only, which SQL does not see: "
			    "rename one", w->sql, json_string_value(v), key);
	return 0;
}

/* Columns seen for the first time join the others. */
static int
add_columns(struct lpo_where *w, const struct lpo_record *r)
{
	const char *key;
	int fresh = w->stmt == NULL, rc;
	size_t n = json_array_size(w->columns);
	uint8_t *had;
	json_t *v;

	json_object_foreach(r->extra, key, v) {
		if (json_object_get(w->known, key) != NULL)
			continue;
		if ((rc = other_case(w, key)) < 0)
			return rc;
		if (rc == 1)
			continue;
		fresh = 1;
		if (json_object_set_new(w->known, key, json_true()) != 0 ||
		    json_array_append_new(w->columns, json_string(key)) != 0)
			return lpo_fail(w->c, LPO_ENOMEM, "out of memory");
	}
	if (!fresh)
		return 0;
	had = lpo_realloc(w->c, w->had, json_array_size(w->columns));
	if (had == NULL)
		return LPO_ENOMEM;
	memset(had + (w->had != NULL ? n : 0), 0, json_array_size(w->columns) -
	    (w->had != NULL ? n : 0));
	w->had = had;
	return compile(w);
}

/*
 * A missing score that a program wrote as "nan" would pass `score > 5`: to SQL
 * any text is larger than any number.  So it is NULL, and other text among
 * numbers is told.
 */
static const json_t *
look(struct lpo_where *w, size_t i, const json_t *v, const struct lpo_record *r)
{
	const char *name = json_string_value(json_array_get(w->columns, i));
	const char *text = json_string_value(v);

	if (i < w->core || v == NULL)
		return v;
	if (text != NULL && strcasecmp(text + (*text == '-'), "nan") == 0)
		return NULL;
	w->had[i] |= json_is_number(v) ? NUMBER : text != NULL ? TEXT : 0;
	if (w->had[i] == (NUMBER | TEXT) && mentions(w->sql, name)) {
		w->had[i] |= TOLD;
		lpo_notice(w->c, "row %lld: the column '%s' has texts and "
		    "numbers; to SQL a text is larger than any number",
		    (long long)r->row, name);
	}
	return v;
}

int
lpo_where_test(struct lpo_where *w, int *keep, const struct lpo_record *r)
{
	size_t i;
	json_t *name, *v;
	int rc;

	if ((rc = add_columns(w, r)) != 0)
		return rc;
	sqlite3_reset(w->stmt);
	json_array_foreach(w->columns, i, name) {
		v = lpo_record_field(r, json_string_value(name));
		rc = bind(w, (int)i + 1, look(w, i, v, r));
		json_decref(v);
		if (rc != 0)
			return rc;
	}
	rc = sqlite3_step(w->stmt);
	/* NULL counts as no, as in any WHERE. */
	*keep = rc == SQLITE_ROW;
	if (rc == SQLITE_INTERRUPT)
		return lpo_fail(w->c, LPO_ESTOP, "stopped");
	if (rc != SQLITE_ROW && rc != SQLITE_DONE)
		return lpo_fail(w->c, LPO_EINVAL, "'%s': %s", w->sql,
		    sqlite3_errmsg(w->db));
	return 0;
}
