/*
 * Flash attention, forward, in bf16 on AMX tiles.  32 queries meet blocks of
 * up to 128 keys:
 *	S = Q K^T	tiles [16 queries][16 keys], over channels by 32
 *	P = 2^(S - m)	in vectors, rounded to bf16; running m and l as usual
 *	O = O + P V	tiles [16 queries][16 channels], over keys by 32
 * k and v are brought once per row and head into the order that the tile
 * product wants: pairs along its inner dimension side by side.
 */
#include "kernels/amx.h"
#include "kernels/attention.h"
#include "kernels/levels.h"

#include <math.h>
#include <omp.h>

enum {
	BQ = 32,		/* queries of a block: two rows of tiles */
	BK = 128		/* keys of a block */
};

/* What these kernels leave to others. */
#ifdef LPO_AMX_EMULATE
#define OTHER(op)	lpo_##op##_portable
#else
#define OTHER(op)	lpo_##op##_avx512
#endif

typedef uint16_t h8 __attribute__((vector_size(16)));

/* One thread's blocks; its packed k and v follow in memory. */
struct room {
	uint16_t q[BQ * LDA], p[BQ * BK];
	float s[BQ * BK], o[BQ * LDA];
	float m[BQ], l[BQ];
};

/* The padded sizes of one head. */
struct padded {
	int64_t dk, dv, lk;	/* channels by 32 and by 16, keys by 32 */
};

static inline int64_t
round_up(int64_t x, int64_t to)
{
	return (x + to - 1) / to * to;
}

static inline struct padded
pad(const struct lpo_attn_shape *s)
{
	struct padded p = { round_up(s->d, 32), round_up(s->d, 16),
	    round_up(s->lk, 32) };

	return p;
}

/* k to [lk / 16][dk / 2][16 keys][2]: channel pairs, transposed as words. */
static void
pack_k(uint16_t *dst, const uint16_t *k, int64_t ld, const struct padded *z,
    int64_t keys, int64_t d)
{
	int64_t g, x, i, j;
	uint16_t *to;
	v4 r[4];

	memset(dst, 0, (size_t)(z->lk * z->dk) * sizeof(*dst));
	for (g = 0; g < keys; g += 4)
		for (x = 0; x < d; x += 8) {
			for (i = 0; i < 4; i++) {
				r[i] = (v4){0};
				if (g + i < keys)
					memcpy(&r[i], k + (g + i) * ld + x,
					    (size_t)min64(8, d - x) * 2);
			}
			transpose4(r);
			to = dst + (g / 16 * (z->dk / 2) + x / 2) * 32 +
			    g % 16 * 2;
			for (j = 0; j < 4; j++)
				memcpy(to + j * 32, &r[j], sizeof(v4));
		}
}

/* v to [lk / 32][dv / 16][16 key pairs][16 channels][2] */
static void
pack_v(uint16_t *dst, const uint16_t *v, int64_t ld, const struct padded *z,
    int64_t keys, int64_t d)
{
	int64_t g, x;
	h8 a, b, lo, hi;
	size_t bytes;
	uint16_t *to;

	memset(dst, 0, (size_t)(z->lk * z->dv) * sizeof(*dst));
	for (g = 0; g < keys; g += 2)
		for (x = 0; x < d; x += 8) {
			bytes = (size_t)min64(8, d - x) * 2;
			a = b = (h8){0};
			memcpy(&a, v + g * ld + x, bytes);
			if (g + 1 < keys)
				memcpy(&b, v + (g + 1) * ld + x, bytes);
			lo = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10,
			    3, 11);
			hi = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6,
			    14, 7, 15);
			to = dst + (g / 32 * (z->dv / 16) + x / 16) * 512 +
			    g % 32 / 2 * 32 + x % 16 * 2;
			memcpy(to, &lo, sizeof(lo));
			memcpy(to + 8, &hi, sizeof(hi));
		}
}

/* s[32][BK] = q k^T of `keys` keys (a multiple of 32) from k0 on */
static void
scores(struct room *w, const uint16_t *kp, const struct padded *z, int64_t k0,
    int64_t keys)
{
	int64_t step = z->dk / 2 * 32, k, x;

	for (k = 0; k < keys; k += 32) {
		const uint16_t *b = kp + (k0 + k) / 16 * step;

		tile_zero(0);
		tile_zero(1);
		tile_zero(2);
		tile_zero(3);
		for (x = 0; x < z->dk; x += 32) {
			tile_load(4, w->q + x, LDA * 2);
			tile_load(5, w->q + 16 * LDA + x, LDA * 2);
			tile_load(6, b + x / 2 * 32, 64);
			tile_load(7, b + step + x / 2 * 32, 64);
			tile_dp(0, 4, 6);
			tile_dp(1, 4, 7);
			tile_dp(2, 5, 6);
			tile_dp(3, 5, 7);
		}
		tile_store(0, w->s + k, BK * 4);
		tile_store(1, w->s + k + 16, BK * 4);
		tile_store(2, w->s + 16 * BK + k, BK * 4);
		tile_store(3, w->s + 16 * BK + k + 16, BK * 4);
	}
}

