/* lpo-eval: systems on the same prompts and seeds, scored and compared. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "tools/eval.h"

#define OFF(m)	offsetof(struct eval_opts, m)
#define R	LPO_CLI_RESULT

static const struct lpo_cli_option options[] = {
	{ "What is compared", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "lora", 0, "FILE[:W]", "the model of -m with this LoRA, against "
	    "without", LPO_CLI_STRING, OFF(lora), LPO_CLI_ONCE, 0, 0 },
	{ "system", 0, "NAME=WHAT", "a model folder, MODEL+LORA[:W], a tar "
	    "or folder of images; the first is the base", LPO_CLI_LIST, OFF(system), 0,
	    0, 0 },
	{ "prompts", 'p', "FILE", "CSV, TSV, JSONL, JSON or a text file",
	    LPO_CLI_STRING, OFF(prompts), 0, 0, 0 },
	{ "scorer", 0, "NAME=WHAT", "clip:DIR, aesthetic:HEAD,DIR, lrm:DIR "
	    "or a program (may repeat)", LPO_CLI_LIST, OFF(scorer), R, 0, 0 },
	{ "images", 0, "FILE", "score the images of preferences instead: a "
	    "table, folder or tar; prints id, NAME_0, NAME_1 (may repeat)",
	    LPO_CLI_LIST, OFF(images), 0, 0, 0 },
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
	"-m MODEL --lora LORA -p PROMPTS --scorer NAME=WHAT [--html FILE]\n"
	"--system NAME=WHAT --system NAME=WHAT [-p PROMPTS] --scorer NAME=WHAT\n"
	"--images TABLE... --scorer NAME=WHAT\n"
	"--pool DATABASE...", options
};

/* ---------------------------------------------------------------- output */

static void
print_number(FILE *f, double v, int sep)
{
	fprintf(f, "%.6g%c", v, sep);
}

static int
print_json(lpo_cli *cli, const struct eval *e,
    const struct lpo_comparison *v)
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
		fprintf(e->out, "%s\n", text);
	json_decref(j);
	lpo_free(text);
	return text == NULL ? LPO_ENOMEM : 0;
}

/* One line a comparison: TSV with a header, or JSON objects. */
static int
print_results(lpo_cli *cli, const struct eval *e)
{
	const struct lpo_comparison *v;
	FILE *f = e->out;
	int64_t i;
	int rc;

	if (!cli->o.json)
		fprintf(f, "scorer\tsystem\tbase\tn_prompts\tn_images\t"
		    "mean_base\tmean_system\tdifference\tdifference_low\t"
		    "difference_high\twin_rate\twin_rate_low\t"
		    "win_rate_high\n");
	for (i = 0; i < e->n_results; i++) {
		v = &e->result[i];
		if (cli->o.json) {
			if ((rc = print_json(cli, e, v)) < 0)
				return rc;
			continue;
		}
		lpo_cli_tsv(f, v->scorer, '\t');
		lpo_cli_tsv(f, e->system[v->system].name, '\t');
		lpo_cli_tsv(f, e->system[0].name, '\t');
		fprintf(f, "%lld\t%lld\t", (long long)e->prompts,
		    (long long)e->n);
		print_number(f, v->mean_base, '\t');
		print_number(f, v->mean, '\t');
		print_number(f, v->difference.mean, '\t');
		print_number(f, v->difference.low, '\t');
		print_number(f, v->difference.high, '\t');
		print_number(f, v->win.mean, '\t');
		print_number(f, v->win.low, '\t');
		print_number(f, v->win.high, '\n');
	}
	return 0;
}

/* ------------------------------------------------------------ conditions */

/* --fail-under SCORE:winrate=X or SCORE:difference=X */
struct condition {
	const char *score;
	int len, win;
	double want;
};

