/* The one file that meets oneDNN, 2.6 and 3.x (see onednn.h). */
#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/onednn.h"

#define CACHE_MAX 1024		/* primitives kept; a UNet needs about 300 */

/* A memory descriptor: a struct in 2.x, a handle in 3.x. */
#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t md_ref;
#define MD_REF(m) ((m)->d)
#else
typedef const dnnl_memory_desc_t *md_ref;
#define MD_REF(m) (&(m)->d)
#endif

struct md {
	dnnl_memory_desc_t d;
	int made;
};

/* Everything that a primitive depends on; compared as bytes. */
struct key {
	int is_conv;
	struct lpo_linear_piece linear;
	struct lpo_conv_piece conv;
};

struct entry {
	struct lpo_piece piece;		/* first: what callers see */
	struct key key;
	int usable, backward;		/* backward: of a convolution */
	dnnl_primitive_desc_t pd;
	dnnl_primitive_t run;
	md_ref src, weight, dst, pad;	/* owned by pd */
	struct md plain, bias;
	dnnl_primitive_desc_t reorder_pd;	/* NULL: none is needed */
	dnnl_primitive_t reorder;
};

struct state {
	dnnl_engine_t engine;
	dnnl_stream_t *streams;		/* one per thread */
	int threads;
	int next;			/* entry that a new one replaces */
	uint64_t hash[CACHE_MAX];	/* of the keys; 0: free */
	struct entry cache[CACHE_MAX];
};

static char version_text[32];

static void
write_version(void)
{
	const dnnl_version_t *v = dnnl_version();

	snprintf(version_text, sizeof(version_text), "oneDNN %d.%d.%d",
	    v->major, v->minor, v->patch);
}

/* Of the library that runs, which need not be the one compiled against. */
const char *
lpo_cpu_library_version(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, write_version);
	return version_text;
}

static int
to_error(dnnl_status_t s)
{
	return s == dnnl_success ? 0 :
	    s == dnnl_out_of_memory ? LPO_ENOMEM : LPO_EINVAL;
}

static int
md_make(struct md *m, int ndims, const int64_t *dims, dnnl_data_type_t type,
    const int64_t *strides)
{
	dnnl_dims_t d = {0}, st = {0};
	dnnl_status_t rc;
	int i;

	for (i = 0; i < ndims; i++) {
		d[i] = dims[i];
		if (strides != NULL)
			st[i] = strides[i];
	}
#if DNNL_VERSION_MAJOR >= 3
	rc = strides != NULL ?
	    dnnl_memory_desc_create_with_strides(&m->d, ndims, d, type, st) :
	    dnnl_memory_desc_create_with_tag(&m->d, ndims, d, type,
	    dnnl_format_tag_any);
#else
	rc = strides != NULL ?
	    dnnl_memory_desc_init_by_strides(&m->d, ndims, d, type, st) :
	    dnnl_memory_desc_init_by_tag(&m->d, ndims, d, type,
	    dnnl_format_tag_any);
#endif
	m->made = rc == dnnl_success;
	return to_error(rc);
}

static void
md_free(struct md *m)
{
#if DNNL_VERSION_MAJOR >= 3
	if (m->made)
		dnnl_memory_desc_destroy(m->d);
#endif
	m->made = 0;
}

static void
entry_free(struct entry *e)
{
	if (e->run != NULL)
		dnnl_primitive_destroy(e->run);
	if (e->pd != NULL)
		dnnl_primitive_desc_destroy(e->pd);
	if (e->reorder != NULL)
		dnnl_primitive_destroy(e->reorder);
	if (e->reorder_pd != NULL)
		dnnl_primitive_desc_destroy(e->reorder_pd);
	md_free(&e->plain);
	md_free(&e->bias);
	memset(e, 0, sizeof(*e));
}

/* [n, c, h, w] whose memory is [n, h, w, c] */
static int
md_image(struct md *m, dnnl_data_type_t type, int64_t h, int64_t w, int64_t c)
{
	return md_make(m, 4, (int64_t[]){ 1, c, h, w }, type,
	    (int64_t[]){ h * w * c, 1, w * c, c });
}

