/*
 * Sets of built-in scorers: what a spec means, tables side by side, a stop,
 * allocations failing, and that lrm: shows the reward model what it should.
 * Figures are compared with others' in tests/golden/scorers.c.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/score/scorer.h"
#include "lib/train/encode.h"
#include "lib/train/lrm_score.h"
#include "tests/tap.h"

#define CLIP "tests/golden/clip"
#define HEAD CLIP "/head.safetensors"
#define MODEL "demo/model"

static const char *const prompts[] = { "a b", "cab c", "a b" };
static const char *const files[] = { CLIP "/img/0.png", CLIP "/img/1.jpg",
    CLIP "/img/2.webp" };

static int
get(void *arg, int64_t i, struct lpo_score_item *it)
{
	lpo_ctx *c = arg;
	char *bytes = NULL;
	int rc = lpo_file_read(c, &bytes, &it->size, files[i % 3], 1 << 20);

	if (rc < 0)
		return rc;
	it->bytes = (uint8_t *)bytes;
	it->prompt = lpo_strdup(c, prompts[i % 3]);
	it->name = lpo_strdup(c, files[i % 3]);
	return it->prompt == NULL || it->name == NULL ? LPO_ENOMEM : 0;
}

/* The scorers of `spec`, called a, b, ..., on n pictures. */
static int
score(lpo_ctx *c, lpo_backend *be, struct lpo_scores *out,
    const char *const *spec, int64_t n)
{
	struct lpo_scorer_opts o = { .be = be, .dtype = LPO_F32,
	    .model = MODEL };
	struct lpo_score_source src = { .arg = c, .n = n, .get = get };
	lpo_scorers *set = NULL;
	char name[2] = "a";
	int rc = lpo_scorers_new(c, &set, &o);

	for (; *spec != NULL && rc == 0; spec++, name[0]++)
		rc = lpo_scorers_add(set, name, *spec);
	if (rc == 0)
		rc = lpo_scorers_run(set, out, &src);
	lpo_scorers_free(set);
	return rc;
}

