/*
 * Flash attention, forward: o = softmax(q k^T d^-1/2 + mask) v.
 * A unit of work is one row, head and block of queries; keys stream past in
 * blocks with the running maximum m and sum l of each query (in powers of
 * two; q is scaled by log2 e):
 *	m' = max(m, max s),  p = 2^(s - m'),  a = 2^(m - m')
 *	l = a l + sum p,  o = a o + p v
 */
#include "kernels/attention.h"
#include "kernels/attention_wide.h"
#include "kernels/levels.h"

#include <math.h>
#include <omp.h>

/* Keys are loaded once for so many queries, or as many as have room. */
#define QUERIES	512

/* One thread's memory. */
struct room {
	float k[BLOCK * LDA], v[BLOCK * LDA];	/* rows */
	float s[BLOCK * STRIP];			/* [key][STRIP] */
	float q[BLOCK * LDA], o[BLOCK * LDA];	/* strips [d][STRIP] */
	float m[QUERIES], l[QUERIES];
};

/*
 * Keys per block: k and v rows should stay in L1.  Depends on the shape of
 * one head alone, because the cuts show in the last bits.
 */
static int64_t
keys_per_block(const struct lpo_attn_shape *s)
{
	int64_t most = 6144 / s->d, blocks;

	most = most < 32 ? 32 : min64(most, BLOCK);
	blocks = (s->lk + most - 1) / most;
	return (s->lk + blocks - 1) / blocks;
}

/* s[key][lane] = -Inf where key k0 + j is after query q0 + lane */
static void
mask_future(float *s, int64_t keys, int64_t k0, int64_t q0)
{
	vi lane = vi_iota();
	int64_t j, v;

	for (j = 0; j < keys; j++)
		for (v = 0; v < 2; v++) {
			float *p = s + j * STRIP + v * VL;
			int32_t first = (int32_t)(k0 + j - q0 - v * VL);

			vf_store(p, vf_select(lane < first,
			    vf_set1(-INFINITY), vf_load(p)));
		}
}

/*
 * s becomes p; m and l of the strip move on; o is scaled by a, unless this is
 * its first block (then o is 0, and a too).
 */
static inline __attribute__((always_inline)) void
softmax_vectors(int nr, float *s, int64_t keys, float *m, float *l, float *o,
    int64_t d, int first)
{
	vf top[2], sum[2] = {{0}, {0}}, a[2], p;
	int64_t j;
	int v;

	for (v = 0; v < nr; v++)
		top[v] = vf_load(m + v * VL);
	for (j = 0; j < keys; j++)
		for (v = 0; v < nr; v++)
			top[v] = vf_max(vf_load(s + j * STRIP + v * VL),
			    top[v]);
	for (j = 0; j < keys; j++)
		for (v = 0; v < nr; v++) {
			p = vf_load(s + j * STRIP + v * VL) - top[v];
			p = vf_exp2_soft(p);
			sum[v] += p;
			vf_store(s + j * STRIP + v * VL, p);
		}
	for (v = 0; v < nr; v++) {
		a[v] = vf_exp2_soft(vf_load(m + v * VL) - top[v]);
		vf_store(m + v * VL, top[v]);
		vf_store(l + v * VL, vf_fma(vf_load(l + v * VL), a[v],
		    sum[v]));
	}
	for (j = 0; j < d && !first; j++)
		for (v = 0; v < nr; v++) {
			float *oj = o + j * STRIP + v * VL;

			vf_store(oj, vf_load(oj) * a[v]);
		}
}

static void
softmax_block(int nr, float *s, int64_t keys, float *m, float *l, float *o,
    int64_t d, int first)
{
	if (nr == 2)
		softmax_vectors(2, s, keys, m, l, o, d, first);
	else
		softmax_vectors(1, s, keys, m, l, o, d, first);
}

/* o / l to the rows of the output, log of the sums to lse. */
static void
finish_strip(enum lpo_dtype dt, void *dst, int64_t ld, float *lse, float *o,
    const float *m, const float *l, int64_t rows, int64_t d)
{
	vf r0 = 1.0f / vf_load(l), r1 = 1.0f / vf_load(l + VL);
	int64_t j;

	for (j = 0; j < d; j++) {
		vf_store(o + j * STRIP, vf_load(o + j * STRIP) * r0);
		vf_store(o + j * STRIP + VL,
		    vf_load(o + j * STRIP + VL) * r1);
	}
	store_strip(dt, dst, ld, o, rows, d, 1.0f, 0);
	for (j = 0; lse != NULL && j < rows; j += VL)
		vst(LPO_F32, lse, j, rows, vf_fma(vf_load(m + j),
		    vf_set1(LN2), vf_log(vf_load(l + j))));
}

