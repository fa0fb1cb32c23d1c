/*
 * 3x3 convolutions of f32 images by Winograd's F(4x4, 3x3): 36 products for
 * 16 pixels where the sum itself takes 144.  A tile of 6x6 pixels and a kernel
 * of 3x3 taps are brought to 36 points each, y = A'[(G w G') . (B' x B)]A.
 *
 * The points are 0, 5/8, -5/8, 3/2, -3/2 and infinity: all that is made of
 * them below but 1/N is exact in f32, and the error of a layer is about that
 * of the sum itself (the usual 0, 1, -1, 2, -2 have more than twice as much).
 *
 * For each of the points the channels are a product of matrices, tiles by
 * channels.  All of x is brought to points first, some tiles at a time; a
 * thread brings a panel of the weights to points where it multiplies with
 * them, so that they are never in memory (they would be four times the
 * weights), and its results from there to pixels.
 *
 * Bits: an element of the result is made from sums over the channels, in
 * blocks of plan.kc, which depends on their number alone.
 */
#include <omp.h>

#include "kernels/gemm.h"
#include "kernels/ints.h"
#include "kernels/levels.h"
#include "kernels/tile.h"

#define PA		0.625	/* the points: 0, +-PA, +-PB, infinity */
#define PB		1.5
#define POINTS		36
#define LEAST		64	/* channels: fewer add up better directly */
#define LINE		16	/* keeps the points off each other in L1 */
#define KC		64	/* channels: a panel of 295 kB in L2 */
#define V_BYTES		(6 << 20)	/* of x at a time, to stay in L3 */
#define MIN_TILES	48	/* a panel's points are made for them */
#define MAX_TILES	192
#define M_BYTES		(300 << 10)	/* sums of a group of panels */
#define MAX_GROUP	4
#define SERIAL_FLOPS	200000	/* waking threads costs more */

struct wino {
	const struct lpo_conv_shape *s;
	int back;		/* x is dy, y is dx, taps are turned round */
	int64_t k, n;		/* channels of x and of y */
	const float *x, *w, *bias, *more;
	float *y;
};

/* How it is cut; kc alone has to do with bits. */
struct plan {
	int64_t kc, k_blocks;	/* channels of x at a time */
	int64_t th, tw, tiles;	/* tiles of an image, down and across; in all */
	int64_t at_once;	/* tiles that are points at a time */
	int64_t group, groups;	/* panels that are read at a time */
	int64_t splits;		/* of those tiles, that threads share */
	int64_t ld_v, ld_m, ld_u;	/* floats from point to point */
	int threads;
};

static struct plan
make_plan(const struct lpo_conv_shape *s, int64_t k, int64_t n, int threads)
{
	struct plan p = { .th = div_up(s->h, 4), .tw = div_up(s->w, 4) };
	int64_t fit = V_BYTES / (POINTS * 4 * k), panels;

	p.k_blocks = div_up(k, KC);
	p.kc = round_up(div_up(k, p.k_blocks), VL);
	p.k_blocks = div_up(k, p.kc);
	p.tiles = s->n * p.th * p.tw;
	fit = fit < MIN_TILES ? MIN_TILES : min64(fit, MAX_TILES);
	/* as many each time */
	p.at_once = div_up(p.tiles, div_up(p.tiles, fit));
	p.threads = (double)p.tiles * (double)(k * n) * POINTS * 2 <
	    SERIAL_FLOPS ? 1 : threads;
	panels = div_up(n, NR);
	p.group = M_BYTES / (p.at_once * POINTS * NR * 4);
	p.group = min64(p.group, panels / (2 * p.threads));
	p.group = min64(p.group < 1 ? 1 : p.group, MAX_GROUP);
	p.groups = div_up(panels, p.group);
	p.splits = min64(div_up(2 * p.threads, p.groups),
	    div_up(p.at_once, MR));
	p.ld_v = p.at_once * p.kc + LINE;
	p.ld_m = round_up(div_up(p.at_once, p.splits), MR) * NR + LINE;
	p.ld_u = p.kc * NR + LINE;
	return p;
}

