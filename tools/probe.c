/* Tensors in, tensors out, for lpo-probe's components. */
#include <string.h>

#include "tools/probe.h"

static void *
keep(struct lpo_probe *p, size_t count, size_t size)
{
	int cap = p->cap_kept ? 2 * p->cap_kept : 64;
	void **list, *mem;

	if (p->n_kept == p->cap_kept) {
		list = lpo_realloc(p->ctx, p->kept, (size_t)cap * sizeof *list);
		if (list == NULL)
			return NULL;
		p->kept = list;
		p->cap_kept = cap;
	}
	mem = lpo_alloc(p->ctx, count ? count : 1, size);
	if (mem != NULL)
		p->kept[p->n_kept++] = mem;
	return mem;
}

static const struct lpo_st_tensor *
need(struct lpo_probe *p, const char *key, int ndim, int64_t *shape)
{
	const struct lpo_st_tensor *t = lpo_st_need(p->ctx, p->in, key, ndim,
	    shape);

	if (t == NULL)
		return NULL;
	if (t->count == 0) {
		lpo_fail(p->ctx, LPO_EFORMAT, "%s: '%s' has no elements",
		    p->o->input, key);
		return NULL;
	}
	memcpy(shape, t->shape, (size_t)ndim * sizeof *shape);
	return t;
}

/* The reading of a tensor knows its key, not its file. */
static int
named(struct lpo_probe *p, int rc)
{
	if (rc != 0)
		lpo_fail_prefix(p->ctx, "%s", p->o->input);
	return rc;
}

float *
lpo_probe_f32(struct lpo_probe *p, const char *key, int ndim, int64_t *shape)
{
	const struct lpo_st_tensor *t = need(p, key, ndim, shape);
	float *out;

	if (t == NULL || (out = lpo_probe_new(p, t->count)) == NULL)
		return NULL;
	return named(p, lpo_st_f32(p->ctx, out, t)) == 0 ? out : NULL;
}

int64_t *
lpo_probe_i64(struct lpo_probe *p, const char *key, int ndim, int64_t *shape)
{
	const struct lpo_st_tensor *t = need(p, key, ndim, shape);
	int64_t *out;

	if (t == NULL ||
	    (out = keep(p, (size_t)t->count, sizeof *out)) == NULL)
		return NULL;
	return named(p, lpo_st_i64(p->ctx, out, t)) == 0 ? out : NULL;
}

int32_t *
lpo_probe_ids(struct lpo_probe *p, const char *key, int ndim, int64_t *shape)
{
	int64_t *in = lpo_probe_i64(p, key, ndim, shape), i, n = 1;
	int32_t *out;

	if (in == NULL)
		return NULL;
	for (i = 0; i < ndim; i++)
		n *= shape[i];
	if ((out = keep(p, (size_t)n, sizeof *out)) == NULL)
		return NULL;
	for (i = 0; i < n; i++) {
		if (in[i] < 0 || in[i] > INT32_MAX) {
			lpo_fail(p->ctx, LPO_EINVAL, "%s: %lld in '%s' is no "
			    "id of a token", p->o->input, (long long)in[i],
			    key);
			return NULL;
		}
		out[i] = (int32_t)in[i];
	}
	return out;
}

int
lpo_probe_has(const struct lpo_probe *p, const char *key)
{
	return lpo_st_find(p->in, key) != NULL;
}

float *
lpo_probe_new(struct lpo_probe *p, int64_t count)
{
	return keep(p, (size_t)count, sizeof(float));
}

int
lpo_probe_put(struct lpo_probe *p, const char *key, int ndim,
    const int64_t *shape, const float *data)
{
	if (data == NULL)
		return lpo_errcode(p->ctx);
	return lpo_stw_add_f32(p->out, key, LPO_F32, ndim, shape, data);
}

int
lpo_probe_put_scalar(struct lpo_probe *p, const char *key, double v)
{
	float *x = lpo_probe_new(p, 1);

	if (x == NULL)
		return LPO_ENOMEM;
	*x = (float)v;
	return lpo_probe_put(p, key, 0, NULL, x);
}

int
lpo_probe_put_i64(struct lpo_probe *p, const char *key, int ndim,
    const int64_t *shape, const int64_t *data)
{
	return lpo_stw_add(p->out, key, LPO_I64, ndim, shape, data);
}

int
lpo_probe_input(struct lpo_probe *p, lpo_var *var, const void *host)
{
	int max = (int)(sizeof p->input / sizeof *p->input);

	if (host == NULL || p->n_input == max)
		return lpo_fail(p->ctx, LPO_EINVAL, "too many inputs");
	p->input[p->n_input].var = var;
	p->input[p->n_input++].host = host;
	return 0;
}

