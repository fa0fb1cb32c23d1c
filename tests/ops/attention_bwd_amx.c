/*
 * The AMX attention's backward pass with its tile operations in plain C, as
 * attention_amx.c does it for the forward pass.
 */
#define LPO_AMX_EMULATE
#include "kernels/attention_bwd_amx.c"
#include "tests/ops/attention.h"

/* o and lse from the portable forward pass, gradients from tiles. */
static int
run_emulated(lpo_backend *be, const struct lpo_attn_shape *s, struct set *t,
    int want, int add)
{
	struct scratch f = scratch_new(be, be->k->attention_scratch_bytes(be,
	    LPO_FWD, LPO_BF16, s));
	struct scratch w = scratch_new(be, lpo_attention_bwd_bytes_amx(be, s));
	int rc = be->k->attention_fwd(be, LPO_BF16, t->o.p, t->lse.p, t->q.p,
	    t->k.p, t->v.p, s, f.p);

	if (rc == 0)
		rc = lpo_attention_bwd_amx(be, LPO_BF16, want & 1 ? t->dq.p :
		    NULL, want & 2 ? t->dk.p : NULL, want & 4 ? t->dv.p :
		    NULL, t->g.p, t->o.p, t->lse.p, t->q.p, t->k.p, t->v.p,
		    s, add, w.p);
	return scratch_done(&f) && scratch_done(&w) && rc == 0;
}

static void
check_case(lpo_backend *be, const struct shape_case *c, int add)
{
	struct set t = set_new(be, &c->s, LPO_BF16), b;
	struct truth w = truth_new(&c->s, &t, add);
	int good, threads;
	double q, k, v;

	set_start(&c->s, &t, add);
	be->threads = 1;
	good = run_emulated(be, &c->s, &t, 7, add);
	q = excess(&c->s, &t.dq, c->s.ldq, w.dq, 6e-3);
	k = excess(&c->s, &t.dk, c->s.ldk, w.dk, 6e-3);
	v = excess(&c->s, &t.dv, c->s.ldk, w.dv, 6e-3);
	ok(good && q <= 1 && k <= 1 && v <= 1 && guard_whole(&t.dq) &&
	    guard_whole(&t.dk) && guard_whole(&t.dv), "emulated %s, add %d: "
	    "errors %.2f %.2f %.2f of the allowed", c->what, add, q, k, v);
	/* few threads make one pass, many two */
	for (threads = 2; threads <= 32; threads *= 2) {
		b = set_new(be, &c->s, LPO_BF16);
		set_start(&c->s, &b, add);
		be->threads = threads;
		good &= run_emulated(be, &c->s, &b, 7, add) &&
		    same_gradients(&t, &b);
		set_free(&b);
	}
	ok(good, "emulated %s: 1 to 32 threads, same bits", c->what);
	truth_free(&w);
	set_free(&t);
}

/* One row of keys at a time, and one gradient, gives the bits of the whole. */
static void
check_parts(lpo_backend *be, const struct shape_case *c)
{
	struct lpo_attn_shape one = part_shape(&c->s);
	struct set a = set_new(be, &c->s, LPO_BF16);
	struct set b = set_new(be, &c->s, LPO_BF16), v;
	int64_t r;
	int good, i;

	be->threads = 2;
	good = run_emulated(be, &c->s, &a, 7, 0);
	for (r = 0; r < c->s.nk; r++)
		for (i = 0; i < 3; i++) {
			v = set_part(&b, &c->s, r);
			good &= run_emulated(be, &one, &v, 1 << i, 0);
		}
	ok(good && same_gradients(&a, &b), "emulated %s: row by row, one "
	    "gradient at a time, same bits", c->what);
	set_free(&a);
	set_free(&b);
}

/* Several blocks of keys (of 512) and queries (of 256), none of them whole. */
static const struct shape_case more[] = {
	{ "two blocks of each", { 1, 1, 290, 530, 2, 24, 48, 51, 0 } },
	{ "three blocks of queries", { 2, 2, 530, 33, 1, 40, 40, 40, 0 } },
	{ "one text, two blocks", { 3, 1, 40, 520, 1, 12, 12, 12, 0 } },
	{ "causal, two blocks", { 1, 1, 550, 550, 1, 8, 8, 8, 1 } }
};

static void
all(lpo_backend *be)
{
	int i;

	for (i = 0; i < CASES; i++)
		check_case(be, &cases[i], i % 2 * 7);
	for (i = 0; i < 4; i++)
		check_case(be, &more[i], 1 << i & 7);
	check_parts(be, &cases[2]);
	check_parts(be, &cases[4]);
	check_parts(be, &more[2]);
}

int
main(void)
{
	return emulated(all);
}
