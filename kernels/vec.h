/*
 * Vectors for the files that are compiled once per ISA level (Makefile:
 * MULTI).  One source, GCC/clang vector extensions; VL floats per register.
 * LPO_FN(name) is the name of this level's copy.
 */
#ifndef LPO_VEC_H
#define LPO_VEC_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels/kernel.h"

#ifndef LPO_ISA_SUFFIX
#define LPO_ISA_SUFFIX _portable
#endif
#define LPO_CAT2(a, b)	a##b
#define LPO_CAT(a, b)	LPO_CAT2(a, b)
#define LPO_FN(name)	LPO_CAT(name, LPO_ISA_SUFFIX)

#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX2__)
#define VL 8
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));

static inline vf
vf_load(const float *p)
{
	vf v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static inline void
vf_store(float *p, vf v)
{
	memcpy(p, &v, sizeof(v));
}

static inline vf
vf_set1(float x)
{
	return x - (vf){0};	/* + would lose the sign of -0 */
}

static inline vf
vf_select(vi mask, vf yes, vf no)
{
	return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}

static inline float
bf16_to_f32(uint16_t h)
{
	uint32_t u = (uint32_t)h << 16;
	float f;

	memcpy(&f, &u, 4);
	return f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t
f32_to_bf16(float f)
{
	uint32_t u;

	memcpy(&u, &f, 4);
	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/*
 * The compiler's own conversions between 16 and 32 bits take two to three
 * times the shuffles, all on one port.
 */
static inline vf
vf_load_bf16(const uint16_t *p)
{
#if defined(__AVX512BW__)
	return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(
	    _mm256_loadu_si256((const void *)p)), 16);
#elif defined(__AVX2__)
	return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(
	    _mm_loadu_si128((const void *)p)), 16);
#else
	vh h;

	memcpy(&h, p, sizeof(h));
	return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}

#if defined(__AVX512BW__)
/* The bits of v rounded to bf16, in the low half of the register. */
static inline __m256i
vf_round_bf16(vf v)
{
	/* the upper halves of the 16 words; the rest is not looked at */
	const __m512i upper = _mm512_set_epi64(0, 0, 0, 0,
	    0x001f001d001b0019, 0x0017001500130011, 0x000f000d000b0009,
	    0x0007000500030001);
	__m512i u = (__m512i)v, r;
	__mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
	__mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);

	r = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
	r = _mm512_mask_sub_epi32(r, odd, r, _mm512_set1_epi32(-1));
	r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
	return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, r));
}
#endif

static inline void
vf_store_bf16(uint16_t *p, vf v)
{
#if defined(__AVX512BW__)
	_mm256_storeu_si256((void *)p, vf_round_bf16(v));
#else
	vu u = (vu)v, r;
	vi nan = (vi)(v != v);
#if defined(__AVX2__)
	__m256i w;

	r = u + (((u >> 16 & 1) + 0x7fff) & ~(vu)nan);
	r = (r | ((vu)nan & 0x400000)) >> 16;
	w = _mm256_packus_epi32((__m256i)r, (__m256i)r);
	_mm_storeu_si128((void *)p, _mm256_castsi256_si128(
	    _mm256_permute4x64_epi64(w, 0x08)));
#else
	vh h;

	r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
	r = (r & ~(vu)nan) | (((u >> 16) | 0x40) & (vu)nan);
	h = __builtin_convertvector(r, vh);
	memcpy(p, &h, sizeof(h));
#endif
#endif
}

/* Sum of the lanes, pairwise: a fixed order for each VL. */
static inline float
vf_sum(vf v)
{
	float a[VL];
	int i, w;

	vf_store(a, v);
	for (w = VL / 2; w > 0; w /= 2)
		for (i = 0; i < w; i++)
			a[i] += a[i + w];
	return a[0];
}

#endif
