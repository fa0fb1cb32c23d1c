/*
 * LoRA files on a small UNet: keys of any spelling, shapes, alphas.  What is
 * accepted can be saved, and is read again with as many layers.  A first byte
 * 'k' makes the input one key, for the parser alone.
 */
#include "lib/io/safetensors.h"
#include "lib/model/lora_priv.h"
#include "tests/golden/golden.h"
#include "tests/fuzz/fuzz.h"

static struct golden g;
static lpo_unet *unet;

static void
close_unet(void)
{
	lpo_unet_free(unet);
	lpo_cpu_close(&g.be);
	lpo_st_close(g.st);
	lpo_rmtree(g.c, g.tmp);
	lpo_ctx_free(g.c);
}

static void
open_unet(void)
{
	CHECK(g_open(&g, "unet15", "portable"));
	CHECK(g_write_model(&g, g.st, "diffusion_pytorch_model", NULL) == 0);
	CHECK(lpo_unet_load(g.c, &g.be, &unet, g.tmp, LPO_F32, 0) == 0);
	atexit(close_unet);
}

static int
file(lpo_ctx *c, const uint8_t *p, size_t n)
{
	const char *path = fuzz_put("l.safetensors", p, n);
	const char *out = fuzz_path("o.safetensors");
	lpo_lora_set *s = NULL;
	int64_t count, rank;
	int rc;

	lpo_clear(g.c);
	if ((rc = lpo_lora_load(c, &s, unet, path, 0.5f, 0)) < 0)
		return rc;
	count = lpo_lora_params(s)->n;
	rank = lpo_lora_rank(s);
	CHECK(count > 0 && rank > 0);
	rc = lpo_lora_save(c, s, out, LPO_LORA_KOHYA, 1, NULL);
	lpo_lora_free(s);
	s = NULL;
	if (rc == 0) {
		CHECK(lpo_lora_load(c, &s, unet, out, 1, 0) == 0);
		CHECK(lpo_lora_params(s)->n == count &&
		    lpo_lora_rank(s) == rank);
		lpo_lora_free(s);
	}
	return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	char name[LPO_LORA_NAME], *key;
	lpo_ctx *c = fuzz_begin();
	int rc;

	if (unet == NULL) {
		open_unet();
		fuzz_begin();
	}
	if (n > 0 && p[0] == 'k') {
		key = fuzz_string(p + 1, n - 1);
		rc = lpo_lora_parse_key(name, key);
		CHECK(rc < 0 || (strlen(name) < sizeof(name) &&
		    rc <= LPO_LORA_ALPHA));
		free(key);
		return fuzz_end(0, 4096 + 2 * n);
	}
	rc = file(c, p, n);
	return fuzz_end(rc, (8 << 20) + 512 * n);
}
