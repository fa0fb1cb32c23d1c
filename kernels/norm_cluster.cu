/*
 * GroupNorm (+ SiLU) in one launch, forward, and how images are shared out
 * among clusters in either direction; norm_cluster.h says how it works.
 */
#include "kernels/norm_cluster.h"

enum {
	CTAS = 8,		/* of a cluster at most: what devices can run */
	WIDEST = 320		/* channels of a chunk at most */
};

#ifdef HAVE_CLUSTERS
/*
 * Mean of each of a thread's channels and the sum of squares about it, by way
 * of sums about its own first value, which is no further off than the few
 * values of one thread spread: nothing cancels.
 */
template <typename T>
static __device__ __forceinline__ void
own_moments(float *mean, float *m2, const uint4 *x, const struct share &k,
    const struct slice &s)
{
	const int step = k.threads * (int)sizeof(T) * V / 16;
	float shift[V], sum[V], q[V], v[V], d, each;
	int part, i = 0, j;

#pragma unroll
	for (j = 0; j < V; j++)
		sum[j] = q[j] = shift[j] = 0.0f;
#pragma unroll 1
	for (part = 0; part < PARTS; part++) {
		const int end = part_end(k, s, part);

		copies_wait(PARTS - 1 - part);
		if (part == 0 && s.mine > 0)
			kept<T>(shift, x, k.threads);
#pragma unroll 2
		for (; i < end; i++, x += step) {
			kept<T>(v, x, k.threads);
#pragma unroll
			for (j = 0; j < V; j++) {
				d = v[j] - shift[j];
				sum[j] += d;
				q[j] = fmaf(d, d, q[j]);
			}
		}
	}
	each = 1.0f / (float)max(s.mine, 1);
#pragma unroll
	for (j = 0; j < V; j++) {
		d = sum[j] * each;
		q[j] = fmaxf(fmaf(-d, sum[j], q[j]), 0.0f);
		sum[j] = shift[j] + d;
	}
	cuda_write<V>(mean, sum);
	cuda_write<V>(m2, q);
}

/* Chan's merge of a team's 8 rows of threads, one channel a thread. */
static __device__ __forceinline__ void
team_moments(float *mean, float *m2, const struct share &k,
    const struct slice &s)
{
	const int team = quotient(threadIdx.x, k.width);
	float m[TEAM_ROWS], w[TEAM_ROWS], sum = 0.0f, all = 0.0f, q = 0.0f, d;
	int u;

	mean += threadIdx.x;
	m2 += threadIdx.x;
#pragma unroll
	for (u = 0; u < TEAM_ROWS; u++) {
		m[u] = mean[u * k.threads];
		w[u] = (float)(s.full + (team + u * k.teams < s.more));
		sum = fmaf(w[u], m[u] - m[0], sum);
		all += w[u];
	}
	sum = m[0] + (all > 0.0f ? sum / all : 0.0f);
#pragma unroll
	for (u = 0; u < TEAM_ROWS; u++) {
		d = m[u] - sum;
		q += fmaf(w[u] * d, d, m2[u * k.threads]);
	}
	mean[0] = sum;
	m2[0] = q;
}

/* The same of all teams and channels of group g of the chunk, by a warp. */
static __device__ __forceinline__ float2
group_moments(const float *mean, const float *m2, const struct share &k,
    int rows, int g)
{
	const int lane = threadIdx.x % WARP;
	const int full = quotient(rows, k.teams);
	const int more = rows - full * k.teams;
	float base, sum = 0.0f, q = 0.0f, d, w;
	int team, i, at;

	base = mean[g * k.cg];
#pragma unroll 1
	for (team = 0; team < k.teams; team++) {
		w = (float)(full + (team < more));
		at = team * k.width + g * k.cg;
#pragma unroll 1
		for (i = lane; i < k.cg; i += WARP)
			sum = fmaf(w, mean[at + i] - base, sum);
	}
	base += warp_sum(sum) / ((float)rows * (float)k.cg);
#pragma unroll 1
	for (team = 0; team < k.teams; team++) {
		w = (float)(full + (team < more));
		at = team * k.width + g * k.cg;
#pragma unroll 1
		for (i = lane; i < k.cg; i += WARP) {
			d = mean[at + i] - base;
			q += fmaf(w * d, d, m2[at + i]);
		}
	}
	return make_float2(base, warp_sum(q));
}

