/*
 * Flash attention, backward, in bf16 on AMX tiles (attention_bwd.c has the
 * formulas).  Rows are keys and lanes are queries, so that lse and delta lie
 * in lanes:
 *	S^T = K Q^T,  dP^T = V dO^T	over channels by 32
 *	P, dS				in vectors, rounded to bf16
 *	dV += P^T dO,  dK += dS^T Q	over queries by 32
 *	dQ^T += K^T dS^T		over keys by 32
 * A row of P^T or dS^T as it is computed is a row of a tile; two rows of dS^T
 * with their words interleaved are a row of the last product's second factor.
 * That interleaving goes by 16 bytes, so queries stand there in the order
 * 0-3 8-11 16-19 24-27, 4-7 12-15 20-23 28-31 until dQ is turned around.
 *
 * Two schedules as in attention_bwd.c, with the same bits: an element is a
 * chain of tile products over queries, or keys, by 32 in ascending order,
 * wherever that chain is cut.
 */
#include "kernels/attention_bwd_tiles.h"
#include "kernels/levels.h"

#include <math.h>

/* ---- products */

/*
 * A store waits for its sum, and what comes after the store waits with it: so
 * the second row of a block, tiles 2 and 3, is stored when the next block has
 * begun with the first.
 */
struct late {
	float *c;		/* NULL: nothing to store */
	int cols;
};

static inline __attribute__((always_inline)) void
store_late(struct late *l)
{
	if (l->c == NULL)
		return;
	tile_store(2, l->c, 64);
	if (l->cols > 1)
		tile_store(3, l->c + FLOATS, 64);
	l->c = NULL;
}

/* What the tiles of a product are apart, in tiles. */
struct strides {
	int64_t c_row, a_row, a_step, b_col, b_step;
};

/*
 * c[rows][cols] (+)= a[rows][n] b[n][cols], in tiles; rows, cols and add are
 * constants
 */
static inline __attribute__((always_inline)) void
multiply(int rows, int cols, int add, float *c, const uint16_t *a,
    const uint16_t *b, int64_t n, const struct strides *z, struct late *l)
{
	float *c1 = c + z->c_row * FLOATS;
	int64_t t;

	if (add) {
		tile_load(0, c, 64);
		if (cols > 1)
			tile_load(1, c + FLOATS, 64);
	} else {
		tile_zero(0);
		tile_zero(1);
	}
	for (t = 0; t < n; t++) {
		tile_load(4, a, 64);
		tile_load(6, b, 64);
		if (cols > 1)
			tile_load(7, b + z->b_col * WORDS, 64);
		if (rows > 1)
			tile_load(5, a + z->a_row * WORDS, 64);
		tile_dp(0, 4, 6);
		if (cols > 1)
			tile_dp(1, 4, 7);
		if (t == 0) {
			store_late(l);
			if (rows > 1 && !add) {
				tile_zero(2);
				tile_zero(3);
			} else if (rows > 1) {
				tile_load(2, c1, 64);
				if (cols > 1)
					tile_load(3, c1 + FLOATS, 64);
			}
		}
		if (rows > 1) {
			tile_dp(2, 5, 6);
			if (cols > 1)
				tile_dp(3, 5, 7);
		}
		a += z->a_step * WORDS;
		b += z->b_step * WORDS;
	}
	tile_store(0, c, 64);
	if (cols > 1)
		tile_store(1, c + FLOATS, 64);
	if (rows > 1) {
		l->c = c1;
		l->cols = cols;
	}
}

/* c[2][cols] += a[2][n] b[n][cols] */
static inline void
add_row(float *c, const uint16_t *a, const uint16_t *b, int64_t cols,
    int64_t n, const struct strides *z, struct late *l)
{
	int64_t x;

	for (x = 0; x + 2 <= cols; x += 2)
		multiply(2, 2, 1, c + x * FLOATS, a, b + x * WORDS, n, z, l);
	if (x < cols)
		multiply(2, 1, 1, c + x * FLOATS, a, b + x * WORDS, n, z, l);
}

/* c[rows][2] += a[rows][n] b[n][2] */
static inline void
add_column(float *c, const uint16_t *a, const uint16_t *b, int64_t rows,
    int64_t n, const struct strides *z, struct late *l)
{
	int64_t x;

	for (x = 0; x + 2 <= rows; x += 2)
		multiply(2, 2, 1, c + x * z->c_row * FLOATS,
		    a + x * z->a_row * WORDS, b, n, z, l);
	if (x < rows)
		multiply(1, 2, 1, c + x * z->c_row * FLOATS,
		    a + x * z->a_row * WORDS, b, n, z, l);
}

