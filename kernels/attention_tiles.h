/*
 * What attention_amx.c works on: q, k and v of a head as tiles, and how they
 * get there.  What fills up tiles is zero, but of v's channels.
 */
#ifndef LPO_ATTENTION_TILES_H
#define LPO_ATTENTION_TILES_H

#include "kernels/attention.h"
#include "kernels/ints.h"
#include "kernels/split.h"

#include <math.h>

enum {
	BQ = 32,		/* queries of a block: two columns of tiles */
	BK = 64,		/* keys of a block */
	BK_MOST = 96,		/* ... where they are all */
	WIDEST = 512,		/* of a head: the VAE's */
	ELEMENTS = 512,		/* of a tile */
	Q_LO = 2 * WIDEST * TILE,	/* from a tile of q to that of its lo */
	ONE = 0x3f80		/* in bf16 */
};

/* One head: padded sizes, and how its keys are cut. */
struct plan {
	int64_t steps, dv, lk;	/* channels / 32; by 16; keys by 32 */
	int64_t bk, d, keys, causal;
	float scale;
	int split;		/* f32, else bf16 */
	int64_t lo;		/* from a tile of k or v to that of its lo */
	const uint16_t *k, *v;
};

static inline struct plan
plan_new(const struct lpo_attn_shape *s, enum lpo_dtype dt)
{
	struct plan z = { .steps = (s->d + 31) / 32, .dv = round_up(s->d, 16),
	    .lk = round_up(s->lk, 32), .d = s->d, .keys = s->lk,
	    .causal = s->causal, .scale = LOG2E / sqrtf((float)s->d),
	    .split = dt == LPO_F32 };

	z.bk = z.lk <= BK_MOST ? z.lk : BK;
	z.lo = z.lk * (z.steps * 32 + z.dv);
	return z;
}

/* A row of a tile: n <= 32 elements and zeros. */
static inline void
load_row(uint16_t *dst, const uint16_t *src, int64_t n)
{
#if defined(__AVX512BW__)
	_mm512_storeu_si512(dst, _mm512_maskz_loadu_epi16(
	    (__mmask32)(0xffffffffu >> (32 - n)), src));
#else
	memset(dst, 0, 64);
	memcpy(dst, src, (size_t)n * 2);
#endif
}

static inline void
store_row(uint16_t *dst, const uint16_t *src, int64_t n)
{
#if defined(__AVX512BW__)
	_mm512_mask_storeu_epi16(dst, (__mmask32)(0xffffffffu >> (32 - n)),
	    _mm512_loadu_si512(src));
#else
	memcpy(dst, src, (size_t)n * 2);
#endif
}

/* The same of f32, to rows of hi and of lo. */
static inline void
split_row(uint16_t *hi, uint16_t *lo, const float *src, int64_t n)
{
	float row[32] = { 0 };

	if (n < 32)
		src = memcpy(row, src, (size_t)n * 4);
	split_pairs(hi, lo, src, src + TILE);
}

/* Row i of a tile of q or k that is `rows` high; n of its elements at src. */
static inline void
row_of(uint16_t *dst, int64_t lo, const struct plan *z, const void *src,
    int64_t i, int64_t rows, int64_t n)
{
	if (i >= rows) {
		memset(dst, 0, 64);
		if (z->split)
			memset(dst + lo, 0, 64);
	} else if (z->split) {
		split_row(dst, dst + lo, src, n);
	} else {
		load_row(dst, src, n);
	}
}

/* A tile row of 16 pairs: n <= 16 elements of a and of b, side by side. */
static inline void
load_pairs(uint16_t *dst, const uint16_t *a, const uint16_t *b, int64_t n)
{
#if defined(__AVX512BW__) && defined(__AVX512VL__)
	__mmask16 k = (__mmask16)(0xffffu >> (16 - n));
	__m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, a));
	__m512i y = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(k, b));

	_mm512_storeu_si512(dst, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
#else
	int64_t i;

	memset(dst, 0, 64);
	for (i = 0; i < n; i++) {
		dst[2 * i] = a[i];
		dst[2 * i + 1] = b[i];
	}
#endif
}

