/* The tape: recording and walking.  Placement is in plan.c, ops in ops*.c. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/half.h"
#include "lib/nn/dry.h"
#include "lib/nn/tape_priv.h"

lpo_tape *
lpo_tape_new(lpo_ctx *c, lpo_backend *be, enum lpo_dtype dt, int64_t groups)
{
	lpo_tape *t = lpo_alloc(c, 1, sizeof(*t));

	if (t == NULL)
		return NULL;
	t->ctx = c;
	t->be = be;
	t->k = be->k;
	t->dtype = dt;
	t->groups = groups;
	t->segment = -1;
	if (groups < 1 || (dt != LPO_F32 && dt != LPO_BF16))
		lpo_tape_fail(t, LPO_EINVAL, "a tape of %lld groups in %s",
		    (long long)groups, lpo_dtype_name(dt));
	return t;
}

static void
free_graphs(lpo_tape *t)
{
	int i;

	for (i = 0; i < LPO_WALKS; i++) {
		if (t->graph[i] != NULL)
			t->k->graph_free(t->be, t->graph[i]);
		t->graph[i] = NULL;
		t->walked[i] = 0;
	}
}

void
lpo_tape_free(lpo_tape *t)
{
	int64_t i;

	if (t == NULL)
		return;
	for (i = 0; i < t->nvars; i++) {
		if (t->vars[i]->priv != NULL) {
			t->k->free(t->be, t->vars[i]->priv->constant);
			lpo_free(t->vars[i]->priv->constant_host);
		}
		lpo_free(t->vars[i]->priv);
		lpo_free(t->vars[i]);
	}
	for (i = 0; i < t->nops; i++)
		lpo_free(t->ops[i]);
	free_graphs(t);
	lpo_free(t->vars);
	lpo_free(t->ops);
	lpo_free(t->steps);
	lpo_free(t->zero);
	lpo_arena_free(t->be, &t->own);
	lpo_free(t);
}

enum lpo_dtype
lpo_tape_dtype(const lpo_tape *t)
{
	return t->dtype;
}

int64_t
lpo_tape_groups(const lpo_tape *t)
{
	return t->groups;
}

int
lpo_tape_error(const lpo_tape *t)
{
	return t->error;
}

int
lpo_tape_fail(lpo_tape *t, int code, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (t->error != 0)
		return t->error;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	t->error = code;
	return lpo_fail(t->ctx, code, "%s", text);
}

/* ------------------------------------------------------------- recording */

/* Make room for one more pointer in a growing list. */
static int
grow(lpo_tape *t, void *list, int64_t n, int64_t *cap)
{
	int64_t want = *cap ? 2 * *cap : 256;
	void *p, *old;

	if (n < *cap)
		return 0;
	memcpy(&old, list, sizeof(old));
	p = lpo_realloc(t->ctx, old, (size_t)want * sizeof(void *));
	if (p == NULL) {
		t->error = LPO_ENOMEM;
		return LPO_ENOMEM;
	}
	memcpy(list, &p, sizeof(p));
	*cap = want;
	return 0;
}

lpo_var *
lpo_tape_var(lpo_tape *t, int64_t n, int64_t h, int64_t w, int64_t c,
    enum lpo_dtype dt)
{
	lpo_var *v;
	int64_t count;

	if (t->error != 0)
		return NULL;
	if (n < 1 || h < 1 || w < 1 || c < 1 ||
	    __builtin_mul_overflow(n, h, &count) ||
	    __builtin_mul_overflow(count, w, &count) ||
	    __builtin_mul_overflow(count, c, &count) ||
	    count > INT64_MAX / 64) {
		lpo_tape_fail(t, LPO_EINVAL,
		    "impossible shape [%lld, %lld, %lld, %lld]", (long long)n,
		    (long long)h, (long long)w, (long long)c);
		return NULL;
	}
	if (grow(t, &t->vars, t->nvars, &t->vars_cap) < 0)
		return NULL;
	if ((v = lpo_alloc(t->ctx, 1, sizeof(*v))) == NULL) {
		t->error = LPO_ENOMEM;
		return NULL;
	}
	t->vars[t->nvars++] = v;
	if ((v->priv = lpo_alloc(t->ctx, 1, sizeof(*v->priv))) == NULL) {
		t->error = LPO_ENOMEM;
		return NULL;
	}
	v->n = n;
	v->h = h;
	v->w = w;
	v->c = c;
	v->dtype = dt;
	v->priv->index = t->nvars - 1;
	v->priv->base = v;
	v->priv->op = -1;
	v->priv->segment = -1;
	return v;
}

