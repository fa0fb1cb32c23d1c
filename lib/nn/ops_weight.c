/* Ops with weights: linear and convolution (LoRA inside), norms, embedding. */
#include "lib/nn/tape_priv.h"

static int
trains(const lpo_param *p)
{
	return p != NULL && p->grad != NULL;
}

static int
lora_trains(const lpo_lora *l)
{
	return l != NULL && (trains(l->a) || trains(l->b));
}

static float *
grad_of(const lpo_param *p)
{
	return p != NULL ? p->grad : NULL;
}

static const float *
vector(const lpo_param *p)
{
	return p != NULL ? p->w : NULL;
}

static size_t
max_size(size_t a, size_t b)
{
	return a > b ? a : b;
}

static int
lora_on(const lpo_tape *t, const lpo_lora *l)
{
	return l != NULL && !(t->flags & LPO_LORA_OFF);
}

static int64_t
tokens(const lpo_var *v)
{
	return v->n * v->h * v->w;
}

/* What is added to the layer's output in the same pass, or NULL. */
static const void *
residual(const lpo_tape *t, const lpo_op *op)
{
	return op->in[1] != NULL ? lpo_data(t, op->in[1]) : NULL;
}

/* ---------------------------------------------------------------- linear */

/* y = x W^T + b + residual + s (x A^T) B^T;  aux = x A^T */
static int
linear_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_linear_layer *l = op->linear;
	const lpo_var *x = op->in[0], *y = op->out;
	int64_t m = tokens(x);
	void *s = lpo_scratch(t);
	int rc;

	if (lora_on(t, l->lora) && t->k->lora_fwd != NULL)
		return t->k->lora_fwd(t->be, x->dtype, lpo_data(t, y),
		    lpo_data(t, op->aux), lpo_data(t, x), l->w->w,
		    vector(l->b), residual(t, op), l->lora->a->w,
		    l->lora->b->w, m, y->c, x->c, l->lora->rank,
		    l->lora->scale, s);
	rc = t->k->linear_fwd(t->be, x->dtype, lpo_data(t, y), lpo_data(t, x),
	    l->w->w, vector(l->b), residual(t, op), m, y->c, x->c, 1, s);
	if (rc < 0 || !lora_on(t, l->lora))
		return rc;
	rc = t->k->linear_fwd(t->be, x->dtype, lpo_data(t, op->aux),
	    lpo_data(t, x), l->lora->a->w, NULL, NULL, m, l->lora->rank,
	    x->c, 1, s);
	if (rc < 0)
		return rc;
	return t->k->linear_fwd(t->be, x->dtype, lpo_data(t, y),
	    lpo_data(t, op->aux), l->lora->b->w, NULL, lpo_data(t, y), m,
	    y->c, l->lora->rank, l->lora->scale, s);
}

/*
 * da = s dy B lies at the start of the scratch; dB += s dy^T a, dA += da^T x,
 * dx += da A.
 */
static int
linear_lora_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_lora *l = op->linear->lora;
	const lpo_var *x = op->in[0], *y = op->out;
	enum lpo_dtype dt = x->dtype;
	int64_t m = tokens(x), r = l->rank;
	size_t bytes = (size_t)(m * r) * lpo_dtype_bytes(dt);
	void *da = lpo_scratch(t), *dy = lpo_grad(t, y);
	void *s = (char *)da + lpo_align64(bytes);
	int rc;

	if (t->k->lora_bwd != NULL)
		return t->k->lora_bwd(t->be, dt, x->needs_grad ?
		    lpo_grad(t, x) : NULL, l->a->grad, l->b->grad, dy,
		    lpo_data(t, x), lpo_data(t, op->aux), l->a->w, l->b->w, m,
		    y->c, x->c, r, l->scale, t->groups, da);
	if ((rc = t->k->linear_bwd_data(t->be, dt, da, dy, l->b->w, m, y->c,
	    r, l->scale, 0, s)) < 0)
		return rc;
	if (trains(l->b) && (rc = t->k->linear_bwd_weight(t->be, dt,
	    l->b->grad, NULL, dy, lpo_data(t, op->aux), m, y->c, r, l->scale,
	    t->groups, s)) < 0)
		return rc;
	if (trains(l->a) && (rc = t->k->linear_bwd_weight(t->be, dt,
	    l->a->grad, NULL, da, lpo_data(t, x), m, r, x->c, 1, t->groups,
	    s)) < 0)
		return rc;
	if (x->needs_grad)
		return t->k->linear_bwd_data(t->be, dt, lpo_grad(t, x), da,
		    l->a->w, m, r, x->c, 1, 1, s);
	return 0;
}

