/*
 * The functions that fill the CPU tables.  Each file of kernels/ that is
 * compiled once per level defines LPO_FN(lpo_<op>) with the signature that
 * struct lpo_kernels gives <op>, e.g. lpo_linear_fwd_avx2; cpu.c builds a
 * const table per level from these names.  The declarations below are made
 * from the table itself, so a definition that differs does not compile.
 *
 * The amx table is the avx512 one with the ops of LPO_AMX_OPS replaced by
 * lpo_<op>_amx; such a function calls lpo_<op>_avx512 itself for what it does
 * not do (f32 that is not split, odd shapes).
 */
#ifndef LPO_LEVELS_H
#define LPO_LEVELS_H

#include "kernels/vec.h"

#define LPO_PRODUCT_OPS(X, s)						\
	X(linear_fwd, s) X(linear_bwd_data, s)				\
	X(conv_fwd, s) X(conv_bwd_data, s)

#define LPO_GRADIENT_OPS(X, s)						\
	X(linear_bwd_weight, s) X(linear_scratch_bytes, s)		\
	X(conv_bwd_weight, s) X(conv_scratch_bytes, s)

#define LPO_ATTENTION_OPS(X, s)						\
	X(attention_fwd, s) X(attention_bwd, s)				\
	X(attention_scratch_bytes, s)

#define LPO_NORM_OPS(X, s)						\
	X(group_norm_fwd, s) X(group_norm_bwd, s)			\
	X(norm_scratch_bytes, s) X(layer_norm_fwd, s)			\
	X(layer_norm_bwd, s)

#define LPO_ELEMENTWISE_OPS(X, s)					\
	X(act_fwd, s) X(act_bwd, s) X(geglu_fwd, s) X(geglu_bwd, s)	\
	X(add, s) X(acc, s) X(add_rows_fwd, s) X(add_rows_bwd, s)	\
	X(upsample_fwd, s) X(upsample_bwd, s)				\
	X(concat_fwd, s) X(concat_bwd, s)				\
	X(mean_pool_fwd, s) X(mean_pool_bwd, s)				\
	X(gather_rows_fwd, s) X(gather_rows_bwd, s)			\
	X(embed_fwd, s) X(embed_bwd, s)					\
	X(guide_fwd, s) X(guide_bwd, s)					\
	X(convert, s) X(convert_acc, s) X(adamw, s) X(sum_squares, s)

#define LPO_AMX_OPS(X, s)						\
	LPO_PRODUCT_OPS(X, s) LPO_GRADIENT_OPS(X, s)			\
	LPO_ATTENTION_OPS(X, s)

#define LPO_LEVEL_OPS(X, s)						\
	LPO_PRODUCT_OPS(X, s) LPO_GRADIENT_OPS(X, s)			\
	LPO_ATTENTION_OPS(X, s)						\
	LPO_NORM_OPS(X, s) LPO_ELEMENTWISE_OPS(X, s)

#define LPO_DECLARE_OP(op, s)						\
	extern __typeof__(*((struct lpo_kernels *)0)->op) lpo_##op##s;

LPO_LEVEL_OPS(LPO_DECLARE_OP, _portable)
LPO_LEVEL_OPS(LPO_DECLARE_OP, _avx2)
LPO_LEVEL_OPS(LPO_DECLARE_OP, _avx512)
LPO_AMX_OPS(LPO_DECLARE_OP, _amx)

#endif
