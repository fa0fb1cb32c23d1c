/*
 * Pictures from prompts: DDIM with guidance, then the VAE's decoder (method.md
 * 3.2, models.md 6.3).  Used by lpo-sample and lpo-eval.
 *
 * Pictures are numbered prompt by prompt: number i is of prompt i / per_prompt.
 * All that is random belongs to the number (and the seed), so a picture has
 * the same bytes whatever else is made with it, before it or in its batch.
 */
#ifndef LPO_TRAIN_SAMPLE_H
#define LPO_TRAIN_SAMPLE_H

#include "lib/model/lora.h"
#include "lib/model/vae.h"
#include "lib/train/policy.h"
#include "lib/train/schedule.h"

enum lpo_sample_rng {
	LPO_RNG_PHILOX,		/* counter-based, item = picture's number */
	LPO_RNG_TORCH_CPU,	/* torch.randn, generator seed = seed + number */
	LPO_RNG_TORCH_CUDA	/* the same on a CUDA device */
};

struct lpo_sampler_opts {
	uint64_t seed;
	int64_t per_prompt;	/* pictures of one prompt, >= 1 */
	int64_t steps;		/* 20 */
	double guidance;	/* 5; 1: none */
	double eta;		/* 0 */
	int64_t size_px;	/* 0: the UNet's sample_size */
	enum lpo_sample_rng rng;
	int64_t memory_bytes;	/* activations fit into it; 0: no limit */
	int64_t batch;		/* pictures at a time; 0: chosen */
};

typedef struct lpo_sampler lpo_sampler;

/*
 * Everything from a diffusers folder: prompts encoded (the encoders are freed
 * again), UNet with the LoRA (NULL: none) unfolded, decoder, plans, memory.
 * prompts are not kept.
 */
int	 lpo_sampler_open(lpo_ctx *, lpo_sampler **, lpo_backend *,
	    enum lpo_dtype, const char *model_dir, const char *lora,
	    float lora_strength, const char *const *prompts, int64_t n_prompts,
	    const struct lpo_sampler_opts *);
void	 lpo_sampler_free(lpo_sampler *);	/* NULL is fine */

int64_t	 lpo_sampler_count(const lpo_sampler *);	/* pictures in all */
int64_t	 lpo_sampler_batch(const lpo_sampler *);
int64_t	 lpo_sampler_size_px(const lpo_sampler *);	/* width = height */
struct lpo_sampler_plan {
	size_t arena_bytes, text_bytes, text_row_bytes;
	size_t weight_bytes, vae_bytes;	/* UNet with its LoRA; decoder */
	double image_flops;
};
void	 lpo_sampler_plan(const lpo_sampler *, struct lpo_sampler_plan *);
/* Seconds one picture takes; of a sampler on a dry backend (lpo_tape_time). */
int	 lpo_sampler_time(lpo_sampler *, double *seconds);

/*
 * Pictures first .. first + n - 1: rgb [n, size, size, 3].  n <= batch.
 * latent, if not NULL: [n, c, h, w] f32 as the decoder gets them times the
 * scaling factor.
 */
int	 lpo_sampler_run(lpo_sampler *, uint8_t *rgb, float *latent,
	    int64_t first, int64_t n);

/* "000000017-2": prompt and picture of the prompt.  Size of out: 32. */
void	 lpo_sample_key(char out[32], int64_t prompt, int64_t picture);

/* A1111's `parameters` text; lpo_free() it.  hash: of model and LoRA, hex. */
char	*lpo_sample_parameters(lpo_ctx *, const struct lpo_sampler_opts *,
	    const char *prompt, int64_t size_px, int64_t number,
	    const char *model_hash, const char *lora_hash, double strength);

#endif
