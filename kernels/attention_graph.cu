/*
 * cuDNN's one-node attention, o = softmax(q k^T d^-1/2) v, and its plan.
 * q, k, v, o are [n, heads, tokens, d] with the strides of our token rows, so
 * nothing is moved; the statistics are log-sum-exps, as the backward pass
 * wants them.
 *
 * The heuristics name engines in the order of their speed; the first
 * deterministic one is taken.  None is timed: two runs of a program would
 * then differ in bits.
 *
 * This file is C as well as C++, see attention_graph.h.
 */
#include <math.h>
#include <stdbool.h>

#include "kernels/attention_graph.h"

typedef cudnnBackendDescriptor_t desc;

/* Names of the tensors. */
enum { ID_Q = 1, ID_K, ID_V, ID_O, ID_STATS, ID_SCALE };

enum { CONFIGS = 8, NOTES = CUDNN_NUMERICAL_NOTE_TYPE_COUNT };

/*
 * Small ones are not worth a plan, which takes a good part of a second to
 * make.  Never a matter of n: the bits of a row would change with the number
 * of rows.
 */
int
cuda_attention_suits(struct attention_key *key, enum lpo_dtype dt,
    const struct lpo_attn_shape *s)
{
	if (dt != LPO_BF16 || s->causal || s->lq < 64 || s->lk < 64 ||
	    s->d < 32 || s->d % 8 != 0 || s->ldq % 8 != 0 || s->ldk % 8 != 0)
		return 0;
	key->n = s->nk;
	key->lq = s->n / s->nk * s->lq;
	key->lk = s->lk;
	key->heads = s->heads;
	key->d = s->d;
	key->ldq = s->ldq;
	key->ldk = s->ldk;
	return 1;
}

static desc
make(struct attention_plan *p, cudnnBackendDescriptorType_t type)
{
	desc d = NULL;

	if (p->status == CUDNN_STATUS_SUCCESS && p->count == ATTENTION_PARTS)
		p->status = CUDNN_STATUS_INTERNAL_ERROR;
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendCreateDescriptor(type, &d);
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->parts[p->count++] = d;
	return d;
}

static void
set(struct attention_plan *p, desc d, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t n, const void *value)
{
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendSetAttribute(d, name, type, n, value);
}

static void
set_desc(struct attention_plan *p, desc d, cudnnBackendAttributeName_t name,
    desc part)
{
	set(p, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &part);
}

static void
get(struct attention_plan *p, desc d, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t n, int64_t *got, void *value)
{
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendGetAttribute(d, name, type, n, got,
		    value);
}

static void
finish(struct attention_plan *p, desc d)
{
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->status = cudnnBackendFinalize(d);
}

