/* Parameters to a safetensors file under their diffusers keys. */
#include <math.h>
#include <string.h>

#include "lib/model/weights.h"

struct lpo_weights_source {
	lpo_params *ps;
	const lpo_param *p;
	enum lpo_dtype storage;
	float *whole;		/* while it is written */
};

/* The largest f32 that rounds to a finite f16 or bf16, and one bit more. */
static double
limit(enum lpo_dtype storage)
{
	return storage == LPO_F16 ? 65520 : storage == LPO_BF16 ?
	    3.396e38 : INFINITY;
}

/* A whole tensor at its first piece, then piece by piece. */
static int
get(void *arg, int64_t first, float *out, int64_t n)
{
	struct lpo_weights_source *s = arg;
	double max = limit(s->storage);
	int64_t i;
	int rc;

	if (first == 0) {
		s->whole = lpo_alloc(s->ps->ctx, (size_t)s->p->count,
		    sizeof(float));
		if (s->whole == NULL)
			return LPO_ENOMEM;
		if ((rc = lpo_param_export(s->ps, s->p, s->whole)) < 0)
			return rc;
	}
	memcpy(out, s->whole + first, (size_t)n * sizeof(*out));
	for (i = 0; i < n; i++)
		if (!(fabs((double)out[i]) < max))
			return lpo_fail(s->ps->ctx, LPO_EINVAL, "%g in '%s' "
			    "cannot be stored as %s", (double)out[i],
			    s->p->key, lpo_dtype_name(s->storage));
	if (first + n == s->p->count) {
		lpo_free(s->whole);
		s->whole = NULL;
	}
	return 0;
}

void
lpo_weights_source_free(struct lpo_weights_source *s)
{
	int64_t i;

	for (i = 0; s != NULL && s[i].ps != NULL; i++)
		lpo_free(s[i].whole);
	lpo_free(s);
}

int
lpo_weights_add(lpo_params *ps, lpo_stw *w, enum lpo_dtype storage,
    struct lpo_weights_source **out)
{
	struct lpo_weights_source *s;
	int64_t i;
	int rc = 0;

	s = lpo_alloc(ps->ctx, (size_t)(ps->n + 1), sizeof(*s));
	if ((*out = s) == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < ps->n && rc == 0; i++) {
		s[i] = (struct lpo_weights_source){ ps, ps->p[i], storage,
		    NULL };
		rc = lpo_stw_add_made(w, ps->p[i]->key, storage,
		    ps->p[i]->rank, ps->p[i]->shape, get, &s[i]);
	}
	return rc;
}

int
lpo_weights_save(lpo_params *ps, const char *path, enum lpo_dtype storage,
    const char *const *metadata)
{
	struct lpo_weights_source *s = NULL;
	lpo_stw *w = NULL;
	int rc;

	if ((rc = lpo_stw_new(ps->ctx, &w)) < 0 ||
	    (rc = lpo_stw_meta(w, "format", "pt")) < 0)
		goto out;
	for (; metadata != NULL && *metadata != NULL && rc == 0; metadata += 2)
		rc = lpo_stw_meta(w, metadata[0], metadata[1]);
	if (rc == 0 && (rc = lpo_weights_add(ps, w, storage, &s)) == 0)
		rc = lpo_stw_write(w, path);
out:
	lpo_stw_free(w);
	lpo_weights_source_free(s);
	return rc;
}
