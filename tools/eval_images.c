/* lpo-eval --images: the images of a preference table. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/io/record.h"
#include "tools/eval.h"

struct table {
	lpo_cli *cli;
	lpo_records *in;
	int64_t *row;		/* [n] those that are scored */
	int64_t n;
	char *bad;		/* by row: left out, said */
};

/* An image's key in the programs' tar: ROW-SIDE. */
static void
table_key(char key[32], int64_t row, int side)
{
	snprintf(key, 32, "%09lld-%d", (long long)row, side);
}

static void
table_free(struct table *t)
{
	lpo_records_close(t->in);
	lpo_free(t->row);
	lpo_free(t->bad);
}

/* Rows without bad ones move together. */
static void
table_compact(struct table *t)
{
	int64_t i, n = 0;

	for (i = 0; i < t->n; i++)
		if (!t->bad[t->row[i]])
			t->row[n++] = t->row[i];
	t->n = n;
}

/* The tables of --images and, a shell having spread a pattern, operands. */
static int
read_table(struct table *t, const struct lpo_cli_list *l)
{
	lpo_cli *cli = t->cli;
	const char **path = lpo_alloc(cli->ctx, (size_t)(l->n + cli->nargs),
	    sizeof(*path));
	const char *why;
	int64_t n, i;
	int rc;

	if (path == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < l->n; i++)
		path[i] = l->v[i];
	for (i = 0; i < cli->nargs; i++)
		path[l->n + i] = cli->args[i];
	rc = lpo_records_open(cli->ctx, &t->in, path, l->n + cli->nargs,
	    LPO_RECORDS_UNLABELLED);
	lpo_free(path);
	if (rc < 0)
		return rc;
	if ((n = lpo_records_count(t->in)) == 0)
		return lpo_fail(cli->ctx, LPO_EFORMAT, "'%s' has no rows",
		    l->v[0]);
	t->row = lpo_alloc(cli->ctx, (size_t)n, sizeof(*t->row));
	t->bad = lpo_alloc(cli->ctx, (size_t)n, 1);
	if (t->row == NULL || t->bad == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++)
		if ((why = lpo_records_error(t->in, i)) == NULL)
			t->row[t->n++] = i;
		else
			lpo_cli_skip(cli, "row %lld: %s", (long long)i, why);
	return 0;
}

/* A row is left out, said once. */
static void
skip_row(struct table *t, const struct lpo_record *r, int side,
    const char *why)
{
	if (!t->bad[r->row])
		lpo_cli_skip(t->cli, "row %lld: '%s': %s", (long long)r->row,
		    r->image[side], why);
	t->bad[r->row] = 1;
}

/* Both images of a row; one that cannot be read costs the row. */
static int
row_tar(struct table *t, const struct lpo_record *r, lpo_shardw *w)
{
	uint8_t *bytes[2] = { NULL, NULL };
	lpo_ctx *c = t->cli->ctx;
	char key[32];
	int64_t n[2];
	int i, rc = 0;

	for (i = 0; i < 2 && rc == 0; i++)
		rc = lpo_records_image(c, &bytes[i], &n[i], t->in, r->row, i);
	if (rc < 0) {
		/* the system's trouble is not the row's */
		if (rc == LPO_ENOMEM || rc == LPO_EIO || rc == LPO_ESTOP)
			goto out;
		skip_row(t, r, i - 1, lpo_errmsg(c));
		lpo_clear(c);
		rc = 0;
		goto out;
	}
	for (i = 0; i < 2 && rc == 0; i++) {
		table_key(key, r->row, i);
		rc = eval_put_image(c, w, key, r->image[i], r->prompt,
		    (char *)bytes[i], (size_t)n[i]);
		bytes[i] = NULL;
	}
out:
	lpo_free(bytes[0]);
	lpo_free(bytes[1]);
	return rc;
}

/* All images of the table that can be read; the others' rows are gone. */
static int
table_tar(struct table *t, const char *tar)
{
	lpo_ctx *c = t->cli->ctx;
	lpo_shardw *w = NULL;
	struct lpo_record r;
	int64_t i;
	int rc;

	if ((rc = eval_open_tar(c, &w, tar)) < 0)
		return rc;
	for (i = 0; rc == 0 && i < t->n; i++) {
		if (lpo_ctx_stopped(c)) {
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
			break;
		}
		if ((rc = lpo_records_get(c, &r, t->in, t->row[i])) == 0)
			rc = row_tar(t, &r, w);
		lpo_record_clear(&r);
	}
	if (rc == 0)
		rc = lpo_shardw_finish(w, 0, 0, 1);
	else
		lpo_shardw_abort(w);
	table_compact(t);
	return rc;
}

/* -------------------------------------------------- for built-in scorers */

