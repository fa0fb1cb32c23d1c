/*
 * Torch files: what torch.save wrote is read as torch.load reads it, other and
 * hostile files are refused, what is written here has a zip's and a pickle's
 * form.  Golden files by tests/golden/make_torch.py.
 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "lib/base/file.h"
#include "lib/io/safetensors.h"
#include "lib/io/torch.h"
#include "tests/tap.h"

#define GOLDEN "tests/golden/torch/"

static char dir[] = "/tmp/lpo-torch-XXXXXX";
static lpo_ctx *c;

/* ---------------------------------------------------------------- golden */

static int
same(const struct lpo_st_tensor *a, const struct lpo_st_tensor *b)
{
	return strcmp(a->dtype_name, b->dtype_name) == 0 &&
	    a->ndim == b->ndim && a->count == b->count &&
	    a->bytes == b->bytes && memcmp(a->shape, b->shape,
	    (size_t)a->ndim * sizeof(a->shape[0])) == 0 &&
	    memcmp(a->data, b->data, (size_t)a->bytes) == 0;
}

/* All tensors of a file, by key, type, shape and bits, and no others. */
static void
check_file(const lpo_st *want, const char *name)
{
	const struct lpo_st_tensor *t, *u;
	char path[256];
	size_t n = strlen(name);
	int64_t i, k = 0, bad = 0;
	lpo_st *st = NULL;

	snprintf(path, sizeof(path), GOLDEN "%s", name);
	if (!ok(lpo_st_open(c, &st, path) == 0, "%s %s", name,
	    lpo_errmsg(c))) {
		lpo_clear(c);
		return;
	}
	for (i = 0; (t = lpo_st_at(want, i)) != NULL; i++) {
		if (strncmp(t->key, name, n) != 0 || t->key[n] != '|')
			continue;
		k++;
		u = lpo_st_find(st, t->key + n + 1);
		if (u == NULL || !same(t, u)) {
			bad++;
			printf("# %s: %s\n", t->key, u ? "differs" : "absent");
		}
	}
	ok(k > 0 && bad == 0 && k == lpo_st_count(st), "%s: %lld tensors, "
	    "%lld there, %lld differ", name, (long long)k,
	    (long long)lpo_st_count(st), (long long)bad);
	lpo_st_close(st);
}

static void
golden(void)
{
	static const char *const name[] = { "types.pt", "views.pt",
	    "trainer.ckpt", "parameters.bin", "protocol4.pt", "lrm_float.pt",
	    "lrm_tensor.pt", "subclass.pt", "мир.pth" };
	static const char *const bad[][2] = { { "legacy", "before 1.6" },
	    { "tensor", "not a dict" }, { "object", "not a dict" },
	    { "list", "does not hold a dict" }, { "script", "TorchScript" },
	    { "deflated", "compressed" }, { "big-endian", "byte order" } };
	char path[256];
	lpo_st *want = NULL, *st;
	size_t i;

	if (!ok(lpo_st_open(c, &want, GOLDEN "expected.safetensors") == 0,
	    "golden"))
		return;
	for (i = 0; i < sizeof(name) / sizeof(*name); i++)
		check_file(want, name[i]);
	lpo_st_close(want);
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		snprintf(path, sizeof(path), GOLDEN "refused-%s.pt",
		    bad[i][0]);
		ok(lpo_st_open(c, &st, path) == LPO_EFORMAT &&
		    strstr(lpo_errmsg(c), bad[i][1]) != NULL, "%s",
		    lpo_errmsg(c));
		lpo_clear(c);
	}
}

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

	snprintf(path, sizeof(path), GOLDEN "%s", name);
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
le(uint8_t *p, size_t *n, uint64_t v, int bytes)
{
	while (bytes-- > 0) {
		p[(*n)++] = (uint8_t)v;
		v >>= 8;
	}
}

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
#define STORAGE(type, key, n) "(X\7\0\0\0storagec" type "\nX" key \
	"X\3\0\0\0cpu" n "tQ"
