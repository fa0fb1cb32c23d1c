/*
 * Attention, backward, in bf16 on tensor cores: a warp at a time.
 */
#include "kernels/attention_bwd.h"

#include <math.h>

/*
 * A warp owns 16 rows MT times; chunks of 16 met tokens.  Of one product
 * C[16,8] += A[16,16] B[16,8], lane l holds rows l/4 and l/4 + 8, columns
 * 2(l%4) and the next; two neighbouring C are one A, so P and dS go from
 * sums to operands without leaving the registers.
 *
 * HELD: the owned tiles stay in registers; else they are read each time.
 * Rows of shared memory are an odd number of 16 bytes apart, so that the
 * eight rows of a matrix lie in different banks.
 */
template <int D, bool KEYS>
struct mma_shape {
	static constexpr int MT = D <= 64 || (D <= 80 && !KEYS) ? 2 : 1;
	static constexpr int WARPS = 4;
	static constexpr bool HELD = D <= 80 || !KEYS;
	static constexpr int BLOCKS = D <= 40 ? 3 :
	    D == 80 && KEYS ? 3 : 2;
	static constexpr int OWNED = WARPS * MT * 16;
	static constexpr int MET = D <= 80 ? 64 : 32;
	static constexpr int LD = (D / 8 | 1) * 8;
	/* elements: a stage is two tiles and the stats of MET queries */
	static constexpr int STAGE = 2 * MET * LD + (KEYS ? 4 * MET : 0);
	static constexpr int BYTES = (2 * OWNED * LD + 2 * STAGE) * 2;
};

static __device__ __forceinline__ uint32_t
shared_of(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory; zeros where there is no source. */
static __device__ __forceinline__ void
copy16(void *to, const void *from, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
	    "r"(shared_of(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void
copies_begin(void)
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

static __device__ __forceinline__ void
copies_end(void)
{
	asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/*
 * ROWS rows of D elements, zeros beyond `valid` rows and d columns.  A thread
 * keeps to one column of 16 bytes; some have none.
 */
template <int D, int LD, int ROWS, int THREADS>
static __device__ __forceinline__ void
copy_tile(bf16 *to, const bf16 *from, int64_t ld, int valid, int d)
{
	constexpr int EACH = THREADS / (D / 8);
	int r = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8) * 8, i;
	const bf16 *p = from + r * ld + c;

	if (EACH * (D / 8) < THREADS && r >= EACH)
		return;
	to += r * LD + c;
	if (c >= d)
		valid = 0;
#pragma unroll
	for (i = 0; i < ROWS; i += EACH) {
		bool there = r + i < valid;

		if (i + EACH <= ROWS || r + i < ROWS)
			copy16(to + i * LD, there ? p : from, there);
		p += EACH * ld;
	}
}

static __device__ __forceinline__ void
load4(uint32_t r[4], const bf16 *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
	    "{%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
	    "=r"(r[3]) : "r"(shared_of(p)) : "memory");
}

static __device__ __forceinline__ void
load2(uint32_t r[2], const bf16 *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 "
	    "{%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) :
	    "r"(shared_of(p)) : "memory");
}

static __device__ __forceinline__ void
turn4(uint32_t r[4], const bf16 *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
	    "{%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
	    "=r"(r[3]) : "r"(shared_of(p)) : "memory");
}

static __device__ __forceinline__ void
turn2(uint32_t r[2], const bf16 *p)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 "
	    "{%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) :
	    "r"(shared_of(p)) : "memory");
}

static __device__ __forceinline__ void
mma16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]),
	    "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The same over eight. */
static __device__ __forceinline__ void
mma8(float c[4], const uint32_t a[2], uint32_t b)
{
	asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]),
	    "r"(a[1]), "r"(b));
}

/* One 16-row tile of an owned matrix as A. */
template <int D>
struct held {
	uint32_t a[(D / 16) * 4 + (D % 16 ? 2 : 0)];
};

template <int D, int LD>
static __device__ __forceinline__ void
hold(struct held<D> *h, const bf16 *tile)
{
	const bf16 *p = tile + threadIdx.x % 16 * LD;
	int k;

#pragma unroll
	for (k = 0; k < D / 16; k++)
		load4(h->a + 4 * k, p + 16 * k + threadIdx.x % 32 / 16 * 8);
	if (D % 16)
		load2(h->a + D / 16 * 4, p + D / 16 * 16);
}