static void
test_specs(lpo_ctx *c, lpo_backend *be)
{
	static const char *const none[] = { "", "clip", "clip=x", "clips:x",
	    "./clip:x", ":x", "judge" };
	const struct lpo_scorer_class *k;
	struct lpo_scores s = { .n = 0 };
	const char *arg;
	size_t i;
	int n;

	k = lpo_scorer_find("aesthetic:a,b:c", &arg);
	ok(k != NULL && strcmp(k->kind, "aesthetic") == 0 &&
	    strcmp(arg, "a,b:c") == 0, "kind and argument");
	for (i = 0; i < sizeof(none) / sizeof(*none); i++)
		ok(lpo_scorer_find(none[i], &arg) == NULL, "'%s' is none",
		    none[i]);
	for (n = 0; (k = lpo_scorer_at(n)) != NULL; n++)
		ok(k->column[0] != NULL && k->inputs != NULL, "%s:%s",
		    k->kind, k->arg);
	ok(score(c, be, &s, (const char *[]){ "judge", NULL }, 1) ==
	    LPO_EINVAL, "%s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
test_append(lpo_ctx *c)
{
	struct lpo_scores a = { .n = 0 }, b;
	int64_t i;
	int good;

	lpo_scores_new(c, &b, (const char *[]){ "x", "y", "z" }, 3, 2);
	for (i = 0; i < 6; i++)
		b.value[i] = (double)i;
	good = lpo_scores_append(c, &a, &b, 1, 2) == 0 && a.names == 2 &&
	    lpo_scores_append(c, &a, &b, 0, 1) == 0 && a.names == 3;
	ok(good && strcmp(a.name[0], "y") == 0 && strcmp(a.name[2], "x") == 0 &&
	    a.value[0] == 1 && a.value[1] == 2 && a.value[2] == 0 &&
	    a.value[3] == 4 && a.value[5] == 3, "columns side by side");
	lpo_scores_free(&a);
	lpo_scores_free(&b);
}

static void
test_failing(lpo_ctx *c, lpo_backend *be)
{
	static const volatile sig_atomic_t stop = 1;
	static const char *const spec[] = { "clip:" CLIP,
	    "aesthetic:" HEAD "," CLIP, NULL };
	struct lpo_scores s = { .n = 0 };
	int err = -1, bad = 0;
	long n;

	for (n = 0; err != 0 && n < 100000; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		err = score(c, be, &s, spec, 3);
		lpo_alloc_fail_at(-1);
		if (err != 0 && err != LPO_ENOMEM && bad++ == 0)
			printf("# allocation %ld: %d: %s\n", n, err,
			    lpo_errmsg(c));
	}
	ok(err == 0 && bad == 0, "allocations failing, up to the %ldth", n);
	lpo_clear(c);
	lpo_scores_free(&s);
	lpo_ctx_stop_flag(c, &stop);
	ok(score(c, be, &s, spec, 3) == LPO_ESTOP, "a stop");
	lpo_ctx_stop_flag(c, NULL);
	lpo_clear(c);
}

/* ------------------------------------------------------------------- lrm: */

/* The scaled means of the pictures' moments, as lpo-encode has them. */
static int
latents(lpo_ctx *c, lpo_backend *be, float *out, int64_t px, int64_t *side)
{
	struct lpo_encoder_opts o = { .size_px = px, .dtype = LPO_NPY_F4 };
	struct lpo_encode_item it[3] = { { .data = NULL } };
	lpo_encoder *e = NULL;
	lpo_vae *vae = NULL;
	int64_t shape[3], i, k, hw;
	struct lpo_npy npy;
	char *bytes[3] = { NULL };
	size_t size;
	float *moments = NULL;
	int rc;

	if ((rc = lpo_vae_load(c, be, &vae, MODEL "/vae", LPO_F32,
	    LPO_VAE_ENCODER)) < 0 ||
	    (rc = lpo_encoder_new(c, &e, be, vae, LPO_F32, &o)) < 0)
		goto out;
	lpo_encoder_shape(e, shape);
	*side = shape[1];
	hw = shape[1] * shape[2];
	moments = malloc((size_t)(shape[0] * hw) * sizeof(*moments));
	for (i = 0; i < 3 && rc == 0; i++) {
		rc = lpo_file_read(c, &bytes[i], &size, files[i], 1 << 20);
		it[i].data = (uint8_t *)bytes[i];
		it[i].bytes = (int64_t)size;
	}
	if (rc < 0 || (rc = lpo_encoder_run(e, it, 3)) < 0)
		goto out;
	for (i = 0; i < 3; i++) {
		if ((rc = lpo_npy_parse(c, &npy, it[i].npy,
		    (size_t)it[i].npy_bytes, "moments")) < 0)
			goto out;
		lpo_npy_f32(moments, &npy);
		for (k = 0; k < 4 * hw; k++)
			out[i * 4 * hw + k % hw * 4 + k / hw] = moments[k] *
			    lpo_vae_cfg(vae)->scaling_factor;
	}
out:
	for (i = 0; i < 3; i++)
		lpo_free(bytes[i]);
	free(moments);
	lpo_encoder_free(e);
	lpo_vae_free(vae);
	return rc;
}

static int
by_hand(lpo_ctx *c, lpo_backend *be, float score_[3], const char *dir,
    int64_t px)
{
	static const int64_t which[3] = { 0, 1, 2 }, t[3] = { 1, 1, 1 };
	float *x = malloc(3 * 4 * 64 * 64 * sizeof(*x));
	lpo_lrm_scorer *s = NULL;
	lpo_lrm_texts *texts = NULL;
	lpo_lrm *m = NULL;
	int64_t side = 0;
	int rc;

	if ((rc = latents(c, be, x, px, &side)) < 0 ||
	    (rc = lpo_lrm_open(c, be, &m, dir, MODEL, LPO_F32, NULL)) < 0 ||
	    (rc = lpo_lrm_texts_new(c, &texts, m, prompts, 3)) < 0 ||
	    (rc = lpo_lrm_scorer_new(c, &s, m, 1, 3, side, side, NULL)) < 0)
		goto out;
	rc = lpo_lrm_scorer_score(s, score_, NULL, texts, x, which, t, 3);
out:
	free(x);
	lpo_lrm_scorer_free(s);
	lpo_lrm_texts_free(texts);
	lpo_lrm_free(m);
	return rc;
}

static void
test_lrm(lpo_ctx *c, lpo_backend *be)
{
	char tmp[] = "/tmp/lpo-scorers-XXXXXX", dir[64], spec[80];
	struct lpo_scores s = { .n = 0 };
	float want[3] = { 0 };
	lpo_lrm *m = NULL;
	int i, same = 0;

	if (mkdtemp(tmp) == NULL)
		return;
	snprintf(dir, sizeof(dir), "%s/lrm", tmp);
	snprintf(spec, sizeof(spec), "lrm:%s", dir);
	if (lpo_lrm_new(c, be, &m, MODEL, LPO_F32, NULL, NULL, 3) < 0 ||
	    lpo_lrm_load_text(m) < 0 || lpo_lrm_load_unet(m) < 0 ||
	    lpo_lrm_save(m, dir, LPO_F32) < 0 ||
	    score(c, be, &s, (const char *[]){ spec, NULL }, 3) < 0 ||
	    by_hand(c, be, want, dir, 32) < 0) {
		ok(0, "lrm: %s", lpo_errmsg(c));
	} else {
		for (i = 0; i < 3; i++)
			same += s.value[i] == (double)want[i];
		ok(same == 3 && want[0] != want[1], "lrm: the scaled mean at "
		    "t = 1, as by hand: %g %g %g", s.value[0], s.value[1],
		    s.value[2]);
	}
	lpo_scores_free(&s);
	lpo_lrm_free(m);
	lpo_clear(c);
	if (lpo_rmtree(c, tmp) < 0)
		ok(0, "%s", lpo_errmsg(c));
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();
	lpo_backend be;

	if (c == NULL || lpo_cpu_open(&be, LPO_ISA_AUTO, 2) < 0)
		return 1;
	test_specs(c, &be);
	test_append(c);
	test_failing(c, &be);
	test_lrm(c, &be);
	lpo_cpu_close(&be);
	lpo_ctx_free(c);
	return done_testing();
}
