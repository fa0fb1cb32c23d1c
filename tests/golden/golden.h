/*
 * For the tests against make_models.py's files: the same counter generator,
 * model folders made with it, and comparison with results.
 *
 * A value agrees where it is no farther from the f64 result than 4 times the
 * reference's own f32 error, plus 1e-5 of the tensor's largest value.
 */
#ifndef LPO_TESTS_GOLDEN_H
#define LPO_TESTS_GOLDEN_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/io/safetensors.h"
#include "lib/nn/tape.h"
#include "tests/backend.h"

#define G_SAMPLES 8
#define G_DIGEST (G_SAMPLES + 7)
#define G_UNUSED __attribute__((unused)) static

/* ------------------------------------------------------------- generator */

static uint64_t
g_word(const char *name, uint64_t i)
{
	uint64_t h = 0xcbf29ce484222325, z;

	for (; *name != '\0'; name++)
		h = (h ^ (unsigned char)*name) * 0x100000001b3;
	z = h + (i + 1) * 0x9E3779B97F4A7C15;
	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
	z = (z ^ z >> 27) * 0x94D049BB133111EB;
	return z ^ z >> 31;
}

/* n values in [-scale, scale); the caller frees */
static float *
g_uniform(const char *name, int64_t n, float scale)
{
	float *x = malloc((size_t)n * sizeof(*x)), u;
	int64_t i;

	for (i = 0; i < n; i++) {
		u = (float)(g_word(name, (uint64_t)i) >> 40);
		u = u * 0x1p-23f - 1;
		x[i] = u * scale;
	}
	return x;
}

static float *
g_weight(const char *key, int rank, const int64_t *shape)
{
	int64_t n = 1, fan_in = 1, i;
	int table = strstr(key, "embedding.weight") != NULL;
	size_t len = strlen(key);
	float *x;

	for (i = 0; i < rank; i++) {
		n *= shape[i];
		fan_in *= i > 0 ? shape[i] : 1;
	}
	if (rank >= 2 && !table)
		return g_uniform(key, n, (float)sqrt(3.0 / (double)fan_in));
	if (rank >= 2)
		return g_uniform(key, n, 0.5f);
	if (len < 7 || strcmp(key + len - 7, ".weight") != 0)
		return g_uniform(key, n, 0.125f);
	x = g_uniform(key, n, 0.25f);
	for (i = 0; i < n; i++)
		x[i] += 1;
	return x;
}

/* ---------------------------------------------------------------- set-up */

/* One golden file and a backend. */
struct golden {
	lpo_ctx *c;
	lpo_backend be;
	lpo_st *st;
	const char *name;
	char tmp[64];		/* a folder of our own */
};

/* At a level of tests/backend.h; 0: this machine has none, or it failed. */
G_UNUSED int
g_open(struct golden *g, const char *name, const char *level)
{
	char path[128];

	memset(g, 0, sizeof(*g));
	if (!backend_open(&g->be, level, 2, 0))
		return 0;
	printf("# %s at level %s\n", name, level);
	g->name = name;
	snprintf(path, sizeof(path), "tests/golden/models/%s.safetensors",
	    name);
	strcpy(g->tmp, "/tmp/lpo-golden-XXXXXX");
	if ((g->c = lpo_ctx_new()) == NULL || mkdtemp(g->tmp) == NULL ||
	    lpo_st_open(g->c, &g->st, path) < 0)
		return ok(0, "%s: %s", name, g->c ? lpo_errmsg(g->c) : "");
	return 1;
}

G_UNUSED void
g_close(struct golden *g)
{
	lpo_st_close(g->st);
	backend_close(&g->be);
	lpo_clear(g->c);
	if (lpo_rmtree(g->c, g->tmp) < 0)
		ok(0, "%s", lpo_errmsg(g->c));
	lpo_ctx_free(g->c);
}

/* The n-th line of `keys`: key to `key`, shape; 0 after the last. */
static int
g_key(const lpo_st *st, int64_t n, char key[256], int *rank, int64_t shape[4])
{
	const char *s = lpo_st_meta(st, "keys"), *end;
	char *next;
	int at = 0;

	for (; n > 0; n--) {
		if ((s = strchr(s, '\n')) == NULL)
			return 0;
		s++;
	}
	end = s + strcspn(s, "\n");
	sscanf(s, "%255s%n", key, &at);
	for (s += at, *rank = 0; s < end && *rank < 4; s = next, ++*rank)
		shape[*rank] = strtoll(s, &next, 10);
	return 1;
}

