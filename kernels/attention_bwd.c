/*
 * Flash attention, backward.  With P = 2^(S - lse), delta = sum o do:
 *	dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),
 *	dQ = scale dS K,  dK = scale dS^T Q
 * S is computed again from q and k.
 *
 * Two schedules, chosen by how much there is to share out.  One pass: a
 * thread owns a row of keys and a head, lanes are keys, and dQ comes from dS
 * turned around.  Two passes: dK and dV by blocks of keys, dQ by blocks of
 * queries, S and dP computed in both.  Every element is the same chain of
 * fma in both, so the choice (it looks at the threads) never shows.
 */
#include "kernels/attention.h"
#include "kernels/levels.h"

#include <math.h>
#include <omp.h>

enum {
	ROWS = 64		/* queries that meet a block of keys at a time */
};

/* One thread's memory. */
struct room {
	float a[BLOCK * LDA], b[BLOCK * LDA], c[BLOCK * LDA];	/* rows */
	float strip[4][BLOCK * LDA];		/* strips [d][STRIP] */
	float s[BLOCK * STRIP], dp[BLOCK * STRIP];
	float turned[ROWS * STRIP];		/* [ROWS / STRIP][key][STRIP] */
};

/* The arguments of one call, and its scratch. */
struct job {
	enum lpo_dtype dt;
	void *dq, *dk, *dv;
	const void *dout, *o, *q, *k, *v;
	const float *lse;
	const struct lpo_attn_shape *s;
	float *lse2, *delta;	/* [n, heads, lq]: lse log2 e, sum o do */
	float *dqt;		/* one pass: dQ of a head, strips, per thread */
	int64_t dqt_size;	/* its elements */
	struct room *room;
	float scale;		/* of q: d^-1/2 log2 e */
};

/* One lane group of P and dS; both start as S and dP. */
static inline void
grad_lanes(float *s, float *dp, vf lse2, vf delta, vi unseen)
{
	vf p = vf_exp2_soft(vf_load(s) - lse2);

	p = (vf)((vi)p & ~unseen);
	vf_store(s, p);
	vf_store(dp, p * (vf_load(dp) - delta));
}

/*
 * Lanes are keys k0 .., rows queries q0 ..: s becomes P, dp becomes dS.
 * unseen: the key is after the query.
 */
static void
grad_by_keys(int nr, float *s, float *dp, const float *lse2,
    const float *delta, int64_t rows, int64_t q0, int64_t k0, int causal)
{
	vi lane = vi_iota(), unseen = {0};
	int64_t r, v;

	for (r = 0; r < rows; r++)
		for (v = 0; v < nr * VL; v += VL) {
			if (causal)
				unseen = lane > (int32_t)(q0 + r - k0 - v);
			grad_lanes(s + r * STRIP + v, dp + r * STRIP + v,
			    vf_set1(lse2[r]), vf_set1(delta[r]), unseen);
		}
}

/* The same with lanes queries q0 .. and rows keys k0 .. */
static void
grad_by_queries(int nr, float *s, float *dp, const float *lse2,
    const float *delta, int64_t rows, int64_t q0, int64_t k0, int causal)
{
	vi lane = vi_iota(), unseen = {0};
	int64_t r, v;

	for (r = 0; r < rows; r++)
		for (v = 0; v < nr * VL; v += VL) {
			if (causal)
				unseen = lane < (int32_t)(k0 + r - q0 - v);
			grad_lanes(s + r * STRIP + v, dp + r * STRIP + v,
			    vf_load(lse2 + v), vf_load(delta + v), unseen);
		}
}

/* turned[r / STRIP][lane][r % STRIP] = s[r][lane] */
static void
turn(float *turned, const float *s, int64_t rows, int64_t lanes)
{
	int64_t r, x, j;
	v4 t[4];

	for (r = 0; r < rows; r += 4)
		for (x = 0; x < lanes; x += 4) {
			float *dst = turned + r / STRIP * STRIP * STRIP +
			    r % STRIP;

			for (j = 0; j < 4; j++) {
				t[j] = (v4){0};
				if (r + j < rows)
					memcpy(&t[j], s + (r + j) * STRIP + x,
					    sizeof(v4));
			}
			transpose4(t);
			for (j = 0; j < 4; j++)
				memcpy(dst + (x + j) * STRIP, &t[j],
				    sizeof(v4));
		}
}

