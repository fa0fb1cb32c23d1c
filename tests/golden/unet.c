/* UNets of three shapes against diffusers. */
#include "lib/model/unet.h"
#include "tests/golden/golden.h"

static const float timestep[2] = { 7, 401 };
static const float time_id[2][6] = {
	{ 64, 96, 0, 8, 64, 96 }, { 48, 48, 4, 0, 64, 64 }
};

struct size {
	int64_t h, w;
};

/* Everything of one recorded evaluation. */
struct rec {
	lpo_tape *t;
	struct lpo_unet_in in;
	lpo_var *out, *pooled[LPO_UNET_MAX_BLOCKS + 1];
	int npooled;
};

static void
make_inputs(struct rec *r, const struct lpo_unet_config *g, struct size s,
    int64_t rows, int64_t texts, int copies)
{
	lpo_tape *t = r->t;

	r->in.copies = copies;
	r->in.sample = lpo_input(t, rows, s.h, s.w, 4, LPO_F32, 1);
	r->in.time = lpo_input(t, rows, 1, 1, g->channels[0], LPO_F32, 0);
	r->in.context = lpo_input(t, texts, 5, 1, g->context_dim, LPO_F32, 1);
	if (!g->text_time)
		return;
	r->in.text_embeds = lpo_input(t, texts, 1, 1, 20, LPO_F32, 1);
	r->in.time_ids = lpo_input(t, texts, 1, 1, 48, LPO_F32, 0);
}

/* which: 1 the output, 2 the features, 3 both */
static int
record(struct golden *g, struct rec *r, lpo_unet *u, struct size s,
    enum lpo_dtype dt, int64_t groups, int64_t rows, int64_t texts,
    int copies, int flat, int which)
{
	struct lpo_plan plan;
	int i, rc;

	memset(r, 0, sizeof(*r));
	if ((r->t = lpo_tape_new(g->c, &g->be, dt, groups)) == NULL)
		return LPO_ENOMEM;
	make_inputs(r, lpo_unet_cfg(u), s, rows, texts, copies);
	r->in.flat_uncond = flat;
	if (which & 1) {
		r->out = lpo_unet_fwd(r->t, u, &r->in);
		lpo_output(r->t, r->out, 1);
	}
	if (which & 2)
		r->npooled = lpo_unet_features(r->t, u, &r->in, r->pooled);
	for (i = 0; i < r->npooled; i++)
		lpo_output(r->t, r->pooled[i], 1);
	if ((rc = lpo_tape_plan(r->t, 1, &plan)) < 0)
		return rc;
	return lpo_tape_commit(r->t, NULL);
}

/* Row i of time and time_ids holds the golden inputs' row row_of[i]. */
static int
set_times(struct rec *r, const struct lpo_unet_config *g, const int *row_of,
    const int *text_of)
{
	float x[512];
	int64_t i, j, d = g->channels[0];
	int rc;

	for (i = 0; i < r->in.time->n; i++)
		lpo_sinusoid(x + i * d, timestep[row_of[i]], d,
		    g->flip_sin_to_cos, g->freq_shift);
	if ((rc = lpo_var_set(r->t, r->in.time, x)) < 0 || !g->text_time)
		return rc;
	for (i = 0; i < r->in.time_ids->n; i++)
		for (j = 0; j < 6; j++)
			lpo_sinusoid(x + (i * 6 + j) * g->add_time_dim,
			    time_id[text_of[i]][j], g->add_time_dim,
			    g->flip_sin_to_cos, g->freq_shift);
	return lpo_var_set(r->t, r->in.time_ids, x);
}

static int
set_inputs(struct rec *r, const struct lpo_unet_config *g)
{
	static const int own[2] = { 0, 1 };
	int rc;

	if ((rc = g_set(r->t, r->in.sample, "sample", 2, 0, 0)) < 0 ||
	    (rc = g_set(r->t, r->in.context, "context", 1, 1, 0)) < 0 ||
	    (g->text_time && (rc = g_set(r->t, r->in.text_embeds,
	    "text_embeds", 1, 1, 0)) < 0))
		return rc;
	return set_times(r, g, own, own);
}

static int
walk(struct rec *r, int flags)
{
	char name[32];
	int i, rc;

	if ((rc = lpo_tape_forward(r->t, flags)) < 0 ||
	    (r->out != NULL &&
	    (rc = g_set(r->t, r->out, "d_out", 1, 0, 1)) < 0))
		return rc;
	for (i = 0; i < r->npooled; i++) {
		snprintf(name, sizeof(name), "d_pooled%d", i);
		if ((rc = g_set(r->t, r->pooled[i], name, 1, 1, 1)) < 0)
			return rc;
	}
	return lpo_tape_backward(r->t);
}

