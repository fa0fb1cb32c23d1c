/*
 * Convolutions: forward matmul_sm90.cu's where it has code for them, else
 * cuDNN's engines, chosen in conv_graph.cu, and where it has none a direct
 * loop.  1x1 on every pixel is a linear layer.
 *
 * No engine takes bf16 and gives f32: a weight gradient of bf16 is rounded to
 * bf16 once per call before it joins the f32 sum, as PyTorch's is (widened
 * operands in TF32 would spare that, at a quarter of the speed).
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/conv_direct.h"
#include "kernels/conv_graph.h"
#include "kernels/matmul_sm90.h"

/* What an engine may want; more is a slow way out. */
static const size_t most_workspace = (size_t)512 << 20;

struct entry {
	struct conv_key key;
	struct conv_plan plan;
	struct entry *next;
};

/* be->conv: the plans made so far, those that cannot be made among them. */
struct cuda_conv {
	struct conv_device device;
	struct entry *bucket[256];
};

void
cuda_conv_free(struct cuda *c)
{
	struct entry *e, *next;
	int i;

	if (c->conv == NULL)
		return;
	for (i = 0; i < 256; i++)
		for (e = c->conv->bucket[i]; e != NULL; e = next) {
			next = e->next;
			cuda_conv_plan_free(&e->plan);
			free(e);
		}
	free(c->conv);
	c->conv = NULL;
}

static unsigned
hash(const struct conv_key *k)
{
	const unsigned char *p = (const unsigned char *)k;
	unsigned h = 2166136261u;
	size_t i;

	for (i = 0; i < sizeof(*k); i++)
		h = (h ^ p[i]) * 16777619u;
	return (h ^ h >> 16) & 255;
}

static struct conv_key
key_of(const struct lpo_conv_shape *s, enum lpo_pass pass, enum lpo_dtype dt,
    int flags, int align)
{
	struct conv_key k;

	memset(&k, 0, sizeof(k));
	k.s = *s;
	k.pass = pass;
	k.dt = dt;
	k.flags = flags;
	k.align = align;
	return k;
}

static struct entry *find(struct cuda *, const struct conv_key *);

/*
 * Scratch is asked for when no pointer is known: what an engine for worse
 * aligned ones may use is what the one for aligned ones does.
 */
static size_t
cap_of(struct cuda *c, const struct conv_key *k)
{
	struct conv_key aligned = *k;
	struct entry *e;

	if (k->align == 16)
		return most_workspace;
	aligned.align = 16;
	e = find(c, &aligned);
	return e == NULL ? 0 : e->plan.workspace_bytes;
}

/* NULL: no memory, or it is too late to make a plan. */
static struct entry *
find(struct cuda *c, const struct conv_key *k)
{
	struct entry **at, *e;
	size_t cap;

	if (c->conv == NULL) {
		c->conv = (struct cuda_conv *)calloc(1, sizeof(*c->conv));
		if (c->conv == NULL)
			return NULL;
		c->conv->device.handle = c->dnn;
	}
	at = &c->conv->bucket[hash(k)];
	for (e = *at; e != NULL; e = e->next)
		if (memcmp(&e->key, k, sizeof(*k)) == 0)
			return e;
	if (c->capturing) {
		cuda_fail(c, LPO_ECUDA, "conv", "no plan was made before the "
		    "graph");
		return NULL;
	}
	cap = cap_of(c, k);
	e = (struct entry *)calloc(1, sizeof(*e));
	if (e == NULL)
		return NULL;
	e->key = *k;
	/*
	 * An error, too, means that no engine will do.  What those tried in
	 * vain left behind is not for the next launch to report.
	 */
	cuda_conv_plan_make(&e->plan, k, &c->conv->device, cap);
	cudaGetLastError();
	e->next = *at;
	*at = e;
	return e;
}

static int
no_plan(struct cuda *c)
{
	return c->capturing ? LPO_ECUDA : cuda_fail(c, LPO_ENOMEM, "conv",
	    "out of memory");
}

