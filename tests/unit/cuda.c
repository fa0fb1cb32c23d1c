/*
 * The plug-in, and whole UNets of real shapes on it: against the CPU, and the
 * same bits run after run, with and without checkpointed segments.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/model/unet.h"
#include "tests/backend.h"

enum { ROWS = 2, LENGTH = 77 };

static lpo_ctx *ctx;

/* What one evaluation makes, on the host. */
struct result {
	float *out, *dx, *dctx;
	int64_t n, nctx;
};

static void
result_free(struct result *r)
{
	free(r->out);
	free(r->dx);
	free(r->dctx);
	memset(r, 0, sizeof(*r));
}

static float *
normal(uint32_t item, int64_t n)
{
	struct lpo_draw d = { .seed = 11, .purpose = LPO_DRAW_NOISE,
	    .item = item };
	float *x = malloc((size_t)n * sizeof(*x));

	lpo_draw_normal(&d, 0, x, n);
	return x;
}

static int
set_normal(lpo_tape *t, lpo_var *v, uint32_t item, int grad)
{
	float *x = normal(item, lpo_var_count(v));
	int rc = grad ? lpo_var_set_grad(t, v, x) : lpo_var_set(t, v, x);

	free(x);
	return rc;
}

static int
set_times(lpo_tape *t, lpo_var *v, const struct lpo_unet_config *g)
{
	static const float at[ROWS] = { 401, 981 };
	int64_t d = g->channels[0], i;
	float *x = malloc((size_t)(ROWS * d) * sizeof(*x));
	int rc;

	for (i = 0; i < ROWS; i++)
		lpo_sinusoid(x + i * d, at[i], d, g->flip_sin_to_cos,
		    g->freq_shift);
	rc = lpo_var_set(t, v, x);
	free(x);
	return rc;
}

/* Forward and backward `times` times; r is of the last. */
static int
evaluate(lpo_backend *be, lpo_unet *u, enum lpo_dtype dt, int64_t side,
    int times, struct result *r)
{
	const struct lpo_unet_config *g = lpo_unet_cfg(u);
	struct lpo_unet_in in = { .copies = 1 };
	lpo_tape *t = lpo_tape_new(ctx, be, dt, ROWS);
	struct lpo_plan plan;
	lpo_var *y;
	int i, rc;

	in.sample = lpo_input(t, ROWS, side, side, 4, LPO_F32, 1);
	in.time = lpo_input(t, ROWS, 1, 1, g->channels[0], LPO_F32, 0);
	in.context = lpo_input(t, ROWS, LENGTH, 1, g->context_dim, LPO_F32, 1);
	y = lpo_unet_fwd(t, u, &in);
	lpo_output(t, y, 1);
	if ((rc = lpo_tape_plan(t, 1, &plan)) == 0)
		rc = lpo_tape_commit(t, NULL);
	for (i = 0; i < times && rc == 0; i++)
		if ((rc = set_normal(t, in.sample, 1, 0)) == 0 &&
		    (rc = set_normal(t, in.context, 2, 0)) == 0 &&
		    (rc = set_times(t, in.time, g)) == 0 &&
		    (rc = lpo_tape_forward(t, 0)) == 0 &&
		    (rc = set_normal(t, y, 3, 1)) == 0)
			rc = lpo_tape_backward(t);
	if (rc == 0) {
		r->n = lpo_var_count(y);
		r->nctx = lpo_var_count(in.context);
		r->out = calloc((size_t)r->n, sizeof(float));
		r->dx = calloc((size_t)r->n, sizeof(float));
		r->dctx = calloc((size_t)r->nctx, sizeof(float));
		rc = lpo_var_get(t, y, r->out) | lpo_var_get_grad(t,
		    in.sample, r->dx) | lpo_var_get_grad(t, in.context,
		    r->dctx);
	}
	lpo_tape_free(t);
	return rc;
}

static lpo_unet *
load(lpo_backend *be, const char *dir, enum lpo_dtype dt)
{
	lpo_unet *u = NULL;

	if (lpo_unet_load(ctx, be, &u, dir, dt, 0) != 0) {
		ok(0, "%s %s: %s", dir, lpo_dtype_name(dt), lpo_errmsg(ctx));
		lpo_clear(ctx);
	}
	return u;
}

