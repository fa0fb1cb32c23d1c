/*
 * Flash attention, forward, in bf16 on AMX tiles.  Lanes are queries: 32 of
 * them meet blocks of keys,
 *	S^T = K Q^T	tiles [16 keys][16 queries], over channels by 32
 *	P^T = 2^(S - m)	in vectors, rounded to bf16
 *	O^T += V^T P^T	tiles [16 channels][16 queries], over keys by 32
 * so that maxima and sums run down the lanes and P^T is stored as the tile
 * product wants it, pairs of keys side by side.  k and v are brought into
 * tiles once per row and head.
 *
 * m is the largest of a query's first 32 keys.  The sum of a block, which is
 * needed anyway, tells whether a score is far above it: then m grows and the
 * block is done again.
 *
 * f32 is split (split.h), P too: each tile has one of what it leaves over.
 *
 * The tile products of some keys stand between the vector work of others, for
 * the processor to overlap: while 32 keys are in the vectors, the tiles make
 * S of the next 32 and O of the block before.
 */
#include "kernels/attention_tiles.h"
#include "kernels/levels.h"

#include <omp.h>

enum {
	NEAR = 1 << 18,		/* bytes of packed k and v to have at a time */
	P_LO = BK_MOST * BQ	/* from a tile of p to that of its lo */
};

/* A block is done again where p, which begins at 1, sums to more. */
#define SUM_MOST	0x1p30f

/* Finite, for a query whose first scores are all -Inf. */
#define M_LEAST		-1e38f

/* One thread's memory; packed k and v follow.  All on 64 bytes. */
struct room {
	uint16_t q[2 * Q_LO];		/* [d / 32][2] tiles; lo */
	float o[WIDEST * BQ];		/* [channel][query] */
	float s[2][32 * BQ];		/* [key][query], 32 keys at a time */
	uint16_t p[2][2 * P_LO];	/* [key / 32][2] tiles; lo */
	float m[BQ], l[BQ];
	float a[BQ];			/* what o is to be scaled by */
	int64_t scale_o, fill[7];
	float again[BK_MOST * BQ];	/* s of a block that is done again */
};

/* Four tiles of a [rows][BQ] matrix: 32 rows, or 16 where not `two`. */
static void
load_four(const float *c, int two)
{
	tile_load(0, c, BQ * 4);
	tile_load(1, c + TILE, BQ * 4);
	if (two) {
		tile_load(2, c + TILE * BQ, BQ * 4);
		tile_load(3, c + TILE * BQ + TILE, BQ * 4);
	}
}

static void
store_four(float *c, int two)
{
	tile_store(0, c, BQ * 4);
	tile_store(1, c + TILE, BQ * 4);
	if (two) {
		tile_store(2, c + TILE * BQ, BQ * 4);
		tile_store(3, c + TILE * BQ + TILE, BQ * 4);
	}
}

/*
 * The four += a b: a's second row of tiles is `down` elements from the first,
 * its next of n columns `along`; b is [n][2] tiles.
 */
static void
multiply_four(const uint16_t *a, int64_t down, int64_t along,
    const uint16_t *b, int64_t n, int two)
{
	for (; n > 0; n--, a += along, b += 2 * ELEMENTS) {
		tile_load(4, a, 64);
		tile_load(6, b, 64);
		tile_dp(0, 4, 6);
		tile_load(7, b + ELEMENTS, 64);
		tile_dp(1, 4, 7);
		if (two) {
			tile_load(5, a + down, 64);
			tile_dp(2, 5, 6);
			tile_dp(3, 5, 7);
		}
	}
}

/* The same of what is split: lo's are a_lo and b_lo elements from hi's. */
static void
split_four(const uint16_t *a, int64_t down, int64_t along, int64_t a_lo,
    const uint16_t *b, int64_t b_lo, int64_t n, int two)
{
	for (; n > 0; n--, a += along, b += 2 * ELEMENTS) {
		tile_load(4, a, 64);
		tile_load(6, b + b_lo, 64);
		tile_load(7, b + b_lo + ELEMENTS, 64);
		if (two)
			tile_load(5, a + down, 64);
		tile_dp4(two, 1);
		tile_load(6, b, 64);
		tile_load(7, b + ELEMENTS, 64);
		tile_dp4(two, 1);
		tile_load(4, a + a_lo, 64);
		if (two)
			tile_load(5, a + down + a_lo, 64);
		tile_dp4(two, 1);
	}
}

