/*
 * Linear layers with a LoRA.  What the LoRA adds is bound by memory: forward
 * one pass over x and y, backward one over dy, x and dx, which sums both
 * weight gradients by the way.  Wide ranks and odd sizes go to the products
 * of linear.cu, one by one.
 */
#include "kernels/linear.h"

enum {
	STRIP = 64,		/* columns that a warp has at a time */
	ROWS = 16,		/* of a tile */
	MOST = 20,		/* strips */
	RANK = 16,		/* at most */
	SLICES = 8		/* of the slabs, in `finish` */
};

/*
 * mid[m,r] = s1 in[m,c1] w1^T, rounded to bf16;
 * out[m,c2] += bias + s2 mid w2, where w1 and w2 are given by strides:
 * w1(j, l) is w1[j * w1j + l * w1l], j < r.
 * Backward also d1[c1,r] += s1 in^T aux, d2[r,c2] += mid^T x; its sums over
 * the rows of a block go to partial, [blocks, c1 r + r c2].
 */
struct lora {
	const bf16 *in, *w1, *w2, *aux, *x;
	bf16 *mid, *out;
	const float *bias;
	float *partial;
	int64_t m, rows;	/* rows of a block */
	int64_t w1j, w1l, w2j, w2l;
	int c1, c2, r;
	float s1, s2;
};

/* The transpose of 8 x 8 that lie over a warp as mma has them. */
static __device__ __forceinline__ uint32_t
transposed(uint32_t x)
{
	uint32_t y;

	asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) :
	    "r"(x));
	return y;
}

/* w[at], w[at2], zeros outside: no branches, so that no load waits */
static __device__ __forceinline__ uint32_t
pair_at(const bf16 *w, int64_t at, bool in, int64_t at2, bool in2)
{
	uint32_t a = bits(w[in ? at : 0]), b = bits(w[in2 ? at2 : 0]);

	return (in ? a : 0) | (in2 ? b << 16 : 0);
}

/* w(j, l .. l + 7), zeros outside */
static __device__ __forceinline__ uint4
gather8(const bf16 *w, int64_t wj, int64_t wl, int j, int l, int r, int c)
{
	bool in = j < r && l < c;
	uint32_t v[4];

#pragma unroll
	for (int i = 0; i < 4; i++)
		v[i] = pair_at(w, j * wj + (l + 2 * i) * wl, in,
		    j * wj + (l + 2 * i + 1) * wl, in);
	return make_uint4(v[0], v[1], v[2], v[3]);
}

/* v[u][h]: rows row and row + 8, columns col and col + 32, 8 of each */
static __device__ __forceinline__ void
load_rows(uint4 (*v)[2], const bf16 *x, int64_t row, int64_t to, int col,
    int c)
{
	const bf16 *at = x + row * c + col;

#pragma unroll
	for (int i = 0; i < 4; i++)
		v[i / 2][i % 2] = row + i % 2 * 8 < to && col + i / 2 * 32 <
		    c ? load16(at + i % 2 * 8 * (int64_t)c + i / 2 * 32) :
		    make_uint4(0, 0, 0, 0);
}

/* v: rows row, row + 1, row + 8, row + 9, 8 columns of each */
static __device__ __forceinline__ void
load_depth(uint4 *v, const bf16 *x, int64_t row, int64_t to, int col, int c)
{
	const bf16 *at = x + row * c + col;

#pragma unroll
	for (int i = 0; i < 4; i++)
		v[i] = row + i % 2 + i / 2 * 8 < to && col < c ? load16(at +
		    (i % 2 + i / 2 * 8) * (int64_t)c) :
		    make_uint4(0, 0, 0, 0);
}

