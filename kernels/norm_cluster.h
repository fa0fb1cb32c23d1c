/*
 * GroupNorm in one launch, by clusters of CTAs, on compute capability 9.0 and
 * more: what its two directions share.
 *
 * A cluster takes whole groups of one image, each CTA a slice of the rows.
 * That stays in shared memory from the only time it is read to when its result
 * is written; each CTA writes its sums into the shared memory of all.
 *
 * A thread reads what it has copied itself, so copies need no barrier.  It
 * keeps one column of V channels and every per-th row.  A team is 8 rows of
 * threads, as many threads as channels, so that what thread t leaves of its
 * channels, V values from V t on, is [per][width] in all, and channel
 * t % width of team t / width is found at t, t + threads, ...
 *
 * How an image is shared out depends on its shape, its type and the kind of
 * device alone, and sums are in the order of ranks: its bits do not depend on
 * how many images there are.
 */
#ifndef LPO_NORM_CLUSTER_H
#define LPO_NORM_CLUSTER_H

#include "kernels/cuda_norm.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define HAVE_CLUSTERS
#endif

enum {
	V = CUDA_WIDE,
	TEAM_ROWS = V,		/* so that a team is as wide as a chunk */
	THREADS_MOST = 640,	/* of a CTA */
	PARTS = 4,		/* copies that are waited for one by one */
	WARP = 32
};

/*
 * How images are shared out: columns in chunks of whole groups, a chunk's
 * rows among the CTAs of a cluster.
 */
struct share {
	int64_t n, c;
	int hw, groups, cg;
	int chunk, chunks;	/* groups of one chunk; chunks of an image */
	int width, span;	/* of a chunk: channels, vectors */
	int per, teams;		/* rows of threads, and 8 of them */
	int threads;		/* span * per = width * teams */
	int slots;		/* vectors that a thread keeps, at most */
	int ctas, log_ctas;
};

/* What one thread has to do with. */
struct slice {
	int64_t img, at;	/* of its first element */
	int rank, rows;		/* of the CTA */
	int full, more;		/* rows: full * per + more */
	int first;		/* group of the chunk */
	int column, mine;	/* first channel, and rows, of the thread */
};

#ifdef HAVE_CLUSTERS
/* 16 bytes into shared memory, past the registers and L1. */
static __device__ __forceinline__ void
copy16(uint4 *to, const void *from)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
	    :: "r"((uint32_t)__cvta_generic_to_shared(to)),
	    "l"(__cvta_generic_to_global(from)) : "memory");
}

static __device__ __forceinline__ void
copies_end_part(void)
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until this thread's copies are there, but for those of the last parts. */
static __device__ __forceinline__ void
copies_wait(int but)
{
	switch (but) {
	case 3:
		asm volatile("cp.async.wait_group 3;" ::: "memory");
		break;
	case 2:
		asm volatile("cp.async.wait_group 2;" ::: "memory");
		break;
	case 1:
		asm volatile("cp.async.wait_group 1;" ::: "memory");
		break;
	default:
		asm volatile("cp.async.wait_group 0;" ::: "memory");
	}
}

/*
 * Two steps of a cluster.  First all its CTAs have to have begun, and with them
 * their shared memory; then what was written is seen after the wait.
 */
static __device__ __forceinline__ void
cluster_begun(void)
{
	__syncwarp();
	asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

static __device__ __forceinline__ void
cluster_written(void)
{
	__syncwarp();
	asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

static __device__ __forceinline__ void
cluster_wait(void)
{
	__syncwarp();
	asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* To this place in another CTA of the cluster, or in this one. */
static __device__ __forceinline__ void
cluster_write(float2 *place, int rank, float2 v)
{
	uint32_t at;

	asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at)
	    : "r"((uint32_t)__cvta_generic_to_shared(place)), "r"(rank));
	asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};"
	    :: "r"(at), "f"(v.x), "f"(v.y) : "memory");
}

/* ---- a thread's vectors in shared memory, `apart` pieces of 16 bytes */

static __device__ __forceinline__ void
keep(uint4 *to, const __nv_bfloat16 *from, int apart)
{
	(void)apart;
	copy16(to, from);
}

static __device__ __forceinline__ void
keep(uint4 *to, const float *from, int apart)
{
	copy16(to, from);
	copy16(to + apart, from + 4);
}

static __device__ __forceinline__ void
fetch(cuda_pack<__nv_bfloat16, V> *u, const uint4 *from, int apart)
{
	(void)apart;
	u->a = from[0];
}

static __device__ __forceinline__ void
fetch(cuda_pack<float, V> *u, const uint4 *from, int apart)
{
	u->a = ((const float4 *)from)[0];
	u->b = ((const float4 *)from)[apart];
}

template <typename T>
static __device__ __forceinline__ void
kept(float *v, const uint4 *from, int apart)
{
	cuda_pack<T, V> u;

	fetch(&u, from, apart);
	cuda_unpack(v, u);
}

static __device__ __forceinline__ float
warp_sum(float s)
{
	int i;

#pragma unroll
	for (i = WARP / 2; i > 0; i /= 2)
		s += __shfl_xor_sync(0xffffffffu, s, i);
	return s;
}

/* Of numbers that are not negative */
static __device__ __forceinline__ int
quotient(int a, int b)
{
	return (int)((unsigned)a / (unsigned)b);
}

/* The first row of a rank */
static __device__ __forceinline__ int
row_of(const struct share &k, int rank)
{
	return k.hw * rank >> k.log_ctas;
}

static __device__ __forceinline__ int
rows_of(const struct share &k, int rank)
{
	return row_of(k, rank + 1) - row_of(k, rank);
}

static __device__ __forceinline__ struct slice
slice_of(const struct share &k)
{
	const int t = threadIdx.x, row = quotient(t, k.span);
	const int unit = blockIdx.x >> k.log_ctas;
	const int image = quotient(unit, k.chunks);
	struct slice s;

	/* The last image first: of it most is in the L2 cache. */
	s.img = k.n - 1 - image;
	s.first = (unit - image * k.chunks) * k.chunk;
	s.rank = blockIdx.x & (k.ctas - 1);
	s.rows = rows_of(k, s.rank);
	s.full = quotient(s.rows, k.per);
	s.more = s.rows - s.full * k.per;
	s.column = (t - row * k.span) * V;
	s.mine = t < k.threads ? s.full + (row < s.more) : 0;
	s.at = (s.img * k.hw + row_of(k, s.rank) + row) * k.c +
	    s.first * k.cg + s.column;
	return s;
}

/* The vectors of a thread up to here are copied in this part or before. */
static __device__ __forceinline__ int
part_end(const struct share &k, const struct slice &s, int part)
{
	return min((part + 1) * ((k.slots + PARTS - 1) / PARTS), s.mine);
}

#endif

/* ---- host */

/*
 * How images of this shape are shared out; the bytes of shared memory of a
 * CTA, or 0: not by clusters.
 */
size_t	cuda_cluster_share(struct share *, const struct cuda *,
	    enum lpo_dtype, int64_t n, int64_t hw, int64_t c, int64_t groups,
	    int backward);
/*
 * Before the first launch of a direction's kernels.  1: they can run on this
 * device, 0: not, negative: an error.
 */
int	cuda_cluster_open(struct cuda *, const void *f32, const void *bf16,
	    int backward);
/* A launch; its attribute is the caller's. */
cudaLaunchConfig_t cuda_cluster_launch(const struct cuda *,
	    const struct share *, size_t bytes, cudaLaunchAttribute *);

#endif
