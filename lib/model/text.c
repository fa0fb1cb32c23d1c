/* Prompts to conditioning: tokenizers and text encoders together. */
#include "lib/model/text.h"

#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/model/source.h"

#define BATCH 8		/* prompts per walk; the values don't depend on it */

struct part {
	lpo_tokenizer *tok;
	lpo_clip *clip;
	lpo_tape *tape;		/* NULL until the first encoding */
	lpo_var *ids, *eos;
	lpo_var *context, *pooled;	/* pooled NULL: not wanted */
};

struct lpo_text {
	lpo_ctx *ctx;
	lpo_backend *be;
	enum lpo_dtype dtype;
	int n;			/* encoders */
	int zero_uncond;
	int64_t length;
	struct part part[2];
	int32_t *ids;		/* [BATCH, length] */
	float *out;		/* [BATCH, length, widest] */
};

int
lpo_text_check(lpo_ctx *c, const lpo_tokenizer *tok, const lpo_clip *clip,
    const char *dir)
{
	const struct lpo_clip_config *g = lpo_clip_cfg(clip);
	int64_t rows = lpo_tokenizer_vocab_size(tok);
	int64_t length = lpo_tokenizer_max_length(tok);

	if (rows > g->vocab)
		return lpo_fail(c, LPO_EFORMAT, "%s: the tokenizer has ids up "
		    "to %lld, 'vocab_size' is %lld", dir,
		    (long long)(rows - 1), (long long)g->vocab);
	if (length > g->max_positions)
		return lpo_fail(c, LPO_EFORMAT, "%s: the tokenizer makes %lld "
		    "ids, 'max_position_embeddings' is %lld", dir,
		    (long long)length, (long long)g->max_positions);
	return 0;
}

static int
open_part(lpo_text *m, struct part *p, const char *dir, const char *suffix)
{
	lpo_ctx *c = m->ctx;
	char *tok = NULL, *enc = NULL;
	int rc = LPO_ENOMEM;

	if ((tok = lpo_asprintf(c, "%s/tokenizer%s", dir, suffix)) == NULL ||
	    (enc = lpo_asprintf(c, "%s/text_encoder%s", dir, suffix)) == NULL)
		goto out;
	if ((rc = lpo_tokenizer_open(c, &p->tok, tok)) < 0 ||
	    (rc = lpo_clip_load(c, m->be, &p->clip, enc, m->dtype)) < 0)
		goto out;
	rc = lpo_text_check(c, p->tok, p->clip, enc);
out:
	lpo_free(tok);
	lpo_free(enc);
	return rc;
}

/* Both encoders see the same number of tokens; the second one projects. */
static int
check_two(lpo_text *m, const char *dir)
{
	int64_t a = lpo_tokenizer_max_length(m->part[0].tok);
	int64_t b = lpo_tokenizer_max_length(m->part[1].tok);

	if (a != b)
		return lpo_fail(m->ctx, LPO_EFORMAT, "%s: tokenizer makes "
		    "%lld ids, tokenizer_2 %lld", dir, (long long)a,
		    (long long)b);
	if (!lpo_clip_cfg(m->part[1].clip)->has_projection)
		return lpo_fail(m->ctx, LPO_EFORMAT, "%s/text_encoder_2 has "
		    "no 'text_projection.weight'", dir);
	return 0;
}

static int
read_index(lpo_text *m, const char *dir)
{
	char *path = lpo_path_join(m->ctx, dir, "model_index.json");
	json_t *j = NULL;
	int rc = path == NULL ? LPO_ENOMEM : 0;

	m->zero_uncond = m->n == 2;
	if (rc == 0 && m->n == 2 && lpo_source_has(path) &&
	    (rc = lpo_source_json(m->ctx, &j, path, 1 << 20)) == 0 &&
	    (rc = lpo_json_bool(m->ctx, &m->zero_uncond, j,
	    "force_zeros_for_empty_prompt", 1)) < 0)
		lpo_fail_prefix(m->ctx, "%s", path);
	json_decref(j);
	lpo_free(path);
	return rc < 0 ? rc : 0;
}

int
lpo_text_open(lpo_ctx *c, lpo_backend *be, lpo_text **out, const char *dir,
    enum lpo_dtype dt)
{
	char *second = NULL;
	lpo_text *m;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((m = lpo_alloc(c, 1, sizeof(*m))) == NULL)
		return LPO_ENOMEM;
	m->ctx = c;
	m->be = be;
	m->dtype = dt;
	if ((second = lpo_path_join(c, dir, "text_encoder_2")) == NULL)
		goto out;
	m->n = lpo_source_has(second) ? 2 : 1;
	if ((rc = read_index(m, dir)) < 0 ||
	    (rc = open_part(m, &m->part[0], dir, "")) < 0)
		goto out;
	if (m->n == 2 && ((rc = open_part(m, &m->part[1], dir, "_2")) < 0 ||
	    (rc = check_two(m, dir)) < 0))
		goto out;
	m->length = lpo_tokenizer_max_length(m->part[0].tok);
	*out = m;
	m = NULL;
out:
	lpo_free(second);
	lpo_text_free(m);
	return rc;
}

void
lpo_text_free(lpo_text *m)
{
	int i;

	if (m == NULL)
		return;
	for (i = 0; i < 2; i++) {
		lpo_tape_free(m->part[i].tape);
		lpo_clip_free(m->part[i].clip);
		lpo_tokenizer_close(m->part[i].tok);
	}
	lpo_free(m->ids);
	lpo_free(m->out);
	lpo_free(m);
}

int
lpo_text_zero_uncond(const lpo_text *m)
{
	return m->zero_uncond;
}

lpo_backend *
lpo_text_backend(const lpo_text *m)
{
	return m->be;
}

