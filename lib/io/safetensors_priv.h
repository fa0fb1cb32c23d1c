/* Inside of safetensors*.c and torch.c: the table that both formats fill. */
#ifndef LPO_IO_SAFETENSORS_PRIV_H
#define LPO_IO_SAFETENSORS_PRIV_H

#include "lib/io/safetensors.h"

struct lpo_st {
	char *path;
	struct lpo_map *map;	/* one a file; none for memory */
	int n_maps;
	json_t **head;		/* safetensors headers own the keys */
	int n_heads;
	json_t *meta;		/* of the first file, borrowed */
	struct lpo_st_tensor *t;
	int64_t n;
	void **own;		/* keys and values a torch file had made */
	int64_t n_own, cap_own;
};

/* The tensors of one file in memory, added to the table. */
int	 lpo_st_add_safetensors(lpo_ctx *, lpo_st *, const uint8_t *,
	    size_t bytes, const char *file);
int	 lpo_st_add_torch(lpo_ctx *, lpo_st *, const uint8_t *, size_t bytes,
	    const char *file);
/* Of a zip, or of what torch before 1.6 wrote: lpo_st_add_torch() answers. */
int	 lpo_torch_sniff(const uint8_t *, size_t bytes);

/* Sorted by key, each key once. */
int	 lpo_st_finish(lpo_ctx *, lpo_st *);
/* Dimensions from the dtype's name: t->dtype, t->dtype_name; -1: unknown. */
int	 lpo_st_set_dtype(struct lpo_st_tensor *, const char *name);

#endif
