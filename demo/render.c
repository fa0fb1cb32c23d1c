/*
 * demo-world: renders the demo's training set, preferences and prompts.
 */
#include "world.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PATH_BYTES 4096

struct options {
	int64_t n;
	uint64_t seed;
	int wrong_percent, ugly_percent;
	enum lpo_split split;
	const char *output;
};

static const char usage_text[] =
"usage: demo-world train-set -n N -o DIR [--seed S] [--wrong PERCENT]\n"
"                            [--ugly PERCENT]\n"
"       demo-world prefs     -n N -o DIR [--seed S] [--split NAME] "
"[--ugly PERCENT]\n"
"       demo-world prompts   -n N [-o FILE] [--seed S] [--split NAME]\n"
"\n"
"train-set  DIR/images.u8 (N x 32 x 32 x 3 bytes) and DIR/captions.txt, of\n"
"           which part is wrong or ugly: what the base model is trained on\n"
"prefs      DIR/prefs.csv and DIR/img/*.png: N pairs, labelled by a noisy\n"
"           \"human\", with the three gaps that MPCF filters on\n"
"prompts    a CSV file of captions, column 'prompt'\n"
"\n"
"  -n, --n N          how many images, pairs (also --pairs) or prompts\n"
"  -o, --output PATH  where to; prompts go to standard output without it\n"
"      --seed S       default 1; draws of different seeds are independent\n"
"      --split NAME   train (default), tune, heldout or all: which captions\n"
"                     may occur; the first three share none\n"
"      --wrong P      percent of captions with wrong facts, default 40\n"
"      --ugly P       percent of ugly images, default 35 (prefs: 40)\n"
"  -h, --help\n";

static int
fail(const char *what, const char *path)
{
	fprintf(stderr, "demo-world: cannot %s '%s': %s\n", what, path,
	    strerror(errno));
	return -1;
}

static int
make_folder(const char *path)
{
	if (mkdir(path, 0777) != 0 && errno != EEXIST)
		return fail("make", path);
	return 0;
}

/* Closes f; 0 only if all that was written has arrived. */
static int
finish(FILE *f, const char *path)
{
	int bad = ferror(f);

	if (fclose(f) != 0 || bad)
		return fail("write", path);
	return 0;
}

static FILE *
create(const char *folder, const char *name, char *path)
{
	FILE *f;

	(void)snprintf(path, PATH_BYTES, "%s/%s", folder, name);
	if ((f = fopen(path, "wb")) == NULL)
		fail("create", path);
	return f;
}

static int
train_set(const struct options *o)
{
	char path[PATH_BYTES], text_path[PATH_BYTES];
	FILE *images, *captions;
	int rc;

	if (make_folder(o->output) != 0)
		return -1;
	if ((images = create(o->output, "images.u8", path)) == NULL)
		return -1;
	captions = create(o->output, "captions.txt", text_path);
	if (captions == NULL) {
		(void)fclose(images);
		return -1;
	}
	for (int64_t i = 0; i < o->n; i++) {
		struct lpo_rng r = lpo_rng_open(o->seed, LPO_FOR_TRAINING,
		    (uint64_t)i);
		struct lpo_spec spec;
		struct lpo_scene scene;
		char caption[LPO_WORLD_CAPTION_BYTES];
		uint8_t rgb[LPO_WORLD_BYTES];

		lpo_world_spec(&r, &spec, LPO_ALL);
		lpo_world_scene(&r, &spec, &scene);
		if (lpo_rng_below(&r, 100) < (uint32_t)o->ugly_percent)
			scene.ugly = lpo_world_ugly(&r);
		lpo_world_render(&r, &spec, &scene, rgb, NULL);
		if (lpo_rng_below(&r, 100) < (uint32_t)o->wrong_percent)
			lpo_world_corrupt(&r, &spec,
			    lpo_rng_below(&r, 100) < 55 ? 1 : 2);
		lpo_world_caption(&spec, caption, sizeof(caption));
		fwrite(rgb, 1, sizeof(rgb), images);
		fprintf(captions, "%s\n", caption);
	}
	rc = finish(images, path);
	return finish(captions, text_path) != 0 ? -1 : rc;
}

static int
write_png(const char *path, const uint8_t *rgb)
{
	png_image image;

	memset(&image, 0, sizeof(image));
	image.version = PNG_IMAGE_VERSION;
	image.width = image.height = LPO_WORLD_SIDE_PX;
	image.format = PNG_FORMAT_RGB;
	image.flags = PNG_IMAGE_FLAG_FAST;
	if (png_image_write_to_file(&image, path, 0, rgb, 0, NULL) != 0)
		return 0;
	fprintf(stderr, "demo-world: cannot write '%s': %s\n", path,
	    image.message);
	return -1;
}

