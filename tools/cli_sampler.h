/* Pictures from a model, for lpo-sample and lpo-eval: that they fit. */
#ifndef LPO_TOOLS_CLI_SAMPLER_H
#define LPO_TOOLS_CLI_SAMPLER_H

#include "lib/train/sample.h"
#include "tools/cli_plan.h"

/* What lpo_sampler_open() gets. */
struct lpo_cli_sampling {
	const char *model, *lora;
	float strength;
	const char *const *prompts;
	int64_t n;
	struct lpo_sampler_opts *so;
	/* the plan's, on a backend that only counts */
	struct lpo_cli_dry dry;
	lpo_sampler *plan;
};

/*
 * Plan: so->batch is what fits, or the refusal.  The plan stays for words
 * about it until lpo_cli_sampling_end().
 */
int	 lpo_cli_sampling_fit(lpo_cli *, struct lpo_cli_sampling *);
int	 lpo_cli_sampling_words(lpo_cli *, struct lpo_cli_sampling *);
void	 lpo_cli_sampling_end(struct lpo_cli_sampling *);

#endif
