/*
 * Tables of CSV (libcsv), TSV, JSON lines, JSON and plain lines: opening,
 * columns, and the present row's fields.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/mem.h"
#include "lib/io/table_priv.h"

/* The header row of CSV and TSV. */
static int
read_header(lpo_table *t)
{
	const char *name;
	int i, rc = lpo_table_read_row(t);

	if (rc == 1)
		return lpo_fail(t->c, LPO_EFORMAT, "%s: empty, not even a "
		    "header", t->path);
	if (rc == 0)
		rc = lpo_table_check_text(t);
	for (i = 0; i < t->n_f && rc == 0; i++) {
		name = t->text + t->f[i].at;
		if (lpo_table_find(t, name) >= 0)
			return lpo_fail(t->c, LPO_EFORMAT, "%s: two columns "
			    "'%s'", t->path, name);
		rc = lpo_table_add_name(t, name);
	}
	return rc;
}

static enum lpo_table_format
guess(const char *path)
{
	if (lpo_has_extension(path, ".tsv"))
		return LPO_TABLE_TSV;
	if (lpo_has_extension(path, ".jsonl") ||
	    lpo_has_extension(path, ".ndjson"))
		return LPO_TABLE_JSONL;
	if (lpo_has_extension(path, ".json"))
		return LPO_TABLE_JSON;
	if (lpo_has_extension(path, ".txt"))
		return LPO_TABLE_LINES;
	return LPO_TABLE_CSV;
}

static int
never(unsigned char ch)
{
	(void)ch;
	return 0;		/* blanks belong to a field (RFC 4180) */
}

static int
start(lpo_table *t)
{
	int rc = 0;

	t->row = -1;
	t->line_next = 1;
	if (t->format == LPO_TABLE_AUTO)
		t->format = guess(t->path);
	switch (t->format) {
	case LPO_TABLE_CSV:
		if (csv_init(&t->csv, CSV_APPEND_NULL) != 0)
			return lpo_fail(t->c, LPO_ENOMEM, "out of memory");
		t->has_csv = 1;
		/* Its default step of 128 bytes makes long fields slow. */
		csv_set_blk_size(&t->csv, 65536);
		csv_set_space_func(&t->csv, never);
		csv_set_realloc_func(&t->csv, lpo_raw_realloc);
		csv_set_free_func(&t->csv, lpo_raw_free);
		rc = read_header(t);
		break;
	case LPO_TABLE_TSV:
		rc = read_header(t);
		break;
	case LPO_TABLE_JSON:
		rc = lpo_table_open_json(t);
		break;
	case LPO_TABLE_LINES:
		rc = lpo_table_add_name(t, "prompt");
		break;
	default:
		break;
	}
	lpo_table_clear_row(t);
	return rc;
}

static int
table_new(lpo_ctx *c, lpo_table **out, const char *path,
    enum lpo_table_format format)
{
	lpo_table *t = lpo_alloc(c, 1, sizeof(*t));

	*out = NULL;
	if (t == NULL)
		return LPO_ENOMEM;
	t->c = c;
	t->fd = -1;
	t->format = format;
	if ((t->path = lpo_strdup(c, path)) == NULL) {
		lpo_free(t);
		return LPO_ENOMEM;
	}
	*out = t;
	return 0;
}

int
lpo_table_open(lpo_ctx *c, lpo_table **out, const char *path,
    enum lpo_table_format format)
{
	int std = strcmp(path, "-") == 0, rc;

	rc = table_new(c, out, std ? "standard input" : path, format);
	if (rc != 0)
		return rc;
	if (std)
		(*out)->fd = STDIN_FILENO;
	else {
		(*out)->own_fd = 1;
		(*out)->fd = open(path, O_RDONLY | O_CLOEXEC);
		if ((*out)->fd < 0)
			rc = lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND :
			    LPO_EIO, "cannot open '%s': %s", path,
			    strerror(errno));
	}
	if (rc == 0)
		rc = start(*out);
	if (rc != 0) {
		lpo_table_close(*out);
		*out = NULL;
	}
	return rc;
}

int
lpo_table_open_memory(lpo_ctx *c, lpo_table **out, const void *data,
    size_t bytes, const char *name, enum lpo_table_format format)
{
	int rc = table_new(c, out, name, format);

	if (rc != 0)
		return rc;
	(*out)->memory = data;
	(*out)->have = bytes;
	if ((rc = start(*out)) != 0) {
		lpo_table_close(*out);
		*out = NULL;
	}
	return rc;
}

void
lpo_table_close(lpo_table *t)
{
	int i;

	if (t == NULL)
		return;
	lpo_table_clear_row(t);
	for (i = 0; i < t->n_names; i++)
		lpo_free(t->name[i]);
	lpo_free(t->name);
	lpo_free(t->f);
	lpo_free(t->text);
	lpo_free(t->buf);
	if (t->has_csv)
		csv_free(&t->csv);
	json_decref(t->doc);
	if (t->own_fd && t->fd >= 0)
		close(t->fd);
	lpo_free(t->path);
	lpo_free(t);
}

int
lpo_table_next(lpo_table *t)
{
	int rc = lpo_table_read_row(t);

	if (rc == 1)
		return 1;
	if (rc == 0 || t->can_continue)
		t->row++;
	if (rc == 0 && t->format != LPO_TABLE_JSON &&
	    t->format != LPO_TABLE_JSONL) {
		if (t->n_f != t->n_names) {
			t->can_continue = 1;
			rc = lpo_fail(t->c, LPO_EFORMAT, "%s:%lld: %d fields "
			    "where the header has %d", t->path,
			    (long long)t->line, t->n_f, t->n_names);
		} else
			rc = lpo_table_check_text(t);
	}
	if (rc != 0)
		lpo_table_clear_row(t);
	return rc;
}

int
lpo_table_can_continue(const lpo_table *t)
{
	return t->can_continue;
}

int
lpo_table_columns(const lpo_table *t)
{
	return t->n_names;
}

const char *
lpo_table_name(const lpo_table *t, int column)
{
	return column >= 0 && column < t->n_names ? t->name[column] : NULL;
}

int
lpo_table_find(const lpo_table *t, const char *name)
{
	int i;

	for (i = 0; i < t->n_names; i++)
		if (strcmp(t->name[i], name) == 0)
			return i;
	return -1;
}

const char *
lpo_table_get(const lpo_table *t, int column)
{
	return column >= 0 && column < t->n_f && t->f[column].there ?
	    t->text + t->f[column].at : NULL;
}

const char *
lpo_table_field(const lpo_table *t, const char *name)
{
	return lpo_table_get(t, lpo_table_find(t, name));
}

int
lpo_table_nested(const lpo_table *t, int column)
{
	const json_t *v = lpo_table_get(t, column) != NULL ?
	    t->f[column].v : NULL;

	return json_is_object(v) || json_is_array(v);
}

json_t *
lpo_table_json(lpo_table *t, int column)
{
	const char *text = lpo_table_get(t, column);

	if (text == NULL)
		return NULL;
	if (t->f[column].v != NULL)
		return json_incref(t->f[column].v);
	return text[0] == '\0' ? json_null() : lpo_json_cell(t->c, text);
}

int64_t
lpo_table_row(const lpo_table *t)
{
	return t->row;
}

int64_t
lpo_table_line(const lpo_table *t)
{
	return t->line;
}

const char *
lpo_table_path(const lpo_table *t)
{
	return t->path;
}
