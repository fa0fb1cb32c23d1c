/*
 * One LPO step on the demo's base model against diffusers and torch in f64:
 * what lpo-train does with a batch of three pairs, by the same functions.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
	lpo_st_close(want);
	lpo_ctx_free(ctx);
	return done_testing();
}
