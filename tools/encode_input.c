/* lpo-encode: which rows, at what size, and what the output says of itself. */
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/source.h"
#include "lib/model/unet.h"
#include "lib/train/schedule.h"
#include "tools/encode.h"

int
lpo_encodetool_part(struct encode_job *j)
{
	int64_t n = 0, i = 0;
	char text[64];
	char *slash;

	j->parts = 1;
	if (j->o->part == NULL)
		return 0;
	snprintf(text, sizeof text, "%s", j->o->part);
	if ((slash = strchr(text, '/')) != NULL)
		*slash = '\0';
	if (slash == NULL || lpo_cli_parse_i64(text, &i) != 0 ||
	    lpo_cli_parse_i64(slash + 1, &n) != 0 || n < 1 || i < 0 || i >= n)
		return lpo_cli_usage(j->cli, "--part '%s': want I/N with "
		    "0 <= I < N", j->o->part);
	j->part = i;
	j->parts = n;
	return 0;
}

static int
select_row(struct encode_job *j, int64_t i)
{
	struct lpo_record r;
	json_t *before;
	int keep = 0, rc;

	memset(&r, 0, sizeof r);
	if ((rc = lpo_records_get(j->cli->ctx, &r, j->records, i)) != 0)
		goto out;
	before = json_deep_copy(r.extra);
	rc = lpo_filter_keep(j->filters, &keep, &r);
	/* the filters joined scores: they belong to the output too */
	if (rc == 0 && keep && !json_equal(before, r.extra))
		j->extra[i] = json_incref(r.extra);
	json_decref(before);
	j->keep[i] = (char)keep;
	j->kept += keep;
out:
	lpo_record_clear(&r);
	return rc;
}

int
lpo_encodetool_select(struct encode_job *j)
{
	lpo_ctx *c = j->cli->ctx;
	int64_t i;
	int rc;

	j->keep = lpo_alloc(c, (size_t)j->rows + 1, 1);
	j->extra = lpo_alloc(c, (size_t)j->rows + 1, sizeof *j->extra);
	if (j->keep == NULL || j->extra == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_filter_rows(j->filters, j->rows)) != 0)
		return rc;
	for (i = 0; i < j->rows && rc == 0; i++) {
		if (lpo_ctx_stopped(c))
			return LPO_ESTOP;
		if (lpo_records_error(j->records, i) != NULL)
			j->keep[i] = 2;
		else if (j->o->images_only) {
			j->keep[i] = 1;
			j->kept++;
		} else
			rc = select_row(j, i);
	}
	return rc;
}

/* sample_size of the UNet times the VAE's factor, as the pipelines do. */
int
lpo_encodetool_size(struct encode_job *j)
{
	lpo_ctx *c = j->cli->ctx;
	json_t *unet = NULL, *vae = NULL, *blocks;
	char *u = NULL, *v = NULL;
	int64_t n;
	int rc;

	if ((j->size_px = j->o->size_px) > 0)
		return 0;
	if ((rc = lpo_cli_model_part(j->cli, &u, "unet/config.json")) != 0 ||
	    (rc = lpo_cli_model_part(j->cli, &v, "vae/config.json")) != 0 ||
	    (rc = lpo_source_json(c, &unet, u, 0)) != 0 ||
	    (rc = lpo_source_json(c, &vae, v, 0)) != 0)
		goto out;
	if ((rc = lpo_unet_sample_size(c, &n, unet)) != 0) {
		lpo_fail_prefix(c, "%s", u);
		goto out;
	}
	blocks = json_object_get(vae, "block_out_channels");
	j->size_px = n << (json_array_size(blocks) > 0 &&
	    json_array_size(blocks) < 16 ?
	    (int)json_array_size(blocks) - 1 : 3);
out:
	json_decref(unet);
	json_decref(vae);
	lpo_free(u);
	lpo_free(v);
	return rc;
}

/* -------------------------------------------------------------- describing */

int
lpo_encodetool_inputs(struct encode_job *j)
{
	lpo_cli *cli = j->cli;
	char *vae = NULL, *sched = NULL;
	char hex[65];
	int rc;

	if ((rc = lpo_cli_model_part(cli, &vae, "vae")) != 0 ||
	    (rc = lpo_cli_input_dir(cli, "vae", vae)) != 0 ||
	    (rc = lpo_cli_model_part(cli, &sched,
	    "scheduler/scheduler_config.json")) != 0 ||
	    (rc = lpo_cli_input_file(cli, "scheduler", sched)) != 0 ||
	    (rc = lpo_records_sha256(cli->ctx, hex, j->records)) != 0)
		goto out;
	rc = lpo_cli_input_hash(cli, "images", cli->args[0], hex);
	lpo_cli_resolved(cli, "size_px", json_integer(j->size_px));
out:
	lpo_free(vae);
	lpo_free(sched);
	return rc;
}

/* 0.18215, not 0.182150006: the shortest number that is the same float. */
static double
shortest(float x)
{
	char text[32];
	int digits;

	for (digits = 6; digits < 9; digits++) {
		snprintf(text, sizeof text, "%.*g", digits, (double)x);
		if (strtof(text, NULL) == x)
			break;
	}
	snprintf(text, sizeof text, "%.*g", digits, (double)x);
	return strtod(text, NULL);
}

int
lpo_encodetool_run_json(struct encode_job *j)
{
	lpo_ctx *c = j->cli->ctx;
	const struct lpo_vae_config *v = lpo_vae_cfg(j->vae);
	struct lpo_schedule s = { 0 };
	json_t *sched = NULL;
	char *text = NULL;
	int rc;

	if ((rc = lpo_schedule_load(c, &s, j->cli->o.model)) != 0)
		return rc;
	text = lpo_schedule_json(c, &s);
	lpo_schedule_free(&s);
	if (text == NULL)
		return LPO_ENOMEM;
	rc = lpo_json_load(c, &sched, text, strlen(text), "scheduler");
	lpo_free(text);
	if (rc != 0)
		return rc;
	/* samples: not known before all images have been looked at */
	j->run = json_pack("{s:i, s:s, s:s, s:o, s:n, s:{s:f, s:I, s:s}, s:o,"
	    " s:I}", "format", 1, "kind", "moments", "run",
	    lpo_cli_run(j->cli), "parents", lpo_cli_parents(j->cli),
	    "samples", "latent", "scaling_factor",
	    shortest(v->scaling_factor), "channels",
	    (json_int_t)v->latent_channels, "vae_sha256",
	    lpo_cli_input_value(j->cli, "vae"), "scheduler", sched,
	    "size_px", (json_int_t)j->size_px);
	if (j->run == NULL)
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	/*
	 * Not in the run id: the same moments, cut otherwise.  But files of
	 * two ways to cut must not be mixed.
	 */
	return lpo_cli_pattern(j->cli) ? lpo_json_set(c, j->run,
	    "rows_per_shard", json_integer(j->o->rows_per_shard)) : 0;
}
