/* Inside of the filter: the joined scores and the SQL expression. */
#ifndef LPO_IO_FILTER_PRIV_H
#define LPO_IO_FILTER_PRIV_H

#include "lib/io/record.h"

struct lpo_score_file;
struct lpo_where;

int	lpo_score_file_open(lpo_ctx *, struct lpo_score_file **,
	    const char *path, int by_row);
void	lpo_score_file_close(struct lpo_score_file *);
int	lpo_score_file_rows(struct lpo_score_file *, int64_t n_rows);
/* Put the scores of r into r->extra. */
int	lpo_score_file_join(struct lpo_score_file *, struct lpo_record *r);

int	lpo_where_open(lpo_ctx *, struct lpo_where **, const char *sql);
void	lpo_where_close(struct lpo_where *);
int	lpo_where_test(struct lpo_where *, int *keep,
	    const struct lpo_record *);

#endif
