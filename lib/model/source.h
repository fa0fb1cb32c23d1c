/*
 * The small files of a model by path, whether it is a folder or random:KIND
 * (lib/model/random.h).  Weights: lib/model/weights.h.
 */
#ifndef LPO_MODEL_SOURCE_H
#define LPO_MODEL_SOURCE_H

#include <jansson.h>

#include "lib/base/ctx.h"

/* As lpo_file_read(), lpo_json_load_file(), lpo_file_exists(). */
int	 lpo_source_read(lpo_ctx *, char **data, size_t *bytes,
	    const char *path, size_t limit);
int	 lpo_source_json(lpo_ctx *, json_t **, const char *path,
	    size_t limit);
int	 lpo_source_has(const char *path);
/* The names in a folder, as lpo_dir_list() gives them. */
int	 lpo_source_list(lpo_ctx *, char ***names, int64_t *n,
	    const char *dir);

#endif
