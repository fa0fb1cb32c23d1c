/*
 * Gradients of bf16 weights on AMX tiles:
 *	dW[co][tap][ci] += alpha sum over pixels p of dY[p][co] X[p + tap][ci]
 * The inner dimension is pixels.  Those of a group lie on a grid, its images
 * one below the other with a border of zeros between them, so that a tap is
 * one shift of all pixel numbers.  Both operands are brought into tiles:
 *	dY	[16 channels][32 pixels]
 *	X	[16 pixel pairs][16 channels][2]; for odd shifts a second time,
 *		with the pairs beginning at odd pixels
 * With a stride the pixels of X fall into stride^2 planes, each met by its
 * own taps at stride 1.  A linear layer is one line under a 1x1 kernel.
 *
 * An element is one sum in the order of pixels, within a group; blocks and
 * threads do not change it.
 */
#include "kernels/gemm.h"
#include "kernels/gradient_plan.h"
#include "kernels/levels.h"

#include <omp.h>

enum { PIECE_STEPS = 4 };	/* of shared tiles, made by one thread */

/* Images [n, h, w, c] and which of their pixels the grid shows. */
struct image {
	const uint16_t *base, *zeros;
	int64_t n, h, w, c, step, off_h, off_w;
};

/* Addresses of the grid's pixels k, k+1, ... */
static void
pixels(const uint16_t **at, const struct plan *p, const struct image *m,
    int64_t k, int64_t count)
{
	int64_t n = k / (p->rows * p->pitch), i, y, x;
	int64_t r = k / p->pitch % p->rows, q = k % p->pitch;

	for (i = 0; i < count; i++) {
		y = r * m->step + m->off_h;
		x = q * m->step + m->off_w;
		at[i] = n < m->n && y >= 0 && y < m->h && x >= 0 && x < m->w ?
		    m->base + ((n * m->h + y) * m->w + x) * m->c : m->zeros;
		if (++q < p->pitch)
			continue;
		q = 0;
		if (++r == p->rows) {
			r = 0;
			n++;
		}
	}
}

/* The last n < 16 channels, from c on, of each pixel: a copy with zeros. */
static void
narrow(const uint16_t **at, int64_t count, int64_t c, int64_t n,
    uint16_t copy[][TILE])
{
	int64_t i;

	for (i = 0; i < count; i++) {
		memset(copy[i], 0, sizeof(copy[i]));
		memcpy(copy[i], at[i] + c, (size_t)n * 2);
		at[i] = copy[i] - c;
	}
}

/* 16 channels of a pixel in the low halves of words */
static inline __attribute__((always_inline)) void
load_wide(w16 *w, const uint16_t *p)
{
	h16 a;

	memcpy(&a, p, sizeof(a));
	*w = __builtin_convertvector(a, w16);
}

/*
 * Four perfect shuffles of all 256 words turn their numbers by four bits:
 * rows become columns.
 */
static inline __attribute__((always_inline)) void
transpose16(w16 r[TILE])
{
	w16 s[TILE];
	int i, k;

#pragma GCC unroll 4
	for (k = 0; k < 4; k++) {
#pragma GCC unroll 8
		for (i = 0; i < 8; i++) {
			s[2 * i] = __builtin_shufflevector(r[i], r[i + 8], 0,
			    16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
			    23);
			s[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 8],
			    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
			    30, 15, 31);
		}
#pragma GCC unroll 16
		for (i = 0; i < TILE; i++)
			r[i] = s[i];
	}
}

/*
 * A unit of work: channels o .. o+n-1 of dY meet c .. c+k-1 of X in group g;
 * the tiles of a block of steps, and the sums [pair][tap][32][sums_ld].
 */
struct unit {
	int64_t o, n, c, k, g;
	uint16_t *a, *b;
	float *sums;
	uint16_t *zeros;		/* a pixel of the grid's border */
};

