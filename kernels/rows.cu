/*
 * Ops on rows of channels: broadcast add, nearest-neighbour resize, concat,
 * mean over positions.  Sums over rows have a fixed order, cut by the shape of
 * one image alone.
 */
#include "kernels/cuda_vec.h"

enum {
	SLICES = 32,		/* parts of a sum over the rows of an image */
	THREADS = 256		/* of a block of sum_finish */
};

template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
add_rows(void *yv, const void *xv, const void *rv, struct cuda_deal d,
    int64_t hw)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *x = (const T *)xv + col * V, *rows = (const T *)rv + col * V;
	T *y = (T *)yv + col * V;
	cuda_pack<T, V> a[CUDA_STEPS], b[CUDA_STEPS];
	float v[V], w[V];
	int64_t r;
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		a[u] = cuda_read<T, V>(x + r * d.w * V);
		b[u] = cuda_read<T, V>(rows + cuda_quotient(r, hw) * d.w * V);
	}
	CUDA_EACH_ROW(d, row, u, r) {
		cuda_unpack(v, a[u]);
		cuda_unpack(w, b[u]);
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] += w[j];
		cuda_write<V>(y + r * d.w * V, v);
	}
}

int
cuda_add_rows_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *r, int64_t n, int64_t hw, int64_t c)
{
	int wide = cuda_wide(c, y, x, r);
	struct cuda_deal d;

	if (n == 0 || hw == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), n * hw, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(add_rows, dt, wide, d.blocks, d.threads, 0, be, y, x, r,
	    d, hw);
	return cuda_done(cuda_of(be), "add_rows_fwd");
}

/* How the sums over hw rows are cut: blocks of span x per threads. */
struct sums {
	int64_t hw, c, w, slice;	/* w vectors of c elements */
	int span, per, chunks, slices;
};

static struct sums
sums_of(int64_t hw, int64_t c, int wide)
{
	struct sums s;

	s.hw = hw;
	s.c = c;
	s.w = wide ? c / CUDA_WIDE : c;
	s.chunks = (int)((s.w + CUDA_THREADS - 1) / CUDA_THREADS);
	s.span = (int)((s.w + s.chunks - 1) / s.chunks);
	s.per = CUDA_THREADS / s.span;
	s.slice = (hw + SLICES - 1) / SLICES;
	if (s.slice < s.per * CUDA_STEPS)
		s.slice = s.per * CUDA_STEPS;
	s.slices = (int)((hw + s.slice - 1) / s.slice);
	return s;
}

/* part [n][slices][c]: sums over the rows of one slice. */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
sum_part(float *part, const void *xv, struct sums s)
{
	extern __shared__ float4 shared[];
	float *all = (float *)shared;
	const int at = threadIdx.x % s.span, row = threadIdx.x / s.span;
	const int width = s.span * V;
	const int64_t first = (int64_t)blockIdx.y * width, col = first +
	    at * V;
	const T *x = (const T *)xv + blockIdx.z * s.hw * s.c + col;
	int64_t r = blockIdx.x * s.slice, end = r + s.slice;
	cuda_pack<T, V> a[CUDA_STEPS];
	float v[V], sum[V], one;
	int u, j;

	if (end > s.hw)
		end = s.hw;
#pragma unroll
	for (j = 0; j < V; j++)
		sum[j] = 0.0f;
	for (r += row; r < end && col < s.c; r += CUDA_STEPS * s.per) {
#pragma unroll
		for (u = 0; u < CUDA_STEPS; u++)
			if (r + u * s.per < end)
				a[u] = cuda_read<T, V>(x + (r + u * s.per) *
				    s.c);
#pragma unroll
		for (u = 0; u < CUDA_STEPS; u++) {
			if (r + u * s.per >= end)
				break;
			cuda_unpack(v, a[u]);
#pragma unroll
			for (j = 0; j < V; j++)
				sum[j] += v[j];
		}
	}
	cuda_write<V>(all + row * width + at * V, sum);
	__syncthreads();
	part += (blockIdx.z * (int64_t)s.slices + blockIdx.x) * s.c + first;
	for (j = threadIdx.x; j < width && first + j < s.c;
	    j += s.span * s.per) {
		one = 0.0f;
		for (u = 0; u < s.per; u++)
			one += all[u * width + j];
		part[j] = one;
	}
}

