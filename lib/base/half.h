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

static inline float
lpo_f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31;
	uint32_t man = h & 0x3ff, u;
	float f;

	if (exp == 31)
		u = sign | 0x7f800000 | man << 13;
	else if (exp != 0)
		u = sign | (exp + 112) << 23 | man << 13;
	else {			/* zero or subnormal: man * 2^-24 */
		f = (float)man * 0x1p-24f;
		memcpy(&u, &f, 4);
		u |= sign;
	}
	memcpy(&f, &u, 4);
	return f;
}

static inline uint16_t
lpo_f32_to_f16(float x)
{
	uint32_t u, sign, a, half;
	float f;

	memcpy(&u, &x, 4);
	sign = u >> 16 & 0x8000;
	a = u & 0x7fffffff;
	if (a > 0x7f800000)			/* NaN stays NaN */
		return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
	if (a >= 0x477ff000)			/* rounds past 65504: inf */
		return (uint16_t)(sign | 0x7c00);
	if (a < 0x38800000) {
		/*
		 * Below 2^-14 the spacing is 2^-24.  Adding 0.5, whose last
		 * bit is 2^-24, lets the hardware round to it.
		 */
		memcpy(&f, &a, 4);
		f += 0.5f;
		memcpy(&half, &f, 4);
		return (uint16_t)(sign | (half - 0x3f000000));
	}
	a += 0xfff + (a >> 13 & 1);
	return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

#endif
