/* Signals, words, exit status, the model named. */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <archive.h>
#include <sqlite3.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/model/random.h"
#include "tools/cli_priv.h"

/* ------------------------------------------------------------- signals */

static volatile sig_atomic_t stop_flag;
volatile sig_atomic_t lpo_cli_status_flag;

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
	lpo_cli_status_flag = 1;
}

/*
 * No SA_RESTART: a read that waits for a pipe must come back, or a stop would
 * wait with it.  SIGINT's handler is for once; the second one kills.  A closed
 * pipe and a limit to the size of files are errors of the write.
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
	sigaction(SIGXFSZ, &sa, NULL);
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
	lpo_cli *cli = arg;

	if (!cli->priv->deaf)
		lpo_cli_note(cli, "%s", text);
}

/* --------------------------------------------------------- start and end */

/*
 * Where a standard stream is closed, the next file that is opened would have
 * its number, and words would go into it.  Opened so that using it fails.
 */
static int
open_standard(lpo_ctx *c)
{
	int fd;

	for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", (fd ==
		    STDIN_FILENO ? O_WRONLY : O_RDONLY) | O_CLOEXEC) < 0)
			return lpo_fail(c, LPO_EIO, "cannot open '/dev/null': "
			    "%s", strerror(errno));
	return 0;
}

/*
 * Large blocks go back to the system when they are freed, so that memory in
 * use is what a plan has counted.  (By default the allocator keeps more the
 * larger they were.)
 */
static void
steady_memory(void)
{
	mallopt(M_MMAP_THRESHOLD, 4 << 20);
	mallopt(M_TRIM_THRESHOLD, 8 << 20);
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

int
lpo_cli_start(lpo_cli *cli, const struct lpo_cli_tool *tool, void *values,
    int argc, char **argv)
{
	int rc;

	steady_memory();
	lpo_json_memory();
	memset(cli, 0, sizeof *cli);
	cli->tool = tool;
	cli->values = values;
	cli->o.device = "cpu";
	cli->o.seed = 42;
	cli->o.checkpoint_s = 600;
	if ((cli->ctx = lpo_ctx_new()) == NULL ||
	    (cli->priv = lpo_alloc(cli->ctx, 1, sizeof *cli->priv)) == NULL)
		return LPO_ENOMEM;
	if ((rc = open_standard(cli->ctx)) != 0)
		return rc;
	cli->priv->argc = argc;
	cli->priv->argv = argv;
	cli->priv->tty = isatty(STDERR_FILENO);
	lpo_ctx_on_notice(cli->ctx, notice, cli);
	cli->priv->begun_s = lpo_cli_now();
	lpo_ctx_stop_flag(cli->ctx, &stop_flag);
	lpo_ctx_on_ask(cli->ctx, &lpo_cli_status_flag, lpo_cli_answer, cli);
	catch_signals();
	if ((rc = lpo_cli_add_rows(cli, tool->options, values)) != 0 ||
	    (rc = lpo_cli_add_rows(cli, lpo_cli_common_rows, &cli->o)) != 0 ||
	    (rc = lpo_cli_parse(cli, argc, argv)) != 0)
		return rc;
	if (cli->o.help)
		return lpo_cli_help(cli);
	if (cli->o.version)
		return version(cli);
	if (cli->o.isa != NULL && lpo_isa_parse(cli->o.isa) < 0)
		return lpo_cli_usage(cli, "--isa: no level '%s'", cli->o.isa);
	if (cli->o.quiet)
		cli->o.no_progress = 1;
	if (cli->o.variant == NULL)
		return 0;
	if (*cli->o.variant == '\0' || strchr(cli->o.variant, '/') != NULL)
		return lpo_cli_usage(cli, "--variant: '%s' is no part of a "
		    "file's name", cli->o.variant);
	/* in the id only where it is given, as most runs have none */
	lpo_cli_resolved(cli, "variant", json_string(cli->o.variant));
	lpo_ctx_set_variant(cli->ctx, cli->o.variant);
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
		lpo_cli_note(cli, cli->o.dry_run ? "stopped" : "stopped; the "
		    "same command goes on from what is saved");
		return 4;
	default:
		fprintf(stderr, "%s: %s\n", cli->tool->name,
		    *text != '\0' ? text : rc == LPO_ENOMEM ?
		    "out of memory" : "failed");
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
		status = lpo_cli_run_end(cli, status);
		if (p->be_open && lpo_cli_on_cuda(cli))
			lpo_cuda_close(&cli->be);
		else if (p->be_open)
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

/* --------------------------------------------------------------- model */

/* 1 if a file in the folder is of the variant: NAME.fp16.x, NAME.fp16-00001. */
static int
has_variant(lpo_cli *cli, const char *dir)
{
	const char *v = cli->o.variant, *at;
	char **names = NULL;
	int64_t i, n = 0;
	size_t len = strlen(v);
	int found = 0;

	if (!lpo_is_dir(dir) || lpo_dir_list(cli->ctx, &names, &n, dir) != 0)
		return 0;
	for (i = 0; i < n; i++)
		for (at = names[i]; (at = strchr(at, '.')) != NULL; at++)
			if (strncmp(at + 1, v, len) == 0 &&
			    (at[1 + len] == '.' || at[1 + len] == '-'))
				found = 1;
	lpo_names_free(names, n);
	return found;
}

/* A part may lack the variant, as most do; a name that none has is a slip. */
static int
check_variant(lpo_cli *cli)
{
	static const char *const part[] = { "unet", "vae", "text_encoder",
	    "text_encoder_2" };
	char *dir;
	size_t i;
	int found = 0;

	for (i = 0; i < sizeof part / sizeof *part && !found; i++) {
		dir = lpo_path_join(cli->ctx, cli->o.model, part[i]);
		if (dir == NULL)
			return LPO_ENOMEM;
		found = has_variant(cli, dir);
		lpo_free(dir);
	}
	if (found || !lpo_is_dir(cli->o.model))
		return 0;
	return lpo_fail(cli->ctx, LPO_ENOTFOUND, "no part of '%s' has files "
	    "of variant '%s'", cli->o.model, cli->o.variant);
}

int
lpo_cli_need_model(lpo_cli *cli)
{
	struct lpo_random r;

	if (cli->o.model == NULL)
		return lpo_cli_usage(cli, "no model: give -m DIR");
	if (lpo_random_is(cli->o.model)) {
		if (lpo_random_parse(cli->ctx, &r, cli->o.model) != 0)
			return lpo_cli_usage(cli, "%s", lpo_errmsg(cli->ctx));
		return r.rest[0] == '\0' ? 0 : lpo_cli_usage(cli, "'%s': "
		    "-m takes the whole model", cli->o.model);
	}
	return cli->o.variant != NULL ? check_variant(cli) : 0;
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
