/*
 * Hostile torch files: damaged, and zips and pickles made by hand, are refused
 * or give tensors that can be read.
 */
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "lib/base/file.h"
#include "lib/io/safetensors.h"
#include "tests/tap.h"
#include "tests/unit/torch_bytes.h"

static lpo_ctx *c;

/* --------------------------------------------------------------- damage */

static void
use(lpo_st *st)
{
	const struct lpo_st_tensor *t;
	float *x;
	int64_t i;

	for (i = 0; (t = lpo_st_at(st, i)) != NULL; i++) {
		x = malloc((size_t)(t->count + 1) * sizeof(*x));
		lpo_st_f32(c, x, t);
		free(x);
	}
}

/* Cut at every byte; each bit flipped: refused, or opened with sane tensors. */
static void
damage(const char *name)
{
	char path[256], *p;
	size_t n, i, cut = 0, refused = 0, cuts = 0, flips = 0;
	uint8_t *q;
	lpo_st *st;

	snprintf(path, sizeof(path), "tests/golden/torch/%s", name);
	if (!ok(lpo_file_read(c, &p, &n, path, 1 << 20) == 0, "read"))
		return;
	for (i = 0; i < n; i++, cuts++) {
		q = malloc(i + 1);
		memcpy(q, p, i);
		cut += lpo_st_open_memory(c, &st, q, i, "m") == LPO_EFORMAT;
		lpo_clear(c);
		free(q);
	}
	ok(cut == cuts, "%s: every cut of %zu is refused (%zu)", name, cuts,
	    cut);
	for (i = 0; i < 8 * n; i += 1 + i % 3, flips++) {
		p[i / 8] ^= (char)(1 << i % 8);
		if (lpo_st_open_memory(c, &st, p, n, "m") == 0) {
			use(st);
			lpo_st_close(st);
		} else
			refused++;
		lpo_clear(c);
		p[i / 8] ^= (char)(1 << i % 8);
	}
	ok(refused > flips / 4, "%s: %zu bit flips, %zu refused, no crash",
	    name, flips, refused);
	lpo_free(p);
}

/* --------------------------------------------------- zips made by hand */

struct zip {
	uint8_t b[1 << 16], cd[1 << 14];
	size_t n, ncd;
	int members;
	/* faults */
	int method, flags;
	uint32_t size_add;
};

static void
head(struct zip *z, uint8_t *p, size_t *n, const char *name, const void *data,
    size_t bytes)
{
	uint32_t crc = (uint32_t)crc32(crc32(0, NULL, 0), data, (uInt)bytes);

	le(p, n, 10, 2);
	le(p, n, (uint64_t)z->flags, 2);
	le(p, n, (uint64_t)z->method, 2);
	le(p, n, 1 << 21 | 1 << 16, 4);
	le(p, n, crc, 4);
	le(p, n, bytes + z->size_add, 4);
	le(p, n, bytes + z->size_add, 4);
	le(p, n, strlen(name), 2);
	le(p, n, 0, 2);
}

static void
put(struct zip *z, const char *name, const void *data, size_t bytes)
{
	size_t at = z->n;

	le(z->b, &z->n, 0x04034b50, 4);
	head(z, z->b, &z->n, name, data, bytes);
	memcpy(z->b + z->n, name, strlen(name));
	z->n += strlen(name);
	memcpy(z->b + z->n, data, bytes);
	z->n += bytes;
	le(z->cd, &z->ncd, 0x02014b50, 4);
	le(z->cd, &z->ncd, 10, 2);
	head(z, z->cd, &z->ncd, name, data, bytes);
	le(z->cd, &z->ncd, 0, 10);
	le(z->cd, &z->ncd, 0, 0);
	le(z->cd, &z->ncd, at, 4);
	memcpy(z->cd + z->ncd, name, strlen(name));
	z->ncd += strlen(name);
	z->members++;
}

