/*
 * Every op of lpo-tools, once: formula, shapes, and the table that a backend
 * fills in.  `cpu` is linked in, `cuda` is a plug-in with the same table.
 *
 * An op is in the table below, with a new LPO_KERNEL_ABI; in x.c of its kind,
 * and by name in levels.h; in x.cu beside that, and by name in cuda.h and
 * cuda.cu; and in tests/ops.
 *
 * Activations are channels-last: an image is [n, h, w, c], tokens [n, l, c].
 * dt is the storage of activations and matrix weights, f32 or bf16; sums,
 * statistics, softmax, biases, norm weights and all weight gradients are f32.
 * The gradients of activations are added to where the `add` of a _bwd says
 * so (several gradients: a bit each) and set where not, so that the first
 * to reach a buffer need not find zeros there; weights' are always added
 * to.  A NULL gradient is skipped.
 *
 * Bits.  For one ISA level and dt the value of an output row depends on the
 * row's inputs only, never on the number of rows or threads: the order of a
 * sum over K is fixed.  Weight gradients take `groups`: the rows are `groups`
 * equal runs (one run = one pair), each run's sum is finished before the next
 * run is added, so that any split into whole pairs gives the same bits.
 *
 * All functions return 0 or a negative LPO_E*; scratch is the caller's and at
 * least as large as the matching *_scratch_bytes says.
 *
 * A backend may return before the work is done: it is done in the order of
 * the calls, and download, landed and sync wait for it.  An error that shows
 * late is returned by a later call.
 */
#ifndef LPO_KERNEL_H
#define LPO_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/error.h"

#define LPO_KERNEL_ABI 5

enum lpo_dtype {
	LPO_F32, LPO_BF16, LPO_F16, LPO_F64, LPO_I64, LPO_I32, LPO_U8
};

enum lpo_act { LPO_SILU, LPO_GELU /* erf */, LPO_QUICK_GELU, LPO_RELU };

/* CPU levels, in order; `amx` includes avx512. */
enum lpo_isa {
	LPO_ISA_AUTO, LPO_ISA_PORTABLE, LPO_ISA_AVX2, LPO_ISA_AVX512,
	LPO_ISA_AMX
};

/* Which of several gradients a _bwd adds to; one alone: any value but 0. */
enum { LPO_ADD_A = 1, LPO_ADD_B = 2, LPO_ADD_C = 4 };

enum lpo_pass { LPO_FWD, LPO_BWD_DATA, LPO_BWD_WEIGHT };

/*
 * A convolution.  x [n, h, w, ci], weight [co, kh, kw, ci], y [n, ho, wo, co];
 * ho and wo are the caller's word on padding at bottom and right:
 * y[p,q] sums x[p*stride - pad_top + i, q*stride - pad_left + j], zeros
 * outside.
 */
struct lpo_conv_shape {
	int64_t n, h, w, ci, co, kh, kw, stride, pad_top, pad_left, ho, wo;
};

/*
 * Attention.  q, o [n, lq, heads * d] with ldq elements between tokens (o is
 * dense), k, v [nk, lk, heads * d] with ldk between tokens; head j owns
 * channels j*d .. j*d+d-1.  nk divides n: row i of q reads row i*nk/n of k
 * and v (several rows share one text).  scale = d^-0.5.  causal: key j is
 * seen by query i iff j <= i.  Any d forward; backward d <= 160, else
 * LPO_EINVAL.
 */
struct lpo_attn_shape {
	int64_t n, nk, lq, lk, heads, d, ldq, ldk;
	int causal;
};

struct lpo_adamw {
	float lr, beta1, beta2, eps, weight_decay;
	float grad_scale;	/* gradient is multiplied by this first */
	int64_t step;		/* 1-based, for the bias correction */
};

/* One trainable tensor: f32 master, moments and gradient, and what is used. */
struct lpo_adamw_tensor {
	float *p, *m, *v;
	const float *g;
	void *w;
	enum lpo_dtype w_dt;
	int64_t count;
};

typedef struct lpo_backend lpo_backend;

struct lpo_kernels {
	uint32_t abi;		/* LPO_KERNEL_ABI */
	uint32_t size_bytes;	/* sizeof(struct lpo_kernels) */
	const char *name;	/* "cpu", "cuda" */

