/* lpo-eval: systems to pictures to scores; several runs pooled. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/state.h"
#include "lib/io/db.h"
#include "lib/io/png.h"
#include "lib/io/shard.h"
#include "lib/train/sample.h"
#include "tools/eval.h"

void
eval_free(struct eval *e)
{
	int64_t i;

	for (i = 0; e->system != NULL && i < e->systems; i++) {
		lpo_free(e->system[i].name);
		lpo_free(e->system[i].model);
		lpo_free(e->system[i].lora);
		lpo_free(e->system[i].tar);
		lpo_scores_free(&e->system[i].scores);
	}
	for (i = 0; i < e->n; i++) {
		if (e->key != NULL)
			lpo_free(e->key[i]);
		if (e->prompt != NULL)
			lpo_free(e->prompt[i]);
	}
	lpo_free(e->system);
	lpo_free(e->key);
	lpo_free(e->prompt);
	lpo_free(e->first);
	lpo_free(e->result);
	lpo_prompts_free(&e->list);
}

/* --------------------------------------------------------------- systems */

/* "FILE" or "FILE:W", W a number. */
static int
split_strength(lpo_ctx *c, char **file, double *strength, const char *spec)
{
	const char *colon = strrchr(spec, ':');

	*strength = 1;
	if ((*file = lpo_strdup(c, spec)) == NULL)
		return LPO_ENOMEM;
	if (colon != NULL && lpo_cli_parse_f64(colon + 1, strength) == 0)
		(*file)[colon - spec] = '\0';
	return 0;
}

/* NAME=MODEL, NAME=MODEL+LORA[:W], NAME=FILE.tar */
static int
parse_system(lpo_cli *cli, struct eval_system *s, const char *spec)
{
	const char *eq = strchr(spec, '='), *what, *plus;
	lpo_ctx *c = cli->ctx;

	if (eq == NULL || eq == spec || eq[1] == '\0')
		return lpo_cli_usage(cli, "bad --system '%s': want NAME=WHAT",
		    spec);
	what = eq + 1;
	s->name = lpo_asprintf(c, "%.*s", (int)(eq - spec), spec);
	if (strlen(what) > 4 && strcmp(what + strlen(what) - 4, ".tar") == 0)
		s->tar = lpo_strdup(c, what);
	else if ((plus = strchr(what, '+')) == NULL)
		s->model = lpo_strdup(c, what);
	else {
		s->model = lpo_asprintf(c, "%.*s", (int)(plus - what), what);
		split_strength(c, &s->lora, &s->strength, plus + 1);
	}
	return lpo_errcode(c);
}

