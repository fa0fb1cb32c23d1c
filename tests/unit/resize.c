/*
 * Resizing against Pillow (tests/golden/resize.bin), bit for bit.
 */
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "lib/base/file.h"
#include "lib/io/resize.h"
#include "tests/tap.h"

/* The generator of make_images.py. */
static void
lcg(uint8_t *p, size_t n, uint32_t x)
{
	size_t i;

	for (i = 0; i < n; i++) {
		x = x * 1664525u + 1013904223u;
		p[i] = (uint8_t)(x >> 24);
	}
}

static void
test_case(lpo_ctx *c, const char *name, int ch, int sw, int sh, int dw,
    int dh, unsigned crc, const char *want, size_t want_bytes)
{
	enum lpo_filter f = strcmp(name, "bicubic") == 0 ? LPO_BICUBIC :
	    LPO_BILINEAR;
	size_t n = (size_t)sw * (size_t)sh * (size_t)ch;
	size_t m = (size_t)dw * (size_t)dh * (size_t)ch, i, bad = 0;
	uint8_t *src = malloc(n), *dst = malloc(m);
	int err;

	lcg(src, n, (uint32_t)sw * 65536 + (uint32_t)sh);
	err = lpo_resize_u8(c, dst, dw, dh, src, sw, sh, ch, f);
	for (i = 0; err == 0 && i < want_bytes; i++)
		bad += dst[i] != (uint8_t)want[i];
	ok(err == 0 && bad == 0 && crc32(0, dst, (uInt)m) == crc,
	    "%s %dx%d to %dx%d, %d channels: %zu of %zu differ", name, sw, sh,
	    dw, dh, ch, bad, want_bytes);
	free(src);
	free(dst);
}

/* Windows are parts of the whole, to the bit, at every edge. */
static void
test_windows(lpo_ctx *c)
{
	static const int size[][4] = { { 37, 23, 64, 40 }, { 37, 23, 37, 40 },
	    { 37, 23, 64, 23 }, { 37, 23, 37, 23 }, { 91, 50, 24, 13 },
	    { 3, 90, 24, 720 } };
	uint8_t *src, *all, part[24 * 13 * 3];
	size_t k, bad = 0, cases = 0;
	int64_t x, y;
	int f, i;

	for (k = 0; k < sizeof(size) / sizeof(*size); k++) {
		const int *s = size[k];

		src = malloc((size_t)(s[0] * s[1] * 3));
		all = malloc((size_t)(s[2] * s[3] * 3));
		lcg(src, (size_t)(s[0] * s[1] * 3), 7);
		for (f = LPO_BILINEAR; f <= LPO_BICUBIC; f++) {
			lpo_resize_u8(c, all, s[2], s[3], src, s[0], s[1], 3,
			    (enum lpo_filter)f);
			for (i = 0; i < 3; i++) {
				x = (s[2] - 24) * i / 2;
				y = (s[3] - 13) * (2 - i) / 2;
				bad += lpo_resize_window_u8(c, part,
				    &(struct lpo_window){ x, y, 24, 13 },
				    s[2], s[3], src, s[0], s[1], 3,
				    (enum lpo_filter)f) != 0;
				for (int64_t r = 0; r < 13; r++)
					bad += memcmp(part + r * 72, all +
					    ((y + r) * s[2] + x) * 3, 72) != 0;
				cases++;
			}
		}
		free(src);
		free(all);
	}
	ok(bad == 0, "%zu windows are what they are of the whole", cases);
	ok(lpo_resize_window_u8(c, part, &(struct lpo_window){ 3, 0, 2, 1 },
	    4, 4, part, 5, 5, 1, LPO_BICUBIC) == LPO_EINVAL,
	    "a window that looks out: %s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
test_nomem(lpo_ctx *c)
{
	uint8_t src[5 * 7 * 3], dst[9 * 4 * 3];
	int err = -1, bad = 0;
	long n;

	lcg(src, sizeof(src), 1);
	for (n = 0; err != 0 && n < 100; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		err = lpo_resize_u8(c, dst, 9, 4, src, 5, 7, 3, LPO_BILINEAR);
		lpo_alloc_fail_at(-1);
		bad += err != 0 && err != LPO_ENOMEM;
	}
	ok(bad == 0, "%ld failing allocations", n - 1);
	ok(lpo_resize_u8(c, dst, 0, 4, src, 5, 7, 3, LPO_BILINEAR) ==
	    LPO_EINVAL, "no pixels: %s", lpo_errmsg(c));
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();
	char *data = NULL, *p, *end, name[16];
	int ch, sw, sh, dw, dh, used;
	size_t bytes, keep;
	unsigned crc;

	if (!ok(lpo_file_read(c, &data, &bytes, "tests/golden/resize.bin",
	    1 << 24) == 0, "golden file read"))
		return done_testing();
	for (p = data, end = data + bytes; p < end; p += used + 1 + keep) {
		if (sscanf(p, "%15s %d %d %d %d %d %x %zu%n", name, &ch, &sw,
		    &sh, &dw, &dh, &crc, &keep, &used) != 8) {
			ok(0, "a case cannot be read");
			break;
		}
		test_case(c, name, ch, sw, sh, dw, dh, crc, p + used + 1,
		    keep);
	}
	test_windows(c);
	test_nomem(c);
	lpo_free(data);
	lpo_ctx_free(c);
	return done_testing();
}