static int
linear_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_linear_layer *l = op->linear;
	const lpo_var *x = op->in[0], *y = op->out;
	int64_t m = tokens(x);
	int rc = 0;

	if (x->needs_grad)
		rc = t->k->linear_bwd_data(t->be, x->dtype, lpo_grad(t, x),
		    lpo_grad(t, y), l->w->w, m, y->c, x->c, 1,
		    lpo_op_adds(op) & 1, lpo_scratch(t));
	if (rc == 0 && op->in[1] != NULL)
		rc = lpo_pass_grad(t, op, 1);
	if (rc == 0 && (trains(l->w) || trains(l->b)))
		rc = t->k->linear_bwd_weight(t->be, x->dtype, grad_of(l->w),
		    grad_of(l->b), lpo_grad(t, y), lpo_data(t, x), m, y->c,
		    x->c, 1, t->groups, lpo_scratch(t));
	if (rc == 0 && lora_on(t, l->lora))
		rc = linear_lora_bwd(t, op);
	return rc;
}

static const struct lpo_op_class linear_class = {
	"linear", linear_fwd, linear_bwd
};

static size_t
linear_need(lpo_tape *t, enum lpo_pass pass, enum lpo_dtype dt, int64_t m,
    int64_t n, int64_t k)
{
	return t->k->linear_scratch_bytes(t->be, pass, dt, m, n, k, t->groups);
}

/* Sizes, FLOPs and what backward reads; m tokens, n outputs, k inputs. */
static void
linear_costs(lpo_tape *t, lpo_op *op, int64_t m, int64_t n, int64_t k)
{
	const lpo_linear_layer *l = op->linear;
	enum lpo_dtype dt = op->in[0]->dtype;
	int64_t r = l->lora != NULL ? l->lora->rank : 0;
	double one = 2.0 * (double)m * (double)n * (double)k;
	double low = 2.0 * (double)m * (double)(n + k) * (double)r;
	size_t inner;

	op->weights = trains(l->w) || trains(l->b) || lora_trains(l->lora);
	if (trains(l->w) || lora_trains(l->lora))
		op->keep_in = 1;
	op->fwd_flops = one + low;
	op->bwd_flops = (op->in[0]->needs_grad ? one : 0) +
	    (trains(l->w) ? one : 0) + 2 * low;
	op->fwd_scratch = linear_need(t, LPO_FWD, dt, m, n, k);
	inner = max_size(linear_need(t, LPO_BWD_DATA, dt, m, n, k),
	    linear_need(t, LPO_BWD_WEIGHT, dt, m, n, k));
	op->bwd_scratch = inner;
	if (r == 0)
		return;
	op->fwd_scratch = max_size(op->fwd_scratch,
	    max_size(linear_need(t, LPO_FWD, dt, m, r, k),
	    linear_need(t, LPO_FWD, dt, m, n, r)));
	inner = max_size(inner, max_size(
	    linear_need(t, LPO_BWD_DATA, dt, m, n, r),
	    linear_need(t, LPO_BWD_WEIGHT, dt, m, n, r)));
	inner = max_size(inner, max_size(
	    linear_need(t, LPO_BWD_DATA, dt, m, r, k),
	    linear_need(t, LPO_BWD_WEIGHT, dt, m, r, k)));
	op->bwd_scratch = inner + lpo_align64((size_t)(m * r) *
	    lpo_dtype_bytes(dt));
}

