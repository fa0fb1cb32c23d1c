/* Ops without weights. */
#include "lib/nn/tape_priv.h"

static int
bad(lpo_tape *t, const char *op, const lpo_var *a, const lpo_var *b)
{
	if (t->error != 0 || a == NULL || b == NULL)
		return t->error;
	return lpo_tape_fail(t, LPO_EINVAL, "%s of [%lld, %lld, %lld, %lld] "
	    "%s and [%lld, %lld, %lld, %lld] %s", op, (long long)a->n,
	    (long long)a->h, (long long)a->w, (long long)a->c,
	    lpo_dtype_name(a->dtype), (long long)b->n, (long long)b->h,
	    (long long)b->w, (long long)b->c, lpo_dtype_name(b->dtype));
}

static void *
wanted_grad(const lpo_tape *t, const lpo_var *v)
{
	return v != NULL && v->needs_grad ? lpo_grad(t, v) : NULL;
}

static int64_t
tokens(const lpo_var *v)
{
	return v->n * v->h * v->w;
}

static lpo_var *
same_shape(lpo_tape *t, lpo_op *op, const lpo_var *x)
{
	return op == NULL ? NULL :
	    lpo_tape_out(t, op, x->n, x->h, x->w, x->c, x->dtype);
}

/* ------------------------------------------------------------ activation */

static int
act_fwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->act_fwd(t->be, op->out->dtype, op->act,
	    lpo_data(t, op->out), lpo_data(t, op->in[0]),
	    lpo_var_count(op->out));
}

static int
act_bwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->act_bwd(t->be, op->out->dtype, op->act,
	    lpo_grad(t, op->in[0]), lpo_grad(t, op->out),
	    lpo_data(t, op->in[0]), lpo_var_count(op->out),
	    lpo_op_adds(op) & 1);
}

static const struct lpo_op_class act_class = {
	"activation", act_fwd, act_bwd
};

lpo_var *
lpo_activation(lpo_tape *t, enum lpo_act act, lpo_var *x)
{
	lpo_op *op = lpo_tape_op(t, &act_class, "", x, NULL, NULL);

	if (op == NULL)
		return NULL;
	op->act = act;
	op->keep_in = 1;
	return same_shape(t, op, x);
}

static int
geglu_fwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->geglu_fwd(t->be, op->out->dtype, lpo_data(t, op->out),
	    lpo_data(t, op->in[0]), tokens(op->out), op->out->c);
}

static int
geglu_bwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->geglu_bwd(t->be, op->out->dtype, lpo_grad(t, op->in[0]),
	    lpo_grad(t, op->out), lpo_data(t, op->in[0]), tokens(op->out),
	    op->out->c, lpo_op_adds(op) & 1);
}

static const struct lpo_op_class geglu_class = {
	"geglu", geglu_fwd, geglu_bwd
};

lpo_var *
lpo_geglu(lpo_tape *t, lpo_var *x)
{
	lpo_op *op = lpo_tape_op(t, &geglu_class, "", x, NULL, NULL);

	if (op == NULL)
		return NULL;
	if (x->c % 2 != 0) {
		bad(t, "geglu", x, x);
		return NULL;
	}
	op->keep_in = 1;
	return lpo_tape_out(t, op, x->n, x->h, x->w, x->c / 2, x->dtype);
}

/* ------------------------------------------------------------------ sums */

static int
add_fwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->add(t->be, op->out->dtype, lpo_data(t, op->out),
	    lpo_data(t, op->in[0]), lpo_data(t, op->in[1]),
	    lpo_var_count(op->out));
}

static int
add_bwd(lpo_tape *t, const lpo_op *op)
{
	int i, rc = 0;

	for (i = 0; i < 2 && rc == 0; i++)
		rc = lpo_pass_grad(t, op, i);
	return rc;
}

static const struct lpo_op_class add_class = { "add", add_fwd, add_bwd };

lpo_var *
lpo_add(lpo_tape *t, lpo_var *a, lpo_var *b)
{
	lpo_op *op;

	if (a == NULL || b == NULL)
		return NULL;
	op = lpo_tape_op(t, &add_class, "", a, b, NULL);
	if (lpo_var_count(a) != lpo_var_count(b) || a->c != b->c ||
	    a->dtype != b->dtype) {
		bad(t, "sum", a, b);
		return NULL;
	}
	if (op != NULL)
		op->hands_on = 3;
	return same_shape(t, op, a);
}