/* ---- P and dS */

enum { PAIR = 2 * SIDE / VL };	/* vectors of two keys in a square */

/*
 * x = 2^x; where P is rounded to bf16, 3e-6 is exact enough.  A step is done
 * for all before the next, or the steps of one wait for each other.
 */
static inline __attribute__((always_inline)) void
exp2_for_bf16(vf x[PAIR])
{
#if defined(__AVX512DQ__)
	static const float c[] = { 0.05201146062f, 0.2414427569f,
	    0.6930038345f, 1.000002593f };
	vf f[PAIR], p[PAIR];
	int v, i;

	/* x less its floor; 2^floor is applied by scalef */
#pragma GCC unroll 16
	for (v = 0; v < PAIR; v++) {
		f[v] = (vf)_mm512_reduce_ps((__m512)x[v], 1);
		p[v] = vf_set1(0.01353416791f);
	}
#pragma GCC unroll 4
	for (i = 0; i < 4; i++)
#pragma GCC unroll 16
		for (v = 0; v < PAIR; v++)
			p[v] = vf_horner(p[v], f[v], c[i]);
#pragma GCC unroll 16
	for (v = 0; v < PAIR; v++)
		x[v] = (vf)_mm512_scalef_ps((__m512)p[v], (__m512)x[v]);
#else
	int v;

	for (v = 0; v < PAIR; v++)
		x[v] = vf_exp2_soft(x[v]);
#endif
}

static inline void
round_words(h32 *h, const vf v[SIDE / VL])
{
#if defined(__AVX512BF16__)
	*h = (h32)_mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]);
#else
	uint16_t a[SIDE];
	int i;

	for (i = 0; i < SIDE; i += VL)
		vf_store_bf16(a + i, v[i / VL]);
	memcpy(h, a, sizeof(*h));
#endif
}

/* n of 32 words */
static inline void
store_words(uint16_t *to, const vf v[SIDE / VL], int64_t n)
{
	h32 h;

	round_words(&h, v);
#if defined(__AVX512BW__)
	_mm512_mask_storeu_epi16(to, words_mask(n), (__m512i)h);
#else
	memcpy(to, &h, (size_t)min64(n, 32) * 2);
#endif
}

/*
 * Two rows of P and dS, from S and dP; the first unseen[] queries do not see
 * the key.
 */
static inline __attribute__((always_inline)) void
grad_pair(h32 p[2], h32 ds[2], const float *s, const float *dp,
    const float *lse2, const float *delta, vf scale, int masked,
    const int64_t unseen[2])
{
	vf x[PAIR], y[PAIR];
	int v, q, at;

#pragma GCC unroll 16
	for (v = 0; v < PAIR; v++) {
		q = v * VL % SIDE;
		at = v * VL / SIDE * 16 + q / 16 * FLOATS + q % 16;
		x[v] = vf_fma(vf_load(s + at), scale, vf_load(lse2 + q));
		y[v] = vf_load(dp + at) + vf_load(delta + q);
	}
	exp2_for_bf16(x);
#pragma GCC unroll 16
	for (v = 0; v < PAIR; v++) {
		q = v * VL % SIDE;
		if (masked)
			x[v] = vf_select(vi_iota() <
			    (int32_t)unseen[v * VL / SIDE] - q, (vf){0}, x[v]);
		y[v] = vf_mul(x[v], y[v]);
	}
	round_words(&p[0], x);
	round_words(&p[1], x + PAIR / 2);
	round_words(&ds[0], y);
	round_words(&ds[1], y + PAIR / 2);
}

/* Queries, of SIDE from q on, that do not see a key. */
static inline int64_t
unseen(const struct job *j, int64_t q, int64_t key)
{
	if (key >= j->s->lk)
		return SIDE;
	return j->s->causal && key > q ? min64(key - q, SIDE) : 0;
}

/* Words of two rows interleaved, 8 by 8. */
static inline __attribute__((always_inline)) void
store_pairs(uint16_t *to, const h32 v[2])
{
	h32 lo = __builtin_shufflevector(v[0], v[1], 0, 32, 1, 33, 2, 34, 3,
	    35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48, 17, 49, 18, 50, 19, 51,
	    24, 56, 25, 57, 26, 58, 27, 59);
	h32 hi = __builtin_shufflevector(v[0], v[1], 4, 36, 5, 37, 6, 38, 7,
	    39, 12, 44, 13, 45, 14, 46, 15, 47, 20, 52, 21, 53, 22, 54, 23,
	    55, 28, 60, 29, 61, 30, 62, 31, 63);

	memcpy(to, &lo, sizeof(lo));
	memcpy(to + WORDS, &hi, sizeof(hi));
}

