/*
 * Attention, backward, in bf16 on Hopper's warpgroups.
 */
#include "kernels/attention_bwd.h"
#include "kernels/attention_wgmma.h"

#include <math.h>

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

#ifdef HAVE_WG
/*
 * ROWS rows of D elements as core matrices, zeros beyond `valid` rows and d
 * columns.
 */
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
			wg_copy16(to + i / D * ROW8 + u * 128 + i % 8 * 16,
			    there ? from + r * ld + 8 * u : from, there);
	}
}

/* Both tiles of the next block met, and its stats. */
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
		wg_copy16(stage + 2 * S::MET_TILE + 8 * x, m->stats +
		    2 * ((int64_t)m->row * j.heads * j.lq_padded + t + x),
		    true);
	wg_copies_begin();
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
	const struct place p = place_of<KEYS>(j, S::OWNED, S::MET,
	    blockIdx.x);
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

		wg_copies_wait<0>();
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

/* ---- the next S ahead of the arithmetic */

/*
 * The next S is on its way while the arithmetic of this one goes on: one
 * warpgroup alone keeps the tensor cores busy.  The owned tiles stay in
 * registers where there are enough (HELD).  Blocks are announced by barriers
 * in shared memory instead of waited for by all at once.  While a block is met
 * by one warpgroup, another may be in the one before, and copies are two
 * ahead: hence the stages.
 */
template <int D_, bool KEYS, int GROUPS_, int POLY_>
struct deep_shape {
	static constexpr int D = D_;
	static constexpr int GROUPS = GROUPS_;
	static constexpr int POLY = POLY_;
	static constexpr bool HELD = D <= 40 || !KEYS;
	/* P as operands twice, the last still being read */
	static constexpr bool TWICE = KEYS && D <= 64;
	static constexpr int THREADS = GROUPS * 128;
	static constexpr int OWNED = GROUPS * 64;
	static constexpr int MET = 128;
	static constexpr int STAGES = 4;
	static constexpr int DEPTH = (D + 15) / 16;
	static constexpr int ROW8 = DEPTH * 256;
	static constexpr int TILE = MET / 8 * ROW8;
	static constexpr int STAGE = 2 * TILE + (KEYS ? MET * 8 : 0);
	static constexpr int OWN = HELD ? 0 : OWNED / 8 * ROW8;
	static constexpr int BYTES = STAGES * STAGE + 2 * OWN + STAGES * 8;
	/* tokens copied at a time by all threads */
	static constexpr int ROWS = THREADS / D >= 8 ? 64 :
	    THREADS / D >= 4 ? 32 : 16;
};

#ifdef HAVE_WG
/* What a thread copies, and where it is in the stages. */
struct deep_feed {
	const bf16 *a, *b;	/* its 16 bytes of the next block */
	const float *stats;
	int to, row, stage;
	int there;		/* its channels are */
	int block;		/* next, of its row met */
	int steps;		/* blocks to come */
};

template <class S, bool KEYS>
static __device__ __forceinline__ void
deep_feed_begin(struct deep_feed &f, const struct job &j,
    const struct place &p)
{
	struct met m = met_of<KEYS>(j, p);
	int u = threadIdx.x / 8 % (S::D / 8);

	f.row = threadIdx.x / S::D * 8 + threadIdx.x % 8;
	f.a = m.a + f.row * (KEYS ? j.ldq : j.ldk) + 8 * u;
	f.b = m.b + f.row * (KEYS ? j.ldo : j.ldk) + 8 * u;
	f.stats = m.stats + 4 * (threadIdx.x % (S::MET / 2));
	f.to = f.row / 8 * S::ROW8 + u * 128 + f.row % 8 * 16;
	f.there = 8 * u < j.d;
	f.stage = f.block = 0;
	f.steps = p.steps;
}

