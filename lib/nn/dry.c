/* A backend that only counts. */
#include "lib/nn/dry.h"

#include <string.h>

#include "lib/base/ctx.h"
#include "lib/base/mem.h"

#define HUGE_BYTES ((int64_t)2 << 20)

/* Stands for a piece of device memory. */
struct block {
	int64_t bytes;
};

/* The CPU backend's large blocks are whole large pages (kernels/cpu.c). */
static int64_t
taken(const struct lpo_dry *d, size_t bytes)
{
	int64_t n = (int64_t)bytes, to = d->host && n >= 2 * HUGE_BYTES ?
	    HUGE_BYTES : 64;

	return (n + to - 1) / to * to;
}

static void
add(struct lpo_dry *d, int64_t bytes)
{
	d->bytes += bytes;
	if (d->bytes > d->peak)
		d->peak = d->bytes;
	if (d->host)
		lpo_memory_add(bytes);
}

static void *
dry_alloc(lpo_backend *be, size_t bytes)
{
	struct lpo_dry *d = (struct lpo_dry *)be;
	struct block *b;

	if (bytes > SIZE_MAX / 4 || (b = lpo_raw_alloc(sizeof(*b))) == NULL)
		return NULL;
	b->bytes = taken(d, bytes);
	add(d, b->bytes);
	return b;
}

static void
dry_free(lpo_backend *be, void *p)
{
	struct block *b = p;

	if (b == NULL)
		return;
	add((struct lpo_dry *)be, -b->bytes);
	lpo_raw_free(b);
}

static int
dry_move(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	(void)be;
	(void)dst;
	(void)src;
	(void)bytes;
	return 0;
}

static int
dry_download(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	(void)be;
	(void)src;
	memset(dst, 0, bytes);
	return 0;
}

static int
dry_zero(lpo_backend *be, void *dst, size_t bytes)
{
	(void)be;
	(void)dst;
	(void)bytes;
	return 0;
}

static int
dry_convert(lpo_backend *be, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t n)
{
	(void)be;
	(void)dst;
	(void)dst_dt;
	(void)src;
	(void)src_dt;
	(void)n;
	return 0;
}

void
lpo_dry_open(struct lpo_dry *d, const lpo_backend *real)
{
	memset(d, 0, sizeof(*d));
	d->k = *real->k;
	d->k.alloc = dry_alloc;
	d->k.free = dry_free;
	d->k.upload = dry_move;
	d->k.copy = dry_move;
	d->k.download = dry_download;
	d->k.zero = dry_zero;
	d->k.convert = dry_convert;
	d->k.graph_begin = NULL;
	d->be = *real;
	d->be.k = &d->k;
	d->host = strcmp(real->k->name, "cpu") == 0;
}

int
lpo_dry_is(const lpo_backend *be)
{
	return be != NULL && be->k->alloc == dry_alloc;
}
