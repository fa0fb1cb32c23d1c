/* Which pairs are used: the options of lpo-encode and lpo-pairs. */
#ifndef LPO_TOOLS_CLI_FILTER_H
#define LPO_TOOLS_CLI_FILTER_H

#include "lib/io/filter.h"
#include "tools/cli.h"

struct lpo_cli_filter {
	const char *filter, *mpcf_use, *where, *scores;
	int join_by_row, drop_ties;
};

/* Rows for a tool's table; `m` is the struct's member in type `t`. */
#define LPO_CLI_FILTER_ROWS(t, m) \
	{ "filter", 0, "NAME", "mpcf1, mpcf2, mpcf3 (paper's filters) or none", \
	  LPO_CLI_STRING, offsetof(t, m.filter), LPO_CLI_RESULT, 0, 0 }, \
	{ "mpcf-use", 0, "LIST", "only these criteria: aesthetic," \
	  "clipscore,vqascore", LPO_CLI_STRING, offsetof(t, m.mpcf_use), \
	  LPO_CLI_RESULT, 0, 0 }, \
	{ "where", 0, "SQL", "keep pairs for which the SQLite expression " \
	  "holds", LPO_CLI_STRING, offsetof(t, m.where), LPO_CLI_RESULT, \
	  0, 0 }, \
	{ "scores", 0, "FILE", "CSV with more columns, joined by id", \
	  LPO_CLI_STRING, offsetof(t, m.scores), 0, 0, 0 }, \
	{ "join-by-row", 0, NULL, "join --scores by row number", \
	  LPO_CLI_FLAG, offsetof(t, m.join_by_row), LPO_CLI_RESULT, 0, 0 }, \
	{ "drop-ties", 0, NULL, "leave out pairs nobody won", LPO_CLI_FLAG, \
	  offsetof(t, m.drop_ties), LPO_CLI_RESULT, 0, 0 }

/*
 * Open the filters; --scores becomes an input of the run.  LPO_CLI_USAGE,
 * said, for a name that is none.
 */
int	 lpo_cli_filter_open(lpo_cli *, lpo_filters **,
	    const struct lpo_cli_filter *);

#endif
