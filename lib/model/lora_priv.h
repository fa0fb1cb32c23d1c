/* For lora.c, lora_load.c and lora_names.c only. */
#ifndef LPO_MODEL_LORA_PRIV_H
#define LPO_MODEL_LORA_PRIV_H

#include "lib/model/lora.h"

#define LPO_LORA_NAME 256	/* bytes of a module's name, at most */

/* One adapted layer. */
struct lpo_lora_item {
	const struct lpo_unet_layer *at;
	lpo_lora lora;
	char *key[3];		/* down, up, alpha as read; NULL: none */
};

struct lpo_lora_set {
	lpo_ctx *ctx;
	lpo_unet *unet;
	lpo_params params;
	struct lpo_lora_item *item;
	int64_t n, cap;
};

/* A set without layers, with room for every layer of the UNet. */
int	 lpo_lora_new(lpo_ctx *, lpo_lora_set **, lpo_unet *);
/* Put a zero LoRA on a layer; *item stays where it is. */
int	 lpo_lora_put(lpo_lora_set *, struct lpo_lora_item **item,
	    const struct lpo_unet_layer *, int64_t rank, float scale);

/*
 * The LDM name, with dots, of a diffusers module path: down_blocks.1.
 * attentions.0.x -> input_blocks.4.1.x.  0, or -1 where there is none.
 */
int	 lpo_lora_ldm_path(char out[LPO_LORA_NAME],
	    const struct lpo_unet_config *, const char *path);
/* lora_unet_ + path with underscores; ldm: by its LDM name.  0 or -1. */
int	 lpo_lora_kohya_name(char out[LPO_LORA_NAME],
	    const struct lpo_unet_config *, const char *path, int ldm);

enum lpo_lora_role { LPO_LORA_DOWN, LPO_LORA_UP, LPO_LORA_ALPHA };
/*
 * A file's key taken apart: the module's name to out, the role as the value.
 * -1: not of a form we know.
 */
int	 lpo_lora_parse_key(char out[LPO_LORA_NAME], const char *key);

/* Names of all forms -> layer. */
struct lpo_lora_names;
int	 lpo_lora_names_new(lpo_ctx *, struct lpo_lora_names **, lpo_unet *);
void	 lpo_lora_names_free(struct lpo_lora_names *);
const struct lpo_unet_layer *lpo_lora_names_find(const struct lpo_lora_names *,
	    const char *name);

#endif
