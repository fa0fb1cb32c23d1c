/*
 * What conv_amx.c works on, and how it gets there: planes of the pixels, and
 * panels of the weights.
 */
#ifndef LPO_CONV_TILES_H
#define LPO_CONV_TILES_H

#include "kernels/conv_plan.h"
#include "kernels/levels.h"
#include "kernels/split.h"

/* What line l of the band's grid shows; NULL: zeros. */
static const void *
line_source(const struct plan *p, const struct band *b, int64_t l)
{
	int64_t n = b->n == 1 ? 0 : l / (b->h + 1);
	int64_t y = (b->n == 1 ? l : l % (b->h + 1)) - 1 + b->y;

	return y < 0 || y >= p->h ? NULL : elem(dtype(p), p->x,
	    ((b->i + n) * p->h + y) * p->w * p->in);
}

/* n pixels of a line, `size` of their channels, to a plane. */
static inline void
copy_pixels(const struct plan *p, uint16_t *to, const uint16_t *from,
    int64_t size)
{
	int64_t q;

	for (q = 0; q < p->w; q++, to += STEP, from += p->in)
		if (size == STEP) {
			memcpy(to, from, STEP * 2);
		} else {
			memset(to, 0, STEP * 2);
			memcpy(to, from, (size_t)size * 2);
		}
}

/* The same of f32. */
static inline void
split_pixels(const struct plan *p, uint16_t *to, const float *from,
    int64_t size)
{
	float some[STEP] = { 0 };
	int64_t q;

	for (q = 0; q < p->w; q++, to += 2 * STEP, from += p->in)
		if (size == STEP) {
			split_pairs(to, to + STEP, from, from + TILE);
		} else {
			memcpy(some, from, (size_t)size * 4);
			split_pairs(to, to + STEP, some, some + TILE);
		}
}

/* Line l of the grid to all planes; of one behind the last, its border. */
static void
copy_line(const struct plan *p, const struct band *b, int64_t l)
{
	uint16_t *to = b->planes + l * p->pitch * p->pixel;
	int64_t c, some, zeros = 1;
	const void *from = NULL;

	if (l < grid_lines(b->n, b->h)) {
		from = line_source(p, b, l);
		zeros = from == NULL ? p->pitch : 1;
	}
	for (c = 0; c < p->in; c += STEP, to += p->plane * p->pixel) {
		memset(to, 0, (size_t)(zeros * p->pixel) * 2);
		if (from == NULL)
			continue;
		some = min64(p->in - c, STEP);
		if (p->split)
			split_pixels(p, to + p->pixel, (const float *)from + c,
			    some);
		else
			copy_pixels(p, to + p->pixel, (const uint16_t *)from +
			    c, some);
	}
}

/* 32 channels of two rows to a row of each of two tiles. */
static inline __attribute__((always_inline)) void
pair_rows(uint16_t *to, const uint16_t *even, const uint16_t *odd)
{
	typedef uint16_t h32 __attribute__((vector_size(64)));
	h32 a, b, c;

	memcpy(&a, even, sizeof(a));
	memcpy(&b, odd, sizeof(b));
	c = __builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36,
	    5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45,
	    14, 46, 15, 47);
	memcpy(to, &c, sizeof(c));
	c = __builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20,
	    52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28,
	    60, 29, 61, 30, 62, 31, 63);
	memcpy(to + TILE_SIZE, &c, sizeof(c));
}

/* The same of n channels of `rows` rows, and zeros. */
static void
pair_some(uint16_t *to, const uint16_t *from, int64_t ld, int64_t rows,
    int64_t n)
{
	uint16_t copy[2][PANEL] = { { 0 }, { 0 } };
	int64_t i;

	for (i = 0; i < rows; i++)
		memcpy(copy[i], from + i * ld, (size_t)n * 2);
	pair_rows(to, copy[0], copy[1]);
}

/*
 * Weights of steps k.. and panels v.. on their way to [panel][step][tap][2]
 * tiles, piece by piece.
 */
struct making {
	uint16_t *to;
	int64_t v, panels, k, steps;
	int64_t next, count;		/* pieces */
	int64_t some;			/* of them at a time */
};

/* 16 rows of 32 of w, some of them there, to a tile, or to two of f32. */
static void
turn_some(const struct plan *p, uint16_t *to, const void *w, int64_t ld,
    int64_t rows, int64_t n)
{
	size_t size = lpo_dtype_bytes(dtype(p));
	float copy[TILE * STEP];
	int64_t i;

	memset(copy, 0, sizeof(copy));
	for (i = 0; i < rows; i++)
		memcpy(elem(dtype(p), copy, i * STEP), elem(dtype(p), w,
		    i * ld), (size_t)n * size);
	if (p->split)
		split_turn(to, copy, STEP);
	else
		tile_turn(to, (const uint16_t *)(const void *)copy, STEP);
}

