/*
 * lpo-eval: the pictures of a system, as a tar in the state folder.  They grow
 * in parts, each named by its first picture, so that an interrupted run sees
 * where it stands.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/io/png.h"
#include "lib/io/shard_join.h"
#include "tools/cli_sampler.h"
#include "tools/eval.h"

struct draw {
	lpo_cli *cli;
	const struct eval *e;
	const struct eval_system *s;
	struct lpo_sampler_opts so;
	lpo_sampler *sampler;
	int64_t total, px;
	uint8_t *rgb;		/* a batch */
	json_t *run;		/* __run__/run.json */
};

/* One picture as a member of the system's tar. */
static int
put_picture(struct draw *d, lpo_shardw *w, const uint8_t *rgb, int64_t index)
{
	int64_t prompt = index / d->so.per_prompt;
	int64_t number = index % d->so.per_prompt;
	const char *words = d->e->list.text[prompt], *lora = NULL;
	struct lpo_sample out = { .key = NULL };
	struct lpo_png_text text = { "parameters", NULL };
	char key[32], *parameters = NULL, *role;
	lpo_ctx *c = d->cli->ctx;
	uint8_t *png = NULL;
	size_t bytes;
	int rc = LPO_ENOMEM;

	lpo_sample_key(key, prompt, number);
	if ((role = lpo_asprintf(c, "%s.lora", d->s->name)) == NULL)
		goto out;
	if (d->s->lora != NULL)
		lora = lpo_cli_input_value(d->cli, role);
	text.text = parameters = lpo_sample_parameters(c, &d->so, words,
	    d->px, index, lpo_cli_input_value(d->cli, d->s->name), lora,
	    d->s->strength);
	out.key = lpo_strdup(c, key);
	out.json = json_pack("{ss sI sI}", "prompt", words, "prompt_index",
	    (json_int_t)prompt, "number", (json_int_t)number);
	if (parameters == NULL || out.key == NULL || out.json == NULL)
		goto out;
	if ((rc = lpo_png_encode(c, &png, &bytes, rgb, d->px, d->px, &text,
	    1)) == 0 && (rc = lpo_sample_add(c, &out, "png", png,
	    (int64_t)bytes)) == 0)
		rc = lpo_shardw_put(w, &out);
out:
	lpo_sample_clear(&out);
	lpo_free(parameters);
	lpo_free(role);
	return rc;
}

static int
one_batch(struct draw *d, lpo_shardw *w, int64_t first, int64_t n)
{
	int64_t k;
	int rc = lpo_sampler_run(d->sampler, d->rgb, NULL, first, n);

	for (k = 0; k < n && rc == 0; k++)
		rc = put_picture(d, w, d->rgb + k * d->px * d->px * 3,
		    first + k);
	if (rc == 0)
		lpo_cli_progress(d->cli, d->s->name, first + n, d->total,
		    "pictures", NULL);
	return rc;
}

/*
 * Pictures from `first` on, for --checkpoint seconds or until a stop, which
 * leaves the batches that are whole.  *end: where it ended.
 */
static int
write_part(struct draw *d, const char *path, int64_t first, int64_t *end)
{
	int64_t batch = lpo_sampler_batch(d->sampler), n;
	double until = lpo_cli_now() + d->cli->o.checkpoint_s;
	lpo_ctx *c = d->cli->ctx;
	lpo_shardw *w = NULL;
	int rc, stopped = 0;

	if ((rc = lpo_shardw_open(c, &w, path, d->run)) < 0)
		return rc;
	for (*end = first; *end < d->total && rc == 0; *end += n) {
		if (*end > first && (lpo_ctx_stopped(c) ||
		    lpo_cli_now() > until))
			break;
		n = d->total - *end < batch ? d->total - *end : batch;
		if ((rc = one_batch(d, w, *end, n)) != 0)
			break;
	}
	if (rc == LPO_ESTOP && *end > first) {
		stopped = 1;
		rc = 0;
	}
	if (rc != 0) {
		lpo_shardw_abort(w);
		return rc;
	}
	if ((rc = lpo_shardw_finish(w, 0, 0, 1)) != 0)
		return rc;
	return (stopped || lpo_ctx_stopped(c)) && *end < d->total ?
	    LPO_ESTOP : 0;
}

/* The part that begins with picture `first`, made or found. */
static int
next_part(struct draw *d, const char *path, int64_t first, int64_t *end)
{
	lpo_shard *s = NULL;
	int rc;

	if (!lpo_file_exists(path))
		return write_part(d, path, first, end);
	if ((rc = lpo_shard_open(d->cli->ctx, &s, path)) < 0)
		return rc;
	*end = first + lpo_shard_samples(s);
	lpo_shard_close(s);
	return *end > first && *end <= d->total ? 0 : lpo_fail(d->cli->ctx,
	    LPO_EFORMAT, "'%s' is not what this run left there", path);
}

