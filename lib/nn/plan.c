/*
 * Planning: the order of the walk, how long each buffer lives, where it lies.
 *
 * A walk is a list of steps: every op forward; a point where the caller reads
 * outputs and sets their gradients; then the ops backward, a checkpointed
 * segment's forward ops again just before its backward ones.  A buffer lives
 * from the first to the last step that touches it; buffers that never live
 * at the same time may share bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/nn/tape_priv.h"

struct life {
	int64_t first, last;	/* steps; first > last: never */
};

struct lives {
	struct life fwd, bwd, grad;	/* as the offsets in lpo_var_priv */
};

struct item {
	size_t bytes;
	struct life life;
	int64_t *off;
	int64_t order;
};

static void
touch(struct life *l, int64_t step)
{
	if (step < l->first)
		l->first = step;
	if (step > l->last)
		l->last = step;
}

/* Which vars a gradient reaches, from the seeded outputs down. */
static void
reach(lpo_tape *t)
{
	lpo_op *op;
	int64_t i;
	int j;

	for (i = 0; i < t->nvars; i++)
		t->vars[i]->priv->has_grad = t->vars[i]->priv->seeded;
	for (i = t->nops - 1; i >= 0; i--) {
		op = t->ops[i];
		if (!op->out->needs_grad ||
		    !op->out->priv->base->priv->has_grad)
			continue;
		for (j = 0; j < LPO_OP_INPUTS; j++)
			if (op->in[j] != NULL && op->in[j]->needs_grad)
				op->in[j]->priv->base->priv->has_grad = 1;
	}
}

static int
runs_backward(const lpo_op *op)
{
	return op->out->needs_grad && op->out->priv->base->priv->has_grad;
}

/* Vars used outside the segment that makes them are kept, not recomputed. */
static void
crossings(lpo_tape *t)
{
	struct lpo_var_priv *p;
	int64_t i;
	int j;

	for (i = 0; i < t->nops; i++)
		for (j = 0; j < LPO_OP_INPUTS; j++) {
			if (t->ops[i]->in[j] == NULL)
				continue;
			p = t->ops[i]->in[j]->priv->base->priv;
			if (p->segment != t->ops[i]->segment)
				p->crosses = 1;
		}
	for (i = 0; i < t->nvars; i++)
		if (t->vars[i]->priv->is_output)
			t->vars[i]->priv->crosses = 1;
}

static int
add_step(lpo_tape *t, enum lpo_step_kind kind, int64_t op)
{
	t->steps[t->nsteps].kind = kind;
	t->steps[t->nsteps].op = op;
	t->nsteps++;
	return 0;
}

static int
order_steps(lpo_tape *t)
{
	int64_t i, j;
	int done = -1;	/* the segment replayed last; they come in order */

	t->steps = lpo_alloc(t->ctx, (size_t)(3 * t->nops + 1),
	    sizeof(*t->steps));
	if (t->steps == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < t->nops; i++)
		add_step(t, LPO_STEP_FWD, i);
	if (!t->backward)
		return 0;
	add_step(t, LPO_STEP_SEED, 0);
	for (i = t->nops - 1; i >= 0; i--) {
		if (!runs_backward(t->ops[i]))
			continue;
		if (t->ops[i]->segment >= 0 && t->ops[i]->segment != done) {
			done = t->ops[i]->segment;
			for (j = i; j > 0 && t->ops[j - 1]->segment == done;
			    j--)
				;
			for (; j < t->nops && t->ops[j]->segment == done; j++)
				add_step(t, LPO_STEP_REPLAY, j);
		}
		add_step(t, LPO_STEP_BWD, i);
	}
	return 0;
}

/* The life of v's data as a step of the backward half sees it. */
static struct life *
replayed(struct lives *lives, const lpo_var *v)
{
	const struct lpo_var_priv *p = v->priv->base->priv;
	struct lives *l = &lives[p->index];

	return p->segment >= 0 && !p->crosses ? &l->bwd : &l->fwd;
}

