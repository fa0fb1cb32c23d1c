/* lpo-eval: systems to pictures to scores. */
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/runid.h"
#include "lib/io/shard.h"
#include "tools/eval.h"

void
eval_free(struct eval *e)
{
	int64_t i;

	for (i = 0; e->system != NULL && i < e->systems; i++) {
		lpo_free(e->system[i].name);
		lpo_free(e->system[i].model);
		lpo_free(e->system[i].lora);
		lpo_free(e->system[i].folder);
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

/* A folder that is no model: then it has images. */
static int
is_images(lpo_ctx *c, const char *dir)
{
	char *unet = lpo_path_join(c, dir, "unet");
	int no = unet == NULL || lpo_is_dir(unet);

	lpo_free(unet);
	return !no;
}

/* NAME=MODEL, NAME=MODEL+LORA[:W], NAME=FILE.tar, NAME=FOLDER */
static int
parse_system(lpo_cli *cli, struct eval_system *s, const char *spec)
{
	const char *eq = strchr(spec, '='), *what, *plus;
	lpo_ctx *c = cli->ctx;
	size_t n;

	if (eq == NULL || eq == spec || eq[1] == '\0')
		return lpo_cli_usage(cli, "bad --system '%s': want NAME=WHAT",
		    spec);
	what = eq + 1;
	n = strlen(what);
	s->strength = 1;
	s->name = lpo_asprintf(c, "%.*s", (int)(eq - spec), spec);
	if (lpo_is_dir(what)) {
		if (is_images(c, what))
			s->folder = lpo_strdup(c, what);
		else
			s->model = lpo_strdup(c, what);
	} else if (n > 4 && strcmp(what + n - 4, ".tar") == 0)
		s->tar = lpo_strdup(c, what);
	else if ((plus = strchr(what, '+')) == NULL)
		s->model = lpo_strdup(c, what);
	else {
		s->model = lpo_asprintf(c, "%.*s", (int)(plus - what), what);
		split_strength(c, &s->lora, &s->strength, plus + 1);
	}
	return lpo_errcode(c);
}

/* Each --system, no name twice. */
static int
parse_systems(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	int i, k, rc;

	for (i = 0; i < o->system.n; i++) {
		if ((rc = parse_system(cli, &e->system[i],
		    o->system.v[i])) != 0)
			return rc;
		for (k = 0; k < i; k++)
			if (strcmp(e->system[k].name, e->system[i].name) == 0)
				return lpo_cli_usage(cli, "--system: two are "
				    "called '%s'", e->system[i].name);
	}
	return 0;
}

/* -m with and without --lora, or what --system says. */
static int
list_systems(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	lpo_ctx *c = cli->ctx;
	int64_t i;
	int rc;

	e->systems = o->lora != NULL ? 2 : o->system.n;
	if (o->lora != NULL && o->system.n > 0)
		return lpo_cli_usage(cli, "--lora or --system, not both");
	if (e->systems < 2)
		return lpo_cli_usage(cli, "two systems at least: -m with "
		    "--lora, or --system twice");
	e->system = lpo_alloc(c, (size_t)e->systems, sizeof(*e->system));
	if (e->system == NULL)
		return LPO_ENOMEM;
	if ((rc = parse_systems(cli, o, e)) != 0)
		return rc;
	if (o->lora != NULL) {
		if ((rc = lpo_cli_need_model(cli)) != 0)
			return rc;
		e->system[0].strength = 1;
		e->system[0].name = lpo_strdup(c, "base");
		e->system[0].model = lpo_strdup(c, cli->o.model);
		e->system[1].name = lpo_strdup(c, "aligned");
		e->system[1].model = lpo_strdup(c, cli->o.model);
		split_strength(c, &e->system[1].lora,
		    &e->system[1].strength, o->lora);
	}
	for (i = 0; i < e->systems && o->prompts == NULL; i++)
		if (e->system[i].model != NULL)
			return lpo_cli_usage(cli, "-p PROMPTS is needed");
	return lpo_errcode(c);
}

/* One system's files, as NAME and NAME.lora. */
static int
input_of(lpo_cli *cli, const struct eval_system *s)
{
	char *role = lpo_asprintf(cli->ctx, "%s.lora", s->name), hex[65];
	int rc = role == NULL ? LPO_ENOMEM : 0;

	if (rc == 0 && s->model != NULL)
		rc = lpo_cli_input_dir(cli, s->name, s->model);
	if (rc == 0 && s->lora != NULL)
		rc = lpo_cli_input_file(cli, role, s->lora);
	if (rc == 0 && s->tar != NULL)
		rc = lpo_cli_input_file(cli, s->name, s->tar);
	if (rc == 0 && s->folder != NULL &&
	    (rc = eval_folder_sha256(cli, hex, s->folder)) == 0)
		rc = lpo_cli_input_hash(cli, s->name, s->folder, hex);
	lpo_free(role);
	return rc;
}

/*
 * What the run id is made of: prompts, models, LoRAs with their strength,
 * image files; and which belongs to which name.
 */
static int
inputs(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	json_t *list = json_array();
	const struct eval_system *s;
	int64_t i;
	int rc = 0;

	if (o->prompts != NULL)
		rc = lpo_cli_input_prompts(cli, o->prompts, &e->list);
	for (i = 0; i < e->systems && rc == 0; i++) {
		s = &e->system[i];
		rc = input_of(cli, s);
		json_array_append_new(list, json_pack("{ss sb sb sf}",
		    "name", s->name, "model", s->model != NULL, "lora",
		    s->lora != NULL, "strength", s->strength));
	}
	lpo_cli_resolved(cli, "systems", list);
	return rc == 0 ? eval_scorers_inputs(cli, o) : rc;
}

/* ------------------------------------------------- what the tars contain */

/* Scorers and intervals by prompt are worth nothing without it. */
static int
get_prompt(lpo_ctx *c, json_t **j, const char **prompt, lpo_shard *tar,
    const char *path, int64_t i)
{
	int rc = lpo_shard_get_json(c, j, tar, i);

	if (rc < 0)
		return rc;
	*prompt = json_string_value(lpo_json_get(*j, "prompt"));
	if (*prompt != NULL)
		return 0;
	json_decref(*j);
	return lpo_fail(c, LPO_EFORMAT, "%s: image '%s' has no 'prompt' in "
	    "its KEY.json", path, lpo_shard_key(tar, i));
}

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
		if ((rc = get_prompt(c, &j, &text, tar, e->system[0].tar,
		    i)) < 0)
			return rc;
		e->key[i] = lpo_strdup(c, lpo_shard_key(tar, i));
		e->prompt[i] = lpo_strdup(c, text);
		json_decref(j);
		if (e->key[i] == NULL || e->prompt[i] == NULL)
			return LPO_ENOMEM;
		/* pictures of one prompt lie together */
		if (i == 0 || strcmp(e->prompt[i], e->prompt[i - 1]) != 0)
			e->first[e->prompts++] = i;
	}
	e->first[e->prompts] = e->n;
	return e->n > 0 ? 0 : lpo_fail(c, LPO_EFORMAT, "'%s' has no images",
	    e->system[0].tar);
}

