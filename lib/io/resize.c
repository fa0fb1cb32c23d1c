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
 * Output from + i sums in[first[i] + j] * weight[i * taps + j], j < count[i].
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
axis_init(lpo_ctx *c, struct axis *a, int64_t from, int64_t n, int64_t out,
    int64_t in, enum lpo_filter filter)
{
	double (*f)(double) = filter == LPO_BICUBIC ? bicubic : bilinear;
	double scale = (double)in / (double)out;
	double fs = scale < 1.0 ? 1.0 : scale;
	double support = (filter == LPO_BICUBIC ? 2.0 : 1.0) * fs;
	double inv = 1.0 / fs, centre, sum, *w = NULL;
	int64_t i, j, lo, hi;
	int err = LPO_ENOMEM;

	a->taps = (int64_t)ceil(support) * 2 + 1;
	a->first = lpo_alloc(c, (size_t)n, sizeof(*a->first));
	a->count = lpo_alloc(c, (size_t)n, sizeof(*a->count));
	a->weight = lpo_alloc(c, (size_t)n, (size_t)a->taps *
	    sizeof(*a->weight));
	w = lpo_alloc(c, (size_t)a->taps, sizeof(*w));
	if (a->first == NULL || a->count == NULL || a->weight == NULL ||
	    w == NULL)
		goto out;
	for (i = 0; i < n; i++) {
		centre = ((double)(from + i) + 0.5) * scale;
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

/*
 * dst [out, width] from rows of `stride` bytes; src is the row a->first[0];
 * acc [width] is scratch
 */
static void
vertical(uint8_t *dst, const uint8_t *src, int64_t stride, int64_t out,
    int64_t width, const struct axis *a, int32_t *acc)
{
	const uint8_t *s;
	int64_t y, x, j;
	int32_t k;

	for (y = 0; y < out; y++, dst += width) {
		for (x = 0; x < width; x++)
			acc[x] = 1 << (BITS - 1);
		for (j = 0; j < a->count[y]; j++) {
			k = a->weight[y * a->taps + j];
			s = src + (a->first[y] - a->first[0] + j) * stride;
			for (x = 0; x < width; x++)
				acc[x] += s[x] * k;
		}
		for (x = 0; x < width; x++)
			dst[x] = clip8(acc[x]);
	}
}

/* Rows y0 .. y0 + n - 1 of the source, the window's columns of them. */
static int
rows_resized(lpo_ctx *c, uint8_t *dst, const struct lpo_window *v,
    int64_t dst_w, const uint8_t *src, int64_t src_w, int64_t n, int ch,
    enum lpo_filter filter)
{
	struct axis a = { 0 };
	int err;

	err = axis_init(c, &a, v->x, v->w, dst_w, src_w, filter);
	if (err == 0)
		horizontal(dst, src, n, v->w, src_w, ch, &a);
	axis_free(&a);
	return err;
}

/* src: the window's first column where the width stays as it is */
static int
columns_resized(lpo_ctx *c, uint8_t *dst, const struct lpo_window *v,
    const struct axis *a, const uint8_t *src, int64_t stride, int ch)
{
	int32_t *acc = lpo_alloc(c, (size_t)(v->w * ch), sizeof(*acc));

	if (acc == NULL)
		return LPO_ENOMEM;
	vertical(dst, src, stride, v->h, v->w * ch, a, acc);
	lpo_free(acc);
	return 0;
}

static int
check_sizes(lpo_ctx *c, const struct lpo_window *v, int64_t dst_w,
    int64_t dst_h, int64_t src_w, int64_t src_h, int channels)
{
	if (dst_w < 1 || dst_h < 1 || src_w < 1 || src_h < 1 ||
	    channels < 1 || channels > 4 || dst_w > INT32_MAX ||
	    dst_h > INT32_MAX || src_w > INT32_MAX || src_h > INT32_MAX)
		return lpo_fail(c, LPO_EINVAL, "cannot resize %lld x %lld to "
		    "%lld x %lld pixels", (long long)src_w, (long long)src_h,
		    (long long)dst_w, (long long)dst_h);
	if (v->x < 0 || v->y < 0 || v->w < 1 || v->h < 1 ||
	    v->w > dst_w - v->x || v->h > dst_h - v->y)
		return lpo_fail(c, LPO_EINVAL, "no %lld x %lld pixels from "
		    "(%lld, %lld) in %lld x %lld", (long long)v->w,
		    (long long)v->h, (long long)v->x, (long long)v->y,
		    (long long)dst_w, (long long)dst_h);
	return 0;
}

int
lpo_resize_window_u8(lpo_ctx *c, uint8_t *dst, const struct lpo_window *v,
    int64_t dst_w, int64_t dst_h, const uint8_t *src, int64_t src_w,
    int64_t src_h, int channels, enum lpo_filter filter)
{
	int64_t y0 = v->y, n = v->h, i;
	int64_t stride = src_w * channels, row = v->w * channels;
	uint8_t *between = NULL;
	struct axis ay = { 0 };
	int err;

	if ((err = check_sizes(c, v, dst_w, dst_h, src_w, src_h,
	    channels)) != 0)
		return err;
	/* A pass that changes no size is left out. */
	if (src_h != dst_h) {
		if ((err = axis_init(c, &ay, v->y, v->h, dst_h, src_h,
		    filter)) != 0)
			goto out;
		y0 = ay.first[0];
		n = ay.first[v->h - 1] + ay.count[v->h - 1] - y0;
	}
	src += y0 * stride;
	if (src_w != dst_w && src_h != dst_h) {
		between = lpo_alloc(c, (size_t)n, (size_t)row);
		err = between == NULL ? LPO_ENOMEM : rows_resized(c, between,
		    v, dst_w, src, src_w, n, channels, filter);
		if (err == 0)
			err = columns_resized(c, dst, v, &ay, between, row,
			    channels);
	} else if (src_w != dst_w) {
		err = rows_resized(c, dst, v, dst_w, src, src_w, n, channels,
		    filter);
	} else if (src_h != dst_h) {
		err = columns_resized(c, dst, v, &ay, src + v->x * channels,
		    stride, channels);
	} else {
		for (i = 0; i < n; i++)
			memcpy(dst + i * row, src + i * stride +
			    v->x * channels, (size_t)row);
	}
out:
	lpo_free(between);
	axis_free(&ay);
	return err;
}

int
lpo_resize_u8(lpo_ctx *c, uint8_t *dst, int64_t dst_w, int64_t dst_h,
    const uint8_t *src, int64_t src_w, int64_t src_h, int channels,
    enum lpo_filter filter)
{
	const struct lpo_window all = { 0, 0, dst_w, dst_h };

	return lpo_resize_window_u8(c, dst, &all, dst_w, dst_h, src, src_w,
	    src_h, channels, filter);
}
