/* Foreign tars grouped into preferences; the first byte: flags. */
#include "lib/io/record.h"
#include "tests/fuzz/fuzz.h"

static int
one(lpo_ctx *c, const uint8_t *p, size_t n, unsigned flags)
{
	const char *path = fuzz_put("w.tar", p, n);
	struct lpo_record r;
	lpo_records *rs = NULL;
	uint8_t *image;
	int64_t i, bytes, total = 0;
	int rc = lpo_records_open(c, &rs, &path, 1, flags), k;

	for (i = 0; rc == 0 && i < lpo_records_count(rs); i++) {
		if (lpo_records_error(rs, i) != NULL)
			continue;
		memset(&r, 0, sizeof(r));
		CHECK(lpo_records_get(c, &r, rs, i) == 0);
		CHECK(r.row == i && r.prompt != NULL);
		lpo_record_clear(&r);
		for (k = 0; k < (flags ? 1 : 2); k++) {
			CHECK(lpo_records_image(c, &image, &bytes, rs, i,
			    k) == 0);
			total += bytes;
			lpo_free(image);
		}
	}
	/* each member is in one sample, and an image of it once or twice */
	CHECK(total <= 2 * (int64_t)n);
	lpo_records_close(rs);
	return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	unsigned flags = n > 0 && p[0] & 1 ? LPO_RECORDS_IMAGES_ONLY : 0;
	uint8_t *q;
	int rc;

	if (n > 0)
		p++, n--;
	if ((rc = one(c, p, n, flags)) < 0) {
		lpo_clear(c);
		q = fuzz_tar_repair(p, n);
		rc = one(c, q, n, flags);
		free(q);
	}
	return fuzz_end(rc, (2 << 20) + 1024 * n);
}
