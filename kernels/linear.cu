/*
 * Linear layers.  The forward product is matmul_sm90.cu's where that is the
 * faster; others are cuBLASLt's, one algorithm per kind of call, chosen once;
 * those with a side of at most 16 (LoRA) are bound by memory and are ours, as
 * is what cuBLASLt refuses.  Same bits from run to run; not for any number of
 * rows, and `groups` changes nothing here.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/linear.h"
#include "kernels/matmul_sm90.h"

enum {
	BUCKETS = 256,
	ALGORITHMS = 8
};

/* ---- cuBLASLt's part */

static __global__ void
round_bias(bf16 *to, const float *from, int64_t n)
{
	int64_t i = (int64_t)blockIdx.x * LINEAR_THREADS + threadIdx.x;

	if (i < n)
		to[i] = __float2bfloat16_rn(from[i]);
}

/*
 * One chosen algorithm and its descriptors.  Where cuBLASLt takes no f32 bias
 * for a bf16 result, the bias is rounded to bf16 at the workspace's end.
 */
struct plan {
	struct plan *next;
	struct key key;
	int found;		/* 0: cuBLASLt has none */
	int bias_bf16;
	size_t bytes;		/* of the workspace that it may use */
	cublasLtMatmulDescOpaque_t desc;
	cublasLtMatrixLayoutOpaque_t a, b, d;
	cublasLtMatmulAlgo_t algo;
};

struct cuda_linear {
	struct plan *bucket[BUCKETS];
	unsigned *counters;	/* of last_block */
};

void
cuda_linear_free(struct cuda *c)
{
	struct plan *p, *next;
	int i;

	if (c->linear == NULL)
		return;
	for (i = 0; i < BUCKETS; i++)
		for (p = c->linear->bucket[i]; p != NULL; p = next) {
			next = p->next;
			free(p);
		}
	cudaFree(c->linear->counters);
	free(c->linear);
	c->linear = NULL;
}

/* c->linear on first use: at the latest by *_scratch_bytes, never in a graph */
static int
linear_state(struct cuda *c, const char *what)
{
	size_t bytes = LINEAR_COUNTERS * sizeof(unsigned);
	unsigned *counters = NULL;
	int rc;

	if (c->linear != NULL)
		return 0;
	if (c->capturing)
		return cuda_fail(c, LPO_EINVAL, what,
		    "first used while a graph is recorded");
	if ((rc = cuda_check(c, cudaMalloc(&counters, bytes), what)) < 0)
		return rc;
	rc = cuda_check(c, cudaMemsetAsync(counters, 0, bytes, c->stream),
	    what);
	if (rc == 0 && (c->linear = (struct cuda_linear *)calloc(1,
	    sizeof(*c->linear))) == NULL)
		rc = cuda_fail(c, LPO_ENOMEM, what, "out of memory");
	if (rc < 0) {
		cudaFree(counters);
		return rc;
	}
	c->linear->counters = counters;
	return 0;
}

/* The layouts by columns: what a row is here, a column is to cuBLASLt. */
static cublasStatus_t
lay_out(struct plan *p, cudaDataType_t td, int64_t d_rows, int64_t d_cols,
    int64_t b_rows)
{
	const struct key *k = &p->key;
	cudaDataType_t t = k->dt == LPO_BF16 ? CUDA_R_16BF : CUDA_R_32F;
	uint64_t a_cols = k->pass == LPO_BWD_WEIGHT ? k->m : k->n;
	cublasStatus_t s;

	s = cublasLtMatrixLayoutInit(&p->a, t, k->k, a_cols, k->k);
	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatrixLayoutInit(&p->b, t, b_rows, k->m, b_rows);
	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatrixLayoutInit(&p->d, td, d_rows, d_cols,
		    d_rows);
	return s;
}

