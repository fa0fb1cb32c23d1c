/* lpo-train: prompts, a diffusion model and a reward model to a LoRA. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/json.h"
#include "lib/base/state.h"
#include "lib/io/db.h"
#include "lib/io/prompts.h"
#include "lib/io/safetensors.h"
#include "lib/model/source.h"
#include "lib/model/vae.h"
#include "lib/train/lpo.h"
#include "tools/cli.h"

struct opts {
	const char *reward, *prompts, *threshold, *init_lora, *timesteps;
	int objective, targets, lrm_timestep, format, preset, full_precision;
	int64_t size_px, iterations, rank, batch, micro_batch, steps;
	int64_t candidates, epochs, prompts_per_iteration, save_every;
	double lr, beta, clip, guidance, lrm_guidance, eta, max_grad_norm;
	double weight_decay, alpha;
};

#define OFF(m)	offsetof(struct opts, m)
#define R	LPO_CLI_RESULT

static const struct lpo_cli_option options[] = {
	{ "What is trained", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "reward", 'r', "DIR", "latent reward model (from lpo-lrm)",
	    LPO_CLI_STRING, OFF(reward), 0, 0, 0 },
	{ "prompts", 'p', "FILE", "CSV, TSV, JSONL, JSON or a text file",
	    LPO_CLI_STRING, OFF(prompts), 0, 0, 0 },
	{ "objective", 0, "lpo", "what is optimised", LPO_CLI_CHOICE,
	    OFF(objective), R, 0, 0 },
	{ "targets", 0, "attention|all", "layers that get a LoRA "
	    "(default attention)", LPO_CLI_CHOICE, OFF(targets), R, 0, 0 },
	{ "rank", 0, "N", "of the LoRA (default 4; sdxl 64)", LPO_CLI_I64,
	    OFF(rank), R, 1, 4096 },
	{ "alpha", 0, "X", "LoRA scale times rank (default: the rank)",
	    LPO_CLI_F64, OFF(alpha), R, 0.001, 1e6 },
	{ "init-lora", 0, "FILE", "start from this LoRA", LPO_CLI_STRING,
	    OFF(init_lora), 0, 0, 0 },
	{ "lora-format", 0, "kohya|diffusers|both", "keys of the file "
	    "(default kohya)", LPO_CLI_CHOICE, OFF(format), R, 0, 0 },
	{ "lora-f32", 0, NULL, "store the LoRA in f32 instead of f16",
	    LPO_CLI_FLAG, OFF(full_precision), R, 0, 0 },
	{ "How long", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "preset", 0, "auto|sd15|sd21|sdxl", "the paper's settings (default: "
	    "by the model)", LPO_CLI_CHOICE, OFF(preset), 0, 0, 0 },
	{ "iterations", 0, "N", "instead of --epochs", LPO_CLI_I64,
	    OFF(iterations), R, 1, 1e9 },
	{ "epochs", 0, "N", "passes over the prompts (default 5)",
	    LPO_CLI_I64, OFF(epochs), R, 1, 60000 },
	{ "prompts-per-iteration", 0, "N", "default 20; sdxl 16",
	    LPO_CLI_I64, OFF(prompts_per_iteration), R, 1, 1e6 },
	{ "batch", 0, "N", "pairs per optimiser step (default 40; sdxl 16)",
	    LPO_CLI_I64, OFF(batch), R, 1, 1e6 },
	{ "micro-batch", 0, "N", "pairs at once; the result does not depend "
	    "on it", LPO_CLI_I64, OFF(micro_batch), 0, 1, 1e6 },
	{ "save-every", 0, "N", "publish NAME-000200.safetensors each N "
	    "iterations", LPO_CLI_I64, OFF(save_every), 0, 1, 1e9 },
	{ "Rollout", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "size", 's', "PX", "picture size (default: the model's)",
	    LPO_CLI_I64, OFF(size_px), R, 8, 16384 },
	{ "steps", 0, "N", "DDIM steps (default 20)", LPO_CLI_I64,
	    OFF(steps), R, 1, 1000 },
	{ "candidates", 0, "K", "per step (default 4)", LPO_CLI_I64,
	    OFF(candidates), R, 2, 64 },
	{ "eta", 0, "X", "DDIM noise (default 1)", LPO_CLI_F64, OFF(eta), R,
	    0.01, 1 },
	{ "guidance", 0, "X", "guidance scale of the policy (default 5)",
	    LPO_CLI_F64, OFF(guidance), R, 0, 100 },
	{ "lrm-guidance", 0, "X", "of a reward model that does not say",
	    LPO_CLI_F64, OFF(lrm_guidance), R, 0, 100 },
	{ "lrm-timestep", 0, "official|real", "score candidates at the "
	    "step's t or at their own", LPO_CLI_CHOICE, OFF(lrm_timestep), R,
	    0, 0 },
	{ "timesteps", 0, "LO:HI", "learn only from steps with t in LO..HI",
	    LPO_CLI_STRING, OFF(timesteps), R, 0, 0 },
	{ "threshold", 0, "SPEC", "sigma:LO:HI, variance:LO:HI, "
	    "linear:LO:HI, static:T, quantile:Q", LPO_CLI_STRING,
	    OFF(threshold), R, 0, 0 },
	{ "Optimiser", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "lr", 0, "X", "learning rate (default 6e-5; sdxl 1e-5)",
	    LPO_CLI_F64, OFF(lr), R, 0, 10 },
	{ "beta", 0, "X", "strength of the preference (default 500)",
	    LPO_CLI_F64, OFF(beta), R, 0, 1e9 },
	{ "clip", 0, "X", "probability ratios to 1-X..1+X (default 0.1)",
	    LPO_CLI_F64, OFF(clip), R, 1e-6, 0.999 },
	{ "weight-decay", 0, "X", "default 1e-4", LPO_CLI_F64,
	    OFF(weight_decay), R, 0, 10 },
	{ "max-grad-norm", 0, "X", "0, the default, is off as in the official "
	    "run", LPO_CLI_F64, OFF(max_grad_norm), R, 0, 1e9 },
	{ NULL, 0, NULL, NULL, 0, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-train", "prompts to an aligned model",
	"-m MODEL -r LRM -p PROMPTS -o aligned.safetensors [options]", options
};

/* All a run holds. */
struct run {
	lpo_cli *cli;
	const struct opts *o;
	struct lpo_prompts prompts;
	struct lpo_schedule schedule;
	lpo_unet *unet;
	lpo_lora_set *lora;
	lpo_lrm *lrm;
	lpo_lrm_texts *lrm_texts;
	lpo_policy_texts *texts;
	struct lpo_lpo_parts parts;
	struct lpo_lpo_options lo;
	int64_t iterations, rank;
	lpo_lpo *trainer;
	lpo_state *state;
	lpo_snap *snap;
	double spread_first;	/* score spread of the first iterations */
	double warned_spread, warned_valid, warned_clip;
	double start_s;
	int64_t start_iteration, pairs_done;
};

