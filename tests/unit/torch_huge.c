/* A torch file of more than 4 GiB, with zip64's records. */
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>

#include "lib/io/safetensors.h"
#include "tests/tap.h"
#include "tests/unit/torch_bytes.h"

static lpo_ctx *c;

/*
 * As torch writes them: a local header, which leaves sum and size to the
 * record behind the bytes and has a filler, or at >= 0 that of the directory
 * for the member there.
 */
static void
head64(uint8_t *p, size_t *n, const char *name, uint32_t crc, uint64_t bytes,
    int64_t at)
{
	le(p, n, at < 0 ? 0x04034b50 : 0x02014b50, 4);
	if (at >= 0)
		le(p, n, 45, 2);
	le(p, n, 45, 2);
	le(p, n, 0x808, 4);		/* UTF-8, a record behind; stored */
	le(p, n, 1 << 21 | 1 << 16, 4);
	le(p, n, at < 0 ? 0 : crc, 4);
	le(p, n, at < 0 ? 0 : UINT64_MAX, 8);
	le(p, n, strlen(name), 2);
	le(p, n, at < 0 ? 20 : 28, 2);
	if (at >= 0) {
		le(p, n, 0, 10);
		le(p, n, UINT64_MAX, 4);
	}
	memcpy(p + *n, name, strlen(name));
	*n += strlen(name);
	le(p, n, at < 0 ? 0x4246 : 1, 2);
	le(p, n, at < 0 ? 16 : 24, 2);
	le(p, n, at < 0 ? 0 : bytes, 8);
	le(p, n, at < 0 ? 0 : bytes, 8);
	if (at >= 0)
		le(p, n, (uint64_t)at, 8);
}

static void
behind64(uint8_t *p, size_t *n, uint32_t crc, uint64_t bytes)
{
	le(p, n, 0x08074b50, 4);
	le(p, n, crc, 4);
	le(p, n, bytes, 8);
	le(p, n, bytes, 8);
}

/* The sum of `head`, n zeros and `tail`, of 4 bytes each, none of it read. */
static uint32_t
sum_with_zeros(const void *head4, int64_t n, const void *tail4)
{
	const uint8_t zero = 0;
	uLong sum = crc32(0, head4, 4), z = crc32(0, &zero, 1);
	int64_t len;

	for (len = 1; len <= n; len *= 2) {
		if (n & len)
			sum = crc32_combine(sum, z, len);
		z = crc32_combine(z, z, len);
	}
	return (uint32_t)crc32_combine(sum, crc32(0, tail4, 4), 4);
}

/* Behind the members: their directory and both end records. */
static size_t
end64(uint8_t *p, size_t n, const uint8_t *cd, size_t ncd)
{
	size_t at = n, end = n + ncd;

	memcpy(p + n, cd, ncd);
	n += ncd;
	le(p, &n, 0x06064b50, 4);
	le(p, &n, 44, 8);
	le(p, &n, 45 << 16 | 45, 4);
	le(p, &n, 0, 8);
	le(p, &n, 3, 8);
	le(p, &n, 3, 8);
	le(p, &n, ncd, 8);
	le(p, &n, at, 8);
	le(p, &n, 0x07064b50, 4);
	le(p, &n, 0, 4);
	le(p, &n, end, 8);
	le(p, &n, 1, 4);
	le(p, &n, 0x06054b50, 4);
	le(p, &n, 0, 4);
	le(p, &n, UINT64_MAX, 8);
	le(p, &n, UINT64_MAX, 4);
	le(p, &n, 0, 2);
	return n;
}

/* {"w": all of storage "0", "x": of storage "1", two floats} */
#define HUGE_PICKLE "\x80\2}(X\1\0\0\0w" REBUILD(STORAGE( \
	"torch\nFloatStorage", "\1\0\0\0""0", "J\xfc\xfe\xff\x4f"), \
	"K\0J\xfc\xfe\xff\x4f\x85K\1\x85") "X\1\0\0\0x" \
	REBUILD(STORAGE("torch\nFloatStorage", "\1\0\0\0""1", "K\2"), \
	"K\0K\2\x85K\1\x85") "u."

