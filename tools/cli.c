/* Options, words, signals, exit status, compute backend. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <archive.h>
#include <omp.h>
#include <sqlite3.h>

#include "tools/cli_priv.h"

#define COMMON(name, letter, arg, type, member, flags, help) \
	{ name, letter, arg, help, type, \
	  offsetof(struct lpo_cli_common, member), flags, 0, 0 }

static const struct lpo_cli_option common_rows[] = {
	{ "common options", 0, NULL, NULL, LPO_CLI_FLAG, 0, LPO_CLI_HEADING,
	  0, 0 },
	COMMON("model", 'm', "DIR", LPO_CLI_STRING, model, 0,
	    "diffusers folder"),
	COMMON("output", 'o', "PATH", LPO_CLI_STRING, output, 0,
	    "file, folder or shard pattern with one %d; '-' is stdout"),
	COMMON("db", 0, "FILE", LPO_CLI_STRING, db, 0,
	    "SQLite database of runs (lpo.db beside the output); none"),
	COMMON("device", 'd', "NAME", LPO_CLI_STRING, device, 0,
	    "cpu or cuda[:N] (cpu)"),
	COMMON("precision", 0, "auto|f32|bf16", LPO_CLI_CHOICE, precision, 0,
	    "storage of activations and weights (auto)"),
	COMMON("isa", 0, "LEVEL", LPO_CLI_STRING, isa, 0,
	    "portable, avx2, avx512 or amx: not above this level"),
	{ "threads", 'j', "N", "threads (all cores this process may use)",
	  LPO_CLI_I64, offsetof(struct lpo_cli_common, threads), 0, 0, 4096 },
	COMMON("memory", 0, "BYTES", LPO_CLI_BYTES, memory_bytes, 0,
	    "memory to fit into, suffix K, M, G (what is available)"),
	COMMON("seed", 0, "N", LPO_CLI_U64, seed, LPO_CLI_RESULT,
	    "every draw follows from it (42)"),
	{ "checkpoint", 0, "S", "seconds between saved states (600)",
	  LPO_CLI_F64, offsetof(struct lpo_cli_common, checkpoint_s), 0,
	  0, 1e9 },
	COMMON("dry-run", 0, NULL, LPO_CLI_FLAG, dry_run, 0,
	    "print the plan, do nothing"),
	COMMON("json", 0, NULL, LPO_CLI_FLAG, json, 0,
	    "machine-readable stdout where the default is TSV"),
	COMMON("force", 0, NULL, LPO_CLI_FLAG, force, 0,
	    "overwrite a finished output of another run"),
	COMMON("fresh", 0, NULL, LPO_CLI_FLAG, fresh, 0,
	    "discard saved state"),
	COMMON("quiet", 'q', NULL, LPO_CLI_FLAG, quiet, 0,
	    "errors only"),
	COMMON("verbose", 'v', NULL, LPO_CLI_FLAG, verbose, 0,
	    "more words on stderr"),
	COMMON("version", 'V', NULL, LPO_CLI_FLAG, version, 0,
	    "print the version and leave"),
	COMMON("progress", 0, NULL, LPO_CLI_FLAG, progress, 0,
	    "progress in place even if stderr is no terminal"),
	COMMON("no-progress", 0, NULL, LPO_CLI_FLAG, no_progress, 0,
	    "no progress"),
	COMMON("help", 'h', NULL, LPO_CLI_FLAG, help, 0,
	    "print this and leave"),
	{ NULL, 0, NULL, NULL, LPO_CLI_FLAG, 0, 0, 0, 0 }
};

/* ------------------------------------------------------------- signals */

static volatile sig_atomic_t stop_flag, status_flag;

static void
on_stop(int sig)
{
	(void)sig;
	stop_flag = 1;
}

static void
on_status(int sig)
{
	(void)sig;
	status_flag = 1;
}

/*
 * No SA_RESTART: a read that waits for a pipe must come back, or a stop would
 * wait with it.  SIGINT's handler is for once; the second one kills.
 */
static void
catch_signals(void)
{
	struct sigaction sa;

	memset(&sa, 0, sizeof sa);
	sigemptyset(&sa.sa_mask);
	sa.sa_handler = on_stop;
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGUSR1, &sa, NULL);
	sa.sa_flags = SA_RESETHAND;
	sigaction(SIGINT, &sa, NULL);
	sa.sa_flags = SA_RESTART;
	sa.sa_handler = on_status;
	sigaction(SIGUSR2, &sa, NULL);
	sa.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &sa, NULL);
}

