/* For random.c and random_files.c only. */
#ifndef LPO_MODEL_RANDOM_KINDS_H
#define LPO_MODEL_RANDOM_KINDS_H

#include "lib/model/random.h"

struct lpo_random_text {
	int hidden, mlp, layers, heads, projection;
	const char *act;
};

/* What the kinds differ in (models.md 1); lists are JSON. */
struct lpo_random_kind {
	const char *name;
	enum { LPO_RANDOM_SD15, LPO_RANDOM_SD21, LPO_RANDOM_SDXL } family;
	const char *channels, *heads, *depth;
	int sample_size, groups, context;
	int time_dim, add_dim;		/* SDXL's addition embedding */
	const char *vae_channels;
	int vae_groups, vae_sample_size;
	const char *scaling;		/* JSON */
	double scaling_factor;
	struct lpo_random_text text[2];
	int vocab;
};

#endif
