/*
 * Linear layers of bf16 rows on AMX tiles, forward and to x:
 *	y[m][cols] = x[m][depth] W + bias + residual
 * Rows of x are tiles as they lie.  A unit of work is some columns of some
 * rows.  W's tiles of these columns are made once and stay in L2, the panel:
 *	[strip of 32 columns][step of 32][2 tiles][16 pairs][16 columns][2]
 * A deep product takes a block of the depth at a time; between them sums lie
 * in memory, in f32.
 *
 * f32 is split (split.h): of a step the panel has the tiles of hi, then those
 * of lo, and rows of x are copied as [step][hi, lo][32], the next 32 between
 * the products of these, to which the vector units have little to do.
 *
 * An element is one sum in the order of the depth, whatever the blocks, the
 * threads and the rows beside it; then bias and residual are added and the
 * result is rounded once.
 */
#include "kernels/amx.h"
#include "kernels/gemm.h"
#include "kernels/ints.h"
#include "kernels/levels.h"
#include "kernels/onednn.h"
#include "kernels/split.h"

#include <omp.h>

enum {
	STEP = 32,		/* of the depth, in a tile product */
	PAIR = 32,		/* rows or columns of two tiles */
	TILE_SIZE = 512,	/* elements of a tile */
	SUMS = 4 * 256,		/* floats of 2 x 2 tiles of sums */
	AHEAD = 16,		/* steps that f32 is fetched before */
#ifdef LPO_AMX_EMULATE
	MOST_STEPS = 2,		/* small: to meet all of it in small tests */
	PANEL_KB = 12
#else
	MOST_STEPS = 80,	/* of a block; split: half as many */
	PANEL_KB = 1100		/* of L2; rows and sums need some too */
#endif
};

#ifdef LPO_AMX_EMULATE
#define SERIAL_FLOPS	5e5
#else
#define SERIAL_FLOPS	2e6		/* waking threads costs more */
#endif

struct plan {
	enum lpo_pass pass;
	int split;			/* f32, else bf16 */
	int64_t m, cols, depth;
	const void *x, *w, *more;	/* more: the residual, or NULL */
	const float *bias;
	void *y;
	int64_t steps, block;		/* of the depth: all, in a block */
	int64_t strips, rows;		/* of a unit, in pairs of tiles */
	int64_t col_parts, row_parts;	/* of the units */
	int threads;
	float *sums;			/* kept, by pairs of rows and columns */
	char *room;			/* of the threads */
};

/* Elements of 32 rows or columns and a step. */
static inline int64_t
step_elements(const struct plan *p)
{
	return 2 * TILE_SIZE * (1 + p->split);
}

static inline int64_t
panel_elements(const struct plan *p)
{
	return p->strips * p->block * step_elements(p);
}

/* 32 rows of a block; split, the next 32 too. */
static inline int64_t
rows_elements(const struct plan *p)
{
	return p->block * step_elements(p) * (1 + p->split);
}

static inline size_t
thread_bytes(const struct plan *p)
{
	return lpo_aligned((size_t)(2 * (panel_elements(p) +
	    rows_elements(p)) + 4 * 2 * SUMS));
}

/* What is kept from one block of the depth to the next, of all units. */
static inline size_t
sums_bytes(const struct plan *p)
{
	return p->block == p->steps ? 0 : (size_t)(div_up(p->m, PAIR) *
	    div_up(p->cols, PAIR) * SUMS * 4);
}

/*
 * Cycles per step of the slowest thread, about: tiles made of W, rows fetched
 * into L2, products.
 */
static double
cycles(const struct plan *p)
{
	double units = (double)div_up(p->col_parts * p->row_parts, p->threads);
	double again = (double)div_up(p->col_parts, p->threads);
	double strips = (double)p->strips, rows = (double)p->rows;

	/* A thread makes a panel once for all its units with these columns. */
	if (p->block < p->steps || again > units)
		again = units;
	if (p->split)
		return again * strips * 600 + units * rows * (500 + strips *
		    220);
	return again * strips * 200 + units * rows * (200 + strips * 110);
}

