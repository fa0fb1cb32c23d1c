/* LayerNorm over the channels of each token, forward and backward. */
#include "kernels/load.h"
#include "kernels/levels.h"

#include <math.h>

enum {
	RUN = 64,		/* rows summed in f32 before a larger sum */
	COLS = 32,		/* columns of one piece of a weight gradient */
	SERIAL = 16384
};

static inline int64_t
min64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* v with the lanes at or past n set to 0 */
inlined vf
keep_first(vf v, int64_t n)
{
	float a[VL];
	int64_t j;

	if (n == VL)
		return v;
	vf_store(a, v);
	for (j = n; j < VL; j++)
		a[j] = 0.0f;
	return vf_load(a);
}

/* s += x - mean, or its square; lanes past the row do not count */
inlined void
sum_vec(int64_t i, int64_t n, vf *s, enum lpo_dtype dt, const void *x,
    int square, float mean)
{
	vf v = keep_first(vld_n(dt, x, i, n) - mean, n);

	*s = square ? vf_fma(v, v, *s) : *s + v;
}

/* Sum of (x - mean), or of its square, over one row. */
inlined float
row_sum(enum lpo_dtype dt, const void *x, int64_t c, int square, float mean)
{
	vf s[4] = {{0}, {0}, {0}, {0}};
	int64_t i, j;

	/* four chains hide the latency of the adds */
	for (i = 0; i + 4 * VL <= c; i += 4 * VL)
#pragma GCC unroll 4
		for (j = 0; j < 4; j++)
			sum_vec(i + j * VL, VL, &s[j], dt, x, square, mean);
	for (; i + VL <= c; i += VL)
		sum_vec(i, VL, &s[0], dt, x, square, mean);
	if (i < c)
		sum_vec(i, c - i, &s[1], dt, x, square, mean);
	return vf_hsum((s[0] + s[1]) + (s[2] + s[3]));
}

inlined void
apply_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *y, const void *x,
    const float *gamma, const float *beta, float mean, float rstd)
{
	vf v = (vld_n(dt, x, i, n) - mean) * rstd;

	vst_n(dt, y, i, n, vf_fma(v, vld_n(LPO_F32, gamma, i, n),
	    vld_n(LPO_F32, beta, i, n)));
}

inlined void
row_fwd(enum lpo_dtype dt, void *y, float *stats, const void *x,
    const float *gamma, const float *beta, int64_t c, float eps)
{
	float mean = row_sum(dt, x, c, 0, 0.0f) / (float)c;
	float var = row_sum(dt, x, c, 1, mean) / (float)c;
	float rstd = 1.0f / sqrtf(var + eps);
	int64_t i;

	stats[0] = mean;
	stats[1] = rstd;
	BY_VEC(i, c, apply_vec, dt, y, x, gamma, beta, mean, rstd);
}

int
LPO_FN(lpo_layer_norm_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t m, int64_t c, float eps)
{
	int64_t r;

	(void)b;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r++)
		BY_DTYPE(dt, row_fwd, elem(dt, y, r * c), stats + 2 * r,
		    elem(dt, x, r * c), gamma, beta, c, eps);
	return 0;
}

/* g = dy gamma and xhat of some elements of a row */
inlined vf
back_vec(enum lpo_dtype dt, int64_t i, int64_t n, vf *xhat, const void *dy,
    const void *x, const float *stats, const float *gamma)
{
	*xhat = (vld_n(dt, x, i, n) - stats[0]) * stats[1];
	return vf_mul(vld_n(dt, dy, i, n), vld_n(LPO_F32, gamma, i, n));
}

inlined void
dx_sums(int64_t i, int64_t n, vf *sa, vf *sb, enum lpo_dtype dt,
    const void *dy, const void *x, const float *stats, const float *gamma)
{
	vf xhat, g = back_vec(dt, i, n, &xhat, dy, x, stats, gamma);

	*sa += g;
	*sb = vf_fma(g, xhat, *sb);
}