static void
zero_four(void)
{
	tile_zero(0);
	tile_zero(1);
	tile_zero(2);
	tile_zero(3);
}

/* 2^x; where it is too large, so is what comes out. */
static inline vf
exp2_for_f32(vf x)
{
	return vf_exp2_soft(vf_min(vf_set1(127.0f), x));
}

/*
 * 2^x for P, which is rounded to bf16: within 1e-4, none on average, and
 * exact for integers.
 */
static inline vf
exp2_for_bf16(vf x)
{
#if defined(__AVX512F__)
	vf f = (vf)_mm512_reduce_ps((__m512)x, 9), p;	/* x - floor(x) */

	p = vf_horner(vf_set1(0.07826796960f), f, 0.2263076816f);
	p = vf_horner(p, f, 0.6954243488f);
	p = vf_horner(p, f, 1.0f);
	return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
	return exp2_for_f32(x);
#endif
}

/* Two rows of P^T as pairs, rounded. */
static inline void
store_pairs(uint16_t *p, vf a, vf b)
{
	vu x = (vu)a + 0x8000, y = (vu)b + 0x8000;
#if defined(__AVX512BW__)
	/* bytes 2 and 3 of x's words over 0 and 1 of y's */
	const __m512i order = _mm512_set4_epi32(0x0f0e0f0e, 0x0b0a0b0a,
	    0x07060706, 0x03020302);

	y = (vu)_mm512_mask_shuffle_epi8((__m512i)y, 0x3333333333333333ull,
	    (__m512i)x, order);
#else
	y = x >> 16 | (y & 0xffff0000);
#endif
	memcpy(p, &y, sizeof(y));
}

/* The same of what is split. */
static inline void
split_store(uint16_t *p, vf a, vf b)
{
	vu x = ((vu)a + 0x8000) & 0xffff0000, y = ((vu)b + 0x8000) &
	    0xffff0000;

	a -= (vf)x;
	b -= (vf)y;
	x = x >> 16 | y;
	y = ((vu)a + 0x8000) >> 16 | (((vu)b + 0x8000) & 0xffff0000);
	memcpy(p, &x, sizeof(x));
	memcpy(p + P_LO, &y, sizeof(y));
}

/* The largest of each lane of n rows of s, or what m holds. */
static void
largest(float *m, const float *s, int64_t n)
{
	vf top[BQ / VL];
	int64_t j;
	int x;

	for (x = 0; x < BQ / VL; x++)
		top[x] = vf_load(m + x * VL);
	for (j = 0; j < n; j++)
		for (x = 0; x < BQ / VL; x++)
			top[x] = vf_max(vf_load(s + j * BQ + x * VL), top[x]);
	for (x = 0; x < BQ / VL; x++)
		vf_store(m + x * VL, top[x]);
}

/*
 * P^T of n rows of s, n even, and sums of the lanes.  p is where the first
 * pair of rows is in its tiles.
 */
static inline __attribute__((always_inline)) void
exponentials_of(int split, uint16_t *p, float *sum, const float *s,
    const float *m, int64_t n, float scale)
{
	const vf by = vf_set1(scale);
	vf top[BQ / VL], l[BQ / VL], a, b;
	int64_t j;
	int x;

	for (x = 0; x < BQ / VL; x++) {
		top[x] = vf_load(m + x * VL) * by;
		l[x] = vf_load(sum + x * VL);
	}
	for (j = 0; j < n; j += 2, s += 2 * BQ, p += 2 * TILE)
#pragma GCC unroll 8
		for (x = 0; x < BQ / VL; x++) {
			a = vf_fma(vf_load(s + x * VL), by, -top[x]);
			b = vf_fma(vf_load(s + BQ + x * VL), by, -top[x]);
			a = split ? exp2_for_f32(a) : exp2_for_bf16(a);
			b = split ? exp2_for_f32(b) : exp2_for_bf16(b);
			l[x] += a + b;
			if (split)
				split_store(p + x * VL / TILE * ELEMENTS + x *
				    VL % TILE * 2, a, b);
			else
				store_pairs(p + x * VL / TILE * ELEMENTS + x *
				    VL % TILE * 2, a, b);
		}
	for (x = 0; x < BQ / VL; x++)
		vf_store(sum + x * VL, l[x]);
}

static inline __attribute__((always_inline)) void
exponentials(const struct plan *z, uint16_t *p, float *sum, const float *s,
    const float *m, int64_t n)
{
	if (z->split)
		exponentials_of(1, p, sum, s, m, n, z->scale);
	else
		exponentials_of(0, p, sum, s, m, n, z->scale);
}