/* The next block is on its way; zeros after the last. */
template <class S, bool KEYS>
static __device__ __forceinline__ void
deep_feed_next(struct deep_feed &f, unsigned char *stages,
    const struct job &j, const struct place &p)
{
	int64_t lda = KEYS ? j.ldq : j.ldk, ldb = KEYS ? j.ldo : j.ldk;
	unsigned char *stage = stages + f.stage * S::STAGE, *to = stage + f.to;
	int left = (KEYS ? j.lq : j.lk) - f.block * S::MET, i;
	int valid = f.steps > 0 && f.there ? left : 0;
	int next = min(left, (int)S::MET);

	if (f.row < S::ROWS)
#pragma unroll
		for (i = 0; i < S::MET; i += S::ROWS) {
			bool there = f.row + i < valid;

			wg_copy16(to + i / 8 * S::ROW8,
			    f.a + (there ? i * lda : 0), there);
			wg_copy16(to + i / 8 * S::ROW8 + S::TILE,
			    f.b + (there ? i * ldb : 0), there);
		}
	if (KEYS && threadIdx.x < S::MET / 2)
		wg_copy16(stage + 2 * S::TILE + 16 * threadIdx.x, f.stats,
		    f.steps > 0);
	wg_copies_begin();
	f.steps--;
	f.stage = f.stage == S::STAGES - 1 ? 0 : f.stage + 1;
	if (f.steps <= 0)
		return;
	f.a += next * lda;
	f.b += next * ldb;
	f.stats += 2 * S::MET;
	if (++f.block == p.blocks) {
		f.block = 0;
		f.stats += 2 * ((int64_t)j.heads * j.lq_padded -
		    (int64_t)p.blocks * S::MET);
	}
}

/* The copies before the last have arrived; others are told. */
static __device__ __forceinline__ void
announce(uint64_t *full)
{
	wg_copies_wait<1>();
	wg_publish();
	__syncwarp();
	if (threadIdx.x % 32 == 0)
		wg_arrive(full);
}

/* An owned matrix of a warpgroup, in registers or in shared memory. */
template <class S>
struct deep_own {
	uint32_t held[S::HELD ? S::DEPTH : 1][4];
	uint64_t at;
};

template <class S>
struct deep {
	struct deep_own<S> a, b;
	float dv[S::D / 2], dx[S::D / 2], dp[32];
	uint32_t pa[S::TWICE + 1][4][4], da[4][4];
	float rl[2], rd[2];		/* stats of the rows, unless KEYS */
};

/* c = owned times the 64 tokens at p, on its way */
template <class S>
static __device__ __forceinline__ void
deep_ask(float (&c)[32], const struct deep_own<S> &own,
    const unsigned char *p)
{
	uint64_t b = wg_matrix(p, 128, S::ROW8);
	int x;

	if (S::HELD)
		wg_dot(c, own.held[0], b);
	else
		wg_dot(c, own.at, b);
#pragma unroll
	for (x = 1; x < S::DEPTH; x++)
		if (S::HELD)
			wg_dot_more(c, own.held[S::HELD ? x : 0], b + 16 * x);
		else
			wg_dot_more(c, own.at + 16 * x, b + 16 * x);
	wg_commit();
}

/* c += a times the 64 tokens at p, on its way */
template <class S>
static __device__ __forceinline__ void
deep_sum(float (&c)[S::D / 2], const uint32_t (&a)[4][4],
    const unsigned char *p)
{
	uint64_t b = wg_matrix(p, S::ROW8, 128);
	int k;

#pragma unroll
	for (k = 0; k < 4; k++)
		wg_sum(c, a[k], b + k * (2 * S::ROW8 / 16));
	wg_commit();
}

/* Where 64 tokens lie. */
struct tile {
	const unsigned char *a, *b;
	const float2 *stats;
};

template <class S, bool KEYS>
static __device__ __forceinline__ struct tile
deep_tile(const unsigned char *stages, int stage, int half)
{
	const unsigned char *p = stages + stage * S::STAGE;
	struct tile t;

	t.a = p + half * 8 * S::ROW8;
	t.b = t.a + S::TILE;
	t.stats = (const float2 *)(p + 2 * S::TILE) + half * 64 +
	    threadIdx.x % 4 * 2;
	return t;
}

/*
 * One tile t, whose S in s and dP in dp have been asked for; ends with those
 * of the next one, its S going to `other`, and the sums of this on their way.
 */
