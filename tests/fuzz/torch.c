/*
 * What torch.save wrote: a zip as it is ("PK"), or a pickle that is put into a
 * zip with four storages, so that mutations need not find checksums.
 */
#include <zlib.h>

#include "lib/io/safetensors.h"
#include "tests/fuzz/fuzz.h"

enum { STORAGE = 96 };

struct zip {
	uint8_t *p;
	size_t n, at[8], size[8];
	const char *name[8];
	uint32_t crc[8];
	int members;
};

static void
put(struct zip *z, uint32_t v, int bytes)
{
	for (; bytes > 0; bytes--, v >>= 8)
		z->p[z->n++] = (uint8_t)v;
}

/* What local header and directory have alike, from `version needed`. */
static void
fields(struct zip *z, int i)
{
	put(z, 20, 2);
	put(z, 0, 2);			/* flags */
	put(z, 0, 2);			/* stored */
	put(z, 0, 4);			/* time, date */
	put(z, z->crc[i], 4);
	put(z, (uint32_t)z->size[i], 4);
	put(z, (uint32_t)z->size[i], 4);
	put(z, (uint32_t)strlen(z->name[i]), 2);
	put(z, 0, 2);			/* extra */
}

static void
text(struct zip *z, const void *p, size_t n)
{
	if (n > 0)
		memcpy(z->p + z->n, p, n);
	z->n += n;
}

static void
add(struct zip *z, const char *name, const void *p, size_t n)
{
	int i = z->members++;

	z->name[i] = name;
	z->at[i] = z->n;
	z->size[i] = n;
	z->crc[i] = (uint32_t)crc32(0, p, (uInt)n);
	put(z, 0x04034b50, 4);
	fields(z, i);
	text(z, name, strlen(name));
	text(z, p, n);
}

static void
finish(struct zip *z)
{
	size_t dir = z->n;
	int i;

	for (i = 0; i < z->members; i++) {
		put(z, 0x02014b50, 4);
		put(z, 20, 2);
		fields(z, i);
		put(z, 0, 2);		/* comment */
		put(z, 0, 2);		/* disk */
		put(z, 0, 2);
		put(z, 0, 4);
		put(z, (uint32_t)z->at[i], 4);
		text(z, z->name[i], strlen(z->name[i]));
	}
	put(z, 0x06054b50, 4);
	put(z, 0, 4);
	put(z, (uint32_t)z->members, 2);
	put(z, (uint32_t)z->members, 2);
	put(z, (uint32_t)(z->n - dir + 4 - 16), 4);
	z->n -= 4;
	put(z, (uint32_t)(z->n - 12 - dir), 4);
	put(z, (uint32_t)dir, 4);
	put(z, 0, 2);
}

static struct zip
wrap(const uint8_t *pickle, size_t n)
{
	static const char *const name[4] = { "a/data/0", "a/data/1",
	    "a/data/2", "a/data/3" };
	uint8_t bytes[STORAGE];
	struct zip z;
	int i;

	memset(&z, 0, sizeof(z));
	if ((z.p = malloc(n + 4096)) == NULL)
		abort();
	for (i = 0; i < STORAGE; i++)
		bytes[i] = (uint8_t)(i * 7);
	add(&z, "a/data.pkl", pickle, n);
	for (i = 0; i < 4; i++)
		add(&z, name[i], bytes, i == 3 ? 0 : STORAGE);
	finish(&z);
	return z;
}

static void
look(lpo_ctx *c, const lpo_st *st)
{
	const struct lpo_st_tensor *t;
	int64_t i, k, count, sum = 0;
	float *f;

	for (i = 0; (t = lpo_st_at(st, i)) != NULL; i++) {
		CHECK(lpo_st_find(st, t->key) != NULL);
		for (count = 1, k = 0; k < t->ndim; k++)
			count *= t->shape[k];
		CHECK(count == t->count && t->bytes >= 0);
		for (k = 0; k < t->bytes; k++)
			sum += ((const uint8_t *)t->data)[k];
		if ((f = malloc((size_t)t->count * 4 + 1)) == NULL)
			abort();
		if (lpo_st_f32(c, f, t) != 0)
			lpo_clear(c);
		free(f);
	}
	CHECK(sum >= 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	struct zip z = { NULL, 0, { 0 }, { 0 }, { NULL }, { 0 }, 0 };
	lpo_st *st = NULL;
	int rc, zipped = n > 3 && memcmp(p, "PK\3\4", 4) == 0;

	if (!zipped)
		z = wrap(p, n);
	rc = lpo_st_open_memory(c, &st, zipped ? p : z.p, zipped ? n : z.n,
	    "fuzz");
	if (rc == 0)
		look(c, st);
	lpo_st_close(st);
	free(z.p);
	return fuzz_end(rc, (40 << 20) + 512 * n);
}
