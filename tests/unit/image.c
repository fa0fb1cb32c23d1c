/*
 * Decoding against Pillow (tests/golden/images.bin), limits, damaged files,
 * failing allocations; PNG writing; floats.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/io/image.h"
#include "lib/io/png.h"
#include "tests/tap.h"

#define MAX_CASES 200

struct golden {
	char name[64];
	int exif;
	size_t bytes;
	int64_t w, h;
	const uint8_t *file, *rgb;
};

static struct golden cases[MAX_CASES];
static int n_cases;

static int
load(const char *data, size_t bytes)
{
	const char *end = data + bytes;
	struct golden *g;
	long long w, h, n;
	int used;

	for (; data < end; n_cases++) {
		g = &cases[n_cases];
		if (n_cases == MAX_CASES || sscanf(data,
		    "%63s %d %lld %lld %lld%n", g->name, &g->exif, &n, &w, &h,
		    &used) != 5)
			return -1;
		g->bytes = (size_t)n;
		g->w = w;
		g->h = h;
		g->file = (const uint8_t *)data + used + 1;
		g->rgb = g->file + n;
		data += used + 1 + n + w * h * 3;
	}
	return data == end ? 0 : -1;
}

static int
same(const struct lpo_image *im, const struct golden *g)
{
	return im->w == g->w && im->h == g->h &&
	    memcmp(im->rgb, g->rgb, (size_t)(g->w * g->h * 3)) == 0;
}

static void
test_golden(lpo_ctx *c)
{
	struct lpo_image_opts o = { 0, 0, 0 };
	struct lpo_image im;
	struct golden *g;
	int err;

	for (g = cases; g < cases + n_cases; g++) {
		o.exif = g->exif;
		lpo_clear(c);
		err = lpo_image_decode(c, &im, g->file, g->bytes, &o);
		if (g->w == 0)
			ok(err == LPO_EFORMAT && im.rgb == NULL &&
			    lpo_errmsg(c)[0], "%s: %s", g->name,
			    lpo_errmsg(c));
		else
			ok(err == 0 && same(&im, g), "%s as Pillow%s%s",
			    g->name, err ? ": " : "", lpo_errmsg(c));
		lpo_image_free(&im);
	}
	lpo_clear(c);
}

/* At each limit and one beyond it; memory is never asked for beyond. */
static void
test_limits(lpo_ctx *c)
{
	struct lpo_image_opts o = { 0, 0, 0 };
	struct lpo_image im;
	struct golden *g;
	int at = 0, beyond = 0, n = 0;

	for (g = cases; g < cases + n_cases; g++) {
		if (g->w == 0 || g->w * g->h < 2 || g->exif)
			continue;
		n += 2;
		o.max_bytes = 0;
		o.max_pixels = g->w * g->h;
		at += lpo_image_decode(c, &im, g->file, g->bytes, &o) == 0;
		lpo_image_free(&im);
		o.max_pixels--;
		beyond += lpo_image_decode(c, &im, g->file, g->bytes, &o) ==
		    LPO_EFORMAT && strstr(lpo_errmsg(c), "limit") != NULL;
		lpo_clear(c);
		o.max_pixels = 0;
		o.max_bytes = g->w * g->h * 3;
		at += lpo_image_decode(c, &im, g->file, g->bytes, &o) == 0;
		lpo_image_free(&im);
		o.max_bytes--;
		beyond += lpo_image_decode(c, &im, g->file, g->bytes, &o) ==
		    LPO_EFORMAT && strstr(lpo_errmsg(c), "limit") != NULL;
		lpo_clear(c);
	}
	ok(n > 0 && at == n, "%d of %d images decode at the limit", at, n);
	ok(beyond == n, "%d of %d are refused one beyond it", beyond, n);
}

/* A file cut anywhere fails, or had all its pixels already. */
static void
test_cut(lpo_ctx *c)
{
	struct lpo_image im;
	struct golden *g;
	uint8_t *part;
	size_t n;
	long wrong = 0, tried = 0;

	for (g = cases; g < cases + n_cases; g++) {
		if (g->w == 0 || g->exif)
			continue;
		for (n = 0; n < g->bytes; n += 1 + n / 50) {
			/* its own block, so that a sanitizer sees the end */
			part = malloc(n + 1);
			memcpy(part, g->file, n);
			part = realloc(part, n ? n : 1);
			lpo_clear(c);
			if (lpo_image_decode(c, &im, part, n, NULL) == 0)
				wrong += !same(&im, g);
			lpo_image_free(&im);
			free(part);
			tried++;
		}
	}
	lpo_clear(c);
	ok(wrong == 0, "%ld cut files: none gives half a picture", tried);
}

