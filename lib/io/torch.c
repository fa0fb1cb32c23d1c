/*
 * What torch.save writes (spec/models.md 8): a zip of stored members, one
 * pickle that describes tensors, and their storages as raw bytes, which are
 * used where they lie in the map.  Sizes and places come from the zip's
 * central directory, bounded by the file; nothing is unpacked.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <archive.h>
#include <archive_entry.h>

#include "lib/base/json.h"
#include "lib/io/pickle.h"
#include "lib/io/safetensors_priv.h"

enum {
	MAX_MEMBERS = 200000,
	MAX_TENSORS = 100000,
	MAX_VISITS = 1000000,
	MAX_DEPTH = 64,
	MAX_KEY = 1024,
	/*
	 * The zip reader sums up a block at a time and takes its length as
	 * 32 bits: all of the map as one block would give large storages a
	 * wrong CRC.
	 */
	BLOCK = 1 << 30
};

struct member {
	char *name;
	const uint8_t *data;
	int64_t bytes;
};

/* One file while it is read. */
struct reader {
	lpo_ctx *c;
	lpo_st *st;
	const uint8_t *p;	/* the file */
	size_t bytes;
	const char *file;
	struct member *m;	/* sorted by name */
	int64_t n, cap;
	char *stem;		/* "archive/" */
	char key[MAX_KEY];	/* of the value being looked at */
	int64_t st_cap;
	int64_t visits;
	uint64_t copied;	/* bytes of tensors that were no plain array */
};

/* ------------------------------------------------------------------- zip */

static const uint8_t legacy[15] = { 0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c,
	0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e };

/*
 * A safetensors header of 67 MB begins with the same four bytes as a zip, but
 * has its '{' where the zip has a method.
 */
int
lpo_torch_sniff(const uint8_t *p, size_t bytes)
{
	if (bytes >= 9 && p[8] == '{')
		return 0;
	return (bytes >= 4 && p[0] == 'P' && p[1] == 'K' && p[2] < 8 &&
	    p[3] < 9) || (bytes >= sizeof(legacy) &&
	    memcmp(p, legacy, sizeof(legacy)) == 0);
}

static int
zip_fail(struct reader *r, struct archive *a, const char *what)
{
	/* where libarchive has no words, it had no memory for them */
	if (archive_errno(a) == ENOMEM || archive_error_string(a) == NULL)
		return lpo_fail(r->c, LPO_ENOMEM, "%s: out of memory",
		    r->file);
	return lpo_fail(r->c, LPO_EFORMAT, "%s: %s: %s", r->file, what,
	    archive_error_string(a));
}

/* The member's bytes as one piece of the map; its CRC is checked. */
static int
member_data(struct reader *r, struct archive *a, struct member *m)
{
	const void *block;
	const uint8_t *b;
	size_t n;
	la_int64_t at;
	int rc;

	while ((rc = archive_read_data_block(a, &block, &n, &at)) ==
	    ARCHIVE_OK) {
		b = block;
		if (n == 0)
			continue;
		if (m->data == NULL)
			m->data = b;
		/* unpacked bytes would be in a buffer of libarchive's */
		if (b != m->data + m->bytes || b < r->p ||
		    n > r->bytes - (size_t)(b - r->p))
			return lpo_fail(r->c, LPO_EFORMAT, "%s: '%s' is not "
			    "stored as it is", r->file, m->name);
		m->bytes += (int64_t)n;
	}
	if (rc != ARCHIVE_EOF)
		return zip_fail(r, a, m->name);
	return 0;
}

/* Refused by name: what torch.save never writes, or is no data. */
static int
member_allowed(struct reader *r, struct archive *a, struct archive_entry *e,
    const char *name)
{
	const char *format = archive_format_name(a), *base;

	base = strchr(name, '/');
	if (base != NULL && (strcmp(base, "/constants.pkl") == 0 ||
	    strncmp(base, "/code/", 6) == 0))
		return lpo_fail(r->c, LPO_EFORMAT, "%s: TorchScript: a "
		    "program, not weights; save its state_dict()", r->file);
	if (archive_entry_is_encrypted(e))
		return lpo_fail(r->c, LPO_EFORMAT, "%s: '%s' is encrypted",
		    r->file, name);
	if (format == NULL || strstr(format, "(uncompressed)") == NULL)
		return lpo_fail(r->c, LPO_EFORMAT, "%s: '%s' is compressed; "
		    "torch.save stores, so this is another kind of zip",
		    r->file, name);
	return 0;
}

