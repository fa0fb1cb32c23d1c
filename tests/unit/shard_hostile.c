/*
 * Tars nobody of good will writes, made block by block: each has a defined
 * answer, and none costs more memory or time than its own bytes.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard_priv.h"
#include "tests/tap.h"

static lpo_ctx *c;
static int notices;
static volatile sig_atomic_t stop;

static uint8_t tar[1 << 20];
static size_t used;

static void
on_notice(void *arg, const char *text)
{
	(void)arg;
	(void)text;
	notices++;
}

/* The last header's checksum. */
static void
seal(void)
{
	uint8_t *h = tar + used - 512;
	unsigned sum = 0;
	int i;

	memset(h + 148, ' ', 8);
	for (i = 0; i < 512; i++)
		sum += h[i];
	snprintf((char *)h + 148, 8, "%06o", sum);
}

/* A ustar header; size: twelve bytes as they shall stand there. */
static void
header(const char *name, const char *size, int type)
{
	uint8_t *h = tar + used;

	memset(h, 0, 512);
	snprintf((char *)h, 100, "%s", name);
	memcpy(h + 100, "0000644", 8);
	memcpy(h + 108, "0000000", 8);
	memcpy(h + 116, "0000000", 8);
	memcpy(h + 124, size, 12);
	memcpy(h + 136, "00000000000", 12);
	h[156] = (uint8_t)type;
	memcpy(h + 157, "elsewhere", 10);	/* a link's target */
	memcpy(h + 257, "ustar\00000", 8);
	used += 512;
	seal();
}

static void
member(const char *name, const char *data, int type)
{
	char size[32];
	size_t n = strlen(data);

	snprintf(size, sizeof(size), "%011zo", n);
	header(name, size, type);
	memset(tar + used, 0, (n + 511) / 512 * 512);
	memcpy(tar + used, data, n);
	used += (n + 511) / 512 * 512;
}

static void
finish(void)
{
	memset(tar + used, 0, 1024);
	used += 1024;
}

/* Samples by file (0) or stream (1), or the error; tar starts afresh. */
static int64_t
samples(int streamed)
{
	int fd = memfd_create("hostile", 0);
	struct lpo_sample s;
	lpo_shards *r = NULL;
	lpo_shard *sh = NULL;
	int64_t n = 0, rc;

	lpo_clear(c);
	if (fd < 0 || write(fd, tar, used) != (ssize_t)used)
		exit(1);
	lseek(fd, 0, SEEK_SET);
	if (!streamed) {
		rc = lpo_shard_open_fd(c, &sh, fd, "t.tar");
		n = rc == 0 ? lpo_shard_samples(sh) : rc;
		lpo_shard_close(sh);
	} else {
		rc = lpo_shards_open_fd(c, &r, fd, "t.tar");
		while (rc == 0 && (rc = lpo_shards_next(r, &s)) == 0) {
			n++;
			lpo_sample_clear(&s);
		}
		n = rc < 0 ? rc : n;
		lpo_shards_close(r);
	}
	close(fd);
	return n;
}

static void
answer(int64_t want, const char *what)
{
	int64_t a = samples(0), b;
	char said[300];

	snprintf(said, sizeof(said), "%s", lpo_errmsg(c));
	b = samples(1);
	ok(a == want && b == want && (want >= 0 || said[0] != '\0'),
	    "%s%s%s (%lld, %lld)", what, want < 0 ? ": " : "", said,
	    (long long)a, (long long)b);
	used = 0;
}

static void
names(void)
{
	static const char *const odd[] = { "../../etc/passwd.json",
	    "/etc/passwd.json", "a/../b.json", "./././c.json", "\\d.json",
	    "e\n.json", "f\x1b[2J.json", "\xff\xfe.json" };
	char dots[100];
	size_t i;

	for (i = 0; i < sizeof(odd) / sizeof(*odd); i++)
		member(odd[i], "{}", '0');
	finish();
	answer(8, "odd names are names: nothing is ever written to them");
	memset(dots, '.', 99);
	dots[99] = '\0';
	member(dots, "{}", '0');
	member("nodot", "{}", '0');
	member(".hidden", "{}", '0');
	member("a/.hidden.json", "{}", '0');
	member("b.json", "{}", '0');
	finish();
	answer(1, "names without a key are passed over");
	member("a.json", "{}", '0');
	member("a.json", "{}", '0');
	finish();
	answer(LPO_EFORMAT, "the same name twice");
}

