/*
 * lrm.json in a folder of a reward model on the demo's: an accepted one gives
 * a usable config, and what the user says wins over it.
 */
#include <math.h>
#include <sys/stat.h>

#include "lib/io/torch.h"
#include "lib/train/lrm_priv.h"
#include "tests/fuzz/fuzz.h"

#define MODEL "demo/model"

static lpo_backend be;

static void
close_backend(void)
{
	lpo_cpu_close(&be);
}

/* unet/config.json and a head of the shapes that belong to it. */
static void
make_folder(lpo_ctx *c)
{
	const float scale = 1;
	struct lpo_torch_item it[3] = {
		{ "visual_projection", "weight", 2, NULL, NULL },
		{ "text_projection", "weight", 2, NULL, NULL },
		{ "logit_scale", NULL, 0, NULL, &scale }
	};
	lpo_lrm *m = NULL;
	size_t n;
	char *p;

	CHECK(lpo_cpu_open(&be, LPO_ISA_PORTABLE, 1) == 0);
	atexit(close_backend);
	CHECK(mkdir(fuzz_path("unet"), 0700) == 0);
	CHECK(lpo_file_read(c, &p, &n, MODEL "/unet/config.json",
	    1 << 20) == 0);
	fuzz_put("unet/config.json", p, n);
	lpo_free(p);
	CHECK(lpo_lrm_new(c, &be, &m, MODEL, LPO_F32, NULL, NULL, 1) == 0);
	it[0].shape = m->visual.w->shape;
	it[1].shape = m->text.w->shape;
	it[0].data = it[1].data = calloc((size_t)(m->visual.w->count +
	    m->text.w->count), sizeof(float));
	CHECK(it[0].data != NULL && lpo_torch_write(c,
	    fuzz_path("state_dict.pt"), it, 3) == 0);
	free((void *)(uintptr_t)it[0].data);
	lpo_lrm_free(m);
}

static int
is_string(const char *s, size_t size)
{
	return memchr(s, '\0', size) != NULL;
}

static void
check_config(const struct lpo_lrm_config *f)
{
	CHECK(f->guidance >= 0 && f->guidance <= 100);
	CHECK(f->multi_scale == 0 || f->multi_scale == 1);
	CHECK(f->multi_scale_cfg == 0 || f->multi_scale_cfg == 1);
	CHECK(isfinite(f->scaling_factor) && f->scaling_factor >= 0);
	CHECK(f->vae_factor >= 1 && f->vae_factor <= 128);
	CHECK(is_string(f->vae_sha256, sizeof(f->vae_sha256)) &&
	    is_string(f->base_sha256, sizeof(f->base_sha256)) &&
	    is_string(f->run, sizeof(f->run)));
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	const struct lpo_lrm_config user = { .guidance = 3, .multi_scale = 1,
	    .multi_scale_cfg = 1 };
	lpo_ctx *c = fuzz_begin();
	lpo_lrm *m = NULL;
	int rc;

	if (be.k == NULL) {
		make_folder(c);
		fuzz_begin();
	}
	fuzz_put("lrm.json", p, n);
	rc = lpo_lrm_open(c, &be, &m, fuzz_tmp, MODEL, LPO_F32, NULL);
	CHECK(rc == 0 || rc == LPO_EFORMAT);
	if (rc == 0)
		check_config(lpo_lrm_cfg(m));
	lpo_lrm_free(m);
	m = NULL;
	lpo_clear(c);
	/* scales that do not fit the head are no longer the file's */
	rc = lpo_lrm_open(c, &be, &m, fuzz_tmp, MODEL, LPO_F32, &user);
	CHECK(rc == 0 || rc == LPO_EFORMAT);
	if (rc == 0) {
		check_config(lpo_lrm_cfg(m));
		CHECK(lpo_lrm_cfg(m)->guidance == 3 &&
		    lpo_lrm_cfg(m)->multi_scale == 1 &&
		    lpo_lrm_cfg(m)->multi_scale_cfg == 1);
	}
	lpo_lrm_free(m);
	return fuzz_end(rc, (8 << 20) + 512 * n);
}