static void
check_values(struct golden *g, struct rec *r)
{
	char name[32];
	int i;

	if (r->out != NULL)
		g_check(g, r->t, r->out, "out", 0, 0);
	for (i = 0; i < r->npooled; i++) {
		snprintf(name, sizeof(name), "pooled%d", i);
		g_check(g, r->t, r->pooled[i], name, 1, 0);
	}
}

/* All gradients in one piece, to compare walks bit by bit. */
static float *
all_grads(lpo_params *ps, int64_t *total)
{
	float *x, *at;
	int64_t i;

	for (i = 0, *total = 0; i < ps->n; i++)
		*total += ps->p[i]->count;
	at = x = malloc((size_t)*total * sizeof(*x));
	for (i = 0; i < ps->n; at += ps->p[i++]->count)
		if (lpo_param_export_grad(ps, ps->p[i], at) < 0)
			memset(at, 0xff, (size_t)ps->p[i]->count * 4);
	return x;
}

static void
test_parity(struct golden *g, lpo_unet *u, struct size s)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(u);
	lpo_params *ps = lpo_unet_params(u);
	struct rec r, k;
	float *a, *b;
	int64_t n;

	if (record(g, &r, u, s, LPO_F32, 2, 2, 2, 1, 0, 3) < 0 ||
	    set_inputs(&r, cfg) < 0 || walk(&r, 0) < 0) {
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
		lpo_tape_free(r.t);
		return;
	}
	check_values(g, &r);
	g_check(g, r.t, r.in.sample, "grad_sample", 0, 1);
	g_check(g, r.t, r.in.context, "grad_context", 1, 1);
	if (cfg->text_time)
		g_check(g, r.t, r.in.text_embeds, "grad_text_embeds", 1, 1);
	g_check_grads(g, ps, NULL);

	a = all_grads(ps, &n);
	lpo_params_zero_grad(ps);
	lpo_unet_set_checkpoint(u, 1);
	if (record(g, &k, u, s, LPO_F32, 2, 2, 2, 1, 0, 3) < 0 ||
	    set_inputs(&k, cfg) < 0 || walk(&k, 0) < 0) {
		ok(0, "%s: %s", g->name, lpo_errmsg(g->c));
	} else {
		b = all_grads(ps, &n);
		ok(memcmp(a, b, (size_t)n * sizeof(*a)) == 0,
		    "%s: checkpointed segments give the same bits", g->name);
		free(b);
	}
	lpo_unet_set_checkpoint(u, 0);
	lpo_params_zero_grad(ps);
	free(a);
	lpo_tape_free(r.t);
	lpo_tape_free(k.t);
}

/* Inputs of r samples and two texts, and what a recording makes of them. */
struct pass {
	float *sample, *text, *pool;
	float *y, *dx, *grads;
	int64_t n;		/* weight gradients */
};

static void
pass_free(struct pass *p)
{
	free(p->sample);
	free(p->text);
	free(p->pool);
	free(p->y);
	free(p->dx);
	free(p->grads);
}

/* Forward and backward; row i has the time row_of[i], text i text_of[i]'s. */
static int
pass_run(struct rec *k, struct pass *p, lpo_unet *u, const int *row_of,
    const int *text_of)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(u);

	if (lpo_var_set(k->t, k->in.sample, p->sample) < 0 ||
	    lpo_var_set(k->t, k->in.context, p->text) < 0 ||
	    (cfg->text_time &&
	    lpo_var_set(k->t, k->in.text_embeds, p->pool) < 0) ||
	    set_times(k, cfg, row_of, text_of) < 0 || walk(k, 0) < 0 ||
	    lpo_var_get(k->t, k->out, p->y) < 0 ||
	    lpo_var_get_grad(k->t, k->in.sample, p->dx) < 0)
		return -1;
	p->grads = all_grads(lpo_unet_params(u), &p->n);
	lpo_params_zero_grad(lpo_unet_params(u));
	return 0;
}

/* Row i is row i % each (cycle) or i / each of `from`. */
static float *
repeat(const float *from, int64_t size, int rows, int each, int cycle)
{
	float *to = malloc((size_t)(rows * size) * sizeof(*to));
	int i;

	for (i = 0; i < rows; i++)
		memcpy(to + i * size, from + (cycle ? i % each : i / each) *
		    size, (size_t)size * sizeof(*to));
	return to;
}

