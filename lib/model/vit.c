/* The CLIP vision tower. */
#include "lib/model/vit.h"

#include "lib/base/json.h"
#include "lib/model/clip_joint.h"
#include "lib/model/config.h"

#define EMBED "vision_model.embeddings."

struct lpo_vit {
	lpo_ctx *ctx;
	struct lpo_vit_config cfg;
	struct lpo_pool names;
	lpo_params params;
	lpo_param *cls, *position, *scale;
	lpo_conv_layer patch;
	lpo_norm_layer pre_norm, post_norm;
	struct lpo_clip_layer *layer;
	lpo_linear_layer projection;
};

static const struct lpo_config_field fields[] = {
	{ "model_type", "\"clip_vision_model\"" }, { "hidden_size", NULL },
	{ "intermediate_size", NULL }, { "projection_dim", NULL },
	{ "num_hidden_layers", NULL }, { "num_attention_heads", NULL },
	{ "num_channels", "3" }, { "image_size", NULL },
	{ "patch_size", NULL }, { "hidden_act", NULL },
	{ "layer_norm_eps", NULL }, { "attention_dropout", NULL },
	{ "dropout", NULL }, { "initializer_range", NULL },
	{ "initializer_factor", NULL }, { "bos_token_id", NULL },
	{ "eos_token_id", NULL }, { "pad_token_id", NULL },
	{ "torch_dtype", NULL }, { "dtype", NULL },
	{ "transformers_version", NULL }, { NULL, NULL }
};

/* One number, or two that are the same. */
static int
read_side(lpo_ctx *c, int64_t *out, const json_t *j, const char *key,
    int64_t dflt)
{
	int64_t v[2];
	int rc;

	if ((rc = lpo_config_ints(c, v, 2, j, key, dflt, 1, 1 << 14)) < 0)
		return rc;
	if (v[0] != v[1])
		return lpo_fail(c, LPO_EFORMAT, "'%s' is no square", key);
	*out = v[0];
	return 0;
}

/* Absent fields have the values of transformers' CLIPVisionConfig. */
static int
read_config(lpo_ctx *c, struct lpo_vit_config *g, const json_t *j)
{
	int rc;

	g->shape = (struct lpo_clip_shape){ .hidden = 768,
	    .intermediate = 3072, .layers = 12, .heads = 12 };
	if ((rc = lpo_config_int(c, &g->projection, j, "projection_dim", 512,
	    1, 1 << 20)) < 0 ||
	    (rc = read_side(c, &g->image_px, j, "image_size", 224)) < 0 ||
	    (rc = read_side(c, &g->patch_px, j, "patch_size", 32)) < 0 ||
	    (rc = lpo_clip_shape_read(c, &g->shape, j)) < 0)
		return rc;
	if (g->patch_px > g->image_px)
		return lpo_fail(c, LPO_EFORMAT, "'patch_size' %lld is more "
		    "than 'image_size' %lld", (long long)g->patch_px,
		    (long long)g->image_px);
	return 0;
}

static int
load_weights(lpo_vit *m, const char *dir)
{
	const struct lpo_vit_config *g = &m->cfg;
	int64_t d = g->shape.hidden, side = g->image_px / g->patch_px, i;
	const int64_t patch[4] = { d, 3, g->patch_px, g->patch_px };
	const int64_t position[2] = { side * side + 1, d };
	lpo_weights *w = NULL;
	int rc;

	if ((rc = lpo_weights_open(m->ctx, &w, &m->params, &m->names, dir,
	    "model", NULL)) < 0)
		return rc;
	lpo_weights_ignore(w, "text_model.");
	lpo_weights_ignore(w, "text_projection.");
	m->cls = lpo_weights_param(w, LPO_VECTOR, 1, &d,
	    EMBED "class_embedding");
	m->position = lpo_weights_param(w, LPO_TABLE, 2, position,
	    EMBED "position_embedding.weight");
	m->patch.name = EMBED "patch_embedding";
	m->patch.stride = g->patch_px;
	m->patch.w = lpo_weights_param(w, LPO_KERNEL, 4, patch,
	    EMBED "patch_embedding.weight");
	/* the misspelling is the real key */
	lpo_weights_norm(w, &m->pre_norm, d, 0, g->shape.eps,
	    "vision_model.pre_layrnorm");
	for (i = 0; i < g->shape.layers; i++)
		lpo_clip_layer_load(w, &m->layer[i], &g->shape,
		    "vision_model", i);
	lpo_weights_norm(w, &m->post_norm, d, 0, g->shape.eps,
	    "vision_model.post_layernorm");
	lpo_weights_linear(w, &m->projection, d, g->projection, 0, 0,
	    "visual_projection");
	m->scale = lpo_weights_param(w, LPO_VECTOR, 0, &d, "logit_scale");
	rc = lpo_weights_finish(w);
	lpo_weights_close(w);
	return rc;
}