/* The residual, if any, is of the output's shape [n, h, w, c] and dtype. */
static int
check_residual(lpo_tape *t, const lpo_op *op, int64_t n, int64_t h,
    int64_t w, int64_t c)
{
	const lpo_var *r = op->in[1];

	if (r == NULL || (r->n == n && r->h * r->w == h * w && r->c == c &&
	    r->dtype == op->in[0]->dtype))
		return 0;
	return lpo_tape_fail(t, LPO_EINVAL, "'%s': [%lld, %lld, %lld, %lld] "
	    "%s added to [%lld, %lld, %lld, %lld] %s", op->label,
	    (long long)r->n, (long long)r->h, (long long)r->w,
	    (long long)r->c, lpo_dtype_name(r->dtype), (long long)n,
	    (long long)h, (long long)w, (long long)c,
	    lpo_dtype_name(op->in[0]->dtype));
}

static lpo_var *
linear(lpo_tape *t, const lpo_linear_layer *l, lpo_var *x, lpo_var *r)
{
	lpo_op *op = lpo_tape_op(t, &linear_class, l->name, x, r, NULL);

	if (op == NULL)
		return NULL;
	if (x->c != l->w->shape[1] || x->dtype != l->w->dtype) {
		lpo_tape_fail(t, LPO_EINVAL, "'%s' takes %lld channels of %s, "
		    "not %lld of %s", l->name, (long long)l->w->shape[1],
		    lpo_dtype_name(l->w->dtype), (long long)x->c,
		    lpo_dtype_name(x->dtype));
		return NULL;
	}
	if (check_residual(t, op, x->n, x->h, x->w, l->w->shape[0]) < 0)
		return NULL;
	op->hands_on = r != NULL ? 2 : 0;
	op->linear = l;
	linear_costs(t, op, tokens(x), l->w->shape[0], x->c);
	if (l->lora != NULL)
		op->aux = lpo_tape_var(t, x->n, x->h, x->w, l->lora->rank,
		    x->dtype);
	return lpo_tape_out(t, op, x->n, x->h, x->w, l->w->shape[0], x->dtype);
}

lpo_var *
lpo_linear(lpo_tape *t, const lpo_linear_layer *l, lpo_var *x)
{
	return linear(t, l, x, NULL);
}

lpo_var *
lpo_linear_add(lpo_tape *t, const lpo_linear_layer *l, lpo_var *x, lpo_var *r)
{
	return r == NULL ? NULL : linear(t, l, x, r);
}

/* ----------------------------------------------------------- convolution */

/* The down projection of a convolution's LoRA: the same, to rank channels. */
static struct lpo_conv_shape
lora_shape(const lpo_op *op)
{
	struct lpo_conv_shape s = op->cs;

	s.co = op->conv->lora->rank;
	return s;
}

static int
conv_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_conv_layer *l = op->conv;
	const lpo_var *x = op->in[0], *y = op->out;
	struct lpo_conv_shape down;
	int rc;

	rc = t->k->conv_fwd(t->be, x->dtype, lpo_data(t, y), lpo_data(t, x),
	    l->w->w, vector(l->b), residual(t, op), &op->cs, lpo_scratch(t));
	if (rc < 0 || !lora_on(t, l->lora))
		return rc;
	down = lora_shape(op);
	rc = t->k->conv_fwd(t->be, x->dtype, lpo_data(t, op->aux),
	    lpo_data(t, x), l->lora->a->w, NULL, NULL, &down, lpo_scratch(t));
	if (rc < 0)
		return rc;
	return t->k->linear_fwd(t->be, x->dtype, lpo_data(t, y),
	    lpo_data(t, op->aux), l->lora->b->w, NULL, lpo_data(t, y),
	    tokens(y), y->c, l->lora->rank, l->lora->scale, lpo_scratch(t));
}

static int
conv_lora_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_lora *l = op->conv->lora;
	const lpo_var *x = op->in[0], *y = op->out;
	enum lpo_dtype dt = x->dtype;
	struct lpo_conv_shape down = lora_shape(op);
	int64_t m = tokens(y), r = l->rank;
	size_t bytes = (size_t)(m * r) * lpo_dtype_bytes(dt);
	void *da = lpo_scratch(t), *dy = lpo_grad(t, y);
	void *s = (char *)da + lpo_align64(bytes);
	int rc;

	if ((rc = t->k->linear_bwd_data(t->be, dt, da, dy, l->b->w, m, y->c,
	    r, l->scale, 0, s)) < 0)
		return rc;
	if (trains(l->b) && (rc = t->k->linear_bwd_weight(t->be, dt,
	    l->b->grad, NULL, dy, lpo_data(t, op->aux), m, y->c, r, l->scale,
	    t->groups, s)) < 0)
		return rc;
	if (trains(l->a) && (rc = t->k->conv_bwd_weight(t->be, dt, l->a->grad,
	    NULL, da, lpo_data(t, x), &down, t->groups, s)) < 0)
		return rc;
	if (x->needs_grad)
		return t->k->conv_bwd_data(t->be, dt, lpo_grad(t, x), da,
		    l->a->w, &down, 1, s);
	return 0;
}

