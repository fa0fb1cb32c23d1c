/*
 * lpo-eval: all scorers on pictures.  What they have said so far is saved in a
 * folder of snapshots: the table, of built-in scorers' columns the first
 * `done` pictures, of a program's all or none.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/snapshot.h"
#include "tools/eval.h"

struct scoring {
	lpo_cli *cli;
	lpo_scorers *set;
	const struct lpo_score_source *src;
	struct lpo_scores t;	/* ours first, programs' as they end */
	int64_t done;		/* pictures that ours have scored */
	json_t *bad;		/* [[picture, why]] that were left out */
	lpo_snap *snap;
};

static void
scoring_clear(struct scoring *g)
{
	lpo_scores_free(&g->t);
	json_decref(g->bad);
	lpo_snap_close(g->snap);
}

/* ------------------------------------------------------------------ state */

static int
save(struct scoring *g)
{
	json_t *names = json_array(), *j = NULL;
	lpo_ctx *c = g->cli->ctx;
	char *text = NULL;
	int64_t i;
	int rc = LPO_ENOMEM;

	if (g->t.n == 0) {
		json_decref(names);
		return 0;
	}
	for (i = 0; i < g->t.names; i++)
		json_array_append_new(names, json_string(g->t.name[i]));
	j = json_pack("{sI sI so sO}", "pictures", (json_int_t)g->t.n, "done",
	    (json_int_t)g->done, "names", names, "bad", g->bad);
	if (j == NULL || (text = lpo_json_dumps(c, j)) == NULL ||
	    (rc = lpo_snap_begin(g->snap)) < 0 ||
	    (rc = lpo_snap_blob(g->snap, "scores", g->t.value,
	    (size_t)(g->t.n * g->t.names) * sizeof(double))) < 0)
		goto out;
	rc = lpo_snap_commit(g->snap, text);
out:
	json_decref(j);
	lpo_free(text);
	return rc;
}

/* Those left out are named again: it is this process's exit status too. */
static int
restore_bad(struct scoring *g, const json_t *bad)
{
	json_t *v;
	size_t i;
	int rc = 0;

	json_array_foreach(bad, i, v) {
		int64_t at = json_integer_value(json_array_get(v, 0));
		const char *why = json_string_value(json_array_get(v, 1));

		if (why == NULL || at < 0 || at >= g->src->n ||
		    g->src->bad == NULL)
			return lpo_fail(g->cli->ctx, LPO_EFORMAT, "the saved "
			    "scores name no picture");
		if ((rc = g->src->bad(g->src->arg, at, why)) < 0)
			return rc;
		json_array_append(g->bad, v);
	}
	return 0;
}

static int
restore_table(struct scoring *g, const json_t *names)
{
	size_t n = json_array_size(names), i;
	lpo_ctx *c = g->cli->ctx;
	const char **name = lpo_alloc(c, n + 1, sizeof(*name));
	int rc = name == NULL ? LPO_ENOMEM : 0;

	for (i = 0; i < n && rc == 0; i++)
		if ((name[i] = json_string_value(json_array_get(names,
		    i))) == NULL)
			rc = lpo_fail(c, LPO_EFORMAT, "the saved scores have "
			    "no names");
	if (rc == 0 && (rc = lpo_scores_new(c, &g->t, name, (int64_t)n,
	    g->src->n)) == 0)
		rc = lpo_snap_read(g->snap, "scores", g->t.value,
		    (size_t)(g->t.n * g->t.names) * sizeof(double));
	lpo_free(name);
	return rc;
}

static int
restore(struct scoring *g, const char *dir)
{
	lpo_ctx *c = g->cli->ctx;
	json_t *j = NULL;
	const char *text;
	int64_t n;
	int rc;

	if ((rc = lpo_snap_open(c, &g->snap, dir, lpo_cli_run(g->cli))) < 0 ||
	    !lpo_snap_found(g->snap))
		return rc;
	text = lpo_snap_counters(g->snap);
	if ((rc = lpo_json_load(c, &j, text, strlen(text), dir)) < 0 ||
	    (rc = lpo_json_need_int(c, &n, j, "pictures")) < 0 ||
	    (rc = lpo_json_need_int(c, &g->done, j, "done")) < 0)
		goto out;
	if (n != g->src->n || g->done < 0 || g->done > n)
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' has scores of %lld "
		    "pictures, now there are %lld", dir, (long long)n,
		    (long long)g->src->n);
	else if ((rc = restore_table(g, json_object_get(j, "names"))) == 0)
		rc = restore_bad(g, json_object_get(j, "bad"));
	if (rc == 0 && lpo_scorers_count(g->set) > 0)
		lpo_cli_note(g->cli, "%lld of %lld pictures are scored "
		    "already", (long long)g->done, (long long)n);