/* copies = 2 as p has it, separate rows as q: one of q's is `one` long. */
static void
compare_copies(const struct golden *g, const struct pass *p,
    const struct pass *q, int64_t one, int r, int flat)
{
	double worst = 0, largest = 0;
	int64_t i;

	for (i = 0; i < 2 * r * one; i++) {
		worst = worse(worst, fabs((double)p->y[i] -
		    (double)q->y[i]));
		largest = fmax(largest, fabs((double)q->y[i]));
	}
	/* on CUDA a row's bits may depend on how many there are */
	ok(flat || on_cuda(&g->be) ? worst <= 1e-5 * largest :
	    memcmp(p->y, q->y, (size_t)(2 * r * one) * sizeof(*q->y)) == 0,
	    "%s: copies 2 is separate rows (%.2g of %.2g)", g->name, worst,
	    largest);
	worst = largest = 0;
	for (i = 0; i < r * one; i++) {
		worst = worse(worst, fabs((double)p->dx[i] -
		    (double)q->dx[i] - (double)q->dx[r * one + i]));
		largest = fmax(largest, fabs((double)p->dx[i]));
	}
	ok(worst <= 1e-5 * largest, "%s: and the sum of their input gradients "
	    "(%.2g of %.2g)", g->name, worst, largest);
	for (i = 0, worst = largest = 0; i < p->n; i++) {
		worst = worse(worst, fabs((double)p->grads[i] -
		    (double)q->grads[i]));
		largest = fmax(largest, fabs((double)p->grads[i]));
	}
	ok(worst <= 1e-5 * largest, "%s: and of their weight gradients "
	    "(%.2g of %.2g)", g->name, worst, largest);
}

/* The second text's first token, of dim values, in place of all others. */
static float *
token_again(float *text, int64_t ctx, int64_t dim)
{
	int64_t i;

	for (i = dim; dim > 0 && i < ctx; i++)
		text[ctx + i] = text[ctx + i - dim];
	return text;
}

/*
 * Guidance.  One group, r samples, two texts, copies = 2; against every
 * (sample, text) as a row of its own: [s0 t0, s1 t0, s0 t1, s1 t1] (r = 2).
 * flat: the second text is one token, five times.
 */
static void
test_copies(struct golden *g, lpo_unet *u, struct size s, int r, int flat)
{
	int64_t one = s.h * s.w * 4, dim = lpo_unet_cfg(u)->context_dim;
	int64_t ctx = 5 * dim;
	int row_of[4], text_of[4], own[2] = { 0, 1 }, i, bad;
	struct pass p = { g_uniform("sample", 2 * one, 2),
	    token_again(g_uniform("context", 2 * ctx, 1), ctx, flat ? dim : 0),
	    g_uniform("text_embeds", 40, 1), NULL, NULL, NULL, 0 };
	struct pass q = { repeat(p.sample, one, 2 * r, r, 1),
	    repeat(p.text, ctx, 2 * r, r, 0), repeat(p.pool, 20, 2 * r, r, 0),
	    NULL, NULL, NULL, 0 };
	struct rec k, l;

	for (i = 0; i < 2 * r; i++) {
		row_of[i] = i % r;
		text_of[i] = i / r;
	}
	p.y = malloc((size_t)(2 * r * one) * sizeof(*p.y));
	p.dx = malloc((size_t)(2 * r * one) * sizeof(*p.dx));
	q.y = malloc((size_t)(2 * r * one) * sizeof(*q.y));
	q.dx = malloc((size_t)(2 * r * one) * sizeof(*q.dx));
	memset(&k, 0, sizeof(k));
	memset(&l, 0, sizeof(l));
	bad = record(g, &k, u, s, LPO_F32, 1, r, 2, 2, flat, 1) < 0 ||
	    pass_run(&k, &p, u, own, own) < 0 ||
	    record(g, &l, u, s, LPO_F32, 1, 2 * r, 2 * r, 1, 0, 1) < 0 ||
	    pass_run(&l, &q, u, row_of, text_of) < 0;
	ok(!bad, "%s: copies 2, %d row%s%s: %s", g->name, r, r > 1 ? "s" : "",
	    flat ? ", one token" : "", lpo_errmsg(g->c));
	if (!bad)
		compare_copies(g, &p, &q, one, r, flat);
	lpo_tape_free(k.t);
	lpo_tape_free(l.t);
	pass_free(&p);
	pass_free(&q);
}

