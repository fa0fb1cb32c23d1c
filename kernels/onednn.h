/*
 * What the CPU backend asks of oneDNN: bf16 products where the machine
 * multiplies bf16 natively.  f32 stays with gemm.c: it measured within 10 % of
 * oneDNN 2.6 at the levels avx2 and avx512, and is one path for all machines.
 * onednn.c is the only file that knows the library's API.
 *
 * 2.6.3 (Debian 12) and 3.2.0 pass the same tests at the levels avx512 and
 * amx; against the headers of 3.13 it compiles.  A build that has another
 * threading runtime than OpenMP is not used: products are ours then.  The
 * version that runs is part of a run's id, so a run is not resumed by another.
 *
 * Bits: the library gets pieces of a fixed size (rows of a linear layer, strips
 * of one image), made for one thread, and our threads share the pieces.  So a
 * row's value cannot depend on how many rows or threads there are, whatever
 * the library's blocking does.  Whether oneDNN does a product depends on dt,
 * level and the shape of a row or an image only.
 *
 * The library's level is fixed for the process by the first backend that wants
 * it; a backend of another level opened later does its own products.
 */
#ifndef LPO_ONEDNN_H
#define LPO_ONEDNN_H

#include "kernels/kernel.h"

/* Called by lpo_cpu_open and lpo_cpu_close; be->priv is theirs. */
int	lpo_onednn_open(lpo_backend *);
void	lpo_onednn_close(lpo_backend *);

/*
 * dst[rows, cols] (+)= src[rows, depth] W + bias in bf16, bias f32.  W lies as
 * [cols, depth] for FWD and as [depth, cols] for BWD_DATA.
 */
struct lpo_linear_piece {
	enum lpo_pass pass;
	int bias, add;
	int64_t rows, cols, depth;
};

/*
 * One strip `s` of the image `whole` (n = 1 in both).  FWD: dst is y (+= with
 * add).  BWD_DATA: src is dy, dst is dx in f32, overwritten.
 */
struct lpo_conv_piece {
	enum lpo_pass pass;
	int bias, add;
	struct lpo_conv_shape s, whole;
	int64_t pad_bottom, pad_right;
};

/* A piece that is ready to run; lives until the backend is closed. */
struct lpo_piece {
	size_t weight_bytes;	/* its own form of the weights */
	size_t pad_bytes;	/* scratch of one run */
};

/*
 * NULL: not for oneDNN (at this level, or at all).  All strips of an image
 * share the weights of its `first` one (NULL for that itself).  Pieces of the
 * last 1024 shapes are kept: get all of an op before running them.
 */
const struct lpo_piece *lpo_onednn_linear(lpo_backend *,
	    const struct lpo_linear_piece *);
const struct lpo_piece *lpo_onednn_conv(lpo_backend *,
	    const struct lpo_conv_piece *, const struct lpo_piece *first);

/* *out = the piece's form of w: w itself, or made at `to`, 64-byte aligned. */
int	lpo_onednn_weights(lpo_backend *, const struct lpo_piece *,
	    const void *w, void *to, void **out);
/* May be called by all threads of one parallel region; bias as asked for. */
int	lpo_onednn_run(lpo_backend *, const struct lpo_piece *, void *dst,
	    const void *src, void *weight, const float *bias, void *pad);

static inline size_t
lpo_aligned(size_t bytes)
{
	return (bytes + 63) & ~(size_t)63;
}

static inline char *
lpo_align_up(void *p)
{
	return (char *)(((uintptr_t)p + 63) & ~(uintptr_t)63);
}

#endif
