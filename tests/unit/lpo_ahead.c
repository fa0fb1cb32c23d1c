/*
 * Work of the LPO trainer that is started ahead: evaluations and scorings in
 * two halves, and a trainer that has the next piece begun beside one that has
 * not.
 */
#include "tests/unit/lpo_rig.h"

/* ------------------------------------------------------------- in halves */

/* Refused, and no harm done. */
static int
refused(int rc)
{
	lpo_clear(ctx);
	return rc == LPO_EINVAL;
}

/* Two evaluations under way beside one after the other; then another's. */
static void
policy_in_halves(void)
{
	struct lpo_lpo_options o = options();
	const int64_t t[2] = { 501, 251 }, who[2] = { 1, 0 };
	struct rig a = { NULL };
	lpo_policy *p, *other;
	size_t n;
	float *x, *y[4];
	int i;

	if (make(&a, 0, &o) < 0 || to_training(a.l) < 0)
		goto out;
	lpo_lpo_settle(a.l);
	p = a.l->train;
	other = a.l->rollout;
	x = lpo_lpo_at(a.l->x, a.l, 1, 0);	/* two latents */
	n = (size_t)(2 * a.l->count);
	for (i = 0; i < 4; i++)
		y[i] = calloc(n, sizeof(float));
	lpo_lpo_advance(a.l);		/* policy and reference are two now */
	lpo_lpo_settle(a.l);
	lpo_policy_eval(p, y[0], texts, x, t, who, 2, LPO_LORA_OFF);
	lpo_policy_eval(p, y[1], texts, x, t, who, 2, 0);
	lpo_policy_start(p, texts, x, t, who, 2, LPO_LORA_OFF);
	lpo_policy_start(p, texts, x, t, who, 2, 0);
	ok(refused(lpo_policy_start(p, texts, x, t, who, 2, 0)) &&
	    refused(lpo_policy_eval(p, y[2], texts, x, t, who, 2, 0)) &&
	    refused(lpo_policy_backward(p, x, 2)),
	    "a third evaluation is refused, eval and backward beside two");
	lpo_policy_finish(p, y[2]);
	lpo_policy_finish(p, y[3]);
	ok(memcmp(y[0], y[2], n * 4) == 0 && memcmp(y[1], y[3], n * 4) == 0 &&
	    memcmp(y[0], y[1], n * 4) != 0,
	    "two evaluations in halves have the bits of whole ones");
	ok(refused(lpo_policy_finish(p, y[3])),
	    "what was not started does not finish");
	/* inputs there early, alone and with another network between */
	lpo_policy_ready(p, texts, t, who, 2);
	lpo_policy_eval(p, y[2], texts, x, t, who, 2, 0);
	lpo_policy_ready(p, texts, t, who, 2);
	lpo_policy_eval(other, y[0], texts, x, who, who, 2, 0);
	lpo_policy_eval(p, y[3], texts, x, t, who, 2, 0);
	ok(memcmp(y[1], y[2], n * 4) == 0 && memcmp(y[1], y[3], n * 4) == 0,
	    "inputs set ahead: the same bits, also after another network");
	for (i = 0; i < 4; i++)
		free(y[i]);
out:
	finish(&a, NULL, "policy in halves");
}

static void
scorer_in_halves(void)
{
	struct lpo_lpo_options o = options();
	const int64_t t[4] = { 501, 501, 251, 251 }, who[2] = { 1, 0 };
	float *x, whole[4], part[4], v[4096], w[4096];
	struct rig a = { NULL };
	lpo_lrm_scorer *s;
	size_t bytes;

	o.cut.scoring = 1;
	if (make(&a, 0, &o) < 0 || to_scores(a.l) < 0)
		goto out;
	lpo_lpo_settle(a.l);
	s = a.l->scorer;
	x = a.l->x;
	bytes = (size_t)(4 * lpo_lrm_feature_dim(lrm)) * sizeof(float);
	ok(bytes <= sizeof(v) && lpo_lrm_scorer_score(s, whole, v, lrm_texts,
	    x, who, t, 2) == 0, "scored whole");
	lpo_lrm_scorer_start(s, lrm_texts, x, who, t, 1);
	lpo_lrm_scorer_start(s, lrm_texts, x + 2 * a.l->count, who + 1, t + 2,
	    1);
	ok(refused(lpo_lrm_scorer_start(s, lrm_texts, x, who, t, 1)) &&
	    refused(lpo_lrm_scorer_score(s, part, NULL, lrm_texts, x, who, t,
	    1)), "a third scoring is refused, and a whole one beside two");
	lpo_lrm_scorer_finish(s, part, w);
	lpo_lrm_scorer_finish(s, part + 2, w + bytes / 2 / sizeof(*w));
	ok(memcmp(whole, part, sizeof(part)) == 0 && memcmp(v, w, bytes) == 0,
	    "scored in halves: the same bits");
	ok(refused(lpo_lrm_scorer_finish(s, part, NULL)) &&
	    refused(lpo_lrm_scorer_start(s, lrm_texts, x, who, t, 2)),
	    "nothing to finish; more than a chunk is refused");
out:
	finish(&a, NULL, "scorer in halves");
}

/* ----------------------------------------------------------------- ahead */

/* Many small pieces: of 8 pairs at most, batches of 3 in parts of 2. */
static struct lpo_lpo_options
small_pieces(void)
{
	struct lpo_lpo_options o = options();

	o.batch = 3;
	o.cut = (struct lpo_lpo_cut){ 1, 2, 3, LPO_SEGMENTS_AUTO };
	return o;
}

