/*
 * One LPO step on the demo's base model against diffusers and torch in f64:
 * what lpo-train does with a batch of three pairs, by the same functions.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/io/safetensors.h"
#include "lib/model/lora.h"
#include "lib/train/lpo_loss.h"
#include "lib/train/policy.h"
#include "tests/backend.h"

enum { PAIRS = 3, C = 4, HW = 64, COUNT = C * HW };

static lpo_ctx *ctx;
static lpo_st *want;
static double limit;	/* relative to a tensor's largest value */

static float *
values(const char *key)
{
	const struct lpo_st_tensor *t = lpo_st_find(want, key);
	float *v;

	if (t == NULL)
		return NULL;
	v = malloc((size_t)t->count * sizeof(*v));
	lpo_st_f32(ctx, v, t);
	return v;
}

/* [n, c, hw] of the file to our [n, hw, c] */
static float *
latent(const char *key)
{
	float *a = values(key), *b = malloc(PAIRS * COUNT * sizeof(*b));
	int n, c, i;

	for (n = 0; n < PAIRS; n++)
		for (c = 0; c < C; c++)
			for (i = 0; i < HW; i++)
				b[n * COUNT + i * C + c] =
				    a[n * COUNT + c * HW + i];
	free(a);
	return b;
}

static double
error(const float *got, const float *ref, int64_t n)
{
	double e = 0, max = 1e-30;
	int64_t i;

	for (i = 0; i < n; i++) {
		e = worse(e, fabs((double)got[i] - ref[i]));
		max = fmax(max, fabs(ref[i]));
	}
	return e / max;
}

struct worst {
	double err;
	char key[160];
	int tensors;
};

static int
check_gradient(void *arg, const char *key, int rank, const int64_t *shape,
    const float *data)
{
	struct worst *w = arg;
	char name[160];
	float *ref;
	double e;

	snprintf(name, sizeof(name), "grad.%s", key);
	if (rank != 2 || (ref = values(name)) == NULL)
		return 0;
	e = error(data, ref, shape[0] * shape[1]);
	free(ref);
	w->tensors++;
	if (e > w->err) {
		w->err = e;
		snprintf(w->key, sizeof(w->key), "%s", key);
	}
	return 0;
}

/* The evaluations and losses; gradients are left in the LoRA. */
static int
step(lpo_policy *p, lpo_policy_texts *texts, const struct lpo_schedule *s,
    float *eps, float *eps_ref)
{
	const int64_t t[PAIRS] = { 901, 451, 51 }, who[PAIRS] = { 0, 1, 2 };
	const struct lpo_pair_loss o = { .beta = 500, .clip = 0.1 };
	float *x = latent("x_t"), *w = latent("x_win"), *l = latent("x_lose");
	float *loss = values("loss"), d[PAIRS * COUNT];
	struct lpo_pair_out out;
	struct lpo_ddim dd;
	int i, rc;

	if ((rc = lpo_policy_eval(p, eps_ref, texts, x, t, who, PAIRS,
	    LPO_LORA_OFF)) < 0 || (rc = lpo_policy_eval(p, eps, texts, x, t,
	    who, PAIRS, 0)) < 0)
		return rc;
	for (i = 0; i < PAIRS; i++) {
		lpo_schedule_ddim(s, &dd, t[i], 20, 1, 1);
		lpo_pair_loss_eval(&o, &out, d + i * COUNT, 1.0 / PAIRS, &dd,
		    eps + i * COUNT, eps_ref + i * COUNT, x + i * COUNT,
		    w + i * COUNT, l + i * COUNT, COUNT);
		/* h is beta times a difference of logarithms near 0: the
		 * error of ln r counts 500 times in it */
		ok(fabs(out.loss - loss[i]) < 500 * 2e-6 * fmax(loss[i], 1),
		    "t %d: loss %.6f, torch %.6f", (int)t[i], out.loss,
		    loss[i]);
	}
	rc = lpo_policy_backward(p, d, PAIRS);
	free(x);
	free(w);
	free(l);
	free(loss);
	return rc;
}