/* Points of a panel of weights, its taps, the sums. */
static int64_t
thread_floats(const struct plan *p)
{
	return POINTS * p->ld_u + p->group * (POINTS * p->ld_m +
	    9 * p->ld_u);
}

/* 6 pixels to points: the rows of B' are what of x(x-a)(x+a).. is left. */
static inline void
pixels_to_points(vf *o, int so, const vf *d, int sd)
{
	const float a = PA, b = PB, aa = PA * PA, bb = PB * PB;
	vf t = d[4 * sd] - bb * d[2 * sd], u = d[3 * sd] - bb * d[sd];
	vf v = d[4 * sd] - aa * d[2 * sd], w = d[3 * sd] - aa * d[sd];

	o[0] = aa * bb * d[0] + (d[4 * sd] - (aa + bb) * d[2 * sd]);
	o[so] = t + a * u;
	o[2 * so] = t - a * u;
	o[3 * so] = v + b * w;
	o[4 * so] = v - b * w;
	o[5 * so] = aa * bb * d[sd] + (d[5 * sd] - (aa + bb) * d[3 * sd]);
}

/* 3 taps to points: row j of G is (1, p, p^2) / N, N = product of p - q. */
static inline void
taps_to_points(vf *o, int so, const vf *g, int sg)
{
	const float a = PA, b = PB, aa = PA * PA, bb = PB * PB;
	const float n0 = 1 / (PA * PA * PB * PB);
	const float na = 1 / (2 * PA * PA * (PA * PA - PB * PB));
	const float nb = 1 / (2 * PB * PB * (PB * PB - PA * PA));
	vf e = g[0] + aa * g[2 * sg], f = g[0] + bb * g[2 * sg];

	o[0] = n0 * g[0];
	o[so] = na * (e + a * g[sg]);
	o[2 * so] = na * (e - a * g[sg]);
	o[3 * so] = nb * (f + b * g[sg]);
	o[4 * so] = nb * (f - b * g[sg]);
	o[5 * so] = g[2 * sg];
}

/* Points to 4 pixels: row i of A' is p^i. */
static inline void
points_to_pixels(vf *o, int so, const vf *m, int sm)
{
	const float a = PA, b = PB, aa = PA * PA, bb = PB * PB;
	const float aaa = PA * PA * PA, bbb = PB * PB * PB;
	vf p = m[sm] + m[2 * sm], q = m[sm] - m[2 * sm];
	vf r = m[3 * sm] + m[4 * sm], s = m[3 * sm] - m[4 * sm];

	o[0] = m[0] + (p + r);
	o[so] = a * q + b * s;
	o[2 * so] = aa * p + bb * r;
	o[3 * so] = aaa * q + (bbb * s + m[5 * sm]);
}

/* n <= VL floats and zeros */
static inline vf
load_some(const float *p, int64_t n)
{
	float t[VL] = {0};

	if (n >= VL)
		return vf_load(p);
	memcpy(t, p, (size_t)n * 4);
	return vf_load(t);
}

/* Channels k0 .. k0+kc-1 of tile t to points, v[POINTS][ld_v]. */
static void
tile_of_x(const struct wino *g, const struct plan *p, float *v, int64_t t,
    int64_t k0, int64_t kc)
{
	static const float nothing[KC];
	const struct lpo_conv_shape *s = g->s;
	const float *px[POINTS];
	int64_t n = t / (p->th * p->tw), c;
	int64_t y = t / p->tw % p->th * 4 - 1, x = t % p->tw * 4 - 1;
	vf d[POINTS], o[6];
	int i, j;

	for (i = 0; i < 6; i++)
		for (j = 0; j < 6; j++)
			px[i * 6 + j] = y + i < 0 || y + i >= s->h ||
			    x + j < 0 || x + j >= s->w ? nothing :
			    g->x + ((n * s->h + y + i) * s->w + x + j) * g->k +
			    k0;
	for (c = 0; c < kc; c += VL, v += VL) {
#pragma GCC unroll 6
		for (j = 0; j < 6; j++) {
#pragma GCC unroll 6
			for (i = 0; i < 6; i++)
				o[i] = load_some(px[i * 6 + j] + c, kc - c);
			pixels_to_points(d + j, 6, o, 1);
		}
#pragma GCC unroll 6
		for (i = 0; i < 6; i++) {
			pixels_to_points(o, 1, d + 6 * i, 1);
#pragma GCC unroll 6
			for (j = 0; j < 6; j++)
				vf_store(v + (i * 6 + j) * p->ld_v, o[j]);
		}
	}
}

