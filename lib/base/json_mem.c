/*
 * jansson's memory.  Its parser takes a failed allocation for bad input
 * ("invalid token"), and 2.14 frees what it never got.  So a failure is noted
 * here and served from a reserve: nothing inside jansson sees it, the parser
 * gets no more to read (json.c), and no text and no file is made afterwards.
 */
#include <stdalign.h>
#include <stdatomic.h>

#include <jansson.h>

#include "lib/base/json.h"
#include "lib/base/mem.h"

/*
 * What the rest of one chunk of input and the building of one record need;
 * where it does not reach, jansson's own ways have to.
 */
enum { RESERVE = 256 << 10, ALIGN = 16 };

static alignas(ALIGN) unsigned char reserve[RESERVE];
static atomic_size_t used;
static atomic_int failed;

static void *
take(size_t bytes)
{
	void *p = lpo_raw_alloc(bytes);
	size_t at;

	if (p != NULL)
		return p;
	atomic_store(&failed, 1);
	if (bytes > RESERVE)
		return NULL;
	bytes = (bytes + ALIGN) / ALIGN * ALIGN;
	at = atomic_fetch_add(&used, bytes);
	if (at + bytes > RESERVE) {
		atomic_fetch_sub(&used, bytes);
		return NULL;
	}
	return reserve + at;
}

static void
give(void *p)
{
	unsigned char *b = p;

	if (b < reserve || b >= reserve + RESERVE)
		lpo_raw_free(p);
}

void
lpo_json_memory(void)
{
	json_set_alloc_funcs(take, give);
}

int
lpo_json_memory_failed(void)
{
	return atomic_load_explicit(&failed, memory_order_relaxed);
}
