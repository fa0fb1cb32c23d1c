/*
 * Backends for tests, by name: a level of the CPU, "auto" (the best one it
 * has) or "cuda".  With LPO_LEVEL=NAME in the environment only that one is
 * tested, and has to be there: tests/cuda.sh has no time for the others.
 */
#ifndef LPO_TESTS_BACKEND_H
#define LPO_TESTS_BACKEND_H

#include <stdlib.h>
#include <string.h>

#include "kernels/plugin.h"
#include "tests/tap.h"

/* 1: open.  What this machine lacks is skipped by name. */
__attribute__((unused)) static int
backend_open(lpo_backend *be, const char *level, int threads, int flags)
{
	const char *only = getenv("LPO_LEVEL");
	char text[256] = "";
	int cuda = strcmp(level, "cuda") == 0, rc;

	if (only != NULL && strcmp(only, level) != 0)
		return 0;
	rc = cuda ? lpo_cuda_open(be, 0, flags, text, sizeof(text)) :
	    lpo_cpu_open(be, (enum lpo_isa)lpo_isa_parse(level), threads);
	if (rc == LPO_ENODEV && only == NULL)
		cuda ? skip("no CUDA device: %s", text) : skip("no %s", level);
	else if (rc != 0)
		ok(0, "%s does not open: %d %s", level, rc, text);
	return rc == 0;
}

__attribute__((unused)) static int
on_cuda(const lpo_backend *be)
{
	return strcmp(be->k->name, "cuda") == 0;
}

__attribute__((unused)) static void
backend_close(lpo_backend *be)
{
	if (on_cuda(be))
		lpo_cuda_close(be);
	else
		lpo_cpu_close(be);
}

#endif
