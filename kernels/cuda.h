/*
 * Inside of lpo-cuda.so: what its files share.  C++ as nvcc takes it, written
 * as C.  Every op of kernel.h's table is cuda_<name> in the file of its kind,
 * as a rule beside the CPU's x.c:
 *
 *	cuda.cu			devices, memory, errors, recorded calls; the
 *				table
 *	linear.cu		linear layers: which way a call goes, cuBLASLt
 *	  linear_small.cu	a side of at most 16
 *	  linear_general.cu	any product, the gradient of a bias
 *	  matmul_sm90.cu	Hopper's: forward, and convolutions
 *	lora.cu			linear layers with their LoRA
 *	conv.cu			convolutions: which way a call goes
 *	  conv_graph.cu		cuDNN's engines
 *	  conv_direct.cu	plain loops, the gradient of a bias
 *	attention.cu		attention, forward: which way a call goes
 *	  attention_graph.cu	cuDNN's engines
 *	  attention_few.cu	ours for few keys, on Hopper
 *	  attention_flash.cu	ours for any
 *	attention_bwd.cu	backward: which of attention_bwd_*.cu
 *	norm.cu, norm_bwd.cu	GroupNorm, both ways: which way a call goes
 *	  norm_cluster.cu, norm_cluster_bwd.cu
 *				in one launch, from compute capability 9.0 on
 *	layer_norm.cu		LayerNorm
 *	elementwise.cu		flat arrays: activations, sums, guidance
 *	rows.cu			rows of channels: resize, concat, sums
 *	rows_index.cu		gather, embedding
 *	optimiser.cu		AdamW, sums of squares, conversion
 *	cuda_vec.h		accesses of 16 bytes, rows dealt to threads
 *
 * A new op has a line in CUDA_OP's list below and one in cuda.cu's table.  It
 * queues its work on `stream`, waits for nothing and allocates nothing, checks
 * what every call returns, and ends with cuda_done().  A refusal, too, goes
 * through cuda_fail(), for its words.
 */
#ifndef LPO_CUDA_H
#define LPO_CUDA_H

#include <type_traits>

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cudnn.h>
#include <stdio.h>
#include <string.h>

extern "C" {
#include "kernels/plugin.h"
}

/* be->priv */
struct cuda {
	int device;
	int sm;			/* 90: compute capability 9.0 */
	int processors;
	int clusters[2];	/* norm_cluster*.cu: 1 runs here, -1 not */
	int checked;		/* LPO_PLUGIN_CHECKED */
	int capturing;		/* between graph_begin and graph_end */
	cudaStream_t stream;	/* all work is on this one */
	cublasLtHandle_t lt;
	cudnnHandle_t dnn;	/* of the stream */
	/* For cuBLASLt and reductions, used within one call at a time. */
	void *workspace;
	size_t workspace_bytes;
	char error[512];
	/* Caches by shape, each of one file; made on first use. */
	struct cuda_linear *linear;
	struct cuda_conv *conv;
	struct cuda_attention *attention;
};

void	cuda_linear_free(struct cuda *);
void	cuda_conv_free(struct cuda *);
void	cuda_attention_free(struct cuda *);

static inline struct cuda *
cuda_of(lpo_backend *be)
{
	return (struct cuda *)be->priv;
}

static inline cudaStream_t
cuda_stream(lpo_backend *be)
{
	return cuda_of(be)->stream;
}

static inline size_t
cuda_bytes(enum lpo_dtype dt)
{
	return dt == LPO_F64 || dt == LPO_I64 ? 8 : dt == LPO_F32 ||
	    dt == LPO_I32 ? 4 : dt == LPO_U8 ? 1 : 2;
}

/*
 * The largest power of two, at most 16, that all of them are multiples of;
 * NULL is one of any.
 */
static inline int
cuda_alignment(const void *a, const void *b, const void *c, const void *d)
{
	uintptr_t all = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c |
	    (uintptr_t)d | 16;

	return (int)(all & -all);
}

