/*
 * GroupNorm (+ SiLU), backward: as forward in norm_cluster_bwd.cu's one launch
 * or in two here, and two more where gamma and beta are trained.  The last two
 * serve LayerNorm too.
 */
#include "kernels/cuda_norm.h"

/* Rows that a thread has in flight: more would take too many registers. */
#define ROWS_BACK	2

/* What a column of the backward pass needs of its channels. */
template <int V>
static __device__ __forceinline__ void
back_columns(float *mean, float *a, float *b, const float *stats,
    const float *gamma, const float *beta, const struct cut &k, int ch)
{
	int j, g;

	cuda_unpack(a, cuda_read<float, V>(gamma + ch));
	cuda_unpack(b, cuda_read<float, V>(beta + ch));
#pragma unroll
	for (j = 0; j < V; j++, ch++) {
		g = ch / k.cg;
		mean[j] = stats[2 * g];
		a[j] *= stats[2 * g + 1];
		b[j] = fmaf(-mean[j], a[j], b[j]);
	}
}

/*
 * s[j] += the sum of dy' (dy before SiLU), q[j] += of dy' (x - mean), over
 * the rows [row, rows) by per of one column.
 */
template <typename T, int V>
static __device__ __forceinline__ void
back_rows(float *s, float *q, const T *dy, const T *x, const float *mean,
    const float *a, const float *b, int row, int64_t rows, int per, int64_t c,
    int silu)
{
	cuda_pack<T, V> dyp[ROWS_BACK], xp[ROWS_BACK];
	float d[V], v[V];
	int64_t r;
	int u, j;

	for (r = row; r < rows; r += ROWS_BACK * per) {
#pragma unroll
		for (u = 0; u < ROWS_BACK; u++)
			if (r + u * per < rows) {
				dyp[u] = cuda_read<T, V>(dy + (r + u * per) *
				    c);
				xp[u] = cuda_read<T, V>(x + (r + u * per) * c);
			}
#pragma unroll
		for (u = 0; u < ROWS_BACK; u++) {
			if (r + u * per >= rows)
				break;
			cuda_unpack(d, dyp[u]);
			cuda_unpack(v, xp[u]);
			if (silu)
#pragma unroll
				for (j = 0; j < V; j++)
					d[j] = cuda_silu_back(d[j],
					    fmaf(v[j], a[j], b[j]));
#pragma unroll
			for (j = 0; j < V; j++) {
				s[j] += d[j];
				q[j] = fmaf(d[j], v[j] - mean[j], q[j]);
			}
		}
	}
}

/* Sums of dy' gamma and of dy' gamma xhat over one slice, by group. */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS, BLOCKS(T))
back_part(float2 *part, const void *dyv, const void *xv, const float *stats,
    const float *gamma, const float *beta, struct cut k, int silu)
{
	extern __shared__ float4 shared[];
	const int64_t img = blockIdx.z;
	const struct piece p = piece_of(k, img, blockIdx.x);
	const int row = threadIdx.x / k.span;
	float *sums = (float *)shared, *squares = sums + k.per * p.width;
	float mean[V], a[V], b[V], s[V], q[V];
	int col, j, ch, i, g, e, count;

	stats += 2 * img * k.groups;
	for (col = threadIdx.x % k.span; row < k.per && col < p.width / V;
	    col += k.span) {
		ch = p.first * k.cg + col * V;
		back_columns<V>(mean, a, b, stats, gamma, beta, k, ch);
#pragma unroll
		for (j = 0; j < V; j++)
			s[j] = q[j] = 0.0f;
		back_rows<T, V>(s, q, (const T *)dyv + p.at + col * V,
		    (const T *)xv + p.at + col * V, mean, a, b, row, p.rows,
		    k.per, k.c, silu);
#pragma unroll
		for (j = 0; j < V; j++) {
			s[j] *= gamma[ch + j];
			q[j] *= a[j];
		}
		cuda_write<V>(sums + row * p.width + col * V, s);
		cuda_write<V>(squares + row * p.width + col * V, q);
	}
	__syncthreads();
	for (i = 0; i < p.groups; i += k.threads / LANES) {
		float sum = 0.0f, square = 0.0f;

		g = i + threadIdx.x / LANES;
		count = g < p.groups ? k.per * k.cg : 0;
		for (e = threadIdx.x % LANES; e < count; e += LANES) {
			j = e / k.cg * p.width + g * k.cg + e % k.cg;
			sum += sums[j];
			square += squares[j];
		}
		sum = lanes_sum(sum);
		square = lanes_sum(square);
		if (g < p.groups && threadIdx.x % LANES == 0)
			part[(img * k.groups + p.first + g) * k.slices +
			    blockIdx.x] = make_float2(sum, square);
	}
}

