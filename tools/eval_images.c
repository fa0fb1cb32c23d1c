/* lpo-eval --images: the images of a preference table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/io/csv.h"
#include "tools/eval.h"

struct table_row {
	char *id, *prompt, *path[2];
	char *key[2];		/* in the tar, ROW-SIDE */
	int64_t row;
	int bad;		/* an image is: left out, said */
};

struct table {
	struct table_row *row;
	int64_t n, cap;
};

static void
row_free(struct table_row *r)
{
	int i;

	lpo_free(r->id);
	lpo_free(r->prompt);
	for (i = 0; i < 2; i++) {
		lpo_free(r->path[i]);
		lpo_free(r->key[i]);
	}
}

static void
table_free(struct table *t)
{
	int64_t i;

	for (i = 0; i < t->n; i++)
		row_free(&t->row[i]);
	lpo_free(t->row);
}

/* Rows without bad images move together. */
static void
table_compact(struct table *t)
{
	int64_t i, n = 0;

	for (i = 0; i < t->n; i++)
		if (t->row[i].bad)
			row_free(&t->row[i]);
		else
			t->row[n++] = t->row[i];
	t->n = n;
}

static int
read_row(lpo_ctx *c, struct table *t, lpo_table *in, const char *dir)
{
	const char *id = lpo_table_field(in, "id");
	const char *prompt = lpo_table_field(in, "prompt");
	const char *a = lpo_table_field(in, "image_0");
	const char *b = lpo_table_field(in, "image_1");
	struct table_row *r;

	if (prompt == NULL)
		prompt = lpo_table_field(in, "caption");
	if (prompt == NULL || a == NULL || b == NULL)
		return lpo_fail(c, LPO_EFORMAT, "%s:%lld: want prompt, "
		    "image_0 and image_1", lpo_table_path(in),
		    (long long)lpo_table_line(in));
	if (t->n == t->cap) {
		t->cap = t->cap ? 2 * t->cap : 256;
		r = lpo_realloc(c, t->row, (size_t)t->cap * sizeof(*r));
		if (r == NULL)
			return LPO_ENOMEM;
		t->row = r;
	}
	r = &t->row[t->n++];
	memset(r, 0, sizeof(*r));
	r->id = id != NULL && id[0] != '\0' ? lpo_strdup(c, id) :
	    lpo_asprintf(c, "%lld", (long long)lpo_table_row(in));
	r->prompt = lpo_strdup(c, prompt);
	r->path[0] = lpo_path_join(c, dir, a);
	r->path[1] = lpo_path_join(c, dir, b);
	r->row = lpo_table_row(in);
	r->key[0] = lpo_asprintf(c, "%09lld-0", (long long)r->row);
	r->key[1] = lpo_asprintf(c, "%09lld-1", (long long)r->row);
	return lpo_errcode(c);
}

static int
read_table(lpo_ctx *c, struct table *t, const char *path)
{
	lpo_table *in = NULL;
	char *dir = lpo_dirname(c, path);
	int rc = LPO_ENOMEM;

	if (dir == NULL || (rc = lpo_table_open(c, &in, path,
	    LPO_TABLE_AUTO)) < 0)
		goto out;
	while ((rc = lpo_table_next(in)) == 0)
		if ((rc = read_row(c, t, in, dir)) < 0)
			goto out;
	if (rc == 1)
		rc = t->n > 0 ? 0 : lpo_fail(c, LPO_EFORMAT,
		    "'%s' has no rows", path);
out:
	lpo_table_close(in);
	lpo_free(dir);
	return rc;
}

/* A row is left out, said once. */
static void
skip_row(lpo_cli *cli, struct table_row *r, int side, const char *why)
{
	if (!r->bad)
		lpo_cli_skip(cli, "row %lld: '%s': %s", (long long)r->row,
		    r->path[side], why);
	r->bad = 1;
}

/* Both images of a row; one that cannot be read costs the row. */
static int
row_tar(lpo_cli *cli, struct table_row *r, lpo_shardw *w)
{
	char *bytes[2] = { NULL, NULL };
	lpo_ctx *c = cli->ctx;
	size_t n[2];
	int i, rc = 0;

	for (i = 0; i < 2 && rc == 0; i++)
		rc = lpo_file_read(c, &bytes[i], &n[i], r->path[i],
		    EVAL_IMAGE_LIMIT);
	if (rc < 0) {
		lpo_free(bytes[0]);
		lpo_free(bytes[1]);
		if (rc == LPO_ENOMEM || rc == LPO_ESTOP)
			return rc;
		skip_row(cli, r, i - 1, lpo_errmsg(c));
		lpo_clear(c);
		return 0;
	}
	rc = eval_put_image(c, w, r->key[0], r->path[0], r->prompt, bytes[0],
	    n[0]);
	if (rc < 0) {
		lpo_free(bytes[1]);
		return rc;
	}
	return eval_put_image(c, w, r->key[1], r->path[1], r->prompt, bytes[1],
	    n[1]);
}

/* All images of the table that can be read; the others' rows are gone. */
static int
table_tar(lpo_cli *cli, struct table *t, const char *tar)
{
	lpo_ctx *c = cli->ctx;
	lpo_shardw *w = NULL;
	int64_t i;
	int rc;

	if ((rc = eval_open_tar(c, &w, tar)) < 0)
		return rc;
	for (i = 0; rc == 0 && i < t->n; i++)
		rc = lpo_ctx_stopped(c) ? lpo_fail(c, LPO_ESTOP, "stopped") :
		    row_tar(cli, &t->row[i], w);
	if (rc == 0)
		rc = lpo_shardw_finish(w, 0, 0, 1);
	else
		lpo_shardw_abort(w);
	table_compact(t);
	return rc;
}

