/*
 * The LPO objective (method.md 3.4, 3.6): thresholds, and the loss of a pair
 * with its gradient in closed form.
 */
#ifndef LPO_TRAIN_LPO_LOSS_H
#define LPO_TRAIN_LPO_LOSS_H

#include "lib/train/schedule.h"

enum lpo_threshold_kind {
	LPO_TH_STATIC, LPO_TH_SIGMA, LPO_TH_VARIANCE, LPO_TH_LINEAR,
	LPO_TH_QUANTILE
};

struct lpo_threshold {
	enum lpo_threshold_kind kind;
	double lo, hi;		/* static: lo */
	double share;		/* quantile: 1 - share of transitions pass */
	double scale;		/* quantile: found on the first iteration */
};

/* "sigma:0.35:0.5", "static:0.3", "quantile:0.6"; LPO_EINVAL with text. */
int	 lpo_threshold_parse(lpo_ctx *, struct lpo_threshold *,
	    const char *spec);
/*
 * The margin above which a pair counts, for each of n DDIM steps.  Shapes run
 * between the least and the largest sigma (variance, timestep) of the steps;
 * quantile: sigma-shaped from 0.35 to 0.5 times scale.
 */
void	 lpo_threshold_table(const struct lpo_threshold *, double *th,
	    const struct lpo_ddim *steps, int64_t n);
/*
 * quantile: the scale at which a share 1 - Q of n margins passes, shape[i]
 * being the table entry at scale 1 of margin i's step.  work: n doubles.
 */
double	 lpo_threshold_scale(double share, const double *margin,
	    const double *shape, double *work, int64_t n);

/* margin of two scores: softmax difference = tanh((w - l) / 2) */
double	 lpo_margin(double win, double lose);

struct lpo_pair_loss {
	double beta, clip;	/* 500, 0.1 */
};

struct lpo_pair_out {
	double loss;
	double ratio_win, ratio_lose;	/* after the clamp */
	double log_win, log_lose;	/* before the clamp: ln r */
	int clipped_win, clipped_lose;
};

/*
 * One pair of n elements.  eps, eps_ref: the network's output after guidance,
 * policy and reference; x_t, and the two next latents.
 *
 *	mu = c_x x_t + c_eps eps,  d = mu - mu_ref
 *	ln r(x) = mean(d (2 (x - mu_ref) - d)) / (2 sigma^2)
 *	loss = softplus(-(beta ln clamp(r_w) - beta ln clamp(r_l)))
 *
 * d_eps (may be NULL) = weight * dloss/deps, overwritten.
 */
void	 lpo_pair_loss_eval(const struct lpo_pair_loss *,
	    struct lpo_pair_out *, float *d_eps, double weight,
	    const struct lpo_ddim *, const float *eps, const float *eps_ref,
	    const float *x_t, const float *x_win, const float *x_lose,
	    int64_t n);

#endif
