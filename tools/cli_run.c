/*
 * The life of a run: what its id is made of, its rows in the database, what
 * is there already at the place of its output.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/runid.h"
#include "lib/base/state.h"
#include "lib/io/db.h"
#include "lib/io/prompts.h"
#include "lib/io/shard.h"
#include "lib/model/random.h"
#include "tools/cli_priv.h"

struct lpo_cli_run {
	json_t *options;	/* RESULT options and resolved values */
	json_t *inputs;		/* [{role, value, path, size_bytes, run}] */
	char id[LPO_RUNID_SIZE];
	lpo_db *db;
	int db_open;		/* tried: db may still be NULL */
	int64_t run_row, attempt_row;
};

static struct lpo_cli_run *
run_of(lpo_cli *cli)
{
	struct lpo_cli_priv *p = cli->priv;

	if (p->run != NULL)
		return p->run;
	p->run = lpo_alloc(cli->ctx, 1, sizeof *p->run);
	if (p->run == NULL)
		return NULL;
	p->run->options = json_object();
	p->run->inputs = json_array();
	return p->run;
}

/* ------------------------------------------------------------ database */

/* lpo.db beside the output; "-" and none given: in '.'. */
static char *
default_db(lpo_cli *cli)
{
	char *out, *dir, *path = NULL;
	size_t n;

	if (lpo_cli_to_stdout(cli))
		return lpo_strdup(cli->ctx, "lpo.db");
	if ((out = lpo_strdup(cli->ctx, cli->o.output)) == NULL)
		return NULL;
	/* "lrm/" is the folder lrm, whose own folder is '.' */
	for (n = strlen(out); n > 1 && out[n - 1] == '/'; )
		out[--n] = '\0';
	if ((dir = lpo_dirname(cli->ctx, out)) != NULL)
		path = lpo_path_join(cli->ctx, dir, "lpo.db");
	lpo_free(dir);
	lpo_free(out);
	return path;
}

static int
open_db(lpo_cli *cli, struct lpo_cli_run *r)
{
	char *path = NULL;
	int rc;

	if (r->db_open)
		return 0;
	r->db_open = 1;
	if (cli->o.dry_run)	/* a plan leaves nothing behind */
		return 0;
	if (cli->o.db != NULL)
		return lpo_db_open(cli->ctx, &r->db, cli->o.db, 0);
	if ((path = default_db(cli)) == NULL)
		return LPO_ENOMEM;
	rc = lpo_db_open(cli->ctx, &r->db, path, 0);
	if (rc != 0 && rc != LPO_ENOMEM) {
		/* nobody asked for this one by name: work without it */
		lpo_cli_note(cli, "no database: %s", lpo_errmsg(cli->ctx));
		lpo_clear(cli->ctx);
		r->db = NULL;
		rc = 0;
	}
	lpo_free(path);
	return rc;
}

lpo_db *
lpo_cli_db(lpo_cli *cli)
{
	return cli->priv->run != NULL ? cli->priv->run->db : NULL;
}

int64_t
lpo_cli_db_run(const lpo_cli *cli)
{
	return cli->priv->run != NULL ? cli->priv->run->run_row : 0;
}

int64_t
lpo_cli_db_attempt(const lpo_cli *cli)
{
	return cli->priv->run != NULL ? cli->priv->run->attempt_row : 0;
}

int
lpo_cli_metric(lpo_cli *cli, const char *name, int64_t step, double value)
{
	struct lpo_cli_run *r = cli->priv->run;

	if (r == NULL || r->db == NULL)
		return 0;
	return lpo_db_metric(r->db, r->run_row, step, name, value);
}

/* -------------------------------------------------------------- inputs */

/* A pipe or a device. */
static int
is_special(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && !S_ISREG(st.st_mode) &&
	    !S_ISDIR(st.st_mode);
}

/* A path may be any bytes, JSON text not: what is no UTF-8 becomes '?'. */
static char *
path_text(lpo_ctx *c, const char *path)
{
	char *text = lpo_strdup(c, path), *p = text;
	size_t n;

	while (p != NULL && *p != '\0') {
		for (n = 1; n <= 4 && !lpo_utf8_valid(p, n); n++)
			if (p[n - 1] == '\0')
				n = 4;
		if (n > 4) {
			*p = '?';
			n = 1;
		}
		p += n;
	}
	return text;
}

