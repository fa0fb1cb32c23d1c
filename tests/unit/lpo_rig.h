/*
 * What the tests of the LPO trainer share: trainers of the demo's model, made
 * twice to be compared, and the way to a phase of theirs.
 */
#ifndef TESTS_UNIT_LPO_RIG_H
#define TESTS_UNIT_LPO_RIG_H

#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/train/lpo_priv.h"
#include "tests/backend.h"

enum { PROMPTS = 2, ALL = 3, STEPS = 4, K = 2, BATCH = 2 };
#define RUN "0123456789abcdef"

static lpo_ctx *ctx;
static lpo_backend be;
static lpo_lrm *lrm;
static lpo_lrm_texts *lrm_texts;
static lpo_policy_texts *texts;
static struct lpo_schedule schedule;
static int64_t length, dim;

/* A trainer and what it works on. */
struct rig {
	lpo_unet *unet, *reference;
	lpo_lora_set *lora;
	lpo_lpo *l;
};

static void
drop(struct rig *r)
{
	lpo_lpo_free(r->l);
	lpo_lora_free(r->lora);
	lpo_unet_free(r->unet);
	lpo_unet_free(r->reference);
	memset(r, 0, sizeof(*r));
}

static struct lpo_lpo_options
options(void)
{
	struct lpo_lpo_options o = {
		.seed = 3, .h = 4, .w = 4, .height_px = 16, .width_px = 16,
		.steps = STEPS, .candidates = K, .prompts = PROMPTS,
		.batch = BATCH, .t_hi = 1000, .eta = 1, .guidance = 5,
		.threshold = { .kind = LPO_TH_STATIC, .scale = 1 },
		.loss = { .beta = 500, .clip = 0.1 },
		.adamw = { .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f,
		    .eps = 1e-8f, .weight_decay = 1e-4f },
		.memory_bytes = (size_t)1 << 30, .check_first = PROMPTS,
		.check_prompts = 1
	};

	return o;
}

static int
make(struct rig *r, int full, const struct lpo_lpo_options *o)
{
	struct lpo_lpo_parts in = { .be = &be, .dtype = LPO_F32,
	    .schedule = &schedule, .texts = texts, .prompts = PROMPTS,
	    .length = length, .dim = dim, .lrm = lrm,
	    .lrm_texts = lrm_texts };

	memset(r, 0, sizeof(*r));
	if (lpo_unet_load(ctx, &be, &r->unet, "demo/model/unet", LPO_F32,
	    0) < 0)
		return -1;
	if (full && (lpo_unet_load(ctx, &be, &r->reference,
	    "demo/model/unet", LPO_F32, 0) < 0 ||
	    lpo_params_train_all(lpo_unet_params(r->unet)) < 0))
		return -1;
	if (!full && lpo_lora_attach(ctx, &r->lora, r->unet,
	    LPO_LORA_ATTENTION, 2, 2, 3) < 0)
		return -1;
	in.unet = r->unet;
	in.reference = r->reference;
	in.lora = r->lora;
	return lpo_lpo_new(ctx, &r->l, &in, o);
}

/* Two of the same. */
static int
make_two(struct rig *a, struct rig *b, int full,
    const struct lpo_lpo_options *o)
{
	return make(a, full, o) < 0 || make(b, full, o) < 0 ? -1 : 0;
}

/* Nothing went wrong on the way; b may be NULL. */
static void
finish(struct rig *a, struct rig *b, const char *what)
{
	ok(lpo_errcode(ctx) == 0, "%s: no error %s", what, lpo_errmsg(ctx));
	lpo_clear(ctx);
	drop(a);
	if (b != NULL)
		drop(b);
}

static float *
weights(lpo_lpo *l, int64_t *n)
{
	float *w;

	*n = lpo_params_state_count(lpo_lpo_params(l), 0, 1 << 20);
	w = malloc((size_t)*n * sizeof(*w));
	lpo_params_get_state(lpo_lpo_params(l), 0, 1 << 20, w);
	return w;
}

static int
equal(lpo_lpo *a, lpo_lpo *b)
{
	int64_t n, m;
	float *x = weights(a, &n), *y = weights(b, &m);
	int same = n == m && memcmp(x, y, (size_t)n * sizeof(*x)) == 0;

	free(x);
	free(y);
	return same;
}

/* Until all candidates of the present iteration have scores. */
static int
to_scores(lpo_lpo *l)
{
	int64_t done, total;

	while (lpo_lpo_where(l, &done, &total) != LPO_PH_TRAIN)
		if (lpo_lpo_advance(l) < 0)
			return -1;
	return 0;
}

/* To the first batch of the present iteration, its pairs chosen. */
static int
to_training(lpo_lpo *l)
{
	return to_scores(l) < 0 ? -1 : lpo_lpo_select(l);
}

static int
iterations(lpo_lpo *l, int64_t n)
{
	int rc = 0;

	while (rc >= 0 && lpo_lpo_iteration(l) < n)
		rc = lpo_lpo_advance(l);
	return rc;
}

/* lpo_lpo_save() or lpo_lpo_restore(), in a folder of snapshots */
static int
in_folder(lpo_lpo *l, const char *dir, int (*f)(lpo_lpo *, lpo_snap *))
{
	lpo_snap *s = NULL;
	int rc = lpo_snap_open(ctx, &s, dir, RUN);

	if (rc == 0)
		rc = f(l, s);
	lpo_snap_close(s);
	return rc;
}

/* tests() with the demo's model at one level */
static void
test_level(const char *level, void (*tests)(void))
{
	static const char *const prompts[ALL] = { "a red circle",
	    "two large blue squares", "a small grey star" };
	lpo_text *text = NULL;

	printf("# at level %s\n", level);
	if (lpo_text_open(ctx, &be, &text, "demo/model", LPO_F32) < 0 ||
	    lpo_policy_texts_new(ctx, &texts, text, prompts, ALL) < 0 ||
	    lpo_lrm_new(ctx, &be, &lrm, "demo/model", LPO_F32, NULL, NULL,
	    1) < 0 || lpo_lrm_texts_new(ctx, &lrm_texts, lrm, prompts,
	    ALL) < 0 || lpo_schedule_load(ctx, &schedule, "demo/model") < 0) {
		ok(0, "%s: %s", level, lpo_errmsg(ctx));
		exit(1);
	}
	length = lpo_text_length(text);
	dim = lpo_text_dim(text);
	tests();
	lpo_text_free(text);
	lpo_lrm_texts_free(lrm_texts);
	lpo_lrm_free(lrm);
	lpo_policy_texts_free(texts);
	lpo_schedule_free(&schedule);
}

/* At the best level of the CPU and on CUDA; what main returns. */
static int
each_device(void (*tests)(void))
{
	static const char *const levels[] = { "auto", "cuda" };
	int i;

	ctx = lpo_ctx_new();
	for (i = 0; i < 2; i++)
		if (backend_open(&be, levels[i], 1, 0)) {
			test_level(levels[i], tests);
			backend_close(&be);
		}
	lpo_ctx_free(ctx);
	return done_testing();
}

#endif
