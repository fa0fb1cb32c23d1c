/* LayerNorm over the channels of each token, forward and backward. */
#include "kernels/load.h"
#include "kernels/levels.h"

#include <math.h>

enum {
	RUN = 64,		/* rows summed in f32 before a larger sum */
	TILE = 8,		/* rows read while they pass through L1 */
	COLS = 64,		/* columns of a piece of a weight gradient */
	ROWS = 4,		/* rows whose sums run side by side */
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
	vi lane;
	int j;

	if (n == VL)
		return v;
	for (j = 0; j < VL; j++)
		lane[j] = j;
	return vf_select(lane < (int32_t)n, v, (vf){0});
}

/* s[r] += x - mean[r], or its square; lanes past the row do not count */
inlined void
sum_vec(int64_t i, int64_t n, int rows, vf *s, enum lpo_dtype dt,
    const void *x, int64_t c, int square, const vf *mean)
{
	vf v;
	int r;

#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		v = keep_first(vld_n(dt, x, r * c + i, n) - mean[r], n);
		s[r] = square ? vf_fma(v, v, s[r]) : s[r] + v;
	}
}

/*
 * mean[r] = the mean of x - mean[r], or of its square, in all lanes, for each
 * of some rows.  Two chains a row: a row's bits do not depend on its company.
 */
inlined void
row_means(enum lpo_dtype dt, int rows, vf *to, const void *x, int64_t c,
    int square, const vf *mean)
{
	vf s[ROWS] = {{0}}, t[ROWS] = {{0}};
	int64_t i;
	int r;

	for (i = 0; i + 2 * VL <= c; i += 2 * VL) {
		sum_vec(i, VL, rows, s, dt, x, c, square, mean);
		sum_vec(i + VL, VL, rows, t, dt, x, c, square, mean);
	}
	if (i + VL <= c) {
		sum_vec(i, VL, rows, s, dt, x, c, square, mean);
		i += VL;
	}
	if (i < c)
		sum_vec(i, c - i, rows, t, dt, x, c, square, mean);
#pragma GCC unroll 4
	for (r = 0; r < rows; r++)
		to[r] = vf_set1(vf_hsum(s[r] + t[r]) / (float)c);
}

inlined void
apply_vec(int64_t i, int64_t n, int rows, enum lpo_dtype dt, void *y,
    const void *x, int64_t c, const float *gamma, const float *beta,
    const vf *mean, const vf *rstd)
{
	vf g = vld_n(LPO_F32, gamma, i, n), b = vld_n(LPO_F32, beta, i, n), v;
	int r;

#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		v = (vld_n(dt, x, r * c + i, n) - mean[r]) * rstd[r];
		vst_n(dt, y, r * c + i, n, vf_fma(v, g, b));
	}
}

inlined void
rows_fwd(int rows, enum lpo_dtype dt, void *y, float *stats, const void *x,
    const float *gamma, const float *beta, int64_t c, float eps)
{
	vf zero[ROWS] = {{0}}, mean[ROWS], rstd[ROWS];
	int64_t i;
	int r;

	row_means(dt, rows, mean, x, c, 0, zero);
	row_means(dt, rows, rstd, x, c, 1, mean);
#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		stats[2 * r] = mean[r][0];
		stats[2 * r + 1] = 1.0f / sqrtf(rstd[r][0] + eps);
		rstd[r] = vf_set1(stats[2 * r + 1]);
	}
	BY_VEC(i, c, apply_vec, rows, dt, y, x, c, gamma, beta, mean, rstd);
}

/* ROWS rows or, at the end, the rest one by one. */
inlined void
some_fwd(enum lpo_dtype dt, void *y, float *stats, const void *x,
    const float *gamma, const float *beta, int64_t rows, int64_t c, float eps)
{
	int64_t r;

	if (rows >= ROWS)
		rows_fwd(ROWS, dt, y, stats, x, gamma, beta, c, eps);
	else
		for (r = 0; r < rows; r++)
			rows_fwd(1, dt, elem(dt, y, r * c), stats + 2 * r,
			    elem(dt, x, r * c), gamma, beta, c, eps);
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
		BY_DTYPE(dt, some_fwd, elem(dt, y, r * c), stats + 2 * r,
		    elem(dt, x, r * c), gamma, beta, m - r, c, eps);
	return 0;
}

/* What the backward needs of some rows. */
struct back {
	const void *dy, *x;
	vf mean[ROWS], rstd[ROWS], a[ROWS], b[ROWS];
};

