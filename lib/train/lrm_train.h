/*
 * Training the reward model (method.md 2): full fine-tuning of the UNet half,
 * text encoder(s), projections and logit scale with AdamW, global-norm
 * clipping, batches accumulated over micro-batches of whole pairs.  Same bits
 * for any micro-batch and thread count.
 */
#ifndef LPO_TRAIN_LRM_TRAIN_H
#define LPO_TRAIN_LRM_TRAIN_H

#include "lib/train/lrm.h"
#include "lib/train/lrm_loss.h"
#include "lib/train/policy.h"
#include "lib/base/snapshot.h"

enum lpo_lr_schedule {
	LPO_LR_OFFICIAL,	/* method.md 2.7: log warm-up, linear decay */
	LPO_LR_COSINE,		/* linear warm-up, half a cosine to 0 */
	LPO_LR_CONSTANT,	/* linear warm-up, then constant */
	LPO_LR_LINEAR		/* linear warm-up, linear decay to 0 */
};
/* Rate of optimiser step n = 1 .. steps. */
double	 lpo_lr_at(enum lpo_lr_schedule, double peak, int64_t n,
	    int64_t warmup, int64_t steps);
int	 lpo_lr_schedule_parse(const char *);	/* -1: no such schedule */

struct lpo_lrm_train_opts {
	int64_t batch;		/* pairs per optimiser step */
	int64_t micro_batch;	/* pairs at a time, at most; 0: what fits */
	enum lpo_segments segments;	/* as lpo_policy_fit() has them */
	size_t memory_bytes;	/* for activations; 0: no limit */
	int64_t steps, warmup;
	double lr, weight_decay, max_grad_norm;	/* 1e-5, 0.3, 1.0 */
	enum lpo_lr_schedule schedule;
	enum lpo_lrm_criterion criterion;
	double batch_coeff, aux_coeff;		/* 1, 1 */
	int freeze_text;	/* encoders stay, projection is trained */
	int grads_only;		/* lpo_lrm_trainer_grads() and no step */
	int64_t h, w;		/* of the latents */
};

/* One noisy pair; nothing is kept after the call it is given to. */
struct lpo_lrm_pair {
	const float *latent[2];		/* [h, w, c] */
	int64_t t[2];
	const int32_t *ids[2];		/* per encoder, length */
	double label[2];
	double num_example;		/* num_example_per_prompt, > 0 */
};

struct lpo_lrm_step {
	double loss;
	double accuracy;	/* among pairs with unequal labels, NaN: none */
	double margin;		/* mean score of preferred minus other */
	double grad_norm;	/* before clipping */
	double lr;
	double scale;		/* exp(s) */
	int skipped;		/* 1: loss or gradient not finite, no update */
	int64_t bad;		/* first pair with a score not finite, or -1 */
};

struct lpo_lrm_train_plan {
	int64_t micro_batch, passes;	/* passes 2: batch, both */
	enum lpo_segments segments;	/* ON or OFF */
	size_t arena_bytes;		/* activations, gradients, scratch */
	size_t state_bytes;		/* master, gradient, moments */
	size_t weight_bytes;
	double step_flops;
	double recompute_flops;		/* of them, by segments */
	int64_t parameters;
};

typedef struct lpo_lrm_trainer lpo_lrm_trainer;

/*
 * Both parts of lrm are loaded (if they are not) and made trainable.  The
 * trainer keeps lrm: free it first.  Memory is allocated at the first step.
 */
int	 lpo_lrm_trainer_new(lpo_ctx *, lpo_lrm_trainer **, lpo_lrm *,
	    const struct lpo_lrm_train_opts *);
/*
 * Load both parts and make them trainable, encoders only without freeze_text;
 * lpo_lrm_trainer_new() does that where it has not been done.
 */
int	 lpo_lrm_prepare(lpo_lrm *, int freeze_text);
/* All the memory a step will take, now. */
int	 lpo_lrm_trainer_commit(lpo_lrm_trainer *);
void	 lpo_lrm_trainer_free(lpo_lrm_trainer *);
void	 lpo_lrm_trainer_plan(const lpo_lrm_trainer *,
	    struct lpo_lrm_train_plan *);

/*
 * Seconds of a step's networks, for a trainer on a dry backend
 * (lpo_tape_time).
 */
int	 lpo_lrm_trainer_time(lpo_lrm_trainer *, double *seconds);

/*
 * Loss and gradients of n pairs, without an update: the parameters' gradients
 * (zeroed first) are in their sets afterwards (lpo_param_export_grad), the
 * logit scale's too.
 */
int	 lpo_lrm_trainer_grads(lpo_lrm_trainer *, struct lpo_lrm_step *,
	    const struct lpo_lrm_pair *, int64_t n);
/*
 * One optimiser step of `batch` pairs.  A loss or gradient that is not finite
 * changes nothing but the counters; LPO_EINVAL at the fifth in a row, which
 * has counted like the others.
 * LPO_ESTOP: stopped between two ops; the step has not happened.
 */
int	 lpo_lrm_trainer_step(lpo_lrm_trainer *, struct lpo_lrm_step *,
	    const struct lpo_lrm_pair *);

/* Steps taken (skipped ones included), updates made, skips in a row. */
struct lpo_lrm_counters {
	int64_t step, update, skipped, skipped_in_a_row;
};
void	 lpo_lrm_trainer_counters(const lpo_lrm_trainer *,
	    struct lpo_lrm_counters *);
void	 lpo_lrm_trainer_set_counters(lpo_lrm_trainer *,
	    const struct lpo_lrm_counters *);

/*
 * Weights and moments as blobs of a snapshot, a blob per parameter set; the
 * caller begins and commits, and keeps the counters.
 */
int	 lpo_lrm_trainer_save(lpo_lrm_trainer *, lpo_snap *);
int	 lpo_lrm_trainer_restore(lpo_lrm_trainer *, lpo_snap *);

#endif
