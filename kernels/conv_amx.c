/*
 * 3x3 convolutions of bf16 images on AMX tiles, at stride 1 with a border of
 * one, and the same backwards to the input:
 *	y[p][o] = sum over c, taps of x[p + tap][c] w[o][tap][c]
 *	dx[p][c] = sum over o, taps of dy[p - tap][o] w[o][tap][c]
 * What is read is copied into planes of 32 channels, [pixels][32], with a
 * border of zeros: its images lie one below the other, and one border serves
 * the end of a line and the begin of the next.  A tile is 16 pixels in a row,
 * a tap one shift of all pixel numbers.  The weights are brought into tiles
 * [16 channel pairs][16][2], for two tiles of results at a time, a panel.
 *
 * f32 is split (split.h): pixels of a plane are [hi, lo][32], and of a panel
 * the tiles of lo follow those of hi.
 *
 * An element is one sum in the order of (32 channels, tap), whatever the
 * number of images and threads; the blocks below do not change it.
 */
#include "kernels/amx.h"
#include "kernels/gemm.h"
#include "kernels/ints.h"
#include "kernels/levels.h"
#include "kernels/onednn.h"
#include "kernels/split.h"

#include <omp.h>

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

/*
 * Results that are summed up and not yet stored: they are between the next
 * products, which leave the vector units idle.  [tile][2] sums of a panel.
 */
struct waiting {
	int64_t pixels[HIGH * TILE];	/* of y; -1: none */
	int64_t o;
	const float *sums;
	int next, count;		/* rows */
};

/* A pixel's results o.., n <= 16: sums, bias and what is added, rounded. */
static inline __attribute__((always_inline)) void
put_row(const struct plan *p, enum lpo_dtype dt, int64_t pixel, int64_t o,
    int64_t n, const float *sums)
{
	int64_t at = pixel * p->out + o, i, some;
	vf v;

	for (i = 0; i < n; i += VL) {
		some = min64(n - i, VL);
		v = vf_load(sums + i);
		if (p->bias != NULL)
			v += vld_n(LPO_F32, p->bias, o + i, some);
		if (p->more != NULL)
			v += vld_n(dt, p->more, at + i, some);
		vst_n(dt, p->y, at + i, some, v);
	}
}

/* The same of a panel, n <= 32. */
static inline __attribute__((always_inline)) void
put_pixel(const struct plan *p, enum lpo_dtype dt, int64_t pixel, int64_t o,
    int64_t n, const float *sums)
{
	put_row(p, dt, pixel, o, min64(n, TILE), sums);
	if (n > TILE)
		put_row(p, dt, pixel, o + TILE, min64(n - TILE, TILE), sums +
		    SUMS);
}

/* The next `rows` of those that wait. */
static inline void
put_some(const struct plan *p, struct waiting *l, int rows)
{
	int end = l->next + rows < l->count ? l->next + rows : l->count, r;
	const float *from;

	for (r = l->next; r < end; r++) {
		if (l->pixels[r] < 0)
			continue;
		from = l->sums + r / TILE * 2 * SUMS + r % TILE * TILE;
		if (p->split)
			put_pixel(p, LPO_F32, l->pixels[r], l->o, p->out -
			    l->o, from);
		else
			put_pixel(p, LPO_BF16, l->pixels[r], l->o, p->out -
			    l->o, from);
	}
	l->next = end;
}

/* One tap: tiles of pixels at a0, a1, a2 meet the two of a panel at b. */
static inline __attribute__((always_inline)) void
one_tap(int split, int tiles, const uint16_t *a0, const uint16_t *a1,
    const uint16_t *a2, const uint16_t *b)
{
	if (split) {
		split_step(tiles > 1, 1, a0, a1, 2 * STEP, b);
		return;
	}
	tile_load(6, a0, 64);
	tile_load(7, b, 64);
	tile_dp(0, 6, 7);
	if (tiles > 1) {
		tile_load(6, a1, 64);
		tile_dp(2, 6, 7);
	}
	if (tiles > 2) {
		tile_load(6, a2, 64);
		tile_dp(4, 6, 7);
	}
	tile_load(7, b + TILE_SIZE, 64);
	if (tiles > 2) {
		tile_dp(5, 6, 7);
		tile_load(6, a1, 64);
	}
	if (tiles > 1) {
		tile_dp(3, 6, 7);
		tile_load(6, a0, 64);
	}
	tile_dp(1, 6, 7);
}

