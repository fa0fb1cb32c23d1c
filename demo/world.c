/*
 * Captions, scenes and pictures of the demo's world.  See world.h.
 */
#include "world.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A fused multiply-add would round differently from machine to machine. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define SIDE LPO_WORLD_SIDE_PX
#define MAX_TRIES 4000

const double lpo_world_palette[LPO_N_COLOURS][3] = {
	{ 0.86, 0.14, 0.14 },
	{ 0.13, 0.62, 0.20 },
	{ 0.18, 0.28, 0.88 },
	{ 0.94, 0.80, 0.12 },
	{ 0.95, 0.45, 0.75 },
	{ 0.18, 0.80, 0.88 },
};
const char *const lpo_world_colours[LPO_N_COLOURS] = {
	"red", "green", "blue", "yellow", "pink", "cyan"
};
const char *const lpo_world_shapes[LPO_N_SHAPES] = {
	"circle", "square", "triangle", "cross"
};
static const char *const size_words[LPO_N_SIZES] = { "small", "large" };
static const char *const count_words[] = { "a", "two", "three" };
static const char *const where_words[LPO_N_WHERE] = {
	"on the left", "on the right", "at the top", "at the bottom"
};
static const char *const relation_words[LPO_N_WHERE] = {
	"left of", "right of", "above", "below"
};

/* The finaliser of splitmix64. */
static uint64_t
mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

struct lpo_rng
lpo_rng_open(uint64_t seed, int purpose, uint64_t item)
{
	struct lpo_rng r = { 0, 0 };

	r.key = mix(seed + UINT64_C(0x9e3779b97f4a7c15));
	r.key = mix(r.key ^ ((uint64_t)purpose << 56) ^ item);
	return r;
}

static uint32_t
next(struct lpo_rng *r)
{
	return (uint32_t)(mix(r->key +
	    ++r->n * UINT64_C(0x9e3779b97f4a7c15)) >> 32);
}

uint32_t
lpo_rng_below(struct lpo_rng *r, uint32_t n)
{
	return (uint32_t)(((uint64_t)next(r) * n) >> 32);
}

double
lpo_rng_unit(struct lpo_rng *r)
{
	return next(r) / 4294967296.0;
}

double
lpo_rng_normal(struct lpo_rng *r)
{
	int64_t sum = 0;

	for (int i = 0; i < 12; i++)
		sum += next(r);
	return (double)(sum - 6 * INT64_C(4294967295)) / 4294967296.0;
}

static int
chance(struct lpo_rng *r, uint32_t percent)
{
	return lpo_rng_below(r, 100) < percent;
}

static int
other(struct lpo_rng *r, int not_this, int n)
{
	int k = (int)lpo_rng_below(r, (uint32_t)(n - 1));

	return k < not_this ? k : k + 1;
}

static enum lpo_split
split_of(const char *caption)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);
	uint64_t bucket;

	for (; *caption != '\0'; caption++)
		h = (h ^ (unsigned char)*caption) * UINT64_C(0x100000001b3);
	bucket = mix(h) % 10;
	return bucket < 2 ? LPO_HELDOUT : bucket < 3 ? LPO_TUNE : LPO_TRAIN;
}

static void
draw_spec(struct lpo_rng *r, struct lpo_spec *s)
{
	memset(s, 0, sizeof(*s));
	s->colour[0] = (int)lpo_rng_below(r, LPO_N_COLOURS);
	s->shape[0] = (int)lpo_rng_below(r, LPO_N_SHAPES);
	s->size = s->where = LPO_UNSTATED;
	if (chance(r, 35)) {
		s->relation = 1;
		s->count = 2;
		s->where = (int)lpo_rng_below(r, LPO_N_WHERE);
		/* Two equal objects would make the relation ambiguous, and
		 * equal colours or shapes half of it. */
		s->colour[1] = other(r, s->colour[0], LPO_N_COLOURS);
		s->shape[1] = other(r, s->shape[0], LPO_N_SHAPES);
		return;
	}
	s->count = 1 + (int)lpo_rng_below(r, 3);
	if (chance(r, 60))
		s->size = (int)lpo_rng_below(r, LPO_N_SIZES);
	/* Rarer than size: a convolutional network learns absolute places late,
	 * if at all, and a fact that no model gets right only adds noise. */
	if (chance(r, 20))
		s->where = (int)lpo_rng_below(r, LPO_N_WHERE);
}

