/* Noisy pairs: formulas in f64, draws, members and fields. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/train/pairs.h"
#include "tests/tap.h"

#define C 4
#define HW 35		/* no multiple of a vector */

static struct lpo_schedule sched;
static int64_t steps[20];

static struct lpo_pair_opts
options(void)
{
	struct lpo_pair_opts o = { .seed = 7, .schedule = &sched,
	    .scaling_factor = 0.18215f, .timesteps = steps,
	    .n_timesteps = 20, .dtype = LPO_NPY_F4 };

	return o;
}

static void
parse(lpo_ctx *c)
{
	static const char *const bad[] = { "", "1:", "1:2", "1:2:3:4", "5:1:1",
	    "1:5:0", "1,,2", "2,1", "1,1", "-1", "x", "1:951:50x", "1,2,",
	    "99999999999999999999" };
	int64_t *l, n;
	size_t i;

	ok(lpo_pair_timesteps_parse(c, &l, &n, "1:951:50") == 0 && n == 20 &&
	    l[0] == 1 && l[1] == 51 && l[19] == 951, "a range");
	memcpy(steps, l, sizeof steps);
	lpo_free(l);
	ok(lpo_pair_timesteps_parse(c, &l, &n, "1,401,751") == 0 && n == 3 &&
	    l[2] == 751, "a list");
	lpo_free(l);
	for (i = 0; i < sizeof bad / sizeof *bad; i++) {
		ok(lpo_pair_timesteps_parse(c, &l, &n, bad[i]) == LPO_EINVAL &&
		    l == NULL, "refused: '%s'", bad[i]);
		lpo_clear(c);
	}
}

/* x_t from the same draws with libm in f64. */
static double
worst_latent(const struct lpo_pair_opts *o, const float *m, int64_t t,
    uint32_t row, uint32_t epoch, uint32_t cand, const float *x)
{
	struct lpo_draw d = { o->seed, LPO_DRAW_POSTERIOR, row, epoch, 0,
	    cand };
	float e1[C * HW], e2[C * HW], off;
	double worst = 0, z, v, a = (double)sched.abar[t];
	int i;

	lpo_draw_normal(&d, 0, e1, C * HW);
	d.purpose = LPO_DRAW_NOISE;
	lpo_draw_normal(&d, 0, e2, C * HW);
	for (i = 0; i < C * HW; i++) {
		double noise = (double)e2[i];

		if (o->noise_offset != 0) {
			d.purpose = LPO_DRAW_OFFSET;
			lpo_draw_normal(&d, (uint64_t)(i / HW), &off, 1);
			noise += (double)o->noise_offset * (double)off;
		}
		v = fmin(20, fmax(-30, (double)m[C * HW + i]));
		z = (double)m[i] + exp(v / 2) * (double)e1[i];
		v = sqrt(a) * z * (double)o->scaling_factor + sqrt(1 - a) *
		    noise;
		worst = worse(worst, fabs(v - (double)x[i]) / (1 + fabs(v)));
	}
	return worst;
}

static void
latent(void)
{
	struct lpo_pair_opts o = options();
	struct lpo_draw d = { 1, LPO_DRAW_INIT, 0, 0, 0, 0 };
	float m[2 * C * HW], x[C * HW], y[C * HW], work[C * HW];
	double worst = 0;
	int i;

	lpo_draw_normal(&d, 0, m, 2 * C * HW);
	/* log variances from far below the clamp to above it */
	for (i = 0; i < C * HW; i++)
		m[C * HW + i] = (float)(-50 + 75.0 * i / (C * HW));
	for (i = 0; i < 20; i++) {
		lpo_pair_latent(&o, x, m, C, HW, 3, 1, 1, steps[i], work);
		worst = worse(worst, worst_latent(&o, m, steps[i], 3, 1, 1, x));
	}
	ok(worst < 1e-6, "x_t, 20 timesteps: %.1g off at most", worst);
	o.noise_offset = 0.05f;
	lpo_pair_latent(&o, x, m, C, HW, 3, 1, 0, 951, work);
	worst = worst_latent(&o, m, 951, 3, 1, 0, x);
	ok(worst < 1e-6, "noise offset per channel: %.1g", worst);
	lpo_pair_latent(&o, y, m, C, HW, 3, 1, 0, 951, work);
	ok(memcmp(x, y, sizeof x) == 0, "the same draws, the same bits");
	lpo_pair_latent(&o, y, m, C, HW, 3, 1, 1, 951, work);
	ok(memcmp(x, y, sizeof x) != 0, "the other image has its own noise");
	lpo_pair_latent(&o, y, m, C, HW, 3, 2, 0, 951, work);
	ok(memcmp(x, y, sizeof x) != 0, "and so has the next epoch");
	lpo_pair_latent(&o, y, m, C, HW, 4, 1, 0, 951, work);
	ok(memcmp(x, y, sizeof x) != 0, "and the next row");
}

