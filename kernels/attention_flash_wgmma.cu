/*
 * Flash attention, forward, on Hopper's warpgroups: many queries in bf16
 * without a mask, and many keys or few; formulas as in attention_flash.cu.
 *
 * A warpgroup owns 64 queries, which it holds as operands, and all of a CTA
 * meet the same keys.  S of the next keys is asked for before the products of
 * P and V of these, which go on while the next P is computed.  The maximum is
 * brought up to date only where P would exceed 2^SLACK: it cancels in o and in
 * lse, so that any will do.
 */
#include "kernels/attention_flash.h"
#include "kernels/attention_wgmma.h"

#include <math.h>

#define LOG2E	1.44269504088896341f
#define LN2	0.693147180559945309f
#define SLACK	8.0f

typedef __nv_bfloat16 bf16;

enum {
	LONG = 256,		/* tokens from which this pays */
	FEW = 80,		/* keys that are met at once */
	LONGEST = 1 << 20,	/* elements between tokens */
	MET = 128		/* keys of a block */
};

struct job {
	int64_t lq, lk, ldq, ldk, ldo;
	int64_t blocks;		/* of queries */
	int64_t share;		/* rows of q per row of k */
	int heads, d;
	float c;		/* d^-1/2 log2 e */
};

/*
 * POLY: of every 32 elements of P a thread has, 4 POLY are computed by
 * multiplications, the others by the unit for 2^x, which is as busy.
 *
 * Stages: while a block is met by one warpgroup, another may be two blocks
 * behind, and copies are two ahead.
 */
template <int D, int POLY_>
struct shape {
	static constexpr int POLY = POLY_;
	static constexpr int GROUPS = 3;
	static constexpr int THREADS = GROUPS * 128;
	static constexpr int OWNED = GROUPS * 64;
	static constexpr int STAGES = 6;
	static constexpr int DEPTH = (D + 15) / 16;	/* of 16 channels */
	static constexpr int ROW8 = DEPTH * 256;	/* bytes */
	static constexpr int TILE = MET / 8 * ROW8;
	static constexpr int STAGE = 2 * TILE;
	static constexpr int BYTES = STAGES * STAGE + STAGES * 8;
	/* tokens copied at a time by all threads */
	static constexpr int ROWS = THREADS / D >= 8 ? 64 :
	    THREADS / D >= 4 ? 32 : 16;
};

#ifdef HAVE_WG
/* What a thread copies, and where it is in the stages. */
struct feed {
	const bf16 *k, *v;	/* its 16 bytes of the next block */
	int to;
	int row, rest;		/* its first; keys from the next block on */
	int stage;
};

template <int D, int POLY>
static __device__ __forceinline__ void
feed_begin(struct feed &f, const bf16 *k, const bf16 *v, const struct job &j)
{
	using Z = shape<D, POLY>;
	int u = threadIdx.x / 8 % (D / 8);

	f.row = threadIdx.x / D * 8 + threadIdx.x % 8;
	f.k = k + f.row * j.ldk + 8 * u;
	f.v = v + f.row * j.ldk + 8 * u;
	f.to = f.row / 8 * Z::ROW8 + u * 128 + f.row % 8 * 16;
	f.rest = 8 * u < j.d ? (int)j.lk : 0;
	f.stage = 0;
}

/* The next block is on its way, if there is one. */
template <int D, int POLY>
static __device__ __forceinline__ void
feed_next(struct feed &f, unsigned char *stages, const struct job &j)
{
	using Z = shape<D, POLY>;
	unsigned char *to = stages + f.stage * Z::STAGE + f.to;
	int i;

	if (f.row < Z::ROWS)
#pragma unroll
		for (i = 0; i < MET; i += Z::ROWS) {
			bool there = f.row + i < f.rest;
			int64_t at = there ? i * j.ldk : 0;

			wg_copy16(to + i / 8 * Z::ROW8, f.k + at, there);
			wg_copy16(to + i / 8 * Z::ROW8 + Z::TILE, f.v + at,
			    there);
		}
	wg_copies_begin();
	if (f.rest > MET) {
		f.k += MET * j.ldk;
		f.v += MET * j.ldk;
	}
	f.rest -= MET;
	f.stage = f.stage == Z::STAGES - 1 ? 0 : f.stage + 1;
}

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
 * What a thread holds: parts of rows r and r + 8 of its warp, r = lane / 4.
 * Element i of a product is of row r + i / 2 % 2 * 8, column i / 4 * 8 +
 * lane % 4 * 2 + i % 2.
 */
