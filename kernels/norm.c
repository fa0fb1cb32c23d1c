/*
 * GroupNorm (+ SiLU) over channels-last images, forward and backward.
 * A unit of work is one image (backward with weight gradients: the images of
 * one run) times a range of whole norm groups; every sum of a unit is inside
 * it, so how the channels are cut never shows in the bits.
 */
#include "kernels/ints.h"
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

/*
 * Norm groups per unit: whole rows where images alone feed the threads evenly
 * (memory is then read in order), else as few pieces as do, of at least a
 * cache line, or four for each thread where that would be too many.
 */
static int64_t
groups_per_unit(const lpo_backend *b, int64_t items, int64_t norm_groups,
    int64_t cg)
{
	int64_t want = 1, most = (4 * b->threads + items - 1) / items, g;

	while (items * want % b->threads != 0 && want < most)
		want++;
	g = (norm_groups + want - 1) / want;

	if (g * cg < 16)
		g = (15 + cg) / cg;
	g = min64(g, CMAX / cg);
	return min64(g, norm_groups);
}

/*
 * n columns from i on of a row: sum[i] += x - mean, square[i] += its square if
 * there is `square`.  Rows are read whole and in order, as prefetchers like it.
 */
inlined void
moments_vec(int64_t i, int64_t n, enum lpo_dtype dt, float *sum,
    float *square, const void *x, const float *mean)
{
	vf v = vld_n(dt, x, i, n) - vf_load(mean + i);

	vf_store(sum + i, vf_load(sum + i) + v);
	if (square != NULL)
		vf_store(square + i, vf_fma(v, v, vf_load(square + i)));
}

/* The same sums, from zero on, over the rows [r0, r1) of a unit. */
inlined void
moments(enum lpo_dtype dt, const struct unit *u, float *sum, float *square,
    const void *x, int64_t r0, int64_t r1, const float *mean)
{
	int64_t i, r;

	memset(sum, 0, (size_t)(u->w + VL) * sizeof(float));
	if (square != NULL)
		memset(square, 0, (size_t)(u->w + VL) * sizeof(float));
	for (r = r0; r < r1; r++)
		BY_VEC(i, u->w, moments_vec, dt, sum, square, elem(dt, x,
		    r * u->c + u->c0), mean);
}

static double
sum_of(const float *s, int64_t n)
{
	double sum = 0.0;
	int64_t j;

	for (j = 0; j < n; j++)
		sum += s[j];
	return sum;
}

static void
fill(float *p, int64_t n, double v)
{
	int64_t j;

	for (j = 0; j < n; j++)
		p[j] = (float)v;
}

/*
 * stats of the unit's groups, [w / cg][2], by Chan's merge of row blocks.  A
 * block's squares are of what differs from the mean so far: if its own mean d
 * lies far from that, n d^2 cancels from them, but the merge then adds half as
 * much at least.  The first block has no such mean and is read twice.
 */
inlined void
group_stats(enum lpo_dtype dt, const struct unit *u, const void *x, float eps,
    float *stats)
{
	double mean[CMAX], m2[CMAX], all, old, d, s1;
	float sum[CMAX + VL], square[CMAX + VL], mu[CMAX + VL];
	int64_t g, cg = u->cg, r0, r1, groups = u->w / cg;

	fill(mu, u->w + VL, 0.0);
	for (r0 = 0; r0 < u->hw; r0 = r1) {
		r1 = min64(r0 + RUN, u->hw);
		old = (double)(r0 * cg);
		all = (double)(r1 * cg);
		if (r0 == 0) {
			moments(dt, u, sum, NULL, x, r0, r1, mu);
			for (g = 0; g < groups; g++) {
				mean[g] = sum_of(sum + g * cg, cg) / all;
				m2[g] = 0.0;
				fill(mu + g * cg, cg, mean[g]);
			}
		}
		moments(dt, u, sum, square, x, r0, r1, mu);
		for (g = 0; g < groups; g++) {
			s1 = sum_of(sum + g * cg, cg);
			d = s1 / (all - old) + ((double)mu[g * cg] - mean[g]);
			m2[g] += sum_of(square + g * cg, cg) -
			    s1 * s1 / (all - old) +
			    d * d * (old * (all - old) / all);
			mean[g] += d * ((all - old) / all);
			fill(mu + g * cg, cg, mean[g]);
		}
	}
	for (g = 0; g < groups; g++) {
		stats[2 * g] = (float)mean[g];
		stats[2 * g + 1] = (float)(1.0 /
		    sqrt(m2[g] / (double)(u->hw * u->cg) + (double)eps));
	}
}

