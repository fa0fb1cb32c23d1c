/*
 * The state of the pickle machine: values, stack, containers and memo.  Every
 * value takes at least one byte of the pickle, so memory is bounded by the
 * file, and by the limits below where that would be much.
 */
#include <string.h>

#include "lib/io/pickle_priv.h"

enum {
	MAX_VALUES = 4 << 20,
	MAX_HELD = 16 << 20,
	MAX_STACK = 1000000,
	MAX_MEMO = 1000000,
	CHUNK = 1024
};

typedef struct lpo_pk_value value;

struct lpo_pk_chunk {
	struct lpo_pk_chunk *next;
	value v[CHUNK];
};

int
lpo_pk_bad(lpo_pickle *k, const char *what)
{
	return lpo_fail(k->c, LPO_EFORMAT, "%s: pickle, byte %zu: %s",
	    k->file, k->at, what);
}

/* ---------------------------------------------------------------- memory */

value *
lpo_pk_make(lpo_pickle *k, enum lpo_pk_kind kind)
{
	struct lpo_pk_chunk *new;
	value *v;

	if (k->values == MAX_VALUES) {
		lpo_pk_bad(k, "more than 4 million values");
		return NULL;
	}
	if (k->values % CHUNK == 0) {
		if ((new = lpo_alloc(k->c, 1, sizeof(*new))) == NULL)
			return NULL;
		new->next = k->chunks;
		k->chunks = new;
	}
	v = &k->chunks->v[k->values++ % CHUNK];
	v->kind = kind;
	return v;
}

static int
is_container(const value *v)
{
	switch (v->kind) {
	case LPO_PK_TUPLE:
	case LPO_PK_LIST:
	case LPO_PK_DICT:
	case LPO_PK_CALL:
	case LPO_PK_PERSISTENT:
		return 1;
	default:
		return 0;
	}
}

/* Room for n more in a growing array of pointers. */
static int
reserve(lpo_pickle *k, value ***a, int64_t *cap, int64_t have, int64_t n)
{
	int64_t want = *cap;
	value **grown;

	if (have + n <= *cap)
		return 0;
	while (want < have + n)
		want = want ? 2 * want : 4;
	grown = lpo_realloc(k->c, *a, (size_t)want * sizeof(*grown));
	if (grown == NULL)
		return LPO_ENOMEM;
	*a = grown;
	*cap = want;
	return 0;
}

int
lpo_pk_append(lpo_pickle *k, value *to, value *const *from, int64_t n)
{
	if (n == 0)
		return 0;
	if ((k->held += n) > MAX_HELD)
		return lpo_pk_bad(k, "containers of more than 16 million "
		    "values");
	if (reserve(k, &to->v, &to->cap, to->n, n) != 0)
		return LPO_ENOMEM;
	memcpy(to->v + to->n, from, (size_t)n * sizeof(*from));
	to->n += n;
	return 0;
}

/* ----------------------------------------------------------------- stack */

int
lpo_pk_push(lpo_pickle *k, value *v)
{
	if (v == NULL)
		return lpo_errcode(k->c);
	if (k->depth == MAX_STACK)
		return lpo_pk_bad(k, "the stack has more than a million "
		    "values");
	if (reserve(k, &k->stack, &k->stack_cap, k->depth, 1) != 0)
		return LPO_ENOMEM;
	k->stack[k->depth++] = v;
	return 0;
}

/* The uppermost value, which may not be a mark; NULL: said. */
value *
lpo_pk_top(lpo_pickle *k)
{
	if (k->depth > 0 && k->stack[k->depth - 1]->kind != LPO_PK_MARK)
		return k->stack[k->depth - 1];
	lpo_pk_bad(k, "an empty stack");
	return NULL;
}

value *
lpo_pk_pop(lpo_pickle *k)
{
	value *v = lpo_pk_top(k);

	if (v != NULL)
		k->depth--;
	return v;
}

/* Number of values above the last mark; -1: said. */
int64_t
lpo_pk_above_mark(lpo_pickle *k)
{
	int64_t i;

	for (i = k->depth; i > 0; i--)
		if (k->stack[i - 1]->kind == LPO_PK_MARK)
			return k->depth - i;
	lpo_pk_bad(k, "no mark on the stack");
	return -1;
}

/* ------------------------------------------------------------ containers */

