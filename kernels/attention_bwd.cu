/*
 * Flash attention, backward.  With P = 2^(S - lse), delta = sum o do:
 *	dV = P^T dO,  dP = dO V^T,  dS = P (dP - delta),
 *	dQ = scale dS K,  dK = scale dS^T Q
 *
 * Two kernels, so that no sum is shared between blocks and the bits are the
 * same from run to run: one owns a block of keys and walks the queries, one
 * owns a block of queries and walks the keys.  S and dP are computed in both.
 * Either is one template: a block owns two tiles (K and V, or Q and dO) and
 * meets tiles of the other two.
 */
#include "kernels/cuda.h"

#include <math.h>

typedef __nv_bfloat16 bf16;

#define LOG2E	1.44269504088896341f

enum {
	LARGEST_D = 160,
	LONGEST = 1 << 30,	/* tokens met by one block */
	PAD = 384,		/* stats end on a multiple: of every MET */
	LONG = 256		/* tokens from which warpgroups pay */
};

/* One call, and what is known of it. */
struct job {
	const void *q, *k, *v, *dout;
	void *dq, *dk, *dv;
	/*
	 * [n, heads, lq_padded / 2, 4]: -lse log2 e of two queries, then
	 * their -delta
	 */
	const float *stats;
	int64_t lq_padded, ldq, ldk, ldo;
	int lq, lk, heads, d, causal, add;
	int share;		/* rows of q per row of k */
	float scale;		/* d^-1/2 */
};

static inline int64_t
padded(int64_t lq)
{
	return (lq + PAD - 1) / PAD * PAD;
}

/* ---- stats of every query */

/* Eight lanes a row; V elements at a time. */
template <typename T, int V>
static __global__ void
stats_kernel(float *stats, const T *dout, const T *o, const float *lse,
    int64_t rows, int64_t lq, int64_t lq_padded, int heads, int d)
{
	int64_t u = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 8;
	int64_t h = u % heads, t = u / heads % lq_padded;
	int64_t i = u / heads / lq_padded;
	int lane = threadIdx.x % 8, x, j;
	float sum = 0.0f;

	if (u < rows && t < lq) {
		int64_t at = ((i * lq + t) * heads + h) * d;

		for (x = lane * V; x < d; x += 8 * V) {
			struct alignas(sizeof(T) * V) { T e[V]; } a, b;

			a = *(const decltype(a) *)(dout + at + x);
			b = *(const decltype(b) *)(o + at + x);
			for (j = 0; j < V; j++)
				sum = fmaf(cuda_load(a.e + j),
				    cuda_load(b.e + j), sum);
		}
	}
	for (j = 4; j > 0; j /= 2)
		sum += __shfl_xor_sync(~0u, sum, j);
	if (u >= rows || lane != 0)
		return;
	/* A query that is not there: P = 2^-inf = 0. */
	stats += (i * heads + h) * lq_padded * 2 + t / 2 * 4 + t % 2;
	stats[0] = t < lq ? -lse[(i * heads + h) * lq + t] * LOG2E :
	    -INFINITY;
	stats[2] = -sum;
}

/* Of one query of a row and head: -lse log2 e, -delta. */
static __device__ __forceinline__ float2
stats_of(const struct job &j, int64_t row, int64_t head, int64_t t)
{
	const float *p = j.stats + (row * j.heads + head) * j.lq_padded * 2 +
	    t / 2 * 4 + t % 2;

	return make_float2(p[0], p[2]);
}

/* ---- where a block works */

/*
 * KEYS: owns keys `first` .. of row `row` of k, meets the queries of `share`
 * rows.  Otherwise owns queries of row `row` of q, meets one row of keys.
 */
struct place {
	int64_t row, head, first;
	int valid;		/* owned tokens that are there */
	int begin, blocks;	/* blocks met, of each row met */
	int steps;		/* ... and of all rows */
};

template <bool KEYS>
static __device__ __forceinline__ struct place
place_of(const struct job &j, int owned, int met)
{
	int64_t own = KEYS ? j.lk : j.lq, other = KEYS ? j.lq : j.lk;
	int64_t nb = (own + owned - 1) / owned, u = blockIdx.x, end;
	struct place p;

	p.first = u % nb * owned;
	p.head = u / nb % j.heads;
	p.row = u / nb / j.heads;
	p.valid = (int)min((int64_t)owned, own - p.first);
	end = other;
	p.begin = 0;
	if (j.causal && KEYS)
		p.begin = (int)(min(p.first, other) / met);
	if (j.causal && !KEYS)
		end = min(end, p.first + owned);
	p.blocks = (int)((end + met - 1) / met) - p.begin;
	p.steps = p.blocks * (KEYS ? j.share : 1);
	return p;
}

/* The row and first token of the block met in a step. */
template <bool KEYS>
static __device__ __forceinline__ void
met_at(const struct job &j, const struct place &p, int step, int met,
    int64_t *row, int64_t *token)
{
	*row = KEYS ? p.row * j.share + step / p.blocks : p.row / j.share;
	*token = (int64_t)(p.begin + step % p.blocks) * met;
}

/* Offsets of a token in q and dq, in dout, in k and v and their gradients. */
static __device__ __forceinline__ int64_t
at_q(const struct job &j, int64_t row, int64_t token, int64_t head)
{
	return (row * j.lq + token) * j.ldq + head * j.d;
}

