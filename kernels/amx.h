/*
 * AMX's tiles for bf16: eight of 16 rows of 64 bytes.  A product adds
 * [16][32] times [16 pairs][16][2] to [16][16] in f32: of its second operand
 * the pairs along the inner dimension lie side by side.
 *
 * With LPO_AMX_EMULATE they are plain C, so that the op tests check all
 * around them on machines without AMX.
 */
#ifndef LPO_AMX_H
#define LPO_AMX_H

#include "kernels/load.h"

enum { TILE = 16 };		/* rows of a tile */

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

#define tile_config()		((void)0)
#define tile_release()		((void)0)
#define tile_zero(t)		memset(tiles_now[t], 0, sizeof(tiles_now[t]))
#define tile_load(t, p, stride)	emulate_move(t, (void *)(p), stride, 0)
#define tile_store(t, p, stride) emulate_move(t, p, stride, 1)
#define tile_dp(c, a, b)	emulate_dp(c, a, b)

#else

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

#endif