static void
kinds(void)
{
	static const struct {
		int type;
		const char *what;
	} v[] = {
		{ '1', "a hard link" }, { '2', "a symbolic link" },
		{ '3', "a device" }, { '4', "a block device" },
		{ '6', "a FIFO" }
	};
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		member("a.json", "", v[i].type);
		member("b.json", "{}", '0');
		finish();
		answer(LPO_EFORMAT, v[i].what);
	}
	member("a/", "", '5');
	member("b.json", "{}", '0');
	finish();
	answer(1, "a folder is passed over");
	/* old GNU sparse: no data, 8 kB long */
	header("a.bin", "00000000000", 'S');
	memcpy(tar + used - 512 + 257, "ustar  ", 8);
	memcpy(tar + used - 512 + 483, "00000020000", 12);
	seal();
	finish();
	answer(LPO_EFORMAT, "a sparse file");
}

static void
sizes(void)
{
	static const char huge[13] = "\x80\0\0\0\0\0\0\x02\0\0\0\0";
	static const char negative[13] = "\xff\xff\xff\xff\xff\xff\xff\xff\xff"
	    "\xff\xfe\0";
	static const char largest[13] = "\x80\xff\xff\xff\xff\xff\xff\xff\xff"
	    "\xff\xff\xff";
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	header("a.json", "77777777777", '0');
	finish();
	answer(LPO_EFORMAT, "8 GB in a file of 1.5 kB");
	header("a.json", "10000000000", '0');
	finish();
	answer(LPO_EFORMAT, "1 GB and a byte, allowed by its field");
	header("a.json", huge, '0');
	finish();
	answer(LPO_EFORMAT, "base-256: 2^33");
	header("a.json", negative, '0');
	finish();
	answer(LPO_EFORMAT, "base-256: negative");
	header("a.json", largest, '0');
	finish();
	answer(LPO_EFORMAT, "base-256: all bits");
	header("././@LongLink", "10000000000", 'L');
	finish();
	answer(LPO_EFORMAT, "a GNU long name of 1 GB");
	header("PaxHeaders/a", "10000000000", 'x');
	finish();
	answer(LPO_EFORMAT, "a pax header of 1 GB");
	member("PaxHeaders/a", "16 size=9999999\n", 'x');
	member("a.json", "{}", '0');
	finish();
	answer(LPO_EFORMAT, "pax says more bytes than there are");
	member("PaxHeaders/a", "99999 path=x\n", 'x');
	member("a.json", "{}", '0');
	finish();
	answer(1, "a pax record longer than its header is passed over");
	getrusage(RUSAGE_SELF, &after);
	ok(after.ru_maxrss - before.ru_maxrss < 64 << 10,
	    "no memory for what is only said (%ld kB)",
	    after.ru_maxrss - before.ru_maxrss);
}

static void
many(void)
{
	char name[32];
	int i;

	for (i = 0; i < LPO_SHARD_MEMBERS_MAX; i++) {
		snprintf(name, sizeof(name), "a.%d", i);
		member(name, "", '0');
	}
	finish();
	answer(1, "256 members");
	for (i = 0; i <= LPO_SHARD_MEMBERS_MAX; i++) {
		snprintf(name, sizeof(name), "a.%d", i);
		member(name, "", '0');
	}
	finish();
	answer(LPO_EFORMAT, "257 members");
}

/* ---- Records that look like ours ---- */

#define RUN "{\"format\":1,\"run\":\"0123456789abcdef\",\"kind\":\"pairs\"}"

static void
put_end(const char *run, int64_t n, int64_t shard, int64_t shards)
{
	struct lpo_section s = { .ours = 1, .samples = n, .shard = shard,
	    .shards = shards };
	json_t *end = lpo_end_make(c, &s, lpo_crc32c(0, run, strlen(run)), 0);
	char *text = end ? lpo_json_dumps(c, end) : NULL;

	if (text == NULL)
		exit(1);
	member(LPO_END_MEMBER, text, '0');
	finish();
	lpo_free(text);
	json_decref(end);
}

