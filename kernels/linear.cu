/*
 * Linear layers.  Products go to cuBLASLt, one algorithm per kind of call,
 * chosen once; those with a side of at most 16 (LoRA) are bound by memory and
 * are ours, as is what cuBLASLt refuses.  Same bits from run to run; not for
 * any number of rows, and `groups` changes nothing here.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda.h"

typedef __nv_bfloat16 bf16;

enum {
	THREADS = 256,
	WARPS = THREADS / 32,
	SMALL = 16,		/* the largest side of a small product */
	DEPTH = 1024,		/* of the weights that a block keeps */
	DEPTH_LD = DEPTH + 32,	/* 16 words off a multiple of 32 banks */
	STRIP = 64,		/* columns of a block of `tall` */
	TILE = 64,		/* of `general`: TILE x TILE by TILE_K */
	TILE_K = 16,
	MAX_SLABS = 128,
	COUNTERS = 8192,
	BUCKETS = 256,
	ALGORITHMS = 8
};

/* ---- a sum over rows, cut into slabs */

/*
 * True in the block that is the last of `count` to come here: it finds what
 * the others wrote.  The counter says only who is last; what is summed, and
 * in which order, does not depend on it.  It is 0 again afterwards.
 */
static __device__ bool
last_block(unsigned *counter, unsigned count)
{
	__shared__ bool last;

	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0) {
		last = atomicAdd(counter, 1u) == count - 1;
		if (last)
			*counter = 0;
	}
	__syncthreads();
	if (last)
		__threadfence();
	return last;
}

/* The sum of `slabs` values that lie `stride` apart, in their order. */
static __device__ __forceinline__ float
slab_sum(const float *partial, int slabs, int64_t stride)
{
	float s = 0;

#pragma unroll 8
	for (int i = 0; i < slabs; i++)
		s += __ldcg(partial + i * stride);
	return s;
}

static int64_t
min64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Rows of each slab: 4 blocks a processor, but no fewer rows than pay. */
static int64_t
slab_rows(const struct cuda *c, int64_t m, int64_t strips, int64_t floats)
{
	int64_t slabs = 4 * (int64_t)c->processors / strips, rows;
	int64_t room = (int64_t)(c->workspace_bytes / sizeof(float)) /
	    (strips * floats);

	slabs = min64(min64(slabs, MAX_SLABS), min64(room, m / 256));
	if (slabs < 1 || strips > COUNTERS)
		slabs = 1;
	rows = (m + slabs - 1) / slabs;
	return (rows + 127) / 128 * 128;
}

/* ---- products with a small side, bf16 */

