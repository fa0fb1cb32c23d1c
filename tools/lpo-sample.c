/* lpo-sample: pictures from prompts. */
#include <stdlib.h>
#include <string.h>

#include <omp.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/base/state.h"
#include "lib/io/png.h"
#include "lib/io/prompts.h"
#include "lib/io/shard_join.h"
#include "lib/model/source.h"
#include "lib/train/sample.h"
#include "tools/cli_sampler.h"

struct opts {
	const char *lora, *prompts;
	int64_t per_prompt, steps, size_px, batch;
	double guidance, eta;
	int rng;
};

#define O(name, letter, arg, type, member, flags, min, max, help) \
	{ name, letter, arg, help, type, offsetof(struct opts, member), \
	  flags, min, max }
static const struct lpo_cli_option options[] = {
	O("prompts", 'p', "FILE", LPO_CLI_STRING, prompts, 0, 0, 0,
	    "CSV, TSV, JSONL or JSON with a column prompt, or .txt lines"),
	O("lora", 0, "FILE[:W]", LPO_CLI_STRING, lora, LPO_CLI_ONCE, 0, 0,
	    "LoRA to apply, with strength W (1)"),
	O("per-prompt", 'n', "N", LPO_CLI_I64, per_prompt, LPO_CLI_RESULT, 1,
	    1e6, "pictures of each prompt (1)"),
	O("steps", 0, "N", LPO_CLI_I64, steps, LPO_CLI_RESULT, 1, 1000,
	    "DDIM steps (20)"),
	O("guidance", 'g', "X", LPO_CLI_F64, guidance, LPO_CLI_RESULT, 0,
	    1000, "guidance scale, 1 for none (5)"),
	O("eta", 0, "X", LPO_CLI_F64, eta, LPO_CLI_RESULT, 0, 1,
	    "share of DDPM's noise in each step (0)"),
	O("size", 's', "PX", LPO_CLI_I64, size_px, LPO_CLI_RESULT, 1, 16384,
	    "side of the pictures (what the model was trained at)"),
	O("rng", 0, "philox|torch-cpu|torch-cuda", LPO_CLI_CHOICE, rng,
	    LPO_CLI_RESULT, 0, 0,
	    "whose noise: ours, or torch's seeded with SEED + place"),
	O("batch", 'b', "N", LPO_CLI_I64, batch, 0, 1, 4096,
	    "pictures at a time (chosen by memory; no effect on them)"),
	{ NULL, 0, NULL, NULL, LPO_CLI_FLAG, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-sample", "pictures from prompts, as a tar of PNG or a folder",
	"-m DIR -p PROMPTS [options] [-o out.tar|folder/]", options
};

struct job {
	lpo_cli *cli;
	const struct opts *o;
	struct lpo_sampler_opts so;
	char *lora;		/* path without its strength */
	double strength;
	struct lpo_prompts prompts;
	lpo_sampler *sampler;
	int64_t total, done, size_px;
	json_t *run;
	const char *model_hash, *lora_hash;
	int folder;
	lpo_ctx **worker;
	int workers;
};

/* ------------------------------------------------------------- the inputs */

/* "file.safetensors:0.8": what follows the last colon is a number or name. */
static int
split_lora(struct job *j)
{
	char *colon;

	j->strength = 1;
	if (j->o->lora == NULL)
		return 0;
	if ((j->lora = lpo_strdup(j->cli->ctx, j->o->lora)) == NULL)
		return LPO_ENOMEM;
	colon = strrchr(j->lora, ':');
	if (colon != NULL && lpo_cli_parse_f64(colon + 1, &j->strength) == 0)
		*colon = '\0';
	return 0;
}

/*
 * The parts of the model that a picture depends on, not the whole folder: a
 * safety checker that comes or goes does not change the run.
 */
static int
add_inputs(struct job *j)
{
	static const char *const part[] = { "unet", "vae", "text_encoder",
	    "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler" };
	lpo_cli *cli = j->cli;
	char hex[65], *dir;
	size_t i;
	int rc = 0;

	for (i = 0; i < sizeof part / sizeof *part && rc == 0; i++) {
		if ((rc = lpo_cli_model_part(cli, &dir, part[i])) != 0)
			return rc;
		/* the second encoder is SDXL's; a missing one shows later */
		if (lpo_source_has(dir))
			rc = lpo_cli_input_dir(cli, part[i], dir);
		lpo_free(dir);
	}
	if (rc == 0 && j->lora != NULL)
		rc = lpo_cli_input_file(cli, "lora", j->lora);
	lpo_prompts_sha256(&j->prompts, hex);
	if (rc == 0)
		rc = lpo_cli_input_hash(cli, "prompts", j->o->prompts, hex);
	lpo_cli_resolved(cli, "lora_strength", json_real(j->strength));
	j->model_hash = lpo_cli_input_value(cli, "unet");
	j->lora_hash = j->lora != NULL ? lpo_cli_input_value(cli, "lora") :
	    NULL;
	return rc;
}

/* The run id in a finished folder's run.json. */
static int
existing_folder(lpo_ctx *c, const char *path, char run[17])
{
	json_t *o = NULL;
	char **names, *file;
	const char *id;
	int64_t n;
	int rc;

	run[0] = '\0';
	if (!lpo_is_dir(path))
		return lpo_file_exists(path) ? 0 : LPO_ENOTFOUND;
	if ((rc = lpo_dir_list(c, &names, &n, path)) != 0)
		return rc;
	lpo_names_free(names, n);
	if (n == 0)
		return LPO_ENOTFOUND;
	if ((file = lpo_path_join(c, path, "run.json")) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_json_load_file(c, &o, file, 0)) != 0)
		rc = lpo_cli_foreign(c, rc);
	else if ((id = json_string_value(json_object_get(o, "run"))) != NULL &&
	    strlen(id) == 16)
		memcpy(run, id, 17);
	json_decref(o);
	lpo_free(file);
	return rc;
}

