/* Noise schedule and DDIM against the values of models.md 6, method.md 3.4. */
#include <math.h>
#include <string.h>

#include "lib/train/schedule.h"
#include "tests/tap.h"

static const char sd15[] = "{\"beta_start\": 0.00085, \"beta_end\": 0.012, "
    "\"beta_schedule\": \"scaled_linear\", \"steps_offset\": 1, "
    "\"num_train_timesteps\": 1000, \"set_alpha_to_one\": false, "
    "\"clip_sample\": false, \"trained_betas\": null, "
    "\"skip_prk_steps\": true}";

static void
tables(const struct lpo_schedule *s)
{
	static const struct {
		int i;
		uint32_t bits;
	} want[] = {
		{ 0, 0x3f7fc84b }, { 1, 0x3f7f9054 }, { 51, 0x3f73558c },
		{ 100, 0x3f64ebcf }, { 500, 0x3e8d7b74 }, { 900, 0x3c67da29 },
		{ 951, 0x3c059c8c }, { 981, 0x3bbd4061 }, { 999, 0x3b98b3b8 }
	};
	uint32_t u;
	size_t k;
	int good = 1;

	for (k = 0; k < sizeof(want) / sizeof(want[0]); k++) {
		memcpy(&u, &s->abar[want[k].i], 4);
		good &= u == want[k].bits;
	}
	ok(good, "abar has torch's bits at nine places");
}

static int
same(const int64_t *t, const int64_t *want, int n)
{
	return memcmp(t, want, (size_t)n * sizeof(*t)) == 0;
}

static void
timesteps(lpo_ctx *c, struct lpo_schedule *s)
{
	int64_t t[1000];

	lpo_schedule_timesteps(c, s, t, 20);
	ok(same(t, (int64_t[]){ 951, 901, 851 }, 3) && t[19] == 1,
	    "leading, 20 steps");
	lpo_schedule_timesteps(c, s, t, 30);
	ok(same(t, (int64_t[]){ 958, 925 }, 2) && t[28] == 34,
	    "leading, 30 steps");
	lpo_schedule_timesteps(c, s, t, 50);
	ok(same(t, (int64_t[]){ 981, 961 }, 2) && t[49] == 1,
	    "leading, 50 steps");
	s->spacing = LPO_SPACING_TRAILING;
	lpo_schedule_timesteps(c, s, t, 20);
	ok(same(t, (int64_t[]){ 999, 949 }, 2) && t[19] == 49,
	    "trailing, 20 steps");
	/* np.round(arange(1000, 0, -1000/7)) - 1 */
	lpo_schedule_timesteps(c, s, t, 7);
	ok(same(t, (int64_t[]){ 999, 856, 713, 570, 428, 285, 142 }, 7),
	    "trailing, 7 steps");
	/* np.round(arange(1000, 0, -1000/48)) - 1: ties by arange's step */
	lpo_schedule_timesteps(c, s, t, 48);
	ok(t[3] == 936 && t[15] == 686 && t[27] == 436 && t[39] == 186,
	    "trailing, 48 steps");
	s->spacing = LPO_SPACING_LINSPACE;
	/* np.round(linspace(0, 999, 4))[::-1] */
	lpo_schedule_timesteps(c, s, t, 4);
	ok(same(t, (int64_t[]){ 999, 666, 333, 0 }, 4), "linspace, 4 steps");
	s->spacing = LPO_SPACING_LEADING;
	ok(lpo_schedule_timesteps(c, s, t, 0) == LPO_EINVAL &&
	    lpo_schedule_timesteps(c, s, t, 1001) == LPO_EINVAL,
	    "step counts out of range are refused");
	lpo_clear(c);
	ok(lpo_schedule_timesteps(c, s, t, 1000) == LPO_EINVAL,
	    "an offset beyond the last timestep is refused");
	lpo_clear(c);
}

/* method.md 3.4: t, sigma, c_t at eta 1, 20 steps. */
static void
transitions(const struct lpo_schedule *s)
{
	static const double want[][3] = {
		{ 1, .0206, -.02071 }, { 51, .0406, -.22048 },
		{ 101, .1673, -.19093 }, { 151, .2144, -.18602 },
		{ 201, .2509, -.18918 }, { 251, .2836, -.19648 },
		{ 301, .3144, -.20657 }, { 351, .3442, -.21895 },
		{ 401, .3732, -.23344 }, { 451, .4016, -.25004 },
		{ 501, .4293, -.26882 }, { 551, .4565, -.28988 },
		{ 601, .4829, -.31335 }, { 651, .5087, -.33932 },
		{ 701, .5336, -.36787 }, { 751, .5576, -.39905 },
		{ 801, .5807, -.43285 }, { 851, .6029, -.46926 },
		{ 901, .6241, -.50821 }, { 951, .6444, -.54963 }
	};
	struct lpo_ddim d;
	int k, good = 1;

	for (k = 0; k < 20; k++) {
		lpo_schedule_ddim(s, &d, (int64_t)want[k][0], 20, 1, 1);
		good &= fabs(d.sigma - want[k][1]) <= 5.01e-5 &&
		    fabs(d.c_eps - want[k][2]) <= 5.01e-6 &&
		    fabs(d.c_x - sqrt(d.abar_prev / d.abar_t)) < 1e-12;
	}
	ok(good, "sigma and c_t of the paper's 20 steps");
	lpo_schedule_ddim(s, &d, 951, 20, 1, 0);
	ok(fabs(d.sigma - 0.644391060) < 1e-7 && d.prev == 901, "t 951");
	lpo_schedule_ddim(s, &d, 501, 20, 1, 0);
	ok(fabs(d.sigma - 0.429321259) < 1e-7, "t 501");
	lpo_schedule_ddim(s, &d, 51, 20, 1, 0);
	ok(fabs(d.sigma - 0.0405967943) < 2e-7, "t 51");
	lpo_schedule_ddim(s, &d, 1, 20, 1, 0);
	ok(fabs(d.sigma - 0.0206482187) < 2e-6 && d.prev == 0, "t 1");
}