/* c[mt][2] += owned (held, or read from own) times a chunk of 16 rows, ^T */
template <int D, int LD, int MT, bool HELD>
static __device__ __forceinline__ void
dots(float c[MT][2][4], const struct held<D> *h, const bf16 *own,
    const bf16 *chunk)
{
	int lane = threadIdx.x % 32, k, m;
	const bf16 *p = chunk + (lane % 8 + lane / 16 * 8) * LD +
	    lane / 8 % 2 * 8;
	const bf16 *oa = own + lane % 16 * LD;

#pragma unroll
	for (k = 0; k < D / 16; k++) {
		uint32_t b[4], a[4];

		load4(b, p + 16 * k);
#pragma unroll
		for (m = 0; m < MT; m++) {
			if (!HELD)
				load4(a, oa + m * 16 * LD + 16 * k +
				    lane / 16 * 8);
			mma16(c[m][0], HELD ? h[m].a + 4 * k : a, b);
			mma16(c[m][1], HELD ? h[m].a + 4 * k : a, b + 2);
		}
	}
	if (D % 16) {
		uint32_t b[2], a[2];

		load2(b, chunk + lane % 16 * LD + D / 16 * 16);
#pragma unroll
		for (m = 0; m < MT; m++) {
			if (!HELD)
				load2(a, oa + m * 16 * LD + D / 16 * 16);
			mma8(c[m][0], HELD ? h[m].a + D / 16 * 4 : a, b[0]);
			mma8(c[m][1], HELD ? h[m].a + D / 16 * 4 : a, b[1]);
		}
	}
}

/* sum[mt][D] += a[mt] [rows, 16 tokens] times the chunk [16 tokens, D] */
template <int D, int LD, int MT>
static __device__ __forceinline__ void
gather(float sum[MT][D / 8][4], const uint32_t a[MT][4], const bf16 *chunk)
{
	int lane = threadIdx.x % 32, x, m;
	const bf16 *p = chunk + lane % 16 * LD;

#pragma unroll
	for (x = 0; x < D / 16; x++) {
		uint32_t b[4];

		turn4(b, p + 16 * x + lane / 16 * 8);
#pragma unroll
		for (m = 0; m < MT; m++) {
			mma16(sum[m][2 * x], a[m], b);
			mma16(sum[m][2 * x + 1], a[m], b + 2);
		}
	}
	if (D % 16) {
		uint32_t b[2];

		turn2(b, p + D / 16 * 16);
#pragma unroll
		for (m = 0; m < MT; m++)
			mma16(sum[m][D / 8 - 1], a[m], b);
	}
}

/* Both tiles of the next block met, and its stats. */
template <int D, bool KEYS>
static __device__ __forceinline__ void
copy_met(bf16 *stage, const struct job &j, const struct place &p,
    struct met *m)
{
	using S = mma_shape<D, KEYS>;
	constexpr int THREADS = S::WARPS * 32;
	int64_t lda = KEYS ? j.ldq : j.ldk, ldb = KEYS ? j.ldo : j.ldk;
	int length = KEYS ? j.lq : j.lk, t = m->block * S::MET;
	int64_t token = (int64_t)m->row * length + t;
	int valid = min(S::MET, length - t), x = 2 * threadIdx.x;

	copy_tile<D, S::LD, S::MET, THREADS>(stage, m->a + token * lda, lda,
	    valid, j.d);
	copy_tile<D, S::LD, S::MET, THREADS>(stage + S::MET * S::LD,
	    m->b + token * ldb, ldb, valid, j.d);
	if (KEYS && x < S::MET)
		copy16((float *)(stage + 2 * S::MET * S::LD) + 2 * x,
		    m->stats + 2 * ((int64_t)m->row * j.heads *
		    j.lq_padded + t + x), true);
	copies_begin();
	if (++m->block == p.begin + p.blocks) {
		m->block = p.begin;
		m->row++;
	}
}

/*
 * s becomes -inf where a key is not there or not seen.  A lane's first column
 * lies `left` before the end and its first row `after` after it.
 */
template <int MT, bool KEYS>
static __device__ __forceinline__ void
mask_chunk(float s[MT][2][4], int left, int after, int causal)
{
	int m, t, e;

#pragma unroll
	for (m = 0; m < MT; m++)
#pragma unroll
		for (t = 0; t < 2; t++)
#pragma unroll
			for (e = 0; e < 4; e++) {
				int c = 8 * t + e % 2, r = 16 * m + e / 2 * 8;
				int over = KEYS ? after + r - c :
				    c - after - r;

				if (c >= left || (causal && over > 0))
					s[m][t][e] = -INFINITY;
			}
}

/*
 * The rows of one warp against one chunk: s and dp (which started as -delta)
 * are dots; out come P and dS as operands.  -lse log2 e is of the columns
 * (cl) for KEYS, else of the rows (rl).
 */
