/* Making and opening a reward model: folders, configs, the head's weights. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/base/philox.h"
#include "lib/io/safetensors.h"
#include "lib/model/random.h"
#include "lib/model/source.h"
#include "lib/model/unet_priv.h"
#include "lib/model/weights.h"
#include "lib/train/lrm_priv.h"

static const char *const text_names[2] = { "text_encoder", "text_encoder_2" };
static const char *const tokenizer_names[2] = { "tokenizer", "tokenizer_2" };

/* dir/name if it is there, else other/name (other may be NULL). */
static int
part_dir(lpo_ctx *c, char **out, const char *dir, const char *other,
    const char *name)
{
	if ((*out = lpo_path_join(c, dir, name)) == NULL)
		return LPO_ENOMEM;
	if (lpo_source_has(*out) || other == NULL)
		return 0;
	lpo_free(*out);
	*out = lpo_path_join(c, other, name);
	return *out == NULL ? LPO_ENOMEM : 0;
}

static int
find_parts(lpo_lrm *m, const char *dir, const char *other)
{
	int i, rc;

	if ((rc = part_dir(m->ctx, &m->unet_dir, dir, NULL, "unet")) < 0)
		return rc;
	for (i = 0; i < 2; i++)
		if ((rc = part_dir(m->ctx, &m->text_dir[i], dir, other,
		    text_names[i])) < 0 || (rc = part_dir(m->ctx,
		    &m->tokenizer_dir[i], dir, other, tokenizer_names[i])) < 0)
			return rc;
	return 0;
}

/* Widths of the pooled features, from the configs alone. */
static int
read_shapes(lpo_lrm *m)
{
	struct lpo_unet_config *u = &m->ucfg;
	int64_t positions = 0;
	json_t *j = NULL;
	char *path;
	int i, rc;

	if ((rc = lpo_unet_read_config(m->ctx, u, NULL, m->unet_dir)) < 0)
		return rc;
	m->encoders = u->text_time ? 2 : 1;
	for (i = 0; i < m->encoders; i++) {
		if ((path = lpo_path_join(m->ctx, m->text_dir[i],
		    "config.json")) == NULL)
			return LPO_ENOMEM;
		if ((rc = lpo_source_json(m->ctx, &j, path, 0)) == 0 &&
		    ((rc = lpo_json_int(m->ctx, &m->hidden[i], j,
		    "hidden_size", 512)) < 0 || (rc = lpo_json_int(m->ctx,
		    &m->projected[i], j, "projection_dim", 512)) < 0 ||
		    (rc = lpo_json_int(m->ctx, &positions, j,
		    "max_position_embeddings", 77)) < 0))
			lpo_fail_prefix(m->ctx, "%s", path);
		json_decref(j);
		j = NULL;
		lpo_free(path);
		if (rc < 0)
			return rc;
	}
	/* without a tokenizer: what the encoder takes at most */
	m->length = positions;
	if ((rc = lpo_lrm_open_tokenizer(m, 0)) == LPO_ENOTFOUND)
		lpo_clear(m->ctx);
	else if (rc < 0)
		return rc;
	m->cfg.latent_channels = u->in_channels;
	if (m->encoders == 1 && m->hidden[0] != u->context_dim)
		return lpo_fail(m->ctx, LPO_EFORMAT, "'%s' is %lld wide, the "
		    "UNet wants %lld", m->text_dir[0], (long long)m->hidden[0],
		    (long long)u->context_dim);
	return 0;
}

static int64_t
feature_width(const lpo_lrm *m)
{
	const struct lpo_unet_config *u = &m->ucfg;
	int64_t sum = u->channels[u->blocks - 1];
	int i;

	for (i = 0; m->cfg.multi_scale && i < u->blocks; i++)
		sum += u->channels[i];
	return sum;
}

/* The head's parameters, zero; width: of V and T. */
static int
make_head(lpo_lrm *m, int64_t width)
{
	const int64_t one[1] = { 1 };
	const int64_t visual[2] = { width, m->features };
	const int64_t text[2] = { width, m->hidden[0] };

	m->width = width;
	m->visual.name = "visual_projection";
	m->visual.w = lpo_param_add(&m->head, LPO_LRM_VISUAL, LPO_MATRIX, 2,
	    visual);
	m->scale = lpo_param_add(&m->head, LPO_LRM_SCALE, LPO_VECTOR, 1, one);
	if (m->visual.w == NULL || m->scale == NULL)
		return LPO_ENOMEM;
	if (m->encoders == 2)
		return 0;
	m->text.name = "text_projection";
	m->text.w = lpo_param_add(&m->head, LPO_LRM_TEXT, LPO_MATRIX, 2, text);
	return m->text.w == NULL ? LPO_ENOMEM : 0;
}