/* d += a b: 16x16 by 16x8, as PTX lays the fragments out over a warp. */
static __device__ __forceinline__ void
mma(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
    uint32_t b0, uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	    : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t
bits(bf16 x)
{
	return __bfloat16_as_ushort(x);
}

static __device__ __forceinline__ float
low(uint32_t pair)
{
	return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float
high(uint32_t pair)
{
	return __uint_as_float(pair & 0xffff0000u);
}

static __device__ __forceinline__ uint32_t
pack(float a, float b)
{
	return bits(__float2bfloat16_rn(a)) |
	    bits(__float2bfloat16_rn(b)) << 16;
}

static __device__ __forceinline__ uint4
load16(const bf16 *p)
{
	return *(const uint4 *)p;
}

/* One product as the kernels see it: y[m,n] from x[m,depth] and weights. */
struct small_product {
	bf16 *y;
	const bf16 *x, *w, *residual;
	const float *bias;
	int64_t m, n, depth;
	int64_t wn, wd;		/* w(j, l) is w[j * wn + l * wd] */
	float alpha;
};

/* ws[j][l] = w(j, at + l), zeros outside: `steps` runs of 32 of l. */
template<int NT>
static __device__ void
stage_weights(bf16 (*ws)[DEPTH_LD], const small_product &p, int64_t at,
    int len, int steps)
{
	const uint4 zeros = make_uint4(0, 0, 0, 0);
	int n = (int)p.n, vectors = steps * 4, i, j, l;

	if (p.wd == 1) {
		for (i = threadIdx.x; i < NT * 8 * vectors; i += THREADS) {
			j = i / vectors;
			l = i % vectors * 8;
			*(uint4 *)&ws[j][l] = j < n && l < len ?
			    load16(p.w + j * p.wn + at + l) : zeros;
		}
		return;
	}
	for (l = threadIdx.x; l < steps * 32; l += THREADS) {
		const bf16 *w = p.w + (at + l) * p.wd;

#pragma unroll
		for (j = 0; j < NT * 8; j++)
			ws[j][l] = j < n && l < len ? w[j * p.wn] :
			    __ushort_as_bfloat16(0);
	}
}

/*
 * y[m,n] = alpha x[m,depth] w(n,depth)^T + bias + residual, n <= 8 NT.
 * A warp has 16 rows and each `cut`-th run of 32 of the depth.  In such a run
 * lane t of a quad loads 8 neighbours of x and of w and uses them as pairs of
 * two products: the order within a run is not that of memory, but is the same
 * on both sides.
 */
template<int NT>
static __global__ void __launch_bounds__(THREADS)
narrow(small_product p, int cut)
{
	__shared__ __align__(16) bf16 ws[NT * 8][DEPTH_LD];
	const uint4 zeros = make_uint4(0, 0, 0, 0);
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int g = lane / 4, t = lane % 4, part = warp % cut;
	int64_t row = ((int64_t)blockIdx.x * (WARPS / cut) + warp / cut) * 16;
	int64_t ra = row + g, rb = row + g + 8, at;
	const bf16 *xa = p.x + (ra < p.m ? ra : p.m - 1) * p.depth;
	const bf16 *xb = p.x + (rb < p.m ? rb : p.m - 1) * p.depth;
	float acc[NT][4] = {};
	float *red = (float *)&ws[0][0];

	for (at = 0; at < p.depth; at += DEPTH) {
		int len = (int)(p.depth - at < DEPTH ? p.depth - at : DEPTH);
		int steps = (len + 31) / 32, s;

		__syncthreads();
		stage_weights<NT>(ws, p, at, len, steps);
		__syncthreads();
		for (s = part; s < steps; s += 4 * cut) {
			uint4 va[4], vb[4];

#pragma unroll
			for (int u = 0; u < 4; u++) {
				int l = (s + u * cut) * 32 + 8 * t;

				va[u] = l < len ? load16(xa + at + l) : zeros;
				vb[u] = l < len ? load16(xb + at + l) : zeros;
			}
#pragma unroll
			for (int u = 0; u < 4; u++) {
				if (s + u * cut >= steps)
					break;
#pragma unroll
				for (int i = 0; i < NT; i++) {
					uint4 w = *(const uint4 *)&ws[i * 8 +
					    g][(s + u * cut) * 32 + 8 * t];

					mma(acc[i], va[u].x, vb[u].x, va[u].y,
					    vb[u].y, w.x, w.y);
					mma(acc[i], va[u].z, vb[u].z, va[u].w,
					    vb[u].w, w.z, w.w);
				}
			}
		}
	}
	if (cut > 1) {
		__syncthreads();
#pragma unroll
		for (int i = 0; i < NT * 4; i++)
			red[(warp * NT * 4 + i) * 32 + lane] =
			    acc[i / 4][i % 4];
		__syncthreads();
		if (part != 0)
			return;
		for (int k = 1; k < cut; k++)
#pragma unroll
			for (int i = 0; i < NT * 4; i++)
				acc[i / 4][i % 4] += red[((warp + k) * NT * 4 +
				    i) * 32 + lane];
	}
#pragma unroll
	for (int i = 0; i < NT * 4; i++) {
		int64_t r = i % 4 < 2 ? ra : rb, j = i / 4 * 8 + 2 * t + i % 2;
		float v = p.alpha * acc[i / 4][i % 4];

		if (r >= p.m || j >= p.n)
			continue;
		if (p.bias != NULL)
			v += p.bias[j];
		if (p.residual != NULL)
			v += cuda_load(p.residual + r * p.n + j);
		cuda_store(p.y + r * p.n + j, v);
	}
}

/*
 * Below, what lies outside is loaded from inside and then masked: without
 * branches the loads of a lane do not wait for one another.
 */
static __device__ __forceinline__ uint32_t
masked_pair(bf16 a, bool has_a, bf16 b, bool has_b)
{
	return (has_a ? bits(a) : 0) | (has_b ? bits(b) << 16 : 0);
}

/* x[l], x[l+1] of a row of depth elements, zeros behind its end */
template<bool EVEN>
static __device__ __forceinline__ uint32_t
row_pair(const bf16 *x, int l, int depth)
{
	int last = depth - 1;

	if (EVEN)
		return l < depth ? *(const uint32_t *)(x + l) : 0;
	return masked_pair(x[min(l, last)], l < depth, x[min(l + 1, last)],
	    l + 1 < depth);
}

static __device__ __forceinline__ uint32_t
weight_pair(const small_product &p, int64_t j, int l)
{
	const bf16 *w = p.w + (j < p.n ? j : 0) * p.wn;
	int depth = (int)p.depth, last = depth - 1;

	return masked_pair(w[min(l, last) * p.wd], j < p.n && l < depth,
	    w[min(l + 1, last) * p.wd], j < p.n && l + 1 < depth);
}

/* 8 neighbours: alpha of 4 accumulators' pairs + bias + residual */
static __device__ __forceinline__ uint4
finish8(const float (*acc)[4], int half, float alpha, const float *bias,
    uint4 r)
{
	float v[8] = { low(r.x), high(r.x), low(r.y), high(r.y), low(r.z),
	    high(r.z), low(r.w), high(r.w) };

#pragma unroll
	for (int i = 0; i < 8; i++)
		v[i] += alpha * acc[i / 2][half * 2 + i % 2] + bias[i];
	return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]),
	    pack(v[4], v[5]), pack(v[6], v[7]));
}

/*
 * y[m,n] = alpha x[m,depth] w(n,depth)^T + bias + residual, depth <= 16.
 * A warp has 32 columns and 64 rows, its weights in registers.  Column
 * 2 t + e of the i-th product is column 8 t + 2 i + e of the 32, so that a
 * lane stores 8 neighbours.  y may be the residual: a lane reads what it
 * writes before it does.
 */
