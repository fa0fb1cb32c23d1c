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
 * Column i of the rows [r0, r1): the sum of x, or of (x - mean)^2.  Four
 * chains hide the latency of the adds.
 */
static inline vf
column(const struct unit *u, const void *x, int64_t r0, int64_t r1, int64_t i,
    int square, vf mean)
{
	vf s[4] = {{0}, {0}, {0}, {0}}, v;
	int64_t r, j;

	for (r = r0; r < r1; r += 4)
		for (j = 0; j < 4 && r + j < r1; j++) {
			v = vld(u->dt, elem(u->dt, x, (r + j) * u->c + u->c0),
			    i, u->w) - mean;
			s[j] += square ? v * v : v;
		}
	return (s[0] + s[1]) + (s[2] + s[3]);
}

/* stats of the unit's groups, [w / cg][2], by Chan's merge of row blocks. */
static void
group_stats(const struct unit *u, const void *x, float eps, float *stats)
{
	double mean[CMAX], m2[CMAX], all, old, d, bm, b2;
	float s[CMAX + VL], mu[CMAX + VL] = {0};
	int64_t g, j, i, r0, r1, groups = u->w / u->cg;

	for (g = 0; g < groups; g++)
		mean[g] = m2[g] = 0.0;
	for (r0 = 0; r0 < u->hw; r0 = r1) {
		r1 = min64(r0 + RUN, u->hw);
		old = (double)(r0 * u->cg);
		all = (double)(r1 * u->cg);
		for (i = 0; i < u->w; i += VL)
			vf_store(s + i, column(u, x, r0, r1, i, 0, (vf){0}));
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
		for (i = 0; i < u->w; i += VL)
			vf_store(s + i, column(u, x, r0, r1, i, 1,
			    vf_load(mu + i)));
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

static void
group_apply(const struct unit *u, void *y, const void *x, const float *stats,
    const float *gamma, const float *beta)
{
	float mean[CMAX + VL], rstd[CMAX + VL];
	int64_t i, r, at;
	vf v;

	spread_stats(u, stats, mean, rstd);
	for (r = 0; r < u->hw; r++) {
		at = r * u->c + u->c0;
		for (i = 0; i < u->w; i += VL) {
			v = vld(u->dt, elem(u->dt, x, at), i, u->w);
			v = (v - vf_load(mean + i)) * vf_load(rstd + i);
			v = v * vld(LPO_F32, gamma + u->c0, i, u->w) +
			    vld(LPO_F32, beta + u->c0, i, u->w);
			if (u->silu)
				v = v * vf_sigmoid(v);
			vst(u->dt, elem(u->dt, y, at), i, u->w, v);
		}
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

		group_stats(&u, elem(dt, x, img * hw * c), eps, st);
		group_apply(&u, elem(dt, y, img * hw * c),
		    elem(dt, x, img * hw * c), st, gamma, beta);
	}
	return 0;
}

/* Gradient at the norm's output before SiLU, from that after it. */
static inline vf
through_silu(int silu, vf dy, vf xhat, vf gamma, vf beta)
{
	vf pre, s;

	if (!silu)
		return dy;
	pre = xhat * gamma + beta;
	s = vf_sigmoid(pre);
	return dy * (s * (1.0f + pre * (1.0f - s)));
}

/* What both passes of the backward start from, for one image. */
struct back {
	const void *dy, *x;
	const float *gamma, *beta;	/* from the unit's first channel */
	float mean[CMAX + VL], rstd[CMAX + VL];
};

/* xhat and dy' of row r, columns i .. */
static inline vf
back_load(const struct unit *u, const struct back *k, int64_t r, int64_t i,
    vf *xhat)
{
	int64_t at = r * u->c + u->c0;
	vf x = vld(u->dt, elem(u->dt, k->x, at), i, u->w);

	*xhat = (x - vf_load(k->mean + i)) * vf_load(k->rstd + i);
	return through_silu(u->silu,
	    vld(u->dt, elem(u->dt, k->dy, at), i, u->w), *xhat,
	    vld(LPO_F32, k->gamma, i, u->w), vld(LPO_F32, k->beta, i, u->w));
}

/* a[w] = sum over rows of dy', b[w] = of dy' xhat */
static void
back_sums(const struct unit *u, const struct back *k, float *a, float *b)
{
	int64_t i, r, r0, r1;
	vf d, xhat, sa, sb, ra, rb;

	for (i = 0; i < u->w; i += VL) {
		sa = sb = (vf){0};
		for (r0 = 0; r0 < u->hw; r0 = r1) {
			r1 = min64(r0 + RUN, u->hw);
			ra = rb = (vf){0};
			for (r = r0; r < r1; r++) {
				d = back_load(u, k, r, i, &xhat);
				ra += d;
				rb += d * xhat;
			}
			sa += ra;
			sb += rb;
		}
		vf_store(a + i, sa);
		vf_store(b + i, sb);
	}
}

/*
 * dx += rstd (dy' gamma - mean(dy' gamma) - xhat mean(dy' gamma xhat)), means
 * over the group; a and b are overwritten with the two means per channel.
 */
static void
back_dx(const struct unit *u, const struct back *k, void *dx, float *a,
    float *b)
{
	double ma, mb, count = (double)(u->hw * u->cg);
	int64_t g, j, i, r;
	vf d, xhat;

	for (g = 0; g < u->w / u->cg; g++) {
		ma = mb = 0.0;
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			ma += (double)k->gamma[j] * (double)a[j];
			mb += (double)k->gamma[j] * (double)b[j];
		}
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			a[j] = (float)(ma / count);
			b[j] = (float)(mb / count);
		}
	}
	for (r = 0; r < u->hw; r++)
		for (i = 0; i < u->w; i += VL) {
			d = back_load(u, k, r, i, &xhat);
			d = d * vld(LPO_F32, k->gamma, i, u->w);
			d = d - vf_load(a + i) - xhat * vf_load(b + i);
			vacc(u->dt, elem(u->dt, dx, r * u->c + u->c0), i,
			    u->w, vf_load(k->rstd + i) * d);
		}
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
		k.dy = elem(u->dt, dy, img * size);
		k.x = elem(u->dt, x, img * size);
		back_sums(u, &k, a, b);
		for (j = 0; sums != NULL && j < u->w; j++) {
			float *s = sums + u->c0 + j;

			s[0] = img == i0 ? a[j] : s[0] + a[j];
			s[u->c] = img == i0 ? b[j] : s[u->c] + b[j];
		}
		if (dx != NULL)
			back_dx(u, &k, elem(u->dt, dx, img * size), a, b);
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
    void *scratch)
{
	int64_t cg = norm_groups > 0 ? c / norm_groups : 0, gu, pieces, k;
	int weights = dgamma != NULL || dbeta != NULL;

	if (cg < 1 || cg > CMAX || cg * norm_groups != c)
		return LPO_EINVAL;
	if (groups < 1 || n % groups != 0)
		return LPO_EINVAL;
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
