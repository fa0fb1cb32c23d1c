/* lpo-train: how the work is cut up to fit into memory, before it is loaded. */
#include <stdio.h>
#include <string.h>

#include "lib/train/param_state.h"
#include "tools/train.h"

static const char *const words[] = { "auto", "on", "off" };

static int
make(void *arg, size_t room)
{
	struct train_run *r = arg;

	r->lo.memory_bytes = room;
	return lpo_lpo_new(r->cli->ctx, &r->trainer, &r->parts, &r->lo);
}

static size_t
unmake(void *arg)
{
	struct train_run *r = arg;
	struct lpo_lpo_plan p;

	lpo_lpo_plan(r->trainer, &p);
	lpo_lpo_free(r->trainer);
	r->trainer = NULL;
	return p.activation_bytes;
}

/* The networks there are, in MiB, for a refusal; bytes in all of them. */
static int64_t
weights(const struct train_run *r, char *out, size_t size)
{
	int64_t unet = lpo_unet_params(r->unet)->bytes, lrm, lora = 0, more = 0;

	lrm = r->reward_bytes;
	if (r->lora != NULL)
		lora = lpo_lora_params(r->lora)->bytes;
	if (r->reference != NULL)
		more = lpo_unet_params(r->reference)->bytes;
	snprintf(out, size, "UNet %lld, %s %lld, reward model %lld",
	    (long long)(unet >> 20), r->lora != NULL ? "LoRA" :
	    "its reference", (long long)((lora + more) >> 20),
	    (long long)(lrm >> 20));
	return unet + lora + more + lrm;
}

/* It does not fit at its smallest: what it needs, and what would fit. */
static int
refuse(struct train_run *r)
{
	struct lpo_cli_dry *d = &r->dry;
	char parts[192], ways[256] = "";
	int64_t need, all;
	struct lpo_lpo_plan p;
	int rc, given = r->lo.cut.segments == LPO_SEGMENTS_OFF;
	size_t n = 0;

	lpo_clear(r->cli->ctx);
	lpo_cli_dry_phase(d, 0);
	r->lo.cut = (struct lpo_lpo_cut){ 1, 1, 1, given ? LPO_SEGMENTS_OFF :
	    LPO_SEGMENTS_ON };
	if ((rc = make(r, 0)) < 0)
		return rc;
	need = lpo_cli_dry_over(d) + d->limit;
	lpo_lpo_plan(r->trainer, &p);
	all = weights(r, parts, sizeof(parts));
	n = strlen(parts);
	snprintf(parts + n, sizeof(parts) - n, ", activations of one pair "
	    "%lld, rollouts %lld MiB", (long long)(p.activation_bytes >> 20),
	    (long long)(p.host_bytes >> 20));
	n = 0;
	if (given)
		n = (size_t)snprintf(ways, sizeof(ways), "--segments on");
	if (r->parts.dtype == LPO_F32 && !r->o->full && need - (all +
	    (int64_t)p.activation_bytes) / 2 <= d->limit)
		n += (size_t)snprintf(ways + n, sizeof(ways) - n,
		    "%s--precision bf16", n ? ", " : "");
	if (r->o->full)
		n += (size_t)snprintf(ways + n, sizeof(ways) - n,
		    "%sa LoRA (without --full)", n ? ", " : "");
	if (need - (int64_t)p.activation_bytes * 3 / 4 <= d->limit)
		n += (size_t)snprintf(ways + n, sizeof(ways) - n,
		    "%s--size %lld", n ? ", " : "",
		    (long long)r->lo.height_px / 2);
	if (need - (int64_t)p.host_bytes / 2 <= d->limit)
		snprintf(ways + n, sizeof(ways) - n, "%s"
		    "--prompts-per-iteration %lld", n ? ", " : "",
		    (long long)(r->lo.prompts + 1) / 2);
	return lpo_cli_refuse(r->cli, d, need, parts, ways);
}

static int
read_cut(lpo_ctx *c, struct lpo_lpo_cut *cut, const json_t *j)
{
	const char *s = json_string_value(json_object_get(j, "segments"));

	cut->rollout = json_integer_value(json_object_get(j, "rollout"));
	cut->pairs = json_integer_value(json_object_get(j, "pairs"));
	cut->scoring = json_integer_value(json_object_get(j, "scoring"));
	cut->segments = s != NULL && strcmp(s, "on") == 0 ? LPO_SEGMENTS_ON :
	    LPO_SEGMENTS_OFF;
	if (cut->rollout < 1 || cut->pairs < 1 || cut->scoring < 1)
		return lpo_fail(c, LPO_EFORMAT, "the saved state's plan makes "
		    "no sense (--fresh discards it)");
	return 0;
}