static int
make_attr(dnnl_primitive_attr_t *attr, int add)
{
	dnnl_post_ops_t ops = NULL;
	dnnl_status_t rc;

	rc = dnnl_primitive_attr_create(attr);
	if (rc == dnnl_success)
		rc = dnnl_primitive_attr_set_scratchpad_mode(*attr,
		    dnnl_scratchpad_mode_user);
	if (rc == dnnl_success && add) {
		rc = dnnl_post_ops_create(&ops);
		if (rc == dnnl_success)
#if DNNL_VERSION_MAJOR >= 3
			rc = dnnl_post_ops_append_sum(ops, 1, 0,
			    dnnl_data_type_undef);
#else
			rc = dnnl_post_ops_append_sum(ops, 1);
#endif
		if (rc == dnnl_success)
			rc = dnnl_primitive_attr_set_post_ops(*attr, ops);
		if (ops != NULL)
			dnnl_post_ops_destroy(ops);
	}
	return to_error(rc);
}

static dnnl_status_t
matmul_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, md_ref src,
    md_ref weight, md_ref bias, md_ref dst, dnnl_primitive_attr_t attr)
{
#if DNNL_VERSION_MAJOR >= 3
	return dnnl_matmul_primitive_desc_create(pd, engine, src, weight,
	    bias, dst, attr);
#else
	dnnl_matmul_desc_t d;
	dnnl_status_t rc = dnnl_matmul_desc_init(&d, src, weight, bias, dst);

	return rc != dnnl_success ? rc :
	    dnnl_primitive_desc_create(pd, &d, attr, engine, NULL);
#endif
}

static dnnl_status_t
conv_fwd_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, md_ref src,
    md_ref weight, md_ref bias, md_ref dst, const struct lpo_conv_piece *k,
    dnnl_primitive_attr_t attr)
{
	dnnl_dims_t stride = { k->s.stride, k->s.stride };
	dnnl_dims_t left = { k->s.pad_top, k->s.pad_left };
	dnnl_dims_t right = { k->pad_bottom, k->pad_right };
	/* The backward pass takes its hint from a forward pass that trains. */
	dnnl_prop_kind_t prop = k->pass == LPO_FWD ? dnnl_forward_inference :
	    dnnl_forward_training;
#if DNNL_VERSION_MAJOR >= 3
	dnnl_dims_t dense = { 0, 0 };

	return dnnl_convolution_forward_primitive_desc_create(pd, engine,
	    prop, dnnl_convolution_direct, src, weight,
	    bias, dst, stride, dense, left, right, attr);
#else
	dnnl_convolution_desc_t d;
	dnnl_status_t rc;

	rc = dnnl_convolution_forward_desc_init(&d, prop,
	    dnnl_convolution_direct, src, weight, bias, dst, stride, left,
	    right);
	return rc != dnnl_success ? rc :
	    dnnl_primitive_desc_create(pd, &d, attr, engine, NULL);
#endif
}

static dnnl_status_t
conv_bwd_pd(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, md_ref dx,
    md_ref weight, md_ref dy, const struct lpo_conv_piece *k,
    dnnl_primitive_desc_t hint, dnnl_primitive_attr_t attr)
{
	dnnl_dims_t stride = { k->s.stride, k->s.stride };
	dnnl_dims_t left = { k->s.pad_top, k->s.pad_left };
	dnnl_dims_t right = { k->pad_bottom, k->pad_right };
#if DNNL_VERSION_MAJOR >= 3
	dnnl_dims_t dense = { 0, 0 };

	return dnnl_convolution_backward_data_primitive_desc_create(pd,
	    engine, dnnl_convolution_direct, dx, weight, dy, stride, dense,
	    left, right, hint, attr);
#else
	dnnl_convolution_desc_t d;
	dnnl_status_t rc;

	rc = dnnl_convolution_backward_data_desc_init(&d,
	    dnnl_convolution_direct, dx, weight, dy, stride, left, right);
	return rc != dnnl_success ? rc :
	    dnnl_primitive_desc_create(pd, &d, attr, engine, hint);
#endif
}