static int
run(struct cuda *c, const struct entry *e, const struct conv_data *d)
{
	int rc = cuda_check_dnn(c, cuda_conv_plan_run(&e->plan, c->dnn,
	    d), "conv");

	return rc != 0 ? rc : cuda_done(c, "conv");
}

static int
is_linear(const struct lpo_conv_shape *s)
{
	return s->kh == 1 && s->kw == 1 && s->stride == 1 &&
	    s->pad_top == 0 && s->pad_left == 0 && s->ho == s->h &&
	    s->wo == s->w;
}

static int64_t
x_count(const struct lpo_conv_shape *s)
{
	return s->n * s->h * s->w * s->ci;
}

static int64_t
y_count(const struct lpo_conv_shape *s)
{
	return s->n * s->ho * s->wo * s->co;
}

static int64_t
w_count(const struct lpo_conv_shape *s)
{
	return s->co * s->kh * s->kw * s->ci;
}

/* Bytes of an f32 copy, or less, so that what is behind it is aligned. */
static size_t
wide_bytes(int64_t count)
{
	return ((size_t)count * 4 + 255) & ~(size_t)255;
}

/* y[m,co] = bias[co] + residual[m,co] */
static __global__ void
start(float *y, const float *bias, const float *residual, int64_t count,
    int64_t co)
{
	int64_t i = (int64_t)blockIdx.x * CONV_THREADS + threadIdx.x;

	for (; i < count; i += (int64_t)gridDim.x * CONV_THREADS)
		y[i] = bias[i % co] + (residual != NULL ? residual[i] : 0);
}

/*
 * Forward.  In f32 y is first filled with what is added and the convolution
 * joins it.  In bf16 the convolution comes first and the rest in a pass of
 * its own, which rounds twice, as PyTorch does: engines that add in the same
 * kernel are compiled ones, at half the speed (330 of 700 TFLOP/s, H200).
 */
static int
fwd_flags(enum lpo_dtype dt, int bias, int residual, int in_place)
{
	if (dt == LPO_BF16)
		return residual && in_place ? CONV_ADD : 0;
	return bias || residual ? CONV_ADD : 0;
}

/* y[m,co] += bias[co] + residual[m,co]; 8 channels a thread */
static __global__ void
finish8(__nv_bfloat16 *y, const float *bias, const __nv_bfloat16 *residual,
    int64_t count, int64_t co)
{
	int64_t i = ((int64_t)blockIdx.x * CONV_THREADS + threadIdx.x) * 8;
	int64_t step = (int64_t)gridDim.x * CONV_THREADS * 8;

	for (; i < count; i += step) {
		uint4 a = *(const uint4 *)(y + i), r = make_uint4(0, 0, 0, 0);
		__nv_bfloat162 *p = (__nv_bfloat162 *)&a;
		const __nv_bfloat162 *q = (const __nv_bfloat162 *)&r;
		float b[8] = {};
		int j;

		if (residual != NULL)
			r = *(const uint4 *)(residual + i);
		if (bias != NULL) {
			*(float4 *)b = *(const float4 *)(bias + i % co);
			*(float4 *)(b + 4) = *(const float4 *)(bias + i % co +
			    4);
		}
#pragma unroll
		for (j = 0; j < 4; j++) {
			float2 v = __bfloat1622float2(p[j]);
			float2 w = __bfloat1622float2(q[j]);

			p[j] = __floats2bfloat162_rn(v.x + b[2 * j] + w.x,
			    v.y + b[2 * j + 1] + w.y);
		}
		*(uint4 *)(y + i) = a;
	}
}

static __global__ void
finish1(__nv_bfloat16 *y, const float *bias, const __nv_bfloat16 *residual,
    int64_t count, int64_t co)
{
	int64_t i = (int64_t)blockIdx.x * CONV_THREADS + threadIdx.x;

	for (; i < count; i += (int64_t)gridDim.x * CONV_THREADS)
		cuda_store(y + i, cuda_load(y + i) +
		    (bias != NULL ? bias[i % co] : 0) +
		    (residual != NULL ? cuda_load(residual + i) : 0));
}

