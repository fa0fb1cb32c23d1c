/* config.json: read, stripped of what means "default", and checked. */
#include "lib/model/config.h"

#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/model/source.h"

#define CONFIG_LIMIT ((size_t)1 << 20)

void
lpo_config_strip(json_t *j)
{
	const json_t *list = json_object_get(j, "_use_default_values");
	const char *key;
	json_t *v;
	void *next;
	size_t i;

	for (i = 0; i < json_array_size(list); i++)
		if ((key = json_string_value(json_array_get(list, i))) != NULL)
			json_object_del(j, key);
	json_object_foreach_safe(j, next, key, v)
		if (json_is_null(v))
			json_object_del(j, key);
}

int
lpo_config_read(lpo_ctx *c, json_t **json, char **text, const char *dir,
    const char *class_name)
{
	char *path = NULL, *data = NULL;
	const char *name;
	json_t *j = NULL;
	size_t bytes;
	int rc = LPO_ENOMEM;

	*json = NULL;
	if (text != NULL)
		*text = NULL;
	if ((path = lpo_path_join(c, dir, "config.json")) == NULL)
		goto out;
	if ((rc = lpo_source_read(c, &data, &bytes, path, CONFIG_LIMIT)) < 0 ||
	    (rc = lpo_json_load(c, &j, data, bytes, path)) < 0)
		goto out;
	if (!json_is_object(j)) {
		rc = lpo_fail(c, LPO_EFORMAT, "%s: not an object", path);
		goto out;
	}
	lpo_config_strip(j);
	name = json_string_value(json_object_get(j, "_class_name"));
	if (class_name != NULL && name != NULL &&
	    strcmp(name, class_name) != 0) {
		rc = lpo_fail(c, LPO_EFORMAT,
		    "%s: '_class_name' is '%.64s', not '%s'", path, name,
		    class_name);
		goto out;
	}
	*json = j;
	j = NULL;
	if (text != NULL) {
		*text = data;
		data = NULL;
	}
	rc = 0;
out:
	json_decref(j);
	lpo_free(data);
	lpo_free(path);
	return rc;
}

/* Equal values; 1 and 1.0 are; a list is where all its elements are. */
static int
means(const json_t *have, const json_t *want)
{
	size_t i;

	if (json_is_number(have) && json_is_number(want))
		return json_number_value(have) == json_number_value(want);
	if (json_is_array(have) && !json_is_array(want)) {
		for (i = 0; i < json_array_size(have); i++)
			if (!means(json_array_get(have, i), want))
				return 0;
		return json_array_size(have) > 0;
	}
	return json_equal(have, want);
}

static int
check_field(lpo_ctx *c, const struct lpo_config_field *f, const json_t *have,
    const char *dir)
{
	json_t *want = json_loads(f->json, JSON_DECODE_ANY, NULL);
	char *text = NULL;
	int rc = 0;

	if (want == NULL)
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	if (!means(have, want)) {
		text = lpo_json_dumps(c, have);
		rc = lpo_fail(c, LPO_EFORMAT,
		    "%s/config.json: '%s' is %.80s; only %s is supported",
		    dir, f->key, text ? text : "something else", f->json);
		lpo_free(text);
	}
	json_decref(want);
	return rc;
}

int
lpo_config_check(lpo_ctx *c, const json_t *config,
    const struct lpo_config_field *table, const char *dir)
{
	const struct lpo_config_field *f;
	const char *key;
	json_t *v;
	int rc;

	json_object_foreach((json_t *)(uintptr_t)config, key, v) {
		for (f = table; f->key != NULL; f++)
			if (strcmp(f->key, key) == 0)
				break;
		if (f->key == NULL) {
			if (key[0] != '_')
				lpo_notice(c, "%s/config.json: unknown field "
				    "'%.64s' ignored", dir, key);
			continue;
		}
		if (f->json != NULL && (rc = check_field(c, f, v, dir)) < 0)
			return rc;
	}
	return 0;
}

static int
in_range(lpo_ctx *c, const char *key, int64_t v, int64_t lo, int64_t hi)
{
	if (v >= lo && v <= hi)
		return 0;
	return lpo_fail(c, LPO_EFORMAT, "'%s' is %lld, not in %lld..%lld", key,
	    (long long)v, (long long)lo, (long long)hi);
}

int
lpo_config_ints(lpo_ctx *c, int64_t *out, int n, const json_t *config,
    const char *key, int64_t dflt, int64_t lo, int64_t hi)
{
	const json_t *v = lpo_json_get(config, key);
	int i, got, rc;

	if (v == NULL && dflt < 0)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is missing", key);
	for (i = 0; i < n && v == NULL; i++)
		out[i] = dflt;
	if (v != NULL && !json_is_array(v)) {
		if ((rc = lpo_json_int(c, &out[0], config, key, 0)) < 0)
			return rc;
		for (i = 1; i < n; i++)
			out[i] = out[0];
	} else if (v != NULL) {
		if (json_array_size(v) != (size_t)n)
			return lpo_fail(c, LPO_EFORMAT,
			    "'%s' has %zu entries, not %d", key,
			    json_array_size(v), n);
		if ((rc = lpo_json_ints(c, out, &got, n, config, key)) < 0)
			return rc;
	}
	for (i = 0; i < n; i++)
		if ((rc = in_range(c, key, out[i], lo, hi)) < 0)
			return rc;
	return 0;
}

int
lpo_config_int(lpo_ctx *c, int64_t *out, const json_t *config,
    const char *key, int64_t dflt, int64_t lo, int64_t hi)
{
	int rc;

	if (dflt < lo && lpo_json_get(config, key) == NULL)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is missing", key);
	if ((rc = lpo_json_int(c, out, config, key, dflt)) < 0)
		return rc;
	return in_range(c, key, *out, lo, hi);
}
