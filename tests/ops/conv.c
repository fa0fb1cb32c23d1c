/*
 * Convolutions at each level of this CPU and on CUDA, all three passes against
 * f64 loops, and the promises about bits: images per call, threads and groups;
 * on CUDA also large ones against the CPU, and where f32 is split, against f32.
 */
#include "tests/ops/levels.h"

/* n, h, w, ci, co, kh, kw, stride, pad_top, pad_left, ho, wo */
static const struct lpo_conv_shape shapes[] = {
	{ 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1 },
	{ 2, 7, 9, 5, 11, 3, 3, 1, 1, 1, 7, 9 },
	{ 4, 8, 8, 48, 33, 3, 3, 1, 1, 1, 8, 8 },
	{ 2, 8, 8, 4, 48, 3, 3, 1, 1, 1, 8, 8 },
	{ 2, 8, 8, 48, 4, 3, 3, 1, 1, 1, 8, 8 },
	{ 2, 8, 8, 40, 56, 3, 3, 2, 1, 1, 4, 4 },
	/* the VAE's: pad at bottom and right only */
	{ 2, 8, 8, 16, 24, 3, 3, 2, 0, 0, 4, 4 },
	{ 1, 9, 7, 6, 10, 3, 3, 2, 1, 1, 5, 4 },
	{ 1, 7, 10, 3, 17, 3, 3, 2, 0, 0, 3, 5 },
	{ 2, 6, 5, 33, 50, 1, 1, 1, 0, 0, 6, 5 },
	{ 2, 6, 5, 33, 20, 1, 1, 2, 0, 0, 3, 3 },
	/* patches of a vision transformer */
	{ 2, 28, 28, 3, 19, 14, 14, 14, 0, 0, 2, 2 },
	/* uneven kernels and paddings, and taps that see nothing */
	{ 1, 5, 6, 7, 9, 2, 5, 1, 0, 3, 6, 8 },
	{ 1, 4, 4, 3, 8, 5, 3, 3, 2, 0, 3, 2 },
	{ 2, 3, 3, 64, 64, 3, 3, 1, 3, 3, 7, 7 },
	/* sizes that oneDNN may take in bf16 */
	{ 2, 12, 12, 64, 96, 3, 3, 1, 1, 1, 12, 12 },
	{ 2, 12, 12, 128, 64, 3, 3, 2, 1, 1, 6, 6 },
	{ 2, 13, 11, 64, 64, 3, 3, 2, 0, 0, 6, 6 },
	{ 2, 12, 12, 96, 160, 1, 1, 1, 0, 0, 12, 12 },
	/* images that are cut into strips there */
	{ 1, 40, 32, 16, 16, 3, 3, 1, 1, 1, 40, 32 },
	{ 1, 70, 32, 16, 24, 3, 3, 2, 1, 1, 35, 16 },
	{ 1, 71, 31, 24, 16, 3, 3, 2, 0, 0, 35, 15 },
	{ 1, 70, 32, 16, 16, 3, 3, 2, 0, 0, 35, 16 },
	{ 1, 45, 32, 16, 16, 5, 3, 1, 2, 1, 45, 32 },
	/* more pixels than AMX's gradients take at once */
	{ 1, 70, 70, 16, 40, 3, 3, 2, 1, 1, 35, 35 },
	{ 2, 34, 33, 40, 20, 1, 3, 1, 0, 1, 34, 33 },
	/* Winograd, from 64 channels on: tiles that hang over, many of both */
	{ 2, 7, 9, 65, 83, 3, 3, 1, 1, 1, 7, 9 },
	{ 1, 9, 6, 300, 69, 3, 3, 1, 1, 1, 9, 6 },
	{ 1, 6, 13, 68, 131, 3, 3, 1, 1, 1, 6, 13 },
	{ 5, 30, 31, 67, 64, 3, 3, 1, 1, 1, 30, 31 },
	{ 3, 4, 3, 68, 66, 3, 3, 1, 1, 1, 4, 3 }
};

/* SD1.5's, and odd ones as long: for CUDA, whose tensor cores want size,
   and for f32 that is split. */
