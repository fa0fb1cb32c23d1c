/*
 * A picture as CLIP's vision tower takes it (models.md 9.1): what
 * transformers' CLIPImageProcessor makes of it with Pillow, bit for bit.
 *
 *	resize	bicubic on u8: the short side becomes short_px, the long one
 *		(int)(short_px * long / short)
 *	crop	crop_px in the middle, top = (h - crop) / 2 rounded down
 *	values	x = (f32)(u8 * rescale), the product in f64; (x - mean) / std
 */
#ifndef LPO_MODEL_CLIP_IMAGE_H
#define LPO_MODEL_CLIP_IMAGE_H

#include "lib/base/ctx.h"
#include "lib/io/image.h"

struct lpo_clip_image {
	int64_t short_px, crop_px;
	int bicubic;		/* else bilinear */
	double rescale;		/* 1 / 255 */
	float mean[3], std[3];
};

/*
 * From DIR/preprocessor_config.json, or `image_processor` of
 * DIR/processor_config.json; without either CLIP's own values for image_px,
 * said by lpo_notice.  LPO_EFORMAT by the field's name: a step that is turned
 * off, another filter, sizes that are no short side and no square, or a crop
 * that is not image_px, what the model takes.
 */
int	 lpo_clip_image_read(lpo_ctx *, struct lpo_clip_image *,
	    const char *dir, int64_t image_px);
/*
 * px [crop_px, crop_px, 3] of a decoded picture.  Memory beyond it: what
 * comes into view of the rows of the picture.  LPO_ENOMEM.
 */
int	 lpo_clip_image_pixels(lpo_ctx *, float *px,
	    const struct lpo_clip_image *, const struct lpo_image *);

#endif
