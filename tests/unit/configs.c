/*
 * Configs, field by field: what is in the family is taken, what is not is
 * refused by the field's name (models.md 1.2-1.6).  There are no weights
 * beside them: a config that is taken leads to "no such file".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/model/clip.h"
#include "lib/model/random.h"
#include "lib/model/unet.h"
#include "lib/model/vae.h"
#include "lib/train/schedule.h"
#include "tests/tap.h"

static char notice[1024], dir[] = "/tmp/lpo-configs-XXXXXX";

static void
keep_notice(void *arg, const char *text)
{
	(void)arg;
	snprintf(notice, sizeof(notice), "%s", text);
}

/* The published config of `base` with members after all others. */
static int
write_with(lpo_ctx *c, const char *base, const char *members)
{
	char path[64], *text = NULL, *end;
	size_t n;
	int rc;

	lpo_clear(c);
	notice[0] = '\0';
	if ((rc = lpo_random_text(c, &text, base)) < 0)
		return rc;
	end = strrchr(text, '}');
	n = (size_t)(end - text) + strlen(members) + 4;
	if ((text = lpo_realloc(c, text, n + 1)) == NULL)
		return LPO_ENOMEM;
	sprintf(strrchr(text, '}'), ", %s}", members);
	snprintf(path, sizeof(path), "%s/config.json", dir);
	rc = lpo_file_write(c, path, text, strlen(text));
	snprintf(path, sizeof(path), "%s/scheduler", dir);
	if (rc == 0)
		rc = lpo_mkdir_p(c, path);
	snprintf(path, sizeof(path), "%s/scheduler/scheduler_config.json",
	    dir);
	if (rc == 0)
		rc = lpo_file_write(c, path, text, strlen(text));
	lpo_free(text);
	return rc;
}

enum part { UNET, VAE, CLIP, SCHEDULER };
static const char *const xl[] = {
	"random:sdxl/unet/config.json", "random:sdxl/vae/config.json",
	"random:sdxl/text_encoder_2/config.json",
	"random:sdxl/scheduler/scheduler_config.json"
};

/* 1 taken, 0 refused, naming the field; -1 anything else. */
static int
take(lpo_ctx *c, enum part part, const char *members, const char *field)
{
	struct lpo_schedule s;
	char quoted[80];
	lpo_unet *u;
	lpo_vae *v;
	lpo_clip *t;
	int rc;

	if (write_with(c, xl[part], members) < 0)
		return -1;
	if (part == UNET)
		rc = lpo_unet_load(c, NULL, &u, dir, LPO_F32, 0);
	else if (part == VAE)
		rc = lpo_vae_load(c, NULL, &v, dir, LPO_F32,
		    LPO_VAE_DECODER);
	else if (part == CLIP)
		rc = lpo_clip_load(c, NULL, &t, dir, LPO_F32);
	else if ((rc = lpo_schedule_load(c, &s, dir)) == 0) {
		lpo_schedule_free(&s);
		return 1;
	}
	if (rc == LPO_ENOTFOUND && strstr(lpo_errmsg(c), ".safetensors"))
		return 1;
	snprintf(quoted, sizeof(quoted), "'%s'", field);
	return rc == LPO_EFORMAT && strstr(lpo_errmsg(c), quoted) &&
	    strstr(lpo_errmsg(c), dir) ? 0 : -1;
}

