/*
 * Weights under training, with AdamW's moments, as blobs of a snapshot: some
 * parameters a blob, so that no second copy of a large model is ever in
 * memory.  The caller begins and commits the snapshot.
 */
#ifndef LPO_TRAIN_PARAM_STATE_H
#define LPO_TRAIN_PARAM_STATE_H

#include "lib/nn/param.h"
#include "lib/base/snapshot.h"

/* Blobs NAME-0000, NAME-0001, ... of all trainable parameters, in order. */
int	 lpo_param_state_save(lpo_params *, lpo_snap *, const char *name);
int	 lpo_param_state_restore(lpo_params *, lpo_snap *, const char *name);
/* Bytes of memory that takes: the largest blob. */
int64_t	 lpo_param_state_bytes(const lpo_params *);

#endif
