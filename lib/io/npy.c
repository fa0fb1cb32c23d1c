/*
 * .npy: "\x93NUMPY" 1 0, header length u16, a Python dict literal padded so
 * that the data begins at a multiple of 64, the data.
 */
#include "lib/io/npy.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/half.h"

#define MAGIC	"\x93NUMPY\x01"

static const struct {
	const char *descr;
	int size;
} kinds[] = {
	[LPO_NPY_F2] = { "<f2", 2 }, [LPO_NPY_F4] = { "<f4", 4 },
	[LPO_NPY_F8] = { "<f8", 8 }, [LPO_NPY_I8] = { "<i8", 8 },
	[LPO_NPY_I4] = { "<i4", 4 }, [LPO_NPY_U4] = { "<u4", 4 }
};
#define N_KINDS	((int)(sizeof(kinds) / sizeof(*kinds)))

/* A cursor over the dict literal. */
struct cursor {
	const char *p, *end;
};

static void
blanks(struct cursor *s)
{
	while (s->p < s->end && (*s->p == ' ' || *s->p == '\n'))
		s->p++;
}

static int
eat(struct cursor *s, const char *word)
{
	size_t n = strlen(word);

	blanks(s);
	if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n) != 0)
		return 0;
	s->p += n;
	return 1;
}

/* 'text' or "text" of at most size - 1 characters, no escapes. */
static int
eat_string(struct cursor *s, char *buf, size_t size)
{
	size_t n = 0;
	char quote;

	blanks(s);
	if (s->p == s->end || (*s->p != '\'' && *s->p != '"'))
		return 0;
	quote = *s->p++;
	while (s->p < s->end && *s->p != quote) {
		if (n + 1 >= size || *s->p == '\\')
			return 0;
		buf[n++] = *s->p++;
	}
	buf[n] = '\0';
	return s->p++ < s->end;
}

/* "(2, 3)", "(2,)", "()". */
static int
eat_shape(struct cursor *s, struct lpo_npy *a)
{
	int64_t v;

	if (!eat(s, "("))
		return 0;
	a->ndim = 0;
	while (!eat(s, ")")) {
		blanks(s);
		if (a->ndim == LPO_NPY_DIMS || s->p == s->end ||
		    *s->p < '0' || *s->p > '9')
			return 0;
		if (*s->p == '0' && s->end - s->p > 1 && s->p[1] >= '0' &&
		    s->p[1] <= '9')	/* no number of Python's */
			return 0;
		for (v = 0; s->p < s->end && *s->p >= '0' && *s->p <= '9';
		    s->p++)
			if (__builtin_mul_overflow(v, (int64_t)10, &v) ||
			    __builtin_add_overflow(v, *s->p - '0', &v))
				return 0;
		a->shape[a->ndim++] = v;
		if (!eat(s, ",") && !(s->p < s->end && *s->p == ')'))
			return 0;
	}
	return 1;
}

static int
parse_dict(lpo_ctx *c, struct lpo_npy *a, struct cursor s, const char *name)
{
	char key[16], descr[16] = "";
	int seen = 0, k;

	if (!eat(&s, "{"))
		goto bad;
	while (!eat(&s, "}")) {
		if (!eat_string(&s, key, sizeof(key)) || !eat(&s, ":"))
			goto bad;
		if (strcmp(key, "descr") == 0 && !(seen & 1)) {
			if (!eat_string(&s, descr, sizeof(descr)))
				return lpo_fail(c, LPO_EFORMAT, "%s: not a "
				    "plain array of numbers", name);
			seen |= 1;
		} else if (strcmp(key, "fortran_order") == 0 && !(seen & 2)) {
			if (!eat(&s, "False"))
				return lpo_fail(c, LPO_EFORMAT, "%s: not in "
				    "C order", name);
			seen |= 2;
		} else if (strcmp(key, "shape") == 0 && !(seen & 4)) {
			if (!eat_shape(&s, a))
				goto bad;
			seen |= 4;
		} else
			goto bad;
		if (!eat(&s, ",") && !(blanks(&s), s.p < s.end &&
		    *s.p == '}'))
			goto bad;
	}
	blanks(&s);
	if (seen != 7 || s.p != s.end)
		goto bad;
	for (k = 0; k < N_KINDS; k++)
		if (strcmp(kinds[k].descr, descr) == 0) {
			a->type = (enum lpo_npy_type)k;
			return 0;
		}
	return lpo_fail(c, LPO_EFORMAT, "%s: type '%s' is none of f2, f4, f8, "
	    "i8, i4, u4 little-endian", name, descr);
bad:
	return lpo_fail(c, LPO_EFORMAT, "%s: faulty .npy header", name);
}

