/*
 * y[m,n] = alpha a[m,k] b[n,k]^T + bias + residual in bf16 on sm_90, a linear
 * layer or a convolution, by the tensor core instruction of four warps
 * (wgmma) from shared memory that the copy engine (TMA) fills.
 *
 * One block per processor takes tile after tile of y.  One thread of it has
 * the operands' tiles, 64 deep, copied into a ring of stages; two groups of
 * four warps multiply what has come, each its own tiles in turns: one stores
 * while the other multiplies.
 *
 * A convolution is the sum over its taps of products of shifted images: the
 * 128 pixels of a tile are a box of the tensor [n, h, w, c], and what the box
 * has outside of the image is zeros.
 *
 * Shared memory.  A tile of a or of b is rows of 64 elements (128 bytes),
 * 16-byte chunk j of row i at place j ^ (i % 8) ("128-byte swizzle"); 8 rows
 * are 1024 bytes, the descriptor's stride, and 16 elements further along k
 * are 32 bytes further.
 *
 * Sums over k are in order, f32, and rounded once.
 */
#include <string.h>

#include <cuda.h>

#include "kernels/matmul_sm90.h"

typedef __nv_bfloat16 bf16;

enum {
	GROUP = 128,		/* threads of four warps */
	THREADS = 3 * GROUP,	/* the copying group and two that multiply */
	BLOCKS = 2,		/* of 64 rows, in a tile */
	LOG_ROWS = 7,
	ROWS = 1 << LOG_ROWS,
	DEPTH = 64,		/* of a stage */
	ROW_BYTES = DEPTH * 2,
	SHARED_BYTES = 227 * 1024,
	PIECE_BYTES = 16 * 32 * 2,	/* two per warp that multiplies */
	PIECES_BYTES = 8 * 2 * PIECE_BYTES,
	MAX_STAGES = 8
};

/* What the kernel is told of a product. */
struct product {
	bf16 *y;
	const bf16 *residual;
	const float *bias;
	float alpha;
	int n;			/* columns of y */
	int tiles_n, tiles;	/* columns of tiles, and tiles */
	int tiles_w, tiles_h;	/* tiles of a row, rows of tiles */
	int log_w, log_h;	/* of a tile's box; the rest is images */
	int w, h, images;	/* y's pixels */
	int kh, kw, runs;	/* taps, and steps of DEPTH in each */
	/* tap i of pixel q is at q * stride + i + off */
	int stride, off_h, off_w;
};

/* What a block holds in shared memory for tiles of N columns */
template<int N>
struct tiling {
	static constexpr int a_bytes = ROWS * ROW_BYTES;
	static constexpr int stage_bytes = a_bytes + N * ROW_BYTES;
	/* 1024 for alignment, and the barriers */
	static constexpr int fit = (SHARED_BYTES - PIECES_BYTES - 2048) /
	    stage_bytes;
	static constexpr int stages = fit < MAX_STAGES ? fit : MAX_STAGES;
	static constexpr int shared_bytes = stages * stage_bytes +
	    PIECES_BYTES + 1024;
};

/* Other devices get an empty kernel, which is never launched there. */
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER
#endif

#ifdef HOPPER
/* ---- the instructions */

static __device__ __forceinline__ uint32_t
shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void
barrier_init(uint64_t *bar, int count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
	    :: "r"(shared_address(bar)), "r"(count) : "memory");
}

/* One arrival, after which `bytes` of copies complete the phase. */
static __device__ __forceinline__ void
barrier_expect(uint64_t *bar, int bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
	    :: "r"(shared_address(bar)), "r"(bytes) : "memory");
}

static __device__ __forceinline__ void
barrier_arrive(uint64_t *bar)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
	    :: "r"(shared_address(bar)) : "memory");
}

