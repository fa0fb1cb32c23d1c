/*
 * The tape.  A model function runs once per shape and computes nothing: each
 * call records an op.  lpo_tape_plan() then places every buffer of forward,
 * recomputation and backward; lpo_tape_commit() allocates; forward and
 * backward walk the list with whatever the inputs hold.
 *
 * Errors are sticky: after the first failure every call is a no-op that
 * returns NULL (every op takes NULL and returns NULL), and plan, commit and
 * the walks return the error, whose text names op and layer.
 *
 * Rows.  A var is [n, h, w, c] (tokens: h = length, w = 1; vectors h = w = 1).
 * `groups` is the number of pairs (or prompts) in the batch; the n rows of
 * every var that meets a trainable weight are `groups` equal runs.
 */
#ifndef LPO_NN_TAPE_H
#define LPO_NN_TAPE_H

#include "lib/nn/param.h"

typedef struct lpo_tape lpo_tape;

typedef struct lpo_var {	/* read only for users */
	int64_t n, h, w, c;
	enum lpo_dtype dtype;
	int needs_grad;
	struct lpo_var_priv *priv;
} lpo_var;

/* Backend memory that several tapes use in turn, never at the same time. */
typedef struct lpo_arena {
	void *mem;
	size_t bytes;
	const lpo_tape *last;	/* who wrote to it last */
} lpo_arena;

struct lpo_plan {
	size_t arena_bytes;	/* activations, gradients, scratch */
	size_t constant_bytes;	/* index tables */
	double fwd_flops, bwd_flops, recompute_flops;
	int64_t ops;
};

lpo_tape *lpo_tape_new(lpo_ctx *, lpo_backend *, enum lpo_dtype dt,
	    int64_t groups);
void	 lpo_tape_free(lpo_tape *);
enum lpo_dtype lpo_tape_dtype(const lpo_tape *);
int64_t	 lpo_tape_groups(const lpo_tape *);
int	 lpo_tape_error(const lpo_tape *);	/* 0 or the sticky code */

/*
 * An input, set before each forward by lpo_var_set().  want_grad: its
 * gradient is there after backward.  dtype F32, BF16 or I32 (indices, ids).
 */
lpo_var	*lpo_input(lpo_tape *, int64_t n, int64_t h, int64_t w, int64_t c,
	    enum lpo_dtype, int want_grad);
/* The value stays readable until the next forward; with want_grad the caller
 * sets its gradient (lpo_var_set_grad) between forward and backward. */
void	 lpo_output(lpo_tape *, lpo_var *, int want_grad);
/* Ops between begin and end are walked again in backward, not kept. */
void	 lpo_segment_begin(lpo_tape *);
void	 lpo_segment_end(lpo_tape *);

/* backward 0: forward only. */
int	 lpo_tape_plan(lpo_tape *, int backward, struct lpo_plan *);
/* arena NULL: the tape's own.  A shared arena grows to the largest tape. */
int	 lpo_tape_commit(lpo_tape *, lpo_arena *);
void	 lpo_arena_free(lpo_backend *, lpo_arena *);

enum { LPO_LORA_OFF = 1 };	/* walk the reference model */
int	 lpo_tape_forward(lpo_tape *, int flags);
int	 lpo_tape_backward(lpo_tape *);

/*
 * Seconds of a forward and of a backward, for a tape on a dry backend: each
 * kind of op at each shape is timed once.  NAN where that can't be done.
 */
int	 lpo_tape_time(lpo_tape *, double s[2]);
#define LPO_TIMED_FLOPS 1e11	/* a tape of more need not be larger */

/* Host copies, f32 (or I32) on the host whatever the var's dtype. */
int	 lpo_var_set(lpo_tape *, lpo_var *, const void *host);
int	 lpo_var_get(lpo_tape *, const lpo_var *, float *host);
int	 lpo_var_set_grad(lpo_tape *, lpo_var *, const float *host);
int	 lpo_var_get_grad(lpo_tape *, const lpo_var *, float *host);
int64_t	 lpo_var_count(const lpo_var *);
/*
 * No other tape has used the arena since this one last did: inputs that were
 * set and not walked yet are still there.
 */
int	 lpo_tape_undisturbed(const lpo_tape *);

/*
 * lpo_var_get() in two halves.  start queues it behind what was called before,
 * finish waits for that and for nothing called later: sets, walks and other
 * starts may come between.  A landing belongs to one var and has one value at
 * a time; what finish gives stays until its next start.  Free it before the
 * tape.
 */
