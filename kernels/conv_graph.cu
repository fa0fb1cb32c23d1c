/*
 * A convolution's graph for cuDNN, and the choice of its engine.
 *
 *	fwd		y = conv(x, w)
 *	bwd_data	dx = conv^T(dy, w)
 *	bwd_weight	dw = x^T dy
 *
 * Each with beta 1 where the result is added to.  The heuristics name engines
 * in the order of their speed; taken is the first that is deterministic,
 * never rounds between, and computes f32 in f32; compiled ones are left out,
 * which take half a second each and are no faster.  No engine is timed: two
 * runs of a program would then differ in bits.
 *
 * This file is C as well as C++, see conv_graph.h.
 */
#include <stdbool.h>
#include <string.h>

#include "kernels/conv_graph.h"

typedef cudnnBackendDescriptor_t desc;

/* Names of the tensors. */
enum { X = 1, W, Y };

enum { CONFIGS = 64 };	/* of the heuristics' list that are looked at */

/* A graph while it is built: the first error ends it. */
struct graph {
	struct conv_plan *p;
	const struct conv_key *k;
	cudnnStatus_t status;
};

static desc
make(struct graph *g, cudnnBackendDescriptorType_t type)
{
	desc d = NULL;

	if (g->status == CUDNN_STATUS_SUCCESS && g->p->count == CONV_PARTS)
		g->status = CUDNN_STATUS_INTERNAL_ERROR;
	if (g->status == CUDNN_STATUS_SUCCESS)
		g->status = cudnnBackendCreateDescriptor(type, &d);
	if (g->status == CUDNN_STATUS_SUCCESS)
		g->p->parts[g->p->count++] = d;
	return d;
}

static void
set(struct graph *g, desc d, cudnnBackendAttributeName_t name,
    cudnnBackendAttributeType_t type, int64_t n, const void *value)
{
	if (g->status == CUDNN_STATUS_SUCCESS)
		g->status = cudnnBackendSetAttribute(d, name, type, n, value);
}

static void
set_desc(struct graph *g, desc d, cudnnBackendAttributeName_t name, desc value)
{
	set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void
finish(struct graph *g, desc d)
{
	if (g->status == CUDNN_STATUS_SUCCESS)
		g->status = cudnnBackendFinalize(d);
}

static cudnnDataType_t
type_of(const struct conv_key *k)
{
	return k->dt == LPO_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* cuDNN counts dimensions as NCHW and KCRS; the strides say channels-last. */
static desc
tensor(struct graph *g, int64_t name, cudnnDataType_t type, int64_t n,
    int64_t h, int64_t w, int64_t c)
{
	desc d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
	int64_t dims[4] = { n, c, h, w };
	int64_t strides[4] = { h * w * c, 1, w * c, c };
	int64_t align = g->k->align;

	set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &name);
	set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
	set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
	set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
	set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1,
	    &align);
	finish(g, d);
	return d;
}

/* The padding behind that ho or wo needs; rows may be left unread. */
static int64_t
pad_behind(int64_t out, int64_t stride, int64_t kernel, int64_t pad,
    int64_t in)
{
	int64_t behind = (out - 1) * stride + kernel - pad - in;

	return behind > 0 ? behind : 0;
}

static desc
convolution(struct graph *g)
{
	const struct lpo_conv_shape *s = &g->k->s;
	desc d = make(g, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
	cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
	cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
	int64_t two = 2, ones[2] = { 1, 1 };
	int64_t strides[2] = { s->stride, s->stride };
	int64_t before[2] = { s->pad_top, s->pad_left };
	int64_t behind[2];

	behind[0] = pad_behind(s->ho, s->stride, s->kh, s->pad_top, s->h);
	behind[1] = pad_behind(s->wo, s->stride, s->kw, s->pad_left, s->w);
	set(g, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1,
	    &two);
	set(g, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1,
	    &f32);
	set(g, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE,
	    CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
	set(g, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
	set(g, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2,
	    strides);
	set(g, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2,
	    before);
	set(g, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2,
	    behind);
	finish(g, d);
	return d;
}

/* The attributes of the operation of each pass, by enum lpo_pass. */
static const struct op {
	cudnnBackendDescriptorType_t type;
	cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
} ops[3] = {
	{ CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA },
	{ CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA },
	{ CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
	    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA },
};

/* The graph of the one operation. */
static desc
whole_graph(struct graph *g, const struct conv_device *dev)
{
	const struct lpo_conv_shape *s = &g->k->s;
	const struct op *o = &ops[g->k->pass];
	cudnnDataType_t type = type_of(g->k);
	/* of the compute type: cuDNN reads a double here as a float */
	float alpha = 1, beta = g->k->flags & CONV_ADD ? 1 : 0;
	desc conv = convolution(g);
	desc x = tensor(g, X, type, s->n, s->h, s->w, s->ci);
	desc w = tensor(g, W, type, s->co, s->kh, s->kw, s->ci);
	desc y = tensor(g, Y, type, s->n, s->ho, s->wo, s->co);
	desc d = make(g, o->type), whole;

	set_desc(g, d, o->conv, conv);
	set_desc(g, d, o->x, x);
	set_desc(g, d, o->w, w);
	set_desc(g, d, o->y, y);
	set(g, d, o->alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
	set(g, d, o->beta, CUDNN_TYPE_FLOAT, 1, &beta);
	finish(g, d);
	whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
	set_desc(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, d);
	if (dev->handle != NULL)
		set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE,
		    CUDNN_TYPE_HANDLE, 1, &dev->handle);
	finish(g, whole);
	return whole;
}

/* Whether the engine of a configuration keeps our promises. */
static int
is_exact(struct graph *g, desc config)
{
	cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
	cudnnBackendBehaviorNote_t trait[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
	int64_t got, notes = 0, traits = 0, i;
	desc engine = NULL;
	int exact;

	if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR,
	    &engine) != CUDNN_STATUS_SUCCESS)
		return 0;
	exact = cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
	    CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &got, &engine) ==
	    CUDNN_STATUS_SUCCESS &&
	    cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
	    CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT,
	    &notes, note) == CUDNN_STATUS_SUCCESS &&
	    cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE,
	    CUDNN_TYPE_BEHAVIOR_NOTE, CUDNN_BEHAVIOR_NOTE_TYPE_COUNT,
	    &traits, trait) == CUDNN_STATUS_SUCCESS;
	for (i = 0; i < notes && exact; i++)
		exact = note[i] == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP ||
		    (note[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE &&
		    g->k->dt == LPO_BF16);
	for (i = 0; i < traits && exact; i++)
		exact = trait[i] != CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
	cudnnBackendDestroyDescriptor(engine);
	return exact;
}

