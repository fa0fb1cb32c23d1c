/* Models to folders. */
#include "lib/model/save.h"

#include <stdio.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/io/safetensors.h"
#include "lib/model/clip.h"
#include "lib/model/source.h"
#include "lib/model/unet.h"
#include "lib/model/vae.h"
#include "lib/model/weights.h"

#define SMALL_FILE ((size_t)64 << 20)	/* a tokenizer's */
#define THREAD_SHARE 65536		/* elements */

struct saving {
	lpo_ctx *ctx;
	const char *from, *tmp;
	enum lpo_dtype storage;
	int parts, threads;
	int64_t bytes;
};

/* A parameter on its way into the file. */
struct tensor {
	struct saving *s;
	const lpo_weights *w;
	const lpo_param *p;
};

/* ----------------------------------------------------------- small files */

static int
copy_file(struct saving *s, const char *name)
{
	lpo_ctx *c = s->ctx;
	char *from = lpo_path_join(c, s->from, name);
	char *to = lpo_path_join(c, s->tmp, name), *data = NULL;
	size_t bytes;
	int rc = from == NULL || to == NULL ? LPO_ENOMEM : 0;

	if (rc == 0 && lpo_source_has(from) && (rc = lpo_source_read(c, &data,
	    &bytes, from, SMALL_FILE)) == 0)
		rc = lpo_file_write(c, to, data, bytes);
	lpo_free(data);
	lpo_free(from);
	lpo_free(to);
	return rc;
}

static int
copy_files(struct saving *s)
{
	static const char *const names[] = {
		"scheduler/scheduler_config.json",
		"tokenizer/vocab.json", "tokenizer/merges.txt",
		"tokenizer/special_tokens_map.json",
		"tokenizer/tokenizer_config.json",
		"tokenizer/added_tokens.json", "tokenizer/tokenizer.json",
		"tokenizer_2/vocab.json", "tokenizer_2/merges.txt",
		"tokenizer_2/special_tokens_map.json",
		"tokenizer_2/tokenizer_config.json",
		"tokenizer_2/added_tokens.json", "tokenizer_2/tokenizer.json",
		"text_encoder/config.json", "text_encoder_2/config.json",
		"unet/config.json", "vae/config.json", "model_index.json"
	};
	char *from, *to;
	size_t i, n;
	int rc = 0;

	for (i = 0; i < sizeof(names) / sizeof(names[0]) && rc == 0; i++) {
		n = strcspn(names[i], "/");
		from = lpo_asprintf(s->ctx, "%s/%.*s", s->from, (int)n,
		    names[i]);
		to = lpo_asprintf(s->ctx, "%s/%.*s", s->tmp, (int)n,
		    names[i]);
		rc = from == NULL || to == NULL ? LPO_ENOMEM : 0;
		if (rc == 0 && names[i][n] == '/' && lpo_source_has(from))
			rc = lpo_mkdir_p(s->ctx, to);
		lpo_free(from);
		lpo_free(to);
		if (rc == 0)
			rc = copy_file(s, names[i]);
	}
	return rc;
}

/* --------------------------------------------------------------- weights */

static int
get(void *arg, int64_t first, float *out, int64_t n)
{
	const struct tensor *t = arg;
	int64_t i, some, pieces = (n + THREAD_SHARE - 1) / THREAD_SHARE;

	if (lpo_ctx_stopped(t->s->ctx))
		return lpo_fail(t->s->ctx, LPO_ESTOP, "stopped");
#pragma omp parallel for schedule(static) num_threads(t->s->threads) \
    private(some) if (pieces > 1)
	for (i = 0; i < pieces; i++) {
		some = n - i * THREAD_SHARE < THREAD_SHARE ?
		    n - i * THREAD_SHARE : THREAD_SHARE;
		lpo_weights_get(t->w, t->p, first + i * THREAD_SHARE,
		    out + i * THREAD_SHARE, some);
	}
	return lpo_weights_check(t->w, t->p, first, out, n,
	    t->s->storage == LPO_F16);
}

