/*
 * Writing a reward model: the layout of the official code (method.md 2.9),
 * which reads it as it is, and lrm.json.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/safetensors.h"
#include "lib/io/torch.h"
#include "lib/model/random.h"
#include "lib/model/source.h"
#include "lib/model/weights.h"
#include "lib/train/lrm_priv.h"

#define SMALL_FILE ((size_t)64 << 20)	/* a tokenizer's */

/*
 * The half of the UNet that a reward model never evaluates, from where the
 * other half came from: diffusers opens no UNet without it.
 */
struct upper {
	lpo_st *st;			/* a file, or ... */
	lpo_weights *w;			/* ... a random model */
	lpo_unet *list;			/* its parameters without values */
	struct lpo_pool names;
	struct upper_tensor {
		const lpo_weights *w;
		const lpo_param *p;
	} *tensor;
};

static int
is_upper(const char *key)
{
	static const char *const parts[] = {
		"up_blocks.", "conv_norm_out.", "conv_out."
	};
	size_t k;

	for (k = 0; k < sizeof(parts) / sizeof(*parts); k++)
		if (strncmp(key, parts[k], strlen(parts[k])) == 0)
			return 1;
	return 0;
}

static int
get_upper(void *arg, int64_t first, float *out, int64_t n)
{
	const struct upper_tensor *t = arg;

	lpo_weights_get(t->w, t->p, first, out, n);
	return 0;
}

static int
add_random_half(lpo_lrm *m, lpo_stw *w, struct upper *up,
    enum lpo_dtype storage)
{
	const lpo_params *ps = lpo_unet_params(up->list);
	const lpo_param *p;
	int64_t i;
	int rc = 0;

	up->tensor = lpo_alloc(m->ctx, (size_t)ps->n, sizeof(*up->tensor));
	if (up->tensor == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < ps->n && rc == 0; i++) {
		p = ps->p[i];
		up->tensor[i] = (struct upper_tensor){ up->w, p };
		if (is_upper(p->key))
			rc = lpo_stw_add_made(w, p->key, storage, p->rank,
			    p->shape, get_upper, &up->tensor[i]);
	}
	return rc;
}

/* Borrowed from `up`. */
static int
add_upper_half(lpo_lrm *m, lpo_stw *w, struct upper *up,
    enum lpo_dtype storage)
{
	const struct lpo_st_tensor *t;
	const char *key;
	int64_t i, added = 0;
	int rc = 0;

	if (up->st == NULL)
		return add_random_half(m, w, up, storage);
	for (i = 0; (t = lpo_st_at(up->st, i)) != NULL && rc == 0; i++) {
		key = t->key;
		if (strncmp(key, "module.", 7) == 0)
			key += 7;
		if (!is_upper(key))
			continue;
		added++;
		rc = lpo_stw_add_tensor(w, key, storage, up->st, t);
	}
	if (rc == 0 && added == 0)
		lpo_notice(m->ctx, "'%s' has no up blocks: the reward model "
		    "is written without, for these programs only",
		    lpo_st_path(up->st));
	return rc;
}

static int
open_upper(lpo_lrm *m, struct upper *up)
{
	static const char stem[] = "diffusion_pytorch_model";
	int rc;

	if (!lpo_random_is(m->unet_dir))
		return lpo_weights_file(m->ctx, &up->st, m->unet_dir, stem);
	if ((rc = lpo_unet_load(m->ctx, NULL, &up->list, m->unet_dir, LPO_F32,
	    0)) < 0)
		return rc;
	return lpo_weights_open(m->ctx, &up->w, lpo_unet_params(up->list),
	    &up->names, m->unet_dir, stem, NULL);
}

static void
close_upper(struct upper *up)
{
	lpo_free(up->tensor);
	lpo_weights_close(up->w);
	lpo_pool_free(&up->names);
	lpo_unet_free(up->list);
	lpo_st_close(up->st);
}

/*
 * All parameters of a set, in the file's layout, to dir/name; rest (or NULL):
 * where a UNet's upper half is.
 */
static int
save_params(lpo_lrm *m, lpo_params *ps, const char *dir, const char *name,
    struct upper *rest, enum lpo_dtype storage)
{
	char *path = lpo_path_join(m->ctx, dir, name);
	struct lpo_weights_source *s = NULL;
	lpo_stw *w = NULL;
	int rc = LPO_ENOMEM;

	if (path == NULL || (rc = lpo_stw_new(m->ctx, &w)) < 0 ||
	    (rc = lpo_stw_meta(w, "format", "pt")) < 0 ||
	    (rc = lpo_weights_add(ps, w, storage, &s)) < 0)
		goto out;
	if (rest != NULL &&
	    (rc = add_upper_half(m, w, rest, storage)) < 0)
		goto out;
	rc = lpo_stw_write(w, path);
out:
	lpo_stw_free(w);
	lpo_weights_source_free(s);
	lpo_free(path);
	return rc;
}

/* dir/sub with config.json and one file of weights. */
static int
save_part(lpo_lrm *m, const char *dir, const char *sub, const char *config,
    lpo_params *ps, const char *name, struct upper *rest,
    enum lpo_dtype storage)
{
	char *path = lpo_path_join(m->ctx, dir, sub);
	int rc;

	if (path == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_mkdir_p(m->ctx, path)) == 0 &&
	    (rc = lpo_file_write_text(m->ctx, path, "config.json",
	    config)) == 0)
		rc = save_params(m, ps, path, name, rest, storage);
	lpo_free(path);
	return rc;
}