static int
add_rows_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];

	return t->k->add_rows_fwd(t->be, x->dtype, lpo_data(t, op->out),
	    lpo_data(t, x), lpo_data(t, op->in[1]), x->n, x->h * x->w, x->c);
}

static int
add_rows_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0], *r = op->in[1];
	int rc = lpo_pass_grad(t, op, 0);

	if (rc == 0 && r->needs_grad)
		rc = t->k->add_rows_bwd(t->be, x->dtype, lpo_grad(t, r),
		    lpo_grad(t, op->out), x->n, x->h * x->w, x->c,
		    lpo_op_adds(op) & 2);
	return rc;
}

static const struct lpo_op_class add_rows_class = {
	"add_rows", add_rows_fwd, add_rows_bwd
};

lpo_var *
lpo_add_rows(lpo_tape *t, lpo_var *x, lpo_var *r)
{
	lpo_op *op;

	if (x == NULL || r == NULL)
		return NULL;
	op = lpo_tape_op(t, &add_rows_class, "", x, r, NULL);
	if (r->n != x->n || r->c != x->c || r->h * r->w != 1 ||
	    r->dtype != x->dtype) {
		bad(t, "row sum", x, r);
		return NULL;
	}
	if (op != NULL)
		op->hands_on = 1;
	return same_shape(t, op, x);
}

/* ------------------------------------------------------------- attention */

static int
attention_fwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->attention_fwd(t->be, op->out->dtype,
	    lpo_data(t, op->out), lpo_data(t, op->aux),
	    lpo_data(t, op->in[0]), lpo_data(t, op->in[1]),
	    lpo_data(t, op->in[2]), &op->as, lpo_scratch(t));
}

static int
attention_bwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->attention_bwd(t->be, op->out->dtype,
	    wanted_grad(t, op->in[0]), wanted_grad(t, op->in[1]),
	    wanted_grad(t, op->in[2]), lpo_grad(t, op->out),
	    lpo_data(t, op->out), lpo_data(t, op->aux),
	    lpo_data(t, op->in[0]), lpo_data(t, op->in[1]),
	    lpo_data(t, op->in[2]), &op->as, lpo_op_adds(op),
	    lpo_scratch(t));
}

static const struct lpo_op_class attention_class = {
	"attention", attention_fwd, attention_bwd
};

lpo_var *
lpo_attention(lpo_tape *t, lpo_var *q, lpo_var *k, lpo_var *v, int64_t heads,
    int causal)
{
	lpo_op *op;
	struct lpo_attn_shape *s;

	if (q == NULL || k == NULL || v == NULL)
		return NULL;
	op = lpo_tape_op(t, &attention_class, "", q, k, v);
	if (op == NULL)
		return NULL;
	if (heads < 1 || q->c % heads != 0 || k->c != q->c || v->c != q->c ||
	    q->n % k->n != 0 || v->n != k->n || v->h * v->w != k->h * k->w ||
	    k->dtype != q->dtype || v->dtype != q->dtype) {
		bad(t, "attention", q, k);
		return NULL;
	}
	s = &op->as;
	s->n = q->n;
	s->nk = k->n;
	s->lq = q->h * q->w;
	s->lk = k->h * k->w;
	s->heads = heads;
	s->d = q->c / heads;
	s->ldq = q->c;
	s->ldk = k->c;
	s->causal = causal;
	op->keep_in = 7;
	op->keep_out = 1;
	op->fwd_scratch = t->k->attention_scratch_bytes(t->be, LPO_FWD,
	    q->dtype, s);
	op->bwd_scratch = t->k->attention_scratch_bytes(t->be, LPO_BWD_DATA,
	    q->dtype, s);
	op->fwd_flops = 4.0 * (double)(s->n * s->lq) * (double)(s->lk * q->c);
	op->bwd_flops = 2.5 * op->fwd_flops;
	op->aux = lpo_tape_var(t, s->n, heads, s->lq, 1, LPO_F32);
	return same_shape(t, op, q);
}

/* ---------------------------------------------------------------- images */

static int
upsample_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0], *y = op->out;

	return t->k->upsample_fwd(t->be, x->dtype, lpo_data(t, y),
	    lpo_data(t, x), x->n, x->h, x->w, x->c, y->h, y->w);
}

static int
upsample_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0], *y = op->out;

	return t->k->upsample_bwd(t->be, x->dtype, lpo_grad(t, x),
	    lpo_grad(t, y), x->n, x->h, x->w, x->c, y->h, y->w,
	    lpo_op_adds(op) & 1);
}