static int
conv_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_conv_layer *l = op->conv;
	const lpo_var *x = op->in[0], *y = op->out;
	int rc = 0;

	if (x->needs_grad)
		rc = t->k->conv_bwd_data(t->be, x->dtype, lpo_grad(t, x),
		    lpo_grad(t, y), l->w->w, &op->cs, lpo_op_adds(op) & 1,
		    lpo_scratch(t));
	if (rc == 0 && op->in[1] != NULL)
		rc = lpo_pass_grad(t, op, 1);
	if (rc == 0 && (trains(l->w) || trains(l->b)))
		rc = t->k->conv_bwd_weight(t->be, x->dtype, grad_of(l->w),
		    grad_of(l->b), lpo_grad(t, y), lpo_data(t, x), &op->cs,
		    t->groups, lpo_scratch(t));
	if (rc == 0 && lora_on(t, l->lora))
		rc = conv_lora_bwd(t, op);
	return rc;
}

static const struct lpo_op_class conv_class = { "conv", conv_fwd, conv_bwd };

static void
conv_costs(lpo_tape *t, lpo_op *op)
{
	const lpo_conv_layer *l = op->conv;
	const struct lpo_conv_shape *c = &op->cs;
	enum lpo_dtype dt = op->in[0]->dtype;
	int64_t m = c->n * c->ho * c->wo, r;
	struct lpo_conv_shape down;
	double one = 2.0 * (double)m * (double)(c->co * c->kh * c->kw * c->ci);
	double low = 0;
	size_t inner;

	op->weights = trains(l->w) || trains(l->b) || lora_trains(l->lora);
	if (trains(l->w) || lora_trains(l->lora))
		op->keep_in = 1;
	op->fwd_scratch = t->k->conv_scratch_bytes(t->be, LPO_FWD, dt, c,
	    t->groups);
	inner = max_size(t->k->conv_scratch_bytes(t->be, LPO_BWD_DATA, dt, c,
	    t->groups), t->k->conv_scratch_bytes(t->be, LPO_BWD_WEIGHT, dt, c,
	    t->groups));
	op->bwd_scratch = inner;
	if (l->lora != NULL) {
		r = l->lora->rank;
		down = lora_shape(op);
		low = one * (double)r / (double)c->co +
		    2.0 * (double)m * (double)(r * c->co);
		op->fwd_scratch = max_size(op->fwd_scratch,
		    max_size(t->k->conv_scratch_bytes(t->be, LPO_FWD, dt,
		    &down, t->groups),
		    linear_need(t, LPO_FWD, dt, m, c->co, r)));
		inner = max_size(inner, max_size(
		    t->k->conv_scratch_bytes(t->be, LPO_BWD_DATA, dt, &down,
		    t->groups), t->k->conv_scratch_bytes(t->be,
		    LPO_BWD_WEIGHT, dt, &down, t->groups)));
		inner = max_size(inner, max_size(
		    linear_need(t, LPO_BWD_DATA, dt, m, c->co, r),
		    linear_need(t, LPO_BWD_WEIGHT, dt, m, c->co, r)));
		op->bwd_scratch = inner + lpo_align64((size_t)(m * r) *
		    lpo_dtype_bytes(dt));
	}
	op->fwd_flops = one + low;
	op->bwd_flops = (op->in[0]->needs_grad ? one : 0) +
	    (trains(l->w) ? one : 0) + 2 * low;
}

