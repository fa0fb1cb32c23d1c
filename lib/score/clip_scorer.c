/*
 * clip:DIR: how well a picture fits its prompt, by a CLIPModel folder
 * (models.md 9.3, 9.6).
 *
 *	cosine	<i, t> / (|i| |t|) of image_embeds and text_embeds
 *	logit	exp(logit_scale) * cosine, PickScore's score
 */
#include <math.h>
#include <string.h>

#include "lib/base/hash.h"
#include "lib/model/clip.h"
#include "lib/model/text.h"
#include "lib/score/embedder.h"

#define TEXTS 4			/* prompts per walk */
#define CACHE 4096		/* prompts remembered */

struct text {
	char *prompt;		/* NULL: empty place */
	double *unit;		/* [width] text_embeds / |text_embeds| */
};

struct clip {
	lpo_ctx *ctx;
	lpo_embedder *eye;
	lpo_tokenizer *tok;
	lpo_clip *tower;
	lpo_tape *tape;
	lpo_var *ids, *eos, *out;
	int64_t length, width;
	int32_t *host_ids;	/* [TEXTS, length] */
	float *host_out;	/* [TEXTS, width] */
	double *image;		/* [width] */
	double factor;		/* exp(logit_scale) */
	struct text text[CACHE];
};

/* ------------------------------------------------------------------ open */

static int
record(struct clip *m, const struct lpo_scorer_opts *o)
{
	struct lpo_clip_out out;
	int rc;

	if ((m->tape = lpo_tape_new(m->ctx, o->be, o->dtype, 1)) == NULL)
		return LPO_ENOMEM;
	m->ids = lpo_input(m->tape, TEXTS, m->length, 1, 1, LPO_I32, 0);
	m->eos = lpo_input(m->tape, TEXTS, 1, 1, 1, LPO_I32, 0);
	lpo_clip_fwd(m->tape, m->tower, m->ids, m->eos, &out);
	m->out = lpo_cast(m->tape, out.projected, LPO_F32);
	lpo_output(m->tape, m->out, 0);
	if ((rc = lpo_tape_plan(m->tape, 0, NULL)) < 0)
		return rc;
	return lpo_tape_commit(m->tape, NULL);
}

static void
clip_close(void *self)
{
	struct clip *m = self;
	int i;

	if (m == NULL)
		return;
	for (i = 0; i < CACHE; i++) {
		lpo_free(m->text[i].prompt);
		lpo_free(m->text[i].unit);
	}
	lpo_tape_free(m->tape);
	lpo_clip_free(m->tower);
	lpo_tokenizer_close(m->tok);
	lpo_free(m->host_ids);
	lpo_free(m->host_out);
	lpo_free(m->image);
	lpo_free(m);
}

static int
open_text(struct clip *m, const struct lpo_scorer_opts *o, const char *dir)
{
	int rc;

	if ((rc = lpo_tokenizer_open(m->ctx, &m->tok, dir)) < 0 ||
	    (rc = lpo_clip_load_joint(m->ctx, o->be, &m->tower, dir,
	    o->dtype)) < 0 ||
	    (rc = lpo_text_check(m->ctx, m->tok, m->tower, dir)) < 0)
		return rc;
	m->length = lpo_tokenizer_max_length(m->tok);
	m->width = lpo_clip_cfg(m->tower)->projection;
	m->host_ids = lpo_alloc(m->ctx, (size_t)(TEXTS * m->length),
	    sizeof(int32_t));
	m->host_out = lpo_alloc(m->ctx, (size_t)(TEXTS * m->width),
	    sizeof(float));
	m->image = lpo_alloc(m->ctx, (size_t)m->width, sizeof(double));
	if (m->host_ids == NULL || m->host_out == NULL || m->image == NULL)
		return LPO_ENOMEM;
	return record(m, o);
}

static int
clip_open(lpo_scorers *set, void **self, const char *dir)
{
	struct clip *m = lpo_alloc(lpo_scorers_ctx(set), 1, sizeof(*m));
	int rc;

	*self = m;	/* closed by the set, whatever happens here */
	if (m == NULL)
		return LPO_ENOMEM;
	m->ctx = lpo_scorers_ctx(set);
	if ((rc = lpo_scorers_embedder(set, &m->eye, dir)) < 0 ||
	    (rc = lpo_embedder_logit_scale(m->eye, &m->factor)) < 0)
		return rc;
	m->factor = exp(m->factor);
	return open_text(m, lpo_scorers_opts(set), dir);
}