/* 16 channels of 32 pixels of dY to one tile. */
static void
make_a_tile(uint16_t *to, const uint16_t *const *at, int64_t c)
{
	w16 r[TILE], odd;
	int i;

#pragma GCC unroll 16
	for (i = 0; i < TILE; i++) {
		load_wide(&r[i], at[2 * i] + c);
		load_wide(&odd, at[2 * i + 1] + c);
		r[i] |= odd << 16;
	}
	transpose16(r);
#pragma GCC unroll 16
	for (i = 0; i < TILE; i++)
		memcpy(to + i * STEP, &r[i], sizeof(w16));
}

/* 16 channels of 33 pixels of X to one tile, or to one of each phase. */
static void
make_b_tile(uint16_t *even, uint16_t *odd, const uint16_t *const *at,
    int64_t c)
{
	w16 first, second, r;
	int i;

	load_wide(&first, at[0] + c);
	for (i = 0; i < TILE; i++) {
		load_wide(&second, at[2 * i + 1] + c);
		r = first | second << 16;
		memcpy(even + i * STEP, &r, sizeof(r));
		load_wide(&first, at[2 * i + 2] + c);
		r = second | first << 16;
		memcpy(odd + i * STEP, &r, sizeof(r));
	}
}

/* Steps k .. k+steps-1 of dY to tiles [channels / 16][a_ld]. */
static void
make_a(const struct plan *p, const struct unit *u, int64_t k, int64_t steps)
{
	const struct lpo_conv_shape *s = &p->s;
	struct image m = { p->dy + u->g * s->n * s->ho * s->wo * s->co,
	    u->zeros, s->n, s->ho, s->wo, s->co, 1, 0, 0 };
	uint16_t copy[STEP][TILE], *to;
	const uint16_t *at[STEP];
	int64_t c, t;

	for (t = 0; t < steps; t++) {
		pixels(at, p, &m, (k + t) * STEP, STEP);
		to = u->a + t * TILE_SIZE;
		for (c = 0; c < u->n; c += TILE) {
			if (u->n - c < TILE)
				narrow(at, STEP, u->o + c, u->n - c, copy);
			make_a_tile(to, at, u->o + c);
			to += p->a_ld * TILE_SIZE;
		}
	}
}

/* The taps that read one plane of X: the first of each axis, how many. */
struct plane {
	int64_t i, j, th, tw;
};

/* The same of a plane of X, [channels / 16][phases][b_ld]. */
static void
make_b(const struct plan *p, const struct unit *u, const struct plane *l,
    int64_t k, int64_t steps)
{
	const struct lpo_conv_shape *s = &p->s;
	struct image m = { p->x + u->g * s->n * s->h * s->w * s->ci, u->zeros,
	    s->n, s->h, s->w, s->ci, s->stride, l->i - s->pad_top,
	    l->j - s->pad_left };
	uint16_t copy[STEP + 1][TILE], none[TILE_SIZE], *to;
	int64_t next = p->b_ld * TILE_SIZE, c, t;
	const uint16_t *at[STEP + 1];

	for (t = 0; t < steps; t++) {
		pixels(at, p, &m, (k + t) * STEP, STEP + 1);
		to = u->b + t * TILE_SIZE;
		for (c = 0; c < u->k; c += TILE) {
			if (u->k - c < TILE)
				narrow(at, STEP + 1, u->c + c, u->k - c, copy);
			make_b_tile(to, p->phases > 1 ? to + next : none, at,
			    u->c + c);
			to += next * p->phases;
		}
	}
}

/*
 * c[32][32], rows of ld (+)= the products of `steps` tiles of dY and X; their
 * second tiles, if any, lie a2 and b2 elements behind.
 */
