/*
 * Pickles as data.  The tree of an accepted one is walked as far as a reader
 * would, and every text in it lies in memory.
 */
#include "lib/io/pickle.h"
#include "tests/fuzz/fuzz.h"

static int64_t visits, sum;

static void
walk(const struct lpo_pk_value *v, int depth)
{
	int64_t i;

	if (depth > 64 || ++visits > 100000)
		return;
	switch (v->kind) {
	case LPO_PK_STR:
	case LPO_PK_BYTES:
	case LPO_PK_GLOBAL:
		for (i = 0; i < v->n; i++)
			sum += v->s[i];
		return;
	case LPO_PK_TUPLE:
	case LPO_PK_LIST:
	case LPO_PK_DICT:
	case LPO_PK_CALL:
	case LPO_PK_PERSISTENT:
		CHECK(v->n >= 0 && (v->kind != LPO_PK_DICT || v->n % 2 == 0));
		CHECK(v->kind != LPO_PK_CALL || v->n == 2);
		CHECK(v->kind != LPO_PK_PERSISTENT || v->n == 1);
		for (i = 0; i < v->n; i++)
			walk(v->v[i], depth + 1);
		return;
	case LPO_PK_MARK:
		CHECK(0);
	default:
		return;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	lpo_pickle *k = NULL;
	int rc = lpo_pickle_read(c, &k, p, n, "fuzz");

	if (rc == 0) {
		visits = 0;
		CHECK(lpo_pickle_root(k) != NULL);
		walk(lpo_pickle_root(k), 0);
		lpo_pk_get(lpo_pickle_root(k), "state_dict");
		lpo_pk_is_global(lpo_pickle_root(k), "torch float32");
	}
	lpo_pickle_free(k);
	/* a byte makes a value, memo or stack entry; memo indices are 10^6 */
	return fuzz_end(rc, (32 << 20) + 512 * n);
}