/* --------------------------------------------------------------- words */

static void
say(lpo_cli *cli, const char *prefix, const char *fmt, va_list ap)
{
	char text[4096];

	vsnprintf(text, sizeof text, fmt, ap);
	lpo_cli_progress_end(cli);
	fprintf(stderr, "%s: %s%s\n", cli->tool->name, prefix, text);
}

int
lpo_cli_usage(lpo_cli *cli, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(cli, "", fmt, ap);
	va_end(ap);
	return LPO_CLI_USAGE;
}

void
lpo_cli_note(lpo_cli *cli, const char *fmt, ...)
{
	va_list ap;

	if (cli->o.quiet)
		return;
	va_start(ap, fmt);
	say(cli, "", fmt, ap);
	va_end(ap);
}

void
lpo_cli_detail(lpo_cli *cli, const char *fmt, ...)
{
	va_list ap;

	if (cli->o.quiet || !cli->o.verbose)
		return;
	va_start(ap, fmt);
	say(cli, "", fmt, ap);
	va_end(ap);
}

void
lpo_cli_skip(lpo_cli *cli, const char *fmt, ...)
{
	va_list ap;

	cli->skipped++;
	va_start(ap, fmt);
	say(cli, "skipped ", fmt, ap);
	va_end(ap);
}

static void
notice(void *arg, const char *text)
{
	lpo_cli_note(arg, "%s", text);
}

/* ------------------------------------------------------------- parsing */

int
lpo_cli_parse_i64(const char *s, int64_t *out)
{
	char *end;
	long long v;

	errno = 0;
	v = strtoll(s, &end, 10);
	if (end == s || *end != '\0' || errno != 0 || isspace((unsigned char)*s))
		return -1;
	*out = v;
	return 0;
}

int
lpo_cli_parse_f64(const char *s, double *out)
{
	char *end;
	double v;

	v = strtod(s, &end);
	if (end == s || *end != '\0' || !isfinite(v) ||
	    isspace((unsigned char)*s))
		return -1;
	*out = v;
	return 0;
}

static int
parse_u64(const char *s, uint64_t *out)
{
	char *end;
	unsigned long long v;

	errno = 0;
	v = strtoull(s, &end, 0);
	/* strtoull takes "-1"; a seed of 2^64 - 1 nobody asked for */
	if (end == s || *end != '\0' || errno != 0 ||
	    !isdigit((unsigned char)*s))
		return -1;
	*out = v;
	return 0;
}

static int
parse_bytes(const char *s, int64_t *out)
{
	static const char suffix[] = "KMGT";
	const char *at;
	char *end;
	double v;

	v = strtod(s, &end);
	if (end == s || !(v >= 0))
		return -1;
	if (*end != '\0' &&
	    (at = strchr(suffix, toupper((unsigned char)*end))) != NULL) {
		v = ldexp(v, 10 * (int)(at - suffix + 1));
		end++;
		if (*end == 'i')
			end++;
		if (*end == 'B')
			end++;
	}
	if (*end != '\0' || v > 9e18)
		return -1;
	*out = (int64_t)v;
	return 0;
}

/* Index of `word` in "a|b|c", or -1. */
static int
choice(const char *words, const char *word)
{
	size_t len = strlen(word);
	int i;

	for (i = 0; *words != '\0'; i++) {
		size_t n = strcspn(words, "|");

		if (n == len && memcmp(words, word, n) == 0)
			return i;
		words += n + (words[n] == '|');
	}
	return -1;
}

static int
list_add(lpo_cli *cli, struct lpo_cli_list *l, const char *s)
{
	const char **v = lpo_realloc(cli->ctx, l->v,
	    (size_t)(l->n + 1) * sizeof *v);

	if (v == NULL)
		return LPO_ENOMEM;
	l->v = v;
	l->v[l->n++] = s;
	return 0;
}

static int
bad_value(lpo_cli *cli, const struct lpo_cli_option *r, const char *s)
{
	if (r->type == LPO_CLI_CHOICE)
		return lpo_cli_usage(cli, "--%s: '%s' is none of %s", r->name,
		    s, r->arg);
	if (r->min != r->max)
		return lpo_cli_usage(cli,
		    "--%s: '%s' is not a number in %g..%g", r->name, s,
		    r->min, r->max);
	return lpo_cli_usage(cli, "--%s: '%s' is not a number", r->name, s);
}

