/*
 * Half floats one at a time, exact and the same on every machine: for file
 * borders, not for kernels.  Rounding is to nearest, ties to even.
 */
#ifndef LPO_BASE_HALF_H
#define LPO_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float
lpo_bf16_to_f32(uint16_t b)
{
	uint32_t u = (uint32_t)b << 16;
	float f;

	memcpy(&f, &u, 4);
	return f;
}

static inline uint16_t
lpo_f32_to_bf16(float f)
{
	uint32_t u;

	memcpy(&u, &f, 4);
	if ((u & 0x7fffffff) > 0x7f800000)	/* NaN stays NaN */
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/*
 * Exponent and mantissa in their places are the value times 2^-112, also of
 * subnormals; without branches, so that loops become vectors.
 */
static inline float
lpo_f16_to_f32(uint16_t h)
{
	uint32_t u = (uint32_t)(h & 0x7fff) << 13;
	uint32_t v;
	float f;

	memcpy(&f, &u, 4);
	f *= 0x1p112f;
	memcpy(&v, &f, 4);
	v |= -(uint32_t)(u >= 0x0f800000) & 0x7f800000;	/* inf and NaN */
	v |= (uint32_t)(h & 0x8000) << 16;
	memcpy(&f, &v, 4);
	return f;
}

/*
 * Three roundings, of which one is taken.  Below 2^-14 the spacing is 2^-24:
 * adding 0.5, whose last bit is 2^-24, lets the hardware round to it.  Past
 * 65504 to infinity; NaN stays NaN.
 */
static inline uint16_t
lpo_f32_to_f16(float x)
{
	uint32_t u, a, half, h;
	float f;

	memcpy(&u, &x, 4);
	a = u & 0x7fffffff;
	memcpy(&f, &a, 4);
	f += 0.5f;
	memcpy(&half, &f, 4);
	h = (a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13;
	h = a < 0x38800000 ? half - 0x3f000000 : h;
	h = a >= 0x477ff000 ? 0x7c00 : h;
	h = a > 0x7f800000 ? 0x7e00 | (a >> 13 & 0x3ff) : h;
	return (uint16_t)(h | (u >> 16 & 0x8000));
}

#endif