static int
add_member(struct reader *r, struct archive *a, struct archive_entry *e)
{
	const char *name = archive_entry_pathname(e);
	struct member *grown, *m;
	int rc;

	if (name == NULL || archive_entry_filetype(e) != AE_IFREG)
		return lpo_fail(r->c, LPO_EFORMAT, "%s: a member that is no "
		    "file with a name", r->file);
	if ((rc = member_allowed(r, a, e, name)) != 0)
		return rc;
	if (r->n == MAX_MEMBERS)
		return lpo_fail(r->c, LPO_EFORMAT, "%s: more than %d members",
		    r->file, MAX_MEMBERS);
	if (r->n == r->cap) {
		r->cap = r->cap ? 2 * r->cap : 64;
		grown = lpo_realloc(r->c, r->m,
		    (size_t)r->cap * sizeof(*grown));
		if (grown == NULL)
			return LPO_ENOMEM;
		r->m = grown;
	}
	m = &r->m[r->n];
	memset(m, 0, sizeof(*m));
	if ((m->name = lpo_strdup(r->c, name)) == NULL)
		return LPO_ENOMEM;
	r->n++;
	return member_data(r, a, m);
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(((const struct member *)a)->name,
	    ((const struct member *)b)->name);
}

static int
read_members(struct reader *r, struct archive *a, struct archive_entry *e)
{
	int64_t i;
	int rc;

	if (archive_read_open_memory2(a, r->p, r->bytes, BLOCK) != ARCHIVE_OK)
		return zip_fail(r, a, "not a whole zip (cut off?)");
	while ((rc = archive_read_next_header2(a, e)) == ARCHIVE_OK ||
	    rc == ARCHIVE_WARN) {
		/* a stem that this locale cannot write is no harm */
		if (rc == ARCHIVE_WARN && (archive_error_string(a) == NULL ||
		    strncmp(archive_error_string(a), "Pathname", 8) != 0))
			return zip_fail(r, a, "zip");
		if ((rc = add_member(r, a, e)) != 0)
			return rc;
	}
	if (rc != ARCHIVE_EOF)
		return zip_fail(r, a, "not a whole zip (cut off?)");
	if (r->n > 0)
		qsort(r->m, (size_t)r->n, sizeof(*r->m), by_name);
	for (i = 1; i < r->n; i++)
		if (strcmp(r->m[i - 1].name, r->m[i].name) == 0)
			return lpo_fail(r->c, LPO_EFORMAT, "%s: member '%s' "
			    "twice", r->file, r->m[i].name);
	return 0;
}

static int
open_zip(struct reader *r)
{
	/* its own entry and table libarchive 3.6 would use without looking */
	struct archive_entry *e = archive_entry_new();
	struct archive *a = archive_read_new();
	int rc;

	if (e == NULL || a == NULL ||
	    archive_read_support_format_zip_seekable(a) != ARCHIVE_OK ||
	    archive_read_set_callback_data(a, r) != ARCHIVE_OK)
		rc = lpo_fail(r->c, LPO_ENOMEM, "out of memory");
	else
		rc = read_members(r, a, e);
	if (a != NULL)
		archive_read_free(a);
	archive_entry_free(e);
	return rc;
}

/* stem + name, or NULL */
static const struct member *
find_member(struct reader *r, const char *name, int64_t n)
{
	char full[512];
	struct member want = { full, NULL, 0 };

	if (memchr(name, '\0', (size_t)n) != NULL ||
	    snprintf(full, sizeof(full), "%s%.*s", r->stem, (int)n, name) >=
	    (int)sizeof(full) || r->n == 0)
		return NULL;
	return bsearch(&want, r->m, (size_t)r->n, sizeof(*r->m), by_name);
}

