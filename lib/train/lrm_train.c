/*
 * Training the reward model.  A step: the empty prompt forward; each
 * micro-batch forward and backward (criteria that look at the whole batch:
 * first all forward, for the features); the empty prompt's gradient, summed in
 * pair order, back once; clipping; AdamW.
 */
#include <math.h>
#include <string.h>

#include "lib/train/lrm_train.h"

#define MAX_SKIPS 5
#define ROWS 2			/* images of a pair */

/* A tape of `groups` pairs. */
struct micro {
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
	struct micro full, rest;	/* rest: of the last micro-batch */
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

/* ------------------------------------------------------------------ tapes */

static int
micro_new(lpo_lrm_trainer *r, struct micro *u, int64_t groups)
{
	lpo_lrm *m = r->m;
	int both = lpo_lrm_copies(m) == 2, grad = !r->o.freeze_text;
	lpo_var *context, *pooled;

	u->groups = groups;
	u->tape = lpo_tape_new(r->ctx, lpo_lrm_backend(m), lpo_lrm_dtype(m),
	    groups);
	if (u->tape == NULL)
		return LPO_ENOMEM;
	lpo_lrm_record_text(u->tape, m, &u->text, groups, 1);
	context = u->text.context;
	pooled = u->text.pooled;
	if (both) {
		u->empty = lpo_input(u->tape, groups, lpo_lrm_length(m), 1,
		    lpo_lrm_context_dim(m), lpo_lrm_dtype(m), grad);
		context = lpo_join_rows(u->tape, context, u->empty);
	}
	if (both && pooled != NULL) {
		u->empty_pooled = lpo_input(u->tape, groups, 1, 1, r->pooled,
		    LPO_F32, grad);
		pooled = lpo_join_rows(u->tape, pooled, u->empty_pooled);
	}
	u->visual = lpo_lrm_record_image(u->tape, m, &u->image, ROWS, r->o.h,
	    r->o.w, context, pooled);
	lpo_output(u->tape, u->visual, 1);
	lpo_output(u->tape, u->text.feature, 1);
	return lpo_tape_plan(u->tape, 1, &u->plan);
}

static void
micro_free(struct micro *u)
{
	lpo_tape_free(u->tape);
	memset(u, 0, sizeof(*u));
}

/*
 * The largest micro-batch that fits, by halves; if none does, one pair at a
 * time with recomputation.
 */
static int
choose_micro(lpo_lrm_trainer *r)
{
	int64_t g = r->o.micro_batch > 0 ? r->o.micro_batch : r->o.batch;
	size_t taken = r->plan.weight_bytes + r->plan.state_bytes;
	size_t limit = r->o.memory_bytes;
	int rc, tries = 0;

	if (g > r->o.batch)
		g = r->o.batch;
	for (;; g = (g + 1) / 2) {
		micro_free(&r->full);
		if ((rc = micro_new(r, &r->full, g)) < 0)
			return rc;
		if (r->o.micro_batch > 0 || limit == 0 || tries > 0 ||
		    r->full.plan.arena_bytes + taken <= limit)
			return 0;
		if (g == 1) {
			lpo_lrm_set_checkpoint(r->m, 1);
			tries++;
		}
	}
}

static int
empty_new(lpo_lrm_trainer *r)
{
	int rc, grad = !r->o.freeze_text;

	r->empty = lpo_tape_new(r->ctx, lpo_lrm_backend(r->m),
	    lpo_lrm_dtype(r->m), 1);
	if (r->empty == NULL)
		return LPO_ENOMEM;
	lpo_lrm_record_text(r->empty, r->m, &r->empty_text, 1, 0);
	lpo_output(r->empty, r->empty_text.context, grad);
	if (r->empty_text.pooled != NULL)
		lpo_output(r->empty, r->empty_text.pooled, grad);
	if ((rc = lpo_tape_plan(r->empty, grad, NULL)) < 0)
		return rc;
	return lpo_lrm_tokenize(r->m, r->empty_ids, "");
}

/* ------------------------------------------------------------- life cycle */

static int
make_trainable(lpo_lrm_trainer *r)
{
	struct lpo_lrm_set set[4];
	int64_t k;
	int i, n = lpo_lrm_sets(r->m, set), rc;

	for (i = 0; i < n; i++) {
		r->plan.weight_bytes += (size_t)set[i].params->bytes;
		if (r->o.freeze_text && strncmp(set[i].name, "text", 4) == 0)
			continue;
		if ((rc = lpo_params_train_all(set[i].params)) < 0)
			return rc;
		for (k = 0; k < set[i].params->n; k++)
			r->plan.parameters += set[i].params->p[k]->count;
	}
	for (i = 0; i < n; i++)
		r->plan.state_bytes += (size_t)set[i].params->bytes;
	r->plan.state_bytes -= r->plan.weight_bytes;
	return 0;
}

static void *
array(lpo_lrm_trainer *r, int64_t n, size_t size)
{
	return lpo_alloc(r->ctx, (size_t)n, size);
}

static int
buffers(lpo_lrm_trainer *r)
{
	int64_t b = r->o.batch, g = r->full.groups, l = lpo_lrm_length(r->m);
	const int64_t part[2] = { r->width, r->pooled };
	int i, bad = 0;

	bad |= !(r->v = array(r, b * ROWS * r->dim, sizeof(float)));
	bad |= !(r->dv = array(r, b * ROWS * r->dim, sizeof(float)));
	bad |= !(r->t = array(r, b * r->dim, sizeof(float)));
	bad |= !(r->dt = array(r, b * r->dim, sizeof(float)));
	bad |= !(r->latent = array(r, g * ROWS * r->count, sizeof(float)));
	bad |= !(r->ts = array(r, g * ROWS, sizeof(*r->ts)));
	bad |= !(r->w = array(r, b, sizeof(double)));
	bad |= !(r->y0 = array(r, b, sizeof(double)));
	bad |= !(r->y1 = array(r, b, sizeof(double)));
	bad |= !(r->num = array(r, b, sizeof(double)));
	bad |= !(r->t0 = array(r, b, sizeof(*r->t0)));
	bad |= !(r->t1 = array(r, b, sizeof(*r->t1)));
	for (i = 0; i < 2; i++) {
		bad |= !(r->ids[i] = array(r, g * l, sizeof(int32_t)));
		bad |= !(r->empty_ids[i] = array(r, l, sizeof(int32_t)));
		bad |= !(r->row[i] = array(r, part[i] + 1, sizeof(float)));
		bad |= !(r->sum[i] = array(r, part[i] + 1, sizeof(float)));
		bad |= !(r->copies[i] = array(r, g * part[i] + 1,
		    sizeof(float)));
	}
	return bad ? LPO_ENOMEM : 0;
}

static int
check_options(lpo_ctx *c, const struct lpo_lrm_train_opts *o)
{
	if (o->batch < 1 || o->micro_batch < 0 || o->steps < 1 ||
	    o->warmup < 0 || o->h < 1 || o->w < 1 || !(o->lr >= 0) ||
	    !(o->weight_decay >= 0) || !(o->max_grad_norm >= 0))
		return lpo_fail(c, LPO_EINVAL,
		    "training options that make no sense");
	return 0;
}

static void
make_plan(lpo_lrm_trainer *r)
{
	const struct lpo_plan *f = &r->full.plan, *e = &r->rest.plan;
	double times = (double)(r->o.batch / r->full.groups);

	r->plan.micro_batch = r->full.groups;
	r->plan.passes = r->o.criterion == LPO_LRM_PAIR ||
	    r->full.groups == r->o.batch ? 1 : 2;
	r->plan.arena_bytes = f->arena_bytes > e->arena_bytes ?
	    f->arena_bytes : e->arena_bytes;
	r->plan.step_flops = times * (f->fwd_flops + f->bwd_flops +
	    f->recompute_flops) + e->fwd_flops + e->bwd_flops +
	    e->recompute_flops;
	if (r->plan.passes == 2)
		r->plan.step_flops += times * f->fwd_flops + e->fwd_flops;
}

int
lpo_lrm_trainer_new(lpo_ctx *c, lpo_lrm_trainer **out, lpo_lrm *m,
    const struct lpo_lrm_train_opts *o)
{
	lpo_lrm_trainer *r;
	int64_t left;
	int rc;

	*out = NULL;
	if ((rc = check_options(c, o)) < 0)
		return rc;
	if ((r = lpo_alloc(c, 1, sizeof(*r))) == NULL)
		return LPO_ENOMEM;
	r->ctx = c;
	r->m = m;
	r->o = *o;
	r->width = lpo_lrm_length(m) * lpo_lrm_context_dim(m);
	r->pooled = lpo_lrm_pooled_dim(m);
	r->dim = lpo_lrm_feature_dim(m);
	r->count = o->h * o->w * lpo_lrm_cfg(m)->latent_channels;
	if ((rc = lpo_lrm_load_unet(m)) < 0 ||
	    (rc = lpo_lrm_load_text(m)) < 0 ||
	    (rc = make_trainable(r)) < 0 || (rc = choose_micro(r)) < 0)
		goto out;
	left = o->batch % r->full.groups;
	if ((left > 0 && (rc = micro_new(r, &r->rest, left)) < 0) ||
	    (rc = buffers(r)) < 0 ||
	    (lpo_lrm_copies(m) == 2 && (rc = empty_new(r)) < 0))
		goto out;
	make_plan(r);
	*out = r;
	r = NULL;
out:
	lpo_lrm_trainer_free(r);
	return rc;
}

void
lpo_lrm_trainer_free(lpo_lrm_trainer *r)
{
	int i;

	if (r == NULL)
		return;
	micro_free(&r->full);
	micro_free(&r->rest);
	lpo_tape_free(r->empty);
	lpo_arena_free(lpo_lrm_backend(r->m), &r->arena);
	lpo_free(r->v);
	lpo_free(r->dv);
	lpo_free(r->t);
	lpo_free(r->dt);
	lpo_free(r->latent);
	lpo_free(r->ts);
	lpo_free(r->w);
	lpo_free(r->y0);
	lpo_free(r->y1);
	lpo_free(r->num);
	lpo_free(r->t0);
	lpo_free(r->t1);
	for (i = 0; i < 2; i++) {
		lpo_free(r->ids[i]);
		lpo_free(r->empty_ids[i]);
		lpo_free(r->row[i]);
		lpo_free(r->sum[i]);
		lpo_free(r->copies[i]);
	}
	lpo_free(r);
}

void
lpo_lrm_trainer_plan(const lpo_lrm_trainer *r, struct lpo_lrm_train_plan *p)
{
	*p = r->plan;
}

void
lpo_lrm_trainer_counters(const lpo_lrm_trainer *r, struct lpo_lrm_counters *n)
{
	*n = r->n;
}

void
lpo_lrm_trainer_set_counters(lpo_lrm_trainer *r,
    const struct lpo_lrm_counters *n)
{
	r->n = *n;
}

/* --------------------------------------------------------- one micro-batch */

/* Inputs of pairs p[0 .. groups - 1], then forward. */
static int
micro_forward(lpo_lrm_trainer *r, struct micro *u,
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
micro_features(lpo_lrm_trainer *r, struct micro *u, int64_t first)
{
	int rc;

	if ((rc = lpo_var_get(u->tape, u->visual,
	    r->v + first * ROWS * r->dim)) < 0)
		return rc;
	return lpo_var_get(u->tape, u->text.feature, r->t + first * r->dim);
}

/* The gradients of the "" row's copies, added in pair order. */
static int
add_empty(lpo_lrm_trainer *r, struct micro *u, lpo_var *v, int part,
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
micro_backward(lpo_lrm_trainer *r, struct micro *u, int64_t first)
{
	int rc;

	if ((rc = lpo_var_set_grad(u->tape, u->visual,
	    r->dv + first * ROWS * r->dim)) < 0 ||
	    (rc = lpo_var_set_grad(u->tape, u->text.feature,
	    r->dt + first * r->dim)) < 0 ||
	    (rc = lpo_tape_backward(u->tape)) < 0 ||
	    (rc = add_empty(r, u, u->empty, 0, r->width)) < 0)
		return rc;
	return add_empty(r, u, u->empty_pooled, 1, r->pooled);
}

/* ------------------------------------------------------------- a batch */

/* Accuracy and margin over the pairs with a preference. */
struct tally {
	int64_t n, right;
	double margin;
};

static void
count_pair(struct tally *y, const double score[2], const double label[2])
{
	double gap = label[0] > label[1] ? score[0] - score[1] :
	    score[1] - score[0];

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
		count_pair(y, score, p[i].label);
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
		count_pair(y, score, p[i].label);
	}
	return lpo_lrm_batch_loss(r->ctx, loss, r->dv, r->dt, ds, r->v, r->t,
	    n, d, s, r->y0, r->y1, r->w, r->o.criterion, r->o.batch_coeff);
}

static struct micro *
micro_at(lpo_lrm_trainer *r, int64_t first, int64_t n)
{
	return n - first >= r->full.groups ? &r->full : &r->rest;
}

static int
run_batch(lpo_lrm_trainer *r, const struct lpo_lrm_pair *p, int64_t n,
    double s, double *loss, double *ds, struct tally *y)
{
	struct micro *u;
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

static int
get_ready(lpo_lrm_trainer *r)
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
	double s = lpo_lrm_logit_scale(r->m), loss = 0, ds = 0;
	struct tally y = { 0 };
	int rc;

	memset(out, 0, sizeof(*out));
	if (n != r->o.batch)
		return lpo_fail(r->ctx, LPO_EINVAL, "%lld pairs for a batch "
		    "of %lld", (long long)n, (long long)r->o.batch);
	prepare(r, p, n);
	if ((rc = get_ready(r)) < 0 || (rc = zero_grads(r)) < 0 ||
	    (r->empty != NULL && (rc = empty_forward(r)) < 0) ||
	    (rc = run_batch(r, p, n, s, &loss, &ds, &y)) < 0 ||
	    (r->empty != NULL && !r->o.freeze_text &&
	    (rc = empty_backward(r)) < 0) ||
	    (rc = put_scale_grad(r, ds)) < 0 ||
	    (rc = grad_norm(r, &out->grad_norm)) < 0)
		return rc;
	out->loss = loss;
	out->scale = exp(s);
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
	int64_t count;
	int i, n = lpo_lrm_sets(r->m, set), rc;
	const char *name;
	float *f;

	for (i = 0; i < n; i++) {
		if ((count = lpo_params_state_count(set[i].params)) == 0)
			continue;
		name = set[i].name[0] != '\0' ? set[i].name : "head";
		f = lpo_alloc(r->ctx, (size_t)count, sizeof(*f));
		if (f == NULL)
			return LPO_ENOMEM;
		if (save) {
			if ((rc = lpo_params_get_state(set[i].params,
			    f)) == 0)
				rc = lpo_snap_blob(snap, name, f,
				    (size_t)count * sizeof(*f));
		} else if ((rc = lpo_snap_read(snap, name, f,
		    (size_t)count * sizeof(*f))) == 0)
			rc = lpo_params_set_state(set[i].params, f);
		lpo_free(f);
		if (rc < 0)
			return rc;
	}
	return 0;
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