/* Of the panel, at most. */
static int64_t
most_strips(const struct plan *p)
{
	int64_t most = (PANEL_KB << 10) / (p->block * 2 * step_elements(p));

	return most < 1 ? 1 : most;
}

/*
 * The units, which change no bit: columns in so many parts, and rows in one or
 * in so many that a thread gets one or two units.
 */
static void
choose_units(struct plan *p)
{
	int64_t wide = div_up(p->cols, PAIR), high = div_up(p->m, PAIR);
	int64_t least = div_up(wide, most_strips(p)), c, i;
	double best = -1, cost;
	struct plan q = *p;

	for (c = least; c <= wide && c <= least + 2 * p->threads; c++)
		for (i = 0; i <= 2; i++) {
			q.strips = div_up(wide, c);
			q.col_parts = div_up(wide, q.strips);
			q.rows = div_up(high, i == 0 ? 1 : div_up(i *
			    p->threads, q.col_parts));
			q.row_parts = div_up(high, q.rows);
			cost = cycles(&q);
			if (best >= 0 && cost >= best)
				continue;
			best = cost;
			*p = q;
		}
	/* One panel for all: small units cost nothing, and wait for no one. */
	if (p->col_parts == 1 && p->block == p->steps) {
		p->rows = min64(p->rows, div_up(high, 8 * p->threads));
		p->row_parts = div_up(high, p->rows);
	}
}

static void
make_plan(struct plan *p, const lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t m, int64_t n, int64_t k)
{
	double flops = 2. * (double)m * (double)(n * k);

	memset(p, 0, sizeof(*p));
	p->pass = pass;
	p->split = dt == LPO_F32;
	p->m = m;
	p->cols = pass == LPO_FWD ? n : k;
	p->depth = pass == LPO_FWD ? k : n;
	p->steps = p->depth / STEP;
	p->block = div_up(p->steps, div_up(p->steps, MOST_STEPS >> p->split));
	p->threads = flops < SERIAL_FLOPS ? 1 : be->threads;
	choose_units(p);
}

/* 32 rows of 16 to a tile: two rows side by side. */
static inline __attribute__((always_inline)) void
pair_tile(uint16_t *to, const uint16_t *w, int64_t ld)
{
	h16 a, b;
	w16 r;
	int i;

#pragma GCC unroll 16
	for (i = 0; i < TILE; i++) {
		memcpy(&a, w + 2 * i * ld, sizeof(a));
		memcpy(&b, w + (2 * i + 1) * ld, sizeof(b));
		r = __builtin_convertvector(a, w16) |
		    __builtin_convertvector(b, w16) << 16;
		memcpy(to + i * STEP, &r, sizeof(r));
	}
}

/* The same of f32: to a tile of hi and one of lo. */
static void
split_tile(uint16_t *to, const float *w, int64_t ld)
{
	int i;

	for (i = 0; i < TILE; i++)
		split_pairs(to + i * STEP, to + SPLIT_LO + i * STEP, w + i *
		    ld, w + (i + TILE) * ld);
}

/* Tiles of columns c .. c+n-1 and steps k .. k+steps-1. */
static void
make_panel(const struct plan *p, uint16_t *to, int64_t c, int64_t n,
    int64_t k, int64_t steps)
{
	const uint16_t *h = p->w;
	const float *f = p->w;
	int64_t i, s, at;

#define TO(i, s) (to + ((i) / PAIR * steps + (s)) * step_elements(p) + \
    (i) / TILE % 2 * TILE_SIZE)
	if (p->pass == LPO_FWD)
		for (i = 0; i < n; i += TILE)
			for (s = 0; s < steps; s++) {
				at = (c + i) * p->depth + (k + s) * STEP;
				if (p->split)
					split_turn(TO(i, s), f + at, p->depth);
				else
					tile_turn(TO(i, s), h + at, p->depth);
			}
	else
		for (s = 0; s < steps; s++)
			for (i = 0; i < n; i += TILE) {
				at = (k + s) * STEP * p->cols + c + i;
				if (p->split)
					split_tile(TO(i, s), f + at, p->cols);
				else
					pair_tile(TO(i, s), h + at, p->cols);
			}