static void
draws(lpo_ctx *c)
{
	enum { ROWS = 20000 };
	struct lpo_pair_opts o = options();
	int64_t t[2], count[20] = { 0 }, far = 0, up = 0, inner = 0, differ = 0;
	double chi = 0, e = ROWS / 20.0;
	uint32_t i;
	int k;

	for (i = 0; i < ROWS; i++) {
		lpo_pair_timesteps(&o, t, i, 0, 0);
		differ += t[0] != t[1];
		count[(t[0] - 1) / 50]++;
	}
	for (k = 0; k < 20; k++)
		chi += ((double)count[k] - e) * ((double)count[k] - e) / e;
	ok(differ == 0, "one timestep for both images");
	ok(chi < 45, "all timesteps alike (chi square %.1f, 19 degrees)", chi);
	o.interval = 3;
	ok(lpo_pair_opts_check(c, &o) == 0, "a distance of 3 fits");
	for (i = 0; i < ROWS; i++) {
		int64_t j;

		lpo_pair_timesteps(&o, t, i, 0, 1);
		far += llabs(t[0] - t[1]) != 150 || t[1] < 1 || t[1] > 951;
		j = (t[0] - 1) / 50;
		if (j >= 3 && j < 17) {
			inner++;
			up += t[1] > t[0];
		}
	}
	ok(far == 0, "cross pairs: always 3 candidates apart, in the list");
	ok(fabs((double)up / (double)inner - 0.5) < 0.02,
	    "up and down alike (%.3f)", (double)up / (double)inner);
	o.interval = 11;
	ok(lpo_pair_opts_check(c, &o) == LPO_EINVAL, "11 of 20 does not fit");
	lpo_clear(c);
	steps[19] = 1000;
	o.interval = 0;
	ok(lpo_pair_opts_check(c, &o) == LPO_EINVAL, "no timestep 1000");
	lpo_clear(c);
	steps[19] = 951;
}

static uint8_t *
moments(lpo_ctx *c, int64_t *bytes, int64_t channels, float value)
{
	int64_t shape[3] = { channels, 5, 7 }, i;
	float x[16 * HW];
	uint8_t *out = NULL;

	for (i = 0; i < channels * HW; i++)
		x[i] = value + (float)i * 0.01f;
	lpo_npy_make_f32(c, &out, bytes, LPO_NPY_F4, 3, shape, x);
	return out;
}

