/*
 * Rows picked by an index: gather, token embedding.  Gradients that meet in a
 * row are added in the order of the indices.
 */
#include "kernels/cuda_vec.h"

enum {
	THREADS = 256,		/* of a block of embed_table */
	WARP = 32
};

/*
 * The indices are the device's: where each call is checked the host sees
 * them; else a bad one ends the kernel, which a later call reports.
 */
static int
check_indices(struct cuda *cu, const int32_t *index, int64_t n, int64_t rows,
    const char *what)
{
	int64_t i;

	for (i = 0; cu->checked && i < n; i++)
		if (index[i] < 0 || index[i] >= rows)
			return cuda_fail(cu, LPO_EINVAL, what,
			    "an index outside of the rows");
	return 0;
}

template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
gather_forward(void *yv, const void *xv, const int32_t *index,
    struct cuda_deal d, int64_t rows)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *x = (const T *)xv + col * V;
	T *y = (T *)yv + col * V;
	cuda_pack<T, V> a[CUDA_STEPS];
	int64_t r, from;
	int u;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		from = index[r];
		if (from < 0 || from >= rows)
			__trap();
		a[u] = cuda_read<T, V>(x + from * d.w * V);
	}
	CUDA_EACH_ROW(d, row, u, r)
		cuda_put<T, V>(y + r * d.w * V, a[u]);
}

int
cuda_gather_rows_fwd(lpo_backend *be, enum lpo_dtype dt, void *y,
    const void *x, const int32_t *index, int64_t n, int64_t c, int64_t rows)
{
	int wide = cuda_wide(c, y, x, NULL);
	struct cuda_deal d;
	int rc;

	if ((rc = check_indices(cuda_of(be), index, n, rows,
	    "gather_rows_fwd")) < 0)
		return rc;
	if (n == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), n, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(gather_forward, dt, wide, d.blocks, d.threads, 0, be, y,
	    x, index, d, rows);
	return cuda_done(cuda_of(be), "gather_rows_fwd");
}

/* Each row of dx looks for those of the n rows of dy that are its own. */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
gather_backward(void *dxv, const void *dyv, const int32_t *index, int64_t n,
    struct cuda_deal d, int add)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *dy = (const T *)dyv + col * V;
	T *dx = (T *)dxv + col * V;
	float v[V], s[V];
	int64_t r, i;
	int u, j, named;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		named = 0;
#pragma unroll
		for (j = 0; j < V; j++)
			s[j] = 0.0f;
		for (i = 0; i < n; i++) {
			if (index[i] < 0 || index[i] >= d.rows)
				__trap();
			if (index[i] != r)
				continue;
			named = 1;
			cuda_unpack(v, cuda_read<T, V>(dy + i * d.w * V));
#pragma unroll
			for (j = 0; j < V; j++)
				s[j] += v[j];
		}
		if (named || !add)
			cuda_store_or_add<T, V>(dx + r * d.w * V, s, add);
	}
}

int
cuda_gather_rows_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const int32_t *index, int64_t n, int64_t c, int64_t rows,
    int add)
{
	int wide = cuda_wide(c, dx, dy, NULL);
	struct cuda_deal d;
	int rc;

	if ((rc = check_indices(cuda_of(be), index, n, rows,
	    "gather_rows_bwd")) < 0)
		return rc;
	if (dx == NULL || rows == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), rows, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(gather_backward, dt, wide, d.blocks, d.threads, 0, be, dx,
	    dy, index, n, d, add);
	return cuda_done(cuda_of(be), "gather_rows_bwd");
}

template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
embed_forward(void *yv, const int32_t *id, const float *table,
    const float *position, struct cuda_deal d, int64_t l)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	T *y = (T *)yv + col * V;
	float v[V], w[V];
	int64_t r;
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		cuda_unpack(v, cuda_read<float, V>(table + (id[r] * d.w +
		    col) * V));
		if (position != NULL) {
			cuda_unpack(w, cuda_read<float, V>(position +
			    ((r - cuda_quotient(r, l) * l) * d.w + col) * V));
#pragma unroll
			for (j = 0; j < V; j++)
				v[j] += w[j];
		}
		cuda_write<V>(y + r * d.w * V, v);
	}
}

int
cuda_embed_fwd(lpo_backend *be, enum lpo_dtype dt, void *y,
    const int32_t *id, const float *table, const float *position, int64_t n,
    int64_t l, int64_t c)
{
	int wide = cuda_wide(c, y, table, position);
	struct cuda_deal d;

	if (n == 0 || l == 0 || c == 0)
		return 0;
	d = cuda_deal_of(cuda_of(be), n * l, wide ? c / CUDA_WIDE : c);
	CUDA_LAUNCH(embed_forward, dt, wide, d.blocks, d.threads, 0, be, y,
	    id, table, position, d, l);
	return cuda_done(cuda_of(be), "embed_fwd");
}

