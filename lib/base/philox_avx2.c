/*
 * normal_blocks() of philox.c eight blocks at a time, with the same operations
 * in the same order: the same bits.  No fused multiply-add here, or they were
 * not.
 */
#include "lib/base/philox_priv.h"

#ifdef __x86_64__
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE static inline __attribute__((target("avx2"), always_inline))

int
lpo_philox_has_avx2(void)
{
	return __builtin_cpu_supports("avx2");
}

/* Low and high half of a[i] * m, eight lanes of 32 bits. */
AVX2_INLINE void
multiply(__m256i *lo, __m256i *hi, __m256i a, __m256i m)
{
	__m256i even = _mm256_mul_epu32(a, m);
	__m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);

	*lo = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
	*hi = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}

/* Ten rounds on eight counters. */
AVX2_INLINE void
rounds(__m256i c[4], uint64_t seed)
{
	const __m256i m0 = _mm256_set1_epi64x(0xd2511f53);
	const __m256i m1 = _mm256_set1_epi64x(0xcd9e8d57);
	uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
	__m256i lo0, hi0, lo1, hi1;
	int i;

	for (i = 0; i < 10; i++) {
		multiply(&lo0, &hi0, c[0], m0);
		multiply(&lo1, &hi1, c[2], m1);
		c[0] = _mm256_xor_si256(_mm256_xor_si256(hi1, c[1]),
		    _mm256_set1_epi32((int)k0));
		c[2] = _mm256_xor_si256(_mm256_xor_si256(hi0, c[3]),
		    _mm256_set1_epi32((int)k1));
		c[1] = lo1;
		c[3] = lo0;
		k0 += 0x9e3779b9;
		k1 += 0xbb67ae85;
	}
}

#define D(x) _mm256_set1_pd(x)
#define Q(x) _mm256_set1_epi64x((int64_t)(x))
/* p z + a */
#define STEP(p, z, a) _mm256_add_pd(_mm256_mul_pd(p, z), D(a))

/* sqrt(minus_2_log(w)) of four words, given as w - 2^31. */
AVX2_INLINE __m256d
radius(__m128i w)
{
	__m256d x = _mm256_add_pd(_mm256_cvtepi32_pd(w), D(2147483649.0));
	__m256i u = _mm256_castpd_si256(x);
	__m256d m = _mm256_castsi256_pd(_mm256_or_si256(_mm256_and_si256(u,
	    Q(0x000fffffffffffff)), Q(0x3ff0000000000000)));
	__m256d e = _mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(
	    _mm256_srli_epi64(u, 52), Q(0x4330000000000000))),
	    D(4503599627370496.0 + 1023));
	__m256d big = _mm256_cmp_pd(m, D(1.4142135623730951), _CMP_GT_OQ);
	__m256d s, z, p;

	e = _mm256_blendv_pd(e, _mm256_add_pd(e, D(1)), big);
	m = _mm256_blendv_pd(m, _mm256_mul_pd(m, D(0.5)), big);
	s = _mm256_div_pd(_mm256_sub_pd(m, D(1)), _mm256_add_pd(m, D(1)));
	z = _mm256_mul_pd(s, s);
	p = D(1.0 / 17);
	p = STEP(p, z, 1.0 / 15);
	p = STEP(p, z, 1.0 / 13);
	p = STEP(p, z, 1.0 / 11);
	p = STEP(p, z, 1.0 / 9);
	p = STEP(p, z, 1.0 / 7);
	p = STEP(p, z, 1.0 / 5);
	p = STEP(p, z, 1.0 / 3);
	p = STEP(p, z, 1.0);
	return _mm256_sqrt_pd(_mm256_mul_pd(D(-2), _mm256_add_pd(
	    _mm256_mul_pd(_mm256_sub_pd(e, D(32)),
	    D(0.693147180559945309417232)),
	    _mm256_mul_pd(_mm256_mul_pd(D(2), s), p))));
}