int
lpo_npy_parse(lpo_ctx *c, struct lpo_npy *a, const void *data, size_t bytes,
    const char *name)
{
	const uint8_t *p = data;
	struct cursor s;
	size_t n;
	int i, rc;

	memset(a, 0, sizeof(*a));
	if (bytes < 10 || memcmp(p, MAGIC, 7) != 0 || p[7] != 0)
		return lpo_fail(c, LPO_EFORMAT, "%s: not a .npy of version 1",
		    name);
	n = (size_t)p[8] | (size_t)p[9] << 8;
	if (n > bytes - 10)
		return lpo_fail(c, LPO_EFORMAT, "%s: the .npy header is cut",
		    name);
	s.p = (const char *)p + 10;
	s.end = s.p + n;
	if ((rc = parse_dict(c, a, s, name)) != 0)
		return rc;
	a->count = 1;
	for (i = 0; i < a->ndim; i++)
		if (__builtin_mul_overflow(a->count, a->shape[i], &a->count))
			return lpo_fail(c, LPO_EFORMAT, "%s: impossible shape",
			    name);
	if (__builtin_mul_overflow(a->count, (int64_t)kinds[a->type].size,
	    &a->bytes) || (size_t)a->bytes != bytes - 10 - n)
		return lpo_fail(c, LPO_EFORMAT, "%s: %zu bytes of data don't "
		    "fit the shape", name, bytes - 10 - n);
	a->data = p + 10 + n;
	return 0;
}

/* What most of our tensors are: in vectors. */
static void
f16_to_f32(float *dst, const uint8_t *p, int64_t n)
{
	uint16_t h;
	int64_t i;

#pragma omp simd private(h)
	for (i = 0; i < n; i++) {
		memcpy(&h, p + 2 * i, 2);
		dst[i] = lpo_f16_to_f32(h);
	}
}

void
lpo_npy_f32(float *dst, const struct lpo_npy *a)
{
	const uint8_t *p = a->data;
	int64_t i, v8;
	uint32_t u4;
	int32_t v4;
	double d;

	if (a->type == LPO_NPY_F2) {
		f16_to_f32(dst, p, a->count);
		return;
	}
	if (a->type == LPO_NPY_F4 && a->count > 0)
		memcpy(dst, p, (size_t)a->count * 4);
	for (i = 0; i < a->count; i++)
		switch (a->type) {
		case LPO_NPY_F2:
		case LPO_NPY_F4:
			return;
		case LPO_NPY_F8:
			memcpy(&d, p + 8 * i, 8);
			dst[i] = (float)d;
			break;
		case LPO_NPY_I8:
			memcpy(&v8, p + 8 * i, 8);
			dst[i] = (float)v8;
			break;
		case LPO_NPY_I4:
			memcpy(&v4, p + 4 * i, 4);
			dst[i] = (float)v4;
			break;
		case LPO_NPY_U4:
			memcpy(&u4, p + 4 * i, 4);
			dst[i] = (float)u4;
			break;
		}
}

void
lpo_npy_i64(int64_t *dst, const struct lpo_npy *a)
{
	const uint8_t *p = a->data;
	uint32_t u4;
	int32_t v4;
	int64_t i;

	for (i = 0; i < a->count; i++)
		if (a->type == LPO_NPY_I8)
			memcpy(&dst[i], p + 8 * i, 8);
		else if (a->type == LPO_NPY_I4) {
			memcpy(&v4, p + 4 * i, 4);
			dst[i] = v4;
		} else {
			memcpy(&u4, p + 4 * i, 4);
			dst[i] = u4;
		}
}

/* The whole file but its data; *data is where that goes. */
static int
make_head(lpo_ctx *c, uint8_t **out, int64_t *bytes, uint8_t **data,
    enum lpo_npy_type type, int ndim, const int64_t *shape)
{
	char head[384];
	int64_t count = 1, size;
	size_t n = 0;
	int i, pad;

