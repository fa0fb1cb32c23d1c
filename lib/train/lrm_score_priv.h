/* The table of encoded prompts; for lrm_score.c and lrm_texts.c only. */
#ifndef LPO_TRAIN_LRM_SCORE_PRIV_H
#define LPO_TRAIN_LRM_SCORE_PRIV_H

#include "lib/train/lrm_score.h"

struct lpo_lrm_texts {
	int64_t n, length;
	int64_t context, pooled, feature;	/* floats of each part */
	int64_t row;				/* their sum */
	float *rows;				/* [n + 1, row]; last: "" */
	size_t bytes;
	int mapped;
};

#endif
