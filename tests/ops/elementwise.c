/* Flat ops: values against f64, slopes by central differences, bits. */
#include "tests/ops/levels.h"

/* The last ones are for CUDA: more than its threads at once. */
static const int64_t counts[] = { 1, 7, 257, 8192, 70001, 2621440, 2621443 };

static int
ncounts(const lpo_backend *be)
{
	return on_cuda(be) ? 7 : 5;
}

static double
act(enum lpo_act f, double x)
{
	switch (f) {
	case LPO_SILU:
		return x / (1 + exp(-x));
	case LPO_GELU:
		return 0.5 * x * erfc(-x / sqrt(2));
	case LPO_QUICK_GELU:
		return x / (1 + exp(-1.702 * x));
	case LPO_RELU:
		return x > 0 ? x : 0;
	}
	return NAN;
}

static double
slope(enum lpo_act f, double x)
{
	if (f == LPO_RELU)
		return x > 0;
	return (act(f, x + 1e-5) - act(f, x - 1e-5)) / 2e-5;
}

/* Largest error of b in units of 1e-6 (|want| + 1), and bf16 rounding. */
static double
off(const struct buf *b, const double *want)
{
	double bad = 0, e;
	int64_t i;

	for (i = 0; i < b->count; i++) {
		e = fabs(get(b, i) - want[i]) / (1e-6 * (fabs(want[i]) + 1) +
		    (b->dt == LPO_BF16 ? fabs(want[i]) / 256 : 0));
		bad = worse(bad, e);
	}
	return guard_whole(b) ? bad : INFINITY;
}

/* Values -8 .. 8, exact in bf16. */
static struct buf
wide_new(lpo_backend *be, enum lpo_dtype dt, int64_t count, uint32_t seed)
{
	struct buf b = buf_new(be, dt, count, seed);
	int64_t i;

	for (i = 0; i < count; i++)
		b.v[i] *= 8;
	buf_reset(&b);
	return b;
}

static void
test_act(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	static const char *const names[] = { "silu", "gelu", "quick gelu",
	    "relu" };
	double fwd, bwd, *want;
	struct buf x, y, dx;
	int64_t n, j;
	int f, i, add;

	for (f = LPO_SILU; f <= (int)LPO_RELU; f++) {
		fwd = bwd = 0;
		for (i = 0; i < ncounts(be); i++) {
			n = counts[i];
			x = wide_new(be, dt, n, 1);
			y = buf_new(be, dt, n, 2);
			dx = buf_new(be, dt, n, 3);
			want = malloc((size_t)n * sizeof(double));
			for (add = 0; add < 2; add++) {
				buf_start(&dx, add);
				be->k->act_bwd(be, dt, f, dx.p, y.p, x.p, n,
				    add);
				for (j = 0; j < n; j++)
					want[j] = start_of(&dx, j, add) +
					    y.v[j] * slope(f, x.v[j]);
				bwd = worse(bwd, off(&dx, want));
			}
			buf_poison(&y);
			be->k->act_fwd(be, dt, f, y.p, x.p, n);
			for (j = 0; j < n; j++)
				want[j] = act(f, x.v[j]);
			fwd = worse(fwd, off(&y, want));
			free(want);
			buf_free(&x);
			buf_free(&y);
			buf_free(&dx);
		}
		ok(fwd <= 1 && bwd <= 1, "%s %s %s: %.2f and %.2f of the "
		    "allowed", level, lpo_dtype_name(dt), names[f], fwd, bwd);
	}
}

static void
test_geglu(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	static const int64_t shapes[][2] = { { 1, 1 }, { 3, 37 }, { 5, 64 },
	    { 300, 160 }, { 2048, 1280 }, { 515, 2563 } };
	double fwd = 0, bwd = 0, *want, a, g;
	struct buf x, y, dx;
	int64_t m, c, r, j, k;
	int i, add;

	for (i = 0; i < (on_cuda(be) ? 6 : 4); i++) {
		m = shapes[i][0];
		c = shapes[i][1];
		x = wide_new(be, dt, 2 * m * c, 1);
		dx = buf_new(be, dt, 2 * m * c, 2);
		y = buf_new(be, dt, m * c, 3);
		want = malloc((size_t)(2 * m * c) * sizeof(double));
		for (add = 0; add < 2; add++) {
			buf_start(&dx, add);
			be->k->geglu_bwd(be, dt, dx.p, y.p, x.p, m, c, add);
			for (r = 0; r < m * c; r++) {
				k = r / c * 2 * c + r % c;
				a = x.v[k];
				g = x.v[k + c];
				want[k] = start_of(&dx, k, add) + y.v[r] *
				    act(LPO_GELU, g);
				want[k + c] = start_of(&dx, k + c, add) +
				    y.v[r] * a * slope(LPO_GELU, g);
			}
			bwd = worse(bwd, off(&dx, want));
		}
		buf_poison(&y);
		be->k->geglu_fwd(be, dt, y.p, x.p, m, c);
		for (r = 0; r < m; r++)
			for (j = 0; j < c; j++)
				want[r * c + j] = x.v[2 * r * c + j] *
				    act(LPO_GELU, x.v[(2 * r + 1) * c + j]);
		fwd = worse(fwd, off(&y, want));
		free(want);
		buf_free(&x);
		buf_free(&y);
		buf_free(&dx);
	}
	ok(fwd <= 1 && bwd <= 1, "%s %s geglu: %.2f and %.2f of the allowed",
	    level, lpo_dtype_name(dt), fwd, bwd);
}

