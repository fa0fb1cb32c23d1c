/* Which files a model's tensors are in: one, an index, the names of a stem. */
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/safetensors_priv.h"

#define INDEX_LIMIT	100000000
#define FILES_LIMIT	1000

static int
st_new(lpo_ctx *c, lpo_st **out, const char *path, int files)
{
	lpo_st *st = lpo_alloc(c, 1, sizeof(*st));

	*out = NULL;
	if (st == NULL)
		return LPO_ENOMEM;
	st->map = lpo_alloc(c, (size_t)files, sizeof(*st->map));
	st->head = lpo_alloc(c, (size_t)files, sizeof(*st->head));
	st->path = lpo_strdup(c, path);
	if (st->map == NULL || st->head == NULL || st->path == NULL) {
		lpo_st_close(st);
		return LPO_ENOMEM;
	}
	*out = st;
	return 0;
}

static int
add_file(lpo_ctx *c, lpo_st *st, const uint8_t *p, size_t bytes,
    const char *file)
{
	return lpo_torch_sniff(p, bytes) ?
	    lpo_st_add_torch(c, st, p, bytes, file) :
	    lpo_st_add_safetensors(c, st, p, bytes, file);
}

static int
add_path(lpo_ctx *c, lpo_st *st, const char *path)
{
	struct lpo_map *m = &st->map[st->n_maps];
	int rc = lpo_map_open(c, m, path);

	if (rc != 0)
		return rc;
	st->n_maps++;
	return add_file(c, st, m->data, m->bytes, path);
}

/* Every key of the index must be in the shard it names. */
static int
check_weight_map(lpo_ctx *c, const lpo_st *st, json_t *map)
{
	const char *key;
	json_t *v;

	json_object_foreach(map, key, v)
		if (lpo_st_find(st, key) == NULL)
			return lpo_fail(c, LPO_EFORMAT, "%s: '%s' is not in "
			    "'%s'", st->path, key, json_string_value(v));
	return 0;
}

static int
open_index(lpo_ctx *c, lpo_st **out, const char *path)
{
	json_t *index = NULL, *map, *files = NULL, *v;
	char *dir = lpo_dirname(c, path), *full;
	const char *key, *name;
	lpo_st *st = NULL;
	int rc = dir == NULL ? LPO_ENOMEM :
	    lpo_json_load_file(c, &index, path, INDEX_LIMIT);

	if (rc != 0)
		goto out;
	map = json_object_get(index, "weight_map");
	if ((files = json_object()) == NULL || !json_is_object(map)) {
		rc = files == NULL ? lpo_fail(c, LPO_ENOMEM, "out of memory") :
		    lpo_fail(c, LPO_EFORMAT, "%s: no weight_map", path);
		goto out;
	}
	json_object_foreach(map, key, v) {
		name = json_string_value(v);
		if (name == NULL || *name == '\0' || strchr(name, '/') ||
		    strchr(name, '\\') || strstr(name, "..")) {
			rc = lpo_fail(c, LPO_EFORMAT, "%s: '%s' is in a file "
			    "with an unsafe name", path, key);
			goto out;
		}
		if ((rc = lpo_json_set(c, files, name, json_true())) != 0)
			goto out;
	}
	if (json_object_size(files) > FILES_LIMIT) {
		rc = lpo_fail(c, LPO_EFORMAT, "%s: more than %d files", path,
		    FILES_LIMIT);
		goto out;
	}
	rc = st_new(c, &st, path, (int)json_object_size(files));
	if (rc != 0)
		goto out;
	json_object_foreach(files, key, v) {
		full = lpo_path_join(c, dir, key);
		rc = full == NULL ? LPO_ENOMEM : add_path(c, st, full);
		lpo_free(full);
		if (rc != 0)
			goto out;
	}
	if ((rc = lpo_st_finish(c, st)) != 0 ||
	    (rc = check_weight_map(c, st, map)) != 0)
		goto out;
	*out = st;
	st = NULL;
out:
	json_decref(index);
	json_decref(files);
	lpo_free(dir);
	lpo_st_close(st);
	return rc;
}

