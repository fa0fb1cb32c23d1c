/*
 * The blocked product (see gemm.h).  B is packed once into panels of NR
 * columns that all threads share; a thread takes a block of MC rows of A,
 * walks K in blocks of KC, and a register tile of MR x NR does the work.
 * A keeps its row-major form: the tile broadcasts from MR rows, which costs
 * nothing and spares the transposition of the usual packing.
 */
#include <omp.h>

#include "kernels/gemm.h"
#include "kernels/ints.h"
#include "kernels/tile.h"

#define KC	LPO_GEMM_KC
#define MC	96			/* rows of A per block: 104 kB of L2 */
#define LDA	(KC + 16)		/* not a power of two: L1 has few ways */
#define NC	512			/* columns of B packed at a time */
#define LDN	(NC + 16)
#define TILES_AHEAD 4
#define LINE	16			/* floats of a cache line */
#define KU	32			/* rows of B packed at a time */
#define NT	256			/* columns of a tile of a weight sum */
#define LDT	(NT + 16)
#define LDM	(MC + 16)
#define B_FLOATS (2 << 20)		/* NC shrinks for long K: 8 MB */
#define AHEAD	8			/* rows to prefetch */
#define SERIAL_FLOPS 200000		/* waking threads costs more */

/* A by columns, s floats apart. */
#define COL_TILE(m, nv)							\
static void								\
tile_col_##m##_##nv(int64_t kc, const float *a, int64_t s,		\
    const float *b, int64_t sb, float *c, int more)			\
{									\
	tile(m, nv, kc, a, 1, s, b, sb, c, more);			\
}
ALL_M(COL_TILE, 1)
ALL_M(COL_TILE, 2)

#define COL_NAME(m, nv)	tile_col_##m##_##nv,
static tile_fn *const col_tile[NV][MR] = {
	{ ALL_M(COL_NAME, 1) }, { ALL_M(COL_NAME, 2) }
};

static void
fetch(const struct lpo_src *s, float *dst, int64_t ld, int64_t r0, int64_t nr,
    int64_t c0, int64_t nc)
{
	int64_t bytes = s->dt == LPO_F32 ? 4 : 2, r, c, at;

	if (s->fetch != NULL) {
		s->fetch(s, dst, ld, r0, nr, c0, nc);
		return;
	}
	for (r = 0; r < nr; r++) {
		at = (r0 + r) * s->ld + c0;
		/* Rows far apart: the hardware does not see what comes. */
		for (c = 0; r + AHEAD < nr && c < nc; c += 64 / bytes)
			__builtin_prefetch((const char *)s->base +
			    (at + AHEAD * s->ld + c) * bytes);
		lpo_widen(dst + r * ld, s->base, s->dt, at, nc);
	}
}

/* How a product is cut; depends on sizes and threads, and changes no bit. */
struct plan {
	int64_t kc, k_blocks;	/* but this one does, and k alone decides */
	int64_t nc;		/* columns packed at a time */
	int64_t mc, m_blocks;	/* rows per tile */
	int64_t splits;		/* tiles side by side in n */
	int threads;
};

static struct plan
make_plan(int64_t m, int64_t n, int64_t k, int threads)
{
	struct plan p;
	int64_t fit = B_FLOATS / (k > 0 ? k : 1) / NR * NR;

	/* as many each time */
	p.k_blocks = k > KC ? div_up(k, KC) : 1;
	p.kc = round_up(div_up(k, p.k_blocks), LINE);
	p.threads = (double)m * n * k * 2 < SERIAL_FLOPS ? 1 : threads;
	p.nc = fit < 2 * NR ? 2 * NR : fit;
	p.nc = min64(min64(p.nc, NC), round_up(n, NR));
	p.m_blocks = round_up(div_up(m, MC), p.threads);
	p.mc = round_up(div_up(m, p.m_blocks), MR);
	p.m_blocks = div_up(m, p.mc);
	p.splits = min64(div_up(p.threads, p.m_blocks), p.nc / NR);
	return p;
}

/* A's block, one KC of a tile of A transposed, the sums of a tile. */
static size_t
thread_floats(int64_t nc)
{
	return (size_t)(MC * LDA + MC * nc);
}

