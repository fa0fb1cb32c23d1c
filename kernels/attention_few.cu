/*
 * Attention, forward, of many queries and few keys on Hopper's warpgroups, in
 * bf16 without a mask; formulas as in attention_flash.cu.
 *
 * All keys lie in shared memory, and a warpgroup takes one 64 queries after
 * another, which it holds as operands; the next are read during the work on
 * these.
 */
#include "kernels/attention_flash.h"
#include "kernels/attention_wgmma.h"

#include <math.h>

#define LOG2E	1.44269504088896341f
#define LN2	0.693147180559945309f

typedef __nv_bfloat16 bf16;

enum {
	MANY = 256,		/* queries from which this pays */
	FEW = 80,		/* keys at most */
	LONGEST = 1 << 20	/* elements between tokens */
};

struct job {
	int64_t lq, lk, ldq, ldk, ldo;
	uint32_t blocks;	/* of queries */
	uint32_t share;		/* rows of q per row of k */
	uint32_t heads;
	int d;
	float c;		/* d^-1/2 log2 e */
};

template <int D>
struct shape {
	static constexpr int THREADS = 128;
	static constexpr int DEPTH = (D + 15) / 16;	/* of 16 channels */
	static constexpr int ROW8 = DEPTH * 256;	/* bytes */
	static constexpr int TILE = FEW / 8 * ROW8;
	static constexpr int BYTES = 2 * TILE;
	static constexpr int TILES = 4;		/* of queries, of a CTA */
	static constexpr int CTAS = D <= 40 ? 4 : 3;	/* of a processor */
};

#ifdef HAVE_WG
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

/* Of the four lanes that share a row. */
static __device__ __forceinline__ float
quad_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
	return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

static __device__ __forceinline__ float
quad_sum(float x)
{
	x += __shfl_xor_sync(~0u, x, 1);
	return x + __shfl_xor_sync(~0u, x, 2);
}

/*
 * s = -Inf where there is no key.  A thread has parts of rows r and r + 8 of
 * its warp, r = lane / 4: element i of a product is of row r + i / 2 % 2 * 8,
 * column i / 4 * 8 + lane % 4 * 2 + i % 2.
 */
template <int N>
static __device__ __forceinline__ void
mask(float (&s)[N], int valid)
{
	int column = threadIdx.x % 4 * 2, i;

#pragma unroll
	for (i = 0; i < N; i++)
		if (i / 4 * 8 + column + i % 2 >= valid)
			s[i] = -INFINITY;
}

/* o and lse: of the warp's first query; rows: that are there */
template <int N>
static __device__ __forceinline__ void
finish(const float (&acc)[N], const float m[2], const float l[2], bf16 *o,
    float *lse, const struct job &j, int64_t rows)
{
	int lane = threadIdx.x % 32, e, n;

#pragma unroll
	for (e = 0; e < 2; e++) {
		int row = lane / 4 + 8 * e;
		float sum = quad_sum(l[e]), r = 1.0f / sum;
		bf16 *y = o + row * j.ldo + lane % 4 * 2;

		if (row >= rows)
			continue;
#pragma unroll
		for (n = 0; n < N / 4; n++)
			if (n * 8 < j.d)
				*(uint32_t *)(y + n * 8) = pack(
				    acc[4 * n + 2 * e] * r,
				    acc[4 * n + 2 * e + 1] * r);
		if (lse != NULL && lane % 4 == 0)
			lse[row] = (m[e] + log2f(sum)) * LN2;
	}
}

template <int N>
static __device__ __forceinline__ void
pack_all(uint32_t (&p)[N / 8][4], const float (&s)[N])
{
	int i;

#pragma unroll
	for (i = 0; i < N / 2; i++)
		p[i / 4][i % 4] = pack(s[2 * i], s[2 * i + 1]);
}

/* All keys or values, zeros where there are none. */
template <int D>
static __device__ __forceinline__ void
copy_all(unsigned char *to, const bf16 *from, const struct job &j)
{
	using Z = shape<D>;
	int i;

	for (i = threadIdx.x; i < FEW * (D / 8); i += Z::THREADS) {
		int r = i / D * 8 + i % 8, u = i / 8 % (D / 8);
		bool there = r < j.lk && 8 * u < j.d;

		wg_copy16(to + i / D * Z::ROW8 + u * 128 + i % 8 * 16,
		    there ? from + r * j.ldk + 8 * u : from, there);
	}
}

/* 64 queries: o and lse of the warp's first, of `rows` that are there. */
template <int D>
static __device__ __forceinline__ void
meet(const uint32_t (&q)[(D + 15) / 16][4], const unsigned char *k,
    const unsigned char *v, bf16 *o, float *lse, const struct job &j,
    int64_t rows)
{
	using Z = shape<D>;
	uint64_t a = wg_matrix(k, 128, Z::ROW8), b = wg_matrix(v, Z::ROW8, 128);
	float s[FEW / 2], acc[D / 2], m[2], l[2] = {}, ref[2];
	uint32_t p[FEW / 16][4];
	int i, e;

	wg_begin();
	wg_dot(s, q[0], a);
#pragma unroll
	for (i = 1; i < Z::DEPTH; i++)
		wg_dot_more(s, q[i], a + 16 * i);
	wg_commit();
#pragma unroll
	for (i = 0; i < D / 2; i++)
		acc[i] = 0.0f;
	wg_wait<0>();
	wg_settle(s);
	mask(s, (int)j.lk);
	m[0] = m[1] = -INFINITY;
#pragma unroll
	for (i = 0; i < FEW / 2; i++)
		m[i / 2 % 2] = fmaxf(m[i / 2 % 2], s[i]);
#pragma unroll
	for (e = 0; e < 2; e++) {
		m[e] = quad_max(m[e]) * j.c;
		ref[e] = m[e] == -INFINITY ? 0.0f : m[e];
	}
#pragma unroll
	for (i = 0; i < FEW / 2; i++) {
		s[i] = pow2(fmaf(s[i], j.c, -ref[i / 2 % 2]));
		l[i / 2 % 2] += s[i];
	}
	pack_all(p, s);
	wg_settle(acc);
	wg_begin();
#pragma unroll
	for (i = 0; i < FEW / 16; i++)
		wg_sum(acc, p[i], b + i * (2 * Z::ROW8 / 16));
	wg_commit();
	wg_wait<0>();
	wg_settle(acc);
	finish(acc, m, l, o, lse, j, rows);
}
#endif

