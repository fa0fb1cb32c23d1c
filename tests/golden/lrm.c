/*
 * The reward model against torch (make_lrm.py): features, scores, losses and
 * gradients on models of SD1.5's and SDXL's structure; the same bits for any
 * micro-batch and thread count; a saved folder scores as what was saved.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/io/safetensors.h"
#include "lib/io/torch.h"
#include "lib/train/lrm_score.h"
#include "lib/train/lrm_train.h"
#include "tests/backend.h"

#define ROOT "tests/golden/lrm"

enum { PAIRS = 4, C = 4, H = 6, W = 4, LENGTH = 6, MAX = 4096 };

struct golden_case {
	const char *name, *model;
	double guidance;
	int multi, multi_cfg;
	enum lpo_lrm_criterion criterion;
	double coeff, aux;
};

static const struct golden_case cases[] = {
	{ "sd/pair", "sd", 7.5, 1, 0, LPO_LRM_PAIR, 1, 1 },
	{ "sd/batch", "sd", 7.5, 1, 0, LPO_LRM_BATCH, 1, 1 },
	{ "sd/both", "sd", 7.5, 1, 0, LPO_LRM_BOTH, 0.7, 0.25 },
	{ "sd/guided", "sd", 0.5, 1, 1, LPO_LRM_PAIR, 1, 1 },
	{ "sd/mid", "sd", 7.5, 0, 0, LPO_LRM_PAIR, 1, 1 },
	{ "sd/plain", "sd", 1, 1, 0, LPO_LRM_PAIR, 1, 1 },
	{ "xl/pair", "xl", 7.5, 1, 0, LPO_LRM_PAIR, 1, 1 },
	{ "xl/guided", "xl", 7.5, 1, 1, LPO_LRM_BOTH, 1, 1 },
	{ "xl/plain", "xl", 1, 0, 0, LPO_LRM_BATCH, 1, 1 }
};

static lpo_ctx *c;
static lpo_backend be;
static lpo_st *want;

/* The batch, channels-last. */
static float latent[PAIRS][2][H * W * C];
static int32_t ids[PAIRS * LENGTH];
static struct lpo_lrm_pair pair[PAIRS];

static const struct lpo_st_tensor *
tensor(const char *name, const char *part)
{
	const struct lpo_st_tensor *t;
	char key[96];

	snprintf(key, sizeof(key), part ? "%s/%s" : "%s", name, part);
	if ((t = lpo_st_find(want, key)) == NULL)
		fprintf(stderr, "# no %s\n", key);
	return t;
}

static void
floats(float *out, const char *name, const char *part)
{
	const struct lpo_st_tensor *t = tensor(name, part);

	if (t == NULL || t->count > MAX || lpo_st_f32(c, out, t) < 0)
		exit(1);
}

static void
read_batch(void)
{
	float x[MAX], label[MAX], num[MAX];
	int64_t t[2][PAIRS], id[PAIRS * LENGTH];
	int i, k, ch, p;

	for (k = 0; k < 2; k++) {
		floats(x, k ? "sample_1" : "sample_0", NULL);
		for (i = 0; i < PAIRS; i++)
			for (ch = 0; ch < C; ch++)
				for (p = 0; p < H * W; p++)
					latent[i][k][p * C + ch] =
					    x[(i * C + ch) * H * W + p];
		lpo_st_i64(c, t[k], tensor(k ? "timestep_1" : "timestep",
		    NULL));
	}
	floats(label, "label", NULL);
	floats(num, "num_example_per_prompt", NULL);
	lpo_st_i64(c, id, tensor("input_ids", NULL));
	for (i = 0; i < PAIRS * LENGTH; i++)
		ids[i] = (int32_t)id[i];
	for (i = 0; i < PAIRS; i++) {
		for (k = 0; k < 2; k++) {
			pair[i].latent[k] = latent[i][k];
			pair[i].t[k] = t[k][i];
			pair[i].ids[k] = ids + i * LENGTH;
			pair[i].label[k] = (double)label[2 * i + k];
		}
		pair[i].num_example = (double)num[i];
	}
}