/* by_value: a scalar of the host's */
static desc
tensor(struct attention_plan *p, int64_t id, cudnnDataType_t type,
    const int64_t dims[4], const int64_t strides[4], bool by_value)
{
	const int64_t align = 16;
	desc t = make(p, CUDNN_BACKEND_TENSOR_DESCRIPTOR);

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

/* l tokens, ld elements apart */
static desc
tokens(struct attention_plan *p, int64_t id, int64_t l, int64_t ld)
{
	const struct attention_key *k = &p->key;
	const int64_t dims[4] = { k->n, k->heads, l, k->d };
	const int64_t strides[4] = { l * ld, k->d, ld, 1 };

	return tensor(p, id, CUDNN_DATA_BFLOAT16, dims, strides, false);
}

static desc
graph_of(struct attention_plan *p, cudnnHandle_t handle)
{
	const struct attention_key *k = &p->key;
	const int64_t stats_dims[4] = { k->n, k->heads, k->lq, 1 };
	const int64_t stats_strides[4] = { k->heads * k->lq, k->lq, 1, 1 };
	const int64_t one[4] = { 1, 1, 1, 1 };
	desc q = tokens(p, ID_Q, k->lq, k->ldq);
	desc key = tokens(p, ID_K, k->lk, k->ldk);
	desc v = tokens(p, ID_V, k->lk, k->ldk);
	desc o = tokens(p, ID_O, k->lq, k->heads * k->d);
	desc stats = tensor(p, ID_STATS, CUDNN_DATA_FLOAT, stats_dims,
	    stats_strides, false);
	desc scale = tensor(p, ID_SCALE, CUDNN_DATA_FLOAT, one, one, true);
	desc op = make(p, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR), graph;

	set_desc(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
	set_desc(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, key);
	set_desc(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
	set_desc(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, o);
	set_desc(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, stats);
	set_desc(p, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
	finish(p, op);
	graph = make(p, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
	if (handle != NULL)
		set(p, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
		    CUDNN_TYPE_HANDLE, 1, &handle);
	set_desc(p, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, op);
	finish(p, graph);
	return graph;
}

/* Does the engine of this configuration give the same bits each time? */
static int
deterministic(struct attention_plan *p, desc config)
{
	desc engine = make(p, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
	cudnnBackendNumericalNote_t notes[NOTES];
	int64_t count = 0, i;

	get(p, config, CUDNN_ATTR_ENGINECFG_ENGINE,
	    CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine);
	get(p, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
	    CUDNN_TYPE_NUMERICAL_NOTE, NOTES, &count, notes);
	if (p->status != CUDNN_STATUS_SUCCESS)
		return 0;
	for (i = 0; i < count && i < NOTES; i++)
		if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
			return 0;
	return 1;
}

/* p->run, where cuDNN can make one of this configuration. */
static void
try_config(struct attention_plan *p, cudnnHandle_t handle, desc properties,
    desc config)
{
	desc run = make(p, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
	int64_t got;

	if (handle != NULL)
		set(p, run, CUDNN_ATTR_EXECUTION_PLAN_HANDLE,
		    CUDNN_TYPE_HANDLE, 1, &handle);
	if (properties != NULL)
		set_desc(p, run, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
		    properties);
	set_desc(p, run, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
	if (p->status != CUDNN_STATUS_SUCCESS ||
	    cudnnBackendFinalize(run) != CUDNN_STATUS_SUCCESS)
		return;
	get(p, run, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
	    CUDNN_TYPE_INT64, 1, &got, &p->workspace_bytes);
	if (p->status == CUDNN_STATUS_SUCCESS)
		p->run = run;
}

void
cuda_attention_plan_make(struct attention_plan *p, cudnnHandle_t handle,
    cudnnBackendDescriptor_t properties)
{
	const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
	desc graph = graph_of(p, handle), heur, config[CONFIGS];
	int64_t count = 0, i;

	heur = make(p, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
	set_desc(p, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
	set(p, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
	    &mode);
	if (properties != NULL)
		set_desc(p, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP,
		    properties);
	finish(p, heur);
	for (i = 0; i < CONFIGS; i++)
		config[i] = make(p, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
	get(p, heur, CUDNN_ATTR_ENGINEHEUR_RESULTS,
	    CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &count, config);
	for (i = 0; i < count && i < CONFIGS && p->run == NULL; i++)
		if (deterministic(p, config[i]))
			try_config(p, handle, properties, config[i]);
}

cudnnStatus_t
cuda_attention_plan_run(const struct attention_plan *p, cudnnHandle_t handle,
    const struct attention_data *x)
{
	const int64_t ids[6] = { ID_Q, ID_K, ID_V, ID_O, ID_STATS, ID_SCALE };
	float scale = 1.0f / sqrtf((float)p->key.d);
	void *data[6] = { (void *)x->q, (void *)x->k, (void *)x->v, x->o,
	    x->lse, &scale };
	desc pack = NULL;
	cudnnStatus_t rc;

	rc = cudnnBackendCreateDescriptor(
	    CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
	if (rc != CUDNN_STATUS_SUCCESS)
		return rc;
	rc = cudnnBackendSetAttribute(pack,
	    CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 6, ids);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendSetAttribute(pack,
		    CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
		    CUDNN_TYPE_VOID_PTR, 6, data);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendSetAttribute(pack,
		    CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
		    &x->workspace);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendFinalize(pack);
	if (rc == CUDNN_STATUS_SUCCESS)
		rc = cudnnBackendExecute(handle, p->run, pack);
	cudnnBackendDestroyDescriptor(pack);
	return rc;
}

void
cuda_attention_plan_free(struct attention_plan *p)
{
	while (p->count > 0)
		cudnnBackendDestroyDescriptor(p->parts[--p->count]);
	p->run = NULL;
}
