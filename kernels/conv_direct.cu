/*
 * Convolutions where no library helps: one thread per result, neighbours in
 * its channels, and the sums of columns for the bias.  A line of taps or
 * pixels is summed before it joins the total.
 */
#include "kernels/conv_direct.h"

enum {
	COLS = 32,		/* columns and rows at once of a column sum */
	ROWS = 8
};

/* Of the rows of a column sum, at most. */
static const int64_t most_pieces = 128;

#define EACH(i, count) \
	for (int64_t i = (int64_t)blockIdx.x * CONV_THREADS + threadIdx.x; \
	    i < (count); i += (int64_t)gridDim.x * CONV_THREADS)

template <typename T>
static __global__ void
direct_fwd(T *y, const T *x, const T *w, const float *bias, const T *residual,
    struct lpo_conv_shape s)
{
	EACH(k, s.n * s.ho * s.wo * s.co) {
		int64_t o = k % s.co, q = k / s.co % s.wo;
		int64_t p = k / (s.co * s.wo) % s.ho;
		int64_t n = k / (s.co * s.wo * s.ho);
		float total = bias != NULL ? bias[o] : 0;

		for (int64_t i = 0; i < s.kh; i++) {
			int64_t ih = p * s.stride - s.pad_top + i;
			float line = 0;

			if (ih < 0 || ih >= s.h)
				continue;
			for (int64_t j = 0; j < s.kw; j++) {
				int64_t iw = q * s.stride - s.pad_left + j;
				const T *a = x + ((n * s.h + ih) * s.w + iw) *
				    s.ci;
				const T *b = w + ((o * s.kh + i) * s.kw + j) *
				    s.ci;

				if (iw < 0 || iw >= s.w)
					continue;
				for (int64_t c = 0; c < s.ci; c++)
					line += cuda_load(a + c) *
					    cuda_load(b + c);
			}
			total += line;
		}
		if (residual != NULL)
			total += cuda_load(residual + k);
		cuda_store(y + k, total);
	}
}

int
cuda_conv_direct_fwd(struct cuda *c, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s)
{
	unsigned blocks = conv_blocks(s->n * s->ho * s->wo * s->co);

	if (dt == LPO_BF16)
		direct_fwd<<<blocks, CONV_THREADS, 0, c->stream>>>(
		    (__nv_bfloat16 *)y, (const __nv_bfloat16 *)x,
		    (const __nv_bfloat16 *)w, bias,
		    (const __nv_bfloat16 *)residual, *s);
	else
		direct_fwd<<<blocks, CONV_THREADS, 0, c->stream>>>((float *)y,
		    (const float *)x, (const float *)w, bias,
		    (const float *)residual, *s);
	return cuda_done(c, "conv_fwd");
}

/* dx[ih,iw] collects the y[p,q] with p * stride - pad_top + i = ih, .. */
template <typename T>
static __global__ void
direct_bwd_data(T *dx, const T *dy, const T *w, struct lpo_conv_shape s,
    int add)
{
	EACH(k, s.n * s.h * s.w * s.ci) {
		int64_t c = k % s.ci, iw = k / s.ci % s.w;
		int64_t ih = k / (s.ci * s.w) % s.h;
		int64_t n = k / (s.ci * s.w * s.h);
		float total = 0;

		for (int64_t i = 0; i < s.kh; i++) {
			int64_t p = ih + s.pad_top - i;
			float line = 0;

			if (p < 0 || p % s.stride != 0 ||
			    p / s.stride >= s.ho)
				continue;
			p /= s.stride;
			for (int64_t j = 0; j < s.kw; j++) {
				int64_t q = iw + s.pad_left - j;
				const T *a, *b;

				if (q < 0 || q % s.stride != 0 ||
				    q / s.stride >= s.wo)
					continue;
				q /= s.stride;
				a = dy + ((n * s.ho + p) * s.wo + q) * s.co;
				b = w + (i * s.kw + j) * s.ci + c;
				for (int64_t o = 0; o < s.co; o++)
					line += cuda_load(a + o) * cuda_load(b +
					    o * s.kh * s.kw * s.ci);
			}
			total += line;
		}
		if (add)
			total += cuda_load(dx + k);
		cuda_store(dx + k, total);
	}
}

int
cuda_conv_direct_bwd_data(struct cuda *c, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, const struct lpo_conv_shape *s, int add)
{
	unsigned blocks = conv_blocks(s->n * s->h * s->w * s->ci);

	if (dt == LPO_BF16)
		direct_bwd_data<<<blocks, CONV_THREADS, 0, c->stream>>>(
		    (__nv_bfloat16 *)dx, (const __nv_bfloat16 *)dy,
		    (const __nv_bfloat16 *)w, *s, add);
	else
		direct_bwd_data<<<blocks, CONV_THREADS, 0, c->stream>>>(
		    (float *)dx, (const float *)dy, (const float *)w, *s,
		    add);
	return cuda_done(c, "conv_bwd_data");
}