/* y' = w^T x', dx' = w' dy', dw' = x' dy^T, where ' is seen by columns */
static cublasStatus_t
describe(struct plan *p)
{
	const struct key *k = &p->key;
	cudaDataType_t t = k->dt == LPO_BF16 ? CUDA_R_16BF : CUDA_R_32F;
	cublasOperation_t op = CUBLAS_OP_T;
	cublasStatus_t s;

	s = cublasLtMatmulDescInit(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	if (s != CUBLAS_STATUS_SUCCESS)
		return s;
	if (k->pass == LPO_BWD_DATA)
		return lay_out(p, t, k->k, k->m, k->n);
	if (k->pass == LPO_FWD)
		s = lay_out(p, t, k->n, k->m, k->k);
	else
		s = lay_out(p, CUDA_R_32F, k->k, k->n, k->n);
	return s != CUBLAS_STATUS_SUCCESS ? s :
	    cublasLtMatmulDescSetAttribute(&p->desc, k->pass == LPO_FWD ?
	    CUBLASLT_MATMUL_DESC_TRANSA : CUBLASLT_MATMUL_DESC_TRANSB, &op,
	    sizeof(op));
}

/*
 * Sums over pieces of the depth only in f32 and in a step of their own: in
 * place their order, and with it the bits, could change from run to run.
 */
static cublasStatus_t
prefer(cublasLtMatmulPreferenceOpaque_t *pref, size_t bytes, uint32_t align)
{
	static const cublasLtMatmulPreferenceAttributes_t each[4] = {
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
		CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
	};
	uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
	uint64_t room = bytes;
	cublasStatus_t s = cublasLtMatmulPreferenceInit(pref);
	int i;

	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatmulPreferenceSetAttribute(pref,
		    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room,
		    sizeof(room));
	if (s == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatmulPreferenceSetAttribute(pref,
		    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums,
		    sizeof(sums));
	for (i = 0; i < 4 && s == CUBLAS_STATUS_SUCCESS; i++)
		s = cublasLtMatmulPreferenceSetAttribute(pref, each[i],
		    &align, sizeof(align));
	return s;
}

/* Whether an algorithm keeps to what prefer() asked for. */
static int
acceptable(const cublasLtMatmulHeuristicResult_t *r, size_t bytes)
{
	uint32_t sums = CUBLASLT_REDUCTION_SCHEME_NONE;
	size_t got;

	return r->state == CUBLAS_STATUS_SUCCESS && r->workspaceSize <=
	    bytes && cublasLtMatmulAlgoConfigGetAttribute(&r->algo,
	    CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &sums, sizeof(sums),
	    &got) == CUBLAS_STATUS_SUCCESS && (sums ==
	    CUBLASLT_REDUCTION_SCHEME_NONE || sums ==
	    CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
}

static void *
rounded_bias(const struct cuda *c, const struct plan *p)
{
	return (char *)c->workspace + p->bytes;
}

/* The first acceptable algorithm of the heuristic's; none is no error. */
static cublasStatus_t
choose(struct cuda *c, struct plan *p, const float *bias)
{
	size_t reserved = p->bias_bf16 ? (size_t)(p->key.n * 2) : 0;
	cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
	int32_t type = p->bias_bf16 ? CUDA_R_16BF : CUDA_R_32F;
	cublasLtMatmulHeuristicResult_t r[ALGORITHMS];
	cublasLtMatmulPreferenceOpaque_t pref;
	const void *at = bias;
	cublasStatus_t s;
	int count = 0, i;

	p->found = 0;
	if (reserved > c->workspace_bytes)
		return CUBLAS_STATUS_SUCCESS;
	p->bytes = (c->workspace_bytes - reserved) / 256 * 256;
	if (p->bias_bf16)
		at = rounded_bias(c, p);
	s = describe(p);
	if (p->key.bias && s == CUBLAS_STATUS_SUCCESS &&
	    (s = cublasLtMatmulDescSetAttribute(&p->desc,
	    CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue))) ==
	    CUBLAS_STATUS_SUCCESS && (s = cublasLtMatmulDescSetAttribute(
	    &p->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type,
	    sizeof(type))) == CUBLAS_STATUS_SUCCESS)
		s = cublasLtMatmulDescSetAttribute(&p->desc,
		    CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at, sizeof(at));
	if (s == CUBLAS_STATUS_SUCCESS)
		s = prefer(&pref, p->bytes, (uint32_t)p->key.align);
	if (s != CUBLAS_STATUS_SUCCESS)
		return s;
	s = cublasLtMatmulAlgoGetHeuristic(c->lt, &p->desc, &p->a, &p->b,
	    &p->d, &p->d, &pref, ALGORITHMS, r, &count);
	if (s == CUBLAS_STATUS_NOT_SUPPORTED || s ==
	    CUBLAS_STATUS_INVALID_VALUE || s == CUBLAS_STATUS_ARCH_MISMATCH)
		return CUBLAS_STATUS_SUCCESS;
	for (i = 0; i < count && s == CUBLAS_STATUS_SUCCESS && !p->found; i++)
		if (acceptable(&r[i], p->bytes)) {
			p->algo = r[i].algo;
			p->found = 1;
		}
	return s;
}

/* An f32 bias is asked for first, and then one of D's type. */
static cublasStatus_t
choose_any(struct cuda *c, struct plan *p, const float *bias)
{
	cublasStatus_t s;

	p->bias_bf16 = 0;
	s = choose(c, p, bias);
	if (s != CUBLAS_STATUS_SUCCESS || p->found || !p->key.bias ||
	    p->key.dt != LPO_BF16)
		return s;
	p->bias_bf16 = 1;
	return choose(c, p, bias);
}

static uint32_t
hash(const struct key *key)
{
	const unsigned char *b = (const unsigned char *)key;
	uint32_t h = 2166136261u;
	size_t i;

	for (i = 0; i < sizeof(*key); i++)
		h = (h ^ b[i]) * 16777619u;
	return h;
}

/*
 * The plan of a kind of call, made when first asked for.  That asks nothing
 * of the device, so that it may be done while a graph is recorded.
 */
static int
find_plan(struct cuda *c, struct plan **plan, const struct key *key,
    const float *bias, const char *what)
{
	struct plan **at = &c->linear->bucket[hash(key) % BUCKETS], *p;
	int rc;

	for (p = *at; p != NULL; p = p->next)
		if (memcmp(&p->key, key, sizeof(*key)) == 0) {
			*plan = p;
			return 0;
		}
	if ((p = (struct plan *)calloc(1, sizeof(*p))) == NULL)
		return cuda_fail(c, LPO_ENOMEM, what, "out of memory");
	p->key = *key;
	if ((rc = cuda_check_lt(c, choose_any(c, p, bias), what)) < 0) {
		free(p);
		return rc;
	}
	p->next = *at;
	*plan = *at = p;
	return 0;
}

/* One try; what cuBLASLt does not take has no effect and may be mended. */
static cublasStatus_t
run_plan(struct cuda *c, struct plan *p, const struct call *a)
{
	const void *bias = p->bias_bf16 ? rounded_bias(c, p) : a->bias;
	float beta = a->residual != NULL;
	cublasStatus_t s;

	if (a->bias != NULL) {
		s = cublasLtMatmulDescSetAttribute(&p->desc,
		    CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias));
		if (s != CUBLAS_STATUS_SUCCESS)
			return s;
	}
	if (a->bias != NULL && p->bias_bf16)
		round_bias<<<(unsigned)((p->key.n + LINEAR_THREADS - 1) /
		    LINEAR_THREADS), LINEAR_THREADS, 0, c->stream>>>(
		    (bf16 *)bias, a->bias, p->key.n);
	return cublasLtMatmul(c->lt, &p->desc, &a->alpha, a->w, &p->a, a->x,
	    &p->b, &beta, a->residual != NULL ? a->residual : a->y, &p->d,
	    a->y, &p->d, &p->algo, c->workspace, p->bytes, c->stream);
}

/* 1: done, 0: not for cuBLASLt, negative: LPO_E* */
static int
run_lt(struct cuda *c, const struct call *a)
{
	struct plan *p = NULL;
	cublasStatus_t s;
	int rc;

	if ((rc = find_plan(c, &p, &a->key, a->bias, a->what)) < 0)
		return rc;
	while (p->found) {
		s = run_plan(c, p, a);
		if (s == CUBLAS_STATUS_SUCCESS) {
			rc = cuda_done(c, a->what);
			return rc < 0 ? rc : 1;
		}
		if (s != CUBLAS_STATUS_NOT_SUPPORTED &&
		    s != CUBLAS_STATUS_INVALID_VALUE)
			return cuda_check_lt(c, s, a->what);
		/* the heuristic was wrong: the other bias, or none at all */
		p->found = 0;
		if (a->bias == NULL || p->bias_bf16 || a->key.dt != LPO_BF16)
			break;
		p->bias_bf16 = 1;
		if ((rc = cuda_check_lt(c, choose(c, p, a->bias), a->what)) <
		    0)
			return rc;
	}
	return 0;
}

/* ---- bias and residual in a pass of their own */

/* y += bias + residual: PER vectors of 8 a thread, all loaded first */
static __global__ void __launch_bounds__(LINEAR_THREADS)
add_rest(bf16 *y, const float *bias, const bf16 *residual, uint32_t count,
    uint32_t n)
{
	enum { PER = 4 };
	uint32_t first = blockIdx.x * (LINEAR_THREADS * PER) + threadIdx.x;
	const uint4 zeros = make_uint4(0, 0, 0, 0);
	uint4 a[PER], b[PER];

#pragma unroll
	for (int i = 0; i < PER; i++) {
		uint32_t at = first + i * LINEAR_THREADS;

		a[i] = at < count ? load16(y + (int64_t)at * 8) : zeros;
		b[i] = at < count ? load16(residual + (int64_t)at * 8) :
		    zeros;
	}
#pragma unroll
	for (int i = 0; i < PER; i++) {
		uint32_t at = first + i * LINEAR_THREADS;
		const float4 *c = (const float4 *)(bias + at % n * 8);
		float4 u, v;

		if (at >= count)
			return;
		u = c[0];
		v = c[1];
		*(uint4 *)(y + (int64_t)at * 8) = make_uint4(
		    cuda_two(cuda_low(a[i].x) + cuda_low(b[i].x) + u.x,
		    cuda_high(a[i].x) + cuda_high(b[i].x) + u.y),
		    cuda_two(cuda_low(a[i].y) + cuda_low(b[i].y) + u.z,
		    cuda_high(a[i].y) + cuda_high(b[i].y) + u.w),
		    cuda_two(cuda_low(a[i].z) + cuda_low(b[i].z) + v.x,
		    cuda_high(a[i].z) + cuda_high(b[i].z) + v.y),
		    cuda_two(cuda_low(a[i].w) + cuda_low(b[i].w) + v.z,
		    cuda_high(a[i].w) + cuda_high(b[i].w) + v.w));
	}
}

/*
 * With both, cuBLASLt takes longer than it does for the product alone and
 * this pass, measured for depths of 320 to 5120 at many rows.
 */
static int
rest_apart(const struct call *a)
{
	return a->key.dt == LPO_BF16 && a->bias != NULL &&
	    a->residual != NULL && a->residual != a->y && a->key.m >= 1024 &&
	    a->key.n % 8 == 0 && a->key.m * a->key.n / 8 < UINT32_MAX -
	    LINEAR_THREADS * 4 && cuda_alignment(a->y, a->residual, a->bias,
	    NULL) == 16;
}

/* ---- which way a call goes */

static struct call
make_call(const char *what, enum lpo_pass pass, enum lpo_dtype dt, int64_t m,
    int64_t n, int64_t k, float alpha)
{
	struct call a;

	memset(&a, 0, sizeof(a));
	a.what = what;
	a.key.m = m;
	a.key.n = n;
	a.key.k = k;
	a.key.pass = pass;
	a.key.dt = dt;
	a.alpha = alpha;
	return a;
}

/* By cuBLASLt, else by the kernel that takes anything. */
static int
run_any(struct cuda *c, struct call *a)
{
	int rc = 0;

	a->key.bias = a->bias != NULL;
	a->key.add = a->residual != NULL;
	a->key.align = cuda_alignment(a->y, a->x, a->w, a->residual);
	if (cuda_alignment(a->bias, NULL, NULL, NULL) < a->key.align)
		a->key.align = cuda_alignment(a->bias, NULL, NULL, NULL);
	/* no depth at all: y is bias + residual */
	if (a->key.m > 0 && a->key.n > 0 && a->key.k > 0)
		rc = run_lt(c, a);
	if (rc != 0)
		return rc < 0 ? rc : 0;
	return cuda_linear_general(c, a);
}

static int
run_apart(struct cuda *c, struct call *a)
{
	const bf16 *residual = (const bf16 *)a->residual;
	const float *bias = a->bias;
	int64_t count = a->key.m * a->key.n / 8;
	int rc;

	a->bias = NULL;
	a->residual = NULL;
	if ((rc = run_any(c, a)) < 0)
		return rc;
	add_rest<<<(unsigned)((count + LINEAR_THREADS * 4 - 1) /
	    (LINEAR_THREADS * 4)), LINEAR_THREADS, 0, c->stream>>>(
	    (bf16 *)a->y, bias, residual, (uint32_t)count,
	    (uint32_t)(a->key.n / 8));
	return cuda_done(c, a->what);
}

int
cuda_linear_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual, int64_t m,
    int64_t n, int64_t k, float alpha, void *scratch)
{
	struct call a = make_call("linear_fwd", LPO_FWD, dt, m, n, k, alpha);
	struct cuda *c = cuda_of(be);
	struct small_product p = { (bf16 *)y, (const bf16 *)x, (const bf16 *)w,
	    (const bf16 *)residual, bias, m, n, k, k, 1, alpha };
	int rc;

	(void)scratch;
	if (m == 0 || n == 0)
		return 0;
	if ((rc = linear_state(c, a.what)) < 0)
		return rc;
	if (dt == LPO_BF16 && cuda_linear_small(c, &p))
		return cuda_done(c, a.what);
	if (dt == LPO_BF16 && (rc = cuda_matmul90_linear(c, y, x, w, bias,
	    residual, m, n, k, alpha)) != 0)
		return rc < 0 ? rc : 0;
	a.y = y;
	a.x = x;
	a.w = w;
	a.bias = bias;
	a.residual = residual;
	return rest_apart(&a) ? run_apart(c, &a) : run_any(c, &a);
}

