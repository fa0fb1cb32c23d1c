/*
 * Attention on the device: forward through cuDNN's one-node attention where
 * it has an engine (bf16, no mask), else through our own kernels; scratch of
 * both passes.
 *
 * cuDNN sees q, k, v, o as [batch, heads, tokens, d] with the strides of our
 * token rows, so nothing is moved.  Rows of q that share k and v follow each
 * other, so without a mask they are one longer sequence: batch nk, n / nk * lq
 * queries.  Only the log-sum-exps come out in another order then, and are put
 * into ours afterwards.
 */
#include <stdlib.h>

#include "kernels/attention_flash.h"

/* attention_bwd.cu */
size_t	cuda_attention_bwd_bytes(enum lpo_dtype,
	    const struct lpo_attn_shape *);

enum { ID_Q = 1, ID_K, ID_V, ID_O, ID_STATS, ID_SCALE };
enum {
	DESCRIPTORS = 48,	/* of a plan, at most */
	CONFIGS = 8,		/* tried, per plan */
	ALIGN = 256		/* of cuDNN's workspace */
};

/* A shape as cuDNN has it, and its plan. */
struct plan {
	struct plan *next;
	int64_t n, lq, lk, heads, d, ldq, ldk;
	/* Everything the plan was made of lives as long as it. */
	cudnnBackendDescriptor_t all[DESCRIPTORS];
	int count;
	cudnnStatus_t status;		/* the first that failed */
	cudnnBackendDescriptor_t run;	/* NULL: cuDNN has no engine for it */
	int64_t workspace_bytes;
};

struct cuda_attention {
	struct plan *plans;
};

/* ---- plans */

static cudnnBackendDescriptor_t
make(struct plan *p, cudnnBackendDescriptorType_t type)
{
	cudnnBackendDescriptor_t d = NULL;

	if (p->status == CUDNN_STATUS_SUCCESS && p->count == DESCRIPTORS)
		p->status = CUDNN_STATUS_INTERNAL_ERROR;
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendCreateDescriptor(type, &d);
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->all[p->count++] = d;
	return d;
}

static void
set(struct plan *p, cudnnBackendDescriptor_t d,
    cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
    int64_t count, const void *value)
{
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendSetAttribute(d, name, type, count,
		    value);
}

