/* How fast this machine multiplies, for estimates of a plan. */
#include <math.h>

#include "tools/cli.h"

double
lpo_cli_speed(lpo_cli *cli, enum lpo_dtype dt)
{
	lpo_backend *be = &cli->be;
	const int64_t n = 512;
	size_t bytes = (size_t)(n * n) * lpo_dtype_bytes(dt);
	size_t need = be->k->linear_scratch_bytes(be, LPO_FWD, dt, n, n, n, 1);
	void *x = be->k->alloc(be, 3 * bytes + need + 64);
	double start, s, flops = 0;

	if (x == NULL || be->k->zero(be, x, 3 * bytes) < 0)
		return NAN;
	start = lpo_cli_now();
	do {
		be->k->linear_fwd(be, dt, (char *)x + 2 * bytes, x,
		    (char *)x + bytes, NULL, NULL, n, n, n, 1,
		    (char *)x + 3 * bytes);
		flops += 2.0 * (double)(n * n * n);
		be->k->sync(be);
		s = lpo_cli_now() - start;
	} while (s < 0.05);
	be->k->free(be, x);
	return flops / s / 1e9;
}
