/*
 * The reward model's score and losses (method.md 1.4, 2.5), on the host in
 * f64, with gradients.  v, t: [.., d] f32, not normalised.
 */
#ifndef LPO_TRAIN_LRM_LOSS_H
#define LPO_TRAIN_LRM_LOSS_H

#include "lib/base/ctx.h"

enum lpo_lrm_criterion { LPO_LRM_PAIR, LPO_LRM_BATCH, LPO_LRM_BOTH };

/* exp(s) <v, t> / (|v| |t|); NaN where a norm is zero. */
double	 lpo_lrm_score(const float *v, const float *t, int64_t d, double s);

/*
 * w[i] = (1/n_i) / sum_j (1/n_j), times aux where the two timesteps differ.
 * t0, t1 may be NULL.
 */
void	 lpo_lrm_weights(double *w, const double *num_example,
	    const int64_t *t0, const int64_t *t1, double aux, int64_t n);

/*
 * One pair, criterion "pair", weight w:
 * w * (y0 CE0 + y1 CE1 + [y0 == y1] log 0.5), CEk = -log softmax(a, b)[k].
 * v [2, d], t [d].  dv, dt are set (not added to); any of dv, dt, ds may be
 * NULL; *ds is added to.  score[2], if not NULL: a, b.  Returns the loss.
 */
double	 lpo_lrm_pair_loss(float *dv, float *dt, double *ds, double *score,
	    const float *v, const float *t, int64_t d, double s, double y0,
	    double y1, double w);

/*
 * The whole batch of n pairs under a criterion; v [n, 2, d], t [n, d].
 * "batch": per pair half of (y0 I0 + y1 I1 + y0 T0 + y1 T1 + [tie] log 0.5),
 * Ik: text i against all 2n images, Tk: image k of pair i against all n texts;
 * "both": pair + coeff * batch.  dv [n, 2, d] and dt [n, d] are set, *ds is
 * added to; all three may be NULL.
 */
int	 lpo_lrm_batch_loss(lpo_ctx *, double *loss, float *dv, float *dt,
	    double *ds, const float *v, const float *t, int64_t n, int64_t d,
	    double s, const double *y0, const double *y1, const double *w,
	    enum lpo_lrm_criterion, double coeff);

/* "pair" | "batch" | "both" -> value, else -1 */
int	 lpo_lrm_criterion_parse(const char *);

#endif
