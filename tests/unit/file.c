/*
 * Files and folders that appear whole or not at all; locks; saved state;
 * run ids.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/runid.h"
#include "lib/base/state.h"
#include "tests/tap.h"

static char dir[] = "/tmp/lpo-file-XXXXXX";
static lpo_ctx *c;

static char *
at(const char *name)
{
	static char path[32][256];
	static int k;

	k = (k + 1) % 32;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

static int
holds(const char *path, const char *text)
{
	char *p = NULL;
	size_t n;
	int same = lpo_file_read(c, &p, &n, path, 1 << 24) == 0 &&
	    n == strlen(text) && memcmp(p, text, n) == 0;

	lpo_clear(c);
	lpo_free(p);
	return same;
}

static int64_t
entries(const char *path)
{
	char **names;
	int64_t n;

	if (lpo_dir_list(c, &names, &n, path) != 0)
		return -1;
	lpo_names_free(names, n);
	return n;
}

static void
out(void)
{
	static char big[700000];
	lpo_out *o = NULL;
	size_t i;
	int fd;

	ok(lpo_out_open(c, &o, at("a")) == 0 &&
	    lpo_out_write(o, "old", 3) == 0, "open and write");
	ok(!lpo_file_exists(at("a")), "not there before commit");
	ok(lpo_out_commit(o) == 0 && holds(at("a"), "old"), "then it is");
	lpo_out_open(c, &o, at("a"));
	lpo_out_write(o, "new", 3);
	lpo_out_abort(o);
	ok(holds(at("a"), "old") && entries(dir) == 1, "abort leaves the old, "
	    "and nothing else");
	for (i = 0; i < sizeof(big); i++)
		big[i] = (char)('a' + i % 26);
	big[sizeof(big) - 1] = '\0';
	lpo_out_open(c, &o, at("big"));
	for (i = 0; i + 1 < sizeof(big); i += 7777)
		lpo_out_write(o, big + i, i + 7777 < sizeof(big) ? 7777 :
		    sizeof(big) - 1 - i);
	ok(lpo_out_bytes(o) == (int64_t)sizeof(big) - 1 &&
	    lpo_out_commit(o) == 0 && holds(at("big"), big), "pieces");
	lpo_out_open(c, &o, at("big"));
	lpo_out_write(o, big, sizeof(big) - 1);
	lpo_out_printf(o, "%s%d", big, 7);
	ok(lpo_out_commit(o) == 0 && lpo_file_size(at("big")) ==
	    2 * (int64_t)sizeof(big) - 1, "larger than the buffer");
	ok(symlink("a", at("link")) == 0 &&
	    lpo_file_write(c, at("link"), "via", 3) == 0 &&
	    holds(at("a"), "via") && readlink(at("link"), big, 10) == 1,
	    "a link stays a link");
	ok(lpo_file_write(c, "/dev/null", "x", 1) == 0 && lpo_file_exists(
	    "/dev/null"), "/dev/null stays what it is");
	ok(lpo_out_open(c, &o, dir) == LPO_EINVAL, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_out_open(c, &o, at("no/file")) == LPO_EIO, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	fd = open("/dev/full", O_WRONLY);
	if (fd < 0)
		skip("no /dev/full");
	else {
		close(fd);
		ok(lpo_file_write(c, "/dev/full", "x", 1) == LPO_EIO, "%s",
		    lpo_errmsg(c));
		lpo_clear(c);
	}
}

/* Standard output whose reader has gone. */
static void
closed_pipe(void)
{
	int fd[2], was = dup(STDOUT_FILENO), rc, code;
	lpo_out *o = NULL;

	fflush(stdout);
	signal(SIGPIPE, SIG_IGN);
	if (pipe(fd) != 0)
		return;
	close(fd[0]);
	dup2(fd[1], STDOUT_FILENO);
	rc = lpo_out_open(c, &o, "-");
	if (rc == 0)
		rc = lpo_out_write(o, "x", 1);
	code = rc == 0 ? lpo_out_commit(o) : rc;
	dup2(was, STDOUT_FILENO);
	close(was);
	close(fd[1]);
	ok(rc == 0 && code == LPO_EPIPE, "a reader that left is LPO_EPIPE");
	lpo_clear(c);
}