#define REBUILD(storage, rest) "ctorch._utils\n_rebuild_tensor_v2\n(" \
	storage rest "\x89)tR"
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

/* ------------------------------------------------- more than 4 GiB in one */

/*
 * As torch writes them: a local header, which leaves sum and size to the
 * record behind the bytes and has a filler, or at >= 0 that of the directory
 * for the member there.
 */
static void
head64(uint8_t *p, size_t *n, const char *name, uint32_t crc, uint64_t bytes,
    int64_t at)
{
	le(p, n, at < 0 ? 0x04034b50 : 0x02014b50, 4);
	if (at >= 0)
		le(p, n, 45, 2);
	le(p, n, 45, 2);
	le(p, n, 0x808, 4);		/* UTF-8, a record behind; stored */
	le(p, n, 1 << 21 | 1 << 16, 4);
	le(p, n, at < 0 ? 0 : crc, 4);
	le(p, n, at < 0 ? 0 : UINT64_MAX, 8);
	le(p, n, strlen(name), 2);
	le(p, n, at < 0 ? 20 : 28, 2);
	if (at >= 0) {
		le(p, n, 0, 10);
		le(p, n, UINT64_MAX, 4);
	}
	memcpy(p + *n, name, strlen(name));
	*n += strlen(name);
	le(p, n, at < 0 ? 0x4246 : 1, 2);
	le(p, n, at < 0 ? 16 : 24, 2);
	le(p, n, at < 0 ? 0 : bytes, 8);
	le(p, n, at < 0 ? 0 : bytes, 8);
	if (at >= 0)
		le(p, n, (uint64_t)at, 8);
}

static void
behind64(uint8_t *p, size_t *n, uint32_t crc, uint64_t bytes)
{
	le(p, n, 0x08074b50, 4);
	le(p, n, crc, 4);
	le(p, n, bytes, 8);
	le(p, n, bytes, 8);
}

/* The sum of `head`, n zeros and `tail`, of 4 bytes each, none of it read. */
static uint32_t
sum_with_zeros(const void *head4, int64_t n, const void *tail4)
{
	const uint8_t zero = 0;
	uLong sum = crc32(0, head4, 4), z = crc32(0, &zero, 1);
	int64_t len;

	for (len = 1; len <= n; len *= 2) {
		if (n & len)
			sum = crc32_combine(sum, z, len);
		z = crc32_combine(z, z, len);
	}
	return (uint32_t)crc32_combine(sum, crc32(0, tail4, 4), 4);
}

/* Behind the members: their directory and both end records. */
static size_t
end64(uint8_t *p, size_t n, const uint8_t *cd, size_t ncd)
{
	size_t at = n, end = n + ncd;

	memcpy(p + n, cd, ncd);
	n += ncd;
	le(p, &n, 0x06064b50, 4);
	le(p, &n, 44, 8);
	le(p, &n, 45 << 16 | 45, 4);
	le(p, &n, 0, 8);
	le(p, &n, 3, 8);
	le(p, &n, 3, 8);
	le(p, &n, ncd, 8);
	le(p, &n, at, 8);
	le(p, &n, 0x07064b50, 4);
	le(p, &n, 0, 4);
	le(p, &n, end, 8);
	le(p, &n, 1, 4);
	le(p, &n, 0x06054b50, 4);
	le(p, &n, 0, 4);
	le(p, &n, UINT64_MAX, 8);
	le(p, &n, UINT64_MAX, 4);
	le(p, &n, 0, 2);
	return n;
}

/* {"w": all of storage "0", "x": of storage "1", two floats} */
#define HUGE_PICKLE "\x80\2}(X\1\0\0\0w" REBUILD(STORAGE( \
	"torch\nFloatStorage", "\1\0\0\0""0", "J\xfc\xfe\xff\x4f"), \
	"K\0J\xfc\xfe\xff\x4f\x85K\1\x85") "X\1\0\0\0x" \
	REBUILD(STORAGE("torch\nFloatStorage", "\1\0\0\0""1", "K\2"), \
	"K\0K\2\x85K\1\x85") "u."

