/*
 * A torch file: a pickle made of the few opcodes that torch writes itself, and
 * a zip whose members are stored at multiples of 64 bytes, with a fixed date.
 */
#include "lib/io/torch.h"

#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "lib/base/file.h"

#define STEM	"archive/"
#define ALIGN	64
#define MEMBERS	64		/* of a file, at most */

struct text {
	lpo_ctx *c;
	char *p;
	size_t n, cap;
	int rc;			/* sticky */
};

static void
put(struct text *t, const void *p, size_t n)
{
	char *grown;

	if (t->rc != 0)
		return;
	if (t->n + n > t->cap) {
		t->cap = 2 * (t->n + n) + 256;
		if ((grown = lpo_realloc(t->c, t->p, t->cap)) == NULL) {
			t->rc = LPO_ENOMEM;
			return;
		}
		t->p = grown;
	}
	memcpy(t->p + t->n, p, n);
	t->n += n;
}

/* v as n bytes, little-endian */
static void
num(struct text *t, uint64_t v, int n)
{
	char b[8];
	int i;

	for (i = 0; i < n; i++)
		b[i] = (char)(v >> 8 * i);
	put(t, b, (size_t)n);
}

/* ---------------------------------------------------------------- pickle */

static void
str(struct text *t, const char *s)
{
	put(t, "X", 1);
	num(t, strlen(s), 4);
	put(t, s, strlen(s));
}

static void
global(struct text *t, const char *module, const char *name)
{
	put(t, "c", 1);
	put(t, module, strlen(module));
	put(t, "\n", 1);
	put(t, name, strlen(name));
	put(t, "\n", 1);
}

static void
integer(struct text *t, int64_t v)
{
	put(t, "J", 1);
	num(t, (uint64_t)v, 4);
}

/* A Python float: eight bytes, most significant first. */
static void
real(struct text *t, double d)
{
	uint64_t u;

	memcpy(&u, &d, sizeof(u));
	put(t, "G", 1);
	num(t, __builtin_bswap64(u), 8);
}

static void
ordered_dict(struct text *t)
{
	global(t, "collections", "OrderedDict");
	put(t, ")R", 2);
}

/* Strides of a plain array, or its shape. */
static void
tuple(struct text *t, const struct lpo_torch_item *it, int strides)
{
	int64_t v;
	int i, j;

	put(t, "(", 1);
	for (i = 0; i < it->ndim; i++) {
		v = strides ? 1 : it->shape[i];
		for (j = i + 1; strides && j < it->ndim; j++)
			v *= it->shape[j];
		integer(t, v);
	}
	put(t, "t", 1);
}

static int64_t
count_of(const struct lpo_torch_item *it)
{
	int64_t n = 1;
	int i;

	for (i = 0; i < it->ndim; i++)
		if (__builtin_mul_overflow(n, it->shape[i], &n))
			return -1;
	return n;
}

/*
 * _rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict()), the
 * storage by its persistent id.
 */
static void
tensor(struct text *t, const struct lpo_torch_item *it, int key)
{
	char name[16];

	snprintf(name, sizeof(name), "%d", key);
	global(t, "torch._utils", "_rebuild_tensor_v2");
	put(t, "((", 2);
	str(t, "storage");
	global(t, "torch", "FloatStorage");
	str(t, name);
	str(t, "cpu");
	integer(t, count_of(it));
	put(t, "tQ", 2);
	integer(t, 0);
	tuple(t, it, 0);
	tuple(t, it, 1);
	put(t, "\x89", 1);
	ordered_dict(t);
	put(t, "tR", 2);
}

static void
pickle(struct text *t, const struct lpo_torch_item *it, int n)
{
	int i, key = 0;

	put(t, "\x80\x02}(", 4);
	for (i = 0; i < n; i++) {
		int first = i == 0 || strcmp(it[i].outer, it[i - 1].outer);
		int last = i + 1 == n || strcmp(it[i].outer, it[i + 1].outer);

		if (first)
			str(t, it[i].outer);
		if (it[i].inner == NULL) {
			real(t, it[i].data[0]);
			continue;
		}
		if (first) {
			ordered_dict(t);
			put(t, "(", 1);
		}
		str(t, it[i].inner);
		tensor(t, &it[i], key++);
		if (last)
			put(t, "u", 1);
	}
	put(t, "u.", 2);
}

/* ------------------------------------------------------------------- zip */

struct zip {
	lpo_out *o;
	struct text central;
	int members;
};

/* What local header and directory have in common. */
static void
header(struct text *t, const char *name, uint32_t crc, uint64_t bytes,
    size_t extra)
{
	num(t, 10, 2);			/* version that is needed */
	num(t, 0, 2);			/* flags */
	num(t, 0, 2);			/* stored */
	num(t, 0, 2);			/* 00:00:00 */
	num(t, 1 << 5 | 1, 2);		/* 1980-01-01 */
	num(t, crc, 4);
	num(t, bytes, 4);
	num(t, bytes, 4);
	num(t, strlen(STEM) + strlen(name), 2);
	num(t, extra, 2);
}

