/*
 * Weights from a file in the page cache into their place: two parts of an
 * SD1.5 model against a plain copy of as many bytes by as many threads, and
 * the seconds that its UNet of 3.4 GB would take at the rate of the VAE, whose
 * weights are kernels like most of the UNet's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/progress.h"
#include "lib/model/clip.h"
#include "lib/model/save.h"
#include "lib/model/vae.h"

#define UNET_BYTES 3438083856.0

static lpo_backend be;

/* A load and the seconds it took; -1: failed. */
static double
load(lpo_ctx *c, const char *dir, int vae, enum lpo_dtype dt)
{
	double start = lpo_now_s(), s;
	lpo_vae *v = NULL;
	lpo_clip *t = NULL;
	int rc;

	rc = vae ? lpo_vae_load(c, &be, &v, dir, dt, LPO_VAE_ENCODER |
	    LPO_VAE_DECODER) : lpo_clip_load(c, &be, &t, dir, dt);
	s = lpo_now_s() - start;
	lpo_vae_free(v);
	lpo_clip_free(t);
	return rc == 0 ? s : -1;
}

/* The same bytes from the file to fresh memory, in pieces. */
static double
copy(lpo_ctx *c, const char *path)
{
	const int64_t piece = 1 << 20;
	struct lpo_map m = { NULL, 0 };
	double start = lpo_now_s();
	int64_t i, n;
	char *to;

	if (lpo_map_open(c, &m, path) < 0 ||
	    (to = be.k->alloc(&be, m.bytes)) == NULL)
		return -1;
	n = ((int64_t)m.bytes + piece - 1) / piece;
#pragma omp parallel for schedule(dynamic) num_threads(be.threads)
	for (i = 0; i < n; i++)
		memcpy(to + i * piece, m.data + i * piece, i < n - 1 ?
		    (size_t)piece : m.bytes - (size_t)((n - 1) * piece));
	start = lpo_now_s() - start;
	be.k->free(&be, to);
	lpo_map_close(&m);
	return start;
}

static void
part(lpo_ctx *c, const char *tmp, const char *name, const char *file, int vae)
{
	static const enum lpo_dtype dtypes[] = { LPO_F32, LPO_BF16 };
	char dir[256], path[320], unet[64] = "";
	double s, best, ceiling = 1e30, bytes;
	int i, k;

	snprintf(dir, sizeof(dir), "%s/sd15/%s", tmp, name);
	snprintf(path, sizeof(path), "%s/%s.safetensors", dir, file);
	bytes = (double)lpo_file_size(path);
	for (i = 0; i < 3; i++)
		if ((s = copy(c, path)) > 0 && s < ceiling)
			ceiling = s;
	for (k = 0; k < 2; k++) {
		best = 1e30;
		for (i = 0; i < 3; i++)
			if ((s = load(c, dir, vae, dtypes[k])) > 0 && s < best)
				best = s;
		if (vae)
			snprintf(unet, sizeof(unet), "  (SD1.5's UNet: %.1f "
			    "s)", UNET_BYTES / bytes * best);
		printf("%-18s %-30s %9.3f ms %8.2f GB/s %5.2f%s\n", name,
		    k == 0 ? "f32 to f32" : "f32 to bf16", 1e3 * best,
		    bytes / best / 1e9, ceiling / best, unet);
	}
}

int
main(void)
{
	char tmp[] = "/tmp/lpo-bench-XXXXXX", to[64];
	lpo_ctx *c = lpo_ctx_new();
	int rc;

	if (c == NULL || lpo_cpu_open(&be, LPO_ISA_AUTO, 0) < 0 ||
	    mkdtemp(tmp) == NULL)
		return 1;
	printf("weights, %d threads; last column: fraction of a plain copy\n",
	    be.threads);
	snprintf(to, sizeof(to), "%s/sd15", tmp);
	if ((rc = lpo_model_save(c, "random:sd15", to, LPO_F32, LPO_MODEL_VAE |
	    LPO_MODEL_TEXT, 0, be.threads, NULL)) == 0) {
		part(c, tmp, "vae", "diffusion_pytorch_model", 1);
		part(c, tmp, "text_encoder", "model", 0);
	} else
		fprintf(stderr, "weights: %s\n", lpo_errmsg(c));
	lpo_rmtree(c, tmp);
	lpo_cpu_close(&be);
	lpo_ctx_free(c);
	return rc != 0;
}