static __device__ __forceinline__ bool
barrier_passed(uint64_t *bar, uint32_t phase)
{
	uint32_t passed;

	asm volatile("{\n\t.reg .pred p;\n\t"
	    "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
	    "selp.u32 %0, 1, 0, p;\n\t}" : "=r"(passed)
	    : "r"(shared_address(bar)), "r"(phase) : "memory");
	return passed != 0;
}

/* Seconds without an answer are an error, not a reason to wait on. */
static __device__ __forceinline__ void
barrier_wait(uint64_t *bar, uint32_t phase)
{
	long long from;

	if (barrier_passed(bar, phase))
		return;
	from = clock64();
	while (!barrier_passed(bar, phase))
		if (clock64() - from > 1ll << 32)
			__trap();
}

/* Copies of a box at these coordinates */
static __device__ __forceinline__ void
copy4(uint32_t to, const CUtensorMap *map, uint64_t *bar, int c0, int c1,
    int c2, int c3)
{
	asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier"
	    "::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
	    :: "r"(to), "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1),
	    "r"(c2), "r"(c3) : "memory");
}

static __device__ __forceinline__ void
copy2(uint32_t to, const CUtensorMap *map, uint64_t *bar, int c0, int c1)
{
	asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier"
	    "::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
	    :: "r"(to), "l"(map), "r"(shared_address(bar)), "r"(c0), "r"(c1)
	    : "memory");
}

/*
 * Where a tile begins and its stride, in units of 16 bytes.  There is no
 * second stride, a row being as wide as the swizzle; 1 stands for it.
 */
static __device__ __forceinline__ uint64_t
descriptor(uint32_t address)
{
	return (uint64_t)((address & 0x3ffff) >> 4) | 1ull << 16 |
	    (uint64_t)(8 * ROW_BYTES >> 4) << 32 | 1ull << 62;
}

/* Register names of the instruction, 16 a time. */
#define NAMES0	"%0, %1, %2, %3, %4, %5, %6, %7, " \
		"%8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES1	"%16, %17, %18, %19, %20, %21, %22, %23, " \
		"%24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES2	"%32, %33, %34, %35, %36, %37, %38, %39, " \
		"%40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES3	"%48, %49, %50, %51, %52, %53, %54, %55, " \
		"%56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES4	"%64, %65, %66, %67, %68, %69, %70, %71, " \
		"%72, %73, %74, %75, %76, %77, %78, %79"
#define REGS4(i)	"+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), \
			"+f"(d[i + 3])
#define REGS16(i)	REGS4(i), REGS4(i + 4), REGS4(i + 8), REGS4(i + 12)
#define REGS32		REGS16(0), REGS16(16)
#define REGS64		REGS32, REGS16(32), REGS16(48)
#define REGS80		REGS64, REGS16(64)
#define NAMES32		NAMES0 ", " NAMES1
#define NAMES64		NAMES32 ", " NAMES2 ", " NAMES3
#define NAMES80		NAMES64 ", " NAMES4
/* The operands behind the 32 to 80 registers of d are %a to %more. */
#define WGMMA(n, names, regs, a, b, more) \
	asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" #more \
	    ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16." \
	    "bf16 {" names "}, %" #a ", %" #b ", p, 1, 1, 0, 0;\n\t}" \
	    : regs : "l"(da), "l"(db), "r"(add))

/*
 * d (+)= a b: 64 rows by N columns by 16.  Lane l of warp v has of row 16 v +
 * l / 4, and in the next two of the four registers of that row + 8, columns
 * 8 i + l % 4 * 2 and the next, i being the fourth of registers.
 */
template<int N>
static __device__ __forceinline__ void
multiply(float *d, uint64_t da, uint64_t db, int add)
{
	if constexpr (N == 64)
		WGMMA(64, NAMES32, REGS32, 32, 33, 34);
	else if constexpr (N == 128)
		WGMMA(128, NAMES64, REGS64, 64, 65, 66);
	else
		WGMMA(160, NAMES80, REGS80, 80, 81, 82);
}

/* ---- the kernel */

