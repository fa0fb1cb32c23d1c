/*
 * config.json of UNet, text encoder and VAE; the first byte chooses.  There
 * are no weights, so only a refusal can come, and never for want of memory.
 */
#include "lib/model/clip.h"
#include "lib/model/config.h"
#include "lib/model/unet_priv.h"
#include "lib/model/vae.h"
#include "tests/fuzz/fuzz.h"

static lpo_backend be;

static int
unet(lpo_ctx *c, const char *dir)
{
	struct lpo_unet_config g;
	char *text = NULL;
	int i, rc;

	memset(&g, 0, sizeof(g));
	rc = lpo_unet_read_config(c, &g, &text, dir);
	CHECK((rc == 0) <= (text != NULL));
	if (rc == 0) {
		CHECK(g.blocks >= 1 && g.blocks <= LPO_UNET_MAX_BLOCKS);
		CHECK(g.channels[0] % 2 == 0 && g.norm_eps >= 0);
		for (i = 0; i < g.blocks; i++)
			CHECK(g.channels[i] > 0 && g.layers[i] > 0 &&
			    g.layers[i] < LPO_UNET_MAX_LAYERS &&
			    g.heads[i] > 0 && g.depth[i] > 0 &&
			    g.channels[i] % g.heads[i] == 0 &&
			    g.channels[i] % g.norm_groups == 0);
	}
	lpo_free(text);
	return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	lpo_ctx *c = fuzz_begin();
	lpo_clip *clip = NULL;
	lpo_vae *vae = NULL;
	int rc, k = n > 0 ? p[0] % 3 : 0;

	if (be.k == NULL && lpo_cpu_open(&be, LPO_ISA_PORTABLE, 1) < 0)
		abort();
	if (n > 0)
		p++, n--;
	fuzz_put("config.json", p, n);
	if (k == 0)
		rc = unet(c, fuzz_tmp);
	else if (k == 1)
		rc = lpo_clip_load(c, &be, &clip, fuzz_tmp, LPO_F32);
	else
		rc = lpo_vae_load(c, &be, &vae, fuzz_tmp, LPO_F32,
		    LPO_VAE_ENCODER | LPO_VAE_DECODER);
	CHECK(k == 0 || rc == LPO_EFORMAT || rc == LPO_ENOTFOUND);
	CHECK(rc == 0 || rc == LPO_EFORMAT || rc == LPO_ENOTFOUND);
	return fuzz_end(rc, (1 << 20) + 512 * n);
}
