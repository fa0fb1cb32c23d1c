/*
 * Ops on rows of channels: broadcast add, nearest-neighbour resize, concat,
 * mean over positions, gather, token embedding.  Sums over rows are cut by
 * columns, never by rows, so threads never meet in one element.
 */
#include "kernels/ints.h"
#include "kernels/load.h"
#include "kernels/levels.h"

enum {
	SERIAL = 32768,		/* elements below which threads cost more */
	COLS = 64,		/* columns of one piece of a sum over rows */
	TILE = 8,		/* rows read while they pass through L1 */
	RUN = 64		/* rows summed before they join the total */
};

static inline int64_t
col_blocks(int64_t c)
{
	return (c + COLS - 1) / COLS;
}

/* s[i] += the sum of one vector of columns over some rows */
inlined void
column_vec(int64_t i, int64_t n, enum lpo_dtype dt, float *s, const void *x,
    int64_t rows, int64_t c)
{
	vf sum = vf_load(s + i);
	int64_t r;

	for (r = 0; r < rows; r++)
		sum += vld_n(dt, x, r * c + i, n);
	vf_store(s + i, sum);
}

/*
 * Sum over hw rows of w <= COLS columns, in runs: a plain f32 sum of 4096
 * rows would lose three digits.
 */
inlined void
column_sums(enum lpo_dtype dt, float *total, const void *x, int64_t hw,
    int64_t c, int64_t w)
{
	float run[COLS + VL];
	int64_t at, p, end, i;

	memset(total, 0, (COLS + VL) * sizeof(float));
	for (at = 0; at < hw; at = end) {
		end = min64(at + RUN, hw);
		memset(run, 0, sizeof(run));
		for (p = at; p < end; p += TILE)
			BY_VEC(i, w, column_vec, dt, run, elem(dt, x, p * c),
			    min64(TILE, end - p), c);
		for (i = 0; i < w; i++)
			total[i] += run[i];
	}
}

inlined void
add_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *y, const void *x,
    const void *r)
{
	vst_n(dt, y, i, n, vld_n(dt, x, i, n) + vld_n(dt, r, i, n));
}

inlined void
add_row(enum lpo_dtype dt, void *y, const void *x, const void *r, int64_t c)
{
	int64_t i;

	BY_VEC(i, c, add_vec, dt, y, x, r);
}

int
LPO_FN(lpo_add_rows_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    const void *x, const void *r, int64_t n, int64_t hw, int64_t c)
{
	int64_t p;

	(void)b;
#pragma omp parallel for schedule(static) if (n * hw * c > SERIAL)
	for (p = 0; p < n * hw; p++)
		BY_DTYPE(dt, add_row, elem(dt, y, p * c), elem(dt, x, p * c),
		    elem(dt, r, p / hw * c), c);
	return 0;
}