static int
run_finish(struct cuda *c, void *y, const float *bias, const void *residual,
    const struct lpo_conv_shape *s)
{
	int64_t count = y_count(s);
	__nv_bfloat16 *to = (__nv_bfloat16 *)y;
	const __nv_bfloat16 *r = (const __nv_bfloat16 *)residual;

	if (bias == NULL && residual == NULL)
		return 0;
	if (s->co % 8 == 0 && cuda_alignment(y, residual, bias, NULL) == 16)
		finish8<<<conv_blocks(count / 8), CONV_THREADS, 0,
		    c->stream>>>(to, bias, r, count, s->co);
	else
		finish1<<<conv_blocks(count), CONV_THREADS, 0, c->stream>>>(to,
		    bias, r, count, s->co);
	return cuda_done(c, "conv");
}

/* y, in f32, becomes what the convolution is added to. */
static int
fill(struct cuda *c, float *y, const float *bias, const float *residual,
    const struct lpo_conv_shape *s)
{
	int64_t count = y_count(s);

	if (bias != NULL) {
		start<<<conv_blocks(count), CONV_THREADS, 0, c->stream>>>(y,
		    bias, residual, count, s->co);
		return cuda_done(c, "conv");
	}
	if (residual == y)
		return 0;
	return cuda_check(c, cudaMemcpyAsync(y, residual, (size_t)count *
	    sizeof(float), cudaMemcpyDeviceToDevice, c->stream), "conv_fwd");
}

int
cuda_conv_fwd(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s, void *scratch)
{
	struct cuda *c = cuda_of(be);
	struct conv_data d = { x, w, y, scratch };
	struct conv_key k;
	struct entry *e;
	int rc = 0;

	if (y_count(s) == 0)
		return 0;
	if (is_linear(s))
		return cuda_linear_fwd(be, dt, y, x, w, bias, residual, s->n *
		    s->h * s->w, s->co, s->ci, 1, scratch);
	if (dt == LPO_BF16 && (rc = cuda_matmul90_conv(c, y, x, w, bias,
	    residual, s)) != 0)
		return rc < 0 ? rc : 0;
	k = key_of(s, LPO_FWD, dt, fwd_flags(dt, bias != NULL, residual !=
	    NULL, residual == y), cuda_alignment(x, w, y, NULL));
	e = find(c, &k);
	if (e == NULL)
		return no_plan(c);
	if (e->plan.plan != NULL) {
		if (dt != LPO_BF16 && k.flags & CONV_ADD)
			rc = fill(c, (float *)y, bias,
			    (const float *)residual, s);
		if (rc == 0)
			rc = run(c, e, &d);
		if (rc == 0 && dt == LPO_BF16)
			rc = run_finish(c, y, bias, residual == y ? NULL :
			    residual, s);
		return rc;
	}
	return cuda_conv_direct_fwd(c, dt, y, x, w, bias, residual, s);
}

int
cuda_conv_bwd_data(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, const struct lpo_conv_shape *s, int add,
    void *scratch)
{
	struct cuda *c = cuda_of(be);
	struct conv_data d = { dx, w, dy, scratch };
	struct conv_key k;
	struct entry *e;

	if (dx == NULL || x_count(s) == 0)
		return 0;
	if (is_linear(s))
		return cuda_linear_bwd_data(be, dt, dx, dy, w, s->n * s->h *
		    s->w, s->co, s->ci, 1, add, scratch);
	k = key_of(s, LPO_BWD_DATA, dt, add ? CONV_ADD : 0,
	    cuda_alignment(dx, dy, w, NULL));
	e = find(c, &k);
	if (e == NULL)
		return no_plan(c);
	if (e->plan.plan != NULL)
		return run(c, e, &d);
	return cuda_conv_direct_bwd_data(c, dt, dx, dy, w, s, add);
}

