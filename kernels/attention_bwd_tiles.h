/*
 * What attention_bwd_amx.c works on: blocks of keys and of queries as tiles,
 * where they lie in a thread's memory, and how they get there.
 */
#ifndef LPO_ATTENTION_BWD_TILES_H
#define LPO_ATTENTION_BWD_TILES_H

#include "kernels/amx.h"
#include "kernels/attention.h"

#include <omp.h>

enum {
	SIDE = 32,		/* keys and queries of a square of four tiles */
	BQ = 256,		/* queries of a block */
	KS = 128,		/* keys that meet it at a time */
	BK = 512,		/* keys of a block */
	AHEAD = 2,		/* query blocks of a unit of the second pass */
	WORDS = 512,		/* bf16 of a tile */
	FLOATS = 256
};

typedef uint16_t h32 __attribute__((vector_size(64)));

/* One thread's memory; a block of keys and `slots` of queries follow. */
struct room {
	float s[4 * FLOATS], dp[4 * FLOATS];
	/* P and dS: tiles [16 keys][32 queries]; dS: [32 keys][16 queries] */
	uint16_t p[KS * BQ], ds[KS * BQ], pairs[KS * BQ];
	uint16_t rows[SIDE * LDA];
	float turned[SIDE * LDA];
};

/* Tiles across two lines of the cache take twice the time. */
_Static_assert(sizeof(struct room) % 64 == 0, "tiles begin with a line");

/* Tiles of a block of keys: [keys / 16][channels / 32] k and v, ... */
struct keys {
	uint16_t *k, *v;
	uint16_t *kt;		/* [channels / 16][bk / 32], of k^T */
	float *dk, *dv;		/* [keys / 16][channels / 16] */
	int64_t first, count;
};

/* ... of a block of queries: [queries / 16][channels / 32] q^T and do^T, ... */
struct queries {
	float *lse2, *delta;	/* [BQ]: -lse log2 e, -sum o do */
	uint16_t *q, *g;
	uint16_t *qp, *gp;	/* [queries / 32][channels / 16] of q and do */
	float *dq;		/* [queries / 32][channels / 16][2], of dq^T */
	int64_t first, count;
};

/* The arguments of one call. */
struct job {
	uint16_t *dq, *dk, *dv;
	const uint16_t *dout, *o, *q, *k, *v;
	const float *lse;
	const struct lpo_attn_shape *s;
	int add;
	char *scratch;
	int64_t ck, cv;		/* channels by 32 and by 16 */
	int64_t bk;		/* keys of a block, whole sides */
	int64_t slots;		/* query blocks that a thread holds */
	float scale;		/* d^-1/2 */
};

/* ---- memory */

static int64_t
keys_bytes(const struct job *j)
{
	return j->bk * (2 * j->ck * 64 + j->cv * 32 + 2 * j->cv * 64);
}

static int64_t
slot_bytes(const struct job *j)
{
	return BQ * (2 * 4 + 2 * j->ck * 64 + 2 * j->cv * 32 + j->cv * 64);
}

static int64_t
room_bytes(const struct job *j)
{
	return (int64_t)sizeof(struct room) + keys_bytes(j) +
	    j->slots * slot_bytes(j);
}

static struct room *
room_of_thread(const struct job *j)
{
	return (struct room *)(j->scratch + omp_get_thread_num() *
	    room_bytes(j));
}

/* The block of keys from `first` on. */
static struct keys
keys_in(const struct job *j, struct room *w, int64_t first)
{
	struct keys b;

	b.k = (uint16_t *)(w + 1);
	b.v = b.k + j->bk * j->ck * 32;
	b.kt = b.v + j->bk * j->ck * 32;
	b.dk = (float *)(b.kt + j->bk * j->cv * 16);
	b.dv = b.dk + j->bk * j->cv * 16;
	b.first = first;
	b.count = min64(BK, j->s->lk - first);
	return b;
}

/* The block of queries from `first` on, in a slot. */
static struct queries
queries_in(const struct job *j, struct room *w, int64_t slot, int64_t first)
{
	struct queries b;

	b.lse2 = (float *)((char *)(w + 1) + keys_bytes(j) +
	    slot * slot_bytes(j));
	b.delta = b.lse2 + BQ;
	b.q = (uint16_t *)(b.delta + BQ);
	b.g = b.q + BQ * j->ck * 32;
	b.qp = b.g + BQ * j->ck * 32;
	b.gp = b.qp + BQ * j->cv * 16;
	b.dq = (float *)(b.gp + BQ * j->cv * 16);
	b.first = first;
	b.count = min64(BQ, j->s->lq - first);
	return b;
}

/* ---- into tiles */

#if defined(__AVX512BW__)
static inline __mmask32
words_mask(int64_t n)
{
	return n >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << n) - 1;
}
#endif

/* 32 words, of which n are there; the rest 0 */
static inline void
copy_words(uint16_t *to, const uint16_t *p, int64_t n)
{
#if defined(__AVX512BW__)
	_mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(words_mask(n), p));
#else
	memset(to, 0, 64);
	memcpy(to, p, (size_t)min64(n, 32) * 2);