void
lpo_world_spec(struct lpo_rng *r, struct lpo_spec *s, enum lpo_split split)
{
	char caption[LPO_WORLD_CAPTION_BYTES];

	do {
		draw_spec(r, s);
		lpo_world_caption(s, caption, sizeof(caption));
	} while (split != LPO_ALL && split_of(caption) != split);
}

void
lpo_world_caption(const struct lpo_spec *s, char *buf, size_t buf_bytes)
{
	const char *shape = lpo_world_shapes[s->shape[0]];

	if (s->relation) {
		(void)snprintf(buf, buf_bytes, "a %s %s %s a %s %s",
		    lpo_world_colours[s->colour[0]], shape,
		    relation_words[s->where], lpo_world_colours[s->colour[1]],
		    lpo_world_shapes[s->shape[1]]);
		return;
	}
	(void)snprintf(buf, buf_bytes, "%s%s%s %s %s%s%s%s",
	    count_words[s->count - 1],
	    s->size == LPO_UNSTATED ? "" : " ",
	    s->size == LPO_UNSTATED ? "" : size_words[s->size],
	    lpo_world_colours[s->colour[0]], shape,
	    s->count == 1 ? "" : s->shape[0] == LPO_CROSS ? "es" : "s",
	    s->where == LPO_UNSTATED ? "" : " ",
	    s->where == LPO_UNSTATED ? "" : where_words[s->where]);
}

/* Eats one of n phrases from *p; its index, or -1. */
static int
eat(const char **p, const char *const *phrases, int n)
{
	for (int i = 0; i < n; i++) {
		size_t len = strlen(phrases[i]);

		if (strncmp(*p, phrases[i], len) != 0)
			continue;
		if ((*p)[len] != ' ' && (*p)[len] != '\0')
			continue;
		*p += len + ((*p)[len] == ' ');
		return i;
	}
	return -1;
}

int
lpo_world_parse(const char *p, struct lpo_spec *s)
{
	static const char *const plural[LPO_N_SHAPES] = {
		"circles", "squares", "triangles", "crosses"
	};
	static const char *const article[] = { "a" };

	memset(s, 0, sizeof(*s));
	s->count = eat(&p, count_words, 3) + 1;
	s->size = eat(&p, size_words, LPO_N_SIZES);
	s->colour[0] = eat(&p, lpo_world_colours, LPO_N_COLOURS);
	s->shape[0] = eat(&p, s->count > 1 ? plural : lpo_world_shapes,
	    LPO_N_SHAPES);
	if (s->count < 1 || s->colour[0] < 0 || s->shape[0] < 0)
		return -1;
	s->where = eat(&p, where_words, LPO_N_WHERE);
	if (*p == '\0')
		return 0;
	s->where = eat(&p, relation_words, LPO_N_WHERE);
	if (s->where < 0 || s->size >= 0 || s->count != 1 ||
	    eat(&p, article, 1) < 0)
		return -1;
	s->relation = 1;
	s->count = 2;
	s->colour[1] = eat(&p, lpo_world_colours, LPO_N_COLOURS);
	s->shape[1] = eat(&p, lpo_world_shapes, LPO_N_SHAPES);
	return s->colour[1] < 0 || s->shape[1] < 0 || *p != '\0' ? -1 : 0;
}

