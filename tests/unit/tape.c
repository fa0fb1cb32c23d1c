/*
 * The tape: gradients of a small network against central differences, and
 * what must not change a bit: checkpointed segments, LoRA that is off, the
 * split of a batch into whole groups; and walks that fail, recorded or not.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/base/progress.h"
#include "lib/nn/dry.h"
#include "lib/nn/tape.h"
#include "tests/backend.h"

enum { G = 3, H = 5, W = 4, CI = 3, C = 8, HEADS = 2, R = 2 };

static lpo_ctx *ctx;
static lpo_backend be;

struct net {
	lpo_params ps, lora_ps;
	lpo_conv_layer in, down;
	lpo_norm_layer norm, ln;
	lpo_linear_layer q, k, v, o, ff;
	lpo_lora lora_q, lora_in;
};

static lpo_param *
param(lpo_params *ps, const char *key, enum lpo_param_kind kind, int rank,
    int64_t a, int64_t b, int64_t kh, float scale, float mean)
{
	int64_t shape[4] = { a, b, kh, kh }, i;
	static uint32_t item;
	struct lpo_draw d = { .seed = 7, .purpose = LPO_DRAW_INIT };
	lpo_param *p = lpo_param_add(ps, key, kind, rank, shape);
	float *v;

	if (p == NULL)
		return NULL;
	v = lpo_alloc(ctx, (size_t)p->count, sizeof(float));
	d.item = item++;
	lpo_draw_normal(&d, 0, v, p->count);
	for (i = 0; i < p->count; i++)
		v[i] = mean + scale * v[i];
	lpo_param_import(ps, p, v);
	lpo_free(v);
	return p;
}

static void
linear(lpo_params *ps, lpo_linear_layer *l, const char *name, int64_t n,
    int64_t k)
{
	l->name = name;
	l->w = param(ps, name, LPO_MATRIX, 2, n, k, 1, 0.4f, 0);
	l->b = param(ps, "bias", LPO_VECTOR, 1, n, 1, 1, 0.1f, 0);
}

static void
net_new(struct net *n, enum lpo_dtype dt, int train_base)
{
	memset(n, 0, sizeof(*n));
	lpo_params_init(&n->ps, ctx, &be, dt);
	lpo_params_init(&n->lora_ps, ctx, &be, dt);
	n->in.name = "conv_in";
	n->in.w = param(&n->ps, "in.w", LPO_KERNEL, 4, C, CI, 3, 0.3f, 0);
	n->in.b = param(&n->ps, "in.b", LPO_VECTOR, 1, C, 1, 1, 0.1f, 0);
	n->in.stride = n->in.pad = 1;
	n->down = n->in;
	n->down.w = param(&n->ps, "down.w", LPO_KERNEL, 4, C, C, 3, 0.2f, 0);
	n->down.b = param(&n->ps, "down.b", LPO_VECTOR, 1, C, 1, 1, 0.1f, 0);
	n->down.stride = 2;
	n->norm.name = "norm";
	n->norm.gamma = param(&n->ps, "g", LPO_VECTOR, 1, C, 1, 1, 0.1f, 1);
	n->norm.beta = param(&n->ps, "b", LPO_VECTOR, 1, C, 1, 1, 0.1f, 0);
	n->norm.groups = 4;
	n->norm.eps = 1e-5f;
	n->ln = n->norm;
	n->ln.gamma = param(&n->ps, "lg", LPO_VECTOR, 1, C, 1, 1, 0.1f, 1);
	n->ln.beta = param(&n->ps, "lb", LPO_VECTOR, 1, C, 1, 1, 0.1f, 0);
	linear(&n->ps, &n->q, "q", C, C);
	linear(&n->ps, &n->k, "k", C, C);
	linear(&n->ps, &n->v, "v", C, C);
	linear(&n->ps, &n->o, "o", C, C);
	linear(&n->ps, &n->ff, "ff", 2 * C, C);
	n->lora_q.a = param(&n->lora_ps, "a", LPO_MATRIX, 2, R, C, 1, 0.5f, 0);
	n->lora_q.b = param(&n->lora_ps, "b", LPO_MATRIX, 2, C, R, 1, 0.5f, 0);
	n->lora_q.rank = R;
	n->lora_q.scale = 0.7f;
	n->lora_in = n->lora_q;
	n->lora_in.a = param(&n->lora_ps, "ca", LPO_KERNEL, 4, R, CI, 3, 0.5f,
	    0);
	n->lora_in.b = param(&n->lora_ps, "cb", LPO_MATRIX, 4, C, R, 1, 0.5f,
	    0);
	n->q.lora = &n->lora_q;
	n->in.lora = &n->lora_in;
	lpo_params_train_all(&n->lora_ps);
	if (train_base)
		lpo_params_train_all(&n->ps);
}

static void
net_free(struct net *n)
{
	lpo_params_free(&n->ps);
	lpo_params_free(&n->lora_ps);
}

struct run {
	lpo_tape *t;
	lpo_var *x, *ctxv, *y;
	struct lpo_plan plan;
};

/* Guidance halves, a skip, self-attention, a gated unit, stride 2. */
static void
record(struct run *r, struct net *n, int64_t groups, enum lpo_dtype dt,
    int segments)
{
	lpo_tape *t = r->t = lpo_tape_new(ctx, &be, dt, groups);
	lpo_var *h, *s, *a;

	r->x = lpo_input(t, groups, H, W, CI, LPO_F32, 1);
	r->ctxv = lpo_input(t, groups * 2, 3, 1, C, LPO_F32, 1);
	s = lpo_conv(t, &n->in, lpo_cast(t, r->x, dt));
	if (segments)
		lpo_segment_begin(t);
	h = lpo_norm_silu(t, &n->norm, s);
	h = lpo_repeat(t, h, 2);
	a = lpo_layer_norm(t, &n->ln, h);
	a = lpo_attention(t, lpo_linear(t, &n->q, a), lpo_linear(t, &n->k,
	    lpo_cast(t, r->ctxv, dt)), lpo_linear(t, &n->v,
	    lpo_cast(t, r->ctxv, dt)), HEADS, 0);
	h = lpo_add(t, h, lpo_linear(t, &n->o, a));
	if (segments) {
		lpo_segment_end(t);
		lpo_segment_begin(t);
	}
	h = lpo_add(t, h, lpo_geglu(t, lpo_linear(t, &n->ff, h)));
	h = lpo_conv(t, &n->down, lpo_add(t, h, lpo_repeat(t, s, 2)));
	if (segments)
		lpo_segment_end(t);
	r->y = lpo_guide(t, lpo_mean_pool(t, h), 2.5f);
	lpo_output(t, r->y, 1);
	if (lpo_tape_plan(t, 1, &r->plan) < 0 || lpo_tape_commit(t, NULL) < 0)
		printf("# %s\n", lpo_errmsg(ctx));
}

