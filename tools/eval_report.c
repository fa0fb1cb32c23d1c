/* lpo-eval: results into the database, and the HTML report. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/io/db.h"
#include "lib/io/shard.h"
#include "lib/score/report.h"
#include "tools/eval.h"

/* -------------------------------------------------------------- database */

static int
store_images(lpo_cli *cli, struct eval *e, const struct eval_system *s)
{
	lpo_db *db = lpo_cli_db(cli);
	int64_t i, k, p = 0, image;
	int rc = 0;

	for (i = 0; i < e->n && rc == 0; i++) {
		if (i == e->first[p + 1])
			p++;
		if ((rc = lpo_db_image(db, &image, s->db_id, e->key[i], p,
		    e->prompt[i], i - e->first[p], (int64_t)cli->o.seed,
		    NULL)) < 0)
			break;
		for (k = 0; k < s->scores.names && rc == 0; k++)
			rc = lpo_db_score(db, image, s->scores.name[k],
			    s->scores.value[i * s->scores.names + k]);
	}
	return rc;
}

static int
store_results(lpo_cli *cli, const struct eval *e)
{
	const struct lpo_comparison *v;
	struct lpo_db_result r;
	int64_t i;
	int rc = 0;

	for (i = 0; i < e->n_results && rc == 0; i++) {
		v = &e->result[i];
		r.scorer = v->scorer;
		r.system_id = e->system[v->system].db_id;
		r.base_id = e->system[0].db_id;
		r.n_prompts = e->prompts;
		r.n_images = e->n;
		r.mean_system = v->mean;
		r.mean_base = v->mean_base;
		r.difference = v->difference.mean;
		r.difference_low = v->difference.low;
		r.difference_high = v->difference.high;
		r.win_rate = v->win.mean;
		r.win_rate_low = v->win.low;
		r.win_rate_high = v->win.high;
		rc = lpo_db_result(lpo_cli_db(cli), lpo_cli_db_run(cli), &r);
	}
	return rc;
}

int
eval_store(lpo_cli *cli, struct eval *e)
{
	lpo_db *db = lpo_cli_db(cli);
	int64_t i;
	int rc;

	if (db == NULL)
		return 0;
	if ((rc = lpo_db_begin(db)) < 0)
		return rc;
	for (i = 0; i < e->systems && rc == 0; i++)
		if ((rc = lpo_db_system(db, &e->system[i].db_id,
		    lpo_cli_db_run(cli), e->system[i].name,
		    e->system[i].model, e->system[i].lora)) == 0)
			rc = store_images(cli, e, &e->system[i]);
	if (rc == 0 && (rc = store_results(cli, e)) == 0)
		return lpo_db_commit(db);
	lpo_db_rollback(db);
	return rc;
}

/* ---------------------------------------------------------------- report */

static json_t *
triple(const struct lpo_interval *v)
{
	return json_pack("[fff]", v->mean, v->low, v->high);
}

static json_t *
results_json(const struct eval *e)
{
	const struct lpo_comparison *v;
	json_t *list = json_array();
	int64_t i;

	for (i = 0; i < e->n_results; i++) {
		v = &e->result[i];
		json_array_append_new(list, json_pack(
		    "{ss ss sf sf so so}", "scorer", v->scorer, "system",
		    e->system[v->system].name, "mean_base", v->mean_base,
		    "mean", v->mean, "difference", triple(&v->difference),
		    "win", triple(&v->win)));
	}
	return list;
}

/* The picture of image i in a tar, whatever its type, as a data URL. */
static int
picture(lpo_ctx *c, char **url, lpo_shard *tar, int64_t i)
{
	struct lpo_sample s;
	const char *type;
	char mime[16];
	int k, rc;

	*url = NULL;
	if ((rc = lpo_shard_get(c, &s, tar, i)) < 0)
		return rc;
	for (k = 0; k < s.n_members && *url == NULL; k++) {
		if ((type = lpo_image_type(s.member[k].name)) == NULL)
			continue;
		snprintf(mime, sizeof(mime), "image/%s",
		    strcmp(type, "jpg") == 0 ? "jpeg" : type);
		*url = lpo_report_data_url(c, mime, s.member[k].bytes,
		    (size_t)s.member[k].size);
	}
	lpo_sample_clear(&s);
	if (*url != NULL || lpo_errcode(c) != 0)
		return lpo_errcode(c);
	return lpo_fail(c, LPO_EFORMAT, "sample '%s' has no picture",
	    lpo_shard_key(tar, i));
}

static int
item_json(lpo_ctx *c, json_t *list, const struct eval *e, lpo_shard **tars,
    int64_t i)
{
	json_t *images = json_array(), *scores = json_array(), *row;
	const struct lpo_scores *s;
	char *url;
	int64_t k, j;
	int rc = 0;

	for (k = 0; k < e->systems && rc == 0; k++) {
		if ((rc = picture(c, &url, tars[k], i)) < 0)
			break;
		json_array_append_new(images, json_string(url));
		lpo_free(url);
		s = &e->system[k].scores;
		row = json_array();
		for (j = 0; j < s->names; j++)
			json_array_append_new(row, json_real(s->value[i *
			    s->names + j]));
		json_array_append_new(scores, row);
	}
	json_array_append_new(list, json_pack("{ss so so}", "prompt",
	    e->prompt[i], "images", images, "scores", scores));
	return rc;
}

