/*
 * lpo-lrm's inside: lpo-lrm.c trains, lrm_input.c reads pairs, lrm_fit.c sees
 * that it fits into memory, lrm_state.c resumes, lrm_score.c scores and tells
 * accuracies.
 */
#ifndef LPO_TOOLS_LRM_H
#define LPO_TOOLS_LRM_H

#include "lib/base/state.h"
#include "lib/train/lrm_pairs.h"
#include "lib/train/param_state.h"
#include "tools/cli_plan.h"

struct lrm_opts {
	const char *reward, *eval, *projection;
	int score, criterion, schedule, multi, multi_cfg, keep, dtype, freeze;
	int segments;
	int64_t steps, batch, micro_batch, warmup, eval_every, patience;
	double lr, weight_decay, guidance, max_grad_norm, batch_coeff, aux;
};

enum { LRM_KEEP_LAST, LRM_KEEP_BEST };

/* All a run holds. */
struct lrm_run {
	lpo_cli *cli;
	const struct lrm_opts *o;
	char *output;		/* without trailing slashes */
	lpo_lrm *m;
	lpo_shards *in;
	struct lpo_sample first;	/* read ahead for the latents' size */
	int has_first;
	int64_t shape[3];
	lpo_lrm_batch *batch, *eval;
	lpo_lrm_trainer *trainer;
	struct lpo_lrm_train_opts t;
	/* the plan: a model and trainer on a backend that only counts */
	struct lpo_cli_dry dry;
	lpo_lrm *plan_m;
	lpo_lrm_trainer *plan;
	lpo_state *state;
	lpo_snap *snap;
	int64_t used;		/* pairs taken from the stream ... */
	int64_t safe_used;	/* ... as of the last finished step, */
	uint32_t safe_crc;	/* and the sum over their KEY.json */
	int64_t saved_step;
	double best;		/* accuracy, -1: none yet */
	int64_t best_step, eval_step;
	double start_s, told_s;	/* of the step; of the last step line */
};

/* ---- lrm_input.c */

/* Open the pairs, hold them against the model, look at the first one. */
int	 lpo_lrmtool_open(struct lrm_run *);
/* What the run id has of the pairs: files by content, a stream by its run. */
int	 lpo_lrmtool_identify(struct lrm_run *);
/* 0, 1 at the verified end, or an error. */
int	 lpo_lrmtool_next(struct lrm_run *, struct lpo_sample *);
/* Pairs in all, -1: not known before the end. */
int64_t	 lpo_lrmtool_pairs(struct lrm_run *);
/* The next batch into r->batch; LPO_EFORMAT where the pairs end before. */
int	 lpo_lrmtool_batch(struct lrm_run *);
/* --eval: all of a second set of pairs, into r->eval. */
int	 lpo_lrmtool_read_eval(struct lrm_run *);

/* ---- lrm_score.c */

/* Accuracies into the metric table and to stderr; brief: only the first. */
int	 lpo_lrmtool_tell(struct lrm_run *, const struct lpo_lrm_rate *,
	    int64_t n, int64_t step, int brief);
/* Score r->eval; with --keep best a new best is written into the state. */
int	 lpo_lrmtool_evaluate(struct lrm_run *, int64_t step);
/* lpo-lrm --score */
int	 lpo_lrmtool_score(struct lrm_run *);
/* --dtype */
enum lpo_dtype lpo_lrmtool_storage(const struct lrm_run *);

/* ---- lrm_fit.c */

/*
 * Choose micro-batch and segments, as t's, or refuse.  --dry-run: the plan
 * stays for lpo_lrmtool_unfit().
 */
int	 lpo_lrmtool_fit(struct lrm_run *, const struct lpo_lrm_config *);
void	 lpo_lrmtool_unfit(struct lrm_run *);

/* ---- lrm_state.c */

/* If the state has something saved, restore it and skip the used pairs. */
int	 lpo_lrmtool_resume(struct lrm_run *);
int	 lpo_lrmtool_save(struct lrm_run *);
/* Stopped or failed with `why`: saves what is small, returns why. */
int	 lpo_lrmtool_save_last(struct lrm_run *, int why);
/* Remove earlier bests, once no snapshot speaks of them. */
int	 lpo_lrmtool_sweep(struct lrm_run *);

#endif
