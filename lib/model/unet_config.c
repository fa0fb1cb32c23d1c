/* unet/config.json (models.md 1.2). */
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/config.h"
#include "lib/model/unet_priv.h"

static const struct lpo_config_field fields[] = {
	{ "sample_size", NULL }, { "in_channels", NULL },
	{ "out_channels", NULL }, { "block_out_channels", NULL },
	{ "down_block_types", NULL }, { "up_block_types", NULL },
	{ "mid_block_type", "\"UNetMidBlock2DCrossAttn\"" },
	{ "layers_per_block", NULL }, { "attention_head_dim", NULL },
	{ "cross_attention_dim", NULL },
	{ "transformer_layers_per_block", NULL },
	{ "use_linear_projection", NULL }, { "addition_embed_type", NULL },
	{ "addition_time_embed_dim", NULL },
	{ "projection_class_embeddings_input_dim", NULL },
	{ "norm_num_groups", NULL }, { "norm_eps", NULL },
	{ "flip_sin_to_cos", NULL }, { "freq_shift", NULL },
	{ "dropout", "0" },
	{ "upcast_attention", NULL },	/* changes nothing in f32 */
	{ "addition_embed_type_num_heads", NULL },	/* of other types */
	{ "act_fn", "\"silu\"" }, { "downsample_padding", "1" },
	{ "mid_block_scale_factor", "1" }, { "center_input_sample", "false" },
	{ "only_cross_attention", "false" },
	{ "mid_block_only_cross_attention", "false" },
	{ "dual_cross_attention", "false" },
	{ "resnet_out_scale_factor", "1" }, { "resnet_skip_time_act", "false" },
	{ "resnet_time_scale_shift", "\"default\"" },
	{ "class_embeddings_concat", "false" },
	{ "attention_type", "\"default\"" },
	{ "time_embedding_type", "\"positional\"" },
	{ "conv_in_kernel", "3" }, { "conv_out_kernel", "3" },
	/* with any value but null these make another model */
	{ "num_attention_heads", "null" }, { "class_embed_type", "null" },
	{ "num_class_embeds", "null" }, { "encoder_hid_dim", "null" },
	{ "encoder_hid_dim_type", "null" }, { "time_embedding_dim", "null" },
	{ "time_embedding_act_fn", "null" }, { "timestep_post_act", "null" },
	{ "time_cond_proj_dim", "null" }, { "cross_attention_norm", "null" },
	{ "reverse_transformer_layers_per_block", "null" },
	{ NULL, NULL }
};

/* The field's n-th string is `cross` (1) or `plain` (0). */
static int
block_types(lpo_ctx *c, int *out, int n, const json_t *j, const char *key,
    const char *cross, const char *plain)
{
	const json_t *list = lpo_json_get(j, key);
	const char *s;
	int i;

	if (json_array_size(list) != (size_t)n)
		return lpo_fail(c, LPO_EFORMAT, "'%s' does not name %d blocks",
		    key, n);
	for (i = 0; i < n; i++) {
		s = json_string_value(json_array_get(list, (size_t)i));
		if (s == NULL || (strcmp(s, cross) != 0 &&
		    strcmp(s, plain) != 0))
			return lpo_fail(c, LPO_EFORMAT, "'%s' has '%.48s'; "
			    "only '%s' and '%s' are supported", key,
			    s ? s : "?", cross, plain);
		out[i] = strcmp(s, cross) == 0;
	}
	return 0;
}

/* channels, block types, layers, heads, depth, context: a value per block */
static int
read_blocks(lpo_ctx *c, struct lpo_unet_config *g, const json_t *j)
{
	int64_t ctx[LPO_UNET_MAX_BLOCKS];
	int i, rc;

	if ((rc = lpo_json_ints(c, g->channels, &g->blocks,
	    LPO_UNET_MAX_BLOCKS, j, "block_out_channels")) < 0)
		return rc;
	if (g->blocks < 1)
		return lpo_fail(c, LPO_EFORMAT,
		    "'block_out_channels' is missing");
	if ((rc = lpo_config_ints(c, g->channels, g->blocks, j,
	    "block_out_channels", -1, 1, 1 << 16)) < 0 ||
	    (rc = block_types(c, g->down_cross, g->blocks, j,
	    "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D")) < 0 ||
	    (rc = block_types(c, g->up_cross, g->blocks, j, "up_block_types",
	    "CrossAttnUpBlock2D", "UpBlock2D")) < 0 ||
	    (rc = lpo_config_ints(c, g->layers, g->blocks, j,
	    "layers_per_block", 2, 1, LPO_UNET_MAX_LAYERS - 1)) < 0 ||
	    (rc = lpo_config_ints(c, g->heads, g->blocks, j,
	    "attention_head_dim", 8, 1, 1 << 12)) < 0 ||
	    (rc = lpo_config_ints(c, g->depth, g->blocks, j,
	    "transformer_layers_per_block", 1, 1, 64)) < 0 ||
	    (rc = lpo_config_ints(c, ctx, g->blocks, j,
	    "cross_attention_dim", 1280, 1, 1 << 16)) < 0)
		return rc;
	g->context_dim = ctx[0];
	for (i = 0; i < g->blocks; i++) {
		if (ctx[i] != ctx[0])
			return lpo_fail(c, LPO_EFORMAT, "'cross_attention_dim' "
			    "differs between blocks");
		/* the name is historical: it is the number of heads */
		if (g->channels[i] % g->heads[i] != 0)
			return lpo_fail(c, LPO_EFORMAT, "'attention_head_dim' "
			    "%lld does not divide 'block_out_channels' %lld",
			    (long long)g->heads[i],
			    (long long)g->channels[i]);
		if (g->channels[i] % g->norm_groups != 0)
			return lpo_fail(c, LPO_EFORMAT, "'norm_num_groups' "
			    "%lld does not divide 'block_out_channels' %lld",
			    (long long)g->norm_groups,
			    (long long)g->channels[i]);
	}
	return 0;
}