static void
test(lpo_backend *be, const char *level)
{
	static const char *const prompts[] = { "a red circle",
	    "two large blue squares",
	    "a green cross left of a pink triangle" };
	struct lpo_policy_shape shape = { .groups = PAIRS, .h = 8, .w = 8,
	    .height_px = 32, .width_px = 32, .guidance = 5, .backward = 1 };
	struct lpo_schedule s = { .abar = NULL };
	struct worst w = { .err = 0 };
	lpo_policy_texts *texts = NULL;
	lpo_policy *p = NULL;
	lpo_lora_set *lora = NULL;
	lpo_unet *unet = NULL;
	lpo_text *text = NULL;
	float eps[PAIRS * COUNT], ref[PAIRS * COUNT], *v;

	if (lpo_text_open(ctx, be, &text, "demo/model", LPO_F32) < 0 ||
	    lpo_policy_texts_new(ctx, &texts, text, prompts, PAIRS) < 0)
		goto out;
	shape.length = lpo_text_length(text);
	shape.dim = lpo_text_dim(text);
	if (lpo_unet_load(ctx, be, &unet, "demo/model/unet", LPO_F32, 0) < 0 ||
	    lpo_lora_load(ctx, &lora, unet,
	    "tests/golden/lpo_step_lora.safetensors", 1, 1) < 0 ||
	    lpo_schedule_load(ctx, &s, "demo/model") < 0 ||
	    lpo_policy_new(ctx, &p, be, unet, LPO_F32, &shape) < 0 ||
	    lpo_policy_commit(p, NULL) < 0 ||
	    step(p, texts, &s, eps, ref) < 0)
		goto out;
	v = latent("eps");
	ok(error(eps, v, PAIRS * COUNT) < limit, "%s: guided policy, error "
	    "%.1e", level, error(eps, v, PAIRS * COUNT));
	free(v);
	v = latent("eps_ref");
	ok(error(ref, v, PAIRS * COUNT) < limit, "%s: guided reference, error "
	    "%.1e", level, error(ref, v, PAIRS * COUNT));
	free(v);
	lpo_lora_each(ctx, lora, LPO_LORA_AS_READ, 1, check_gradient, &w);
	ok(w.tensors == 112, "%s: %d gradients, all of them", level, w.tensors);
	ok(w.err < limit, "%s: worst gradient error %.1e (limit %.1e) in %s",
	    level, w.err, limit, w.key);
out:
	ok(lpo_errcode(ctx) == 0, "%s: no error %s", level, lpo_errmsg(ctx));
	lpo_clear(ctx);
	lpo_policy_free(p);
	lpo_lora_free(lora);
	lpo_unet_free(unet);
	lpo_policy_texts_free(texts);
	lpo_text_free(text);
	lpo_schedule_free(&s);
}

/* ------------------------------------------------- the same by lpo-probe */

static const int64_t timestep[PAIRS] = { 901, 451, 51 };

