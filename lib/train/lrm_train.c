/*
 * Training the reward model.  A step: the empty prompt forward; each
 * micro-batch forward and backward (criteria that look at the whole batch:
 * first all forward, for the features); the empty prompt's gradient, summed in
 * pair order, back once; clipping; AdamW.
 */
#include <math.h>
#include <string.h>

#include "lib/train/lrm_train_priv.h"

#define MAX_SKIPS 5
#define ROWS LPO_LRM_ROWS

/* --------------------------------------------------------- one micro-batch */

/* Inputs of pairs p[0 .. groups - 1], then forward. */
static int
micro_forward(lpo_lrm_trainer *r, struct lpo_lrm_micro *u,
    const struct lpo_lrm_pair *p)
{
	const int32_t *const ids[2] = { r->ids[0], r->ids[1] };
	int64_t g, l = lpo_lrm_length(r->m);
	int k, rc;

	for (g = 0; g < u->groups; g++) {
		for (k = 0; k < ROWS; k++) {
			memcpy(r->latent + (g * ROWS + k) * r->count,
			    p[g].latent[k], (size_t)r->count * sizeof(float));
			r->ts[g * ROWS + k] = p[g].t[k];
		}
		for (k = 0; k < lpo_lrm_encoders(r->m); k++)
			memcpy(r->ids[k] + g * l, p[g].ids[k], (size_t)l *
			    sizeof(int32_t));
	}
	if ((rc = lpo_lrm_set_text(u->tape, r->m, &u->text, ids)) < 0 ||
	    (rc = lpo_lrm_set_image(u->tape, r->m, &u->image, r->latent,
	    r->ts)) < 0)
		return rc;
	if (u->empty != NULL &&
	    (rc = lpo_var_set(u->tape, u->empty, r->copies[0])) < 0)
		return rc;
	if (u->empty_pooled != NULL &&
	    (rc = lpo_var_set(u->tape, u->empty_pooled, r->copies[1])) < 0)
		return rc;
	return lpo_tape_forward(u->tape, 0);
}

/* Features of the pairs from `first` on, into the batch's arrays. */
static int
micro_features(lpo_lrm_trainer *r, struct lpo_lrm_micro *u, int64_t first)
{
	int rc;

	if ((rc = lpo_var_get(u->tape, u->visual,
	    r->v + first * ROWS * r->dim)) < 0)
		return rc;
	return lpo_var_get(u->tape, u->text.feature, r->t + first * r->dim);
}

/* The gradients of the "" row's copies, added in pair order. */
static int
add_empty(lpo_lrm_trainer *r, struct lpo_lrm_micro *u, lpo_var *v, int part,
    int64_t width)
{
	float *g = NULL;
	int64_t i, k;
	int rc = 0;

	if (v == NULL || r->o.freeze_text)
		return 0;
	g = lpo_alloc(r->ctx, (size_t)(u->groups * width), sizeof(*g));
	if (g == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_var_get_grad(u->tape, v, g)) == 0)
		for (i = 0; i < u->groups; i++)
			for (k = 0; k < width; k++)
				r->sum[part][k] += g[i * width + k];
	lpo_free(g);
	return rc;
}

static int
micro_backward(lpo_lrm_trainer *r, struct lpo_lrm_micro *u, int64_t first)
{
	int rc;

	/* SDXL's T has no projection: with frozen encoders it has no gradient */
	if ((rc = lpo_var_set_grad(u->tape, u->visual,
	    r->dv + first * ROWS * r->dim)) < 0 ||
	    (u->text.feature->needs_grad &&
	    (rc = lpo_var_set_grad(u->tape, u->text.feature,
	    r->dt + first * r->dim)) < 0) ||
	    (rc = lpo_tape_backward(u->tape)) < 0 ||
	    (rc = add_empty(r, u, u->empty, 0, r->width)) < 0)
		return rc;
	return add_empty(r, u, u->empty_pooled, 1, r->pooled);
}