int
lpo_world_facts(const struct lpo_spec *s)
{
	if (s->relation)
		return 6;
	return 3 + (s->size != LPO_UNSTATED) + (s->where != LPO_UNSTATED);
}

void
lpo_world_corrupt(struct lpo_rng *r, struct lpo_spec *s, int n)
{
	struct lpo_spec was = *s;
	int fact[5], n_facts = 0;

	fact[n_facts++] = 0;
	fact[n_facts++] = 1;
	if (s->where != LPO_UNSTATED)
		fact[n_facts++] = 2;
	if (s->relation || s->size != LPO_UNSTATED)
		fact[n_facts++] = 3;
	fact[n_facts++] = 4;
	for (int k = 0; k < n; k++) {
		int i = k + (int)lpo_rng_below(r, (uint32_t)(n_facts - k));
		int f = fact[i];

		fact[i] = fact[k];
		if (f == 0)
			s->colour[0] = other(r, was.colour[0], LPO_N_COLOURS);
		else if (f == 1)
			s->shape[0] = other(r, was.shape[0], LPO_N_SHAPES);
		else if (f == 2)
			s->where = other(r, was.where, LPO_N_WHERE);
		else if (f == 3 && s->relation)
			s->colour[1] = other(r, was.colour[1], LPO_N_COLOURS);
		else if (f == 3)
			s->size = !was.size;
		else if (s->relation)
			s->shape[1] = other(r, was.shape[1], LPO_N_SHAPES);
		else
			s->count = 1 + other(r, was.count - 1, 3);
	}
}

/* Is the vector (dx, dy) clearly in direction `where`? */
static int
points(int where, double dx, double dy, double least)
{
	double along, across;

	along = where == LPO_LEFT ? -dx : where == LPO_RIGHT ? dx :
	    where == LPO_TOP ? -dy : dy;
	across = where <= LPO_RIGHT ? dy : dx;
	return along >= least && along >= fabs(across) + 1.0;
}

static int
apart(const struct lpo_object *a, const struct lpo_object *b)
{
	double dx = a->x - b->x, dy = a->y - b->y;
	double d = 1.12 * (a->r + b->r) + 1.5;

	return dx * dx + dy * dy >= d * d;
}

static int
satisfies(const struct lpo_spec *s, const struct lpo_object *o, int n)
{
	double mx = 0.0, my = 0.0;

	for (int i = 0; i < n; i++) {
		mx += o[i].x / n;
		my += o[i].y / n;
		for (int j = 0; j < i; j++)
			if (!apart(&o[i], &o[j]))
				return 0;
	}
	if (s->relation)
		return points(s->where, o[0].x - o[1].x, o[0].y - o[1].y, 4.0);
	return s->where == LPO_UNSTATED ||
	    points(s->where, mx - SIDE / 2.0, my - SIDE / 2.0, 2.5);
}

/* A multiple of 1/64 pixel, so that sums of coordinates are exact. */
static double
draw_between(struct lpo_rng *r, double lo, double hi)
{
	int a = (int)(lo * 64.0), b = (int)(hi * 64.0);

	return (a + (int)lpo_rng_below(r, (uint32_t)(b - a + 1))) / 64.0;
}

void
lpo_world_scene(struct lpo_rng *r, const struct lpo_spec *s,
    struct lpo_scene *scene)
{
	int size, k;

	memset(scene, 0, sizeof(*scene));
	scene->n = s->count;
	size = s->size != LPO_UNSTATED && !s->relation ? s->size :
	    (int)lpo_rng_below(r, LPO_N_SIZES);
	for (int i = 0; i < scene->n; i++) {
		struct lpo_object *o = &scene->object[i];

		k = s->relation ? i : 0;
		if (s->relation)
			size = (int)lpo_rng_below(r, LPO_N_SIZES);
		o->shape = s->shape[k];
		o->colour = s->colour[k];
		o->r = size == LPO_SMALL ? draw_between(r, 2.9, 3.4) :
		    draw_between(r, 4.9, s->count == 3 ? 5.2 : 5.8);
	}
	for (int try = 0; try < MAX_TRIES; try++) {
		for (int i = 0; i < scene->n; i++) {
			struct lpo_object *o = &scene->object[i];
			double edge = o->r * 1.2 + 1.0;

			o->x = draw_between(r, edge, SIDE - edge);
			o->y = draw_between(r, edge, SIDE - edge);
		}
		if (satisfies(s, scene->object, scene->n))
			return;
	}
}