out:
	json_decref(j);
	return rc;
}

/* --------------------------------------------------------------- built-in */

/* Some of the pictures, from `first` on. */
struct part {
	struct scoring *g;
	int64_t first;
};

static int
part_get(void *arg, int64_t i, struct lpo_score_item *it)
{
	const struct part *p = arg;

	return p->g->src->get(p->g->src->arg, p->first + i, it);
}

static int
part_bad(void *arg, int64_t i, const char *why)
{
	const struct part *p = arg;
	struct scoring *g = p->g;
	json_t *v = json_pack("[Is]", (json_int_t)(p->first + i), why);

	/* what a decoder says need not be UTF-8 */
	if (v == NULL)
		v = json_pack("[Is]", (json_int_t)(p->first + i),
		    "cannot be read");
	if (json_array_append_new(g->bad, v) != 0)
		return lpo_fail(g->cli->ctx, LPO_ENOMEM, "out of memory");
	return g->src->bad(g->src->arg, p->first + i, why);
}

/* The scorers' next pictures, as many as they take at once, into the table. */
static int
next_part(struct scoring *g)
{
	int64_t left = g->src->n - g->done;
	struct part p = { g, g->done };
	struct lpo_score_source src = { .arg = &p, .get = part_get,
	    .bad = g->src->bad != NULL ? part_bad : NULL,
	    .n = left < LPO_SCORER_SLOTS ? left : LPO_SCORER_SLOTS };
	size_t were = json_array_size(g->bad);
	struct lpo_scores one;
	int rc = lpo_scorers_run(g->set, &one, &src);

	if (rc == 0 && g->t.names == 0)
		rc = lpo_scores_new(g->cli->ctx, &g->t,
		    (const char *const *)one.name, one.names, g->src->n);
	if (rc == 0 && src.n > 0)
		memcpy(g->t.value + g->done * g->t.names, one.value,
		    (size_t)(src.n * one.names) * sizeof(double));
	lpo_scores_free(&one);
	if (rc == 0)
		g->done += src.n;
	while (rc < 0 && json_array_size(g->bad) > were)
		json_array_remove(g->bad, were);
	return rc;
}

/* A stop saves what there is. */
static int
built_in(struct scoring *g)
{
	const struct lpo_score_source *src = g->src;
	lpo_ctx *c = g->cli->ctx;
	int rc;

	do {
		rc = next_part(g);
		if (rc == LPO_ESTOP) {
			lpo_clear(c);
			rc = g->t.names > 0 ? save(g) : 0;
			return rc < 0 ? rc : lpo_fail(c, LPO_ESTOP, "stopped");
		}
		if (rc == 0 && src->progress != NULL)
			src->progress(src->arg, g->done);
		if (rc == 0 && (g->done == src->n ||
		    lpo_snap_due(g->snap, g->cli->o.checkpoint_s)))
			rc = save(g);
	} while (rc == 0 && g->done < src->n);
	return rc;
}

/* --------------------------------------------------------------- programs */

/* A scorer's first column, and how many it has; 0: not there. */
static int64_t
columns_of(const struct lpo_scores *t, int64_t *first, const char *name)
{
	size_t len = strlen(name);
	int64_t k, n = 0;

	for (k = t->names; k-- > 0; )
		if (strncmp(t->name[k], name, len) == 0 &&
		    t->name[k][len] == '.') {
			*first = k;
			n++;
		}
	return n;
}