/* ------------------------------------------------------------- a batch */

/* Accuracy and margin over the pairs with a preference; what is not finite. */
struct tally {
	int64_t n, right, bad;
	double margin;
};

static void
count_pair(struct tally *y, int64_t i, const double score[2],
    const double label[2])
{
	double gap = label[0] > label[1] ? score[0] - score[1] :
	    score[1] - score[0];

	if (y->bad < 0 && (!isfinite(score[0]) || !isfinite(score[1])))
		y->bad = i;
	if (label[0] == label[1])
		return;
	y->n++;
	y->right += gap > 0;
	y->margin += gap;
}

static void
pair_losses(lpo_lrm_trainer *r, const struct lpo_lrm_pair *p, int64_t first,
    int64_t n, double s, double *loss, double *ds, struct tally *y)
{
	double score[2];
	int64_t i, d = r->dim;

	for (i = first; i < first + n; i++) {
		*loss += lpo_lrm_pair_loss(r->dv + i * ROWS * d,
		    r->dt + i * d, ds, score, r->v + i * ROWS * d,
		    r->t + i * d, d, s, p[i].label[0], p[i].label[1],
		    r->w[i]);
		count_pair(y, i, score, p[i].label);
	}
}

/* The criteria that look at the whole batch. */
static int
batch_losses(lpo_lrm_trainer *r, const struct lpo_lrm_pair *p, int64_t n,
    double s, double *loss, double *ds, struct tally *y)
{
	double score[2];
	int64_t i, d = r->dim;
	int k;

	for (i = 0; i < n; i++) {
		for (k = 0; k < 2; k++)
			score[k] = lpo_lrm_score(r->v + (i * ROWS + k) * d,
			    r->t + i * d, d, s);
		count_pair(y, i, score, p[i].label);
	}
	return lpo_lrm_batch_loss(r->ctx, loss, r->dv, r->dt, ds, r->v, r->t,
	    n, d, s, r->y0, r->y1, r->w, r->o.criterion, r->o.batch_coeff);
}

static struct lpo_lrm_micro *
micro_at(lpo_lrm_trainer *r, int64_t first, int64_t n)
{
	return n - first >= r->full.groups ? &r->full : &r->rest;
}

static int
run_batch(lpo_lrm_trainer *r, const struct lpo_lrm_pair *p, int64_t n,
    double s, double *loss, double *ds, struct tally *y)
{
	struct lpo_lrm_micro *u;
	int64_t i;
	int rc, whole = r->o.criterion != LPO_LRM_PAIR;
	int once = n == r->full.groups;

	for (i = 0; whole && i < n; i += u->groups) {
		u = micro_at(r, i, n);
		if ((rc = micro_forward(r, u, p + i)) < 0 ||
		    (rc = micro_features(r, u, i)) < 0)
			return rc;
	}
	if (whole && (rc = batch_losses(r, p, n, s, loss, ds, y)) < 0)
		return rc;
	for (i = 0; i < n; i += u->groups) {
		u = micro_at(r, i, n);
		/* what was a single micro-batch still holds its values */
		if (!(whole && once) && (rc = micro_forward(r, u, p + i)) < 0)
			return rc;
		if (!whole) {
			if ((rc = micro_features(r, u, i)) < 0)
				return rc;
			pair_losses(r, p, i, u->groups, s, loss, ds, y);
		}
		if ((rc = micro_backward(r, u, i)) < 0)
			return rc;
	}
	return 0;
}