typedef struct lpo_landing lpo_landing;
lpo_landing *lpo_landing_new(lpo_tape *, const lpo_var *);
void	 lpo_landing_free(lpo_landing *);
int	 lpo_var_get_start(lpo_landing *);
int	 lpo_var_get_finish(lpo_landing *, const float **host);

/* ------------------------------------------------------------------ ops */

/* x [n,l,1,in] or [n,h,w,in] -> [.., out], LoRA included unless it is off */
lpo_var	*lpo_linear(lpo_tape *, const lpo_linear_layer *, lpo_var *x);
/* The same plus r, of the output's shape, in one pass */
lpo_var	*lpo_linear_add(lpo_tape *, const lpo_linear_layer *, lpo_var *x,
	    lpo_var *r);
/* x [n,h,w,ci] -> [n,ho,wo,co] */
lpo_var	*lpo_conv(lpo_tape *, const lpo_conv_layer *, lpo_var *x);
lpo_var	*lpo_conv_add(lpo_tape *, const lpo_conv_layer *, lpo_var *x,
	    lpo_var *r);
lpo_var	*lpo_group_norm(lpo_tape *, const lpo_norm_layer *, lpo_var *x);
lpo_var	*lpo_norm_silu(lpo_tape *, const lpo_norm_layer *, lpo_var *x);
lpo_var	*lpo_layer_norm(lpo_tape *, const lpo_norm_layer *, lpo_var *x);
lpo_var	*lpo_activation(lpo_tape *, enum lpo_act, lpo_var *x);
lpo_var	*lpo_geglu(lpo_tape *, lpo_var *x);		/* c -> c/2 */
lpo_var	*lpo_add(lpo_tape *, lpo_var *a, lpo_var *b);
/* x [n,h,w,c] + r [n,1,1,c] */
lpo_var	*lpo_add_rows(lpo_tape *, lpo_var *x, lpo_var *r);
/*
 * q [n,lq,1,heads*d], k, v [nk,lk,1,heads*d], nk divides n: row i of q reads
 * row i*nk/n of k and v.
 */
lpo_var	*lpo_attention(lpo_tape *, lpo_var *q, lpo_var *k, lpo_var *v,
	    int64_t heads, int causal);
lpo_var	*lpo_upsample(lpo_tape *, lpo_var *x, int64_t ho, int64_t wo);
lpo_var	*lpo_concat(lpo_tape *, lpo_var *a, lpo_var *b);	/* channels */
lpo_var	*lpo_mean_pool(lpo_tape *, lpo_var *x);	/* -> [n,1,1,c] f32 */
/* The same numbers seen as another shape of equal count (no copy). */
lpo_var	*lpo_reshape(lpo_tape *, lpo_var *x, int64_t n, int64_t h, int64_t w,
	    int64_t c);
/* Rows (n) of x picked by an I32 input [m,1,1,1] with values in 0..n-1 */
lpo_var	*lpo_gather(lpo_tape *, lpo_var *x, lpo_var *index);
/*
 * Within each group, the run of r rows `times` times: group g's rows
 * [a b] become [a b a b].  The two guidance halves start like this.
 */
lpo_var	*lpo_repeat(lpo_tape *, lpo_var *x, int64_t times);
/*
 * Within each group, rows first .. first+count-1 of its run.
 */
lpo_var	*lpo_slice_rows(lpo_tape *, lpo_var *x, int64_t first,
	    int64_t count);
/*
 * Group g gets its own run of rows of a, then its own run of b: [a_g, b_g].
 * How the "" row joins each prompt's row (give b repeated, one run a group,
 * and sum its gradient rows in order: then no split of the batch shows).
 */
lpo_var	*lpo_join_rows(lpo_tape *, lpo_var *a, lpo_var *b);
/* f32 [groups*2r,..] -> [groups*r,..]: u + g (c - u), c first half */
lpo_var	*lpo_guide(lpo_tape *, lpo_var *x, float g);
/* ids I32 [n, l, 1, 1] -> [n, l, 1, c]; position may be NULL */
lpo_var	*lpo_embed(lpo_tape *, lpo_param *table, lpo_param *position,
	    lpo_var *ids);
/* All rows of a table (a vector is one row), n times: [n, rows, 1, c] */
lpo_var	*lpo_embed_all(lpo_tape *, lpo_param *table, int64_t n);
lpo_var	*lpo_cast(lpo_tape *, lpo_var *x, enum lpo_dtype);

#endif
