/*
 * Philox4x32-10 (Salmon et al., SC'11), counter-based: a draw is a function of
 * what it is for, never of batch size, thread, worker or restart.
 *
 *	key     = seed low, seed high
 *	counter = element / 4, item, epoch << 16 | step,
 *	          purpose << 24 | candidate
 *	word    = element mod 4
 */
#ifndef LPO_BASE_PHILOX_H
#define LPO_BASE_PHILOX_H

#include <stdint.h>

/* Never renumber: old runs must be repeatable. */
enum lpo_purpose {
	LPO_DRAW_POSTERIOR = 1,	/* VAE posterior; candidate = image 0/1 */
	LPO_DRAW_NOISE = 2,	/* forward noise; candidate = image 0/1 */
	LPO_DRAW_TIMESTEP = 3,
	LPO_DRAW_SHUFFLE = 4,	/* keyed permutation */
	LPO_DRAW_LATENT = 5,	/* initial latent of a rollout or a picture */
	LPO_DRAW_CANDIDATE = 6,	/* noise of candidate k at a step */
	LPO_DRAW_PICK = 7,	/* which candidate goes on */
	LPO_DRAW_INIT = 8,	/* initial weights; item = hash of the key */
	LPO_DRAW_BOOTSTRAP = 9,
	LPO_DRAW_OFFSET = 10,	/* noise offset */
	LPO_DRAW_PARTNER = 11,	/* compare-timesteps partner */
	LPO_DRAW_ETA = 12,	/* DDIM noise when sampling with eta > 0 */
	/* 13 was given away and never used */
	LPO_DRAW_CHECK = 14	/* initial latents of a trainer's check */
};

struct lpo_draw {
	uint64_t seed;
	enum lpo_purpose purpose;
	uint32_t item;		/* input row, prompt or image index */
	uint32_t epoch;		/* < 65536 */
	uint32_t step;		/* < 65536 */
	uint32_t candidate;	/* < 2^24 */
};

void	 lpo_philox4x32(uint32_t out[4], const uint32_t counter[4],
	    const uint32_t key[2]);
/* The word of one element. */
uint32_t lpo_draw_u32(const struct lpo_draw *, uint64_t element);
/* Uniform in 0 .. n-1 without bias worth naming (64-bit multiply). */
uint32_t lpo_draw_below(const struct lpo_draw *, uint64_t element, uint32_t n);
/* out[i] = N(0,1) of element first + i, i < n; same bits on every machine. */
void	 lpo_draw_normal(const struct lpo_draw *, uint64_t first, float *out,
	    int64_t n);
/*
 * Position i of a keyed permutation of 0 .. n-1 (sort by Philox words would
 * need memory; this is a cycle-walking Feistel network on Philox).
 */
uint64_t lpo_draw_permute(const struct lpo_draw *, uint64_t i, uint64_t n);

#endif
