/*
 * AdamW, sums of squares and conversion.  A list of tensors is one launch or
 * a few: descriptions go as the kernel's arguments, and each block has one
 * chunk of one tensor.
 */
#include <math.h>

#include "kernels/cuda.h"

enum {
	THREADS = 256,
	CHUNK = 8192,		/* elements of a block of adamw */
	SQUARES = 16384,	/* elements of a partial sum of squares */
	MOST = 72,		/* tensors of a launch: 4 KiB of arguments */
	MOST_SUMS = 192,
	VEC = 8			/* elements of a thread of convert */
};

static __device__ __forceinline__ float
cuda_load(const __half *p)
{
	return __half2float(*p);
}

static __device__ __forceinline__ void
cuda_store(__half *p, float x)
{
	*p = __float2half_rn(x);
}

/* The tensor whose blocks `at` is one of: first[i] <= at < first[i + 1]. */
static __device__ __forceinline__ int
tensor_of(const unsigned *first, int n, unsigned at)
{
	int low = 0, high = n - 1, mid;

	while (low < high) {
		mid = (low + high + 1) / 2;
		if (first[mid] <= at)
			low = mid;
		else
			high = mid - 1;
	}
	return low;
}

/* ---- AdamW */

struct adamw_numbers {
	float w1, b2, w2, scale, decay, step, root, eps;
};

struct adamw_list {
	float *p[MOST], *m[MOST], *v[MOST];
	const float *g[MOST];
	void *w[MOST];
	int64_t count[MOST];
	unsigned first[MOST];	/* block of each tensor */
	int n;
	unsigned char dt[MOST];	/* of w */
	unsigned char vectors[MOST];
	struct adamw_numbers o;
};

static_assert(sizeof(struct adamw_list) <= 4096, "kernel's arguments");

/* The same steps, each rounded as on the CPU. */
static __device__ __forceinline__ void
adamw_one(float *p, float *m, float *v, float g, const adamw_numbers &o)
{
	float mean, square, root;

	g = __fmul_rn(g, o.scale);
	mean = __fmaf_rn(__fsub_rn(g, *m), o.w1, *m);
	square = __fmaf_rn(__fmul_rn(o.w2, g), g, __fmul_rn(*v, o.b2));
	root = __fadd_rn(__fdiv_rn(__fsqrt_rn(square), o.root), o.eps);
	*p = __fmaf_rn(-__fdiv_rn(mean, root), o.step,
	    __fmul_rn(*p, o.decay));
	*m = mean;
	*v = square;
}

static __device__ __forceinline__ unsigned short
half_bits(int dt, float x)
{
	return dt == LPO_BF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) :
	    __half_as_ushort(__float2half_rn(x));
}

static __device__ __forceinline__ void
store_as(void *w, int dt, int64_t i, float x)
{
	if (dt == LPO_F32)
		((float *)w)[i] = x;
	else
		((unsigned short *)w)[i] = half_bits(dt, x);
}

static __device__ __forceinline__ void
store4_as(void *w, int dt, int64_t i, float4 x)
{
	if (dt == LPO_F32)
		__stwb((float4 *)((float *)w + i), x);
	else
		__stwb((ushort4 *)((unsigned short *)w + i), make_ushort4(
		    half_bits(dt, x.x), half_bits(dt, x.y),
		    half_bits(dt, x.z), half_bits(dt, x.w)));
}

