/*
 * The pickle machine without its engine: stack, memo and containers are as in
 * Python's pickle, but a reduction only records what it would have called.
 */
#include <string.h>

#include "lib/io/pickle_priv.h"

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
		return lpo_pk_bad(k, "it ends within an opcode");
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
		return lpo_pk_bad(k, "a string beyond the end");
	if ((v = lpo_pk_make(k, kind)) == NULL)
		return lpo_errcode(k->c);
	v->s = (const char *)k->p + k->at;
	v->n = (int64_t)len;
	k->at += (size_t)len;
	return lpo_pk_push(k, v);
}

static int
integer(lpo_pickle *k, int bytes, int is_signed)
{
	value *v = lpo_pk_make(k, LPO_PK_INT);
	uint64_t u = 0;
	int rc;

	if (v == NULL)
		return lpo_errcode(k->c);
	if ((rc = number(k, &u, bytes)) != 0)
		return rc;
	v->i = is_signed ? (int32_t)(uint32_t)u : (int64_t)u;
	return lpo_pk_push(k, v);
}

/* Two's complement of any length; more than 64 bits nobody needs. */
static int
long_integer(lpo_pickle *k, int bytes)
{
	value *v = lpo_pk_make(k, LPO_PK_INT);
	uint64_t len = 0, u = 0, i;
	int rc;

	if (v == NULL)
		return lpo_errcode(k->c);
	if ((rc = number(k, &len, bytes)) != 0)
		return rc;
	if (!left(k, len))
		return lpo_pk_bad(k, "a number beyond the end");
	for (i = len < 8 ? len : 8; i > 0; i--)
		u = u << 8 | k->p[k->at + i - 1];
	if (len > 8)
		v->kind = LPO_PK_OTHER;
	else if (len > 0 && len < 8 && k->p[k->at + len - 1] & 0x80)
		u |= UINT64_MAX << 8 * len;
	memcpy(&v->i, &u, sizeof(u));
	k->at += (size_t)len;
	return lpo_pk_push(k, v);
}

static int
real(lpo_pickle *k)
{
	value *v = lpo_pk_make(k, LPO_PK_REAL);
	uint64_t u = 0;
	int rc;

	if (v == NULL)
		return lpo_errcode(k->c);
	if ((rc = number(k, &u, 8)) != 0)
		return rc;
	u = __builtin_bswap64(u);	/* the one big-endian argument */
	memcpy(&v->d, &u, sizeof(u));
	return lpo_pk_push(k, v);
}

static int
boolean(lpo_pickle *k, int x)
{
	value *v = lpo_pk_make(k, LPO_PK_BOOL);

	if (v != NULL)
		v->i = x;
	return lpo_pk_push(k, v);
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
	value *v = lpo_pk_make(k, LPO_PK_GLOBAL);

	if (v != NULL) {
		v->s = s;
		v->n = n;
	}
	return lpo_pk_push(k, v);
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
		return lpo_pk_bad(k, "a global name without end");
	k->at += (size_t)(end + 1 - s);
	return keep_name(k, lpo_asprintf(k->c, "%.*s %.*s", (int)(mid - s), s,
	    (int)(end - mid - 1), mid + 1));
}

static int
stack_global(lpo_pickle *k)
{
	value *name = lpo_pk_pop(k);
	value *module = name == NULL ? NULL : lpo_pk_pop(k);

	if (module == NULL)
		return lpo_errcode(k->c);
	if (name->kind != LPO_PK_STR || module->kind != LPO_PK_STR ||
	    name->n > 250 || module->n > 250)
		return lpo_pk_bad(k, "a global that is not named by two "
		    "strings");
	return keep_name(k, lpo_asprintf(k->c, "%.*s %.*s", (int)module->n,
	    module->s, (int)name->n, name->s));
}

/* OrderedDict([(key, value) ...]) or OrderedDict() */
static int
ordered_dict(lpo_pickle *k, const value *args)
{
	const value *list = args->n > 0 ? args->v[0] : NULL, *pair;
	value *d = lpo_pk_make(k, LPO_PK_DICT);
	int64_t i;

	if (d == NULL)
		return lpo_errcode(k->c);
	for (i = 0; list != NULL && i < list->n; i++) {
		pair = list->kind == LPO_PK_LIST ||
		    list->kind == LPO_PK_TUPLE ? list->v[i] : NULL;
		if (pair == NULL || (pair->kind != LPO_PK_TUPLE &&
		    pair->kind != LPO_PK_LIST) || pair->n != 2)
			return lpo_pk_bad(k, "an OrderedDict not made of "
			    "pairs");
		if (lpo_pk_append(k, d, pair->v, 2) != 0)
			return lpo_errcode(k->c);
	}
	return lpo_pk_push(k, d);
}

