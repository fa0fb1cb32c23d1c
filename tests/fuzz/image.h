/* A picture of one kind: what is decoded has the size the limits allow. */
#include "lib/io/image.h"
#include "tests/fuzz/fuzz.h"

enum { PIXELS = 1 << 18 };

static int
image_one(const uint8_t *p, size_t n, enum lpo_image_kind kind)
{
	const struct lpo_image_opts opts = { n > 0 && p[n - 1] & 1, PIXELS,
	    0 };
	lpo_ctx *c = fuzz_begin();
	struct lpo_image im;
	int64_t i, sum = 0;
	int rc, turn;

	if (lpo_image_kind(p, n) != kind)
		return fuzz_end(0, 0);
	turn = lpo_image_orientation(p, n);
	CHECK(turn >= 1 && turn <= 8);
	rc = lpo_image_decode(c, &im, p, n, &opts);
	if (rc == 0) {
		CHECK(im.w >= 1 && im.h >= 1 && im.w * im.h <= PIXELS);
		for (i = 0; i < im.w * im.h * 3; i++)
			sum += im.rgb[i];
		CHECK(sum >= 0);
	} else
		CHECK(im.rgb == NULL && (rc == LPO_EFORMAT));
	lpo_image_free(&im);
	return fuzz_end(rc, (24 << 20) + 64 * n);
}
