/* LoRA on a UNet: attach, walk, write.  Reading is in lora_load.c. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/io/safetensors.h"
#include "lib/model/lora_priv.h"

int
lpo_lora_new(lpo_ctx *c, lpo_lora_set **out, lpo_unet *u)
{
	lpo_lora_set *s;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((s = lpo_alloc(c, 1, sizeof(*s))) == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->unet = u;
	lpo_unet_layers(u, &s->cap);
	s->item = lpo_alloc(c, (size_t)s->cap, sizeof(*s->item));
	if (s->item == NULL || (rc = lpo_params_init(&s->params, c,
	    lpo_unet_params(u)->be, lpo_unet_params(u)->dtype)) < 0) {
		lpo_lora_free(s);
		return rc;
	}
	*out = s;
	return 0;
}

static lpo_lora **
slot(const struct lpo_unet_layer *l)
{
	return l->linear != NULL ? &l->linear->lora : &l->conv->lora;
}

static const lpo_param *
base(const struct lpo_unet_layer *l)
{
	return l->linear != NULL ? l->linear->w : l->conv->w;
}

/*
 * A [r, in] or [r, in, kh, kw], B [out, r] or [out, r, 1, 1]: of as many
 * dimensions as the layer's weight has in the file.
 */
static int
make_pair(lpo_lora_set *s, struct lpo_lora_item *it, int64_t rank)
{
	const lpo_param *w = base(it->at);
	int64_t a[4] = { rank, w->shape[1], 1, 1 };
	int64_t b[4] = { w->shape[0], rank, 1, 1 };
	char key[LPO_LORA_NAME + 32];

	if (w->rank == 4) {
		a[2] = w->shape[2];
		a[3] = w->shape[3];
	}
	snprintf(key, sizeof(key), "%s.lora_A.weight", it->at->path);
	it->lora.a = lpo_param_add(&s->params, key, w->kind, w->rank, a);
	snprintf(key, sizeof(key), "%s.lora_B.weight", it->at->path);
	it->lora.b = it->lora.a == NULL ? NULL :
	    lpo_param_add(&s->params, key, LPO_MATRIX, w->rank, b);
	return it->lora.b == NULL ? lpo_errcode(s->ctx) : 0;
}

int
lpo_lora_put(lpo_lora_set *s, struct lpo_lora_item **item,
    const struct lpo_unet_layer *l, int64_t rank, float scale)
{
	struct lpo_lora_item *it = &s->item[s->n];
	int rc;

	if (*slot(l) != NULL || s->n == s->cap)
		return lpo_fail(s->ctx, LPO_EINVAL, "'%s' has a LoRA already",
		    l->path);
	if (rank < 1 || rank > 1 << 16)
		return lpo_fail(s->ctx, LPO_EINVAL,
		    "'%s': a LoRA of rank %lld", l->path, (long long)rank);
	it->at = l;
	it->lora.rank = rank;
	it->lora.scale = scale;
	if ((rc = make_pair(s, it, rank)) < 0)
		return rc;
	*slot(l) = &it->lora;
	s->n++;
	*item = it;
	return 0;
}

/* A ~ N(0, 1/rank^2), a draw of the layer's own; B stays zero. */
static int
draw(lpo_lora_set *s, struct lpo_lora_item *it, uint64_t seed, int64_t index)
{
	const struct lpo_draw d = { .seed = seed, .purpose = LPO_DRAW_INIT,
	    .item = (uint32_t)index };
	lpo_param *a = it->lora.a;
	float *x, std = 1.0f / (float)it->lora.rank;
	int64_t i;
	int rc;

	if ((x = lpo_alloc(s->ctx, (size_t)a->count, sizeof(*x))) == NULL)
		return LPO_ENOMEM;
	lpo_draw_normal(&d, 0, x, a->count);
	for (i = 0; i < a->count; i++)
		x[i] *= std;
	rc = lpo_param_import(&s->params, a, x);
	lpo_free(x);
	return rc;
}

int
lpo_lora_attach(lpo_ctx *c, lpo_lora_set **out, lpo_unet *u,
    enum lpo_lora_targets targets, int64_t rank, float alpha, uint64_t seed)
{
	const struct lpo_unet_layer *l;
	struct lpo_lora_item *it;
	lpo_lora_set *s = NULL;
	int64_t i, n;
	int rc;

