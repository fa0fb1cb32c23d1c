/* A backend that only counts. */
#include "lib/nn/dry.h"

#include <string.h>
#include <sys/mman.h>

#include "lib/base/ctx.h"
#include "lib/base/mem.h"

#define HUGE_BYTES ((int64_t)2 << 20)

/*
 * A piece of device memory: addresses of zeros that take memory only where
 * something is written.
 */
struct lpo_dry_block {
	void *at;
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

/* Room for one more block; -1: there is none. */
static int
grow(struct lpo_dry *d)
{
	struct lpo_dry_block *b;

	if (d->n < d->cap)
		return 0;
	b = lpo_raw_realloc(d->block, (size_t)(2 * d->cap + 256) *
	    sizeof(*b));
	if (b == NULL)
		return -1;
	d->block = b;
	d->cap = 2 * d->cap + 256;
	return 0;
}

static void *
dry_alloc(lpo_backend *be, size_t bytes)
{
	struct lpo_dry *d = (struct lpo_dry *)be;
	struct lpo_dry_block *b;

	if (bytes > SIZE_MAX / 4 || grow(d) < 0)
		return NULL;
	b = &d->block[d->n];
	b->bytes = taken(d, bytes > 0 ? bytes : 1);
	b->at = mmap(NULL, (size_t)b->bytes, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (b->at == MAP_FAILED) {
		/* memory that must be there to be promised: addresses only */
		b->at = mmap(NULL, (size_t)b->bytes, PROT_NONE, MAP_PRIVATE |
		    MAP_ANONYMOUS, -1, 0);
		d->promised = 0;
	}
	if (b->at == MAP_FAILED)
		return NULL;
	if (b->bytes >= 2 * HUGE_BYTES)
		(void)madvise(b->at, (size_t)b->bytes, MADV_HUGEPAGE);
	d->n++;
	add(d, b->bytes);
	return b->at;
}

static void
dry_free(lpo_backend *be, void *p)
{
	struct lpo_dry *d = (struct lpo_dry *)be;
	int64_t i;

	for (i = d->n - 1; i >= 0 && p != NULL; i--) {
		if (d->block[i].at != p)
			continue;
		munmap(p, (size_t)d->block[i].bytes);
		add(d, -d->block[i].bytes);
		d->block[i] = d->block[--d->n];
		break;
	}
	if (d->n == 0) {
		lpo_raw_free(d->block);
		d->block = NULL;
		d->cap = 0;
	}
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

/* The host's memory, and counted as that, whatever the device. */
struct landing {
	size_t bytes;
	char *at;
};

static void *
dry_landing_new(lpo_backend *be, size_t bytes)
{
	struct landing *l = lpo_raw_alloc(sizeof(*l));

	(void)be;
	if (l == NULL)
		return NULL;
	l->bytes = bytes > 0 ? bytes : 1;
	l->at = mmap(NULL, l->bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS |
	    MAP_NORESERVE, -1, 0);
	if (l->at == MAP_FAILED) {
		lpo_raw_free(l);
		return NULL;
	}
	lpo_memory_add((int64_t)l->bytes);
	return l;
}

static void
dry_landing_free(lpo_backend *be, void *landing)
{
	struct landing *l = landing;

	(void)be;
	if (l == NULL)
		return;
	lpo_memory_add(-(int64_t)l->bytes);
	munmap(l->at, l->bytes);
	lpo_raw_free(l);
}

static int
dry_landed(lpo_backend *be, void *landing, const void **host)
{
	(void)be;
	*host = ((struct landing *)landing)->at;
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
	d->real = real->k;
	d->promised = 1;
	d->k = *real->k;
	d->k.alloc = dry_alloc;
	d->k.free = dry_free;
	d->k.upload = dry_move;
	d->k.copy = dry_move;
	d->k.download = dry_download;
	d->k.landing_new = dry_landing_new;
	d->k.landing_free = dry_landing_free;
	d->k.land = dry_move;
	d->k.landed = dry_landed;
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

const struct lpo_kernels *
lpo_dry_real(const lpo_backend *be)
{
	const struct lpo_dry *d = (const struct lpo_dry *)be;

	return lpo_dry_is(be) && d->host && d->promised ? d->real : NULL;
}