/* dQ of queries q0 .. += dS K of the strip's keys; k their rows. */
static void
add_dq(const struct job *j, struct room *w, float *dqt, const float *k,
    int64_t rows, int64_t keys)
{
	int64_t t;

	turn(w->turned, w->dp, rows, keys);
	for (t = 0; t < rows; t += STRIP)
		strip_acc(strip_vectors(rows - t), keys, j->s->d, k,
		    w->turned + t * STRIP, dqt + t * j->s->d);
}

/*
 * Queries [q0, q1) of row i against keys [k0, k1): strips 0 k, 1 v, 2 dk,
 * 3 dv; w->c the rows of k, where dqt (dQ from q0 on) is wanted.
 */
static void
meet(const struct job *j, struct room *w, float *dqt, int64_t i, int64_t h,
    int64_t q0, int64_t q1, int64_t k0, int64_t k1)
{
	int64_t d = j->s->d, rows = q1 - q0, k, t, size = d * STRIP;
	const float *lse2 = j->lse2 + (i * j->s->heads + h) * j->s->lq + q0;
	const float *delta = j->delta + (lse2 - j->lse2);

	load_rows(j->dt, w->a, elem(j->dt, j->q, at_q(j->s, i, q0, h)),
	    j->s->ldq, rows, d, j->scale);
	load_rows(j->dt, w->b, elem(j->dt, j->dout, at_o(j->s, i, q0, h)),
	    j->s->heads * d, rows, d, 1.0f);
	for (k = k0, t = 0; k < k1; k += STRIP, t++) {
		int nr = strip_vectors(k1 - k);

		if (j->s->causal && k >= q1)
			break;
		strip_dot(nr, rows, d, w->a, w->strip[0] + t * size, w->s);
		strip_dot(nr, rows, d, w->b, w->strip[1] + t * size, w->dp);
		grad_by_keys(nr, w->s, w->dp, lse2, delta, rows, q0, k,
		    j->s->causal);
		strip_acc(nr, rows, d, w->b, w->s, w->strip[3] + t * size);
		strip_acc(nr, rows, d, w->a, w->dp, w->strip[2] + t * size);
		if (dqt != NULL)
			add_dq(j, w, dqt, w->c + t * STRIP * LDA, rows,
			    min64(STRIP, k1 - k));
	}
}

/* dqt of all queries of row i to dq. */
static void
store_dq(const struct job *j, const float *dqt, int64_t i, int64_t h)
{
	int64_t lq = j->s->lq, d = j->s->d, t;

	for (t = 0; t < lq; t += STRIP)
		store_strip(j->dt, elem(j->dt, j->dq, at_q(j->s, i, t, h)),
		    j->s->ldq, dqt + t * d, min64(STRIP, lq - t), d,
		    j->scale * LN2, 1);
}

/* dK and dV of the keys [k0, k1) of row r; with dqt, also their part of dQ. */
static void
keys_unit(const struct job *j, struct room *w, float *dqt, int64_t r,
    int64_t h, int64_t k0, int64_t k1)
{
	int64_t share = j->s->n / j->s->nk, d = j->s->d, size = d * STRIP;
	int64_t i, k, q, t, lanes;

	for (k = k0, t = 0; k < k1; k += STRIP, t++) {
		lanes = min64(STRIP, k1 - k);
		load_strip(j->dt, w->strip[0] + t * size, elem(j->dt, j->k,
		    at_k(j->s, r, k, h)), j->s->ldk, lanes, d, 1.0f);
		load_strip(j->dt, w->strip[1] + t * size, elem(j->dt, j->v,
		    at_k(j->s, r, k, h)), j->s->ldk, lanes, d, 1.0f);
	}
	memset(w->strip[2], 0, (size_t)(t * size) * sizeof(float));
	memset(w->strip[3], 0, (size_t)(t * size) * sizeof(float));
	if (dqt != NULL)
		load_rows(j->dt, w->c, elem(j->dt, j->k, at_k(j->s, r, k0, h)),
		    j->s->ldk, k1 - k0, d, 1.0f);
	for (i = r * share; i < (r + 1) * share; i++) {
		if (dqt != NULL && k0 == 0)
			memset(dqt, 0, (size_t)j->dqt_size * sizeof(float));
		q = j->s->causal ? k0 / ROWS * ROWS : 0;
		for (; q < j->s->lq; q += ROWS)
			meet(j, w, dqt == NULL ? NULL : dqt + q * d, i, h, q,
			    min64(q + ROWS, j->s->lq), k0, k1);
		if (dqt != NULL && k1 == j->s->lk)
			store_dq(j, dqt, i, h);
	}
	for (k = k0, t = 0; k < k1; k += STRIP, t++) {
		lanes = min64(STRIP, k1 - k);
		if (j->dk != NULL)
			store_strip(j->dt, elem(j->dt, j->dk,
			    at_k(j->s, r, k, h)), j->s->ldk, w->strip[2] +
			    t * size, lanes, d, LN2, 1);
		if (j->dv != NULL)
			store_strip(j->dt, elem(j->dt, j->dv,
			    at_k(j->s, r, k, h)), j->s->ldk, w->strip[3] +
			    t * size, lanes, d, 1.0f, 1);
	}
}

