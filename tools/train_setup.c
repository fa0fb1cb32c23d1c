/* lpo-train: what was asked for, settled; texts, networks and trainer. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/model/random.h"
#include "lib/model/source.h"
#include "lib/model/unet_priv.h"
#include "tools/train.h"

/* ---------------------------------------------------------------- options */

static int
contradictions(struct train_run *r)
{
	static const char *const pair[][2] = {
		{ "epochs", "iterations" }, { "full", "rank" },
		{ "full", "alpha" }, { "full", "targets" },
		{ "full", "init-lora" }, { "full", "lora-format" },
		{ "full", "lora-f32" }
	};
	lpo_cli *cli = r->cli;
	size_t i;

	for (i = 0; i < sizeof(pair) / sizeof(*pair); i++)
		if (lpo_cli_given(cli, pair[i][0]) &&
		    lpo_cli_given(cli, pair[i][1]))
			return lpo_cli_usage(cli, "--%s and --%s contradict "
			    "each other", pair[i][0], pair[i][1]);
	if (lpo_cli_given(cli, "dtype") && !r->o->full)
		return lpo_cli_usage(cli, "--dtype is for --full; a LoRA has "
		    "--lora-f32");
	if (r->check_every == 0 && (lpo_cli_given(cli, "check-prompts") ||
	    lpo_cli_given(cli, "check-count")))
		return lpo_cli_usage(cli, "--check-prompts and --check-count "
		    "need --check-every or --save-every");
	return 0;
}

/* -o: a file for a LoRA, a folder for a UNet. */
static int
output(struct train_run *r)
{
	const char *o = r->cli->o.output;
	size_t n = strlen(o);
	int folder = o[n - 1] == '/' || lpo_is_dir(o);

	if (strchr(o, '%') != NULL)
		return lpo_cli_usage(r->cli, "-o '%s': one file or folder, no "
		    "pattern", o);
	if (r->o->full && lpo_ends_with(o, ".safetensors"))
		return lpo_cli_usage(r->cli, "-o '%s': --full writes a model "
		    "folder", o);
	if (r->o->full && lpo_random_is(r->cli->o.model))
		return lpo_cli_usage(r->cli, "--full needs a model in files, "
		    "not '%s': lpo-probe --save writes it as a folder",
		    r->cli->o.model);
	if (!r->o->full && folder)
		return lpo_cli_usage(r->cli, "-o '%s': a LoRA is one file; "
		    "--full writes a folder", o);
	if ((r->output = lpo_strdup(r->cli->ctx, o)) == NULL)
		return LPO_ENOMEM;
	while (n > 1 && r->output[n - 1] == '/')
		r->output[--n] = '\0';
	return 0;
}