static const struct lpo_op_class upsample_class = {
	"upsample", upsample_fwd, upsample_bwd
};

lpo_var *
lpo_upsample(lpo_tape *t, lpo_var *x, int64_t ho, int64_t wo)
{
	lpo_op *op = lpo_tape_op(t, &upsample_class, "", x, NULL, NULL);

	return op == NULL ? NULL :
	    lpo_tape_out(t, op, x->n, ho, wo, x->c, x->dtype);
}

static int
concat_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *a = op->in[0], *b = op->in[1];

	return t->k->concat_fwd(t->be, a->dtype, lpo_data(t, op->out),
	    lpo_data(t, a), lpo_data(t, b), tokens(a), a->c, b->c);
}

static int
concat_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *a = op->in[0], *b = op->in[1];

	return t->k->concat_bwd(t->be, a->dtype, wanted_grad(t, a),
	    wanted_grad(t, b), lpo_grad(t, op->out), tokens(a), a->c, b->c,
	    lpo_op_adds(op));
}

static const struct lpo_op_class concat_class = {
	"concat", concat_fwd, concat_bwd
};

lpo_var *
lpo_concat(lpo_tape *t, lpo_var *a, lpo_var *b)
{
	lpo_op *op;

	if (a == NULL || b == NULL)
		return NULL;
	op = lpo_tape_op(t, &concat_class, "", a, b, NULL);
	if (a->n != b->n || a->h != b->h || a->w != b->w ||
	    a->dtype != b->dtype) {
		bad(t, "concatenation", a, b);
		return NULL;
	}
	return op == NULL ? NULL :
	    lpo_tape_out(t, op, a->n, a->h, a->w, a->c + b->c, a->dtype);
}

static int
mean_pool_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];

	return t->k->mean_pool_fwd(t->be, x->dtype, lpo_data(t, op->out),
	    lpo_data(t, x), x->n, x->h * x->w, x->c);
}

static int
mean_pool_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0];

	return t->k->mean_pool_bwd(t->be, x->dtype, lpo_grad(t, x),
	    lpo_grad(t, op->out), x->n, x->h * x->w, x->c, lpo_op_adds(op) & 1);
}

static const struct lpo_op_class mean_pool_class = {
	"mean_pool", mean_pool_fwd, mean_pool_bwd
};

lpo_var *
lpo_mean_pool(lpo_tape *t, lpo_var *x)
{
	lpo_op *op = lpo_tape_op(t, &mean_pool_class, "", x, NULL, NULL);

	return op == NULL ? NULL :
	    lpo_tape_out(t, op, x->n, 1, 1, x->c, LPO_F32);
}

/* ------------------------------------------------------------------ rows */

static int
gather_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0], *y = op->out;

	return t->k->gather_rows_fwd(t->be, x->dtype, lpo_data(t, y),
	    lpo_data(t, x), lpo_data(t, op->in[1]), y->n, y->h * y->w * y->c,
	    x->n);
}

static int
gather_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0], *y = op->out;

	return t->k->gather_rows_bwd(t->be, x->dtype, lpo_grad(t, x),
	    lpo_grad(t, y), lpo_data(t, op->in[1]), y->n, y->h * y->w * y->c,
	    x->n, lpo_op_adds(op) & 1);
}

static const struct lpo_op_class gather_class = {
	"gather", gather_fwd, gather_bwd
};

lpo_var *
lpo_gather(lpo_tape *t, lpo_var *x, lpo_var *index)
{
	lpo_op *op;

	if (x == NULL || index == NULL)
		return NULL;
	op = lpo_tape_op(t, &gather_class, "", x, index, NULL);
	if (op == NULL)
		return NULL;
	if (index->dtype != LPO_I32 || x->n > INT32_MAX) {
		bad(t, "gather", x, index);
		return NULL;
	}
	op->keep_in = 2;
	return lpo_tape_out(t, op, lpo_var_count(index), x->h, x->w, x->c,
	    x->dtype);
}

/* Rows of x per group, or 0 with an error. */
static int64_t
run_of(lpo_tape *t, const char *what, const lpo_var *x)
{
	if (t->error != 0 || x == NULL)
		return 0;
	if (x->n % t->groups != 0) {
		lpo_tape_fail(t, LPO_EINVAL, "%s of %lld rows in %lld groups",
		    what, (long long)x->n, (long long)t->groups);
		return 0;
	}
	return x->n / t->groups;
}

