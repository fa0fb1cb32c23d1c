/* The compute backend: which device, its precision, its memory. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <omp.h>

#include "tools/cli_priv.h"

int
lpo_cli_on_cuda(const lpo_cli *cli)
{
	return cli->priv->be_open && strcmp(cli->be.k->name, "cuda") == 0;
}

const char *
lpo_cli_level(const lpo_cli *cli)
{
	return lpo_cli_on_cuda(cli) ? cli->priv->level :
	    lpo_isa_name(cli->be.isa);
}

const char *
lpo_cli_library(const lpo_cli *cli)
{
	return lpo_cli_on_cuda(cli) ? cli->priv->library :
	    lpo_cpu_library_version();
}

/* N of "cuda" or "cuda:N", or -1. */
static int
cuda_number(const char *name)
{
	int64_t n = 0;

	if (strncmp(name, "cuda", 4) != 0 || (name[4] != '\0' &&
	    name[4] != ':'))
		return -1;
	if (name[4] == ':' && (lpo_cli_parse_i64(name + 5, &n) != 0 ||
	    n < 0 || n > INT_MAX))
		return -1;
	return (int)n;
}

static int
open_cpu(lpo_cli *cli, lpo_backend *be)
{
	enum lpo_isa isa = LPO_ISA_AUTO;
	int rc;

	if (cli->o.isa != NULL)
		isa = (enum lpo_isa)lpo_isa_parse(cli->o.isa);
	rc = lpo_cpu_open(be, isa, (int)cli->o.threads);
	if (rc == LPO_ENOMEM)
		return lpo_fail(cli->ctx, rc, "cannot use the CPU: out of "
		    "memory");
	if (rc != 0)
		return lpo_fail(cli->ctx, rc, "cannot use the CPU at level "
		    "'%s' (it has: %s)", lpo_isa_name(isa),
		    lpo_cpu_features());
	if (cli->o.precision != LPO_PREC_BF16X3 ||
	    (rc = lpo_cpu_split(be)) == 0)
		return 0;
	isa = be->isa;
	lpo_cpu_close(be);
	return lpo_fail(cli->ctx, rc, "--precision bf16x3 needs the level "
	    "'amx', not '%s' (the CPU has: %s)", lpo_isa_name(isa),
	    lpo_cpu_features());
}

/*
 * What a result follows from besides the options: the device's kind and the
 * libraries' versions, the driver's not among them.
 */
static void
describe(struct lpo_cli_priv *p, int n)
{
	char *driver;

	snprintf(p->where, sizeof p->where, "cuda:%d, %s", n, p->device.name);
	snprintf(p->level, sizeof p->level, "sm_%d%d", p->device.major,
	    p->device.minor);
	snprintf(p->library, sizeof p->library, "%s", lpo_cuda_versions());
	if ((driver = strrchr(p->library, ',')) != NULL)
		*driver = '\0';
}

/* The host's part of the work has its threads as the CPU backend has them. */
static int
open_cuda(lpo_cli *cli, int device)
{
	char text[1024] = "";
	lpo_backend cpu;
	int rc;

	if (cli->o.isa != NULL)
		return lpo_cli_usage(cli, "--isa is for the CPU, not for "
		    "--device %s", cli->o.device);
	if (cli->o.precision == LPO_PREC_BF16X3)
		return lpo_cli_usage(cli, "--precision bf16x3 is for the CPU, "
		    "not for --device %s", cli->o.device);
	if ((rc = open_cpu(cli, &cpu)) != 0)
		return rc;
	rc = lpo_cuda_open(&cli->be, device, 0, text, sizeof text);
	if (rc == 0) {
		cli->be.threads = cpu.threads;
		rc = lpo_cuda_device(&cli->be, &cli->priv->device);
		snprintf(text, sizeof text, "%s", cli->be.k->error(&cli->be));
		if (rc != 0)
			lpo_cuda_close(&cli->be);
	}
	lpo_cpu_close(&cpu);
	if (rc != 0)
		return lpo_fail(cli->ctx, rc, "no device '%s': %s",
		    cli->o.device, text);
	describe(cli->priv, device);
	return 0;
}

int
lpo_cli_backend(lpo_cli *cli)
{
	int n = cuda_number(cli->o.device), rc;

	if (cli->priv->be_open)
		return 0;
	if (n < 0 && strcmp(cli->o.device, "cpu") != 0)
		return lpo_cli_usage(cli, "--device: no device '%s': cpu, "
		    "cuda or cuda:N", cli->o.device);
	rc = n >= 0 ? open_cuda(cli, n) : open_cpu(cli, &cli->be);
	if (rc == 0)
		cli->priv->be_open = 1;
	return rc;
}

int
lpo_cli_threads(lpo_cli *cli)
{
	if (cli->o.threads > 0)
		omp_set_num_threads((int)cli->o.threads);
	return omp_get_max_threads();
}

/*
 * bf16 without native products is slower than f32 and worse: not by auto.
 * Every device that the plug-in has code for has them.
 */
enum lpo_dtype
lpo_cli_precision(const lpo_cli *cli)
{
	if (cli->o.precision == LPO_PREC_AUTO)
		return lpo_cli_on_cuda(cli) || lpo_cpu_has_bf16(cli->be.isa) ?
		    LPO_BF16 : LPO_F32;
	return cli->o.precision == LPO_PREC_BF16 ? LPO_BF16 : LPO_F32;
}

const char *
lpo_cli_precision_name(const lpo_cli *cli, enum lpo_dtype stored)
{
	return stored == LPO_BF16 ? "bf16" : cli->be.split ? "bf16x3" : "f32";
}

/* The number in a one-line file, or INT64_MAX ("max", or no such file). */
static int64_t
number_in(const char *path)
{
	FILE *f = fopen(path, "re");
	long long v;
	int64_t out = INT64_MAX;

	if (f == NULL)
		return out;
	if (fscanf(f, "%lld", &v) == 1)
		out = v;
	fclose(f);
	return out;
}

/*
 * A cgroup's limit is what a container or a batch job really has, whatever
 * the machine says.
 */
static int64_t
host_memory(void)
{
	int64_t best, limit;
	FILE *f;
	char line[128];
	long long kb;

	best = (int64_t)sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
	if ((f = fopen("/proc/meminfo", "re")) != NULL) {
		while (fgets(line, sizeof line, f) != NULL)
			if (sscanf(line, "MemAvailable: %lld kB", &kb) == 1)
				best = kb * 1024;
		fclose(f);
	}
	limit = number_in("/sys/fs/cgroup/memory.max");
	if (limit != INT64_MAX) {
		limit -= number_in("/sys/fs/cgroup/memory.current");
		if (limit > 0 && limit < best)
			best = limit;
	}
	return best;
}

/*
 * A device's free memory less what its libraries take when they are first
 * used: the code of kernels, and workspaces of their own.
 */
static int64_t
device_memory(lpo_backend *be)
{
	const int64_t kept = (int64_t)512 << 20;
	size_t left = 0, all = 0;

	if (be->k->memory(be, &left, &all) != 0 || (int64_t)left < kept)
		return 0;
	return (int64_t)left - kept;
}

int64_t
lpo_cli_memory(lpo_cli *cli)
{
	if (cli->o.memory_bytes > 0)
		return cli->o.memory_bytes;
	return lpo_cli_on_cuda(cli) ? device_memory(&cli->be) : host_memory();
}