template<bool EVEN>
static __global__ void __launch_bounds__(THREADS)
thin(small_product p, int64_t strips)
{
	const uint4 zeros = make_uint4(0, 0, 0, 0);
	int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
	int depth = (int)p.depth;
	int64_t id = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
	int64_t row = id / strips * 64 + g, col = id % strips * 32;
	int64_t mine = col + 8 * t;
	bool in = mine < p.n;
	uint32_t b[4][2], a[8][2];
	uint4 r[8];
	float bias[8];

	if (row - g >= p.m)
		return;
#pragma unroll
	for (int i = 0; i < 4; i++)
#pragma unroll
		for (int h = 0; h < 2; h++)
			b[i][h] = weight_pair(p, col + 8 * (g / 2) + 2 * i +
			    g % 2, 2 * t + 8 * h);
#pragma unroll
	for (int i = 0; i < 8; i++) {
		int64_t at = row + 8 * i;
		const bf16 *x = p.x + (at < p.m ? at : p.m - 1) * depth;

		bias[i] = p.bias != NULL && in ? p.bias[mine + i] : 0;
		r[i] = p.residual != NULL && in && at < p.m ?
		    load16(p.residual + at * p.n + mine) : zeros;
		a[i][0] = row_pair<EVEN>(x, 2 * t, depth);
		a[i][1] = row_pair<EVEN>(x, 2 * t + 8, depth);
	}
#pragma unroll
	for (int i = 0; i < 8; i += 2) {
		int64_t at = row + 8 * i;
		float acc[4][4] = {};

#pragma unroll
		for (int k = 0; k < 4; k++)
			mma(acc[k], a[i][0], a[i + 1][0], a[i][1],
			    a[i + 1][1], b[k][0], b[k][1]);
		if (in && at < p.m)
			__stwb((uint4 *)(p.y + at * p.n + mine),
			    finish8(acc, 0, p.alpha, bias, r[i]));
		if (in && at + 8 < p.m)
			__stwb((uint4 *)(p.y + (at + 8) * p.n + mine),
			    finish8(acc, 1, p.alpha, bias, r[i + 1]));
	}
}

/* dw(column, j) += alpha * sum over m of x[m,width] s[m,few], few <= 8 NT */
struct tall_product {
	float *dw;
	int64_t at_column, at_few;	/* strides of dw */
	const bf16 *x, *s;
	int64_t m, width, rows;		/* rows of a slab */
	int few;
	float alpha;
	float *partial;
	unsigned *counters;
};

/* s[r][j], s[r+1][j] */
static __device__ __forceinline__ uint32_t
few_pair(const tall_product &p, int64_t r, int64_t to, int j)
{
	const bf16 *s = p.s + min(j, p.few - 1);

	return masked_pair(s[(r < to ? r : 0) * p.few], j < p.few && r < to,
	    s[(r + 1 < to ? r + 1 : 0) * p.few], j < p.few && r + 1 < to);
}

/*
 * A block has 64 columns of x and one slab of rows, of which a warp takes
 * every eighth run of 16.  Rows are the depth of the product: lane (g, t) of
 * a warp loads 8 neighbouring columns of 4 rows and pairs them up by row;
 * columns 2 q and 2 q + 1 of its 8 are rows g and g + 8 of the q-th product.
 */
template<int NT>
static __global__ void __launch_bounds__(THREADS)
tall(tall_product p)
{
	__shared__ float red[WARPS][NT * 8][STRIP + 1];
	const uint4 zeros = make_uint4(0, 0, 0, 0);
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int g = lane / 4, t = lane % 4, slabs = gridDim.y, o;
	int64_t col = (int64_t)blockIdx.x * STRIP + 8 * g;
	int64_t from = blockIdx.y * p.rows, row;
	int64_t to = from + p.rows < p.m ? from + p.rows : p.m;
	int64_t floats = (int64_t)p.few * STRIP;
	float *partial = p.partial + blockIdx.x * slabs * floats;
	bool in = col < p.width;
	float acc[4][NT][4] = {};

#pragma unroll 2
	for (row = from + warp * 16; row < to; row += WARPS * 16) {
		int64_t r = row + 4 * t;
		uint32_t b[NT][2];
		uint4 v[4];

#pragma unroll
		for (int i = 0; i < 4; i++)
			v[i] = in && r + i < to ?
			    load16(p.x + (r + i) * p.width + col) : zeros;
#pragma unroll
		for (int i = 0; i < NT; i++) {
			b[i][0] = few_pair(p, r, to, i * 8 + g);
			b[i][1] = few_pair(p, r + 2, to, i * 8 + g);
		}
#pragma unroll
		for (int q = 0; q < 4; q++) {
			uint32_t w[4];

#pragma unroll
			for (int i = 0; i < 4; i++)
				w[i] = q == 0 ? v[i].x : q == 1 ? v[i].y :
				    q == 2 ? v[i].z : v[i].w;
#pragma unroll
			for (int i = 0; i < NT; i++)
				mma(acc[q][i], __byte_perm(w[0], w[1], 0x5410),
				    __byte_perm(w[0], w[1], 0x7632),
				    __byte_perm(w[2], w[3], 0x5410),
				    __byte_perm(w[2], w[3], 0x7632),
				    b[i][0], b[i][1]);
		}
	}
#pragma unroll
	for (int q = 0; q < 4; q++)
#pragma unroll
		for (int i = 0; i < NT * 4; i++)
			red[warp][i / 4 * 8 + 2 * t + i % 2][8 * g + 2 * q +
			    i % 4 / 2] = acc[q][i / 4][i % 4];
	__syncthreads();
	for (o = threadIdx.x; o < floats; o += THREADS) {
		float s = 0;

#pragma unroll
		for (int i = 0; i < WARPS; i++)
			s += red[i][o / STRIP][o % STRIP];
		if (slabs > 1)
			partial[blockIdx.y * floats + o] = s;
		else
			red[0][o / STRIP][o % STRIP] = s;
	}
	if (slabs > 1 && !last_block(p.counters + blockIdx.x, slabs))
		return;
	for (o = threadIdx.x; o < floats; o += THREADS) {
		int64_t c = (int64_t)blockIdx.x * STRIP + o % STRIP;
		float s = slabs > 1 ? slab_sum(partial + o, slabs, floats) :
		    red[0][o / STRIP][o % STRIP];

		if (c < p.width)
			p.dw[c * p.at_column + o / STRIP * p.at_few] +=
			    p.alpha * s;
	}
}

