/* lpo-pairs without tensors: counts, a table to look at, the plan. */
#include "lib/io/pairdump.h"
#include "tools/pairs.h"

static void
stat_line(struct pairs_job *j, const char *what, const char *name,
    int64_t before, int64_t after)
{
	if (j->cli->o.json)
		printf("{\"what\":\"%s\",\"name\":\"%s\",\"pairs_in\":%lld,"
		    "\"pairs_out\":%lld}\n", what, name, (long long)before,
		    (long long)after);
	else
		printf("%s\t%s\t%lld\t%lld\n", what, name, (long long)before,
		    (long long)after);
}

/*
 * Labels before the filters are counted by the set; after them from the facts
 * it keeps, so that no record is read twice.
 */
int
lpo_pairstool_stats(struct pairs_job *j)
{
	static const char *const label[3] = { "first", "second", "tie" };
	int64_t before[3], after[3] = { 0, 0, 0 }, i, k, t[2], cross = 0;
	int64_t *count;
	char name[32];

	count = lpo_alloc(j->cli->ctx, (size_t)j->pair.n_timesteps,
	    sizeof *count);
	if (count == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < j->total; i++) {
		struct lpo_pair_pick p;
		struct lpo_pair_fact f;

		lpo_pairset_pick(j->set, &p, j->o->skip + i, j->pair.seed,
		    !j->o->in_order);
		lpo_pairset_fact(j->set, &f, p.item);
		lpo_pair_timesteps(&j->pair, t, (uint32_t)f.row, p.epoch,
		    f.cross);
		cross += f.cross;
		if (!f.cross)
			after[f.tie ? 2 : !f.first_wins]++;
		for (k = 0; k < j->pair.n_timesteps; k++)
			count[k] += t[0] == j->pair.timesteps[k];
	}
	if (!j->cli->o.json)
		printf("what\tname\tpairs_in\tpairs_out\n");
	for (i = 0; i < lpo_filter_stages(j->filters); i++) {
		const struct lpo_filter_stage *s =
		    lpo_filter_stage_at(j->filters, (int)i);

		stat_line(j, "filter", s->name, s->pairs_in, s->pairs_out);
		stat_line(j, "filter-ties", s->name, s->ties_in, s->ties_out);
	}
	lpo_pairset_labels(j->set, before);
	for (i = 0; i < 3; i++)
		stat_line(j, "label", label[i], before[i], after[i]);
	if (j->pair.interval > 0)
		stat_line(j, "label", "cross-timestep", 0, cross);
	stat_line(j, "output", "pairs", lpo_pairset_rows(j->set), j->total);
	for (k = 0; k < j->pair.n_timesteps; k++) {
		snprintf(name, sizeof name, "%lld",
		    (long long)j->pair.timesteps[k]);
		stat_line(j, "timestep", name, j->total, count[k]);
	}
	lpo_free(count);
	return 0;
}

int
lpo_pairstool_dump(struct pairs_job *j)
{
	lpo_ctx *c = j->cli->ctx;
	lpo_pairdump *d = NULL;
	struct lpo_record r;
	int64_t i, t[2];
	int rc;

	if ((rc = lpo_pairdump_open(c, &d, j->o->dump)) != 0)
		return rc;
	for (i = 0; i < j->total && rc == 0; i++) {
		struct lpo_pair_pick p;
		struct lpo_pair_fact f;

		lpo_pairset_pick(j->set, &p, j->o->skip + i, j->pair.seed,
		    !j->o->in_order);
		lpo_pairset_fact(j->set, &f, p.item);
		rc = lpo_pairset_record(c, &r, j->set, p.item);
		if (rc == 0) {
			lpo_pair_timesteps(&j->pair, t, (uint32_t)r.row,
			    p.epoch, f.cross);
			lpo_pair_relabel(&r, t, p.epoch, f.cross);
			rc = lpo_pairdump_put(d, &r, t[0], t[1], p.epoch);
		}
		lpo_record_clear(&r);
		lpo_cli_progress(j->cli, "dump", i + 1, j->total, "pairs",
		    NULL);
		if (rc == 0 && lpo_ctx_stopped(c))
			rc = LPO_ESTOP;
	}
	if (rc != 0) {
		lpo_pairdump_abort(d);
		return rc;
	}
	return lpo_pairdump_finish(d);
}

int
lpo_pairstool_plan(struct pairs_job *j)
{
	int look = j->o->stats || j->o->dump != NULL;
	lpo_cli *cli = j->cli;
	int64_t shape[3], bytes;
	int rc;

	if ((rc = lpo_pairset_shape(cli->ctx, shape, j->set)) != 0)
		return rc;
	bytes = 2 * shape[0] / 2 * shape[1] * shape[2] *
	    (j->pair.dtype == LPO_NPY_F4 ? 4 : 2);
	if (!look)
		lpo_cli_plan(cli, "run", "%s", lpo_cli_run(cli));
	lpo_cli_plan(cli, "rows", "%lld",
	    (long long)lpo_pairset_rows(j->set));
	lpo_cli_plan(cli, "items after filters", "%lld",
	    (long long)lpo_pairset_items(j->set));
	lpo_cli_plan(cli, "epochs", "%lld", (long long)j->o->epochs);
	lpo_cli_plan(cli, "output pairs", "%lld", (long long)j->total);
	if (look)
		return LPO_CLI_DONE;
	lpo_cli_plan(cli, "latent", "%lldx%lldx%lld", (long long)shape[0] / 2,
	    (long long)shape[1], (long long)shape[2]);
	lpo_cli_plan(cli, "output bytes", "%lld",
	    (long long)(j->total * (bytes + 3072)));
	return LPO_CLI_DONE;
}
