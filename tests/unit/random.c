/*
 * Random models: names, the published shapes without their memory, the same
 * bits for any number of threads, and what a saved folder gives back.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/model/clip.h"
#include "lib/model/random.h"
#include "lib/model/save.h"
#include "lib/model/source.h"
#include "lib/model/tokenizer.h"
#include "lib/model/unet.h"
#include "lib/model/vae.h"
#include "lib/train/schedule.h"
#include "tests/tap.h"

/* CRC32C of the bits that every machine must draw. */
#define CRC_SD15 0xab4ebca4u
#define CRC_TINY 0x2b05f086u

static void
test_names(lpo_ctx *c)
{
	static const char *const wrong[] = {
		"random:", "random:sd", "random:sd15x", "random:sd15:",
		"random:sd15:x", "random:sd15:-1", "random:sd15:1x",
		"random:sd15:9999999999999999999"
	};
	struct lpo_random r;
	char a[65], b[65], *text = NULL;
	size_t i;
	int good = 1;

	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		good &= lpo_random_parse(c, &r, wrong[i]) == LPO_EINVAL &&
		    !lpo_random_has(wrong[i]);
		lpo_clear(c);
	}
	ok(good, "names that are none");
	ok(lpo_random_parse(c, &r, "random:tinyxl:7/unet//") == 0 &&
	    r.seed == 7 && strcmp(r.rest, "unet//") == 0, "kind, seed, rest");
	ok(lpo_random_has("random:sd15/") && lpo_random_has("random:sd15/vae")
	    && lpo_random_has("random:sdxl/text_encoder_2/") &&
	    lpo_random_has("random:sd15:3/unet/config.json") &&
	    !lpo_random_has("random:sd15/text_encoder_2") &&
	    !lpo_random_has("random:sd15/un"), "what is in which");
	ok(lpo_random_text(c, &text, "random:sd15/lrm.json") ==
	    LPO_ENOTFOUND && text == NULL, "what is not: %s", lpo_errmsg(c));
	lpo_clear(c);
	lpo_random_sha256(c, a, "random:sd15");
	lpo_random_sha256(c, b, "random:sd15:0/");
	ok(strcmp(a, b) == 0, "seed 0 is the default");
	lpo_random_sha256(c, b, "random:sd15:1");
	ok(strcmp(a, b) != 0, "a seed is another model");
}

/* ---------------------------------------------------------------- shapes */

static int64_t
total(const lpo_params *ps)
{
	int64_t i, n = 0;

	for (i = 0; i < ps->n; i++)
		n += ps->p[i]->count;
	return n;
}

/* models.md 2.2, 3.1, 5.1: tensors and parameters, as published */
static void
test_shapes(lpo_ctx *c)
{
	static const struct {
		const char *dir;
		int64_t tensors, parameters;
	} want[] = {
		{ "random:sd15/unet", 686, 859520964 },
		{ "random:sd21/unet", 686, 865910724 },
		{ "random:sdxl/unet", 1680, 2567463684 },
		{ "random:sd15/text_encoder", 196, 123060480 },
		{ "random:sd21/text_encoder", 372, 340387840 },
		{ "random:sdxl/text_encoder", 196, 123060480 },
		{ "random:sdxl/text_encoder_2", 517, 694659840 },
		{ "random:sdxl/vae", 248, 83653863 }
	};
	lpo_params *ps;
	size_t i;

	for (i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		lpo_unet *u = NULL;
		lpo_clip *t = NULL;
		lpo_vae *v = NULL;

		if (strstr(want[i].dir, "unet") != NULL)
			ps = lpo_unet_load(c, NULL, &u, want[i].dir, LPO_F32,
			    0) == 0 ? lpo_unet_params(u) : NULL;
		else if (strstr(want[i].dir, "vae") != NULL)
			ps = lpo_vae_load(c, NULL, &v, want[i].dir, LPO_F32,
			    LPO_VAE_ENCODER | LPO_VAE_DECODER) == 0 ?
			    lpo_vae_params(v) : NULL;
		else
			ps = lpo_clip_load(c, NULL, &t, want[i].dir,
			    LPO_F32) == 0 ? lpo_clip_params(t) : NULL;
		ok(ps != NULL && ps->n == want[i].tensors && total(ps) ==
		    want[i].parameters && ps->bytes == 0,
		    "%s: %lld tensors, %lld parameters, no memory %s",
		    want[i].dir, (long long)want[i].tensors,
		    (long long)want[i].parameters, lpo_errmsg(c));
		lpo_unet_free(u);
		lpo_clip_free(t);
		lpo_vae_free(v);
	}
}

/* ------------------------------------------------------------------ bits */

/* Of matrices and kernels only where these are bf16: the rest is not. */
static uint32_t
crc_of(const lpo_params *ps)
{
	uint32_t crc = 0;
	int64_t i;

	for (i = 0; i < ps->n; i++)
		if (ps->p[i]->dtype == ps->dtype)
			crc = lpo_crc32c(crc, ps->p[i]->w,
			    (size_t)ps->p[i]->count *
			    lpo_dtype_bytes(ps->dtype));
	return crc;
}

/* The whole UNet in memory, or its sum; 0: failed. */
static uint32_t
crc_with(lpo_ctx *c, const char *dir, int threads, enum lpo_dtype dt)
{
	lpo_backend be;
	lpo_unet *u = NULL;
	uint32_t crc = 0;

	if (lpo_cpu_open(&be, LPO_ISA_PORTABLE, threads) < 0)
		return 0;
	if (lpo_unet_load(c, &be, &u, dir, dt, 0) == 0)
		crc = crc_of(lpo_unet_params(u));
	lpo_unet_free(u);
	lpo_cpu_close(&be);
	return crc;
}

