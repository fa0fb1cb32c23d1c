/* What bench-h200 measures: a GPU, by the plug-in that is linked in. */
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "tests/bench/h200/bench.h"

extern const struct lpo_plugin lpo_plugin;

int
device_open(struct bench *b, const char *name, char *text, size_t text_bytes)
{
	int end = 0, rc;

	if (name != NULL && strcmp(name, "cuda") != 0 &&
	    (sscanf(name, "cuda:%d%n", &b->device, &end) != 1 ||
	    name[end] != '\0')) {
		snprintf(text, text_bytes, "no device '%s': this program "
		    "measures cuda or cuda:N", name);
		return LPO_ENODEV;
	}
	rc = lpo_plugin.open(&b->be, b->device, 0, text, text_bytes);
	b->gpu = 1;
	b->bf16 = 1;
	/* the host's part of the work, as the tools have it */
	b->be.threads = omp_get_max_threads();
	return rc;
}

void
device_close(struct bench *b)
{
	lpo_plugin.close(&b->be);
}

void
device_say(struct bench *b)
{
	struct lpo_device d[16];
	char text[256];
	int n = lpo_plugin.devices(d, 16, text, sizeof(text));

	if (b->device < n)
		bench_say("%s, sm_%d%d, %d processors, %zu MiB, %zu MiB free",
		    d[b->device].name, d[b->device].major,
		    d[b->device].minor, d[b->device].processors,
		    d[b->device].memory_bytes >> 20,
		    d[b->device].free_bytes >> 20);
	bench_say("%s; %d host threads", lpo_plugin.versions(),
	    b->be.threads);
}
