/*
 * Inside of the shard readers: one walk over a tar that groups members into
 * samples and checks our sums.
 */
#ifndef LPO_IO_SHARD_PRIV_H
#define LPO_IO_SHARD_PRIV_H

#include <archive.h>
#include <archive_entry.h>

#include "lib/base/file.h"
#include "lib/io/shard.h"

#define LPO_SHARD_NAME_MAX	1024		/* of a member */
#define LPO_SHARD_MEMBER_MAX	((int64_t)1 << 30)
#define LPO_SHARD_MEMBERS_MAX	256		/* of a sample */
#define LPO_RUN_MEMBER		"__run__/run.json"
#define LPO_END_MEMBER		"__end__/end.json"

struct lpo_raw_member {
	char *key, *name;	/* one allocation, key first */
	const uint8_t *data;
	uint8_t *own;		/* stream: data's memory; map: NULL */
	int64_t size;
	uint32_t crc;		/* checked against KEY.json where ours */
};

struct lpo_raw_sample {
	struct lpo_raw_member *m;	/* KEY.json included */
	int n, room;
	int json;		/* index of KEY.json, -1: none */
	int ours;
};

/* What one __run__ … __end__ was; ours == 0: foreign members. */
struct lpo_section {
	int ours;
	char run[65];
	int64_t pairs;		/* of all the run's shards, -1: not said */
	int64_t shard, shards, samples, skipped;
};

struct lpo_scan {
	lpo_ctx *c;
	const char *name;
	struct archive *a;
	struct archive_entry *entry;
	const struct lpo_map *map;	/* or: */
	int fd;
	uint8_t *buf;
	int64_t zeros;		/* trailing zero bytes of the input so far */
	int64_t at;		/* where the last good header is */
	int stopped;
	enum { SCAN_BETWEEN, SCAN_OURS, SCAN_FOREIGN } state;
	json_t *run, *end;	/* first run record, last end record */
	uint32_t run_crc, json_crc;
	struct lpo_section now;
	struct lpo_raw_member ahead;	/* read, not yet given */
	int has_ahead, done, eof;
};

/* map or fd; the name is borrowed. */
int	lpo_scan_open(lpo_ctx *, struct lpo_scan *, const struct lpo_map *,
	    int fd, const char *name);
void	lpo_scan_close(struct lpo_scan *);
/*
 * 0 with a sample (ours: its sums agree), 1 at the end; 2: a section of ours
 * ended, s->now and s->end say which.  Reads ahead one member at most.
 */
int	lpo_scan_next(struct lpo_scan *, struct lpo_raw_sample *);
/* Fill has_ahead (and s->run where the input is ours) without consuming. */
int	lpo_scan_peek(struct lpo_scan *);
void	lpo_raw_sample_clear(struct lpo_raw_sample *);	/* keeps the array */
void	lpo_raw_sample_free(struct lpo_raw_sample *);
/* Steal (stream) or copy (map) into a sample. */
int	lpo_raw_to_sample(lpo_ctx *, struct lpo_sample *,
	    struct lpo_raw_sample *, const char *file);

/* 1: what failed in libarchive wanted memory. */
int	lpo_tar_no_memory(struct archive *);
/* "8f3a01bc" */
void	lpo_crc_text(char out[9], uint32_t);
/* The end record with its own sum; the caller's reference. */
json_t	*lpo_end_make(lpo_ctx *, const struct lpo_section *, uint32_t run_crc,
	    uint32_t json_crc);
/* An end record that agrees with itself; fills shard, shards, … */
int	lpo_end_parse(lpo_ctx *, json_t **, struct lpo_section *,
	    const void *, size_t bytes, const char *file);
/* 1: sample i has a KEY.json (ours always have). */
int	lpo_shard_has_json(const lpo_shard *, int64_t i);
/* kind, format, latent, … of two runs must be equal. */
int	lpo_run_compatible(lpo_ctx *, const json_t *a, const json_t *b,
	    const char *file);

/* Which shards of which runs were seen. */
struct lpo_set {
	struct lpo_section *s;
	const char **file;	/* borrowed */
	int64_t n, room;
};
int	lpo_set_add(lpo_ctx *, struct lpo_set *, const struct lpo_section *,
	    const char *file);
int	lpo_set_check(lpo_ctx *, struct lpo_set *, unsigned flags);
/* What LPO_SHARDS_OPTIONAL adds to a refusal. */
const char *lpo_shards_way_out(unsigned flags);
void	lpo_set_free(struct lpo_set *);
/* What the open shards are, by these names; runs that disagree: LPO_EFORMAT. */
int	lpo_shard_collect(lpo_ctx *, struct lpo_set *, lpo_shard *const *,
	    char *const *names, int64_t n);

#endif
