/*
 * A list of prompts: CSV, TSV, JSONL, JSON (column `prompt` or `caption`) or a
 * text file with one prompt a line.  Shared by lpo-train, -sample and -eval.
 */
#ifndef LPO_IO_PROMPTS_H
#define LPO_IO_PROMPTS_H

#include <stdint.h>

#include "lib/base/ctx.h"

struct lpo_prompts {
	char **text;
	int64_t n;
	int64_t cap;
};

/* "-" is standard input.  LPO_EFORMAT names file and row; an empty list is
 * an error too.  Freed by lpo_prompts_free(). */
int	 lpo_prompts_read(lpo_ctx *, struct lpo_prompts *, const char *path);
void	 lpo_prompts_free(struct lpo_prompts *);	/* zeroed is fine */
/* SHA-256 of the texts, each with its NUL, whatever file they came in. */
void	 lpo_prompts_sha256(const struct lpo_prompts *, char hex[65]);

#endif
