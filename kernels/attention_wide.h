/*
 * Attention for heads wider than flash attention's strips hold (attention.h's
 * LDA): the VAE's one head of 512, which AMX takes in bf16.  Forward
 * only; shapes and numbers as attention_fwd in kernel.h.
 */
#ifndef LPO_ATTENTION_WIDE_H
#define LPO_ATTENTION_WIDE_H

#include "kernels/vec.h"

#define LPO_ATTENTION_WIDE(s)						\
	int	lpo_attention_wide_fwd##s(lpo_backend *,		\
		    enum lpo_dtype, void *o, float *lse, const void *q,	\
		    const void *k, const void *v,			\
		    const struct lpo_attn_shape *, void *scratch);	\
	size_t	lpo_attention_wide_bytes##s(lpo_backend *,		\
		    const struct lpo_attn_shape *);

LPO_ATTENTION_WIDE(_portable)
LPO_ATTENTION_WIDE(_avx2)
LPO_ATTENTION_WIDE(_avx512)

#endif
