/*
 * Tables read row by row: CSV (RFC 4180), TSV, JSON lines, a JSON array of
 * objects or strings, plain lines.  One interface: named columns of text.
 */
#ifndef LPO_IO_TABLE_H
#define LPO_IO_TABLE_H

#include <stdint.h>

#include <jansson.h>

#include "lib/base/ctx.h"

enum lpo_table_format {
	LPO_TABLE_AUTO,		/* by the name's end; else and "-": CSV */
	LPO_TABLE_CSV,		/* header row; quotes as RFC 4180 */
	LPO_TABLE_TSV,		/* header row; \t \n \\ escapes, no quotes */
	LPO_TABLE_JSONL,	/* one object a line */
	LPO_TABLE_JSON,		/* one array, or an object of arrays */
	LPO_TABLE_LINES		/* .txt: the column `prompt`, a line a row */
};

typedef struct lpo_table lpo_table;

/*
 * Limits: a line (row) of 16 MB, NUL bytes and invalid UTF-8 refused, a
 * row with more or fewer fields than the header refused.  A header with equal
 * names is LPO_EFORMAT.  "-" is standard input.
 */
int	 lpo_table_open(lpo_ctx *, lpo_table **, const char *path,
	    enum lpo_table_format);
int	 lpo_table_open_memory(lpo_ctx *, lpo_table **, const void *,
	    size_t bytes, const char *name, enum lpo_table_format);
void	 lpo_table_close(lpo_table *);		/* NULL is fine */
/*
 * 0 and a row, 1 at the end, <0 with "file:line: …".  A row that is bad in
 * itself (field count, JSON syntax of a line, UTF-8) is LPO_EFORMAT with
 * lpo_table_can_continue() 1: after lpo_clear() the next call goes on with
 * the row after it.
 */
int	 lpo_table_next(lpo_table *);
int	 lpo_table_can_continue(const lpo_table *);
/* Columns of the header; for JSON those seen so far. */
int	 lpo_table_columns(const lpo_table *);
const char *lpo_table_name(const lpo_table *, int column);
int	 lpo_table_find(const lpo_table *, const char *name);	/* -1 absent */
/*
 * The text of the present row's field, borrowed until the next call; NULL
 * where it is absent or null (JSON); an empty cell of CSV is "".  Numbers of
 * JSON come as text, objects and arrays as canonical JSON.
 */
const char *lpo_table_get(const lpo_table *, int column);
const char *lpo_table_field(const lpo_table *, const char *name);
/* 1: the field is JSON's object or array. */
int	 lpo_table_nested(const lpo_table *, int column);
/*
 * The field as JSON: as it was (JSON formats), or lpo_json_cell() of the
 * text, null of an empty one.  The caller's reference; NULL where absent or
 * memory is out.
 */
json_t	*lpo_table_json(lpo_table *, int column);
int64_t	 lpo_table_row(const lpo_table *);	/* 0-based data row */
int64_t	 lpo_table_line(const lpo_table *);	/* where the row began */
const char *lpo_table_path(const lpo_table *);

#endif
