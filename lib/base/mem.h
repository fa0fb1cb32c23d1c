/*
 * The raw allocator under lpo_alloc(), for libraries that take malloc-like
 * hooks (jansson, libcsv): the same counter, so that tests can fail them too.
 */
#ifndef LPO_BASE_MEM_H
#define LPO_BASE_MEM_H

#include <stddef.h>

void	*lpo_raw_alloc(size_t bytes);
void	*lpo_raw_realloc(void *, size_t bytes);
void	 lpo_raw_free(void *);
/* How often they gave NULL so far, in any thread. */
long	 lpo_raw_failures(void);

#endif
