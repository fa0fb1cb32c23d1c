/*
 * The text files of random models, as the published folders have them
 * (models.md 1).  In the templates ' stands for ".
 */
#include <stdio.h>
#include <string.h>

#include "lib/model/random_kinds.h"

#define VERSION "'_diffusers_version': '0.30.0'"

static const char *const index_sd =
"{\n"
"  '_class_name': 'StableDiffusionPipeline',\n"
"  " VERSION ",\n"
"  'feature_extractor': [null, null],\n"
"  'requires_safety_checker': false,\n"
"  'safety_checker': [null, null],\n"
"  'scheduler': ['diffusers', 'PNDMScheduler'],\n"
"  'text_encoder': ['transformers', 'CLIPTextModel'],\n"
"  'tokenizer': ['transformers', 'CLIPTokenizer'],\n"
"  'unet': ['diffusers', 'UNet2DConditionModel'],\n"
"  'vae': ['diffusers', 'AutoencoderKL']\n"
"}\n";

static const char *const index_xl =
"{\n"
"  '_class_name': 'StableDiffusionXLPipeline',\n"
"  " VERSION ",\n"
"  'force_zeros_for_empty_prompt': true,\n"
"  'scheduler': ['diffusers', 'EulerDiscreteScheduler'],\n"
"  'text_encoder': ['transformers', 'CLIPTextModel'],\n"
"  'text_encoder_2': ['transformers', 'CLIPTextModelWithProjection'],\n"
"  'tokenizer': ['transformers', 'CLIPTokenizer'],\n"
"  'tokenizer_2': ['transformers', 'CLIPTokenizer'],\n"
"  'unet': ['diffusers', 'UNet2DConditionModel'],\n"
"  'vae': ['diffusers', 'AutoencoderKL']\n"
"}\n";

static const char *const scheduler =
"{\n"
"  '_class_name': '%s',\n"
"  " VERSION ",\n"
"  'beta_start': 0.00085,\n"
"  'beta_end': 0.012,\n"
"  'beta_schedule': 'scaled_linear',\n"
"  'clip_sample': false,\n"
"  'num_train_timesteps': 1000,\n"
"%s"
"  'set_alpha_to_one': false,\n"
"  'skip_prk_steps': true,\n"
"  'steps_offset': 1,\n"
"  'trained_betas': null\n"
"}\n";

static const char *const unet =
"{\n"
"  '_class_name': 'UNet2DConditionModel',\n"
"  " VERSION ",\n"
"  'act_fn': 'silu',\n"
"  'attention_head_dim': %s,\n"
"  'block_out_channels': %s,\n"
"  'center_input_sample': false,\n"
"  'cross_attention_dim': %d,\n"
"  'down_block_types': [%s],\n"
"  'downsample_padding': 1,\n"
"  'flip_sin_to_cos': true,\n"
"  'freq_shift': 0,\n"
"  'in_channels': 4,\n"
"  'layers_per_block': 2,\n"
"  'mid_block_scale_factor': 1,\n"
"  'norm_eps': 1e-05,\n"
"  'norm_num_groups': %d,\n"
"  'out_channels': 4,\n"
"  'sample_size': %d,\n"
"%s"
"  'up_block_types': [%s]\n"
"}\n";

/* The neutral fields are in SDXL's published file too. */
static const char *const unet_xl =
"  'addition_embed_type': 'text_time',\n"
"  'addition_embed_type_num_heads': 64,\n"
"  'addition_time_embed_dim': %d,\n"
"  'class_embed_type': null,\n"
"  'class_embeddings_concat': false,\n"
"  'conv_in_kernel': 3,\n"
"  'conv_out_kernel': 3,\n"
"  'cross_attention_norm': null,\n"
"  'dual_cross_attention': false,\n"
"  'encoder_hid_dim': null,\n"
"  'encoder_hid_dim_type': null,\n"
"  'mid_block_only_cross_attention': null,\n"
"  'mid_block_type': 'UNetMidBlock2DCrossAttn',\n"
"  'num_attention_heads': null,\n"
"  'num_class_embeds': null,\n"
"  'only_cross_attention': false,\n"
"  'projection_class_embeddings_input_dim': %d,\n"
"  'resnet_out_scale_factor': 1.0,\n"
"  'resnet_skip_time_act': false,\n"
"  'resnet_time_scale_shift': 'default',\n"
"  'time_cond_proj_dim': null,\n"
"  'time_embedding_act_fn': null,\n"
"  'time_embedding_dim': null,\n"
"  'time_embedding_type': 'positional',\n"
"  'timestep_post_act': null,\n"
"  'transformer_layers_per_block': %s,\n"
"  'upcast_attention': null,\n"
"  'use_linear_projection': true,\n";

