/* lpo-probe --devices: what this machine can compute with, a line each. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/plugin.h"
#include "tools/probe.h"

enum { MAX_DEVICES = 64 };

/* One line; the columns of the table, the keys of --json. */
struct line {
	const char *device, *name, *level;
	int64_t units;		/* threads, multiprocessors */
	int64_t memory_bytes, free_bytes;
	const char *precision;	/* none: not usable */
	const char *library, *features;
};

static int
print_json(lpo_cli *cli, const struct line *l)
{
	json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:s}",
	    "device", l->device, "name", l->name, "level", l->level, "units",
	    (json_int_t)l->units, "memory_bytes", (json_int_t)l->memory_bytes,
	    "free_bytes", (json_int_t)l->free_bytes, "precision",
	    l->precision, "library", l->library, "features", l->features);
	char *text = o != NULL ? json_dumps(o, JSON_COMPACT) : NULL;

	if (text != NULL)
		puts(text);
	json_decref(o);
	if (text == NULL)
		return lpo_fail(cli->ctx, LPO_ENOMEM, "out of memory");
	free(text);
	return 0;
}

static int
print(lpo_cli *cli, const struct line *l)
{
	if (cli->o.json)
		return print_json(cli, l);
	lpo_cli_tsv(stdout, l->device, '\t');
	lpo_cli_tsv(stdout, l->name, '\t');
	lpo_cli_tsv(stdout, l->level, '\t');
	printf("%lld\t%lld\t%lld\t", (long long)l->units,
	    (long long)l->memory_bytes, (long long)l->free_bytes);
	lpo_cli_tsv(stdout, l->precision, '\t');
	lpo_cli_tsv(stdout, l->library, '\t');
	lpo_cli_tsv(stdout, l->features, '\n');
	return 0;
}

/* What the kernel calls the processor, "" where it has no name for it. */
static void
cpu_name(char *out, size_t size)
{
	FILE *f = fopen("/proc/cpuinfo", "re");
	char line[256], *at;

	out[0] = '\0';
	while (f != NULL && out[0] == '\0' && fgets(line, sizeof line, f)) {
		if (strncmp(line, "model name", 10) != 0 ||
		    (at = strchr(line, ':')) == NULL)
			continue;
		at += 1 + strspn(at + 1, " \t");
		at[strcspn(at, "\n")] = '\0';
		snprintf(out, size, "%s", at);
	}
	if (f != NULL)
		fclose(f);
}

static int
print_cpu(lpo_cli *cli)
{
	char name[256];
	struct line l = { .device = "cpu", .name = name,
	    .library = lpo_cpu_library_version(),
	    .features = lpo_cpu_features() };
	int rc;

	/* --isa and --threads count: these are what a program would use */
	cli->o.device = "cpu";
	if ((rc = lpo_cli_backend(cli)) != 0)
		return rc;
	cpu_name(name, sizeof name);
	l.level = lpo_isa_name(cli->be.isa);
	l.units = cli->be.threads;
	l.memory_bytes = (int64_t)sysconf(_SC_PHYS_PAGES) *
	    sysconf(_SC_PAGESIZE);
	l.free_bytes = lpo_cli_memory(cli);
	l.precision = lpo_cli_precision_name(cli, lpo_cli_precision(cli));
	return print(cli, &l);
}

static int
print_cuda(lpo_cli *cli, const struct lpo_device *d, int i)
{
	char device[32], level[32];
	struct line l = { .device = device, .name = d->name, .level = level,
	    .units = d->processors, .memory_bytes = (int64_t)d->memory_bytes,
	    .free_bytes = (int64_t)d->free_bytes,
	    .precision = !d->usable ||
	    cli->o.precision == LPO_PREC_BF16X3 ? "none" :
	    cli->o.precision == LPO_PREC_F32 ? "f32" : "bf16",
	    .library = lpo_cuda_versions(), .features = "" };

	snprintf(device, sizeof device, "cuda:%d", i);
	snprintf(level, sizeof level, "sm_%d%d", d->major, d->minor);
	return print(cli, &l);
}

int
lpo_probe_devices(lpo_cli *cli)
{
	struct lpo_device *list;
	char why[1024] = "";
	int i, n, rc;

	if (!cli->o.json)
		puts("device\tname\tlevel\tunits\tmemory_bytes\tfree_bytes\t"
		    "precision\tlibrary\tfeatures");
	list = lpo_alloc(cli->ctx, MAX_DEVICES, sizeof *list);
	if (list == NULL)
		return LPO_ENOMEM;
	rc = print_cpu(cli);
	n = rc == 0 ? lpo_cuda_devices(list, MAX_DEVICES, why, sizeof why) : 0;
	if (n < 0)
		lpo_cli_note(cli, "no device 'cuda': %s", why);
	for (i = 0; i < n && rc == 0; i++)
		rc = print_cuda(cli, &list[i], i);
	lpo_free(list);
	return rc;
}
