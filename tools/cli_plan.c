/* What a run will take, found out on a backend that only counts. */
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "tools/cli_plan.h"
#include "tools/cli_priv.h"

/* Code, constants and threads' stacks that come with the first walk. */
#define PROGRAM_BYTES ((int64_t)2 << 20)

int64_t
lpo_cli_resident(int64_t *most)
{
	FILE *f = fopen("/proc/self/status", "re");
	long long kb, now = 0;
	char line[128];

	if (most != NULL)
		*most = 0;
	if (f == NULL)
		return 0;
	while (fgets(line, sizeof line, f) != NULL) {
		if (sscanf(line, "VmRSS: %lld", &kb) == 1)
			now = kb << 10;
		if (most != NULL && sscanf(line, "VmHWM: %lld", &kb) == 1)
			*most = kb << 10;
	}
	fclose(f);
	return now;
}

void
lpo_cli_tidy(void)
{
	malloc_trim(0);
}

void
lpo_cli_dry_begin(lpo_cli *cli, struct lpo_cli_dry *d)
{
	int64_t resident = lpo_cli_resident(NULL);

	memset(d, 0, sizeof *d);
	lpo_dry_open(&d->dry, &cli->be);
	d->limit = cli->o.memory_bytes > 0 ? cli->o.memory_bytes :
	    lpo_cli_memory(cli) + (d->dry.host ? resident : 0);
	lpo_memory_mark();
	/* what is said in a plan is said again when it is carried out */
	cli->priv->deaf = !cli->o.dry_run;
}

void
lpo_cli_dry_end(lpo_cli *cli)
{
	cli->priv->deaf = 0;
}

static int64_t
max64(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

void
lpo_cli_dry_phase(struct lpo_cli_dry *d, int keep)
{
	if (keep) {
		d->host_most = max64(d->host_most, lpo_memory_peak());
		d->device_most = max64(d->device_most, d->dry.peak);
	}
	lpo_memory_mark();
	d->dry.peak = d->dry.bytes;
}

/*
 * The program, what it has read, and what its allocator keeps: resident now
 * beyond the blocks that are counted.
 */
int64_t
lpo_cli_dry_program(const struct lpo_cli_dry *d)
{
	lpo_cli_tidy();
	return lpo_cli_resident(NULL) - (lpo_memory_used() -
	    (d->dry.host ? d->dry.bytes : 0)) + PROGRAM_BYTES;
}

int64_t
lpo_cli_dry_host(const struct lpo_cli_dry *d)
{
	return lpo_cli_dry_program(d) + d->more + max64(d->host_most,
	    lpo_memory_peak());
}

int64_t
lpo_cli_dry_device(const struct lpo_cli_dry *d)
{
	return d->dry.host ? 0 : max64(d->device_most, d->dry.peak);
}

int64_t
lpo_cli_dry_over(const struct lpo_cli_dry *d)
{
	return (d->dry.host ? lpo_cli_dry_host(d) : lpo_cli_dry_device(d)) -
	    d->limit;
}

int64_t
lpo_cli_dry_room(const struct lpo_cli_dry *d)
{
	return d->limit - (d->dry.host ? lpo_cli_dry_program(d) + d->more +
	    lpo_memory_used() : d->dry.bytes);
}

int
lpo_cli_dry_fit(struct lpo_cli_dry *d, size_t *room,
    int (*make)(void *, size_t room), size_t (*unmake)(void *), void *arg)
{
	int64_t left, over, was = 0;
	int rc, tries;

	lpo_cli_dry_phase(d, 1);
	left = lpo_cli_dry_room(d);
	for (tries = 0; tries < 8 && left > 0; tries++) {
		if ((rc = make(arg, (size_t)left)) < 0)
			return rc;
		*room = (size_t)left;
		if ((over = lpo_cli_dry_over(d)) <= 0)
			return 0;
		was = (int64_t)unmake(arg);
		lpo_cli_dry_phase(d, 0);
		left = (was < left ? was : left) - over;
	}
	return 1;
}

/* ------------------------------------------------------------------ words */

void
lpo_cli_plan_bytes(lpo_cli *cli, const char *name, int64_t bytes)
{
	lpo_cli_plan(cli, name, "%.1f MiB", (double)bytes / 1048576);
}

void
lpo_cli_plan_memory(lpo_cli *cli, const struct lpo_cli_dry *d)
{
	if (!d->dry.host)
		lpo_cli_plan_bytes(cli, "memory of the device",
		    lpo_cli_dry_device(d));
	lpo_cli_plan_bytes(cli, "memory, at most", lpo_cli_dry_host(d));
	lpo_cli_plan_bytes(cli, cli->o.memory_bytes > 0 ? "--memory" :
	    "memory there is", d->limit);
}

double
lpo_cli_load_s(int64_t bytes)
{
	return (double)bytes / 0.7e9;
}

void
lpo_cli_plan_seconds(lpo_cli *cli, const char *name, double s)
{
	char text[48];

	lpo_duration_text(text, sizeof text, s);
	lpo_cli_plan(cli, name, s < 60 ? "%.1f s" : "%.0f s (%s)", s, text);
}

int
lpo_cli_refuse(lpo_cli *cli, const struct lpo_cli_dry *d, int64_t need,
    const char *parts, const char *ways)
{
	char own[64] = "";

	/* then it was not for its size: an allocation failed on the way */
	if (need <= d->limit) {
		lpo_clear(cli->ctx);
		return lpo_fail(cli->ctx, LPO_ENOMEM,
		    "out of memory while planning");
	}
	/* the next attempt may find itself a little larger */
	if (cli->o.memory_bytes > 0)
		snprintf(own, sizeof own, "--memory %lldM%s",
		    (long long)((need >> 20) + 4), ways[0] ? ", " : "");
	lpo_clear(cli->ctx);
	return lpo_fail(cli->ctx, LPO_ENOMEM, "this run needs %lld MiB (%s) "
	    "and %s %lld MiB%s%s%s", (long long)((need >> 20) + 1), parts,
	    cli->o.memory_bytes > 0 ? "--memory allows" : "there are",
	    (long long)(d->limit >> 20), own[0] || ways[0] ?
	    "; what would make it fit: " : "", own, ways);
}

/* ------------------------------------------------- what an attempt settled */

int
lpo_cli_recall(lpo_cli *cli, const lpo_state *st, json_t **out)
{
	char *path = lpo_state_file(cli->ctx, st, "plan.json");
	int rc = 0;

	*out = NULL;
	if (path == NULL)
		return LPO_ENOMEM;
	if (lpo_file_exists(path))
		rc = lpo_json_load_file(cli->ctx, out, path, 1 << 16);
	lpo_free(path);
	return rc;
}

int
lpo_cli_remember(lpo_cli *cli, const lpo_state *st, const json_t *j)
{
	char *path = lpo_state_file(cli->ctx, st, "plan.json");
	char *text = lpo_json_dumps(cli->ctx, j);
	int rc = path == NULL || text == NULL ? LPO_ENOMEM :
	    lpo_file_write(cli->ctx, path, text, strlen(text));

	lpo_free(path);
	lpo_free(text);
	return rc;
}