static int
reduce(lpo_pickle *k)
{
	value *args = lpo_pk_pop(k);
	value *what = args == NULL ? NULL : lpo_pk_pop(k);
	value *pair[2] = { what, args }, *v;

	if (what == NULL)
		return lpo_errcode(k->c);
	if (args->kind != LPO_PK_TUPLE)
		return lpo_pk_bad(k, "a call whose arguments are no tuple");
	if (lpo_pk_is_global(what, "collections OrderedDict"))
		return ordered_dict(k, args);
	if ((v = lpo_pk_make(k, LPO_PK_CALL)) == NULL)
		return lpo_errcode(k->c);
	return lpo_pk_append(k, v, pair, 2) != 0 ? lpo_errcode(k->c) :
	    lpo_pk_push(k, v);
}

/* Keyword arguments are not kept: no object is ever made. */
static int
new_object_ex(lpo_pickle *k)
{
	return lpo_pk_pop(k) == NULL ? lpo_errcode(k->c) : reduce(k);
}

/* ------------------------------------------------------------ the machine */

static int
op_value(lpo_pickle *k, int op)
{
	switch (op) {
	case NONE:
		return lpo_pk_push(k, lpo_pk_make(k, LPO_PK_NONE));
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
		return lpo_pk_push(k, lpo_pk_make(k, LPO_PK_TUPLE));
	case EMPTY_LIST:
	case EMPTY_SET:
		return lpo_pk_push(k, lpo_pk_make(k, LPO_PK_LIST));
	case EMPTY_DICT:
		return lpo_pk_push(k, lpo_pk_make(k, LPO_PK_DICT));
	case TUPLE1:
	case TUPLE2:
	case TUPLE3:
		return lpo_pk_collect(k, LPO_PK_TUPLE, op - TUPLE1 + 1);
	case TUPLE:
		return lpo_pk_collect_mark(k, LPO_PK_TUPLE);
	case LIST:
	case FROZENSET:
		return lpo_pk_collect_mark(k, LPO_PK_LIST);
	case DICT:
		return lpo_pk_collect_mark(k, LPO_PK_DICT);
	case APPEND:
		return lpo_pk_insert_top(k, LPO_PK_LIST, 1);
	case APPENDS:
	case ADDITEMS:
		return lpo_pk_insert_mark(k, LPO_PK_LIST);
	case SETITEM:
		return lpo_pk_insert_top(k, LPO_PK_DICT, 2);
	case SETITEMS:
		return lpo_pk_insert_mark(k, LPO_PK_DICT);
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
		return lpo_pk_push(k, lpo_pk_make(k, LPO_PK_MARK));
	case POP:
		if (k->depth == 0)
			return lpo_pk_bad(k, "an empty stack");
		k->depth--;	/* may be a mark */
		return 0;
	case POP_MARK:
		if (lpo_pk_above_mark(k) < 0)
			return lpo_errcode(k->c);
		k->depth -= lpo_pk_above_mark(k) + 1;
		return 0;
	case DUP:
		return lpo_pk_push(k, lpo_pk_top(k));
	case BINPUT:
		return memo_op(k, 1, lpo_pk_memo_put);
	case LONG_BINPUT:
		return memo_op(k, 4, lpo_pk_memo_put);
	case MEMOIZE:
		return lpo_pk_memo_put(k, (uint64_t)k->memo_n);
	case BINGET:
		return memo_op(k, 1, lpo_pk_memo_get);
	case LONG_BINGET:
		return memo_op(k, 4, lpo_pk_memo_get);
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
		return lpo_pk_pop(k) == NULL || lpo_pk_top(k) == NULL ?
		    lpo_errcode(k->c) : 0;
	case BINPERSID:
		return lpo_pk_collect(k, LPO_PK_PERSISTENT, 1);
	case PROTO:
		if ((rc = number(k, &n, 1)) != 0)
			return rc;
		return n >= 2 && n <= 5 ? 0 :
		    lpo_pk_bad(k, "an unknown protocol");
	case FRAME:
		if ((rc = number(k, &n, 8)) != 0)
			return rc;
		return left(k, n) ? 0 : lpo_pk_bad(k, "a frame beyond the end");
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
		return lpo_pk_bad(k, "it has more than 256 MiB");
	while (rc == 0) {
		if (k->at == k->bytes)
			return lpo_pk_bad(k, "it ends without STOP");
		op = k->p[k->at++];
		if (op == STOP)
			break;
		if ((rc = op_value(k, op)) == 1 &&
		    (rc = op_container(k, op)) == 1)
			rc = op_other(k, op);
	}
	if (rc == 0 && (k->root = lpo_pk_pop(k)) == NULL)
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