static int
add_input(lpo_cli *cli, const char *role, const char *value,
    const char *path, int64_t size, int is_run)
{
	struct lpo_cli_run *r = run_of(cli);
	char *text = NULL;
	json_t *o;

	if (r == NULL || (path != NULL && (text = path_text(cli->ctx,
	    path)) == NULL))
		return LPO_ENOMEM;
	if (!lpo_utf8_valid(role, strlen(role))) {
		lpo_free(text);
		return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is not UTF-8",
		    role);
	}
	o = json_pack("{s:s, s:s, s:s*, s:I, s:b}", "role", role, "value",
	    value, "path", text, "size_bytes", (json_int_t)size, "run",
	    is_run);
	lpo_free(text);
	if (o == NULL || json_array_append_new(r->inputs, o) != 0)
		return lpo_fail(cli->ctx, LPO_ENOMEM, "out of memory");
	return 0;
}

int
lpo_cli_sha256(lpo_cli *cli, char hex[65], const char *path)
{
	struct lpo_cli_run *r = run_of(cli);
	int rc;

	if (r == NULL)
		return LPO_ENOMEM;
	/* what has been read of a pipe is not there to be summed up */
	if (is_special(path))
		return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is not a regular "
		    "file", path);
	if ((rc = open_db(cli, r)) != 0)
		return rc;
	return lpo_db_file_sha256(cli->ctx, r->db, hex, path);
}

int
lpo_cli_input_file(lpo_cli *cli, const char *role, const char *path)
{
	char hex[65];
	int rc = lpo_random_is(path) ?
	    lpo_random_sha256(cli->ctx, hex, path) :
	    lpo_cli_sha256(cli, hex, path);

	return rc != 0 ? rc : add_input(cli, role, hex, path,
	    lpo_file_size(path), 0);
}

int
lpo_cli_input_prompts(lpo_cli *cli, const char *path,
    const struct lpo_prompts *p)
{
	char hex[65];

	if (strcmp(path, "-") != 0 && !is_special(path))
		return lpo_cli_input_file(cli, "prompts", path);
	lpo_prompts_sha256(p, hex);
	return add_input(cli, "prompts", hex, path, 0, 0);
}

int
lpo_cli_sha256_dir(lpo_cli *cli, char hex[65], const char *path)
{
	struct lpo_cli_run *r = run_of(cli);
	int rc;

	if (r == NULL)
		return LPO_ENOMEM;
	if ((rc = open_db(cli, r)) != 0)
		return rc;
	if (lpo_random_is(path))
		return lpo_random_sha256(cli->ctx, hex, path);
	return lpo_runid_folder(cli->ctx, hex, path, lpo_db_file_sha256_cb,
	    r->db);
}

int
lpo_cli_input_dir(lpo_cli *cli, const char *role, const char *path)
{
	char hex[65];
	int rc = lpo_cli_sha256_dir(cli, hex, path);

	return rc != 0 ? rc : add_input(cli, role, hex, path, 0, 0);
}

int
lpo_cli_input_hash(lpo_cli *cli, const char *role, const char *path,
    const char *sha256)
{
	return add_input(cli, role, sha256, path, 0, 0);
}

int
lpo_cli_input_run(lpo_cli *cli, const char *role, const char *run)
{
	return add_input(cli, role, run, NULL, 0, 1);
}

const char *
lpo_cli_input_value(const lpo_cli *cli, const char *role)
{
	json_t *o;
	size_t i;

	if (cli->priv->run != NULL)
		json_array_foreach(cli->priv->run->inputs, i, o)
			if (strcmp(json_string_value(json_object_get(o,
			    "role")), role) == 0)
				return json_string_value(json_object_get(o,
				    "value"));
	return "";
}

void
lpo_cli_resolved(lpo_cli *cli, const char *name, json_t *value)
{
	struct lpo_cli_run *r = run_of(cli);

	/* out of memory shows in lpo_cli_begin(), where `options` is read */
	if (r == NULL) {
		cli->priv->lost = 1;
		json_decref(value);
	} else
		lpo_json_set(cli->ctx, r->options, name, value);
}

