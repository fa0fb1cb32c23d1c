/*
 * Our PNGs: pixels come back by our decoder, texts by a walk over the chunks.
 * The input: width, height, a number, then texts between NULs, then pixels.
 */
#include "lib/base/json.h"
#include "lib/io/image.h"
#include "lib/io/png.h"
#include "tests/fuzz/fuzz.h"

static uint32_t
be32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
	    (uint32_t)p[2] << 8 | p[3];
}

/* The k-th text chunk's keyword and text against what was given. */
static void
chunks(const uint8_t *p, size_t n, const struct lpo_png_text *texts,
    int count)
{
	size_t at = 8, len, key;
	const uint8_t *d;
	int k = 0, international;

	while (at + 12 <= n) {
		len = be32(p + at);
		CHECK(at + 12 + len <= n);
		d = p + at + 8;
		international = memcmp(p + at + 4, "iTXt", 4) == 0;
		if (international || memcmp(p + at + 4, "tEXt", 4) == 0) {
			CHECK(k < count);
			key = strlen(texts[k].keyword) + 1;
			CHECK(len >= key &&
			    memcmp(d, texts[k].keyword, key) == 0);
			/* flag, method, empty language, empty keyword */
			key += international ? 4 : 0;
			CHECK(len - key == strlen(texts[k].text) &&
			    memcmp(d + key, texts[k].text, len - key) == 0);
			k++;
		}
		at += 12 + len;
	}
	CHECK(at == n && k == count);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const keys[] = { "parameters", "a b", "x", "lpo" };
	lpo_ctx *c = fuzz_begin();
	struct lpo_png_text texts[4];
	struct lpo_image im;
	char *all = fuzz_string(p, n), *s = all;
	uint8_t rgb[16 * 16 * 3], *out = NULL;
	int64_t w = n > 0 ? p[0] % 16 + 1 : 1, h = n > 1 ? p[1] % 16 + 1 : 1;
	size_t i, bytes;
	int k, rc, count = n > 2 ? p[2] % 5 : 0, valid = 1;

	s += n < 3 ? n : 3;
	for (k = 0; k < count; k++) {
		texts[k].keyword = keys[k];
		texts[k].text = s;
		valid &= lpo_utf8_valid(s, strlen(s));
		s += strlen(s);
		s += s < all + n;
	}
	for (i = 0; i < sizeof(rgb); i++)
		rgb[i] = s + i < all + n ? (uint8_t)s[i] : (uint8_t)(7 * i);
	rc = lpo_png_encode(c, &out, &bytes, rgb, w, h, texts, count);
	CHECK((rc == 0) == valid);
	if (rc == 0) {
		chunks(out, bytes, texts, count);
		CHECK(lpo_image_decode(c, &im, out, bytes, NULL) == 0);
		CHECK(im.w == w && im.h == h && memcmp(im.rgb, rgb,
		    (size_t)(w * h * 3)) == 0);
		lpo_image_free(&im);
	}
	lpo_free(out);
	free(all);
	return fuzz_end(rc, (1 << 20) + 16 * n);
}
