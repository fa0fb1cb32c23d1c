/*
 * Pillow's antialiased resize, bit for bit.  spec/models.md 9.1.  As Pillow up
 * to 12, the horizontal pass comes first; Pillow 13 swaps the passes where the
 * height shrinks more than the width, and differs there by one level in places.
 */
#ifndef LPO_IO_RESIZE_H
#define LPO_IO_RESIZE_H

#include <stdint.h>

#include "lib/base/ctx.h"

enum lpo_filter { LPO_BILINEAR, LPO_BICUBIC };

/*
 * dst [dst_h, dst_w, channels] = src [src_h, src_w, channels] resized, both u8
 * and the caller's; channels 1..4.  The aspect ratio is whatever the sizes
 * say.  LPO_EINVAL: a size below 1; LPO_ENOMEM.
 */
int	lpo_resize_u8(lpo_ctx *, uint8_t *dst, int64_t dst_w, int64_t dst_h,
	    const uint8_t *src, int64_t src_w, int64_t src_h, int channels,
	    enum lpo_filter);

/* A part of a picture: w x h pixels from (x, y) on. */
struct lpo_window {
	int64_t x, y, w, h;
};

/*
 * The same, but of the dst_w x dst_h pixels only those of the window, which
 * is inside: dst [window.h, window.w, channels].  The rest costs neither time
 * nor memory.
 */
int	lpo_resize_window_u8(lpo_ctx *, uint8_t *dst,
	    const struct lpo_window *, int64_t dst_w, int64_t dst_h,
	    const uint8_t *src, int64_t src_w, int64_t src_h, int channels,
	    enum lpo_filter);

#endif
