/*
 * Text to tokens, with a small vocabulary that has every byte.  The padded ids
 * are the plain ones between bos and eos.
 */
#include "lib/model/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static lpo_tokenizer *tok[2];

static void
close_all(void)
{
	lpo_tokenizer_close(tok[0]);
	lpo_tokenizer_close(tok[1]);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	const int32_t *plain;
	int32_t ids[256];
	int64_t i, count, len;
	lpo_tokenizer *t;
	int rc;

	if (tok[0] == NULL) {
		CHECK(lpo_tokenizer_open(c, &tok[0],
		    "tests/golden/tokenizer/sd15") == 0);
		CHECK(lpo_tokenizer_open(c, &tok[1],
		    "tests/golden/tokenizer/added") == 0);
		atexit(close_all);
		fuzz_begin();
	}
	t = tok[n > 0 && p[0] & 1];
	if (n > 0)
		p++, n--;
	len = lpo_tokenizer_max_length(t);
	CHECK(len > 2 && len < 256);
	if ((rc = lpo_tokenizer_encode_bytes(t, ids, (const char *)p,
	    n)) == 0) {
		CHECK(lpo_tokenizer_encode_plain(t, &plain, &count,
		    (const char *)p, n) == 0);
		for (i = 0; i < count; i++)
			CHECK(plain[i] >= 0 &&
			    plain[i] < lpo_tokenizer_vocab_size(t));
		if (count > len - 2)
			count = len - 2;
		CHECK(ids[0] == lpo_tokenizer_bos(t));
		CHECK(count == 0 || memcmp(ids + 1, plain, (size_t)count *
		    sizeof(*ids)) == 0);
		CHECK(ids[count + 1] == lpo_tokenizer_eos(t));
		for (i = count + 2; i < len; i++)
			CHECK(ids[i] == lpo_tokenizer_pad(t));
	}
	return fuzz_end(rc, (1 << 20) + 256 * n);
}
