/* Weights by key, from one safetensors file or many, into parameters. */
#include "lib/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/model/random.h"

#define KEY_MAX 512

const char *
lpo_pool_add(lpo_ctx *c, struct lpo_pool *pool, const char *fmt, ...)
{
	char buf[KEY_MAX], **s;
	int64_t cap;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	if (pool->n == pool->cap) {
		cap = pool->cap ? 2 * pool->cap : 64;
		s = lpo_realloc(c, pool->s, (size_t)cap * sizeof(*s));
		if (s == NULL)
			return NULL;
		pool->s = s;
		pool->cap = cap;
	}
	if ((pool->s[pool->n] = lpo_strdup(c, buf)) == NULL)
		return NULL;
	return pool->s[pool->n++];
}

void
lpo_pool_free(struct lpo_pool *pool)
{
	int64_t i;

	for (i = 0; i < pool->n; i++)
		lpo_free(pool->s[i]);
	lpo_free(pool->s);
	memset(pool, 0, sizeof(*pool));
}

/* A tensor under its present-day key. */
struct entry {
	char *key;
	const struct lpo_st_tensor *t;
	int used;
};

struct lpo_weights {
	lpo_ctx *ctx;
	lpo_params *params;
	struct lpo_pool *pool;
	lpo_st *st;		/* NULL: a random model */
	struct lpo_random random;
	char *part;		/* its folder's name: "unet" */
	struct entry *e;	/* sorted by key */
	int64_t n;
	int rc;			/* sticky */
};

static int
by_key(const void *a, const void *b)
{
	return strcmp(((const struct entry *)a)->key,
	    ((const struct entry *)b)->key);
}

/* List all tensors under the keys they would have today. */
static int
index_keys(lpo_weights *w, int (*rename)(char *, size_t, const char *))
{
	char buf[KEY_MAX];
	const struct lpo_st_tensor *t;
	const char *key;
	int64_t i, n = lpo_st_count(w->st);

	w->e = lpo_alloc(w->ctx, (size_t)(n ? n : 1), sizeof(*w->e));
	if (w->e == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++) {
		t = lpo_st_at(w->st, i);
		key = t->key;
		if (strncmp(key, "module.", 7) == 0)
			key += 7;
		if (rename != NULL && rename(buf, sizeof(buf), key))
			key = buf;
		w->e[i].t = t;
		if ((w->e[i].key = lpo_strdup(w->ctx, key)) == NULL)
			return LPO_ENOMEM;
		w->n = i + 1;
	}
	qsort(w->e, (size_t)n, sizeof(*w->e), by_key);
	for (i = 1; i < n; i++)
		if (strcmp(w->e[i - 1].key, w->e[i].key) == 0)
			return lpo_fail(w->ctx, LPO_EFORMAT,
			    "%s: '%s' and '%s' are the same parameter",
			    lpo_st_path(w->st), w->e[i - 1].t->key,
			    w->e[i].t->key);
	return 0;
}

/* "random:sd15/unet" */
static int
open_random(lpo_weights *w, const char *dir)
{
	int rc;

	if ((rc = lpo_random_parse(w->ctx, &w->random, dir)) < 0)
		return rc;
	w->part = lpo_asprintf(w->ctx, "%.*s",
	    (int)strcspn(w->random.rest, "/"), w->random.rest);
	return w->part == NULL ? LPO_ENOMEM : 0;
}

int
lpo_weights_file(lpo_ctx *c, lpo_st **out, const char *dir, const char *stem)
{
	const char *variant = lpo_ctx_variant(c);
	char *path = NULL;
	int rc;

	*out = NULL;
	if (variant == NULL)
		return lpo_st_open_stem(c, out, dir, stem, NULL);
	if ((rc = lpo_st_stem_path(c, &path, dir, stem, variant)) != 0)
		return rc;
	if (path == NULL) {
		lpo_notice(c, "'%s' has no %s files: the plain ones are used",
		    dir, variant);
		return lpo_st_open_stem(c, out, dir, stem, NULL);
	}
	rc = lpo_st_open(c, out, path);
	lpo_free(path);
	return rc;
}

int
lpo_weights_open(lpo_ctx *c, lpo_weights **out, lpo_params *params,
    struct lpo_pool *pool, const char *dir, const char *stem,
    int (*rename)(char *, size_t, const char *))
{
	lpo_weights *w;
	int rc;

	*out = NULL;
	if ((w = lpo_alloc(c, 1, sizeof(*w))) == NULL)
		return LPO_ENOMEM;
	w->ctx = c;
	w->params = params;
	w->pool = pool;
	rc = lpo_random_is(dir) ? open_random(w, dir) :
	    lpo_weights_file(c, &w->st, dir, stem);
	if (rc == 0 && w->st != NULL)
		rc = index_keys(w, rename);
	if (rc < 0) {
		lpo_weights_close(w);
		return rc;
	}
	*out = w;
	return 0;
}

