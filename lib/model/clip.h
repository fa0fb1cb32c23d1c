/*
 * CLIPTextModel and CLIPTextModelWithProjection (models.md 3), generic over
 * config.json.  Keys with and without the "text_model." prefix are read.
 */
#ifndef LPO_MODEL_CLIP_H
#define LPO_MODEL_CLIP_H

#include "lib/model/clip_layer.h"

struct lpo_clip_config {
	struct lpo_clip_shape shape;
	int64_t projection, vocab, max_positions;
	int64_t eos_token_id;	/* config's value; 2 = legacy argmax rule */
	int has_projection;	/* CLIPTextModelWithProjection */
};

typedef struct lpo_clip lpo_clip;

/* lpo_backend NULL: parameters without values (lpo_params_init) */
int	 lpo_clip_load(lpo_ctx *, lpo_backend *, lpo_clip **, const char *dir,
	    enum lpo_dtype);
/* The text tower and projection of a CLIPModel folder (models.md 9.2). */
int	 lpo_clip_load_joint(lpo_ctx *, lpo_backend *, lpo_clip **,
	    const char *dir, enum lpo_dtype);
void	 lpo_clip_free(lpo_clip *);
const struct lpo_clip_config *lpo_clip_cfg(const lpo_clip *);
lpo_params *lpo_clip_params(lpo_clip *);
const char *lpo_clip_config_json(const lpo_clip *);
/* Other spellings of keys, for lpo_weights_open(). */
int	 lpo_clip_rename_key(char *out, size_t cap, const char *key);

struct lpo_clip_out {
	lpo_var *last_hidden;	/* [n, l, 1, hidden], after the final norm */
	lpo_var *penultimate;	/* [n, l, 1, hidden], no norm */
	lpo_var *pooled;	/* [n, 1, 1, hidden] at the EOS position */
	lpo_var *projected;	/* [n, 1, 1, projection] or NULL */
};
/*
 * ids I32 [n, l, 1, 1]; eos I32 [n, 1, 1, 1] holds i*l + position of row i's
 * EOS (lpo_clip_eos); NULL: pooled and projected are not wanted.
 */
void	 lpo_clip_fwd(lpo_tape *, lpo_clip *, lpo_var *ids, lpo_var *eos,
	    struct lpo_clip_out *);
/* LPO_EINVAL where one of ids[n] is none of the vocabulary's. */
int	 lpo_clip_check_ids(lpo_ctx *, const lpo_clip *, const int32_t *ids,
	    int64_t n);
/* Position of the pooled token among ids[0..l-1] (models.md 3.4). */
int64_t	 lpo_clip_eos(const lpo_clip *, const int32_t *ids, int64_t l);

#endif