static void
head(lpo_lrm *m, const struct golden_case *g)
{
	lpo_params *ps = lpo_lrm_head(m);
	char part[64];
	float x[MAX];
	int64_t i;

	for (i = 0; i < ps->n; i++) {
		snprintf(part, sizeof(part), "head/%s", ps->p[i]->key);
		floats(x, g->name, part);
		if (tensor(g->name, part)->count != ps->p[i]->count)
			exit(1);
		if (lpo_param_import(ps, ps->p[i], x) < 0)
			exit(1);
	}
}

static lpo_lrm *
model_as(const struct golden_case *g, enum lpo_dtype dt)
{
	struct lpo_lrm_config cfg = { .guidance = g->guidance,
	    .multi_scale = g->multi, .multi_scale_cfg = g->multi_cfg };
	char dir[64];
	lpo_lrm *m;

	snprintf(dir, sizeof(dir), ROOT "/%s", g->model);
	if (lpo_lrm_new(c, &be, &m, dir, dt, &cfg,
	    g->model[0] == 's' ? ROOT "/sd/state_dict.safetensors" : NULL,
	    1) < 0) {
		printf("# %s\n", lpo_errmsg(c));
		exit(1);
	}
	head(m, g);
	return m;
}

static lpo_lrm *
model(const struct golden_case *g)
{
	return model_as(g, LPO_F32);
}

static lpo_lrm_trainer *
trainer(lpo_lrm *m, const struct golden_case *g, int64_t micro)
{
	struct lpo_lrm_train_opts o = { .batch = PAIRS, .micro_batch = micro,
	    .steps = 10, .warmup = 2, .lr = 1e-3, .weight_decay = 0.3,
	    .max_grad_norm = 1, .schedule = LPO_LR_OFFICIAL,
	    .criterion = g->criterion, .batch_coeff = g->coeff,
	    .aux_coeff = g->aux, .h = H, .w = W };
	lpo_lrm_trainer *r;

	if (lpo_lrm_trainer_new(c, &r, m, &o) < 0) {
		printf("# %s\n", lpo_errmsg(c));
		exit(1);
	}
	return r;
}

/* Largest |a - b| relative to the largest |b|. */
static double
distance(const float *a, const float *b, int64_t n)
{
	double top = 1e-30, most = 0;
	int64_t i;

	for (i = 0; i < n; i++) {
		top = fmax(top, fabs((double)b[i]));
		most = worse(most, fabs((double)a[i] - (double)b[i]));
	}
	return most / top;
}

/* Scores, V and T as lpo-train and lpo-eval get them. */
static void
scores(lpo_lrm *m, const struct golden_case *g)
{
	const int64_t who[PAIRS] = { 0, 1, 2, 3 };
	int64_t t[PAIRS * 2], d = lpo_lrm_feature_dim(m);
	float score[PAIRS * 2], visual[MAX], x[MAX];
	lpo_lrm_scorer *s = NULL;
	lpo_lrm_texts *texts = NULL;
	int i, rc;

	for (i = 0; i < PAIRS * 2; i++)
		t[i] = pair[i / 2].t[i % 2];
	/* three prompts a chunk: the last chunk is a partial one */
	rc = lpo_lrm_texts_new_ids(c, &texts, m,
	    (const int32_t *const[2]){ ids, ids }, PAIRS);
	if (rc == 0)
		rc = lpo_lrm_scorer_new(c, &s, m, 2, 3, H, W, NULL);
	if (rc == 0)
		rc = lpo_lrm_scorer_score(s, score, visual, texts,
		    &latent[0][0][0], who, t, PAIRS);
	if (!ok(rc == 0, "%s: scoring %s", g->name, lpo_errmsg(c)))
		exit(1);
	floats(x, g->name, "score");
	ok(distance(score, x, PAIRS * 2) < 2e-5, "%s: scores, %.1e", g->name,
	    distance(score, x, PAIRS * 2));
	floats(x, g->name, "v");
	ok(distance(visual, x, PAIRS * 2 * d) < 2e-5, "%s: V, %.1e", g->name,
	    distance(visual, x, PAIRS * 2 * d));
	floats(x, g->name, "t");
	ok(distance(lpo_lrm_texts_feature(texts, 1), x + d, d) < 2e-5,
	    "%s: T", g->name);
	lpo_lrm_scorer_free(s);
	lpo_lrm_texts_free(texts);
}