int
lpo_traintool_options(struct train_run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	r->check_every = lpo_cli_given(cli, "check-every") ?
	    r->o->check_every : r->o->save_every;
	if ((rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	if (r->o->reward == NULL || r->o->prompts == NULL ||
	    lpo_cli_to_stdout(cli) || cli->o.output[0] == '\0')
		return lpo_cli_usage(cli, "-r, -p and -o are needed");
	if (cli->nargs > 0)
		return lpo_cli_usage(cli, "what is '%s'?", cli->args[0]);
	if ((rc = contradictions(r)) != 0)
		return rc;
	return output(r);
}

/* --------------------------------------------------------------- settings */

/* The presets of method.md 3.7, globally; options given override. */
static void
settings(struct train_run *r, int xl)
{
	const struct train_opts *o = r->o;
	lpo_cli *cli = r->cli;
	struct lpo_lpo_options *lo = &r->lo;

	r->rank = lpo_cli_given(cli, "rank") ? o->rank : xl ? 64 : 4;
	lo->prompts = o->prompts_per_iteration ? o->prompts_per_iteration :
	    xl ? 16 : 20;
	lo->batch = o->batch ? o->batch : xl ? 16 : 40;
	r->lr = lpo_cli_given(cli, "lr") ? o->lr : o->full ? 1e-6 :
	    xl ? 1e-5 : 6e-5;
	lo->adamw.lr = (float)r->lr;
	lo->adamw.beta1 = 0.9f;
	lo->adamw.beta2 = 0.999f;
	lo->adamw.eps = 1e-8f;
	lo->adamw.weight_decay = (float)o->weight_decay;
	lo->seed = cli->o.seed;
	lo->steps = o->steps;
	lo->candidates = o->candidates;
	lo->cut.pairs = o->micro_batch;
	lo->cut.segments = (enum lpo_segments)o->segments;
	lo->eta = o->eta;
	lo->guidance = o->guidance;
	lo->loss.beta = o->beta;
	lo->loss.clip = o->clip;
	lo->real_timestep = o->lrm_timestep == 1;
	lo->max_grad_norm = o->max_grad_norm;
	lo->t_lo = 0;
	lo->t_hi = INT64_MAX;
	r->threshold = o->threshold != NULL ? o->threshold :
	    xl ? "sigma:0.45:0.6" : "sigma:0.35:0.5";
	r->iterations = o->iterations ? o->iterations :
	    (o->epochs * r->trained + lo->prompts - 1) / lo->prompts;
}

/* The run id has what the presets came to, not their names. */
static void
resolved(struct train_run *r)
{
	const struct lpo_lpo_options *lo = &r->lo;
	lpo_cli *cli = r->cli;
	int own = !r->o->full && r->o->init_lora == NULL;

	lpo_cli_resolved(cli, "rank", own ? json_integer(r->rank) :
	    json_null());
	lpo_cli_resolved(cli, "prompts-per-iteration",
	    json_integer(lo->prompts));
	lpo_cli_resolved(cli, "batch", json_integer(lo->batch));
	lpo_cli_resolved(cli, "lr", json_real(r->lr));
	lpo_cli_resolved(cli, "threshold", json_string(r->threshold));
	lpo_cli_resolved(cli, "iterations", json_integer(r->iterations));
}

static int
parse_specs(struct train_run *r)
{
	const char *t = r->o->timesteps;
	long long lo, hi;
	int end = 0, rc;

	if ((rc = lpo_threshold_parse(r->cli->ctx, &r->lo.threshold,
	    r->threshold)) < 0) {
		rc = lpo_cli_usage(r->cli, "%s", lpo_errmsg(r->cli->ctx));
		lpo_clear(r->cli->ctx);
		return rc;
	}
	if (t == NULL)
		return 0;
	if (sscanf(t, "%lld:%lld%n", &lo, &hi, &end) != 2 || t[end] != '\0' ||
	    lo < 0 || hi < lo)
		return lpo_cli_usage(r->cli, "bad --timesteps '%s': want "
		    "LO:HI", t);
	r->lo.t_lo = lo;
	r->lo.t_hi = hi;
	return 0;
}

/* Picture size, and the latent's side by the VAE's factor. */
static int
sizes(struct train_run *r, const struct lpo_unet_config *cfg)
{
	lpo_ctx *c = r->cli->ctx;
	char *path = NULL;
	json_t *j = NULL, *channels;
	int64_t factor, px;
	int rc;

	if ((rc = lpo_cli_model_part(r->cli, &path, "vae/config.json")) < 0 ||
	    (rc = lpo_source_json(c, &j, path, 1 << 20)) < 0)
		goto out;
	if ((rc = lpo_json_real(c, &r->scaling_factor, j, "scaling_factor",
	    0.18215)) < 0) {
		lpo_fail_prefix(c, "%s", path);
		goto out;
	}
	channels = lpo_json_get(j, "block_out_channels");
	if (json_array_size(channels) < 1 || json_array_size(channels) > 8) {
		rc = lpo_fail(c, LPO_EFORMAT, "%s: no block_out_channels",
		    path);
		goto out;
	}
	factor = (int64_t)1 << (json_array_size(channels) - 1);
	px = r->o->size_px ? r->o->size_px : cfg->sample_size * factor;
	if (px % factor != 0)
		rc = lpo_cli_usage(r->cli, "--size %lld is no multiple of "
		    "%lld", (long long)px, (long long)factor);
	r->lo.h = r->lo.w = px / factor;
	r->lo.height_px = r->lo.width_px = px;
out:
	json_decref(j);
	lpo_free(path);
	return rc;
}

/* -p, and behind its prompts those of --check-prompts. */
static int
read_prompts(struct train_run *r)
{
	lpo_ctx *c = r->cli->ctx;
	struct lpo_prompts more = { 0 };
	int64_t i, n = r->o->check_count;
	char **text;
	int rc;

	if ((rc = lpo_prompts_read(c, &r->prompts, r->o->prompts)) < 0)
		return rc;
	r->trained = r->prompts.n;
	if (r->check_every > 0)
		r->lo.check_prompts = n < r->trained ? n : r->trained;
	if (r->o->check_prompts == NULL)
		return 0;
	if ((rc = lpo_prompts_read(c, &more, r->o->check_prompts)) < 0)
		return rc;
	if (!lpo_cli_given(r->cli, "check-count") || n > more.n)
		n = more.n;
	text = lpo_realloc(c, r->prompts.text, (size_t)(r->trained + n) *
	    sizeof(*text));
	if (text == NULL) {
		lpo_prompts_free(&more);
		return LPO_ENOMEM;
	}
	r->prompts.text = text;
	r->prompts.cap = r->trained + n;
	for (i = 0; i < n; i++) {
		text[r->prompts.n++] = more.text[i];
		more.text[i] = NULL;
	}
	lpo_prompts_free(&more);
	r->lo.check_first = r->trained;
	r->lo.check_prompts = n;
	return 0;
}

/*
 * The policy is f32 unless another is asked for: what bf16 rounds away between
 * policy and reference is no smaller than what the loss takes for a
 * difference (tests/parity/bf16_noise.py).  Scores bear it.
 */
static void
precision(struct train_run *r)
{
	lpo_cli *cli = r->cli;

	r->lrm_dtype = lpo_cli_precision(cli);
	if (cli->o.precision == LPO_PREC_AUTO)
		cli->o.precision = LPO_PREC_F32;
	r->parts.dtype = lpo_cli_precision(cli);
	lpo_cli_resolved(cli, "lrm_precision", json_string(
	    lpo_cli_precision_name(cli, r->lrm_dtype)));
}

int
lpo_traintool_settle(struct train_run *r)
{
	struct lpo_unet_config cfg = { 0 };
	lpo_cli *cli = r->cli;
	char *dir = NULL;
	int rc;

	precision(r);
	if ((rc = read_prompts(r)) < 0 ||
	    (rc = lpo_cli_model_part(cli, &dir, "unet")) != 0)
		return rc;
	rc = lpo_unet_read_config(cli->ctx, &cfg, NULL, dir);
	lpo_free(dir);
	if (rc < 0)
		return rc;
	settings(r, r->o->preset == 3 || (r->o->preset == 0 &&
	    cfg.text_time));
	if ((rc = sizes(r, &cfg)) != 0 || (rc = parse_specs(r)) != 0)
		return rc;
	resolved(r);
	if ((rc = lpo_cli_input_dir(cli, "model", cli->o.model)) < 0 ||
	    (rc = lpo_cli_input_dir(cli, "reward", r->o->reward)) < 0 ||
	    (rc = lpo_cli_input_prompts(cli, r->o->prompts,
	    &r->prompts)) < 0 ||
	    (r->o->init_lora != NULL && (rc = lpo_cli_input_file(cli,
	    "init-lora", r->o->init_lora)) < 0))
		return rc;
	return 0;
}

/* ---------------------------------------------------------------- loading */

/*
 * Text first, encoders freed before a UNet is loaded, so that the peak is
 * what training needs.
 */
static int
load_texts(struct train_run *r)
{
	lpo_ctx *c = r->cli->ctx;
	lpo_text *text = NULL;
	struct lpo_lrm_config cfg = { .guidance = NAN, .multi_scale = -1,
	    .multi_scale_cfg = -1 };
	const char *const *p = (const char *const *)r->prompts.text;
	int64_t n = r->prompts.n;
	int rc;

	if ((rc = lpo_text_open(c, r->parts.be, &text, r->cli->o.model,
	    r->parts.dtype)) < 0 ||
	    (rc = lpo_policy_texts_new(c, &r->texts, text, p, n)) < 0)
		goto out;
	r->parts.length = lpo_text_length(text);
	r->parts.dim = lpo_text_dim(text);
	r->parts.pooled_dim = lpo_text_pooled_dim(text);
	/* both models encode them, and the empty prompt; ours in eights, the
	 * reward model's in sixteens */
	if (r->cli->o.dry_run && (rc = lpo_text_time(text, 2 * n + 24,
	    &r->text_s)) < 0)
		goto out;
	lpo_text_free(text);
	text = NULL;
	if (lpo_cli_given(r->cli, "lrm-guidance"))
		cfg.guidance = r->o->lrm_guidance;
	if ((rc = lpo_lrm_open(c, r->parts.be, &r->lrm, r->o->reward,
	    r->cli->o.model, r->lrm_dtype, &cfg)) < 0)
		goto out;
	rc = lpo_lrm_texts_new(c, &r->lrm_texts, r->lrm, p, n);
out:
	lpo_text_free(text);
	return rc;
}

/* The reward model must judge what this model draws. */
static int
check_reward(struct train_run *r)
{
	lpo_cli *cli = r->cli;
	char hex[65] = "", *vae = NULL;
	int rc;

	if (lpo_lrm_cfg(r->lrm)->vae_sha256[0] != '\0') {
		if ((rc = lpo_cli_model_part(cli, &vae, "vae")) == 0)
			rc = lpo_cli_sha256_dir(cli, hex, vae);
		lpo_free(vae);
		if (rc != 0)
			return rc;
	}
	rc = lpo_lrm_check_latents(cli->ctx, lpo_lrm_cfg(r->lrm),
	    lpo_unet_cfg(r->unet)->in_channels, r->scaling_factor, hex);
	if (rc < 0)
		lpo_fail_prefix(cli->ctx, "%s", r->o->reward);
	return rc;
}

/* A LoRA to go on with is of its own rank, alpha and layers. */
static int
check_init(struct train_run *r)
{
	struct lpo_lora_shape s;
	const char *file = r->o->init_lora;
	lpo_cli *cli = r->cli;

	lpo_lora_shape(r->lora, &s);
	if (lpo_cli_given(cli, "rank") &&
	    (s.rank_min != r->o->rank || s.rank_max != r->o->rank))
		return lpo_cli_usage(cli, "--rank %lld, but --init-lora '%s' "
		    "has rank %lld", (long long)r->o->rank, file,
		    (long long)(s.rank_min != r->o->rank ? s.rank_min :
		    s.rank_max));
	if (lpo_cli_given(cli, "alpha") &&
	    (fabs(s.alpha_min - r->o->alpha) > 1e-6 * r->o->alpha ||
	    fabs(s.alpha_max - r->o->alpha) > 1e-6 * r->o->alpha))
		return lpo_cli_usage(cli, "--alpha %g, but --init-lora '%s' "
		    "has alpha %g", r->o->alpha, file, s.alpha_min);
	if (lpo_cli_given(cli, "targets") &&
	    r->o->targets != (s.others > 0 ? LPO_LORA_ALL :
	    LPO_LORA_ATTENTION))
		return lpo_cli_usage(cli, "--targets %s, but --init-lora '%s' "
		    "has %lld layers that are no attention's", r->o->targets ==
		    LPO_LORA_ALL ? "all" : "attention", file,
		    (long long)s.others);
	return 0;
}

/* What is trained, on the loaded UNet. */
static int
make_trainable(struct train_run *r, const char *dir)
{
	lpo_ctx *c = r->cli->ctx;
	int rc;

	if (r->o->full) {
		if ((rc = lpo_unet_load(c, r->parts.be, &r->reference, dir,
		    r->parts.dtype, 0)) < 0)
			return rc;
		return lpo_params_train_all(lpo_unet_params(r->unet));
	}
	if (r->o->init_lora == NULL)
		return lpo_lora_attach(c, &r->lora, r->unet,
		    (enum lpo_lora_targets)r->o->targets, r->rank,
		    (float)(lpo_cli_given(r->cli, "alpha") ? r->o->alpha :
		    (double)r->rank), r->cli->o.seed);
	if ((rc = lpo_lora_load(c, &r->lora, r->unet, r->o->init_lora, 1,
	    1)) < 0)
		return rc;
	return check_init(r);
}

static int
load_networks(struct train_run *r)
{
	lpo_ctx *c = r->cli->ctx;
	char *path = NULL;
	int rc;

	if ((rc = lpo_cli_model_part(r->cli, &path, "unet")) < 0 ||
	    (rc = lpo_unet_load(c, r->parts.be, &r->unet, path,
	    r->parts.dtype, 0)) < 0)
		goto out;
	if ((rc = lpo_policy_check_texts(c, lpo_unet_cfg(r->unet),
	    r->parts.dim, r->parts.pooled_dim, r->cli->o.model)) < 0 ||
	    (rc = check_reward(r)) < 0 ||
	    (rc = make_trainable(r, path)) != 0)
		goto out;
	if ((rc = lpo_lrm_load_unet(r->lrm)) == 0)
		rc = lpo_schedule_load(c, &r->schedule, r->cli->o.model);
out:
	lpo_free(path);
	return rc;
}

int
lpo_traintool_open(struct train_run *r)
{
	struct lpo_lrm_set set[4];
	int rc, i, n;

	if ((rc = load_texts(r)) != 0 || (rc = load_networks(r)) != 0)
		return rc;
	r->parts.unet = r->unet;
	r->parts.reference = r->reference;
	r->parts.lora = r->lora;
	r->parts.schedule = &r->schedule;
	r->parts.texts = r->texts;
	r->parts.prompts = r->trained;
	r->parts.lrm = r->lrm;
	r->parts.lrm_texts = r->lrm_texts;
	n = lpo_lrm_sets(r->lrm, set);
	for (i = 0, r->reward_bytes = 0; i < n; i++)
		r->reward_bytes += set[i].params->bytes;
	r->weights_bytes = r->reward_bytes + lpo_unet_params(r->unet)->bytes;
	return 0;
}

void
lpo_traintool_close(struct train_run *r)
{
	lpo_lpo_free(r->trainer);
	lpo_lora_free(r->lora);
	lpo_unet_free(r->unet);
	lpo_unet_free(r->reference);
	lpo_lrm_texts_free(r->lrm_texts);
	lpo_lrm_free(r->lrm);
	lpo_policy_texts_free(r->texts);
	lpo_schedule_free(&r->schedule);
	r->trainer = NULL;
	r->lora = NULL;
	r->unet = r->reference = NULL;
	r->lrm_texts = NULL;
	r->lrm = NULL;
	r->texts = NULL;
}
