/*
 * Scoring many latents with a frozen LRM.  The text of every prompt is encoded
 * once, so that the encoders can be freed; latents are scored in chunks of one
 * fixed shape, the guidance halves sharing the part before the first
 * cross-attention.  A row's score does not depend on the chunk.
 */
#ifndef LPO_TRAIN_LRM_SCORE_H
#define LPO_TRAIN_LRM_SCORE_H

#include "lib/train/lrm.h"

typedef struct lpo_lrm_scorer lpo_lrm_scorer;

/*
 * rows: latents of one prompt that lie together (K candidates; 2 for pairs).
 * groups: prompts in one chunk.  h, w: the latent's size.  The scorer keeps
 * lrm (and arena, if not NULL, as lpo_tape_commit): free it first.
 * Loads the LRM's UNet if it is not there; lpo_lrm_texts_new() before this
 * call has the encoders out of memory by then.
 */
int	 lpo_lrm_scorer_new(lpo_ctx *, lpo_lrm_scorer **, lpo_lrm *,
	    int64_t rows, int64_t groups, int64_t h, int64_t w, lpo_arena *);
void	 lpo_lrm_scorer_free(lpo_lrm_scorer *);
/* Take its memory now and not at the first score. */
int	 lpo_lrm_scorer_commit(lpo_lrm_scorer *);
/*
 * Seconds of one prompt's rows where `groups` are scored at once; on a dry
 * backend (lpo_tape_time).
 */
int	 lpo_lrm_scorer_time(lpo_ctx *, lpo_lrm *, int64_t rows,
	    int64_t groups, int64_t h, int64_t w, double *seconds);
/* Memory and FLOPs of one chunk, known after lpo_lrm_scorer_new(). */
const struct lpo_plan *lpo_lrm_scorer_plan(const lpo_lrm_scorer *);

/*
 * The texts a scorer uses: context, pooled vector and T of n prompts and of
 * the empty one.  Large tables lie in an unlinked mapped file, so that only
 * what is in use is resident.
 */
typedef struct lpo_lrm_texts lpo_lrm_texts;
/*
 * Encode n prompts.  The encoders are loaded if they are not there, and freed
 * again in that case.
 */
int	 lpo_lrm_texts_new(lpo_ctx *, lpo_lrm_texts **, lpo_lrm *,
	    const char *const *prompts, int64_t n);
/* The same from token ids: ids[which][n * length]. */
int	 lpo_lrm_texts_new_ids(lpo_ctx *, lpo_lrm_texts **, lpo_lrm *,
	    const int32_t *const ids[2], int64_t n);
void	 lpo_lrm_texts_free(lpo_lrm_texts *);
/* As lpo_policy_texts_drop(). */
void	 lpo_lrm_texts_drop(const lpo_lrm_texts *);
/* Bytes a prompt's row takes. */
int64_t	 lpo_lrm_texts_row_bytes(const lpo_lrm_texts *);
/* T of a prompt, feature_dim floats, not normalised. */
const float *lpo_lrm_texts_feature(const lpo_lrm_texts *, int64_t prompt);

/*
 * score[groups * rows] of latent[groups * rows, h, w, c] (scaled latents, as
 * the policy has them) at t[groups * rows]; prompt[groups] indexes texts.
 * Any number of groups.  visual: NULL or V [groups * rows, feature_dim].  A
 * score that is not finite is passed on.
 */
int	 lpo_lrm_scorer_score(lpo_lrm_scorer *, float *score, float *visual,
	    const lpo_lrm_texts *, const float *latent, const int64_t *prompt,
	    const int64_t *t, int64_t groups);

/*
 * The same in two halves, for at most one chunk's groups.  start queues the
 * work, and latent, prompt and t may change after it; finish waits for what
 * was started first, for nothing queued after it, and fills its part.  Two
 * may be started and not finished, a third is LPO_EINVAL, and so is
 * lpo_lrm_scorer_score() beside any.  texts stay until finish.
 */
int	 lpo_lrm_scorer_start(lpo_lrm_scorer *, const lpo_lrm_texts *,
	    const float *latent, const int64_t *prompt, const int64_t *t,
	    int64_t groups);
int	 lpo_lrm_scorer_finish(lpo_lrm_scorer *, float *score, float *visual);
/* What is started and not finished is not wanted. */
void	 lpo_lrm_scorer_drop(lpo_lrm_scorer *);

#endif