static int
parse_condition(lpo_cli *cli, struct condition *v, const char *spec)
{
	const char *colon = strrchr(spec, ':');
	const char *eq = colon != NULL ? strchr(colon, '=') : NULL;

	if (eq == NULL || lpo_cli_parse_f64(eq + 1, &v->want) < 0)
		return lpo_cli_usage(cli, "bad --fail-under '%s'", spec);
	v->score = spec;
	v->len = (int)(colon - spec);
	v->win = strncmp(colon + 1, "winrate=", 8) == 0;
	if (!v->win && strncmp(colon + 1, "difference=", 11) != 0)
		return lpo_cli_usage(cli, "bad --fail-under '%s': want "
		    "winrate or difference", spec);
	return 0;
}

/* 1 if a scorer of SCORER.NAME or SCORER is there, 0, or an error. */
static int
has_scorer(lpo_cli *cli, const struct lpo_cli_list *l, const char *score)
{
	size_t n = strcspn(score, ".:");
	struct eval_scorer s;
	int i, rc, found = 0;

	for (i = 0; i < l->n && !found; i++) {
		if ((rc = eval_scorer_parse(cli, &s, l->v[i])) != 0)
			return rc;
		found = strlen(s.name) == n && strncmp(s.name, score, n) == 0;
		eval_scorer_clear(&s);
	}
	return found;
}

/* Before any work: the form, and that a scorer of that name will run. */
static int
check_conditions(lpo_cli *cli, const struct eval_opts *o)
{
	struct condition v;
	int i, rc;

	for (i = 0; i < o->fail_under.n; i++) {
		if ((rc = parse_condition(cli, &v, o->fail_under.v[i])) != 0)
			return rc;
		if (o->pool)
			continue;
		if ((rc = has_scorer(cli, &o->scorer, v.score)) < 0)
			return rc;
		if (rc == 0)
			return lpo_cli_usage(cli, "--fail-under '%s': no such "
			    "scorer", v.score);
	}
	return 0;
}

static int
one_condition(lpo_cli *cli, const struct eval *e, const struct condition *v)
{
	const struct lpo_comparison *r;
	int64_t k, found = 0;
	double is;

	for (k = 0; k < e->n_results; k++) {
		r = &e->result[k];
		if (strlen(r->scorer) != (size_t)v->len ||
		    strncmp(r->scorer, v->score, (size_t)v->len) != 0)
			continue;
		found = 1;
		is = v->win ? r->win.mean : r->difference.mean;
		if (is >= v->want)
			continue;
		cli->unmet = 1;
		lpo_cli_note(cli, "%s of '%s' in '%s' is %g, below %g",
		    v->win ? "win rate" : "difference",
		    e->system[r->system].name, r->scorer, is, v->want);
	}
	return found ? 0 : lpo_cli_usage(cli, "--fail-under '%s': no such "
	    "score", v->score);
}

static int
conditions(lpo_cli *cli, const struct eval *e, const struct eval_opts *o)
{
	struct condition v;
	int i, rc;

	for (i = 0; i < o->fail_under.n; i++)
		if ((rc = parse_condition(cli, &v,
		    o->fail_under.v[i])) != 0 ||
		    (rc = one_condition(cli, e, &v)) != 0)
			return rc;
	return 0;
}

/* ------------------------------------------------------------------ work */

/* Hours of drawing should not end with this. */
static int
no_folder(lpo_cli *cli, const char *file)
{
	return file != NULL && lpo_is_dir(file) ? lpo_fail(cli->ctx,
	    LPO_EINVAL, "'%s' is a folder", file) : 0;
}

