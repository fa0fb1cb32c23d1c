/*
 * LoRA on a UNet's layers: attach, initialise, read and write files in the
 * forms of ecosystem.md 3.3 and models.md 7.
 */
#ifndef LPO_MODEL_LORA_H
#define LPO_MODEL_LORA_H

#include "lib/model/unet.h"

enum lpo_lora_targets { LPO_LORA_ATTENTION, LPO_LORA_ALL };
enum lpo_lora_format { LPO_LORA_KOHYA, LPO_LORA_DIFFUSERS, LPO_LORA_BOTH };

typedef struct lpo_lora_set lpo_lora_set;

/*
 * New LoRA layers of one rank, scale alpha / rank, trainable (gradients and
 * moments exist).  A ~ N(0, 1/rank^2) by Philox (LPO_DRAW_INIT, item = index
 * of the layer in file order), B = 0.  The set is freed before the UNet.
 */
int	 lpo_lora_attach(lpo_ctx *, lpo_lora_set **, lpo_unet *,
	    enum lpo_lora_targets, int64_t rank, float alpha, uint64_t seed);
/* From a file of any form; strength multiplies the scale.  train: as above. */
int	 lpo_lora_load(lpo_ctx *, lpo_lora_set **, lpo_unet *,
	    const char *path, float strength, int train);
void	 lpo_lora_free(lpo_lora_set *);
lpo_params *lpo_lora_params(lpo_lora_set *);
int64_t	 lpo_lora_rank(const lpo_lora_set *);

/*
 * Write by temporary file and rename.  metadata: NULL-terminated key, value,
 * key, value ...; ss_* and modelspec entries are added here.
 * f32 0: f16 storage.
 */
int	 lpo_lora_save(lpo_ctx *, lpo_lora_set *, const char *path,
	    enum lpo_lora_format, int f32, const char *const *metadata);

/*
 * Walk over the tensors under the keys a file in `format` would have, f32 in
 * file layout; grad 1: gradients.  lpo-probe's "grad.KEY".
 */
int	 lpo_lora_each(lpo_ctx *, lpo_lora_set *, enum lpo_lora_format, int grad,
	    int (*fn)(void *arg, const char *key, int rank,
	    const int64_t *shape, const float *data), void *arg);

#endif
