/*
 * Matrix products of the CPU backend, private to kernels/: one blocked product
 * whose operands are fetched in blocks, so that a linear layer, its transposes
 * and the three passes of a convolution are the same loop with other fetches.
 *
 * Bits: an element of the result is a sum of blocks of LPO_GEMM_KC products,
 * each block summed in the order of k, the blocks added in that order.  Tiles
 * and threads divide m and n only, so they cannot change it.
 */
#ifndef LPO_GEMM_H
#define LPO_GEMM_H

#include "kernels/vec.h"

#define LPO_GEMM_KC 256

/*
 * A matrix of f32 or bf16, given by a function that copies (and widens) the
 * block of rows r0.. and columns c0.. to dst, rows ld floats apart.  fetch
 * NULL: plain rows, ld elements apart; then the product may read them in
 * place.
 */
struct lpo_src {
	void (*fetch)(const struct lpo_src *, float *dst, int64_t dst_ld,
	    int64_t r0, int64_t nr, int64_t c0, int64_t nc);
	const void *base;
	enum lpo_dtype dt;
	int64_t ld;
	/* Patches of images (conv.c): row = one output pixel (n, p, q). */
	int64_t h, w, c;	/* the image that is read */
	int64_t p, q;		/* pixels per image that are computed */
	int64_t th, tw;		/* taps; columns are (th, tw, c) */
	int64_t stride, off_h, off_w;
	/* Weight of a convolution seen from the input side (conv.c). */
	int64_t co, kh, kw, i0, j0, step;
};

/* Where row i = (n, p, q) of the result lies: base + n sn + p sp + q sq. */
struct lpo_dst {
	void *base;
	enum lpo_dtype dt;
	int64_t p, q, sn, sp, sq;
};

/*
 * y[m,n] = alpha A B + bias[n] + more[m,n], which lies as y does, and may be y.
 * a has m rows of k; b has k rows of n, or with b_transposed n rows of k.
 */
struct lpo_gemm {
	int64_t m, n, k;
	const struct lpo_src *a, *b;
	int b_transposed;
	struct lpo_dst y;
	const float *bias;	/* NULL: none */
	const void *more;	/* NULL: none */
	float alpha;
	int threads;
	void *scratch;		/* lpo_gemm_scratch_bytes */
};

/*
 * y[m,n] += alpha A^T B, one group of k rows after the other: the sum of a
 * group is finished before it is added, so calls with some of the groups each
 * give the bits of one call with all.  a has groups * k rows of m, b as many
 * rows of n; y is dense f32.
 */
struct lpo_gemm_groups {
	int64_t m, n, k, groups;
	const struct lpo_src *a, *b;
	float *y;
	float alpha;
	int threads;
	void *scratch;		/* lpo_gemm_groups_scratch_bytes */
};

/*
 * lpo_column_sums: db[n] += alpha * column sums of dy[groups * m, n].
 * lpo_conv_strips: a bf16 convolution by oneDNN (FWD; BWD_DATA with y = dx and
 * x = dy) plus `more` (may be y); 1: done, 0: not for oneDNN, negative: LPO_E*.
 * lpo_winograd: the same for f32 by winograd.c.
 */
#define LPO_GEMM_INTERNALS(s)						\
	void	lpo_gemm##s(const struct lpo_gemm *);			\
	void	lpo_gemm_groups##s(const struct lpo_gemm_groups *);	\
	size_t	lpo_gemm_scratch_bytes##s(int64_t m, int64_t n,		\
		    int64_t k, int threads);				\
	size_t	lpo_gemm_groups_scratch_bytes##s(int threads);		\
	void	lpo_column_sums##s(float *db, enum lpo_dtype,		\
		    const void *dy, int64_t m, int64_t n, float alpha,	\
		    int64_t groups, int threads);				\
	int	lpo_conv_strips##s(lpo_backend *, enum lpo_pass,	\
		    enum lpo_dtype, void *y, const void *x,		\
		    const void *w, const float *bias, const void *more,	\
		    const struct lpo_conv_shape *, void *scratch);	\
	size_t	lpo_conv_strips_scratch_bytes##s(lpo_backend *,		\
		    enum lpo_pass, enum lpo_dtype,			\
		    const struct lpo_conv_shape *);			\
	int	lpo_winograd##s(lpo_backend *, enum lpo_pass,		\
		    enum lpo_dtype, void *y, const void *x,		\
		    const void *w, const float *bias, const void *more,	\
		    const struct lpo_conv_shape *, void *scratch);	\
	size_t	lpo_winograd_scratch_bytes##s(lpo_backend *,		\
		    enum lpo_pass, enum lpo_dtype,			\
		    const struct lpo_conv_shape *);

/*
 * Scratch of the AMX products of linear layers, FWD or BWD_DATA, with m rows
 * or fewer; 0: these are not for AMX.
 */
size_t	lpo_linear_tiles_bytes(const lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, int64_t m, int64_t n, int64_t k);
/*
 * A 3x3 convolution on AMX tiles, FWD, or BWD_DATA with y = dx and x = dy,
 * plus bias and `more` (may be NULL; more may be y).  1: done, 0: not for AMX;
 * then it needs no scratch.
 */
int	lpo_conv_tiles(const lpo_backend *, enum lpo_pass, enum lpo_dtype,
	    void *y, const void *x, const void *w, const float *bias,
	    const void *more, const struct lpo_conv_shape *, void *scratch);
size_t	lpo_conv_tiles_bytes(const lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, const struct lpo_conv_shape *);

LPO_GEMM_INTERNALS(_portable)
LPO_GEMM_INTERNALS(_avx2)
LPO_GEMM_INTERNALS(_avx512)

/* What is added to y, if there is such a thing, goes there first. */
static inline void
lpo_residual(enum lpo_dtype dt, void *y, const void *more, int64_t count)
{
	if (more != NULL && more != y)
		memcpy(y, more, (size_t)count * lpo_dtype_bytes(dt));
}

/* 1x1 on every pixel: a linear layer on the rows of x. */
static inline int
lpo_conv_is_linear(const struct lpo_conv_shape *s)
{
	return s->kh == 1 && s->kw == 1 && s->stride == 1 &&
	    s->pad_top == 0 && s->pad_left == 0 && s->ho == s->h &&
	    s->wo == s->w;
}

/* n elements from element `off` of base, widened. */
static inline void
lpo_widen(float *dst, const void *base, enum lpo_dtype dt, int64_t off,
    int64_t n)
{
	const uint16_t *h;
	int64_t i;

	if (dt == LPO_F32) {
		memcpy(dst, (const float *)base + off, (size_t)n * 4);
		return;
	}
	h = (const uint16_t *)base + off;
	for (i = 0; i + VL <= n; i += VL)
		vf_store(dst + i, vf_load_bf16(h + i));
	for (; i < n; i++)
		dst[i] = bf16_to_f32(h[i]);
}

#endif