/* One byte changed: anything may come out, as long as we survive it. */
static void
test_damage(lpo_ctx *c)
{
	struct lpo_image_opts o = { 1, 0, 0 };
	struct lpo_image im;
	struct golden *g;
	uint8_t *copy;
	uint32_t r = 1;
	long read = 0, tried = 0;
	int i;

	o.max_pixels = 1 << 20;
	for (g = cases; g < cases + n_cases; g++) {
		copy = malloc(g->bytes ? g->bytes : 1);
		for (i = 0; i < 60 && g->bytes; i++) {
			memcpy(copy, g->file, g->bytes);
			r = r * 1664525 + 1013904223;
			/* half of the changes fall into the first 64 bytes */
			copy[(r >> 8) % (i & 1 && g->bytes > 64 ? 64 :
			    g->bytes)] ^= (uint8_t)(1 + r % 255);
			lpo_clear(c);
			read += lpo_image_decode(c, &im, copy, g->bytes,
			    &o) == 0;
			lpo_image_free(&im);
			tried++;
		}
		free(copy);
	}
	lpo_clear(c);
	ok(tried > 1000, "%ld damaged files survived, %ld of them read",
	    tried, read);
}

static void
test_nomem(lpo_ctx *c)
{
	struct lpo_image_opts o = { 1, 0, 0 };
	struct lpo_image im;
	struct golden *g;
	long n, points = 0;
	int err, bad = 0;

	for (g = cases; g < cases + n_cases; g++) {
		if (g->w == 0)
			continue;
		for (n = 0, err = -1; err != 0 && n < 1000; n++) {
			lpo_clear(c);
			lpo_alloc_fail_at(n);
			o.exif = g->exif;
			err = lpo_image_decode(c, &im, g->file, g->bytes, &o);
			lpo_alloc_fail_at(-1);
			bad += err != 0 && (err != LPO_ENOMEM || im.rgb);
			lpo_image_free(&im);
			points++;
		}
	}
	lpo_clear(c);
	ok(bad == 0, "%ld failing allocations give LPO_ENOMEM", points);
}

static void
test_png(lpo_ctx *c)
{
	static const struct lpo_png_text texts[] = {
		{ "parameters", "a cat\nSteps: 20, Seed: 1" },
		{ "lpo", "{\"prompt\": \"caf\xc3\xa9 \xe7\x8c\xab\"}" },
		{ "empty", "" },
	};
	static const struct lpo_png_text bad[] = {
		{ "", "x" }, { " a", "x" }, { "a  b", "x" }, { "a\n", "x" },
		{ "a", "\xff" }, { "a", "\xed\xa0\x80" },
	};
	struct lpo_image im;
	uint8_t *a, *b, rgb[23 * 17 * 3];
	size_t na, nb, i;
	long n;
	int err, wrong = 0;

	for (i = 0; i < sizeof(rgb); i++)
		rgb[i] = (uint8_t)(i * i / 7);
	err = lpo_png_encode(c, &a, &na, rgb, 23, 17, texts, 3);
	ok(err == 0, "PNG encoded: %zu bytes", na);
	err = lpo_image_decode(c, &im, a, na, NULL);
	ok(err == 0 && im.w == 23 && im.h == 17 &&
	    memcmp(im.rgb, rgb, sizeof(rgb)) == 0, "and decoded again");
	lpo_image_free(&im);
	ok(memmem(a, na, "tEXtparameters\0a cat\nSteps", 26) != NULL,
	    "ASCII text is a tEXt chunk");
	ok(memmem(a, na, "iTXtlpo\0\0\0\0\0{\"prompt\": \"caf\xc3\xa9 ", 30)
	    != NULL, "other text is an iTXt chunk");
	err = lpo_png_encode(c, &b, &nb, rgb, 23, 17, texts, 3);
	ok(err == 0 && na == nb && memcmp(a, b, na) == 0,
	    "same input, same bytes");
	lpo_free(b);
	lpo_free(a);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		wrong += lpo_png_encode(c, &a, &na, rgb, 23, 17, bad + i, 1) !=
		    LPO_EINVAL || a != NULL;
		lpo_clear(c);
	}
	ok(wrong == 0, "bad keywords and text are refused");
	ok(lpo_png_encode(c, &a, &na, rgb, 0, 17, NULL, 0) == LPO_EINVAL,
	    "no pixels: %s", lpo_errmsg(c));
	for (n = 0, err = -1, wrong = 0; err != 0 && n < 1000; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		err = lpo_png_encode(c, &a, &na, rgb, 23, 17, texts, 3);
		lpo_alloc_fail_at(-1);
		wrong += err != 0 && (err != LPO_ENOMEM || a != NULL);
		lpo_free(a);
	}
	ok(wrong == 0, "%ld failing allocations while writing", n);
	lpo_clear(c);
}