/* y[rows, cols] = x[rows, depth] W */
static dnnl_status_t
make_linear(struct entry *e, dnnl_engine_t engine, dnnl_primitive_attr_t attr)
{
	const struct lpo_linear_piece *k = &e->key.linear;
	int64_t dw[] = { k->depth, k->cols };
	struct md src = {0}, weight = {0}, dst = {0};
	dnnl_status_t rc = dnnl_invalid_arguments;

	if (md_make(&src, 2, (int64_t[]){ k->rows, k->depth }, dnnl_bf16,
	    (int64_t[]){ k->depth, 1 }) == 0 &&
	    md_make(&dst, 2, (int64_t[]){ k->rows, k->cols }, dnnl_bf16,
	    (int64_t[]){ k->cols, 1 }) == 0 &&
	    md_make(&weight, 2, dw, dnnl_bf16, NULL) == 0 &&
	    md_make(&e->plain, 2, dw, dnnl_bf16, k->pass == LPO_FWD ?
	    (int64_t[]){ 1, k->depth } : (int64_t[]){ k->cols, 1 }) == 0 &&
	    md_make(&e->bias, 2, (int64_t[]){ 1, k->cols }, dnnl_f32,
	    (int64_t[]){ k->cols, 1 }) == 0)
		rc = matmul_pd(&e->pd, engine, MD_REF(&src), MD_REF(&weight),
		    k->bias ? MD_REF(&e->bias) : NULL, MD_REF(&dst), attr);
	md_free(&src);
	md_free(&weight);
	md_free(&dst);
	return rc;
}

/*
 * One piece of a convolution.  `layout`: the weight must have the layout that
 * another piece of the same image chose; NULL: the library's choice.
 */
static dnnl_status_t
make_conv(struct entry *e, dnnl_engine_t engine, dnnl_primitive_attr_t attr,
    md_ref layout)
{
	const struct lpo_conv_piece *k = &e->key.conv;
	const struct lpo_conv_shape *s = &k->s;
	int64_t dw[] = { s->co, s->ci, s->kh, s->kw };
	struct md x = {0}, dx = {0}, weight = {0}, y = {0};
	dnnl_primitive_desc_t hint = NULL;
	md_ref w;
	dnnl_status_t rc = dnnl_invalid_arguments;

	if (md_image(&x, dnnl_bf16, s->h, s->w, s->ci) != 0 ||
	    md_image(&dx, dnnl_f32, s->h, s->w, s->ci) != 0 ||
	    md_image(&y, dnnl_bf16, s->ho, s->wo, s->co) != 0 ||
	    md_make(&weight, 4, dw, dnnl_bf16, NULL) != 0 ||
	    md_make(&e->plain, 4, dw, dnnl_bf16, (int64_t[]){
	    s->kh * s->kw * s->ci, 1, s->kw * s->ci, s->ci }) != 0 ||
	    md_make(&e->bias, 1, &s->co, dnnl_f32, (int64_t[]){ 1 }) != 0)
		goto out;
	w = layout != NULL ? layout : MD_REF(&weight);
	if (k->pass == LPO_FWD) {
		rc = conv_fwd_pd(&e->pd, engine, MD_REF(&x), w, k->bias ?
		    MD_REF(&e->bias) : NULL, MD_REF(&y), k, attr);
		goto out;
	}
	rc = conv_fwd_pd(&hint, engine, MD_REF(&x), MD_REF(&weight), NULL,
	    MD_REF(&y), k, NULL);
	if (rc == dnnl_success)
		rc = conv_bwd_pd(&e->pd, engine, MD_REF(&dx), w, MD_REF(&y),
		    k, hint, attr);
out:
	if (hint != NULL)
		dnnl_primitive_desc_destroy(hint);
	md_free(&x);
	md_free(&dx);
	md_free(&weight);
	md_free(&y);
	return rc;
}

static md_ref
query(dnnl_primitive_desc_t pd, dnnl_query_t what)
{
	return dnnl_primitive_desc_query_md(pd, what, 0);
}

/* Is there a real kernel behind it, or the library's plain loops? */
static int
is_fast(dnnl_primitive_desc_t pd)
{
	const char *name = "";

	return dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0,
	    &name) == dnnl_success && strstr(name, "ref") == NULL &&
	    strstr(name, "gemm:") == NULL;
}

static dnnl_status_t
make_primitive(struct entry *e)
{
	dnnl_status_t rc = dnnl_primitive_create(&e->run, e->pd);

	if (rc != dnnl_success)
		return rc;
	e->src = query(e->pd, e->backward ? dnnl_query_diff_dst_md :
	    dnnl_query_src_md);
	e->dst = query(e->pd, e->backward ? dnnl_query_diff_src_md :
	    dnnl_query_dst_md);
	e->weight = query(e->pd, dnnl_query_weights_md);
	e->pad = query(e->pd, dnnl_query_scratchpad_md);
	e->piece.weight_bytes = dnnl_memory_desc_get_size(e->weight);
	e->piece.pad_bytes = dnnl_memory_desc_get_size(e->pad);
	return dnnl_success;
}