static int
make_run_json(struct job *j)
{
	j->run = json_pack("{s:i, s:s, s:s, s:o, s:I, s:I}", "format", 1,
	    "kind", "images", "run", lpo_cli_run(j->cli), "parents",
	    lpo_cli_parents(j->cli), "samples", (json_int_t)j->total,
	    "size_px", (json_int_t)j->size_px);
	return j->run != NULL ? 0 : lpo_fail(j->cli->ctx, LPO_ENOMEM,
	    "out of memory");
}

/* ------------------------------------------------------------ the pictures */

/* The `lpo` chunk of a PNG: what made this picture, without paths or times. */
static char *
lpo_chunk(struct job *j, lpo_ctx *c, const char *key, int64_t number)
{
	json_t *o;
	char *text;

	o = json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:s, s:s*, s:f}",
	    "run", lpo_cli_run(j->cli), "key", key, "number",
	    (json_int_t)number, "seed", (json_int_t)j->so.seed, "steps",
	    (json_int_t)j->so.steps, "guidance", j->so.guidance, "eta",
	    j->so.eta, "model_sha256", j->model_hash, "lora_sha256",
	    j->lora_hash, "lora_strength", j->strength);
	text = lpo_json_dumps(c, o);
	json_decref(o);
	return text;
}

static int
make_sample(struct job *j, lpo_ctx *c, struct lpo_sample *s,
    const uint8_t *rgb, int64_t number)
{
	int64_t row = number / j->o->per_prompt, k = number %
	    j->o->per_prompt;
	const char *prompt = j->prompts.text[row];
	struct lpo_png_text text[2] = { { "parameters", NULL },
	    { "lpo", NULL } };
	uint8_t *png = NULL;
	size_t bytes;
	char key[32], *a, *b;
	int rc = LPO_ENOMEM;

	lpo_sample_key(key, row, k);
	text[0].text = a = lpo_sample_parameters(c, &j->so, prompt,
	    j->size_px, number, j->model_hash, j->lora_hash, j->strength);
	text[1].text = b = lpo_chunk(j, c, key, number);
	s->key = lpo_strdup(c, key);
	if (a == NULL || b == NULL || s->key == NULL)
		goto out;
	rc = lpo_png_encode(c, &png, &bytes, rgb, j->size_px, j->size_px,
	    text, 2);
	if (rc == 0)
		rc = lpo_sample_add(c, s, "png", png, (int64_t)bytes);
	if (rc != 0)
		goto out;
	s->json = json_pack("{s:s, s:s, s:I, s:I, s:I}", "key", key,
	    "prompt", prompt, "row", (json_int_t)row, "image",
	    (json_int_t)k, "seed", (json_int_t)j->so.seed);
	if (s->json == NULL)
		rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
out:
	lpo_free(a);
	lpo_free(b);
	return rc;
}

