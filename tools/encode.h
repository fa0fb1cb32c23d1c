/* Inside of lpo-encode: what its files share. */
#ifndef LPO_TOOLS_ENCODE_H
#define LPO_TOOLS_ENCODE_H

#include "lib/io/shard.h"
#include "lib/train/encode.h"
#include "tools/cli_filter.h"
#include "tools/cli_plan.h"

#define KEPT_ROWS 1000	/* written to the database at a time */

struct encode_opts {
	struct lpo_cli_filter filter;
	const char *part;
	int64_t size_px, rows_per_shard;
	int exif, images_only, dtype;
};

struct encode_job {
	lpo_cli *cli;
	const struct encode_opts *o;
	int64_t size_px, rows, kept;
	int64_t part, parts;
	lpo_records *records;
	lpo_filters *filters;
	char *keep;		/* [rows]: 1 used, 0 filtered, 2 bad row */
	json_t **extra;		/* [rows] with joined scores, else NULL */
	lpo_vae *vae;
	lpo_encoder *encoder;
	int64_t batch;		/* images at a time, 0: not chosen yet */
	struct lpo_cli_dry dry;
	json_t *run;		/* __run__/run.json */
	lpo_shardw *out;
	int64_t shard_skipped, done;
	int already;		/* all shards of a pattern were there */
	struct lpo_record *row;	/* for the database: the last KEPT_ROWS */
	int n_row;
};

/* encode_input.c */
int	 lpo_encodetool_part(struct encode_job *);	/* parse --part */
/* The size that was asked for, or the model's own. */
int	 lpo_encodetool_size(struct encode_job *);
/* Fill keep[] and extra[]: filters act before any image is opened. */
int	 lpo_encodetool_select(struct encode_job *);
/* What the run id is made of, and __run__/run.json. */
int	 lpo_encodetool_inputs(struct encode_job *);
int	 lpo_encodetool_run_json(struct encode_job *);

#endif
