/* lpo-eval --pool: the images of several runs as if they were of one. */
#include <stdlib.h>
#include <string.h>

#include "lib/io/db.h"
#include "tools/eval.h"

/* The newest finished run that compared systems: --images does not. */
#define NEWEST \
    "(SELECT id FROM run WHERE tool = 'lpo-eval' AND status = 'done' " \
    "AND EXISTS (SELECT 1 FROM system WHERE system.run_id = run.id) " \
    "ORDER BY ended_at DESC, id DESC LIMIT 1) "

static const char sql_run[] = "SELECT run FROM run WHERE id = " NEWEST;

/* The columns of a run: its systems in order, each with all its scores. */
static const char sql_columns[] =
    "SELECT DISTINCT system.name, score.scorer FROM score "
    "JOIN image ON image.id = score.image_id "
    "JOIN system ON system.id = image.system_id WHERE system.run_id = "
    NEWEST
    "ORDER BY system.id, score.scorer";

/* Image by image, the values in the order of the columns. */
static const char sql_values[] =
    "SELECT image.prompt, image.key, score.value FROM score "
    "JOIN image ON image.id = score.image_id "
    "JOIN system ON system.id = image.system_id WHERE system.run_id = "
    NEWEST
    "ORDER BY image.prompt_index, image.number, image.key, system.id, "
    "score.scorer";

struct column {
	char *system, *scorer;
};

/* One image of every system: a value a column. */
struct row {
	char *prompt;
	int64_t order;		/* of reading: databases, then images */
	double *value;
};

struct pool {
	struct column *column;
	struct row *row;
	int64_t columns, n, cap;
	json_t *runs;		/* ids of those that were read */
};

static void
pool_free(struct pool *p)
{
	int64_t i;

	for (i = 0; i < p->columns; i++) {
		lpo_free(p->column[i].system);
		lpo_free(p->column[i].scorer);
	}
	for (i = 0; i < p->n; i++) {
		lpo_free(p->row[i].prompt);
		lpo_free(p->row[i].value);
	}
	lpo_free(p->column);
	lpo_free(p->row);
	json_decref(p->runs);
}

static const char *
text(sqlite3_stmt *st, int i)
{
	return (const char *)sqlite3_column_text(st, i);
}

/* Column i: kept of the first database, compared with it for the others. */
static int
one_column(lpo_ctx *c, struct pool *p, sqlite3_stmt *st, int64_t i,
    int first, const char *path)
{
	struct column *v;

	if (!first && (i >= p->columns ||
	    strcmp(p->column[i].system, text(st, 0)) != 0 ||
	    strcmp(p->column[i].scorer, text(st, 1)) != 0))
		return lpo_fail(c, LPO_EFORMAT, "'%s' has %s of system '%s', "
		    "the database before not", path, text(st, 1),
		    text(st, 0));
	if (!first)
		return 0;
	v = lpo_realloc(c, p->column, (size_t)(i + 1) * sizeof(*v));
	if (v == NULL)
		return LPO_ENOMEM;
	p->column = v;
	v[i].system = lpo_strdup(c, text(st, 0));
	v[i].scorer = lpo_strdup(c, text(st, 1));
	p->columns = i + 1;
	return lpo_errcode(c);
}

/* A copy of a database says nothing that the first has not said. */
static int
new_run(lpo_ctx *c, struct pool *p, lpo_db *db, const char *path)
{
	sqlite3_stmt *st;
	int rc;

	if (p->runs == NULL)
		p->runs = json_object();
	if ((rc = lpo_db_prepare(db, &st, sql_run)) < 0)
		return rc;
	/* of no run at all read_columns() says so */
	if ((rc = lpo_db_step(db, st)) != 0)
		return rc < 0 ? rc : 0;
	if (json_object_get(p->runs, text(st, 0)) != NULL)
		return lpo_fail(c, LPO_EFORMAT, "'%s' has run %s, as a "
		    "database before: it would count twice", path,
		    text(st, 0));
	return lpo_json_set(c, p->runs, text(st, 0), json_true());
}

static int
read_columns(lpo_ctx *c, struct pool *p, lpo_db *db, const char *path)
{
	int first = p->columns == 0, rc;
	sqlite3_stmt *st;
	int64_t n = 0;

	if ((rc = lpo_db_prepare(db, &st, sql_columns)) < 0)
		return rc;
	while ((rc = lpo_db_step(db, st)) == 0)
		if ((rc = one_column(c, p, st, n++, first, path)) < 0)
			return rc;
	if (rc < 0)
		return rc;
	if (n == 0)
		return lpo_fail(c, LPO_EFORMAT, "'%s' has no finished "
		    "lpo-eval run", path);
	return n == p->columns ? 0 : lpo_fail(c, LPO_EFORMAT, "'%s' has "
	    "fewer systems or scores than the database before", path);
}

static struct row *
new_row(lpo_ctx *c, struct pool *p, const char *prompt)
{
	struct row *r;
	int64_t cap;

	if (p->n == p->cap) {
		cap = p->cap ? 2 * p->cap : 1024;
		r = lpo_realloc(c, p->row, (size_t)cap * sizeof(*r));
		if (r == NULL)
			return NULL;
		p->row = r;
		p->cap = cap;
	}
	r = &p->row[p->n];
	r->order = p->n;
	r->prompt = lpo_strdup(c, prompt);
	r->value = lpo_alloc(c, (size_t)p->columns, sizeof(double));
	p->n++;
	return r->prompt == NULL || r->value == NULL ? NULL : r;
}