lpo_var *
lpo_tape_constant(lpo_tape *t, int64_t n)
{
	lpo_var *v = lpo_tape_var(t, n, 1, 1, 1, LPO_I32);

	if (v == NULL)
		return NULL;
	v->priv->constant_host = lpo_alloc(t->ctx, (size_t)n, sizeof(int32_t));
	if (v->priv->constant_host == NULL) {
		t->error = LPO_ENOMEM;
		return NULL;
	}
	return v;
}

lpo_op *
lpo_tape_op(lpo_tape *t, const struct lpo_op_class *cls, const char *label,
    lpo_var *a, lpo_var *b, lpo_var *c)
{
	lpo_op *op;

	if (t->error != 0)
		return NULL;
	if (a == NULL) {
		lpo_tape_fail(t, LPO_EINVAL, "op '%s' of '%s' has no input",
		    cls->name, label);
		return NULL;
	}
	if (t->planned) {
		lpo_tape_fail(t, LPO_EINVAL, "op '%s' after the plan",
		    cls->name);
		return NULL;
	}
	if (grow(t, &t->ops, t->nops, &t->ops_cap) < 0)
		return NULL;
	if ((op = lpo_alloc(t->ctx, 1, sizeof(*op))) == NULL) {
		t->error = LPO_ENOMEM;
		return NULL;
	}
	t->ops[t->nops++] = op;
	op->cls = cls;
	op->label = label != NULL ? label : "";
	op->in[0] = a;
	op->in[1] = b;
	op->in[2] = c;
	op->segment = t->segment;
	return op;
}

lpo_var *
lpo_tape_out(lpo_tape *t, lpo_op *op, int64_t n, int64_t h, int64_t w,
    int64_t c, enum lpo_dtype dt)
{
	lpo_var *v;
	int i;

	if (op == NULL || (v = lpo_tape_var(t, n, h, w, c, dt)) == NULL)
		return NULL;
	op->out = v;
	v->priv->op = t->nops - 1;
	v->priv->segment = op->segment;
	if (op->aux != NULL) {
		op->aux->priv->op = t->nops - 1;
		op->aux->priv->segment = op->segment;
	}
	v->needs_grad = op->weights;
	for (i = 0; i < LPO_OP_INPUTS; i++)
		if (op->in[i] != NULL && op->in[i]->needs_grad)
			v->needs_grad = 1;
	if (op->weights && n % t->groups != 0) {
		lpo_tape_fail(t, LPO_EINVAL, "'%s': %lld rows in %lld groups",
		    op->label, (long long)n, (long long)t->groups);
		return NULL;
	}
	if (op->cls->bwd == NULL)
		v->needs_grad = 0;
	return v;
}

lpo_var *
lpo_input(lpo_tape *t, int64_t n, int64_t h, int64_t w, int64_t c,
    enum lpo_dtype dt, int want_grad)
{
	lpo_var *v = lpo_tape_var(t, n, h, w, c, dt);

	if (v == NULL)
		return NULL;
	v->needs_grad = want_grad && dt != LPO_I32;
	v->priv->want_grad = v->needs_grad;
	return v;
}

void
lpo_output(lpo_tape *t, lpo_var *v, int want_grad)
{
	if (t->error != 0 || v == NULL)
		return;
	v->priv->base->priv->is_output = 1;
	if (want_grad && v->needs_grad)
		v->priv->base->priv->seeded = 1;
}

void
lpo_segment_begin(lpo_tape *t)
{
	if (t->error == 0 && t->segment >= 0)
		lpo_tape_fail(t, LPO_EINVAL, "a segment within a segment");
	t->segment = t->segments++;
}

void
lpo_segment_end(lpo_tape *t)
{
	t->segment = -1;
}