static const char *const vae =
"{\n"
"  '_class_name': 'AutoencoderKL',\n"
"  " VERSION ",\n"
"  'act_fn': 'silu',\n"
"  'block_out_channels': %s,\n"
"  'down_block_types': ['DownEncoderBlock2D', 'DownEncoderBlock2D',\n"
"    'DownEncoderBlock2D', 'DownEncoderBlock2D'],\n"
"%s"
"  'in_channels': 3,\n"
"  'latent_channels': 4,\n"
"  'layers_per_block': 2,\n"
"  'norm_num_groups': %d,\n"
"  'out_channels': 3,\n"
"  'sample_size': %d,\n"
"  'scaling_factor': %s,\n"
"  'up_block_types': ['UpDecoderBlock2D', 'UpDecoderBlock2D',\n"
"    'UpDecoderBlock2D', 'UpDecoderBlock2D']\n"
"}\n";

/* bos, eos and pad are the published files' wrong ones (models.md 1.4). */
static const char *const text_encoder =
"{\n"
"  'architectures': ['%s'],\n"
"  'attention_dropout': 0.0,\n"
"  'bos_token_id': 0,\n"
"  'dropout': 0.0,\n"
"  'eos_token_id': 2,\n"
"  'hidden_act': '%s',\n"
"  'hidden_size': %d,\n"
"  'initializer_factor': 1.0,\n"
"  'initializer_range': 0.02,\n"
"  'intermediate_size': %d,\n"
"  'layer_norm_eps': 1e-05,\n"
"  'max_position_embeddings': 77,\n"
"  'model_type': 'clip_text_model',\n"
"  'num_attention_heads': %d,\n"
"  'num_hidden_layers': %d,\n"
"  'pad_token_id': 1,\n"
"  'projection_dim': %d,\n"
"  'vocab_size': %d\n"
"}\n";

#define ADDED(content) \
	"{'content': '" content "', 'lstrip': false, 'normalized': true, " \
	"'rstrip': false, 'single_word': false}"
#define SPECIAL \
"  'bos_token': " ADDED("<|startoftext|>") ",\n" \
"  'eos_token': " ADDED("<|endoftext|>") ",\n" \
"  'pad_token': '%s',\n" \
"  'unk_token': " ADDED("<|endoftext|>")

static const char *const special_tokens_map = "{\n" SPECIAL "\n}\n";

static const char *const tokenizer_config =
"{\n"
"  'add_prefix_space': false,\n"
SPECIAL ",\n"
"  'do_lower_case': true,\n"
"  'errors': 'replace',\n"
"  'model_max_length': 77,\n"
"  'tokenizer_class': 'CLIPTokenizer'\n"
"}\n";

static char *
quoted(char *text)
{
	char *p;

	for (p = text; p != NULL && *p != '\0'; p++)
		if (*p == '\'')
			*p = '"';
	return text;
}

static char *
make_unet(lpo_ctx *c, const struct lpo_random_kind *k)
{
	static const char *const down[] = { "'CrossAttnDownBlock2D',\n"
	    "    'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', "
	    "'DownBlock2D'", "'DownBlock2D', 'CrossAttnDownBlock2D',\n"
	    "    'CrossAttnDownBlock2D'" };
	static const char *const up[] = { "'UpBlock2D', 'CrossAttnUpBlock2D',"
	    "\n    'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'",
	    "'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D',\n    'UpBlock2D'" };
	int xl = k->family == LPO_RANDOM_SDXL;
	char *more, *text;

	more = xl ? lpo_asprintf(c, unet_xl, k->time_dim, k->add_dim,
	    k->depth) : lpo_strdup(c, k->family == LPO_RANDOM_SD21 ?
	    "  'use_linear_projection': true,\n" : "");
	if (more == NULL)
		return NULL;
	text = lpo_asprintf(c, unet, k->heads, k->channels, k->context,
	    down[xl], k->groups, k->sample_size, more, up[xl]);
	lpo_free(more);
	return text;
}

static char *
make_text(lpo_ctx *c, const struct lpo_random_kind *k, int which)
{
	const struct lpo_random_text *t = &k->text[which];

	return lpo_asprintf(c, text_encoder, which ?
	    "CLIPTextModelWithProjection" : "CLIPTextModel", t->act,
	    t->hidden, t->mlp, t->heads, t->layers, t->projection, k->vocab);
}

/* Code point of the letter that stands for byte number i of the alphabet. */
static int
letter(int i)
{
	if (i < 94)
		return 0x21 + i;
	if (i < 94 + 12)
		return 0xa1 + i - 94;
	if (i < 94 + 12 + 82)
		return 0xae + i - 106;
	return 0x100 + i - 188;
}

/*
 * CLIP's merges are not ours to give: bytes, bytes that end a word, and the
 * two special tokens, at the ids where CLIP has them (models.md 4.1).
 */
