/*
 * Writing safetensors: metadata sorted, tensors by the size of their elements
 * (largest first) and then by name, header padded to 8 bytes.  So every
 * tensor is aligned and equal content gives equal files.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/half.h"
#include "lib/base/json.h"
#include "lib/io/safetensors.h"

struct item {
	char *key;
	enum lpo_dtype dt;
	int ndim;
	int64_t shape[LPO_ST_DIMS];
	int64_t count, bytes;
	const void *data;
	int from_f32;		/* data is f32, to be stored as dt */
	const struct lpo_st_tensor *from;	/* or it is there, in ... */
	const lpo_st *file;
	int (*get)(void *, int64_t, float *, int64_t);	/* or NULL; data: arg */
};

struct lpo_stw {
	lpo_ctx *c;
	json_t *meta;
	struct item *item;
	int64_t n, room;
};

int
lpo_stw_new(lpo_ctx *c, lpo_stw **out)
{
	lpo_stw *w = lpo_alloc(c, 1, sizeof(*w));

	*out = NULL;
	if (w == NULL)
		return LPO_ENOMEM;
	w->c = c;
	if ((w->meta = json_object()) == NULL) {
		lpo_free(w);
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	}
	*out = w;
	return 0;
}

void
lpo_stw_free(lpo_stw *w)
{
	int64_t i;

	if (w == NULL)
		return;
	for (i = 0; i < w->n; i++)
		lpo_free(w->item[i].key);
	lpo_free(w->item);
	json_decref(w->meta);
	lpo_free(w);
}

int
lpo_stw_meta(lpo_stw *w, const char *key, const char *value)
{
	return lpo_json_set(w->c, w->meta, key, json_string(value));
}

static int
add(lpo_stw *w, const char *key, enum lpo_dtype dt, int ndim,
    const int64_t *shape, const void *data, int from_f32)
{
	struct item *grown, *it;
	int i;

	if (ndim < 0 || ndim > LPO_ST_DIMS ||
	    strcmp(key, "__metadata__") == 0)
		return lpo_fail(w->c, LPO_EINVAL, "cannot store '%s'", key);
	if (w->n == w->room) {
		grown = lpo_realloc(w->c, w->item,
		    (size_t)(w->room * 2 + 64) * sizeof(*grown));
		if (grown == NULL)
			return LPO_ENOMEM;
		w->item = grown;
		w->room = w->room * 2 + 64;
	}
	it = &w->item[w->n];
	memset(it, 0, sizeof(*it));
	it->dt = dt;
	it->ndim = ndim;
	it->data = data;
	it->from_f32 = from_f32;
	it->count = 1;
	for (i = 0; i < ndim; i++) {
		it->shape[i] = shape[i];
		if (shape[i] < 0 || __builtin_mul_overflow(it->count,
		    shape[i], &it->count))
			return lpo_fail(w->c, LPO_EINVAL,
			    "'%s' has an impossible shape", key);
	}
	if (__builtin_mul_overflow(it->count, (int64_t)lpo_dtype_bytes(dt),
	    &it->bytes))
		return lpo_fail(w->c, LPO_EINVAL, "'%s' is too large", key);
	if ((it->key = lpo_strdup(w->c, key)) == NULL)
		return LPO_ENOMEM;
	w->n++;
	return 0;
}

int
lpo_stw_add(lpo_stw *w, const char *key, enum lpo_dtype dt, int ndim,
    const int64_t *shape, const void *data)
{
	return add(w, key, dt, ndim, shape, data, 0);
}

int
lpo_stw_add_made(lpo_stw *w, const char *key, enum lpo_dtype stored, int ndim,
    const int64_t *shape, int (*get)(void *, int64_t, float *, int64_t),
    void *arg)
{
	int rc = lpo_stw_add_f32(w, key, stored, ndim, shape, arg);

	if (rc == 0)
		w->item[w->n - 1].get = get;
	return rc;
}

int
lpo_stw_add_f32(lpo_stw *w, const char *key, enum lpo_dtype stored, int ndim,
    const int64_t *shape, const float *data)
{
	if (stored != LPO_F32 && stored != LPO_F16 && stored != LPO_BF16)
		return lpo_fail(w->c, LPO_EINVAL, "'%s': f32 cannot be stored "
		    "as %s", key, lpo_dtype_name(stored));
	return add(w, key, stored, ndim, shape, data, stored != LPO_F32);
}

