/*
 * safetensors: what is accepted covers the file exactly, and comes back from
 * our writer as it was.
 */
#include "lib/io/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void
same(const struct lpo_st_tensor *a, const struct lpo_st_tensor *b)
{
	CHECK(a->dtype == b->dtype && a->ndim == b->ndim &&
	    a->bytes == b->bytes && strcmp(a->key, b->key) == 0);
	CHECK(memcmp(a->shape, b->shape, sizeof(a->shape)) == 0);
	CHECK(a->bytes == 0 ||
	    memcmp(a->data, b->data, (size_t)a->bytes) == 0);
}

static void
again(lpo_ctx *c, const lpo_st *st)
{
	const char *path = fuzz_path("a.safetensors"), *key;
	const struct lpo_st_tensor *t;
	lpo_stw *w = NULL;
	lpo_st *back = NULL;
	int64_t i, written = 0, seen = 0;
	json_t *v;

	CHECK(lpo_stw_new(c, &w) == 0);
	json_object_foreach((json_t *)(uintptr_t)lpo_st_metadata(st), key, v)
		CHECK(lpo_stw_meta(w, key, json_string_value(v)) == 0);
	for (i = 0; (t = lpo_st_at(st, i)) != NULL; i++)
		if (t->dtype >= 0) {
			CHECK(lpo_stw_add(w, t->key, (enum lpo_dtype)t->dtype,
			    t->ndim, t->shape, t->data) == 0);
			written++;
		}
	CHECK(lpo_stw_write(w, path) == 0);
	CHECK(lpo_st_open(c, &back, path) == 0);
	CHECK(lpo_st_count(back) == written);
	for (i = 0; (t = lpo_st_at(st, i)) != NULL; i++)
		if (t->dtype >= 0)
			same(t, lpo_st_at(back, seen++));
	json_object_foreach((json_t *)(uintptr_t)lpo_st_metadata(st), key, v)
		CHECK(strcmp(lpo_st_meta(back, key), json_string_value(v)) ==
		    0);
	lpo_st_close(back);
	lpo_stw_free(w);
}

static void
look(lpo_ctx *c, const lpo_st *st, const uint8_t *p, size_t n)
{
	const struct lpo_st_tensor *t;
	int64_t i, k, bytes = 0, at = 8, *whole;
	float *f;

	for (k = 7; k >= 0; k--)
		bytes = bytes << 8 | p[k];
	at += bytes;
	for (bytes = i = 0; (t = lpo_st_at(st, i)) != NULL; i++) {
		CHECK((const uint8_t *)t->data >= p + at &&
		    (const uint8_t *)t->data + t->bytes <= p + n);
		CHECK(lpo_st_find(st, t->key) == t);
		bytes += t->bytes;
		f = malloc((size_t)t->count * 4 + 1);
		whole = malloc((size_t)t->count * 8 + 1);
		if (f == NULL || whole == NULL)
			abort();
		if (lpo_st_f32(c, f, t) != 0 || lpo_st_i64(c, whole, t) != 0)
			lpo_clear(c);
		free(f);
		free(whole);
	}
	CHECK(at + bytes == (int64_t)n);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	lpo_st *st = NULL;
	int rc = lpo_st_open_memory(c, &st, p, n, "fuzz");

	if (rc == 0) {
		look(c, st, p, n);
		again(c, st);
	}
	lpo_st_close(st);
	return fuzz_end(rc, (1 << 20) + 256 * n);
}
