/* Parts of a long job as one shard. */
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/shard_join.h"

static int
join_one(lpo_ctx *c, lpo_shardw *w, const char *path, int64_t *skipped)
{
	struct lpo_sample s;
	lpo_shard *in = NULL;
	int64_t i, k = 0;
	int rc;

	if ((rc = lpo_shard_open(c, &in, path)) != 0)
		return rc;
	rc = lpo_json_int(c, &k, lpo_shard_end(in), "skipped", 0);
	*skipped += k;
	for (i = 0; i < lpo_shard_samples(in) && rc == 0; i++) {
		memset(&s, 0, sizeof s);
		rc = lpo_ctx_stopped(c) ? LPO_ESTOP : lpo_shard_get(c, &s, in,
		    i);
		if (rc == 0)
			rc = lpo_shardw_put(w, &s);
		lpo_sample_clear(&s);
	}
	lpo_shard_close(in);
	return rc;
}

int
lpo_shard_join(lpo_ctx *c, const char *out, const json_t *run,
    const char *const *parts, int64_t n)
{
	lpo_shardw *w = NULL;
	int64_t i, skipped = 0;
	int rc;

	if ((rc = lpo_shardw_open(c, &w, out, run)) != 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++)
		rc = join_one(c, w, parts[i], &skipped);
	if (rc == 0)
		return lpo_shardw_finish(w, skipped, 0, 1);
	lpo_shardw_abort(w);
	return rc;
}