/* The "" row forward, and a copy of it for each group. */
static int
empty_forward(lpo_lrm_trainer *r)
{
	const int32_t *const ids[2] = { r->empty_ids[0], r->empty_ids[1] };
	lpo_var *const var[2] = { r->empty_text.context,
	    r->empty_text.pooled };
	const int64_t width[2] = { r->width, r->pooled };
	int64_t g;
	int k, rc;

	if ((rc = lpo_lrm_set_text(r->empty, r->m, &r->empty_text, ids)) < 0 ||
	    (rc = lpo_tape_forward(r->empty, 0)) < 0)
		return rc;
	for (k = 0; k < 2; k++) {
		if (var[k] == NULL)
			continue;
		if ((rc = lpo_var_get(r->empty, var[k], r->row[k])) < 0)
			return rc;
		for (g = 0; g < r->full.groups; g++)
			memcpy(r->copies[k] + g * width[k], r->row[k],
			    (size_t)width[k] * sizeof(float));
		memset(r->sum[k], 0, (size_t)width[k] * sizeof(float));
	}
	return 0;
}

static int
empty_backward(lpo_lrm_trainer *r)
{
	lpo_var *const var[2] = { r->empty_text.context,
	    r->empty_text.pooled };
	int k, rc;

	for (k = 0; k < 2; k++)
		if (var[k] != NULL && (rc = lpo_var_set_grad(r->empty, var[k],
		    r->sum[k])) < 0)
			return rc;
	return lpo_tape_backward(r->empty);
}

int
lpo_lrm_trainer_commit(lpo_lrm_trainer *r)
{
	int rc;

	if (r->ready)
		return 0;
	if ((r->empty != NULL && (rc = lpo_tape_commit(r->empty, NULL)) < 0) ||
	    (rc = lpo_tape_commit(r->full.tape, &r->arena)) < 0 ||
	    (r->rest.tape != NULL && (rc = lpo_tape_commit(r->rest.tape,
	    &r->arena)) < 0))
		return rc;
	r->ready = 1;
	return 0;
}

static int
zero_grads(lpo_lrm_trainer *r)
{
	struct lpo_lrm_set set[4];
	int i, n = lpo_lrm_sets(r->m, set), rc;

	for (i = 0; i < n; i++)
		if ((rc = lpo_params_zero_grad(set[i].params)) < 0)
			return rc;
	return 0;
}

/* ds to where the optimiser finds it */
static int
put_scale_grad(lpo_lrm_trainer *r, double ds)
{
	lpo_param *p = lpo_param_find(lpo_lrm_head(r->m), "logit_scale");
	lpo_backend *be = lpo_lrm_backend(r->m);
	float f = (float)ds;
	int rc = be->k->upload(be, p->grad, &f, sizeof(f));

	return rc < 0 ? lpo_fail(r->ctx, rc, "transfer failed") : 0;
}

static int
grad_norm(lpo_lrm_trainer *r, double *norm)
{
	struct lpo_lrm_set set[4];
	int i, n = lpo_lrm_sets(r->m, set), rc;
	double sum = 0, one;

	for (i = 0; i < n; i++) {
		if ((rc = lpo_params_grad_sumsq(set[i].params, &one)) < 0)
			return rc;
		sum += one;
	}
	*norm = sqrt(sum);
	return 0;
}

static void
prepare(lpo_lrm_trainer *r, const struct lpo_lrm_pair *p, int64_t n)
{
	int64_t i;

	for (i = 0; i < n; i++) {
		r->num[i] = p[i].num_example;
		r->t0[i] = p[i].t[0];
		r->t1[i] = p[i].t[1];
		r->y0[i] = p[i].label[0];
		r->y1[i] = p[i].label[1];
	}
	lpo_lrm_weights(r->w, r->num, r->t0, r->t1, r->o.aux_coeff, n);
}