static void
touch_forward(const lpo_op *op, struct lives *lives, int64_t s, int replay)
{
	const lpo_var *v[LPO_OP_INPUTS + 2];
	int i;

	memcpy(v, op->in, sizeof(op->in));
	v[LPO_OP_INPUTS] = op->out;
	v[LPO_OP_INPUTS + 1] = op->aux;
	for (i = 0; i < LPO_OP_INPUTS + 2; i++)
		if (v[i] != NULL)
			touch(replay ? replayed(lives, v[i]) :
			    &lives[v[i]->priv->base->priv->index].fwd, s);
}

static void
touch_backward(const lpo_op *op, struct lives *lives, int64_t s)
{
	const lpo_var *v;
	int i;

	for (i = 0; i < LPO_OP_INPUTS; i++) {
		if ((v = op->in[i]) == NULL)
			continue;
		if (op->keep_in & 1u << i)
			touch(replayed(lives, v), s);
		if (v->needs_grad)
			touch(&lives[v->priv->base->priv->index].grad, s);
	}
	if (op->keep_out)
		touch(replayed(lives, op->out), s);
	if (op->aux != NULL)
		touch(replayed(lives, op->aux), s);
	touch(&lives[op->out->priv->base->priv->index].grad, s);
}

static void
lifetimes(lpo_tape *t, struct lives *lives)
{
	const struct lpo_var_priv *p;
	const struct lpo_step *s;
	int64_t i, last = t->nsteps - 1;

	for (i = 0; i < t->nvars; i++) {
		lives[i].fwd.first = lives[i].bwd.first = INT64_MAX;
		lives[i].grad.first = INT64_MAX;
		lives[i].fwd.last = lives[i].bwd.last = -1;
		lives[i].grad.last = -1;
	}
	for (i = 0; i < t->nsteps; i++) {
		s = &t->steps[i];
		if (s->kind == LPO_STEP_BWD)
			touch_backward(t->ops[s->op], lives, i);
		else if (s->kind != LPO_STEP_SEED)
			touch_forward(t->ops[s->op], lives, i,
			    s->kind == LPO_STEP_REPLAY);
	}
	for (i = 0; i < t->nvars; i++) {
		p = t->vars[i]->priv;
		if (p->op < 0 && p->base == t->vars[i])
			touch(&lives[i].fwd, 0);	/* set before */
		if (p->is_output)
			touch(&lives[i].fwd, last);
		if (p->seeded && t->backward)
			touch(&lives[i].grad, t->nops);
		if (p->want_grad && p->has_grad && t->backward)
			touch(&lives[i].grad, last);
	}
}

static int
by_size(const void *a, const void *b)
{
	const struct item *x = a, *y = b;

	if (x->bytes != y->bytes)
		return x->bytes < y->bytes ? 1 : -1;
	return x->order < y->order ? -1 : x->order > y->order;
}

/*
 * Largest first, each at the lowest place where nothing that lives at the
 * same time lies.  `placed` is kept in order of offsets.
 */
static void
place(struct item *items, int64_t n, struct item **placed, size_t *total)
{
	struct item *it;
	int64_t i, j;
	size_t off, end;

	qsort(items, (size_t)n, sizeof(*items), by_size);
	for (i = 0; i < n; i++) {
		it = &items[i];
		off = 0;
		for (j = 0; j < i; j++) {
			if (placed[j]->life.last < it->life.first ||
			    placed[j]->life.first > it->life.last)
				continue;
			if ((size_t)*placed[j]->off >= off + it->bytes)
				break;
			end = (size_t)*placed[j]->off + placed[j]->bytes;
			if (end > off)
				off = end;
		}
		*it->off = (int64_t)off;
		if (off + it->bytes > *total)
			*total = off + it->bytes;
		for (j = i; j > 0 && *placed[j - 1]->off > *it->off; j--)
			placed[j] = placed[j - 1];
		placed[j] = it;
	}
}

static int64_t
add_item(struct item *items, int64_t n, const lpo_var *v, struct life l,
    int64_t *off)
{
	*off = LPO_NO_BUFFER;
	if (l.first > l.last)
		return n;
	items[n].bytes = lpo_align64((size_t)lpo_var_count(v) *
	    lpo_dtype_bytes(v->dtype));
	items[n].life = l;
	items[n].off = off;
	items[n].order = n;
	return n + 1;
}