/* norm and four dot products, as make_lrm.py */
static void
digest(double out[5], const float *g, int64_t n)
{
	int64_t i;
	int k;

	memset(out, 0, 5 * sizeof(*out));
	for (i = 0; i < n; i++) {
		out[0] += (double)g[i] * (double)g[i];
		for (k = 0; k < 4; k++)
			out[k + 1] += (double)g[i] *
			    cos(0.7 * (k + 1) * (double)i + k);
	}
	out[0] = sqrt(out[0]);
}

/* The gradient of "unet.conv_in.weight" and so on; count, 0: no such one. */
static int64_t
gradient(lpo_lrm *m, float *out, const char *name)
{
	struct lpo_lrm_set set[4];
	int i, n = lpo_lrm_sets(m, set);
	lpo_param *p;
	size_t l;

	for (i = 0; i < n; i++) {
		l = strlen(set[i].name);
		if (l > 0 && (strncmp(name, set[i].name, l) != 0 ||
		    name[l] != '.'))
			continue;
		p = lpo_param_find(set[i].params, name + (l > 0 ? l + 1 : 0));
		if (p == NULL || p->count > MAX)
			continue;
		if (lpo_param_export_grad(set[i].params, p, out) == 0)
			return p->count;
	}
	return 0;
}

static void
gradients(lpo_lrm *m, const struct golden_case *g)
{
	const char *names = lpo_st_meta(want, g->model), *end;
	float rows[MAX], grad[MAX];
	double got[5], e, worst = 0;
	char name[128], at[128] = "";
	int64_t n = 0, count;
	int k, missing = 0;

	floats(rows, g->name, "grads");
	for (; *names != '\0'; names = *end ? end + 1 : end, n++) {
		end = names + strcspn(names, "\n");
		snprintf(name, sizeof(name), "%.*s", (int)(end - names),
		    names);
		if ((count = gradient(m, grad, name)) == 0) {
			printf("# no gradient of %s\n", name);
			missing++;
			continue;
		}
		digest(got, grad, count);
		for (k = 0; k < 5; k++) {
			/* an all but zero gradient is rounding: 1e-6 is fine */
			e = fabs(got[k] - (double)rows[n * 5 + k]) /
			    ((double)rows[n * 5] + 1e-2);
			if (worse(worst, e) != worst) {
				worst = e;
				snprintf(at, sizeof(at), "%s", name);
			}
		}
	}
	ok(missing == 0 && worst < 1e-4, "%s: %lld gradients, worst %.1e (%s)",
	    g->name, (long long)n, worst, at);
}

static uint32_t
hash_grads(lpo_lrm *m)
{
	struct lpo_lrm_set set[4];
	float g[MAX];
	uint32_t crc = 0;
	int64_t j;
	int i, n = lpo_lrm_sets(m, set);

	for (i = 0; i < n; i++)
		for (j = 0; j < set[i].params->n; j++) {
			lpo_param *p = set[i].params->p[j];

			lpo_param_export_grad(set[i].params, p, g);
			crc = lpo_crc32c(crc, g, (size_t)p->count * 4);
		}
	return crc;
}

static void
one_case(const struct golden_case *g)
{
	lpo_lrm *m = model(g);
	lpo_lrm_trainer *r;
	struct lpo_lrm_step st;
	float x[1];
	int rc;

	scores(m, g);
	r = trainer(m, g, 0);
	rc = lpo_lrm_trainer_grads(r, &st, pair, PAIRS);
	if (!ok(rc == 0, "%s: a batch %s", g->name, lpo_errmsg(c)))
		exit(1);
	floats(x, g->name, "loss");
	ok(fabs(st.loss - (double)x[0]) < 1e-5 * (double)x[0],
	    "%s: the loss, %.7f", g->name, st.loss);
	gradients(m, g);
	lpo_lrm_trainer_free(r);
	lpo_lrm_free(m);
}

