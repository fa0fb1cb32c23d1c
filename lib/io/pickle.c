/*
 * The pickle machine without its engine: stack, memo and containers are as in
 * Python's pickle, but a reduction only records what it would have called.
 * Every value takes at least one byte of the pickle, so memory is bounded by
 * the file, and by the limits below where that would be much.
 */
#include "lib/io/pickle.h"

#include <string.h>

enum {
	MAX_VALUES = 4 << 20,
	MAX_HELD = 16 << 20,
	MAX_STACK = 1000000,
	MAX_MEMO = 1000000,
	CHUNK = 1024
};
#define MAX_BYTES ((size_t)256 << 20)

/* Opcodes by the names of Python's pickletools. */
enum {
	PROTO = 0x80, FRAME = 0x95, STOP = '.',
	MARK = '(', POP = '0', POP_MARK = '1', DUP = '2',
	NONE = 'N', NEWTRUE = 0x88, NEWFALSE = 0x89,
	BININT = 'J', BININT1 = 'K', BININT2 = 'M', LONG1 = 0x8a,
	LONG4 = 0x8b, BINFLOAT = 'G',
	BINUNICODE = 'X', SHORT_BINUNICODE = 0x8c, BINUNICODE8 = 0x8d,
	BINSTRING = 'T', SHORT_BINSTRING = 'U',
	BINBYTES = 'B', SHORT_BINBYTES = 'C', BINBYTES8 = 0x8e,
	BYTEARRAY8 = 0x96,
	EMPTY_TUPLE = ')', TUPLE = 't', TUPLE1 = 0x85, TUPLE2 = 0x86,
	TUPLE3 = 0x87, EMPTY_LIST = ']', LIST = 'l', APPEND = 'a',
	APPENDS = 'e', EMPTY_SET = 0x8f, ADDITEMS = 0x90, FROZENSET = 0x91,
	EMPTY_DICT = '}', DICT = 'd', SETITEM = 's', SETITEMS = 'u',
	BINPUT = 'q', LONG_BINPUT = 'r', MEMOIZE = 0x94, BINGET = 'h',
	LONG_BINGET = 'j',
	GLOBAL = 'c', STACK_GLOBAL = 0x93, REDUCE = 'R', NEWOBJ = 0x81,
	NEWOBJ_EX = 0x92, BUILD = 'b', BINPERSID = 'Q'
};

typedef struct lpo_pk_value value;

struct chunk {
	struct chunk *next;
	value v[CHUNK];
};

struct lpo_pickle {
	lpo_ctx *c;
	const char *file;
	const uint8_t *p;
	size_t bytes, at;
	struct chunk *chunks;
	int64_t values, held;	/* held: by containers */
	char **names;		/* of globals put together from the stack */
	int64_t nnames, names_cap;
	value **stack, **memo;
	int64_t depth, stack_cap, memo_cap, memo_n;
	value *root;
};

static int
bad(lpo_pickle *k, const char *what)
{
	return lpo_fail(k->c, LPO_EFORMAT, "%s: pickle, byte %zu: %s",
	    k->file, k->at, what);
}

/* ---------------------------------------------------------------- memory */