/* Taps [9][kc][w] to points, u[POINTS][ld_u]; `step` from tap to tap. */
static void
points_of_taps(const struct plan *p, float *u, const float *taps,
    int64_t step, int64_t count)
{
	vf d[18], t[9], o[6];
	int64_t c;
	int i, j;

	for (c = 0; c < count; c += VL, u += VL) {
#pragma GCC unroll 9
		for (i = 0; i < 9; i++)
			t[i] = vf_load(taps + i * step + c);
#pragma GCC unroll 3
		for (j = 0; j < 3; j++)
			taps_to_points(d + j, 3, t + j, 3);
#pragma GCC unroll 6
		for (i = 0; i < 6; i++) {
			taps_to_points(o, 1, d + 3 * i, 1);
#pragma GCC unroll 6
			for (j = 0; j < 6; j++)
				vf_store(u + (i * 6 + j) * p->ld_u, o[j]);
		}
	}
}

/*
 * The taps of channels k0.. of x and of the panels of channels n0.. of y, as
 * taps[panel][9][ld_u], [kc][w] each.  The weight is [co, 3, 3, ci]: going
 * back its rows are those of k, of which pages are read in longer pieces.
 */
static void
fetch_taps(const struct wino *g, const struct plan *p, float *taps,
    int64_t k0, int64_t kc, int64_t n0, int64_t n)
{
	int64_t i, k, v, w, left, ld = p->ld_u;
	const float *from;
	float *to;

	for (v = 0; !g->back && v < n; v += NR, taps += 9 * ld) {
		from = g->w + (n0 + v) * 9 * g->k + k0;
		left = min64(NR, n - v);
		w = round_up(left, VL);
		for (i = 0; i < 9; i++)
			transpose(taps + i * ld, w, from + i * g->k,
			    9 * g->k, left, kc);
	}
	for (k = 0; g->back && k < kc; k++)
		for (i = 0; i < 9; i++) {
			from = g->w + ((k0 + k) * 9 + 8 - i) * g->n + n0;
			to = taps + i * ld + k * NR;
			for (v = 0; v + NR <= n; v += NR, to += 9 * ld) {
				vf_store(to, vf_load(from + v));
				vf_store(to + VL, vf_load(from + v + VL));
			}
			if (v == n)
				continue;
			w = round_up(n - v, VL);
			to -= k * NR - k * w;
			for (; v < n; v += VL, to += VL)
				vf_store(to, load_some(from + v, n - v));
		}
}

