/* Parts of lpo-eval: systems to pictures, pictures to scores, to a report. */
#ifndef LPO_TOOLS_EVAL_H
#define LPO_TOOLS_EVAL_H

#include "lib/base/json.h"
#include "lib/io/prompts.h"
#include "lib/score/compare.h"
#include "tools/cli.h"

struct eval_opts {
	const char *lora, *prompts, *images, *html, *title;
	struct lpo_cli_list system, scorer, fail_under;
	int pool;
	int64_t per_prompt, size_px, steps, batch, html_images, resamples;
	double guidance, eta;
};

struct eval_system {
	char *name;
	char *model;		/* diffusers folder, NULL: images */
	char *lora;		/* NULL: none */
	char *tar;		/* its pictures */
	double strength;
	struct lpo_scores scores;
	int64_t db_id;
};

struct eval {
	struct lpo_prompts list;
	struct eval_system *system;
	int64_t systems;
	int64_t n, prompts;	/* images of a system, prompts */
	int64_t *first;		/* [prompts + 1] images of a prompt */
	char **key;		/* [n] */
	char **prompt;		/* [n] text of each image's prompt */
	struct lpo_comparison *result;
	int64_t n_results;
};

void	eval_free(struct eval *);

/* The three ways to results.  Each returns as a tool's work() does. */
int	eval_systems(lpo_cli *, const struct eval_opts *, struct eval *);
int	eval_pool(lpo_cli *, const struct eval_opts *, struct eval *);
int	eval_images(lpo_cli *, const struct eval_opts *);

/* eval_score.c */
/* "NAME=CMD" to name (lpo_free) and command; usage error otherwise. */
int	eval_scorer(lpo_cli *, const char *spec, char **name,
	    const char **command);
/* All scorers on one tar: one table with all their columns. */
int	eval_score_tar(lpo_cli *, const struct lpo_cli_list *scorers,
	    struct lpo_scores *, const char *tar, const char *const *key,
	    int64_t n);

/* eval_report.c */
int	eval_store(lpo_cli *, struct eval *);
int	eval_report(lpo_cli *, const struct eval_opts *, struct eval *);

int	eval_print(lpo_cli *, const struct eval *);
int	eval_conditions(lpo_cli *, const struct eval *,
	    const struct lpo_cli_list *);

#endif