static void
test_floats(void)
{
	static const float x[] = { -1, 1, -2, 2, 0, NAN, INFINITY, -INFINITY,
	    0.5f / 255 * 2 - 1, 1.5f / 255 * 2 - 1 };
	static const uint8_t want[] = { 0, 255, 0, 255, 128, 0, 255, 0 };
	uint8_t all[256], back[256];
	float f[256];
	int i, bad = 0;

	for (i = 0; i < 256; i++)
		all[i] = (uint8_t)i;
	lpo_image_to_float(f, all, 256);
	for (i = 0; i < 256; i++)
		bad += fabs(f[i] - (i / 127.5 - 1)) > 1.2e-7;
	ok(bad == 0 && f[0] == -1 && f[255] == 1, "u8 to [-1, 1]");
	lpo_image_from_float(back, f, 256);
	ok(memcmp(all, back, 256) == 0, "and back, for every value");
	lpo_image_from_float(back, x, 10);
	ok(memcmp(back, want, 8) == 0 && back[8] <= 1 && back[9] >= 1 &&
	    back[9] <= 2, "clamped, halves to even, NaN to 0");
}

/*
 * A progressive JPEG whose last scan stands there again and again: libjpeg
 * goes over all pixels for each.  500 scans in all are taken.
 */
static void
test_scans(lpo_ctx *c)
{
	const uint8_t *last = NULL, *p;
	struct golden *g = cases;
	struct lpo_image im;
	size_t head, scan, k;
	int scans = 0, more, err;
	uint8_t *file;

	while (strcmp(g->name, "jpeg-progressive") != 0)
		g++;
	for (p = g->file; p + 2 < g->file + g->bytes; p++)
		if (p[0] == 0xff && p[1] == 0xda) {
			last = p;
			scans++;
		}
	head = (size_t)(last - g->file);
	scan = g->bytes - 2 - head;		/* without the end's marker */
	for (more = 500 - scans; more <= 501 - scans; more++) {
		file = malloc(g->bytes + (size_t)more * scan);
		memcpy(file, g->file, g->bytes - 2);
		for (k = 0; k < (size_t)more; k++)
			memcpy(file + g->bytes - 2 + k * scan, last, scan);
		memcpy(file + g->bytes - 2 + k * scan, "\xff\xd9", 2);
		err = lpo_image_decode(c, &im, file, g->bytes + k * scan,
		    NULL);
		ok(more + scans <= 500 ? err == 0 : err == LPO_EFORMAT &&
		    strstr(lpo_errmsg(c), "more than 500 scans") != NULL,
		    "%d scans %s", more + scans, lpo_errmsg(c));
		lpo_clear(c);
		lpo_image_free(&im);
		free(file);
	}
}

static void
test_names(void)
{
	static const char *const v[][2] = { { "a.PNG", "png" },
	    { "a.b.Jpeg", "jpeg" }, { "jpg", "jpg" }, { "0.webp", "webp" },
	    { "a.png.txt", NULL }, { "a.jpg_0", NULL }, { "", NULL },
	    { "png.", NULL } };
	const char *is;
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		is = lpo_image_type(v[i][0]);
		ok(is == NULL || v[i][1] == NULL ? is == v[i][1] :
		    strcmp(is, v[i][1]) == 0, "type of '%s'", v[i][0]);
	}
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();
	struct lpo_image im;
	char *data = NULL;
	size_t bytes;

	if (!ok(lpo_file_read(c, &data, &bytes, "tests/golden/images.bin",
	    1 << 24) == 0 && load(data, bytes) == 0 && n_cases > 60,
	    "%d golden images", n_cases))
		return done_testing();
	test_names();
	test_scans(c);
	test_golden(c);
	test_limits(c);
	test_cut(c);
	test_damage(c);
	test_nomem(c);
	test_png(c);
	test_floats();
	ok(lpo_image_read(c, &im, "tests/golden/none.png", NULL) ==
	    LPO_ENOTFOUND, "no file: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_image_read(c, &im, "tests/golden/make_images.py", NULL) ==
	    LPO_EFORMAT && strstr(lpo_errmsg(c), "make_images.py"),
	    "no image: %s", lpo_errmsg(c));
	lpo_free(data);
	lpo_ctx_free(c);
	return done_testing();
}
