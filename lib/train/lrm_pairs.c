/* Pairs from a stream, and agreement with their labels. */
#include "lib/train/lrm_pairs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/npy.h"
#include "lib/train/lrm_score.h"

#define KEY_SIZE 64
#define CHUNK 256		/* pairs whose texts are held at a time */
#define GROUPS 8		/* pairs scored at once */

struct lpo_lrm_batch {
	lpo_ctx *ctx;
	lpo_lrm *m;
	int64_t c, h, w, length;
	int64_t n, cap;
	float *latent;		/* [cap, 2, h, w, c] */
	int32_t *ids[2];	/* [cap, length] */
	struct lpo_lrm_pair *pair;
	char (*key)[KEY_SIZE];
	float *plain;		/* one latent as in the file */
};

/* ------------------------------------------------------------- a sample */

static int
latent_member(lpo_ctx *c, struct lpo_npy *a, const struct lpo_sample *s,
    int image)
{
	const struct lpo_member *m;
	char name[32];
	int rc;

	snprintf(name, sizeof(name), "latent_%d.npy", image);
	if ((m = lpo_sample_find(s, name)) == NULL)
		return lpo_fail(c, LPO_EFORMAT, "'%s' has no '%s'%s", s->key,
		    name, lpo_sample_find(s, "moments_0.npy") != NULL ?
		    ": these are moments, lpo-pairs makes pairs of them" : "");
	if ((rc = lpo_npy_parse(c, a, m->bytes, (size_t)m->size, name)) < 0) {
		lpo_fail_prefix(c, "'%s'", s->key);
		return rc;
	}
	if (a->ndim != 3 || (a->type != LPO_NPY_F2 && a->type != LPO_NPY_F4))
		return lpo_fail(c, LPO_EFORMAT, "'%s': '%s' is not [c, h, w] "
		    "of f2 or f4", s->key, name);
	return 0;
}

int
lpo_lrm_sample_shape(lpo_ctx *c, int64_t shape[3], const struct lpo_sample *s)
{
	struct lpo_npy a;
	int rc;

	if ((rc = latent_member(c, &a, s, 0)) < 0)
		return rc;
	memcpy(shape, a.shape, 3 * sizeof(*shape));
	if (a.count < 1)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is empty", s->key);
	return 0;
}

int
lpo_lrm_stream_check(lpo_ctx *c, const json_t *run,
    const struct lpo_lrm_config *f)
{
	const json_t *latent = lpo_json_get(run, "latent");
	const char *kind, *vae;
	int64_t channels;
	double factor;
	int rc;

	if (run == NULL)
		return 0;
	if ((rc = lpo_json_str(c, &kind, run, "kind", "pairs")) < 0 ||
	    (rc = lpo_json_int(c, &channels, latent, "channels",
	    f->latent_channels)) < 0 ||
	    (rc = lpo_json_real(c, &factor, latent, "scaling_factor",
	    f->scaling_factor)) < 0 ||
	    (rc = lpo_json_str(c, &vae, latent, "vae_sha256", "")) < 0)
		return rc;
	if (strcmp(kind, "pairs") != 0)
		return lpo_fail(c, LPO_EFORMAT, "the stream has %s, not "
		    "pairs%s", kind, strcmp(kind, "moments") == 0 ?
		    ": lpo-pairs makes them" : "");
	return lpo_lrm_check_latents(c, f, channels, factor, vae);
}