/* What a query may not see becomes -Inf. */
static void
mask(float *s, const struct plan *z, int64_t k0, int64_t keys, int64_t q0)
{
	int64_t j, from, hidden;
	int i;

	if (k0 + keys <= z->keys && (!z->causal || k0 + keys <= q0))
		return;
	from = z->causal && k0 + keys > q0 ? 0 : keys - 1;
	for (j = from; j < keys; j++) {
		hidden = k0 + j >= z->keys ? BQ : z->causal ? k0 + j - q0 : 0;
		for (i = 0; i < BQ && i < hidden; i++)
			s[j * BQ + i] = -INFINITY;
	}
}

static inline int
any_above(const float *sum, float most)
{
	int i, any = 0;

	for (i = 0; i < BQ; i += VL) {
#if defined(__AVX512F__)
		any |= _mm512_cmp_ps_mask(_mm512_loadu_ps(sum + i),
		    _mm512_set1_ps(most), _CMP_GT_OQ);
#else
		int j;

		for (j = i; j < i + VL; j++)
			any |= sum[j] > most;
#endif
	}
	return any;
}

/* One block of keys, and where its p is. */
struct step {
	uint16_t *p;
	int64_t k0, keys, seen;	/* keys by 32; by 2, those that are seen */
};

static void
scale_output(struct room *w, int64_t dv)
{
	int64_t j, x;

	for (j = 0; j < dv * BQ; j += BQ)
		for (x = 0; x < BQ; x += VL)
			vf_store(w->o + j + x, vf_load(w->o + j + x) *
			    vf_load(w->a + x));
	w->scale_o = 0;
}

/* S of 32 keys from k0 on: in the tiles, and to memory. */
static void
begin_scores(const struct room *w, const struct plan *z, int64_t k0)
{
	int64_t row = z->steps * ELEMENTS;

	zero_four();
	if (z->split)
		split_four(z->k + k0 / TILE * row, row, ELEMENTS, z->lo, w->q,
		    Q_LO, z->steps, k0 + TILE < z->keys);
	else
		multiply_four(z->k + k0 / TILE * row, row, ELEMENTS, w->q,
		    z->steps, k0 + TILE < z->keys);
}

static void
end_scores(float *s, const struct plan *z, int64_t k0)
{
	store_four(s, k0 + TILE < z->keys);
}

/* 32 channels of O in the tiles, from c on */
static void
begin_output(const struct room *w, const struct step *t,
    const struct plan *z, int64_t c)
{
	int64_t column = z->dv / TILE * ELEMENTS;
	const uint16_t *v = z->v + t->k0 / 32 * column + c / TILE * ELEMENTS;
	int two = c + TILE < z->dv;

	if (t->k0 == 0)
		zero_four();
	else
		load_four(w->o + c * BQ, two);
	if (z->split)
		split_four(v, ELEMENTS, column, z->lo, t->p, P_LO, t->keys /
		    32, two);
	else
		multiply_four(v, ELEMENTS, column, t->p, t->keys / 32, two);
}

/*
 * The lanes whose sum is too large take the block's largest score as m, and
 * the block's p and sum are made again.
 */
static void
raise_m(struct room *w, float *sum, const struct step *t,
    const struct plan *z, int64_t q0)
{
	float top[BQ];
	int64_t i;

	for (i = 0; i < t->seen; i += 32) {
		begin_scores(w, z, t->k0 + i);
		end_scores(w->again + i * BQ, z, t->k0 + i);
	}
	mask(w->again, z, t->k0, t->seen, q0);
	memcpy(top, w->m, sizeof(top));
	largest(top, w->again, t->seen);
	for (i = 0; i < BQ; i++) {
		w->a[i] = 1.0f;
		if (sum[i] > SUM_MOST) {
			w->a[i] = exp2f((w->m[i] - top[i]) * z->scale);
			w->m[i] = top[i];
			w->l[i] *= w->a[i];
		}
	}
	w->scale_o = 1;
	memset(sum, 0, BQ * sizeof(*sum));
	for (i = 0; i < t->seen; i += 32)
		exponentials(z, t->p + i * 2 * TILE, sum, w->again + i * BQ,
		    w->m, min64(32, t->seen - i));
}

/* Vector work to stand between a tile product and the use of its result. */
struct work {
	uint16_t *p;
	const float *s;
	int64_t keys, part;	/* left, and to do at a time */
	float sum[BQ];
};