size_t
LPO_FN(lpo_gemm_scratch_bytes)(int64_t m, int64_t n, int64_t k, int threads)
{
	struct plan p = make_plan(m, n, k, threads);

	return ((size_t)(p.nc * k) + thread_floats(p.nc) * (size_t)threads) *
	    sizeof(float) + 64;
}

/* The elements of y that rows i .. i+m-1 begin with. */
static void
find_rows(const struct lpo_dst *y, int64_t i, int64_t m, int64_t *at)
{
	int64_t n = i / (y->p * y->q), p = i / y->q % y->p, q = i % y->q;

	for (i = 0; i < m; i++) {
		at[i] = n * y->sn + p * y->sp + q * y->sq;
		if (++q < y->q)
			continue;
		q = 0;
		if (++p == y->p) {
			p = 0;
			n++;
		}
	}
}

/* y[n] = alpha c[n] + bias[n] + more[n] */
static inline void
store_row(void *y, enum lpo_dtype dt, const float *c, const float *bias,
    const void *more, int64_t n, float alpha)
{
	float *f = y;
	uint16_t *h = y;
	const float *mf = more;
	const uint16_t *mh = more;
	int64_t j;
	vf v;
	float x;

	for (j = 0; j + VL <= n; j += VL) {
		v = vf_load(c + j) * alpha;
		if (bias != NULL)
			v += vf_load(bias + j);
		if (more != NULL)
			v += dt == LPO_F32 ? vf_load(mf + j) :
			    vf_load_bf16(mh + j);
		if (dt == LPO_F32)
			vf_store(f + j, v);
		else
			vf_store_bf16(h + j, v);
	}
	for (; j < n; j++) {
		x = c[j] * alpha;
		if (bias != NULL)
			x += bias[j];
		if (more != NULL)
			x += dt == LPO_F32 ? mf[j] : bf16_to_f32(mh[j]);
		if (dt == LPO_F32)
			f[j] = x;
		else
			h[j] = f32_to_bf16(x);
	}
}

/* Store the sums c[m][w] of rows that begin at `at`, columns n0.. */
static void
store_tile(const struct lpo_gemm *g, const float *c, int64_t w,
    const int64_t *at, int64_t m, int64_t n0, int64_t n)
{
	const float *bias = g->bias == NULL ? NULL : g->bias + n0;
	int64_t bytes = g->y.dt == LPO_F32 ? 4 : 2, i, to;

	for (i = 0; i < m; i++) {
		to = (at[i] + n0) * bytes;
		store_row((char *)g->y.base + to, g->y.dt, c + i * w, bias,
		    g->more == NULL ? NULL : (const char *)g->more + to, n,
		    g->alpha);
	}
}

/*
 * What the next tiles will read is fetched while this one is multiplied: of
 * the next panel a part per tile, of A the next rows, of y the lines below.
 * Inlined always: to gcc 12 a function that only prefetches does nothing, and
 * its calls are left out.
 */
#define inlined		static inline __attribute__((always_inline))

struct ahead {
	const char *at, *end;
	int64_t step;
};

static struct ahead
panel_ahead(const float *b, int64_t floats, int64_t m)
{
	struct ahead p = { (const char *)b, (const char *)(b + floats),
	    round_up(floats * 4 / div_up(m, MR), 64) };

	return p;
}

inlined void
step_ahead(struct ahead *p)
{
	const char *end = p->end - p->at < p->step ? p->end : p->at + p->step;

	for (; p->at < end; p->at += 64)
		__builtin_prefetch(p->at, 0, 2);
}

inlined void
rows_ahead(const float *a, int64_t sa, int64_t i, int64_t end, int64_t kc)
{
	int64_t k;

	for (; i < end; i++)
		for (k = 0; k < kc; k += 16)
			__builtin_prefetch(a + i * sa + k);
}

