/*
 * CLIP's vision tower at work: pictures put into slots, their image_embeds
 * (models.md 9.2, before normalisation) computed when the first scorer asks.
 */
#ifndef LPO_SCORE_EMBEDDER_H
#define LPO_SCORE_EMBEDDER_H

#include "lib/io/image.h"
#include "lib/score/scorer.h"

typedef struct lpo_embedder lpo_embedder;

int	 lpo_embedder_open(lpo_ctx *, lpo_embedder **,
	    const struct lpo_scorer_opts *, const char *dir);
void	 lpo_embedder_close(lpo_embedder *);	/* NULL is fine */
const char *lpo_embedder_dir(const lpo_embedder *);
int64_t	 lpo_embedder_width(const lpo_embedder *);
int	 lpo_embedder_logit_scale(const lpo_embedder *, double *s);	/* no exp() */

/* New pictures are coming: what is in the slots is old. */
void	 lpo_embedder_begin(lpo_embedder *);
/* By several threads, each with its own context and slot. */
int	 lpo_embedder_put(lpo_ctx *, lpo_embedder *, int64_t slot,
	    const struct lpo_image *);
/* embeds[n][width] of slots 0 .. n - 1, until the next begin. */
int	 lpo_embedder_get(lpo_embedder *, const float **embeds, int64_t n);

/* x / |x|, in f64 from f32: no epsilon, NaN where |x| is 0. */
void	 lpo_embed_normalise(double *out, const float *x, int64_t n);

#endif
