/*
 * Attention for wide heads, as two products with a softmax between: for each
 * head and ROWS queries S = q k^T d^-1/2, P = softmax(S), o = P v.  With heads
 * this wide the products pay for reading keys and values once per ROWS.
 */
#include <math.h>
#include <omp.h>

#include "kernels/attention_wide.h"
#include "kernels/gemm.h"
#include "kernels/vmath.h"

#define ROWS	128
#define LOG2E	1.44269504088896341f
#define LN2	0.693147180559945309f

/* Floats between rows of S: whole vectors. */
static int64_t
row_floats(const struct lpo_attn_shape *s)
{
	return (s->lk + VL - 1) / VL * VL;
}

static size_t
product_bytes(lpo_backend *b, const struct lpo_attn_shape *s)
{
	size_t qk = LPO_FN(lpo_gemm_scratch_bytes)(ROWS, s->lk, s->d,
	    b->threads);
	size_t pv = LPO_FN(lpo_gemm_scratch_bytes)(ROWS, s->d, s->lk,
	    b->threads);

	return qk > pv ? qk : pv;
}

size_t
LPO_FN(lpo_attention_wide_bytes)(lpo_backend *b,
    const struct lpo_attn_shape *s)
{
	return (size_t)(ROWS * row_floats(s)) * sizeof(float) + 64 +
	    product_bytes(b, s);
}

/*
 * A row of S (in powers of two) becomes P; returns log of the sum.  The end
 * of the row, and keys after query `last`, weigh nothing.
 */
static float
softmax_row(float *x, int64_t keys, int64_t lk, int64_t ld)
{
	vf top = vf_set1(-INFINITY), sum = {0}, p;
	float lanes[VL], most = -INFINITY, total;
	int64_t j;

	for (j = keys; j < ld; j++)
		x[j] = -INFINITY;
	for (j = 0; j < ld; j += VL)
		top = vf_max(vf_load(x + j), top);
	vf_store(lanes, top);
	for (j = 0; j < VL; j++)
		most = lanes[j] > most ? lanes[j] : most;
	for (j = 0; j < ld; j += VL) {
		p = vf_exp2_soft(vf_load(x + j) - most);
		vf_store(x + j, p);
		sum += p;
	}
	total = vf_sum(sum);
	for (j = 0; j < lk; j++)
		x[j] *= 1.0f / total;
	return most * LN2 + logf(total);
}

static int64_t
bytes_of(enum lpo_dtype dt, int64_t elements)
{
	return elements * (dt == LPO_F32 ? 4 : 2);
}

/* Queries q0 .. q0+rows-1 of head h of row i. */
static void
rows_of_head(lpo_backend *b, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int64_t i, int64_t h, int64_t q0,
    int64_t rows, float *p, void *scratch)
{
	int64_t ld = row_floats(s), r, first = i * s->lq + q0;
	int64_t key = (i * s->nk / s->n * s->lk) * s->ldk + h * s->d;
	int64_t out = (first * s->heads + h) * s->d;
	struct lpo_src qs = { .base = (const char *)q + bytes_of(dt,
	    first * s->ldq + h * s->d), .dt = dt, .ld = s->ldq };
	struct lpo_src ks = { .base = (const char *)k + bytes_of(dt, key),
	    .dt = dt, .ld = s->ldk };
	struct lpo_src vs = { .base = (const char *)v + bytes_of(dt, key),
	    .dt = dt, .ld = s->ldk };
	struct lpo_src ps = { .base = p, .dt = LPO_F32, .ld = ld };

	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = rows, .n = s->lk,
	    .k = s->d, .a = &qs, .b = &ks, .b_transposed = 1,
	    .y = { p, LPO_F32, 1, rows, 0, 0, ld },
	    .alpha = LOG2E / sqrtf((float)s->d), .threads = b->threads,
	    .scratch = scratch });
#pragma omp parallel for schedule(static) num_threads(b->threads)
	for (r = 0; r < rows; r++) {
		int64_t keys = s->causal && q0 + r + 1 < s->lk ? q0 + r + 1 :
		    s->lk;
		float l = softmax_row(p + r * ld, keys, s->lk, ld);

		if (lse != NULL)
			lse[(i * s->heads + h) * s->lq + q0 + r] = l;
	}
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = rows, .n = s->d,
	    .k = s->lk, .a = &ps, .b = &vs,
	    .y = { (char *)o + bytes_of(dt, out), dt, 1, rows, 0, 0,
	    s->heads * s->d },
	    .alpha = 1, .threads = b->threads, .scratch = scratch });
}

int
LPO_FN(lpo_attention_wide_fwd)(lpo_backend *b, enum lpo_dtype dt, void *o,
    float *lse, const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	float *p = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
	void *rest = p + ROWS * row_floats(s);
	int64_t i, h, q0;

	if ((dt != LPO_F32 && dt != LPO_BF16) || s->n < 1 || s->nk < 1 ||
	    s->n % s->nk != 0 || s->lq < 1 || s->lk < 1 || s->heads < 1)
		return LPO_EINVAL;
	for (i = 0; i < s->n; i++)
		for (h = 0; h < s->heads; h++)
			for (q0 = 0; q0 < s->lq; q0 += ROWS)
				rows_of_head(b, dt, o, lse, q, k, v, s, i, h,
				    q0, s->lq - q0 < ROWS ? s->lq - q0 : ROWS,
				    p, rest);
	return 0;
}
