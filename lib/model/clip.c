/* The CLIP text tower: pre-norm transformer, causal mask (models.md 3). */
#include "lib/model/clip.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/config.h"
#include "lib/model/weights.h"

#define CLIP_MAX_LAYERS 128

struct layer {
	lpo_norm_layer norm1, norm2;
	lpo_linear_layer q, k, v, out, fc1, fc2;
};

struct lpo_clip {
	lpo_ctx *ctx;
	struct lpo_clip_config cfg;
	char *json;
	struct lpo_pool names;
	lpo_params params;
	lpo_param *token, *position;
	struct layer *layer;
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

static int
read_act(lpo_ctx *c, enum lpo_act *act, const json_t *j)
{
	static const struct {
		const char *name;
		enum lpo_act act;
	} acts[] = {
		{ "quick_gelu", LPO_QUICK_GELU }, { "gelu", LPO_GELU },
		{ "silu", LPO_SILU }, { "relu", LPO_RELU }
	};
	const char *name;
	size_t i;
	int rc;

	if ((rc = lpo_json_str(c, &name, j, "hidden_act", "quick_gelu")) < 0)
		return rc;
	for (i = 0; i < sizeof(acts) / sizeof(acts[0]); i++)
		if (strcmp(acts[i].name, name) == 0) {
			*act = acts[i].act;
			return 0;
		}
	return lpo_fail(c, LPO_EFORMAT, "'hidden_act' is '%.32s', which is "
	    "not supported", name);
}

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
	const int64_t big = 1 << 20;
	const json_t *eos = lpo_json_get(j, "eos_token_id");
	double eps;
	int rc;

	if ((rc = lpo_config_int(c, &g->vocab, j, "vocab_size", 49408, 1,
	    1 << 24)) < 0 ||
	    (rc = lpo_config_int(c, &g->hidden, j, "hidden_size", 512, 1,
	    big)) < 0 ||
	    (rc = lpo_config_int(c, &g->intermediate, j, "intermediate_size",
	    2048, 1, big)) < 0 ||
	    (rc = lpo_config_int(c, &g->projection, j, "projection_dim", 512,
	    1, big)) < 0 ||
	    (rc = lpo_config_int(c, &g->layers, j, "num_hidden_layers", 12, 1,
	    CLIP_MAX_LAYERS)) < 0 ||
	    (rc = lpo_config_int(c, &g->heads, j, "num_attention_heads", 8, 1,
	    big)) < 0 ||
	    (rc = lpo_config_int(c, &g->max_positions, j,
	    "max_position_embeddings", 77, 1, big)) < 0 ||
	    (rc = lpo_json_real(c, &eps, j, "layer_norm_eps", 1e-5)) < 0 ||
	    (rc = read_act(c, &g->act, j)) < 0)
		return rc;
	if (g->hidden % g->heads != 0)
		return lpo_fail(c, LPO_EFORMAT, "'hidden_size' %lld is not a "
		    "multiple of 'num_attention_heads' %lld",
		    (long long)g->hidden, (long long)g->heads);
	if (!(eps > 0 && eps < 1))
		return lpo_fail(c, LPO_EFORMAT, "'layer_norm_eps' is %g", eps);
	g->eps = (float)eps;
	if (json_is_array(eos))
		eos = json_array_get(eos, 0);
	g->eos_token_id = eos ? json_integer_value(eos) : 49407;
	g->has_projection = says_projection(j);
	return 0;
}

/* transformers 5 leaves "text_model." out. */
static int
rename_key(char *out, size_t cap, const char *key)
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

static void
load_layer(lpo_weights *w, struct layer *l, const struct lpo_clip_config *g,
    int64_t i)
{
	char at[64];
	int64_t d = g->hidden, m = g->intermediate;

	snprintf(at, sizeof(at), "text_model.encoder.layers.%lld",
	    (long long)i);
	lpo_weights_norm(w, &l->norm1, d, 0, g->eps, "%s.layer_norm1", at);
	lpo_weights_linear(w, &l->q, d, d, 1, 0, "%s.self_attn.q_proj", at);
	lpo_weights_linear(w, &l->k, d, d, 1, 0, "%s.self_attn.k_proj", at);
	lpo_weights_linear(w, &l->v, d, d, 1, 0, "%s.self_attn.v_proj", at);
	lpo_weights_linear(w, &l->out, d, d, 1, 0, "%s.self_attn.out_proj",
	    at);
	lpo_weights_norm(w, &l->norm2, d, 0, g->eps, "%s.layer_norm2", at);
	lpo_weights_linear(w, &l->fc1, d, m, 1, 0, "%s.mlp.fc1", at);
	lpo_weights_linear(w, &l->fc2, m, d, 1, 0, "%s.mlp.fc2", at);
}

