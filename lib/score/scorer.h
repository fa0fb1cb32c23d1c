/*
 * Built-in scorers (design.md 6): what "clip:DIR" and its like in --scorer
 * mean.  Each is one file with a struct lpo_scorer_class and one line in
 * scorer.c's table.
 *
 * A set of scorers goes over the pictures once: each is decoded once, CLIP's
 * vision tower of a folder runs once for all that look through it.  Pictures
 * are taken LPO_SCORER_SLOTS at a time and never kept; a picture's scores do
 * not depend on its neighbours, the batch or threads.
 */
#ifndef LPO_SCORE_SCORER_H
#define LPO_SCORE_SCORER_H

#include "kernels/kernel.h"
#include "lib/io/image.h"
#include "lib/score/scores.h"

#define LPO_SCORER_SLOTS 16

typedef struct lpo_scorers lpo_scorers;

struct lpo_scorer_opts {
	lpo_backend *be;
	enum lpo_dtype dtype;
	int64_t memory_bytes;	/* batches are chosen to fit; 0: no limit */
	const char *model;	/* a diffusers folder (its VAE), or NULL */
	int64_t size_px;	/* of pictures for latent scorers; 0: theirs */
};

struct lpo_scorer_class {
	const char *kind, *arg;		/* "clip", "DIR" */
	const char *const *column;	/* ends with NULL; first: the main one */
	/*
	 * Every file and folder that a score depends on, to each(); for run
	 * ids.  LPO_EINVAL: the argument is not of the form.
	 */
	int	(*inputs)(lpo_ctx *, const struct lpo_scorer_opts *,
		    const char *arg, int (*each)(void *, const char *path),
		    void *to);
	int	(*open)(lpo_scorers *, void **self, const char *arg);
	void	(*close)(void *self);		/* NULL is fine */
	/*
	 * A picture into slot 0 .. LPO_SCORER_SLOTS - 1, by several threads at
	 * a time, each with a context of its own.  NULL: nothing to keep.
	 */
	int	(*put)(lpo_ctx *, void *self, int64_t slot,
		    const struct lpo_image *);
	/* value[i * stride + column] of slots 0 .. n - 1 */
	int	(*run)(void *self, double *value, int64_t stride,
		    const char *const *prompt, int64_t n);
};

/* The class of "KIND:ARG", *arg after the colon; NULL: none of ours. */
const struct lpo_scorer_class *lpo_scorer_find(const char *spec,
	    const char **arg);
/* The i-th class, NULL after the last. */
const struct lpo_scorer_class *lpo_scorer_at(int i);

int	 lpo_scorers_new(lpo_ctx *, lpo_scorers **,
	    const struct lpo_scorer_opts *);
void	 lpo_scorers_free(lpo_scorers *);	/* NULL is fine */
/*
 * Load "KIND:ARG"; its columns are "name.column", in the order of adding.
 * Errors name the scorer and what is wrong with its files.
 */
int	 lpo_scorers_add(lpo_scorers *, const char *name, const char *spec);
int	 lpo_scorers_count(const lpo_scorers *);

/* Pictures, given one after another; all three are the receiver's. */
struct lpo_score_item {
	uint8_t *bytes;		/* an image file; lpo_free() */
	size_t size;
	char *prompt, *name;	/* name: for messages */
};
struct lpo_score_source {
	void *arg;
	int64_t n;
	int	(*get)(void *arg, int64_t i, struct lpo_score_item *);
	/*
	 * Picture i cannot be read or decoded: 0 to leave it out (its scores
	 * are NaN), or an error.  NULL: always an error.
	 */
	int	(*bad)(void *arg, int64_t i, const char *why);
	void	(*progress)(void *arg, int64_t done);	/* or NULL */
};
/*
 * All scores of all pictures: *out is the caller's (lpo_scores_free).
 * LPO_EFORMAT: a bad picture, or a score that is not finite, by the picture's
 * and the scorer's name.
 */
int	 lpo_scorers_run(lpo_scorers *, struct lpo_scores *out,
	    const struct lpo_score_source *);

/* ---- for scorers */

lpo_ctx	*lpo_scorers_ctx(const lpo_scorers *);
const struct lpo_scorer_opts *lpo_scorers_opts(const lpo_scorers *);

struct lpo_embedder;
/* CLIP's eye of this folder, loaded once and shared (embedder.h). */
int	 lpo_scorers_embedder(lpo_scorers *, struct lpo_embedder **,
	    const char *dir);

#endif