static void
reading(void)
{
	struct lpo_map m = { NULL, 0 };
	struct stat sb;
	char *p = NULL;
	size_t n;
	int fd;

	lpo_file_write(c, at("five"), "12345", 5);
	ok(lpo_file_read(c, &p, &n, at("five"), 5) == 0 && n == 5 &&
	    p[5] == '\0', "at the limit");
	lpo_free(p);
	ok(lpo_file_read(c, &p, &n, at("five"), 4) == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_file_read(c, &p, &n, at("none"), 4) == LPO_ENOTFOUND, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_file_read(c, &p, &n, dir, 4) == LPO_EINVAL, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_file_read(c, &p, &n, "/proc/self/stat", 1 << 20) == 0 &&
	    n > 20, "a file of unknown size");
	lpo_free(p);
	ok(lpo_map_open(c, &m, at("five")) == 0 && m.bytes == 5 &&
	    memcmp(m.data, "12345", 5) == 0, "mapped");
	lpo_map_close(&m);
	ok(symlink("five", at("soft")) == 0 &&
	    lpo_file_link(c, at("hard"), at("soft")) == 0 &&
	    lstat(at("hard"), &sb) == 0 && S_ISREG(sb.st_mode) &&
	    sb.st_size == 5, "what a symbolic link leads to, linked");
	/* most often another file system: a copy */
	ok(lpo_file_link(c, at("copy"), "LICENSE") == 0 &&
	    lpo_file_size(at("copy")) == lpo_file_size("LICENSE"),
	    "a file of another place");
	ok(lpo_file_link(c, at("nothing"), at("none")) < 0 &&
	    !lpo_file_exists(at("nothing")), "%s", lpo_errmsg(c));
	lpo_clear(c);
	lpo_file_write(c, at("empty"), "", 0);
	ok(lpo_map_open(c, &m, at("empty")) == 0 && m.bytes == 0 &&
	    m.data != NULL, "an empty file");
	lpo_map_close(&m);
	lpo_map_close(&m);
	fd = open(dir, O_RDONLY);
	ok(lpo_map_fd(c, &m, fd, dir) == LPO_EINVAL, "%s", lpo_errmsg(c));
	close(fd);
	lpo_clear(c);
}

static void
paths(void)
{
	static const char *const v[][2] = {
		{ "a/b.c", "a" }, { "b.c", "." }, { "/b", "/" }, { "/", "/" },
		{ "a/b/", "a" }, { "a//b", "a" }, { "a", "." }
	};
	char *p;
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		p = lpo_dirname(c, v[i][0]);
		ok(strcmp(p, v[i][1]) == 0, "folder of '%s' is '%s'", v[i][0],
		    p);
		lpo_free(p);
	}
	ok(lpo_ends_with("a.json", ".json") && lpo_ends_with("a", "") &&
	    !lpo_ends_with("a.JSON", ".json") && !lpo_ends_with("a", "ba"),
	    "ends of names");
	ok(lpo_has_extension("a.TAR", ".tar") &&
	    !lpo_has_extension("tar", ".tar"), "extensions, in any case");
	p = lpo_path_join(c, "a", "/b");
	ok(strcmp(p, "/b") == 0, "join absolute");
	lpo_free(p);
	p = lpo_path_join(c, "a/", "b");
	ok(strcmp(p, "a/b") == 0, "join");
	lpo_free(p);
	ok(lpo_mkdir_p(c, at("x/y//z/")) == 0 && lpo_is_dir(at("x/y/z")) &&
	    lpo_mkdir_p(c, at("x/y")) == 0, "mkdir -p, twice");
	ok(lpo_mkdir_p(c, at("a/y")) == LPO_EIO, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(symlink("..", at("x/up")) == 0 && lpo_rmtree(c, at("x")) == 0 &&
	    !lpo_file_exists(at("x")) && lpo_file_exists(at("a")) &&
	    lpo_rmtree(c, at("x")) == 0, "rmtree follows no link");
}