/* The first pixel and column of a tile. */
struct place {
	int w, h, image, column;
};

static __device__ __forceinline__ struct place
place_of(const struct product &p, int tile, int n)
{
	int at = tile / p.tiles_n, row = at / p.tiles_w;
	struct place q;

	q.w = at % p.tiles_w << p.log_w;
	q.h = row % p.tiles_h << p.log_h;
	q.image = row / p.tiles_h;
	q.column = tile % p.tiles_n * n;
	return q;
}

/* Element of y where a tile begins */
static __device__ __forceinline__ int64_t
tile_offset(const struct product &p, const struct place &q, int images)
{
	return (((int64_t)q.image * images * p.h + q.h) * p.w + q.w) * p.n +
	    q.column;
}

/* Elements from there to its row r, or -1: no such pixel. */
static __device__ __forceinline__ int
row_offset(const struct product &p, const struct place &q, int images, int r)
{
	int w = r & ((1 << p.log_w) - 1);
	int h = r >> p.log_w & ((1 << p.log_h) - 1);
	int image = r >> (p.log_w + p.log_h);

	if (q.w + w >= p.w || q.h + h >= p.h || q.image * images + image >=
	    p.images)
		return -1;
	return ((image * p.h + h) * p.w + w) * p.n;
}

/* One thread: every stage of every tile of this block, in order. */
template<int N>
static __device__ void
copy_tiles(const CUtensorMap *ma, const CUtensorMap *mb,
    const struct product &p, char *ring, uint64_t *full, uint64_t *empty)
{
	typedef tiling<N> T;
	int images = ROWS >> (p.log_w + p.log_h), stage = 0, tile, i, j, r;
	uint32_t phase = 0;

	for (tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
		struct place q = place_of(p, tile, N);
		int steps = p.kh * p.kw * p.runs, step;

		i = j = r = 0;
		for (step = 0; step < steps; step++) {
			uint32_t a = shared_address(ring + stage *
			    T::stage_bytes);

			barrier_wait(&empty[stage], phase ^ 1);
			barrier_expect(&full[stage], T::stage_bytes);
			copy4(a, ma, &full[stage], r * DEPTH, q.w * p.stride +
			    j + p.off_w, q.h * p.stride + i + p.off_h,
			    q.image * images);
			copy2(a + T::a_bytes, mb, &full[stage], step * DEPTH,
			    q.column);
			if (++r == p.runs) {
				r = 0;
				if (++j == p.kw) {
					j = 0;
					i++;
				}
			}
			if (++stage == T::stages) {
				stage = 0;
				phase ^= 1;
			}
		}
	}
}

/* Four 8 x 8 matrices, lane l having the address of row l % 8 of l / 8's. */
static __device__ __forceinline__ void
store_matrices(uint32_t to, const uint32_t *v)
{
	asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], "
	    "{%1, %2, %3, %4};" :: "r"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]),
	    "r"(v[3]) : "memory");
}

static __device__ __forceinline__ void
load_matrices(uint32_t *v, uint32_t from)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared::cta.b16 "
	    "{%0, %1, %2, %3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]),
	    "=r"(v[3]) : "r"(from) : "memory");
}

static __device__ __forceinline__ void
store_shared(uint32_t to, uint4 v)
{
	asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" :: "r"(to),
	    "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

static __device__ __forceinline__ uint4
load_shared(uint32_t from)
{
	uint4 v;

	asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x),
	    "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
	return v;
}

/*
 * A warp's part of a tile leaves in pieces of 16 rows by 32 columns.  Through
 * shared memory it turns from what the products leave in a lane to 16 bytes
 * of row l / 4, and of that + 8, in lane l; the residual the other way round.
 * Rows there are 64 bytes, their chunk j at j ^ (row / 2 % 4).
 */