static int
finish(struct zip *z, lpo_st **st)
{
	size_t at = z->n;
	uint8_t *q;
	int rc;

	memcpy(z->b + z->n, z->cd, z->ncd);
	z->n += z->ncd;
	le(z->b, &z->n, 0x06054b50, 4);
	le(z->b, &z->n, 0, 4);
	le(z->b, &z->n, (uint64_t)z->members, 2);
	le(z->b, &z->n, (uint64_t)z->members, 2);
	le(z->b, &z->n, z->ncd, 4);
	le(z->b, &z->n, at, 4);
	le(z->b, &z->n, 0, 2);
	q = malloc(z->n);	/* exact, so that ASan sees overruns */
	memcpy(q, z->b, z->n);
	lpo_clear(c);
	rc = lpo_st_open_memory(c, st, q, z->n, "m");
	if (rc == 0) {
		use(*st);
		lpo_st_close(*st);
	}
	free(q);
	return rc;
}

/* A pickle, and a storage "0" of six floats. */
static int
try(const void *pickle, size_t n)
{
	static struct zip z;
	const float x[6] = { 1, 2, 3, 4, 5, 6 };
	lpo_st *st;

	memset(&z, 0, sizeof(z));
	put(&z, "a/data.pkl", pickle, n);
	put(&z, "a/data/0", x, sizeof(x));
	put(&z, "a/version", "3\n", 2);
	return finish(&z, &st);
}

#define P(s) s, sizeof(s) - 1
/* {"w": tensor of STORAGE, offset, size, stride} */
#define TENSOR(storage, rest) "\x80\2}X\1\0\0\0w" \
	REBUILD(storage, rest) "s."
#define S0 STORAGE("torch\nFloatStorage", "\1\0\0\0""0", "K\6")

