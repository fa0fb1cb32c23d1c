/* Shared by cli.c (options, words) and cli_run.c (the life of a run). */
#ifndef LPO_TOOLS_CLI_PRIV_H
#define LPO_TOOLS_CLI_PRIV_H

#include "tools/cli.h"

#define CLI_MAX_OPTIONS 128

struct lpo_cli_priv {
	/* common rows, then the tool's; and where each row's value lives */
	const struct lpo_cli_option *row[CLI_MAX_OPTIONS];
	void *base[CLI_MAX_OPTIONS];
	int given[CLI_MAX_OPTIONS];
	int rows;
	char **argv;		/* the whole command line, for provenance */
	int argc;

	/* progress */
	int tty;		/* stderr is a terminal */
	int line_open;		/* an unfinished progress line stands there */
	double started, printed;
	int64_t first;		/* `done` of the first call: a resumed run */
	char what[64];

	struct lpo_cli_run *run;	/* cli_run.c's own */
	int be_open;
};

/* cli_run.c */
void	 lpo_cli_run_end(lpo_cli *, int status);

#endif
