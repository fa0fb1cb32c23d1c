/*
 * How conv_amx.c cuts its work: bands of pixels, which tiles cover, blocks of
 * weights, units for the threads, and the memory for it.  No bit depends on
 * it.
 */
#ifndef LPO_CONV_PLAN_H
#define LPO_CONV_PLAN_H

#include "kernels/amx.h"
#include "kernels/gemm.h"
#include "kernels/ints.h"
#include "kernels/onednn.h"

enum {
	STEP = 32,		/* channels of a tile product */
	TILE_SIZE = 512,	/* elements of a tile; its sums: half as many */
	SUMS = 256,
	TAPS = 9,
	PANEL = 32,		/* channels of the result, of two tiles */
	HIGH = 3,		/* tiles of pixels that meet a panel at once */
	SPLIT_HIGH = 2,
	AHEAD = 16,		/* steps that weights are fetched before */
#ifdef LPO_AMX_EMULATE
	MOST_STEPS = 2,		/* small: to meet all of it in small tests */
	AHEAD_STEPS = 1,
	SHORT_STEPS = 1,
	FEW_TILES = 12,
	AHEAD_KB = 20,
	WEIGHT_KB = 40,
	SUMS_KB = 24,
	PLANE_KB = 20,
	OWN_KB = 40,
	SPAN_TILES = 4
#else
	MOST_STEPS = 30,	/* of a block: its weights stay in L2; split:
				   half as many */
	AHEAD_STEPS = 20,	/* the same where weights of two do */
	SHORT_STEPS = 15,
	FEW_TILES = 64,
	AHEAD_KB = 2 << 10,	/* of planes, which stay there too */
	WEIGHT_KB = 950,	/* of a group, beside what is read and summed */
	SUMS_KB = 1 << 10,
	PLANE_KB = 8 << 10,
	OWN_KB = 600,		/* weights; planes: twice as much */
	SPAN_TILES = 256	/* at least, to share out the work finer */
#endif
};

#ifdef LPO_AMX_EMULATE
#define SERIAL_FLOPS	2e5
#else
#define SERIAL_FLOPS	2e6		/* waking threads costs more */
#endif

/*
 * A call, in bands: whole images, or lines of one.  Tiles cover runs of the
 * band's pixels, which have a number on the grid; runs are what wastes least
 * of lines, images and the whole.
 */
struct plan {
	int back;			/* x is dy, y is dx */
	int split;			/* f32, else bf16 */
	int64_t pixel;			/* elements of a plane's pixel */
	int64_t high;			/* HIGH or SPLIT_HIGH */
	int64_t n, h, w, in, out;	/* images; channels of x and y */
	int64_t images, lines;		/* of a band */
	int64_t pitch, plane;		/* pixels of a line, of a plane */
	int64_t steps, panels;
	int64_t block;			/* steps of weights at a time */
	int64_t groups, group;		/* of panels; of one, at most */
	int64_t span;			/* tiles of one, at most */
	int ahead;			/* weights are made a block ahead */
	int own;			/* threads have bands of their own */
	int threads;
	const void *x, *weight, *more;
	void *y;
	const float *bias;
	char *planes, *room;		/* shared; of the threads */
};

/* Images i .. i+n-1, or n = 1 and lines y .. y+h-1; how tiles cover it. */
struct band {
	int64_t i, n, y, h;
	int64_t runs, run, per;		/* pixels of a run, tiles over it */
	int64_t run_lines;		/* from run to run within an image */
	uint16_t *planes;
};

static inline enum lpo_dtype
dtype(const struct plan *p)
{
	return p->split ? LPO_F32 : LPO_BF16;
}

/* Elements of a tap of a panel. */
static inline int64_t
tap_elements(const struct plan *p)
{
	return 2 * TILE_SIZE * (1 + p->split);
}

static int64_t
grid_lines(int64_t n, int64_t h)
{
	return n * (h + 1) + 1;
}

/* Pixels of a plane: a tile may hang over its end; lines of L1 are spread. */
static int64_t
plane_pixels(const struct plan *p, int64_t n, int64_t h)
{
	return (grid_lines(n, h) * p->pitch + TILE) | 1;
}

static struct band
make_band(const struct plan *p, int64_t number, char *planes)
{
	int64_t cuts = div_up(p->h, p->lines), i = number / cuts * p->images;
	int64_t y = number % cuts * p->lines;
	struct band b = { i, min64(p->images, p->n - i), y,
	    min64(p->lines, p->h - y), 0, 0, 0, 0, (void *)planes };
	const int64_t runs[] = { b.n * b.h, b.n, 1 };
	const int64_t size[] = { p->w, b.h * p->pitch - 1,
	    (b.n * (b.h + 1) - 1) * p->pitch - 1 };
	int k;

	for (k = 0; k < 3; k++)
		if (k == 0 || runs[k] * div_up(size[k], TILE) <
		    b.runs * b.per) {
			b.runs = runs[k];
			b.run = size[k];
			b.per = div_up(size[k], TILE);
			b.run_lines = k == 0 ? b.h : 1;
		}
	return b;
}

static inline int64_t
band_count(const struct plan *p)
{
	return div_up(p->n, p->images) * div_up(p->h, p->lines);
}

static inline int64_t
band_tiles(const struct band *b)
{
	return b->runs * b->per;
}

