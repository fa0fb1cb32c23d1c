/* The text side of many prompts, encoded once (method.md 5). */
#include <string.h>
#include <sys/mman.h>

#include "lib/base/file.h"
#include "lib/nn/dry.h"
#include "lib/train/lrm_score_priv.h"

#define BATCH 16
#define HEAP_BYTES ((size_t)64 << 20)	/* more goes to a mapped file */

static int
rows_new(lpo_ctx *c, lpo_lrm_texts *x, const lpo_lrm *m)
{
	x->bytes = (size_t)((x->n + 1) * x->row) * sizeof(float);
	if (x->bytes <= HEAP_BYTES) {
		x->rows = lpo_alloc(c, x->bytes, 1);
		return x->rows == NULL ? LPO_ENOMEM : 0;
	}
	if (lpo_dry_is(lpo_lrm_backend(m)))
		return 0;
	x->mapped = 1;
	return lpo_map_scratch(c, (void **)&x->rows, x->bytes);
}

void
lpo_lrm_texts_free(lpo_lrm_texts *x)
{
	if (x == NULL)
		return;
	if (x->mapped && x->rows != NULL)
		munmap(x->rows, x->bytes);
	else
		lpo_free(x->rows);
	lpo_free(x);
}

void
lpo_lrm_texts_drop(const lpo_lrm_texts *x)
{
	if (x->mapped)
		lpo_map_drop(x->rows, x->bytes);
}

int64_t
lpo_lrm_texts_row_bytes(const lpo_lrm_texts *x)
{
	return x->row * (int64_t)sizeof(float);
}

struct encoder {
	lpo_lrm *m;
	lpo_tape *tape;
	struct lpo_lrm_text text;
	int32_t *ids[2];	/* [BATCH, length] */
	float *out[3];		/* context, pooled, feature of a batch */
};

static int
encoder_new(lpo_ctx *c, struct encoder *e, const lpo_lrm_texts *x)
{
	const int64_t part[3] = { x->context, x->pooled, x->feature };
	int i, rc;

	e->tape = lpo_tape_new(c, lpo_lrm_backend(e->m), lpo_lrm_dtype(e->m),
	    1);
	if (e->tape == NULL)
		return LPO_ENOMEM;
	lpo_lrm_record_text(e->tape, e->m, &e->text, BATCH, 1);
	lpo_output(e->tape, e->text.context, 0);
	lpo_output(e->tape, e->text.feature, 0);
	if (e->text.pooled != NULL && e->text.pooled != e->text.feature)
		lpo_output(e->tape, e->text.pooled, 0);
	if ((rc = lpo_tape_plan(e->tape, 0, NULL)) < 0 ||
	    (rc = lpo_tape_commit(e->tape, NULL)) < 0)
		return rc;
	for (i = 0; i < 2; i++)
		if ((e->ids[i] = lpo_alloc(c, (size_t)(BATCH * x->length),
		    sizeof(**e->ids))) == NULL)
			return LPO_ENOMEM;
	for (i = 0; i < 3; i++)
		if (part[i] > 0 && (e->out[i] = lpo_alloc(c,
		    (size_t)(BATCH * part[i]), sizeof(float))) == NULL)
			return LPO_ENOMEM;
	return 0;
}

static void
encoder_free(struct encoder *e)
{
	int i;

	lpo_tape_free(e->tape);
	for (i = 0; i < 2; i++)
		lpo_free(e->ids[i]);
	for (i = 0; i < 3; i++)
		lpo_free(e->out[i]);
}

/* Rows first .. first + n - 1 from ids; n <= BATCH, the rest is padding. */
static int
encode(struct encoder *e, lpo_lrm_texts *x, const int32_t *const ids[2],
    int64_t first, int64_t n)
{
	const int32_t *const batch[2] = { e->ids[0], e->ids[1] };
	const int64_t part[3] = { x->context, x->pooled, x->feature };
	lpo_var *const var[3] = { e->text.context, e->text.pooled,
	    e->text.feature };
	int64_t i, k;
	float *row;
	int j, rc;

	for (j = 0; j < lpo_lrm_encoders(e->m); j++)
		for (i = 0; i < BATCH; i++) {
			k = i < n ? i : 0;
			memcpy(e->ids[j] + i * x->length, ids[j] +
			    k * x->length, (size_t)x->length *
			    sizeof(**e->ids));
		}
	if ((rc = lpo_lrm_set_text(e->tape, e->m, &e->text, batch)) < 0 ||
	    (rc = lpo_tape_forward(e->tape, 0)) < 0)
		return rc;
	for (j = 0; j < 3; j++)
		if (part[j] > 0 && (rc = lpo_var_get(e->tape, var[j],
		    e->out[j])) < 0)
			return rc;
	for (i = 0; i < n; i++)
		for (row = x->rows + (first + i) * x->row, j = 0; j < 3; j++) {
			if (part[j] == 0)
				continue;
			memcpy(row, e->out[j] + i * part[j],
			    (size_t)part[j] * sizeof(float));
			row += part[j];
		}
	return 0;
}

