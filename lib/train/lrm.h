/*
 * The latent reward model (method.md 1): the down and mid half of a UNet, its
 * text encoder(s), a visual and (one-encoder models) a text projection without
 * bias, and one log temperature s.
 *
 *	f     = concat(v_1 .. v_n, v_mid), means over the image of the last
 *	        layer before each downsampler and of the mid block
 *	v_mid = u + g (c - u), c and u from the prompt's and the empty prompt's
 *	        context; v_i = c (multi_scale_cfg: guided too)
 *	V     = W_v f,  T = W_t pooled  (SDXL: encoder 2's projection)
 *	score = exp(s) <V, T> / (|V| |T|)
 *
 * Latents here are channels-last, [rows, h, w, c], as everywhere inside.
 */
#ifndef LPO_TRAIN_LRM_H
#define LPO_TRAIN_LRM_H

#include "lib/model/text.h"
#include "lib/model/unet.h"

/* What lrm.json holds besides the weights. */
struct lpo_lrm_config {
	double guidance;	/* g; NAN: not given */
	int multi_scale;	/* pool the down blocks too; -1: not given */
	int multi_scale_cfg;	/* guide them too; -1: not given */
	int64_t latent_channels;
	double scaling_factor;	/* of the latents it was trained on; 0: ? */
	int64_t vae_factor;	/* pixels per latent, for SDXL's time ids */
	char vae_sha256[65];	/* "" when unknown */
	char base_sha256[65];	/* of the base model's UNet file(s) */
	char run[17];		/* id of the run that trained it, or "" */
};
#define LPO_LRM_GUIDANCE 7.5	/* the paper's */

typedef struct lpo_lrm lpo_lrm;

/*
 * A new LRM from a diffusers folder (method.md 1.4): W_v ~ N(0, 0.02^2) by
 * Philox; W_t from the tensor `text_projection.weight` of `text_projection` (a
 * file, or an index) if given, else of the text encoder's own file if it has
 * one, else the identity (said by lpo_notice); s = 2.6592.
 * cfg: guidance, multi_scale, multi_scale_cfg or "not given" (7.5, 1, 0); the
 * rest is filled in here.  cfg NULL: all defaults.  Nothing big is read before
 * lpo_lrm_load_text() and lpo_lrm_load_unet().
 */
int	 lpo_lrm_new(lpo_ctx *, lpo_backend *, lpo_lrm **,
	    const char *model_dir, enum lpo_dtype,
	    const struct lpo_lrm_config *cfg, const char *text_projection,
	    uint64_t seed);
/*
 * An LRM folder, ours or one of the official code, which has no lrm.json:
 * unet/, text_encoder[_2]/, state_dict.pt (or .safetensors).  Or random:KIND,
 * that model's UNet and encoders with a random head.  model_dir: where
 * tokenizer(s), and encoders of a run with a frozen text side, are looked for
 * when the folder lacks them; may be NULL.
 * cfg: values given by the user (NULL: none), which win over lrm.json's; a
 * guidance other than it was trained with is said by lpo_notice().  Without
 * lrm.json what is not given has the paper's value, said likewise.
 */
int	 lpo_lrm_open(lpo_ctx *, lpo_backend *, lpo_lrm **, const char *dir,
	    const char *model_dir, enum lpo_dtype,
	    const struct lpo_lrm_config *cfg);
void	 lpo_lrm_free(lpo_lrm *);

/* Read a part if it is not there yet; free the encoders when done with them. */
int	 lpo_lrm_load_text(lpo_lrm *);
void	 lpo_lrm_free_text(lpo_lrm *);
int	 lpo_lrm_load_unet(lpo_lrm *);
/* As lpo_unet_set_checkpoint(), for tapes recorded from now on. */
void	 lpo_lrm_set_checkpoint(lpo_lrm *, int on);

const struct lpo_lrm_config *lpo_lrm_cfg(const lpo_lrm *);
/*
 * Where it comes from, for lrm.json: scaling_factor, vae_sha256, base_sha256
 * and run are taken from cfg where they are given (not 0, not "").
 */
void	 lpo_lrm_set_origin(lpo_lrm *, const struct lpo_lrm_config *cfg);
/*
 * Latents of `channels` channels, scaled by scaling_factor, of a VAE whose
 * hash is vae_sha256 ("": not known): are they what a model of this config was
 * trained on?  LPO_EFORMAT where not.  Only another hash is a notice: one VAE
 * has many files, and models that share a latent space share reward models.
 */