static int
import_tensor(lpo_lrm *m, lpo_param *p, const lpo_st *st,
    const struct lpo_st_tensor *t)
{
	float *f = lpo_alloc(m->ctx, (size_t)p->count, sizeof(*f));
	int64_t i;
	int rc = LPO_ENOMEM;

	if (f == NULL)
		goto out;
	if ((rc = lpo_st_f32(m->ctx, f, t)) < 0) {
		lpo_fail_prefix(m->ctx, "%s", lpo_st_path(st));
		goto out;
	}
	for (i = 0; i < p->count; i++)
		if (!isfinite(f[i])) {
			rc = lpo_fail(m->ctx, LPO_EFORMAT, "%s: '%s' has a "
			    "value that is not finite", lpo_st_path(st),
			    t->key);
			goto out;
		}
	rc = lpo_param_import(&m->head, p, f);
out:
	lpo_free(f);
	return rc;
}

/* ------------------------------------------------------- a new reward model */

/* W_v ~ N(0, 0.02^2), s: method.md 1.4 */
static int
init_visual(lpo_lrm *m, uint64_t seed)
{
	const struct lpo_draw draw = { .seed = seed, .purpose = LPO_DRAW_INIT,
	    .item = lpo_crc32c(0, LPO_LRM_VISUAL, strlen(LPO_LRM_VISUAL)) };
	const float s = 2.6592f;
	int64_t i, n = m->visual.w->count;
	float *f = lpo_alloc(m->ctx, (size_t)n, sizeof(*f));
	int rc;

	if (f == NULL)
		return LPO_ENOMEM;
	lpo_draw_normal(&draw, 0, f, n);
	for (i = 0; i < n; i++)
		f[i] *= 0.02f;
	if ((rc = lpo_param_import(&m->head, m->visual.w, f)) == 0)
		rc = lpo_param_import(&m->head, m->scale, &s);
	lpo_free(f);
	return rc;
}

static int
identity(lpo_lrm *m)
{
	int64_t i, n = m->width;
	float *f = lpo_alloc(m->ctx, (size_t)(n * n), sizeof(*f));
	int rc;

	if (f == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++)
		f[i * n + i] = 1;
	rc = lpo_param_import(&m->head, m->text.w, f);
	lpo_free(f);
	lpo_notice(m->ctx, "the text encoder brings no projection: the "
	    "reward model's begins as the identity");
	return rc;
}

/* The head of a new model; W_t from a file, the encoder, or the identity. */
static int
init_head(lpo_lrm *m, const char *projection, uint64_t seed)
{
	const int64_t any[2] = { -1, m->hidden[0] };
	const struct lpo_st_tensor *t = NULL;
	lpo_st *st = NULL;
	int rc;

	/* a random model's file of an encoder has no projection, like SD1.5's */
	if (m->encoders == 1 && (projection != NULL ||
	    !lpo_random_is(m->text_dir[0]))) {
		rc = projection != NULL ?
		    lpo_st_open(m->ctx, &st, projection) :
		    lpo_weights_file(m->ctx, &st, m->text_dir[0], "model");
		if (rc < 0)
			return rc;
		if (projection != NULL ||
		    lpo_st_find(st, LPO_LRM_TEXT) != NULL) {
			t = lpo_st_need(m->ctx, st, LPO_LRM_TEXT, 2, any);
			if (t == NULL) {
				rc = lpo_errcode(m->ctx);
				goto out;
			}
		}
	}
	rc = make_head(m, m->encoders == 2 ? m->projected[1] :
	    t != NULL ? t->shape[0] : m->hidden[0]);
	if (rc == 0)
		rc = init_visual(m, seed);
	if (rc == 0 && m->encoders == 1)
		rc = t != NULL ? import_tensor(m, m->text.w, st, t) :
		    identity(m);
out:
	lpo_st_close(st);
	return rc;
}

