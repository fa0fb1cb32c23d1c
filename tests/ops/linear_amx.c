/*
 * The AMX linear layers with their tile operations in plain C and small
 * blocks: everything but the instructions themselves is tested on machines
 * without AMX.  (With AMX, tests/ops/gemm.c and conv.c run the real ones.)
 */
#define LPO_AMX_EMULATE
#include "kernels/linear_amx.c"
#include "tests/ops/levels.h"

struct test_case {
	int64_t m, cols, depth;
};

/* One tile and less, half pairs, several blocks and panels; odd: not tiles. */
static const struct test_case cases[] = {
	{ 1, 16, 32 }, { 16, 32, 64 }, { 17, 48, 96 }, { 33, 64, 32 },
	{ 100, 208, 160 }, { 257, 96, 64 }, { 31, 336, 320 }, { 70, 16, 352 },
	{ 5, 24, 40 }, { 40, 33, 64 }
};

struct data {
	struct buf x, w, y, more, bias;
};

static struct data
data_new(lpo_backend *be, const struct test_case *c)
{
	return (struct data){
	    buf_new(be, LPO_BF16, c->m * c->depth, 1),
	    buf_new(be, LPO_BF16, c->cols * c->depth, 2),
	    buf_new(be, LPO_BF16, c->m * c->cols, 3),
	    buf_new(be, LPO_BF16, c->m * c->cols, 4),
	    buf_new(be, LPO_F32, c->cols, 5) };
}

static void
data_free(struct data *d)
{
	buf_free(&d->x);
	buf_free(&d->w);
	buf_free(&d->y);
	buf_free(&d->more);
	buf_free(&d->bias);
}

/*
 * How a call adds: bits of `kind`.  Forward what is added may be y or lie
 * elsewhere; to x it is what is there.
 */
enum { BACK = 1, ADD = 2, ADD_Y = 4, BIAS = 8, ALPHA = 16 };

static const int kinds[] = {
	0, BIAS, ADD, BIAS | ADD, BIAS | ADD_Y, ALPHA | BIAS | ADD, BACK,
	BACK | ADD_Y, BACK | ADD_Y | ALPHA
};

/* Rows first .. first+m-1 of y, in scratch for all of c->m rows. */
static int
run_rows(lpo_backend *be, const struct test_case *c, const struct data *d,
    int kind, int64_t first, int64_t m)
{
	int64_t n = kind & BACK ? c->depth : c->cols;
	int64_t k = kind & BACK ? c->cols : c->depth;
	const uint16_t *x = (uint16_t *)d->x.p + first * c->depth;
	const uint16_t *more = (uint16_t *)d->more.p + first * c->cols;
	uint16_t *y = (uint16_t *)d->y.p + first * c->cols;
	enum lpo_pass pass = kind & BACK ? LPO_BWD_DATA : LPO_FWD;
	size_t bytes = lpo_linear_tiles_bytes(be, pass, LPO_BF16, c->m, n, k);
	struct scratch s = scratch_new(be, bytes > 0 ? bytes :
	    be->k->linear_scratch_bytes(be, pass, LPO_BF16, c->m, n, k, 1));
	float alpha = kind & ALPHA ? -0.75f : 1;
	int rc;

	if (kind & BACK)
		rc = lpo_linear_bwd_data_amx(be, LPO_BF16, y, x, d->w.p, m, n,
		    k, alpha, kind & ADD_Y, s.p);
	else
		rc = lpo_linear_fwd_amx(be, LPO_BF16, y, x, d->w.p,
		    kind & BIAS ? d->bias.p : NULL, kind & ADD ? more :
		    kind & ADD_Y ? y : NULL, m, n, k, alpha, s.p);
	return scratch_done(&s) && rc == 0;
}

/* How far y is from f64, as a share of what is allowed. */
static double
error_of(const struct test_case *c, const struct data *d, int kind)
{
	double *want = calloc((size_t)d->y.count * 3, sizeof(double)), e;
	double *magnitude = want + d->y.count, *added;
	int64_t i, j, l, at;

	if (want == NULL)
		abort();
	added = magnitude + d->y.count;
	for (i = 0; i < c->m; i++)
		for (j = 0; j < c->cols; j++) {
			double s = 0, t = 0, x, alpha = kind & ALPHA ?
			    -0.75 : 1;

			for (l = 0; l < c->depth; l++) {
				x = d->x.v[i * c->depth + l] * (kind & BACK ?
				    d->w.v[l * c->cols + j] :
				    d->w.v[j * c->depth + l]);
				s += x;
				t += fabs(x);
			}
			at = i * c->cols + j;
			x = kind & ADD ? d->more.v[at] : kind & ADD_Y ?
			    d->y.v[at] : 0;
			added[at] = fabs(x);
			x += kind & BIAS ? d->bias.v[j] : 0;
			added[at] += kind & BIAS ? fabs(d->bias.v[j]) : 0;
			want[at] = alpha * s + x;
			magnitude[at] = fabs(alpha) * t + added[at];
		}
	e = worst(&d->y, want, magnitude, added);
	free(want);
	return e;
}