/* bf16 storage: near f32's loss, and any micro-batch the same bits. */
static void
half(const struct golden_case *g)
{
	struct lpo_lrm_step st;
	lpo_lrm_trainer *r;
	uint32_t hash[2];
	float x[1];
	lpo_lrm *m;
	int i, rc = 0;

	for (i = 0; i < 2; i++) {
		m = model_as(g, LPO_BF16);
		r = trainer(m, g, 1 + 2 * i);
		rc |= lpo_lrm_trainer_step(r, &st, pair);
		rc |= lpo_lrm_trainer_grads(r, &st, pair, PAIRS);
		hash[i] = hash_grads(m);
		lpo_lrm_trainer_free(r);
		lpo_lrm_free(m);
	}
	m = model_as(g, LPO_BF16);
	r = trainer(m, g, 0);
	rc |= lpo_lrm_trainer_grads(r, &st, pair, PAIRS);
	floats(x, g->name, "loss");
	ok(rc == 0 && fabs(st.loss - (double)x[0]) < 0.03,
	    "%s in bf16: loss %.4f, in f64 %.4f", g->name, st.loss,
	    (double)x[0]);
	if (!on_cuda(&be))
		ok(hash[0] == hash[1], "%s in bf16: bits of micro-batches 1 "
		    "and 3", g->name);
	lpo_lrm_trainer_free(r);
	lpo_lrm_free(m);
}

/* The lower levels of this machine too. */
static void
levels(void)
{
	enum lpo_isa isa;

	for (isa = LPO_ISA_PORTABLE; isa < lpo_cpu_best_isa(); isa++) {
		if (!backend_open(&be, lpo_isa_name(isa), 2, 0))
			continue;
		printf("# %s\n", lpo_isa_name(isa));
		one_case(&cases[0]);
		one_case(&cases[7]);
		backend_close(&be);
	}
}

/* Gradients and, after three steps, weights: bits for each split. */
static void
splits(const struct golden_case *g)
{
	uint32_t grads[8], after[8];
	struct lpo_lrm_step st;
	lpo_lrm_trainer *r;
	lpo_lrm *m;
	int i, k, same = 1, threads[2] = { 1, 3 };

	for (i = 0; i < 8; i++) {
		lpo_cpu_close(&be);
		if (lpo_cpu_open(&be, LPO_ISA_AUTO, threads[i / 4]) < 0)
			exit(1);
		m = model(g);
		r = trainer(m, g, i % 4 + 1);
		if (lpo_lrm_trainer_grads(r, &st, pair, PAIRS) < 0)
			exit(1);
		grads[i] = hash_grads(m);
		for (k = 0; k < 3; k++)
			if (lpo_lrm_trainer_step(r, &st, pair) < 0)
				exit(1);
		after[i] = hash_grads(m);
		same &= grads[i] == grads[0] && after[i] == after[0];
		lpo_lrm_trainer_free(r);
		lpo_lrm_free(m);
	}
	ok(same && grads[0] != after[0], "%s: the same bits for micro-batches "
	    "1 to 4 and 1 and 3 threads", g->name);
}

/* CUDA: gradients and what three steps make of them, run after run. */
static void
repeated(const struct golden_case *g, enum lpo_dtype dt)
{
	uint32_t grads[2], after[2];
	struct lpo_lrm_step st;
	lpo_lrm_trainer *r;
	int i, k, rc = 0;
	lpo_lrm *m;

	for (i = 0; i < 2; i++) {
		m = model_as(g, dt);
		r = trainer(m, g, 0);
		rc |= lpo_lrm_trainer_grads(r, &st, pair, PAIRS);
		grads[i] = hash_grads(m);
		for (k = 0; k < 3; k++)
			rc |= lpo_lrm_trainer_step(r, &st, pair);
		after[i] = hash_grads(m);
		lpo_lrm_trainer_free(r);
		lpo_lrm_free(m);
	}
	ok(rc == 0 && grads[0] == grads[1] && after[0] == after[1] &&
	    grads[0] != after[0], "%s %s: the same bits run after run",
	    g->name, lpo_dtype_name(dt));
}