	*out = NULL;
	if (!isfinite(alpha))
		return lpo_fail(c, LPO_EINVAL, "a LoRA of alpha %g",
		    (double)alpha);
	l = lpo_unet_layers(u, &n);
	if ((rc = lpo_lora_new(c, &s, u)) < 0)
		return rc;
	for (i = 0; i < n; i++) {
		if (l[i].part != LPO_UNET_ATTENTION &&
		    (targets != LPO_LORA_ALL || l[i].part != LPO_UNET_BLOCK))
			continue;
		if ((rc = lpo_lora_put(s, &it, &l[i], rank,
		    alpha / (float)rank)) < 0 ||
		    (rc = draw(s, it, seed, i)) < 0)
			goto out;
	}
	if ((rc = lpo_params_train_all(&s->params)) < 0)
		goto out;
	*out = s;
	s = NULL;
out:
	lpo_lora_free(s);
	return rc;
}

void
lpo_lora_free(lpo_lora_set *s)
{
	int64_t i;
	int j;

	if (s == NULL)
		return;
	for (i = 0; i < s->n; i++) {
		*slot(s->item[i].at) = NULL;
		for (j = 0; j < 3; j++)
			lpo_free(s->item[i].key[j]);
	}
	lpo_params_free(&s->params);
	lpo_free(s->item);
	lpo_free(s);
}

lpo_params *
lpo_lora_params(lpo_lora_set *s)
{
	return &s->params;
}

int64_t
lpo_lora_rank(const lpo_lora_set *s)
{
	int64_t i, r = 0;

	for (i = 0; i < s->n; i++)
		if (s->item[i].lora.rank > r)
			r = s->item[i].lora.rank;
	return r;
}

/* --------------------------------------------------------------- walking */

struct walk {
	lpo_lora_set *set;
	int grad;
	int (*fn)(void *, const char *, int, const int64_t *, const float *);
	void *arg;
};

/*
 * One matrix under its key, times `fold` (its gradient: divided by it, as the
 * matrix in the file is fold times ours).
 */
static int
emit(struct walk *w, const lpo_param *p, const char *key, float fold)
{
	lpo_ctx *c = w->set->ctx;
	float *x, by = w->grad ? 1 / fold : fold;
	int64_t i;
	int rc;

	if ((x = lpo_alloc(c, (size_t)p->count, sizeof(*x))) == NULL)
		return LPO_ENOMEM;
	rc = w->grad ? lpo_param_export_grad(&w->set->params, p, x) :
	    lpo_param_export(&w->set->params, p, x);
	for (i = 0; i < p->count && by != 1; i++)
		x[i] *= by;
	if (rc == 0)
		rc = w->fn(w->arg, key, p->rank, p->shape, x);
	lpo_free(x);
	return rc;
}

static float
alpha_of(const struct lpo_lora_item *it)
{
	return it->lora.scale * (float)it->lora.rank;
}

void
lpo_lora_shape(const lpo_lora_set *s, struct lpo_lora_shape *out)
{
	const struct lpo_lora_item *it;
	int64_t i;

	memset(out, 0, sizeof(*out));
	out->layers = s->n;
	for (i = 0; i < s->n; i++) {
		it = &s->item[i];
		out->others += it->at->part != LPO_UNET_ATTENTION;
		if (i == 0 || it->lora.rank < out->rank_min)
			out->rank_min = it->lora.rank;
		if (it->lora.rank > out->rank_max)
			out->rank_max = it->lora.rank;
		if (i == 0 || (double)alpha_of(it) < out->alpha_min)
			out->alpha_min = (double)alpha_of(it);
		if (i == 0 || (double)alpha_of(it) > out->alpha_max)
			out->alpha_max = (double)alpha_of(it);
	}
}

