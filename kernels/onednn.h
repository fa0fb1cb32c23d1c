/*
 * What the CPU backend asks of oneDNN: bf16 products where the machine
 * multiplies bf16 natively.  f32 stays with gemm.c, which measured at 0.85-0.95
 * of the peak where oneDNN 2.6 has 0.5-0.9.  onednn.c is the only file that
 * knows its API.
 *
 * Bits: the library gets pieces of a fixed size (rows of a linear layer, strips
 * of one image), made for one thread, and we hand the pieces to threads.  So a
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
 * FWD: y[m,n] (+)= x[m,k] w[n,k]^T + bias.  BWD_DATA: y is dx[m,k], x is
 * dy[m,n], always added.  1: done, 0: not for oneDNN, negative: LPO_E*.
 */
int	lpo_onednn_linear(lpo_backend *, enum lpo_pass, enum lpo_dtype,
	    void *y, const void *x, const void *w, const float *bias,
	    int64_t m, int64_t n, int64_t k, float alpha, int add,
	    void *scratch);
/* 0 where oneDNN is not used */
size_t	lpo_onednn_linear_scratch_bytes(lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, int64_t n, int64_t k);

/* The same for a convolution; BWD_DATA: y is dx, x is dy, no bias. */
int	lpo_onednn_conv(lpo_backend *, enum lpo_pass, enum lpo_dtype, void *y,
	    const void *x, const void *w, const float *bias,
	    const struct lpo_conv_shape *, int add, void *scratch);
size_t	lpo_onednn_conv_scratch_bytes(lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, const struct lpo_conv_shape *);

#endif