template <int D>
struct own {
	uint32_t q[(D + 15) / 16][4];
	uint32_t p[MET / 16][4];
	float acc[D / 2];
	float m[2], l[2];		/* l: of this lane's columns */
};

/* s = -Inf where there is no key. */
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

/*
 * s becomes P, m and l move on.  True where acc is still to be multiplied by
 * was: for all of a warp alike.
 */
template <int D, int POLY>
static __device__ __forceinline__ bool
soften(struct own<D> &w, float (&s)[MET / 2], float was[2], float c)
{
	float top[2] = { -INFINITY, -INFINITY }, ref[2], sum[2] = {};
	bool late;
	int i, e;

#pragma unroll
	for (i = 0; i < MET / 2; i++)
		top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
	late = __any_sync(~0u, top[0] * c > w.m[0] + SLACK ||
	    top[1] * c > w.m[1] + SLACK);
	if (late)
#pragma unroll
		for (e = 0; e < 2; e++) {
			float m = fmaxf(w.m[e], quad_max(top[e]) * c);

			was[e] = pow2(w.m[e] - (m == -INFINITY ? 0.0f : m));
			w.m[e] = m;
			w.l[e] *= was[e];
		}
#pragma unroll
	for (e = 0; e < 2; e++)
		ref[e] = w.m[e] == -INFINITY ? 0.0f : w.m[e];
#pragma unroll
	for (i = 0; i < MET / 2; i++) {
		float x = fmaf(s[i], c, -ref[i / 2 % 2]);

		s[i] = i / 4 % 8 * POLY % 8 + POLY >= 8 ? pow2_poly(x) :
		    pow2(x);
		sum[i / 2 % 2] += s[i];
	}
#pragma unroll
	for (e = 0; e < 2; e++)
		w.l[e] += sum[e];
	return late;
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

/* S of the keys at k is on its way. */
template <int D>
static __device__ __forceinline__ void
ask(const struct own<D> &w, float (&s)[MET / 2], const unsigned char *k)
{
	constexpr int DEPTH = (D + 15) / 16;
	uint64_t a = wg_matrix(k, 128, DEPTH * 256);
	int x;

	wg_dot(s, w.q[0], a);
#pragma unroll
	for (x = 1; x < DEPTH; x++)
		wg_dot_more(s, w.q[x], a + 16 * x);
	wg_commit();
}

/* acc += P v is on its way. */
template <int D>
static __device__ __forceinline__ void
gather(struct own<D> &w, const unsigned char *v)
{
	constexpr int ROW8 = (D + 15) / 16 * 256;
	uint64_t b = wg_matrix(v, ROW8, 128);
	int x;

#pragma unroll
	for (x = 0; x < MET / 16; x++)
		wg_sum(w.acc, w.p[x], b + x * (2 * ROW8 / 16));
	wg_commit();
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

/* The copies before the last have arrived; others are told. */
static __device__ __forceinline__ void
announce(uint64_t *full)
{
	wg_copies_wait<1>();
	wg_publish();
	__syncwarp();
	if (threadIdx.x % 32 == 0)
		wg_arrive(full);
}

/* All keys: the first two blocks are on their way. */
template <int D, int POLY>
static __device__ __forceinline__ void
meet(struct own<D> &w, struct feed &f, unsigned char *stages, uint64_t *full,
    const struct job &j)
{
	using Z = shape<D, POLY>;
	int blocks = (int)((j.lk + MET - 1) / MET), block, at = 0, before, i;
	int parity = 0, rest = (int)(j.lk - (int64_t)(blocks - 1) * MET);
	float s[MET / 2], was[2];

	announce(full);
	feed_next<D, POLY>(f, stages, j);
	announce(full + 1);
	wg_barrier_wait(full, 0);
	wg_begin();
	ask<D>(w, s, stages);
	wg_wait<0>();
	wg_settle(s);
	if (blocks == 1)
		mask(s, rest);
	soften<D, POLY>(w, s, was, j.c);
	pack_all(w.p, s);
	for (block = 1; block < blocks; block++) {
		bool late;

		before = at;
		if (++at == Z::STAGES) {
			at = 0;
			parity ^= 1;
		}
		feed_next<D, POLY>(f, stages, j);
		announce(full + (at == Z::STAGES - 1 ? 0 : at + 1));
		wg_barrier_wait(full + at, parity);
		wg_begin();
		ask<D>(w, s, stages + at * Z::STAGE);
		gather<D>(w, stages + before * Z::STAGE + Z::TILE);
		wg_wait<1>();
		wg_settle(s);
		if (block == blocks - 1 && rest < MET)
			mask(s, rest);
		late = soften<D, POLY>(w, s, was, j.c);
		/*
		 * Never so, but what is compared has to be there: without
		 * this the assembler moves all of P behind the wait.
		 */
		if (w.l[0] + w.l[1] < 0.0f)
			wg_pause();
		wg_wait<0>();
		wg_settle(w.acc);
		if (late)
#pragma unroll
			for (i = 0; i < D / 2; i++)
				w.acc[i] *= was[i / 2 % 2];
		pack_all(w.p, s);
	}
	wg_begin();
	gather<D>(w, stages + at * Z::STAGE + Z::TILE);
	wg_copies_wait<0>();
	wg_wait<0>();
	wg_settle(w.acc);
}
#endif

template <int D, int POLY>
static __global__ void
__launch_bounds__(shape<D, POLY>::THREADS, 1)
flash_wgmma(bf16 *__restrict__ o, float *__restrict__ lse,
    const bf16 *__restrict__ q, const bf16 *__restrict__ k,
    const bf16 *__restrict__ v, const __grid_constant__ struct job j)
{
#ifndef HAVE_WG
	__trap();		/* never asked for */
#else
	using Z = shape<D, POLY>;
	extern __shared__ __align__(128) unsigned char stages[];
	uint64_t *full = (uint64_t *)(stages + Z::STAGES * Z::STAGE);
	int64_t u = blockIdx.x, q0, h, row;
	struct own<D> w;
	struct feed f;
	int i;

	q0 = u % j.blocks * Z::OWNED + threadIdx.x / 32 * 16;
	h = u / j.blocks % j.heads;
	row = u / j.blocks / j.heads;
	/* The channels that no copy writes. */
	for (i = threadIdx.x; i < (D % 16 ? Z::STAGES * Z::STAGE / 16 : 0);
	    i += Z::THREADS)
		((uint4 *)stages)[i] = make_uint4(0, 0, 0, 0);
	if (threadIdx.x == 0)
		for (i = 0; i < Z::STAGES; i++)
			wg_barrier_init(full + i, Z::THREADS / 32);
	__syncthreads();
	feed_begin<D, POLY>(f, k + row / j.share * j.lk * j.ldk + h * j.d,
	    v + row / j.share * j.lk * j.ldk + h * j.d, j);
	feed_next<D, POLY>(f, stages, j);
	feed_next<D, POLY>(f, stages, j);
	wg_hold(w.q, q + (row * j.lq + q0) * j.ldq + h * j.d, j.ldq,
	    j.lq - q0, j.d);
#pragma unroll
	for (i = 0; i < D / 2; i++)
		w.acc[i] = 0.0f;
	wg_settle(w.acc);
	w.m[0] = w.m[1] = -INFINITY;
	w.l[0] = w.l[1] = 0.0f;
	meet<D, POLY>(w, f, stages, full, j);
	finish(w.acc, w.m, w.l, o + (row * j.lq + q0) * j.ldo + h * j.d,
	    lse == NULL ? NULL : lse + (row * j.heads + h) * j.lq + q0, j,
	    j.lq - q0);
#endif
}

/* ---- few keys */

/*
 * All keys lie in shared memory, and a warpgroup takes one 64 queries after
 * another; the next are read during the work on these.
 */
template <int D>
struct few_shape {
	static constexpr int THREADS = 128;
	static constexpr int DEPTH = (D + 15) / 16;
	static constexpr int ROW8 = DEPTH * 256;
	static constexpr int TILE = FEW / 8 * ROW8;
	static constexpr int BYTES = 2 * TILE;
	static constexpr int TILES = 4;		/* of a CTA */
	static constexpr int CTAS = D <= 40 ? 4 : 3;	/* of a processor */
};

#ifdef HAVE_WG
/* All keys or values, zeros where there are none. */
template <int D>
static __device__ __forceinline__ void
few_copy(unsigned char *to, const bf16 *from, const struct job &j)
{
	using Z = few_shape<D>;
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
few_meet(const uint32_t (&q)[(D + 15) / 16][4], const unsigned char *k,
    const unsigned char *v, bf16 *o, float *lse, const struct job &j,
    int64_t rows)
{
	using Z = few_shape<D>;
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
__launch_bounds__(few_shape<D>::THREADS, few_shape<D>::CTAS)
flash_few(bf16 *__restrict__ o, float *__restrict__ lse,
    const bf16 *__restrict__ q, const bf16 *__restrict__ k,
    const bf16 *__restrict__ v, const __grid_constant__ struct job j)
{
#ifndef HAVE_WG
	__trap();		/* never asked for */
#else
	using Z = few_shape<D>;
	extern __shared__ __align__(128) unsigned char stages[];
	int64_t u = blockIdx.x, q0, h, row;
	uint32_t now[Z::DEPTH][4], next[Z::DEPTH][4];
	int i, x, e;

	q0 = u % j.blocks * (Z::TILES * 64) + threadIdx.x / 32 * 16;
	h = u / j.blocks % j.heads;
	row = u / j.blocks / j.heads;
	q += (row * j.lq + q0) * j.ldq + h * j.d;
	o += (row * j.lq + q0) * j.ldo + h * j.d;
	if (lse != NULL)
		lse += (row * j.heads + h) * j.lq + q0;
	/* The channels that no copy writes. */
	for (i = threadIdx.x; i < (D % 16 ? Z::BYTES / 16 : 0);
	    i += Z::THREADS)
		((uint4 *)stages)[i] = make_uint4(0, 0, 0, 0);
	__syncthreads();
	few_copy<D>(stages, k + row / j.share * j.lk * j.ldk + h * j.d, j);
	few_copy<D>(stages + Z::TILE, v + row / j.share * j.lk * j.ldk +
	    h * j.d, j);
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
		few_meet<D>(now, stages, stages + Z::TILE, o + i * 64 * j.ldo,
		    lse == NULL ? NULL : lse + i * 64, j, rows);
	}
#endif
}

/* ---- host */

typedef void (*kernel_of)(bf16 *, float *, const bf16 *, const bf16 *,
    const bf16 *, const struct job);

/* n rows in CTAs of `owned` queries */
static int
launch(struct cuda *cu, kernel_of kernel, int owned, int threads, int bytes,
    void *o, float *lse, const void *q, const void *k, const void *v,
    struct job *j, int64_t n)
{
	int64_t all;
	int rc;

	j->blocks = (j->lq + owned - 1) / owned;
	all = j->blocks * j->heads * n;
	if (all > INT32_MAX)
		return cuda_fail(cu, LPO_EINVAL, "attention",
		    "too many rows, heads and queries");
	rc = cuda_check(cu, cudaFuncSetAttribute((const void *)kernel,
	    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
	    "attention");
	if (rc != 0)
		return rc;
	kernel<<<(unsigned)all, threads, bytes, cu->stream>>>((bf16 *)o, lse,
	    (const bf16 *)q, (const bf16 *)k, (const bf16 *)v, *j);
	return cuda_done(cu, "attention");
}

template <int D, int POLY>
static int
launch_long(struct cuda *cu, void *o, float *lse, const void *q, const void *k,
    const void *v, struct job *j, int64_t n)
{
	using Z = shape<D, POLY>;

	return launch(cu, flash_wgmma<D, POLY>, Z::OWNED, Z::THREADS,
	    Z::BYTES, o, lse, q, k, v, j, n);
}

template <int D>
static int
launch_few(struct cuda *cu, void *o, float *lse, const void *q, const void *k,
    const void *v, struct job *j, int64_t n)
{
	using Z = few_shape<D>;

	return launch(cu, flash_few<D>, Z::TILES * 64, Z::THREADS, Z::BYTES,
	    o, lse, q, k, v, j, n);
}

int
cuda_flash_wgmma_suits(const struct cuda *cu, enum lpo_dtype dt,
    const struct lpo_attn_shape *s)
{
	return cu->sm == 90 && dt == LPO_BF16 && !s->causal &&
	    s->lq >= LONG && s->d % 8 == 0 && s->ldq % 8 == 0 &&
	    s->ldk % 8 == 0 && s->ldk <= LONGEST && ((s->lk >= LONG &&
	    s->lk <= INT32_MAX && s->d <= 40) ||
	    (s->lk <= FEW && s->d <= 80));
}

int
cuda_flash_wgmma_fwd(struct cuda *cu, void *o, float *lse, const void *q,
    const void *k, const void *v, const struct lpo_attn_shape *s)
{
	struct job j = { s->lq, s->lk, s->ldq, s->ldk, s->heads * s->d, 0,
	    s->n / s->nk, (int)s->heads, (int)s->d,
	    LOG2E / sqrtf((float)s->d) };

	if (s->lk <= FEW && s->d <= 40)
		return launch_few<40>(cu, o, lse, q, k, v, &j, s->n);
	if (s->lk <= FEW)
		return launch_few<80>(cu, o, lse, q, k, v, &j, s->n);
	return launch_long<40, 1>(cu, o, lse, q, k, v, &j, s->n);
}