static void
records(void)
{
	static const char *const bad[] = { "", "[]", "{}", "{\"format\":1}",
	    "{\"format\":\"1\",\"run\":\"a\"}", "{\"format\":2,\"run\":\"a\"}",
	    "{\"format\":1,\"run\":7}", "{\"format\":1,\"run\":\"a\"} x",
	    "{\"format\":1,\"format\":1,\"run\":\"a\"}",
	    "{\"format\":1,\"run\":\"0123456789012345678901234567890123456789"
	    "0123456789012345678901234567890\"}" };
	size_t i;

	member(LPO_RUN_MEMBER, RUN, '0');
	put_end(RUN, 0, 0, 1);
	answer(0, "no samples");
	for (i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		member(LPO_RUN_MEMBER, bad[i], '0');
		put_end(bad[i], 0, 0, 1);
		answer(LPO_EFORMAT, "run record");
	}
	member(LPO_RUN_MEMBER, RUN, '0');
	member(LPO_RUN_MEMBER, RUN, '0');
	put_end(RUN, 0, 0, 1);
	answer(LPO_EFORMAT, "two beginnings");
	member(LPO_RUN_MEMBER, RUN, '0');
	finish();
	answer(LPO_EFORMAT, "no end");
	put_end(RUN, 0, 0, 1);
	answer(LPO_EFORMAT, "no beginning");
	member(LPO_RUN_MEMBER, RUN, '0');
	put_end(RUN, 1, 0, 1);
	answer(LPO_EFORMAT, "a sample too few");
	member(LPO_RUN_MEMBER, RUN, '0');
	put_end(RUN " ", 0, 0, 1);
	answer(LPO_EFORMAT, "another run record's sum");
	member(LPO_RUN_MEMBER, RUN, '0');
	put_end(RUN, 0, 2, 2);
	answer(LPO_EFORMAT, "shard 2 of 2, counted from 0");
	member(LPO_RUN_MEMBER, RUN, '0');
	put_end(RUN, 0, -1, 1);
	answer(LPO_EFORMAT, "a negative shard");
	member(LPO_RUN_MEMBER, RUN, '0');
	member("a.bin", "x", '0');
	member("a.json", "{\"key\":\"a\",\"crc32c\":{}}", '0');
	put_end(RUN, 1, 0, 1);
	answer(LPO_EFORMAT, "a member without a sum");
	member(LPO_RUN_MEMBER, RUN, '0');
	member("a.bin", "x", '0');
	put_end(RUN, 1, 0, 1);
	answer(LPO_EFORMAT, "a sample without its record");
	member(LPO_RUN_MEMBER, RUN, '0');
	member("a.json", "{\"key\":\"b\",\"crc32c\":{}}", '0');
	put_end(RUN, 1, 0, 1);
	answer(LPO_EFORMAT, "another sample's record");
}

/* ---- Stopping, and the writer's own checks ---- */

static void
stopping(void)
{
	lpo_ctx_stop_flag(c, &stop);
	stop = 1;
	member("a.json", "{}", '0');
	finish();
	ok(samples(1) == LPO_ESTOP, "a signal while a stream is read: %s",
	    lpo_errmsg(c));
	used = 0;
	stop = 0;
	lpo_clear(c);
}

static void
writing(void)
{
	lpo_shardw *w = NULL;
	struct lpo_sample s;
	json_t *run = json_pack("{s:i,s:s,s:s}", "format", 1, "run", "a",
	    "kind", "pairs");

	memset(&s, 0, sizeof(s));
	s.key = lpo_strdup(c, "a");
	s.json = json_object();
	lpo_sample_add(c, &s, "x", lpo_alloc(c, 1, 1), 1);
	lpo_sample_add(c, &s, "x", lpo_alloc(c, 1, 1), 1);
	ok(lpo_shardw_open(c, &w, "/dev/null", run) == 0 &&
	    lpo_shardw_put(w, &s) == LPO_EINVAL, "written twice: %s",
	    lpo_errmsg(c));
	lpo_shardw_abort(w);
	lpo_sample_clear(&s);
	lpo_clear(c);
	s.key = lpo_strdup(c, "a");
	s.json = json_object();
	lpo_sample_add(c, &s, "x", lpo_alloc(c, 1, 1), 1);
	ok(lpo_shardw_open(c, &w, "/dev/full", run) == 0 &&
	    (lpo_shardw_put(w, &s) < 0 || lpo_shardw_samples(w) == 1) &&
	    lpo_shardw_finish(w, 0, 0, 1) == LPO_EIO, "a full disk: %s",
	    lpo_errmsg(c));
	lpo_sample_clear(&s);
	lpo_clear(c);
	json_decref(run);
}

int
main(void)
{
	if ((c = lpo_ctx_new()) == NULL)
		return 1;
	lpo_ctx_on_notice(c, on_notice, NULL);
	names();
	kinds();
	sizes();
	many();
	records();
	stopping();
	writing();
	ok(notices > 0, "foreign ones are said to be unverified");
	lpo_ctx_free(c);
	return done_testing();
}
