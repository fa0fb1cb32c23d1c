/*
 * Attention against f64, its gradients, and its bits; on CUDA also large ones
 * against the CPU.
 */
#include "tests/ops/attention.h"

static int
forward(lpo_backend *be, enum lpo_dtype dt, const struct lpo_attn_shape *s,
    struct set *t)
{
	struct scratch w = scratch_new(be, be->k->attention_scratch_bytes(be,
	    LPO_FWD, dt, s));
	int rc = be->k->attention_fwd(be, dt, t->o.p, t->lse.p, t->q.p,
	    t->k.p, t->v.p, s, w.p);

	return scratch_done(&w) && rc == 0;
}

static int
backward(lpo_backend *be, enum lpo_dtype dt, const struct lpo_attn_shape *s,
    struct set *t, int want, int add)
{
	struct scratch w = scratch_new(be, be->k->attention_scratch_bytes(be,
	    LPO_BWD_DATA, dt, s));
	int rc = be->k->attention_bwd(be, dt, want & 1 ? t->dq.p : NULL,
	    want & 2 ? t->dk.p : NULL, want & 4 ? t->dv.p : NULL, t->g.p,
	    t->o.p, t->lse.p, t->q.p, t->k.p, t->v.p, s, add, w.p);

	return scratch_done(&w) && rc == 0;
}

/*
 * What may be wrong in the values and in the gradients, of the largest.  P and
 * dS are f32 but on AMX and CUDA's tensor cores, which round them to bf16; o
 * enters delta as bf16.  Roundings alone, done in f64, take up to half of it.
 * Where f32 is split, P errs as the scores do, and its gradients, which are
 * f32, begin with an lse that does.
 */
static void
allowed(const lpo_backend *be, enum lpo_dtype dt, double *f, double *g)
{
	if (dt == LPO_F32 && be->split) {
		*f = *g = 2 * split_score;
		return;
	}
	*f = dt == LPO_F32 ? 4e-6 : be->isa == LPO_ISA_AMX || on_cuda(be) ?
	    4e-3 : 1e-5;
	*g = dt == LPO_F32 ? 2e-6 : 6e-3;
}

static double
lse_allowed(const lpo_backend *be, enum lpo_dtype dt)
{
	return dt == LPO_BF16 ? 2e-5 : be->split ? split_score : 2e-6;
}

/* Forward, and gradients set or added to what stood there. */
static void
check_values(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c, int add)
{
	struct set t = set_new(be, &c->s, dt);
	struct truth w = truth_new(&c->s, &t, add);
	const struct buf *all[] = { &t.o, &t.lse, &t.dq, &t.dk, &t.dv };
	int good, guards = 1, i;
	double e[5], f, g;

	allowed(be, dt, &f, &g);
	/* one key's gradients are 0: of what cancels, of which 0.01 counts */
	if (dt == LPO_F32 && be->split && c->s.lk == 1)
		g = 100 * split_score;
	buf_poison(&t.o);
	buf_poison(&t.lse);
	set_start(&c->s, &t, add);
	good = forward(be, dt, &c->s, &t);
	good &= backward(be, dt, &c->s, &t, 7, add);
	e[0] = excess(&c->s, &t.o, 1, w.o, f);
	e[1] = excess(&c->s, &t.lse, 1, w.lse, lse_allowed(be, dt));
	e[2] = excess(&c->s, &t.dq, c->s.ldq, w.dq, g);
	e[3] = excess(&c->s, &t.dk, c->s.ldk, w.dk, g);
	e[4] = excess(&c->s, &t.dv, c->s.ldk, w.dv, g);
	for (i = 0; i < 5; i++) {
		guards &= guard_whole(all[i]);
		good &= e[i] <= 1;
	}
	ok(good && guards, "%s %s %s, add %d: errors %.2f %.2f %.2f %.2f %.2f "
	    "of the allowed", level, lpo_dtype_name(dt), c->what, add, e[0],
	    e[1], e[2], e[3], e[4]);
	truth_free(&w);
	set_free(&t);
}

