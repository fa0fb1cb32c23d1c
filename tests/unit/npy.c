/*
 * .npy: the bytes numpy writes, types and shapes back, hostile headers.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/hash.h"
#include "lib/io/npy.h"
#include "tests/tap.h"

static lpo_ctx *c;

/* A .npy with this dict and `bytes` zeros, in exact memory. */
static int
try(struct lpo_npy *a, const char *dict, size_t bytes)
{
	size_t n = strlen(dict);
	uint8_t *p = calloc(1, 10 + n + bytes);
	int rc;

	memcpy(p, "\x93NUMPY\x01\x00", 8);
	p[8] = (uint8_t)n;
	p[9] = (uint8_t)(n >> 8);
	memcpy(p + 10, dict, n);
	lpo_clear(c);
	rc = lpo_npy_parse(c, a, p, 10 + n + bytes, "m");
	free(p);
	return rc;
}

#define D(descr, order, shape) "{'descr': '" descr "', 'fortran_order': " \
	order ", 'shape': " shape ", }"

static void
headers(void)
{
	static const struct {
		const char *dict;
		size_t bytes;
		int rc;
	} v[] = {
	    { D("<f4", "False", "(2, 3)") "   \n", 24, 0 },
	    { D("<f2", "False", "()"), 2, 0 },
	    { D("<i8", "False", "(3,)"), 24, 0 },
	    { D("<f8", "False", "(0, 7)"), 0, 0 },
	    { "{\"shape\":(1,),\"descr\":\"<u4\",\"fortran_order\":False}", 4,
	      0 },
	    { D("<i4", "False", "(1, 1, 1, 1, 1, 1, 1, 1)"), 4, 0 },
	    { D("<i4", "False", "(1, 1, 1, 1, 1, 1, 1, 1, 1)"), 4, -1 },
	    { D(">f4", "False", "(1,)"), 4, -1 },
	    { D("|O", "False", "(1,)"), 8, -1 },
	    { D("<c8", "False", "(1,)"), 8, -1 },
	    { D("<f4", "True", "(2, 3)"), 24, -1 },
	    { D("<f4", "False", "(2, 3)"), 23, -1 },
	    { D("<f4", "False", "(2, 3)"), 25, -1 },
	    { D("<f4", "False", "(-2, 3)"), 24, -1 },
	    { D("<f4", "False", "(2 3)"), 24, -1 },
	    { D("<f4", "False", "(2.0,)"), 8, -1 },
	    { D("<f4", "False", "(99999999999999999999,)"), 8, -1 },
	    { D("<f4", "False", "(4611686018427387904,)"), 0, -1 },
	    { D("<f4", "False", "(4294967296, 4294967296, 4)"), 0, -1 },
	    { D("<f4", "False", "(2, 3)") "x", 24, -1 },
	    { "{'descr': [('a', '<f4')], 'fortran_order': False, "
	      "'shape': (1,), }", 4, -1 },
	    { "{'descr': '<f4', 'fortran_order': False, }", 4, -1 },
	    { "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, "
	      "'shape': (1,), }", 4, -1 },
	    { "{'descr': '<f4", 4, -1 }, { "{", 0, -1 }, { "", 0, -1 },
	    { "{'descr': '<f4\\'', }", 4, -1 },
	    { "{'descr': '<ffffffffffffffffffffff4', }", 4, -1 },
	};
	struct lpo_npy a;
	size_t i;
	int rc;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		rc = try(&a, v[i].dict, v[i].bytes);
		ok(rc == (v[i].rc ? LPO_EFORMAT : 0), "%.60s %s", v[i].dict,
		    lpo_errmsg(c));
	}
	lpo_clear(c);
}

static void
round_trip(void)
{
	/* The first 16 digits of SHA-256 of numpy.save()'s bytes. */
	static const char *want[] = { "d067918e97088111", "a1fa942b0cad21d3", "016ef2765b4cf2ce",
		"50c95bed1159db50", "12fa04b5cc691db7", "344d21fe9a6e276b" };
	const int64_t shape[3] = { 1, 2, 3 }, v8[6] = { 0, -1, 2, 3, 4,
	    (int64_t)1 << 40 };
	const float x[6] = { 0, -1, 0.1f, 65504, 1e-7f, 3 };
	const double d[6] = { 0, -1, 0.1, 65504, 1e-7, 3 };
	const int32_t v4[6] = { 0, -1, 2, 3, 4, 5 };
	const uint32_t u4[6] = { 0, 4294967295u, 2, 3, 4, 5 };
	const void *data[] = { NULL, x, d, v8, v4, u4 };
	float back[6];
	int64_t iback[6], n;
	struct lpo_npy a;
	uint8_t *p;
	char hex[65];
	int t, rc;

	for (t = LPO_NPY_F2; t <= LPO_NPY_U4; t++) {
		rc = t == LPO_NPY_F2 ? lpo_npy_make_f32(c, &p, &n,
		    LPO_NPY_F2, 3, shape, x) : lpo_npy_make(c, &p, &n,
		    (enum lpo_npy_type)t, 3, shape, data[t]);
		if (!ok(rc == 0, "make %d", t))
			return;
		lpo_sha256_of(hex, p, (size_t)n);
		ok(strncmp(hex, want[t], 16) == 0, "numpy's bytes: %.16s",
		    hex);
		ok(lpo_npy_parse(c, &a, p, (size_t)n, "m") == 0 &&
		    (int)a.type == t && a.ndim == 3 && a.count == 6 &&
		    a.shape[2] == 3, "parse");
		lpo_npy_f32(back, &a);
		ok(back[0] == 0 && fabsf(back[3] - (t < 3 ? 65504 : 3)) == 0,
		    "values");
		if (t >= LPO_NPY_I8) {
			lpo_npy_i64(iback, &a);
			ok(iback[1] == (t == LPO_NPY_U4 ? 4294967295 : -1),
			    "integers");
		}
		lpo_free(p);
	}
	ok(lpo_npy_make_f32(c, &p, &n, LPO_NPY_F2, 0, NULL,
	    &(const float){ 65520 }) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_npy_make_f32(c, &p, &n, LPO_NPY_F4, 0, NULL,
	    &(const float){ NAN }) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
damage(void)
{
	const int64_t shape[2] = { 3, 5 };
	float x[15] = { 1 }, back[15];
	struct lpo_npy a;
	int64_t n, i, cut = 0;
	uint8_t *p, *q;

	lpo_npy_make_f32(c, &p, &n, LPO_NPY_F4, 2, shape, x);
	for (i = 0; i < n; i++) {
		q = malloc((size_t)i + 1);
		memcpy(q, p, (size_t)i);
		cut += lpo_npy_parse(c, &a, q, (size_t)i, "m") != 0;
		lpo_clear(c);
		free(q);
	}
	ok(cut == n, "every cut is refused");
	for (i = 0; i < 8 * 128; i++) {
		p[i / 8] ^= (uint8_t)(1 << i % 8);
		if (lpo_npy_parse(c, &a, p, (size_t)n, "m") == 0 &&
		    a.count <= 15)
			lpo_npy_f32(back, &a);
		lpo_clear(c);
		p[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	ok(1, "any bit of the header flipped: no crash");
	lpo_free(p);
}

int
main(void)
{
	c = lpo_ctx_new();
	headers();
	round_trip();
	damage();
	lpo_ctx_free(c);
	return done_testing();
}
