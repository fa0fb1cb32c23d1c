/* The CLIP text tower: pre-norm transformer, causal mask (models.md 3). */
#include "lib/model/clip.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/clip_joint.h"
#include "lib/model/config.h"
#include "lib/model/weights.h"

struct lpo_clip {
	lpo_ctx *ctx;
	struct lpo_clip_config cfg;
	char *json;
	struct lpo_pool names;
	lpo_params params;
	lpo_param *token, *position;
	struct lpo_clip_layer *layer;
	lpo_norm_layer final_norm;
	lpo_linear_layer projection;
};

/* Dropouts and initialisers have no say in inference or in our training. */
static const struct lpo_config_field fields[] = {
	{ "architectures", NULL }, { "model_type", "\"clip_text_model\"" },
	{ "vocab_size", NULL }, { "hidden_size", NULL },
	{ "intermediate_size", NULL }, { "projection_dim", NULL },
	{ "num_hidden_layers", NULL }, { "num_attention_heads", NULL },
	{ "max_position_embeddings", NULL }, { "hidden_act", NULL },
	{ "layer_norm_eps", NULL }, { "attention_dropout", NULL },
	{ "dropout", NULL }, { "initializer_range", NULL },
	{ "initializer_factor", NULL }, { "bos_token_id", NULL },
	{ "eos_token_id", NULL }, { "pad_token_id", NULL },
	{ "torch_dtype", NULL }, { "dtype", NULL },
	{ "transformers_version", NULL }, { "use_cache", NULL },
	{ "use_attention_mask", "false" }, { NULL, NULL }
};

/* 1 or 0 as `architectures` says; -1 where it says nothing. */
static int
says_projection(const json_t *j)
{
	const json_t *a = lpo_json_get(j, "architectures");
	const char *s = json_string_value(json_array_get(a, 0));

	if (s == NULL)
		return -1;
	return strcmp(s, "CLIPTextModelWithProjection") == 0;
}

/* Absent fields have the values of transformers' CLIPTextConfig. */
static int
read_config(lpo_ctx *c, struct lpo_clip_config *g, const json_t *j)
{
	const json_t *eos = lpo_json_get(j, "eos_token_id");
	int rc;

	g->shape = (struct lpo_clip_shape){ .hidden = 512,
	    .intermediate = 2048, .layers = 12, .heads = 8 };
	if ((rc = lpo_config_int(c, &g->vocab, j, "vocab_size", 49408, 1,
	    1 << 24)) < 0 ||
	    (rc = lpo_config_int(c, &g->projection, j, "projection_dim", 512,
	    1, 1 << 20)) < 0 ||
	    (rc = lpo_config_int(c, &g->max_positions, j,
	    "max_position_embeddings", 77, 1, 1 << 20)) < 0 ||
	    (rc = lpo_clip_shape_read(c, &g->shape, j)) < 0)
		return rc;
	if (json_is_array(eos))
		eos = json_array_get(eos, 0);
	if (eos != NULL && !json_is_integer(eos))
		return lpo_fail(c, LPO_EFORMAT, "'eos_token_id' is not an "
		    "integer");
	g->eos_token_id = eos ? json_integer_value(eos) : 49407;
	g->has_projection = says_projection(j);
	return 0;
}

/* transformers 5 leaves "text_model." out. */
int
lpo_clip_rename_key(char *out, size_t cap, const char *key)
{
	static const char *const bare[] = {
		"embeddings.", "encoder.", "final_layer_norm."
	};
	size_t i;

	for (i = 0; i < sizeof(bare) / sizeof(bare[0]); i++)
		if (strncmp(key, bare[i], strlen(bare[i])) == 0) {
			snprintf(out, cap, "text_model.%s", key);
			return 1;
		}
	return 0;
}

static int
load_weights(lpo_clip *m, const char *dir)
{
	struct lpo_clip_config *g = &m->cfg;
	const int64_t tok[2] = { g->vocab, g->shape.hidden };
	const int64_t pos[2] = { g->max_positions, g->shape.hidden };
	lpo_weights *w = NULL;
	int64_t i;
	int rc;

	if ((rc = lpo_weights_open(m->ctx, &w, &m->params, &m->names, dir,
	    "model", lpo_clip_rename_key)) < 0)
		return rc;
	if (g->has_projection < 0)
		g->has_projection = lpo_weights_has(w,
		    "text_projection.weight");
	/* the other half of a CLIPModel */
	lpo_weights_ignore(w, "vision_model.");
	lpo_weights_ignore(w, "visual_projection.");
	lpo_weights_ignore(w, "logit_scale");
	m->token = lpo_weights_param(w, LPO_TABLE, 2, tok,
	    "text_model.embeddings.token_embedding.weight");
	m->position = lpo_weights_param(w, LPO_TABLE, 2, pos,
	    "text_model.embeddings.position_embedding.weight");
	for (i = 0; i < g->shape.layers; i++)
		lpo_clip_layer_load(w, &m->layer[i], &g->shape, "text_model",
		    i);
	lpo_weights_norm(w, &m->final_norm, g->shape.hidden, 0, g->shape.eps,
	    "text_model.final_layer_norm");
	if (g->has_projection)
		lpo_weights_linear(w, &m->projection, g->shape.hidden,
		    g->projection, 0, 0, "text_projection");
	rc = lpo_weights_finish(w);
	lpo_weights_close(w);
	return rc;
}