/* y, and what is added to it, of the tile that comes TILES_AHEAD later */
inlined void
sums_ahead(const struct lpo_gemm *g, const int64_t *at, int64_t m, int64_t i,
    int64_t n0, int64_t n1)
{
	int64_t bytes = g->y.dt == LPO_F32 ? 4 : 2, end, to;

	i += TILES_AHEAD * MR;
	if (i >= m) {
		i -= round_up(m, MR);
		n0 += NR;
	}
	end = i >= 0 && n0 < n1 ? min64(i + MR, m) : 0;
	for (; i < end; i++) {
		to = (at[i] + n0) * bytes;
		__builtin_prefetch((const char *)g->y.base + to, 1);
		if (g->more != NULL)
			__builtin_prefetch((const char *)g->more + to);
	}
}

/*
 * Rows i0 .. i0+m-1 times the panels j0 .. j1-1 of the packed columns n0..;
 * with one block of K the tile of sums stays in L1.
 */
static void
block(const struct lpo_gemm *g, const struct plan *p, const float *packed,
    int64_t n0, int64_t i0, int64_t m, int64_t j0, int64_t j1, float *mine)
{
	const struct lpo_src *s = g->a;
	float *sums = mine + MC * LDA, *c;
	int in_place = s->fetch == NULL && s->dt == LPO_F32;
	int64_t k0, kc, i, j, n, w, sa, mr, cols = min64(p->nc, g->n - n0);
	const float *a, *b;
	int64_t at[MC];
	struct ahead next;
	int nv;

	find_rows(&g->y, i0, m, at);
	for (k0 = 0; k0 < g->k; k0 += p->kc) {
		kc = min64(p->kc, g->k - k0);
		a = mine;
		sa = LDA;
		if (in_place) {
			a = (const float *)s->base + i0 * s->ld + k0;
			sa = s->ld;
		} else
			fetch(s, mine, LDA, i0, m, k0, kc);
		c = sums;
		for (j = j0; j < j1; j++) {
			n = min64(NR, cols - j * NR);
			nv = (int)div_up(n, VL);
			w = nv * VL;
			b = packed + j * NR * g->k + k0 * w;
			next = j + 1 < j1 ? panel_ahead(b + NR * g->k, kc * w,
			    m) : panel_ahead(packed + j0 * NR * g->k + (k0 +
			    kc) * NR, k0 + kc < g->k ? kc * NR : 0, m);
			for (i = 0; i < m; i += MR) {
				mr = min64(MR, m - i);
				step_ahead(&next);
				if (j == j0)
					rows_ahead(a, sa, i + MR,
					    min64(i + 2 * MR, m), kc);
				if (k0 + kc == g->k)
					sums_ahead(g, at, m, i, n0 + j * NR,
					    n0 + j1 * NR);
				row_tile[nv - 1][mr - 1](kc, a + i * sa, sa,
				    b, w, c, k0 > 0);
				if (k0 + kc == g->k)
					store_tile(g, c, w, at + i, mr,
					    n0 + j * NR, n);
				if (p->k_blocks > 1)
					c += MR * NR;
			}
		}
	}
}

/* B is [n][k]: unit u is one panel of one block of K, transposed. */
static void
pack_turned(const struct lpo_gemm *g, const struct plan *p, float *packed,
    int64_t n0, int64_t cols, int64_t u, float *tmp)
{
	const struct lpo_src *s = g->b;
	int64_t j = u / p->k_blocks;
	int64_t k0 = u % p->k_blocks * p->kc, kc = min64(p->kc, g->k - k0);
	int64_t n = min64(NR, cols - j * NR), w = round_up(n, VL);
	const float *src = tmp;
	int64_t ld = LDA;

	n0 += j * NR;
	if (s->fetch == NULL && s->dt == LPO_F32) {
		src = (const float *)s->base + n0 * s->ld + k0;
		ld = s->ld;
	} else
		fetch(s, tmp, LDA, n0, n, k0, kc);
	transpose(packed + j * NR * g->k + k0 * w, w, src, ld, n, kc);
}

/*
 * B is [k][n]: unit u is KU rows of all columns, read in long pieces (the
 * rows of a convolution's weight are far apart) and dealt out to the panels.
 */
