/* Images to VAE moments, each distinct image once. */
#include <string.h>

#include <omp.h>

#include "lib/base/hash.h"
#include "lib/io/image.h"
#include "lib/io/resize.h"
#include "lib/train/encode.h"

#define BUCKETS 65536
#define CACHE_BYTES ((int64_t)256 << 20)

/* Moments of an image, or why it is bad, under its file's SHA-256. */
struct entry {
	uint8_t sha[32];
	uint8_t *npy;
	int64_t npy_bytes;
	char *error;
	int64_t call;		/* the last run that used it */
	struct entry *next;	/* in its bucket */
	struct entry *older, *newer;
};

struct lpo_encoder {
	lpo_ctx *ctx;
	lpo_backend *be;
	struct lpo_encoder_opts o;
	lpo_tape *tape;
	lpo_var *image, *moments;
	struct lpo_plan plan;
	int64_t batch, window, factor, channels;
	float *pixels;		/* [window, s, s, 3] */
	float *out;		/* [batch, h, w, 2c] */
	lpo_ctx **worker;
	int workers;
	struct entry **bucket;
	struct entry *oldest, *newest;
	int64_t cache_bytes, cache_limit;
	int64_t call, given, encoded;
};

/* --------------------------------------------------------------- cache */

static struct entry **
bucket_of(lpo_encoder *e, const uint8_t sha[32])
{
	return &e->bucket[(sha[0] | sha[1] << 8) % BUCKETS];
}

static void
list_remove(lpo_encoder *e, struct entry *p)
{
	*(p->older != NULL ? &p->older->newer : &e->oldest) = p->newer;
	*(p->newer != NULL ? &p->newer->older : &e->newest) = p->older;
}

static void
list_append(lpo_encoder *e, struct entry *p)
{
	p->newer = NULL;
	p->older = e->newest;
	*(e->newest != NULL ? &e->newest->newer : &e->oldest) = p;
	e->newest = p;
}

static void
entry_free(struct entry *p)
{
	lpo_free(p->npy);
	lpo_free(p->error);
	lpo_free(p);
}

/* Those of the present run are in use and stay. */
static void
evict(lpo_encoder *e)
{
	struct entry *p, **at;

	while (e->cache_bytes > e->cache_limit && (p = e->oldest) != NULL &&
	    p->call != e->call) {
		for (at = bucket_of(e, p->sha); *at != p; at = &(*at)->next)
			;
		*at = p->next;
		list_remove(e, p);
		e->cache_bytes -= p->npy_bytes + (int64_t)sizeof *p;
		entry_free(p);
	}
}

/* The entry of an image, new or known. */
static int
find(lpo_encoder *e, struct entry **out, const void *data, int64_t bytes,
    int *is_new)
{
	struct lpo_sha256 h;
	struct entry *p, **at;
	uint8_t sha[32];

	lpo_sha256_init(&h);
	lpo_sha256_update(&h, data, (size_t)bytes);
	lpo_sha256_final(&h, sha);
	at = bucket_of(e, sha);
	for (p = *at; p != NULL; p = p->next)
		if (memcmp(p->sha, sha, 32) == 0)
			break;
	*is_new = p == NULL;
	if (p != NULL)
		list_remove(e, p);
	else {
		if ((p = lpo_alloc(e->ctx, 1, sizeof *p)) == NULL)
			return LPO_ENOMEM;
		memcpy(p->sha, sha, 32);
		p->next = *at;
		*at = p;
		e->cache_bytes += (int64_t)sizeof *p;
	}
	p->call = e->call;
	list_append(e, p);
	*out = p;
	return 0;
}

/* ----------------------------------------------------------------- open */

/*
 * Record and plan for a batch of n images, and take its memory if it fits.
 * 1: it does not.
 */
static int
try_batch(lpo_encoder *e, lpo_vae *vae, enum lpo_dtype dt, int64_t n)
{
	int64_t s = e->o.size_px;
	int rc;

	e->tape = lpo_tape_new(e->ctx, e->be, dt, 1);
	if (e->tape == NULL)
		return LPO_ENOMEM;
	e->image = lpo_input(e->tape, n, s, s, 3, LPO_F32, 0);
	e->moments = lpo_vae_encode(e->tape, vae, e->image);
	lpo_output(e->tape, e->moments, 0);
	if ((rc = lpo_tape_plan(e->tape, 0, &e->plan)) != 0)
		return rc;
	if (n > 1 && e->o.memory_bytes > 0 &&
	    (int64_t)e->plan.arena_bytes > e->o.memory_bytes) {
		lpo_tape_free(e->tape);
		e->tape = NULL;
		return 1;
	}
	e->batch = n;
	return lpo_tape_commit(e->tape, NULL);
}

static int
open_tape(lpo_encoder *e, lpo_vae *vae, enum lpo_dtype dt)
{
	int64_t area = e->o.size_px * e->o.size_px, n = e->o.batch;
	int rc;

	/*
	 * Small images in large batches: at 32 x 32 a layer is otherwise too
	 * little work for its overhead.
	 */
	if (n == 0)
		n = area >= 1 << 18 ? 1 : (1 << 18) / area;
	if (e->o.batch == 0 && n > 64)
		n = 64;
	while ((rc = try_batch(e, vae, dt, n)) == 1)
		n /= 2;
	return rc;
}