/* sin_cos_turn() of four words. */
AVX2_INLINE void
sin_cos(__m256d *sine, __m256d *cosine, __m128i w)
{
	__m128i q = _mm_srli_epi32(_mm_add_epi32(w,
	    _mm_set1_epi32(0x20000000)), 30);
	__m256d x = _mm256_mul_pd(_mm256_cvtepi32_pd(_mm_sub_epi32(w,
	    _mm_slli_epi32(q, 30))),
	    D(1.57079632679489661923 / 1073741824.0));
	__m256d z = _mm256_mul_pd(x, x), s, c, swap, negative;
	__m256i quarter = _mm256_cvtepi32_epi64(q);

	s = D(1.0 / 6227020800);
	s = STEP(s, z, -1.0 / 39916800);
	s = STEP(s, z, 1.0 / 362880);
	s = STEP(s, z, -1.0 / 5040);
	s = STEP(s, z, 1.0 / 120);
	s = STEP(s, z, -1.0 / 6);
	s = _mm256_add_pd(x, _mm256_mul_pd(_mm256_mul_pd(x, z), s));
	c = D(-1.0 / 87178291200);
	c = STEP(c, z, 1.0 / 479001600);
	c = STEP(c, z, -1.0 / 3628800);
	c = STEP(c, z, 1.0 / 40320);
	c = STEP(c, z, -1.0 / 720);
	c = STEP(c, z, 1.0 / 24);
	c = STEP(c, z, -1.0 / 2);
	c = _mm256_add_pd(D(1), _mm256_mul_pd(z, c));
	/* odd quarters swap the two; sine is negative in 2 and 3, cosine in 1
	   and 2 */
	swap = _mm256_castsi256_pd(_mm256_slli_epi64(quarter, 63));
	negative = _mm256_castsi256_pd(_mm256_slli_epi64(
	    _mm256_srli_epi64(quarter, 1), 63));
	*sine = _mm256_xor_pd(_mm256_blendv_pd(s, c, swap), negative);
	*cosine = _mm256_xor_pd(_mm256_blendv_pd(c, s, swap),
	    _mm256_xor_pd(negative, swap));
}

/* Normals 2 k and 2 k + 1 of four blocks: radius times cosine and sine. */
AVX2_INLINE void
pair(__m128 *even, __m128 *odd, __m128i w0, __m128i w1)
{
	__m256d r = radius(_mm_xor_si128(w0, _mm_set1_epi32(INT32_MIN))), s, c;

	sin_cos(&s, &c, w1);
	*even = _mm256_cvtpd_ps(_mm256_mul_pd(r, c));
	*odd = _mm256_cvtpd_ps(_mm256_mul_pd(r, s));
}

AVX2 void
lpo_normal_blocks_avx2(float *out, const struct lpo_draw *d, uint64_t block)
{
	__m256i c[4];
	__m128 n0, n1, n2, n3;
	int i, j;

	for (i = 0; i < LPO_NORMAL_BLOCKS; i += 8) {
		c[0] = _mm256_add_epi32(_mm256_set1_epi32((int)(block +
		    (uint64_t)i)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
		c[1] = _mm256_set1_epi32((int)d->item);
		c[2] = _mm256_set1_epi32((int)(d->epoch << 16 | d->step));
		c[3] = _mm256_set1_epi32((int)((uint32_t)d->purpose << 24 |
		    d->candidate));
		rounds(c, d->seed);
		for (j = 0; j < 2; j++, out += 16) {
#define HALF(x) (j == 0 ? _mm256_castsi256_si128(x) : \
	    _mm256_extracti128_si256(x, 1))
			pair(&n0, &n1, HALF(c[0]), HALF(c[1]));
			pair(&n2, &n3, HALF(c[2]), HALF(c[3]));
#undef HALF
			_MM_TRANSPOSE4_PS(n0, n1, n2, n3);
			_mm_storeu_ps(out, n0);
			_mm_storeu_ps(out + 4, n1);
			_mm_storeu_ps(out + 8, n2);
			_mm_storeu_ps(out + 12, n3);
		}
	}
}

#else

int
lpo_philox_has_avx2(void)
{
	return 0;
}

void
lpo_normal_blocks_avx2(float *out, const struct lpo_draw *d, uint64_t block)
{
	lpo_normal_blocks(out, d, block);
}
#endif
