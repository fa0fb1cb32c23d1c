/*
 * Step-level preference optimisation (method.md 3).  One iteration:
 *
 *	rollout	  per DDIM step one evaluation of the policy for all prompts;
 *		  K candidates mu + sigma z_k; one, picked at random, goes on
 *	score	  all candidates of all steps, in large batches
 *	select	  best and worst of each step where their margin passes
 *	train	  per pair one reference and one policy evaluation, one backward;
 *		  one AdamW step per batch
 *
 * lpo_lpo_advance() does one piece of that at a time, and between any two
 * pieces the state can be saved.  A device may be at work on the next piece
 * by then; what is saved does not show it.  Candidates are never stored: they
 * are mu and counter-based draws, made again where they are needed.
 *
 * Trained is a LoRA, and the reference is the same network without it; or the
 * whole UNet, and the reference is a second, frozen one.
 */
#ifndef LPO_TRAIN_LPO_H
#define LPO_TRAIN_LPO_H

#include "lib/model/lora.h"
#include "lib/train/lpo_loss.h"
#include "lib/train/lrm_score.h"
#include "lib/train/policy.h"
#include "lib/base/snapshot.h"

/*
 * How the work is cut up to fit into memory: prompts of an evaluation in the
 * rollout, pairs of one in training, transitions of a scoring chunk, and
 * whether backward uses checkpointed segments.  0: to be chosen.  On the CPU
 * no result depends on it; on a device the last bits of one may.
 */
struct lpo_lpo_cut {
	int64_t rollout, pairs, scoring;
	enum lpo_segments segments;
};

struct lpo_lpo_options {
	uint64_t seed;
	int64_t h, w;			/* latent */
	int64_t height_px, width_px;
	int64_t steps;			/* T, 20 */
	int64_t candidates;		/* K, 4 */
	int64_t prompts;		/* per iteration */
	int64_t batch;			/* pairs per optimiser step */
	struct lpo_lpo_cut cut;		/* numbers given: at most these */
	int64_t t_lo, t_hi;		/* only steps with t in lo .. hi count */
	double eta, guidance;
	struct lpo_threshold threshold;
	struct lpo_pair_loss loss;
	int real_timestep;		/* score candidates at their own t */
	struct lpo_adamw adamw;		/* lr, betas, eps, decay */
	double max_grad_norm;		/* 0: off, as the official run */
	size_t memory_bytes;		/* for activations; 0: no limit */
	/* lpo_lpo_check(): the texts check_first .. + check_prompts - 1 */
	int64_t check_first, check_prompts;
};

enum lpo_lpo_phase { LPO_PH_ROLLOUT, LPO_PH_SCORE, LPO_PH_TRAIN };

enum { LPO_LPO_RANGES = 4 };	/* t > 751, 501-750, 251-500, 1-250 */

/* What one iteration was like; complete when advance() returns 1. */
struct lpo_lpo_report {
	int64_t iteration;
	int64_t transitions, valid, bad_scores;
	int64_t valid_in[LPO_LPO_RANGES], total_in[LPO_LPO_RANGES];
	double score_mean;
	double score_spread;	/* mean over transitions of the candidates' sd */
	double margin_mean;
	int64_t batches, pairs, skipped_steps;
	/* the first skipped step: the pair at fault, or the batch's first */
	int64_t bad_prompt, bad_t;
	int bad_loss;		/* 1: that pair's loss; 0: the gradient only */
	double loss, implicit_accuracy;	/* means over pairs */
	double ratio_win, ratio_lose;
	double clipped_win, clipped_lose;	/* shares */
	double grad_norm;		/* mean over steps */
};

typedef struct lpo_lpo lpo_lpo;

/* What a trainer works with; all borrowed until lpo_lpo_free(). */
struct lpo_lpo_parts {
	lpo_backend *be;
	enum lpo_dtype dtype;
	lpo_unet *unet;
	lpo_lora_set *lora;		/* trainable; NULL: all of unet is */
	lpo_unet *reference;		/* without lora: the frozen model */
	const struct lpo_schedule *schedule;
	const lpo_policy_texts *texts;
	int64_t prompts;		/* trained on: the first of the texts */
	int64_t length, dim, pooled_dim;	/* of the texts */
	lpo_lrm *lrm;
	const lpo_lrm_texts *lrm_texts;
};