static const struct lpo_conv_shape large[] = {
	{ 2, 64, 64, 4, 320, 3, 3, 1, 1, 1, 64, 64 },
	{ 2, 64, 64, 320, 4, 3, 3, 1, 1, 1, 64, 64 },
	{ 2, 64, 64, 320, 320, 3, 3, 1, 1, 1, 64, 64 },
	{ 2, 64, 64, 320, 320, 3, 3, 2, 1, 1, 32, 32 },
	{ 2, 32, 32, 960, 640, 1, 1, 1, 0, 0, 32, 32 },
	{ 2, 16, 16, 2560, 1280, 3, 3, 1, 1, 1, 16, 16 },
	{ 3, 8, 8, 1280, 1280, 3, 3, 1, 1, 1, 8, 8 },
	{ 1, 64, 64, 128, 128, 3, 3, 2, 0, 0, 32, 32 },
	{ 3, 37, 29, 67, 130, 3, 3, 1, 1, 1, 37, 29 },
	{ 2, 33, 47, 72, 200, 3, 3, 2, 1, 1, 17, 24 }
};

static const char *
text(const char *level, enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	static char t[128];

	snprintf(t, sizeof(t), "%s %s %dx%d/%d on %dx%dx%dx%d to %d", level,
	    dt == LPO_F32 ? "f32" : "bf16", (int)s->kh, (int)s->kw,
	    (int)s->stride, (int)s->n, (int)s->h, (int)s->w, (int)s->ci,
	    (int)s->co);
	return t;
}

static int64_t
x_count(const struct lpo_conv_shape *s)
{
	return s->n * s->h * s->w * s->ci;
}

static int64_t
y_count(const struct lpo_conv_shape *s)
{
	return s->n * s->ho * s->wo * s->co;
}

static int64_t
w_count(const struct lpo_conv_shape *s)
{
	return s->co * s->kh * s->kw * s->ci;
}

/* Sums of products, and of their absolute values, into each result. */
struct truth {
	double *y, *ay, *dx, *ax, *dw, *aw, *db, *ab;
};

static double *
zeros(int64_t n)
{
	double *p = calloc((size_t)n, sizeof(double));

	if (p == NULL)
		abort();
	return p;
}

static void
add(double *sum, double *magnitude, double x)
{
	*sum += x;
	*magnitude += fabs(x);
}

/* One pair of an input and an output pixel under weight w[.., i, j, ..]. */
static void
pixel(struct truth *t, const struct lpo_conv_shape *s, const struct buf *x,
    const struct buf *w, const struct buf *dy, int64_t in, int64_t out,
    int64_t tap)
{
	int64_t c, o, iw, ix, iy;

	for (o = 0; o < s->co; o++)
		for (c = 0; c < s->ci; c++) {
			iw = (o * s->kh * s->kw + tap) * s->ci + c;
			ix = in * s->ci + c;
			iy = out * s->co + o;
			add(&t->y[iy], &t->ay[iy], x->v[ix] * w->v[iw]);
			add(&t->dx[ix], &t->ax[ix], dy->v[iy] * w->v[iw]);
			add(&t->dw[iw], &t->aw[iw], dy->v[iy] * x->v[ix]);
		}
}

static void
reference(struct truth *t, const struct lpo_conv_shape *s,
    const struct buf *x, const struct buf *w, const struct buf *dy)
{
	int64_t n, p, q, i, j, ih, iw, out, o;

	for (out = 0; out < s->n * s->ho * s->wo; out++) {
		n = out / (s->ho * s->wo);
		p = out / s->wo % s->ho;
		q = out % s->wo;
		for (i = 0; i < s->kh; i++)
			for (j = 0; j < s->kw; j++) {
				ih = p * s->stride - s->pad_top + i;
				iw = q * s->stride - s->pad_left + j;
				if (ih >= 0 && ih < s->h && iw >= 0 &&
				    iw < s->w)
					pixel(t, s, x, w, dy, (n * s->h + ih) *
					    s->w + iw, out, i * s->kw + j);
			}
		for (o = 0; o < s->co; o++)
			add(&t->db[o], &t->ab[o], dy->v[out * s->co + o]);
	}
}

static void
check(const char *what, const char *name, const struct buf *got,
    const double *want, const double *magnitude, const double *added, int rc,
    struct scratch *s)
{
	double e = worst(got, want, magnitude, added);
	int whole = scratch_done(s);

	ok(rc == 0 && e <= 1 && whole && guard_whole(got),
	    "%s %s: error %.2g of what is allowed", name, what, e);
}

static struct scratch
scratch_for(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    const struct lpo_conv_shape *s, int64_t groups)
{
	return scratch_new(be, be->k->conv_scratch_bytes(be, pass, dt, s,
	    groups));
}