static uint32_t
crc_of(const void *data, size_t bytes)
{
	const uint8_t *p = data;
	uLong crc = crc32(0, NULL, 0);
	size_t n;

	for (; bytes > 0; bytes -= n, p += n) {
		n = bytes < (1 << 30) ? bytes : 1 << 30;
		crc = crc32(crc, p, (uInt)n);
	}
	return (uint32_t)crc;
}

/* The data begins at a multiple of 64, as torch has it: its "FB" padding. */
static int
member(struct zip *z, lpo_ctx *c, const char *name, const void *data,
    size_t bytes)
{
	struct text t = { .c = c };
	int64_t at = lpo_out_bytes(z->o);
	uint32_t crc = crc_of(data, bytes);
	size_t extra, i;
	int rc;

	if (at + (int64_t)bytes > (int64_t)UINT32_MAX - (1 << 20))
		return lpo_fail(c, LPO_EINVAL, "a torch file of more than "
		    "4 GiB");
	extra = ALIGN - ((size_t)at + 30 + strlen(STEM) + strlen(name) + 4) %
	    ALIGN;
	num(&t, 0x04034b50, 4);
	header(&t, name, crc, bytes, extra + 4);
	put(&t, STEM, strlen(STEM));
	put(&t, name, strlen(name));
	put(&t, "FB", 2);
	num(&t, extra, 2);
	for (i = 0; i < extra; i++)
		put(&t, "Z", 1);
	num(&z->central, 0x02014b50, 4);
	num(&z->central, 10, 2);
	header(&z->central, name, crc, bytes, 0);
	num(&z->central, 0, 2);		/* comment */
	num(&z->central, 0, 2);		/* disk */
	num(&z->central, 0, 2);		/* attributes */
	num(&z->central, 0, 4);
	num(&z->central, (uint64_t)at, 4);
	put(&z->central, STEM, strlen(STEM));
	put(&z->central, name, strlen(name));
	z->members++;
	if ((rc = t.rc != 0 ? t.rc : z->central.rc) == 0 &&
	    (rc = lpo_out_write(z->o, t.p, t.n)) == 0)
		rc = lpo_out_write(z->o, data, bytes);
	lpo_free(t.p);
	return rc;
}

static int
directory(struct zip *z)
{
	int64_t at = lpo_out_bytes(z->o);
	size_t bytes = z->central.n;
	struct text *t = &z->central;

	num(t, 0x06054b50, 4);
	num(t, 0, 4);			/* disks */
	num(t, (uint64_t)z->members, 2);
	num(t, (uint64_t)z->members, 2);
	num(t, bytes, 4);
	num(t, (uint64_t)at, 4);
	num(t, 0, 2);			/* comment */
	return t->rc != 0 ? t->rc : lpo_out_write(z->o, t->p, t->n);
}

static int
write_all(lpo_ctx *c, struct zip *z, const struct lpo_torch_item *it, int n)
{
	struct text t = { .c = c };
	char name[32];
	int i, key = 0, rc;

	pickle(&t, it, n);
	if ((rc = t.rc) == 0 && (rc = member(z, c, "data.pkl", t.p,
	    t.n)) == 0)
		rc = member(z, c, "byteorder", "little", 6);
	for (i = 0; i < n && rc == 0; i++) {
		if (it[i].inner == NULL)
			continue;
		snprintf(name, sizeof(name), "data/%d", key++);
		rc = member(z, c, name, it[i].data,
		    (size_t)count_of(&it[i]) * sizeof(float));
	}
	if (rc == 0 && (rc = member(z, c, "version", "3\n", 2)) == 0)
		rc = directory(z);
	lpo_free(t.p);
	return rc;
}

int
lpo_torch_write(lpo_ctx *c, const char *path, const struct lpo_torch_item *it,
    int n)
{
	struct zip z = { .central = { .c = c } };
	int i, rc;

	if (n > MEMBERS)
		return lpo_fail(c, LPO_EINVAL, "%s: %d tensors in one torch "
		    "file", path, n);
	for (i = 0; i < n; i++)
		if (count_of(&it[i]) < 0 || count_of(&it[i]) > INT32_MAX)
			return lpo_fail(c, LPO_EINVAL, "%s: '%s' is too large",
			    path, it[i].outer);
	if ((rc = lpo_out_open(c, &z.o, path)) != 0)
		return rc;
	if ((rc = write_all(c, &z, it, n)) != 0)
		lpo_out_abort(z.o);
	else
		rc = lpo_out_commit(z.o);
	lpo_free(z.central.p);
	return rc;
}