static void
pack_straight(const struct lpo_gemm *g, float *packed, int64_t n0,
    int64_t cols, int64_t u, float *tmp)
{
	int64_t k0 = u * KU, kc = min64(KU, g->k - k0), j, k, i, n, w;
	float *to;

	fetch(g->b, tmp, LDN, k0, kc, n0, cols);
	for (j = 0; j * NR < cols; j++) {
		n = min64(NR, cols - j * NR);
		w = round_up(n, VL);
		to = packed + j * NR * g->k + k0 * w;
		for (k = 0; k < kc; k++, to += w) {
			memcpy(to, tmp + k * LDN + j * NR, (size_t)n * 4);
			for (i = n; i < w; i++)
				to[i] = 0;
		}
	}
}

/* Tile t of the grid (m_blocks, splits) over the packed columns n0.. */
static void
run_tile(const struct lpo_gemm *g, const struct plan *p, const float *packed,
    int64_t n0, int64_t t, float *mine)
{
	int64_t panels = div_up(min64(p->nc, g->n - n0), NR);
	int64_t i0 = t / p->splits * p->mc, s = t % p->splits;

	block(g, p, packed, n0, i0, min64(p->mc, g->m - i0),
	    panels * s / p->splits, panels * (s + 1) / p->splits, mine);
}

void
LPO_FN(lpo_gemm)(const struct lpo_gemm *g)
{
	struct plan p = make_plan(g->m, g->n, g->k, g->threads);
	float *packed = (float *)(((uintptr_t)g->scratch + 63) &
	    ~(uintptr_t)63);
	float *first = packed + p.nc * g->k;

	if (g->m <= 0 || g->n <= 0)
		return;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
	{
		float *mine = first + thread_floats(p.nc) *
		    (size_t)omp_get_thread_num();
		int64_t n0, cols, u, units;

		for (n0 = 0; n0 < g->n; n0 += p.nc) {
			cols = min64(p.nc, g->n - n0);
			units = g->b_transposed ? div_up(cols, NR) *
			    p.k_blocks : div_up(g->k, KU);
#pragma omp for schedule(static)
			for (u = 0; u < units; u++)
				if (g->b_transposed)
					pack_turned(g, &p, packed, n0, cols,
					    u, mine);
				else
					pack_straight(g, packed, n0, cols, u,
					    mine);
#pragma omp for schedule(dynamic)
			for (u = 0; u < p.m_blocks * p.splits; u++)
				run_tile(g, &p, packed, n0, u, mine);
		}
	}
}

/* A transposed by KC, B by KC, the sums of a tile. */
static size_t
group_floats(void)
{
	return KC * LDM + KC * LDT + (MC + MR) * (size_t)(NT + NR);
}

size_t
LPO_FN(lpo_gemm_groups_scratch_bytes)(int threads)
{
	return group_floats() * (size_t)threads * sizeof(float) + 64;
}

/* One KC of products of one tile; `last`: y += alpha times the sums. */
static void
group_step(const struct lpo_gemm_groups *g, int64_t i0, int64_t m, int64_t n0,
    int64_t n, int64_t kc, float *mine, int more, int last)
{
	const float *a = mine, *b = mine + KC * LDM;
	float *c = mine + KC * LDM + KC * LDT, *to;
	int64_t i, j, r, nn, mr, w;
	int nv;

	for (j = 0; j < n; j += NR) {
		nn = min64(NR, n - j);
		nv = (int)div_up(nn, VL);
		w = nv * VL;
		for (i = 0; i < m; i += MR, c += MR * NR) {
			mr = min64(MR, m - i);
			col_tile[nv - 1][mr - 1](kc, a + i, LDM, b + j, LDT,
			    c, more);
			for (r = 0; last && r < mr; r++) {
				to = g->y + (i0 + i + r) * g->n + n0 + j;
				store_row(to, LPO_F32, c + r * w, NULL, to,
				    nn, g->alpha);
			}
		}
	}
}

