/*
 * Ops on flat arrays: activations, GEGLU, sums, guidance.  An element's bits
 * do not depend on where in the array it stands: both widths of a kernel
 * share the formula, and products that a sum follows are fused by hand.
 */
#include "kernels/cuda_vec.h"

enum { THREADS = 256 };

/* Flat: a thread takes up to CUDA_STEPS vectors, THREADS apart. */
struct flat {
	int64_t count, vectors;	/* elements; whole vectors of them */
	int steps;
	unsigned int blocks;
};

static struct flat
flat_of(const struct cuda *cu, int64_t count, int wide)
{
	struct flat f;
	int64_t blocks;

	f.count = count;
	f.vectors = wide ? count / CUDA_WIDE : count;
	f.steps = f.vectors < (int64_t)CUDA_STEPS * THREADS * 8 *
	    cu->processors ? 1 : CUDA_STEPS;
	blocks = (f.vectors + THREADS * f.steps - 1) / (THREADS * f.steps);
	f.blocks = (unsigned int)(blocks > 0 ? blocks : 1);
	return f;
}

/* The calling thread's first vector. */
static __device__ __forceinline__ int64_t
flat_first(const struct flat &f)
{
	return (int64_t)blockIdx.x * THREADS * f.steps + threadIdx.x;
}

/* What whole vectors leave over, an element a thread; or count: none. */
static __device__ __forceinline__ int64_t
flat_rest(const struct flat &f, int v)
{
	int64_t i = f.vectors * v + threadIdx.x;

	return blockIdx.x == 0 && i < f.count ? i : f.count;
}

template <int V>
static __device__ __forceinline__ void
act_values(enum lpo_act f, float *x)
{
	float pdf;
	int j;

	switch (f) {
	case LPO_SILU:
#pragma unroll
		for (j = 0; j < V; j++)
			x[j] *= cuda_sigmoid(x[j]);
		break;
	case LPO_GELU:
#pragma unroll
		for (j = 0; j < V; j++)
			x[j] *= cuda_cdf(x[j], &pdf);
		break;
	case LPO_QUICK_GELU:
#pragma unroll
		for (j = 0; j < V; j++)
			x[j] *= cuda_sigmoid(1.702f * x[j]);
		break;
	case LPO_RELU:
#pragma unroll
		for (j = 0; j < V; j++)
			x[j] = x[j] < 0.0f ? 0.0f : x[j];
		break;
	}
}

/* x becomes f'(x) */
template <int V>
static __device__ __forceinline__ void
act_slopes(enum lpo_act f, float *x)
{
	float s, pdf, z;
	int j;

	switch (f) {
	case LPO_SILU:
#pragma unroll
		for (j = 0; j < V; j++) {
			s = cuda_sigmoid(x[j]);
			x[j] = s * fmaf(x[j], 1.0f - s, 1.0f);
		}
		break;
	case LPO_GELU:
#pragma unroll
		for (j = 0; j < V; j++) {
			s = cuda_cdf(x[j], &pdf);
			x[j] = fmaf(x[j], pdf, s);
		}
		break;
	case LPO_QUICK_GELU:
#pragma unroll
		for (j = 0; j < V; j++) {
			z = __fmul_rn(1.702f, x[j]);
			s = cuda_sigmoid(z);
			x[j] = s * fmaf(z, 1.0f - s, 1.0f);
		}
		break;
	case LPO_RELU:
#pragma unroll
		for (j = 0; j < V; j++)
			x[j] = x[j] <= 0.0f ? 0.0f : 1.0f;
		break;
	}
}

/* o (+)= d s, rounded once */
template <typename T, int V>
static __device__ __forceinline__ void
scaled(T *p, const cuda_pack<T, V> &old, const float *d, const float *s,
    int add)
{
	float o[V];
	int j;

	if (add) {
		cuda_unpack(o, old);
#pragma unroll
		for (j = 0; j < V; j++)
			o[j] = fmaf(d[j], s[j], o[j]);
	} else {
#pragma unroll
		for (j = 0; j < V; j++)
			o[j] = __fmul_rn(d[j], s[j]);
	}
	cuda_write<V>(p, o);
}

template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
act_forward(void *yv, const void *xv, struct flat f, enum lpo_act act)
{
	const T *x = (const T *)xv;
	T *y = (T *)yv;
	cuda_pack<T, V> a[CUDA_STEPS];
	int64_t first = flat_first(f), i;
	float v[V];
	int u;

#pragma unroll
	for (u = 0; u < CUDA_STEPS; u++) {
		i = first + u * THREADS;
		if (u < f.steps && i < f.vectors)
			a[u] = cuda_read<T, V>(x + i * V);
	}
#pragma unroll
	for (u = 0; u < CUDA_STEPS; u++) {
		i = first + u * THREADS;
		if (u >= f.steps || i >= f.vectors)
			break;
		cuda_unpack(v, a[u]);
		act_values<V>(act, v);
		cuda_write<V>(y + i * V, v);
	}
	i = flat_rest(f, V);
	if (i < f.count) {
		v[0] = cuda_load(x + i);
		act_values<1>(act, v);
		cuda_store(y + i, v[0]);
	}
}

