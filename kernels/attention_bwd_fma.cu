/*
 * Attention, backward, with f32 sums of f32 products: f32, and bf16 that is
 * not aligned.
 */
#include "kernels/attention_bwd.h"

#include <math.h>

/*
 * Tiles lie turned, [d][token], rows LD apart.  First every thread has 4 by 4
 * of S and dP; P and dS go to shared memory, [met][owned], with groups of
 * four exchanged by the met group's number so that neither the writes nor the
 * reads meet in a bank.  Then a thread has 4 owned rows by D / 8 channels of
 * a gradient; where there are threads twice over, one half has dV and the
 * other dK, or each half the sum over one half of the keys.
 */
template <int D, bool KEYS>
struct fma_shape {
	static constexpr int TILE = D <= 64 ? 64 : 32;
	static constexpr int LD = TILE + 4;
	static constexpr int THREADS = TILE * TILE / 16;
	static constexpr int HALF = TILE / 4 * 8;
	static constexpr int HALVES = THREADS / HALF;
	static constexpr int BYTES = (4 * D * LD + (KEYS ? 2 : 1) * TILE *
	    TILE + 2 * TILE) * 4;
};

/* tile[x][t] = row t, channel x; zeros outside. */
template <typename T, int D, int TILE, int THREADS>
static __device__ __forceinline__ void
load_turned(float *tile, const T *from, int64_t ld, int valid, int d)
{
	int t, x;

	for (t = threadIdx.x / 8; t < TILE; t += THREADS / 8)
#pragma unroll
		for (x = threadIdx.x % 8; x < D; x += 8)
			tile[x * (TILE + 4) + t] = t < valid && x < d ?
			    cuda_load(from + t * ld + x) : 0.0f;
}

static __device__ __forceinline__ void
outer4(float c[4][4], float4 a, float4 b)
{
	float x[4] = { a.x, a.y, a.z, a.w }, y[4] = { b.x, b.y, b.z, b.w };
	int i, k;

#pragma unroll
	for (i = 0; i < 4; i++)
#pragma unroll
		for (k = 0; k < 4; k++)
			c[i][k] = fmaf(x[i], y[k], c[i][k]);
}

/* sum[4 owned][D / 8] += w[met][owned] tile[channel][met], met in [m0, m1) */
template <int D, int TILE>
static __device__ __forceinline__ void
sum_tile(float sum[4][D / 8], const float *w, const float *tile, int group,
    int channel, int m0, int m1)
{
	int m, i, x;

#pragma unroll 1
	for (m = m0; m < m1; m += 4) {
		float4 a[4];

#pragma unroll
		for (i = 0; i < 4; i++)
			a[i] = *(const float4 *)(w + (m + i) * TILE +
			    4 * (group ^ (m / 4 % 8)));
#pragma unroll
		for (x = 0; x < D / 8; x++) {
			float4 b = *(const float4 *)(tile +
			    (channel + 8 * x) * (TILE + 4) + m);
			float y[4] = { b.x, b.y, b.z, b.w };

#pragma unroll
			for (i = 0; i < 4; i++) {
				sum[0][x] = fmaf(a[i].x, y[i], sum[0][x]);
				sum[1][x] = fmaf(a[i].y, y[i], sum[1][x]);
				sum[2][x] = fmaf(a[i].z, y[i], sum[2][x]);
				sum[3][x] = fmaf(a[i].w, y[i], sum[3][x]);
			}
		}
	}
}

template <typename T, int D>
static __device__ __forceinline__ void
put_sums(T *to, int64_t ld, const float sum[4][D / 8], int rows, int channel,
    int d, float scale, bool add)
{
	int i, x;

#pragma unroll
	for (i = 0; i < 4; i++)
#pragma unroll
		for (x = 0; x < D / 8; x++) {
			T *p = to + i * ld + channel + 8 * x;

			if (i < rows && channel + 8 * x < d)
				cuda_store(p, fmaf(sum[i][x], scale, add ?
				    cuda_load(p) : 0.0f));
		}
}