int
lpo_lrm_trainer_grads(lpo_lrm_trainer *r, struct lpo_lrm_step *out,
    const struct lpo_lrm_pair *p, int64_t n)
{
	double s, loss = 0, ds = 0;
	struct tally y = { .bad = -1 };
	int rc;

	memset(out, 0, sizeof(*out));
	if (n != r->o.batch)
		return lpo_fail(r->ctx, LPO_EINVAL, "%lld pairs for a batch "
		    "of %lld", (long long)n, (long long)r->o.batch);
	prepare(r, p, n);
	if ((rc = lpo_lrm_logit_scale(r->m, &s)) < 0 ||
	    (rc = lpo_lrm_trainer_commit(r)) < 0 || (rc = zero_grads(r)) < 0 ||
	    (r->empty != NULL && (rc = empty_forward(r)) < 0) ||
	    (rc = run_batch(r, p, n, s, &loss, &ds, &y)) < 0 ||
	    (r->empty != NULL && !r->o.freeze_text &&
	    (rc = empty_backward(r)) < 0) ||
	    (rc = put_scale_grad(r, ds)) < 0 ||
	    (rc = grad_norm(r, &out->grad_norm)) < 0)
		return rc;
	out->loss = loss;
	out->scale = exp(s);
	out->bad = y.bad;
	out->accuracy = y.n > 0 ? (double)y.right / (double)y.n : NAN;
	out->margin = y.n > 0 ? y.margin / (double)y.n : NAN;
	return 0;
}

/* ----------------------------------------------------------------- a step */

static int
update(lpo_lrm_trainer *r, const struct lpo_lrm_step *st)
{
	struct lpo_adamw a = { .lr = (float)st->lr, .beta1 = 0.9f,
	    .beta2 = 0.999f, .eps = 1e-8f, .grad_scale = 1,
	    .weight_decay = (float)r->o.weight_decay, .step = r->n.update + 1 };
	struct lpo_lrm_set set[4];
	int i, n = lpo_lrm_sets(r->m, set), rc;

	/* as torch's clip_grad_norm_ */
	if (r->o.max_grad_norm > 0)
		a.grad_scale = (float)fmin(1, r->o.max_grad_norm /
		    (st->grad_norm + 1e-6));
	for (i = 0; i < n; i++)
		if ((rc = lpo_params_adamw(set[i].params, &a)) < 0)
			return rc;
	r->n.update++;
	r->n.skipped_in_a_row = 0;
	return 0;
}

int
lpo_lrm_trainer_step(lpo_lrm_trainer *r, struct lpo_lrm_step *st,
    const struct lpo_lrm_pair *p)
{
	int rc;

	if (r->o.grads_only)
		return lpo_fail(r->ctx, LPO_EINVAL, "no step without moments");
	if ((rc = lpo_lrm_trainer_grads(r, st, p, r->o.batch)) < 0)
		return rc;
	st->lr = lpo_lr_at(r->o.schedule, r->o.lr, r->n.step + 1, r->o.warmup,
	    r->o.steps);
	if (isfinite(st->loss) && isfinite(st->grad_norm)) {
		if ((rc = update(r, st)) < 0)
			return rc;
	} else {
		st->skipped = 1;
		r->n.skipped++;
		r->n.skipped_in_a_row++;
	}
	r->n.step++;
	if (r->n.skipped_in_a_row >= MAX_SKIPS)
		return lpo_fail(r->ctx, LPO_EINVAL, "loss or gradient was not "
		    "finite in %d steps in a row (step %lld): a lower --lr, or "
		    "--precision f32", MAX_SKIPS, (long long)r->n.step);
	return 0;
}

/* ------------------------------------------------------------------ state */

static int
each_state(lpo_lrm_trainer *r, lpo_snap *snap, int save)
{
	struct lpo_lrm_set set[4];
	int i, n = lpo_lrm_sets(r->m, set), rc = 0;
	const char *name;

	for (i = 0; i < n && rc == 0; i++) {
		name = set[i].name[0] != '\0' ? set[i].name : "head";
		rc = save ? lpo_param_state_save(set[i].params, snap, name) :
		    lpo_param_state_restore(set[i].params, snap, name);
	}
	return rc;
}

int
lpo_lrm_trainer_save(lpo_lrm_trainer *r, lpo_snap *snap)
{
	return each_state(r, snap, 1);
}

int
lpo_lrm_trainer_restore(lpo_lrm_trainer *r, lpo_snap *snap)
{
	return each_state(r, snap, 0);
}