static void
test_bits(lpo_ctx *c)
{
	const int64_t shape[4] = { 640, 320, 3, 3 };
	struct lpo_random_tensor t;
	struct lpo_random r;
	float x[2048], y[100];
	double sum = 0, squares = 0;
	uint32_t crc;
	int i;

	lpo_random_parse(c, &r, "random:sd15");
	lpo_random_tensor(&r, "unet", &t,
	    "down_blocks.1.resnets.0.conv1.weight", 4, shape);
	lpo_random_draw(&t, 0, x, 2048);
	lpo_random_draw(&t, 1001, y, 100);
	for (i = 0; i < 2048; i++) {
		sum += x[i];
		squares += x[i] * x[i];
	}
	ok(lpo_crc32c(0, x, sizeof(x)) == CRC_SD15, "SD1.5's first values of a "
	    "kernel: %08x", lpo_crc32c(0, x, sizeof(x)));
	ok(memcmp(x + 1001, y, sizeof(y)) == 0, "from anywhere");
	/* 1.6 / sqrt(fan in); five standard errors */
	ok(fabs(sqrt(squares / 2048) / (1.6 / sqrt(2880)) - 1) < 0.08 &&
	    fabs(sum / 2048) < 5 * 0.03 / 45, "their width");
	crc = crc_with(c, "random:tiny/unet", 1, LPO_F32);
	ok(crc == CRC_TINY, "tiny's whole UNet: %08x %s", crc, lpo_errmsg(c));
	ok(crc_with(c, "random:tiny/unet", 3, LPO_F32) == crc,
	    "three threads");
	ok(crc_with(c, "random:tiny:1/unet", 1, LPO_F32) != crc,
	    "another seed");
	ok(crc_with(c, "random:tiny/unet", 1, LPO_BF16) ==
	    crc_with(c, "random:tiny/unet", 2, LPO_BF16), "bf16");
}

/* ---------------------------------------------------------------- saving */

static void
test_save(lpo_ctx *c, const char *tmp)
{
	static const char *const kinds[] = { "tiny", "tiny21", "tinyxl" };
	char from[64], to[256], a[300], b[300];
	lpo_tokenizer *tok;
	struct lpo_schedule s;
	int32_t ids[77];
	int64_t bytes;
	size_t i;
	int rc;

	for (i = 0; i < 3; i++) {
		snprintf(from, sizeof(from), "random:%s", kinds[i]);
		snprintf(to, sizeof(to), "%s/%s", tmp, kinds[i]);
		snprintf(a, sizeof(a), "%s/unet", from);
		snprintf(b, sizeof(b), "%s/unet", to);
		rc = lpo_model_save(c, from, to, LPO_F32,
		    LPO_MODEL_ALL, 0, 2, &bytes);
		ok(rc == 0 && crc_with(c, a, 1, LPO_F32) == crc_with(c, b, 2,
		    LPO_F32), "%s saved: the same UNet %s", kinds[i],
		    lpo_errmsg(c));
		ok(lpo_schedule_load(c, &s, from) == 0 && s.steps_offset == 1,
		    "its scheduler %s", lpo_errmsg(c));
		lpo_schedule_free(&s);
		snprintf(a, sizeof(a), "%s/tokenizer", to);
		tok = NULL;
		rc = lpo_tokenizer_open(c, &tok, a);
		/* "a" = 64, "!" = 0; SD2.1's pad cuts the text */
		ok(rc == 0 && lpo_tokenizer_encode(tok, ids, "a!") == 0 &&
		    ids[0] == 512 && ids[1] == 64 + 256 && ids[2] ==
		    (i == 1 ? 0 : 256) && ids[3] == 513 && ids[4] ==
		    (i == 1 ? 0 : 513), "its tokenizer %s", lpo_errmsg(c));
		lpo_tokenizer_close(tok);
	}
	snprintf(from, sizeof(from), "%s/tiny", tmp);
	snprintf(to, sizeof(to), "%s/again", tmp);
	snprintf(a, sizeof(a), "%s/unet/diffusion_pytorch_model.safetensors",
	    from);
	snprintf(b, sizeof(b), "%s/unet/diffusion_pytorch_model.safetensors",
	    to);
	ok(lpo_model_save(c, from, to, LPO_BF16, LPO_MODEL_UNET, 0, 1,
	    NULL) == 0 &&
	    lpo_file_size(b) < lpo_file_size(a) / 2 + 100000, "a folder "
	    "rewritten as bf16 %s", lpo_errmsg(c));
	snprintf(a, sizeof(a), "%s/unet", to);
	ok(crc_with(c, a, 1, LPO_BF16) == crc_with(c, "random:tiny/unet", 1,
	    LPO_BF16), "rounded as memory rounds");
	ok(lpo_model_save(c, from, to, LPO_F32, LPO_MODEL_ALL, 0, 1,
	    NULL) == LPO_EINVAL &&
	    strstr(lpo_errmsg(c), "there already"), "not over another: %s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_model_save(c, from, to, LPO_F32, LPO_MODEL_ALL, 1, 1,
	    NULL) == 0 &&
	    crc_with(c, a, 1, LPO_F32) == crc_with(c, "random:tiny/unet", 1,
	    LPO_F32), "unless asked %s", lpo_errmsg(c));
}

int
main(void)
{
	char tmp[] = "/tmp/lpo-random-XXXXXX";
	lpo_ctx *c = lpo_ctx_new();

	if (c == NULL || mkdtemp(tmp) == NULL)
		return 1;
	test_names(c);
	test_shapes(c);
	test_bits(c);
	test_save(c, tmp);
	lpo_rmtree(c, tmp);
	lpo_ctx_free(c);
	return done_testing();
}