template <class S, bool KEYS>
static __device__ __forceinline__ void
deep_meet(struct deep<S> &w, float (&s)[32], float (&other)[32],
    uint32_t (&pa)[4][4], const struct tile &t, const struct tile &next,
    float scale2, int valid)
{
	uint32_t sign = 0;
	int i, e;

	wg_begin();
	deep_ask<S>(other, w.a, next.a);
	/* dV, dP, dX and that S may go on. */
	wg_wait<KEYS ? 4 : 3>();
	wg_settle(s);
#pragma unroll
	for (i = 0; i < 8; i++) {
		float2 f = KEYS ? t.stats[8 * i] :
		    make_float2(w.rl[0], w.rl[1]);

#pragma unroll
		for (e = 0; e < 4; e++) {
			float x = fmaf(s[4 * i + e], scale2,
			    (KEYS ? e % 2 : e / 2) ? f.y : f.x);

			s[4 * i + e] = i * S::POLY % 8 + S::POLY >= 8 ?
			    pow2_poly(x) : pow2(x);
		}
		if (S::TWICE) {
			pa[i / 2][i % 2 * 2] = pack(s[4 * i], s[4 * i + 1]);
			pa[i / 2][i % 2 * 2 + 1] = pack(s[4 * i + 2],
			    s[4 * i + 3]);
			sign |= pa[i / 2][i % 2 * 2] |
			    pa[i / 2][i % 2 * 2 + 1];
		} else {
			sign |= __float_as_uint(s[4 * i]) |
			    __float_as_uint(s[4 * i + 1]) |
			    __float_as_uint(s[4 * i + 2]) |
			    __float_as_uint(s[4 * i + 3]);
		}
	}
	if (!KEYS && valid < 64)
#pragma unroll
		for (i = 0; i < 32; i++)
			if (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= valid)
				s[i] = 0.0f;
	/*
	 * Never so, but what is asked for has to be there: without this the
	 * assembler moves all of P behind the wait.
	 */
	if ((int)sign < 0)
		wg_pause();
	wg_wait<1>();
	wg_settle(w.dp);
#pragma unroll
	for (i = 0; i < (KEYS && !S::TWICE ? 16 : 0); i++)
		pa[i / 4][i % 4] = pack(s[2 * i], s[2 * i + 1]);
	if (KEYS) {
		wg_begin();
		deep_sum<S>(w.dv, pa, t.b);
	}
#pragma unroll
	for (i = 0; i < 8; i++) {
		float2 f = KEYS ? t.stats[8 * i + 1] :
		    make_float2(w.rd[0], w.rd[1]);
		float g[4];

#pragma unroll
		for (e = 0; e < 4; e++)
			g[e] = s[4 * i + e] * (w.dp[4 * i + e] + ((KEYS ?
			    e % 2 : e / 2) ? f.y : f.x));
		w.da[i / 2][i % 2 * 2] = pack(g[0], g[1]);
		w.da[i / 2][i % 2 * 2 + 1] = pack(g[2], g[3]);
	}
	wg_begin();
	deep_ask<S>(w.dp, w.b, next.b);
	deep_sum<S>(w.dx, w.da, t.a);
}

template <class S, bool KEYS>
static __device__ __forceinline__ void
deep_walk(struct deep<S> &w, struct deep_feed &f, unsigned char *stages,
    uint64_t *full, const struct job &j, const struct place &p)
{
	int length = KEYS ? j.lq : j.lk, step, at = 0, parity = 0;
	float s0[32], s1[32], scale2 = j.scale * LOG2E;
	struct tile t = deep_tile<S, KEYS>(stages, 0, 0), next;

	announce(full);
	wg_barrier_wait(full, 0);
	wg_begin();
	deep_ask<S>(s0, w.a, t.a);
	deep_ask<S>(w.dp, w.b, t.b);
	wg_wait<0>();
	wg_settle(s0);
	wg_settle(w.dp);
	for (step = 0; step < p.steps; step++) {
		/* Of keys, which are of one row. */
		int valid = length - step * S::MET;

		next = deep_tile<S, KEYS>(stages, at, 1);
		deep_meet<S, KEYS>(w, s0, s1, w.pa[0], t, next, scale2, valid);
		t = next;
		if (++at == S::STAGES) {
			at = 0;
			parity ^= 1;
		}
		deep_feed_next<S, KEYS>(f, stages, j, p);
		announce(full + at);
		wg_barrier_wait(full + at, parity);
		next = deep_tile<S, KEYS>(stages, at, 0);
		deep_meet<S, KEYS>(w, s1, s0, w.pa[S::TWICE], t, next, scale2,
		    valid - 64);
		t = next;
	}
	wg_copies_wait<0>();
	wg_wait<0>();
	wg_settle(w.dv);
	wg_settle(w.dx);
}
#endif