/* o[32][dv] += p v over the same keys */
static void
weighted_sum(struct room *w, const uint16_t *vp, const struct padded *z,
    int64_t k0, int64_t keys)
{
	int64_t step = z->dv / 16 * 512, c, k;

	for (c = 0; c < z->dv; c += 32) {
		const uint16_t *b = vp + k0 / 32 * step + c / 16 * 512;
		int two = c + 16 < z->dv;
		float *o = w->o + c;

		tile_load(0, o, LDA * 4);
		tile_load(2, o + 16 * LDA, LDA * 4);
		if (two) {
			tile_load(1, o + 16, LDA * 4);
			tile_load(3, o + 16 * LDA + 16, LDA * 4);
		}
		for (k = 0; k < keys; k += 32, b += step) {
			tile_load(4, w->p + k, BK * 2);
			tile_load(5, w->p + 16 * BK + k, BK * 2);
			tile_load(6, b, 64);
			tile_dp(0, 4, 6);
			tile_dp(2, 5, 6);
			if (two) {
				tile_load(7, b + 512, 64);
				tile_dp(1, 4, 7);
				tile_dp(3, 5, 7);
			}
		}
		tile_store(0, o, LDA * 4);
		tile_store(2, o + 16 * LDA, LDA * 4);
		if (two) {
			tile_store(1, o + 16, LDA * 4);
			tile_store(3, o + 16 * LDA + 16, LDA * 4);
		}
	}
}

/* 2^x, x <= 0; where P is rounded to bf16, 3e-6 is exact enough. */
static inline vf
exp2_for_bf16(vf x)
{
#if defined(__AVX512F__)
	__m512 y = _mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)x);
	__m512 n = _mm512_roundscale_ps(y, 0);
	vf f = (vf)_mm512_sub_ps(y, n), p;

	p = vf_horner(vf_set1(0.009570102069f), f, 0.05591786033f);
	p = vf_horner(p, f, 0.2402474482f);
	p = vf_horner(p, f, 0.6931218147f);
	p = vf_horner(p, f, 0.9999992614f);
	return (vf)_mm512_scalef_ps((__m512)p, n);
#else
	return vf_exp2_soft(x);
#endif
}

static inline void
store_pair(uint16_t *p, vf a, vf b)
{
#if defined(__AVX512BF16__)
	__m512bh h = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);

	memcpy(p, &h, sizeof(h));
#else
	vf_store_bf16(p, a);
	vf_store_bf16(p + VL, b);
#endif
}

static inline float
vf_largest(vf v)
{
	float a[VL], most;
	int i;

	vf_store(a, v);
	most = a[0];
	for (i = 1; i < VL; i++)
		most = a[i] > most ? a[i] : most;
	return most;
}

/*
 * Row i of s, whose first `seen` keys count, becomes its row of p.  The
 * scale is applied here, in f32: in q it would cost bf16 digits.
 */
static void
softmax_row(struct room *w, int64_t i, int64_t keys, int64_t seen,
    int64_t dv, float scale)
{
	float *s = w->s + i * BK, *o = w->o + i * LDA, top, a;
	vf most = {0}, sum = {0}, p0, p1;
	int64_t j;

	for (j = seen; j < keys; j++)
		s[j] = -INFINITY;
	most -= INFINITY;
	for (j = 0; j < keys; j += VL)
		most = vf_max(vf_load(s + j), most);
	top = vf_largest(most);
	if (top > w->m[i]) {
		a = exp2f((w->m[i] - top) * scale);
		w->m[i] = top;
		w->l[i] *= a;
		for (j = 0; j < dv; j += VL)
			vf_store(o + j, vf_load(o + j) * a);
	}
	top = w->m[i] * scale;
	for (j = 0; j < keys; j += 2 * VL) {
		p0 = vf_fma(vf_load(s + j), vf_set1(scale), -vf_set1(top));
		p1 = vf_fma(vf_load(s + j + VL), vf_set1(scale),
		    -vf_set1(top));
		p0 = exp2_for_bf16(p0);
		p1 = exp2_for_bf16(p1);
		sum += p0 + p1;
		store_pair(w->p + i * BK + j, p0, p1);
	}
	w->l[i] += vf_sum(sum);
}

