/*
 * Products with a side of at most 16 (LoRA), bf16: bound by memory, so each
 * is one launch that reads the large side once.  Tensor cores do the sums,
 * and any order of the depth serves them, so that lanes load 16 bytes each.
 */
#include "kernels/linear.h"

enum {
	THREADS = LINEAR_THREADS,
	WARPS = THREADS / 32,
	SMALL = 16,		/* the largest small side */
	DEPTH = 1024,		/* of the weights that a block keeps */
	DEPTH_LD = DEPTH + 32,	/* 16 words off a multiple of 32 banks */
	STRIP = 64		/* columns of a block of `tall` */
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
	float v[8] = { cuda_low(r.x), cuda_high(r.x), cuda_low(r.y),
	    cuda_high(r.y), cuda_low(r.z), cuda_high(r.z), cuda_low(r.w),
	    cuda_high(r.w) };

#pragma unroll
	for (int i = 0; i < 8; i++)
		v[i] += alpha * acc[i / 2][half * 2 + i % 2] + bias[i];
	return make_uint4(cuda_two(v[0], v[1]), cuda_two(v[2], v[3]),
	    cuda_two(v[4], v[5]), cuda_two(v[6], v[7]));
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

/* ---- which kernel */

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
int
cuda_linear_small(struct cuda *c, const struct small_product *p)
{
	int64_t strips = (p->n + 31) / 32, blocks;
	int cut;

	if (p->n <= SMALL && p->depth % 8 == 0 && p->depth > 0 &&
	    cuda_alignment(p->x, p->wd == 1 ? p->w : NULL, NULL, NULL) == 16) {
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
	    cuda_alignment(p->y, p->residual, NULL, NULL) == 16) {
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
int
cuda_linear_tall(struct cuda *c, const struct call *a, unsigned *counters)
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
	if (cuda_alignment(p.x, NULL, NULL, NULL) < 16)
		return 0;
	strips = (p.width + STRIP - 1) / STRIP;
	p.rows = slab_rows(c, p.m, strips, p.few * STRIP);
	slabs = (p.m + p.rows - 1) / p.rows;
	p.partial = (float *)c->workspace;
	p.counters = counters;
	if (p.few <= 8)
		tall<1><<<dim3((unsigned)strips, (unsigned)slabs), THREADS, 0,
		    c->stream>>>(p);
	else
		tall<2><<<dim3((unsigned)strips, (unsigned)slabs), THREADS, 0,
		    c->stream>>>(p);
	return 1;
}
