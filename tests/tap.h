/* TAP for C tests.  A test's exit status is its verdict. */
#ifndef LPO_TAP_H
#define LPO_TAP_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static int tap_n, tap_bad;

__attribute__((format(printf, 2, 3), unused)) static int
ok(int good, const char *fmt, ...)
{
	va_list ap;

	printf("%sok %d - ", good ? "" : "not ", ++tap_n);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
	tap_bad += !good;
	return good;
}

__attribute__((format(printf, 1, 2), unused)) static void
skip(const char *fmt, ...)
{
	va_list ap;

	printf("ok %d # SKIP ", ++tap_n);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

__attribute__((unused)) static int
done_testing(void)
{
	printf("1..%d\n", tap_n);
	return tap_bad != 0;
}

/* The larger of two errors; a NaN is the largest, and stays. */
static inline double
worse(double a, double b)
{
	return isnan(a) || b <= a ? a : b;
}

#endif