#undef TO
}

/* 32 rows of x that are split into [row][step][hi, lo][32], step by step. */
struct splitting {
	const float *x;			/* the next step */
	uint16_t *to;
	int64_t step, steps, rows;	/* of this row; rows that are left */
	int64_t ld, each;
};

/* Rows r.. of a block of steps; what is no row becomes zeros. */
static struct splitting
begin_split(const struct plan *p, uint16_t *to, int64_t r, int64_t k,
    int64_t steps)
{
	int64_t rows = min64(PAIR, p->m - r), ld = steps * 2 * STEP;

	memset(to + rows * ld, 0, (size_t)((PAIR - rows) * ld) * 2);
	return (struct splitting){ (const float *)p->x + r * p->depth + k *
	    STEP, to, 0, steps, rows, p->depth - steps * STEP, 0 };
}

static inline __attribute__((always_inline)) void
split_some(struct splitting *s, int64_t count)
{
	const float *ahead;

	for (; count > 0 && s->rows > 0; count--) {
		ahead = s->x + AHEAD * STEP + (s->step + AHEAD < s->steps ?
		    0 : s->ld);
		__builtin_prefetch(ahead);
		__builtin_prefetch(ahead + TILE);
		split_pairs(s->to, s->to + STEP, s->x, s->x + TILE);
		s->to += 2 * STEP;
		s->x += STEP;
		if (++s->step == s->steps) {
			s->step = 0;
			s->x += s->ld;
			s->rows--;
		}
	}
}

/*
 * Sums that become y beside the next products, some rows at each step: the
 * vector units have little else to do, and memory is slow to take them.  So
 * are the rows split that are next.
 */
struct beside {
	const float *c;			/* [2][2][16][16] */
	const float *bias;
	const void *more;
	void *y;
	int64_t ld, cols, row, rows, each;
	struct splitting next;
};

/* 32 columns, or 16, rounded. */
static inline __attribute__((always_inline)) void
store_bf16(uint16_t *y, const vf *v, int64_t cols)
{
#ifdef __AVX512BF16__
	if (cols > TILE) {
		__m512bh h = _mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]);

		memcpy(y, &h, sizeof(h));
	} else {
		__m256bh h = _mm512_cvtneps_pbh((__m512)v[0]);

		memcpy(y, &h, sizeof(h));
	}
#else
	int64_t j;

	for (j = 0; j < cols / VL; j++)
		vf_store_bf16(y + j * VL, v[j]);
#endif
}

/* A row's 32 columns or 16: bias and residual in f32, then it is rounded. */
static inline __attribute__((always_inline)) void
finish_row(const struct beside *e, int split, int64_t i)
{
	const enum lpo_dtype dt = split ? LPO_F32 : LPO_BF16;
	const float *c = e->c + i / TILE * 512 + i % TILE * TILE;
	int64_t at = i * e->ld, j;
	vf v[PAIR / VL];

#pragma GCC unroll 8
	for (j = 0; j < PAIR / VL; j++) {
		if (j * VL >= TILE && e->cols <= TILE)
			break;
		v[j] = vf_load(c + j * VL / TILE * 256 + j * VL % TILE);
		if (e->bias != NULL)
			v[j] += vf_load(e->bias + j * VL);
		if (e->more != NULL)
			v[j] += vld_whole(dt, e->more, at + j * VL);
		if (split)
			vst_whole(dt, e->y, at + j * VL, v[j]);
	}
	if (!split)
		store_bf16((uint16_t *)e->y + at, v, e->cols);
}

static inline __attribute__((always_inline)) void
finish_rows(struct beside *e, int split, int64_t count)
{
	int64_t end = min64(e->row + count, e->rows), i;

	for (i = e->row; i < end; i++)
		finish_row(e, split, i);
	e->row = end;
}

