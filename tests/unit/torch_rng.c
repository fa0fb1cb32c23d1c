/*
 * torch.randn on the CPU, values from torch 2 (%.9g):
 *	torch.randn(n, generator=torch.Generator().manual_seed(seed))
 */
#include <math.h>

#include "lib/train/torch_rng.h"
#include "tests/tap.h"

int
main(void)
{
	static const struct {
		uint64_t seed;
		int64_t n, call, at;
		double value;
	} v[] = {
		{ 43, 256, 0, 0, -0.0166036133 },
		{ 43, 256, 0, 1, -0.466794938 },
		{ 43, 256, 0, 17, 0.419829607 },
		{ 43, 256, 0, 255, 0.573301256 },
		/* only 32 bits of a seed count; the last 16 of 35 come anew */
		{ 8589934597, 35, 0, 0, 1.84232986 },
		{ 8589934597, 35, 0, 18, -0.336449355 },
		{ 8589934597, 35, 0, 19, -0.179165602 },
		{ 8589934597, 35, 0, 20, 1.92305994 },
		{ 8589934597, 35, 0, 34, -0.177704588 },
		/* the generator goes on */
		{ 43, 64, 1, 0, 1.67152333 },
		{ 43, 64, 1, 1, -0.359624863 },
		{ 43, 64, 1, 63, -2.2533679 }
	};
	lpo_ctx *c = lpo_ctx_new();
	/* torch.randn(12, device="cuda") of seed 0, as A1111's manual has it */
	static const double cuda[12] = { -0.92466259, -0.42534415, -2.6438457,
	    0.14518388, -0.12086347, -0.57972564, -0.62285122, -0.32838709,
	    -1.07454231, -0.36314407, -1.67105067, 2.26550497 };
	double worst = 0;
	float x[256];
	size_t i;

	for (i = 0; i < sizeof v / sizeof *v; i++)
		ok(lpo_torch_randn(c, x, v[i].n, v[i].seed, v[i].call) == 0 &&
		    fabs((double)x[v[i].at] - v[i].value) < 2e-6,
		    "seed %llu, call %d, element %d of %d",
		    (unsigned long long)v[i].seed, (int)v[i].call,
		    (int)v[i].at, (int)v[i].n);
	lpo_torch_cuda_randn(x, 12, 0, 0);
	for (i = 0; i < 12; i++)
		worst = worse(worst, fabs((double)x[i] - cuda[i]));
	ok(worst < 5e-6, "CUDA's generator: %.1g off at most", worst);
	ok(lpo_torch_randn(c, x, 15, 1, 0) == LPO_EINVAL,
	    "fewer than 16 are drawn in another way: %s", lpo_errmsg(c));
	lpo_ctx_free(c);
	return done_testing();
}
