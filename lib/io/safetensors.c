/*
 * Reading safetensors: nothing from the header is believed before it is
 * checked, in the reference implementation's order (spec/models.md 1.7).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/half.h"
#include "lib/base/json.h"
#include "lib/io/safetensors_priv.h"

#define HEADER_LIMIT	100000000

static const struct {
	const char *name;
	int bits;
	int dtype;	/* enum lpo_dtype, -1: known but not used */
} kinds[] = {
	{ "F32", 32, LPO_F32 }, { "BF16", 16, LPO_BF16 },
	{ "F16", 16, LPO_F16 }, { "F64", 64, LPO_F64 },
	{ "I64", 64, LPO_I64 }, { "I32", 32, LPO_I32 }, { "U8", 8, LPO_U8 },
	{ "BOOL", 8, -1 }, { "I8", 8, -1 }, { "I16", 16, -1 },
	{ "U16", 16, -1 }, { "U32", 32, -1 }, { "U64", 64, -1 },
	{ "C64", 64, -1 }, { "F8_E4M3", 8, -1 }, { "F8_E5M2", 8, -1 },
	{ "F8_E4M3FNUZ", 8, -1 }, { "F8_E5M2FNUZ", 8, -1 },
	{ "F8_E8M0", 8, -1 }, { "F4", 4, -1 }, { "F6_E2M3", 6, -1 },
	{ "F6_E3M2", 6, -1 }
};
#define N_KINDS	((int)(sizeof(kinds) / sizeof(*kinds)))

int
lpo_st_set_dtype(struct lpo_st_tensor *t, const char *name)
{
	int k;

	for (k = 0; k < N_KINDS; k++)
		if (strcmp(kinds[k].name, name) == 0)
			break;
	if (k == N_KINDS)
		return -1;
	t->dtype = kinds[k].dtype;
	snprintf(t->dtype_name, sizeof(t->dtype_name), "%s", kinds[k].name);
	return kinds[k].bits;
}

/* "[2,3]" */
static void
shape_text(char *b, size_t size, int ndim, const int64_t *shape)
{
	size_t n = 0;
	int i;

	b[0] = '\0';
	n += (size_t)snprintf(b + n, size - n, "[");
	for (i = 0; i < ndim && n + 24 < size; i++)
		n += (size_t)snprintf(b + n, size - n, "%s%lld", i ? "," : "",
		    (long long)shape[i]);
	snprintf(b + n, size - n, "]");
}

/* A non-negative integer; JSON reals and negatives are refused. */
static int
get_size(int64_t *out, const json_t *v)
{
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return -1;
	*out = json_integer_value(v);
	return 0;
}

/* Steps 3 and 5 of models.md 1.7 for one entry; offsets into t->data. */
static int
parse_entry(lpo_ctx *c, struct lpo_st_tensor *t, int64_t off[2],
    const char *file, const json_t *e)
{
	const json_t *dtype = json_object_get(e, "dtype");
	const json_t *shape = json_object_get(e, "shape");
	const json_t *offs = json_object_get(e, "data_offsets");
	int64_t bits;
	size_t i;
	int per;

	if (!json_is_object(e) || json_object_size(e) != 3 ||
	    !json_is_string(dtype) || !json_is_array(shape) ||
	    !json_is_array(offs) || json_array_size(offs) != 2)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' is not exactly "
		    "dtype, shape and data_offsets", file, t->key);
	if ((per = lpo_st_set_dtype(t, json_string_value(dtype))) < 0)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' has unknown dtype "
		    "'%.40s'", file, t->key, json_string_value(dtype));
	if (json_array_size(shape) > LPO_ST_DIMS)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' has more than %d "
		    "dimensions", file, t->key, LPO_ST_DIMS);
	t->ndim = (int)json_array_size(shape);
	t->count = 1;
	for (i = 0; i < (size_t)t->ndim; i++)
		if (get_size(&t->shape[i], json_array_get(shape, i)) != 0 ||
		    __builtin_mul_overflow(t->count, t->shape[i], &t->count))
			return lpo_fail(c, LPO_EFORMAT, "%s: '%s' has an "
			    "impossible shape", file, t->key);
	if (__builtin_mul_overflow(t->count, (int64_t)per, &bits) ||
	    bits % 8 != 0)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' has an impossible "
		    "size", file, t->key);
	t->bytes = bits / 8;
	if (get_size(&off[0], json_array_get(offs, 0)) != 0 ||
	    get_size(&off[1], json_array_get(offs, 1)) != 0 ||
	    off[1] < off[0] || off[1] - off[0] != t->bytes)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' has data_offsets "
		    "that don't fit its shape", file, t->key);
	return 0;
}

struct span {
	int64_t begin, end;
	const char *key;
};

static int
by_span(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	return x->end < y->end ? -1 : x->end > y->end;
}

