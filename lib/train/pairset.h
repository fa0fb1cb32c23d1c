/*
 * Encoded preferences at rest: shards opened for random access, filtered, and
 * put into an order (spec/cli.md section 3).  Standard input becomes an
 * unlinked spool file first, so that both are the same.
 */
#ifndef LPO_TRAIN_PAIRSET_H
#define LPO_TRAIN_PAIRSET_H

#include "lib/io/filter.h"
#include "lib/train/pairs.h"

typedef struct lpo_pairset lpo_pairset;

/*
 * args as lpo_shards_expand(); n_args 0 or a single "-": standard input,
 * copied to a file in `spool` (NULL: $TMPDIR, else /var/tmp) whose size is
 * told by lpo_notice().  Each file is verified whole; a gap (unless `flags`,
 * LPO_SHARDS_*, allow it), the same shard twice, streams of which one is not
 * like the others, or one that holds no moments are LPO_EFORMAT.
 */
int	 lpo_pairset_open(lpo_ctx *, lpo_pairset **, const char *const *args,
	    int n_args, const char *spool, unsigned flags);
void	 lpo_pairset_close(lpo_pairset *);	/* NULL is fine */
/* Does the stream `name` with this run record (NULL: foreign) hold moments? */
int	 lpo_pair_kind_check(lpo_ctx *, const json_t *run, const char *name);

/* The first run record; NULL where the first shard is foreign. */
const json_t *lpo_pairset_run(const lpo_pairset *);
json_t	*lpo_pairset_parents(const lpo_pairset *);	/* the caller's */
int64_t	 lpo_pairset_rows(const lpo_pairset *);	/* before filters */
/*
 * CRC32C over all KEY.json bytes (foreign: over the moments too), by which
 * the same input is known again.
 */
uint32_t lpo_pairset_crc32c(const lpo_pairset *);

/*
 * Read every record and keep what the filters keep; cross: with extra
 * cross-timestep items for kept win-lose rows, after the normal ones
 * (method.md 2.6).  The same row twice is LPO_EFORMAT.  Once per set.
 */
int	 lpo_pairset_select(lpo_pairset *, lpo_filters *, int cross);
int64_t	 lpo_pairset_items(const lpo_pairset *);
/* Rows before filters by label: first preferred, second, tie. */
void	 lpo_pairset_labels(const lpo_pairset *, int64_t count[3]);

/*
 * Item number `at` of the output: epochs of all items, each in the order of a
 * permutation keyed by seed and epoch, or (shuffle 0) in input order.
 */
struct lpo_pair_pick {
	int64_t item;
	uint32_t epoch;
};
void	 lpo_pairset_pick(const lpo_pairset *, struct lpo_pair_pick *,
	    int64_t at, uint64_t seed, int shuffle);

/* What is known of an item without reading it. */
struct lpo_pair_fact {
	int64_t row;
	int cross;
	int tie, first_wins;	/* tie: labels equal */
};
void	 lpo_pairset_fact(const lpo_pairset *, struct lpo_pair_fact *,
	    int64_t item);
/* The record of an item (to be cleared), joined scores included. */
int	 lpo_pairset_record(lpo_ctx *, struct lpo_record *,
	    const lpo_pairset *, int64_t item);
/*
 * The finished sample of an item.  Any number of threads at a time, each with
 * its own context.
 */
int	 lpo_pairset_sample(lpo_ctx *, struct lpo_sample *out,
	    const lpo_pairset *, const struct lpo_pair_opts *,
	    const struct lpo_pair_pick *);
/* Shape [2c, h, w] of the first row's moments. */
int	 lpo_pairset_shape(lpo_ctx *, int64_t shape[3], const lpo_pairset *);

#endif
