/* The two halves of a CLIPModel's config.json. */
#include "lib/model/clip_joint.h"

#include <stdio.h>

#include "lib/base/json.h"
#include "lib/model/config.h"

static const struct lpo_config_field top[] = {
	{ "architectures", "[\"CLIPModel\"]" }, { "model_type", "\"clip\"" },
	{ "text_config", NULL }, { "vision_config", NULL },
	{ "text_config_dict", NULL }, { "vision_config_dict", NULL },
	{ "projection_dim", NULL }, { "logit_scale_init_value", NULL },
	{ "initializer_factor", NULL }, { "torch_dtype", NULL },
	{ "dtype", NULL }, { "transformers_version", NULL }, { NULL, NULL }
};

/* What WHICH_dict decides, said there or not. */
static const char *const own[] = {
	"attention_dropout", "bos_token_id", "dropout", "eos_token_id",
	"hidden_act", "hidden_size", "image_size", "intermediate_size",
	"layer_norm_eps", "max_position_embeddings", "num_attention_heads",
	"num_channels", "num_hidden_layers", "pad_token_id", "patch_size",
	"vocab_size"
};

/*
 * Fields of every transformers config, which old versions wrote out for each
 * tower: about generation, labels and training, none about the network.
 */
static const char *const generic[] = {
	"add_cross_attention", "architectures", "bad_words_ids",
	"begin_suppress_tokens", "chunk_size_feed_forward",
	"cross_attention_hidden_size", "decoder_start_token_id",
	"diversity_penalty", "do_sample", "early_stopping",
	"encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
	"finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
	"gradient_checkpointing", "id2label", "is_decoder",
	"is_encoder_decoder", "label2id", "length_penalty", "max_length",
	"min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
	"num_return_sequences", "output_attentions", "output_hidden_states",
	"output_scores", "prefix", "problem_type", "projection_dim",
	"remove_invalid_values", "repetition_penalty", "return_dict",
	"return_dict_in_generate", "sep_token_id", "suppress_tokens",
	"task_specific_params", "temperature", "tf_legacy_loss",
	"tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class",
	"top_k", "top_p", "torchscript", "typical_p", "use_bfloat16"
};

static void
remove_all(json_t *j, const char *const *list, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		json_object_del(j, list[i]);
}

static void
remove_nulls(json_t *j)
{
	const char *key;
	void *next;
	json_t *v;

	json_object_foreach_safe(j, next, key, v)
		if (json_is_null(v))
			json_object_del(j, key);
}

/* Layers that were cut out of a tower are a network we don't have. */
static int
check_pruned(lpo_ctx *c, json_t *j, const char *which)
{
	const json_t *v = json_object_get(j, "pruned_heads");

	if (v != NULL && json_object_size(v) > 0)
		return lpo_fail(c, LPO_EFORMAT, "'%s.pruned_heads' is not "
		    "supported", which);
	json_object_del(j, "pruned_heads");
	return 0;
}

static int
merge(lpo_ctx *c, json_t **sub, const json_t *j, const char *which)
{
	const json_t *part = lpo_json_get(j, which), *old;
	int64_t dim = 512;
	char name[32];
	int rc;

	snprintf(name, sizeof(name), "%s_dict", which);
	old = lpo_json_get(j, name);
	if ((part != NULL && !json_is_object(part)) ||
	    (old != NULL && !json_is_object(old)))
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not an object",
		    which);
	if (part == NULL && old == NULL)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is missing", which);
	if ((*sub = part != NULL ? json_deep_copy(part) : json_object()) ==
	    NULL)
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	if (old != NULL) {
		remove_all(*sub, own, sizeof(own) / sizeof(*own));
		if (json_object_update(*sub, (json_t *)(uintptr_t)old) != 0)
			return lpo_fail(c, LPO_ENOMEM, "out of memory");
	}
	remove_nulls(*sub);
	remove_all(*sub, generic, sizeof(generic) / sizeof(*generic));
	if ((rc = check_pruned(c, *sub, which)) < 0 ||
	    (rc = lpo_config_int(c, &dim, j, "projection_dim", 512, 1,
	    1 << 20)) < 0)
		return rc;
	return lpo_json_set(c, *sub, "projection_dim", json_integer(dim));
}

int
lpo_clip_joint_config(lpo_ctx *c, json_t **sub, const char *dir,
    const char *which)
{
	json_t *j = NULL;
	int rc;

	*sub = NULL;
	if ((rc = lpo_config_read(c, &j, NULL, dir, NULL)) < 0)
		return rc;
	if (lpo_json_get(j, "vision_config") == NULL &&
	    lpo_json_get(j, "vision_config_dict") == NULL)
		rc = lpo_fail(c, LPO_EFORMAT, "%s/config.json: no "
		    "'vision_config': not a CLIP model of two towers", dir);
	else if ((rc = lpo_config_check(c, j, top, dir)) == 0 &&
	    (rc = merge(c, sub, j, which)) < 0)
		lpo_fail_prefix(c, "%s/config.json", dir);
	if (rc < 0) {
		json_decref(*sub);
		*sub = NULL;
	}
	json_decref(j);
	return rc;
}
