/*
 * GroupNorm (+ SiLU) over channels-last images, forward and backward.
 * A unit of work is one image (backward with weight gradients: the images of
 * one run) times a range of whole norm groups; every sum of a unit is inside
 * it, so how the channels are cut never shows in the bits.
 */
#include "kernels/load.h"
#include "kernels/levels.h"

#include <math.h>

enum {
	CMAX = 2048,		/* channels of one unit; also of one group */
	RUN = 64,		/* rows summed in f32 before a larger sum */
	SERIAL = 16384
};

/* One unit: channels c0 .. c0+w-1 of one image of hw rows of c. */
struct unit {
	enum lpo_dtype dt;
	int64_t hw, c, c0, w, cg;	/* cg channels per norm group */
	int silu;
};

static inline int64_t
min64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/*
 * Norm groups per unit: whole rows where images alone feed the threads
 * (memory is then read in order), else pieces of at least a cache line.
 */
static int64_t
groups_per_unit(const lpo_backend *b, int64_t items, int64_t norm_groups,
    int64_t cg)
{
	int64_t want = items % b->threads == 0 ? 1 :
	    (4 * b->threads + items - 1) / items;
	int64_t g = (norm_groups + want - 1) / want;

	if (g * cg < 16)
		g = (15 + cg) / cg;
	g = min64(g, CMAX / cg);
	return min64(g, norm_groups);
}

/*
 * n columns from i on of the rows [r0, r1): s[i] = the sum of x - mean, or of
 * its square.  Four chains hide the latency of the adds.
 */
inlined void
column_vec(int64_t i, int64_t n, enum lpo_dtype dt, const struct unit *u,
    float *s, const void *x, int64_t r0, int64_t r1, int square,
    const float *mean)
{
	vf t[4] = {{0}, {0}, {0}, {0}}, mu = vf_load(mean + i), v;
	const int64_t c = u->c;
	int64_t r, j;

	x = elem(dt, x, r0 * c + u->c0 + i);
	for (r = r0; r + 4 <= r1; r += 4, x = elem(dt, x, 4 * c))
#pragma GCC unroll 4
		for (j = 0; j < 4; j++) {
			v = vld_n(dt, x, j * c, n) - mu;
			t[j] = square ? vf_fma(v, v, t[j]) : t[j] + v;
		}
	for (; r < r1; r++, x = elem(dt, x, c)) {
		v = vld_n(dt, x, 0, n) - mu;
		t[0] = square ? vf_fma(v, v, t[0]) : t[0] + v;
	}
	vf_store(s + i, (t[0] + t[1]) + (t[2] + t[3]));
}

/* stats of the unit's groups, [w / cg][2], by Chan's merge of row blocks. */
inlined void
group_stats(enum lpo_dtype dt, const struct unit *u, const void *x, float eps,
    float *stats)
{
	double mean[CMAX], m2[CMAX], all, old, d, bm, b2;
	float s[CMAX + VL], mu[CMAX + VL], zero[CMAX + VL];
	int64_t g, j, i, r0, r1, groups = u->w / u->cg;

	for (g = 0; g < groups; g++)
		mean[g] = m2[g] = 0.0;
	memset(mu, 0, (size_t)(u->w + VL) * sizeof(float));
	memset(zero, 0, (size_t)(u->w + VL) * sizeof(float));
	for (r0 = 0; r0 < u->hw; r0 = r1) {
		r1 = min64(r0 + RUN, u->hw);
		old = (double)(r0 * u->cg);
		all = (double)(r1 * u->cg);
		BY_VEC(i, u->w, column_vec, dt, u, s, x, r0, r1, 0, zero);
		for (g = 0; g < groups; g++) {
			bm = 0.0;
			for (j = g * u->cg; j < (g + 1) * u->cg; j++)
				bm += s[j];
			bm /= all - old;
			for (j = g * u->cg; j < (g + 1) * u->cg; j++)
				mu[j] = (float)bm;
			d = bm - mean[g];
			mean[g] += d * ((all - old) / all);
			m2[g] += d * d * (old * (all - old) / all);
		}
		BY_VEC(i, u->w, column_vec, dt, u, s, x, r0, r1, 1, mu);
		for (g = 0; g < groups; g++) {
			b2 = 0.0;
			for (j = g * u->cg; j < (g + 1) * u->cg; j++)
				b2 += s[j];
			m2[g] += b2;
		}
	}
	for (g = 0; g < groups; g++) {
		stats[2 * g] = (float)mean[g];
		stats[2 * g + 1] = (float)(1.0 /
		    sqrt(m2[g] / (double)(u->hw * u->cg) + (double)eps));
	}
}