enum { FIRST = 1000, HUGE_COUNT = 0x4ffffefc };

#define LAST (FIRST + (size_t)HUGE_COUNT * 4 + 24)	/* the last header */

/*
 * p has room and is zero, which most of it stays: then the system has one
 * page for all of it.  The last member's header lies across 5 GiB, where the
 * reader goes from a block to the next.
 */
static size_t
make_huge(uint8_t *p)
{
	const int64_t bytes = (int64_t)HUGE_COUNT * 4;
	const float one = 1, two = 2, x[2] = { 3, 4 };
	uint8_t cd[512];
	size_t n = 0, ncd = 0, pickle, second;
	uint32_t crc;

	pickle = FIRST - 2 * 50 - 24 - strlen("a/data.pkl") -
	    strlen("a/data/0");
	memcpy(p + 60, HUGE_PICKLE, sizeof(HUGE_PICKLE) - 1);
	crc = (uint32_t)crc32(0, p + 60, (uInt)pickle);
	head64(p, &n, "a/data.pkl", crc, pickle, -1);
	head64(cd, &ncd, "a/data.pkl", crc, pickle, 0);
	n += pickle;		/* what follows STOP is not looked at */
	behind64(p, &n, crc, pickle);
	crc = sum_with_zeros(&one, bytes - 8, &two);
	head64(cd, &ncd, "a/data/0", crc, (uint64_t)bytes, (int64_t)n);
	head64(p, &n, "a/data/0", crc, (uint64_t)bytes, -1);
	memcpy(p + n, &one, 4);
	n += (size_t)bytes;
	memcpy(p + n - 4, &two, 4);
	behind64(p, &n, crc, (uint64_t)bytes);
	second = n;
	crc = (uint32_t)crc32(0, (const void *)x, sizeof(x));
	head64(p, &n, "a/data/1", crc, sizeof(x), -1);
	head64(cd, &ncd, "a/data/1", crc, sizeof(x), (int64_t)second);
	memcpy(p + n, x, sizeof(x));
	n += sizeof(x);
	behind64(p, &n, crc, sizeof(x));
	return end64(p, n, cd, ncd);
}

static int
has_ends(const lpo_st *st, const char *key, int64_t count, float first,
    float last)
{
	const struct lpo_st_tensor *t = lpo_st_find(st, key);

	return t != NULL && t->count == count && t->bytes == 4 * count &&
	    memcmp(t->data, &first, 4) == 0 && memcmp((const uint8_t *)
	    t->data + t->bytes - 4, &last, 4) == 0;
}

static void
huge(void)
{
	const size_t room = ((size_t)5 << 30) + 4096;
	uint8_t *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE |
	    MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	lpo_st *st = NULL;
	size_t n;

	if (p == MAP_FAILED) {
		skip("no address space of 5 GiB");
		return;
	}
	madvise(p, room, MADV_HUGEPAGE);
	n = make_huge(p);
	ok(LAST < (size_t)5 << 30 && LAST + 30 > (size_t)5 << 30,
	    "a header across 5 GiB");
	if (ok(lpo_st_open_memory(c, &st, p, n, "m") == 0, "a storage of "
	    "5 GiB%s", lpo_errmsg(c)))
		ok(has_ends(st, "w", HUGE_COUNT, 1, 2) &&
		    has_ends(st, "x", 2, 3, 4), "its first and last values, "
		    "and those of the storage after it");
	lpo_st_close(st);
	lpo_clear(c);
	p[(size_t)9 << 29] = 1;
	ok(lpo_st_open_memory(c, &st, p, n, "m") == LPO_EFORMAT &&
	    strstr(lpo_errmsg(c), "CRC") != NULL, "a byte beyond 4 GiB "
	    "damaged: %s", lpo_errmsg(c));
	lpo_clear(c);
	munmap(p, room);
}

int
main(void)
{
	c = lpo_ctx_new();
	if (c == NULL)
		return 1;
	huge();
	lpo_ctx_free(c);
	return done_testing();
}
