/*
 * Damaged shards through the readers of lpo-pairs (a set of files) and of
 * lpo-lrm (a stream, and files): 4000 of each kind of reading, every one an
 * error or, where the damage is to bytes nobody means anything by, exactly
 * what was written.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/train/pairset.h"
#include "tests/tap.h"

enum { SAMPLES = 6, TRIALS = 4000, KINDS = 8 };
static char dir[] = "/tmp/lpo-damage-XXXXXX";
static lpo_ctx *c;
static struct lpo_schedule schedule;

/* ---- What is damaged: a shard of moments, and a stream of pairs ---- */

struct shard {
	uint8_t *p;
	size_t n;
	size_t member[64];	/* where each header is */
	int members;
	uint32_t sum;		/* of what a reader gets */
};

static json_t *
run_record(const char *kind)
{
	return json_pack("{s:i,s:s,s:s,s:[],s:n,s:{s:i,s:f}}", "format", 1,
	    "kind", kind, "run", "0123456789abcdef", "parents", "samples",
	    "latent", "channels", 4, "scaling_factor", 0.18215);
}

static int
fill(struct lpo_sample *s, const char *kind, int i)
{
	const int64_t shape[3] = { 8, 2, 4 };
	struct lpo_record r;
	float x[64];
	uint8_t *bytes;
	char name[32];
	int64_t size;
	int k, j, rc;

	memset(s, 0, sizeof(*s));
	memset(&r, 0, sizeof(r));
	r.row = i;
	snprintf(r.key, sizeof(r.key), "%09d", i);
	r.prompt = lpo_asprintf(c, "a cat, number %d", i);
	r.label_0 = i % 3 / 2.0;
	r.label_1 = 1 - r.label_0;
	r.num_example_per_prompt = 1;
	r.extra = json_pack("{s:f}", "aesthetic_gap", i / 4.0);
	rc = lpo_record_to_json(c, &s->json, &r);
	s->key = lpo_strdup(c, r.key);
	lpo_record_clear(&r);
	for (k = 0; k < 2 && rc == 0; k++) {
		for (j = 0; j < 64; j++)
			x[j] = (float)((i * 31 + k * 7 + j) % 17) / 8 - 1;
		snprintf(name, sizeof(name), "%s_%d.npy", kind, k);
		if ((rc = lpo_npy_make_f32(c, &bytes, &size, LPO_NPY_F2, 3,
		    shape, x)) == 0)
			rc = lpo_sample_add(c, s, name, bytes, size);
	}
	return rc;
}

static int
make(struct shard *s, const char *path, const char *kind, const char *member)
{
	lpo_shardw *w = NULL;
	struct lpo_sample x;
	json_t *run = run_record(kind);
	size_t at;
	char size[13];
	int i, rc = lpo_shardw_open(c, &w, path, run);

	for (i = 0; i < SAMPLES && rc == 0; i++) {
		if ((rc = fill(&x, member, i)) == 0)
			rc = lpo_shardw_put(w, &x);
		lpo_sample_clear(&x);
	}
	json_decref(run);
	if (rc == 0)
		rc = lpo_shardw_finish(w, 0, 0, 1);
	if (rc != 0 || lpo_file_read(c, (char **)&s->p, &s->n, path,
	    1 << 20) != 0)
		return -1;
	for (at = 0; at + 512 <= s->n && s->p[at] != 0;) {
		s->member[s->members++] = at;
		memcpy(size, s->p + at + 124, 12);
		size[12] = '\0';
		at += 512 + (strtoul(size, NULL, 8) + 511) / 512 * 512;
	}
	return 0;
}

/* ---- Damage ---- */

static const char *const what[KINDS] = {
	"cut anywhere", "cut at a block", "cut at a member",
	"a bit in a header", "a bit in the data", "a block of zeros",
	"a member missing", "two blocks exchanged"
};

