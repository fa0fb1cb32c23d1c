/*
 * scheduler_config.json: an accepted one gives finite coefficients, and the
 * same ones again from what is written into streams.
 */
#include <math.h>

#include "lib/train/schedule.h"
#include "tests/fuzz/fuzz.h"

static void
steps(lpo_ctx *c, const struct lpo_schedule *s, int64_t n)
{
	int64_t t[50], i;
	struct lpo_ddim d;

	if (lpo_schedule_timesteps(c, s, t, n) < 0) {
		lpo_clear(c);
		return;
	}
	for (i = 0; i < n; i++) {
		CHECK(t[i] >= 0 && t[i] < s->train_steps);
		CHECK(i == 0 || t[i] < t[i - 1]);
		lpo_schedule_ddim(s, &d, t[i], n, 1, 1);
		CHECK(d.prev >= 0 && d.prev < s->train_steps);
		CHECK(isfinite(d.sigma) && isfinite(d.c_x) &&
		    isfinite(d.c_eps) && isfinite(d.x0_x) &&
		    isfinite(d.x0_eps));
	}
}

static void
again(lpo_ctx *c, const struct lpo_schedule *s)
{
	struct lpo_schedule b;
	char *text = lpo_schedule_json(c, s);

	CHECK(text != NULL);
	CHECK(lpo_schedule_parse(c, &b, text, "again") == 0);
	CHECK(b.train_steps == s->train_steps &&
	    b.prediction == s->prediction);
	CHECK(memcmp(b.abar, s->abar, (size_t)s->train_steps *
	    sizeof(*s->abar)) == 0);
	lpo_schedule_free(&b);
	lpo_free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	struct lpo_schedule s;
	char *text = fuzz_string(p, n);
	int64_t i;
	int rc;

	memset(&s, 0, sizeof(s));
	rc = lpo_schedule_parse(c, &s, text, "fuzz");
	free(text);
	if (rc == 0) {
		for (i = 0; i < s.train_steps; i++)
			CHECK(s.abar[i] >= 0 && s.abar[i] <= 1);
		for (i = 1; i <= 50; i++)
			steps(c, &s, i);
		again(c, &s);
	}
	lpo_schedule_free(&s);
	return fuzz_end(rc, (32 << 20) + 512 * n);
}
