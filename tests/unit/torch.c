/*
 * Torch files: what torch.save wrote is read as torch.load reads it, other
 * files are refused, what is written here has a zip's and a pickle's form.
 * Golden files by tests/golden/make_torch.py.
 */
#include <stdlib.h>
#include <string.h>

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
	written();
	out_of_memory();
	lpo_rmtree(c, dir);
	lpo_ctx_free(c);
	return done_testing();
}
