/*
 * Saved state: manifest.json and a blob, or (first byte odd) run.json.  A
 * manifest's sum is also put right, so that what stands in it is read.
 */
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/base/state.h"
#include "lib/base/snapshot.h"
#include "tests/fuzz/fuzz.h"

#define RUN "0123456789abcdef"

static void
put_manifest(lpo_ctx *c, const uint8_t *p, size_t n, int repair)
{
	json_t *j = NULL;
	char *text, hex[9];

	fuzz_put("s/snap-000000003/manifest.json", p, n);
	if (!repair || lpo_json_load(c, &j, (const char *)p, n, "f") != 0 ||
	    !json_is_object(j))
		goto out;
	json_object_del(j, "crc32c");
	if ((text = lpo_json_dumps(c, j)) == NULL)
		goto out;
	snprintf(hex, sizeof(hex), "%08x", lpo_crc32c(0, text, strlen(text)));
	lpo_free(text);
	json_object_set_new(j, "crc32c", json_string(hex));
	if ((text = lpo_json_dumps(c, j)) != NULL)
		fuzz_put("s/snap-000000003/manifest.json", text,
		    strlen(text));
	lpo_free(text);
out:
	json_decref(j);
	lpo_clear(c);
}

static int
snapshot(lpo_ctx *c, const uint8_t *p, size_t n, int repair)
{
	static const char blob[] = "weights";
	lpo_snap *s = NULL;
	char data[8];
	int64_t bytes;
	int rc;

	CHECK(lpo_mkdir_p(c, fuzz_path("s/snap-000000003")) == 0);
	fuzz_put("s/snap-000000003/a", blob, 7);
	put_manifest(c, p, n, repair);
	rc = lpo_snap_open(c, &s, fuzz_path("s"), RUN);
	if (rc == 0) {
		CHECK(lpo_snap_found(s) && lpo_snap_counters(s) != NULL);
		bytes = lpo_snap_blob_bytes(s, "a");
		CHECK(bytes == -1 || bytes == 7);
		if (bytes == 7)
			CHECK(lpo_snap_read(s, "a", data, 7) == 0 &&
			    memcmp(data, blob, 7) == 0);
	}
	CHECK(rc == 0 || rc == LPO_EFORMAT || rc == LPO_EINVAL);
	lpo_snap_close(s);
	return rc;
}

static int
run_json(lpo_ctx *c, const uint8_t *p, size_t n)
{
	json_t *options = json_pack("{s:f,s:i}", "lr", 1e-4, "batch", 40);
	lpo_state *s = NULL;
	int rc;

	CHECK(lpo_mkdir_p(c, fuzz_path("o.state")) == 0);
	fuzz_put("o.state/run.json", p, n);
	rc = lpo_state_open(c, &s, fuzz_path("o"), RUN, options, 0);
	CHECK(rc == 0 || rc == LPO_EFORMAT || rc == LPO_EINVAL);
	CHECK(rc != 0 || lpo_state_found(s));
	lpo_state_close(s);
	json_decref(options);
	return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	int rc, kind = n > 0 ? p[0] & 1 : 0;

	if (n > 0)
		p++, n--;
	if (kind)
		rc = run_json(c, p, n);
	else if ((rc = snapshot(c, p, n, 0)) < 0) {
		lpo_clear(c);
		rc = snapshot(c, p, n, 1);
	}
	return fuzz_end(rc, (1 << 20) + 512 * n);
}