static lpo_var *
conv(lpo_tape *t, const lpo_conv_layer *l, lpo_var *x, lpo_var *r)
{
	lpo_op *op = lpo_tape_op(t, &conv_class, l->name, x, r, NULL);
	struct lpo_conv_shape *c;
	int64_t pads;

	if (op == NULL)
		return NULL;
	if (x->c != l->w->shape[1] || x->dtype != l->w->dtype) {
		lpo_tape_fail(t, LPO_EINVAL, "'%s' takes %lld channels of %s, "
		    "not %lld of %s", l->name, (long long)l->w->shape[1],
		    lpo_dtype_name(l->w->dtype), (long long)x->c,
		    lpo_dtype_name(x->dtype));
		return NULL;
	}
	op->conv = l;
	c = &op->cs;
	c->n = x->n;
	c->h = x->h;
	c->w = x->w;
	c->ci = x->c;
	c->co = l->w->shape[0];
	c->kh = l->w->shape[2];
	c->kw = l->w->shape[3];
	c->stride = l->stride;
	c->pad_top = c->pad_left = l->asymmetric ? 0 : l->pad;
	pads = l->asymmetric ? 1 : 2 * l->pad;
	c->ho = (x->h + pads - c->kh) / c->stride + 1;
	c->wo = (x->w + pads - c->kw) / c->stride + 1;
	if (x->h + pads < c->kh || x->w + pads < c->kw) {
		lpo_tape_fail(t, LPO_EINVAL, "'%s': %lld x %lld is too small",
		    l->name, (long long)x->h, (long long)x->w);
		return NULL;
	}
	if (check_residual(t, op, x->n, c->ho, c->wo, c->co) < 0)
		return NULL;
	op->hands_on = r != NULL ? 2 : 0;
	conv_costs(t, op);
	if (l->lora != NULL)
		op->aux = lpo_tape_var(t, x->n, c->ho, c->wo, l->lora->rank,
		    x->dtype);
	return lpo_tape_out(t, op, x->n, c->ho, c->wo, c->co, x->dtype);
}

lpo_var *
lpo_conv(lpo_tape *t, const lpo_conv_layer *l, lpo_var *x)
{
	return conv(t, l, x, NULL);
}

lpo_var *
lpo_conv_add(lpo_tape *t, const lpo_conv_layer *l, lpo_var *x, lpo_var *r)
{
	return r == NULL ? NULL : conv(t, l, x, r);
}

/* ----------------------------------------------------------------- norms */

static int
group_norm_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];
	const lpo_norm_layer *l = op->norm;

	return t->k->group_norm_fwd(t->be, x->dtype, lpo_data(t, op->out),
	    lpo_data(t, op->aux), lpo_data(t, x), l->gamma->w, l->beta->w,
	    x->n, x->h * x->w, x->c, l->groups, l->eps, op->silu);
}

static int
group_norm_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];
	const lpo_norm_layer *l = op->norm;

	return t->k->group_norm_bwd(t->be, x->dtype,
	    x->needs_grad ? lpo_grad(t, x) : NULL, l->gamma->grad,
	    l->beta->grad, lpo_grad(t, op->out), lpo_data(t, x),
	    lpo_data(t, op->aux), l->gamma->w, l->beta->w, x->n, x->h * x->w,
	    x->c, l->groups, op->silu, t->groups, lpo_op_adds(op) & 1,
	    lpo_scratch(t));
}

static int
layer_norm_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];
	const lpo_norm_layer *l = op->norm;

	return t->k->layer_norm_fwd(t->be, x->dtype, lpo_data(t, op->out),
	    lpo_data(t, op->aux), lpo_data(t, x), l->gamma->w, l->beta->w,
	    tokens(x), x->c, l->eps);
}

static int
layer_norm_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];
	const lpo_norm_layer *l = op->norm;

	return t->k->layer_norm_bwd(t->be, x->dtype,
	    x->needs_grad ? lpo_grad(t, x) : NULL, l->gamma->grad,
	    l->beta->grad, lpo_grad(t, op->out), lpo_data(t, x),
	    lpo_data(t, op->aux), l->gamma->w, tokens(x), x->c, t->groups,
	    lpo_op_adds(op) & 1, lpo_scratch(t));
}

static const struct lpo_op_class group_norm_class = {
	"group_norm", group_norm_fwd, group_norm_bwd
};
static const struct lpo_op_class layer_norm_class = {
	"layer_norm", layer_norm_fwd, layer_norm_bwd
};