int
lpo_st_open(lpo_ctx *c, lpo_st **out, const char *path)
{
	size_t n = strlen(path);
	int rc;

	*out = NULL;
	if (n > 5 && strcmp(path + n - 5, ".json") == 0)
		return open_index(c, out, path);
	if ((rc = st_new(c, out, path, 1)) != 0)
		return rc;
	if ((rc = add_path(c, *out, path)) == 0 &&
	    (rc = lpo_st_finish(c, *out)) == 0)
		return 0;
	lpo_st_close(*out);
	*out = NULL;
	return rc;
}

int
lpo_st_open_memory(lpo_ctx *c, lpo_st **out, const void *data, size_t bytes,
    const char *name)
{
	int rc;

	if ((rc = st_new(c, out, name, 1)) != 0)
		return rc;
	if ((rc = add_file(c, *out, data, bytes, name)) == 0 &&
	    (rc = lpo_st_finish(c, *out)) == 0)
		return 0;
	lpo_st_close(*out);
	*out = NULL;
	return rc;
}

void
lpo_st_drop(const lpo_st *st, const struct lpo_st_tensor *t)
{
	const uint8_t *p = t->data;
	int i;

	for (i = 0; i < st->n_maps; i++)
		if (p >= st->map[i].data &&
		    p < st->map[i].data + st->map[i].bytes)
			lpo_map_drop(p, (size_t)t->bytes);
}

void
lpo_st_close(lpo_st *st)
{
	int64_t k;
	int i;

	if (st == NULL)
		return;
	for (i = 0; i < st->n_maps; i++)
		lpo_map_close(&st->map[i]);
	for (i = 0; i < st->n_heads; i++)
		json_decref(st->head[i]);
	for (k = 0; k < st->n_own; k++)
		lpo_free(st->own[k]);
	lpo_free(st->own);
	lpo_free(st->map);
	lpo_free(st->head);
	lpo_free(st->t);
	lpo_free(st->path);
	lpo_free(st);
}

/*
 * The names a model's weights can have, in their order (models.md 1.8).
 * transformers calls its pickles pytorch_model.bin, not model.bin.  Indexes of
 * variants have two spellings, of diffusers before 0.33 and since.
 */
static char *
candidate(lpo_ctx *c, int i, const char *stem, const char *variant)
{
	const char *v = variant ? variant : "", *dot = variant ? "." : "";
	const char *bin = strcmp(stem, "model") == 0 ? "pytorch_model" : stem;

	switch (i) {
	case 0:
		return lpo_asprintf(c, "%s.safetensors.index%s%s.json", stem,
		    dot, v);
	case 1:
		return lpo_asprintf(c, "%s.safetensors%s%s.index.json", stem,
		    dot, v);
	case 2:
		return lpo_asprintf(c, "%s%s%s.safetensors", stem, dot, v);
	case 3:
		return lpo_asprintf(c, "%s.bin.index%s%s.json", bin, dot, v);
	case 4:
		return lpo_asprintf(c, "%s.bin%s%s.index.json", bin, dot, v);
	default:
		return lpo_asprintf(c, "%s%s%s.bin", bin, dot, v);
	}
}
#define CANDIDATES 6

int
lpo_st_stem_path(lpo_ctx *c, char **out, const char *dir, const char *stem,
    const char *variant)
{
	char *name, *full = NULL;
	int i;

	*out = NULL;
	for (i = 0; i < CANDIDATES; i++) {
		if ((name = candidate(c, i, stem, variant)) != NULL)
			full = lpo_path_join(c, dir, name);
		lpo_free(name);
		if (full == NULL)
			return LPO_ENOMEM;
		if (lpo_file_exists(full)) {
			*out = full;
			return 0;
		}
		lpo_free(full);
		full = NULL;
	}
	return 0;
}

int
lpo_st_open_stem(lpo_ctx *c, lpo_st **out, const char *dir, const char *stem,
    const char *variant)
{
	char *path;
	int rc;

	*out = NULL;
	if ((rc = lpo_st_stem_path(c, &path, dir, stem, variant)) != 0)
		return rc;
	if (path == NULL)
		return lpo_fail(c, LPO_ENOTFOUND, "no '%s%s%s.safetensors' in "
		    "'%s'", stem, variant ? "." : "", variant ? variant : "",
		    dir);
	rc = lpo_st_open(c, out, path);
	lpo_free(path);
	return rc;
}
