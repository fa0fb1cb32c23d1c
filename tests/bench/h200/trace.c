/*
 * A table of kernels that times each call of the real one: sync, call, sync.
 * What an empty call costs that way is taken off.  Calls of one op and shape
 * are one line.  Lists are not recorded (graph_begin is NULL): every op is
 * seen.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/progress.h"
#include "tests/bench/h200/bench.h"

enum { ENTRIES = 1024 };

struct entry {
	const char *name;
	char shape[80];
	int64_t calls;
	double s, flops, moved;
};

static struct {
	const struct lpo_kernels *real;
	struct lpo_kernels table;
	struct entry *entry;
	int n;
	double floor_s;
} tr;

static double
before(lpo_backend *be)
{
	tr.real->sync(be);
	return lpo_now_s();
}

/* An op has come back; its name, work and shape. */
static void after(lpo_backend *, double start, const char *name, double flops,
	    double moved, const char *fmt, ...)
	    __attribute__((format(printf, 6, 7)));

static void
after(lpo_backend *be, double start, const char *name, double flops,
    double moved, const char *fmt, ...)
{
	struct entry *e;
	char shape[80];
	double s;
	va_list ap;
	int i;

	tr.real->sync(be);
	s = lpo_now_s() - start - tr.floor_s;
	va_start(ap, fmt);
	vsnprintf(shape, sizeof(shape), fmt, ap);
	va_end(ap);
	for (i = 0; i < tr.n; i++)
		if (strcmp(tr.entry[i].name, name) == 0 &&
		    strcmp(tr.entry[i].shape, shape) == 0)
			break;
	if (i == ENTRIES)
		return;
	e = &tr.entry[i];
	if (i == tr.n) {
		tr.n++;
		memset(e, 0, sizeof(*e));
		e->name = name;
		memcpy(e->shape, shape, sizeof(shape));
	}
	e->calls++;
	e->s += s > 0 ? s : 0;
	e->flops += flops;
	e->moved += moved;
}

#define L(x) ((long long)(x))

static double
size(enum lpo_dtype dt, int64_t count)
{
	return (double)count * (double)lpo_dtype_bytes(dt);
}

/* "+b" and the like, where they are */
static const char *
extras(const void *bias, const void *residual)
{
	return bias != NULL ? (residual != NULL ? " +b+r" : " +b") :
	    residual != NULL ? " +r" : "";
}

/* ---------------------------------------------------------------- memory */

static int
t_zero(lpo_backend *be, void *dst, size_t bytes)
{
	double t = before(be);
	int rc = tr.real->zero(be, dst, bytes);

	after(be, t, "zero", 0, (double)bytes, "%zu bytes", bytes);
	return rc;
}

static int
t_copy(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	double t = before(be);
	int rc = tr.real->copy(be, dst, src, bytes);

	after(be, t, "copy", 0, 2 * (double)bytes, "%zu bytes", bytes);
	return rc;
}

static int
t_upload(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	double t = before(be);
	int rc = tr.real->upload(be, dst, src, bytes);

	after(be, t, "upload", 0, (double)bytes, "%zu bytes", bytes);
	return rc;
}

/* ---------------------------------------------------------------- linear */

static int
t_linear_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual, int64_t m,
    int64_t n, int64_t k, float alpha, void *scratch)
{
	double t = before(be);
	int rc = tr.real->linear_fwd(be, dt, y, x, w, bias, residual, m, n, k,
	    alpha, scratch);

	after(be, t, "linear_fwd", 2.0 * (double)m * (double)(n * k),
	    size(dt, m * k + n * k + m * n), "%lld x %lld x %lld%s", L(m),
	    L(n), L(k), extras(bias, residual));
	return rc;
}

static int
t_linear_bwd_data(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
    float alpha, int add, void *scratch)
{
	double t = before(be);
	int rc = tr.real->linear_bwd_data(be, dt, dx, dy, w, m, n, k, alpha,
	    add, scratch);

	after(be, t, "linear_bwd_data", 2.0 * (double)m * (double)(n * k),
	    size(dt, m * k + n * k + m * n), "%lld x %lld x %lld%s", L(m),
	    L(n), L(k), add ? " +add" : "");
	return rc;
}

