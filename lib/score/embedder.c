/* Pictures to CLIP image embeddings. */
#include "lib/score/embedder.h"

#include <math.h>

#include "lib/model/clip_image.h"
#include "lib/model/vit.h"

#define BATCH 8	/* halved while it does not fit; divides the slots */

struct lpo_embedder {
	lpo_ctx *ctx;
	char *dir;
	lpo_vit *vit;
	struct lpo_clip_image prep;
	lpo_tape *tape;
	lpo_var *image, *out;
	int64_t batch, done;	/* done: slots embedded since begin */
	float *pixels;		/* [SLOTS, px, px, 3] */
	float *embeds;		/* [SLOTS, width] */
};

/* Record for n pictures, and take its memory if it fits.  1: it does not. */
static int
try_batch(lpo_embedder *e, const struct lpo_scorer_opts *o, int64_t n)
{
	int64_t px = e->prep.crop_px;
	struct lpo_plan plan;
	int rc;

	if ((e->tape = lpo_tape_new(e->ctx, o->be, o->dtype, n)) == NULL)
		return LPO_ENOMEM;
	e->image = lpo_input(e->tape, n, px, px, 3, LPO_F32, 0);
	e->out = lpo_vit_fwd(e->tape, e->vit, e->image);
	lpo_output(e->tape, e->out, 0);
	if ((rc = lpo_tape_plan(e->tape, 0, &plan)) < 0)
		return rc;
	if (n > 1 && o->memory_bytes > 0 &&
	    (int64_t)plan.arena_bytes > o->memory_bytes / 4) {
		lpo_tape_free(e->tape);
		e->tape = NULL;
		return 1;
	}
	e->batch = n;
	return lpo_tape_commit(e->tape, NULL);
}

static int
open_tape(lpo_embedder *e, const struct lpo_scorer_opts *o)
{
	int64_t n = BATCH, px = e->prep.crop_px;
	int64_t width = lpo_vit_cfg(e->vit)->projection;
	int rc;

	while ((rc = try_batch(e, o, n)) == 1)
		n /= 2;
	if (rc < 0)
		return rc;
	e->pixels = lpo_alloc(e->ctx, (size_t)(LPO_SCORER_SLOTS * px * px),
	    3 * sizeof(float));
	e->embeds = lpo_alloc(e->ctx, (size_t)(LPO_SCORER_SLOTS * width),
	    sizeof(float));
	return e->pixels == NULL || e->embeds == NULL ? LPO_ENOMEM : 0;
}

int
lpo_embedder_open(lpo_ctx *c, lpo_embedder **out,
    const struct lpo_scorer_opts *o, const char *dir)
{
	lpo_embedder *e = lpo_alloc(c, 1, sizeof(*e));
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (e == NULL)
		return LPO_ENOMEM;
	e->ctx = c;
	if ((e->dir = lpo_strdup(c, dir)) == NULL ||
	    (rc = lpo_vit_load(c, o->be, &e->vit, dir, o->dtype)) < 0 ||
	    (rc = lpo_clip_image_read(c, &e->prep, dir,
	    lpo_vit_cfg(e->vit)->image_px)) < 0 ||
	    (rc = open_tape(e, o)) < 0) {
		lpo_embedder_close(e);
		return rc;
	}
	*out = e;
	return 0;
}

void
lpo_embedder_close(lpo_embedder *e)
{
	if (e == NULL)
		return;
	lpo_tape_free(e->tape);
	lpo_vit_free(e->vit);
	lpo_free(e->pixels);
	lpo_free(e->embeds);
	lpo_free(e->dir);
	lpo_free(e);
}

const char *
lpo_embedder_dir(const lpo_embedder *e)
{
	return e->dir;
}

int64_t
lpo_embedder_width(const lpo_embedder *e)
{
	return lpo_vit_cfg(e->vit)->projection;
}

int
lpo_embedder_logit_scale(const lpo_embedder *e, double *out)
{
	return lpo_vit_logit_scale(e->vit, out);
}

void
lpo_embedder_begin(lpo_embedder *e)
{
	e->done = 0;
}

int
lpo_embedder_put(lpo_ctx *c, lpo_embedder *e, int64_t slot,
    const struct lpo_image *im)
{
	int64_t px = e->prep.crop_px;

	return lpo_clip_image_pixels(c, e->pixels + slot * px * px * 3,
	    &e->prep, im);
}

int
lpo_embedder_get(lpo_embedder *e, const float **embeds, int64_t n)
{
	int64_t px = e->prep.crop_px, width = lpo_embedder_width(e);
	int rc;

	*embeds = e->embeds;
	/* what lies in slots beyond n is old, and nobody looks at it */
	for (; e->done < n; e->done += e->batch)
		if ((rc = lpo_var_set(e->tape, e->image, e->pixels +
		    e->done * px * px * 3)) < 0 ||
		    (rc = lpo_tape_forward(e->tape, 0)) < 0 ||
		    (rc = lpo_var_get(e->tape, e->out, e->embeds +
		    e->done * width)) < 0)
			return rc;
	return 0;
}

void
lpo_embed_normalise(double *out, const float *x, int64_t n)
{
	double sum = 0;
	int64_t i;

	for (i = 0; i < n; i++)
		sum += (double)x[i] * (double)x[i];
	for (i = 0; i < n; i++)
		out[i] = (double)x[i] / sqrt(sum);
}
