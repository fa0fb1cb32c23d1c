/* A trainer's inside; for lrm_train*.c only. */
#ifndef LPO_TRAIN_LRM_TRAIN_PRIV_H
#define LPO_TRAIN_LRM_TRAIN_PRIV_H

#include "lib/train/lrm_train.h"
#include "lib/train/param_state.h"

#define LPO_LRM_ROWS 2		/* images of a pair */

/* A tape of `groups` pairs. */
struct lpo_lrm_micro {
	int64_t groups;
	lpo_tape *tape;
	struct lpo_lrm_text text;
	struct lpo_lrm_image image;
	lpo_var *empty, *empty_pooled;	/* the "" row, once per group */
	lpo_var *visual;
	struct lpo_plan plan;
};

struct lpo_lrm_trainer {
	lpo_ctx *ctx;
	lpo_lrm *m;
	struct lpo_lrm_train_opts o;
	struct lpo_lrm_counters n;
	struct lpo_lrm_train_plan plan;
	struct lpo_lrm_micro full, rest;	/* rest: the last one */
	lpo_arena arena;
	int ready;			/* memory is there */
	/* the empty prompt: one row on its own tape */
	lpo_tape *empty;
	struct lpo_lrm_text empty_text;
	int64_t width, pooled, dim, count;
	/* host: features and gradients of the batch */
	float *v, *t, *dv, *dt;
	float *latent;
	int32_t *ids[2], *empty_ids[2];
	int64_t *ts;
	double *w, *y0, *y1, *num;
	int64_t *t0, *t1;
	/* the "" row, its copies per group, and the sum of its gradients */
	float *row[2], *copies[2], *sum[2];
};

#endif