static __device__ __forceinline__ uint32_t
word(uint4 v, int i)
{
	return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/*
 * d += v^T b, the rows being the depth: columns 2 q and 2 q + 1 of a lane's 8
 * are rows g and g + 8 of the q-th product.
 */
template<int NT>
static __device__ __forceinline__ void
add_outer(float (*d)[NT][4], const uint4 *v, const uint32_t (*b)[2])
{
#pragma unroll
	for (int q = 0; q < 4; q++) {
		uint32_t a[4];

#pragma unroll
		for (int i = 0; i < 4; i++)
			a[i] = __byte_perm(word(v[i / 2 * 2], q),
			    word(v[i / 2 * 2 + 1], q), i % 2 ? 0x7632 :
			    0x5410);
#pragma unroll
		for (int i = 0; i < NT; i++)
			mma(d[q][i], a[0], a[1], a[2], a[3], b[i][0],
			    b[i][1]);
	}
}

/* aux[row .. row + 1][j], aux[row + 8 .. row + 9][j] */
template<int NT>
static __device__ __forceinline__ void
load_aux(uint32_t (*b)[2], const bf16 *aux, int64_t row, int64_t to, int g,
    int r)
{
#pragma unroll
	for (int i = 0; i < NT * 2; i++) {
		int64_t at = row + i % 2 * 8;
		int j = i / 2 * 8 + g;

		b[i / 2][i % 2] = pair_at(aux, at * r + j, at < to && j < r,
		    (at + 1) * r + j, at + 1 < to && j < r);
	}
}

/* The sums d of a lane into partial: column c, few j is at c * cs + j * js. */
template<int NT>
static __device__ __forceinline__ void
put_sums(float *to, const float (*d)[NT][4], int col, int c, int few, int r,
    int64_t cs, int64_t js)
{
#pragma unroll
	for (int q = 0; q < 4; q++)
#pragma unroll
		for (int i = 0; i < NT * 4; i++) {
			int l = col + 2 * q + i % 4 / 2;
			int j = i / 4 * 8 + few + i % 2;

			if (l < c && j < r)
				to[l * cs + j * js] = d[q][i / 4][i % 4];
		}
}

static __device__ __forceinline__ void
add8(float *v, uint4 x)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		v[2 * i] += cuda_low(word(x, i));
		v[2 * i + 1] += cuda_high(word(x, i));
	}
}

/* 8 neighbours: from + scale acc + bias */
static __device__ __forceinline__ uint4
finish8(uint4 from, const float (*acc)[4], int half, float scale,
    const float *bias)
{
	float v[8] = {};

	add8(v, from);
#pragma unroll
	for (int i = 0; i < 8; i++)
		v[i] += scale * acc[i / 2][half * 2 + i % 2];
	if (bias != NULL) {
		float4 a = ((const float4 *)bias)[0];
		float4 b = ((const float4 *)bias)[1];

		v[0] += a.x;
		v[1] += a.y;
		v[2] += a.z;
		v[3] += a.w;
		v[4] += b.x;
		v[5] += b.y;
		v[6] += b.z;
		v[7] += b.w;
	}
	return make_uint4(cuda_two(v[0], v[1]), cuda_two(v[2], v[3]),
	    cuda_two(v[4], v[5]), cuda_two(v[6], v[7]));
}

/* Warps of a block at most: what registers allow. */
template<int NT, int PER, bool BWD>
struct warps {
	enum { MAX = PER == 2 ? MOST / 2 : NT == 1 && !BWD ? MOST : 12 };
};

/*
 * A block has a run of rows and takes them 16 at a time; a warp has PER
 * strips of 64 columns of all matrices.  The sum over c1 goes over the warps:
 * each leaves its part in red, of which there are two, so that one barrier a
 * tile serves.  What a tile needs is loaded while the one before is summed.
 * mid comes out of the sum laid out as the next product takes it.
 */