int
lpo_stw_add_tensor(lpo_stw *w, const char *key, enum lpo_dtype stored,
    const lpo_st *st, const struct lpo_st_tensor *t)
{
	int rc = lpo_stw_add_f32(w, key, stored, t->ndim, t->shape, NULL);

	if (rc == 0) {
		w->item[w->n - 1].file = st;
		w->item[w->n - 1].from = t;
	}
	return rc;
}

/* The reference's order of types: by size, then as its list has them. */
static int
rank(enum lpo_dtype dt)
{
	switch (dt) {
	case LPO_I64: return 0;
	case LPO_F64: return 1;
	case LPO_F32: return 2;
	case LPO_I32: return 3;
	case LPO_BF16: return 4;
	case LPO_F16: return 5;
	default: return 6;
	}
}

static int
by_rank_and_key(const void *a, const void *b)
{
	const struct item *x = a, *y = b;

	if (x->dt != y->dt)
		return rank(x->dt) - rank(y->dt);
	return strcmp(x->key, y->key);
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int
check_unique(lpo_stw *w)
{
	char **keys = lpo_alloc(w->c, (size_t)w->n, sizeof(*keys));
	int64_t i;
	int rc = 0;

	if (keys == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < w->n; i++)
		keys[i] = w->item[i].key;
	qsort(keys, (size_t)w->n, sizeof(*keys), by_name);
	for (i = 1; i < w->n && rc == 0; i++)
		if (strcmp(keys[i - 1], keys[i]) == 0)
			rc = lpo_fail(w->c, LPO_EINVAL, "tensor '%s' twice",
			    keys[i]);
	lpo_free(keys);
	return rc;
}

struct text {
	char *p;
	size_t n, room;
};

__attribute__((format(printf, 3, 4))) static int
append(lpo_ctx *c, struct text *t, const char *fmt, ...)
{
	va_list ap;
	size_t n;
	char *q;

	va_start(ap, fmt);
	n = (size_t)vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (t->n + n + 1 > t->room) {
		t->room = (t->n + n) * 2 + 1024;
		if ((q = lpo_realloc(c, t->p, t->room)) == NULL)
			return LPO_ENOMEM;
		t->p = q;
	}
	va_start(ap, fmt);
	vsnprintf(t->p + t->n, n + 1, fmt, ap);
	va_end(ap);
	t->n += n;
	return 0;
}

/* Text as a JSON string, quotes included. */
static char *
quoted(lpo_ctx *c, const char *s)
{
	json_t *v = json_string(s);
	char *q = NULL;

	if (v == NULL && !lpo_utf8_valid(s, strlen(s)))
		lpo_fail(c, LPO_EINVAL, "'%s' is not UTF-8", s);
	else if (v == NULL)
		lpo_fail(c, LPO_ENOMEM, "out of memory");
	else
		q = lpo_json_dumps(c, v);
	json_decref(v);
	return q;
}

static int
append_entry(lpo_ctx *c, struct text *t, const struct item *it, int64_t at)
{
	char *key = quoted(c, it->key);
	int i, rc;

	if (key == NULL)
		return lpo_errcode(c);
	rc = append(c, t, "%s%s:{\"dtype\":\"%s\",\"shape\":[",
	    t->n > 1 ? "," : "", key, lpo_dtype_name(it->dt));
	lpo_free(key);
	for (i = 0; i < it->ndim && rc == 0; i++)
		rc = append(c, t, "%s%lld", i ? "," : "",
		    (long long)it->shape[i]);
	return rc != 0 ? rc : append(c, t, "],\"data_offsets\":[%lld,%lld]}",
	    (long long)at, (long long)(at + it->bytes));
}

static int
header(lpo_stw *w, lpo_out *o)
{
	struct text t = { NULL, 0, 0 };
	int64_t i, at = 0;
	char *meta = NULL, len[8];
	int k, rc = append(w->c, &t, "{");

	if (rc == 0 && json_object_size(w->meta) > 0) {
		meta = lpo_json_dumps(w->c, w->meta);
		rc = meta == NULL ? LPO_ENOMEM :
		    append(w->c, &t, "\"__metadata__\":%s", meta);
		lpo_free(meta);
	}
	for (i = 0; i < w->n && rc == 0; at += w->item[i++].bytes)
		rc = append_entry(w->c, &t, &w->item[i], at);
	if (rc == 0)
		rc = append(w->c, &t, "}");
	while (rc == 0 && t.n % 8 != 0)
		rc = append(w->c, &t, " ");
	for (k = 0; k < 8; k++)
		len[k] = (char)(t.n >> 8 * k);
	if (rc == 0 && (rc = lpo_out_write(o, len, 8)) == 0)
		rc = lpo_out_write(o, t.p, t.n);
	lpo_free(t.p);
	return rc;
}

#define BLOCK	2048

static int
put_f32(lpo_out *o, enum lpo_dtype dt, const float *x, int64_t count)
{
	uint16_t half[BLOCK];
	int64_t i, k, n;
	int rc = 0;

	if (dt == LPO_F32)
		return lpo_out_write(o, x, (size_t)count * sizeof(*x));
	for (i = 0; i < count && rc == 0; i += n) {
		n = count - i < BLOCK ? count - i : BLOCK;
		for (k = 0; k < n; k++)
			half[k] = dt == LPO_F16 ? lpo_f32_to_f16(x[i + k]) :
			    lpo_f32_to_bf16(x[i + k]);
		rc = lpo_out_write(o, half, (size_t)n * 2);
	}
	return rc;
}

/* By way of f32, a block at a time: the file may be larger than memory. */
static int
put_tensor(lpo_ctx *c, lpo_out *o, const struct item *it)
{
	struct lpo_st_tensor part = *it->from;
	const uint8_t *p = it->from->data;
	float x[BLOCK];
	int64_t i, n, each;
	int rc = 0;

	each = it->count > 0 ? it->from->bytes / it->count : 0;
	for (i = 0; i < it->count && rc == 0; i += n) {
		n = it->count - i < BLOCK ? it->count - i : BLOCK;
		part.data = p + i * each;
		part.count = n;
		part.bytes = n * each;
		if ((rc = lpo_st_f32(c, x, &part)) == 0)
			rc = put_f32(o, it->dt, x, n);
	}
	lpo_st_drop(it->file, it->from);
	return rc;
}

#define MADE 4194304	/* elements at a time */

static int
put_made(lpo_ctx *c, lpo_out *o, const struct item *it)
{
	int64_t i, n, room = it->count < MADE ? it->count : MADE;
	float *x = lpo_alloc(c, (size_t)(room ? room : 1), sizeof(*x));
	int rc = x == NULL ? LPO_ENOMEM : 0;

	for (i = 0; i < it->count && rc == 0; i += n) {
		n = it->count - i < MADE ? it->count - i : MADE;
		/* who makes it may change it: arg is not ours */
		rc = it->get((void *)(uintptr_t)it->data, i, x, n);
		if (rc == 0)
			rc = put_f32(o, it->dt, x, n);
	}
	lpo_free(x);
	return rc;
}

static int
put_item(lpo_ctx *c, lpo_out *o, const struct item *it)
{
	if (it->get != NULL)
		return put_made(c, o, it);
	if (it->from != NULL)
		return put_tensor(c, o, it);
	if (it->from_f32)
		return put_f32(o, it->dt, it->data, it->count);
	return lpo_out_write(o, it->data, (size_t)it->bytes);
}

int
lpo_stw_write_out(lpo_stw *w, lpo_out *o)
{
	int64_t i;
	int rc;

	if ((rc = check_unique(w)) != 0)
		return rc;
	if (w->n > 0)
		qsort(w->item, (size_t)w->n, sizeof(*w->item),
		    by_rank_and_key);
	if ((rc = header(w, o)) != 0)
		return rc;
	for (i = 0; i < w->n && rc == 0; i++)
		rc = put_item(w->c, o, &w->item[i]);
	return rc;
}

int
lpo_stw_write(lpo_stw *w, const char *path)
{
	lpo_out *o;
	int rc;

	if ((rc = lpo_out_open(w->c, &o, path)) != 0)
		return rc;
	if ((rc = lpo_stw_write_out(w, o)) != 0) {
		lpo_out_abort(o);
		return rc;
	}
	return lpo_out_commit(o);
}
