/*
 * lpo-train's output: a LoRA file; or with --full a model folder, of which the
 * UNet is new and all else the base model's.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/db.h"
#include "lib/io/safetensors.h"
#include "lib/model/weights.h"
#include "tools/train.h"

#define UNET_FILE "unet/diffusion_pytorch_model.safetensors"

/* What made it: run and options, as JSON. */
static char *
origin(struct train_run *r, int64_t iteration)
{
	lpo_cli *cli = r->cli;
	char *opts = lpo_json_dumps(cli->ctx, lpo_cli_run_options(cli)), *text;

	if (opts == NULL)
		return NULL;
	text = lpo_asprintf(cli->ctx, "{\"iterations\":%lld,\"options\":%s,"
	    "\"run\":\"%s\",\"tool\":\"lpo-train\",\"version\":\"%s\"}",
	    (long long)iteration, opts, lpo_cli_run(cli), LPO_VERSION);
	lpo_free(opts);
	return text;
}

static int
write_lora(struct train_run *r, const char *path, const char *text,
    int64_t iteration)
{
	char steps[32], title[40];
	const char *const meta[] = {
		"lpo.run", text,
		"ss_steps", steps,
		"ss_training_comment", "LPO, lpo-tools " LPO_VERSION,
		"modelspec.title", title,
		"ss_output_name", title,
		NULL
	};

	snprintf(steps, sizeof(steps), "%lld", (long long)iteration);
	snprintf(title, sizeof(title), "lpo-%s", lpo_cli_run(r->cli));
	return lpo_lora_save(r->cli->ctx, r->lora, path,
	    (enum lpo_lora_format)r->o->format, r->o->lora_f32, meta);
}

/* ----------------------------------------------------------------- folder */

/* The files of the base model's folder `name` also in dir/name. */
static int
link_part(struct train_run *r, const char *dir, const char *name)
{
	lpo_ctx *c = r->cli->ctx;
	char **file = NULL, *from = NULL, *to = NULL, *a, *b;
	int64_t i, n = 0;
	int rc = LPO_ENOMEM;

	from = lpo_path_join(c, r->cli->o.model, name);
	to = lpo_path_join(c, dir, name);
	if (from == NULL || to == NULL || (rc = lpo_mkdir_p(c, to)) < 0 ||
	    (rc = lpo_dir_list(c, &file, &n, from)) < 0)
		goto out;
	for (i = 0; i < n && rc == 0; i++) {
		a = lpo_path_join(c, from, file[i]);
		b = lpo_path_join(c, to, file[i]);
		if (a == NULL || b == NULL)
			rc = LPO_ENOMEM;
		else if (file[i][0] != '.' && !lpo_is_dir(a))
			rc = lpo_file_link(c, b, a);
		lpo_free(a);
		lpo_free(b);
	}
out:
	lpo_names_free(file, n);
	lpo_free(from);
	lpo_free(to);
	return rc;
}

/*
 * All parts of the base model but its UNet, so that the folder is a model by
 * itself.  A single-file checkpoint beside them is not a part.
 */
static int
link_base(struct train_run *r, const char *dir)
{
	static const char index[] = "model_index.json";
	lpo_ctx *c = r->cli->ctx;
	char **name = NULL, *from, *to;
	int64_t i, n = 0;
	int rc;

	if ((rc = lpo_dir_list(c, &name, &n, r->cli->o.model)) < 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++) {
		from = lpo_path_join(c, r->cli->o.model, name[i]);
		to = lpo_path_join(c, dir, name[i]);
		if (from == NULL || to == NULL)
			rc = LPO_ENOMEM;
		else if (strcmp(name[i], index) == 0)
			rc = lpo_file_link(c, to, from);
		else if (name[i][0] != '.' && strcmp(name[i], "unet") != 0 &&
		    lpo_is_dir(from))
			rc = link_part(r, dir, name[i]);
		lpo_free(from);
		lpo_free(to);
	}
	lpo_names_free(name, n);
	return rc;
}

static int
fill_folder(struct train_run *r, const char *dir, const char *text)
{
	static const enum lpo_dtype storage[] = { LPO_F32, LPO_BF16, LPO_F16 };
	const char *const meta[] = { "lpo.run", text, NULL };
	lpo_ctx *c = r->cli->ctx;
	char *unet = lpo_path_join(c, dir, "unet");
	char *file = lpo_path_join(c, dir, UNET_FILE);
	int rc = LPO_ENOMEM;

	if (unet == NULL || file == NULL ||
	    (rc = lpo_mkdir_p(c, unet)) < 0 ||
	    (rc = lpo_file_write_text(c, unet, "config.json",
	    lpo_unet_config_json(r->unet))) < 0 ||
	    (rc = lpo_weights_save(lpo_unet_params(r->unet), file,
	    storage[r->o->dtype], meta)) < 0 ||
	    (rc = link_base(r, dir)) < 0)
		goto out;
	rc = lpo_file_write_text(c, dir, "lpo.json", text);
out:
	lpo_free(unet);
	lpo_free(file);
	return rc;
}