template<int NT, int PER, bool BWD>
static __global__ void __launch_bounds__(warps<NT, PER, BWD>::MAX * 32)
lora_pass(lora p)
{
	constexpr bool AHEAD = PER == 1 || !BWD;	/* else no registers */
	constexpr int WARPS = warps<NT, PER, BWD>::MAX;
	__shared__ float4 red[2][WARPS][NT][32];
	__shared__ uint4 kept[AHEAD ? 1 : WARPS][AHEAD ? 1 : PER * 2 * NT][32];
	int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	int g = lane / 4, t = lane % 4, first = warp * PER * STRIP;
	int parts = ((p.c1 + STRIP - 1) / STRIP + PER - 1) / PER, turn = 0;
	int64_t row = blockIdx.x * p.rows;
	int64_t to = row + p.rows < p.m ? row + p.rows : p.m;
	uint4 in[PER][2][2], out[PER][2][2], x[PER][4];
	uint4 w1[AHEAD ? PER : 1][2][NT];
	uint32_t w2[PER][2][4][NT];
	float d1[PER][4][NT][4] = {}, d2[PER][4][NT][4] = {};

#pragma unroll
	for (int s = 0; s < PER; s++) {
		int col = first + s * STRIP;

		if (AHEAD)
			load_rows(in[s], p.in, row + g, to, col + 8 * t,
			    p.c1);
		if (p.out != NULL)
			load_rows(out[s], p.out, row + g, to, col + 8 * t,
			    p.c2);
		if (BWD && p.x != NULL)
			load_depth(x[s], p.x, row + 2 * t, to, col + 8 * g,
			    p.c2);
#pragma unroll
		for (int i = 0; i < 2 * NT; i++) {
			uint4 w = gather8(p.w1, p.w1j, p.w1l, i % NT * 8 + g,
			    col + i / NT * 32 + 8 * t, p.r, p.c1);

			if (AHEAD)
				w1[s][i / NT][i % NT] = w;
			else
				kept[warp][s * 2 * NT + i][lane] = w;
		}
#pragma unroll
		for (int i = 0; i < 8 * NT; i++) {
			int l = col + i / NT / 4 * 32 + g / 2 * 8 +
			    i / NT % 4 * 2 + g % 2;
			int j = i % NT * 8 + 2 * t;

			w2[s][i / NT / 4][i / NT % 4][i % NT] = pair_at(p.w2,
			    j * p.w2j + l * p.w2l, j < p.r && l < p.c2,
			    (j + 1) * p.w2j + l * p.w2l, j + 1 < p.r &&
			    l < p.c2);
		}
	}
	for (; row < to; row += ROWS, turn ^= 1) {
		float acc[NT][4] = {};
		uint32_t mid[NT][2];

#pragma unroll
		for (int s = 0; s < PER && !AHEAD; s++)
			load_rows(in[s], p.in, row + g, to, first + s * STRIP +
			    8 * t, p.c1);
#pragma unroll
		for (int s = 0; s < PER; s++)
#pragma unroll
			for (int i = 0; i < 2 * NT; i++) {
				uint4 a = in[s][i / NT][0];
				uint4 b = in[s][i / NT][1];
				uint4 w = AHEAD ? w1[s][i / NT][i % NT] :
				    kept[warp][s * 2 * NT + i][lane];

				mma(acc[i % NT], a.x, b.x, a.y, b.y, w.x, w.y);
				mma(acc[i % NT], a.z, b.z, a.w, b.w, w.z, w.w);
			}
#pragma unroll
		for (int i = 0; i < NT; i++)
			red[turn][warp][i][lane] = make_float4(acc[i][0],
			    acc[i][1], acc[i][2], acc[i][3]);
#pragma unroll
		for (int s = 0; s < PER && AHEAD; s++)
			load_rows(in[s], p.in, row + ROWS + g, to, first +
			    s * STRIP + 8 * t, p.c1);
		if (BWD && p.aux != NULL) {
			uint32_t b[NT][2];

			load_aux<NT>(b, p.aux, row + 2 * t, to, g, p.r);
			/* a second time, from the first level's cache */
#pragma unroll
			for (int s = 0; s < PER; s++) {
				uint4 v[4];

				load_depth(v, p.in, row + 2 * t, to, first +
				    s * STRIP + 8 * g, p.c1);
				add_outer<NT>(d1[s], v, b);
			}
		}
		__syncthreads();
#pragma unroll
		for (int i = 0; i < NT; i++) {
			float4 v = red[turn][0][i][lane];
			int j = i * 8 + 2 * t;
			bool a = j < p.r, b = j + 1 < p.r;

			for (int k = 1; k < parts; k++) {
				float4 u = red[turn][k][i][lane];

				v.x += u.x;
				v.y += u.y;
				v.z += u.z;
				v.w += u.w;
			}
			/* 0 Inf behind the rank is no NaN */
			mid[i][0] = cuda_two(a ? p.s1 * v.x : 0, b ? p.s1 *
			    v.y : 0);
			mid[i][1] = cuda_two(a ? p.s1 * v.z : 0, b ? p.s1 *
			    v.w : 0);
		}
		if (p.mid != NULL && warp == 0)
#pragma unroll
			for (int i = 0; i < NT * 4; i++) {
				int64_t at = row + g + i % 4 / 2 * 8;
				int j = i / 4 * 8 + 2 * t + i % 2;
				uint32_t v = mid[i / 4][i % 4 / 2];

				if (at < to && j < p.r)
					p.mid[at * p.r + j] =
					    __ushort_as_bfloat16((unsigned
					    short)(i % 2 ? v >> 16 : v));
			}
		if (BWD && p.x != NULL) {
			uint32_t b[NT][2];

#pragma unroll
			for (int i = 0; i < NT * 2; i++)
				b[i / 2][i % 2] = transposed(mid[i / 2][i %
				    2]);
#pragma unroll
			for (int s = 0; s < PER; s++) {
				add_outer<NT>(d2[s], x[s], b);
				load_depth(x[s], p.x, row + ROWS + 2 * t, to,
				    first + s * STRIP + 8 * g, p.c2);
			}
		}
		if (p.out == NULL)
			continue;
#pragma unroll
		for (int i = 0; i < PER * 2; i++) {
			int col = first + i / 2 * STRIP + i % 2 * 32 + 8 * t;
			float v[4][4] = {};

#pragma unroll
			for (int k = 0; k < 4; k++) {
				const uint32_t *w = w2[i / 2][i % 2][k];

				mma(v[k], mid[0][0], mid[0][1], NT > 1 ?
				    mid[NT - 1][0] : 0, NT > 1 ?
				    mid[NT - 1][1] : 0, w[0], NT > 1 ?
				    w[NT - 1] : 0);
			}
#pragma unroll
			for (int h = 0; h < 2; h++) {
				int64_t o = (row + g) * p.c2 + col +
				    8 * h * (int64_t)p.c2;

				if (row + g + 8 * h < to && col < p.c2)
					*(uint4 *)(p.out + o) = finish8(
					    out[i / 2][i % 2][h], v, h, p.s2,
					    BWD || p.bias == NULL ? NULL :
					    p.bias + col);
			}
		}
#pragma unroll
		for (int s = 0; s < PER; s++)
			load_rows(out[s], p.out, row + ROWS + g, to, first +
			    s * STRIP + 8 * t, p.c2);
	}
	if (!BWD)
		return;
	p.partial += blockIdx.x * ((int64_t)p.c1 + p.c2) * p.r;
#pragma unroll
	for (int s = 0; s < PER; s++) {
		int col = first + s * STRIP + 8 * g;

		put_sums<NT>(p.partial, d1[s], col, p.c1, 2 * t, p.r, p.r, 1);
		put_sums<NT>(p.partial + (int64_t)p.c1 * p.r, d2[s], col,
		    p.c2, 2 * t, p.r, 1, p.c2);
	}
}

