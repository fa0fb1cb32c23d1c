/* Attention against f64, its gradients, and its bits. */
#include "tests/ops/attention.h"

static int
forward(lpo_backend *be, enum lpo_dtype dt, const struct lpo_attn_shape *s,
    struct set *t)
{
	struct scratch w = scratch_new(be->k->attention_scratch_bytes(be,
	    LPO_FWD, dt, s));
	int rc = be->k->attention_fwd(be, dt, t->o.p, t->lse.p, t->q.p,
	    t->k.p, t->v.p, s, w.p);

	return scratch_done(&w) && rc == 0;
}

static int
backward(lpo_backend *be, enum lpo_dtype dt, const struct lpo_attn_shape *s,
    struct set *t, int want)
{
	struct scratch w = scratch_new(be->k->attention_scratch_bytes(be,
	    LPO_BWD_DATA, dt, s));
	int rc = be->k->attention_bwd(be, dt, want & 1 ? t->dq.p : NULL,
	    want & 2 ? t->dk.p : NULL, want & 4 ? t->dv.p : NULL, t->g.p,
	    t->o.p, t->lse.p, t->q.p, t->k.p, t->v.p, s, w.p);

	return scratch_done(&w) && rc == 0;
}

/* Values: forward, and gradients added to what stood there. */
static void
check_values(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c)
{
	/* P and dS are f32 in all kernels but AMX; o enters delta as bf16 */
	double f = dt == LPO_F32 ? 4e-6 : be->isa == LPO_ISA_AMX ? 4e-3 :
	    1e-5, g = dt == LPO_F32 ? 2e-6 : 6e-3;
	struct set t = set_new(&c->s, dt);
	struct truth w = truth_new(&c->s, &t);
	const struct buf *all[] = { &t.o, &t.lse, &t.dq, &t.dk, &t.dv };
	int good = forward(be, dt, &c->s, &t), guards = 1, i;
	double e[5];

	good &= backward(be, dt, &c->s, &t, 7);
	e[0] = excess(&t.o, w.o, f);
	e[1] = excess(&t.lse, w.lse, dt == LPO_F32 ? 2e-6 : 2e-5);
	e[2] = excess(&t.dq, w.dq, g);
	e[3] = excess(&t.dk, w.dk, g);
	e[4] = excess(&t.dv, w.dv, g);
	for (i = 0; i < 5; i++) {
		guards &= guard_whole(all[i]);
		good &= e[i] <= 1;
	}
	ok(good && guards, "%s %s %s: errors %.2f %.2f %.2f %.2f %.2f of the "
	    "allowed", level, lpo_dtype_name(dt), c->what, e[0], e[1], e[2],
	    e[3], e[4]);
	truth_free(&w);
	set_free(&t);
}