static int
t_linear_bwd_weight(lpo_backend *be, enum lpo_dtype dt, float *dw, float *db,
    const void *dy, const void *x, int64_t m, int64_t n, int64_t k,
    float alpha, int64_t groups, void *scratch)
{
	double t = before(be);
	int rc = tr.real->linear_bwd_weight(be, dt, dw, db, dy, x, m, n, k,
	    alpha, groups, scratch);

	after(be, t, "linear_bwd_weight", 2.0 * (double)m * (double)(n * k),
	    size(dt, m * k + m * n), "%lld x %lld x %lld /%lld%s", L(m), L(n),
	    L(k), L(groups), extras(db, NULL));
	return rc;
}

static int
t_lora_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, void *aux,
    const void *x, const void *w, const float *bias, const void *residual,
    const void *a, const void *b, int64_t m, int64_t n, int64_t k, int64_t r,
    float scale, void *scratch)
{
	double t = before(be);
	int rc = tr.real->lora_fwd(be, dt, y, aux, x, w, bias, residual, a, b,
	    m, n, k, r, scale, scratch);

	after(be, t, "lora_fwd", 2.0 * (double)m * (double)(n * k + r * (n +
	    k)), size(dt, 2 * m * k + n * k + 3 * m * n), "%lld x %lld x "
	    "%lld, %lld%s", L(m), L(n), L(k), L(r), extras(bias, residual));
	return rc;
}

static int
t_lora_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, float *da,
    float *db, const void *dy, const void *x, const void *aux, const void *a,
    const void *b, int64_t m, int64_t n, int64_t k, int64_t r, float scale,
    int64_t groups, void *scratch)
{
	double t = before(be);
	int rc = tr.real->lora_bwd(be, dt, dx, da, db, dy, x, aux, a, b, m, n,
	    k, r, scale, groups, scratch);

	after(be, t, "lora_bwd", 4.0 * (double)m * (double)(r * (n + k)),
	    size(dt, m * n + (dx != NULL ? 3 : 1) * m * k), "%lld x %lld x "
	    "%lld, %lld%s", L(m), L(n), L(k), L(r), dx != NULL ? "" :
	    " no dx");
	return rc;
}

/* ------------------------------------------------------------ convolution */

static void
after_conv(lpo_backend *be, double t, const char *name, enum lpo_dtype dt,
    const struct lpo_conv_shape *c, const char *more)
{
	int64_t out = c->n * c->ho * c->wo * c->co;

	after(be, t, name, 2.0 * (double)out * (double)(c->kh * c->kw *
	    c->ci), size(dt, c->n * c->h * c->w * c->ci + out + c->co *
	    c->kh * c->kw * c->ci), "%lldx%lld/%lld %lld to %lld @ %lldx%lld"
	    "%s", L(c->kh), L(c->kw), L(c->stride), L(c->ci), L(c->co),
	    L(c->h), L(c->w), more);
}

static int
t_conv_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *c, void *scratch)
{
	double t = before(be);
	int rc = tr.real->conv_fwd(be, dt, y, x, w, bias, residual, c,
	    scratch);

	after_conv(be, t, "conv_fwd", dt, c, extras(bias, residual));
	return rc;
}

static int
t_conv_bwd_data(lpo_backend *be, enum lpo_dtype dt, void *dx, const void *dy,
    const void *w, const struct lpo_conv_shape *c, int add, void *scratch)
{
	double t = before(be);
	int rc = tr.real->conv_bwd_data(be, dt, dx, dy, w, c, add, scratch);

	after_conv(be, t, "conv_bwd_data", dt, c, add ? " +add" : "");
	return rc;
}

static int
t_conv_bwd_weight(lpo_backend *be, enum lpo_dtype dt, float *dw, float *db,
    const void *dy, const void *x, const struct lpo_conv_shape *c,
    int64_t groups, void *scratch)
{
	double t = before(be);
	int rc = tr.real->conv_bwd_weight(be, dt, dw, db, dy, x, c, groups,
	    scratch);

	after_conv(be, t, "conv_bwd_weight", dt, c, extras(db, NULL));
	return rc;
}

