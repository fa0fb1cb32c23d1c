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
 *
 * and for results that become bf16, half of whose unit is 2^-9 at least:
 *
 *	vf_silu_bf16	relative 2^-16; at most 2e-36 off below x = -87
 *	vf_gelu_bf16	relative 2^-15; at most 1e-36 off below x = -12.9
 */
#ifndef LPO_VMATH_H
#define LPO_VMATH_H

#include "kernels/vec.h"

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
 */
static inline vf
vf_exp(vf x)
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
	p = p * vf_pow2_bits(k1 + 127);
	return vf_mul(p, vf_pow2_bits(k - k1 + 127));
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

/*
 * 1 / (1 + e^-x), e^-x = 2^n e^-r, r = x + n ln2.  2^n is built from the bits
 * of n + 127, which the clamps keep in 0 .. 255: the ends are 0 and Inf.
 */
static inline vf
vf_sigmoid(vf x)
{
	const vf magic = vf_set1(12582912.0f + 127.0f);
	vf t, n, r, p;

	x = vf_max(vf_set1(-88.7f), vf_min(vf_set1(88.02f), x));
	t = vf_fnma(x, vf_set1(1.44269504f), magic);
	n = t - magic;
	r = vf_fma(n, vf_set1(0.693359375f), x);
	r = vf_fnma(n, vf_set1(2.12194440e-4f), r);
	p = vf_horner(vf_set1(-0.00829758413f), r, 0.04191587666f);
	p = vf_horner(p, r, -0.1666757835f);
	p = vf_horner(p, r, 0.4999889047f);
	p = vf_horner(p, r, -0.9999996901f);
	p = vf_horner(p, r, 1.000000072f);
	return 1.0f / vf_fma(p, vf_pow2_bits((vi)t), vf_set1(1.0f));
}

/*
 * 1 / d for a normal d > 0 below 2^126: a guess by the exponent's bits that
 * is within 5.1 %, and two steps of Newton's.  Relative 7e-6.  (The
 * processor's own estimate differs from vendor to vendor.)
 */
static inline vf
vf_recip_bf16(vf d)
{
	vf r = (vf)(0x7ef311c7 - (vi)d);

	r = vf_mul(r, vf_fnma(d, r, vf_set1(2.0f)));
	return vf_mul(r, vf_fnma(d, r, vf_set1(2.0f)));
}

/* x / (1 + e^-x); the factor x is bounded too where the other cannot be 0 */
static inline vf
vf_silu_bf16(vf x)
{
	const vf magic = vf_set1(12582912.0f + 127.0f);
	vf t, a, r, p;

	x = vf_max(vf_set1(-87.0f), x);
	a = vf_min(vf_set1(87.0f), x);
	t = vf_fnma(a, vf_set1(1.44269504f), magic);
	r = vf_fma(t - magic, vf_set1(0.693147181f), a);
	p = vf_horner(vf_set1(0.04145819813f), r, -0.1679115412f);
	p = vf_horner(p, r, 0.5000437601f);
	p = vf_horner(p, r, -0.9999632602f);
	p = vf_horner(p, r, 0.999999257f);
	p = vf_fma(p, vf_pow2_bits((vi)t), vf_set1(1.0f));
	return x * vf_recip_bf16(p);
}

/*
 * e^(a^2) erfc(a) / 2 for a = x / sqrt(2), x >= 0: P(q) / (a + 2),
 * q = 4 / (a + 2) - 1, fitted on [0, 9.4]; beyond that the Gaussian factor has
 * underflown.
 */
static inline vf
vf_half_erfcx(vf x)
{
	vf t = 1.0f / vf_fma(x, vf_set1(0.707106781f), vf_set1(2.0f));
	vf q = vf_fma(t, vf_set1(4.0f), vf_set1(-1.0f)), p;

	p = vf_horner(vf_set1(-0.0002298790839f), q, 0.0003757890734f);
	p = vf_horner(p, q, 0.001489686959f);
	p = vf_horner(p, q, -0.003217737846f);
	p = vf_horner(p, q, -0.01074206914f);
	p = vf_horner(p, q, 0.01821744569f);
	p = vf_horner(p, q, 0.1397348591f);
	p = vf_horner(p, q, 0.3435804925f);
	p = vf_horner(p, q, 0.5107913706f);
	return p * t;
}

/* e^(-x^2 / 2) = 2^n e^(-r / 2), r = x^2 + n 2 ln2; 0 from |x| = 13.3 on. */
static inline vf
vf_gauss(vf x)
{
	const vf magic = vf_set1(12582912.0f + 127.0f);
	vf t, n, r, p, x2;

	x2 = vf_min(vf_set1(176.5f), vf_mul(x, x));
	t = vf_fnma(x2, vf_set1(0.72134752f), magic);
	n = t - magic;
	r = vf_fma(n, vf_set1(1.38671875f), x2);
	r = vf_fnma(n, vf_set1(4.24388880e-4f), r);
	p = vf_horner(vf_set1(-0.0002592995041f), r, 0.002619742291f);
	p = vf_horner(p, r, -0.02083447294f);
	p = vf_horner(p, r, 0.1249972262f);
	p = vf_horner(p, r, -0.4999998451f);
	p = vf_horner(p, r, 1.000000072f);
	return vf_mul(p, vf_pow2_bits((vi)t));
}

/*
 * The normal distribution function; *pdf gets its density.  Computed from
 * the tail, so that GELU keeps its relative accuracy for negative x, where
 * (1 + erf) / 2 would cancel.
 */
static inline vf
vf_cdf(vf x, vf *pdf)
{
	vf g = vf_gauss(x), tail = vf_mul(g, vf_half_erfcx(vf_abs(x)));

	*pdf = vf_mul(g, vf_set1(0.398942280f));
	return vf_select(x > 0.0f, 1.0f - tail, tail);
}

/*
 * x times the normal distribution function: max(x, 0) - |x| 2^P(|x|), P fitted
 * to log2 of the function of -|x| on [0, 12.95], absolute error 2.5e-5.
 */
static inline vf
vf_gelu_bf16(vf x)
{
	const vf magic = vf_set1(12582912.0f + 127.0f);
	vf a = vf_min(vf_set1(12.9f), vf_abs(x)), t, f, p;

	p = vf_horner(vf_set1(-2.035135144e-9f), a, 1.465426196e-7f);
	p = vf_horner(p, a, -4.646111335e-6f);
	p = vf_horner(p, a, 8.588532108e-5f);
	p = vf_horner(p, a, -0.001036947651f);
	p = vf_horner(p, a, 0.008734052068f);
	p = vf_horner(p, a, -0.05411429822f);
	p = vf_horner(p, a, -0.4586060768f);
	p = vf_horner(p, a, -1.151064825f);
	p = vf_horner(p, a, -1.000024822f);
	t = p + magic;
	f = p - (t - magic);
	p = vf_horner(vf_set1(0.009570103211f), f, 0.05591786055f);
	p = vf_horner(p, f, 0.240247448f);
	p = vf_horner(p, f, 0.6931218147f);
	p = vf_horner(p, f, 0.9999992614f);
	return vf_fnma(a, vf_mul(p, vf_pow2_bits((vi)t)),
	    vf_max((vf){0}, x));
}

#endif