static int
store(lpo_cli *cli, int i, const char *s)
{
	const struct lpo_cli_option *r = cli->priv->row[i];
	void *p = (char *)cli->priv->base[i] + r->offset;
	int64_t n = 0;
	double f = 0;
	int bad = 0;

	cli->priv->given[i] = 1;
	switch (r->type) {
	case LPO_CLI_FLAG:
		*(int *)p = 1;
		break;
	case LPO_CLI_STRING:
		*(const char **)p = s;
		break;
	case LPO_CLI_LIST:
		return list_add(cli, p, s);
	case LPO_CLI_I64:
		bad = lpo_cli_parse_i64(s, &n) != 0 || (r->min != r->max &&
		    ((double)n < r->min || (double)n > r->max));
		*(int64_t *)p = n;
		break;
	case LPO_CLI_U64:
		bad = parse_u64(s, p) != 0;
		break;
	case LPO_CLI_F64:
		bad = lpo_cli_parse_f64(s, &f) != 0 || (r->min != r->max &&
		    (f < r->min || f > r->max));
		*(double *)p = f;
		break;
	case LPO_CLI_BYTES:
		bad = parse_bytes(s, p) != 0;
		break;
	case LPO_CLI_CHOICE:
		*(int *)p = choice(r->arg, s);
		bad = *(int *)p < 0;
		break;
	}
	return bad ? bad_value(cli, r, s) : 0;
}

static void
help_row(const struct lpo_cli_option *r)
{
	char left[64];
	int n;

	if (r->flags & LPO_CLI_HEADING) {
		printf("\n%s:\n", r->name);
		return;
	}
	n = snprintf(left, sizeof left, "  %c%c%c --%s%s%s",
	    r->letter ? '-' : ' ', r->letter ? r->letter : ' ',
	    r->letter ? ',' : ' ', r->name, r->arg ? " " : "",
	    r->arg ? r->arg : "");
	/* a long left side gets a line of its own */
	if (n > 29)
		printf("%s\n%30s%s\n", left, "", r->help);
	else
		printf("%-30s%s\n", left, r->help);
}

static int
help(const lpo_cli *cli)
{
	const struct lpo_cli_priv *p = cli->priv;
	const char *s = cli->tool->synopsis;
	int i, first = 1;

	while (*s != '\0') {
		int n = (int)strcspn(s, "\n");

		printf("%s %s %.*s\n", first ? "usage:" : "      ",
		    cli->tool->name, n, s);
		s += n + (s[n] == '\n');
		first = 0;
	}
	printf("%s\n\n", cli->tool->what);
	/* the tool's own first: they are what one looks for */
	for (i = 0; cli->tool->options[i].name != NULL; i++)
		help_row(&cli->tool->options[i]);
	for (i = 0; i < p->rows; i++)
		if (p->row[i] >= common_rows && p->row[i] < common_rows +
		    sizeof common_rows / sizeof *common_rows)
			help_row(p->row[i]);
	return LPO_CLI_DONE;
}

static int
version(const lpo_cli *cli)
{
	printf("%s %s\n%s, SQLite %s, %s\ncpu: %s (level %s)\n",
	    cli->tool->name, LPO_VERSION, lpo_cpu_library_version(),
	    sqlite3_libversion(), archive_version_string(),
	    lpo_cpu_features(), lpo_isa_name(lpo_cpu_best_isa()));
	return LPO_CLI_DONE;
}

static int
add_rows(lpo_cli *cli, const struct lpo_cli_option *rows, void *base)
{
	struct lpo_cli_priv *p = cli->priv;

	for (; rows->name != NULL; rows++) {
		if (p->rows == CLI_MAX_OPTIONS)
			return lpo_fail(cli->ctx, LPO_EINVAL,
			    "too many options declared");
		p->row[p->rows] = rows;
		p->base[p->rows++] = base;
	}
	return 0;
}

/* Index of the row with this letter, or -1. */
static int
row_of_letter(const struct lpo_cli_priv *p, int letter)
{
	int i;

	for (i = 0; i < p->rows; i++)
		if (p->row[i]->letter == letter && letter != 0)
			return i;
	return -1;
}

