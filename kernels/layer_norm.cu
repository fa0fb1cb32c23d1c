/*
 * LayerNorm over the channels of each token, forward and backward.  A token
 * is read once, into the registers of 8, 16 or 32 threads of one warp.
 */
#include "kernels/cuda_vec.h"

enum {
	THREADS = 256,
	VECTORS = 8,		/* of one thread at most */
	WARP = 32
};

/* Threads of one token and vectors of one thread: the least waste. */
struct team {
	int lanes, vectors;
};

/* vectors 0: rows are too long, or not of whole vectors. */
static struct team
team_of(int64_t c, int wide)
{
	static const int sizes[] = { 3, 4, 5, VECTORS };
	struct team best = { WARP, 0 };
	int64_t w = c / CUDA_WIDE;
	int lanes, i;

	if (!wide || c % CUDA_WIDE != 0)
		return best;
	for (lanes = 8; lanes <= WARP; lanes *= 2)
		for (i = 0; i < 4; i++)
			if (lanes * sizes[i] >= w && (best.vectors == 0 ||
			    lanes * sizes[i] <= best.lanes * best.vectors)) {
				best.lanes = lanes;
				best.vectors = sizes[i];
			}
	return best;
}

static __device__ __forceinline__ float
team_sum(float s, int lanes)
{
	int i;

	for (i = lanes / 2; i > 0; i /= 2)
		s += __shfl_xor_sync(0xffffffffu, s, i);
	return s;
}

/* The token of the calling thread; past the last one: not `live`. */
struct place {
	int64_t token;
	int lane, live;
};

static __device__ __forceinline__ struct place
place_of(int64_t m, int lanes)
{
	struct place p;

	p.token = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / lanes;
	p.lane = threadIdx.x % lanes;
	p.live = p.token < m;
	return p;
}

/* N vectors of a token by each of its threads, w vectors in all. */
template <typename T, int N>
static __global__ void __launch_bounds__(THREADS)
norm_forward(void *yv, float *stats, const void *xv, const float *gamma,
    const float *beta, int64_t m, int w, int lanes, float eps)
{
	enum { V = CUDA_WIDE };
	const struct place p = place_of(m, lanes);
	const T *x = (const T *)xv + p.token * w * V;
	T *y = (T *)yv + p.token * w * V;
	const float each = 1.0f / (float)(w * V);
	cuda_pack<T, V> a[N];
	float v[V], g[V], b[V], mean = 0.0f, var = 0.0f, rstd;
	int u, i, j;

#pragma unroll
	for (u = 0; u < N; u++) {
		i = p.lane + u * lanes;
		if (p.live && i < w)
			a[u] = cuda_read<T, V>(x + i * V);
	}
#pragma unroll
	for (u = 0; u < N; u++) {
		if (!p.live || p.lane + u * lanes >= w)
			break;
		cuda_unpack(v, a[u]);
#pragma unroll
		for (j = 0; j < V; j++)
			mean += v[j];
	}
	mean = team_sum(mean, lanes) * each;
#pragma unroll
	for (u = 0; u < N; u++) {
		if (!p.live || p.lane + u * lanes >= w)
			break;
		cuda_unpack(v, a[u]);
#pragma unroll
		for (j = 0; j < V; j++)
			var = fmaf(v[j] - mean, v[j] - mean, var);
	}
	var = team_sum(var, lanes) * each;
	rstd = 1.0f / sqrtf(var + eps);
	if (p.live && p.lane == 0) {
		stats[2 * p.token] = mean;
		stats[2 * p.token + 1] = rstd;
	}
#pragma unroll
	for (u = 0; u < N; u++) {
		i = p.lane + u * lanes;
		if (!p.live || i >= w)
			break;
		cuda_unpack(v, a[u]);
		cuda_unpack(g, cuda_read<float, V>(gamma + i * V));
		cuda_unpack(b, cuda_read<float, V>(beta + i * V));
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] = fmaf((v[j] - mean) * rstd, g[j], b[j]);
		cuda_write<V>(y + i * V, v);
	}
}

