/*
 * The fields of pairs as an SQLite table `pair`, to be looked at: no tensors,
 * every further column of the input under its own name.
 */
#ifndef LPO_IO_PAIRDUMP_H
#define LPO_IO_PAIRDUMP_H

#include "lib/base/ctx.h"
#include "lib/io/record.h"

typedef struct lpo_pairdump lpo_pairdump;

/* Written beside its place and renamed; whatever is at path is replaced. */
int	 lpo_pairdump_open(lpo_ctx *, lpo_pairdump **, const char *path);
/* rec->key is the pair's; columns seen for the first time are added. */
int	 lpo_pairdump_put(lpo_pairdump *, const struct lpo_record *rec,
	    int64_t timestep_0, int64_t timestep_1, int64_t epoch);
/* Publish; the handle is gone whatever the result. */
int	 lpo_pairdump_finish(lpo_pairdump *);
void	 lpo_pairdump_abort(lpo_pairdump *);	/* NULL is fine */

#endif