/* Per channel: mean and rstd of its group. */
static void
spread_stats(const struct unit *u, const float *stats, float *mean,
    float *rstd)
{
	int64_t j, g;

	for (g = 0; g < u->w / u->cg; g++)
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			mean[j] = stats[2 * g];
			rstd[j] = stats[2 * g + 1];
		}
	for (j = u->w; j < u->w + VL; j++)
		mean[j] = rstd[j] = 0.0f;
}

inlined void
apply_vec(int64_t i, int64_t n, enum lpo_dtype dt, int silu, void *y,
    const void *x, const float *mean, const float *rstd, const float *gamma,
    const float *beta)
{
	vf v = (vld_n(dt, x, i, n) - vf_load(mean + i)) * vf_load(rstd + i);

	v = vf_fma(v, vld_n(LPO_F32, gamma, i, n),
	    vld_n(LPO_F32, beta, i, n));
	vst_n(dt, y, i, n, silu ? v * vf_sigmoid(v) : v);
}

inlined void
group_apply(enum lpo_dtype dt, const struct unit *u, void *y, const void *x,
    const float *stats, const float *gamma, const float *beta)
{
	float mean[CMAX + VL], rstd[CMAX + VL];
	const int64_t w = u->w;
	int64_t i, r, at;

	spread_stats(u, stats, mean, rstd);
	for (r = 0; r < u->hw; r++) {
		at = r * u->c + u->c0;
		if (u->silu)
			BY_VEC(i, w, apply_vec, dt, 1, elem(dt, y, at),
			    elem(dt, x, at), mean, rstd, gamma, beta);
		else
			BY_VEC(i, w, apply_vec, dt, 0, elem(dt, y, at),
			    elem(dt, x, at), mean, rstd, gamma, beta);
	}
}

int
LPO_FN(lpo_group_norm_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t n, int64_t hw, int64_t c, int64_t norm_groups, float eps,
    int silu)
{
	int64_t cg = norm_groups > 0 ? c / norm_groups : 0, gu, pieces, k;

	if (cg < 1 || cg > CMAX || cg * norm_groups != c)
		return LPO_EINVAL;
	gu = groups_per_unit(b, n, norm_groups, cg);
	pieces = (norm_groups + gu - 1) / gu;
#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (n * hw * c > SERIAL)
	for (k = 0; k < n * pieces; k++) {
		int64_t img = k / pieces, g0 = k % pieces * gu;
		int64_t g = min64(gu, norm_groups - g0);
		struct unit u = { dt, hw, c, g0 * cg, g * cg, cg, silu };
		float *st = stats + 2 * (img * norm_groups + g0);

		BY_DTYPE(dt, group_stats, &u, elem(dt, x, img * hw * c), eps,
		    st);
		BY_DTYPE(dt, group_apply, &u, elem(dt, y, img * hw * c),
		    elem(dt, x, img * hw * c), st, gamma + u.c0,
		    beta + u.c0);
	}
	return 0;
}

/* What both passes of the backward start from, for one image. */
struct back {
	const void *dy, *x;		/* at the unit's first channel */
	const float *gamma, *beta;
	float mean[CMAX + VL], rstd[CMAX + VL];
};

