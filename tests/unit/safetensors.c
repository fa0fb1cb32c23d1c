/*
 * safetensors: what is written is read, hostile headers are refused, older
 * files' misaligned tensors are read right, sharded indexes.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/hash.h"
#include "lib/io/safetensors.h"
#include "lib/io/torch.h"
#include "tests/tap.h"

static char dir[] = "/tmp/lpo-st-XXXXXX";
static lpo_ctx *c;

/* Header text and `bytes` zeros behind it, opened from exact memory. */
static int
try(const char *head, size_t bytes)
{
	size_t n = strlen(head), i;
	uint8_t *p = calloc(1, 8 + n + bytes);
	lpo_st *st = NULL;
	int rc;

	for (i = 0; i < 8; i++)
		p[i] = (uint8_t)((uint64_t)n >> 8 * i);
	memcpy(p + 8, head, n);
	lpo_clear(c);
	rc = lpo_st_open_memory(c, &st, p, 8 + n + bytes, "m");
	lpo_st_close(st);
	free(p);
	return rc;
}

#define T(dt, sh, b, e) "\"dtype\":\"" dt "\",\"shape\":" sh \
	",\"data_offsets\":[" #b "," #e "]"

static void
hostile(void)
{
	static const struct {
		const char *what, *head;
		size_t bytes;
		int rc;
	} v[] = {
	    { "empty object", "{}", 0, 0 },
	    { "trailing blanks", "{}      ", 0, 0 },
	    { "one tensor", "{\"a\":{" T("F32", "[2,3]", 0, 24) "}}", 24, 0 },
	    { "scalar", "{\"a\":{" T("F64", "[]", 0, 8) "}}", 8, 0 },
	    { "empty tensor", "{\"a\":{" T("F32", "[0,9]", 0, 0) "}}", 0, 0 },
	    { "out of order", "{\"b\":{" T("U8", "[4]", 4, 8) "},\"a\":{"
	      T("F32", "[1]", 0, 4) "}}", 8, 0 },
	    { "metadata", "{\"__metadata__\":{\"format\":\"pt\"}}", 0, 0 },
	    { "F4 pairs", "{\"a\":{" T("F4", "[2]", 0, 1) "}}", 1, 0 },
	    { "no object", "[]", 0, LPO_EFORMAT },
	    { "blank first", " {}", 0, LPO_EFORMAT },
	    { "not JSON", "{\"a\":", 0, LPO_EFORMAT },
	    { "not UTF-8", "{\"\xff\":{" T("U8", "[1]", 0, 1) "}}", 1,
	      LPO_EFORMAT },
	    { "metadata of numbers", "{\"__metadata__\":{\"a\":1}}", 0,
	      LPO_EFORMAT },
	    { "metadata no object", "{\"__metadata__\":[]}", 0, LPO_EFORMAT },
	    { "duplicate key", "{\"a\":{" T("U8", "[1]", 0, 1) "},\"a\":{"
	      T("U8", "[1]", 0, 1) "}}", 1, LPO_EFORMAT },
	    { "a further member", "{\"a\":{" T("U8", "[1]", 0, 1)
	      ",\"x\":1}}", 1, LPO_EFORMAT },
	    { "a member less", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1,
	      LPO_EFORMAT },
	    { "unknown dtype", "{\"a\":{" T("Q8", "[1]", 0, 1) "}}", 1,
	      LPO_EFORMAT },
	    { "negative size", "{\"a\":{" T("U8", "[-1]", 0, 1) "}}", 1,
	      LPO_EFORMAT },
	    { "real size", "{\"a\":{" T("U8", "[1.0]", 0, 1) "}}", 1,
	      LPO_EFORMAT },
	    { "overflowing count", "{\"a\":{" T("U8",
	      "[4294967296,4294967296,16]", 0, 1) "}}", 1, LPO_EFORMAT },
	    { "overflowing to zero bytes", "{\"a\":{" T("F32",
	      "[4611686018427387904]", 0, 0) "}}", 0, LPO_EFORMAT },
	    { "odd F4", "{\"a\":{" T("F4", "[3]", 0, 1) "}}", 1,
	      LPO_EFORMAT },
	    { "nine dimensions", "{\"a\":{" T("U8", "[1,1,1,1,1,1,1,1,1]", 0,
	      1) "}}", 1, LPO_EFORMAT },
	    { "span too long", "{\"a\":{" T("U8", "[1]", 0, 2) "}}", 2,
	      LPO_EFORMAT },
	    { "span reversed", "{\"a\":{" T("U8", "[1]", 2, 1) "}}", 2,
	      LPO_EFORMAT },
	    { "beyond the file", "{\"a\":{" T("U8", "[9]", 0, 9) "}}", 8,
	      LPO_EFORMAT },
	    { "far beyond the file", "{\"a\":{" T("U8", "[1]",
	      9223372036854775806, 9223372036854775807) "}}", 8,
	      LPO_EFORMAT },
	    { "hole", "{\"a\":{" T("U8", "[1]", 0, 1) "},\"b\":{"
	      T("U8", "[1]", 2, 3) "}}", 3, LPO_EFORMAT },
	    { "overlap", "{\"a\":{" T("U8", "[2]", 0, 2) "},\"b\":{"
	      T("U8", "[2]", 1, 3) "}}", 3, LPO_EFORMAT },
	    { "rest", "{\"a\":{" T("U8", "[1]", 0, 1) "}}", 2, LPO_EFORMAT },
	    { "hole before", "{\"a\":{" T("U8", "[1]", 1, 2) "}}", 2,
	      LPO_EFORMAT },
	};
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++)
		ok(try(v[i].head, v[i].bytes) == v[i].rc, "%s%s%s", v[i].what,
		    v[i].rc ? ": " : "", lpo_errmsg(c));
}