/* 1 and the plan if the configuration makes one that fits. */
static int
make_plan(struct graph *g, desc config, const struct conv_device *dev,
    size_t cap)
{
	desc d = make(g, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
	int64_t bytes = 0, got;

	if (dev->handle != NULL)
		set(g, d, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE,
		    1, &dev->handle);
	if (dev->properties != NULL)
		set_desc(g, d, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
		    dev->properties);
	set_desc(g, d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
	finish(g, d);
	if (g->status == CUDNN_STATUS_SUCCESS)
		g->status = cudnnBackendGetAttribute(d,
		    CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
		    CUDNN_TYPE_INT64, 1, &got, &bytes);
	if (g->status == CUDNN_STATUS_SUCCESS && (size_t)bytes <= cap) {
		g->p->plan = d;
		g->p->workspace_bytes = (size_t)bytes;
		return 1;
	}
	/* Not this one: the next may do. */
	g->status = CUDNN_STATUS_SUCCESS;
	if (d != NULL)
		cudnnBackendDestroyDescriptor(g->p->parts[--g->p->count]);
	return 0;
}

/* Try what the heuristics of one mode name, best first. */
static void
choose(struct graph *g, desc whole, const struct conv_device *dev,
    cudnnBackendHeurMode_t mode, size_t cap)
{
	desc heur = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
	desc config[CONFIGS];
	int64_t n = 0, i, made = 0;
	int found = 0;

	set_desc(g, heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
	set(g, heur, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
	    &mode);
	if (dev->properties != NULL)
		set_desc(g, heur, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP,
		    dev->properties);
	if (g->status != CUDNN_STATUS_SUCCESS)
		return;
	/* A mode that knows nothing of the graph fails here. */
	if (cudnnBackendFinalize(heur) != CUDNN_STATUS_SUCCESS)
		return;
	while (made < CONFIGS && cudnnBackendCreateDescriptor(
	    CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config[made]) ==
	    CUDNN_STATUS_SUCCESS)
		made++;
	if (cudnnBackendGetAttribute(heur, CUDNN_ATTR_ENGINEHEUR_RESULTS,
	    CUDNN_TYPE_BACKEND_DESCRIPTOR, made, &n, config) !=
	    CUDNN_STATUS_SUCCESS)
		n = 0;
	for (i = 0; i < made; i++) {
		if (i < n && !found && is_exact(g, config[i]) &&
		    make_plan(g, config[i], dev, cap)) {
			found = 1;
			g->p->parts[g->p->count++] = config[i];
		} else
			cudnnBackendDestroyDescriptor(config[i]);
	}
}

cudnnStatus_t
cuda_conv_plan_make(struct conv_plan *p, const struct conv_key *k,
    const struct conv_device *dev, size_t cap)
{
	struct graph g;
	desc whole;

	memset(p, 0, sizeof(*p));
	memset(&g, 0, sizeof(g));
	g.p = p;
	g.k = k;
	g.status = CUDNN_STATUS_SUCCESS;
	whole = whole_graph(&g, dev);
	choose(&g, whole, dev, CUDNN_HEUR_MODE_A, cap);
	if (p->plan == NULL)
		choose(&g, whole, dev, CUDNN_HEUR_MODE_FALLBACK, cap);
	return g.status;
}

cudnnStatus_t
cuda_conv_plan_run(const struct conv_plan *p, cudnnHandle_t handle,
    const struct conv_data *data)
{
	struct conv_plan parts;
	struct graph g;
	int64_t names[3] = { X, W, Y };
	const void *at[3] = { data->x, data->w, data->y };
	desc d;

	memset(&parts, 0, sizeof(parts));
	memset(&g, 0, sizeof(g));
	g.p = &parts;
	d = make(&g, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
	set(&g, d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3,
	    names);
	set(&g, d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
	    3, at);
	set(&g, d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
	    &data->workspace);
	finish(&g, d);
	if (g.status == CUDNN_STATUS_SUCCESS)
		g.status = cudnnBackendExecute(handle, p->plan, d);
	cuda_conv_plan_free(&parts);
	return g.status;
}

void
cuda_conv_plan_free(struct conv_plan *p)
{
	while (p->count > 0)
		cudnnBackendDestroyDescriptor(p->parts[--p->count]);
	memset(p, 0, sizeof(*p));
}
