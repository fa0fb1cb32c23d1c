/* Inside of lpo-pairs: what its files share. */
#ifndef LPO_TOOLS_PAIRS_H
#define LPO_TOOLS_PAIRS_H

#include "lib/train/pairset.h"
#include "tools/cli.h"
#include "tools/cli_filter.h"

struct pairs_opts {
	struct lpo_cli_filter filter;
	const char *timesteps, *spool, *dump;
	int64_t epochs, compare, skip, limit, shuffle, per_shard;
	double noise_offset;
	int dtype, stats, in_order, allow_missing;
};

struct pairs_job {
	lpo_cli *cli;
	const struct pairs_opts *o;
	lpo_filters *filters;
	struct lpo_schedule schedule;
	struct lpo_pair_opts pair;
	int64_t *timesteps;
	lpo_pairset *set;		/* NULL: streaming */
	int64_t total;			/* output pairs */
	json_t *run;			/* __run__/run.json of the output */
	lpo_ctx **worker;		/* one per thread */
	int workers;
	lpo_shardw *out;
	int64_t done;
};

/* pairs_look.c: --stats, --dump, --dry-run (returns LPO_CLI_DONE) */
int	 lpo_pairstool_stats(struct pairs_job *);
int	 lpo_pairstool_dump(struct pairs_job *);
int	 lpo_pairstool_plan(struct pairs_job *);

#endif
