/*
 * .npy version 1, little-endian, C order: from memory and to memory.
 */
#ifndef LPO_IO_NPY_H
#define LPO_IO_NPY_H

#include <stdint.h>

#include "lib/base/ctx.h"

#define LPO_NPY_DIMS 8

enum lpo_npy_type {		/* '<f2' '<f4' '<f8' '<i8' '<i4' '<u4' */
	LPO_NPY_F2, LPO_NPY_F4, LPO_NPY_F8, LPO_NPY_I8, LPO_NPY_I4, LPO_NPY_U4
};

struct lpo_npy {
	enum lpo_npy_type type;
	int ndim;
	int64_t shape[LPO_NPY_DIMS];
	int64_t count, bytes;
	const void *data;	/* into the input; may be misaligned */
};

/* `name` is for messages.  Anything else than the above: LPO_EFORMAT. */
int	 lpo_npy_parse(lpo_ctx *, struct lpo_npy *, const void *, size_t bytes,
	    const char *name);
/* All elements as f32; dst has room for a->count. */
void	 lpo_npy_f32(float *dst, const struct lpo_npy *a);
void	 lpo_npy_i64(int64_t *dst, const struct lpo_npy *a);	/* i and u */

/* A whole .npy in *out (lpo_free() it); data has the given type. */
int	 lpo_npy_make(lpo_ctx *, uint8_t **out, int64_t *bytes,
	    enum lpo_npy_type, int ndim, const int64_t *shape,
	    const void *data);
/*
 * From f32, stored as F2 or F4.  A value that is not finite or overflows f2
 * is LPO_EFORMAT.
 */
int	 lpo_npy_make_f32(lpo_ctx *, uint8_t **out, int64_t *bytes,
	    enum lpo_npy_type, int ndim, const int64_t *shape,
	    const float *data);

#endif