/* ---- any product: 64 x 64 by 16, 4 x 4 a thread */

/* y[m,n] = alpha * sum a(i,l) b(j,l) + bias + residual, by strides */
struct general_product {
	int64_t m, n, depth;
	int64_t ai, al, bj, bl;
	const float *bias;
	float alpha;
};

/* The piece at (i, l) of a matrix of rows x depth, zeros outside. */
template<typename T>
static __device__ void
stage_tile(float (*s)[TILE + 4], const T *a, int64_t i0, int64_t l0,
    int64_t rows, int64_t depth, int64_t ai, int64_t al)
{
	for (int o = threadIdx.x; o < TILE * TILE_K; o += THREADS) {
		int i = al == 1 ? o / TILE_K : o % TILE;
		int l = al == 1 ? o % TILE_K : o / TILE;

		s[l][i] = i0 + i < rows && l0 + l < depth ?
		    cuda_load(a + (i0 + i) * ai + (l0 + l) * al) : 0;
	}
}

template<typename TI, typename TO>
static __global__ void __launch_bounds__(THREADS)
general(TO *y, const TI *a, const TI *b, const TO *residual,
    general_product p)
{
	__shared__ float as[TILE_K][TILE + 4], bs[TILE_K][TILE + 4];
	int ti = threadIdx.x / 16 * 4, tj = threadIdx.x % 16 * 4;
	int64_t i0 = (int64_t)blockIdx.x * TILE;
	int64_t j0 = (int64_t)blockIdx.y * TILE, l0;
	float acc[4][4] = {};

	for (l0 = 0; l0 < p.depth; l0 += TILE_K) {
		stage_tile(as, a, i0, l0, p.m, p.depth, p.ai, p.al);
		stage_tile(bs, b, j0, l0, p.n, p.depth, p.bj, p.bl);
		__syncthreads();
#pragma unroll
		for (int l = 0; l < TILE_K; l++)
#pragma unroll
			for (int i = 0; i < 16; i++)
				acc[i / 4][i % 4] += as[l][ti + i / 4] *
				    bs[l][tj + i % 4];
		__syncthreads();
	}
#pragma unroll
	for (int o = 0; o < 16; o++) {
		int64_t i = i0 + ti + o / 4, j = j0 + tj + o % 4;
		float v = p.alpha * acc[o / 4][o % 4];

		if (i >= p.m || j >= p.n)
			continue;
		if (p.bias != NULL)
			v += p.bias[j];
		if (residual != NULL)
			v += cuda_load(residual + i * p.n + j);
		cuda_store(y + i * p.n + j, v);
	}
}

/* ---- column sums, for the gradient of the bias */

template<typename T, int VEC>
static __device__ __forceinline__ void
add_vector(float *s, const T *x)
{
	struct __align__(sizeof(T) * VEC) vector { T v[VEC]; };
	vector v = *(const vector *)x;

#pragma unroll
	for (int i = 0; i < VEC; i++)
		s[i] += cuda_load(&v.v[i]);
}

/*
 * db[n] += alpha * sum over m of dy[m,n].  A block has 8 VEC columns and one
 * slab of rows, of which a thread takes every 32nd.
 */
template<typename T, int VEC>
static __global__ void __launch_bounds__(THREADS)
column_sums(float *db, const T *dy, int64_t m, int64_t n, int64_t rows,
    float alpha, float *partial, unsigned *counters)
{
	enum { COLS = 8 * VEC, LINES = THREADS / 8 };
	__shared__ float red[LINES][COLS + 1];
	int lane = threadIdx.x % 8, line = threadIdx.x / 8, c = threadIdx.x;
	int slabs = gridDim.y;
	int64_t at = (int64_t)blockIdx.x * COLS, col = at + lane * VEC;
	int64_t from = blockIdx.y * rows, r;
	int64_t to = from + rows < m ? from + rows : m;
	float s[VEC] = {}, sum = 0;

	if (col < n)
#pragma unroll 4
		for (r = from + line; r < to; r += LINES)
			add_vector<T, VEC>(s, dy + r * n + col);
#pragma unroll
	for (int i = 0; i < VEC; i++)
		red[line][lane * VEC + i] = s[i];
	__syncthreads();
	if (c < COLS)
		for (int i = 0; i < LINES; i++)
			sum += red[i][c];
	partial += blockIdx.x * slabs * (int64_t)COLS;
	if (slabs > 1) {
		if (c < COLS)
			partial[blockIdx.y * COLS + c] = sum;
		if (!last_block(counters + blockIdx.x, slabs))
			return;
		if (c < COLS)
			sum = slab_sum(partial + c, slabs, COLS);
	}
	if (c < COLS && at + c < n)
		db[at + c] += alpha * sum;
}

/* ---- cuBLASLt's part */

static __global__ void
round_bias(bf16 *to, const float *from, int64_t n)
{
	int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

	if (i < n)
		to[i] = __float2bfloat16_rn(from[i]);
}

/* What an algorithm is chosen for; hashed and compared as bytes. */
struct key {
	int64_t m, n, k;
	int32_t pass, dt, bias, add, align;
	int32_t zero;
};

/*
 * One chosen algorithm and its descriptors.  Where cuBLASLt takes no f32 bias
 * for a bf16 result, the bias is rounded to bf16 at the workspace's end.
 */
