/*
 * Convolutions in bf16 where the machine multiplies it natively: images are
 * cut into strips of rows, each a convolution of its own for oneDNN.
 */
#include <omp.h>

#include "kernels/gemm.h"
#include "kernels/levels.h"
#include "kernels/onednn.h"

#define STRIP_PIXELS 512	/* of an image per piece, about */

/* Strips of an image: of y going forward, of dx going back. */
struct strips {
	int64_t rows, count, size;
};

static struct strips
make_strips(enum lpo_pass pass, const struct lpo_conv_shape *s)
{
	int64_t h = pass == LPO_FWD ? s->ho : s->h;
	int64_t w = pass == LPO_FWD ? s->wo : s->w;
	struct strips t;

	t.size = h;
	t.rows = STRIP_PIXELS / w < 4 ? 4 : STRIP_PIXELS / w;
	/* A strip of dx begins where a window begins. */
	t.rows = (t.rows + s->stride - 1) / s->stride * s->stride;
	t.rows = t.rows < h ? t.rows : h;
	t.count = (h + t.rows - 1) / t.rows;
	return t;
}

/*
 * Strip `i` as a convolution of its own: *from and *to are its first rows in
 * what is read and written.  0 if there is nothing to read, or the padding is
 * of a kind that a library may not expect.
 */
static int
make_piece(struct lpo_conv_piece *key, const struct strips *t, int64_t i,
    int64_t *from, int64_t *to)
{
	const struct lpo_conv_shape *s = &key->whole;
	struct lpo_conv_shape *p = &key->s;
	int64_t a = i * t->rows, b = a + t->rows, lo, hi;

	b = b < t->size ? b : t->size;
	*p = *s;
	*to = a;
	if (key->pass == LPO_FWD) {
		lo = a * s->stride - s->pad_top;
		hi = (b - 1) * s->stride - s->pad_top + s->kh;
		*from = lo > 0 ? lo : 0;
		p->pad_top = *from - lo;
		p->h = (hi < s->h ? hi : s->h) - *from;
		p->ho = b - a;
	} else {
		lo = a + s->pad_top - s->kh + 1;
		lo = lo > 0 ? (lo + s->stride - 1) / s->stride : 0;
		hi = (b - 1 + s->pad_top) / s->stride + 1;
		hi = hi < s->ho ? hi : s->ho;
		*from = lo;
		p->pad_top = a + s->pad_top - lo * s->stride;
		p->h = b - a;
		p->ho = hi - lo;
	}
	key->pad_bottom = (p->ho - 1) * p->stride + p->kh - p->h - p->pad_top;
	key->pad_right = (p->wo - 1) * p->stride + p->kw - p->w - p->pad_left;
	/* Negative: rows or columns at the end that no window reaches. */
	if (key->pad_bottom < 0 && key->pad_bottom > -p->stride)
		key->pad_bottom = 0;
	if (key->pad_right < 0 && key->pad_right > -p->stride)
		key->pad_right = 0;
	return p->h > 0 && p->ho > 0 && p->pad_top < p->kh &&
	    p->pad_left < p->kw && key->pad_bottom >= 0 &&
	    key->pad_bottom < p->kh && key->pad_right >= 0 &&
	    key->pad_right < p->kw;
}

/*
 * How a call is cut: the pieces' common part, strips, and scratch (weights,
 * then per thread a pad and the f32 sums of a strip of dx).
 */
struct plan {
	struct lpo_conv_piece key;
	struct strips t;
	const struct lpo_piece *first;
	size_t weight_bytes, pad_bytes, sum_bytes;
	int add;		/* going back: to what dx holds */
};

/* Few channels stay ours: bf16 there is wrong on AMX up to oneDNN 3.13.3. */
static int
is_candidate(enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	return dt == LPO_BF16 && s->ci >= 16 && s->co >= 16 &&
	    s->kh * s->kw <= 64;
}

/* The piece of strip `i`; its rows begin at *from and *to. */
static const struct lpo_piece *
get_piece(lpo_backend *be, const struct plan *p, int64_t i, int64_t *from,
    int64_t *to)
{
	struct lpo_conv_piece key = p->key;

	return make_piece(&key, &p->t, i, from, to) ?
	    lpo_onednn_conv(be, &key, p->first) : NULL;
}