static int
parse(lpo_cli *cli, int argc, char **argv)
{
	struct lpo_cli_priv *p = cli->priv;
	struct option longs[CLI_MAX_OPTIONS + 1];
	char shorts[2 * CLI_MAX_OPTIONS + 2], *s = shorts;
	int i, c, n = 0, rc;

	memset(longs, 0, sizeof longs);
	*s++ = ':';	/* tell a missing argument from an unknown option */
	for (i = 0; i < p->rows; i++) {
		if (p->row[i]->flags & LPO_CLI_HEADING)
			continue;
		longs[n].name = p->row[i]->name;
		longs[n].has_arg = p->row[i]->arg ? required_argument :
		    no_argument;
		longs[n++].val = 256 + i;
		if (p->row[i]->letter != 0) {
			*s++ = (char)p->row[i]->letter;
			if (p->row[i]->arg)
				*s++ = ':';
		}
	}
	*s = '\0';
	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		if (c == ':' && optopt < 256)
			return lpo_cli_usage(cli, "option '-%c' needs an "
			    "argument", optopt);
		if (c == ':')
			return lpo_cli_usage(cli, "option '--%s' needs an "
			    "argument", p->row[optopt - 256]->name);
		if (c == '?' && optopt >= 256)
			return lpo_cli_usage(cli, "option '--%s' takes no "
			    "argument", p->row[optopt - 256]->name);
		if (c == '?' && optopt != 0)
			return lpo_cli_usage(cli, "unknown option '-%c' "
			    "(%s --help lists them)", optopt, cli->tool->name);
		if (c == '?')
			return lpo_cli_usage(cli, "unknown or ambiguous option "
			    "'%s' (%s --help lists them)", argv[optind - 1],
			    cli->tool->name);
		i = c >= 256 ? c - 256 : row_of_letter(p, c);
		if ((rc = store(cli, i, optarg)) != 0)
			return rc;
	}
	cli->args = argv + optind;
	cli->nargs = argc - optind;
	return 0;
}

int
lpo_cli_given(const lpo_cli *cli, const char *name)
{
	int i;

	for (i = 0; i < cli->priv->rows; i++)
		if (strcmp(cli->priv->row[i]->name, name) == 0)
			return cli->priv->given[i];
	return 0;
}

/* --------------------------------------------------------- start and end */

int
lpo_cli_start(lpo_cli *cli, const struct lpo_cli_tool *tool, void *values,
    int argc, char **argv)
{
	int rc;

	memset(cli, 0, sizeof *cli);
	cli->tool = tool;
	cli->values = values;
	cli->o.device = "cpu";
	cli->o.seed = 42;
	cli->o.checkpoint_s = 600;
	if ((cli->ctx = lpo_ctx_new()) == NULL ||
	    (cli->priv = lpo_alloc(cli->ctx, 1, sizeof *cli->priv)) == NULL)
		return LPO_ENOMEM;
	cli->priv->argc = argc;
	cli->priv->argv = argv;
	cli->priv->tty = isatty(STDERR_FILENO);
	lpo_ctx_on_notice(cli->ctx, notice, cli);
	lpo_ctx_stop_flag(cli->ctx, &stop_flag);
	catch_signals();
	if ((rc = add_rows(cli, tool->options, values)) != 0 ||
	    (rc = add_rows(cli, common_rows, &cli->o)) != 0 ||
	    (rc = parse(cli, argc, argv)) != 0)
		return rc;
	if (cli->o.help)
		return help(cli);
	if (cli->o.version)
		return version(cli);
	if (cli->o.isa != NULL && lpo_isa_parse(cli->o.isa) < 0)
		return lpo_cli_usage(cli, "--isa: no level '%s'", cli->o.isa);
	if (cli->o.quiet)
		cli->o.no_progress = 1;
	return 0;
}

/* The last words about a failure; the status to leave with. */
static int
status_of(lpo_cli *cli, int rc)
{
	const char *text = cli->ctx != NULL ? lpo_errmsg(cli->ctx) : "";

	lpo_cli_progress_end(cli);
	switch (rc) {
	case 0:
		return cli->unmet ? 5 : cli->skipped > 0 ? 3 : 0;
	case LPO_CLI_DONE:
		return 0;
	case LPO_CLI_USAGE:
		return 2;
	case LPO_EPIPE:
		return 141;
	case LPO_ESTOP:
		lpo_cli_note(cli, "stopped; the same command goes on from "
		    "what is saved");
		return 4;
	default:
		fprintf(stderr, "%s: %s\n", cli->tool->name,
		    *text != '\0' ? text : "failed");
		return 1;
	}
}

/*
 * A full disk shows only when the buffer is flushed: a tool that ignores
 * close reports success for a cut file.
 */
static int
close_stdout(lpo_cli *cli, int status)
{
	int bad = ferror(stdout);
	int e = 0;

	errno = 0;
	if (fclose(stdout) != 0) {
		e = errno;
		bad = 1;
	}
	if (!bad || (status != 0 && status != 3 && status != 5))
		return status;
	if (e == EPIPE)
		return 141;
	fprintf(stderr, "%s: cannot write standard output: %s\n",
	    cli->tool->name, e != 0 ? strerror(e) : "write error");
	return 1;
}

