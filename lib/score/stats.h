/*
 * Statistics of comparisons: means with bootstrap intervals over prompts.
 * Draws are Philox (LPO_DRAW_BOOTSTRAP): the same numbers on every machine.
 */
#ifndef LPO_SCORE_STATS_H
#define LPO_SCORE_STATS_H

#include "lib/base/ctx.h"

struct lpo_interval {
	double mean, low, high;	/* percentile interval, 95 % */
};

/*
 * Mean of value[n] (one value a prompt, prompt i counting weight[i] times;
 * weight NULL: equally) and its interval over `resamples` bootstrap samples of
 * the prompts; stream separates draws that must be independent.  With the
 * number of pictures as weight the mean is that over pictures.  n 0: all NaN.
 * LPO_ENOMEM.
 */
int	 lpo_bootstrap(lpo_ctx *, struct lpo_interval *, const double *value,
	    const double *weight, int64_t n, int64_t resamples, uint64_t seed,
	    uint32_t stream);

/*
 * One value a prompt from paired scores: prompt p owns scores
 * first[p] .. first[p+1]-1 of a and b.  difference[p]: the mean of a - b;
 * win[p]: the share in which a is higher, ties counting one half.
 */
void	 lpo_paired(double *difference, double *win, const double *a,
	    const double *b, const int64_t *first, int64_t prompts);

#endif