template <typename T>
static __global__ void
direct_bwd_weight(float *dw, const T *dy, const T *x, struct lpo_conv_shape s)
{
	EACH(k, s.co * s.kh * s.kw * s.ci) {
		int64_t c = k % s.ci, j = k / s.ci % s.kw;
		int64_t i = k / (s.ci * s.kw) % s.kh;
		int64_t o = k / (s.ci * s.kw * s.kh);
		float total = 0;

		for (int64_t r = 0; r < s.n * s.ho; r++) {
			int64_t n = r / s.ho, p = r % s.ho;
			int64_t ih = p * s.stride - s.pad_top + i;
			const T *a = dy + r * s.wo * s.co + o;
			const T *b = x + (n * s.h + ih) * s.w * s.ci + c;
			float line = 0;

			if (ih < 0 || ih >= s.h)
				continue;
			for (int64_t q = 0; q < s.wo; q++) {
				int64_t iw = q * s.stride - s.pad_left + j;

				if (iw >= 0 && iw < s.w)
					line += cuda_load(a + q * s.co) *
					    cuda_load(b + iw * s.ci);
			}
			total += line;
		}
		dw[k] += total;
	}
}

int
cuda_conv_direct_bwd_weight(struct cuda *c, enum lpo_dtype dt, float *dw,
    const void *dy, const void *x, const struct lpo_conv_shape *s)
{
	unsigned blocks = conv_blocks(s->co * s->kh * s->kw * s->ci);

	if (dt == LPO_BF16)
		direct_bwd_weight<<<blocks, CONV_THREADS, 0, c->stream>>>(dw,
		    (const __nv_bfloat16 *)dy, (const __nv_bfloat16 *)x, *s);
	else
		direct_bwd_weight<<<blocks, CONV_THREADS, 0, c->stream>>>(dw,
		    (const float *)dy, (const float *)x, *s);
	return cuda_done(c, "conv_bwd_weight");
}

/*
 * Column sums in two steps: pieces of rows each by a block, ROWS threads to
 * a column, then the pieces in their order.
 */
template <typename T>
static __global__ void
sum_pieces(float *piece, const T *dy, int64_t m, int64_t co, int64_t rows)
{
	__shared__ float part[ROWS][COLS];
	int64_t o = (int64_t)blockIdx.x * COLS + threadIdx.x;
	int64_t r = blockIdx.y * rows + threadIdx.y;
	int64_t end = min((int64_t)(blockIdx.y + 1) * rows, m);
	float sum = 0;

	if (o < co)
		for (; r < end; r += ROWS)
			sum += cuda_load(dy + r * co + o);
	part[threadIdx.y][threadIdx.x] = sum;
	__syncthreads();
	if (threadIdx.y != 0 || o >= co)
		return;
	for (int i = 1; i < ROWS; i++)
		sum += part[i][threadIdx.x];
	piece[blockIdx.y * co + o] = sum;
}

static __global__ void
sum_of_pieces(float *db, const float *piece, int64_t pieces, int64_t co)
{
	int64_t o = (int64_t)blockIdx.x * CONV_THREADS + threadIdx.x;
	float sum = 0;

	if (o >= co)
		return;
	for (int64_t i = 0; i < pieces; i++)
		sum += piece[i * co + o];
	db[o] += sum;
}

/* At least 64 rows each. */
static int64_t
pieces_of(int64_t m)
{
	int64_t p = (m + 63) / 64;

	return p < most_pieces ? p : most_pieces;
}

int
cuda_conv_column_sums(struct cuda *c, enum lpo_dtype dt, float *db,
    const void *dy, int64_t m, int64_t co, float *piece)
{
	int64_t pieces = pieces_of(m), rows = (m + pieces - 1) / pieces;
	dim3 grid((unsigned)((co + COLS - 1) / COLS), (unsigned)pieces);
	dim3 block(COLS, ROWS);
	int rc;

	if (dt == LPO_BF16)
		sum_pieces<<<grid, block, 0, c->stream>>>(piece,
		    (const __nv_bfloat16 *)dy, m, co, rows);
	else
		sum_pieces<<<grid, block, 0, c->stream>>>(piece,
		    (const float *)dy, m, co, rows);
	rc = cuda_done(c, "conv");
	if (rc != 0)
		return rc;
	sum_of_pieces<<<conv_blocks(co), CONV_THREADS, 0, c->stream>>>(db,
	    piece, pieces, co);
	return cuda_done(c, "conv");
}

size_t
cuda_conv_column_sums_bytes(int64_t m, int64_t co)
{
	return (size_t)(pieces_of(m) * co) * sizeof(float);
}
