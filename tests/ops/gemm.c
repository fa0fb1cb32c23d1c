/*
 * Linear layers at each level of this CPU and on CUDA: against f64, and the
 * promises about bits: rows, threads and groups do not change them; on CUDA
 * also large ones against the CPU, and where f32 is split, against f32.
 */
#include "tests/ops/linear.h"

/* Odd ones, one row, the demo's, and some that oneDNN may take in bf16. */
static const struct problem problems[] = {
	{ 1, 1, 1, 1 }, { 5, 3, 7, 5 }, { 64, 48, 48, 2 }, { 24, 48, 320, 4 },
	{ 257, 33, 65, 1 }, { 130, 97, 600, 2 }, { 13, 320, 1030, 1 },
	{ 2, 257, 257, 2 }, { 96, 4, 160, 3 }, { 96, 160, 4, 3 },
	{ 192, 256, 512, 2 }, { 308, 640, 64, 4 },
	/* more rows, and more columns, than AMX's gradients take at once */
	{ 2500, 40, 70, 2 }, { 40, 45, 1040, 2 }, { 36, 1050, 33, 1 },
	/* deeper than its products take at once */
	{ 40, 2656, 96, 2 }, { 35, 48, 2656, 1 }
};

/* SD1.5's, its LoRA's, odd ones as long: for CUDA, and where f32 is split. */
static const struct problem large[] = {
	{ 8192, 2560, 320, 2 }, { 8192, 320, 1280, 2 }, { 2048, 640, 640, 2 },
	{ 512, 10240, 1280, 2 }, { 154, 320, 768, 2 }, { 2, 1280, 1280, 2 },
	{ 8192, 4, 320, 2 }, { 8192, 320, 4, 2 }, { 154, 8, 768, 2 },
	{ 2048, 1280, 5120, 4 }, { 4095, 333, 517, 3 }, { 777, 1032, 264, 1 }
};
static struct scratch
scratch_for(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    const struct problem *p)
{
	return scratch_new(be, be->k->linear_scratch_bytes(be, pass, dt,
	    p->m, p->n, p->k, p->groups));
}

/* Residual: none, y itself (1), another buffer (2); with and without bias. */
static void
check_forward(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf w = buf_new(be, dt, p->n * p->k, 2);
	struct buf y = buf_new(be, dt, p->m * p->n, 3);
	struct buf r = buf_new(be, dt, p->m * p->n, 3);
	struct buf bias = buf_new(be, LPO_F32, p->n, 4);
	struct scratch s;
	struct truth t;
	char what[64];
	int i, kind, rc;

	for (i = 0; i < 6; i++) {
		double alpha = i == 1 || i == 4 ? -0.75 : 1;

		kind = i / 2;
		snprintf(what, sizeof(what), "forward%s%s%s", alpha != 1 ?
		    ", alpha" : "", i % 2 ? " + bias" : "", residuals[kind]);
		buf_start(&y, kind == 1);
		t = truth_new(&r, kind != 0, i % 2 ? bias.v : NULL, p->n);
		reference(t.want, t.magnitude, p->m, p->n, p->k, x.v, p->k, 1,
		    w.v, p->k, 1, alpha);
		s = scratch_for(be, LPO_FWD, dt, p);
		rc = be->k->linear_fwd(be, dt, y.p, x.p, w.p,
		    i % 2 ? bias.p : NULL, kind == 0 ? NULL : kind == 1 ?
		    y.p : r.p, p->m, p->n, p->k, (float)alpha, s.p);
		check(level, what, p, dt, &y, &t, rc, &s);
	}
	buf_free(&x);
	buf_free(&w);
	buf_free(&y);
	buf_free(&r);
	buf_free(&bias);
}

