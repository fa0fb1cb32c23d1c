/*
 * Inside of the linear layers on a GPU: what linear.cu, linear_small.cu and
 * linear_general.cu share.
 */
#ifndef LPO_LINEAR_H
#define LPO_LINEAR_H

#include "kernels/cuda.h"
#include "kernels/ints.h"

typedef __nv_bfloat16 bf16;

enum {
	LINEAR_THREADS = 256,
	LINEAR_COUNTERS = 8192,	/* of last_block: strips of columns at most */
	LINEAR_SLABS = 128
};

/* What an algorithm is chosen for; hashed and compared as bytes. */
struct key {
	int64_t m, n, k;
	int32_t pass, dt, bias, add, align;
	int32_t zero;		/* where there would be padding */
};

/* The operands of a call: y = alpha a b + bias + residual. */
struct call {
	const char *what;
	struct key key;
	void *y;
	const void *x, *w, *residual;	/* x, w: as in linear_fwd */
	const float *bias;
	float alpha;
};

/* y[m,n] = alpha x[m,depth] w(n,depth)^T + bias + residual, all bf16 */
struct small_product {
	bf16 *y;
	const bf16 *x, *w, *residual;
	const float *bias;
	int64_t m, n, depth;
	int64_t wn, wd;		/* w(j, l) is w[j * wn + l * wd] */
	float alpha;
};

/* Those of one small side, bf16: 1: launched, 0: not such a one. */
int	cuda_linear_small(struct cuda *, const struct small_product *);
int	cuda_linear_tall(struct cuda *, const struct call *,
	    unsigned *counters);
/* Any product there is; 0 or LPO_E*. */
int	cuda_linear_general(struct cuda *, const struct call *);
/* db[n] += alpha * column sums of dy[m,n]; 0 or LPO_E* */
int	cuda_linear_bias(struct cuda *, enum lpo_dtype, float *db,
	    const void *dy, int64_t m, int64_t n, float alpha,
	    unsigned *counters, const char *what);

/* ---- bf16 on tensor cores */

/* d += a b: 16x16 by 16x8, as PTX lays the fragments out over a warp. */
static __device__ __forceinline__ void
mma(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
    uint32_t b0, uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	    : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ uint32_t
bits(bf16 x)
{
	return __bfloat16_as_ushort(x);
}

static __device__ __forceinline__ uint4
load16(const bf16 *p)
{
	return *(const uint4 *)p;
}

/* ---- a sum over rows, cut into slabs */

/*
 * True in the block that is the last of `count` to come here: it finds what
 * the others wrote.  The counter says only who is last; what is summed, and
 * in which order, does not depend on it.  It is 0 again afterwards.
 */
static __device__ __forceinline__ bool
last_block(unsigned *counter, unsigned count)
{
	__shared__ bool last;

	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0) {
		last = atomicAdd(counter, 1u) == count - 1;
		if (last)
			*counter = 0;
	}
	__syncthreads();
	if (last)
		__threadfence();
	return last;
}

/* The sum of `slabs` values that lie `stride` apart, in their order. */
static __device__ __forceinline__ float
slab_sum(const float *partial, int slabs, int64_t stride)
{
	float s = 0;

#pragma unroll 8
	for (int i = 0; i < slabs; i++)
		s += __ldcg(partial + i * stride);
	return s;
}

/* Rows of each slab: 4 blocks a processor, but no fewer rows than pay. */
static inline int64_t
slab_rows(const struct cuda *c, int64_t m, int64_t strips, int64_t floats)
{
	int64_t slabs = 4 * (int64_t)c->processors / strips, rows;
	int64_t room = (int64_t)(c->workspace_bytes / sizeof(float)) /
	    (strips * floats);

	slabs = min64(min64(slabs, LINEAR_SLABS), min64(room, m / 256));
	if (slabs < 1 || strips > LINEAR_COUNTERS)
		slabs = 1;
	rows = (m + slabs - 1) / slabs;
	return (rows + 127) / 128 * 128;
}

#endif
