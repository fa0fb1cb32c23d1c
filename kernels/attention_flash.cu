/*
 * Flash attention, forward: o = softmax(q k^T d^-1/2 + mask) v.
 * A CTA owns one row, head and block of queries; keys stream past in blocks
 * with the running maximum m and sum l of each query (in powers of two;
 * c = d^-1/2 log2 e):
 *	m' = max(m, max s c),  p = 2^(s c - m'),  a = 2^(m - m')
 *	l = a l + sum p,  o = a o + p v
 * One kernel on bf16 tensor cores (d a multiple of 8 up to 160, 16-byte
 * aligned rows), one with f32 fma for all the rest.  No value depends on
 * another CTA's, so the bits depend on the row alone.
 *
 * While all keys so far weigh 0 (m is -Inf), 0 stands in for m, because
 * -Inf - -Inf is NaN; a query with no other keys ends as 0 / 0.  NaN in a
 * score is passed over by max and comes through in p.
 */
#include "kernels/attention_flash.h"

#define LOG2E	1.44269504088896341f
#define LN2	0.693147180559945309f

/* What both kernels are told. */
struct flash {
	int64_t lq, lk, ldq, ldk, ldo;
	int64_t blocks;		/* of queries */
	int64_t shared;		/* rows of q that share one of k and v */
	int heads, d, causal;
	int slabs;		/* of output channels */
	float c;		/* d^-1/2 log2 e */
};

/* Where a CTA is. */
struct place {
	int64_t q0, q, kv, o, lse;	/* first query, element offsets */
	int64_t keys;			/* that its queries can see */
	int slab;
};

static __device__ __forceinline__ struct place
place_of(const struct flash &f, int rows)
{
	int64_t u = blockIdx.x, i, h;
	struct place p;

	p.q0 = u % f.blocks * rows;
	u /= f.blocks;
	p.slab = (int)(u % f.slabs);
	u /= f.slabs;
	h = u % f.heads;
	i = u / f.heads;
	p.q = (i * f.lq + p.q0) * f.ldq + h * f.d;
	p.kv = i / f.shared * f.lk * f.ldk + h * f.d;
	p.o = (i * f.lq + p.q0) * f.ldo + h * f.d;
	p.lse = (i * f.heads + h) * f.lq + p.q0;
	p.keys = f.causal && p.q0 + rows < f.lk ? p.q0 + rows : f.lk;
	return p;
}

/* ---- bf16 on tensor cores */

/*
 * mma.m16n8k16, lane = 4 g + t (g 0..7, t 0..3), each register two bf16 of
 * neighbouring columns (A: along k, B: along k), lower half first:
 *	A 16x16	a0 (g, 2t)  a1 (g+8, 2t)  a2 (g, 2t+8)  a3 (g+8, 2t+8)
 *	B 16x8	b0 (k 2t, n g)  b1 (k 2t+8, n g)
 *	C 16x8	c0 (g, 2t)  c1 (g, 2t+1)  c2 (g+8, 2t)  c3 (g+8, 2t+1)
 * Two neighbouring C tiles of S, packed, are the A of P V as they stand.
 * ldmatrix gives each lane (row g, columns 2t, 2t+1) of an 8x8 tile, .trans
 * (rows 2t, 2t+1, column g); lanes 8 j .. 8 j + 7 hold the addresses of the
 * rows of tile j.
 */
static __device__ __forceinline__ void
mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void
load_tiles(uint32_t r[4], const __nv_bfloat16 *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
	    "{%0,%1,%2,%3}, [%4];\n"
	    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
	    : "r"((uint32_t)__cvta_generic_to_shared(p)) : "memory");
}

static __device__ __forceinline__ void
load_tiles_trans(uint32_t r[4], const __nv_bfloat16 *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
	    "{%0,%1,%2,%3}, [%4];\n"
	    : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
	    : "r"((uint32_t)__cvta_generic_to_shared(p)) : "memory");
}

