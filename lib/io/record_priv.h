/*
 * Inside of lpo_records: rows as they are kept, and the sources they are read
 * from (record_table.c, record_files.c).
 */
#ifndef LPO_IO_RECORD_PRIV_H
#define LPO_IO_RECORD_PRIV_H

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/io/record.h"
#include "lib/io/shard.h"

#define LPO_IMAGE_LIMIT	((size_t)256 << 20)

/* A row in few bytes: there may be a million of them. */
struct lpo_row {
	char *prompt, *id;
	char *extra;		/* canonical JSON; NULL: {} */
	char *error;		/* not NULL: nothing else counts */
	char *image[2];		/* path, or a tar's member name */
	double label_0, label_1;
	int64_t n;		/* num_example_per_prompt; 0: to be counted */
	int64_t sample;		/* of tar[source]; -1: image[] are paths */
	int source;
};

struct lpo_records {
	lpo_ctx *c;
	unsigned flags;
	struct lpo_row *row;
	int64_t n, room;
	lpo_shard **tar;
	char **tar_name;
	int n_tars;
	struct lpo_sha256 sum;	/* of tables, tars, names and sizes */
};

/* Add an input's bytes to the sum by which it is known; may be stopped. */
int	lpo_records_sum(struct lpo_records *, const void *, size_t bytes);
/* Append a row; takes over everything in *r, also on failure. */
int	lpo_records_add(struct lpo_records *, struct lpo_row *r);
/* Append a row that cannot be used; `error` is taken over, NULL: no memory. */
int	lpo_records_add_bad(struct lpo_records *, char *error);
void	lpo_row_clear(struct lpo_row *);
/*
 * Fill a row from the members of an object (prompt, labels, id, …); all other
 * members become extra.  LPO_EFORMAT says what is wrong with the row.
 */
int	lpo_row_from_json(struct lpo_records *, struct lpo_row *, json_t *);
/* A member as text: a string or a number's text; NULL where absent. */
char	*lpo_json_text(lpo_ctx *, const json_t *obj, const char *key);

int	lpo_records_table(struct lpo_records *, const char *path);
int	lpo_records_folder(struct lpo_records *, const char *path);
int	lpo_records_tar(struct lpo_records *, const char *path);

#endif
