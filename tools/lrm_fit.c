/* lpo-lrm: micro-batch and segments that fit into memory, before loading. */
#include <stdio.h>
#include <string.h>

#include "tools/lrm.h"

static const char *const words[] = { "auto", "on", "off" };

/* The largest blob of a saved state. */
static int64_t
saving(lpo_lrm *m)
{
	struct lpo_lrm_set set[4];
	int i, n = lpo_lrm_sets(m, set);
	int64_t most = 0, one;

	for (i = 0; i < n; i++) {
		one = lpo_param_state_bytes(set[i].params);
		most = one > most ? one : most;
	}
	return most;
}

static int
make(void *arg, size_t room)
{
	struct lrm_run *r = arg;
	lpo_lrm *m = r->plan_m;
	int rc;

	r->t.memory_bytes = room;
	if ((rc = lpo_lrm_trainer_new(r->cli->ctx, &r->plan, m, &r->t)) < 0 ||
	    (rc = lpo_lrm_trainer_commit(r->plan)) < 0)
		return rc;
	/* a state is saved blob by blob, when nothing else needs room */
	lpo_memory_add(saving(m));
	lpo_memory_add(-saving(m));
	if (r->eval == NULL)
		return 0;
	return lpo_lrm_batch_try(r->cli->ctx, m, r->shape,
	    lpo_lrm_batch_count(r->eval));
}

static size_t
unmake(void *arg)
{
	struct lrm_run *r = arg;
	struct lpo_lrm_train_plan p;

	lpo_lrm_trainer_plan(r->plan, &p);
	lpo_lrm_trainer_free(r->plan);
	r->plan = NULL;
	return p.arena_bytes;
}

/* It does not fit with one pair at a time: what it needs, what would fit. */
static int
refuse(struct lrm_run *r)
{
	struct lpo_cli_dry *d = &r->dry;
	int given = r->t.segments == LPO_SEGMENTS_OFF, rc;
	char parts[192], ways[256] = "";
	struct lpo_lrm_train_plan p;
	int64_t need, text = 0;
	struct lpo_lrm_set set[4];
	int i, n;
	size_t at = 0;

	lpo_clear(r->cli->ctx);
	lpo_lrm_trainer_free(r->plan);
	r->plan = NULL;
	lpo_cli_dry_phase(d, 0);
	r->t.micro_batch = 1;
	r->t.segments = given ? LPO_SEGMENTS_OFF : LPO_SEGMENTS_ON;
	if ((rc = make(r, 0)) < 0)
		return rc;
	need = lpo_cli_dry_over(d) + d->limit;
	lpo_lrm_trainer_plan(r->plan, &p);
	snprintf(parts, sizeof(parts), "weights %zu, gradients and optimiser "
	    "%zu, activations of one pair %zu MiB", p.weight_bytes >> 20,
	    p.state_bytes >> 20, p.arena_bytes >> 20);
	n = lpo_lrm_sets(r->plan_m, set);
	for (i = 0; i < n; i++)
		if (strncmp(set[i].name, "text", 4) == 0)
			text += set[i].params->bytes;
	if (given)
		at = (size_t)snprintf(ways, sizeof(ways), "--segments on");
	/* frozen, an encoder has weights only: a quarter in f32 */
	if (!r->o->freeze && need - text * 3 / 4 <= d->limit)
		snprintf(ways + at, sizeof(ways) - at, "%s--freeze-text",
		    at ? ", " : "");
	return lpo_cli_refuse(r->cli, d, need, parts, ways);
}

/* 1: as the attempt before had it; 0: to be chosen (train_fit.c's rule). */
static int
recalled(struct lrm_run *r)
{
	const struct lpo_lrm_train_opts asked = r->t;
	int host = r->dry.dry.host, same, rc = 0;
	lpo_cli *cli = r->cli;
	const char *s;
	int64_t pairs;
	json_t *j;

	if (r->state == NULL || (rc = lpo_cli_recall(cli, r->state, &j)) < 0 ||
	    j == NULL)
		return rc;
	pairs = json_integer_value(json_object_get(j, "pairs"));
	s = json_string_value(json_object_get(j, "segments"));
	r->t.segments = s != NULL && strcmp(s, "on") == 0 ? LPO_SEGMENTS_ON :
	    LPO_SEGMENTS_OFF;
	r->t.micro_batch = pairs;
	json_decref(j);
	if (pairs < 1)
		return lpo_fail(cli->ctx, LPO_EFORMAT, "the saved state's "
		    "plan makes no sense (--fresh discards it)");
	same = (asked.micro_batch == 0 || asked.micro_batch == pairs ||
	    (!host && asked.micro_batch > pairs)) &&
	    (asked.segments == LPO_SEGMENTS_AUTO ||
	    asked.segments == r->t.segments);
	lpo_cli_dry_phase(&r->dry, 1);
	if (same && ((rc = make(r, 0)) < 0 ||
	    lpo_cli_dry_over(&r->dry) <= 0))
		return rc < 0 ? rc : 1;
	if (!host)
		return lpo_fail(cli->ctx, LPO_EINVAL, "this run was begun "
		    "with --micro-batch %lld --segments %s, and on a device "
		    "its last bits depend on it: %s, or begin again with "
		    "--fresh", (long long)pairs, words[r->t.segments], same ?
		    "free some memory, it does not fit now" :
		    "go on with these");
	if (same)
		unmake(r);
	lpo_cli_dry_phase(&r->dry, 0);
	r->t = asked;
	return 0;
}

static int
remember(struct lrm_run *r)
{
	json_t *j;
	int rc;

	if (r->state == NULL)
		return 0;
	j = json_pack("{sI ss}", "pairs", (json_int_t)r->t.micro_batch,
	    "segments", words[r->t.segments]);
	rc = j == NULL ? lpo_fail(r->cli->ctx, LPO_ENOMEM, "out of memory") :
	    lpo_cli_remember(r->cli, r->state, j);
	json_decref(j);
	return rc;
}

static int
fit(struct lrm_run *r)
{
	struct lpo_lrm_train_plan p;
	size_t room;
	int rc;

	if ((rc = recalled(r)) != 0)
		return rc < 0 ? rc : 0;
	rc = lpo_cli_dry_fit(&r->dry, &room, make, unmake, r);
	if (rc == 1 || rc == LPO_ENOMEM)
		return refuse(r);
	if (rc < 0)
		return rc;
	lpo_lrm_trainer_plan(r->plan, &p);
	r->t.micro_batch = p.micro_batch;
	r->t.segments = p.segments;
	return remember(r);
}

int
lpo_lrmtool_fit(struct lrm_run *r, const struct lpo_lrm_config *cfg)
{
	lpo_cli *cli = r->cli;
	int rc;

	lpo_cli_dry_begin(cli, &r->dry);
	if ((rc = lpo_lrm_new(cli->ctx, &r->dry.dry.be, &r->plan_m,
	    cli->o.model, lpo_cli_precision(cli), cfg, r->o->projection,
	    cli->o.seed)) == 0 &&
	    (rc = lpo_lrm_prepare(r->plan_m, r->o->freeze)) == 0)
		rc = fit(r);
	lpo_cli_dry_end(cli);
	r->t.memory_bytes = 0;
	if (rc == 0 && !cli->o.dry_run)
		lpo_lrmtool_unfit(r);
	return rc;
}

void
lpo_lrmtool_unfit(struct lrm_run *r)
{
	lpo_lrm_trainer_free(r->plan);
	lpo_lrm_free(r->plan_m);
	r->plan = NULL;
	r->plan_m = NULL;
}
