/*
 * How gradient_amx.c cuts its work: the grid of pixels, what a unit of work
 * takes, blocks of steps, and the memory for it.  The grid, which a shape
 * alone decides, is the order of a sum; the rest changes no bit.
 */
#ifndef LPO_GRADIENT_PLAN_H
#define LPO_GRADIENT_PLAN_H

#include "kernels/amx.h"
#include "kernels/ints.h"
#include "kernels/onednn.h"

enum {
	STEP = 32,		/* pixels of a tile product */
	TILE_SIZE = 512,	/* elements of a tile */
	PAIR = 32,		/* channels of two tiles */
#ifdef LPO_AMX_EMULATE
	LEAST_STEPS = 1,	/* small: to meet all of it in small tests */
	MOST_STEPS = 2,
	ROOM_KB = 60,
	SHARED_KB = 400
#else
	LEAST_STEPS = 16,	/* of a block, if there are as many */
	MOST_STEPS = 32,
	ROOM_KB = 1200,		/* of L2, for a unit's tiles and sums */
	SHARED_KB = 12 << 10
#endif
};

#ifdef LPO_AMX_EMULATE
#define SERIAL_FLOPS	5e5
#define WAIT_CYCLES	0
#else
#define SERIAL_FLOPS	2e6		/* waking threads costs more */
#define WAIT_CYCLES	1e5		/* until all threads have met, twice */
#endif

struct plan {
	struct lpo_conv_shape s;	/* n: images of one group */
	int64_t groups;
	float *dw;
	float alpha;
	const uint16_t *dy, *x;
	int64_t rows, pitch;		/* the grid of one image */
	int64_t steps, halo;		/* of a group; of X, so many more */
	int64_t phases;			/* copies of X: 1, or even and odd */
	int64_t block;			/* steps in L2 at a time */
	int64_t a_pairs, b_pairs;	/* of tiles, in a unit of work */
	int shared;			/* tiles of all steps, made once */
	int64_t a_ld, b_ld;		/* steps between channels of tiles */
	int threads;
	char *room;			/* of the threads */
	uint16_t *a, *b;		/* what they share */
};

static void
make_grid(struct plan *p)
{
	const struct lpo_conv_shape *s = &p->s;
	int64_t down = (s->kh - 1) / s->stride, shift;
	int64_t right = (s->kw - 1) / s->stride;
	/* One border serves the end of a line and the begin of the next. */
	int share = s->stride == 1;

	p->rows = max64(div_up(s->h + s->pad_top, s->stride),
	    s->ho + down - (share ? min64(s->pad_top, down) : 0));
	p->pitch = max64(div_up(s->w + s->pad_left, s->stride),
	    s->wo + right - (share ? min64(s->pad_left, right) : 0));
	shift = down * p->pitch + right;
	p->phases = shift > 0 ? 2 : 1;
	p->steps = div_up(((s->n - 1) * p->rows + s->ho - 1) * p->pitch +
	    s->wo, STEP);
	p->halo = div_up(shift / 2, STEP / 2);
}

/* Floats between rows of sums, which must not all meet in one set of L1. */
static inline int64_t
sums_ld(const struct plan *p)
{
	return p->b_pairs * PAIR + TILE;
}

static inline int64_t
a_elements(const struct plan *p)
{
	return 2 * TILE_SIZE * p->a_ld * (p->shared ? div_up(p->s.co, PAIR) :
	    p->a_pairs);
}

static inline int64_t
b_elements(const struct plan *p)
{
	return 2 * TILE_SIZE * p->b_ld * p->phases * (p->shared ?
	    div_up(p->s.ci, PAIR) : p->b_pairs);
}

static inline int64_t
pixel_elements(const struct plan *p)
{
	return div_up(max64(p->s.co, p->s.ci), PAIR) * PAIR;
}

/* What one thread needs of its own: zeros, its unit's sums, tiles. */
static inline size_t
thread_bytes(const struct plan *p)
{
	int64_t tiles = p->shared ? 0 : a_elements(p) + b_elements(p);

	return lpo_aligned((size_t)(2 * (tiles + pixel_elements(p)) +
	    4 * p->a_pairs * PAIR * p->s.kh * p->s.kw * sums_ld(p)));
}