/* exp(-x) for 0 <= x, from products alone: libm's differs in last digits
 * from machine to machine, and a label could flip with it. */
static double
decay(double x)
{
	double y = 1.0, term = 1.0;

	if (x > 30.0)
		return 0.0;
	x /= 64.0;
	for (int k = 1; k <= 12; k++) {
		term *= -x / k;
		y += term;
	}
	for (int k = 0; k < 6; k++)
		y *= y;
	return y;
}

static double
sigmoid(double x)
{
	double e = decay(x < 0.0 ? -x : x);

	return x < 0.0 ? e / (1.0 + e) : 1.0 / (1.0 + e);
}

struct shown {
	uint8_t rgb[LPO_WORLD_BYTES];
	double alignment, aesthetic, utility;
};

/* One picture meant for the caption `told`, with 0, 1 or 2 wrong facts. */
static void
draw_shown(struct lpo_rng *r, const struct lpo_spec *told, int ugly_percent,
    struct shown *s)
{
	struct lpo_spec drawn = *told;
	struct lpo_scene scene;
	struct lpo_beauty beauty;
	uint32_t k = lpo_rng_below(r, 100);
	int n_wrong = k < 40 ? 0 : k < 75 ? 1 : 2;

	lpo_world_corrupt(r, &drawn, n_wrong);
	lpo_world_scene(r, &drawn, &scene);
	if (lpo_rng_below(r, 100) < (uint32_t)ugly_percent)
		scene.ugly = lpo_world_ugly(r);
	lpo_world_render(r, &drawn, &scene, s->rgb, &beauty);
	s->alignment = 1.0 - n_wrong / (double)lpo_world_facts(told);
	s->aesthetic = lpo_world_aesthetic(&beauty);
	s->utility = lpo_world_utility(s->alignment, s->aesthetic);
}

/*
 * The "human": a tie, often, where the two are about as good; else the better
 * one with the chance that the utilities give.  0 or 1: which; 2: a tie.
 */
static int
judge_pair(struct lpo_rng *r, const struct shown *s)
{
	double du = s[1].utility - s[0].utility;
	double tie = lpo_rng_unit(r), win = lpo_rng_unit(r);

	if (du < 0.5 && du > -0.5 && tie < 0.48)
		return 2;
	return win < sigmoid(1.7 * du);
}

/*
 * The gap columns imitate three automatic scorers: the true gap in the
 * scorer's own small unit, plus the scorer's noise.  The units make MPCF's
 * limits (-0.5, 0, 0; ties 0.2, 0.03, 0.07) as selective here as they are
 * on photographs.
 */
static void
write_row(FILE *f, struct lpo_rng *r, int64_t i, const char *caption,
    const struct shown *s, int choice)
{
	static const char *const label[3][2] = {
		{ "1", "0" }, { "0", "1" }, { "0.5", "0.5" }
	};
	int best = choice == 1, tie = choice == 2;
	double align = s[best].alignment - s[!best].alignment;
	double gap[3];

	gap[0] = 0.28 * (s[best].aesthetic - s[!best].aesthetic) +
	    0.10 * lpo_rng_normal(r);
	gap[1] = 0.15 * align + 0.010 * lpo_rng_normal(r);
	gap[2] = 0.70 * align + 0.040 * lpo_rng_normal(r);
	for (int k = 0; tie && k < 3; k++)
		gap[k] = gap[k] < 0.0 ? -gap[k] : gap[k];
	fprintf(f, "%06" PRId64 ",%s,img/%06" PRId64 "_0.png,img/%06" PRId64
	    "_1.png,%s,%s,%.4f,%.4f,%.4f,1\n", i, caption, i, i,
	    label[choice][0], label[choice][1], gap[0], gap[1], gap[2]);
}

