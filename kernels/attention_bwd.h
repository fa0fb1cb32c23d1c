/*
 * Inside of attention_bwd.cu and its kernels, one file for each way to
 * multiply: what they are told, where a block works and what it meets.
 */
#ifndef LPO_ATTENTION_BWD_H
#define LPO_ATTENTION_BWD_H

#include "kernels/cuda.h"

#define LOG2E	1.44269504088896341f

typedef __nv_bfloat16 bf16;

enum {
	LARGEST_D = 160,
	PAD = 384		/* stats end on a multiple: of every MET */
};

/* One call, and what is known of it. */
struct job {
	const void *q, *k, *v, *dout;
	void *dq, *dk, *dv;
	/*
	 * [n, heads, lq_padded / 2, 4]: -lse log2 e of two queries, then
	 * their -delta
	 */
	const float *stats;
	/*
	 * Where there are few keys, parts of the queries meet them in blocks
	 * of their own, and the sums of each part are added up in the end:
	 * [nk, heads, splits, 2 (dv, dk), lk, d].
	 */
	float *parts;
	int64_t lq_padded, ldq, ldk, ldo;
	int lq, lk, heads, d, causal, add;
	int share;		/* rows of q per row of k */
	int splits;		/* 1: parts are not used; more: mma only */
	float scale;		/* d^-1/2 */
};

/*
 * One pass: keys, dk and dv of n rows of keys, else dq of n rows of queries;
 * `tokens` in each.  mma and wgmma: bf16, whole 16 bytes in every row of every
 * tensor; wgmma: long rows without a mask, up to 80 channels, 40 of queries,
 * sm_90.
 */
int	cuda_bwd_fma(struct cuda *, enum lpo_dtype, const struct job *,
	    bool keys, int64_t n, int64_t tokens);
int	cuda_bwd_mma(struct cuda *, const struct job *, bool keys, int64_t n,
	    int64_t tokens);
int	cuda_bwd_wgmma(struct cuda *, const struct job *, bool keys,
	    int64_t n, int64_t tokens);

/* Of one query of a row and head: -lse log2 e, -delta. */
static __device__ __forceinline__ float2
stats_of(const struct job &j, int64_t row, int64_t head, int64_t t)
{
	const float *p = j.stats + (row * j.heads + head) * j.lq_padded * 2 +
	    t / 2 * 4 + t % 2;

	return make_float2(p[0], p[2]);
}
/* ---- where a block works */

/*
 * KEYS: owns keys `first` .. of row `row` of k, meets the queries of `share`
 * rows.  Otherwise owns queries of row `row` of q, meets one row of keys.
 */
struct place {
	int64_t row, head, first;
	int valid;		/* owned tokens that are there */
	int begin, blocks;	/* blocks met, of each row met */
	int steps;		/* ... and of all rows */
};

template <bool KEYS>
static __device__ __forceinline__ struct place
place_of(const struct job &j, int owned, int met, uint32_t u)
{
	int64_t own = KEYS ? j.lk : j.lq, other = KEYS ? j.lq : j.lk, end;
	uint32_t nb = (uint32_t)((own + owned - 1) / owned);
	struct place p;

	/* 32 bits, as blocks are counted: divisions of 64 are long. */
	p.first = (int64_t)(u % nb) * owned;
	p.head = u / nb % (uint32_t)j.heads;
	p.row = u / nb / (uint32_t)j.heads;
	p.valid = (int)min((int64_t)owned, own - p.first);
	end = other;
	p.begin = 0;
	if (j.causal && KEYS)
		p.begin = (int)(min(p.first, other) / met);
	if (j.causal && !KEYS)
		end = min(end, p.first + owned);
	p.blocks = (int)((end + met - 1) / met) - p.begin;
	p.steps = p.blocks * (KEYS ? j.share : 1);
	return p;
}