/* The member "STEM/data.pkl" names the stem of all others. */
static int
find_stem(struct reader *r)
{
	const struct member *order;
	const char *slash;
	int64_t i;

	for (i = 0; i < r->n; i++) {
		slash = strchr(r->m[i].name, '/');
		if (slash == NULL || strcmp(slash, "/data.pkl") != 0)
			continue;
		if (r->stem != NULL)
			return lpo_fail(r->c, LPO_EFORMAT, "%s: two members "
			    "data.pkl", r->file);
		r->stem = lpo_asprintf(r->c, "%.*s/",
		    (int)(slash - r->m[i].name), r->m[i].name);
		if (r->stem == NULL)
			return LPO_ENOMEM;
	}
	if (r->stem == NULL)
		return lpo_fail(r->c, LPO_EFORMAT, "%s: a zip without "
		    "data.pkl: not written by torch.save", r->file);
	order = find_member(r, "byteorder", 9);
	if (order != NULL && (order->bytes != 6 ||
	    memcmp(order->data, "little", 6) != 0))
		return lpo_fail(r->c, LPO_EFORMAT, "%s: its byte order is "
		    "'%.*s', only 'little' is read", r->file,
		    (int)(order->bytes < 16 ? order->bytes : 16),
		    (const char *)order->data);
	return 0;
}

/* --------------------------------------------------------------- tensors */

typedef struct lpo_pk_value value;

/* Names of storages and of dtypes (of _rebuild_tensor_v3). */
static const struct {
	const char *global, *dtype;
} types[] = {
	{ "torch FloatStorage", "F32" }, { "torch HalfStorage", "F16" },
	{ "torch BFloat16Storage", "BF16" },
	{ "torch DoubleStorage", "F64" }, { "torch LongStorage", "I64" },
	{ "torch IntStorage", "I32" }, { "torch ShortStorage", "I16" },
	{ "torch CharStorage", "I8" }, { "torch ByteStorage", "U8" },
	{ "torch BoolStorage", "BOOL" },
	{ "torch ComplexFloatStorage", "C64" },
	{ "torch.storage UntypedStorage", "U8" },
	{ "torch float32", "F32" }, { "torch float16", "F16" },
	{ "torch bfloat16", "BF16" }, { "torch float64", "F64" },
	{ "torch int64", "I64" }, { "torch int32", "I32" },
	{ "torch int16", "I16" }, { "torch int8", "I8" },
	{ "torch uint8", "U8" }, { "torch bool", "BOOL" },
	{ "torch uint16", "U16" }, { "torch uint32", "U32" },
	{ "torch uint64", "U64" },
	{ "torch float8_e4m3fn", "F8_E4M3" },
	{ "torch float8_e5m2", "F8_E5M2" }
};

