/*
 * What the element-wise CUDA kernels share: accesses of 16 bytes, how rows
 * of channels are dealt to threads, sigmoid and normal distribution.
 */
#ifndef LPO_CUDA_VEC_H
#define LPO_CUDA_VEC_H

#include "kernels/cuda.h"

enum {
	CUDA_WIDE = 8,		/* elements of a vector; else one by one */
	CUDA_THREADS = 320,	/* of a block, about: c is 320 often */
	CUDA_STEPS = 4		/* vectors of one thread */
};

/* V elements as they lie in memory. */
template <typename T, int V> struct cuda_pack;
template <> struct cuda_pack<float, 1> { float a; };
template <> struct cuda_pack<__nv_bfloat16, 1> { __nv_bfloat16 a; };
template <> struct cuda_pack<float, 8> { float4 a, b; };
template <> struct cuda_pack<__nv_bfloat16, 8> { uint4 a; };

template <typename T, int V>
static __device__ __forceinline__ cuda_pack<T, V>
cuda_read(const T *p)
{
	return *(const cuda_pack<T, V> *)p;
}

template <typename T, int V>
static __device__ __forceinline__ void
cuda_put(T *p, const cuda_pack<T, V> &u)
{
	*(cuda_pack<T, V> *)p = u;
}

/* For what is read for the last time: L2 may forget it first. */
static __device__ __forceinline__ void
cuda_read_last(cuda_pack<float, 1> *u, const float *p)
{
	u->a = *p;
}

static __device__ __forceinline__ void
cuda_read_last(cuda_pack<__nv_bfloat16, 1> *u, const __nv_bfloat16 *p)
{
	u->a = *p;
}

static __device__ __forceinline__ void
cuda_read_last(cuda_pack<float, 8> *u, const float *p)
{
	u->a = __ldcs((const float4 *)p);
	u->b = __ldcs((const float4 *)p + 1);
}

static __device__ __forceinline__ void
cuda_read_last(cuda_pack<__nv_bfloat16, 8> *u, const __nv_bfloat16 *p)
{
	u->a = __ldcs((const uint4 *)p);
}

static __device__ __forceinline__ void
cuda_unpack(float *v, const cuda_pack<float, 1> &u)
{
	v[0] = u.a;
}

static __device__ __forceinline__ void
cuda_unpack(float *v, const cuda_pack<__nv_bfloat16, 1> &u)
{
	v[0] = __bfloat162float(u.a);
}

static __device__ __forceinline__ void
cuda_unpack(float *v, const cuda_pack<float, 8> &u)
{
	v[0] = u.a.x;
	v[1] = u.a.y;
	v[2] = u.a.z;
	v[3] = u.a.w;
	v[4] = u.b.x;
	v[5] = u.b.y;
	v[6] = u.b.z;
	v[7] = u.b.w;
}

static __device__ __forceinline__ void
cuda_halves(float *v, unsigned int u)
{
	v[0] = cuda_low(u);
	v[1] = cuda_high(u);
}

static __device__ __forceinline__ void
cuda_unpack(float *v, const cuda_pack<__nv_bfloat16, 8> &u)
{
	cuda_halves(v, u.a.x);
	cuda_halves(v + 2, u.a.y);
	cuda_halves(v + 4, u.a.z);
	cuda_halves(v + 6, u.a.w);
}

template <int V>
static __device__ __forceinline__ void
cuda_write(float *p, const float *v)
{
	if (V == 1) {
		*p = v[0];
		return;
	}
	((float4 *)p)[0] = make_float4(v[0], v[1 % V], v[2 % V], v[3 % V]);
	((float4 *)p)[1] = make_float4(v[4 % V], v[5 % V], v[6 % V],
	    v[7 % V]);
}

template <int V>
static __device__ __forceinline__ void
cuda_write(__nv_bfloat16 *p, const float *v)
{
	if (V == 1) {
		*p = __float2bfloat16_rn(v[0]);
		return;
	}
	*(uint4 *)p = make_uint4(cuda_two(v[0], v[1 % V]),
	    cuda_two(v[2 % V], v[3 % V]), cuda_two(v[4 % V], v[5 % V]),
	    cuda_two(v[6 % V], v[7 % V]));
}

/* May be read and written 16 bytes at a time; NULL is not read at all. */
static inline int
cuda_aligned(const void *a, const void *b, const void *c)
{
	return (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) & 15) == 0;
}

/*
 * Start kernel<type, vector>.  One statement; kernels take void pointers, so
 * that the arguments are the same for all of them.
 */
#define CUDA_LAUNCH(kernel, dt, wide, grid, block, shared, be, ...)	\
	do {								\
		cudaStream_t s_ = cuda_stream(be);			\
									\
		if ((dt) == LPO_F32 && (wide))				\
			kernel<float, CUDA_WIDE>			\
			    <<<grid, block, shared, s_>>>(__VA_ARGS__);	\
		else if ((dt) == LPO_F32)				\
			kernel<float, 1>				\
			    <<<grid, block, shared, s_>>>(__VA_ARGS__);	\
		else if (wide)						\
			kernel<__nv_bfloat16, CUDA_WIDE>		\
			    <<<grid, block, shared, s_>>>(__VA_ARGS__);	\
		else							\
			kernel<__nv_bfloat16, 1>			\
			    <<<grid, block, shared, s_>>>(__VA_ARGS__);	\
	} while (0)

