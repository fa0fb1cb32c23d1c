/*
 * How well the judge sees: it is shown pictures whose truth is known.  Prints
 * TAP; the exit status is the verdict.
 */
#include "judge_core.h"

#include <stdio.h>
#include <string.h>

#define N_PICTURES 1000
/* The first bits of an FNV sum: see pictures_are_the_same_everywhere. */
#define PICTURE_HASH 772318

static int test_no, failures;

struct means {
	double count, size, colour, shape, where, relation;
	double alignment, aesthetic;
	double white, calm, sharp, whole, truth;
	int n, n_size, n_where, n_relation;
};

static void
ok(int good, const char *what, double value, double lo, double hi)
{
	printf("%s %d - %s: %.3f in [%.2f, %.2f]\n", good ? "ok" : "not ok",
	    ++test_no, what, value, lo, hi);
	failures += !good;
}

static void
within(const char *what, double value, double lo, double hi)
{
	ok(value >= lo && value <= hi, what, value, lo, hi);
}

static void
add(struct means *m, const struct lpo_view *v, const struct lpo_verdict *r)
{
	m->n++;
	m->count += r->count;
	m->colour += r->colour;
	m->shape += r->shape;
	m->alignment += r->alignment;
	m->aesthetic += r->aesthetic;
	m->white += v->beauty.white;
	m->calm += v->beauty.calm;
	m->sharp += v->beauty.sharp;
	m->whole += v->beauty.whole;
	if (r->size >= 0.0) {
		m->size += r->size;
		m->n_size++;
	}
	if (r->where >= 0.0) {
		m->where += r->where;
		m->n_where++;
	}
	if (r->relation >= 0.0) {
		m->relation += r->relation;
		m->n_relation++;
	}
}

static void
finish(struct means *m, const char *name)
{
	double n = m->n;

	m->alignment /= n;
	m->aesthetic /= n;
	printf("# %-10s align %.3f (count %.2f size %.2f colour %.2f "
	    "shape %.2f place %.2f relation %.2f)\n", name, m->alignment,
	    m->count / n, m->size / m->n_size, m->colour / n, m->shape / n,
	    m->where / m->n_where, m->relation / m->n_relation);
	m->truth /= n;
	printf("# %-10s aesthetic %.2f (white %.2f calm %.2f sharp %.2f "
	    "whole %.2f), drawn as %.2f\n", "", m->aesthetic, m->white / n,
	    m->calm / n, m->sharp / n, m->whole / n, m->truth);
}

/* Shows N_PICTURES with n_wrong wrong facts, or (n_wrong < 0) each with the
 * caption of another picture. */
static struct means
show(const char *name, int ugly, int n_wrong)
{
	struct means m;

	memset(&m, 0, sizeof(m));
	for (uint64_t i = 0; i < N_PICTURES; i++) {
		struct lpo_rng r = lpo_rng_open(7, LPO_FOR_SELFTEST, i);
		struct lpo_rng q = lpo_rng_open(8, LPO_FOR_SELFTEST, i);
		struct lpo_spec told, drawn;
		struct lpo_scene scene;
		struct lpo_view view;
		struct lpo_verdict verdict;
		struct lpo_beauty truth;
		uint8_t rgb[LPO_WORLD_BYTES];

		lpo_world_spec(&r, &told, LPO_ALL);
		drawn = told;
		if (n_wrong < 0)
			lpo_world_spec(&q, &drawn, LPO_ALL);
		else
			lpo_world_corrupt(&q, &drawn, n_wrong);
		lpo_world_scene(&r, &drawn, &scene);
		scene.ugly = ugly;
		lpo_world_render(&r, &drawn, &scene, rgb, &truth);
		lpo_judge_look(rgb, &view);
		lpo_judge_rate(&view, &told, &verdict);
		add(&m, &view, &verdict);
		m.truth += lpo_world_aesthetic(&truth);
	}
	finish(&m, name);
	return m;
}

static void
captions_survive_parsing(void)
{
	char a[LPO_WORLD_CAPTION_BYTES], b[LPO_WORLD_CAPTION_BYTES];
	struct lpo_spec s, t;
	int same = 0;

	for (uint64_t i = 0; i < N_PICTURES; i++) {
		struct lpo_rng r = lpo_rng_open(9, LPO_FOR_SELFTEST, i);

		lpo_world_spec(&r, &s, LPO_ALL);
		lpo_world_caption(&s, a, sizeof(a));
		if (lpo_world_parse(a, &t) != 0)
			continue;
		lpo_world_caption(&t, b, sizeof(b));
		same += strcmp(a, b) == 0;
	}
	within("captions parsed and written again",
	    same / (double)N_PICTURES, 1.0, 1.0);
	within("'two red' is no caption", lpo_world_parse("two red", &t),
	    -1.0, -1.0);
	within("trailing words are no caption",
	    lpo_world_parse("a red circle here", &t), -1.0, -1.0);
}

/* Facts and figures of the draws, and one picture's sum: other bytes than
 * these on some machine would be another world. */
static void
pictures_are_the_same_everywhere(void)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (uint64_t i = 0; i < N_PICTURES; i++) {
		struct lpo_rng r = lpo_rng_open(10, LPO_FOR_SELFTEST, i);
		struct lpo_spec s;
		struct lpo_scene scene;
		struct lpo_beauty truth;
		uint8_t rgb[LPO_WORLD_BYTES];

		lpo_world_spec(&r, &s, LPO_ALL);
		lpo_world_scene(&r, &s, &scene);
		scene.ugly = lpo_world_ugly(&r);
		lpo_world_render(&r, &s, &scene, rgb, &truth);
		for (size_t k = 0; k < sizeof(rgb); k++)
			h = (h ^ rgb[k]) * UINT64_C(0x100000001b3);
	}
	within("hash of 1000 pictures, folded", (double)(h >> 44),
	    PICTURE_HASH, PICTURE_HASH);
}

int
main(void)
{
	struct means clean, one, two, any, noise, blur, muddy, cut;

	captions_survive_parsing();
	pictures_are_the_same_everywhere();
	clean = show("clean", 0, 0);
	one = show("one wrong", 0, 1);
	two = show("two wrong", 0, 2);
	any = show("any other", 0, -1);
	noise = show("noise", LPO_NOISE, 0);
	blur = show("blur", LPO_BLUR, 0);
	muddy = show("mid-tone", LPO_MUDDY, 0);
	cut = show("cut off", LPO_CUT, 0);
	within("alignment of clean pictures", clean.alignment, 0.97, 1.0);
	within("alignment, one wrong fact", one.alignment, 0.72, 0.82);
	within("alignment, two wrong facts", two.alignment, 0.48, 0.64);
	within("alignment with another caption", any.alignment, 0.2, 0.4);
	within("alignment of noisy pictures", noise.alignment, 0.90, 1.0);
	within("alignment of mid-tone pictures", muddy.alignment, 0.95, 1.0);
	within("alignment of blurred pictures", blur.alignment, 0.85, 1.0);
	within("aesthetic of clean pictures", clean.aesthetic, 9.3, 10.0);
	within("aesthetic of noisy pictures", noise.aesthetic, 4.0, 8.0);
	within("aesthetic of blurred pictures", blur.aesthetic, 7.0, 8.6);
	within("aesthetic of mid-tone pictures", muddy.aesthetic, 6.5, 8.2);
	within("aesthetic of cut off pictures", cut.aesthetic, 7.5, 8.9);
	printf("1..%d\n", test_no);
	return failures != 0;
}
