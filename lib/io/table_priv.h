/* What table.c (tables, columns) and table_rows.c (rows) share. */
#ifndef LPO_IO_TABLE_PRIV_H
#define LPO_IO_TABLE_PRIV_H

#include <csv.h>

#include "lib/io/table.h"

struct lpo_table_cell {
	size_t at;		/* into t->text */
	json_t *v;		/* JSON formats */
	int there;
};

struct lpo_table {
	lpo_ctx *c;
	char *path;
	enum lpo_table_format format;
	/* Input: a descriptor, or memory. */
	int fd, own_fd, eof;
	const char *memory;
	char *buf;
	size_t have, pos, room;
	int64_t line_next, line, row;
	/* The row: texts one after the other, each with a NUL. */
	char *text;
	size_t n_text, room_text;
	struct lpo_table_cell *f;
	int n_f, room_f;
	char **name;
	int n_names;
	/* CSV */
	struct csv_parser csv;
	int has_csv, row_done, bad_memory;
	/* JSON */
	json_t *doc;
	void *iter;
	size_t at;
	int can_continue;
};

/* As lpo_table_next(), but the number and text of its fields are unchecked. */
int	 lpo_table_read_row(lpo_table *);
void	 lpo_table_clear_row(lpo_table *);
/* Each text of the row valid UTF-8 and without NUL? */
int	 lpo_table_check_text(lpo_table *);
int	 lpo_table_add_name(lpo_table *, const char *name);
/* LPO_TABLE_JSON: all of the document, and its first item. */
int	 lpo_table_open_json(lpo_table *);

#endif