/* -------------------------------------------------------------- attention */

static void
after_attention(lpo_backend *be, double t, const char *name,
    enum lpo_dtype dt, const struct lpo_attn_shape *s, double times,
    const char *more)
{
	int64_t c = s->heads * s->d;

	after(be, t, name, times * 4 * (double)(s->n * s->lq) *
	    (double)(s->lk * c), size(dt, 2 * s->n * s->lq * c + 2 * s->nk *
	    s->lk * c), "%lld x %lld, %lld heads of %lld%s", L(s->lq),
	    L(s->lk), L(s->heads), L(s->d), more);
}

static int
t_attention_fwd(lpo_backend *be, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	double t = before(be);
	int rc = tr.real->attention_fwd(be, dt, o, lse, q, k, v, s, scratch);

	after_attention(be, t, "attention_fwd", dt, s, 1,
	    lse != NULL ? " +lse" : "");
	return rc;
}

static int
t_attention_bwd(lpo_backend *be, enum lpo_dtype dt, void *dq, void *dk,
    void *dv, const void *dout, const void *o, const float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, int add, void *scratch)
{
	double t = before(be);
	int rc = tr.real->attention_bwd(be, dt, dq, dk, dv, dout, o, lse, q,
	    k, v, s, add, scratch);

	after_attention(be, t, "attention_bwd", dt, s, 2.5,
	    add ? " +add" : "");
	return rc;
}

/* ------------------------------------------------------------------ norms */

static int
t_group_norm_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, float *stats,
    const void *x, const float *gamma, const float *beta, int64_t n,
    int64_t hw, int64_t c, int64_t norm_groups, float eps, int silu)
{
	double t = before(be);
	int rc = tr.real->group_norm_fwd(be, dt, y, stats, x, gamma, beta, n,
	    hw, c, norm_groups, eps, silu);

	after(be, t, "group_norm_fwd", 0, size(dt, 2 * n * hw * c),
	    "%lld @ %lld%s", L(c), L(hw), silu ? " +silu" : "");
	return rc;
}

static int
t_group_norm_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, float *dgamma,
    float *dbeta, const void *dy, const void *x, const float *stats,
    const float *gamma, const float *beta, int64_t n, int64_t hw, int64_t c,
    int64_t norm_groups, int silu, int64_t groups, int add, void *scratch)
{
	double t = before(be);
	int rc = tr.real->group_norm_bwd(be, dt, dx, dgamma, dbeta, dy, x,
	    stats, gamma, beta, n, hw, c, norm_groups, silu, groups, add,
	    scratch);

	after(be, t, "group_norm_bwd", 0, size(dt, (add ? 4 : 3) * n * hw *
	    c), "%lld @ %lld%s%s", L(c), L(hw), silu ? " +silu" : "",
	    add ? " +add" : "");
	return rc;
}

static int
t_layer_norm_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, float *stats,
    const void *x, const float *gamma, const float *beta, int64_t m,
    int64_t c, float eps)
{
	double t = before(be);
	int rc = tr.real->layer_norm_fwd(be, dt, y, stats, x, gamma, beta, m,
	    c, eps);

	after(be, t, "layer_norm_fwd", 0, size(dt, 2 * m * c), "%lld x %lld",
	    L(m), L(c));
	return rc;
}

static int
t_layer_norm_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, float *dgamma,
    float *dbeta, const void *dy, const void *x, const float *stats,
    const float *gamma, int64_t m, int64_t c, int64_t groups, int add,
    void *scratch)
{
	double t = before(be);
	int rc = tr.real->layer_norm_bwd(be, dt, dx, dgamma, dbeta, dy, x,
	    stats, gamma, m, c, groups, add, scratch);

	after(be, t, "layer_norm_bwd", 0, size(dt, (add ? 4 : 3) * m * c),
	    "%lld x %lld%s", L(m), L(c), add ? " +add" : "");
	return rc;
}