static int
write_folder(struct train_run *r, const char *path, const char *text)
{
	lpo_ctx *c = r->cli->ctx;
	char *tmp = NULL;
	int rc;

	if ((rc = lpo_folder_begin(c, &tmp, path)) < 0)
		return rc;
	if ((rc = fill_folder(r, tmp, text)) < 0 ||
	    (rc = lpo_folder_publish(c, &tmp, path, 1)) < 0)
		lpo_folder_abort(&tmp);
	return rc;
}

/* ------------------------------------------------------------- publishing */

/* A row of the checkpoint table, with the score where it was just checked. */
static int
list(struct train_run *r, const char *path, int64_t iteration)
{
	lpo_cli *cli = r->cli;
	char hex[65], *file = NULL;
	int rc;

	if (lpo_cli_db(cli) == NULL)
		return 0;
	file = r->o->full ? lpo_path_join(cli->ctx, path, UNET_FILE) :
	    lpo_strdup(cli->ctx, path);
	if (file == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_cli_sha256(cli, hex, file)) == 0)
		rc = lpo_db_checkpoint(lpo_cli_db(cli), lpo_cli_db_run(cli),
		    iteration, path, hex, r->checked == iteration ?
		    r->check.policy : NAN);
	lpo_free(file);
	return rc;
}

static int
publish(struct train_run *r, const char *path, int64_t iteration)
{
	char *text = origin(r, iteration);
	int rc;

	if (text == NULL)
		return LPO_ENOMEM;
	rc = r->o->full ? write_folder(r, path, text) :
	    write_lora(r, path, text, iteration);
	lpo_free(text);
	return rc < 0 ? rc : list(r, path, iteration);
}

int
lpo_traintool_publish(struct train_run *r)
{
	int rc;

	/* a run that was killed after its last iteration: the score is lost */
	if (r->check_every > 0 && r->checked != r->iterations) {
		if ((rc = lpo_lpo_check(r->trainer, &r->check)) < 0)
			return rc;
		r->checked = r->iterations;
	}
	return publish(r, r->output, r->iterations);
}

/* NAME.safetensors -> NAME-000200.safetensors, NAME -> NAME-000200 */
int
lpo_traintool_publish_some(struct train_run *r, int64_t iteration)
{
	const char *path = r->output, *dot = strrchr(path, '.');
	int64_t stem = dot != NULL && strchr(dot, '/') == NULL &&
	    !r->o->full ? dot - path : (int64_t)strlen(path);
	char *name = lpo_asprintf(r->cli->ctx, "%.*s-%06lld%s", (int)stem,
	    path, (long long)iteration, path + stem);
	int rc = name == NULL ? LPO_ENOMEM : 0;

	/* the lock of the output is this one's too */
	if (rc == 0 && (rc = lpo_tmp_sweep(r->cli->ctx, name)) == 0)
		rc = publish(r, name, iteration);
	lpo_free(name);
	return rc;
}

static void
run_of(char run[17], const json_t *j)
{
	const char *id = json_string_value(lpo_json_get(j, "run"));

	if (id != NULL && strlen(id) == 16)
		memcpy(run, id, 17);
}

static int
existing_folder(lpo_ctx *c, const char *path, char run[17])
{
	char *file = lpo_path_join(c, path, "lpo.json");
	json_t *j = NULL;
	int rc;

	if (file == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_json_load_file(c, &j, file, 0)) != 0)
		rc = lpo_cli_foreign(c, rc);
	else
		run_of(run, j);
	json_decref(j);
	lpo_free(file);
	return rc;
}

int
lpo_traintool_existing(lpo_ctx *c, const char *path, char run[17])
{
	lpo_st *st = NULL;
	json_t *j = NULL;
	const char *text;
	int rc;

	run[0] = '\0';
	if (!lpo_file_exists(path))
		return LPO_ENOTFOUND;
	if (lpo_is_dir(path))
		return existing_folder(c, path, run);
	if ((rc = lpo_st_open(c, &st, path)) < 0)
		return lpo_cli_foreign(c, rc);
	if ((text = lpo_st_meta(st, "lpo.run")) != NULL &&
	    (j = json_loads(text, 0, NULL)) != NULL)
		run_of(run, j);
	json_decref(j);
	lpo_st_close(st);
	return 0;
}