/* On a tape of its own, with or without checkpointed segments. */
static int
run(lpo_backend *be, lpo_unet *u, enum lpo_dtype dt, int64_t side, int times,
    int segments, struct result *r)
{
	int rc;

	memset(r, 0, sizeof(*r));
	lpo_unet_set_checkpoint(u, segments);
	if ((rc = evaluate(be, u, dt, side, times, r)) != 0) {
		ok(0, "%s: %s", lpo_dtype_name(dt), lpo_errmsg(ctx));
		lpo_clear(ctx);
	}
	return rc == 0;
}

/* Root mean square of a - b, relative to b's. */
static double
off(const float *a, const float *b, int64_t n)
{
	double num = 0, den = 0;
	int64_t i;

	for (i = 0; i < n; i++) {
		num += pow((double)a[i] - (double)b[i], 2);
		den += pow((double)b[i], 2);
	}
	return sqrt(num / den);
}

static int
same(const struct result *a, const struct result *b)
{
	size_t n = (size_t)a->n * sizeof(float);

	return memcmp(a->out, b->out, n) == 0 && memcmp(a->dx, b->dx, n) == 0 &&
	    memcmp(a->dctx, b->dctx, (size_t)a->nctx * sizeof(float)) == 0;
}

/*
 * limit: of the whole; gradients have gone through twice as much.  A second walk of the same
 * tape is one that was recorded, where the backend records.
 */
static void
against(lpo_backend *be, const char *dir, enum lpo_dtype dt, int64_t side,
    const struct result *want, double limit)
{
	const char *type = lpo_dtype_name(dt);
	lpo_unet *u = load(be, dir, dt);
	struct result a, b;
	double e[3];

	if (u == NULL || !run(be, u, dt, side, 1, 0, &a))
		goto out;
	e[0] = off(a.out, want->out, a.n);
	e[1] = off(a.dx, want->dx, a.n);
	e[2] = off(a.dctx, want->dctx, a.nctx);
	ok(e[0] < limit && e[1] < 2 * limit && e[2] < 2 * limit, "%s %s "
	    "against the CPU: off by %.2g (limit %.2g), gradients %.2g and "
	    "%.2g", dir, type, e[0], limit, e[1], e[2]);
	if (run(be, u, dt, side, 3, 0, &b))
		ok(same(&a, &b), "%s %s: the third walk has the bits of the "
		    "first", dir, type);
	result_free(&b);
	if (run(be, u, dt, side, 1, 1, &b))
		ok(same(&a, &b), "%s %s: checkpointed segments change no bit",
		    dir, type);
	result_free(&b);
	result_free(&a);
out:
	lpo_unet_free(u);
}

/* side: of the latent.  f32 adds in another order, bf16 rounds. */
static void
compare(lpo_backend *be, lpo_backend *cpu, const char *dir, int64_t side)
{
	lpo_unet *u = load(cpu, dir, LPO_F32);
	struct result want;
	int good = u != NULL && run(cpu, u, LPO_F32, side, 1, 0, &want);

	lpo_unet_free(u);
	if (!good)
		return;
	against(be, dir, LPO_F32, side, &want, 2e-5);
	against(be, dir, LPO_BF16, side, &want, 0.04);
	result_free(&want);
}

static void
plug_in(void)
{
	struct lpo_device d[8];
	char text[256] = "";
	lpo_backend other;
	int n = lpo_cuda_devices(d, 8, text, sizeof(text));

	ok(n > 0 && d[0].usable && d[0].memory_bytes >= d[0].free_bytes,
	    "%d device%s: %s, %d.%d, %d processors; %s", n, n == 1 ? "" : "s",
	    n > 0 ? d[0].name : text, d[0].major, d[0].minor,
	    d[0].processors, lpo_cuda_versions());
	ok(lpo_cuda_open(&other, 99, 0, text, sizeof(text)) == LPO_ENODEV &&
	    *text != '\0' && strchr(text, '\n') == NULL, "no device 99: %s",
	    text);
}

int
main(void)
{
	lpo_backend be, cpu;

	ctx = lpo_ctx_new();
	if (backend_open(&be, "cuda", 0, 0)) {
		if (lpo_cpu_open(&cpu, LPO_ISA_AUTO, 0) != 0)
			return 1;
		plug_in();
		compare(&be, &cpu, "random:tiny/unet", 16);
		compare(&be, &cpu, "random:tiny21/unet", 8);
		compare(&be, &cpu, "random:sd15/unet", 16);
		lpo_cpu_close(&cpu);
		backend_close(&be);
	}
	lpo_ctx_free(ctx);
	return done_testing();
}