/* The sums m[POINTS][ld_m] of a tile to its pixels, channels n0.. */
static void
tile_of_y(const struct wino *g, const struct plan *p, const float *m,
    int64_t t, int64_t n0, int64_t n)
{
	const struct lpo_conv_shape *s = g->s;
	int64_t y = t / p->tw % p->th * 4, x = t % p->tw * 4, c, at;
	int64_t first = ((t / (p->th * p->tw) * s->h + y) * s->w + x) * g->n;
	int h = (int)min64(4, s->h - y), w = (int)min64(4, s->w - x), i, j;
	size_t bytes;
	vf d[24], o[16], in[6], bias, v;

	for (c = 0; c < n; c += VL, m += VL) {
#pragma GCC unroll 6
		for (j = 0; j < 6; j++) {
#pragma GCC unroll 6
			for (i = 0; i < 6; i++)
				in[i] = vf_load(m + (i * 6 + j) * p->ld_m);
			points_to_pixels(d + j, 6, in, 1);
		}
#pragma GCC unroll 4
		for (i = 0; i < 4; i++)
			points_to_pixels(o + 4 * i, 1, d + 6 * i, 1);
		bias = (vf){0};
		if (g->bias != NULL)
			bias = load_some(g->bias + n0 + c, n - c);
		bytes = (size_t)min64(VL, n - c) * 4;
		for (i = 0; i < h; i++)
			for (j = 0; j < w; j++) {
				at = first + (i * s->w + j) * g->n + n0 + c;
				v = o[i * 4 + j] + bias;
				if (g->more != NULL)
					v += load_some(g->more + at, n - c);
				if (bytes == sizeof(v))
					vf_store(g->y + at, v);
				else
					memcpy(g->y + at, &v, bytes);
			}
	}
}

/*
 * What fetch_taps will read next, `pieces` of `len` floats: each point of the
 * products before asks for some.  Going back its rows are long enough for the
 * hardware to see what comes.
 */
struct ahead {
	const float *at;
	int64_t ld, pieces, len, step;
};

static struct ahead
taps_ahead(const struct wino *g, const struct plan *p, int64_t k0, int64_t n0,
    int64_t n)
{
	struct ahead t = { .at = g->w + n0 * 9 * g->k + k0, .ld = g->k,
	    .pieces = 9 * n, .len = min64(p->kc, g->k - k0) };

	if (g->back || t.len <= 0)
		t.pieces = 0;
	t.step = div_up(t.pieces, POINTS * div_up(n, NR));
	return t;
}

/* To gcc 12 a function that only prefetches does nothing: inlined always. */
static inline __attribute__((always_inline)) void
step_ahead(struct ahead *t)
{
	int64_t i, c, count = min64(t->step, t->pieces);

	for (i = 0; i < count; i++, t->at += t->ld)
		for (c = 0; c < t->len; c += LINE)
			__builtin_prefetch(t->at + c, 0, 2);
	t->pieces -= count;
}

/* m[POINTS][ld_m] (+)= v u: `count` tiles by w channels of y */
static void
products(const struct plan *p, float *m, const float *v, const float *u,
    int64_t count, int64_t kc, int64_t w, int more, struct ahead *next)
{
	int64_t i, j, mr;
	const float *a;
	int point;

	for (point = 0; point < POINTS; point++) {
		step_ahead(next);
		/* about as many rows each time, and the next on their way */
		for (i = 0; i < count; i += mr) {
			mr = div_up(count - i, div_up(count - i, MR));
			a = v + i * p->kc;
			for (j = 0; j < mr * p->kc; j += LINE)
				__builtin_prefetch(a + mr * p->kc + j);
			row_tile[w / VL - 1][mr - 1](kc, a, p->kc, u, w,
			    m + i * w, more);
		}
		v += p->ld_v;
		u += p->ld_u;
		m += p->ld_m;
	}
}

/*
 * Some panels of y, from channel n0, for `count` tiles from t0; v is their
 * points of x, `mine` this thread's memory.
 */
static void
panels(const struct wino *g, const struct plan *p, const float *v, int64_t t0,
    int64_t count, int64_t n0, float *mine)
{
	int64_t n = min64(p->group * NR, g->n - n0), k0, kc, i, j, w;
	float *u = mine, *m = u + POINTS * p->ld_u;
	float *taps = m + p->group * POINTS * p->ld_m;
	struct ahead next;

	for (k0 = 0; k0 < g->k; k0 += p->kc, v += POINTS * p->ld_v) {
		kc = min64(p->kc, g->k - k0);
		fetch_taps(g, p, taps, k0, kc, n0, n);
		next = taps_ahead(g, p, k0 + kc, n0, n);
		for (j = 0; j * NR < n; j++) {
			w = round_up(min64(NR, n - j * NR), VL);
			points_of_taps(p, u, taps + j * 9 * p->ld_u, p->ld_u,
			    kc * w);
			products(p, m + j * POINTS * p->ld_m, v, u, count, kc,
			    w, k0 > 0, &next);
		}
	}
	for (i = 0; i < count; i++)
		for (j = 0; j * NR < n; j++) {
			w = min64(NR, n - j * NR);
			tile_of_y(g, p, m + j * POINTS * p->ld_m + i *
			    round_up(w, VL), t0 + i, n0 + j * NR, w);
		}
}

