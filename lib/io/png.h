/*
 * PNG files in memory.  Same pixels and text, same bytes (for one version of
 * zlib): fixed level, strategy and filters, no time chunk.
 */
#ifndef LPO_IO_PNG_H
#define LPO_IO_PNG_H

#include <stddef.h>
#include <stdint.h>

#include "lib/base/ctx.h"

/* keyword: 1..79 bytes of printable ASCII.  text: UTF-8. */
struct lpo_png_text {
	const char *keyword;
	const char *text;
};

/*
 * Encode rgb [h, w, 3] u8.  *out (lpo_free) holds *bytes bytes.  The `count`
 * texts follow the header in the order given: tEXt where the text is ASCII,
 * iTXt (uncompressed UTF-8) elsewhere; Pillow reads both back as the same str.
 * LPO_EINVAL: a size or keyword PNG does not allow, or text that is not UTF-8.
 */
int	lpo_png_encode(lpo_ctx *, uint8_t **out, size_t *bytes,
	    const uint8_t *rgb, int64_t w, int64_t h,
	    const struct lpo_png_text *texts, int count);

#endif
