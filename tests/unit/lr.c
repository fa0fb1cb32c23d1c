/* Learning rates: the official ones of method.md 2.7, and the plain ones. */
#include <math.h>

#include "lib/train/lrm_train.h"
#include "tests/tap.h"

static int
near(double a, double b)
{
	return fabs(a - b) <= 5e-3 * fabs(b) + 1e-15;
}

int
main(void)
{
	static const struct {
		int64_t n;
		double lr;
	} want[] = {
		{ 1, 1e-5 }, { 2, 0 }, { 3, 1.115e-6 }, { 12, 3.86e-6 },
		{ 102, 7.43e-6 }, { 502, 1e-5 }, { 2000, 5.72e-6 },
		{ 4000, 5.7e-9 }
	};
	double sum = 0;
	size_t i;
	int64_t n;
	int good = 1;

	for (i = 0; i < sizeof(want) / sizeof(want[0]); i++)
		good &= near(lpo_lr_at(LPO_LR_OFFICIAL, 1e-5, want[i].n, 500,
		    4000), want[i].lr);
	ok(good, "official: the eight values of the spec");
	for (n = 1; n <= 20; n++)
		sum += lpo_lr_at(LPO_LR_OFFICIAL, 1, n, 0, 20) +
		    lpo_lr_at(LPO_LR_OFFICIAL, 1, n, 30, 20);
	ok(isfinite(sum), "official: no warm-up, or one beyond the end");
	ok(near(lpo_lr_at(LPO_LR_LINEAR, 1, 1, 10, 100), 0.1) &&
	    near(lpo_lr_at(LPO_LR_LINEAR, 1, 10, 10, 100), 1) &&
	    near(lpo_lr_at(LPO_LR_LINEAR, 1, 11, 10, 100), 1) &&
	    near(lpo_lr_at(LPO_LR_LINEAR, 1, 56, 10, 100), 0.5) &&
	    near(lpo_lr_at(LPO_LR_LINEAR, 1, 100, 10, 100), 1 / 90.),
	    "linear: up, down, never quite 0");
	ok(near(lpo_lr_at(LPO_LR_COSINE, 2, 56, 10, 100), 1) &&
	    near(lpo_lr_at(LPO_LR_COSINE, 2, 11, 10, 100), 2) &&
	    lpo_lr_at(LPO_LR_COSINE, 2, 100, 10, 100) > 0, "cosine");
	ok(lpo_lr_at(LPO_LR_CONSTANT, 3, 5, 10, 100) == 1.5 &&
	    lpo_lr_at(LPO_LR_CONSTANT, 3, 100, 10, 100) == 3 &&
	    lpo_lr_at(LPO_LR_CONSTANT, 3, 1, 0, 100) == 3, "constant");
	ok(lpo_lr_schedule_parse("linear") == LPO_LR_LINEAR &&
	    lpo_lr_schedule_parse("x") == -1, "names");
	return done_testing();
}
