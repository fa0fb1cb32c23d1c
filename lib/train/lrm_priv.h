/* What an LRM is made of; for lrm*.c only. */
#ifndef LPO_TRAIN_LRM_PRIV_H
#define LPO_TRAIN_LRM_PRIV_H

#include "lib/train/lrm.h"

#define LPO_LRM_FORMAT 1		/* of lrm.json */
#define LPO_LRM_VISUAL "visual_projection.weight"
#define LPO_LRM_TEXT "text_projection.weight"
#define LPO_LRM_SCALE "logit_scale"

struct lpo_lrm {
	lpo_ctx *ctx;
	lpo_backend *be;
	enum lpo_dtype dtype;
	struct lpo_lrm_config cfg;
	int encoders;
	char *unet_dir, *text_dir[2], *tokenizer_dir[2];
	struct lpo_unet_config ucfg;
	int64_t hidden[2], projected[2];	/* widths of the encoders */
	int64_t length;
	int64_t features, width;		/* of f, of V and T */

	lpo_params head;			/* f32 whatever dtype */
	lpo_linear_layer visual, text;		/* text.w NULL with SDXL */
	lpo_param *scale;

	lpo_unet *unet;				/* NULL: not loaded */
	lpo_clip *clip[2];
	lpo_tokenizer *tokenizer[2];
};

/* Unless it is open.  The first one's length is the model's. */
int	 lpo_lrm_open_tokenizer(lpo_lrm *, int i);

#endif
