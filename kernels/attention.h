/*
 * What attention forward and backward are made of.  Lanes are tokens: a
 * "strip" holds STRIP queries (or keys) transposed, [channel][STRIP], so that
 * softmax runs down the lanes without horizontal sums and any head width or
 * length works without padding.  The other operand is a block of plain rows
 * with the fixed stride LDA, whose elements are broadcast.
 *
 * Each output element is one chain of fma in ascending order, started from
 * what stands in C, whatever the blocking.  The backward pass relies on it:
 * its two schedules give the same bits.
 */
#ifndef LPO_ATTENTION_H
#define LPO_ATTENTION_H

#include "kernels/ints.h"
#include "kernels/load.h"

enum {
	STRIP = 2 * VL,
	LDA = 160,		/* also the largest head width */
	BLOCK = 128,		/* tokens in a block of rows or strips */
	STRIPS = BLOCK / STRIP
};

/* Rows of C held in registers: 2 MR + 3 must fit. */
#if VL == 16
#define MR 12
#elif VL == 8
#define MR 6
#else
#define MR 4
#endif

#define LOG2E	1.44269504088896341f
#define LN2	0.693147180559945309f

typedef float v4 __attribute__((vector_size(16)));

/*
 * C[mr][nr vectors] (+)= A B: A(i, p) = a[i * ai + p * ap], B rows of STRIP.
 * Inlined with constant mr, nr, ai, ap: C lives in registers.
 */
static inline __attribute__((always_inline)) void
tile(int mr, int nr, int add, int64_t k, const float *a, int64_t ai,
    int64_t ap, const float *b, float *c)
{
	vf s[MR][2], b0, b1 = {0}, x;
	int64_t p;
	int i;

#pragma GCC unroll 16
	for (i = 0; i < mr; i++) {
		s[i][0] = add ? vf_load(c + i * STRIP) : (vf){0};
		if (nr == 2)
			s[i][1] = add ? vf_load(c + i * STRIP + VL) : (vf){0};
	}
	for (p = 0; p < k; p++) {
		b0 = vf_load(b + p * STRIP);
		if (nr == 2)
			b1 = vf_load(b + p * STRIP + VL);
#pragma GCC unroll 16
		for (i = 0; i < mr; i++) {
			x = vf_set1(a[i * ai + p * ap]);
			s[i][0] = vf_fma(x, b0, s[i][0]);
			if (nr == 2)
				s[i][1] = vf_fma(x, b1, s[i][1]);
		}
	}
#pragma GCC unroll 16
	for (i = 0; i < mr; i++) {
		vf_store(c + i * STRIP, s[i][0]);
		if (nr == 2)
			vf_store(c + i * STRIP + VL, s[i][1]);
	}
}

/* The m rows of C in nearly equal tiles of at most MR. */
static inline __attribute__((always_inline)) void
tiles(int64_t m, int nr, int add, int64_t k, const float *a, int64_t ai,
    int64_t ap, const float *b, float *c)
{
	int64_t parts = (m + MR - 1) / MR, t, mr;

	for (t = 0; t < parts; t++) {
		mr = m / parts + (t < m % parts);
#define ROWS(n)	case n: tile(n, nr, add, k, a, ai, ap, b, c); break;
		switch (mr) {
		ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if MR > 4
		ROWS(5) ROWS(6)
#endif
#if MR > 6
		ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
		}
#undef ROWS
		a += mr * ai;
		c += mr * STRIP;
	}
}

/* C[rows][lanes] = A[rows][d] B[d][lanes] */
static inline void
strip_dot(int nr, int64_t rows, int64_t d, const float *a, const float *b,
    float *c)
{
	if (nr == 2)
		tiles(rows, 2, 0, d, a, LDA, 1, b, c);
	else
		tiles(rows, 1, 0, d, a, LDA, 1, b, c);
}

/* C[d][lanes] += A[rows][d]^T B[rows][lanes] */
static inline void
strip_acc(int nr, int64_t rows, int64_t d, const float *a, const float *b,
    float *c)
{
	if (nr == 2)
		tiles(d, 2, 1, rows, a, 1, LDA, b, c);
	else
		tiles(d, 1, 1, rows, a, 1, LDA, b, c);
}

/* Vectors of a strip that has `lanes` tokens. */
static inline int
strip_vectors(int64_t lanes)
{
	return lanes > VL ? 2 : 1;
}

static inline void
transpose4(v4 r[4])
{
	v4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
	v4 b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
	v4 c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
	v4 d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);

	r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
	r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
	r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
	r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

/* n <= 4 elements from i on; the rest 0. */
static inline v4
load4(enum lpo_dtype dt, const void *p, int64_t i, int64_t n)
{
	const uint16_t *h = (const uint16_t *)p + i;
	v4 v = {0};
	int64_t j;

	if (dt == LPO_F32 && n >= 4)
		memcpy(&v, (const float *)p + i, sizeof(v));
	else if (dt == LPO_F32)
		for (j = 0; j < n; j++)
			v[j] = ((const float *)p)[i + j];
	else
		for (j = 0; j < n && j < 4; j++)
			v[j] = bf16_to_f32(h[j]);
	return v;
}