/*
 * Per channel: the mean of its group, scale = rstd gamma, beta; 0 behind the
 * last.
 */
struct affine {
	float mean[CMAX + VL], scale[CMAX + VL], beta[CMAX + VL];
};

static void
spread_stats(const struct unit *u, const float *stats, const float *gamma,
    const float *beta, struct affine *k)
{
	int64_t j, g;

	for (g = 0; g < u->w / u->cg; g++)
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			k->mean[j] = stats[2 * g];
			k->scale[j] = stats[2 * g + 1] * gamma[j];
			k->beta[j] = beta[j];
		}
	for (j = u->w; j < u->w + VL; j++)
		k->mean[j] = k->scale[j] = k->beta[j] = 0.0f;
}

inlined void
apply_vec(int64_t i, int64_t n, enum lpo_dtype dt, int silu, void *y,
    const void *x, const struct affine *k)
{
	vf v = vf_fma(vld_n(dt, x, i, n) - vf_load(k->mean + i),
	    vf_load(k->scale + i), vf_load(k->beta + i));

	if (silu)
		v = dt == LPO_BF16 ? vf_silu_bf16(v) : v * vf_sigmoid(v);
	vst_n(dt, y, i, n, v);
}

inlined void
group_apply(enum lpo_dtype dt, const struct unit *u, void *y, const void *x,
    const struct affine *k)
{
	int64_t i, r, at;

	for (r = 0; r < u->hw; r++) {
		at = r * u->c + u->c0;
		if (u->silu)
			BY_VEC(i, u->w, apply_vec, dt, 1, elem(dt, y, at),
			    elem(dt, x, at), k);
		else
			BY_VEC(i, u->w, apply_vec, dt, 0, elem(dt, y, at),
			    elem(dt, x, at), k);
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
		struct affine a;

		BY_DTYPE(dt, group_stats, &u, elem(dt, x, img * hw * c), eps,
		    st);
		spread_stats(&u, st, gamma + u.c0, beta + u.c0, &a);
		BY_DTYPE(dt, group_apply, &u, elem(dt, y, img * hw * c),
		    elem(dt, x, img * hw * c), &a);
	}
	return 0;
}

/* What both passes of the backward start from, for one image. */
struct back {
	const void *dy, *x;		/* at the unit's first channel */
	struct affine of;
	float a[CMAX + VL], b[CMAX + VL];	/* sums, later their share of dx */
};

/*
 * x - mean and dy' (the gradient at the norm's output, before SiLU) of n
 * columns from i on, `at` elements into x and dy.
 */
inlined vf
back_vec(enum lpo_dtype dt, int silu, const struct back *k, int64_t at,
    int64_t i, int64_t n, vf *centred)
{
	vf dy = vld_n(dt, k->dy, at + i, n), pre, s;

	*centred = vld_n(dt, k->x, at + i, n) - vf_load(k->of.mean + i);
	if (!silu)
		return dy;
	pre = vf_fma(*centred, vf_load(k->of.scale + i),
	    vf_load(k->of.beta + i));
	s = vf_sigmoid(pre);
	return vf_mul(dy, s * vf_fma(pre, 1.0f - s, vf_set1(1.0f)));
}

/* a[i] += dy', b[i] += dy' (x - mean), `at` elements into dy and x */
inlined void
sums_vec(int64_t i, int64_t n, enum lpo_dtype dt, int silu,
    const struct back *k, int64_t at, float *a, float *b)
{
	vf centred, d = back_vec(dt, silu, k, at, i, n, &centred);

	vf_store(a + i, vf_load(a + i) + d);
	vf_store(b + i, vf_fma(d, centred, vf_load(b + i)));
}

/* a[w] = sum over rows of dy', b[w] = of dy' (x - mean) */
inlined void
back_sums(enum lpo_dtype dt, const struct unit *u, struct back *k)
{
	const int64_t hw = u->hw, c = u->c, w = u->w;
	float a[CMAX + VL], b[CMAX + VL];
	int64_t i, r, run;

	fill(k->a, w + VL, 0.0);
	fill(k->b, w + VL, 0.0);
	for (run = 0; run < hw; run += RUN) {
		fill(a, w + VL, 0.0);
		fill(b, w + VL, 0.0);
		for (r = run; r < min64(run + RUN, hw); r++)
			if (u->silu)
				BY_VEC(i, w, sums_vec, dt, 1, k, r * c, a, b);
			else
				BY_VEC(i, w, sums_vec, dt, 0, k, r * c, a, b);
		for (i = 0; i < w; i++) {
			k->a[i] += a[i];
			k->b[i] += b[i];
		}
	}
}

