/*
 * random:KIND[:SEED], a model that is in no folder: its configs, tokenizers
 * and weights are made as they are read.  KIND has exactly the shape of a
 * published model (sd15, sd21, sdxl) or its topology with few channels (tiny,
 * tiny21, tinyxl).  "random:sd15/unet/config.json" is a path like others.
 *
 * A weight is a function of kind, seed, key and element only, with the same
 * bits on every machine: Philox normals, matrices and kernels N(0, g^2 / fan
 * in) with g such that activations stay near 1 from end to end, norms near 1
 * and biases near 0.
 */
#ifndef LPO_MODEL_RANDOM_H
#define LPO_MODEL_RANDOM_H

#include <stdint.h>

#include "lib/base/ctx.h"
#include "lib/base/philox.h"

struct lpo_random_kind;

struct lpo_random {
	const struct lpo_random_kind *kind;
	uint64_t seed;
	const char *rest;	/* of the path, after "random:KIND:SEED/" */
};

int	 lpo_random_is(const char *path);	/* 1: begins with "random:" */
/* LPO_EINVAL: no such kind (all are named), or no seed after the colon. */
int	 lpo_random_parse(lpo_ctx *, struct lpo_random *, const char *path);
/*
 * Identity of the model or a part of it, for run ids: the SHA-256 of its
 * name with the seed.
 */
int	 lpo_random_sha256(lpo_ctx *, char out[65], const char *path);

/* A file of text; lpo_free() it.  LPO_ENOTFOUND: this model has none such. */
int	 lpo_random_text(lpo_ctx *, char **text, const char *path);
/* 1: a file, or a folder with files, of this model. */
int	 lpo_random_has(const char *path);
/* i-th name of a file of text, "unet/config.json"; NULL after the last. */
const char *lpo_random_file(const struct lpo_random *, int i);

/* A tensor to be drawn. */
struct lpo_random_tensor {
	struct lpo_draw draw;
	float mean, std;	/* of all but ... */
	int64_t from;		/* ... elements from here on */
	float mean2, std2;
};
/* part: "unet", "text_encoder_2", ...; key and shape as in the file */
void	 lpo_random_tensor(const struct lpo_random *, const char *part,
	    struct lpo_random_tensor *, const char *key, int rank,
	    const int64_t *shape);
/* out[i] = element first + i, i < n */
void	 lpo_random_draw(const struct lpo_random_tensor *, int64_t first,
	    float *out, int64_t n);

#endif