static inline size_t
shared_bytes(const struct plan *p)
{
	return p->shared ? (size_t)(a_elements(p) + b_elements(p)) * 2 : 0;
}

/* Does what a unit works on for a block of steps stay in L2, and all else? */
static int
fits(const struct plan *p)
{
	int64_t tiles = 2 * p->a_pairs * p->block + 2 * p->b_pairs *
	    p->phases * (p->block + p->halo);

	return tiles * TILE_SIZE * 2 + 4 * p->a_pairs * p->b_pairs * PAIR *
	    PAIR * p->s.kh * p->s.kw <= ROOM_KB << 10 &&
	    shared_bytes(p) <= SHARED_KB << 10;
}

/*
 * Cycles per step of the slowest thread, about: tiles made of dY and X,
 * products, and sums fetched and put back.  Memory beyond L2 is slow beside
 * tiles, so mostly each thread makes the tiles it needs itself, and at once.
 */
static double
cycles(const struct plan *p, int64_t wide, int64_t high)
{
	int64_t a_parts = div_up(wide, p->a_pairs);
	int64_t b_parts = div_up(high, p->b_pairs);
	double a = (double)div_up(wide, a_parts), units, make;
	double b = (double)div_up(high, b_parts);
	double taps = (double)(p->s.kh * p->s.kw);
	double planes = (double)(min64(p->s.stride, p->s.kh) *
	    min64(p->s.stride, p->s.kw));
	double more = 1 + (double)p->halo / (double)p->block;
	double of_a = 500, of_b = 300 + 60 * (double)p->phases;

	units = (double)div_up(a_parts * b_parts, p->threads);
	make = units * (of_a * a + of_b * b * planes * more);
	if (p->shared)
		make = (of_a * (double)wide + of_b * (double)high) /
		    p->threads + units * 120 * (a + b * (double)p->phases) +
		    WAIT_CYCLES / (double)p->steps;
	return make + units * a * b * taps * (100 + 300 / (double)p->block);
}

/* The best unit for this block. */
static void
try_units(const struct plan *with, struct plan *best, double *least)
{
	static const int64_t sides[] = { 1, 2, 3, 4, 5, 6, 8, 10, 13, 16 };
	const int count = sizeof(sides) / sizeof(*sides);
	int64_t wide = div_up(with->s.co, PAIR);
	int64_t high = div_up(with->s.ci, PAIR);
	struct plan q = *with;
	double cost;
	int i, j;

	for (i = 0; i < count && sides[i] <= wide; i++)
		for (j = 0; j < count && sides[j] <= high; j++) {
			q.a_pairs = sides[i];
			q.b_pairs = sides[j];
			if (*least > 0 && !fits(&q))
				break;
			cost = cycles(&q, wide, high);
			if (*least > 0 && cost >= *least)
				continue;
			*least = cost;
			*best = q;
		}
}

/* The unit of work and the blocks of its steps; they change no bit. */
static void
choose_unit(struct plan *p)
{
	static const int64_t steps[] = { MOST_STEPS, LEAST_STEPS };
	struct plan q = *p;
	double least = 0;
	int64_t last = 0;
	int i;

	for (i = 0; i < 2; i++) {
		q.block = div_up(p->steps, div_up(p->steps, steps[i]));
		if (q.block == last)
			break;
		last = q.block;
		q.shared = 0;
		q.a_ld = q.block;
		q.b_ld = q.block + p->halo;
		try_units(&q, p, &least);
		if (p->s.stride > 1 || p->threads == 1)
			continue;
		q.shared = 1;
		q.a_ld = p->steps;
		q.b_ld = p->steps + p->halo;
		try_units(&q, p, &least);
	}
}

static void
make_plan(struct plan *p, const lpo_backend *be,
    const struct lpo_conv_shape *s, int64_t groups)
{
	double flops = 2. * (double)(s->n * s->ho * s->wo) *
	    (double)(s->kh * s->kw) * (double)(s->ci * s->co);

	memset(p, 0, sizeof(*p));
	p->s = *s;
	p->s.n = s->n / groups;
	p->groups = groups;
	p->threads = flops < SERIAL_FLOPS ? 1 : be->threads;
	make_grid(p);
	choose_unit(p);
}

#endif
