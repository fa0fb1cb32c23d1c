/*
 * Preferences from a table: one row, two image paths.
 */
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/record_priv.h"
#include "lib/io/table.h"

/*
 * The present row as an object.  Prompt, id and paths stay the text they are:
 * an id "007" or a prompt "42" is no number.
 */
static json_t *
row_object(lpo_ctx *c, lpo_table *t)
{
	static const char *const texts[] = {
		"prompt", "caption", "id", "image_0", "image_1", "image"
	};
	json_t *o = json_object(), *v;
	const char *name;
	size_t k;
	int i;

	for (i = 0; o != NULL && i < lpo_table_columns(t); i++) {
		if (lpo_table_get(t, i) == NULL)
			continue;
		name = lpo_table_name(t, i);
		for (k = 0; k < sizeof(texts) / sizeof(*texts); k++)
			if (strcmp(name, texts[k]) == 0)
				break;
		v = k < sizeof(texts) / sizeof(*texts) &&
		    !lpo_table_nested(t, i) ?
		    json_string(lpo_table_get(t, i)) : lpo_table_json(t, i);
		if (json_object_set_new(o, name, v) != 0) {
			json_decref(o);
			o = NULL;
		}
	}
	if (o == NULL)
		lpo_fail(c, LPO_ENOMEM, "out of memory");
	return o;
}

/* The k-th image's path, relative ones from the table's folder. */
static int
image_path(lpo_records *rs, struct lpo_row *r, const json_t *o, int k,
    const char *dir)
{
	const char *p = NULL;

	if (rs->flags & LPO_RECORDS_IMAGES_ONLY)
		p = json_string_value(lpo_json_get(o, "image"));
	if (p == NULL)
		p = json_string_value(lpo_json_get(o, k ? "image_1" :
		    "image_0"));
	if (p == NULL || p[0] == '\0')
		return lpo_fail(rs->c, LPO_EFORMAT, "no image_%d", k);
	r->image[k] = lpo_path_join(rs->c, dir, p);
	return r->image[k] == NULL ? LPO_ENOMEM : 0;
}

static int
one_row(lpo_records *rs, struct lpo_row *r, lpo_table *t, const char *dir)
{
	json_t *o = row_object(rs->c, t);
	int rc = o == NULL ? LPO_ENOMEM : lpo_row_from_json(rs, r, o);

	r->sample = -1;
	if (rc == 0)
		rc = image_path(rs, r, o, 0, dir);
	if (rc == 0 && !(rs->flags & LPO_RECORDS_IMAGES_ONLY))
		rc = image_path(rs, r, o, 1, dir);
	json_decref(o);
	return rc;
}

/* Columns without which no row can be good. */
static int
check_header(lpo_records *rs, const lpo_table *t)
{
	int only = rs->flags & LPO_RECORDS_IMAGES_ONLY;
	const char *missing = NULL;

	if (lpo_table_columns(t) == 0)
		return 0;		/* JSON: known row by row */
	if (lpo_table_find(t, "image_0") < 0 &&
	    (!only || lpo_table_find(t, "image") < 0))
		missing = only ? "image" : "image_0";
	else if (!only && lpo_table_find(t, "image_1") < 0)
		missing = "image_1";
	else if (!only && lpo_table_find(t, "prompt") < 0 &&
	    lpo_table_find(t, "caption") < 0)
		missing = "prompt";
	else if (rs->flags == 0 && lpo_table_find(t, "label_0") < 0 &&
	    lpo_table_find(t, "label_1") < 0 &&
	    lpo_table_find(t, "preferred") < 0)
		missing = "label_0";
	if (missing == NULL)
		return 0;
	return lpo_fail(rs->c, LPO_EFORMAT, "%s: no column '%s'",
	    lpo_table_path(t), missing);
}

static int
read_rows(lpo_records *rs, lpo_table *t, const char *dir)
{
	lpo_ctx *c = rs->c;
	struct lpo_row r;
	char *why;
	int rc;

	for (;;) {
		memset(&r, 0, sizeof(r));
		if (lpo_ctx_stopped(c))
			return lpo_fail(c, LPO_ESTOP, "stopped");
		rc = lpo_table_next(t);
		if (rc == 1)
			return 0;
		if (rc == 0 && (rc = one_row(rs, &r, t, dir)) == 0) {
			if ((rc = lpo_records_add(rs, &r)) != 0)
				return rc;
			continue;
		}
		if (rc == LPO_EFORMAT && r.sample == -1)
			lpo_fail_prefix(c, "%s:%lld", lpo_table_path(t),
			    (long long)lpo_table_line(t));
		else if (rc != LPO_EFORMAT || !lpo_table_can_continue(t)) {
			lpo_row_clear(&r);
			return rc;
		}
		lpo_row_clear(&r);
		why = lpo_strdup(c, lpo_errmsg(c));
		lpo_clear(c);
		if ((rc = lpo_records_add_bad(rs, why)) != 0)
			return rc;
	}
}

int
lpo_records_table(lpo_records *rs, const char *path)
{
	int std = strcmp(path, "-") == 0, rc;
	struct lpo_map map = { NULL, 0 };
	enum lpo_table_format f = LPO_TABLE_AUTO;
	const char *data, *name = std ? "standard input" : path;
	char *text = NULL, *dir = NULL;
	lpo_table *t = NULL;
	size_t n = 0;

	rc = std ? lpo_file_read(rs->c, &text, &n, "-", (size_t)4 << 30) :
	    lpo_map_open(rs->c, &map, path);
	data = std ? text : (const char *)map.data;
	if (!std)
		n = map.bytes;
	if (rc == 0 && (dir = lpo_dirname(rs->c, path)) == NULL)
		rc = LPO_ENOMEM;
	if (rc != 0)
		goto out;
	if (std && n > 0)
		f = data[lpo_utf8_mark(data, n)] == '{' ? LPO_TABLE_JSONL :
		    LPO_TABLE_CSV;
	if ((rc = lpo_records_sum(rs, data, n)) == 0)
		rc = lpo_table_open_memory(rs->c, &t, data, n, name, f);
	if (rc == 0)
		rc = check_header(rs, t);
	if (rc == 0)
		rc = read_rows(rs, t, strcmp(dir, ".") == 0 ? "" : dir);
out:
	lpo_table_close(t);
	lpo_map_close(&map);
	lpo_free(text);
	lpo_free(dir);
	return rc;
}