static value *
make(lpo_pickle *k, enum lpo_pk_kind kind)
{
	struct chunk *new;
	value *v;

	if (k->values == MAX_VALUES) {
		bad(k, "more than 4 million values");
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

static int
append(lpo_pickle *k, value *to, value *const *from, int64_t n)
{
	if (n == 0)
		return 0;
	if ((k->held += n) > MAX_HELD)
		return bad(k, "containers of more than 16 million values");
	if (reserve(k, &to->v, &to->cap, to->n, n) != 0)
		return LPO_ENOMEM;
	memcpy(to->v + to->n, from, (size_t)n * sizeof(*from));
	to->n += n;
	return 0;
}

/* ----------------------------------------------------------------- stack */

static int
push(lpo_pickle *k, value *v)
{
	if (v == NULL)
		return lpo_errcode(k->c);
	if (k->depth == MAX_STACK)
		return bad(k, "the stack has more than a million values");
	if (reserve(k, &k->stack, &k->stack_cap, k->depth, 1) != 0)
		return LPO_ENOMEM;
	k->stack[k->depth++] = v;
	return 0;
}

/* The uppermost value, which may not be a mark; NULL: said. */
static value *
top(lpo_pickle *k)
{
	if (k->depth > 0 && k->stack[k->depth - 1]->kind != LPO_PK_MARK)
		return k->stack[k->depth - 1];
	bad(k, "an empty stack");
	return NULL;
}

static value *
pop(lpo_pickle *k)
{
	value *v = top(k);

	if (v != NULL)
		k->depth--;
	return v;
}

/* Number of values above the last mark; -1: said. */
static int64_t
above_mark(lpo_pickle *k)
{
	int64_t i;

	for (i = k->depth; i > 0; i--)
		if (k->stack[i - 1]->kind == LPO_PK_MARK)
			return k->depth - i;
	bad(k, "no mark on the stack");
	return -1;
}

/* ------------------------------------------------------------- arguments */

static int
left(const lpo_pickle *k, uint64_t n)
{
	return n <= k->bytes - k->at;
}

/* A little-endian number of n bytes. */
static int
number(lpo_pickle *k, uint64_t *out, int n)
{
	int i;

	if (!left(k, (uint64_t)n))
		return bad(k, "it ends within an opcode");
	for (*out = 0, i = n - 1; i >= 0; i--)
		*out = *out << 8 | k->p[k->at + (size_t)i];
	k->at += (size_t)n;
	return 0;
}

/* n bytes of length, then as many bytes. */
static int
text(lpo_pickle *k, enum lpo_pk_kind kind, int n)
{
	uint64_t len = 0;
	value *v;
	int rc;

	if ((rc = number(k, &len, n)) != 0)
		return rc;
	if (!left(k, len))
		return bad(k, "a string beyond the end");
	if ((v = make(k, kind)) == NULL)
		return lpo_errcode(k->c);
	v->s = (const char *)k->p + k->at;
	v->n = (int64_t)len;
	k->at += (size_t)len;
	return push(k, v);
}

static int
integer(lpo_pickle *k, int bytes, int is_signed)
{
	value *v = make(k, LPO_PK_INT);
	uint64_t u = 0;
	int rc;

	if (v == NULL)
		return lpo_errcode(k->c);
	if ((rc = number(k, &u, bytes)) != 0)
		return rc;
	v->i = is_signed ? (int32_t)(uint32_t)u : (int64_t)u;
	return push(k, v);
}

/* Two's complement of any length; more than 64 bits nobody needs. */
static int
long_integer(lpo_pickle *k, int bytes)
{
	value *v = make(k, LPO_PK_INT);
	uint64_t len = 0, u = 0, i;
	int rc;

	if (v == NULL)
		return lpo_errcode(k->c);
	if ((rc = number(k, &len, bytes)) != 0)
		return rc;
	if (!left(k, len))
		return bad(k, "a number beyond the end");
	for (i = len < 8 ? len : 8; i > 0; i--)
		u = u << 8 | k->p[k->at + i - 1];
	if (len > 8)
		v->kind = LPO_PK_OTHER;
	else if (len > 0 && len < 8 && k->p[k->at + len - 1] & 0x80)
		u |= UINT64_MAX << 8 * len;
	memcpy(&v->i, &u, sizeof(u));
	k->at += (size_t)len;
	return push(k, v);
}

static int
real(lpo_pickle *k)
{
	value *v = make(k, LPO_PK_REAL);
	uint64_t u = 0;
	int rc;

	if (v == NULL)
		return lpo_errcode(k->c);
	if ((rc = number(k, &u, 8)) != 0)
		return rc;
	u = __builtin_bswap64(u);	/* the one big-endian argument */
	memcpy(&v->d, &u, sizeof(u));
	return push(k, v);
}

static int
boolean(lpo_pickle *k, int x)
{
	value *v = make(k, LPO_PK_BOOL);

	if (v != NULL)
		v->i = x;
	return push(k, v);
}

/* ------------------------------------------------------------ containers */

/* A new container of the n uppermost values. */
static int
collect(lpo_pickle *k, enum lpo_pk_kind kind, int64_t n)
{
	value *v;
	int64_t i;
	int rc;

	for (i = 0; i < n; i++)
		if (i >= k->depth || k->stack[k->depth - 1 - i]->kind ==
		    LPO_PK_MARK)
			return bad(k, "too few values on the stack");
	if ((v = make(k, kind)) == NULL)
		return lpo_errcode(k->c);
	if ((rc = append(k, v, k->stack + k->depth - n, n)) != 0)
		return rc;
	k->depth -= n;
	return push(k, v);
}

/* The same for all above the mark, which goes too. */
static int
collect_mark(lpo_pickle *k, enum lpo_pk_kind kind)
{
	int64_t n = above_mark(k);
	value *v;
	int rc;

	if (n < 0)
		return lpo_errcode(k->c);
	if (kind == LPO_PK_DICT && n % 2 != 0)
		return bad(k, "a key without a value");
	if ((rc = collect(k, kind, n)) != 0)
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
		return bad(k, "nothing to put a value into");
	if (kind == LPO_PK_DICT && n % 2 != 0)
		return bad(k, "a key without a value");
	if (to->kind != kind && to->kind != LPO_PK_CALL)
		return bad(k, "a value put into what is no container");
	if (to->kind == kind && (rc = append(k, to, k->stack + at + 1 + mark,
	    n)) != 0)
		return rc;
	k->depth = at + 1;
	return 0;
}

static int
insert_mark(lpo_pickle *k, enum lpo_pk_kind kind)
{
	int64_t n = above_mark(k);

	return n < 0 ? lpo_errcode(k->c) : insert(k, kind, n, 1);
}

static int
insert_top(lpo_pickle *k, enum lpo_pk_kind kind, int64_t n)
{
	int64_t i;

	for (i = 0; i < n; i++)
		if (i >= k->depth || k->stack[k->depth - 1 - i]->kind ==
		    LPO_PK_MARK)
			return bad(k, "too few values on the stack");
	return insert(k, kind, n, 0);
}

/* ------------------------------------------------------------------ memo */

static int
put(lpo_pickle *k, uint64_t i)
{
	value *v = top(k);
	int64_t was = k->memo_cap;

	if (v == NULL)
		return lpo_errcode(k->c);
	if (i >= MAX_MEMO)
		return bad(k, "a memo of more than a million values");
	if (reserve(k, &k->memo, &k->memo_cap, 0, (int64_t)i + 1) != 0)
		return LPO_ENOMEM;
	if (k->memo_cap > was)
		memset(k->memo + was, 0, (size_t)(k->memo_cap - was) *
		    sizeof(*k->memo));
	k->memo_n += k->memo[i] == NULL;
	k->memo[i] = v;
	return 0;
}

static int
get(lpo_pickle *k, uint64_t i)
{
	if (i >= (uint64_t)k->memo_cap || k->memo[i] == NULL)
		return bad(k, "a memo entry that was never stored");
	return push(k, k->memo[i]);
}

static int
memo_op(lpo_pickle *k, int bytes, int (*op)(lpo_pickle *, uint64_t))
{
	uint64_t i = 0;
	int rc = number(k, &i, bytes);

	return rc != 0 ? rc : op(k, i);
}

/* ------------------------------------------------- what would be executed */

static int
push_global(lpo_pickle *k, const char *s, int64_t n)
{
	value *v = make(k, LPO_PK_GLOBAL);

	if (v != NULL) {
		v->s = s;
		v->n = n;
	}
	return push(k, v);
}

/* Keep a name until the end; it is freed here if that fails. */
static int
keep_name(lpo_pickle *k, char *name)
{
	int64_t cap = k->names_cap ? 2 * k->names_cap : 16;
	char **grown;

	if (name == NULL)
		return LPO_ENOMEM;
	if (k->nnames == k->names_cap) {
		grown = lpo_realloc(k->c, k->names,
		    (size_t)cap * sizeof(*grown));
		if (grown == NULL) {
			lpo_free(name);
			return LPO_ENOMEM;
		}
		k->names = grown;
		k->names_cap = cap;
	}
	k->names[k->nnames++] = name;
	return push_global(k, name, (int64_t)strlen(name));
}

/* "module\nname\n" in the pickle */
static int
global(lpo_pickle *k)
{
	const char *s = (const char *)k->p + k->at, *mid, *end;
	size_t n = k->bytes - k->at;

	mid = memchr(s, '\n', n);
	end = mid == NULL ? NULL :
	    memchr(mid + 1, '\n', n - (size_t)(mid + 1 - s));
	if (end == NULL || end - s > 500)
		return bad(k, "a global name without end");
	k->at += (size_t)(end + 1 - s);
	return keep_name(k, lpo_asprintf(k->c, "%.*s %.*s", (int)(mid - s), s,
	    (int)(end - mid - 1), mid + 1));
}

static int
stack_global(lpo_pickle *k)
{
	value *name = pop(k), *module = name == NULL ? NULL : pop(k);

	if (module == NULL)
		return lpo_errcode(k->c);
	if (name->kind != LPO_PK_STR || module->kind != LPO_PK_STR ||
	    name->n > 250 || module->n > 250)
		return bad(k, "a global that is not named by two strings");
	return keep_name(k, lpo_asprintf(k->c, "%.*s %.*s", (int)module->n,
	    module->s, (int)name->n, name->s));
}

/* OrderedDict([(key, value) ...]) or OrderedDict() */
static int
ordered_dict(lpo_pickle *k, const value *args)
{
	const value *list = args->n > 0 ? args->v[0] : NULL, *pair;
	value *d = make(k, LPO_PK_DICT);
	int64_t i;

	if (d == NULL)
		return lpo_errcode(k->c);
	for (i = 0; list != NULL && i < list->n; i++) {
		pair = list->kind == LPO_PK_LIST ||
		    list->kind == LPO_PK_TUPLE ? list->v[i] : NULL;
		if (pair == NULL || (pair->kind != LPO_PK_TUPLE &&
		    pair->kind != LPO_PK_LIST) || pair->n != 2)
			return bad(k, "an OrderedDict not made of pairs");
		if (append(k, d, pair->v, 2) != 0)
			return lpo_errcode(k->c);
	}
	return push(k, d);
}

static int
reduce(lpo_pickle *k)
{
	value *args = pop(k), *what = args == NULL ? NULL : pop(k);
	value *pair[2] = { what, args }, *v;

	if (what == NULL)
		return lpo_errcode(k->c);
	if (args->kind != LPO_PK_TUPLE)
		return bad(k, "a call whose arguments are no tuple");
	if (lpo_pk_is_global(what, "collections OrderedDict"))
		return ordered_dict(k, args);
	if ((v = make(k, LPO_PK_CALL)) == NULL)
		return lpo_errcode(k->c);
	return append(k, v, pair, 2) != 0 ? lpo_errcode(k->c) : push(k, v);
}

/* Keyword arguments are not kept: no object is ever made. */
static int
new_object_ex(lpo_pickle *k)
{
	return pop(k) == NULL ? lpo_errcode(k->c) : reduce(k);
}

/* ------------------------------------------------------------ the machine */

static int
op_value(lpo_pickle *k, int op)
{
	switch (op) {
	case NONE:
		return push(k, make(k, LPO_PK_NONE));
	case NEWTRUE:
	case NEWFALSE:
		return boolean(k, op == NEWTRUE);
	case BININT:
		return integer(k, 4, 1);
	case BININT1:
		return integer(k, 1, 0);
	case BININT2:
		return integer(k, 2, 0);
	case LONG1:
		return long_integer(k, 1);
	case LONG4:
		return long_integer(k, 4);
	case BINFLOAT:
		return real(k);
	case SHORT_BINUNICODE:
	case SHORT_BINSTRING:
		return text(k, LPO_PK_STR, 1);
	case BINUNICODE:
	case BINSTRING:
		return text(k, LPO_PK_STR, 4);
	case BINUNICODE8:
		return text(k, LPO_PK_STR, 8);
	case SHORT_BINBYTES:
		return text(k, LPO_PK_BYTES, 1);
	case BINBYTES:
		return text(k, LPO_PK_BYTES, 4);
	case BINBYTES8:
	case BYTEARRAY8:
		return text(k, LPO_PK_BYTES, 8);
	default:
		return 1;
	}
}

static int
op_container(lpo_pickle *k, int op)
{
	switch (op) {
	case EMPTY_TUPLE:
		return push(k, make(k, LPO_PK_TUPLE));
	case EMPTY_LIST:
	case EMPTY_SET:
		return push(k, make(k, LPO_PK_LIST));
	case EMPTY_DICT:
		return push(k, make(k, LPO_PK_DICT));
	case TUPLE1:
	case TUPLE2:
	case TUPLE3:
		return collect(k, LPO_PK_TUPLE, op - TUPLE1 + 1);
	case TUPLE:
		return collect_mark(k, LPO_PK_TUPLE);
	case LIST:
	case FROZENSET:
		return collect_mark(k, LPO_PK_LIST);
	case DICT:
		return collect_mark(k, LPO_PK_DICT);
	case APPEND:
		return insert_top(k, LPO_PK_LIST, 1);
	case APPENDS:
	case ADDITEMS:
		return insert_mark(k, LPO_PK_LIST);
	case SETITEM:
		return insert_top(k, LPO_PK_DICT, 2);
	case SETITEMS:
		return insert_mark(k, LPO_PK_DICT);
	default:
		return 1;
	}
}

static int
op_other(lpo_pickle *k, int op)
{
	uint64_t n = 0;
	int rc;

	switch (op) {
	case MARK:
		return push(k, make(k, LPO_PK_MARK));
	case POP:
		if (k->depth == 0)
			return bad(k, "an empty stack");
		k->depth--;	/* may be a mark */
		return 0;
	case POP_MARK:
		if (above_mark(k) < 0)
			return lpo_errcode(k->c);
		k->depth -= above_mark(k) + 1;
		return 0;
	case DUP:
		return push(k, top(k));
	case BINPUT:
		return memo_op(k, 1, put);
	case LONG_BINPUT:
		return memo_op(k, 4, put);
	case MEMOIZE:
		return put(k, (uint64_t)k->memo_n);
	case BINGET:
		return memo_op(k, 1, get);
	case LONG_BINGET:
		return memo_op(k, 4, get);
	case GLOBAL:
		return global(k);
	case STACK_GLOBAL:
		return stack_global(k);
	case REDUCE:
	case NEWOBJ:
		return reduce(k);
	case NEWOBJ_EX:
		return new_object_ex(k);
	case BUILD:		/* an object's state: dropped */
		return pop(k) == NULL || top(k) == NULL ?
		    lpo_errcode(k->c) : 0;
	case BINPERSID:
		return collect(k, LPO_PK_PERSISTENT, 1);
	case PROTO:
		if ((rc = number(k, &n, 1)) != 0)
			return rc;
		return n >= 2 && n <= 5 ? 0 : bad(k, "an unknown protocol");
	case FRAME:
		if ((rc = number(k, &n, 8)) != 0)
			return rc;
		return left(k, n) ? 0 : bad(k, "a frame beyond the end");
	default:
		return lpo_fail(k->c, LPO_EFORMAT, "%s: pickle, byte %zu: "
		    "opcode 0x%02x is not one of those read", k->file,
		    k->at - 1, (unsigned)op);
	}
}

static int
interpret(lpo_pickle *k)
{
	int op, rc = 0;

	if (k->bytes > MAX_BYTES)
		return bad(k, "it has more than 256 MiB");
	while (rc == 0) {
		if (k->at == k->bytes)
			return bad(k, "it ends without STOP");
		op = k->p[k->at++];
		if (op == STOP)
			break;
		if ((rc = op_value(k, op)) == 1 &&
		    (rc = op_container(k, op)) == 1)
			rc = op_other(k, op);
	}
	if (rc == 0 && (k->root = pop(k)) == NULL)
		rc = lpo_errcode(k->c);
	return rc;
}

int
lpo_pickle_read(lpo_ctx *c, lpo_pickle **out, const void *data, size_t bytes,
    const char *file)
{
	lpo_pickle *k = lpo_alloc(c, 1, sizeof(*k));
	int rc;

	*out = NULL;
	if (k == NULL)
		return LPO_ENOMEM;
	k->c = c;
	k->file = file;
	k->p = data;
	k->bytes = bytes;
	if ((rc = interpret(k)) < 0) {
		lpo_pickle_free(k);
		return rc;
	}
	*out = k;
	return 0;
}

const struct lpo_pk_value *
lpo_pickle_root(const lpo_pickle *k)
{
	return k->root;
}

void
lpo_pickle_free(lpo_pickle *k)
{
	struct chunk *next;
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

int
lpo_pk_is_global(const struct lpo_pk_value *v, const char *name)
{
	size_t n = strlen(name);

	return v->kind == LPO_PK_GLOBAL && (size_t)v->n == n &&
	    memcmp(v->s, name, n) == 0;
}

const struct lpo_pk_value *
lpo_pk_get(const struct lpo_pk_value *dict, const char *key)
{
	size_t n = strlen(key);
	int64_t i;

	if (dict->kind != LPO_PK_DICT)
		return NULL;
	for (i = dict->n - 2; i >= 0; i -= 2)
		if (dict->v[i]->kind == LPO_PK_STR &&
		    (size_t)dict->v[i]->n == n &&
		    memcmp(dict->v[i]->s, key, n) == 0)
			return dict->v[i + 1];
	return NULL;
}
