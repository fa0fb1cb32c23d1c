/* Between philox.c and its wide form: normals of several blocks at once. */
#ifndef LPO_BASE_PHILOX_PRIV_H
#define LPO_BASE_PHILOX_PRIV_H

#include "lib/base/philox.h"

#define LPO_NORMAL_BLOCKS 16

/*
 * out[4 i + k], i < LPO_NORMAL_BLOCKS: normal k of block `block` + i.  Both
 * give the same bits; the second only where lpo_philox_has_avx2().
 */
void	 lpo_normal_blocks(float *out, const struct lpo_draw *,
	    uint64_t block);
void	 lpo_normal_blocks_avx2(float *out, const struct lpo_draw *,
	    uint64_t block);
int	 lpo_philox_has_avx2(void);

#endif