int
lpo_encoder_new(lpo_ctx *c, lpo_encoder **out, lpo_backend *be, lpo_vae *vae,
    enum lpo_dtype dt, const struct lpo_encoder_opts *o)
{
	const struct lpo_vae_config *v = lpo_vae_cfg(vae);
	lpo_encoder *e = lpo_alloc(c, 1, sizeof *e);
	int64_t side;
	int i, rc;

	*out = NULL;
	if (e == NULL)
		return LPO_ENOMEM;
	e->ctx = c;
	e->be = be;
	e->o = *o;
	e->factor = v->factor;
	e->channels = v->latent_channels;
	if (o->size_px < v->factor || o->size_px % v->factor != 0) {
		rc = lpo_fail(c, LPO_EINVAL, "size %lld is not a multiple of "
		    "%lld, the VAE's pixels per latent", (long long)o->size_px,
		    (long long)v->factor);
		goto out;
	}
	if ((rc = open_tape(e, vae, dt)) != 0)
		goto out;
	rc = LPO_ENOMEM;
	e->workers = omp_get_max_threads();
	e->window = (4 * e->workers + e->batch - 1) / e->batch * e->batch;
	side = o->size_px / v->factor;
	e->cache_limit = o->cache_bytes > 0 && o->cache_bytes < CACHE_BYTES ?
	    o->cache_bytes : CACHE_BYTES;
	e->pixels = lpo_alloc(c, (size_t)(e->window * o->size_px),
	    (size_t)o->size_px * 3 * sizeof *e->pixels);
	e->out = lpo_alloc(c, (size_t)(e->batch * side * side),
	    (size_t)e->channels * 2 * sizeof *e->out);
	e->bucket = lpo_alloc(c, BUCKETS, sizeof(struct entry *));
	e->worker = lpo_alloc(c, (size_t)e->workers, sizeof *e->worker);
	if (e->pixels == NULL || e->out == NULL || e->bucket == NULL ||
	    e->worker == NULL)
		goto out;
	for (i = 0; i < e->workers; i++)
		if ((e->worker[i] = lpo_ctx_new()) == NULL)
			goto out;
	rc = 0;
out:
	if (rc != 0)
		lpo_encoder_free(e);
	else
		*out = e;
	return rc;
}

void
lpo_encoder_free(lpo_encoder *e)
{
	struct entry *p, *next;
	int i;

	if (e == NULL)
		return;
	for (p = e->oldest; p != NULL; p = next) {
		next = p->newer;
		entry_free(p);
	}
	for (i = 0; e->worker != NULL && i < e->workers; i++)
		lpo_ctx_free(e->worker[i]);
	lpo_free(e->worker);
	lpo_free(e->bucket);
	lpo_free(e->pixels);
	lpo_free(e->out);
	lpo_tape_free(e->tape);
	lpo_free(e);
}

const struct lpo_plan *
lpo_encoder_plan(const lpo_encoder *e)
{
	return &e->plan;
}

int64_t
lpo_encoder_batch(const lpo_encoder *e)
{
	return e->batch;
}

int64_t
lpo_encoder_window(const lpo_encoder *e)
{
	return e->window;
}

void
lpo_encoder_shape(const lpo_encoder *e, int64_t shape[3])
{
	shape[0] = 2 * e->channels;
	shape[1] = shape[2] = e->o.size_px / e->factor;
}

void
lpo_encoder_counts(const lpo_encoder *e, int64_t *given, int64_t *encoded)
{
	*given = e->given;
	*encoded = e->encoded;
}

/* ------------------------------------------------------------------ run */

/* File bytes to size x size x 3 floats. */
static int
load_pixels(lpo_ctx *c, float *x, const struct lpo_encode_item *it,
    const struct lpo_encoder_opts *o)
{
	struct lpo_image_opts io = { .exif = o->exif };
	struct lpo_image img = { 0 };
	int64_t s = o->size_px;
	uint8_t *rgb = NULL;
	int rc;

	rc = lpo_image_decode(c, &img, it->data, (size_t)it->bytes, &io);
	if (rc != 0)
		return rc;
	if (img.w == s && img.h == s)
		lpo_image_to_float(x, img.rgb, s * s * 3);
	else if ((rgb = lpo_alloc(c, (size_t)(s * s), 3)) == NULL)
		rc = LPO_ENOMEM;
	else if ((rc = lpo_resize_u8(c, rgb, s, s, img.rgb, img.w, img.h, 3,
	    LPO_BILINEAR)) == 0)
		lpo_image_to_float(x, rgb, s * s * 3);
	lpo_free(rgb);
	lpo_image_free(&img);
	return rc;
}