static void
tensors(void)
{
	static const struct {
		const char *what, *p;
		size_t n;
		int rc;
	} v[] = {
	    { "2 x 3", P(TENSOR(S0, "K\0K\2K\3\x86K\3K\1\x86")), 0 },
	    { "transposed", P(TENSOR(S0, "K\0K\3K\2\x86K\1K\3\x86")), 0 },
	    { "the last element", P(TENSOR(S0, "K\5K\1\x85K\1\x85")), 0 },
	    { "scalar", P(TENSOR(S0, "K\5))")), 0 },
	    { "no element, any stride", P(TENSOR(S0,
	      "K\0K\0\x85K\x7f\x85")), 0 },
	    { "one too many", P(TENSOR(S0, "K\0K\7\x85K\1\x85")),
	      LPO_EFORMAT },
	    { "offset beyond", P(TENSOR(S0, "K\6K\1\x85K\1\x85")),
	      LPO_EFORMAT },
	    { "scalar beyond", P(TENSOR(S0, "K\6))")), LPO_EFORMAT },
	    { "offset and size beyond", P(TENSOR(S0,
	      "K\1K\2K\3\x86K\3K\1\x86")), LPO_EFORMAT },
	    { "negative offset", P(TENSOR(S0,
	      "J\xff\xff\xff\xffK\1\x85K\1\x85")), LPO_EFORMAT },
	    { "negative size", P(TENSOR(S0,
	      "K\0J\xff\xff\xff\xff\x85K\1\x85")), LPO_EFORMAT },
	    { "negative stride", P(TENSOR(S0,
	      "K\0K\2\x85J\xff\xff\xff\xff\x85")), LPO_EFORMAT },
	    { "stride beyond", P(TENSOR(S0, "K\0K\2\x85K\6\x85")),
	      LPO_EFORMAT },
	    { "huge offset", P(TENSOR(S0, "\x8a\x08\xff\xff\xff\xff\xff\xff"
	      "\xff\x7fK\2\x85K\1\x85")), LPO_EFORMAT },
	    { "size overflows", P(TENSOR(S0, "K\0\x8a\x08\0\0\0\0\0\0\0\x40K\4"
	      "\x86K\1K\1\x86")), LPO_EFORMAT },
	    { "strides overflow", P(TENSOR(S0, "K\0K\2K\2\x86\x8a\x08\xff\xff"
	      "\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff"
	      "\x7f\x86")), LPO_EFORMAT },
	    { "stride 0 makes more than there is", P(TENSOR(S0,
	      "K\0J\xff\xff\xff\x7f\x85K\0\x85")), LPO_EFORMAT },
	    { "nine dimensions", P(TENSOR(S0, "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K"
	      "\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1t")), LPO_EFORMAT },
	    { "more sizes than strides", P(TENSOR(S0, "K\0K\2K\3\x86K\1\x85")),
	      LPO_EFORMAT },
	    { "a size that is no integer", P(TENSOR(S0, "K\0N\x85K\1\x85")),
	      LPO_EFORMAT },
	    { "storage absent", P(TENSOR(STORAGE("torch\nFloatStorage",
	      "\1\0\0\0""1", "K\6"), "K\0))")), LPO_EFORMAT },
	    { "storage larger than its bytes", P(TENSOR(STORAGE(
	      "torch\nFloatStorage", "\1\0\0\0""0", "K\7"), "K\0))")),
	      LPO_EFORMAT },
	    { "storage smaller than its bytes", P(TENSOR(STORAGE(
	      "torch\nFloatStorage", "\1\0\0\0""0", "K\5"), "K\0))")),
	      LPO_EFORMAT },
	    { "storage of other elements", P(TENSOR(STORAGE(
	      "torch\nDoubleStorage", "\1\0\0\0""0", "K\6"), "K\0))")),
	      LPO_EFORMAT },
	    { "storage of a huge count", P(TENSOR(STORAGE(
	      "torch\nDoubleStorage", "\1\0\0\0""0",
	      "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"), "K\0))")),
	      LPO_EFORMAT },
	    { "storage by a path", P(TENSOR(STORAGE("torch\nFloatStorage",
	      "\x0b\0\0\0../data.pkl", "K\6"), "K\0))")), LPO_EFORMAT },
	    { "storage is a number", P(TENSOR("K\6", "K\0))")), LPO_EFORMAT },
	    { "storage of a foreign type: passed over", P(TENSOR(STORAGE(
	      "torch\nQInt8Storage", "\1\0\0\0""0", "K\x18"), "K\0))")), 0 },
	    { "too few arguments", P("\x80\2}X\1\0\0\0wctorch._utils\n"
	      "_rebuild_tensor_v2\n)Rs."), LPO_EFORMAT },
	    { "v3 without a type", P("\x80\2}X\1\0\0\0wctorch._utils\n"
	      "_rebuild_tensor_v3\n)Rs."), LPO_EFORMAT },
	};
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++)
		ok(try(v[i].p, v[i].n) == v[i].rc, "tensor, %s%s%s",
		    v[i].what, v[i].rc ? ": " : "", lpo_errmsg(c));
}