static int
g_write_text(lpo_ctx *c, const char *dir, const char *name, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return lpo_file_write(c, path, text, strlen(text));
}

/*
 * A model folder g->tmp with the file's config and generated weights.
 * change (or NULL) may write another key and shape to the file; it returns 1
 * to keep the tensor.
 */
G_UNUSED int
g_write_model(struct golden *g, const lpo_st *st, const char *stem,
    int (*change)(char key[256], int *rank, int64_t shape[4]))
{
	float *data[2048];
	int64_t shape[4], n, count = 0;
	char key[256], path[256];
	lpo_stw *w = NULL;
	int rank, rc;

	if ((rc = g_write_text(g->c, g->tmp, "config.json",
	    lpo_st_meta(st, "config"))) < 0 ||
	    (rc = lpo_stw_new(g->c, &w)) < 0)
		goto out;
	for (n = 0; n < 2048 && g_key(st, n, key, &rank, shape); n++) {
		data[count] = g_weight(key, rank, shape);
		if (change != NULL && !change(key, &rank, shape)) {
			free(data[count]);
			continue;
		}
		count++;
		if ((rc = lpo_stw_add_f32(w, key, LPO_F32, rank, shape,
		    data[count - 1])) < 0)
			goto out;
	}
	snprintf(path, sizeof(path), "%s/%s.safetensors", g->tmp, stem);
	rc = lpo_stw_write(w, path);
out:
	lpo_stw_free(w);
	while (count > 0)
		free(data[--count]);
	return rc;
}

/* ------------------------------------------------------- layout, transfer */

/* [n, c, hw] <-> [n, hw, c] */
static float *
g_swap(const float *x, int64_t n, int64_t a, int64_t b)
{
	float *y = malloc((size_t)(n * a * b) * sizeof(*y));
	int64_t i, j, k;

	for (i = 0; i < n; i++)
		for (j = 0; j < a; j++)
			for (k = 0; k < b; k++)
				y[(i * b + k) * a + j] =
				    x[(i * a + j) * b + k];
	return y;
}

/*
 * Set an input from the generator, which fills it as the reference has it:
 * channels first.  (For tokens and vectors both are the same when w is 1 and
 * `tokens` is set.)
 */
G_UNUSED int
g_set(lpo_tape *t, lpo_var *v, const char *name, float scale, int tokens,
    int grad)
{
	float *x, *y;
	int rc;

	if (v == NULL)
		return lpo_tape_error(t);
	x = g_uniform(name, lpo_var_count(v), scale);
	y = tokens ? NULL : g_swap(x, v->n, v->c, v->h * v->w);
	rc = grad ? lpo_var_set_grad(t, v, y ? y : x) :
	    lpo_var_set(t, v, y ? y : x);
	free(x);
	free(y);
	return rc;
}

/* ------------------------------------------------------------ comparison */

static float *
g_tensor(const struct golden *g, const char *name, int64_t *count)
{
	const struct lpo_st_tensor *t = lpo_st_find(g->st, name);
	float *x;

	if (t == NULL)
		return NULL;
	x = malloc((size_t)(t->count + 1) * sizeof(*x));
	*count = t->count;
	if (lpo_st_f32(g->c, x, t) < 0) {
		free(x);
		return NULL;
	}
	return x;
}

/* have[n] in the reference's layout against the golden tensor `name` */
static int
g_compare(const struct golden *g, const char *name, const float *have,
    int64_t n)
{
	char err_name[128];
	float *want, *err;
	double worst = 0, largest = 0, limit;
	int64_t i, count = 0, one;
	int good;

	snprintf(err_name, sizeof(err_name), "%s.err", name);
	want = g_tensor(g, name, &count);
	err = g_tensor(g, err_name, &one);
	if (want == NULL || err == NULL || count != n) {
		free(want);
		free(err);
		return ok(0, "%s: %s is there and has %lld values", g->name,
		    name, (long long)n);
	}
	for (i = 0; i < n; i++) {
		worst = worse(worst, fabs((double)have[i] - (double)want[i]));
		largest = fmax(largest, fabs((double)want[i]));
	}
	limit = 4 * (double)err[0] + 1e-5 * largest;
	good = ok(worst <= limit, "%s: %s is off by %.2g of %.2g (limit %.2g)",
	    g->name, name, worst, largest, limit);
	free(want);
	free(err);
	return good;
}