static const char *
type_of(const value *v)
{
	size_t i;

	for (i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (lpo_pk_is_global(v, types[i].global))
			return types[i].dtype;
	return NULL;
}

static int
bad(struct reader *r, const char *what)
{
	return lpo_fail(r->c, LPO_EFORMAT, "%s: '%s': %s", r->file, r->key,
	    what);
}

/* The table owns p from here on, or it is freed. */
static int
own(struct reader *r, void *p)
{
	lpo_st *st = r->st;
	void **grown;

	if (p == NULL)
		return LPO_ENOMEM;
	if (st->n_own == st->cap_own) {
		st->cap_own = st->cap_own ? 2 * st->cap_own : 64;
		grown = lpo_realloc(r->c, st->own,
		    (size_t)st->cap_own * sizeof(*grown));
		if (grown == NULL) {
			lpo_free(p);
			return LPO_ENOMEM;
		}
		st->own = grown;
	}
	st->own[st->n_own++] = p;
	return 0;
}

/* A tensor under the present key, to be filled in. */
static int
new_tensor(struct reader *r, struct lpo_st_tensor **out)
{
	struct lpo_st_tensor *grown;
	char *key;
	int rc;

	if (r->st->n == r->st_cap) {
		r->st_cap = r->st_cap ? 2 * r->st_cap : 64;
		grown = lpo_realloc(r->c, r->st->t,
		    (size_t)r->st_cap * sizeof(*grown));
		if (grown == NULL)
			return LPO_ENOMEM;
		r->st->t = grown;
	}
	if (r->st->n == MAX_TENSORS)
		return bad(r, "more than 100000 tensors");
	key = lpo_strdup(r->c, r->key);
	if ((rc = own(r, key)) != 0)
		return rc;
	*out = &r->st->t[r->st->n];
	memset(*out, 0, sizeof(**out));
	(*out)->key = key;
	return 0;
}

/*
 * A tensor's storage by its persistent id ('storage', type, key, location,
 * elements): all bytes of its member.  The location, such as 'cuda:0', is of
 * no interest.  1: of a type that is passed over.
 */
static int
storage(struct reader *r, const struct member **out, const char **dtype,
    const value *v)
{
	struct lpo_st_tensor size;
	const value *id = v->kind == LPO_PK_PERSISTENT ? v->v[0] : v;
	char name[300];
	int64_t bits;

	if (v->kind != LPO_PK_PERSISTENT || id->kind != LPO_PK_TUPLE ||
	    id->n < 5 || id->v[2]->kind != LPO_PK_STR ||
	    id->v[4]->kind != LPO_PK_INT || id->v[2]->n > 250)
		return bad(r, "its storage is not described as torch does");
	if ((*dtype = type_of(id->v[1])) == NULL)
		return 1;
	snprintf(name, sizeof(name), "data/%.*s", (int)id->v[2]->n,
	    id->v[2]->s);
	if ((*out = find_member(r, name, (int64_t)strlen(name))) == NULL)
		return bad(r, "its storage is not in the file");
	bits = lpo_st_set_dtype(&size, *dtype);
	if (id->v[4]->i < 0 || __builtin_mul_overflow(id->v[4]->i, bits / 8,
	    &bits) || bits != (*out)->bytes)
		return lpo_fail(r->c, LPO_EFORMAT, "%s: '%s': storage '%s' "
		    "has %lld bytes, which is not %lld elements of %s",
		    r->file, r->key, name, (long long)(*out)->bytes,
		    (long long)id->v[4]->i, *dtype);
	return 0;
}

/* Shape and strides in elements; *last: the farthest element from `at`. */
static int
layout(struct reader *r, struct lpo_st_tensor *t, int64_t *stride,
    int64_t *last, const value *sizes, const value *strides)
{
	int64_t far;
	int i;

	if (sizes->kind == LPO_PK_CALL &&	/* torch.Size((2, 3)) */
	    lpo_pk_is_global(sizes->v[0], "torch Size") &&
	    sizes->v[1]->n == 1)
		sizes = sizes->v[1]->v[0];
	if (sizes->kind != LPO_PK_TUPLE || strides->kind != LPO_PK_TUPLE ||
	    sizes->n != strides->n || sizes->n > LPO_ST_DIMS)
		return bad(r, "an impossible shape");
	t->ndim = (int)sizes->n;
	t->count = 1;
	*last = 0;
	for (i = 0; i < t->ndim; i++) {
		if (sizes->v[i]->kind != LPO_PK_INT ||
		    strides->v[i]->kind != LPO_PK_INT ||
		    sizes->v[i]->i < 0 || strides->v[i]->i < 0)
			return bad(r, "an impossible shape");
		t->shape[i] = sizes->v[i]->i;
		stride[i] = strides->v[i]->i;
		if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
			return bad(r, "an impossible shape");
	}
	for (i = 0; i < t->ndim && t->count > 0; i++)
		if (__builtin_mul_overflow(t->shape[i] - 1, stride[i], &far) ||
		    __builtin_add_overflow(*last, far, last))
			return bad(r, "strides beyond its storage");
	return 0;
}

static int
is_contiguous(const struct lpo_st_tensor *t, const int64_t *stride)
{
	int64_t want = 1;
	int i;

	for (i = t->ndim - 1; i >= 0; want *= t->shape[i--])
		if (t->shape[i] > 1 && stride[i] != want)
			return 0;
	return 1;
}

/* A transposed or cut tensor: its elements in row-major order. */
static int
gather(struct reader *r, struct lpo_st_tensor *t, const int64_t *stride,
    const uint8_t *from, int64_t each)
{
	int64_t at[LPO_ST_DIMS] = { 0 }, i, off = 0;
	uint8_t *to;
	int d, rc;

	/* a bound, or few bytes could ask for much memory many times */
	r->copied += (uint64_t)t->bytes;
	if (r->copied > 4 * (uint64_t)r->bytes)
		return bad(r, "too many tensors share one storage");
	to = lpo_alloc(r->c, (size_t)t->count, (size_t)each);
	if ((rc = own(r, to)) != 0)
		return rc;
	t->data = to;
	for (i = 0; i < t->count; i++) {
		memcpy(to + i * each, from + off * each, (size_t)each);
		for (d = t->ndim - 1; d >= 0; d--) {
			off += stride[d];
			if (++at[d] < t->shape[d])
				break;
			off -= at[d] * stride[d];
			at[d] = 0;
		}
	}
	return 0;
}

/* (storage, offset, size, stride ...); dtype NULL: the storage's. */
static int
add_tensor(struct reader *r, const value *args, const char *dtype)
{
	int64_t stride[LPO_ST_DIMS] = { 0 }, last = 0, end, each;
	const struct member *m = NULL;
	struct lpo_st_tensor *t = NULL;
	const char *stored = NULL;
	int rc;

	if (args->kind != LPO_PK_TUPLE || args->n < 4 ||
	    args->v[1]->kind != LPO_PK_INT || args->v[1]->i < 0)
		return bad(r, "not described as torch does");
	if ((rc = storage(r, &m, &stored, args->v[0])) != 0)
		return rc < 0 ? rc : 0;
	if ((rc = new_tensor(r, &t)) != 0)
		return rc;
	each = lpo_st_set_dtype(t, dtype != NULL ? dtype : stored) / 8;
	if ((rc = layout(r, t, stride, &last, args->v[2], args->v[3])) != 0)
		return rc;
	end = m->bytes / each;		/* in elements, as offset is */
	if (t->count > 0 && (args->v[1]->i >= end ||
	    last >= end - args->v[1]->i || t->count > end))
		return bad(r, "elements beyond its storage");
	t->bytes = t->count * each;
	t->data = r->p;
	if (t->count > 0) {
		t->data = m->data + args->v[1]->i * each;
		if (!is_contiguous(t, stride) &&
		    (rc = gather(r, t, stride, t->data, each)) != 0)
			return rc;
	}
	r->st->n++;
	return 0;
}

/*
 * The functions that torch's pickles name.  Others stand for objects nobody
 * needs here: passed over.
 */
static int
add_call(struct reader *r, const value *v)
{
	const value *f = v->v[0], *args = v->v[1];
	const char *dtype;
	int depth = 0;

	/* wrappers around the call that makes the tensor */
	while (depth++ < MAX_DEPTH && args->kind == LPO_PK_TUPLE) {
		if ((lpo_pk_is_global(f, "torch._utils _rebuild_parameter") ||
		    lpo_pk_is_global(f,
		    "torch._utils _rebuild_parameter_with_state")) &&
		    args->n >= 1 && args->v[0]->kind == LPO_PK_CALL) {
			v = args->v[0];
			f = v->v[0];
			args = v->v[1];
		} else if (lpo_pk_is_global(f,
		    "torch._tensor _rebuild_from_type_v2") && args->n >= 3) {
			f = args->v[0];
			args = args->v[2];
		} else
			break;
	}
	if (lpo_pk_is_global(f, "torch._utils _rebuild_tensor_v2") ||
	    lpo_pk_is_global(f, "torch._utils _rebuild_tensor"))
		return add_tensor(r, args, NULL);
	if (!lpo_pk_is_global(f, "torch._utils _rebuild_tensor_v3"))
		return 0;
	if (args->kind != LPO_PK_TUPLE || args->n < 7)
		return bad(r, "not described as torch does");
	dtype = type_of(args->v[6]);
	return dtype == NULL ? 0 : add_tensor(r, args, dtype);
}

static int
add_number(struct reader *r, const value *v)
{
	struct lpo_st_tensor *t = NULL;
	void *p = lpo_alloc(r->c, 1, 8);
	int rc;

	if ((rc = own(r, p)) != 0 || (rc = new_tensor(r, &t)) != 0)
		return rc;
	t->bytes = lpo_st_set_dtype(t, v->kind == LPO_PK_REAL ? "F64" :
	    v->kind == LPO_PK_INT ? "I64" : "BOOL") / 8;
	t->count = 1;
	t->data = p;
	if (v->kind == LPO_PK_REAL)
		memcpy(p, &v->d, sizeof(v->d));
	else if (v->kind == LPO_PK_INT)
		memcpy(p, &v->i, sizeof(v->i));
	else
		*(uint8_t *)p = v->i != 0;
	r->st->n++;
	return 0;
}

/* r->key becomes that of an entry; its length, or -1 with what is wrong. */
static int
enter(struct reader *r, size_t len, const value *key)
{
	const char *dot = len > 0 ? "." : "";

	if (memchr(key->s, '\0', (size_t)key->n) != NULL ||
	    !lpo_utf8_valid(key->s, (size_t)key->n))
		return bad(r, "a key below it is no text");
	if (len + 1 + (size_t)key->n >= sizeof(r->key))
		return bad(r, "a key below it is too long");
	snprintf(r->key + len, sizeof(r->key) - len, "%s%.*s", dot,
	    (int)key->n, key->s);
	return 0;
}

/* A dict's tensors; r->key[0..len) leads to it.  Other keys are passed over. */
static int
walk(struct reader *r, const value *dict, size_t len, int depth)
{
	const value *v;
	int64_t i;
	int rc = 0;

	if (depth > MAX_DEPTH)
		return bad(r, "dicts nested too deeply");
	for (i = 0; i + 1 < dict->n && rc == 0; i += 2) {
		if (++r->visits > MAX_VISITS)
			return bad(r, "more than a million entries");
		v = dict->v[i + 1];
		r->key[len] = '\0';
		if (dict->v[i]->kind != LPO_PK_STR)
			continue;
		if ((rc = enter(r, len, dict->v[i])) != 0)
			return rc;
		switch (v->kind) {
		case LPO_PK_DICT:
			rc = walk(r, v, strlen(r->key), depth + 1);
			break;
		case LPO_PK_CALL:
			rc = add_call(r, v);
			break;
		case LPO_PK_REAL:
		case LPO_PK_INT:
		case LPO_PK_BOOL:
			rc = add_number(r, v);
			break;
		default:
			break;
		}
	}
	return rc;
}

static int
read_pickle(struct reader *r)
{
	const struct member *m = find_member(r, "data.pkl", 8);
	const value *root, *inner;
	lpo_pickle *k = NULL;
	int rc;

	if ((rc = lpo_pickle_read(r->c, &k, m->data, (size_t)m->bytes,
	    r->file)) != 0)
		return rc;
	root = lpo_pickle_root(k);
	if (root->kind == LPO_PK_CALL)
		rc = lpo_fail(r->c, LPO_EFORMAT, "%s: it holds one tensor or "
		    "one Python object, not a dict of tensors; save a "
		    "state_dict()", r->file);
	else if (root->kind != LPO_PK_DICT)
		rc = lpo_fail(r->c, LPO_EFORMAT, "%s: it does not hold a dict "
		    "of tensors", r->file);
	else {
		inner = lpo_pk_get(root, "state_dict");
		rc = walk(r, inner != NULL && inner->kind == LPO_PK_DICT ?
		    inner : root, 0, 0);
	}
	lpo_pickle_free(k);
	return rc;
}

int
lpo_st_add_torch(lpo_ctx *c, lpo_st *st, const uint8_t *p, size_t bytes,
    const char *file)
{
	struct reader r = { .c = c, .st = st, .p = p, .bytes = bytes,
	    .file = file, .st_cap = st->n };
	int64_t i;
	int rc;

	if (bytes >= sizeof(legacy) && memcmp(p, legacy, sizeof(legacy)) == 0)
		return lpo_fail(c, LPO_EFORMAT, "%s: the format of torch "
		    "before 1.6 is not read; torch.load() and torch.save() it "
		    "once with a later one", file);
	if ((rc = open_zip(&r)) == 0 && (rc = find_stem(&r)) == 0)
		rc = read_pickle(&r);
	for (i = 0; i < r.n; i++)
		lpo_free(r.m[i].name);
	lpo_free(r.m);
	lpo_free(r.stem);
	return rc;
}