struct plan {
	struct plan *next;
	struct key key;
	int found;		/* 0: cuBLASLt has none */
	int bias_bf16;
	size_t bytes;		/* of the workspace that it may use */
	cublasLtMatmulDescOpaque_t desc;
	cublasLtMatrixLayoutOpaque_t a, b, d;
	cublasLtMatmulAlgo_t algo;
};

struct cuda_linear {
	struct plan *bucket[BUCKETS];
	unsigned *counters;	/* of last_block */
};

void
cuda_linear_free(struct cuda *c)
{
	struct plan *p, *next;
	int i;

	if (c->linear == NULL)
		return;
	for (i = 0; i < BUCKETS; i++)
		for (p = c->linear->bucket[i]; p != NULL; p = next) {
			next = p->next;
			free(p);
		}
	cudaFree(c->linear->counters);
	free(c->linear);
	c->linear = NULL;
}

/* c->linear on first use: at the latest by *_scratch_bytes, never in a graph */
static int
linear_state(struct cuda *c, const char *what)
{
	size_t bytes = COUNTERS * sizeof(unsigned);
	unsigned *counters = NULL;
	int rc;

	if (c->linear != NULL)
		return 0;
	if (c->capturing)
		return cuda_fail(c, LPO_EINVAL, what,
		    "first used while a graph is recorded");
	if ((rc = cuda_check(c, cudaMalloc(&counters, bytes), what)) < 0)
		return rc;
	rc = cuda_check(c, cudaMemsetAsync(counters, 0, bytes, c->stream),
	    what);
	if (rc == 0 && (c->linear = (struct cuda_linear *)calloc(1,
	    sizeof(*c->linear))) == NULL)
		rc = cuda_fail(c, LPO_ENOMEM, what, "out of memory");
	if (rc < 0) {
		cudaFree(counters);
		return rc;
	}
	c->linear->counters = counters;
	return 0;
}

/* The layouts by columns: what a row is here, a column is to cuBLASLt. */
static cublasStatus_t
lay_out(struct plan *p, cudaDataType_t td, int64_t d_rows, int64_t d_cols,
    int64_t b_rows)
{
	const struct key *k = &p->key;
	cudaDataType_t t = k->dt == LPO_BF16 ? CUDA_R_16BF : CUDA_R_32F;
	uint64_t a_cols = k->pass == LPO_BWD_WEIGHT ? k->m : k->n;
	cublasStatus_t s;

	s = cublasLtMatrixLayoutInit(&p->a, t, k->k, a_cols, k->k);
	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatrixLayoutInit(&p->b, t, b_rows, k->m, b_rows);
	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatrixLayoutInit(&p->d, td, d_rows, d_cols,
		    d_rows);
	return s;
}

