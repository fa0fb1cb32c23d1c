/* Prompt files; the first byte chooses the name's end. */
#include "lib/base/json.h"
#include "lib/io/prompts.h"
#include "tests/fuzz/fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const name[] = { "p.csv", "p.tsv", "p.jsonl",
	    "p.json", "p.txt" };
	lpo_ctx *c = fuzz_begin();
	struct lpo_prompts list;
	const char *path;
	int64_t i;
	int rc, k = n > 0 ? p[0] % 5 : 0;

	if (n > 0)
		p++, n--;
	path = fuzz_put(name[k], p, n);
	rc = lpo_prompts_read(c, &list, path);
	CHECK(rc < 0 || list.n > 0);
	for (i = 0; rc == 0 && i < list.n; i++)
		CHECK(lpo_utf8_valid(list.text[i], strlen(list.text[i])));
	lpo_prompts_free(&list);
	return fuzz_end(rc, (1 << 20) + 1024 * n);
}
