/*
 * The AMX gradients of weights with their tile operations in plain C and small
 * blocks: everything but the instructions themselves is tested on machines
 * without AMX.  (With AMX, tests/ops/conv.c and gemm.c run the real ones.)
 */
#define LPO_AMX_EMULATE
#include "kernels/gradient_amx.c"
#include "tests/ops/levels.h"

struct test_case {
	/* n, h, w, ci, co, kh, kw, stride, pad_top, pad_left, ho, wo */
	struct lpo_conv_shape s;
	int64_t groups;
};

/* Of a single line of pixels under 1x1: linear layers. */
static const struct test_case cases[] = {
	{ { 2, 1, 65, 600, 97, 1, 1, 1, 0, 0, 1, 65 }, 2 },
	{ { 1, 1, 257, 65, 33, 1, 1, 1, 0, 0, 1, 257 }, 1 },
	{ { 3, 1, 32, 160, 4, 1, 1, 1, 0, 0, 1, 32 }, 3 },
	{ { 3, 1, 33, 4, 160, 1, 1, 1, 0, 0, 1, 33 }, 3 },
	{ { 6, 1, 8, 48, 48, 1, 1, 1, 0, 0, 1, 8 }, 6 },
	{ { 4, 7, 9, 5, 11, 3, 3, 1, 1, 1, 7, 9 }, 2 },
	{ { 3, 13, 11, 70, 100, 3, 3, 1, 1, 1, 13, 11 }, 3 },
	{ { 2, 8, 8, 48, 33, 3, 3, 1, 1, 1, 8, 8 }, 1 },
	{ { 4, 8, 8, 40, 56, 3, 3, 2, 1, 1, 4, 4 }, 2 },
	{ { 4, 6, 5, 33, 20, 1, 1, 2, 0, 0, 3, 3 }, 1 },
	{ { 2, 7, 10, 3, 17, 3, 3, 2, 0, 0, 3, 5 }, 1 },
	{ { 2, 12, 12, 96, 160, 1, 1, 1, 0, 0, 12, 12 }, 2 },
	{ { 1, 5, 6, 7, 9, 2, 5, 1, 0, 3, 6, 8 }, 1 },
	{ { 2, 3, 3, 64, 64, 3, 3, 1, 3, 3, 7, 7 }, 2 },
	{ { 1, 9, 30, 20, 17, 5, 4, 2, 2, 1, 5, 15 }, 1 },
	{ { 2, 28, 28, 3, 19, 14, 14, 14, 0, 0, 2, 2 }, 1 }
};

static int64_t
w_count(const struct lpo_conv_shape *s)
{
	return s->co * s->kh * s->kw * s->ci;
}

static const char *
text(const struct test_case *c)
{
	static char t[128];

	snprintf(t, sizeof(t), "emulated %dx%d/%d on %dx%dx%dx%d to %d",
	    (int)c->s.kh, (int)c->s.kw, (int)c->s.stride, (int)c->s.n,
	    (int)c->s.h, (int)c->s.w, (int)c->s.ci, (int)c->s.co);
	return t;
}

/* want[co][tap][ci] += alpha dy x, and its absolute value, of one tap. */
static void
add_tap(double *want, double *magnitude, const struct lpo_conv_shape *s,
    const double *dy, const double *x, int64_t tap, double alpha)
{
	int64_t o, c, i;

	for (o = 0; o < s->co; o++)
		for (c = 0; c < s->ci; c++) {
			i = (o * s->kh * s->kw + tap) * s->ci + c;
			want[i] += alpha * dy[o] * x[c];
			magnitude[i] += fabs(alpha * dy[o] * x[c]);
		}
}

static void
reference(double *want, double *magnitude, const struct lpo_conv_shape *s,
    const struct buf *dy, const struct buf *x, double alpha)
{
	int64_t out, tap, y, z, n;

	for (out = 0; out < s->n * s->ho * s->wo; out++)
		for (tap = 0; tap < s->kh * s->kw; tap++) {
			n = out / (s->ho * s->wo);
			y = out / s->wo % s->ho * s->stride - s->pad_top +
			    tap / s->kw;
			z = out % s->wo * s->stride - s->pad_left +
			    tap % s->kw;
			if (y >= 0 && y < s->h && z >= 0 && z < s->w)
				add_tap(want, magnitude, s, dy->v + out *
				    s->co, x->v + ((n * s->h + y) * s->w + z) *
				    s->ci, tap, alpha);
		}
}

