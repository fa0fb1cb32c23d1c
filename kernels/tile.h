/*
 * The register tile of all products, and the transposition that packs for it:
 * inlined into gemm.c and winograd.c.
 */
#ifndef LPO_TILE_H
#define LPO_TILE_H

#include "kernels/vec.h"

#define NV	2			/* vectors in a row of the tile */
#define NR	(NV * VL)
#if VL == 16
#define MR	12			/* 24 of 32 registers hold sums */
#elif VL == 8
#define MR	6			/* 12 of 16 */
#else
#define MR	4			/* 8 of 16 */
#endif

/*
 * c[m][nv * VL] (+)= sum over kc of a[i * rs + k * cs] b[k * sb + j].  m and
 * nv are constants after inlining, so that `sum` lives in registers.
 */
static inline __attribute__((always_inline)) void
tile(const int m, const int nv, int64_t kc, const float *a, int64_t rs,
    int64_t cs, const float *b, int64_t sb, float *c, int more)
{
	vf sum[MR][NV], row[NV], x;
	int64_t k;
	int i, j;

#pragma GCC unroll 12
	for (i = 0; i < m; i++)
#pragma GCC unroll 2
		for (j = 0; j < nv; j++)
			sum[i][j] = (vf){0};
	for (k = 0; k < kc; k++, a += cs, b += sb) {
#pragma GCC unroll 2
		for (j = 0; j < nv; j++)
			row[j] = vf_load(b + j * VL);
#pragma GCC unroll 12
		for (i = 0; i < m; i++) {
			x = vf_set1(a[i * rs]);
#pragma GCC unroll 2
			for (j = 0; j < nv; j++)
				sum[i][j] += x * row[j];
		}
	}
#pragma GCC unroll 12
	for (i = 0; i < m; i++)
#pragma GCC unroll 2
		for (j = 0; j < nv; j++, c += VL)
			vf_store(c, more ? vf_load(c) + sum[i][j] : sum[i][j]);
}

typedef void tile_fn(int64_t, const float *, int64_t, const float *, int64_t,
    float *, int);

#if VL == 16
#define ALL_M(X, nv)							\
	X(1, nv) X(2, nv) X(3, nv) X(4, nv) X(5, nv) X(6, nv)		\
	X(7, nv) X(8, nv) X(9, nv) X(10, nv) X(11, nv) X(12, nv)
#elif VL == 8
#define ALL_M(X, nv)							\
	X(1, nv) X(2, nv) X(3, nv) X(4, nv) X(5, nv) X(6, nv)
#else
#define ALL_M(X, nv)	X(1, nv) X(2, nv) X(3, nv) X(4, nv)
#endif

/* A by rows, s floats apart. */
#define ROW_TILE(m, nv)							\
static void								\
tile_row_##m##_##nv(int64_t kc, const float *a, int64_t s,		\
    const float *b, int64_t sb, float *c, int more)			\
{									\
	tile(m, nv, kc, a, s, 1, b, sb, c, more);			\
}
ALL_M(ROW_TILE, 1)
ALL_M(ROW_TILE, 2)

#define ROW_NAME(m, nv)	tile_row_##m##_##nv,
static tile_fn *const row_tile[NV][MR] = {
	{ ALL_M(ROW_NAME, 1) }, { ALL_M(ROW_NAME, 2) }
};

typedef float v4 __attribute__((vector_size(16)));

/* dst[4][ld] = transposed src[4][ls] */
static inline void
transpose4(float *dst, int64_t ld, const float *src, int64_t ls)
{
	v4 r[4], a, b, c, d;
	int i;

	for (i = 0; i < 4; i++)
		memcpy(&r[i], src + i * ls, 16);
	a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
	b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
	c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
	d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
	r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
	r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
	r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
	r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
	for (i = 0; i < 4; i++)
		memcpy(dst + i * ld, &r[i], 16);
}

/* dst[kc][w] = transposed src[n][ls]; columns n.. of dst become 0 */
static void
transpose(float *dst, int64_t w, const float *src, int64_t ls, int64_t n,
    int64_t kc)
{
	int64_t i, k;

	for (i = 0; i + 4 <= n; i += 4) {
		for (k = 0; k + 4 <= kc; k += 4)
			transpose4(dst + k * w + i, w, src + i * ls + k, ls);
		for (; k < kc; k++) {
			dst[k * w + i] = src[i * ls + k];
			dst[k * w + i + 1] = src[(i + 1) * ls + k];
			dst[k * w + i + 2] = src[(i + 2) * ls + k];
			dst[k * w + i + 3] = src[(i + 3) * ls + k];
		}
	}
	for (; i < n; i++)
		for (k = 0; k < kc; k++)
			dst[k * w + i] = src[i * ls + k];
	for (; i < w; i++)
		for (k = 0; k < kc; k++)
			dst[k * w + i] = 0;
}

#endif
