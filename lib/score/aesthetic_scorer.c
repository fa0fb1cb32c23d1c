/*
 * aesthetic:HEAD,DIR: the LAION aesthetic predictor (models.md 9.5): five
 * affine maps without activations on CLIP's normalised image_embeds,
 *
 *	y = W4 (W3 (W2 (W1 (W0 i/|i| + b0) + b1) + b2) + b3) + b4
 *
 * HEAD: safetensors or a torch file with layers.{0,2,4,6,7}.{weight,bias};
 * the numbers in between were dropouts.  DIR: a CLIPModel folder.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/io/safetensors.h"
#include "lib/score/embedder.h"

enum { LAYERS = 5 };

static const int numbers[LAYERS] = { 0, 2, 4, 6, 7 };

struct layer {
	int64_t in, out;
	float *w, *b;		/* [out, in], [out] */
};

struct aesthetic {
	lpo_ctx *ctx;
	lpo_embedder *eye;
	struct layer layer[LAYERS];
	double *x, *y;		/* of the widest layer */
};

/* "HEAD,DIR" to a new string cut at its last comma, *dir behind it. */
static char *
split(lpo_ctx *c, const char *arg, const char **dir)
{
	char *head = lpo_strdup(c, arg), *comma;

	if (head == NULL)
		return NULL;
	if ((comma = strrchr(head, ',')) == NULL || comma == head ||
	    comma[1] == '\0') {
		lpo_free(head);
		lpo_fail(c, LPO_EINVAL, "aesthetic:%s: want the head's file "
		    "and a CLIP folder, aesthetic:HEAD,DIR", arg);
		return NULL;
	}
	*comma = '\0';
	*dir = comma + 1;
	return head;
}

static int
aesthetic_inputs(lpo_ctx *c, const struct lpo_scorer_opts *o, const char *arg,
    int (*each)(void *, const char *), void *to)
{
	const char *dir;
	char *head = split(c, arg, &dir);
	int rc;

	(void)o;
	if (head == NULL)
		return lpo_errcode(c);
	if ((rc = each(to, head)) == 0)
		rc = each(to, dir);
	lpo_free(head);
	return rc;
}

static void
aesthetic_close(void *self)
{
	struct aesthetic *m = self;
	int i;

	if (m == NULL)
		return;
	for (i = 0; i < LAYERS; i++) {
		lpo_free(m->layer[i].w);
		lpo_free(m->layer[i].b);
	}
	lpo_free(m->x);
	lpo_free(m->y);
	lpo_free(m);
}

/* All values of t, finite. */
static int
read_tensor(lpo_ctx *c, float **out, const lpo_st *st,
    const struct lpo_st_tensor *t)
{
	int64_t i;
	int rc;

	*out = lpo_alloc(c, (size_t)t->count + 1, sizeof(float));
	if (*out == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_st_f32(c, *out, t)) < 0)
		return lpo_fail_prefix(c, "%s", lpo_st_path(st));
	for (i = 0; i < t->count; i++)
		if (!isfinite((*out)[i]))
			return lpo_fail(c, LPO_EFORMAT, "%s: element %lld of "
			    "'%s' is not finite", lpo_st_path(st),
			    (long long)i, t->key);
	return 0;
}

/* Layer i, which takes `in` values. */
static int
read_layer(lpo_ctx *c, struct layer *l, const lpo_st *st, int i, int64_t in)
{
	const struct lpo_st_tensor *w, *b;
	int64_t shape[2] = { -1, -1 };
	char key[32];
	int rc;

	snprintf(key, sizeof(key), "layers.%d.weight", numbers[i]);
	if ((w = lpo_st_need(c, st, key, 2, shape)) == NULL)
		return lpo_errcode(c);
	l->out = w->shape[0];
	l->in = w->shape[1];
	if (l->in != in)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' takes %lld values, "
		    "%s gives %lld", lpo_st_path(st), key, (long long)l->in,
		    i == 0 ? "the CLIP folder" : "the layer before",
		    (long long)in);
	if (i == LAYERS - 1 ? l->out != 1 : l->out < 1)
		return lpo_fail(c, LPO_EFORMAT, "%s: '%s' gives %lld values%s",
		    lpo_st_path(st), key, (long long)l->out,
		    i == LAYERS - 1 ? ", not one" : "");
	snprintf(key, sizeof(key), "layers.%d.bias", numbers[i]);
	if ((b = lpo_st_need(c, st, key, 1, &l->out)) == NULL)
		return lpo_errcode(c);
	if ((rc = read_tensor(c, &l->w, st, w)) < 0)
		return rc;
	return read_tensor(c, &l->b, st, b);
}

static int
read_head(struct aesthetic *m, const char *path)
{
	int64_t in = lpo_embedder_width(m->eye), widest = in;
	lpo_st *st = NULL;
	int i, rc;

	if ((rc = lpo_st_open(m->ctx, &st, path)) < 0)
		return rc;
	for (i = 0; i < LAYERS && rc == 0; i++) {
		rc = read_layer(m->ctx, &m->layer[i], st, i, in);
		in = m->layer[i].out;
		widest = in > widest ? in : widest;
	}
	lpo_st_close(st);
	if (rc < 0)
		return rc;
	m->x = lpo_alloc(m->ctx, (size_t)widest, sizeof(double));
	m->y = lpo_alloc(m->ctx, (size_t)widest, sizeof(double));
	return m->x == NULL || m->y == NULL ? LPO_ENOMEM : 0;
}

static int
aesthetic_open(lpo_scorers *set, void **self, const char *arg)
{
	lpo_ctx *c = lpo_scorers_ctx(set);
	struct aesthetic *m;
	const char *dir;
	char *head;
	int rc;

	if ((head = split(c, arg, &dir)) == NULL)
		return lpo_errcode(c);
	rc = LPO_ENOMEM;
	if ((*self = m = lpo_alloc(c, 1, sizeof(*m))) != NULL) {
		m->ctx = c;
		if ((rc = lpo_scorers_embedder(set, &m->eye, dir)) == 0)
			rc = read_head(m, head);
	}
	lpo_free(head);
	return rc;
}

/* y = W x + b, summed in f64 */
static void
affine(double *y, const struct layer *l, const double *x)
{
	int64_t i, k;

	for (i = 0; i < l->out; i++) {
		const float *w = l->w + i * l->in;
		double sum = l->b[i];

		for (k = 0; k < l->in; k++)
			sum += (double)w[k] * x[k];
		y[i] = sum;
	}
}

static int
aesthetic_run(void *self, double *value, int64_t stride,
    const char *const *prompt, int64_t n)
{
	struct aesthetic *m = self;
	int64_t width = lpo_embedder_width(m->eye), i;
	const float *embeds;
	double *swap;
	int k, rc;

	(void)prompt;
	if ((rc = lpo_embedder_get(m->eye, &embeds, n)) < 0)
		return rc;
	for (i = 0; i < n; i++) {
		lpo_embed_normalise(m->x, embeds + i * width, width);
		for (k = 0; k < LAYERS; k++) {
			affine(m->y, &m->layer[k], m->x);
			swap = m->x;
			m->x = m->y;
			m->y = swap;
		}
		value[i * stride] = m->x[0];
	}
	return 0;
}

static const char *const columns[] = { "score", NULL };

const struct lpo_scorer_class lpo_scorer_aesthetic = {
	"aesthetic", "HEAD,DIR", columns, aesthetic_inputs, aesthetic_open,
	aesthetic_close, NULL, aesthetic_run
};