int
cuda_linear_bwd_data(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, int64_t m, int64_t n, int64_t k,
    float alpha, int add, void *scratch)
{
	struct call a = make_call("linear_bwd_data", LPO_BWD_DATA, dt, m, n,
	    k, alpha);
	struct cuda *c = cuda_of(be);
	struct small_product p = { (bf16 *)dx, (const bf16 *)dy,
	    (const bf16 *)w, add ? (const bf16 *)dx : NULL, NULL, m, k, n, 1,
	    k, alpha };
	int rc;

	(void)scratch;
	if (dx == NULL || m == 0 || k == 0)
		return 0;
	if ((rc = linear_state(c, a.what)) < 0)
		return rc;
	if (dt == LPO_BF16 && cuda_linear_small(c, &p))
		return cuda_done(c, a.what);
	a.y = dx;
	a.x = dy;
	a.w = w;
	a.residual = add ? dx : NULL;
	return run_any(c, &a);
}

int
cuda_linear_bwd_weight(lpo_backend *be, enum lpo_dtype dt, float *dw,
    float *db, const void *dy, const void *x, int64_t m, int64_t n, int64_t k,
    float alpha, int64_t groups, void *scratch)
{
	struct call a = make_call("linear_bwd_weight", LPO_BWD_WEIGHT, dt, m,
	    n, k, alpha);
	struct cuda *c = cuda_of(be);
	int rc = 0;

	(void)scratch;
	if (groups < 1 || m % groups != 0)
		return cuda_fail(c, LPO_EINVAL, a.what, "groups of rows");
	if (m == 0 || n == 0)
		return 0;
	if ((rc = linear_state(c, a.what)) < 0)
		return rc;
	a.y = dw;
	a.x = dy;
	a.w = x;
	a.residual = dw;
	if (dw != NULL && k > 0)
		rc = dt == LPO_BF16 && cuda_linear_tall(c, &a,
		    c->linear->counters) ?
		    cuda_done(c, a.what) : run_any(c, &a);
	if (rc == 0 && db != NULL)
		rc = cuda_linear_bias(c, dt, db, dy, m, n, alpha,
		    c->linear->counters, a.what);
	return rc;
}

/* None: the workspace serves.  What a call needs beside it is made here. */
size_t
cuda_linear_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t m, int64_t n, int64_t k, int64_t groups)
{
	(void)pass;
	(void)dt;
	(void)m;
	(void)n;
	(void)k;
	(void)groups;
	linear_state(cuda_of(be), "linear_scratch_bytes");
	return 0;
}
