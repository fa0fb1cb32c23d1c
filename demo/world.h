/*
 * The demo's tiny world: captions from a small grammar, scenes that satisfy
 * them, and 32x32 pictures of the scenes.  Everything is a function of (seed,
 * purpose, item): only integers and correctly rounded + - * / sqrt are used,
 * so pictures and captions have the same bytes on every machine.
 */
#ifndef LPO_DEMO_WORLD_H
#define LPO_DEMO_WORLD_H

#include <stddef.h>
#include <stdint.h>

#define LPO_WORLD_SIDE_PX 32
#define LPO_WORLD_BYTES (LPO_WORLD_SIDE_PX * LPO_WORLD_SIDE_PX * 3)
#define LPO_WORLD_CAPTION_BYTES 96

enum { LPO_CIRCLE, LPO_SQUARE, LPO_TRIANGLE, LPO_CROSS, LPO_N_SHAPES };
enum { LPO_SMALL, LPO_LARGE, LPO_N_SIZES };
enum { LPO_LEFT, LPO_RIGHT, LPO_TOP, LPO_BOTTOM, LPO_N_WHERE };
#define LPO_N_COLOURS 6
#define LPO_UNSTATED (-1)

/* Ways in which a picture can be ugly, as a bit set. */
enum { LPO_NOISE = 1, LPO_BLUR = 2, LPO_MUDDY = 4, LPO_CUT = 8 };

/* Purposes keep the draws of the programs apart; never renumber. */
enum {
	LPO_FOR_TRAINING = 1,
	LPO_FOR_PREFS = 2,
	LPO_FOR_PROMPTS = 3,
	LPO_FOR_SELFTEST = 4
};

/* Which captions may be drawn: a caption's hash decides, so that held-out
 * captions are never seen in preferences or LPO prompts, whatever the seed. */
enum lpo_split { LPO_ALL, LPO_TRAIN, LPO_TUNE, LPO_HELDOUT };

struct lpo_rng {
	uint64_t key, n;
};

/*
 * What a caption states.  A relation names two single objects, [0] and [1],
 * and where [0] is seen from [1]; otherwise `count` equal objects are named
 * by [0], with size and place (`where`) possibly LPO_UNSTATED.
 */
struct lpo_spec {
	int relation, count, size, where;
	int colour[2], shape[2];
};

/* Positions and radii in pixels; y grows downwards, (0,0) is a corner. */
struct lpo_object {
	int shape, colour;
	double x, y, r;
};

struct lpo_scene {
	int n, ugly;
	struct lpo_object object[3];
};

/* How clean a picture is drawn, each 0..1: the truth of what a judge reads. */
struct lpo_beauty {
	double white, calm, sharp, whole;
};

extern const double lpo_world_palette[LPO_N_COLOURS][3];
extern const char *const lpo_world_colours[LPO_N_COLOURS];
extern const char *const lpo_world_shapes[LPO_N_SHAPES];

struct lpo_rng lpo_rng_open(uint64_t seed, int purpose, uint64_t item);
uint32_t lpo_rng_below(struct lpo_rng *, uint32_t n);
/* A multiple of 2^-32 in [0, 1). */
double lpo_rng_unit(struct lpo_rng *);
/* Mean 0, variance 1, from twelve uniform integers: no libm. */
double lpo_rng_normal(struct lpo_rng *);

void lpo_world_spec(struct lpo_rng *, struct lpo_spec *, enum lpo_split);
void lpo_world_caption(const struct lpo_spec *, char *buf, size_t buf_bytes);
/* 0, or -1 where the text isn't of the grammar. */
int lpo_world_parse(const char *caption, struct lpo_spec *);
/* How many facts the caption states: alignment is a mean over them. */
int lpo_world_facts(const struct lpo_spec *);
/* Makes exactly n (at most 2) different stated facts wrong. */
void lpo_world_corrupt(struct lpo_rng *, struct lpo_spec *, int n);

/* A random scene for which every stated fact is true. */
void lpo_world_scene(struct lpo_rng *, const struct lpo_spec *,
    struct lpo_scene *);
/* Draws ways of being ugly, one or two of them. */
int lpo_world_ugly(struct lpo_rng *);
/* rgb[y][x][channel], LPO_WORLD_BYTES of them. */
void lpo_world_render(struct lpo_rng *, const struct lpo_spec *,
    const struct lpo_scene *, uint8_t *rgb, struct lpo_beauty *);
/* 3 white + 3 calm + 2 sharp + 2 whole: 0..10. */
double lpo_world_aesthetic(const struct lpo_beauty *);
/* u = 5 alignment + 0.35 aesthetic. */
double lpo_world_utility(double alignment, double aesthetic);
/* Signed distance in pixels of (x, y) from a shape of radius r at (0, 0). */
double lpo_world_distance(int shape, double r, double x, double y);

#endif
