/*
 * The vision tower of a CLIPModel folder with its projection (models.md 9.2),
 * generic over config.json: ViT-B/32, B/16, L/14, H/14, ...
 *
 *	x = [class; patches row by row] + position;  x = pre_layrnorm(x)
 *	layers;  y = W post_layernorm(x[class])
 */
#ifndef LPO_MODEL_VIT_H
#define LPO_MODEL_VIT_H

#include "lib/model/clip_layer.h"

struct lpo_vit_config {
	struct lpo_clip_shape shape;
	int64_t projection;	/* width of y */
	int64_t image_px, patch_px;
};

typedef struct lpo_vit lpo_vit;

/*
 * DIR/config.json and DIR/model.safetensors (or shards).  LPO_EFORMAT: what
 * config.json says or the weights are is not supported, by field or key.
 */
int	 lpo_vit_load(lpo_ctx *, lpo_backend *, lpo_vit **, const char *dir,
	    enum lpo_dtype);
void	 lpo_vit_free(lpo_vit *);		/* NULL is fine */
const struct lpo_vit_config *lpo_vit_cfg(const lpo_vit *);
/* *s: exp() of it is the factor of the cosine in CLIP's logits. */
int	 lpo_vit_logit_scale(const lpo_vit *, double *s);

/*
 * image [n, px, px, 3] f32, normalised (clip_image.h), on a tape of n groups
 * -> y, transformers' image_embeds before its normalisation,
 * [n, 1, 1, projection] f32.
 */
lpo_var	*lpo_vit_fwd(lpo_tape *, lpo_vit *, lpo_var *image);

#endif
