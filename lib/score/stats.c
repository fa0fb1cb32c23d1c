/* Bootstrap and binomial intervals. */
#include "lib/score/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"

static int
ascending(const void *a, const void *b)
{
	double x, y;

	memcpy(&x, a, sizeof(x));
	memcpy(&y, b, sizeof(y));
	return (x > y) - (x < y);
}

/* The q-quantile of sorted v, linear between neighbours. */
static double
quantile(const double *v, int64_t n, double q)
{
	double at = q * (double)(n - 1);
	int64_t i = (int64_t)at;

	if (i >= n - 1)
		return v[n - 1];
	return v[i] + (at - (double)i) * (v[i + 1] - v[i]);
}

int
lpo_bootstrap(lpo_ctx *c, struct lpo_interval *out, const double *value,
    const double *weight, int64_t n, int64_t resamples, uint64_t seed,
    uint32_t stream)
{
	struct lpo_draw d = { .seed = seed, .purpose = LPO_DRAW_BOOTSTRAP,
	    .candidate = stream };
	double *means, sum = 0, total = 0, w;
	int64_t i, k, r;

	out->mean = out->low = out->high = NAN;
	if (n == 0)
		return 0;
	means = lpo_alloc(c, (size_t)resamples, sizeof(*means));
	if (means == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++) {
		w = weight != NULL ? weight[i] : 1;
		sum += w * value[i];
		total += w;
	}
	out->mean = sum / total;
	for (r = 0; r < resamples; r++) {
		d.item = (uint32_t)r;
		for (sum = total = 0, i = 0; i < n; i++) {
			k = lpo_draw_below(&d, (uint64_t)i, (uint32_t)n);
			w = weight != NULL ? weight[k] : 1;
			sum += w * value[k];
			total += w;
		}
		means[r] = sum / total;
	}
	qsort(means, (size_t)resamples, sizeof(*means), ascending);
	out->low = quantile(means, resamples, 0.025);
	out->high = quantile(means, resamples, 0.975);
	lpo_free(means);
	return 0;
}

void
lpo_paired(double *difference, double *win, const double *a, const double *b,
    const int64_t *first, int64_t prompts)
{
	int64_t p, i;
	double n;

	for (p = 0; p < prompts; p++) {
		n = (double)(first[p + 1] - first[p]);
		difference[p] = win[p] = 0;
		for (i = first[p]; i < first[p + 1]; i++) {
			difference[p] += (a[i] - b[i]) / n;
			win[p] += (a[i] > b[i] ? 1 : a[i] == b[i] ? 0.5 : 0) /
			    n;
		}
	}
}
