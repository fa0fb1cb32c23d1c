/*
 * The folder where an interrupted run leaves what it needs to go on.
 */
#include "lib/base/state.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/runid.h"

struct lpo_state {
	lpo_ctx *c;
	char *dir;
	lpo_lock *lock;
	int found;
	int own;		/* what is saved there is of this run */
};

char *
lpo_state_path(lpo_ctx *c, const char *output)
{
	size_t n = strcspn(output, "%");

	if (output[n] == '\0')
		while (n > 1 && output[n - 1] == '/')
			n--;
	return lpo_asprintf(c, "%.*s.state", (int)n, output);
}

/* Whose state is it?  0: ours or nobody's yet. */
static int
compare(lpo_state *s, const char *run, const json_t *options)
{
	char *path = lpo_state_file(s->c, s, "run.json"), *diff = NULL;
	json_t *was = NULL;
	const char *id;
	int rc = LPO_ENOMEM;

	if (path == NULL || (rc = 0, !lpo_file_exists(path)))
		goto out;
	if ((rc = lpo_json_load_file(s->c, &was, path, 1 << 24)) != 0)
		goto out;
	if ((rc = lpo_json_need_str(s->c, &id, was, "run")) != 0) {
		lpo_fail_prefix(s->c, "%s", path);
		goto out;
	}
	if (strcmp(id, run) == 0) {
		s->found = 1;
		goto out;
	}
	diff = lpo_runid_diff(s->c, json_object_get(was, "options"), options);
	rc = diff == NULL ? LPO_ENOMEM : lpo_fail(s->c, LPO_EINVAL,
	    "'%s' holds the state of another run, %s (%s); --fresh discards "
	    "it", s->dir, id, *diff ? diff : "other inputs or version");
out:
	json_decref(was);
	lpo_free(diff);
	lpo_free(path);
	return rc;
}

static int
write_run(lpo_state *s, const char *run, const json_t *options)
{
	char *path = lpo_state_file(s->c, s, "run.json"), *text = NULL;
	json_t *o = json_object();
	int rc = LPO_ENOMEM;

	if (path == NULL || o == NULL ||
	    lpo_json_set(s->c, o, "run", json_string(run)) != 0 ||
	    lpo_json_set(s->c, o, "options", json_deep_copy(options)) != 0 ||
	    (text = lpo_json_pretty(s->c, o)) == NULL)
		goto out;
	rc = lpo_file_write(s->c, path, text, strlen(text));
out:
	if (rc == LPO_ENOMEM)
		lpo_fail(s->c, rc, "out of memory");
	json_decref(o);
	lpo_free(text);
	lpo_free(path);
	return rc;
}

static int
remove_file(lpo_state *s, const char *name)
{
	char *path = lpo_state_file(s->c, s, name);
	int rc = path == NULL ? LPO_ENOMEM : lpo_rmtree(s->c, path);

	lpo_free(path);
	return rc;
}

/*
 * Everything but the lock, which we hold.  run.json goes first: what a kill
 * leaves of the rest is nobody's state then, not a damaged one.
 */
static int
empty(lpo_state *s)
{
	char **names = NULL;
	int64_t i, n = 0;
	int rc = remove_file(s, "run.json");

	if (rc == 0)
		rc = lpo_dir_list(s->c, &names, &n, s->dir);
	for (i = 0; i < n && rc == 0; i++)
		if (strcmp(names[i], "lock") != 0)
			rc = remove_file(s, names[i]);
	lpo_names_free(names, n);
	return rc;
}

/*
 * A folder that its last user is just removing can be gone again before the
 * lock is made in it.
 */
static int
make_locked(lpo_state *s)
{
	char *lock = lpo_path_join(s->c, s->dir, "lock");
	int rc = lock == NULL ? LPO_ENOMEM : LPO_ENOTFOUND, tries;

	for (tries = 0; tries < 100 && rc == LPO_ENOTFOUND; tries++) {
		lpo_clear(s->c);
		if ((rc = lpo_mkdir_p(s->c, s->dir)) == 0)
			rc = lpo_lock_take(s->c, &s->lock, lock);
	}
	lpo_free(lock);
	return rc;
}

int
lpo_state_lock(lpo_ctx *c, lpo_state **out, const char *output)
{
	lpo_state *s = lpo_alloc(c, 1, sizeof(*s));
	int rc;

	*out = NULL;
	if (s == NULL)
		return LPO_ENOMEM;
	s->c = c;
	rc = (s->dir = lpo_state_path(c, output)) == NULL ? LPO_ENOMEM :
	    make_locked(s);
	/* of a pattern each file is swept when it is written */
	if (rc == 0 && strchr(output, '%') == NULL)
		rc = lpo_tmp_sweep(c, output);
	if (rc != 0) {
		lpo_state_close(s);
		return rc;
	}
	*out = s;
	return 0;
}

int
lpo_state_open(lpo_ctx *c, lpo_state **out, const char *output,
    const char *run, const json_t *options, int fresh)
{
	lpo_state *s = NULL;
	int rc;

	*out = NULL;
	if ((rc = lpo_state_lock(c, &s, output)) != 0 ||
	    (!fresh && (rc = compare(s, run, options)) != 0) ||
	    (!s->found && (rc = empty(s)) != 0) ||
	    (rc = lpo_tmp_sweep_dir(c, s->dir)) != 0 ||
	    (!s->found && (rc = write_run(s, run, options)) != 0)) {
		lpo_state_close(s);
		return rc;
	}
	s->own = 1;
	*out = s;
	return 0;
}

const char *
lpo_state_dir(const lpo_state *s)
{
	return s->dir;
}

int
lpo_state_found(const lpo_state *s)
{
	return s->found;
}

char *
lpo_state_file(lpo_ctx *c, const lpo_state *s, const char *name)
{
	return lpo_path_join(c, s->dir, name);
}

/*
 * The lock goes, and the folder where nothing else is in it; 0 or an errno.
 * By rmdir only: between our lock's end and its, another process may have
 * locked the folder already.
 */
static int
release(lpo_state *s)
{
	int e;

	if (s->lock == NULL)
		return 0;
	e = lpo_lock_release(s->lock);
	s->lock = NULL;
	if (rmdir(s->dir) != 0 && e == 0 && errno != ENOTEMPTY &&
	    errno != EEXIST && errno != ENOENT)
		e = errno;
	return e;
}

void
lpo_state_close(lpo_state *s)
{
	if (s == NULL)
		return;
	(void)release(s);
	lpo_free(s->dir);
	lpo_free(s);
}

int
lpo_state_remove(lpo_state *s)
{
	int rc = s->own ? empty(s) : 0, e = release(s);

	if (rc == 0 && e != 0)
		rc = lpo_fail(s->c, LPO_EIO, "cannot remove '%s': %s", s->dir,
		    strerror(e));
	lpo_state_close(s);
	return rc;
}

int
lpo_state_end(lpo_state *s, int rc)
{
	if (rc == 0 && s != NULL)
		return lpo_state_remove(s);
	lpo_state_close(s);
	return rc;
}