	*out = NULL;
	*bytes = 0;
	if (ndim < 0 || ndim > LPO_NPY_DIMS)
		return lpo_fail(c, LPO_EINVAL, ".npy of %d dimensions", ndim);
	n = (size_t)snprintf(head, sizeof(head), "{'descr': '%s', "
	    "'fortran_order': False, 'shape': (", kinds[type].descr);
	for (i = 0; i < ndim; i++) {
		if (shape[i] < 0 ||
		    __builtin_mul_overflow(count, shape[i], &count))
			return lpo_fail(c, LPO_EINVAL, "impossible shape");
		n += (size_t)snprintf(head + n, sizeof(head) - n, "%s%lld",
		    i ? ", " : "", (long long)shape[i]);
	}
	n += (size_t)snprintf(head + n, sizeof(head) - n, "%s), }",
	    ndim == 1 ? "," : "");
	pad = (int)(64 - (10 + n + 1) % 64) % 64;
	n += (size_t)snprintf(head + n, sizeof(head) - n, "%*s\n", pad, "");
	if (__builtin_mul_overflow(count, (int64_t)kinds[type].size, &size) ||
	    __builtin_add_overflow(size, (int64_t)n + 10, bytes))
		return lpo_fail(c, LPO_EINVAL, "impossible shape");
	if ((*out = lpo_alloc(c, (size_t)*bytes, 1)) == NULL)
		return LPO_ENOMEM;
	memcpy(*out, MAGIC, 7);
	(*out)[8] = (uint8_t)n;
	(*out)[9] = (uint8_t)(n >> 8);
	memcpy(*out + 10, head, n);
	*data = *out + 10 + n;
	return 0;
}

int
lpo_npy_make(lpo_ctx *c, uint8_t **out, int64_t *bytes,
    enum lpo_npy_type type, int ndim, const int64_t *shape, const void *data)
{
	uint8_t *to;
	int rc = make_head(c, out, bytes, &to, type, ndim, shape);

	if (rc == 0 && *out + *bytes > to)
		memcpy(to, data, (size_t)(*out + *bytes - to));
	return rc;
}

/* 1: one of them is, or becomes, infinite or NaN. */
static int
f32_to_f16(uint8_t *to, const float *x, int64_t n)
{
	uint16_t h;
	int64_t i;
	int bad = 0;

#pragma omp simd private(h) reduction(|:bad)
	for (i = 0; i < n; i++) {
		h = lpo_f32_to_f16(x[i]);
		bad |= (h & 0x7c00) == 0x7c00;
		memcpy(to + 2 * i, &h, 2);
	}
	return bad;
}

static int
any_not_finite(const float *x, int64_t n)
{
	int64_t i;
	int bad = 0;

	for (i = 0; i < n; i++)
		bad |= !isfinite(x[i]);
	return bad;
}

int
lpo_npy_make_f32(lpo_ctx *c, uint8_t **out, int64_t *bytes,
    enum lpo_npy_type type, int ndim, const int64_t *shape, const float *data)
{
	int64_t i, count;
	uint8_t *to;
	int rc, bad;

	if (type != LPO_NPY_F2 && type != LPO_NPY_F4)
		return lpo_fail(c, LPO_EINVAL, "f32 is stored as f2 or f4");
	if ((rc = make_head(c, out, bytes, &to, type, ndim, shape)) != 0)
		return rc;
	count = (*out + *bytes - to) / kinds[type].size;
	if (type == LPO_NPY_F4 && count > 0)
		memcpy(to, data, (size_t)count * 4);
	bad = type == LPO_NPY_F2 ? f32_to_f16(to, data, count) :
	    any_not_finite(data, count);
	if (!bad)
		return 0;
	lpo_free(*out);
	*out = NULL;
	for (i = 0; i < count - 1 && isfinite(data[i]) && (type == LPO_NPY_F4 ||
	    (lpo_f32_to_f16(data[i]) & 0x7c00) != 0x7c00); i++)
		;
	return lpo_fail(c, LPO_EFORMAT, "value %lld, %g, does not fit %s",
	    (long long)i, (double)data[i], kinds[type].descr + 1);
}