static __global__ void __launch_bounds__(THREADS)
adamw(const __grid_constant__ struct adamw_list l)
{
	int t = tensor_of(l.first, l.n, blockIdx.x), dt = l.dt[t], j;
	int64_t from = (int64_t)(blockIdx.x - l.first[t]) * CHUNK, i;
	int64_t to = from + CHUNK < l.count[t] ? from + CHUNK : l.count[t];
	float *p = l.p[t], *m = l.m[t], *v = l.v[t];
	const float *g = l.g[t];
	void *w = l.w[t];

	i = from + threadIdx.x * 4;
	if (l.vectors[t])
		for (; i + 4 <= to; i += THREADS * 4) {
			float4 p4 = *(float4 *)(p + i), m4 = *(float4 *)(m + i);
			float4 v4 = *(float4 *)(v + i);
			float4 g4 = *(const float4 *)(g + i);

			adamw_one(&p4.x, &m4.x, &v4.x, g4.x, l.o);
			adamw_one(&p4.y, &m4.y, &v4.y, g4.y, l.o);
			adamw_one(&p4.z, &m4.z, &v4.z, g4.z, l.o);
			adamw_one(&p4.w, &m4.w, &v4.w, g4.w, l.o);
			*(float4 *)(p + i) = p4;
			*(float4 *)(m + i) = m4;
			*(float4 *)(v + i) = v4;
			if (w != NULL)
				store4_as(w, dt, i, p4);
		}
	for (; i < to; i += THREADS * 4)
		for (j = 0; j < 4 && i + j < to; j++) {
			adamw_one(p + i + j, m + i + j, v + i + j, g[i + j],
			    l.o);
			if (w != NULL)
				store_as(w, dt, i + j, p[i + j]);
		}
}

/* As the CPU has them: 1 - beta^step cancels for early steps, so in f64. */
static struct adamw_numbers
adamw_numbers_of(const struct lpo_adamw *o)
{
	struct adamw_numbers a;

	a.w1 = (float)(1.0 - (double)o->beta1);
	a.b2 = o->beta2;
	a.w2 = (float)(1.0 - (double)o->beta2);
	a.scale = o->grad_scale;
	a.decay = (float)(1.0 - (double)o->lr * (double)o->weight_decay);
	a.step = (float)(o->lr / (1.0 - pow((double)o->beta1,
	    (double)o->step)));
	a.root = (float)sqrt(1.0 - pow((double)o->beta2, (double)o->step));
	a.eps = o->eps;
	return a;
}

/*
 * torch.optim.AdamW:
 *	p *= 1 - lr wd
 *	m += (g - m) (1 - beta1);  v = beta2 v + (1 - beta2) g^2
 *	p -= (lr / bc1) * (m / (sqrt(v) / sqrt(bc2) + eps))
 */
int
cuda_adamw(lpo_backend *be, const struct lpo_adamw_tensor *t, int64_t n,
    const struct lpo_adamw *o)
{
	struct cuda *c = cuda_of(be);
	struct adamw_list l = {};
	int64_t i, blocks = 0;
	int at = 0, rc;

	l.o = adamw_numbers_of(o);
	for (i = 0; i < n; i++) {
		void *w = t[i].w != (void *)t[i].p ? t[i].w : NULL;

		if (w != NULL && t[i].w_dt != LPO_F32 && t[i].w_dt !=
		    LPO_BF16 && t[i].w_dt != LPO_F16)
			return cuda_fail(c, LPO_EINVAL, "adamw",
			    "weights of a type that it does not store");
		if (t[i].count > 0) {
			l.p[at] = t[i].p;
			l.m[at] = t[i].m;
			l.v[at] = t[i].v;
			l.g[at] = t[i].g;
			l.w[at] = w;
			l.count[at] = t[i].count;
			l.dt[at] = (unsigned char)t[i].w_dt;
			l.vectors[at] = cuda_alignment(t[i].p, t[i].m,
			    t[i].v, t[i].g) == 16 &&
			    cuda_alignment(w, NULL, NULL, NULL) == 16;
			l.first[at++] = (unsigned)blocks;
			blocks += (t[i].count + CHUNK - 1) / CHUNK;
		}
		if (at == 0 || (at < MOST && i + 1 < n))
			continue;
		l.n = at;
		adamw<<<(unsigned)blocks, THREADS, 0, c->stream>>>(l);
		if ((rc = cuda_done(c, "adamw")) < 0)
			return rc;
		at = 0;
		blocks = 0;
	}
	return 0;
}

/* ---- sums of squares */

struct squares_list {
	const float *x[MOST_SUMS];
	int64_t count[MOST_SUMS];
	unsigned first[MOST_SUMS + 1];	/* partial sum of each tensor */
	int n;
};

static_assert(sizeof(struct squares_list) <= 4000, "kernel's arguments");

