/*
 * The external scorer (design.md 6): any program that reads a tar of images
 * on standard input and prints a header line key<TAB>name... and one line per
 * image, in any order.
 */
#ifndef LPO_SCORE_EXTERNAL_H
#define LPO_SCORE_EXTERNAL_H

#include "lib/score/scores.h"

/*
 * Run `command` by sh -c with the tar file `tar` as its standard input, and
 * read its table.  key[n] are the images' keys in the order wanted; columns
 * become "scorer.column".  A missing, extra, repeated or non-finite line, an
 * unknown key, or a non-zero exit status: LPO_EFORMAT naming it.
 */
int	 lpo_score_external(lpo_ctx *, struct lpo_scores *, const char *scorer,
	    const char *command, const char *tar, const char *const *key,
	    int64_t n);
/* The parser alone; `text` is changed.  For tests and fuzzing. */
int	 lpo_scores_parse(lpo_ctx *, struct lpo_scores *, const char *scorer,
	    char *text, const char *const *key, int64_t n);

#endif