template<int N>
struct pieces {
	static constexpr int each = N / 32, all = BLOCKS * each;
	static constexpr int ahead = 2;		/* of the residual */
	bf16 *y;			/* at the lane's first column */
	const bf16 *residual;
	int row[BLOCKS][2], columns;	/* from there, or < 0; columns left */
	uint32_t mine, matrix;		/* in the warp's part */
	const float *bias;		/* of the lane's columns in products */
	int biases;			/* columns left from there, or 0 */
	uint4 got[ahead][2];
};

template<int N>
static __device__ __forceinline__ void
load_piece(struct pieces<N> *s, int c)
{
	typedef pieces<N> P;
	int column = c % P::each * 32;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		int row = s->row[c / P::each][i];

		s->got[c % P::ahead][i] = row >= 0 && column < s->columns ?
		    *(const uint4 *)(s->residual + row + column) :
		    make_uint4(0, 0, 0, 0);
	}
}

/* Columns 8 i and the next of a piece */
template<int N>
static __device__ __forceinline__ void
load_bias(float2 *to, const struct pieces<N> *s, int c)
{
	int column = c % pieces<N>::each * 32;

#pragma unroll
	for (int i = 0; i < 4; i++, column += 8)
		to[i] = column < s->biases ?
		    __ldg((const float2 *)(s->bias + column)) :
		    make_float2(0, 0);
}

/* Before the products are awaited */
template<int N>
static __device__ __forceinline__ void
begin_pieces(struct pieces<N> *s, const struct product &p,
    const struct place &q, int images, int first, uint32_t part)
{
	typedef pieces<N> P;
	int lane = threadIdx.x % 32, r = lane % 16, at = lane % 4 * 8;
	int64_t offset = tile_offset(p, q, images) + at;

	/* again for every tile: what is kept until then, spills */
	asm volatile("" : "+r"(first));
	s->y = p.y + offset;
	s->residual = p.residual + offset;
	s->columns = p.n - q.column - at;
	s->mine = part + lane / 4 * 64 + ((lane ^ lane >> 3) & 3) * 16;
	s->matrix = part + r * 64 + (lane >> 4 ^ (r >> 1 & 3)) * 16;
#pragma unroll
	for (int i = 0; i < BLOCKS * 2; i++)
		s->row[i / 2][i % 2] = row_offset(p, q, images, first + i / 2 *
		    64 + i % 2 * 8 + lane / 4);
	at = q.column + lane % 4 * 2;
	s->bias = p.bias + at;
	s->biases = p.bias != NULL ? p.n - at : 0;
	if (p.residual != NULL)
#pragma unroll
		for (int c = 0; c < P::ahead && c < P::all; c++)
			load_piece(s, c);
}

/*
 * y = alpha d + bias + residual.  y may be the residual: a lane reads what it
 * writes before it does.
 */
template<int N, bool RESIDUAL>
static __device__ __forceinline__ void
store_pieces(struct pieces<N> *s, const float *d, float alpha)
{
	typedef pieces<N> P;
	float2 bias[2][4];

	load_bias(bias[0], s, 0);
#pragma unroll
	for (int c = 0; c < P::all; c++, d += 16) {
		/* the part's second half, and without a residual both */
		uint32_t half = RESIDUAL || c % 2 ? PIECE_BYTES : 0;
		int column = c % P::each * 32;
		uint32_t r[8] = {}, v[8];
		uint4 out[2];

		if (RESIDUAL) {
			store_shared(s->mine, s->got[c % P::ahead][0]);
			store_shared(s->mine + 512, s->got[c % P::ahead][1]);
			if (c + P::ahead < P::all)
				load_piece(s, c + P::ahead);
			__syncwarp();
			load_matrices(r, s->matrix);
			load_matrices(r + 4, s->matrix ^ 32);
		}
		if (c + 1 < P::all)
			load_bias(bias[(c + 1) % 2], s, c + 1);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			float2 x = bias[c % 2][i / 2];

			x.x += alpha * d[2 * i];
			x.y += alpha * d[2 * i + 1];
			if (RESIDUAL) {
				x.x += cuda_low(r[i]);
				x.y += cuda_high(r[i]);
			}
			v[i] = cuda_two(x.x, x.y);
		}
		store_matrices(s->matrix + half, v);
		store_matrices((s->matrix ^ 32) + half, v + 4);
		__syncwarp();
		out[0] = load_shared(s->mine + half);
		out[1] = load_shared(s->mine + half + 512);
#pragma unroll
		for (int i = 0; i < 2; i++) {
			int row = s->row[c / P::each][i];

			if (row >= 0 && column < s->columns)
				*(uint4 *)(s->y + row + column) = out[i];
		}
	}
}