/* ------------------------------------------------------------ elementwise */

static int
t_act_fwd(lpo_backend *be, enum lpo_dtype dt, enum lpo_act act, void *y,
    const void *x, int64_t count)
{
	double t = before(be);
	int rc = tr.real->act_fwd(be, dt, act, y, x, count);

	after(be, t, "act_fwd", 0, size(dt, 2 * count), "%lld", L(count));
	return rc;
}

static int
t_act_bwd(lpo_backend *be, enum lpo_dtype dt, enum lpo_act act, void *dx,
    const void *dy, const void *x, int64_t count, int add)
{
	double t = before(be);
	int rc = tr.real->act_bwd(be, dt, act, dx, dy, x, count, add);

	after(be, t, "act_bwd", 0, size(dt, (add ? 4 : 3) * count), "%lld%s",
	    L(count), add ? " +add" : "");
	return rc;
}

static int
t_geglu_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    int64_t m, int64_t c)
{
	double t = before(be);
	int rc = tr.real->geglu_fwd(be, dt, y, x, m, c);

	after(be, t, "geglu_fwd", 0, size(dt, 3 * m * c), "%lld x %lld", L(m),
	    L(c));
	return rc;
}

static int
t_geglu_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, const void *dy,
    const void *x, int64_t m, int64_t c, int add)
{
	double t = before(be);
	int rc = tr.real->geglu_bwd(be, dt, dx, dy, x, m, c, add);

	after(be, t, "geglu_bwd", 0, size(dt, (add ? 7 : 5) * m * c),
	    "%lld x %lld%s", L(m), L(c), add ? " +add" : "");
	return rc;
}

static int
t_add(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    const void *b, int64_t count)
{
	double t = before(be);
	int rc = tr.real->add(be, dt, y, a, b, count);

	after(be, t, "add", 0, size(dt, 3 * count), "%lld", L(count));
	return rc;
}

static int
t_acc(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    int64_t count)
{
	double t = before(be);
	int rc = tr.real->acc(be, dt, y, a, count);

	after(be, t, "acc", 0, size(dt, 3 * count), "%lld", L(count));
	return rc;
}

static int
t_add_rows_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *r, int64_t n, int64_t hw, int64_t c)
{
	double t = before(be);
	int rc = tr.real->add_rows_fwd(be, dt, y, x, r, n, hw, c);

	after(be, t, "add_rows_fwd", 0, size(dt, 2 * n * hw * c),
	    "%lld @ %lld", L(c), L(hw));
	return rc;
}

static int
t_add_rows_bwd(lpo_backend *be, enum lpo_dtype dt, void *dr, const void *dy,
    int64_t n, int64_t hw, int64_t c, int add)
{
	double t = before(be);
	int rc = tr.real->add_rows_bwd(be, dt, dr, dy, n, hw, c, add);

	after(be, t, "add_rows_bwd", 0, size(dt, n * hw * c), "%lld @ %lld%s",
	    L(c), L(hw), add ? " +add" : "");
	return rc;
}

static int
t_upsample_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho, int64_t wo)
{
	double t = before(be);
	int rc = tr.real->upsample_fwd(be, dt, y, x, n, h, w, c, ho, wo);

	after(be, t, "upsample_fwd", 0, size(dt, n * c * (h * w + ho * wo)),
	    "%lld @ %lldx%lld", L(c), L(h), L(w));
	return rc;
}

static int
t_upsample_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, const void *dy,
    int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho, int64_t wo,
    int add)
{
	double t = before(be);
	int rc = tr.real->upsample_bwd(be, dt, dx, dy, n, h, w, c, ho, wo,
	    add);

	after(be, t, "upsample_bwd", 0, size(dt, n * c * (h * w + ho * wo)),
	    "%lld @ %lldx%lld%s", L(c), L(h), L(w), add ? " +add" : "");
	return rc;
}

static int
t_concat_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    const void *b, int64_t m, int64_t ca, int64_t cb)
{
	double t = before(be);
	int rc = tr.real->concat_fwd(be, dt, y, a, b, m, ca, cb);

	after(be, t, "concat_fwd", 0, size(dt, 2 * m * (ca + cb)),
	    "%lld x %lld+%lld", L(m), L(ca), L(cb));
	return rc;
}

