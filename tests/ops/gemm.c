/*
 * Linear layers at each level of this CPU and on CUDA: against f64, and the
 * promises about bits: rows, threads and groups do not change them; on CUDA
 * also large ones against the CPU, and where f32 is split, against f32.
 */
#include "tests/ops/levels.h"

struct problem {
	int64_t m, n, k, groups;
};

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

static const char *
dt_name(enum lpo_dtype dt)
{
	return dt == LPO_F32 ? "f32" : "bf16";
}

/* want[m,n] += alpha a b^T, by strides; magnitude gets absolute values */
static void
reference(double *want, double *magnitude, int64_t m, int64_t n, int64_t k,
    const double *a, int64_t ai, int64_t ak, const double *b, int64_t bj,
    int64_t bk, double alpha)
{
	int64_t i, j, l;

	for (i = 0; i < m; i++)
		for (j = 0; j < n; j++) {
			double s = 0, t = 0, x;

			for (l = 0; l < k; l++) {
				x = a[i * ai + l * ak] * b[j * bj + l * bk];
				s += x;
				t += fabs(x);
			}
			want[i * n + j] += alpha * s;
			magnitude[i * n + j] += fabs(alpha) * t;
		}
}

struct truth {
	double *want, *magnitude, *added;
};

/* What there is besides the products: start where added, row or NULL. */
static struct truth
truth_new(const struct buf *start, int add, const double *row, int64_t n)
{
	struct truth t;
	int64_t i;

	t.want = calloc((size_t)start->count, sizeof(double));
	t.magnitude = calloc((size_t)start->count, sizeof(double));
	t.added = calloc((size_t)start->count, sizeof(double));
	if (t.want == NULL || t.magnitude == NULL || t.added == NULL)
		abort();
	for (i = 0; i < start->count; i++) {
		t.want[i] = start_of(start, i, add) + (row ? row[i % n] : 0);
		t.magnitude[i] = fabs(start_of(start, i, add)) +
		    (row ? fabs(row[i % n]) : 0);
		t.added[i] = t.magnitude[i];
	}
	return t;
}

static void
truth_free(struct truth *t)
{
	free(t->want);
	free(t->magnitude);
	free(t->added);
}

static void
check(const char *level, const char *what, const struct problem *p,
    enum lpo_dtype dt, const struct buf *got, struct truth *t, int rc,
    struct scratch *s)
{
	double e = worst(got, t->want, t->magnitude,
	    dt == LPO_BF16 && got->dt == LPO_BF16 ? t->added : NULL);
	int whole = scratch_done(s);

	ok(rc == 0 && e <= 1 && guard_whole(got) && whole,
	    "%s %s %s %dx%dx%d: error %.2g of what is allowed", level,
	    dt_name(dt), what, (int)p->m, (int)p->n, (int)p->k, e);
	truth_free(t);
}

static struct scratch
scratch_for(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    const struct problem *p)
{
	return scratch_new(be, be->k->linear_scratch_bytes(be, pass, dt,
	    p->m, p->n, p->k, p->groups));
}

static const char *const residuals[] = { "", " + y", " + another" };

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

/* ---- a layer with its LoRA in one call, where a backend has that */

/* SD1.5's, widths of one and two strips a warp, odd ones, and wide ranks. */
static const struct {
	struct problem p;
	int64_t r;
} loras[] = {
	{ { 640, 320, 320, 4 }, 4 }, { { 154, 1280, 768, 2 }, 4 },
	{ { 90, 1280, 1280, 2 }, 4 }, { { 333, 640, 640, 1 }, 1 },
	{ { 77, 96, 160, 1 }, 16 }, { { 65, 1280, 1280, 1 }, 16 },
	{ { 15, 8, 1280, 1 }, 5 }, { { 51, 768, 72, 1 }, 9 },
	{ { 33, 33, 65, 1 }, 4 }, { { 130, 640, 320, 2 }, 64 },
	{ { 20, 1288, 64, 1 }, 4 }
};

static size_t
max_need(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    const struct problem *p, int64_t r)
{
	size_t need[3] = {
		be->k->linear_scratch_bytes(be, pass, dt, p->m, p->n, p->k,
		    p->groups),
		be->k->linear_scratch_bytes(be, pass, dt, p->m, r, p->k,
		    p->groups),
		be->k->linear_scratch_bytes(be, pass, dt, p->m, p->n, r,
		    p->groups)
	};
	size_t most = need[0];
	int i;

	for (i = 1; i < 3; i++)
		most = need[i] > most ? need[i] : most;
	return most;
}

/* The values that are there now, in v. */
static void
read_back(struct buf *b)
{
	int64_t i;

	for (i = 0; i < b->count; i++)
		b->v[i] = get(b, i);
}

