/* How fast this machine multiplies, for estimates of a plan. */
#include <math.h>

#include "tools/cli_priv.h"

/* Of two matrices of n rows at x, to a third; scratch is behind them. */
static void
product(lpo_backend *be, enum lpo_dtype dt, void *x, int64_t n)
{
	size_t bytes = (size_t)(n * n) * lpo_dtype_bytes(dt);
	char *p = x;

	be->k->linear_fwd(be, dt, p + 2 * bytes, p, p + bytes, NULL, NULL, n,
	    n, n, 1, p + 3 * bytes);
	be->k->sync(be);
}

double
lpo_cli_speed(lpo_cli *cli, enum lpo_dtype dt)
{
	lpo_backend *be = &cli->be;
	/* a product must be large enough to fill the device */
	const int64_t n = lpo_cli_on_cuda(cli) ? 4096 : 512;
	size_t bytes = (size_t)(n * n) * lpo_dtype_bytes(dt);
	size_t need = be->k->linear_scratch_bytes(be, LPO_FWD, dt, n, n, n, 1);
	void *x = be->k->alloc(be, 3 * bytes + need + 64);
	double start, s, flops = 0;

	if (x == NULL || be->k->zero(be, x, 3 * bytes) < 0) {
		be->k->free(be, x);
		return NAN;
	}
	/* the first has its kernel to find and to load */
	product(be, dt, x, n);
	start = lpo_cli_now();
	do {
		product(be, dt, x, n);
		flops += 2.0 * (double)(n * n * n);
		s = lpo_cli_now() - start;
	} while (s < 0.05);
	be->k->free(be, x);
	return flops / s / 1e9;
}