/* The row and first token of the block met in a step. */
template <bool KEYS>
static __device__ __forceinline__ void
met_at(const struct job &j, const struct place &p, int step, int met,
    int64_t *row, int64_t *token)
{
	*row = KEYS ? p.row * j.share + step / p.blocks : p.row / j.share;
	*token = (int64_t)(p.begin + step % p.blocks) * met;
}

/* Offsets of a token in q and dq, in dout, in k and v and their gradients. */
static __device__ __forceinline__ int64_t
at_q(const struct job &j, int64_t row, int64_t token, int64_t head)
{
	return (row * j.lq + token) * j.ldq + head * j.d;
}

static __device__ __forceinline__ int64_t
at_o(const struct job &j, int64_t row, int64_t token, int64_t head)
{
	return (row * j.lq + token) * j.ldo + head * j.d;
}

static __device__ __forceinline__ int64_t
at_k(const struct job &j, int64_t row, int64_t token, int64_t head)
{
	return (row * j.lk + token) * j.ldk + head * j.d;
}
/* ---- bf16 products */

/* 2^x, 0 below 2^-126 */
static __device__ __forceinline__ float
pow2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ uint32_t
pack(float low, float high)
{
	uint32_t r;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
}

/* Rows of a warp to memory: scale * sum, set or added. */
template <int D>
static __device__ __forceinline__ void
put_rows(bf16 *to, int64_t ld, const float sum[D / 8][4], int rows, int d,
    float scale, bool add)
{
	int lane = threadIdx.x % 32, x, half;

#pragma unroll
	for (half = 0; half < 2; half++) {
		int r = lane / 4 + 8 * half;
		bf16 *p = to + r * ld + lane % 4 * 2;

		if (r >= rows)
			continue;
#pragma unroll
		for (x = 0; x < D / 8; x++) {
			float2 y = make_float2(scale * sum[x][2 * half],
			    scale * sum[x][2 * half + 1]);

			if (8 * x >= d)
				continue;
			if (add) {
				float2 old = __bfloat1622float2(
				    *(__nv_bfloat162 *)(p + 8 * x));

				y.x += old.x;
				y.y += old.y;
			}
			*(uint32_t *)(p + 8 * x) = pack(y.x, y.y);
		}
	}
}

/* What a block meets: rows of q of one row of k follow each other. */
struct met {
	const bf16 *a, *b;	/* token 0 of the first row met */
	const float *stats;
	int row, block;		/* next to copy: row from the first, block */
};

template <bool KEYS>
static __device__ __forceinline__ struct met
met_of(const struct job &j, const struct place &p)
{
	struct met m;
	int64_t row = KEYS ? p.row * j.share : p.row / j.share;

	m.a = KEYS ? (const bf16 *)j.q + at_q(j, row, 0, p.head) :
	    (const bf16 *)j.k + at_k(j, row, 0, p.head);
	m.b = KEYS ? (const bf16 *)j.dout + at_o(j, row, 0, p.head) :
	    (const bf16 *)j.v + at_k(j, row, 0, p.head);
	m.stats = j.stats + (row * j.heads + p.head) * j.lq_padded * 2;
	m.row = 0;
	m.block = p.begin;
	return m;
}

/* ---- launch */

typedef void (*grad_kernel)(const struct job);

/* One kernel, over n rows of `tokens` owned in blocks of `owned`. */
static inline int
grad_launch(struct cuda *c, grad_kernel kernel, const struct job *j, int64_t n,
    int64_t tokens, int owned, int threads, int bytes)
{
	int64_t blocks = (tokens + owned - 1) / owned * j->heads * n;
	int ret;

	if (blocks > INT32_MAX)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd",
		    "too many rows");
	ret = cuda_check(c, cudaFuncSetAttribute((const void *)kernel,
	    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
	    "attention_bwd");
	if (ret != 0)
		return ret;
	kernel<<<(unsigned)blocks, threads, bytes, c->stream>>>(*j);
	return cuda_done(c, "attention_bwd");
}

#endif