static inline __attribute__((always_inline)) void
products(int two_a, int two_b, const uint16_t *a, int64_t a2,
    const uint16_t *b, int64_t b2, int64_t steps, float *c, int64_t ld,
    int more)
{
	int64_t k;

	if (more) {
		tile_load(0, c, ld * 4);
		tile_load(1, c + TILE, ld * 4);
		tile_load(2, c + TILE * ld, ld * 4);
		tile_load(3, c + TILE * ld + TILE, ld * 4);
	} else {
		tile_zero(0);
		tile_zero(1);
		tile_zero(2);
		tile_zero(3);
	}
	for (k = 0; k < steps; k++, a += TILE_SIZE, b += TILE_SIZE) {
		tile_load(4, a, 64);
		tile_load(6, b, 64);
		tile_dp(0, 4, 6);
		if (two_b) {
			tile_load(7, b + b2, 64);
			tile_dp(1, 4, 7);
		}
		if (two_a) {
			tile_load(5, a + a2, 64);
			tile_dp(2, 5, 6);
			if (two_b)
				tile_dp(3, 5, 7);
		}
	}
	tile_store(0, c, ld * 4);
	tile_store(1, c + TILE, ld * 4);
	tile_store(2, c + TILE * ld, ld * 4);
	tile_store(3, c + TILE * ld + TILE, ld * 4);
}

/*
 * One tile of X for three taps side by side, whose tiles b has and whose sums
 * lie c_next floats apart: what comes from L2, which bounds all this, serves
 * three times (the first and the third tap's tiles are nearly the same lines).
 */
static inline __attribute__((always_inline)) void
three_taps(int two_a, const uint16_t *a, int64_t a2, const uint16_t *const *b,
    int64_t steps, float *c, int64_t c_next, int64_t ld, int more)
{
	const uint16_t *b0 = b[0], *b1 = b[1], *b2 = b[2];
	float *c1 = c + c_next, *c2 = c1 + c_next;
	int64_t k, low = TILE * ld;

	if (more) {
		tile_load(0, c, ld * 4);
		tile_load(1, c1, ld * 4);
		tile_load(2, c2, ld * 4);
		tile_load(3, c + low, ld * 4);
		tile_load(4, c1 + low, ld * 4);
		tile_load(5, c2 + low, ld * 4);
	} else {
		tile_zero(0);
		tile_zero(1);
		tile_zero(2);
		tile_zero(3);
		tile_zero(4);
		tile_zero(5);
	}
	for (k = 0; k < steps * TILE_SIZE; k += TILE_SIZE) {
		tile_load(6, a + k, 64);
		tile_load(7, b0 + k, 64);
		tile_dp(0, 6, 7);
		if (two_a) {
			tile_load(6, a + a2 + k, 64);
			tile_dp(3, 6, 7);
		}
		tile_load(7, b1 + k, 64);
		if (two_a) {
			tile_dp(4, 6, 7);
			tile_load(6, a + k, 64);
		}
		tile_dp(1, 6, 7);
		tile_load(7, b2 + k, 64);
		tile_dp(2, 6, 7);
		if (two_a) {
			tile_load(6, a + a2 + k, 64);
			tile_dp(5, 6, 7);
		}
	}
	tile_store(0, c, ld * 4);
	tile_store(1, c1, ld * 4);
	tile_store(2, c2, ld * 4);
	tile_store(3, c + low, ld * 4);
	tile_store(4, c1 + low, ld * 4);
	tile_store(5, c2 + low, ld * 4);
}

/* Where the tiles of X at b begin, shifted by so many pixels. */
static inline const uint16_t *
shifted(const struct plan *p, const uint16_t *b, int64_t by)
{
	return b + (by & 1 ? p->b_ld * TILE_SIZE : 0) + by / 2 * STEP;
}

/* One pair of tiles of each, at a and b; `sums` of its first tap. */
static void
run_pair(const struct plan *p, const struct plane *l, int two_a, int two_b,
    const uint16_t *a, const uint16_t *b, int64_t steps, float *sums, int more)
{
	int64_t a2 = p->a_ld * TILE_SIZE, ld = sums_ld(p), i, j;
	int64_t b2 = p->b_ld * p->phases * TILE_SIZE;
	const struct lpo_conv_shape *s = &p->s;

	for (i = 0; i < l->th; i++)
		for (j = 0; j < l->tw; j++) {
			const uint16_t *bt = shifted(p, b, i * p->pitch + j);
			float *c = sums + ((l->i + i * s->stride) * s->kw +
			    l->j + j * s->stride) * PAIR * ld;

			if (two_a && two_b)
				products(1, 1, a, a2, bt, b2, steps, c, ld,
				    more);
			else if (two_a)
				products(1, 0, a, a2, bt, 0, steps, c, ld,
				    more);
			else if (two_b)
				products(0, 1, a, 0, bt, b2, steps, c, ld,
				    more);
			else
				products(0, 0, a, 0, bt, 0, steps, c, ld,
				    more);
		}
}