static void
test_sums(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	double add = 0, acc = 0, *want;
	struct buf a, b, y;
	int64_t n, j;
	int i;

	for (i = 0; i < ncounts(be); i++) {
		n = counts[i];
		a = buf_new(be, dt, n, 1);
		b = buf_new(be, dt, n, 2);
		y = buf_new(be, dt, n, 3);
		want = malloc((size_t)n * sizeof(double));
		be->k->acc(be, dt, y.p, a.p, n);
		for (j = 0; j < n; j++)
			want[j] = y.v[j] + a.v[j];
		acc = worse(acc, off(&y, want));
		buf_poison(&y);
		be->k->add(be, dt, y.p, a.p, b.p, n);
		for (j = 0; j < n; j++)
			want[j] = a.v[j] + b.v[j];
		add = worse(add, off(&y, want));
		free(want);
		buf_free(&a);
		buf_free(&b);
		buf_free(&y);
	}
	ok(add <= 1 && acc <= 1, "%s %s add, acc: %.2f and %.2f of the "
	    "allowed", level, lpo_dtype_name(dt), add, acc);
}

static void
test_guide(lpo_backend *be, const char *level)
{
	enum { GROUPS = 3, R = 2, C = 19 };
	struct buf x = buf_new(be, LPO_F32, 2 * GROUPS * R * C, 1), y, dx;
	double want[2 * GROUPS * R * C], e;
	const double g = 7.5;
	int64_t k, j, c, u;
	int add;

	y = buf_new(be, LPO_F32, GROUPS * R * C, 2);
	dx = buf_new(be, LPO_F32, 2 * GROUPS * R * C, 3);
	for (add = 0, e = 0; add < 2; add++) {
		buf_start(&dx, add);
		be->k->guide_bwd(be, dx.p, y.p, (float)g, GROUPS, R, C, add);
		for (k = 0; k < GROUPS * R * C; k++) {
			c = k / (R * C) * 2 * R * C + k % (R * C);
			u = c + R * C;
			want[c] = start_of(&dx, c, add) + g * y.v[k];
			want[u] = start_of(&dx, u, add) + (1 - g) * y.v[k];
		}
		e = worse(e, off(&dx, want));
	}
	buf_poison(&y);
	be->k->guide_fwd(be, y.p, x.p, (float)g, GROUPS, R, C);
	for (k = 0; k < GROUPS; k++)
		for (j = 0; j < R * C; j++) {
			c = 2 * k * R * C + j;
			u = c + R * C;
			want[k * R * C + j] = x.v[u] + g * (x.v[c] - x.v[u]);
		}
	e = worse(e, off(&y, want));
	ok(e <= 1, "%s guide: %.2f of the allowed", level, e);
	buf_free(&x);
	buf_free(&y);
	buf_free(&dx);
}

