/*
 * Pillow's resize: per axis a table of fixed-point weights, the horizontal
 * pass first, its result rounded to u8, then the vertical one.
 */
#include <math.h>
#include <string.h>

#include "lib/io/resize.h"

/* Weights are scaled by 2^22: 8 bits of pixel, 2 of overshoot, 32 in all. */
#define BITS 22

/*
 * Output i sums in[first[i] + j] * weight[i * taps + j] for j < count[i].
 */
struct axis {
	int64_t taps;
	int64_t *first;
	int64_t *count;
	int32_t *weight;
};

static double
bilinear(double x)
{
	x = fabs(x);
	return x < 1.0 ? 1.0 - x : 0.0;
}

/* Keys' cubic with a = -0.5 */
static double
bicubic(double x)
{
	const double a = -0.5;

	x = fabs(x);
	if (x < 1.0)
		return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
	if (x < 2.0)
		return (((x - 5) * x + 8) * x - 4) * a;
	return 0.0;
}

static void
axis_free(struct axis *a)
{
	lpo_free(a->first);
	lpo_free(a->count);
	lpo_free(a->weight);
}

/*
 * Pillow's order of operations to the letter: another order of the same
 * formula moves single weights by one unit, and with them pixels.
 */
static int
axis_init(lpo_ctx *c, struct axis *a, int64_t out, int64_t in,
    enum lpo_filter filter)
{
	double (*f)(double) = filter == LPO_BICUBIC ? bicubic : bilinear;
	double scale = (double)in / (double)out;
	double fs = scale < 1.0 ? 1.0 : scale;
	double support = (filter == LPO_BICUBIC ? 2.0 : 1.0) * fs;
	double inv = 1.0 / fs, centre, sum, *w = NULL;
	int64_t i, j, lo, hi;
	int err = LPO_ENOMEM;

	a->taps = (int64_t)ceil(support) * 2 + 1;
	a->first = lpo_alloc(c, (size_t)out, sizeof(*a->first));
	a->count = lpo_alloc(c, (size_t)out, sizeof(*a->count));
	a->weight = lpo_alloc(c, (size_t)out, (size_t)a->taps *
	    sizeof(*a->weight));
	w = lpo_alloc(c, (size_t)a->taps, sizeof(*w));
	if (a->first == NULL || a->count == NULL || a->weight == NULL ||
	    w == NULL)
		goto out;
	for (i = 0; i < out; i++) {
		centre = ((double)i + 0.5) * scale;
		lo = (int64_t)(centre - support + 0.5);
		lo = lo < 0 ? 0 : lo;
		hi = (int64_t)(centre + support + 0.5);
		hi = hi > in ? in : hi;
		sum = 0.0;
		for (j = 0; j < hi - lo; j++) {
			w[j] = f(((double)(j + lo) - centre + 0.5) * inv);
			sum += w[j];
		}
		for (j = 0; j < hi - lo; j++) {
			if (sum != 0.0)
				w[j] /= sum;
			w[j] *= 1 << BITS;
			a->weight[i * a->taps + j] =
			    (int32_t)(w[j] < 0 ? w[j] - 0.5 : w[j] + 0.5);
		}
		a->first[i] = lo;
		a->count[i] = hi - lo;
	}
	err = 0;
out:
	lpo_free(w);
	return err;
}

static uint8_t
clip8(int32_t acc)
{
	acc >>= BITS;
	return (uint8_t)(acc < 0 ? 0 : acc > 255 ? 255 : acc);
}

/* dst [rows, out, ch] from src [rows, in, ch] */
static void
horizontal(uint8_t *dst, const uint8_t *src, int64_t rows, int64_t out,
    int64_t in, int ch, const struct axis *a)
{
	const int32_t *k;
	const uint8_t *s;
	int64_t y, x, j, n;
	int32_t acc;
	int i;

	for (y = 0; y < rows; y++, src += in * ch) {
		for (x = 0; x < out; x++) {
			k = a->weight + x * a->taps;
			n = a->count[x];
			for (i = 0; i < ch; i++) {
				s = src + a->first[x] * ch + i;
				acc = 1 << (BITS - 1);
				for (j = 0; j < n; j++)
					acc += s[j * ch] * k[j];
				*dst++ = clip8(acc);
			}
		}
	}
}

/* dst [out, width] from src [in, width]; acc [width] is scratch */
static void
vertical(uint8_t *dst, const uint8_t *src, int64_t out, int64_t width,
    const struct axis *a, int32_t *acc)
{
	const uint8_t *s;
	int64_t y, x, j;
	int32_t k;

	for (y = 0; y < out; y++, dst += width) {
		for (x = 0; x < width; x++)
			acc[x] = 1 << (BITS - 1);
		for (j = 0; j < a->count[y]; j++) {
			k = a->weight[y * a->taps + j];
			s = src + (a->first[y] + j) * width;
			for (x = 0; x < width; x++)
				acc[x] += s[x] * k;
		}
		for (x = 0; x < width; x++)
			dst[x] = clip8(acc[x]);
	}
}

int
lpo_resize_u8(lpo_ctx *c, uint8_t *dst, int64_t dst_w, int64_t dst_h,
    const uint8_t *src, int64_t src_w, int64_t src_h, int channels,
    enum lpo_filter filter)
{
	struct axis ax = { 0 }, ay = { 0 };
	uint8_t *between = NULL;
	int32_t *acc = NULL;
	int64_t row = dst_w * channels;
	int err = 0;

	if (dst_w < 1 || dst_h < 1 || src_w < 1 || src_h < 1 ||
	    channels < 1 || channels > 4 || dst_w > INT32_MAX ||
	    dst_h > INT32_MAX || src_w > INT32_MAX || src_h > INT32_MAX)
		return lpo_fail(c, LPO_EINVAL, "cannot resize %lld x %lld to "
		    "%lld x %lld pixels", (long long)src_w, (long long)src_h,
		    (long long)dst_w, (long long)dst_h);
	/* A pass that changes no size is left out. */
	if (src_w != dst_w) {
		if ((err = axis_init(c, &ax, dst_w, src_w, filter)) != 0)
			goto out;
		if (src_h != dst_h) {
			between = lpo_alloc(c, (size_t)src_h, (size_t)row);
			if (between == NULL) {
				err = LPO_ENOMEM;
				goto out;
			}
		}
		horizontal(between != NULL ? between : dst, src, src_h, dst_w,
		    src_w, channels, &ax);
	} else if (src_h == dst_h) {
		memcpy(dst, src, (size_t)(row * dst_h));
	}
	if (src_h != dst_h) {
		if ((err = axis_init(c, &ay, dst_h, src_h, filter)) != 0)
			goto out;
		acc = lpo_alloc(c, (size_t)row, sizeof(*acc));
		if (acc == NULL) {
			err = LPO_ENOMEM;
			goto out;
		}
		vertical(dst, between != NULL ? between : src, dst_h, row,
		    &ay, acc);
	}
out:
	lpo_free(acc);
	lpo_free(between);
	axis_free(&ax);
	axis_free(&ay);
	return err;
}
