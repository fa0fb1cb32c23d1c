/*
 * Linear layers and convolutions in bf16 on Hopper's own instructions.
 * 1: launched; 0: not for this shape, alignment or device; negative: LPO_E*.
 */
#ifndef LPO_MATMUL_SM90_H
#define LPO_MATMUL_SM90_H

#include "kernels/cuda.h"

/* The arguments are those of the forward ops, in bf16. */
int	cuda_matmul90_linear(struct cuda *, void *y, const void *x,
	    const void *w, const float *bias, const void *residual, int64_t m,
	    int64_t n, int64_t k, float alpha);
int	cuda_matmul90_conv(struct cuda *, void *y, const void *x,
	    const void *w, const float *bias, const void *residual,
	    const struct lpo_conv_shape *);

#endif