static void
run(const struct wino *g, const struct plan *p, float *v, float *first)
{
#pragma omp parallel num_threads(p->threads) if (p->threads > 1)
	{
		float *mine = first + thread_floats(p) *
		    omp_get_thread_num();
		int64_t t0, count, u, a, b, k0;

		for (t0 = 0; t0 < p->tiles; t0 += p->at_once) {
			count = min64(p->at_once, p->tiles - t0);
#pragma omp for schedule(static)
			for (u = 0; u < count * p->k_blocks; u++) {
				k0 = u % p->k_blocks * p->kc;
				tile_of_x(g, p, v + u % p->k_blocks * POINTS *
				    p->ld_v + u / p->k_blocks * p->kc, t0 + u /
				    p->k_blocks, k0, min64(p->kc, g->k - k0));
			}
#pragma omp for schedule(dynamic)
			for (u = 0; u < p->groups * p->splits; u++) {
				a = count * (u % p->splits) / p->splits;
				b = count * (u % p->splits + 1) / p->splits;
				panels(g, p, v + a * p->kc, t0 + a, b - a,
				    u / p->splits * p->group * NR, mine);
			}
		}
	}
}

/*
 * Whether it is worth it: by the size of one image, for the number of images
 * must not change bits.  Half the products and enough channels to pay for the
 * way to points and back; from two tiles on in all it does, one is even.
 * Fewer channels than LEAST, as the networks of tests have: there the plain sum
 * has a fraction of the error (of one thin UNet the gradients of the weights
 * went from 0.41 to 1.06 of what tests/parity allows).
 * Padded otherwise, pixels of y that see a single tap, or none, would have the
 * rounding of a whole tile.
 */
static int
is_for_it(enum lpo_pass pass, enum lpo_dtype dt,
    const struct lpo_conv_shape *s)
{
	int64_t tiles = div_up(s->h, 4) * div_up(s->w, 4);

	return pass != LPO_BWD_WEIGHT && dt == LPO_F32 && s->n > 0 &&
	    s->kh == 3 && s->kw == 3 && s->stride == 1 && s->pad_top == 1 &&
	    s->pad_left == 1 && s->ho == s->h && s->wo == s->w &&
	    s->ci >= LEAST && s->co >= LEAST &&
	    tiles * POINTS <= s->h * s->w * 9 / 2;
}

int
LPO_FN(lpo_winograd)(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    void *y, const void *x, const void *w, const float *bias,
    const void *more, const struct lpo_conv_shape *s, void *scratch)
{
	struct wino g = { .s = s, .back = pass == LPO_BWD_DATA, .k = s->ci,
	    .n = s->co, .x = x, .w = w, .bias = bias, .more = more, .y = y };
	float *v = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
	struct plan p;

	if (!is_for_it(pass, dt, s))
		return 0;
	if (g.back) {
		g.k = s->co;
		g.n = s->ci;
	}
	p = make_plan(s, g.k, g.n, be->threads);
	run(&g, &p, v, v + p.k_blocks * POINTS * p.ld_v);
	return 1;
}

size_t
LPO_FN(lpo_winograd_scratch_bytes)(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	int back = pass == LPO_BWD_DATA;
	struct plan p;

	if (!is_for_it(pass, dt, s))
		return 0;
	p = make_plan(s, back ? s->co : s->ci, back ? s->ci : s->co,
	    be->threads);
	return (size_t)(p.k_blocks * POINTS * p.ld_v + p.threads *
	    thread_floats(&p)) * sizeof(float) + 64;
}