static int
t_concat_bwd(lpo_backend *be, enum lpo_dtype dt, void *da, void *db,
    const void *dy, int64_t m, int64_t ca, int64_t cb, int add)
{
	double t = before(be);
	int rc = tr.real->concat_bwd(be, dt, da, db, dy, m, ca, cb, add);

	after(be, t, "concat_bwd", 0, size(dt, 2 * m * ((da != NULL ? ca : 0)
	    + (db != NULL ? cb : 0))), "%lld x %lld+%lld%s", L(m), L(ca),
	    L(cb), add ? " +add" : "");
	return rc;
}

static int
t_mean_pool_fwd(lpo_backend *be, enum lpo_dtype dt, float *y, const void *x,
    int64_t n, int64_t hw, int64_t c)
{
	double t = before(be);
	int rc = tr.real->mean_pool_fwd(be, dt, y, x, n, hw, c);

	after(be, t, "mean_pool_fwd", 0, size(dt, n * hw * c), "%lld @ %lld",
	    L(c), L(hw));
	return rc;
}

static int
t_gather_rows_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const int32_t *index, int64_t n, int64_t c, int64_t rows)
{
	double t = before(be);
	int rc = tr.real->gather_rows_fwd(be, dt, y, x, index, n, c, rows);

	after(be, t, "gather_rows_fwd", 0, size(dt, 2 * n * c),
	    "%lld rows of %lld", L(n), L(c));
	return rc;
}

static int
t_gather_rows_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const int32_t *index, int64_t n, int64_t c, int64_t rows,
    int add)
{
	double t = before(be);
	int rc = tr.real->gather_rows_bwd(be, dt, dx, dy, index, n, c, rows,
	    add);

	after(be, t, "gather_rows_bwd", 0, size(dt, 2 * n * c),
	    "%lld rows of %lld%s", L(n), L(c), add ? " +add" : "");
	return rc;
}

static int
t_convert(lpo_backend *be, void *dst, enum lpo_dtype dst_dt, const void *src,
    enum lpo_dtype src_dt, int64_t count)
{
	double t = before(be);
	int rc = tr.real->convert(be, dst, dst_dt, src, src_dt, count);

	after(be, t, "convert", 0, size(dst_dt, count) + size(src_dt, count),
	    "%lld", L(count));
	return rc;
}

static int
t_convert_acc(lpo_backend *be, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t count)
{
	double t = before(be);
	int rc = tr.real->convert_acc(be, dst, dst_dt, src, src_dt, count);

	after(be, t, "convert_acc", 0, 2 * size(dst_dt, count) +
	    size(src_dt, count), "%lld", L(count));
	return rc;
}

/* ------------------------------------------------------------------ table */

static void
fill(struct lpo_kernels *k)
{
	k->graph_begin = NULL;
	k->zero = t_zero;
	k->copy = t_copy;
	k->upload = t_upload;
	if (k->lora_fwd != NULL)
		k->lora_fwd = t_lora_fwd;
	if (k->lora_bwd != NULL)
		k->lora_bwd = t_lora_bwd;
	k->linear_fwd = t_linear_fwd;
	k->linear_bwd_data = t_linear_bwd_data;
	k->linear_bwd_weight = t_linear_bwd_weight;
	k->conv_fwd = t_conv_fwd;
	k->conv_bwd_data = t_conv_bwd_data;
	k->conv_bwd_weight = t_conv_bwd_weight;
	k->attention_fwd = t_attention_fwd;
	k->attention_bwd = t_attention_bwd;
	k->group_norm_fwd = t_group_norm_fwd;
	k->group_norm_bwd = t_group_norm_bwd;
	k->layer_norm_fwd = t_layer_norm_fwd;
	k->layer_norm_bwd = t_layer_norm_bwd;
	k->act_fwd = t_act_fwd;
	k->act_bwd = t_act_bwd;
	k->geglu_fwd = t_geglu_fwd;
	k->geglu_bwd = t_geglu_bwd;
	k->add = t_add;
	k->acc = t_acc;
	k->add_rows_fwd = t_add_rows_fwd;
	k->add_rows_bwd = t_add_rows_bwd;
	k->upsample_fwd = t_upsample_fwd;
	k->upsample_bwd = t_upsample_bwd;
	k->concat_fwd = t_concat_fwd;
	k->concat_bwd = t_concat_bwd;
	k->mean_pool_fwd = t_mean_pool_fwd;
	k->gather_rows_fwd = t_gather_rows_fwd;
	k->gather_rows_bwd = t_gather_rows_bwd;
	k->convert = t_convert;
	k->convert_acc = t_convert_acc;
}