/* The same bits for any number of threads, and for rows done one by one. */
static void
check_bits(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape_case *c)
{
	struct lpo_attn_shape s = c->s, one = part_shape(&s);
	struct set a = set_new(be, &s, dt), b, v;
	int64_t r;
	int good, threads, was = be->threads;

	be->threads = 1;
	good = forward(be, dt, &s, &a);
	good &= backward(be, dt, &s, &a, 7, 7);
	for (threads = 2; threads <= 9; threads += threads < 4 ? 1 : 5) {
		if (on_cuda(be) && threads > 2)
			break;
		b = set_new(be, &s, dt);
		be->threads = threads;
		good &= forward(be, dt, &s, &b);
		good &= backward(be, dt, &s, &b, 7, 7);
		good &= same_results(&a, &b) && same_gradients(&a, &b);
		set_free(&b);
	}
	be->threads = was;
	ok(good, "%s %s %s: %s, same bits", level, lpo_dtype_name(dt),
	    c->what, on_cuda(be) ? "twice" : "1 to 9 threads");
	if (on_cuda(be))
		goto out;
	b = set_new(be, &s, dt);
	for (r = 0, good = 1; r < s.nk; r++) {
		v = set_part(&b, &s, r);
		good &= forward(be, dt, &one, &v) &&
		    backward(be, dt, &one, &v, 7, 7);
	}
	good &= same_results(&a, &b) && same_gradients(&a, &b);
	ok(good, "%s %s %s: row by row, same bits", level, lpo_dtype_name(dt),
	    c->what);
	set_free(&b);
out:
	set_free(&a);
}

/* Each gradient alone equals the one computed with all the others. */
static void
check_null(lpo_backend *be, const char *level)
{
	const struct lpo_attn_shape *s = &cases[5].s;
	struct set a = set_new(be, s, LPO_F32), b;
	int good, i;

	good = forward(be, LPO_F32, s, &a);
	good &= backward(be, LPO_F32, s, &a, 7, 7);
	for (i = 0; i < 3; i++) {
		b = set_new(be, s, LPO_F32);
		good &= forward(be, LPO_F32, s, &b) &&
		    backward(be, LPO_F32, s, &b, 1 << i, 7);
		good &= buf_same(i == 0 ? &a.dq : i == 1 ? &a.dk : &a.dv,
		    i == 0 ? &b.dq : i == 1 ? &b.dk : &b.dv);
		set_free(&b);
	}
	ok(good, "%s: a NULL gradient is skipped, the others do not change",
	    level);
	set_free(&a);
}

/* NaN must come through, large scores must not. */
static void
check_extremes(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	const struct lpo_attn_shape s = { 1, 1, 20, 40, 1, 8, 8, 8, 0 };
	struct set t = set_new(be, &s, dt);
	int64_t i, nan = 0, bad = 0;

	put(&t.q, 3 * 8 + 2, NAN);
	forward(be, dt, &s, &t);
	for (i = 0; i < t.o.count; i++) {
		nan += i / 8 == 3 && isnan(get(&t.o, i));
		bad += i / 8 != 3 && !isfinite(get(&t.o, i));
	}
	ok(nan == 8 && bad == 0, "%s %s: NaN in a query stays in its row",
	    level, lpo_dtype_name(dt));
	for (i = 0; i < t.q.count; i++)
		put(&t.q, i, 1e4f * (float)(i % 3 - 1));
	forward(be, dt, &s, &t);
	for (i = bad = 0; i < t.o.count; i++)
		bad += !(fabs(get(&t.o, i)) <= 1);
	ok(bad == 0, "%s %s: scores of 1e4 give a convex sum", level,
	    lpo_dtype_name(dt));
	set_free(&t);
}

/* Also a NaN there stays in its row. */
static void
check_rising(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	const struct lpo_attn_shape *s = &rising.s;
	struct set t = set_rising(be, dt), u = set_rising(be, dt);
	struct truth w = truth_new(s, &t, 0);
	double e, l, f, g;
	int64_t i, bad = 0;
	int good;

	allowed(be, dt, &f, &g);
	good = forward(be, dt, s, &t);
	e = excess(s, &t.o, 1, w.o, f);
	l = excess(s, &t.lse, 1, w.lse, lse_allowed(be, dt));
	ok(good && e <= 1 && l <= 1, "%s %s %s: errors %.2f %.2f of the "
	    "allowed", level, lpo_dtype_name(dt), rising.what, e, l);
	put(&u.q, 5 * 8 + 1, NAN);
	good = forward(be, dt, s, &u);
	for (i = 0; i < u.o.count; i++)
		bad += i / 8 == 5 ? !isnan(get(&u.o, i)) :
		    get(&u.o, i) != get(&t.o, i);
	ok(good && bad == 0, "%s %s %s: NaN in a query stays in its row",
	    level, lpo_dtype_name(dt), rising.what);
	truth_free(&w);
	set_free(&t);
	set_free(&u);
}