	/* Memory of the device (64-byte aligned, not cleared). */
	void *(*alloc)(lpo_backend *, size_t bytes);
	void (*free)(lpo_backend *, void *);
	int (*upload)(lpo_backend *, void *dst, const void *src, size_t bytes);
	int (*download)(lpo_backend *, void *dst, const void *src,
	    size_t bytes);
	/*
	 * A download in two halves.  A landing is a place on the host for
	 * `bytes`.  land queues a copy of src to it; calls after that may
	 * change src.  landed waits for that copy, but for nothing called
	 * later, and says where it lies, until the next land; without a land
	 * before it, what is there is undefined.  landing_free waits too.
	 */
	void *(*landing_new)(lpo_backend *, size_t bytes);
	void (*landing_free)(lpo_backend *, void *landing);
	int (*land)(lpo_backend *, void *landing, const void *src,
	    size_t bytes);
	int (*landed)(lpo_backend *, void *landing, const void **host);
	int (*zero)(lpo_backend *, void *dst, size_t bytes);
	int (*copy)(lpo_backend *, void *dst, const void *src, size_t bytes);
	int (*sync)(lpo_backend *);
	/* What went wrong last, in words, or ""; until the next call. */
	const char *(*error)(lpo_backend *);
	/* Bytes of the device: free now, and in all. */
	int (*memory)(lpo_backend *, size_t *free_bytes, size_t *all_bytes);

	/*
	 * A list of calls, recorded between begin and end and then run as
	 * one: same pointers, shapes and results.  Nothing runs while it is
	 * recorded; upload, download, land, alloc and sync are not for then.
	 * graph_begin is NULL where there is nothing to gain; one that
	 * returns LPO_ENODEV leaves the calls to be made one by one.
	 */
	int (*graph_begin)(lpo_backend *);
	int (*graph_end)(lpo_backend *, void **graph);
	int (*graph_run)(lpo_backend *, void *graph);
	void (*graph_free)(lpo_backend *, void *graph);

