/* Encoding pictures: each once, bad ones named, no batch seen in the bytes. */
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/io/png.h"
#include "lib/train/encode.h"
#include "tests/tap.h"

#define VAE "demo/model/vae"
#define N 7

static uint8_t *png[N];
static size_t png_bytes[N];

/* Noise of 20 x 13 pixels, which the encoder makes 32 x 32. */
static void
pictures(lpo_ctx *c)
{
	uint8_t rgb[20 * 13 * 3];
	struct lpo_draw d = { 3, LPO_DRAW_INIT, 0, 0, 0, 0 };
	int i;
	uint64_t k;

	for (i = 0; i < N; i++) {
		d.item = (uint32_t)i;
		for (k = 0; k < sizeof rgb; k++)
			rgb[k] = (uint8_t)lpo_draw_u32(&d, k);
		lpo_png_encode(c, &png[i], &png_bytes[i], rgb, 20, 13, NULL,
		    0);
	}
}

static lpo_encoder *
open_encoder(lpo_ctx *c, lpo_backend *be, lpo_vae *vae, int64_t batch)
{
	struct lpo_encoder_opts o = { .size_px = 32, .dtype = LPO_NPY_F4,
	    .batch = batch };
	lpo_encoder *e = NULL;

	ok(lpo_encoder_new(c, &e, be, vae, LPO_F32, &o) == 0,
	    "an encoder for batches of %d", (int)batch);
	return e;
}

static void
items(struct lpo_encode_item *it)
{
	int i;

	memset(it, 0, (N + 3) * sizeof *it);
	for (i = 0; i < N; i++) {
		it[i].data = png[i];
		it[i].bytes = (int64_t)png_bytes[i];
	}
	it[N] = it[2];			/* the same again */
	it[N + 1] = it[4];
	it[N + 1].bytes /= 2;		/* cut short */
	it[N + 2] = it[0];
}

static void
run(lpo_ctx *c, lpo_backend *be, lpo_vae *vae)
{
	lpo_encoder *one = open_encoder(c, be, vae, 1);
	lpo_encoder *many = open_encoder(c, be, vae, 3);
	struct lpo_encode_item a[N + 3], b[N + 3];
	int64_t given, encoded, shape[3];
	int i, same = 0;

	items(a);
	items(b);
	ok(lpo_encoder_run(one, a, N + 3) == 0 &&
	    lpo_encoder_run(many, b, N + 3) == 0, "ten items");
	for (i = 0; i < N + 3; i++)
		same += a[i].npy != NULL && b[i].npy != NULL &&
		    a[i].npy_bytes == b[i].npy_bytes &&
		    memcmp(a[i].npy, b[i].npy, (size_t)a[i].npy_bytes) == 0;
	ok(same == N + 2, "batches of 1 and 3: %d of %d the same bytes", same,
	    N + 2);
	ok(a[N + 1].npy == NULL && a[N + 1].error != NULL,
	    "the damaged one: %s", a[N + 1].error);
	ok(a[N].npy == a[2].npy && a[N + 2].npy == a[0].npy,
	    "a picture met again is the same moments");
	lpo_encoder_counts(many, &given, &encoded);
	ok(given == N + 3 && encoded == N + 1, "%d given, %d encoded",
	    (int)given, (int)encoded);
	lpo_encoder_run(many, b, N);
	lpo_encoder_counts(many, &given, &encoded);
	ok(encoded == N + 1, "nor encoded in a later run");
	lpo_encoder_shape(many, shape);
	ok(shape[0] == 8 && shape[1] == 8 && shape[2] == 8, "8 x 8 x 8");
	lpo_encoder_free(one);
	lpo_encoder_free(many);
}

int
main(void)
{
	struct lpo_encoder_opts o = { .size_px = 30, .dtype = LPO_NPY_F4 };
	lpo_ctx *c = lpo_ctx_new();
	lpo_backend be;
	lpo_vae *vae = NULL;
	lpo_encoder *e;
	int i;

	if (lpo_cpu_open(&be, LPO_ISA_AUTO, 0) != 0)
		return 1;
	ok(lpo_vae_load(c, &be, &vae, VAE, LPO_F32, LPO_VAE_ENCODER) == 0,
	    "the demo's VAE %s", lpo_errmsg(c));
	if (vae != NULL) {
		pictures(c);
		run(c, &be, vae);
		ok(lpo_encoder_new(c, &e, &be, vae, LPO_F32, &o) ==
		    LPO_EINVAL && e == NULL, "30 pixels: %s", lpo_errmsg(c));
	}
	for (i = 0; i < N; i++)
		lpo_free(png[i]);
	lpo_vae_free(vae);
	lpo_cpu_close(&be);
	lpo_ctx_free(c);
	return done_testing();
}
