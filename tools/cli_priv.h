/* Inside of cli*.c. */
#ifndef LPO_TOOLS_CLI_PRIV_H
#define LPO_TOOLS_CLI_PRIV_H

#include <signal.h>

#include "kernels/plugin.h"
#include "lib/base/progress.h"
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
	struct lpo_progress progress;
	char what[64];		/* its own copy; "": none yet */
	double begun_s;

	struct lpo_cli_run *run;	/* cli_run.c's own */
	int lost;			/* ... a value, without memory */
	int be_open;
	int deaf;		/* notices are dropped for now */

	/* of --device cuda */
	struct lpo_device device;
	char where[160], level[32], library[160];
};

/* cli_opt.c */
extern const struct lpo_cli_option lpo_cli_common_rows[];
int	 lpo_cli_add_rows(lpo_cli *, const struct lpo_cli_option *,
	    void *base);
int	 lpo_cli_parse(lpo_cli *, int argc, char **argv);
int	 lpo_cli_help(const lpo_cli *);

/* cli_device.c: of the open backend; "avx512", "sm_90" */
int	 lpo_cli_on_cuda(const lpo_cli *);
const char *lpo_cli_level(const lpo_cli *);
const char *lpo_cli_library(const lpo_cli *);

/* cli_io.c: the status line, for lpo_ctx_on_ask() */
void	 lpo_cli_answer(void *cli);

/* cli.c: SIGUSR2 sets it, the status line clears it */
extern volatile sig_atomic_t lpo_cli_status_flag;

/* cli_run.c: the status, 1 where a finished run's last rows are not stored */
int	 lpo_cli_run_end(lpo_cli *, int status);

#endif