json_t *
lpo_cli_parents(const lpo_cli *cli)
{
	json_t *out = json_array(), *o;
	size_t i;

	if (cli->priv->run == NULL)
		return out;
	json_array_foreach(cli->priv->run->inputs, i, o)
		if (json_is_true(json_object_get(o, "run")))
			json_array_append(out, json_object_get(o, "value"));
	return out;
}

/* ------------------------------------------------------------- the id */

static json_t *
list_json(const struct lpo_cli_list *l)
{
	json_t *a = json_array();
	int i;

	for (i = 0; i < l->n; i++)
		json_array_append_new(a, json_string(l->v[i]));
	return a;
}

static json_t *
option_json(const struct lpo_cli_option *r, const void *base)
{
	const void *p = (const char *)base + r->offset;
	const char *s;
	int i, n;

	switch (r->type) {
	case LPO_CLI_FLAG:
		return json_boolean(*(const int *)p);
	case LPO_CLI_STRING:
		s = *(const char *const *)p;
		return s != NULL ? json_string(s) : json_null();
	case LPO_CLI_LIST:
		return list_json(p);
	case LPO_CLI_I64:
	case LPO_CLI_BYTES:
		return json_integer(*(const int64_t *)p);
	case LPO_CLI_U64:
		/* JSON numbers end at 2^63 in jansson */
		return json_integer((json_int_t)*(const uint64_t *)p);
	case LPO_CLI_F64:
		return json_real(*(const double *)p);
	case LPO_CLI_CHOICE:
		s = r->arg;
		for (i = *(const int *)p; i > 0; i--)
			s += strcspn(s, "|") + 1;
		n = (int)strcspn(s, "|");
		return json_stringn(s, (size_t)n);
	}
	return NULL;
}

/*
 * Two levels of one CPU give other bits, as do two kinds of device, so with a
 * backend its level, precision and library are options like others.
 */
static int
collect_options(lpo_cli *cli, struct lpo_cli_run *r)
{
	const struct lpo_cli_priv *p = cli->priv;
	int i, rc;

	for (i = 0; i < p->rows; i++) {
		const struct lpo_cli_option *o = p->row[i];

		if (!(o->flags & LPO_CLI_RESULT) ||
		    json_object_get(r->options, o->name) != NULL)
			continue;	/* resolved by the tool */
		rc = lpo_json_set(cli->ctx, r->options, o->name,
		    option_json(o, p->base[i]));
		if (rc != 0)
			return rc;
	}
	if (!p->be_open)
		return 0;
	if (lpo_cli_on_cuda(cli) && (rc = lpo_json_set(cli->ctx, r->options,
	    "device", json_string(p->device.name))) != 0)
		return rc;
	if ((rc = lpo_json_set(cli->ctx, r->options, "isa",
	    json_string(lpo_cli_level(cli)))) != 0)
		return rc;
	if ((rc = lpo_json_set(cli->ctx, r->options, "precision",
	    json_string(lpo_cli_precision_name(cli,
	    lpo_cli_precision(cli))))) != 0)
		return rc;
	return lpo_json_set(cli->ctx, r->options, "library",
	    json_string(lpo_cli_library(cli)));
}

/* Inputs stand for themselves by hash or run id, in the order given. */
static int
make_id(lpo_cli *cli, struct lpo_cli_run *r)
{
	const char **in;
	size_t i, n = json_array_size(r->inputs);
	int rc;

	if ((rc = collect_options(cli, r)) != 0)
		return rc;
	if ((in = lpo_alloc(cli->ctx, n + 1, sizeof *in)) == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++)
		in[i] = json_string_value(json_object_get(
		    json_array_get(r->inputs, i), "value"));
	rc = lpo_runid(cli->ctx, r->id, cli->tool->name, LPO_VERSION,
	    r->options, in, (int)n);
	lpo_free(in);
	return rc;
}

const char *
lpo_cli_run(const lpo_cli *cli)
{
	return cli->priv->run != NULL ? cli->priv->run->id : "";
}

const json_t *
lpo_cli_run_options(const lpo_cli *cli)
{
	return cli->priv->run != NULL ? cli->priv->run->options : NULL;
}

