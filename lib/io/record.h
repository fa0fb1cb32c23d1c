/*
 * A preference: two images, a prompt, who won.  lpo-encode reads them from
 * tables, folders and WebDataset tars (spec/cli.md section 2); in shards they
 * are KEY.json (section 1.1).
 */
#ifndef LPO_IO_RECORD_H
#define LPO_IO_RECORD_H

#include <stdint.h>

#include <jansson.h>

#include "lib/base/ctx.h"

#define LPO_KEY_SIZE 48

struct lpo_record {
	char key[LPO_KEY_SIZE];	/* the row in nine digits */
	int64_t row;		/* 0-based row of the whole input */
	char *id;		/* the user's; NULL: none */
	char *prompt;
	double label_0, label_1;	/* sum 1; .5 .5 is a tie */
	int64_t num_example_per_prompt;	/* over the whole input */
	json_t *extra;		/* object: every further column */
	char *image[2];		/* where it comes from, for messages and for
				   knowing shared images: a path, or
				   "a.tar:KEY.0.jpg"; NULL from a shard */
};

void	 lpo_record_clear(struct lpo_record *);
int	 lpo_record_is_tie(const struct lpo_record *);	/* label_0 == label_1 */
/* From and to KEY.json (no crc32c; to_json: the caller's reference). */
int	 lpo_record_from_json(lpo_ctx *, struct lpo_record *, const json_t *);
int	 lpo_record_to_json(lpo_ctx *, json_t **, const struct lpo_record *);
/*
 * A field by name, as a filter sees it: the columns above, else from extra;
 * for pairs also timestep_0, timestep_1, epoch, kept in extra by the caller.
 * The caller's reference; NULL where absent.
 */
json_t	*lpo_record_field(const struct lpo_record *, const char *name);

/*
 * A whole input.  Position i is the row, so bad rows keep their place:
 * lpo_records_error() says why a row can't be used.
 */
typedef struct lpo_records lpo_records;

#define LPO_RECORDS_IMAGES_ONLY 1	/* one image a row, no preferences */
#define LPO_RECORDS_UNLABELLED 2	/* who won is not looked at */

/*
 * paths: tables, folders, tars, any mix, rows counted through.  LPO_EFORMAT
 * for what makes a whole input useless (no column `prompt`, …).
 */
int	 lpo_records_open(lpo_ctx *, lpo_records **,
	    const char *const *paths, int n_paths, unsigned flags);
void	 lpo_records_close(lpo_records *);	/* NULL is fine */
int64_t	 lpo_records_count(const lpo_records *);
/* NULL: row i is good.  "prefs.csv:17: label_0 and label_1 are missing". */
const char *lpo_records_error(const lpo_records *, int64_t i);
/* Fills rec (to be cleared).  A bad row: LPO_EFORMAT with its reason. */
int	 lpo_records_get(lpo_ctx *, struct lpo_record *, lpo_records *,
	    int64_t i);
/*
 * The bytes of image 0 or 1 of row i: a file of at most 256 MB or a member
 * of a tar.  lpo_free() them.
 */
int	 lpo_records_image(lpo_ctx *, uint8_t **, int64_t *bytes,
	    lpo_records *, int64_t i, int which);
/*
 * SHA-256 that stands for the input in the run id: the tables', tars' and
 * .txt files' bytes and names and sizes of images (their bytes would have to
 * be read twice).  Each image's own SHA-256 is the caller's to record.
 */
int	 lpo_records_sha256(lpo_ctx *, char out[65], lpo_records *);

#endif