/*
 * The attempt before cut it up like this.  1: and so does this one.  0: it is
 * to be cut up anew, which no result on the CPU shows; on a device the last
 * bits might, so there a micro-batch within --micro-batch stays what it was.
 */
static int
recalled(struct train_run *r)
{
	int host = r->dry.dry.host, same = 1, rc = 0;
	struct lpo_lpo_cut was;
	lpo_cli *cli = r->cli;
	json_t *j;

	if (r->state == NULL || (rc = lpo_cli_recall(cli, r->state, &j)) < 0 ||
	    j == NULL)
		return rc;
	rc = read_cut(cli->ctx, &was, j);
	json_decref(j);
	if (rc < 0)
		return rc;
	if (lpo_cli_given(cli, "micro-batch"))
		same &= host ? r->lo.cut.pairs == was.pairs :
		    r->lo.cut.pairs >= was.pairs;
	if (lpo_cli_given(cli, "segments") &&
	    r->lo.cut.segments != LPO_SEGMENTS_AUTO)
		same &= r->lo.cut.segments == was.segments;
	if (!same)
		return host ? 0 : lpo_fail(cli->ctx, LPO_EINVAL, "this run was "
		    "begun with --micro-batch %lld --segments %s; on a device "
		    "its last bits depend on it: go on with these, or begin "
		    "again with --fresh", (long long)was.pairs,
		    words[was.segments]);
	r->lo.cut = was;
	lpo_cli_dry_phase(&r->dry, 1);
	if ((rc = make(r, 0)) < 0 || lpo_cli_dry_over(&r->dry) <= 0)
		return rc < 0 ? rc : 1;
	unmake(r);
	lpo_cli_dry_phase(&r->dry, 0);
	r->lo.cut = r->asked;
	if (host)
		return 0;
	return lpo_fail(cli->ctx, LPO_ENOMEM, "this run was begun with "
	    "rollouts of %lld, pairs %lld, scores %lld at a time and segments "
	    "%s; that does not fit into %lld MiB now, and on a device the "
	    "last bits depend on it: free some memory, or begin again with "
	    "--fresh", (long long)was.rollout, (long long)was.pairs,
	    (long long)was.scoring, words[was.segments],
	    (long long)(r->dry.limit >> 20));
}

static int
remember(struct train_run *r)
{
	const struct lpo_lpo_cut *cut = &r->lo.cut;
	json_t *j;
	int rc;

	if (r->state == NULL)
		return 0;
	j = json_pack("{sI sI sI ss}", "rollout", (json_int_t)cut->rollout,
	    "pairs", (json_int_t)cut->pairs, "scoring",
	    (json_int_t)cut->scoring, "segments", words[cut->segments]);
	rc = j == NULL ? lpo_fail(r->cli->ctx, LPO_ENOMEM, "out of memory") :
	    lpo_cli_remember(r->cli, r->state, j);
	json_decref(j);
	return rc;
}

/* What is not counted: rows of the mapped texts, and a state being saved. */
static void
uncounted(struct train_run *r)
{
	int64_t P = r->lo.prompts < r->trained ? r->lo.prompts : r->trained;

	r->dry.more = P * (lpo_policy_texts_row_bytes(r->texts) +
	    lpo_lrm_texts_row_bytes(r->lrm_texts)) +
	    lpo_param_state_bytes(r->lora != NULL ? lpo_lora_params(r->lora) :
	    lpo_unet_params(r->unet));
}

int
lpo_traintool_fit(struct train_run *r)
{
	struct lpo_lpo_plan p;
	lpo_cli *cli = r->cli;
	size_t room;
	int rc;

	lpo_cli_dry_begin(cli, &r->dry);
	r->parts.be = &r->dry.dry.be;
	if ((rc = lpo_traintool_open(r)) != 0)
		goto out;
	uncounted(r);
	r->asked = r->lo.cut;
	if ((rc = recalled(r)) == 0) {
		rc = lpo_cli_dry_fit(&r->dry, &room, make, unmake, r);
		if (rc == 1 || rc == LPO_ENOMEM)
			rc = refuse(r);
	}
	if (rc < 0)
		goto out;
	lpo_lpo_plan(r->trainer, &p);
	r->lo.cut = p.cut;
	r->lo.memory_bytes = 0;
	rc = remember(r);
out:
	lpo_cli_dry_end(cli);
	if (rc != 0 || cli->o.dry_run)
		return rc;
	lpo_traintool_close(r);
	r->parts.be = &cli->be;
	return 0;
}