/*
 * The same of all CTAs: a lane has a rank's.  Then y = f(x a + b) of each
 * channel, a = rstd gamma, b = beta - mean a.  Only this warp has read what
 * stood there, its own group.
 */
static __device__ __forceinline__ void
group_finish(float *a, float *b, float *stats, const float2 *part,
    const float *gamma, const float *beta, const struct share &k,
    const struct slice &s, int g, float eps)
{
	const int lane = threadIdx.x % WARP, ch = (s.first + g) * k.cg;
	const float all = (float)k.hw, cg = (float)k.cg;
	float2 p = make_float2(0.0f, 0.0f);
	float w = 0.0f, mean, d, rstd, slope;
	int i;

	if (lane < k.ctas) {
		p = part[g * k.ctas + lane];
		w = (float)rows_of(k, lane);
	}
	mean = __shfl_sync(0xffffffffu, p.x, 0);
	mean += warp_sum(w * (p.x - mean)) / all;
	d = p.x - mean;
	rstd = 1.0f / sqrtf(warp_sum(fmaf(w * cg * d, d, p.y)) / (all * cg) +
	    eps);
	if (s.rank == 0 && lane == 0) {
		stats += 2 * (s.img * k.groups + s.first + g);
		stats[0] = mean;
		stats[1] = rstd;
	}
#pragma unroll 1
	for (i = lane; i < k.cg; i += WARP) {
		slope = rstd * gamma[ch + i];
		a[g * k.cg + i] = slope;
		b[g * k.cg + i] = fmaf(-mean, slope, beta[ch + i]);
	}
}

template <typename T>
static __device__ __forceinline__ void
own_apply(T *y, const uint4 *x, const float *at, const float *bt,
    const struct share &k, const struct slice &s, int silu)
{
	const int step = k.threads * (int)sizeof(T) * V / 16;
	float a[V], b[V], v[V];
	int i, j;

	cuda_unpack(a, cuda_read<float, V>(at));
	cuda_unpack(b, cuda_read<float, V>(bt));
#pragma unroll 2
	for (i = 0; i < s.mine; i++, x += step, y += k.per * k.c) {
		kept<T>(v, x, k.threads);
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] = fmaf(v[j], a[j], b[j]);
		if (silu)
#pragma unroll
			for (j = 0; j < V; j++)
				v[j] *= cuda_sigmoid(v[j]);
		cuda_write<V>(y, v);
	}
}
#endif

/* The bound makes it 64 registers at most: three CTAs of 320 threads fit. */
template <typename T>
static __global__ void __launch_bounds__(1024)
cluster_fwd(void *yv, float *stats, const void *xv, const float *gamma,
    const float *beta, const struct share k, float eps, int silu)
{
#ifdef HAVE_CLUSTERS
	extern __shared__ uint4 shared[];
	const int words = k.threads * (int)sizeof(T) * V / 16;
	const int t = threadIdx.x, warps = blockDim.x / WARP;
	const struct slice s = slice_of(k);
	const T *from = (const T *)xv + s.at;
	uint4 *x = shared + t;
	float *mean = (float *)(shared + k.slots * words);
	float *m2 = mean + V * k.threads;
	float2 *part = (float2 *)(m2 + V * k.threads);
	int i = 0, g, turn;

	if (k.ctas > 1)
		cluster_begun();
#pragma unroll 1
	for (turn = 0; turn < PARTS; turn++) {
#pragma unroll 1
		for (; i < part_end(k, s, turn); i++, from += k.per * k.c)
			keep(x + i * words, from, k.threads);
		copies_end_part();
	}
	if (t < k.threads)
		own_moments<T>(mean + V * t, m2 + V * t, x, k, s);
	__syncthreads();
	if (t < k.threads)
		team_moments(mean, m2, k, s);
	__syncthreads();
	if (k.ctas > 1)
		cluster_wait();
	for (g = t / WARP; g < k.chunk; g += warps) {
		float2 p = group_moments(mean, m2, k, s.rows, g);

		if (t % WARP < k.ctas)
			cluster_write(part + g * k.ctas + s.rank, t % WARP, p);
	}
	if (k.ctas > 1) {
		cluster_written();
		cluster_wait();
	}
	for (g = t / WARP; g < k.chunk; g += warps)
		group_finish(mean, m2, stats, part, gamma, beta, k, s, g, eps);
	__syncthreads();
	own_apply<T>((T *)yv + s.at, x, mean + s.column, m2 + s.column, k, s,
	    silu);
#endif
}

