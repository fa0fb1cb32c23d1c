/*
 * The three decoders behind lpo_image_decode().  Each takes a whole file in
 * memory and fills *out by lpo_decode_begin(), which is where limits are kept.
 * On failure *out may hold memory: lpo_image_decode() frees it.
 */
#ifndef LPO_IO_DECODE_H
#define LPO_IO_DECODE_H

#include "lib/io/image.h"

/* opts with no zeros left in it. */
int	lpo_decode_jpeg(lpo_ctx *, struct lpo_image *out, const uint8_t *data,
	    size_t bytes, const struct lpo_image_opts *opts);
int	lpo_decode_png(lpo_ctx *, struct lpo_image *out, const uint8_t *data,
	    size_t bytes, const struct lpo_image_opts *opts);
int	lpo_decode_webp(lpo_ctx *, struct lpo_image *out, const uint8_t *data,
	    size_t bytes, const struct lpo_image_opts *opts);

/* Check w x h from a header against the limits, then get memory for it. */
int	lpo_decode_begin(lpo_ctx *, struct lpo_image *out, int64_t w,
	    int64_t h, const struct lpo_image_opts *opts);

/* Little- and big-endian numbers of a header. */
static inline uint32_t
lpo_le16(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8;
}

static inline uint32_t
lpo_le32(const uint8_t *p)
{
	return lpo_le16(p) | lpo_le16(p + 2) << 16;
}

static inline uint32_t
lpo_be16(const uint8_t *p)
{
	return (uint32_t)p[0] << 8 | p[1];
}

static inline uint32_t
lpo_be32(const uint8_t *p)
{
	return lpo_be16(p) << 16 | lpo_be16(p + 2);
}

#endif