/* The same where taps come in threes. */
static void
run_threes(const struct plan *p, const struct plane *l, int two_a, int two_b,
    const uint16_t *a, const uint16_t *b, int64_t steps, float *sums, int more)
{
	int64_t a2 = p->a_ld * TILE_SIZE, ld = sums_ld(p), i, j, t;
	int64_t b2 = p->b_ld * p->phases * TILE_SIZE;
	const uint16_t *bt[3];

	for (i = 0; i < l->th; i++)
		for (t = 0; t <= two_b; t++) {
			float *c = sums + i * 3 * PAIR * ld + t * TILE;

			for (j = 0; j < 3; j++)
				bt[j] = shifted(p, b + t * b2, i * p->pitch +
				    j);
			if (two_a)
				three_taps(1, a, a2, bt, steps, c, PAIR * ld,
				    ld, more);
			else
				three_taps(0, a, 0, bt, steps, c, PAIR * ld,
				    ld, more);
		}
}

/* A block's products of one plane; `more` blocks came before. */
static void
run_plane(const struct plan *p, const struct unit *u, const struct plane *l,
    int64_t steps, int more)
{
	int64_t a_next = p->a_ld * TILE_SIZE / TILE, i, j;
	int64_t b_next = p->b_ld * p->phases * TILE_SIZE / TILE;
	int64_t taps = p->s.kh * p->s.kw;
	void (*run)(const struct plan *, const struct plane *, int, int,
	    const uint16_t *, const uint16_t *, int64_t, float *, int) =
	    p->s.stride == 1 && p->s.kw == 3 ? run_threes : run_pair;

	for (i = 0; i < u->n; i += PAIR)
		for (j = 0; j < u->k; j += PAIR)
			run(p, l, u->n - i > TILE, u->k - j > TILE,
			    u->a + i * a_next, u->b + j * b_next, steps,
			    u->sums + i * taps * sums_ld(p) + j, more);
}

/* dW += alpha sums, row by row: each is one run in memory. */
static void
add_sums(const struct plan *p, const struct unit *u)
{
	int64_t taps = p->s.kh * p->s.kw, ld = sums_ld(p), i, t, j;
	float *to = p->dw + u->o * taps * p->s.ci + u->c;
	vf alpha = vf_set1(p->alpha);

	for (i = 0; i < u->n; i++)
		for (t = 0; t < taps; t++, to += p->s.ci) {
			const float *c = u->sums + ((i / PAIR * taps + t) *
			    PAIR + i % PAIR) * ld;

			for (j = 0; j + VL <= u->k; j += VL)
				vput_fma(LPO_F32, 1, to, j, VL, alpha,
				    vf_load(c + j));
			if (j < u->k)
				vput_fma(LPO_F32, 1, to, j, u->k - j, alpha,
				    vf_load(c + j));
		}
}

/* Group u->g of a unit whose tiles are made here, plane by plane. */
static void
run_group(const struct plan *p, const struct unit *u)
{
	const struct lpo_conv_shape *s = &p->s;
	int64_t k, steps, st = s->stride;
	struct plane l;

	for (k = 0; k < p->steps; k += p->block) {
		steps = min64(p->block, p->steps - k);
		make_a(p, u, k, steps);
		for (l.i = 0; l.i < min64(st, s->kh); l.i++)
			for (l.j = 0; l.j < min64(st, s->kw); l.j++) {
				l.th = div_up(s->kh - l.i, st);
				l.tw = div_up(s->kw - l.j, st);
				make_b(p, u, &l, k, steps + p->halo);
				run_plane(p, u, &l, steps, k > 0);
			}
	}
	add_sums(p, u);
}

