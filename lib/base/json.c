/*
 * jansson with limits, file names in its errors, and canonical output.
 */
#include "lib/base/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"

/*
 * jansson's own limit is 2048 levels; code that walks values recurses, so
 * look before parsing.  Brackets inside strings don't count.
 */
static int
too_deep(const char *p, size_t n)
{
	int depth = 0, quoted = 0;
	size_t i;

	for (i = 0; i < n; i++) {
		if (quoted) {
			if (p[i] == '\\')
				i++;
			else if (p[i] == '"')
				quoted = 0;
		} else if (p[i] == '"')
			quoted = 1;
		else if (p[i] == '{' || p[i] == '[') {
			if (++depth > LPO_JSON_DEPTH)
				return 1;
		} else if (p[i] == '}' || p[i] == ']')
			depth--;
	}
	return 0;
}

/* What is still to be parsed; nothing more once memory has failed. */
struct rest {
	const char *p;
	size_t n;
};

static size_t
feed(void *to, size_t room, void *arg)
{
	struct rest *r = arg;
	size_t n = lpo_json_memory_failed() ? 0 : r->n < room ? r->n : room;

	if (n > 0)
		memcpy(to, r->p, n);
	r->p += n;
	r->n -= n;
	return n;
}

static int
load(lpo_ctx *c, json_t **out, const char *text, size_t n, const char *name,
    size_t flags)
{
	size_t mark = lpo_utf8_mark(text, n);
	struct rest r = { text + mark, n - mark };
	json_error_t e;

	*out = NULL;
	/* jansson takes NUL between tokens for the end, whatever follows */
	if (n > 0 && memchr(text, '\0', n) != NULL)
		return lpo_fail(c, LPO_EFORMAT, "%s: a NUL byte", name);
	if (too_deep(text, n))
		return lpo_fail(c, LPO_EFORMAT, "%s: nested deeper than %d",
		    name, LPO_JSON_DEPTH);
	*out = json_load_callback(feed, &r, flags | JSON_DECODE_ANY, &e);
	if (lpo_json_memory_failed()) {
		json_decref(*out);
		*out = NULL;
	}
	if (*out != NULL)
		return 0;
	/* Without memory jansson leaves the text empty, or says so. */
	if (lpo_json_memory_failed() || e.text[0] == '\0' ||
	    json_error_code(&e) == json_error_out_of_memory)
		return lpo_fail(c, LPO_ENOMEM, "%s: out of memory", name);
	return lpo_fail(c, LPO_EFORMAT, "%s:%d: %s", name,
	    e.line > 0 ? e.line : 1, e.text);
}

int
lpo_json_load(lpo_ctx *c, json_t **out, const char *text, size_t n,
    const char *name)
{
	return load(c, out, text, n, name, 0);
}

int
lpo_json_load_strict(lpo_ctx *c, json_t **out, const char *text, size_t n,
    const char *name)
{
	return load(c, out, text, n, name, JSON_REJECT_DUPLICATES);
}

int
lpo_json_load_file(lpo_ctx *c, json_t **out, const char *path, size_t limit)
{
	char *text;
	size_t n;
	int rc;

	*out = NULL;
	rc = lpo_file_read(c, &text, &n, path, limit ? limit : LPO_JSON_LIMIT);
	if (rc != 0)
		return rc;
	rc = load(c, out, text, n, path, 0);
	lpo_free(text);
	return rc;
}

json_t *
lpo_json_get(const json_t *obj, const char *key)
{
	json_t *v = json_object_get(obj, key);

	return v == NULL || json_is_null(v) ? NULL : v;
}

static int
as_int(lpo_ctx *c, int64_t *out, const json_t *v, const char *key)
{
	double x;

	if (json_is_integer(v)) {
		*out = json_integer_value(v);
		return 0;
	}
	x = json_is_real(v) ? json_real_value(v) : 0.5;
	if (x != floor(x) || fabs(x) > 9007199254740992.0)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not an integer", key);
	*out = (int64_t)x;
	return 0;
}

int
lpo_json_int(lpo_ctx *c, int64_t *out, const json_t *obj, const char *key,
    int64_t dflt)
{
	const json_t *v = lpo_json_get(obj, key);

	*out = dflt;
	return v == NULL ? 0 : as_int(c, out, v, key);
}

int
lpo_json_real(lpo_ctx *c, double *out, const json_t *obj, const char *key,
    double dflt)
{
	const json_t *v = lpo_json_get(obj, key);

	*out = dflt;
	if (v == NULL)
		return 0;
	if (!json_is_number(v))
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not a number", key);
	*out = json_number_value(v);
	return 0;
}

int
lpo_json_bool(lpo_ctx *c, int *out, const json_t *obj, const char *key,
    int dflt)
{
	const json_t *v = lpo_json_get(obj, key);

	*out = dflt;
	if (v == NULL)
		return 0;
	if (!json_is_boolean(v))
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not true or false",
		    key);
	*out = json_is_true(v);
	return 0;
}