/* The block's sum, in one order; thread 0 has it. */
static __device__ double
block_sum(double s)
{
	__shared__ double part[THREADS / 32];
	int i;

#pragma unroll
	for (i = 16; i > 0; i /= 2)
		s += __shfl_down_sync(0xffffffffu, s, i);
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = s;
	__syncthreads();
	for (s = 0, i = 0; i < THREADS / 32; i++)
		s += part[i];
	return s;
}

/* partial[b] = the sum of squares of the b-th chunk */
static __global__ void __launch_bounds__(THREADS)
sum_chunks(const __grid_constant__ struct squares_list l, double *partial)
{
	int t = tensor_of(l.first, l.n, blockIdx.x);
	int64_t from = (int64_t)(blockIdx.x - l.first[t]) * SQUARES, i;
	int64_t to = from + SQUARES < l.count[t] ? from + SQUARES :
	    l.count[t];
	const float *x = l.x[t];
	double s[4] = {}, d;
	int j;

	i = from + threadIdx.x * 4;
	if ((uintptr_t)x % 16 == 0)
#pragma unroll 4
		for (; i + 4 <= to; i += THREADS * 4) {
			float4 a = *(const float4 *)(x + i);

			s[0] = fma((double)a.x, (double)a.x, s[0]);
			s[1] = fma((double)a.y, (double)a.y, s[1]);
			s[2] = fma((double)a.z, (double)a.z, s[2]);
			s[3] = fma((double)a.w, (double)a.w, s[3]);
		}
	for (; i < to; i += THREADS * 4)
#pragma unroll
		for (j = 0; j < 4; j++) {
			d = i + j < to ? x[i + j] : 0;
			s[j] = fma(d, d, s[j]);
		}
	d = block_sum((s[0] + s[1]) + (s[2] + s[3]));
	if (threadIdx.x == 0)
		partial[blockIdx.x] = d;
}

/* sum[t] = the partial sums of the t-th tensor, added up */
static __global__ void __launch_bounds__(THREADS)
sum_partials(const __grid_constant__ struct squares_list l, double *sum,
    const double *partial)
{
	unsigned i, t = blockIdx.x;
	double s = 0;

	for (i = l.first[t] + threadIdx.x; i < l.first[t + 1]; i += THREADS)
		s += partial[i];
	s = block_sum(s);
	if (threadIdx.x == 0)
		sum[t] = s;
}

/* *out = the sums in their order */
static __global__ void
sum_tensors(double *out, const double *sum, int64_t n)
{
	double s = 0;

#pragma unroll 32
	for (int64_t i = 0; i < n; i++)
		s += sum[i];
	*out = s;
}

/* Both stages of a list's tensors; partial is free again behind them. */
static int
sum_list(struct cuda *c, const struct squares_list *l, double *sum,
    double *partial)
{
	unsigned blocks = l->first[l->n];

	if (blocks > 0)
		sum_chunks<<<blocks, THREADS, 0, c->stream>>>(*l, partial);
	sum_partials<<<(unsigned)l->n, THREADS, 0, c->stream>>>(*l, sum,
	    partial);
	return cuda_done(c, "sum_squares");
}

int
cuda_sum_squares(lpo_backend *be, double *out, const float *const *x,
    const int64_t *count, int64_t n)
{
	struct cuda *c = cuda_of(be);
	struct squares_list l = {};
	double *sum = (double *)c->workspace, *partial = sum + n;
	int64_t room = (int64_t)(c->workspace_bytes / sizeof(double)) - n;
	int64_t i, chunks;
	int rc;

	for (i = 0; i < n; i++) {
		chunks = (count[i] + SQUARES - 1) / SQUARES;
		if (l.first[l.n] + chunks > room && l.n > 0) {
			if ((rc = sum_list(c, &l, sum + i - l.n, partial)) < 0)
				return rc;
			l.n = 0;
		}
		if (chunks > room)
			return cuda_fail(c, LPO_ENOMEM, "sum_squares",
			    "more partial sums than the workspace holds");
		l.x[l.n] = x[i];
		l.count[l.n] = count[i];
		l.first[l.n + 1] = (unsigned)(l.first[l.n] + chunks);
		l.n++;
		if (l.n < MOST_SUMS && i + 1 < n)
			continue;
		if ((rc = sum_list(c, &l, sum + i + 1 - l.n, partial)) < 0)
			return rc;
		l.n = 0;
	}
	sum_tensors<<<1, 1, 0, c->stream>>>(out, sum, n);
	return cuda_done(c, "sum_squares");
}

