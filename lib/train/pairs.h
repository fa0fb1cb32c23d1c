/*
 * Moments to noisy latent pairs (method.md 2.4, 2.6): posterior sample,
 * timestep, noise.  Every draw is a function of (seed, purpose, epoch, input
 * row, image), so a pair does not depend on what was filtered, skipped or
 * shuffled around it.
 */
#ifndef LPO_TRAIN_PAIRS_H
#define LPO_TRAIN_PAIRS_H

#include "lib/io/npy.h"
#include "lib/io/record.h"
#include "lib/io/shard.h"
#include "lib/train/schedule.h"

struct lpo_pair_opts {
	uint64_t seed;
	const struct lpo_schedule *schedule;
	float scaling_factor;	/* of the VAE */
	float noise_offset;	/* 0: off */
	const int64_t *timesteps;	/* candidates for t, ascending */
	int64_t n_timesteps;
	int64_t interval;	/* compare-timesteps' distance; 0: off */
	enum lpo_npy_type dtype;	/* of the output: F2 or F4 */
};

/* "1:951:50" (first:last:step) or "1,401,751" -> *list (lpo_free), *n. */
int	 lpo_pair_timesteps_parse(lpo_ctx *, int64_t **list, int64_t *n,
	    const char *spec);
/* LPO_EINVAL where a timestep or the interval does not fit the rest. */
int	 lpo_pair_opts_check(lpo_ctx *, const struct lpo_pair_opts *);

/*
 * The two timesteps of a row in an epoch.  cross 0: one draw for both.
 * cross 1 (method.md 2.6): index j and its partner j +- interval.
 */
void	 lpo_pair_timesteps(const struct lpo_pair_opts *, int64_t t[2],
	    uint32_t row, uint32_t epoch, int cross);
/*
 * Give a record the pair's key (ROW-eE, cross ROW-eE-t) and, cross, its
 * labels: the copy with the lower timestep wins.
 */
void	 lpo_pair_relabel(struct lpo_record *, const int64_t t[2],
	    uint32_t epoch, int cross);
/*
 * x_t [c, hw] of moments [2c, hw] (mean, logvar before clamping):
 * z = mean + exp(logvar / 2) e1, x_t = sqrt(abar) s z + sqrt(1 - abar) e2.
 * candidate: 0, 1 for the images of a pair, 2, 3 for a cross pair's copies.
 * work: c * hw floats.
 */
void	 lpo_pair_latent(const struct lpo_pair_opts *, float *x,
	    const float *moments, int64_t c, int64_t hw, uint32_t row,
	    uint32_t epoch, uint32_t candidate, int64_t t, float *work);

/* What a pair is made of; all borrowed. */
struct lpo_pair_in {
	const struct lpo_record *record;
	const uint8_t *moments[2];	/* .npy, [2c, h, w] */
	int64_t bytes[2];
	uint32_t epoch;
	int cross;
};
/*
 * The pair as a sample of the output stream: KEY.latent_0.npy, latent_1.npy
 * and KEY.json.  out is to be cleared by the caller.  LPO_EFORMAT: moments
 * that are not what they should be, or a value that is not finite.
 */
int	 lpo_pair_sample(lpo_ctx *, struct lpo_sample *out,
	    const struct lpo_pair_opts *, const struct lpo_pair_in *);

#endif
