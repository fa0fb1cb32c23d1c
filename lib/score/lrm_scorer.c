/*
 * lrm:DIR: a latent reward model looking at finished pictures, as it is
 * validated (method.md 2.8) but without chance: the latent is the mean of the
 * VAE's posterior times the scaling factor, without noise, and t is 1.
 *
 *	score	exp(s) <V, T> / (|V| |T|)
 */
#include <math.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/io/resize.h"
#include "lib/model/vae.h"
#include "lib/score/scorer.h"
#include "lib/train/lrm_score.h"

#define TIMESTEP 1
#define BATCH 8		/* halved while it does not fit; divides the slots */

struct lrm {
	lpo_ctx *ctx;
	lpo_lrm *m;
	lpo_vae *vae;
	lpo_lrm_scorer *scorer;
	lpo_tape *tape;
	lpo_var *image, *moments;
	int64_t batch, px, side, channels;	/* side: of the latent */
	uint8_t *rgb;		/* [SLOTS, px, px, 3] */
	float *host_image;	/* [batch, px, px, 3] */
	float *host_moments;	/* [batch, side, side, 2 channels] */
	float *latent;		/* [batch, side, side, channels] */
};

static int
lrm_inputs(lpo_ctx *c, const struct lpo_scorer_opts *o, const char *dir,
    int (*each)(void *, const char *), void *to)
{
	char *vae;
	int rc;

	if (dir[0] == '\0')
		return lpo_fail(c, LPO_EINVAL, "lrm: names no folder");
	if (o->model == NULL)
		return lpo_fail(c, LPO_EINVAL, "lrm:%s: -m is needed, the "
		    "model whose VAE encodes the pictures", dir);
	if ((vae = lpo_path_join(c, o->model, "vae")) == NULL)
		return LPO_ENOMEM;
	if ((rc = each(to, dir)) == 0)
		rc = each(to, vae);
	lpo_free(vae);
	return rc;
}

static void
lrm_close(void *self)
{
	struct lrm *m = self;

	if (m == NULL)
		return;
	lpo_tape_free(m->tape);
	lpo_lrm_scorer_free(m->scorer);
	lpo_lrm_free(m->m);
	lpo_vae_free(m->vae);
	lpo_free(m->rgb);
	lpo_free(m->host_image);
	lpo_free(m->host_moments);
	lpo_free(m->latent);
	lpo_free(m);
}

/* The reward model's latents are those of this VAE. */
static int
check_latents(struct lrm *m, const char *dir)
{
	const struct lpo_lrm_config *g = lpo_lrm_cfg(m->m);
	const struct lpo_vae_config *v = lpo_vae_cfg(m->vae);

	if (g->latent_channels != v->latent_channels)
		return lpo_fail(m->ctx, LPO_EFORMAT, "'%s' takes latents of "
		    "%lld channels, the VAE gives %lld", dir,
		    (long long)g->latent_channels,
		    (long long)v->latent_channels);
	if (g->scaling_factor != 0 && fabs(g->scaling_factor -
	    (double)v->scaling_factor) > 1e-5 * g->scaling_factor)
		return lpo_fail(m->ctx, LPO_EFORMAT, "'%s' was trained on "
		    "latents scaled by %g, the VAE's factor is %g", dir,
		    g->scaling_factor, (double)v->scaling_factor);
	m->channels = v->latent_channels;
	return 0;
}

static int
choose_size(struct lrm *m, const struct lpo_scorer_opts *o)
{
	int64_t factor = lpo_vae_cfg(m->vae)->factor;

	m->px = o->size_px > 0 ? o->size_px :
	    lpo_lrm_sample_size(m->m) * factor;
	m->side = m->px / factor;
	if (m->side < 1 || m->px % factor != 0)
		return lpo_fail(m->ctx, LPO_EINVAL, "size %lld is not a "
		    "multiple of %lld, the VAE's pixels per latent",
		    (long long)m->px, (long long)factor);
	return 0;
}

/* The VAE and the reward model for n pictures.  1: does not fit. */
static int
try_batch(struct lrm *m, const struct lpo_scorer_opts *o, int64_t n)
{
	struct lpo_plan plan;
	int64_t bytes;
	int rc;

	if ((m->tape = lpo_tape_new(m->ctx, o->be, o->dtype, 1)) == NULL)
		return LPO_ENOMEM;
	m->image = lpo_input(m->tape, n, m->px, m->px, 3, LPO_F32, 0);
	m->moments = lpo_vae_encode(m->tape, m->vae, m->image);
	lpo_output(m->tape, m->moments, 0);
	if ((rc = lpo_tape_plan(m->tape, 0, &plan)) < 0 ||
	    (rc = lpo_lrm_scorer_new(m->ctx, &m->scorer, m->m, 1, n, m->side,
	    m->side, NULL)) < 0)
		return rc;
	bytes = (int64_t)plan.arena_bytes +
	    (int64_t)lpo_lrm_scorer_plan(m->scorer)->arena_bytes;
	m->batch = n;
	if (n == 1 || o->memory_bytes == 0 || bytes <= o->memory_bytes / 4)
		return lpo_tape_commit(m->tape, NULL);
	lpo_lrm_scorer_free(m->scorer);
	lpo_tape_free(m->tape);
	m->scorer = NULL;
	m->tape = NULL;
	return 1;
}

