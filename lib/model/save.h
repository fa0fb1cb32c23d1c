/*
 * A model written as a diffusers folder: model_index.json, configs, scheduler,
 * tokenizers as they are, one safetensors file per network under the keys and
 * shapes of today.
 */
#ifndef LPO_MODEL_SAVE_H
#define LPO_MODEL_SAVE_H

#include "kernels/kernel.h"
#include "lib/base/ctx.h"

/*
 * from: a folder, or random:KIND; to: a folder that appears whole or not at
 * all, and replaces one that is there only if `replace`.  storage: F32, F16
 * or BF16.  Weights pass through a few MB of memory.  *bytes: of the weights;
 * may be NULL.
 */
int	 lpo_model_save(lpo_ctx *, const char *from, const char *to,
	    enum lpo_dtype storage, int replace, int threads, int64_t *bytes);

#endif