/* The sums of a truth and what else there is: to `want`, as `worst` has it. */
static void
and_start(double *want, double *magnitude, const double *sum,
    const double *absolute, double *added, const struct buf *start,
    const struct buf *bias)
{
	int64_t i;

	for (i = 0; i < start->count; i++) {
		want[i] = sum[i];
		magnitude[i] = absolute[i];
		add(&want[i], &magnitude[i], start->v[i]);
		if (bias != NULL)
			add(&want[i], &magnitude[i], bias->v[i % bias->count]);
		if (added != NULL)
			added[i] = fabs(start->v[i]) + (bias != NULL ?
			    fabs(bias->v[i % bias->count]) : 0);
	}
}

static const char *const residuals[] = { "", " + y", " + another" };

/* Residual: none, y itself (1), another buffer (2); with and without bias. */
static void
check_forward(lpo_backend *be, enum lpo_dtype dt,
    const struct lpo_conv_shape *s, const char *name, struct truth *t,
    const struct buf *x, const struct buf *w)
{
	struct buf y = buf_new(be, dt, y_count(s), 4);
	struct buf r = buf_new(be, dt, y_count(s), 4), none = r;
	struct buf bias = buf_new(be, LPO_F32, s->co, 5);
	double *want = zeros(y.count), *magnitude = zeros(y.count);
	double *added = zeros(y.count);
	struct scratch tmp;
	char what[64];
	int i, kind, rc;

	none.v = zeros(y.count);
	for (i = 0; i < 6; i++) {
		kind = i / 2;
		snprintf(what, sizeof(what), "forward%s%s", i % 2 ? " + bias" :
		    "", residuals[kind]);
		buf_start(&y, kind == 1);
		and_start(want, magnitude, t->y, t->ay, added, kind ? &r :
		    &none,
		    i % 2 ? &bias : NULL);
		tmp = scratch_for(be, LPO_FWD, dt, s, 1);
		rc = be->k->conv_fwd(be, dt, y.p, x->p, w->p,
		    i % 2 ? bias.p : NULL, kind == 0 ? NULL : kind == 1 ?
		    y.p : r.p, s, tmp.p);
		check(what, name, &y, want, magnitude, dt == LPO_BF16 ? added :
		    NULL, rc, &tmp);
	}
	free(none.v);
	free(want);
	free(magnitude);
	free(added);
	buf_free(&y);
	buf_free(&r);
	buf_free(&bias);
}

static void
check_backward(lpo_backend *be, enum lpo_dtype dt,
    const struct lpo_conv_shape *s, const char *name, struct truth *t,
    const struct buf *x, const struct buf *w, const struct buf *dy)
{
	struct buf dx = buf_new(be, dt, x_count(s), 6);
	struct buf dw = buf_new(be, LPO_F32, w_count(s), 7);
	struct buf db = buf_new(be, LPO_F32, s->co, 8);
	struct scratch tmp = scratch_for(be, LPO_BWD_DATA, dt, s, 1);
	double *added = zeros(dx.count), *dw_added = zeros(dw.count);
	int rc;

	buf_poison(&dx);
	rc = be->k->conv_bwd_data(be, dt, dx.p, dy->p, w->p, s, 0, tmp.p);
	check("backward to x, set", name, &dx, t->dx, t->ax, NULL, rc, &tmp);
	buf_reset(&dx);
	tmp = scratch_for(be, LPO_BWD_DATA, dt, s, 1);
	rc = be->k->conv_bwd_data(be, dt, dx.p, dy->p, w->p, s, 1, tmp.p);
	and_start(t->dx, t->ax, t->dx, t->ax, added, &dx, NULL);
	check("backward to x, added", name, &dx, t->dx, t->ax,
	    dt == LPO_BF16 ? added : NULL, rc, &tmp);
	free(added);
	tmp = scratch_for(be, LPO_BWD_WEIGHT, dt, s, s->n);
	rc = be->k->conv_bwd_weight(be, dt, dw.p, db.p, dy->p, x->p, s, s->n,
	    tmp.p);
	/* CUDA's dw of bf16 is bf16 before it is added. */
	and_start(t->dw, t->aw, t->dw, t->aw, dw_added, &dw, NULL);
	and_start(t->db, t->ab, t->db, t->ab, NULL, &db, NULL);
	check("backward to w", name, &dw, t->dw, t->aw,
	    dt == LPO_BF16 ? dw_added : NULL, rc, &tmp);
	free(dw_added);
	tmp = scratch_new(be, 1);
	check("backward to b", name, &db, t->db, t->ab, NULL, rc, &tmp);
	buf_free(&dx);
	buf_free(&dw);
	buf_free(&db);
}