static void
check_backward(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf w = buf_new(be, dt, p->n * p->k, 2);
	struct buf dy = buf_new(be, dt, p->m * p->n, 3);
	struct buf dx = buf_new(be, dt, p->m * p->k, 4);
	struct buf dw = buf_new(be, LPO_F32, p->n * p->k, 5);
	struct buf db = buf_new(be, LPO_F32, p->n, 6);
	double one = 1;
	struct scratch s;
	struct truth t, tb;
	int rc, pass;

	/* alpha, 1, 1, alpha; set, set, added, added */
	for (pass = 0; pass < 4; pass++) {
		double alpha = pass % 3 ? 1 : 0.5;

		buf_start(&dx, pass / 2);
		s = scratch_for(be, LPO_BWD_DATA, dt, p);
		t = truth_new(&dx, pass / 2, NULL, 1);
		reference(t.want, t.magnitude, p->m, p->k, p->n, dy.v, p->n,
		    1, w.v, 1, p->k, alpha);
		rc = be->k->linear_bwd_data(be, dt, dx.p, dy.p, w.p, p->m,
		    p->n, p->k, (float)alpha, pass / 2, s.p);
		check(level, pass / 2 ? "backward to x, added" :
		    "backward to x, set", p, dt, &dx, &t, rc, &s);
	}
	s = scratch_for(be, LPO_BWD_WEIGHT, dt, p);
	t = truth_new(&dw, 1, NULL, 1);
	reference(t.want, t.magnitude, p->n, p->k, p->m, dy.v, 1, p->n, x.v,
	    1, p->k, 2);
	rc = be->k->linear_bwd_weight(be, dt, dw.p, db.p, dy.p, x.p, p->m,
	    p->n, p->k, 2, p->groups, s.p);
	check(level, "backward to w", p, dt, &dw, &t, rc, &s);
	tb = truth_new(&db, 1, NULL, 1);
	reference(tb.want, tb.magnitude, p->n, 1, p->m, dy.v, 1, p->n, &one,
	    0, 0, 2);
	s = scratch_new(be, 1);
	check(level, "backward to b", p, dt, &db, &tb, rc, &s);
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	buf_free(&dx);
	buf_free(&dw);
	buf_free(&db);
}

/* Rows r .. r+m-1 of 10 blocks of b rows: the bits they have in the whole. */
static void
check_rows(lpo_backend *be, const char *level, enum lpo_dtype dt, int64_t b,
    int64_t n, int64_t k)
{
	size_t e = lpo_dtype_bytes(dt);
	struct buf x = buf_new(be, dt, 10 * b * k, 1);
	struct buf w = buf_new(be, dt, n * k, 2);
	struct buf y = buf_new(be, dt, 10 * b * n, 3);
	struct buf y2 = buf_new(be, dt, 10 * b * n, 3);
	struct buf bias = buf_new(be, LPO_F32, n, 4);
	struct problem all = { 10 * b, n, k, 1 };
	struct scratch s = scratch_for(be, LPO_FWD, dt, &all);
	struct scratch t = scratch_for(be, LPO_BWD_DATA, dt, &all);
	struct buf dx = buf_new(be, dt, 10 * b * k, 5);
	struct buf dx2 = buf_new(be, dt, 10 * b * k, 5);
	int64_t m, r, same = 0, count = 0, back = 0;

	be->k->linear_fwd(be, dt, y.p, x.p, w.p, bias.p, NULL, 10 * b, n, k,
	    1, s.p);
	be->k->linear_bwd_data(be, dt, dx.p, y.p, w.p, 10 * b, n, k, 1, 1,
	    t.p);
	for (m = 1; m < 10; m++)
		for (r = 0; r + m <= 10; r += 3, count++) {
			size_t at = (size_t)(r * b * n) * e;
			size_t ax = (size_t)(r * b * k) * e;

			be->k->linear_fwd(be, dt, y2.p, (char *)x.p + ax, w.p,
			    bias.p, NULL, m * b, n, k, 1, s.p);
			same += memcmp(y2.p, (char *)y.p + at,
			    (size_t)(m * b * n) * e) == 0;
			buf_reset(&dx2);
			be->k->linear_bwd_data(be, dt, (char *)dx2.p + ax,
			    (char *)y.p + at, w.p, m * b, n, k, 1, 1, t.p);
			back += memcmp((char *)dx2.p + ax, (char *)dx.p + ax,
			    (size_t)(m * b * k) * e) == 0;
		}
	ok(same == count && back == count, "%s %s: bits of rows alone and "
	    "among 10 x %d, %dx%d: %d and %d of %d", level, dt_name(dt),
	    (int)b, (int)n, (int)k, (int)same, (int)back, (int)count);
	scratch_done(&s);
	scratch_done(&t);
	buf_free(&x);
	buf_free(&w);
	buf_free(&y);
	buf_free(&y2);
	buf_free(&dx);
	buf_free(&dx2);
	buf_free(&bias);
}