/* SD1.5's and SDXL's with q, k, v in one buffer, and odd ones as long. */
static const struct shape_case large[] = {
	{ "4096 d 40", { 2, 2, 4096, 4096, 8, 40, 960, 960, 0 } },
	{ "1024 d 80", { 2, 2, 1024, 1024, 8, 80, 1920, 1920, 0 } },
	{ "256 d 160", { 2, 2, 256, 256, 8, 160, 3840, 3840, 0 } },
	{ "64 d 160", { 6, 6, 64, 64, 8, 160, 3840, 3840, 0 } },
	{ "4096 d 40 to text", { 2, 2, 4096, 77, 8, 40, 320, 640, 0 } },
	{ "1024 d 80 to text", { 4, 2, 1024, 77, 8, 80, 640, 1280, 0 } },
	{ "256 d 160 to text", { 2, 2, 256, 77, 8, 160, 1280, 2560, 0 } },
	{ "one text for six", { 6, 1, 1024, 77, 8, 80, 640, 1280, 0 } },
	{ "1024 d 64", { 2, 2, 1024, 1024, 10, 64, 1920, 1920, 0 } },
	{ "CLIP", { 3, 3, 77, 77, 12, 64, 2304, 2304, 1 } },
	{ "odd 40", { 2, 2, 1037, 933, 3, 40, 121, 120, 0 } },
	{ "odd 48", { 2, 2, 333, 1025, 2, 48, 104, 96, 0 } },
	{ "odd 24 to text", { 6, 2, 333, 61, 3, 24, 80, 88, 0 } },
	{ "odd 72 to text", { 2, 2, 301, 80, 3, 72, 216, 224, 0 } },
	{ "odd 72, causal", { 1, 1, 515, 515, 4, 72, 288, 288, 1 } }
};

/* An f32 sum in order errs with the root of its terms. */
static double
growth(int64_t terms)
{
	return terms > 1024 ? sqrt((double)terms / 1024) : 1;
}

/*
 * The last head of the rows that share the first k and v.  Gradients may err
 * twice as much as those of all heads, whose largest is larger.
 */
static void
check_head(const char *level, const struct shape_case *c, const struct set *t,
    double f, double g)
{
	const struct lpo_attn_shape *s = &c->s;
	int64_t rows = s->n / s->nk, hd = s->heads * s->d;
	int64_t h = s->heads - 1, at = h * s->d;
	struct truth w = truth_head(s, t, h);
	double long_keys = 2 * g * growth(s->lk);
	double long_queries = 2 * g * growth(rows * s->lq);
	double e[5] = {
		excess_head(&t->o, rows * s->lq * hd, hd, at, s->d, w.o, f),
		excess_head(&t->lse, rows * s->heads * s->lq, s->heads * s->lq,
		    h * s->lq, s->lq, w.lse, 2e-6),
		excess_head(&t->dq, rows * s->lq * s->ldq, s->ldq, at, s->d,
		    w.dq, long_keys),
		excess_head(&t->dk, s->lk * s->ldk, s->ldk, at, s->d, w.dk,
		    long_queries),
		excess_head(&t->dv, s->lk * s->ldk, s->ldk, at, s->d, w.dv,
		    long_queries)
	};

	ok(e[0] <= 1 && e[1] <= 1 && e[2] <= 1 && e[3] <= 1 && e[4] <= 1,
	    "%s F32 %s, a head against f64: errors %.2f %.2f %.2f %.2f %.2f "
	    "of the allowed", level, c->what, e[0], e[1], e[2], e[3], e[4]);
	truth_free(&w);
}

