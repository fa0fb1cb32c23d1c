/* lpo-train: prompts, a diffusion model and a reward model to an aligned one. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/io/db.h"
#include "tools/train.h"

#define OFF(m)	offsetof(struct train_opts, m)
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
	    OFF(init_lora), LPO_CLI_ONCE, 0, 0 },
	{ "lora-format", 0, "kohya|diffusers|both", "keys of the file "
	    "(default kohya)", LPO_CLI_CHOICE, OFF(format), R, 0, 0 },
	{ "lora-f32", 0, NULL, "store the LoRA in f32 instead of f16",
	    LPO_CLI_FLAG, OFF(lora_f32), R, 0, 0 },
	{ "full", 0, NULL, "train the whole UNet, write a model folder",
	    LPO_CLI_FLAG, OFF(full), R, 0, 0 },
	{ "dtype", 0, "f32|bf16|f16", "of the UNet that --full writes",
	    LPO_CLI_CHOICE, OFF(dtype), R, 0, 0 },
	{ "How long", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "preset", 0, "auto|sd15|sd21|sdxl", "the paper's settings (default: "
	    "by the model)", LPO_CLI_CHOICE, OFF(preset), 0, 0, 0 },
	{ "iterations", 0, "N", "instead of --epochs", LPO_CLI_I64,
	    OFF(iterations), R, 1, 1e9 },
	{ "epochs", 0, "N", "passes over the prompts (default 5)",
	    LPO_CLI_I64, OFF(epochs), 0, 1, 60000 },
	{ "prompts-per-iteration", 0, "N", "default 20; sdxl 16",
	    LPO_CLI_I64, OFF(prompts_per_iteration), R, 1, 1e6 },
	{ "batch", 0, "N", "pairs per optimiser step (default 40; sdxl 16)",
	    LPO_CLI_I64, OFF(batch), R, 1, 1e6 },
	{ "micro-batch", 0, "N", "pairs at once, at most (default: what fits)",
	    LPO_CLI_I64, OFF(micro_batch), 0, 1, 1e6 },
	{ "segments", 0, "auto|on|off", "walk the UNet's layers again in "
	    "backward instead of keeping them (default auto: where not one "
	    "pair fits without)", LPO_CLI_CHOICE, OFF(segments), 0, 0, 0 },
	{ "save-every", 0, "N", "publish NAME-000200.safetensors each N "
	    "iterations", LPO_CLI_I64, OFF(save_every), 0, 1, 1e9 },
	{ "Checks", 0, NULL, NULL, 0, 0, LPO_CLI_HEADING, 0, 0 },
	{ "check-every", 0, "N", "score fixed prompts and seeds each N "
	    "iterations (default: as --save-every; 0: never)", LPO_CLI_I64,
	    OFF(check_every), 0, 0, 1e9 },
	{ "check-prompts", 0, "FILE", "for it (default: the first of -p)",
	    LPO_CLI_STRING, OFF(check_prompts), 0, 0, 0 },
	{ "check-count", 0, "N", "how many of them (default 8; all of "
	    "--check-prompts)", LPO_CLI_I64, OFF(check_count), 0, 1, 1e6 },
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
	{ "lrm-guidance", 0, "X", "of the reward model (default: its own)",
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
	{ "lr", 0, "X", "learning rate (default 6e-5; sdxl 1e-5; --full "
	    "1e-6)", LPO_CLI_F64, OFF(lr), R, 0, 10 },
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
	"-m MODEL -r LRM -p PROMPTS -o aligned.safetensors [options]\n"
	"-m MODEL -r LRM -p PROMPTS --full -o aligned/ [options]", options
};

/* The held-out check where it is due, after `n` iterations. */
static int
check(struct train_run *r, int64_t n)
{
	int saves = r->o->save_every > 0 && n % r->o->save_every == 0;
	int rc;

	if (r->check_every == 0 || (n % r->check_every != 0 && !saves &&
	    n != r->iterations))
		return 0;
	if ((rc = lpo_lpo_check(r->trainer, &r->check)) == 0)
		r->checked = n;
	return rc;
}

/*
 * An iteration is over.  Its check, lines and files come before the next
 * snapshot: a run that is killed among them does the iteration again.
 */
static int
after(struct train_run *r)
{
	int64_t n = lpo_lpo_iteration(r->trainer);
	int rc;

	if ((rc = check(r, n)) < 0 || (rc = lpo_traintool_tell(r)) < 0)
		return rc;
	if (r->o->save_every > 0 && n % r->o->save_every == 0 &&
	    n < r->iterations)
		return lpo_traintool_publish_some(r, n);
	return 0;
}

