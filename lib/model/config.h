/*
 * A model folder's config.json, held against what the code can do: what is
 * outside the family is refused by the field's name (models.md 1.2).
 */
#ifndef LPO_MODEL_CONFIG_H
#define LPO_MODEL_CONFIG_H

#include <stdint.h>

#include <jansson.h>

#include "lib/base/ctx.h"

/*
 * Read DIR/config.json.  Fields named in `_use_default_values` and JSON nulls
 * are taken out, so that absent is the only way to say "default".  Where
 * `_class_name` (diffusers) stands it must be `class_name`.  *json: the
 * caller's (json_decref); *text: the file as it is (lpo_free), may be NULL.
 */
int	 lpo_config_read(lpo_ctx *, json_t **json, char **text,
	    const char *dir, const char *class_name);

/*
 * Take out of a config what says nothing: nulls, and the fields named in
 * `_use_default_values`.
 */
void	 lpo_config_strip(json_t *);

/*
 * A field this code reads (json NULL) or that it can only take at one value,
 * given as JSON text: {"dropout", "0"}.
 */
struct lpo_config_field {
	const char *key, *json;
};
/*
 * Hold every field of `config` against the table (ends with key NULL): a
 * value that is not the one possible is LPO_EFORMAT by the field's name; a
 * field that is not in the table and does not begin with '_' is a notice.
 */
int	 lpo_config_check(lpo_ctx *, const json_t *config,
	    const struct lpo_config_field *table, const char *dir);
/*
 * An int, or a list of exactly n: out[0..n-1].  Absent: dflt everywhere
 * (dflt < 0: LPO_EFORMAT).  All values must be in lo..hi.
 */
int	 lpo_config_ints(lpo_ctx *, int64_t *out, int n, const json_t *config,
	    const char *key, int64_t dflt, int64_t lo, int64_t hi);
/* One integer in lo..hi; absent: dflt, where dflt < lo: LPO_EFORMAT. */
int	 lpo_config_int(lpo_ctx *, int64_t *out, const json_t *config,
	    const char *key, int64_t dflt, int64_t lo, int64_t hi);

#endif