/* Pictures first .. first + n - 1 (one batch) into the open shard. */
static int
write_batch(struct job *j, lpo_shardw *w, uint8_t *rgb, int64_t first,
    int64_t n)
{
	int64_t pixels = j->size_px * j->size_px * 3, i;
	struct lpo_sample *s;
	int rc;

	if ((s = lpo_alloc(j->cli->ctx, (size_t)n, sizeof *s)) == NULL)
		return LPO_ENOMEM;
	rc = lpo_sampler_run(j->sampler, rgb, NULL, first, n);
	if (rc != 0)
		goto out;
#pragma omp parallel for schedule(dynamic)
	for (i = 0; i < n; i++)
		make_sample(j, j->worker[omp_get_thread_num()], &s[i],
		    rgb + i * pixels, first + i);
	for (i = 0; i < j->workers && rc == 0; i++)
		if (lpo_errcode(j->worker[i]) != 0)
			rc = lpo_fail(j->cli->ctx, lpo_errcode(j->worker[i]),
			    "%s", lpo_errmsg(j->worker[i]));
	for (i = 0; i < n && rc == 0; i++)
		rc = lpo_shardw_put(w, &s[i]);
	j->done += n;
	lpo_cli_progress(j->cli, "sample", j->done, j->total, "pictures",
	    NULL);
out:
	for (i = 0; i < n; i++)
		lpo_sample_clear(&s[i]);
	lpo_free(s);
	return rc;
}

/*
 * Pictures from `first` on into one file; ends with the last picture, after
 * `seconds`, or at a stop with what is whole by then.  *end: where it ended.
 */
static int
write_part(struct job *j, const char *path, int64_t first, double seconds,
    int64_t *end)
{
	lpo_ctx *c = j->cli->ctx;
	double until = lpo_cli_now() + seconds;
	int64_t batch = lpo_sampler_batch(j->sampler), n;
	lpo_shardw *w = NULL;
	uint8_t *rgb;
	int rc, stopped = 0;

	rgb = lpo_alloc(c, (size_t)(batch * j->size_px),
	    (size_t)j->size_px * 3);
	if (rgb == NULL)
		return LPO_ENOMEM;
	rc = lpo_shardw_open(c, &w, path, j->run);
	for (*end = first; *end < j->total && rc == 0; *end += n) {
		n = j->total - *end < batch ? j->total - *end : batch;
		rc = write_batch(j, w, rgb, *end, n);
		if (rc != 0)
			break;		/* *end counts whole batches */
		if (lpo_ctx_stopped(c) || (seconds > 0 &&
		    lpo_cli_now() > until)) {
			*end += n;
			break;
		}
	}
	lpo_free(rgb);
	/* a stop in the middle of a batch: the ones before are good */
	if (seconds > 0 && *end > first && (rc == LPO_ESTOP ||
	    (rc == 0 && lpo_ctx_stopped(c)))) {
		stopped = 1;
		rc = 0;
	}
	if (rc != 0) {
		lpo_shardw_abort(w);
		return rc;
	}
	if ((rc = lpo_shardw_finish(w, 0, 0, 1)) != 0)
		return rc;
	return stopped && *end < j->total ? LPO_ESTOP : 0;
}

/* ------------------------------------------------------- file and folder */

static int
write_file(lpo_ctx *c, const char *dir, const char *key, const char *ext,
    const void *data, size_t bytes)
{
	char *path = lpo_asprintf(c, "%s/%s.%s", dir, key, ext);
	int rc = path == NULL ? LPO_ENOMEM : lpo_file_write(c, path, data,
	    bytes);

	lpo_free(path);
	return rc;
}

/* A part's pictures as files; sums are checked on the way. */
static int
unpack(lpo_ctx *c, const char *dir, const char *part)
{
	struct lpo_sample s;
	lpo_shard *in = NULL;
	int64_t i;
	char *json;
	int rc;

	if ((rc = lpo_shard_open(c, &in, part)) != 0)
		return rc;
	for (i = 0; i < lpo_shard_samples(in) && rc == 0; i++) {
		const struct lpo_member *m;

		memset(&s, 0, sizeof s);
		json = NULL;
		rc = lpo_shard_get(c, &s, in, i);
		if (rc == 0 && (json = lpo_json_dumps(c, s.json)) == NULL)
			rc = LPO_ENOMEM;
		if (rc == 0 && (m = lpo_sample_find(&s, "png")) != NULL)
			rc = write_file(c, dir, s.key, "png", m->bytes,
			    (size_t)m->size);
		if (rc == 0)
			rc = write_file(c, dir, s.key, "json", json,
			    strlen(json));
		lpo_free(json);
		lpo_sample_clear(&s);
	}
	lpo_shard_close(in);
	return rc;
}