static __device__ __forceinline__ int64_t
at_o(const struct job &j, int64_t row, int64_t token, int64_t head)
{
	return (row * j.lq + token) * j.ldo + head * j.d;
}

static __device__ __forceinline__ int64_t
at_k(const struct job &j, int64_t row, int64_t token, int64_t head)
{
	return (row * j.lk + token) * j.ldk + head * j.d;
}

/* ---- bf16 on tensor cores */

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

/* 2^x, 0 below 2^-126 */
static __device__ __forceinline__ float
pow2(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

static __device__ __forceinline__ uint32_t
pack(float low, float high)
{
	uint32_t r;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
	return r;
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

/* Rows of a warp to memory: scale * sum, set or added. */
template <int D>
static __device__ __forceinline__ void
put_rows(bf16 *to, int64_t ld, const float sum[D / 8][4], int rows, int d,
    float scale, bool add)
{
	int lane = threadIdx.x % 32, x, half;

#pragma unroll
	for (half = 0; half < 2; half++) {
		int r = lane / 4 + 8 * half;
		bf16 *p = to + r * ld + lane % 4 * 2;

		if (r >= rows)
			continue;
#pragma unroll
		for (x = 0; x < D / 8; x++) {
			float2 y = make_float2(scale * sum[x][2 * half],
			    scale * sum[x][2 * half + 1]);

			if (8 * x >= d)
				continue;
			if (add) {
				float2 old = __bfloat1622float2(
				    *(__nv_bfloat162 *)(p + 8 * x));

				y.x += old.x;
				y.y += old.y;
			}
			*(uint32_t *)(p + 8 * x) = pack(y.x, y.y);
		}
	}
}

/* What a block meets: rows of q of one row of k follow each other. */
struct met {
	const bf16 *a, *b;	/* token 0 of the first row met */
	const float *stats;
	int row, block;		/* next to copy: row from the first, block */
};

template <bool KEYS>
static __device__ __forceinline__ struct met
met_of(const struct job &j, const struct place &p)
{
	struct met m;
	int64_t row = KEYS ? p.row * j.share : p.row / j.share;

	m.a = KEYS ? (const bf16 *)j.q + at_q(j, row, 0, p.head) :
	    (const bf16 *)j.k + at_k(j, row, 0, p.head);
	m.b = KEYS ? (const bf16 *)j.dout + at_o(j, row, 0, p.head) :
	    (const bf16 *)j.v + at_k(j, row, 0, p.head);
	m.stats = j.stats + (row * j.heads + p.head) * j.lq_padded * 2;
	m.row = 0;
	m.block = p.begin;
	return m;
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
	const struct place p = place_of<KEYS>(j, S::OWNED, S::MET);
	int lane = threadIdx.x % 32, mine = threadIdx.x / 32 * MT * 16;
	int length = KEYS ? j.lq : j.lk, step, m, e, r;
	struct met next = met_of<KEYS>(j, p);
	struct warp<D, KEYS> w = {};
	int64_t at;

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
	if (p.steps > 0)
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
	for (step = 0; step < p.steps; step++) {
		const bf16 *stage = stages + step % 2 * S::STAGE;
		/* where next is now, unless it went on to another row */
		int t = (next.block - 1) * S::MET;

		if (next.block == p.begin)
			t = (p.begin + p.blocks - 1) * S::MET;
		/* The other stage was read before the barrier. */
		if (step + 1 < p.steps)
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
		if (j.dk != NULL)
			put_rows<D>((bf16 *)j.dk + at, j.ldk, w.dx[m],
			    p.valid - r, j.d, j.scale, j.add & LPO_ADD_B);
		if (j.dv != NULL)
			put_rows<D>((bf16 *)j.dv + at, j.ldk, w.dv[m],
			    p.valid - r, j.d, 1.0f, j.add & LPO_ADD_C);
	}
}

/* ---- bf16 on Hopper's warpgroups */

/*
 * The same plan with wgmma, for long sequences: a warpgroup owns 64 rows, and
 * both tiles it meets are read from shared memory as they are, whichever way
 * they are multiplied.
 *
 * A tile is made of core matrices, 8 tokens by 8 channels, 128 bytes each:
 * the units of channels of 8 tokens follow each other, then the next 8
 * tokens.  Summed over channels (S, dP) the leading offset is the step from
 * unit to unit and the stride the step from 8 tokens to the next; summed over
 * tokens (dV, dK, dQ) the other way round.
 */
template <int D, bool KEYS>
struct wg_shape {
	static constexpr int GROUPS = KEYS ? (D <= 40 ? 3 : 2) :
	    D <= 40 ? 4 : 3;
	static constexpr int THREADS = GROUPS * 128;
	static constexpr int OWNED = GROUPS * 64;
	static constexpr int MET = D <= 64 ? 192 : 128;
	static constexpr int ROW8 = (D + 15) / 16 * 256;	/* bytes */
	static constexpr int TILE = OWNED / 8 * ROW8;
	static constexpr int MET_TILE = MET / 8 * ROW8;
	static constexpr int STAGE = 2 * MET_TILE + (KEYS ? MET * 8 : 0);
	static constexpr int BYTES = 2 * TILE + 3 * STAGE;
};

/* Of the GPUs only sm_90a has wgmma. */
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAVE_WG
#endif

#ifdef HAVE_WG
/* What shared memory was given is seen by wgmma. */
static __device__ __forceinline__ void
wg_publish(void)
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void
wg_begin(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void
wg_commit(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most `left` groups are on their way. */
template <int left>
static __device__ __forceinline__ void
wg_wait(void)
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(left) :
	    "memory");
}

/* No use of x moves from after to before. */
template <int N>
static __device__ __forceinline__ void
wg_settle(float (&x)[N])
{
	int i;

#pragma unroll
	for (i = 0; i < N; i++)
		asm volatile("" : "+f"(x[i]) :: "memory");
}

/* A matrix at p, not swizzled. */
static __device__ __forceinline__ uint64_t
wg_matrix(const void *p, int leading, int stride)
{
	return (uint64_t)(shared_of(p) >> 4 & 0x3fff) |
	    (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32;
}

/* c[64,64] = a[64,16] b[64,16]^T, both in shared memory */
static __device__ __forceinline__ void
wg_dot(float (&c)[32], uint64_t a, uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
	    "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
	    "%32, %33, p, 1, 1, 0, 0;\n}\n" :
	    "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3]), "=f"(c[4]),
	    "=f"(c[5]), "=f"(c[6]), "=f"(c[7]), "=f"(c[8]), "=f"(c[9]),
	    "=f"(c[10]), "=f"(c[11]), "=f"(c[12]), "=f"(c[13]), "=f"(c[14]),
	    "=f"(c[15]), "=f"(c[16]), "=f"(c[17]), "=f"(c[18]), "=f"(c[19]),
	    "=f"(c[20]), "=f"(c[21]), "=f"(c[22]), "=f"(c[23]), "=f"(c[24]),
	    "=f"(c[25]), "=f"(c[26]), "=f"(c[27]), "=f"(c[28]), "=f"(c[29]),
	    "=f"(c[30]), "=f"(c[31]) :
	    "l"(a), "l"(b) : "memory");
}

/* c += the same */
static __device__ __forceinline__ void
wg_dot_more(float (&c)[32], uint64_t a, uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
	    "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
	    "%32, %33, p, 1, 1, 0, 0;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]) :
	    "l"(a), "l"(b) : "memory");
}

/* c[64,N] += a[64,16] b[16,N]; a in registers, b as the channels lie */
static __device__ __forceinline__ void
wg_sum(float (&c)[20], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
	    "%18,%19}, "
	    "{%20,%21,%22,%23}, %24, p, 1, 1, 1;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

static __device__ __forceinline__ void
wg_sum(float (&c)[32], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
	    "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
	    "{%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

static __device__ __forceinline__ void
wg_sum(float (&c)[40], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"
	    "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,"
	    "%33,%34,%35,%36,%37,%38,%39}, "
	    "{%40,%41,%42,%43}, %44, p, 1, 1, 1;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]),
	    "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

/* As copy_tile, into core matrices. */
template <int D, int ROWS, int THREADS>
static __device__ __forceinline__ void
copy_cores(unsigned char *to, const bf16 *from, int64_t ld, int valid, int d)
{
	constexpr int ROW8 = (D + 15) / 16 * 256;
	constexpr int ALL = ROWS * (D / 8);
	int at;

#pragma unroll
	for (at = 0; at < ALL; at += THREADS) {
		int i = at + threadIdx.x;
		int r = i / D * 8 + i % 8, u = i / 8 % (D / 8);
		bool there = r < valid && 8 * u < d;

		if (at + THREADS <= ALL || i < ALL)
			copy16(to + i / D * ROW8 + u * 128 + i % 8 * 16,
			    there ? from + r * ld + 8 * u : from, there);
	}
}

/* As copy_met. */
template <int D, bool KEYS>
static __device__ __forceinline__ void
copy_met_cores(unsigned char *stage, const struct job &j,
    const struct place &p, struct met *m)
{
	using S = wg_shape<D, KEYS>;
	int64_t lda = KEYS ? j.ldq : j.ldk, ldb = KEYS ? j.ldo : j.ldk;
	int length = KEYS ? j.lq : j.lk, t = m->block * S::MET;
	int64_t token = (int64_t)m->row * length + t;
	int valid = min(S::MET, length - t), x = 2 * threadIdx.x;

	copy_cores<D, S::MET, S::THREADS>(stage, m->a + token * lda, lda,
	    valid, j.d);
	copy_cores<D, S::MET, S::THREADS>(stage + S::MET_TILE,
	    m->b + token * ldb, ldb, valid, j.d);
	if (KEYS && x < S::MET)
		copy16(stage + 2 * S::MET_TILE + 8 * x, m->stats +
		    2 * ((int64_t)m->row * j.heads * j.lq_padded + t + x),
		    true);
	copies_begin();
	if (++m->block == p.begin + p.blocks) {
		m->block = p.begin;
		m->row++;
	}
}

/* What a warpgroup holds; fragments are those of the warps' products. */
template <int D>
struct wg {
	float dv[D / 2], dx[D / 2];
	uint32_t pa[4][4], da[4][4];
	float rl[2], rd[2];		/* stats of the rows, unless KEYS */
	uint64_t own_a, own_b;
};

/* p = P of s; for KEYS also as an operand. */
template <int D, bool KEYS>
static __device__ __forceinline__ void
wg_probabilities(struct wg<D> &w, float p[32], const float s[32],
    const float2 *stats, float scale2)
{
	int i, e;

#pragma unroll
	for (i = 0; i < 8; i++) {
		float2 f = KEYS ? stats[8 * i] :
		    make_float2(w.rl[0], w.rl[1]);

#pragma unroll
		for (e = 0; e < 4; e++)
			p[4 * i + e] = pow2(fmaf(s[4 * i + e], scale2,
			    (KEYS ? e % 2 : e / 2) ? f.y : f.x));
		if (KEYS) {
			w.pa[i / 2][i % 2 * 2] = pack(p[4 * i], p[4 * i + 1]);
			w.pa[i / 2][i % 2 * 2 + 1] = pack(p[4 * i + 2],
			    p[4 * i + 3]);
		}
	}
}

/*
 * dS = P (dP - delta) as an operand.  MASKED: only `valid` keys are there;
 * queries that are not have P = 0 by their stats.
 */
template <int D, bool KEYS, bool MASKED>
static __device__ __forceinline__ void
wg_gradients(struct wg<D> &w, float p[32], const float dp[32],
    const float2 *stats, int valid)
{
	int column = threadIdx.x % 4 * 2, i, e;

#pragma unroll
	for (i = 0; i < (MASKED ? 32 : 0); i++)
		if (i / 4 * 8 + column + i % 2 >= valid)
			p[i] = 0.0f;
#pragma unroll
	for (i = 0; i < 8; i++) {
		float2 f = KEYS ? stats[8 * i + 1] :
		    make_float2(w.rd[0], w.rd[1]);
		float g[4];

#pragma unroll
		for (e = 0; e < 4; e++)
			g[e] = p[4 * i + e] * (dp[4 * i + e] + ((KEYS ?
			    e % 2 : e / 2) ? f.y : f.x));
		w.da[i / 2][i % 2 * 2] = pack(g[0], g[1]);
		w.da[i / 2][i % 2 * 2 + 1] = pack(g[2], g[3]);
	}
}

/*
 * 64 tokens met: matrices at ma and mb.  The last products are left on their
 * way: they end before the S of the next tokens does.
 */
template <int D, bool KEYS, bool MASKED>
static __device__ __forceinline__ void
wg_meet(struct wg<D> &w, const unsigned char *ma, const unsigned char *mb,
    const float2 *stats, float scale2, int valid)
{
	constexpr int ROW8 = wg_shape<D, KEYS>::ROW8;
	uint64_t a = wg_matrix(ma, 128, ROW8), b = wg_matrix(mb, 128, ROW8);
	uint64_t at = wg_matrix(ma, ROW8, 128), bt = wg_matrix(mb, ROW8, 128);
	float s[32], dp[32], pr[32];
	int k;

	wg_begin();
	wg_dot(s, w.own_a, a);
#pragma unroll
	for (k = 1; k < ROW8 / 256; k++)
		wg_dot_more(s, w.own_a + 16 * k, a + 16 * k);
	wg_commit();
	wg_dot(dp, w.own_b, b);
#pragma unroll
	for (k = 1; k < ROW8 / 256; k++)
		wg_dot_more(dp, w.own_b + 16 * k, b + 16 * k);
	wg_commit();
	wg_wait<1>();
	wg_settle(s);
	wg_probabilities<D, KEYS>(w, pr, s, stats, scale2);
	if (KEYS) {
		/* Before the wait, so that dP is not waited for earlier. */
		wg_begin();
#pragma unroll
		for (k = 0; k < 4; k++)
			wg_sum(w.dv, w.pa[k], bt + k * (2 * ROW8 / 16));
		wg_commit();
	}
	wg_wait<KEYS ? 1 : 0>();
	wg_settle(dp);
	wg_gradients<D, KEYS, MASKED>(w, pr, dp, stats, valid);
	wg_begin();
#pragma unroll
	for (k = 0; k < 4; k++)
		wg_sum(w.dx, w.da[k], at + k * (2 * ROW8 / 16));
	wg_commit();
}

/* Rows of a warp; sum as put_rows has it. */
template <int D>
static __device__ __forceinline__ void
wg_put(bf16 *to, int64_t ld, const float (&sum)[D / 2], int rows, int d,
    float scale, bool add)
{
	put_rows<D>(to, ld, (const float (*)[4])sum, rows, d, scale, add);
}
#endif

template <int D, bool KEYS>
static __global__ void
__launch_bounds__(wg_shape<D, KEYS>::THREADS, 1)
wg_kernel(const __grid_constant__ struct job j)
{
#ifndef HAVE_WG
	__trap();		/* never asked for */
#else
	using S = wg_shape<D, KEYS>;
	extern __shared__ __align__(128) unsigned char cores[];
	unsigned char *own_a = cores, *own_b = own_a + S::TILE;
	unsigned char *stage = own_b + S::TILE, *last = stage + 2 * S::STAGE;
	const struct place p = place_of<KEYS>(j, S::OWNED, S::MET);
	int lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 16;
	int length = KEYS ? j.lq : j.lk, step, i;
	struct met next = met_of<KEYS>(j, p);
	struct wg<D> w = {};
	int64_t at = KEYS ? at_k(j, p.row, p.first, p.head) :
	    at_q(j, p.row, p.first, p.head);

	/* The channels that no copy writes. */
	for (i = threadIdx.x; i < (D % 16 ? S::BYTES / 16 : 0);
	    i += S::THREADS)
		((uint4 *)cores)[i] = make_uint4(0, 0, 0, 0);
	__syncthreads();
	copy_cores<D, S::OWNED, S::THREADS>(own_a, (const bf16 *)(KEYS ? j.k :
	    j.q) + at, KEYS ? j.ldk : j.ldq, p.valid, j.d);
	copy_cores<D, S::OWNED, S::THREADS>(own_b, KEYS ? (const bf16 *)j.v +
	    at : (const bf16 *)j.dout + at_o(j, p.row, p.first, p.head),
	    KEYS ? j.ldk : j.ldo, p.valid, j.d);
	copy_met_cores<D, KEYS>(stage, j, p, &next);
#pragma unroll
	for (i = 0; i < (KEYS ? 0 : 2); i++) {
		int r = mine + 8 * i + lane / 4;
		float2 f = make_float2(-INFINITY, 0.0f);

		if (r < p.valid)
			f = stats_of(j, p.row, p.head, p.first + r);
		w.rl[i] = f.x;
		w.rd[i] = f.y;
	}
	w.own_a = wg_matrix(own_a + mine / 64 * 8 * S::ROW8, 128, S::ROW8);
	w.own_b = wg_matrix(own_b + mine / 64 * 8 * S::ROW8, 128, S::ROW8);
	/* Zeros put in later would keep the products from overlapping. */
	wg_settle(w.dv);
	wg_settle(w.dx);
	for (step = 0; step < p.steps; step++) {
		int t = ((next.block == p.begin ? p.begin + p.blocks :
		    next.block) - 1) * S::MET;
		int valid = min(S::MET, length - t), x = 0;
		const unsigned char *ma = stage, *mb = ma + S::MET_TILE;
		const float2 *stats = (const float2 *)(mb + S::MET_TILE) +
		    lane % 4 * 2;

		copies_end();
		wg_publish();
		/* Also: all are done with the block before the last. */
		__syncthreads();
		stage = stage == last ? last - 2 * S::STAGE :
		    stage + S::STAGE;
		if (step + 1 < p.steps)
			copy_met_cores<D, KEYS>(stage, j, p, &next);
#pragma unroll 1
		for (; x + (KEYS ? 0 : 63) < valid; x += 64)
			wg_meet<D, KEYS, false>(w, ma + x / 8 * S::ROW8,
			    mb + x / 8 * S::ROW8, stats + x,
			    j.scale * LOG2E, 64);
		if (!KEYS && x < valid)
			wg_meet<D, KEYS, true>(w, ma + x / 8 * S::ROW8,
			    mb + x / 8 * S::ROW8, stats, j.scale * LOG2E,
			    valid - x);
	}
	wg_wait<0>();
	wg_settle(w.dv);
	wg_settle(w.dx);
	at += mine * (KEYS ? j.ldk : j.ldq);
	if (!KEYS)
		wg_put<D>((bf16 *)j.dq + at, j.ldq, w.dx, p.valid - mine, j.d,
		    j.scale, j.add & LPO_ADD_A);
	if (KEYS && j.dk != NULL)
		wg_put<D>((bf16 *)j.dk + at, j.ldk, w.dx, p.valid - mine, j.d,
		    j.scale, j.add & LPO_ADD_B);
	if (KEYS && j.dv != NULL)
		wg_put<D>((bf16 *)j.dv + at, j.ldk, w.dv, p.valid - mine, j.d,
		    1.0f, j.add & LPO_ADD_C);
#endif
}

/* ---- f32 sums of f32 products: f32, and bf16 that is not aligned */

/*
 * Tiles lie turned, [d][token], rows LD apart.  First every thread has 4 by 4
 * of S and dP; P and dS go to shared memory, [met][owned], with groups of
 * four exchanged by the met group's number so that neither the writes nor the
 * reads meet in a bank.  Then a thread has 4 owned rows by D / 8 channels of
 * a gradient; where there are threads twice over, one half has dV and the
 * other dK, or each half the sum over one half of the keys.
 */
template <int D, bool KEYS>
struct fma_shape {
	static constexpr int TILE = D <= 64 ? 64 : 32;
	static constexpr int LD = TILE + 4;
	static constexpr int THREADS = TILE * TILE / 16;
	static constexpr int HALF = TILE / 4 * 8;
	static constexpr int HALVES = THREADS / HALF;
	static constexpr int BYTES = (4 * D * LD + (KEYS ? 2 : 1) * TILE *
	    TILE + 2 * TILE) * 4;
};

/* tile[x][t] = row t, channel x; zeros outside. */
template <typename T, int D, int TILE, int THREADS>
static __device__ __forceinline__ void
load_turned(float *tile, const T *from, int64_t ld, int valid, int d)
{
	int t, x;

	for (t = threadIdx.x / 8; t < TILE; t += THREADS / 8)
#pragma unroll
		for (x = threadIdx.x % 8; x < D; x += 8)
			tile[x * (TILE + 4) + t] = t < valid && x < d ?
			    cuda_load(from + t * ld + x) : 0.0f;
}

static __device__ __forceinline__ void
outer4(float c[4][4], float4 a, float4 b)
{
	float x[4] = { a.x, a.y, a.z, a.w }, y[4] = { b.x, b.y, b.z, b.w };
	int i, k;

#pragma unroll
	for (i = 0; i < 4; i++)
#pragma unroll
		for (k = 0; k < 4; k++)
			c[i][k] = fmaf(x[i], y[k], c[i][k]);
}

/* sum[4 owned][D / 8] += w[met][owned] tile[channel][met], met in [m0, m1) */
template <int D, int TILE>
static __device__ __forceinline__ void
sum_tile(float sum[4][D / 8], const float *w, const float *tile, int group,
    int channel, int m0, int m1)
{
	int m, i, x;

#pragma unroll 1
	for (m = m0; m < m1; m += 4) {
		float4 a[4];

#pragma unroll
		for (i = 0; i < 4; i++)
			a[i] = *(const float4 *)(w + (m + i) * TILE +
			    4 * (group ^ (m / 4 % 8)));
#pragma unroll
		for (x = 0; x < D / 8; x++) {
			float4 b = *(const float4 *)(tile +
			    (channel + 8 * x) * (TILE + 4) + m);
			float y[4] = { b.x, b.y, b.z, b.w };

#pragma unroll
			for (i = 0; i < 4; i++) {
				sum[0][x] = fmaf(a[i].x, y[i], sum[0][x]);
				sum[1][x] = fmaf(a[i].y, y[i], sum[1][x]);
				sum[2][x] = fmaf(a[i].z, y[i], sum[2][x]);
				sum[3][x] = fmaf(a[i].w, y[i], sum[3][x]);
			}
		}
	}
}

template <typename T, int D>
static __device__ __forceinline__ void
put_sums(T *to, int64_t ld, const float sum[4][D / 8], int rows, int channel,
    int d, float scale, bool add)
{
	int i, x;

#pragma unroll
	for (i = 0; i < 4; i++)
#pragma unroll
		for (x = 0; x < D / 8; x++) {
			T *p = to + i * ld + channel + 8 * x;

			if (i < rows && channel + 8 * x < d)
				cuda_store(p, fmaf(sum[i][x], scale, add ?
				    cuda_load(p) : 0.0f));
		}
}

template <typename T, int D, bool KEYS>
static __global__ void
__launch_bounds__(fma_shape<D, KEYS>::THREADS)
fma_kernel(const __grid_constant__ struct job j)
{
	using S = fma_shape<D, KEYS>;
	constexpr int TILE = S::TILE, LD = S::LD, THREADS = S::THREADS;
	constexpr int SUMS = KEYS && S::HALVES == 1 ? 2 : 1;
	extern __shared__ __align__(16) unsigned char memory[];
	float *own_a = (float *)memory, *own_b = own_a + D * LD;
	float *met_a = own_b + D * LD, *met_b = met_a + D * LD;
	float *ds = met_b + D * LD, *ps = ds + TILE * TILE;
	float2 *stats = (float2 *)(KEYS ? ps + TILE * TILE : ps);
	const struct place p = place_of<KEYS>(j, TILE, TILE);
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int og = warp / (TILE / 32) * 4 + lane / 8;
	int mg = warp % (TILE / 32) * 8 + lane % 8;
	int half = threadIdx.x / S::HALF;
	int group = threadIdx.x % S::HALF / 8, channel = threadIdx.x % 8;
	float sum[SUMS][4][D / 8] = {};
	float scale2 = j.scale * LOG2E;
	int step, x, i, k;

	if (KEYS) {
		int64_t at = at_k(j, p.row, p.first, p.head);

		load_turned<T, D, TILE, THREADS>(own_a, (const T *)j.k + at,
		    j.ldk, p.valid, j.d);
		load_turned<T, D, TILE, THREADS>(own_b, (const T *)j.v + at,
		    j.ldk, p.valid, j.d);
	} else {
		load_turned<T, D, TILE, THREADS>(own_a, (const T *)j.q +
		    at_q(j, p.row, p.first, p.head), j.ldq, p.valid, j.d);
		load_turned<T, D, TILE, THREADS>(own_b, (const T *)j.dout +
		    at_o(j, p.row, p.first, p.head), j.ldo, p.valid, j.d);
		if (threadIdx.x < TILE)
			stats[threadIdx.x] = stats_of(j, p.row, p.head,
			    p.first + threadIdx.x);
	}
	for (step = 0; step < p.steps; step++) {
		float s[4][4] = {}, dp[4][4] = {};
		int64_t row, t, end = KEYS ? j.lq : j.lk;
		int valid;

		met_at<KEYS>(j, p, step, TILE, &row, &t);
		valid = (int)min((int64_t)TILE, end - t);
		if (KEYS) {
			load_turned<T, D, TILE, THREADS>(met_a, (const T *)j.q +
			    at_q(j, row, t, p.head), j.ldq, valid, j.d);
			load_turned<T, D, TILE, THREADS>(met_b,
			    (const T *)j.dout + at_o(j, row, t, p.head),
			    j.ldo, valid, j.d);
			if (threadIdx.x < TILE)
				stats[threadIdx.x] = stats_of(j, row, p.head,
				    t + threadIdx.x);
		} else {
			int64_t at = at_k(j, row, t, p.head);

			load_turned<T, D, TILE, THREADS>(met_a,
			    (const T *)j.k + at, j.ldk, valid, j.d);
			load_turned<T, D, TILE, THREADS>(met_b,
			    (const T *)j.v + at, j.ldk, valid, j.d);
		}
		__syncthreads();
#pragma unroll 4
		for (x = 0; x < j.d; x++) {
			outer4(s, *(const float4 *)(own_a + x * LD + 4 * og),
			    *(const float4 *)(met_a + x * LD + 4 * mg));
			outer4(dp, *(const float4 *)(own_b + x * LD + 4 * og),
			    *(const float4 *)(met_b + x * LD + 4 * mg));
		}
#pragma unroll
		for (k = 0; k < 4; k++) {
			int m = 4 * mg + k;
			int to = m * TILE + 4 * (og ^ (mg % 8));
			float pr[4], g[4];

#pragma unroll
			for (i = 0; i < 4; i++) {
				float2 st = stats[KEYS ? m : 4 * og + i];
				int64_t own = p.first + 4 * og + i;
				bool seen = m < valid && !(j.causal && (KEYS ?
				    own > t + m : t + m > own));

				pr[i] = seen ? exp2f(fmaf(s[i][k], scale2,
				    st.x)) : 0.0f;
				g[i] = pr[i] * (dp[i][k] + st.y);
			}
			*(float4 *)(ds + to) = make_float4(g[0], g[1], g[2],
			    g[3]);
			if (KEYS)
				*(float4 *)(ps + to) = make_float4(pr[0],
				    pr[1], pr[2], pr[3]);
		}
		__syncthreads();
		if (!KEYS)
			sum_tile<D, TILE>(sum[0], ds, met_a, group, channel,
			    half * (TILE / S::HALVES),
			    (half + 1) * (TILE / S::HALVES));
		else if (SUMS == 2 || half == 0)
			sum_tile<D, TILE>(sum[0], ps, met_b, group, channel,
			    0, TILE);
		if (KEYS && (SUMS == 2 || half == 1))
			sum_tile<D, TILE>(sum[SUMS - 1], ds, met_a, group,
			    channel, 0, TILE);
		__syncthreads();
	}
	if (!KEYS && S::HALVES == 2) {
		/* The owned tiles are done with. */
		float *rest = own_a + threadIdx.x % S::HALF;

		__syncthreads();
		if (half == 1)
#pragma unroll
			for (i = 0; i < 4 * (D / 8); i++)
				rest[i * S::HALF] = sum[0][i % 4][i / 4];
		__syncthreads();
		if (half == 0)
#pragma unroll
			for (i = 0; i < 4 * (D / 8); i++)
				sum[0][i % 4][i / 4] += rest[i * S::HALF];
	}
	{
		int64_t token = p.first + 4 * group;
		int rows = p.valid - 4 * group;
		int64_t at = KEYS ? at_k(j, p.row, token, p.head) :
		    at_q(j, p.row, token, p.head);

		if (!KEYS && half == 0)
			put_sums<T, D>((T *)j.dq + at, j.ldq, sum[0], rows,
			    channel, j.d, j.scale, j.add & LPO_ADD_A);
		if (KEYS && j.dv != NULL && half == 0)
			put_sums<T, D>((T *)j.dv + at, j.ldk, sum[0], rows,
			    channel, j.d, 1.0f, j.add & LPO_ADD_C);
		if (KEYS && j.dk != NULL && (SUMS == 2 || half == 1))
			put_sums<T, D>((T *)j.dk + at, j.ldk, sum[SUMS - 1],
			    rows, channel, j.d, j.scale, j.add & LPO_ADD_B);
	}
}

/* ---- host */

typedef void (*grad_kernel)(const struct job);

/* One kernel, over n rows of `tokens` owned in blocks of `owned`. */
static int
launch(struct cuda *c, grad_kernel kernel, const struct job *j, int64_t n,
    int64_t tokens, int owned, int threads, int bytes)
{
	int64_t blocks = (tokens + owned - 1) / owned * j->heads * n;
	int ret;

	if (blocks > INT32_MAX)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd",
		    "too many rows");
	ret = cuda_check(c, cudaFuncSetAttribute((const void *)kernel,
	    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
	    "attention_bwd");
	if (ret != 0)
		return ret;
	kernel<<<(unsigned)blocks, threads, bytes, c->stream>>>(*j);
	return cuda_done(c, "attention_bwd");
}

template <int D, bool KEYS>
static int
launch_mma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = mma_shape<D, KEYS>;

	return launch(c, mma_kernel<D, KEYS>, j, n, tokens, S::OWNED,
	    S::WARPS * 32, S::BYTES);
}

template <int D, bool KEYS>
static int
launch_wg(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = wg_shape<D, KEYS>;

	return launch(c, wg_kernel<D, KEYS>, j, n, tokens, S::OWNED,
	    S::THREADS, S::BYTES);
}

template <bool KEYS>
static int
pass_wg(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	if (j->d <= 40)
		return launch_wg<40, KEYS>(c, j, n, tokens);
	if (j->d <= 64)
		return launch_wg<64, KEYS>(c, j, n, tokens);
	return launch_wg<80, KEYS>(c, j, n, tokens);
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

template <typename T, int D, bool KEYS>
static int
launch_fma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = fma_shape<D, KEYS>;

	return launch(c, fma_kernel<T, D, KEYS>, j, n, tokens, S::TILE,
	    S::THREADS, S::BYTES);
}

template <typename T, bool KEYS>
static int
pass_fma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	int most = 0, ret;

	ret = cuda_check(c, cudaDeviceGetAttribute(&most,
	    cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device),
	    "attention_bwd");
	if (ret != 0)
		return ret;
	if (j->d <= 40)
		return launch_fma<T, 40, KEYS>(c, j, n, tokens);
	if (j->d <= 64 && most >= fma_shape<64, KEYS>::BYTES)
		return launch_fma<T, 64, KEYS>(c, j, n, tokens);
	if (j->d <= 80)
		return launch_fma<T, 80, KEYS>(c, j, n, tokens);
	return launch_fma<T, LARGEST_D, KEYS>(c, j, n, tokens);
}

static inline bool
aligned(const void *p)
{
	return (uintptr_t)p % 16 == 0;
}

/* Whole 16 bytes in every row of every tensor. */
static bool
wide(const struct job *j, const void *o)
{
	return j->d % 8 == 0 && j->ldq % 8 == 0 && j->ldk % 8 == 0 &&
	    aligned(j->q) && aligned(j->k) && aligned(j->v) &&
	    aligned(j->dout) && aligned(o) && aligned(j->dq) &&
	    aligned(j->dk) && aligned(j->dv);
}

template <typename T>
static int
run_stats(struct cuda *c, const struct job *j, float *stats, const void *o,
    const float *lse, int64_t n)
{
	constexpr int V = 16 / sizeof(T);
	int64_t rows = n * j->heads * j->lq_padded, blocks = (rows + 31) / 32;

	if (blocks > INT32_MAX)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd",
		    "too many rows");
	if (j->d % V == 0 && aligned(o) && aligned(j->dout))
		stats_kernel<T, V><<<(unsigned)blocks, 256, 0, c->stream>>>(
		    stats, (const T *)j->dout, (const T *)o, lse, rows, j->lq,
		    j->lq_padded, j->heads, j->d);
	else
		stats_kernel<T, 1><<<(unsigned)blocks, 256, 0, c->stream>>>(
		    stats, (const T *)j->dout, (const T *)o, lse, rows, j->lq,
		    j->lq_padded, j->heads, j->d);
	return cuda_done(c, "attention_bwd");
}

template <bool KEYS>
static int
pass(struct cuda *c, enum lpo_dtype dt, const struct job *j, const void *o,
    int64_t n, int64_t tokens)
{
	if (dt == LPO_F32)
		return pass_fma<float, KEYS>(c, j, n, tokens);
	if (wide(j, o) && c->sm == 90 && j->d <= 80 && !j->causal &&
	    j->lq >= LONG && j->lk >= LONG)
		return pass_wg<KEYS>(c, j, n, tokens);
	if (wide(j, o))
		return pass_mma<KEYS>(c, j, n, tokens);
	return pass_fma<bf16, KEYS>(c, j, n, tokens);
}

int
cuda_attention_bwd(lpo_backend *be, enum lpo_dtype dt, void *dq, void *dk,
    void *dv, const void *dout, const void *o, const float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int add, void *scratch)
{
	struct cuda *c = cuda_of(be);
	struct job j = { q, k, v, dout, dq, dk, dv, (const float *)scratch,
	    padded(s->lq), s->ldq, s->ldk, s->heads * s->d, (int)s->lq,
	    (int)s->lk, (int)s->heads, (int)s->d, s->causal, add, 0, 0.0f };
	int ret;

	if (s->n == 0 || (dq == NULL && dk == NULL && dv == NULL))
		return 0;
	if ((dt != LPO_F32 && dt != LPO_BF16) || s->n < 1 || s->nk < 1 ||
	    s->n % s->nk != 0 || s->lq < 1 || s->lk < 1 || s->heads < 1 ||
	    s->d < 1 || s->d > LARGEST_D || s->lk > LONGEST ||
	    s->n / s->nk > LONGEST / s->lq)
		return cuda_fail(c, LPO_EINVAL, "attention_bwd", "bad shape");
	j.share = (int)(s->n / s->nk);
	j.scale = 1.0f / sqrtf((float)s->d);
	ret = dt == LPO_F32 ?
	    run_stats<float>(c, &j, (float *)scratch, o, lse, s->n) :
	    run_stats<bf16>(c, &j, (float *)scratch, o, lse, s->n);
	if (ret == 0 && (dk != NULL || dv != NULL))
		ret = pass<true>(c, dt, &j, o, s->nk, s->lk);
	if (ret == 0 && dq != NULL)
		ret = pass<false>(c, dt, &j, o, s->n, s->lq);
	return ret;
}

size_t
cuda_attention_bwd_bytes(enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	(void)dt;
	return (size_t)(s->n * s->heads * padded(s->lq)) * 2 *
	    sizeof(float);
}
