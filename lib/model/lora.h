/*
 * LoRA on a UNet's layers: attach, initialise, read and write files in the
 * forms of ecosystem.md 3.3 and models.md 7.
 */
#ifndef LPO_MODEL_LORA_H
#define LPO_MODEL_LORA_H

#include "lib/model/unet.h"

/*
 * ATTENTION: to_q, to_k, to_v, to_out.0 of every attention.  ALL: besides
 * these feed-forward, proj_in/out, conv1, conv2, conv_shortcut, down- and
 * upsamplers; not time_emb_proj, conv_in, conv_out and the embeddings, which
 * are still read from files that have them.
 */
enum lpo_lora_targets { LPO_LORA_ATTENTION, LPO_LORA_ALL };
/*
 * KOHYA: lora_unet_..., with LDM block names for SDXL, explicit .alpha.
 * DIFFUSERS: unet. ... .lora.down.weight; readers take alpha = rank, so the
 * scale is folded into the up matrices.  BOTH: one file with both.
 * AS_READ (lpo_lora_each only): the keys of the file it was loaded from.
 */
enum lpo_lora_format {
	LPO_LORA_KOHYA, LPO_LORA_DIFFUSERS, LPO_LORA_BOTH, LPO_LORA_AS_READ
};

typedef struct lpo_lora_set lpo_lora_set;

/*
 * New LoRA layers of one rank, scale alpha / rank, trainable (gradients and
 * moments exist).  A ~ N(0, 1/rank^2) by Philox (LPO_DRAW_INIT, item = index
 * of the layer in file order), B = 0.  The set is freed before the UNet.
 */
int	 lpo_lora_attach(lpo_ctx *, lpo_lora_set **, lpo_unet *,
	    enum lpo_lora_targets, int64_t rank, float alpha, uint64_t seed);
/*
 * From a file of any form: kohya (diffusers or LDM names, .alpha), PEFT
 * lora_A/lora_B, lora.down/lora.up, attn.processor.to_q_lora.  strength
 * multiplies the scale.  train: as above.  Without an alpha (.alpha, the
 * metadata's lora_adapter_metadata, or adapter_config.json beside a PEFT
 * file) the scale is 1.  LPO_EFORMAT, by key: a layer this UNet lacks, a shape
 * that doesn't fit, half a pair, DoRA, LoHa and the like; text encoder layers
 * are a notice.
 */
int	 lpo_lora_load(lpo_ctx *, lpo_lora_set **, lpo_unet *,
	    const char *path, float strength, int train);
void	 lpo_lora_free(lpo_lora_set *);
/*
 * In file order; keys PATH.lora_A.weight, PATH.lora_B.weight.
 */
lpo_params *lpo_lora_params(lpo_lora_set *);
int64_t	 lpo_lora_rank(const lpo_lora_set *);	/* the largest */
struct lpo_lora_shape {
	int64_t layers, others;		/* others: not of an attention */
	int64_t rank_min, rank_max;
	double alpha_min, alpha_max;
};
void	 lpo_lora_shape(const lpo_lora_set *, struct lpo_lora_shape *);

/*
 * Write by temporary file and rename.  metadata: NULL-terminated key, value,
 * key, value ... (or NULL); format, ss_* and modelspec.* entries that are not
 * in it are added.  f32 0: f16 storage (alphas are always f32); a value that
 * f16 cannot hold is LPO_EINVAL.
 */
int	 lpo_lora_save(lpo_ctx *, lpo_lora_set *, const char *path,
	    enum lpo_lora_format, int f32, const char *const *metadata);

/*
 * Walk over the tensors under the keys a file in `format` would have, f32 in
 * file layout; grad 1: gradients (and no alphas).  lpo-probe's "grad.KEY".
 * Stops at the first negative value of fn and returns it.
 */
int	 lpo_lora_each(lpo_ctx *, lpo_lora_set *, enum lpo_lora_format, int grad,
	    int (*fn)(void *arg, const char *key, int rank,
	    const int64_t *shape, const float *data), void *arg);

#endif