/* y[n][c] (+)= the sum of an image's parts, divided by `by` */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
sum_finish(T *y, const float *part, int64_t count, int64_t c, int slices,
    float by, int add)
{
	int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
	float s = 0.0f;
	int k;

	if (i >= count)
		return;
	part += i / c * slices * c + i % c;
#pragma unroll 8
	for (k = 0; k < slices; k++)
		s += part[k * c];
	s = __fdiv_rn(s, by);
	cuda_store(y + i, add ? cuda_load(y + i) + s : s);
}

/* y in y_dt = column sums of x in dt, as many images at once as fit. */
static int
column_sums(lpo_backend *be, enum lpo_dtype y_dt, void *y, enum lpo_dtype dt,
    const void *x, int64_t n, int64_t hw, int64_t c, float by, int add,
    const char *what)
{
	struct cuda *cu = cuda_of(be);
	int wide = cuda_wide(c, x, NULL, NULL);
	struct sums s = sums_of(hw, c, wide);
	float *part = (float *)cu->workspace;
	int64_t most = (int64_t)(cu->workspace_bytes / sizeof(float)) /
	    (s.slices * c), i, b, count;
	unsigned int threads = (unsigned int)(s.span * s.per), blocks;

	if (most < 1)
		return cuda_fail(cu, LPO_ENOMEM, what,
		    "too many channels for the workspace");
	if (most > 65535)
		most = 65535;
	for (i = 0; i < n; i += b) {
		b = n - i < most ? n - i : most;
		count = b * c;
		blocks = (unsigned int)((count + THREADS - 1) / THREADS);
		CUDA_LAUNCH(sum_part, dt, wide, dim3((unsigned int)s.slices,
		    (unsigned int)s.chunks, (unsigned int)b), threads,
		    threads * (wide ? CUDA_WIDE : 1) * sizeof(float), be,
		    part, (const char *)x + i * hw * c *
		    (int64_t)cuda_bytes(dt), s);
		if (y_dt == LPO_F32)
			sum_finish<<<blocks, THREADS, 0, cuda_stream(be)>>>(
			    (float *)y + i * c, part, count, c, s.slices, by,
			    add);
		else
			sum_finish<<<blocks, THREADS, 0, cuda_stream(be)>>>(
			    (__nv_bfloat16 *)y + i * c, part, count, c,
			    s.slices, by, add);
	}
	return cuda_done(cu, what);
}

int
cuda_add_rows_bwd(lpo_backend *be, enum lpo_dtype dt, void *dr,
    const void *dy, int64_t n, int64_t hw, int64_t c, int add)
{
	if (dr == NULL || n == 0 || hw == 0 || c == 0)
		return 0;
	return column_sums(be, dt, dr, dt, dy, n, hw, c, 1.0f, add,
	    "add_rows_bwd");
}

int
cuda_mean_pool_fwd(lpo_backend *be, enum lpo_dtype dt, float *y,
    const void *x, int64_t n, int64_t hw, int64_t c)
{
	if (n == 0 || hw == 0 || c == 0)
		return 0;
	return column_sums(be, LPO_F32, y, dt, x, n, hw, c, (float)hw, 0,
	    "mean_pool_fwd");
}

template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
mean_backward(void *dxv, const float *dy, struct cuda_deal d, int64_t hw,
    int add)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	T *dx = (T *)dxv + col * V;
	float v[V];
	int64_t r;
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		cuda_unpack(v, cuda_read<float, V>(dy + (cuda_quotient(r, hw) *
		    d.w + col) * V));
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] = __fdiv_rn(v[j], (float)hw);
		cuda_store_or_add<T, V>(dx + r * d.w * V, v, add);
	}
}