/* f32 -> each type -> f32 and f32 += each type, judged by its epsilon. */
static void
test_convert(lpo_backend *be, const char *level)
{
	static const enum lpo_dtype types[] = { LPO_F32, LPO_BF16, LPO_F16 };
	static const double eps[] = { 0, 1.0 / 256, 1.0 / 2048 };
	enum { N = 40003 };
	float *x = guarded(be, N * 4), *y = guarded(be, N * 4);
	uint16_t *h = guarded(be, N * 4), *h2 = guarded(be, N * 4);
	int good = 1, i, j, k;

	for (i = 0; i < N; i++)
		x[i] = (float)((i * 7919) % N - N / 2) * 0.0123f;
	for (i = 0; i < 3; i++) {
		good &= be->k->convert(be, h, types[i], x, LPO_F32, N) == 0;
		good &= be->k->convert(be, y, LPO_F32, h, types[i], N) == 0;
		for (k = 0; k < N; k++)
			good &= fabs(y[k] - x[k]) <= eps[i] * fabs(x[k]) +
			    (eps[i] > 0 ? 1e-8 : 0);
		be->k->convert_acc(be, y, LPO_F32, h, types[i], N);
		for (k = 0; k < N; k++)
			good &= fabs(y[k] - 2 * x[k]) <= 2 * eps[i] *
			    fabs(x[k]) + (eps[i] > 0 ? 1e-7 : 0);
		/* there and back through each wider or equal type */
		for (j = 0; j < 3; j++) {
			if (types[j] != LPO_F32 && types[j] != types[i])
				continue;
			be->k->convert(be, y, types[j], h, types[i], N);
			be->k->convert(be, h2, types[i], y, types[j], N);
			good &= memcmp(h, h2, N * lpo_dtype_bytes(types[i])) ==
			    0;
		}
	}
	good &= be->k->convert(be, h, LPO_BF16, x, LPO_F32, N) == 0 &&
	    be->k->convert(be, h2, LPO_F16, h, LPO_BF16, N) == 0 &&
	    be->k->convert(be, y, LPO_F32, h2, LPO_F16, N) == 0;
	for (k = 0; k < N; k++)
		good &= fabs(y[k] - half_float(h[k])) <= fabs(x[k]) / 2048 +
		    1e-7;
	good &= guard_at(x, N * 4) && guard_at(y, N * 4) &&
	    guard_at(h, N * 4) && guard_at(h2, N * 4);
	ok(good && be->k->convert(be, x, LPO_F64, y, LPO_F32, 1) ==
	    LPO_EINVAL, "%s convert and convert_acc between f32, bf16, f16",
	    level);
	dev_free(be, x);
	dev_free(be, y);
	dev_free(be, h);
	dev_free(be, h2);
}

/* One tensor of the list in f64: p, m, v after step o->step. */
static void
adamw_truth(double *p, double *m, double *v, const float *g, int64_t n,
    const struct lpo_adamw *o)
{
	double bc1 = 1 - pow((double)o->beta1, (double)o->step);
	double bc2 = 1 - pow((double)o->beta2, (double)o->step), gj;
	int64_t j;

	for (j = 0; j < n; j++) {
		gj = (double)g[j] * o->grad_scale;
		p[j] *= 1 - (double)o->lr * o->weight_decay;
		m[j] += (gj - m[j]) * (1 - (double)o->beta1);
		v[j] = v[j] * o->beta2 + gj * gj * (1 - (double)o->beta2);
		p[j] -= o->lr / bc1 * m[j] / (sqrt(v[j] / bc2) + o->eps);
	}
}

/*
 * A list of tensors of all sizes: what is used is the master itself, a copy in
 * bf16, or one in f32.
 */
static void
test_adamw(lpo_backend *be, const char *level)
{
	enum { N = 5 };
	static const int64_t size[N] = { 1003, 1, 257, 70001, 4096 };
	static const enum lpo_dtype type[N] = { LPO_F32, LPO_BF16, LPO_BF16,
	    LPO_F32, LPO_F32 };
	struct lpo_adamw o = { 1e-2f, 0.9f, 0.999f, 1e-8f, 0.1f, 0.5f, 0 };
	struct lpo_adamw_tensor list[N];
	struct buf p[N], m[N], v[N], g[N], w[N];
	double e = 0, *want, *one, *two;
	int64_t j;
	int i, good = 1;

	for (i = 0; i < N; i++) {
		p[i] = buf_new(be, LPO_F32, size[i], 1);
		g[i] = buf_new(be, LPO_F32, size[i], 2);
		m[i] = buf_new(be, LPO_F32, size[i], 3);
		v[i] = buf_new(be, LPO_F32, size[i], 4);
		w[i] = buf_new(be, type[i], size[i], 5);
		buf_poison(&w[i]);
		memset(m[i].p, 0, buf_bytes(&m[i]));
		memset(v[i].p, 0, buf_bytes(&v[i]));
		list[i] = (struct lpo_adamw_tensor){ p[i].p, m[i].p, v[i].p,
		    g[i].p, i % 3 ? w[i].p : p[i].p, type[i], size[i] };
	}
	for (o.step = 1; o.step <= 4; o.step++) {
		for (i = 0; i < N; i++)
			for (j = 0; j < size[i]; j++)
				((float *)g[i].p)[j] = (float)(g[i].v[j] *
				    (double)(o.step % 3 - 1));
		good &= be->k->adamw(be, list, N, &o) == 0;
	}
	for (i = 0; i < N; i++) {
		want = p[i].v;
		one = calloc((size_t)size[i], sizeof(double));
		two = calloc((size_t)size[i], sizeof(double));
		for (o.step = 1; o.step <= 4; o.step++) {
			for (j = 0; j < size[i]; j++)
				((float *)g[i].p)[j] = (float)(g[i].v[j] *
				    (double)(o.step % 3 - 1));
			adamw_truth(want, one, two, g[i].p, size[i], &o);
		}
		e = worse(e, worse(off(&p[i], want), off(&m[i], one)));
		e = worse(e, worse(off(&v[i], two), i % 3 ? off(&w[i], want) :
		    0));
		good &= guard_whole(&g[i]) && guard_whole(&w[i]);
		free(one);
		free(two);
		buf_free(&p[i]);
		buf_free(&m[i]);
		buf_free(&v[i]);
		buf_free(&g[i]);
		buf_free(&w[i]);
	}
	ok(good && e <= 1 && be->k->adamw(be, list, 0, &o) == 0, "%s adamw, "
	    "4 steps of %d tensors: %.2f of the allowed", level, N, e);
}