/* ---- host */

/* What a CTA may have: 227 KiB, and 99 of compute capability 12. */
static size_t
shared_most(const struct cuda *cu)
{
	return (size_t)(cu->sm < 120 ? 227 : 99) << 10;
}

/*
 * The smallest number of groups whose channels are whole vectors and at least
 * `bytes` of a row, where an image has so many.
 */
static int
chunk_for(int groups, int cg, int size, int bytes)
{
	int g;

	for (g = 1; g < groups; g++)
		if (groups % g == 0 && g * cg % V == 0 &&
		    g * cg * size >= bytes)
			break;
	return g;
}

/*
 * CTAs of a cluster and their threads, for rows of which row_bytes are kept.
 * A slice has 40 KiB at most where 8 CTAs are enough for that, so that several
 * share a processor and one works while others wait.  An image is at least 32
 * slices, so that 20 images keep 132 processors busy, unless slices have less
 * than 16 KiB; as a row has at most 2560 bytes, none is without rows.
 * Registers are enough for 960 threads of a processor forward, 640 backward.
 */
static void
share_rows(struct share *k, int row_bytes, int backward)
{
	int64_t slice;
	int threads;

	for (k->log_ctas = 0;; k->log_ctas++) {
		k->ctas = 1 << k->log_ctas;
		slice = (int64_t)((k->hw + k->ctas - 1) / k->ctas) * row_bytes;
		if (k->ctas == CTAS || (slice <= 40 << 10 &&
		    (k->chunks * k->ctas >= 32 || slice <= 16 << 10)))
			break;
	}
	threads = slice > 96 << 10 ? THREADS_MOST : slice > 48 << 10 ||
	    !backward ? THREADS_MOST / 2 : THREADS_MOST / 4;
	k->teams = threads > k->width ? threads / k->width : 1;
	k->per = TEAM_ROWS * k->teams;
	k->threads = k->width * k->teams;
	k->slots = ((k->hw + k->ctas - 1) / k->ctas + k->per - 1) / k->per;
}

/*
 * The one place that decides.  First tried are chunks of at least 128 bytes of
 * a row such that two CTAs fit into a processor, then of 64 bytes and with all
 * the memory there is.
 */
size_t
cuda_cluster_share(struct share *k, const struct cuda *cu,
    enum lpo_dtype dt, int64_t n, int64_t hw, int64_t c, int64_t groups,
    int backward)
{
	const int size = (int)cuda_bytes(dt), kept = backward ? 2 : 1;
	size_t most = shared_most(cu), bytes;
	int narrow;

	if (cu->sm < 90 || hw > 1 << 20 || c > 1 << 16)
		return 0;
	k->n = n;
	k->hw = (int)hw;
	k->c = c;
	k->groups = (int)groups;
	k->cg = (int)(c / groups);
	for (narrow = 0; narrow < 2; narrow++) {
		k->chunk = chunk_for(k->groups, k->cg, size, narrow ? 64 :
		    128);
		k->chunks = k->groups / k->chunk;
		k->width = k->chunk * k->cg;
		k->span = k->width / V;
		if (k->width > WIDEST)
			continue;
		share_rows(k, k->width * size * kept, backward);
		bytes = (size_t)k->threads * V * (size_t)(kept * k->slots *
		    size) + 2 * V * (size_t)k->threads * sizeof(float) +
		    (backward ? 3 * (size_t)k->width * sizeof(float) : 0) +
		    (size_t)(k->chunk * k->ctas) * sizeof(float2);
		if (bytes <= (narrow ? most : (most - 1024) / 2) &&
		    n * k->chunks * k->ctas <= INT32_MAX)
			return bytes;
	}
	return 0;
}