int
cuda_mean_pool_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const float *dy, int64_t n, int64_t hw, int64_t c, int add)
{
	int wide = cuda_wide(c, dx, dy, NULL);
	struct cuda_deal d;

	if (dx == NULL || n == 0 || hw == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), n * hw, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(mean_backward, dt, wide, d.blocks, d.threads, 0, be, dx,
	    dy, d, hw, add);
	return cuda_done(cuda_of(be), "mean_pool_bwd");
}

/* One direction of a resize: torch's nearest, in f32 as there. */
struct axis {
	int64_t from, to;
	float scale;
};

static struct axis
axis_of(int64_t from, int64_t to)
{
	struct axis a = { from, to, (float)from / (float)to };

	return a;
}

static __device__ __forceinline__ int64_t
source_of(const struct axis &a, int64_t to)
{
	int64_t s;

	if (a.to == 2 * a.from)
		return to >> 1;
	s = (int64_t)__fmul_rn((float)to, a.scale);
	return s < a.from - 1 ? s : a.from - 1;
}

/* The first destination whose source is at or after s (a.to: none). */
static __device__ __forceinline__ int64_t
first_of(const struct axis &a, int64_t s)
{
	int64_t d;

	if (a.to == 2 * a.from)
		return 2 * s;
	d = s * a.to / a.from;
	if (d > a.to)
		d = a.to;
	while (d > 0 && source_of(a, d - 1) >= s)
		d--;
	while (d < a.to && source_of(a, d) < s)
		d++;
	return d;
}

template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
upsample_forward(void *yv, const void *xv, struct cuda_deal d, struct axis h,
    struct axis w)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *x = (const T *)xv + col * V;
	T *y = (T *)yv + col * V;
	cuda_pack<T, V> a[CUDA_STEPS];
	int64_t r, line, img, p;
	int u;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		line = cuda_quotient(r, w.to);
		img = cuda_quotient(line, h.to);
		p = img * h.from + source_of(h, line - img * h.to);
		p = p * w.from + source_of(w, r - line * w.to);
		a[u] = cuda_read<T, V>(x + p * d.w * V);
	}
	CUDA_EACH_ROW(d, row, u, r)
		cuda_put<T, V>(y + r * d.w * V, a[u]);
}

int
cuda_upsample_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho, int64_t wo)
{
	int wide = cuda_wide(c, y, x, NULL);
	struct cuda_deal d;

	if (n * ho * wo * c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), n * ho * wo, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(upsample_forward, dt, wide, d.blocks, d.threads, 0, be, y,
	    x, d, axis_of(h, ho), axis_of(w, wo));
	return cuda_done(cuda_of(be), "upsample_fwd");
}

/* Of each source pixel: the sum of its copies, row by row. */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
upsample_backward(void *dxv, const void *dyv, struct cuda_deal d,
    struct axis h, struct axis w, int add)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *dy = (const T *)dyv + col * V;
	T *dx = (T *)dxv + col * V;
	int64_t r, line, img, p, q, p0, p1, q0, q1;
	float v[V], s[V];
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		line = cuda_quotient(r, w.from);
		img = cuda_quotient(line, h.from);
		p = line - img * h.from;
		q = r - line * w.from;
		p0 = img * h.to + first_of(h, p);
		p1 = img * h.to + first_of(h, p + 1);
		q0 = first_of(w, q);
		q1 = first_of(w, q + 1);
#pragma unroll
		for (j = 0; j < V; j++)
			s[j] = 0.0f;
		for (p = p0; p < p1; p++)
#pragma unroll 2
			for (q = q0; q < q1; q++) {
				cuda_unpack(v, cuda_read<T, V>(dy +
				    (p * w.to + q) * d.w * V));
#pragma unroll
				for (j = 0; j < V; j++)
					s[j] += v[j];
			}
		cuda_store_or_add<T, V>(dx + r * d.w * V, s, add);
	}
}

