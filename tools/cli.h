/*
 * What all programs share at the command line: options declared in a table,
 * messages, signals, exit status, the compute backend, and the life of a run
 * (run id, database rows, state folder, "already done").  Contract: cli.md 1.
 *
 *	int
 *	main(int argc, char **argv)
 *	{
 *		struct opts o = { .steps = 20 };	// defaults
 *		lpo_cli cli;
 *		int rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
 *		if (rc == 0)
 *			rc = work(&cli, &o);	// 0 or LPO_E*
 *		return lpo_cli_end(&cli, rc);
 *	}
 */
#ifndef LPO_TOOLS_CLI_H
#define LPO_TOOLS_CLI_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "kernels/kernel.h"
#include "lib/base/ctx.h"

/* Returned by tools in place of an LPO_E*: the text is printed already. */
enum {
	LPO_CLI_USAGE = -100,	/* exit 2 */
	LPO_CLI_DONE = 100	/* nothing (more) to do: exit 0; --help, --version,
				 * "already done", --dry-run */
};

enum lpo_cli_type {
	LPO_CLI_FLAG,		/* int, set to 1; no argument */
	LPO_CLI_STRING,		/* const char * */
	LPO_CLI_LIST,		/* struct lpo_cli_list, the option may repeat */
	LPO_CLI_I64,		/* int64_t in min..max */
	LPO_CLI_U64,		/* uint64_t (min, max not used) */
	LPO_CLI_F64,		/* double in min..max, finite */
	LPO_CLI_BYTES,		/* int64_t; suffix K, M, G, T = 1024^n */
	LPO_CLI_CHOICE		/* int: index among the words of `arg`, "a|b|c" */
};

enum {
	/* The option changes the result: its value is part of the run id. */
	LPO_CLI_RESULT = 1,
	/* For a heading line in --help; only `name` is used. */
	LPO_CLI_HEADING = 2,
	/* Given twice, one of both would be left out without a word. */
	LPO_CLI_ONCE = 4
};

struct lpo_cli_list {
	const char **v;
	int n;
};

/* One row; a table ends with a row whose name is NULL. */
struct lpo_cli_option {
	const char *name;	/* long name, without dashes */
	int letter;		/* 'o', or 0 */
	const char *arg;	/* argument's name in --help; NULL for a flag */
	const char *help;	/* one line */
	enum lpo_cli_type type;
	size_t offset;		/* of the member in the tool's struct */
	int flags;
	double min, max;	/* I64 and F64; both 0: any value */
};

struct lpo_cli_tool {
	const char *name;	/* "lpo-pairs" */
	const char *what;	/* "moments to noisy latent pairs" */
	const char *synopsis;	/* "[options] [enc-*.tar ...]"; '\n' for more */
	const struct lpo_cli_option *options;
};

enum lpo_cli_precision {
	LPO_PREC_AUTO, LPO_PREC_F32, LPO_PREC_BF16, LPO_PREC_BF16X3
};

/* Values of the common options; read only for tools except as said. */
struct lpo_cli_common {
	const char *model, *variant, *output, *db, *device;
	int precision;		/* enum lpo_cli_precision; a tool may settle
				   LPO_PREC_AUTO before lpo_cli_begin() */
	const char *isa;	/* NULL: the best */
	int64_t threads;	/* 0: all this process may use */
	int64_t memory_bytes;	/* 0: what is available (lpo_cli_memory) */
	uint64_t seed;
	double checkpoint_s;
	int dry_run, json, force, fresh, quiet, verbose;
	int progress, no_progress, help, version;
};

typedef struct lpo_cli {
	const struct lpo_cli_tool *tool;
	lpo_ctx *ctx;
	struct lpo_cli_common o;
	void *values;		/* the tool's struct */
	char **args;		/* operands */
	int nargs;
	lpo_backend be;		/* after lpo_cli_backend() */
	int64_t skipped;	/* records skipped so far: exit 3 when > 0 */
	int unmet;		/* set: a condition asked for is false: exit 5 */
	struct lpo_cli_priv *priv;
} lpo_cli;

/*
 * Parse; install signal handlers.  0: go on; LPO_CLI_DONE (--help, --version)
 * or LPO_CLI_USAGE: straight to lpo_cli_end().  Each string of the tool's
 * struct points into argv.
 */
