/* Intervals against closed forms. */
#include <math.h>

#include "lib/base/philox.h"
#include "lib/score/stats.h"
#include "tests/tap.h"

int
main(void)
{
	enum { N = 400 };
	lpo_ctx *c = lpo_ctx_new();
	struct lpo_draw d = { .seed = 1, .purpose = LPO_DRAW_NOISE };
	struct lpo_interval v, w;
	double x[N], mean = 0, sd = 0, diff[2], win[2];
	const double a[] = { 1, 2, 3, 4, 5 }, b[] = { 0, 2, 4, 4, 1 };
	const int64_t first[] = { 0, 3, 5 };
	float f[N];
	int i;

	lpo_draw_normal(&d, 0, f, N);
	for (i = 0; i < N; i++)
		mean += (x[i] = 3 + 2 * f[i]) / N;
	for (i = 0; i < N; i++)
		sd += (x[i] - mean) * (x[i] - mean) / (N - 1);
	sd = sqrt(sd / N);	/* standard error: the interval is +-1.96 */
	lpo_bootstrap(c, &v, x, NULL, N, 4000, 42, 0);
	ok(fabs(v.mean - mean) < 1e-12, "the mean");
	ok(fabs(v.low - (mean - 1.96 * sd)) < 0.12 * sd &&
	    fabs(v.high - (mean + 1.96 * sd)) < 0.12 * sd,
	    "interval [%.4f, %.4f], normal theory [%.4f, %.4f]", v.low,
	    v.high, mean - 1.96 * sd, mean + 1.96 * sd);
	lpo_bootstrap(c, &w, x, NULL, N, 4000, 42, 0);
	ok(w.low == v.low && w.high == v.high, "the same seed, the same bits");
	lpo_bootstrap(c, &w, x, NULL, N, 4000, 43, 0);
	ok(w.low != v.low, "another seed draws otherwise");
	lpo_bootstrap(c, &w, x, NULL, 0, 100, 42, 0);
	ok(isnan(w.mean), "nothing has no mean");
	lpo_bootstrap(c, &w, a, b, 5, 100, 42, 0);
	ok(fabs(w.mean - (2 * 2 + 3 * 4 + 4 * 4 + 5 * 1) / 11.0) < 1e-12,
	    "a weighted mean");

	lpo_paired(diff, win, a, b, first, 2);
	ok(fabs(diff[0]) < 1e-12 && fabs(diff[1] - 2) < 1e-12,
	    "paired differences per prompt");
	ok(fabs(win[0] - 0.5) < 1e-12 && fabs(win[1] - 0.75) < 1e-12,
	    "wins, ties one half");
	lpo_ctx_free(c);
	return done_testing();
}