static void
set_part(struct plan *p, cudnnBackendDescriptor_t d,
    cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t part)
{
	set(p, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static void
finish(struct plan *p, cudnnBackendDescriptor_t d)
{
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendFinalize(d);
}

/* [n, heads, tokens, d] with these strides; by_value: a scalar of the host */
static cudnnBackendDescriptor_t
tensor(struct plan *p, int64_t id, cudnnDataType_t type, int64_t n,
    int64_t heads, int64_t tokens, int64_t d, int64_t row, int64_t head,
    int64_t token, bool by_value)
{
	const int64_t dims[4] = { n, heads, tokens, d };
	const int64_t strides[4] = { row, head, token, 1 }, align = 16;
	cudnnBackendDescriptor_t t = make(p, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

	set(p, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
	set(p, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
	set(p, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1,
	    &align);
	set(p, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
	set(p, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
	if (by_value)
		set(p, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN,
		    1, &by_value);
	finish(p, t);
	return t;
}

static cudnnBackendDescriptor_t
tokens(struct plan *p, int64_t id, int64_t l, int64_t ld)
{
	return tensor(p, id, CUDNN_DATA_BFLOAT16, p->n, p->heads, l, p->d,
	    l * ld, p->d, ld, false);
}

/* The graph of one operation. */
static cudnnBackendDescriptor_t
graph_of(struct plan *p, cudnnHandle_t dnn)
{
	cudnnBackendDescriptor_t q = tokens(p, ID_Q, p->lq, p->ldq);
	cudnnBackendDescriptor_t k = tokens(p, ID_K, p->lk, p->ldk);
	cudnnBackendDescriptor_t v = tokens(p, ID_V, p->lk, p->ldk);
	cudnnBackendDescriptor_t o = tokens(p, ID_O, p->lq, p->heads * p->d);
	cudnnBackendDescriptor_t stats = tensor(p, ID_STATS, CUDNN_DATA_FLOAT,
	    p->n, p->heads, p->lq, 1, p->heads * p->lq, p->lq, 1, false);
	cudnnBackendDescriptor_t scale = tensor(p, ID_SCALE, CUDNN_DATA_FLOAT,
	    1, 1, 1, 1, 1, 1, 1, true);
	cudnnBackendDescriptor_t op = make(p,
	    CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
	cudnnBackendDescriptor_t graph;

	set_part(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
	set_part(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
	set_part(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
	set_part(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, o);
	set_part(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, stats);
	set_part(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
	finish(p, op);
	graph = make(p, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
	set(p, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1,
	    &dnn);
	set_part(p, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, op);
	finish(p, graph);
	return graph;
}

/* Does the engine of this configuration give the same bits each time? */
static int
deterministic(struct plan *p, cudnnBackendDescriptor_t config)
{
	cudnnBackendDescriptor_t engine = make(p,
	    CUDNN_BACKEND_ENGINE_DESCRIPTOR);
	cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
	int64_t count = 0, i;

	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendGetAttribute(config,
		    CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
		    1, &count, &engine);
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendGetAttribute(engine,
		    CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
		    CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT,
		    &count, notes);
	if (p->status != CUDNN_STATUS_SUCCESS)
		return 0;
	for (i = 0; i < count; i++)
		if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
			return 0;
	return 1;
}

/* The plan of this configuration, or NULL where cuDNN cannot make it. */
static cudnnBackendDescriptor_t
plan_of(struct plan *p, cudnnHandle_t dnn, cudnnBackendDescriptor_t config)
{
	cudnnBackendDescriptor_t run = make(p,
	    CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);

	set(p, run, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
	    &dnn);
	set_part(p, run, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
	if (p->status != CUDNN_STATUS_SUCCESS ||
	    cudnnBackendFinalize(run) != CUDNN_STATUS_SUCCESS)
		return NULL;
	return run;
}

/*
 * p->run, if there is an engine.  What fails here only means that our own
 * kernel does the work, so the status goes no further than p.
 */
static void
build(struct plan *p, cudnnHandle_t dnn)
{
	const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
	cudnnBackendDescriptor_t graph = graph_of(p, dnn), heur;
	cudnnBackendDescriptor_t config[CONFIGS], run = NULL;
	int64_t count = 0, got, i;

	heur = make(p, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
	set_part(p, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
	set(p, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
	    &mode);
	finish(p, heur);
	for (i = 0; i < CONFIGS; i++)
		config[i] = make(p, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendGetAttribute(heur,
		    CUDNN_ATTR_ENGINEHEUR_RESULTS,
		    CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &count, config);
	for (i = 0; i < count && i < CONFIGS && run == NULL; i++)
		if (deterministic(p, config[i]))
			run = plan_of(p, dnn, config[i]);
	if (run != NULL)
		p->status = cudnnBackendGetAttribute(run,
		    CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
		    CUDNN_TYPE_INT64, 1, &got, &p->workspace_bytes);
	if (run != NULL && p->status == CUDNN_STATUS_SUCCESS)
		p->run = run;
}

static void
plan_free(struct plan *p)
{
	while (p->count > 0)
		cudnnBackendDestroyDescriptor(p->all[--p->count]);
	free(p);
}

/*
 * May cuDNN be asked?  Small ones are not worth a plan, which takes a good
 * part of a second to make.  Never a matter of n: the bits of a row would
 * change with the number of rows.
 */
static int
suits(enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	return dt == LPO_BF16 && !s->causal && s->lq >= 64 && s->lk >= 64 &&
	    s->d >= 32 && s->d % 8 == 0 && s->ldq % 8 == 0 && s->ldk % 8 == 0;
}

/* The plan of s from the cache, or NULL. */
static struct plan *
find(struct cuda *cu, const struct lpo_attn_shape *s)
{
	struct plan *p = cu->attention == NULL ? NULL : cu->attention->plans;
	int64_t lq = s->n / s->nk * s->lq;

	for (; p != NULL; p = p->next)
		if (p->n == s->nk && p->lq == lq && p->lk == s->lk &&
		    p->heads == s->heads && p->d == s->d &&
		    p->ldq == s->ldq && p->ldk == s->ldk)
			break;
	return p;
}

/* The same, made where there is none; NULL without memory. */
static struct plan *
find_or_build(struct cuda *cu, const struct lpo_attn_shape *s)
{
	struct plan *p = find(cu, s);

	if (p != NULL)
		return p;
	if (cu->attention == NULL)
		cu->attention = (struct cuda_attention *)calloc(1,
		    sizeof(*cu->attention));
	if (cu->attention == NULL)
		return NULL;
	p = (struct plan *)calloc(1, sizeof(*p));
	if (p == NULL)
		return NULL;
	p->n = s->nk;
	p->lq = s->n / s->nk * s->lq;
	p->lk = s->lk;
	p->heads = s->heads;
	p->d = s->d;
	p->ldq = s->ldq;
	p->ldk = s->ldk;
	build(p, cu->dnn);
	p->next = cu->attention->plans;
	cu->attention->plans = p;
	return p;
}

void
cuda_attention_free(struct cuda *cu)
{
	struct plan *p, *next;

	if (cu->attention == NULL)
		return;
	for (p = cu->attention->plans; p != NULL; p = next) {
		next = p->next;
		plan_free(p);
	}
	free(cu->attention);
	cu->attention = NULL;
}

/* ---- forward */

/* to[i][h][x] = from[i / r][h][i mod r][x], rows i, heads h, queries x */
static __global__ void
unfold(float *__restrict__ to, const float *__restrict__ from, int64_t count,
    int64_t heads, int64_t lq, int64_t r)
{
	int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
	int64_t i = at / (heads * lq), h = at / lq % heads, x = at % lq;

	if (at < count)
		to[at] = from[((i / r * heads + h) * r + i % r) * lq + x];
}

/* What cuDNN's pointers must be for its engine. */
static int
aligned(const void *o, const void *q, const void *k, const void *v)
{
	return (((uintptr_t)o | (uintptr_t)q | (uintptr_t)k | (uintptr_t)v) &
	    15) == 0;
}

static int
execute(struct cuda *cu, const struct plan *p, void *o, float *stats,
    const void *q, const void *k, const void *v, void *workspace)
{
	int64_t ids[6] = { ID_Q, ID_K, ID_V, ID_O, ID_STATS, ID_SCALE };
	float scale = 1.0f / sqrtf((float)p->d);
	void *data[6] = { (void *)q, (void *)k, (void *)v, o, stats, &scale };
	cudnnBackendDescriptor_t pack = NULL;
	cudnnStatus_t rc;

	rc = cudnnBackendCreateDescriptor(
	    CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
	if (rc != CUDNN_STATUS_SUCCESS)
		return cuda_check_dnn(cu, rc, "attention");
	rc = cudnnBackendSetAttribute(pack,
	    CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 6, ids);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendSetAttribute(pack,
		    CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
		    CUDNN_TYPE_VOID_PTR, 6, data);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendSetAttribute(pack,
		    CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
		    &workspace);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendFinalize(pack);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendExecute(cu->dnn, p->run, pack);
	cudnnBackendDestroyDescriptor(pack);
	return cuda_check_dnn(cu, rc, "attention");
}

static int64_t
lse_count(const struct lpo_attn_shape *s)
{
	return s->n * s->heads * s->lq;
}

/*
 * Scratch: the workspace, then the log-sum-exps where they are not wanted or
 * stand in another order than ours.
 */
static int
forward_dnn(struct cuda *cu, const struct plan *p, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	uintptr_t work = ((uintptr_t)scratch + ALIGN - 1) / ALIGN * ALIGN;
	uintptr_t after = (work + (size_t)p->workspace_bytes + ALIGN - 1) /
	    ALIGN * ALIGN;
	float *stats = lse != NULL && s->nk == s->n ? lse : (float *)after;
	int64_t count = lse_count(s);
	int rc = execute(cu, p, o, stats, q, k, v, (void *)work);

	if (rc != 0 || lse == NULL || stats == lse)
		return rc != 0 ? rc : cuda_done(cu, "attention");
	unfold<<<(unsigned)((count + 255) / 256), 256, 0, cu->stream>>>(lse,
	    stats, count, s->heads, s->lq, s->n / s->nk);
	return cuda_done(cu, "attention");
}

int
cuda_attention_fwd(lpo_backend *be, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	struct cuda *cu = cuda_of(be);
	struct plan *p = NULL;

	if (s->n == 0)
		return 0;
	if (s->n < 1 || s->nk < 1 || s->n % s->nk != 0 || s->lq < 1 ||
	    s->lk < 1 || s->heads < 1 || s->d < 1 || s->heads > INT32_MAX ||
	    s->d > INT32_MAX || (dt != LPO_F32 && dt != LPO_BF16))
		return cuda_fail(cu, LPO_EINVAL, "attention", "bad shape");
	if (suits(dt, s) && aligned(o, q, k, v))
		/* a plan cannot be made while a graph is recorded */
		p = cu->capturing ? find(cu, s) : find_or_build(cu, s);
	if (p == NULL || p->run == NULL)
		return cuda_flash_fwd(cu, dt, o, lse, q, k, v, s);
	return forward_dnn(cu, p, o, lse, q, k, v, s, scratch);
}

/* Also the place where plans are made, ahead of any graph. */
size_t
cuda_attention_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	const struct plan *p;

	if (pass != LPO_FWD)
		return cuda_attention_bwd_bytes(dt, s);
	if (s->n < 1 || s->nk < 1 || s->n % s->nk != 0 || !suits(dt, s))
		return 0;
	p = find_or_build(cuda_of(be), s);
	if (p == NULL || p->run == NULL)
		return 0;
	return (size_t)p->workspace_bytes + 2 * ALIGN +
	    (size_t)lse_count(s) * sizeof(float);
}