/*
 * xhat and dy' (the gradient at the norm's output, before SiLU) of n columns
 * from i on, `at` elements into x and dy.
 */
inlined vf
back_vec(enum lpo_dtype dt, int silu, const struct back *k, int64_t at,
    int64_t i, int64_t n, vf *xhat)
{
	vf dy = vld_n(dt, k->dy, at + i, n), pre, s;

	*xhat = (vld_n(dt, k->x, at + i, n) - vf_load(k->mean + i)) *
	    vf_load(k->rstd + i);
	if (!silu)
		return dy;
	pre = vf_fma(*xhat, vld_n(LPO_F32, k->gamma, i, n),
	    vld_n(LPO_F32, k->beta, i, n));
	s = vf_sigmoid(pre);
	return vf_mul(dy, s * vf_fma(pre, 1.0f - s, vf_set1(1.0f)));
}

inlined void
sums_vec(int64_t i, int64_t n, enum lpo_dtype dt, int silu,
    const struct back *k, int64_t hw, int64_t c, float *a, float *b)
{
	vf d, xhat, sa = {0}, sb = {0}, ra, rb;
	int64_t r, r0, r1;

	for (r0 = 0; r0 < hw; r0 = r1) {
		r1 = min64(r0 + RUN, hw);
		ra = rb = (vf){0};
		for (r = r0; r < r1; r++) {
			d = back_vec(dt, silu, k, r * c, i, n, &xhat);
			ra += d;
			rb = vf_fma(d, xhat, rb);
		}
		sa += ra;
		sb += rb;
	}
	vf_store(a + i, sa);
	vf_store(b + i, sb);
}

/* a[w] = sum over rows of dy', b[w] = of dy' xhat */
inlined void
back_sums(enum lpo_dtype dt, const struct unit *u, const struct back *k,
    float *a, float *b)
{
	const int64_t hw = u->hw, c = u->c, w = u->w;
	int64_t i;

	if (u->silu)
		BY_VEC(i, w, sums_vec, dt, 1, k, hw, c, a, b);
	else
		BY_VEC(i, w, sums_vec, dt, 0, k, hw, c, a, b);
}

/* The sums of each channel become its group's mean of sum times gamma. */
static void
group_means(const struct unit *u, const float *gamma, float *a, float *b)
{
	double ma, mb, count = (double)(u->hw * u->cg);
	int64_t g, j;

	for (g = 0; g < u->w / u->cg; g++) {
		ma = mb = 0.0;
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			ma += (double)gamma[j] * (double)a[j];
			mb += (double)gamma[j] * (double)b[j];
		}
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			a[j] = (float)(ma / count);
			b[j] = (float)(mb / count);
		}
	}
}

inlined void
dx_vec(int64_t i, int64_t n, enum lpo_dtype dt, int silu, void *dx,
    const struct back *k, int64_t at, const float *a, const float *b)
{
	vf xhat, d = back_vec(dt, silu, k, at, i, n, &xhat);

	d = vf_fma(d, vld_n(LPO_F32, k->gamma, i, n), -vf_load(a + i));
	d = vf_fnma(xhat, vf_load(b + i), d);
	vst_n(dt, dx, at + i, n, vf_fma(d, vf_load(k->rstd + i),
	    vld_n(dt, dx, at + i, n)));
}

/*
 * dx += rstd (dy' gamma - mean(dy' gamma) - xhat mean(dy' gamma xhat)), means
 * over the group, in a and b per channel.
 */
inlined void
back_dx(enum lpo_dtype dt, const struct unit *u, void *dx,
    const struct back *k, const float *a, const float *b)
{
	const int64_t w = u->w, c = u->c, silu = u->silu;
	int64_t i, r;

	for (r = 0; r < u->hw; r++)
		if (silu)
			BY_VEC(i, w, dx_vec, dt, 1, dx, k, r * c, a, b);
		else
			BY_VEC(i, w, dx_vec, dt, 0, dx, k, r * c, a, b);
}

