/*
 * Loads and stores of activations by dtype, with tails: element i of an array
 * that ends at `end`.  Lanes at or past the end read as 0 and are not
 * written, so one loop body serves whole vectors and the last piece, and an
 * element's bits do not depend on where in the array it stands.
 */
#ifndef LPO_LOAD_H
#define LPO_LOAD_H

#include "kernels/vmath.h"

static inline float
f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, u = h & 0x7fff;
	float f;

	if (u >= 0x7c00) {			/* Inf, NaN (made quiet) */
		u = sign | 0x7f800000 | (u & 0x3ff) << 13;
		if (u & 0x7fffff)
			u |= 0x400000;
		memcpy(&f, &u, 4);
		return f;
	}
	u <<= 13;				/* exponent is off by 112 */
	memcpy(&f, &u, 4);
	f *= 5.192296858534828e33f;		/* 2^112, exact */
	memcpy(&u, &f, 4);
	u |= sign;
	memcpy(&f, &u, 4);
	return f;
}

/* Round to nearest even; the adder does it where f16 is denormal. */
static inline uint16_t
f32_to_f16(float f)
{
	uint32_t u, sign;
	float a;

	memcpy(&u, &f, 4);
	sign = u >> 16 & 0x8000;
	u &= 0x7fffffff;
	if (u > 0x7f800000)
		return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x1ff));
	if (u >= 0x477ff000)			/* rounds to 65536 */
		return (uint16_t)(sign | 0x7c00);
	if (u < 0x38800000) {			/* below 2^-14 */
		memcpy(&a, &u, 4);
		a += 0.5f;
		memcpy(&u, &a, 4);
		return (uint16_t)(sign | (u - 0x3f000000));
	}
	u += 0xfff + (u >> 13 & 1);
	return (uint16_t)(sign | ((u - 0x38000000) >> 13));
}

static inline vf
vf_load_f16(const uint16_t *p)
{
#if defined(__AVX512F__)
	return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
#elif defined(__F16C__)
	return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
#else
	vf v;
	int j;

	for (j = 0; j < VL; j++)
		v[j] = f16_to_f32(p[j]);
	return v;
#endif
}