/* [c, h, w] -> [h, w, c], with a look at every number. */
static int
read_latent(lpo_lrm_batch *b, float *out, const struct lpo_sample *s,
    int image)
{
	int64_t k, p, hw = b->h * b->w;
	struct lpo_npy a;
	int rc;

	if ((rc = latent_member(b->ctx, &a, s, image)) < 0)
		return rc;
	if (a.shape[0] != b->c || a.shape[1] != b->h || a.shape[2] != b->w)
		return lpo_fail(b->ctx, LPO_EFORMAT, "'%s' has a latent of "
		    "[%lld, %lld, %lld] among [%lld, %lld, %lld]", s->key,
		    (long long)a.shape[0], (long long)a.shape[1],
		    (long long)a.shape[2], (long long)b->c, (long long)b->h,
		    (long long)b->w);
	lpo_npy_f32(b->plain, &a);
	for (k = 0; k < b->c; k++)
		for (p = 0; p < hw; p++) {
			if (!isfinite(b->plain[k * hw + p]))
				return lpo_fail(b->ctx, LPO_EFORMAT, "'%s' "
				    "has a latent that is not finite", s->key);
			out[p * b->c + k] = b->plain[k * hw + p];
		}
	return 0;
}

/* What KEY.json says; *prompt is borrowed. */
static int
read_facts(lpo_ctx *c, struct lpo_lrm_pair *p, const char **prompt,
    const json_t *j)
{
	int rc;

	if ((rc = lpo_json_need_str(c, prompt, j, "prompt")) < 0 ||
	    (rc = lpo_json_need_real(c, &p->label[0], j, "label_0")) < 0 ||
	    (rc = lpo_json_need_real(c, &p->label[1], j, "label_1")) < 0 ||
	    (rc = lpo_json_need_int(c, &p->t[0], j, "timestep_0")) < 0 ||
	    (rc = lpo_json_int(c, &p->t[1], j, "timestep_1", p->t[0])) < 0 ||
	    (rc = lpo_json_real(c, &p->num_example, j,
	    "num_example_per_prompt", 1)) < 0)
		return rc;
	if (!(p->label[0] >= 0 && p->label[1] >= 0 &&
	    fabs(p->label[0] + p->label[1] - 1) < 1e-6))
		return lpo_fail(c, LPO_EFORMAT, "labels %g and %g do not add "
		    "up to 1", p->label[0], p->label[1]);
	if (p->t[0] < 0 || p->t[0] > 999999 || p->t[1] < 0 ||
	    p->t[1] > 999999)
		return lpo_fail(c, LPO_EFORMAT, "timesteps %lld and %lld",
		    (long long)p->t[0], (long long)p->t[1]);
	if (!(p->num_example >= 1))
		return lpo_fail(c, LPO_EFORMAT,
		    "'num_example_per_prompt' is %g", p->num_example);
	return 0;
}

/* -------------------------------------------------------------- a batch */

int
lpo_lrm_batch_new(lpo_ctx *c, lpo_lrm_batch **out, lpo_lrm *m,
    const int64_t shape[3])
{
	lpo_lrm_batch *b;

	*out = NULL;
	if (shape[0] != lpo_lrm_cfg(m)->latent_channels)
		return lpo_fail(c, LPO_EFORMAT, "latents of %lld channels for "
		    "a model of %lld", (long long)shape[0],
		    (long long)lpo_lrm_cfg(m)->latent_channels);
	if ((b = lpo_alloc(c, 1, sizeof(*b))) == NULL)
		return LPO_ENOMEM;
	b->ctx = c;
	b->m = m;
	b->c = shape[0];
	b->h = shape[1];
	b->w = shape[2];
	b->length = lpo_lrm_length(m);
	b->plain = lpo_alloc(c, (size_t)(b->c * b->h * b->w), sizeof(float));
	if (b->plain == NULL) {
		lpo_free(b);
		return LPO_ENOMEM;
	}
	*out = b;
	return 0;
}

void
lpo_lrm_batch_free(lpo_lrm_batch *b)
{
	if (b == NULL)
		return;
	lpo_free(b->latent);
	lpo_free(b->ids[0]);
	lpo_free(b->ids[1]);
	lpo_free(b->pair);
	lpo_free(b->key);
	lpo_free(b->plain);
	lpo_free(b);
}

void
lpo_lrm_batch_clear(lpo_lrm_batch *b)
{
	b->n = 0;
}

static int
grow_one(lpo_ctx *c, void *array, int64_t count, size_t size)
{
	void *p;

	memcpy(&p, array, sizeof(p));
	if ((p = lpo_realloc(c, p, (size_t)count * size)) == NULL)
		return LPO_ENOMEM;
	memcpy(array, &p, sizeof(p));
	return 0;
}

