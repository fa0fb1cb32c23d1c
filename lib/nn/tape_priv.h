/* Inside of the tape: shared by tape.c (record, walk), plan.c and ops*.c. */
#ifndef LPO_NN_TAPE_PRIV_H
#define LPO_NN_TAPE_PRIV_H

#include "lib/nn/tape.h"

#define LPO_OP_INPUTS 3

typedef struct lpo_op lpo_op;

struct lpo_op_class {
	const char *name;
	int (*fwd)(lpo_tape *, const lpo_op *);
	int (*bwd)(lpo_tape *, const lpo_op *);	/* NULL: no gradient */
};

struct lpo_op {
	const struct lpo_op_class *cls;
	const char *label;		/* the layer's name or "" */
	lpo_var *in[LPO_OP_INPUTS];
	lpo_var *out;
	lpo_var *aux;			/* kept for backward: stats, lse, Ax */
	unsigned keep_in;		/* bit i: backward reads in[i]'s data */
	int keep_out;			/* backward reads out's data */
	unsigned first;			/* bit i: backward is the first to
					 * reach in[i]'s gradient */
	unsigned hands_on;		/* bit i: in[i]'s gradient is out's */
	int weights;			/* trains weights */
	size_t fwd_scratch, bwd_scratch;
	double fwd_flops, bwd_flops;
	int segment;			/* -1: none */
	/* what the op is about; each class reads its own */
	const lpo_linear_layer *linear;
	const lpo_conv_layer *conv;
	const lpo_norm_layer *norm;
	lpo_param *table, *position;
	struct lpo_conv_shape cs;
	struct lpo_attn_shape as;
	enum lpo_act act;
	int silu;
	float g;
};

enum { LPO_NO_BUFFER = -1 };

struct lpo_var_priv {
	int64_t index;			/* in tape->vars */
	lpo_var *base;			/* itself, or what a reshape views */
	int64_t op;			/* producer, -1 for inputs */
	int segment;			/* of the producer */
	int crosses;			/* used outside its segment */
	int is_output, seeded, want_grad;
	int has_grad;			/* a gradient reaches it */
	lpo_var *grad_from;		/* whose gradient's buffer it takes over */
	int32_t *constant_host;		/* index table, or NULL */
	void *constant;
	/* offsets in the arena: forward, backward's replay, gradient */
	int64_t fwd_off, bwd_off, grad_off;
};

enum lpo_step_kind { LPO_STEP_FWD, LPO_STEP_SEED, LPO_STEP_REPLAY,
    LPO_STEP_BWD };

struct lpo_step {
	enum lpo_step_kind kind;
	int64_t op;
	int64_t zero_first, zero_count;	/* gradients that begin here */
};

/* Forward, forward with LoRA off, backward of either. */
enum { LPO_WALK_BACKWARD = LPO_LORA_OFF + 1,
    LPO_WALKS = 2 * LPO_WALK_BACKWARD };

struct lpo_tape {
	lpo_ctx *ctx;
	lpo_backend *be;
	const struct lpo_kernels *k;
	enum lpo_dtype dtype;
	int64_t groups;
	int error;			/* sticky */
	int segments, segment;		/* count, current (-1) */
	lpo_op **ops;
	int64_t nops, ops_cap;
	lpo_var **vars;
	int64_t nvars, vars_cap;
	/* plan */
	int planned, backward;
	struct lpo_step *steps;
	int64_t nsteps;
	lpo_var **zero;			/* see lpo_step.zero_first */
	int64_t nzero;
	size_t arena_bytes, scratch_off;
	lpo_arena own, *arena;
	/* walk */
	void *graph[LPO_WALKS];	/* recorded, or NULL */
	int walked[LPO_WALKS];
	void *graph_mem;	/* the arena they were recorded in */
	int flags;
	int replay;			/* data pointers of backward */
};

/* ---- recording */
int	 lpo_tape_fail(lpo_tape *, int code, const char *fmt, ...)
	    __attribute__((format(printf, 3, 4)));
lpo_var	*lpo_tape_var(lpo_tape *, int64_t n, int64_t h, int64_t w, int64_t c,
	    enum lpo_dtype);
/* An I32 table [n] with values f(arg, i), uploaded once. */
lpo_var	*lpo_tape_constant(lpo_tape *, int64_t n);
/* A new op with its inputs; NULL on failure or sticky error. */
lpo_op	*lpo_tape_op(lpo_tape *, const struct lpo_op_class *,
	    const char *label, lpo_var *a, lpo_var *b, lpo_var *c);
/* Finish it: its output [n,h,w,c]. */
lpo_var	*lpo_tape_out(lpo_tape *, lpo_op *, int64_t n, int64_t h, int64_t w,
	    int64_t c, enum lpo_dtype);

/* ---- walking */
void	*lpo_data(const lpo_tape *, const lpo_var *);
void	*lpo_grad(const lpo_tape *, const lpo_var *);	/* NULL: none */
void	*lpo_scratch(const lpo_tape *);
/* The inputs whose gradients hold something already: the kernels' `add`. */
static inline int
lpo_op_adds(const lpo_op *op)
{
	return (int)(~op->first & ((1u << LPO_OP_INPUTS) - 1));
}
/* The output's gradient to input i as it is, where that wants one. */
int	 lpo_pass_grad(lpo_tape *, const lpo_op *, int i);

static inline size_t
lpo_align64(size_t n)
{
	return (n + 63) & ~(size_t)63;
}

#endif
