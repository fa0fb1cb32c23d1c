/*
 * A model written as a diffusers folder: model_index.json, configs, scheduler,
 * tokenizers as they are, one safetensors file per network under the keys and
 * shapes of today.
 */
#ifndef LPO_MODEL_SAVE_H
#define LPO_MODEL_SAVE_H

#include "kernels/kernel.h"
#include "lib/base/ctx.h"

enum {				/* networks, or-ed */
	LPO_MODEL_UNET = 1, LPO_MODEL_VAE = 2, LPO_MODEL_TEXT = 4,
	LPO_MODEL_ALL = 7
};

/*
 * from: a folder, or random:KIND; to: a folder that appears whole or not at
 * all, and replaces one that is there only if `replace`.  storage: F32, F16
 * or BF16; parts: the networks whose weights are written (the small files are
 * always).  Weights pass through a few MB of memory.  *bytes: of the weights;
 * may be NULL.
 */
int	 lpo_model_save(lpo_ctx *, const char *from, const char *to,
	    enum lpo_dtype storage, int parts, int replace, int threads,
	    int64_t *bytes);

#endif