int
lpo_vit_load(lpo_ctx *c, lpo_backend *be, lpo_vit **out, const char *dir,
    enum lpo_dtype dt)
{
	json_t *j = NULL;
	lpo_vit *m;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((m = lpo_alloc(c, 1, sizeof(*m))) == NULL)
		return LPO_ENOMEM;
	m->ctx = c;
	if ((rc = lpo_params_init(&m->params, c, be, dt)) < 0 ||
	    (rc = lpo_clip_joint_config(c, &j, dir, "vision_config")) < 0 ||
	    (rc = lpo_config_check(c, j, fields, dir)) < 0)
		goto out;
	if ((rc = read_config(c, &m->cfg, j)) < 0) {
		lpo_fail_prefix(c, "%s/config.json", dir);
		goto out;
	}
	rc = LPO_ENOMEM;
	m->layer = lpo_alloc(c, (size_t)m->cfg.shape.layers,
	    sizeof(*m->layer));
	if (m->layer == NULL || (rc = load_weights(m, dir)) < 0)
		goto out;
	*out = m;
	m = NULL;
out:
	json_decref(j);
	lpo_vit_free(m);
	return rc;
}

void
lpo_vit_free(lpo_vit *m)
{
	if (m == NULL)
		return;
	lpo_params_free(&m->params);
	lpo_pool_free(&m->names);
	lpo_free(m->layer);
	lpo_free(m);
}

const struct lpo_vit_config *
lpo_vit_cfg(const lpo_vit *m)
{
	return &m->cfg;
}

int
lpo_vit_logit_scale(const lpo_vit *m, double *out)
{
	float s = 0;
	int rc = lpo_param_export((lpo_params *)(uintptr_t)&m->params,
	    m->scale, &s);

	*out = (double)s;
	return rc;
}

lpo_var *
lpo_vit_fwd(lpo_tape *t, lpo_vit *m, lpo_var *image)
{
	const struct lpo_vit_config *g = &m->cfg;
	int64_t d = g->shape.hidden, n = lpo_tape_groups(t), i;
	lpo_var *x;

	x = lpo_conv(t, &m->patch, lpo_cast(t, image, lpo_tape_dtype(t)));
	if (x == NULL)
		return NULL;
	x = lpo_reshape(t, x, n * x->h * x->w, 1, 1, d);
	x = lpo_join_rows(t, lpo_embed_all(t, m->cls, n), x);
	x = lpo_reshape(t, x, n, m->position->shape[0], 1, d);
	x = lpo_add(t, x, lpo_embed_all(t, m->position, n));
	x = lpo_layer_norm(t, &m->pre_norm, x);
	for (i = 0; i < g->shape.layers; i++)
		x = lpo_clip_layer_fwd(t, &m->layer[i], &g->shape, x, 0);
	/* the class tokens alone */
	x = lpo_reshape(t, x, n * m->position->shape[0], 1, 1, d);
	x = lpo_layer_norm(t, &m->post_norm, lpo_slice_rows(t, x, 0, 1));
	return lpo_cast(t, lpo_linear(t, &m->projection, x), LPO_F32);
}