/*
 * A square of P and dS: keys 32 i .. of those from `key` on, queries 32 t ..
 * of the block.
 */
static inline __attribute__((always_inline)) void
grad_square(const struct job *j, struct room *w, const struct queries *b,
    int64_t i, int64_t t, int64_t key, int masked)
{
	uint16_t *p = w->p + (2 * i * (BQ / SIDE) + t) * WORDS;
	uint16_t *ds = w->ds + (p - w->p);
	uint16_t *pairs = w->pairs + (i * (BQ / 16) + 2 * t) * WORDS;
	const float *lse2 = b->lse2 + t * SIDE, *delta = b->delta + t * SIDE;
	vf scale = vf_set1(j->scale * LOG2E);
	int64_t r, at, q = b->first + t * SIDE, hidden[2] = {0};
	h32 p2[2], ds2[2];

	key += i * SIDE;
	for (r = 0; r < SIDE; r += 2) {
		at = r / 16 * 2 * FLOATS + r % 16 * 16;
		if (masked) {
			hidden[0] = unseen(j, q, key + r);
			hidden[1] = unseen(j, q, key + r + 1);
		}
		grad_pair(p2, ds2, w->s + at, w->dp + at, lse2, delta, scale,
		    masked, hidden);
		at = r / 16 * (BQ / SIDE) * WORDS + r % 16 * 32;
		memcpy(p + at, &p2[0], sizeof(h32));
		memcpy(p + at + 32, &p2[1], sizeof(h32));
		memcpy(ds + at, &ds2[0], sizeof(h32));
		memcpy(ds + at + 32, &ds2[1], sizeof(h32));
		store_pairs(pairs + r * 16, ds2);
	}
}

/* ---- blocks */

/* S^T and dP^T: keys 16 k16 .. of a block, queries 32 t .. of another. */
static inline void
dots(const struct job *j, struct room *w, const struct keys *kb, int64_t k16,
    const struct queries *qb, int64_t t)
{
	int64_t n = j->ck, a = k16 * n * WORDS, b = 2 * t * n * WORDS;
	struct strides z = { 2, n, 1, n, 1 };
	struct late late = { NULL, 0 };

	multiply(2, 2, 0, w->s, kb->k + a, qb->q + b, n, &z, &late);
	multiply(2, 2, 0, w->dp, kb->v + a, qb->g + b, n, &z, &late);
	store_late(&late);
}

/* Sums of KS keys, from the k-th of a block on, and of a block of queries. */
static void
meet_some(const struct job *j, struct room *w, const struct keys *kb, int64_t k,
    const struct queries *qb, int want_keys, int want_queries)
{
	int64_t nk = div_up(min64(KS, kb->count - k), SIDE), i, t, a, c;
	int64_t nq = div_up(qb->count, SIDE), key = kb->first + k, q;
	struct strides row = { j->cv, BQ / SIDE, 1, 1, j->cv };
	struct strides column = { 2, j->bk / SIDE, 1, 1, BQ / 16 };
	struct late late = { NULL, 0 };

	for (t = 0; t < nq; t++)
		for (i = 0; i < nk; i++) {
			dots(j, w, kb, k / 16 + 2 * i, qb, t);
			q = qb->first + t * SIDE;
			if (unseen(j, q, key + i * SIDE + SIDE - 1) > 0)
				grad_square(j, w, qb, i, t, key, 1);
			else
				grad_square(j, w, qb, i, t, key, 0);
		}
	for (i = 0; i < nk && want_keys; i++) {
		c = (k / 16 + 2 * i) * j->cv * FLOATS;
		a = 2 * i * (BQ / SIDE) * WORDS;
		add_row(kb->dv + c, w->p + a, qb->gp, j->cv, nq, &row, &late);
		add_row(kb->dk + c, w->ds + a, qb->qp, j->cv, nq, &row,
		    &late);
	}
	for (t = 0; t < nq && want_queries; t++)
		add_column(qb->dq + t * 2 * j->cv * FLOATS, kb->kt +
		    k / SIDE * WORDS, w->pairs + 2 * t * WORDS, j->cv, nk,
		    &column, &late);
	store_late(&late);
}