/* Makes the piece's weights of plain ones: moves only, so by all threads. */
static int
make_reorder(struct entry *e, dnnl_engine_t engine)
{
	if (dnnl_memory_desc_equal(e->weight, MD_REF(&e->plain)))
		return 1;
	return dnnl_reorder_primitive_desc_create(&e->reorder_pd,
	    MD_REF(&e->plain), engine, e->weight, engine, NULL) ==
	    dnnl_success && dnnl_primitive_create(&e->reorder,
	    e->reorder_pd) == dnnl_success;
}

/* FNV-1a, never 0 */
static uint64_t
hash_key(const struct key *key)
{
	const unsigned char *p = (const unsigned char *)key;
	uint64_t h = 0xcbf29ce484222325u;
	size_t i;

	for (i = 0; i < sizeof(*key); i++)
		h = (h ^ p[i]) * 0x100000001b3u;
	return h | 1;
}

static void
make_entry(struct state *st, struct entry *e, md_ref layout)
{
	int add = e->key.is_conv ? e->key.conv.add : e->key.linear.add;
	dnnl_primitive_attr_t attr = NULL;
	dnnl_status_t rc;

	e->backward = e->key.is_conv && e->key.conv.pass == LPO_BWD_DATA;
	if (make_attr(&attr, add) == 0) {
		rc = e->key.is_conv ? make_conv(e, st->engine, attr, layout) :
		    make_linear(e, st->engine, attr);
		e->usable = rc == dnnl_success && is_fast(e->pd) &&
		    make_primitive(e) == dnnl_success &&
		    (layout == NULL || dnnl_memory_desc_equal(e->weight,
		    layout));
	}
	if (attr != NULL)
		dnnl_primitive_attr_destroy(attr);
}

/*
 * The entry for a key, made if it is not there; NULL if the library has no
 * kernel for it, which is remembered too.  Primitives are made for one thread,
 * so that their blocking does not depend on the thread count.
 */
static const struct lpo_piece *
find_entry(struct state *st, const struct key *key, md_ref layout)
{
	uint64_t hash = hash_key(key);
	struct entry *e;
	int i;

	for (i = 0; i < CACHE_MAX; i++)
		if (st->hash[i] == hash && memcmp(&st->cache[i].key, key,
		    sizeof(*key)) == 0)
			break;
	if (i == CACHE_MAX) {
		i = st->next;
		st->next = (st->next + 1) % CACHE_MAX;
		e = &st->cache[i];
		entry_free(e);
		memcpy(&e->key, key, sizeof(*key));
		st->hash[i] = hash;
		omp_set_num_threads(1);
		make_entry(st, e, layout);
		omp_set_num_threads(st->threads);
		e->usable = e->usable && make_reorder(e, st->engine);
	}
	return st->cache[i].usable ? &st->cache[i].piece : NULL;
}

const struct lpo_piece *
lpo_onednn_linear(lpo_backend *be, const struct lpo_linear_piece *p)
{
	struct key key;

	if (be->priv == NULL)
		return NULL;
	/* Field by field: keys are compared with their padding. */
	memset(&key, 0, sizeof(key));
	key.linear.pass = p->pass;
	key.linear.bias = p->bias;
	key.linear.add = p->add;
	key.linear.rows = p->rows;
	key.linear.cols = p->cols;
	key.linear.depth = p->depth;
	return find_entry(be->priv, &key, NULL);
}

const struct lpo_piece *
lpo_onednn_conv(lpo_backend *be, const struct lpo_conv_piece *p,
    const struct lpo_piece *first)
{
	struct key key;

	if (be->priv == NULL)
		return NULL;
	memset(&key, 0, sizeof(key));
	key.is_conv = 1;
	key.conv.pass = p->pass;
	key.conv.bias = p->bias;
	key.conv.add = p->add;
	key.conv.s = p->s;
	key.conv.whole = p->whole;
	key.conv.pad_bottom = p->pad_bottom;
	key.conv.pad_right = p->pad_right;
	return find_entry(be->priv, &key, first == NULL ? NULL :
	    ((const struct entry *)first)->weight);
}

/*
 * The library's level is process-wide and can be set once, before its first
 * use.  0 if it is `isa` now.
 */
