/*
 * Hopper's warpgroup products and what feeds them: shared by the attention
 * kernels.  Tiles lie in shared memory as core matrices, 8 tokens by 8
 * channels, 128 bytes each: the units of channels of 8 tokens follow each
 * other, then the next 8 tokens.  Summed over channels the leading offset is
 * the step from unit to unit and the stride that from 8 tokens to the next;
 * summed over tokens the other way round.
 */
#ifndef LPO_ATTENTION_WGMMA_H
#define LPO_ATTENTION_WGMMA_H

#include "kernels/cuda.h"

/* Of the GPUs only sm_90a has wgmma. */
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAVE_WG
#endif

#ifdef HAVE_WG
static __device__ __forceinline__ uint32_t
wg_shared(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory; zeros where there is no source. */
static __device__ __forceinline__ void
wg_copy16(void *to, const void *from, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::
	    "r"(wg_shared(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void
wg_copies_begin(void)
{
	asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `left` groups of this thread's copies are on their way. */
template <int left>
static __device__ __forceinline__ void
wg_copies_wait(void)
{
	asm volatile("cp.async.wait_group %0;" :: "n"(left) : "memory");
}

/* What shared memory was given is seen by wgmma. */
static __device__ __forceinline__ void
wg_publish(void)
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void
wg_begin(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void
wg_commit(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most `left` groups are on their way. */
template <int left>
static __device__ __forceinline__ void
wg_wait(void)
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(left) :
	    "memory");
}

/* No use of x moves from after to before. */
template <int N>
static __device__ __forceinline__ void
wg_settle(float (&x)[N])
{
	int i;

#pragma unroll
	for (i = 0; i < N; i++)
		asm volatile("" : "+f"(x[i]) :: "memory");
}

/* ---- products */

/*
 * 16 rows of a warp as an operand of products, 16 channels each; zeros where
 * there are none.
 */
template <int DEPTH>
static __device__ __forceinline__ void
wg_hold(uint32_t (&a)[DEPTH][4], const __nv_bfloat16 *from, int64_t ld,
    int64_t rows, int d)
{
	int lane = threadIdx.x % 32, x, e;

#pragma unroll
	for (x = 0; x < DEPTH; x++)
#pragma unroll
		for (e = 0; e < 4; e++) {
			int r = lane / 4 + e % 2 * 8;
			int at = 16 * x + e / 2 * 8 + lane % 4 * 2;

			a[x][e] = r < rows && at < d ?
			    *(const uint32_t *)(from + r * ld + at) : 0;
		}
}

/* A matrix at p, not swizzled. */
static __device__ __forceinline__ uint64_t
wg_matrix(const void *p, int leading, int stride)
{
	return (uint64_t)(wg_shared(p) >> 4 & 0x3fff) |
	    (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32;
}

/* c[64,N] = a[64,16] b[N,16]^T */
static __device__ __forceinline__ void
wg_dot(float (&c)[32], uint64_t a, uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"
	    "%31}, "
	    "%32, %33, p, 1, 1, 0, 0;\n}\n" :
	    "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3]), "=f"(c[4]),
	    "=f"(c[5]), "=f"(c[6]), "=f"(c[7]), "=f"(c[8]), "=f"(c[9]),
	    "=f"(c[10]), "=f"(c[11]), "=f"(c[12]), "=f"(c[13]), "=f"(c[14]),
	    "=f"(c[15]), "=f"(c[16]), "=f"(c[17]), "=f"(c[18]), "=f"(c[19]),
	    "=f"(c[20]), "=f"(c[21]), "=f"(c[22]), "=f"(c[23]), "=f"(c[24]),
	    "=f"(c[25]), "=f"(c[26]), "=f"(c[27]), "=f"(c[28]), "=f"(c[29]),
	    "=f"(c[30]), "=f"(c[31]) :
	    "l"(a), "l"(b) : "memory");
}

/* c += the same */
static __device__ __forceinline__ void
wg_dot_more(float (&c)[32], uint64_t a, uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"
	    "%31}, "
	    "%32, %33, p, 1, 1, 0, 0;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]) :
	    "l"(a), "l"(b) : "memory");
}

/* c[64,N] = a[64,16] b[N,16]^T; a in registers */
static __device__ __forceinline__ void
wg_dot(float (&c)[40], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"
	    "%31,%32,%33,%34,%35,%36,%37,%38,%39}, "
	    "{%40,%41,%42,%43}, %44, p, 1, 1, 0;\n}\n" :
	    "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3]), "=f"(c[4]),
	    "=f"(c[5]), "=f"(c[6]), "=f"(c[7]), "=f"(c[8]), "=f"(c[9]),
	    "=f"(c[10]), "=f"(c[11]), "=f"(c[12]), "=f"(c[13]), "=f"(c[14]),
	    "=f"(c[15]), "=f"(c[16]), "=f"(c[17]), "=f"(c[18]), "=f"(c[19]),
	    "=f"(c[20]), "=f"(c[21]), "=f"(c[22]), "=f"(c[23]), "=f"(c[24]),
	    "=f"(c[25]), "=f"(c[26]), "=f"(c[27]), "=f"(c[28]), "=f"(c[29]),
	    "=f"(c[30]), "=f"(c[31]), "=f"(c[32]), "=f"(c[33]), "=f"(c[34]),
	    "=f"(c[35]), "=f"(c[36]), "=f"(c[37]), "=f"(c[38]), "=f"(c[39]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

/* c += the same */
static __device__ __forceinline__ void
wg_dot_more(float (&c)[40], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"
	    "%31,%32,%33,%34,%35,%36,%37,%38,%39}, "
	    "{%40,%41,%42,%43}, %44, p, 1, 1, 0;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]),
	    "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

/* c[64,N] += a[64,16] b[16,N]; b as the channels lie */
static __device__ __forceinline__ void
wg_sum(float (&c)[20], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19}, "
	    "{%20,%21,%22,%23}, %24, p, 1, 1, 1;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

static __device__ __forceinline__ void
wg_sum(float (&c)[32], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"
	    "%31}, "
	    "{%32,%33,%34,%35}, %36, p, 1, 1, 1;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

static __device__ __forceinline__ void
wg_sum(float (&c)[40], const uint32_t a[4], uint64_t b)
{
	asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
	    "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 "
	    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
	    "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,"
	    "%31,%32,%33,%34,%35,%36,%37,%38,%39}, "
	    "{%40,%41,%42,%43}, %44, p, 1, 1, 1;\n}\n" :
	    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]),
	    "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
	    "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]),
	    "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]),
	    "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]),
	    "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),
	    "+f"(c[30]), "+f"(c[31]), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]),
	    "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]) :
	    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

#endif
#endif
