/* What a loaded UNet is made of; for unet.c and unet_load.c only. */
#ifndef LPO_MODEL_UNET_PRIV_H
#define LPO_MODEL_UNET_PRIV_H

#include "lib/model/unet.h"
#include "lib/model/weights.h"

#define LPO_UNET_MAX_LAYERS 16	/* per block */

struct lpo_unet_resnet {
	lpo_norm_layer norm1, norm2;
	lpo_conv_layer conv1, conv2, shortcut;	/* shortcut.w NULL: identity */
	lpo_linear_layer time;
};

struct lpo_unet_attn {
	lpo_linear_layer q, k, v, out;
};

struct lpo_unet_tblock {
	lpo_norm_layer norm1, norm2, norm3;
	struct lpo_unet_attn self, cross;
	lpo_linear_layer ff_in, ff_out;
};

struct lpo_unet_transformer {
	lpo_norm_layer norm;
	lpo_linear_layer in, out;
	int64_t heads, depth;
	struct lpo_unet_tblock *block;
};

struct lpo_unet_block {
	int64_t layers;
	int cross;			/* has attentions */
	struct lpo_unet_resnet *resnet;
	struct lpo_unet_transformer *attn;	/* [layers] if cross */
	lpo_conv_layer sampler;		/* w NULL: none */
};

struct lpo_unet {
	lpo_ctx *ctx;
	struct lpo_unet_config cfg;
	char *json;
	int half, checkpoint;
	struct lpo_pool names;
	lpo_params params;
	lpo_conv_layer conv_in, conv_out;
	lpo_linear_layer time1, time2, add1, add2;
	lpo_norm_layer norm_out;
	struct lpo_unet_block down[LPO_UNET_MAX_BLOCKS];
	struct lpo_unet_block mid;	/* resnets 0 and 1, attention 0 */
	struct lpo_unet_block up[LPO_UNET_MAX_BLOCKS];
	struct lpo_unet_layer *layer;	/* what a LoRA may sit on */
	int64_t nlayers, layers_cap;
};

/* config.json -> cfg, or LPO_EFORMAT by the field's name (unet_config.c) */
int	 lpo_unet_read_config(lpo_ctx *, struct lpo_unet_config *, char **text,
	    const char *dir);

#endif