static void
score_all(lpo_lrm *m, float *score)
{
	const int64_t who[PAIRS] = { 0, 1, 2, 3 };
	const int64_t t[PAIRS * 2] = { 1, 1, 401, 401, 951, 951, 201, 251 };
	const char *const prompts[PAIRS] = { "a", "b c", "", "d" };
	lpo_lrm_scorer *s = NULL;
	lpo_lrm_texts *texts = NULL;

	memset(score, 0, PAIRS * 2 * sizeof(*score));
	if (lpo_lrm_texts_new(c, &texts, m, prompts, PAIRS) < 0 ||
	    lpo_lrm_scorer_new(c, &s, m, 2, 4, H, W, NULL) < 0 ||
	    lpo_lrm_scorer_score(s, score, NULL, texts, &latent[0][0][0], who,
	    t, PAIRS) < 0)
		printf("# %s\n", lpo_errmsg(c));
	lpo_lrm_scorer_free(s);
	lpo_lrm_texts_free(texts);
}

/*
 * The upper half of the UNet, which nobody evaluates, goes from the base
 * model's file into the reward model's, for the official code.
 */
static void
upper_half(void)
{
	static const char *const key[3] = { "up_blocks.0.x", "conv_norm_out.y",
	    "conv_out.weight" };
	const int64_t s[2] = { 1, 3 };
	const float x[3] = { 1, -2, 0.5f };
	char to[] = "/tmp/lpo-lrm-XXXXXX", cmd[128], path[128];
	const char *unet = "unet/diffusion_pytorch_model.safetensors";
	const struct lpo_st_tensor *t = NULL;
	lpo_st *st = NULL, *back = NULL;
	lpo_lrm *m = NULL;
	lpo_stw *w = NULL;
	int64_t i, n = 0;
	int rc;

	if (mkdtemp(to) == NULL)
		return;
	snprintf(cmd, sizeof(cmd), "cp -r " ROOT "/sd %s/base", to);
	rc = system(cmd);
	snprintf(path, sizeof(path), ROOT "/sd/%s", unet);
	if (rc == 0 && (rc = lpo_st_open(c, &st, path)) == 0)
		rc = lpo_stw_new(c, &w);
	for (i = 0; rc == 0 && (t = lpo_st_at(st, i)) != NULL; i++)
		rc = lpo_stw_add(w, t->key, (enum lpo_dtype)t->dtype, t->ndim,
		    t->shape, t->data);
	for (i = 0; i < 3 && rc == 0; i++)
		rc = lpo_stw_add_f32(w, key[i], LPO_F32, 2, s, x);
	snprintf(path, sizeof(path), "%s/base/%s", to, unet);
	if (rc == 0)
		rc = lpo_stw_write(w, path);
	n = st != NULL ? lpo_st_count(st) : 0;
	lpo_stw_free(w);
	lpo_st_close(st);
	snprintf(path, sizeof(path), "%s/base", to);
	if (rc == 0)
		rc = lpo_lrm_open(c, &be, &m, path, NULL, LPO_F32, NULL);
	snprintf(path, sizeof(path), "%s/lrm", to);
	if (rc == 0)
		rc = lpo_lrm_save(m, path, LPO_BF16);
	snprintf(path, sizeof(path), "%s/lrm/%s", to, unet);
	if (rc == 0)
		rc = lpo_st_open(c, &back, path);
	for (i = 0; i < 3 && rc == 0; i++) {
		float y[3];

		t = lpo_st_need(c, back, key[i], 2, s);
		rc = t == NULL || t->dtype != LPO_BF16 || lpo_st_f32(c, y,
		    t) != 0 || memcmp(x, y, sizeof(x)) != 0;
	}
	ok(rc == 0 && n > 0 && lpo_st_count(back) == n + 3, "the UNet's upper "
	    "half is written too %s", lpo_errmsg(c));
	lpo_st_close(back);
	lpo_lrm_free(m);
	lpo_rmtree(c, to);
}

