/* lpo-lrm: saved state, and going on from it. */
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/db.h"
#include "tools/lrm.h"

#define SMALL_STATE	((int64_t)256 << 20)	/* bytes */

int
lpo_lrmtool_save(struct lrm_run *r)
{
	struct lpo_lrm_counters n;
	char text[320];
	int rc;

	lpo_lrm_trainer_counters(r->trainer, &n);
	snprintf(text, sizeof(text), "{\"step\":%lld,\"update\":%lld,"
	    "\"skipped\":%lld,\"skipped_in_a_row\":%lld,\"used\":%lld,"
	    "\"crc32c\":%lu,\"best\":%.17g,\"best_step\":%lld,"
	    "\"eval_step\":%lld}", (long long)n.step, (long long)n.update,
	    (long long)n.skipped, (long long)n.skipped_in_a_row,
	    (long long)r->safe_used, (unsigned long)r->safe_crc, r->best,
	    (long long)r->best_step, (long long)r->eval_step);
	/* figures first: a step that is saved is not done again */
	if ((rc = lpo_db_flush(lpo_cli_db(r->cli))) < 0 ||
	    (rc = lpo_snap_begin(r->snap)) < 0 ||
	    (rc = lpo_lrm_trainer_save(r->trainer, r->snap)) < 0)
		return rc;
	r->saved_step = n.step;
	return lpo_snap_commit(r->snap, text);
}

/*
 * Out of pairs, or five steps that were not finite: saved.  Stopped: only what
 * is small, the rest would take longer than the two seconds a signal leaves.
 */
int
lpo_lrmtool_save_last(struct lrm_run *r, int why)
{
	struct lpo_lrm_train_plan p;
	struct lpo_lrm_counters n;

	if (r->snap == NULL)
		return why;
	lpo_lrm_trainer_counters(r->trainer, &n);
	lpo_lrm_trainer_plan(r->trainer, &p);
	if (n.step > r->saved_step && (why != LPO_ESTOP ||
	    12 * p.parameters < SMALL_STATE))
		lpo_lrmtool_save(r);	/* the first failure's text stays */
	return why;
}

/* Folders of earlier bests, once no snapshot speaks of them. */
int
lpo_lrmtool_sweep(struct lrm_run *r)
{
	char **names = NULL, *path, keep[32];
	int64_t i, n = 0;
	int rc;

	snprintf(keep, sizeof(keep), "best-%09lld", (long long)r->best_step);
	if ((rc = lpo_dir_list(r->cli->ctx, &names, &n,
	    lpo_state_dir(r->state))) < 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++) {
		if (strncmp(names[i], "best-", 5) != 0 ||
		    strcmp(names[i], keep) == 0)
			continue;
		path = lpo_state_file(r->cli->ctx, r->state, names[i]);
		rc = path == NULL ? LPO_ENOMEM : lpo_rmtree(r->cli->ctx,
		    path);
		lpo_free(path);
	}
	lpo_names_free(names, n);
	return rc;
}

static int
read_counters(struct lrm_run *r, struct lpo_lrm_counters *n, int64_t *used,
    int64_t *crc)
{
	const char *text = lpo_snap_counters(r->snap);
	lpo_ctx *c = r->cli->ctx;
	json_t *j = NULL;
	int rc;

	if ((rc = lpo_json_load(c, &j, text, strlen(text), "counters")) < 0)
		return rc;
	if ((rc = lpo_json_need_int(c, &n->step, j, "step")) < 0 ||
	    (rc = lpo_json_need_int(c, &n->update, j, "update")) < 0 ||
	    (rc = lpo_json_need_int(c, &n->skipped, j, "skipped")) < 0 ||
	    (rc = lpo_json_need_int(c, &n->skipped_in_a_row, j,
	    "skipped_in_a_row")) < 0 ||
	    (rc = lpo_json_need_int(c, used, j, "used")) < 0 ||
	    (rc = lpo_json_need_int(c, crc, j, "crc32c")) < 0 ||
	    (rc = lpo_json_need_real(c, &r->best, j, "best")) < 0 ||
	    (rc = lpo_json_need_int(c, &r->best_step, j, "best_step")) < 0 ||
	    (rc = lpo_json_need_int(c, &r->eval_step, j, "eval_step")) < 0)
		lpo_fail_prefix(c, "the saved counters");
	json_decref(j);
	return rc;
}

/* Read the pairs used before, and see that they are the same ones. */
static int
skip_used(struct lrm_run *r, int64_t used, uint32_t crc)
{
	struct lpo_sample s;
	int rc = 0;

	while (r->used < used && rc == 0) {
		memset(&s, 0, sizeof(s));
		if ((rc = lpo_lrmtool_next(r, &s)) == 0)
			r->used++;
		lpo_sample_clear(&s);
		lpo_cli_progress(r->cli, "skip", r->used, used, "pairs",
		    NULL);
		if (rc == 0 && lpo_ctx_stopped(r->cli->ctx))
			rc = lpo_fail(r->cli->ctx, LPO_ESTOP, "stopped");
	}
	lpo_cli_progress_end(r->cli);
	if (rc == 1 || (rc == 0 && lpo_shards_crc32c(r->in) != crc))
		rc = lpo_fail(r->cli->ctx, LPO_EFORMAT, "these are not the "
		    "pairs that the first %lld steps used: give the same, or "
		    "start again with --fresh",
		    (long long)(used / r->t.batch));
	return rc;
}

int
lpo_lrmtool_resume(struct lrm_run *r)
{
	lpo_cli *cli = r->cli;
	struct lpo_lrm_counters n;
	int64_t used, crc;
	int rc;

	if ((rc = lpo_snap_open(cli->ctx, &r->snap, lpo_state_dir(r->state),
	    lpo_cli_run(cli))) < 0 || !lpo_snap_found(r->snap))
		return rc;
	if ((rc = read_counters(r, &n, &used, &crc)) < 0 ||
	    (rc = lpo_lrm_trainer_restore(r->trainer, r->snap)) < 0)
		return rc;
	lpo_lrm_trainer_set_counters(r->trainer, &n);
	r->saved_step = n.step;
	r->safe_used = used;
	r->safe_crc = (uint32_t)crc;
	lpo_cli_note(cli, "goes on after step %lld of %lld",
	    (long long)n.step, (long long)r->t.steps);
	return skip_used(r, used, (uint32_t)crc);
}
