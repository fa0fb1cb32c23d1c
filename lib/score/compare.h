/*
 * Comparing systems on the same prompts and seeds: what lpo-eval prints,
 * stores and draws.
 */
#ifndef LPO_SCORE_COMPARE_H
#define LPO_SCORE_COMPARE_H

#include "lib/score/external.h"
#include "lib/score/stats.h"

struct lpo_comparison {
	const char *scorer;	/* borrowed from the scores */
	int64_t system;		/* compared with system 0 */
	double mean_base, mean;	/* over images */
	struct lpo_interval difference, win;
};

/*
 * scores[systems]: tables of the same images and columns, images of a prompt
 * in a row, prompt p owning first[p] .. first[p+1]-1.  Gives
 * (systems - 1) * names comparisons, scorer by scorer: lpo_free() them.
 * LPO_EFORMAT where tables differ in shape or names.
 */
int	 lpo_compare(lpo_ctx *, struct lpo_comparison **out, int64_t *n,
	    const struct lpo_scores *scores, int64_t systems,
	    const int64_t *first, int64_t prompts, int64_t resamples,
	    uint64_t seed);

#endif