/* What a snapshot would hold of the rollout and its scores. */
static int
same_state(const lpo_lpo *a, const lpo_lpo *b)
{
	int64_t rolled = a->phase == LPO_PH_ROLLOUT ? a->index : a->last;
	size_t row = (size_t)(PROMPTS * a->count) * sizeof(float);

	return a->phase == b->phase && a->index == b->index &&
	    memcmp(&a->report, &b->report, sizeof(a->report)) == 0 &&
	    memcmp(a->x, b->x, (size_t)(rolled + 1) * row) == 0 &&
	    memcmp(a->mu, b->mu, (size_t)rolled * row) == 0 &&
	    memcmp(a->score, b->score, (size_t)(STEPS * PROMPTS * K) *
	    sizeof(float)) == 0;
}

/*
 * One trainer works ahead and one does not.  After each piece they are the
 * same, and a third one goes on from the first's snapshot to the same end.
 */
static void
ahead(int full)
{
	const char *what = full ? "whole UNet" : "LoRA";
	struct lpo_lpo_options o = small_pieces();
	char dir[] = "/tmp/lpo-train-XXXXXX";
	struct rig a = { NULL }, b = { NULL }, c = { NULL }, end = { NULL };
	int same = 1, resumed_same = 1, started = 0, pieces = 0;

	if (mkdtemp(dir) == NULL || make_two(&a, &b, full, &o) < 0 ||
	    make(&end, full, &o) < 0 || iterations(end.l, 2) < 0)
		goto out;
	a.l->ahead = 1;
	b.l->ahead = 0;
	while (lpo_lpo_iteration(a.l) < 1) {
		if (lpo_lpo_advance(a.l) < 0 || lpo_lpo_advance(b.l) < 0 ||
		    in_folder(a.l, dir, lpo_lpo_save) < 0 ||
		    make(&c, full, &o) < 0 ||
		    in_folder(c.l, dir, lpo_lpo_restore) < 0)
			goto out;
		started |= a.l->scoring > 0 ? 1 : 0;
		started |= a.l->scoring == 0 ? 4 : 0;
		started |= a.l->referring >= 0 && a.l->policing >= 0 ? 2 : 0;
		same &= same_state(a.l, b.l) && equal(a.l, b.l);
		c.l->ahead = pieces++ % 2;
		resumed_same &= iterations(c.l, 2) >= 0 &&
		    equal(c.l, end.l);
		drop(&c);
	}
	ok(started == 7, "%s: chunks and batches are begun ahead", what);
	ok(same, "%s: after each of %d pieces the state is the same", what,
	    pieces);
	ok(resumed_same, "%s: and goes on from any to the same bits", what);
	ok(iterations(a.l, 2) >= 0 && equal(a.l, end.l), "%s: and does itself",
	    what);
out:
	finish(&a, &b, what);
	drop(&c);
	drop(&end);
	lpo_rmtree(ctx, dir);
}

/* A check between any two pieces takes the networks away. */
static void
ahead_and_checked(void)
{
	struct lpo_lpo_options o = small_pieces();
	struct lpo_lpo_check c;
	struct rig a = { NULL }, b = { NULL };
	int rc = 0;

	if (make_two(&a, &b, 0, &o) < 0)
		goto out;
	a.l->ahead = 1;
	while (rc >= 0 && lpo_lpo_iteration(a.l) < 2)
		if ((rc = lpo_lpo_advance(a.l)) >= 0)
			rc = lpo_lpo_check(a.l, &c);
	ok(rc >= 0 && iterations(b.l, 2) >= 0 && equal(a.l, b.l),
	    "a check after each piece: the same bits");
out:
	finish(&a, &b, "ahead and checked");
}

/* The n-th convolution from now on fails, once. */
static struct {
	const struct lpo_kernels *real;
	struct lpo_kernels table;
	int64_t left;
} fault;

static int
faulty_conv(lpo_backend *b, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s, void *scratch)
{
	return fault.left-- == 0 ? LPO_ENOMEM : fault.real->conv_fwd(b, dt, y,
	    x, w, bias, residual, s, scratch);
}

/* An error leaves nothing under way, and the piece can be done again. */
static void
ahead_and_failing(void)
{
	struct lpo_lpo_options o = small_pieces();
	struct rig a = { NULL }, b = { NULL };
	int64_t n, step;
	int failed = 0, same = 1, settled = 1;

	fault.real = be.k;
	fault.table = *be.k;
	fault.table.conv_fwd = faulty_conv;
	fault.left = INT64_MAX;
	be.k = &fault.table;
	if (make(&b, 0, &o) < 0 || iterations(b.l, 1) < 0)
		goto out;
	step = INT64_MAX - fault.left;	/* convolutions of an iteration */
	for (n = 0; n < 17; n++) {
		if (make(&a, 0, &o) < 0)
			goto out;
		a.l->ahead = 1;
		fault.left = n * step / 17;
		while (lpo_lpo_iteration(a.l) < 1) {
			if (lpo_lpo_advance(a.l) >= 0)
				continue;
			failed++;
			settled &= lpo_errcode(ctx) == LPO_ENOMEM &&
			    a.l->scoring < 0 && a.l->referring < 0 &&
			    a.l->policing < 0;
			lpo_clear(ctx);
		}
		same &= equal(a.l, b.l);
		drop(&a);
	}
	ok(failed >= 16 && settled, "%d failures on the way leave nothing "
	    "begun", failed);
	ok(same, "and what is done again has the same bits");
out:
	finish(&a, &b, "ahead and failing");
	be.k = fault.real;
}

static void
tests(void)
{
	policy_in_halves();
	scorer_in_halves();
	ahead(0);
	ahead(1);
	ahead_and_checked();
	ahead_and_failing();
}

int
main(void)
{
	return each_device(tests);
}
