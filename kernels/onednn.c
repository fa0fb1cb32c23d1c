/* The one file that meets oneDNN, 2.6 and 3.x (see onednn.h). */
#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/onednn.h"

#define STR2(x)	#x
#define STR(x)	STR2(x)

#define CACHE_MAX 1024		/* primitives kept; a UNet needs about 300 */
#define BLOCK_ROWS 64		/* rows of a linear layer per piece */
#define STRIP_PIXELS 512	/* of an image per piece, about */

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
	enum lpo_pass pass;
	int is_conv, bias, add;
	/* linear */
	int64_t rows, cols, depth;
	/* conv: one piece, and the image that it is a piece of */
	struct lpo_conv_shape s, whole;
	int64_t pad_bottom, pad_right;
};

struct entry {
	struct key key;
	int usable;
	dnnl_primitive_desc_t pd;
	dnnl_primitive_t run;
	md_ref src, weight, dst;	/* owned by pd */
	struct md plain, bias;
	dnnl_primitive_desc_t reorder_pd;	/* NULL: none is needed */
	dnnl_primitive_t reorder;
	size_t weight_bytes, pad_bytes;
};

struct state {
	dnnl_engine_t engine;
	dnnl_stream_t *streams;		/* one per thread */
	int threads;
	int next;			/* entry that a new one replaces */
	uint64_t hash[CACHE_MAX];	/* of the keys; 0: free */
	struct entry cache[CACHE_MAX];
};

