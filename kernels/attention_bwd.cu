/*
 * Flash attention, backward.  With P = 2^(S - lse), delta = sum o do:
 *	dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),
 *	dQ = scale dS K,  dK = scale dS^T Q
 *
 * Two kernels, so that no sum is shared between blocks and the bits are the
 * same from run to run: one owns a block of keys and walks the queries, one
 * owns a block of queries and walks the keys.  S and dP are computed in both.
 * Either is one template: a block owns two tiles (K and V, or Q and dO) and
 * meets tiles of the other two.
 */
#include "kernels/attention_bwd.h"

#include <math.h>

enum {
	LONGEST = 1 << 30,	/* tokens met by one block */
	LONG = 256,		/* tokens from which warpgroups pay */
	FEW = 128,		/* keys up to which queries are split ... */
	PART = 512		/* ... into parts of about as many */
};

static inline int64_t
padded(int64_t lq)
{
	return (lq + PAD - 1) / PAD * PAD;
}

static int64_t
stats_count(const struct lpo_attn_shape *s)
{
	return s->n * s->heads * padded(s->lq) * 2;
}

/* ---- stats of every query */

/* Eight lanes a row; V elements at a time. */
template <typename T, int V>
static __global__ void
stats_kernel(float *stats, const T *dout, const T *o, const float *lse,
    int64_t rows, int64_t lq, int64_t lq_padded, int heads, int d)
{
	int64_t u = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 8;
	int64_t h = u % heads, t = u / heads % lq_padded;
	int64_t i = u / heads / lq_padded;
	int lane = threadIdx.x % 8, x, j;
	float sum = 0.0f;

	if (u < rows && t < lq) {
		int64_t at = ((i * lq + t) * heads + h) * d;

		for (x = lane * V; x < d; x += 8 * V) {
			struct alignas(sizeof(T) * V) { T e[V]; } a, b;

			a = *(const decltype(a) *)(dout + at + x);
			b = *(const decltype(b) *)(o + at + x);
			for (j = 0; j < V; j++)
				sum = fmaf(cuda_load(a.e + j),
				    cuda_load(b.e + j), sum);
		}
	}
	for (j = 4; j > 0; j /= 2)
		sum += __shfl_xor_sync(~0u, sum, j);
	if (u >= rows || lane != 0)
		return;
	/* A query that is not there: P = 2^-inf = 0. */
	stats += (i * heads + h) * lq_padded * 2 + t / 2 * 4 + t % 2;
	stats[0] = t < lq ? -lse[(i * heads + h) * lq + t] * LOG2E :
	    -INFINITY;
	stats[2] = -sum;
}

/* ---- host */

static inline bool
aligned(const void *p)
{
	return (uintptr_t)p % 16 == 0;
}

/* Whole 16 bytes in every row of every tensor. */
static bool
wide(const struct job *j, const void *o)
{
	return j->d % 8 == 0 && j->ldq % 8 == 0 && j->ldk % 8 == 0 &&
	    aligned(j->q) && aligned(j->k) && aligned(j->v) &&
	    aligned(j->dout) && aligned(o) && aligned(j->dq) &&
	    aligned(j->dk) && aligned(j->dv);
}

template <typename T>
static int
run_stats(struct cuda *c, const struct job *j, float *stats, const void *o,
    const float *lse, int64_t n)
{
	constexpr int V = 16 / sizeof(T);
	int64_t rows = n * j->heads * j->lq_padded, blocks = (rows + 31) / 32;

	if (blocks > INT32_MAX)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd",
		    "too many rows");
	if (j->d % V == 0 && aligned(o) && aligned(j->dout))
		stats_kernel<T, V><<<(unsigned)blocks, 256, 0, c->stream>>>(
		    stats, (const T *)j->dout, (const T *)o, lse, rows, j->lq,
		    j->lq_padded, j->heads, j->d);
	else
		stats_kernel<T, 1><<<(unsigned)blocks, 256, 0, c->stream>>>(
		    stats, (const T *)j->dout, (const T *)o, lse, rows, j->lq,
		    j->lq_padded, j->heads, j->d);
	return cuda_done(c, "attention_bwd");
}

/*
 * Parts of the queries that meet the keys of one row.  Never a matter of n:
 * the bits of a row would change with the number of rows.
 */
static int64_t
splits_of(enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	if (dt != LPO_BF16 || s->causal || s->lk > FEW || s->d % 8 != 0 ||
	    s->n < 1 || s->nk < 1)
		return 1;
	return (s->n / s->nk * s->lq + PART - 1) / PART;
}

static int
pass(struct cuda *c, enum lpo_dtype dt, const struct job *j, const void *o,
    bool keys, int64_t n, int64_t tokens)
{
	if (dt == LPO_F32 || !wide(j, o))
		return cuda_bwd_fma(c, dt, j, keys, n, tokens);
	if (c->sm == 90 && j->d <= 80 && !j->causal && j->lq >= LONG &&
	    j->lk >= LONG)
		return cuda_bwd_wgmma(c, j, keys, n, tokens);
	return cuda_bwd_mma(c, j, keys, n, tokens);
}

int
cuda_attention_bwd(lpo_backend *be, enum lpo_dtype dt, void *dq, void *dk,
    void *dv, const void *dout, const void *o, const float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int add, void *scratch)
{
	struct cuda *c = cuda_of(be);
	struct job j = { q, k, v, dout, dq, dk, dv, (const float *)scratch,
	    (float *)scratch + stats_count(s), padded(s->lq), s->ldq, s->ldk,
	    s->heads * s->d, (int)s->lq, (int)s->lk, (int)s->heads, (int)s->d,
	    s->causal, add, 0, 0, 0.0f };
	int ret;

	if (s->n == 0 || (dq == NULL && dk == NULL && dv == NULL))
		return 0;
	if ((dt != LPO_F32 && dt != LPO_BF16) || s->n < 1 || s->nk < 1 ||
	    s->n % s->nk != 0 || s->lq < 1 || s->lk < 1 || s->heads < 1 ||
	    s->d < 1 || s->d > LARGEST_D || s->lk > LONGEST ||
	    s->n / s->nk > LONGEST / s->lq)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd", "bad shape");
	j.share = (int)(s->n / s->nk);
	j.splits = (int)splits_of(dt, s);
	j.scale = 1.0f / sqrtf((float)s->d);
	ret = dt == LPO_F32 ?
	    run_stats<float>(c, &j, (float *)scratch, o, lse, s->n) :
	    run_stats<bf16>(c, &j, (float *)scratch, o, lse, s->n);
	if (ret == 0 && (dk != NULL || dv != NULL))
		ret = pass(c, dt, &j, o, true, s->nk, s->lk);
	if (ret == 0 && dq != NULL)
		ret = pass(c, dt, &j, o, false, s->n, s->lq);
	return ret;
}

size_t
cuda_attention_bwd_bytes(enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	int64_t splits = splits_of(dt, s), parts = splits == 1 ? 0 :
	    s->nk * s->heads * splits * 2 * s->lk * s->d;

	return (size_t)(stats_count(s) + parts) * sizeof(float);
}