/* Steps 4 and 6: the spans in order cover the data, no hole, no overlap. */
static int
check_spans(lpo_ctx *c, struct span *s, int64_t n, int64_t bytes,
    const char *file)
{
	int64_t at = 0, i;

	qsort(s, (size_t)n, sizeof(*s), by_span);
	for (i = 0; i < n; at = s[i++].end)
		if (s[i].begin != at)
			return lpo_fail(c, LPO_EFORMAT, "%s: '%s' begins at "
			    "%lld, not at %lld: a hole or an overlap", file,
			    s[i].key, (long long)s[i].begin, (long long)at);
	if (at != bytes)
		return lpo_fail(c, LPO_EFORMAT, "%s: %lld bytes of tensors "
		    "where the header says %lld", file, (long long)bytes,
		    (long long)at);
	return 0;
}

static int
check_metadata(lpo_ctx *c, const json_t *meta, const char *file)
{
	const char *key;
	json_t *v;

	if (!json_is_object(meta))
		return lpo_fail(c, LPO_EFORMAT, "%s: __metadata__ is not an "
		    "object", file);
	json_object_foreach((json_t *)(uintptr_t)meta, key, v)
		if (!json_is_string(v))
			return lpo_fail(c, LPO_EFORMAT, "%s: __metadata__ "
			    "'%s' is not a string", file, key);
	return 0;
}

/* The header's JSON; *data_at is where tensors begin. */
static int
parse_header(lpo_ctx *c, json_t **head, size_t *data_at, const uint8_t *p,
    size_t bytes, const char *file)
{
	static const char lfs[] = "version https://git-lfs.github.com/";
	uint64_t n = 0;
	int i;

	/* what a clone without Git LFS leaves in place of a large file */
	if (bytes >= sizeof(lfs) && memcmp(p, lfs, sizeof(lfs) - 1) == 0)
		return lpo_fail(c, LPO_EFORMAT, "%s: a pointer of Git LFS, not "
		    "the file itself ('git lfs pull' fetches it)", file);
	if (bytes < 8)
		return lpo_fail(c, LPO_EFORMAT, "%s: too short for "
		    "safetensors", file);
	for (i = 7; i >= 0; i--)
		n = n << 8 | p[i];
	if (n > HEADER_LIMIT || n > bytes - 8)
		return lpo_fail(c, LPO_EFORMAT, "%s: header of %llu bytes in "
		    "a file of %zu", file, (unsigned long long)n, bytes);
	if (n == 0 || p[8] != '{')
		return lpo_fail(c, LPO_EFORMAT, "%s: the header does not "
		    "begin with '{'", file);
	*data_at = 8 + (size_t)n;
	return lpo_json_load_strict(c, head, (const char *)p + 8, (size_t)n,
	    file);
}

