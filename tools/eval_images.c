/* lpo-eval: images that are there already, of a table or of a folder. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/io/csv.h"
#include "lib/io/shard.h"
#include "tools/eval.h"

#define IMAGE_LIMIT	((size_t)1 << 28)

const char *
eval_image_type(const char *name)
{
	static const char *const types[] = { "png", "jpg", "jpeg", "webp" };
	const char *dot = strrchr(name, '.');
	size_t i;

	dot = dot != NULL ? dot + 1 : name;
	for (i = 0; i < sizeof(types) / sizeof(*types); i++)
		if (strcasecmp(dot, types[i]) == 0)
			return types[i];
	return NULL;
}

/* A file as it is, as the only member of a sample. */
static int
put_image(lpo_ctx *c, lpo_shardw *w, const char *key, const char *path,
    const char *prompt)
{
	const char *type = eval_image_type(path);
	struct lpo_sample s = { .key = NULL };
	char *bytes = NULL;
	size_t n;
	int rc;

	if ((rc = lpo_file_read(c, &bytes, &n, path, IMAGE_LIMIT)) < 0)
		return rc;
	s.key = lpo_strdup(c, key);
	s.json = json_pack("{ss}", "prompt", prompt);
	if (s.key == NULL || s.json == NULL) {
		lpo_free(bytes);
		rc = LPO_ENOMEM;
	} else if ((rc = lpo_sample_add(c, &s, type != NULL ? type : "png",
	    (uint8_t *)bytes, (int64_t)n)) == 0)
		rc = lpo_shardw_put(w, &s);
	lpo_sample_clear(&s);
	return rc;
}

static int
open_tar(lpo_ctx *c, lpo_shardw **w, const char *tar)
{
	json_t *run = json_pack("{si ss ss}", "format", 1, "kind", "images",
	    "run", "");
	int rc = run == NULL ? lpo_fail(c, LPO_ENOMEM, "out of memory") :
	    lpo_shardw_open(c, w, tar, run);

	json_decref(run);
	return rc;
}

/* --------------------------------------------------------------- folders */

/* The prompt in KEY.json, else in KEY.txt. */
static int
read_prompt(lpo_ctx *c, char **prompt, const char *dir, const char *key)
{
	char *json = lpo_asprintf(c, "%s/%s.json", dir, key);
	char *txt = lpo_asprintf(c, "%s/%s.txt", dir, key);
	const char *text = NULL;
	json_t *j = NULL;
	size_t n;
	int rc = LPO_ENOMEM;

	*prompt = NULL;
	if (json == NULL || txt == NULL)
		goto out;
	rc = 0;
	if (lpo_file_exists(json) &&
	    (rc = lpo_json_load_file(c, &j, json, 0)) == 0 &&
	    (text = json_string_value(lpo_json_get(j, "prompt"))) != NULL)
		rc = (*prompt = lpo_strdup(c, text)) == NULL ? LPO_ENOMEM : 0;
	else if (rc == 0 && lpo_file_exists(txt) &&
	    (rc = lpo_file_read(c, prompt, &n, txt, 1 << 20)) == 0)
		(*prompt)[strcspn(*prompt, "\r\n")] = '\0';
	if (rc == 0 && *prompt == NULL)
		rc = lpo_fail(c, LPO_EFORMAT, "no prompt in '%s' or '%s'",
		    json, txt);
out:
	json_decref(j);
	lpo_free(json);
	lpo_free(txt);
	return rc;
}

static int
folder_image(lpo_ctx *c, lpo_shardw *w, const char *dir, const char *name)
{
	char *path = lpo_path_join(c, dir, name), *prompt = NULL;
	char *key = lpo_asprintf(c, "%.*s", (int)(strrchr(name, '.') - name),
	    name);
	int rc = LPO_ENOMEM;

	if (path != NULL && key != NULL &&
	    (rc = read_prompt(c, &prompt, dir, key)) == 0)
		rc = put_image(c, w, key, path, prompt);
	lpo_free(prompt);
	lpo_free(path);
	lpo_free(key);
	return rc;
}

int
eval_folder_tar(lpo_cli *cli, const char *dir, const char *tar)
{
	lpo_ctx *c = cli->ctx;
	lpo_shardw *w = NULL;
	char **name = NULL;
	int64_t i, n = 0;
	int rc;

	if ((rc = lpo_dir_list(c, &name, &n, dir)) < 0 ||
	    (rc = open_tar(c, &w, tar)) < 0)
		goto out;
	for (i = 0; i < n && rc == 0; i++)
		if (lpo_ctx_stopped(c))
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
		else if (strchr(name[i], '.') != NULL &&
		    eval_image_type(name[i]) != NULL)
			rc = folder_image(c, w, dir, name[i]);
	if (rc == 0)
		rc = lpo_shardw_finish(w, 0, 0, 1);
	else
		lpo_shardw_abort(w);
out:
	lpo_names_free(name, n);
	return rc;
}