/* bf16 storage: not parity, but nothing far off either. */
static void
test_bf16(struct golden *g, struct size s)
{
	lpo_unet *u = NULL;
	struct rec r = { 0 };
	double num = 0, den = 0;
	float *want = NULL, *have, *x;
	int64_t n = 0, i;

	if (lpo_unet_load(g->c, &g->be, &u, g->tmp, LPO_BF16, 0) < 0 ||
	    lpo_params_train_all(lpo_unet_params(u)) < 0 ||
	    record(g, &r, u, s, LPO_BF16, 2, 2, 2, 1, 0, 1) < 0 ||
	    set_inputs(&r, lpo_unet_cfg(u)) < 0 || walk(&r, 0) < 0) {
		ok(0, "%s: bf16: %s", g->name, lpo_errmsg(g->c));
		goto out;
	}
	want = g_tensor(g, "out", &n);
	x = malloc((size_t)n * sizeof(*x));
	lpo_var_get(r.t, r.out, x);
	have = g_swap(x, 2, s.h * s.w, 4);
	for (i = 0; i < n; i++) {
		num += pow((double)have[i] - (double)want[i], 2);
		den += pow((double)want[i], 2);
	}
	ok(sqrt(num / den) < 0.04, "%s: bf16 is off by %.2g of the whole",
	    g->name, sqrt(num / den));
	free(x);
	free(have);
out:
	free(want);
	lpo_tape_free(r.t);
	lpo_unet_free(u);
}

static void
test_half(struct golden *g, struct size s)
{
	lpo_unet *u = NULL;
	struct rec r = { 0 };

	if (lpo_unet_load(g->c, &g->be, &u, g->tmp, LPO_F32, 1) < 0 ||
	    record(g, &r, u, s, LPO_F32, 2, 2, 2, 1, 0, 2) < 0 ||
	    set_inputs(&r, lpo_unet_cfg(u)) < 0 ||
	    lpo_tape_forward(r.t, 0) < 0)
		ok(0, "%s: half: %s", g->name, lpo_errmsg(g->c));
	else
		check_values(g, &r);
	ok(u != NULL && lpo_param_find(lpo_unet_params(u),
	    "conv_out.weight") == NULL, "%s: half has no conv_out", g->name);
	lpo_tape_free(r.t);
	lpo_unet_free(u);
}

static void
test_unet(const char *name, struct size s, const char *level)
{
	struct golden g;
	lpo_unet *u = NULL;
	int r;

	if (!g_open(&g, name, level))
		return;
	if (g_write_model(&g, g.st, "diffusion_pytorch_model", NULL) < 0 ||
	    lpo_unet_load(g.c, &g.be, &u, g.tmp, LPO_F32, 0) < 0 ||
	    lpo_params_train_all(lpo_unet_params(u)) < 0) {
		ok(0, "%s: %s", name, lpo_errmsg(g.c));
	} else {
		test_parity(&g, u, s);
		for (r = 1; r <= 2; r++) {
			test_copies(&g, u, s, r, 0);
			if (lpo_unet_cfg(u)->text_time)
				test_copies(&g, u, s, r, 1);
		}
		test_half(&g, s);
		test_bf16(&g, s);
	}
	lpo_unet_free(u);
	g_close(&g);
}

/* models.md 2.3: values of torch at t = 981 and 1024 */
static void
test_sinusoid(void)
{
	static const float want[8] = { 0.67995721f, -0.79842919f, 0.57806414f,
	    -0.67470044f, 0.73325181f, 0.60208869f, 0.81599128f,
	    0.73809165f };
	float x[320];
	double worst = 0;
	int i;

	lpo_sinusoid(x, 981, 320, 1, 0);
	for (i = 0; i < 8; i++)
		worst = worse(worst, fabs((double)(x[i < 4 ? i : 156 + i] -
		    want[i])));
	lpo_sinusoid(x, 1024, 256, 1, 0);
	worst = worse(worst, fabs((double)x[0] - 0.98735362));
	worst = worse(worst, fabs((double)x[128] + 0.15853338));
	/* one unit in the last place of the frequency, times t */
	ok(worst < 6e-5, "sinusoids as torch's (%.2g)", worst);
}

int
main(void)
{
	static const char *const levels[] = { "auto", "portable", "cuda" };
	int i;

	test_sinusoid();
	for (i = 0; i < 3; i++) {
		test_unet("unet15", (struct size){ 7, 9 }, levels[i]);
		test_unet("unet21", (struct size){ 8, 8 }, levels[i]);
		test_unet("unetxl", (struct size){ 8, 12 }, levels[i]);
	}
	return done_testing();
}
