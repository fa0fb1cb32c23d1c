/*
 * f32 as two bf16, for products on tiles: x is hi + lo and a rest of at most
 * 2^-17 |x|, with hi = x rounded to bf16 and lo = x - hi rounded.  A product
 *	x w = lo_x hi_w + hi_x lo_w + hi_x hi_w
 * lacks lo_x lo_w, at most 2^-16 |x w|, and the rests: all in all 2^-15.
 * (Rounded is half away from zero, for which two operations are enough.)
 *
 * Inf is hi = Inf, lo = 0, and its products are Inf or NaN; NaN stays NaN, or
 * becomes Inf.  So does what bf16 cannot hold, from 3.39e38 on.  Tiles take
 * what is below 2^-126, be it hi or lo, for 0.
 *
 * Two vectors become the pairs of tiles: words of (first, second).  Which of
 * a step's 32 are a pair is the same in both operands, so it may be i, i+16.
 */
#ifndef LPO_SPLIT_H
#define LPO_SPLIT_H

#include "kernels/amx.h"

enum { SPLIT_LO = 2 * 512 };	/* elements from a pair of tiles to its lo's */

typedef float f16x __attribute__((vector_size(64)));

/* The upper half of each word: hi and lo. */
static inline __attribute__((always_inline)) void
split_words(w16 *hi, w16 *lo, const float *x)
{
	const uint32_t inf = 0x7f800000, half = 0x8000;
	w16 u, finite;
	f16x v, rest;

	memcpy(&v, x, sizeof(v));
	u = (w16)v;
	finite = (w16)((u & inf) != inf);
	*hi = (u + (half & finite)) & 0xffff0000;
	rest = v - (f16x)*hi;
	*lo = ((w16)rest + half) & finite;
}

static inline __attribute__((always_inline)) void
split_pairs(uint16_t *hi, uint16_t *lo, const float *first,
    const float *second)
{
	w16 h, l, h2, l2;

	split_words(&h, &l, first);
	split_words(&h2, &l2, second);
	h = h >> 16 | h2;
	l = l >> 16 | (l2 & 0xffff0000);
	memcpy(hi, &h, sizeof(h));
	memcpy(lo, &l, sizeof(l));
}

/* 16 rows of 32, ld apart, to a tile of hi and one of lo, transposed. */
static inline void
split_turn(uint16_t *to, const float *w, int64_t ld)
{
	uint16_t hi[TILE * 32], lo[TILE * 32];
	int i;

	for (i = 0; i < TILE; i++)
		split_pairs(hi + i * 32, lo + i * 32, w + i * ld, w + i * ld +
		    TILE);
	tile_turn(to, hi, 32);
	tile_turn(to + SPLIT_LO, lo, 32);
}

/* Sums 0 .. 3 += rows in 4 and 5 times columns in 6 and 7. */
static inline __attribute__((always_inline)) void
tile_dp4(int two_a, int two_b)
{
	tile_dp(0, 4, 6);
	if (two_b)
		tile_dp(1, 4, 7);
	if (two_a)
		tile_dp(2, 5, 6);
	if (two_a && two_b)
		tile_dp(3, 5, 7);
}

/*
 * The same of 16 rows at a and 16 at a2, ld apart, each [hi, lo][32], and two
 * tiles at b: hi lo, hi hi, lo hi.
 */
static inline __attribute__((always_inline)) void
split_step(int two_a, int two_b, const uint16_t *a, const uint16_t *a2,
    int64_t ld, const uint16_t *b)
{
	tile_load(4, a, ld * 2);
	tile_load(6, b + SPLIT_LO, 64);
	if (two_b)
		tile_load(7, b + SPLIT_LO + 512, 64);
	if (two_a)
		tile_load(5, a2, ld * 2);
	tile_dp4(two_a, two_b);
	tile_load(6, b, 64);
	if (two_b)
		tile_load(7, b + 512, 64);
	tile_dp4(two_a, two_b);
	tile_load(4, a + 32, ld * 2);
	if (two_a)
		tile_load(5, a2 + 32, ld * 2);
	tile_dp4(two_a, two_b);
}

#endif
