/*
 * lpo-train's inside: lpo-train.c has the options and the loop,
 * train_setup.c settles and loads, train_fit.c sees that it fits into memory,
 * train_words.c says how it goes, train_publish.c writes what came out.
 */
#ifndef LPO_TOOLS_TRAIN_H
#define LPO_TOOLS_TRAIN_H

#include "lib/base/state.h"
#include "lib/io/prompts.h"
#include "lib/train/lpo.h"
#include "tools/cli_plan.h"

struct train_opts {
	const char *reward, *prompts, *threshold, *init_lora, *timesteps;
	const char *check_prompts;
	int objective, targets, lrm_timestep, format, preset, lora_f32;
	int full, dtype, segments;
	int64_t size_px, iterations, rank, batch, micro_batch, steps;
	int64_t candidates, epochs, prompts_per_iteration, save_every;
	int64_t check_every, check_count;
	double lr, beta, clip, guidance, lrm_guidance, eta, max_grad_norm;
	double weight_decay, alpha;
};

/* All a run holds. */
struct train_run {
	lpo_cli *cli;
	const struct train_opts *o;
	char *output;			/* without trailing slashes */
	struct lpo_prompts prompts;	/* the run's, then the check's own */
	int64_t trained;		/* of them, the run's */
	struct lpo_schedule schedule;
	lpo_unet *unet, *reference;	/* reference: --full */
	lpo_lora_set *lora;		/* NULL: --full */
	lpo_lrm *lrm;
	lpo_lrm_texts *lrm_texts;
	lpo_policy_texts *texts;
	struct lpo_lpo_parts parts;
	enum lpo_dtype lrm_dtype;
	struct lpo_lpo_options lo;
	struct lpo_lpo_cut asked;	/* for, by the options */
	struct lpo_cli_dry dry;
	int64_t reward_bytes;
	int64_t weights_bytes;		/* of all that is loaded */
	double text_s;			/* to encode the prompts, by the plan */
	int64_t iterations, rank, check_every;
	const char *threshold;
	double lr;
	double scaling_factor;		/* of the model's latents */
	lpo_lpo *trainer;
	lpo_state *state;
	lpo_snap *snap;
	int warned;			/* LPO_H_* said already */
	double start_s;
	int64_t pairs_done, finished;	/* by this attempt: iterations */
	struct lpo_lpo_check check;	/* the last, n 0: none */
	int64_t checked;		/* after how many iterations */
};

/* ---- train_setup.c */

/* Options that contradict each other: LPO_CLI_USAGE, said. */
int	 lpo_traintool_options(struct train_run *);
/* Prompts, presets and sizes: all that the run id has, and the plan. */
int	 lpo_traintool_settle(struct train_run *);
/* Texts, then networks, on parts.be; and away with them. */
int	 lpo_traintool_open(struct train_run *);
void	 lpo_traintool_close(struct train_run *);

/* ---- train_fit.c */

/*
 * Choose how the work is cut up, as lo.cut, or refuse.  --dry-run: all is
 * there afterwards, the trainer too, but on a backend that only counts.
 */
int	 lpo_traintool_fit(struct train_run *);

/* ---- train_words.c */

int	 lpo_traintool_plan(struct train_run *);
/* How much of the present iteration is done, by the work of its phases. */
double	 lpo_traintool_part(const struct train_run *,
	    const struct lpo_lpo_plan *);
/* An iteration is over: its line, its metrics, what looks unhealthy. */
int	 lpo_traintool_tell(struct train_run *);

/* ---- train_publish.c */

/* The finished output, or the file or folder of one iteration. */
int	 lpo_traintool_publish(struct train_run *);
int	 lpo_traintool_publish_some(struct train_run *, int64_t iteration);
/* For lpo_cli_begin(): the run that wrote a LoRA or a folder. */
int	 lpo_traintool_existing(lpo_ctx *, const char *path, char run[17]);

#endif