/* All pictures as KEY.png and KEY.json in a folder that appears at once. */
static int
publish_folder(struct job *j, char *const *part, int64_t n)
{
	lpo_ctx *c = j->cli->ctx;
	char *tmp = NULL, *text = NULL;
	int64_t i;
	int rc;

	if ((rc = lpo_folder_begin(c, &tmp, j->cli->o.output)) != 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++)
		rc = unpack(c, tmp, part[i]);
	if (rc == 0 && (text = lpo_json_pretty(c, j->run)) == NULL)
		rc = LPO_ENOMEM;
	if (rc == 0)
		rc = write_file(c, tmp, "run", "json", text, strlen(text));
	lpo_free(text);
	if (rc != 0) {
		lpo_folder_abort(&tmp);
		return rc;
	}
	/* what may not be replaced was refused at the start */
	return lpo_folder_publish(c, &tmp, j->cli->o.output, 1);
}

/* The part that begins with picture `first`, and where it ends. */
static int
next_part(struct job *j, const char *path, int64_t first, int64_t *end)
{
	lpo_shard *s = NULL;
	int there, rc;

	rc = lpo_cli_shard_there(j->cli, path, &there);
	if (rc != 0)
		return rc;
	if (!there)
		return write_part(j, path, first, j->cli->o.checkpoint_s > 0 ?
		    j->cli->o.checkpoint_s : 1e-9, end);
	if ((rc = lpo_shard_open(j->cli->ctx, &s, path)) != 0)
		return rc;
	*end = first + lpo_shard_samples(s);
	j->done = *end;
	lpo_shard_close(s);
	return *end > first && *end <= j->total ? 0 : lpo_fail(j->cli->ctx,
	    LPO_EFORMAT, "'%s' is not what this run left there", path);
}

/*
 * A file or folder grows as parts in the state folder; a part's name is its
 * first picture, so a resumed run sees where it stands.
 */
static int
write_resumable(struct job *j)
{
	lpo_ctx *c = j->cli->ctx;
	lpo_state *st = NULL;
	char name[32], **part = NULL, **p;
	int64_t n = 0, i, at = 0;
	int rc;

	rc = lpo_state_open(c, &st, j->cli->o.output, lpo_cli_run(j->cli),
	    lpo_cli_run_options(j->cli), j->cli->o.fresh);
	while (rc == 0 && at < j->total) {
		p = lpo_realloc(c, part, (size_t)(n + 1) * sizeof *part);
		if (p == NULL) {
			rc = LPO_ENOMEM;
			break;
		}
		part = p;
		snprintf(name, sizeof name, "%09lld.tar", (long long)at);
		if ((part[n++] = lpo_state_file(c, st, name)) == NULL)
			rc = LPO_ENOMEM;
		else
			rc = next_part(j, part[n - 1], at, &at);
	}
	if (rc == 0)
		rc = j->folder ? publish_folder(j, part, n) :
		    lpo_shard_join(c, j->cli->o.output, j->run,
		    (const char *const *)part, n);
	for (i = 0; i < n; i++)
		lpo_free(part[i]);
	lpo_free(part);
	return lpo_state_end(st, rc);
}

/* -------------------------------------------------------------- the whole */

static int
plan(struct job *j, struct lpo_cli_sampling *a)
{
	int64_t total = lpo_sampler_count(a->plan);
	int64_t px = lpo_sampler_size_px(a->plan);
	lpo_cli *cli = j->cli;
	int rc;

	lpo_cli_plan(cli, "run", "%s", lpo_cli_run(cli));
	lpo_cli_plan(cli, "prompts", "%lld", (long long)j->prompts.n);
	lpo_cli_plan(cli, "pictures", "%lld", (long long)total);
	lpo_cli_plan(cli, "size", "%lldx%lld px", (long long)px,
	    (long long)px);
	lpo_cli_plan(cli, "output bytes at most", "%lld",
	    (long long)(total * (px * px * 3 + 4096)));
	rc = lpo_cli_sampling_words(cli, a);
	return rc < 0 ? rc : LPO_CLI_DONE;
}