/* Rows of the residual that a warp will want, into the L2 cache. */
template<int N>
static __device__ __forceinline__ void
fetch_residual(const struct product &p, const struct place &q, int images,
    int first)
{
	int lane = threadIdx.x % 32, columns = min(N, p.n - q.column);
	int row = row_offset(p, q, images, first + lane / 16 * 64 + lane % 16);

	if (lane < 16 * BLOCKS && row >= 0)
		asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
		    :: "l"(p.residual + tile_offset(p, q, images) + row),
		    "r"(columns * 2) : "memory");
}

/*
 * A group of four warps: the products of every second tile of the block.  The
 * groups take turns at the ring: a barrier tells odd phases from even ones
 * only, so that a stage may be waited for when all before it have been seen
 * to come, by this group or by the other.
 */
template<int N>
static __device__ void
multiply_tiles(const struct product &p, char *ring, uint64_t *full,
    uint64_t *empty, uint64_t *turn, int group)
{
	typedef tiling<N> T;
	int lane = threadIdx.x % 32, images = ROWS >> (p.log_w + p.log_h);
	int steps = p.kh * p.kw * p.runs;
	int mine = threadIdx.x / 32 % 4 * 16;	/* the warp's first row */
	int count = group;	/* of the block's tiles before this */
	int tile = blockIdx.x + count * gridDim.x;
	uint32_t part = shared_address(ring + T::stages * T::stage_bytes +
	    (group * 4 + threadIdx.x / 32 % 4) * 2 * PIECE_BYTES);
	struct pieces<N> out;
	float acc[BLOCKS][N / 2] = {};

	for (; tile < p.tiles; tile += 2 * gridDim.x) {
		struct place q = place_of(p, tile, N);
		uint32_t done = (uint32_t)count * steps;
		uint32_t phase = done / T::stages & 1;
		int stage = done % T::stages, before = 0, step;

		if (p.residual != NULL)
			fetch_residual<N>(p, q, images, mine);
		if (count > 0)
			barrier_wait(&turn[group], (count - 1) / 2 & 1);
		for (step = 0; step < steps; step++) {
			uint32_t a = shared_address(ring + stage *
			    T::stage_bytes);
			uint64_t da = descriptor(a);
			uint64_t db = descriptor(a + T::a_bytes);

			barrier_wait(&full[stage], phase);
			asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
			for (int k = 0; k < DEPTH / 16; k++)
#pragma unroll
				for (int b = 0; b < BLOCKS; b++)
					multiply<N>(acc[b], da + k * 2 + b *
					    (64 * ROW_BYTES >> 4), db + k * 2,
					    k > 0 ? 1 : step);
			asm volatile("wgmma.commit_group.sync.aligned;"
			    ::: "memory");
			/* the products of the stage before are done */
			asm volatile("wgmma.wait_group.sync.aligned 1;"
			    ::: "memory");
			if (step > 0 && lane == 0)
				barrier_arrive(&empty[before]);
			before = stage;
			if (++stage == T::stages) {
				stage = 0;
				phase ^= 1;
			}
		}
		if (lane == 0)
			barrier_arrive(&turn[1 - group]);
		begin_pieces(&out, p, q, images, mine, part);
		asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
		if (lane == 0)
			barrier_arrive(&empty[before]);
		/* acc is not read before this */
#pragma unroll
		for (int i = 0; i < BLOCKS * N / 2; i++)
			asm volatile("" : "+f"(acc[i / (N / 2)][i % (N / 2)])
			    :: "memory");
		if (p.residual != NULL)
			store_pieces<N, true>(&out, acc[0], p.alpha);
		else
			store_pieces<N, false>(&out, acc[0], p.alpha);
		count += 2;
	}
}