static void
group_tile(const struct lpo_gemm_groups *g, int64_t i0, int64_t m, int64_t n0,
    int64_t n, float *mine)
{
	float *a = mine, *b = mine + KC * LDM;
	int64_t q, k0, kc, k, j;

	/* Fetches leave the columns that fill up a vector alone. */
	for (k = 0; k < min64(KC, g->k); k++)
		for (j = n; j < round_up(n, VL); j++)
			b[k * LDT + j] = 0;
	for (q = 0; q < g->groups; q++)
		for (k0 = 0; k0 < g->k; k0 += KC) {
			kc = min64(KC, g->k - k0);
			fetch(g->a, a, LDM, q * g->k + k0, kc, i0, m);
			fetch(g->b, b, LDT, q * g->k + k0, kc, n0, n);
			group_step(g, i0, m, n0, n, kc, mine, k0 > 0,
			    k0 + kc == g->k);
		}
}

void
LPO_FN(lpo_gemm_groups)(const struct lpo_gemm_groups *g)
{
	int64_t m_blocks = div_up(g->m, MC), n_blocks = div_up(g->n, NT);
	int64_t mt, nt, t;
	double flops = 2. * g->m * g->n * g->k * g->groups;
	int threads = flops < SERIAL_FLOPS ? 1 : g->threads;
	float *first = (float *)(((uintptr_t)g->scratch + 63) &
	    ~(uintptr_t)63);

	if (g->m <= 0 || g->n <= 0)
		return;
	n_blocks = div_up(round_up(m_blocks * n_blocks, threads), m_blocks);
	mt = round_up(div_up(g->m, m_blocks), MR);
	nt = round_up(div_up(g->n, n_blocks), NR);
	m_blocks = div_up(g->m, mt);
	n_blocks = div_up(g->n, nt);
#pragma omp parallel for schedule(dynamic) num_threads(threads) \
    if (threads > 1)
	for (t = 0; t < m_blocks * n_blocks; t++) {
		int64_t i0 = t % m_blocks * mt, n0 = t / m_blocks * nt;

		group_tile(g, i0, min64(mt, g->m - i0), n0,
		    min64(nt, g->n - n0), first + group_floats() *
		    (size_t)omp_get_thread_num());
	}
}

/*
 * s[nj] += the sums of `rows` rows; a block of columns at a time, as wide as
 * the registers hold, so that memory is read in long pieces.
 */
#define SUM_NV	8
#define SUM_ROWS 16

static void
sum_rows(double *s, enum lpo_dtype dt, const void *dy, int64_t row,
    int64_t rows, int64_t n, int64_t j, int64_t nj)
{
	float tmp[SUM_NV * VL] = {0};
	vf sum[SUM_NV] = {{0}};
	const float *from = tmp;
	int64_t i;
	int v, l;

	for (i = row; i < row + rows; i++) {
		if (dt == LPO_F32 && nj == SUM_NV * VL)
			from = (const float *)dy + i * n + j;
		else
			lpo_widen(tmp, dy, dt, i * n + j, nj);
		for (v = 0; v < SUM_NV; v++)
			sum[v] += vf_load(from + v * VL);
	}
	for (v = 0; v < SUM_NV; v++)
		vf_store(tmp + v * VL, sum[v]);
	for (l = 0; l < SUM_NV * VL; l++)
		s[l] += (double)tmp[l];
}

/*
 * db[n] += alpha * column sums of dy[groups * m, n], group by group; in a
 * group in f64, of SUM_ROWS rows each: what is left of large terms that cancel
 * should be as exact as they are.
 */
void
LPO_FN(lpo_column_sums)(float *db, enum lpo_dtype dt, const void *dy,
    int64_t m, int64_t n, float alpha, int64_t groups, int threads)
{
	int64_t j, q, i;

#pragma omp parallel for schedule(static) num_threads(threads) \
    private(q, i) if (m * n * groups > SERIAL_FLOPS)
	for (j = 0; j < n; j += SUM_NV * VL) {
		int64_t l, nj = min64(SUM_NV * VL, n - j);

		for (q = 0; q < groups; q++) {
			double s[SUM_NV * VL] = {0};

			for (i = 0; i < m; i += SUM_ROWS)
				sum_rows(s, dt, dy, q * m + i,
				    min64(SUM_ROWS, m - i), n, j, nj);
			for (l = 0; l < nj; l++)
				db[j + l] += (float)s[l] * alpha;
		}
	}
}