/* The bits of one thread with 2 to 4, and of rows some at a time. */
static int
same_bits(lpo_backend *be, const struct test_case *c, const struct data *d,
    int kind)
{
	struct data r = *d;
	int64_t i, some;
	int good = 1;

	r.y = buf_new(be, LPO_BF16, d->y.count, 3);
	for (be->threads = 2; be->threads <= 4; be->threads++) {
		buf_reset(&r.y);
		good &= run_rows(be, c, &r, kind, 0, c->m) &&
		    buf_same(&d->y, &r.y);
	}
	be->threads = 3;
	for (some = 1; some < c->m; some = some * 3 + 2) {
		buf_reset(&r.y);
		for (i = 0; i < c->m; i += some)
			good &= run_rows(be, c, &r, kind, i, min64(some,
			    c->m - i));
		good &= buf_same(&d->y, &r.y);
	}
	buf_free(&r.y);
	return good;
}

static void
check_case(lpo_backend *be, const struct test_case *c, int kind)
{
	struct data d = data_new(be, c);
	double e;
	int good;

	/* NaN where nothing is read */
	if ((kind & ADD_Y) == 0)
		buf_poison(&d.y);
	be->threads = 1;
	good = run_rows(be, c, &d, kind, 0, c->m);
	e = error_of(c, &d, kind);
	ok(good && e <= 1 && guard_whole(&d.y), "emulated %s%s%s%s "
	    "%dx%dx%d: error %.2g of what is allowed", kind & BACK ? "to x" :
	    "forward", kind & BIAS ? " + bias" : "", kind & (ADD | ADD_Y) ?
	    " + another" : "", kind & ALPHA ? ", alpha" : "", (int)c->m,
	    (int)c->cols, (int)c->depth, e);
	ok(same_bits(be, c, &d, kind), "the same bits for any threads and "
	    "rows");
	data_free(&d);
}

/* 1x1 convolutions are linear layers. */
static void
check_conv(lpo_backend *be)
{
	struct lpo_conv_shape s = { 2, 5, 7, 64, 96, 1, 1, 1, 0, 0, 5, 7 };
	struct test_case c = { 2 * 5 * 7, 96, 64 }, back = { 2 * 5 * 7, 64,
	    96 };
	struct data d = data_new(be, &c), b = data_new(be, &back);
	struct scratch t = scratch_new(be, lpo_linear_tiles_bytes(be, LPO_FWD,
	    LPO_BF16, c.m, c.cols, c.depth));
	struct scratch u = scratch_new(be, lpo_linear_tiles_bytes(be,
	    LPO_BWD_DATA, LPO_BF16, c.m, c.cols, c.depth));

	ok(lpo_conv_fwd_amx(be, LPO_BF16, d.y.p, d.x.p, d.w.p, d.bias.p,
	    d.more.p, &s, t.p) == 0 && error_of(&c, &d, BIAS | ADD) <= 1 &&
	    scratch_done(&t), "emulated 1x1 convolution");
	ok(lpo_conv_bwd_data_amx(be, LPO_BF16, b.y.p, b.x.p, b.w.p, &s, 1,
	    u.p) == 0 && error_of(&back, &b, BACK | ADD_Y) <= 1 &&
	    scratch_done(&u), "emulated 1x1 convolution, to x");
	data_free(&d);
	data_free(&b);
}

int
main(void)
{
	lpo_backend be;
	size_t i, j;

	if (!ok(lpo_cpu_open(&be, LPO_ISA_PORTABLE, 4) == 0, "open"))
		return done_testing();
	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		for (j = 0; j < sizeof(kinds) / sizeof(*kinds); j++)
			check_case(&be, &cases[i], kinds[j]);
	check_conv(&be);
	lpo_cpu_close(&be);
	return done_testing();
}
