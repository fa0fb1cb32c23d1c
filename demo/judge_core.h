/*
 * The demo's judge: reads the facts of a caption off a picture's pixels, and
 * how clean the picture is.  It knows the renderer's palette and shapes, not
 * its random draws.
 */
#ifndef LPO_DEMO_JUDGE_CORE_H
#define LPO_DEMO_JUDGE_CORE_H

#include <stdint.h>

#include "world.h"

#define LPO_JUDGE_MAX_SEEN 16

/* One connected patch of colour, as read. */
struct lpo_seen {
	int shape, colour, size;
	double x_px, y_px, r_px;
};

struct lpo_view {
	int n;
	struct lpo_seen seen[LPO_JUDGE_MAX_SEEN];
	struct lpo_beauty beauty;
};

/* Shares, 0..1, of the stated facts by kind; LPO_UNSTATED where a kind isn't
 * stated.  alignment is the mean over facts, not over kinds. */
struct lpo_verdict {
	double count, size, colour, shape, where, relation;
	/* preference is a utility u: the chance that a person prefers a to b
	 * is 1 / (1 + exp(-1.7 (u_a - u_b))). */
	double alignment, aesthetic, preference;
};

/* rgb: LPO_WORLD_BYTES, as lpo_world_render writes them. */
void lpo_judge_look(const uint8_t *rgb, struct lpo_view *);
void lpo_judge_rate(const struct lpo_view *, const struct lpo_spec *,
    struct lpo_verdict *);
#endif