template <typename T, int D, bool KEYS>
static __global__ void
__launch_bounds__(fma_shape<D, KEYS>::THREADS)
fma_kernel(const __grid_constant__ struct job j)
{
	using S = fma_shape<D, KEYS>;
	constexpr int TILE = S::TILE, LD = S::LD, THREADS = S::THREADS;
	constexpr int SUMS = KEYS && S::HALVES == 1 ? 2 : 1;
	extern __shared__ __align__(16) unsigned char memory[];
	float *own_a = (float *)memory, *own_b = own_a + D * LD;
	float *met_a = own_b + D * LD, *met_b = met_a + D * LD;
	float *ds = met_b + D * LD, *ps = ds + TILE * TILE;
	float2 *stats = (float2 *)(KEYS ? ps + TILE * TILE : ps);
	const struct place p = place_of<KEYS>(j, TILE, TILE,
	    blockIdx.x);
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int og = warp / (TILE / 32) * 4 + lane / 8;
	int mg = warp % (TILE / 32) * 8 + lane % 8;
	int half = threadIdx.x / S::HALF;
	int group = threadIdx.x % S::HALF / 8, channel = threadIdx.x % 8;
	float sum[SUMS][4][D / 8] = {};
	float scale2 = j.scale * LOG2E;
	int step, x, i, k;

	if (KEYS) {
		int64_t at = at_k(j, p.row, p.first, p.head);

		load_turned<T, D, TILE, THREADS>(own_a, (const T *)j.k + at,
		    j.ldk, p.valid, j.d);
		load_turned<T, D, TILE, THREADS>(own_b, (const T *)j.v + at,
		    j.ldk, p.valid, j.d);
	} else {
		load_turned<T, D, TILE, THREADS>(own_a, (const T *)j.q +
		    at_q(j, p.row, p.first, p.head), j.ldq, p.valid, j.d);
		load_turned<T, D, TILE, THREADS>(own_b, (const T *)j.dout +
		    at_o(j, p.row, p.first, p.head), j.ldo, p.valid, j.d);
		if (threadIdx.x < TILE)
			stats[threadIdx.x] = stats_of(j, p.row, p.head,
			    p.first + threadIdx.x);
	}
	for (step = 0; step < p.steps; step++) {
		float s[4][4] = {}, dp[4][4] = {};
		int64_t row, t, end = KEYS ? j.lq : j.lk;
		int valid;

		met_at<KEYS>(j, p, step, TILE, &row, &t);
		valid = (int)min((int64_t)TILE, end - t);
		if (KEYS) {
			load_turned<T, D, TILE, THREADS>(met_a, (const T *)j.q +
			    at_q(j, row, t, p.head), j.ldq, valid, j.d);
			load_turned<T, D, TILE, THREADS>(met_b,
			    (const T *)j.dout + at_o(j, row, t, p.head),
			    j.ldo, valid, j.d);
			if (threadIdx.x < TILE)
				stats[threadIdx.x] = stats_of(j, row, p.head,
				    t + threadIdx.x);
		} else {
			int64_t at = at_k(j, row, t, p.head);

			load_turned<T, D, TILE, THREADS>(met_a,
			    (const T *)j.k + at, j.ldk, valid, j.d);
			load_turned<T, D, TILE, THREADS>(met_b,
			    (const T *)j.v + at, j.ldk, valid, j.d);
		}
		__syncthreads();
#pragma unroll 4
		for (x = 0; x < j.d; x++) {
			outer4(s, *(const float4 *)(own_a + x * LD + 4 * og),
			    *(const float4 *)(met_a + x * LD + 4 * mg));
			outer4(dp, *(const float4 *)(own_b + x * LD + 4 * og),
			    *(const float4 *)(met_b + x * LD + 4 * mg));
		}
#pragma unroll
		for (k = 0; k < 4; k++) {
			int m = 4 * mg + k;
			int to = m * TILE + 4 * (og ^ (mg % 8));
			float pr[4], g[4];

#pragma unroll
			for (i = 0; i < 4; i++) {
				float2 st = stats[KEYS ? m : 4 * og + i];
				int64_t own = p.first + 4 * og + i;
				bool seen = m < valid && !(j.causal && (KEYS ?
				    own > t + m : t + m > own));

				pr[i] = seen ? exp2f(fmaf(s[i][k], scale2,
				    st.x)) : 0.0f;
				g[i] = pr[i] * (dp[i][k] + st.y);
			}
			*(float4 *)(ds + to) = make_float4(g[0], g[1], g[2],
			    g[3]);
			if (KEYS)
				*(float4 *)(ps + to) = make_float4(pr[0],
				    pr[1], pr[2], pr[3]);
		}
		__syncthreads();
		if (!KEYS)
			sum_tile<D, TILE>(sum[0], ds, met_a, group, channel,
			    half * (TILE / S::HALVES),
			    (half + 1) * (TILE / S::HALVES));
		else if (SUMS == 2 || half == 0)
			sum_tile<D, TILE>(sum[0], ps, met_b, group, channel,
			    0, TILE);
		if (KEYS && (SUMS == 2 || half == 1))
			sum_tile<D, TILE>(sum[SUMS - 1], ds, met_a, group,
			    channel, 0, TILE);
		__syncthreads();
	}
	if (!KEYS && S::HALVES == 2) {
		/* The owned tiles are done with. */
		float *rest = own_a + threadIdx.x % S::HALF;

		__syncthreads();
		if (half == 1)
#pragma unroll
			for (i = 0; i < 4 * (D / 8); i++)
				rest[i * S::HALF] = sum[0][i % 4][i / 4];
		__syncthreads();
		if (half == 0)
#pragma unroll
			for (i = 0; i < 4 * (D / 8); i++)
				sum[0][i % 4][i / 4] += rest[i * S::HALF];
	}
	{
		int64_t token = p.first + 4 * group;
		int rows = p.valid - 4 * group;
		int64_t at = KEYS ? at_k(j, p.row, token, p.head) :
		    at_q(j, p.row, token, p.head);

		if (!KEYS && half == 0)
			put_sums<T, D>((T *)j.dq + at, j.ldq, sum[0], rows,
			    channel, j.d, j.scale, j.add & LPO_ADD_A);
		if (KEYS && j.dv != NULL && half == 0)
			put_sums<T, D>((T *)j.dv + at, j.ldk, sum[0], rows,
			    channel, j.d, 1.0f, j.add & LPO_ADD_C);
		if (KEYS && j.dk != NULL && (SUMS == 2 || half == 1))
			put_sums<T, D>((T *)j.dk + at, j.ldk, sum[SUMS - 1],
			    rows, channel, j.d, j.scale, j.add & LPO_ADD_B);
	}
}

