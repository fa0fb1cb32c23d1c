/*
 * The command line: arguments, one a line, against a table with an option of
 * every type.  What is stored is in the row's range.
 */
#include <fcntl.h>
#include <math.h>

#include "tests/fuzz/fuzz.h"
#include "tools/cli_priv.h"

struct opts {
	const char *s;
	struct lpo_cli_list list;
	int64_t i, bytes, range;
	uint64_t u;
	double f, half;
	int flag, choice;
};

#define ROW(name, letter, arg, type, member, min, max) \
	{ name, letter, arg, "help", type, offsetof(struct opts, member), 0, \
	  min, max }
static const struct lpo_cli_option rows[] = {
	ROW("string", 's', "S", LPO_CLI_STRING, s, 0, 0),
	ROW("list", 'l', "L", LPO_CLI_LIST, list, 0, 0),
	ROW("int", 'i', "N", LPO_CLI_I64, i, 0, 0),
	ROW("range", 'r', "N", LPO_CLI_I64, range, 1, 100),
	ROW("u64", 'u', "N", LPO_CLI_U64, u, 0, 0),
	ROW("float", 'f', "X", LPO_CLI_F64, f, 0, 0),
	ROW("half", 0, "X", LPO_CLI_F64, half, 0, 0.5),
	ROW("bytes", 'b', "B", LPO_CLI_BYTES, bytes, 0, 0),
	ROW("choice", 'c', "one|two|three", LPO_CLI_CHOICE, choice, 0, 0),
	ROW("flag", 'g', NULL, LPO_CLI_FLAG, flag, 0, 0),
	{ NULL, 0, NULL, NULL, LPO_CLI_FLAG, 0, 0, 0, 0 }
};
static const struct lpo_cli_tool tool = { "fuzz", "what", "[options]", rows };

static void
stored(const lpo_cli *cli, const struct opts *o)
{
	CHECK(o->range >= 1 && o->range <= 100);
	CHECK(isfinite(o->f) && o->half >= 0 && o->half <= 0.5);
	CHECK(o->bytes >= 0 && o->choice >= 0 && o->choice <= 2);
	CHECK(o->flag == 0 || o->flag == 1);
	CHECK(cli->nargs >= 0 && cli->o.threads >= 0 &&
	    cli->o.threads <= 4096 && cli->o.memory_bytes >= 0);
}

/* A pattern that is liked gives a path. */
static void
pattern(lpo_cli *cli)
{
	char *path;

	if (lpo_cli_pattern(cli) != 1)
		return;
	path = lpo_cli_shard_path(cli, 7);
	CHECK(path != NULL && strchr(path, '7') != NULL);
	lpo_free(path);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct opts o = { .range = 1, .half = 0.25 };
	char *all = fuzz_string(p, n), *argv[66], *s = all;
	struct lpo_cli_priv priv;
	lpo_cli cli;
	lpo_ctx *c;
	int argc = 1, rc, err, null;

	c = fuzz_begin();
	memset(&cli, 0, sizeof(cli));
	memset(&priv, 0, sizeof(priv));
	cli.tool = &tool;
	cli.ctx = c;
	cli.values = &o;
	cli.priv = &priv;
	argv[0] = all + n;	/* "" */
	while (argc < 64 && s < all + n) {
		argv[argc++] = s;
		s += strcspn(s, "\n");
		if (*s != '\n')
			break;
		*s++ = '\0';
	}
	argv[argc] = NULL;
	CHECK(lpo_cli_add_rows(&cli, rows, &o) == 0 &&
	    lpo_cli_add_rows(&cli, lpo_cli_common_rows, &cli.o) == 0);
	/* usage errors are printed: not a million times */
	fflush(stderr);
	err = dup(2);
	null = open("/dev/null", O_WRONLY);
	dup2(null, 2);
	rc = lpo_cli_parse(&cli, argc, argv);
	if (rc == 0)
		pattern(&cli);
	dup2(err, 2);
	close(err);
	close(null);
	if (rc == 0)
		stored(&cli, &o);
	CHECK(rc == 0 || rc == LPO_CLI_USAGE);
	lpo_free(o.list.v);
	free(all);
	return fuzz_end(0, 65536 + 64 * n);
}