static void
samples(lpo_ctx *c)
{
	struct lpo_pair_opts o = options();
	struct lpo_record r = { .key = "000000012", .row = 12,
	    .prompt = (char *)(uintptr_t)"a cat", .label_0 = 0, .label_1 = 1,
	    .num_example_per_prompt = 3, .extra = json_object() };
	struct lpo_pair_in in = { .record = &r, .epoch = 2 };
	struct lpo_sample s, u;
	struct lpo_npy a;
	uint8_t *m[2];
	int64_t n[2];
	double lo, hi;

	m[0] = moments(c, &n[0], 2 * C, 0);
	m[1] = moments(c, &n[1], 2 * C, -3);
	in.moments[0] = m[0];
	in.moments[1] = m[1];
	in.bytes[0] = n[0];
	in.bytes[1] = n[1];
	ok(lpo_pair_sample(c, &s, &o, &in) == 0 &&
	    strcmp(s.key, "000000012-e2") == 0 && s.n_members == 2, "a pair");
	ok(lpo_npy_parse(c, &a, s.member[0].bytes, (size_t)s.member[0].size,
	    "x") == 0 && a.ndim == 3 && a.shape[0] == C && a.shape[1] == 5 &&
	    a.shape[2] == 7 && a.type == LPO_NPY_F4, "of the right shape");
	ok(json_integer_value(json_object_get(s.json, "epoch")) == 2 &&
	    json_integer_value(json_object_get(s.json, "timestep_0")) ==
	    json_integer_value(json_object_get(s.json, "timestep_1")) &&
	    json_number_value(json_object_get(s.json, "label_1")) == 1,
	    "with its fields");
	lpo_sample_clear(&s);
	in.cross = 1;
	o.interval = 1;
	ok(lpo_pair_sample(c, &u, &o, &in) == 0 &&
	    strcmp(u.key, "000000012-e2-t") == 0, "a cross pair");
	lo = json_number_value(json_object_get(u.json, "timestep_0"));
	hi = json_number_value(json_object_get(u.json, "timestep_1"));
	ok(json_number_value(json_object_get(u.json, "label_0")) == (lo < hi),
	    "whose cleaner copy wins");
	lpo_sample_clear(&u);
	in.cross = 0;
	in.bytes[1] -= 4;
	ok(lpo_pair_sample(c, &s, &o, &in) == LPO_EFORMAT &&
	    strstr(lpo_errmsg(c), "000000012.moments_1.npy") != NULL,
	    "cut moments: %s", lpo_errmsg(c));
	lpo_sample_clear(&s);
	lpo_clear(c);
	in.moments[1] = NULL;
	ok(lpo_pair_sample(c, &s, &o, &in) == LPO_EFORMAT, "no moments: %s",
	    lpo_errmsg(c));
	lpo_sample_clear(&s);
	lpo_clear(c);
	lpo_free(m[1]);
	in.moments[1] = m[1] = moments(c, &in.bytes[1], 2 * C, 1e30f);
	o.dtype = LPO_NPY_F2;
	ok(lpo_pair_sample(c, &s, &o, &in) == LPO_EFORMAT,
	    "too large for f2: %s", lpo_errmsg(c));
	lpo_sample_clear(&s);
	lpo_clear(c);
	lpo_free(m[1]);
	in.moments[1] = m[1] = moments(c, &in.bytes[1], 7, 0);
	ok(lpo_pair_sample(c, &s, &o, &in) == LPO_EFORMAT,
	    "an odd number of channels: %s", lpo_errmsg(c));
	lpo_sample_clear(&s);
	lpo_clear(c);
	lpo_free(m[0]);
	lpo_free(m[1]);
	json_decref(r.extra);
}

/* Every allocation failing once: an error, nothing leaked, nothing broken. */
static void
no_memory(lpo_ctx *c)
{
	struct lpo_pair_opts o = options();
	struct lpo_record r = { .key = "000000001", .row = 1,
	    .prompt = (char *)(uintptr_t)"a", .label_0 = 1,
	    .num_example_per_prompt = 1, .extra = json_object() };
	struct lpo_pair_in in = { .record = &r };
	struct lpo_sample s;
	uint8_t *m;
	int64_t n, bytes;
	int rc, wrong = 0;

	m = moments(c, &bytes, 2 * C, 0);
	in.moments[0] = in.moments[1] = m;
	in.bytes[0] = in.bytes[1] = bytes;
	for (n = 0; n < 10000; n++) {
		lpo_alloc_fail_at(n);
		rc = lpo_pair_sample(c, &s, &o, &in);
		lpo_alloc_fail_at(-1);
		lpo_sample_clear(&s);
		if (rc == 0)
			break;
		wrong += rc != LPO_ENOMEM;
		lpo_clear(c);
	}
	ok(n > 5 && n < 10000 && wrong == 0,
	    "out of memory at each of %d allocations, %d said otherwise",
	    (int)n, wrong);
	lpo_free(m);
	json_decref(r.extra);
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();

	sched = (struct lpo_schedule){ .beta_start = 0.00085,
	    .beta_end = 0.012, .beta_schedule = LPO_BETA_SCALED_LINEAR,
	    .train_steps = 1000, .steps_offset = 1 };
	ok(lpo_schedule_init(c, &sched) == 0, "a schedule");
	parse(c);
	latent();
	draws(c);
	samples(c);
	no_memory(c);
	lpo_schedule_free(&sched);
	lpo_ctx_free(c);
	return done_testing();
}
