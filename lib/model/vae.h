/* AutoencoderKL (models.md 5), generic over config.json. */
#ifndef LPO_MODEL_VAE_H
#define LPO_MODEL_VAE_H

#include "lib/nn/tape.h"

struct lpo_vae_config {
	int blocks;
	int64_t channels[8];
	int64_t layers;		/* layers_per_block; the decoder has one more */
	int64_t latent_channels, in_channels, out_channels, norm_groups;
	float scaling_factor;	/* default 0.18215 */
	int64_t factor;		/* 2^(blocks-1): pixels per latent */
};

typedef struct lpo_vae lpo_vae;
enum { LPO_VAE_ENCODER = 1, LPO_VAE_DECODER = 2 };

/* lpo_backend NULL: parameters without values (lpo_params_init) */
int	 lpo_vae_load(lpo_ctx *, lpo_backend *, lpo_vae **, const char *dir,
	    enum lpo_dtype, int parts);
void	 lpo_vae_free(lpo_vae *);
const struct lpo_vae_config *lpo_vae_cfg(const lpo_vae *);
lpo_params *lpo_vae_params(lpo_vae *);
/* Old spellings of keys, for lpo_weights_open(). */
int	 lpo_vae_rename_key(char *out, size_t cap, const char *key);
/* image [n,H,W,3] f32 in [-1,1] -> moments [n,H/f,W/f,2*latent] f32 */
lpo_var	*lpo_vae_encode(lpo_tape *, lpo_vae *, lpo_var *image);
/* latent [n,h,w,4] f32, divided by the scaling factor -> image f32 */
lpo_var	*lpo_vae_decode(lpo_tape *, lpo_vae *, lpo_var *latent);

#endif