int
cuda_act_fwd(lpo_backend *be, enum lpo_dtype dt, enum lpo_act act, void *y,
    const void *x, int64_t count)
{
	int wide = cuda_aligned(y, x, NULL);
	struct flat f = flat_of(cuda_of(be), count, wide);

	if (count == 0)
		return 0;
	CUDA_LAUNCH(act_forward, dt, wide, f.blocks, THREADS, 0, be, y, x, f,
	    act);
	return cuda_done(cuda_of(be), "act_fwd");
}

template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
act_backward(void *dxv, const void *dyv, const void *xv, struct flat f,
    enum lpo_act act, int add)
{
	enum { TWO = CUDA_STEPS / 2 };
	const T *x = (const T *)xv, *dy = (const T *)dyv;
	T *dx = (T *)dxv;
	cuda_pack<T, V> a[TWO], b[TWO], old[TWO];
	int64_t first = flat_first(f), i;
	float v[V], d[V];
	int u, k;

	for (k = 0; k < f.steps; k += TWO) {
#pragma unroll
		for (u = 0; u < TWO; u++) {
			i = first + (k + u) * THREADS;
			if (k + u >= f.steps || i >= f.vectors)
				break;
			a[u] = cuda_read<T, V>(x + i * V);
			b[u] = cuda_read<T, V>(dy + i * V);
			if (add)
				old[u] = cuda_read<T, V>(dx + i * V);
		}
#pragma unroll
		for (u = 0; u < TWO; u++) {
			i = first + (k + u) * THREADS;
			if (k + u >= f.steps || i >= f.vectors)
				break;
			cuda_unpack(v, a[u]);
			cuda_unpack(d, b[u]);
			act_slopes<V>(act, v);
			scaled<T, V>(dx + i * V, old[u], d, v, add);
		}
	}
	i = flat_rest(f, V);
	if (i < f.count) {
		v[0] = cuda_load(x + i);
		d[0] = cuda_load(dy + i);
		act_slopes<1>(act, v);
		scaled<T, 1>(dx + i, cuda_read<T, 1>(dx + i), d, v, add);
	}
}

int
cuda_act_bwd(lpo_backend *be, enum lpo_dtype dt, enum lpo_act act, void *dx,
    const void *dy, const void *x, int64_t count, int add)
{
	int wide = cuda_aligned(dx, dy, x);
	struct flat f = flat_of(cuda_of(be), count, wide);

	if (dx == NULL || count == 0)
		return 0;
	CUDA_LAUNCH(act_backward, dt, wide, f.blocks, THREADS, 0, be, dx, dy,
	    x, f, act, add);
	return cuda_done(cuda_of(be), "act_bwd");
}

template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
geglu_forward(void *yv, const void *xv, struct cuda_deal d)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *x = (const T *)xv + col * V;
	T *y = (T *)yv + col * V;
	cuda_pack<T, V> a[CUDA_STEPS], b[CUDA_STEPS];
	float v[V], g[V], pdf;
	int64_t r;
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		cuda_read_last(&a[u], x + 2 * r * d.w * V);
		cuda_read_last(&b[u], x + (2 * r + 1) * d.w * V);
	}
	CUDA_EACH_ROW(d, row, u, r) {
		cuda_unpack(v, a[u]);
		cuda_unpack(g, b[u]);
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] *= g[j] * cuda_cdf(g[j], &pdf);
		cuda_write<V>(y + r * d.w * V, v);
	}
}

int
cuda_geglu_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    int64_t m, int64_t c)
{
	int wide = c % CUDA_WIDE == 0 && cuda_aligned(y, x, NULL);
	struct cuda_deal d;

	if (m == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), m, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(geglu_forward, dt, wide, d.blocks, d.threads, 0, be, y, x,
	    d);
	return cuda_done(cuda_of(be), "geglu_fwd");
}