/* store scale * v, or add it, n <= 4 elements; see vf_fma */
static inline void
store4(enum lpo_dtype dt, void *p, int64_t i, int64_t n, v4 v, float scale,
    int add)
{
	uint16_t *h = (uint16_t *)p + i;
	int64_t j;

	if (!add)
		v *= scale;
	else
#if defined(__FMA__)
		v = (v4)_mm_fmadd_ps((__m128)v, _mm_set1_ps(scale),
		    (__m128)load4(dt, p, i, n));
#else
		v = v * scale + load4(dt, p, i, n);
#endif
	if (dt == LPO_F32 && n >= 4)
		memcpy((float *)p + i, &v, sizeof(v));
	else if (dt == LPO_F32)
		for (j = 0; j < n; j++)
			((float *)p)[i + j] = v[j];
	else
		for (j = 0; j < n && j < 4; j++)
			h[j] = f32_to_bf16(v[j]);
}

/* dst[rows][LDA] = scale * src, rows ld elements apart */
static inline void
load_rows(enum lpo_dtype dt, float *dst, const void *src, int64_t ld,
    int64_t rows, int64_t d, float scale)
{
	int64_t r, x;

	for (r = 0; r < rows; r++)
		for (x = 0; x < d; x += VL)
			vf_store(dst + r * LDA + x,
			    scale * vld(dt, elem(dt, src, r * ld), x, d));
}

/* strip[d][STRIP] = scale * transpose of src's rows; other lanes 0 */
static inline void
load_strip(enum lpo_dtype dt, float *strip, const void *src, int64_t ld,
    int64_t rows, int64_t d, float scale)
{
	int64_t q, x, j;
	v4 r[4];

	if (rows < STRIP)
		memset(strip, 0, (size_t)(d * STRIP) * sizeof(float));
	for (q = 0; q < rows; q += 4)
		for (x = 0; x < d; x += 4) {
			for (j = 0; j < 4; j++)
				r[j] = q + j < rows ? scale * load4(dt,
				    elem(dt, src, (q + j) * ld), x, d - x) :
				    (v4){0};
			transpose4(r);
			for (j = 0; j < 4 && x + j < d; j++)
				memcpy(strip + (x + j) * STRIP + q, &r[j],
				    sizeof(v4));
		}
}

/* dst's rows (+)= scale * transpose of strip[d][STRIP] */
static inline void
store_strip(enum lpo_dtype dt, void *dst, int64_t ld, const float *strip,
    int64_t rows, int64_t d, float scale, int add)
{
	int64_t q, x, j;
	v4 r[4];

	for (q = 0; q < rows; q += 4)
		for (x = 0; x < d; x += 4) {
			for (j = 0; j < 4; j++) {
				r[j] = (v4){0};
				if (x + j < d)
					memcpy(&r[j], strip + (x + j) * STRIP +
					    q, sizeof(v4));
			}
			transpose4(r);
			for (j = 0; j < 4 && q + j < rows; j++)
				store4(dt, elem(dt, dst, (q + j) * ld), x,
				    d - x, r[j], scale, add);
		}
}

/* lane j of a vector holds j */
static inline vi
vi_iota(void)
{
	int32_t a[VL];
	vi v;
	int j;

	for (j = 0; j < VL; j++)
		a[j] = j;
	memcpy(&v, a, sizeof(v));
	return v;
}

/* Element of q (row i, token t, head h), of o and of k and v. */
static inline int64_t
at_q(const struct lpo_attn_shape *s, int64_t i, int64_t t, int64_t h)
{
	return (i * s->lq + t) * s->ldq + h * s->d;
}

static inline int64_t
at_o(const struct lpo_attn_shape *s, int64_t i, int64_t t, int64_t h)
{
	return ((i * s->lq + t) * s->heads + h) * s->d;
}

static inline int64_t
at_k(const struct lpo_attn_shape *s, int64_t i, int64_t t, int64_t h)
{
	return (i * s->lk + t) * s->ldk + h * s->d;
}

/* Scratch of the backward pass. */
size_t	LPO_FN(lpo_attention_bwd_bytes)(const lpo_backend *,
	    const struct lpo_attn_shape *);
size_t	lpo_attention_bwd_bytes_amx(const lpo_backend *,
	    const struct lpo_attn_shape *);

/* A shape that kernels for heads up to `widest` cannot take. */
static inline int
bad_shape(const struct lpo_attn_shape *s, int64_t widest)
{
	return s->n < 1 || s->nk < 1 || s->n % s->nk != 0 || s->lq < 1 ||
	    s->lk < 1 || s->heads < 1 || s->d < 1 || s->d > widest;
}

#endif