int
lpo_st_add_safetensors(lpo_ctx *c, lpo_st *st, const uint8_t *p, size_t bytes,
    const char *file)
{
	struct lpo_st_tensor *grown, *t;
	struct span *spans = NULL;
	json_t *head = NULL, *e;
	int64_t off[2], n = 0;
	size_t data_at = 0;
	const char *key;
	int rc;

	if ((rc = parse_header(c, &head, &data_at, p, bytes, file)) != 0)
		return rc;
	st->head[st->n_heads++] = head;
	n = (int64_t)json_object_size(head);
	grown = lpo_realloc(c, st->t, (size_t)(st->n + n) * sizeof(*grown));
	spans = lpo_alloc(c, (size_t)n, sizeof(*spans));
	if (grown != NULL)
		st->t = grown;
	if (grown == NULL || spans == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	n = 0;
	json_object_foreach(head, key, e) {
		if (strcmp(key, "__metadata__") == 0) {
			if ((rc = check_metadata(c, e, file)) != 0)
				goto out;
			if (st->meta == NULL)
				st->meta = e;
			continue;
		}
		t = &st->t[st->n + n];
		memset(t, 0, sizeof(*t));
		t->key = key;
		if ((rc = parse_entry(c, t, off, file, e)) != 0)
			goto out;
		spans[n].begin = off[0];
		spans[n].end = off[1];
		spans[n++].key = key;
		/* Not yet a pointer to believe: check_spans() comes. */
		t->data = (const void *)((uintptr_t)p + data_at +
		    (uintptr_t)off[0]);
	}
	rc = check_spans(c, spans, n, (int64_t)(bytes - data_at), file);
	if (rc == 0)
		st->n += n;
out:
	lpo_free(spans);
	return rc;
}

static int
by_key(const void *a, const void *b)
{
	return strcmp(((const struct lpo_st_tensor *)a)->key,
	    ((const struct lpo_st_tensor *)b)->key);
}

int
lpo_st_finish(lpo_ctx *c, lpo_st *st)
{
	int64_t i;

	if (st->n > 0)
		qsort(st->t, (size_t)st->n, sizeof(*st->t), by_key);
	for (i = 1; i < st->n; i++)
		if (strcmp(st->t[i - 1].key, st->t[i].key) == 0)
			return lpo_fail(c, LPO_EFORMAT, "%s: '%s' is there "
			    "twice", st->path, st->t[i].key);
	return 0;
}

int64_t
lpo_st_count(const lpo_st *st)
{
	return st->n;
}

const struct lpo_st_tensor *
lpo_st_at(const lpo_st *st, int64_t i)
{
	return i >= 0 && i < st->n ? &st->t[i] : NULL;
}

const struct lpo_st_tensor *
lpo_st_find(const lpo_st *st, const char *key)
{
	struct lpo_st_tensor want;

	memset(&want, 0, sizeof(want));
	want.key = key;
	return st->n == 0 ? NULL :
	    bsearch(&want, st->t, (size_t)st->n, sizeof(*st->t), by_key);
}

const char *
lpo_st_meta(const lpo_st *st, const char *key)
{
	return json_string_value(json_object_get(st->meta, key));
}

const json_t *
lpo_st_metadata(const lpo_st *st)
{
	return st->meta;
}

const char *
lpo_st_path(const lpo_st *st)
{
	return st->path;
}

const struct lpo_st_tensor *
lpo_st_need(lpo_ctx *c, const lpo_st *st, const char *key, int ndim,
    const int64_t *shape)
{
	const struct lpo_st_tensor *t = lpo_st_find(st, key);
	char have[128], want[128];
	int i, same;

	if (t == NULL) {
		lpo_fail(c, LPO_ENOTFOUND, "%s: no tensor '%s'", st->path,
		    key);
		return NULL;
	}
	same = t->ndim == ndim;
	for (i = 0; same && i < ndim; i++)
		same = shape[i] == -1 || shape[i] == t->shape[i];
	if (same)
		return t;
	shape_text(have, sizeof(have), t->ndim, t->shape);
	shape_text(want, sizeof(want), ndim, shape);
	lpo_fail(c, LPO_EFORMAT, "%s: '%s' has shape %s, not %s", st->path,
	    key, have, want);
	return NULL;
}

void
lpo_st_f32_part(float *dst, const struct lpo_st_tensor *t, int64_t first,
    int64_t n)
{
	const uint8_t *p = t->data;
	int64_t i;
	uint16_t h;

	if (t->dtype == LPO_F32) {
		memcpy(dst, p + 4 * first, 4 * (size_t)n);
		return;
	}
	p += 2 * first;
	for (i = 0; i < n; i++) {
		memcpy(&h, p + 2 * i, 2);
		dst[i] = t->dtype == LPO_BF16 ? lpo_bf16_to_f32(h) :
		    lpo_f16_to_f32(h);
	}
}

int
lpo_st_f32(lpo_ctx *c, float *dst, const struct lpo_st_tensor *t)
{
	const uint8_t *p = t->data;
	int64_t i, v64;
	int32_t v32;
	double d;

	switch (t->dtype) {
	case LPO_F32:
	case LPO_BF16:
	case LPO_F16:
		lpo_st_f32_part(dst, t, 0, t->count);
		return 0;
	case LPO_F64:
		for (i = 0; i < t->count; i++) {
			memcpy(&d, p + 8 * i, 8);
			dst[i] = (float)d;
		}
		return 0;
	case LPO_I64:
		for (i = 0; i < t->count; i++) {
			memcpy(&v64, p + 8 * i, 8);
			dst[i] = (float)v64;
		}
		return 0;
	case LPO_I32:
		for (i = 0; i < t->count; i++) {
			memcpy(&v32, p + 4 * i, 4);
			dst[i] = (float)v32;
		}
		return 0;
	case LPO_U8:
		for (i = 0; i < t->count; i++)
			dst[i] = p[i];
		return 0;
	default:
		return lpo_fail(c, LPO_EFORMAT, "'%s' is %s, not a float type",
		    t->key, t->dtype_name);
	}
}

int
lpo_st_i64(lpo_ctx *c, int64_t *dst, const struct lpo_st_tensor *t)
{
	const uint8_t *p = t->data;
	int32_t v;
	int64_t i;

	if (t->dtype == LPO_I64)
		memcpy(dst, p, (size_t)t->bytes);
	else if (t->dtype == LPO_I32)
		for (i = 0; i < t->count; i++) {
			memcpy(&v, p + 4 * i, 4);
			dst[i] = v;
		}
	else if (t->dtype == LPO_U8 || strcmp(t->dtype_name, "BOOL") == 0)
		for (i = 0; i < t->count; i++)
			dst[i] = p[i];
	else
		return lpo_fail(c, LPO_EFORMAT, "'%s' is %s, not an integer "
		    "type", t->key, t->dtype_name);
	return 0;
}
