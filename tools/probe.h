/* Inside of lpo-probe: a component reads tensors, runs, leaves tensors. */
#ifndef LPO_TOOLS_PROBE_H
#define LPO_TOOLS_PROBE_H

#include "lib/io/safetensors.h"
#include "lib/model/lora.h"
#include "tools/cli.h"

struct lpo_probe_opts {
	const char *component, *input, *lora, *lrm, *file, *save, *threshold;
	int64_t repeat, steps, size_px;
	double eta, beta, clip, guidance, batch_coeff, aux_coeff;
	int grad, full, criterion, freeze_text, dtype, exif, devices;
};

struct lpo_probe {
	lpo_cli *cli;
	lpo_ctx *ctx;
	const struct lpo_probe_opts *o;
	lpo_st *in;		/* NULL: the component takes none */
	lpo_stw *out;
	void **kept;		/* memory the writer borrows */
	int n_kept, cap_kept;
	struct {
		lpo_var *var;
		const void *host;
	} input[8];
	int n_input;
	double *ms;		/* of each repeat */
};

/*
 * A tensor of the input, as f32 or i64, freed with the probe.  shape: what it
 * must be, -1 for any but 0; the -1 are filled in.  NULL: the error is stored.
 */
float	*lpo_probe_f32(struct lpo_probe *, const char *key, int ndim,
	    int64_t *shape);
int64_t	*lpo_probe_i64(struct lpo_probe *, const char *key, int ndim,
	    int64_t *shape);
/* Ids of tokens, none of them negative or beyond 31 bits. */
int32_t	*lpo_probe_ids(struct lpo_probe *, const char *key, int ndim,
	    int64_t *shape);
int	 lpo_probe_has(const struct lpo_probe *, const char *key);
/* Zeroed floats, freed with the probe. */
float	*lpo_probe_new(struct lpo_probe *, int64_t count);
/* An output; data is borrowed until the probe's end. */
int	 lpo_probe_put(struct lpo_probe *, const char *key, int ndim,
	    const int64_t *shape, const float *data);
/* The same of one number, a tensor of no dimensions. */
int	 lpo_probe_put_scalar(struct lpo_probe *, const char *key, double);
int	 lpo_probe_put_i64(struct lpo_probe *, const char *key, int ndim,
	    const int64_t *shape, const int64_t *data);
/*
 * An input of a tape with its value, to be set before each walk: its memory
 * serves others once it has been read.  host is kept.
 */
int	 lpo_probe_input(struct lpo_probe *, lpo_var *, const void *host);
/* The same of n numbers' sinusoids, [n, dim], as the UNet wants them. */
int	 lpo_probe_sinusoids(struct lpo_probe *, lpo_var *,
	    const lpo_unet *, const float *t, int64_t n, int64_t dim);
int	 lpo_probe_set_inputs(struct lpo_probe *, lpo_tape *);
/* Call fn --repeat times and keep the times. */
int	 lpo_probe_run(struct lpo_probe *, int (*fn)(void *), void *arg);

/* [n, c, hw] <-> [n, hw, c] */
void	 lpo_probe_to_hwc(float *out, const float *in, int64_t n, int64_t c,
	    int64_t hw);
void	 lpo_probe_to_chw(float *out, const float *in, int64_t n, int64_t c,
	    int64_t hw);
/* The value of a var of images, as [n, c, h, w] under `key`. */
int	 lpo_probe_put_image(struct lpo_probe *, lpo_tape *, const char *key,
	    const lpo_var *, int grad);
/* The value of any var; ndim and shape say how it is seen. */
int	 lpo_probe_put_var(struct lpo_probe *, lpo_tape *, const char *key,
	    const lpo_var *, int ndim, const int64_t *shape);
/* Gradients of all parameters as PREFIX + key. */
int	 lpo_probe_put_grads(struct lpo_probe *, lpo_params *,
	    const char *prefix);
/* The same of a LoRA, under the keys of the file it was read from. */
int	 lpo_probe_put_lora_grads(struct lpo_probe *, lpo_lora_set *);

/* The table of --devices. */
int	 lpo_probe_devices(lpo_cli *);

struct lpo_probe_component {
	const char *name;
	int (*run)(struct lpo_probe *);
	int takes_input;	/* -i is needed */
	int needs_model;	/* -m is needed */
};
/* Tables ended by a NULL name. */
extern const struct lpo_probe_component lpo_probe_models[];
extern const struct lpo_probe_component lpo_probe_train[];
extern const struct lpo_probe_component lpo_probe_lrm[];

#endif