/* Keys, their order and prompts as the first system has them. */
static int
match_images(lpo_ctx *c, const struct eval *e, const struct eval_system *s,
    lpo_shard *tar)
{
	const char *text;
	json_t *j = NULL;
	int64_t i;
	int rc = 0;

	if (lpo_shard_samples(tar) != e->n)
		return lpo_fail(c, LPO_EFORMAT, "'%s' has %lld images, '%s' "
		    "%lld", s->tar, (long long)lpo_shard_samples(tar),
		    e->system[0].tar, (long long)e->n);
	for (i = 0; i < e->n && rc == 0; i++) {
		if (strcmp(lpo_shard_key(tar, i), e->key[i]) != 0)
			return lpo_fail(c, LPO_EFORMAT, "image %lld is '%s' "
			    "in '%s' and '%s' in '%s'", (long long)i,
			    lpo_shard_key(tar, i), s->tar, e->key[i],
			    e->system[0].tar);
		if ((rc = get_prompt(c, &j, &text, tar, s->tar, i)) < 0)
			return rc;
		if (strcmp(text, e->prompt[i]) != 0)
			rc = lpo_fail(c, LPO_EFORMAT, "image '%s' has another "
			    "prompt in '%s' than in '%s'", e->key[i], s->tar,
			    e->system[0].tar);
		json_decref(j);
	}
	return rc;
}

/* Scores are saved by run: another scorer finds only the pictures. */
static int
score_system(lpo_cli *cli, const struct eval_opts *o, struct eval *e,
    lpo_scorers *set, int64_t i)
{
	lpo_ctx *c = cli->ctx;
	lpo_shard *tar = NULL;
	char *dir = lpo_asprintf(c, "%s/scores-%s-%lld",
	    lpo_state_dir(e->state), lpo_cli_run(cli), (long long)i);
	int rc;

	if (dir == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_mkdir_p(c, dir)) == 0 &&
	    (rc = lpo_shard_open(c, &tar, e->system[i].tar)) == 0)
		rc = i == 0 ? list_images(c, e, tar) :
		    match_images(c, e, &e->system[i], tar);
	if (rc == 0)
		rc = eval_score_tar(cli, o, set, &e->system[i], tar,
		    (const char *const *)e->key, e->n, dir);
	lpo_shard_close(tar);
	lpo_free(dir);
	return rc;
}

static int
score(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	lpo_scorers *set = NULL;
	int64_t i;
	int rc;

	rc = eval_scorers_open(cli, o, &set);
	for (i = 0; i < e->systems && rc == 0; i++)
		rc = score_system(cli, o, e, set, i);
	lpo_scorers_free(set);
	return rc;
}

static int
all_tars(const struct eval *e)
{
	int64_t i;

	for (i = 0; i < e->systems && e->system[i].tar != NULL; i++)
		;
	return i == e->systems;
}

/*
 * Scorers that cannot be loaded are found out before hours of drawing; their
 * weights need not be in memory meanwhile.
 */