/* Everything that can be said about the options before the work begins. */
static int
check(lpo_cli *cli, const struct eval_opts *o)
{
	int rc;

	if (o->pool + (o->images.n > 0) + (o->lora != NULL ||
	    o->system.n > 0) > 1)
		return lpo_cli_usage(cli, "one of --pool, --images, and "
		    "--lora or --system");
	if (o->pool && (o->html != NULL || o->scorer.n > 0))
		return lpo_cli_usage(cli, "--pool reads scores from "
		    "databases: no --scorer, no --html");
	if (o->images.n > 0 && (o->html != NULL || o->fail_under.n > 0))
		return lpo_cli_usage(cli, "--images compares nothing: no "
		    "--html, no --fail-under");
	if (o->html != NULL && (cli->o.output != NULL ?
	    strcmp(o->html, cli->o.output) == 0 : strcmp(o->html, "-") == 0))
		return lpo_cli_usage(cli, "--html '%s': the table goes there; "
		    "-o FILE is for another place", o->html);
	if (!o->pool && o->images.n == 0 && cli->nargs > 0)
		return lpo_cli_usage(cli, "'%s': no operands are expected",
		    cli->args[0]);
	if ((rc = no_folder(cli, o->html)) != 0 ||
	    (rc = no_folder(cli, cli->o.output)) != 0 ||
	    (!o->pool && (rc = eval_scorers_check(cli, o)) != 0))
		return rc;
	return check_conditions(cli, o);
}

static int
run(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	int rc;

	if (o->images.n > 0)
		return eval_images(cli, o, e);
	rc = o->pool ? eval_pool(cli, o, e) : eval_systems(cli, o, e);
	if (rc != 0)
		return rc;
	return print_results(cli, e);
}

static int
write_table(lpo_cli *cli, const struct eval_opts *o, const struct eval *e,
    const char *text, size_t bytes)
{
	int ours = e->state != NULL && o->html == NULL, rc = 0;
	lpo_state *lock = NULL;

	if (!ours)
		rc = lpo_state_lock(cli->ctx, &lock, cli->o.output);
	if (rc == 0)
		rc = lpo_file_write(cli->ctx, cli->o.output, text, bytes);
	return lpo_state_end(lock, rc);
}

static int
flush_stdout(lpo_ctx *c)
{
	errno = 0;
	if (fflush(stdout) == 0 && !ferror(stdout))
		return 0;
	return errno == EPIPE ? LPO_EPIPE : lpo_fail(c, LPO_EIO, "cannot "
	    "write standard output: %s", errno != 0 ? strerror(errno) :
	    "write error");
}

/*
 * After a failure or a stop: a state without pictures and scores is of no use
 * to anybody, and goes.
 */
static void
close_state(lpo_ctx *c, lpo_state *state)
{
	char **name = NULL, *path;
	int64_t i, n = 0;
	int saved = state == NULL || lpo_dir_list(c, &name, &n,
	    lpo_state_dir(state)) < 0;

	for (i = 0; i < n; i++) {
		if (strcmp(name[i], "lock") == 0 ||
		    strcmp(name[i], "run.json") == 0)
			continue;
		path = lpo_state_file(c, state, name[i]);
		saved |= path == NULL || rmdir(path) < 0;
		lpo_free(path);
	}
	lpo_names_free(name, n);
	if (saved)
		lpo_state_close(state);
	else
		(void)lpo_state_remove(state);
}

/*
 * The table goes to -o as a whole, or to standard output; when it is there,
 * nothing need be kept.
 */
static int
work(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	char *text = NULL;
	size_t bytes = 0;
	int file = !lpo_cli_to_stdout(cli), rc;

	if ((rc = check(cli, o)) != 0)
		return rc;
	e->out = file ? open_memstream(&text, &bytes) : stdout;
	if (e->out == NULL)
		return lpo_fail(cli->ctx, LPO_ENOMEM, "out of memory");
	rc = run(cli, o, e);
	/* without the memory to end the text there is none, and no error */
	if (file && (fclose(e->out) != 0 || text == NULL) && rc == 0)
		rc = lpo_fail(cli->ctx, LPO_ENOMEM, "out of memory");
	if (rc == 0)
		rc = file ? write_table(cli, o, e, text, bytes) :
		    flush_stdout(cli->ctx);
	free(text);
	if (rc == 0 && e->state != NULL)
		rc = lpo_state_remove(e->state);
	else
		close_state(cli->ctx, e->state);
	return rc != 0 ? rc : conditions(cli, e, o);
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