#endif /* HOPPER */

template<int N>
static __global__ void __launch_bounds__(THREADS, 1)
matmul(const __grid_constant__ CUtensorMap ma,
    const __grid_constant__ CUtensorMap mb, const struct product p)
{
#ifdef HOPPER
	typedef tiling<N> T;
	extern __shared__ char shared[];
	__shared__ uint64_t full[T::stages], empty[T::stages], turn[2];
	char *ring = shared + (1024 - shared_address(shared) % 1024) % 1024;
	int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0);

	/* one arrival of each warp that multiplies a tile */
	if (threadIdx.x == 0) {
		for (int i = 0; i < T::stages; i++) {
			barrier_init(&full[i], 1);
			barrier_init(&empty[i], 4);
		}
		barrier_init(&turn[0], 4);
		barrier_init(&turn[1], 4);
		asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	}
	__syncthreads();
	if (group == 0) {
		asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
		if (threadIdx.x == 0)
			copy_tiles<N>(&ma, &mb, p, ring, full, empty);
		__syncwarp();
	} else {
		asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
		multiply_tiles<N>(p, ring, full, empty, turn, group - 1);
	}
#else
	(void)p;
#endif
}

/* ---- the host's side */

/* What is to be done, before it is cut into tiles. */
struct job {
	const char *what;
	const void *a, *b;
	int64_t a_c, a_w, a_h;	/* a's channels and pixels */
	struct product p;
};

typedef CUresult encode_fn(CUtensorMap *, CUtensorMapDataType, cuuint32_t,
    void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's own, found at run time: no program links against it. */
static encode_fn *
find_encode(void)
{
	cudaDriverEntryPointQueryResult found;
	void *f = NULL;

	if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f,
	    12000, cudaEnableDefault, &found) != cudaSuccess ||
	    found != cudaDriverEntryPointSuccess) {
		(void)cudaGetLastError();
		return NULL;
	}
	return (encode_fn *)f;
}

