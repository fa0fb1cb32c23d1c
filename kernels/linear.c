/*
 * Linear layers: the three products of gemm.h on plain rows; in bf16 oneDNN's
 * where it has native ones.  Weight gradients are always ours.
 */
#include "kernels/gemm.h"
#include "kernels/levels.h"
#include "kernels/onednn.h"

static struct lpo_src
plain(enum lpo_dtype dt, const void *base, int64_t ld)
{
	return (struct lpo_src){ .base = base, .dt = dt, .ld = ld };
}

int
LPO_FN(lpo_linear_fwd)(lpo_backend *be, enum lpo_dtype dt, void *y,
    const void *x, const void *w, const float *bias, int64_t m, int64_t n,
    int64_t k, float alpha, int add, void *scratch)
{
	struct lpo_src a = plain(dt, x, k), b = plain(dt, w, k);
	int rc = lpo_onednn_linear(be, LPO_FWD, dt, y, x, w, bias, m, n, k,
	    alpha, add, scratch);

	if (rc != 0)
		return rc < 0 ? rc : 0;
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = m, .n = n, .k = k,
	    .a = &a, .b = &b, .b_transposed = 1,
	    .y = { y, dt, 1, m, 0, 0, n }, .bias = bias, .alpha = alpha,
	    .add = add, .threads = be->threads, .scratch = scratch });
	return 0;
}

int
LPO_FN(lpo_linear_bwd_data)(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
    float alpha, void *scratch)
{
	struct lpo_src a = plain(dt, dy, n), b = plain(dt, w, k);
	int rc = lpo_onednn_linear(be, LPO_BWD_DATA, dt, dx, dy, w, NULL, m,
	    n, k, alpha, 1, scratch);

	if (rc != 0)
		return rc < 0 ? rc : 0;
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = m, .n = k, .k = n,
	    .a = &a, .b = &b, .y = { dx, dt, 1, m, 0, 0, k },
	    .alpha = alpha, .add = 1, .threads = be->threads,
	    .scratch = scratch });
	return 0;
}

int
LPO_FN(lpo_linear_bwd_weight)(lpo_backend *be, enum lpo_dtype dt,
    float *dw, float *db, const void *dy, const void *x, int64_t m, int64_t n,
    int64_t k, float alpha, int64_t groups, void *scratch)
{
	struct lpo_src a = plain(dt, dy, n), b = plain(dt, x, k);

	if (groups < 1 || m % groups != 0)
		return LPO_EINVAL;
	if (dw != NULL)
		LPO_FN(lpo_gemm_groups)(&(struct lpo_gemm_groups){ .m = n,
		    .n = k, .k = m / groups, .groups = groups, .a = &a,
		    .b = &b, .y = dw, .alpha = alpha,
		    .threads = be->threads, .scratch = scratch });
	if (db != NULL)
		LPO_FN(lpo_column_sums)(db, dt, dy, m / groups, n, alpha,
		    groups, be->threads);
	return 0;
}

size_t
LPO_FN(lpo_linear_scratch_bytes)(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t m, int64_t n, int64_t k, int64_t groups)
{
	size_t ours, theirs;

	(void)groups;
	if (pass == LPO_BWD_WEIGHT)
		return LPO_FN(lpo_gemm_groups_scratch_bytes)(be->threads);
	ours = pass == LPO_FWD ?
	    LPO_FN(lpo_gemm_scratch_bytes)(m, n, k, be->threads) :
	    LPO_FN(lpo_gemm_scratch_bytes)(m, k, n, be->threads);
	theirs = lpo_onednn_linear_scratch_bytes(be, pass, dt, n, k);
	return ours > theirs ? ours : theirs;
}
