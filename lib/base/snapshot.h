/*
 * Snapshots of a long run inside its state folder (state.h: PATH.state, which
 * is made, locked, held against the run id and removed there).
 *
 *	DIR/snap-NNNNNNNNN/NAME			blobs
 *	DIR/snap-NNNNNNNNN/manifest.json
 *
 * A snapshot is written into a temporary folder, every file synced, the
 * manifest last, and then renamed; the two newest are kept.  The manifest has
 * the run id, the caller's counters, and length and CRC32C of every blob and
 * of itself.  A resumed run takes the newest snapshot that verifies
 * (reliability.md 2, promises 2 and 5).
 */
#ifndef LPO_BASE_SNAPSHOT_H
#define LPO_BASE_SNAPSHOT_H

#include "lib/base/ctx.h"

typedef struct lpo_snap lpo_snap;

/*
 * dir exists.  Looks for the newest snapshot of this run that verifies; those
 * that don't are named by lpo_notice() and passed over.
 * LPO_EINVAL: one of another run.  LPO_EFORMAT: there are snapshots, and none
 * verifies.
 */
int	 lpo_snap_open(lpo_ctx *, lpo_snap **, const char *dir,
	    const char *run);
void	 lpo_snap_close(lpo_snap *);	/* NULL is fine; keeps the files */

/* ------------------------------------------------ what was found, if any */

int	 lpo_snap_found(const lpo_snap *);	/* 1: there is a snapshot */
/* The counters it was committed with (JSON text), NULL when none. */
const char *lpo_snap_counters(const lpo_snap *);
/* Bytes of a blob, -1 when there is none of that name. */
int64_t	 lpo_snap_blob_bytes(const lpo_snap *, const char *name);
/*
 * Read a blob whole; bytes must be its size (else LPO_EFORMAT).  Only until
 * the next commit.
 */
int	 lpo_snap_read(lpo_snap *, const char *name, void *data, size_t bytes);

/* ------------------------------------------------------------- a snapshot */

/*
 * begin, a blob per array, commit.  A blob is on the disk when the call
 * returns, so one at a time need be in memory.  name: [a-z0-9._-]+, counters:
 * a JSON object of the caller's.  After a failure begin again or give up; the
 * earlier snapshots are untouched until commit returns 0.
 */
int	 lpo_snap_begin(lpo_snap *);
int	 lpo_snap_blob(lpo_snap *, const char *name, const void *data,
	    size_t bytes);
int	 lpo_snap_commit(lpo_snap *, const char *counters);

/* 1 when `every_s` seconds have passed since open or the last commit. */
int	 lpo_snap_due(const lpo_snap *, double every_s);

#endif