/* ------------------------------------------------------------- settings */

/* The presets of method.md 3.7, globally; options given override. */
static void
settings(struct run *r, const struct lpo_unet_config *cfg)
{
	const struct opts *o = r->o;
	lpo_cli *cli = r->cli;
	int xl = o->preset == 3 || (o->preset == 0 && cfg->text_time);
	struct lpo_lpo_options *lo = &r->lo;

	r->rank = lpo_cli_given(cli, "rank") ? o->rank : xl ? 64 : 4;
	lo->prompts = o->prompts_per_iteration ? o->prompts_per_iteration :
	    xl ? 16 : 20;
	lo->batch = o->batch ? o->batch : xl ? 16 : 40;
	lo->adamw.lr = (float)(lpo_cli_given(cli, "lr") ? o->lr :
	    xl ? 1e-5 : 6e-5);
	lo->adamw.beta1 = 0.9f;
	lo->adamw.beta2 = 0.999f;
	lo->adamw.eps = 1e-8f;
	lo->adamw.weight_decay = (float)o->weight_decay;
	lo->seed = cli->o.seed;
	lo->steps = o->steps;
	lo->candidates = o->candidates;
	lo->micro_batch = o->micro_batch;
	lo->eta = o->eta;
	lo->guidance = o->guidance;
	lo->loss.beta = o->beta;
	lo->loss.clip = o->clip;
	lo->real_timestep = o->lrm_timestep == 1;
	lo->max_grad_norm = o->max_grad_norm;
	lo->t_lo = 0;
	lo->t_hi = INT64_MAX;
	r->iterations = o->iterations ? o->iterations :
	    (o->epochs * r->prompts.n + lo->prompts - 1) / lo->prompts;
}

