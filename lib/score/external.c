/* The external scorer: a process, and the table it prints. */
#include "lib/score/external.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/json.h"
#include "lib/base/progress.h"

enum { MAX_COLUMNS = 64, MAX_TEXT = 1 << 28 };

/* Cut a line at its tabs; -1: more than max fields. */
static int
fields(char *line, char **f, int max)
{
	int n = 0;

	for (;;) {
		if (n == max)
			return -1;
		f[n++] = line;
		if ((line = strchr(line, '\t')) == NULL)
			return n;
		*line++ = '\0';
	}
}

/* The next line without its "\n" or "\r\n". */
static char *
next_line(char **text)
{
	char *line = *text, *end;

	if (*line == '\0')
		return NULL;
	end = line + strcspn(line, "\n");
	*text = *end == '\n' ? end + 1 : end;
	if (end > line && end[-1] == '\r')
		end--;
	*end = '\0';
	return line;
}

static int
header(lpo_ctx *c, struct lpo_scores *s, const char *scorer, char *line,
    int64_t n)
{
	char *f[MAX_COLUMNS], *name[MAX_COLUMNS] = { NULL };
	int i, k, cols, rc = 0;

	cols = line == NULL ? 0 : fields(line, f, MAX_COLUMNS);
	if (cols < 2 || strcmp(f[0], "key") != 0)
		return lpo_fail(c, LPO_EFORMAT, "scorer '%s': the first line "
		    "must be 'key' and at most %d names, between tabs",
		    scorer, MAX_COLUMNS - 1);
	for (i = 1; i < cols; i++) {
		/* a name goes into JSON and the database */
		if (f[i][0] == '\0' || !lpo_utf8_valid(f[i], strlen(f[i])))
			return lpo_fail(c, LPO_EFORMAT, "scorer '%s': the "
			    "name of column %d is %s", scorer, i + 1,
			    f[i][0] == '\0' ? "empty" : "not UTF-8");
		for (k = 1; k < i; k++)
			if (strcmp(f[i], f[k]) == 0)
				return lpo_fail(c, LPO_EFORMAT, "scorer '%s': "
				    "two columns are called '%s'", scorer,
				    f[i]);
	}
	for (i = 1; i < cols && rc == 0; i++)
		if ((name[i] = lpo_asprintf(c, "%s.%s", scorer, f[i])) == NULL)
			rc = LPO_ENOMEM;
	if (rc == 0)
		rc = lpo_scores_new(c, s, (const char *const *)name + 1,
		    cols - 1, n);
	for (i = 1; i < cols; i++)
		lpo_free(name[i]);
	return rc;
}

struct slot {
	const char *key;
	int64_t index;
};

static int
by_key(const void *a, const void *b)
{
	const struct slot *x = a, *y = b;

	return strcmp(x->key, y->key);
}

/* One line of numbers into the row of its key. */
static int
row(lpo_ctx *c, struct lpo_scores *s, const char *scorer, char *line,
    const struct slot *slots, char *seen)
{
	char *f[MAX_COLUMNS], *end;
	struct slot want = { line, 0 }, *at;
	int64_t i, cols = fields(line, f, MAX_COLUMNS);
	double v;

	if (cols != s->names + 1)
		return lpo_fail(c, LPO_EFORMAT, "scorer '%s': the line of "
		    "'%s' has not %lld fields", scorer, f[0],
		    (long long)s->names + 1);
	at = bsearch(&want, slots, (size_t)s->n, sizeof(*slots), by_key);
	if (at == NULL || seen[at->index])
		return lpo_fail(c, LPO_EFORMAT, "scorer '%s': '%s' is %s",
		    scorer, f[0], at == NULL ? "no image of the tar" :
		    "there twice");
	seen[at->index] = 1;
	for (i = 0; i < s->names; i++) {
		v = strtod(f[i + 1], &end);
		if (end == f[i + 1] || *end != '\0' || !isfinite(v))
			return lpo_fail(c, LPO_EFORMAT, "scorer '%s': '%s' of "
			    "'%s' is '%s', not a finite number", scorer,
			    s->name[i], f[0], f[i + 1]);
		s->value[at->index * s->names + i] = v;
	}
	return 0;
}