static const struct {
	enum part part;
	const char *field, *fine[3], *foreign[5];
} table[] = {
	/* neutral fields that SDXL's file and diffusers' own list have */
	{ UNET, "act_fn", { "\"silu\"" }, { "\"gelu\"", "\"swish\"", "0" } },
	{ UNET, "center_input_sample", { "false", "null" }, { "true" } },
	{ UNET, "downsample_padding", { "1", "1.0" }, { "0", "[1, 0]" } },
	{ UNET, "mid_block_scale_factor", { "1", "1.0" }, { "2" } },
	{ UNET, "mid_block_type", { "\"UNetMidBlock2DCrossAttn\"", "null" },
	    { "\"UNetMidBlock2DSimpleCrossAttn\"", "\"UNetMidBlock2D\"" } },
	{ UNET, "only_cross_attention", { "false",
	    "[false, false, false]" }, { "true", "[false, true, false]" } },
	{ UNET, "mid_block_only_cross_attention", { "null", "false" },
	    { "true" } },
	{ UNET, "dual_cross_attention", { "false" }, { "true" } },
	{ UNET, "resnet_out_scale_factor", { "1", "1.0" }, { "0.5" } },
	{ UNET, "resnet_skip_time_act", { "false" }, { "true" } },
	{ UNET, "resnet_time_scale_shift", { "\"default\"" },
	    { "\"scale_shift\"" } },
	{ UNET, "class_embeddings_concat", { "false" }, { "true" } },
	{ UNET, "attention_type", { "\"default\"", "null" },
	    { "\"gated\"" } },
	{ UNET, "time_embedding_type", { "\"positional\"" },
	    { "\"fourier\"" } },
	{ UNET, "conv_in_kernel", { "3" }, { "1" } },
	{ UNET, "conv_out_kernel", { "3" }, { "1" } },
	{ UNET, "num_attention_heads", { "null" }, { "8", "[5, 10, 20]" } },
	{ UNET, "class_embed_type", { "null" }, { "\"timestep\"",
	    "\"projection\"" } },
	{ UNET, "num_class_embeds", { "null" }, { "1000" } },
	{ UNET, "encoder_hid_dim", { "null" }, { "768" } },
	{ UNET, "encoder_hid_dim_type", { "null" }, { "\"text_proj\"" } },
	{ UNET, "time_embedding_dim", { "null" }, { "512" } },
	{ UNET, "time_embedding_act_fn", { "null" }, { "\"silu\"" } },
	{ UNET, "timestep_post_act", { "null" }, { "\"silu\"" } },
	{ UNET, "time_cond_proj_dim", { "null" }, { "256" } },
	{ UNET, "cross_attention_norm", { "null" }, { "\"layer_norm\"" } },
	{ UNET, "reverse_transformer_layers_per_block", { "null" },
	    { "[1, 2, 10]" } },
	{ UNET, "dropout", { "0", "0.0", "null" }, { "0.1" } },
	{ UNET, "upcast_attention", { "null", "false", "true" }, { NULL } },
	/* fields with a range */
	{ UNET, "sample_size", { "64", "[64, 64]", "null" }, { "[64, 32]",
	    "0", "-1", "\"64\"", "[64, 64, 64]" } },
	{ UNET, "in_channels", { "9" }, { "0", "\"4\"", "[4]" } },
	{ UNET, "out_channels", { "8" }, { "0", "1e30" } },
	{ UNET, "block_out_channels", { "[320, 640, 1280]" }, { "null",
	    "[320, 640, \"x\"]", "[320, 640, 0]", "[320, 640, 1270]",
	    "[1, 2, 3, 4, 5, 6, 7, 8, 9]" } },
	{ UNET, "down_block_types", { NULL }, { "[\"DownBlock2D\"]",
	    "\"DownBlock2D\"", "[\"DownBlock2D\", \"AttnDownBlock2D\", "
	    "\"DownBlock2D\"]", "null", "[1, 2, 3]" } },
	{ UNET, "up_block_types", { NULL }, { "[\"UpBlock2D\"]",
	    "[\"UpBlock2D\", \"SkipUpBlock2D\", \"UpBlock2D\"]" } },
	{ UNET, "layers_per_block", { "2", "[2, 2, 3]", "null" }, { "0",
	    "[2, 2]", "2.5", "true" } },
	{ UNET, "attention_head_dim", { "5", "[5, 10, 20]", "null" },
	    { "0", "[5, 10]", "7", "[5, 10, \"20\"]" } },
	{ UNET, "transformer_layers_per_block", { "1", "[1, 2, 10]",
	    "null" }, { "0", "[1, 2]", "[1, 2, [1, 2]]", "1e9" } },
	{ UNET, "cross_attention_dim", { "2048", "[64, 64, 64]", "null" },
	    { "0", "[64, 64, 32]", "[64]", "\"2048\"" } },
	{ UNET, "use_linear_projection", { "true", "false", "null" },
	    { "1.5", "\"yes\"" } },
	{ UNET, "norm_num_groups", { "16", "32.0", "null" }, { "0", "7",
	    "[32]" } },
	{ UNET, "norm_eps", { "1e-6", "null" }, { "0", "-1", "\"x\"", "1" } },
	{ UNET, "flip_sin_to_cos", { "false", "null" }, { "\"no\"" } },
	{ UNET, "freq_shift", { "1", "null" }, { "1e9", "\"x\"" } },
	{ UNET, "addition_embed_type", { "\"text_time\"" },
	    { "\"text\"", "\"image_hint\"", "3" } },
	{ UNET, "addition_time_embed_dim", { "128" }, { "null", "0",
	    "1" } },
	{ UNET, "projection_class_embeddings_input_dim", { "2000" },
	    { "null", "1536", "-5" } },
	{ UNET, "_class_name", { "\"UNet2DConditionModel\"", "null" },
	    { "\"UNet2DModel\"", "\"UNetSpatioTemporalConditionModel\"" } },

	{ VAE, "act_fn", { "\"silu\"" }, { "\"relu\"" } },
	{ VAE, "down_block_types", { "[\"DownEncoderBlock2D\", "
	    "\"DownEncoderBlock2D\", \"DownEncoderBlock2D\", "
	    "\"DownEncoderBlock2D\"]", "null" }, { "[\"DownBlock2D\"]",
	    "[\"DownEncoderBlock2D\"]" } },
	{ VAE, "up_block_types", { "null" }, { "[\"UpDecoderBlock2D\", "
	    "\"UpDecoderBlock2D\", \"UpDecoderBlock2D\", "
	    "\"AttnUpDecoderBlock2D\"]" } },
	{ VAE, "shift_factor", { "null" }, { "0.1", "0" } },
	{ VAE, "latents_mean", { "null" }, { "[0, 0, 0, 0]" } },
	{ VAE, "latents_std", { "null" }, { "[1, 1, 1, 1]" } },
	{ VAE, "scaling_factor", { "0.18215", "1", "null" }, { "0", "-1",
	    "\"x\"" } },
	{ VAE, "layers_per_block", { "1", "3" }, { "0", "[2]", "17" } },
	{ VAE, "latent_channels", { "16" }, { "0", "\"4\"" } },
	{ VAE, "in_channels", { "1" }, { "0" } },
	{ VAE, "out_channels", { "1" }, { "0" } },
	{ VAE, "block_out_channels", { "[128, 256, 512, 512]" }, { "null",
	    "[128, 250, 512, 512]", "[]" } },
	{ VAE, "norm_num_groups", { "16", "null" }, { "0", "7" } },
	{ VAE, "use_quant_conv", { "false", "null" }, { "\"x\"" } },
	{ VAE, "use_post_quant_conv", { "false" }, { "2.5" } },
	{ VAE, "mid_block_add_attention", { "false" }, { "[true]" } },
	{ VAE, "force_upcast", { "false", "true", "null" }, { NULL } },
	{ VAE, "sample_size", { "7", "null" }, { NULL } },
	{ VAE, "_class_name", { "null" }, { "\"AutoencoderTiny\"" } },

	{ CLIP, "model_type", { "\"clip_text_model\"", "null" },
	    { "\"clip\"", "\"t5\"" } },
	{ CLIP, "hidden_act", { "\"gelu\"", "\"quick_gelu\"" },
	    { "\"gelu_new\"", "3" } },
	{ CLIP, "hidden_size", { "640" }, { "0", "1281", "\"x\"" } },
	{ CLIP, "num_attention_heads", { "10" }, { "0", "7" } },
	{ CLIP, "num_hidden_layers", { "2" }, { "0", "1000" } },
	{ CLIP, "intermediate_size", { "7" }, { "0" } },
	{ CLIP, "projection_dim", { "768", "null" }, { "0" } },
	{ CLIP, "vocab_size", { "49410" }, { "0", "1e12" } },
	{ CLIP, "max_position_embeddings", { "248" }, { "0" } },
	{ CLIP, "layer_norm_eps", { "1e-6" }, { "0", "\"x\"" } },
	{ CLIP, "eos_token_id", { "49407", "2", "[49407]" }, { "\"x\"" } },
	{ CLIP, "use_attention_mask", { "false", "null" }, { "true" } },

	{ SCHEDULER, "beta_schedule", { "\"linear\"", "\"scaled_linear\"" },
	    { "\"squaredcos_cap_v2\"", "1" } },
	{ SCHEDULER, "beta_start", { "0.001", "null" }, { "0", "0.5",
	    "\"x\"" } },
	{ SCHEDULER, "beta_end", { "0.02" }, { "1", "0" } },
	{ SCHEDULER, "num_train_timesteps", { "500", "null" }, { "1",
	    "1000000", "\"x\"" } },
	{ SCHEDULER, "steps_offset", { "0", "null" }, { "-1", "1000" } },
	{ SCHEDULER, "prediction_type", { "\"epsilon\"",
	    "\"v_prediction\"", "null" }, { "\"sample\"" } },
	{ SCHEDULER, "timestep_spacing", { "\"trailing\"", "\"linspace\"" },
	    { "\"log\"" } },
	{ SCHEDULER, "trained_betas", { "null" }, { "[0.1, 0.2]" } },
	{ SCHEDULER, "rescale_betas_zero_snr", { "false", "null" },
	    { "true" } },
	{ SCHEDULER, "thresholding", { "false", "null" }, { "true" } }
};