int
lpo_cli_end(lpo_cli *cli, int rc)
{
	struct lpo_cli_priv *p = cli->priv;
	int i, status;

	status = close_stdout(cli, status_of(cli, rc));
	if (p != NULL) {
		lpo_cli_run_end(cli, status);
		if (p->be_open)
			lpo_cpu_close(&cli->be);
		for (i = 0; i < p->rows; i++)
			if (p->row[i]->type == LPO_CLI_LIST &&
			    !(p->row[i]->flags & LPO_CLI_HEADING))
				lpo_free(((struct lpo_cli_list *)
				    ((char *)p->base[i] +
				    p->row[i]->offset))->v);
		lpo_free(p);
	}
	lpo_ctx_free(cli->ctx);
	return status;
}

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

/* "3 h 12 min", "4 min 05 s", "12 s" */
static void
format_duration(char *out, size_t size, double s)
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
	int asked = status_flag;
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
	status_flag = 0;
	if (!asked && cli->o.no_progress)
		return;
	p->printed = now;
	rate = now > p->started ? (double)(done - p->first) /
	    (now - p->started) : 0;
	if (total > 0)
		snprintf(of, sizeof of, "/%lld", (long long)total);
	if (total > 0 && rate > 0) {
		memcpy(eta, ", ", 3);
		format_duration(eta + 2, sizeof eta - 2,
		    (double)(total - done) / rate);
	}
	fprintf(stderr, "%s%s: %s %lld%s %s, %.*f/s%s%s%s%s",
	    in_place ? "\r\033[K" : "", cli->tool->name, what,
	    (long long)done, of, unit, rate < 10 ? 2 : 0, rate, eta,
	    extra != NULL ? ", " : "", extra != NULL ? extra : "",
	    in_place && !asked ? "" : "\n");
	p->line_open = in_place && !asked;
}

/* ------------------------------------------------------------- compute */

int
lpo_cli_backend(lpo_cli *cli)
{
	const char *d = cli->o.device;
	enum lpo_isa isa = LPO_ISA_AUTO;
	int rc;

	if (cli->priv->be_open)
		return 0;
	if (strncmp(d, "cuda", 4) == 0 && (d[4] == '\0' || d[4] == ':'))
		return lpo_fail(cli->ctx, LPO_ENODEV, "no device '%s': this "
		    "build has no CUDA plug-in (lpo-cuda.so); use --device cpu",
		    d);
	if (strcmp(d, "cpu") != 0)
		return lpo_cli_usage(cli, "--device: no device '%s'", d);
	if (cli->o.isa != NULL)
		isa = (enum lpo_isa)lpo_isa_parse(cli->o.isa);
	rc = lpo_cpu_open(&cli->be, isa, (int)cli->o.threads);
	if (rc != 0)
		return lpo_fail(cli->ctx, rc, "cannot use the CPU at level "
		    "'%s' (it has: %s)", lpo_isa_name(isa),
		    lpo_cpu_features());
	cli->priv->be_open = 1;
	return 0;
}

int
lpo_cli_threads(lpo_cli *cli)
{
	if (cli->o.threads > 0)
		omp_set_num_threads((int)cli->o.threads);
	return omp_get_max_threads();
}

enum lpo_dtype
lpo_cli_precision(const lpo_cli *cli)
{
	if (cli->o.precision == LPO_PREC_AUTO)
		return lpo_cpu_has_bf16(cli->be.isa) ? LPO_BF16 : LPO_F32;
	return cli->o.precision == LPO_PREC_BF16 ? LPO_BF16 : LPO_F32;
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

int64_t
lpo_cli_memory(const lpo_cli *cli)
{
	int64_t best, limit;
	FILE *f;
	char line[128];
	long long kb;

	if (cli->o.memory_bytes > 0)
		return cli->o.memory_bytes;
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

int
lpo_cli_need_model(lpo_cli *cli)
{
	if (cli->o.model == NULL)
		return lpo_cli_usage(cli, "no model: give -m DIR");
	return 0;
}

int
lpo_cli_model_part(lpo_cli *cli, char **path, const char *part)
{
	int rc = lpo_cli_need_model(cli);

	*path = NULL;
	if (rc != 0)
		return rc;
	*path = lpo_asprintf(cli->ctx, "%s/%s", cli->o.model, part);
	return *path != NULL ? 0 : LPO_ENOMEM;
}
