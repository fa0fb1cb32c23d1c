/*
 * Tar shards (design.md section 6, lpo-shard(5)).  A sample is a run of
 * members KEY.NAME, KEY.json last; __run__/run.json comes first and
 * __end__/end.json last.  Foreign WebDataset shards are read too and reported
 * as unverified (lpo_notice).
 */
#ifndef LPO_IO_SHARD_H
#define LPO_IO_SHARD_H

#include <stdint.h>

#include <jansson.h>

#include "lib/base/ctx.h"

struct lpo_member {
	char *name;		/* after the key's dot: "moments_0.npy" */
	uint8_t *bytes;
	int64_t size;
};

/*
 * A sample.  json is KEY.json (an empty object where a foreign sample has
 * none); the members are the others, in file order.
 */
struct lpo_sample {
	char *key;
	json_t *json;
	struct lpo_member *member;
	int n_members;
	int verified;		/* 1: sums were there and agreed */
};

void	 lpo_sample_clear(struct lpo_sample *);	/* frees all, zeroes */
/* By name; NULL when absent. */
const struct lpo_member *lpo_sample_find(const struct lpo_sample *,
	    const char *name);
/* Append a member; takes over `bytes` (from lpo_alloc), also on failure. */
int	 lpo_sample_add(lpo_ctx *, struct lpo_sample *, const char *name,
	    uint8_t *bytes, int64_t size);

/* ---- Writing ---- */

typedef struct lpo_shardw lpo_shardw;

/* `path` as lpo_out_open(): "-" is stdout.  run goes to __run__/run.json. */
int	 lpo_shardw_open(lpo_ctx *, lpo_shardw **, const char *path,
	    const json_t *run);
/*
 * Members in the given order, then KEY.json, to which "key" and "crc32c"
 * are added (s->json is changed).  Keys without dot and slash.
 */
int	 lpo_shardw_put(lpo_shardw *, struct lpo_sample *s);
int64_t	 lpo_shardw_samples(const lpo_shardw *);
/*
 * Write the end record and publish; the handle is gone whatever the result.
 * shard of shards: 0 of 1 for a single file or stream.
 */
int	 lpo_shardw_finish(lpo_shardw *, int64_t skipped, int64_t shard,
	    int64_t shards);
/* A stopped or failed writer leaves no end record and no file. */
void	 lpo_shardw_abort(lpo_shardw *);	/* NULL is fine */

/* ---- One file, verified, random access ---- */

typedef struct lpo_shard lpo_shard;

/*
 * Maps the file, walks it once and checks every sum; any damage or missing
 * end: LPO_EFORMAT with member and offset.  Several shards in a row in one
 * file (a spooled `cat`) are one.
 */
int	 lpo_shard_open(lpo_ctx *, lpo_shard **, const char *path);
int	 lpo_shard_open_fd(lpo_ctx *, lpo_shard **, int fd, const char *name);
void	 lpo_shard_close(lpo_shard *);		/* NULL is fine */
int64_t	 lpo_shard_samples(const lpo_shard *);
const json_t *lpo_shard_run(const lpo_shard *);	/* first; NULL: foreign */
const json_t *lpo_shard_end(const lpo_shard *);	/* last; NULL: foreign */
const char *lpo_shard_key(const lpo_shard *, int64_t i);
/* The m-th member's name of sample i, KEY.json's "json" too; NULL outside. */
const char *lpo_shard_member(const lpo_shard *, int64_t i, int m);
/* The position of a key, -1 when absent. */
int64_t	 lpo_shard_find(const lpo_shard *, const char *key);
/* Sample i; json alone (the caller's reference); sums are checked again. */
int	 lpo_shard_get(lpo_ctx *, struct lpo_sample *, lpo_shard *, int64_t i);
int	 lpo_shard_get_json(lpo_ctx *, json_t **, lpo_shard *, int64_t i);
/* One member of sample i by name, without copying: into the map. */
int	 lpo_shard_peek(lpo_ctx *, const uint8_t **, int64_t *bytes,
	    lpo_shard *, int64_t i, const char *name);

#define LPO_SHARDS_ALLOW_MISSING 1	/* gaps in a sequence are allowed */
#define LPO_SHARDS_OPTIONAL	2	/* a refusal names --allow-missing */

/*
 * For those who open shards themselves (lpo_shards_open() does it): the same
 * shard of a run twice is LPO_EFORMAT, a missing one too unless allowed (then
 * said by lpo_notice); so are streams of different kind, latents or schedule.
 */
int	 lpo_shard_check_set(lpo_ctx *, lpo_shard *const *, int64_t n,
	    unsigned flags);

/* ---- Many files, or a stream, in order ---- */

/*
 * The names that arguments mean: a file is itself, "enc-%06d.tar" every
 * file of that form that is there, "enc-*.tar" what glob(3) finds; sorted
 * within one argument.  An argument that finds nothing: LPO_ENOTFOUND.
 * lpo_names_free() them.
 */
int	 lpo_shards_expand(lpo_ctx *, char ***names, int64_t *n,
	    const char *const *args, int n_args);

typedef struct lpo_shards lpo_shards;

/*
 * n_args == 0 or a single "-": standard input, streamed (next() fails with
 * LPO_EFORMAT where it ends without its end record).  Files: each is verified
 * whole when it is reached; missing shards of a run (by the end records'
 * shard and shards, for foreign ones by the number in the name), the same
 * shard twice, and streams of different kinds are LPO_EFORMAT when seen.
 */
int	 lpo_shards_open(lpo_ctx *, lpo_shards **, const char *const *args,
	    int n_args, unsigned flags);
int	 lpo_shards_open_fd(lpo_ctx *, lpo_shards **, int fd,
	    const char *name);			/* stream; fd is borrowed */
/*
 * The run record of what is read, known before the first next() (a stream
 * reads ahead as far as needed).  NULL: foreign.
 */
const json_t *lpo_shards_run(const lpo_shards *);
/* 0 and a sample (to be cleared), 1 at the verified end, or an error. */
int	 lpo_shards_next(lpo_shards *, struct lpo_sample *);
int	 lpo_shards_files(const lpo_shards *);	/* 0: a stream */
/*
 * Pairs by the run records: of a set of files without gaps those of all its
 * runs together, of a stream those of its first run.  -1: not said.
 */
int64_t	 lpo_shards_pairs(const lpo_shards *);
/*
 * Running CRC32C over the KEY.json bytes of all samples given so far: where
 * a resumed reader of a pipe must find the same.
 */
uint32_t lpo_shards_crc32c(const lpo_shards *);
void	 lpo_shards_close(lpo_shards *);	/* NULL is fine */

#endif
