/* Attention: the cases, their inputs, and the truth in f64. */
#ifndef TESTS_OPS_ATTENTION_H
#define TESTS_OPS_ATTENTION_H

#include "tests/ops/levels.h"

struct shape_case {
	const char *what;
	struct lpo_attn_shape s;
};

static const struct shape_case cases[] = {
	{ "one token", { 1, 1, 1, 1, 1, 1, 1, 1, 0 } },
	{ "demo self", { 3, 3, 64, 64, 4, 16, 64, 64, 0 } },
	{ "demo text", { 4, 2, 64, 16, 4, 12, 50, 48, 0 } },
	{ "demo middle", { 3, 3, 16, 16, 4, 20, 80, 81, 0 } },
	{ "text, one row for all", { 6, 1, 70, 77, 2, 40, 80, 80, 0 } },
	{ "odd", { 2, 2, 37, 41, 3, 7, 21, 33, 0 } },
	{ "long, odd", { 1, 1, 150, 301, 2, 33, 70, 66, 0 } },
	{ "shared and long", { 4, 2, 33, 150, 1, 20, 20, 20, 0 } },
	{ "widest", { 1, 1, 65, 140, 1, 160, 160, 160, 0 } },
	{ "causal", { 2, 2, 77, 77, 2, 64, 128, 128, 1 } },
	{ "causal, long", { 1, 1, 200, 200, 1, 24, 24, 24, 1 } },
	{ "causal, more keys", { 1, 1, 20, 170, 2, 8, 16, 16, 1 } },
	{ "causal, more queries", { 1, 1, 170, 20, 2, 8, 16, 16, 1 } }
};
#define CASES ((int)(sizeof(cases) / sizeof(*cases)))

/* q, k, v, dout and the gradients; o and lse are made by the op. */
struct set {
	struct buf q, k, v, g, dq, dk, dv, o, lse;
};

/* The truth, in f64, from the stored inputs. */
struct truth {
	double *o, *lse, *dq, *dk, *dv;
};

static int64_t
n_q(const struct lpo_attn_shape *s)
{
	return s->n * s->lq * s->ldq;
}

static int64_t
n_k(const struct lpo_attn_shape *s)
{
	return s->nk * s->lk * s->ldk;
}

static int64_t
n_o(const struct lpo_attn_shape *s)
{
	return s->n * s->lq * s->heads * s->d;
}

static struct set
set_new(lpo_backend *be, const struct lpo_attn_shape *s, enum lpo_dtype dt)
{
	struct set t;
	int64_t i;

	t.q = buf_new(be, dt, n_q(s), 1);
	t.k = buf_new(be, dt, n_k(s), 2);
	t.v = buf_new(be, dt, n_k(s), 3);
	t.g = buf_new(be, dt, n_o(s), 4);
	t.dq = buf_new(be, dt, n_q(s), 5);
	t.dk = buf_new(be, dt, n_k(s), 6);
	t.dv = buf_new(be, dt, n_k(s), 7);
	t.o = buf_new(be, dt, n_o(s), 8);
	t.lse = buf_new(be, LPO_F32, s->n * s->heads * s->lq, 9);
	/* sharper than values in -1 .. 1 would make it; exact in bf16 */
	for (i = 0; i < t.q.count; i++)
		t.q.v[i] *= 4;
	buf_reset(&t.q);
	return t;
}

/*
 * Where f32 is split, as split.h has it: the products of a score err by 2^-15
 * of themselves each way, so together by as much of the root of their number,
 * which the scale takes back, times the largest of q and k.
 */
__attribute__((unused)) static const double split_score = 4 * 0x1p-15;

/*
 * Scores that rise along the keys for one query in three, fall for another,
 * by 140 in all: exp of what rises overflows f32 where it is still measured
 * from the first keys.
 */
__attribute__((unused)) static const struct shape_case rising = {
	"rising and falling", { 1, 1, 40, 399, 1, 8, 8, 8, 0 } };

__attribute__((unused)) static struct set
set_rising(lpo_backend *be, enum lpo_dtype dt)
{
	struct set t = set_new(be, &rising.s, dt);
	int64_t i;

	for (i = 0; i < t.q.count; i += 8)
		t.q.v[i] = 4 * (double)(i / 8 % 3 - 1);
	for (i = 0; i < t.k.count; i += 8)
		t.k.v[i] = (double)(i / 32);	/* exact in bf16 */
	buf_reset(&t.q);
	buf_reset(&t.k);
	return t;
}

/* The same values in f32 on another backend. */
__attribute__((unused)) static struct set
set_widen(lpo_backend *be, const struct set *t)
{
	return (struct set){ buf_widen(be, &t->q), buf_widen(be, &t->k),
	    buf_widen(be, &t->v), buf_widen(be, &t->g), buf_widen(be, &t->dq),
	    buf_widen(be, &t->dk), buf_widen(be, &t->dv),
	    buf_widen(be, &t->o), buf_widen(be, &t->lse) };
}