lpo_var *
lpo_reshape(lpo_tape *t, lpo_var *x, int64_t n, int64_t h, int64_t w,
    int64_t c)
{
	lpo_var *v;

	if (t->error != 0 || x == NULL)
		return NULL;
	if ((v = lpo_tape_var(t, n, h, w, c, x->dtype)) == NULL)
		return NULL;
	if (lpo_var_count(v) != lpo_var_count(x)) {
		lpo_tape_fail(t, LPO_EINVAL, "reshape of %lld elements to "
		    "[%lld, %lld, %lld, %lld]", (long long)lpo_var_count(x),
		    (long long)n, (long long)h, (long long)w, (long long)c);
		return NULL;
	}
	v->needs_grad = x->needs_grad;
	v->priv->base = x->priv->base;
	return v;
}

int64_t
lpo_var_count(const lpo_var *v)
{
	return v->n * v->h * v->w * v->c;
}

/* --------------------------------------------------------------- walking */

static void *
at(const lpo_tape *t, int64_t off)
{
	return off == LPO_NO_BUFFER ? NULL : (char *)t->arena->mem + off;
}

void *
lpo_data(const lpo_tape *t, const lpo_var *v)
{
	const struct lpo_var_priv *p = v->priv->base->priv;

	if (p->constant != NULL)
		return p->constant;
	return at(t, t->replay ? p->bwd_off : p->fwd_off);
}

void *
lpo_grad(const lpo_tape *t, const lpo_var *v)
{
	if (v == NULL)
		return NULL;
	return at(t, v->priv->base->priv->grad_off);
}

void *
lpo_scratch(const lpo_tape *t)
{
	return (char *)t->arena->mem + t->scratch_off;
}

int
lpo_pass_grad(lpo_tape *t, const lpo_op *op, int i)
{
	const lpo_var *x = op->in[i];
	int64_t count = lpo_var_count(op->out);

	if (!x->needs_grad || lpo_grad(t, x) == lpo_grad(t, op->out))
		return 0;
	if (lpo_op_adds(op) & 1 << i)
		return t->k->acc(t->be, x->dtype, lpo_grad(t, x),
		    lpo_grad(t, op->out), count);
	return t->k->copy(t->be, lpo_grad(t, x), lpo_grad(t, op->out),
	    (size_t)count * lpo_dtype_bytes(x->dtype));
}

static int
walk(lpo_tape *t, const struct lpo_step *s)
{
	const lpo_op *op = t->ops[s->op];
	int64_t i;
	int rc = 0;

	if (lpo_ctx_stopped(t->ctx))
		return lpo_fail(t->ctx, LPO_ESTOP, "stopped");
	for (i = 0; i < s->zero_count && rc == 0; i++) {
		lpo_var *v = t->zero[s->zero_first + i];

		rc = t->k->zero(t->be, lpo_grad(t, v), (size_t)lpo_var_count(v)
		    * lpo_dtype_bytes(v->dtype));
	}
	if (rc == 0)
		rc = s->kind == LPO_STEP_BWD ? op->cls->bwd(t, op) :
		    op->cls->fwd(t, op);
	if (rc < 0)
		return lpo_fail(t->ctx, rc, "op '%s' of '%s' failed (%s)%s%s",
		    op->cls->name, op->label,
		    s->kind == LPO_STEP_BWD ? "backward" : "forward",
		    t->k->error(t->be)[0] != '\0' ? ": " : "",
		    t->k->error(t->be));
	return 0;
}

static int
walk_half(lpo_tape *t, int backward)
{
	enum lpo_step_kind kind;
	int64_t i;
	int rc = 0;

	t->replay = backward;
	for (i = 0; i < t->nsteps && rc == 0; i++) {
		kind = t->steps[i].kind;
		if (backward ? kind == LPO_STEP_REPLAY ||
		    kind == LPO_STEP_BWD : kind == LPO_STEP_FWD)
			rc = walk(t, &t->steps[i]);
	}
	t->replay = 0;
	return rc;
}

/* The calls of one walk, recorded; *graph is NULL where that cannot be. */
static int
record(lpo_tape *t, int backward, void **graph)
{
	int rc = t->k->graph_begin(t->be), end;