static int
draw(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	lpo_scorers *set = NULL;
	int rc;

	if (all_tars(e))
		return 0;
	if ((rc = eval_scorers_open(cli, o, &set)) != 0)
		return rc;
	lpo_scorers_free(set);
	return eval_draw(cli, o, e, lpo_state_dir(e->state));
}

int
eval_compare(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
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

static int
plan(lpo_cli *cli, const struct eval_opts *o, const struct eval *e)
{
	int64_t i, models = 0;
	int rc;

	lpo_cli_plan(cli, "run", "%s", lpo_cli_run(cli));
	for (i = 0; i < e->systems; i++) {
		const struct eval_system *s = &e->system[i];

		models += s->model != NULL;
		lpo_cli_plan(cli, s->name, "%s%s%s", s->model != NULL ?
		    s->model : s->tar != NULL ? s->tar : s->folder,
		    s->lora != NULL ? " with " : "",
		    s->lora != NULL ? s->lora : "");
	}
	lpo_cli_plan(cli, "prompts", "%lld", (long long)e->list.n);
	lpo_cli_plan(cli, "pictures to draw", "%lld", (long long)(models *
	    e->list.n * o->per_prompt));
	lpo_cli_plan(cli, "scorers", "%d", o->scorer.n);
	if ((rc = eval_scorers_fit(cli, o)) != 0)
		return rc;
	for (i = 0; i < e->systems; i++)
		if (e->system[i].model != NULL) {
			lpo_cli_plan(cli, "to draw", "%s", e->system[i].name);
			if ((rc = eval_draw_plan(cli, o, e,
			    &e->system[i])) < 0)
				return rc;
		}
	return LPO_CLI_DONE;
}

/*
 * The pictures' own id: a run that only scores, counts or reports otherwise
 * takes up what another one has drawn, say before its scorer failed.
 */
static int
pictures_id(lpo_cli *cli, struct eval *e, json_t **options)
{
	static const char *const other[] = { "scorer", "scorer_precision",
	    "resamples", "title", "html-images" };
	lpo_ctx *c = cli->ctx;
	const char **in;
	char *role;
	int64_t i;
	size_t k;
	int n = 0, rc = 0;

	*options = json_deep_copy(lpo_cli_run_options(cli));
	in = lpo_alloc(c, 2 * (size_t)e->systems + 1, sizeof(*in));
	if (*options == NULL || in == NULL)
		rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
	for (k = 0; rc == 0 && k < sizeof(other) / sizeof(*other); k++)
		json_object_del(*options, other[k]);
	if (rc == 0)
		in[n++] = lpo_cli_input_value(cli, "prompts");
	for (i = 0; i < e->systems && rc == 0; i++) {
		in[n++] = lpo_cli_input_value(cli, e->system[i].name);
		role = lpo_asprintf(c, "%s.lora", e->system[i].name);
		if (role == NULL)
			rc = LPO_ENOMEM;
		else
			in[n++] = lpo_cli_input_value(cli, role);
		lpo_free(role);
	}
	if (rc == 0)
		rc = lpo_runid(c, e->pictures, "lpo-eval", LPO_VERSION,
		    *options, in, n);
	lpo_free(in);
	return rc;
}

/* Beside the report or table, else under a name of its own. */
static int
open_state(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	json_t *options = NULL;
	char *name = NULL;
	int rc;

	/* who only scores the same tars does not wait for another scorer */
	if ((rc = pictures_id(cli, e, &options)) == 0 &&
	    (name = o->html != NULL ? lpo_strdup(cli->ctx, o->html) :
	    !lpo_cli_to_stdout(cli) ? lpo_strdup(cli->ctx, cli->o.output) :
	    lpo_asprintf(cli->ctx, "lpo-eval-%s", all_tars(e) ?
	    lpo_cli_run(cli) : e->pictures)) == NULL)
		rc = LPO_ENOMEM;
	if (rc == 0)
		rc = lpo_state_open(cli->ctx, &e->state, name, e->pictures,
		    options, cli->o.fresh);
	json_decref(options);
	lpo_free(name);
	return rc;
}

int
eval_systems(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	int rc;

	if ((rc = list_systems(cli, o, e)) != 0 ||
	    (o->prompts != NULL && (rc = lpo_prompts_read(cli->ctx, &e->list,
	    o->prompts)) < 0) || (rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = inputs(cli, o, e)) < 0 ||
	    (rc = lpo_cli_begin(cli, lpo_cli_to_stdout(cli) ? o->html :
	    cli->o.output, NULL)) != 0)
		return rc;
	if (cli->o.dry_run)
		return plan(cli, o, e);
	if ((rc = open_state(cli, o, e)) == 0 &&
	    (rc = draw(cli, o, e)) == 0 && (rc = score(cli, o, e)) == 0 &&
	    (rc = eval_compare(cli, o, e)) == 0 &&
	    (rc = eval_store(cli, e)) == 0 && o->html != NULL)
		rc = eval_report(cli, o, e);
	return rc;
}