static void
do_part(struct work *v, const struct room *w, const struct plan *z)
{
	int64_t n = min64(v->keys, v->part);

	if (n <= 0)
		return;
	exponentials(z, v->p, v->sum, v->s, w->m, n);
	v->p += n * TILE;
	v->s += n * BQ;
	v->keys -= n;
}

/*
 * The scores of step t become p, while o of step `last` is made, and s of the
 * 32 keys after, up to `end`.  Both steps may be NULL.
 */
static void
overlap(struct room *w, const struct step *last, const struct step *t,
    const struct plan *z, int64_t end, int64_t q0)
{
	int64_t no = last == NULL ? 0 : z->dv, c = 0, to, k, i, n, next;
	struct work v = { .keys = 0 };

	if (last != NULL && w->scale_o)
		scale_output(w, z->dv);
	n = t == NULL ? 1 : (t->seen + 31) / 32;
	for (i = 0; i < n; i++) {
		to = round_up(no * (i + 1) / n, 32);
		next = end;
		if (t != NULL) {
			k = t->k0 + i * 32;
			next = k + 32;
			v.p = t->p + i * 2 * ELEMENTS;
			v.s = w->s[k / 32 & 1];
			v.keys = min64(32, t->seen - i * 32);
			v.part = round_up(v.keys / ((next < end) +
			    (to - c) / 32 + (next >= end && to == c)), 2);
			mask(w->s[k / 32 & 1], z, k, v.keys, q0);
			if (k == 0)
				largest(w->m, v.s, v.keys);
		}
		if (next < end) {
			begin_scores(w, z, next);
			do_part(&v, w, z);
			end_scores(w->s[next / 32 & 1], z, next);
		}
		for (; c < to; c += 32) {
			begin_output(w, last, z, c);
			do_part(&v, w, z);
			store_four(w->o + c * BQ, c + TILE < z->dv);
		}
		v.part = v.keys;
		do_part(&v, w, z);
	}
	if (t == NULL)
		return;
	if (any_above(v.sum, SUM_MOST))
		raise_m(w, v.sum, t, z, q0);
	for (i = 0; i < BQ; i += VL)
		vf_store(w->l + i, vf_load(w->l + i) + vf_load(v.sum + i));
	for (i = t->seen; i < t->keys; i += 2) {
		to = i / 32 * 2 * ELEMENTS + i % 32 * TILE;
		memset(t->p + to, 0, 64);
		memset(t->p + to + ELEMENTS, 0, 64);
		if (z->split) {
			memset(t->p + to + P_LO, 0, 64);
			memset(t->p + to + ELEMENTS + P_LO, 0, 64);
		}
	}
}

/* 16 queries' 16 channels of o times r, or fewer of either, to rows of f32. */
static void
store_f32(float *dst, int64_t ld, const float *o, const float *r,
    int64_t rows, int64_t channels)
{
	uint16_t t[ELEMENTS];
	int64_t i, x;
	vf v;

	for (i = 0; i < TILE; i++)
		for (x = 0; x < TILE; x += VL) {
			v = i < channels ? vf_load(o + i * BQ + x) *
			    vf_load(r + x) : (vf){0};
			memcpy(t + i * 32 + x * 2, &v, sizeof(v));
		}
	transpose_tile(t);
	for (i = 0; i < rows; i++)
		memcpy(dst + i * ld, t + i * 32, (size_t)channels * 4);
}

/*
 * o / l to the rows of the output, log of the sums to lse.  Where o has the
 * sum of p as rounded, the weights sum to 1 better with that.
 */