static void
check_shape(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct lpo_conv_shape *s)
{
	const char *name = text(level, dt, s);
	struct buf x = buf_new(be, dt, x_count(s), 1);
	struct buf w = buf_new(be, dt, w_count(s), 2);
	struct buf dy = buf_new(be, dt, y_count(s), 3);
	struct truth t = {
		.y = zeros(y_count(s)), .ay = zeros(y_count(s)),
		.dx = zeros(x_count(s)), .ax = zeros(x_count(s)),
		.dw = zeros(w_count(s)), .aw = zeros(w_count(s)),
		.db = zeros(s->co), .ab = zeros(s->co)
	};

	reference(&t, s, &x, &w, &dy);
	check_forward(be, dt, s, name, &t, &x, &w);
	check_backward(be, dt, s, name, &t, &x, &w, &dy);
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	free(t.y);
	free(t.ay);
	free(t.dx);
	free(t.ax);
	free(t.dw);
	free(t.aw);
	free(t.db);
	free(t.ab);
}

/* The results of the three passes on some of the images. */
struct result {
	struct buf y, dx, dw, db;
};

/* Images first .. first+n-1 of s, in place in `r`; weights add up. */
static int
run_images(lpo_backend *be, enum lpo_dtype dt, struct lpo_conv_shape s,
    int64_t first, int64_t n, int64_t groups, struct result *r,
    const struct buf *x, const struct buf *w, const struct buf *dy)
{
	size_t e = lpo_dtype_bytes(dt);
	size_t at_x = (size_t)(first * s.h * s.w * s.ci) * e;
	size_t at_y = (size_t)(first * s.ho * s.wo * s.co) * e;
	struct scratch f, d, g;
	int rc;

	s.n = n;
	f = scratch_for(be, LPO_FWD, dt, &s, groups);
	d = scratch_for(be, LPO_BWD_DATA, dt, &s, groups);
	g = scratch_for(be, LPO_BWD_WEIGHT, dt, &s, groups);
	rc = be->k->conv_fwd(be, dt, (char *)r->y.p + at_y,
	    (char *)x->p + at_x, w->p, NULL, (char *)r->y.p + at_y, &s, f.p);
	rc |= be->k->conv_bwd_data(be, dt, (char *)r->dx.p + at_x,
	    (char *)dy->p + at_y, w->p, &s, 1, d.p);
	rc |= be->k->conv_bwd_weight(be, dt, r->dw.p, r->db.p,
	    (char *)dy->p + at_y, (char *)x->p + at_x, &s, groups, g.p);
	return (rc == 0) & scratch_done(&f) & scratch_done(&d) &
	    scratch_done(&g);
}

static struct result
result_new(lpo_backend *be, const struct lpo_conv_shape *s, enum lpo_dtype dt)
{
	return (struct result){ buf_new(be, dt, y_count(s), 4),
	    buf_new(be, dt, x_count(s), 5), buf_new(be, LPO_F32, w_count(s), 6),
	    buf_new(be, LPO_F32, s->co, 7) };
}

static int
result_same(const struct result *a, const struct result *b)
{
	return buf_same(&a->y, &b->y) && buf_same(&a->dx, &b->dx) &&
	    buf_same(&a->dw, &b->dw) && buf_same(&a->db, &b->db);
}

static void
result_free(struct result *r)
{
	buf_free(&r->y);
	buf_free(&r->dx);
	buf_free(&r->dw);
	buf_free(&r->db);
}

/*
 * 8 images as four groups: at once with 1 .. 4 threads, and one group, two,
 * and one and three groups at a time.  On CUDA run after run, with as many
 * images as before: each new shape is a plan to be made there.
 */
static void
check_bits(lpo_backend *be, const char *level, enum lpo_dtype dt,
    struct lpo_conv_shape s)
{
	static const int cuts[][4] = {
		{ 1, 1, 1, 1 }, { 2, 2 }, { 1, 3 }, { 3, 1 }
	};
	struct buf x, w, dy;
	struct result all, r;
	int threads, i, j, first, same = 1;
	int64_t groups = on_cuda(be) ? s.n : 4;

