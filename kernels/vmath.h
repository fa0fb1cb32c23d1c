/*
 * Vector mathematics for the per-level kernels: exp, sigmoid, the normal
 * distribution (for GELU), on the vf of vec.h.  Coefficients are our
 * own minimax fits (Remez, 40 digits).  NaN goes in, NaN comes out; that is
 * why comparisons are written so that NaN falls on the side that keeps x.
 *
 *	vf_exp		<= 2 ulp; overflows to Inf, denormals kept
 *	vf_exp2_soft	relative 2.5e-7 for x > -125, else 0; x <= 127
 *	vf_log		relative 2e-7, absolute 1e-7 near 1
 *	vf_sigmoid	relative 3e-7
 *	vf_cdf		relative 5e-7 + |x|^2 6e-8, also in the far left tail
 */
#ifndef LPO_VMATH_H
#define LPO_VMATH_H

#include "kernels/vec.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/*
 * a b + c and c - a b, fused where the level has fma; a b that is never fused
 * with what follows.  The compiler may contract a * b + c as it sees fit, and
 * sees fit differently in two inlined copies of one expression (gcc 12 and
 * clang 14 both did): so a product that meets a sum is spelled out.
 */
static inline vf
vf_fma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
	return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
	return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
	return a * b + c;
#endif
}

static inline vf
vf_fnma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
	return (vf)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
	return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
	return c - a * b;
#endif
}

static inline vf
vf_mul(vf a, vf b)
{
	vf v = a * b;

#if defined(__AVX512F__)
	__asm__("" : "+v"(v));
#elif defined(__SSE2__)
	__asm__("" : "+x"(v));
#endif
	return v;
}

/* p x + c: a step of Horner's rule */
static inline vf
vf_horner(vf p, vf x, float c)
{
	return vf_fma(p, x, vf_set1(c));
}

/* The larger of a and b; b where either is NaN. */
static inline vf
vf_max(vf a, vf b)
{
#if defined(__AVX512F__)
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
	return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
	return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
	return vf_select(a > b, a, b);
#endif
}

/* The smaller of a and b; b where either is NaN. */
static inline vf
vf_min(vf a, vf b)
{
#if defined(__AVX512F__)
	return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
	return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
	return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
	return vf_select(a < b, a, b);
#endif
}

static inline vf
vf_sqrt(vf a)
{
#if defined(__AVX512F__)
	return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
	return (vf)_mm256_sqrt_ps((__m256)a);
#elif defined(__SSE2__)
	return (vf)_mm_sqrt_ps((__m128)a);
#else
	int i;

	for (i = 0; i < VL; i++)
		a[i] = __builtin_sqrtf(a[i]);
	return a;
#endif
}

/* The sum of vec.h's vf_sum, lane i + lane i + half first, in registers. */
static inline float
vf_hsum(vf v)
{
#if defined(__SSE2__)
	__m128 a;

#if defined(__AVX512F__)
	__m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
	    _mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
	__m256 h = (__m256)v;
#endif
#if defined(__AVX2__)
	a = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#else
	a = (__m128)v;
#endif
	a = _mm_add_ps(a, _mm_movehl_ps(a, a));
	return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
#else
	return vf_sum(v);
#endif
}

static inline vf
vf_abs(vf a)
{
	return (vf)((vi)a & 0x7fffffff);
}

/* 2^n for an integer held as n + 127 in the low bits of t's mantissa. */
static inline vf
vf_pow2_bits(vi t)
{
	return (vf)(t << 23);
}

/*
 * e^x = 2^n e^r, r = x - n ln2 in two pieces (the first has 9 bits, so n
 * times it is exact with or without fma), |r| <= ln2 / 2.  2^n is applied as
 * two factors: n = 128 and the denormal results need more range than one.
 * vf_exp_parts leaves the second to its caller.
 */
