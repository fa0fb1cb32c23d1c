/* lpo-eval: scorers on a tar of pictures; existing images of a table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/io/csv.h"
#include "lib/io/shard.h"
#include "tools/eval.h"

int
eval_scorer(lpo_cli *cli, const char *spec, char **name, const char **command)
{
	const char *eq = strchr(spec, '=');
	size_t i;

	if (eq == NULL || eq == spec || eq[1] == '\0')
		return lpo_cli_usage(cli, "bad --scorer '%s': want NAME=CMD",
		    spec);
	*name = lpo_strdup(cli->ctx, spec);
	if (*name == NULL)
		return LPO_ENOMEM;
	(*name)[eq - spec] = '\0';
	for (i = 0; (*name)[i] != '\0'; i++)
		if (strchr(".:\t ", (*name)[i]) != NULL) {
			lpo_free(*name);
			*name = NULL;
			return lpo_cli_usage(cli, "--scorer '%s': no '.', ':' "
			    "or blank in a scorer's name", spec);
		}
	*command = eq + 1;
	return 0;
}

/* Columns of b after those of a; b is emptied. */
static int
append(lpo_ctx *c, struct lpo_scores *a, struct lpo_scores *b)
{
	struct lpo_scores both;
	const char **names;
	int64_t i, k, total = a->names + b->names;
	int rc = LPO_ENOMEM;

	if (a->name == NULL) {
		*a = *b;
		memset(b, 0, sizeof(*b));
		return 0;
	}
	names = lpo_alloc(c, (size_t)total, sizeof(*names));
	if (names == NULL)
		return LPO_ENOMEM;
	for (k = 0; k < total; k++)
		names[k] = k < a->names ? a->name[k] : b->name[k - a->names];
	if ((rc = lpo_scores_new(c, &both, names, total, a->n)) == 0) {
		for (i = 0; i < a->n; i++) {
			memcpy(both.value + i * total, a->value + i *
			    a->names, (size_t)a->names * sizeof(double));
			memcpy(both.value + i * total + a->names, b->value +
			    i * b->names, (size_t)b->names * sizeof(double));
		}
		lpo_scores_free(a);
		*a = both;
	}
	lpo_free(names);
	lpo_scores_free(b);
	return rc;
}

int
eval_score_tar(lpo_cli *cli, const struct lpo_cli_list *scorers,
    struct lpo_scores *out, const char *tar, const char *const *key,
    int64_t n)
{
	struct lpo_scores one;
	const char *command;
	char *name = NULL;
	int i, rc = 0;

	memset(out, 0, sizeof(*out));
	for (i = 0; i < scorers->n && rc == 0; i++) {
		if ((rc = eval_scorer(cli, scorers->v[i], &name,
		    &command)) != 0)
			break;
		fflush(NULL);	/* the child must not print it again */
		rc = lpo_score_external(cli->ctx, &one, name, command, tar,
		    key, n);
		if (rc == 0)
			rc = append(cli->ctx, out, &one);
		lpo_free(name);
		name = NULL;
	}
	if (rc != 0)
		lpo_scores_free(out);
	return rc;
}

/* ------------------------------------------- images that are there already */

struct table_row {
	char *id, *prompt, *path[2];
};

struct table {
	struct table_row *row;
	int64_t n, cap;
};

