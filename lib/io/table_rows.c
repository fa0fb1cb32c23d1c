/*
 * Rows of a table from bytes: lines, and what each format makes of them.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/table_priv.h"

#define LINE_LIMIT	((size_t)16 << 20)
#define COLUMN_LIMIT	10000
#define JSON_LIMIT	((size_t)1 << 30)

/* ---- Input by lines ---- */

static int
fatal(lpo_table *t, int code, const char *what)
{
	t->can_continue = 0;
	return lpo_fail(t->c, code, "%s:%lld: %s", t->path,
	    (long long)t->line, what);
}

static int
bad_row(lpo_table *t, const char *what)
{
	t->can_continue = 1;
	return lpo_fail(t->c, LPO_EFORMAT, "%s:%lld: %s", t->path,
	    (long long)t->line, what);
}

/* More bytes behind those not yet used. */
static int
refill(lpo_table *t)
{
	ssize_t n;
	char *q;

	if (t->memory != NULL) {
		t->eof = 1;
		return 0;
	}
	if (t->pos > 0) {
		memmove(t->buf, t->buf + t->pos, t->have - t->pos);
		t->have -= t->pos;
		t->pos = 0;
	}
	if (t->have == t->room) {
		q = lpo_realloc(t->c, t->buf, t->room * 2 + 65536);
		if (q == NULL)
			return LPO_ENOMEM;
		t->buf = q;
		t->room = t->room * 2 + 65536;
	}
	do {
		if (lpo_ctx_stopped(t->c))
			return lpo_fail(t->c, LPO_ESTOP, "stopped");
		n = read(t->fd, t->buf + t->have, t->room - t->have);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return lpo_fail(t->c, LPO_EIO, "cannot read '%s': %s", t->path,
		    strerror(errno));
	t->eof = n == 0;
	t->have += (size_t)n;
	return 0;
}

/*
 * The next line with its end ("\n", "\r\n" or "\r"); 1 at the end of the
 * input.  Borrowed until the next call.
 */
static int
next_line(lpo_table *t, const char **line, size_t *n)
{
	const char *p, *end, *unpack;
	size_t from = 0, k;
	int rc;

	for (;;) {
		p = t->memory ? t->memory : t->buf;
		if (p != NULL)		/* no buffer before the first read */
			p += t->pos;
		for (k = from; k < t->have - t->pos; k++)
			if (p[k] == '\n' || p[k] == '\r')
				break;
		/* A "\r" last in the buffer may have its "\n" to come. */
		if (k < t->have - t->pos && (p[k] == '\n' || t->eof ||
		    k + 1 < t->have - t->pos)) {
			k++;
			if (p[k - 1] == '\r' && k < t->have - t->pos &&
			    p[k] == '\n')
				k++;
			break;
		}
		if (t->eof) {
			if (k == 0)
				return 1;
			break;
		}
		if (k > LINE_LIMIT) {
			t->line = t->line_next;
			return fatal(t, LPO_EFORMAT, "line longer than 16 MB");
		}
		from = k;
		if ((rc = refill(t)) != 0) {
			t->can_continue = 0;
			return rc;
		}
	}
	*line = p;
	*n = k;
	end = p + k;
	t->pos += k;
	t->line_next++;
	if (t->line_next == 2) {
		*line = p + lpo_utf8_mark(p, k);
		*n = (size_t)(end - *line);
		if ((unpack = lpo_unpacker(p, k)) != NULL) {
			t->can_continue = 0;
			return lpo_fail(t->c, LPO_EFORMAT, "%s: compressed: "
			    "unpack it with '%s'", t->path, unpack);
		}
	}
	return 0;
}

static size_t
without_end(const char *p, size_t n)
{
	if (n > 0 && p[n - 1] == '\n')
		n--;
	if (n > 0 && p[n - 1] == '\r')
		n--;
	return n;
}

static int
blank(const char *p, size_t n)
{
	size_t i;

	for (i = 0; i < n && (p[i] == ' ' || p[i] == '\t'); i++)
		;
	return i == n;
}

/* ---- The row being built ---- */

void
lpo_table_clear_row(lpo_table *t)
{
	int i;

	for (i = 0; i < t->n_f; i++)
		json_decref(t->f[i].v);
	t->n_f = 0;
	t->n_text = 0;
}

static int
grow_text(lpo_table *t, size_t n)
{
	char *q;

	if (t->n_text + n <= t->room_text)
		return 0;
	q = lpo_realloc(t->c, t->text, (t->n_text + n) * 2 + 256);
	if (q == NULL)
		return LPO_ENOMEM;
	t->text = q;
	t->room_text = (t->n_text + n) * 2 + 256;
	return 0;
}

static int
grow_fields(lpo_table *t, int n)
{
	struct lpo_table_cell *q;

	if (n > COLUMN_LIMIT)
		return bad_row(t, "more than 10000 fields");
	if (n <= t->room_f)
		return 0;
	q = lpo_realloc(t->c, t->f, (size_t)n * 2 * sizeof(*q));
	if (q == NULL)
		return LPO_ENOMEM;
	t->f = q;
	t->room_f = n * 2;
	return 0;
}

/* Append a field; `there` 0: absent. */
static int
put_field(lpo_table *t, const char *p, size_t n, json_t *v, int there)
{
	int rc;

	if ((rc = grow_fields(t, t->n_f + 1)) != 0 ||
	    (rc = grow_text(t, n + 1)) != 0) {
		json_decref(v);
		return rc;
	}
	if (n > 0)
		memcpy(t->text + t->n_text, p, n);
	t->text[t->n_text + n] = '\0';
	t->f[t->n_f].at = t->n_text;
	t->f[t->n_f].v = v;
	t->f[t->n_f++].there = there;
	t->n_text += n + 1;
	return 0;
}

int
lpo_table_add_name(lpo_table *t, const char *name)
{
	char **q;

	if (t->n_names == COLUMN_LIMIT)
		return fatal(t, LPO_EFORMAT, "more than 10000 columns");
	if ((t->n_names & (t->n_names - 1)) == 0) {	/* powers of two */
		q = lpo_realloc(t->c, t->name,
		    (size_t)(t->n_names ? t->n_names * 2 : 1) * sizeof(*q));
		if (q == NULL)
			return LPO_ENOMEM;
		t->name = q;
	}
	if ((t->name[t->n_names] = lpo_strdup(t->c, name)) == NULL)
		return LPO_ENOMEM;
	t->n_names++;
	return 0;
}

/* Each text of the row valid UTF-8 and without NUL? */
int
lpo_table_check_text(lpo_table *t)
{
	int i;

	for (i = 0; i < t->n_f; i++) {
		size_t end = i + 1 < t->n_f ? t->f[i + 1].at : t->n_text;

		if (!lpo_utf8_valid(t->text + t->f[i].at,
		    end - t->f[i].at - 1))
			return bad_row(t, "not UTF-8, or a NUL byte");
	}
	return 0;
}

/* ---- CSV and TSV ---- */

static void
on_field(void *p, size_t n, void *arg)
{
	lpo_table *t = arg;

	if (!t->bad_memory && put_field(t, p, n, NULL, 1) != 0)
		t->bad_memory = 1;
}

static void
on_row(int ch, void *arg)
{
	lpo_table *t = arg;

	(void)ch;
	t->row_done = 1;
}

/* Lines until libcsv says that a row is complete: quotes may hold "\n". */
static int
read_csv(lpo_table *t)
{
	const char *line;
	size_t n, used = 0;
	int rc;

	t->row_done = 0;
	t->line = t->line_next;
	while (!t->row_done) {
		if (t->n_f == 0 && t->csv.entry_pos == 0 && !t->csv.quoted)
			t->line = t->line_next;		/* blank lines */
		if ((rc = next_line(t, &line, &n)) < 0)
			return rc;
		if (rc == 1) {
			/* libcsv says so only in its strict mode. */
			if (t->csv.pstate == 2 && t->csv.quoted)
				return fatal(t, LPO_EFORMAT, "a quote that "
				    "begins here does not end");
			csv_fini(&t->csv, on_field, on_row, t);
			return t->bad_memory ? lpo_errcode(t->c) :
			    t->row_done ? 0 : 1;
		}
		if ((used += n) > LINE_LIMIT)
			return fatal(t, LPO_EFORMAT, "row longer than 16 MB");
		if (csv_parse(&t->csv, line, n, on_field, on_row, t) != n)
			return fatal(t, csv_error(&t->csv) == CSV_ENOMEM ?
			    LPO_ENOMEM : LPO_EFORMAT,
			    csv_strerror(csv_error(&t->csv)));
		if (t->bad_memory)
			return lpo_errcode(t->c);
	}
	return 0;
}

/* \t, \n, \r and \\; other backslashes stay. */
static size_t
unescape(char *p, size_t n)
{
	size_t i, k = 0;

	for (i = 0; i < n; i++) {
		if (p[i] == '\\' && i + 1 < n &&
		    strchr("tnr\\", p[i + 1]) != NULL) {
			i++;
			p[k++] = p[i] == 't' ? '\t' : p[i] == 'n' ? '\n' :
			    p[i] == 'r' ? '\r' : '\\';
		} else
			p[k++] = p[i];
	}
	return k;
}

static int
read_tsv(lpo_table *t)
{
	const char *line, *tab;
	size_t n, k;
	int rc;

	do {
		t->line = t->line_next;
		if ((rc = next_line(t, &line, &n)) != 0)
			return rc;
		n = without_end(line, n);
	} while (n == 0);
	for (;;) {
		tab = memchr(line, '\t', n);
		k = tab ? (size_t)(tab - line) : n;
		if ((rc = put_field(t, line, k, NULL, 1)) != 0)
			return rc;
		/* Shorter in place; the texts stay one after the other. */
		t->n_text = t->f[t->n_f - 1].at +
		    unescape(t->text + t->f[t->n_f - 1].at, k);
		t->text[t->n_text++] = '\0';
		if (tab == NULL)
			return 0;
		line = tab + 1;
		n -= k + 1;
	}
}

/* ---- JSON ---- */

static int
put_json(lpo_table *t, json_t *v)
{
	char *text;
	int rc;

	if (v == NULL || json_is_null(v))
		return put_field(t, "", 0, NULL, 0);
	if (json_is_string(v))
		return put_field(t, json_string_value(v),
		    json_string_length(v), json_incref(v), 1);
	if ((text = lpo_json_dumps(t->c, v)) == NULL)
		return LPO_ENOMEM;
	rc = put_field(t, text, strlen(text), json_incref(v), 1);
	lpo_free(text);
	return rc;
}

/* A row from an object, or from a string (column `prompt`). */
static int
row_from_json(lpo_table *t, json_t *v)
{
	const char *key;
	json_t *m;
	int i, rc;

	if (json_is_string(v)) {
		if (lpo_table_find(t, "prompt") < 0 &&
		    (rc = lpo_table_add_name(t, "prompt")) != 0)
			return rc;
	} else if (!json_is_object(v))
		return bad_row(t, "not an object");
	else
		json_object_foreach(v, key, m)
			if (lpo_table_find(t, key) < 0 &&
			    (rc = lpo_table_add_name(t, key)) != 0)
				return rc;
	for (i = 0; i < t->n_names; i++) {
		m = !json_is_string(v) ? json_object_get(v, t->name[i]) :
		    strcmp(t->name[i], "prompt") == 0 ? v : NULL;
		if ((rc = put_json(t, m)) != 0)
			return rc;
	}
	return 0;
}

static int
read_jsonl(lpo_table *t)
{
	json_t *v = NULL;
	const char *line;
	size_t n;
	int rc;

	do {
		t->line = t->line_next;
		if ((rc = next_line(t, &line, &n)) != 0)
			return rc;
		n = without_end(line, n);
	} while (blank(line, n));
	rc = lpo_json_load(t->c, &v, line, n, "JSON");
	if (rc != 0) {
		t->can_continue = rc == LPO_EFORMAT;
		lpo_fail_prefix(t->c, "%s:%lld", t->path, (long long)t->line);
		return rc;
	}
	rc = row_from_json(t, v);
	json_decref(v);
	return rc;
}

int
lpo_table_open_json(lpo_table *t)
{
	char *text = NULL;
	json_t *v;
	size_t n = 0;
	int rc = 0;

	if (t->memory == NULL) {
		rc = lpo_file_read(t->c, &text, &n, t->own_fd ? t->path : "-",
		    JSON_LIMIT);
		if (rc == 0)
			rc = lpo_json_load(t->c, &t->doc, text, n, t->path);
	} else
		rc = lpo_json_load(t->c, &t->doc, t->memory, t->have,
		    t->path);
	lpo_free(text);
	if (rc == 0 && !json_is_array(t->doc) && !json_is_object(t->doc))
		rc = lpo_fail(t->c, LPO_EFORMAT, "%s: neither array nor "
		    "object", t->path);
	if (rc != 0 || !json_is_object(t->doc))
		return rc;
	/* one prompt with what belongs to it is a row, not rows by name */
	if (json_is_string(json_object_get(t->doc, "prompt")) ||
	    json_is_string(json_object_get(t->doc, "caption"))) {
		v = json_pack("[o]", t->doc);
		t->doc = v;
		return v != NULL ? 0 : lpo_fail(t->c, LPO_ENOMEM,
		    "%s: out of memory", t->path);
	}
	t->iter = json_object_iter(t->doc);
	return rc;
}

/* {"prompt": [...], "id": [...]}: columns of equal length. */
static int
row_from_columns(lpo_table *t)
{
	const char *key;
	json_t *v;
	size_t n = SIZE_MAX;
	int rc;

	json_object_foreach(t->doc, key, v) {
		if (n != SIZE_MAX && json_array_size(v) != n)
			return fatal(t, LPO_EFORMAT, "columns of different "
			    "length");
		n = json_array_size(v);
		if (lpo_table_find(t, key) < 0 &&
		    (rc = lpo_table_add_name(t, key)) != 0)
			return rc;
		if ((rc = put_json(t, json_array_get(v, t->at))) != 0)
			return rc;
	}
	return t->at++ < n ? 0 : 1;
}

static int
read_json(lpo_table *t)
{
	json_t *v;

	t->line = (int64_t)t->at + 1;	/* the item's number */
	if (json_is_array(t->doc)) {
		v = json_array_get(t->doc, t->at++);
		return v == NULL ? 1 : row_from_json(t, v);
	}
	if (t->iter == NULL)
		return 1;
	v = json_object_iter_value(t->iter);
	if (json_is_array(v))
		return row_from_columns(t);
	t->iter = json_object_iter_next(t->doc, t->iter);
	t->at++;
	return row_from_json(t, v);
}

static int
read_lines(lpo_table *t)
{
	const char *line;
	size_t n;
	int rc;

	do {
		t->line = t->line_next;
		if ((rc = next_line(t, &line, &n)) != 0)
			return rc;
		n = without_end(line, n);
	} while (blank(line, n));
	return put_field(t, line, n, NULL, 1);
}

/* ---- Any format ---- */

int
lpo_table_read_row(lpo_table *t)
{
	lpo_table_clear_row(t);
	t->can_continue = 0;
	switch (t->format) {
	case LPO_TABLE_TSV:
		return read_tsv(t);
	case LPO_TABLE_JSONL:
		return read_jsonl(t);
	case LPO_TABLE_JSON:
		return read_json(t);
	case LPO_TABLE_LINES:
		return read_lines(t);
	default:
		return read_csv(t);
	}
}