static int
prefs(const struct options *o)
{
	char path[PATH_BYTES], csv_path[PATH_BYTES];
	FILE *csv;
	int rc = 0;

	(void)snprintf(path, sizeof(path), "%s/img", o->output);
	if (make_folder(o->output) != 0 || make_folder(path) != 0)
		return -1;
	if ((csv = create(o->output, "prefs.csv", csv_path)) == NULL)
		return -1;
	fprintf(csv, "id,prompt,image_0,image_1,label_0,label_1,"
	    "aesthetic_gap,clipscore_gap,vqascore_gap,"
	    "num_example_per_prompt\n");
	for (int64_t i = 0; i < o->n && rc == 0; i++) {
		struct lpo_rng r = lpo_rng_open(o->seed, LPO_FOR_PREFS,
		    (uint64_t)i);
		struct lpo_spec told;
		struct shown s[2];
		char caption[LPO_WORLD_CAPTION_BYTES];
		int choice;

		lpo_world_spec(&r, &told, o->split);
		lpo_world_caption(&told, caption, sizeof(caption));
		for (int k = 0; k < 2 && rc == 0; k++) {
			draw_shown(&r, &told, o->ugly_percent, &s[k]);
			(void)snprintf(path, sizeof(path),
			    "%s/img/%06" PRId64 "_%d.png", o->output, i, k);
			rc = write_png(path, s[k].rgb);
		}
		choice = judge_pair(&r, s);
		write_row(csv, &r, i, caption, s, choice);
	}
	return finish(csv, csv_path) != 0 ? -1 : rc;
}

static int
prompts(const struct options *o)
{
	FILE *f = stdout;

	if (o->output != NULL && (f = fopen(o->output, "w")) == NULL)
		return fail("create", o->output);
	fprintf(f, "prompt\n");
	for (int64_t i = 0; i < o->n; i++) {
		struct lpo_rng r = lpo_rng_open(o->seed, LPO_FOR_PROMPTS,
		    (uint64_t)i);
		struct lpo_spec spec;
		char caption[LPO_WORLD_CAPTION_BYTES];

		lpo_world_spec(&r, &spec, o->split);
		lpo_world_caption(&spec, caption, sizeof(caption));
		fprintf(f, "%s\n", caption);
	}
	return finish(f, o->output == NULL ? "standard output" : o->output);
}

/* A whole decimal number in [0, most], or -1. */
static int64_t
number(const char *text, int64_t most)
{
	char *end;
	long long v;

	errno = 0;
	v = strtoll(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || v < 0 || v > most)
		return -1;
	return v;
}

static int
split_named(const char *name, enum lpo_split *split)
{
	static const char *const names[] = { "all", "train", "tune",
		"heldout" };

	for (int i = 0; i < 4; i++)
		if (strcmp(name, names[i]) == 0) {
			*split = (enum lpo_split)i;
			return 0;
		}
	return -1;
}

/* 0, 1 where help was asked for and given, -1 for bad usage. */
static int
read_options(int argc, char **argv, struct options *o)
{
	static const struct option known[] = {
		{ "n", required_argument, NULL, 'n' },
		{ "pairs", required_argument, NULL, 'n' },
		{ "output", required_argument, NULL, 'o' },
		{ "seed", required_argument, NULL, 's' },
		{ "split", required_argument, NULL, 'p' },
		{ "wrong", required_argument, NULL, 'w' },
		{ "ugly", required_argument, NULL, 'u' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 }
	};
	int64_t v = 0;
	int c;

	while ((c = getopt_long(argc, argv, "n:o:h", known, NULL)) != -1) {
		if (c == 'h') {
			fputs(usage_text, stdout);
			return 1;
		} else if (c == 'n') {
			v = o->n = number(optarg, 10000000);
		} else if (c == 'o') {
			o->output = optarg;
		} else if (c == 's') {
			v = number(optarg, INT64_MAX);
			o->seed = (uint64_t)v;
		} else if (c == 'p') {
			v = split_named(optarg, &o->split);
		} else if (c == 'w') {
			v = o->wrong_percent = (int)number(optarg, 100);
		} else if (c == 'u') {
			v = o->ugly_percent = (int)number(optarg, 100);
		} else {
			return -1;
		}
		if (v < 0) {
			fprintf(stderr, "demo-world: bad value '%s'\n",
			    optarg);
			return -1;
		}
	}
	return 0;
}

int
main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(const struct options *);
		int ugly_percent, needs_output;
	} command[] = {
		{ "train-set", train_set, 35, 1 },
		{ "prefs", prefs, 40, 1 },
		{ "prompts", prompts, 0, 0 },
	};
	struct options o = { -1, 1, 40, 0, LPO_TRAIN, NULL };
	int k, rc;

	for (k = 0; argc > 1 && k < 3; k++)
		if (strcmp(argv[1], command[k].name) == 0)
			break;
	if (argc > 1 && k < 3)
		o.ugly_percent = command[k].ugly_percent;
	if ((rc = read_options(argc, argv, &o)) == 1)
		return fflush(stdout) != 0;
	if (rc != 0 || argc < 2 || k == 3 || optind != argc - 1 || o.n < 0 ||
	    (command[k].needs_output && o.output == NULL)) {
		fprintf(stderr, "demo-world: bad usage; see --help\n");
		return 2;
	}
	return command[k].run(&o) != 0;
}