/* The tower's own config.json, or its part of a CLIPModel's. */
static int
load_config(lpo_clip *m, const char *dir, int joint)
{
	json_t *j = NULL;
	int rc;

	if (joint)
		rc = lpo_clip_joint_config(m->ctx, &j, dir, "text_config");
	else
		rc = lpo_config_read(m->ctx, &j, &m->json, dir, NULL);
	if (rc == 0 && (rc = lpo_config_check(m->ctx, j, fields, dir)) == 0 &&
	    (rc = read_config(m->ctx, &m->cfg, j)) < 0)
		lpo_fail_prefix(m->ctx, "%s/config.json", dir);
	if (joint)
		m->cfg.has_projection = 1;
	json_decref(j);
	return rc;
}

static int
load(lpo_ctx *c, lpo_backend *be, lpo_clip **out, const char *dir,
    enum lpo_dtype dt, int joint)
{
	lpo_clip *m;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((m = lpo_alloc(c, 1, sizeof(*m))) == NULL)
		goto out;
	m->ctx = c;
	if ((rc = lpo_params_init(&m->params, c, be, dt)) < 0 ||
	    (rc = load_config(m, dir, joint)) < 0)
		goto out;
	rc = LPO_ENOMEM;
	m->layer = lpo_alloc(c, (size_t)m->cfg.shape.layers,
	    sizeof(*m->layer));
	if (m->layer == NULL)
		goto out;
	if ((rc = load_weights(m, dir)) < 0)
		goto out;
	*out = m;
	m = NULL;
out:
	lpo_clip_free(m);
	return rc;
}

int
lpo_clip_load(lpo_ctx *c, lpo_backend *be, lpo_clip **out, const char *dir,
    enum lpo_dtype dt)
{
	return load(c, be, out, dir, dt, 0);
}

int
lpo_clip_load_joint(lpo_ctx *c, lpo_backend *be, lpo_clip **out,
    const char *dir, enum lpo_dtype dt)
{
	return load(c, be, out, dir, dt, 1);
}

void
lpo_clip_free(lpo_clip *m)
{
	if (m == NULL)
		return;
	lpo_params_free(&m->params);
	lpo_pool_free(&m->names);
	lpo_free(m->layer);
	lpo_free(m->json);
	lpo_free(m);
}

const struct lpo_clip_config *
lpo_clip_cfg(const lpo_clip *m)
{
	return &m->cfg;
}

lpo_params *
lpo_clip_params(lpo_clip *m)
{
	return &m->params;
}

const char *
lpo_clip_config_json(const lpo_clip *m)
{
	return m->json;
}

void
lpo_clip_fwd(lpo_tape *t, lpo_clip *m, lpo_var *ids, lpo_var *eos,
    struct lpo_clip_out *o)
{
	lpo_var *x, *rows = NULL;
	int64_t i;

	memset(o, 0, sizeof(*o));
	x = lpo_embed(t, m->token, m->position, ids);
	for (i = 0; i < m->cfg.shape.layers; i++) {
		o->penultimate = x;
		x = lpo_clip_layer_fwd(t, &m->layer[i], &m->cfg.shape, x, 1);
	}
	o->last_hidden = x = lpo_layer_norm(t, &m->final_norm, x);
	if (eos == NULL)
		return;
	if (x != NULL)
		rows = lpo_reshape(t, x, x->n * x->h, 1, 1, x->c);
	o->pooled = lpo_gather(t, rows, eos);
	if (m->cfg.has_projection)
		o->projected = lpo_linear(t, &m->projection, o->pooled);
}

int
lpo_clip_check_ids(lpo_ctx *c, const lpo_clip *m, const int32_t *ids,
    int64_t n)
{
	int64_t i, vocab = lpo_clip_cfg(m)->vocab;

	for (i = 0; i < n; i++)
		if (ids[i] < 0 || ids[i] >= vocab)
			return lpo_fail(c, LPO_EINVAL, "the id %d of a token "
			    "is not in 0..%lld", (int)ids[i],
			    (long long)vocab - 1);
	return 0;
}

int64_t
lpo_clip_eos(const lpo_clip *m, const int32_t *ids, int64_t l)
{
	int64_t i, best = 0;

	if (m->cfg.eos_token_id == 2) {
		/* a wrong value that old configs have: the largest id is it */
		for (i = 1; i < l; i++)
			if (ids[i] > ids[best])
				best = i;
		return best;
	}
	for (i = 0; i < l; i++)
		if (ids[i] == m->cfg.eos_token_id)
			return i;
	return 0;
}
