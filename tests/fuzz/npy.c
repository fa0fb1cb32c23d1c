/* .npy: what is accepted comes back from our writer as it was. */
#include "lib/io/npy.h"
#include "tests/fuzz/fuzz.h"

static void
again(lpo_ctx *c, const struct lpo_npy *a)
{
	struct lpo_npy b;
	uint8_t *out;
	int64_t bytes;

	CHECK(lpo_npy_make(c, &out, &bytes, a->type, a->ndim, a->shape,
	    a->data) == 0);
	CHECK(bytes % 64 == a->bytes % 64);	/* data begin at 64 n */
	CHECK(lpo_npy_parse(c, &b, out, (size_t)bytes, "again") == 0);
	CHECK(b.type == a->type && b.ndim == a->ndim && b.bytes == a->bytes &&
	    b.count == a->count);
	CHECK(memcmp(a->shape, b.shape, sizeof(b.shape)) == 0);
	CHECK(a->bytes == 0 || memcmp(a->data, b.data, (size_t)a->bytes) == 0);
	lpo_free(out);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	struct lpo_npy a;
	int rc = lpo_npy_parse(c, &a, p, n, "fuzz");
	float *f = NULL;
	int64_t *v = NULL;

	if (rc == 0) {
		CHECK((const uint8_t *)a.data >= p + 10 &&
		    (const uint8_t *)a.data + a.bytes == p + n);
		f = malloc((size_t)a.count * 4 + 1);
		v = malloc((size_t)a.count * 8 + 1);
		if (f == NULL || v == NULL)
			abort();
		lpo_npy_f32(f, &a);
		if (a.type >= LPO_NPY_I8)
			lpo_npy_i64(v, &a);
		again(c, &a);
	}
	free(f);
	free(v);
	return fuzz_end(rc, 4096 + 16 * n);
}
