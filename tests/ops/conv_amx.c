/*
 * The AMX convolutions, of bf16 and of split f32, with their tile operations
 * in plain C and small blocks: everything but the instructions themselves is
 * tested on machines without AMX.  (With AMX, tests/ops/conv.c runs the real
 * ones.)
 */
#define LPO_AMX_EMULATE
#include "kernels/conv_amx.c"
#include "tests/ops/levels.h"

/* images, height, width, channels of x and of y */
static const int64_t cases[][5] = {
	{ 1, 1, 1, 16, 16 },		/* one pixel */
	{ 3, 4, 4, 80, 48 },		/* an image is a run of tiles */
	{ 2, 16, 16, 64, 32 },		/* a line is a tile */
	{ 5, 8, 8, 40, 70 },		/* odd channels; bands of images */
	{ 2, 7, 9, 17, 35 },
	{ 1, 40, 32, 20, 65 },		/* bands of lines */
	{ 2, 33, 5, 130, 33 },		/* the same of several images */
	{ 1, 3, 50, 200, 16 },		/* sums of several blocks */
	{ 7, 1, 2, 16, 130 },
	{ 1, 6, 6, 33, 16 }
};

static struct lpo_conv_shape
shape(const int64_t *c)
{
	return (struct lpo_conv_shape){ c[0], c[1], c[2], c[3], c[4], 3, 3, 1,
	    1, 1, c[1], c[2] };
}

static int64_t
x_count(const struct lpo_conv_shape *s)
{
	return s->n * s->h * s->w * s->ci;
}

static int64_t
y_count(const struct lpo_conv_shape *s)
{
	return s->n * s->h * s->w * s->co;
}

/* f32 where it is split. */
static enum lpo_dtype
type_of(const lpo_backend *be)
{
	return be->split ? LPO_F32 : LPO_BF16;
}

static const char *
text(const lpo_backend *be, const struct lpo_conv_shape *s)
{
	static char t[128];

	snprintf(t, sizeof(t), "emulated %s 3x3 on %dx%dx%dx%d to %d",
	    be->split ? "split" : "bf16", (int)s->n, (int)s->h, (int)s->w,
	    (int)s->ci, (int)s->co);
	return t;
}

struct sum {
	double *v, *magnitude, *added;
};

static struct sum
sum_new(int64_t n)
{
	struct sum s = { calloc((size_t)n, sizeof(double)),
	    calloc((size_t)n, sizeof(double)),
	    calloc((size_t)n, sizeof(double)) };

	if (s.v == NULL || s.magnitude == NULL || s.added == NULL)
		abort();
	return s;
}

static void
sum_free(struct sum *s)
{
	free(s->v);
	free(s->magnitude);
	free(s->added);
}

static void
add(struct sum *s, int64_t i, double x)
{
	s->v[i] += x;
	s->magnitude[i] += fabs(x);
}

/* What is there besides products, which the result is rounded with. */
static void
add_other(struct sum *s, int64_t i, double x)
{
	add(s, i, x);
	s->added[i] += fabs(x);
}

/* Pixel `in` of x and `out` of y under a tap: y += w x, dx += w dy. */
static void
add_tap(struct sum *y, struct sum *dx, const struct lpo_conv_shape *s,
    const struct buf *x, const struct buf *w, const struct buf *dy,
    int64_t in, int64_t out, int64_t tap)
{
	int64_t o, c;
	double v;

	for (o = 0; o < s->co; o++)
		for (c = 0; c < s->ci; c++) {
			v = w->v[(o * 9 + tap) * s->ci + c];
			add(y, out * s->co + o, v * x->v[in * s->ci + c]);
			add(dx, in * s->ci + c, v * dy->v[out * s->co + o]);
		}
}

static void
reference(struct sum *y, struct sum *dx, const struct lpo_conv_shape *s,
    const struct buf *x, const struct buf *w, const struct buf *dy)
{
	int64_t out, tap, i, j;

	for (out = 0; out < s->n * s->h * s->w; out++)
		for (tap = 0; tap < 9; tap++) {
			i = out / s->w % s->h + tap / 3 - 1;
			j = out % s->w + tap % 3 - 1;
			if (i >= 0 && i < s->h && j >= 0 && j < s->w)
				add_tap(y, dx, s, x, w, dy, (out / (s->h *
				    s->w) * s->h + i) * s->w + j, out, tap);
		}
}

/* Images first .. first+n-1: y = conv(x) + bias + y, dx += conv^T(dy) */
static int
run_images(lpo_backend *be, struct lpo_conv_shape s, int64_t first, int64_t n,
    const struct buf *y, const struct buf *dx, const struct buf *x,
    const struct buf *w, const struct buf *dy, const struct buf *bias)
{
	int64_t at_x = first * s.h * s.w * s.ci, at_y = first * s.h * s.w *
	    s.co;
	enum lpo_dtype dt = type_of(be);
	void *to = elem(dt, y->p, at_y), *dto = elem(dt, dx->p, at_x);
	struct scratch f, b;
	int rc;

	s.n = n;
	f = scratch_new(be, lpo_conv_tiles_bytes(be, LPO_FWD, dt, &s));
	b = scratch_new(be, lpo_conv_tiles_bytes(be, LPO_BWD_DATA, dt, &s));
	rc = lpo_conv_tiles(be, LPO_FWD, dt, to, elem(dt, x->p, at_x), w->p,
	    bias->p, to, &s, f.p);
	rc &= lpo_conv_tiles(be, LPO_BWD_DATA, dt, dto, elem(dt, dy->p, at_y),
	    w->p, NULL, dto, &s, b.p);
	return (rc == 1) & scratch_done(&f) & scratch_done(&b);
}