/* Images first .. first+n-1 in `groups`; linear layers with an alpha. */
static int
run_images(lpo_backend *be, struct lpo_conv_shape s, int64_t first, int64_t n,
    int64_t groups, const struct buf *dw, const struct buf *db,
    const struct buf *dy, const struct buf *x)
{
	const uint16_t *y0 = (uint16_t *)dy->p + first * s.ho * s.wo * s.co;
	const uint16_t *x0 = (uint16_t *)x->p + first * s.h * s.w * s.ci;
	int64_t m = n * s.w;
	struct scratch w;
	int rc;

	s.n = n;
	if (s.h == 1 && s.kh * s.kw == 1) {
		w = scratch_new(be, lpo_linear_scratch_bytes_amx(be,
		    LPO_BWD_WEIGHT, LPO_BF16, m, s.co, s.ci, groups));
		rc = lpo_linear_bwd_weight_amx(be, LPO_BF16, dw->p, db->p, y0,
		    x0, m, s.co, s.ci, 0.75f, groups, w.p);
	} else {
		w = scratch_new(be, lpo_conv_scratch_bytes_amx(be,
		    LPO_BWD_WEIGHT, LPO_BF16, &s, groups));
		rc = lpo_conv_bwd_weight_amx(be, LPO_BF16, dw->p, db->p, y0,
		    x0, &s, groups, w.p);
	}
	return scratch_done(&w) && rc == 0;
}

static int
run_all(lpo_backend *be, const struct test_case *c, const struct buf *dw,
    const struct buf *db, const struct buf *dy, const struct buf *x)
{
	return run_images(be, c->s, 0, c->s.n, c->groups, dw, db, dy, x);
}

/* 2 to 4 threads, and one group at a time: the bits of one thread. */
static int
same_bits(lpo_backend *be, const struct test_case *c, const struct buf *dw,
    const struct buf *dy, const struct buf *x)
{
	struct buf b = buf_new(be, LPO_F32, dw->count, 3);
	struct buf db = buf_new(be, LPO_F32, c->s.co, 4);
	int64_t per = c->s.n / c->groups, g;
	int good = 1;

	for (be->threads = 2; be->threads <= 4; be->threads++) {
		buf_reset(&b);
		good &= run_all(be, c, &b, &db, dy, x) && buf_same(dw, &b);
	}
	be->threads = 4;
	buf_reset(&b);
	for (g = 0; g < c->groups; g++)
		good &= run_images(be, c->s, g * per, per, 1, &b, &db, dy, x);
	good &= buf_same(dw, &b);
	buf_free(&b);
	buf_free(&db);
	return good;
}

static void
check_case(lpo_backend *be, const struct test_case *c)
{
	const struct lpo_conv_shape *s = &c->s;
	struct buf x = buf_new(be, LPO_BF16, s->n * s->h * s->w * s->ci, 1);
	struct buf dy = buf_new(be, LPO_BF16, s->n * s->ho * s->wo * s->co, 2);
	struct buf dw = buf_new(be, LPO_F32, w_count(s), 3);
	struct buf db = buf_new(be, LPO_F32, s->co, 4);
	double *want = malloc((size_t)dw.count * sizeof(double));
	double *magnitude = malloc((size_t)dw.count * sizeof(double)), e;
	int64_t i;
	int good;

	if (want == NULL || magnitude == NULL)
		abort();
	for (i = 0; i < dw.count; i++) {
		want[i] = dw.v[i];
		magnitude[i] = fabs(dw.v[i]);
	}
	reference(want, magnitude, s, &dy, &x, s->h == 1 ? 0.75 : 1);
	be->threads = 1;
	good = run_all(be, c, &dw, &db, &dy, &x);
	e = worst(&dw, want, magnitude, NULL);
	ok(good && e <= 1 && guard_whole(&dw), "%s: error %.2g of what is "
	    "allowed", text(c), e);
	ok(same_bits(be, c, &dw, &dy, &x), "%s: same bits for any threads "
	    "and cut into groups", text(c));
	buf_free(&x);
	buf_free(&dy);
	buf_free(&dw);
	buf_free(&db);
	free(want);
	free(magnitude);
}

static void
all(lpo_backend *be)
{
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		check_case(be, &cases[i]);
}

int
main(void)
{
	return emulated(all);
}