static lpo_var *
norm(lpo_tape *t, const struct lpo_op_class *cls, const lpo_norm_layer *l,
    lpo_var *x, int64_t stats_n, int64_t stats_rows, int silu)
{
	lpo_op *op = lpo_tape_op(t, cls, l->name, x, NULL, NULL);

	if (op == NULL)
		return NULL;
	if (x->c != l->gamma->shape[0] || (cls == &group_norm_class &&
	    (l->groups < 1 || x->c % l->groups != 0))) {
		lpo_tape_fail(t, LPO_EINVAL, "'%s' takes %lld channels, not "
		    "%lld", l->name, (long long)l->gamma->shape[0],
		    (long long)x->c);
		return NULL;
	}
	op->norm = l;
	op->silu = silu;
	op->keep_in = 1;
	op->weights = trains(l->gamma) || trains(l->beta);
	op->bwd_scratch = t->k->norm_scratch_bytes(t->be, stats_n, x->c,
	    t->groups);
	op->aux = lpo_tape_var(t, stats_n, stats_rows, 1, 2, LPO_F32);
	return lpo_tape_out(t, op, x->n, x->h, x->w, x->c, x->dtype);
}

lpo_var *
lpo_group_norm(lpo_tape *t, const lpo_norm_layer *l, lpo_var *x)
{
	return norm(t, &group_norm_class, l, x, x ? x->n : 0, l->groups, 0);
}

lpo_var *
lpo_norm_silu(lpo_tape *t, const lpo_norm_layer *l, lpo_var *x)
{
	return norm(t, &group_norm_class, l, x, x ? x->n : 0, l->groups, 1);
}

lpo_var *
lpo_layer_norm(lpo_tape *t, const lpo_norm_layer *l, lpo_var *x)
{
	return norm(t, &layer_norm_class, l, x, x ? tokens(x) : 0, 1, 0);
}

/* ------------------------------------------------------------- embedding */

static int
embed_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *y = op->out;

	return t->k->embed_fwd(t->be, y->dtype, lpo_data(t, y),
	    lpo_data(t, op->in[0]), op->table->w, vector(op->position), y->n,
	    y->h, y->c);
}

static int
embed_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *y = op->out;

	return t->k->embed_bwd(t->be, y->dtype, op->table->grad,
	    grad_of(op->position), lpo_grad(t, y), lpo_data(t, op->in[0]),
	    y->n, y->h, y->c);
}

static const struct lpo_op_class embed_class = {
	"embed", embed_fwd, embed_bwd
};

lpo_var *
lpo_embed(lpo_tape *t, lpo_param *table, lpo_param *position, lpo_var *ids)
{
	lpo_op *op = lpo_tape_op(t, &embed_class, table->key, ids, NULL, NULL);

	if (op == NULL)
		return NULL;
	if (ids->dtype != LPO_I32 || (position != NULL &&
	    ids->h > position->shape[0])) {
		lpo_tape_fail(t, LPO_EINVAL, "'%s' takes at most %lld ids",
		    table->key, (long long)(position != NULL ?
		    position->shape[0] : INT64_MAX));
		return NULL;
	}
	op->table = table;
	op->position = position;
	op->keep_in = 1;
	op->weights = trains(table) || trains(position);
	return lpo_tape_out(t, op, ids->n, ids->h, 1, table->shape[1],
	    t->dtype);
}

lpo_var *
lpo_embed_all(lpo_tape *t, lpo_param *table, int64_t n)
{
	int64_t rows = table->rank == 1 ? 1 : table->shape[0], i;
	lpo_var *index = lpo_tape_constant(t, n * rows);
	lpo_op *op;

	if (index == NULL)
		return NULL;
	for (i = 0; i < index->n; i++)
		index->priv->constant_host[i] = (int32_t)(i % rows);
	op = lpo_tape_op(t, &embed_class, table->key, index, NULL, NULL);
	if (op == NULL)
		return NULL;
	op->table = table;
	op->keep_in = 1;
	op->weights = trains(table);
	return lpo_tape_out(t, op, n, rows, 1, table->shape[table->rank - 1],
	    t->dtype);
}
