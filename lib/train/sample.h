/*
 * Pictures from prompts: DDIM with guidance, then the VAE's decoder.  A
 * picture's noise belongs to its index, never to its place in a batch.
 * Shared by lpo-sample and lpo-eval.
 */
#ifndef LPO_TRAIN_SAMPLE_H
#define LPO_TRAIN_SAMPLE_H

#include "lib/model/vae.h"
#include "lib/train/policy.h"
#include "lib/train/schedule.h"

struct lpo_sample_options {
	uint64_t seed;
	int64_t height_px, width_px;
	int64_t steps;
	double guidance, eta;
	int64_t at_once;	/* pictures per evaluation; 0: what fits */
	size_t memory_bytes;	/* for activations */
};

typedef struct lpo_sampler lpo_sampler;

/*
 * The networks are borrowed until lpo_sampler_free().  length, dim, pooled_dim
 * are the texts'.
 */
int	 lpo_sampler_new(lpo_ctx *, lpo_sampler **, lpo_backend *, lpo_unet *,
	    lpo_vae *, enum lpo_dtype, const struct lpo_schedule *,
	    int64_t length, int64_t dim, int64_t pooled_dim,
	    const struct lpo_sample_options *);
void	 lpo_sampler_free(lpo_sampler *);
int64_t	 lpo_sampler_at_once(const lpo_sampler *);
size_t	 lpo_sampler_bytes(const lpo_sampler *);	/* activations */
/* FLOPs of one picture. */
double	 lpo_sampler_flops(const lpo_sampler *);

/*
 * n <= at_once pictures: prompt[i] indexes texts, index[i] is the picture's
 * (its draws: LPO_DRAW_LATENT, LPO_DRAW_ETA).  start: NULL, or the initial
 * latents [n, h, w, c] N(0,1) of another generator.
 * rgb[n][height][width][3]; latent (may be NULL): [n, h, w, c] scaled.
 */
int	 lpo_sampler_run(lpo_sampler *, uint8_t *rgb, float *latent,
	    const lpo_policy_texts *, const int64_t *prompt,
	    const int64_t *index, const float *start, int64_t n);

#endif