static char *
make_vocab(lpo_ctx *c, const struct lpo_random_kind *k)
{
	char *text = lpo_alloc(c, 16384, 1), *p = text, s[3];
	int i, u;

	if (text == NULL)
		return NULL;
	*p++ = '{';
	for (i = 0; i < 512; i++) {
		u = letter(i % 256);
		s[0] = (char)(u < 0x80 ? u : 0xc0 | u >> 6);
		s[1] = (char)(u < 0x80 ? 0 : 0x80 | (u & 0x3f));
		s[2] = '\0';
		p += sprintf(p, "\"%s%s%s\": %d,\n", u == '"' || u == '\\' ?
		    "\\" : "", s, i < 256 ? "" : "</w>", i);
	}
	sprintf(p, "\"<|startoftext|>\": %d,\n\"<|endoftext|>\": %d}\n",
	    k->vocab - 2, k->vocab - 1);
	return text;
}

static const char *const names[] = {
	"model_index.json", "scheduler/scheduler_config.json",
	"text_encoder/config.json", "tokenizer/merges.txt",
	"tokenizer/special_tokens_map.json",
	"tokenizer/tokenizer_config.json", "tokenizer/vocab.json",
	"unet/config.json", "vae/config.json",
	/* SDXL only */
	"text_encoder_2/config.json", "tokenizer_2/merges.txt",
	"tokenizer_2/special_tokens_map.json",
	"tokenizer_2/tokenizer_config.json", "tokenizer_2/vocab.json", NULL
};
#define SDXL_ONLY 9

const char *
lpo_random_file(const struct lpo_random *r, int i)
{
	if (i == SDXL_ONLY && r->kind->family != LPO_RANDOM_SDXL)
		return NULL;
	return names[i];
}

static int
is(const char *name, const char *what)
{
	return strcmp(name, what) == 0;
}

/* tokenizer/ or tokenizer_2/; which pads with what: models.md 1.5 */
static char *
make_tokenizer(lpo_ctx *c, const struct lpo_random_kind *k, const char *name,
    int second)
{
	const char *end = "<|endoftext|>";

	if (is(name, "vocab.json"))
		return make_vocab(c, k);
	if (is(name, "merges.txt"))
		return lpo_strdup(c, "#version: 0.2\n");
	if (is(name, "special_tokens_map.json"))
		return quoted(lpo_asprintf(c, special_tokens_map, second ||
		    k->family == LPO_RANDOM_SD21 ? "!" : end));
	return quoted(lpo_asprintf(c, tokenizer_config, second ? "!" : end));
}

static char *
make(lpo_ctx *c, const struct lpo_random_kind *k, const char *name)
{
	int xl = k->family == LPO_RANDOM_SDXL;

	if (is(name, "model_index.json"))
		return lpo_strdup(c, xl ? index_xl : index_sd);
	if (is(name, "scheduler/scheduler_config.json"))
		return lpo_asprintf(c, scheduler, xl ?
		    "EulerDiscreteScheduler" : "PNDMScheduler",
		    k->family == LPO_RANDOM_SD15 ? "" : !xl ?
		    "  'prediction_type': 'epsilon',\n" :
		    "  'interpolation_type': 'linear',\n"
		    "  'prediction_type': 'epsilon',\n"
		    "  'sample_max_value': 1.0,\n"
		    "  'timestep_spacing': 'leading',\n"
		    "  'use_karras_sigmas': false,\n");
	if (is(name, "unet/config.json"))
		return make_unet(c, k);
	if (is(name, "vae/config.json"))
		return lpo_asprintf(c, vae, k->vae_channels, xl ?
		    "  'force_upcast': true,\n" : "", k->vae_groups,
		    k->vae_sample_size, k->scaling);
	return make_text(c, k, is(name, "text_encoder_2/config.json"));
}

int
lpo_random_text(lpo_ctx *c, char **text, const char *path)
{
	struct lpo_random r;
	const char *f, *sub;
	int i, rc;

	*text = NULL;
	if ((rc = lpo_random_parse(c, &r, path)) != 0)
		return rc;
	for (i = 0; (f = lpo_random_file(&r, i)) != NULL; i++)
		if (is(f, r.rest))
			break;
	if (f == NULL)
		return lpo_fail(c, LPO_ENOTFOUND, "cannot open '%s': a random "
		    "model has no such file", path);
	/* a vocabulary has ' as a token */
	sub = strchr(f, '/');
	*text = strncmp(f, "tokenizer", 9) == 0 ?
	    make_tokenizer(c, r.kind, sub + 1, f[9] == '_') :
	    quoted(make(c, r.kind, f));
	return *text != NULL ? 0 : LPO_ENOMEM;
}
