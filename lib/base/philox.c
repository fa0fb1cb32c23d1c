/*
 * Philox4x32-10, and normals by Box-Muller.  log, sine and cosine are our own,
 * in f64 with +, -, *, / and sqrt only, all of which IEEE 754 defines to the
 * last bit: libm's differ between versions and CPUs.  Compiled without
 * contraction, or a fused multiply-add would change bits.
 */
#include "lib/base/philox_priv.h"

#include <math.h>
#include <string.h>

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
static inline double
minus_2_log(uint32_t w)
{
	const double ln2 = 0.693147180559945309417232;
	/* by way of int32: vectors convert no unsigned numbers before AVX-512 */
	double x = (double)(int32_t)(w ^ 0x80000000u) + 2147483649.0;
	double m, e, s, z, p;
	uint64_t u, v;

	memcpy(&u, &x, 8);
	v = (u & 0x000fffffffffffffu) | 0x3ff0000000000000u;
	memcpy(&m, &v, 8);			/* exact: 1 <= m < 2 */
	v = u >> 52 | 0x4330000000000000u;	/* 2^52 + e + 1023 */
	memcpy(&e, &v, 8);
	e -= 4503599627370496.0 + 1023;
	e = m > 1.4142135623730951 ? e + 1 : e;
	m = m > 1.4142135623730951 ? m * 0.5 : m;
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
	return -2 * ((e - 32) * ln2 + 2 * s * p);
}

/*
 * Sine and cosine of 2 pi w / 2^32: the nearest quarter turn exactly in
 * integers, the rest, |x| <= pi/4, by Taylor to x^13 and x^14.
 */
static inline void
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

/* In loops that a compiler can vectorise, lane by lane as scalars would. */
void
lpo_normal_blocks(float *out, const struct lpo_draw *d, uint64_t block)
{
	enum { BLOCKS = LPO_NORMAL_BLOCKS };
	uint32_t w[4][BLOCKS];
	uint32_t k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32);
	double r[2 * BLOCKS], s[2 * BLOCKS], c[2 * BLOCKS];
	int i, j;

	for (j = 0; j < BLOCKS; j++) {
		w[0][j] = (uint32_t)(block + (uint64_t)j);
		w[1][j] = d->item;
		w[2][j] = d->epoch << 16 | d->step;
		w[3][j] = (uint32_t)d->purpose << 24 | d->candidate;
	}
	for (i = 0; i < 10; i++) {
#pragma omp simd
		for (j = 0; j < BLOCKS; j++) {
			uint64_t p0 = (uint64_t)0xd2511f53 * w[0][j];
			uint64_t p1 = (uint64_t)0xcd9e8d57 * w[2][j];

			w[0][j] = (uint32_t)(p1 >> 32) ^ w[1][j] ^ k0;
			w[2][j] = (uint32_t)(p0 >> 32) ^ w[3][j] ^ k1;
			w[1][j] = (uint32_t)p1;
			w[3][j] = (uint32_t)p0;
		}
		k0 += 0x9e3779b9;
		k1 += 0xbb67ae85;
	}
	for (i = 0; i < 2; i++) {
#pragma omp simd
		for (j = 0; j < BLOCKS; j++) {
			r[i * BLOCKS + j] = sqrt(minus_2_log(w[2 * i][j]));
			sin_cos_turn(&s[i * BLOCKS + j], &c[i * BLOCKS + j],
			    w[2 * i + 1][j]);
		}
	}
	for (j = 0; j < BLOCKS; j++)
		for (i = 0; i < 2; i++) {
			double radius = r[i * BLOCKS + j];

			out[4 * j + 2 * i] =
			    (float)(radius * c[i * BLOCKS + j]);
			out[4 * j + 2 * i + 1] =
			    (float)(radius * s[i * BLOCKS + j]);
		}
}

void
lpo_draw_normal(const struct lpo_draw *d, uint64_t first, float *out,
    int64_t n)
{
	enum { WIDE = 4 * LPO_NORMAL_BLOCKS };
	void (*normals)(float *, const struct lpo_draw *, uint64_t) =
	    lpo_philox_has_avx2() ? lpo_normal_blocks_avx2 :
	    lpo_normal_blocks;
	float f[WIDE];
	uint64_t block;
	int64_t from, some;

	while (n > 0) {
		block = first / 4;
		from = (int64_t)(first % 4);
		some = WIDE - from < n ? WIDE - from : n;
		if (from == 0 && some == WIDE)
			normals(out, d, block);
		else {
			normals(f, d, block);
			memcpy(out, f + from, (size_t)some * sizeof *out);
		}
		first += (uint64_t)some;
		out += some;
		n -= some;
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
