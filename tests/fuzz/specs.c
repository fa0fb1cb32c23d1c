/*
 * Small languages inside options: thresholds, timesteps, filter names,
 * numbers.  The first byte chooses.
 */
#include <math.h>

#include "lib/io/filter.h"
#include "lib/train/lpo_loss.h"
#include "lib/train/pairs.h"
#include "tests/fuzz/fuzz.h"
#include "tools/cli.h"

static int
threshold(lpo_ctx *c, const char *s)
{
	struct lpo_threshold th;
	int rc = lpo_threshold_parse(c, &th, s);

	if (rc == 0)
		CHECK(isfinite(th.lo) && isfinite(th.hi) &&
		    isfinite(th.share));
	return rc;
}

static int
timesteps(lpo_ctx *c, const char *s)
{
	int64_t *list = NULL, n = 0, i;
	int rc = lpo_pair_timesteps_parse(c, &list, &n, s);

	CHECK(rc < 0 || n > 0);
	for (i = 0; rc == 0 && i < n; i++)
		CHECK(list[i] >= 0 && (i == 0 || list[i] > list[i - 1]));
	lpo_free(list);
	return rc;
}

static int
numbers(const char *s)
{
	int64_t i;
	double x;

	if (lpo_cli_parse_f64(s, &x) == 0)
		CHECK(isfinite(x));
	return lpo_cli_parse_i64(s, &i) == 0 ? 0 : 1;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	char *s = fuzz_string(p + (n > 0), n > 0 ? n - 1 : 0);
	unsigned use;
	int rc, mpcf, k = n > 0 ? p[0] % 5 : 0;

	if (k == 0)
		rc = threshold(c, s);
	else if (k == 1)
		rc = timesteps(c, s);
	else if (k == 2)
		rc = lpo_filter_name(c, &mpcf, s);
	else if (k == 3)
		rc = lpo_filter_use(c, &use, s);
	else
		rc = numbers(s);
	free(s);
	/* a list of timesteps is as long as its range says: 10^6 at most */
	return fuzz_end(rc, (16 << 20) + 64 * n);
}
