/*
 * The judge's eyes and rules.  A picture is split into patches that differ
 * from the background; each patch's shape is the one whose rendered template
 * explains its soft mask best, so nothing here was fitted to data.
 */
#include "judge_core.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define SIDE LPO_WORLD_SIDE_PX
#define N_PX (SIDE * SIDE)
#define N_RING (4 * (SIDE - 1))
/* A patch differs from the background by this much of the RGB cube's side,
 * and covers this many pixels; less is a smear of the decoder. */
#define LEAST_CONTRAST 0.20
#define LEAST_PX 7.0
/* Between the largest small (3.4) and the smallest large (4.9) radius. */
#define LARGE_R_PX 4.1

struct image {
	double raw[N_PX][3];	/* 0..1 */
	double calm[N_PX][3];	/* the same, smoothed where it is noisy */
	double back[3], sigma;
	double away[N_PX];	/* distance from the background's colour */
	int patch[N_PX];	/* 0: background; else 1 + index */
	int n_patches;
};

static double
clamp01(double x)
{
	return x < 0.0 ? 0.0 : x > 1.0 ? 1.0 : x;
}

static int
by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double
median(double *v, int n)
{
	qsort(v, (size_t)n, sizeof(*v), by_value);
	return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static double
dot3(const double *a, const double *b)
{
	return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

/* The background is the median of the border: an object that is cut off
 * covers less than half of it. */
static void
find_background(struct image *im)
{
	for (int c = 0; c < 3; c++) {
		double v[N_RING];
		int n = 0;

		for (int k = 0; k < SIDE - 1; k++) {
			v[n++] = im->raw[k][c];
			v[n++] = im->raw[N_PX - 1 - k][c];
			v[n++] = im->raw[(k + 1) * SIDE][c];
			v[n++] = im->raw[k * SIDE + SIDE - 1][c];
		}
		im->back[c] = median(v, n);
	}
}

/* Median of second differences in x: edges are too few to move it. */
static void
find_noise(struct image *im)
{
	double v[3 * N_PX];
	int n = 0;

	for (int i = 0; i < N_PX; i++) {
		if (i % SIDE == 0 || i % SIDE == SIDE - 1)
			continue;
		for (int c = 0; c < 3; c++)
			v[n++] = fabs(im->raw[i - 1][c] - 2.0 * im->raw[i][c] +
			    im->raw[i + 1][c]);
	}
	/* 1.4826 sigma per median deviation, sqrt(1 + 4 + 1) terms. */
	im->sigma = median(v, n) * 1.4826 / 2.4494897427831781;
}

/* (1 2 1)/4 in x and y where the picture is noisy. */
static void
find_calm(struct image *im)
{
	static const double w[3] = { 0.25, 0.5, 0.25 };

	memcpy(im->calm, im->raw, sizeof(im->raw));
	if (im->sigma < 0.03)
		return;
	memset(im->calm, 0, sizeof(im->calm));
	for (int i = 0; i < N_PX; i++)
		for (int k = 0; k < 9; k++) {
			int x = i % SIDE + k % 3 - 1, y = i / SIDE + k / 3 - 1;

			x = x < 0 ? 0 : x >= SIDE ? SIDE - 1 : x;
			y = y < 0 ? 0 : y >= SIDE ? SIDE - 1 : y;
			for (int c = 0; c < 3; c++)
				im->calm[i][c] += w[k % 3] * w[k / 3] *
				    im->raw[y * SIDE + x][c];
		}
}

/* Two neighbours belong together if they leave the background in about the
 * same direction of colour: so touching objects of two colours stay two. */
static int
alike(const struct image *im, int i, int j)
{
	double a[3], b[3];

	for (int c = 0; c < 3; c++) {
		a[c] = im->calm[i][c] - im->back[c];
		b[c] = im->calm[j][c] - im->back[c];
	}
	return dot3(a, b) > 0.80 * im->away[i] * im->away[j];
}

/* Labels the connected patches of pixels with away > limit of the pixel. */
static void
label(struct image *im, const double *limit)
{
	static const int dx[4] = { 1, -1, 0, 0 }, dy[4] = { 0, 0, 1, -1 };
	int stack[N_PX], n;

	memset(im->patch, 0, sizeof(im->patch));
	im->n_patches = 0;
	for (int s = 0; s < N_PX; s++) {
		if (im->patch[s] != 0 || im->away[s] <= limit[s])
			continue;
		im->patch[s] = ++im->n_patches;
		stack[0] = s;
		n = 1;
		while (n > 0) {
			int i = stack[--n];

			for (int k = 0; k < 4; k++) {
				int x = i % SIDE + dx[k], y = i / SIDE + dy[k];
				int j = y * SIDE + x;

				if (x < 0 || x >= SIDE || y < 0 || y >= SIDE ||
				    im->patch[j] != 0 ||
				    im->away[j] <= limit[j] ||
				    !alike(im, i, j))
					continue;
				im->patch[j] = im->patch[i];
				stack[n++] = j;
			}
		}
	}
}

/* Two passes: the second cuts each patch at half of its own peak, so that
 * neighbours joined by a blurred bridge come apart. */
static void
find_patches(struct image *im)
{
	double limit[N_PX], peak[N_PX + 1] = { 0 };

	for (int i = 0; i < N_PX; i++) {
		double d[3];

		for (int c = 0; c < 3; c++)
			d[c] = im->calm[i][c] - im->back[c];
		im->away[i] = sqrt(dot3(d, d));
		limit[i] = LEAST_CONTRAST + im->sigma;
	}
	label(im, limit);
	for (int i = 0; i < N_PX; i++)
		if (im->patch[i] != 0 && im->away[i] > peak[im->patch[i]])
			peak[im->patch[i]] = im->away[i];
	for (int i = 0; i < N_PX; i++)
		if (im->patch[i] != 0 && 0.5 * peak[im->patch[i]] > limit[i])
			limit[i] = 0.5 * peak[im->patch[i]];
	label(im, limit);
}

/* Mean colour of the patch's core: pixels near its greatest contrast. */
static double
core_colour(const struct image *im, int patch, double *core)
{
	double peak = 0.0;
	int n = 0;

	core[0] = core[1] = core[2] = 0.0;
	for (int i = 0; i < N_PX; i++)
		if (im->patch[i] == patch && im->away[i] > peak)
			peak = im->away[i];
	for (int i = 0; i < N_PX; i++) {
		if (im->patch[i] != patch || im->away[i] < 0.85 * peak)
			continue;
		for (int c = 0; c < 3; c++)
			core[c] += im->calm[i][c];
		n++;
	}
	for (int c = 0; c < 3; c++)
		core[c] /= n;
	return peak;
}

/* The nearest palette entry; a blurred small object never reaches its own
 * colour, so mixtures with the background compete, at a small price. */
static int
name_colour(const double *core, const double *back)
{
	double best = 1e9;
	int name = 0;

	for (int k = 0; k < LPO_N_COLOURS; k++)
		for (int mixed = 0; mixed <= 5; mixed++) {
			double a = 1.0 - 0.1 * mixed, d[3], e;

			for (int c = 0; c < 3; c++)
				d[c] = core[c] - back[c] - a *
				    (lpo_world_palette[k][c] - back[c]);
			e = sqrt(dot3(d, d)) + 0.02 * mixed;
			if (e < best) {
				best = e;
				name = k;
			}
		}
	return name;
}

/* A patch's soft mask in its window, 0 background .. 1 core. */
struct mask {
	int x0, y0, w, h;
	double v[N_PX], area, x, y;
};

static void
soft_mask(const struct image *im, int patch, const double *core,
    struct mask *m)
{
	int x1 = -1, y1 = -1, pad = 2;
	double axis[3], scale;

	m->x0 = m->y0 = SIDE;
	for (int i = 0; i < N_PX; i++) {
		if (im->patch[i] != patch)
			continue;
		m->x0 = i % SIDE < m->x0 ? i % SIDE : m->x0;
		x1 = i % SIDE > x1 ? i % SIDE : x1;
		m->y0 = i / SIDE < m->y0 ? i / SIDE : m->y0;
		y1 = i / SIDE > y1 ? i / SIDE : y1;
	}
	m->x0 = m->x0 > pad ? m->x0 - pad : 0;
	m->y0 = m->y0 > pad ? m->y0 - pad : 0;
	m->w = (x1 + pad < SIDE ? x1 + pad : SIDE - 1) - m->x0 + 1;
	m->h = (y1 + pad < SIDE ? y1 + pad : SIDE - 1) - m->y0 + 1;
	for (int c = 0; c < 3; c++)
		axis[c] = core[c] - im->back[c];
	scale = 1.0 / dot3(axis, axis);
	m->area = m->x = m->y = 0.0;
	for (int k = 0; k < m->w * m->h; k++) {
		int x = m->x0 + k % m->w, y = m->y0 + k / m->w;
		int i = y * SIDE + x;
		double d[3], v;

		for (int c = 0; c < 3; c++)
			d[c] = im->calm[i][c] - im->back[c];
		v = clamp01(dot3(d, axis) * scale);
		if (im->patch[i] != 0 && im->patch[i] != patch)
			v = 0.0;
		m->v[k] = v;
		m->area += v;
		m->x += v * (x + 0.5);
		m->y += v * (y + 0.5);
	}
	m->x /= m->area;
	m->y /= m->area;
}

/* What of the mask a template leaves unexplained, at the best height. */
static double
misfit(const struct mask *m, int shape, double x, double y, double r,
    double edge_px)
{
	double mm = 0.0, mt = 0.0, tt = 0.0;

	for (int k = 0; k < m->w * m->h; k++) {
		double d = lpo_world_distance(shape, r,
		    m->x0 + k % m->w + 0.5 - x, m->y0 + k / m->w + 0.5 - y);
		double t = clamp01(0.5 - d / edge_px);

		mm += m->v[k] * m->v[k];
		mt += m->v[k] * t;
		tt += t * t;
	}
	return tt > 0.0 ? (mm - mt * mt / tt) / mm : 1.0;
}

/* Best place, radius and edge width of one shape by coordinate search from
 * the mask's centre and area. */
static double
fit_shape(const struct mask *m, int shape, struct lpo_seen *s)
{
	/* Area of each shape at radius 1. */
	static const double unit[LPO_N_SHAPES] = { 3.1416, 3.24, 2.195, 2.767 };
	double p[4] = { m->x, m->y, sqrt(m->area / unit[shape]), 1.2 };
	double step[4] = { 0.5, 0.5, 0.4, 0.8 }, best;

	best = misfit(m, shape, p[0], p[1], p[2], p[3]);
	for (int round = 0; round < 8; round++) {
		int moved = 0;

		for (int k = 0; k < 8; k++) {
			double q[4], e;

			memcpy(q, p, sizeof(q));
			q[k / 2] += k % 2 ? -step[k / 2] : step[k / 2];
			if (q[2] < 1.0 || q[3] < 1.0 || q[3] > 6.0)
				continue;
			e = misfit(m, shape, q[0], q[1], q[2], q[3]);
			if (e < best) {
				best = e;
				memcpy(p, q, sizeof(p));
				moved = 1;
			}
		}
		if (!moved)
			for (int k = 0; k < 4; k++)
				step[k] *= 0.5;
	}
	s->x_px = p[0];
	s->y_px = p[1];
	s->r_px = p[2];
	return best;
}

/* Mean, over the patch's outline, of the steepest step to a neighbour as a
 * share of the contrast: about 0.6 when drawn sharply, 0.3 when blurred. */
static double
sharpness(const struct image *im, int patch, const double *core)
{
	double axis[3], sum = 0.0, scale;
	int n = 0;

	for (int c = 0; c < 3; c++)
		axis[c] = core[c] - im->back[c];
	scale = 1.0 / dot3(axis, axis);
	for (int i = 0; i < N_PX; i++) {
		double top = 0.0;
		int outline = 0, x = i % SIDE, y = i / SIDE;

		if (im->patch[i] != patch || x < 1 || x > SIDE - 2 || y < 1 ||
		    y > SIDE - 2)
			continue;
		for (int k = 0; k < 4; k++) {
			static const int by[4] = { 1, -1, SIDE, -SIDE };
			double d[3], v;

			for (int c = 0; c < 3; c++)
				d[c] = im->raw[i][c] - im->raw[i + by[k]][c];
			v = dot3(d, axis) * scale;
			top = v > top ? v : top;
			outline |= im->patch[i + by[k]] == 0;
		}
		if (outline) {
			sum += top;
			n++;
		}
	}
	return n > 0 ? sum / n : 0.0;
}

static void
look_at_patch(const struct image *im, int patch, struct lpo_view *view,
    double *area, double *sharp)
{
	struct mask m;
	struct lpo_seen s = { 0 }, try = { 0 };
	double core[3], least = 2.0, misfits;

	*area = 0.0;
	core_colour(im, patch, core);
	soft_mask(im, patch, core, &m);
	if (m.area < LEAST_PX || view->n == LPO_JUDGE_MAX_SEEN)
		return;
	for (int k = 0; k < LPO_N_SHAPES; k++) {
		misfits = fit_shape(&m, k, &try);
		if (misfits < least) {
			least = misfits;
			s = try;
			s.shape = k;
		}
	}
	s.colour = name_colour(core, im->back);
	s.size = s.r_px < LARGE_R_PX ? LPO_SMALL : LPO_LARGE;
	view->seen[view->n++] = s;
	*area = m.area;
	*sharp = sharpness(im, patch, core);
}

void
lpo_judge_look(const uint8_t *rgb, struct lpo_view *view)
{
	struct lpo_beauty *b = &view->beauty;
	struct image im;
	double area = 0.0, sharp = 0.0, sum = 0.0, least;
	int on_border = 0;

	memset(view, 0, sizeof(*view));
	for (int i = 0; i < 3 * N_PX; i++)
		im.raw[i / 3][i % 3] = rgb[i] / 255.0;
	find_background(&im);
	find_noise(&im);
	find_calm(&im);
	find_patches(&im);
	for (int k = 1; k <= im.n_patches; k++) {
		look_at_patch(&im, k, view, &area, &sharp);
		b->sharp += area * clamp01((sharp - 0.28) / 0.34);
		sum += area;
	}
	b->sharp = sum > 0.0 ? b->sharp / sum : 0.0;
	least = im.back[0] < im.back[1] ? im.back[0] : im.back[1];
	least = im.back[2] < least ? im.back[2] : least;
	b->white = clamp01((least - 0.50) / 0.43);
	b->calm = clamp01(1.0 - (im.sigma - 0.004) / 0.076);
	for (int i = 0; i < N_PX; i++)
		on_border += im.patch[i] != 0 && (i % SIDE == 0 ||
		    i % SIDE == SIDE - 1 || i < SIDE || i >= N_PX - SIDE);
	b->whole = clamp01(1.0 - on_border / 6.0);
}

/* Same rule as the renderer's, without its safety margins. */
static double
lies(int where, double dx, double dy, double least)
{
	double along, across;

	along = where == LPO_LEFT ? -dx : where == LPO_RIGHT ? dx :
	    where == LPO_TOP ? -dy : dy;
	across = where <= LPO_RIGHT ? dy : dx;
	return along >= least && along >= fabs(across) ? 1.0 : 0.0;
}

static void
rate_group(const struct lpo_view *v, const struct lpo_spec *s,
    struct lpo_verdict *out)
{
	double x = 0.0, y = 0.0, n = v->n;

	out->relation = out->size = out->where = LPO_UNSTATED;
	out->count = v->n == s->count;
	out->colour = out->shape = 0.0;
	if (s->size != LPO_UNSTATED)
		out->size = 0.0;
	if (s->where != LPO_UNSTATED)
		out->where = 0.0;
	for (int i = 0; i < v->n; i++) {
		const struct lpo_seen *o = &v->seen[i];

		out->colour += (o->colour == s->colour[0]) / n;
		out->shape += (o->shape == s->shape[0]) / n;
		if (s->size != LPO_UNSTATED)
			out->size += (o->size == s->size) / n;
		x += o->x_px / n;
		y += o->y_px / n;
	}
	if (s->where != LPO_UNSTATED && v->n > 0)
		out->where = lies(s->where, x - SIDE / 2.0, y - SIDE / 2.0,
		    1.5);
}

/* The two named objects are matched to the two patches that fit best. */
static void
rate_relation(const struct lpo_view *v, const struct lpo_spec *s,
    struct lpo_verdict *out)
{
	double best = -1.0;

	out->size = out->where = LPO_UNSTATED;
	out->count = v->n == 2;
	out->colour = out->shape = out->relation = 0.0;
	for (int i = 0; i < v->n; i++)
		for (int j = 0; j < v->n; j++) {
			const struct lpo_seen *a = &v->seen[i];
			const struct lpo_seen *b = &v->seen[j];
			double colour, shape, rel;

			if (i == j && v->n > 1)
				continue;
			/* A lone patch can be only one of the two. */
			colour = ((a->colour == s->colour[0]) + (i != j &&
			    b->colour == s->colour[1])) / 2.0;
			shape = ((a->shape == s->shape[0]) + (i != j &&
			    b->shape == s->shape[1])) / 2.0;
			rel = i == j ? 0.0 : lies(s->where,
			    a->x_px - b->x_px, a->y_px - b->y_px, 2.5);
			if (2.0 * (colour + shape) + rel > best) {
				best = 2.0 * (colour + shape) + rel;
				out->colour = colour;
				out->shape = shape;
				out->relation = rel;
			}
		}
}

void
lpo_judge_rate(const struct lpo_view *v, const struct lpo_spec *s,
    struct lpo_verdict *out)
{
	double sum;

	memset(out, 0, sizeof(*out));
	if (s->relation) {
		rate_relation(v, s, out);
		sum = out->count + 2.0 * (out->colour + out->shape) +
		    out->relation;
	} else {
		rate_group(v, s, out);
		sum = out->count + out->colour + out->shape;
		sum += s->size != LPO_UNSTATED ? out->size : 0.0;
		sum += s->where != LPO_UNSTATED ? out->where : 0.0;
	}
	out->alignment = sum / lpo_world_facts(s);
	out->aesthetic = lpo_world_aesthetic(&v->beauty);
	out->preference = lpo_world_utility(out->alignment, out->aesthetic);
}