static inline void
vf_store_f16(uint16_t *p, vf v)
{
#if defined(__AVX512F__)
	_mm256_storeu_si256((void *)p, _mm512_cvtps_ph((__m512)v,
	    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
	_mm_storeu_si128((void *)p, _mm256_cvtps_ph((__m256)v,
	    _MM_FROUND_TO_NEAREST_INT));
#else
	int j;

	for (j = 0; j < VL; j++)
		p[j] = f32_to_f16(v[j]);
#endif
}

static inline vf
vld_whole(enum lpo_dtype dt, const void *p, int64_t i)
{
	if (dt == LPO_F32)
		return vf_load((const float *)p + i);
	if (dt == LPO_BF16)
		return vf_load_bf16((const uint16_t *)p + i);
	return vf_load_f16((const uint16_t *)p + i);
}

static inline void
vst_whole(enum lpo_dtype dt, void *p, int64_t i, vf v)
{
	if (dt == LPO_F32)
		vf_store((float *)p + i, v);
	else if (dt == LPO_BF16)
		vf_store_bf16((uint16_t *)p + i, v);
	else
		vf_store_f16((uint16_t *)p + i, v);
}

/* Copy n < VL elements in pieces of fixed size. */
static inline __attribute__((always_inline)) void
copy_part(void *dst, const void *src, int64_t n, size_t size)
{
	char *d = dst;
	const char *s = src;

#define PIECE(k)							\
	if (n & (k)) {							\
		memcpy(d, s, (k) * size);				\
		d += (k) * size;					\
		s += (k) * size;					\
	}
#if VL > 8
	PIECE(8)
#endif
#if VL > 4
	PIECE(4)
#endif
	PIECE(2) PIECE(1)
#undef PIECE
}

/* The first n < VL elements from i on; the rest of the vector is 0. */
static inline vf
vld_part(enum lpo_dtype dt, const void *p, int64_t i, int64_t n)
{
	uint16_t h[VL] = {0};

#if defined(__AVX512BW__)
	__mmask16 mask = (__mmask16)((1u << n) - 1);

	if (dt == LPO_F32)
		return (vf)_mm512_maskz_loadu_ps(mask, (const float *)p + i);
	if (dt == LPO_BF16)
		return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(
		    _mm256_maskz_loadu_epi16(mask, (const uint16_t *)p + i)),
		    16);
#elif defined(__AVX2__)
	static const int32_t mask[2 * VL] = { -1, -1, -1, -1, -1, -1, -1, -1 };

	if (dt == LPO_F32)
		return (vf)_mm256_maskload_ps((const float *)p + i,
		    _mm256_loadu_si256((const void *)(mask + VL - n)));
#else
	float f[VL] = {0};

	if (dt == LPO_F32) {
		copy_part(f, (const float *)p + i, n, 4);
		return vf_load(f);
	}
#endif
	copy_part(h, (const uint16_t *)p + i, n, 2);
	return vld_whole(dt, h, 0);
}

static inline void
vst_part(enum lpo_dtype dt, void *p, int64_t i, int64_t n, vf v)
{
	uint16_t h[VL];
	float f[VL];

#if defined(__AVX512BW__)
	__mmask16 mask = (__mmask16)((1u << n) - 1);

	if (dt == LPO_F32) {
		_mm512_mask_storeu_ps((float *)p + i, mask, (__m512)v);
		return;
	}
	if (dt == LPO_BF16) {
		_mm256_mask_storeu_epi16((uint16_t *)p + i, mask,
		    vf_round_bf16(v));
		return;
	}
#endif
	if (dt == LPO_F32) {
		vf_store(f, v);
		copy_part((float *)p + i, f, n, 4);
		return;
	}
	vst_whole(dt, h, 0, v);
	copy_part((uint16_t *)p + i, h, n, 2);
}

/* n elements from i on: with n the constant VL, no branch is left. */
static inline vf
vld_n(enum lpo_dtype dt, const void *p, int64_t i, int64_t n)
{
	return n == VL ? vld_whole(dt, p, i) : vld_part(dt, p, i, n);
}

static inline void
vst_n(enum lpo_dtype dt, void *p, int64_t i, int64_t n, vf v)
{
	if (n == VL)
		vst_whole(dt, p, i, v);
	else
		vst_part(dt, p, i, n, v);
}

static inline vf
vld(enum lpo_dtype dt, const void *p, int64_t i, int64_t end)
{
	return vld_n(dt, p, i, i + VL <= end ? VL : end - i);
}

static inline void
vst(enum lpo_dtype dt, void *p, int64_t i, int64_t end, vf v)
{
	vst_n(dt, p, i, i + VL <= end ? VL : end - i, v);
}

/* p[i] += v, rounded once. */
static inline void
vacc(enum lpo_dtype dt, void *p, int64_t i, int64_t end, vf v)
{
	vst(dt, p, i, end, vld(dt, p, i, end) + v);
}

/*
 * For inner loops: CALL f with dt a constant, so that nothing is left to
 * decide per vector; BY_VEC runs body(i, n) over w elements.  f and body are
 * `inlined`.
 */
#define inlined	static inline __attribute__((always_inline))
#define BY_DTYPE(dt, f, ...)						\
	((dt) == LPO_F32 ? f(LPO_F32, __VA_ARGS__) : f(LPO_BF16, __VA_ARGS__))
#define BY_VEC(i, w, body, ...)						\
	do {								\
		for (i = 0; i + VL <= (w); i += VL)			\
			body(i, VL, __VA_ARGS__);			\
		if (i < (w))						\
			body(i, (w) - i, __VA_ARGS__);			\
	} while (0)

/* n elements of p, from i on, = a b, or += it if `add`; rounded once. */
inlined void
vput_fma(enum lpo_dtype dt, int add, void *p, int64_t i, int64_t n, vf a,
    vf b)
{
	vst_n(dt, p, i, n, add ? vf_fma(a, b, vld_n(dt, p, i, n)) :
	    vf_mul(a, b));
}

/* The same of v. */
inlined void
vput(enum lpo_dtype dt, int add, void *p, int64_t i, int64_t n, vf v)
{
	vst_n(dt, p, i, n, add ? vld_n(dt, p, i, n) + v : v);
}

static inline int64_t
elem_bytes(enum lpo_dtype dt)
{
	return dt == LPO_F32 ? 4 : 2;
}

/* Element i of an activation array. */
static inline void *
elem(enum lpo_dtype dt, const void *p, int64_t i)
{
	return (char *)p + i * elem_bytes(dt);
}

/* A gradient that is set, not added to, starts at zero. */
static inline void
begin_grad(enum lpo_dtype dt, void *dx, int64_t count, int add)
{
	if (dx != NULL && !add)
		memset(dx, 0, (size_t)(count * elem_bytes(dt)));
}

#endif