static uint64_t
draw(uint64_t n)
{
	static uint64_t x = 88172645463325252;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x % n;
}

/* A place in a header (or not in one). */
static size_t
place(const struct shard *s, int header)
{
	size_t at, i;
	int inside;

	if (header)
		return s->member[draw((uint64_t)s->members)] + draw(512);
	do {
		at = draw(s->n);
		for (inside = 0, i = 0; i < (size_t)s->members; i++)
			inside |= at >= s->member[i] && at < s->member[i] +
			    512;
	} while (inside);
	return at;
}

/* q, of s->n bytes, is damaged; the new length. */
static size_t
damage(uint8_t *q, const struct shard *s, int kind)
{
	size_t at, to;
	uint8_t block[512];
	int k;

	memcpy(q, s->p, s->n);
	switch (kind) {
	case 0:
		return draw(s->n);
	case 1:
		return draw(s->n / 512) * 512;
	case 2:
		return s->member[draw((uint64_t)s->members)];
	case 3:
	case 4:
		q[place(s, kind == 3)] ^= (uint8_t)(1 << draw(8));
		return s->n;
	case 5:
		memset(q + draw(s->n / 512) * 512, 0, 512);
		return s->n;
	case 6:
		k = (int)draw((uint64_t)s->members - 1);
		at = s->member[k];
		to = s->member[k + 1];
		memmove(q + at, q + to, s->n - to);
		return s->n - (to - at);
	default:
		at = draw(s->n / 512) * 512;
		to = draw(s->n / 512) * 512;
		memcpy(block, q + at, 512);
		memmove(q + at, q + to, 512);
		memcpy(q + to, block, 512);
		return s->n;
	}
}

/* ---- The readers; each gives 0 and a sum of all it read ---- */

static uint32_t
add(uint32_t sum, const struct lpo_sample *s)
{
	char *text = lpo_json_dumps(c, s->json);
	int i;

	sum = lpo_crc32c(sum, s->key, strlen(s->key));
	if (text != NULL)
		sum = lpo_crc32c(sum, text, strlen(text));
	lpo_free(text);
	for (i = 0; i < s->n_members; i++)
		sum = lpo_crc32c(lpo_crc32c(sum, s->member[i].name,
		    strlen(s->member[i].name)), s->member[i].bytes,
		    (size_t)s->member[i].size);
	return sum;
}

/* lpo-pairs: all of the set's pairs of one epoch. */
static int
read_pairs(const char *path, uint32_t *sum)
{
	static const int64_t t[2] = { 51, 951 };
	const struct lpo_pair_opts o = { .seed = 7, .schedule = &schedule,
	    .scaling_factor = 0.18215f, .timesteps = t, .n_timesteps = 2,
	    .dtype = LPO_NPY_F2 };
	const struct lpo_filter_options none = { .where =
	    "aesthetic_gap >= 0" };
	struct lpo_pair_pick pick;
	struct lpo_sample s;
	lpo_pairset *set = NULL;
	lpo_filters *f = NULL;
	int64_t i;
	int rc = lpo_pairset_open(c, &set, &path, 1, NULL, 0);

	if (rc == 0)
		rc = lpo_filter_open(c, &f, &none);
	if (rc == 0)
		rc = lpo_pairset_select(set, f, 0);
	for (i = 0; rc == 0 && i < lpo_pairset_items(set); i++) {
		lpo_pairset_pick(set, &pick, i, 7, 1);
		if ((rc = lpo_pairset_sample(c, &s, set, &o, &pick)) == 0)
			*sum = add(*sum, &s);
		lpo_sample_clear(&s);
	}
	lpo_filter_close(f);
	lpo_pairset_close(set);
	return rc;
}

