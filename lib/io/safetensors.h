/*
 * Files of tensors: safetensors (spec/models.md 1.7, 1.8) and what torch.save
 * writes (8), mapped, and checked whole before a tensor is used; and a writer
 * of safetensors whose bytes depend on the content only.
 */
#ifndef LPO_IO_SAFETENSORS_H
#define LPO_IO_SAFETENSORS_H

#include <stdint.h>

#include <jansson.h>

#include "kernels/kernel.h"
#include "lib/base/ctx.h"
#include "lib/base/file.h"

#define LPO_ST_DIMS 8

/*
 * One tensor.  `data` points into the map and is often misaligned (files of
 * older writers): read it by memcpy or by lpo_st_f32() and friends.
 */
struct lpo_st_tensor {
	const char *key;
	int dtype;		/* enum lpo_dtype, or -1: one we don't use */
	char dtype_name[16];	/* as in the file: "F32", "BF16", … */
	int ndim;
	int64_t shape[LPO_ST_DIMS];
	int64_t count;		/* elements */
	int64_t bytes;
	const void *data;
};

typedef struct lpo_st lpo_st;

/*
 * A .safetensors file, what torch.save wrote (a zip: .bin, .pt, .pth), or an
 * index (.json) with all its shards.  Dicts in a torch file are flattened with
 * "." between their keys, and one called state_dict, if there is one at the
 * top, is taken alone; numbers are tensors without dimensions (F64, I64,
 * BOOL), everything else is passed over.  Nothing in a file is ever called.
 * LPO_EFORMAT names what is wrong; LPO_ENOTFOUND: no such file.
 */
int	 lpo_st_open(lpo_ctx *, lpo_st **, const char *path);
/* From memory, borrowed until close; `name` is for messages. */
int	 lpo_st_open_memory(lpo_ctx *, lpo_st **, const void *, size_t bytes,
	    const char *name);
/*
 * DIR/STEM with the precedence of models.md 1.8: index, then file, of
 * safetensors, then of .bin; `variant` ("fp16") may be NULL.
 */
int	 lpo_st_open_stem(lpo_ctx *, lpo_st **, const char *dir,
	    const char *stem, const char *variant);
/* The file that would be opened, lpo_free() it; NULL: there is none. */
int	 lpo_st_stem_path(lpo_ctx *, char **path, const char *dir,
	    const char *stem, const char *variant);
void	 lpo_st_close(lpo_st *);		/* NULL is fine */
/*
 * This tensor has been used: what is mapped of it no longer counts as memory
 * of this process.  It stays readable.
 */
void	 lpo_st_drop(const lpo_st *, const struct lpo_st_tensor *);

int64_t	 lpo_st_count(const lpo_st *);
/* i-th by sorted key; NULL outside. */
const struct lpo_st_tensor *lpo_st_at(const lpo_st *, int64_t i);
const struct lpo_st_tensor *lpo_st_find(const lpo_st *, const char *key);
/* A string of __metadata__; NULL where absent. */
const char *lpo_st_meta(const lpo_st *, const char *key);
const json_t *lpo_st_metadata(const lpo_st *);	/* object, may be NULL */
const char *lpo_st_path(const lpo_st *);

/*
 * All elements, converted.  f32 takes F32, F16, BF16, F64 and integers; i64
 * takes I64, I32, U8 (also BOOL).  dst has room for t->count.  LPO_EFORMAT
 * for other types.
 */
int	 lpo_st_f32(lpo_ctx *, float *dst, const struct lpo_st_tensor *t);
int	 lpo_st_i64(lpo_ctx *, int64_t *dst, const struct lpo_st_tensor *t);
/*
 * Elements first .. first + n - 1 of an F32, F16 or BF16 tensor; for several
 * threads at once.
 */
void	 lpo_st_f32_part(float *dst, const struct lpo_st_tensor *t,
	    int64_t first, int64_t n);
/*
 * Find and check: dims in `shape`, -1 matches any.  NULL stores
 * LPO_ENOTFOUND or LPO_EFORMAT with key, found and wanted shape.
 */
const struct lpo_st_tensor *lpo_st_need(lpo_ctx *, const lpo_st *,
	    const char *key, int ndim, const int64_t *shape);

/* Writer. */
typedef struct lpo_stw lpo_stw;

int	 lpo_stw_new(lpo_ctx *, lpo_stw **);
int	 lpo_stw_meta(lpo_stw *, const char *key, const char *value);
/* `data` is borrowed until the write; its elements are of type dt. */
int	 lpo_stw_add(lpo_stw *, const char *key, enum lpo_dtype dt, int ndim,
	    const int64_t *shape, const void *data);
/* f32 data, stored as F32, F16 or BF16 (rounded to nearest even). */
int	 lpo_stw_add_f32(lpo_stw *, const char *key, enum lpo_dtype stored,
	    int ndim, const int64_t *shape, const float *data);
/*
 * Another file's tensor, borrowed with its file, stored likewise; dropped
 * there once it is written.
 */
int	 lpo_stw_add_tensor(lpo_stw *, const char *key, enum lpo_dtype stored,
	    const lpo_st *, const struct lpo_st_tensor *);
/*
 * A tensor that is nowhere in memory: while writing, `get` gives elements
 * first .. first + n - 1 as f32.  arg is borrowed until then.
 */
int	 lpo_stw_add_made(lpo_stw *, const char *key, enum lpo_dtype stored,
	    int ndim, const int64_t *shape, int (*get)(void *arg,
	    int64_t first, float *out, int64_t n), void *arg);
int	 lpo_stw_write(lpo_stw *, const char *path);	/* atomic; "-" stdout */
int	 lpo_stw_write_out(lpo_stw *, lpo_out *);
void	 lpo_stw_free(lpo_stw *);		/* NULL is fine */

#endif