/* list = the i in [from, from + THREADS) with id[i] = me, in order */
static __device__ __forceinline__ int
find_same(int64_t *list, int *found, const int32_t *id, int32_t me,
    int64_t from, int64_t count)
{
	const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
	int64_t i = from + threadIdx.x;
	int hit = i < count && id[i] == me, k, at = 0, all = 0;
	unsigned int mask = __ballot_sync(0xffffffffu, hit);

	__syncthreads();	/* the last list has been used */
	if (lane == 0)
		found[warp] = __popc(mask);
	__syncthreads();
	for (k = 0; k < THREADS / WARP; k++) {
		at += k < warp ? found[k] : 0;
		all += found[k];
	}
	if (hit)
		list[at + __popc(mask & ((1u << lane) - 1))] = i;
	__syncthreads();
	return all;
}

/*
 * dtable: the block of an id's first occurrence adds up all of them, in their
 * order, to what the table's row has; the other blocks have nothing to do.
 */
template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
embed_table(float *dtable, const void *dyv, const int32_t *id, int64_t count,
    int64_t c)
{
	__shared__ int64_t list[THREADS];
	__shared__ int found[THREADS / WARP];
	const int64_t col = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * V;
	const T *dy = (const T *)dyv + col;
	const int32_t me = id[blockIdx.x];
	int64_t i;
	float v[V], s[V];
	int j, k, all, earlier = 0;

	for (i = threadIdx.x; i < blockIdx.x; i += THREADS)
		earlier |= id[i] == me;
	if (__syncthreads_or(earlier))
		return;
	if (col < c)
		cuda_unpack(s, cuda_read<float, V>(dtable + me * c + col));
	for (i = blockIdx.x; i < count; i += THREADS) {
		all = find_same(list, found, id, me, i, count);
		if (col >= c)
			continue;
#pragma unroll 4
		for (k = 0; k < all; k++) {
			cuda_unpack(v, cuda_read<T, V>(dy + list[k] * c));
#pragma unroll
			for (j = 0; j < V; j++)
				s[j] += v[j];
		}
	}
	if (col < c)
		cuda_write<V>(dtable + me * c + col, s);
}

/* dposition: rows of l; each adds up the n rows of dy at its place. */
template <typename T, int V>
static __global__ void __launch_bounds__(CUDA_THREADS)
embed_position(float *dposition, const void *dyv, int64_t n,
    struct cuda_deal d)
{
	const int64_t col = cuda_deal_column(d), row = cuda_deal_row(d);
	const T *dy = (const T *)dyv + col * V;
	float *dp = dposition + col * V;
	float v[V], s[V];
	int64_t r, k;
	int u, j;

	if (col >= d.w)
		return;
	CUDA_EACH_ROW(d, row, u, r) {
		cuda_unpack(s, cuda_read<float, V>(dp + r * d.w * V));
#pragma unroll 4
		for (k = 0; k < n; k++) {
			cuda_unpack(v, cuda_read<T, V>(dy + (k * d.rows + r) *
			    d.w * V));
#pragma unroll
			for (j = 0; j < V; j++)
				s[j] += v[j];
		}
		cuda_write<V>(dp + r * d.w * V, s);
	}
}

int
cuda_embed_bwd(lpo_backend *be, enum lpo_dtype dt, float *dtable,
    float *dposition, const void *dy, const int32_t *id, int64_t n,
    int64_t l, int64_t c)
{
	int wide = cuda_wide(c, dtable, dposition, dy);
	int64_t w = wide ? c / CUDA_WIDE : c;
	struct cuda_deal d;

	if (n == 0 || l == 0 || c == 0)
		return 0;
	if (dtable != NULL)
		CUDA_LAUNCH(embed_table, dt, wide, dim3((unsigned int)(n * l),
		    (unsigned int)((w + THREADS - 1) / THREADS)), THREADS, 0,
		    be, dtable, dy, id, n * l, c);
	if (dposition != NULL) {
		d = cuda_deal_of(cuda_of(be), l, w);
		CUDA_LAUNCH(embed_position, dt, wide, d.blocks, d.threads, 0,
		    be, dposition, dy, n, d);
	}
	return cuda_done(cuda_of(be), "embed_bwd");
}
