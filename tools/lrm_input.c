/* lpo-lrm: the pairs it reads. */
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "tools/lrm.h"

int
lpo_lrmtool_next(struct lrm_run *r, struct lpo_sample *s)
{
	if (r->has_first) {
		*s = r->first;
		memset(&r->first, 0, sizeof(r->first));
		r->has_first = 0;
		return 0;
	}
	return lpo_shards_next(r->in, s);
}

/* A foreign stream has no run: its first sample tells it from others. */
static int
identify_foreign(struct lrm_run *r)
{
	const struct lpo_sample *s = &r->first;
	char id[24];
	uint32_t crc = lpo_crc32c(0, s->key, strlen(s->key));
	int i;

	for (i = 0; i < s->n_members; i++)
		crc = lpo_crc32c(crc, s->member[i].bytes,
		    (size_t)s->member[i].size);
	snprintf(id, sizeof(id), "foreign-%08lx", (unsigned long)crc);
	return lpo_cli_input_run(r->cli, "pairs", id);
}

/* What the run id has of the pairs: files by content, a stream by its run. */
int
lpo_lrmtool_identify(struct lrm_run *r)
{
	lpo_cli *cli = r->cli;
	char **names = NULL;
	const char *id;
	int64_t n = 0, i;
	int rc;

	if (lpo_shards_files(r->in) == 0) {
		id = json_string_value(lpo_json_get(lpo_shards_run(r->in),
		    "run"));
		return id == NULL ? identify_foreign(r) :
		    lpo_cli_input_run(cli, "pairs", id);
	}
	if ((rc = lpo_shards_expand(cli->ctx, &names, &n,
	    (const char *const *)cli->args, cli->nargs)) < 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++)
		rc = lpo_cli_input_file(cli, "pairs", names[i]);
	lpo_names_free(names, n);
	return rc;
}

/* Open the pairs, hold them against the model, and look at the first one. */
int
lpo_lrmtool_open(struct lrm_run *r)
{
	lpo_cli *cli = r->cli;
	int rc;

	if ((cli->nargs == 0 || strcmp(cli->args[0], "-") == 0) &&
	    (rc = lpo_cli_binary_stdin(cli)) != 0)
		return rc;
	if ((rc = lpo_shards_open(cli->ctx, &r->in,
	    (const char *const *)cli->args, cli->nargs, 0)) < 0 ||
	    (rc = lpo_lrm_stream_check(cli->ctx, lpo_shards_run(r->in),
	    lpo_lrm_cfg(r->m))) < 0)
		return rc;
	if ((rc = lpo_shards_next(r->in, &r->first)) < 0)
		return rc;
	if (rc == 1)
		return lpo_fail(cli->ctx, LPO_EFORMAT, "there are no pairs");
	r->has_first = 1;
	return lpo_lrm_sample_shape(cli->ctx, r->shape, &r->first);
}

/* Pairs in all, -1: not known before the end. */
int64_t
lpo_lrmtool_pairs(struct lrm_run *r)
{
	return lpo_shards_pairs(r->in);
}

static int
too_few(struct lrm_run *r)
{
	return lpo_fail(r->cli->ctx, LPO_EFORMAT, "the pairs end after %lld; "
	    "%lld steps of %lld need %lld (a smaller --steps, or more "
	    "--epochs in lpo-pairs)", (long long)r->used,
	    (long long)r->t.steps, (long long)r->t.batch,
	    (long long)(r->t.steps * r->t.batch));
}

int
lpo_lrmtool_batch(struct lrm_run *r)
{
	struct lpo_sample s;
	int64_t i;
	int rc = 0;

	lpo_lrm_batch_clear(r->batch);
	for (i = 0; i < r->t.batch && rc == 0; i++) {
		memset(&s, 0, sizeof(s));
		if ((rc = lpo_lrmtool_next(r, &s)) == 0 &&
		    (rc = lpo_lrm_batch_add(r->batch, &s)) == 0)
			r->used++;
		lpo_sample_clear(&s);
	}
	return rc == 1 ? too_few(r) : rc;
}

/* --eval: all of a second set of pairs. */
int
lpo_lrmtool_read_eval(struct lrm_run *r)
{
	lpo_ctx *c = r->cli->ctx;
	const struct lpo_lrm_pair *p;
	lpo_shards *in = NULL;
	struct lpo_sample s;
	int64_t i, n;
	int rc;

	if (r->o->eval == NULL)
		return 0;
	if ((rc = lpo_shards_open(c, &in, &r->o->eval, 1, 0)) < 0 ||
	    (rc = lpo_lrm_stream_check(c, lpo_shards_run(in),
	    lpo_lrm_cfg(r->m))) < 0 ||
	    (rc = lpo_lrm_batch_new(c, &r->eval, r->m, r->shape)) < 0)
		goto out;
	do {
		memset(&s, 0, sizeof(s));
		if ((rc = lpo_shards_next(in, &s)) == 0)
			rc = lpo_lrm_batch_add(r->eval, &s);
		lpo_sample_clear(&s);
	} while (rc == 0);
	if (rc == 1)
		rc = lpo_lrm_batch_count(r->eval) > 0 ? 0 : lpo_fail(c,
		    LPO_EFORMAT, "'%s' has no pairs", r->o->eval);
	if (rc < 0 || (r->o->patience == 0 && r->o->keep != LRM_KEEP_BEST))
		goto out;
	/* a choice by accuracy, and only ties to choose by */
	p = lpo_lrm_batch_pairs(r->eval);
	n = lpo_lrm_batch_count(r->eval);
	for (i = 0; i < n && p[i].label[0] == p[i].label[1]; i++)
		;
	if (i == n)
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' has ties only: nothing to "
		    "choose by", r->o->eval);
out:
	if (rc < 0)
		lpo_fail_prefix(c, "--eval");
	lpo_shards_close(in);
	return rc;
}
