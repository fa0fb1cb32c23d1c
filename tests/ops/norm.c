/*
 * GroupNorm (+ SiLU) and LayerNorm against f64.  The f64 gradients are
 * themselves checked against central differences.  LayerNorm of m tokens is
 * taken as GroupNorm with hw = 1 and one group.
 */
#include "tests/ops/levels.h"

struct shape {
	int64_t n, hw, c, norm_groups, groups;
	int silu;
};

static const struct shape shapes[] = {
	{ 1, 1, 4, 2, 1, 0 }, { 2, 7, 6, 3, 1, 1 }, { 4, 65, 48, 8, 2, 1 },
	{ 2, 131, 320, 32, 2, 1 }, { 4, 64, 40, 4, 4, 0 },
	{ 3, 200, 33, 1, 3, 1 }, { 6, 16, 130, 13, 2, 1 },
	{ 1, 1030, 96, 32, 1, 1 },
	/* SD1.5's, and odd ones as long: for CUDA */
	{ 2, 4096, 320, 32, 2, 1 }, { 1, 4096, 960, 32, 1, 1 },
	{ 4, 1024, 640, 32, 2, 0 }, { 6, 64, 2560, 32, 3, 1 },
	{ 2, 1021, 1280, 32, 2, 1 }, { 2, 777, 330, 11, 1, 1 },
	{ 1, 16384, 128, 32, 1, 1 }
};
enum { SMALL = 8 };

/*
 * GroupNorm on CUDA, by how its kernels share an image out: 4 and 8 slices
 * that are not equally long, one group of all channels, chunks of 120
 * channels, threads that are no whole warps, one slice, too wide a chunk.
 */
static const struct shape shared[] = {
	{ 3, 257, 320, 32, 3, 1 }, { 2, 17, 320, 1, 1, 1 },
	{ 2, 100, 1920, 32, 2, 0 }, { 1, 400, 208, 13, 1, 1 },
	{ 2, 63, 1280, 32, 1, 1 }, { 2, 64, 2560, 4, 1, 1 }
};

static const double eps = 1e-5;

/*
 * f64: y, and gradients of sum dy y (NULL: forward only); the largest rstd,
 * for dx is rstd times what may cancel.
 */
struct truth {
	double *y, *dx, *dgamma, *dbeta, rstd;
};

static double
silu_slope(double z)
{
	double s = 1 / (1 + exp(-z));

	return s * (1 + z * (1 - s));
}

/* One group of one image, `m` elements: el[] are their indices. */
static void
truth_group(const struct shape *s, const double *x, const double *gamma,
    const double *beta, const double *dy, struct truth *t, int64_t img,
    int64_t g)
{
	int64_t cg = s->c / s->norm_groups, m = s->hw * cg, k, i, ch;
	double mean = 0, var = 0, rstd, a = 0, b = 0, xh, z, d;

#define EACH for (k = 0; k < m && (ch = g * cg + k % cg,		\
    i = (img * s->hw + k / cg) * s->c + ch, 1); k++)
	EACH
		mean += x[i] / (double)m;
	EACH
		var += (x[i] - mean) * (x[i] - mean) / (double)m;
	rstd = 1 / sqrt(var + eps);
	t->rstd = fmax(t->rstd, rstd);
	EACH {
		xh = (x[i] - mean) * rstd;
		z = xh * gamma[ch] + beta[ch];
		t->y[i] = s->silu ? z / (1 + exp(-z)) : z;
		if (dy == NULL)
			continue;
		d = dy[i] * (s->silu ? silu_slope(z) : 1);
		t->dgamma[ch] += d * xh;
		t->dbeta[ch] += d;
		a += d * gamma[ch] / (double)m;
		b += d * gamma[ch] * xh / (double)m;
	}
	if (dy == NULL)
		return;
	EACH {
		xh = (x[i] - mean) * rstd;
		z = xh * gamma[ch] + beta[ch];
		d = dy[i] * (s->silu ? silu_slope(z) : 1);
		t->dx[i] += rstd * (d * gamma[ch] - a - xh * b);
	}
#undef EACH
}

static void
truth_all(const struct shape *s, const double *x, const double *gamma,
    const double *beta, const double *dy, struct truth *t)
{
	int64_t i, g;

	for (i = 0; i < s->n; i++)
		for (g = 0; g < s->norm_groups; g++)
			truth_group(s, x, gamma, beta, dy, t, i, g);
}