enum { FIRST = 1000, HUGE_COUNT = 0x4ffffefc };

#define LAST (FIRST + (size_t)HUGE_COUNT * 4 + 24)	/* the last header */

/*
 * p has room and is zero, which most of it stays: then the system has one
 * page for all of it.  The last member's header lies across 5 GiB, where the
 * reader goes from a block to the next.
 */
static size_t
make_huge(uint8_t *p)
{
	const int64_t bytes = (int64_t)HUGE_COUNT * 4;
	const float one = 1, two = 2, x[2] = { 3, 4 };
	uint8_t cd[512];
	size_t n = 0, ncd = 0, pickle, second;
	uint32_t crc;

	pickle = FIRST - 2 * 50 - 24 - strlen("a/data.pkl") -
	    strlen("a/data/0");
	memcpy(p + 60, HUGE_PICKLE, sizeof(HUGE_PICKLE) - 1);
	crc = (uint32_t)crc32(0, p + 60, (uInt)pickle);
	head64(p, &n, "a/data.pkl", crc, pickle, -1);
	head64(cd, &ncd, "a/data.pkl", crc, pickle, 0);
	n += pickle;		/* what follows STOP is not looked at */
	behind64(p, &n, crc, pickle);
	crc = sum_with_zeros(&one, bytes - 8, &two);
	head64(cd, &ncd, "a/data/0", crc, (uint64_t)bytes, (int64_t)n);
	head64(p, &n, "a/data/0", crc, (uint64_t)bytes, -1);
	memcpy(p + n, &one, 4);
	n += (size_t)bytes;
	memcpy(p + n - 4, &two, 4);
	behind64(p, &n, crc, (uint64_t)bytes);
	second = n;
	crc = (uint32_t)crc32(0, (const void *)x, sizeof(x));
	head64(p, &n, "a/data/1", crc, sizeof(x), -1);
	head64(cd, &ncd, "a/data/1", crc, sizeof(x), (int64_t)second);
	memcpy(p + n, x, sizeof(x));
	n += sizeof(x);
	behind64(p, &n, crc, sizeof(x));
	return end64(p, n, cd, ncd);
}

static int
has_ends(const lpo_st *st, const char *key, int64_t count, float first,
    float last)
{
	const struct lpo_st_tensor *t = lpo_st_find(st, key);

	return t != NULL && t->count == count && t->bytes == 4 * count &&
	    memcmp(t->data, &first, 4) == 0 && memcmp((const uint8_t *)
	    t->data + t->bytes - 4, &last, 4) == 0;
}

static void
huge(void)
{
	const size_t room = ((size_t)5 << 30) + 4096;
	uint8_t *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE |
	    MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	lpo_st *st = NULL;
	size_t n;

	if (p == MAP_FAILED) {
		skip("no address space of 5 GiB");
		return;
	}
	madvise(p, room, MADV_HUGEPAGE);
	n = make_huge(p);
	ok(LAST < (size_t)5 << 30 && LAST + 30 > (size_t)5 << 30,
	    "a header across 5 GiB");
	if (ok(lpo_st_open_memory(c, &st, p, n, "m") == 0, "a storage of "
	    "5 GiB%s", lpo_errmsg(c)))
		ok(has_ends(st, "w", HUGE_COUNT, 1, 2) &&
		    has_ends(st, "x", 2, 3, 4), "its first and last values, "
		    "and those of the storage after it");
	lpo_st_close(st);
	lpo_clear(c);
	p[(size_t)9 << 29] = 1;
	ok(lpo_st_open_memory(c, &st, p, n, "m") == LPO_EFORMAT &&
	    strstr(lpo_errmsg(c), "CRC") != NULL, "a byte beyond 4 GiB "
	    "damaged: %s", lpo_errmsg(c));
	lpo_clear(c);
	munmap(p, room);
}

