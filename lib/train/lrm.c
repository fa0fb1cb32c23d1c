/* The reward model's parts, and how they stand on a tape. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/train/lrm_priv.h"

/* ----------------------------------------------------------------- parts */

int
lpo_lrm_load_text(lpo_lrm *m)
{
	int i, rc;

	for (i = 0; i < m->encoders; i++) {
		if (m->clip[i] != NULL)
			continue;
		if ((rc = lpo_clip_load(m->ctx, m->be, &m->clip[i],
		    m->text_dir[i], m->dtype)) < 0)
			return rc;
	}
	if (m->encoders == 2 && !lpo_clip_cfg(m->clip[1])->has_projection)
		return lpo_fail(m->ctx, LPO_EFORMAT, "'%s' has no "
		    "text_projection.weight", m->text_dir[1]);
	return 0;
}

void
lpo_lrm_free_text(lpo_lrm *m)
{
	int i;

	for (i = 0; i < 2; i++) {
		lpo_clip_free(m->clip[i]);
		m->clip[i] = NULL;
	}
}

int
lpo_lrm_load_unet(lpo_lrm *m)
{
	if (m->unet != NULL)
		return 0;
	return lpo_unet_load(m->ctx, m->be, &m->unet, m->unet_dir, m->dtype,
	    1);
}

void
lpo_lrm_set_checkpoint(lpo_lrm *m, int on)
{
	lpo_unet_set_checkpoint(m->unet, on);
}

int
lpo_lrm_open_tokenizer(lpo_lrm *m, int i)
{
	int rc;

	if (m->tokenizer[i] != NULL)
		return 0;
	if ((rc = lpo_tokenizer_open(m->ctx, &m->tokenizer[i],
	    m->tokenizer_dir[i])) < 0)
		return rc;
	if (lpo_tokenizer_max_length(m->tokenizer[i]) > m->length)
		return lpo_fail(m->ctx, LPO_EFORMAT, "'%s' makes %lld tokens, "
		    "the text encoder takes %lld", m->tokenizer_dir[i],
		    (long long)lpo_tokenizer_max_length(m->tokenizer[i]),
		    (long long)m->length);
	if (i == 0)
		m->length = lpo_tokenizer_max_length(m->tokenizer[i]);
	else if (lpo_tokenizer_max_length(m->tokenizer[i]) != m->length)
		return lpo_fail(m->ctx, LPO_EFORMAT, "the two tokenizers make "
		    "different lengths");
	return 0;
}

int
lpo_lrm_tokenize(lpo_lrm *m, int32_t *const ids[2], const char *prompt)
{
	int i, rc = 0;

	for (i = 0; i < m->encoders && rc == 0; i++)
		if ((rc = lpo_lrm_open_tokenizer(m, i)) == 0)
			rc = lpo_tokenizer_encode(m->tokenizer[i], ids[i],
			    prompt);
	return rc;
}

int64_t
lpo_lrm_length(const lpo_lrm *m)
{
	return m->length;
}

/* ---------------------------------------------------------------- facts */

const struct lpo_lrm_config *
lpo_lrm_cfg(const lpo_lrm *m)
{
	return &m->cfg;
}

void
lpo_lrm_set_origin(lpo_lrm *m, const struct lpo_lrm_config *o)
{
	struct lpo_lrm_config *c = &m->cfg;

	if (o->scaling_factor != 0)
		c->scaling_factor = o->scaling_factor;
	if (o->vae_sha256[0] != '\0')
		memcpy(c->vae_sha256, o->vae_sha256, sizeof(c->vae_sha256));
	if (o->base_sha256[0] != '\0')
		memcpy(c->base_sha256, o->base_sha256, sizeof(c->base_sha256));
	if (o->run[0] != '\0')
		memcpy(c->run, o->run, sizeof(c->run));
}

int
lpo_lrm_check_latents(lpo_ctx *c, const struct lpo_lrm_config *f,
    int64_t channels, double factor, const char *vae)
{
	if (channels != f->latent_channels)
		return lpo_fail(c, LPO_EFORMAT, "the latents have %lld "
		    "channels, the reward model's %lld", (long long)channels,
		    (long long)f->latent_channels);
	/* one file has 0.18215, another its f32 neighbour */
	if (f->scaling_factor != 0 && fabs(factor - f->scaling_factor) >
	    1e-5 * f->scaling_factor)
		return lpo_fail(c, LPO_EFORMAT, "the latents are scaled by %g, "
		    "the reward model's by %g: it is for another latent space",
		    factor, f->scaling_factor);
	if (vae[0] != '\0' && f->vae_sha256[0] != '\0' &&
	    strcmp(vae, f->vae_sha256) != 0)
		lpo_notice(c, "the reward model was trained on latents of "
		    "other VAE files (%.8s, not %.8s): right only if they "
		    "make the same latents", f->vae_sha256, vae);
	return 0;
}