/* Neither bias nor residual; dx is set. */
static int
run_plain(lpo_backend *be, const struct lpo_conv_shape *s,
    const struct buf *y, const struct buf *dx, const struct buf *x,
    const struct buf *w, const struct buf *dy)
{
	enum lpo_dtype dt = type_of(be);
	struct scratch f = scratch_new(be, lpo_conv_tiles_bytes(be, LPO_FWD,
	    dt, s));
	struct scratch b = scratch_new(be, lpo_conv_tiles_bytes(be,
	    LPO_BWD_DATA, dt, s));
	int rc = lpo_conv_tiles(be, LPO_FWD, dt, y->p, x->p, w->p, NULL, NULL,
	    s, f.p);

	rc &= lpo_conv_tiles(be, LPO_BWD_DATA, dt, dx->p, dy->p, w->p, NULL,
	    NULL, s, b.p);
	return (rc == 1) & scratch_done(&f) & scratch_done(&b);
}

static void
check_case(lpo_backend *be, const int64_t *c)
{
	struct lpo_conv_shape s = shape(c);
	enum lpo_dtype dt = type_of(be);
	struct buf x = buf_new(be, dt, x_count(&s), 1);
	struct buf w = buf_new(be, dt, s.co * 9 * s.ci, 2);
	struct buf dy = buf_new(be, dt, y_count(&s), 3);
	struct buf y = buf_new(be, dt, y_count(&s), 4);
	struct buf dx = buf_new(be, dt, x_count(&s), 5);
	struct buf bias = buf_new(be, LPO_F32, s.co, 6);
	struct buf y2 = buf_new(be, dt, y_count(&s), 4);
	struct buf dx2 = buf_new(be, dt, x_count(&s), 5);
	struct sum sy = sum_new(y.count), sx = sum_new(dx.count);
	double e, f;
	int64_t i;
	int good;

	be->threads = 1;
	reference(&sy, &sx, &s, &x, &w, &dy);
	buf_poison(&y);
	buf_poison(&dx);
	good = run_plain(be, &s, &y, &dx, &x, &w, &dy);
	e = worst(&y, sy.v, sy.magnitude, NULL);
	f = worst(&dx, sx.v, sx.magnitude, NULL);
	ok(good && e <= 1 && f <= 1 && guard_whole(&y) && guard_whole(&dx),
	    "%s: errors %.2g %.2g of what is allowed", text(be, &s), e, f);
	buf_reset(&y);
	buf_reset(&dx);
	for (i = 0; i < y.count; i++) {
		add_other(&sy, i, y.v[i]);
		add_other(&sy, i, bias.v[i % s.co]);
	}
	for (i = 0; i < dx.count; i++)
		add_other(&sx, i, dx.v[i]);
	good = run_images(be, s, 0, s.n, &y, &dx, &x, &w, &dy, &bias);
	e = worst(&y, sy.v, sy.magnitude, sy.added);
	f = worst(&dx, sx.v, sx.magnitude, sx.added);
	ok(good && e <= 1 && f <= 1 && guard_whole(&y) && guard_whole(&dx),
	    "%s, added: errors %.2g %.2g of what is allowed", text(be, &s), e,
	    f);
	for (be->threads = 2; be->threads <= 4; be->threads++) {
		buf_reset(&y2);
		buf_reset(&dx2);
		good &= run_images(be, s, 0, s.n, &y2, &dx2, &x, &w, &dy,
		    &bias) && buf_same(&y, &y2) && buf_same(&dx, &dx2);
	}
	be->threads = 4;
	buf_reset(&y2);
	buf_reset(&dx2);
	for (i = 0; i < s.n; i++)
		good &= run_images(be, s, i, 1, &y2, &dx2, &x, &w, &dy, &bias);
	good &= buf_same(&y, &y2) && buf_same(&dx, &dx2);
	ok(good, "%s: same bits for any threads and images", text(be, &s));
	buf_free(&x);
	buf_free(&w);
	buf_free(&dy);
	buf_free(&y);
	buf_free(&dx);
	buf_free(&bias);
	buf_free(&y2);
	buf_free(&dx2);
	sum_free(&sy);
	sum_free(&sx);
}

int
main(void)
{
	lpo_backend be;
	size_t i;

	if (!ok(lpo_cpu_open(&be, LPO_ISA_PORTABLE, 4) == 0, "open"))
		return done_testing();
	for (be.split = 0; be.split < 2; be.split++)
		for (i = 0; i < sizeof(cases) / sizeof(*cases); i++)
			check_case(&be, cases[i]);
	lpo_cpu_close(&be);
	return done_testing();
}