/* Keys after all queries are left out: their P is 0. */
static void
meet(const struct job *j, struct room *w, const struct keys *kb,
    const struct queries *qb, int want_keys, int want_queries)
{
	int64_t k;

	for (k = 0; k < kb->count; k += KS)
		if (!j->s->causal || kb->first + k < qb->first + qb->count)
			meet_some(j, w, kb, k, qb, want_keys, want_queries);
}

/* One row of d channels, set or added to; tiles of 16 are `step` apart. */
static void
store_row(uint16_t *to, const float *from, int64_t step, int64_t d,
    float scale, int add)
{
	vf v[SIDE / VL];
	int64_t x, c;
	int i;

	for (x = 0; x < d; x += SIDE) {
		for (i = 0; i < SIDE / VL; i++) {
			c = x + i * VL;
			v[i] = (vf){0};
			if (c >= d)
				continue;
			v[i] = vf_fma(vf_load(from + c / 16 * step + c % 16),
			    vf_set1(scale), add ? vld(LPO_BF16, to, c, d) :
			    (vf){0});
		}
		store_words(to + x, v, d - x);
	}
}

static void
store_keys(const struct job *j, const struct keys *b, int64_t r, int64_t h)
{
	int64_t t, at, from;

	for (t = 0; t < b->count; t++) {
		at = at_k(j->s, r, b->first + t, h);
		from = t / 16 * j->cv * FLOATS + t % 16 * 16;
		if (j->dk != NULL)
			store_row(j->dk + at, b->dk + from, FLOATS, j->s->d,
			    j->scale, j->add & LPO_ADD_B);
		if (j->dv != NULL)
			store_row(j->dv + at, b->dv + from, FLOATS, j->s->d,
			    1.0f, j->add & LPO_ADD_C);
	}
}

/* Two tiles to rows: query 8 l + 4 half + i is lane 4 l + i of its half. */
static void
turn_queries(float *rows, const float *tiles)
{
	int64_t half, x, l, k;
	v4 r[4];

	for (half = 0; half < 2; half++)
		for (x = 0; x < 16; x += 4)
			for (l = 0; l < 4; l++) {
				const float *from = tiles + half * FLOATS +
				    x * 16 + 4 * l;
				float *to = rows + (8 * l + 4 * half) * LDA +
				    x;

				for (k = 0; k < 4; k++)
					memcpy(&r[k], from + k * 16,
					    sizeof(v4));
				transpose4(r);
				for (k = 0; k < 4; k++)
					memcpy(to + k * LDA, &r[k],
					    sizeof(v4));
			}
}

static void
store_queries(const struct job *j, struct room *w, const struct queries *b,
    int64_t i, int64_t h)
{
	int64_t t, c, k, at;

	for (t = 0; t < b->count; t += SIDE) {
		for (c = 0; c < j->cv; c++)
			turn_queries(w->turned + c * 16, b->dq +
			    (t / SIDE * j->cv + c) * 2 * FLOATS);
		for (k = 0; k < min64(SIDE, b->count - t); k++) {
			at = at_q(j->s, i, b->first + t + k, h);
			store_row(j->dq + at, w->turned + k * LDA, 16,
			    j->s->d, j->scale, j->add & LPO_ADD_A);
		}
	}
}

/* ---- schedules */

/*
 * dK and dV of the keys [k0, k1) of row r, and with want_queries dQ of all
 * rows that share them.  Where queries meet several blocks of keys, each of
 * their blocks keeps a slot of its own.
 */
static void
keys_unit(const struct job *j, int64_t r, int64_t h, int64_t k0, int64_t k1,
    int want_queries)
{
	int64_t share = j->s->n / j->s->nk, i, k, q, lq = j->s->lq;
	int again = want_queries && k1 - k0 > BK;
	struct room *w = room_of_thread(j);
	struct queries qb;
	struct keys kb;

	for (k = k0; k < k1; k += BK) {
		kb = keys_in(j, w, k);
		pack_keys(j, &kb, r, h);
		for (i = r * share; i < (r + 1) * share; i++)
			for (q = 0; q < lq; q += BQ) {
				qb = queries_in(j, w, again ? q / BQ : 0, q);
				if (k == k0 || !again)
					pack_queries(j, w, &qb, i, h);
				meet(j, w, &kb, &qb, 1, want_queries);
				if (want_queries && k + BK >= k1)
					store_queries(j, w, &qb, i, h);
			}
		store_keys(j, &kb, r, h);
	}
}