/* -m with and without --lora, or what --system says. */
static int
list_systems(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	lpo_ctx *c = cli->ctx;
	int rc;
	int i;

	e->systems = o->lora != NULL ? 2 : o->system.n;
	if (o->lora != NULL && o->system.n > 0)
		return lpo_cli_usage(cli, "--lora or --system, not both");
	if (e->systems < 2)
		return lpo_cli_usage(cli, "two systems at least: -m with "
		    "--lora, or --system twice");
	e->system = lpo_alloc(c, (size_t)e->systems, sizeof(*e->system));
	if (e->system == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < o->system.n; i++)
		if ((rc = parse_system(cli, &e->system[i],
		    o->system.v[i])) != 0)
			return rc;
	if (o->lora == NULL)
		return 0;
	if ((rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	e->system[0].name = lpo_strdup(c, "base");
	e->system[0].model = lpo_strdup(c, cli->o.model);
	e->system[1].name = lpo_strdup(c, "aligned");
	e->system[1].model = lpo_strdup(c, cli->o.model);
	split_strength(c, &e->system[1].lora, &e->system[1].strength,
	    o->lora);
	return lpo_errcode(c);
}

/* What the run id is made of: prompts, models, LoRAs, image files. */
static int
inputs(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	const struct eval_system *s;
	int64_t i;
	int rc = 0;

	if (o->prompts != NULL)
		rc = lpo_cli_input_file(cli, "prompts", o->prompts);
	for (i = 0; i < e->systems && rc == 0; i++) {
		s = &e->system[i];
		if (s->model != NULL)
			rc = lpo_cli_input_dir(cli, s->name, s->model);
		if (rc == 0 && s->lora != NULL)
			rc = lpo_cli_input_file(cli, s->name, s->lora);
		if (rc == 0 && s->tar != NULL)
			rc = lpo_cli_input_file(cli, s->name, s->tar);
	}
	return rc;
}

/* -------------------------------------------------------------- pictures */

/* One picture as a member of the system's tar. */
static int
put_picture(lpo_cli *cli, const struct eval *e, lpo_shardw *w,
    const struct lpo_sampler_opts *so, const struct eval_system *s,
    const uint8_t *rgb, int64_t px, int64_t index)
{
	int64_t prompt = index / so->per_prompt, number = index %
	    so->per_prompt;
	struct lpo_sample out = { .key = NULL };
	struct lpo_png_text text = { "parameters", NULL };
	char key[32], *parameters;
	uint8_t *png = NULL;
	size_t bytes;
	int rc = LPO_ENOMEM;

	lpo_sample_key(key, prompt, number);
	parameters = lpo_sample_parameters(cli->ctx, so,
	    e->list.text[prompt], px, index, NULL, NULL, s->strength);
	out.key = lpo_strdup(cli->ctx, key);
	out.json = json_pack("{ss sI sI}", "prompt", e->list.text[prompt],
	    "prompt_index", (json_int_t)prompt, "number",
	    (json_int_t)number);
	if (parameters == NULL || out.key == NULL || out.json == NULL)
		goto out;
	text.text = parameters;
	if ((rc = lpo_png_encode(cli->ctx, &png, &bytes, rgb, px, px, &text,
	    1)) < 0)
		goto out;
	if ((rc = lpo_sample_add(cli->ctx, &out, "png", png,
	    (int64_t)bytes)) == 0)
		rc = lpo_shardw_put(w, &out);
out:
	lpo_sample_clear(&out);
	lpo_free(parameters);
	return rc;
}

static int
draw(lpo_cli *cli, const struct eval_opts *o, struct eval *e,
    const struct eval_system *s)
{
	struct lpo_sampler_opts so = { .seed = cli->o.seed,
	    .per_prompt = o->per_prompt, .steps = o->steps,
	    .guidance = o->guidance, .eta = o->eta, .size_px = o->size_px,
	    .memory_bytes = lpo_cli_memory(cli) / 2, .batch = o->batch };
	json_t *run = json_pack("{si ss ss}", "format", 1, "kind", "images",
	    "run", lpo_cli_run(cli));
	lpo_sampler *sampler = NULL;
	lpo_shardw *w = NULL;
	uint8_t *rgb = NULL;
	int64_t i, k, n, total, px;
	int rc;

	if ((rc = lpo_sampler_open(cli->ctx, &sampler, &cli->be,
	    lpo_cli_precision(cli), s->model, s->lora, (float)s->strength,
	    (const char *const *)e->list.text, e->list.n, &so)) < 0)
		goto out;
	total = lpo_sampler_count(sampler);
	px = lpo_sampler_size_px(sampler);
	rgb = lpo_alloc(cli->ctx, (size_t)lpo_sampler_batch(sampler),
	    (size_t)(px * px * 3));
	if (rgb == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if ((rc = lpo_shardw_open(cli->ctx, &w, s->tar, run)) < 0)
		goto out;
	for (i = 0; i < total && rc == 0; i += n) {
		n = lpo_sampler_batch(sampler);
		n = total - i < n ? total - i : n;
		rc = lpo_sampler_run(sampler, rgb, NULL, i, n);
		for (k = 0; k < n && rc == 0; k++)
			rc = put_picture(cli, e, w, &so, s, rgb + k * px * px *
			    3, px, i + k);
		lpo_cli_progress(cli, s->name, i + n, total, "pictures",
		    NULL);
	}
	lpo_cli_progress_end(cli);
	if (rc == 0) {
		rc = lpo_shardw_finish(w, 0, 0, 1);
		w = NULL;
	}
out:
	lpo_shardw_abort(w);
	lpo_sampler_free(sampler);
	lpo_free(rgb);
	json_decref(run);
	return rc;
}

/* ------------------------------------------------- what the tars contain */

/* Keys and prompts of the first system; the others must have the same. */
static int
list_images(lpo_ctx *c, struct eval *e, lpo_shard *tar)
{
	json_t *j = NULL;
	int64_t i;
	const char *text;
	int rc;

	e->n = lpo_shard_samples(tar);
	e->key = lpo_alloc(c, (size_t)e->n + 1, sizeof(*e->key));
	e->prompt = lpo_alloc(c, (size_t)e->n + 1, sizeof(*e->prompt));
	e->first = lpo_alloc(c, (size_t)e->n + 1, sizeof(*e->first));
	if (e->key == NULL || e->prompt == NULL || e->first == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < e->n; i++) {
		if ((rc = lpo_shard_get_json(c, &j, tar, i)) < 0)
			return rc;
		text = json_string_value(lpo_json_get(j, "prompt"));
		e->key[i] = lpo_strdup(c, lpo_shard_key(tar, i));
		e->prompt[i] = lpo_strdup(c, text != NULL ? text : "");
		json_decref(j);
		if (e->key[i] == NULL || e->prompt[i] == NULL)
			return LPO_ENOMEM;
		/* pictures of one prompt lie together */
		if (i == 0 || strcmp(e->prompt[i], e->prompt[i - 1]) != 0)
			e->first[e->prompts++] = i;
	}
	e->first[e->prompts] = e->n;
	return 0;
}

static int
match_images(lpo_ctx *c, const struct eval *e, const struct eval_system *s,
    lpo_shard *tar)
{
	int64_t i;

	if (lpo_shard_samples(tar) != e->n)
		return lpo_fail(c, LPO_EFORMAT, "'%s' has %lld images, '%s' "
		    "%lld", s->tar, (long long)lpo_shard_samples(tar),
		    e->system[0].tar, (long long)e->n);
	for (i = 0; i < e->n; i++)
		if (strcmp(lpo_shard_key(tar, i), e->key[i]) != 0)
			return lpo_fail(c, LPO_EFORMAT, "image %lld is '%s' "
			    "in '%s' and '%s' in '%s'", (long long)i,
			    lpo_shard_key(tar, i), s->tar, e->key[i],
			    e->system[0].tar);
	return 0;
}

static int
score(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	lpo_shard *tar = NULL;
	int64_t i;
	int rc = 0;

	for (i = 0; i < e->systems && rc == 0; i++) {
		if ((rc = lpo_shard_open(cli->ctx, &tar,
		    e->system[i].tar)) < 0)
			return rc;
		rc = i == 0 ? list_images(cli->ctx, e, tar) :
		    match_images(cli->ctx, e, &e->system[i], tar);
		lpo_shard_close(tar);
		if (rc == 0)
			rc = eval_score_tar(cli, &o->scorer,
			    &e->system[i].scores, e->system[i].tar,
			    (const char *const *)e->key, e->n);
	}
	return rc;
}

static int
compare(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	struct lpo_scores *s;
	int64_t i;
	int rc;

	s = lpo_alloc(cli->ctx, (size_t)e->systems, sizeof(*s));
	if (s == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < e->systems; i++)
		s[i] = e->system[i].scores;
	rc = lpo_compare(cli->ctx, &e->result, &e->n_results, s, e->systems,
	    e->first, e->prompts, o->resamples, cli->o.seed);
	lpo_free(s);
	return rc;
}

/* Pictures already drawn by an interrupted attempt are taken as they are. */
static int
draw_missing(lpo_cli *cli, const struct eval_opts *o, struct eval *e,
    const char *dir)
{
	struct eval_system *s;
	char *name;
	int64_t i;
	int rc = 0;

	for (i = 0; i < e->systems && rc == 0; i++) {
		s = &e->system[i];
		if (s->tar != NULL)
			continue;
		name = lpo_asprintf(cli->ctx, "system-%lld.tar",
		    (long long)i);
		s->tar = name == NULL ? NULL : lpo_path_join(cli->ctx, dir,
		    name);
		lpo_free(name);
		if (s->tar == NULL)
			return LPO_ENOMEM;
		if (!lpo_file_exists(s->tar))
			rc = draw(cli, o, e, s);
	}
	return rc;
}

int
eval_systems(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	const char *out = o->html != NULL ? o->html : "lpo-eval";
	lpo_state *state = NULL;
	int rc;

	if (o->scorer.n == 0)
		return lpo_cli_usage(cli, "--scorer NAME=CMD is needed");
	if ((rc = list_systems(cli, o, e)) != 0)
		return rc;
	if (o->prompts == NULL && (e->system[0].tar == NULL))
		return lpo_cli_usage(cli, "-p PROMPTS is needed");
	if ((o->prompts != NULL && (rc = lpo_prompts_read(cli->ctx, &e->list,
	    o->prompts)) < 0) || (rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = inputs(cli, o, e)) < 0 ||
	    (rc = lpo_cli_begin(cli, NULL, NULL)) != 0)
		return rc;
	if ((rc = lpo_state_open(cli->ctx, &state, out, lpo_cli_run(cli),
	    lpo_cli_run_options(cli), cli->o.fresh)) < 0)
		return rc;
	if ((rc = draw_missing(cli, o, e, lpo_state_dir(state))) == 0 &&
	    (rc = score(cli, o, e)) == 0 &&
	    (rc = compare(cli, o, e)) == 0 &&
	    (rc = eval_store(cli, e)) == 0 && o->html != NULL)
		rc = eval_report(cli, o, e);
	if (rc == 0)
		return lpo_state_remove(state);
	lpo_state_close(state);
	return rc;
}
