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
	NARROW = 64,		/* ... where there are as few channels, ... */
	PART = 512,		/* ... into parts of about as many */
	TOKENS = 16,		/* whose stats a block has, ... */
	HEADS = 8,		/* ... of as many heads */
	EACH = TOKENS * HEADS / 32	/* by eight of its 256 threads */
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

/*
 * Eight lanes a row, V elements at a time; all rows of a thread at once.
 * Where rows lie together are the heads of a token, and stats the tokens of a
 * head: the sums go from one order to the other by shared memory.
 */
template <typename T, int V>
static __global__ void
__launch_bounds__(32 * 8)
stats_kernel(float *__restrict__ stats, const T *__restrict__ dout,
    const T *__restrict__ o, const float *__restrict__ lse, int64_t lq,
    int64_t lq_padded, int heads, int d)
{
	struct alignas(sizeof(T) * V) vector { T e[V]; };
	__shared__ float delta[HEADS][TOKENS];
	unsigned chunks = (heads + HEADS - 1) / HEADS;
	unsigned blocks = (unsigned)(lq_padded / TOKENS);
	int h0 = (int)(blockIdx.x % chunks) * HEADS;
	int64_t t0 = blockIdx.x / chunks % blocks * (int64_t)TOKENS;
	int64_t row = blockIdx.x / chunks / blocks;
	int unit = threadIdx.x / 8, lane = threadIdx.x % 8, x, m, j;
	/* of the end: two tokens of a head */
	int h = threadIdx.x / (TOKENS / 2), t = threadIdx.x % (TOKENS / 2) * 2;
	bool last = h < HEADS && h0 + h < heads;
	float low = INFINITY, high = INFINITY, sum[EACH] = {};
	/* from one row of a thread to the next */
	const int64_t step = 32 / HEADS * (int64_t)heads * d;
	int left = 0;

	if (last && t0 + t < lq)
		low = lse[(row * heads + h0 + h) * lq + t0 + t];
	if (last && t0 + t + 1 < lq)
		high = lse[(row * heads + h0 + h) * lq + t0 + t + 1];
	if (h0 + unit % HEADS < heads)
		left = (int)min(lq - t0 - unit / HEADS, (int64_t)TOKENS);
	dout += ((row * lq + t0 + unit / HEADS) * heads + h0 + unit % HEADS) *
	    d;
	o += ((row * lq + t0 + unit / HEADS) * heads + h0 + unit % HEADS) * d;
	for (x = lane * V; x < d; x += 8 * V) {
		struct vector a[EACH] = {}, b[EACH] = {};

#pragma unroll
		for (m = 0; m < EACH; m++)
			if (32 / HEADS * m < left) {
				a[m] = *(const struct vector *)(dout +
				    m * step + x);
				b[m] = *(const struct vector *)(o + m * step +
				    x);
			}
#pragma unroll
		for (m = 0; m < EACH; m++)
#pragma unroll
			for (j = 0; j < V; j++)
				sum[m] = fmaf(cuda_load(a[m].e + j),
				    cuda_load(b[m].e + j), sum[m]);
	}
#pragma unroll
	for (m = 0; m < EACH; m++) {
#pragma unroll
		for (j = 4; j > 0; j /= 2)
			sum[m] += __shfl_xor_sync(~0u, sum[m], j);
		if (lane == 0)
			delta[unit % HEADS][(unit + 32 * m) / HEADS] = sum[m];
	}
	__syncthreads();
	/* A query that is not there: P = 2^-inf = 0. */
	if (last)
		*(float4 *)(stats + ((row * heads + h0 + h) * lq_padded + t0 +
		    t) * 2) = make_float4(-low * LOG2E, -high * LOG2E,
		    -delta[h][t], -delta[h][t + 1]);
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
	bool whole = j->d % V == 0 && aligned(o) && aligned(j->dout);
	int64_t blocks = n * (j->lq_padded / TOKENS) * ((j->heads + HEADS -
	    1) / HEADS);

	if (blocks > INT32_MAX)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd",
		    "too many rows");
	(whole ? stats_kernel<T, V> : stats_kernel<T, 1>)<<<(unsigned)blocks,
	    32 * 8, 0, c->stream>>>(stats, (const T *)j->dout, (const T *)o,
	    lse, j->lq, j->lq_padded, j->heads, j->d);
	return cuda_done(c, "attention_bwd");
}

/*
 * Parts of the queries that meet the keys of one row.  Wide heads have two
 * blocks of keys or more, which keeps the processors as busy without parts.
 * Never a matter of n: the bits of a row would change with the number of rows.
 */
static int64_t
splits_of(enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	if (dt != LPO_BF16 || s->causal || s->lk > FEW || s->d > NARROW ||
	    s->d % 8 != 0 || s->n < 1 || s->nk < 1)
		return 1;
	return (s->n / s->nk * s->lq + PART - 1) / PART;
}

static int
pass(struct cuda *c, enum lpo_dtype dt, const struct job *j, const void *o,
    bool keys, int64_t n, int64_t tokens)
{
	if (dt == LPO_F32 || !wide(j, o))
		return cuda_bwd_fma(c, dt, j, keys, n, tokens);
	/* dQ of wider heads is as fast by mma, or faster */
	if (c->sm == 90 && j->d <= (keys ? 80 : 40) && !j->causal &&
	    j->lq >= LONG && j->lk >= LONG)
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
