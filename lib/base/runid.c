/*
 * Identity of a run.
 */
#include "lib/base/runid.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"

/* Length before bytes: ("ab", "c") and ("a", "bc") must differ. */
static void
field(struct lpo_sha256 *s, const char *text)
{
	char len[24];

	snprintf(len, sizeof(len), "%zu:", strlen(text));
	lpo_sha256_update(s, len, strlen(len));
	lpo_sha256_update(s, text, strlen(text));
}

int
lpo_runid(lpo_ctx *c, char out[LPO_RUNID_SIZE], const char *tool,
    const char *version, const json_t *options, const char *const *inputs,
    int n_inputs)
{
	char *canonical = lpo_json_dumps(c, options), hex[65];
	struct lpo_sha256 s;
	int i;

	if (canonical == NULL)
		return LPO_ENOMEM;
	lpo_sha256_init(&s);
	field(&s, tool);
	field(&s, version);
	field(&s, canonical);
	for (i = 0; i < n_inputs; i++)
		field(&s, inputs[i]);
	lpo_sha256_hex(&s, hex);
	snprintf(out, LPO_RUNID_SIZE, "%.16s", hex);
	lpo_free(canonical);
	return 0;
}

struct walk {
	lpo_ctx *c;
	struct lpo_sha256 s;
	int (*file_sha256)(lpo_ctx *, void *, char *, const char *);
	void *arg;
};

static int
walk_dir(struct walk *w, const char *dir, const char *rel)
{
	static const char *const kinds[] = {
		".json", ".txt", ".safetensors", ".bin", ".pt", ".model"
	};
	char **names = NULL, *full = NULL, *sub = NULL, hex[65];
	int64_t i, n = 0;
	size_t k;
	int rc;

	if ((rc = lpo_dir_list(w->c, &names, &n, dir)) != 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++) {
		full = lpo_path_join(w->c, dir, names[i]);
		sub = lpo_path_join(w->c, rel, names[i]);
		if (full == NULL || sub == NULL)
			rc = LPO_ENOMEM;
		else if (names[i][0] == '.')
			;		/* .git, .cache */
		else if (lpo_is_dir(full))
			rc = walk_dir(w, full, sub);
		else for (k = 0; k < sizeof(kinds) / sizeof(*kinds); k++) {
			if (!lpo_ends_with(names[i], kinds[k]))
				continue;
			rc = w->file_sha256(w->c, w->arg, hex, full);
			if (rc != 0)
				break;
			field(&w->s, sub);
			field(&w->s, hex);
			break;
		}
		lpo_free(full);
		lpo_free(sub);
	}
	lpo_names_free(names, n);
	return rc;
}

static int
plain_sha256(lpo_ctx *c, void *arg, char *out, const char *path)
{
	(void)arg;
	return lpo_sha256_file(c, out, path);
}

int
lpo_runid_folder(lpo_ctx *c, char out[65], const char *dir,
    int (*file_sha256)(lpo_ctx *, void *, char *, const char *), void *arg)
{
	struct walk w;
	int rc;

	w.c = c;
	w.file_sha256 = file_sha256 != NULL ? file_sha256 : plain_sha256;
	w.arg = arg;
	lpo_sha256_init(&w.s);
	if ((rc = walk_dir(&w, dir, "")) == 0)
		lpo_sha256_hex(&w.s, out);
	return rc;
}

/* Append "key: was -> is" to *text. */
static int
differ(lpo_ctx *c, char **text, const char *key, const json_t *was,
    const json_t *is)
{
	char *a = was ? lpo_json_dumps(c, was) : lpo_strdup(c, "not given");
	char *b = is ? lpo_json_dumps(c, is) : lpo_strdup(c, "not given");
	char *joined = NULL;

	if (a != NULL && b != NULL)
		joined = lpo_asprintf(c, "%s%s%s: %.60s -> %.60s", *text,
		    **text ? ", " : "", key, a, b);
	lpo_free(a);
	lpo_free(b);
	if (joined == NULL)
		return LPO_ENOMEM;
	lpo_free(*text);
	*text = joined;
	return 0;
}

char *
lpo_runid_diff(lpo_ctx *c, const json_t *was, const json_t *is)
{
	char *text = lpo_strdup(c, "");
	json_t *all = json_object();
	const char *key;
	json_t *v;
	int rc = 0;

	/* a damaged file may have anything in an object's place */
	if (text == NULL || all == NULL || (json_is_object(was) &&
	    json_object_update(all, (json_t *)(uintptr_t)was) != 0) ||
	    (json_is_object(is) &&
	    json_object_update(all, (json_t *)(uintptr_t)is) != 0)) {
		rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
		goto out;
	}
	json_object_foreach(all, key, v) {
		const json_t *a = json_object_get(was, key);
		const json_t *b = json_object_get(is, key);

		if (a == NULL || b == NULL || !json_equal(a, b))
			rc = differ(c, &text, key, a, b);
		if (rc != 0)
			break;
	}
out:
	json_decref(all);
	if (rc == 0)
		return text;
	lpo_free(text);
	return NULL;
}
