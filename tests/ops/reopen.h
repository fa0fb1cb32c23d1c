/* The same level again with another number of threads. */
#ifndef TESTS_OPS_REOPEN_H
#define TESTS_OPS_REOPEN_H

#include "kernels/kernel.h"

static int
reopen(lpo_backend *be, int threads)
{
	enum lpo_isa isa = be->isa;

	lpo_cpu_close(be);
	return lpo_cpu_open(be, isa, threads);
}

#endif
