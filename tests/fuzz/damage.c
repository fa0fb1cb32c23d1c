/*
 * Damage to a shard of ours is never silent.  The input says what is done to
 * a whole one: steps of five bytes, what and where.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "lib/base/hash.h"
#include "lib/io/shard.h"
#include "tests/fuzz/fuzz.h"

enum { SAMPLES = 4 };
static uint8_t *whole;
static size_t size;
static uint32_t want;

/* Members of a sample may change places: they go by their names. */
static uint32_t
crc(uint32_t sum, const struct lpo_sample *s)
{
	uint32_t members = 0;
	int i;

	for (i = 0; i < s->n_members; i++)
		members += lpo_crc32c(lpo_crc32c(0, s->member[i].name,
		    strlen(s->member[i].name)), s->member[i].bytes,
		    (size_t)s->member[i].size);
	sum = lpo_crc32c(sum, s->key, strlen(s->key));
	return lpo_crc32c(sum, &members, sizeof(members));
}

static void
make(lpo_ctx *c)
{
	const char *path = fuzz_path("whole.tar");
	lpo_shardw *w = NULL;
	struct lpo_sample s;
	json_t *run = json_pack("{s:i,s:s,s:s,s:[],s:n}", "format", 1, "kind",
	    "moments", "run", "0123456789abcdef", "parents", "samples");
	char name[24];
	uint8_t *p;
	int i, k;

	CHECK(lpo_shardw_open(c, &w, path, run) == 0);
	for (i = 0; i < SAMPLES; i++) {
		memset(&s, 0, sizeof(s));
		s.key = lpo_asprintf(c, "%09d", i);
		s.json = json_pack("{s:s,s:i}", "prompt", "a cat", "row", i);
		for (k = 0; k < 2; k++) {
			p = lpo_alloc(c, 700, 1);
			memset(p, 'a' + i + k, (size_t)(i * 200 + k));
			snprintf(name, sizeof(name), "m_%d.npy", k);
			CHECK(lpo_sample_add(c, &s, name, p,
			    i * 200 + k) == 0);
		}
		CHECK(lpo_shardw_put(w, &s) == 0);
		want = crc(want, &s);
		lpo_sample_clear(&s);
	}
	CHECK(lpo_shardw_finish(w, 0, 0, 1) == 0);
	json_decref(run);
	CHECK(lpo_file_read(c, (char **)&whole, &size, path, 1 << 20) == 0);
}

/* 1: a whole input was read; it must then be what was written. */
static int
looks_whole(lpo_ctx *c, int fd, int streamed)
{
	struct lpo_sample s;
	lpo_shards *r = NULL;
	lpo_shard *sh = NULL;
	uint32_t sum = 0;
	int64_t i, n = 0;
	int rc;

	lpo_clear(c);
	lseek(fd, 0, SEEK_SET);
	rc = streamed ? lpo_shards_open_fd(c, &r, fd, "fuzz") :
	    lpo_shard_open_fd(c, &sh, fd, "fuzz");
	for (i = 0; rc == 0; i++) {
		if (!streamed && i == lpo_shard_samples(sh))
			break;
		rc = streamed ? lpo_shards_next(r, &s) :
		    lpo_shard_get(c, &s, sh, i);
		if (rc == 0) {
			CHECK(s.verified || (streamed ? lpo_shards_run(r) :
			    lpo_shard_run(sh)) == NULL);
			sum = crc(sum, &s);
			n += s.verified;
			lpo_sample_clear(&s);
		}
	}
	/* no run record: foreign, and said to be unverified */
	if ((rc == 0 || rc == 1) && (streamed ? lpo_shards_run(r) :
	    lpo_shard_run(sh)) != NULL)
		CHECK(n == SAMPLES && sum == want);
	lpo_shards_close(r);
	lpo_shard_close(sh);
	return rc == 0 || rc == 1;
}

/* One step on q[n]; the new length. */
static size_t
step(uint8_t *q, size_t n, const uint8_t *p)
{
	size_t at = ((size_t)p[1] << 8 | p[2]) % size, len = p[3] * 64;
	uint8_t block[512];

	if (n == 0)
		return 0;
	at %= n;
	if (len > n - at)
		len = n - at;
	switch (p[0] % 6) {
	case 0:
		q[at] ^= (uint8_t)(1 << p[3] % 8);
		return n;
	case 1:
		q[at] = p[3];
		return n;
	case 2:
		return at;			/* cut */
	case 3:					/* a piece is missing */
		memmove(q + at, q + at + len, n - at - len);
		return n - len;
	case 4:					/* blocks missing */
		at -= at % 512;
		len = len / 512 * 512;
		if (at + len > n)
			return at;
		memmove(q + at, q + at + len, n - at - len);
		return n - len;
	default:				/* two blocks exchanged */
		at -= at % 512;
		len = p[4] % (n / 512 + 1) * 512;
		if (at + 512 > n || len + 512 > n)
			return n;
		memcpy(block, q + at, 512);
		memmove(q + at, q + len, 512);
		memcpy(q + len, block, 512);
		return n;
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	size_t bytes, i;
	uint8_t *q;
	int fd, a, b;

	if (whole == NULL) {
		make(c);
		c = fuzz_begin();
	}
	if ((q = malloc(size)) == NULL)
		abort();
	memcpy(q, whole, size);
	bytes = size;
	for (i = 0; i + 5 <= n && i < 100; i += 5)
		bytes = step(q, bytes, p + i);
	if ((fd = memfd_create("fuzz", 0)) < 0 ||
	    write(fd, q, bytes) != (ssize_t)bytes)
		abort();
	free(q);
	a = looks_whole(c, fd, 1);
	b = looks_whole(c, fd, 0);
	CHECK(a == b);
	close(fd);
	return fuzz_end(b ? 0 : lpo_errcode(c), 2 << 20);
}
