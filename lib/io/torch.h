/*
 * Writing what torch.load() reads (spec/models.md 8).  Reading is
 * lpo_st_open()'s.
 */
#ifndef LPO_IO_TORCH_H
#define LPO_IO_TORCH_H

#include "lib/base/ctx.h"

/*
 * dict[outer][inner] = an f32 tensor, or with inner NULL dict[outer] = the
 * Python float data[0].  Items of one outer key are adjacent.
 */
struct lpo_torch_item {
	const char *outer, *inner;
	int ndim;
	const int64_t *shape;
	const float *data;
};

/*
 * A zip with a pickle of protocol 2, which weights_only=True takes too, by
 * temporary file and rename.  The same content gives the same bytes.
 * LPO_EINVAL: more than 2^31 elements in a tensor, or 4 GiB in all.
 */
int	 lpo_torch_write(lpo_ctx *, const char *path,
	    const struct lpo_torch_item *, int n);

#endif