	/*
	 * y[m,n] = alpha * x[m,k] w[n,k]^T + bias[n] + residual[m,n]
	 * bias and residual may be NULL; residual may be y.
	 */
	int (*linear_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *x, const void *w, const float *bias,
	    const void *residual, int64_t m, int64_t n, int64_t k,
	    float alpha, void *scratch);
	/* dx[m,k] (+)= alpha * dy[m,n] w[n,k] */
	int (*linear_bwd_data)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
	    float alpha, int add, void *scratch);
	/* dw[n,k] += alpha * dy^T x ;  db[n] += alpha * column sums of dy */
	int (*linear_bwd_weight)(lpo_backend *, enum lpo_dtype dt, float *dw,
	    float *db, const void *dy, const void *x, int64_t m, int64_t n,
	    int64_t k, float alpha, int64_t groups, void *scratch);
	size_t (*linear_scratch_bytes)(lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, int64_t m, int64_t n, int64_t k, int64_t groups);

	/*
	 * A linear layer with its LoRA, rank r, or NULL (both) where the
	 * products above do as well.  The scratch is the largest that those
	 * need; backward it has m * r elements, rounded up to 64 bytes, more.
	 * aux[m,r] = x a[r,k]^T
	 * y = x w^T + bias + residual + scale * aux b[n,r]^T
	 */
	int (*lora_fwd)(lpo_backend *, enum lpo_dtype dt, void *y, void *aux,
	    const void *x, const void *w, const float *bias,
	    const void *residual, const void *a, const void *b, int64_t m,
	    int64_t n, int64_t k, int64_t r, float scale, void *scratch);
	/*
	 * What the LoRA adds, with u = scale * dy b in dt:
	 * db += scale * dy^T aux, da += u^T x, dx += u a
	 */
	int (*lora_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx, float *da,
	    float *db, const void *dy, const void *x, const void *aux,
	    const void *a, const void *b, int64_t m, int64_t n, int64_t k,
	    int64_t r, float scale, int64_t groups, void *scratch);

	/* y = conv(x, w) + bias + residual; as linear_fwd has them */
	int (*conv_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *x, const void *w, const float *bias,
	    const void *residual, const struct lpo_conv_shape *,
	    void *scratch);
	/* dx (+)= transposed convolution of dy */
	int (*conv_bwd_data)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    const void *dy, const void *w, const struct lpo_conv_shape *,
	    int add, void *scratch);
	/* dw[co,kh,kw,ci] += ..., db[co] += ... */
	int (*conv_bwd_weight)(lpo_backend *, enum lpo_dtype dt, float *dw,
	    float *db, const void *dy, const void *x,
	    const struct lpo_conv_shape *, int64_t groups, void *scratch);
	size_t (*conv_scratch_bytes)(lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, const struct lpo_conv_shape *, int64_t groups);

	/*
	 * o = softmax(q k^T scale + mask) v per head.
	 * lse [n, heads, lq] f32 (natural log of the row sums, shifted) is kept
	 * for the backward pass; NULL when there will be none.
	 */
	int (*attention_fwd)(lpo_backend *, enum lpo_dtype dt, void *o,
	    float *lse, const void *q, const void *k, const void *v,
	    const struct lpo_attn_shape *, void *scratch);
	/*
	 * dq has ldq between tokens, dk and dv have ldk, dout is dense as o.
	 * add: LPO_ADD_A dq, LPO_ADD_B dk, LPO_ADD_C dv.
	 */
	int (*attention_bwd)(lpo_backend *, enum lpo_dtype dt, void *dq,
	    void *dk, void *dv, const void *dout, const void *o,
	    const float *lse, const void *q, const void *k, const void *v,
	    const struct lpo_attn_shape *, int add, void *scratch);
	size_t (*attention_scratch_bytes)(lpo_backend *, enum lpo_pass,
	    enum lpo_dtype, const struct lpo_attn_shape *);

	/*
	 * GroupNorm over (c/groups, hw), biased variance, then SiLU if `silu`:
	 * y = f((x - mean) * rstd * gamma + beta).
	 * stats [n, groups, 2] f32 = mean, rstd (output of fwd, input of bwd).
	 */
	int (*group_norm_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    float *stats, const void *x, const float *gamma,
	    const float *beta, int64_t n, int64_t hw, int64_t c,
	    int64_t norm_groups, float eps, int silu);
	int (*group_norm_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    float *dgamma, float *dbeta, const void *dy, const void *x,
	    const float *stats, const float *gamma, const float *beta,
	    int64_t n, int64_t hw, int64_t c, int64_t norm_groups, int silu,
	    int64_t groups, int add, void *scratch);
	/* bytes of scratch of group_norm_bwd and layer_norm_bwd */
	size_t (*norm_scratch_bytes)(lpo_backend *, int64_t n, int64_t c,
	    int64_t groups);

	/* LayerNorm over c of each of m tokens; stats [m, 2] f32. */
	int (*layer_norm_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    float *stats, const void *x, const float *gamma,
	    const float *beta, int64_t m, int64_t c, float eps);
	int (*layer_norm_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    float *dgamma, float *dbeta, const void *dy, const void *x,
	    const float *stats, const float *gamma, int64_t m, int64_t c,
	    int64_t groups, int add, void *scratch);

	/* y = f(x), dx (+)= dy f'(x), count elements */
	int (*act_fwd)(lpo_backend *, enum lpo_dtype dt, enum lpo_act,
	    void *y, const void *x, int64_t count);
	int (*act_bwd)(lpo_backend *, enum lpo_dtype dt, enum lpo_act,
	    void *dx, const void *dy, const void *x, int64_t count, int add);

	/* y[m,c] = x[:, :c] * gelu(x[:, c:]) (erf); x [m, 2c] */
	int (*geglu_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *x, int64_t m, int64_t c);
	int (*geglu_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    const void *dy, const void *x, int64_t m, int64_t c, int add);

	/* y = a + b ; acc: y += a */
	int (*add)(lpo_backend *, enum lpo_dtype dt, void *y, const void *a,
	    const void *b, int64_t count);
	int (*acc)(lpo_backend *, enum lpo_dtype dt, void *y, const void *a,
	    int64_t count);

	/* y[n,hw,c] = x[n,hw,c] + r[n,c] ; dr[n,c] (+)= sum over hw of dy */
	int (*add_rows_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *x, const void *r, int64_t n, int64_t hw, int64_t c);
	int (*add_rows_bwd)(lpo_backend *, enum lpo_dtype dt, void *dr,
	    const void *dy, int64_t n, int64_t hw, int64_t c, int add);

	/*
	 * Nearest neighbour [n,h,w,c] -> [n,ho,wo,c]: src = dst >> 1 where the
	 * size doubles exactly, else min((int)(dst * ((float)h / ho)), h-1).
	 */
	int (*upsample_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *x, int64_t n, int64_t h, int64_t w, int64_t c,
	    int64_t ho, int64_t wo);
	int (*upsample_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    const void *dy, int64_t n, int64_t h, int64_t w, int64_t c,
	    int64_t ho, int64_t wo, int add);

	/*
	 * y[m, ca+cb] = [a[m,ca], b[m,cb]]
	 * add: LPO_ADD_A da, LPO_ADD_B db.
	 */
	int (*concat_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *a, const void *b, int64_t m, int64_t ca, int64_t cb);
	int (*concat_bwd)(lpo_backend *, enum lpo_dtype dt, void *da,
	    void *db, const void *dy, int64_t m, int64_t ca, int64_t cb,
	    int add);

	/* y[n,c] (f32 whatever dt) = mean over hw of x[n,hw,c] */
	int (*mean_pool_fwd)(lpo_backend *, enum lpo_dtype dt, float *y,
	    const void *x, int64_t n, int64_t hw, int64_t c);
	int (*mean_pool_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    const float *dy, int64_t n, int64_t hw, int64_t c, int add);

	/*
	 * y[i,:] = x[index[i],:], rows of c elements, 0 <= index < rows.
	 * dx[index[i],:] (+)= dy[i,:], in the order of i; rows that no index
	 * names are zeros where `add` is not set.
	 */
	int (*gather_rows_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const void *x, const int32_t *index, int64_t n, int64_t c,
	    int64_t rows);
	int (*gather_rows_bwd)(lpo_backend *, enum lpo_dtype dt, void *dx,
	    const void *dy, const int32_t *index, int64_t n, int64_t c,
	    int64_t rows, int add);

	/*
	 * y[n*l, c] = table[id] + position[i mod l]   (f32 tables, y in dt;
	 * position may be NULL)
	 * dtable[id] += dy, dposition[i mod l] += dy, in the order of i.
	 */
	int (*embed_fwd)(lpo_backend *, enum lpo_dtype dt, void *y,
	    const int32_t *id, const float *table, const float *position,
	    int64_t n, int64_t l, int64_t c);
	int (*embed_bwd)(lpo_backend *, enum lpo_dtype dt, float *dtable,
	    float *dposition, const void *dy, const int32_t *id, int64_t n,
	    int64_t l, int64_t c);

	/*
	 * Guidance in f32 within each of `groups` runs of 2r rows, first r
	 * conditional, last r unconditional:  y = u + g (c - u);  y has
	 * groups * r rows of c elements.  dx (+)= g dy and (1 - g) dy.
	 */
	int (*guide_fwd)(lpo_backend *, float *y, const float *x, float g,
	    int64_t groups, int64_t r, int64_t c);
	int (*guide_bwd)(lpo_backend *, float *dx, const float *dy, float g,
	    int64_t groups, int64_t r, int64_t c, int add);

	/* dst = src converted, round to nearest even; f32, bf16, f16 */
	int (*convert)(lpo_backend *, void *dst, enum lpo_dtype dst_dt,
	    const void *src, enum lpo_dtype src_dt, int64_t count);
	/* dst += src converted (the backward pass of convert) */
	int (*convert_acc)(lpo_backend *, void *dst, enum lpo_dtype dst_dt,
	    const void *src, enum lpo_dtype src_dt, int64_t count);

	/*
	 * AdamW with decoupled decay, torch's order of operations, of n
	 * tensors (the list is the host's):
	 * p *= 1 - lr wd; m,v updated; p -= lr/bc1 * m / (sqrt(v/bc2) + eps);
	 * then w = p in w_dt, where w is not p.
	 */
	int (*adamw)(lpo_backend *, const struct lpo_adamw_tensor *,
	    int64_t n, const struct lpo_adamw *);
	/*
	 * *out = sum of squares of n tensors, each summed by itself, then in
	 * their order, in f64; Inf or NaN shows in it.  x and count are the
	 * host's.
	 */
	int (*sum_squares)(lpo_backend *, double *out, const float *const *x,
	    const int64_t *count, int64_t n);
};