static int
table_get(void *arg, int64_t i, struct lpo_score_item *it)
{
	struct table *t = arg;
	lpo_ctx *c = t->cli->ctx;
	struct lpo_record r;
	int64_t n = 0;
	int rc = lpo_records_get(c, &r, t->in, t->row[i / 2]);

	if (rc == 0)
		rc = lpo_records_image(c, &it->bytes, &n, t->in, r.row,
		    (int)(i % 2));
	it->size = (size_t)n;
	if (rc == 0) {
		it->prompt = lpo_strdup(c, r.prompt);
		it->name = lpo_asprintf(c, "row %lld: '%s'", (long long)r.row,
		    r.image[i % 2]);
		rc = it->prompt == NULL || it->name == NULL ? LPO_ENOMEM : 0;
	}
	lpo_record_clear(&r);
	return rc;
}

static int
table_bad(void *arg, int64_t i, const char *why)
{
	struct table *t = arg;
	struct lpo_record r;
	int rc = lpo_records_get(t->cli->ctx, &r, t->in, t->row[i / 2]);

	if (rc == 0)
		skip_row(t, &r, (int)(i % 2), why);
	lpo_record_clear(&r);
	return rc;
}

static void
table_progress(void *arg, int64_t done)
{
	struct table *t = arg;

	lpo_cli_progress(t->cli, "score", done, 2 * t->n, "images", NULL);
}

/* ---------------------------------------------------------------- output */

/* A cell of CSV: in quotes where it must be. */
static void
print_cell(FILE *f, const char *text)
{
	if (text[strcspn(text, ",\"\r\n")] == '\0') {
		fputs(text, f);
		return;
	}
	putc('"', f);
	for (; *text != '\0'; text++) {
		if (*text == '"')
			putc('"', f);
		putc(*text, f);
	}
	putc('"', f);
}

/*
 * Names of columns.  A scorer's main one has the scorer's name alone, so that
 * aesthetic=... gives aesthetic_0 and aesthetic_1, as filters want them: the
 * first of a built-in scorer, the only one of a program.
 */
static int
column_names(lpo_cli *cli, const struct eval_opts *o, struct lpo_scores *s)
{
	struct eval_scorer v;
	int64_t k, first, n;
	size_t len;
	int i, rc;

	for (i = 0; i < o->scorer.n; i++) {
		if ((rc = eval_scorer_parse(cli, &v, o->scorer.v[i])) != 0)
			return rc;
		len = strlen(v.name);
		for (k = s->names, n = 0, first = -1; k-- > 0; )
			if (strncmp(s->name[k], v.name, len) == 0 &&
			    s->name[k][len] == '.') {
				first = k;
				n++;
			}
		if (first >= 0 && (n == 1 || v.cls != NULL))
			s->name[first][len] = '\0';
		eval_scorer_clear(&v);
	}
	return 0;
}

static int
print_json(lpo_cli *cli, FILE *f, const char *id,
    const struct lpo_scores *s, const double *v)
{
	char key[256], *text = NULL;
	json_t *j = json_pack("{ss}", "id", id);
	int64_t k;
	int side, rc = j == NULL ? LPO_ENOMEM : 0;

	for (k = 0; k < s->names; k++)
		for (side = 0; side < 2 && rc == 0; side++) {
			snprintf(key, sizeof(key), "%s_%d", s->name[k], side);
			rc = lpo_json_set(cli->ctx, j, key,
			    json_real(v[side * s->names + k]));
		}
	if (rc == 0 && (text = lpo_json_dumps(cli->ctx, j)) != NULL)
		fprintf(f, "%s\n", text);
	json_decref(j);
	lpo_free(text);
	return rc == 0 && text == NULL ? LPO_ENOMEM : rc;
}

static int
print_row(lpo_cli *cli, FILE *f, const char *id, const struct lpo_scores *s,
    const double *v)
{
	int64_t k;

	if (cli->o.json)
		return print_json(cli, f, id, s, v);
	print_cell(f, id);
	for (k = 0; k < s->names; k++)
		fprintf(f, ",%.9g,%.9g", v[k], v[s->names + k]);
	putc('\n', f);
	return 0;
}

/* CSV with id, or JSON lines: what lpo-pairs --scores joins. */
static int
print_rows(struct table *t, FILE *f, const struct lpo_scores *s)
{
	lpo_cli *cli = t->cli;
	struct lpo_record r;
	char row[32];
	int64_t i, k;
	int rc = 0;

	if (!cli->o.json) {
		fputs("id", f);
		for (k = 0; k < s->names; k++)
			fprintf(f, ",%s_0,%s_1", s->name[k], s->name[k]);
		putc('\n', f);
	}
	for (i = 0; i < t->n && rc == 0; i++) {
		if (t->bad[t->row[i]])
			continue;
		if ((rc = lpo_records_get(cli->ctx, &r, t->in,
		    t->row[i])) == 0) {
			snprintf(row, sizeof(row), "%lld", (long long)r.row);
			rc = print_row(cli, f, r.id != NULL ? r.id : row, s,
			    s->value + 2 * i * s->names);
		}
		lpo_record_clear(&r);
	}
	return rc;
}