/* The lines of two tiles of sums to L1, before they are written. */
static inline __attribute__((always_inline)) void
fetch_sums(const float *c)
{
	int i;

#pragma GCC unroll 32
	for (i = 0; i < 2 * TILE; i++)
		__builtin_prefetch(c + i * TILE, 1);
}

/*
 * The sums c[tile][2] (+)= products of `tiles` tiles of pixels, that begin at
 * a[], and a panel.
 */
static inline __attribute__((always_inline)) void
products(const struct plan *p, int split, int tiles,
    const uint16_t *const *a, const uint16_t *b, int64_t steps, float *c,
    int add, struct waiting *l, struct making *m)
{
	const uint16_t *a0 = a[0], *a1 = a[tiles > 1 ? 1 : 0];
	const uint16_t *a2 = a[tiles > 2 ? 2 : 0];
	int rows = (int)div_up(p->high * TILE, steps * TAPS / 3);
	int64_t px = STEP << split, line = p->pitch * px;
	int64_t next = p->plane * px - 3 * line, tap = 2 * TILE_SIZE << split;
	int64_t k, i;

	if (add) {
		tile_load(0, c, 64);
		tile_load(1, c + SUMS, 64);
		if (tiles > 1) {
			tile_load(2, c + 2 * SUMS, 64);
			tile_load(3, c + 3 * SUMS, 64);
		}
		if (tiles > 2) {
			tile_load(4, c + 4 * SUMS, 64);
			tile_load(5, c + 5 * SUMS, 64);
		}
	} else {
		tile_zero(0);
		tile_zero(1);
		tile_zero(2);
		tile_zero(3);
		tile_zero(4);
		tile_zero(5);
	}
	for (k = 0; k < steps; k++) {
		for (i = 0; i < 3; i++) {
			if (k == steps - 1)
				fetch_sums(c + i * 2 * SUMS);
			one_tap(split, tiles, a0, a1, a2, b);
			one_tap(split, tiles, a0 + px, a1 + px, a2 + px, b +
			    tap);
			if (l->next < l->count)
				put_some(p, l, rows);
			if (m->next < m->count)
				make_some(p, m, m->some);
			one_tap(split, tiles, a0 + 2 * px, a1 + 2 * px, a2 +
			    2 * px, b + 2 * tap);
			a0 += line;
			a1 += line;
			a2 += line;
			b += 3 * tap;
		}
		a0 += next;
		a1 += next;
		a2 += next;
	}
	/* in the order that they are ready in */
	tile_store(0, c, 64);
	if (tiles > 1)
		tile_store(2, c + 2 * SUMS, 64);
	if (tiles > 2) {
		tile_store(4, c + 4 * SUMS, 64);
		tile_store(5, c + 5 * SUMS, 64);
	}
	if (tiles > 1)
		tile_store(3, c + 3 * SUMS, 64);
	tile_store(1, c + SUMS, 64);
}

static void
run_products(const struct plan *p, int tiles, const uint16_t *const *a,
    const uint16_t *b, int64_t steps, float *c, int add, struct waiting *l,
    struct making *m)
{
	if (p->split && tiles == 2)
		products(p, 1, 2, a, b, steps, c, add, l, m);
	else if (p->split)
		products(p, 1, 1, a, b, steps, c, add, l, m);
	else if (tiles == 3)
		products(p, 0, 3, a, b, steps, c, add, l, m);
	else if (tiles == 2)
		products(p, 0, 2, a, b, steps, c, add, l, m);
	else
		products(p, 0, 1, a, b, steps, c, add, l, m);
}