/* dQ of the queries [q0, q1) of row i, a slot for each of their blocks. */
static void
queries_unit(const struct job *j, int64_t i, int64_t h, int64_t q0,
    int64_t q1)
{
	struct room *w = room_of_thread(j);
	struct queries qb;
	struct keys kb;
	int64_t k, q;

	for (k = 0; k < j->s->lk && (!j->s->causal || k < q1); k += BK) {
		kb = keys_in(j, w, k);
		pack_keys(j, &kb, i * j->s->nk / j->s->n, h);
		for (q = q0; q < q1; q += BQ) {
			qb = queries_in(j, w, (q - q0) / BQ, q);
			if (k == 0)
				pack_queries(j, w, &qb, i, h);
			meet(j, w, &kb, &qb, 0, 1);
		}
	}
	for (q = q0; q < q1; q += BQ) {
		qb = queries_in(j, w, (q - q0) / BQ, q);
		store_queries(j, w, &qb, i, h);
	}
}

/*
 * One pass does 5 products to the 7 of two, but a thread has a whole head to
 * do; sums of keys that rows share are kept for one block only.
 */
static int
can_one_pass(const lpo_backend *b, const struct lpo_attn_shape *s)
{
	int64_t units = s->nk * s->heads, rounds = div_up(units, b->threads);

	return (s->nk == s->n || s->lk <= BK) &&
	    rounds * b->threads * 5 <= units * 7;
}

static int64_t
slots_of(const lpo_backend *b, const struct lpo_attn_shape *s)
{
	int64_t blocks = div_up(s->lq, BQ);

	return can_one_pass(b, s) && s->lk > BK ? blocks :
	    min64(blocks, AHEAD);
}

/* What follows from a shape. */
static struct job
job_of(const lpo_backend *b, const struct lpo_attn_shape *s)
{
	struct job j = { .s = s };

	j.ck = div_up(s->d, 32);
	j.cv = div_up(s->d, 16);
	j.bk = min64(BK, div_up(s->lk, SIDE) * SIDE);
	j.slots = slots_of(b, s);
	j.scale = 1.0f / sqrtf((float)s->d);
	return j;
}

static void
one_pass(const struct job *j, const lpo_backend *b)
{
	int64_t heads = j->s->heads, lk = j->s->lk, u;

#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (j->s->n * heads * j->s->lq * lk > 4096)
	for (u = 0; u < j->s->nk * heads; u++) {
		tile_config();
		keys_unit(j, u / heads, u % heads, 0, lk, j->dq != NULL);
		tile_release();
	}
}

static void
two_passes(const struct job *j, const lpo_backend *b)
{
	int64_t heads = j->s->heads, lk = j->s->lk, lq = j->s->lq, u;
	int64_t bk = div_up(lk, BK), bq = div_up(lq, BQ * AHEAD);
	int64_t first = j->dk != NULL || j->dv != NULL ?
	    j->s->nk * heads * bk : 0;
	int64_t second = j->dq != NULL ? j->s->n * heads * bq : 0;

#pragma omp parallel for schedule(static, 1) num_threads(b->threads)
	for (u = 0; u < first + second; u++) {
		int64_t head, at;

		tile_config();
		if (u < first) {
			head = u / bk;
			at = u % bk * BK;
			keys_unit(j, head / heads, head % heads, at,
			    min64(at + BK, lk), 0);
		} else {
			head = (u - first) / bq;
			at = (u - first) % bq * BQ * AHEAD;
			queries_unit(j, head / heads, head % heads, at,
			    min64(at + BQ * AHEAD, lq));
		}
		tile_release();
	}
}

int
lpo_attention_bwd_amx(lpo_backend *b, enum lpo_dtype dt, void *dq, void *dk,
    void *dv, const void *dout, const void *o, const float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int add, void *scratch)
{
	struct job j;

	if (dt != LPO_BF16 || bad_shape(s, LDA))
		return OTHER(attention_bwd)(b, dt, dq, dk, dv, dout, o, lse,
		    q, k, v, s, add, scratch);
	j = job_of(b, s);
	j.dq = dq;
	j.dk = dk;
	j.dv = dv;
	j.dout = dout;
	j.o = o;
	j.q = q;
	j.k = k;
	j.v = v;
	j.lse = lse;
	j.add = add;
	j.scratch = scratch;
	if (can_one_pass(b, s) && (dk != NULL || dv != NULL))
		one_pass(&j, b);
	else
		two_passes(&j, b);
	return 0;
}

size_t
lpo_attention_bwd_bytes_amx(const lpo_backend *b,
    const struct lpo_attn_shape *s)
{
	struct job j = job_of(b, s);

	return (size_t)(b->threads * room_bytes(&j));
}