static int
read_values(lpo_ctx *c, struct pool *p, lpo_db *db, const char *path)
{
	struct row *r = NULL;
	char *key = NULL;
	sqlite3_stmt *st;
	int64_t k = 0;
	int rc;

	if ((rc = lpo_db_prepare(db, &st, sql_values)) < 0)
		return rc;
	while ((rc = lpo_db_step(db, st)) == 0) {
		if (k == 0) {
			lpo_free(key);
			key = lpo_strdup(c, text(st, 1));
			r = key != NULL ? new_row(c, p, text(st, 0)) : NULL;
		}
		if (r == NULL) {
			rc = LPO_ENOMEM;
			break;
		}
		if (strcmp(key, text(st, 1)) != 0 ||
		    strcmp(r->prompt, text(st, 0)) != 0) {
			rc = lpo_fail(c, LPO_EFORMAT, "'%s': image '%s' has "
			    "not the scores of all systems", path, key);
			break;
		}
		r->value[k] = sqlite3_column_double(st, 2);
		k = (k + 1) % p->columns;
	}
	if (rc == 1)
		rc = k == 0 ? 0 : lpo_fail(c, LPO_EFORMAT, "'%s': image '%s' "
		    "has not the scores of all systems", path, key);
	lpo_free(key);
	return rc;
}

static int
pool_read(lpo_ctx *c, struct pool *p, const char *path)
{
	lpo_db *db = NULL;
	int rc;

	if ((rc = lpo_db_open(c, &db, path, 1)) == 0 &&
	    (rc = new_run(c, p, db, path)) == 0 &&
	    (rc = read_columns(c, p, db, path)) == 0)
		rc = read_values(c, p, db, path);
	lpo_db_close(db);
	return rc;
}

/* Images of a prompt together, whichever run they are of. */
static int
by_prompt(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	int r = strcmp(x->prompt, y->prompt);

	return r != 0 ? r : (x->order > y->order) - (x->order < y->order);
}

/* Scores of each system from the rows. */
static int
pool_tables(lpo_ctx *c, struct eval *e, const struct pool *p)
{
	int64_t i, k, j, scorers = 0;
	const char **names;
	int rc = 0;

	while (scorers < p->columns && strcmp(p->column[scorers].system,
	    p->column[0].system) == 0)
		scorers++;
	if (p->columns % scorers != 0)
		return lpo_fail(c, LPO_EFORMAT, "the systems have not the "
		    "same scores");
	e->systems = p->columns / scorers;
	e->system = lpo_alloc(c, (size_t)e->systems, sizeof(*e->system));
	names = lpo_alloc(c, (size_t)scorers, sizeof(*names));
	if (e->system == NULL || names == NULL)
		rc = LPO_ENOMEM;
	for (k = 0; k < e->systems && rc == 0; k++) {
		const struct column *col = &p->column[k * scorers];

		for (j = 0; j < scorers; j++)
			names[j] = col[j].scorer;
		if ((e->system[k].name = lpo_strdup(c, col->system)) == NULL ||
		    (rc = lpo_scores_new(c, &e->system[k].scores, names,
		    scorers, p->n)) < 0) {
			rc = LPO_ENOMEM;
			break;
		}
		for (i = 0; i < p->n; i++)
			memcpy(e->system[k].scores.value + i * scorers,
			    p->row[i].value + k * scorers,
			    (size_t)scorers * sizeof(double));
	}
	lpo_free(names);
	return rc;
}

static int
pool_prompts(lpo_ctx *c, struct eval *e, const struct pool *p)
{
	int64_t i;

	e->n = p->n;
	e->first = lpo_alloc(c, (size_t)p->n + 1, sizeof(*e->first));
	if (e->first == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < p->n; i++)
		if (i == 0 || strcmp(p->row[i].prompt,
		    p->row[i - 1].prompt) != 0)
			e->first[e->prompts++] = i;
	e->first[e->prompts] = p->n;
	return 0;
}

int
eval_pool(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	struct pool p = { .n = 0 };
	lpo_ctx *c = cli->ctx;
	int k, rc = 0;

	if (cli->nargs < 1)
		return lpo_cli_usage(cli, "--pool needs databases");
	for (k = 0; k < cli->nargs && rc == 0; k++)
		rc = pool_read(c, &p, cli->args[k]);
	if (rc == 0) {
		qsort(p.row, (size_t)p.n, sizeof(*p.row), by_prompt);
		if ((rc = pool_prompts(c, e, &p)) == 0)
			rc = pool_tables(c, e, &p);
	}
	pool_free(&p);
	if (rc != 0)
		return rc;
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "databases", "%d", cli->nargs);
		lpo_cli_plan(cli, "systems", "%lld", (long long)e->systems);
		lpo_cli_plan(cli, "prompts", "%lld", (long long)e->prompts);
		lpo_cli_plan(cli, "images", "%lld", (long long)e->n);
		return LPO_CLI_DONE;
	}
	return eval_compare(cli, o, e);
}
