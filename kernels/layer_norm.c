/* LayerNorm over the channels of each token, forward and backward. */
#include "kernels/ints.h"
#include "kernels/load.h"
#include "kernels/levels.h"

#include <math.h>

enum {
	RUN = 64,		/* rows summed in f32 before a larger sum */
	COLS = 512,		/* columns of a piece of a weight gradient */
	ROWS = 4,		/* rows whose sums are added up side by side */
	SERIAL = 16384
};

/* v with the lanes at or past n set to 0 */
inlined vf
keep_first(vf v, int64_t n)
{
	vi lane;
	int j;

	if (n == VL)
		return v;
	for (j = 0; j < VL; j++)
		lane[j] = j;
	return vf_select(lane < (int32_t)n, v, (vf){0});
}

/* *s += x - mean, or its square; lanes past the row do not count */
inlined void
sum_vec(int64_t i, int64_t n, vf *s, enum lpo_dtype dt, const void *x,
    int square, vf mean)
{
	vf v = keep_first(vld_n(dt, x, i, n) - mean, n);

	*s = square ? vf_fma(v, v, *s) : *s + v;
}

/* Sum of x - mean, or of its square, over one row, lane by lane. */
inlined vf
row_sum(enum lpo_dtype dt, const void *x, int64_t c, int square, vf mean)
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
	return (s[0] + s[1]) + (s[2] + s[3]);
}

inlined void
apply_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *y, const void *x,
    const float *gamma, const float *beta, vf mean, vf rstd)
{
	vf v = (vld_n(dt, x, i, n) - mean) * rstd;

	vst_n(dt, y, i, n, vf_fma(v, vld_n(LPO_F32, gamma, i, n),
	    vld_n(LPO_F32, beta, i, n)));
}

/*
 * Pass by pass for some rows, so that one row's sum across lanes, a long
 * chain, hides behind the others'.  A row's bits do not depend on its company.
 */
inlined void
rows_fwd(enum lpo_dtype dt, void *y, float *stats, const void *x,
    const float *gamma, const float *beta, int64_t rows, int64_t c, float eps)
{
	vf mean[ROWS], s[ROWS];
	int64_t r, i;

	for (r = 0; r < rows; r++)
		s[r] = row_sum(dt, elem(dt, x, r * c), c, 0, (vf){0});
	for (r = 0; r < rows; r++) {
		stats[2 * r] = vf_hsum(s[r]) / (float)c;
		mean[r] = vf_set1(stats[2 * r]);
	}
	for (r = 0; r < rows; r++)
		s[r] = row_sum(dt, elem(dt, x, r * c), c, 1, mean[r]);
	for (r = 0; r < rows; r++) {
		stats[2 * r + 1] = 1.0f / sqrtf(vf_hsum(s[r]) / (float)c +
		    eps);
		s[r] = vf_set1(stats[2 * r + 1]);
	}
	for (r = 0; r < rows; r++)
		BY_VEC(i, c, apply_vec, dt, elem(dt, y, r * c), elem(dt, x,
		    r * c), gamma, beta, mean[r], s[r]);
}

int
LPO_FN(lpo_layer_norm_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t m, int64_t c, float eps)
{
	int64_t r;

	(void)b;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r += ROWS)
		BY_DTYPE(dt, rows_fwd, elem(dt, y, r * c), stats + 2 * r,
		    elem(dt, x, r * c), gamma, beta, min64(ROWS, m - r), c,
		    eps);
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
    const void *x, const float *stats, const float *gamma, vf a, vf b,
    int add)
{
	vf xhat, g = back_vec(dt, i, n, &xhat, dy, x, stats, gamma);

	g = vf_fnma(xhat, b, g - a);
	vput_fma(dt, add, dx, i, n, g, vf_set1(stats[1]));
}

/* dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma, of some rows */
inlined void
rows_dx(enum lpo_dtype dt, void *dx, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t rows, int64_t c, int add)
{
	vf a[ROWS], b[ROWS];
	float st[2 * ROWS];			/* not aliased by dx */
	int64_t r, i;

	memcpy(st, stats, (size_t)rows * 2 * sizeof(float));
	for (r = 0; r < rows; r++) {
		vf sa = {0}, sb = {0};

		BY_VEC(i, c, dx_sums, &sa, &sb, dt, elem(dt, dy, r * c),
		    elem(dt, x, r * c), st + 2 * r, gamma);
		a[r] = sa;
		b[r] = sb;
	}
	for (r = 0; r < rows; r++) {
		a[r] = vf_set1(vf_hsum(a[r]) / (float)c);
		b[r] = vf_set1(vf_hsum(b[r]) / (float)c);
	}
	for (r = 0; r < rows; r++)
		if (add)
			BY_VEC(i, c, dx_vec, dt, elem(dt, dx, r * c),
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    st + 2 * r, gamma, a[r], b[r], 1);
		else
			BY_VEC(i, c, dx_vec, dt, elem(dt, dx, r * c),
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    st + 2 * r, gamma, a[r], b[r], 0);
}

/* a[i] += dy, b[i] += dy xhat of some elements of a row */
inlined void
column_vec(int64_t i, int64_t n, enum lpo_dtype dt, float *a, float *b,
    const void *dy, const void *x, const float *stats)
{
	vf d = vld_n(dt, dy, i, n);
	vf xhat = (vld_n(dt, x, i, n) - stats[0]) * stats[1];

	vf_store(a + i, vf_load(a + i) + d);
	vf_store(b + i, vf_fma(d, xhat, vf_load(b + i)));
}

/*
 * Sums of dy and of dy xhat over `rows` rows, of the w <= COLS columns at dy
 * and x; sums [2][c].
 */
inlined void
column_sums(enum lpo_dtype dt, float *sums, const void *dy, const void *x,
    const float *stats, int64_t rows, int64_t c, int64_t w)
{
	float a[COLS + VL], b[COLS + VL];
	int64_t run, r, end, i;

	for (i = 0; i < w; i++)
		sums[i] = sums[c + i] = 0.0f;
	for (run = 0; run < rows; run = end) {
		end = min64(run + RUN, rows);
		memset(a, 0, sizeof(a));
		memset(b, 0, sizeof(b));
		for (r = run; r < end; r++)
			BY_VEC(i, w, column_vec, dt, a, b,
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    stats + 2 * r);
		for (i = 0; i < w; i++) {
			sums[i] += a[i];
			sums[c + i] += b[i];
		}
	}
}

/* Columns of a piece: as many as let the threads share the runs evenly. */
static int64_t
columns(const lpo_backend *b, int64_t groups, int64_t c)
{
	int64_t pieces = (c + COLS - 1) / COLS;

	while (groups * pieces % b->threads != 0 && c / (pieces + 1) >= 32)
		pieces++;
	return min64(((c + pieces - 1) / pieces + 15) / 16 * 16, COLS);
}

int
LPO_FN(lpo_layer_norm_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    float *dgamma, float *dbeta, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t m, int64_t c,
    int64_t groups, int add, void *scratch)
{
	int64_t rows, r, u, k, j, cols, blocks;
	float *sums = scratch;

	if (groups < 1 || m % groups != 0)
		return LPO_EINVAL;
	rows = m / groups;
	cols = columns(b, groups, c);
	blocks = (c + cols - 1) / cols;
	if (dx != NULL) {
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
		for (r = 0; r < m; r += ROWS)
			BY_DTYPE(dt, rows_dx, elem(dt, dx, r * c),
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    stats + 2 * r, gamma, min64(ROWS, m - r), c, add);
	}
	if (dgamma == NULL && dbeta == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (u = 0; u < groups * blocks; u++) {
		int64_t run = u / blocks, from = u % blocks * cols;

		BY_DTYPE(dt, column_sums, sums + 2 * run * c + from,
		    elem(dt, dy, run * rows * c + from),
		    elem(dt, x, run * rows * c + from),
		    stats + 2 * run * rows, rows, c, min64(cols, c - from));
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