static int
check(struct job *j)
{
	lpo_cli *cli = j->cli;
	const char *out = cli->o.output;
	int rc;

	if ((rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	if (j->o->prompts == NULL)
		return lpo_cli_usage(cli, "no prompts: give -p FILE");
	if (cli->nargs > 0)
		return lpo_cli_usage(cli, "'%s': no operands are expected "
		    "(prompts: -p)", cli->args[0]);
	if (out != NULL && strchr(out, '%') != NULL)
		return lpo_cli_usage(cli, "-o '%s': one file or folder, no "
		    "pattern", out);
	if (lpo_cli_to_stdout(cli))
		return cli->o.dry_run ? 0 : lpo_cli_binary_stdout(cli);
	j->folder = out[0] != '\0' && (out[strlen(out) - 1] == '/' ||
	    lpo_is_dir(out));
	return 0;
}

static int
prepare(struct job *j)
{
	lpo_cli *cli = j->cli;
	struct lpo_cli_sampling a = { .so = &j->so };
	int rc, i;

	if ((rc = check(j)) != 0 || (rc = split_lora(j)) != 0 ||
	    (rc = lpo_cli_backend(cli)) != 0 ||
	    (rc = lpo_prompts_read(cli->ctx, &j->prompts,
	    j->o->prompts)) != 0 || (rc = add_inputs(j)) != 0)
		return rc;
	rc = lpo_cli_begin(cli, lpo_cli_to_stdout(cli) ? NULL :
	    cli->o.output, j->folder ? existing_folder :
	    lpo_cli_existing_tar);
	if (rc != 0)
		return rc;
	j->so = (struct lpo_sampler_opts){ .seed = cli->o.seed,
	    .per_prompt = j->o->per_prompt, .steps = j->o->steps,
	    .guidance = j->o->guidance, .eta = j->o->eta,
	    .size_px = j->o->size_px, .rng = (enum lpo_sample_rng)j->o->rng,
	    .batch = j->o->batch };
	a.model = cli->o.model;
	a.lora = j->lora;
	a.strength = (float)j->strength;
	a.prompts = (const char *const *)j->prompts.text;
	a.n = j->prompts.n;
	if ((rc = lpo_cli_sampling_fit(cli, &a)) == 0 && cli->o.dry_run)
		rc = plan(j, &a);
	lpo_cli_sampling_end(&a);
	if (rc != 0)
		return rc;
	rc = lpo_sampler_open(cli->ctx, &j->sampler, &cli->be,
	    lpo_cli_precision(cli), cli->o.model, j->lora,
	    (float)j->strength, (const char *const *)j->prompts.text,
	    j->prompts.n, &j->so);
	if (rc != 0)
		return rc;
	lpo_cli_tidy();
	j->total = lpo_sampler_count(j->sampler);
	j->size_px = lpo_sampler_size_px(j->sampler);
	j->workers = lpo_cli_threads(cli);
	j->worker = lpo_alloc(cli->ctx, (size_t)j->workers,
	    sizeof *j->worker);
	if (j->worker == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < j->workers; i++)
		if ((j->worker[i] = lpo_ctx_new()) == NULL)
			return LPO_ENOMEM;
	return make_run_json(j);
}

static int
work(lpo_cli *cli, const struct opts *o)
{
	struct job j = { .cli = cli, .o = o };
	int64_t end;
	int i, rc;

	if ((rc = prepare(&j)) == 0)
		rc = lpo_cli_to_stdout(cli) ?
		    write_part(&j, "-", 0, 0, &end) : write_resumable(&j);
	if (rc == 0)
		lpo_cli_note(cli, "%lld pictures of %lld prompts",
		    (long long)j.total, (long long)j.prompts.n);
	for (i = 0; j.worker != NULL && i < j.workers; i++)
		lpo_ctx_free(j.worker[i]);
	lpo_free(j.worker);
	lpo_sampler_free(j.sampler);
	lpo_prompts_free(&j.prompts);
	json_decref(j.run);
	lpo_free(j.lora);
	return rc;
}

int
main(int argc, char **argv)
{
	struct opts o = { .per_prompt = 1, .steps = 20, .guidance = 5 };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	if (rc == 0)
		rc = work(&cli, &o);
	return lpo_cli_end(&cli, rc);
}