static void
table_free(struct table *t)
{
	int64_t i;

	for (i = 0; i < t->n; i++) {
		lpo_free(t->row[i].id);
		lpo_free(t->row[i].prompt);
		lpo_free(t->row[i].path[0]);
		lpo_free(t->row[i].path[1]);
	}
	lpo_free(t->row);
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
	r->id = id != NULL ? lpo_strdup(c, id) : lpo_asprintf(c, "%lld",
	    (long long)lpo_table_row(in));
	r->prompt = lpo_strdup(c, prompt);
	r->path[0] = lpo_path_join(c, dir, a);
	r->path[1] = lpo_path_join(c, dir, b);
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

/* The file as it is, under a key of row and side. */
static int
put_image(lpo_ctx *c, lpo_shardw *w, const struct table_row *r, int64_t row,
    int side)
{
	struct lpo_sample s = { .key = NULL };
	const char *dot = strrchr(r->path[side], '.');
	char *bytes = NULL, name[16];
	size_t n;
	int rc;

	if ((rc = lpo_file_read(c, &bytes, &n, r->path[side],
	    (size_t)1 << 28)) < 0)
		return rc;
	snprintf(name, sizeof(name), "%s", dot != NULL && strlen(dot) < 8 ?
	    dot + 1 : "png");
	s.key = lpo_asprintf(c, "%09lld-%d", (long long)row, side);
	s.json = json_pack("{ss}", "prompt", r->prompt);
	if (s.key == NULL || s.json == NULL) {
		lpo_free(bytes);
		rc = LPO_ENOMEM;
	} else if ((rc = lpo_sample_add(c, &s, name, (uint8_t *)bytes,
	    (int64_t)n)) == 0)
		rc = lpo_shardw_put(w, &s);
	lpo_sample_clear(&s);
	return rc;
}

static int
print_rows(lpo_cli *cli, const struct table *t, const struct lpo_scores *s)
{
	int64_t i, k;

	printf("id");
	for (k = 0; k < s->names; k++)
		printf("%c%s_0%c%s_1", ',', s->name[k], ',', s->name[k]);
	putchar('\n');
	for (i = 0; i < t->n; i++) {
		/* CSV, as lpo-pairs --scores reads it */
		if (strpbrk(t->row[i].id, ",\"\n\r") != NULL)
			return lpo_fail(cli->ctx, LPO_EFORMAT, "the id '%s' "
			    "has a comma, quote or line end", t->row[i].id);
		printf("%s", t->row[i].id);
		for (k = 0; k < s->names; k++)
			printf(",%.9g,%.9g", s->value[2 * i * s->names + k],
			    s->value[(2 * i + 1) * s->names + k]);
		putchar('\n');
	}
	return 0;
}

int
eval_images(lpo_cli *cli, const struct eval_opts *o)
{
	struct table t = { .n = 0 };
	struct lpo_scores s = { .n = 0 };
	lpo_shardw *w = NULL;
	json_t *run = json_pack("{si ss}", "format", 1, "kind", "images");
	char **key = NULL, tar[] = "/tmp/lpo-eval-XXXXXX";
	int64_t i;
	int fd, rc;

	if (o->scorer.n == 0)
		return lpo_cli_usage(cli, "--images needs a --scorer");
	if ((fd = mkstemp(tar)) < 0)
		return lpo_fail(cli->ctx, LPO_EIO, "no temporary file");
	close(fd);
	if ((rc = read_table(cli->ctx, &t, o->images)) < 0 ||
	    (rc = lpo_shardw_open(cli->ctx, &w, tar, run)) < 0)
		goto out;
	key = lpo_alloc(cli->ctx, (size_t)(2 * t.n), sizeof(*key));
	rc = key == NULL ? LPO_ENOMEM : 0;
	for (i = 0; rc == 0 && i < 2 * t.n; i++) {
		key[i] = lpo_asprintf(cli->ctx, "%09lld-%d",
		    (long long)(i / 2), (int)(i % 2));
		rc = key[i] == NULL ? LPO_ENOMEM : put_image(cli->ctx, w,
		    &t.row[i / 2], i / 2, (int)(i % 2));
	}
	if (rc < 0) {
		lpo_shardw_abort(w);
		goto out;
	}
	if ((rc = lpo_shardw_finish(w, 0, 0, 1)) == 0 &&
	    (rc = eval_score_tar(cli, &o->scorer, &s, tar,
	    (const char *const *)key, 2 * t.n)) == 0)
		rc = print_rows(cli, &t, &s);
out:
	unlink(tar);
	for (i = 0; key != NULL && i < 2 * t.n; i++)
		lpo_free(key[i]);
	lpo_free(key);
	lpo_scores_free(&s);
	table_free(&t);
	json_decref(run);
	return rc;
}
