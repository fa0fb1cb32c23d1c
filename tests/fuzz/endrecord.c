/* End records: one that is accepted says what it is made of again. */
#include "lib/io/shard_priv.h"
#include "tests/fuzz/fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	struct lpo_section s, t;
	json_t *end = NULL, *made;
	char *text;
	int rc;

	memset(&s, 0, sizeof(s));
	rc = lpo_end_parse(c, &end, &s, p, n, "fuzz");
	if (rc == 0) {
		CHECK(s.samples >= 0 && s.skipped >= 0 && s.shard >= 0 &&
		    s.shard < s.shards);
	}
	json_decref(end);
	/* ours are accepted, and say the same */
	s.ours = 1;
	if (rc < 0) {
		memset(&s, 0, sizeof(s));
		s.samples = (int64_t)n;
		s.shards = 1;
	}
	CHECK((made = lpo_end_make(c, &s, (uint32_t)n, 7)) != NULL);
	text = json_dumps(made, JSON_COMPACT);
	json_decref(made);
	memset(&t, 0, sizeof(t));
	end = NULL;
	CHECK(lpo_end_parse(c, &end, &t, text, strlen(text), "again") == 0);
	CHECK(t.samples == s.samples && t.skipped == s.skipped &&
	    t.shard == s.shard && t.shards == s.shards);
	json_decref(end);
	free(text);
	return fuzz_end(rc, 65536 + 512 * n);
}