template <int MT, bool KEYS>
static __device__ __forceinline__ void
grad_chunk(const float s[MT][2][4], const float dp[MT][2][4],
    uint32_t pa[MT][4], uint32_t da[MT][4], const float rl[MT][2],
    const float cl[2][2], float scale2)
{
	int m, t, e;

#pragma unroll
	for (m = 0; m < MT; m++)
#pragma unroll
		for (t = 0; t < 2; t++) {
			float p[4], g[4];

#pragma unroll
			for (e = 0; e < 4; e++) {
				p[e] = pow2(fmaf(s[m][t][e], scale2, KEYS ?
				    cl[t][e % 2] : rl[m][e / 2]));
				g[e] = p[e] * dp[m][t][e];
			}
			if (KEYS) {
				pa[m][2 * t] = pack(p[0], p[1]);
				pa[m][2 * t + 1] = pack(p[2], p[3]);
			}
			da[m][2 * t] = pack(g[0], g[1]);
			da[m][2 * t + 1] = pack(g[2], g[3]);
		}
}

/* What a warp holds. */
template <int D, bool KEYS>
struct warp {
	static constexpr int MT = mma_shape<D, KEYS>::MT;

	struct held<D> a[MT], b[MT];
	float dv[MT][D / 8][4], dx[MT][D / 8][4];	/* dx: dk or dq */
	float rl[MT][2], rd[MT][2];	/* stats of the rows, unless KEYS */
};

/* 16 tokens: rows of ma and mb. */
template <int D, bool KEYS, bool MASKED>
static __device__ __forceinline__ void
chunk(struct warp<D, KEYS> &w, const bf16 *own_a, const bf16 *own_b,
    const bf16 *ma, const bf16 *mb, const float4 *stats, float scale2,
    int left, int after, int causal)
{
	using S = mma_shape<D, KEYS>;
	constexpr int MT = S::MT, LD = S::LD;
	float s[MT][2][4] = {}, dp[MT][2][4], cl[2][2] = {};
	uint32_t pa[MT][4], da[MT][4];
	int t, m;

#pragma unroll
	for (t = 0; t < 2; t++) {
		float4 f = KEYS ? stats[4 * t] : make_float4(0, 0, 0, 0);

		cl[t][0] = f.x;
		cl[t][1] = f.y;
#pragma unroll
		for (m = 0; m < MT; m++) {
			dp[m][t][0] = KEYS ? f.z : w.rd[m][0];
			dp[m][t][1] = KEYS ? f.w : w.rd[m][0];
			dp[m][t][2] = KEYS ? f.z : w.rd[m][1];
			dp[m][t][3] = KEYS ? f.w : w.rd[m][1];
		}
	}
	dots<D, LD, MT, S::HELD>(s, w.a, own_a, ma);
	dots<D, LD, MT, S::HELD>(dp, w.b, own_b, mb);
	if (MASKED)
		mask_chunk<MT, KEYS>(s, left, after, causal);
	grad_chunk<MT, KEYS>(s, dp, pa, da, w.rl, cl, scale2);
	if (KEYS)
		gather<D, LD, MT>(w.dv, pa, mb);
	gather<D, LD, MT>(w.dx, da, ma);
}

/* A block met; first: of the warp's rows from the block's first token. */
template <int D, bool KEYS>
static __device__ __forceinline__ void
meet(struct warp<D, KEYS> &w, const bf16 *own_a, const bf16 *own_b,
    const bf16 *stage, float scale2, int valid, int first, int causal)
{
	using S = mma_shape<D, KEYS>;
	constexpr int LD = S::LD;
	const bf16 *ma = stage, *mb = ma + S::MET * LD;
	int lane = threadIdx.x % 32, c = 0;
	const float4 *stats = (const float4 *)(mb + S::MET * LD) + lane % 4;
	int left = valid - lane % 4 * 2, after = first + lane / 4 -
	    lane % 4 * 2;

	/* Queries that are not there have P = 0 by their stats. */
	if (!causal)
#pragma unroll 1
		for (; c < (KEYS ? valid + 15 : valid) / 16; c++)
			chunk<D, KEYS, false>(w, own_a, own_b,
			    ma + 16 * c * LD, mb + 16 * c * LD, stats + 8 * c,
			    scale2, 0, 0, 0);
#pragma unroll 1
	for (; c < (valid + 15) / 16; c++)
		chunk<D, KEYS, true>(w, own_a, own_b, ma + 16 * c * LD,
		    mb + 16 * c * LD, stats + 8 * c, scale2, left - 16 * c,
		    after - 16 * c, causal);
}