/* dQ of the queries [q0, q1) of row i: strips 0 q, 1 do, 2 dq. */
static void
queries_unit(const struct job *j, struct room *w, int64_t i, int64_t h,
    int64_t q0, int64_t q1)
{
	int64_t d = j->s->d, size = d * STRIP, kr = i * j->s->nk / j->s->n;
	int64_t head = (i * j->s->heads + h) * j->s->lq, keys, k, q, t;
	float lse2[BLOCK] = {0}, delta[BLOCK] = {0};

	memcpy(lse2, j->lse2 + head + q0, (size_t)(q1 - q0) * sizeof(float));
	memcpy(delta, j->delta + head + q0,
	    (size_t)(q1 - q0) * sizeof(float));
	for (q = q0, t = 0; q < q1; q += STRIP, t++) {
		load_strip(j->dt, w->strip[0] + t * size, elem(j->dt, j->q,
		    at_q(j->s, i, q, h)), j->s->ldq, min64(STRIP, q1 - q), d,
		    j->scale);
		load_strip(j->dt, w->strip[1] + t * size, elem(j->dt,
		    j->dout, at_o(j->s, i, q, h)), j->s->heads * d,
		    min64(STRIP, q1 - q), d, 1.0f);
	}
	memset(w->strip[2], 0, (size_t)(t * size) * sizeof(float));
	for (k = 0; k < j->s->lk && (!j->s->causal || k < q1); k += ROWS) {
		keys = min64(ROWS, j->s->lk - k);
		load_rows(j->dt, w->a, elem(j->dt, j->k, at_k(j->s, kr, k, h)),
		    j->s->ldk, keys, d, 1.0f);
		load_rows(j->dt, w->b, elem(j->dt, j->v, at_k(j->s, kr, k, h)),
		    j->s->ldk, keys, d, 1.0f);
		for (q = q0, t = 0; q < q1; q += STRIP, t++) {
			int nr = strip_vectors(q1 - q);

			if (j->s->causal && k >= q + STRIP)
				continue;
			strip_dot(nr, keys, d, w->a, w->strip[0] + t * size,
			    w->s);
			strip_dot(nr, keys, d, w->b, w->strip[1] + t * size,
			    w->dp);
			grad_by_queries(nr, w->s, w->dp, lse2 + q - q0,
			    delta + q - q0, keys, q, k, j->s->causal);
			strip_acc(nr, keys, d, w->a, w->dp,
			    w->strip[2] + t * size);
		}
	}
	for (q = q0, t = 0; q < q1; q += STRIP, t++)
		store_strip(j->dt, elem(j->dt, j->dq, at_q(j->s, i, q, h)),
		    j->s->ldq, w->strip[2] + t * size, min64(STRIP, q1 - q),
		    d, j->scale * LN2, 1);
}

/* lse2 and delta of every query. */
static void
prepare(const struct job *j, const lpo_backend *b)
{
	int64_t heads = j->s->heads, lq = j->s->lq, d = j->s->d, u;

#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (j->s->n * heads * lq * d > 65536)
	for (u = 0; u < j->s->n * lq; u++) {
		int64_t i = u / lq, t = u % lq, h, x, to;

		for (h = 0; h < heads; h++) {
			const void *o = elem(j->dt, j->o, at_o(j->s, i, t, h));
			const void *g = elem(j->dt, j->dout,
			    at_o(j->s, i, t, h));
			vf sum = {0};

			for (x = 0; x < d; x += VL)
				sum = vf_fma(vld(j->dt, o, x, d),
				    vld(j->dt, g, x, d), sum);
			to = (i * heads + h) * lq + t;
			j->delta[to] = vf_hsum(sum);
			j->lse2[to] = j->lse[to] * LOG2E;
		}
	}
}