/* All parameters of a network, from the weights it was listed with. */
static int
write_weights(struct saving *s, const lpo_params *ps, const lpo_weights *w,
    const char *part, const char *stem)
{
	struct tensor *t = lpo_alloc(s->ctx, (size_t)ps->n, sizeof(*t));
	char *path = lpo_asprintf(s->ctx, "%s/%s/%s.safetensors", s->tmp,
	    part, stem);
	lpo_stw *out = NULL;
	int64_t i;
	int rc = LPO_ENOMEM;

	if (t == NULL || path == NULL)
		goto out;
	if ((rc = lpo_stw_new(s->ctx, &out)) < 0 ||
	    (rc = lpo_stw_meta(out, "format", "pt")) < 0)
		goto out;
	for (i = 0; i < ps->n && rc == 0; i++) {
		t[i] = (struct tensor){ s, w, ps->p[i] };
		s->bytes += ps->p[i]->count *
		    (int64_t)lpo_dtype_bytes(s->storage);
		rc = lpo_stw_add_made(out, ps->p[i]->key, s->storage,
		    ps->p[i]->rank, ps->p[i]->shape, get, &t[i]);
	}
	if (rc == 0)
		rc = lpo_stw_write(out, path);
out:
	lpo_stw_free(out);
	lpo_free(path);
	lpo_free(t);
	return rc;
}

/* Open once more what was listed, under the same names. */
static int
save_listed(struct saving *s, lpo_params *ps, const char *dir,
    const char *part, const char *stem, int (*rename)(char *, size_t,
    const char *))
{
	struct lpo_pool pool = { NULL, 0, 0 };
	lpo_weights *w = NULL;
	int rc;

	rc = lpo_weights_open(s->ctx, &w, ps, &pool, dir, stem, rename);
	if (rc == 0)
		rc = write_weights(s, ps, w, part, stem);
	lpo_weights_close(w);
	lpo_pool_free(&pool);
	return rc;
}

static int
save_unet(struct saving *s, const char *dir)
{
	lpo_unet *u = NULL;
	int rc;

	if ((rc = lpo_unet_load(s->ctx, NULL, &u, dir, LPO_F32, 0)) == 0)
		rc = save_listed(s, lpo_unet_params(u), dir, "unet",
		    "diffusion_pytorch_model", NULL);
	lpo_unet_free(u);
	return rc;
}

static int
save_vae(struct saving *s, const char *dir)
{
	lpo_vae *v = NULL;
	int rc;

	if ((rc = lpo_vae_load(s->ctx, NULL, &v, dir, LPO_F32,
	    LPO_VAE_ENCODER | LPO_VAE_DECODER)) == 0)
		rc = save_listed(s, lpo_vae_params(v), dir, "vae",
		    "diffusion_pytorch_model", lpo_vae_rename_key);
	lpo_vae_free(v);
	return rc;
}

static int
save_text(struct saving *s, const char *dir, const char *part)
{
	lpo_clip *m = NULL;
	int rc;

	if ((rc = lpo_clip_load(s->ctx, NULL, &m, dir, LPO_F32)) == 0)
		rc = save_listed(s, lpo_clip_params(m), dir, part, "model",
		    lpo_clip_rename_key);
	lpo_clip_free(m);
	return rc;
}

static int
save_networks(struct saving *s)
{
	static const char *const parts[] = {
		"unet", "vae", "text_encoder", "text_encoder_2"
	};
	char *dir;
	int i, rc = 0;

	for (i = 0; i < 4 && rc == 0; i++) {
		if ((dir = lpo_path_join(s->ctx, s->from, parts[i])) == NULL)
			return LPO_ENOMEM;
		if (i == 0 && s->parts & LPO_MODEL_UNET)
			rc = save_unet(s, dir);
		else if (i == 1 && s->parts & LPO_MODEL_VAE)
			rc = save_vae(s, dir);
		else if (i >= 2 && s->parts & LPO_MODEL_TEXT &&
		    (i == 2 || lpo_source_has(dir)))
			rc = save_text(s, dir, parts[i]);
		lpo_free(dir);
	}
	return rc;
}

int
lpo_model_save(lpo_ctx *c, const char *from, const char *to,
    enum lpo_dtype storage, int parts, int replace, int threads,
    int64_t *bytes)
{
	struct saving s = { .ctx = c, .from = from, .storage = storage,
	    .parts = parts, .threads = threads };
	char *tmp = NULL;
	int rc;

	if ((rc = lpo_folder_begin(c, &tmp, to)) < 0)
		return rc;
	s.tmp = tmp;
	if ((rc = copy_files(&s)) < 0 || (rc = save_networks(&s)) < 0 ||
	    (rc = lpo_folder_publish(c, &tmp, to, replace)) < 0)
		lpo_folder_abort(&tmp);
	if (bytes != NULL)
		*bytes = s.bytes;
	return rc;
}
