/*
 * Philox4x32-10, and normals by Box-Muller.  log, sine and cosine are our own,
 * in f64 with +, -, *, / and sqrt only, all of which IEEE 754 defines to the
 * last bit: libm's differ between versions and CPUs.  Compiled without
 * contraction, or a fused multiply-add would change bits.
 */
#include "lib/base/philox.h"

#include <math.h>

void
lpo_philox4x32(uint32_t out[4], const uint32_t counter[4],
    const uint32_t key[2])
{
	uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2];
	uint32_t c3 = counter[3], k0 = key[0], k1 = key[1];
	int i;

	for (i = 0; i < 10; i++) {
		uint64_t p0 = (uint64_t)0xd2511f53 * c0;
		uint64_t p1 = (uint64_t)0xcd9e8d57 * c2;

		c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
		c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
		c1 = (uint32_t)p1;
		c3 = (uint32_t)p0;
		k0 += 0x9e3779b9;
		k1 += 0xbb67ae85;
	}
	out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The four words of elements 4 * block .. 4 * block + 3. */
static void
draw_block(uint32_t out[4], const struct lpo_draw *d, uint64_t block)
{
	const uint32_t key[2] = {
		(uint32_t)d->seed, (uint32_t)(d->seed >> 32)
	};
	const uint32_t counter[4] = {
		(uint32_t)block, d->item, d->epoch << 16 | d->step,
		(uint32_t)d->purpose << 24 | d->candidate
	};

	lpo_philox4x32(out, counter, key);
}

uint32_t
lpo_draw_u32(const struct lpo_draw *d, uint64_t element)
{
	uint32_t w[4];

	draw_block(w, d, element / 4);
	return w[element % 4];
}

uint32_t
lpo_draw_below(const struct lpo_draw *d, uint64_t element, uint32_t n)
{
	return (uint32_t)((uint64_t)lpo_draw_u32(d, element) * n >> 32);
}

/*
 * -2 ln((w + 1) / 2^32).  x = m 2^e with m in [2^-1/2, 2^1/2);
 * ln m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172: the series to s^17
 * is good to 1e-15.
 */
static double
minus_2_log(uint32_t w)
{
	const double ln2 = 0.693147180559945309417232;
	uint64_t x = (uint64_t)w + 1;
	int e = 63 - __builtin_clzll(x);
	double m, s, z, p;

	m = (double)x / (double)((uint64_t)1 << e);	/* exact: 1 <= m < 2 */
	if (m > 1.4142135623730951) {
		m *= 0.5;
		e++;
	}
	s = (m - 1) / (m + 1);
	z = s * s;
	p = 1.0 / 17;
	p = p * z + 1.0 / 15;
	p = p * z + 1.0 / 13;
	p = p * z + 1.0 / 11;
	p = p * z + 1.0 / 9;
	p = p * z + 1.0 / 7;
	p = p * z + 1.0 / 5;
	p = p * z + 1.0 / 3;
	p = p * z + 1.0;
	return -2 * ((double)(e - 32) * ln2 + 2 * s * p);
}

/*
 * Sine and cosine of 2 pi w / 2^32: the nearest quarter turn exactly in
 * integers, the rest, |x| <= pi/4, by Taylor to x^13 and x^14.
 */
static void
sin_cos_turn(double *sine, double *cosine, uint32_t w)
{
	const double step = 1.57079632679489661923 / 1073741824.0;
	uint32_t q = (w + 0x20000000u) >> 30 & 3;
	int32_t rest = (int32_t)(w - (q << 30));
	double x = (double)rest * step, z = x * x, s, c;

	s = 1.0 / 6227020800;
	s = s * z - 1.0 / 39916800;
	s = s * z + 1.0 / 362880;
	s = s * z - 1.0 / 5040;
	s = s * z + 1.0 / 120;
	s = s * z - 1.0 / 6;
	s = x + x * z * s;
	c = -1.0 / 87178291200;
	c = c * z + 1.0 / 479001600;
	c = c * z - 1.0 / 3628800;
	c = c * z + 1.0 / 40320;
	c = c * z - 1.0 / 720;
	c = c * z + 1.0 / 24;
	c = c * z - 1.0 / 2;
	c = 1 + z * c;
	*sine = q == 0 ? s : q == 1 ? c : q == 2 ? -s : -c;
	*cosine = q == 0 ? c : q == 1 ? -s : q == 2 ? -c : s;
}

static void
normal_block(float out[4], const struct lpo_draw *d, uint64_t block)
{
	uint32_t w[4];
	double r, s, c;
	int i;

	draw_block(w, d, block);
	for (i = 0; i < 4; i += 2) {
		r = sqrt(minus_2_log(w[i]));
		sin_cos_turn(&s, &c, w[i + 1]);
		out[i] = (float)(r * c);
		out[i + 1] = (float)(r * s);
	}
}

void
lpo_draw_normal(const struct lpo_draw *d, uint64_t first, float *out,
    int64_t n)
{
	float f[4];
	int64_t i = 0, j;

	while (i < n) {
		uint64_t e = first + (uint64_t)i;

		if (e % 4 == 0 && n - i >= 4) {
			normal_block(out + i, d, e / 4);
			i += 4;
			continue;
		}
		normal_block(f, d, e / 4);
		for (j = (int64_t)(e % 4); j < 4 && i < n; j++)
			out[i++] = f[j];
	}
}

/*
 * Eight Feistel rounds over 2h bits, 4^h >= n; what falls outside 0 .. n-1
 * goes round again (cycle walking), at most four times on average.
 */
uint64_t
lpo_draw_permute(const struct lpo_draw *d, uint64_t i, uint64_t n)
{
	unsigned h = 1;
	uint64_t x = i, left, right, t, mask;
	int round;

	while (h < 30 && (uint64_t)1 << 2 * h < n)
		h++;
	mask = ((uint64_t)1 << h) - 1;
	do {
		left = x >> h;
		right = x & mask;
		for (round = 0; round < 8; round++) {
			t = left ^ (lpo_draw_u32(d,
			    (uint64_t)round << h | right) & mask);
			left = right;
			right = t;
		}
		x = left << h | right;
	} while (x >= n);
	return x;
}