/* 0 where some strip is not for oneDNN; else all pieces are there. */
static int
make_plan(lpo_backend *be, struct plan *p, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s, int bias, int add)
{
	const struct lpo_piece *piece;
	int64_t i, from, to;

	memset(p, 0, sizeof(*p));
	if (be->priv == NULL || !is_candidate(dt, s))
		return 0;
	p->key.pass = pass;
	p->key.bias = bias;
	/* Going back there is no adding in place: run_strip adds. */
	p->key.add = pass == LPO_FWD && add;
	p->add = add;
	p->key.whole = *s;
	p->key.whole.n = 1;
	p->t = make_strips(pass, s);
	if (pass == LPO_BWD_DATA)
		p->sum_bytes = lpo_aligned((size_t)(p->t.rows * s->w *
		    s->ci) * sizeof(float));
	for (i = 0; i < p->t.count; i++) {
		piece = get_piece(be, p, i, &from, &to);
		if (piece == NULL)
			return 0;
		if (i == 0) {
			p->first = piece;
			p->weight_bytes = lpo_aligned(piece->weight_bytes);
		}
		if (lpo_aligned(piece->pad_bytes) > p->pad_bytes)
			p->pad_bytes = lpo_aligned(piece->pad_bytes);
	}
	return 1;
}

size_t
LPO_FN(lpo_conv_strips_scratch_bytes)(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	size_t most = 0, bytes;
	struct plan p;
	int i;

	/* with and without bias, stored and added */
	for (i = 0; i < (pass == LPO_FWD ? 4 : 1); i++) {
		if (!make_plan(be, &p, pass, dt, s, i & 1, i >> 1))
			continue;
		bytes = 64 + p.weight_bytes + (p.pad_bytes + p.sum_bytes) *
		    (size_t)be->threads;
		most = bytes > most ? bytes : most;
	}
	return most;
}

/* Strip `i` of image `n`. */
static int
run_strip(lpo_backend *be, const struct plan *p, int64_t n, int64_t i,
    uint16_t *dst, const uint16_t *src, void *weight, const float *bias,
    char *mine)
{
	const struct lpo_conv_shape *s = &p->key.whole;
	int64_t in = s->w * s->ci, out = s->wo * s->co, from, to, rows;
	const struct lpo_piece *piece = get_piece(be, p, i, &from, &to);
	float *sums = (float *)(void *)(mine + p->pad_bytes);
	int rc;

	if (p->key.pass == LPO_FWD)
		return lpo_onednn_run(be, piece, dst + (n * s->ho + to) * out,
		    src + (n * s->h + from) * in, weight, bias, mine);
	rc = lpo_onednn_run(be, piece, sums, src + (n * s->ho + from) * out,
	    weight, NULL, mine);
	rows = p->t.rows < s->h - to ? p->t.rows : s->h - to;
	return rc != 0 ? rc : (p->add ? be->k->convert_acc :
	    be->k->convert)(be, dst + (n * s->h + to) * in, LPO_BF16, sums,
	    LPO_F32, rows * in);
}

int
LPO_FN(lpo_conv_strips)(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, void *y, const void *x, const void *w,
    const float *bias, const void *more, const struct lpo_conv_shape *s,
    void *scratch)
{
	char *at = lpo_align_up(scratch);
	struct plan p;
	void *weight;
	int64_t u;
	int rc;

	if (!make_plan(be, &p, pass, dt, s, bias != NULL, more != NULL))
		return 0;
	/* going back it is y */
	lpo_residual(dt, y, more, s->n * s->ho * s->wo * s->co);
	rc = lpo_onednn_weights(be, p.first, w, at, &weight);
	if (rc != 0)
		return rc;
	at += p.weight_bytes;
#pragma omp parallel for schedule(dynamic) num_threads(be->threads) \
    if (s->n * p.t.count > 1) reduction(|:rc)
	for (u = 0; u < s->n * p.t.count; u++)
		rc |= run_strip(be, &p, u / p.t.count, u % p.t.count, y, x,
		    weight, bias, at + (p.pad_bytes + p.sum_bytes) *
		    (size_t)omp_get_thread_num());
	return rc != 0 ? LPO_EINVAL : 1;
}
