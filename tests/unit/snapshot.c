/* Saved state: what was committed comes back, damage is seen, two are kept. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/snapshot.h"
#include "tests/tap.h"

#define RUN "0123456789abcdef"

static char dir[] = "/tmp/lpo-snap-XXXXXX";
static int notices;

static void
heard(void *arg, const char *text)
{
	(void)arg;
	(void)text;
	notices++;
}

static int
save(lpo_snap *s, int step)
{
	char counters[64], data[5000];
	int rc;

	memset(data, step, sizeof(data));
	snprintf(counters, sizeof(counters), "{\"step\": %d}", step);
	if ((rc = lpo_snap_begin(s)) < 0 ||
	    (rc = lpo_snap_blob(s, "weights", data, sizeof(data))) < 0 ||
	    (rc = lpo_snap_blob(s, "empty", data, 0)) < 0)
		return rc;
	return lpo_snap_commit(s, counters);
}

/* The step a fresh opening finds, -1 none, or the error's code - 100. */
static int
step_found(lpo_ctx *c, const char *run)
{
	lpo_snap *s;
	const char *p;
	char data[5000];
	int step = -1, rc;

	if ((rc = lpo_snap_open(c, &s, dir, run)) < 0) {
		lpo_clear(c);
		return rc - 100;
	}
	if (lpo_snap_found(s)) {
		p = strchr(lpo_snap_counters(s), ':');
		step = p != NULL ? atoi(p + 1) : -2;
		if (lpo_snap_read(s, "weights", data, sizeof(data)) < 0 ||
		    data[0] != step || data[4999] != step)
			step = -3;
	}
	lpo_snap_close(s);
	return step;
}

static void
damage(const char *snap, const char *name, long at)
{
	char path[128];
	FILE *f;
	int ch;

	snprintf(path, sizeof(path), "%s/%s/%s", dir, snap, name);
	if ((f = fopen(path, "r+b")) == NULL)
		return;
	fseek(f, at, SEEK_SET);
	ch = fgetc(f);
	fseek(f, at, SEEK_SET);
	fputc(ch ^ 1, f);
	fclose(f);
}

static int
entries(lpo_ctx *c)
{
	char **names;
	int64_t n = -1;

	if (lpo_dir_list(c, &names, &n, dir) == 0)
		lpo_names_free(names, n);
	return (int)n;
}

static void
put(const char *path, const char *p, size_t n)
{
	FILE *f = fopen(path, "wb");

	if (f == NULL || fwrite(p, 1, n, f) != n || fclose(f) != 0)
		exit(1);
}

/* A file of the newest snapshot, changed or cut at a place, and put right. */
static void
thousand(lpo_ctx *c, const char *name)
{
	char path[128], other[128], *p, *q;
	size_t n, m, at;
	int i, bad = 0, mute = 0;
	uint32_t x = 1;

	snprintf(path, sizeof(path), "%s/snap-000000003/%s", dir, name);
	snprintf(other, sizeof(other), "%s/snap-000000002/%s", dir, name);
	if (lpo_file_read(c, &p, &n, path, 1 << 20) < 0 ||
	    lpo_file_read(c, &q, &m, other, 1 << 20) < 0) {
		ok(0, "%s", lpo_errmsg(c));
		return;
	}
	for (i = 0; i < 2000; i++) {
		x = x * 1664525 + 1013904223;
		at = (x >> 8) % n;
		notices = 0;
		if (i % 2 == 0) {
			p[at] ^= (char)(1 << (x >> 4) % 8);
			put(path, p, n);
			p[at] ^= (char)(1 << (x >> 4) % 8);
		} else
			put(path, p, at);
		bad += step_found(c, RUN) != 3;
		mute += notices != 1;
	}
	ok(bad == 0 && mute == 0, "%s: 1000 flipped bits and 1000 cuts, each "
	    "seen and said, the older state used", name);
	put(path, q, m);
	ok(step_found(c, RUN) == 3, "%s: the older one's in its place", name);
	put(path, p, n);
	ok(step_found(c, RUN) == 4, "%s: put right it counts again", name);
	lpo_free(p);
	lpo_free(q);
}

static void
damages(lpo_ctx *c)
{
	char path[128];
	int i, bad = 0;

	damage("snap-000000003", "weights", 4321);
	ok(step_found(c, RUN) == 3 && notices == 1,
	    "a flipped bit in a blob: the one before is used, and said");
	damage("snap-000000003", "weights", 4321);
	for (i = 0; i < 100; i++) {
		damage("snap-000000003", "manifest.json", i);
		bad += step_found(c, RUN) != 3;
		damage("snap-000000003", "manifest.json", i);
	}
	ok(bad == 0, "a flipped bit anywhere in the manifest");
	snprintf(path, sizeof(path), "%s/snap-000000003/weights", dir);
	if (truncate(path, 4999) == 0)
		ok(step_found(c, RUN) == 3, "a blob cut short");
	unlink(path);
	ok(step_found(c, RUN) == 3, "a blob gone");
	damage("snap-000000002", "weights", 0);
	ok(step_found(c, RUN) == LPO_EFORMAT - 100,
	    "none whole: refused, not started again in silence");
	damage("snap-000000002", "weights", 0);
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();
	lpo_snap *s = NULL;
	char path[128], data[10];
	int i, rc = 0;

	lpo_ctx_on_notice(c, heard, NULL);
	if (mkdtemp(dir) == NULL)
		return 1;
	ok(step_found(c, RUN) == -1, "an empty folder");
	ok(lpo_snap_open(c, &s, dir, RUN) == 0 && !lpo_snap_found(s) &&
	    lpo_snap_counters(s) == NULL, "open");
	for (i = 1; i <= 4 && rc == 0; i++)
		rc = save(s, i);
	ok(rc == 0 && entries(c) == 2, "four commits leave two");
	ok(lpo_snap_blob_bytes(s, "weights") == 5000 &&
	    lpo_snap_blob_bytes(s, "empty") == 0 &&
	    lpo_snap_blob_bytes(s, "none") == -1, "blobs' sizes");
	ok(lpo_snap_read(s, "weights", data, 10) == LPO_EFORMAT,
	    "another size than expected");
	lpo_clear(c);
	ok(!lpo_snap_due(s, 1e6) && lpo_snap_due(s, 0), "due");
	/* killed while writing: an unfinished folder stays behind */
	ok(lpo_snap_begin(s) == 0 && lpo_snap_blob(s, "weights", data,
	    10) == 0 && entries(c) == 3, "begin and stop");
	lpo_snap_close(s);
	ok(entries(c) == 2 && step_found(c, RUN) == 4,
	    "the last commit counts");
	snprintf(path, sizeof(path), "%s/snap-000000009.tmp.1", dir);
	lpo_mkdir_p(c, path);
	ok(step_found(c, RUN) == 4 && entries(c) == 2,
	    "leftovers of a killed writer are swept");
	ok(step_found(c, "ffffffffffffffff") == LPO_EINVAL - 100,
	    "another run's state is refused");
	thousand(c, "weights");
	thousand(c, "manifest.json");
	notices = 0;
	damages(c);
	/* going on after damage keeps the good one as the second */
	ok(lpo_snap_open(c, &s, dir, RUN) == 0 && save(s, 5) == 0,
	    "go on from the older one");
	lpo_snap_close(s);
	ok(entries(c) == 2 && step_found(c, RUN) == 5, "and keep two");
	damage("snap-000000004", "weights", 1);
	ok(step_found(c, RUN) == 3, "of which the older is a good one");
	lpo_rmtree(c, dir);
	lpo_ctx_free(c);
	return done_testing();
}