lpo_var *
lpo_repeat(lpo_tape *t, lpo_var *x, int64_t times)
{
	int64_t r = run_of(t, "repeat", x), i, run;
	lpo_var *index;

	if (r == 0)
		return NULL;
	if ((index = lpo_tape_constant(t, x->n * times)) == NULL)
		return NULL;
	run = r * times;
	for (i = 0; i < index->n; i++)
		index->priv->constant_host[i] =
		    (int32_t)(i / run * r + i % run % r);
	return lpo_gather(t, x, index);
}

lpo_var *
lpo_slice_rows(lpo_tape *t, lpo_var *x, int64_t first, int64_t count)
{
	int64_t r = run_of(t, "slice", x), i;
	lpo_var *index;

	if (r == 0)
		return NULL;
	if (first < 0 || count < 1 || first + count > r) {
		lpo_tape_fail(t, LPO_EINVAL, "rows %lld+%lld of %lld",
		    (long long)first, (long long)count, (long long)r);
		return NULL;
	}
	if ((index = lpo_tape_constant(t, t->groups * count)) == NULL)
		return NULL;
	for (i = 0; i < index->n; i++)
		index->priv->constant_host[i] =
		    (int32_t)(i / count * r + first + i % count);
	return lpo_gather(t, x, index);
}

lpo_var *
lpo_join_rows(lpo_tape *t, lpo_var *a, lpo_var *b)
{
	int64_t ra = run_of(t, "join", a), rb = run_of(t, "join", b), row;
	lpo_var *y;

	if (ra == 0 || rb == 0)
		return NULL;
	row = a->h * a->w * a->c;
	if (row != b->h * b->w * b->c) {
		bad(t, "join", a, b);
		return NULL;
	}
	y = lpo_concat(t, lpo_reshape(t, a, t->groups, 1, 1, ra * row),
	    lpo_reshape(t, b, t->groups, 1, 1, rb * row));
	return lpo_reshape(t, y, a->n + b->n, a->h, a->w, a->c);
}

static int
guide_fwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *y = op->out;

	return t->k->guide_fwd(t->be, lpo_data(t, y), lpo_data(t, op->in[0]),
	    op->g, t->groups, y->n / t->groups, y->h * y->w * y->c);
}

static int
guide_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *y = op->out;

	return t->k->guide_bwd(t->be, lpo_grad(t, op->in[0]), lpo_grad(t, y),
	    op->g, t->groups, y->n / t->groups, y->h * y->w * y->c,
	    lpo_op_adds(op) & 1);
}

static const struct lpo_op_class guide_class = {
	"guide", guide_fwd, guide_bwd
};

lpo_var *
lpo_guide(lpo_tape *t, lpo_var *x, float g)
{
	int64_t r = run_of(t, "guidance", x);
	lpo_op *op;

	if (r == 0)
		return NULL;
	if (r % 2 != 0 || x->dtype != LPO_F32) {
		bad(t, "guidance", x, x);
		return NULL;
	}
	if ((op = lpo_tape_op(t, &guide_class, "", x, NULL, NULL)) == NULL)
		return NULL;
	op->g = g;
	return lpo_tape_out(t, op, x->n / 2, x->h, x->w, x->c, LPO_F32);
}

/* ------------------------------------------------------------------ cast */

static int
cast_fwd(lpo_tape *t, const lpo_op *op)
{
	return t->k->convert(t->be, lpo_data(t, op->out), op->out->dtype,
	    lpo_data(t, op->in[0]), op->in[0]->dtype, lpo_var_count(op->out));
}

static int
cast_bwd(lpo_tape *t, const lpo_op *op)
{
	const lpo_var *x = op->in[0], *y = op->out;

	return (lpo_op_adds(op) & 1 ? t->k->convert_acc : t->k->convert)(
	    t->be, lpo_grad(t, x), x->dtype, lpo_grad(t, y), y->dtype,
	    lpo_var_count(y));
}

static const struct lpo_op_class cast_class = { "cast", cast_fwd, cast_bwd };

lpo_var *
lpo_cast(lpo_tape *t, lpo_var *x, enum lpo_dtype dt)
{
	lpo_op *op;

	if (x == NULL || x->dtype == dt)
		return x;
	op = lpo_tape_op(t, &cast_class, "", x, NULL, NULL);
	return op == NULL ? NULL :
	    lpo_tape_out(t, op, x->n, x->h, x->w, x->c, dt);
}
