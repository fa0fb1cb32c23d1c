/*
 * GroupNorm (+ SiLU) in one launch, backward: norm_cluster.h says how.
 */
#include "kernels/norm_cluster.h"

#ifdef HAVE_CLUSTERS
/*
 * Of each of a thread's channels the sum of dy' (dy before SiLU) and of
 * dy' (x - mean).
 */
template <typename T>
static __device__ __forceinline__ void
own_sums(float *sums, float *squares, const uint4 *x, const uint4 *dy,
    const float *col, const struct share &k, const struct slice &s, int silu)
{
	const int step = k.threads * (int)sizeof(T) * V / 16;
	float mean[V], a[V], b[V], sum[V], q[V], v[V], d[V];
	int part, i = 0, j;

	cuda_unpack(mean, cuda_read<float, V>(col));
	cuda_unpack(a, cuda_read<float, V>(col + k.width));
	cuda_unpack(b, cuda_read<float, V>(col + 2 * k.width));
#pragma unroll
	for (j = 0; j < V; j++)
		sum[j] = q[j] = 0.0f;
#pragma unroll 1
	for (part = 0; part < PARTS; part++) {
		const int end = part_end(k, s, part);

		copies_wait(PARTS - 1 - part);
#pragma unroll 1
		for (; i < end; i++, x += step, dy += step) {
			kept<T>(v, x, k.threads);
			kept<T>(d, dy, k.threads);
			if (silu)
#pragma unroll
				for (j = 0; j < V; j++)
					d[j] = cuda_silu_back(d[j],
					    fmaf(v[j], a[j], b[j]));
#pragma unroll
			for (j = 0; j < V; j++) {
				sum[j] += d[j];
				q[j] = fmaf(d[j], v[j] - mean[j], q[j]);
			}
		}
	}
	cuda_write<V>(sums, sum);
	cuda_write<V>(squares, q);
}

/* Sums of dy' gamma and dy' gamma xhat of a team, one channel a thread. */
static __device__ __forceinline__ void
team_sums(float *sums, float *squares, const float *gamma, const float *a,
    const struct share &k)
{
	const int team = quotient(threadIdx.x, k.width);
	const int ch = threadIdx.x - team * k.width;
	float sum = 0.0f, q = 0.0f;
	int u;

	sums += threadIdx.x;
	squares += threadIdx.x;
#pragma unroll
	for (u = 0; u < TEAM_ROWS; u++) {
		sum += sums[u * k.threads];
		q += squares[u * k.threads];
	}
	sums[0] = sum * gamma[ch];
	squares[0] = q * a[ch];
}

static __device__ __forceinline__ float2
group_sums(const float *sums, const float *squares, const struct share &k,
    int g)
{
	float sum = 0.0f, q = 0.0f;
	int team, i, at;

#pragma unroll 1
	for (team = 0; team < k.teams; team++) {
		at = team * k.width + g * k.cg;
#pragma unroll 1
		for (i = threadIdx.x % WARP; i < k.cg; i += WARP) {
			sum += sums[at + i];
			q += squares[at + i];
		}
	}
	sum = warp_sum(sum);
	return make_float2(sum, warp_sum(q));
}

/* The means over the group, times rstd and rstd^2, for each channel. */
static __device__ __forceinline__ void
back_finish(float *h, float *f, const float2 *part, const float *stats,
    const struct share &k, const struct slice &s, int g)
{
	const int lane = threadIdx.x % WARP;
	const float each = 1.0f / ((float)k.hw * (float)k.cg);
	const float rstd = stats[2 * (s.img * k.groups + s.first + g) + 1];
	float2 p = make_float2(0.0f, 0.0f);
	float one, two;
	int i;

	if (lane < k.ctas)
		p = part[g * k.ctas + lane];
	one = warp_sum(p.x) * each * rstd;
	two = warp_sum(p.y) * each * rstd * rstd;
#pragma unroll 1
	for (i = lane; i < k.cg; i += WARP) {
		h[g * k.cg + i] = -one;
		f[g * k.cg + i] = two;
	}
}

/*
 * dx (+)= rstd (dy' gamma - mean(dy' gamma) - xhat mean(dy' gamma xhat)),
 * as dy' a + h + (mean - x) f.
 */