	s.n = on_cuda(be) ? s.n : 8;
	x = buf_new(be, dt, x_count(&s), 1);
	w = buf_new(be, dt, w_count(&s), 2);
	dy = buf_new(be, dt, y_count(&s), 3);
	all = result_new(be, &s, dt);
	same &= run_images(be, dt, s, 0, s.n, groups, &all, &x, &w, &dy);
	for (threads = 1; threads <= repeats(be); threads++) {
		if (reopen(be, threads) != 0)
			abort();
		r = result_new(be, &s, dt);
		same &= run_images(be, dt, s, 0, s.n, groups, &r, &x, &w, &dy);
		same &= result_same(&all, &r);
		result_free(&r);
	}
	ok(same, "%s: same bits %s", text(level, dt, &s), runs(be));
	for (i = 0, same = 1; i < 4 && !on_cuda(be); i++) {
		r = result_new(be, &s, dt);
		for (j = first = 0; j < 4; first += cuts[i][j++])
			if (cuts[i][j] > 0)
				same &= run_images(be, dt, s, 2 * first,
				    2 * cuts[i][j], cuts[i][j], &r, &x, &w,
				    &dy);
		same &= result_same(&all, &r);
		result_free(&r);
	}
	if (!on_cuda(be))
		ok(same, "%s: same bits in any cut into groups",
		    text(level, dt, &s));
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	result_free(&all);
}

static struct result
result_widen(lpo_backend *cpu, const struct result *r)
{
	return (struct result){ buf_widen(cpu, &r->y), buf_widen(cpu, &r->dx),
	    buf_widen(cpu, &r->dw), buf_widen(cpu, &r->db) };
}

/* All passes, the weights' in two groups, against the CPU's in f32. */
static void
check_large(lpo_backend *be, lpo_backend *cpu, const char *level,
    enum lpo_dtype dt, struct lpo_conv_shape s)
{
	struct buf x = buf_new(be, dt, x_count(&s), 1);
	struct buf w = buf_new(be, dt, w_count(&s), 2);
	struct buf dy = buf_new(be, dt, y_count(&s), 3);
	struct buf x2 = buf_widen(cpu, &x), w2 = buf_widen(cpu, &w);
	struct buf dy2 = buf_widen(cpu, &dy);
	struct result r = result_new(be, &s, dt), q = result_new(be, &s, dt);
	struct result want = result_widen(cpu, &r);
	/* |a b| of values in -1 .. 1 is 1/4 in the mean */
	double taps = (double)(s.kh * s.kw) / 4, e[4];
	int64_t groups = s.n % 2 == 0 ? 2 : s.n;
	int good = run_images(cpu, LPO_F32, s, 0, s.n, groups, &want, &x2,
	    &w2, &dy2);

	good &= run_images(be, dt, s, 0, s.n, groups, &r, &x, &w, &dy);
	e[0] = worst_of(&r.y, &want.y, taps * (double)s.ci + 1,
	    dt == LPO_BF16 ? 2 : 0);
	e[1] = worst_of(&r.dx, &want.dx, taps * (double)s.co + 1,
	    dt == LPO_BF16);
	e[2] = worst_of(&r.dw, &want.dw, (double)(s.n * s.ho * s.wo) / 4 + 1,
	    dt == LPO_BF16 ? 1 : 0);
	e[3] = worst_of(&r.db, &want.db, (double)(s.n * s.ho * s.wo) / 2 + 1,
	    0);
	ok(good && e[0] <= 1 && e[1] <= 1 && e[2] <= 1 && e[3] <= 1,
	    "%s against the CPU: errors %.2g %.2g %.2g %.2g of the allowed",
	    text(level, dt, &s), e[0], e[1], e[2], e[3]);
	good = run_images(be, dt, s, 0, s.n, groups, &q, &x, &w, &dy);
	ok(good && result_same(&r, &q), "%s: same bits run after run",
	    text(level, dt, &s));
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	buf_free(&x2);
	buf_free(&w2);
	buf_free(&dy2);
	result_free(&r);
	result_free(&q);
	result_free(&want);
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
			check_large(be, &cpu, level, dt, large[i]);
	lpo_cpu_close(&cpu);
}

static void
one_level(lpo_backend *be, const char *level)
{
	const int count = sizeof(shapes) / sizeof(*shapes);
	struct lpo_conv_shape wide = { 8, 8, 8, 160, 160, 3, 3, 1, 1, 1, 8,
	    8 };
	enum lpo_dtype dt;
	int i;

	for (dt = LPO_F32; dt <= last_dtype(be); dt++) {
		for (i = 0; i < count; i++)
			check_shape(be, level, dt, &shapes[i]);
		for (i = 1; i < count; i++)
			check_bits(be, level, dt, shapes[i]);
		check_bits(be, level, dt, wide);
	}
	if (on_cuda(be) || be->split)
		all_large(be, level);
}

int
main(void)
{
	each_level(one_level);
	split_level(one_level);
	return done_testing();
}