/* The means over the group, times rstd and rstd^2. */
static __device__ __forceinline__ void
back_finish(float *ma, float *mb, const float2 *part, const float *stats,
    const struct cut &k, const struct piece &p, int64_t img)
{
	const float each = 1.0f / ((float)k.hw * (float)k.cg);
	int i, g, e, count;

	part += (img * k.groups + p.first) * k.slices;
	for (i = 0; i < p.groups; i += k.threads / LANES) {
		float sum = 0.0f, square = 0.0f, rstd;

		g = i + threadIdx.x / LANES;
		count = g < p.groups ? k.slices : 0;
		for (e = threadIdx.x % LANES; e < count; e += LANES) {
			float2 a = part[(int64_t)g * k.slices + e];

			sum += a.x;
			square += a.y;
		}
		sum = lanes_sum(sum);
		square = lanes_sum(square);
		if (g >= p.groups || threadIdx.x % LANES != 0)
			continue;
		rstd = stats[2 * (p.first + g) + 1];
		ma[g] = sum * each * rstd;
		mb[g] = square * each * rstd * rstd;
	}
	__syncthreads();
}

/*
 * dx (+)= rstd (dy' gamma - mean(dy' gamma) - xhat mean(dy' gamma xhat)),
 * as dy' a - h + (mean - x) f.
 */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS, BLOCKS(T))
back_apply(void *dxv, const void *dyv, const void *xv, const float *stats,
    const float *gamma, const float *beta, const float2 *part, struct cut k,
    int silu, int add)
{
	extern __shared__ float4 shared[];
	const int64_t img = gridDim.z - 1 - blockIdx.z;
	const struct piece p = piece_of(k, img, blockIdx.x);
	float *ma = (float *)shared, *mb = ma + k.chunk;
	const int row = threadIdx.x / k.span;
	float mean[V], a[V], b[V], f[V], h[V], d[V], v[V];
	cuda_pack<T, V> dyp[ROWS_BACK], xp[ROWS_BACK], old[ROWS_BACK];
	int col, j, r, u;

	stats += 2 * img * k.groups;
	back_finish(ma, mb, part, stats, k, p, img);
	for (col = threadIdx.x % k.span; row < k.per && col < p.width / V;
	    col += k.span) {
		const T *dy = (const T *)dyv + p.at + col * V;
		const T *x = (const T *)xv + p.at + col * V;
		T *dx = (T *)dxv + p.at + col * V;

		back_columns<V>(mean, a, b, stats, gamma, beta, k,
		    p.first * k.cg + col * V);
#pragma unroll
		for (j = 0; j < V; j++) {
			f[j] = mb[(col * V + j) / k.cg];
			h[j] = -ma[(col * V + j) / k.cg];
		}
		for (r = row; r < p.rows; r += ROWS_BACK * k.per) {
#pragma unroll
			for (u = 0; u < ROWS_BACK; u++) {
				int64_t at = (r + u * k.per) * k.c;

				if (r + u * k.per >= p.rows)
					break;
				cuda_read_last(&dyp[u], dy + at);
				cuda_read_last(&xp[u], x + at);
				if (add)
					old[u] = cuda_read<T, V>(dx + at);
			}
#pragma unroll
			for (u = 0; u < ROWS_BACK; u++) {
				if (r + u * k.per >= p.rows)
					break;
				cuda_unpack(d, dyp[u]);
				cuda_unpack(v, xp[u]);
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
				cuda_write<V>(dx + (r + u * k.per) * k.c, d);
			}
		}
	}
}

