/* Moments to noisy latent pairs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/base/philox.h"
#include "lib/train/pairs.h"

/* ----------------------------------------------------------- timesteps */

static int
parse_number(const char **s, int64_t *out)
{
	char *end;

	*out = strtoll(*s, &end, 10);
	if (end == *s || *out < 0 || *out > 1000000)
		return -1;
	*s = end;
	return 0;
}

int
lpo_pair_timesteps_parse(lpo_ctx *c, int64_t **list, int64_t *n,
    const char *spec)
{
	const char *s = spec;
	int64_t v[3], i, *l;

	*list = NULL;
	*n = 0;
	if (strchr(spec, ':') != NULL) {
		for (i = 0; i < 3; i++)
			if (parse_number(&s, &v[i]) != 0 ||
			    *s++ != (i < 2 ? ':' : '\0'))
				goto bad;
		if (v[2] < 1 || v[1] < v[0])
			goto bad;
		*n = (v[1] - v[0]) / v[2] + 1;
		if ((l = lpo_alloc(c, (size_t)*n, sizeof *l)) == NULL)
			return LPO_ENOMEM;
		for (i = 0; i < *n; i++)
			l[i] = v[0] + i * v[2];
		*list = l;
		return 0;
	}
	l = lpo_alloc(c, strlen(spec) / 2 + 1, sizeof *l);
	if (l == NULL)
		return LPO_ENOMEM;
	for (i = 0;; i++) {
		/* ascending, so that "index j" means a noise level */
		if (parse_number(&s, &l[i]) != 0 ||
		    (i > 0 && l[i] <= l[i - 1]) || (*s != ',' && *s != '\0')) {
			lpo_free(l);
			goto bad;
		}
		if (*s++ == '\0')
			break;
	}
	*list = l;
	*n = i + 1;
	return 0;
bad:
	return lpo_fail(c, LPO_EINVAL, "timesteps '%s': want first:last:step "
	    "or an ascending list t,t,...", spec);
}

int
lpo_pair_opts_check(lpo_ctx *c, const struct lpo_pair_opts *o)
{
	int64_t last = o->timesteps[o->n_timesteps - 1];

	if (last >= o->schedule->train_steps)
		return lpo_fail(c, LPO_EINVAL, "timestep %lld: the model has "
		    "0..%lld", (long long)last,
		    (long long)o->schedule->train_steps - 1);
	/* every index needs a partner inside the list */
	if (o->interval < 0 || 2 * o->interval > o->n_timesteps)
		return lpo_fail(c, LPO_EINVAL, "a distance of %lld between "
		    "timesteps does not fit %lld candidates",
		    (long long)o->interval, (long long)o->n_timesteps);
	return 0;
}

void
lpo_pair_timesteps(const struct lpo_pair_opts *o, int64_t t[2], uint32_t row,
    uint32_t epoch, int cross)
{
	struct lpo_draw d = { .seed = o->seed, .purpose = LPO_DRAW_TIMESTEP,
	    .item = row, .epoch = epoch };
	int64_t n = o->n_timesteps, gap = o->interval, j, k;

	/* element 1, or a row's two items would share their timestep */
	j = lpo_draw_below(&d, cross ? 1 : 0, (uint32_t)n);
	t[0] = t[1] = o->timesteps[j];
	if (!cross)
		return;
	d.purpose = LPO_DRAW_PARTNER;
	if (j < gap)
		k = j + gap;
	else if (j >= n - gap)
		k = j - gap;
	else
		k = lpo_draw_below(&d, 0, 2) ? j + gap : j - gap;
	t[1] = o->timesteps[k];
}

/* -------------------------------------------------------------- latent */

/*
 * exp(x) in f64 with +, -, * only, so that every machine has the same bits
 * (libm's differ).  |x| <= 15 here: x = k ln 2 + r, |r| <= ln(2)/2, Taylor to
 * r^11, which is good to 1e-14: far below the f32 it becomes.
 */
static inline double
exp_small(double x)
{
	const double round = 6755399441055744.0;	/* 1.5 * 2^52 */
	double shifted = x * 1.4426950408889634074 + round;
	double k = shifted - round;
	double r = x - k * 0.69314718055994530942, p;
	uint64_t u, v;

	p = 1.0 / 39916800;
	p = p * r + 1.0 / 3628800;
	p = p * r + 1.0 / 362880;
	p = p * r + 1.0 / 40320;
	p = p * r + 1.0 / 5040;
	p = p * r + 1.0 / 720;
	p = p * r + 1.0 / 120;
	p = p * r + 1.0 / 24;
	p = p * r + 1.0 / 6;
	p = p * r + 1.0 / 2;
	p = p * r + 1;
	p = p * r + 1;
	/* the low bits of `shifted` are k: add it to p's exponent */
	memcpy(&u, &shifted, 8);
	memcpy(&v, &p, 8);
	v += u << 52;
	memcpy(&p, &v, 8);
	return p;
}

__attribute__((target_clones("avx512f", "avx2", "default")))
static void
posterior(float *x, const float *mean, const float *logvar, const float *e,
    float scale, int64_t n)
{
	int64_t i;

#pragma omp simd
	for (i = 0; i < n; i++) {
		float lv = logvar[i];
		float std, z;

		lv = lv < -30 ? -30 : lv > 20 ? 20 : lv;
		std = (float)exp_small(0.5 * (double)lv);
		z = mean[i] + std * e[i];
		x[i] = z * scale;
	}
}

