/*
 * Images to VAE moments: decode, resize and encode in batches of one fixed
 * shape; an image met again is not encoded again (method.md 2.3, 2.4).  An
 * image's moments do not depend on its batch.
 */
#ifndef LPO_TRAIN_ENCODE_H
#define LPO_TRAIN_ENCODE_H

#include "lib/io/npy.h"
#include "lib/model/vae.h"

struct lpo_encoder_opts {
	int64_t size_px;	/* side of the square the image becomes */
	int exif;		/* turn by EXIF first */
	enum lpo_npy_type dtype;	/* of the moments: F2 or F4 */
	int64_t memory_bytes;	/* for activations; 0: no limit */
	int64_t cache_bytes;	/* moments to be met again; 0: 256 MiB */
	int64_t batch;		/* 0: chosen */
};

typedef struct lpo_encoder lpo_encoder;

/*
 * The VAE needs its encoder part and outlives the encoder.  LPO_EINVAL: a
 * size the VAE's factor does not divide.
 */
int	 lpo_encoder_new(lpo_ctx *, lpo_encoder **, lpo_backend *, lpo_vae *,
	    enum lpo_dtype, const struct lpo_encoder_opts *);
void	 lpo_encoder_free(lpo_encoder *);	/* NULL is fine */
const struct lpo_plan *lpo_encoder_plan(const lpo_encoder *);
int64_t	 lpo_encoder_batch(const lpo_encoder *);
/* Images per lpo_encoder_run() that keep all threads busy. */
int64_t	 lpo_encoder_window(const lpo_encoder *);
/* [2c, h, w] */
void	 lpo_encoder_shape(const lpo_encoder *, int64_t shape[3]);

struct lpo_encode_item {
	const uint8_t *data;	/* in: the image file's bytes, borrowed */
	int64_t bytes;
	const uint8_t *npy;	/* out: moments as .npy, valid until the next
				 * run; NULL: this image is bad ... */
	int64_t npy_bytes;
	const char *error;	/* ... for this reason, valid as long */
};
/*
 * Any number of images.  A bad image is not a failure of the call; after a
 * failure the encoder is only good for lpo_encoder_free().
 */
int	 lpo_encoder_run(lpo_encoder *, struct lpo_encode_item *, int64_t n);
/*
 * Seconds the VAE takes for one image; of an encoder on a dry backend
 * (lpo_tape_time).
 */
int	 lpo_encoder_time(lpo_encoder *, double *seconds);
/* Images given, and images that went through the VAE, so far. */
void	 lpo_encoder_counts(const lpo_encoder *, int64_t *given,
	    int64_t *encoded);

#endif
