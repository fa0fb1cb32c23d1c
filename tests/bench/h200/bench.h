/*
 * Speed of the backend, its ops, the networks and a whole iteration, with
 * random weights.  Times are the host's around batches of calls that end with
 * a sync; every figure is the median of several after a warm-up, and stands
 * beside the ceiling of the same run.
 */
#ifndef LPO_BENCH_H
#define LPO_BENCH_H

#include "kernels/plugin.h"
#include "lib/base/ctx.h"

struct bench {
	lpo_ctx *ctx;
	lpo_backend be;
	int gpu, device;
	int quick;		/* fewer and shorter batches */
	int tiny;		/* small models and shapes, to try it out */
	int values;		/* networks once at few rows, for values */
	int bf16;		/* the device has it */
	double flops[2];	/* a second: f32, bf16; 0: not measured */
	double copied;		/* bytes a second, read and written */
	void *normals[2];	/* f32, bf16: BENCH_NORMALS of them, on it */
};

enum { BENCH_NORMALS = 1 << 20 };

/* One line of the table; a figure that is 0 shows as '-'. */
struct bench_line {
	const char *section, *name;
	char shape[80];
	enum lpo_dtype dt;
	int64_t rows;
	double ms;
	double flops, moved;	/* of one run: operations, bytes at least */
	size_t bytes;		/* of memory that it takes */
};
void	 bench_put(struct bench *, const struct bench_line *);
/* A line of words for people, behind '# '. */
void	 bench_say(const char *fmt, ...)
	    __attribute__((format(printf, 1, 2)));

/* Milliseconds of one run; those of a batch follow each other without sync. */
int	 bench_time(struct bench *, double *ms, int (*run)(void *), void *arg);
int	 bench_sync(struct bench *);
/* rc, with the device's words for it as the context's error. */
int	 bench_fail(struct bench *, int rc, const char *what);
/* Memory in use on the device. */
size_t	 bench_used(struct bench *);
/* A buffer of `count` normals (dt F32 or BF16); NULL: no memory. */
void	*bench_buffer(struct bench *, enum lpo_dtype dt, int64_t count);
/* count normals on the host; lpo_free() them. */
float	*bench_normals(struct bench *, int64_t count, uint32_t item);

/* "random:sd15" and the like. */
const char *bench_model(const struct bench *, int xl);

/* ---- sections: 0 or LPO_E* with its words in the context */
int	 bench_ceilings(struct bench *);
int	 bench_ops(struct bench *);
int	 bench_unet(struct bench *);
int	 bench_unet_f32(struct bench *);
int	 bench_lrm(struct bench *);
int	 bench_vae(struct bench *);
int	 bench_clip(struct bench *);
int	 bench_sdxl(struct bench *);
int	 bench_profile(struct bench *);
int	 bench_lpo(struct bench *);
int	 bench_lpo_f32(struct bench *);
int	 bench_lpo_sdxl(struct bench *);
int	 bench_lrm_train(struct bench *);

/* ---- trace.c: the time of each op, for the profile */

/* Calls of be from now on (of tapes made from now on) are timed one by one. */
void	 trace_begin(struct bench *);
void	 trace_forget(void);	/* what was timed so far */
/* One line for each op and shape, the longest first; divided by `walks`. */
void	 trace_put(struct bench *, const char *section, enum lpo_dtype dt,
	    int64_t rows, int walks);
void	 trace_end(struct bench *);

/* ---- device_*.c: what a program was built for; name NULL: the first */
int	 device_open(struct bench *, const char *name, char *text,
	    size_t text_bytes);
void	 device_close(struct bench *);
void	 device_say(struct bench *);

#endif
