/* Attention of wide heads, forward: values, bits, guards. */
#include "tests/ops/attention.h"

static const struct shape_case wide[] = {
	{ "VAE", { 1, 1, 144, 144, 1, 512, 512, 512, 0 } },
	{ "just too wide", { 2, 2, 37, 41, 2, 161, 330, 322, 0 } },
	{ "shared keys", { 4, 2, 9, 77, 1, 200, 200, 201, 0 } },
	{ "causal", { 1, 1, 150, 140, 1, 164, 164, 164, 1 } }
};

/* The VAE's at 512 pixels' size is too long for f64: against the CPU. */
static const struct shape_case large[] = {
	{ "VAE", { 1, 1, 1024, 1024, 1, 512, 512, 512, 0 } },
	{ "VAE, odd", { 2, 2, 345, 345, 1, 512, 1536, 1536, 0 } }
};

static int
forward(lpo_backend *be, enum lpo_dtype dt, const struct lpo_attn_shape *s,
    struct set *t, int with_lse)
{
	struct scratch w = scratch_new(be, be->k->attention_scratch_bytes(be,
	    LPO_FWD, dt, s));
	int rc = be->k->attention_fwd(be, dt, t->o.p,
	    with_lse ? t->lse.p : NULL, t->q.p, t->k.p, t->v.p, s, w.p);

	return scratch_done(&w) && rc == 0;
}

static void
check(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c)
{
	struct set t = set_new(be, &c->s, dt), one = set_new(be, &c->s, dt);
	struct truth w = truth_new(&c->s, &t, 0);
	int threads = be->threads;
	int good = forward(be, dt, &c->s, &t, 1);
	double e = excess(&c->s, &t.o, 1, w.o, dt == LPO_F32 ? 4e-6 : 6e-3);
	double l = excess(&c->s, &t.lse, 1, w.lse, dt == LPO_F32 ? 4e-6 : 2e-5);

	ok(good && e <= 1 && l <= 1 && guard_whole(&t.o) &&
	    guard_whole(&t.lse), "%s %s %s: errors %.2f %.2f of the allowed",
	    level, lpo_dtype_name(dt), c->what, e, l);
	be->threads = 1;
	good = forward(be, dt, &c->s, &one, 0);
	be->threads = threads;
	ok(good && buf_same(&t.o, &one.o), "%s %s %s: %s the same bits",
	    level, lpo_dtype_name(dt), c->what, on_cuda(be) ? "again" :
	    "one thread has");
	truth_free(&w);
	set_free(&t);
	set_free(&one);
}

/* A plan may ask for backward's scratch; the pass itself refuses. */
static void
check_backward(lpo_backend *be, const char *level)
{
	const struct lpo_attn_shape *s = &wide[0].s;
	struct set t = set_new(be, s, LPO_F32);
	struct scratch w = scratch_new(be, be->k->attention_scratch_bytes(be,
	    LPO_BWD_DATA, LPO_F32, s));

	ok(be->k->attention_bwd(be, LPO_F32, t.dq.p, t.dk.p, t.dv.p, t.g.p,
	    t.o.p, t.lse.p, t.q.p, t.k.p, t.v.p, s, 7, w.p) == LPO_EINVAL,
	    "%s: no backward pass of wide heads", level);
	scratch_done(&w);
	set_free(&t);
}

static void
check_large(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c)
{
	struct set t = set_new(be, &c->s, dt), u;
	struct truth w;
	lpo_backend cpu;
	double e, l;
	int good;

	if (!ok(lpo_cpu_open(&cpu, LPO_ISA_AUTO, 0) == 0, "a CPU"))
		return;
	u = set_widen(&cpu, &t);
	good = forward(&cpu, LPO_F32, &c->s, &u, 1);
	w = truth_of(&u);
	good &= forward(be, dt, &c->s, &t, 1);
	/* the CPU errs in f32 as well */
	e = excess(&c->s, &t.o, 1, w.o, dt == LPO_F32 ? 8e-6 : 6e-3);
	l = excess(&c->s, &t.lse, 1, w.lse, dt == LPO_F32 ? 8e-6 : 2e-5);
	ok(good && e <= 1 && l <= 1, "%s %s %s against the CPU: errors %.2f "
	    "%.2f of the allowed", level, lpo_dtype_name(dt), c->what, e, l);
	truth_free(&w);
	set_free(&t);
	set_free(&u);
	lpo_cpu_close(&cpu);
}

static void
test_level(lpo_backend *be, const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(wide) / sizeof(wide[0]); i++) {
		check(be, name, LPO_F32, &wide[i]);
		check(be, name, LPO_BF16, &wide[i]);
	}
	for (i = 0; i < sizeof(large) / sizeof(large[0]) && on_cuda(be); i++) {
		check_large(be, name, LPO_F32, &large[i]);
		check_large(be, name, LPO_BF16, &large[i]);
	}
	check_backward(be, name);
}

int
main(void)
{
	each_level(test_level);
	return done_testing();
}
