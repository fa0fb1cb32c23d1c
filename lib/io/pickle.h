/*
 * Python pickles as data (spec/models.md 8.2): a closed list of opcodes builds
 * a tree of values.  What a pickle asks to be called or made is a node that
 * names it and its arguments; nothing is ever called.
 */
#ifndef LPO_IO_PICKLE_H
#define LPO_IO_PICKLE_H

#include "lib/base/ctx.h"

enum lpo_pk_kind {
	LPO_PK_NONE,
	LPO_PK_BOOL,		/* i */
	LPO_PK_INT,		/* i */
	LPO_PK_REAL,		/* d */
	LPO_PK_STR,		/* s[n], not checked for UTF-8 */
	LPO_PK_BYTES,		/* s[n] */
	LPO_PK_TUPLE,		/* v[n]; */
	LPO_PK_LIST,		/* v[n]; sets too */
	LPO_PK_DICT,		/* v[n]: key, value, key, value ... */
	LPO_PK_GLOBAL,		/* s[n]: "module name" */
	LPO_PK_CALL,		/* v[2]: what, arguments */
	LPO_PK_PERSISTENT,	/* v[1]: the id */
	LPO_PK_OTHER,		/* an integer beyond 64 bits */
	LPO_PK_MARK		/* inside of the reader only */
};

struct lpo_pk_value {
	enum lpo_pk_kind kind;
	union {
		int64_t i;
		double d;
		const char *s;	/* into the pickle, or the reader's */
		struct lpo_pk_value **v;
	};
	int64_t n, cap;
};

typedef struct lpo_pickle lpo_pickle;

/*
 * Read one pickle of protocol 2 to 5, up to its STOP.  The tree lives until
 * lpo_pickle_free() and points into data.  LPO_EFORMAT: an opcode that is not
 * in the list, or more values, memo or stack than the limits of reliability.md
 * C11, named with the offset and `file`.
 */
int	 lpo_pickle_read(lpo_ctx *, lpo_pickle **, const void *data,
	    size_t bytes, const char *file);
const struct lpo_pk_value *lpo_pickle_root(const lpo_pickle *);
void	 lpo_pickle_free(lpo_pickle *);		/* NULL is fine */

/* 1 if v is the global "module name". */
int	 lpo_pk_is_global(const struct lpo_pk_value *, const char *name);
/* The value of a dict's last entry for this key, or NULL. */
const struct lpo_pk_value *lpo_pk_get(const struct lpo_pk_value *dict,
	    const char *key);

#endif
