/* Standard input and output, shard patterns, plans, progress. */
#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <omp.h>

#include "tools/cli_plan.h"
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
	return lpo_now_s();
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

/* "lpo-train: train 3/20 iterations (17%), 24.1 s each, ..., 8.5 GB" */
static void
line(void *arg, const char *text, int asked)
{
	lpo_cli *cli = arg;
	struct lpo_cli_priv *p = cli->priv;
	int in_place = p->tty || cli->o.progress;
	double mb = 1e-6 * (double)lpo_cli_resident(NULL);
	char since[48];

	if (in_place)
		fputs("\r\033[K", stderr);
	fprintf(stderr, mb < 1000 ? "%s: %s, %.0f MB" : "%s: %s, %.1f GB",
	    cli->tool->name, text, mb < 1000 ? mb : mb / 1000);
	if (asked) {
		lpo_duration_text(since, sizeof since, lpo_cli_now() -
		    p->begun_s);
		fprintf(stderr, ", running %s", since);
	}
	if (!in_place || asked)
		fputc('\n', stderr);
	fflush(stderr);
	p->line_open = in_place && !asked;
}

/* Only the main thread, between two pieces of work. */
void
lpo_cli_answer(void *arg)
{
	lpo_cli *cli = arg;
	char text[640] = "loading";

	if (omp_in_parallel())
		return;
	lpo_cli_status_flag = 0;
	if (cli->priv->what[0] != '\0')
		lpo_progress_text(&cli->priv->progress, text, sizeof text);
	line(cli, text, 1);
}

void
lpo_cli_progress(lpo_cli *cli, const char *what, double done, int64_t total,
    const char *unit, const char *extra)
{
	struct lpo_cli_priv *p = cli->priv;
	struct lpo_progress *g = &p->progress;

	if (strcmp(p->what, what) != 0 || g->total != total) {
		snprintf(p->what, sizeof p->what, "%s", what);
		lpo_progress_start(g, p->what, unit, total, done, p->tty ||
		    cli->o.progress, cli->o.no_progress ? NULL : line, cli);
	}
	lpo_progress_at(g, done, extra);
	if (lpo_cli_status_flag)
		lpo_cli_answer(cli);
}