/* sum dy y after nudging one value */
static double
nudged(const struct shape *s, double *at, double by, const double *x,
    const double *gamma, const double *beta, const double *dy)
{
	double was = *at, sum = 0;
	struct truth t = { 0 };
	int64_t i, size = s->n * s->hw * s->c;

	t.y = malloc((size_t)size * sizeof(double));
	*at += by;
	truth_all(s, x, gamma, beta, NULL, &t);
	*at = was;
	for (i = 0; i < size; i++)
		sum += dy[i] * t.y[i];
	free(t.y);
	return sum;
}

/* Inputs, gradients as they stood, and the truth for one shape. */
struct set {
	struct buf x, dy, y, dx, gamma, beta, dgamma, dbeta, stats;
	struct truth t;
};

static double *
start(struct buf *b, int add)
{
	double *w = malloc((size_t)b->count * sizeof(double));
	int64_t i;

	buf_start(b, add);
	for (i = 0; i < b->count; i++)
		w[i] = start_of(b, i, add);
	return w;
}

/* add: dx is to be added to. */
static struct set
set_new(lpo_backend *be, const struct shape *s, enum lpo_dtype dt,
    double shift, int add)
{
	int64_t size = s->n * s->hw * s->c, i;
	struct set t;

	t.x = buf_new(be, dt, size, 1);
	for (i = 0; i < size; i++)
		t.x.v[i] += shift;
	buf_reset(&t.x);
	for (i = 0; i < size; i++)	/* the shift may have cost digits */
		t.x.v[i] = get(&t.x, i);
	t.dy = buf_new(be, dt, size, 2);
	t.y = buf_new(be, dt, size, 3);
	t.dx = buf_new(be, dt, size, 4);
	t.gamma = buf_new(be, LPO_F32, s->c, 5);
	t.beta = buf_new(be, LPO_F32, s->c, 6);
	t.dgamma = buf_new(be, LPO_F32, s->c, 7);
	t.dbeta = buf_new(be, LPO_F32, s->c, 8);
	/* [n, norm_groups, 2], or as layer norm [n * hw, 2] */
	t.stats = buf_new(be, LPO_F32, 2 * s->n * (s->norm_groups + s->hw),
	    9);
	buf_poison(&t.stats);
	t.t.y = start(&t.y, 0);
	t.t.dx = start(&t.dx, add);
	t.t.dgamma = start(&t.dgamma, 1);
	t.t.dbeta = start(&t.dbeta, 1);
	t.t.rstd = 0;
	return t;
}

static void
set_free(struct set *t)
{
	struct buf *b[] = { &t->x, &t->dy, &t->y, &t->dx, &t->gamma,
	    &t->beta, &t->dgamma, &t->dbeta, &t->stats };
	int i;

	for (i = 0; i < 9; i++)
		buf_free(b[i]);
	free(t->t.y);
	free(t->t.dx);
	free(t->t.dgamma);
	free(t->t.dbeta);
}

/*
 * Largest error in units of `rel` of the largest value, which is `top` at
 * least, and bf16 rounding.
 */
static double
off(const struct buf *b, const double *want, double rel, double top)
{
	double bad = 0, e;
	int64_t i;

	for (i = 0; i < b->count; i++)
		top = fmax(top, fabs(want[i]));
	for (i = 0; i < b->count; i++) {
		e = fabs(get(b, i) - want[i]) / (rel * top +
		    (b->dt == LPO_BF16 ? fabs(want[i]) / 256 : 0));
		bad = worse(bad, e);
	}
	return bad;
}

static int
guards_whole(const struct set *t)
{
	return guard_whole(&t->y) && guard_whole(&t->dx) &&
	    guard_whole(&t->dgamma) && guard_whole(&t->dbeta) &&
	    guard_whole(&t->stats);
}

/* Run the op on set t (as layer norm where `layer`), all gradients. */
static int
run(lpo_backend *be, enum lpo_dtype dt, const struct shape *s, struct set *t,
    int layer, int add)
{
	int64_t m = s->n * s->hw;
	struct scratch w = scratch_new(be, be->k->norm_scratch_bytes(be,
	    layer ? m : s->n, s->c, s->groups));
	int rc;

	if (layer) {
		rc = be->k->layer_norm_fwd(be, dt, t->y.p, t->stats.p, t->x.p,
		    t->gamma.p, t->beta.p, m, s->c, (float)eps);
		rc |= be->k->layer_norm_bwd(be, dt, t->dx.p, t->dgamma.p,
		    t->dbeta.p, t->dy.p, t->x.p, t->stats.p, t->gamma.p, m,
		    s->c, s->groups, add, w.p);
	} else {
		rc = be->k->group_norm_fwd(be, dt, t->y.p, t->stats.p, t->x.p,
		    t->gamma.p, t->beta.p, s->n, s->hw, s->c, s->norm_groups,
		    (float)eps, s->silu);
		rc |= be->k->group_norm_bwd(be, dt, t->dx.p, t->dgamma.p,
		    t->dbeta.p, t->dy.p, t->x.p, t->stats.p, t->gamma.p,
		    t->beta.p, s->n, s->hw, s->c, s->norm_groups, s->silu,
		    s->groups, add, w.p);
	}
	return scratch_done(&w) && rc == 0;
}