/*
 * Of one run of `images` images, each channel's sums of dy' and of dy' xhat
 * over one slice of their rows: parts [runs][slices][2][c].
 */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
weight_part(float *parts, const void *dyv, const void *xv, const float *stats,
    const float *gamma, const float *beta, struct cut k, int64_t images,
    int silu)
{
	extern __shared__ float4 shared[];
	const int row = threadIdx.x / k.span;
	float *sums = (float *)shared, *squares;
	float mean[V], a[V], b[V], s[V], q[V], all[V], square[V];
	int64_t img = blockIdx.z * images, end = img + images, run = img;
	struct piece p = piece_of(k, img, blockIdx.x);
	int col, j, ch, e;

	squares = sums + k.per * p.width;
	parts += ((int64_t)blockIdx.z * gridDim.x + blockIdx.x) * 2 * k.c +
	    p.first * k.cg;
	for (col = threadIdx.x % k.span; row < k.per && col < p.width / V;
	    col += k.span) {
		ch = p.first * k.cg + col * V;
#pragma unroll
		for (j = 0; j < V; j++)
			all[j] = square[j] = 0.0f;
		for (img = run; img < end; img++) {
			const float *st = stats + 2 * img * k.groups;
			int64_t at = piece_of(k, img, blockIdx.x).at + col * V;

			back_columns<V>(mean, a, b, st, gamma, beta, k, ch);
#pragma unroll
			for (j = 0; j < V; j++)
				s[j] = q[j] = 0.0f;
			back_rows<T, V>(s, q, (const T *)dyv + at,
			    (const T *)xv + at, mean, a, b, row, p.rows,
			    k.per, k.c, silu);
#pragma unroll
			for (j = 0; j < V; j++) {
				all[j] += s[j];
				square[j] = fmaf(q[j],
				    st[2 * ((ch + j) / k.cg) + 1], square[j]);
			}
		}
		cuda_write<V>(sums + row * p.width + col * V, all);
		cuda_write<V>(squares + row * p.width + col * V, square);
	}
	__syncthreads();
	for (ch = threadIdx.x; ch < p.width; ch += k.threads) {
		float one = 0.0f, two = 0.0f;

		for (e = 0; e < k.per; e++) {
			one += sums[e * p.width + ch];
			two += squares[e * p.width + ch];
		}
		parts[ch] = one;
		parts[k.c + ch] = two;
	}
}

static __global__ void
weight_finish(float *dgamma, float *dbeta, const float *parts, int64_t c,
    int64_t runs, int64_t slices)
{
	int64_t ch = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, k, e;
	float a, b, gamma, beta;

	if (ch >= c)
		return;
	gamma = dgamma != NULL ? dgamma[ch] : 0.0f;
	beta = dbeta != NULL ? dbeta[ch] : 0.0f;
	for (k = 0; k < runs; k++) {
		a = b = 0.0f;
#pragma unroll 8
		for (e = 0; e < slices; e++, parts += 2 * c) {
			a += parts[ch];
			b += parts[c + ch];
		}
		beta += a;
		gamma += b;
	}
	if (dgamma != NULL)
		dgamma[ch] = gamma;
	if (dbeta != NULL)
		dbeta[ch] = beta;
}

int
cuda_norm_weights(lpo_backend *be, float *dgamma, float *dbeta,
    const float *parts, int64_t c, int64_t runs, int64_t slices)
{
	unsigned int blocks = (unsigned int)((c + 63) / 64);

	weight_finish<<<blocks, 64, 0, cuda_stream(be)>>>(dgamma, dbeta,
	    parts, c, runs, slices);
	return cuda_done(cuda_of(be), "norm weights");
}