/* One step: 32 rows at a and a2, ld apart, times two tiles at b. */
static inline __attribute__((always_inline)) void
one_step(int two_a, int two_b, const uint16_t *a, const uint16_t *a2,
    int64_t ld, const uint16_t *b)
{
	tile_load(4, a, ld * 2);
	tile_load(6, b, 64);
	tile_dp(0, 4, 6);
	if (two_b) {
		tile_load(7, b + TILE_SIZE, 64);
		tile_dp(1, 4, 7);
	}
	if (two_a) {
		tile_load(5, a2, ld * 2);
		tile_dp(2, 5, 6);
		if (two_b)
			tile_dp(3, 5, 7);
	}
}

/* c[2][2][16][16] (+)= 32 rows of x, ld apart, times the tiles of a strip. */
static inline __attribute__((always_inline)) void
products(int split, int two_a, int two_b, const uint16_t *a, int64_t ld,
    const uint16_t *b, int64_t steps, float *c, int more, struct beside *e)
{
	const uint16_t *a2 = a + TILE * ld;
	int64_t k;

	if (more) {
		tile_load(0, c, 64);
		tile_load(1, c + 256, 64);
		tile_load(2, c + 512, 64);
		tile_load(3, c + 768, 64);
	} else {
		tile_zero(0);
		tile_zero(1);
		tile_zero(2);
		tile_zero(3);
	}
	for (k = 0; k < steps; k++) {
		if (split)
			split_step(two_a, two_b, a, a2, ld, b);
		else
			one_step(two_a, two_b, a, a2, ld, b);
		a += STEP << split;
		a2 += STEP << split;
		b += 2 * TILE_SIZE << split;
		finish_rows(e, split, e->each);
		if (split)
			split_some(&e->next, e->next.each);
	}
	tile_store(0, c, 64);
	tile_store(1, c + 256, 64);
	tile_store(2, c + 512, 64);
	tile_store(3, c + 768, 64);
}

static void
run_products(int split, int two_a, int two_b, const uint16_t *a, int64_t ld,
    const uint16_t *b, int64_t steps, float *c, int more, struct beside *e)
{
	switch (split << 2 | two_a << 1 | two_b) {
	case 0: products(0, 0, 0, a, ld, b, steps, c, more, e); break;
	case 1: products(0, 0, 1, a, ld, b, steps, c, more, e); break;
	case 2: products(0, 1, 0, a, ld, b, steps, c, more, e); break;
	case 3: products(0, 1, 1, a, ld, b, steps, c, more, e); break;
	case 4: products(1, 0, 0, a, ld, b, steps, c, more, e); break;
	case 5: products(1, 0, 1, a, ld, b, steps, c, more, e); break;
	case 6: products(1, 1, 0, a, ld, b, steps, c, more, e); break;
	default: products(1, 1, 1, a, ld, b, steps, c, more, e);
	}
}

/* What a thread has: a panel, of which part; rows filled up; two of sums. */
struct own {
	uint16_t *panel, *rows;
	float *sums;
	int64_t part;
};

/* Rows of x, ld apart: where they lie, or copied and filled up with zeros. */
static const uint16_t *
rows_of_x(const struct plan *p, const struct own *o, int64_t r, int64_t k,
    int64_t steps, int64_t *ld)
{
	const uint16_t *x = (const uint16_t *)p->x + r * p->depth + k * STEP;
	int64_t i;

	*ld = p->depth;
	if (p->m - r >= PAIR)
		return x;
	*ld = steps * STEP;
	memset(o->rows, 0, (size_t)(PAIR * *ld) * 2);
	for (i = 0; i < p->m - r; i++)
		memcpy(o->rows + i * *ld, x + i * p->depth, (size_t)*ld * 2);
	return o->rows;
}

/*
 * The same split: rows r + i of a unit with `rows`, from r on.  They have been
 * unless they are the first.  Then the next are begun, at the last ones' place.
 */