/*
 * The channels' sums become what dx needs of them: a = rstd mean(dy' gamma),
 * b = rstd^3 mean(dy' gamma (x - mean)), means over the group.
 */
static void
group_means(const struct unit *u, const float *stats, const float *gamma,
    float *a, float *b)
{
	double ma, mb, rstd, count = (double)(u->hw * u->cg);
	int64_t g, j;

	for (g = 0; g < u->w / u->cg; g++) {
		ma = mb = 0.0;
		rstd = (double)stats[2 * g + 1];
		for (j = g * u->cg; j < (g + 1) * u->cg; j++) {
			ma += (double)gamma[j] * (double)a[j];
			mb += (double)gamma[j] * (double)b[j];
		}
		fill(a + g * u->cg, u->cg, rstd * ma / count);
		fill(b + g * u->cg, u->cg, rstd * rstd * rstd * mb / count);
	}
}

inlined void
dx_vec(int64_t i, int64_t n, enum lpo_dtype dt, int silu, void *dx,
    const struct back *k, int64_t at, int add)
{
	vf centred, d = back_vec(dt, silu, k, at, i, n, &centred);

	centred = vf_fma(centred, vf_load(k->b + i), vf_load(k->a + i));
	d = vf_fma(d, vf_load(k->of.scale + i), -centred);
	vput(dt, add, dx, at + i, n, d);
}

/*
 * dx (+)= rstd (dy' gamma - mean(dy' gamma) - xhat mean(dy' gamma xhat)).
 */
inlined void
back_dx(enum lpo_dtype dt, const struct unit *u, void *dx,
    const struct back *k, int add)
{
	const int64_t w = u->w, c = u->c, silu = u->silu;
	int64_t i, r;

	for (r = 0; r < u->hw; r++)
		if (silu && add)
			BY_VEC(i, w, dx_vec, dt, 1, dx, k, r * c, 1);
		else if (silu)
			BY_VEC(i, w, dx_vec, dt, 1, dx, k, r * c, 0);
		else if (add)
			BY_VEC(i, w, dx_vec, dt, 0, dx, k, r * c, 1);
		else
			BY_VEC(i, w, dx_vec, dt, 0, dx, k, r * c, 0);
}

/* sums [2][c] of a run (+)= an image's: of dy', and of dy' xhat */
static void
add_image(const struct unit *u, const float *stats, const struct back *k,
    float *sums, int add)
{
	float *s = sums + u->c0, b;
	int64_t j;

	for (j = 0; j < u->w; j++) {
		b = k->b[j] * stats[2 * (j / u->cg) + 1];
		s[j] = add ? s[j] + k->a[j] : k->a[j];
		s[j + u->c] = add ? s[j + u->c] + b : b;
	}
}

/* The images [i0, i1) of one run; sums [2][c] of the run, or NULL. */
static void
back_unit(const struct unit *u, void *dx, float *sums, const void *dy,
    const void *x, const float *stats, const float *gamma, const float *beta,
    int64_t i0, int64_t i1, int add)
{
	int64_t groups = u->c / u->cg, img, size = u->hw * u->c;
	struct back k;

	gamma += u->c0;
	for (img = i0; img < i1; img++) {
		const float *st = stats + 2 * (img * groups + u->c0 / u->cg);

		spread_stats(u, st, gamma, beta + u->c0, &k.of);
		k.dy = elem(u->dt, dy, img * size + u->c0);
		k.x = elem(u->dt, x, img * size + u->c0);
		BY_DTYPE(u->dt, back_sums, u, &k);
		if (sums != NULL)
			add_image(u, st, &k, sums, img > i0);
		if (dx == NULL)
			continue;
		group_means(u, st, gamma, k.a, k.b);
		BY_DTYPE(u->dt, back_dx, u, elem(u->dt, dx, img * size +
		    u->c0), &k, add);
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
		    (run + 1) * (n / groups), add);
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