static void
draw(float *v, int64_t n, uint32_t item)
{
	struct lpo_draw d = { .seed = 3, .purpose = LPO_DRAW_NOISE,
	    .item = item };

	lpo_draw_normal(&d, 0, v, n);
}

static float x0[G * H * W * CI], c0[G * 2 * 3 * C], w0[G * C];

static double
forward(struct run *r, int64_t first, int64_t groups, int flags, float *y)
{
	double loss = 0;
	int64_t i;

	lpo_var_set(r->t, r->x, x0 + first * H * W * CI);
	lpo_var_set(r->t, r->ctxv, c0 + first * 2 * 3 * C);
	if (lpo_tape_forward(r->t, flags) < 0 ||
	    lpo_var_get(r->t, r->y, y) < 0)
		printf("# %s\n", lpo_errmsg(ctx));
	for (i = 0; i < groups * C; i++)
		loss += (double)y[i] * w0[first * C + i];
	return loss;
}

static void
backward(struct run *r, int64_t first)
{
	lpo_var_set_grad(r->t, r->y, w0 + first * C);
	if (lpo_tape_backward(r->t) < 0)
		printf("# %s\n", lpo_errmsg(ctx));
}

/* Central differences of a parameter's elements. */
static double
worst(struct run *r, lpo_params *ps, lpo_param *p)
{
	float *v = lpo_alloc(ctx, (size_t)p->count, 4), y[G * C], keep;
	float *g = lpo_alloc(ctx, (size_t)p->count, 4);
	/* the floor: a key's bias cancels in the softmax, its gradient is 0 */
	double num, err = 0, max = 0.2, e = 4e-3;
	int64_t i, step = p->count > 40 ? p->count / 20 : 1;

	lpo_param_export(ps, p, v);
	lpo_param_export_grad(ps, p, g);
	for (i = 0; i < p->count; i += step) {
		keep = v[i];
		v[i] = keep + (float)e;
		lpo_param_import(ps, p, v);
		num = forward(r, 0, G, 0, y);
		v[i] = keep - (float)e;
		lpo_param_import(ps, p, v);
		num = (num - forward(r, 0, G, 0, y)) / (2 * e);
		v[i] = keep;
		err = worse(err, fabs(num - g[i]));
		max = fmax(max, fabs(num));
	}
	lpo_param_import(ps, p, v);
	lpo_free(v);
	lpo_free(g);
	return err / max;
}

