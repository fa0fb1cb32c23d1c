/*
 * An external scorer's table: every image once, every value finite.
 */
#include <math.h>

#include "lib/score/external.h"
#include "tests/fuzz/fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const key[] = { "000000000-0", "b", "a",
	    "000000001-0" };
	lpo_ctx *c = fuzz_begin();
	struct lpo_scores s;
	char *text = fuzz_string(p, n);
	int64_t i;
	int rc = lpo_scores_parse(c, &s, "judge", text, key, 4);

	CHECK(rc == 0 || rc == LPO_EFORMAT);
	CHECK(rc < 0 || (s.n == 4 && s.names >= 1 && s.names < 64));
	for (i = 0; rc == 0 && i < s.names; i++)
		CHECK(strncmp(s.name[i], "judge.", 6) == 0);
	for (i = 0; rc == 0 && i < s.n * s.names; i++)
		CHECK(isfinite(s.value[i]));
	lpo_scores_free(&s);
	free(text);
	return fuzz_end(rc, 65536 + 64 * n);
}
