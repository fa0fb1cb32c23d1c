/*
 * AMX's tiles for bf16: eight of 16 rows of 64 bytes.  A product adds
 * [16][32] times [16 pairs][16][2] to [16][16] in f32: of its second operand
 * the pairs along the inner dimension lie side by side.
 *
 *	linear_amx.c		linear layers and 1x1 convolutions, both ways;
 *				where a convolution goes
 *	conv_amx.c		3x3 convolutions, both ways
 *	gradient_amx.c		gradients of weights
 *	attention_amx.c		attention, forward
 *	attention_bwd_amx.c	and backward
 * All forward, and the first two both ways, multiply f32 too where that is to
 * be split (split.h).
 * What they do not take, and all that is not a product, is avx512's.
 *
 * With LPO_AMX_EMULATE they are plain C, so that the op tests check all
 * around them on machines without AMX.
 */
#ifndef LPO_AMX_H
#define LPO_AMX_H

#include "kernels/load.h"

enum { TILE = 16 };		/* rows of a tile */

/* Whether tiles take products of these: bf16, or f32 that is to be split. */
static inline int
lpo_on_tiles(const lpo_backend *be, enum lpo_dtype dt)
{
	return dt == LPO_BF16 || (dt == LPO_F32 && be->split);
}

#ifdef LPO_AMX_EMULATE

static _Thread_local unsigned char tiles_now[8][TILE][64];

static inline void
emulate_dp(int c, int a, int b)
{
	uint16_t x[2], w[2];
	int i, j, k;
	float s;

	for (i = 0; i < TILE; i++)
		for (j = 0; j < TILE; j++) {
			memcpy(&s, tiles_now[c][i] + 4 * j, 4);
			for (k = 0; k < TILE; k++) {
				memcpy(x, tiles_now[a][i] + 4 * k, 4);
				memcpy(w, tiles_now[b][k] + 4 * j, 4);
				s += bf16_to_f32(x[0]) * bf16_to_f32(w[0]);
				s += bf16_to_f32(x[1]) * bf16_to_f32(w[1]);
			}
			memcpy(tiles_now[c][i] + 4 * j, &s, 4);
		}
}

static inline void
emulate_move(int t, void *p, int64_t stride, int store)
{
	int i;

	for (i = 0; i < TILE; i++)
		if (store)
			memcpy((char *)p + i * stride, tiles_now[t][i], 64);
		else
			memcpy(tiles_now[t][i], (char *)p + i * stride, 64);
}

/* What the kernels leave to others. */
#define OTHER(op)		lpo_##op##_portable

#define tile_config()		((void)0)
#define tile_release()		((void)0)
#define tile_zero(t)		memset(tiles_now[t], 0, sizeof(tiles_now[t]))
#define tile_load(t, p, stride)	emulate_move(t, (void *)(p), stride, 0)
#define tile_store(t, p, stride) emulate_move(t, p, stride, 1)
#define tile_dp(c, a, b)	emulate_dp(c, a, b)

#else

#define OTHER(op)	lpo_##op##_avx512

static inline void
tile_config(void)
{
	struct {
		uint8_t palette, start_row, reserved[14];
		uint16_t row_bytes[16];
		uint8_t rows[16];
	} c = { .palette = 1 };
	int i;

	for (i = 0; i < 8; i++) {
		c.row_bytes[i] = 64;
		c.rows[i] = TILE;
	}
	/* gcc's intrinsic declares 8 of the 64 bytes as read: keep the rest */
	__asm__ volatile("" : : "r"(&c) : "memory");
	_tile_loadconfig(&c);
}

#define tile_release()		_tile_release()
#define tile_zero(t)		_tile_zero(t)
/* gcc's intrinsic does not say that it reads memory: what is written stays */
#define tile_load(t, p, stride)						\
	do {								\
		__asm__ volatile("" : : : "memory");			\
		_tile_loadd(t, p, stride);				\
	} while (0)
#define tile_store(t, p, stride) _tile_stored(t, p, stride)
#define tile_dp(c, a, b)	_tile_dpbf16ps(c, a, b)

#endif

typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint32_t w16 __attribute__((vector_size(64)));
typedef uint32_t w4 __attribute__((vector_size(16)));

/* Words 4 g .. 4 g + 3 of rows i, i+4, i+8, i+12, one row per quarter. */
static inline __attribute__((always_inline)) void
tile_quarters(w16 *to, const uint16_t *w, int64_t ld, int64_t i, int64_t g)
{
	w4 a, b, c, d;

	w += i * ld + 8 * g;
	memcpy(&a, w, sizeof(a));
	memcpy(&b, w + 4 * ld, sizeof(b));
	memcpy(&c, w + 8 * ld, sizeof(c));
	memcpy(&d, w + 12 * ld, sizeof(d));
#ifdef __AVX512F__
	{
		__m512i v = _mm512_castsi128_si512((__m128i)a);

		v = _mm512_mask_broadcast_i32x4(v, 0x00f0, (__m128i)b);
		v = _mm512_mask_broadcast_i32x4(v, 0x0f00, (__m128i)c);
		v = _mm512_mask_broadcast_i32x4(v, 0xf000, (__m128i)d);
		*to = (w16)v;
	}
#else
	*to = (w16){ a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3],
	    c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3] };
#endif
}

/* 16 rows of 32 to a tile: pairs are words, which are transposed. */
static inline __attribute__((always_inline)) void
tile_turn(uint16_t *to, const uint16_t *w, int64_t ld)
{
	int g;

#pragma GCC unroll 4
	for (g = 0; g < 4; g++) {
		w16 a, b, c, d, ab, cd, r;

#define LOW(x, y) __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, \
    8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(x, y) __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, \
    10, 26, 11, 27, 14, 30, 15, 31)
#define EVEN(x, y) __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, \
    8, 9, 24, 25, 12, 13, 28, 29)
#define ODD(x, y) __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, \
    10, 11, 26, 27, 14, 15, 30, 31)
		tile_quarters(&a, w, ld, 0, g);
		tile_quarters(&b, w, ld, 1, g);
		tile_quarters(&c, w, ld, 2, g);
		tile_quarters(&d, w, ld, 3, g);
		ab = LOW(a, b);
		cd = LOW(c, d);
		r = EVEN(ab, cd);
		memcpy(to + (4 * g) * 32, &r, sizeof(r));
		r = ODD(ab, cd);
		memcpy(to + (4 * g + 1) * 32, &r, sizeof(r));
		ab = HIGH(a, b);
		cd = HIGH(c, d);
		r = EVEN(ab, cd);
		memcpy(to + (4 * g + 2) * 32, &r, sizeof(r));
		r = ODD(ab, cd);
		memcpy(to + (4 * g + 3) * 32, &r, sizeof(r));
#undef LOW
#undef HIGH
#undef EVEN
#undef ODD
	}
}

#endif