void
lpo_pair_latent(const struct lpo_pair_opts *o, float *x,
    const float *moments, int64_t c, int64_t hw, uint32_t row,
    uint32_t epoch, uint32_t candidate, int64_t t, float *work)
{
	struct lpo_draw d = { .seed = o->seed,
	    .purpose = LPO_DRAW_POSTERIOR, .item = row, .epoch = epoch,
	    .candidate = candidate };
	int64_t n = c * hw, i, j;
	float off;

	lpo_draw_normal(&d, 0, work, n);
	posterior(x, moments, moments + n, work, o->scaling_factor, n);
	d.purpose = LPO_DRAW_NOISE;
	lpo_draw_normal(&d, 0, work, n);
	if (o->noise_offset != 0) {
		d.purpose = LPO_DRAW_OFFSET;
		for (i = 0; i < c; i++) {
			lpo_draw_normal(&d, (uint64_t)i, &off, 1);
			for (j = 0; j < hw; j++)
				work[i * hw + j] += o->noise_offset * off;
		}
	}
	lpo_schedule_add_noise(o->schedule, x, x, work, t, n);
}

/* -------------------------------------------------------------- sample */

static int
load_moments(lpo_ctx *c, struct lpo_npy *a, const struct lpo_pair_in *in,
    int image)
{
	char name[LPO_KEY_SIZE + 32];
	int rc;

	snprintf(name, sizeof name, "%s.moments_%d.npy", in->record->key,
	    image);
	if (in->moments[image] == NULL)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is missing", name);
	rc = lpo_npy_parse(c, a, in->moments[image],
	    (size_t)in->bytes[image], name);
	if (rc != 0)
		return rc;
	if (a->ndim != 3 || a->shape[0] < 2 || a->shape[0] % 2 != 0 ||
	    a->count == 0 || (a->type != LPO_NPY_F2 && a->type != LPO_NPY_F4))
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not [2c, h, w] "
		    "moments in f2 or f4", name);
	return 0;
}

void
lpo_pair_relabel(struct lpo_record *r, const int64_t t[2], uint32_t epoch,
    int cross)
{
	snprintf(r->key, sizeof r->key, "%09lld-e%u%s", (long long)r->row,
	    epoch, cross ? "-t" : "");
	if (cross) {
		r->label_0 = t[0] < t[1];
		r->label_1 = 1 - r->label_0;
	}
}

static int
pair_json(lpo_ctx *c, struct lpo_sample *out, const struct lpo_pair_in *in,
    const int64_t t[2])
{
	struct lpo_record r = *in->record;
	int rc;

	lpo_pair_relabel(&r, t, in->epoch, in->cross);
	if ((rc = lpo_record_to_json(c, &out->json, &r)) != 0 ||
	    (rc = lpo_json_set(c, out->json, "timestep_0",
	    json_integer(t[0]))) != 0 ||
	    (rc = lpo_json_set(c, out->json, "timestep_1",
	    json_integer(t[1]))) != 0 ||
	    (rc = lpo_json_set(c, out->json, "epoch",
	    json_integer(in->epoch))) != 0)
		return rc;
	out->key = lpo_strdup(c, r.key);
	return out->key != NULL ? 0 : LPO_ENOMEM;
}

/* Image i of the pair, noised to timestep t, appended as a member. */
static int
add_latent(lpo_ctx *c, struct lpo_sample *out, const struct lpo_pair_opts *o,
    const struct lpo_pair_in *in, int i, int64_t t)
{
	struct lpo_npy a;
	uint8_t *bytes;
	float *m, *x, *work;
	int64_t shape[3], hw, n, size;
	/* a cross pair is the preferred image twice */
	int image = in->cross ? in->record->label_1 > in->record->label_0 : i;
	int rc;

	if ((rc = load_moments(c, &a, in, image)) != 0)
		return rc;
	shape[0] = a.shape[0] / 2;
	shape[1] = a.shape[1];
	shape[2] = a.shape[2];
	hw = shape[1] * shape[2];
	n = shape[0] * hw;
	if ((m = lpo_alloc(c, (size_t)(4 * n), sizeof *m)) == NULL)
		return LPO_ENOMEM;
	x = m + 2 * n;
	work = x + n;
	lpo_npy_f32(m, &a);
	lpo_pair_latent(o, x, m, shape[0], hw, (uint32_t)in->record->row,
	    in->epoch, (uint32_t)(in->cross ? 2 + i : i), t, work);
	rc = lpo_npy_make_f32(c, &bytes, &size, o->dtype, 3, shape, x);
	lpo_free(m);
	if (rc == 0)
		rc = lpo_sample_add(c, out, i ? "latent_1.npy" :
		    "latent_0.npy", bytes, size);
	return rc;
}

int
lpo_pair_sample(lpo_ctx *c, struct lpo_sample *out,
    const struct lpo_pair_opts *o, const struct lpo_pair_in *in)
{
	int64_t t[2];
	int i, rc;

	memset(out, 0, sizeof *out);
	lpo_pair_timesteps(o, t, (uint32_t)in->record->row, in->epoch,
	    in->cross);
	if ((rc = pair_json(c, out, in, t)) != 0)
		return rc;
	for (i = 0; i < 2 && rc == 0; i++)
		rc = add_latent(c, out, o, in, i, t[i]);
	if (rc != 0)
		lpo_fail_prefix(c, "pair '%s'", out->key);
	return rc;
}