static int
parse_specs(struct run *r, int xl)
{
	const char *spec = r->o->threshold != NULL ? r->o->threshold :
	    xl ? "sigma:0.45:0.6" : "sigma:0.35:0.5";
	const char *t = r->o->timesteps;
	long long lo, hi;
	int end = 0, rc;

	if ((rc = lpo_threshold_parse(r->cli->ctx, &r->lo.threshold,
	    spec)) < 0) {
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
sizes(struct run *r, const struct lpo_unet_config *cfg)
{
	char *path = NULL;
	json_t *j = NULL, *channels;
	int64_t factor, px;
	int rc;

	if ((rc = lpo_cli_model_part(r->cli, &path, "vae/config.json")) < 0 ||
	    (rc = lpo_source_json(r->cli->ctx, &j, path, 1 << 20)) < 0)
		goto out;
	channels = lpo_json_get(j, "block_out_channels");
	if (json_array_size(channels) < 1 || json_array_size(channels) > 8) {
		rc = lpo_fail(r->cli->ctx, LPO_EFORMAT,
		    "%s: no block_out_channels", path);
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

/* ---------------------------------------------------------------- loading */

/*
 * Text first, encoders freed before a UNet is loaded, so that the peak is
 * what training needs.
 */
static int
load_texts(struct run *r)
{
	lpo_ctx *c = r->cli->ctx;
	lpo_text *text = NULL;
	struct lpo_lrm_config cfg = { .guidance = NAN, .multi_scale = -1,
	    .multi_scale_cfg = -1 };
	const char *const *p = (const char *const *)r->prompts.text;
	int rc;

	if ((rc = lpo_text_open(c, &r->cli->be, &text, r->cli->o.model,
	    r->parts.dtype)) < 0 ||
	    (rc = lpo_policy_texts_new(c, &r->texts, text, p,
	    r->prompts.n)) < 0)
		goto out;
	r->parts.length = lpo_text_length(text);
	r->parts.dim = lpo_text_dim(text);
	r->parts.pooled_dim = lpo_text_pooled_dim(text);
	lpo_text_free(text);
	text = NULL;
	if (lpo_cli_given(r->cli, "lrm-guidance"))
		cfg.guidance = r->o->lrm_guidance;
	if ((rc = lpo_lrm_open(c, &r->cli->be, &r->lrm, r->o->reward,
	    r->cli->o.model, r->parts.dtype, &cfg)) < 0)
		goto out;
	rc = lpo_lrm_texts_new(c, &r->lrm_texts, r->lrm, p, r->prompts.n);
out:
	lpo_text_free(text);
	return rc;
}

static int
load_networks(struct run *r)
{
	lpo_ctx *c = r->cli->ctx;
	char *path = NULL;
	int rc;

	if ((rc = lpo_cli_model_part(r->cli, &path, "unet")) < 0 ||
	    (rc = lpo_unet_load(c, &r->cli->be, &r->unet, path,
	    r->parts.dtype, 0)) < 0)
		goto out;
	settings(r, lpo_unet_cfg(r->unet));
	if ((rc = sizes(r, lpo_unet_cfg(r->unet))) != 0 ||
	    (rc = parse_specs(r, lpo_unet_cfg(r->unet)->text_time)) != 0)
		goto out;
	rc = r->o->init_lora != NULL ?
	    lpo_lora_load(c, &r->lora, r->unet, r->o->init_lora, 1, 1) :
	    lpo_lora_attach(c, &r->lora, r->unet,
	    (enum lpo_lora_targets)r->o->targets, r->rank,
	    (float)(lpo_cli_given(r->cli, "alpha") ? r->o->alpha :
	    (double)r->rank), r->cli->o.seed);
	if (rc == 0)
		rc = lpo_schedule_load(c, &r->schedule, r->cli->o.model);
out:
	lpo_free(path);
	return rc;
}

static int
make_trainer(struct run *r)
{
	int64_t room = lpo_cli_memory(r->cli);

	r->parts.be = &r->cli->be;
	r->parts.unet = r->unet;
	r->parts.lora = r->lora;
	r->parts.schedule = &r->schedule;
	r->parts.texts = r->texts;
	r->parts.lrm = r->lrm;
	r->parts.lrm_texts = r->lrm_texts;
	room -= lpo_unet_params(r->unet)->bytes +
	    lpo_lora_params(r->lora)->bytes;
	/* What is left also holds the reward model and rollouts. */
	r->lo.memory_bytes = room > 0 ? (size_t)(room / 2) : 0;
	return lpo_lpo_new(r->cli->ctx, &r->trainer, &r->parts, &r->lo);
}

/* ----------------------------------------------------------------- words */

static void
bytes_line(lpo_cli *cli, const char *what, int64_t bytes)
{
	(void)cli;
	printf("%s\t%.1f MiB\n", what, (double)bytes / 1048576);
}

static int
print_plan(struct run *r)
{
	struct lpo_lpo_plan p;
	const struct lpo_lpo_options *o = &r->lo;

	lpo_lpo_plan(r->trainer, &p);
	printf("prompts\t%lld\n", (long long)r->prompts.n);
	printf("iterations\t%lld\n", (long long)r->iterations);
	printf("transitions per iteration\t%lld\n",
	    (long long)(o->steps * o->prompts));
	printf("latent\t%lld x %lld\n", (long long)o->h, (long long)o->w);
	printf("LoRA\t%lld parameters\n", (long long)
	    (lpo_params_state_count(lpo_lora_params(r->lora)) / 3));
	printf("rows at once\trollout %lld, scoring %lld, pairs %lld\n",
	    (long long)p.rollout_groups, (long long)p.score_groups,
	    (long long)p.micro_batch);
	bytes_line(r->cli, "UNet", lpo_unet_params(r->unet)->bytes);
	bytes_line(r->cli, "LoRA and optimiser",
	    lpo_lora_params(r->lora)->bytes);
	bytes_line(r->cli, "activations", (int64_t)p.activation_bytes);
	bytes_line(r->cli, "rollouts", (int64_t)p.host_bytes);
	bytes_line(r->cli, "encoded prompts (mapped file)",
	    lpo_policy_texts_bytes(r->texts));
	printf("GFLOP per iteration\trollout %.1f, scoring %.1f, %.2f per "
	    "valid pair\n", p.rollout_flops / 1e9, p.score_flops / 1e9,
	    p.pair_flops / 1e9);
	return LPO_CLI_DONE;
}

/*
 * The step line and what a person should know: few valid pairs, candidates
 * that no longer differ for the LRM, clipping, steps left out.
 */
static void
health(struct run *r, const struct lpo_lpo_report *p)
{
	double valid = p->transitions ? (double)p->valid /
	    (double)p->transitions : 0;
	double clip = (p->clipped_win + p->clipped_lose) / 2;
	lpo_cli *cli = r->cli;

	if (valid < 0.05 && !r->warned_valid) {
		r->warned_valid = 1;
		lpo_cli_note(cli, "only %.1f %% of the transitions are valid "
		    "pairs: the reward model tells candidates apart by less "
		    "than the threshold; lower it, or let --threshold "
		    "quantile:0.6 set it from the scores", 100 * valid);
	}
	if (r->spread_first == 0)
		r->spread_first = p->score_spread;
	if (p->score_spread < r->spread_first / 2 && !r->warned_spread) {
		r->warned_spread = 1;
		lpo_cli_note(cli, "the candidates' scores spread half as much "
		    "as at the start (%.3f, was %.3f): the policy is "
		    "narrowing; an earlier --save-every file may be the "
		    "better one, or lower --lr", p->score_spread,
		    r->spread_first);
	}
	if (clip > 0.05 && !r->warned_clip) {
		r->warned_clip = 1;
		lpo_cli_note(cli, "%.0f %% of the probability ratios are "
		    "clipped: those pairs teach nothing; lower --lr or raise "
		    "--clip", 100 * clip);
	}
	if (p->skipped_steps > 0)
		lpo_cli_note(cli, "iteration %lld: %lld steps with a loss or "
		    "gradient that is not finite were left out",
		    (long long)p->iteration, (long long)p->skipped_steps);
	if (p->bad_scores > 0)
		lpo_cli_note(cli, "iteration %lld: %lld transitions had "
		    "scores that are not finite", (long long)p->iteration,
		    (long long)p->bad_scores);
}

static int
metrics(struct run *r, const struct lpo_lpo_report *p)
{
	const struct { const char *name; double v; } m[] = {
		{ "transitions", (double)p->transitions },
		{ "valid", (double)p->valid },
		{ "score_mean", p->score_mean },
		{ "score_spread", p->score_spread },
		{ "margin_mean", p->margin_mean },
		{ "loss", p->loss },
		{ "implicit_accuracy", p->implicit_accuracy },
		{ "ratio_win", p->ratio_win },
		{ "ratio_lose", p->ratio_lose },
		{ "clipped_win", p->clipped_win },
		{ "clipped_lose", p->clipped_lose },
		{ "grad_norm", p->grad_norm },
		{ "skipped_steps", (double)p->skipped_steps },
		{ "optimiser_steps",
		    (double)lpo_lpo_optimiser_steps(r->trainer) },
		{ "threshold_scale", lpo_lpo_threshold(r->trainer)->scale }
	};
	size_t i;
	int rc = 0;

	for (i = 0; i < sizeof(m) / sizeof(*m) && rc == 0; i++)
		rc = lpo_cli_metric(r->cli, m[i].name, p->iteration, m[i].v);
	return rc;
}

static void
step_line(struct run *r, const struct lpo_lpo_report *p)
{
	double s = lpo_cli_now() - r->start_s;

	r->pairs_done += p->pairs;
	if (!lpo_cli_want_lines(r->cli))
		return;
	lpo_cli_progress_end(r->cli);
	fprintf(stderr, "iteration %lld/%lld  pairs %lld/%lld "
	    "(t>750 %lld, >500 %lld, >250 %lld, rest %lld)  score %.3f "
	    "spread %.3f margin %.3f  loss %.4f acc %.2f clip %.2f/%.2f "
	    "grad %.3g  %.1f pairs/s\n", (long long)p->iteration + 1,
	    (long long)r->iterations, (long long)p->valid,
	    (long long)p->transitions, (long long)p->valid_in[0],
	    (long long)p->valid_in[1], (long long)p->valid_in[2],
	    (long long)p->valid_in[3], p->score_mean, p->score_spread,
	    p->margin_mean, p->loss, p->implicit_accuracy, p->clipped_win,
	    p->clipped_lose, p->grad_norm, (double)r->pairs_done / s);
}

/* ---------------------------------------------------------------- output */

static int
publish(struct run *r, const char *path, int64_t iteration)
{
	lpo_cli *cli = r->cli;
	char *text = NULL, *opts = NULL, steps[32], hex[65];
	char title[40];
	const char *meta[11];
	int rc = LPO_ENOMEM;

	snprintf(steps, sizeof(steps), "%lld", (long long)iteration);
	if ((opts = lpo_json_dumps(cli->ctx, lpo_cli_run_options(cli))) == NULL ||
	    (text = lpo_asprintf(cli->ctx, "{\"iterations\":%s,\"options\":%s,"
	    "\"run\":\"%s\",\"tool\":\"lpo-train\",\"version\":\"%s\"}", steps,
	    opts, lpo_cli_run(cli), LPO_VERSION)) == NULL)
		goto out;
	meta[0] = "lpo.run";
	meta[1] = text;
	meta[2] = "ss_steps";
	meta[3] = steps;
	meta[4] = "ss_training_comment";
	meta[5] = "LPO, lpo-tools " LPO_VERSION;
	snprintf(title, sizeof(title), "lpo-%s", lpo_cli_run(cli));
	meta[6] = "modelspec.title";
	meta[7] = meta[9] = title;
	meta[8] = "ss_output_name";
	meta[10] = NULL;
	if ((rc = lpo_lora_save(cli->ctx, r->lora, path,
	    (enum lpo_lora_format)r->o->format, r->o->full_precision,
	    meta)) < 0 || lpo_cli_db(cli) == NULL)
		goto out;
	if ((rc = lpo_cli_sha256(cli, hex, path)) < 0)
		goto out;
	rc = lpo_db_checkpoint(lpo_cli_db(cli), lpo_cli_db_run(cli), iteration,
	    path, hex, NAN);
out:
	lpo_free(opts);
	lpo_free(text);
	return rc;
}

/* NAME.safetensors -> NAME-000200.safetensors */
static int
publish_some(struct run *r, int64_t iteration)
{
	const char *path = r->cli->o.output, *dot = strrchr(path, '.');
	int64_t stem = dot != NULL && strchr(dot, '/') == NULL ? dot - path :
	    (int64_t)strlen(path);
	char *name = lpo_asprintf(r->cli->ctx, "%.*s-%06lld%s", (int)stem,
	    path, (long long)iteration, path + stem);
	int rc = name == NULL ? LPO_ENOMEM : publish(r, name, iteration);

	lpo_free(name);
	return rc;
}

/* The run that wrote a LoRA of ours, "" for another's. */
static int
existing(lpo_ctx *c, const char *path, char run[17])
{
	lpo_st *st = NULL;
	json_t *j = NULL;
	const char *text, *id;
	struct stat sb;
	int rc;

	run[0] = '\0';
	if (stat(path, &sb) < 0)
		return LPO_ENOTFOUND;
	if ((rc = lpo_st_open(c, &st, path)) < 0)
		return rc;
	if ((text = lpo_st_meta(st, "lpo.run")) != NULL &&
	    (j = json_loads(text, 0, NULL)) != NULL &&
	    (id = json_string_value(lpo_json_get(j, "run"))) != NULL)
		snprintf(run, 17, "%s", id);
	json_decref(j);
	lpo_st_close(st);
	return 0;
}

/* ------------------------------------------------------------------ work */

static int
train(struct run *r)
{
	static const char *const names[] = { "rollout", "scoring",
	    "training" };
	const struct lpo_lpo_report *p;
	lpo_cli *cli = r->cli;
	int64_t done, total, it;
	char extra[96];
	int rc = 0, phase;

	r->start_s = lpo_cli_now();
	while ((it = lpo_lpo_iteration(r->trainer)) < r->iterations) {
		if ((rc = lpo_lpo_advance(r->trainer)) < 0)
			break;
		if (rc == 1) {
			p = lpo_lpo_report(r->trainer);
			step_line(r, p);
			health(r, p);
			if ((rc = metrics(r, p)) < 0)
				break;
			if (r->o->save_every && (it + 1) %
			    r->o->save_every == 0 && it + 1 < r->iterations &&
			    (rc = publish_some(r, it + 1)) < 0)
				break;
		}
		phase = (int)lpo_lpo_where(r->trainer, &done, &total);
		snprintf(extra, sizeof(extra), "%s %lld/%lld", names[phase],
		    (long long)done, (long long)total);
		lpo_cli_progress(cli, "train", lpo_lpo_iteration(r->trainer),
		    r->iterations, "iterations", extra);
		if (lpo_snap_due(r->snap, cli->o.checkpoint_s) &&
		    (rc = lpo_lpo_save(r->trainer, r->snap)) < 0)
			break;
	}
	lpo_cli_progress_end(cli);
	return rc < 0 ? rc : publish(r, cli->o.output, r->iterations);
}

static int
resume(struct run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_state_open(cli->ctx, &r->state, cli->o.output,
	    lpo_cli_run(cli), lpo_cli_run_options(cli), cli->o.fresh)) < 0 ||
	    (rc = lpo_snap_open(cli->ctx, &r->snap, lpo_state_dir(r->state),
	    lpo_cli_run(cli))) < 0 || !lpo_snap_found(r->snap))
		return rc;
	if ((rc = lpo_lpo_restore(r->trainer, r->snap)) == 0)
		lpo_cli_note(cli, "goes on after iteration %lld",
		    (long long)lpo_lpo_iteration(r->trainer));
	return rc;
}

static int
work(struct run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	if (r->o->reward == NULL || r->o->prompts == NULL ||
	    lpo_cli_to_stdout(cli))
		return lpo_cli_usage(cli, "-r, -p and -o are needed");
	if (cli->nargs > 0)
		return lpo_cli_usage(cli, "what is '%s'?", cli->args[0]);
	if ((rc = lpo_prompts_read(cli->ctx, &r->prompts,
	    r->o->prompts)) < 0 || (rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = lpo_cli_input_dir(cli, "model", cli->o.model)) < 0 ||
	    (rc = lpo_cli_input_dir(cli, "reward", r->o->reward)) < 0 ||
	    (rc = lpo_cli_input_file(cli, "prompts", r->o->prompts)) < 0 ||
	    (r->o->init_lora != NULL && (rc = lpo_cli_input_file(cli,
	    "init-lora", r->o->init_lora)) < 0))
		return rc;
	r->parts.dtype = lpo_cli_precision(cli);
	if (!cli->o.dry_run && (rc = lpo_cli_begin(cli, cli->o.output,
	    existing)) != 0)
		return rc;
	if ((rc = load_texts(r)) != 0 || (rc = load_networks(r)) != 0 ||
	    (rc = make_trainer(r)) != 0)
		return rc;
	if (cli->o.dry_run)
		return print_plan(r);
	if ((rc = resume(r)) < 0 || (rc = train(r)) < 0)
		return rc;
	lpo_snap_close(r->snap);
	r->snap = NULL;
	rc = lpo_state_remove(r->state);
	r->state = NULL;
	return rc;
}

int
main(int argc, char **argv)
{
	struct opts o = { .steps = 20, .candidates = 4, .epochs = 5,
	    .lr = 6e-5, .beta = 500, .clip = 0.1, .guidance = 5, .eta = 1,
	    .weight_decay = 1e-4, .rank = 4 };
	struct run r = { .o = &o };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	r.cli = &cli;
	if (rc == 0)
		rc = work(&r);
	lpo_snap_close(r.snap);
	lpo_state_close(r.state);
	lpo_lpo_free(r.trainer);
	lpo_lora_free(r.lora);
	lpo_unet_free(r.unet);
	lpo_lrm_texts_free(r.lrm_texts);
	lpo_lrm_free(r.lrm);
	lpo_policy_texts_free(r.texts);
	lpo_schedule_free(&r.schedule);
	lpo_prompts_free(&r.prompts);
	return lpo_cli_end(&cli, rc);
}
