/*
 * A backend that computes nothing and holds nothing: it counts.  Models are
 * opened, tapes planned and committed on it as on the real one, and what they
 * would take is known without a weight read.  How long a walk would take is
 * found by walking a part of it (lpo_tape_time).  A walk itself does nothing;
 * a download leaves zeros.
 */
#ifndef LPO_NN_DRY_H
#define LPO_NN_DRY_H

#include "kernels/kernel.h"

struct lpo_dry {
	lpo_backend be;		/* to be given to whatever is planned */
	struct lpo_kernels k;
	int host;		/* its memory is the host's (ctx.h counts it) */
	int64_t bytes, peak;	/* device memory: now, and the most so far */
	/* its own */
	const struct lpo_kernels *real;
	struct lpo_dry_block *block;
	int64_t n, cap;
	int promised;
};

/* As `real` but for all that; real outlives it. */
void	 lpo_dry_open(struct lpo_dry *, const lpo_backend *real);
int	 lpo_dry_is(const lpo_backend *);
/*
 * The kernels that could work on its memory, all of it zeros, to see how long
 * they take; NULL: not there (a device's memory).
 */
const struct lpo_kernels *lpo_dry_real(const lpo_backend *);

#endif