/* scaling factor and pixels per latent, where the folder has a VAE */
static int
read_vae(lpo_lrm *m, const char *dir)
{
	char *path = lpo_asprintf(m->ctx, "%s/vae/config.json", dir);
	json_t *j = NULL;
	size_t n;
	int rc = 0;

	if (path == NULL)
		return LPO_ENOMEM;
	m->cfg.vae_factor = 8;
	if (lpo_source_has(path) &&
	    (rc = lpo_source_json(m->ctx, &j, path, 0)) == 0) {
		if ((rc = lpo_json_real(m->ctx, &m->cfg.scaling_factor, j,
		    "scaling_factor", 0.18215)) < 0)
			lpo_fail_prefix(m->ctx, "%s", path);
		n = json_array_size(lpo_json_get(j, "block_out_channels"));
		if (n >= 1 && n <= 8)
			m->cfg.vae_factor = (int64_t)1 << (n - 1);
	}
	json_decref(j);
	lpo_free(path);
	return rc;
}

static void
not_given(struct lpo_lrm_config *cfg)
{
	memset(cfg, 0, sizeof(*cfg));
	cfg->guidance = NAN;
	cfg->multi_scale = cfg->multi_scale_cfg = -1;
}

static lpo_lrm *
lrm_alloc(lpo_ctx *c, lpo_backend *be, enum lpo_dtype dt,
    const struct lpo_lrm_config *cfg)
{
	lpo_lrm *m = lpo_alloc(c, 1, sizeof(*m));

	if (m == NULL)
		return NULL;
	m->ctx = c;
	m->be = be;
	m->dtype = dt;
	if (cfg != NULL)
		m->cfg = *cfg;
	else
		not_given(&m->cfg);
	if (lpo_params_init(&m->head, c, be, LPO_F32) < 0) {
		lpo_free(m);
		return NULL;
	}
	return m;
}

int
lpo_lrm_new(lpo_ctx *c, lpo_backend *be, lpo_lrm **out, const char *dir,
    enum lpo_dtype dt, const struct lpo_lrm_config *cfg,
    const char *projection, uint64_t seed)
{
	lpo_lrm *m;
	int rc;

	*out = NULL;
	if ((m = lrm_alloc(c, be, dt, cfg)) == NULL)
		return LPO_ENOMEM;
	if (isnan(m->cfg.guidance))
		m->cfg.guidance = LPO_LRM_GUIDANCE;
	if (m->cfg.multi_scale < 0)
		m->cfg.multi_scale = 1;
	if (m->cfg.multi_scale_cfg < 0)
		m->cfg.multi_scale_cfg = 0;
	if ((rc = find_parts(m, dir, NULL)) < 0 ||
	    (rc = read_shapes(m)) < 0 || (rc = read_vae(m, dir)) < 0)
		goto out;
	m->features = feature_width(m);
	if ((rc = init_head(m, projection, seed)) < 0)
		goto out;
	*out = m;
	m = NULL;
out:
	lpo_lrm_free(m);
	return rc;
}

/* --------------------------------------------------- one that was trained */

static int
copy_text(lpo_ctx *c, char *out, size_t size, const json_t *j,
    const char *key)
{
	const char *s;
	int rc;

	if ((rc = lpo_json_str(c, &s, j, key, "")) < 0)
		return rc;
	if (strlen(s) >= size)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is too long", key);
	snprintf(out, size, "%s", s);
	return 0;
}