void
lpo_weights_close(lpo_weights *w)
{
	int64_t i;

	if (w == NULL)
		return;
	for (i = 0; i < w->n; i++)
		lpo_free(w->e[i].key);
	lpo_free(w->e);
	lpo_free(w->part);
	lpo_st_close(w->st);
	lpo_free(w);
}

void
lpo_weights_ignore(lpo_weights *w, const char *prefix)
{
	int64_t i;

	for (i = 0; i < w->n; i++)
		if (strncmp(w->e[i].key, prefix, strlen(prefix)) == 0)
			w->e[i].used = 1;
}

static struct entry *
find(const lpo_weights *w, const char *key)
{
	struct entry want = { .key = (char *)(uintptr_t)key };

	return w->n == 0 ? NULL :
	    bsearch(&want, w->e, (size_t)w->n, sizeof(*w->e), by_key);
}

int
lpo_weights_has(const lpo_weights *w, const char *key)
{
	return find(w, key) != NULL;
}

int
lpo_weights_error(const lpo_weights *w)
{
	return w->rc;
}

/* "[3,4,1,1]" */
static void
shape_text(char *out, size_t cap, int rank, const int64_t *shape)
{
	size_t at = 0;
	int i;

	out[0] = '\0';
	for (i = 0; i < rank && at < cap; i++)
		at += (size_t)snprintf(out + at, cap - at, "%s%lld",
		    i ? "," : "", (long long)shape[i]);
}

/* Equal but for ones at the end: [o, i] and [o, i, 1, 1] are one matrix. */
static int
shape_fits(const struct lpo_st_tensor *t, enum lpo_param_kind kind, int rank,
    const int64_t *shape)
{
	int i, n = t->ndim > rank ? t->ndim : rank;

	if (t->ndim != rank && kind != LPO_MATRIX && kind != LPO_KERNEL)
		return 0;
	for (i = 0; i < n; i++)
		if ((i < t->ndim ? t->shape[i] : 1) !=
		    (i < rank ? shape[i] : 1))
			return 0;
	return 1;
}

static void
get_random(const void *arg, int64_t first, float *out, int64_t n)
{
	lpo_random_draw(arg, first, out, n);
}

static lpo_param *
load_random(lpo_weights *w, enum lpo_param_kind kind, int rank,
    const int64_t *shape, const char *key)
{
	struct lpo_random_tensor t;
	int64_t bad;

	lpo_random_tensor(&w->random, w->part, &t, key, rank, shape);
	return lpo_param_make(w->params, key, kind, rank, shape, get_random,
	    &t, &bad);
}

static void
get_file(const void *arg, int64_t first, float *out, int64_t n)
{
	const struct lpo_st_tensor *t = arg;

	lpo_st_f32_part(out, t, first, n);
}

void
lpo_weights_get(const lpo_weights *w, const lpo_param *p, int64_t first,
    float *out, int64_t n)
{
	struct lpo_random_tensor t;

	if (w->st != NULL) {
		get_file(find(w, p->key)->t, first, out, n);
		return;
	}
	lpo_random_tensor(&w->random, w->part, &t, p->key, p->rank, p->shape);
	lpo_random_draw(&t, first, out, n);
}

int
lpo_weights_check(const lpo_weights *w, const lpo_param *p, int64_t first,
    const float *x, int64_t n, int f16)
{
	const char *path = w->st != NULL ? lpo_st_path(w->st) : w->part;
	/* 65520 and more rounds to infinity */
	float most = f16 ? 65520 : INFINITY;
	int64_t i;

	for (i = 0; i < n; i++)
		if (!(fabsf(x[i]) < most))
			return lpo_fail(w->ctx, LPO_EFORMAT, "%s: element "
			    "%lld of '%s' is %s", path, (long long)(first +
			    i), p->key, isfinite(x[i]) ? "more than f16 "
			    "holds" : "not finite");
	return 0;
}