template <class S, bool KEYS>
static __global__ void
__launch_bounds__(S::THREADS, 1)
deep_kernel(const __grid_constant__ struct job j)
{
#ifndef HAVE_WG
	__trap();		/* never asked for */
#else
	extern __shared__ __align__(128) unsigned char cores[];
	unsigned char *own = cores + S::STAGES * S::STAGE;
	uint64_t *full = (uint64_t *)(own + 2 * S::OWN);
	const struct place p = place_of<KEYS>(j, S::OWNED, S::MET,
	    blockIdx.x);
	int lane = threadIdx.x % 32, mine = threadIdx.x / 32 * 16, i;
	int64_t at = KEYS ? at_k(j, p.row, p.first, p.head) :
	    at_q(j, p.row, p.first, p.head);
	int64_t lda = KEYS ? j.ldk : j.ldq, ldb = KEYS ? j.ldk : j.ldo;
	const bf16 *a = (const bf16 *)(KEYS ? j.k : j.q) + at;
	const bf16 *b = KEYS ? (const bf16 *)j.v + at :
	    (const bf16 *)j.dout + at_o(j, p.row, p.first, p.head);
	struct deep_feed f;
	struct deep<S> w;

	/* The channels that no copy writes. */
	for (i = threadIdx.x; i < (S::D % 16 ? S::STAGES * S::STAGE / 16 : 0);
	    i += S::THREADS)
		((uint4 *)cores)[i] = make_uint4(0, 0, 0, 0);
	if (threadIdx.x == 0)
		for (i = 0; i < S::STAGES; i++)
			wg_barrier_init(full + i, S::THREADS / 32);
	__syncthreads();
	if (S::HELD) {
		a += mine * lda;
		b += mine * ldb;
		wg_hold(w.a.held, a, lda, p.valid - mine, j.d);
		wg_hold(w.b.held, b, ldb, p.valid - mine, j.d);
	} else {
		copy_cores<S::D, S::OWNED, S::THREADS>(own, a, lda, p.valid,
		    j.d);
		copy_cores<S::D, S::OWNED, S::THREADS>(own + S::OWN, b, ldb,
		    p.valid, j.d);
		w.a.at = wg_matrix(own + mine / 64 * 8 * S::ROW8, 128,
		    S::ROW8);
		w.b.at = w.a.at + S::OWN / 16;
	}
	deep_feed_begin<S, KEYS>(f, j, p);
	deep_feed_next<S, KEYS>(f, cores, j, p);
	deep_feed_next<S, KEYS>(f, cores, j, p);
#pragma unroll
	for (i = 0; i < (KEYS ? 0 : 2); i++) {
		int r = mine + 8 * i + lane / 4;
		float2 st = make_float2(-INFINITY, 0.0f);

		if (r < p.valid)
			st = stats_of(j, p.row, p.head, p.first + r);
		w.rl[i] = st.x;
		w.rd[i] = st.y;
	}
#pragma unroll
	for (i = 0; i < S::D / 2; i++)
		w.dv[i] = w.dx[i] = 0.0f;
	/* Zeros put in later would keep the products from overlapping. */
	wg_settle(w.dv);
	wg_settle(w.dx);
	deep_walk<S, KEYS>(w, f, cores, full, j, p);
	at += mine * lda;
	if (!KEYS)
		wg_put<S::D>((bf16 *)j.dq + at, j.ldq, w.dx, p.valid - mine, j.d,
		    j.scale, j.add & LPO_ADD_A);
	if (KEYS && j.dk != NULL)
		wg_put<S::D>((bf16 *)j.dk + at, j.ldk, w.dx, p.valid - mine, j.d,
		    j.scale, j.add & LPO_ADD_B);
	if (KEYS && j.dv != NULL)
		wg_put<S::D>((bf16 *)j.dv + at, j.ldk, w.dv, p.valid - mine, j.d,
		    1.0f, j.add & LPO_ADD_C);
#endif
}

template <class S, bool KEYS>
static int
launch_deep(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	return grad_launch(c, deep_kernel<S, KEYS>, j, n, tokens, S::OWNED,
	    S::THREADS, S::BYTES);
}

template <int D, bool KEYS>
static int
launch_wg(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = wg_shape<D, KEYS>;

	return grad_launch(c, wg_kernel<D, KEYS>, j, n, tokens, S::OWNED,
	    S::THREADS, S::BYTES);
}

template <bool KEYS>
static int
pass_wg(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	if (j->d <= 40)
		return launch_deep<deep_shape<40, KEYS, 2, 0>, KEYS>(c, j, n,
		    tokens);
	if (j->d <= 64)
		return launch_deep<deep_shape<64, KEYS, 2, 0>, KEYS>(c, j, n,
		    tokens);
	return launch_deep<deep_shape<80, KEYS, 2, 0>, KEYS>(c, j, n, tokens);
}

int
cuda_bwd_wgmma(struct cuda *c, const struct job *j, bool keys, int64_t n,
    int64_t tokens)
{
	return keys ? pass_wg<true>(c, j, n, tokens) :
	    pass_wg<false>(c, j, n, tokens);
}