#endif
}

/* 32 rows of d channels, of which `count` are there: [2][ck] tiles */
static void
tiles_of_rows(uint16_t *to, const uint16_t *p, int64_t ld, int64_t count,
    int64_t d, int64_t ck)
{
	int64_t r, x;

	for (r = 0; r < SIDE; r++)
		for (x = 0; x < ck; x++) {
			/* rows are far apart: the next ones */
			__builtin_prefetch(p + (r + SIDE) * ld + x * 32);
			copy_words(to + (r / 16 * ck + x) * WORDS +
			    r % 16 * 32, p + r * ld + x * 32,
			    r < count ? d - x * 32 : 0);
		}
}

/*
 * Channels 16 c .. of such 32 rows with pairs of rows side by side: a tile
 * [16 pairs][16 channels][2]
 */
static void
pair_rows(uint16_t *to, const uint16_t *rows, int64_t ck, int64_t c)
{
	const uint16_t *from;
	int64_t i;
	h16 a, b;
	w16 v;

	for (i = 0; i < 16; i++) {
		from = rows + (i / 8 * ck + c / 2) * WORDS + i % 8 * 64 +
		    c % 2 * 16;
		memcpy(&a, from, sizeof(a));
		memcpy(&b, from + 32, sizeof(b));
		v = __builtin_convertvector(a, w16) |
		    __builtin_convertvector(b, w16) << 16;
		memcpy(to + i * 32, &v, sizeof(v));
	}
}

/* k and v of a block; its sums begin at 0. */
static void
pack_keys(const struct job *j, const struct keys *b, int64_t r, int64_t h)
{
	int64_t sides = div_up(b->count, SIDE), ld = j->s->ldk, t, c, at, left;
	uint16_t pairs[WORDS];

	for (t = 0; t < sides; t++) {
		at = at_k(j->s, r, b->first + t * SIDE, h);
		left = b->count - t * SIDE;
		tiles_of_rows(b->k + t * 2 * j->ck * WORDS, j->k + at, ld,
		    left, j->s->d, j->ck);
		tiles_of_rows(b->v + t * 2 * j->ck * WORDS, j->v + at, ld,
		    left, j->s->d, j->ck);
		for (c = 0; c < j->cv; c++) {
			pair_rows(pairs, b->k + t * 2 * j->ck * WORDS, j->ck,
			    c);
			tile_turn(b->kt + (c * (j->bk / SIDE) + t) * WORDS,
			    pairs, 32);
		}
	}
	memset(b->dk, 0, (size_t)(sides * 2 * j->cv * FLOATS) * 4);
	memset(b->dv, 0, (size_t)(sides * 2 * j->cv * FLOATS) * 4);
}

/* Two orders of 32 rows, for both products that they meet in. */
static void
pack_rows(const struct job *j, uint16_t *turned, uint16_t *pairs,
    uint16_t *rows, const uint16_t *p, int64_t ld, int64_t count)
{
	int64_t t;

	tiles_of_rows(rows, p, ld, count, j->s->d, j->ck);
	for (t = 0; t < 2 * j->ck; t++)
		tile_turn(turned + t * WORDS, rows + t * WORDS, 32);
	for (t = 0; t < j->cv; t++)
		pair_rows(pairs + t * WORDS, rows, j->ck, t);
}

/* The same of q, dout, lse and o; a query that is not there has P = 0. */
static void
pack_queries(const struct job *j, struct room *w, const struct queries *b,
    int64_t i, int64_t h)
{
	int64_t sides = div_up(b->count, SIDE), d = j->s->d, t, x, q, g;
	int64_t ldo = j->s->heads * d;
	const float *lse = j->lse + (i * j->s->heads + h) * j->s->lq +
	    b->first;

	for (t = 0; t < sides; t++) {
		q = at_q(j->s, i, b->first + t * SIDE, h);
		g = at_o(j->s, i, b->first + t * SIDE, h);
		pack_rows(j, b->q + t * 2 * j->ck * WORDS,
		    b->qp + t * j->cv * WORDS, w->rows, j->q + q, j->s->ldq,
		    b->count - t * SIDE);
		pack_rows(j, b->g + t * 2 * j->ck * WORDS,
		    b->gp + t * j->cv * WORDS, w->rows, j->dout + g, ldo,
		    b->count - t * SIDE);
	}
	for (t = 0; t < sides * SIDE; t++) {
		vf sum = {0};

		b->lse2[t] = -1e30f;
		b->delta[t] = 0.0f;
		if (t >= b->count)
			continue;
		g = at_o(j->s, i, b->first + t, h);
		for (x = 0; x < d; x += 32)
			__builtin_prefetch(j->o + g + SIDE * ldo + x);
		for (x = 0; x < d; x += VL)
			sum = vf_fma(vld(LPO_BF16, j->o + g, x, d),
			    vld(LPO_BF16, j->dout + g, x, d), sum);
		b->lse2[t] = -lse[t] * LOG2E;
		b->delta[t] = -vf_hsum(sum);
	}
	memset(b->dq, 0, (size_t)(sides * 2 * j->cv * FLOATS) * 4);
}

#endif