/* --------------------------------------------------------------- begin */

/* The command line as one would type it. */
static char *
command_line(lpo_cli *cli)
{
	const struct lpo_cli_priv *p = cli->priv;
	size_t room = strlen(cli->tool->name) + 1;
	char *s, *d;
	const char *a;
	int i;

	for (i = 1; i < p->argc; i++)
		room += 4 * strlen(p->argv[i]) + 3;
	if ((s = d = lpo_alloc(cli->ctx, room, 1)) == NULL)
		return NULL;
	d = stpcpy(d, cli->tool->name);
	for (i = 1; i < p->argc; i++) {
		*d++ = ' ';
		a = p->argv[i];
		if (*a != '\0' && a[strspn(a, "abcdefghijklmnopqrstuvwxyz"
		    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./:,@%^")] ==
		    '\0') {
			d = stpcpy(d, a);
			continue;
		}
		*d++ = '\'';
		for (; *a != '\0'; a++)
			d = *a == '\'' ? stpcpy(d, "'\\''") :
			    (*d = *a, d + 1);
		*d++ = '\'';
	}
	*d = '\0';
	return s;
}

/* The run's row, this process's row, and what was read. */
static int
write_rows(lpo_cli *cli, struct lpo_cli_run *r, const char *path)
{
	struct lpo_db_attempt a = { .run = r->id, .tool = cli->tool->name,
	    .version = LPO_VERSION, .seed = (int64_t)cli->o.seed,
	    .output = path };
	char *options = NULL, *argv = NULL;
	json_t *o;
	size_t i;
	int rc = LPO_ENOMEM;

	if (r->db == NULL)
		return 0;
	if ((options = lpo_json_dumps(cli->ctx, r->options)) == NULL ||
	    (argv = command_line(cli)) == NULL)
		goto out;
	a.options = options;
	a.argv = argv;
	if (cli->priv->be_open) {
		a.device = lpo_cli_on_cuda(cli) ? cli->priv->where :
		    cli->o.device;
		a.isa = lpo_cli_level(cli);
		a.precision = lpo_cli_precision_name(cli,
		    lpo_cli_precision(cli));
		a.threads = cli->be.threads;
	}
	rc = lpo_db_run_begin(r->db, &r->run_row, &r->attempt_row, &a);
	json_array_foreach(r->inputs, i, o) {
		const char *v = json_string_value(json_object_get(o, "value"));

		if (rc != 0)
			break;
		if (json_is_true(json_object_get(o, "run")))
			rc = lpo_db_parent(r->db, r->run_row, v);
		else
			rc = lpo_db_input(r->db, r->run_row,
			    json_string_value(json_object_get(o, "role")),
			    json_string_value(json_object_get(o, "path")), v,
			    json_integer_value(json_object_get(o,
			    "size_bytes")));
	}
out:
	lpo_free(options);
	lpo_free(argv);
	return rc;
}

/*
 * A kill between the output's appearance and the state's removal leaves state
 * of this run: then its last rows are missing too, and the run goes on from
 * there to the same bytes.  A dead lock alone is removed; what is another's,
 * or locked, stays.
 */
static int
unfinished(lpo_cli *cli, const char *path)
{
	char *dir = lpo_state_path(cli->ctx, path);
	lpo_state *s;
	int found = 0;

	if (dir != NULL && lpo_is_dir(dir) && lpo_state_open(cli->ctx, &s,
	    path, cli->priv->run->id, cli->priv->run->options, 0) == 0) {
		if ((found = lpo_state_found(s)) != 0)
			lpo_state_close(s);
		else
			lpo_state_remove(s);
	}
	lpo_clear(cli->ctx);
	lpo_free(dir);
	return found;
}

/* The output is there and whole, whatever became of the last attempt. */
static int
already_done(lpo_cli *cli, const char *path)
{
	struct lpo_cli_run *r = cli->priv->run;
	int rc;

	lpo_cli_note(cli, "'%s' is already done", path);
	if (cli->o.dry_run)
		return LPO_CLI_DONE;
	if ((rc = open_db(cli, r)) != 0 ||
	    (rc = lpo_db_run_done(r->db, r->id)) != 0)
		return rc;
	return LPO_CLI_DONE;
}

int
lpo_cli_begin(lpo_cli *cli, const char *path,
    int (*existing)(lpo_ctx *, const char *path, char run[17]))
{
	struct lpo_cli_run *r = run_of(cli);
	char was[LPO_RUNID_SIZE] = "";
	int rc;

	if (r == NULL || cli->priv->lost)
		return lpo_fail(cli->ctx, LPO_ENOMEM, "out of memory");
	if ((rc = make_id(cli, r)) != 0)
		return rc;
	lpo_cli_detail(cli, "run %s", r->id);
	if (path != NULL && existing != NULL && is_special(path)) {
		/* opening a pipe to look into it would wait for a writer */
		if (!cli->o.force)
			return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is neither "
			    "a file nor a folder: --force writes to it, -o - "
			    "to standard output", path);
	} else if (path != NULL && existing != NULL) {
		rc = existing(cli->ctx, path, was);
		if (rc == 0 && strcmp(was, r->id) == 0 && !cli->o.fresh &&
		    (cli->o.dry_run || !unfinished(cli, path)))
			return already_done(cli, path);
		if (rc == 0 && strcmp(was, r->id) != 0 && !cli->o.force)
			return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is there "
			    "already, of %s%s: --force overwrites it", path,
			    was[0] != '\0' ? "run " : "another origin", was);
		if (rc != 0 && rc != LPO_ENOTFOUND)
			return rc;
		lpo_clear(cli->ctx);
	}
	if (cli->o.dry_run)
		return 0;
	if ((rc = open_db(cli, r)) != 0)
		return rc;
	return write_rows(cli, r, path);
}