static void
differences(void)
{
	struct net n;
	struct run r;
	float y[G * C], gx[G * H * W * CI];
	double num, err = 0, max = 0, e = 4e-3;
	int64_t i, j;

	net_new(&n, LPO_F32, 1);
	record(&r, &n, G, LPO_F32, 0);
	forward(&r, 0, G, 0, y);
	backward(&r, 0);
	lpo_var_get_grad(r.t, r.x, gx);
	for (j = 0; j < 2; j++) {
		lpo_params *ps = j ? &n.lora_ps : &n.ps;

		for (i = 0; i < ps->n; i++) {
			err = worst(&r, ps, ps->p[i]);
			ok(err < 5e-3, "gradient of %s (%.1e)", ps->p[i]->key,
			    err);
		}
	}
	for (err = 0, i = 0; i < G * H * W * CI; i += 7) {
		float keep = x0[i];

		x0[i] = keep + (float)e;
		num = forward(&r, 0, G, 0, y);
		x0[i] = keep - (float)e;
		num = (num - forward(&r, 0, G, 0, y)) / (2 * e);
		x0[i] = keep;
		err = worse(err, fabs(num - gx[i]));
		max = fmax(max, fabs(num));
	}
	ok(err < 5e-3 * max, "gradient of the input (%.1e)", err / max);
	lpo_tape_free(r.t);
	net_free(&n);
}

/* All gradients of a net in one array. */
static int64_t
gradients(struct net *n, float *out)
{
	int64_t i, at = 0;

	for (i = 0; i < n->ps.n; i++) {
		lpo_param_export_grad(&n->ps, n->ps.p[i], out + at);
		at += n->ps.p[i]->count;
	}
	for (i = 0; i < n->lora_ps.n; i++) {
		lpo_param_export_grad(&n->lora_ps, n->lora_ps.p[i], out + at);
		at += n->lora_ps.p[i]->count;
	}
	return at;
}

/* Name the parameters whose gradients differ. */
static void
report_differences(struct net *n, const float *a, const float *b)
{
	lpo_params *ps;
	int64_t i, at = 0;
	int j;

	for (j = 0; j < 2; j++) {
		ps = j ? &n->lora_ps : &n->ps;
		for (i = 0; i < ps->n; at += ps->p[i++]->count)
			if (memcmp(a + at, b + at,
			    (size_t)ps->p[i]->count * 4) != 0)
				printf("# gradient of %s differs\n",
				    ps->p[i]->key);
	}
}

/* Largest |a - b| relative to the largest |b|. */
static double
distance(const float *a, const float *b, int64_t n)
{
	double top = 1e-30, most = 0, e;
	int64_t i;

	for (i = 0; i < n; i++) {
		top = fmax(top, fabs((double)b[i]));
		e = fabs((double)a[i] - (double)b[i]);
		most = worse(most, e);
	}
	return most / top;
}