/* A tile as [16][16] words, transposed in place. */
static void
transpose_tile(uint16_t *tile)
{
#if defined(__AVX512F__)
	__m512i r[TILE], t[TILE];
	int i;

#pragma GCC unroll 16
	for (i = 0; i < TILE; i++)
		r[i] = _mm512_loadu_si512(tile + 32 * i);
#pragma GCC unroll 16
	for (i = 0; i < TILE; i += 2) {
		t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
	}
#pragma GCC unroll 16
	for (i = 0; i < TILE; i += 4) {		/* r[i + j]: columns 4 x + j */
		r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
		r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
		r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
		r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
	}
#pragma GCC unroll 4
	for (i = 0; i < 4; i++) {
		t[0] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
		t[1] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
		t[2] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
		t[3] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
		_mm512_storeu_si512(tile + 32 * i,
		    _mm512_shuffle_i32x4(t[0], t[1], 0x88));
		_mm512_storeu_si512(tile + 32 * (i + 4),
		    _mm512_shuffle_i32x4(t[2], t[3], 0x88));
		_mm512_storeu_si512(tile + 32 * (i + 8),
		    _mm512_shuffle_i32x4(t[0], t[1], 0xdd));
		_mm512_storeu_si512(tile + 32 * (i + 12),
		    _mm512_shuffle_i32x4(t[2], t[3], 0xdd));
	}
#else
	uint32_t a[TILE][TILE], b[TILE][TILE];
	int i, j;

	memcpy(a, tile, sizeof(a));
	for (i = 0; i < TILE; i++)
		for (j = 0; j < TILE; j++)
			b[i][j] = a[j][i];
	memcpy(tile, b, sizeof(b));
#endif
}

/*
 * k to tiles [lk / 16][d / 32][16 keys][32 channels]; of all keys, by 32, those
 * from g0 to g1.
 */
static void
pack_k(uint16_t *dst, const void *k, int64_t ld, const struct plan *z,
    int64_t g0, int64_t g1)
{
	const enum lpo_dtype dt = z->split ? LPO_F32 : LPO_BF16;
	int64_t g, x, i;

	dst += g0 * z->steps * 32;
	for (g = g0; g < g1; g += TILE)
		for (x = 0; x < z->d; x += 32)
			for (i = g; i < g + TILE; i++, dst += 32)
				row_of(dst, z->lo, z, elem(dt, k, i * ld + x),
				    i, z->keys, min64(32, z->d - x));
}

/* Two keys' n <= 16 channels of v, of f32, to rows of pairs. */
static inline void
split_keys(uint16_t *hi, uint16_t *lo, const float *a, const float *b,
    int64_t n)
{
	float row[2][TILE] = { { 0 }, { 0 } };

	if (n < TILE) {
		a = memcpy(row[0], a, (size_t)n * 4);
		b = memcpy(row[1], b, (size_t)n * 4);
	}
	split_pairs(hi, lo, a, b);
}

/*
 * v to tiles [lk / 32][dv / 16][16 channels][32 keys], likewise.  What is left
 * over of the last tiles is 1: there o has the sum of p as rounded.
 */
static void
pack_v(uint16_t *dst, const void *v, int64_t ld, const struct plan *z,
    int64_t g0, int64_t g1)
{
	const enum lpo_dtype dt = z->split ? LPO_F32 : LPO_BF16;
	static const float none[TILE];
	const void *a, *b;
	int64_t g, x, i, n;

	dst += g0 * z->dv;
	for (g = g0; g < g1; g += 32)
		for (x = 0; x < z->d; x += TILE, dst += ELEMENTS) {
			n = min64(TILE, z->d - x);
			for (i = 0; i < 32; i += 2) {
				a = g + i < z->keys ? elem(dt, v, (g + i) *
				    ld + x) : none;
				b = g + i + 1 < z->keys ? elem(dt, v,
				    (g + i + 1) * ld + x) : none;
				if (z->split)
					split_keys(dst + 16 * i, dst + z->lo +
					    16 * i, a, b, n);
				else
					load_pairs(dst + 16 * i, a, b, n);
			}
			transpose_tile(dst);
			if (z->split)
				transpose_tile(dst + z->lo);
			for (i = n * 32; i < ELEMENTS; i++)
				dst[i] = ONE;
		}
}

/* q to tiles [d / 32][2][16 channel pairs][16 queries][2] */
static void
pack_q(uint16_t *dst, const void *q, int64_t ld, const struct plan *z,
    int64_t rows)
{
	const enum lpo_dtype dt = z->split ? LPO_F32 : LPO_BF16;
	int64_t x, t, i;

	for (x = 0; x < z->d; x += 32)
		for (t = 0; t < BQ; t += TILE, dst += ELEMENTS) {
			for (i = 0; i < TILE; i++)
				row_of(dst + 32 * i, Q_LO, z, elem(dt, q,
				    (t + i) * ld + x), t + i, rows,
				    min64(32, z->d - x));
			transpose_tile(dst);
			if (z->split)
				transpose_tile(dst + Q_LO);
		}
}

#endif
