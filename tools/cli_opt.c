/*
 * The common options, and the reading of all of them by getopt_long; --help is
 * the same table printed.
 */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "tools/cli_priv.h"

#define COMMON(name, letter, arg, type, member, flags, help) \
	{ name, letter, arg, help, type, \
	  offsetof(struct lpo_cli_common, member), flags, 0, 0 }

const struct lpo_cli_option lpo_cli_common_rows[] = {
	{ "common options", 0, NULL, NULL, LPO_CLI_FLAG, 0, LPO_CLI_HEADING,
	  0, 0 },
	COMMON("model", 'm', "DIR", LPO_CLI_STRING, model, 0,
	    "diffusers folder, or random:KIND[:SEED]"),
	COMMON("variant", 0, "NAME", LPO_CLI_STRING, variant, 0,
	    "the model's files of this name, such as fp16, where it has any"),
	COMMON("output", 'o', "PATH", LPO_CLI_STRING, output, 0,
	    "file, folder or shard pattern with one %d; '-' is stdout"),
	COMMON("db", 0, "FILE", LPO_CLI_STRING, db, 0,
	    "SQLite database of runs (lpo.db beside the output); none"),
	COMMON("device", 'd', "NAME", LPO_CLI_STRING, device, 0,
	    "cpu or cuda[:N] (cpu)"),
	COMMON("precision", 0, "auto|f32|bf16|bf16x3", LPO_CLI_CHOICE,
	    precision, 0, "of activations, weights and products (auto)"),
	COMMON("isa", 0, "LEVEL", LPO_CLI_STRING, isa, 0,
	    "portable, avx2, avx512 or amx: not above this level"),
	{ "threads", 'j', "N", "threads (all cores this process may use)",
	  LPO_CLI_I64, offsetof(struct lpo_cli_common, threads), 0, 0, 4096 },
	COMMON("memory", 0, "BYTES", LPO_CLI_BYTES, memory_bytes, 0,
	    "memory to fit into, suffix K, M, G, T (what is available)"),
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
	    "errors and skipped records only"),
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

/* ------------------------------------------------------------- numbers */

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

/* Option i's argument into the member its row names. */
static int
store(lpo_cli *cli, int i, const char *s)
{
	const struct lpo_cli_option *r = cli->priv->row[i];
	void *p = (char *)cli->priv->base[i] + r->offset;
	int64_t n = 0;
	double f = 0;
	int bad = 0;

	if ((r->flags & LPO_CLI_ONCE) && cli->priv->given[i])
		return lpo_cli_usage(cli, "--%s is given twice, '%s' and '%s'",
		    r->name, *(const char **)p, s);
	cli->priv->given[i] = 1;
	/* "$OUT" in a script that has not set it */
	if (r->type == LPO_CLI_STRING && s[0] == '\0')
		return lpo_cli_usage(cli, "--%s: an empty argument", r->name);
	/* it goes into the run's record, which is JSON */
	if ((r->flags & LPO_CLI_RESULT) && (r->type == LPO_CLI_STRING ||
	    r->type == LPO_CLI_LIST) && !lpo_utf8_valid(s, strlen(s)))
		return lpo_cli_usage(cli, "--%s: '%s' is not UTF-8", r->name,
		    s);
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

int
lpo_cli_help(const lpo_cli *cli)
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
	/* a heading brings its empty line with it */
	printf("%s\n%s", cli->tool->what,
	    cli->tool->options[0].flags & LPO_CLI_HEADING ? "" : "\n");
	/* the tool's own first: they are what one looks for */
	for (i = 0; cli->tool->options[i].name != NULL; i++)
		help_row(&cli->tool->options[i]);
	for (i = 0; i < p->rows; i++)
		if (p->base[i] == &cli->o)
			help_row(p->row[i]);
	return LPO_CLI_DONE;
}

int
lpo_cli_add_rows(lpo_cli *cli, const struct lpo_cli_option *rows, void *base)
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

/*
 * getopt_long with its own messages off: they name argv[0], which may be a
 * path, and don't know our wording.  optind = 0 starts glibc's afresh.
 */
int
lpo_cli_parse(lpo_cli *cli, int argc, char **argv)
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
