/*
 * Linear layers without a library: any product there is, for what cuBLASLt
 * refuses, and the gradient of the bias.
 */
#include "kernels/linear.h"

enum {
	THREADS = LINEAR_THREADS,
	TILE = 64,		/* of `general`: TILE x TILE by TILE_K */
	TILE_K = 16
};

/* ---- any product: 64 x 64 by 16, 4 x 4 a thread */

/* y[m,n] = alpha * sum a(i,l) b(j,l) + bias + residual, by strides */
struct general_product {
	int64_t m, n, depth;
	int64_t ai, al, bj, bl;
	const float *bias;
	float alpha;
};

/* The piece at (i, l) of a matrix of rows x depth, zeros outside. */
template<typename T>
static __device__ void
stage_tile(float (*s)[TILE + 4], const T *a, int64_t i0, int64_t l0,
    int64_t rows, int64_t depth, int64_t ai, int64_t al)
{
	for (int o = threadIdx.x; o < TILE * TILE_K; o += THREADS) {
		int i = al == 1 ? o / TILE_K : o % TILE;
		int l = al == 1 ? o % TILE_K : o / TILE;

		s[l][i] = i0 + i < rows && l0 + l < depth ?
		    cuda_load(a + (i0 + i) * ai + (l0 + l) * al) : 0;
	}
}

template<typename TI, typename TO>
static __global__ void __launch_bounds__(THREADS)
general(TO *y, const TI *a, const TI *b, const TO *residual,
    general_product p)
{
	__shared__ float as[TILE_K][TILE + 4], bs[TILE_K][TILE + 4];
	int ti = threadIdx.x / 16 * 4, tj = threadIdx.x % 16 * 4;
	int64_t i0 = (int64_t)blockIdx.x * TILE;
	int64_t j0 = (int64_t)blockIdx.y * TILE, l0;
	float acc[4][4] = {};

	for (l0 = 0; l0 < p.depth; l0 += TILE_K) {
		stage_tile(as, a, i0, l0, p.m, p.depth, p.ai, p.al);
		stage_tile(bs, b, j0, l0, p.n, p.depth, p.bj, p.bl);
		__syncthreads();
#pragma unroll
		for (int l = 0; l < TILE_K; l++)
#pragma unroll
			for (int i = 0; i < 16; i++)
				acc[i / 4][i % 4] += as[l][ti + i / 4] *
				    bs[l][tj + i % 4];
		__syncthreads();
	}
#pragma unroll
	for (int o = 0; o < 16; o++) {
		int64_t i = i0 + ti + o / 4, j = j0 + tj + o % 4;
		float v = p.alpha * acc[o / 4][o % 4];

		if (i >= p.m || j >= p.n)
			continue;
		if (p.bias != NULL)
			v += p.bias[j];
		if (residual != NULL)
			v += cuda_load(residual + i * p.n + j);
		cuda_store(y + i * p.n + j, v);
	}
}

template<typename TI, typename TO>
static int
run_general(struct cuda *c, const struct call *a)
{
	int64_t m = a->key.m, n = a->key.n, k = a->key.k;
	general_product p = { m, n, k, k, 1, k, 1, a->bias, a->alpha };

	if (a->key.pass == LPO_BWD_DATA)
		p = { m, k, n, n, 1, 1, k, NULL, a->alpha };
	else if (a->key.pass == LPO_BWD_WEIGHT)
		p = { n, k, m, 1, n, 1, k, NULL, a->alpha };
	general<TI, TO><<<dim3((unsigned)((p.m + TILE - 1) / TILE),
	    (unsigned)((p.n + TILE - 1) / TILE)), THREADS, 0, c->stream>>>(
	    (TO *)a->y, (const TI *)a->x, (const TI *)a->w,
	    (const TO *)a->residual, p);
	return cuda_done(c, a->what);
}