/* d1 += s1 the sum of the slabs' first n1, d2 += that of the n2 behind. */
static __global__ void __launch_bounds__(LINEAR_THREADS)
finish(float *d1, float *d2, const float *partial, int slabs, int n1, int n2,
    float s1)
{
	__shared__ float red[SLICES][LINEAR_THREADS / SLICES];
	int o = blockIdx.x * (LINEAR_THREADS / SLICES) + threadIdx.x %
	    (LINEAR_THREADS / SLICES);
	int slice = threadIdx.x / (LINEAR_THREADS / SLICES);
	float s = 0;

	if (o < n1 + n2)
#pragma unroll 8
		for (int i = slice; i < slabs; i += SLICES)
			s += partial[i * ((int64_t)n1 + n2) + o];
	red[slice][threadIdx.x % (LINEAR_THREADS / SLICES)] = s;
	__syncthreads();
	if (slice > 0 || o >= n1 + n2)
		return;
	for (int i = 1; i < SLICES; i++)
		s += red[i][threadIdx.x];
	if (o >= n1 && d2 != NULL)
		d2[o - n1] += s;
	if (o < n1 && d1 != NULL)
		d1[o] += s1 * s;
}

/* ---- which way a call goes */

/* One block's rows: all that fit at once, each with whole tiles. */
static int64_t
block_rows(const struct cuda *c, int64_t m, int per_sm, int64_t floats)
{
	int64_t tiles = (m + ROWS - 1) / ROWS;
	int64_t blocks = (int64_t)c->processors * (per_sm < 1 ? 1 : per_sm);

	if (floats > 0)
		blocks = min64(blocks, (int64_t)(c->workspace_bytes /
		    sizeof(float)) / floats);
	if (blocks < 1)
		blocks = 1;
	return (tiles + blocks - 1) / blocks * ROWS;
}