/* Cannot be absent, or its default does not go with the others. */
static int
needed(const char *field)
{
	static const char *const list[] = { "block_out_channels",
	    "down_block_types", "up_block_types", "addition_time_embed_dim",
	    "projection_class_embeddings_input_dim", "addition_embed_type",
	    "hidden_size", "num_attention_heads" };
	size_t i;

	for (i = 0; i < sizeof(list) / sizeof(list[0]); i++)
		if (strcmp(list[i], field) == 0)
			return 1;
	return 0;
}

static void
test_table(lpo_ctx *c)
{
	char members[256];
	const char *f;
	size_t i, k;
	int good, n;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		good = 1;
		for (k = n = 0; k < 3 && table[i].fine[k] != NULL; k++, n++) {
			snprintf(members, sizeof(members), "\"%s\": %s",
			    table[i].field, table[i].fine[k]);
			if (take(c, table[i].part, members,
			    table[i].field) == 1 && notice[0] == '\0')
				continue;
			good = 0;
			printf("# %s: %s%s\n", members, lpo_errmsg(c),
			    notice);
		}
		for (k = 0; k < 5 && table[i].foreign[k] != NULL; k++, n++) {
			f = table[i].foreign[k];
			snprintf(members, sizeof(members), "\"%s\": %s",
			    table[i].field, f);
			if (take(c, table[i].part, members,
			    table[i].field) != 0) {
				good = 0;
				printf("# %s taken: %s\n", members,
				    lpo_errmsg(c));
				continue;
			}
			/* as if it were not there */
			snprintf(members, sizeof(members), "\"%s\": %s, "
			    "\"_use_default_values\": [\"%s\"]",
			    table[i].field, f, table[i].field);
			if (!needed(table[i].field) && take(c, table[i].part,
			    members, table[i].field) != 1) {
				good = 0;
				printf("# %s: %s\n", members, lpo_errmsg(c));
			}
		}
		ok(good, "%s: %d values", table[i].field, n);
	}
}

/* What only another class's config has is told, and no reason to refuse. */
static void
test_unknown(lpo_ctx *c)
{
	ok(take(c, UNET, "\"ema_decay\": 0.9", "") == 1 &&
	    strstr(notice, "'ema_decay'") != NULL, "unet: %s", notice);
	ok(take(c, VAE, "\"_name_or_path\": \"x\"", "") == 1 &&
	    notice[0] == '\0', "vae: a name with _ is no field");
	ok(take(c, SCHEDULER, "\"clip_sample\": true", "") == 1 &&
	    strstr(notice, "'clip_sample'") != NULL, "scheduler: %s", notice);
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();

	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	lpo_ctx_on_notice(c, keep_notice, NULL);
	test_table(c);
	test_unknown(c);
	lpo_rmtree(c, dir);
	lpo_ctx_free(c);
	return done_testing();
}