int
LPO_FN(lpo_add_rows_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dr,
    const void *dy, int64_t n, int64_t hw, int64_t c, int add)
{
	int64_t blocks = col_blocks(c), u;

	(void)b;
	if (dr == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (n * hw * c > SERIAL)
	for (u = 0; u < n * blocks; u++) {
		int64_t k = u / blocks, from = u % blocks * COLS, i;
		int64_t w = min64(COLS, c - from);
		void *drk = elem(dt, dr, k * c + from);
		float s[COLS + VL];

		BY_DTYPE(dt, column_sums, s, elem(dt, dy, k * hw * c + from),
		    hw, c, w);
		for (i = 0; i < w; i += VL)
			vput(dt, add, drk, i, min64(VL, w - i),
			    vf_load(s + i));
	}
	return 0;
}

int
LPO_FN(lpo_mean_pool_fwd)(lpo_backend *b, enum lpo_dtype dt, float *y,
    const void *x, int64_t n, int64_t hw, int64_t c)
{
	int64_t blocks = col_blocks(c), u;

	(void)b;
#pragma omp parallel for schedule(static) if (n * hw * c > SERIAL)
	for (u = 0; u < n * blocks; u++) {
		int64_t k = u / blocks, from = u % blocks * COLS, i;
		int64_t w = min64(COLS, c - from);
		float s[COLS + VL];

		BY_DTYPE(dt, column_sums, s, elem(dt, x, k * hw * c + from),
		    hw, c, w);
		for (i = 0; i < w; i++)
			y[k * c + from + i] = s[i] / (float)hw;
	}
	return 0;
}

int
LPO_FN(lpo_mean_pool_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    const float *dy, int64_t n, int64_t hw, int64_t c, int add)
{
	int64_t p;

	(void)b;
	if (dx == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (n * hw * c > SERIAL)
	for (p = 0; p < n * hw; p++) {
		const float *dyk = dy + p / hw * c;
		void *dxr = elem(dt, dx, p * c);
		int64_t i;

		for (i = 0; i < c; i += VL)
			vput(dt, add, dxr, i, min64(VL, c - i),
			    vld(LPO_F32, dyk, i, c) / (float)hw);
	}
	return 0;
}

/* torch's nearest: the general case is computed in f32, as there. */
static inline int64_t
source_of(int64_t dst, int64_t src_len, int64_t dst_len)
{
	if (dst_len == 2 * src_len)
		return dst >> 1;
	return min64((int64_t)((float)dst * ((float)src_len / (float)dst_len)),
	    src_len - 1);
}

/* The first destination whose source is at or after s (dst_len: none). */
static inline int64_t
first_of(int64_t s, int64_t src_len, int64_t dst_len)
{
	int64_t d = min64(s * dst_len / src_len, dst_len);

	while (d > 0 && source_of(d - 1, src_len, dst_len) >= s)
		d--;
	while (d < dst_len && source_of(d, src_len, dst_len) < s)
		d++;
	return d;
}

int
LPO_FN(lpo_upsample_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    const void *x, int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho,
    int64_t wo)
{
	size_t bytes = (size_t)(c * elem_bytes(dt));
	int64_t u;

	(void)b;
#pragma omp parallel for schedule(static) if (n * ho * wo * c > SERIAL)
	for (u = 0; u < n * ho; u++) {
		int64_t row = u / ho * h + source_of(u % ho, h, ho), q;

		for (q = 0; q < wo; q++)
			memcpy(elem(dt, y, (u * wo + q) * c), elem(dt, x,
			    (row * w + source_of(q, w, wo)) * c), bytes);
	}
	return 0;
}

inlined void
pixel_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *dx, const void *dy,
    int64_t rows, int64_t row, int64_t cols, int64_t col, int add)
{
	vf s = {0};
	int64_t p, q;

	for (p = 0; p < rows; p++)
		for (q = 0; q < cols; q++)
			s += vld_n(dt, dy, p * row + q * col + i, n);
	vput(dt, add, dx, i, n, s);
}

/*
 * dx of one source pixel (+)= the sum of its copies, rows x cols pixels from
 * dy on; row and col are the elements of a row and of a pixel.
 */
inlined void
upsample_pixel(enum lpo_dtype dt, void *dx, const void *dy, int64_t rows,
    int64_t row, int64_t cols, int64_t col, int add)
{
	int64_t i;

	if (rows == 2 && cols == 2)
		BY_VEC(i, col, pixel_vec, dt, dx, dy, 2, row, 2, col, add);
	else
		BY_VEC(i, col, pixel_vec, dt, dx, dy, rows, row, cols, col,
		    add);
}

int
LPO_FN(lpo_upsample_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    const void *dy, int64_t n, int64_t h, int64_t w, int64_t c, int64_t ho,
    int64_t wo, int add)
{
	int64_t u;

	(void)b;
	if (dx == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (n * ho * wo * c > SERIAL)
	for (u = 0; u < n * h; u++) {
		const void *img = elem(dt, dy, u / h * ho * wo * c);
		int64_t p0 = first_of(u % h, h, ho);
		int64_t p1 = first_of(u % h + 1, h, ho), q0, q1 = 0, s;

		for (s = 0; s < w; s++) {
			q0 = q1;
			q1 = first_of(s + 1, w, wo);
			BY_DTYPE(dt, upsample_pixel, elem(dt, dx,
			    (u * w + s) * c), elem(dt, img,
			    (p0 * wo + q0) * c), p1 - p0, wo * c, q1 - q0, c,
			    add);
		}
	}
	return 0;
}

int
LPO_FN(lpo_concat_fwd)(lpo_backend *be, enum lpo_dtype dt, void *y,
    const void *a, const void *b, int64_t m, int64_t ca, int64_t cb)
{
	int64_t e = elem_bytes(dt), r;

	(void)be;
#pragma omp parallel for schedule(static) if (m * (ca + cb) > SERIAL)
	for (r = 0; r < m; r++) {
		memcpy(elem(dt, y, r * (ca + cb)), elem(dt, a, r * ca),
		    (size_t)(ca * e));
		memcpy(elem(dt, y, r * (ca + cb) + ca), elem(dt, b, r * cb),
		    (size_t)(cb * e));
	}
	return 0;
}

inlined void
acc_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *y, const void *a)
{
	vput(dt, 1, y, i, n, vld_n(dt, a, i, n));
}

/* y = a, or y += a if `add` */
inlined void
put_row(enum lpo_dtype dt, void *y, const void *a, int64_t n, int add)
{
	int64_t i;

	if (add)
		BY_VEC(i, n, acc_vec, dt, y, a);
	else
		memcpy(y, a, (size_t)(n * elem_bytes(dt)));
}

int
LPO_FN(lpo_concat_bwd)(lpo_backend *be, enum lpo_dtype dt, void *da, void *db,
    const void *dy, int64_t m, int64_t ca, int64_t cb, int add)
{
	int64_t r;

	(void)be;
#pragma omp parallel for schedule(static) if (m * (ca + cb) > SERIAL)
	for (r = 0; r < m; r++) {
		const void *dyr = elem(dt, dy, r * (ca + cb));

		if (da != NULL)
			BY_DTYPE(dt, put_row, elem(dt, da, r * ca), dyr, ca,
			    add & LPO_ADD_A);
		if (db != NULL)
			BY_DTYPE(dt, put_row, elem(dt, db, r * cb),
			    elem(dt, dyr, ca), cb, add & LPO_ADD_B);
	}
	return 0;
}

int
LPO_FN(lpo_gather_rows_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    const void *x, const int32_t *index, int64_t n, int64_t c, int64_t rows)
{
	size_t bytes = (size_t)(c * elem_bytes(dt));
	int64_t i;

	(void)b;
	for (i = 0; i < n; i++)
		if (index[i] < 0 || index[i] >= rows)
			return LPO_EINVAL;
#pragma omp parallel for schedule(static) if (n * c > SERIAL)
	for (i = 0; i < n; i++)
		memcpy(elem(dt, y, i * c), elem(dt, x, index[i] * c), bytes);
	return 0;
}

int
LPO_FN(lpo_gather_rows_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    const void *dy, const int32_t *index, int64_t n, int64_t c, int64_t rows,
    int add)
{
	int64_t i, u;

	(void)b;
	for (i = 0; i < n; i++)
		if (index[i] < 0 || index[i] >= rows)
			return LPO_EINVAL;
	if (dx == NULL)
		return 0;
	begin_grad(dt, dx, rows * c, add);
	/* two rows may share a target: threads split the columns */
#pragma omp parallel for schedule(static) if (n * c > SERIAL)
	for (u = 0; u < col_blocks(c); u++) {
		int64_t from = u * COLS, to = min64(from + COLS, c), k;

		for (k = 0; k < n; k++)
			BY_DTYPE(dt, put_row, elem(dt, dx,
			    index[k] * c + from), elem(dt, dy, k * c + from),
			    to - from, 1);
	}
	return 0;
}

int
LPO_FN(lpo_embed_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    const int32_t *id, const float *table, const float *position, int64_t n,
    int64_t l, int64_t c)
{
	int64_t r;

	(void)b;
#pragma omp parallel for schedule(static) if (n * l * c > SERIAL)
	for (r = 0; r < n * l; r++) {
		const float *t = table + id[r] * c;
		const float *pos = position != NULL ? position + r % l * c :
		    NULL;
		void *yr = elem(dt, y, r * c);
		int64_t i;

		for (i = 0; i < c; i += VL) {
			vf v = vld(LPO_F32, t, i, c);

			vst(dt, yr, i, c, pos == NULL ? v : v +
			    vld(LPO_F32, pos, i, c));
		}
	}
	return 0;
}

int
LPO_FN(lpo_embed_bwd)(lpo_backend *b, enum lpo_dtype dt, float *dtable,
    float *dposition, const void *dy, const int32_t *id, int64_t n,
    int64_t l, int64_t c)
{
	int64_t u;

	(void)b;
#pragma omp parallel for schedule(static) if (n * l * c > SERIAL)
	for (u = 0; u < col_blocks(c); u++) {
		int64_t from = u * COLS, to = min64(from + COLS, c), r, i;

		for (r = 0; r < n * l; r++)
			for (i = from; i < to; i += VL) {
				vf d = vld(dt, elem(dt, dy, r * c), i, to);

				if (dtable != NULL)
					vacc(LPO_F32, dtable + id[r] * c, i,
					    to, d);
				if (dposition != NULL)
					vacc(LPO_F32, dposition + r % l * c,
					    i, to, d);
			}
	}
	return 0;
}