int64_t
lpo_text_length(const lpo_text *m)
{
	return m->length;
}

int64_t
lpo_text_dim(const lpo_text *m)
{
	int64_t d = 0;
	int i;

	for (i = 0; i < m->n; i++)
		d += lpo_clip_cfg(m->part[i].clip)->shape.hidden;
	return d;
}

int64_t
lpo_text_pooled_dim(const lpo_text *m)
{
	return m->n == 2 ? lpo_clip_cfg(m->part[1].clip)->projection : 0;
}

/* -------------------------------------------------------------- encoding */

/* Record encoder i for BATCH prompts. */
static int
prepare(lpo_text *m, int i)
{
	struct part *p = &m->part[i];
	struct lpo_clip_out o;
	struct lpo_plan plan;
	int rc;

	if (p->tape != NULL)
		return 0;
	p->tape = lpo_tape_new(m->ctx, m->be, m->dtype, 1);
	if (p->tape == NULL)
		return LPO_ENOMEM;
	p->ids = lpo_input(p->tape, BATCH, m->length, 1, 1, LPO_I32, 0);
	if (i == 1)
		p->eos = lpo_input(p->tape, BATCH, 1, 1, 1, LPO_I32, 0);
	lpo_clip_fwd(p->tape, p->clip, p->ids, p->eos, &o);
	p->context = m->n == 1 ? o.last_hidden : o.penultimate;
	p->pooled = o.projected;
	lpo_output(p->tape, p->context, 0);
	lpo_output(p->tape, p->pooled, 0);
	if ((rc = lpo_tape_plan(p->tape, 0, &plan)) < 0 ||
	    (rc = lpo_tape_commit(p->tape, NULL)) < 0) {
		lpo_tape_free(p->tape);
		p->tape = NULL;
	}
	return rc;
}

/* ids of `count` prompts; the rest of the batch repeats the last one. */
static int
tokenize(lpo_text *m, struct part *p, int32_t *eos,
    const char *const *prompts, int64_t count)
{
	int64_t i, l = m->length;
	int32_t *ids;
	int rc;

	for (i = 0; i < BATCH; i++) {
		ids = m->ids + i * l;
		if (i >= count)
			memcpy(ids, ids - l, (size_t)l * sizeof(*ids));
		else if ((rc = lpo_tokenizer_encode(p->tok, ids,
		    prompts[i])) < 0)
			return rc;
		eos[i] = (int32_t)(i * l + lpo_clip_eos(p->clip, ids, l));
	}
	return 0;
}

/* count prompts through encoder i, into its columns of the context. */
static int
encode_batch(lpo_text *m, int i, float *context, float *pooled,
    const char *const *prompts, int64_t count)
{
	struct part *p = &m->part[i];
	int64_t d = lpo_clip_cfg(p->clip)->shape.hidden, dim = lpo_text_dim(m);
	int64_t first = i == 0 ? 0 : dim - d, row;
	int32_t eos[BATCH];
	int rc;

	if ((rc = tokenize(m, p, eos, prompts, count)) < 0 ||
	    (rc = lpo_var_set(p->tape, p->ids, m->ids)) < 0 ||
	    (p->eos != NULL &&
	    (rc = lpo_var_set(p->tape, p->eos, eos)) < 0) ||
	    (rc = lpo_tape_forward(p->tape, 0)) < 0 ||
	    (rc = lpo_var_get(p->tape, p->context, m->out)) < 0)
		return rc;
	for (row = 0; row < count * m->length; row++)
		memcpy(context + row * dim + first, m->out + row * d,
		    (size_t)d * sizeof(*context));
	if (p->pooled == NULL || pooled == NULL)
		return 0;
	if ((rc = lpo_var_get(p->tape, p->pooled, m->out)) < 0)
		return rc;
	memcpy(pooled, m->out, (size_t)(count * lpo_text_pooled_dim(m)) *
	    sizeof(*pooled));
	return 0;
}

static int
make_buffers(lpo_text *m)
{
	int64_t row = m->length * lpo_text_dim(m);
	int64_t pooled = lpo_text_pooled_dim(m);
	int i, rc;

	for (i = 0; i < m->n; i++)
		if ((rc = prepare(m, i)) < 0)
			return rc;
	if (m->out != NULL)
		return 0;
	m->ids = lpo_alloc(m->ctx, (size_t)(BATCH * m->length),
	    sizeof(*m->ids));
	m->out = lpo_alloc(m->ctx, (size_t)(BATCH * (row > pooled ? row :
	    pooled)), sizeof(*m->out));
	return m->ids == NULL || m->out == NULL ? LPO_ENOMEM : 0;
}

int
lpo_text_encode(lpo_text *m, float *context, float *pooled,
    const char *const *prompts, int64_t n)
{
	int64_t i, count, row = m->length * lpo_text_dim(m);
	int64_t prow = lpo_text_pooled_dim(m);
	int j, rc;

	if ((rc = make_buffers(m)) < 0)
		return rc;
	for (i = 0; i < n; i += BATCH) {
		count = n - i < BATCH ? n - i : BATCH;
		for (j = 0; j < m->n; j++)
			if ((rc = encode_batch(m, j, context + i * row,
			    pooled ? pooled + i * prow : NULL, prompts + i,
			    count)) < 0)
				return rc;
	}
	return 0;
}

int
lpo_text_time(lpo_text *m, int64_t n, double *seconds)
{
	double s[2];
	int i, rc;

	*seconds = 0;
	for (i = 0; i < m->n; i++) {
		if ((rc = lpo_tape_time(m->part[i].tape, s)) < 0)
			return rc;
		*seconds += s[0] * (double)((n + BATCH - 1) / BATCH);
	}
	return 0;
}
