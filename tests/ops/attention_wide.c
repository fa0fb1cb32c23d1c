/* Attention of wide heads, forward: values, bits, guards. */
#include "tests/ops/attention.h"

static const struct shape_case wide[] = {
	{ "VAE", { 1, 1, 144, 144, 1, 512, 512, 512, 0 } },
	{ "just too wide", { 2, 2, 37, 41, 2, 161, 330, 322, 0 } },
	{ "shared keys", { 4, 2, 9, 77, 1, 200, 200, 201, 0 } },
	{ "causal", { 1, 1, 150, 140, 1, 164, 164, 164, 1 } }
};

static int
forward(lpo_backend *be, enum lpo_dtype dt, const struct lpo_attn_shape *s,
    struct set *t, int with_lse)
{
	struct scratch w = scratch_new(be->k->attention_scratch_bytes(be,
	    LPO_FWD, dt, s));
	int rc = be->k->attention_fwd(be, dt, t->o.p,
	    with_lse ? t->lse.p : NULL, t->q.p, t->k.p, t->v.p, s, w.p);

	return scratch_done(&w) && rc == 0;
}

static void
check(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c)
{
	struct set t = set_new(&c->s, dt), one = set_new(&c->s, dt);
	struct truth w = truth_new(&c->s, &t);
	int threads = be->threads;
	int good = forward(be, dt, &c->s, &t, 1);
	double e = excess(&t.o, w.o, dt == LPO_F32 ? 4e-6 : 6e-3);
	double l = excess(&t.lse, w.lse, dt == LPO_F32 ? 4e-6 : 2e-5);

	ok(good && e <= 1 && l <= 1 && guard_whole(&t.o) &&
	    guard_whole(&t.lse), "%s %s %s: errors %.2f %.2f of the allowed",
	    level, lpo_dtype_name(dt), c->what, e, l);
	be->threads = 1;
	good = forward(be, dt, &c->s, &one, 0);
	be->threads = threads;
	ok(good && same(&t.o, &one.o), "%s %s %s: one thread has the same "
	    "bits", level, lpo_dtype_name(dt), c->what);
	truth_free(&w);
	set_free(&t);
	set_free(&one);
}

/* A plan may ask for backward's scratch; the pass itself refuses. */
static void
check_backward(lpo_backend *be, const char *level)
{
	const struct lpo_attn_shape *s = &wide[0].s;
	struct set t = set_new(s, LPO_F32);
	struct scratch w = scratch_new(be->k->attention_scratch_bytes(be,
	    LPO_BWD_DATA, LPO_F32, s));

	ok(be->k->attention_bwd(be, LPO_F32, t.dq.p, t.dk.p, t.dv.p, t.g.p,
	    t.o.p, t.lse.p, t.q.p, t.k.p, t.v.p, s, w.p) == LPO_EINVAL,
	    "%s: no backward pass of wide heads", level);
	scratch_done(&w);
	set_free(&t);
}

static void
test_level(lpo_backend *be, const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(wide) / sizeof(wide[0]); i++) {
		check(be, name, LPO_F32, &wide[i]);
		check(be, name, LPO_BF16, &wide[i]);
	}
	check_backward(be, name);
}

int
main(void)
{
	each_level(test_level);
	return done_testing();
}