/* All parts, then the tar of them. */
static int
draw_parts(struct draw *d)
{
	lpo_ctx *c = d->cli->ctx;
	char **part = NULL, **p;
	int64_t at = 0, n = 0, i;
	int rc = 0;

	while (rc == 0 && at < d->total) {
		p = lpo_realloc(c, part, (size_t)(n + 1) * sizeof(*p));
		if (p == NULL) {
			rc = LPO_ENOMEM;
			break;
		}
		part = p;
		part[n] = lpo_asprintf(c, "%s.%09lld", d->s->tar,
		    (long long)at);
		rc = part[n] == NULL ? LPO_ENOMEM : next_part(d, part[n], at,
		    &at);
		n++;
	}
	lpo_cli_progress_end(d->cli);
	if (rc == 0)
		rc = lpo_shard_join(c, d->s->tar, d->run,
		    (const char *const *)part, n);
	for (i = 0; i < n; i++) {
		if (rc == 0)
			remove(part[i]);
		lpo_free(part[i]);
	}
	lpo_free(part);
	return rc;
}

static struct lpo_sampler_opts
sampler_opts(const lpo_cli *cli, const struct eval_opts *o)
{
	struct lpo_sampler_opts so = { .seed = cli->o.seed,
	    .per_prompt = o->per_prompt, .steps = o->steps,
	    .guidance = o->guidance, .eta = o->eta, .size_px = o->size_px,
	    .batch = o->batch };

	return so;
}

static struct lpo_cli_sampling
sampling(const struct eval *e, const struct eval_system *s,
    struct lpo_sampler_opts *so)
{
	struct lpo_cli_sampling a = { .model = s->model, .lora = s->lora,
	    .strength = (float)s->strength, .prompts =
	    (const char *const *)e->list.text, .n = e->list.n, .so = so };

	return a;
}

int
eval_draw_plan(lpo_cli *cli, const struct eval_opts *o, const struct eval *e,
    const struct eval_system *s)
{
	struct lpo_sampler_opts so = sampler_opts(cli, o);
	struct lpo_cli_sampling a = sampling(e, s, &so);
	int rc;

	if ((rc = lpo_cli_sampling_fit(cli, &a)) == 0)
		rc = lpo_cli_sampling_words(cli, &a);
	lpo_cli_sampling_end(&a);
	return rc;
}

static int
draw(lpo_cli *cli, const struct eval_opts *o, const struct eval *e,
    const struct eval_system *s)
{
	struct draw d = { .cli = cli, .e = e, .s = s,
	    .so = sampler_opts(cli, o) };
	struct lpo_cli_sampling a = sampling(e, s, &d.so);
	int rc;

	rc = lpo_cli_sampling_fit(cli, &a);
	lpo_cli_sampling_end(&a);
	if (rc < 0)
		return rc;

	d.run = json_pack("{si ss ss}", "format", 1, "kind", "images", "run",
	    e->pictures);
	if ((rc = lpo_sampler_open(cli->ctx, &d.sampler, &cli->be,
	    lpo_cli_precision(cli), s->model, s->lora, (float)s->strength,
	    (const char *const *)e->list.text, e->list.n, &d.so)) < 0)
		goto out;
	lpo_cli_tidy();
	d.total = lpo_sampler_count(d.sampler);
	d.px = lpo_sampler_size_px(d.sampler);
	d.rgb = lpo_alloc(cli->ctx, (size_t)lpo_sampler_batch(d.sampler),
	    (size_t)(d.px * d.px * 3));
	rc = d.rgb == NULL ? LPO_ENOMEM : draw_parts(&d);
out:
	lpo_sampler_free(d.sampler);
	lpo_free(d.rgb);
	json_decref(d.run);
	return rc;
}

int
eval_draw(lpo_cli *cli, const struct eval_opts *o, struct eval *e,
    const char *dir)
{
	struct eval_system *s;
	int64_t i;
	int rc = 0;

	for (i = 0; i < e->systems && rc == 0; i++) {
		s = &e->system[i];
		if (s->tar != NULL)
			continue;
		s->tar = lpo_asprintf(cli->ctx, "%s/system-%lld.tar", dir,
		    (long long)i);
		if (s->tar == NULL)
			return LPO_ENOMEM;
		if (lpo_file_exists(s->tar))
			continue;
		rc = s->folder != NULL ? eval_folder_tar(cli, s->folder,
		    s->tar) : draw(cli, o, e, s);
	}
	return rc;
}