/* A head that is not one: refused with its file's name. */
static void
bad_heads(void)
{
	enum { VISUAL, TEXT, SCALE };
	static const char *const what[] = { "no temperature", "a temperature "
	    "that is NaN", "no visual projection", "a visual projection of "
	    "another shape", "a text projection of another width" };
	char to[] = "/tmp/lpo-lrm-XXXXXX", cmd[160], path[128];
	static float x[1 << 16];
	const float s = 1, nan = NAN;
	int64_t v[2] = { 0 }, t[2] = { 0 }, odd[2];
	lpo_lrm *m = NULL;
	size_t i;
	int rc;

	if (mkdtemp(to) == NULL)
		return;
	snprintf(cmd, sizeof(cmd), "cp -r " ROOT "/sd %s/b && rm "
	    "%s/b/state_dict.safetensors", to, to);
	snprintf(path, sizeof(path), ROOT "/sd");
	rc = system(cmd);
	if (rc == 0 && (rc = lpo_lrm_open(c, &be, &m, path, NULL, LPO_F32,
	    NULL)) == 0) {
		lpo_params *h = lpo_lrm_head(m);

		memcpy(v, lpo_param_find(h, "visual_projection.weight")->shape,
		    sizeof(v));
		memcpy(t, lpo_param_find(h, "text_projection.weight")->shape,
		    sizeof(t));
	}
	lpo_lrm_free(m);
	snprintf(path, sizeof(path), "%s/b", to);
	ok(rc == 0 && lpo_lrm_open(c, &be, &m, path, NULL, LPO_F32, NULL) ==
	    LPO_ENOTFOUND, "no head: %s", lpo_errmsg(c));
	lpo_clear(c);
	for (i = 0; i < sizeof(what) / sizeof(*what); i++) {
		struct lpo_torch_item it[3] = {
			{ "visual_projection", "weight", 2, v, x },
			{ "text_projection", "weight", 2, t, x },
			{ "logit_scale", NULL, 0, NULL, i == 1 ? &nan : &s } };

		odd[0] = i == 4 ? t[0] + 1 : v[0];
		odd[1] = i == 4 ? t[1] : v[1] + 1;
		if (i == 2)
			it[VISUAL].outer = "other";
		if (i == 3)
			it[VISUAL].shape = odd;
		if (i == 4)
			it[TEXT].shape = odd;
		snprintf(path, sizeof(path), "%s/b/state_dict.pt", to);
		rc = lpo_torch_write(c, path, it, i == 0 ? SCALE : 3);
		snprintf(path, sizeof(path), "%s/b", to);
		m = NULL;
		ok(rc == 0 && lpo_lrm_open(c, &be, &m, path, NULL, LPO_F32,
		    NULL) < 0 && m == NULL && strstr(lpo_errmsg(c),
		    "state_dict.pt") != NULL, "%s: %s", what[i],
		    lpo_errmsg(c));
		lpo_clear(c);
	}
	lpo_rmtree(c, to);
}