/* SDXL's embedding of pooled text and sizes. */
static int
read_addition(lpo_ctx *c, struct lpo_unet_config *g, const json_t *j)
{
	const char *type;
	int rc;

	if ((rc = lpo_json_str(c, &type, j, "addition_embed_type", "")) < 0)
		return rc;
	if (type[0] == '\0') {
		if (lpo_json_get(j,
		    "projection_class_embeddings_input_dim") != NULL)
			lpo_notice(c, "'projection_class_embeddings_input_dim' "
			    "without 'addition_embed_type' is ignored");
		return 0;
	}
	if (strcmp(type, "text_time") != 0)
		return lpo_fail(c, LPO_EFORMAT, "'addition_embed_type' is "
		    "'%.32s'; only 'text_time' is supported", type);
	g->text_time = 1;
	if ((rc = lpo_config_int(c, &g->add_time_dim, j,
	    "addition_time_embed_dim", 0, 2, 1 << 16)) < 0 ||
	    (rc = lpo_config_int(c, &g->add_in_dim, j,
	    "projection_class_embeddings_input_dim", 0, 1, 1 << 20)) < 0)
		return rc;
	if (g->add_in_dim <= 6 * g->add_time_dim)
		return lpo_fail(c, LPO_EFORMAT,
		    "'projection_class_embeddings_input_dim' %lld leaves no "
		    "room for text beside six times %lld",
		    (long long)g->add_in_dim, (long long)g->add_time_dim);
	return 0;
}

int
lpo_unet_sample_size(lpo_ctx *c, int64_t *out, const json_t *config)
{
	const char *xl = json_string_value(lpo_json_get(config,
	    "addition_embed_type"));
	int64_t side[2];
	int rc;

	if ((rc = lpo_config_ints(c, side, 2, config, "sample_size",
	    xl != NULL && strcmp(xl, "text_time") == 0 ? 128 : 64, 1,
	    1 << 16)) < 0)
		return rc;
	if (side[0] != side[1])
		return lpo_fail(c, LPO_EFORMAT, "'sample_size' is %lld x "
		    "%lld; only squares are supported", (long long)side[0],
		    (long long)side[1]);
	*out = side[0];
	return 0;
}

static int
read_scalars(lpo_ctx *c, struct lpo_unet_config *g, const json_t *j)
{
	double eps, shift;
	int rc;

	if ((rc = lpo_unet_sample_size(c, &g->sample_size, j)) < 0 ||
	    (rc = lpo_config_int(c, &g->in_channels, j, "in_channels", 4, 1,
	    1 << 12)) < 0 ||
	    (rc = lpo_config_int(c, &g->out_channels, j, "out_channels", 4, 1,
	    1 << 12)) < 0 ||
	    (rc = lpo_config_int(c, &g->norm_groups, j, "norm_num_groups", 32,
	    1, 1 << 12)) < 0 ||
	    (rc = lpo_json_real(c, &eps, j, "norm_eps", 1e-5)) < 0 ||
	    (rc = lpo_json_real(c, &shift, j, "freq_shift", 0)) < 0 ||
	    (rc = lpo_json_bool(c, &g->flip_sin_to_cos, j, "flip_sin_to_cos",
	    1)) < 0 ||
	    (rc = lpo_json_bool(c, &g->linear_projection, j,
	    "use_linear_projection", 0)) < 0)
		return rc;
	if (!(eps > 0 && eps < 1))
		return lpo_fail(c, LPO_EFORMAT, "'norm_eps' is %g", eps);
	g->norm_eps = (float)eps;
	g->freq_shift = (float)shift;
	return 0;
}

int
lpo_unet_read_config(lpo_ctx *c, struct lpo_unet_config *g, char **text,
    const char *dir)
{
	json_t *j = NULL;
	int rc;

	if ((rc = lpo_config_read(c, &j, text, dir,
	    "UNet2DConditionModel")) < 0 ||
	    (rc = lpo_config_check(c, j, fields, dir)) < 0)
		goto out;
	if ((rc = read_scalars(c, g, j)) < 0 ||
	    (rc = read_blocks(c, g, j)) < 0 ||
	    (rc = read_addition(c, g, j)) < 0)
		lpo_fail_prefix(c, "%s/config.json", dir);
	else if (g->channels[0] % 2 != 0 ||
	    (float)(g->channels[0] / 2) - g->freq_shift <= 0)
		rc = lpo_fail(c, LPO_EFORMAT, "%s/config.json: 'freq_shift' "
		    "or an odd first channel count leaves no timestep "
		    "embedding", dir);
out:
	json_decref(j);
	return rc;
}