static void
bits(enum lpo_dtype dt)
{
	static float a[20000], b[20000];
	float y[G * C], y2[G * C];
	double near;
	struct net n;
	struct run whole, seg, one;
	int64_t len, i;

	net_new(&n, dt, 1);
	record(&whole, &n, G, dt, 0);
	record(&seg, &n, G, dt, 1);
	record(&one, &n, 1, dt, 0);
	forward(&whole, 0, G, 0, y);
	backward(&whole, 0);
	len = gradients(&n, a);

	lpo_params_zero_grad(&n.ps);
	lpo_params_zero_grad(&n.lora_ps);
	forward(&seg, 0, G, 0, y2);
	backward(&seg, 0);
	gradients(&n, b);
	ok(memcmp(y, y2, sizeof(y)) == 0 &&
	    memcmp(a, b, (size_t)len * 4) == 0,
	    "%s: checkpointed segments change no bit", lpo_dtype_name(dt));
	ok(seg.plan.recompute_flops > 0 && whole.plan.recompute_flops == 0,
	    "segments are walked again");

	lpo_params_zero_grad(&n.ps);
	lpo_params_zero_grad(&n.lora_ps);
	for (i = 0; i < G; i++) {
		forward(&one, i, 1, 0, y2 + i * C);
		backward(&one, i);
	}
	gradients(&n, b);
	if (on_cuda(&be)) {
		near = dt == LPO_F32 ? 1e-5 : 0.02;
		ok(distance(y2, y, G * C) < near && distance(b, a, len) < near,
		    "%s: %d groups at once or one by one: %.1e, %.1e",
		    lpo_dtype_name(dt), G, distance(y2, y, G * C),
		    distance(b, a, len));
	} else {
		report_differences(&n, a, b);
		ok(memcmp(y, y2, sizeof(y)) == 0 &&
		    memcmp(a, b, (size_t)len * 4) == 0, "%s: %d groups at "
		    "once or one by one: the same bits", lpo_dtype_name(dt),
		    G);
	}

	forward(&whole, 0, G, LPO_LORA_OFF, y);
	n.q.lora = n.in.lora = NULL;
	lpo_tape_free(one.t);
	record(&one, &n, G, dt, 0);
	forward(&one, 0, G, 0, y2);
	ok(memcmp(y, y2, sizeof(y)) == 0, "%s: LoRA off is the model without",
	    lpo_dtype_name(dt));
	lpo_tape_free(whole.t);
	lpo_tape_free(seg.t);
	lpo_tape_free(one.t);
	net_free(&n);
}

/* A table that counts records (whose calls are made at once) and may fail. */
static struct {
	const struct lpo_kernels *real;
	struct lpo_kernels table;
	int fail, begun, run, freed;
} fake;

static int
fake_begin(lpo_backend *b)
{
	(void)b;
	fake.begun++;
	return 0;
}

static int
fake_end(lpo_backend *b, void **graph)
{
	(void)b;
	*graph = &fake;
	return 0;
}

static int
fake_run(lpo_backend *b, void *graph)
{
	(void)b;
	fake.run += graph == &fake;
	return 0;
}

static void
fake_free(lpo_backend *b, void *graph)
{
	(void)b;
	fake.freed += graph == &fake;
}

static int
fake_geglu(lpo_backend *b, enum lpo_dtype dt, void *y, const void *x,
    int64_t m, int64_t c)
{
	return fake.fail ? LPO_ECUDA : fake.real->geglu_fwd(b, dt, y, x, m, c);
}