/* g = dy gamma and xhat of some elements of row r */
inlined vf
back_vec(enum lpo_dtype dt, int64_t at, int64_t n, int r, vf *xhat,
    const struct back *k, vf gamma)
{
	*xhat = (vld_n(dt, k->x, at, n) - k->mean[r]) * k->rstd[r];
	return vf_mul(vld_n(dt, k->dy, at, n), gamma);
}

/* a[r] += g, b[r] += g xhat */
inlined void
dx_sums(int64_t i, int64_t n, int rows, enum lpo_dtype dt, struct back *k,
    int64_t c, const float *gamma)
{
	vf gam = vld_n(LPO_F32, gamma, i, n), xhat, g;
	int r;

#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		g = back_vec(dt, r * c + i, n, r, &xhat, k, gam);
		k->a[r] += g;
		k->b[r] = vf_fma(g, xhat, k->b[r]);
	}
}

inlined void
dx_vec(int64_t i, int64_t n, int rows, enum lpo_dtype dt, void *dx,
    const struct back *k, int64_t c, const float *gamma, int add)
{
	vf gam = vld_n(LPO_F32, gamma, i, n), xhat, g;
	int r;

#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		g = back_vec(dt, r * c + i, n, r, &xhat, k, gam);
		g = vf_fnma(xhat, k->b[r], g - k->a[r]);
		vput_fma(dt, add, dx, r * c + i, n, g, k->rstd[r]);
	}
}

/* dx (+)= rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma */
inlined void
rows_dx(int rows, enum lpo_dtype dt, void *dx, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t c, int add)
{
	struct back k = { .dy = dy, .x = x };
	int64_t i;
	int r;

#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		k.mean[r] = vf_set1(stats[2 * r]);
		k.rstd[r] = vf_set1(stats[2 * r + 1]);
		k.a[r] = k.b[r] = (vf){0};
	}
	BY_VEC(i, c, dx_sums, rows, dt, &k, c, gamma);
#pragma GCC unroll 4
	for (r = 0; r < rows; r++) {
		k.a[r] = vf_set1(vf_hsum(k.a[r]) / (float)c);
		k.b[r] = vf_set1(vf_hsum(k.b[r]) / (float)c);
	}
	if (add)
		BY_VEC(i, c, dx_vec, rows, dt, dx, &k, c, gamma, 1);
	else
		BY_VEC(i, c, dx_vec, rows, dt, dx, &k, c, gamma, 0);
}

inlined void
some_dx(enum lpo_dtype dt, void *dx, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t rows, int64_t c, int add)
{
	int64_t r;

	if (rows >= ROWS)
		rows_dx(ROWS, dt, dx, dy, x, stats, gamma, c, add);
	else
		for (r = 0; r < rows; r++)
			rows_dx(1, dt, elem(dt, dx, r * c), elem(dt, dy,
			    r * c), elem(dt, x, r * c), stats + 2 * r, gamma,
			    c, add);
}

/* a[i] += dy, b[i] += dy xhat of one vector of columns, over some rows */
inlined void
column_vec(int64_t i, int64_t n, enum lpo_dtype dt, float *a, float *b,
    const void *dy, const void *x, const float *stats, int64_t rows,
    int64_t c)
{
	vf sa = vf_load(a + i), sb = vf_load(b + i), d, xhat;
	int64_t r;

	for (r = 0; r < rows; r++) {
		d = vld_n(dt, dy, r * c + i, n);
		xhat = (vld_n(dt, x, r * c + i, n) - stats[2 * r]) *
		    stats[2 * r + 1];
		sa += d;
		sb = vf_fma(d, xhat, sb);
	}
	vf_store(a + i, sa);
	vf_store(b + i, sb);
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
		for (r = run; r < end; r += TILE)
			BY_VEC(i, w, column_vec, dt, a, b,
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    stats + 2 * r, min64(TILE, end - r), c);
		for (i = 0; i < w; i++) {
			sums[i] += a[i];
			sums[c + i] += b[i];
		}
	}
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
	if (dx != NULL) {
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
		for (r = 0; r < m; r += ROWS)
			BY_DTYPE(dt, some_dx, elem(dt, dx, r * c),
			    elem(dt, dy, r * c), elem(dt, x, r * c),
			    stats + 2 * r, gamma, m - r, c, add);
	}
	if (dgamma == NULL && dbeta == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (u = 0; u < groups * blocks; u++) {
		int64_t run = u / blocks, from = u % blocks * COLS;

		BY_DTYPE(dt, column_sums, sums + 2 * run * c + from,
		    elem(dt, dy, run * rows * c + from),
		    elem(dt, x, run * rows * c + from),
		    stats + 2 * run * rows, rows, c, min64(COLS, c - from));
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
