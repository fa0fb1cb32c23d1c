/* lpo-eval: systems on the same prompts and seeds, scored and compared. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tools/eval.h"

#define OFF(m)	offsetof(struct eval_opts, m)
#define R	LPO_CLI_RESULT

static const struct lpo_cli_option options[] = {
	{ "What is compared", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "lora", 0, "FILE[:W]", "the model of -m with this LoRA, against "
	    "without", LPO_CLI_STRING, OFF(lora), 0, 0, 0 },
	{ "system", 0, "NAME=WHAT", "a model folder, MODEL+LORA[:W], or a tar "
	    "of images; the first is the base", LPO_CLI_LIST, OFF(system), 0,
	    0, 0 },
	{ "prompts", 'p', "FILE", "CSV, TSV, JSONL, JSON or a text file",
	    LPO_CLI_STRING, OFF(prompts), 0, 0, 0 },
	{ "scorer", 0, "NAME=CMD", "a program that scores a tar of images "
	    "(may repeat)", LPO_CLI_LIST, OFF(scorer), R, 0, 0 },
	{ "images", 0, "FILE", "score the images of a preference table "
	    "instead; prints id, NAME_0, NAME_1", LPO_CLI_STRING,
	    OFF(images), 0, 0, 0 },
	{ "pool", 0, NULL, "compare what earlier runs stored: the operands "
	    "are databases", LPO_CLI_FLAG, OFF(pool), 0, 0, 0 },
	{ "Pictures", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "per-prompt", 0, "N", "pictures of each prompt (default 1)",
	    LPO_CLI_I64, OFF(per_prompt), R, 1, 10000 },
	{ "size", 's', "PX", "default: the model's", LPO_CLI_I64,
	    OFF(size_px), R, 8, 16384 },
	{ "steps", 0, "N", "DDIM steps (default 20)", LPO_CLI_I64,
	    OFF(steps), R, 1, 1000 },
	{ "guidance", 0, "X", "default 5", LPO_CLI_F64, OFF(guidance), R, 0,
	    100 },
	{ "eta", 0, "X", "default 0", LPO_CLI_F64, OFF(eta), R, 0, 1 },
	{ "batch", 0, "N", "pictures at once; changes no byte", LPO_CLI_I64,
	    OFF(batch), 0, 1, 100000 },
	{ "Results", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "html", 0, "FILE", "a report in one self-contained file",
	    LPO_CLI_STRING, OFF(html), 0, 0, 0 },
	{ "html-images", 0, "N", "at most N pictures of each system in it "
	    "(default 400)", LPO_CLI_I64, OFF(html_images), R, 0, 1e6 },
	{ "title", 0, "TEXT", "of the report", LPO_CLI_STRING, OFF(title), R,
	    0, 0 },
	{ "resamples", 0, "N", "bootstrap samples (default 4000)",
	    LPO_CLI_I64, OFF(resamples), R, 100, 1e6 },
	{ "fail-under", 0, "SCORE:WHAT=X", "exit 5 unless e.g. "
	    "judge.alignment:winrate=0.55 (or difference=0) is reached",
	    LPO_CLI_LIST, OFF(fail_under), 0, 0, 0 },
	{ NULL, 0, NULL, NULL, 0, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-eval", "systems on the same prompts and seeds, compared",
	"-m MODEL --lora LORA -p PROMPTS --scorer NAME=CMD [--html FILE]\n"
	"--system NAME=WHAT --system NAME=WHAT -p PROMPTS --scorer NAME=CMD\n"
	"--images TABLE --scorer NAME=CMD\n"
	"--pool DATABASE...", options
};

/* ---------------------------------------------------------------- output */

static void
print_number(FILE *f, double v, int sep)
{
	fprintf(f, "%.6g%c", v, sep);
}

static int
print_json(lpo_cli *cli, const struct eval *e, const struct lpo_comparison *v)
{
	json_t *j = json_pack("{ss ss ss sI sI sf sf sf sf sf sf sf sf}",
	    "scorer", v->scorer, "system", e->system[v->system].name, "base",
	    e->system[0].name, "n_prompts", (json_int_t)e->prompts, "n_images",
	    (json_int_t)e->n, "mean_base", v->mean_base, "mean_system",
	    v->mean, "difference", v->difference.mean, "difference_low",
	    v->difference.low, "difference_high", v->difference.high,
	    "win_rate", v->win.mean, "win_rate_low", v->win.low,
	    "win_rate_high", v->win.high);
	char *text = j == NULL ? NULL : lpo_json_dumps(cli->ctx, j);

	if (text != NULL)
		puts(text);
	json_decref(j);
	lpo_free(text);
	return text == NULL ? LPO_ENOMEM : 0;
}