int
lpo_world_ugly(struct lpo_rng *r)
{
	/* Noise is the rarest: a model in latent space hardly ever makes it,
	 * while its backgrounds and edges go wrong all the time. */
	static const int kind[10] = { LPO_NOISE, LPO_BLUR, LPO_BLUR, LPO_BLUR,
		LPO_MUDDY, LPO_MUDDY, LPO_MUDDY, LPO_MUDDY, LPO_CUT, LPO_CUT };
	int ugly = kind[lpo_rng_below(r, 10)];

	if (chance(r, 20))
		ugly |= kind[lpo_rng_below(r, 10)];
	return ugly;
}

double
lpo_world_distance(int shape, double r, double x, double y)
{
	double ax = fabs(x), ay = fabs(y), d, e;

	switch (shape) {
	case LPO_CIRCLE:
		return sqrt(x * x + y * y) - r;
	case LPO_SQUARE:
		d = ax > ay ? ax : ay;
		return d - 0.9 * r;
	case LPO_TRIANGLE:
		/* Equilateral, tip up, centre of mass at (0, 0). */
		d = y - 0.65 * r;
		e = 0.86602540378443865 * ax - 0.5 * y - 0.65 * r;
		return d > e ? d : e;
	default:
		/* The union of two bars. */
		d = (ax - 1.1 * r > ay - 0.38 * r) ? ax - 1.1 * r :
		    ay - 0.38 * r;
		e = (ay - 1.1 * r > ax - 0.38 * r) ? ay - 1.1 * r :
		    ax - 0.38 * r;
		return d < e ? d : e;
	}
}

/* Moves the scene so that the border cuts off part of an outer object, on
 * the side that keeps a stated place true.  Returns how whole it stays. */
static double
cut(struct lpo_rng *r, const struct lpo_spec *s, struct lpo_scene *scene)
{
	int side = (int)lpo_rng_below(r, LPO_N_WHERE);
	const struct lpo_object *o = &scene->object[0];
	double inside, deep, shift;

	if (!s->relation && s->where != LPO_UNSTATED)
		side = s->where;
	for (int i = 1; i < scene->n; i++) {
		const struct lpo_object *p = &scene->object[i];
		double d = side <= LPO_RIGHT ? p->x - o->x : p->y - o->y;

		if (side == LPO_LEFT || side == LPO_TOP ? d < 0 : d > 0)
			o = p;
	}
	inside = draw_between(r, 0.0, 0.6);
	deep = inside * o->r;
	shift = side == LPO_LEFT ? deep - o->x :
	    side == LPO_RIGHT ? SIDE - deep - o->x :
	    side == LPO_TOP ? deep - o->y : SIDE - deep - o->y;
	for (int i = 0; i < scene->n; i++) {
		if (side <= LPO_RIGHT)
			scene->object[i].x += shift;
		else
			scene->object[i].y += shift;
	}
	return inside * 0.25;
}

/* One pass of (1 2 1)/4 in x and in y: variance 1/2 in each. */
static void
blur(double (*img)[3])
{
	static const int step[2] = { 1, SIDE };

	for (int axis = 0; axis < 2; axis++) {
		double was[SIDE * SIDE][3];

		memcpy(was, img, sizeof(was));
		for (int i = 0; i < SIDE * SIDE; i++) {
			int at = axis == 0 ? i % SIDE : i / SIDE;
			int a = at > 0 ? i - step[axis] : i;
			int b = at < SIDE - 1 ? i + step[axis] : i;

			for (int c = 0; c < 3; c++)
				img[i][c] = 0.25 * was[a][c] +
				    0.5 * was[i][c] + 0.25 * was[b][c];
		}
	}
}