static int
buffers(struct lrm *m)
{
	size_t px = (size_t)(m->px * m->px * 3);
	size_t pixels = (size_t)(m->batch * m->side * m->side);

	m->rgb = lpo_alloc(m->ctx, LPO_SCORER_SLOTS, px);
	m->host_image = lpo_alloc(m->ctx, (size_t)m->batch, px *
	    sizeof(float));
	m->host_moments = lpo_alloc(m->ctx, pixels, (size_t)m->channels * 2 *
	    sizeof(float));
	m->latent = lpo_alloc(m->ctx, pixels, (size_t)m->channels *
	    sizeof(float));
	return m->rgb == NULL || m->host_image == NULL ||
	    m->host_moments == NULL || m->latent == NULL ? LPO_ENOMEM : 0;
}

static int
lrm_open(lpo_scorers *set, void **self, const char *dir)
{
	const struct lpo_scorer_opts *o = lpo_scorers_opts(set);
	lpo_ctx *c = lpo_scorers_ctx(set);
	struct lrm *m = lpo_alloc(c, 1, sizeof(*m));
	int64_t n = BATCH;
	char *vae = NULL;
	int rc = LPO_ENOMEM;

	if ((*self = m) == NULL)
		return LPO_ENOMEM;
	m->ctx = c;
	if (o->model == NULL)
		return lpo_fail(c, LPO_EINVAL, "-m is needed, the model whose "
		    "VAE encodes the pictures");
	if ((vae = lpo_path_join(c, o->model, "vae")) == NULL ||
	    (rc = lpo_vae_load(c, o->be, &m->vae, vae, o->dtype,
	    LPO_VAE_ENCODER)) < 0 ||
	    (rc = lpo_lrm_open(c, o->be, &m->m, dir, o->model, o->dtype,
	    NULL)) < 0 ||
	    (rc = check_latents(m, dir)) < 0 ||
	    (rc = choose_size(m, o)) < 0 ||
	    (rc = lpo_lrm_load_text(m->m)) < 0)
		goto out;
	while ((rc = try_batch(m, o, n)) == 1)
		n /= 2;
	if (rc == 0)
		rc = buffers(m);
out:
	lpo_free(vae);
	return rc;
}

static int
lrm_put(lpo_ctx *c, void *self, int64_t slot, const struct lpo_image *im)
{
	struct lrm *m = self;

	return lpo_resize_u8(c, m->rgb + slot * m->px * m->px * 3, m->px,
	    m->px, im->rgb, im->w, im->h, 3, LPO_BILINEAR);
}

/* The slots from `first` on to scaled posterior means. */
static int
encode(struct lrm *m, int64_t first)
{
	float scale = lpo_vae_cfg(m->vae)->scaling_factor;
	int64_t pixels = m->batch * m->side * m->side, k = m->channels, i, j;
	int rc;

	lpo_image_to_float(m->host_image, m->rgb + first * m->px * m->px * 3,
	    m->batch * m->px * m->px * 3);
	if ((rc = lpo_var_set(m->tape, m->image, m->host_image)) < 0 ||
	    (rc = lpo_tape_forward(m->tape, 0)) < 0 ||
	    (rc = lpo_var_get(m->tape, m->moments, m->host_moments)) < 0)
		return rc;
	for (i = 0; i < pixels; i++)
		for (j = 0; j < k; j++)
			m->latent[i * k + j] = scale *
			    m->host_moments[i * 2 * k + j];
	return 0;
}

static int
score(struct lrm *m, double *value, int64_t stride,
    const lpo_lrm_texts *texts, int64_t first, int64_t n)
{
	int64_t prompt[BATCH], t[BATCH], i;
	float s[BATCH];
	int rc;

	if ((rc = encode(m, first)) < 0)
		return rc;
	for (i = 0; i < n; i++) {
		prompt[i] = first + i;
		t[i] = TIMESTEP;
	}
	if ((rc = lpo_lrm_scorer_score(m->scorer, s, NULL, texts, m->latent,
	    prompt, t, n)) < 0)
		return rc;
	for (i = 0; i < n; i++)
		value[(first + i) * stride] = (double)s[i];
	return 0;
}

static int
lrm_run(void *self, double *value, int64_t stride, const char *const *prompt,
    int64_t n)
{
	struct lrm *m = self;
	lpo_lrm_texts *texts = NULL;
	int64_t at, size;
	int rc;

	rc = lpo_lrm_texts_new(m->ctx, &texts, m->m, prompt, n);
	for (at = 0; at < n && rc == 0; at += size) {
		size = n - at < m->batch ? n - at : m->batch;
		rc = score(m, value, stride, texts, at, size);
	}
	lpo_lrm_texts_free(texts);
	return rc;
}

static const char *const columns[] = { "score", NULL };

const struct lpo_scorer_class lpo_scorer_lrm = {
	"lrm", "DIR", columns, lrm_inputs, lrm_open, lrm_close, lrm_put,
	lrm_run
};
