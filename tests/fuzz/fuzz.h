/*
 * What the fuzz targets share: a context, a folder in memory, checks, and a
 * bound on the memory that an input of a given size may take.  A target is
 *
 *	int
 *	LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
 *	{
 *		lpo_ctx *c = fuzz_begin();
 *		... CHECK(what must hold) ...
 *		return fuzz_end(rc, fixed + factor * n);
 *	}
 */
#ifndef LPO_TESTS_FUZZ_H
#define LPO_TESTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"

#define FUZZ_UNUSED __attribute__((unused)) static

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FUZZ_ASAN 1
#endif
#ifdef FUZZ_ASAN
/* of sanitizer/allocator_interface.h, which gcc's library comes without */
size_t	__sanitizer_get_allocated_size(const volatile void *);
int	__sanitizer_install_malloc_and_free_hooks(
	    void (*)(const volatile void *, size_t),
	    void (*)(const volatile void *));
#endif

int	LLVMFuzzerTestOneInput(const uint8_t *, size_t);
const char *fuzz_said(void);

static lpo_ctx *fuzz_c;

#define CHECK(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: %s does not hold (%s)\n", \
			    __FILE__, __LINE__, #x, lpo_errmsg(fuzz_c)); \
			abort(); \
		} \
	} while (0)

static char fuzz_tmp[64], fuzz_text[4200] = "";

/* How the last input was answered: for people, and tests/parity/parsers.py. */
const char *
fuzz_said(void)
{
	return fuzz_text;
}

/* ---- Memory: bytes alive, and the most since fuzz_begin() ---- */

static size_t fuzz_live = (size_t)1 << 40, fuzz_most, fuzz_before;

#ifdef FUZZ_ASAN
static void
fuzz_on_malloc(const volatile void *p, size_t n)
{
	(void)p;
	if ((fuzz_live += n) > fuzz_most)
		fuzz_most = fuzz_live;
}

static void
fuzz_on_free(const volatile void *p)
{
	if (p != NULL)
		fuzz_live -= __sanitizer_get_allocated_size(
		    (const void *)(uintptr_t)p);
}
#endif

static void
fuzz_leave(void)
{
	lpo_clear(fuzz_c);
	lpo_rmtree(fuzz_c, fuzz_tmp);
	lpo_ctx_free(fuzz_c);
}

FUZZ_UNUSED lpo_ctx *
fuzz_begin(void)
{
	if (fuzz_c == NULL) {
		snprintf(fuzz_tmp, sizeof(fuzz_tmp), "%s/lpo-fuzz-XXXXXX",
		    access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
		fuzz_c = lpo_ctx_new();
		if (fuzz_c == NULL || mkdtemp(fuzz_tmp) == NULL)
			abort();
		atexit(fuzz_leave);
#ifdef FUZZ_ASAN
		__sanitizer_install_malloc_and_free_hooks(fuzz_on_malloc,
		    fuzz_on_free);
#endif
	}
	lpo_clear(fuzz_c);
	fuzz_text[0] = '\0';
	fuzz_most = fuzz_before = fuzz_live;
	return fuzz_c;
}

/*
 * rc of the call under test: 0 or more, or a failure, which has a text.
 * limit: bytes of memory this input may have needed at a time.
 */
FUZZ_UNUSED int
fuzz_end(int rc, size_t limit)
{
	snprintf(fuzz_text, sizeof(fuzz_text), "%d %s", rc,
	    lpo_errmsg(fuzz_c));
	CHECK(rc >= 0 || lpo_errmsg(fuzz_c)[0] != '\0');
	CHECK(rc >= 0 || rc == lpo_errcode(fuzz_c));
	CHECK(fuzz_most - fuzz_before <= limit);
	return 0;
}

/* ---- Files ---- */

/* Path of NAME in the folder; valid until the tenth call after it. */
FUZZ_UNUSED const char *
fuzz_path(const char *name)
{
	static char path[10][256];
	static int k;

	k = (k + 1) % 10;
	snprintf(path[k], sizeof(path[k]), "%s/%s", fuzz_tmp, name);
	return path[k];
}

FUZZ_UNUSED const char *
fuzz_put(const char *name, const void *p, size_t n)
{
	const char *path = fuzz_path(name);
	FILE *f = fopen(path, "wb");

	if (f == NULL || (n > 0 && fwrite(p, 1, n, f) != n) ||
	    fclose(f) != 0)
		abort();
	return path;
}

/* A copy with a NUL after it; free() it. */
FUZZ_UNUSED char *
fuzz_string(const uint8_t *p, size_t n)
{
	char *s = malloc(n + 1);

	if (s == NULL)
		abort();
	if (n > 0)
		memcpy(s, p, n);
	s[n] = '\0';
	return s;
}

/* The input cut at lines "----": part i, to the end of the input. */
FUZZ_UNUSED const uint8_t *
fuzz_part(const uint8_t *p, size_t n, int i, size_t *bytes)
{
	const uint8_t *end = p + n, *cut;

	for (;; i--) {
		cut = memmem(p, (size_t)(end - p), "\n----\n", 6);
		*bytes = (size_t)((cut ? cut : end) - p);
		if (i == 0)
			return p;
		p = cut ? cut + 6 : end;
	}
}

/* ---- Tars: a mutated header gets its checksum right again ---- */

FUZZ_UNUSED uint8_t *
fuzz_tar_repair(const uint8_t *p, size_t n)
{
	uint8_t *q = malloc(n + 1);
	size_t at, i;
	unsigned sum, size;
	char field[13];

	if (q == NULL)
		abort();
	memcpy(q, p, n);
	for (at = 0; at + 512 <= n;) {
		for (sum = 0, i = 0; i < 512; i++)
			sum += i >= 148 && i < 156 ? ' ' : q[at + i];
		if (sum == 8 * ' ') {		/* a zero block */
			at += 512;
			continue;
		}
		snprintf((char *)q + at + 148, 8, "%06o", sum);
		q[at + 155] = ' ';
		memcpy(field, q + at + 124, 12);
		field[12] = '\0';
		size = (unsigned)strtoul(field, NULL, 8);
		at += 512 + (size / 512 + (size % 512 != 0)) * (size_t)512;
	}
	return q;
}

#endif