int	 lpo_cli_start(lpo_cli *, const struct lpo_cli_tool *, void *values,
	    int argc, char **argv);
/*
 * Exit status for rc: prints the context's error text where there is one,
 * closes and checks stdout, ends the attempt's row, frees everything.
 * 0 -> 0, or 3 with skipped records, or 5; LPO_ESTOP -> 4; LPO_EPIPE -> 141
 * in silence; other errors -> 1.
 */
int	 lpo_cli_end(lpo_cli *, int rc);

/* "lpo-x: text" to stderr; returns LPO_CLI_USAGE. */
int	 lpo_cli_usage(lpo_cli *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));
/* A word to the user, "lpo-x: text"; -q silences it. */
void	 lpo_cli_note(lpo_cli *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));
/* The same, only with -v. */
void	 lpo_cli_detail(lpo_cli *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));
/* A record is left out: says so in spite of -q, counts it (exit 3). */
void	 lpo_cli_skip(lpo_cli *, const char *fmt, ...)
	    __attribute__((format(printf, 2, 3)));

/* 1 if the option was given (long name); for defaults that depend. */
int	 lpo_cli_given(const lpo_cli *, const char *name);
/* Checked conversions of a whole string, for lists inside one argument. */
int	 lpo_cli_parse_i64(const char *, int64_t *out);	/* 0, or -1 */
int	 lpo_cli_parse_f64(const char *, double *out);

/* ---- standard input and output */

/* 1 if the output is standard output: -o absent or '-'. */
int	 lpo_cli_to_stdout(const lpo_cli *);
/*
 * Is -o a shard pattern, "enc-%06d.tar"?  1, 0, or LPO_CLI_USAGE, said, for
 * a '%' that is not exactly one %d.
 */
int	 lpo_cli_pattern(lpo_cli *);
/* Shard k's path by a pattern lpo_cli_pattern() liked; lpo_free() it. */
char	*lpo_cli_shard_path(lpo_cli *, int64_t k);
/*
 * A shard that may be there: *there = 1 when it is this run's and whole;
 * another's is an error without --force.  After lpo_cli_begin().
 */
int	 lpo_cli_shard_there(lpo_cli *, const char *path, int *there);
/* LPO_CLI_USAGE, said, where binary would meet a terminal; else 0. */
int	 lpo_cli_binary_stdout(lpo_cli *);
int	 lpo_cli_binary_stdin(lpo_cli *);
/*
 * One TSV field to f (tab, newline, backslash as \t \n \\), followed by
 * `sep`, '\t' or '\n'.
 */
void	 lpo_cli_tsv(FILE *f, const char *text, int sep);

/*
 * A line of --dry-run's plan to stdout: "name<TAB>value", or with --json
 * {"name": ..., "value": ...}.
 */
void	 lpo_cli_plan(lpo_cli *, const char *name, const char *fmt, ...)
	    __attribute__((format(printf, 3, 4)));

/* ---- progress and status */

/*
 * Call as often as you like (after each record or step).  Prints
 * "text done/total unit, rate, time left, extra, memory" in place on a
 * terminal, one line a minute elsewhere.  A part of a unit counts as done;
 * total 0: unknown.  extra may be NULL.  SIGUSR2 is answered with that line
 * as it would be then, at the next operation.
 */
void	 lpo_cli_progress(lpo_cli *, const char *what, double done,
	    int64_t total, const char *unit, const char *extra);
/* Ends the line on a terminal; called by every message too. */
void	 lpo_cli_progress_end(lpo_cli *);
/* 1 if a line a minute or a step is wanted now (for tools' own step lines). */
int	 lpo_cli_want_lines(const lpo_cli *);
double	 lpo_cli_now(void);	/* seconds, monotonic */

/* ---- compute */

/*
 * Open cli->be for --device, --isa, --threads, and for the products of
 * --precision bf16x3.  LPO_ENODEV for a device or level this machine has not.
 * The host has its threads with any device.
 */
int	 lpo_cli_backend(lpo_cli *);
/*
 * What is stored, LPO_F32 or LPO_BF16: --precision, `auto` being bf16 where
 * the device multiplies bf16 natively.  After lpo_cli_backend().
 */