/* -------------------------------------------------- for built-in scorers */

struct table_source {
	lpo_cli *cli;
	struct table *t;
};

static int
table_get(void *arg, int64_t i, struct lpo_score_item *it)
{
	struct table_source *s = arg;
	const struct table_row *r = &s->t->row[i / 2];
	lpo_ctx *c = s->cli->ctx;
	char *bytes = NULL;
	int rc;

	if ((rc = lpo_file_read(c, &bytes, &it->size, r->path[i % 2],
	    EVAL_IMAGE_LIMIT)) < 0)
		return rc;
	it->bytes = (uint8_t *)bytes;
	it->prompt = lpo_strdup(c, r->prompt);
	it->name = lpo_asprintf(c, "row %lld: '%s'", (long long)r->row,
	    r->path[i % 2]);
	return it->prompt == NULL || it->name == NULL ? LPO_ENOMEM : 0;
}

static int
table_bad(void *arg, int64_t i, const char *why)
{
	struct table_source *s = arg;

	skip_row(s->cli, &s->t->row[i / 2], (int)(i % 2), why);
	return 0;
}

static void
table_progress(void *arg, int64_t done)
{
	struct table_source *s = arg;

	lpo_cli_progress(s->cli, "score", done, 2 * s->t->n, "images", NULL);
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
print_json(lpo_cli *cli, FILE *f, const struct table_row *r,
    const struct lpo_scores *s, const double *v)
{
	char key[256], *text = NULL;
	json_t *j = json_pack("{ss}", "id", r->id);
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

/* CSV with id, or JSON lines: what lpo-pairs --scores joins. */
static int
print_rows(lpo_cli *cli, FILE *f, const struct table *t,
    const struct lpo_scores *s)
{
	int64_t i, k;
	int rc;

	if (!cli->o.json) {
		fputs("id", f);
		for (k = 0; k < s->names; k++)
			fprintf(f, ",%s_0,%s_1", s->name[k], s->name[k]);
		putc('\n', f);
	}
	for (i = 0; i < t->n; i++) {
		const double *v = s->value + 2 * i * s->names;

		if (t->row[i].bad)
			continue;
		if (cli->o.json) {
			if ((rc = print_json(cli, f, &t->row[i], s, v)) < 0)
				return rc;
			continue;
		}
		print_cell(f, t->row[i].id);
		for (k = 0; k < s->names; k++)
			fprintf(f, ",%.9g,%.9g", v[k], v[s->names + k]);
		putc('\n', f);
	}
	return 0;
}

/* A name for the tar, in $TMPDIR. */
static int
temporary(lpo_ctx *c, char **path)
{
	int fd;

	*path = lpo_asprintf(c, "%s/lpo-eval-XXXXXX",
	    lpo_scratch_dir(NULL));
	if (*path == NULL)
		return LPO_ENOMEM;
	if ((fd = mkstemp(*path)) < 0)
		return lpo_fail(c, LPO_EIO, "cannot make a file '%s'", *path);
	close(fd);
	return 0;
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

/* Built-in scorers read the files themselves, programs a tar of them. */
static int
score_table(lpo_cli *cli, const struct eval_opts *o, struct table *t,
    struct lpo_scores *s, const char *tar)
{
	struct table_source arg = { cli, t };
	struct lpo_score_source src = { .arg = &arg, .get = table_get,
	    .bad = table_bad, .progress = table_progress };
	lpo_scorers *set = NULL;
	const char **key = NULL;
	int64_t i;
	int rc;

	if ((rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = eval_scorers_open(cli, o, &set)) != 0 ||
	    (tar != NULL && (rc = table_tar(cli, t, tar)) < 0))
		goto out;
	src.n = 2 * t->n;
	key = lpo_alloc(cli->ctx, (size_t)src.n + 1, sizeof(*key));
	if (key == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	for (i = 0; i < src.n; i++)
		key[i] = t->row[i / 2].key[i % 2];
	rc = eval_score(cli, o, set, s, &src, tar, key);
out:
	lpo_free(key);
	lpo_scorers_free(set);
	return rc;
}

int
eval_images(lpo_cli *cli, const struct eval_opts *o, FILE *out)
{
	struct table t = { .n = 0 };
	struct lpo_scores s = { .n = 0 };
	char *tar = NULL;
	int rc;

	if ((rc = read_table(cli->ctx, &t, o->images)) < 0)
		goto out;
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "images", "%lld", (long long)(2 * t.n));
		lpo_cli_plan(cli, "scorers", "%d", o->scorer.n);
		rc = LPO_CLI_DONE;
		goto out;
	}
	if ((rc = has_programs(cli, o)) < 0 ||
	    (rc == 1 && (rc = temporary(cli->ctx, &tar)) < 0))
		goto out;
	if ((rc = score_table(cli, o, &t, &s, tar)) == 0 &&
	    (rc = column_names(cli, o, &s)) == 0)
		rc = print_rows(cli, out, &t, &s);
out:
	if (tar != NULL)
		unlink(tar);
	lpo_free(tar);
	lpo_scores_free(&s);
	table_free(&t);
	return rc;
}