/* The grid's number of the first pixel of tile t. */
static inline int64_t
tile_pixel(const struct plan *p, const struct band *b, int64_t t)
{
	int64_t run = t / b->per;

	return (run / b->run_lines * (b->h + 1) + run % b->run_lines) *
	    p->pitch + t % b->per * TILE;
}

/* Which pixels of y the 16 rows of tile t are; -1: none. */
static void
tile_rows(const struct plan *p, const struct band *b, int64_t t, int64_t *at)
{
	int64_t k = tile_pixel(p, b, t), left = b->run - t % b->per * TILE;
	int64_t line = k / p->pitch, q = k % p->pitch, r;

	for (r = 0; r < TILE; r++) {
		at[r] = r < left && q < p->w && line % (b->h + 1) < b->h ?
		    ((b->i + line / (b->h + 1)) * p->h + b->y +
		    line % (b->h + 1)) * p->w + q : -1;
		if (++q == p->pitch) {
			q = 0;
			line++;
		}
	}
}

static inline size_t
weight_bytes(const struct plan *p)
{
	return (size_t)(p->group * p->block * TAPS * tap_elements(p)) * 2;
}

/* Sums between blocks; of one block only what is made and what is stored. */
static inline size_t
sums_bytes(const struct plan *p)
{
	return (size_t)(p->block < p->steps ? p->span * p->group :
	    2 * HIGH) * 2 *
	    SUMS * 4;
}

static inline size_t
planes_bytes(const struct plan *p)
{
	return lpo_aligned((size_t)(p->plane * p->steps * p->pixel) * 2);
}

/* Bands of whole images or of lines, all about as large, of some bytes. */
static void
cut_bands(struct plan *p, int64_t bytes)
{
	int64_t lines = bytes / (p->steps * p->pixel * 2 * p->pitch);

	p->lines = p->h;
	p->images = max64(1, min64(p->n, lines / (p->h + 1)));
	p->images = div_up(p->n, div_up(p->n, p->images));
	if (lines < grid_lines(1, p->h)) {
		p->lines = max64(1, min64(p->h, lines - 2));
		p->lines = div_up(p->h, div_up(p->h, p->lines));
	}
	p->plane = plane_pixels(p, p->images, p->lines);
}

/* Units of a band's work: blocks of weights, groups of panels, spans. */
static void
cut_units(struct plan *p)
{
	struct band b = make_band(p, 0, NULL);
	int64_t tiles = band_tiles(&b), spans, most;
	int few = tiles <= FEW_TILES;

	/*
	 * Few pixels: to make the weights takes as long as the products.
	 * Forward it is done between these.  Backwards their many short runs
	 * would hold these up; more panels at a time make the runs longer.
	 */
	p->ahead = few && !p->back && planes_bytes(p) <= AHEAD_KB << 10;
	most = div_up(p->ahead ? AHEAD_STEPS : few && p->back ? SHORT_STEPS :
	    MOST_STEPS, 1 + p->split);
	p->block = div_up(p->steps, div_up(p->steps, most));
	/* as many panels as fit, and as all threads find work with */
	p->group = 1;
	p->group = max64(1, (WEIGHT_KB << 10) / (int64_t)weight_bytes(p) /
	    (p->ahead ? 2 : 1));
	p->group = max64(1, min64(p->group, p->panels / p->threads));
	p->groups = div_up(p->panels, p->group);
	p->groups = min64(p->panels, div_up(p->groups, p->threads) *
	    p->threads);
	p->group = div_up(p->panels, p->groups);
	spans = max64(div_up(p->threads, p->groups), min64(tiles / SPAN_TILES,
	    div_up(4 * p->threads, p->groups)));
	p->span = div_up(tiles, min64(spans, tiles));
	if (p->block < p->steps)
		p->span = min64(p->span, max64(p->high, (SUMS_KB << 10) /
		    (p->group * 2 * SUMS * 4)));
	p->span = div_up(tiles, div_up(tiles, p->span));
}

static void
make_plan(struct plan *p, const lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	double flops = 2. * (double)(s->n * s->h * s->w) * TAPS *
	    (double)(s->ci * s->co);

	memset(p, 0, sizeof(*p));
	p->back = pass == LPO_BWD_DATA;
	p->split = dt == LPO_F32;
	p->pixel = STEP << p->split;
	p->high = p->split ? SPLIT_HIGH : HIGH;
	p->n = s->n;
	p->h = s->h;
	p->w = s->w;
	p->in = p->back ? s->co : s->ci;
	p->out = p->back ? s->ci : s->co;
	p->threads = flops < SERIAL_FLOPS ? 1 : be->threads;
	p->pitch = s->w + 1;
	p->steps = div_up(p->in, STEP);
	p->panels = div_up(p->out, PANEL);
	p->block = p->steps;
	p->group = p->panels;
	p->groups = 1;
	if (weight_bytes(p) <= OWN_KB << 10) {
		cut_bands(p, min64(OWN_KB << 11, s->n * (s->h + 1) *
		    p->pitch * p->steps * p->pixel * 2 / (2 * p->threads)));
		p->own = band_count(p) >= 2 * p->threads;
	}
	if (!p->own) {
		cut_bands(p, PLANE_KB << 10);
		cut_units(p);
	}
}

static inline size_t
room_bytes(const struct plan *p)
{
	return lpo_aligned(weight_bytes(p) * (p->ahead ? 2 : 1) +
	    sums_bytes(p) + (p->own ? planes_bytes(p) : 0));
}

static inline size_t
shared_bytes(const struct plan *p)
{
	return p->own ? 0 : planes_bytes(p);
}

#endif