static void
check_values(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape *s, int layer, double shift, int add)
{
	/* x - mean loses what the shift has cost x */
	double rel = 1e-6 * (1 + 0.3 * shift), e[4];
	struct set t = set_new(be, s, dt, shift, add);
	int good = run(be, dt, s, &t, layer, add) && guards_whole(&t);

	truth_all(s, t.x.v, t.gamma.v, t.beta.v, t.dy.v, &t.t);
	e[0] = off(&t.y, t.t.y, rel, 0);
	e[1] = off(&t.dx, t.t.dx, rel, t.t.rstd);
	e[2] = off(&t.dgamma, t.t.dgamma, rel, 0);
	e[3] = off(&t.dbeta, t.t.dbeta, rel, 0);
	ok(good && e[0] <= 1 && e[1] <= 1 && e[2] <= 1 && e[3] <= 1,
	    "%s %s %s %ldx%ldx%ld/%ld, mean %g, dx %s: %.2f %.2f %.2f %.2f of "
	    "the allowed", level, lpo_dtype_name(dt), layer ? "layer" :
	    "group", (long)s->n, (long)s->hw, (long)s->c,
	    (long)s->norm_groups, shift, add ? "added" : "set", e[0], e[1],
	    e[2], e[3]);
	set_free(&t);
}

static int
same(const struct set *a, const struct set *b)
{
	return buf_same(&a->y, &b->y) && buf_same(&a->dx, &b->dx) &&
	    buf_same(&a->dgamma, &b->dgamma) &&
	    buf_same(&a->dbeta, &b->dbeta);
}

/* All runs in one call, and each by its own, on 1 to 4 threads. */
static void
check_bits(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape *s, int layer)
{
	int64_t e = (int64_t)lpo_dtype_bytes(dt), k, at;
	struct set a = set_new(be, s, dt, 0, 1), b;
	struct shape one = *s;
	int threads, good;

	reopen(be, 1);
	good = run(be, dt, s, &a, layer, 1);
	one.n = s->n / s->groups;
	one.groups = 1;
	for (threads = 1; threads <= repeats(be); threads++) {
		reopen(be, threads);
		b = set_new(be, s, dt, 0, 1);
		for (k = 0; k < s->groups && !on_cuda(be); k++) {
			struct set v = b;

			at = k * one.n * s->hw * s->c * e;
			v.x.p = (char *)b.x.p + at;
			v.dy.p = (char *)b.dy.p + at;
			v.y.p = (char *)b.y.p + at;
			v.dx.p = (char *)b.dx.p + at;
			good &= run(be, dt, &one, &v, layer, 1);
		}
		good &= on_cuda(be) || same(&a, &b);
		set_free(&b);
		b = set_new(be, s, dt, 0, 1);
		good &= run(be, dt, s, &b, layer, 1);
		good &= same(&a, &b);
		set_free(&b);
	}
	ok(good, "%s %s %s, %ld runs of %ld: %s, same bits", level,
	    lpo_dtype_name(dt), layer ? "layer" : "group", (long)s->groups,
	    (long)one.n, on_cuda(be) ? runs(be) :
	    "run by run and 1 to 4 threads");
	set_free(&a);
}

/* An image's y, stats and dx are the same whether it is alone or not. */
static void
check_alone(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape *s)
{
	int64_t one = s->hw * s->c * (int64_t)lpo_dtype_bytes(dt);
	int64_t st = 2 * s->norm_groups * (int64_t)sizeof(float), last;
	struct set a = set_new(be, s, dt, 0, 1), b = set_new(be, s, dt, 0, 1);
	struct set v = b;
	struct shape alone = *s;
	int good;

	alone.n = alone.groups = 1;
	last = s->n - 1;
	v.x.p = (char *)b.x.p + last * one;
	v.dy.p = (char *)b.dy.p + last * one;
	v.y.p = (char *)b.y.p + last * one;
	v.dx.p = (char *)b.dx.p + last * one;
	good = run(be, dt, s, &a, 0, 1) & run(be, dt, &alone, &v, 0, 1);
	good &= memcmp((char *)a.y.p + last * one, v.y.p, (size_t)one) == 0 &&
	    memcmp((char *)a.dx.p + last * one, v.dx.p, (size_t)one) == 0 &&
	    memcmp((char *)a.stats.p + last * st, v.stats.p, (size_t)st) == 0;
	ok(good, "%s %s: %ld images of %ldx%ld, and one alone: same bits",
	    level, lpo_dtype_name(dt), (long)s->n, (long)s->hw, (long)s->c);
	set_free(&a);
	set_free(&b);
}