struct lpo_backend {
	const struct lpo_kernels *k;
	enum lpo_isa isa;	/* CPU: the level in use */
	int threads;
	int split;		/* CPU, by lpo_cpu_split */
	void *priv;		/* the backend's own */
};

/*
 * Open the CPU backend at most at level `isa` (AUTO: the best this CPU has;
 * a level the CPU lacks is LPO_ENODEV).  threads 0: all this process may use.
 * Sets OpenMP's thread count for the process.
 */
int	lpo_cpu_open(lpo_backend *, enum lpo_isa, int threads);
void	lpo_cpu_close(lpo_backend *);
/*
 * From now on f32 products go to AMX tiles, each operand as two bf16 and each
 * product off by at most 2^-15 of itself (split.h); sums, and all else, stay
 * f32.  So are linear layers and 3x3 convolutions forward and to x, and
 * attention forward; what tiles do not take, and the rest, is as it was.
 * LPO_ENODEV below the level amx.
 */
int	lpo_cpu_split(lpo_backend *);
enum lpo_isa lpo_cpu_best_isa(void);
/* "amx,avx512,avx512_bf16,avx2,fma" ... what this CPU has, for --devices */
const char *lpo_cpu_features(void);
const char *lpo_isa_name(enum lpo_isa);
int	lpo_isa_parse(const char *);	/* negative: no such level */
/* 1 where bf16 products are native (AMX or AVX512_BF16 at this level). */
int	lpo_cpu_has_bf16(enum lpo_isa);
/* "oneDNN 2.6.3", for provenance */
const char *lpo_cpu_library_version(void);

size_t	lpo_dtype_bytes(enum lpo_dtype);
const char *lpo_dtype_name(enum lpo_dtype);	/* "F32", as safetensors */

#endif
