/* lpo-probe: the reward model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/train/lrm_score.h"
#include "lib/train/lrm_train.h"
#include "tools/probe.h"

/* The LRM of -r for these latents, and its token ids from the input. */
static int
open_lrm(struct lpo_probe *p, lpo_lrm **m, const int64_t sample[4],
    int32_t *ids[2])
{
	const struct lpo_lrm_config cfg = { .guidance =
	    lpo_cli_given(p->cli, "guidance") ? p->o->guidance : NAN,
	    .multi_scale = -1, .multi_scale_cfg = -1 };
	int64_t s[2] = { sample[0], -1 };
	int k, rc;

	if (p->o->lrm == NULL)
		return lpo_cli_usage(p->cli, "give the reward model: -r LRM");
	if ((rc = lpo_lrm_open(p->ctx, &p->cli->be, m, p->o->lrm,
	    p->cli->o.model, lpo_cli_precision(p->cli), &cfg)) != 0)
		return rc;
	if (sample[1] != lpo_lrm_cfg(*m)->latent_channels)
		return lpo_fail(p->ctx, LPO_EFORMAT, "%s: latents of %lld "
		    "channels, '%s' wants %lld", p->o->input,
		    (long long)sample[1], p->o->lrm,
		    (long long)lpo_lrm_cfg(*m)->latent_channels);
	s[1] = lpo_lrm_length(*m);
	for (k = 0; k < lpo_lrm_encoders(*m); k++)
		if ((ids[k] = lpo_probe_ids(p, k ? "input_ids_2" :
		    "input_ids", 2, s)) == NULL)
			return lpo_errcode(p->ctx);
	return 0;
}

struct lrm_run {
	lpo_lrm_scorer *scorer;
	const lpo_lrm_texts *texts;
	float *x, *score, *visual;
	int64_t *prompt, *t, n;
};

static int
lrm_once(void *arg)
{
	struct lrm_run *r = arg;

	return lpo_lrm_scorer_score(r->scorer, r->score, r->visual, r->texts,
	    r->x, r->prompt, r->t, r->n);
}

static void
unit(float *v, int64_t d)
{
	double sum = 0;
	int64_t i;

	for (i = 0; i < d; i++)
		sum += (double)v[i] * (double)v[i];
	for (i = 0; i < d; i++)
		v[i] = (float)((double)v[i] / sqrt(sum));
}

static int
lrm_results(struct lpo_probe *p, struct lrm_run *r, int64_t d)
{
	const int64_t s[2] = { r->n, d };
	float *text = lpo_probe_new(p, r->n * d);
	int64_t i;
	int rc;

	if (text == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < r->n; i++) {
		memcpy(text + i * d, lpo_lrm_texts_feature(r->texts, i),
		    (size_t)d * sizeof *text);
		unit(text + i * d, d);
		unit(r->visual + i * d, d);
	}
	if ((rc = lpo_probe_put(p, "score", 1, s, r->score)) != 0 ||
	    (rc = lpo_probe_put(p, "visual", 2, s, r->visual)) != 0)
		return rc;
	return lpo_probe_put(p, "text", 2, s, text);
}

static int
probe_lrm(struct lpo_probe *p)
{
	int64_t s[4] = { -1, -1, -1, -1 }, ts[1], i;
	struct lrm_run r = { .n = 0 };
	lpo_lrm *m = NULL;
	lpo_lrm_texts *texts = NULL;
	int32_t *ids[2] = { NULL, NULL };
	float *chw;
	int rc;

	if ((chw = lpo_probe_f32(p, "sample", 4, s)) == NULL)
		return lpo_errcode(p->ctx);
	ts[0] = r.n = s[0];
	if ((r.t = lpo_probe_i64(p, "timestep", 1, ts)) == NULL)
		return lpo_errcode(p->ctx);
	if ((rc = open_lrm(p, &m, s, ids)) != 0 ||
	    (rc = lpo_lrm_texts_new_ids(p->ctx, &texts, m,
	    (const int32_t *const *)ids, r.n)) != 0 ||
	    (rc = lpo_lrm_scorer_new(p->ctx, &r.scorer, m, 1, r.n, s[2], s[3],
	    NULL)) != 0)
		goto out;
	r.texts = texts;
	r.x = lpo_probe_new(p, r.n * s[1] * s[2] * s[3]);
	r.score = lpo_probe_new(p, r.n);
	r.visual = lpo_probe_new(p, r.n * lpo_lrm_feature_dim(m));
	r.prompt = (int64_t *)(void *)lpo_probe_new(p, 2 * r.n);
	if ((rc = lpo_errcode(p->ctx)) != 0)
		goto out;
	for (i = 0; i < r.n; i++)
		r.prompt[i] = i;
	lpo_probe_to_hwc(r.x, chw, r.n, s[1], s[2] * s[3]);
	if ((rc = lpo_probe_run(p, lrm_once, &r)) == 0)
		rc = lrm_results(p, &r, lpo_lrm_feature_dim(m));
out:
	lpo_lrm_scorer_free(r.scorer);
	lpo_lrm_texts_free(texts);
	lpo_lrm_free(m);
	return rc;
}

struct loss_run {
	lpo_lrm_trainer *trainer;
	struct lpo_lrm_pair *pair;
	struct lpo_lrm_step step;
	int64_t n;
};

static int
loss_once(void *arg)
{
	struct loss_run *r = arg;

	return lpo_lrm_trainer_grads(r->trainer, &r->step, r->pair, r->n);
}