/* lrm.json into f; absent values as "not given". */
static int
read_json(lpo_ctx *c, struct lpo_lrm_config *f, const json_t *j)
{
	const json_t *latent = lpo_json_get(j, "latent");
	int64_t format;
	int rc;

	if (!json_is_object(j) || (latent != NULL && !json_is_object(latent)))
		return lpo_fail(c, LPO_EFORMAT, "%s is not an object",
		    json_is_object(j) ? "'latent'" : "what it holds");
	if ((rc = lpo_json_int(c, &format, j, "format", LPO_LRM_FORMAT)) < 0 ||
	    (rc = lpo_json_real(c, &f->guidance, j, "guidance", NAN)) < 0 ||
	    (rc = lpo_json_bool(c, &f->multi_scale, j, "multi_scale",
	    -1)) < 0 ||
	    (rc = lpo_json_bool(c, &f->multi_scale_cfg, j, "multi_scale_cfg",
	    -1)) < 0 ||
	    (rc = lpo_json_real(c, &f->scaling_factor, latent,
	    "scaling_factor", 0)) < 0 ||
	    (rc = lpo_json_int(c, &f->vae_factor, latent, "vae_factor",
	    8)) < 0 ||
	    (rc = copy_text(c, f->vae_sha256, sizeof(f->vae_sha256), latent,
	    "vae_sha256")) < 0 ||
	    (rc = copy_text(c, f->base_sha256, sizeof(f->base_sha256), j,
	    "base_sha256")) < 0 ||
	    (rc = copy_text(c, f->run, sizeof(f->run), j, "run")) < 0)
		return rc;
	if (format != LPO_LRM_FORMAT)
		return lpo_fail(c, LPO_EFORMAT, "format %lld is not known",
		    (long long)format);
	if (f->guidance < 0 || f->guidance > 100)
		return lpo_fail(c, LPO_EFORMAT, "'guidance' is %g, not within "
		    "0 and 100", f->guidance);
	if (f->scaling_factor < 0)
		return lpo_fail(c, LPO_EFORMAT, "'scaling_factor' is %g",
		    f->scaling_factor);
	if (f->vae_factor < 1 || f->vae_factor > 128)
		return lpo_fail(c, LPO_EFORMAT, "'vae_factor' is %lld",
		    (long long)f->vae_factor);
	return 0;
}

/* The user's word, else the file's, else the paper's. */
static void
settle(lpo_lrm *m, const struct lpo_lrm_config *f, int has_json)
{
	struct lpo_lrm_config user = m->cfg;

	m->cfg = *f;
	if (isnan(f->guidance) && isnan(user.guidance)) {
		m->cfg.guidance = LPO_LRM_GUIDANCE;
		lpo_notice(m->ctx, "the reward model does not say its "
		    "guidance: the paper's %g is used", LPO_LRM_GUIDANCE);
	} else if (!isnan(user.guidance)) {
		m->cfg.guidance = user.guidance;
		if (has_json && !isnan(f->guidance) &&
		    f->guidance != user.guidance)
			lpo_notice(m->ctx, "the reward model was trained with "
			    "guidance %g and is used with %g", f->guidance,
			    user.guidance);
	}
	if (user.multi_scale >= 0)
		m->cfg.multi_scale = user.multi_scale;
	else if (f->multi_scale < 0)
		m->cfg.multi_scale = 1;
	if (user.multi_scale_cfg >= 0)
		m->cfg.multi_scale_cfg = user.multi_scale_cfg;
	else if (f->multi_scale_cfg < 0)
		m->cfg.multi_scale_cfg = 0;
}

static int
load_config(lpo_lrm *m, const char *dir)
{
	struct lpo_lrm_config f;
	char *path;
	json_t *j = NULL;
	int rc = 0, has;

	not_given(&f);
	f.vae_factor = 8;
	if (lpo_random_is(dir)) {
		f.guidance = LPO_LRM_GUIDANCE;
		settle(m, &f, 1);
		return read_vae(m, dir);
	}
	if ((path = lpo_path_join(m->ctx, dir, "lrm.json")) == NULL)
		return LPO_ENOMEM;
	if ((has = lpo_file_exists(path)) &&
	    (rc = lpo_json_load_file(m->ctx, &j, path, 0)) == 0 &&
	    (rc = read_json(m->ctx, &f, j)) < 0)
		lpo_fail_prefix(m->ctx, "%s", path);
	if (rc == 0)
		settle(m, &f, has);
	json_decref(j);
	lpo_free(path);
	return rc;
}

/* One tensor of the head; shape -1 in the first dimension: any. */
static const struct lpo_st_tensor *
head_tensor(lpo_lrm *m, const lpo_st *st, const char *key, int64_t rows,
    int64_t cols)
{
	const int64_t shape[2] = { rows, cols };

	return lpo_st_need(m->ctx, st, key, 2, shape);
}