static int
save_unet(lpo_lrm *m, const char *dir, enum lpo_dtype storage)
{
	struct upper up = { 0 };
	int rc;

	if ((rc = open_upper(m, &up)) == 0)
		rc = save_part(m, dir, "unet", lpo_unet_config_json(m->unet),
		    lpo_unet_params(m->unet),
		    "diffusion_pytorch_model.safetensors", &up, storage);
	close_upper(&up);
	return rc;
}

/* The head is small, and s decides every score: always f32. */
static int
save_head(lpo_lrm *m, const char *dir)
{
	const lpo_param *from[3] = { m->visual.w, m->text.w, m->scale };
	struct lpo_torch_item it[3] = { { "visual_projection", "weight", 2,
	    NULL, NULL }, { "text_projection", "weight", 2, NULL, NULL },
	    { "logit_scale", NULL, 0, NULL, NULL } };
	char *path = lpo_path_join(m->ctx, dir, "state_dict.pt");
	float *x[3] = { NULL };
	int i, n = 0, rc = path == NULL ? LPO_ENOMEM : 0;

	for (i = 0; i < 3 && rc == 0; i++) {
		if (from[i] == NULL)	/* SDXL has no text projection here */
			continue;
		x[i] = lpo_alloc(m->ctx, (size_t)from[i]->count, sizeof(float));
		rc = x[i] == NULL ? LPO_ENOMEM :
		    lpo_param_export(&m->head, from[i], x[i]);
		it[n] = it[i];
		it[n].shape = from[i]->shape;
		it[n++].data = x[i];
	}
	if (rc == 0)
		rc = lpo_torch_write(m->ctx, path, it, n);
	for (i = 0; i < 3; i++)
		lpo_free(x[i]);
	lpo_free(path);
	return rc;
}

/* So that the folder can score by itself: the tokenizer's files as they are. */
static int
copy_folder(lpo_ctx *c, const char *from, const char *dir, const char *sub)
{
	char **names = NULL, *to = NULL, *src, *data;
	int64_t i, n = 0;
	size_t bytes;
	int rc;

	if (!lpo_source_has(from))
		return 0;
	if ((to = lpo_path_join(c, dir, sub)) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_mkdir_p(c, to)) < 0 ||
	    (rc = lpo_source_list(c, &names, &n, from)) < 0)
		goto out;
	for (i = 0; i < n && rc == 0; i++) {
		char *dst = lpo_path_join(c, to, names[i]);

		data = NULL;
		src = lpo_path_join(c, from, names[i]);
		if (src == NULL || dst == NULL)
			rc = LPO_ENOMEM;
		else if (!lpo_is_dir(src) && (rc = lpo_source_read(c, &data,
		    &bytes, src, SMALL_FILE)) == 0)
			rc = lpo_file_write(c, dst, data, bytes);
		lpo_free(data);
		lpo_free(src);
		lpo_free(dst);
	}
out:
	lpo_names_free(names, n);
	lpo_free(to);
	return rc;
}

static int
save_json(lpo_lrm *m, const char *dir)
{
	const struct lpo_lrm_config *f = &m->cfg;
	json_t *j;
	char *text = NULL;
	int rc;

	j = json_pack("{s:i, s:f, s:b, s:b, s:s, s:s, s:{s:I, s:f, s:I, s:s}}",
	    "format", LPO_LRM_FORMAT, "guidance", f->guidance,
	    "multi_scale", f->multi_scale,
	    "multi_scale_cfg", f->multi_scale_cfg,
	    "base_sha256", f->base_sha256, "run", f->run,
	    "latent", "channels", (json_int_t)f->latent_channels,
	    "scaling_factor", f->scaling_factor,
	    "vae_factor", (json_int_t)f->vae_factor,
	    "vae_sha256", f->vae_sha256);
	if (j == NULL)
		return lpo_fail(m->ctx, LPO_ENOMEM, "out of memory");
	text = lpo_json_pretty(m->ctx, j);
	json_decref(j);
	if (text == NULL)
		return LPO_ENOMEM;
	rc = lpo_file_write_text(m->ctx, dir, "lrm.json", text);
	lpo_free(text);
	return rc;
}

static int
save_all(lpo_lrm *m, const char *dir, enum lpo_dtype storage)
{
	static const char *const text[2] = { "text_encoder", "text_encoder_2" };
	static const char *const tok[2] = { "tokenizer", "tokenizer_2" };
	int i, rc;

	rc = save_unet(m, dir, storage);
	for (i = 0; i < m->encoders && rc == 0; i++)
		if ((rc = save_part(m, dir, text[i],
		    lpo_clip_config_json(m->clip[i]),
		    lpo_clip_params(m->clip[i]), "model.safetensors", NULL,
		    storage)) == 0)
			rc = copy_folder(m->ctx, m->tokenizer_dir[i], dir,
			    tok[i]);
	if (rc == 0)
		rc = save_head(m, dir);
	return rc < 0 ? rc : save_json(m, dir);
}

int
lpo_lrm_save(lpo_lrm *m, const char *path, enum lpo_dtype storage)
{
	char *tmp = NULL;
	int rc;

	if ((rc = lpo_lrm_load_unet(m)) < 0 || (rc = lpo_lrm_load_text(m)) < 0)
		return rc;
	if ((rc = lpo_folder_begin(m->ctx, &tmp, path)) < 0)
		return rc;
	if ((rc = save_all(m, tmp, storage)) < 0 ||
	    (rc = lpo_folder_publish(m->ctx, &tmp, path, 1)) < 0)
		lpo_folder_abort(&tmp);
	return rc;
}