static inline vf
vf_exp_parts(vf x, vf *scale)
{
	const vf magic = vf_set1(12582912.0f);	/* 1.5 * 2^23: rounds */
	vf t, n, r, p;
	vi k, k1;

	x = vf_max(vf_set1(-104.0f), vf_min(vf_set1(89.0f), x));
	t = vf_fma(x, vf_set1(1.44269504f), magic);
	n = t - magic;
	r = vf_fnma(n, vf_set1(0.693359375f), x);
	r = vf_fma(n, vf_set1(2.12194440e-4f), r);
	p = vf_horner(vf_set1(0.001381459861f), r, 0.008368716882f);
	p = vf_horner(p, r, 0.04166838805f);
	p = vf_horner(p, r, 0.1666652063f);
	p = vf_horner(p, r, 0.4999999345f);
	p = vf_fma(p, r * r, r) + 1.0f;
	k = (vi)t - 0x4b400000;
	k1 = k >> 1;
	*scale = vf_pow2_bits(k - k1 + 127);
	return p * vf_pow2_bits(k1 + 127);
}

static inline vf
vf_exp(vf x)
{
	vf scale, p = vf_exp_parts(x, &scale);

	return vf_mul(p, scale);
}

/*
 * 2^x for softmax, where x <= 0 up to rounding and -Inf is a masked key that
 * must weigh exactly 0.  The bias 127 sits in the magic number.
 */
static inline vf
vf_exp2_soft(vf x)
{
	const vf magic = vf_set1(12582912.0f + 127.0f);
	vf t, f, p;

	t = x + magic;
	f = x - (t - magic);
	p = vf_horner(vf_set1(0.001327647187f), f, 0.009675541328f);
	p = vf_horner(p, f, 0.05550713274f);
	p = vf_horner(p, f, 0.2402211972f);
	p = vf_horner(p, f, 0.6931469671f);
	p = vf_horner(p, f, 1.000000072f);
	p = vf_mul(p, vf_pow2_bits((vi)t));
	return vf_select(x < -125.0f, (vf){0}, p);
}

/*
 * Natural logarithm of a normal x > 0: x = 2^k m, sqrt(1/2) <= m < sqrt(2),
 * ln m = 2 atanh(s), s = (m - 1) / (m + 1).
 */
static inline vf
vf_log(vf x)
{
	vi k = ((vi)x - 0x3f3504f3) >> 23;
	vf m = (vf)((vi)x - (k << 23));
	vf s = (m - 1.0f) / (m + 1.0f), z = s * s, p;

	p = vf_horner(vf_set1(0.1493728532f), z, 0.1998872229f);
	p = vf_horner(p, z, 0.3333338854f);
	s = s + s;
	p = vf_fma(s * z, p, s);
	/* x - x: 0, or NaN where x is */
	return vf_fma(__builtin_convertvector(k, vf), vf_set1(0.693147181f),
	    p) + (x - x);
}

/* 1 / (1 + e^-x) */
static inline vf
vf_sigmoid(vf x)
{
	vf scale, p = vf_exp_parts(-x, &scale);

	return 1.0f / vf_fma(p, scale, vf_set1(1.0f));
}

/*
 * e^(a^2) erfc(a) for a >= 0: P(q) / (a + 2), q = 4 / (a + 2) - 1, fitted on
 * [0, 10]; beyond that the Gaussian factor has underflown.
 */
static inline vf
vf_erfcx(vf a)
{
	vf t = 1.0f / (a + 2.0f), q = vf_fma(t, vf_set1(4.0f),
	    vf_set1(-1.0f)), p;

	p = vf_horner(vf_set1(-0.0004614760682f), q, 0.000754673501f);
	p = vf_horner(p, q, 0.002979054674f);
	p = vf_horner(p, q, -0.006437293441f);
	p = vf_horner(p, q, -0.02148357771f);
	p = vf_horner(p, q, 0.03643518574f);
	p = vf_horner(p, q, 0.2794696313f);
	p = vf_horner(p, q, 0.6871609734f);
	p = vf_horner(p, q, 1.021582743f);
	return p * t;
}

/*
 * The normal distribution function; *pdf gets its density.  Computed from
 * the tail, so that GELU keeps its relative accuracy for negative x, where
 * (1 + erf) / 2 would cancel.
 */
static inline vf
vf_cdf(vf x, vf *pdf)
{
	vf g = vf_exp(-0.5f * (x * x)), h = 0.5f * g;
	vf e = vf_erfcx(vf_abs(x) * 0.707106781f);

	*pdf = vf_mul(g, vf_set1(0.398942280f));
	return vf_select(x > 0.0f, vf_fnma(h, e, vf_set1(1.0f)),
	    vf_mul(h, e));
}

#endif
