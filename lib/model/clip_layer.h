/*
 * The layer that CLIP's text and vision towers share (models.md 3.2, 9.2):
 * pre-norm attention and MLP, a causal mask or none.
 */
#ifndef LPO_MODEL_CLIP_LAYER_H
#define LPO_MODEL_CLIP_LAYER_H

#include <jansson.h>

#include "lib/model/weights.h"
#include "lib/nn/tape.h"

#define LPO_CLIP_MAX_LAYERS 128

/* The part of a tower's config.json that its layers are made of. */
struct lpo_clip_shape {
	int64_t hidden, intermediate, layers, heads;
	enum lpo_act act;
	float eps;
};

struct lpo_clip_layer {
	lpo_norm_layer norm1, norm2;
	lpo_linear_layer q, k, v, out, fc1, fc2;
};

/*
 * hidden_size and its like; absent fields have the value in *g (hidden,
 * intermediate, layers, heads).  LPO_EFORMAT by the field's name.
 */
int	 lpo_clip_shape_read(lpo_ctx *, struct lpo_clip_shape *g,
	    const json_t *config);
/* PREFIX.encoder.layers.I.* */
void	 lpo_clip_layer_load(lpo_weights *, struct lpo_clip_layer *,
	    const struct lpo_clip_shape *, const char *prefix, int64_t i);
/* x [n, l, 1, hidden] -> the same */
lpo_var	*lpo_clip_layer_fwd(lpo_tape *, const struct lpo_clip_layer *,
	    const struct lpo_clip_shape *, lpo_var *x, int causal);

#endif