/* f32 sums into dw; bf16 is made in scratch first. */
static struct conv_key
weight_key(const struct lpo_conv_shape *s, enum lpo_dtype dt, int align)
{
	return key_of(s, LPO_BWD_WEIGHT, dt, dt == LPO_BF16 ? 0 : CONV_ADD,
	    align);
}

static int
weight(lpo_backend *be, enum lpo_dtype dt, float *dw, const void *dy,
    const void *x, const struct lpo_conv_shape *s, char *scratch)
{
	struct cuda *c = cuda_of(be);
	int half = dt == LPO_BF16, rc;
	struct conv_data d = { x, half ? (void *)scratch : (void *)dw, dy,
	    scratch + (half ? wide_bytes(w_count(s)) : 0) };
	struct conv_key k = weight_key(s, dt, cuda_alignment(d.w, dy, x,
	    NULL));
	struct entry *e = find(c, &k);

	if (e == NULL)
		return no_plan(c);
	if (e->plan.plan == NULL)
		return cuda_conv_direct_bwd_weight(c, dt, dw, dy, x, s);
	rc = run(c, e, &d);
	if (rc == 0 && half)
		rc = cuda_convert_acc(be, dw, LPO_F32, d.w, LPO_BF16,
		    w_count(s));
	return rc;
}

int
cuda_conv_bwd_weight(lpo_backend *be, enum lpo_dtype dt, float *dw, float *db,
    const void *dy, const void *x, const struct lpo_conv_shape *s,
    int64_t groups, void *scratch)
{
	struct cuda *c = cuda_of(be);
	int64_t m = s->n * s->ho * s->wo;
	int rc = 0;

	if (groups < 1 || s->n % groups != 0)
		return cuda_fail(c, LPO_EINVAL, "conv_bwd_weight",
		    "groups do not divide the rows");
	if (y_count(s) == 0)
		return 0;
	if (is_linear(s))
		return cuda_linear_bwd_weight(be, dt, dw, db, dy, x, m, s->co,
		    s->ci, 1, groups, scratch);
	if (dw != NULL)
		rc = weight(be, dt, dw, dy, x, s, (char *)scratch);
	return rc != 0 || db == NULL ? rc : cuda_conv_column_sums(c, dt, db,
	    dy, m, s->co, (float *)scratch);
}

static size_t
larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

/* The workspace of the plan; *missing is set where there is none. */
static size_t
plan_bytes(struct cuda *c, struct conv_key k, int *missing)
{
	struct entry *e = find(c, &k);

	*missing |= e == NULL || e->plan.plan == NULL;
	return e == NULL ? 0 : e->plan.workspace_bytes;
}

/* Each way that cuda_conv_fwd may go; makes its plan. */
static size_t
fwd_bytes(struct cuda *c, enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	size_t most;
	int missing = 0;

	most = plan_bytes(c, key_of(s, LPO_FWD, dt, 0, 16), &missing);
	return larger(most, plan_bytes(c, key_of(s, LPO_FWD, dt, CONV_ADD,
	    16), &missing));
}

size_t
cuda_conv_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s, int64_t groups)
{
	struct cuda *c = cuda_of(be);
	int64_t m = s->n * s->ho * s->wo;
	int missing = 0;
	size_t bytes;

	if (x_count(s) == 0 || y_count(s) == 0)
		return 0;
	if (is_linear(s))
		return cuda_linear_scratch_bytes(be, pass, dt, m, s->co, s->ci,
		    groups);
	if (pass == LPO_FWD)
		return fwd_bytes(c, dt, s);
	if (pass == LPO_BWD_DATA)
		return larger(plan_bytes(c, key_of(s, pass, dt, 0, 16),
		    &missing), plan_bytes(c, key_of(s, pass, dt, CONV_ADD, 16),
		    &missing));
	bytes = plan_bytes(c, weight_key(s, dt, 16), &missing);
	if (dt == LPO_BF16 && !missing)
		bytes += wide_bytes(w_count(s));
	return larger(bytes, cuda_conv_column_sums_bytes(m, s->co));
}