static int
train(struct train_run *r)
{
	static const char *const names[] = { "rollout", "scoring",
	    "training" };
	lpo_cli *cli = r->cli;
	int64_t done, total;
	struct lpo_lpo_plan p;
	char extra[96];
	int rc = 0, bad = 0, phase;

	lpo_lpo_plan(r->trainer, &p);
	r->start_s = lpo_cli_now();
	while (lpo_lpo_iteration(r->trainer) < r->iterations) {
		if ((rc = lpo_lpo_advance(r->trainer)) < 0) {
			bad = rc == LPO_EFORMAT;
			break;
		}
		if (rc == 1 && (rc = after(r)) < 0)
			break;
		phase = (int)lpo_lpo_where(r->trainer, &done, &total);
		snprintf(extra, sizeof(extra), "%s %lld/%lld", names[phase],
		    (long long)done, (long long)total);
		lpo_cli_progress(cli, "train", (double)lpo_lpo_iteration(
		    r->trainer) + lpo_traintool_part(r, &p), r->iterations,
		    "iterations", extra);
		/* figures first: a step that is saved is not done again */
		if (lpo_snap_due(r->snap, cli->o.checkpoint_s) &&
		    ((rc = lpo_db_flush(lpo_cli_db(cli))) < 0 ||
		    (rc = lpo_lpo_save(r->trainer, r->snap)) < 0))
			break;
	}
	lpo_cli_progress_end(cli);
	/* five bad steps: what is good so far can be looked at */
	if (bad && lpo_db_flush(lpo_cli_db(cli)) == 0)
		lpo_lpo_save(r->trainer, r->snap);
	return rc < 0 ? rc : lpo_db_flush(lpo_cli_db(cli));
}

static int
restore(struct train_run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_snap_open(cli->ctx, &r->snap, lpo_state_dir(r->state),
	    lpo_cli_run(cli))) < 0 || !lpo_snap_found(r->snap))
		return rc;
	if ((rc = lpo_lpo_restore(r->trainer, r->snap)) == 0)
		lpo_cli_note(cli, "goes on after iteration %lld",
		    (long long)lpo_lpo_iteration(r->trainer));
	return rc;
}

static int
work(struct train_run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((rc = lpo_traintool_options(r)) != 0 ||
	    (rc = lpo_cli_backend(cli)) < 0 ||
	    (rc = lpo_traintool_settle(r)) != 0 ||
	    (rc = lpo_cli_begin(cli, r->output,
	    lpo_traintool_existing)) != 0)
		return rc;
	/* locked before the long loading, so that a second run is told soon */
	if (!cli->o.dry_run && (rc = lpo_state_open(cli->ctx, &r->state,
	    r->output, lpo_cli_run(cli), lpo_cli_run_options(cli),
	    cli->o.fresh)) < 0)
		return rc;
	if ((rc = lpo_traintool_fit(r)) == 0 && !cli->o.dry_run &&
	    (rc = lpo_traintool_open(r)) == 0)
		rc = lpo_lpo_new(cli->ctx, &r->trainer, &r->parts, &r->lo);
	lpo_cli_tidy();
	if (rc != 0) {
		/* no state of a run that cannot start: it would be in the way */
		if (r->state != NULL && !lpo_state_found(r->state)) {
			lpo_state_remove(r->state);
			r->state = NULL;
		}
		return rc;
	}
	if (cli->o.dry_run)
		return lpo_traintool_plan(r);
	if ((rc = restore(r)) < 0 || (rc = train(r)) < 0 ||
	    (rc = lpo_traintool_publish(r)) < 0)
		return rc;
	lpo_snap_close(r->snap);
	r->snap = NULL;
	rc = lpo_state_remove(r->state);
	r->state = NULL;
	return rc;
}

static void
release(struct train_run *r)
{
	lpo_snap_close(r->snap);
	lpo_state_close(r->state);
	lpo_traintool_close(r);
	lpo_prompts_free(&r->prompts);
	lpo_free(r->output);
}

int
main(int argc, char **argv)
{
	struct train_opts o = { .steps = 20, .candidates = 4, .epochs = 5,
	    .lr = 6e-5, .beta = 500, .clip = 0.1, .guidance = 5, .eta = 1,
	    .weight_decay = 1e-4, .rank = 4, .check_count = 8 };
	struct train_run r = { .o = &o };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	r.cli = &cli;
	if (rc == 0)
		rc = work(&r);
	release(&r);
	return lpo_cli_end(&cli, rc);
}
