/*
 * JSON: canonical text is a fixed point, the strict reader accepts nothing
 * the other refuses, and UTF-8 is judged as RFC 3629's table does.
 */
#include "lib/base/json.h"
#include "tests/fuzz/fuzz.h"

/* RFC 3629, section 4, as it stands there; NUL is not text for us. */
static int
rfc3629(const uint8_t *p, size_t n)
{
	static const uint8_t row[][5] = {
		/* first, last of byte 1; first, last of byte 2; length */
		{ 0x01, 0x7f, 0, 0, 1 }, { 0xc2, 0xdf, 0x80, 0xbf, 2 },
		{ 0xe0, 0xe0, 0xa0, 0xbf, 3 }, { 0xe1, 0xec, 0x80, 0xbf, 3 },
		{ 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
		{ 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 },
		{ 0xf4, 0xf4, 0x80, 0x8f, 4 }
	};
	size_t i, k, len;

	while (n > 0) {
		for (i = 0; i < 9; i++)
			if (p[0] >= row[i][0] && p[0] <= row[i][1])
				break;
		if (i == 9 || (len = row[i][4]) > n)
			return 0;
		if (len > 1 && (p[1] < row[i][2] || p[1] > row[i][3]))
			return 0;
		for (k = 2; k < len; k++)
			if (p[k] < 0x80 || p[k] > 0xbf)
				return 0;
		p += len;
		n -= len;
	}
	return 1;
}

static int
depth(const json_t *v)
{
	const char *key;
	json_t *m;
	size_t i;
	int most = 0, d;

	if (json_is_object(v))
		json_object_foreach((json_t *)(uintptr_t)v, key, m)
			if ((d = depth(m)) > most)
				most = d;
	if (json_is_array(v))
		json_array_foreach(v, i, m)
			if ((d = depth(m)) > most)
				most = d;
	return most + (json_is_object(v) || json_is_array(v));
}

static void
again(lpo_ctx *c, const json_t *v)
{
	char *a = lpo_json_dumps(c, v), *b, *pretty;
	json_t *w = NULL;

	CHECK(a != NULL);
	CHECK(lpo_json_load_strict(c, &w, a, strlen(a), "again") == 0);
	CHECK(json_equal(v, w));
	CHECK((b = lpo_json_dumps(c, w)) != NULL && strcmp(a, b) == 0);
	json_decref(w);
	CHECK((pretty = lpo_json_pretty(c, v)) != NULL);
	CHECK(lpo_json_load(c, &w, pretty, strlen(pretty), "again") == 0);
	CHECK(json_equal(v, w));
	json_decref(w);
	lpo_free(a);
	lpo_free(b);
	lpo_free(pretty);
}

static void
getters(lpo_ctx *c, const json_t *o)
{
	const char *key, *s;
	int64_t i, list[4];
	json_t *v;
	double x;
	int b, n;

	json_object_foreach((json_t *)(uintptr_t)o, key, v) {
		if (lpo_json_int(c, &i, o, key, 1) == 0 && !json_is_null(v))
			CHECK((double)i == json_number_value(v) ||
			    json_is_integer(v));
		lpo_clear(c);
		if (lpo_json_real(c, &x, o, key, 1) == 0)
			CHECK(x - x == 0);
		if (lpo_json_bool(c, &b, o, key, 1) == 0)
			CHECK(b == 0 || b == 1);
		if (lpo_json_str(c, &s, o, key, "") == 0)
			CHECK(s != NULL);
		if (lpo_json_ints(c, list, &n, 4, o, key) == 0)
			CHECK(n >= 0 && n <= 4);
		lpo_clear(c);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	json_t *v = NULL, *strict = NULL, *cell;
	char *s = fuzz_string(p, n);
	int rc;

	CHECK(lpo_utf8_valid((const char *)p, n) == rfc3629(p, n));
	if ((cell = lpo_json_cell(c, s)) != NULL)
		CHECK(json_is_string(cell) || json_is_number(cell));
	json_decref(cell);
	lpo_clear(c);
	free(s);
	if (lpo_json_load_strict(c, &strict, (const char *)p, n, "f") == 0)
		CHECK(lpo_json_load(c, &v, (const char *)p, n, "f") == 0 &&
		    json_equal(v, strict));
	json_decref(v);
	json_decref(strict);
	v = NULL;
	lpo_clear(c);
	rc = lpo_json_load(c, &v, (const char *)p, n, "fuzz");
	if (rc == 0) {
		CHECK(depth(v) <= LPO_JSON_DEPTH);
		again(c, v);
		getters(c, v);
	}
	json_decref(v);
	return fuzz_end(rc, 65536 + 512 * n);
}