/* Input j of the op is the only one that is v, or a view of it. */
static int
only_input(const lpo_op *op, const lpo_var *v)
{
	int j, n = 0;

	for (j = 0; j < LPO_OP_INPUTS; j++)
		n += op->in[j] != NULL && op->in[j]->priv->base == v;
	return n == 1;
}

/* The var in whose gradient's place v's gradient lies. */
static lpo_var *
grad_home(lpo_var *v)
{
	while (v->priv->grad_from != NULL)
		v = v->priv->grad_from;
	return v;
}

/*
 * A residual's gradient is its sum's: where the op is the last to read the
 * one and the first to reach the other, both are one buffer.
 */
static void
share_grads(lpo_tape *t, struct lives *lives)
{
	int64_t i;
	int j;

	for (i = 0; i < t->nsteps; i++) {
		const lpo_op *op = t->ops[t->steps[i].op];

		if (t->steps[i].kind != LPO_STEP_BWD)
			continue;
		for (j = 0; j < LPO_OP_INPUTS; j++) {
			lpo_var *v = op->in[j], *home;
			struct life *l;

			if (!(op->hands_on & 1u << j) || v == NULL ||
			    !v->needs_grad)
				continue;
			v = v->priv->base;
			home = grad_home(op->out->priv->base);
			l = &lives[home->priv->index].grad;
			if (v->priv->seeded || !only_input(op, v) ||
			    lives[v->priv->index].grad.first != i ||
			    l->last != i || v->dtype != home->dtype)
				continue;
			v->priv->grad_from = home;
			l->last = lives[v->priv->index].grad.last;
		}
	}
}

static int
place_all(lpo_tape *t, struct lives *lives)
{
	struct item *items, **placed;
	struct lpo_var_priv *p;
	int64_t i, n = 0;
	int rc = LPO_ENOMEM;

	items = lpo_alloc(t->ctx, (size_t)(3 * t->nvars + 1), sizeof(*items));
	placed = lpo_alloc(t->ctx, (size_t)(3 * t->nvars + 1),
	    sizeof(*placed));
	if (items == NULL || placed == NULL)
		goto out;
	for (i = 0; i < t->nvars; i++) {
		p = t->vars[i]->priv;
		if (p->base != t->vars[i] || p->constant_host != NULL)
			continue;
		n = add_item(items, n, t->vars[i], lives[i].fwd, &p->fwd_off);
		n = add_item(items, n, t->vars[i], lives[i].bwd, &p->bwd_off);
		if (p->grad_from == NULL)
			n = add_item(items, n, t->vars[i], lives[i].grad,
			    &p->grad_off);
	}
	place(items, n, placed, &t->arena_bytes);
	for (i = 0; i < t->nvars; i++) {
		p = t->vars[i]->priv;
		if (p->grad_from != NULL)
			p->grad_off = grad_home(t->vars[i])->priv->grad_off;
		if (p->base == t->vars[i] && lives[i].bwd.last < 0)
			p->bwd_off = p->fwd_off;
	}
	rc = 0;
out:
	lpo_free(items);
	lpo_free(placed);
	return rc;
}

/*
 * Which gradients a step is the first to reach: it sets them, or, where two
 * of its inputs are the same var, zeros them and adds twice.
 */
static int
first_grads(lpo_tape *t, const struct lives *lives)
{
	struct lpo_step *s;
	int64_t i, k;
	int j;

	t->zero = lpo_alloc(t->ctx, (size_t)t->nvars + 1, sizeof(*t->zero));
	if (t->zero == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < t->nsteps; i++) {
		s = &t->steps[i];
		s->zero_first = t->nzero;
		for (j = 0; s->kind == LPO_STEP_BWD && j < LPO_OP_INPUTS;
		    j++) {
			lpo_var *v = t->ops[s->op]->in[j];

			if (v == NULL || !v->needs_grad)
				continue;
			v = v->priv->base;
			if (v->priv->seeded ||
			    lives[v->priv->index].grad.first != i)
				continue;
			if (only_input(t->ops[s->op], v)) {
				t->ops[s->op]->first |= 1u << j;
				continue;
			}
			for (k = s->zero_first; k < t->nzero; k++)
				if (t->zero[k] == v)
					break;
			if (k == t->nzero)
				t->zero[t->nzero++] = v;
		}
		s->zero_count = t->nzero - s->zero_first;
	}
	return 0;
}

