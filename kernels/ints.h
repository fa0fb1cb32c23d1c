/* Whole numbers, of shapes and blocks; what is divided is not negative. */
#ifndef LPO_INTS_H
#define LPO_INTS_H

#include <stdint.h>

static inline int64_t
min64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static inline int64_t
max64(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

static inline int64_t
div_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

static inline int64_t
round_up(int64_t a, int64_t b)
{
	return div_up(a, b) * b;
}

#endif
