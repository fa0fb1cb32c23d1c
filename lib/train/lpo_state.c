/* The LPO trainer's state: weights, moments, counters, a half iteration. */
#include <string.h>

#include "lib/base/json.h"
#include "lib/train/lpo_priv.h"
#include "lib/train/param_state.h"

/* Name, memory and size of what a snapshot holds besides the LoRA. */
static int
each_blob(lpo_lpo *l, int (*fn)(lpo_snap *, const char *, void *, size_t),
    lpo_snap *s)
{
	size_t latent = sizeof(float) * (size_t)(l->count * l->o.prompts);
	int64_t rolled = l->phase == LPO_PH_ROLLOUT ? l->index : l->last;
	int rc;

	if ((rc = fn(s, "report", &l->report, sizeof(l->report))) < 0)
		return rc;
	if (rolled == 0)
		return 0;
	if ((rc = fn(s, "x", l->x, latent * (size_t)(rolled + 1))) < 0 ||
	    (rc = fn(s, "mu", l->mu, latent * (size_t)rolled)) < 0)
		return rc;
	return l->phase == LPO_PH_ROLLOUT ? 0 : fn(s, "score", l->score,
	    sizeof(float) * (size_t)(l->o.steps * l->o.prompts *
	    l->o.candidates));
}

static int
write_blob(lpo_snap *s, const char *name, void *data, size_t bytes)
{
	return lpo_snap_blob(s, name, data, bytes);
}

static int
read_blob(lpo_snap *s, const char *name, void *data, size_t bytes)
{
	return lpo_snap_read(s, name, data, bytes);
}

int
lpo_lpo_save(lpo_lpo *l, lpo_snap *s)
{
	json_t *j;
	char *text = NULL;
	int rc = LPO_ENOMEM;

	j = json_pack("{sI sI sI sI sI si sf sf}", "iteration",
	    (json_int_t)l->iteration, "index", (json_int_t)l->index,
	    "score_groups", (json_int_t)l->score_groups,
	    "optimiser_step", (json_int_t)l->optimiser_step, "bad_in_a_row",
	    (json_int_t)l->bad_in_a_row, "phase", (int)l->phase,
	    "threshold_scale", l->th.scale, "first_spread", l->first_spread);
	if (j == NULL) {
		rc = lpo_fail(l->ctx, LPO_ENOMEM, "no memory for a snapshot");
		goto out;
	}
	if ((text = lpo_json_dumps(l->ctx, j)) == NULL)
		goto out;
	if ((rc = lpo_snap_begin(s)) < 0 ||
	    (rc = lpo_param_state_save(l->params, s, "weights")) < 0 ||
	    (rc = each_blob(l, write_blob, s)) < 0)
		goto out;
	rc = lpo_snap_commit(s, text);
out:
	json_decref(j);
	lpo_free(text);
	return rc;
}

static int
counters(lpo_lpo *l, const lpo_snap *s)
{
	const char *text = lpo_snap_counters(s);
	json_int_t it, ix, step, bad, chunk = l->score_groups;
	json_t *j = NULL;
	double scale, spread;
	int phase, rc;

	if ((rc = lpo_json_load(l->ctx, &j, text, strlen(text),
	    "the saved counters")) < 0)
		return rc;
	rc = json_unpack(j, "{sI sI s?I sI sI si sF sF}", "iteration", &it,
	    "index", &ix, "score_groups", &chunk, "optimiser_step", &step,
	    "bad_in_a_row", &bad, "phase", &phase, "threshold_scale", &scale,
	    "first_spread", &spread);
	json_decref(j);
	if (rc < 0 || it < 0 || ix < 0 || step < 0 || bad < 0 || chunk < 1 ||
	    phase < LPO_PH_ROLLOUT || phase > LPO_PH_TRAIN)
		return lpo_fail(l->ctx, LPO_EFORMAT,
		    "the saved state's counters make no sense");
	l->iteration = it;
	/* chunks of another size: what a whole one of ours has is kept */
	l->index = phase == LPO_PH_SCORE ? ix * chunk / l->score_groups : ix;
	l->optimiser_step = step;
	l->bad_in_a_row = bad;
	l->phase = (enum lpo_lpo_phase)phase;
	l->th.scale = scale;
	l->first_spread = spread;
	l->npairs = -1;
	return 0;
}

int
lpo_lpo_restore(lpo_lpo *l, lpo_snap *s)
{
	int rc;

	lpo_lpo_settle(l);
	if ((rc = counters(l, s)) < 0 ||
	    (rc = lpo_param_state_restore(l->params, s, "weights")) < 0 ||
	    (rc = each_blob(l, read_blob, s)) < 0)
		return rc;
	lpo_lpo_choose_prompts(l);
	return 0;
}
