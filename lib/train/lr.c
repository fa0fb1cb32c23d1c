/* Learning rates over the steps (method.md 2.7). */
#include <math.h>
#include <string.h>

#include "lib/train/lrm_train.h"

double
lpo_lr_at(enum lpo_lr_schedule s, double peak, int64_t n, int64_t warmup,
    int64_t steps)
{
	double w, m = (double)steps, j = (double)(n - 2), at;

	if (s == LPO_LR_OFFICIAL) {
		/* the scheduler is stepped after the optimiser: n = 1 is peak */
		w = fmax(2, (double)warmup);
		if (n <= 1)
			return peak;
		if (j < w)
			return peak * log(j + 1) / log(w);
		return m > w ? peak * fmax(0, (m - j) / (m - w)) : peak;
	}
	w = (double)warmup;
	if (n <= warmup)
		return peak * (double)n / w;
	if (s == LPO_LR_CONSTANT || m <= w)
		return peak;
	at = fmin(1, ((double)n - 1 - w) / (m - w));
	return s == LPO_LR_LINEAR ? peak * (1 - at) :
	    peak * 0.5 * (1 + cos(3.14159265358979323846 * at));
}

int
lpo_lr_schedule_parse(const char *s)
{
	return strcmp(s, "official") == 0 ? LPO_LR_OFFICIAL :
	    strcmp(s, "cosine") == 0 ? LPO_LR_COSINE :
	    strcmp(s, "constant") == 0 ? LPO_LR_CONSTANT :
	    strcmp(s, "linear") == 0 ? LPO_LR_LINEAR : -1;
}