/* ---- conversion, through f32, which holds bf16 and f16 exactly */

template<typename T>
struct __align__(sizeof(T) * VEC < 16 ? sizeof(T) * VEC : 16) pack {
	T v[VEC];
};

/* dst = src, or dst + src */
template<typename TD, typename TS, bool ADD, bool PACKS>
static __global__ void __launch_bounds__(THREADS)
convert(TD *dst, const TS *src, int64_t count)
{
	int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * VEC, j;

	if (PACKS && i + VEC <= count) {
		pack<TS> s = *(const pack<TS> *)(src + i);
		pack<TD> d;

		if (ADD)
			d = *(const pack<TD> *)(dst + i);
#pragma unroll
		for (j = 0; j < VEC; j++)
			cuda_store(&d.v[j], ADD ? cuda_load(&d.v[j]) +
			    cuda_load(&s.v[j]) : cuda_load(&s.v[j]));
		*(pack<TD> *)(dst + i) = d;
		return;
	}
	for (j = i; j < i + VEC && j < count; j++)
		cuda_store(dst + j, ADD ? cuda_load(dst + j) +
		    cuda_load(src + j) : cuda_load(src + j));
}

template<typename TD, typename TS>
static void
launch_convert(cudaStream_t stream, void *dst, const void *src,
    int64_t count, int add)
{
	unsigned blocks = (unsigned)((count + THREADS * VEC - 1) /
	    (THREADS * VEC));
	TD *d = (TD *)dst;
	const TS *s = (const TS *)src;
	int packs = cuda_alignment(d, s, NULL, NULL) == 16;

	if (!packs && add)
		convert<TD, TS, true, false><<<blocks, THREADS, 0, stream>>>(
		    d, s, count);
	else if (!packs)
		convert<TD, TS, false, false><<<blocks, THREADS, 0, stream>>>(
		    d, s, count);
	else if (add)
		convert<TD, TS, true, true><<<blocks, THREADS, 0, stream>>>(
		    d, s, count);
	else
		convert<TD, TS, false, true><<<blocks, THREADS, 0, stream>>>(
		    d, s, count);
}

template<typename TD>
static void
launch_from(cudaStream_t stream, void *dst, const void *src,
    enum lpo_dtype dt, int64_t count, int add)
{
	if (dt == LPO_F32)
		launch_convert<TD, float>(stream, dst, src, count, add);
	else if (dt == LPO_BF16)
		launch_convert<TD, __nv_bfloat16>(stream, dst, src, count,
		    add);
	else
		launch_convert<TD, __half>(stream, dst, src, count, add);
}

static int
can_convert(enum lpo_dtype dt)
{
	return dt == LPO_F32 || dt == LPO_BF16 || dt == LPO_F16;
}

static int
run_convert(struct cuda *c, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t count, int add,
    const char *what)
{
	if (!can_convert(dst_dt) || !can_convert(src_dt))
		return cuda_fail(c, LPO_EINVAL, what, "type of elements");
	if (count == 0)
		return 0;
	if (dst_dt == LPO_F32)
		launch_from<float>(c->stream, dst, src, src_dt, count, add);
	else if (dst_dt == LPO_BF16)
		launch_from<__nv_bfloat16>(c->stream, dst, src, src_dt, count,
		    add);
	else
		launch_from<__half>(c->stream, dst, src, src_dt, count, add);
	return cuda_done(c, what);
}

int
cuda_convert(lpo_backend *be, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t count)
{
	if (dst_dt == src_dt && can_convert(dst_dt))
		return cuda_copy(be, dst, src, (size_t)count *
		    cuda_bytes(dst_dt));
	return run_convert(cuda_of(be), dst, dst_dt, src, src_dt, count, 0,
	    "convert");
}

int
cuda_convert_acc(lpo_backend *be, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t count)
{
	return run_convert(cuda_of(be), dst, dst_dt, src, src_dt, count, 1,
	    "convert_acc");
}
