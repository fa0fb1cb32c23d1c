/*
 * The reward model's losses: values against the formulas of method.md 2.5
 * written out, gradients against central differences.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/train/lrm_loss.h"
#include "tests/tap.h"

enum { N = 3, D = 5 };

static float v[N][2][D], t[N][D];
static const double l0[N] = { 1, 0, 0.5 }, l1[N] = { 0, 1, 0.5 };
static double w[N];

static void
fill(void)
{
	const struct lpo_draw a = { .seed = 7, .purpose = LPO_DRAW_NOISE };
	const struct lpo_draw b = { .seed = 7, .purpose = LPO_DRAW_INIT };

	lpo_draw_normal(&a, 0, &v[0][0][0], (int64_t)N * 2 * D);
	lpo_draw_normal(&b, 0, &t[0][0], (int64_t)N * D);
}

static double
score(int text, int pair, int image, double s)
{
	return lpo_lrm_score(v[pair][image], t[text], D, s);
}

/* -log softmax(z)[at] */
static double
ce(const double *z, int n, int at)
{
	double sum = 0;
	int i;

	for (i = 0; i < n; i++)
		sum += exp(z[i]);
	return log(sum) - z[at];
}

/* The loss, as method.md has it; order of images: all 0, all 1. */
static double
plain(enum lpo_lrm_criterion crit, double coeff, double s)
{
	double z[2 * N], total = 0, pair, batch;
	int i, j, k;

	for (i = 0; i < N; i++) {
		double tie = l0[i] == l1[i] ? log(0.5) : 0;
		const double y[2] = { l0[i], l1[i] };

		z[0] = score(i, i, 0, s);
		z[1] = score(i, i, 1, s);
		pair = y[0] * ce(z, 2, 0) + y[1] * ce(z, 2, 1) + tie;
		for (j = 0; j < 2 * N; j++)
			z[j] = score(i, j % N, j / N, s);
		batch = tie;
		for (k = 0; k < 2; k++)
			batch += y[k] * ce(z, 2 * N, k * N + i);
		for (k = 0; k < 2; k++) {
			for (j = 0; j < N; j++)
				z[j] = score(j, i, k, s);
			batch += y[k] * ce(z, N, i);
		}
		batch /= 2;
		total += w[i] * (crit == LPO_LRM_PAIR ? pair :
		    crit == LPO_LRM_BATCH ? batch : pair + coeff * batch);
	}
	return total;
}

static double
loss_of(lpo_ctx *c, enum lpo_lrm_criterion crit, double coeff, double s)
{
	double l;

	lpo_lrm_batch_loss(c, &l, NULL, NULL, NULL, &v[0][0][0], &t[0][0], N,
	    D, s, l0, l1, w, crit, coeff);
	return l;
}

/* Largest difference between grad[i] and the central difference at x[i]. */
static double
worst(lpo_ctx *c, float *x, const float *grad, int n,
    enum lpo_lrm_criterion crit, double coeff, double s)
{
	double up, down, e, most = 0, h;
	float keep;
	int i;

	for (i = 0; i < n; i++) {
		keep = x[i];
		x[i] = keep + 1e-3f;
		h = (double)x[i];
		up = loss_of(c, crit, coeff, s);
		x[i] = keep - 1e-3f;
		h -= (double)x[i];
		down = loss_of(c, crit, coeff, s);
		x[i] = keep;
		e = fabs((up - down) / h - (double)grad[i]);
		most = worse(most, e);
	}
	return most;
}

static void
criterion(lpo_ctx *c, enum lpo_lrm_criterion crit, const char *name)
{
	float dv[N][2][D], dt[N][D];
	double loss, ds = 0, s = 1.2, coeff = 0.7, num;
	int rc;

	rc = lpo_lrm_batch_loss(c, &loss, &dv[0][0][0], &dt[0][0], &ds,
	    &v[0][0][0], &t[0][0], N, D, s, l0, l1, w, crit, coeff);
	ok(rc == 0 && fabs(loss - plain(crit, coeff, s)) < 1e-12,
	    "%s: the loss", name);
	ok(worst(c, &v[0][0][0], &dv[0][0][0], N * 2 * D, crit, coeff, s) <
	    1e-5, "%s: gradient for V", name);
	ok(worst(c, &t[0][0], &dt[0][0], N * D, crit, coeff, s) < 1e-5,
	    "%s: gradient for T", name);
	num = (loss_of(c, crit, coeff, s + 1e-5) -
	    loss_of(c, crit, coeff, s - 1e-5)) / 2e-5;
	ok(fabs(num - ds) < 1e-8, "%s: gradient for s", name);
}

