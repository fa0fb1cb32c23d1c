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
#include "kernels/conv_tiles.h"

#include <omp.h>

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
