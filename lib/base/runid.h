/*
 * Run id (design.md section 5): the first 16 hex digits of SHA-256 over tool,
 * version, the canonical JSON of the options that change the result, and the
 * SHA-256 (or, for a stream of ours, the run id) of each input, in order.
 */
#ifndef LPO_BASE_RUNID_H
#define LPO_BASE_RUNID_H

#include <jansson.h>

#include "lib/base/ctx.h"

#define LPO_RUNID_SIZE 17	/* with the NUL */

int	 lpo_runid(lpo_ctx *, char out[LPO_RUNID_SIZE], const char *tool,
	    const char *version, const json_t *options,
	    const char *const *inputs, int n_inputs);
/*
 * SHA-256 of a model folder's files that matter: every *.json, *.txt and
 * *.safetensors (and *.bin) below `dir`, by sorted relative name.
 * `file_sha256` may be NULL (lpo_sha256_file is used) or a caching one.
 */
int	 lpo_runid_folder(lpo_ctx *, char out[65], const char *dir,
	    int (*file_sha256)(lpo_ctx *, void *arg, char out[65],
	    const char *path), void *arg);
/*
 * "lr: 0.0001 -> 0.0002, batch: 40 -> 20": the members of two option objects
 * that differ; "" when none.  lpo_free() it.
 */
char	*lpo_runid_diff(lpo_ctx *, const json_t *was, const json_t *is);

#endif
