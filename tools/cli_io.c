/* Standard input and output, shard patterns, plans, progress. */
#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/cli_priv.h"

/* ------------------------------------------------ standard input, output */

int
lpo_cli_to_stdout(const lpo_cli *cli)
{
	return cli->o.output == NULL || strcmp(cli->o.output, "-") == 0;
}

/* The width of the only %d in a pattern, *at its place; -1 if there is none. */
static int
pattern_width(const char *s, const char **at, const char **rest)
{
	char *end;
	long width;

	*at = strchr(s, '%');
	width = strtol(*at + 1, &end, 10);
	*rest = end + 1;
	if (*end != 'd' || width < 0 || width > 18 ||
	    !(isdigit((unsigned char)(*at)[1]) || (*at)[1] == 'd') ||
	    strchr(*rest, '%') != NULL)
		return -1;
	return (int)width;
}

int
lpo_cli_pattern(lpo_cli *cli)
{
	const char *at, *rest;

	if (lpo_cli_to_stdout(cli) || strchr(cli->o.output, '%') == NULL)
		return 0;
	if (pattern_width(cli->o.output, &at, &rest) < 0)
		return lpo_cli_usage(cli, "-o '%s': a shard pattern has one "
		    "%%d, as in enc-%%06d.tar", cli->o.output);
	return 1;
}

char *
lpo_cli_shard_path(lpo_cli *cli, int64_t k)
{
	const char *at, *rest;
	int width = pattern_width(cli->o.output, &at, &rest);

	return lpo_asprintf(cli->ctx, "%.*s%0*lld%s",
	    (int)(at - cli->o.output), cli->o.output, width, (long long)k,
	    rest);
}

int
lpo_cli_binary_stdout(lpo_cli *cli)
{
	if (isatty(STDOUT_FILENO))
		return lpo_cli_usage(cli, "standard output is a terminal: "
		    "binary data goes to a pipe or, with -o, to a file");
	return 0;
}

int
lpo_cli_binary_stdin(lpo_cli *cli)
{
	if (isatty(STDIN_FILENO))
		return lpo_cli_usage(cli, "standard input is a terminal: "
		    "name a file or give a pipe (%s --help)",
		    cli->tool->name);
	return 0;
}

void
lpo_cli_tsv(FILE *f, const char *text, int sep)
{
	for (; *text != '\0'; text++) {
		switch (*text) {
		case '\t':
			fputs("\\t", f);
			break;
		case '\n':
			fputs("\\n", f);
			break;
		case '\\':
			fputs("\\\\", f);
			break;
		default:
			putc(*text, f);
		}
	}
	putc(sep, f);
}

void
lpo_cli_plan(lpo_cli *cli, const char *name, const char *fmt, ...)
{
	char text[1024];
	json_t *o;
	char *line;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (!cli->o.json) {
		lpo_cli_tsv(stdout, name, '\t');
		lpo_cli_tsv(stdout, text, '\n');
		fflush(stdout);		/* what comes next may take a while */
		return;
	}
	o = json_pack("{s:s, s:s}", "name", name, "value", text);
	line = json_dumps(o, JSON_COMPACT);
	if (line != NULL)
		puts(line);
	free(line);
	json_decref(o);
}

/* ------------------------------------------------------------ progress */

double
lpo_cli_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void
lpo_cli_progress_end(lpo_cli *cli)
{
	if (cli->priv != NULL && cli->priv->line_open) {
		fputs("\r\033[K", stderr);
		cli->priv->line_open = 0;
	}
}

int
lpo_cli_want_lines(const lpo_cli *cli)
{
	return !cli->o.no_progress;
}

void
lpo_cli_duration(char *out, size_t size, double s)
{
	long t = s > 0 && s < 1e9 ? (long)(s + 0.5) : 0;

	if (t >= 3600)
		snprintf(out, size, "%ld h %02ld min", t / 3600,
		    t / 60 % 60);
	else if (t >= 60)
		snprintf(out, size, "%ld min %02ld s", t / 60, t % 60);
	else
		snprintf(out, size, "%ld s", t);
}

void
lpo_cli_progress(lpo_cli *cli, const char *what, int64_t done, int64_t total,
    const char *unit, const char *extra)
{
	struct lpo_cli_priv *p = cli->priv;
	int in_place = p->tty || cli->o.progress;
	int asked = lpo_cli_status_flag;
	double now = lpo_cli_now(), rate;
	char eta[32] = "", of[32] = "";

	if (p->started == 0 || strcmp(p->what, what) != 0) {
		snprintf(p->what, sizeof p->what, "%s", what);
		p->started = p->printed = now;
		p->first = done;
		/* in place: show at once, then five times a second */
		if (!asked && !in_place)
			return;
	} else if (!asked && now - p->printed < (in_place ? 0.2 : 60.0))
		return;
	lpo_cli_status_flag = 0;
	if (!asked && cli->o.no_progress)
		return;
	p->printed = now;
	rate = now > p->started ? (double)(done - p->first) /
	    (now - p->started) : 0;
	if (total > 0)
		snprintf(of, sizeof of, "/%lld", (long long)total);
	if (total > 0 && rate > 0) {
		memcpy(eta, ", ", 3);
		lpo_cli_duration(eta + 2, sizeof eta - 2,
		    (double)(total - done) / rate);
	}
	fprintf(stderr, "%s%s: %s %lld%s %s, %.*f/s%s%s%s%s",
	    in_place ? "\r\033[K" : "", cli->tool->name, what,
	    (long long)done, of, unit, rate < 10 ? 2 : 0, rate, eta,
	    extra != NULL ? ", " : "", extra != NULL ? extra : "",
	    in_place && !asked ? "" : "\n");
	p->line_open = in_place && !asked;
}