/* The least time of the smallest call. */
static double
floor_of(struct bench *b)
{
	double s, least = 1;
	int i;

	for (i = 0; i < 50; i++) {
		s = before(&b->be);
		tr.real->zero(&b->be, b->normals[0], 4);
		tr.real->sync(&b->be);
		s = lpo_now_s() - s;
		least = s < least ? s : least;
	}
	return least;
}

void
trace_begin(struct bench *b)
{
	tr.real = b->be.k;
	tr.table = *tr.real;
	tr.n = 0;
	tr.floor_s = floor_of(b);
	tr.entry = lpo_alloc(b->ctx, ENTRIES, sizeof(*tr.entry));
	if (tr.entry == NULL)
		return;
	fill(&tr.table);
	b->be.k = &tr.table;
}

void
trace_forget(void)
{
	tr.n = 0;
}

void
trace_end(struct bench *b)
{
	b->be.k = tr.real;
	lpo_free(tr.entry);
	tr.entry = NULL;
}

static int
by_time(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	return x->s > y->s ? -1 : x->s < y->s;
}

/* Sums over all shapes of an op, then each shape. */
static void
sum_ops(struct entry *sum, int *n)
{
	int i, k;

	for (*n = 0, i = 0; i < tr.n; i++) {
		for (k = 0; k < *n; k++)
			if (strcmp(sum[k].name, tr.entry[i].name) == 0)
				break;
		if (k == *n) {
			memset(&sum[(*n)++], 0, sizeof(*sum));
			sum[k].name = tr.entry[i].name;
			memcpy(sum[k].shape, "all", 4);
		}
		sum[k].calls += tr.entry[i].calls;
		sum[k].s += tr.entry[i].s;
		sum[k].flops += tr.entry[i].flops;
		sum[k].moved += tr.entry[i].moved;
	}
}

static void
put_entries(struct bench *b, struct entry *e, int n, struct bench_line *l,
    int walks)
{
	int i;

	qsort(e, (size_t)n, sizeof(*e), by_time);
	for (i = 0; i < n; i++) {
		l->name = e[i].name;
		snprintf(l->shape, sizeof(l->shape), "%.60s, %lld times",
		    e[i].shape, (long long)(e[i].calls / walks));
		l->ms = 1e3 * e[i].s / walks;
		l->flops = e[i].flops / walks;
		l->moved = e[i].moved / walks;
		bench_put(b, l);
	}
}

void
trace_put(struct bench *b, const char *section, enum lpo_dtype dt,
    int64_t rows, int walks)
{
	struct bench_line l = { .section = section, .dt = dt, .rows = rows };
	struct entry *sum = lpo_alloc(b->ctx, ENTRIES, sizeof(*sum));
	double all = 0;
	int64_t calls = 0;
	int n, i;

	if (sum == NULL || tr.entry == NULL)
		return;
	for (i = 0; i < tr.n; i++) {
		all += tr.entry[i].s;
		calls += tr.entry[i].calls;
	}
	bench_say("%s: %.2f ms in %lld calls, one by one; taken off each: "
	    "%.1f us", section, 1e3 * all / walks, (long long)(calls / walks),
	    1e6 * tr.floor_s);
	sum_ops(sum, &n);
	put_entries(b, sum, n, &l, walks);
	put_entries(b, tr.entry, tr.n, &l, walks);
	lpo_free(sum);
}