/*
 * Forward, weights [o][tap][c] of 16 results and a step are a piece, a tile.
 * What is not there becomes zeros.
 */
static void
turn_piece(const struct plan *p, const struct making *m)
{
	int64_t j = m->next % m->steps, t = m->next / m->steps % TAPS;
	int64_t half = m->next / (m->steps * TAPS), ld = TAPS * p->in, i;
	int64_t o = m->v * PANEL + half * TILE, c = (m->k + j) * STEP;
	int64_t no = min64(p->out - o, TILE), nc = min64(p->in - c, STEP);
	const void *from = elem(dtype(p), p->weight, o * ld + t * p->in + c);
	uint16_t *to = m->to + ((half / 2 * m->steps + j) * TAPS + t) *
	    tap_elements(p) + half % 2 * TILE_SIZE;
	int64_t ahead = AHEAD * STEP;

	if (nc < STEP || no < TILE) {
		turn_some(p, to, from, ld, no, nc);
		return;
	}
	/* at the end of a block's channels, of the next tap */
	if (j + AHEAD >= m->steps)
		ahead += p->in - m->steps * STEP;
	for (i = 0; i < TILE; i++)
		__builtin_prefetch(elem(dtype(p), from, i * ld + ahead));
	if (p->split) {
		for (i = 0; i < TILE; i++)
			__builtin_prefetch(elem(LPO_F32, from, i * ld + ahead +
			    TILE));
		split_turn(to, from, ld);
	} else {
		tile_turn(to, from, ld);
	}
}

/*
 * Backwards, weights [c][tap][o] of two channels and a tap are a piece, a row
 * of many tiles: so they are read in the order that they lie in.
 */
static void
pair_piece(const struct plan *p, const struct making *m)
{
	int64_t pair = m->next / TAPS, t = m->next % TAPS;
	int64_t next = m->steps * TAPS * 2 * TILE_SIZE, ld = TAPS * p->out;
	int64_t c = m->k * STEP + 2 * pair, o = m->v * PANEL;
	int64_t rows = min64(2, p->in - c), i, n;
	const uint16_t *from = (const uint16_t *)p->weight + c * ld +
	    (TAPS - 1 - t) * p->out + o;
	uint16_t *to = m->to + (pair / TILE * TAPS + t) * 2 * TILE_SIZE +
	    pair % TILE * STEP;

	for (i = 0; i < m->panels; i++, from += PANEL, to += next) {
		n = min64(p->out - o - i * PANEL, PANEL);
		if (rows < 2 || n < PANEL) {
			pair_some(to, from, ld, rows, n);
			continue;
		}
		__builtin_prefetch(from + 2 * ld);
		__builtin_prefetch(from + 3 * ld);
		pair_rows(to, from, from + ld);
	}
}

/* 32 channels of two rows to a row of each of two tiles, hi and lo. */
static inline void
split_rows(uint16_t *to, const float *first, const float *second)
{
	split_pairs(to, to + SPLIT_LO, first, second);
	split_pairs(to + TILE_SIZE, to + TILE_SIZE + SPLIT_LO, first + TILE,
	    second + TILE);
}

/* The same of f32, whose pairs are 16 channels apart. */
static void
split_piece(const struct plan *p, const struct making *m)
{
	int64_t pair = m->next / TAPS, t = m->next % TAPS, ld = TAPS * p->out;
	int64_t next = m->steps * TAPS * tap_elements(p), o = m->v * PANEL;
	int64_t c = m->k * STEP + pair / TILE * STEP + pair % TILE, i, n, r;
	const float *from = (const float *)p->weight + c * ld +
	    (TAPS - 1 - t) * p->out + o;
	uint16_t *to = m->to + (pair / TILE * TAPS + t) * tap_elements(p) +
	    pair % TILE * STEP;
	float copy[2][PANEL];

	for (i = 0; i < m->panels; i++, from += PANEL, to += next) {
		n = min64(p->out - o - i * PANEL, PANEL);
		if (c + TILE < p->in && n == PANEL) {
			__builtin_prefetch(from + ld);
			__builtin_prefetch(from + ld + TILE);
			__builtin_prefetch(from + (TILE + 1) * ld);
			__builtin_prefetch(from + (TILE + 1) * ld + TILE);
			split_rows(to, from, from + TILE * ld);
			continue;
		}
		memset(copy, 0, sizeof(copy));
		for (r = 0; r < 2 && c + r * TILE < p->in; r++)
			memcpy(copy[r], from + r * TILE * ld, (size_t)n * 4);
		split_rows(to, copy[0], copy[1]);
	}
}

static __attribute__((noinline)) void
make_some(const struct plan *p, struct making *m, int64_t pieces)
{
	int64_t end = min64(m->next + pieces, m->count);

	for (; m->next < end; m->next++)
		if (!p->back)
			turn_piece(p, m);
		else if (p->split)
			split_piece(p, m);
		else
			pair_piece(p, m);
}

#endif
