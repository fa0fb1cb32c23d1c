/* What h200.t measures: the CPU. */
#include <stdio.h>
#include <string.h>

#include "tests/bench/h200/bench.h"

int
device_open(struct bench *b, const char *name, char *text, size_t text_bytes)
{
	int rc, isa = LPO_ISA_AUTO;

	if (name != NULL && strncmp(name, "cpu:", 4) == 0)
		isa = lpo_isa_parse(name + 4);
	else if (name != NULL && strcmp(name, "cpu") != 0)
		isa = LPO_EINVAL;
	if (isa < 0) {
		snprintf(text, text_bytes, "no device '%s': this program "
		    "measures cpu or cpu:LEVEL, what 'make bench-h200' makes "
		    "GPUs", name);
		return LPO_ENODEV;
	}
	if ((rc = lpo_cpu_open(&b->be, (enum lpo_isa)isa, 0)) < 0)
		snprintf(text, text_bytes, "no level '%s' here", name + 4);
	b->bf16 = 1;
	return rc;
}

void
device_close(struct bench *b)
{
	lpo_cpu_close(&b->be);
}

void
device_say(struct bench *b)
{
	bench_say("CPU at level %s, %d threads, %s", lpo_isa_name(b->be.isa),
	    b->be.threads, lpo_cpu_library_version());
}