/* At most `most` pictures, the first ones of each prompt first. */
static int
items_json(lpo_ctx *c, json_t **out, const struct eval *e, int64_t most)
{
	lpo_shard **tars;
	json_t *list = json_array();
	int64_t k, p, number, put = 0, before;
	int rc = 0;

	tars = lpo_alloc(c, (size_t)e->systems, sizeof(*tars));
	if (tars == NULL || list == NULL)
		rc = LPO_ENOMEM;
	for (k = 0; k < e->systems && rc == 0; k++)
		rc = lpo_shard_open(c, &tars[k], e->system[k].tar);
	for (number = 0; rc == 0 && put < most; number++) {
		before = put;
		for (p = 0; p < e->prompts && rc == 0 && put < most; p++)
			if (e->first[p] + number < e->first[p + 1]) {
				rc = item_json(c, list, e, tars,
				    e->first[p] + number);
				put++;
			}
		if (put == before)
			break;
	}
	for (k = 0; tars != NULL && k < e->systems; k++)
		lpo_shard_close(tars[k]);
	lpo_free(tars);
	*out = list;
	return rc;
}

static const char sql_curves[] =
    "SELECT run.tool, metric.run_id, metric.name, step, value "
    "FROM metric JOIN run ON run.id = metric.run_id "
    "WHERE run.tool IN ('lpo-lrm', 'lpo-train') AND metric.run_id IN "
    "(SELECT max(id) FROM run GROUP BY tool) "
    "ORDER BY metric.run_id, metric.name, step";

/* Metrics of the newest training runs in the database, one curve a name. */
static int
curves_json(lpo_cli *cli, json_t *list)
{
	lpo_db *db = lpo_cli_db(cli);
	json_t *points = NULL, *value;
	char last[256] = "", name[256];
	sqlite3_stmt *st;
	int rc;

	if (db == NULL)
		return 0;
	if ((rc = lpo_db_flush(db)) < 0 ||
	    (rc = lpo_db_prepare(db, &st, sql_curves)) < 0)
		return rc;
	while ((rc = lpo_db_step(db, st)) == 0) {
		snprintf(name, sizeof(name), "%lld %s",
		    (long long)sqlite3_column_int64(st, 1),
		    (const char *)sqlite3_column_text(st, 2));
		if (points == NULL || strcmp(name, last) != 0) {
			strcpy(last, name);
			points = json_array();
			json_array_append_new(list, json_pack("{ss ss so}",
			    "tool", (const char *)sqlite3_column_text(st, 0),
			    "name", (const char *)sqlite3_column_text(st, 2),
			    "points", points));
		}
		value = sqlite3_column_type(st, 4) == SQLITE_NULL ?
		    json_null() : json_real(sqlite3_column_double(st, 4));
		json_array_append_new(points, json_pack("[Io]",
		    (json_int_t)sqlite3_column_int64(st, 3), value));
	}
	return rc < 0 ? rc : 0;
}

static const char sql_commands[] =
    "SELECT run.run, argv, (SELECT json_group_array(json_object('role', "
    "role, 'path', path, 'sha256', sha256)) FROM input WHERE input.run_id = "
    "run.id) FROM run JOIN attempt ON attempt.id = (SELECT max(id) FROM "
    "attempt AS a WHERE a.run_id = run.id) ORDER BY run.id";

static int
commands_json(lpo_cli *cli, json_t *list)
{
	lpo_db *db = lpo_cli_db(cli);
	sqlite3_stmt *st;
	json_t *inputs;
	int rc;

	if (db == NULL)
		return 0;
	if ((rc = lpo_db_prepare(db, &st, sql_commands)) < 0)
		return rc;
	while ((rc = lpo_db_step(db, st)) == 0) {
		inputs = json_loads((const char *)sqlite3_column_text(st, 2),
		    0, NULL);
		json_array_append_new(list, json_pack("{ss ss so}", "run",
		    (const char *)sqlite3_column_text(st, 0), "argv",
		    (const char *)sqlite3_column_text(st, 1), "inputs",
		    inputs != NULL ? inputs : json_array()));
	}
	return rc < 0 ? rc : 0;
}

static json_t *
names_json(const struct eval *e, json_t **scorers)
{
	const struct lpo_scores *s = &e->system[0].scores;
	json_t *systems = json_array();
	int64_t i;

	*scorers = json_array();
	for (i = 0; i < s->names; i++)
		json_array_append_new(*scorers, json_string(s->name[i]));
	for (i = 0; i < e->systems; i++)
		json_array_append_new(systems, json_pack("{ss}", "name",
		    e->system[i].name));
	return systems;
}

int
eval_report(lpo_cli *cli, const struct eval_opts *o, struct eval *e)
{
	json_t *items = NULL, *curves = json_array(), *scorers, *systems;
	json_t *commands = json_array(), *page = NULL;
	int rc;

	systems = names_json(e, &scorers);
	if ((rc = items_json(cli->ctx, &items, e, o->html_images)) == 0 &&
	    (rc = curves_json(cli, curves)) == 0)
		rc = commands_json(cli, commands);
	page = json_pack("{ss ss ss sI sI so so so so so so}", "title",
	    o->title, "generator", "lpo-eval, lpo-tools " LPO_VERSION, "run",
	    lpo_cli_run(cli), "prompts", (json_int_t)e->prompts, "per_prompt",
	    (json_int_t)(e->n / (e->prompts > 0 ? e->prompts : 1)), "systems",
	    systems, "scorers", scorers, "results", results_json(e), "items",
	    items, "curves", curves, "commands", commands);
	if (rc == 0 && page == NULL)
		rc = lpo_fail(cli->ctx, LPO_ENOMEM, "no memory for the report");
	if (rc == 0)
		rc = lpo_report_write(cli->ctx, o->html, page);
	json_decref(page);
	return rc;
}