/* y' = w^T x', dx' = w' dy', dw' = x' dy^T, where ' is seen by columns */
static cublasStatus_t
describe(struct plan *p)
{
	const struct key *k = &p->key;
	cudaDataType_t t = k->dt == LPO_BF16 ? CUDA_R_16BF : CUDA_R_32F;
	cublasOperation_t op = CUBLAS_OP_T;
	cublasStatus_t s;

	s = cublasLtMatmulDescInit(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	if (s != CUBLAS_STATUS_SUCCESS)
		return s;
	if (k->pass == LPO_BWD_DATA)
		return lay_out(p, t, k->k, k->m, k->n);
	if (k->pass == LPO_FWD)
		s = lay_out(p, t, k->n, k->m, k->k);
	else
		s = lay_out(p, CUDA_R_32F, k->k, k->n, k->n);
	return s != CUBLAS_STATUS_SUCCESS ? s :
	    cublasLtMatmulDescSetAttribute(&p->desc, k->pass == LPO_FWD ?
	    CUBLASLT_MATMUL_DESC_TRANSA : CUBLASLT_MATMUL_DESC_TRANSB, &op,
	    sizeof(op));
}

/*
 * Sums over pieces of the depth only in f32 and in a step of their own: in
 * place their order, and with it the bits, could change from run to run.
 */
static cublasStatus_t
prefer(cublasLtMatmulPreferenceOpaque_t *pref, size_t bytes, uint32_t align)
{
	static const cublasLtMatmulPreferenceAttributes_t each[4] = {
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
	};
	uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
	uint64_t room = bytes;
	cublasStatus_t s = cublasLtMatmulPreferenceInit(pref);
	int i;

	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatmulPreferenceSetAttribute(pref,
		    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room,
		    sizeof(room));
	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatmulPreferenceSetAttribute(pref,
		    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums,
		    sizeof(sums));
	for (i = 0; i < 4 && s == CUBLAS_STATUS_SUCCESS; i++)
		s = cublasLtMatmulPreferenceSetAttribute(pref, each[i],
		    &align, sizeof(align));
	return s;
}

/* Whether an algorithm keeps to what prefer() asked for. */
static int
acceptable(const cublasLtMatmulHeuristicResult_t *r, size_t bytes)
{
	uint32_t sums = CUBLASLT_REDUCTION_SCHEME_NONE;
	size_t got;

	return r->state == CUBLAS_STATUS_SUCCESS && r->workspaceSize <=
	    bytes && cublasLtMatmulAlgoConfigGetAttribute(&r->algo,
	    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &sums, sizeof(sums),
	    &got) == CUBLAS_STATUS_SUCCESS && (sums ==
	    CUBLASLT_REDUCTION_SCHEME_NONE || sums ==
	    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
}

static void *
rounded_bias(const struct cuda *c, const struct plan *p)
{
	return (char *)c->workspace + p->bytes;
}

/* The first acceptable algorithm of the heuristic's; none is no error. */
static cublasStatus_t
choose(struct cuda *c, struct plan *p, const float *bias)
{
	size_t reserved = p->bias_bf16 ? (size_t)(p->key.n * 2) : 0;
	cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
	int32_t type = p->bias_bf16 ? CUDA_R_16BF : CUDA_R_32F;
	cublasLtMatmulHeuristicResult_t r[ALGORITHMS];
	cublasLtMatmulPreferenceOpaque_t pref;
	const void *at = bias;
	cublasStatus_t s;
	int count = 0, i;

	p->found = 0;
	if (reserved > c->workspace_bytes)
		return CUBLAS_STATUS_SUCCESS;
	p->bytes = (c->workspace_bytes - reserved) / 256 * 256;
	if (p->bias_bf16)
		at = rounded_bias(c, p);
	s = describe(p);
	if (p->key.bias && s == CUBLAS_STATUS_SUCCESS &&
	    (s = cublasLtMatmulDescSetAttribute(&p->desc,
	    CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue))) ==
	    CUBLAS_STATUS_SUCCESS && (s = cublasLtMatmulDescSetAttribute(
	    &p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type,
	    sizeof(type))) == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatmulDescSetAttribute(&p->desc,
		    CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at, sizeof(at));
	if (s == CUBLAS_STATUS_SUCCESS)
		s = prefer(&pref, p->bytes, (uint32_t)p->key.align);
	if (s != CUBLAS_STATUS_SUCCESS)
		return s;
	s = cublasLtMatmulAlgoGetHeuristic(c->lt, &p->desc, &p->a, &p->b,
	    &p->d, &p->d, &pref, ALGORITHMS, r, &count);
	if (s == CUBLAS_STATUS_NOT_SUPPORTED || s ==
	    CUBLAS_STATUS_INVALID_VALUE || s == CUBLAS_STATUS_ARCH_MISMATCH)
		return CUBLAS_STATUS_SUCCESS;
	for (i = 0; i < count && s == CUBLAS_STATUS_SUCCESS && !p->found; i++)
		if (acceptable(&r[i], p->bytes)) {
			p->algo = r[i].algo;
			p->found = 1;
		}
	return s;
}

/* An f32 bias is asked for first, and then one of D's type. */
static cublasStatus_t
choose_any(struct cuda *c, struct plan *p, const float *bias)
{
	cublasStatus_t s;

	p->bias_bf16 = 0;
	s = choose(c, p, bias);
	if (s != CUBLAS_STATUS_SUCCESS || p->found || !p->key.bias ||
	    p->key.dt != LPO_BF16)
		return s;
	p->bias_bf16 = 1;
	return choose(c, p, bias);
}

static uint32_t
hash(const struct key *key)
{
	const unsigned char *b = (const unsigned char *)key;
	uint32_t h = 2166136261u;
	size_t i;

	for (i = 0; i < sizeof(*key); i++)
		h = (h ^ b[i]) * 16777619u;
	return h;
}

/*
 * The plan of a kind of call, made when first asked for.  That asks nothing
 * of the device, so that it may be done while a graph is recorded.
 */
static int
find_plan(struct cuda *c, struct plan **plan, const struct key *key,
    const float *bias, const char *what)
{
	struct plan **at = &c->linear->bucket[hash(key) % BUCKETS], *p;
	int rc;

	for (p = *at; p != NULL; p = p->next)
		if (memcmp(&p->key, key, sizeof(*key)) == 0) {
			*plan = p;
			return 0;
		}
	if ((p = (struct plan *)calloc(1, sizeof(*p))) == NULL)
		return cuda_fail(c, LPO_ENOMEM, what, "out of memory");
	p->key = *key;
	if ((rc = cuda_check_lt(c, choose_any(c, p, bias), what)) < 0) {
		free(p);
		return rc;
	}
	p->next = *at;
	*plan = *at = p;
	return 0;
}

/* The operands of a call: y = alpha a b + bias + residual. */
struct call {
	const char *what;
	struct key key;
	void *y;
	const void *x, *w, *residual;	/* x, w: as in linear_fwd */
	const float *bias;
	float alpha;
};

/* One try; what cuBLASLt does not take has no effect and may be mended. */
static cublasStatus_t
run_plan(struct cuda *c, struct plan *p, const struct call *a)
{
	const void *bias = p->bias_bf16 ? rounded_bias(c, p) : a->bias;
	float beta = a->residual != NULL;
	cublasStatus_t s;

	if (a->bias != NULL) {
		s = cublasLtMatmulDescSetAttribute(&p->desc,
		    CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias));
		if (s != CUBLAS_STATUS_SUCCESS)
			return s;
	}
	if (a->bias != NULL && p->bias_bf16)
		round_bias<<<(unsigned)((p->key.n + THREADS - 1) / THREADS),
		    THREADS, 0, c->stream>>>((bf16 *)bias, a->bias, p->key.n);
	return cublasLtMatmul(c->lt, &p->desc, &a->alpha, a->w, &p->a, a->x,
	    &p->b, &beta, a->residual != NULL ? a->residual : a->y, &p->d,
	    a->y, &p->d, &p->algo, c->workspace, p->bytes, c->stream);
}

/* 1: done, 0: not for cuBLASLt, negative: LPO_E* */
static int
run_lt(struct cuda *c, const struct call *a)
{
	struct plan *p = NULL;
	cublasStatus_t s;
	int rc;

	if ((rc = find_plan(c, &p, &a->key, a->bias, a->what)) < 0)
		return rc;
	while (p->found) {
		s = run_plan(c, p, a);
		if (s == CUBLAS_STATUS_SUCCESS) {
			rc = cuda_done(c, a->what);
			return rc < 0 ? rc : 1;
		}
		if (s != CUBLAS_STATUS_NOT_SUPPORTED &&
		    s != CUBLAS_STATUS_INVALID_VALUE)
			return cuda_check_lt(c, s, a->what);
		/* the heuristic was wrong: the other bias, or none at all */
		p->found = 0;
		if (a->bias == NULL || p->bias_bf16 || a->key.dt != LPO_BF16)
			break;
		p->bias_bf16 = 1;
		if ((rc = cuda_check_lt(c, choose(c, p, a->bias), a->what)) <
		    0)
			return rc;
	}
	return 0;
}

/* ---- which way a call goes */

/* The largest power of 2, at most 16, that all of them are multiples of. */
static int
alignment(const void *a, const void *b, const void *c, const void *d)
{
	uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c |
	    (uintptr_t)d | 16;

	return (int)(all & -all);
}

/* How many warps share the depth of 16 rows, so that all have work. */
static int
narrow_cut(const struct cuda *c, int64_t m, int64_t depth)
{
	int cut = 1;

	while (cut < WARPS && depth >= 128 * cut &&
	    m * cut < (int64_t)c->processors * 2 * WARPS * 16)
		cut *= 2;
	return cut;
}

/* 1: launched, 0: not a small product */
static int
run_small(struct cuda *c, const small_product *p)
{
	int64_t strips = (p->n + 31) / 32, blocks;
	int cut;

	if (p->n <= SMALL && p->depth % 8 == 0 && p->depth > 0 &&
	    alignment(p->x, p->wd == 1 ? p->w : NULL, NULL, NULL) == 16) {
		cut = narrow_cut(c, p->m, p->depth);
		blocks = (p->m + 16 * WARPS / cut - 1) / (16 * WARPS / cut);
		if (p->n <= 8)
			narrow<1><<<(unsigned)blocks, THREADS, 0,
			    c->stream>>>(*p, cut);
		else
			narrow<2><<<(unsigned)blocks, THREADS, 0,
			    c->stream>>>(*p, cut);
		return 1;
	}
	if (p->depth <= SMALL && p->n % 8 == 0 && p->depth > 0 &&
	    alignment(p->y, p->residual, NULL, NULL) == 16) {
		blocks = ((p->m + 63) / 64 * strips + WARPS - 1) / WARPS;
		if (p->depth % 2 == 0 && (uintptr_t)p->x % 4 == 0)
			thin<true><<<(unsigned)blocks, THREADS, 0,
			    c->stream>>>(*p, strips);
		else
			thin<false><<<(unsigned)blocks, THREADS, 0,
			    c->stream>>>(*p, strips);
		return 1;
	}
	return 0;
}

/* 1: launched, 0: neither side is small, or the other has odd columns */
static int
run_tall(struct cuda *c, const struct call *a)
{
	int64_t n = a->key.n, k = a->key.k, strips, slabs;
	tall_product p = {};

	p.dw = (float *)a->y;
	p.m = a->key.m;
	p.alpha = a->alpha;
	if (n <= SMALL && k % 8 == 0) {
		p.x = (const bf16 *)a->w;
		p.s = (const bf16 *)a->x;
		p.width = k;
		p.few = (int)n;
		p.at_column = 1;
		p.at_few = k;
	} else if (k <= SMALL && n % 8 == 0) {
		p.x = (const bf16 *)a->x;
		p.s = (const bf16 *)a->w;
		p.width = n;
		p.few = (int)k;
		p.at_column = k;
		p.at_few = 1;
	} else {
		return 0;
	}
	if (alignment(p.x, NULL, NULL, NULL) < 16)
		return 0;
	strips = (p.width + STRIP - 1) / STRIP;
	p.rows = slab_rows(c, p.m, strips, p.few * STRIP);
	slabs = (p.m + p.rows - 1) / p.rows;
	p.partial = (float *)c->workspace;
	p.counters = c->linear->counters;
	if (p.few <= 8)
		tall<1><<<dim3((unsigned)strips, (unsigned)slabs), THREADS, 0,
		    c->stream>>>(p);
	else
		tall<2><<<dim3((unsigned)strips, (unsigned)slabs), THREADS, 0,
		    c->stream>>>(p);
	return 1;
}

template<typename TI, typename TO>
static int
run_general(struct cuda *c, const struct call *a)
{
	int64_t m = a->key.m, n = a->key.n, k = a->key.k;
	general_product p = { m, n, k, k, 1, k, 1, a->bias, a->alpha };

	if (a->key.pass == LPO_BWD_DATA)
		p = { m, k, n, n, 1, 1, k, NULL, a->alpha };
	else if (a->key.pass == LPO_BWD_WEIGHT)
		p = { n, k, m, 1, n, 1, k, NULL, a->alpha };
	general<TI, TO><<<dim3((unsigned)((p.m + TILE - 1) / TILE),
	    (unsigned)((p.n + TILE - 1) / TILE)), THREADS, 0, c->stream>>>(
	    (TO *)a->y, (const TI *)a->x, (const TI *)a->w,
	    (const TO *)a->residual, p);
	return cuda_done(c, a->what);
}

static struct call
make_call(const char *what, enum lpo_pass pass, enum lpo_dtype dt, int64_t m,
    int64_t n, int64_t k, float alpha)
{
	struct call a;

	memset(&a, 0, sizeof(a));
	a.what = what;
	a.key.m = m;
	a.key.n = n;
	a.key.k = k;
	a.key.pass = pass;
	a.key.dt = dt;
	a.alpha = alpha;
	return a;
}

/* By cuBLASLt, else by the kernel that takes anything. */
static int
run_any(struct cuda *c, struct call *a)
{
	int rc = 0;

	a->key.bias = a->bias != NULL;
	a->key.add = a->residual != NULL;
	a->key.align = alignment(a->y, a->x, a->w, a->residual);
	if (alignment(a->bias, NULL, NULL, NULL) < a->key.align)
		a->key.align = alignment(a->bias, NULL, NULL, NULL);
	/* no depth at all: y is bias + residual */
	if (a->key.m > 0 && a->key.n > 0 && a->key.k > 0)
		rc = run_lt(c, a);
	if (rc != 0)
		return rc < 0 ? rc : 0;
	if (a->key.dt == LPO_F32)
		return run_general<float, float>(c, a);
	return a->key.pass == LPO_BWD_WEIGHT ?
	    run_general<bf16, float>(c, a) : run_general<bf16, bf16>(c, a);
}

int
cuda_linear_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual, int64_t m,
    int64_t n, int64_t k, float alpha, void *scratch)
{
	struct call a = make_call("linear_fwd", LPO_FWD, dt, m, n, k, alpha);
	struct cuda *c = cuda_of(be);
	small_product p = { (bf16 *)y, (const bf16 *)x, (const bf16 *)w,
	    (const bf16 *)residual, bias, m, n, k, k, 1, alpha };
	int rc;

	(void)scratch;
	if (m == 0 || n == 0)
		return 0;
	if ((rc = linear_state(c, a.what)) < 0)
		return rc;
	if (dt == LPO_BF16 && run_small(c, &p))
		return cuda_done(c, a.what);
	a.y = y;
	a.x = x;
	a.w = w;
	a.bias = bias;
	a.residual = residual;
	return run_any(c, &a);
}