/* b from its second element on. */
static struct buf
shifted(const struct buf *b)
{
	struct buf v = *b;

	v.p = (char *)b->p + lpo_dtype_bytes(b->dt);
	v.v = b->v + 1;
	v.count = b->count - 1;
	return v;
}

/* Images that do not begin at 16 bytes, as 16 bytes at a time would. */
static void
check_unaligned(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	const struct shape all = { 3, 65, 320, 32, 1, 1 };
	struct shape s = all;
	struct set t = set_new(be, &all, dt, 0, 1), v = t;
	double e[2];
	int good;

	s.n = all.n - 1;	/* there is an element to go */
	v.x = shifted(&t.x);
	v.dy = shifted(&t.dy);
	v.y = shifted(&t.y);
	v.dx = shifted(&t.dx);
	v.t.y = t.t.y + 1;
	v.t.dx = t.t.dx + 1;
	good = run(be, dt, &s, &v, 0, 1) && guards_whole(&t);
	v.y.count = v.dx.count = s.n * s.hw * s.c;
	truth_all(&s, v.x.v, t.gamma.v, t.beta.v, v.dy.v, &v.t);
	e[0] = off(&v.y, v.t.y, 1e-6, 0);
	e[1] = off(&v.dx, v.t.dx, 1e-6, v.t.rstd);
	ok(good && e[0] <= 1 && e[1] <= 1, "%s %s group, unaligned: %.2f %.2f "
	    "of the allowed", level, lpo_dtype_name(dt), e[0], e[1]);
	set_free(&t);
}

/* dx does not depend on whether dgamma is wanted. */
static void
check_null(lpo_backend *be, const char *level)
{
	const struct shape *s = &shapes[2];
	struct set a = set_new(be, s, LPO_F32, 0, 1);
	struct set b = set_new(be, s, LPO_F32, 0, 1);
	struct scratch w = scratch_new(be, be->k->norm_scratch_bytes(be,
	    s->n * s->hw, s->c, s->groups));
	int good = run(be, LPO_F32, s, &a, 0, 1);

	be->k->group_norm_bwd(be, LPO_F32, b.dx.p, NULL, NULL, b.dy.p, b.x.p,
	    a.stats.p, b.gamma.p, b.beta.p, s->n, s->hw, s->c, s->norm_groups,
	    s->silu, s->groups, 1, w.p);
	good &= buf_same(&a.dx, &b.dx);
	run(be, LPO_F32, s, &b, 1, 1);
	buf_reset(&a.dx);
	be->k->layer_norm_bwd(be, LPO_F32, a.dx.p, NULL, NULL, a.dy.p, a.x.p,
	    b.stats.p, a.gamma.p, s->n * s->hw, s->c, s->groups, 1,
	    w.p);
	buf_reset(&b.dx);
	be->k->layer_norm_bwd(be, LPO_F32, b.dx.p, b.dgamma.p, NULL, b.dy.p,
	    b.x.p, b.stats.p, b.gamma.p, s->n * s->hw, s->c, 1, 1, w.p);
	good &= buf_same(&a.dx, &b.dx) & scratch_done(&w);
	ok(good, "%s: a NULL gradient is skipped, dx does not change", level);
	ok(be->k->group_norm_fwd(be, LPO_F32, a.y.p, a.stats.p, a.x.p,
	    a.gamma.p, a.beta.p, s->n, s->hw, s->c, 7, 1e-5f, 0) ==
	    LPO_EINVAL, "%s: groups that do not divide c are refused", level);
	set_free(&a);
	set_free(&b);
}

/*
 * Statistics where the mean jumps from row to row of blocks: a formula that
 * subtracts squares of the wrong mean would lose the digits of the variance.
 */
