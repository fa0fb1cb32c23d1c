/*
 * The AMX linear layers, of bf16 and of split f32, with their tile operations
 * in plain C and small blocks: everything but the instructions themselves is
 * tested on machines without AMX.  (With AMX, tests/ops/gemm.c and conv.c run
 * the real ones.)
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

/* f32 where it is split. */
static enum lpo_dtype
dtype(const lpo_backend *be)
{
	return be->split ? LPO_F32 : LPO_BF16;
}

static const char *
name(const lpo_backend *be)
{
	return be->split ? "split" : "bf16";
}

static struct data
data_new(lpo_backend *be, const struct test_case *c)
{
	enum lpo_dtype dt = dtype(be);

	return (struct data){ buf_new(be, dt, c->m * c->depth, 1),
	    buf_new(be, dt, c->cols * c->depth, 2),
	    buf_new(be, dt, c->m * c->cols, 3),
	    buf_new(be, dt, c->m * c->cols, 4),
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
	enum lpo_dtype dt = dtype(be);
	const void *x = elem(dt, d->x.p, first * c->depth);
	const void *more = elem(dt, d->more.p, first * c->cols);
	void *y = elem(dt, d->y.p, first * c->cols);
	enum lpo_pass pass = kind & BACK ? LPO_BWD_DATA : LPO_FWD;
	size_t bytes = lpo_linear_tiles_bytes(be, pass, dt, c->m, n, k);
	struct scratch s = scratch_new(be, bytes > 0 ? bytes :
	    be->k->linear_scratch_bytes(be, pass, dt, c->m, n, k, 1));
	float alpha = kind & ALPHA ? -0.75f : 1;
	int rc;

	if (kind & BACK)
		rc = lpo_linear_bwd_data_amx(be, dt, y, x, d->w.p, m, n, k,
		    alpha, kind & ADD_Y, s.p);
	else
		rc = lpo_linear_fwd_amx(be, dt, y, x, d->w.p,
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

	r.y = buf_new(be, dtype(be), d->y.count, 3);
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
	ok(good && e <= 1 && guard_whole(&d.y), "emulated %s %s%s%s%s "
	    "%dx%dx%d: error %.2g of what is allowed", name(be), kind & BACK ?
	    "to x" : "forward", kind & BIAS ? " + bias" : "",
	    kind & (ADD | ADD_Y) ? " + another" : "",
	    kind & ALPHA ? ", alpha" : "", (int)c->m,
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
	enum lpo_dtype dt = dtype(be);
	struct scratch t = scratch_new(be, lpo_linear_tiles_bytes(be, LPO_FWD,
	    dt, c.m, c.cols, c.depth));
	struct scratch u = scratch_new(be, lpo_linear_tiles_bytes(be,
	    LPO_BWD_DATA, dt, c.m, c.cols, c.depth));

	ok(lpo_conv_fwd_amx(be, dt, d.y.p, d.x.p, d.w.p, d.bias.p, d.more.p,
	    &s, t.p) == 0 && error_of(&c, &d, BIAS | ADD) <= 1 &&
	    scratch_done(&t), "emulated %s 1x1 convolution", name(be));
	ok(lpo_conv_bwd_data_amx(be, dt, b.y.p, b.x.p, b.w.p, &s, 1, u.p) ==
	    0 && error_of(&back, &b, BACK | ADD_Y) <= 1 && scratch_done(&u),
	    "emulated %s 1x1 convolution, to x", name(be));
	data_free(&d);
	data_free(&b);
}

/* x = hi + lo and 2^-17 of x; what is not finite does not get lost. */
static void
check_split(void)
{
	static const float values[] = { 1, -1, 1.00390625f, 1.00390637f,
	    -0.333333343f, 3.14159274f, 1.99999988f, 1e-30f, -65535.9f,
	    3.38e38f, 0, -0.f, INFINITY, -INFINITY, NAN, 1e-45f };
	uint16_t hi[2 * TILE], lo[2 * TILE];
	float x[2 * TILE], odd;
	uint32_t u = 0x7f800001;
	int good = 1, i;
	double sum;

	memcpy(x, values, sizeof(values));
	for (i = 0; i < TILE; i++)
		x[TILE + i] = values[TILE - 1 - i];
	split_pairs(hi, lo, x, x + TILE);
	for (i = 0; i < 2 * TILE; i++) {
		odd = x[i % 2 * TILE + i / 2];
		sum = (double)bf16_to_f32(hi[i]) + bf16_to_f32(lo[i]);
		good &= isnan(odd) ? isnan(sum) : isinf(odd) ? sum == odd :
		    fabs(sum - odd) <= ldexp(fabs(odd), -17) + 1e-40;
	}
	ok(good, "hi and lo are x but for 2^-17 of it; Inf and NaN stay");
	for (i = 0; i < TILE; i++)
		memcpy(&x[i], &u, sizeof(u));
	split_pairs(hi, lo, x, x);
	ok(!isfinite(bf16_to_f32(hi[0])), "a NaN of low bits is not lost");
}

/* One Inf and one NaN in x, and in w: in all that they are in, not besides. */
static void
check_special(lpo_backend *be)
{
	struct test_case c = { 40, 48, 64 };
	struct data d = data_new(be, &c);
	int64_t i, j, good = 1;

	put(&d.x, 3 * c.depth + 40, INFINITY);
	put(&d.x, 35 * c.depth + 5, NAN);
	put(&d.w, 20 * c.depth + 33, -INFINITY);
	good &= run_rows(be, &c, &d, 0, 0, c.m);
	for (i = 0; i < c.m; i++)
		for (j = 0; j < c.cols; j++)
			good &= (isfinite(get(&d.y, i * c.cols + j)) != 0) ==
			    (i != 3 && i != 35 && j != 20);
	ok(good, "emulated %s: Inf and NaN go where they belong", name(be));
	data_free(&d);
}

int
main(void)
{
	lpo_backend be;
	size_t i, j;

	if (!ok(lpo_cpu_open(&be, LPO_ISA_PORTABLE, 4) == 0, "open"))
		return done_testing();
	ok(lpo_cpu_split(&be) == LPO_ENODEV, "no splitting without AMX");
	check_split();
	for (be.split = 0; be.split < 2; be.split++) {
		for (i = 0; i < sizeof(cases) / sizeof(*cases); i++)
			for (j = 0; j < sizeof(kinds) / sizeof(*kinds); j++)
				check_case(&be, &cases[i], kinds[j]);
		check_conv(&be);
		check_special(&be);
	}
	lpo_cpu_close(&be);
	return done_testing();
}