int
lpo_cli_foreign(lpo_ctx *c, int rc)
{
	if (rc == LPO_EIO || rc == LPO_ENOMEM || rc == LPO_ESTOP)
		return rc;
	lpo_clear(c);
	return 0;
}

int
lpo_cli_existing_tar(lpo_ctx *c, const char *path, char run[17])
{
	lpo_shard *s = NULL;
	const char *id;
	int rc;

	run[0] = '\0';
	if (!lpo_file_exists(path))
		return LPO_ENOTFOUND;
	if ((rc = lpo_shard_open(c, &s, path)) != 0)
		return lpo_cli_foreign(c, rc);
	id = json_string_value(json_object_get(lpo_shard_run(s), "run"));
	if (id != NULL && strlen(id) == 16)
		memcpy(run, id, 17);
	lpo_shard_close(s);
	return 0;
}

int
lpo_cli_shard_there(lpo_cli *cli, const char *path, int *there)
{
	char was[LPO_RUNID_SIZE];
	int rc = lpo_cli_existing_tar(cli->ctx, path, was);

	*there = 0;
	if (rc == LPO_ENOTFOUND)
		return 0;
	if (rc != 0)
		return rc;
	*there = strcmp(was, lpo_cli_run(cli)) == 0 && !cli->o.fresh;
	if (!*there && !cli->o.force && !cli->o.fresh)
		return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is there "
		    "already, of another origin: --force overwrites it", path);
	return 0;
}

int
lpo_cli_run_end(lpo_cli *cli, int status)
{
	struct lpo_cli_run *r = cli->priv->run;
	enum lpo_db_status s;

	if (r == NULL)
		return status;
	s = status == 0 || status == 3 || status == 5 ? LPO_DB_DONE :
	    status == 4 ? LPO_DB_STOPPED : LPO_DB_FAILED;
	if (r->db != NULL && r->run_row != 0) {
		char *text = lpo_strdup(cli->ctx, lpo_errmsg(cli->ctx));

		/* the failure's text is out already; this is for the row */
		lpo_clear(cli->ctx);
		if (lpo_db_run_end(r->db, r->run_row, r->attempt_row, s,
		    status, text != NULL && *text != '\0' ? text : NULL) != 0) {
			fprintf(stderr, "%s: %s\n", cli->tool->name,
			    lpo_errmsg(cli->ctx));
			if (s == LPO_DB_DONE)
				status = 1;
		}
		lpo_free(text);
	}
	lpo_db_close(r->db);
	json_decref(r->options);
	json_decref(r->inputs);
	lpo_free(r);
	cli->priv->run = NULL;
	return status;
}