static int
load(lpo_weights *w, lpo_param **p, enum lpo_param_kind kind, int rank,
    const int64_t *shape, const char *key)
{
	struct entry *e;
	char have[96], want[96];
	int64_t bad;

	if (w->st == NULL) {
		*p = load_random(w, kind, rank, shape, key);
		return *p == NULL ? lpo_errcode(w->ctx) : 0;
	}
	if ((e = find(w, key)) == NULL)
		return lpo_fail(w->ctx, LPO_EFORMAT, "%s: '%s' is missing",
		    lpo_st_path(w->st), key);
	e->used = 1;
	if (!shape_fits(e->t, kind, rank, shape)) {
		shape_text(have, sizeof(have), e->t->ndim, e->t->shape);
		shape_text(want, sizeof(want), rank, shape);
		return lpo_fail(w->ctx, LPO_EFORMAT,
		    "%s: '%s' has shape [%s], config.json says [%s]",
		    lpo_st_path(w->st), e->t->key, have, want);
	}
	if (e->t->dtype != LPO_F32 && e->t->dtype != LPO_F16 &&
	    e->t->dtype != LPO_BF16)
		return lpo_fail(w->ctx, LPO_EFORMAT,
		    "%s: '%s' is %s, not F32, F16 or BF16",
		    lpo_st_path(w->st), e->t->key, e->t->dtype_name);
	*p = lpo_param_make(w->params, key, kind, rank, shape, get_file, e->t,
	    &bad);
	lpo_st_drop(w->st, e->t);
	if (*p == NULL)
		return lpo_errcode(w->ctx);
	if (bad >= 0)
		return lpo_fail(w->ctx, LPO_EFORMAT,
		    "%s: element %lld of '%s' is not finite",
		    lpo_st_path(w->st), (long long)bad, e->t->key);
	return 0;
}

lpo_param *
lpo_weights_param(lpo_weights *w, enum lpo_param_kind kind, int rank,
    const int64_t *shape, const char *key)
{
	lpo_param *p = NULL;

	if (w->rc == 0 && lpo_ctx_stopped(w->ctx))
		w->rc = lpo_fail(w->ctx, LPO_ESTOP, "stopped");
	if (w->rc == 0)
		w->rc = load(w, &p, kind, rank, shape, key);
	return w->rc == 0 ? p : NULL;
}

/* NAME.weight or NAME.bias */
static lpo_param *
part(lpo_weights *w, const char *name, const char *what,
    enum lpo_param_kind kind, int rank, const int64_t *shape)
{
	char key[KEY_MAX + 16];

	if (w->rc < 0)
		return NULL;
	snprintf(key, sizeof(key), "%s.%s", name, what);
	return lpo_weights_param(w, kind, rank, shape, key);
}

static const char *
pool_name(lpo_weights *w, const char *fmt, va_list ap)
{
	char buf[KEY_MAX];
	const char *s;

	vsnprintf(buf, sizeof(buf), fmt, ap);
	s = lpo_pool_add(w->ctx, w->pool, "%s", buf);
	if (s == NULL && w->rc == 0)
		w->rc = LPO_ENOMEM;
	return s;
}

void
lpo_weights_linear(lpo_weights *w, lpo_linear_layer *l, int64_t in,
    int64_t out, int bias, int as_conv, const char *fmt, ...)
{
	const int64_t shape[4] = { out, in, 1, 1 };
	va_list ap;

	va_start(ap, fmt);
	l->name = pool_name(w, fmt, ap);
	va_end(ap);
	l->w = part(w, l->name, "weight", LPO_MATRIX, as_conv ? 4 : 2, shape);
	if (bias)
		l->b = part(w, l->name, "bias", LPO_VECTOR, 1, &out);
}

void
lpo_weights_conv(lpo_weights *w, lpo_conv_layer *l, int64_t in, int64_t out,
    int64_t k, int64_t stride, const char *fmt, ...)
{
	const int64_t shape[4] = { out, in, k, k };
	va_list ap;

	va_start(ap, fmt);
	l->name = pool_name(w, fmt, ap);
	va_end(ap);
	l->stride = stride;
	l->pad = k / 2;
	l->w = part(w, l->name, "weight", LPO_KERNEL, 4, shape);
	l->b = part(w, l->name, "bias", LPO_VECTOR, 1, &out);
}

void
lpo_weights_norm(lpo_weights *w, lpo_norm_layer *l, int64_t c, int64_t groups,
    float eps, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	l->name = pool_name(w, fmt, ap);
	va_end(ap);
	l->groups = groups;
	l->eps = eps;
	l->gamma = part(w, l->name, "weight", LPO_VECTOR, 1, &c);
	l->beta = part(w, l->name, "bias", LPO_VECTOR, 1, &c);
}

int
lpo_weights_finish(lpo_weights *w)
{
	const char *first = NULL;
	int64_t i, n = 0;

	if (w->rc < 0)
		return w->rc;
	/* w->n is 0 with a random model: it has no keys of its own */
	for (i = 0; i < w->n; i++) {
		/* buffers that old transformers versions stored: 0, 1, ... */
		if (w->e[i].used ||
		    lpo_ends_with(w->e[i].key, "position_ids"))
			continue;
		if (n++ == 0)
			first = w->e[i].t->key;
	}
	if (n > 0)
		lpo_notice(w->ctx, "%s: %lld unknown key%s ignored, first '%s'",
		    lpo_st_path(w->st), (long long)n, n == 1 ? "" : "s",
		    first);
	return 0;
}
