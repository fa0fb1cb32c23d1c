/*
 * Noise schedule and DDIM (spec: models.md 6, method.md 3.2), from a diffusers
 * scheduler_config.json read the way DDIMScheduler.from_config reads it.
 */
#ifndef LPO_TRAIN_SCHEDULE_H
#define LPO_TRAIN_SCHEDULE_H

#include "lib/base/ctx.h"

enum lpo_beta_schedule { LPO_BETA_LINEAR, LPO_BETA_SCALED_LINEAR };
enum lpo_prediction { LPO_PREDICT_EPSILON, LPO_PREDICT_V };
enum lpo_spacing { LPO_SPACING_LEADING, LPO_SPACING_TRAILING,
	LPO_SPACING_LINSPACE };

struct lpo_schedule {
	double beta_start, beta_end;
	enum lpo_beta_schedule beta_schedule;
	enum lpo_prediction prediction;
	enum lpo_spacing spacing;
	int64_t train_steps;	/* num_train_timesteps */
	int64_t steps_offset;
	int set_alpha_to_one;
	float *abar;		/* [train_steps], same bits as torch's */
};

/*
 * From MODEL_DIR/scheduler/scheduler_config.json.  Absent keys have
 * DDIMScheduler's defaults.  LPO_ENOTFOUND: no such file; LPO_EFORMAT: not
 * JSON, a value out of range, or a schedule that is not supported, named.
 * Freed by lpo_schedule_free().
 */
int	 lpo_schedule_load(lpo_ctx *, struct lpo_schedule *,
	    const char *model_dir);
/* From JSON text (a stream's `scheduler` object); `where` is for messages. */
int	 lpo_schedule_parse(lpo_ctx *, struct lpo_schedule *,
	    const char *json, const char *where);
/* Fill abar of a struct whose other members the caller has set. */
int	 lpo_schedule_init(lpo_ctx *, struct lpo_schedule *);
void	 lpo_schedule_free(struct lpo_schedule *);	/* zeroed is fine */
/*
 * The object for __run__/run.json: beta_start, beta_end, beta_schedule,
 * num_train_timesteps, prediction_type.  Caller frees (lpo_free).
 */
char	*lpo_schedule_json(lpo_ctx *, const struct lpo_schedule *);

/*
 * t[n], descending, of n sampling steps (models.md 6.2): n = 20, leading,
 * offset 1: 951, 901, ..., 1.  LPO_EINVAL: n out of range.
 */
int	 lpo_schedule_timesteps(lpo_ctx *, const struct lpo_schedule *,
	    int64_t *t, int64_t n);

/*
 * One DDIM transition t -> prev = t - train_steps / n with the given eta.
 * All of it is affine in the latent x and the network's output e (epsilon, or
 * v for v_prediction; after guidance):
 *
 *	mu   = c_x   * x + c_eps  * e
 *	x0   = x0_x  * x + x0_eps * e
 *	x'   = mu + sigma * z
 *
 * sigma = eta * sqrt((1 - abar_prev) / (1 - abar_t) * (1 - abar_t/abar_prev)),
 * mu = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma^2) eps.
 */
struct lpo_ddim {
	int64_t t, prev;	/* prev after clamping */
	double abar_t, abar_prev, sigma;
	double c_x, c_eps, x0_x, x0_eps;
};
/*
 * prev < 0: as the official LPO code, it is clamped to 0 (abar[0]) when
 * `clamp` is set, so that sigma stays positive; else as diffusers, the final
 * alpha, which is 1 with set_alpha_to_one.  t is in 0 .. train_steps - 1 and
 * 1 <= n <= train_steps (asserted).
 */
void	 lpo_schedule_ddim(const struct lpo_schedule *, struct lpo_ddim *,
	    int64_t t, int64_t n, double eta, int clamp);

/*
 * out[i] = sqrt(abar_t) x0[i] + sqrt(1 - abar_t) noise[i], in f32 as torch
 * (square roots rounded to f32, two products, one sum).  out may be x0.
 */
void	 lpo_schedule_add_noise(const struct lpo_schedule *, float *out,
	    const float *x0, const float *noise, int64_t t, int64_t count);

#endif