/* 16 bytes to shared memory, zeros where not wanted (src is not read then) */
static __device__ __forceinline__ void
copy16(__nv_bfloat16 *dst, const __nv_bfloat16 *src, int wanted)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n"
	    :: "r"((uint32_t)__cvta_generic_to_shared(dst)), "l"(src),
	    "r"(wanted ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void
copies_end(void)
{
	asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* All groups of copies but the last `but` have arrived (this thread's). */
template <int but>
static __device__ __forceinline__ void
copies_wait(void)
{
	asm volatile("cp.async.wait_group %0;\n" :: "n"(but) : "memory");
}

static __device__ __forceinline__ float
exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ uint32_t
pack(float low, float high)
{
	__nv_bfloat162 x = __floats2bfloat162_rn(low, high);

	return *(uint32_t *)&x;
}

/* Of the four lanes that share a row of C. */
static __device__ __forceinline__ float
quad_max(float x)
{
	x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
	return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float
quad_sum(float x)
{
	x += __shfl_xor_sync(0xffffffffu, x, 1);
	return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

enum { WARPS = 4, THREADS = 32 * WARPS };

/* Sizes of the kernel for heads of up to D channels. */
template <int D, int MT, int BK>
struct flash_sizes {
	enum {
		DK = (D + 15) / 16 * 16,	/* depth of q k^T */
		LD = DK + 8,	/* an odd number of 16 bytes: no conflicts */
		BQ = WARPS * MT * 16,
		BYTES = (BQ + 4 * BK) * LD * 2
	};
};

/* ROWS rows of a block to shared memory; zeros beyond rows and d. */
template <int D, int ROWS>
static __device__ __forceinline__ void
copy_block(__nv_bfloat16 *dst, const __nv_bfloat16 *src, int64_t ld,
    int64_t rows, int d)
{
	const int CHUNKS = (D + 15) / 16 * 2, LD = 8 * CHUNKS + 8;
	int i, r, x, wanted;

	for (i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
		r = i / CHUNKS;
		x = i % CHUNKS * 8;
		wanted = r < rows && x < d;
		copy16(dst + r * LD + x, wanted ? src + r * ld + x : src,
		    wanted);
	}
}

/* What a warp has in registers: MT tiles of 16 queries. */
template <int D, int MT, int BK>
struct warp {
	float s[MT][BK / 8][4];		/* scores, then weights, C tiles */
	float acc[MT][D / 8][4];	/* output, C tiles */
	float m[MT][2], l[MT][2];	/* of rows g and g + 8; l: own part */
};

/* s = q k^T; q: the warp's first query */
template <int D, int MT, int BK>
static __device__ __forceinline__ void
scores(struct warp<D, MT, BK> &w, const __nv_bfloat16 *q,
    const __nv_bfloat16 *k)
{
	typedef struct flash_sizes<D, MT, BK> Z;
	const int lane = threadIdx.x & 31;
	uint32_t a[MT][4], b[4];
	int i, n, x;

#pragma unroll
	for (i = 0; i < MT; i++)
#pragma unroll
		for (n = 0; n < BK / 8; n++)
			w.s[i][n][0] = w.s[i][n][1] = w.s[i][n][2] =
			    w.s[i][n][3] = 0.0f;
#pragma unroll
	for (x = 0; x < Z::DK; x += 16) {
#pragma unroll
		for (i = 0; i < MT; i++)
			load_tiles(a[i], q + (i * 16 + (lane & 15)) * Z::LD +
			    x + (lane >> 4) * 8);
#pragma unroll
		for (n = 0; n < BK / 8; n += 2) {
			load_tiles(b, k + (n * 8 + (lane & 7) +
			    (lane >> 4) * 8) * Z::LD + x + (lane >> 3 & 1) * 8);
#pragma unroll
			for (i = 0; i < MT; i++) {
				mma(w.s[i][n], a[i], b[0], b[1]);
				mma(w.s[i][n + 1], a[i], b[2], b[3]);
			}
		}
	}
}

/* s = -Inf where key k0 + column is not there or after query q0 + row */
template <int D, int MT, int BK>
static __device__ __forceinline__ void
mask(struct warp<D, MT, BK> &w, int64_t k0, int64_t q0, const struct flash &f)
{
	const int lane = threadIdx.x & 31;
	int64_t key, query;
	int i, n, e;

#pragma unroll
	for (i = 0; i < MT; i++)
#pragma unroll
		for (n = 0; n < BK / 8; n++)
#pragma unroll
			for (e = 0; e < 4; e++) {
				key = k0 + n * 8 + (lane & 3) * 2 + (e & 1);
				query = q0 + i * 16 + (lane >> 2) +
				    (e >> 1) * 8;
				if (key >= f.lk || (f.causal && key > query))
					w.s[i][n][e] = -INFINITY;
			}
}

/* s becomes p; m, l and acc move on */
template <int D, int MT, int BK>
static __device__ __forceinline__ void
soften(struct warp<D, MT, BK> &w, float c)
{
	float top, sum, ref, was;
	int i, n, e, x;

#pragma unroll
	for (i = 0; i < MT; i++)
#pragma unroll
		for (e = 0; e < 2; e++) {
			top = -INFINITY;
#pragma unroll
			for (n = 0; n < BK / 8; n++)
				top = fmaxf(top, fmaxf(w.s[i][n][2 * e],
				    w.s[i][n][2 * e + 1]));
			top = fmaxf(w.m[i][e], quad_max(top) * c);
			ref = top == -INFINITY ? 0.0f : top;
			was = exp2_fast(w.m[i][e] - ref);
			w.m[i][e] = top;
			sum = 0.0f;
#pragma unroll
			for (n = 0; n < BK / 8; n++)
#pragma unroll
				for (x = 2 * e; x < 2 * e + 2; x++) {
					w.s[i][n][x] = exp2_fast(fmaf(
					    w.s[i][n][x], c, -ref));
					sum += w.s[i][n][x];
				}
			w.l[i][e] = fmaf(w.l[i][e], was, sum);
#pragma unroll
			for (n = 0; n < D / 8; n++) {
				w.acc[i][n][2 * e] *= was;
				w.acc[i][n][2 * e + 1] *= was;
			}
		}
}

/* acc += p v */
template <int D, int MT, int BK>
static __device__ __forceinline__ void
weigh(struct warp<D, MT, BK> &w, const __nv_bfloat16 *v)
{
	typedef struct flash_sizes<D, MT, BK> Z;
	const int lane = threadIdx.x & 31;
	uint32_t a[MT][4], b[4];
	int i, n, x;

#pragma unroll
	for (x = 0; x < BK / 8; x += 2) {
#pragma unroll
		for (i = 0; i < MT; i++) {
			a[i][0] = pack(w.s[i][x][0], w.s[i][x][1]);
			a[i][1] = pack(w.s[i][x][2], w.s[i][x][3]);
			a[i][2] = pack(w.s[i][x + 1][0], w.s[i][x + 1][1]);
			a[i][3] = pack(w.s[i][x + 1][2], w.s[i][x + 1][3]);
		}
#pragma unroll
		for (n = 0; n < D / 8; n += 2) {
			load_tiles_trans(b, v + (x * 8 + (lane & 15)) * Z::LD +
			    n * 8 + (lane >> 4) * 8);
#pragma unroll
			for (i = 0; i < MT; i++) {
				mma(w.acc[i][n], a[i], b[0], b[1]);
				/* D may be an odd number of tiles */
				if (n + 1 < D / 8)
					mma(w.acc[i][n + 1 < D / 8 ? n + 1 : n],
					    a[i], b[2], b[3]);
			}
		}
	}
}

/* K and V blocks of BK keys are fetched one ahead. */
template <int D, int MT, int BK>
static __global__ void __launch_bounds__(THREADS, 2)
flash_bf16(__nv_bfloat16 *__restrict__ o, float *__restrict__ lse,
    const __nv_bfloat16 *__restrict__ q, const __nv_bfloat16 *__restrict__ k,
    const __nv_bfloat16 *__restrict__ v, const struct flash f)
{
	typedef struct flash_sizes<D, MT, BK> Z;
	const int LD = Z::LD, BLOCK = BK * Z::LD;
	extern __shared__ __align__(16) unsigned char room[];
	__nv_bfloat16 *qs = (__nv_bfloat16 *)room, *ks = qs + Z::BQ * LD;
	__nv_bfloat16 *vs = ks + 2 * BLOCK;
	const struct place at = place_of(f, Z::BQ);
	const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
	const int w0 = (threadIdx.x >> 5) * MT * 16;	/* the warp's first */
	const int64_t steps = (at.keys + BK - 1) / BK;
	struct warp<D, MT, BK> w;
	int64_t j, next;
	int i, n, e;

#pragma unroll
	for (i = 0; i < MT; i++) {
		w.m[i][0] = w.m[i][1] = -INFINITY;
		w.l[i][0] = w.l[i][1] = 0.0f;
#pragma unroll
		for (n = 0; n < D / 8; n++)
			w.acc[i][n][0] = w.acc[i][n][1] = w.acc[i][n][2] =
			    w.acc[i][n][3] = 0.0f;
	}
	k += at.kv;
	v += at.kv;
	copy_block<D, Z::BQ>(qs, q + at.q, f.ldq, f.lq - at.q0, f.d);
	copy_block<D, BK>(ks, k, f.ldk, f.lk, f.d);
	copy_block<D, BK>(vs, v, f.ldk, f.lk, f.d);
	copies_end();
	for (j = 0; j < steps; j++) {
		const int from = (int)(j & 1) * BLOCK, to = BLOCK - from;

		next = (j + 1) * BK;
		if (j + 1 < steps) {
			copy_block<D, BK>(ks + to, k + next * f.ldk, f.ldk,
			    f.lk - next, f.d);
			copy_block<D, BK>(vs + to, v + next * f.ldk, f.ldk,
			    f.lk - next, f.d);
		}
		copies_end();
		copies_wait<1>();
		__syncthreads();
		scores(w, qs + w0 * LD, ks + from);
		if (next > f.lk || (f.causal && next > at.q0 + w0 + 1))
			mask(w, next - BK, at.q0 + w0, f);
		soften(w, f.c);
		weigh(w, vs + from);
		__syncthreads();
	}
#pragma unroll
	for (i = 0; i < MT; i++)
#pragma unroll
		for (e = 0; e < 2; e++) {
			const int row = w0 + i * 16 + g + e * 8;
			const float sum = quad_sum(w.l[i][e]), r = 1.0f / sum;
			__nv_bfloat16 *y = o + at.o + row * f.ldo + 2 * t;

			if (at.q0 + row >= f.lq)
				continue;
#pragma unroll
			for (n = 0; n < D / 8; n++)
				if (n * 8 < f.d)
					*(uint32_t *)(y + n * 8) = pack(
					    w.acc[i][n][2 * e] * r,
					    w.acc[i][n][2 * e + 1] * r);
			if (lse != NULL && t == 0)
				lse[at.lse + row] = (w.m[i][e] + log2f(sum)) *
				    LN2;
		}
}

/* ---- f32 fma: any type, alignment and width */

/*
 * 16 x 16 threads; thread (y, x) has queries R y .. R y + R - 1, keys
 * x + 16 j of a block and output channels x + 16 j of a slab of 16 NC.
 */
template <int R, int NC>
struct plain_sizes {
	enum {
		BQ = 16 * R,
		BK = 64,
		DC = 16,		/* channels of q and k at a time */
		LQ = BQ + 4,		/* 4: fewer conflicts, still 16 bytes */
		LK = BK + 4,
		VK = NC > 10 ? 16 : 32,	/* keys of v at a time */
		W = 16 * NC,
		BYTES = (DC * LQ + DC * LK + BK * LQ + VK * W) * 4
	};
};

/* R consecutive floats, 16-byte aligned */
template <int R>
static __device__ __forceinline__ void
load_vector(float y[R], const float *x)
{
	int i;

#pragma unroll
	for (i = 0; i < R; i += 4)
		*(float4 *)(y + i) = *(const float4 *)(x + i);
}

/* dst[channel][row] = rows of src, zeros beyond rows and channels */
template <int ROWS, int DC, int LD, typename T>
static __device__ __forceinline__ void
load_across(float *dst, const T *src, int64_t ld, int64_t rows, int channels)
{
	int i, r, x;

	for (i = threadIdx.x; i < ROWS * DC; i += 256) {
		r = i / DC;
		x = i % DC;
		dst[x * LD + r] = r < rows && x < channels ?
		    cuda_load(src + r * ld + x) : 0.0f;
	}
}

static __device__ __forceinline__ float
row_max(float x)
{
	int i;

#pragma unroll
	for (i = 1; i < 16; i *= 2)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}

static __device__ __forceinline__ float
row_sum(float x)
{
	int i;

#pragma unroll
	for (i = 1; i < 16; i *= 2)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	return x;
}

template <typename T, int R, int NC>
static __global__ void __launch_bounds__(256, NC <= 5 ? 2 : 1)
flash_plain(T *__restrict__ o, float *__restrict__ lse,
    const T *__restrict__ q, const T *__restrict__ k,
    const T *__restrict__ v, const struct flash f)
{
	typedef struct plain_sizes<R, NC> Z;
	extern __shared__ __align__(16) unsigned char room[];
	float *qs = (float *)room;		/* [DC][LQ] */
	float *ks = qs + Z::DC * Z::LQ;		/* [DC][LK] */
	float *ps = ks + Z::DC * Z::LK;		/* [BK][LQ] */
	float *vs = ps + Z::BK * Z::LQ;		/* [VK][W] */
	const struct place at = place_of(f, Z::BQ);
	const int x = threadIdx.x & 15, y = (threadIdx.x >> 4) * R;
	const int first = at.slab * Z::W, width = f.d - first;
	float s[R][4], acc[R][NC], m[R], l[R], a[R], b;
	int64_t k0;
	int i, j, p, d0, v0;

#pragma unroll
	for (i = 0; i < R; i++) {
		m[i] = -INFINITY;
		l[i] = 0.0f;
#pragma unroll
		for (j = 0; j < NC; j++)
			acc[i][j] = 0.0f;
	}
	q += at.q;
	k += at.kv;
	v += at.kv + first;
	for (k0 = 0; k0 < at.keys; k0 += Z::BK) {
		/* s = q k^T */
#pragma unroll
		for (i = 0; i < R; i++)
			s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
		for (d0 = 0; d0 < f.d; d0 += Z::DC) {
			load_across<Z::BQ, Z::DC, Z::LQ>(qs, q + d0, f.ldq,
			    f.lq - at.q0, f.d - d0);
			load_across<Z::BK, Z::DC, Z::LK>(ks, k + k0 * f.ldk +
			    d0, f.ldk, f.lk - k0, f.d - d0);
			__syncthreads();
#pragma unroll 4
			for (p = 0; p < Z::DC; p++) {
				load_vector<R>(a, qs + p * Z::LQ + y);
#pragma unroll
				for (j = 0; j < 4; j++) {
					b = ks[p * Z::LK + x + 16 * j];
#pragma unroll
					for (i = 0; i < R; i++)
						s[i][j] = fmaf(a[i], b,
						    s[i][j]);
				}
			}
			__syncthreads();
		}

		/* p = 2^(s c - m), to where all threads of the row see it */
#pragma unroll
		for (i = 0; i < R; i++) {
			float top = -INFINITY, sum = 0.0f, ref, was;

#pragma unroll
			for (j = 0; j < 4; j++) {
				int64_t key = k0 + x + 16 * j;

				s[i][j] = key >= f.lk || (f.causal &&
				    key > at.q0 + y + i) ? -INFINITY :
				    s[i][j] * f.c;
				top = fmaxf(top, s[i][j]);
			}
			top = fmaxf(m[i], row_max(top));
			ref = top == -INFINITY ? 0.0f : top;
			was = exp2f(m[i] - ref);
			m[i] = top;
#pragma unroll
			for (j = 0; j < 4; j++) {
				s[i][j] = exp2f(s[i][j] - ref);
				sum += s[i][j];
			}
			l[i] = fmaf(l[i], was, sum);
#pragma unroll
			for (j = 0; j < NC; j++)
				acc[i][j] *= was;
		}
#pragma unroll
		for (j = 0; j < 4; j++)
#pragma unroll
			for (i = 0; i < R; i += 4)
				*(float4 *)(ps + (x + 16 * j) * Z::LQ + y +
				    i) = make_float4(s[i][j], s[i + 1][j],
				    s[i + 2][j], s[i + 3][j]);

		/* acc += p v */
		for (v0 = 0; v0 < Z::BK && k0 + v0 < at.keys; v0 += Z::VK) {
			for (i = threadIdx.x; i < Z::VK * Z::W; i += 256) {
				int64_t key = k0 + v0 + i / Z::W;

				vs[i] = key < f.lk && i % Z::W < width ?
				    cuda_load(v + key * f.ldk + i % Z::W) :
				    0.0f;
			}
			__syncthreads();
#pragma unroll 4
			for (p = 0; p < Z::VK; p++) {
				load_vector<R>(a, ps + (v0 + p) * Z::LQ + y);
#pragma unroll
				for (j = 0; j < NC; j++) {
					b = vs[p * Z::W + x + 16 * j];
#pragma unroll
					for (i = 0; i < R; i++)
						acc[i][j] = fmaf(a[i], b,
						    acc[i][j]);
				}
			}
			__syncthreads();
		}
	}
#pragma unroll
	for (i = 0; i < R; i++) {
		const float sum = row_sum(l[i]), r = 1.0f / sum;

		if (at.q0 + y + i >= f.lq)
			continue;
#pragma unroll
		for (j = 0; j < NC; j++)
			if (x + 16 * j < width)
				cuda_store(o + at.o + (y + i) * f.ldo + first +
				    x + 16 * j, acc[i][j] * r);
		if (lse != NULL && x == 0 && at.slab == 0)
			lse[at.lse + y + i] = fmaf(m[i], LN2, logf(sum));
	}
}

/* ---- launches */

/* CTAs of f with `rows` queries each; 0 where there are too many. */
static unsigned
ctas(struct flash *f, int64_t n, int rows)
{
	int64_t all;

	f->blocks = (f->lq + rows - 1) / rows;
	all = f->blocks * f->slabs * f->heads * n;
	return all > INT32_MAX ? 0 : (unsigned)all;
}

template <typename K>
static int
prepare(struct cuda *cu, K kernel, unsigned grid, int bytes)
{
	if (grid == 0)
		return cuda_fail(cu, LPO_EINVAL, "attention",
		    "too many rows, heads and queries");
	return cuda_check(cu, cudaFuncSetAttribute(kernel,
	    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention");
}

template <int D, int MT, int BK>
static int
run_bf16(struct cuda *cu, void *o, float *lse, const void *q, const void *k,
    const void *v, struct flash f, int64_t n)
{
	typedef struct flash_sizes<D, MT, BK> Z;
	unsigned grid = ctas(&f, n, Z::BQ);
	int rc = prepare(cu, flash_bf16<D, MT, BK>, grid, Z::BYTES);

	if (rc != 0)
		return rc;
	flash_bf16<D, MT, BK><<<grid, THREADS, Z::BYTES, cu->stream>>>(
	    (__nv_bfloat16 *)o, lse, (const __nv_bfloat16 *)q,
	    (const __nv_bfloat16 *)k, (const __nv_bfloat16 *)v, f);
	return cuda_done(cu, "attention");
}

template <typename T, int R, int NC>
static int
run_plain(struct cuda *cu, void *o, float *lse, const void *q, const void *k,
    const void *v, struct flash f, int64_t n)
{
	typedef struct plain_sizes<R, NC> Z;
	unsigned grid;
	int rc;

	f.slabs = (f.d + Z::W - 1) / Z::W;
	grid = ctas(&f, n, Z::BQ);
	rc = prepare(cu, flash_plain<T, R, NC>, grid, Z::BYTES);
	if (rc != 0)
		return rc;
	flash_plain<T, R, NC><<<grid, 256, Z::BYTES, cu->stream>>>((T *)o,
	    lse, (const T *)q, (const T *)k, (const T *)v, f);
	return cuda_done(cu, "attention");
}

template <typename T>
static int
plain(struct cuda *cu, void *o, float *lse, const void *q, const void *k,
    const void *v, const struct flash &f, int64_t n)
{
	if (f.d <= 48)
		return run_plain<T, 8, 3>(cu, o, lse, q, k, v, f, n);
	if (f.d <= 64)
		return run_plain<T, 8, 4>(cu, o, lse, q, k, v, f, n);
	if (f.d <= 80)
		return run_plain<T, 8, 5>(cu, o, lse, q, k, v, f, n);
	if (f.d <= 160)
		return run_plain<T, 8, 10>(cu, o, lse, q, k, v, f, n);
	return run_plain<T, 4, 32>(cu, o, lse, q, k, v, f, n);
}

/* Can copies be of 16 bytes, and stores of 4? */
static int
aligned(const void *o, const void *q, const void *k, const void *v,
    const struct flash &f)
{
	return (((uintptr_t)q | (uintptr_t)k | (uintptr_t)v) & 15) == 0 &&
	    ((uintptr_t)o & 3) == 0 && f.d % 8 == 0 && f.ldq % 8 == 0 &&
	    f.ldk % 8 == 0;
}

int
cuda_flash_fwd(struct cuda *cu, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s)
{
	struct flash f;

	f.lq = s->lq;
	f.lk = s->lk;
	f.ldq = s->ldq;
	f.ldk = s->ldk;
	f.ldo = s->heads * s->d;
	f.blocks = 0;
	f.shared = s->n / s->nk;
	f.heads = (int)s->heads;
	f.d = (int)s->d;
	f.causal = s->causal;
	f.slabs = 1;
	f.c = LOG2E / sqrtf((float)s->d);
	if (dt == LPO_F32)
		return plain<float>(cu, o, lse, q, k, v, f, s->n);
	if (f.d > 160 || !aligned(o, q, k, v, f))
		return plain<__nv_bfloat16>(cu, o, lse, q, k, v, f, s->n);
	if (f.d <= 40)
		return run_bf16<40, 2, 64>(cu, o, lse, q, k, v, f, s->n);
	if (f.d <= 64)
		return run_bf16<64, 2, 64>(cu, o, lse, q, k, v, f, s->n);
	if (f.d <= 80)
		return run_bf16<80, 2, 64>(cu, o, lse, q, k, v, f, s->n);
	if (f.d <= 128)
		return run_bf16<128, 1, 32>(cu, o, lse, q, k, v, f, s->n);
	return run_bf16<160, 1, 32>(cu, o, lse, q, k, v, f, s->n);
}