/* One call with 4 groups, two with 2 and four with 1. */
static void
check_groups(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { G = 4, M = 300, N = 50, K = 70 };
	struct buf x = buf_new(be, dt, G * M * K, 1);
	struct buf dy = buf_new(be, dt, G * M * N, 2);
	struct buf dw = buf_new(be, LPO_F32, N * K, 3);
	struct buf db = buf_new(be, LPO_F32, N, 4);
	struct problem p = { G * M, N, K, G };
	struct scratch s = scratch_for(be, LPO_BWD_WEIGHT, dt, &p);
	float w0[N * K], b0[N];
	size_t e = lpo_dtype_bytes(dt);
	int per, g, same = 1;

	for (per = G; per >= 1; per /= 2) {
		buf_reset(&dw);
		buf_reset(&db);
		for (g = 0; g < G; g += per)
			be->k->linear_bwd_weight(be, dt, dw.p, db.p,
			    (char *)dy.p + (size_t)(g * M * N) * e,
			    (char *)x.p + (size_t)(g * M * K) * e, per * M, N,
			    K, 0.3f, per, s.p);
		if (per == G) {
			memcpy(w0, dw.p, sizeof(w0));
			memcpy(b0, db.p, sizeof(b0));
		}
		same &= memcmp(w0, dw.p, sizeof(w0)) == 0;
		same &= memcmp(b0, db.p, sizeof(b0)) == 0;
	}
	ok(same, "%s %s: 4 groups are 2 + 2 and 1 + 1 + 1 + 1, to the bit",
	    level, dt_name(dt));
	scratch_done(&s);
	buf_free(&x);
	buf_free(&dy);
	buf_free(&dw);
	buf_free(&db);
}

/* What the three passes make. */
struct result {
	struct buf y, dx, dw, db;
};

static struct result
result_new(lpo_backend *be, enum lpo_dtype dt, const struct problem *p)
{
	return (struct result){ buf_new(be, dt, p->m * p->n, 3),
	    buf_new(be, dt, p->m * p->k, 4),
	    buf_new(be, LPO_F32, p->n * p->k, 5),
	    buf_new(be, LPO_F32, p->n, 6) };
}

static void
result_free(struct result *r)
{
	buf_free(&r->y);
	buf_free(&r->dx);
	buf_free(&r->dw);
	buf_free(&r->db);
}

static int
result_same(const struct result *a, const struct result *b)
{
	return buf_same(&a->y, &b->y) && buf_same(&a->dx, &b->dx) &&
	    buf_same(&a->dw, &b->dw) && buf_same(&a->db, &b->db);
}

/* The three passes, each added to what r holds; dy is what y was. */
static int
run_all(lpo_backend *be, enum lpo_dtype dt, const struct problem *p,
    struct result *r, const struct buf *x, const struct buf *w,
    const struct buf *dy)
{
	struct scratch f = scratch_for(be, LPO_FWD, dt, p);
	struct scratch d = scratch_for(be, LPO_BWD_DATA, dt, p);
	struct scratch g = scratch_for(be, LPO_BWD_WEIGHT, dt, p);
	int rc;

	rc = be->k->linear_fwd(be, dt, r->y.p, x->p, w->p, NULL, r->y.p, p->m,
	    p->n, p->k, 1, f.p);
	rc |= be->k->linear_bwd_data(be, dt, r->dx.p, dy->p, w->p, p->m, p->n,
	    p->k, 1, 1, d.p);
	rc |= be->k->linear_bwd_weight(be, dt, r->dw.p, r->db.p, dy->p, x->p,
	    p->m, p->n, p->k, 1, p->groups, g.p);
	return (rc == 0) & scratch_done(&f) & scratch_done(&d) &
	    scratch_done(&g);
}

/* All three passes with 1 .. 4 threads. */
static void
check_threads(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf w = buf_new(be, dt, p->n * p->k, 2);
	struct buf dy = buf_new(be, dt, p->m * p->n, 7);
	struct result one = result_new(be, dt, p), r;
	int threads, same = 1;

	for (threads = 1; threads <= repeats(be); threads++) {
		if (reopen(be, threads) != 0)
			abort();
		if (threads == 1)
			same &= run_all(be, dt, p, &one, &x, &w, &dy);
		r = result_new(be, dt, p);
		same &= run_all(be, dt, p, &r, &x, &w, &dy);
		same &= result_same(&one, &r);
		result_free(&r);
	}
	ok(same, "%s %s: same bits %s, %dx%dx%d", level, dt_name(dt), runs(be),
	    (int)p->m, (int)p->n, (int)p->k);
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	result_free(&one);
}