/* A block of steps of a unit: a group of panels, a span of tiles. */
struct block {
	int64_t v, panels, first, tiles, k, steps;
};

/*
 * Tiles t .. t+n-1 of the span, n <= HIGH.  The last block's results are left
 * waiting.
 */
static void
run_tiles(const struct plan *p, const struct band *b, const struct block *u,
    int64_t t, int tiles, const uint16_t *weights, float *sums,
    struct waiting *l, struct making *m)
{
	int last = u->k + u->steps == p->steps, whole = p->block == p->steps;
	float *c = sums + (whole ? 0 : t * u->panels * 2 * SUMS);
	int64_t pixels[HIGH * TILE], i;
	const uint16_t *a[HIGH];

	for (i = 0; i < tiles; i++) {
		a[i] = b->planes + (u->k * p->plane + tile_pixel(p, b,
		    u->first + t + i)) * p->pixel;
		if (last)
			tile_rows(p, b, u->first + t + i, pixels + i * TILE);
	}
	for (i = 0; i < u->panels; i++) {
		/* Two take turns where sums need not be kept. */
		if (whole)
			c = l->sums == sums ? sums + HIGH * 2 * SUMS : sums;
		run_products(p, tiles, a, weights, u->steps, c, u->k > 0, l,
		    m);
		if (last) {
			put_some(p, l, l->count);
			memcpy(l->pixels, pixels, sizeof(pixels));
			l->o = (u->v + i) * PANEL;
			l->sums = c;
			l->next = 0;
			l->count = tiles * TILE;
		}
		weights += u->steps * TAPS * tap_elements(p);
		c += tiles * 2 * SUMS;
	}
}

static void
run_block(const struct plan *p, const struct band *b, const struct block *u,
    const uint16_t *weights, float *sums, struct making *m)
{
	int64_t parts = div_up(u->tiles, p->high), i, t, next;
	struct waiting l = { .count = 0 };

	for (i = t = 0; i < parts; i++, t = next) {
		next = u->tiles * (i + 1) / parts;
		run_tiles(p, b, u, t, (int)(next - t), weights, sums, &l, m);
	}
	put_some(p, &l, l.count);
}

/* The block after this one, of the same unit or of one not yet taken; or 0. */
static int
next_block(const struct plan *p, const struct band *b, struct block *u,
    int64_t *taken)
{
	int64_t spans = div_up(band_tiles(b), p->span), unit, g;

	u->k += u->steps;
	if (u->k == p->steps) {
#pragma omp atomic capture
		unit = (*taken)++;
		if (unit >= p->groups * spans)
			return 0;
		g = unit / spans;
		u->v = p->panels * g / p->groups;
		u->panels = p->panels * (g + 1) / p->groups - u->v;
		u->first = unit % spans * p->span;
		u->tiles = min64(p->span, band_tiles(b) - u->first);
		u->k = 0;
	}
	u->steps = min64(p->block, p->steps - u->k);
	return 1;
}

/* Block u's weights are to be made, while block `during` runs if there is. */
static struct making
begin_weights(const struct plan *p, const struct block *u,
    const struct block *during, uint16_t *to)
{
	struct making m = { to, u->v, u->panels, u->k, u->steps, 0, 0, 0 };

	m.count = u->steps * TAPS * (p->back ? TILE : 2 * u->panels);
	if (during != NULL)
		m.some = div_up(m.count, div_up(during->tiles, p->high) *
		    during->panels * during->steps * 3);
	return m;
}

/*
 * Called by all threads: units, block by block.  The next one's weights are
 * made between the products of this one, or after them.
 */