lpo_ctx *
lpo_lrm_ctx(const lpo_lrm *m)
{
	return m->ctx;
}

lpo_backend *
lpo_lrm_backend(const lpo_lrm *m)
{
	return m->be;
}

enum lpo_dtype
lpo_lrm_dtype(const lpo_lrm *m)
{
	return m->dtype;
}

/*
 * With g = 1 the unconditional half has no say.  The official code for SDXL
 * guides above 1 only, the other below 1 too (method.md 1.2).
 */
int
lpo_lrm_copies(const lpo_lrm *m)
{
	return m->cfg.guidance > 1 ||
	    (m->encoders == 1 && m->cfg.guidance < 1) ? 2 : 1;
}

int
lpo_lrm_encoders(const lpo_lrm *m)
{
	return m->encoders;
}

int64_t
lpo_lrm_context_dim(const lpo_lrm *m)
{
	return m->ucfg.context_dim;
}

int64_t
lpo_lrm_pooled_dim(const lpo_lrm *m)
{
	return m->encoders == 2 ? m->projected[1] : 0;
}

int64_t
lpo_lrm_feature_dim(const lpo_lrm *m)
{
	return m->width;
}

int64_t
lpo_lrm_sample_size(const lpo_lrm *m)
{
	return m->ucfg.sample_size;
}

int
lpo_lrm_logit_scale(const lpo_lrm *m, double *out)
{
	float s;
	int rc = lpo_param_export((lpo_params *)(uintptr_t)&m->head, m->scale,
	    &s);

	if (rc == 0)
		*out = (double)s;
	return rc;
}

lpo_params *
lpo_lrm_head(lpo_lrm *m)
{
	return &m->head;
}

int
lpo_lrm_sets(lpo_lrm *m, struct lpo_lrm_set set[4])
{
	int n = 0;

	if (m->unet != NULL)
		set[n++] = (struct lpo_lrm_set){ "unet",
		    lpo_unet_params(m->unet) };
	if (m->clip[0] != NULL)
		set[n++] = (struct lpo_lrm_set){ "text_encoder",
		    lpo_clip_params(m->clip[0]) };
	if (m->clip[1] != NULL)
		set[n++] = (struct lpo_lrm_set){ "text_encoder_2",
		    lpo_clip_params(m->clip[1]) };
	set[n++] = (struct lpo_lrm_set){ "", &m->head };
	return n;
}

/* ------------------------------------------------------------- text side */

void
lpo_lrm_record_text(lpo_tape *t, lpo_lrm *m, struct lpo_lrm_text *x,
    int64_t n, int feature)
{
	struct lpo_clip_out o[2];
	int i, pool, last = m->encoders - 1;

	memset(x, 0, sizeof(*x));
	memset(o, 0, sizeof(o));
	for (i = 0; i < m->encoders; i++) {
		/* SDXL pools its second encoder only, the empty prompt too */
		pool = i == last && (feature || m->encoders == 2);
		x->ids[i] = lpo_input(t, n, m->length, 1, 1, LPO_I32, 0);
		if (pool)
			x->eos[i] = lpo_input(t, n, 1, 1, 1, LPO_I32, 0);
		lpo_clip_fwd(t, m->clip[i], x->ids[i], x->eos[i], &o[i]);
	}
	if (m->encoders == 1) {
		x->context = o[0].last_hidden;
		if (feature)
			x->feature = lpo_linear(t, &m->text,
			    lpo_cast(t, o[0].pooled, LPO_F32));
		return;
	}
	x->context = lpo_concat(t, o[0].penultimate, o[1].penultimate);
	x->pooled = lpo_cast(t, o[1].projected, LPO_F32);
	if (feature)
		x->feature = x->pooled;
}

