/* One layer of a CLIP tower. */
#include "lib/model/clip_layer.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/config.h"

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

int
lpo_clip_shape_read(lpo_ctx *c, struct lpo_clip_shape *g, const json_t *j)
{
	const int64_t big = 1 << 20;
	double eps;
	int rc;

	if ((rc = lpo_config_int(c, &g->hidden, j, "hidden_size", g->hidden,
	    1, big)) < 0 ||
	    (rc = lpo_config_int(c, &g->intermediate, j, "intermediate_size",
	    g->intermediate, 1, big)) < 0 ||
	    (rc = lpo_config_int(c, &g->layers, j, "num_hidden_layers",
	    g->layers, 1, LPO_CLIP_MAX_LAYERS)) < 0 ||
	    (rc = lpo_config_int(c, &g->heads, j, "num_attention_heads",
	    g->heads, 1, big)) < 0 ||
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
	return 0;
}

void
lpo_clip_layer_load(lpo_weights *w, struct lpo_clip_layer *l,
    const struct lpo_clip_shape *g, const char *prefix, int64_t i)
{
	char at[64];
	int64_t d = g->hidden, m = g->intermediate;

	snprintf(at, sizeof(at), "%s.encoder.layers.%lld", prefix,
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

lpo_var *
lpo_clip_layer_fwd(lpo_tape *t, const struct lpo_clip_layer *l,
    const struct lpo_clip_shape *g, lpo_var *x, int causal)
{
	lpo_var *h, *q, *k, *v;

	h = lpo_layer_norm(t, &l->norm1, x);
	q = lpo_linear(t, &l->q, h);
	k = lpo_linear(t, &l->k, h);
	v = lpo_linear(t, &l->v, h);
	h = lpo_attention(t, q, k, v, g->heads, causal);
	x = lpo_linear_add(t, &l->out, h, x);
	h = lpo_linear(t, &l->fc1, lpo_layer_norm(t, &l->norm2, x));
	h = lpo_activation(t, g->act, h);
	return lpo_linear_add(t, &l->fc2, h, x);
}
