/* The context: errors kept, memory, the n-th allocation failing. */
#include <stdint.h>
#include <string.h>

#include "lib/base/ctx.h"
#include "lib/base/mem.h"
#include "tests/tap.h"

static char said[64];

static void
on_notice(void *arg, const char *text)
{
	snprintf(said, sizeof(said), "%s%s", (char *)arg, text);
}

static void
errors(lpo_ctx *c)
{
	char big[6000];

	ok(lpo_errcode(c) == 0 && lpo_errmsg(c)[0] == '\0', "clean");
	ok(lpo_fail(c, LPO_EIO, "row %d", 17) == LPO_EIO &&
	    strcmp(lpo_errmsg(c), "row 17") == 0, "stored");
	ok(lpo_fail(c, LPO_EDB, "later") == LPO_EDB && lpo_errcode(c) ==
	    LPO_EIO && strcmp(lpo_errmsg(c), "row 17") == 0, "first kept");
	ok(lpo_fail_prefix(c, "%s", "a.csv") == LPO_EIO &&
	    strcmp(lpo_errmsg(c), "a.csv: row 17") == 0, "prefix");
	lpo_clear(c);
	ok(lpo_errcode(c) == 0 && lpo_errmsg(c)[0] == '\0', "cleared");
	memset(big, 'x', sizeof(big));
	big[sizeof(big) - 1] = '\0';
	lpo_fail(c, LPO_EINVAL, "%s", big);
	lpo_fail_prefix(c, "%s", big);
	ok(strlen(lpo_errmsg(c)) < sizeof(big), "long texts are cut");
	lpo_clear(c);
	lpo_notice(c, "dropped");
	lpo_ctx_on_notice(c, on_notice, (void *)(uintptr_t)"n: ");
	lpo_notice(c, "%d left", 3);
	ok(strcmp(said, "n: 3 left") == 0, "notice");
}

static void
memory(lpo_ctx *c)
{
	char *p, *q;
	size_t i, zero = 1;

	p = lpo_alloc(c, 1000, 3);
	for (i = 0; i < 3000; i++)
		zero &= p[i] == 0;
	ok(zero && (uintptr_t)p % 64 == 0, "zeroed, aligned to 64");
	memset(p, 7, 3000);
	q = lpo_realloc(c, p, 100000);
	ok(q != NULL && q[2999] == 7, "realloc keeps");
	lpo_free(q);
	p = lpo_alloc(c, 0, 8);
	ok(p != NULL, "nothing is something to free");
	lpo_free(p);
	ok(lpo_alloc(c, SIZE_MAX / 4, 5) == NULL && lpo_errcode(c) ==
	    LPO_ENOMEM, "overflow: %s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_alloc(c, SIZE_MAX, 1) == NULL && lpo_errcode(c) ==
	    LPO_ENOMEM, "too much");
	lpo_clear(c);
	p = lpo_asprintf(c, "%s-%05d", "x", 42);
	ok(strcmp(p, "x-00042") == 0, "asprintf");
	lpo_free(p);
	lpo_free(NULL);
}

static void
failing(lpo_ctx *c)
{
	lpo_ctx *other;
	void *p[3];
	int i, which = -1;

	lpo_alloc_fail_at(1);
	for (i = 0; i < 3; i++)
		if ((p[i] = lpo_alloc(c, 1, 1)) == NULL)
			which = which < 0 ? i : 99;
	lpo_alloc_fail_at(-1);
	ok(which == 1 && lpo_errcode(c) == LPO_ENOMEM, "the second fails, "
	    "once");
	lpo_clear(c);
	for (i = 0; i < 3; i++)
		lpo_free(p[i]);
	lpo_alloc_fail_at(0);
	ok(lpo_strdup(c, "x") == NULL && lpo_errcode(c) == LPO_ENOMEM,
	    "strdup");
	lpo_clear(c);
	lpo_alloc_fail_at(0);
	ok(lpo_asprintf(c, "x") == NULL && lpo_errcode(c) == LPO_ENOMEM,
	    "asprintf");
	lpo_clear(c);
	lpo_alloc_fail_at(0);
	other = lpo_ctx_new();
	lpo_alloc_fail_at(-1);
	ok(other == NULL, "a context");
	lpo_ctx_free(other);
	lpo_alloc_fail_at(0);
	ok(lpo_raw_alloc(1) == NULL, "the raw one");
	lpo_alloc_fail_at(-1);
}

int
main(void)
{
	volatile sig_atomic_t stop = 0;
	lpo_ctx *c = lpo_ctx_new();

	errors(c);
	memory(c);
	failing(c);
	ok(!lpo_ctx_stopped(c), "no flag, no stop");
	lpo_ctx_stop_flag(c, &stop);
	ok(!lpo_ctx_stopped(c), "not set");
	stop = 1;
	ok(lpo_ctx_stopped(c), "set");
	lpo_ctx_free(c);
	lpo_ctx_free(NULL);
	return done_testing();
}
