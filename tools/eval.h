/* Parts of lpo-eval: systems to pictures, pictures to scores, to a report. */
#ifndef LPO_TOOLS_EVAL_H
#define LPO_TOOLS_EVAL_H

#include <stdio.h>

#include "lib/base/json.h"
#include "lib/base/state.h"
#include "lib/io/prompts.h"
#include "lib/io/shard.h"
#include "lib/score/compare.h"
#include "lib/score/external.h"
#include "lib/score/scorer.h"
#include "tools/cli.h"

struct eval_opts {
	const char *lora, *prompts, *html, *title;
	struct lpo_cli_list system, scorer, images, fail_under;
	int pool;
	int64_t per_prompt, size_px, steps, batch, html_images, resamples;
	double guidance, eta;
};

struct eval_system {
	char *name;
	char *model;		/* diffusers folder, NULL: images */
	char *lora;		/* NULL: none */
	char *folder;		/* of images, NULL: none */
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
	char **key;		/* [n]; NULL when pooled */
	char **prompt;		/* [n] text of each image's prompt */
	struct lpo_comparison *result;
	int64_t n_results;
	char pictures[17];	/* id of what is drawn */
	FILE *out;		/* the table: standard output, or -o's text */
	/*
	 * What an interrupted run needs to go on, or NULL; kept until the table
	 * is where it belongs.  That of -o where there is no report.
	 */
	lpo_state *state;
};

void	eval_free(struct eval *);

/* The three ways to results.  Each returns as a tool's work() does. */
int	eval_systems(lpo_cli *, const struct eval_opts *, struct eval *);
int	eval_pool(lpo_cli *, const struct eval_opts *, struct eval *);
int	eval_images(lpo_cli *, const struct eval_opts *, struct eval *);

/* All systems against the first: e->result. */
int	eval_compare(lpo_cli *, const struct eval_opts *, struct eval *);

/* eval_draw.c */
/*
 * A tar in dir for each system that is a model or a folder.  What an
 * interrupted run has drawn is taken as it is.
 */
int	eval_draw(lpo_cli *, const struct eval_opts *, struct eval *,
	    const char *dir);

/* --dry-run: what drawing a system's pictures takes, in words. */
int	eval_draw_plan(lpo_cli *, const struct eval_opts *,
	    const struct eval *, const struct eval_system *);

/* eval_scorer.c */
/* One --scorer. */
struct eval_scorer {
	char *name;
	const char *command;	/* for sh, or KIND:ARG; points into argv */
	const struct lpo_scorer_class *cls;	/* built in, or NULL */
};
int	eval_scorer_parse(lpo_cli *, struct eval_scorer *, const char *spec);
void	eval_scorer_clear(struct eval_scorer *);
/* All of --scorer, before any work: form, and no name twice. */
int	eval_scorers_check(lpo_cli *, const struct eval_opts *);
/* What the run id has of them: commands as they are, our files by hash. */
int	eval_scorers_inputs(lpo_cli *, const struct eval_opts *);
/* The built-in ones, loaded; lpo_scorers_free(). */
int	eval_scorers_open(lpo_cli *, const struct eval_opts *,
	    lpo_scorers **);
/* That they fit into memory, or a refusal; --dry-run: in words. */
int	eval_scorers_fit(lpo_cli *, const struct eval_opts *);

/* eval_score.c */
/*
 * All scorers on the pictures of src: one table with all their columns, in the
 * order of --scorer.  Programs read them from `tar` under these keys; it need
 * not be there where there are no programs.
 *
 * dir: a folder where scores are saved, and found again by this run: those of
 * built-in scorers every --checkpoint seconds, a program's when it has ended.
 */
int	eval_score(lpo_cli *, const struct eval_opts *, lpo_scorers *,
	    struct lpo_scores *, const struct lpo_score_source *src,
	    const char *tar, const char *const *key, const char *dir);
/* The same for a system's tar: s->scores. */
int	eval_score_tar(lpo_cli *, const struct eval_opts *, lpo_scorers *,
	    struct eval_system *s, lpo_shard *tar, const char *const *key,
	    int64_t n, const char *dir);

/* eval_folder.c */
#define EVAL_IMAGE_LIMIT	((size_t)1 << 28)	/* bytes of a file */
/* A tar of pictures for scorers, and one of them: the bytes are taken over. */
int	eval_open_tar(lpo_ctx *, lpo_shardw **, const char *tar);
int	eval_put_image(lpo_ctx *, lpo_shardw *, const char *key,
	    const char *path, const char *prompt, char *bytes, size_t n);
/*
 * KEY.png (.jpg, .jpeg, .webp) with KEY.json or KEY.txt as one tar; what
 * stands for a folder's content in a run id.
 */
int	eval_folder_tar(lpo_cli *, const char *dir, const char *tar);
int	eval_folder_sha256(lpo_cli *, char hex[65], const char *dir);

/* eval_report.c */
int	eval_store(lpo_cli *, struct eval *);
int	eval_report(lpo_cli *, const struct eval_opts *, struct eval *);

#endif