/* The affine form against the step written out, for both predictions. */
static void
affine(struct lpo_schedule *s)
{
	const double x = 0.7, e = -1.3;
	struct lpo_ddim d;
	double a, ap, x0, eps, mu;
	int v;

	for (v = 0; v < 2; v++) {
		s->prediction = v ? LPO_PREDICT_V : LPO_PREDICT_EPSILON;
		lpo_schedule_ddim(s, &d, 601, 20, 0.5, 1);
		a = (double)s->abar[601];
		ap = (double)s->abar[551];
		x0 = v ? sqrt(a) * x - sqrt(1 - a) * e :
		    (x - sqrt(1 - a) * e) / sqrt(a);
		eps = v ? sqrt(a) * e + sqrt(1 - a) * x : e;
		mu = sqrt(ap) * x0 + sqrt(1 - ap - d.sigma * d.sigma) * eps;
		ok(fabs(d.c_x * x + d.c_eps * e - mu) < 1e-12 &&
		    fabs(d.x0_x * x + d.x0_eps * e - x0) < 1e-12 &&
		    fabs(d.sigma - 0.5 * 0.4829) < 5e-5,
		    "the affine form, %s", v ? "v" : "epsilon");
	}
	s->prediction = LPO_PREDICT_EPSILON;
	s->set_alpha_to_one = 1;
	lpo_schedule_ddim(s, &d, 1, 20, 1, 0);
	ok(d.abar_prev == 1 && d.sigma == 0, "set_alpha_to_one at the end");
	lpo_schedule_ddim(s, &d, 1, 20, 1, 1);
	ok(d.abar_prev == (double)s->abar[0] && d.sigma > 0,
	    "clamped as the official code");
	s->set_alpha_to_one = 0;
	lpo_schedule_ddim(s, &d, 0, 1000, 1, 1);
	ok(d.sigma == 0 && isfinite(d.c_eps), "t 0 has no noise left");
}

static void
noise(const struct lpo_schedule *s)
{
	const float x0[3] = { 1, -2, 0.5f }, z[3] = { 0.25f, 3, -1 };
	float y[3];
	int i, good = 1;

	lpo_schedule_add_noise(s, y, x0, z, 401, 3);
	for (i = 0; i < 3; i++)
		good &= fabs((double)y[i] - (sqrt((double)s->abar[401]) *
		    (double)x0[i] + sqrt(1 - (double)s->abar[401]) *
		    (double)z[i])) < 1e-6;
	ok(good, "add_noise");
}

static void
bad(lpo_ctx *c, const char *json, const char *word)
{
	struct lpo_schedule s;
	int rc = lpo_schedule_parse(c, &s, json, "s.json");

	ok(rc == LPO_EFORMAT && strstr(lpo_errmsg(c), word) != NULL &&
	    strstr(lpo_errmsg(c), "s.json") != NULL, "refused: %s", word);
	lpo_schedule_free(&s);
	lpo_clear(c);
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();
	struct lpo_schedule s, r;
	char *json;

	ok(lpo_schedule_parse(c, &s, sd15, "sd15") == 0, "SD1.5's config");
	ok(s.prediction == LPO_PREDICT_EPSILON && !s.set_alpha_to_one &&
	    s.spacing == LPO_SPACING_LEADING, "its defaults");
	tables(&s);
	timesteps(c, &s);
	transitions(&s);
	affine(&s);
	noise(&s);
	json = lpo_schedule_json(c, &s);
	ok(json != NULL && lpo_schedule_parse(c, &r, json, "run.json") == 0 &&
	    memcmp(r.abar, s.abar, 4000) == 0, "through a stream's record");
	lpo_free(json);
	lpo_schedule_free(&r);
	lpo_schedule_free(&s);
	/* torch.linspace(1e-4, 0.02, 1000), cumprod: 0 and 999 */
	ok(lpo_schedule_parse(c, &s, "{}", "d") == 0 &&
	    fabs((double)s.abar[999] - 4.0358e-05) < 1e-8, "linear betas");
	lpo_schedule_free(&s);
	bad(c, "{\"beta_schedule\": \"cosine\"}", "cosine");
	bad(c, "{\"beta_start\": \"x\"}", "beta_start");
	bad(c, "{\"beta_end\": 2}", "beta_end");
	bad(c, "{\"num_train_timesteps\": 90000}", "without signal");
	bad(c, "{\"beta_start\": 1e-9, \"beta_end\": 1e-9}", "without noise");
	bad(c, "{\"num_train_timesteps\": 0}", "num_train_timesteps");
	bad(c, "{\"prediction_type\": \"sample\"}", "sample");
	bad(c, "{\"rescale_betas_zero_snr\": true}", "rescale");
	bad(c, "[]", "object");
	bad(c, "{", "s.json");
	ok(lpo_schedule_load(c, &s, "/nonexistent") == LPO_ENOTFOUND,
	    "an absent folder");
	lpo_schedule_free(&s);
	lpo_ctx_free(c);
	return done_testing();
}