/* --------------------------------------------------------------- writing */

static void
written(void)
{
	const int64_t s23[2] = { 2, 3 }, s1[1] = { 3 };
	const float x[6] = { 1, -2, 0.1f, 1e-40f, 3e38f, 0 }, s = 2.6592f;
	const struct lpo_torch_item it[4] = {
		{ "v", "weight", 2, s23, x }, { "v", "bias", 1, s1, x + 1 },
		{ "t", "weight", 2, s23, x }, { "scale", NULL, 0, NULL, &s }
	};
	char path[2][256], *a = NULL, *b = NULL;
	const struct lpo_st_tensor *t;
	size_t na = 0, nb = 1;
	lpo_st *st = NULL;
	double d = 0;
	int i;

	for (i = 0; i < 2; i++) {
		snprintf(path[i], sizeof(path[i]), "%s/%d.pt", dir, i);
		ok(lpo_torch_write(c, path[i], it, 4) == 0, "write%s",
		    lpo_errmsg(c));
	}
	lpo_file_read(c, &a, &na, path[0], 1 << 20);
	lpo_file_read(c, &b, &nb, path[1], 1 << 20);
	ok(na == nb && memcmp(a, b, na) == 0, "the same bytes each time");
	lpo_free(a);
	lpo_free(b);
	if (!ok(lpo_st_open(c, &st, path[0]) == 0 && lpo_st_count(st) == 4,
	    "read back%s", lpo_errmsg(c)))
		return;
	t = lpo_st_need(c, st, "v.weight", 2, s23);
	ok(t != NULL && t->dtype == LPO_F32 && memcmp(t->data, x,
	    sizeof(x)) == 0 && (uintptr_t)t->data % 64 == 0, "a tensor");
	t = lpo_st_need(c, st, "v.bias", 1, s1);
	ok(t != NULL && memcmp(t->data, x + 1, 12) == 0, "a vector");
	t = lpo_st_find(st, "scale");
	if (t != NULL)
		memcpy(&d, t->data, 8);
	ok(t != NULL && t->ndim == 0 && t->dtype == LPO_F64 && d == s,
	    "a number is a float of Python");
	lpo_st_close(st);
}

static void
out_of_memory(void)
{
	const float s = 1;
	const struct lpo_torch_item it = { "s", NULL, 0, NULL, &s };
	char path[256];
	lpo_st *st;
	int rc = LPO_ENOMEM;
	long n;

	for (n = 0; n < 2000 && rc != 0; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		rc = lpo_st_open(c, &st, GOLDEN "parameters.bin");
		lpo_alloc_fail_at(-1);
		if (rc == 0)
			lpo_st_close(st);
		else if (rc != LPO_ENOMEM || st != NULL)
			break;
	}
	ok(rc == 0 && n > 20, "%ld failing allocations of a reader, each "
	    "LPO_ENOMEM (%s)", n - 1, lpo_errmsg(c));
	snprintf(path, sizeof(path), "%s/oom.pt", dir);
	rc = LPO_ENOMEM;
	for (n = 0; n < 500 && rc != 0; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		rc = lpo_torch_write(c, path, &it, 1);
		lpo_alloc_fail_at(-1);
		if (rc != 0 && (rc != LPO_ENOMEM || lpo_file_exists(path)))
			break;
	}
	ok(rc == 0 && n > 3, "%ld of a writer (%s)", n - 1, lpo_errmsg(c));
}

int
main(void)
{
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	golden();
	tensors();
	pickles();
	bombs();
	zips();
	huge();
	damage("lrm_float.pt");
	damage("protocol4.pt");
	written();
	out_of_memory();
	lpo_rmtree(c, dir);
	lpo_ctx_free(c);
	return done_testing();
}
