/*
 * The raw allocator under lpo_alloc(), for libraries that take malloc-like
 * hooks: the same counter, so that tests can fail them too.  Not for jansson:
 * 2.14 frees what it never got when the parser's n-th allocation fails.
 */
#ifndef LPO_BASE_MEM_H
#define LPO_BASE_MEM_H

#include <stddef.h>

void	*lpo_raw_alloc(size_t bytes);
void	*lpo_raw_realloc(void *, size_t bytes);
void	 lpo_raw_free(void *);

#endif