/* 1 if a program is among the scorers: it wants a tar. */
static int
has_programs(lpo_cli *cli, const struct eval_opts *o)
{
	struct eval_scorer v;
	int i, rc, n = 0;

	for (i = 0; i < o->scorer.n; i++) {
		if ((rc = eval_scorer_parse(cli, &v, o->scorer.v[i])) != 0)
			return rc;
		n |= v.cls == NULL;
		eval_scorer_clear(&v);
	}
	return n;
}

/* Keys as the tar has them; free them by lpo_free(), all in one. */
static const char **
table_keys(const struct table *t)
{
	size_t n = 2 * (size_t)t->n;
	const char **key = lpo_alloc(t->cli->ctx, n + 1, sizeof(*key) + 32);
	char (*text)[32];
	size_t i;

	if (key == NULL)
		return NULL;
	text = (char (*)[32])(key + n + 1);
	for (i = 0; i < n; i++) {
		table_key(text[i], t->row[i / 2], (int)(i % 2));
		key[i] = text[i];
	}
	return key;
}

/* Beside the table, else under a name of its own. */
static int
open_state(lpo_cli *cli, lpo_state **state)
{
	char *name = lpo_cli_to_stdout(cli) ? lpo_asprintf(cli->ctx,
	    "lpo-eval-%s", lpo_cli_run(cli)) :
	    lpo_strdup(cli->ctx, cli->o.output);
	int rc = name == NULL ? LPO_ENOMEM : lpo_state_open(cli->ctx, state,
	    name, lpo_cli_run(cli), lpo_cli_run_options(cli), cli->o.fresh);

	lpo_free(name);
	return rc;
}

/* Built-in scorers read the files themselves, programs a tar of them. */
static int
score_table(struct table *t, const struct eval_opts *o, struct eval *e,
    struct lpo_scores *s)
{
	struct lpo_score_source src = { .arg = t, .get = table_get,
	    .bad = table_bad, .progress = table_progress };
	lpo_cli *cli = t->cli;
	lpo_scorers *set = NULL;
	const char **key = NULL;
	char *tar = NULL;
	int rc;

	if ((rc = eval_scorers_open(cli, o, &set)) != 0 ||
	    (rc = open_state(cli, &e->state)) < 0 ||
	    (rc = has_programs(cli, o)) < 0)
		goto out;
	tar = lpo_state_file(cli->ctx, e->state, "images.tar");
	if (tar == NULL)
		rc = LPO_ENOMEM;
	else if (rc == 1)
		rc = table_tar(t, tar);
	if (rc < 0)
		goto out;
	src.n = 2 * t->n;
	rc = (key = table_keys(t)) == NULL ? LPO_ENOMEM :
	    eval_score(cli, o, set, s, &src, tar, key,
	    lpo_state_dir(e->state));
out:
	if (tar != NULL)
		unlink(tar);
	lpo_free(tar);
	lpo_free(key);
	lpo_scorers_free(set);
	return rc;
}

static int
images_plan(const struct table *t, const struct eval_opts *o)
{
	int rc;

	lpo_cli_plan(t->cli, "run", "%s", lpo_cli_run(t->cli));
	lpo_cli_plan(t->cli, "images", "%lld", (long long)(2 * t->n));
	lpo_cli_plan(t->cli, "scorers", "%d", o->scorer.n);
	rc = eval_scorers_fit(t->cli, o);
	return rc != 0 ? rc : LPO_CLI_DONE;
}

int
eval_images(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	struct table t = { .cli = cli };
	struct lpo_scores s = { .n = 0 };
	char hex[65];
	int rc;

	if ((rc = read_table(&t, &o->images)) < 0)
		goto out;
	if ((rc = lpo_cli_backend(cli)) == 0 &&
	    (rc = lpo_records_sha256(cli->ctx, hex, t.in)) == 0 &&
	    (rc = lpo_cli_input_hash(cli, "images", o->images.v[0], hex)) ==
	    0 &&
	    (rc = eval_scorers_inputs(cli, o)) == 0 &&
	    (rc = lpo_cli_begin(cli, lpo_cli_to_stdout(cli) ? NULL :
	    cli->o.output, NULL)) == 0 && cli->o.dry_run)
		rc = images_plan(&t, o);
	else if (rc == 0 &&
	    (rc = score_table(&t, o, e, &s)) == 0 &&
	    (rc = column_names(cli, o, &s)) == 0)
		rc = print_rows(&t, e->out, &s);
out:
	lpo_scores_free(&s);
	table_free(&t);
	return rc;
}
