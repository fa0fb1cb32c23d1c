/*
 * GroupNorm (+ SiLU) over channels-last images, forward.  What is not for
 * norm_cluster.cu's one launch takes two: the first leaves sums of slices of
 * an image's rows in the workspace, the second finishes them and goes over the
 * rows again.  Slices depend on hw, c and groups alone, so an image's bits do
 * not depend on how many images there are.
 */
#include "kernels/cuda_norm.h"

/* Rows that a thread has in flight: more would take too many registers. */
#define ROWS(T)	(8 / (int)sizeof(T))

/*
 * Chan's merge of what each row of threads has of each channel, into the
 * groups: means and sums of squares [per][width].
 */
static __device__ __forceinline__ void
group_merge(float2 *part, const float *mean, const float *m2,
    const struct cut &k, const struct piece &p)
{
	int i, g, e, r, j, count;
	float d;

	for (i = 0; i < p.groups; i += k.threads / LANES) {
		float base = 0.0f, sum = 0.0f, square = 0.0f;

		g = i + threadIdx.x / LANES;
		count = g < p.groups ? k.per * k.cg : 0;
		if (count > 0)
			base = mean[g * k.cg];
		for (e = threadIdx.x % LANES; e < count; e += LANES) {
			r = e / k.cg;
			j = r * p.width + g * k.cg + e % k.cg;
			if (r < p.rows)
				sum += (float)((p.rows - r - 1) / k.per + 1) *
				    (mean[j] - base);
		}
		base += lanes_sum(sum) / (float)(p.rows * k.cg);
		for (e = threadIdx.x % LANES; e < count; e += LANES) {
			r = e / k.cg;
			j = r * p.width + g * k.cg + e % k.cg;
			d = mean[j] - base;
			if (r < p.rows)
				square += fmaf((float)((p.rows - r - 1) /
				    k.per + 1) * d, d, m2[j]);
		}
		square = lanes_sum(square);
		if (g < p.groups && threadIdx.x % LANES == 0)
			part[((int64_t)blockIdx.z * k.groups + p.first + g) *
			    k.slices + blockIdx.x] = make_float2(base, square);
	}
}

/* Mean and sum of squares about it of x over one slice, by group. */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS, 3 * BLOCKS(T) / 2)
group_part(float2 *part, const void *xv, struct cut k)
{
	extern __shared__ float4 shared[];
	const struct piece p = piece_of(k, blockIdx.z, blockIdx.x);
	const T *x = (const T *)xv + p.at;
	float *mean = (float *)shared, *m2 = mean + k.per * p.width;
	const int row = threadIdx.x / k.span;
	int col, r, u, j, count;
	float shift[V], s[V], q[V], v[V], d;
	cuda_pack<T, V> a[4];

	/*
	 * Of each channel about its own first value, which is no further off
	 * than the few values of one thread spread: nothing cancels.
	 */
	for (col = threadIdx.x % k.span; row < k.per && col < p.width / V;
	    col += k.span) {
		const T *from = x + col * V;

#pragma unroll
		for (j = 0; j < V; j++)
			s[j] = q[j] = shift[j] = 0.0f;
		if (row < p.rows)
			cuda_unpack(shift, cuda_read<T, V>(from + row * k.c));
		for (r = row + k.per; r < p.rows; r += 4 * k.per) {
#pragma unroll
			for (u = 0; u < 4; u++)
				if (r + u * k.per < p.rows)
					a[u] = cuda_read<T, V>(from +
					    (r + u * k.per) * k.c);
#pragma unroll
			for (u = 0; u < 4; u++) {
				if (r + u * k.per >= p.rows)
					break;
				cuda_unpack(v, a[u]);
#pragma unroll
				for (j = 0; j < V; j++) {
					d = v[j] - shift[j];
					s[j] += d;
					q[j] = fmaf(d, d, q[j]);
				}
			}
		}
		count = row < p.rows ? (p.rows - row - 1) / k.per + 1 : 1;
#pragma unroll
		for (j = 0; j < V; j++) {
			d = s[j] / (float)count;
			q[j] = fmaxf(fmaf(-d, s[j], q[j]), 0.0f);
			s[j] = shift[j] + d;
		}
		cuda_write<V>(mean + row * p.width + col * V, s);
		cuda_write<V>(m2 + row * p.width + col * V, q);
	}
	__syncthreads();
	group_merge(part, mean, m2, k, p);
}

/* From the parts of all slices, into [groups of the chunk] each. */
static __device__ __forceinline__ void
group_finish(float *mean, float *rstd, float *stats, const float2 *part,
    const struct cut &k, const struct piece &p, int64_t img, float eps)
{
	int i, g, e, count;

	part += (img * k.groups + p.first) * k.slices;
	stats += 2 * (img * k.groups + p.first);
	for (i = 0; i < p.groups; i += k.threads / LANES) {
		float base = 0.0f, sum = 0.0f, square = 0.0f, d, rows;
		float all = (float)k.hw;

		g = i + threadIdx.x / LANES;
		count = g < p.groups ? k.slices : 0;
		if (count > 0)
			base = part[(int64_t)g * k.slices].x;
		for (e = threadIdx.x % LANES; e < count; e += LANES) {
			rows = (float)(e < count - 1 ? k.slice :
			    k.hw - (int64_t)e * k.slice);
			sum = fmaf(rows, part[(int64_t)g * k.slices + e].x -
			    base, sum);
		}
		base += lanes_sum(sum) / all;
		for (e = threadIdx.x % LANES; e < count; e += LANES) {
			float2 a = part[(int64_t)g * k.slices + e];

			rows = (float)(e < count - 1 ? k.slice :
			    k.hw - (int64_t)e * k.slice) * (float)k.cg;
			d = a.x - base;
			square += fmaf(rows * d, d, a.y);
		}
		square = lanes_sum(square) / (all * (float)k.cg);
		if (g >= p.groups || threadIdx.x % LANES != 0)
			continue;
		d = 1.0f / sqrtf(square + eps);
		mean[g] = base;
		rstd[g] = d;
		if (blockIdx.x == 0) {
			stats[2 * g] = base;
			stats[2 * g + 1] = d;
		}
	}
	__syncthreads();
}

