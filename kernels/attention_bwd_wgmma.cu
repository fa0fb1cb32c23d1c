/*
 * Attention, backward, of long sequences in bf16 on Hopper's warpgroups: one
 * owns 64 rows, and both tiles it meets are read from shared memory as they
 * are, whichever way they are multiplied.
 */
#include "kernels/attention_bwd.h"
#include "kernels/attention_wgmma.h"

#include <math.h>

template <int D, bool KEYS>
struct wg_shape {
	static constexpr int GROUPS = KEYS ? (D <= 40 ? 3 : 2) : 4;
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

template <int D, bool KEYS>
static int
launch_wg(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = wg_shape<D, KEYS>;

	return grad_launch(c, wg_kernel<D, KEYS>, j, n, tokens, S::OWNED,
	    S::THREADS, S::BYTES);
}

int
cuda_bwd_wgmma(struct cuda *c, const struct job *j, bool keys, int64_t n,
    int64_t tokens)
{
	if (!keys)
		return launch_wg<40, false>(c, j, n, tokens);
	if (j->d <= 40)
		return launch_wg<40, true>(c, j, n, tokens);
	if (j->d <= 64)
		return launch_wg<64, true>(c, j, n, tokens);
	return launch_wg<80, true>(c, j, n, tokens);
}