static void
paint(double (*img)[3], const struct lpo_object *o, const double *colour)
{
	for (int i = 0; i < SIDE * SIDE; i++) {
		double d = lpo_world_distance(o->shape, o->r,
		    i % SIDE + 0.5 - o->x, i / SIDE + 0.5 - o->y);
		double m = d < -0.5 ? 1.0 : d > 0.5 ? 0.0 : 0.5 - d;

		for (int c = 0; c < 3; c++)
			img[i][c] += m * (colour[c] - img[i][c]);
	}
}

double
lpo_world_aesthetic(const struct lpo_beauty *b)
{
	return 3.0 * b->white + 3.0 * b->calm + 2.0 * b->sharp +
	    2.0 * b->whole;
}

double
lpo_world_utility(double alignment, double aesthetic)
{
	return 5.0 * alignment + 0.35 * aesthetic;
}

/* Noise and rounding, the last things that happen to a picture. */
static void
finish(struct lpo_rng *r, double (*img)[3], double sigma, uint8_t *rgb)
{
	for (int i = 0; i < SIDE * SIDE; i++)
		for (int c = 0; c < 3; c++) {
			double v = img[i][c];

			if (sigma > 0.0)
				v += sigma * lpo_rng_normal(r);
			v = v < 0.0 ? 0.0 : v > 1.0 ? 1.0 : v;
			rgb[3 * i + c] = (uint8_t)(v * 255.0 + 0.5);
		}
}

void
lpo_world_render(struct lpo_rng *r, const struct lpo_spec *s,
    const struct lpo_scene *wanted, uint8_t *rgb, struct lpo_beauty *beauty)
{
	/* What a judge reads as sharpness after so many passes of blur. */
	static const double sharp_after[5] = { 1.0, 0.6, 0.3, 0.1, 0.0 };
	struct lpo_scene scene = *wanted;
	struct lpo_beauty b = { 1.0, 1.0, 1.0, 1.0 };
	double img[SIDE * SIDE][3], back[3], colour[3], sigma = 0.0;
	double light = draw_between(r, 0.965, 1.0);
	int passes = 0;

	if (scene.ugly & LPO_MUDDY)
		light = draw_between(r, 0.50, 0.80);
	for (int c = 0; c < 3; c++) {
		back[c] = light - (scene.ugly & LPO_MUDDY ?
		    draw_between(r, 0.0, 0.12) : draw_between(r, 0.0, 0.02));
		b.white = fmin(b.white, fmax(0.0, (back[c] - 0.50) / 0.43));
	}
	if (scene.ugly & LPO_NOISE) {
		sigma = draw_between(r, 0.05, 0.14);
		b.calm = sigma > 0.08 ? 0.0 : 1.0 - sigma / 0.08;
	}
	if (scene.ugly & LPO_BLUR)
		passes = 1 + (int)lpo_rng_below(r, 4);
	b.sharp = sharp_after[passes];
	if (scene.ugly & LPO_CUT)
		b.whole = cut(r, s, &scene);
	for (int i = 0; i < SIDE * SIDE; i++)
		memcpy(img[i], back, sizeof(back));
	for (int k = 0; k < scene.n; k++) {
		for (int c = 0; c < 3; c++)
			colour[c] = draw_between(r, 0.0, 0.06) - 0.03 +
			    lpo_world_palette[scene.object[k].colour][c];
		paint(img, &scene.object[k], colour);
	}
	while (passes-- > 0)
		blur(img);
	finish(r, img, sigma, rgb);
	if (beauty != NULL)
		*beauty = b;
}
