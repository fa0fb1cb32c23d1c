/*
 * The raw allocator under lpo_alloc(), for libraries that take malloc-like
 * hooks: the same counter, so that tests can fail them too.  jansson needs
 * more care: json_mem.c.
 */
#ifndef LPO_BASE_MEM_H
#define LPO_BASE_MEM_H

#include <stddef.h>

void	*lpo_raw_alloc(size_t bytes);
void	*lpo_raw_realloc(void *, size_t bytes);
void	 lpo_raw_free(void *);

#endif
