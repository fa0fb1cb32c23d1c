/*
 * The LPO loss and its gradient against torch, DDIM steps against diffusers,
 * for networks that predict epsilon and v; thresholds by their tables.
 */
#include <math.h>
#include <stdio.h>

#include "lib/train/lpo_loss.h"
#include "tests/tap.h"

enum { N = 48 };

static void
wave(float *x, int k, double scale)
{
	int i;

	for (i = 0; i < N; i++)
		x[i] = (float)(scale * sin(0.7 * (i + 1) * (k + 1) + k));
}

static int
read_row(FILE *f, double *v)
{
	int i;

	for (i = 0; i < N; i++)
		if (fscanf(f, "%lf", &v[i]) != 1)
			return -1;
	return 0;
}

static double
worst(const float *got, const double *want)
{
	double err = 0, max = 0;
	int i;

	for (i = 0; i < N; i++) {
		err = worse(err, fabs(got[i] - want[i]));
		max = fmax(max, fabs(want[i]));
	}
	return err / fmax(max, 1e-30);
}

static int
one_case(lpo_ctx *c, const struct lpo_schedule *s, FILE *f)
{
	double scale, gap, sigma, loss, rw, rl, win[N], lose[N], grad[N], e;
	float x[N], ref[N], eps[N], d[N], w[N], l[N], step[N];
	struct lpo_pair_loss o;
	struct lpo_pair_out out;
	struct lpo_ddim dd;
	int t, prev, i;

	(void)c;
	if (fscanf(f, " case %d %d %lf %lf %lf %lf", &t, &prev, &scale, &gap,
	    &o.beta, &o.clip) != 6)
		return 0;
	if (fscanf(f, "%lf %lf %lf %lf", &sigma, &loss, &rw, &rl) != 4 ||
	    read_row(f, win) < 0 || read_row(f, lose) < 0 ||
	    read_row(f, grad) < 0)
		return ok(0, "the golden file is whole") - 1;
	wave(x, 0, 1);
	wave(ref, 1, 1);
	wave(step, 2, 1);
	for (i = 0; i < N; i++) {
		eps[i] = (float)((double)ref[i] + scale * (double)step[i]);
		w[i] = (float)win[i];
		l[i] = (float)lose[i];
	}
	lpo_schedule_ddim(s, &dd, t, 20, 1, 1);
	ok(dd.prev == prev && fabs(dd.sigma - sigma) < 1e-6 * sigma,
	    "t %d: sigma %.9g", t, dd.sigma);
	lpo_pair_loss_eval(&o, &out, d, 1, &dd, eps, ref, x, w, l, N);
	ok(fabs(out.loss - loss) < 1e-5 * fmax(loss, 1e-3) &&
	    fabs(out.ratio_win - rw) < 1e-6 &&
	    fabs(out.ratio_lose - rl) < 1e-6,
	    "t %d: loss %.8g, torch %.8g; ratios %.6f %.6f", t, out.loss,
	    loss, out.ratio_win, out.ratio_lose);
	e = worst(d, grad);
	ok(e < 2e-5 || (grad[0] == 0 && d[0] == 0), "t %d: gradient, largest "
	    "error %.1e of the largest value", t, e);
	ok(out.clipped_win == (fabs(fabs(rw - 1) - o.clip) < 1e-12),
	    "t %d: clipped where torch clips", t);
	return 1;
}

/* A step from wave 0 with output wave 1 and noise wave 2. */
static int
one_ddim(const struct lpo_schedule *s, FILE *f)
{
	float x[N], e[N], z[N], got[N];
	double want[N], eta, err;
	struct lpo_ddim dd;
	int t, i;

	if (fscanf(f, " ddim %d %lf", &t, &eta) != 2)
		return 0;
	if (read_row(f, want) < 0)
		return ok(0, "the golden file is whole") - 1;
	wave(x, 0, 1);
	wave(e, 1, 1);
	wave(z, 2, 1);
	lpo_schedule_ddim(s, &dd, t, 20, eta, 0);
	for (i = 0; i < N; i++)
		got[i] = (float)(dd.c_x * (double)x[i] + dd.c_eps *
		    (double)e[i] + dd.sigma * (double)z[i]);
	err = worst(got, want);
	ok(err < 2e-6, "t %d, eta %g: the step, largest error %.1e", t, eta,
	    err);
	return 1;
}

/* All of a file; the cases it must have. */
static int
all(lpo_ctx *c, const struct lpo_schedule *s, const char *path)
{
	FILE *f = fopen(path, "r");
	int cases = 0, steps = 0;

	if (f == NULL)
		return 1;
	while (one_case(c, s, f) == 1)
		cases++;
	while (one_ddim(s, f) == 1)
		steps++;
	fclose(f);
	return !ok(cases == 8 && steps == 6, "%s: 8 losses, 6 steps", path);
}

/* method.md 3.4: margins needed at SD1.5's steps */
static void
thresholds(lpo_ctx *c, const struct lpo_schedule *s)
{
	static const double want[20] = { .5000, .4951, .4900, .4847, .4791,
	    .4734, .4674, .4612, .4548, .4483, .4416, .4348, .4278, .4206,
	    .4132, .4054, .3966, .3853, .3548, .3500 };
	struct lpo_threshold th;
	struct lpo_ddim dd[20];
	double got[20], err = 0, work[8];
	const double m[] = { .8, .1, .2, .3, .4, .5, .6, .7 };
	const double one[] = { 1, 1, 1, 1, 1, 1, 1, 1 };
	int64_t t[20];
	int i, pass = 0;

	lpo_schedule_timesteps(c, s, t, 20);
	for (i = 0; i < 20; i++)
		lpo_schedule_ddim(s, &dd[i], t[i], 20, 1, 1);
	ok(lpo_threshold_parse(c, &th, "sigma:0.35:0.5") == 0, "a threshold");
	lpo_threshold_table(&th, got, dd, 20);
	for (i = 0; i < 20; i++)
		err = worse(err, fabs(got[i] - want[i]));
	ok(err < 5.1e-5, "the official table within its rounding (%.1e)",
	    err);
	lpo_threshold_parse(c, &th, "linear:0.2:0.6");
	lpo_threshold_table(&th, got, dd, 20);
	ok(fabs(got[0] - .6) < 1e-12 && fabs(got[19] - .2) < 1e-12,
	    "linear from end to end");
	th.scale = lpo_threshold_scale(0.5, m, one, work, 8);
	for (i = 0; i < 8; i++)
		pass += m[i] > th.scale * one[i];
	ok(pass == 4, "quantile 0.5 lets half of the margins pass");
	ok(lpo_threshold_parse(c, &th, "sigma:0.5:0.3") < 0 &&
	    lpo_threshold_parse(c, &th, "static:0.3x") < 0 &&
	    lpo_threshold_parse(c, &th, "static:nan") < 0 &&
	    lpo_threshold_parse(c, &th, "what") < 0, "nonsense is refused");
	lpo_clear(c);
}

int
main(void)
{
	struct lpo_schedule s = { .beta_start = 0.00085, .beta_end = 0.012,
	    .beta_schedule = LPO_BETA_SCALED_LINEAR, .train_steps = 1000,
	    .steps_offset = 1 };
	lpo_ctx *c = lpo_ctx_new();

	if (lpo_schedule_init(c, &s) < 0 || all(c, &s, "tests/golden/lpo.txt"))
		return 1;
	thresholds(c, &s);
	s.prediction = LPO_PREDICT_V;
	if (all(c, &s, "tests/golden/lpo_v.txt"))
		return 1;
	lpo_schedule_free(&s);
	lpo_ctx_free(c);
	return done_testing();
}