/* The same bits for any number of threads, and for rows done one by one. */
static void
check_bits(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c)
{
	struct lpo_attn_shape s = c->s, one;
	struct set a = set_new(&s, dt), b;
	int64_t e = (int64_t)lpo_dtype_bytes(dt), r;
	int good, threads, was = be->threads;

	be->threads = 1;
	good = forward(be, dt, &s, &a) && backward(be, dt, &s, &a, 7);
	for (threads = 2; threads <= 9; threads += threads < 4 ? 1 : 5) {
		b = set_new(&s, dt);
		be->threads = threads;
		good &= forward(be, dt, &s, &b) && backward(be, dt, &s, &b, 7);
		good &= same(&a.o, &b.o) && same(&a.lse, &b.lse) &&
		    same(&a.dq, &b.dq) && same(&a.dk, &b.dk) &&
		    same(&a.dv, &b.dv);
		set_free(&b);
	}
	be->threads = was;
	ok(good, "%s %s %s: 1 to 9 threads, same bits", level,
	    lpo_dtype_name(dt), c->what);
	b = set_new(&s, dt);
	one = s;
	one.n = s.n / s.nk;
	one.nk = 1;
	for (r = 0, good = 1; r < s.nk; r++) {
		struct set v = b;

		v.q.p = (char *)b.q.p + r * one.n * s.lq * s.ldq * e;
		v.dq.p = (char *)b.dq.p + r * one.n * s.lq * s.ldq * e;
		v.k.p = (char *)b.k.p + r * s.lk * s.ldk * e;
		v.v.p = (char *)b.v.p + r * s.lk * s.ldk * e;
		v.dk.p = (char *)b.dk.p + r * s.lk * s.ldk * e;
		v.dv.p = (char *)b.dv.p + r * s.lk * s.ldk * e;
		v.o.p = (char *)b.o.p + r * one.n * s.lq * s.heads * s.d * e;
		v.g.p = (char *)b.g.p + r * one.n * s.lq * s.heads * s.d * e;
		v.lse.p = (float *)b.lse.p + r * one.n * s.lq * s.heads;
		good &= forward(be, dt, &one, &v) &&
		    backward(be, dt, &one, &v, 7);
	}
	good &= same(&a.o, &b.o) && same(&a.dq, &b.dq) &&
	    same(&a.dk, &b.dk) && same(&a.dv, &b.dv);
	ok(good, "%s %s %s: row by row, same bits", level, lpo_dtype_name(dt),
	    c->what);
	set_free(&a);
	set_free(&b);
}

/* Each gradient alone equals the one computed with all the others. */
static void
check_null(lpo_backend *be, const char *level)
{
	const struct lpo_attn_shape *s = &cases[5].s;
	struct set a = set_new(s, LPO_F32), b;
	int good, i;

	good = forward(be, LPO_F32, s, &a) && backward(be, LPO_F32, s, &a, 7);
	for (i = 0; i < 3; i++) {
		b = set_new(s, LPO_F32);
		good &= forward(be, LPO_F32, s, &b) &&
		    backward(be, LPO_F32, s, &b, 1 << i);
		good &= same(i == 0 ? &a.dq : i == 1 ? &a.dk : &a.dv,
		    i == 0 ? &b.dq : i == 1 ? &b.dk : &b.dv);
		set_free(&b);
	}
	ok(good, "%s: a NULL gradient is skipped, the others do not change",
	    level);
	set_free(&a);
}

/* NaN must come through, large scores must not. */
static void
check_extremes(lpo_backend *be, const char *level)
{
	const struct lpo_attn_shape s = { 1, 1, 20, 40, 1, 8, 8, 8, 0 };
	struct set t = set_new(&s, LPO_F32);
	int64_t i, nan = 0, bad = 0;

	((float *)t.q.p)[3 * 8 + 2] = NAN;
	forward(be, LPO_F32, &s, &t);
	for (i = 0; i < t.o.count; i++) {
		nan += i / 8 == 3 && isnan(((float *)t.o.p)[i]);
		bad += i / 8 != 3 && !isfinite(((float *)t.o.p)[i]);
	}
	ok(nan == 8 && bad == 0, "%s: NaN in a query stays in its row", level);
	for (i = 0; i < t.q.count; i++)
		((float *)t.q.p)[i] = 1e4f * (float)(i % 3 - 1);
	forward(be, LPO_F32, &s, &t);
	for (i = bad = 0; i < t.o.count; i++)
		bad += !(fabsf(((float *)t.o.p)[i]) <= 1);
	ok(bad == 0, "%s: scores of 1e4 give a convex sum", level);
	set_free(&t);
}

static void
test_level(lpo_backend *be, const char *level)
{
	int i;

	for (i = 0; i < CASES; i++) {
		check_values(be, level, LPO_F32, &cases[i]);
		check_values(be, level, LPO_BF16, &cases[i]);
		check_bits(be, level, LPO_F32, &cases[i]);
		if (i % 3 == 1)
			check_bits(be, level, LPO_BF16, &cases[i]);
	}
	check_null(be, level);
	check_extremes(be, level);
}

int
main(void)
{
	each_level(test_level);
	return done_testing();
}