static int
emit_kohya(struct walk *w, const struct lpo_lora_item *it)
{
	const struct lpo_unet_config *g = lpo_unet_cfg(w->set->unet);
	char name[LPO_LORA_NAME], key[LPO_LORA_NAME + 32];
	float alpha = alpha_of(it);
	int rc;

	if (lpo_lora_kohya_name(name, g, it->at->path, g->text_time) < 0)
		return lpo_fail(w->set->ctx, LPO_EINVAL,
		    "'%s' has no name in kohya's form", it->at->path);
	snprintf(key, sizeof(key), "%s.lora_down.weight", name);
	if ((rc = emit(w, it->lora.a, key, 1)) < 0)
		return rc;
	snprintf(key, sizeof(key), "%s.lora_up.weight", name);
	if ((rc = emit(w, it->lora.b, key, 1)) < 0 || w->grad)
		return rc;
	snprintf(key, sizeof(key), "%s.alpha", name);
	return w->fn(w->arg, key, 0, NULL, &alpha);
}

/* No alpha in this form: readers take scale 1, so ours goes into B. */
static int
emit_diffusers(struct walk *w, const struct lpo_lora_item *it)
{
	char key[LPO_LORA_NAME + 32];
	int rc;

	snprintf(key, sizeof(key), "unet.%s.lora.down.weight", it->at->path);
	if ((rc = emit(w, it->lora.a, key, 1)) < 0)
		return rc;
	if (w->grad && it->lora.scale == 0)
		return lpo_fail(w->set->ctx, LPO_EINVAL,
		    "'%s' has scale 0: no gradient in diffusers' form",
		    it->at->path);
	snprintf(key, sizeof(key), "unet.%s.lora.up.weight", it->at->path);
	return emit(w, it->lora.b, key, it->lora.scale);
}

static int
emit_as_read(struct walk *w, const struct lpo_lora_item *it)
{
	float alpha = alpha_of(it);
	int rc;

	if (it->key[0] == NULL)		/* attached, not read */
		return emit_diffusers(w, it);
	if ((rc = emit(w, it->lora.a, it->key[0], 1)) < 0 ||
	    (rc = emit(w, it->lora.b, it->key[1], 1)) < 0)
		return rc;
	if (w->grad || it->key[2] == NULL)
		return 0;
	return w->fn(w->arg, it->key[2], 0, NULL, &alpha);
}

int
lpo_lora_each(lpo_ctx *c, lpo_lora_set *s, enum lpo_lora_format format,
    int grad, int (*fn)(void *, const char *, int, const int64_t *,
    const float *), void *arg)
{
	struct walk w = { s, grad, fn, arg };
	int64_t i;
	int rc = 0;

	(void)c;
	for (i = 0; i < s->n && rc >= 0; i++) {
		if (format == LPO_LORA_AS_READ)
			rc = emit_as_read(&w, &s->item[i]);
		if (format == LPO_LORA_KOHYA || format == LPO_LORA_BOTH)
			rc = emit_kohya(&w, &s->item[i]);
		if (rc >= 0 && (format == LPO_LORA_DIFFUSERS ||
		    format == LPO_LORA_BOTH))
			rc = emit_diffusers(&w, &s->item[i]);
	}
	return rc < 0 ? rc : 0;
}

/* --------------------------------------------------------------- writing */

struct save {
	lpo_ctx *ctx;
	lpo_stw *stw;
	enum lpo_dtype stored;
	float **copy;		/* the writer borrows its data */
	int64_t n, cap;
	const char *const *metadata;
	int rc;			/* of the first entry that failed */
};

static int
keep(void *arg, const char *key, int rank, const int64_t *shape,
    const float *data)
{
	struct save *s = arg;
	enum lpo_dtype dt = rank > 0 ? s->stored : LPO_F32;
	int64_t count = 1, i;
	float *x, **grown;
	int j;

	for (j = 0; j < rank; j++)
		count *= shape[j];
	for (i = 0; i < count; i++)
		if (!isfinite(data[i]) || (dt == LPO_F16 &&
		    fabsf(data[i]) >= 65520))
			return lpo_fail(s->ctx, LPO_EINVAL, "%g in '%s' "
			    "cannot be stored as %s", (double)data[i], key,
			    lpo_dtype_name(dt));
	if (s->n == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 64;
		grown = lpo_realloc(s->ctx, s->copy,
		    (size_t)s->cap * sizeof(*grown));
		if (grown == NULL)
			return LPO_ENOMEM;
		s->copy = grown;
	}
	if ((x = lpo_alloc(s->ctx, (size_t)count, sizeof(*x))) == NULL)
		return LPO_ENOMEM;
	memcpy(x, data, (size_t)count * sizeof(*x));
	s->copy[s->n++] = x;
	return lpo_stw_add_f32(s->stw, key, dt, rank, shape, x);
}