static int
grow(lpo_lrm_batch *b)
{
	int64_t cap = b->cap > 0 ? 2 * b->cap : 16;
	lpo_ctx *c = b->ctx;

	if (grow_one(c, &b->latent, cap * 2 * b->c * b->h * b->w,
	    sizeof(float)) < 0 ||
	    grow_one(c, &b->ids[0], cap * b->length, sizeof(int32_t)) < 0 ||
	    grow_one(c, &b->ids[1], cap * b->length, sizeof(int32_t)) < 0 ||
	    grow_one(c, &b->pair, cap, sizeof(*b->pair)) < 0 ||
	    grow_one(c, &b->key, cap, sizeof(*b->key)) < 0)
		return LPO_ENOMEM;
	b->cap = cap;
	return 0;
}

int
lpo_lrm_batch_add(lpo_lrm_batch *b, const struct lpo_sample *s)
{
	int64_t count = b->c * b->h * b->w;
	struct lpo_lrm_pair *p;
	const char *prompt;
	int rc;

	if (b->n == b->cap && (rc = grow(b)) < 0)
		return rc;
	p = &b->pair[b->n];
	memset(p, 0, sizeof(*p));
	if ((rc = read_facts(b->ctx, p, &prompt, s->json)) < 0 ||
	    (rc = lpo_lrm_tokenize(b->m, (int32_t *const[2]){
	    b->ids[0] + b->n * b->length, b->ids[1] + b->n * b->length },
	    prompt)) < 0) {
		lpo_fail_prefix(b->ctx, "'%s'", s->key);
		return rc;
	}
	if ((rc = read_latent(b, b->latent + 2 * b->n * count, s, 0)) < 0 ||
	    (rc = read_latent(b, b->latent + (2 * b->n + 1) * count, s,
	    1)) < 0)
		return rc;
	snprintf(b->key[b->n], sizeof(b->key[0]), "%s", s->key);
	b->n++;
	return 0;
}

int64_t
lpo_lrm_batch_count(const lpo_lrm_batch *b)
{
	return b->n;
}

const struct lpo_lrm_pair *
lpo_lrm_batch_pairs(lpo_lrm_batch *b)
{
	int64_t i, count = b->c * b->h * b->w;
	int k;

	/* the arrays may have moved */
	for (i = 0; i < b->n; i++)
		for (k = 0; k < 2; k++) {
			b->pair[i].latent[k] = b->latent + (2 * i + k) * count;
			b->pair[i].ids[k] = b->ids[k] + i * b->length;
		}
	return b->pair;
}

const char *
lpo_lrm_batch_key(const lpo_lrm_batch *b, int64_t i)
{
	return b->key[i];
}

/* --------------------------------------------------------------- scores */

static int
score_chunk(lpo_lrm_batch *b, lpo_lrm_scorer *s, float *score, int64_t first,
    int64_t n)
{
	int64_t t[2 * CHUNK], who[CHUNK], i;
	lpo_lrm_texts *texts = NULL;
	int rc;

	for (i = 0; i < n; i++) {
		who[i] = i;
		t[2 * i] = b->pair[first + i].t[0];
		t[2 * i + 1] = b->pair[first + i].t[1];
	}
	if ((rc = lpo_lrm_texts_new_ids(b->ctx, &texts, b->m,
	    (const int32_t *const[2]){ b->ids[0] + first * b->length,
	    b->ids[1] + first * b->length }, n)) == 0)
		rc = lpo_lrm_scorer_score(s, score + 2 * first, NULL, texts,
		    b->latent + 2 * first * b->c * b->h * b->w, who, t, n);
	lpo_lrm_texts_free(texts);
	return rc;
}