static int
program(struct scoring *g, const struct eval_scorer *s, const char *tar,
    const char *const *key)
{
	struct lpo_scores one;
	int64_t first;
	int rc;

	if (columns_of(&g->t, &first, s->name) > 0)
		return 0;
	fflush(NULL);		/* the child must not print it again */
	rc = lpo_score_external(g->cli->ctx, &one, s->name, s->command, tar,
	    key, g->src->n);
	if (rc == 0)
		rc = lpo_scores_append(g->cli->ctx, &g->t, &one, 0,
		    one.names);
	lpo_scores_free(&one);
	return rc == 0 ? save(g) : rc;
}

/* ------------------------------------------------------------- all of them */

/* The programs, and everybody's columns as they were asked for. */
static int
all_columns(struct scoring *g, const struct eval_opts *o,
    struct lpo_scores *out, const char *tar, const char *const *key)
{
	struct eval_scorer s;
	int64_t first = 0, n;
	int i, k, rc = 0;

	for (k = 0; k < 2; k++)
		for (i = 0; i < o->scorer.n && rc == 0; i++) {
			if ((rc = eval_scorer_parse(g->cli, &s,
			    o->scorer.v[i])) != 0)
				break;
			if (k == 0 && s.cls == NULL)
				rc = program(g, &s, tar, key);
			else if (k == 1) {
				n = columns_of(&g->t, &first, s.name);
				rc = lpo_scores_append(g->cli->ctx, out,
				    &g->t, first, n);
			}
			eval_scorer_clear(&s);
		}
	return rc;
}

int
eval_score(lpo_cli *cli, const struct eval_opts *o, lpo_scorers *set,
    struct lpo_scores *out, const struct lpo_score_source *src,
    const char *tar, const char *const *key, const char *dir)
{
	struct scoring g = { .cli = cli, .set = set, .src = src,
	    .bad = json_array() };
	int rc;

	memset(out, 0, sizeof(*out));
	if (g.bad == NULL)
		return lpo_fail(cli->ctx, LPO_ENOMEM, "out of memory");
	if ((rc = restore(&g, dir)) == 0 && lpo_scorers_count(set) > 0 &&
	    (g.t.names == 0 || g.done < src->n))
		rc = built_in(&g);
	lpo_cli_progress_end(cli);
	if (rc == 0)
		rc = all_columns(&g, o, out, tar, key);
	scoring_clear(&g);
	if (rc != 0)
		lpo_scores_free(out);
	return rc;
}

/* -------------------------------------------------------- pictures of a tar */

struct tar_source {
	lpo_cli *cli;
	lpo_shard *tar;
	const char *path, *what;
	int64_t n;
};

static int
tar_get(void *arg, int64_t i, struct lpo_score_item *it)
{
	struct tar_source *t = arg;
	lpo_ctx *c = t->cli->ctx;
	struct lpo_sample s;
	const char *prompt;
	int k, rc;

	if ((rc = lpo_shard_get(c, &s, t->tar, i)) < 0)
		return rc;
	for (k = 0; k < s.n_members && it->bytes == NULL; k++)
		if (lpo_image_type(s.member[k].name) != NULL) {
			it->bytes = s.member[k].bytes;
			it->size = (size_t)s.member[k].size;
			s.member[k].bytes = NULL;
		}
	prompt = json_string_value(lpo_json_get(s.json, "prompt"));
	it->prompt = lpo_strdup(c, prompt != NULL ? prompt : "");
	it->name = lpo_asprintf(c, "%s: image '%s'", t->path, s.key);
	if (it->prompt == NULL || it->name == NULL)
		rc = LPO_ENOMEM;
	else if (it->bytes == NULL)
		rc = lpo_fail(c, LPO_EFORMAT, "%s: sample '%s' has no "
		    "picture", t->path, s.key);
	lpo_sample_clear(&s);
	return rc;
}

static void
tar_progress(void *arg, int64_t done)
{
	struct tar_source *t = arg;

	lpo_cli_progress(t->cli, t->what, done, t->n, "pictures", NULL);
}

int
eval_score_tar(lpo_cli *cli, const struct eval_opts *o, lpo_scorers *set,
    struct eval_system *s, lpo_shard *tar, const char *const *key, int64_t n,
    const char *dir)
{
	struct tar_source t = { cli, tar, s->tar, s->name, n };
	const struct lpo_score_source src = { .arg = &t, .n = n,
	    .get = tar_get, .progress = tar_progress };

	return eval_score(cli, o, set, &s->scores, &src, s->tar, key, dir);
}