static void
pickles(void)
{
	static const struct {
		const char *what, *p;
		size_t n;
		int rc;
	} v[] = {
	    { "an empty dict", P("\x80\2}."), 0 },
	    { "rest after STOP", P("\x80\2}.garbage"), 0 },
	    { "a call is data", P("\x80\2}X\1\0\0\0wcos\nsystem\n"
	      "X\2\0\0\0ls\x85Rs."), 0 },
	    { "an object's state is dropped", P("\x80\2}X\1\0\0\0wcm\nC\n"
	      ")\x81}X\1\0\0\0aK\1sbs."), 0 },
	    { "ordered pairs", P("\x80\2""ccollections\nOrderedDict\n"
	      "]X\1\0\0\0aG\x3f\xf0\0\0\0\0\0\0\x86""a\x85R."), 0 },
	    { "frozen sets", P("\x80\4}\x8c\1a(K\1K\2\x91s."), 0 },
	    { "empty", P(""), LPO_EFORMAT },
	    { "no STOP", P("\x80\2}"), LPO_EFORMAT },
	    { "nothing at STOP", P("\x80\2."), LPO_EFORMAT },
	    { "a mark at STOP", P("\x80\2(."), LPO_EFORMAT },
	    { "protocol 0", P("(dp0\n."), LPO_EFORMAT },
	    { "protocol 9", P("\x80\x09}."), LPO_EFORMAT },
	    { "unknown opcode", P("\x80\2\xff."), LPO_EFORMAT },
	    { "an extension", P("\x80\2\x82\1."), LPO_EFORMAT },
	    { "a buffer", P("\x80\5\x97."), LPO_EFORMAT },
	    { "no mark", P("\x80\2}u."), LPO_EFORMAT },
	    { "a key alone", P("\x80\2}(K\1u."), LPO_EFORMAT },
	    { "into nothing", P("\x80\2K\1K\2s."), LPO_EFORMAT },
	    { "into a number", P("\x80\2K\3K\1K\2s."), LPO_EFORMAT },
	    { "an item across a mark", P("\x80\2](K\1(ea."), LPO_EFORMAT },
	    { "a tuple across a mark", P("\x80\2K\1(K\2\x86."), LPO_EFORMAT },
	    { "memo never stored", P("\x80\2h\7."), LPO_EFORMAT },
	    { "memo of 4 billion", P("\x80\2}r\xff\xff\xff\xff."),
	      LPO_EFORMAT },
	    { "a string beyond the end", P("\x80\2X\xff\xff\xff\xff""a."),
	      LPO_EFORMAT },
	    { "a string of 2^64", P("\x80\4\x8d\xff\xff\xff\xff\xff\xff\xff"
	      "\xff""a."), LPO_EFORMAT },
	    { "a number beyond the end", P("\x80\2\x8b\xff\xff\xff\x7f."),
	      LPO_EFORMAT },
	    { "half a number", P("\x80\2J\1"), LPO_EFORMAT },
	    { "a global without end", P("\x80\2""ctorch\nabc"), LPO_EFORMAT },
	    { "a global of numbers", P("\x80\4K\1K\2\x93."), LPO_EFORMAT },
	    { "arguments that are no tuple", P("\x80\2}X\1\0\0\0wcm\nf\nK\1Rs"
	      "."), LPO_EFORMAT },
	    { "pairs that are none", P("\x80\2""ccollections\nOrderedDict\n"
	      "]K\1a\x85R."), LPO_EFORMAT },
	    { "a frame beyond the end", P("\x80\4\x95\xff\0\0\0\0\0\0\0}."),
	      LPO_EFORMAT },
	    { "a key with a NUL", P("\x80\2}X\2\0\0\0a\0K\1s."),
	      LPO_EFORMAT },
	    { "a key that is no UTF-8", P("\x80\2}X\1\0\0\0\xffK\1s."),
	      LPO_EFORMAT },
	    { "two paths, one key", P("\x80\2}(X\3\0\0\0a.bK\1X\1\0\0\0a}"
	      "X\1\0\0\0bK\2su."), LPO_EFORMAT },
	    { "a dict within itself", P("\x80\2}q\1X\1\0\0\0ah\1s."),
	      LPO_EFORMAT },
	    { "a list within itself", P("\x80\2}X\1\0\0\0a]q\1h\1as."), 0 },
	};
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++)
		ok(try(v[i].p, v[i].n) == v[i].rc, "pickle, %s%s%s",
		    v[i].what, v[i].rc ? ": " : "", lpo_errmsg(c));
}