/* The empty prompt is the last row; without guidance nobody asks for it. */
static int
encode_empty(struct encoder *e, lpo_lrm_texts *x)
{
	int32_t *ids[2] = { NULL, NULL };
	int i, rc = LPO_ENOMEM;

	for (i = 0; i < 2; i++)
		if ((ids[i] = lpo_alloc(lpo_lrm_ctx(e->m), (size_t)x->length,
		    sizeof(**ids))) == NULL)
			goto out;
	if ((rc = lpo_lrm_tokenize(e->m, ids, "")) == 0)
		rc = encode(e, x, (const int32_t *const[2]){ ids[0], ids[1] },
		    x->n, 1);
out:
	lpo_free(ids[0]);
	lpo_free(ids[1]);
	return rc;
}

static int
encode_all(struct encoder *e, lpo_lrm_texts *x, const int32_t *const ids[2])
{
	int64_t i, n;
	int rc;

	for (i = 0; i < x->n; i += BATCH) {
		const int32_t *const at[2] = { ids[0] + i * x->length,
		    ids[1] != NULL ? ids[1] + i * x->length : NULL };

		n = x->n - i < BATCH ? x->n - i : BATCH;
		if ((rc = encode(e, x, at, i, n)) < 0)
			return rc;
		lpo_lrm_texts_drop(x);
	}
	return lpo_lrm_copies(e->m) == 2 ? encode_empty(e, x) : 0;
}

int
lpo_lrm_texts_new_ids(lpo_ctx *c, lpo_lrm_texts **out, lpo_lrm *m,
    const int32_t *const ids[2], int64_t n)
{
	struct encoder e = { .m = m };
	lpo_lrm_texts *x;
	struct lpo_lrm_set set[4];
	int i, k, loaded = 0, rc;

	*out = NULL;
	if ((x = lpo_alloc(c, 1, sizeof(*x))) == NULL)
		return LPO_ENOMEM;
	for (k = lpo_lrm_sets(m, set), i = 0; i < k; i++)
		loaded |= strncmp(set[i].name, "text", 4) == 0;
	x->n = n;
	x->length = lpo_lrm_length(m);
	x->context = x->length * lpo_lrm_context_dim(m);
	x->pooled = lpo_lrm_pooled_dim(m);
	x->feature = lpo_lrm_feature_dim(m);
	x->row = x->context + x->pooled + x->feature;
	if ((rc = rows_new(c, x, m)) < 0 || (rc = lpo_lrm_load_text(m)) < 0 ||
	    (rc = encoder_new(c, &e, x)) < 0 ||
	    (!lpo_dry_is(lpo_lrm_backend(m)) &&
	    (rc = encode_all(&e, x, ids)) < 0))
		goto out;
	*out = x;
	x = NULL;
out:
	encoder_free(&e);
	if (!loaded)
		lpo_lrm_free_text(m);
	lpo_lrm_texts_free(x);
	return rc;
}

int
lpo_lrm_texts_new(lpo_ctx *c, lpo_lrm_texts **out, lpo_lrm *m,
    const char *const *prompts, int64_t n)
{
	int32_t *ids[2] = { NULL, NULL };
	int64_t i, l = lpo_lrm_length(m);
	int k, rc = LPO_ENOMEM;

	*out = NULL;
	for (k = 0; k < 2; k++)
		if ((ids[k] = lpo_alloc(c, (size_t)(n * l + 1),
		    sizeof(**ids))) == NULL)
			goto out;
	for (rc = 0, i = 0; i < n && rc == 0; i++)
		rc = lpo_lrm_tokenize(m, (int32_t *const[2]){ ids[0] + i * l,
		    ids[1] + i * l }, prompts[i]);
	if (rc == 0)
		rc = lpo_lrm_texts_new_ids(c, out, m,
		    (const int32_t *const[2]){ ids[0], ids[1] }, n);
out:
	lpo_free(ids[0]);
	lpo_free(ids[1]);
	return rc;
}

const float *
lpo_lrm_texts_feature(const lpo_lrm_texts *x, int64_t i)
{
	return x->rows + i * x->row + x->context + x->pooled;
}