static void
set_free(struct set *t)
{
	struct buf *b[] = { &t->q, &t->k, &t->v, &t->g, &t->dq, &t->dk,
	    &t->dv, &t->o, &t->lse };
	int i;

	for (i = 0; i < 9; i++)
		buf_free(b[i]);
}

/* The shape of the rows that share one row of k and v. */
static struct lpo_attn_shape
part_shape(const struct lpo_attn_shape *s)
{
	struct lpo_attn_shape one = *s;

	one.n = s->n / s->nk;
	one.nk = 1;
	return one;
}

/* Those that share row r: a view of t, not to be freed. */
__attribute__((unused)) static struct set
set_part(const struct set *t, const struct lpo_attn_shape *s, int64_t r)
{
	struct lpo_attn_shape one = part_shape(s);
	int64_t e = (int64_t)lpo_dtype_bytes(t->q.dt) * r;
	struct set v = *t;

	v.q.p = (char *)t->q.p + n_q(&one) * e;
	v.dq.p = (char *)t->dq.p + n_q(&one) * e;
	v.k.p = (char *)t->k.p + n_k(&one) * e;
	v.v.p = (char *)t->v.p + n_k(&one) * e;
	v.dk.p = (char *)t->dk.p + n_k(&one) * e;
	v.dv.p = (char *)t->dv.p + n_k(&one) * e;
	v.o.p = (char *)t->o.p + n_o(&one) * e;
	v.g.p = (char *)t->g.p + n_o(&one) * e;
	v.lse.p = (float *)t->lse.p + one.n * one.heads * one.lq * r;
	return v;
}

__attribute__((unused)) static int
same_results(const struct set *a, const struct set *b)
{
	return buf_same(&a->o, &b->o) && buf_same(&a->lse, &b->lse);
}

__attribute__((unused)) static int
same_gradients(const struct set *a, const struct set *b)
{
	return buf_same(&a->dq, &b->dq) && buf_same(&a->dk, &b->dk) &&
	    buf_same(&a->dv, &b->dv);
}

/*
 * Element i of a gradient with ld between tokens is one that the pass sets:
 * not `add`, and of a head.  What lies between tokens is another's, and stays.
 */
static int
is_set(const struct lpo_attn_shape *s, int64_t ld, int64_t i, int add)
{
	return !add && i % ld < s->heads * s->d;
}

static double *
start_f64(const struct lpo_attn_shape *s, const struct buf *b, int64_t ld,
    int add)
{
	double *p = malloc((size_t)b->count * sizeof(double));
	int64_t i;

	for (i = 0; i < b->count; i++)
		p[i] = is_set(s, ld, i, add) ? 0 : b->v[i];
	return p;
}

__attribute__((unused)) static void
gradient_start(const struct lpo_attn_shape *s, struct buf *b, int64_t ld,
    int add)
{
	int64_t i;

	for (i = 0; i < b->count; i++)
		put(b, i, is_set(s, ld, i, add) ? NAN : (float)b->v[i]);
}

/* The gradients as they must be before a pass with this `add`. */
__attribute__((unused)) static void
set_start(const struct lpo_attn_shape *s, struct set *t, int add)
{
	gradient_start(s, &t->dq, s->ldq, add & LPO_ADD_A);
	gradient_start(s, &t->dk, s->ldk, add & LPO_ADD_B);
	gradient_start(s, &t->dv, s->ldk, add & LPO_ADD_C);
}

/* One query of one head: o, lse, and its part of every gradient. */
static void
truth_query(const struct lpo_attn_shape *s, const struct set *t,
    struct truth *w, int64_t i, int64_t h, int64_t a, double *p, double *dp)
{
	int64_t d = s->d, keys = s->causal && a + 1 < s->lk ? a + 1 : s->lk;
	int64_t q = (i * s->lq + a) * s->ldq + h * d, j, x, k;
	int64_t o = ((i * s->lq + a) * s->heads + h) * d;
	double top = -1e300, sum = 0, delta = 0, scale = 1 / sqrt((double)d);

	for (j = 0; j < keys; j++) {
		k = (i * s->nk / s->n * s->lk + j) * s->ldk + h * d;
		p[j] = dp[j] = 0;
		for (x = 0; x < d; x++) {
			p[j] += t->q.v[q + x] * t->k.v[k + x] * scale;
			dp[j] += t->g.v[o + x] * t->v.v[k + x];
		}
		top = p[j] > top ? p[j] : top;
	}
	for (j = 0; j < keys; j++)
		sum += p[j] = exp(p[j] - top);
	w->lse[(i * s->heads + h) * s->lq + a] = top + log(sum);
	for (x = 0; x < d; x++)
		w->o[o + x] = 0;
	for (j = 0; j < keys; j++) {
		k = (i * s->nk / s->n * s->lk + j) * s->ldk + h * d;
		p[j] /= sum;
		delta += p[j] * dp[j];
		for (x = 0; x < d; x++) {
			w->o[o + x] += p[j] * t->v.v[k + x];
			w->dv[k + x] += p[j] * t->g.v[o + x];
		}
	}
	for (j = 0; j < keys; j++) {
		k = (i * s->nk / s->n * s->lk + j) * s->ldk + h * d;
		for (x = 0; x < d; x++) {
			w->dq[q + x] += p[j] * (dp[j] - delta) * scale *
			    t->k.v[k + x];
			w->dk[k + x] += p[j] * (dp[j] - delta) * scale *
			    t->q.v[q + x];
		}
	}
}

