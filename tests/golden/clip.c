/* CLIP text encoders against transformers. */
#include "lib/model/clip.h"
#include "tests/golden/golden.h"

static const int32_t ids[3][7] = {
	{ 90, 5, 17, 3, 91, 91, 91 }, { 90, 44, 91, 0, 0, 0, 0 },
	{ 90, 1, 2, 3, 4, 5, 91 }
};

/* The other spelling of the keys; old files' buffer is not ours to test. */
static int
add_prefix(char key[256], int *rank, int64_t shape[4])
{
	char buf[256];

	(void)rank;
	(void)shape;
	if (strncmp(key, "text_", 5) == 0)
		return 1;
	snprintf(buf, sizeof(buf), "text_model.%.200s", key);
	strcpy(key, buf);
	return 1;
}

static int
drop_prefix(char key[256], int *rank, int64_t shape[4])
{
	char buf[256];

	(void)rank;
	(void)shape;
	snprintf(buf, sizeof(buf), "module.%s", strncmp(key, "text_model.",
	    11) == 0 ? key + 11 : key);
	strcpy(key, buf);
	return 1;
}

static void
name_of(char out[300], const char *key)
{
	snprintf(out, 300, "%s%.255s", strncmp(key, "text_", 5) == 0 ? "" :
	    "text_model.", key);
}

struct rec {
	lpo_tape *t;
	lpo_var *ids, *eos;
	struct lpo_clip_out o;
};

static int
run(struct golden *g, struct rec *r, lpo_clip *m)
{
	struct lpo_plan plan;
	int32_t at[3];
	int i, rc;

	if ((r->t = lpo_tape_new(g->c, &g->be, LPO_F32, 3)) == NULL)
		return LPO_ENOMEM;
	r->ids = lpo_input(r->t, 3, 7, 1, 1, LPO_I32, 0);
	r->eos = lpo_input(r->t, 3, 1, 1, 1, LPO_I32, 0);
	lpo_clip_fwd(r->t, m, r->ids, r->eos, &r->o);
	lpo_output(r->t, r->o.last_hidden, 1);
	lpo_output(r->t, r->o.penultimate, 1);
	lpo_output(r->t, r->o.pooled, r->o.projected == NULL);
	lpo_output(r->t, r->o.projected, 1);
	for (i = 0; i < 3; i++)
		at[i] = (int32_t)(i * 7 + lpo_clip_eos(m, ids[i], 7));
	if ((rc = lpo_tape_plan(r->t, 1, &plan)) < 0 ||
	    (rc = lpo_tape_commit(r->t, NULL)) < 0 ||
	    (rc = lpo_var_set(r->t, r->ids, ids)) < 0 ||
	    (rc = lpo_var_set(r->t, r->eos, at)) < 0 ||
	    (rc = lpo_tape_forward(r->t, 0)) < 0 ||
	    (rc = g_set(r->t, r->o.last_hidden, "d_last_hidden", 1, 1,
	    1)) < 0 ||
	    (rc = g_set(r->t, r->o.penultimate, "d_penultimate", 1, 1,
	    1)) < 0 ||
	    (rc = r->o.projected != NULL ?
	    g_set(r->t, r->o.projected, "d_projected", 1, 1, 1) :
	    g_set(r->t, r->o.pooled, "d_pooled", 1, 1, 1)) < 0)
		return rc;
	return lpo_tape_backward(r->t);
}

static void
test_clip(const char *name, int (*change)(char *, int *, int64_t *),
    const char *level)
{
	struct golden g;
	struct rec r = { 0 };
	lpo_clip *m = NULL;

	if (!g_open(&g, name, level))
		return;
	if (g_write_model(&g, g.st, "model", change) < 0 ||
	    lpo_clip_load(g.c, &g.be, &m, g.tmp, LPO_F32) < 0 ||
	    lpo_params_train_all(lpo_clip_params(m)) < 0 ||
	    run(&g, &r, m) < 0) {
		ok(0, "%s: %s", name, lpo_errmsg(g.c));
	} else {
		ok(lpo_clip_eos(m, ids[0], 7) == 4 &&
		    lpo_clip_eos(m, ids[1], 7) == 2, "%s: first EOS", name);
		g_check(&g, r.t, r.o.last_hidden, "last_hidden", 1, 0);
		g_check(&g, r.t, r.o.penultimate, "penultimate", 1, 0);
		if (r.o.projected != NULL)
			g_check(&g, r.t, r.o.projected, "projected", 1, 0);
		else
			g_check(&g, r.t, r.o.pooled, "pooled", 1, 0);
		g_check_grads(&g, lpo_clip_params(m), name_of);
	}
	lpo_tape_free(r.t);
	lpo_clip_free(m);
	g_close(&g);
}

/*
 * The published models' configurations say eos_token_id 2, which is wrong:
 * transformers then takes the largest id's place, the first of equal ones.
 */
static void
test_old_eos(const char *name)
{
	static const int32_t other[7] = { 90, 5, 2, 91, 3, 91, 0 };
	char text[4096], *at;
	lpo_clip *m = NULL;
	struct golden g;

	if (!g_open(&g, name, "auto"))
		return;
	snprintf(text, sizeof(text), "%s", lpo_st_meta(g.st, "config"));
	if ((at = strstr(text, "\"eos_token_id\": 91")) != NULL)
		memcpy(at, "\"eos_token_id\": 2 ", 18);
	ok(at != NULL && g_write_model(&g, g.st, "model", NULL) == 0 &&
	    g_write_text(g.c, g.tmp, "config.json", text) == 0 &&
	    lpo_clip_load(g.c, &g.be, &m, g.tmp, LPO_F32) == 0 &&
	    lpo_clip_eos(m, ids[0], 7) == 4 &&
	    lpo_clip_eos(m, ids[1], 7) == 2 && lpo_clip_eos(m, other, 7) == 3,
	    "%s: EOS where the configuration says 2", name);
	lpo_clip_free(m);
	g_close(&g);
}

int
main(void)
{
	test_old_eos("clip");
	test_clip("clip", NULL, "auto");
	test_clip("clip_projection", NULL, "auto");
	test_clip("clip", add_prefix, "portable");
	test_clip("clip_projection", drop_prefix, "portable");
	test_clip("clip", NULL, "cuda");
	test_clip("clip_projection", NULL, "cuda");
	return done_testing();
}
