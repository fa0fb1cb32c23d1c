/* A table of scores: images down, names of scores across. */
#ifndef LPO_SCORE_SCORES_H
#define LPO_SCORE_SCORES_H

#include "lib/base/ctx.h"

struct lpo_scores {
	char **name;		/* [names], "judge.alignment" */
	int64_t names;
	int64_t n;		/* images */
	double *value;		/* [n][names] */
};

void	 lpo_scores_free(struct lpo_scores *);	/* zeroed is fine */
/* A table of n images with these names (copied), values zero. */
int	 lpo_scores_new(lpo_ctx *, struct lpo_scores *, const char *const *name,
	    int64_t names, int64_t n);
/*
 * Columns first .. first + count - 1 of b after those of a, which has as many
 * images or is zeroed.
 */
int	 lpo_scores_append(lpo_ctx *, struct lpo_scores *a,
	    const struct lpo_scores *b, int64_t first, int64_t count);

#endif