/* lpo-lrm: a stream, or files. */
static int
read_stream(const char *path, uint32_t *sum, int piped)
{
	struct lpo_sample s;
	lpo_shards *r = NULL;
	int rc, fd = -1;

	if (piped && (fd = open(path, O_RDONLY)) < 0)
		return -100;
	rc = piped ? lpo_shards_open_fd(c, &r, fd, "pipe") :
	    lpo_shards_open(c, &r, &path, 1, 0);
	while (rc == 0 && (rc = lpo_shards_next(r, &s)) == 0) {
		*sum = add(*sum, &s);
		lpo_sample_clear(&s);
	}
	lpo_shards_close(r);
	if (fd >= 0)
		close(fd);
	return rc == 1 ? 0 : rc;
}

static int
read_by(int reader, const char *path, uint32_t *sum)
{
	lpo_clear(c);
	*sum = 0;
	return reader == 0 ? read_pairs(path, sum) :
	    read_stream(path, sum, reader == 1);
}

static void
trials(struct shard *s, int reader, const char *name)
{
	int64_t tried[KINDS] = { 0 }, refused[KINDS] = { 0 }, same[KINDS] =
	    { 0 }, mute = 0, silent = 0;
	uint8_t *q = malloc(s->n);
	char path[64];
	uint32_t sum;
	size_t n;
	int i, k, fd;

	/* in memory: it is many files */
	if (q == NULL || (fd = memfd_create("damage", 0)) < 0)
		exit(1);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	for (i = 0; i < TRIALS; i++) {
		k = i % KINDS;
		n = damage(q, s, k);
		if (n == s->n && memcmp(q, s->p, n) == 0) {
			i--;		/* zeros on zeros, a block with itself */
			continue;
		}
		if (ftruncate(fd, 0) != 0 || pwrite(fd, q, n, 0) !=
		    (ssize_t)n)
			exit(1);
		tried[k]++;
		if (read_by(reader, path, &sum) < 0) {
			refused[k]++;
			mute += lpo_errmsg(c)[0] == '\0';
		} else if (sum == s->sum)
			same[k]++;
		else
			silent++;
	}
	for (k = 0; k < KINDS; k++)
		printf("# %s, %s: %lld tried, %lld refused, %lld without "
		    "effect\n", name, what[k], (long long)tried[k],
		    (long long)refused[k], (long long)same[k]);
	ok(silent == 0 && mute == 0, "%s: %d damaged shards, no silent change",
	    name, TRIALS);
	/* the zeros after the end record are all that may go */
	ok(same[2] == 0 && same[6] == 0 && same[0] * 4 < tried[0],
	    "%s: cuts are seen", name);
	close(fd);
	free(q);
}

int
main(void)
{
	static const char *const name[3] = { "lpo-pairs' files",
	    "lpo-lrm's pipe", "lpo-lrm's files" };
	struct shard s[2];
	char path[2][64];
	uint32_t sum;
	int i;

	memset(s, 0, sizeof(s));
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL ||
	    lpo_schedule_parse(c, &schedule, "{}", "none") != 0)
		return 1;
	for (i = 0; i < 2; i++) {
		snprintf(path[i], sizeof(path[i]), "%s/%d.tar", dir, i);
		if (!ok(make(&s[i], path[i], i ? "pairs" : "moments", i ?
		    "latent" : "moments") == 0 && s[i].members == 3 * SAMPLES +
		    2, "shard %d %s", i, lpo_errmsg(c)))
			return done_testing();
	}
	for (i = 0; i < 3; i++) {
		ok(read_by(i, path[i > 0], &s[i > 0].sum) == 0 && (i < 2 ||
		    (read_by(1, path[1], &sum) == 0 && sum == s[1].sum)),
		    "%s: whole %s", name[i], lpo_errmsg(c));
		trials(&s[i > 0], i, name[i]);
	}
	lpo_free(s[0].p);
	lpo_free(s[1].p);
	lpo_clear(c);
	ok(lpo_rmtree(c, dir) == 0, "clean up");
	lpo_schedule_free(&schedule);
	lpo_ctx_free(c);
	return done_testing();
}
