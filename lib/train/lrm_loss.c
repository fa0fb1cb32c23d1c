/* Score and losses of the reward model (method.md 1.4, 2.5), in f64. */
#include "lib/train/lrm_loss.h"

#include <math.h>
#include <string.h>

static double
dot(const float *a, const float *b, int64_t d)
{
	double s = 0;
	int64_t i;

	for (i = 0; i < d; i++)
		s += (double)a[i] * (double)b[i];
	return s;
}

/* log(1 + e^x) without overflow; log(sigmoid()) would give inf (7 no. 11). */
static double
softplus(double x)
{
	return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double
sigmoid(double x)
{
	return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

double
lpo_lrm_score(const float *v, const float *t, int64_t d, double s)
{
	return exp(s) * dot(v, t, d) / sqrt(dot(v, v, d) * dot(t, t, d));
}

void
lpo_lrm_weights(double *w, const double *num_example, const int64_t *t0,
    const int64_t *t1, double aux, int64_t n)
{
	double sum = 0;
	int64_t i;

	for (i = 0; i < n; i++)
		sum += 1 / num_example[i];
	for (i = 0; i < n; i++) {
		w[i] = 1 / num_example[i] / sum;
		if (t0 != NULL && t1 != NULL && t0[i] != t1[i])
			w[i] *= aux;
	}
}

double
lpo_lrm_pair_loss(float *dv, float *dt, double *ds, double *score,
    const float *v, const float *t, int64_t d, double s, double y0, double y1,
    double w)
{
	double nt = sqrt(dot(t, t, d)), nv[2], c[2], z[2], g[2], loss;
	double scale = exp(s), x, sum;
	int64_t i;
	int k;

	for (k = 0; k < 2; k++) {
		nv[k] = sqrt(dot(v + k * d, v + k * d, d));
		c[k] = dot(v + k * d, t, d) / (nv[k] * nt);
		z[k] = scale * c[k];
		if (score != NULL)
			score[k] = z[k];
	}
	x = z[1] - z[0];
	/* a tie that is perfectly tied costs 0: 2 * 0.5 log 2 + log 0.5 */
	loss = y0 * softplus(x) + y1 * softplus(-x) +
	    (y0 == y1 ? log(0.5) : 0);
	g[1] = w * (y0 * sigmoid(x) - y1 * sigmoid(-x));
	g[0] = -g[1];
	if (ds != NULL)		/* dz/ds = z */
		*ds += g[0] * z[0] + g[1] * z[1];
	/* dz/dv = e^s (t/|t| - c v/|v|) / |v|; dz/dt: v and t swapped */
	for (k = 0; dv != NULL && k < 2; k++)
		for (i = 0; i < d; i++)
			dv[k * d + i] = (float)(g[k] * scale *
			    ((double)t[i] / nt -
			    c[k] * (double)v[k * d + i] / nv[k]) / nv[k]);
	for (i = 0; dt != NULL && i < d; i++) {
		for (sum = 0, k = 0; k < 2; k++)
			sum += g[k] * ((double)v[k * d + i] / nv[k] -
			    c[k] * (double)t[i] / nt);
		dt[i] = (float)(scale * sum / nt);
	}
	return w * loss;
}

/* -------------------------------------------------- against the whole batch */

struct batch {
	int64_t n, d;
	double scale;
	double *v, *t;		/* unit vectors [2n, d], [n, d] */
	double *nv, *nt;	/* lengths */
	double *z;		/* scores [n texts, 2n images] */
	double *g;		/* the loss's gradient for them */
};

static void
unit(double *u, double *length, const float *x, int64_t rows, int64_t d)
{
	int64_t r, i;

	for (r = 0; r < rows; r++) {
		length[r] = sqrt(dot(x + r * d, x + r * d, d));
		for (i = 0; i < d; i++)
			u[r * d + i] = (double)x[r * d + i] / length[r];
	}
}

static void
scores(struct batch *b)
{
	int64_t i, j, k;
	double s;

	for (i = 0; i < b->n; i++)
		for (j = 0; j < 2 * b->n; j++) {
			for (s = 0, k = 0; k < b->d; k++)
				s += b->t[i * b->d + k] * b->v[j * b->d + k];
			b->z[i * 2 * b->n + j] = b->scale * s;
		}
}

/*
 * Cross entropy of `count` scores z[k * stride] with target `at`, times w,
 * its gradient added to g.
 */
static double
cross_entropy(double *g, const double *z, int64_t count, int64_t stride,
    int64_t at, double w)
{
	double top = z[0], sum = 0;
	int64_t k;

	if (w == 0)
		return 0;
	for (k = 1; k < count; k++)
		top = fmax(top, z[k * stride]);
	for (k = 0; k < count; k++)
		sum += exp(z[k * stride] - top);
	for (k = 0; k < count; k++)
		g[k * stride] += w * (exp(z[k * stride] - top) / sum -
		    (k == at));
	return w * (log(sum) + top - z[at * stride]);
}

/* Pair i's part of the loss; gradients go to b->g. */
static double
item(struct batch *b, int64_t i, const double y[2], double w,
    double pair_coeff, double batch_coeff)
{
	int64_t m = 2 * b->n, k;
	double *z = b->z + i * m, *g = b->g + i * m, loss = 0;
	double tie = y[0] == y[1] ? log(0.5) : 0;

	for (k = 0; k < 2; k++) {
		loss += cross_entropy(g + 2 * i, z + 2 * i, 2, 1, k,
		    pair_coeff * w * y[k]);
		loss += cross_entropy(g, z, m, 1, 2 * i + k,
		    batch_coeff * 0.5 * w * y[k]);
		loss += cross_entropy(b->g + 2 * i + k, b->z + 2 * i + k,
		    b->n, m, i, batch_coeff * 0.5 * w * y[k]);
	}
	return loss + w * tie * (pair_coeff + 0.5 * batch_coeff);
}

/*
 * From b->g to the vectors: with G = e^s sum g u_other, the gradient through
 * the normalisation is (G - (G u) u) / |x|.  step: between the others' g.
 */
static void
through(float *dx, const double *u, const double *length, const double *other,
    const double *g, int64_t others, int64_t step, int64_t d, double scale,
    double *sum)
{
	int64_t i, k;
	double along = 0;

	memset(sum, 0, (size_t)d * sizeof(*sum));
	for (k = 0; k < others; k++)
		for (i = 0; i < d; i++)
			sum[i] += scale * g[k * step] * other[k * d + i];
	for (i = 0; i < d; i++)
		along += sum[i] * u[i];
	for (i = 0; i < d; i++)
		dx[i] = (float)((sum[i] - along * u[i]) / *length);
}

static int
batch_new(lpo_ctx *c, struct batch *b, const float *v, const float *t)
{
	size_t n = (size_t)b->n, d = (size_t)b->d;

	b->v = lpo_alloc(c, 2 * n * d, sizeof(double));
	b->t = lpo_alloc(c, n * d, sizeof(double));
	b->nv = lpo_alloc(c, 2 * n, sizeof(double));
	b->nt = lpo_alloc(c, n, sizeof(double));
	b->z = lpo_alloc(c, 2 * n * n, sizeof(double));
	b->g = lpo_alloc(c, 2 * n * n, sizeof(double));
	if (b->v == NULL || b->t == NULL || b->nv == NULL || b->nt == NULL ||
	    b->z == NULL || b->g == NULL)
		return LPO_ENOMEM;
	unit(b->v, b->nv, v, 2 * b->n, b->d);
	unit(b->t, b->nt, t, b->n, b->d);
	scores(b);
	return 0;
}

static void
batch_free(struct batch *b)
{
	lpo_free(b->v);
	lpo_free(b->t);
	lpo_free(b->nv);
	lpo_free(b->nt);
	lpo_free(b->z);
	lpo_free(b->g);
}

int
lpo_lrm_batch_loss(lpo_ctx *c, double *loss, float *dv, float *dt,
    double *ds, const float *v, const float *t, int64_t n, int64_t d,
    double s, const double *y0, const double *y1, const double *w,
    enum lpo_lrm_criterion criterion, double coeff)
{
	struct batch b = { .n = n, .d = d, .scale = exp(s) };
	double *sum = NULL, pair = criterion == LPO_LRM_BATCH ? 0 : 1;
	double whole = criterion == LPO_LRM_PAIR ? 0 :
	    criterion == LPO_LRM_BOTH ? coeff : 1;
	int64_t i, m = 2 * n;
	int rc;

	if ((rc = batch_new(c, &b, v, t)) < 0)
		goto out;
	if ((sum = lpo_alloc(c, (size_t)d, sizeof(*sum))) == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	*loss = 0;
	for (i = 0; i < n; i++)
		*loss += item(&b, i, (double[2]){ y0[i], y1[i] }, w[i], pair,
		    whole);
	for (i = 0; ds != NULL && i < m * n; i++)
		*ds += b.g[i] * b.z[i];
	for (i = 0; dv != NULL && i < m; i++)
		through(dv + i * d, b.v + i * d, b.nv + i, b.t, b.g + i, n, m,
		    d, b.scale, sum);
	for (i = 0; dt != NULL && i < n; i++)
		through(dt + i * d, b.t + i * d, b.nt + i, b.v, b.g + i * m,
		    m, 1, d, b.scale, sum);
out:
	batch_free(&b);
	lpo_free(sum);
	return rc;
}

int
lpo_lrm_criterion_parse(const char *s)
{
	return strcmp(s, "pair") == 0 ? LPO_LRM_PAIR :
	    strcmp(s, "batch") == 0 ? LPO_LRM_BATCH :
	    strcmp(s, "both") == 0 ? LPO_LRM_BOTH : -1;
}