/* One pair at a time gives what the whole batch gives. */
static void
single(lpo_ctx *c)
{
	float dv[N][2][D], dt[N][D], dv1[N][2][D], dt1[N][D];
	double loss, ds = 0, loss1 = 0, ds1 = 0, sc[2], most = 0;
	int i;

	lpo_lrm_batch_loss(c, &loss, &dv[0][0][0], &dt[0][0], &ds,
	    &v[0][0][0], &t[0][0], N, D, 2.0, l0, l1, w, LPO_LRM_PAIR, 1);
	for (i = 0; i < N; i++)
		loss1 += lpo_lrm_pair_loss(&dv1[i][0][0], dt1[i], &ds1, sc,
		    &v[i][0][0], t[i], D, 2.0, l0[i], l1[i], w[i]);
	ok(fabs(sc[1] - score(N - 1, N - 1, 1, 2.0)) < 1e-12, "its scores");
	for (i = 0; i < N * 2 * D; i++)
		most = worse(most, fabs((double)((&dv[0][0][0])[i] -
		    (&dv1[0][0][0])[i])));
	for (i = 0; i < N * D; i++)
		most = worse(most, fabs((double)((&dt[0][0])[i] -
		    (&dt1[0][0])[i])));
	ok(fabs(loss - loss1) < 1e-12 && fabs(ds - ds1) < 1e-12 &&
	    most < 1e-6, "pair by pair, the same");
}

static void
extremes(void)
{
	const float a[4] = { 1, 0, -1, 0 }, up[2] = { 1, 0 };
	const float same[4] = { 1, 0, 1, 0 };
	float dv[4], dt[2];
	double ds = 0, l;

	l = lpo_lrm_pair_loss(dv, dt, &ds, NULL, a, up, 2, 7, 0, 1, 1);
	ok(isfinite(l) && fabs(l - 2 * exp(7.0)) < 1e-9,
	    "a hopeless pair costs what it costs, not inf");
	l = lpo_lrm_pair_loss(dv, dt, &ds, NULL, same, up, 2, 3, .5, .5, 1);
	ok(fabs(l) < 1e-15, "a perfectly tied tie costs nothing");
	l = lpo_lrm_pair_loss(dv, dt, &ds, NULL, (float[4]){ 0 }, up, 2, 3, 1,
	    0, 1);
	ok(isnan(l), "a zero vector is not hidden");
}

static void
weights(void)
{
	const double n[3] = { 1, 2, 4 };
	const int64_t a[3] = { 1, 1, 1 }, b[3] = { 1, 1, 51 };
	double x[3];

	lpo_lrm_weights(x, n, NULL, NULL, 9, 3);
	ok(fabs(x[0] - 4 / 7.) < 1e-15 && fabs(x[2] - 1 / 7.) < 1e-15,
	    "weights 1/n, normalised");
	lpo_lrm_weights(x, n, a, b, 0.5, 3);
	ok(fabs(x[1] - 2 / 7.) < 1e-15 && fabs(x[2] - 1 / 14.) < 1e-15,
	    "two timesteps: times aux");
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();

	fill();
	lpo_lrm_weights(w, (double[N]){ 3, 1, 2 }, NULL, NULL, 1, N);
	criterion(c, LPO_LRM_PAIR, "pair");
	criterion(c, LPO_LRM_BATCH, "batch");
	criterion(c, LPO_LRM_BOTH, "both");
	single(c);
	extremes();
	weights();
	ok(lpo_lrm_criterion_parse("both") == LPO_LRM_BOTH &&
	    lpo_lrm_criterion_parse("x") == -1, "names");
	lpo_ctx_free(c);
	return done_testing();
}