static void
folders(void)
{
	char *tmp = NULL, *p, stray[64];

	ok(lpo_folder_begin(c, &tmp, at("lrm/")) == 0 && lpo_is_dir(tmp),
	    "begin");
	p = lpo_path_join(c, tmp, "one");
	lpo_file_write(c, p, "1", 1);
	lpo_free(p);
	ok(!lpo_file_exists(at("lrm")), "not yet");
	ok(lpo_folder_publish(c, &tmp, at("lrm/"), 0) == 0 && tmp == NULL &&
	    holds(at("lrm/one"), "1"), "published");
	lpo_folder_begin(c, &tmp, at("lrm"));
	ok(lpo_folder_publish(c, &tmp, at("lrm"), 0) == LPO_EINVAL &&
	    tmp == NULL && holds(at("lrm/one"), "1"), "%s", lpo_errmsg(c));
	lpo_clear(c);
	lpo_folder_begin(c, &tmp, at("lrm"));
	p = lpo_path_join(c, tmp, "two");
	lpo_file_write(c, p, "2", 1);
	lpo_free(p);
	ok(lpo_folder_publish(c, &tmp, at("lrm"), 1) == 0 &&
	    holds(at("lrm/two"), "2") && !lpo_file_exists(at("lrm/one")),
	    "replaced whole");
	lpo_folder_begin(c, &tmp, at("lrm"));
	lpo_folder_abort(&tmp);
	lpo_folder_abort(&tmp);
	ok(entries(at("lrm")) == 1, "aborted");
	snprintf(stray, sizeof(stray), "a.tmp.%d", 99999);
	lpo_file_write(c, at(stray), "x", 1);
	mkdir(at("a.tmp.7"), 0777);
	lpo_file_write(c, at("a.tmp.x"), "x", 1);
	ok(lpo_tmp_sweep(c, at("a")) == 0 && !lpo_file_exists(at(stray)) &&
	    !lpo_file_exists(at("a.tmp.7")) && lpo_file_exists(at("a.tmp.x"))
	    && lpo_file_exists(at("a")), "what killed writers left is swept");
}

