/*
 * Images in memory: JPEG, PNG and WebP to 8-bit RGB, with the bytes that
 * Pillow's Image.open(f).convert("RGB") gives, and the way to and from the
 * floats a VAE takes.  Pixels are [h, w, 3], rows from the top, no padding.
 */
#ifndef LPO_IO_IMAGE_H
#define LPO_IO_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "lib/base/ctx.h"

/* rgb [h, w, 3]; owned by the struct, released by lpo_image_free(). */
struct lpo_image {
	uint8_t *rgb;
	int64_t w, h;
};

/* A zero in a limit means its default. */
struct lpo_image_opts {
	int exif;		/* turn the picture as its EXIF tag says */
	int64_t max_pixels;	/* default LPO_IMAGE_MAX_PIXELS */
	int64_t max_bytes;	/* of the decoded RGB; LPO_IMAGE_MAX_BYTES */
};

#define LPO_IMAGE_MAX_PIXELS	INT64_C(64000000)
#define LPO_IMAGE_MAX_BYTES	INT64_C(256000000)

enum lpo_image_kind {
	LPO_IMAGE_UNKNOWN, LPO_IMAGE_JPEG, LPO_IMAGE_PNG, LPO_IMAGE_WEBP
};

/*
 * Decode `bytes` bytes at `data`.  opts may be NULL (all defaults).  *out is
 * overwritten; on failure it is empty and needs no free.  Of an animation the
 * first frame is taken.  Transparency is dropped, never blended.
 * LPO_EFORMAT: not an image, damaged, cut short, an unsupported kind, or
 * larger than a limit (found in the header, before memory is asked for).
 */
int	 lpo_image_decode(lpo_ctx *, struct lpo_image *out, const void *data,
	    size_t bytes, const struct lpo_image_opts *opts);
/* The same from a file; LPO_ENOTFOUND or LPO_EIO when it cannot be read. */
int	 lpo_image_read(lpo_ctx *, struct lpo_image *out, const char *path,
	    const struct lpo_image_opts *opts);
void	 lpo_image_free(struct lpo_image *);	/* leaves it empty */

/* By the first bytes only; nothing is checked further. */
enum lpo_image_kind lpo_image_kind(const void *data, size_t bytes);
/* By a file's or a tar member's name: "cat.JPG", "JPG" -> "jpg"; NULL: none. */
const char *lpo_image_type(const char *name);

/* EXIF orientation, 1..8; 1 when there is none or it makes no sense. */
int	 lpo_image_orientation(const void *data, size_t bytes);

/*
 * x = u8 / 127.5 - 1 in [-1, 1], computed as u8 / 255 * 2 - 1 in f32
 * (torchvision's ToTensor, then diffusers' 2x - 1); count values.
 * spec/models.md 5.2.
 */
void	 lpo_image_to_float(float *x, const uint8_t *rgb, int64_t count);
/*
 * u8 = round(255 * clamp(x / 2 + 0.5, 0, 1)), ties to even, all in f32.  NaN
 * gives 0.
 */
void	 lpo_image_from_float(uint8_t *rgb, const float *x, int64_t count);

#endif