/* [h, w, 2c] of the tape to a .npy of [2c, h, w]. */
static int
keep_moments(lpo_encoder *e, struct entry *p, const float *hwc, float *chw)
{
	int64_t shape[3], hw, n, i, k;
	int rc;

	lpo_encoder_shape(e, shape);
	n = shape[0];
	hw = shape[1] * shape[2];
	for (k = 0; k < n; k++)
		for (i = 0; i < hw; i++)
			chw[k * hw + i] = hwc[i * n + k];
	rc = lpo_npy_make_f32(e->ctx, &p->npy, &p->npy_bytes, e->o.dtype, 3,
	    shape, chw);
	if (rc == LPO_EFORMAT) {	/* not finite: this image's fault */
		p->error = lpo_strdup(e->ctx, lpo_errmsg(e->ctx));
		lpo_clear(e->ctx);
		return p->error != NULL ? 0 : LPO_ENOMEM;
	}
	e->cache_bytes += p->npy_bytes;
	return rc;
}

/* Slots 0 .. n-1 of the pixel buffer through the VAE. */
static int
encode_slots(lpo_encoder *e, struct entry **slot, int64_t n)
{
	int64_t pixels = e->o.size_px * e->o.size_px * 3, at, i, size;
	int64_t count = lpo_var_count(e->moments) / e->batch;
	float *chw;
	int rc = 0;

	chw = lpo_alloc(e->ctx, (size_t)count, sizeof *chw);
	if (chw == NULL)
		return LPO_ENOMEM;
	for (at = 0; at < n && rc == 0; at += e->batch) {
		size = n - at < e->batch ? n - at : e->batch;
		/* rows beyond are of an earlier run; nobody looks */
		if ((rc = lpo_var_set(e->tape, e->image, e->pixels + at *
		    pixels)) != 0 ||
		    (rc = lpo_tape_forward(e->tape, 0)) != 0 ||
		    (rc = lpo_var_get(e->tape, e->moments, e->out)) != 0)
			break;
		for (i = 0; i < size && rc == 0; i++)
			if (slot[at + i]->error == NULL)
				rc = keep_moments(e, slot[at + i], e->out +
				    i * count, chw);
		e->encoded += size;
	}
	lpo_free(chw);
	return rc;
}

/* Decode items whose entries wait for a slot, in parallel, then encode. */
static int
flush(lpo_encoder *e, const struct lpo_encode_item *it, struct entry **entry,
    const int64_t *item, int64_t n)
{
	int64_t pixels = e->o.size_px * e->o.size_px * 3, i;
	int no_memory = 0;

#pragma omp parallel for schedule(dynamic) reduction(|:no_memory)
	for (i = 0; i < n; i++) {
		lpo_ctx *c = e->worker[omp_get_thread_num()];
		float *x = e->pixels + i * pixels;
		int rc = load_pixels(c, x, &it[item[i]], &e->o);

		if (rc == 0)
			continue;
		entry[i]->error = lpo_strdup(c, lpo_errmsg(c));
		/* a full memory must not look like a bad image */
		no_memory |= rc == LPO_ENOMEM || entry[i]->error == NULL;
		lpo_clear(c);
		memset(x, 0, (size_t)pixels * sizeof *x);
	}
	if (no_memory)
		return lpo_fail(e->ctx, LPO_ENOMEM, "out of memory while "
		    "decoding images");
	return encode_slots(e, entry, n);
}

int
lpo_encoder_run(lpo_encoder *e, struct lpo_encode_item *it, int64_t n)
{
	struct entry **of = NULL, **wait = NULL;
	int64_t *item = NULL, i, waiting = 0;
	int rc = LPO_ENOMEM, is_new;

	e->call++;
	e->given += n;
	of = lpo_alloc(e->ctx, (size_t)n + 1, sizeof(struct entry *));
	wait = lpo_alloc(e->ctx, (size_t)e->window, sizeof(struct entry *));
	item = lpo_alloc(e->ctx, (size_t)e->window, sizeof *item);
	if (of == NULL || wait == NULL || item == NULL)
		goto out;
	for (i = 0; i < n; i++) {
		rc = find(e, &of[i], it[i].data, it[i].bytes, &is_new);
		if (rc != 0)
			goto out;
		if (!is_new)
			continue;
		item[waiting] = i;
		wait[waiting++] = of[i];
		if (waiting == e->window) {
			if ((rc = flush(e, it, wait, item, waiting)) != 0)
				goto out;
			waiting = 0;
		}
	}
	if ((rc = flush(e, it, wait, item, waiting)) != 0)
		goto out;
	for (i = 0; i < n; i++) {
		it[i].npy = of[i]->npy;
		it[i].npy_bytes = of[i]->npy_bytes;
		it[i].error = of[i]->error;
	}
	evict(e);
out:
	lpo_free(of);
	lpo_free(wait);
	lpo_free(item);
	return rc;
}

int
lpo_encoder_time(lpo_encoder *e, double *seconds)
{
	double s[2];
	int rc = lpo_tape_time(e->tape, s);

	*seconds = s[0] / (double)e->batch;
	return rc;
}