static void
check_jumps(lpo_backend *be, const char *level)
{
	const struct shape *s = &shapes[7];
	double off_by = 0, mean, var, *v;
	struct set t;
	int64_t i, g, k, cg = s->c / s->norm_groups, m = s->hw * cg;
	int where;

	for (where = 0; where < 4; where++) {
		t = set_new(be, s, LPO_F32, 0, 1);
		v = t.x.v;
		for (i = 0; i < t.x.count; i++) {
			/* at the start, in the middle, the last row, all */
			k = i / s->c;
			v[i] = (float)(v[i] * 0.01 + (where == 0 ? k < 64 :
			    where == 1 ? k >= 300 && k < 700 :
			    where == 2 ? k == s->hw - 1 : 1) * 30.0);
		}
		buf_reset(&t.x);
		run(be, LPO_F32, s, &t, 0, 1);
		for (g = 0; g < s->norm_groups; g++) {
			mean = var = 0;
			for (k = 0; k < m; k++)
				mean += v[k / cg * s->c + g * cg + k % cg] /
				    (double)m;
			for (k = 0; k < m; k++)
				var += pow(v[k / cg * s->c + g * cg + k % cg] -
				    mean, 2) / (double)m;
			off_by = worse(off_by, fabs(get(&t.stats, 2 * g + 1) *
			    sqrt(var + eps) - 1));
		}
		set_free(&t);
	}
	ok(off_by < 1e-6, "%s: rstd of rows whose mean jumps is off by %.1g",
	    level, off_by);
}

static void
test_shape(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct shape *group)
{
	struct shape s = *group;

	check_values(be, level, dt, &s, 0, 0, 0);
	check_values(be, level, dt, &s, 0, 0, 1);
	check_bits(be, level, dt, &s, 0);
	s.n *= s.hw;
	s.hw = s.norm_groups = 1;
	s.silu = 0;
	check_values(be, level, dt, &s, 1, 0, 0);
	check_values(be, level, dt, &s, 1, 0, 1);
	check_bits(be, level, dt, &s, 1);
}

/* The ways that only CUDA has. */
static void
test_shared(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	int i;

	for (i = 0; i < (int)(sizeof(shared) / sizeof(*shared)); i++) {
		check_values(be, level, dt, &shared[i], 0, 0, 0);
		check_values(be, level, dt, &shared[i], 0, 0, 1);
		check_bits(be, level, dt, &shared[i], 0);
	}
}

static void
test_level(lpo_backend *be, const char *level)
{
	const int all = (int)(sizeof(shapes) / sizeof(*shapes));
	enum lpo_dtype dt;
	int i;

	for (dt = LPO_F32; dt <= LPO_BF16; dt++) {
		for (i = 0; i < (on_cuda(be) ? all : SMALL); i++)
			test_shape(be, level, dt, &shapes[i]);
		if (on_cuda(be))
			test_shared(be, level, dt);
		check_alone(be, level, dt, &shapes[2]);
		check_alone(be, level, dt, &shared[0]);
		check_unaligned(be, level, dt);
	}
	check_values(be, level, LPO_F32, &shapes[3], 0, 30, 1);
	check_values(be, level, LPO_F32, &shapes[7], 0, 30, 1);
	if (!on_cuda(be))
		check_jumps(be, level);
	check_null(be, level);
}

/* The f64 gradients against central differences of the f64 forward. */
static void
test_truth(void)
{
	const struct shape *s = &shapes[1];
	lpo_backend be;
	struct set t;
	double bad = 0, d, *to[3], *got[3], *was[3];
	int64_t count[] = { s->n * s->hw * s->c, s->c, s->c }, i;
	int k;

	if (!ok(lpo_cpu_open(&be, LPO_ISA_PORTABLE, 1) == 0, "a CPU"))
		return;
	t = set_new(&be, s, LPO_F32, 0, 1);
	to[0] = t.x.v;
	to[1] = t.gamma.v;
	to[2] = t.beta.v;
	got[0] = t.t.dx;
	got[1] = t.t.dgamma;
	got[2] = t.t.dbeta;
	was[0] = t.dx.v;
	was[1] = t.dgamma.v;
	was[2] = t.dbeta.v;
	truth_all(s, t.x.v, t.gamma.v, t.beta.v, t.dy.v, &t.t);
	for (k = 0; k < 3; k++)
		for (i = 0; i < count[k]; i++) {
			d = nudged(s, to[k] + i, 1e-5, t.x.v, t.gamma.v,
			    t.beta.v, t.dy.v) - nudged(s, to[k] + i, -1e-5,
			    t.x.v, t.gamma.v, t.beta.v, t.dy.v);
			bad = worse(bad, fabs(got[k][i] - was[k][i] -
			    d / 2e-5));
		}
	ok(bad < 1e-7, "the f64 gradients agree with central differences: "
	    "%.1g", bad);
	set_free(&t);
	lpo_cpu_close(&be);
}

int
main(void)
{
	test_truth();
	each_level(test_level);
	return done_testing();
}
