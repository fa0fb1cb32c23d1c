/*
 * Prompts to conditioning: tokenizer(s) and text encoder(s) of a diffusers
 * folder together.  SD1.5, SD2.1: the last hidden state; SDXL: penultimate
 * states of both encoders side by side, and the second one's projection.
 */
#ifndef LPO_MODEL_TEXT_H
#define LPO_MODEL_TEXT_H

#include "lib/model/clip.h"
#include "lib/model/tokenizer.h"

typedef struct lpo_text lpo_text;

/* dir: the model folder (tokenizer/, text_encoder/, perhaps .._2/) */
int	 lpo_text_open(lpo_ctx *, lpo_backend *, lpo_text **, const char *dir,
	    enum lpo_dtype);
void	 lpo_text_free(lpo_text *);
lpo_backend *lpo_text_backend(const lpo_text *);
int64_t	 lpo_text_length(const lpo_text *);		/* tokens, 77 */
int64_t	 lpo_text_dim(const lpo_text *);		/* context width */
int64_t	 lpo_text_pooled_dim(const lpo_text *);	/* 0 without pooled */
/*
 * 1: with no negative prompt guidance starts from zeros, not from the encoded
 * "": SDXL, unless model_index.json's force_zeros_for_empty_prompt is false.
 */
int	 lpo_text_zero_uncond(const lpo_text *);

/* The encoder has a row for each id and each position; LPO_EFORMAT if not. */
int	 lpo_text_check(lpo_ctx *, const lpo_tokenizer *, const lpo_clip *,
	    const char *dir);

/*
 * Seconds that so many prompts take; on a dry backend (lpo_tape_time), after
 * lpo_text_encode() has seen one.
 */
int	 lpo_text_time(lpo_text *, int64_t n, double *seconds);

/*
 * Encode n prompts in batches of a fixed size: context[n, length, dim] and,
 * where pooled_dim > 0 and pooled is not NULL, pooled[n, pooled_dim], f32 on
 * the host.
 */
int	 lpo_text_encode(lpo_text *, float *context, float *pooled,
	    const char *const *prompts, int64_t n);

#endif