static const uint16_t *
split_of_x(const struct plan *p, const struct own *o, int64_t r, int64_t i,
    int64_t rows, int64_t k, int64_t steps, struct splitting *next)
{
	int64_t size = p->block * step_elements(p), odd = i / PAIR % 2;

	if (i == 0)
		*next = begin_split(p, o->rows, r, k, steps);
	split_some(next, PAIR * steps);
	if (i + PAIR < rows)
		*next = begin_split(p, o->rows + (1 - odd) * size, r + i +
		    PAIR, k, steps);
	next->each = div_up(PAIR, p->strips);
	return o->rows + odd * size;
}

/* All that is left of the last sums; then those of this place are next. */
static void
finish_next(const struct plan *p, struct beside *e, const float *c,
    int64_t row, int64_t rows, int64_t col, int64_t cols)
{
	const enum lpo_dtype dt = p->split ? LPO_F32 : LPO_BF16;
	int64_t at = row * p->cols + col;

	finish_rows(e, p->split, e->rows);
	e->c = c;
	e->bias = p->bias != NULL ? p->bias + col : NULL;
	e->more = p->more != NULL ? elem(dt, p->more, at) : NULL;
	e->y = elem(dt, p->y, at);
	e->cols = cols;
	e->rows = rows;
	e->row = 0;
}

/*
 * One block of the depth of a unit.  Sums that no block follows lie in one of
 * two places: one becomes y while the other fills.
 */
static void
run_block(const struct plan *p, const struct own *o, int64_t r, int64_t rows,
    int64_t c, int64_t cols, int64_t k, int64_t steps)
{
	int kept = p->block < p->steps, done = k + steps == p->steps;
	struct beside e = { .ld = p->cols, .each = div_up(PAIR, steps) };
	int64_t i, j, v = 0, ld, left, wide = div_up(p->cols, PAIR);
	const uint16_t *a;
	float *sums;

	for (i = 0; i < rows; i += PAIR) {
		left = min64(PAIR, rows - i);
		if (p->split) {
			ld = steps * 2 * STEP;
			a = split_of_x(p, o, r, i, rows, k, steps, &e.next);
		} else {
			a = rows_of_x(p, o, r + i, k, steps, &ld);
		}
		for (j = 0; j < cols; j += PAIR, v++) {
			sums = kept ? p->sums + ((r + i) / PAIR * wide +
			    (c + j) / PAIR) * SUMS : o->sums + v % 2 * SUMS;
			run_products(p->split, left > TILE, cols - j > TILE,
			    a, ld, o->panel + j / PAIR * steps *
			    step_elements(p), steps, sums, k > 0, &e);
			if (done)
				finish_next(p, &e, sums, r + i, left, c + j,
				    min64(PAIR, cols - j));
		}
	}
	finish_rows(&e, p->split, e.rows);
}

static void
run_unit(const struct plan *p, struct own *o, int64_t v)
{
	int64_t part = v / p->row_parts, k, steps;
	int64_t r = v % p->row_parts * p->rows * PAIR;
	int64_t c = part * p->strips * PAIR;
	int64_t rows = min64(p->rows * PAIR, p->m - r);
	int64_t cols = min64(p->strips * PAIR, p->cols - c);

	for (k = 0; k < p->steps; k += p->block) {
		steps = min64(p->block, p->steps - k);
		if (part != o->part || p->block < p->steps)
			make_panel(p, o->panel, c, cols, k, steps);
		o->part = part;
		run_block(p, o, r, rows, c, cols, k, steps);
	}
}

static void
run_plan(struct plan *p, void *scratch)
{
	int64_t v;

	p->sums = (float *)(void *)lpo_align_up(scratch);
	p->room = (char *)p->sums + sums_bytes(p);
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
	{
		uint16_t *room = (uint16_t *)(void *)(p->room +
		    thread_bytes(p) * (size_t)omp_get_thread_num());
		struct own o = { .panel = room, .part = -1 };

		o.rows = o.panel + panel_elements(p);
		o.sums = (float *)(void *)(o.rows + rows_elements(p));
		tile_config();
#pragma omp for schedule(dynamic)
		for (v = 0; v < p->col_parts * p->row_parts; v++)
			run_unit(p, &o, v);
		tile_release();
	}
}

