/* Thresholds and the loss of a pair. */
#include "lib/train/lpo_loss.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int
lpo_threshold_parse(lpo_ctx *c, struct lpo_threshold *th, const char *spec)
{
	static const struct {
		const char *name;
		enum lpo_threshold_kind kind;
		int numbers;
	} kinds[] = {
		{ "static:", LPO_TH_STATIC, 1 },
		{ "sigma:", LPO_TH_SIGMA, 2 },
		{ "variance:", LPO_TH_VARIANCE, 2 },
		{ "linear:", LPO_TH_LINEAR, 2 },
		{ "quantile:", LPO_TH_QUANTILE, 1 }
	};
	double a = 0, b = 0;
	size_t i, len;
	int n, end = 0;

	memset(th, 0, sizeof(*th));
	for (i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		len = strlen(kinds[i].name);
		if (strncmp(spec, kinds[i].name, len) != 0)
			continue;
		n = kinds[i].numbers == 2 ?
		    sscanf(spec + len, "%lf:%lf%n", &a, &b, &end) :
		    sscanf(spec + len, "%lf%n", &a, &end);
		if (n != kinds[i].numbers || spec[len + (size_t)end] != '\0' ||
		    !(a >= 0 && a < 1) || !(b >= 0 && b < 1) ||
		    (n == 2 && b < a))
			break;
		th->kind = kinds[i].kind;
		th->lo = a;
		th->hi = n == 2 ? b : a;
		if (th->kind == LPO_TH_QUANTILE) {
			th->share = a;
			th->lo = 0.35;
			th->hi = 0.5;
		}
		th->scale = 1;
		return 0;
	}
	return lpo_fail(c, LPO_EINVAL, "bad threshold '%s': want static:T, "
	    "sigma:LO:HI, variance:LO:HI, linear:LO:HI or quantile:Q, in "
	    "0..1", spec);
}

/* What the shape of a threshold runs along. */
static double
along(enum lpo_threshold_kind kind, const struct lpo_ddim *s)
{
	switch (kind) {
	case LPO_TH_STATIC:
		return 0;
	case LPO_TH_VARIANCE:
		return s->sigma * s->sigma;
	case LPO_TH_LINEAR:
		return (double)s->t;
	case LPO_TH_SIGMA:
	case LPO_TH_QUANTILE:
		break;
	}
	return s->sigma;
}

void
lpo_threshold_table(const struct lpo_threshold *th, double *out,
    const struct lpo_ddim *steps, int64_t n)
{
	double lo = INFINITY, hi = -INFINITY, v;
	int64_t i;

	for (i = 0; i < n; i++) {
		v = along(th->kind, &steps[i]);
		lo = fmin(lo, v);
		hi = fmax(hi, v);
	}
	for (i = 0; i < n; i++) {
		v = along(th->kind, &steps[i]);
		v = hi > lo ? (v - lo) / (hi - lo) : 0;
		out[i] = th->scale * (th->lo + (th->hi - th->lo) * v);
	}
}

static int
ascending(const void *a, const void *b)
{
	double x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return (x > y) - (x < y);
}

double
lpo_threshold_scale(double share, const double *margin, const double *shape,
    double *work, int64_t n)
{
	int64_t i, at;

	if (n == 0)
		return 1;
	for (i = 0; i < n; i++)
		work[i] = margin[i] / shape[i];
	qsort(work, (size_t)n, sizeof(*work), ascending);
	at = (int64_t)floor(share * (double)n);
	/* "passes" is strict, so the value itself stays out */
	return at <= 0 ? 0 : work[at - 1];
}

double
lpo_margin(double win, double lose)
{
	return tanh((win - lose) / 2);
}

/* ln r, clamped to ln(1-e)..ln(1+e); bounds included pass the gradient. */
static double
clamped(double ln, double e, int *clipped)
{
	double lo = log1p(-e), hi = log1p(e);

	*clipped = !(ln >= lo && ln <= hi);
	return ln < lo ? lo : ln > hi ? hi : ln;
}

static double
softplus(double x)
{
	return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

void
lpo_pair_loss_eval(const struct lpo_pair_loss *o, struct lpo_pair_out *out,
    float *d_eps, double weight, const struct lpo_ddim *s, const float *eps,
    const float *eps_ref, const float *x_t, const float *x_win,
    const float *x_lose, int64_t n)
{
	double sw = 0, sl = 0, d, mu_ref, mu, h, dh, gw, gl, lw, ll;
	double var = s->sigma * s->sigma, scale = (double)n * var;
	int64_t i;

	for (i = 0; i < n; i++) {
		mu_ref = s->c_x * x_t[i] + s->c_eps * eps_ref[i];
		d = s->c_eps * ((double)eps[i] - eps_ref[i]);
		sw += d * (2 * (x_win[i] - mu_ref) - d);
		sl += d * (2 * (x_lose[i] - mu_ref) - d);
	}
	out->log_win = sw / (2 * scale);
	out->log_lose = sl / (2 * scale);
	lw = clamped(out->log_win, o->clip, &out->clipped_win);
	ll = clamped(out->log_lose, o->clip, &out->clipped_lose);
	out->ratio_win = exp(lw);
	out->ratio_lose = exp(ll);
	h = o->beta * (lw - ll);
	out->loss = softplus(-h);
	if (d_eps == NULL)
		return;
	/* dloss/dh = -sigmoid(-h); d ln r(x) / d mu = (x - mu) / (n var) */
	dh = -1 / (1 + exp(h));
	gw = out->clipped_win ? 0 : weight * dh * o->beta * s->c_eps / scale;
	gl = out->clipped_lose ? 0 : weight * dh * o->beta * s->c_eps / scale;
	for (i = 0; i < n; i++) {
		mu = s->c_x * x_t[i] + s->c_eps * eps[i];
		d_eps[i] = (float)(gw * (x_win[i] - mu) -
		    gl * (x_lose[i] - mu));
	}
}