template <typename T>
static __device__ __forceinline__ void
own_back(T *dx, const uint4 *x, const uint4 *dy, const float *col,
    const float *ht, const float *ft, const struct share &k,
    const struct slice &s, int silu, int add)
{
	enum { AHEAD = 8 / sizeof(T) };
	const int step = k.threads * (int)sizeof(T) * V / 16;
	float mean[V], a[V], b[V], h[V], f[V], v[V], d[V];
	cuda_pack<T, V> old[AHEAD];
	int i, u, j;

	cuda_unpack(mean, cuda_read<float, V>(col));
	cuda_unpack(a, cuda_read<float, V>(col + k.width));
	cuda_unpack(b, cuda_read<float, V>(col + 2 * k.width));
	cuda_unpack(h, cuda_read<float, V>(ht));
	cuda_unpack(f, cuda_read<float, V>(ft));
#pragma unroll 1
	for (i = 0; i < s.mine; i += AHEAD) {
#pragma unroll
		for (u = 0; u < AHEAD; u++)
			if (add && i + u < s.mine)
				old[u] = cuda_read<T, V>(dx + u * k.per *
				    k.c);
#pragma unroll
		for (u = 0; u < AHEAD; u++) {
			if (i + u >= s.mine)
				break;
			kept<T>(v, x, k.threads);
			kept<T>(d, dy, k.threads);
			x += step;
			dy += step;
			if (silu)
#pragma unroll
				for (j = 0; j < V; j++)
					d[j] = cuda_silu_back(d[j],
					    fmaf(v[j], a[j], b[j]));
#pragma unroll
			for (j = 0; j < V; j++)
				d[j] = fmaf(mean[j] - v[j], f[j],
				    fmaf(d[j], a[j], h[j]));
			if (add) {
				cuda_unpack(v, old[u]);
#pragma unroll
				for (j = 0; j < V; j++)
					d[j] += v[j];
			}
			cuda_write<V>(dx, d);
			dx += k.per * k.c;
		}
	}
}
#endif

template <typename T>
static __global__ void __launch_bounds__(THREADS_MOST)
cluster_bwd(void *dxv, const void *dyv, const void *xv, const float *stats,
    const float *gamma, const float *beta, const struct share k, int silu,
    int add)
{
#ifdef HAVE_CLUSTERS
	extern __shared__ uint4 shared[];
	const int words = k.threads * (int)sizeof(T) * V / 16;
	const int t = threadIdx.x, warps = blockDim.x / WARP;
	const struct slice s = slice_of(k);
	const T *xfrom = (const T *)xv + s.at, *dyfrom = (const T *)dyv + s.at;
	uint4 *x = shared + t, *dy = x + k.slots * words;
	float *sums = (float *)(shared + 2 * k.slots * words);
	float *squares = sums + V * k.threads;
	float *col = squares + V * k.threads;	/* mean, a, b */
	float2 *part = (float2 *)(col + 3 * k.width);
	int i = 0, g, turn;

	if (k.ctas > 1)
		cluster_begun();
#pragma unroll 1
	for (turn = 0; turn < PARTS; turn++) {
#pragma unroll 1
		for (; i < part_end(k, s, turn); i++) {
			keep(x + i * words, xfrom, k.threads);
			keep(dy + i * words, dyfrom, k.threads);
			xfrom += k.per * k.c;
			dyfrom += k.per * k.c;
		}
		copies_end_part();
	}
	gamma += s.first * k.cg;
	if (t < k.width) {
		const float *st = stats + 2 * (s.img * k.groups + s.first +
		    quotient(t, k.cg));
		float a = gamma[t] * st[1];

		col[t] = st[0];
		col[t + k.width] = a;
		col[t + 2 * k.width] = fmaf(-st[0], a, beta[s.first * k.cg +
		    t]);
	}
	__syncthreads();
	if (t < k.threads)
		own_sums<T>(sums + V * t, squares + V * t, x, dy,
		    col + s.column, k, s, silu);
	__syncthreads();
	if (t < k.threads)
		team_sums(sums, squares, gamma, col + k.width, k);
	__syncthreads();
	if (k.ctas > 1)
		cluster_wait();
	for (g = t / WARP; g < k.chunk; g += warps) {
		float2 p = group_sums(sums, squares, k, g);

		if (t % WARP < k.ctas)
			cluster_write(part + g * k.ctas + s.rank, t % WARP, p);
	}
	if (k.ctas > 1) {
		cluster_written();
		cluster_wait();
	}
	for (g = t / WARP; g < k.chunk; g += warps)
		back_finish(sums, squares, part, stats, k, s, g);
	__syncthreads();
	own_back<T>((T *)dxv + s.at, x, dy, col + s.column, sums + s.column,
	    squares + s.column, k, s, silu, add);
#endif
}

int
cuda_group_cluster_bwd(struct cuda *cu, enum lpo_dtype dt, void *dx,
    const void *dy, const void *x, const float *stats, const float *gamma,
    const float *beta, int64_t n, int64_t hw, int64_t c, int64_t groups,
    int silu, int add)
{
	struct share k;
	cudaLaunchAttribute size;
	cudaLaunchConfig_t l;
	size_t bytes = cuda_cluster_share(&k, cu, dt, n, hw, c, groups, 1);
	int rc = bytes == 0 ? 0 : cuda_cluster_open(cu,
	    (const void *)cluster_bwd<float>,
	    (const void *)cluster_bwd<__nv_bfloat16>, 1);

	if (rc != 1)
		return rc;
	l = cuda_cluster_launch(cu, &k, bytes, &size);
	rc = cuda_check(cu, dt == LPO_F32 ? cudaLaunchKernelEx(&l,
	    cluster_bwd<float>, dx, dy, x, stats, gamma, beta, k, silu, add) :
	    cudaLaunchKernelEx(&l, cluster_bwd<__nv_bfloat16>, dx, dy, x,
	    stats, gamma, beta, k, silu, add), "group_norm_bwd");
	return rc < 0 ? rc : 1;
}
