/*
 * The AMX attention, of bf16 and of split f32, with its tile operations in
 * plain C: everything but the instructions themselves is tested on machines
 * without AMX.  (With AMX, tests/ops/attention.c runs the real ones.)
 */
#define LPO_AMX_EMULATE
#include "kernels/attention_amx.c"
#include "tests/ops/attention.h"

/* f32 where it is split. */
static enum lpo_dtype
type_of(const lpo_backend *be)
{
	return be->split ? LPO_F32 : LPO_BF16;
}

static const char *
name(const lpo_backend *be)
{
	return be->split ? "split" : "bf16";
}

static int
run_emulated(lpo_backend *be, const struct lpo_attn_shape *s, struct set *t)
{
	enum lpo_dtype dt = type_of(be);
	struct scratch w = scratch_new(be, lpo_attention_scratch_bytes_amx(be,
	    LPO_FWD, dt, s));
	int rc = lpo_attention_fwd_amx(be, dt, t->o.p, t->lse.p, t->q.p,
	    t->k.p, t->v.p, s, w.p);

	return scratch_done(&w) && rc == 0;
}

static void
check_case(lpo_backend *be, const struct shape_case *c)
{
	struct set t = set_new(be, &c->s, type_of(be)), b;
	struct truth w = truth_new(&c->s, &t, 0);
	int good, threads;
	double e, l;

	be->threads = 1;
	good = run_emulated(be, &c->s, &t);
	e = excess(&c->s, &t.o, 1, w.o, be->split ?
	    2 * split_score : 4e-3);
	l = excess(&c->s, &t.lse, 1, w.lse, be->split ?
	    split_score : 2e-5);
	ok(good && e <= 1 && l <= 1 && guard_whole(&t.o) &&
	    guard_whole(&t.lse), "emulated %s %s: errors %.2f %.2f of the "
	    "allowed", name(be), c->what, e, l);
	for (threads = 2; threads <= 4; threads++) {
		b = set_new(be, &c->s, type_of(be));
		be->threads = threads;
		good &= run_emulated(be, &c->s, &b) && same_results(&t, &b);
		set_free(&b);
	}
	ok(good, "emulated %s %s: 1 to 4 threads, same bits", name(be),
	    c->what);
	truth_free(&w);
	set_free(&t);
}

static void
check_rising(lpo_backend *be)
{
	struct set t = set_rising(be, type_of(be));
	struct truth w = truth_new(&rising.s, &t, 0);
	int good = run_emulated(be, &rising.s, &t);
	double e = excess(&rising.s, &t.o, 1, w.o, be->split ?
	    2 * split_score : 4e-3);
	double l = excess(&rising.s, &t.lse, 1, w.lse, be->split ?
	    split_score : 2e-5);

	ok(good && e <= 1 && l <= 1, "emulated %s %s: errors %.2f %.2f of the "
	    "allowed", name(be), rising.what, e, l);
	truth_free(&w);
	set_free(&t);
}

/* One row of keys at a time gives the bits of the whole. */
static void
check_rows(lpo_backend *be, const struct shape_case *c)
{
	struct lpo_attn_shape one = part_shape(&c->s);
	struct set a = set_new(be, &c->s, type_of(be));
	struct set b = set_new(be, &c->s, type_of(be)), v;
	int good = run_emulated(be, &c->s, &a);
	int64_t r;

	for (r = 0; r < c->s.nk; r++) {
		v = set_part(&b, &c->s, r);
		good &= run_emulated(be, &one, &v);
	}
	ok(good && same_results(&a, &b),
	    "emulated %s %s: row by row, same bits", name(be), c->what);
	set_free(&a);
	set_free(&b);
}

static const struct shape_case wide[] = {
	{ "VAE", { 1, 1, 144, 144, 1, 512, 512, 512, 0 } },
	{ "wide, odd", { 2, 2, 37, 41, 2, 161, 330, 322, 0 } }
};

static void
all(lpo_backend *be)
{
	int i;

	for (be->split = 0; be->split < 2; be->split++) {
		for (i = 0; i < 2; i++)
			check_case(be, &wide[i]);
		for (i = 0; i < CASES; i++)
			check_case(be, &cases[i]);
		check_rows(be, &cases[1]);
		check_rows(be, &cases[2]);
		check_rising(be);
	}
}

int
main(void)
{
	return emulated(all);
}
