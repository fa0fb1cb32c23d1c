/*
 * config.json of a CLIPModel folder: both towers' fields in one file, in two
 * generations of it.
 */
#ifndef LPO_MODEL_CLIP_JOINT_H
#define LPO_MODEL_CLIP_JOINT_H

#include <jansson.h>

#include "lib/base/ctx.h"

/*
 * The fields of tower `which`, "text_config" or "vision_config", as
 * transformers understands DIR/config.json: where WHICH_dict is there too
 * (older files) its values count, and what it leaves out has its default;
 * projection_dim is the whole model's.  Nulls and what every transformers
 * config may carry without meaning are taken out.  *sub: the caller's
 * (json_decref).  LPO_EFORMAT: no "clip" model, or a field at the top that
 * this code does not know how to take, by its name.
 */
int	 lpo_clip_joint_config(lpo_ctx *, json_t **sub, const char *dir,
	    const char *which);

#endif