const char *
lpo_cpu_library_version(void)
{
	return "oneDNN " STR(DNNL_VERSION_MAJOR) "." STR(DNNL_VERSION_MINOR)
	    "." STR(DNNL_VERSION_PATCH);
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
    md_ref weight, md_ref bias, md_ref dst, const struct key *k,
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
    md_ref weight, md_ref dy, const struct key *k,
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

/* y[rows, cols] = x[rows, depth] W; W plain is [cols, depth] or transposed */
static dnnl_status_t
make_linear(struct entry *e, dnnl_engine_t engine, dnnl_primitive_attr_t attr)
{
	const struct key *k = &e->key;
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
	const struct key *k = &e->key;
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

/* The primitive itself, and what turns plain weights into its own. */
static dnnl_status_t
finish_entry(struct entry *e, dnnl_engine_t engine)
{
	int backward = e->key.is_conv && e->key.pass == LPO_BWD_DATA;
	dnnl_status_t rc = dnnl_primitive_create(&e->run, e->pd);

	if (rc != dnnl_success)
		return rc;
	e->src = query(e->pd, backward ? dnnl_query_diff_dst_md :
	    dnnl_query_src_md);
	e->dst = query(e->pd, backward ? dnnl_query_diff_src_md :
	    dnnl_query_dst_md);
	e->weight = query(e->pd, dnnl_query_weights_md);
	e->weight_bytes = dnnl_memory_desc_get_size(e->weight);
	e->pad_bytes = dnnl_memory_desc_get_size(query(e->pd,
	    dnnl_query_scratchpad_md));
	if (dnnl_memory_desc_equal(e->weight, MD_REF(&e->plain)))
		return dnnl_success;
	rc = dnnl_reorder_primitive_desc_create(&e->reorder_pd,
	    MD_REF(&e->plain), engine, e->weight, engine, NULL);
	if (rc == dnnl_success)
		rc = dnnl_primitive_create(&e->reorder, e->reorder_pd);
	return rc;
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

/*
 * The entry for a key, made if it is not there.  A key that the library has
 * no kernel for is remembered as unusable.  Primitives are made for one
 * thread, so that their blocking does not depend on the thread count.
 */
static struct entry *
find_entry(struct state *st, const struct key *key, md_ref layout)
{
	dnnl_primitive_attr_t attr = NULL;
	dnnl_status_t rc;
	uint64_t hash = hash_key(key);
	struct entry *e;
	int i;

	for (i = 0; i < CACHE_MAX; i++)
		if (st->hash[i] == hash && memcmp(&st->cache[i].key, key,
		    sizeof(*key)) == 0)
			return &st->cache[i];
	e = &st->cache[st->next];
	entry_free(e);
	memcpy(&e->key, key, sizeof(*key));
	st->hash[st->next] = hash;
	st->next = (st->next + 1) % CACHE_MAX;
	omp_set_num_threads(1);
	if (make_attr(&attr, key->add) == 0) {
		rc = key->is_conv ? make_conv(e, st->engine, attr, layout) :
		    make_linear(e, st->engine, attr);
		e->usable = rc == dnnl_success && is_fast(e->pd) &&
		    finish_entry(e, st->engine) == dnnl_success;
	}
	omp_set_num_threads(st->threads);
	if (attr != NULL)
		dnnl_primitive_attr_destroy(attr);
	return e;
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

/* The weights as the primitive wants them: w itself, or made in `to`. */
static int
own_weights(struct state *st, const struct entry *e, const void *w, void *to,
    void **out)
{
	struct arg args[] = {
		{ DNNL_ARG_FROM, MD_REF(&e->plain), (void *)(uintptr_t)w },
		{ DNNL_ARG_TO, e->weight, to }
	};

	*out = e->reorder == NULL ? (void *)(uintptr_t)w : to;
	return e->reorder == NULL ? 0 :
	    execute(st, 0, e->reorder, args, 2);
}

/* One piece; `backward` is the backward pass of a convolution. */
static int
run_piece(struct state *st, const struct entry *e, void *dst, const void *src,
    void *weight, const float *bias, void *pad)
{
	int backward = e->key.is_conv && e->key.pass == LPO_BWD_DATA;
	struct arg args[] = {
		{ backward ? DNNL_ARG_DIFF_DST : DNNL_ARG_SRC, e->src,
		    (void *)(uintptr_t)src },
		{ DNNL_ARG_WEIGHTS, e->weight, weight },
		{ backward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST, e->dst, dst },
		{ DNNL_ARG_SCRATCHPAD, query(e->pd, dnnl_query_scratchpad_md),
		    pad },
		{ DNNL_ARG_BIAS, MD_REF(&e->bias), (void *)(uintptr_t)bias }
	};

	return execute(st, omp_get_thread_num(), e->run, args,
	    e->key.bias ? 5 : 4);
}

static size_t
aligned(size_t bytes)
{
	return (bytes + 63) & ~(size_t)63;
}

static char *
align_up(void *p)
{
	return (char *)(((uintptr_t)p + 63) & ~(uintptr_t)63);
}

static struct entry *
linear_entry(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    int64_t n, int64_t k, int bias, int add)
{
	struct state *st = be->priv;
	struct entry *e;
	struct key key;

	memset(&key, 0, sizeof(key));
	key.pass = pass;
	key.rows = BLOCK_ROWS;
	key.cols = pass == LPO_FWD ? n : k;
	key.depth = pass == LPO_FWD ? k : n;
	key.bias = bias;
	key.add = add;
	/* Narrow ones (LoRA) are bound by memory, and gemm.c has no setup. */
	if (st == NULL || dt != LPO_BF16 || key.cols < 16 || key.depth < 32)
		return NULL;
	e = find_entry(st, &key, NULL);
	return e->usable ? e : NULL;
}

/* Weights, one padded block of rows of x and y, a pad per thread. */
static size_t
linear_bytes(const struct state *st, const struct entry *e)
{
	size_t row = (size_t)(e->key.cols + e->key.depth) * 2;

	return 64 + aligned(e->weight_bytes) + aligned(row * BLOCK_ROWS) +
	    aligned(e->pad_bytes) * (size_t)st->threads;
}

size_t
lpo_onednn_linear_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, int64_t n, int64_t k)
{
	size_t most = 0, bytes;
	struct entry *e;
	int i;

	for (i = 0; i < 4; i++) {
		e = linear_entry(be, pass, dt, n, k, i & 1, i >> 1);
		bytes = e != NULL ? linear_bytes(be->priv, e) : 0;
		most = bytes > most ? bytes : most;
	}
	return most;
}

/* The last rows, fewer than a block: through a copy filled up with zeros. */
static int
run_padded(struct state *st, const struct entry *e, uint16_t *y,
    const uint16_t *x, int64_t rows, void *weight, const float *bias,
    uint16_t *tmp, void *pad)
{
	size_t in = (size_t)(rows * e->key.depth) * 2;
	size_t out = (size_t)(rows * e->key.cols) * 2;
	uint16_t *ty = tmp + BLOCK_ROWS * e->key.depth;
	int rc;

	memset(tmp, 0, (size_t)(BLOCK_ROWS * (e->key.depth + e->key.cols)) *
	    2);
	memcpy(tmp, x, in);
	if (e->key.add)
		memcpy(ty, y, out);
	rc = run_piece(st, e, ty, tmp, weight, bias, pad);
	memcpy(y, ty, out);
	return rc;
}

int
lpo_onednn_linear(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    void *y, const void *x, const void *w, const float *bias, int64_t m,
    int64_t n, int64_t k, float alpha, int add, void *scratch)
{
	struct state *st = be->priv;
	struct entry *e = alpha != 1 ? NULL : linear_entry(be, pass, dt, n, k,
	    bias != NULL, add);
	char *at = align_up(scratch), *pads;
	int64_t b, blocks = (m + BLOCK_ROWS - 1) / BLOCK_ROWS;
	uint16_t *tmp;
	void *weight;
	int rc;

	if (e == NULL)
		return 0;
	rc = own_weights(st, e, w, at, &weight);
	if (rc != 0)
		return rc;
	tmp = (uint16_t *)(at + aligned(e->weight_bytes));
	pads = (char *)tmp + aligned((size_t)((e->key.cols + e->key.depth) *
	    2 * BLOCK_ROWS));
#pragma omp parallel for schedule(dynamic) num_threads(st->threads) \
    if (blocks > 1) reduction(|:rc)
	for (b = 0; b < blocks; b++) {
		uint16_t *yb = (uint16_t *)y + b * BLOCK_ROWS * e->key.cols;
		const uint16_t *xb = (const uint16_t *)x +
		    b * BLOCK_ROWS * e->key.depth;
		void *pad = pads + aligned(e->pad_bytes) *
		    (size_t)omp_get_thread_num();

		rc |= (b + 1) * BLOCK_ROWS <= m ?
		    run_piece(st, e, yb, xb, weight, bias, pad) :
		    run_padded(st, e, yb, xb, m - b * BLOCK_ROWS, weight,
		    bias, tmp, pad);
	}
	return rc != 0 ? LPO_EINVAL : 1;
}

/* Strips of an image: of y going forward, of dx going back. */
struct strips {
	int64_t rows, count, size;
};

static struct strips
make_strips(enum lpo_pass pass, const struct lpo_conv_shape *s)
{
	int64_t h = pass == LPO_FWD ? s->ho : s->h;
	int64_t w = pass == LPO_FWD ? s->wo : s->w;
	struct strips t;

	t.size = h;
	t.rows = STRIP_PIXELS / w < 4 ? 4 : STRIP_PIXELS / w;
	/* A strip of dx begins where a window begins. */
	t.rows = (t.rows + s->stride - 1) / s->stride * s->stride;
	t.rows = t.rows < h ? t.rows : h;
	t.count = (h + t.rows - 1) / t.rows;
	return t;
}

/*
 * Strip `i` as a convolution of its own: *from and *to are its first rows in
 * what is read and written.  0 if there is nothing to read, or the padding is
 * of a kind that a library may not expect.
 */
static int
make_piece(struct key *key, const struct strips *t, int64_t i, int64_t *from,
    int64_t *to)
{
	const struct lpo_conv_shape *s = &key->whole;
	struct lpo_conv_shape *p = &key->s;
	int64_t a = i * t->rows, b = a + t->rows, lo, hi;

	b = b < t->size ? b : t->size;
	*p = *s;
	*to = a;
	if (key->pass == LPO_FWD) {
		lo = a * s->stride - s->pad_top;
		hi = (b - 1) * s->stride - s->pad_top + s->kh;
		*from = lo > 0 ? lo : 0;
		p->pad_top = *from - lo;
		p->h = (hi < s->h ? hi : s->h) - *from;
		p->ho = b - a;
	} else {
		lo = a + s->pad_top - s->kh + 1;
		lo = lo > 0 ? (lo + s->stride - 1) / s->stride : 0;
		hi = (b - 1 + s->pad_top) / s->stride + 1;
		hi = hi < s->ho ? hi : s->ho;
		*from = lo;
		p->pad_top = a + s->pad_top - lo * s->stride;
		p->h = b - a;
		p->ho = hi - lo;
	}
	key->pad_bottom = (p->ho - 1) * p->stride + p->kh - p->h - p->pad_top;
	key->pad_right = (p->wo - 1) * p->stride + p->kw - p->w - p->pad_left;
	/* Negative: rows or columns at the end that no window reaches. */
	if (key->pad_bottom < 0 && key->pad_bottom > -p->stride)
		key->pad_bottom = 0;
	if (key->pad_right < 0 && key->pad_right > -p->stride)
		key->pad_right = 0;
	return p->h > 0 && p->ho > 0 && p->pad_top < p->kh &&
	    p->pad_left < p->kw && key->pad_bottom >= 0 &&
	    key->pad_bottom < p->kh && key->pad_right >= 0 &&
	    key->pad_right < p->kw;
}

/*
 * The entry of strip `i`; all strips of an image use the weight layout that
 * strip 0 chose.  NULL: not for oneDNN.
 */
static struct entry *
strip_entry(struct state *st, struct key *key, const struct strips *t,
    int64_t i, md_ref layout, int64_t *from, int64_t *to)
{
	struct entry *e;

	if (!make_piece(key, t, i, from, to))
		return NULL;
	e = find_entry(st, key, layout);
	return e->usable ? e : NULL;
}

/*
 * Few channels stay ours: oneDNN is slow there, and wrong on AMX in bf16 up
 * to 3.13.3.
 */
static int
conv_key(lpo_backend *be, struct key *key, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s, int bias, int add)
{
	memset(key, 0, sizeof(*key));
	key->is_conv = 1;
	key->pass = pass;
	key->bias = bias;
	/* Backward there is no adding in place: run_strip adds. */
	key->add = pass == LPO_FWD && add;
	key->whole = *s;
	key->whole.n = 1;
	return be->priv != NULL && dt == LPO_BF16 && s->ci >= 16 &&
	    s->co >= 16 && s->kh * s->kw <= 64;
}

/* f32 sums of one strip of dx */
static size_t
strip_bytes(enum lpo_pass pass, const struct lpo_conv_shape *s,
    const struct strips *t)
{
	return pass == LPO_FWD ? 0 :
	    aligned((size_t)(t->rows * s->w * s->ci) * sizeof(float));
}

/* Scratch of a convolution: weights, then per thread a pad and a strip. */
struct layout {
	size_t weight_bytes, pad_bytes, strip_bytes;
	md_ref weight;
};

/* 0 where some strip is not for oneDNN; else all strips' entries exist. */
static int
conv_layout(lpo_backend *be, struct key *key, const struct strips *t,
    struct layout *l)
{
	struct entry *e;
	int64_t i, from, to;

	memset(l, 0, sizeof(*l));
	l->strip_bytes = strip_bytes(key->pass, &key->whole, t);
	for (i = 0; i < t->count; i++) {
		e = strip_entry(be->priv, key, t, i, l->weight, &from, &to);
		if (e == NULL || (i > 0 && !dnnl_memory_desc_equal(e->weight,
		    l->weight)))
			return 0;
		if (i == 0) {
			l->weight = e->weight;
			l->weight_bytes = aligned(e->weight_bytes);
		}
		if (aligned(e->pad_bytes) > l->pad_bytes)
			l->pad_bytes = aligned(e->pad_bytes);
	}
	return 1;
}

size_t
lpo_onednn_conv_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s)
{
	size_t most = 0, bytes;
	struct strips t;
	struct layout l;
	struct key key;
	int i;

	for (i = 0; i < (pass == LPO_FWD ? 4 : 1); i++) {
		if (!conv_key(be, &key, pass, dt, s, i & 1, i >> 1))
			return 0;
		t = make_strips(pass, s);
		if (!conv_layout(be, &key, &t, &l))
			continue;
		bytes = 64 + l.weight_bytes + (l.pad_bytes + l.strip_bytes) *
		    (size_t)be->threads;
		most = bytes > most ? bytes : most;
	}
	return most;
}

/* Strip `i` of image `n`. */
static int
run_strip(lpo_backend *be, const struct key *all, const struct strips *t,
    const struct layout *l, int64_t n, int64_t i, void *y, const void *x,
    void *weight, const float *bias, char *mine)
{
	const struct lpo_conv_shape *s = &all->whole;
	int64_t in = s->w * s->ci, out = s->wo * s->co, from, to;
	struct key key = *all;
	const struct entry *e = strip_entry(be->priv, &key, t, i, l->weight,
	    &from, &to);
	uint16_t *dst = y;
	const uint16_t *src = x;
	float *sums = (float *)(void *)(mine + l->pad_bytes);
	int rc;

	if (key.pass == LPO_FWD)
		return run_piece(be->priv, e, dst + (n * s->ho + to) * out,
		    src + (n * s->h + from) * in, weight, bias, mine);
	rc = run_piece(be->priv, e, sums, src + (n * s->ho + from) * out,
	    weight, NULL, mine);
	return rc != 0 ? rc : be->k->convert_acc(be,
	    dst + (n * s->h + to) * in, LPO_BF16, sums, LPO_F32,
	    key.s.h * in);
}

int
lpo_onednn_conv(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    void *y, const void *x, const void *w, const float *bias,
    const struct lpo_conv_shape *s, int add, void *scratch)
{
	struct state *st = be->priv;
	char *at = align_up(scratch), *each;
	struct strips t;
	struct layout l;
	struct key key;
	int64_t u, from, to;
	void *weight;
	int rc;

	if (!conv_key(be, &key, pass, dt, s, bias != NULL, add))
		return 0;
	t = make_strips(pass, s);
	if (!conv_layout(be, &key, &t, &l))
		return 0;
	rc = own_weights(st, strip_entry(st, &key, &t, 0, NULL, &from, &to),
	    w, at, &weight);
	if (rc != 0)
		return rc;
	each = at + l.weight_bytes;
#pragma omp parallel for schedule(dynamic) num_threads(st->threads)     if (s->n * t.count > 1) reduction(|:rc)
	for (u = 0; u < s->n * t.count; u++)
		rc |= run_strip(be, &key, &t, &l, u / t.count, u % t.count, y,
		    x, weight, bias, each + (l.pad_bytes + l.strip_bytes) *
		    (size_t)omp_get_thread_num());
	return rc != 0 ? LPO_EINVAL : 1;
}