/* Queries q0 .. (at most 32) of one head; q, o at the first of them. */
static void
query_block(struct room *w, uint16_t *o, float *lse, const uint16_t *q,
    const uint16_t *kp, const uint16_t *vp, const struct lpo_attn_shape *s,
    int64_t q0)
{
	int64_t rows = min64(BQ, s->lq - q0), d = s->d, i, j, k, keys, seen;
	float scale = LOG2E / sqrtf((float)d), r;
	struct padded z = pad(s);

	memset(w->q, 0, sizeof(w->q));
	memset(w->o, 0, sizeof(w->o));
	for (i = 0; i < rows; i++)
		memcpy(w->q + i * LDA, q + i * s->ldq, (size_t)d * 2);
	for (i = 0; i < BQ; i++) {
		w->m[i] = -INFINITY;
		w->l[i] = 0.0f;
	}
	for (k = 0; k < s->lk && (!s->causal || k < q0 + rows); k += BK) {
		keys = min64(BK, z.lk - k);
		scores(w, kp, &z, k, keys);
		for (i = 0; i < BQ; i++) {
			seen = s->lk - k;
			if (s->causal)
				seen = min64(seen, q0 + i + 1 - k);
			softmax_row(w, i, keys, seen < 0 ? 0 : seen, z.dv,
			    scale);
		}
		weighted_sum(w, vp, &z, k, keys);
	}
	for (i = 0; i < rows; i++) {
		r = 1.0f / w->l[i];
		for (j = 0; j < d; j += VL)
			vst(LPO_BF16, o + i * s->heads * d, j, d,
			    vld(LPO_F32, w->o + i * LDA, j, d) * r);
		if (lse != NULL)
			lse[i] = w->m[i] * scale * LN2 + logf(w->l[i]);
	}
}

static int64_t
packed_elements(const struct lpo_attn_shape *s)
{
	struct padded z = pad(s);

	return z.lk * (z.dk + z.dv);
}

/*
 * Head h of the rows that share row r of k and v; of their query blocks the
 * part [b0, b1).
 */
static void
head_unit(char *room, void *o, float *lse, const void *q, const void *k,
    const void *v, const struct lpo_attn_shape *s, int64_t r, int64_t h,
    int64_t b0, int64_t b1)
{
	int64_t d = s->d, blocks = (s->lq + BQ - 1) / BQ, b, i, q0, at;
	int64_t first = r * s->lk * s->ldk + h * d;
	struct room *w = (struct room *)room;
	struct padded z = pad(s);
	uint16_t *kp = (uint16_t *)(w + 1), *vp = kp + z.lk * z.dk;

	tile_config();
	pack_k(kp, (const uint16_t *)k + first, s->ldk, &z, s->lk, d);
	pack_v(vp, (const uint16_t *)v + first, s->ldk, &z, s->lk, d);
	for (b = b0; b < b1; b++) {
		i = r * (s->n / s->nk) + b / blocks;
		q0 = b % blocks * BQ;
		at = i * s->lq + q0;
		query_block(w, (uint16_t *)o + (at * s->heads + h) * d,
		    lse == NULL ? NULL : lse + (i * s->heads + h) * s->lq +
		    q0, (const uint16_t *)q + at * s->ldq + h * d, kp, vp, s,
		    q0);
	}
	tile_release();
}

static size_t
room_bytes(const struct lpo_attn_shape *s)
{
	return (size_t)round_up((int64_t)sizeof(struct room) +
	    packed_elements(s) * 2, 64);
}

int
lpo_attention_fwd_amx(lpo_backend *b, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	int64_t heads, blocks, parts, u;
	size_t bytes;

	if (dt != LPO_BF16 || s->d > LDA)
		return OTHER(attention_fwd)(b, dt, o, lse, q, k, v, s,
		    scratch);
	if (bad_shape(s))
		return LPO_EINVAL;
	bytes = room_bytes(s);
	heads = s->nk * s->heads;
	blocks = s->n / s->nk * ((s->lq + BQ - 1) / BQ);
	/* few heads: several threads pack the same one, each for its part */
	parts = min64((b->threads + heads - 1) / heads, blocks);
#pragma omp parallel for schedule(static) num_threads(b->threads) \
    if (heads * blocks * s->lk > 1024)
	for (u = 0; u < heads * parts; u++) {
		int64_t head = u / parts, p = u % parts;

		head_unit((char *)scratch +
		    (size_t)omp_get_thread_num() * bytes, o, lse, q, k, v, s,
		    head / s->heads, head % s->heads, p * blocks / parts,
		    (p + 1) * blocks / parts);
	}
	return 0;
}

int
lpo_attention_bwd_amx(lpo_backend *b, enum lpo_dtype dt, void *dq, void *dk,
    void *dv, const void *dout, const void *o, const float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int add, void *scratch)
{
	return OTHER(attention_bwd)(b, dt, dq, dk, dv, dout, o, lse, q, k, v,
	    s, add, scratch);
}

size_t
lpo_attention_scratch_bytes_amx(lpo_backend *b, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	if (pass != LPO_FWD || dt != LPO_BF16 || s->d > LDA)
		return OTHER(attention_scratch_bytes)(b, pass, dt, s);
	return (size_t)b->threads * room_bytes(s);
}