int
cuda_linear_general(struct cuda *c, const struct call *a)
{
	if (a->key.dt == LPO_F32)
		return run_general<float, float>(c, a);
	return a->key.pass == LPO_BWD_WEIGHT ?
	    run_general<bf16, float>(c, a) : run_general<bf16, bf16>(c, a);
}

/* ---- column sums, for the gradient of the bias */

template<typename T, int VEC>
static __device__ __forceinline__ void
add_vector(float *s, const T *x)
{
	struct __align__(sizeof(T) * VEC) vector { T v[VEC]; };
	vector v = *(const vector *)x;

#pragma unroll
	for (int i = 0; i < VEC; i++)
		s[i] += cuda_load(&v.v[i]);
}

/*
 * db[n] += alpha * sum over m of dy[m,n].  A block has 8 VEC columns and one
 * slab of rows, of which a thread takes every 32nd.
 */
template<typename T, int VEC>
static __global__ void __launch_bounds__(THREADS)
column_sums(float *db, const T *dy, int64_t m, int64_t n, int64_t rows,
    float alpha, float *partial, unsigned *counters)
{
	enum { COLS = 8 * VEC, LINES = THREADS / 8 };
	__shared__ float red[LINES][COLS + 1];
	int lane = threadIdx.x % 8, line = threadIdx.x / 8, c = threadIdx.x;
	int slabs = gridDim.y;
	int64_t at = (int64_t)blockIdx.x * COLS, col = at + lane * VEC;
	int64_t from = blockIdx.y * rows, r;
	int64_t to = from + rows < m ? from + rows : m;
	float s[VEC] = {}, sum = 0;

	if (col < n)
#pragma unroll 4
		for (r = from + line; r < to; r += LINES)
			add_vector<T, VEC>(s, dy + r * n + col);
#pragma unroll
	for (int i = 0; i < VEC; i++)
		red[line][lane * VEC + i] = s[i];
	__syncthreads();
	if (c < COLS)
		for (int i = 0; i < LINES; i++)
			sum += red[i][c];
	partial += blockIdx.x * slabs * (int64_t)COLS;
	if (slabs > 1) {
		if (c < COLS)
			partial[blockIdx.y * COLS + c] = sum;
		if (!last_block(counters + blockIdx.x, slabs))
			return;
		if (c < COLS)
			sum = slab_sum(partial + c, slabs, COLS);
	}
	if (c < COLS && at + c < n)
		db[at + c] += alpha * sum;
}

template<typename T, int VEC>
static int
run_column_sums(struct cuda *c, float *db, const void *dy, int64_t m,
    int64_t n, float alpha, unsigned *counters, const char *what)
{
	int64_t strips = (n + 8 * VEC - 1) / (8 * VEC);
	int64_t rows = slab_rows(c, m, strips, 8 * VEC);

	column_sums<T, VEC><<<dim3((unsigned)strips, (unsigned)((m + rows -
	    1) / rows)), THREADS, 0, c->stream>>>(db, (const T *)dy, m, n,
	    rows, alpha, (float *)c->workspace, counters);
	return cuda_done(c, what);
}

int
cuda_linear_bias(struct cuda *c, enum lpo_dtype dt, float *db,
    const void *dy, int64_t m, int64_t n, float alpha, unsigned *counters,
    const char *what)
{
	bool aligned = (uintptr_t)dy % 16 == 0;

	if (dt == LPO_F32 && aligned && n % 4 == 0)
		return run_column_sums<float, 4>(c, db, dy, m, n, alpha,
		    counters, what);
	if (dt == LPO_F32)
		return run_column_sums<float, 1>(c, db, dy, m, n, alpha,
		    counters, what);
	if (aligned && n % 8 == 0)
		return run_column_sums<bf16, 8>(c, db, dy, m, n, alpha,
		    counters, what);
	return run_column_sums<bf16, 1>(c, db, dy, m, n, alpha, counters,
	    what);
}
