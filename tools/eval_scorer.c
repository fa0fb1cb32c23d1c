/* lpo-eval: what --scorer names, programs and built-in ones. */
#include <string.h>

#include "lib/base/file.h"
#include "tools/cli_plan.h"
#include "tools/eval.h"

/* ----------------------------------------------------------- what is asked */

void
eval_scorer_clear(struct eval_scorer *s)
{
	lpo_free(s->name);
	memset(s, 0, sizeof(*s));
}

/* NAME=KIND:ARG and NAME=CMD; KIND:ARG alone is called KIND. */
int
eval_scorer_parse(lpo_cli *cli, struct eval_scorer *s, const char *spec)
{
	const char *eq = strchr(spec, '='), *arg;
	size_t n;

	memset(s, 0, sizeof(*s));
	if ((s->cls = lpo_scorer_find(spec, &arg)) != NULL) {
		s->command = spec;
		s->name = lpo_strdup(cli->ctx, s->cls->kind);
		return s->name == NULL ? LPO_ENOMEM : 0;
	}
	if (eq == NULL || eq == spec || eq[1] == '\0')
		return lpo_cli_usage(cli, "bad --scorer '%s': want NAME=CMD "
		    "or [NAME=]KIND:ARG", spec);
	n = (size_t)(eq - spec);
	if (strcspn(spec, ".:\t ") < n)
		return lpo_cli_usage(cli, "--scorer '%s': no '.', ':' or "
		    "blank in a scorer's name", spec);
	s->command = eq + 1;
	s->cls = lpo_scorer_find(s->command, &arg);
	s->name = lpo_asprintf(cli->ctx, "%.*s", (int)n, spec);
	return s->name == NULL ? LPO_ENOMEM : 0;
}

static struct lpo_scorer_opts
scorer_opts(lpo_cli *cli, const struct eval_opts *o)
{
	/* scores are compared with others' figures: f32 unless asked */
	return (struct lpo_scorer_opts){ .be = &cli->be,
	    .dtype = lpo_cli_given(cli, "precision") ?
	    lpo_cli_precision(cli) : LPO_F32, .model = cli->o.model,
	    .size_px = o->size_px };
}

static int
no_input(void *to, const char *path)
{
	(void)to;
	(void)path;
	return 0;
}

/* A built-in scorer's argument, as far as it shows without its files. */
static int
check_argument(lpo_cli *cli, const struct eval_opts *o,
    const struct eval_scorer *s)
{
	struct lpo_scorer_opts so = { .model = cli->o.model,
	    .size_px = o->size_px };
	const char *arg;
	int rc;

	if (s->cls == NULL)
		return 0;
	lpo_scorer_find(s->command, &arg);
	rc = s->cls->inputs(cli->ctx, &so, arg, no_input, NULL);
	if (rc != LPO_EINVAL)
		return rc;
	lpo_cli_usage(cli, "--scorer: %s", lpo_errmsg(cli->ctx));
	lpo_clear(cli->ctx);
	return LPO_CLI_USAGE;
}

int
eval_scorers_check(lpo_cli *cli, const struct eval_opts *o)
{
	const struct lpo_cli_list *l = &o->scorer;
	struct eval_scorer a, b;
	int i, k, rc = 0;

	if (l->n == 0)
		return lpo_cli_usage(cli, "--scorer NAME=CMD or KIND:ARG is "
		    "needed");
	for (i = 0; i < l->n && rc == 0; i++) {
		if ((rc = eval_scorer_parse(cli, &a, l->v[i])) == 0)
			rc = check_argument(cli, o, &a);
		for (k = 0; k < i && rc == 0; k++) {
			rc = eval_scorer_parse(cli, &b, l->v[k]);
			if (rc == 0 && strcmp(a.name, b.name) == 0)
				rc = lpo_cli_usage(cli, "--scorer: two are "
				    "called '%s'", a.name);
			eval_scorer_clear(&b);
		}
		eval_scorer_clear(&a);
	}
	return rc;
}

/* --------------------------------------------------------- what they are */

struct roles {
	lpo_cli *cli;
	const char *name;
	int n;
};

/* A file or folder of a scorer, as scorer.NAME, scorer.NAME.1, ... */
static int
add_input(void *to, const char *path)
{
	struct roles *r = to;
	char *role = r->n++ == 0 ?
	    lpo_asprintf(r->cli->ctx, "scorer.%s", r->name) :
	    lpo_asprintf(r->cli->ctx, "scorer.%s.%d", r->name, r->n - 1);
	int rc = role == NULL ? LPO_ENOMEM : lpo_is_dir(path) ?
	    lpo_cli_input_dir(r->cli, role, path) :
	    lpo_cli_input_file(r->cli, role, path);

	lpo_free(role);
	return rc;
}