template<int NT, int PER, bool BWD>
static int
launch(struct cuda *c, lora *p, int count, const char *what)
{
	int64_t floats = BWD ? ((int64_t)p->c1 + p->c2) * p->r : 0;
	int per_sm = 0, rc;

	if ((rc = cuda_check(c, cudaOccupancyMaxActiveBlocksPerMultiprocessor(
	    &per_sm, lora_pass<NT, PER, BWD>, count * 32, 0), what)) < 0)
		return rc;
	p->rows = block_rows(c, p->m, per_sm, floats);
	lora_pass<NT, PER, BWD><<<(unsigned)((p->m + p->rows - 1) / p->rows),
	    count * 32, 0, c->stream>>>(*p);
	return cuda_done(c, what);
}

/* Whether a block can have all columns; 1 or 2 strips a warp. */
static int
strips_per_warp(const lora *p, int bwd)
{
	int c = p->c1 > p->c2 ? p->c1 : p->c2;
	int most = warps<2, 1, true>::MAX;

	if (p->r <= 8 && !bwd)
		most = warps<1, 1, false>::MAX;
	if (c <= most * STRIP)
		return 1;
	return c <= MOST * STRIP && (p->r <= 8 || !bwd) ? 2 : 0;
}

static int
fits(const lora *p, int64_t n, int64_t k, int64_t r, int bwd)
{
	return p->m > 0 && n > 0 && k > 0 && r > 0 && r <= RANK &&
	    n <= MOST * STRIP && k <= MOST * STRIP && n % 8 == 0 &&
	    k % 8 == 0 &&
	    cuda_alignment(p->in, p->out, p->x, p->bias) == 16 &&
	    strips_per_warp(p, bwd) > 0;
}

template<bool BWD>
static int
run_pass(struct cuda *c, lora *p, const char *what)
{
	int c1 = p->c1 > p->c2 ? p->c1 : p->c2, per = strips_per_warp(p, BWD);
	int count = ((c1 + STRIP - 1) / STRIP + per - 1) / per;

	if (per == 1)
		return p->r <= 8 ? launch<1, 1, BWD>(c, p, count, what) :
		    launch<2, 1, BWD>(c, p, count, what);
	return BWD ? launch<1, 2, true>(c, p, count, what) :
	    launch<2, 2, false>(c, p, count, what);
}

/* The operands that both directions have. */
static lora
make(void *out, const void *in, const void *w1, const void *w2, int64_t m,
    int64_t c1, int64_t c2, int64_t r)
{
	lora p = {};

	p.out = (bf16 *)out;
	p.in = (const bf16 *)in;
	p.w1 = (const bf16 *)w1;
	p.w2 = (const bf16 *)w2;
	p.m = m;
	p.c1 = (int)c1;
	p.c2 = (int)c2;
	p.r = (int)r;
	return p;
}

