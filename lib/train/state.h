/*
 * The saved state of a long run: the folder PATH.state/ beside its output.
 *
 *	PATH.state/lock			one writer at a time
 *	PATH.state/NNNNNNNNN/NAME	blobs
 *	PATH.state/NNNNNNNNN/manifest.json
 *
 * A snapshot is written into a temporary folder, every file synced, the
 * manifest last, and then renamed; the two newest are kept.  The manifest has
 * the run id, the options behind it, the caller's counters, and length and
 * CRC32C of every blob.  A resumed run takes the newest snapshot that verifies
 * (reliability.md 2, promises 2 and 5).
 */
#ifndef LPO_TRAIN_STATE_H
#define LPO_TRAIN_STATE_H

#include "lib/base/ctx.h"

typedef struct lpo_state lpo_state;

/*
 * Open or make the state of `output`: a file, a folder (trailing slashes are
 * removed) or a pattern (the text before '%').  run: the run id; options: the
 * canonical JSON object whose differences are named when the state on disk
 * belongs to another run.  fresh: discard what is there.
 * Snapshots that do not verify are named by lpo_notice() and passed over.
 * LPO_EINVAL: another run's state, or the folder is in use by another process;
 * LPO_EFORMAT: there are snapshots, and none verifies.
 */
int	 lpo_state_open(lpo_ctx *, lpo_state **, const char *output,
	    const char *run, const char *options, int fresh);
void	 lpo_state_close(lpo_state *);		/* NULL is fine; keeps files */
/* After success: removes the folder.  The handle is still to be closed. */
int	 lpo_state_remove(lpo_state *);
/* "PATH.state", valid until close. */
const char *lpo_state_path(const lpo_state *);

/* ------------------------------------------------ what was found, if any */

int	 lpo_state_found(const lpo_state *);	/* 1: there is a snapshot */
/* The counters it was committed with (JSON text), NULL when none. */
const char *lpo_state_counters(const lpo_state *);
/* Bytes of a blob, -1 when there is none of that name. */
int64_t	 lpo_state_blob_bytes(const lpo_state *, const char *name);
/*
 * Read a blob whole; bytes must be its size (else LPO_EFORMAT).  The CRC is
 * checked again.  Only until the next commit.
 */
int	 lpo_state_read(lpo_state *, const char *name, void *data,
	    size_t bytes);

/* ------------------------------------------------------------- a snapshot */

/*
 * begin, a blob per array, commit.  One blob at a time is in memory.  counters:
 * a JSON object of the caller's.  After a failure call begin again or give up;
 * the earlier snapshots are untouched until commit returns 0.
 */
int	 lpo_state_begin(lpo_state *);
int	 lpo_state_blob(lpo_state *, const char *name, const void *data,
	    size_t bytes);
int	 lpo_state_commit(lpo_state *, const char *counters);

/* 1 when `every_s` seconds have passed since open or the last commit. */
int	 lpo_state_due(const lpo_state *, double every_s);

#endif