static void
check_lora_forward(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p, int64_t rank)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf w = buf_new(be, dt, p->n * p->k, 2);
	struct buf y = buf_new(be, dt, p->m * p->n, 3);
	struct buf r = buf_new(be, dt, p->m * p->n, 3);
	struct buf bias = buf_new(be, LPO_F32, p->n, 4);
	struct buf a = buf_new(be, dt, rank * p->k, 5);
	struct buf b = buf_new(be, dt, p->n * rank, 6);
	struct buf aux = buf_new(be, dt, p->m * rank, 7);
	struct problem down = { p->m, rank, p->k, p->groups };
	struct truth t, ta, low;
	struct scratch s;
	char what[64];
	int i, kind, rc;

	for (i = 0; i < 6; i++) {
		kind = i / 2;
		snprintf(what, sizeof(what), "LoRA %d%s%s", (int)rank,
		    i % 2 ? " + bias" : "", residuals[kind]);
		buf_start(&y, kind == 1);
		buf_poison(&aux);
		s = scratch_new(be, max_need(be, LPO_FWD, dt, p, rank));
		rc = be->k->lora_fwd(be, dt, y.p, aux.p, x.p, w.p,
		    i % 2 ? bias.p : NULL, kind == 0 ? NULL : kind == 1 ?
		    y.p : r.p, a.p, b.p, p->m, p->n, p->k, rank, 0.75f, s.p);
		ta = truth_new(&aux, 0, NULL, 1);
		reference(ta.want, ta.magnitude, p->m, rank, p->k, x.v, p->k,
		    1, a.v, p->k, 1, 1);
		/* what is added to the product of w: aux is as it was found */
		read_back(&aux);
		t = truth_new(&r, kind != 0, i % 2 ? bias.v : NULL, p->n);
		low = truth_new(&r, 0, NULL, 1);
		reference(low.want, t.added, p->m, p->n, rank, aux.v, rank, 1,
		    b.v, rank, 1, 0.75);
		reference(t.want, t.magnitude, p->m, p->n, rank, aux.v, rank,
		    1, b.v, rank, 1, 0.75);
		reference(t.want, t.magnitude, p->m, p->n, p->k, x.v, p->k, 1,
		    w.v, p->k, 1, 1);
		check(level, what, p, dt, &y, &t, rc, &s);
		s = scratch_new(be, 1);
		check(level, "LoRA's down", &down, dt, &aux, &ta, rc, &s);
		truth_free(&low);
	}
	buf_free(&x);
	buf_free(&w);
	buf_free(&y);
	buf_free(&r);
	buf_free(&bias);
	buf_free(&a);
	buf_free(&b);
	buf_free(&aux);
}

/* u = scale dy b; magnitude: of its products, and of its rounding to bf16 */
static struct truth
lora_inner(const struct problem *p, int64_t rank, const struct buf *u,
    const struct buf *dy, const struct buf *b)
{
	struct truth t = truth_new(u, 0, NULL, 1);
	int64_t i;

	reference(t.want, t.magnitude, p->m, rank, p->n, dy->v, p->n, 1, b->v,
	    1, rank, 0.75);
	for (i = 0; i < u->count && u->dt == LPO_BF16; i++)
		t.magnitude[i] += fabs(t.want[i]) / 256 / 2e-6;
	return t;
}

/* which: 1 dx, 2 da, 4 db are asked for */
static void
check_lora_backward(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p, int64_t rank, int which)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf dy = buf_new(be, dt, p->m * p->n, 2);
	struct buf a = buf_new(be, dt, rank * p->k, 5);
	struct buf b = buf_new(be, dt, p->n * rank, 6);
	struct buf aux = buf_new(be, dt, p->m * rank, 7);
	struct buf dx = buf_new(be, dt, p->m * p->k, 3);
	struct buf da = buf_new(be, LPO_F32, rank * p->k, 4);
	struct buf db = buf_new(be, LPO_F32, p->n * rank, 8);
	struct truth u = lora_inner(p, rank, &aux, &dy, &b);
	struct truth tx = truth_new(&dx, 1, NULL, 1);
	struct truth ta = truth_new(&da, 1, NULL, 1);
	struct truth tb = truth_new(&db, 1, NULL, 1);
	struct problem pa = { p->m, rank, p->k, 1 }, pb = { p->m, p->n, rank,
	    1 };
	double *no = calloc((size_t)(p->m * p->k), sizeof(double));
	double *abs_a = calloc((size_t)a.count, sizeof(double));
	double *abs_x = calloc((size_t)x.count, sizeof(double));
	struct scratch s;
	char what[64];
	int64_t i;
	int rc;

	if (no == NULL || abs_a == NULL || abs_x == NULL)
		abort();
	for (i = 0; i < a.count; i++)
		abs_a[i] = fabs(a.v[i]);
	for (i = 0; i < x.count; i++)
		abs_x[i] = fabs(x.v[i]);
	if (which & 1) {
		reference(tx.want, no, p->m, p->k, rank, u.want, rank, 1, a.v,
		    1, p->k, 1);
		reference(tx.magnitude, no, p->m, p->k, rank, u.magnitude,
		    rank, 1, abs_a, 1, p->k, 1);
	}
	if (which & 2) {
		reference(ta.want, no, rank, p->k, p->m, u.want, 1, rank, x.v,
		    1, p->k, 1);
		reference(ta.magnitude, no, rank, p->k, p->m, u.magnitude, 1,
		    rank, abs_x, 1, p->k, 1);
	}
	if (which & 4)
		reference(tb.want, tb.magnitude, p->n, rank, p->m, dy.v, 1,
		    p->n, aux.v, 1, rank, 0.75);
	s = scratch_new(be, max_need(be, LPO_BWD_DATA, dt, p, rank) +
	    max_need(be, LPO_BWD_WEIGHT, dt, p, rank) +
	    ((size_t)aux.count * lpo_dtype_bytes(dt) + 63) / 64 * 64);
	rc = be->k->lora_bwd(be, dt, which & 1 ? dx.p : NULL, which & 2 ?
	    da.p : NULL, which & 4 ? db.p : NULL, dy.p, x.p, aux.p, a.p, b.p,
	    p->m, p->n, p->k, rank, 0.75f, p->groups, s.p);
	snprintf(what, sizeof(what), "LoRA %d backward to x (%d)", (int)rank,
	    which);
	check(level, what, p, dt, &dx, &tx, rc, &s);
	s = scratch_new(be, 1);
	check(level, "LoRA backward to a", &pa, dt, &da, &ta, rc, &s);
	s = scratch_new(be, 1);
	check(level, "LoRA backward to b", &pb, dt, &db, &tb, rc, &s);
	truth_free(&u);
	free(no);
	free(abs_a);
	free(abs_x);
	buf_free(&x);
	buf_free(&dy);
	buf_free(&a);
	buf_free(&b);
	buf_free(&aux);
	buf_free(&dx);
	buf_free(&da);
	buf_free(&db);
}