/* The sums of one part of the queries. */
static __device__ __forceinline__ float *
part_of(const struct job &j, const struct place &p, int split)
{
	return j.parts + ((p.row * j.heads + p.head) * j.splits + split) * 2 *
	    j.lk * j.d;
}

/* Rows of a warp, as they are. */
template <int D>
static __device__ __forceinline__ void
put_part(float *to, const float sum[D / 8][4], int rows, int d)
{
	int lane = threadIdx.x % 32, x, half;

#pragma unroll
	for (half = 0; half < 2; half++) {
		int r = lane / 4 + 8 * half;
		float *p = to + r * d + lane % 4 * 2;

#pragma unroll
		for (x = 0; x < D / 8; x++)
			if (r < rows && 8 * x < d)
				*(float2 *)(p + 8 * x) = make_float2(
				    sum[x][2 * half], sum[x][2 * half + 1]);
	}
}

/*
 * dk and dv, or only one of them, from the parts: a thread has four channels
 * of a token.  count: of threads.
 */
static __global__ void
sum_parts(const __grid_constant__ struct job j, int64_t count)
{
	int64_t u = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row, at;
	int x, head, token, which, i;
	float4 sum = make_float4(0, 0, 0, 0);
	const float *p;
	bf16 *to;

	if (u >= count)
		return;
	x = (int)(u % (j.d / 4)) * 4;
	u /= j.d / 4;
	token = (int)(u % j.lk);
	u /= j.lk;
	which = (int)(u % 2);
	u /= 2;
	head = (int)(u % j.heads);
	row = u / j.heads;
	to = (bf16 *)(which ? j.dk : j.dv);
	if (to == NULL)
		return;
	p = j.parts + (((row * j.heads + head) * j.splits * 2 + which) *
	    j.lk + token) * j.d + x;
	for (i = 0; i < j.splits; i++) {
		float4 y = *(const float4 *)(p + i * 2 * (int64_t)j.lk * j.d);

		sum.x += y.x;
		sum.y += y.y;
		sum.z += y.z;
		sum.w += y.w;
	}
	if (which) {
		sum.x *= j.scale;
		sum.y *= j.scale;
		sum.z *= j.scale;
		sum.w *= j.scale;
	}
	at = at_k(j, row, token, head) + x;
	if (j.add & (which ? LPO_ADD_B : LPO_ADD_C)) {
		sum.x += cuda_load(to + at);
		sum.y += cuda_load(to + at + 1);
		sum.z += cuda_load(to + at + 2);
		sum.w += cuda_load(to + at + 3);
	}
	*(uint2 *)(to + at) = make_uint2(pack(sum.x, sum.y),
	    pack(sum.z, sum.w));
}