template <typename T, int D, bool KEYS>
static int
launch_fma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	using S = fma_shape<D, KEYS>;

	return grad_launch(c, fma_kernel<T, D, KEYS>, j, n, tokens, S::TILE,
	    S::THREADS, S::BYTES);
}

template <typename T, bool KEYS>
static int
pass_fma(struct cuda *c, const struct job *j, int64_t n, int64_t tokens)
{
	int most = 0, ret;

	ret = cuda_check(c, cudaDeviceGetAttribute(&most,
	    cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device),
	    "attention_bwd");
	if (ret != 0)
		return ret;
	if (j->d <= 40)
		return launch_fma<T, 40, KEYS>(c, j, n, tokens);
	if (j->d <= 64 && most >= fma_shape<64, KEYS>::BYTES)
		return launch_fma<T, 64, KEYS>(c, j, n, tokens);
	if (j->d <= 80)
		return launch_fma<T, 80, KEYS>(c, j, n, tokens);
	return launch_fma<T, LARGEST_D, KEYS>(c, j, n, tokens);
}

int
cuda_bwd_fma(struct cuda *c, enum lpo_dtype dt, const struct job *j, bool keys,
    int64_t n, int64_t tokens)
{
	if (dt == LPO_F32)
		return keys ? pass_fma<float, true>(c, j, n, tokens) :
		    pass_fma<float, false>(c, j, n, tokens);
	return keys ? pass_fma<bf16, true>(c, j, n, tokens) :
	    pass_fma<bf16, false>(c, j, n, tokens);
}