int
eval_folder_sha256(lpo_cli *cli, char hex[65], const char *dir)
{
	struct lpo_sha256 sum;
	char **name = NULL, *path, file[65];
	int64_t i, n = 0;
	int rc = lpo_dir_list(cli->ctx, &name, &n, dir);

	lpo_sha256_init(&sum);
	for (i = 0; i < n && rc == 0; i++) {
		if ((path = lpo_path_join(cli->ctx, dir, name[i])) == NULL)
			rc = LPO_ENOMEM;
		else if (!lpo_is_dir(path) &&
		    (rc = lpo_cli_sha256(cli, file, path)) == 0) {
			lpo_sha256_update(&sum, name[i], strlen(name[i]) + 1);
			lpo_sha256_update(&sum, file, 64);
		}
		lpo_free(path);
	}
	lpo_sha256_hex(&sum, hex);
	lpo_names_free(name, n);
	return rc;
}

/* ---------------------------------------------------------------- tables */

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
	r->id = id != NULL && id[0] != '\0' ? lpo_strdup(c, id) :
	    lpo_asprintf(c, "%lld", (long long)lpo_table_row(in));
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

/* All images of the table, keys ROW-SIDE. */
static int
table_tar(lpo_cli *cli, const struct table *t, const char *tar, char **key)
{
	lpo_ctx *c = cli->ctx;
	lpo_shardw *w = NULL;
	int64_t i;
	int rc;

	if ((rc = open_tar(c, &w, tar)) < 0)
		return rc;
	for (i = 0; rc == 0 && i < 2 * t->n; i++) {
		const struct table_row *r = &t->row[i / 2];

		key[i] = lpo_asprintf(c, "%09lld-%d", (long long)(i / 2),
		    (int)(i % 2));
		rc = key[i] == NULL ? LPO_ENOMEM : lpo_ctx_stopped(c) ?
		    lpo_fail(c, LPO_ESTOP, "stopped") :
		    put_image(c, w, key[i], r->path[i % 2], r->prompt);
	}
	if (rc == 0)
		return lpo_shardw_finish(w, 0, 0, 1);
	lpo_shardw_abort(w);
	return rc;
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
 * A column's name: the scorer's where it has one score only, so that
 * aesthetic=CMD gives aesthetic_0 and aesthetic_1, as filters want them.
 */
static const char *
column_name(char *out, size_t size, const struct lpo_scores *s, int64_t k)
{
	size_t n = strcspn(s->name[k], ".");
	int64_t i, same = 0;

	for (i = 0; i < s->names; i++)
		same += strncmp(s->name[i], s->name[k], n + 1) == 0;
	snprintf(out, size, "%.*s", same == 1 ? (int)n : (int)size,
	    s->name[k]);
	return out;
}

static int
print_json(lpo_cli *cli, FILE *f, const struct table_row *r,
    const struct lpo_scores *s, const double *v)
{
	char name[256], key[264], *text = NULL;
	json_t *j = json_pack("{ss}", "id", r->id);
	int64_t k;
	int side, rc = j == NULL ? LPO_ENOMEM : 0;

	for (k = 0; k < s->names; k++)
		for (side = 0; side < 2 && rc == 0; side++) {
			snprintf(key, sizeof(key), "%s_%d", column_name(name,
			    sizeof(name), s, k), side);
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
	char name[256];
	int64_t i, k;
	int rc;

	if (!cli->o.json) {
		fputs("id", f);
		for (k = 0; k < s->names; k++) {
			column_name(name, sizeof(name), s, k);
			fprintf(f, ",%s_0,%s_1", name, name);
		}
		putc('\n', f);
	}
	for (i = 0; i < t->n; i++) {
		const double *v = s->value + 2 * i * s->names;

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
	const char *dir = getenv("TMPDIR");
	int fd;

	*path = lpo_asprintf(c, "%s/lpo-eval-XXXXXX", dir != NULL &&
	    dir[0] != '\0' ? dir : "/var/tmp");
	if (*path == NULL)
		return LPO_ENOMEM;
	if ((fd = mkstemp(*path)) < 0)
		return lpo_fail(c, LPO_EIO, "cannot make a file '%s'", *path);
	close(fd);
	return 0;
}

int
eval_images(lpo_cli *cli, const struct eval_opts *o, FILE *out)
{
	struct table t = { .n = 0 };
	struct lpo_scores s = { .n = 0 };
	char **key = NULL, *tar = NULL;
	int64_t i;
	int rc;

	if ((rc = read_table(cli->ctx, &t, o->images)) < 0)
		goto out;
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "images", "%lld", (long long)(2 * t.n));
		lpo_cli_plan(cli, "scorers", "%d", o->scorer.n);
		rc = LPO_CLI_DONE;
		goto out;
	}
	key = lpo_alloc(cli->ctx, (size_t)(2 * t.n), sizeof(*key));
	if (key == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if ((rc = temporary(cli->ctx, &tar)) == 0 &&
	    (rc = table_tar(cli, &t, tar, key)) == 0 &&
	    (rc = eval_score_tar(cli, &o->scorer, &s, tar,
	    (const char *const *)key, 2 * t.n)) == 0)
		rc = print_rows(cli, out, &t, &s);
out:
	if (tar != NULL)
		unlink(tar);
	for (i = 0; key != NULL && i < 2 * t.n; i++)
		lpo_free(key[i]);
	lpo_free(key);
	lpo_free(tar);
	lpo_scores_free(&s);
	table_free(&t);
	return rc;
}