/* A folder read, trained a little, written, read again. */
static void
folders(const char *name)
{
	char from[64], to[] = "/tmp/lpo-lrm-XXXXXX", path[64];
	float first[PAIRS * 2], again[PAIRS * 2], x[PAIRS * 2];
	struct lpo_lrm_step st;
	lpo_lrm_trainer *r;
	lpo_lrm *m = NULL;
	int rc;

	snprintf(from, sizeof(from), ROOT "/%s", name);
	if (mkdtemp(to) == NULL || lpo_lrm_open(c, &be, &m, from, NULL,
	    LPO_F32, NULL) < 0) {
		ok(0, "%s: open: %s", name, lpo_errmsg(c));
		exit(1);
	}
	ok(lpo_lrm_cfg(m)->guidance == 7.5 &&
	    lpo_lrm_cfg(m)->scaling_factor == 0.5, "%s: lrm.json", name);
	r = trainer(m, &cases[0], 2);
	rc = lpo_lrm_trainer_step(r, &st, pair);
	lpo_lrm_trainer_free(r);
	score_all(m, first);
	snprintf(path, sizeof(path), "%s/lrm", to);
	ok(rc == 0 && lpo_lrm_save(m, path, LPO_F32) == 0, "%s: saved %s",
	    name, lpo_errmsg(c));
	lpo_lrm_free(m);
	if (lpo_lrm_open(c, &be, &m, path, NULL, LPO_F32, NULL) == 0)
		score_all(m, again);
	ok(memcmp(first, again, sizeof(first)) == 0 && first[0] != 0 &&
	    first[0] != first[1], "%s: and scores as before", name);
	/* half the size, nearly the same scores */
	rc = m == NULL ? -1 : lpo_lrm_save(m, path, LPO_BF16);
	lpo_lrm_free(m);
	m = NULL;
	if (rc == 0 && lpo_lrm_open(c, &be, &m, path, NULL, LPO_F32,
	    NULL) == 0)
		score_all(m, x);
	ok(rc == 0 && distance(x, first, PAIRS * 2) < 0.1 &&
	    memcmp(x, first, sizeof(x)) != 0, "%s: in bf16, %.1e", name,
	    distance(x, first, PAIRS * 2));
	lpo_lrm_free(m);
	lpo_rmtree(c, to);
}

/* NaN in, nothing out: five bad steps in a row are the end. */
static void
not_finite(void)
{
	lpo_lrm *m = model(&cases[0]);
	lpo_lrm_trainer *r = trainer(m, &cases[0], 2);
	struct lpo_lrm_counters n;
	struct lpo_lrm_step st;
	float bad[H * W * C], before[PAIRS * 2], after[PAIRS * 2];
	const float *keep = pair[2].latent[1];
	int i, rc = 0;

	memcpy(bad, keep, sizeof(bad));
	bad[17] = NAN;
	score_all(m, before);
	pair[2].latent[1] = bad;
	for (i = 0; i < 5; i++) {
		rc = lpo_lrm_trainer_step(r, &st, pair);
		if (i < 4 && (rc < 0 || !st.skipped))
			break;
	}
	pair[2].latent[1] = keep;
	ok(i == 5 && rc == LPO_EINVAL, "five steps with NaN: %s",
	    lpo_errmsg(c));
	lpo_clear(c);
	score_all(m, after);
	lpo_lrm_trainer_counters(r, &n);
	ok(memcmp(before, after, sizeof(before)) == 0 && n.skipped == 5 &&
	    n.update == 0 && n.step == 5, "and no weight has changed");
	ok(lpo_lrm_trainer_step(r, &st, pair) == 0 && !st.skipped,
	    "a good one goes through");
	lpo_lrm_trainer_free(r);
	lpo_lrm_free(m);
}

static void
all_cases(void)
{
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		one_case(&cases[i]);
	half(&cases[0]);
	half(&cases[7]);
	folders("sd");
	folders("xl");
	not_finite();
}

int
main(void)
{
	c = lpo_ctx_new();
	if (lpo_st_open(c, &want, ROOT "/expected.safetensors") < 0) {
		printf("Bail out! %s\n", lpo_errmsg(c));
		return 1;
	}
	read_batch();
	if (backend_open(&be, "auto", 0, 0)) {
		all_cases();
		upper_half();
		bad_heads();
		splits(&cases[0]);
		splits(&cases[2]);
		splits(&cases[7]);
		backend_close(&be);
	}
	levels();
	if (backend_open(&be, "cuda", 0, 0)) {
		all_cases();
		repeated(&cases[0], LPO_F32);
		repeated(&cases[7], LPO_BF16);
		backend_close(&be);
	}
	lpo_st_close(want);
	lpo_ctx_free(c);
	return done_testing();
}
