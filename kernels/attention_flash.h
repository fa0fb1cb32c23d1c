/*
 * Our own attention forward on the device; see attention_flash.cu and
 * attention_few.cu.
 */
#ifndef LPO_ATTENTION_FLASH_H
#define LPO_ATTENTION_FLASH_H

#include "kernels/cuda.h"

/*
 * Any shape that kernel.h allows, without scratch; the shape has been checked
 * and is not empty.  lse may be NULL.
 */
int	cuda_flash_fwd(struct cuda *, enum lpo_dtype, void *o, float *lse,
	    const void *q, const void *k, const void *v,
	    const struct lpo_attn_shape *);

/* The faster one for few keys on Hopper; 16-byte aligned pointers. */
int	cuda_attention_few_suits(const struct cuda *, enum lpo_dtype,
	    const struct lpo_attn_shape *);
int	cuda_attention_few(struct cuda *, void *o, float *lse, const void *q,
	    const void *k, const void *v, const struct lpo_attn_shape *);

#endif