/* A var's value, or its gradient, against a golden tensor. */
G_UNUSED int
g_check(const struct golden *g, lpo_tape *t, const lpo_var *v, const char *name,
    int tokens, int grad)
{
	int64_t n = v != NULL ? lpo_var_count(v) : 0;
	float *x = malloc((size_t)(n + 1) * sizeof(*x)), *y = NULL;
	int rc = grad ? lpo_var_get_grad(t, v, x) : lpo_var_get(t, v, x);

	if (rc < 0) {
		free(x);
		return ok(0, "%s: %s: %s", g->name, name, lpo_errmsg(g->c));
	}
	if (!tokens)
		y = g_swap(x, v->n, v->h * v->w, v->c);
	rc = g_compare(g, name, y != NULL ? y : x, n);
	free(x);
	free(y);
	return rc;
}

/*
 * How far gradient x[n] of `key` is outside its digest's limits: <= 1 is
 * within.  The sums of signs see a wrong layout; their limit is 1e-5 of what
 * n values as large as the root mean square could add up to at random.
 */
static double
g_digest(const char *key, const float *x, int64_t n, const float *d)
{
	double largest = d[G_SAMPLES + 2], norm = d[G_SAMPLES + 3];
	double err = d[G_SAMPLES + 4], sum, worst = 0, off, limit;
	char name[300];
	int64_t i;
	int s;

	snprintf(name, sizeof(name), "at.%s", key);
	limit = 4 * err + 1e-5 * largest;
	for (s = 0; s < G_SAMPLES; s++) {
		i = (int64_t)(g_word(name, (uint64_t)s) % (uint64_t)n);
		off = fabs((double)x[i] - (double)d[s]) / (limit + 1e-30);
		worst = worse(worst, off);
	}
	for (s = 0; s < 2; s++) {
		snprintf(name, sizeof(name), "sign%d.%s", s, key);
		for (i = 0, sum = 0; i < n; i++)
			sum += g_word(name, (uint64_t)i) >> 63 ? -x[i] : x[i];
		limit = 4 * (double)d[G_SAMPLES + 5 + s] + 4 * err *
		    sqrt((double)n) + 1e-5 * norm;
		off = fabs(sum - (double)d[G_SAMPLES + s]) / (limit + 1e-30);
		worst = worse(worst, off);
	}
	return worst;
}

/*
 * Every gradient of `params` against the digests.  The golden file's keys are
 * those of the file; name_of (or NULL) gives a key's name among the params.
 */
G_UNUSED int
g_check_grads(const struct golden *g, lpo_params *params,
    void (*name_of)(char out[300], const char *key))
{
	int64_t shape[4], n, count = 0, checked = 0, rows = 0;
	char key[256], name[300], worst_key[256] = "";
	float *d = g_tensor(g, "grads", &count), *x;
	double off, worst = 0;
	lpo_param *p;
	int rank;

	for (n = 0; d != NULL && g_key(g->st, n, key, &rank, shape); n++) {
		rows++;
		snprintf(name, sizeof(name), "%s", key);
		if (name_of != NULL)
			name_of(name, key);
		if ((p = lpo_param_find(params, name)) == NULL)
			continue;
		x = malloc((size_t)p->count * sizeof(*x));
		off = lpo_param_export_grad(params, p, x) < 0 ? INFINITY :
		    g_digest(key, x, p->count, d + n * G_DIGEST);
		free(x);
		if (worse(worst, off) != worst)
			strcpy(worst_key, key);
		worst = worse(worst, off);
		checked++;
	}
	free(d);
	return ok(checked == params->n && count == rows * G_DIGEST &&
	    worst <= 1, "%s: %lld weight gradients, the worst (%s) at %.2g of "
	    "its limit", g->name, (long long)checked, worst_key, worst);
}

#endif