static void
finish(struct room *w, void *o, int64_t ld, float *lse,
    const struct plan *z, int64_t rows)
{
	uint16_t t[ELEMENTS];
	int64_t c, q, i, x;
	const float *l = z->d < z->dv ? w->o + z->d * BQ : w->l;
	float r[BQ];

	for (i = 0; i < BQ; i += VL)
		vf_store(r + i, 1.0f / vf_load(l + i));
	for (i = 0; lse != NULL && i < rows; i += VL)
		vst(LPO_F32, lse, i, rows, vf_fma(vf_load(w->m + i),
		    vf_set1(z->scale * LN2), vf_log(vf_load(w->l + i))));
	for (c = 0; z->split && c < z->d; c += TILE)
		for (q = 0; q < rows; q += TILE)
			store_f32((float *)o + q * ld + c, ld, w->o + c * BQ +
			    q, r + q, min64(TILE, rows - q), min64(TILE,
			    z->d - c));
	for (c = 0; !z->split && c < z->d; c += 32)
		for (q = 0; q < rows; q += TILE) {
			const float *from = w->o + c * BQ + q;

			for (i = 0; i < 32 && c + i < z->d; i += 2)
				for (x = 0; x < TILE; x += VL)
					store_pairs(t + i * TILE + x * 2,
					    vf_load(from + i * BQ + x) *
					    vf_load(r + q + x),
					    vf_load(from + (i + 1) * BQ + x) *
					    vf_load(r + q + x));
			transpose_tile(t);
			for (i = 0; i < TILE && q + i < rows; i++)
				store_row((uint16_t *)o + (q + i) * ld + c, t +
				    i * 32, min64(32, z->d - c));
		}
}

/* Queries q0 .. (at most 32) of one head; q, o at the first of them. */
static void
query_block(struct room *w, void *o, float *lse, const void *q,
    const struct plan *z, const struct lpo_attn_shape *s, int64_t q0)
{
	int64_t rows = min64(BQ, s->lq - q0), i, k0, end = z->keys;
	struct step ring[2], *last = NULL, *t = NULL;

	pack_q(w->q, q, s->ldq, z, rows);
	for (i = 0; i < BQ; i++) {
		w->m[i] = M_LEAST;
		w->l[i] = 0.0f;
	}
	w->scale_o = 0;
	if (z->causal)
		end = min64(end, q0 + rows);
	begin_scores(w, z, 0);
	end_scores(w->s[0], z, 0);
	for (k0 = i = 0; k0 < end; k0 += z->bk, i ^= 1, last = t) {
		t = &ring[i];
		t->p = w->p[i];
		t->k0 = k0;
		t->keys = min64(z->bk, round_up(end - k0, 32));
		t->seen = min64(z->bk, round_up(end - k0, 2));
		overlap(w, last, t, z, end, q0);
	}
	overlap(w, last, NULL, z, end, q0);
	finish(w, o, s->heads * s->d, lse, z, rows);
}

/* k and v as tiles */
static int64_t
packed_elements(const struct lpo_attn_shape *s, enum lpo_dtype dt)
{
	struct plan z = plan_new(s, dt);

	return z.lo * (1 + z.split);
}

/*
 * Heads that are done together, so that the lines of q and o, which the next
 * head shares, come from memory once.
 */
static int64_t
heads_near(const struct lpo_attn_shape *s, enum lpo_dtype dt)
{
	int64_t n = NEAR / (2 * packed_elements(s, dt));

	return n < 1 ? 1 : min64(n, s->heads);
}

/*
 * Fewer heads than threads: each is packed once, by all of them, and they
 * share its queries.  Else each thread packs its own.
 */
static int
is_few(const lpo_backend *b, const struct lpo_attn_shape *s)
{
	return s->nk * s->heads < b->threads;
}

/* What is packed: behind the threads' rooms. */
static int64_t
heads_packed(const lpo_backend *b, const struct lpo_attn_shape *s,
    enum lpo_dtype dt)
{
	return is_few(b, s) ? s->nk * s->heads : b->threads *
	    heads_near(s, dt);
}

struct call {
	enum lpo_dtype dt;
	void *o;
	float *lse;
	const void *q, *k, *v;
	const struct lpo_attn_shape *s;
	struct plan z;
	int64_t row_blocks;	/* of queries, of a row */
	int64_t blocks;		/* of all rows that share one of k and v */
	int64_t each;		/* elements of a packed head */
};

/* Keys [g0, g1) of head h of row r of k and v. */
static void
pack_keys(uint16_t *to, const struct call *c, int64_t r, int64_t h, int64_t g0,
    int64_t g1)
{
	const struct lpo_attn_shape *s = c->s;
	int64_t at = at_k(s, r, 0, h);

	pack_k(to, elem(c->dt, c->k, at), s->ldk, &c->z, g0, g1);
	pack_v(to + c->z.lk * c->z.steps * 32, elem(c->dt, c->v, at), s->ldk,
	    &c->z, g0, g1);
}

/*
 * Heads [h0, h1) of the rows that share row r of k and v; of their query
 * blocks the part [b0, b1).
 */