/* What the components take, as the golden file and our text encoder have it. */
static int
write_inputs(const char *path)
{
	static const char *const key[] = { "x_t", "x_win", "x_lose", "eps",
	    "eps_ref" };
	static const char *const prompts[] = { "a red circle",
	    "two large blue squares",
	    "a green cross left of a pink triangle", "" };
	const int64_t shape[4] = { PAIRS, C, 8, 8 };
	int64_t n[1] = { PAIRS }, text_shape[3] = { PAIRS, 0, 0 }, i, row;
	float *context = NULL, *v[5] = { NULL };
	lpo_text *text = NULL;
	lpo_stw *w = NULL;
	lpo_backend be;
	int rc;

	if (!backend_open(&be, "auto", 0, 0))
		return -1;
	if ((rc = lpo_text_open(ctx, &be, &text, "demo/model", LPO_F32)) < 0)
		goto out;
	text_shape[1] = lpo_text_length(text);
	text_shape[2] = lpo_text_dim(text);
	row = text_shape[1] * text_shape[2];
	context = malloc((size_t)(4 * row) * sizeof(*context));
	if ((rc = lpo_text_encode(text, context, NULL, prompts, 4)) < 0 ||
	    (rc = lpo_stw_new(ctx, &w)) < 0)
		goto out;
	for (i = 0; i < 5 && rc == 0; i++)
		rc = lpo_stw_add_f32(w, key[i], LPO_F32, 4, shape,
		    v[i] = values(key[i]));
	if (rc == 0)
		rc = lpo_stw_add(w, "timestep", LPO_I64, 1, n, timestep);
	if (rc == 0)
		rc = lpo_stw_add_f32(w, "encoder_hidden_states", LPO_F32, 3,
		    text_shape, context);
	text_shape[0] = 1;
	if (rc == 0)
		rc = lpo_stw_add_f32(w, "uncond_hidden_states", LPO_F32, 3,
		    text_shape, context + 3 * row);
	if (rc == 0)
		rc = lpo_stw_write(w, path);
out:
	lpo_stw_free(w);
	lpo_text_free(text);
	backend_close(&be);
	free(context);
	for (i = 0; i < 5; i++)
		free(v[i]);
	return rc;
}

/* The error of a tensor of `got` against the golden one of its name. */
static double
error_of(lpo_st *got, const char *key)
{
	const struct lpo_st_tensor *t = lpo_st_find(got, key);
	float *ref = values(key), *is;
	double e = INFINITY;

	if (t != NULL && ref != NULL &&
	    t->count == lpo_st_find(want, key)->count) {
		is = malloc((size_t)t->count * sizeof(*is));
		lpo_st_f32(ctx, is, t);
		e = error(is, ref, t->count);
		free(is);
	}
	free(ref);
	return e;
}

static void
same_as(lpo_st *got, const char *component, const char *key, double bound)
{
	double e = error_of(got, key);

	ok(e < bound, "%s: %s, error %.1e", component, key, e);
}

static void
same_loss(lpo_st *got, const char *component)
{
	float *loss = values("loss"), is = NAN;
	double mean = ((double)loss[0] + (double)loss[1] + (double)loss[2]) /
	    PAIRS;
	const struct lpo_st_tensor *t = lpo_st_find(got, "loss");

	if (t != NULL && t->count == 1)
		lpo_st_f32(ctx, &is, t);
	ok(fabs(is - mean) < 500 * 2e-6 * fmax(mean, 1), "%s: loss %.6f, "
	    "torch %.6f", component, (double)is, mean);
	free(loss);
}

static char program[512];	/* lpo-probe */

static lpo_st *
run_probe(const char *dir, const char *component, const char *more)
{
	char command[1024], path[256];
	lpo_st *got = NULL;

	snprintf(path, sizeof(path), "%s/out.safetensors", dir);
	snprintf(command, sizeof(command), "%s -q --precision f32 "
	    "-m demo/model -c %s -i %s/in.safetensors -o %s --steps 20 "
	    "--eta 1 --beta 500 --clip 0.1 --guidance 5 %s", program,
	    component, dir, path, more);
	ok(system(command) == 0 && lpo_st_open(ctx, &got, path) == 0,
	    "lpo-probe -c %s %s", component, lpo_errmsg(ctx));
	lpo_clear(ctx);
	return got;
}

