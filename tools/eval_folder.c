/* lpo-eval: folders of pictures. */
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/image.h"
#include "tools/eval.h"

int
eval_put_image(lpo_ctx *c, lpo_shardw *w, const char *key, const char *path,
    const char *prompt, char *bytes, size_t n)
{
	const char *type = lpo_image_type(path);
	struct lpo_sample s = { .key = NULL };
	int rc;

	s.key = lpo_strdup(c, key);
	s.json = json_pack("{ss}", "prompt", prompt);
	if (s.key == NULL || s.json == NULL) {
		lpo_free(bytes);
		rc = LPO_ENOMEM;
	} else if ((rc = lpo_sample_add(c, &s, type != NULL ? type : "png",
	    (uint8_t *)bytes, (int64_t)n)) == 0)
		rc = lpo_shardw_put(w, &s);
	lpo_sample_clear(&s);
	return rc;
}

static int
put_image(lpo_ctx *c, lpo_shardw *w, const char *key, const char *path,
    const char *prompt)
{
	char *bytes = NULL;
	size_t n;
	int rc = lpo_file_read(c, &bytes, &n, path, EVAL_IMAGE_LIMIT);

	return rc < 0 ? rc : eval_put_image(c, w, key, path, prompt, bytes, n);
}

int
eval_open_tar(lpo_ctx *c, lpo_shardw **w, const char *tar)
{
	json_t *run = json_pack("{si ss ss}", "format", 1, "kind", "images",
	    "run", "");
	int rc = run == NULL ? lpo_fail(c, LPO_ENOMEM, "out of memory") :
	    lpo_shardw_open(c, w, tar, run);

	json_decref(run);
	return rc;
}

/* A text file's first line, without the mark that Windows puts before it. */
static int
read_line(lpo_ctx *c, char **line, const char *path)
{
	size_t n, mark;
	int rc = lpo_file_read(c, line, &n, path, 1 << 20);

	if (rc < 0)
		return rc;
	mark = lpo_utf8_mark(*line, n);
	n = strcspn(*line + mark, "\r\n");
	memmove(*line, *line + mark, n);
	(*line)[n] = '\0';
	return lpo_utf8_valid(*line, n) ? 0 : lpo_fail(c, LPO_EFORMAT,
	    "%s: not UTF-8", path);
}

/* The prompt in KEY.json, else in KEY.txt. */
static int
read_prompt(lpo_ctx *c, char **prompt, const char *dir, const char *key)
{
	char *json = lpo_asprintf(c, "%s/%s.json", dir, key);
	char *txt = lpo_asprintf(c, "%s/%s.txt", dir, key);
	const char *text = NULL;
	json_t *j = NULL;
	int rc = LPO_ENOMEM;

	*prompt = NULL;
	if (json == NULL || txt == NULL)
		goto out;
	rc = 0;
	if (lpo_file_exists(json) &&
	    (rc = lpo_json_load_file(c, &j, json, 0)) == 0 &&
	    (text = json_string_value(lpo_json_get(j, "prompt"))) != NULL)
		rc = (*prompt = lpo_strdup(c, text)) == NULL ? LPO_ENOMEM : 0;
	else if (rc == 0 && lpo_file_exists(txt))
		rc = read_line(c, prompt, txt);
	if (rc == 0 && *prompt == NULL)
		rc = lpo_fail(c, LPO_EFORMAT, "no prompt in '%s' or '%s'",
		    json, txt);
out:
	json_decref(j);
	lpo_free(json);
	lpo_free(txt);
	return rc;
}

static int
folder_image(lpo_ctx *c, lpo_shardw *w, const char *dir, const char *name)
{
	char *path = lpo_path_join(c, dir, name), *prompt = NULL;
	char *key = lpo_asprintf(c, "%.*s", (int)(strrchr(name, '.') - name),
	    name);
	int rc = LPO_ENOMEM;

	/* in a tar the first dot would be the key's end */
	if (path != NULL && key != NULL && strchr(key, '.') != NULL)
		rc = lpo_fail(c, LPO_EFORMAT, "'%s': a picture's name has one "
		    "dot, that of its type: rename it", path);
	else if (path != NULL && key != NULL &&
	    (rc = read_prompt(c, &prompt, dir, key)) == 0)
		rc = put_image(c, w, key, path, prompt);
	lpo_free(prompt);
	lpo_free(path);
	lpo_free(key);
	return rc;
}

int
eval_folder_tar(lpo_cli *cli, const char *dir, const char *tar)
{
	lpo_ctx *c = cli->ctx;
	lpo_shardw *w = NULL;
	char **name = NULL;
	int64_t i, n = 0;
	int rc;

	if ((rc = lpo_dir_list(c, &name, &n, dir)) < 0 ||
	    (rc = eval_open_tar(c, &w, tar)) < 0)
		goto out;
	for (i = 0; i < n && rc == 0; i++)
		if (lpo_ctx_stopped(c))
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
		else if (name[i][0] != '.' && strchr(name[i], '.') != NULL &&
		    lpo_image_type(name[i]) != NULL)
			rc = folder_image(c, w, dir, name[i]);
	if (rc == 0)
		rc = lpo_shardw_finish(w, 0, 0, 1);
	else
		lpo_shardw_abort(w);
out:
	lpo_names_free(name, n);
	return rc;
}

int
eval_folder_sha256(lpo_cli *cli, char hex[65], const char *dir)
{
	struct lpo_sha256 sum;
	char **name = NULL, *path, file[65];
	int64_t i, n = 0;
	int rc = lpo_dir_list(cli->ctx, &name, &n, dir);

	lpo_sha256_init(&sum);
	for (i = 0; i < n && rc == 0; i++) {
		if ((path = lpo_path_join(cli->ctx, dir, name[i])) == NULL)
			rc = LPO_ENOMEM;
		else if (!lpo_is_dir(path) &&
		    (rc = lpo_cli_sha256(cli, file, path)) == 0) {
			lpo_sha256_update(&sum, name[i], strlen(name[i]) + 1);
			lpo_sha256_update(&sum, file, 64);
		}
		lpo_free(path);
	}
	lpo_sha256_hex(&sum, hex);
	lpo_names_free(name, n);
	return rc;
}