/* Half a walk is neither a first one nor a record. */
static void
broken_walks(void)
{
	struct net n;
	struct run r;
	float y[G * C], y2[G * C];

	memset(&fake, 0, sizeof(fake));
	fake.real = be.k;
	fake.table = *be.k;
	fake.table.graph_begin = fake_begin;
	fake.table.graph_end = fake_end;
	fake.table.graph_run = fake_run;
	fake.table.graph_free = fake_free;
	fake.table.geglu_fwd = fake_geglu;
	be.k = &fake.table;
	net_new(&n, LPO_F32, 0);
	record(&r, &n, G, LPO_F32, 0);
	fake.fail = 1;
	ok(lpo_tape_forward(r.t, 0) == LPO_ECUDA, "a walk fails");
	lpo_clear(ctx);
	fake.fail = 0;
	forward(&r, 0, G, 0, y);
	ok(fake.begun == 0, "the next one is not recorded");
	fake.fail = 1;
	ok(lpo_tape_forward(r.t, 0) == LPO_ECUDA && fake.begun == 1 &&
	    fake.freed == 1 && fake.run == 0,
	    "a record that fails is given back");
	lpo_clear(ctx);
	fake.fail = 0;
	forward(&r, 0, G, 0, y2);
	ok(fake.begun == 2 && fake.run == 1 && memcmp(y, y2, sizeof(y)) == 0,
	    "and made again");
	lpo_tape_free(r.t);
	ok(fake.freed == 2, "freed with the tape");
	net_free(&n);
	be.k = fake.real;
}

static void
errors(void)
{
	struct net n;
	lpo_tape *t;
	lpo_var *x;

	net_new(&n, LPO_F32, 0);
	t = lpo_tape_new(ctx, &be, LPO_F32, 1);
	x = lpo_input(t, 1, H, W, C, LPO_F32, 0);
	x = lpo_conv(t, &n.in, x);
	x = lpo_norm_silu(t, &n.norm, x);
	ok(x == NULL && lpo_tape_error(t) == LPO_EINVAL &&
	    strstr(lpo_errmsg(ctx), "conv_in") != NULL,
	    "a wrong shape is named: %s", lpo_errmsg(ctx));
	ok(lpo_tape_plan(t, 0, NULL) == LPO_EINVAL, "and sticks");
	lpo_clear(ctx);
	lpo_tape_free(t);
	net_free(&n);
}

/* A plan's seconds are found without doing its largest works. */
static void
seconds(void)
{
	enum { TOKENS = 1 << 17, WIDTH = 16 };
	int64_t shape[4] = { WIDTH, WIDTH };
	lpo_linear_layer l = { .name = "l" };
	double s[2], start;
	struct lpo_plan plan;
	struct lpo_dry dry;
	lpo_params ps;
	lpo_tape *t;
	lpo_var *x;
	int rc;

	lpo_dry_open(&dry, &be);
	lpo_params_init(&ps, ctx, &dry.be, LPO_F32);
	l.w = lpo_param_add(&ps, "w", LPO_MATRIX, 2, shape);
	t = lpo_tape_new(ctx, &dry.be, LPO_F32, 1);
	x = lpo_linear(t, &l, lpo_input(t, 1, TOKENS, 1, WIDTH, LPO_F32, 0));
	lpo_output(t, lpo_attention(t, x, x, x, 1, 0), 0);
	rc = lpo_tape_plan(t, 0, &plan);
	ok(rc == 0 && fabs(plan.fwd_flops / (4. * WIDTH * TOKENS * TOKENS +
	    2. * TOKENS * WIDTH * WIDTH) - 1) < 1e-9, "plan, FLOPs");
	start = lpo_now_s();
	rc = lpo_tape_commit(t, NULL);
	if (rc == 0)
		rc = lpo_tape_time(t, s);
	start = lpo_now_s() - start;
	if (dry.host)
		ok(rc == 0 && s[0] > 0 && isfinite(s[0]) && s[1] == 0 &&
		    start < s[0], "%.0f s are planned in %.2f", s[0], start);
	else
		ok(rc == 0 && isnan(s[0]), "not known of a device");
	lpo_tape_free(t);
	lpo_params_free(&ps);
}

int
main(void)
{
	static const char *const levels[] = { "auto", "cuda" };
	int i;

	ctx = lpo_ctx_new();
	for (i = 0; i < 2; i++) {
		if (!backend_open(&be, levels[i], 0, 0))
			continue;
		printf("# at level %s\n", levels[i]);
		draw(x0, G * H * W * CI, 0);
		draw(c0, G * 2 * 3 * C, 1);
		draw(w0, G * C, 2);
		differences();
		bits(LPO_F32);
		bits(LPO_BF16);
		broken_walks();
		errors();
		seconds();
		backend_close(&be);
	}
	lpo_ctx_free(ctx);
	return done_testing();
}