int
lpo_lrm_set_text(lpo_tape *t, lpo_lrm *m, struct lpo_lrm_text *x,
    const int32_t *const ids[2])
{
	int64_t k, n, l = m->length;
	int32_t *eos;
	int i, rc;

	for (i = 0; i < m->encoders; i++) {
		if ((rc = lpo_clip_check_ids(m->ctx, m->clip[i], ids[i],
		    x->ids[i]->n * l)) < 0 ||
		    (rc = lpo_var_set(t, x->ids[i], ids[i])) < 0)
			return rc;
		if (x->eos[i] == NULL)
			continue;
		n = x->eos[i]->n;
		if ((eos = lpo_alloc(m->ctx, (size_t)n, sizeof(*eos))) == NULL)
			return LPO_ENOMEM;
		for (k = 0; k < n; k++)
			eos[k] = (int32_t)(k * l + lpo_clip_eos(m->clip[i],
			    ids[i] + k * l, l));
		rc = lpo_var_set(t, x->eos[i], eos);
		lpo_free(eos);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* ------------------------------------------------------------ image side */

lpo_var *
lpo_lrm_record_image(lpo_tape *t, lpo_lrm *m, struct lpo_lrm_image *x,
    int64_t r, int64_t h, int64_t w, lpo_var *context, lpo_var *text_embeds)
{
	lpo_var *pooled[LPO_UNET_MAX_BLOCKS + 1], *v, *f = NULL;
	struct lpo_unet_in in = { .context = context,
	    .text_embeds = text_embeds, .copies = lpo_lrm_copies(m) };
	int64_t groups = lpo_tape_groups(t);
	int i, guided, n, guides = in.copies == 2;

	memset(x, 0, sizeof(*x));
	x->latent = lpo_input(t, groups * r, h, w, m->ucfg.in_channels,
	    LPO_F32, 0);
	x->time = lpo_input(t, groups * r, 1, 1, m->ucfg.channels[0], LPO_F32,
	    0);
	if (m->ucfg.text_time)
		x->time_ids = lpo_input(t, groups * in.copies, 1, 1,
		    6 * m->ucfg.add_time_dim, LPO_F32, 0);
	in.sample = x->latent;
	in.time = x->time;
	in.time_ids = x->time_ids;
	n = lpo_unet_features(t, m->unet, &in, pooled);
	for (i = m->cfg.multi_scale ? 0 : n - 1; i < n; i++) {
		/*
		 * The mid feature is guided, the others on demand, but the
		 * official SDXL code never guides block 0 (method.md 1.2).
		 */
		guided = i == n - 1 || (m->cfg.multi_scale_cfg &&
		    !(m->ucfg.text_time && i == 0));
		v = !guides ? pooled[i] : guided ?
		    lpo_guide(t, pooled[i], (float)m->cfg.guidance) :
		    lpo_slice_rows(t, pooled[i], 0, r);
		f = f == NULL ? v : lpo_concat(t, f, v);
	}
	return lpo_linear(t, &m->visual, f);
}

/* (h, w, 0, 0, h, w) in pixels, each as a sinusoid: models.md 2.3 */
static int
set_time_ids(lpo_tape *t, const lpo_lrm *m, const struct lpo_lrm_image *x)
{
	int64_t dim = m->ucfg.add_time_dim, n = x->time_ids->n, i;
	float px[6] = { 0 }, *f;
	int k, rc;

	f = lpo_alloc(m->ctx, (size_t)(n * 6 * dim), sizeof(*f));
	if (f == NULL)
		return LPO_ENOMEM;
	px[0] = px[4] = (float)(x->latent->h * m->cfg.vae_factor);
	px[1] = px[5] = (float)(x->latent->w * m->cfg.vae_factor);
	for (k = 0; k < 6; k++)
		lpo_sinusoid(f + k * dim, px[k], dim, m->ucfg.flip_sin_to_cos,
		    m->ucfg.freq_shift);
	for (i = 1; i < n; i++)
		memcpy(f + i * 6 * dim, f, (size_t)(6 * dim) * sizeof(*f));
	rc = lpo_var_set(t, x->time_ids, f);
	lpo_free(f);
	return rc;
}

int
lpo_lrm_set_image(lpo_tape *t, lpo_lrm *m, struct lpo_lrm_image *x,
    const float *latent, const int64_t *ts)
{
	int64_t n = x->time->n, dim = x->time->c, i;
	float *f;
	int rc;

	if ((rc = lpo_var_set(t, x->latent, latent)) < 0)
		return rc;
	f = lpo_alloc(m->ctx, (size_t)(n * dim), sizeof(*f));
	if (f == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++)
		lpo_sinusoid(f + i * dim, (float)ts[i], dim,
		    m->ucfg.flip_sin_to_cos, m->ucfg.freq_shift);
	rc = lpo_var_set(t, x->time, f);
	lpo_free(f);
	if (rc == 0 && x->time_ids != NULL)
		rc = set_time_ids(t, m, x);
	return rc;
}