/* add: which gradients are added to what stood there. */
static struct truth
truth_new(const struct lpo_attn_shape *s, const struct set *t, int add)
{
	int64_t hd = s->heads * s->d;
	struct truth w = { start_f64(s, &t->o, hd, 0),
	    start_f64(s, &t->lse, 1, 0),
	    start_f64(s, &t->dq, s->ldq, add & LPO_ADD_A),
	    start_f64(s, &t->dk, s->ldk, add & LPO_ADD_B),
	    start_f64(s, &t->dv, s->ldk, add & LPO_ADD_C) };
	double *p = malloc((size_t)s->lk * sizeof(double));
	double *dp = malloc((size_t)s->lk * sizeof(double));
	int64_t i, h, a;

	for (i = 0; i < s->n; i++)
		for (h = 0; h < s->heads; h++)
			for (a = 0; a < s->lq; a++)
				truth_query(s, t, &w, i, h, a, p, dp);
	free(p);
	free(dp);
	return w;
}

/*
 * Of one head, and of the rows that share the first k and v, gradients set:
 * what f64 has the time for where sequences are long.
 */
__attribute__((unused)) static struct truth
truth_head(const struct lpo_attn_shape *s, const struct set *t, int64_t h)
{
	int64_t hd = s->heads * s->d, i, a;
	struct truth w = { start_f64(s, &t->o, hd, 0),
	    start_f64(s, &t->lse, 1, 0), start_f64(s, &t->dq, s->ldq, 0),
	    start_f64(s, &t->dk, s->ldk, 0), start_f64(s, &t->dv, s->ldk, 0) };
	double *p = malloc((size_t)s->lk * sizeof(double));
	double *dp = malloc((size_t)s->lk * sizeof(double));

	for (i = 0; i < s->n / s->nk; i++)
		for (a = 0; a < s->lq; a++)
			truth_query(s, t, &w, i, h, a, p, dp);
	free(p);
	free(dp);
	return w;
}

/* What another backend made, in f32, is the truth. */
__attribute__((unused)) static struct truth
truth_of(const struct set *t)
{
	const struct buf *b[] = { &t->o, &t->lse, &t->dq, &t->dk, &t->dv };
	double *p[5];
	int64_t i;
	int k;

	for (k = 0; k < 5; k++) {
		p[k] = malloc((size_t)b[k]->count * sizeof(double));
		for (i = 0; i < b[k]->count; i++)
			p[k][i] = get(b[k], i);
	}
	return (struct truth){ p[0], p[1], p[2], p[3], p[4] };
}

static void
truth_free(struct truth *w)
{
	free(w->o);
	free(w->lse);
	free(w->dq);
	free(w->dk);
	free(w->dv);
}

/*
 * The largest error against what may be: `rel` of the largest value that
 * meets in the sums, and in bf16 the rounding of the result.  ld between
 * tokens: what lies there counts as an error, but not as a large value.
 */
static double
excess(const struct lpo_attn_shape *s, const struct buf *b, int64_t ld,
    const double *want, double rel)
{
	double top = 0, bad = 0, e;
	int64_t i;

	for (i = 0; i < b->count; i++)
		if (i % ld < s->heads * s->d && fabs(want[i]) > top)
			top = fabs(want[i]);
	for (i = 0; i < b->count; i++) {
		e = fabs(get(b, i) - want[i]) / (rel * (top + 0.01) +
		    (b->dt == LPO_BF16 ? fabs(want[i]) / 250 : 0));
		if (!(e <= bad) && !isnan(bad))
			bad = e;
	}
	return bad;
}

/*
 * The same of what truth_head knows: channels from..from+d-1 of each ld, in
 * the first n elements.
 */
__attribute__((unused)) static double
excess_head(const struct buf *b, int64_t n, int64_t ld, int64_t from,
    int64_t d, const double *want, double rel)
{
	double top = 0, bad = 0, e;
	int64_t i, x;

	for (i = from; i < n; i += ld)
		for (x = i; x < i + d; x++)
			if (fabs(want[x]) > top)
				top = fabs(want[x]);
	for (i = from; i < n; i += ld)
		for (x = i; x < i + d; x++) {
			e = fabs(get(b, x) - want[x]) / (rel * (top + 0.01) +
			    (b->dt == LPO_BF16 ? fabs(want[x]) / 250 : 0));
			if (!(e <= bad) && !isnan(bad))
				bad = e;
		}
	return bad;
}

#endif
