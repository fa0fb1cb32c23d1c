/*
 * Scores from a table, joined to records by id or by row.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/filter_priv.h"
#include "lib/io/table.h"

struct entry {
	char *id;		/* NULL when joined by row */
	char *values;		/* canonical JSON object */
};

struct lpo_score_file {
	lpo_ctx *c;
	char *path;
	struct entry *e;
	int64_t n, room;
	int by_row, replaced;
};

static int
by_id(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->id,
	    ((const struct entry *)b)->id);
}

static int
add_row(struct lpo_score_file *s, lpo_table *t, int id_column)
{
	json_t *o = json_object();
	struct entry *grown, *e;
	int i, rc = 0;

	if (o == NULL)
		return lpo_fail(s->c, LPO_ENOMEM, "out of memory");
	if (s->n == s->room) {
		int64_t room = s->room * 2 + 256;

		grown = lpo_realloc(s->c, s->e, (size_t)room * sizeof(*e));
		if (grown == NULL) {
			rc = LPO_ENOMEM;
			goto out;
		}
		s->e = grown;
		s->room = room;
	}
	for (i = 0; i < lpo_table_columns(t) && rc == 0; i++)
		if (i != id_column && lpo_table_get(t, i) != NULL)
			rc = lpo_json_set(s->c, o, lpo_table_name(t, i),
			    lpo_table_json(t, i));
	e = &s->e[s->n];
	memset(e, 0, sizeof(*e));
	if (rc != 0)
		goto out;
	if (!s->by_row && lpo_table_get(t, id_column) == NULL) {
		rc = lpo_fail(s->c, LPO_EFORMAT, "%s:%lld: no id", s->path,
		    (long long)lpo_table_line(t));
		goto out;
	}
	if ((!s->by_row && (e->id = lpo_strdup(s->c, lpo_table_get(t,
	    id_column))) == NULL) ||
	    (e->values = lpo_json_dumps(s->c, o)) == NULL) {
		lpo_free(e->id);
		rc = LPO_ENOMEM;
		goto out;
	}
	s->n++;
out:
	json_decref(o);
	return rc;
}

static int
read_all(struct lpo_score_file *s)
{
	lpo_table *t = NULL;
	int64_t i;
	int id, rc;

	if ((rc = lpo_table_open(s->c, &t, s->path, LPO_TABLE_AUTO)) != 0)
		return rc;
	while (rc == 0 && (rc = lpo_table_next(t)) == 0) {
		id = lpo_table_find(t, "id");
		if (id < 0 && !s->by_row)
			rc = lpo_fail(s->c, LPO_EFORMAT, "%s: no column 'id' "
			    "(--join-by-row joins by position)", s->path);
		else
			rc = add_row(s, t, id);
	}
	lpo_table_close(t);
	if (rc != 1)
		return rc;
	if (s->by_row || s->n == 0)
		return 0;
	qsort(s->e, (size_t)s->n, sizeof(*s->e), by_id);
	for (i = 1; i < s->n; i++)
		if (strcmp(s->e[i - 1].id, s->e[i].id) == 0)
			return lpo_fail(s->c, LPO_EFORMAT, "%s: id '%s' is "
			    "there twice", s->path, s->e[i].id);
	return 0;
}

int
lpo_score_file_open(lpo_ctx *c, struct lpo_score_file **out, const char *path,
    int by_row)
{
	struct lpo_score_file *s = lpo_alloc(c, 1, sizeof(*s));
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (s == NULL)
		return rc;
	s->c = c;
	s->by_row = by_row;
	if ((s->path = lpo_strdup(c, path)) == NULL ||
	    (rc = read_all(s)) != 0) {
		lpo_score_file_close(s);
		return rc;
	}
	*out = s;
	return 0;
}

void
lpo_score_file_close(struct lpo_score_file *s)
{
	int64_t i;

	if (s == NULL)
		return;
	for (i = 0; i < s->n; i++) {
		lpo_free(s->e[i].id);
		lpo_free(s->e[i].values);
	}
	lpo_free(s->e);
	lpo_free(s->path);
	lpo_free(s);
}

int
lpo_score_file_rows(struct lpo_score_file *s, int64_t n_rows)
{
	if (!s->by_row || s->n == n_rows)
		return 0;
	return lpo_fail(s->c, LPO_EFORMAT, "%s: %lld rows of scores for %lld "
	    "rows of input", s->path, (long long)s->n, (long long)n_rows);
}

/* Without an id a row goes by its number, as in what lpo-eval prints. */
static int
find(struct lpo_score_file *s, const struct entry **e,
    const struct lpo_record *r)
{
	struct entry want;
	char row[24];

	*e = NULL;
	if (s->by_row) {
		if (r->row >= s->n)
			return lpo_fail(s->c, LPO_EFORMAT, "%s has only %lld "
			    "rows", s->path, (long long)s->n);
		*e = &s->e[r->row];
		return 0;
	}
	snprintf(row, sizeof(row), "%lld", (long long)r->row);
	want.id = r->id != NULL ? r->id : row;
	want.values = NULL;
	if (s->n > 0)
		*e = bsearch(&want, s->e, (size_t)s->n, sizeof(want), by_id);
	return *e != NULL ? 0 : lpo_fail(s->c, LPO_EFORMAT, "%s '%s' is not "
	    "in '%s'", r->id != NULL ? "id" : "it has no id, and its number",
	    want.id, s->path);
}

int
lpo_score_file_join(struct lpo_score_file *s, struct lpo_record *r)
{
	const struct entry *e = NULL;
	json_t *o = NULL, *v;
	const char *key;
	int rc;

	if ((rc = find(s, &e, r)) != 0)
		return rc;
	rc = lpo_json_load(s->c, &o, e->values, strlen(e->values), s->path);
	if (rc != 0)
		return rc;
	json_object_foreach(o, key, v) {
		if (!s->replaced && json_object_get(r->extra, key) != NULL) {
			s->replaced = 1;
			lpo_notice(s->c, "column '%s' of the input is "
			    "replaced by that of '%s'", key, s->path);
		}
		if ((rc = lpo_json_set(s->c, r->extra, key, json_incref(v)))
		    != 0)
			break;
	}
	json_decref(o);
	return rc;
}
