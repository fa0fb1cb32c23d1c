/* Pictures from a model: what they take, and that it fits. */
#include <math.h>
#include <stdio.h>

#include "tools/cli_sampler.h"

struct making {
	lpo_cli *cli;
	struct lpo_cli_sampling *a;
};

static int
make(void *arg, size_t room)
{
	const struct making *m = arg;
	struct lpo_cli_sampling *a = m->a;
	struct lpo_sampler_opts so = *a->so;
	struct lpo_sampler_plan p;
	int64_t px;
	int rc;

	so.memory_bytes = (int64_t)room;
	if ((rc = lpo_sampler_open(m->cli->ctx, &a->plan, &a->dry.dry.be,
	    lpo_cli_precision(m->cli), a->model, a->lora, a->strength,
	    a->prompts, a->n, &so)) < 0)
		return rc;
	/* a batch's pictures, and those as files; its texts' rows */
	px = lpo_sampler_size_px(a->plan);
	lpo_sampler_plan(a->plan, &p);
	a->dry.more = lpo_sampler_batch(a->plan) * (2 * 3 * px * px +
	    (int64_t)p.text_row_bytes);
	return 0;
}

static size_t
unmake(void *arg)
{
	struct lpo_cli_sampling *a = ((struct making *)arg)->a;
	struct lpo_sampler_plan p;

	lpo_sampler_plan(a->plan, &p);
	lpo_sampler_free(a->plan);
	a->plan = NULL;
	return p.arena_bytes;
}

static int
refuse(lpo_cli *cli, struct making *m)
{
	struct lpo_cli_sampling *a = m->a;
	char parts[160], ways[96] = "";
	struct lpo_sampler_plan p;
	int64_t need, half;
	int rc;

	lpo_clear(cli->ctx);
	lpo_cli_dry_phase(&a->dry, 0);
	a->so->batch = 1;
	if ((rc = make(m, 0)) < 0)
		return rc;
	need = lpo_cli_dry_over(&a->dry) + a->dry.limit;
	lpo_sampler_plan(a->plan, &p);
	half = (int64_t)(p.weight_bytes + p.arena_bytes) / 2;
	snprintf(parts, sizeof(parts), "UNet %zu, VAE %zu, activations of one "
	    "picture %zu MiB", p.weight_bytes >> 20, p.vae_bytes >> 20,
	    p.arena_bytes >> 20);
	if (lpo_cli_precision(cli) == LPO_F32 && need - half <= a->dry.limit)
		snprintf(ways, sizeof(ways), "--precision bf16");
	else if (need - (int64_t)p.arena_bytes * 3 / 4 <= a->dry.limit)
		snprintf(ways, sizeof(ways), "--size %lld",
		    (long long)lpo_sampler_size_px(a->plan) / 2);
	return lpo_cli_refuse(cli, &a->dry, need, parts, ways);
}

int
lpo_cli_sampling_fit(lpo_cli *cli, struct lpo_cli_sampling *a)
{
	struct making m = { cli, a };
	size_t room;
	int rc;

	lpo_cli_dry_begin(cli, &a->dry);
	rc = lpo_cli_dry_fit(&a->dry, &room, make, unmake, &m);
	if (rc == 1 || rc == LPO_ENOMEM)
		rc = refuse(cli, &m);
	if (rc == 0)
		a->so->batch = lpo_sampler_batch(a->plan);
	a->so->memory_bytes = 0;
	lpo_cli_dry_end(cli);
	return rc;
}

void
lpo_cli_sampling_end(struct lpo_cli_sampling *a)
{
	lpo_sampler_free(a->plan);
	a->plan = NULL;
}

int
lpo_cli_sampling_words(lpo_cli *cli, struct lpo_cli_sampling *a)
{
	int64_t total = lpo_sampler_count(a->plan);
	struct lpo_sampler_plan p;
	double s, load;
	int rc;

	lpo_sampler_plan(a->plan, &p);
	lpo_cli_plan(cli, "batch", "%lld pictures",
	    (long long)lpo_sampler_batch(a->plan));
	lpo_cli_plan_bytes(cli, "UNet", (int64_t)p.weight_bytes);
	lpo_cli_plan_bytes(cli, "VAE", (int64_t)p.vae_bytes);
	lpo_cli_plan_bytes(cli, "activations", (int64_t)p.arena_bytes);
	lpo_cli_plan_bytes(cli, "program and pictures",
	    lpo_cli_dry_program(&a->dry) + a->dry.more);
	lpo_cli_plan_memory(cli, &a->dry);
	lpo_cli_plan_bytes(cli, "encoded prompts on disk",
	    (int64_t)p.text_bytes);
	lpo_cli_plan(cli, "GFLOP in all", "%.1f", 1e-9 * p.image_flops *
	    (double)total);
	if ((rc = lpo_sampler_time(a->plan, &s)) < 0)
		return rc;
	if (isnan(s))
		s = p.image_flops / (lpo_cli_speed(cli,
		    lpo_cli_precision(cli)) * 1e9 / 2);
	load = lpo_cli_load_s((int64_t)(p.weight_bytes + p.vae_bytes));
	lpo_cli_plan_seconds(cli, "time to load", load);
	lpo_cli_plan_seconds(cli, "time of a picture", s);
	lpo_cli_plan_seconds(cli, "time in all", load + s *
	    (double)total);
	return 0;
}