template <int D, bool KEYS>
static __global__ void
__launch_bounds__(mma_shape<D, KEYS>::WARPS * 32, mma_shape<D, KEYS>::BLOCKS)
mma_kernel(const __grid_constant__ struct job j)
{
	using S = mma_shape<D, KEYS>;
	constexpr int MT = S::MT, LD = S::LD, THREADS = S::WARPS * 32;
	extern __shared__ __align__(16) unsigned char memory[];
	bf16 *own_a = (bf16 *)memory, *own_b = own_a + S::OWNED * LD;
	bf16 *stages = own_b + S::OWNED * LD;
	int splits = KEYS ? j.splits : 1, split = (int)(blockIdx.x % splits);
	const struct place p = place_of<KEYS>(j, S::OWNED, S::MET,
	    blockIdx.x / splits);
	int lane = threadIdx.x % 32, mine = threadIdx.x / 32 * MT * 16;
	int length = KEYS ? j.lq : j.lk, step, m, e, r;
	int each = (p.steps + splits - 1) / splits;
	int steps = min(each, p.steps - split * each);
	struct met next = met_of<KEYS>(j, p);
	struct warp<D, KEYS> w = {};
	int64_t at;

	if (KEYS && splits > 1) {
		next.row = split * each / p.blocks;
		next.block = split * each % p.blocks;
	}
	if (KEYS) {
		at = at_k(j, p.row, p.first, p.head);
		copy_tile<D, LD, S::OWNED, THREADS>(own_a,
		    (const bf16 *)j.k + at, j.ldk, p.valid, j.d);
		copy_tile<D, LD, S::OWNED, THREADS>(own_b,
		    (const bf16 *)j.v + at, j.ldk, p.valid, j.d);
	} else {
		copy_tile<D, LD, S::OWNED, THREADS>(own_a, (const bf16 *)j.q +
		    at_q(j, p.row, p.first, p.head), j.ldq, p.valid, j.d);
		copy_tile<D, LD, S::OWNED, THREADS>(own_b,
		    (const bf16 *)j.dout + at_o(j, p.row, p.first, p.head),
		    j.ldo, p.valid, j.d);
	}
	if (steps > 0)
		copy_met<D, KEYS>(stages, j, p, &next);
#pragma unroll
	for (e = 0; e < (KEYS ? 0 : 2 * MT); e++) {
		r = mine + 8 * e + lane / 4;
		w.rl[e / 2][e % 2] = -INFINITY;
		if (r < p.valid) {
			float2 f = stats_of(j, p.row, p.head, p.first + r);

			w.rl[e / 2][e % 2] = f.x;
			w.rd[e / 2][e % 2] = f.y;
		}
	}
	copies_end();
	__syncthreads();
	own_a += mine * LD;
	own_b += mine * LD;
#pragma unroll
	for (m = 0; m < (S::HELD ? MT : 0); m++) {
		hold<D, LD>(w.a + m, own_a + 16 * m * LD);
		hold<D, LD>(w.b + m, own_b + 16 * m * LD);
	}
	for (step = 0; step < steps; step++) {
		const bf16 *stage = stages + step % 2 * S::STAGE;
		/* where next is now, unless it went on to another row */
		int t = (next.block - 1) * S::MET;

		if (next.block == p.begin)
			t = (p.begin + p.blocks - 1) * S::MET;
		/* The other stage was read before the barrier. */
		if (step + 1 < steps)
			copy_met<D, KEYS>(stages + (step + 1) % 2 * S::STAGE,
			    j, p, &next);
		if (mine < p.valid)
			meet<D, KEYS>(w, own_a, own_b, stage, j.scale * LOG2E,
			    min(S::MET, length - t), (int)p.first + mine - t,
			    j.causal);
		copies_end();
		__syncthreads();
	}
#pragma unroll
	for (m = 0; m < MT; m++) {
		r = mine + 16 * m;
		at = KEYS ? at_k(j, p.row, p.first + r, p.head) :
		    at_q(j, p.row, p.first + r, p.head);
		if (!KEYS) {
			put_rows<D>((bf16 *)j.dq + at, j.ldq, w.dx[m],
			    p.valid - r, j.d, j.scale, j.add & LPO_ADD_A);
			continue;
		}
		if (splits > 1) {
			float *part = part_of(j, p, split) + (p.first + r) *
			    j.d;

			put_part<D>(part, w.dv[m], p.valid - r, j.d);
			put_part<D>(part + (int64_t)j.lk * j.d, w.dx[m],
			    p.valid - r, j.d);
			continue;
		}
		if (j.dk != NULL)
			put_rows<D>((bf16 *)j.dk + at, j.ldk, w.dx[m],
			    p.valid - r, j.d, j.scale, j.add & LPO_ADD_B);
		if (j.dv != NULL)
			put_rows<D>((bf16 *)j.dv + at, j.ldk, w.dv[m],
			    p.valid - r, j.d, 1.0f, j.add & LPO_ADD_C);
	}
}

template <int D, bool KEYS>
static int
launch_mma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = mma_shape<D, KEYS>;

	return grad_launch(c, mma_kernel<D, KEYS>, j,
	    KEYS ? n * j->splits : n, tokens, S::OWNED,
	    S::WARPS * 32, S::BYTES);
}

template <bool KEYS>
static int
pass_mma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	if (j->d <= 40)
		return launch_mma<40, KEYS>(c, j, n, tokens);
	if (j->d <= 64)
		return launch_mma<64, KEYS>(c, j, n, tokens);
	if (j->d <= 80)
		return launch_mma<80, KEYS>(c, j, n, tokens);
	if (j->d <= 128)
		return launch_mma<128, KEYS>(c, j, n, tokens);
	return launch_mma<160, KEYS>(c, j, n, tokens);
}

int
cuda_bwd_mma(struct cuda *c, const struct job *j, bool keys, int64_t n,
    int64_t tokens)
{
	int64_t count = n * j->heads * 2 * tokens * (j->d / 4);
	int ret;

	if (!keys)
		return pass_mma<false>(c, j, n, tokens);
	ret = pass_mma<true>(c, j, n, tokens);
	if (ret != 0 || j->splits == 1)
		return ret;
	sum_parts<<<(unsigned)((count + 255) / 256), 256, 0, c->stream>>>(*j,
	    count);
	return cuda_done(c, "attention_bwd");
}