int	 lpo_lrm_check_latents(lpo_ctx *, const struct lpo_lrm_config *,
	    int64_t channels, double scaling_factor, const char *vae_sha256);
lpo_ctx	*lpo_lrm_ctx(const lpo_lrm *);
lpo_backend *lpo_lrm_backend(const lpo_lrm *);
enum lpo_dtype lpo_lrm_dtype(const lpo_lrm *);
int	 lpo_lrm_copies(const lpo_lrm *);	/* 2 with guidance, else 1 */
int	 lpo_lrm_encoders(const lpo_lrm *);	/* 1; SDXL: 2 */
int64_t	 lpo_lrm_length(const lpo_lrm *);	/* tokens of a prompt */
int64_t	 lpo_lrm_context_dim(const lpo_lrm *);
int64_t	 lpo_lrm_pooled_dim(const lpo_lrm *);	/* SDXL's; 0 without */
int64_t	 lpo_lrm_feature_dim(const lpo_lrm *);	/* of V and T */
int64_t	 lpo_lrm_sample_size(const lpo_lrm *);	/* of its latents' sides */
int	 lpo_lrm_logit_scale(const lpo_lrm *, double *s);	/* not exp(s) */

/* ids[which][length]; ids[1] is NULL or unused with one encoder. */
int	 lpo_lrm_tokenize(lpo_lrm *, int32_t *const ids[2], const char *prompt);

/* The parameters by the names of the official layout. */
struct lpo_lrm_set {
	const char *name;	/* unet, text_encoder, text_encoder_2, or "": */
	lpo_params *params;	/* visual_projection.weight, ... */
};
/* What is loaded, in this order: unet, encoder(s), head.  Returns n <= 4. */
int	 lpo_lrm_sets(lpo_lrm *, struct lpo_lrm_set set[4]);
/* visual_projection.weight, text_projection.weight (or NULL), logit_scale */
lpo_params *lpo_lrm_head(lpo_lrm *);

/* ---------------------------------------------------- on a tape, G groups */

struct lpo_lrm_text {		/* inputs and outputs of the text side */
	lpo_var *ids[2];	/* I32 [n, length, 1, 1] */
	lpo_var *eos[2];	/* I32 [n, 1, 1, 1] */
	lpo_var *context;	/* [n, length, 1, context_dim] */
	lpo_var *pooled;	/* [n, 1, 1, pooled_dim] or NULL */
	lpo_var *feature;	/* T [n, 1, 1, feature_dim] f32, or NULL */
};
/*
 * Record the encoders for n rows with their inputs.  feature 0: without T (the
 * empty prompt needs none).
 */
void	 lpo_lrm_record_text(lpo_tape *, lpo_lrm *, struct lpo_lrm_text *,
	    int64_t n, int feature);
/* Set the inputs: ids[which][n * length]. */
int	 lpo_lrm_set_text(lpo_tape *, lpo_lrm *, struct lpo_lrm_text *,
	    const int32_t *const ids[2]);

struct lpo_lrm_image {		/* inputs of the image side */
	lpo_var *latent;	/* [G*r, h, w, c] f32 */
	lpo_var *time;		/* [G*r, 1, 1, time_dim] f32 */
	lpo_var *time_ids;	/* SDXL, else NULL */
};
/*
 * Record the image side for r rows per group.  context [G*copies, length, 1,
 * context_dim] and, SDXL, text_embeds [G*copies, 1, 1, pooled_dim]: per group
 * the prompt's, then, with guidance, the empty prompt's.
 * -> V [G*r, 1, 1, feature_dim] f32.
 */
lpo_var	*lpo_lrm_record_image(lpo_tape *, lpo_lrm *, struct lpo_lrm_image *,
	    int64_t r, int64_t h, int64_t w, lpo_var *context,
	    lpo_var *text_embeds);
/* Set the inputs: latent [G*r, h, w, c], t[G*r]. */
int	 lpo_lrm_set_image(lpo_tape *, lpo_lrm *, struct lpo_lrm_image *,
	    const float *latent, const int64_t *t);

/* --------------------------------------------------------------- writing */

/*
 * Write the folder `path` whole or not at all (an old one is replaced): unet/
 * (whole, the up blocks being the base model's), text_encoder[_2]/,
 * tokenizer[_2]/, state_dict.pt, lrm.json.  The official code reads it as it
 * is.  storage of UNet and encoders: F32, BF16 or F16; the head is f32.
 */
int	 lpo_lrm_save(lpo_lrm *, const char *path, enum lpo_dtype storage);

#endif
