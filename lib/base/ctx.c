/*
 * The context, and the only callers of malloc.
 */
#include "lib/base/ctx.h"

#include <malloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"

#define ALIGN 64

struct lpo_ctx {
	int code;
	char text[4096];	/* no allocation on the way to an error */
	void (*notice)(void *, const char *);
	void *notice_arg;
	const volatile sig_atomic_t *stop, *ask;
	void (*answer)(void *);
	void *answer_arg;
	const char *variant;
};

static _Atomic long fail_at = -1;

void
lpo_alloc_fail_at(long n)
{
	atomic_store(&fail_at, n);
}

/* 1 when this allocation is the one a test wants to fail. */
static int
must_fail(void)
{
	if (atomic_load_explicit(&fail_at, memory_order_relaxed) < 0)
		return 0;
	return atomic_fetch_sub(&fail_at, 1) == 0;
}

/* ------------------------------------------------- what large blocks take */

#define LARGE ((size_t)64 << 10)

static _Atomic int64_t used, peak;

void
lpo_memory_add(int64_t bytes)
{
	int64_t now = atomic_fetch_add(&used, bytes) + bytes;
	int64_t most = atomic_load(&peak);

	while (now > most && !atomic_compare_exchange_weak(&peak, &most, now))
		;
}

int64_t
lpo_memory_used(void)
{
	return atomic_load(&used);
}

int64_t
lpo_memory_peak(void)
{
	return atomic_load(&peak);
}

void
lpo_memory_mark(void)
{
	atomic_store(&peak, atomic_load(&used));
}

/* sign 1: p has come, -1: it is about to go. */
static void
tally(void *p, int sign)
{
	size_t bytes = p != NULL ? malloc_usable_size(p) : 0;

	if (bytes >= LARGE)
		lpo_memory_add(sign * (int64_t)bytes);
}

void *
lpo_raw_alloc(size_t bytes)
{
	void *p = must_fail() ? NULL : malloc(bytes ? bytes : 1);

	tally(p, 1);
	return p;
}

void *
lpo_raw_realloc(void *p, size_t bytes)
{
	size_t was = p != NULL ? malloc_usable_size(p) : 0;
	void *q = must_fail() ? NULL : realloc(p, bytes ? bytes : 1);

	if (q != NULL) {
		if (was >= LARGE)
			lpo_memory_add(-(int64_t)was);
		tally(q, 1);
	}
	return q;
}

void
lpo_raw_free(void *p)
{
	tally(p, -1);
	free(p);
}

lpo_ctx *
lpo_ctx_new(void)
{
	lpo_ctx *c = lpo_raw_alloc(sizeof(*c));

	if (c != NULL)
		memset(c, 0, sizeof(*c));
	return c;
}

void
lpo_ctx_free(lpo_ctx *c)
{
	free(c);
}

int
lpo_fail(lpo_ctx *c, int code, const char *fmt, ...)
{
	va_list ap;

	if (c->code != 0)
		return code;
	c->code = code;
	va_start(ap, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, ap);
	va_end(ap);
	return code;
}

int
lpo_fail_prefix(lpo_ctx *c, const char *fmt, ...)
{
	char old[sizeof(c->text)];
	va_list ap;
	size_t n;

	memcpy(old, c->text, sizeof(old));
	va_start(ap, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, ap);
	va_end(ap);
	n = strlen(c->text);
	snprintf(c->text + n, sizeof(c->text) - n, ": %s", old);
	return c->code;
}

const char *
lpo_errmsg(const lpo_ctx *c)
{
	return c->text;
}

int
lpo_errcode(const lpo_ctx *c)
{
	return c->code;
}

void
lpo_clear(lpo_ctx *c)
{
	c->code = 0;
	c->text[0] = '\0';
}

void
lpo_ctx_on_notice(lpo_ctx *c, void (*fn)(void *, const char *), void *arg)
{
	c->notice = fn;
	c->notice_arg = arg;
}

void
lpo_notice(lpo_ctx *c, const char *fmt, ...)
{
	char text[4096];
	va_list ap;

	if (c->notice == NULL)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->notice(c->notice_arg, text);
}

void
lpo_ctx_stop_flag(lpo_ctx *c, const volatile sig_atomic_t *flag)
{
	c->stop = flag;
}

void
lpo_ctx_on_ask(lpo_ctx *c, const volatile sig_atomic_t *flag,
    void (*fn)(void *), void *arg)
{
	c->ask = flag;
	c->answer = fn;
	c->answer_arg = arg;
}

int
lpo_ctx_stopped(const lpo_ctx *c)
{
	if (c->ask != NULL && *c->ask != 0)
		c->answer(c->answer_arg);
	return c->stop != NULL && *c->stop != 0;
}

void
lpo_ctx_set_variant(lpo_ctx *c, const char *name)
{
	c->variant = name;
}

const char *
lpo_ctx_variant(const lpo_ctx *c)
{
	return c->variant;
}

void *
lpo_alloc(lpo_ctx *c, size_t count, size_t size)
{
	size_t bytes;
	void *p;

	if (__builtin_mul_overflow(count, size, &bytes) ||
	    bytes > SIZE_MAX - ALIGN) {
		lpo_fail(c, LPO_ENOMEM,
		    "cannot allocate %zu items of %zu bytes", count, size);
		return NULL;
	}
	if (bytes == 0)
		bytes = 1;
	p = must_fail() ? NULL :
	    aligned_alloc(ALIGN, (bytes + ALIGN - 1) / ALIGN * ALIGN);
	if (p == NULL) {
		lpo_fail(c, LPO_ENOMEM, "cannot allocate %zu bytes", bytes);
		return NULL;
	}
	tally(p, 1);
	return memset(p, 0, bytes);
}

void *
lpo_realloc(lpo_ctx *c, void *old, size_t bytes)
{
	void *p = lpo_raw_realloc(old, bytes);

	if (p == NULL)
		lpo_fail(c, LPO_ENOMEM, "cannot allocate %zu bytes", bytes);
	return p;
}

char *
lpo_strdup(lpo_ctx *c, const char *s)
{
	size_t n = strlen(s) + 1;
	char *p = lpo_realloc(c, NULL, n);

	return p != NULL ? memcpy(p, s, n) : NULL;
}

char *
lpo_asprintf(lpo_ctx *c, const char *fmt, ...)
{
	va_list ap;
	char *p;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	if (n < 0) {
		lpo_fail(c, LPO_EINVAL, "cannot format text '%s'", fmt);
		return NULL;
	}
	p = lpo_realloc(c, NULL, (size_t)n + 1);
	if (p == NULL)
		return NULL;
	va_start(ap, fmt);
	vsnprintf(p, (size_t)n + 1, fmt, ap);
	va_end(ap);
	return p;
}

void
lpo_free(void *p)
{
	tally(p, -1);
	free(p);
}