/* The same where the tiles are there. */
static void
run_shared(const struct plan *p, const struct unit *of)
{
	struct plane l = { 0, 0, p->s.kh, p->s.kw };
	struct unit u = *of;
	int64_t k;

	for (k = 0; k < p->steps; k += p->block) {
		run_plane(p, &u, &l, min64(p->block, p->steps - k), k > 0);
		u.a += p->block * TILE_SIZE;
		u.b += p->block * TILE_SIZE;
	}
	add_sums(p, of);
}

/* Piece v of the shared tiles of group g: of dY, then of X. */
static void
make_shared(const struct plan *p, int64_t g, int64_t v, uint16_t *zeros)
{
	struct plane l = { 0, 0, p->s.kh, p->s.kw };
	int64_t a_pieces = div_up(p->a_ld, PIECE_STEPS);
	int64_t k = (v < a_pieces ? v : v - a_pieces) * PIECE_STEPS;
	struct unit u = { .n = p->s.co, .k = p->s.ci, .g = g,
	    .a = p->a + k * TILE_SIZE, .b = p->b + k * TILE_SIZE,
	    .zeros = zeros };

	if (v < a_pieces)
		make_a(p, &u, k, min64(PIECE_STEPS, p->a_ld - k));
	else
		make_b(p, &u, &l, k, min64(PIECE_STEPS, p->b_ld - k));
}

/* Unit v of a_parts x b_parts; a thread's room begins with the zeros. */
static struct unit
make_unit(const struct plan *p, int64_t v, int64_t a_parts, int64_t b_parts,
    uint16_t *room)
{
	int64_t wide = div_up(p->s.co, PAIR), high = div_up(p->s.ci, PAIR);
	int64_t i = v % a_parts, j = v / a_parts;
	struct unit u = { .o = wide * i / a_parts * PAIR,
	    .c = high * j / b_parts * PAIR, .zeros = room };

	u.n = min64(wide * (i + 1) / a_parts * PAIR, p->s.co) - u.o;
	u.k = min64(high * (j + 1) / b_parts * PAIR, p->s.ci) - u.c;
	room += pixel_elements(p);
	if (p->shared) {
		u.a = p->a + u.o / TILE * p->a_ld * TILE_SIZE;
		u.b = p->b + u.c / TILE * p->b_ld * p->phases * TILE_SIZE;
	} else {
		u.a = room;
		u.b = u.a + a_elements(p);
		room = u.b + b_elements(p);
	}
	u.sums = (float *)(void *)room;
	return u;
}

/* Called by all threads: the groups, one after the other. */
static void
run_units(const struct plan *p, uint16_t *room)
{
	int64_t a_parts = div_up(div_up(p->s.co, PAIR), p->a_pairs);
	int64_t b_parts = div_up(div_up(p->s.ci, PAIR), p->b_pairs);
	int64_t pieces = div_up(p->a_ld, PIECE_STEPS) +
	    div_up(p->b_ld, PIECE_STEPS), g, v;
	struct unit u;

	memset(room, 0, (size_t)pixel_elements(p) * 2);
	for (g = 0; p->shared && g < p->groups; g++) {
#pragma omp for schedule(dynamic)
		for (v = 0; v < pieces; v++)
			make_shared(p, g, v, room);
#pragma omp for schedule(dynamic)
		for (v = 0; v < a_parts * b_parts; v++) {
			u = make_unit(p, v, a_parts, b_parts, room);
			run_shared(p, &u);
		}
	}
	if (p->shared)
		return;
#pragma omp for schedule(dynamic)
	for (v = 0; v < a_parts * b_parts; v++) {
		u = make_unit(p, v, a_parts, b_parts, room);
		for (u.g = 0; u.g < p->groups; u.g++)
			run_group(p, &u);
	}
}

static void
run_plan(const struct plan *p)
{
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
	{
		tile_config();
		run_units(p, (uint16_t *)(void *)(p->room + thread_bytes(p) *
		    (size_t)omp_get_thread_num()));
		tile_release();
	}
}

/*
 * Patches (a plane for each of their many pixels) and a handful of pixels,
 * where dW's way through memory is all there is, are left to others.
 */