inlined void
dx_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *dx, const void *dy,
    const void *x, const float *stats, const float *gamma, float a, float b)
{
	vf xhat, g = back_vec(dt, i, n, &xhat, dy, x, stats, gamma);

	g = vf_fnma(xhat, vf_set1(b), g - a);
	vst_n(dt, dx, i, n, vf_fma(g, vf_set1(stats[1]),
	    vld_n(dt, dx, i, n)));
}

/* dx += rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma, of one row */
inlined void
row_dx(enum lpo_dtype dt, void *dx, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t c)
{
	const float st[2] = { stats[0], stats[1] };	/* not aliased by dx */
	vf sa = {0}, sb = {0};
	float a, b;
	int64_t i;

	BY_VEC(i, c, dx_sums, &sa, &sb, dt, dy, x, st, gamma);
	a = vf_hsum(sa) / (float)c;
	b = vf_hsum(sb) / (float)c;
	BY_VEC(i, c, dx_vec, dt, dx, dy, x, st, gamma, a, b);
}

/* One vector of columns of the rows [r0, r1): sums of dy and of dy xhat. */
inlined void
column_vec(enum lpo_dtype dt, int64_t i, int64_t n, float *sums,
    const void *dy, const void *x, const float *stats, int64_t r0, int64_t r1,
    int64_t c)
{
	vf sa = {0}, sb = {0}, ra, rb, d, xhat;
	int64_t r, at, end;

	for (at = r0; at < r1; at = end) {
		end = min64(at + RUN, r1);
		ra = rb = (vf){0};
		for (r = at; r < end; r++) {
			d = vld_n(dt, elem(dt, dy, r * c), i, n);
			ra += d;
			xhat = (vld_n(dt, elem(dt, x, r * c), i, n) -
			    stats[2 * r]) * stats[2 * r + 1];
			rb = vf_fma(d, xhat, rb);
		}
		sa += ra;
		sb += rb;
	}
	vst_n(LPO_F32, sums, i, n, sa);
	vst_n(LPO_F32, sums + c, i, n, sb);
}

/* The same for the columns [from, to); sums [2][c]. */
inlined void
column_sums(enum lpo_dtype dt, float *sums, const void *dy, const void *x,
    const float *stats, int64_t r0, int64_t r1, int64_t c, int64_t from,
    int64_t to)
{
	int64_t i;

	for (i = from; i + VL <= to; i += VL)
		column_vec(dt, i, VL, sums, dy, x, stats, r0, r1, c);
	if (i < to)
		column_vec(dt, i, to - i, sums, dy, x, stats, r0, r1, c);
}

int
LPO_FN(lpo_layer_norm_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    float *dgamma, float *dbeta, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t m, int64_t c,
    int64_t groups, int add, void *scratch)
{
	int64_t blocks = (c + COLS - 1) / COLS, rows, r, u, k, j;
	float *sums = scratch;

	(void)b;
	if (groups < 1 || m % groups != 0)
		return LPO_EINVAL;
	rows = m / groups;
	begin_grad(dt, dx, m * c, add);
	if (dx != NULL) {
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
		for (r = 0; r < m; r++)
			BY_DTYPE(dt, row_dx, elem(dt, dx, r * c),
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    stats + 2 * r, gamma, c);
	}
	if (dgamma == NULL && dbeta == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (u = 0; u < groups * blocks; u++) {
		int64_t run = u / blocks, from = u % blocks * COLS;

		BY_DTYPE(dt, column_sums, sums + 2 * run * c, dy, x, stats,
		    run * rows, (run + 1) * rows, c, from,
		    min64(from + COLS, c));
	}
	for (k = 0; k < groups; k++)
		for (j = 0; j < c; j++) {
			if (dbeta != NULL)
				dbeta[j] += sums[2 * k * c + j];
			if (dgamma != NULL)
				dgamma[j] += sums[(2 * k + 1) * c + j];
		}
	return 0;
}
