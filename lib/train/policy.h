/*
 * The diffusion model as LPO meets it: one UNet with guidance at a fixed
 * number of rows, forward and, where asked for, backward; and the text of
 * every prompt, encoded once per run.  Latents are channels-last f32.
 */
#ifndef LPO_TRAIN_POLICY_H
#define LPO_TRAIN_POLICY_H

#include "lib/model/text.h"
#include "lib/model/unet.h"

/* ---- texts: context rows in an unlinked mapped file, resident on demand */

typedef struct lpo_policy_texts lpo_policy_texts;

/*
 * Encode n prompts with the encoders of `text`, which may be freed after.
 * The unconditional row is the encoded empty prompt, or zeros for models with
 * a pooled embedding (SDXL), as the pipelines do (method.md 3.1).
 */
int	 lpo_policy_texts_new(lpo_ctx *, lpo_policy_texts **, lpo_text *text,
	    const char *const *prompts, int64_t n);
void	 lpo_policy_texts_free(lpo_policy_texts *);
/* 1: the unconditional row is zeros. */
int	 lpo_policy_texts_flat_uncond(const lpo_policy_texts *);
int64_t	 lpo_policy_texts_bytes(const lpo_policy_texts *);
int64_t	 lpo_policy_texts_row_bytes(const lpo_policy_texts *);
/* Rows touched so far go back to the file: no longer this process's memory. */
void	 lpo_policy_texts_drop(const lpo_policy_texts *);

/* ---- the network */

typedef struct lpo_policy lpo_policy;

/*
 * `groups` latents [h, w, c] in one evaluation.  guidance 1: one row each,
 * else two.  size_px: the picture's height and width, for SDXL's time ids.
 * length, dim and pooled are the text's.  backward 1: lpo_policy_backward()
 * may be called; segments 1: it walks checkpointed segments again instead of
 * keeping what they made.  Not yet committed: lpo_policy_plan() first.
 */
struct lpo_policy_shape {
	int64_t groups, h, w, height_px, width_px, length, dim, pooled_dim;
	double guidance;
	int backward, segments;
	int flat_uncond;	/* as the texts say: see lpo_unet_in */
};
/*
 * The UNet of the folder dir reads what its text encoders write; LPO_EFORMAT
 * where it does not, as without text_encoder_2/.
 */
int	 lpo_policy_check_texts(lpo_ctx *, const struct lpo_unet_config *,
	    int64_t dim, int64_t pooled_dim, const char *dir);
int	 lpo_policy_new(lpo_ctx *, lpo_policy **, lpo_backend *, lpo_unet *,
	    enum lpo_dtype, const struct lpo_policy_shape *);
void	 lpo_policy_free(lpo_policy *);
const struct lpo_plan *lpo_policy_plan(const lpo_policy *);
/*
 * Seconds of a forward and a backward of one group, as a policy of this shape
 * takes them; on a dry backend (lpo_tape_time).
 */
int	 lpo_policy_time(lpo_ctx *, lpo_backend *, lpo_unet *, enum lpo_dtype,
	    const struct lpo_policy_shape *, double s[2]);
int64_t	 lpo_policy_groups(const lpo_policy *);
int	 lpo_policy_commit(lpo_policy *, lpo_arena *);

/* Whether backward uses checkpointed segments. */
enum lpo_segments { LPO_SEGMENTS_AUTO, LPO_SEGMENTS_ON, LPO_SEGMENTS_OFF };
/*
 * The largest number of groups <= want whose plan fits into `bytes`, as a
 * policy not yet committed; LPO_ENOMEM, with what one group needs, if none.
 * Segments cost one more forward, so with AUTO they are for a backward of
 * which not one group fits without them.  s->segments is set.
 */
int	 lpo_policy_fit(lpo_ctx *, lpo_policy **, lpo_backend *, lpo_unet *,
	    enum lpo_dtype, struct lpo_policy_shape *, enum lpo_segments,
	    int64_t want, size_t bytes);
/*
 * What to try after g groups of `want`: the next smaller number that shares
 * them out evenly, so that the last evaluation is not half empty.  g > 1.
 */
int64_t	 lpo_fewer_groups(int64_t want, int64_t g);

/*
 * out[n, h*w*c] = u + guidance (c - u) of the first n <= groups latents x at
 * timesteps t[n] with prompts prompt[n] (index into texts).  flags as
 * lpo_tape_forward().
 */
int	 lpo_policy_eval(lpo_policy *, float *out, const lpo_policy_texts *,
	    const float *x, const int64_t *t, const int64_t *prompt, int64_t n,
	    int flags);
/*
 * The same in two halves.  start queues an evaluation, and what it is given
 * may change after it; finish waits for the one that was started first, for
 * nothing queued after it, and fills out[n, h*w*c] with its n.  Two may be
 * started and not finished, a third is LPO_EINVAL, as is an eval or backward
 * beside any.  On a backend that computes at once start does all the work.
 */
int	 lpo_policy_start(lpo_policy *, const lpo_policy_texts *,
	    const float *x, const int64_t *t, const int64_t *prompt, int64_t n,
	    int flags);
int	 lpo_policy_finish(lpo_policy *, float *out);
/* What is started and not finished is not wanted. */
void	 lpo_policy_drop(lpo_policy *);
/*
 * All but the latents of an evaluation that may come next is queued now.  If
 * it comes, with nothing else in its arena before it, start has less to do.
 */
int	 lpo_policy_ready(lpo_policy *, const lpo_policy_texts *,
	    const int64_t *t, const int64_t *prompt, int64_t n);
/*
 * Add the gradients of the last evaluation, d_out[n, h*w*c] being the
 * loss's with respect to its output.
 */
int	 lpo_policy_backward(lpo_policy *, const float *d_out, int64_t n);

#endif