static int
is_candidate(enum lpo_dtype dt, const struct lpo_conv_shape *s,
    int64_t groups)
{
	return dt == LPO_BF16 && s->stride <= 2 && s->kh * s->kw <= 25 &&
	    s->n / groups * s->ho * s->wo >= 16;
}

/* A linear layer's rows, as the pixels of one line per group. */
static struct lpo_conv_shape
line_of(int64_t m, int64_t n, int64_t k, int64_t groups)
{
	int64_t w = groups < 1 ? 0 : m / groups;

	return (struct lpo_conv_shape){ groups, 1, w, k, n, 1, 1, 1, 0, 0, 1,
	    w };
}

static void
run_shape(lpo_backend *be, float *dw, const void *dy, const void *x,
    const struct lpo_conv_shape *s, float alpha, int64_t groups,
    void *scratch)
{
	struct plan p;

	make_plan(&p, be, s, groups);
	p.dw = dw;
	p.dy = dy;
	p.x = x;
	p.alpha = alpha;
	p.room = lpo_align_up(scratch);
	p.a = (uint16_t *)(void *)(p.room + (size_t)p.threads *
	    thread_bytes(&p));
	p.b = p.a + a_elements(&p);
	run_plan(&p);
}

static size_t
shape_bytes(const lpo_backend *be, const struct lpo_conv_shape *s,
    int64_t groups)
{
	struct plan p;

	make_plan(&p, be, s, groups);
	return 64 + (size_t)p.threads * thread_bytes(&p) + shared_bytes(&p);
}

int
lpo_linear_bwd_weight_amx(lpo_backend *be, enum lpo_dtype dt, float *dw,
    float *db, const void *dy, const void *x, int64_t m, int64_t n,
    int64_t k, float alpha, int64_t groups, void *scratch)
{
	struct lpo_conv_shape s = line_of(m, n, k, groups);

	if (groups < 1 || m % groups != 0)
		return LPO_EINVAL;
	if (dw != NULL && is_candidate(dt, &s, groups)) {
		run_shape(be, dw, dy, x, &s, alpha, groups, scratch);
		dw = NULL;
	}
	return OTHER(linear_bwd_weight)(be, dt, dw, db, dy, x, m, n, k, alpha,
	    groups, scratch);
}

int
lpo_conv_bwd_weight_amx(lpo_backend *be, enum lpo_dtype dt, float *dw,
    float *db, const void *dy, const void *x, const struct lpo_conv_shape *s,
    int64_t groups, void *scratch)
{
	if (groups < 1 || s->n % groups != 0)
		return LPO_EINVAL;
	if (dw != NULL && is_candidate(dt, s, groups)) {
		run_shape(be, dw, dy, x, s, 1, groups, scratch);
		dw = NULL;
	}
	return OTHER(conv_bwd_weight)(be, dt, dw, db, dy, x, s, groups,
	    scratch);
}

size_t
lpo_linear_scratch_bytes_amx(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t m, int64_t n, int64_t k, int64_t groups)
{
	struct lpo_conv_shape s = line_of(m, n, k, groups);
	size_t bytes;

	if (pass == LPO_BWD_WEIGHT && groups > 0 &&
	    is_candidate(dt, &s, groups))
		return shape_bytes(be, &s, groups);
	bytes = lpo_linear_tiles_bytes(be, pass, dt, m, n, k);
	return bytes > 0 ? bytes : OTHER(linear_scratch_bytes)(be, pass, dt, m,
	    n, k, groups);
}

size_t
lpo_conv_scratch_bytes_amx(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s, int64_t groups)
{
	size_t bytes;

	if (pass == LPO_BWD_WEIGHT && groups > 0 &&
	    is_candidate(dt, s, groups))
		return shape_bytes(be, s, groups);
	if (pass != LPO_BWD_WEIGHT && lpo_conv_is_linear(s))
		return lpo_linear_scratch_bytes_amx(be, pass, dt,
		    s->n * s->h * s->w, s->co, s->ci, groups);
	bytes = lpo_conv_tiles_bytes(be, pass, dt, s);
	return bytes > 0 ? bytes : OTHER(conv_scratch_bytes)(be, pass, dt, s,
	    groups);
}
