/* A trainer's making: tapes that fit into memory, buffers, the plan. */
#include <string.h>

#include "lib/train/lrm_train_priv.h"

/* ------------------------------------------------------------------ tapes */

static int
micro_new(lpo_lrm_trainer *r, struct lpo_lrm_micro *u, int64_t groups)
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
	u->visual = lpo_lrm_record_image(u->tape, m, &u->image, LPO_LRM_ROWS,
	    r->o.h, r->o.w, context, pooled);
	lpo_output(u->tape, u->visual, 1);
	lpo_output(u->tape, u->text.feature, 1);
	return lpo_tape_plan(u->tape, 1, &u->plan);
}

static void
micro_free(struct lpo_lrm_micro *u)
{
	lpo_tape_free(u->tape);
	memset(u, 0, sizeof(*u));
}

/* The largest micro-batch that fits; full.groups 0: not even one pair does. */
static int
fit_micro(lpo_lrm_trainer *r, int64_t want, size_t room, size_t *need)
{
	int64_t g = want;
	int rc;

	for (;; g = lpo_fewer_groups(want, g)) {
		if ((rc = micro_new(r, &r->full, g)) < 0)
			return rc;
		*need = r->full.plan.arena_bytes;
		if (*need <= room)
			return 0;
		micro_free(&r->full);
		if (g == 1)
			return 0;
	}
}

/* The rule of lpo_policy_fit(). */
static int
choose_micro(lpo_lrm_trainer *r)
{
	int64_t want = r->o.micro_batch > 0 &&
	    r->o.micro_batch < r->o.batch ? r->o.micro_batch : r->o.batch;
	size_t room = r->o.memory_bytes > 0 ? r->o.memory_bytes : SIZE_MAX;
	int on = r->o.segments == LPO_SEGMENTS_ON, rc;
	size_t need;

	lpo_lrm_set_checkpoint(r->m, on);
	rc = fit_micro(r, want, room, &need);
	if (rc == 0 && r->full.groups == 0 &&
	    r->o.segments == LPO_SEGMENTS_AUTO) {
		lpo_lrm_set_checkpoint(r->m, on = 1);
		rc = fit_micro(r, want, room, &need);
	}
	r->plan.segments = on ? LPO_SEGMENTS_ON : LPO_SEGMENTS_OFF;
	if (rc < 0 || r->full.groups > 0)
		return rc;
	return lpo_fail(r->ctx, LPO_ENOMEM, "one pair needs %zu MiB for "
	    "activations and --memory leaves %zu MiB", need >> 20, room >> 20);
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
prepare(lpo_lrm *m, int freeze_text, int (*give)(lpo_params *))
{
	struct lpo_lrm_set set[4];
	int i, n, rc;

	if ((rc = lpo_lrm_load_unet(m)) < 0 ||
	    (rc = lpo_lrm_load_text(m)) < 0)
		return rc;
	n = lpo_lrm_sets(m, set);
	for (i = 0; i < n; i++)
		if (!(freeze_text && strncmp(set[i].name, "text", 4) == 0) &&
		    (rc = give(set[i].params)) < 0)
			return rc;
	return 0;
}

int
lpo_lrm_prepare(lpo_lrm *m, int freeze_text)
{
	return prepare(m, freeze_text, lpo_params_train_all);
}

/* Parameters that are trained, bytes of weights, and of what trains them. */
static void
sizes(lpo_lrm_trainer *r)
{
	struct lpo_lrm_set set[4];
	const lpo_param *p;
	int64_t k;
	int i, n = lpo_lrm_sets(r->m, set);

	for (i = 0; i < n; i++) {
		r->plan.state_bytes += (size_t)set[i].params->bytes;
		for (k = 0; k < set[i].params->n; k++) {
			p = set[i].params->p[k];
			r->plan.weight_bytes += (size_t)p->count *
			    lpo_dtype_bytes(p->dtype);
			if (p->grad != NULL)
				r->plan.parameters += p->count;
		}
	}
	r->plan.state_bytes -= r->plan.weight_bytes;
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

	bad |= !(r->v = array(r, b * LPO_LRM_ROWS * r->dim, sizeof(float)));
	bad |= !(r->dv = array(r, b * LPO_LRM_ROWS * r->dim, sizeof(float)));
	bad |= !(r->t = array(r, b * r->dim, sizeof(float)));
	bad |= !(r->dt = array(r, b * r->dim, sizeof(float)));
	bad |= !(r->latent = array(r, g * LPO_LRM_ROWS * r->count,
	    sizeof(float)));
	bad |= !(r->ts = array(r, g * LPO_LRM_ROWS, sizeof(*r->ts)));
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

	r->plan.recompute_flops = times * f->recompute_flops +
	    e->recompute_flops;
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
	if ((rc = prepare(m, o->freeze_text, o->grads_only ?
	    lpo_params_want_grads : lpo_params_train_all)) < 0 ||
	    (rc = choose_micro(r)) < 0)
		goto out;
	sizes(r);
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

/* A few of the pairs are enough where the work is large. */
int
lpo_lrm_trainer_time(lpo_lrm_trainer *r, double *seconds)
{
	struct lpo_lrm_micro few = { .groups = 0 };
	int64_t g = r->full.groups;
	double s[2];
	int rc;

	for (;; g = (g + 1) / 2) {
		if ((rc = micro_new(r, &few, g)) < 0)
			goto out;
		if (g == 1 || few.plan.fwd_flops + few.plan.bwd_flops <=
		    LPO_TIMED_FLOPS)
			break;
		micro_free(&few);
	}
	if ((rc = lpo_tape_commit(few.tape, NULL)) == 0 &&
	    (rc = lpo_tape_time(few.tape, s)) == 0)
		*seconds = (double)r->o.batch / (double)g * (s[1] + s[0] *
		    (double)r->plan.passes);
out:
	micro_free(&few);
	return rc;
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