int
cuda_lora_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, void *aux,
    const void *x, const void *w, const float *bias, const void *residual,
    const void *a, const void *b, int64_t m, int64_t n, int64_t k, int64_t r,
    float scale, void *scratch)
{
	lora p = make(y, x, a, b, m, k, n, r);
	int rc;

	p.mid = (bf16 *)aux;
	p.bias = bias;
	p.w1j = k;
	p.w1l = 1;
	p.w2j = 1;
	p.w2l = r;
	p.s1 = 1;
	p.s2 = scale;
	if (dt == LPO_BF16 && fits(&p, n, k, r, 0)) {
		/* the bias costs less here than it does cuBLASLt */
		rc = cuda_linear_fwd(be, dt, y, x, w, NULL, residual, m, n, k,
		    1, scratch);
		return rc < 0 ? rc : run_pass<false>(cuda_of(be), &p,
		    "lora_fwd");
	}
	rc = cuda_linear_fwd(be, dt, y, x, w, bias, residual, m, n, k, 1,
	    scratch);
	if (rc == 0)
		rc = cuda_linear_fwd(be, dt, aux, x, a, NULL, NULL, m, r, k,
		    1, scratch);
	return rc < 0 ? rc : cuda_linear_fwd(be, dt, y, aux, b, NULL, y, m, n,
	    r, scale, scratch);
}

/* The products one by one; u lies at the start of the scratch. */
static int
lora_bwd_apart(lpo_backend *be, enum lpo_dtype dt, void *dx, float *da,
    float *db, const void *dy, const void *x, const void *aux, const void *a,
    const void *b, int64_t m, int64_t n, int64_t k, int64_t r, float scale,
    int64_t groups, void *scratch)
{
	void *s = (char *)scratch + (m * r * cuda_bytes(dt) + 63) / 64 * 64;
	int rc;

	rc = cuda_linear_bwd_data(be, dt, scratch, dy, b, m, n, r, scale, 0,
	    s);
	if (rc == 0 && db != NULL)
		rc = cuda_linear_bwd_weight(be, dt, db, NULL, dy, aux, m, n, r,
		    scale, groups, s);
	if (rc == 0 && da != NULL)
		rc = cuda_linear_bwd_weight(be, dt, da, NULL, scratch, x, m, r,
		    k, 1, groups, s);
	return rc < 0 || dx == NULL ? rc : cuda_linear_bwd_data(be, dt, dx,
	    scratch, a, m, r, k, 1, 1, s);
}

int
cuda_lora_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx, float *da,
    float *db, const void *dy, const void *x, const void *aux, const void *a,
    const void *b, int64_t m, int64_t n, int64_t k, int64_t r, float scale,
    int64_t groups, void *scratch)
{
	lora p = make(dx, dy, b, a, m, n, k, r);
	struct cuda *c = cuda_of(be);
	int n1 = p.c1 * p.r, n2 = p.r * p.c2, rc;
	int64_t slabs;

	p.x = da != NULL ? (const bf16 *)x : NULL;
	p.aux = db != NULL ? (const bf16 *)aux : NULL;
	p.partial = (float *)c->workspace;
	p.w1j = 1;
	p.w1l = r;
	p.w2j = k;
	p.w2l = 1;
	p.s1 = scale;
	p.s2 = 1;
	if (dt != LPO_BF16 || !fits(&p, n, k, r, 1))
		return lora_bwd_apart(be, dt, dx, da, db, dy, x, aux, a, b, m,
		    n, k, r, scale, groups, scratch);
	if (groups < 1 || m % groups != 0)
		return cuda_fail(c, LPO_EINVAL, "lora_bwd", "groups of rows");
	if ((rc = run_pass<true>(c, &p, "lora_bwd")) < 0 ||
	    (da == NULL && db == NULL))
		return rc;
	slabs = (m + p.rows - 1) / p.rows;
	finish<<<(unsigned)((n1 + n2 + LINEAR_THREADS / SLICES - 1) /
	    (LINEAR_THREADS / SLICES)), LINEAR_THREADS, 0, c->stream>>>(db, da,
	    p.partial, (int)slabs, n1, n2, scale);
	return cuda_done(c, "lora_bwd");
}