/* An entry that the caller's metadata may override. */
__attribute__((format(printf, 3, 4))) static void
entry(struct save *s, const char *key, const char *fmt, ...)
{
	const char *const *m;
	char buf[256];
	va_list ap;

	for (m = s->metadata; m != NULL && *m != NULL; m += 2)
		if (strcmp(*m, key) == 0)
			return;
	va_start(ap, fmt);
	vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	if (s->rc == 0)
		s->rc = lpo_stw_meta(s->stw, key, buf);
}

/*
 * What web UIs look for (ecosystem.md 3.2): the kind of model by width of the
 * text, since that is what tells the three families apart.
 */
static void
model_entries(struct save *s, const struct lpo_unet_config *g)
{
	long long px = 8 * (long long)(g->sample_size > 0 ? g->sample_size :
	    64);
	int v2 = !g->text_time && g->linear_projection;

	entry(s, "ss_v2", "%s", v2 ? "True" : "False");
	entry(s, "ss_base_model_version", "%s", g->text_time ?
	    "sdxl_base_v1-0" : v2 ? "sd_v2" : "sd_v1");
	entry(s, "ss_resolution", "(%lld, %lld)", px, px);
	entry(s, "modelspec.sai_model_spec", "1.0.1");
	entry(s, "modelspec.architecture", "%s/lora", g->text_time ?
	    "stable-diffusion-xl-v1-base" : !v2 ? "stable-diffusion-v1" :
	    px > 512 ? "stable-diffusion-v2-768-v" :
	    "stable-diffusion-v2-512");
	entry(s, "modelspec.implementation", "diffusers");
	entry(s, "modelspec.resolution", "%lldx%lld", px, px);
}

static int
add_metadata(struct save *s, const lpo_lora_set *set)
{
	const char *const *m;
	int64_t i;
	int conv = 0, rc;

	for (m = s->metadata; m != NULL && *m != NULL; m += 2)
		if ((rc = lpo_stw_meta(s->stw, m[0], m[1])) < 0)
			return rc;
	for (i = 0; i < set->n; i++)
		conv |= set->item[i].at->conv != NULL;
	entry(s, "format", "pt");
	entry(s, "ss_network_module", "networks.lora");
	entry(s, "ss_network_dim", "%lld", (long long)lpo_lora_rank(set));
	entry(s, "ss_network_alpha", "%g", set->n > 0 ?
	    (double)alpha_of(&set->item[0]) : 0);
	if (conv)
		entry(s, "ss_network_args", "{\"conv_dim\": \"%lld\", "
		    "\"conv_alpha\": \"%g\"}", (long long)lpo_lora_rank(set),
		    (double)alpha_of(&set->item[0]));
	else
		entry(s, "ss_network_args", "{}");
	/* not the file's name: no byte may depend on where it is written */
	entry(s, "modelspec.title", "LoRA");
	model_entries(s, lpo_unet_cfg(set->unet));
	return s->rc;
}

int
lpo_lora_save(lpo_ctx *c, lpo_lora_set *set, const char *path,
    enum lpo_lora_format format, int f32, const char *const *metadata)
{
	struct save s = { .ctx = c, .stored = f32 ? LPO_F32 : LPO_F16,
	    .metadata = metadata };
	int64_t i;
	int rc;

	if ((rc = lpo_stw_new(c, &s.stw)) < 0 ||
	    (rc = add_metadata(&s, set)) < 0 ||
	    (rc = lpo_lora_each(c, set, format, 0, keep, &s)) < 0)
		goto out;
	rc = lpo_stw_write(s.stw, path);
out:
	for (i = 0; i < s.n; i++)
		lpo_free(s.copy[i]);
	lpo_free(s.copy);
	lpo_stw_free(s.stw);
	return rc;
}
