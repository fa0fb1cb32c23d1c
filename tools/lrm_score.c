/* lpo-lrm: scores, and how often they agree with people. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "tools/lrm.h"

static const enum lpo_dtype storages[] = { LPO_F32, LPO_BF16, LPO_F16 };

enum lpo_dtype
lpo_lrmtool_storage(const struct lrm_run *r)
{
	return storages[r->o->dtype];
}

/* Lines on stderr and rows of metrics. */
int
lpo_lrmtool_tell(struct lrm_run *r, const struct lpo_lrm_rate *rate, int64_t n,
    int64_t step, int brief)
{
	char name[48], who[32];
	int64_t i;
	int rc = 0;

	for (i = 0; i < n && rc == 0; i++) {
		if (rate[i].t == -1) {
			snprintf(name, sizeof(name), "eval_accuracy");
			snprintf(who, sizeof(who), "all");
		} else if (rate[i].t == -2) {
			snprintf(name, sizeof(name), "eval_accuracy_mixed");
			snprintf(who, sizeof(who), "two timesteps");
		} else {
			snprintf(name, sizeof(name), "eval_accuracy_t%04lld",
			    (long long)rate[i].t);
			snprintf(who, sizeof(who), "t %lld",
			    (long long)rate[i].t);
		}
		if (rate[i].n > 0 && !(brief && i > 0))
			lpo_cli_note(r->cli, "accuracy, %s: %.3f [%.3f, %.3f] "
			    "of %lld pairs", who, rate[i].rate, rate[i].low,
			    rate[i].high, (long long)rate[i].n);
		rc = lpo_cli_metric(r->cli, name, step, rate[i].rate);
	}
	return rc;
}

int
lpo_lrmtool_evaluate(struct lrm_run *r, int64_t step)
{
	struct lpo_lrm_rate *rate = NULL;
	lpo_ctx *c = r->cli->ctx;
	int64_t n = 0;
	char *path;
	float *score;
	int rc = LPO_ENOMEM, better;

	score = lpo_alloc(c, (size_t)(2 * lpo_lrm_batch_count(r->eval)),
	    sizeof(*score));
	if (score == NULL ||
	    (rc = lpo_lrm_batch_scores(r->eval, score)) < 0 ||
	    (rc = lpo_lrm_rates(r->eval, &rate, &n, score)) < 0)
		goto out;
	lpo_cli_note(r->cli, "step %lld of %lld, held-out pairs:",
	    (long long)step, (long long)r->t.steps);
	if ((rc = lpo_lrmtool_tell(r, rate, n, step, step < r->t.steps)) < 0)
		goto out;
	better = rate[0].rate > r->best;
	if (better && r->o->keep == LRM_KEEP_BEST) {
		/* the folder waits in the state, in its final form */
		path = lpo_asprintf(c, "%s/best-%09lld",
		    lpo_state_dir(r->state), (long long)step);
		rc = path == NULL ? LPO_ENOMEM : lpo_lrm_save(r->m, path,
		    lpo_lrmtool_storage(r));
		lpo_free(path);
	}
	if (rc < 0)
		goto out;
	/* it counts once it is complete: else a resumed run makes it again */
	r->eval_step = step;
	if (better) {
		r->best = rate[0].rate;
		r->best_step = step;
	}
out:
	lpo_free(score);
	lpo_free(rate);
	return rc;
}

/* ------------------------------------------------------------------ score */

#define SCORE_CHUNK 256

static int
print_json(struct lrm_run *r, int64_t i, const float *s, double label)
{
	json_t *j = json_pack("{s:s, s:f, s:f, s:f}", "key",
	    lpo_lrm_batch_key(r->batch, i), "score_0", (double)s[0],
	    "score_1", (double)s[1], "label_0", label);
	char *text = j == NULL ? NULL : lpo_json_dumps(r->cli->ctx, j);

	json_decref(j);
	if (text == NULL)
		return lpo_fail(r->cli->ctx, LPO_ENOMEM, "out of memory");
	puts(text);
	lpo_free(text);
	return 0;
}

static int
print_chunk(struct lrm_run *r, struct lpo_lrm_rate **rate, int64_t *n)
{
	const struct lpo_lrm_pair *p = lpo_lrm_batch_pairs(r->batch);
	int64_t i, count = lpo_lrm_batch_count(r->batch);
	float score[2 * SCORE_CHUNK];
	int rc;

	if ((rc = lpo_lrm_batch_scores(r->batch, score)) < 0)
		return rc;
	for (i = 0; i < count && rc == 0; i++) {
		const float *s = score + 2 * i;

		if (r->cli->o.json)
			rc = print_json(r, i, s, p[i].label[0]);
		else {
			lpo_cli_tsv(stdout, lpo_lrm_batch_key(r->batch, i),
			    '\t');
			printf("%.9g\t%.9g\t%.9g\n", (double)s[0],
			    (double)s[1], p[i].label[0]);
		}
		if (rc == 0)
			rc = lpo_lrm_rate_add(r->cli->ctx, rate, n, p[i].t,
			    p[i].label, s);
	}
	r->used += count;
	lpo_lrm_batch_clear(r->batch);
	lpo_cli_progress(r->cli, "score", r->used, lpo_lrmtool_pairs(r),
	    "pairs", NULL);
	return rc;
}