/* x0, mean and sigma in f64 from the cumulative products it gives. */
static void
check_ddim(lpo_st *got)
{
	const struct lpo_st_tensor *t = lpo_st_find(got, "alphas_cumprod");
	float *x = values("x_t"), *eps = values("eps"), *abar, *is[2];
	float sigma[PAIRS];
	double a, b, s, x0, e[3] = { 0, 0, 0 };
	int n, i;

	abar = malloc((size_t)t->count * sizeof(*abar));
	lpo_st_f32(ctx, abar, t);
	for (i = 0; i < 2; i++) {
		is[i] = malloc(PAIRS * COUNT * sizeof(float));
		lpo_st_f32(ctx, is[i], lpo_st_find(got, i ? "mu" : "x0"));
	}
	lpo_st_f32(ctx, sigma, lpo_st_find(got, "sigma"));
	for (n = 0; n < PAIRS; n++) {
		a = abar[timestep[n]];
		b = abar[timestep[n] - 50];
		s = sqrt((1 - b) / (1 - a) * (1 - a / b));
		e[2] = worse(e[2], fabs(sigma[n] - s));
		for (i = n * COUNT; i < (n + 1) * COUNT; i++) {
			x0 = (x[i] - sqrt(1 - a) * eps[i]) / sqrt(a);
			e[0] = worse(e[0], fabs(is[0][i] - x0) /
			    fmax(1, fabs(x0)));
			e[1] = worse(e[1], fabs(is[1][i] - (sqrt(b) * x0 +
			    sqrt(1 - b - s * s) * eps[i])));
		}
	}
	ok(e[0] < 1e-5 && e[1] < 1e-5 && e[2] < 1e-6, "ddim: x0 %.1e, mean "
	    "%.1e, sigma %.1e from the formula", e[0], e[1], e[2]);
	free(abar);
	free(is[0]);
	free(is[1]);
	free(x);
	free(eps);
}

static void
test_probe(void)
{
	char dir[] = "/tmp/lpo-step-XXXXXX", path[256];
	const struct lpo_st_tensor *t;
	const char *bin = getenv("BIN");
	double worst = 0;
	lpo_st *got;
	int64_t i;
	int n = 0;

	snprintf(program, sizeof(program), "%s/lpo-probe", bin != NULL ? bin :
	    "bin");
	if (access(program, X_OK) != 0) {
		skip("no %s", program);
		return;
	}
	if (mkdtemp(dir) == NULL)
		return;
	snprintf(path, sizeof(path), "%s/in.safetensors", dir);
	ok(write_inputs(path) == 0, "inputs %s", lpo_errmsg(ctx));
	if ((got = run_probe(dir, "lpo-step", "--grad "
	    "--lora tests/golden/lpo_step_lora.safetensors")) != NULL) {
		same_as(got, "lpo-step", "eps", limit);
		same_as(got, "lpo-step", "eps_ref", limit);
		same_loss(got, "lpo-step");
		for (i = 0; (t = lpo_st_at(want, i)) != NULL; i++)
			if (strncmp(t->key, "grad.", 5) == 0) {
				worst = worse(worst, error_of(got, t->key));
				n++;
			}
		ok(n == 112 && worst < limit, "lpo-step: %d gradients, worst "
		    "error %.1e", n, worst);
	}
	lpo_st_close(got);
	if ((got = run_probe(dir, "lpo-loss", "--grad")) != NULL) {
		same_loss(got, "lpo-loss");
		same_as(got, "lpo-loss", "ratio_win", 2e-6);
		same_as(got, "lpo-loss", "ratio_lose", 2e-6);
		ok(lpo_st_find(got, "d_eps") != NULL, "its gradient");
	}
	lpo_st_close(got);
	if ((got = run_probe(dir, "ddim", "")) != NULL)
		check_ddim(got);
	lpo_st_close(got);
	lpo_rmtree(ctx, dir);
}

int
main(void)
{
	static const char *const levels[] = { "portable", "avx2", "avx512",
	    "cuda" };
	lpo_backend be;
	float *e;
	size_t i;

	ctx = lpo_ctx_new();
	if (lpo_st_open(ctx, &want, "tests/golden/lpo_step.safetensors") < 0)
		return 1;
	e = values("f32_error");
	limit = 4 * *e + 1e-5;
	free(e);
	for (i = 0; i < 4; i++)
		if (backend_open(&be, levels[i], 0, 0)) {
			test(&be, levels[i]);
			backend_close(&be);
		}
	test_probe();
	lpo_st_close(want);
	lpo_ctx_free(ctx);
	return done_testing();
}
