/*
 * How GroupNorm cuts images, forward (norm.cu) and backward (norm_bwd.cu),
 * where clusters (norm_cluster.h) do not take them.
 */
#ifndef LPO_CUDA_NORM_H
#define LPO_CUDA_NORM_H

#include "kernels/cuda_vec.h"

enum {
	CMAX = 4096,		/* channels of one block */
	GROUP_MAX = 2048,	/* of one group, as on the CPU */
	LANES = 8		/* threads that add up one group */
};

/* Blocks of an SM at least, which bounds the registers of one thread. */
#define BLOCKS(T)	(4 / (int)sizeof(T))

/*
 * How images are cut: columns into chunks of whole groups, rows into slices.
 * A block has span x per threads (and some more, to whole warps): a thread
 * keeps its columns of V channels and takes every per-th row.
 */
struct cut {
	int64_t hw, c;
	int groups, cg;
	int chunk, chunks;	/* groups of one chunk; chunks of an image */
	int span, per, threads;
	int slice, slices;	/* rows of one slice; slices of an image */
};

/* Whole groups of one chunk whose channels are whole vectors; 0: none. */
static inline int64_t
chunk_of(int64_t groups, int64_t cg, int v)
{
	int64_t g = groups < CMAX / cg ? groups : CMAX / cg;

	while (g > 0 && g * cg % v != 0)
		g--;
	return g;
}

static inline struct cut
cut_of(int64_t hw, int64_t c, int64_t groups, int wide)
{
	int v = wide ? CUDA_WIDE : 1, steps = hw >= 2048 ? 16 : hw >= 256 ?
	    8 : 4;
	int64_t most = hw > 16384 ? 256 : 64, rows;
	struct cut k;

	k.hw = hw;
	k.c = c;
	k.groups = (int)groups;
	k.cg = (int)(c / groups);
	k.chunk = (int)chunk_of(groups, k.cg, v);
	k.chunks = (k.groups + k.chunk - 1) / k.chunk;
	k.span = k.chunk * k.cg / v;
	if (k.span > CUDA_THREADS)
		k.span = CUDA_THREADS;
	k.per = k.span < CUDA_THREADS ? CUDA_THREADS / k.span : 1;
	k.threads = (k.span * k.per + 31) / 32 * 32;
	rows = (hw + most - 1) / most;
	if (rows < k.per * steps)
		rows = k.per * steps;
	k.slice = (int)rows;
	k.slices = (int)((hw + rows - 1) / rows);
	return k;
}

/* Images of one launch: what the workspace holds, and the grid. */
static inline int64_t
batch_of(const struct cuda *cu, const struct cut *k, int64_t n)
{
	int64_t most = (int64_t)(cu->workspace_bytes / sizeof(float2)) /
	    ((int64_t)k->slices * k->groups);

	if (most > 65535)
		most = 65535;
	return n < most ? n : most;
}

/* The block's part of an image. */
struct piece {
	int64_t at;		/* of its first element */
	int rows, first, groups, width;	/* first group; width in channels */
};

static __device__ __forceinline__ struct piece
piece_of(const struct cut &k, int64_t img, int slice)
{
	int64_t r0 = (int64_t)slice * k.slice;
	struct piece p;

	p.rows = (int)(k.hw - r0 < k.slice ? k.hw - r0 : k.slice);
	p.first = blockIdx.y * k.chunk;
	p.groups = min(k.chunk, k.groups - p.first);
	p.width = p.groups * k.cg;
	p.at = (img * k.hw + r0) * k.c + (int64_t)p.first * k.cg;
	return p;
}

/* Sum over the LANES neighbours that share a group. */
static __device__ __forceinline__ float
lanes_sum(float s)
{
	int i;

#pragma unroll
	for (i = LANES / 2; i > 0; i /= 2)
		s += __shfl_xor_sync(0xffffffffu, s, i);
	return s;
}

/* 1 where whole vectors can be used. */
static inline int
group_wide(int64_t c, int64_t groups, const void *x, const void *y,
    const void *z, const float *gamma, const float *beta)
{
	return c % CUDA_WIDE == 0 && cuda_aligned(x, y, z) &&
	    cuda_aligned(gamma, beta, NULL) &&
	    chunk_of(groups, c / groups, CUDA_WIDE) > 0;
}

static inline int
group_valid(int64_t c, int64_t groups)
{
	int64_t cg = groups > 0 ? c / groups : 0;

	return cg >= 1 && cg <= GROUP_MAX && cg * groups == c;
}

/*
 * One launch by clusters instead.  Only for whole vectors (group_wide);
 * 1: queued, 0: not for this shape or device, negative: an error.
 */
int	cuda_group_cluster_fwd(struct cuda *, enum lpo_dtype, void *y,
	    float *stats, const void *x, const float *gamma,
	    const float *beta, int64_t n, int64_t hw, int64_t c,
	    int64_t groups, float eps, int silu);
int	cuda_group_cluster_bwd(struct cuda *, enum lpo_dtype, void *dx,
	    const void *dy, const void *x, const float *stats,
	    const float *gamma, const float *beta, int64_t n, int64_t hw,
	    int64_t c, int64_t groups, int silu, int add);

static inline const void *
skip(enum lpo_dtype dt, const void *p, int64_t elements)
{
	return p == NULL ? NULL : (const char *)p + elements *
	    (int64_t)cuda_bytes(dt);
}

#endif
