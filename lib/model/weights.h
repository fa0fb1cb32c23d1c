/*
 * From a model folder into lpo_params: weights found by key in one safetensors
 * file or an index with shards (models.md 1.7-1.9).  Those of random:KIND are
 * drawn.
 */
#ifndef LPO_MODEL_WEIGHTS_H
#define LPO_MODEL_WEIGHTS_H

#include "lib/io/safetensors.h"
#include "lib/nn/param.h"

/* Module paths, which layers point to for as long as the model lives. */
struct lpo_pool {
	char **s;
	int64_t n, cap;
};

/* A copy that lives until lpo_pool_free(); NULL with LPO_ENOMEM stored. */
const char *lpo_pool_add(lpo_ctx *, struct lpo_pool *, const char *fmt, ...)
	    __attribute__((format(printf, 3, 4)));
void	 lpo_pool_free(struct lpo_pool *);

/*
 * DIR/STEM by lpo_st_open_stem(), of the context's variant; a part of the
 * model without files of that variant has the plain ones, said by a notice.
 */
int	 lpo_weights_file(lpo_ctx *, lpo_st **, const char *dir,
	    const char *stem);

typedef struct lpo_weights lpo_weights;

/*
 * Open DIR/STEM by lpo_weights_file(), for parameters of `params` and
 * names in `pool` (both outlive it).  A leading "module." is dropped from the
 * keys; then `rename`, if given, writes a key's present-day spelling to out
 * (at most cap bytes with the NUL) and returns 1, or returns 0 to keep it.
 * LPO_ENOTFOUND: no such file.  LPO_EFORMAT: not a safetensors file, or two
 * keys that mean the same.
 *
 * Errors are sticky: after the first failure the calls below do nothing, and
 * lpo_weights_finish() returns it.
 */
int	 lpo_weights_open(lpo_ctx *, lpo_weights **, lpo_params *params,
	    struct lpo_pool *pool, const char *dir, const char *stem,
	    int (*rename)(char *out, size_t cap, const char *key));
void	 lpo_weights_close(lpo_weights *);		/* NULL is fine */
/* Keys that begin with this are known, and not wanted. */
void	 lpo_weights_ignore(lpo_weights *, const char *prefix);
/*
 * 1 if there is a tensor of this key; a random model has what is asked for and
 * says 0.
 */
int	 lpo_weights_has(const lpo_weights *, const char *key);

/*
 * A new parameter of this file shape, loaded from the tensor `key`: f32, f16
 * or bf16; a matrix is taken from [o, i] and from [o, i, 1, 1].  LPO_EFORMAT:
 * absent, another shape, or a value that is not finite, all with the key.
 */
lpo_param *lpo_weights_param(lpo_weights *, enum lpo_param_kind, int rank,
	    const int64_t *shape, const char *key);

/*
 * Elements first .. first + n - 1 of the tensor that `p` was made from, in
 * the file's layout; for several threads at once.
 */
void	 lpo_weights_get(const lpo_weights *, const lpo_param *p,
	    int64_t first, float *out, int64_t n);
/*
 * LPO_EFORMAT, with the key, if one of them is not finite; f16: or is more
 * than f16 holds.
 */
int	 lpo_weights_check(const lpo_weights *, const lpo_param *p,
	    int64_t first, const float *x, int64_t n, int f16);

/*
 * Layers: NAME.weight and NAME.bias, the name kept in the pool.
 * linear: [out, in]; as_conv: the file has a 1x1 convolution [out, in, 1, 1].
 */
void	 lpo_weights_linear(lpo_weights *, lpo_linear_layer *, int64_t in,
	    int64_t out, int bias, int as_conv, const char *fmt, ...)
	    __attribute__((format(printf, 7, 8)));
void	 lpo_weights_conv(lpo_weights *, lpo_conv_layer *, int64_t in,
	    int64_t out, int64_t k, int64_t stride, const char *fmt, ...)
	    __attribute__((format(printf, 7, 8)));
void	 lpo_weights_norm(lpo_weights *, lpo_norm_layer *, int64_t c,
	    int64_t groups, float eps, const char *fmt, ...)
	    __attribute__((format(printf, 6, 7)));

int	 lpo_weights_error(const lpo_weights *);
/*
 * The sticky error; else 0, after a notice if the file has keys that nobody
 * asked for (position_ids apart).
 */
int	 lpo_weights_finish(lpo_weights *);

/*
 * The other way: all parameters, masters where there are some, under their
 * keys and file shapes to one file, stored as F32, BF16 or F16.  metadata:
 * NULL-terminated key, value ... or NULL.  LPO_EINVAL, by key: a value that
 * is not finite or too large for the type.
 */
int	 lpo_weights_save(lpo_params *, const char *path,
	    enum lpo_dtype storage, const char *const *metadata);
/*
 * The same into a writer that also takes other tensors; *source is freed after
 * the write.
 */
struct lpo_weights_source;
void	 lpo_weights_source_free(struct lpo_weights_source *);
int	 lpo_weights_add(lpo_params *, lpo_stw *, enum lpo_dtype storage,
	    struct lpo_weights_source **source);

#endif