int
lpo_scores_parse(lpo_ctx *c, struct lpo_scores *s, const char *scorer,
    char *text, const char *const *key, int64_t n)
{
	struct slot *slots = NULL;
	char *seen = NULL, *line;
	int64_t i;
	int rc;

	memset(s, 0, sizeof(*s));
	if ((rc = header(c, s, scorer, next_line(&text), n)) < 0)
		return rc;
	slots = lpo_alloc(c, (size_t)n + 1, sizeof(*slots));
	seen = lpo_alloc(c, (size_t)n + 1, 1);
	if (slots == NULL || seen == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	for (i = 0; i < n; i++) {
		slots[i].key = key[i];
		slots[i].index = i;
	}
	qsort(slots, (size_t)n, sizeof(*slots), by_key);
	while (rc == 0 && (line = next_line(&text)) != NULL)
		rc = row(c, s, scorer, line, slots, seen);
	for (i = 0; rc == 0 && i < n; i++)
		if (!seen[i])
			rc = lpo_fail(c, LPO_EFORMAT, "scorer '%s' says "
			    "nothing of '%s'", scorer, key[i]);
out:
	if (rc < 0)
		lpo_scores_free(s);
	lpo_free(slots);
	lpo_free(seen);
	return rc;
}

/* --------------------------------------------------------------- process */

/* All that fd gives, as a string; a NUL byte ends it early, as it should. */
static int
slurp(lpo_ctx *c, char **out, int fd, const char *scorer)
{
	struct pollfd ready = { .fd = fd, .events = POLLIN };
	size_t len = 0, cap = 0;
	char *text = NULL, *p;
	ssize_t n;

	for (;;) {
		if (len + 1 >= cap) {
			cap = cap ? 2 * cap : 65536;
			if (cap > MAX_TEXT || (p = lpo_realloc(c, text,
			    cap)) == NULL) {
				lpo_free(text);
				return lpo_fail(c, LPO_ENOMEM, "scorer '%s' "
				    "prints too much", scorer);
			}
			text = p;
		}
		if (lpo_ctx_stopped(c)) {
			lpo_free(text);
			return lpo_fail(c, LPO_ESTOP, "stopped");
		}
		/* a signal between the test and read() would be lost */
		if (poll(&ready, 1, 500) <= 0)
			continue;
		n = read(fd, text + len, cap - len - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			lpo_free(text);
			return lpo_fail(c, LPO_EIO, "cannot read from scorer "
			    "'%s': %s", scorer, strerror(errno));
		}
		if (n == 0)
			break;
		len += (size_t)n;
	}
	text[len] = '\0';
	*out = text;
	return 0;
}

/*
 * In the child; only async-signal-safe calls until exec.  A group of its own,
 * so that a stop reaches a whole pipeline; SIGPIPE and SIGXFSZ as programs
 * expect them, not ignored as we have them.
 */
static void
child(int in, int out, const char *command)
{
	setpgid(0, 0);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGXFSZ, SIG_DFL);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0)
		_exit(127);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

/*
 * The child's end, which may come long after that of its output.  rc below 0,
 * or a stop: its group gets SIGTERM and, where that is not heeded, SIGKILL a
 * second later.
 */
static int
reap(lpo_ctx *c, int *status, pid_t pid, int rc)
{
	double asked_s = 0;
	pid_t got;

	while ((got = waitpid(pid, status, WNOHANG)) != pid) {
		if (got < 0 && errno != EINTR)
			break;
		if (rc == 0 && lpo_ctx_stopped(c))
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
		if (rc < 0 && asked_s <= 0) {
			asked_s = lpo_now_s();
			kill(-pid, SIGTERM);
		} else if (rc < 0 && lpo_now_s() > asked_s + 1)
			kill(-pid, SIGKILL);
		poll(NULL, 0, 5);
	}
	return rc;
}

int
lpo_score_external(lpo_ctx *c, struct lpo_scores *s, const char *scorer,
    const char *command, const char *tar, const char *const *key, int64_t n)
{
	int in = -1, p[2] = { -1, -1 }, status = 0, rc;
	char *text = NULL;
	pid_t pid;

	memset(s, 0, sizeof(*s));
	if ((in = open(tar, O_RDONLY | O_CLOEXEC)) < 0 ||
	    pipe2(p, O_CLOEXEC) < 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot open '%s': %s", tar,
		    strerror(errno));
		goto out;
	}
	if ((pid = fork()) < 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot start scorer '%s': %s",
		    scorer, strerror(errno));
		goto out;
	}
	if (pid == 0)
		child(in, p[1], command);
	setpgid(pid, pid);	/* here too: whoever comes first */
	close(p[1]);
	p[1] = -1;
	rc = slurp(c, &text, p[0], scorer);
	close(p[0]);
	p[0] = -1;
	rc = reap(c, &status, pid, rc);
	if (rc == 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
		rc = WIFEXITED(status) ?
		    lpo_fail(c, LPO_EFORMAT, "scorer '%s' exited with %d",
		    scorer, WEXITSTATUS(status)) :
		    lpo_fail(c, LPO_EFORMAT, "scorer '%s' was killed by "
		    "signal %d", scorer, WTERMSIG(status));
	if (rc == 0)
		rc = lpo_scores_parse(c, s, scorer, text, key, n);
out:
	if (in >= 0)
		close(in);
	if (p[0] >= 0)
		close(p[0]);
	if (p[1] >= 0)
		close(p[1]);
	lpo_free(text);
	return rc;
}
