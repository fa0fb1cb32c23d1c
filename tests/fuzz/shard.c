/*
 * Shards and tar streams: the mapped file and the stream give the same
 * samples, and verify the same.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "lib/base/hash.h"
#include "lib/io/shard.h"
#include "tests/fuzz/fuzz.h"

struct sum {
	int rc;
	int64_t samples, members, verified;
	uint32_t crc;
};

static void
count(struct sum *s, const struct lpo_sample *x)
{
	int i;

	s->samples++;
	s->verified += x->verified;
	s->crc = lpo_crc32c(s->crc, x->key, strlen(x->key));
	CHECK(json_is_object(x->json));
	for (i = 0; i < x->n_members; i++) {
		s->members++;
		s->crc = lpo_crc32c(s->crc, x->member[i].name,
		    strlen(x->member[i].name));
		s->crc = lpo_crc32c(s->crc, x->member[i].bytes,
		    (size_t)x->member[i].size);
	}
}

static struct sum
stream(lpo_ctx *c, int fd)
{
	struct sum s = { 0 };
	struct lpo_sample x;
	lpo_shards *r = NULL;

	lpo_clear(c);
	lseek(fd, 0, SEEK_SET);
	s.rc = lpo_shards_open_fd(c, &r, fd, "fuzz");
	while (s.rc == 0 && (s.rc = lpo_shards_next(r, &x)) == 0) {
		count(&s, &x);
		lpo_sample_clear(&x);
	}
	lpo_shards_close(r);
	return s;
}

static struct sum
file(lpo_ctx *c, int fd)
{
	struct sum s = { 0 };
	struct lpo_sample x;
	lpo_shard *sh = NULL;
	int64_t i;

	lpo_clear(c);
	s.rc = lpo_shard_open_fd(c, &sh, fd, "fuzz");
	for (i = 0; s.rc == 0 && i < lpo_shard_samples(sh); i++) {
		if ((s.rc = lpo_shard_get(c, &x, sh, i)) != 0)
			break;
		CHECK(lpo_shard_find(sh, x.key) >= 0);
		count(&s, &x);
		lpo_sample_clear(&x);
	}
	lpo_shard_close(sh);
	return s;
}

static int
both(lpo_ctx *c, const uint8_t *p, size_t n)
{
	int fd = memfd_create("fuzz", 0);
	struct sum a, b;

	if (fd < 0 || write(fd, p, n) != (ssize_t)n)
		abort();
	a = stream(c, fd);
	b = file(c, fd);
	close(fd);
	CHECK((a.rc == 1) == (b.rc == 0));
	if (b.rc == 0)
		CHECK(a.samples == b.samples && a.members == b.members &&
		    a.crc == b.crc && a.verified == b.verified);
	return b.rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	uint8_t *q;
	int rc;

	if ((rc = both(c, p, n)) < 0) {
		q = fuzz_tar_repair(p, n);
		rc = both(c, q, n);
		free(q);
	}
	return fuzz_end(rc, (2 << 20) + 1024 * n);
}