static void
run_units(const struct plan *p, const struct band *b, int64_t *taken,
    char *room)
{
	uint16_t *weights[2] = { (uint16_t *)(void *)room,
	    (uint16_t *)(void *)(room + (p->ahead ? weight_bytes(p) : 0)) };
	float *sums = (float *)(void *)(room + weight_bytes(p) *
	    (p->ahead ? 2 : 1));
	struct block now, next = { .k = p->steps };
	struct making m, none = { .count = 0 };
	int more = next_block(p, b, &next, taken), i;

	if (!more)
		return;
	m = begin_weights(p, &next, NULL, weights[0]);
	make_some(p, &m, m.count);
	for (i = 0; more; i ^= 1) {
		now = next;
		more = next_block(p, b, &next, taken);
		m = more ? begin_weights(p, &next, &now, weights[i ^ 1]) :
		    none;
		run_block(p, b, &now, weights[i], sums, p->ahead ? &m : &none);
		make_some(p, &m, m.count);
	}
}

/* Called by all threads, which share each band. */
static void
run_shared(const struct plan *p, int64_t *taken, char *room)
{
	struct band b;
	int64_t i, l;

	for (i = 0; i < band_count(p); i++) {
		b = make_band(p, i, p->planes);
#pragma omp single nowait
		*taken = 0;
#pragma omp for schedule(static)
		for (l = 0; l <= grid_lines(b.n, b.h); l++)
			copy_line(p, &b, l);
		run_units(p, &b, taken, room);
#pragma omp barrier
	}
}

/*
 * Called by all threads, each with all weights and with bands of its own:
 * with few channels these stay in L2, and nobody waits.
 */
static void
run_own(const struct plan *p, char *room)
{
	struct block u = { 0, p->panels, 0, 0, 0, p->steps };
	uint16_t *weights = (uint16_t *)(void *)room;
	float *sums = (float *)(void *)(room + weight_bytes(p));
	struct making m = begin_weights(p, &u, NULL, weights);
	struct band b;
	int64_t i, l;

	make_some(p, &m, m.count);
#pragma omp for schedule(dynamic) nowait
	for (i = 0; i < band_count(p); i++) {
		b = make_band(p, i, room + weight_bytes(p) + sums_bytes(p));
		for (l = 0; l <= grid_lines(b.n, b.h); l++)
			copy_line(p, &b, l);
		u.tiles = band_tiles(&b);
		run_block(p, &b, &u, weights, sums, &m);
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

static void
run_plan(struct plan *p, void *scratch)
{
	int64_t taken;			/* units of a band */

	p->planes = lpo_align_up(scratch);
	p->room = p->planes + shared_bytes(p);
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
	{
		char *room = p->room + room_bytes(p) *
		    (size_t)omp_get_thread_num();

		tile_config();
		if (p->own)
			run_own(p, room);
		else
			run_shared(p, &taken, room);
		tile_release();
	}
}

/* By channels and kernel alone: bits must not depend on the images. */
static int
is_candidate(const lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    const struct lpo_conv_shape *s)
{
	return pass != LPO_BWD_WEIGHT && lpo_on_tiles(be, dt) &&
	    s->stride == 1 && s->kh == 3 && s->kw == 3 && s->pad_top == 1 &&
	    s->pad_left == 1 && s->ho == s->h && s->wo == s->w &&
	    s->ci >= 16 && s->co >= 16;
}

int
lpo_conv_tiles(const lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    void *y, const void *x, const void *w, const float *bias,
    const void *more, const struct lpo_conv_shape *s, void *scratch)
{
	struct plan p;

	if (!is_candidate(be, pass, dt, s))
		return 0;
	make_plan(&p, be, pass, dt, s);
	p.y = y;
	p.x = x;
	p.weight = w;
	p.bias = bias;
	p.more = more;
	run_plan(&p, scratch);
	return 1;
}

size_t
lpo_conv_tiles_bytes(const lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	struct plan p;

	if (!is_candidate(be, pass, dt, s))
		return 0;
	make_plan(&p, be, pass, dt, s);
	return 64 + shared_bytes(&p) + (size_t)p.threads * room_bytes(&p);
}