	if (rc == LPO_ENODEV)
		return 0;
	if (rc == 0) {
		rc = walk_half(t, backward);
		end = t->k->graph_end(t->be, graph);
		rc = rc == 0 ? end : rc;
	}
	if (rc < 0 && *graph != NULL) {		/* the calls until it failed */
		t->k->graph_free(t->be, *graph);
		*graph = NULL;
	}
	return rc == 0 || t->error != 0 || lpo_errcode(t->ctx) != 0 ? rc :
	    lpo_fail(t->ctx, rc, "recording a walk failed: %s",
	    t->k->error(t->be));
}

/*
 * The first walk makes the calls one by one (libraries choose their
 * algorithms then), the second is recorded, later ones are that record.
 */
static int
walk_or_run(lpo_tape *t, int backward)
{
	int which = t->flags + (backward ? LPO_WALK_BACKWARD : 0), rc = 0;

	if (lpo_dry_is(t->be))
		return 0;
	t->arena->last = t;
	if (t->graph_mem != t->arena->mem)
		free_graphs(t);		/* the shared arena has grown */
	t->graph_mem = t->arena->mem;
	if (lpo_ctx_stopped(t->ctx))
		return lpo_fail(t->ctx, LPO_ESTOP, "stopped");
	if (t->graph[which] == NULL && t->walked[which] == 1 &&
	    t->k->graph_begin != NULL)
		rc = record(t, backward, &t->graph[which]);
	if (rc == 0 && t->graph[which] != NULL) {
		rc = t->k->graph_run(t->be, t->graph[which]);
		if (rc < 0)
			lpo_fail(t->ctx, rc, "a recorded walk failed: %s",
			    t->k->error(t->be));
	} else if (rc == 0) {
		rc = walk_half(t, backward);
	}
	if (rc == 0)
		t->walked[which] = 1;
	return rc;
}

int
lpo_tape_forward(lpo_tape *t, int flags)
{
	if (t->error != 0)
		return t->error;
	if (t->arena == NULL)
		return lpo_fail(t->ctx, LPO_EINVAL, "forward before commit");
	t->flags = flags & LPO_LORA_OFF;
	return walk_or_run(t, 0);
}

int
lpo_tape_backward(lpo_tape *t)
{
	if (t->error != 0)
		return t->error;
	if (!t->backward || t->arena == NULL)
		return lpo_fail(t->ctx, LPO_EINVAL,
		    "backward of a tape planned without it");
	return walk_or_run(t, 1);
}

enum { FEW = 1 << 15 };		/* not worth other threads */

static void
narrow(uint16_t *half, const float *host, int64_t n)
{
	int64_t i;

#pragma omp parallel for simd schedule(static) if (n > FEW)
	for (i = 0; i < n; i++)
		half[i] = lpo_f32_to_bf16(host[i]);
}

static void
widen(float *host, const uint16_t *half, int64_t n)
{
	int64_t i;

#pragma omp parallel for simd schedule(static) if (n > FEW)
	for (i = 0; i < n; i++)
		host[i] = lpo_bf16_to_f32(half[i]);
}

/* Host f32 to and from a buffer of the var's dtype. */
static int
transfer(lpo_tape *t, const lpo_var *v, void *dev, float *host, int in)
{
	int64_t count = lpo_var_count(v);
	size_t bytes = (size_t)count * lpo_dtype_bytes(v->dtype);
	uint16_t *half = NULL;
	int rc;

	if (t->error != 0)
		return t->error;
	if (dev == NULL)
		return lpo_fail(t->ctx, LPO_EINVAL,
		    "a value or gradient that the plan does not keep");
	if (in)
		t->arena->last = t;
	if (v->dtype != LPO_BF16) {
		rc = in ? t->k->upload(t->be, dev, host, bytes) :
		    t->k->download(t->be, host, dev, bytes);
		return rc < 0 ? lpo_fail(t->ctx, rc, "transfer failed") : 0;
	}
	/* not cleared: it is filled at once */
	if ((half = lpo_realloc(t->ctx, NULL, bytes)) == NULL)
		return LPO_ENOMEM;
	if (in) {
		narrow(half, host, count);
		rc = t->k->upload(t->be, dev, half, bytes);
	} else if ((rc = t->k->download(t->be, half, dev, bytes)) == 0) {
		widen(host, half, count);
	}
	lpo_free(half);
	return rc < 0 ? lpo_fail(t->ctx, rc, "transfer failed") : 0;
}