static int
clip_inputs(lpo_ctx *c, const struct lpo_scorer_opts *o, const char *dir,
    int (*each)(void *, const char *), void *to)
{
	(void)o;
	if (dir[0] == '\0')
		return lpo_fail(c, LPO_EINVAL, "clip: names no folder");
	return each(to, dir);
}

/* ------------------------------------------------------------------- run */

static struct text *
place(struct clip *m, const char *prompt)
{
	return &m->text[lpo_crc32c(0, prompt, strlen(prompt)) % CACHE];
}

static int
known(struct clip *m, const char *prompt)
{
	const struct text *x = place(m, prompt);

	return x->prompt != NULL && strcmp(x->prompt, prompt) == 0;
}

/* Row i of what the tower gave, under its prompt. */
static int
remember(struct clip *m, const char *prompt, int64_t i)
{
	struct text *x = place(m, prompt);
	char *copy = lpo_strdup(m->ctx, prompt);

	if (copy == NULL)
		return LPO_ENOMEM;
	lpo_free(x->prompt);
	x->prompt = copy;
	if (x->unit == NULL && (x->unit = lpo_alloc(m->ctx, (size_t)m->width,
	    sizeof(double))) == NULL) {
		lpo_free(x->prompt);
		x->prompt = NULL;
		return LPO_ENOMEM;
	}
	lpo_embed_normalise(x->unit, m->host_out + i * m->width, m->width);
	return 0;
}

/* n <= TEXTS prompts; the rest of the batch repeats the last one. */
static int
encode(struct clip *m, const char *const *prompt, int64_t n)
{
	int32_t eos[TEXTS], *ids;
	int64_t i;
	int rc;

	for (i = 0; i < TEXTS; i++) {
		ids = m->host_ids + i * m->length;
		if (i >= n)
			memcpy(ids, ids - m->length, (size_t)m->length *
			    sizeof(*ids));
		else if ((rc = lpo_tokenizer_encode(m->tok, ids,
		    prompt[i])) < 0)
			return rc;
		eos[i] = (int32_t)(i * m->length + lpo_clip_eos(m->tower, ids,
		    m->length));
	}
	if ((rc = lpo_var_set(m->tape, m->ids, m->host_ids)) < 0 ||
	    (rc = lpo_var_set(m->tape, m->eos, eos)) < 0 ||
	    (rc = lpo_tape_forward(m->tape, 0)) < 0)
		return rc;
	return lpo_var_get(m->tape, m->out, m->host_out);
}

/*
 * Encode those of n prompts that are neither done nor remembered, each once.
 * Of two that share a place in the cache only the first.
 */
static int
learn(struct clip *m, const char *const *prompt, const char *done, int64_t n)
{
	const char *want[LPO_SCORER_SLOTS];
	int64_t i, k, w = 0, size;
	int rc;

	for (i = 0; i < n; i++) {
		if (done[i] || known(m, prompt[i]))
			continue;
		for (k = 0; k < w; k++)
			if (place(m, want[k]) == place(m, prompt[i]))
				break;
		if (k == w)
			want[w++] = prompt[i];
	}
	for (i = 0; i < w; i += size) {
		size = w - i < TEXTS ? w - i : TEXTS;
		if ((rc = encode(m, want + i, size)) < 0)
			return rc;
		for (k = 0; k < size; k++)
			if ((rc = remember(m, want[i + k], k)) < 0)
				return rc;
	}
	return 0;
}

static double
cosine(struct clip *m, const float *image, const double *text)
{
	double sum = 0;
	int64_t k;

	lpo_embed_normalise(m->image, image, m->width);
	for (k = 0; k < m->width; k++)
		sum += m->image[k] * text[k];
	return sum;
}

static int
clip_run(void *self, double *value, int64_t stride, const char *const *prompt,
    int64_t n)
{
	char done[LPO_SCORER_SLOTS] = { 0 };
	struct clip *m = self;
	const float *embeds;
	int64_t i, left = n;
	int rc;

	if ((rc = lpo_embedder_get(m->eye, &embeds, n)) < 0)
		return rc;
	/* again where two prompts want one place in the cache */
	while (left > 0) {
		if ((rc = learn(m, prompt, done, n)) < 0)
			return rc;
		for (i = 0; i < n; i++) {
			if (done[i] || !known(m, prompt[i]))
				continue;
			value[i * stride] = cosine(m, embeds + i * m->width,
			    place(m, prompt[i])->unit);
			value[i * stride + 1] = m->factor * value[i * stride];
			done[i] = 1;
			left--;
		}
	}
	return 0;
}

static const char *const columns[] = { "cosine", "logit", NULL };

const struct lpo_scorer_class lpo_scorer_clip = {
	"clip", "DIR", columns, clip_inputs, clip_open, clip_close, NULL,
	clip_run
};