static int
load_weights(lpo_clip *m, const char *dir)
{
	struct lpo_clip_config *g = &m->cfg;
	const int64_t tok[2] = { g->vocab, g->hidden };
	const int64_t pos[2] = { g->max_positions, g->hidden };
	lpo_weights *w = NULL;
	int64_t i;
	int rc;

	if ((rc = lpo_weights_open(m->ctx, &w, &m->params, &m->names, dir,
	    "model", rename_key)) < 0)
		return rc;
	if (g->has_projection < 0)
		g->has_projection = lpo_weights_has(w,
		    "text_projection.weight");
	m->token = lpo_weights_param(w, LPO_TABLE, 2, tok,
	    "text_model.embeddings.token_embedding.weight");
	m->position = lpo_weights_param(w, LPO_TABLE, 2, pos,
	    "text_model.embeddings.position_embedding.weight");
	for (i = 0; i < g->layers; i++)
		load_layer(w, &m->layer[i], g, i);
	lpo_weights_norm(w, &m->final_norm, g->hidden, 0, g->eps,
	    "text_model.final_layer_norm");
	if (g->has_projection)
		lpo_weights_linear(w, &m->projection, g->hidden,
		    g->projection, 0, 0, "text_projection");
	rc = lpo_weights_finish(w);
	lpo_weights_close(w);
	return rc;
}

int
lpo_clip_load(lpo_ctx *c, lpo_backend *be, lpo_clip **out, const char *dir,
    enum lpo_dtype dt)
{
	lpo_clip *m;
	json_t *j = NULL;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((m = lpo_alloc(c, 1, sizeof(*m))) == NULL)
		goto out;
	m->ctx = c;
	if ((rc = lpo_params_init(&m->params, c, be, dt)) < 0 ||
	    (rc = lpo_config_read(c, &j, &m->json, dir, NULL)) < 0 ||
	    (rc = lpo_config_check(c, j, fields, dir)) < 0)
		goto out;
	if ((rc = read_config(c, &m->cfg, j)) < 0) {
		lpo_fail_prefix(c, "%s/config.json", dir);
		goto out;
	}
	rc = LPO_ENOMEM;
	m->layer = lpo_alloc(c, (size_t)m->cfg.layers, sizeof(*m->layer));
	if (m->layer == NULL)
		goto out;
	if ((rc = load_weights(m, dir)) < 0)
		goto out;
	*out = m;
	m = NULL;
out:
	json_decref(j);
	lpo_clip_free(m);
	return rc;
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

static lpo_var *
layer_fwd(lpo_tape *t, const lpo_clip *m, const struct layer *l, lpo_var *x)
{
	lpo_var *h, *q, *k, *v;

	h = lpo_layer_norm(t, &l->norm1, x);
	q = lpo_linear(t, &l->q, h);
	k = lpo_linear(t, &l->k, h);
	v = lpo_linear(t, &l->v, h);
	h = lpo_attention(t, q, k, v, m->cfg.heads, 1);
	x = lpo_add(t, x, lpo_linear(t, &l->out, h));
	h = lpo_linear(t, &l->fc1, lpo_layer_norm(t, &l->norm2, x));
	h = lpo_activation(t, m->cfg.act, h);
	return lpo_add(t, x, lpo_linear(t, &l->fc2, h));
}

void
lpo_clip_fwd(lpo_tape *t, lpo_clip *m, lpo_var *ids, lpo_var *eos,
    struct lpo_clip_out *o)
{
	lpo_var *x, *rows = NULL;
	int64_t i;

	memset(o, 0, sizeof(*o));
	x = lpo_embed(t, m->token, m->position, ids);
	for (i = 0; i < m->cfg.layers; i++) {
		o->penultimate = x;
		x = layer_fwd(t, m, &m->layer[i], x);
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
