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

/* Lanes at or past n become 0. */
static inline vf
keep_first(vf v, int64_t n)
{
	float a[VL];
	int64_t j;

	if (n >= VL)
		return v;
	vf_store(a, v);
	for (j = n; j < VL; j++)
		a[j] = 0.0f;
	return vf_load(a);
}

/* Sum of (x - mean), or of its square, over one row. */
static inline float
row_sum(enum lpo_dtype dt, const void *x, int64_t c, int square, float mean)
{
	vf s[4] = {{0}, {0}, {0}, {0}}, v;
	int64_t i, j;

	for (i = 0; i < c; i += 4 * VL)
		for (j = 0; j < 4 && i + j * VL < c; j++) {
			v = vld(dt, x, i + j * VL, c) - mean;
			v = keep_first(v, c - i - j * VL);
			s[j] += square ? v * v : v;
		}
	return vf_sum((s[0] + s[1]) + (s[2] + s[3]));
}

int
LPO_FN(lpo_layer_norm_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    float *stats, const void *x, const float *gamma, const float *beta,
    int64_t m, int64_t c, float eps)
{
	int64_t r;

	(void)b;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r++) {
		const void *xr = elem(dt, x, r * c);
		void *yr = elem(dt, y, r * c);
		float mean = row_sum(dt, xr, c, 0, 0.0f) / (float)c;
		float var = row_sum(dt, xr, c, 1, mean) / (float)c;
		float rstd = 1.0f / sqrtf(var + eps);
		int64_t i;
		vf v;

		stats[2 * r] = mean;
		stats[2 * r + 1] = rstd;
		for (i = 0; i < c; i += VL) {
			v = (vld(dt, xr, i, c) - mean) * rstd;
			v = v * vld(LPO_F32, gamma, i, c) +
			    vld(LPO_F32, beta, i, c);
			vst(dt, yr, i, c, v);
		}
	}
	return 0;
}

/* dx += rstd (g - mean(g) - xhat mean(g xhat)), g = dy gamma, of one row */
static void
row_dx(enum lpo_dtype dt, void *dx, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t c)
{
	float mean = stats[0], rstd = stats[1], a, b;
	vf sa = {0}, sb = {0}, g, xhat;
	int64_t i;

	for (i = 0; i < c; i += VL) {
		g = vld(dt, dy, i, c) * vld(LPO_F32, gamma, i, c);
		xhat = (vld(dt, x, i, c) - mean) * rstd;
		sa += g;
		sb += g * xhat;
	}
	a = vf_sum(sa) / (float)c;
	b = vf_sum(sb) / (float)c;
	for (i = 0; i < c; i += VL) {
		g = vld(dt, dy, i, c) * vld(LPO_F32, gamma, i, c);
		xhat = (vld(dt, x, i, c) - mean) * rstd;
		vacc(dt, dx, i, c, rstd * (g - a - xhat * b));
	}
}

/* Of the rows [r0, r1), columns [from, to): sums[0] of dy, [1] of dy xhat. */
static void
column_sums(enum lpo_dtype dt, float *sums, const void *dy, const void *x,
    const float *stats, int64_t r0, int64_t r1, int64_t c, int64_t from,
    int64_t to)
{
	vf sa, sb, ra, rb, d;
	int64_t i, r, at, end;

	for (i = from; i < to; i += VL) {
		sa = sb = (vf){0};
		for (at = r0; at < r1; at = end) {
			end = min64(at + RUN, r1);
			ra = rb = (vf){0};
			for (r = at; r < end; r++) {
				d = vld(dt, elem(dt, dy, r * c), i, c);
				ra += d;
				rb += d * ((vld(dt, elem(dt, x, r * c), i, c) -
				    stats[2 * r]) * stats[2 * r + 1]);
			}
			sa += ra;
			sb += rb;
		}
		vst(LPO_F32, sums, i, c, sa);
		vst(LPO_F32, sums + c, i, c, sb);
	}
}

int
LPO_FN(lpo_layer_norm_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    float *dgamma, float *dbeta, const void *dy, const void *x,
    const float *stats, const float *gamma, int64_t m, int64_t c,
    int64_t groups, void *scratch)
{
	int64_t blocks = (c + COLS - 1) / COLS, rows, r, u, k, j;
	float *sums = scratch;

	(void)b;
	if (groups < 1 || m % groups != 0)
		return LPO_EINVAL;
	rows = m / groups;
	if (dx != NULL) {
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
		for (r = 0; r < m; r++)
			row_dx(dt, elem(dt, dx, r * c), elem(dt, dy, r * c),
			    elem(dt, x, r * c), stats + 2 * r, gamma, c);
	}
	if (dgamma == NULL && dbeta == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (u = 0; u < groups * blocks; u++) {
		int64_t run = u / blocks, from = u % blocks * COLS;

		column_sums(dt, sums + 2 * run * c, dy, x, stats, run * rows,
		    (run + 1) * rows, c, from, min64(from + COLS, c));
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