static void
sums(lpo_tape *t, struct lpo_plan *plan)
{
	const lpo_op *op;
	size_t scratch = 0, need;
	int64_t i;

	memset(plan, 0, sizeof(*plan));
	for (i = 0; i < t->nsteps; i++) {
		if (t->steps[i].kind == LPO_STEP_SEED)
			continue;
		op = t->ops[t->steps[i].op];
		need = t->steps[i].kind == LPO_STEP_BWD ? op->bwd_scratch :
		    op->fwd_scratch;
		if (need > scratch)
			scratch = need;
		if (t->steps[i].kind == LPO_STEP_FWD)
			plan->fwd_flops += op->fwd_flops;
		else if (t->steps[i].kind == LPO_STEP_BWD)
			plan->bwd_flops += op->bwd_flops;
		else
			plan->recompute_flops += op->fwd_flops;
	}
	t->scratch_off = lpo_align64(t->arena_bytes);
	t->arena_bytes = t->scratch_off + lpo_align64(scratch) + 64;
	plan->arena_bytes = t->arena_bytes;
	for (i = 0; i < t->nvars; i++)
		if (t->vars[i]->priv->constant_host != NULL)
			plan->constant_bytes += lpo_align64(sizeof(int32_t) *
			    (size_t)lpo_var_count(t->vars[i]));
	plan->ops = t->nops;
}

int
lpo_tape_plan(lpo_tape *t, int backward, struct lpo_plan *plan)
{
	struct lives *lives = NULL;
	struct lpo_plan ignored;
	int rc;

	if (t->error != 0)
		return t->error;
	if (t->planned || t->nops == 0)
		return lpo_tape_fail(t, LPO_EINVAL, t->planned ?
		    "a tape is planned once" : "an empty tape");
	t->backward = backward;
	reach(t);
	crossings(t);
	lives = lpo_alloc(t->ctx, (size_t)t->nvars, sizeof(*lives));
	if (lives == NULL || order_steps(t) < 0) {
		rc = t->error = LPO_ENOMEM;
		goto out;
	}
	lifetimes(t, lives);
	share_grads(t, lives);
	if (place_all(t, lives) < 0 || first_grads(t, lives) < 0) {
		rc = t->error = LPO_ENOMEM;
		goto out;
	}
	sums(t, plan != NULL ? plan : &ignored);
	t->planned = 1;
	rc = 0;
out:
	lpo_free(lives);
	return rc;
}

/* -------------------------------------------------------------- memory */

int
lpo_tape_commit(lpo_tape *t, lpo_arena *arena)
{
	struct lpo_var_priv *p;
	int64_t i;
	size_t bytes;

	if (t->error != 0)
		return t->error;
	if (!t->planned)
		return lpo_tape_fail(t, LPO_EINVAL, "commit before plan");
	t->arena = arena != NULL ? arena : &t->own;
	if (t->arena->bytes < t->arena_bytes) {
		t->k->free(t->be, t->arena->mem);
		t->arena->bytes = 0;
		t->arena->last = NULL;
		t->arena->mem = t->k->alloc(t->be, t->arena_bytes);
		if (t->arena->mem == NULL)
			return lpo_tape_fail(t, LPO_ENOMEM,
			    "no %zu bytes of memory for activations",
			    t->arena_bytes);
		t->arena->bytes = t->arena_bytes;
	}
	for (i = 0; i < t->nvars; i++) {
		p = t->vars[i]->priv;
		if (p->constant_host == NULL || p->constant != NULL)
			continue;
		bytes = sizeof(int32_t) * (size_t)lpo_var_count(t->vars[i]);
		if ((p->constant = t->k->alloc(t->be, bytes)) == NULL ||
		    t->k->upload(t->be, p->constant, p->constant_host,
		    bytes) < 0)
			return lpo_tape_fail(t, LPO_ENOMEM,
			    "no %zu bytes of memory for an index table", bytes);
	}
	return 0;
}

void
lpo_arena_free(lpo_backend *be, lpo_arena *a)
{
	if (a == NULL || a->mem == NULL)
		return;
	be->k->free(be, a->mem);
	a->mem = NULL;
	a->bytes = 0;
}