/* The images [i0, i1) of one run; sums [2][c] of the run, or NULL. */
static void
back_unit(const struct unit *u, void *dx, float *sums, const void *dy,
    const void *x, const float *stats, const float *gamma, const float *beta,
    int64_t i0, int64_t i1)
{
	int64_t groups = u->c / u->cg, img, j, size = u->hw * u->c;
	float a[CMAX + VL], b[CMAX + VL];
	struct back k;

	k.gamma = gamma + u->c0;
	k.beta = beta + u->c0;
	for (img = i0; img < i1; img++) {
		spread_stats(u, stats + 2 * (img * groups + u->c0 / u->cg),
		    k.mean, k.rstd);
		k.dy = elem(u->dt, dy, img * size + u->c0);
		k.x = elem(u->dt, x, img * size + u->c0);
		BY_DTYPE(u->dt, back_sums, u, &k, a, b);
		for (j = 0; sums != NULL && j < u->w; j++) {
			float *s = sums + u->c0 + j;

			s[0] = img == i0 ? a[j] : s[0] + a[j];
			s[u->c] = img == i0 ? b[j] : s[u->c] + b[j];
		}
		if (dx == NULL)
			continue;
		group_means(u, k.gamma, a, b);
		BY_DTYPE(u->dt, back_dx, u, elem(u->dt, dx, img * size +
		    u->c0), &k, a, b);
	}
}

/* dbeta += sums[k][0], dgamma += sums[k][1], run by run. */
static void
add_runs(float *dgamma, float *dbeta, const float *sums, int64_t c,
    int64_t groups)
{
	int64_t k, j;

	for (k = 0; k < groups; k++)
		for (j = 0; j < c; j++) {
			if (dbeta != NULL)
				dbeta[j] += sums[2 * k * c + j];
			if (dgamma != NULL)
				dgamma[j] += sums[(2 * k + 1) * c + j];
		}
}

int
LPO_FN(lpo_group_norm_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    float *dgamma, float *dbeta, const void *dy, const void *x,
    const float *stats, const float *gamma, const float *beta, int64_t n,
    int64_t hw, int64_t c, int64_t norm_groups, int silu, int64_t groups,
    int add, void *scratch)
{
	int64_t cg = norm_groups > 0 ? c / norm_groups : 0, gu, pieces, k;
	int weights = dgamma != NULL || dbeta != NULL;

	if (cg < 1 || cg > CMAX || cg * norm_groups != c)
		return LPO_EINVAL;
	if (groups < 1 || n % groups != 0)
		return LPO_EINVAL;
	begin_grad(dt, dx, n * hw * c, add);
	if (!weights)
		groups = n;		/* nothing to sum over images */
	gu = groups_per_unit(b, groups, norm_groups, cg);
	pieces = (norm_groups + gu - 1) / gu;
#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (n * hw * c > SERIAL)
	for (k = 0; k < groups * pieces; k++) {
		int64_t run = k / pieces, g0 = k % pieces * gu;
		int64_t g = min64(gu, norm_groups - g0);
		struct unit u = { dt, hw, c, g0 * cg, g * cg, cg, silu };

		back_unit(&u, dx,
		    weights ? (float *)scratch + 2 * run * c : NULL, dy, x,
		    stats, gamma, beta, run * (n / groups),
		    (run + 1) * (n / groups));
	}
	if (weights)
		add_runs(dgamma, dbeta, scratch, c, groups);
	return 0;
}

/* [groups][2][c] f32: the sums of each run, for both norms. */
size_t
LPO_FN(lpo_norm_scratch_bytes)(lpo_backend *b, int64_t n, int64_t c,
    int64_t groups)
{
	(void)b;
	(void)n;
	return (size_t)groups * 2 * (size_t)c * sizeof(float);
}
