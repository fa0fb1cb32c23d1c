/*
 * Noisy pairs of a stream (spec/cli.md 1.1 and 3) as a reward model takes
 * them, and how often it prefers what people preferred.
 */
#ifndef LPO_TRAIN_LRM_PAIRS_H
#define LPO_TRAIN_LRM_PAIRS_H

#include "lib/io/shard.h"
#include "lib/train/lrm_train.h"

/* Shape [c, h, w] of a sample's latent_0.  LPO_EFORMAT names key and member. */
int	 lpo_lrm_sample_shape(lpo_ctx *, int64_t shape[3],
	    const struct lpo_sample *);
/*
 * Do a stream's facts (its run record, NULL: foreign) fit the model?  Wrong
 * kind, other channels or another scaling factor: LPO_EFORMAT.
 */
int	 lpo_lrm_stream_check(lpo_ctx *, const json_t *run,
	    const struct lpo_lrm_config *);

/* A growing array of pairs, tokenised, latents channels-last. */
typedef struct lpo_lrm_batch lpo_lrm_batch;

int	 lpo_lrm_batch_new(lpo_ctx *, lpo_lrm_batch **, lpo_lrm *,
	    const int64_t shape[3]);
void	 lpo_lrm_batch_free(lpo_lrm_batch *);	/* NULL is fine */
void	 lpo_lrm_batch_clear(lpo_lrm_batch *);
/*
 * Append a sample.  LPO_EFORMAT, with its key: a member is missing, has
 * another shape or type or is not finite; labels that are not 0..1 with sum
 * 1; a timestep out of 0..999999.  num_example_per_prompt: 1 when absent.
 */
int	 lpo_lrm_batch_add(lpo_lrm_batch *, const struct lpo_sample *);
int64_t	 lpo_lrm_batch_count(const lpo_lrm_batch *);
/* All of them; valid until the next add or clear. */
const struct lpo_lrm_pair *lpo_lrm_batch_pairs(lpo_lrm_batch *);
const char *lpo_lrm_batch_key(const lpo_lrm_batch *, int64_t i);

/* score[count * 2] of all pairs, by the model as it is now. */
int	 lpo_lrm_batch_scores(lpo_lrm_batch *, float *score);

/*
 * What that takes for n pairs, taken and given back; on a backend that only
 * counts.
 */
int	 lpo_lrm_batch_try(lpo_ctx *, lpo_lrm *, const int64_t shape[3],
	    int64_t n);

/* Agreement with the labels; ties have no say, equal scores are wrong. */
struct lpo_lrm_rate {
	int64_t t;		/* timestep; -1: all, -2: two timesteps */
	int64_t n, right;
	double rate, low, high;	/* NAN when n is 0; Wilson, 95 % */
};
/*
 * rate[0] over all pairs, then one per timestep, ascending; *n of them.
 * *rate is the caller's (lpo_free).
 */
int	 lpo_lrm_rates(lpo_lrm_batch *, struct lpo_lrm_rate **rate, int64_t *n,
	    const float *score);
/* A running count, for streams: pairs are added one at a time. */
int	 lpo_lrm_rate_add(lpo_ctx *, struct lpo_lrm_rate **rate, int64_t *n,
	    const int64_t t[2], const double label[2], const float score[2]);

#endif