/* Both passes, and twice. */
static void
check_large(lpo_backend *be, lpo_backend *cpu, const char *level,
    enum lpo_dtype dt, const struct shape_case *c)
{
	struct set t = set_new(be, &c->s, dt), u = set_new(be, &c->s, dt);
	struct set w = set_widen(cpu, &t);
	struct truth v = { NULL, NULL, NULL, NULL, NULL };
	int good;
	double e[5], f, g, cq, ck;

	allowed(be, dt, &f, &g);
	/* the CPU errs in f32 as well, and long sums grow with either */
	cq = 2e-6 * growth(c->s.lk);
	ck = 2e-6 * growth(c->s.n / c->s.nk * c->s.lq);
	set_start(&c->s, &t, 0);
	set_start(&c->s, &u, 0);
	set_start(&c->s, &w, 0);
	good = forward(cpu, LPO_F32, &c->s, &w);
	good &= backward(cpu, LPO_F32, &c->s, &w, 7, 0);
	good &= forward(be, dt, &c->s, &t);
	good &= backward(be, dt, &c->s, &t, 7, 0);
	v = truth_of(&w);
	e[0] = excess(&c->s, &t.o, 1, v.o, f + 4e-6);
	e[1] = excess(&c->s, &t.lse, 1, v.lse, dt == LPO_F32 ? 4e-6 : 2e-5);
	e[2] = excess(&c->s, &t.dq, c->s.ldq, v.dq, (dt == LPO_F32 ? cq : g) +
	    cq);
	e[3] = excess(&c->s, &t.dk, c->s.ldk, v.dk, (dt == LPO_F32 ? ck : g) +
	    ck);
	e[4] = excess(&c->s, &t.dv, c->s.ldk, v.dv, (dt == LPO_F32 ? ck : g) +
	    ck);
	ok(good && e[0] <= 1 && e[1] <= 1 && e[2] <= 1 && e[3] <= 1 &&
	    e[4] <= 1, "%s %s %s against the CPU: errors %.2f %.2f %.2f %.2f "
	    "%.2f of the allowed", level, lpo_dtype_name(dt), c->what, e[0],
	    e[1], e[2], e[3], e[4]);
	if (dt == LPO_F32)
		check_head(level, c, &t, f, g);
	good = forward(be, dt, &c->s, &u);
	good &= backward(be, dt, &c->s, &u, 7, 0);
	ok(good && same_results(&t, &u) && same_gradients(&t, &u),
	    "%s %s %s: same bits run after run", level, lpo_dtype_name(dt),
	    c->what);
	truth_free(&v);
	set_free(&t);
	set_free(&u);
	set_free(&w);
}

static void
all_large(lpo_backend *be, const char *level)
{
	lpo_backend cpu;
	size_t i;

	if (!ok(lpo_cpu_open(&cpu, LPO_ISA_AUTO, 0) == 0, "a CPU"))
		return;
	for (i = 0; i < sizeof(large) / sizeof(*large); i++) {
		check_large(be, &cpu, level, LPO_BF16, &large[i]);
		check_large(be, &cpu, level, LPO_F32, &large[i]);
	}
	lpo_cpu_close(&cpu);
}

static void
test_level(lpo_backend *be, const char *level)
{
	int i;

	for (i = 0; i < CASES; i++) {
		check_values(be, level, LPO_F32, &cases[i], 7);
		/* none, dq alone, dk alone ... all but dv and so on */
		check_values(be, level, LPO_F32, &cases[i], i % 7);
		check_bits(be, level, LPO_F32, &cases[i]);
		if (be->split)
			continue;
		check_values(be, level, LPO_BF16, &cases[i], 7);
		check_values(be, level, LPO_BF16, &cases[i], i % 7);
		check_values(be, level, LPO_BF16, &cases[i], 0);
		if (i % 3 == 1)
			check_bits(be, level, LPO_BF16, &cases[i]);
	}
	check_null(be, level);
	check_extremes(be, level, LPO_F32);
	check_extremes(be, level, last_dtype(be));
	check_rising(be, level, last_dtype(be));
	if (on_cuda(be))
		all_large(be, level);
}

int
main(void)
{
	each_level(test_level);
	split_level(test_level);
	return done_testing();
}