/*
 * Plans and allocates; lpo_lpo_plan() then says what it took.  LPO_ENOMEM
 * with the bytes one pair needs where memory_bytes is too little.
 */
int	 lpo_lpo_new(lpo_ctx *, lpo_lpo **, const struct lpo_lpo_parts *,
	    const struct lpo_lpo_options *);
void	 lpo_lpo_free(lpo_lpo *);

struct lpo_lpo_plan {
	struct lpo_lpo_cut cut;		/* as chosen, nothing 0 or AUTO */
	size_t activation_bytes;	/* the largest of the three */
	size_t host_bytes;		/* rollouts and staging */
	size_t state_bytes;		/* of them, what a saved state has */
	size_t text_bytes;	/* rows of an iteration's prompts */
	int64_t transitions;		/* per iteration, at most all valid */
	double rollout_flops, score_flops;	/* per iteration */
	double pair_flops;		/* reference + policy + backward */
	double recompute_flops;		/* of them, by segments */
};
void	 lpo_lpo_plan(const lpo_lpo *, struct lpo_lpo_plan *);

/*
 * Seconds that the networks take: per prompt and step of the rollout, per
 * transition scored, per pair trained (reference, policy, backward).  For a
 * trainer on a dry backend.
 */
struct lpo_lpo_time {
	double rollout, score, pair;
};
int	 lpo_lpo_time(lpo_lpo *, struct lpo_lpo_time *);

/*
 * One piece of work.  0: there is more in this iteration; 1: the iteration is
 * finished; LPO_ESTOP and other errors.  A step whose loss or gradient is not
 * finite changes neither weights nor moments; five in a row are LPO_EFORMAT,
 * after which the state can be saved all the same.
 */
int	 lpo_lpo_advance(lpo_lpo *);
int64_t	 lpo_lpo_iteration(const lpo_lpo *);	/* finished so far */
const struct lpo_lpo_report *lpo_lpo_report(const lpo_lpo *);
/* Where it stands within the iteration: phase, and done of total in it. */
enum lpo_lpo_phase lpo_lpo_where(const lpo_lpo *, int64_t *done,
	    int64_t *total);
int64_t	 lpo_lpo_optimiser_steps(const lpo_lpo *);
lpo_params *lpo_lpo_params(lpo_lpo *);		/* what is trained */
/* The threshold in use; quantile: its scale is known after the first scoring.*/
const struct lpo_threshold *lpo_lpo_threshold(const lpo_lpo *);

/* The score spread of the first iteration that had one; 0 before. */
double	 lpo_lpo_first_spread(const lpo_lpo *);
/* What a person should know of an iteration, as bits. */
enum {
	LPO_H_FEW_PAIRS = 1,	/* less than 5 % of the transitions valid */
	LPO_H_SPREAD = 2,	/* scores spread half as much as at first */
	LPO_H_CLIPPED = 4,	/* more than 5 % of the ratios clipped */
	LPO_H_STEPS = 8,	/* steps that were not finite */
	LPO_H_SCORES = 16	/* scores that were not finite */
};
int	 lpo_lpo_health(const struct lpo_lpo_report *, double first_spread);

/*
 * The held-out check: check_prompts prompts, `candidates` latents each from
 * noise of their own (LPO_DRAW_CHECK), denoised with eta 0 by the policy as it
 * is now and by the reference, both results scored at the last step.  Nothing
 * of the training is touched; the same weights give the same figures.
 * Between two calls of lpo_lpo_advance() only.
 */
struct lpo_lpo_check {
	int64_t n;		/* latents */
	double policy, reference;	/* mean scores */
	double win_rate;	/* policy above reference; equal: half */
};
int	 lpo_lpo_check(lpo_lpo *, struct lpo_lpo_check *);
double	 lpo_lpo_check_flops(const lpo_lpo *);	/* of one, but the first */

int	 lpo_lpo_save(lpo_lpo *, lpo_snap *);
int	 lpo_lpo_restore(lpo_lpo *, lpo_snap *);

#endif