/* Remember what went wrong; returns code.  what: the op's name. */
int	cuda_fail(struct cuda *, int code, const char *what, const char *why);
/* 0, or the error's code and text: LPO_ENOMEM, LPO_ENODEV or LPO_ECUDA. */
int	cuda_check(struct cuda *, cudaError_t, const char *what);
int	cuda_check_lt(struct cuda *, cublasStatus_t, const char *what);
int	cuda_check_dnn(struct cuda *, cudnnStatus_t, const char *what);
/* After a launch: its error; waits where the backend is a checked one. */
int	cuda_done(struct cuda *, const char *what);

/* Every op that the table names. */
#define CUDA_OP(name) \
	std::remove_pointer<decltype(lpo_kernels::name)>::type cuda_##name
CUDA_OP(alloc);
CUDA_OP(free);
CUDA_OP(upload);
CUDA_OP(download);
CUDA_OP(landing_new);
CUDA_OP(landing_free);
CUDA_OP(land);
CUDA_OP(landed);
CUDA_OP(zero);
CUDA_OP(copy);
CUDA_OP(sync);
CUDA_OP(error);
CUDA_OP(memory);
CUDA_OP(graph_begin);
CUDA_OP(graph_end);
CUDA_OP(graph_run);
CUDA_OP(graph_free);
CUDA_OP(linear_fwd);
CUDA_OP(linear_bwd_data);
CUDA_OP(linear_bwd_weight);
CUDA_OP(linear_scratch_bytes);
CUDA_OP(lora_fwd);
CUDA_OP(lora_bwd);
CUDA_OP(conv_fwd);
CUDA_OP(conv_bwd_data);
CUDA_OP(conv_bwd_weight);
CUDA_OP(conv_scratch_bytes);
CUDA_OP(attention_fwd);
CUDA_OP(attention_bwd);
CUDA_OP(attention_scratch_bytes);
CUDA_OP(group_norm_fwd);
CUDA_OP(group_norm_bwd);
CUDA_OP(norm_scratch_bytes);
CUDA_OP(layer_norm_fwd);
CUDA_OP(layer_norm_bwd);
CUDA_OP(act_fwd);
CUDA_OP(act_bwd);
CUDA_OP(geglu_fwd);
CUDA_OP(geglu_bwd);
CUDA_OP(add);
CUDA_OP(acc);
CUDA_OP(add_rows_fwd);
CUDA_OP(add_rows_bwd);
CUDA_OP(upsample_fwd);
CUDA_OP(upsample_bwd);
CUDA_OP(concat_fwd);
CUDA_OP(concat_bwd);
CUDA_OP(mean_pool_fwd);
CUDA_OP(mean_pool_bwd);
CUDA_OP(gather_rows_fwd);
CUDA_OP(gather_rows_bwd);
CUDA_OP(embed_fwd);
CUDA_OP(embed_bwd);
CUDA_OP(guide_fwd);
CUDA_OP(guide_bwd);
CUDA_OP(convert);
CUDA_OP(convert_acc);
CUDA_OP(adamw);
CUDA_OP(sum_squares);
#undef CUDA_OP

/* ---- values: f32 or bf16 in memory, f32 in registers */

static __device__ __forceinline__ float
cuda_load(const float *p)
{
	return *p;
}

static __device__ __forceinline__ float
cuda_load(const __nv_bfloat16 *p)
{
	return __bfloat162float(*p);
}

static __device__ __forceinline__ void
cuda_store(float *p, float x)
{
	*p = x;
}

static __device__ __forceinline__ void
cuda_store(__nv_bfloat16 *p, float x)
{
	*p = __float2bfloat16_rn(x);
}

/* Two bf16 in a word; each is the upper half of an f32. */
static __device__ __forceinline__ uint32_t
cuda_two(float low, float high)
{
	__nv_bfloat162 b = __floats2bfloat162_rn(low, high);
	uint32_t u;

	memcpy(&u, &b, sizeof(u));
	return u;
}

static __device__ __forceinline__ float
cuda_low(uint32_t two)
{
	return __uint_as_float(two << 16);
}

static __device__ __forceinline__ float
cuda_high(uint32_t two)
{
	return __uint_as_float(two & 0xffff0000u);
}

#endif