/* A new container of the n uppermost values. */
int
lpo_pk_collect(lpo_pickle *k, enum lpo_pk_kind kind, int64_t n)
{
	value *v;
	int64_t i;
	int rc;

	for (i = 0; i < n; i++)
		if (i >= k->depth || k->stack[k->depth - 1 - i]->kind ==
		    LPO_PK_MARK)
			return lpo_pk_bad(k, "too few values on the stack");
	if ((v = lpo_pk_make(k, kind)) == NULL)
		return lpo_errcode(k->c);
	if ((rc = lpo_pk_append(k, v, k->stack + k->depth - n, n)) != 0)
		return rc;
	k->depth -= n;
	return lpo_pk_push(k, v);
}

/* The same for all above the mark, which goes too. */
int
lpo_pk_collect_mark(lpo_pickle *k, enum lpo_pk_kind kind)
{
	int64_t n = lpo_pk_above_mark(k);
	value *v;
	int rc;

	if (n < 0)
		return lpo_errcode(k->c);
	if (kind == LPO_PK_DICT && n % 2 != 0)
		return lpo_pk_bad(k, "a key without a value");
	if ((rc = lpo_pk_collect(k, kind, n)) != 0)
		return rc;
	v = k->stack[k->depth - 1];
	k->depth--;
	k->stack[k->depth - 1] = v;
	return 0;
}

/* Into the container below them; into an object: dropped. */
static int
insert(lpo_pickle *k, enum lpo_pk_kind kind, int64_t n, int mark)
{
	int64_t at = k->depth - n - mark - 1;
	value *to;
	int rc;

	if (at < 0 || (to = k->stack[at])->kind == LPO_PK_MARK)
		return lpo_pk_bad(k, "nothing to put a value into");
	if (kind == LPO_PK_DICT && n % 2 != 0)
		return lpo_pk_bad(k, "a key without a value");
	if (to->kind != kind && to->kind != LPO_PK_CALL)
		return lpo_pk_bad(k, "a value put into what is no container");
	if (to->kind == kind && (rc = lpo_pk_append(k, to,
	    k->stack + at + 1 + mark, n)) != 0)
		return rc;
	k->depth = at + 1;
	return 0;
}

int
lpo_pk_insert_mark(lpo_pickle *k, enum lpo_pk_kind kind)
{
	int64_t n = lpo_pk_above_mark(k);

	return n < 0 ? lpo_errcode(k->c) : insert(k, kind, n, 1);
}

int
lpo_pk_insert_top(lpo_pickle *k, enum lpo_pk_kind kind, int64_t n)
{
	int64_t i;

	for (i = 0; i < n; i++)
		if (i >= k->depth || k->stack[k->depth - 1 - i]->kind ==
		    LPO_PK_MARK)
			return lpo_pk_bad(k, "too few values on the stack");
	return insert(k, kind, n, 0);
}

/* ------------------------------------------------------------------ memo */

int
lpo_pk_memo_put(lpo_pickle *k, uint64_t i)
{
	value *v = lpo_pk_top(k);
	int64_t was = k->memo_cap;

	if (v == NULL)
		return lpo_errcode(k->c);
	if (i >= MAX_MEMO)
		return lpo_pk_bad(k, "a memo of more than a million values");
	if (reserve(k, &k->memo, &k->memo_cap, 0, (int64_t)i + 1) != 0)
		return LPO_ENOMEM;
	if (k->memo_cap > was)
		memset(k->memo + was, 0, (size_t)(k->memo_cap - was) *
		    sizeof(*k->memo));
	k->memo_n += k->memo[i] == NULL;
	k->memo[i] = v;
	return 0;
}

int
lpo_pk_memo_get(lpo_pickle *k, uint64_t i)
{
	if (i >= (uint64_t)k->memo_cap || k->memo[i] == NULL)
		return lpo_pk_bad(k, "a memo entry that was never stored");
	return lpo_pk_push(k, k->memo[i]);
}

void
lpo_pickle_free(lpo_pickle *k)
{
	struct lpo_pk_chunk *next;
	int64_t i, n;

	if (k == NULL)
		return;
	while (k->chunks != NULL) {
		next = k->chunks->next;
		/* only the first chunk may be filled in part */
		n = (k->values - 1) % CHUNK + 1;
		for (i = 0; i < n; i++)
			if (is_container(&k->chunks->v[i]))
				lpo_free(k->chunks->v[i].v);
		k->values -= n;
		lpo_free(k->chunks);
		k->chunks = next;
	}
	for (i = 0; i < k->nnames; i++)
		lpo_free(k->names[i]);
	lpo_free(k->names);
	lpo_free(k->stack);
	lpo_free(k->memo);
	lpo_free(k);
}