/* Twice, the same bits. */
static void
check_lora_bits(lpo_backend *be, const char *level,
    const struct problem *p, int64_t rank)
{
	struct buf x = buf_new(be, LPO_BF16, p->m * p->k, 1);
	struct buf dy = buf_new(be, LPO_BF16, p->m * p->n, 2);
	struct buf a = buf_new(be, LPO_BF16, rank * p->k, 5);
	struct buf b = buf_new(be, LPO_BF16, p->n * rank, 6);
	struct buf aux = buf_new(be, LPO_BF16, p->m * rank, 7);
	struct buf dx[2], da[2], db[2];
	struct scratch s;
	int i, rc = 0;

	for (i = 0; i < 2; i++) {
		dx[i] = buf_new(be, LPO_BF16, p->m * p->k, 3);
		da[i] = buf_new(be, LPO_F32, rank * p->k, 4);
		db[i] = buf_new(be, LPO_F32, p->n * rank, 8);
		s = scratch_new(be, max_need(be, LPO_BWD_DATA, LPO_BF16, p,
		    rank) + max_need(be, LPO_BWD_WEIGHT, LPO_BF16, p, rank) +
		    ((size_t)aux.count * 2 + 63) / 64 * 64);
		rc |= be->k->lora_bwd(be, LPO_BF16, dx[i].p, da[i].p, db[i].p,
		    dy.p, x.p, aux.p, a.p, b.p, p->m, p->n, p->k, rank, 0.75f,
		    p->groups, s.p);
		scratch_done(&s);
	}
	ok(rc == 0 && buf_same(&dx[0], &dx[1]) && buf_same(&da[0], &da[1]) &&
	    buf_same(&db[0], &db[1]), "%s bf16 LoRA %d backward, %dx%dx%d: "
	    "same bits twice", level, (int)rank, (int)p->m, (int)p->n,
	    (int)p->k);
	for (i = 0; i < 2; i++) {
		buf_free(&dx[i]);
		buf_free(&da[i]);
		buf_free(&db[i]);
	}
	buf_free(&x);
	buf_free(&dy);
	buf_free(&a);
	buf_free(&b);
	buf_free(&aux);
}

static void
all_loras(lpo_backend *be, const char *level)
{
	static const struct problem tall = { 8192, 320, 320, 2 };
	enum lpo_dtype dt;
	size_t i;

	for (dt = LPO_F32; dt <= LPO_BF16; dt++)
		for (i = 0; i < sizeof(loras) / sizeof(*loras); i++) {
			check_lora_forward(be, level, dt, &loras[i].p,
			    loras[i].r);
			check_lora_backward(be, level, dt, &loras[i].p,
			    loras[i].r, 7);
		}
	for (i = 0; i < 7; i++)
		check_lora_backward(be, level, LPO_BF16, &loras[0].p,
		    loras[0].r, (int)i);
	check_lora_backward(be, level, LPO_BF16, &tall, 4, 7);
	check_lora_bits(be, level, &tall, 4);
	check_lora_bits(be, level, &loras[2].p, 4);
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
	if (be->k->lora_fwd != NULL && be->k->lora_bwd != NULL)
		all_loras(be, level);
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