int
lpo_probe_sinusoids(struct lpo_probe *p, lpo_var *var, const lpo_unet *unet,
    const float *t, int64_t n, int64_t dim)
{
	const struct lpo_unet_config *c = lpo_unet_cfg(unet);
	float *x = lpo_probe_new(p, n * dim);
	int64_t i;

	if (x == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++)
		lpo_sinusoid(x + i * dim, t[i], dim, c->flip_sin_to_cos,
		    c->freq_shift);
	return lpo_probe_input(p, var, x);
}

int
lpo_probe_set_inputs(struct lpo_probe *p, lpo_tape *t)
{
	int i, rc = 0;

	for (i = 0; i < p->n_input && rc == 0; i++)
		rc = lpo_var_set(t, p->input[i].var, p->input[i].host);
	return rc;
}

int
lpo_probe_run(struct lpo_probe *p, int (*fn)(void *), void *arg)
{
	int64_t i;
	double start;
	int rc = 0;

	for (i = 0; i < p->o->repeat && rc == 0; i++) {
		start = lpo_cli_now();
		rc = fn(arg);
		p->ms[i] = 1e3 * (lpo_cli_now() - start);
	}
	return rc;
}

void
lpo_probe_to_hwc(float *out, const float *in, int64_t n, int64_t c,
    int64_t hw)
{
	int64_t i, k, j;

	for (i = 0; i < n; i++)
		for (k = 0; k < c; k++)
			for (j = 0; j < hw; j++)
				out[(i * hw + j) * c + k] =
				    in[(i * c + k) * hw + j];
}

void
lpo_probe_to_chw(float *out, const float *in, int64_t n, int64_t c,
    int64_t hw)
{
	lpo_probe_to_hwc(out, in, n, hw, c);
}

int
lpo_probe_put_image(struct lpo_probe *p, lpo_tape *t, const char *key,
    const lpo_var *v, int grad)
{
	const int64_t shape[4] = { v->n, v->c, v->h, v->w };
	float *hwc = lpo_probe_new(p, lpo_var_count(v));
	float *chw = lpo_probe_new(p, lpo_var_count(v));
	int rc;

	if (hwc == NULL || chw == NULL)
		return LPO_ENOMEM;
	rc = grad ? lpo_var_get_grad(t, v, hwc) : lpo_var_get(t, v, hwc);
	if (rc != 0)
		return rc;
	lpo_probe_to_chw(chw, hwc, v->n, v->c, v->h * v->w);
	return lpo_probe_put(p, key, 4, shape, chw);
}

int
lpo_probe_put_var(struct lpo_probe *p, lpo_tape *t, const char *key,
    const lpo_var *v, int ndim, const int64_t *shape)
{
	float *x = lpo_probe_new(p, lpo_var_count(v));
	int rc;

	if (x == NULL)
		return LPO_ENOMEM;
	rc = lpo_var_get(t, v, x);
	return rc != 0 ? rc : lpo_probe_put(p, key, ndim, shape, x);
}

int
lpo_probe_put_grads(struct lpo_probe *p, lpo_params *set, const char *prefix)
{
	int64_t i;
	char *key;
	float *g;
	int rc = 0;

	for (i = 0; i < set->n && rc == 0; i++) {
		const lpo_param *q = set->p[i];

		if (q->grad == NULL)
			continue;
		g = lpo_probe_new(p, q->count);
		key = lpo_asprintf(p->ctx, "%s%s", prefix, q->key);
		if (g == NULL || key == NULL)
			rc = LPO_ENOMEM;
		else if ((rc = lpo_param_export_grad(set, q, g)) == 0)
			rc = lpo_probe_put(p, key, q->rank, q->shape, g);
		lpo_free(key);
	}
	return rc;
}

static int
put_lora_grad(void *arg, const char *key, int rank, const int64_t *shape,
    const float *data)
{
	struct lpo_probe *p = arg;
	int64_t count = 1;
	char *name;
	float *copy;
	int i, rc = LPO_ENOMEM;

	for (i = 0; i < rank; i++)
		count *= shape[i];
	copy = lpo_probe_new(p, count);
	name = lpo_asprintf(p->ctx, "grad.%s", key);
	if (copy != NULL && name != NULL) {
		memcpy(copy, data, (size_t)count * sizeof *copy);
		rc = lpo_probe_put(p, name, rank, shape, copy);
	}
	lpo_free(name);
	return rc;
}

int
lpo_probe_put_lora_grads(struct lpo_probe *p, lpo_lora_set *set)
{
	return lpo_lora_each(p->ctx, set, LPO_LORA_AS_READ, 1, put_lora_grad,
	    p);
}