static void
locks(void)
{
	lpo_lock *a = NULL, *b = NULL;
	int fd[2], status;
	char ch;
	pid_t pid;

	ok(lpo_lock_take(c, &a, at("lock")) == 0, "taken");
	ok(lpo_lock_take(c, &b, at("lock")) == LPO_EINVAL && b == NULL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_lock_release(a);
	ok(!lpo_file_exists(at("lock")) &&
	    lpo_lock_take(c, &b, at("lock")) == 0, "free again");
	lpo_lock_release(b);
	if (pipe(fd) != 0)
		return;
	fflush(stdout);
	if ((pid = fork()) == 0) {	/* dies with the lock */
		lpo_lock_take(c, &a, at("lock"));
		if (write(fd[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	ok(read(fd[0], &ch, 1) == 1 &&
	    lpo_lock_take(c, &b, at("lock")) == LPO_EINVAL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	ok(lpo_file_exists(at("lock")) &&
	    lpo_lock_take(c, &b, at("lock")) == 0, "a dead one's is free");
	lpo_lock_release(b);
	close(fd[0]);
	close(fd[1]);
}

static void
states(void)
{
	static const char *const v[][2] = {
		{ "out.safetensors", "out.safetensors.state" },
		{ "lrm/", "lrm.state" }, { "d/enc-%06d.tar", "d/enc-.state" },
		{ "a//", "a.state" }
	};
	json_t *o = json_pack("{s:f,s:i}", "lr", 0.1, "batch", 40);
	json_t *p = json_pack("{s:f,s:i,s:s}", "lr", 0.2, "batch", 40, "new",
	    "x");
	lpo_state *s = NULL, *t = NULL;
	char *path;
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		path = lpo_state_path(c, v[i][0]);
		ok(strcmp(path, v[i][1]) == 0, "state of '%s'", v[i][0]);
		lpo_free(path);
	}
	ok(lpo_state_open(c, &s, at("out"), "r1", o, 0) == 0 &&
	    !lpo_state_found(s), "new");
	ok(lpo_state_open(c, &t, at("out"), "r1", o, 0) == LPO_EINVAL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	path = lpo_state_file(c, s, "data");
	lpo_file_write(c, path, "x", 1);
	lpo_state_close(s);
	ok(lpo_state_open(c, &s, at("out"), "r1", o, 0) == 0 &&
	    lpo_state_found(s) && holds(path, "x"), "found again");
	lpo_state_close(s);
	ok(lpo_state_open(c, &s, at("out"), "r2", p, 0) == LPO_EINVAL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_state_open(c, &s, at("out"), "r2", p, 1) == 0 &&
	    !lpo_state_found(s) && !lpo_file_exists(path), "--fresh");
	/* a removal that was killed: run.json went first */
	ok(lpo_file_write(c, path, "x", 1) == 0, "data");
	lpo_state_close(s);
	unlink(at("out.state/run.json"));
	ok(lpo_state_open(c, &s, at("out"), "r2", p, 0) == 0 &&
	    !lpo_state_found(s) && !lpo_file_exists(path),
	    "the rest of a state is none");
	ok(lpo_state_remove(s) == 0 && !lpo_file_exists(at("out.state")),
	    "removed");
	lpo_free(path);
	json_decref(o);
	json_decref(p);
}

/*
 * A lock alone, and what it sweeps; then many processes that take it, add one
 * to a number and give it back: none is lost, whoever removes the folder.
 */
static void
lock_alone(void)
{
	enum { PROCESSES = 6, TIMES = 50 };
	lpo_state *s = NULL;
	char *text, want[32];
	size_t n;
	int i, k, status, bad = 0;

	lpo_file_write(c, at("alone.tmp.99999"), "x", 1);
	ok(lpo_state_lock(c, &s, at("alone")) == 0 &&
	    !lpo_file_exists(at("alone.tmp.99999")) &&
	    lpo_file_exists(at("alone.state/lock")), "locked and swept");
	lpo_state_close(s);
	ok(!lpo_file_exists(at("alone.state")), "no folder stays");
	ok(lpo_state_lock(c, &s, at("alone")) == 0 &&
	    unlink(at("alone.state/lock")) == 0 &&
	    mkdir(at("alone.state/lock"), 0777) == 0 &&
	    lpo_state_end(s, 0) == LPO_EIO &&
	    strstr(lpo_errmsg(c), "alone.state'") != NULL,
	    "a lock that stays is said: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_rmtree(c, at("alone.state")) == 0, "removed by hand");
	ok(lpo_state_lock(c, &s, at("alone")) == 0 &&
	    lpo_state_end(s, LPO_EFORMAT) == LPO_EFORMAT &&
	    !lpo_file_exists(at("alone.state")), "another failure stays");
	lpo_file_write(c, at("number"), "0", 1);
	for (i = 0; i < PROCESSES; i++) {
		if (fork() != 0)
			continue;
		c = lpo_ctx_new();
		for (k = 0; k < TIMES; k++) {
			while (lpo_state_lock(c, &s, at("race")) ==
			    LPO_EINVAL) {
				lpo_clear(c);
				usleep(500);
			}
			if (s == NULL || lpo_file_read(c, &text, &n,
			    at("number"), 16) != 0)
				_exit(1);
			snprintf(want, sizeof(want), "%d", atoi(text) + 1);
			if (lpo_file_write(c, at("number"), want,
			    strlen(want)) != 0)
				_exit(1);
			if (lpo_state_remove(s) != 0)
				_exit(1);
		}
		_exit(0);
	}
	for (i = 0; i < PROCESSES; i++)
		bad += wait(&status) < 0 || status != 0;
	snprintf(want, sizeof(want), "%d", PROCESSES * TIMES);
	ok(bad == 0 && holds(at("number"), want), "%s races, none lost",
	    want);
	ok(!lpo_file_exists(at("race.state")), "the last took the folder");
}

static void
scratch(void)
{
	const size_t bytes = 1 << 20;
	struct rlimit was, small = { 1000, 1000 };
	unsigned char *p = NULL;
	void *q = NULL;
	size_t i, sum = 0;
	int rc;

	setenv("TMPDIR", at(""), 1);
	if (!ok(lpo_map_scratch(c, (void **)&p, bytes) == 0, "scratch%s",
	    lpo_errmsg(c)))
		return;
	for (i = 0; i < bytes; i++)
		sum += p[i]++;
	ok(sum == 0, "zeros to write to");
	munmap(p, bytes);
	setenv("TMPDIR", at("nowhere"), 1);
	ok(lpo_map_scratch(c, &q, bytes) == LPO_EIO && q == NULL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	/* as a full disk does; without the signal that says the same */
	setenv("TMPDIR", at(""), 1);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &was);
	small.rlim_max = was.rlim_max;
	setrlimit(RLIMIT_FSIZE, &small);
	rc = lpo_map_scratch(c, &q, bytes);
	setrlimit(RLIMIT_FSIZE, &was);	/* standard output may be a file */
	ok(rc == LPO_EIO && q == NULL, "%s", lpo_errmsg(c));
	signal(SIGXFSZ, SIG_DFL);
	lpo_clear(c);
	unsetenv("TMPDIR");
}

static void
run_ids(void)
{
	static const char *const in[] = { "ab", "c" }, *const in2[] = { "a",
	    "bc" };
	json_t *o = json_pack("{s:f,s:i}", "lr", 1e-4, "batch", 40);
	json_t *p = json_pack("{s:i,s:f}", "batch", 40, "lr", 1e-4);
	char a[LPO_RUNID_SIZE], b[LPO_RUNID_SIZE], x[65], y[65], *d;

	lpo_runid(c, a, "lpo-train", "0.1.0", o, in, 2);
	lpo_runid(c, b, "lpo-train", "0.1.0", p, in, 2);
	/* Frozen: another formula would orphan every saved state. */
	ok(strcmp(a, "7597fe38b0af99d2") == 0, "run id %s", a);
	ok(strcmp(a, b) == 0, "the order of options does not matter");
	lpo_runid(c, b, "lpo-train", "0.1.0", o, in2, 2);
	ok(strcmp(a, b) != 0, "the border between inputs does");
	lpo_runid(c, b, "lpo-train", "0.1.1", o, in, 2);
	ok(strcmp(a, b) != 0, "the version does");
	d = lpo_runid_diff(c, o, p);
	ok(d[0] == '\0', "no difference");
	lpo_free(d);
	json_object_set_new(p, "lr", json_real(0.5));
	json_object_set_new(p, "k", json_true());
	d = lpo_runid_diff(c, o, p);
	ok(strstr(d, "lr: 0.0001 -> 0.5") && strstr(d, "k: not given -> "
	    "true") && !strstr(d, "batch"), "%s", d);
	lpo_free(d);
	lpo_mkdir_p(c, at("model/unet"));
	lpo_file_write(c, at("model/model_index.json"), "{}", 2);
	lpo_file_write(c, at("model/unet/config.json"), "{}", 2);
	lpo_runid_folder(c, x, at("model"), NULL, NULL);
	lpo_file_write(c, at("model/README.md"), "words", 5);
	lpo_runid_folder(c, y, at("model/"), NULL, NULL);
	ok(strcmp(x, y) == 0, "what is no part of a model does not count");
	lpo_file_write(c, at("model/unet/config.json"), "[]", 2);
	lpo_runid_folder(c, y, at("model"), NULL, NULL);
	ok(strcmp(x, y) != 0, "its files do");
	json_decref(o);
	json_decref(p);
}

int
main(void)
{
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	out();
	closed_pipe();
	reading();
	scratch();
	paths();
	folders();
	locks();
	states();
	lock_alone();
	run_ids();
	ok(lpo_rmtree(c, dir) == 0, "clean up");
	lpo_ctx_free(c);
	return done_testing();
}
