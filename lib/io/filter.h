/*
 * Which pairs are used: MPCF (method.md 2.2), an SQL expression, scores joined
 * from a CSV.  One implementation for lpo-encode and lpo-pairs.
 */
#ifndef LPO_IO_FILTER_H
#define LPO_IO_FILTER_H

#include <stdint.h>

#include "lib/base/ctx.h"
#include "lib/io/record.h"

enum {
	LPO_MPCF_AESTHETIC = 1, LPO_MPCF_CLIPSCORE = 2, LPO_MPCF_VQASCORE = 4,
	LPO_MPCF_ALL = 7
};

struct lpo_filter_options {
	int mpcf;		/* 0 none, 1 .. 3 the strategy */
	unsigned mpcf_use;	/* 0 means LPO_MPCF_ALL */
	const char *where;	/* SQLite expression; NULL: none */
	const char *scores;	/* CSV; NULL: none */
	int join_by_row;	/* else by `id` */
	int drop_ties;
};

/* One line of --stats: pairs before and after a stage. */
struct lpo_filter_stage {
	const char *name;	/* "scores", "drop-ties", "mpcf2", "where" */
	int64_t pairs_in, pairs_out, ties_in, ties_out;
};

typedef struct lpo_filters lpo_filters;

/* "none" -> 0, "mpcf2" -> 2; LPO_EINVAL for others. */
int	 lpo_filter_name(lpo_ctx *, int *mpcf, const char *name);
/* "aesthetic,clipscore" -> bits. */
int	 lpo_filter_use(lpo_ctx *, unsigned *use, const char *list);

/*
 * A criterion dropped by mpcf_use and a column of the input replaced by the
 * scores file are said once (lpo_notice).
 */
int	 lpo_filter_open(lpo_ctx *, lpo_filters **,
	    const struct lpo_filter_options *);
void	 lpo_filter_close(lpo_filters *);	/* NULL is fine */
/*
 * With join_by_row, the input's row count, checked against the scores file:
 * LPO_EFORMAT where they differ.  Otherwise nothing.
 */
int	 lpo_filter_rows(lpo_filters *, int64_t n_rows);
/*
 * *keep = 1 or 0.  Joined scores are added to rec->extra.  A column that is
 * missing or not a number, an id without scores, a faulty expression: errors
 * naming row and column.
 */
int	 lpo_filter_keep(lpo_filters *, int *keep, struct lpo_record *rec);
int	 lpo_filter_stages(const lpo_filters *);
const struct lpo_filter_stage *lpo_filter_stage_at(const lpo_filters *, int i);

#endif