static void
query_heads(struct room *w, const struct call *c, const uint16_t *packed,
    int64_t r, int64_t h0, int64_t h1, int64_t b0, int64_t b1)
{
	const struct lpo_attn_shape *s = c->s;
	struct plan z = c->z;
	int64_t b, i, q0, h;

	for (b = b0; b < b1; b++) {
		i = r * (s->n / s->nk) + b / c->row_blocks;
		q0 = b % c->row_blocks * BQ;
		for (h = h0; h < h1; h++) {
			z.k = packed + (h - h0) * c->each;
			z.v = z.k + z.lk * z.steps * 32;
			query_block(w, elem(c->dt, c->o, at_o(s, i, q0, h)),
			    c->lse == NULL ? NULL : c->lse + (i * s->heads +
			    h) * s->lq + q0, elem(c->dt, c->q, at_q(s, i, q0,
			    h)), &z, s, q0);
		}
	}
}

static void
few_heads(const lpo_backend *b, const struct call *c, struct room *rooms,
    uint16_t *packed)
{
	int64_t heads = c->s->heads, units = c->s->nk * heads, u;
	int64_t steps = c->z.lk / 32, parts = min64(div_up(b->threads, units),
	    c->blocks);

#pragma omp parallel num_threads(b->threads) \
    if (units * c->blocks * c->s->lk > 1024)
	{
#pragma omp for schedule(static)
		for (u = 0; u < units * steps; u++)
			pack_keys(packed + u / steps * c->each, c, u / steps /
			    heads, u / steps % heads, u % steps * 32,
			    (u % steps + 1) * 32);
		tile_config();
#pragma omp for schedule(static)
		for (u = 0; u < units * parts; u++) {
			int64_t h = u / parts % heads, p = u % parts;

			query_heads(rooms + omp_get_thread_num(), c, packed +
			    u / parts * c->each, u / parts / heads, h, h + 1,
			    p * c->blocks / parts, (p + 1) * c->blocks /
			    parts);
		}
		tile_release();
	}
}

static void
many_heads(const lpo_backend *b, const struct call *c, struct room *rooms,
    uint16_t *packed)
{
	int64_t heads = c->s->heads, most = heads_near(c->s, c->dt);
	int64_t near = min64(most, c->s->nk * heads / b->threads);
	int64_t groups = div_up(heads, near), u;

#pragma omp parallel num_threads(b->threads) \
    if (c->s->nk * heads * c->blocks * c->s->lk > 1024)
	{
		int64_t t = omp_get_thread_num();
		uint16_t *mine = packed + t * most * c->each;

		tile_config();
#pragma omp for schedule(static)
		for (u = 0; u < c->s->nk * groups; u++) {
			int64_t g = u % groups, h0 = g * heads / groups, h;
			int64_t h1 = (g + 1) * heads / groups;

			for (h = h0; h < h1; h++)
				pack_keys(mine + (h - h0) * c->each, c, u /
				    groups, h, 0, c->z.lk);
			query_heads(rooms + t, c, mine, u / groups, h0, h1, 0,
			    c->blocks);
		}
		tile_release();
	}
}

int
lpo_attention_fwd_amx(lpo_backend *b, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	struct call c = { .dt = dt, .o = o, .lse = lse, .q = q, .k = k,
	    .v = v, .s = s };
	struct room *rooms = scratch;
	uint16_t *packed = (uint16_t *)(rooms + b->threads);

	if (!lpo_on_tiles(b, dt) || s->d > WIDEST)
		return OTHER(attention_fwd)(b, dt, o, lse, q, k, v, s,
		    scratch);
	if (bad_shape(s, WIDEST))
		return LPO_EINVAL;
	c.z = plan_new(s, dt);
	c.row_blocks = div_up(s->lq, BQ);
	c.blocks = s->n / s->nk * c.row_blocks;
	c.each = packed_elements(s, dt);
	if (is_few(b, s))
		few_heads(b, &c, rooms, packed);
	else
		many_heads(b, &c, rooms, packed);
	return 0;
}

size_t
lpo_attention_scratch_bytes_amx(lpo_backend *b, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	if (pass != LPO_FWD && dt == LPO_BF16 && !bad_shape(s, LDA))
		return lpo_attention_bwd_bytes_amx(b, s);
	if (pass != LPO_FWD || !lpo_on_tiles(b, dt) || s->d > WIDEST)
		return OTHER(attention_scratch_bytes)(b, pass, dt, s);
	return (size_t)b->threads * sizeof(struct room) +
	    (size_t)(heads_packed(b, s, dt) * packed_elements(s, dt)) * 2;
}
