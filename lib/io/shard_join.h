/* Parts of a long job as one shard. */
#ifndef LPO_IO_SHARD_JOIN_H
#define LPO_IO_SHARD_JOIN_H

#include "lib/io/shard.h"

/*
 * Write the samples of n shards, in order, to `out` under the run record
 * `run`, as shard 0 of 1: the bytes a single writer would have made.  Each
 * part is verified first.
 */
int	 lpo_shard_join(lpo_ctx *, const char *out, const json_t *run,
	    const char *const *parts, int64_t n);

#endif
