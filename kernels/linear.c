/*
 * Linear layers: the three products of gemm.h on plain rows; in bf16 oneDNN's
 * where it has native ones, in blocks of rows.  Weight gradients are ours.
 */
#include <omp.h>

#include "kernels/gemm.h"
#include "kernels/levels.h"
#include "kernels/onednn.h"

#define BLOCK_ROWS 64		/* rows that oneDNN gets at a time */

/*
 * y[m, cols] = x[m, depth] W in blocks of rows.  Scratch holds the weights,
 * one padded block of x and y, and a pad per thread.
 */
struct blocks {
	const struct lpo_piece *piece;
	int64_t cols, depth;
	size_t at_tmp, at_pads, pad_bytes, bytes;
};

/* piece is NULL where oneDNN does not do this product */
static struct blocks
make_blocks(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt, int64_t n,
    int64_t k, int bias, int add)
{
	struct blocks b = { .cols = pass == LPO_FWD ? n : k,
	    .depth = pass == LPO_FWD ? k : n };

	/* Narrow ones (LoRA) are bound by memory, and ours need no setup. */
	if (dt != LPO_BF16 || b.cols < 16 || b.depth < 32)
		return b;
	b.piece = lpo_onednn_linear(be, &(struct lpo_linear_piece){ pass,
	    bias, add, BLOCK_ROWS, b.cols, b.depth });
	if (b.piece == NULL)
		return b;
	b.pad_bytes = lpo_aligned(b.piece->pad_bytes);
	b.at_tmp = lpo_aligned(b.piece->weight_bytes);
	b.at_pads = b.at_tmp +
	    lpo_aligned((size_t)((b.cols + b.depth) * 2 * BLOCK_ROWS));
	b.bytes = b.at_pads + b.pad_bytes * (size_t)be->threads + 64;
	return b;
}

/* The last rows, fewer than a block: through a copy filled up with zeros. */
static int
run_rest(lpo_backend *be, const struct blocks *b, uint16_t *y,
    const uint16_t *x, int64_t rows, void *weight, const float *bias,
    uint16_t *tmp, void *pad)
{
	size_t in = (size_t)(rows * b->depth) * 2;
	size_t out = (size_t)(rows * b->cols) * 2;
	uint16_t *ty = tmp + BLOCK_ROWS * b->depth;
	int rc;

	memset(tmp, 0, (size_t)(BLOCK_ROWS * (b->depth + b->cols)) * 2);
	memcpy(tmp, x, in);
	memcpy(ty, y, out);	/* is added to, or written over */
	rc = lpo_onednn_run(be, b->piece, ty, tmp, weight, bias, pad);
	memcpy(y, ty, out);
	return rc;
}

/* 1: done, 0: not for oneDNN, negative: LPO_E* */
static int
run_blocks(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    uint16_t *y, const uint16_t *x, const void *w, const float *bias,
    const void *more, int64_t m, int64_t n, int64_t k, void *scratch)
{
	struct blocks b = make_blocks(be, pass, dt, n, k, bias != NULL,
	    more != NULL);
	char *at = lpo_align_up(scratch);
	int64_t i, whole = m / BLOCK_ROWS;
	void *weight;
	int rc;

	if (b.piece == NULL)
		return 0;
	lpo_residual(dt, y, more, m * b.cols);
	rc = lpo_onednn_weights(be, b.piece, w, at, &weight);
	if (rc != 0)
		return rc;
#pragma omp parallel for schedule(dynamic) num_threads(be->threads) \
    if (m > BLOCK_ROWS) reduction(|:rc)
	for (i = 0; i < whole + (m % BLOCK_ROWS != 0); i++) {
		uint16_t *yi = y + i * BLOCK_ROWS * b.cols;
		const uint16_t *xi = x + i * BLOCK_ROWS * b.depth;
		void *pad = at + b.at_pads + b.pad_bytes *
		    (size_t)omp_get_thread_num();

		rc |= i < whole ?
		    lpo_onednn_run(be, b.piece, yi, xi, weight, bias, pad) :
		    run_rest(be, &b, yi, xi, m % BLOCK_ROWS, weight, bias,
		    (uint16_t *)(void *)(at + b.at_tmp), pad);
	}
	return rc != 0 ? LPO_EINVAL : 1;
}

static struct lpo_src
plain(enum lpo_dtype dt, const void *base, int64_t ld)
{
	return (struct lpo_src){ .base = base, .dt = dt, .ld = ld };
}

int
LPO_FN(lpo_linear_fwd)(lpo_backend *be, enum lpo_dtype dt, void *y,
    const void *x, const void *w, const float *bias, const void *residual,
    int64_t m, int64_t n, int64_t k, float alpha, void *scratch)
{
	struct lpo_src a = plain(dt, x, k), b = plain(dt, w, k);
	int rc = alpha != 1 ? 0 : run_blocks(be, LPO_FWD, dt, y, x, w, bias,
	    residual, m, n, k, scratch);

	if (rc != 0)
		return rc < 0 ? rc : 0;
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = m, .n = n, .k = k,
	    .a = &a, .b = &b, .b_transposed = 1,
	    .y = { y, dt, 1, m, 0, 0, n }, .bias = bias, .more = residual,
	    .alpha = alpha, .threads = be->threads, .scratch = scratch });
	return 0;
}

int
LPO_FN(lpo_linear_bwd_data)(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
    float alpha, int add, void *scratch)
{
	struct lpo_src a = plain(dt, dy, n), b = plain(dt, w, k);
	int rc = alpha != 1 ? 0 : run_blocks(be, LPO_BWD_DATA, dt, dx, dy, w,
	    NULL, add ? dx : NULL, m, n, k, scratch);

	if (rc != 0)
		return rc < 0 ? rc : 0;
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = m, .n = k, .k = n,
	    .a = &a, .b = &b, .y = { dx, dt, 1, m, 0, 0, k },
	    .more = add ? dx : NULL, .alpha = alpha, .threads = be->threads,
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
	size_t most;
	int i;

	(void)groups;
	if (pass == LPO_BWD_WEIGHT)
		return LPO_FN(lpo_gemm_groups_scratch_bytes)(be->threads);
	most = pass == LPO_FWD ?
	    LPO_FN(lpo_gemm_scratch_bytes)(m, n, k, be->threads) :
	    LPO_FN(lpo_gemm_scratch_bytes)(m, k, n, be->threads);
	/* with and without bias, stored and added */
	for (i = 0; i < 4; i++) {
		struct blocks b = make_blocks(be, pass, dt, n, k, i & 1,
		    i >> 1);

		most = b.bytes > most ? b.bytes : most;
	}
	return most;
}