/*
 * One pass keeps dQ of one head per thread: with several blocks of keys that
 * only works where each row has its own keys.
 */
static int
can_one_pass(const struct lpo_attn_shape *s)
{
	return s->nk == s->n || s->lk <= BLOCK;
}

static int64_t
dqt_elements(const struct lpo_attn_shape *s)
{
	return can_one_pass(s) ? (s->lq + STRIP - 1) / STRIP * STRIP * s->d :
	    0;
}

static void
one_pass(const struct job *j, const lpo_backend *b)
{
	int64_t heads = j->s->heads, lk = j->s->lk, u;

#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (j->s->n * heads * j->s->lq * lk * j->s->d > 32768)
	for (u = 0; u < j->s->nk * heads; u++) {
		int64_t thread = omp_get_thread_num(), k;
		float *dqt = j->dqt + thread * j->dqt_size;

		for (k = 0; k < lk; k += BLOCK)
			keys_unit(j, j->room + thread, j->dq == NULL ? NULL :
			    dqt, u / heads, u % heads, k,
			    min64(k + BLOCK, lk));
	}
}

static void
two_passes(const struct job *j, const lpo_backend *b)
{
	int64_t heads = j->s->heads, lk = j->s->lk, lq = j->s->lq;
	int64_t bk = (lk + BLOCK - 1) / BLOCK, bq = (lq + ROWS - 1) / ROWS;
	int64_t first = j->dk != NULL || j->dv != NULL ?
	    j->s->nk * heads * bk : 0;
	int64_t second = j->dq != NULL ? j->s->n * heads * bq : 0, u;

#pragma omp parallel for schedule(static, 1) num_threads(b->threads)
	for (u = 0; u < first + second; u++) {
		struct room *w = j->room + omp_get_thread_num();
		int64_t head, at;

		if (u < first) {
			head = u / bk;
			at = u % bk * BLOCK;
			keys_unit(j, w, NULL, head / heads, head % heads, at,
			    min64(at + BLOCK, lk));
		} else {
			head = (u - first) / bq;
			at = (u - first) % bq * ROWS;
			queries_unit(j, w, head / heads, head % heads, at,
			    min64(at + ROWS, lq));
		}
	}
}

/* Zero the c first elements of each of m rows, ld apart. */
static void
clear_rows(enum lpo_dtype dt, void *p, int64_t m, int64_t c, int64_t ld)
{
	int64_t i;

	for (i = 0; i < m && p != NULL; i++)
		memset(elem(dt, p, i * ld), 0, (size_t)(c * elem_bytes(dt)));
}

int
LPO_FN(lpo_attention_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dq,
    void *dk, void *dv, const void *dout, const void *o, const float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int add, void *scratch)
{
	struct job j = { dt, dq, dk, dv, dout, o, q, k, v, lse, s, NULL,
	    NULL, NULL, 0, scratch, 0.0f };

	if (bad_shape(s, LDA) || (dt != LPO_F32 && dt != LPO_BF16))
		return LPO_EINVAL;
	if ((add & LPO_ADD_A) == 0)
		clear_rows(dt, dq, s->n * s->lq, s->heads * s->d, s->ldq);
	if ((add & LPO_ADD_B) == 0)
		clear_rows(dt, dk, s->nk * s->lk, s->heads * s->d, s->ldk);
	if ((add & LPO_ADD_C) == 0)
		clear_rows(dt, dv, s->nk * s->lk, s->heads * s->d, s->ldk);
	j.scale = LOG2E / sqrtf((float)s->d);
	j.dqt = (float *)(j.room + b->threads);
	j.dqt_size = dqt_elements(s);
	j.lse2 = j.dqt + b->threads * j.dqt_size;
	j.delta = j.lse2 + s->n * s->heads * s->lq;
	prepare(&j, b);
	if (can_one_pass(s) && (dk != NULL || dv != NULL) &&
	    s->nk * s->heads >= b->threads)
		one_pass(&j, b);
	else
		two_passes(&j, b);
	return 0;
}

size_t
LPO_FN(lpo_attention_bwd_bytes)(const lpo_backend *b,
    const struct lpo_attn_shape *s)
{
	return (size_t)b->threads * (sizeof(struct room) +
	    (size_t)dqt_elements(s) * sizeof(float)) +
	    2 * (size_t)(s->n * s->heads * s->lq) * sizeof(float);
}
