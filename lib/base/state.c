/*
 * The folder where an interrupted run leaves what it needs to go on.
 */
#include "lib/base/state.h"

#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/runid.h"

struct lpo_state {
	lpo_ctx *c;
	char *dir;
	lpo_lock *lock;
	int found;
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

/* Everything but the lock, which we hold. */
static int
empty(lpo_state *s)
{
	char **names = NULL, *path;
	int64_t i, n = 0;
	int rc = lpo_dir_list(s->c, &names, &n, s->dir);

	for (i = 0; i < n && rc == 0; i++) {
		if (strcmp(names[i], "lock") == 0)
			continue;
		path = lpo_path_join(s->c, s->dir, names[i]);
		rc = path == NULL ? LPO_ENOMEM : lpo_rmtree(s->c, path);
		lpo_free(path);
	}
	lpo_names_free(names, n);
	return rc;
}

int
lpo_state_open(lpo_ctx *c, lpo_state **out, const char *output,
    const char *run, const json_t *options, int fresh)
{
	lpo_state *s = lpo_alloc(c, 1, sizeof(*s));
	char *lock = NULL;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (s == NULL)
		return rc;
	s->c = c;
	if ((s->dir = lpo_state_path(c, output)) == NULL ||
	    (lock = lpo_path_join(c, s->dir, "lock")) == NULL)
		goto out;
	if ((rc = lpo_mkdir_p(c, s->dir)) != 0 ||
	    (rc = lpo_lock_take(c, &s->lock, lock)) != 0)
		goto out;
	if ((rc = fresh ? empty(s) : compare(s, run, options)) != 0)
		goto out;
	if (!s->found && (rc = write_run(s, run, options)) != 0)
		goto out;
	*out = s;
	s = NULL;
out:
	lpo_free(lock);
	lpo_state_close(s);
	return rc;
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

void
lpo_state_close(lpo_state *s)
{
	if (s == NULL)
		return;
	lpo_lock_release(s->lock);
	lpo_free(s->dir);
	lpo_free(s);
}

int
lpo_state_remove(lpo_state *s)
{
	lpo_ctx *c = s->c;
	char *dir = s->dir;
	int rc = empty(s);

	s->dir = NULL;
	lpo_state_close(s);
	if (rc == 0)
		rc = lpo_rmtree(c, dir);
	lpo_free(dir);
	return rc;
}
