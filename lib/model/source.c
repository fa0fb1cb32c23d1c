/* A model's small files, from a folder or made. */
#include "lib/model/source.h"

#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/model/random.h"

int
lpo_source_read(lpo_ctx *c, char **data, size_t *bytes, const char *path,
    size_t limit)
{
	int rc;

	if (!lpo_random_is(path))
		return lpo_file_read(c, data, bytes, path, limit);
	if ((rc = lpo_random_text(c, data, path)) == 0)
		*bytes = strlen(*data);
	return rc;
}

int
lpo_source_json(lpo_ctx *c, json_t **json, const char *path, size_t limit)
{
	char *text;
	int rc;

	if (!lpo_random_is(path))
		return lpo_json_load_file(c, json, path, limit);
	*json = NULL;
	if ((rc = lpo_random_text(c, &text, path)) != 0)
		return rc;
	rc = lpo_json_load(c, json, text, strlen(text), path);
	lpo_free(text);
	return rc;
}

/* Names of a random model's folder: no folder of them has another. */
static int
random_list(lpo_ctx *c, char ***names, int64_t *n, const char *dir)
{
	struct lpo_random r;
	const char *f;
	char **list;
	size_t len;
	int i, rc;

	if ((rc = lpo_random_parse(c, &r, dir)) != 0)
		return rc;
	len = strcspn(r.rest, "/");
	if ((list = lpo_alloc(c, 16, sizeof(*list))) == NULL)
		return LPO_ENOMEM;
	for (i = 0; (f = lpo_random_file(&r, i)) != NULL && *n < 16; i++) {
		if (strncmp(f, r.rest, len) != 0 || f[len] != '/')
			continue;
		if ((list[*n] = lpo_strdup(c, f + len + 1)) == NULL) {
			lpo_names_free(list, *n);
			*n = 0;
			return LPO_ENOMEM;
		}
		++*n;
	}
	*names = list;
	return 0;
}

int
lpo_source_list(lpo_ctx *c, char ***names, int64_t *n, const char *dir)
{
	*names = NULL;
	*n = 0;
	return lpo_random_is(dir) ? random_list(c, names, n, dir) :
	    lpo_dir_list(c, names, n, dir);
}

int
lpo_source_has(const char *path)
{
	return lpo_random_is(path) ? lpo_random_has(path) :
	    lpo_file_exists(path);
}
