/*
 * What the CPU backend asks of oneDNN: bf16 products where the machine
 * multiplies bf16 natively.  onednn.c is the only file that knows its API.
 *
 * Every function here says by its arguments, never by the number of rows,
 * whether oneDNN does the work.
 */
#ifndef LPO_ONEDNN_H
#define LPO_ONEDNN_H

#include "kernels/kernel.h"

/* Called by lpo_cpu_open and lpo_cpu_close; be->priv is theirs. */
int	lpo_onednn_open(lpo_backend *);
void	lpo_onednn_close(lpo_backend *);

#endif
