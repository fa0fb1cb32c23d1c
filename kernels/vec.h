/*
 * Vectors for the files that are compiled once per ISA level (Makefile:
 * MULTI).  One source, GCC/clang vector extensions; VL floats per register.
 * LPO_FN(name) is the name of this level's copy.
 */
#ifndef LPO_VEC_H
#define LPO_VEC_H

#include <stdint.h>
#include <string.h>

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

static inline vf
vf_load_bf16(const uint16_t *p)
{
	vh h;

	memcpy(&h, p, sizeof(h));
	return (vf)(__builtin_convertvector(h, vu) << 16);
}

static inline void
vf_store_bf16(uint16_t *p, vf v)
{
	vu u = (vu)v, r;
	vi nan = (vi)((u & 0x7fffffff) > 0x7f800000);
	vh h;

	r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
	r = (r & ~(vu)nan) | (((u >> 16) | 0x40) & (vu)nan);
	h = __builtin_convertvector(r, vh);
	memcpy(p, &h, sizeof(h));
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
