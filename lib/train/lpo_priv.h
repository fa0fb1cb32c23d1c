/* Inside of the LPO trainer: lpo*.c and rollout.c. */
#ifndef LPO_TRAIN_LPO_PRIV_H
#define LPO_TRAIN_LPO_PRIV_H

#include "lib/base/philox.h"
#include "lib/train/lpo.h"

struct lpo_transition {		/* a pair: step s of prompt slot p */
	int32_t s, p;
	int32_t win, lose;	/* candidates */
};

struct lpo_lpo {
	lpo_ctx *ctx;
	struct lpo_lpo_parts in;
	struct lpo_lpo_options o;
	struct lpo_ddim *ddim;		/* [steps] */
	int64_t count;			/* elements of a latent */
	int64_t first, last;		/* steps scored: first .. last - 1 */
	lpo_params *params;		/* what is trained */
	lpo_policy *rollout, *train;
	lpo_policy *reference;		/* NULL: train with LoRA off */
	lpo_lrm_scorer *scorer;
	int64_t score_groups;
	int segments;
	lpo_arena arena;
	/*
	 * The device computes while the host goes on: work of the next piece
	 * is started before the present one is waited for, and goes on between
	 * two calls of lpo_lpo_advance().  Of no concern to what is saved:
	 * x, mu, score and the counters tell of what is finished only.
	 */
	int ahead;
	int64_t scoring;		/* the chunk that is started, or -1 */
	int64_t referring, policing;	/* first pair of a micro-batch that
					 * reference, policy work on, or -1 */
	int64_t reference_rest;		/* pairs of it that are finished */

	/* state: saved */
	int64_t iteration, index, optimiser_step, bad_in_a_row;
	enum lpo_lpo_phase phase;
	struct lpo_threshold th;
	struct lpo_lpo_report report;
	double first_spread;
	float *x;			/* [steps + 1][prompts][count] */
	float *mu;			/* [steps][prompts][count] */
	float *score;			/* [steps][prompts][K] */

	/* derived */
	struct lpo_transition *pair;	/* [valid], in training order */
	int64_t npairs;			/* -1: not selected yet */
	int64_t *prompt, *epoch;	/* [prompts] of this iteration */
	/* staging */
	float *cand;			/* [chunk][K][count] */
	float *eps, *eps_ref, *d_eps;	/* [micro or rollout][count] */
	float *xt, *xw, *xl;		/* [micro][count]: of the last one
					 * that was started */
	struct lpo_pair_out *out;	/* [micro] */
	float *chunk_score;
	int64_t *t, *who;
	float *check_reference;		/* [check_prompts][K]; NULL: not yet */
};

int64_t	 lpo_lpo_batches(const lpo_lpo *);
/* Nothing is started any more; what was is begun anew when its turn comes. */
void	 lpo_lpo_settle(lpo_lpo *);

/* Fill prompt[] and epoch[] for the present iteration. */
void	 lpo_lpo_choose_prompts(lpo_lpo *);
/* x_out[count] = candidate k of step s of slot p. */
void	 lpo_lpo_candidate(const lpo_lpo *, float *x_out, int64_t s, int64_t p,
	    int64_t k);
int	 lpo_lpo_rollout_step(lpo_lpo *, int64_t s);
int64_t	 lpo_lpo_score_chunks(const lpo_lpo *);
int	 lpo_lpo_score_chunk(lpo_lpo *, int64_t chunk);
/* Margins, thresholds, the list of pairs in training order; the report. */
int	 lpo_lpo_select(lpo_lpo *);

static inline float *
lpo_lpo_at(float *base, const lpo_lpo *l, int64_t s, int64_t p)
{
	return base + (s * l->o.prompts + p) * l->count;
}

#endif