cudaLaunchConfig_t
cuda_cluster_launch(const struct cuda *cu, const struct share *k,
    size_t bytes, cudaLaunchAttribute *size)
{
	cudaLaunchConfig_t l = {};

	memset(size, 0, sizeof *size);
	size->id = cudaLaunchAttributeClusterDimension;
	size->val.clusterDim.x = (unsigned)k->ctas;
	size->val.clusterDim.y = size->val.clusterDim.z = 1;
	l.gridDim = dim3((unsigned)(k->n * k->chunks * k->ctas));
	l.blockDim = dim3((unsigned)((k->threads + WARP - 1) / WARP * WARP));
	l.dynamicSmemBytes = bytes;
	l.stream = cu->stream;
	l.attrs = size;
	l.numAttrs = k->ctas > 1;
	return l;
}

/*
 * Let a kernel have all shared memory, once and for all: what was granted for
 * a recorded launch must not be taken back.  1: the largest cluster can run
 * on this device, 0: it cannot, as on a small part of one.
 */
static int
open_kernel(struct cuda *cu, const void *kernel)
{
	struct share k;
	cudaLaunchAttribute size;
	cudaLaunchConfig_t l;
	int rc, clusters = 0;

	memset(&k, 0, sizeof k);
	k.n = k.chunks = 1;
	k.ctas = CTAS;
	k.threads = THREADS_MOST;
	l = cuda_cluster_launch(cu, &k, shared_most(cu), &size);
	if ((rc = cuda_check(cu, cudaFuncSetAttribute(kernel,
	    cudaFuncAttributeMaxDynamicSharedMemorySize,
	    (int)shared_most(cu)), "group_norm")) != 0 ||
	    (rc = cuda_check(cu, cudaFuncSetAttribute(kernel,
	    cudaFuncAttributePreferredSharedMemoryCarveout,
	    cudaSharedmemCarveoutMaxShared), "group_norm")) != 0)
		return rc;
	if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &l) !=
	    cudaSuccess)
		(void)cudaGetLastError();
	return clusters > 0;
}

int
cuda_cluster_open(struct cuda *cu, const void *f32, const void *bf16,
    int backward)
{
	int *known = &cu->clusters[backward], rc;

	if (*known != 0)
		return *known > 0;
	if ((rc = open_kernel(cu, f32)) == 1)
		rc = open_kernel(cu, bf16);
	if (rc >= 0)
		*known = rc == 1 ? 1 : -1;
	return rc;
}

int
cuda_group_cluster_fwd(struct cuda *cu, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t n, int64_t hw, int64_t c, int64_t groups, float eps, int silu)
{
	struct share k;
	cudaLaunchAttribute size;
	cudaLaunchConfig_t l;
	size_t bytes = cuda_cluster_share(&k, cu, dt, n, hw, c, groups, 0);
	int rc = bytes == 0 ? 0 : cuda_cluster_open(cu,
	    (const void *)cluster_fwd<float>,
	    (const void *)cluster_fwd<__nv_bfloat16>, 0);

	if (rc != 1)
		return rc;
	l = cuda_cluster_launch(cu, &k, bytes, &size);
	rc = cuda_check(cu, dt == LPO_F32 ? cudaLaunchKernelEx(&l,
	    cluster_fwd<float>, y, stats, x, gamma, beta, k, eps, silu) :
	    cudaLaunchKernelEx(&l, cluster_fwd<__nv_bfloat16>, y, stats, x,
	    gamma, beta, k, eps, silu), "group_norm_fwd");
	return rc < 0 ? rc : 1;
}
