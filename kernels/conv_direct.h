/* Convolutions by plain loops, and the gradient of a bias. */
#ifndef LPO_CONV_DIRECT_H
#define LPO_CONV_DIRECT_H

#include "kernels/cuda.h"

/* Loops over `count`: so many blocks of CONV_THREADS, each again and again. */
enum { CONV_THREADS = 256 };

static inline unsigned
conv_blocks(int64_t count)
{
	int64_t b = (count + CONV_THREADS - 1) / CONV_THREADS;

	return (unsigned)(b < 65536 ? b : 65536);
}

int	cuda_conv_direct_fwd(struct cuda *, enum lpo_dtype dt, void *y,
	    const void *x, const void *w, const float *bias,
	    const void *residual, const struct lpo_conv_shape *);
int	cuda_conv_direct_bwd_data(struct cuda *, enum lpo_dtype dt, void *dx,
	    const void *dy, const void *w, const struct lpo_conv_shape *,
	    int add);
int	cuda_conv_direct_bwd_weight(struct cuda *, enum lpo_dtype dt,
	    float *dw, const void *dy, const void *x,
	    const struct lpo_conv_shape *);
/* db[co] += column sums of dy[m,co]; piece: scratch */
int	cuda_conv_column_sums(struct cuda *, enum lpo_dtype dt, float *db,
	    const void *dy, int64_t m, int64_t co, float *piece);
size_t	cuda_conv_column_sums_bytes(int64_t m, int64_t co);

#endif
