/* How long a walk takes, found by timing one op of each kind and shape. */
#include <math.h>
#include <string.h>

#include "lib/base/progress.h"
#include "lib/nn/dry.h"
#include "lib/nn/tape_priv.h"

#define ENOUGH_S	2e-3	/* an op is repeated for so long */
#define LONG_S		0.05	/* a first time so long is good enough */
#define HUGE_FLOPS	5e11	/* taken to be as fast as the others */
/*
 * Zeros, most of them one page in the first cache, are faster than weights:
 * SD1.5 in f32 on AVX2 took 1.02 (lpo-encode) and 1.1 (lpo-sample) times the
 * sum of its ops, in CPU time.
 */
#define ZEROS		1.1

/* All that an op's time depends on. */
struct kind {
	const struct lpo_op_class *cls;
	int backward, bias, trains, silu;
	unsigned first, wanted;		/* bits of gradients of inputs */
	int64_t rank, dim[LPO_OP_INPUTS + 1][4];
	enum lpo_act act;
	enum lpo_dtype dtype;
	struct lpo_conv_shape cs;
	struct lpo_attn_shape as;
};

struct timed {
	struct kind kind;
	double s;
};

static void
dims(int64_t out[4], const lpo_var *v)
{
	if (v == NULL)
		return;
	out[0] = v->n;
	out[1] = v->h;
	out[2] = v->w;
	out[3] = v->c;
}

static void
kind_of(struct kind *k, const lpo_op *op, int backward)
{
	const lpo_param *w = NULL, *b = NULL;
	const lpo_lora *l = NULL;
	int i;

	/* compared whole, padding too */
	memset(k, 0, sizeof(*k));
	k->cls = op->cls;
	k->backward = backward;
	k->silu = op->silu;
	k->act = op->act;
	k->dtype = op->out->dtype;
	memcpy(&k->cs, &op->cs, sizeof(k->cs));
	memcpy(&k->as, &op->as, sizeof(k->as));
	if (backward)
		k->first = op->first;
	for (i = 0; i < LPO_OP_INPUTS; i++) {
		dims(k->dim[i], op->in[i]);
		if (backward && op->in[i] != NULL && op->in[i]->needs_grad)
			k->wanted |= 1u << i;
	}
	dims(k->dim[LPO_OP_INPUTS], op->out);
	if (op->linear != NULL) {
		w = op->linear->w;
		b = op->linear->b;
		l = op->linear->lora;
	} else if (op->conv != NULL) {
		w = op->conv->w;
		b = op->conv->b;
		l = op->conv->lora;
	}
	k->bias = b != NULL;
	k->trains = w != NULL && w->grad != NULL;
	k->rank = l != NULL ? l->rank : 0;
}

static int
run(lpo_tape *t, const lpo_op *op, int backward)
{
	int rc = backward ? op->cls->bwd(t, op) : op->cls->fwd(t, op);

	if (rc == 0 && lpo_ctx_stopped(t->ctx))
		return lpo_fail(t->ctx, LPO_ESTOP, "stopped");
	return rc == 0 ? 0 : lpo_fail(t->ctx, rc, "op '%s' of '%s' failed",
	    op->cls->name, op->label);
}

static int
time_op(lpo_tape *t, const lpo_op *op, int backward, double *s)
{
	double start = lpo_now_s(), now;
	int rc, n = 0;

	if ((rc = run(t, op, backward)) < 0 ||
	    (*s = lpo_now_s() - start) > LONG_S)
		return rc;
	start = lpo_now_s();
	do {
		if ((rc = run(t, op, backward)) < 0)
			return rc;
		now = lpo_now_s() - start;
		n++;
	} while (now < ENOUGH_S && n < 20);
	*s = now / n;
	return 0;
}

/* A plan is to be had soon: what is huge has no time of its own. */
static int
time_steps(lpo_tape *t, struct timed *table, double s[2])
{
	double flops, seen = 0, products = 0, huge[2] = { 0, 0 };
	const lpo_op *op;
	struct kind kind;
	int64_t i, j, n = 0;
	int back, late, rc;

	for (i = 0; i < t->nsteps; i++) {
		if (t->steps[i].kind == LPO_STEP_SEED)
			continue;
		op = t->ops[t->steps[i].op];
		late = t->steps[i].kind != LPO_STEP_FWD;
		back = t->steps[i].kind == LPO_STEP_BWD;
		flops = back ? op->bwd_flops : op->fwd_flops;
		if (flops > HUGE_FLOPS) {
			huge[late] += flops;
			continue;
		}
		kind_of(&kind, op, back);
		for (j = 0; j < n; j++)
			if (memcmp(&table[j].kind, &kind, sizeof(kind)) == 0)
				break;
		if (j == n) {
			t->replay = late;
			if ((rc = time_op(t, op, back, &table[n].s)) < 0)
				return rc;
			table[n++].kind = kind;
		}
		s[late] += ZEROS * table[j].s;
		if (flops > 0) {
			seen += flops;
			products += ZEROS * table[j].s;
		}
	}
	for (i = 0; i < 2; i++)
		if (huge[i] > 0)
			s[i] += huge[i] * products / seen;
	return 0;
}

int
lpo_tape_time(lpo_tape *t, double s[2])
{
	const struct lpo_kernels *real = lpo_dry_real(t->be), *was = t->k;
	struct timed *table;
	int rc;

	s[0] = s[1] = NAN;
	if (t->error != 0)
		return t->error;
	if (real == NULL)
		return 0;
	if (t->arena == NULL)
		return lpo_fail(t->ctx, LPO_EINVAL, "time before commit");
	table = lpo_alloc(t->ctx, (size_t)t->nsteps + 1, sizeof(*table));
	if (table == NULL)
		return LPO_ENOMEM;
	/* the pages are there, as they are in any walk but the first */
	memset(t->arena->mem, 0, t->arena_bytes);
	t->k = real;
	t->flags = 0;
	s[0] = s[1] = 0;
	rc = time_steps(t, table, s);
	t->replay = 0;
	t->k = was;
	lpo_free(table);
	return rc;
}