/* "grad.unet.KEY", "grad.text_encoder.KEY", "grad.visual_projection" ... */
static int
put_lrm_grads(struct lpo_probe *p, lpo_lrm *m)
{
	struct lpo_lrm_set set[4];
	char *prefix;
	int64_t k;
	size_t len;
	int i, n = lpo_lrm_sets(m, set), rc = 0;

	for (i = 0; i < n && rc == 0; i++) {
		if (set[i].name[0] != '\0') {
			prefix = lpo_asprintf(p->ctx, "grad.%s.",
			    set[i].name);
			rc = prefix == NULL ? LPO_ENOMEM :
			    lpo_probe_put_grads(p, set[i].params, prefix);
			lpo_free(prefix);
			continue;
		}
		for (k = 0; k < set[i].params->n && rc == 0; k++) {
			const lpo_param *q = set[i].params->p[k];
			float *g = lpo_probe_new(p, q->count);
			char *key = lpo_asprintf(p->ctx, "grad.%s", q->key);

			if (g == NULL || key == NULL)
				rc = LPO_ENOMEM;
			else if ((len = strlen(key)) > 7 &&
			    strcmp(key + len - 7, ".weight") == 0)
				key[len - 7] = '\0';
			if (rc == 0 && (rc = lpo_param_export_grad(
			    set[i].params, q, g)) == 0)
				rc = lpo_probe_put(p, key, q->rank, q->shape,
				    g);
			lpo_free(key);
		}
	}
	return rc;
}

static int
make_pairs(struct lpo_probe *p, lpo_lrm *m, struct loss_run *r,
    const int64_t s[4], int32_t *const ids[2])
{
	static const char *const name[2] = { "sample_0", "sample_1" };
	int64_t shape[4], ts[1] = { r->n }, count = s[1] * s[2] * s[3], i;
	int64_t *t[2], length = lpo_lrm_length(m);
	float *chw, *x[2], *y[2], *num;
	int k;

	t[0] = lpo_probe_i64(p, "timestep", 1, ts);
	t[1] = lpo_probe_has(p, "timestep_1") ?
	    lpo_probe_i64(p, "timestep_1", 1, ts) : t[0];
	y[0] = lpo_probe_f32(p, "label_0", 1, ts);
	y[1] = lpo_probe_f32(p, "label_1", 1, ts);
	num = lpo_probe_f32(p, "num_example_per_prompt", 1, ts);
	for (k = 0; k < 2; k++) {
		memcpy(shape, s, sizeof shape);
		chw = lpo_probe_f32(p, name[k], 4, shape);
		x[k] = lpo_probe_new(p, r->n * count);
		if (chw != NULL && x[k] != NULL)
			lpo_probe_to_hwc(x[k], chw, r->n, s[1], s[2] * s[3]);
	}
	if (lpo_errcode(p->ctx) != 0)
		return lpo_errcode(p->ctx);
	for (i = 0; i < r->n; i++)
		for (k = 0; k < 2; k++) {
			r->pair[i].latent[k] = x[k] + i * count;
			r->pair[i].t[k] = t[k][i];
			r->pair[i].ids[k] = ids[k] != NULL ? ids[k] + i *
			    length : NULL;
			r->pair[i].label[k] = (double)y[k][i];
			r->pair[i].num_example = (double)num[i];
		}
	return 0;
}

static int
probe_lrm_loss(struct lpo_probe *p)
{
	int64_t s[4] = { -1, -1, -1, -1 };
	struct lpo_lrm_train_opts o = { .steps = 1, .lr = 1e-5,
	    .schedule = LPO_LR_CONSTANT,
	    .criterion = (enum lpo_lrm_criterion)p->o->criterion,
	    .batch_coeff = p->o->batch_coeff, .aux_coeff = p->o->aux_coeff,
	    .freeze_text = p->o->freeze_text, .grads_only = 1 };
	struct loss_run r = { .n = 0 };
	int32_t *ids[2] = { NULL, NULL };
	lpo_lrm *m = NULL;
	int rc;

	if (lpo_probe_f32(p, "sample_0", 4, s) == NULL)
		return lpo_errcode(p->ctx);
	o.batch = r.n = s[0];
	o.h = s[2];
	o.w = s[3];
	r.pair = lpo_alloc(p->ctx, (size_t)r.n, sizeof *r.pair);
	if (r.pair == NULL)
		return LPO_ENOMEM;
	if ((rc = open_lrm(p, &m, s, ids)) != 0 ||
	    (rc = make_pairs(p, m, &r, s, ids)) != 0 ||
	    (rc = lpo_lrm_trainer_new(p->ctx, &r.trainer, m, &o)) != 0 ||
	    (rc = lpo_probe_run(p, loss_once, &r)) != 0 ||
	    (rc = lpo_probe_put_scalar(p, "loss", r.step.loss)) != 0)
		goto out;
	if (p->o->grad)
		rc = put_lrm_grads(p, m);
out:
	lpo_lrm_trainer_free(r.trainer);
	lpo_lrm_free(m);
	lpo_free(r.pair);
	return rc;
}

const struct lpo_probe_component lpo_probe_lrm[] = {
	{ "lrm", probe_lrm, 1, 0 },
	{ "lrm-loss", probe_lrm_loss, 1, 0 },
	{ NULL, NULL, 0, 0 }
};