int
lpo_json_str(lpo_ctx *c, const char **out, const json_t *obj, const char *key,
    const char *dflt)
{
	const json_t *v = lpo_json_get(obj, key);

	*out = dflt;
	if (v == NULL)
		return 0;
	if (!json_is_string(v))
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not a string", key);
	*out = json_string_value(v);
	return 0;
}

static int
absent(lpo_ctx *c, const char *key)
{
	return lpo_fail(c, LPO_EFORMAT, "'%s' is missing", key);
}

int
lpo_json_need_int(lpo_ctx *c, int64_t *out, const json_t *obj,
    const char *key)
{
	return lpo_json_get(obj, key) == NULL ? absent(c, key) :
	    lpo_json_int(c, out, obj, key, 0);
}

int
lpo_json_need_real(lpo_ctx *c, double *out, const json_t *obj,
    const char *key)
{
	return lpo_json_get(obj, key) == NULL ? absent(c, key) :
	    lpo_json_real(c, out, obj, key, 0);
}

int
lpo_json_need_str(lpo_ctx *c, const char **out, const json_t *obj,
    const char *key)
{
	return lpo_json_get(obj, key) == NULL ? absent(c, key) :
	    lpo_json_str(c, out, obj, key, NULL);
}

int
lpo_json_ints(lpo_ctx *c, int64_t *out, int *n, int max, const json_t *obj,
    const char *key)
{
	const json_t *v = lpo_json_get(obj, key);
	size_t i;
	int rc;

	*n = 0;
	if (v == NULL)
		return 0;
	if (!json_is_array(v)) {
		*n = 1;
		return as_int(c, out, v, key);
	}
	if (json_array_size(v) > (size_t)max)
		return lpo_fail(c, LPO_EFORMAT, "'%s' has more than %d items",
		    key, max);
	for (i = 0; i < json_array_size(v); i++)
		if ((rc = as_int(c, out + i, json_array_get(v, i), key)) != 0)
			return rc;
	*n = (int)json_array_size(v);
	return 0;
}

int
lpo_json_set(lpo_ctx *c, json_t *obj, const char *key, json_t *value)
{
	if (json_object_set_new(obj, key, value) == 0)
		return 0;
	return lpo_fail(c, LPO_ENOMEM, "cannot set '%s': out of memory", key);
}

/* ---- Canonical text ---- */

struct text {
	lpo_ctx *c;
	char *p;
	size_t n, room;
	int failed, pretty;
};

static void
put(struct text *t, const char *s, size_t n)
{
	char *q;

	if (t->failed)
		return;
	if (t->n + n + 1 > t->room) {
		t->room = (t->n + n + 1) * 2;
		q = lpo_realloc(t->c, t->p, t->room);
		if (q == NULL) {
			t->failed = 1;
			return;
		}
		t->p = q;
	}
	memcpy(t->p + t->n, s, n);
	t->n += n;
	t->p[t->n] = '\0';
}

static void
puts_(struct text *t, const char *s)
{
	put(t, s, strlen(s));
}

static void
put_string(struct text *t, const char *s, size_t n)
{
	char esc[8];
	size_t i, from = 0;

	put(t, "\"", 1);
	for (i = 0; i < n; i++) {
		unsigned char ch = (unsigned char)s[i];

		if (ch >= 0x20 && ch != '"' && ch != '\\')
			continue;
		put(t, s + from, i - from);
		from = i + 1;
		switch (ch) {
		case '"': puts_(t, "\\\""); break;
		case '\\': puts_(t, "\\\\"); break;
		case '\n': puts_(t, "\\n"); break;
		case '\t': puts_(t, "\\t"); break;
		case '\r': puts_(t, "\\r"); break;
		default:
			snprintf(esc, sizeof(esc), "\\u%04x", ch);
			puts_(t, esc);
		}
	}
	put(t, s + from, n - from);
	put(t, "\"", 1);
}

/* The fewest digits that read back the same; always with a '.' or an 'e'. */
static void
put_real(struct text *t, double x)
{
	char b[40], *comma;
	int digits;

	for (digits = 1; digits <= 17; digits++) {
		snprintf(b, sizeof(b) - 4, "%.*g", digits, x);
		if (strtod(b, NULL) == x)
			break;
	}
	if ((comma = strchr(b, ',')) != NULL)	/* another locale's point */
		*comma = '.';
	if (strpbrk(b, ".e") == NULL)
		strcat(b, ".0");
	puts_(t, b);
}

static void
newline(struct text *t, int depth)
{
	if (!t->pretty)
		return;
	put(t, "\n", 1);
	while (depth-- > 0)
		put(t, "  ", 2);
}