/* The next rows of one column from r on, as many as there are. */
template <typename T, int V>
static __device__ __forceinline__ void
rows_read(cuda_pack<T, V> *a, const T *from, int r, const struct cut &k,
    int rows)
{
	int u;

#pragma unroll
	for (u = 0; u < ROWS(T); u++)
		if (r + u * k.per < rows)
			cuda_read_last(&a[u], from + (r + u * k.per) * k.c);
}

/*
 * y = f(x a + b), a = rstd gamma, b = beta - mean a.  The last image comes
 * first: of it most is in the L2 cache still.  The first rows are on their
 * way while the statistics are finished.
 */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS, 3 * BLOCKS(T) / 2)
group_apply(void *yv, float *stats, const void *xv, const float *gamma,
    const float *beta, const float2 *part, struct cut k, float eps, int silu)
{
	extern __shared__ float4 shared[];
	const int64_t img = gridDim.z - 1 - blockIdx.z;
	const struct piece p = piece_of(k, img, blockIdx.x);
	const T *x = (const T *)xv + p.at;
	T *y = (T *)yv + p.at;
	float *mean = (float *)shared, *rstd = mean + k.chunk;
	const int row = threadIdx.x / k.span, c0 = threadIdx.x % k.span;
	const int busy = row < k.per;
	float a[V], b[V], v[V];
	cuda_pack<T, V> now[ROWS(T)];
	int col, r, u, j, ch, g;

	if (busy && c0 < p.width / V)
		rows_read<T, V>(now, x + c0 * V, row, k, p.rows);
	group_finish(mean, rstd, stats, part, k, p, img, eps);
	for (col = c0; busy && col < p.width / V; col += k.span) {
		if (col != c0)
			rows_read<T, V>(now, x + col * V, row, k, p.rows);
		ch = p.first * k.cg + col * V;
		cuda_unpack(a, cuda_read<float, V>(gamma + ch));
		cuda_unpack(b, cuda_read<float, V>(beta + ch));
#pragma unroll
		for (j = 0; j < V; j++) {
			g = (col * V + j) / k.cg;
			a[j] *= rstd[g];
			b[j] = fmaf(-mean[g], a[j], b[j]);
		}
		for (r = row; r < p.rows; r += ROWS(T) * k.per) {
#pragma unroll
			for (u = 0; u < ROWS(T); u++) {
				if (r + u * k.per >= p.rows)
					break;
				cuda_unpack(v, now[u]);
#pragma unroll
				for (j = 0; j < V; j++)
					v[j] = fmaf(v[j], a[j], b[j]);
				if (silu)
#pragma unroll
					for (j = 0; j < V; j++)
						v[j] *= cuda_sigmoid(v[j]);
				cuda_write<V>(y + (r + u * k.per) * k.c +
				    col * V, v);
			}
			rows_read<T, V>(now, x + col * V, r + ROWS(T) *
			    k.per, k, p.rows);
		}
	}
}

int
cuda_group_norm_fwd(lpo_backend *be, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t n, int64_t hw, int64_t c, int64_t norm_groups, float eps,
    int silu)
{
	struct cuda *cu = cuda_of(be);
	float2 *part = (float2 *)cu->workspace;
	int64_t i, batch, at;
	struct cut k;
	int wide, rc = 0;

	if (!group_valid(c, norm_groups))
		return cuda_fail(cu, LPO_EINVAL, "group_norm_fwd",
		    "groups of channels");
	if (n == 0 || hw == 0)
		return 0;
	wide = group_wide(c, norm_groups, x, y, NULL, gamma, beta);
	if (wide)
		rc = cuda_group_cluster_fwd(cu, dt, y, stats, x, gamma, beta,
		    n, hw, c, norm_groups, eps, silu);
	if (rc != 0)
		return rc < 0 ? rc : cuda_done(cu, "group_norm_fwd");
	k = cut_of(hw, c, norm_groups, wide);
	batch = batch_of(cu, &k, n);
	if (batch < 1)
		return cuda_fail(cu, LPO_ENOMEM, "group_norm_fwd",
		    "too many groups for the workspace");
	for (i = 0; i < n; i += batch) {
		unsigned int b = (unsigned int)(n - i < batch ? n - i : batch);
		dim3 grid(k.slices, k.chunks, b);

		at = i * hw * c;
		CUDA_LAUNCH(group_part, dt, wide, grid, k.threads,
		    2 * k.per * k.chunk * k.cg * sizeof(float), be, part,
		    skip(dt, x, at), k);
		CUDA_LAUNCH(group_apply, dt, wide, grid, k.threads,
		    2 * k.chunk * sizeof(float), be,
		    (void *)skip(dt, y, at), stats + 2 * i * norm_groups,
		    skip(dt, x, at), gamma, beta, part, k, eps, silu);
	}
	return cuda_done(cu, "group_norm_fwd");
}
