/*
 * Thin helpers on jansson.  References follow jansson's rules: what load
 * gives is the caller's, to be json_decref()ed; getters borrow.
 */
#ifndef LPO_BASE_JSON_H
#define LPO_BASE_JSON_H

#include <stdint.h>

#include <jansson.h>

#include "lib/base/ctx.h"

#define LPO_JSON_DEPTH	64
#define LPO_JSON_LIMIT	((size_t)1 << 30)	/* bytes */

/*
 * For programs, before the first use of jansson: its allocations fail
 * cleanly.  After a failure, which lpo_json_memory_failed() remembers, loads,
 * texts and commits of files are LPO_ENOMEM for good: what was built since
 * may lack something.
 */
void	 lpo_json_memory(void);
int	 lpo_json_memory_failed(void);

/*
 * Errors name file:line.  limit 0 means LPO_JSON_LIMIT; deeper than
 * LPO_JSON_DEPTH is LPO_EFORMAT, an absent file LPO_ENOTFOUND.  Of equal keys
 * the last counts, as in Python.
 */
int	 lpo_json_load_file(lpo_ctx *, json_t **, const char *path,
	    size_t limit);
int	 lpo_json_load(lpo_ctx *, json_t **, const char *text, size_t bytes,
	    const char *name);
/* Equal keys are an error. */
int	 lpo_json_load_strict(lpo_ctx *, json_t **, const char *text,
	    size_t bytes, const char *name);

/* obj's member, NULL where it is absent or null (or obj no object). */
json_t	*lpo_json_get(const json_t *obj, const char *key);
/*
 * Typed getters: an absent or null member gives the default, a member of
 * another type is LPO_EFORMAT "'key' is not a number".  The caller puts the
 * file's name in front (lpo_fail_prefix).  A real takes integers; an int takes
 * reals without a fraction.
 */
int	 lpo_json_int(lpo_ctx *, int64_t *, const json_t *obj, const char *key,
	    int64_t dflt);
int	 lpo_json_real(lpo_ctx *, double *, const json_t *obj, const char *key,
	    double dflt);
int	 lpo_json_bool(lpo_ctx *, int *, const json_t *obj, const char *key,
	    int dflt);
int	 lpo_json_str(lpo_ctx *, const char **, const json_t *obj,
	    const char *key, const char *dflt);
/* The same where absence is LPO_EFORMAT. */
int	 lpo_json_need_int(lpo_ctx *, int64_t *, const json_t *obj,
	    const char *key);
int	 lpo_json_need_real(lpo_ctx *, double *, const json_t *obj,
	    const char *key);
int	 lpo_json_need_str(lpo_ctx *, const char **, const json_t *obj,
	    const char *key);
/*
 * An array of integers; a single integer counts as an array of one.  *n is
 * 0 where absent; more than max is LPO_EFORMAT.
 */
int	 lpo_json_ints(lpo_ctx *, int64_t *out, int *n, int max,
	    const json_t *obj, const char *key);
/*
 * Set a member and take over the value's reference, as
 * json_object_set_new(), but a failed allocation is LPO_ENOMEM.
 */
int	 lpo_json_set(lpo_ctx *, json_t *obj, const char *key, json_t *value);

/*
 * Canonical text: keys sorted by bytes, no blanks, reals in the shortest form
 * that reads back the same, UTF-8 as it is.  lpo_free() it.
 */
char	*lpo_json_dumps(lpo_ctx *, const json_t *);
/* The same in lines with indentation, for files people look at. */
char	*lpo_json_pretty(lpo_ctx *, const json_t *);
/*
 * A cell of text as JSON: a number where it has JSON's number syntax and
 * fits, else a string.  NULL when memory is out.
 */
json_t	*lpo_json_cell(lpo_ctx *, const char *text);

/* 1: valid UTF-8 without overlong forms, surrogates and NUL. */
int	 lpo_utf8_valid(const char *, size_t bytes);
/* Bytes of the mark (U+FEFF) that Windows programs put before UTF-8, or 0. */
size_t	 lpo_utf8_mark(const char *, size_t bytes);

#endif