/* Queries [q0, q1) of head h of row i. */
static void
forward_unit(enum lpo_dtype dt, struct room *w, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int64_t i, int64_t h, int64_t q0,
    int64_t q1)
{
	int64_t d = s->d, bk = keys_per_block(s), k0, keys, at, t, rows;
	int64_t kr = i * s->nk / s->n, size = d * STRIP;
	float scale = LOG2E / sqrtf((float)d);

	for (at = q0, t = 0; at < q1; at += STRIP, t++)
		load_strip(dt, w->q + t * size, elem(dt, q,
		    at_q(s, i, at, h)), s->ldq, min64(STRIP, q1 - at), d,
		    scale);
	memset(w->o, 0, (size_t)(t * size) * sizeof(float));
	for (at = 0; at < t * STRIP; at++) {
		w->m[at] = -INFINITY;
		w->l[at] = 0.0f;
	}
	for (k0 = 0; k0 < s->lk && (!s->causal || k0 < q1); k0 += bk) {
		keys = min64(bk, s->lk - k0);
		load_rows(dt, w->k, elem(dt, k, at_k(s, kr, k0, h)), s->ldk,
		    keys, d, 1.0f);
		load_rows(dt, w->v, elem(dt, v, at_k(s, kr, k0, h)), s->ldk,
		    keys, d, 1.0f);
		for (at = q0, t = 0; at < q1; at += STRIP, t++) {
			int nr = strip_vectors(q1 - at);

			if (s->causal && k0 >= at + STRIP)
				continue;
			strip_dot(nr, keys, d, w->k, w->q + t * size, w->s);
			if (s->causal && k0 + keys > at)
				mask_future(w->s, keys, k0, at);
			softmax_block(nr, w->s, keys, w->m + t * STRIP,
			    w->l + t * STRIP, w->o + t * size, d, k0 == 0);
			strip_acc(nr, keys, d, w->v, w->s, w->o + t * size);
		}
	}
	for (at = q0, t = 0; at < q1; at += STRIP, t++) {
		rows = min64(STRIP, q1 - at);
		finish_strip(dt, elem(dt, o, at_o(s, i, at, h)), s->heads * d,
		    lse == NULL ? NULL : lse + (i * s->heads + h) * s->lq + at,
		    w->o + t * size, w->m + t * STRIP, w->l + t * STRIP, rows,
		    d);
	}
}

int
LPO_FN(lpo_attention_fwd)(lpo_backend *b, enum lpo_dtype dt, void *o,
    float *lse, const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	struct room *room = scratch;
	int64_t heads = s->n * s->heads, bq, blocks, u;

	if (s->d > LDA)
		return LPO_FN(lpo_attention_wide_fwd)(b, dt, o, lse, q, k, v,
		    s, scratch);
	if (bad_shape(s, LDA) || (dt != LPO_F32 && dt != LPO_BF16))
		return LPO_EINVAL;
	bq = min64(QUERIES, BLOCK * LDA / s->d / STRIP * STRIP);
	/* strips begin where they would for any number of threads */
	bq = min64(bq, round_up(s->lq, STRIP));
	while (bq > STRIP && heads * ((s->lq + bq - 1) / bq) < 2 * b->threads)
		bq -= STRIP;
	blocks = (s->lq + bq - 1) / bq;
#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (heads * s->lq * s->lk * s->d > 65536)
	for (u = 0; u < heads * blocks; u++) {
		int64_t head = u / blocks, q0 = u % blocks * bq;

		forward_unit(dt, room + omp_get_thread_num(), o, lse, q, k, v,
		    s, head / s->heads, head % s->heads, q0,
		    min64(q0 + bq, s->lq));
	}
	return 0;
}

size_t
LPO_FN(lpo_attention_scratch_bytes)(lpo_backend *b, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	(void)dt;
	if (s->d > LDA)		/* backward refuses it */
		return LPO_FN(lpo_attention_wide_bytes)(b, s);
	if (pass == LPO_FWD)
		return (size_t)b->threads * sizeof(struct room);
	return LPO_FN(lpo_attention_bwd_bytes)(b, s);
}