/* All passes against the CPU's in f32. */
static void
check_large(lpo_backend *be, lpo_backend *cpu, const char *level,
    enum lpo_dtype dt, const struct problem *p)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf w = buf_new(be, dt, p->n * p->k, 2);
	struct buf dy = buf_new(be, dt, p->m * p->n, 7);
	struct buf x2 = buf_widen(cpu, &x), w2 = buf_widen(cpu, &w);
	struct buf dy2 = buf_widen(cpu, &dy);
	struct result r = result_new(be, dt, p);
	struct result want = { buf_widen(cpu, &r.y), buf_widen(cpu, &r.dx),
	    buf_widen(cpu, &r.dw), buf_widen(cpu, &r.db) };
	int good = run_all(cpu, LPO_F32, p, &want, &x2, &w2, &dy2);
	double e[4];

	good &= run_all(be, dt, p, &r, &x, &w, &dy);
	/* |a b| of values in -1 .. 1 is 1/4 in the mean */
	e[0] = worst_of(&r.y, &want.y, (double)p->k / 4 + 1,
	    dt == LPO_BF16 ? 2 : 0);
	e[1] = worst_of(&r.dx, &want.dx, (double)p->n / 4 + 1,
	    dt == LPO_BF16);
	e[2] = worst_of(&r.dw, &want.dw, (double)p->m / 4 + 1, 0);
	e[3] = worst_of(&r.db, &want.db, (double)p->m / 2 + 1, 0);
	ok(good && e[0] <= 1 && e[1] <= 1 && e[2] <= 1 && e[3] <= 1,
	    "%s %s %dx%dx%d against the CPU: errors %.2g %.2g %.2g %.2g of "
	    "the allowed", level, dt_name(dt), (int)p->m, (int)p->n,
	    (int)p->k, e[0], e[1], e[2], e[3]);
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	buf_free(&x2);
	buf_free(&w2);
	buf_free(&dy2);
	result_free(&r);
	result_free(&want);
	check_threads(be, level, dt, p);
}

static void
all_large(lpo_backend *be, const char *level)
{
	lpo_backend cpu;
	enum lpo_dtype dt;
	size_t i;

	if (!ok(lpo_cpu_open(&cpu, LPO_ISA_AUTO, 0) == 0, "a CPU"))
		return;
	for (dt = LPO_F32; dt <= last_dtype(be); dt++)
		for (i = 0; i < sizeof(large) / sizeof(*large); i++)
			check_large(be, &cpu, level, dt, &large[i]);
	lpo_cpu_close(&cpu);
}


static void
one_level(lpo_backend *be, const char *level)
{
	const int count = sizeof(problems) / sizeof(*problems);
	static const int64_t blocks[5][3] = { { 1, 48, 320 },
	    { 1, 257, 65 }, { 64, 96, 96 }, { 64, 320, 640 },
	    { 77, 128, 768 } };
	struct problem many = { 300, 1100, 80, 2 };
	struct problem wide = { 512, 1280, 1280, 1 };
	enum lpo_dtype dt;
	int i;

	for (dt = LPO_F32; dt <= last_dtype(be); dt++) {
		for (i = 0; i < count; i++) {
			check_forward(be, level, dt, &problems[i]);
			check_backward(be, level, dt, &problems[i]);
		}
		for (i = 0; i < 5 && !on_cuda(be); i++)
			check_rows(be, level, dt, blocks[i][0], blocks[i][1],
			    blocks[i][2]);
		if (!on_cuda(be))
			check_groups(be, level, dt);
		for (i = 4; i < count; i++)
			check_threads(be, level, dt, &problems[i]);
		check_threads(be, level, dt, &many);
	}
	/* AMX's threads share tiles of such a size; one alone does not. */
	if (be->isa == LPO_ISA_AMX)
		check_threads(be, level, last_dtype(be), &wide);
	if (on_cuda(be) || be->split)
		all_large(be, level);
}

int
main(void)
{
	lpo_backend be;

	/* first: a backend here would fix oneDNN's level for theirs */
	each_level(one_level);
	split_level(one_level);
	ok(lpo_cpu_open(&be, LPO_ISA_AUTO, 0) == 0 && be.threads > 0 &&
	    be.isa == lpo_cpu_best_isa() && be.k->abi == LPO_KERNEL_ABI &&
	    be.k->size_bytes == sizeof(struct lpo_kernels), "open: level %s, "
	    "features %s, %s", lpo_isa_name(be.isa), lpo_cpu_features(),
	    lpo_cpu_library_version());
	lpo_cpu_close(&be);
	ok(lpo_isa_parse("avx2") == LPO_ISA_AVX2 &&
	    lpo_isa_parse("avx3") < 0, "levels are found by name");
	ok(lpo_cpu_open(&be, (enum lpo_isa)77, 0) == LPO_EINVAL &&
	    lpo_cpu_open(&be, LPO_ISA_AUTO, -1) == LPO_EINVAL,
	    "a level or thread count that makes no sense is refused");
	return done_testing();
}