static int
score_all(struct lrm_run *r, struct lpo_lrm_rate **rate, int64_t *n)
{
	struct lpo_sample s;
	int rc = 0;

	while (rc == 0) {
		memset(&s, 0, sizeof(s));
		if ((rc = lpo_lrmtool_next(r, &s)) == 0)
			rc = lpo_lrm_batch_add(r->batch, &s);
		lpo_sample_clear(&s);
		if (rc == 0 && lpo_lrm_batch_count(r->batch) == SCORE_CHUNK)
			rc = print_chunk(r, rate, n);
	}
	if (rc == 1)
		rc = lpo_lrm_batch_count(r->batch) > 0 ?
		    print_chunk(r, rate, n) : 0;
	lpo_cli_progress_end(r->cli);
	return rc;
}

/* --score takes the same whatever there is: it fits, or is refused. */
static int
score_fits(struct lrm_run *r, const struct lpo_lrm_config *cfg)
{
	struct lpo_cli_dry *d = &r->dry;
	lpo_cli *cli = r->cli;
	int rc;

	lpo_cli_dry_begin(cli, d);
	if ((rc = lpo_lrm_open(cli->ctx, &d->dry.be, &r->plan_m, r->o->reward,
	    cli->o.model, lpo_cli_precision(cli), cfg)) == 0 &&
	    (rc = lpo_lrm_load_text(r->plan_m)) == 0 &&
	    (rc = lpo_lrm_batch_try(cli->ctx, r->plan_m, r->shape,
	    SCORE_CHUNK)) == 0 && lpo_cli_dry_over(d) > 0)
		rc = lpo_cli_refuse(cli, d, d->limit + lpo_cli_dry_over(d),
		    "reward model", "");
	if (rc == 0 && cli->o.dry_run)
		lpo_cli_plan_memory(cli, d);
	lpo_lrm_free(r->plan_m);
	r->plan_m = NULL;
	lpo_cli_dry_end(cli);
	return rc;
}

int
lpo_lrmtool_score(struct lrm_run *r)
{
	static const char *const train_only[] = { "output", "steps", "batch",
	    "micro-batch", "lr", "warmup", "schedule", "weight-decay",
	    "max-grad-norm", "criterion", "batch-coeff", "aux-coeff",
	    "freeze-text", "text-projection", "dtype", "eval", "eval-every",
	    "keep", "patience" };
	struct lpo_lrm_config cfg = { .guidance = NAN, .multi_scale = -1,
	    .multi_scale_cfg = -1 };
	struct lpo_lrm_rate *rate = NULL;
	lpo_cli *cli = r->cli;
	int64_t n = 0;
	size_t i;
	int rc;

	if (r->o->reward == NULL)
		return lpo_cli_usage(cli, "--score needs -r, the reward "
		    "model");
	for (i = 0; i < sizeof(train_only) / sizeof(*train_only); i++)
		if (lpo_cli_given(cli, train_only[i]))
			return lpo_cli_usage(cli, "--score and --%s "
			    "contradict each other", train_only[i]);
	if (lpo_cli_given(cli, "guidance"))
		cfg.guidance = r->o->guidance;
	if (lpo_cli_given(cli, "multi-scale"))
		cfg.multi_scale = !r->o->multi;
	if (lpo_cli_given(cli, "multi-scale-cfg"))
		cfg.multi_scale_cfg = r->o->multi_cfg;
	if ((rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = lpo_lrm_open(cli->ctx, &cli->be, &r->m, r->o->reward,
	    cli->o.model, lpo_cli_precision(cli), &cfg)) < 0 ||
	    (rc = lpo_lrmtool_open(r)) != 0 ||
	    (rc = lpo_cli_input_dir(cli, "reward", r->o->reward)) < 0 ||
	    (rc = lpo_lrmtool_identify(r)) < 0 ||
	    (rc = lpo_cli_begin(cli, NULL, NULL)) != 0)
		return rc;
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "run", "%s", lpo_cli_run(cli));
		lpo_cli_plan(cli, "pairs", "%lld",
		    (long long)lpo_lrmtool_pairs(r));
	}
	if ((rc = score_fits(r, &cfg)) < 0)
		return rc;
	if (cli->o.dry_run)
		return LPO_CLI_DONE;
	if ((rc = lpo_lrm_batch_new(cli->ctx, &r->batch, r->m,
	    r->shape)) < 0)
		return rc;
	if (!cli->o.json)
		printf("key\tscore_0\tscore_1\tlabel_0\n");
	if ((rc = score_all(r, &rate, &n)) == 0)
		rc = lpo_lrmtool_tell(r, rate, n, 0, 0);
	lpo_free(rate);
	return rc;
}