enum lpo_dtype lpo_cli_precision(const lpo_cli *);
/* Its name where so is stored: "f32", "bf16", "bf16x3"; for provenance. */
const char *lpo_cli_precision_name(const lpo_cli *, enum lpo_dtype);
/* --threads for OpenMP; their number.  lpo_cli_backend() does it too. */
int	 lpo_cli_threads(lpo_cli *);
/*
 * --memory, or what the device, else the machine (and cgroup), has to give
 * now, in bytes.
 */
int64_t	 lpo_cli_memory(lpo_cli *);
/* GFLOP/s of a matrix product here, in a twentieth of a second. */
double	 lpo_cli_speed(lpo_cli *, enum lpo_dtype);
/* "MODEL/part" where -m was given; usage error without. Freed by lpo_free. */
int	 lpo_cli_model_part(lpo_cli *, char **path, const char *part);
/*
 * LPO_CLI_USAGE, said, when -m is missing; an error when no part of the model
 * has files of --variant.
 */
int	 lpo_cli_need_model(lpo_cli *);

/* ---- the life of a run */

/*
 * What the run id is made of besides the LPO_CLI_RESULT options, the seed,
 * precision, ISA level or device and library (these if the backend is open):
 * files by their SHA-256, streams by the run id they carry, and values the
 * tool resolved itself (steals the JSON).  Order of calls does not matter for
 * options, does for inputs.
 */
int	 lpo_cli_input_file(lpo_cli *, const char *role, const char *path);
/* A list of prompts: its file, or from standard input, "-", its texts. */
struct lpo_prompts;
int	 lpo_cli_input_prompts(lpo_cli *, const char *path,
	    const struct lpo_prompts *);
/* All weight and config files below a folder, in name order. */
int	 lpo_cli_input_dir(lpo_cli *, const char *role, const char *path);
/* A hash the tool knows; path may be NULL. */
int	 lpo_cli_input_hash(lpo_cli *, const char *role, const char *path,
	    const char *sha256);
int	 lpo_cli_input_run(lpo_cli *, const char *role, const char *run);
/*
 * SHA-256 of a file in hex through the cache (device, inode, size, mtime).
 */
int	 lpo_cli_sha256(lpo_cli *, char hex[65], const char *path);
/* The same of a folder, as lpo_cli_input_dir() has it. */
int	 lpo_cli_sha256_dir(lpo_cli *, char hex[65], const char *path);
/* The hash or run id that stands for an input, "" if there is none. */
const char *lpo_cli_input_value(const lpo_cli *, const char *role);
void	 lpo_cli_resolved(lpo_cli *, const char *name, json_t *value);

/*
 * Compute the run id; look at the output at `path` (NULL: standard output);
 * refuse, go on or say "already done"; open the database and write the run
 * and attempt rows.  Output of another run needs --force.
 *
 * existing(ctx, path, run): the run id of the finished output, "" for a
 * finished one that names none; returns 0, or LPO_ENOTFOUND when there is no
 * finished output at path.  NULL: nothing is ever finished (shards, where a
 * rerun makes what is absent).  lpo_cli_existing_tar() does it for one shard.
 *
 * 0: go on; LPO_CLI_DONE; or an error.
 */
int	 lpo_cli_begin(lpo_cli *, const char *path,
	    int (*existing)(lpo_ctx *, const char *path, char run[17]));
int	 lpo_cli_existing_tar(lpo_ctx *, const char *path, char run[17]);
/*
 * What to make of a failure to read what stands in an output's place: 0, it is
 * something else or damaged, not ours to overwrite; the system's trouble (a
 * disk, memory) stays an error, for it may well be ours.
 */
int	 lpo_cli_foreign(lpo_ctx *, int rc);
const char *lpo_cli_run(const lpo_cli *);	/* 16 hex digits */
/* The options and resolved values that are in the id; borrowed. */
const json_t *lpo_cli_run_options(const lpo_cli *);
/* [run ids given to lpo_cli_input_run], for run.json; the caller's. */
json_t	*lpo_cli_parents(const lpo_cli *);

struct lpo_db;
/* NULL with --db none.  The ids are of its run and attempt rows. */
struct lpo_db *lpo_cli_db(lpo_cli *);
int64_t	 lpo_cli_db_run(const lpo_cli *);
int64_t	 lpo_cli_db_attempt(const lpo_cli *);
/* A row of the metric table of this run (no-op without database). */
int	 lpo_cli_metric(lpo_cli *, const char *name, int64_t step,
	    double value);

#endif
