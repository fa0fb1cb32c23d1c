/*
 * Saved state of an interrupted run: the folder PATH.state beside an output
 * (spec/cli.md section 1, Resume).  It holds a lock, run.json (run id and the
 * options that change the result), and whatever the tool keeps there.
 */
#ifndef LPO_BASE_STATE_H
#define LPO_BASE_STATE_H

#include <jansson.h>

#include "lib/base/ctx.h"

typedef struct lpo_state lpo_state;

/*
 * PATH.state for an output: trailing slashes go, of a shard pattern the text
 * before '%' counts ("enc-%06d.tar" -> "enc-.state").  lpo_free() it.
 */
char	*lpo_state_path(lpo_ctx *, const char *output);

/*
 * Make or find the state of `output`, locked.  State of another run is
 * LPO_EINVAL naming the options that differ; with `fresh` any old state is
 * discarded.  LPO_EINVAL also when another process has it.  What killed
 * writers left beside the output and in the state is removed, as is what is
 * left of a state whose removal was killed.
 */
int	 lpo_state_open(lpo_ctx *, lpo_state **, const char *output,
	    const char *run, const json_t *options, int fresh);
/*
 * The lock alone, for an output of which nothing is saved; what an earlier
 * run saved there stays, whether it ends by lpo_state_close() or _remove().
 */
int	 lpo_state_lock(lpo_ctx *, lpo_state **, const char *output);
const char *lpo_state_dir(const lpo_state *);
int	 lpo_state_found(const lpo_state *);	/* 1: an earlier attempt's */
/* state/NAME; lpo_free() it. */
char	*lpo_state_file(lpo_ctx *, const lpo_state *, const char *name);
void	 lpo_state_close(lpo_state *);		/* keep it; NULL is fine */
int	 lpo_state_remove(lpo_state *);		/* success: remove and close */
/* Removed where rc is 0, else kept; rc, or why it cannot be removed. */
int	 lpo_state_end(lpo_state *, int rc);	/* NULL is fine */

#endif