/* A tensor of bf16, its first dimension dense; box and step: of a copy. */
static int
encode(CUtensorMap *map, int rank, const void *base, const int64_t *size,
    const int *box, const int *step)
{
	static encode_fn *f;
	cuuint64_t dims[4], strides[4], bytes = 2;
	cuuint32_t boxes[4], steps[4];
	int i;

	if (f == NULL && (f = find_encode()) == NULL)
		return 0;
	for (i = 0; i < rank; i++) {
		dims[i] = (cuuint64_t)size[i];
		bytes *= dims[i];
		strides[i] = bytes;	/* of the dimension after this one */
		boxes[i] = (cuuint32_t)box[i];
		steps[i] = (cuuint32_t)step[i];
	}
	return f(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)rank,
	    (void *)base, dims, strides, boxes, steps,
	    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
	    CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
	    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

static int64_t
ceil_div(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

/* log2 of the largest power of two that divides n, at most `most` */
static int
log_of(int64_t n, int most)
{
	int i = 0;

	while (i < most && n % (2ll << i) == 0)
		i++;
	return i;
}

/*
 * The tiles of n columns and of a box of ROWS pixels: of a matrix's rows, or
 * of an image's as wide and as high as divides it, and then of images.
 */
static void
cut(struct product *p, int n)
{
	int64_t images, tiles;

	p->log_w = p->h == 1 && p->images == 1 ? LOG_ROWS :
	    log_of(p->w, LOG_ROWS);
	p->log_h = log_of(p->h, LOG_ROWS - p->log_w);
	images = ceil_div(p->images, ROWS >> (p->log_w + p->log_h));
	p->tiles_w = (int)ceil_div(p->w, 1 << p->log_w);
	p->tiles_h = (int)ceil_div(p->h, 1 << p->log_h);
	p->tiles_n = (int)ceil_div(p->n, n);
	tiles = images * p->tiles_h * p->tiles_w * p->tiles_n;
	p->tiles = tiles < 1 << 30 ? (int)tiles : 0;	/* 0: too many */
}

template<int N>
static int
launch(struct cuda *c, const struct job *j)
{
	typedef tiling<N> T;
	struct product p = j->p;
	CUtensorMap ma, mb;
	int64_t a_size[4] = { j->a_c, j->a_w, j->a_h, p.images };
	int64_t b_size[2] = { j->a_c * p.kh * p.kw, p.n };
	int a_box[4] = { DEPTH, 0, 0, 0 }, b_box[2] = { DEPTH, N };
	int a_step[4] = { 1, p.stride, p.stride, 1 }, b_step[2] = { 1, 1 };
	int rc;

	cut(&p, N);
	a_box[1] = p.stride << p.log_w;
	a_box[2] = p.stride << p.log_h;
	a_box[3] = ROWS >> (p.log_w + p.log_h);
	if (!encode(&ma, 4, j->a, a_size, a_box, a_step) ||
	    !encode(&mb, 2, j->b, b_size, b_box, b_step))
		return 0;
	rc = cuda_check(c, cudaFuncSetAttribute(matmul<N>,
	    cudaFuncAttributeMaxDynamicSharedMemorySize, T::shared_bytes),
	    j->what);
	if (rc < 0)
		return rc;
	matmul<N><<<(unsigned)(c->processors < p.tiles ? c->processors :
	    p.tiles), THREADS, T::shared_bytes, c->stream>>>(ma, mb, p);
	rc = cuda_done(c, j->what);
	return rc < 0 ? rc : 1;
}

/*
 * What a product costs in tiles of n columns: the columns of the tiles of the
 * processor that has most.  Of 64 columns each takes half as long again (as
 * measured on an H200), as much of a being read for fewer products.
 */
static int64_t
cost(const struct cuda *c, const struct job *j, int n)
{
	struct product p = j->p;

	cut(&p, n);
	return ceil_div(p.tiles, c->processors) * n * (n == 64 ? 3 : 2);
}

/* The columns of the cheapest tiles, the widest where several are */
static int
columns(const struct cuda *c, const struct job *j)
{
	int64_t narrow = cost(c, j, 64), middle = cost(c, j, 128);
	int64_t wide = cost(c, j, 160);

	if (wide <= middle && wide <= narrow)
		return 160;
	return middle <= narrow ? 128 : 64;
}

static int
run(struct cuda *c, const struct job *j)
{
	int n = columns(c, j);

	return n == 160 ? launch<160>(c, j) : n == 128 ? launch<128>(c, j) :
	    launch<64>(c, j);
}

/*
 * Whether an int counts the tiles, and the elements that one's rows span; and
 * whether the tiles of 64 columns are enough for a third of the processors:
 * where they are fewer, the libraries cut the depth.
 */
static bool
tiles_fit(const struct cuda *c, const struct job *j)
{
	struct product p = j->p;
	int64_t rows, images;

	cut(&p, 64);
	images = ROWS >> (p.log_w + p.log_h);
	rows = images > 1 ? images * p.h * p.w :
	    ((1ll << p.log_h) - 1) * p.w + (1ll << p.log_w);
	return p.tiles > 0 && 3 * (int64_t)p.tiles >= c->processors &&
	    rows * p.n <= INT32_MAX;
}

/*
 * Whether the kernel can do it.  Convolutions are then faster than the
 * libraries', as measured on an H200 for 1280 pixels and more.
 */
static bool
suits(const struct cuda *c, const struct job *j)
{
	const struct product *p = &j->p;
	uintptr_t all = (uintptr_t)j->a | (uintptr_t)j->b | (uintptr_t)p->y |
	    (uintptr_t)p->residual;

	return c->sm == 90 && all % 16 == 0 && (uintptr_t)p->bias % 8 == 0 &&
	    p->n % 8 == 0 && j->a_c % 8 == 0 &&
	    (int64_t)p->w * p->h * p->images >= ROWS && p->n >= 64 &&
	    j->a_c >= DEPTH && tiles_fit(c, j);
}

/*
 * Whether cuBLASLt is slower.  It pays dearly for a bias or a residual; plain
 * products are its own where w is large (8192^3: 800 against 540 TFLOP/s).
 */
static bool
pays(const float *bias, const void *residual, int64_t n, int64_t k)
{
	const int64_t plain = 2 << 20, most = 16 << 20;

	return n * k <= (bias != NULL || residual != NULL ? most : plain);
}

/* rows x depth times the transpose of n x depth */
static struct job
matrix_job(const char *what, void *y, const void *a, const void *b,
    int64_t rows, int64_t n, int64_t depth)
{
	struct job j;

	memset(&j, 0, sizeof(j));
	j.what = what;
	j.a = a;
	j.b = b;
	j.a_c = depth;
	j.a_w = rows;
	j.a_h = 1;
	j.p.y = (bf16 *)y;
	j.p.alpha = 1;
	j.p.n = (int)n;
	j.p.w = (int)rows;
	j.p.h = j.p.images = 1;
	j.p.kh = j.p.kw = 1;
	j.p.runs = (int)ceil_div(depth, DEPTH);
	j.p.stride = 1;
	return j;
}

/* Sizes are ints in the kernel, and what it adds to them. */
static bool
fits(int64_t a, int64_t b, int64_t c)
{
	const int64_t most = 1 << 30;

	return a <= most && b <= most && c <= most;
}

int
cuda_matmul90_linear(struct cuda *c, void *y, const void *x, const void *w,
    const float *bias, const void *residual, int64_t m, int64_t n, int64_t k,
    float alpha)
{
	struct job j = matrix_job("linear_fwd", y, x, w, m, n, k);

	j.p.bias = bias;
	j.p.residual = (const bf16 *)residual;
	j.p.alpha = alpha;
	return fits(m, n, k) && pays(bias, residual, n, k) && suits(c, &j) ?
	    run(c, &j) : 0;
}

/* Whether a convolution can be done so, and few of its tiles' pixels idle. */
static bool
conv_suits(const struct cuda *c, const struct lpo_conv_shape *s,
    const struct job *j)
{
	struct product p = j->p;

	if (!fits(s->n, s->h * s->w, s->kh * s->kw * s->ci) ||
	    !fits(s->n * s->ho * s->wo, s->co, 0) || s->stride > 2 ||
	    j->a_c % DEPTH != 0 || !suits(c, j))
		return false;
	cut(&p, 64);
	return (int64_t)p.tiles / p.tiles_n * ROWS * 3 <=
	    (int64_t)p.w * p.h * p.images * 4;
}

int
cuda_matmul90_conv(struct cuda *c, void *y, const void *x, const void *w,
    const float *bias, const void *residual, const struct lpo_conv_shape *s)
{
	struct job j = matrix_job("conv_fwd", y, x, w, s->wo, s->co, s->ci);

	j.a_w = s->w;
	j.a_h = s->h;
	j.p.bias = bias;
	j.p.residual = (const bf16 *)residual;
	j.p.h = (int)s->ho;
	j.p.images = (int)s->n;
	j.p.kh = (int)s->kh;
	j.p.kw = (int)s->kw;
	j.p.stride = (int)s->stride;
	j.p.off_h = -(int)s->pad_top;
	j.p.off_w = -(int)s->pad_left;
	return conv_suits(c, s, &j) ? run(c, &j) : 0;
}
