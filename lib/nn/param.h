/*
 * Weights.  A parameter keeps its diffusers key and file shape; in memory it
 * has one layout: matrices [out, in], kernels [out, kh, kw, in], in the
 * compute dtype; vectors and embedding tables f32.  Trainable parameters have
 * an f32 master, an f32 gradient and AdamW's two moments besides.
 */
#ifndef LPO_NN_PARAM_H
#define LPO_NN_PARAM_H

#include "kernels/kernel.h"
#include "lib/base/ctx.h"

enum lpo_param_kind {
	LPO_MATRIX,	/* linear weight; a file's [o, i, 1, 1] is fine too */
	LPO_KERNEL,	/* convolution weight, file [o, i, kh, kw] */
	LPO_VECTOR,	/* bias, norm weight, scalar: f32 */
	LPO_TABLE	/* embedding: f32 */
};

typedef struct lpo_param {
	char *key;		/* e.g. "conv_in.weight" */
	enum lpo_param_kind kind;
	int rank;
	int64_t shape[4];	/* as in the file */
	int64_t count;
	enum lpo_dtype dtype;	/* of w */
	void *w;		/* backend memory */
	float *grad;		/* f32; NULL: frozen */
	/* trainable: */
	float *master;		/* f32, == w if dtype is F32 */
	float *m, *v;		/* AdamW's moments */
} lpo_param;

/* A set of parameters in one order; owns them. */
typedef struct lpo_params {
	lpo_ctx *ctx;
	lpo_backend *be;
	enum lpo_dtype dtype;	/* of matrices and kernels */
	lpo_param **p;
	int64_t n, cap;
	int64_t bytes;		/* backend memory in use */
	double *sumsq;		/* backend memory: of the gradients */
	void *sumsq_landing;
} lpo_params;

/*
 * lpo_backend NULL: parameters have keys and shapes only, for those who want
 * to know what a model is made of.
 */
int	 lpo_params_init(lpo_params *, lpo_ctx *, lpo_backend *,
	    enum lpo_dtype);
void	 lpo_params_free(lpo_params *);

/* A new parameter, zero; NULL on failure.  dims beyond rank are ignored. */
lpo_param *lpo_param_add(lpo_params *, const char *key, enum lpo_param_kind,
	    int rank, const int64_t *shape);
lpo_param *lpo_param_find(const lpo_params *, const char *key);	/* or NULL */

/* Set from f32 in the file's layout (host memory, count elements). */
int	 lpo_param_import(lpo_params *, lpo_param *, const float *host);
/*
 * A new parameter whose value `get` gives, elements first .. first + n - 1 in
 * the file's layout at a time, from several threads at once; no second copy
 * is made.  *bad: the first element that is not finite, or -1.
 */
lpo_param *lpo_param_make(lpo_params *, const char *key, enum lpo_param_kind,
	    int rank, const int64_t *shape, void (*get)(const void *arg,
	    int64_t first, float *out, int64_t n), const void *arg,
	    int64_t *bad);
/* The value (master if there is one) to f32 in the file's layout. */
int	 lpo_param_export(lpo_params *, const lpo_param *, float *host);
int	 lpo_param_export_grad(lpo_params *, const lpo_param *, float *host);

/* Give one parameter, or all, a master, a gradient (zero) and moments. */
int	 lpo_param_train(lpo_params *, lpo_param *);
int	 lpo_params_train_all(lpo_params *);
/* A gradient alone, for those who only look: a third of the memory. */
int	 lpo_params_want_grads(lpo_params *);
int	 lpo_params_zero_grad(lpo_params *);
/*
 * Sum of squares of all gradients, in f64 and fixed order.  In two halves:
 * what is called between them is not waited for.
 */
int	 lpo_params_grad_sumsq(lpo_params *, double *out);
int	 lpo_params_grad_sumsq_start(lpo_params *);
int	 lpo_params_grad_sumsq_finish(lpo_params *, double *out);
/* One AdamW step of every trainable parameter, then master -> w. */
int	 lpo_params_adamw(lpo_params *, const struct lpo_adamw *);
/*
 * Training state (master, m, v of each trainable one among n parameters from
 * `first` on, internal layout) to and from host memory of
 * lpo_params_state_count() floats.
 */
int64_t	 lpo_params_state_count(const lpo_params *, int64_t first, int64_t n);
int	 lpo_params_get_state(lpo_params *, int64_t first, int64_t n,
	    float *host);
int	 lpo_params_set_state(lpo_params *, int64_t first, int64_t n,
	    const float *host);

/* ---- layers: what a model is made of; zero-initialised members = absent */

typedef struct lpo_lora {
	lpo_param *a;		/* down: [r, in] or [r, in, kh, kw] */
	lpo_param *b;		/* up: [out, r] (file: [out, r, 1, 1] for conv) */
	int64_t rank;
	float scale;		/* alpha / rank */
} lpo_lora;

typedef struct lpo_linear_layer {
	const char *name;	/* module path, for messages and LoRA keys */
	lpo_param *w, *b;	/* b may be NULL */
	lpo_lora *lora;		/* NULL: none */
} lpo_linear_layer;

typedef struct lpo_conv_layer {
	const char *name;
	lpo_param *w, *b;
	int64_t stride, pad;	/* symmetric padding ... */
	int asymmetric;		/* ... or (0,1,0,1), as the VAE encoder's */
	lpo_lora *lora;
} lpo_conv_layer;

typedef struct lpo_norm_layer {
	const char *name;
	lpo_param *gamma, *beta;
	int64_t groups;		/* group norm; unused by layer norm */
	float eps;
} lpo_norm_layer;

#endif
