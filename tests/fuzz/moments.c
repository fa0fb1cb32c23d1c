/*
 * Moments and record of an encoded preference to a noisy pair: record, a line
 * "----", two .npy of the same bytes.  What comes out is finite.
 */
#include <math.h>

#include "lib/base/json.h"
#include "lib/train/lrm_pairs.h"
#include "lib/train/pairs.h"
#include "tests/fuzz/fuzz.h"

static struct lpo_schedule schedule;

static void
close_schedule(void)
{
	lpo_schedule_free(&schedule);
}

static void
look(lpo_ctx *c, const struct lpo_sample *s)
{
	const struct lpo_member *m = lpo_sample_find(s, "latent_0.npy");
	struct lpo_npy a;
	int64_t i, shape[3];
	float *f;

	CHECK(m != NULL && lpo_sample_find(s, "latent_1.npy") != NULL);
	CHECK(lpo_npy_parse(c, &a, m->bytes, (size_t)m->size, "m") == 0);
	CHECK(a.ndim == 3 && lpo_lrm_sample_shape(c, shape, s) == 0);
	if ((f = malloc((size_t)a.count * 4 + 1)) == NULL)
		abort();
	lpo_npy_f32(f, &a);
	for (i = 0; i < a.count; i++)
		CHECK(isfinite(f[i]));
	free(f);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const int64_t t[3] = { 1, 451, 951 };
	lpo_ctx *c = fuzz_begin();
	struct lpo_pair_opts o = { .seed = 7, .schedule = &schedule,
	    .scaling_factor = 0.18215f, .timesteps = t, .n_timesteps = 3 };
	struct lpo_pair_in in = { .epoch = 0 };
	struct lpo_record r;
	struct lpo_sample s;
	const uint8_t *part;
	json_t *v = NULL;
	size_t bytes;
	int rc;

	if (schedule.abar == NULL) {
		CHECK(lpo_schedule_parse(c, &schedule, "{}", "none") == 0);
		atexit(close_schedule);
		fuzz_begin();
	}
	memset(&r, 0, sizeof(r));
	memset(&s, 0, sizeof(s));
	part = fuzz_part(p, n, 0, &bytes);
	rc = lpo_json_load(c, &v, (const char *)part, bytes, "record");
	if (rc == 0)
		rc = lpo_record_from_json(c, &r, v);
	part = fuzz_part(p, n, 1, &bytes);
	o.dtype = bytes % 2 ? LPO_NPY_F2 : LPO_NPY_F4;
	in.record = &r;
	in.moments[0] = in.moments[1] = part;
	in.bytes[0] = in.bytes[1] = (int64_t)bytes;
	if (rc == 0 && (rc = lpo_pair_sample(c, &s, &o, &in)) == 0)
		look(c, &s);
	lpo_sample_clear(&s);
	lpo_record_clear(&r);
	json_decref(v);
	return fuzz_end(rc, (1 << 20) + 512 * n);
}