int
cuda_linear_bwd_data(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
    float alpha, int add, void *scratch)
{
	struct call a = make_call("linear_bwd_data", LPO_BWD_DATA, dt, m, n,
	    k, alpha);
	struct cuda *c = cuda_of(be);
	small_product p = { (bf16 *)dx, (const bf16 *)dy, (const bf16 *)w,
	    add ? (const bf16 *)dx : NULL, NULL, m, k, n, 1, k, alpha };
	int rc;

	(void)scratch;
	if (dx == NULL || m == 0 || k == 0)
		return 0;
	if ((rc = linear_state(c, a.what)) < 0)
		return rc;
	if (dt == LPO_BF16 && run_small(c, &p))
		return cuda_done(c, a.what);
	a.y = dx;
	a.x = dy;
	a.w = w;
	a.residual = add ? dx : NULL;
	return run_any(c, &a);
}

template<typename T, int VEC>
static int
run_column_sums(struct cuda *c, float *db, const void *dy, int64_t m,
    int64_t n, float alpha, const char *what)
{
	int64_t strips = (n + 8 * VEC - 1) / (8 * VEC);
	int64_t rows = slab_rows(c, m, strips, 8 * VEC);

	column_sums<T, VEC><<<dim3((unsigned)strips, (unsigned)((m + rows -
	    1) / rows)), THREADS, 0, c->stream>>>(db, (const T *)dy, m, n,
	    rows, alpha, (float *)c->workspace, c->linear->counters);
	return cuda_done(c, what);
}