int
eval_scorers_inputs(lpo_cli *cli, const struct eval_opts *o)
{
	const struct lpo_scorer_opts so = scorer_opts(cli, o);
	json_t *list = json_array();
	struct eval_scorer s;
	const char *arg;
	char *text;
	int i, built_in = 0, rc = 0;

	for (i = 0; i < o->scorer.n && rc == 0; i++) {
		if ((rc = eval_scorer_parse(cli, &s, o->scorer.v[i])) != 0)
			break;
		built_in |= s.cls != NULL;
		text = s.cls == NULL ? lpo_strdup(cli->ctx, o->scorer.v[i]) :
		    lpo_asprintf(cli->ctx, "%s=%s:", s.name, s.cls->kind);
		if (text == NULL)
			rc = LPO_ENOMEM;
		else
			json_array_append_new(list, json_string(text));
		lpo_free(text);
		if (rc == 0 && s.cls != NULL) {
			struct roles r = { cli, s.name, 0 };

			lpo_scorer_find(s.command, &arg);
			rc = s.cls->inputs(cli->ctx, &so, arg, add_input, &r);
		}
		eval_scorer_clear(&s);
	}
	lpo_cli_resolved(cli, "scorer", list);
	if (rc == 0 && built_in)
		lpo_cli_resolved(cli, "scorer_precision", json_string(
		    lpo_cli_precision_name(cli, so.dtype)));
	return rc;
}

static int
open_on(lpo_cli *cli, const struct eval_opts *o, lpo_scorers **out,
    lpo_backend *be, int64_t room)
{
	struct lpo_scorer_opts so = scorer_opts(cli, o);
	struct eval_scorer s;
	int i, rc;

	so.be = be;
	so.memory_bytes = room;
	if ((rc = lpo_scorers_new(cli->ctx, out, &so)) < 0)
		return rc;
	for (i = 0; i < o->scorer.n && rc == 0; i++) {
		if ((rc = eval_scorer_parse(cli, &s, o->scorer.v[i])) == 0 &&
		    s.cls != NULL)
			rc = lpo_scorers_add(*out, s.name, s.command);
		eval_scorer_clear(&s);
	}
	if (rc != 0) {
		lpo_scorers_free(*out);
		*out = NULL;
	}
	return rc;
}

struct fitting {
	lpo_cli *cli;
	const struct eval_opts *o;
	struct lpo_cli_dry dry;
	lpo_scorers *set;
	size_t room;
};

static int
make(void *arg, size_t room)
{
	struct fitting *f = arg;

	f->room = room;
	return open_on(f->cli, f->o, &f->set, &f->dry.dry.be, (int64_t)room);
}

static size_t
unmake(void *arg)
{
	struct fitting *f = arg;

	lpo_scorers_free(f->set);
	f->set = NULL;
	return f->room;
}

/* Batches as large as fit, as room; or a refusal.  --dry-run: in words. */
static int
fit(lpo_cli *cli, const struct eval_opts *o, size_t *room)
{
	struct fitting f = { .cli = cli, .o = o };
	int64_t over;
	int rc;

	*room = 0;
	lpo_cli_dry_begin(cli, &f.dry);
	if ((rc = lpo_cli_dry_fit(&f.dry, room, make, unmake, &f)) == 1) {
		lpo_cli_dry_phase(&f.dry, 0);
		*room = 1;
		rc = make(&f, 1);
		over = lpo_cli_dry_over(&f.dry);
		if (rc == 0 && over > 0 && lpo_scorers_count(f.set) > 0)
			rc = lpo_cli_refuse(cli, &f.dry, f.dry.limit + over,
			    "scorers", o->scorer.n > 1 ?
			    "one --scorer at a time" : "");
	}
	if (rc == 0 && cli->o.dry_run && lpo_scorers_count(f.set) > 0)
		lpo_cli_plan_bytes(cli, "memory of the scorers, at most",
		    lpo_cli_dry_host(&f.dry));
	lpo_scorers_free(f.set);
	lpo_cli_dry_end(cli);
	return rc;
}

int
eval_scorers_fit(lpo_cli *cli, const struct eval_opts *o)
{
	size_t room;

	return fit(cli, o, &room);
}

int
eval_scorers_open(lpo_cli *cli, const struct eval_opts *o,
    lpo_scorers **out)
{
	size_t room;
	int rc;

	*out = NULL;
	if ((rc = fit(cli, o, &room)) != 0)
		return rc;
	return open_on(cli, o, out, &cli->be, (int64_t)room);
}