int
lpo_var_set(lpo_tape *t, lpo_var *v, const void *host)
{
	if (t->error != 0 || v == NULL)
		return t->error != 0 ? t->error : LPO_EINVAL;
	return transfer(t, v, lpo_data(t, v), (float *)(uintptr_t)host, 1);
}

int
lpo_var_get(lpo_tape *t, const lpo_var *v, float *host)
{
	if (t->error != 0 || v == NULL)
		return t->error != 0 ? t->error : LPO_EINVAL;
	return transfer(t, v, lpo_data(t, v), host, 0);
}

int
lpo_var_set_grad(lpo_tape *t, lpo_var *v, const float *host)
{
	if (t->error != 0 || v == NULL)
		return t->error != 0 ? t->error : LPO_EINVAL;
	return transfer(t, v, lpo_grad(t, v), (float *)(uintptr_t)host, 1);
}

int
lpo_var_get_grad(lpo_tape *t, const lpo_var *v, float *host)
{
	if (t->error != 0 || v == NULL)
		return t->error != 0 ? t->error : LPO_EINVAL;
	return transfer(t, v, lpo_grad(t, v), host, 0);
}

int
lpo_tape_undisturbed(const lpo_tape *t)
{
	return t->arena != NULL && t->arena->last == t;
}

/* -------------------------------------------------------------- landings */

struct lpo_landing {
	lpo_tape *t;
	const lpo_var *v;
	void *place;		/* the backend's */
	float *wide;		/* of a bf16 var */
	int started;
};

lpo_landing *
lpo_landing_new(lpo_tape *t, const lpo_var *v)
{
	lpo_landing *l;
	int64_t n;

	if (t->error != 0 || v == NULL ||
	    (l = lpo_alloc(t->ctx, 1, sizeof(*l))) == NULL)
		return NULL;
	n = lpo_var_count(v);
	l->t = t;
	l->v = v;
	l->place = t->k->landing_new(t->be, (size_t)n *
	    lpo_dtype_bytes(v->dtype));
	if (l->place == NULL)
		lpo_fail(t->ctx, LPO_ENOMEM, "no memory on the host for "
		    "%lld values of the device%s%s", (long long)n,
		    t->k->error(t->be)[0] != '\0' ? ": " : "",
		    t->k->error(t->be));
	if (l->place == NULL || (v->dtype == LPO_BF16 && (l->wide =
	    lpo_alloc(t->ctx, (size_t)n, sizeof(float))) == NULL)) {
		lpo_landing_free(l);
		return NULL;
	}
	return l;
}

void
lpo_landing_free(lpo_landing *l)
{
	if (l == NULL)
		return;
	if (l->place != NULL)
		l->t->k->landing_free(l->t->be, l->place);
	lpo_free(l->wide);
	lpo_free(l);
}

int
lpo_var_get_start(lpo_landing *l)
{
	lpo_tape *t = l->t;
	const void *dev;
	int rc;

	if (t->error != 0)
		return t->error;
	if ((dev = lpo_data(t, l->v)) == NULL)
		return lpo_fail(t->ctx, LPO_EINVAL,
		    "a value that the plan does not keep");
	l->started = 0;
	if ((rc = t->k->land(t->be, l->place, dev,
	    (size_t)lpo_var_count(l->v) * lpo_dtype_bytes(l->v->dtype))) < 0)
		return lpo_fail(t->ctx, rc, "transfer failed");
	l->started = 1;
	return 0;
}

int
lpo_var_get_finish(lpo_landing *l, const float **host)
{
	lpo_tape *t = l->t;
	const void *at;
	int rc;

	if (!l->started)
		return lpo_fail(t->ctx, LPO_EINVAL,
		    "a value that was not asked for");
	if ((rc = t->k->landed(t->be, l->place, &at)) < 0)
		return lpo_fail(t->ctx, rc, "transfer failed");
	*host = at;
	if (l->wide != NULL) {
		widen(l->wide, at, lpo_var_count(l->v));
		*host = l->wide;
	}
	return 0;
}