/* Small pickles that stand for much. */
static void
bombs(void)
{
	static char b[60000];
	size_t n;
	int i, levels;

	/* 50 levels, each of two times the level below */
	n = (size_t)sprintf(b, "%c%c}q%c", 0x80, 2, 0) + 1;
	memcpy(b, "\x80\2}q\0", n = 5);
	for (i = 1; i < 50; i++) {
		b[n++] = '}';
		memcpy(b + n, "(X\1\0\0\0ah", 8);
		n += 8;
		b[n++] = (char)(i - 1);
		memcpy(b + n, "X\1\0\0\0bh", 7);
		n += 7;
		b[n++] = (char)(i - 1);
		b[n++] = 'u';
		b[n++] = 'q';
		b[n++] = (char)i;
	}
	b[n++] = '.';
	ok(try(b, n) == LPO_EFORMAT, "shared dicts: %s", lpo_errmsg(c));
	/* nested 20 000 deep: no recursion in reading, none in walking */
	memcpy(b, "\x80\2", n = 2);
	for (i = 0; i < 5000; i++) {
		memcpy(b + n, "}X\1\0\0\0a", 7);
		n += 7;
	}
	b[n++] = 'N';
	for (i = 0; i < 5000; i++)
		b[n++] = 's';
	b[n++] = '.';
	ok(try(b, n) == LPO_EFORMAT, "nested dicts: %s", lpo_errmsg(c));
	/* 65 dicts in each other are taken, 66 not */
	for (levels = 65; levels <= 66; levels++) {
		memcpy(b, "\x80\2", n = 2);
		for (i = 1; i < levels; i++) {
			memcpy(b + n, "}X\1\0\0\0a", 7);
			n += 7;
		}
		b[n++] = '}';
		for (i = 1; i < levels; i++)
			b[n++] = 's';
		b[n++] = '.';
		ok(try(b, n) == (levels == 65 ? 0 : LPO_EFORMAT), "%d dicts "
		    "in each other %s", levels, lpo_errmsg(c));
	}
	memset(b, '(', 50000);
	b[50000] = '.';
	ok(try(b, 50001) == LPO_EFORMAT, "marks: %s", lpo_errmsg(c));
	memset(b, ']', 50000);
	memset(b + 50000, 'a', 9000);
	b[59000] = '.';
	ok(try(b, 59001) == LPO_EFORMAT, "lists: %s", lpo_errmsg(c));
}

static void
zips(void)
{
	static struct zip z;
	const char *pkl = "\x80\2}.";
	lpo_st *st;

	memset(&z, 0, sizeof(z));
	ok(finish(&z, &st) == LPO_EFORMAT, "an empty zip: %s", lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	put(&z, "data.pkl", pkl, 4);
	ok(finish(&z, &st) == LPO_EFORMAT, "no stem: %s", lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	put(&z, "a/data.pkl", pkl, 4);
	put(&z, "b/data.pkl", pkl, 4);
	ok(finish(&z, &st) == LPO_EFORMAT, "two stems: %s", lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	put(&z, "a/data.pkl", pkl, 4);
	put(&z, "a/data.pkl", pkl, 4);
	ok(finish(&z, &st) == LPO_EFORMAT, "a member twice: %s",
	    lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	z.flags = 1;
	put(&z, "a/data.pkl", pkl, 4);
	ok(finish(&z, &st) == LPO_EFORMAT, "encrypted: %s", lpo_errmsg(c));
	for (z.method = 1; z.method < 100; z.method++) {
		int m = z.method;

		memset(&z, 0, sizeof(z));
		z.method = m;
		put(&z, "a/data.pkl", pkl, 4);
		if (finish(&z, &st) != LPO_EFORMAT)
			break;
	}
	ok(z.method == 100, "compressed: %s", lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	z.size_add = 1 << 20;
	put(&z, "a/data.pkl", pkl, 4);
	ok(finish(&z, &st) == LPO_EFORMAT, "beyond the file: %s",
	    lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	put(&z, "a/data.pkl", pkl, 4);
	z.b[40] ^= 1;
	ok(finish(&z, &st) == LPO_EFORMAT, "a wrong sum: %s", lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	put(&z, "a/data.pkl", pkl, 4);
	put(&z, "a/code/x.py", "x", 1);
	ok(finish(&z, &st) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	memset(&z, 0, sizeof(z));
	put(&z, "a/data.pkl", pkl, 4);
	put(&z, "a/byteorder", "", 0);
	ok(finish(&z, &st) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
}

int
main(void)
{
	c = lpo_ctx_new();
	if (c == NULL)
		return 1;
	tensors();
	pickles();
	bombs();
	zips();
	damage("lrm_float.pt");
	damage("protocol4.pt");
	lpo_ctx_free(c);
	return done_testing();
}