static void
hostile_lengths(void)
{
	static const uint8_t huge[16] = { 255, 255, 255, 255, 255, 255, 255,
	    127, '{', '}' }, minus[16] = { 255, 255, 255, 255, 255, 255, 255,
	    255, '{', '}' };
	char deep[512];
	lpo_st *st;
	size_t i;

	memset(deep, '[', 200);
	memcpy(deep, "{\"a\":", 5);
	deep[200] = '\0';
	ok(try(deep, 0) == LPO_EFORMAT, "nesting: %s", lpo_errmsg(c));
	for (i = 0; i < 8; i++) {
		lpo_clear(c);
		if (lpo_st_open_memory(c, &st, huge, i, "m") != LPO_EFORMAT)
			break;
	}
	ok(i == 8, "shorter than 8 bytes");
	lpo_clear(c);
	ok(lpo_st_open_memory(c, &st, huge, 16, "m") == LPO_EFORMAT,
	    "header length: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_st_open_memory(c, &st, minus, 16, "m") == LPO_EFORMAT,
	    "header length: %s", lpo_errmsg(c));
	lpo_clear(c);
}

static char *
at(const char *name)
{
	static char path[4][256];
	static int k;

	k = (k + 1) % 4;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

static int
later(void *arg, int64_t first, float *out, int64_t n)
{
	memcpy(out, (float *)arg + first, (size_t)n * sizeof(*out));
	return 0;
}

static int
never(void *arg, int64_t first, float *out, int64_t n)
{
	(void)first;
	(void)out;
	(void)n;
	return lpo_fail(arg, LPO_EINVAL, "a value that cannot be stored");
}

static const int64_t s23[2] = { 2, 3 }, s2[1] = { 2 };
static const int64_t ids[2] = { -5, (int64_t)1 << 40 };
static float six[6] = { 0, -1, 0.1f, 65504, 1e-7f, 3 };

/* In one order of adding or the other. */
static void
write_file(const char *name, int backwards)
{
	lpo_stw *w = NULL;
	int i;

	ok(lpo_stw_new(c, &w) == 0, "writer");
	for (i = 0; i < 5; i++)
		switch (backwards ? 4 - i : i) {
		case 0:
			lpo_stw_add_f32(w, "z.f32", LPO_F32, 2, s23, six);
			break;
		case 1:
			if (backwards)
				lpo_stw_add_made(w, "half", LPO_F16, 2, s23,
				    later, six);
			else
				lpo_stw_add_f32(w, "half", LPO_F16, 2, s23, six);
			break;
		case 2:
			lpo_stw_add_f32(w, "b\"rain", LPO_BF16, 2, s23, six);
			break;
		case 3:
			lpo_stw_add(w, "ids", LPO_I64, 1, s2, ids);
			break;
		case 4:
			lpo_stw_meta(w, "run", "0123");
			lpo_stw_meta(w, "format", "pt");
		}
	ok(lpo_stw_write(w, at(name)) == 0, "write %s", lpo_errmsg(c));
	lpo_stw_free(w);
}

static void
round_trip(void)
{
	const int64_t wild[2] = { -1, 3 };
	float back[6];
	int64_t iback[2];
	lpo_st *st = NULL;
	char a[65], b[65];
	int i, k;

	write_file("a.safetensors", 0);
	write_file("b.safetensors", 1);
	lpo_sha256_file(c, a, at("a.safetensors"));
	lpo_sha256_file(c, b, at("b.safetensors"));
	ok(strcmp(a, b) == 0, "the order of adding changes no byte, "
	    "nor values that come at the write");
	/* What safetensors.torch.save (0.8.0) writes for these. */
	ok(strncmp(a, "eed5f59215a6db45", 16) == 0, "the reference's bytes: %.16s", a);
	ok(lpo_st_open(c, &st, at("a.safetensors")) == 0, "open");
	ok(lpo_st_count(st) == 4 && strcmp(lpo_st_meta(st, "run"), "0123")
	    == 0 && lpo_st_meta(st, "none") == NULL, "count, metadata");
	ok(lpo_st_f32(c, back, lpo_st_find(st, "z.f32")) == 0 &&
	    memcmp(back, six, sizeof(six)) == 0, "f32 exact");
	ok(lpo_st_f32(c, back, lpo_st_find(st, "half")) == 0 &&
	    back[3] == 65504 && fabsf(back[2] - 0.1f) < 1e-4f &&
	    fabsf(back[4] - 1e-7f) < 3e-8f, "f16");
	ok(lpo_st_f32(c, back, lpo_st_find(st, "b\"rain")) == 0 &&
	    back[3] == 65536 && fabsf(back[2] - 0.1f) < 4e-4f, "bf16");
	ok(lpo_st_i64(c, iback, lpo_st_find(st, "ids")) == 0 &&
	    memcmp(iback, ids, sizeof(ids)) == 0, "i64");
	ok(lpo_st_i64(c, iback, lpo_st_find(st, "half")) == LPO_EFORMAT,
	    "%s", lpo_errmsg(c));
	lpo_clear(c);
	for (i = 0, k = 1; i < lpo_st_count(st); i++)
		k &= (uintptr_t)lpo_st_at(st, i)->data % lpo_dtype_bytes(
		    (enum lpo_dtype)lpo_st_at(st, i)->dtype) == 0;
	ok(k && lpo_st_at(st, 4) == NULL && lpo_st_at(st, -1) == NULL,
	    "every tensor is aligned");
	ok(lpo_st_need(c, st, "half", 2, wild) != NULL, "need, any rows");
	ok(lpo_st_need(c, st, "ids", 2, s23) == NULL, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_st_need(c, st, "nope", 2, s23) == NULL &&
	    lpo_errcode(c) == LPO_ENOTFOUND, "%s", lpo_errmsg(c));
	lpo_clear(c);
	lpo_st_close(st);
}

static void
refused_writes(void)
{
	lpo_stw *w = NULL;

	lpo_stw_new(c, &w);
	lpo_stw_add(w, "a", LPO_I64, 1, s2, ids);
	lpo_stw_add(w, "a", LPO_F32, 1, s2, six);
	ok(lpo_stw_write(w, at("c")) == LPO_EINVAL &&
	    !lpo_file_exists(at("c")), "%s", lpo_errmsg(c));
	lpo_clear(c);
	lpo_stw_free(w);
	lpo_stw_new(c, &w);
	lpo_stw_add_made(w, "a", LPO_BF16, 2, s23, later, six);
	lpo_stw_add_made(w, "b", LPO_F32, 2, s23, never, c);
	ok(lpo_stw_write(w, at("c")) == LPO_EINVAL &&
	    !lpo_file_exists(at("c")), "values that fail leave no file: %s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_stw_free(w);
}

/* Header length 3 mod 4: data misaligned for every type (models.md 1.7). */
static void
misaligned(void)
{
	const char *head = "{\"a\":{" T("F32", "[2]", 0, 8) "},\"i\":{"
	    T("I64", "[1]", 8, 16) "}} ";
	size_t n = strlen(head);
	uint8_t *p = calloc(1, 8 + n + 16);
	float x[2] = { 1.5f, -2 }, back[2] = { 0 };
	int64_t i = 77, iback = 0;
	lpo_st *st = NULL;

	p[0] = (uint8_t)n;
	memcpy(p + 8, head, n);
	memcpy(p + 8 + n, x, 8);
	memcpy(p + 8 + n + 8, &i, 8);
	ok(n % 4 != 0 && lpo_st_open_memory(c, &st, p, 8 + n + 16, "m") == 0 &&
	    lpo_st_f32(c, back, lpo_st_find(st, "a")) == 0 &&
	    lpo_st_i64(c, &iback, lpo_st_find(st, "i")) == 0 &&
	    back[0] == 1.5f && back[1] == -2 && iback == 77, "misaligned");
	lpo_st_close(st);
	free(p);
}

static int
shard(const char *name, const char *key)
{
	const int64_t one[1] = { 1 };
	const float x = 1;
	lpo_stw *w = NULL;
	int rc = lpo_stw_new(c, &w);

	if (rc == 0 && (rc = lpo_stw_add(w, key, LPO_F32, 1, one, &x)) == 0)
		rc = lpo_stw_write(w, at(name));
	lpo_stw_free(w);
	return rc;
}

static void
sharded(void)
{
	static const char *bad[] = {
		"{\"weight_map\":{\"a\":\"../m1.safetensors\"}}",
		"{\"weight_map\":{\"a\":\"/m1.safetensors\"}}",
		"{\"weight_map\":{\"a\":7}}", "{\"weight_map\":[]}", "{",
		"{\"weight_map\":{\"nope\":\"m1.safetensors\"}}",
		"{\"weight_map\":{\"a\":\"absent.safetensors\"}}",
		("{\"weight_map\":{\"a\":\"m1.safetensors\","
		    "\"b\":\"same.safetensors\"}}"),
	};
	const char *good = "{\"metadata\":{\"total_size\":8},\"weight_map\":"
	    "{\"a\":\"m1.safetensors\",\"b\":\"m2.safetensors\"}}";
	char *index = strdup(at("m.safetensors.index.json"));
	lpo_st *st = NULL;
	size_t i;

	ok(shard("m1.safetensors", "a") == 0 &&
	    shard("m2.safetensors", "b") == 0 &&
	    shard("same.safetensors", "a") == 0, "shards");
	lpo_file_write(c, index, good, strlen(good));
	ok(lpo_st_open_stem(c, &st, dir, "m", NULL) == 0 &&
	    lpo_st_count(st) == 2 && lpo_st_find(st, "b") != NULL,
	    "an index is its union%s", lpo_errmsg(c));
	lpo_st_close(st);
	ok(lpo_st_open_stem(c, &st, dir, "m1", NULL) == 0, "a file by stem");
	lpo_st_close(st);
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		lpo_file_write(c, index, bad[i], strlen(bad[i]));
		ok(lpo_st_open(c, &st, index) < 0 && st == NULL, "%s",
		    lpo_errmsg(c));
		lpo_clear(c);
	}
	ok(lpo_st_open_stem(c, &st, dir, "m1", "fp16") == LPO_ENOTFOUND, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_file_write(c, at("old.bin"), "x", 1);
	ok(lpo_st_open_stem(c, &st, dir, "old", NULL) < 0, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	free(index);
}

/* One tensor of this key in a torch file. */
static int
pickled(const char *name, const char *key)
{
	const int64_t one[1] = { 1 };
	const float x = 1;
	const struct lpo_torch_item it = { key, "w", 1, one, &x };

	return lpo_torch_write(c, at(name), &it, 1);
}

/* The key that the stem's first tensor has, "" where there is no file. */
static const char *
chosen(const char *stem, const char *variant)
{
	static char key[64];
	lpo_st *st = NULL;

	key[0] = '\0';
	if (lpo_st_open_stem(c, &st, dir, stem, variant) == 0)
		snprintf(key, sizeof(key), "%s", lpo_st_at(st, 0)->key);
	lpo_st_close(st);
	lpo_clear(c);
	return key;
}

static int
index_of(const char *name, const char *key, const char *file)
{
	char text[256];

	snprintf(text, sizeof(text), "{\"weight_map\":{\"%s\":\"%s\"}}", key,
	    file);
	return lpo_file_write(c, at(name), text, strlen(text));
}

/* models.md 1.8, from what is taken last to what is taken first */
static void
precedence(void)
{
	ok(strcmp(chosen("u", NULL), "") == 0, "nothing there");
	pickled("u.bin", "bin");
	ok(strcmp(chosen("u", NULL), "bin.w") == 0, ".bin alone");
	pickled("u-00001-of-00001.bin", "shard");
	index_of("u.bin.index.json", "shard.w", "u-00001-of-00001.bin");
	ok(strcmp(chosen("u", NULL), "shard.w") == 0, "before it its index");
	shard("u.safetensors", "one");
	ok(strcmp(chosen("u", NULL), "one") == 0, "before these safetensors");
	shard("u-00001-of-00001.safetensors", "s");
	index_of("u.safetensors.index.json", "s",
	    "u-00001-of-00001.safetensors");
	ok(strcmp(chosen("u", NULL), "s") == 0, "first of all its index");

	ok(strcmp(chosen("u", "fp16"), "") == 0, "no variant");
	pickled("u.fp16.bin", "vbin");
	ok(strcmp(chosen("u", "fp16"), "vbin.w") == 0, "u.fp16.bin");
	shard("u.fp16.safetensors", "v");
	ok(strcmp(chosen("u", "fp16"), "v") == 0, "u.fp16.safetensors");
	shard("u-00001-of-00001.fp16.safetensors", "old");
	index_of("u.safetensors.fp16.index.json", "old",
	    "u-00001-of-00001.fp16.safetensors");
	ok(strcmp(chosen("u", "fp16"), "old") == 0, "the old index");
	shard("u.fp16-00001-of-00001.safetensors", "new");
	index_of("u.safetensors.index.fp16.json", "new",
	    "u.fp16-00001-of-00001.safetensors");
	ok(strcmp(chosen("u", "fp16"), "new") == 0, "the new index");
	ok(strcmp(chosen("u", NULL), "s") == 0, "the plain ones still");
	pickled("pytorch_model.bin", "hf");
	ok(strcmp(chosen("model", NULL), "hf.w") == 0, "transformers' name");
	pickled("pytorch_model.fp16.bin", "hf16");
	ok(strcmp(chosen("model", "fp16"), "hf16.w") == 0, "and variant");
}

/* Another file's tensors stored again, whatever their type was. */
static void
stored_again(void)
{
	enum { N = 5000 };
	static float x[N], y[N];
	const int64_t s[1] = { N };
	static const enum lpo_dtype dt[3] = { LPO_F32, LPO_F16, LPO_BF16 };
	lpo_st *st[3] = { NULL }, *back = NULL;
	const struct lpo_st_tensor *t;
	lpo_stw *w;
	char name[16];
	int i, j, rc;

	for (i = 0; i < N; i++)
		x[i] = (float)(i % 117) / 8 - 3;	/* exact in bf16 */
	for (i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "from%d", i);
		lpo_stw_new(c, &w);
		lpo_stw_add_f32(w, "x", dt[i], 1, s, x);
		rc = lpo_stw_write(w, at(name));
		lpo_stw_free(w);
		ok(rc == 0 && lpo_st_open(c, &st[i], at(name)) == 0, "from %s",
		    lpo_dtype_name(dt[i]));
	}
	for (j = 0; j < 3; j++) {
		lpo_stw_new(c, &w);
		for (i = 0; i < 3; i++) {
			snprintf(name, sizeof(name), "x%d", i);
			lpo_stw_add_tensor(w, name, dt[j], st[i],
			    lpo_st_at(st[i], 0));
		}
		rc = lpo_stw_write(w, at("again"));
		lpo_stw_free(w);
		if (rc == 0)
			rc = lpo_st_open(c, &back, at("again"));
		for (i = 0; i < 3 && rc == 0; i++) {
			t = lpo_st_at(back, i);
			rc = t->dtype != (int)dt[j] || t->count != N ||
			    lpo_st_f32(c, y, t) != 0 ||
			    memcmp(x, y, sizeof(x)) != 0;
		}
		ok(rc == 0, "to %s %s", lpo_dtype_name(dt[j]), lpo_errmsg(c));
		lpo_st_close(back);
		back = NULL;
	}
	for (i = 0; i < 3; i++)
		lpo_st_close(st[i]);
}

/* Cut at every byte, every bit of the header flipped: opened or refused. */
static void
damage(void)
{
	char *p;
	size_t n, i;
	int64_t cut = 0, refused = 0;
	uint8_t *q;
	lpo_st *st;

	if (!ok(lpo_file_read(c, &p, &n, at("a.safetensors"), 1 << 20) == 0,
	    "read"))
		return;
	for (i = 0; i < n; i++) {
		q = malloc(i + 1);	/* exact, so that ASan sees overruns */
		memcpy(q, p, i);
		cut += lpo_st_open_memory(c, &st, q, i, "m") == LPO_EFORMAT;
		lpo_clear(c);
		free(q);
	}
	ok(cut == (int64_t)n, "every cut of %zu is refused", n);
	for (i = 0; i < 8 * 500 && i < 8 * n; i++) {
		float back[6];
		const struct lpo_st_tensor *t;
		int64_t k;

		p[i / 8] ^= (char)(1 << i % 8);
		if (lpo_st_open_memory(c, &st, p, n, "m") == 0) {
			for (k = 0; (t = lpo_st_at(st, k)) != NULL; k++)
				if (t->count <= 6)
					lpo_st_f32(c, back, t);
			lpo_st_close(st);
		} else
			refused++;
		lpo_clear(c);
		p[i / 8] ^= (char)(1 << i % 8);
	}
	ok(refused > 1000, "4000 bit flips: no crash, %lld refused",
	    (long long)refused);
	lpo_free(p);
}

/* Every allocation of writing and reading fails once. */
static void
out_of_memory(void)
{
	const int64_t s[1] = { 2 };
	const float x[2] = { 1, 2 };
	lpo_stw *w;
	lpo_st *st;
	int rc = LPO_ENOMEM;
	long n;

	for (n = 0; n < 500 && rc != 0; n++) {
		w = NULL;
		st = NULL;
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		if ((rc = lpo_stw_new(c, &w)) == 0 &&
		    (rc = lpo_stw_meta(w, "a", "b")) == 0 &&
		    (rc = lpo_stw_add(w, "k", LPO_F32, 1, s, x)) == 0 &&
		    (rc = lpo_stw_write(w, at("oom"))) == 0)
			rc = lpo_st_open(c, &st, at("oom"));
		lpo_alloc_fail_at(-1);
		lpo_stw_free(w);
		lpo_st_close(st);
		if (rc != 0 && rc != LPO_ENOMEM)
			break;
	}
	ok(rc == 0 && n > 10, "%ld failing allocations, each LPO_ENOMEM (%s)",
	    n - 1, lpo_errmsg(c));
}

int
main(void)
{
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	hostile();
	hostile_lengths();
	round_trip();
	refused_writes();
	misaligned();
	sharded();
	precedence();
	stored_again();
	damage();
	out_of_memory();
	ok(lpo_rmtree(c, dir) == 0, "clean up");
	lpo_ctx_free(c);
	return done_testing();
}