int
lpo_lrm_batch_scores(lpo_lrm_batch *b, float *score)
{
	lpo_lrm_scorer *s = NULL;
	int64_t i;
	int rc;

	if ((rc = lpo_lrm_load_text(b->m)) < 0 ||
	    (rc = lpo_lrm_scorer_new(b->ctx, &s, b->m, 2, GROUPS, b->h, b->w,
	    NULL)) < 0)
		return rc;
	for (i = 0; i < b->n && rc == 0; i += CHUNK)
		rc = score_chunk(b, s, score, i,
		    b->n - i < CHUNK ? b->n - i : CHUNK);
	lpo_lrm_scorer_free(s);
	return rc;
}

int
lpo_lrm_batch_try(lpo_ctx *c, lpo_lrm *m, const int64_t shape[3], int64_t n)
{
	const int32_t *const none[2] = { NULL, NULL };
	lpo_lrm_scorer *s = NULL;
	lpo_lrm_texts *x = NULL;
	int rc;

	if ((rc = lpo_lrm_scorer_new(c, &s, m, 2, GROUPS, shape[1], shape[2],
	    NULL)) == 0 && (rc = lpo_lrm_texts_new_ids(c, &x, m, none,
	    n < CHUNK ? n : CHUNK)) == 0)
		rc = lpo_lrm_scorer_commit(s);
	lpo_lrm_texts_free(x);
	lpo_lrm_scorer_free(s);
	return rc;
}

/* ------------------------------------------------------------- agreement */

/* Wilson's interval: right also near 0, 1 and for few pairs. */
static void
wilson(struct lpo_lrm_rate *r)
{
	double z = 1.959963984540054, n = (double)r->n, p, mid, half;

	if (r->n == 0) {
		r->rate = r->low = r->high = NAN;
		return;
	}
	p = (double)r->right / n;
	mid = (p + z * z / (2 * n)) / (1 + z * z / n);
	half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) /
	    (1 + z * z / n);
	r->rate = p;
	r->low = fmax(mid - half, 0);
	r->high = fmin(mid + half, 1);
}

/* The entry of timestep t, made if needed; they stay in order. */
static struct lpo_lrm_rate *
entry(lpo_ctx *c, struct lpo_lrm_rate **rate, int64_t *n, int64_t t)
{
	struct lpo_lrm_rate *r = *rate;
	int64_t i, at;

	for (at = 0; at < *n; at++)
		if (r[at].t == t)
			return &r[at];
	/* -1, all, is the first; -2, mixed, the second */
	for (at = *n > 0; at < *n && (r[at].t == -2 || r[at].t < t) &&
	    t != -2; at++)
		;
	if ((r = lpo_realloc(c, r, (size_t)(*n + 1) * sizeof(*r))) == NULL)
		return NULL;
	for (i = *n; i > at; i--)
		r[i] = r[i - 1];
	memset(&r[at], 0, sizeof(*r));
	r[at].t = t;
	wilson(&r[at]);
	*rate = r;
	++*n;
	return &r[at];
}

int
lpo_lrm_rate_add(lpo_ctx *c, struct lpo_lrm_rate **rate, int64_t *n,
    const int64_t t[2], const double label[2], const float score[2])
{
	const int64_t at[2] = { -1, t[0] == t[1] ? t[0] : -2 };
	struct lpo_lrm_rate *r;
	int k, right = label[0] > label[1] ? score[0] > score[1] :
	    score[1] > score[0];

	for (k = 0; k < 2; k++) {
		if ((r = entry(c, rate, n, at[k])) == NULL)
			return LPO_ENOMEM;
		if (label[0] == label[1])
			continue;
		r->n++;
		r->right += right;
		wilson(r);
	}
	return 0;
}

int
lpo_lrm_rates(lpo_lrm_batch *b, struct lpo_lrm_rate **rate, int64_t *n,
    const float *score)
{
	int64_t i;
	int rc = 0;

	*rate = NULL;
	*n = 0;
	if (entry(b->ctx, rate, n, -1) == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < b->n && rc == 0; i++)
		rc = lpo_lrm_rate_add(b->ctx, rate, n, b->pair[i].t,
		    b->pair[i].label, score + 2 * i);
	return rc;
}