/* Any c: a warp goes over its token three times. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
norm_forward_any(void *yv, float *stats, const void *xv, const float *gamma,
    const float *beta, int64_t m, int64_t c, float eps)
{
	const struct place p = place_of(m, WARP);
	const T *x = (const T *)xv + p.token * c;
	T *y = (T *)yv + p.token * c;
	float mean = 0.0f, var = 0.0f, rstd, d;
	int64_t i;

	if (!p.live)		/* a whole warp */
		return;
	for (i = p.lane; i < c; i += WARP)
		mean += cuda_load(x + i);
	mean = team_sum(mean, WARP) / (float)c;
	for (i = p.lane; i < c; i += WARP) {
		d = cuda_load(x + i) - mean;
		var = fmaf(d, d, var);
	}
	var = team_sum(var, WARP) / (float)c;
	rstd = 1.0f / sqrtf(var + eps);
	if (p.lane == 0) {
		stats[2 * p.token] = mean;
		stats[2 * p.token + 1] = rstd;
	}
	for (i = p.lane; i < c; i += WARP)
		cuda_store(y + i, fmaf((cuda_load(x + i) - mean) * rstd,
		    gamma[i], beta[i]));
}

/* Start kernel<type, vectors> or kernel_any<type>; arguments as theirs. */
#define BY_TEAM_OF(T, kernel, ...)					\
	(t.vectors == 3 ? kernel<T, 3><<<blocks, THREADS, 0, s>>>	\
	    (__VA_ARGS__) : t.vectors == 4 ?				\
	    kernel<T, 4><<<blocks, THREADS, 0, s>>>(__VA_ARGS__) :	\
	    t.vectors == 5 ?						\
	    kernel<T, 5><<<blocks, THREADS, 0, s>>>(__VA_ARGS__) :	\
	    kernel<T, VECTORS><<<blocks, THREADS, 0, s>>>(__VA_ARGS__))
#define BY_TEAM(dt, kernel, ...)					\
	((dt) == LPO_F32 ? BY_TEAM_OF(float, kernel, __VA_ARGS__) :	\
	    BY_TEAM_OF(__nv_bfloat16, kernel, __VA_ARGS__))
#define ANY(dt, kernel, ...)						\
	((dt) == LPO_F32 ?						\
	    kernel<float><<<blocks, THREADS, 0, s>>>(__VA_ARGS__) :	\
	    kernel<__nv_bfloat16><<<blocks, THREADS, 0, s>>>(__VA_ARGS__))

static unsigned int
blocks_of(int64_t m, int lanes)
{
	return (unsigned int)((m * lanes + THREADS - 1) / THREADS);
}

int
cuda_layer_norm_fwd(lpo_backend *be, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t m, int64_t c, float eps)
{
	struct team t = team_of(c, cuda_aligned(y, x, gamma) &&
	    cuda_aligned(beta, NULL, NULL));
	unsigned int blocks = blocks_of(m, t.lanes);
	cudaStream_t s = cuda_stream(be);
	int w = (int)(c / CUDA_WIDE);

	if (m == 0 || c == 0)
		return 0;
	if (t.vectors > 0)
		BY_TEAM(dt, norm_forward, y, stats, x, gamma, beta, m, w,
		    t.lanes, eps);
	else
		ANY(dt, norm_forward_any, y, stats, x, gamma, beta, m, c, eps);
	return cuda_done(cuda_of(be), "layer_norm_fwd");
}

/* dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma */
template <typename T, int N>
static __global__ void __launch_bounds__(THREADS)
norm_backward(void *dxv, const void *dyv, const void *xv, const float *stats,
    const float *gamma, int64_t m, int w, int lanes, int add)
{
	enum { V = CUDA_WIDE };
	const struct place p = place_of(m, lanes);
	const T *x = (const T *)xv + p.token * w * V;
	const T *dy = (const T *)dyv + p.token * w * V;
	T *dx = (T *)dxv + p.token * w * V;
	const float each = 1.0f / (float)(w * V);
	cuda_pack<T, V> xp[N], dyp[N], old;
	float v[V], d[V], g[V], mean = 0.0f, rstd = 0.0f, a = 0.0f, b = 0.0f;
	int u, i, j;

#pragma unroll
	for (u = 0; u < N; u++) {
		i = p.lane + u * lanes;
		if (p.live && i < w) {
			xp[u] = cuda_read<T, V>(x + i * V);
			dyp[u] = cuda_read<T, V>(dy + i * V);
		}
	}
	if (p.live) {
		mean = stats[2 * p.token];
		rstd = stats[2 * p.token + 1];
	}
#pragma unroll
	for (u = 0; u < N; u++) {
		i = p.lane + u * lanes;
		if (!p.live || i >= w)
			break;
		cuda_unpack(v, xp[u]);
		cuda_unpack(d, dyp[u]);
		cuda_unpack(g, cuda_read<float, V>(gamma + i * V));
#pragma unroll
		for (j = 0; j < V; j++) {
			d[j] = __fmul_rn(d[j], g[j]);
			a += d[j];
			b = fmaf(d[j], (v[j] - mean) * rstd, b);
		}
	}
	a = team_sum(a, lanes) * each;
	b = team_sum(b, lanes) * each;
#pragma unroll
	for (u = 0; u < N; u++) {
		i = p.lane + u * lanes;
		if (!p.live || i >= w)
			break;
		if (add)
			old = cuda_read<T, V>(dx + i * V);
		cuda_unpack(v, xp[u]);
		cuda_unpack(d, dyp[u]);
		cuda_unpack(g, cuda_read<float, V>(gamma + i * V));
#pragma unroll
		for (j = 0; j < V; j++)
			d[j] = fmaf((mean - v[j]) * rstd, b, fmaf(d[j], g[j],
			    -a)) * rstd;
		if (add) {
			cuda_unpack(v, old);
#pragma unroll
			for (j = 0; j < V; j++)
				d[j] += v[j];
		}
		cuda_write<V>(dx + i * V, d);
	}
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
norm_backward_any(void *dxv, const void *dyv, const void *xv,
    const float *stats, const float *gamma, int64_t m, int64_t c, int add)
{
	const struct place p = place_of(m, WARP);
	const T *x = (const T *)xv + p.token * c;
	const T *dy = (const T *)dyv + p.token * c;
	T *dx = (T *)dxv + p.token * c;
	float mean, rstd, a = 0.0f, b = 0.0f, d, h;
	int64_t i;

	if (!p.live)
		return;
	mean = stats[2 * p.token];
	rstd = stats[2 * p.token + 1];
	for (i = p.lane; i < c; i += WARP) {
		d = __fmul_rn(cuda_load(dy + i), gamma[i]);
		a += d;
		b = fmaf(d, (cuda_load(x + i) - mean) * rstd, b);
	}
	a = team_sum(a, WARP) / (float)c;
	b = team_sum(b, WARP) / (float)c;
	for (i = p.lane; i < c; i += WARP) {
		h = (mean - cuda_load(x + i)) * rstd;
		d = fmaf(cuda_load(dy + i), gamma[i], -a);
		d = fmaf(h, b, d) * rstd;
		cuda_store(dx + i, add ? cuda_load(dx + i) + d : d);
	}
}

/*
 * Of one run's rows, each column's sums of dy and of dy xhat over one slice:
 * parts [runs][slices][2][c].  Blocks of WARP columns of vectors by
 * THREADS / WARP rows.
 */
template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
weight_part(float *parts, const void *dyv, const void *xv, const float *stats,
    int64_t rows, int64_t slice, int64_t c)
{
	enum { PER = THREADS / WARP };
	__shared__ float sums[2][PER][WARP * V];
	const int64_t col = ((int64_t)blockIdx.x * WARP +
	    threadIdx.x % WARP) * V;
	const int row = threadIdx.x / WARP;
	const int64_t base = blockIdx.z * rows;
	int64_t r = base + blockIdx.y * slice, end = r + slice;
	float a[V], b[V], d[V], v[V], one, two;
	int j, e;

	if (end > base + rows)
		end = base + rows;
#pragma unroll
	for (j = 0; j < V; j++)
		a[j] = b[j] = 0.0f;
#pragma unroll 2
	for (r += row; r < end && col < c; r += PER) {
		cuda_unpack(d, cuda_read<T, V>((const T *)dyv + r * c + col));
		cuda_unpack(v, cuda_read<T, V>((const T *)xv + r * c + col));
#pragma unroll
		for (j = 0; j < V; j++) {
			a[j] += d[j];
			b[j] = fmaf(d[j], (v[j] - stats[2 * r]) *
			    stats[2 * r + 1], b[j]);
		}
	}
#pragma unroll
	for (j = 0; j < V; j++) {
		sums[0][row][j * WARP + threadIdx.x % WARP] = a[j];
		sums[1][row][j * WARP + threadIdx.x % WARP] = b[j];
	}
	__syncthreads();
	parts += ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * 2 * c;
	for (j = row; j < V && col < c; j += PER) {
		one = two = 0.0f;
		for (e = 0; e < PER; e++) {
			one += sums[0][e][j * WARP + threadIdx.x % WARP];
			two += sums[1][e][j * WARP + threadIdx.x % WARP];
		}
		parts[col + j] = one;
		parts[c + col + j] = two;
	}
}

static int
layer_weights(lpo_backend *be, enum lpo_dtype dt, float *dgamma,
    float *dbeta, const void *dy, const void *x, const float *stats,
    int64_t m, int64_t c, int64_t runs, float *parts)
{
	int wide = c % CUDA_WIDE == 0 && cuda_aligned(dy, x, NULL);
	int64_t columns = WARP * (wide ? CUDA_WIDE : 1), rows = m / runs;
	int64_t slices = (rows + 63) / 64, slice, i, most = 65535, at;

	if (slices > CUDA_NORM_SLICES)
		slices = CUDA_NORM_SLICES;
	slice = (rows + slices - 1) / slices;
	slices = (rows + slice - 1) / slice;
	for (i = 0; i < runs; i += most) {
		unsigned int b = (unsigned int)(runs - i < most ? runs - i :
		    most);
		dim3 grid((unsigned int)((c + columns - 1) / columns),
		    (unsigned int)slices, b);

		at = i * rows * c * (int64_t)cuda_bytes(dt);
		CUDA_LAUNCH(weight_part, dt, wide, grid, THREADS, 0, be,
		    parts + i * slices * 2 * c, (const char *)dy + at,
		    (const char *)x + at, stats + 2 * i * rows, rows, slice,
		    c);
	}
	return cuda_norm_weights(be, dgamma, dbeta, parts, c, runs, slices);
}

int
cuda_layer_norm_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    float *dgamma, float *dbeta, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t m, int64_t c,
    int64_t groups, int add, void *scratch)
{
	struct team t = team_of(c, cuda_aligned(dx, dy, x) &&
	    cuda_aligned(gamma, NULL, NULL));
	unsigned int blocks = blocks_of(m, t.lanes);
	cudaStream_t s = cuda_stream(be);
	int w = (int)(c / CUDA_WIDE), rc = 0;

	if (groups < 1 || m % groups != 0)
		return cuda_fail(cuda_of(be), LPO_EINVAL, "layer_norm_bwd",
		    "groups of rows");
	if (m == 0 || c == 0)
		return 0;
	/* before dx, which may be where dy or x is */
	if (dgamma != NULL || dbeta != NULL)
		rc = layer_weights(be, dt, dgamma, dbeta, dy, x, stats, m, c,
		    groups, (float *)scratch);
	if (rc != 0 || dx == NULL)
		return rc;
	if (t.vectors > 0)
		BY_TEAM(dt, norm_backward, dx, dy, x, stats, gamma, m, w,
		    t.lanes, add);
	else
		ANY(dt, norm_backward_any, dx, dy, x, stats, gamma, m, c,
		    add);
	return cuda_done(cuda_of(be), "layer_norm_bwd");
}