static int
by_key(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void	put_value(struct text *, const json_t *, int depth);

static void
put_object(struct text *t, const json_t *v, int depth)
{
	size_t n = json_object_size(v), i = 0;
	const char **keys = lpo_alloc(t->c, n, sizeof(*keys));
	void *it;

	if (keys == NULL) {
		t->failed = 1;
		return;
	}
	for (it = json_object_iter((json_t *)(uintptr_t)v); it != NULL;
	    it = json_object_iter_next((json_t *)(uintptr_t)v, it))
		keys[i++] = json_object_iter_key(it);
	qsort(keys, n, sizeof(*keys), by_key);
	put(t, "{", 1);
	for (i = 0; i < n; i++) {
		if (i > 0)
			put(t, ",", 1);
		newline(t, depth + 1);
		put_string(t, keys[i], strlen(keys[i]));
		puts_(t, t->pretty ? ": " : ":");
		put_value(t, json_object_get(v, keys[i]), depth + 1);
	}
	if (n > 0)
		newline(t, depth);
	put(t, "}", 1);
	lpo_free(keys);
}

static void
put_array(struct text *t, const json_t *v, int depth)
{
	size_t i, n = json_array_size(v);
	int flat = 1;

	for (i = 0; i < n; i++)		/* numbers stay on one line */
		flat &= !json_is_object(json_array_get(v, i)) &&
		    !json_is_array(json_array_get(v, i));
	put(t, "[", 1);
	for (i = 0; i < n; i++) {
		if (i > 0)
			puts_(t, flat && t->pretty ? ", " : ",");
		if (!flat)
			newline(t, depth + 1);
		put_value(t, json_array_get(v, i), depth + 1);
	}
	if (n > 0 && !flat)
		newline(t, depth);
	put(t, "]", 1);
}

static void
put_value(struct text *t, const json_t *v, int depth)
{
	char b[32];

	switch (v == NULL ? JSON_NULL : json_typeof(v)) {
	case JSON_OBJECT:
		put_object(t, v, depth);
		break;
	case JSON_ARRAY:
		put_array(t, v, depth);
		break;
	case JSON_STRING:
		put_string(t, json_string_value(v), json_string_length(v));
		break;
	case JSON_INTEGER:
		snprintf(b, sizeof(b), "%" JSON_INTEGER_FORMAT,
		    json_integer_value(v));
		puts_(t, b);
		break;
	case JSON_REAL:
		put_real(t, json_real_value(v));
		break;
	case JSON_TRUE:
		puts_(t, "true");
		break;
	case JSON_FALSE:
		puts_(t, "false");
		break;
	default:
		puts_(t, "null");
	}
}

static char *
dump(lpo_ctx *c, const json_t *v, int pretty)
{
	struct text t = { c, NULL, 0, 0, 0, pretty };

	put_value(&t, v, 0);
	if (pretty)
		put(&t, "\n", 1);
	if (lpo_json_memory_failed())	/* something may be missing in it */
		lpo_fail(c, LPO_ENOMEM, "out of memory");
	else if (!t.failed)
		return t.p;
	lpo_free(t.p);
	return NULL;
}

char *
lpo_json_dumps(lpo_ctx *c, const json_t *v)
{
	return dump(c, v, 0);
}

char *
lpo_json_pretty(lpo_ctx *c, const json_t *v)
{
	return dump(c, v, 1);
}

/* -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?; *integer: no . and e. */
static int
is_number(const char *s, int *integer)
{
	size_t n;

	*integer = 1;
	s += *s == '-';
	n = strspn(s, "0123456789");
	if (n == 0 || (n > 1 && *s == '0'))
		return 0;
	s += n;
	if (*s == '.') {
		*integer = 0;
		n = strspn(++s, "0123456789");
		if (n == 0)
			return 0;
		s += n;
	}
	if (*s == 'e' || *s == 'E') {
		*integer = 0;
		s++;
		s += *s == '-' || *s == '+';
		n = strspn(s, "0123456789");
		if (n == 0)
			return 0;
		s += n;
	}
	return *s == '\0';
}

json_t *
lpo_json_cell(lpo_ctx *c, const char *text)
{
	json_t *v = NULL;
	int integer;

	if (is_number(text, &integer)) {
		errno = 0;
		if (integer) {
			json_int_t i = strtoll(text, NULL, 10);

			v = errno == 0 ? json_integer(i) : json_string(text);
		} else {
			double x = strtod(text, NULL);

			v = isfinite(x) ? json_real(x) : json_string(text);
		}
	} else
		v = json_string(text);
	if (v == NULL)
		lpo_fail(c, LPO_ENOMEM, "cannot keep '%.40s': out of memory",
		    text);
	return v;
}

size_t
lpo_utf8_mark(const char *text, size_t bytes)
{
	return bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

int
lpo_utf8_valid(const char *text, size_t bytes)
{
	const unsigned char *p = (const unsigned char *)text, *end = p + bytes;
	uint32_t u;
	int more, i;

	while (p < end) {
		if (*p < 0x80) {
			if (*p++ == 0)
				return 0;
			continue;
		}
		more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
		if (*p < 0xc2 || *p > 0xf4 || end - p <= more)
			return 0;
		u = *p & (0x3fu >> more);
		for (i = 1; i <= more; i++) {
			if ((p[i] & 0xc0) != 0x80)
				return 0;
			u = u << 6 | (p[i] & 0x3f);
		}
		if ((more == 2 && u < 0x800) || (more == 3 && u < 0x10000) ||
		    (u >= 0xd800 && u < 0xe000) || u > 0x10ffff)
			return 0;
		p += more + 1;
	}
	return 1;
}
