/*
 * The context: error text, memory, notices and the stop flag.  One context per
 * thread of control; every call that can fail takes it first and returns 0 or
 * a negative LPO_E* whose text lpo_errmsg() gives.
 */
#ifndef LPO_BASE_CTX_H
#define LPO_BASE_CTX_H

#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/error.h"

typedef struct lpo_ctx lpo_ctx;

lpo_ctx	*lpo_ctx_new(void);
void	 lpo_ctx_free(lpo_ctx *);	/* NULL is fine */

/*
 * Store the text of a failure and return `code`.  The first failure since
 * lpo_clear() is kept: later ones are usually its consequences.
 */
int	 lpo_fail(lpo_ctx *, int code, const char *fmt, ...)
	    __attribute__((format(printf, 3, 4)));
/* Put "prefix: " in front of the stored text; returns the stored code. */
int	 lpo_fail_prefix(lpo_ctx *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));
const char *lpo_errmsg(const lpo_ctx *);	/* "" when nothing failed */
int	 lpo_errcode(const lpo_ctx *);		/* 0 when nothing failed */
void	 lpo_clear(lpo_ctx *);

/*
 * Words for people that are not failures ("unverified shard").  The library
 * never prints; the tools set a function that does.  Default: dropped.
 */
void	 lpo_ctx_on_notice(lpo_ctx *, void (*fn)(void *arg, const char *text),
	    void *arg);
void	 lpo_notice(lpo_ctx *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));

/*
 * A flag a signal handler sets.  Long calls look at it between ops and return
 * LPO_ESTOP.
 */
void	 lpo_ctx_stop_flag(lpo_ctx *, const volatile sig_atomic_t *);
int	 lpo_ctx_stopped(const lpo_ctx *);

/*
 * A flag that asks for a word: fn is called, and clears it, where the stop
 * flag is looked at.
 */
void	 lpo_ctx_on_ask(lpo_ctx *, const volatile sig_atomic_t *,
	    void (*fn)(void *arg), void *arg);

/*
 * Which files to take where a model folder has several: "fp16", "non_ema"; NULL
 * (the default): the plain ones.  Borrowed; lib/model/weights.h heeds it.
 */
void	 lpo_ctx_set_variant(lpo_ctx *, const char *name);
const char *lpo_ctx_variant(const lpo_ctx *);

/*
 * The only callers of malloc in the project.  lpo_alloc gives zeroed memory
 * aligned to 64 bytes; NULL with LPO_ENOMEM stored when there is none, also
 * for count * size overflowing.  lpo_realloc keeps the bytes (no zeroing,
 * alignment 16).  Both kinds are released by lpo_free (NULL is fine).
 */
void	*lpo_alloc(lpo_ctx *, size_t count, size_t size);
void	*lpo_realloc(lpo_ctx *, void *, size_t bytes);
char	*lpo_strdup(lpo_ctx *, const char *);
char	*lpo_asprintf(lpo_ctx *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));
void	 lpo_free(void *);

/*
 * Bytes in large blocks of these (64 KiB and more) in use now, and the most
 * at one time since the last mark.  What else belongs to the sum is added by
 * those who know: a backend's memory where it is the host's.
 */
int64_t	 lpo_memory_used(void);
int64_t	 lpo_memory_peak(void);
void	 lpo_memory_mark(void);
void	 lpo_memory_add(int64_t bytes);

/* For tests: the n-th allocation from now on fails once (-1: never). */
void	 lpo_alloc_fail_at(long n);

#endif