/* By the layer alone: its bits do not depend on the number of rows. */
static int
is_candidate(const lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    int64_t n, int64_t k)
{
	int64_t cols = pass == LPO_FWD ? n : k;
	int64_t depth = pass == LPO_FWD ? k : n;

	return pass != LPO_BWD_WEIGHT && lpo_on_tiles(be, dt) && cols > 0 &&
	    cols % TILE == 0 && depth > 0 && depth % STEP == 0;
}

/* 0: not for tiles.  Enough for fewer rows, too. */
size_t
lpo_linear_tiles_bytes(const lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t m, int64_t n, int64_t k)
{
	size_t bytes, with_alpha;
	struct plan p;

	if (m < 1 || !is_candidate(be, pass, dt, n, k))
		return 0;
	make_plan(&p, be, pass, dt, m, n, k);
	p.strips = min64(most_strips(&p), div_up(p.cols, PAIR));
	bytes = 64 + sums_bytes(&p) + thread_bytes(&p) * (size_t)be->threads;
	with_alpha = OTHER(gemm_scratch_bytes)(m, p.cols, p.depth,
	    be->threads);
	return bytes > with_alpha ? bytes : with_alpha;
}

int
lpo_linear_fwd_amx(lpo_backend *be, enum lpo_dtype dt, void *y,
    const void *x, const void *w, const float *bias, const void *residual,
    int64_t m, int64_t n, int64_t k, float alpha, void *scratch)
{
	struct plan p;

	if (alpha != 1 || m < 1 || !is_candidate(be, LPO_FWD, dt, n, k))
		return OTHER(linear_fwd)(be, dt, y, x, w, bias, residual, m,
		    n, k, alpha, scratch);
	make_plan(&p, be, LPO_FWD, dt, m, n, k);
	p.x = x;
	p.w = w;
	p.bias = bias;
	p.more = residual;
	p.y = y;
	run_plan(&p, scratch);
	return 0;
}

int
lpo_linear_bwd_data_amx(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
    float alpha, int add, void *scratch)
{
	struct plan p;

	if (alpha != 1 || m < 1 || !is_candidate(be, LPO_BWD_DATA, dt, n, k))
		return OTHER(linear_bwd_data)(be, dt, dx, dy, w, m, n, k,
		    alpha, add, scratch);
	make_plan(&p, be, LPO_BWD_DATA, dt, m, n, k);
	p.x = dy;
	p.w = w;
	p.more = add ? dx : NULL;
	p.y = dx;
	run_plan(&p, scratch);
	return 0;
}

int
lpo_conv_fwd_amx(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s, void *scratch)
{
	if (lpo_conv_is_linear(s))
		return lpo_linear_fwd_amx(be, dt, y, x, w, bias, residual,
		    s->n * s->h * s->w, s->co, s->ci, 1, scratch);
	if (lpo_conv_tiles(be, LPO_FWD, dt, y, x, w, bias, residual, s,
	    scratch))
		return 0;
	return OTHER(conv_fwd)(be, dt, y, x, w, bias, residual, s, scratch);
}

int
lpo_conv_bwd_data_amx(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, const struct lpo_conv_shape *s, int add,
    void *scratch)
{
	if (lpo_conv_is_linear(s))
		return lpo_linear_bwd_data_amx(be, dt, dx, dy, w,
		    s->n * s->h * s->w, s->co, s->ci, 1, add, scratch);
	if (lpo_conv_tiles(be, LPO_BWD_DATA, dt, dx, dy, w, NULL, add ? dx :
	    NULL, s, scratch))
		return 0;
	return OTHER(conv_bwd_data)(be, dt, dx, dy, w, s, add, scratch);
}