static int
fix_level(enum lpo_isa isa)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static enum lpo_isa fixed;
	int same;

	pthread_mutex_lock(&lock);
	if (fixed == LPO_ISA_AUTO &&
	    dnnl_set_max_cpu_isa(isa == LPO_ISA_AMX ?
	    dnnl_cpu_isa_avx512_core_amx : dnnl_cpu_isa_avx512_core_bf16) ==
	    dnnl_success)
		fixed = isa;
	same = fixed == isa;
	pthread_mutex_unlock(&lock);
	return same ? 0 : LPO_EINVAL;
}

int
lpo_onednn_open(lpo_backend *be)
{
	struct state *st;
	int i, rc;

	be->priv = NULL;
	/* With another threading library our threads would not be its. */
	if (!lpo_cpu_has_bf16(be->isa) ||
	    dnnl_version()->cpu_runtime != DNNL_RUNTIME_OMP ||
	    fix_level(be->isa) != 0)
		return 0;
	st = calloc(1, sizeof(*st));
	if (st == NULL)
		return LPO_ENOMEM;
	be->priv = st;
	st->threads = be->threads;
	st->streams = calloc((size_t)be->threads, sizeof(*st->streams));
	if (st->streams == NULL)
		rc = LPO_ENOMEM;
	else
		rc = to_error(dnnl_engine_create(&st->engine, dnnl_cpu, 0));
	for (i = 0; rc == 0 && i < be->threads; i++)
		rc = to_error(dnnl_stream_create(&st->streams[i], st->engine,
		    dnnl_stream_default_flags));
	if (rc != 0)
		lpo_onednn_close(be);
	return rc;
}

void
lpo_onednn_close(lpo_backend *be)
{
	struct state *st = be->priv;
	int i;

	if (st == NULL)
		return;
	for (i = 0; i < CACHE_MAX; i++)
		entry_free(&st->cache[i]);
	for (i = 0; st->streams != NULL && i < st->threads; i++)
		if (st->streams[i] != NULL)
			dnnl_stream_destroy(st->streams[i]);
	free(st->streams);
	if (st->engine != NULL)
		dnnl_engine_destroy(st->engine);
	free(st);
	be->priv = NULL;
}

/* Run with up to five arguments; each is (which, layout, address). */
struct arg {
	int which;
	md_ref md;
	void *p;
};

static int
execute(struct state *st, int thread, dnnl_primitive_t run,
    const struct arg *args, int count)
{
	dnnl_exec_arg_t a[5];
	dnnl_status_t rc = dnnl_success;
	int i, made = 0;

	for (i = 0; i < count && rc == dnnl_success; i++) {
		a[i].arg = args[i].which;
		rc = dnnl_memory_create(&a[i].memory, args[i].md, st->engine,
		    args[i].p);
		made += rc == dnnl_success;
	}
	if (rc == dnnl_success)
		rc = dnnl_primitive_execute(run, st->streams[thread], count,
		    a);
	if (rc == dnnl_success)
		rc = dnnl_stream_wait(st->streams[thread]);
	for (i = 0; i < made; i++)
		dnnl_memory_destroy(a[i].memory);
	return to_error(rc);
}

int
lpo_onednn_weights(lpo_backend *be, const struct lpo_piece *p, const void *w,
    void *to, void **out)
{
	const struct entry *e = (const struct entry *)p;
	struct arg args[] = {
		{ DNNL_ARG_FROM, MD_REF(&e->plain), (void *)(uintptr_t)w },
		{ DNNL_ARG_TO, e->weight, to }
	};

	*out = e->reorder == NULL ? (void *)(uintptr_t)w : to;
	return e->reorder == NULL ? 0 :
	    execute(be->priv, 0, e->reorder, args, 2);
}

int
lpo_onednn_run(lpo_backend *be, const struct lpo_piece *p, void *dst,
    const void *src, void *weight, const float *bias, void *pad)
{
	const struct entry *e = (const struct entry *)p;
	struct arg args[] = {
		{ e->backward ? DNNL_ARG_DIFF_DST : DNNL_ARG_SRC, e->src,
		    (void *)(uintptr_t)src },
		{ DNNL_ARG_WEIGHTS, e->weight, weight },
		{ e->backward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST, e->dst,
		    dst },
		{ DNNL_ARG_SCRATCHPAD, e->pad, pad },
		{ DNNL_ARG_BIAS, MD_REF(&e->bias), (void *)(uintptr_t)bias }
	};

	return execute(be->priv, omp_get_thread_num(), e->run, args,
	    bias != NULL ? 5 : 4);
}