/* Each alone, then all in one list. */
static void
test_squares(lpo_backend *be, const char *level)
{
	double *got = be->k->alloc(be, sizeof(*got));
	double one[7] = { 0 }, all = 0, bad = 0;
	long double want;	/* one by one: f64 would lose what is tested */
	const float *list[7];
	int i, threads, good = 1, n = ncounts(be);
	struct buf x[7];
	int64_t j;

	for (i = 0; i < n; i++) {
		x[i] = buf_new(be, LPO_F32, counts[i], 1);
		list[i] = x[i].p;
		for (j = 0, want = 0; j < counts[i]; j++)
			want += x[i].v[j] * x[i].v[j];
		for (threads = 1; threads <= 4; threads++) {
			reopen(be, threads);
			good &= be->k->sum_squares(be, got, &list[i],
			    &counts[i], 1) == 0;
			one[i] = threads == 1 ? *got : one[i];
			good &= *got == one[i];
			bad = worse(bad, fabs((double)(*got / want - 1)));
		}
		all += one[i];
	}
	good &= be->k->sum_squares(be, got, list, counts, n) == 0 &&
	    *got == all;
	for (i = 0; i < n; i++) {
		((float *)x[i].p)[counts[i] / 2] = i % 2 ? INFINITY : NAN;
		be->k->sum_squares(be, got, list, counts, n);
		good &= !isfinite(*got);
		buf_reset(&x[i]);
	}
	good &= be->k->sum_squares(be, got, list, counts, 0) == 0 && *got == 0;
	ok(good && bad < 1e-13, "%s sum of squares: error %.1g, the same bits "
	    "%s and in a list, Inf and NaN show", level, bad, runs(be));
	for (i = 0; i < n; i++)
		buf_free(&x[i]);
	be->k->free(be, got);
}

/* Threads, and one call or two, do not show in the bits. */
static void
test_bits(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	int64_t n = 70001, cut = 12347, e = (int64_t)lpo_dtype_bytes(dt);
	struct buf x = wide_new(be, dt, n, 1), d = buf_new(be, dt, n, 2);
	struct buf y, one = wide_new(be, dt, n, 1);
	int threads, good = 1;
	char *p;

	for (threads = 1; threads <= 4; threads++) {
		reopen(be, threads);
		y = wide_new(be, dt, n, 1);
		p = y.p;
		be->k->act_bwd(be, dt, LPO_GELU, p, d.p, x.p, cut, 1);
		be->k->act_bwd(be, dt, LPO_GELU, p + cut * e, (char *)d.p +
		    cut * e, (char *)x.p + cut * e, n - cut, 1);
		if (threads == 1)
			be->k->act_bwd(be, dt, LPO_GELU, one.p, d.p, x.p, n,
			    1);
		good &= memcmp(one.p, y.p, (size_t)(n * e)) == 0;
		buf_free(&y);
	}
	ok(good, "%s %s: cuts and %s, same bits", level, lpo_dtype_name(dt),
	    runs(be));
	buf_free(&x);
	buf_free(&d);
	buf_free(&one);
}

static void
test_level(lpo_backend *be, const char *level)
{
	enum lpo_dtype dt;

	for (dt = LPO_F32; dt <= LPO_BF16; dt++) {
		test_act(be, level, dt);
		test_geglu(be, level, dt);
		test_sums(be, level, dt);
		test_bits(be, level, dt);
	}
	test_guide(be, level);
	test_convert(be, level);
	test_adamw(be, level);
	test_squares(be, level);
}

int
main(void)
{
	each_level(test_level);
	return done_testing();
}
