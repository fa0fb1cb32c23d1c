/*
 * A tokenizer's files, one after the other between lines "----": vocab.json,
 * merges.txt, special_tokens_map.json, tokenizer_config.json, added_tokens.
 * json; or a first byte '!' and tokenizer.json, tokenizer_config.json.
 */
#include "lib/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const five[] = { "vocab.json", "merges.txt",
	    "special_tokens_map.json", "tokenizer_config.json",
	    "added_tokens.json", "tokenizer.json" };
	static const char *const two[] = { "tokenizer.json",
	    "tokenizer_config.json" };
	static const char text[] = "a cat, 3 <|endoftext|> caf\xc3\xa9 !!x";
	lpo_ctx *c = fuzz_begin();
	lpo_tokenizer *t = NULL;
	const uint8_t *part;
	const int32_t *ids;
	int64_t i, count;
	size_t bytes;
	int k, rc, single = n > 0 && p[0] == '!';

	p += single;
	n -= (size_t)single;
	for (k = 0; k < 6; k++)
		unlink(fuzz_path(five[k]));
	for (k = 0; k < (single ? 2 : 5); k++) {
		part = fuzz_part(p, n, k, &bytes);
		if (bytes > 0)
			fuzz_put(single ? two[k] : five[k], part, bytes);
	}
	rc = lpo_tokenizer_open(c, &t, fuzz_tmp);
	CHECK(rc == 0 || rc == LPO_EFORMAT || rc == LPO_ENOTFOUND);
	if (rc == 0 && lpo_tokenizer_encode_plain(t, &ids, &count, text,
	    strlen(text)) == 0)
		for (i = 0; i < count; i++)
			CHECK(ids[i] >= 0 &&
			    ids[i] < lpo_tokenizer_vocab_size(t));
	lpo_tokenizer_close(t);
	/* a table by id is bounded by the largest id, 2^24 - 1 */
	return fuzz_end(rc, (128 << 20) + 512 * n);
}