int
cuda_upsample_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho,
    int64_t wo, int add)
{
	int wide = cuda_wide(c, dx, dy, NULL);
	struct cuda_deal d;

	if (dx == NULL || n * h * w * c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), n * h * w, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(upsample_backward, dt, wide, d.blocks, d.threads, 0, be,
	    dx, dy, d, axis_of(h, ho), axis_of(w, wo), add);
	return cuda_done(cuda_of(be), "upsample_bwd");
}

/* wa vectors of a, then what remains of b */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
concat_forward(void *yv, const void *av, const void *bv, struct cuda_deal d,
    int64_t wa)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const int64_t step = (col < wa ? wa : d.w - wa) * V;
	const T *x = col < wa ? (const T *)av + col * V :
	    (const T *)bv + (col - wa) * V;
	T *y = (T *)yv + col * V;
	cuda_pack<T, V> a[CUDA_STEPS];
	int64_t r;
	int u;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r)
		a[u] = cuda_read<T, V>(x + r * step);
	CUDA_EACH_ROW(d, row, u, r)
		cuda_put<T, V>(y + r * d.w * V, a[u]);
}

int
cuda_concat_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    const void *b, int64_t m, int64_t ca, int64_t cb)
{
	int wide = ca % CUDA_WIDE == 0 && cuda_wide(cb, y, a, b);
	struct cuda_deal d;
	int v = wide ? CUDA_WIDE : 1;

	if (m == 0 || ca + cb == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), m, (ca + cb) / v);
	CUDA_LAUNCH(concat_forward, dt, wide, d.blocks, d.threads, 0, be, y,
	    a, b, d, ca / v);
	return cuda_done(cuda_of(be), "concat_fwd");
}

/* dx[r] (+)= the d.w vectors from `skip` on of row r, of `all`, of dy */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
concat_backward(void *dxv, const void *dyv, struct cuda_deal d, int64_t skip,
    int64_t all, int add)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *dy = (const T *)dyv + (skip + col) * V;
	T *dx = (T *)dxv + col * V;
	cuda_pack<T, V> a[CUDA_STEPS], b[CUDA_STEPS];
	float v[V], w[V];
	int64_t r;
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		a[u] = cuda_read<T, V>(dy + r * all * V);
		if (add)
			b[u] = cuda_read<T, V>(dx + r * d.w * V);
	}
	CUDA_EACH_ROW(d, row, u, r) {
		if (!add) {
			cuda_put<T, V>(dx + r * d.w * V, a[u]);
			continue;
		}
		cuda_unpack(v, a[u]);
		cuda_unpack(w, b[u]);
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] += w[j];
		cuda_write<V>(dx + r * d.w * V, v);
	}
}

int
cuda_concat_bwd(lpo_backend *be, enum lpo_dtype dt, void *da, void *db,
    const void *dy, int64_t m, int64_t ca, int64_t cb, int add)
{
	int wide = ca % CUDA_WIDE == 0 && cuda_wide(cb, da, db, dy);
	int v = wide ? CUDA_WIDE : 1;
	struct cuda_deal d;

	if (m > 0 && ca > 0 && da != NULL) {
		d = cuda_deal_of(cuda_of(be), m, ca / v);
		CUDA_LAUNCH(concat_backward, dt, wide, d.blocks, d.threads, 0,
		    be, da, dy, d, (int64_t)0, (ca + cb) / v,
		    add & LPO_ADD_A);
	}
	if (m > 0 && cb > 0 && db != NULL) {
		d = cuda_deal_of(cuda_of(be), m, cb / v);
		CUDA_LAUNCH(concat_backward, dt, wide, d.blocks, d.threads, 0,
		    be, db, dy, d, ca / v, (ca + cb) / v, add & LPO_ADD_B);
	}
	return cuda_done(cuda_of(be), "concat_bwd");
}
