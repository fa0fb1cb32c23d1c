/*
 * Preferences from tables: the first byte chooses format and kind.  A good
 * row's record is the same from its own JSON.
 */
#include "lib/base/json.h"
#include "lib/io/record.h"
#include "tests/fuzz/fuzz.h"

static void
again(lpo_ctx *c, const struct lpo_record *a)
{
	struct lpo_record b;
	json_t *v = NULL;

	memset(&b, 0, sizeof(b));
	CHECK(lpo_record_to_json(c, &v, a) == 0);
	CHECK(lpo_record_from_json(c, &b, v) == 0);
	CHECK(a->row == b.row && strcmp(a->key, b.key) == 0 &&
	    strcmp(a->prompt, b.prompt) == 0 && json_equal(a->extra, b.extra));
	CHECK(a->label_0 == b.label_0 && a->label_1 == b.label_1);
	CHECK((a->id == NULL) == (b.id == NULL) &&
	    (a->id == NULL || strcmp(a->id, b.id) == 0));
	CHECK(a->num_example_per_prompt == b.num_example_per_prompt);
	json_decref(v);
	lpo_record_clear(&b);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const name[] = { "p.csv", "p.tsv", "p.jsonl",
	    "p.json" };
	lpo_ctx *c = fuzz_begin();
	struct lpo_record r;
	lpo_records *rs = NULL;
	const char *path, *error;
	unsigned flags = n == 0 ? 0 : p[0] & 4 ? LPO_RECORDS_IMAGES_ONLY :
	    p[0] & 8 ? LPO_RECORDS_UNLABELLED : 0;
	int64_t i;
	int rc, k = n > 0 ? p[0] % 4 : 0;

	if (n > 0)
		p++, n--;
	path = fuzz_put(name[k], p, n);
	rc = lpo_records_open(c, &rs, &path, 1, flags);
	for (i = 0; rc == 0 && i < lpo_records_count(rs); i++) {
		memset(&r, 0, sizeof(r));
		error = lpo_records_error(rs, i);
		CHECK((lpo_records_get(c, &r, rs, i) == 0) == (error == NULL));
		lpo_clear(c);
		if (error == NULL && flags == 0) {
			CHECK(r.label_0 >= 0 && r.label_0 <= 1 &&
			    r.label_1 >= 0 && r.label_1 <= 1);
			again(c, &r);
		}
		lpo_record_clear(&r);
	}
	lpo_records_close(rs);
	return fuzz_end(rc, (1 << 20) + 1024 * n);
}