template <int D>
static __global__ void
__launch_bounds__(shape<D>::THREADS, shape<D>::CTAS)
attention_few(bf16 *__restrict__ o, float *__restrict__ lse,
    const bf16 *__restrict__ q, const bf16 *__restrict__ k,
    const bf16 *__restrict__ v, const __grid_constant__ struct job j)
{
#ifndef HAVE_WG
	__trap();		/* never asked for */
#else
	using Z = shape<D>;
	extern __shared__ __align__(128) unsigned char tiles[];
	uint32_t u = blockIdx.x / j.blocks;
	int64_t row = u / j.heads, h = u % j.heads, kv, q0;
	uint32_t now[Z::DEPTH][4], next[Z::DEPTH][4];
	int i, x, e;

	q0 = (int64_t)(blockIdx.x % j.blocks) * (Z::TILES * 64) +
	    threadIdx.x / 32 * 16;
	kv = u / j.heads / j.share * j.lk * j.ldk + h * j.d;
	q += (row * j.lq + q0) * j.ldq + h * j.d;
	o += (row * j.lq + q0) * j.ldo + h * j.d;
	if (lse != NULL)
		lse += (row * j.heads + h) * j.lq + q0;
	/* The channels that no copy writes. */
	for (i = threadIdx.x; i < (D % 16 ? Z::BYTES / 16 : 0);
	    i += Z::THREADS)
		((uint4 *)tiles)[i] = make_uint4(0, 0, 0, 0);
	__syncthreads();
	copy_all<D>(tiles, k + kv, j);
	copy_all<D>(tiles + Z::TILE, v + kv, j);
	wg_copies_begin();
	wg_hold(next, q, j.ldq, j.lq - q0, j.d);
	wg_copies_wait<0>();
	wg_publish();
	__syncthreads();
	/* The last block of a row may have nothing for some warps. */
#pragma unroll
	for (i = 0; i < Z::TILES; i++) {
		int64_t rows = j.lq - q0 - i * 64;

#pragma unroll
		for (x = 0; x < Z::DEPTH; x++)
#pragma unroll
			for (e = 0; e < 4; e++)
				now[x][e] = next[x][e];
		if (i + 1 < Z::TILES)
			wg_hold(next, q + (i + 1) * 64 * j.ldq, j.ldq,
			    rows - 64, j.d);
		meet<D>(now, tiles, tiles + Z::TILE, o + i * 64 * j.ldo,
		    lse == NULL ? NULL : lse + i * 64, j, rows);
	}
#endif
}

/* ---- host */

template <int D>
static int
launch(struct cuda *cu, void *o, float *lse, const void *q, const void *k,
    const void *v, struct job *j, int64_t n)
{
	using Z = shape<D>;
	const int owned = Z::TILES * 64;
	int64_t blocks = (j->lq + owned - 1) / owned;
	int64_t all = blocks * j->heads * n;
	int rc;

	if (all > INT32_MAX)
		return cuda_fail(cu, LPO_EINVAL, "attention",
		    "too many rows, heads and queries");
	j->blocks = (uint32_t)blocks;
	rc = cuda_check(cu, cudaFuncSetAttribute(attention_few<D>,
	    cudaFuncAttributeMaxDynamicSharedMemorySize, Z::BYTES),
	    "attention");
	if (rc != 0)
		return rc;
	attention_few<D><<<(unsigned)all, Z::THREADS, Z::BYTES, cu->stream>>>(
	    (bf16 *)o, lse, (const bf16 *)q, (const bf16 *)k, (const bf16 *)v,
	    *j);
	return cuda_done(cu, "attention");
}

int
cuda_attention_few_suits(const struct cuda *cu, enum lpo_dtype dt,
    const struct lpo_attn_shape *s)
{
	return cu->sm == 90 && dt == LPO_BF16 && !s->causal &&
	    s->lq >= MANY && s->lk <= FEW && s->d <= 80 && s->d % 8 == 0 &&
	    s->ldq % 8 == 0 && s->ldk % 8 == 0 && s->ldk <= LONGEST;
}

int
cuda_attention_few(struct cuda *cu, void *o, float *lse, const void *q,
    const void *k, const void *v, const struct lpo_attn_shape *s)
{
	struct job j = { s->lq, s->lk, s->ldq, s->ldk, s->heads * s->d, 0,
	    (uint32_t)(s->n / s->nk), (uint32_t)s->heads, (int)s->d,
	    LOG2E / sqrtf((float)s->d) };

	return s->d <= 40 ? launch<40>(cu, o, lse, q, k, v, &j, s->n) :
	    launch<80>(cu, o, lse, q, k, v, &j, s->n);
}