/* dgamma and dbeta, by a pass of their own: LoRA has neither. */
static int
group_weights(lpo_backend *be, enum lpo_dtype dt, float *dgamma,
    float *dbeta, const void *dy, const void *x, const float *stats,
    const float *gamma, const float *beta, int64_t n, int64_t runs,
    int wide, int silu, struct cut k, void *scratch)
{
	float *parts = (float *)scratch;
	int64_t i, most = 65535, slices = (k.hw + 63) / 64;
	int64_t images = n / runs, at;

	if (slices > CUDA_NORM_SLICES)
		slices = CUDA_NORM_SLICES;
	k.slice = (int)((k.hw + slices - 1) / slices);
	k.slices = (int)((k.hw + k.slice - 1) / k.slice);
	for (i = 0; i < runs; i += most) {
		unsigned int b = (unsigned int)(runs - i < most ? runs - i :
		    most);
		dim3 grid(k.slices, k.chunks, b);

		at = i * images * k.hw * k.c;
		CUDA_LAUNCH(weight_part, dt, wide, grid, k.threads,
		    2 * k.per * k.chunk * k.cg * sizeof(float), be,
		    parts + i * k.slices * 2 * k.c, skip(dt, dy, at),
		    skip(dt, x, at), stats + 2 * i * images * k.groups, gamma,
		    beta, k, images, silu);
	}
	return cuda_norm_weights(be, dgamma, dbeta, parts, k.c, runs,
	    k.slices);
}

int
cuda_group_norm_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    float *dgamma, float *dbeta, const void *dy, const void *x,
    const float *stats, const float *gamma, const float *beta, int64_t n,
    int64_t hw, int64_t c, int64_t norm_groups, int silu, int64_t groups,
    int add, void *scratch)
{
	struct cuda *cu = cuda_of(be);
	float2 *part = (float2 *)cu->workspace;
	int64_t i, batch, at;
	struct cut k;
	int wide, rc = 0;

	if (!group_valid(c, norm_groups) || groups < 1 || n % groups != 0)
		return cuda_fail(cu, LPO_EINVAL, "group_norm_bwd",
		    "groups of channels or rows");
	if (n == 0 || hw == 0)
		return 0;
	wide = group_wide(c, norm_groups, dx, dy, x, gamma, beta);
	k = cut_of(hw, c, norm_groups, wide);
	batch = batch_of(cu, &k, n);
	if (batch < 1)
		return cuda_fail(cu, LPO_ENOMEM, "group_norm_bwd",
		    "too many groups for the workspace");
	/* before dx, which may be where dy or x is */
	if (dgamma != NULL || dbeta != NULL)
		rc = group_weights(be, dt, dgamma, dbeta, dy, x, stats, gamma,
		    beta, n, groups, wide, silu, k, scratch);
	if (rc == 0 && dx != NULL && wide)
		rc = cuda_group_cluster_bwd(cu, dt, dx, dy, x, stats, gamma,
		    beta, n, hw, c, norm_groups, silu, add);
	if (rc != 0)
		return rc < 0 ? rc : cuda_done(cu, "group_norm_bwd");
	for (i = 0; dx != NULL && i < n; i += batch) {
		unsigned int b = (unsigned int)(n - i < batch ? n - i : batch);
		const float *st = stats + 2 * i * norm_groups;
		dim3 grid(k.slices, k.chunks, b);

		at = i * hw * c;
		CUDA_LAUNCH(back_part, dt, wide, grid, k.threads,
		    2 * k.per * k.chunk * k.cg * sizeof(float), be, part,
		    skip(dt, dy, at), skip(dt, x, at), st, gamma, beta, k,
		    silu);
		CUDA_LAUNCH(back_apply, dt, wide, grid, k.threads,
		    2 * k.chunk * sizeof(float), be,
		    (void *)skip(dt, dx, at), skip(dt, dy, at),
		    skip(dt, x, at), st, gamma, beta, part, k, silu, add);
	}
	return cuda_done(cu, "group_norm_bwd");
}

/* [groups][CUDA_NORM_SLICES][2][c] f32: parts of each run, of either norm. */
size_t
cuda_norm_scratch_bytes(lpo_backend *be, int64_t n, int64_t c,
    int64_t groups)
{
	(void)be;
	(void)n;
	return (size_t)groups * CUDA_NORM_SLICES * 2 * (size_t)c *
	    sizeof(float);
}