static int
bias_gradient(struct cuda *c, enum lpo_dtype dt, float *db, const void *dy,
    int64_t m, int64_t n, float alpha, const char *what)
{
	bool aligned = (uintptr_t)dy % 16 == 0;

	if (dt == LPO_F32)
		return aligned && n % 4 == 0 ?
		    run_column_sums<float, 4>(c, db, dy, m, n, alpha, what) :
		    run_column_sums<float, 1>(c, db, dy, m, n, alpha, what);
	return aligned && n % 8 == 0 ?
	    run_column_sums<bf16, 8>(c, db, dy, m, n, alpha, what) :
	    run_column_sums<bf16, 1>(c, db, dy, m, n, alpha, what);
}

int
cuda_linear_bwd_weight(lpo_backend *be, enum lpo_dtype dt, float *dw,
    float *db, const void *dy, const void *x, int64_t m, int64_t n, int64_t k,
    float alpha, int64_t groups, void *scratch)
{
	struct call a = make_call("linear_bwd_weight", LPO_BWD_WEIGHT, dt, m,
	    n, k, alpha);
	struct cuda *c = cuda_of(be);
	int rc = 0;

	(void)scratch;
	if (groups < 1 || m % groups != 0)
		return cuda_fail(c, LPO_EINVAL, a.what, "groups of rows");
	if (m == 0 || n == 0)
		return 0;
	if ((rc = linear_state(c, a.what)) < 0)
		return rc;
	a.y = dw;
	a.x = dy;
	a.w = x;
	a.residual = dw;
	if (dw != NULL && k > 0)
		rc = dt == LPO_BF16 && run_tall(c, &a) ?
		    cuda_done(c, a.what) : run_any(c, &a);
	if (rc == 0 && db != NULL)
		rc = bias_gradient(c, dt, db, dy, m, n, alpha, a.what);
	return rc;
}

/* None: the workspace serves.  What a call needs beside it is made here. */
size_t
cuda_linear_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t m, int64_t n, int64_t k, int64_t groups)
{
	(void)pass;
	(void)dt;
	(void)m;
	(void)n;
	(void)k;
	(void)groups;
	linear_state(cuda_of(be), "linear_scratch_bytes");
	return 0;
}
