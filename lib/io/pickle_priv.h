/* The pickle machine: its state, and what opcodes do with it. */
#ifndef LPO_IO_PICKLE_PRIV_H
#define LPO_IO_PICKLE_PRIV_H

#include "lib/io/pickle.h"

struct lpo_pk_chunk;

struct lpo_pickle {
	lpo_ctx *c;
	const char *file;
	const uint8_t *p;
	size_t bytes, at;
	struct lpo_pk_chunk *chunks;
	int64_t values, held;	/* held: by containers */
	char **names;		/* of globals put together from the stack */
	int64_t nnames, names_cap;
	struct lpo_pk_value **stack, **memo;
	int64_t depth, stack_cap, memo_cap, memo_n;
	struct lpo_pk_value *root;
};

/* LPO_EFORMAT with the file and the byte. */
int	 lpo_pk_bad(lpo_pickle *, const char *what);
/* NULL: out of memory, or more than the limit; said. */
struct lpo_pk_value *lpo_pk_make(lpo_pickle *, enum lpo_pk_kind);
int	 lpo_pk_append(lpo_pickle *, struct lpo_pk_value *to,
	    struct lpo_pk_value *const *from, int64_t n);

/* v NULL: what was said when it was made. */
int	 lpo_pk_push(lpo_pickle *, struct lpo_pk_value *v);
/* The uppermost value, which may not be a mark; NULL: said. */
struct lpo_pk_value *lpo_pk_top(lpo_pickle *);
struct lpo_pk_value *lpo_pk_pop(lpo_pickle *);
/* Number of values above the last mark; -1: said. */
int64_t	 lpo_pk_above_mark(lpo_pickle *);

/* A new container of the n uppermost values, or of all above the mark. */
int	 lpo_pk_collect(lpo_pickle *, enum lpo_pk_kind, int64_t n);
int	 lpo_pk_collect_mark(lpo_pickle *, enum lpo_pk_kind);
/* The same values into the container below them; into an object: dropped. */
int	 lpo_pk_insert_top(lpo_pickle *, enum lpo_pk_kind, int64_t n);
int	 lpo_pk_insert_mark(lpo_pickle *, enum lpo_pk_kind);

int	 lpo_pk_memo_put(lpo_pickle *, uint64_t i);
int	 lpo_pk_memo_get(lpo_pickle *, uint64_t i);

#endif