static int
fill_head(lpo_lrm *m, const lpo_st *st)
{
	const struct lpo_st_tensor *v, *t = NULL, *s;
	int rc;

	v = head_tensor(m, st, LPO_LRM_VISUAL,
	    m->encoders == 2 ? m->projected[1] : -1, m->features);
	if (v != NULL && m->encoders == 1)
		t = head_tensor(m, st, LPO_LRM_TEXT, v->shape[0],
		    m->hidden[0]);
	if (v == NULL || (m->encoders == 1 && t == NULL))
		return lpo_errcode(m->ctx);
	s = lpo_st_find(st, LPO_LRM_SCALE);
	if (s == NULL || s->count != 1)
		return lpo_fail(m->ctx, LPO_EFORMAT, "%s: '%s' is missing or "
		    "not one number", lpo_st_path(st), LPO_LRM_SCALE);
	if ((rc = make_head(m, v->shape[0])) < 0 ||
	    (rc = import_tensor(m, m->visual.w, st, v)) < 0 ||
	    (rc = import_tensor(m, m->scale, st, s)) < 0)
		return rc;
	return t == NULL ? 0 : import_tensor(m, m->text.w, st, t);
}

/* A head from nowhere: W_v and W_t drawn, s as a new model's. */
static int
random_head(lpo_lrm *m, const char *dir)
{
	const float s = 2.6592f;
	lpo_param *w[2] = { NULL, NULL };
	struct lpo_random_tensor t;
	struct lpo_random r;
	float *f;
	int i, rc;

	if ((rc = lpo_random_parse(m->ctx, &r, dir)) < 0 || (rc = make_head(m,
	    m->encoders == 2 ? m->projected[1] : m->hidden[0])) < 0 ||
	    (rc = lpo_param_import(&m->head, m->scale, &s)) < 0)
		return rc;
	w[0] = m->visual.w;
	w[1] = m->text.w;
	for (i = 0; i < 2 && w[i] != NULL && rc == 0; i++) {
		f = lpo_alloc(m->ctx, (size_t)w[i]->count, sizeof(*f));
		if (f == NULL)
			return LPO_ENOMEM;
		lpo_random_tensor(&r, "lrm", &t, w[i]->key, w[i]->rank,
		    w[i]->shape);
		lpo_random_draw(&t, 0, f, w[i]->count);
		rc = lpo_param_import(&m->head, w[i], f);
		lpo_free(f);
	}
	return rc;
}

/* What the official code writes; or the same in safetensors. */
static int
load_head(lpo_lrm *m, const char *dir)
{
	char *path = lpo_path_join(m->ctx, dir, "state_dict.safetensors");
	lpo_st *st = NULL;
	int rc;

	if (path != NULL && !lpo_file_exists(path)) {
		lpo_free(path);
		path = lpo_path_join(m->ctx, dir, "state_dict.pt");
	}
	if (path == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_st_open(m->ctx, &st, path)) == 0)
		rc = fill_head(m, st);
	lpo_st_close(st);
	lpo_free(path);
	return rc;
}

int
lpo_lrm_open(lpo_ctx *c, lpo_backend *be, lpo_lrm **out, const char *dir,
    const char *model_dir, enum lpo_dtype dt,
    const struct lpo_lrm_config *cfg)
{
	struct lpo_random r;
	lpo_lrm *m;
	int rc;

	*out = NULL;
	if (lpo_random_is(dir) && (rc = lpo_random_parse(c, &r, dir)) < 0)
		return rc;
	if (!lpo_random_is(dir) && !lpo_is_dir(dir))
		return lpo_fail(c, LPO_ENOTFOUND, "no reward model '%s'", dir);
	if ((m = lrm_alloc(c, be, dt, cfg)) == NULL)
		return LPO_ENOMEM;
	if ((rc = load_config(m, dir)) < 0 ||
	    (rc = find_parts(m, dir, model_dir)) < 0 ||
	    (rc = read_shapes(m)) < 0)
		goto out;
	m->features = feature_width(m);
	rc = lpo_random_is(dir) ? random_head(m, dir) : load_head(m, dir);
	if (rc < 0)
		goto out;
	*out = m;
	m = NULL;
out:
	lpo_lrm_free(m);
	return rc;
}

void
lpo_lrm_free(lpo_lrm *m)
{
	int i;

	if (m == NULL)
		return;
	lpo_lrm_free_text(m);
	lpo_unet_free(m->unet);
	lpo_params_free(&m->head);
	lpo_free(m->unet_dir);
	for (i = 0; i < 2; i++) {
		lpo_tokenizer_close(m->tokenizer[i]);
		lpo_free(m->text_dir[i]);
		lpo_free(m->tokenizer_dir[i]);
	}
	lpo_free(m);
}