/*
 * `rows` rows of w vectors, dealt so that neighbouring threads are
 * neighbours in memory and a thread keeps its column: a block has `span`
 * columns of `per` rows and takes `steps` times as many rows.
 */
struct cuda_deal {
	int64_t rows, w;
	unsigned int chunks, span;
	int per, steps;
	unsigned int blocks, threads;
};

static inline struct cuda_deal
cuda_deal_of(const struct cuda *cu, int64_t rows, int64_t w)
{
	struct cuda_deal d;
	int64_t blocks;

	d.rows = rows;
	d.w = w;
	d.chunks = (unsigned int)((w + CUDA_THREADS - 1) / CUDA_THREADS);
	d.span = (unsigned int)((w + d.chunks - 1) / d.chunks);
	d.per = CUDA_THREADS / (int)d.span;
	if (d.per > rows)
		d.per = (int)rows;
	d.threads = d.span * (unsigned int)d.per;
	d.steps = CUDA_STEPS;
	blocks = (rows + d.per * d.steps - 1) / (d.per * d.steps) * d.chunks;
	if (blocks < 4 * cu->processors) {
		d.steps = 1;
		blocks = (rows + d.per - 1) / d.per * d.chunks;
	}
	d.blocks = (unsigned int)blocks;
	return d;
}

/* The calling thread's column, and the first of its rows. */
static __device__ __forceinline__ int64_t
cuda_deal_column(const struct cuda_deal &d)
{
	return (int64_t)(blockIdx.x % d.chunks) * d.span + threadIdx.x %
	    d.span;
}

static __device__ __forceinline__ int64_t
cuda_deal_row(const struct cuda_deal &d)
{
	return (int64_t)(blockIdx.x / d.chunks) * d.per * d.steps +
	    threadIdx.x / d.span;
}

/* One u for each row r of the thread; more rows than there are: none. */
#define CUDA_EACH_ROW(d, first, u, r)					\
	_Pragma("unroll")						\
	for (u = 0; u < CUDA_STEPS; u++)				\
		if (r = (first) + u * (d).per, u < (d).steps &&		\
		    r < (d).rows)

/* a / b, where both are seldom long */
static __device__ __forceinline__ int64_t
cuda_quotient(int64_t a, int64_t b)
{
	return ((a | b) >> 32) == 0 ? (int64_t)((uint32_t)a / (uint32_t)b) :
	    a / b;
}

/* ---- functions, as kernels/vmath.h has them */

static __device__ __forceinline__ float
cuda_exp2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ float
cuda_rcp(float x)
{
	float y;

	asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ float
cuda_sigmoid(float x)
{
	return cuda_rcp(1.0f + cuda_exp2(x * -1.44269504f));
}

/* Slope of x sigmoid(x), times dy. */
static __device__ __forceinline__ float
cuda_silu_back(float dy, float x)
{
	float s = cuda_sigmoid(x);

	return __fmul_rn(dy, s * fmaf(x, 1.0f - s, 1.0f));
}

/*
 * The normal distribution and its density: (1 + erf) / 2 would cancel in the
 * left tail, so e^(a^2) erfc(a) is a polynomial (vmath.h's) over a + 2.
 */
static __device__ __forceinline__ float
cuda_cdf(float x, float *pdf)
{
	float h = cuda_exp2(fmaf(x * x, -0.721347520f, -1.0f));
	float t = cuda_rcp(fmaf(fabsf(x), 0.707106781f, 2.0f));
	float q = fmaf(t, 4.0f, -1.0f), p, e;

	p = fmaf(-0.0004614760682f, q, 0.000754673501f);
	p = fmaf(p, q, 0.002979054674f);
	p = fmaf(p, q, -0.006437293441f);
	p = fmaf(p, q, -0.02148357771f);
	p = fmaf(p, q, 0.03643518574f);
	p = fmaf(p, q, 0.2794696313f);
	p = fmaf(p, q, 0.6871609734f);
	p = fmaf(p, q, 1.021582743f);
	e = __fmul_rn(__fmul_rn(p, t), h);
	*pdf = __fmul_rn(h, 0.797884561f);
	return x > 0.0f ? 1.0f - e : e;
}

/*
 * dbeta += a, dgamma += b of each run in turn, where a run's [2][c] is the
 * sum of its `slices` parts: parts [runs][slices][2][c].
 */
int	cuda_norm_weights(lpo_backend *, float *dgamma, float *dbeta,
	    const float *parts, int64_t c, int64_t runs, int64_t slices);

/* Parts of a run at most; the scratch of both norms holds so many. */
enum { CUDA_NORM_SLICES = 32 };

/* 1 where rows of c elements from a, b and d on are whole vectors. */
static inline int
cuda_wide(int64_t c, const void *a, const void *b, const void *d)
{
	return c % CUDA_WIDE == 0 && cuda_aligned(a, b, d);
}

/* p[0..V) = v, or + v, rounded once */
template <typename T, int V>
static __device__ __forceinline__ void
cuda_store_or_add(T *p, float *v, int add)
{
	float old[V];
	int j;

	if (add) {
		cuda_unpack(old, cuda_read<T, V>(p));
#pragma unroll
		for (j = 0; j < V; j++)
			v[j] += old[j];
	}
	cuda_write<V>(p, v);
}

#endif