/* One line a comparison: TSV with a header, or JSON objects. */
int
eval_print(lpo_cli *cli, const struct eval *e)
{
	const struct lpo_comparison *v;
	int64_t i;
	int rc;

	if (!cli->o.json)
		printf("scorer\tsystem\tbase\tn_prompts\tn_images\tmean_base\t"
		    "mean_system\tdifference\tdifference_low\t"
		    "difference_high\twin_rate\twin_rate_low\t"
		    "win_rate_high\n");
	for (i = 0; i < e->n_results; i++) {
		v = &e->result[i];
		if (cli->o.json) {
			if ((rc = print_json(cli, e, v)) < 0)
				return rc;
			continue;
		}
		lpo_cli_tsv(stdout, v->scorer, '\t');
		lpo_cli_tsv(stdout, e->system[v->system].name, '\t');
		lpo_cli_tsv(stdout, e->system[0].name, '\t');
		printf("%lld\t%lld\t", (long long)e->prompts,
		    (long long)e->n);
		print_number(stdout, v->mean_base, '\t');
		print_number(stdout, v->mean, '\t');
		print_number(stdout, v->difference.mean, '\t');
		print_number(stdout, v->difference.low, '\t');
		print_number(stdout, v->difference.high, '\t');
		print_number(stdout, v->win.mean, '\t');
		print_number(stdout, v->win.low, '\t');
		print_number(stdout, v->win.high, '\n');
	}
	return 0;
}

/* --fail-under SCORE:winrate=X or SCORE:difference=X */
int
eval_conditions(lpo_cli *cli, const struct eval *e,
    const struct lpo_cli_list *list)
{
	const char *colon, *eq;
	double want, is;
	int64_t k;
	int i, found, win;

	for (i = 0; i < list->n; i++) {
		colon = strrchr(list->v[i], ':');
		eq = colon != NULL ? strchr(colon, '=') : NULL;
		if (eq == NULL || lpo_cli_parse_f64(eq + 1, &want) < 0)
			return lpo_cli_usage(cli, "bad --fail-under '%s'",
			    list->v[i]);
		win = strncmp(colon + 1, "winrate=", 8) == 0;
		if (!win && strncmp(colon + 1, "difference=", 11) != 0)
			return lpo_cli_usage(cli, "bad --fail-under '%s': "
			    "want winrate or difference", list->v[i]);
		found = 0;
		for (k = 0; k < e->n_results; k++) {
			if (strncmp(e->result[k].scorer, list->v[i],
			    (size_t)(colon - list->v[i])) != 0 ||
			    e->result[k].scorer[colon - list->v[i]] != '\0')
				continue;
			found = 1;
			is = win ? e->result[k].win.mean :
			    e->result[k].difference.mean;
			if (is >= want)
				continue;
			cli->unmet = 1;
			lpo_cli_note(cli, "%s of '%s' is %g, below %g",
			    win ? "win rate" : "difference",
			    e->result[k].scorer, is, want);
		}
		if (!found)
			return lpo_cli_usage(cli, "--fail-under '%s': no such "
			    "score", list->v[i]);
	}
	return 0;
}

/* ------------------------------------------------------------------ work */

static int
work(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	int rc;

	if (o->pool)
		rc = eval_pool(cli, o, e);
	else if (o->images != NULL)
		return eval_images(cli, o);
	else
		rc = eval_systems(cli, o, e);
	if (rc != 0)
		return rc;
	if ((rc = eval_print(cli, e)) != 0 ||
	    (rc = eval_conditions(cli, e, &o->fail_under)) != 0)
		return rc;
	return 0;
}

int
main(int argc, char **argv)
{
	struct eval_opts o = { .per_prompt = 1, .steps = 20, .guidance = 5,
	    .html_images = 400, .resamples = 4000,
	    .title = "Aligned against base" };
	struct eval e = { .n = 0 };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	if (rc == 0)
		rc = work(&cli, &o, &e);
	eval_free(&e);
	return lpo_cli_end(&cli, rc);
}
