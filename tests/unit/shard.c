/*
 * Shards: round trip, same bytes, the damage table of spec/reliability.md
 * (cuts at every block, bit flips), gaps, pipes, foreign tars.
 */
#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard.h"
#include "tests/tap.h"

enum { SAMPLES = 7 };
static char dir[] = "/tmp/lpo-shard-XXXXXX";
static lpo_ctx *c;
static int notices;

static void
on_notice(void *arg, const char *text)
{
	(void)arg;
	(void)text;
	notices++;
}

static char *
at(const char *name)
{
	static char path[64][256];
	static int k;

	k = (k + 1) % 64;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

/* Without fsync: thousands of them. */
static void
put_file(const char *path, const void *p, size_t n)
{
	FILE *f = fopen(path, "wb");

	if (f == NULL || fwrite(p, 1, n, f) != n || fclose(f) != 0)
		exit(1);
}

static json_t *
run_record(const char *run, const char *kind)
{
	return json_pack("{s:i,s:s,s:s,s:[],s:n}", "format", 1, "kind", kind,
	    "run", run, "parents", "samples");
}

/* Sample i: two members whose bytes follow from i. */
static int
fill(struct lpo_sample *s, int64_t i)
{
	static const char *const name[2] = { "m_0.npy", "m_1.npy" };
	int64_t n, k;
	uint8_t *p;
	int j, rc = 0;

	memset(s, 0, sizeof(*s));
	s->key = lpo_asprintf(c, "%09lld", (long long)i);
	s->json = json_pack("{s:s,s:I}", "prompt", "a cat, \"red\"", "row",
	    (json_int_t)i);
	for (j = 0; j < 2 && rc == 0; j++) {
		n = i * 300 + j * 512;		/* 0 and 512 among them */
		if ((p = lpo_alloc(c, (size_t)n, 1)) == NULL)
			return LPO_ENOMEM;
		for (k = 0; k < n; k++)
			p[k] = (uint8_t)(i * 31 + j * 7 + k * 3);
		rc = lpo_sample_add(c, s, name[j], p, n);
	}
	return s->key == NULL || s->json == NULL ? LPO_ENOMEM : rc;
}

static int
write_shard(const char *path, const char *run, int64_t first, int64_t n,
    int64_t shard, int64_t shards)
{
	lpo_shardw *w = NULL;
	struct lpo_sample s;
	json_t *r = run_record(run, "moments");
	int64_t i;
	int rc = r == NULL ? LPO_ENOMEM : lpo_shardw_open(c, &w, path, r);

	for (i = first; i < first + n && rc == 0; i++) {
		if ((rc = fill(&s, i)) == 0)
			rc = lpo_shardw_put(w, &s);
		lpo_sample_clear(&s);
	}
	json_decref(r);
	if (rc == 0)
		return lpo_shardw_finish(w, 2, shard, shards);
	lpo_shardw_abort(w);
	return rc;
}

/* Sum over all samples read; -1 - error. */
static int64_t
read_all(lpo_shards *r, uint32_t *sum)
{
	struct lpo_sample s;
	int64_t n = 0;
	int rc, i;

	*sum = 0;
	while ((rc = lpo_shards_next(r, &s)) == 0) {
		for (i = 0; i < s.n_members; i++)
			*sum = lpo_crc32c(*sum, s.member[i].bytes,
			    (size_t)s.member[i].size);
		n++;
		lpo_sample_clear(&s);
	}
	return rc == 1 ? n : rc;
}

static int64_t
read_files(int n, const char **args, unsigned flags, uint32_t *sum)
{
	lpo_shards *r = NULL;
	int64_t got;

	lpo_clear(c);
	if ((got = lpo_shards_open(c, &r, args, n, flags)) == 0)
		got = read_all(r, sum);
	lpo_shards_close(r);
	return got;
}

static int64_t
read_one(const char *path, uint32_t *sum)
{
	return read_files(1, &path, 0, sum);
}

struct feed {
	const char *p;
	size_t n;
	int fd;
};

static void *
feeder(void *arg)
{
	struct feed *f = arg;
	size_t done = 0, piece;
	ssize_t w;

	while (done < f->n) {
		piece = 1 + done * 7919 % 3000;
		if (piece > f->n - done)
			piece = f->n - done;
		if ((w = write(f->fd, f->p + done, piece)) <= 0)
			break;
		done += (size_t)w;
	}
	close(f->fd);
	return NULL;
}

/* The same bytes through a pipe, in odd pieces. */
static int64_t
read_pipe(const char *p, size_t n, uint32_t *sum)
{
	struct feed f = { p, n, -1 };
	lpo_shards *r = NULL;
	pthread_t t;
	int64_t got;
	int fd[2];

	lpo_clear(c);
	if (pipe(fd) != 0)
		return -100;
	f.fd = fd[1];
	pthread_create(&t, NULL, feeder, &f);
	if ((got = lpo_shards_open_fd(c, &r, fd[0], "pipe")) == 0)
		got = read_all(r, sum);
	lpo_shards_close(r);
	close(fd[0]);
	pthread_join(t, NULL);
	return got;
}

static void
round_trip(void)
{
	struct lpo_sample s, want;
	const uint8_t *p;
	lpo_shard *sh = NULL;
	char a[65], b[65], *bytes;
	int64_t i, n, same = 0;
	uint32_t sum, again;
	size_t size;
	json_t *v;

	ok(write_shard(at("a.tar"), "0123456789abcdef", 0, SAMPLES, 0, 1) == 0
	    && write_shard(at("b.tar"), "0123456789abcdef", 0, SAMPLES, 0, 1)
	    == 0, "written %s", lpo_errmsg(c));
	lpo_sha256_file(c, a, at("a.tar"));
	lpo_sha256_file(c, b, at("b.tar"));
	ok(strcmp(a, b) == 0, "twice the same bytes");
	ok(lpo_shard_open(c, &sh, at("a.tar")) == 0 &&
	    lpo_shard_samples(sh) == SAMPLES, "opened %s", lpo_errmsg(c));
	for (i = 0; i < SAMPLES; i++) {
		fill(&want, i);
		if (lpo_shard_get(c, &s, sh, i) == 0 && s.verified &&
		    strcmp(s.key, want.key) == 0 && s.n_members == 2 &&
		    s.member[1].size == want.member[1].size &&
		    memcmp(s.member[1].bytes, want.member[1].bytes,
		    (size_t)s.member[1].size) == 0 &&
		    lpo_sample_find(&s, "m_0.npy") == &s.member[0] &&
		    lpo_sample_find(&s, "m_2.npy") == NULL)
			same++;
		lpo_sample_clear(&s);
		lpo_sample_clear(&want);
	}
	ok(same == SAMPLES, "every sample is what was written");
	ok(lpo_shard_find(sh, "000000003") == 3 &&
	    lpo_shard_find(sh, "3") == -1 && lpo_shard_get(c, &s, sh, 7) ==
	    LPO_EINVAL, "by key and position: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_shard_get_json(c, &v, sh, 2) == 0 && json_integer_value(
	    json_object_get(v, "row")) == 2, "record alone");
	json_decref(v);
	ok(lpo_shard_peek(c, &p, &n, sh, 2, "m_1.npy") == 0 && n == 1112 &&
	    p[1] == 62 + 7 + 3, "member without copying");
	ok(lpo_shard_peek(c, &p, &n, sh, 2, "x") == LPO_ENOTFOUND, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_shard_close(sh);
	ok(read_one(at("a.tar"), &sum) == SAMPLES, "as a list of one");
	lpo_file_read(c, &bytes, &size, at("a.tar"), 1 << 24);
	ok(read_pipe(bytes, size, &again) == SAMPLES && sum == again,
	    "through a pipe the same %s", lpo_errmsg(c));
	lpo_free(bytes);
}

/* The foreign shard other programs would read: plain tar. */
static void
readable(void)
{
	struct archive *a = archive_read_new();
	struct archive_entry *e;
	char first[64] = "", last[64] = "";
	int n = 0, plain = 1;

	archive_read_support_format_tar(a);
	archive_read_open_filename(a, at("a.tar"), 10240);
	while (archive_read_next_header(a, &e) == ARCHIVE_OK) {
		snprintf(n++ ? last : first, 64, "%s",
		    archive_entry_pathname(e));
		plain &= archive_entry_mtime(e) == 0 &&
		    archive_entry_uid(e) == 0 && archive_entry_gid(e) == 0 &&
		    archive_format(a) == ARCHIVE_FORMAT_TAR_USTAR;
	}
	archive_read_free(a);
	ok(n == 2 + 3 * SAMPLES && plain &&
	    strcmp(first, "__run__/run.json") == 0 &&
	    strcmp(last, "__end__/end.json") == 0, "plain ustar");
}

/* Cuts and flips: an error, or exactly what was written. */
static void
damage(void)
{
	char *p, *q;
	size_t n, cut, i;
	int64_t got, silent = 0, tried = 0, refused = 0, pipe_silent = 0;
	uint32_t want, sum = 0, x = 12345;
	lpo_shard *sh;

	read_one(at("a.tar"), &want);
	if (!ok(lpo_file_read(c, &p, &n, at("a.tar"), 1 << 24) == 0, "read"))
		return;
	for (cut = 0; cut < n; cut += 512) {
		put_file(at("cut.tar"), p, cut);
		silent += read_one(at("cut.tar"), &sum) >= 0;
		lpo_clear(c);
		silent += lpo_shard_open(c, &sh, at("cut.tar")) == 0;
		lpo_clear(c);
		pipe_silent += read_pipe(p, cut, &sum) >= 0;
		tried++;
	}
	for (i = 0; i < 200; i++) {
		x = x * 1664525 + 1013904223;
		put_file(at("cut.tar"), p, x % n);
		silent += read_one(at("cut.tar"), &sum) >= 0;
		tried++;
	}
	ok(silent == 0, "%lld cuts, at each block and anywhere: all refused",
	    (long long)tried);
	ok(pipe_silent == 0, "and in a pipe none reaches a good end");
	q = malloc(n);
	for (silent = tried = i = 0; i < 4000; i++) {
		x = x * 1664525 + 1013904223;
		cut = x % (8 * n);
		memcpy(q, p, n);
		q[cut / 8] ^= (char)(1 << cut % 8);
		put_file(at("flip.tar"), q, n);
		got = read_one(at("flip.tar"), &sum);
		silent += got >= 0 && (got != SAMPLES || sum != want);
		refused += got < 0;
	}
	ok(silent == 0 && refused > 2000, "4000 bit flips: %lld refused, no "
	    "silent change", (long long)refused);
	for (silent = refused = i = 0; i < 1000; i++) {
		x = x * 1664525 + 1013904223;
		cut = x % (8 * n);
		memcpy(q, p, n);
		q[cut / 8] ^= (char)(1 << cut % 8);
		got = read_pipe(q, n, &sum);
		silent += got >= 0 && (got != SAMPLES || sum != want);
		refused += got < 0;
	}
	ok(silent == 0, "1000 in a pipe: %lld refused, no silent change",
	    (long long)refused);
	/* A member moved whole: 512-byte blocks exchanged. */
	for (silent = i = 0; i + 1024 <= n; i += 512) {
		memcpy(q, p, n);
		memcpy(q + i, p + i + 512, 512);
		memcpy(q + i + 512, p + i, 512);
		put_file(at("flip.tar"), q, n);
		got = read_one(at("flip.tar"), &sum);
		silent += got >= 0 && (got != SAMPLES || sum != want);
	}
	ok(silent == 0, "blocks exchanged: no silent change");
	free(q);
	lpo_free(p);
	lpo_clear(c);
}

static void
sets(void)
{
	const char *pattern[1], *list[4], *twice[4], *many[1];
	char *all, *one;
	uint32_t sum;
	size_t n = 0, m;
	int64_t i;
	char name[32];

	for (i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "enc-%03d.tar", (int)i);
		write_shard(at(name), "aaaabbbbccccdddd", i * 3, 3, i, 12);
	}
	pattern[0] = at("enc-%03d.tar");
	ok(read_files(1, pattern, 0, &sum) == 36, "a pattern %s",
	    lpo_errmsg(c));
	many[0] = at("enc-*.tar");
	ok(read_files(1, many, 0, &sum) == 36, "a glob %s", lpo_errmsg(c));
	twice[0] = many[0];
	twice[1] = at("enc-004.tar");
	ok(read_files(2, twice, 0, &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	/* cat enc-*.tar, as a file and as a pipe */
	all = malloc(1 << 22);
	for (i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "enc-%03d.tar", (int)i);
		lpo_file_read(c, &one, &m, at(name), 1 << 20);
		memcpy(all + n, one, m);
		n += m;
		lpo_free(one);
	}
	lpo_file_write(c, at("all.tar"), all, n);
	ok(read_one(at("all.tar"), &sum) == 36, "shards in one file %s",
	    lpo_errmsg(c));
	ok(read_pipe(all, n, &sum) == 36, "shards in one pipe %s",
	    lpo_errmsg(c));
	ok(read_pipe(all, n - m, &sum) == LPO_EFORMAT, "pipe: %s",
	    lpo_errmsg(c));
	free(all);
	unlink(at("enc-011.tar"));
	ok(read_files(1, pattern, 0, &sum) == LPO_EFORMAT, "last: %s",
	    lpo_errmsg(c));
	unlink(at("enc-005.tar"));
	unlink(at("enc-006.tar"));
	ok(read_files(1, many, 0, &sum) == LPO_EFORMAT, "middle: %s",
	    lpo_errmsg(c));
	ok(strstr(lpo_errmsg(c), "--allow-missing") == NULL &&
	    read_files(1, many, LPO_SHARDS_OPTIONAL, &sum) == LPO_EFORMAT &&
	    strstr(lpo_errmsg(c), "(--allow-missing goes on without)") != NULL,
	    "the way out where there is one: %s", lpo_errmsg(c));
	notices = 0;
	ok(read_files(1, pattern, LPO_SHARDS_ALLOW_MISSING, &sum) == 27 &&
	    notices == 2, "allowed, and said %s", lpo_errmsg(c));
	ok(read_files(1, &(const char *){ at("no-%d.tar") }, 0, &sum) ==
	    LPO_ENOTFOUND, "%s", lpo_errmsg(c));
	write_shard(at("other.tar"), "eeeeffff00001111", 0, 3, 0, 1);
	list[0] = at("a.tar");
	list[1] = at("other.tar");
	ok(read_files(2, list, 0, &sum) == SAMPLES + 3, "two runs %s",
	    lpo_errmsg(c));
	lpo_clear(c);
}

/* A tar by libarchive as others make them. */
static void
foreign(const char *path, int n, const char *const *names, int type)
{
	struct archive *a = archive_write_new();
	struct archive_entry *e;
	int i;

	archive_write_set_format_pax_restricted(a);
	archive_write_open_filename(a, path);
	for (i = 0; i < n; i++) {
		e = archive_entry_new();
		archive_entry_set_pathname(e, names[i]);
		archive_entry_set_filetype(e, i == 0 && type ?
		    (unsigned)type : AE_IFREG);
		if (i == 0 && type == AE_IFLNK)
			archive_entry_set_symlink(e, "/etc/passwd");
		archive_entry_set_perm(e, 0644);
		archive_entry_set_size(e, i == 0 && type ? 0 : 2);
		archive_write_header(a, e);
		if (!(i == 0 && type))
			archive_write_data(a, "{}", 2);
		archive_entry_free(e);
	}
	archive_write_free(a);
}

static void
foreign_tars(void)
{
	static const char *const wds[] = { "./x/a.0.jpg", "./x/a.1.jpg",
	    "./x/a.json", "x/b.0.jpg", "README", "x/b.json", "x/._c.jpg",
	    "__meta__/info.json" };
	static const char *const two[] = { "a.jpg", "a.jpg" };
	static const char *const bad[] = { "../../../etc/a.json", "b.json" };
	static const char *const run[] = { "__end__/end.json" };
	struct lpo_sample s;
	const char *list[2];
	lpo_shard *sh;
	uint32_t sum;

	notices = 0;
	foreign(at("w-000.tar"), 8, wds, 0);
	ok(lpo_shard_open(c, &sh, at("w-000.tar")) == 0 &&
	    lpo_shard_samples(sh) == 2 && lpo_shard_run(sh) == NULL &&
	    notices == 1, "WebDataset's rules, said to be unverified %s",
	    lpo_errmsg(c));
	ok(lpo_shard_get(c, &s, sh, 0) == 0 && strcmp(s.key, "x/a") == 0 &&
	    s.n_members == 2 && strcmp(s.member[1].name, "1.jpg") == 0 &&
	    !s.verified && json_is_object(s.json), "its first sample");
	lpo_sample_clear(&s);
	lpo_shard_close(sh);
	foreign(at("w-002.tar"), 8, wds, 0);
	list[0] = at("w-000.tar");
	list[1] = at("w-002.tar");
	ok(read_files(2, list, 0, &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	ok(read_files(2, list, LPO_SHARDS_ALLOW_MISSING, &sum) == 4,
	    "allowed");
	foreign(at("f.tar"), 2, two, 0);
	ok(read_one(at("f.tar"), &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	foreign(at("f.tar"), 2, bad, 0);
	ok(read_one(at("f.tar"), &sum) == 2, "'..' is a name like others");
	foreign(at("f.tar"), 2, bad, AE_IFLNK);
	ok(read_one(at("f.tar"), &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	foreign(at("f.tar"), 2, bad, AE_IFIFO);
	ok(read_one(at("f.tar"), &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	foreign(at("f.tar"), 2, bad, AE_IFDIR);
	ok(read_one(at("f.tar"), &sum) == 1, "folders are passed over");
	foreign(at("f.tar"), 1, run, 0);
	ok(read_one(at("f.tar"), &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_file_write(c, at("f.tar"), "", 0);
	ok(read_one(at("f.tar"), &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_file_write(c, at("f.tar"), "no tar at all, by far", 21);
	ok(read_one(at("f.tar"), &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
writers(void)
{
	json_t *r = run_record("0", "pairs"), *m = run_record("1", "moments");
	static const char *const bad[] = { "", "a.b", "a/b", "__a" };
	lpo_shardw *w = NULL;
	struct lpo_sample s;
	const char *list[2];
	uint32_t sum;
	size_t i;
	int fails = 0;

	lpo_shardw_open(c, &w, at("never.tar"), r);
	fill(&s, 1);
	lpo_shardw_put(w, &s);
	lpo_shardw_abort(w);
	ok(!lpo_file_exists(at("never.tar")), "a failed writer leaves no file");
	for (i = 0; i < 4; i++) {
		lpo_free(s.key);
		s.key = lpo_strdup(c, bad[i]);
		lpo_shardw_open(c, &w, at("never.tar"), r);
		fails += lpo_shardw_put(w, &s) == LPO_EINVAL;
		lpo_clear(c);
		lpo_shardw_abort(w);
	}
	ok(fails == 4, "keys with dot, slash, underscores are refused");
	lpo_sample_clear(&s);
	lpo_shardw_open(c, &w, at("p.tar"), r);
	ok(lpo_shardw_finish(w, 0, 0, 1) == 0, "an empty shard");
	ok(read_one(at("p.tar"), &sum) == 0, "read: no samples, good end");
	list[0] = at("p.tar");
	list[1] = at("a.tar");
	ok(read_files(2, list, 0, &sum) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
	json_decref(r);
	json_decref(m);
}

static void
out_of_memory(void)
{
	int rc = LPO_ENOMEM;
	uint32_t sum = 0;
	long n;

	for (n = 0; n < 2000 && rc != 0; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		rc = write_shard(at("oom.tar"), "a", 0, 2, 0, 1);
		if (rc == 0)
			rc = read_one(at("oom.tar"), &sum) == 2 ? 0 :
			    lpo_errcode(c);
		lpo_alloc_fail_at(-1);
		if (rc != 0 && rc != LPO_ENOMEM)
			break;
	}
	ok(rc == 0 && n > 50, "%ld failing allocations, each LPO_ENOMEM (%s)",
	    n - 1, lpo_errmsg(c));
}

int
main(void)
{
	signal(SIGPIPE, SIG_IGN);
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	lpo_ctx_on_notice(c, on_notice, NULL);
	round_trip();
	readable();
	damage();
	sets();
	foreign_tars();
	writers();
	out_of_memory();
	ok(lpo_rmtree(c, dir) == 0, "clean up");
	lpo_ctx_free(c);
	return done_testing();
}
