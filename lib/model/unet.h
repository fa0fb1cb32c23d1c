/*
 * UNet2DConditionModel of the SD1.5, SD2.1 and SDXL kinds, generic over its
 * config (spec: models.md 1.2 and 2).  `half` loads and runs conv_in, time
 * embedding, down and mid blocks only: the reward model's part.
 */
#ifndef LPO_MODEL_UNET_H
#define LPO_MODEL_UNET_H

#include <jansson.h>

#include "lib/nn/tape.h"

#define LPO_UNET_MAX_BLOCKS 8

struct lpo_unet_config {
	int64_t sample_size, in_channels, out_channels;
	int blocks;
	int64_t channels[LPO_UNET_MAX_BLOCKS];
	int down_cross[LPO_UNET_MAX_BLOCKS];	/* block has attentions */
	int up_cross[LPO_UNET_MAX_BLOCKS];
	int64_t layers[LPO_UNET_MAX_BLOCKS];	/* layers_per_block */
	int64_t heads[LPO_UNET_MAX_BLOCKS];
	int64_t depth[LPO_UNET_MAX_BLOCKS];	/* transformer layers */
	int64_t context_dim;
	int64_t norm_groups;
	float norm_eps;
	int linear_projection;
	int flip_sin_to_cos;
	float freq_shift;
	int text_time;			/* SDXL's addition embedding */
	int64_t add_time_dim, add_in_dim;
};

typedef struct lpo_unet lpo_unet;

/*
 * dir holds config.json and diffusion_pytorch_model.safetensors (or shards).
 * half: up blocks are not read.  lpo_backend NULL: parameters without values
 * (lpo_params_init).  Caller frees.
 */
int	 lpo_unet_load(lpo_ctx *, lpo_backend *, lpo_unet **, const char *dir,
	    enum lpo_dtype, int half);
void	 lpo_unet_free(lpo_unet *);
const struct lpo_unet_config *lpo_unet_cfg(const lpo_unet *);
lpo_params *lpo_unet_params(lpo_unet *);
/*
 * config.json's sample_size, the latent's side in pictures of the default
 * size; absent: as the pipelines have it, 64 or, for SDXL, 128.
 */
int	 lpo_unet_sample_size(lpo_ctx *, int64_t *out, const json_t *config);
/* config.json's text as it was read, for writing a folder again */
const char *lpo_unet_config_json(const lpo_unet *);

/*
 * What one evaluation takes.  The tape has G groups; sample has G*r rows.
 * copies 2: guidance, every group's r rows are evaluated with its first
 * context row(s) and again with its last; the part before the first
 * cross-attention runs once (method.md 5, finer saving 1).  Output rows per
 * group: [r conditional, r unconditional].
 */
struct lpo_unet_in {
	lpo_var *sample;	/* [G*r, h, w, in_channels] f32 */
	lpo_var *time;		/* [G*r, 1, 1, channels[0]] f32 sinusoid of t */
	lpo_var *context;	/* [G*copies, L, 1, context_dim]: per group
				 * conditional, then unconditional */
	lpo_var *text_embeds;	/* SDXL: [G*copies, 1, 1, pooled dim] f32 */
	lpo_var *time_ids;	/* SDXL: [G*copies, 1, 1, 6*add_time_dim] f32
				 * sinusoids */
	int copies;
	/*
	 * SDXL with copies 2: a group's last context row has the same values
	 * in all tokens (its unconditional zeros), so that attention to it
	 * is the value of one token, whatever the query.
	 */
	int flat_uncond;
};

/* -> [G*r*copies, h, w, out_channels] f32 */
lpo_var	*lpo_unet_fwd(lpo_tape *, lpo_unet *, const struct lpo_unet_in *);
/*
 * The reward model's pooled features (method.md 1.1): pooled[0..blocks-1] of
 * the down blocks and pooled[blocks] of the mid block, each
 * [G*r*copies, 1, 1, c] f32.  Returns their number, blocks + 1.
 */
int	 lpo_unet_features(lpo_tape *, lpo_unet *, const struct lpo_unet_in *,
	    lpo_var *pooled[LPO_UNET_MAX_BLOCKS + 1]);

/* out[dim] = sinusoid of t (models.md 2.3), f32 in the reference's order. */
void	 lpo_sinusoid(float *out, float t, int64_t dim, int flip_sin_to_cos,
	    float freq_shift);

/*
 * 1: forwards recorded from now on put each resnet, with its transformer, in
 * a checkpointed segment: backward walks it again instead of keeping it.
 */
void	 lpo_unet_set_checkpoint(lpo_unet *, int on);

/* Where a layer stands. */
enum lpo_unet_part {
	LPO_UNET_ATTENTION,	/* to_q, to_k, to_v, to_out.0 */
	LPO_UNET_BLOCK,		/* ff, proj_in/out, conv1, conv2,
				 * conv_shortcut, down- and upsamplers */
	LPO_UNET_TIME,		/* time_emb_proj of a resnet */
	LPO_UNET_OUTER		/* conv_in, conv_out, time and add embedding */
};

/*
 * All layers with a matrix or a kernel, in the order of the forward pass, for
 * lib/model/lora.c.
 */
struct lpo_unet_layer {
	const char *path;	/* "down_blocks.0.attentions.0. ... .to_q" */
	lpo_linear_layer *linear;	/* one of the two */
	lpo_conv_layer *conv;
	int attention;		/* part == LPO_UNET_ATTENTION */
	enum lpo_unet_part part;
};
const struct lpo_unet_layer *lpo_unet_layers(const lpo_unet *, int64_t *n);

#endif