/* d(x gelu(g)): to x dy g cdf(g), to g dy x (g pdf(g) + cdf(g)) */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
geglu_backward(void *dxv, const void *dyv, const void *xv,
    struct cuda_deal d, int add)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *x = (const T *)xv + col * V;
	const T *dy = (const T *)dyv + col * V;
	T *dx = (T *)dxv + col * V;
	cuda_pack<T, V> a, b, e, old_a, old_b;
	float v[V], g[V], t[V], slope[V], cdf, pdf;
	int64_t r, at;
	int u, j;

	if (col >= d.w)
		return;
	for (u = 0; u < d.steps; u++) {
		r = row + u * d.per;
		if (r >= d.rows)
			break;
		at = 2 * r * d.w * V;
		cuda_read_last(&a, x + at);
		cuda_read_last(&b, x + at + d.w * V);
		cuda_read_last(&e, dy + r * d.w * V);
		if (add) {
			old_a = cuda_read<T, V>(dx + at);
			old_b = cuda_read<T, V>(dx + at + d.w * V);
		}
		cuda_unpack(v, a);
		cuda_unpack(g, b);
		cuda_unpack(t, e);
#pragma unroll
		for (j = 0; j < V; j++) {
			cdf = cuda_cdf(g[j], &pdf);
			slope[j] = fmaf(g[j], pdf, cdf);
			g[j] = __fmul_rn(g[j], cdf);
			v[j] = __fmul_rn(t[j], v[j]);
		}
		scaled<T, V>(dx + at, old_a, t, g, add);
		scaled<T, V>(dx + at + d.w * V, old_b, v, slope, add);
	}
}

int
cuda_geglu_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, const void *dy,
    const void *x, int64_t m, int64_t c, int add)
{
	int wide = c % CUDA_WIDE == 0 && cuda_aligned(dx, dy, x);
	struct cuda_deal d;

	if (dx == NULL || m == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), m, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(geglu_backward, dt, wide, d.blocks, d.threads, 0, be, dx,
	    dy, x, d, add);
	return cuda_done(cuda_of(be), "geglu_bwd");
}

template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
add_flat(void *yv, const void *av, const void *bv, struct flat f)
{
	const T *a = (const T *)av, *b = (const T *)bv;
	T *y = (T *)yv;
	cuda_pack<T, V> p[CUDA_STEPS], q[CUDA_STEPS];
	int64_t first = flat_first(f), i;
	float v[V], w[V];
	int u, j;

#pragma unroll
	for (u = 0; u < CUDA_STEPS; u++) {
		i = first + u * THREADS;
		if (u >= f.steps || i >= f.vectors)
			break;
		p[u] = cuda_read<T, V>(a + i * V);
		q[u] = cuda_read<T, V>(b + i * V);
	}
#pragma unroll
	for (u = 0; u < CUDA_STEPS; u++) {
		i = first + u * THREADS;
		if (u >= f.steps || i >= f.vectors)
			break;
		cuda_unpack(v, p[u]);
		cuda_unpack(w, q[u]);
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] += w[j];
		cuda_write<V>(y + i * V, v);
	}
	i = flat_rest(f, V);
	if (i < f.count)
		cuda_store(y + i, cuda_load(a + i) + cuda_load(b + i));
}

int
cuda_add(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    const void *b, int64_t count)
{
	int wide = cuda_aligned(y, a, b);
	struct flat f = flat_of(cuda_of(be), count, wide);

	if (count == 0)
		return 0;
	CUDA_LAUNCH(add_flat, dt, wide, f.blocks, THREADS, 0, be, y, a, b, f);
	return cuda_done(cuda_of(be), "add");
}

int
cuda_acc(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    int64_t count)
{
	return cuda_add(be, dt, y, y, a, count);
}

/* y = u + g (c - u): element i of y is of run i / len, of `len` elements. */
static __global__ void
guide_forward(float *y, const float *x, float g, int64_t count, int64_t len)
{
	int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at;
	float u;

	if (i >= count)
		return;
	at = i + i / len * len;
	u = x[at + len];
	y[i] = fmaf(x[at] - u, g, u);
}

static __global__ void
guide_backward(float *dx, const float *dy, float g, int64_t count,
    int64_t len, int add)
{
	int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at;
	float d;

	if (i >= count)
		return;
	at = i + i / len * len;
	d = dy[i];
	dx[at] = add ? fmaf(d, g, dx[at]) : __fmul_rn(d, g);
	dx[at + len] = add ? fmaf(d, 1.0f - g, dx[at + len]) :
	    __fmul_rn(d, 1.0f - g);
}

int
cuda_guide_fwd(lpo_backend *be, float *y, const float *x, float g,
    int64_t groups, int64_t r, int64_t c)
{
	int64_t count = groups * r * c;

	if (count == 0)
		return 0;
	guide_forward<<<(unsigned int)((count + THREADS - 1) / THREADS),
	    THREADS, 0, cuda_stream(be)>>>(y, x, g, count, r * c);
	return cuda_done(cuda_of(be), "guide_fwd");
}

int
cuda_guide_bwd(lpo_backend *be, float *dx, const float *dy, float g,
    int64_t groups, int64_t r, int64_t c, int add)
{
	int64_t count = groups * r * c;

	if (dx == NULL || count == 0)
		return 0;
	guide_backward<<<(unsigned int)((count + THREADS - 1) / THREADS),
	    THREADS, 0, cuda_stream(be)>>>(dx, dy, g, count, r * c, add);
	return cuda_done(cuda_of(be), "guide_bwd");
}
