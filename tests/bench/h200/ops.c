/*
 * Ceilings, and every op at the shapes it has in SD1.5 with 20 rows.  Bytes
 * are what must move if nothing is read twice.
 */
#include <stdio.h>
#include <string.h>

#include "tests/bench/h200/bench.h"

enum { BUFFERS = 12, LIST = 64 };

/* Arguments of a run; each run reads its own. */
struct work {
	struct bench *b;
	lpo_backend *be;
	const struct lpo_kernels *k;
	enum lpo_dtype dt;
	const char *section;
	void *p[BUFFERS];	/* data, freed by done() */
	int buffers;
	float *f[4];		/* f32: bias, statistics, gradients; of p */
	void *scratch;		/* of p */
	struct lpo_conv_shape conv;
	struct lpo_attn_shape attn;
	int64_t m, n, c, hw, count, groups;
	int flag;
	struct lpo_adamw_tensor list[LIST];
	const float *sums[LIST];
	int64_t counts[LIST];
	void *host;
};

static void
start(struct work *w, struct bench *b, enum lpo_dtype dt)
{
	memset(w, 0, sizeof(*w));
	w->b = b;
	w->be = &b->be;
	w->k = b->be.k;
	w->dt = dt;
	w->section = "ops";
}

static void *
buffer(struct work *w, enum lpo_dtype dt, int64_t count)
{
	return w->p[w->buffers++] = bench_buffer(w->b, dt, count);
}

static void *
scratch(struct work *w, size_t bytes)
{
	return w->scratch = buffer(w, LPO_F32, (int64_t)(bytes / 4 + 1));
}

static void
done(struct work *w)
{
	int i;

	for (i = 0; i < w->buffers; i++)
		w->k->free(w->be, w->p[i]);
	memset(w->p, 0, sizeof(w->p));
	w->buffers = 0;
}

/* Time it and put a line, if the buffers are all there. */
static double
line(struct work *w, const char *name, const char *shape, int64_t rows,
    double flops, double moved, int (*run)(void *))
{
	struct bench_line l = { .section = w->section, .name = name,
	    .dt = w->dt, .rows = rows, .flops = flops, .moved = moved };
	int i, rc = 0;

	for (i = 0; i < w->buffers; i++)
		if (w->p[i] == NULL)
			rc = LPO_ENOMEM;
	if (rc == 0)
		rc = bench_time(w->b, &l.ms, run, w);
	if (rc < 0) {
		bench_say("%s %s: %s", name, shape, lpo_errmsg(w->b->ctx));
		lpo_clear(w->b->ctx);
		return 0;
	}
	snprintf(l.shape, sizeof(l.shape), "%s", shape);
	bench_put(w->b, &l);
	return l.ms;
}

/* Real shapes, or small ones. */
static int64_t
channels(const struct bench *b, int64_t c)
{
	return b->tiny && c > 8 ? (c + 19) / 20 * 2 : c;
}

static int64_t
side(const struct bench *b, int64_t s)
{
	return b->tiny ? (s + 7) / 8 : s;
}

static int64_t
rows(const struct bench *b)
{
	return b->tiny ? 2 : 20;
}

static double
bytes_of(const struct work *w, int64_t count)
{
	return (double)count * (w->dt == LPO_BF16 ? 2 : 4);
}

/* ---------------------------------------------------------------- linear */

static int
run_linear(void *arg)
{
	struct work *w = arg;

	return w->k->linear_fwd(w->be, w->dt, w->p[2], w->p[0], w->p[1],
	    w->f[0], w->flag ? w->p[3] : NULL, w->m, w->n, w->c, 1,
	    w->scratch);
}

static int
run_linear_data(void *arg)
{
	struct work *w = arg;

	return w->k->linear_bwd_data(w->be, w->dt, w->p[0], w->p[2], w->p[1],
	    w->m, w->n, w->c, 1, w->flag, w->scratch);
}

static int
run_linear_weight(void *arg)
{
	struct work *w = arg;

	return w->k->linear_bwd_weight(w->be, w->dt, w->f[1], w->f[2],
	    w->p[2], w->p[0], w->m, w->n, w->c, 1, w->groups, w->scratch);
}

static size_t
linear_scratch(struct work *w, int64_t n, int64_t k)
{
	size_t most = 0, s;
	int pass;

	for (pass = LPO_FWD; pass <= LPO_BWD_WEIGHT; pass++) {
		s = w->k->linear_scratch_bytes(w->be, (enum lpo_pass)pass,
		    w->dt, w->m, n, k, w->groups);
		most = s > most ? s : most;
	}
	return most;
}

/* m tokens in all; weight: what full training asks for besides. */
static void
linear(struct bench *b, enum lpo_dtype dt, int64_t m, int64_t n, int64_t c,
    int weight)
{
	struct work w;
	char s[80];
	double flops, moved;

	start(&w, b, dt);
	w.m = b->tiny ? (m + 99) / 100 : m;
	w.n = channels(b, n);
	w.c = channels(b, c);
	w.groups = 1;
	buffer(&w, dt, w.m * w.c);
	buffer(&w, dt, w.n * w.c);
	buffer(&w, dt, w.m * w.n);
	buffer(&w, dt, w.m * w.n);
	w.f[0] = buffer(&w, LPO_F32, w.n);
	scratch(&w, linear_scratch(&w, w.n, w.c));
	flops = 2.0 * (double)w.m * (double)(w.n * w.c);
	moved = bytes_of(&w, w.m * w.c + w.n * w.c + w.m * w.n);
	snprintf(s, sizeof(s), "%lld x %lld x %lld", (long long)w.m,
	    (long long)w.n, (long long)w.c);
	line(&w, "linear_fwd", s, 0, flops, moved, run_linear);
	w.flag = 1;
	line(&w, "linear_fwd+res", s, 0, flops, moved, run_linear);
	w.flag = 0;
	line(&w, "linear_bwd_data", s, 0, flops, moved, run_linear_data);
	w.flag = 1;
	line(&w, "linear_bwd_data+add", s, 0, flops, moved, run_linear_data);
	if (weight) {
		w.f[1] = buffer(&w, LPO_F32, w.n * w.c);
		w.f[2] = buffer(&w, LPO_F32, w.n);
		line(&w, "linear_bwd_weight", s, 0, flops, moved,
		    run_linear_weight);
	}
	done(&w);
}

/* LoRA beside a layer [n, c] of m tokens: w.hw is the rank. */
static int
run_lora(void *arg)
{
	struct work *w = arg;
	int rc = w->k->linear_fwd(w->be, w->dt, w->p[3], w->p[0], w->p[1],
	    NULL, NULL, w->m, w->hw, w->c, 1, w->scratch);

	if (rc < 0)
		return rc;
	return w->k->linear_fwd(w->be, w->dt, w->p[4], w->p[3], w->p[2],
	    NULL, w->p[4], w->m, w->n, w->hw, 1, w->scratch);
}

static int
run_lora_bwd(void *arg)
{
	struct work *w = arg;
	const struct lpo_kernels *k = w->k;
	int rc;

	if (k->lora_bwd != NULL)
		return k->lora_bwd(w->be, w->dt, w->p[6], w->f[0], w->f[1],
		    w->p[4], w->p[0], w->p[3], w->p[1], w->p[2], w->m, w->n,
		    w->c, w->hw, 1, w->groups, w->scratch);
	if ((rc = k->linear_bwd_data(w->be, w->dt, w->p[5], w->p[4], w->p[2],
	    w->m, w->n, w->hw, 1, 0, w->scratch)) < 0 ||
	    (rc = k->linear_bwd_weight(w->be, w->dt, w->f[1], NULL, w->p[4],
	    w->p[3], w->m, w->n, w->hw, 1, w->groups, w->scratch)) < 0 ||
	    (rc = k->linear_bwd_weight(w->be, w->dt, w->f[0], NULL, w->p[5],
	    w->p[0], w->m, w->hw, w->c, 1, w->groups, w->scratch)) < 0)
		return rc;
	return k->linear_bwd_data(w->be, w->dt, w->p[6], w->p[5], w->p[1],
	    w->m, w->hw, w->c, 1, 1, w->scratch);
}

static void
lora(struct bench *b, enum lpo_dtype dt, int64_t m, int64_t n, int64_t c,
    int64_t rank)
{
	struct work w;
	size_t a, z;
	char s[80];

	start(&w, b, dt);
	w.groups = rows(b) / 2;
	w.m = b->tiny ? (m / 100 + 1) * w.groups : m;
	w.n = channels(b, n);
	w.c = channels(b, c);
	w.hw = rank;
	buffer(&w, dt, w.m * w.c);		/* x, A, B, xA, y */
	buffer(&w, dt, rank * w.c);
	buffer(&w, dt, w.n * rank);
	buffer(&w, dt, w.m * rank);
	buffer(&w, dt, w.m * w.n);
	buffer(&w, dt, w.m * rank);		/* d xA, dx */
	buffer(&w, dt, w.m * w.c);
	w.f[0] = buffer(&w, LPO_F32, rank * w.c);
	w.f[1] = buffer(&w, LPO_F32, w.n * rank);
	a = linear_scratch(&w, rank, w.c);
	z = linear_scratch(&w, w.n, rank);
	/* and lora_bwd's own */
	scratch(&w, (a > z ? a : z) + (size_t)(w.m * rank) *
	    lpo_dtype_bytes(dt) + 64);
	snprintf(s, sizeof(s), "%lld x %lld x %lld, r %lld", (long long)w.m,
	    (long long)w.n, (long long)w.c, (long long)rank);
	/* no FLOP/s: it is memory that limits these */
	line(&w, "lora_fwd", s, 0, 0, bytes_of(&w, w.m * (w.c + 2 * w.n)),
	    run_lora);
	line(&w, "lora_bwd", s, 0, 0, bytes_of(&w, w.m * (w.n + 3 * w.c)),
	    run_lora_bwd);
	done(&w);
}

/* ---------------------------------------------------------- convolution */

static int
run_conv(void *arg)
{
	struct work *w = arg;

	return w->k->conv_fwd(w->be, w->dt, w->p[2], w->p[0], w->p[1],
	    w->f[0], w->flag ? w->p[3] : NULL, &w->conv, w->scratch);
}

static int
run_conv_data(void *arg)
{
	struct work *w = arg;

	return w->k->conv_bwd_data(w->be, w->dt, w->p[0], w->p[2], w->p[1],
	    &w->conv, w->flag, w->scratch);
}

static int
run_conv_weight(void *arg)
{
	struct work *w = arg;

	return w->k->conv_bwd_weight(w->be, w->dt, w->f[1], w->f[2], w->p[2],
	    w->p[0], &w->conv, w->groups, w->scratch);
}

static size_t
conv_scratch(struct work *w)
{
	size_t most = 0, s;
	int pass;

	for (pass = LPO_FWD; pass <= LPO_BWD_WEIGHT; pass++) {
		s = w->k->conv_scratch_bytes(w->be, (enum lpo_pass)pass,
		    w->dt, &w->conv, w->groups);
		most = s > most ? s : most;
	}
	return most;
}

enum { WITH_RESIDUAL = 1, WITH_WEIGHT = 2 };

static void
conv(struct bench *b, enum lpo_dtype dt, int64_t at, int64_t ci, int64_t co,
    int64_t k, int64_t stride, int more)
{
	struct work w;
	struct lpo_conv_shape *c = &w.conv;
	int64_t h = side(b, at), in, out, weights;
	double flops, moved;
	char s[80];

	start(&w, b, dt);
	*c = (struct lpo_conv_shape){ rows(b), h, h, channels(b, ci),
	    channels(b, co), k, k, stride, k / 2, k / 2,
	    (h + stride - 1) / stride, (h + stride - 1) / stride };
	w.groups = 1;
	in = c->n * h * h * c->ci;
	out = c->n * c->ho * c->wo * c->co;
	weights = c->co * k * k * c->ci;
	buffer(&w, dt, in);
	buffer(&w, dt, weights);
	buffer(&w, dt, out);
	buffer(&w, dt, out);
	w.f[0] = buffer(&w, LPO_F32, c->co);
	if (more & WITH_WEIGHT) {
		w.f[1] = buffer(&w, LPO_F32, weights);
		w.f[2] = buffer(&w, LPO_F32, c->co);
	}
	scratch(&w, conv_scratch(&w));
	flops = 2.0 * (double)out * (double)(k * k * c->ci);
	moved = bytes_of(&w, in + out + weights);
	snprintf(s, sizeof(s), "%lldx%lld/%lld %lld to %lld @ %lld",
	    (long long)k, (long long)k, (long long)stride, (long long)c->ci,
	    (long long)c->co, (long long)h);
	line(&w, "conv_fwd", s, c->n, flops, moved, run_conv);
	if (more & WITH_RESIDUAL) {
		w.flag = 1;
		line(&w, "conv_fwd+res", s, c->n, flops, moved, run_conv);
		w.flag = 0;
	}
	line(&w, "conv_bwd_data", s, c->n, flops, moved, run_conv_data);
	if (more & WITH_RESIDUAL) {
		w.flag = 1;
		line(&w, "conv_bwd_data+add", s, c->n, flops, moved,
		    run_conv_data);
	}
	if (more & WITH_WEIGHT)
		line(&w, "conv_bwd_weight", s, c->n, flops, moved,
		    run_conv_weight);
	done(&w);
}

/* ------------------------------------------------------------ attention */

static int
run_attention(void *arg)
{
	struct work *w = arg;

	return w->k->attention_fwd(w->be, w->dt, w->p[3], w->f[0], w->p[0],
	    w->p[1], w->p[2], &w->attn, w->scratch);
}

static int
run_attention_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->attention_bwd(w->be, w->dt, w->p[4], w->p[5], w->p[6],
	    w->p[7], w->p[3], w->f[0], w->p[0], w->p[1], w->p[2], &w->attn,
	    w->flag, w->scratch);
}

static void
attention(struct bench *b, enum lpo_dtype dt, int64_t n, int64_t lq,
    int64_t lk, int64_t heads, int64_t d, int cross)
{
	struct work w;
	struct lpo_attn_shape *a = &w.attn;
	int64_t q, kv;
	double flops;
	size_t one, two;
	float *lse;
	char s[80];

	start(&w, b, dt);
	if (b->tiny) {
		lq = (lq + 63) / 64;
		lk = cross ? lk : lq;
		heads = 2;
		d = (d + 3) / 4;
	}
	*a = (struct lpo_attn_shape){ n, n, lq, lk, heads, d, heads * d,
	    heads * d, 0 };
	q = n * lq * heads * d;
	kv = n * lk * heads * d;
	buffer(&w, dt, q);
	buffer(&w, dt, kv);
	buffer(&w, dt, kv);
	buffer(&w, dt, q);		/* o, dq, dk, dv, dout */
	buffer(&w, dt, q);
	buffer(&w, dt, kv);
	buffer(&w, dt, kv);
	buffer(&w, dt, q);
	lse = buffer(&w, LPO_F32, n * heads * lq);
	one = w.k->attention_scratch_bytes(w.be, LPO_FWD, dt, a);
	two = w.k->attention_scratch_bytes(w.be, LPO_BWD_DATA, dt, a);
	scratch(&w, one > two ? one : two);
	flops = 4.0 * (double)(n * lq) * (double)(lk * heads * d);
	snprintf(s, sizeof(s), "%lld x %lld, %lld heads of %lld",
	    (long long)lq, (long long)lk, (long long)heads, (long long)d);
	line(&w, "attention_fwd", s, n, flops, bytes_of(&w, 2 * q + 2 * kv),
	    run_attention);
	w.f[0] = lse;
	line(&w, "attention_fwd+lse", s, n, flops,
	    bytes_of(&w, 2 * q + 2 * kv), run_attention);
	line(&w, "attention_bwd", s, n, 2.5 * flops,
	    bytes_of(&w, 4 * q + 4 * kv), run_attention_bwd);
	done(&w);
}

/* ---------------------------------------------------------------- norms */

static int
run_group_norm(void *arg)
{
	struct work *w = arg;

	return w->k->group_norm_fwd(w->be, w->dt, w->p[1], w->f[0], w->p[0],
	    w->f[1], w->f[2], w->n, w->hw, w->c, w->b->tiny ? 2 : 32, 1e-5f,
	    1);
}

static int
run_group_norm_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->group_norm_bwd(w->be, w->dt, w->p[2],
	    w->flag ? w->f[3] : NULL, w->flag ? w->f[3] + w->c : NULL,
	    w->p[1], w->p[0], w->f[0], w->f[1], w->f[2], w->n, w->hw, w->c,
	    w->b->tiny ? 2 : 32, 1, w->groups, 0, w->scratch);
}

static int
run_layer_norm(void *arg)
{
	struct work *w = arg;

	return w->k->layer_norm_fwd(w->be, w->dt, w->p[1], w->f[0], w->p[0],
	    w->f[1], w->f[2], w->m, w->c, 1e-5f);
}

static int
run_layer_norm_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->layer_norm_bwd(w->be, w->dt, w->p[2],
	    w->flag ? w->f[3] : NULL, w->flag ? w->f[3] + w->c : NULL,
	    w->p[1], w->p[0], w->f[0], w->f[1], w->m, w->c, w->groups, 0,
	    w->scratch);
}

/* at: side of the image; layer: a norm of its tokens instead of groups. */
static void
norm(struct bench *b, enum lpo_dtype dt, int64_t at, int64_t c, int layer)
{
	struct work w;
	int64_t count;
	double one;
	char s[80];

	start(&w, b, dt);
	w.n = rows(b);
	w.hw = side(b, at) * side(b, at);
	w.c = channels(b, c);
	w.m = w.n * w.hw;
	w.groups = w.n / 2;
	count = w.m * w.c;
	buffer(&w, dt, count);
	buffer(&w, dt, count);
	buffer(&w, dt, count);
	w.f[0] = buffer(&w, LPO_F32, layer ? 2 * w.m : w.n * 64);
	w.f[1] = buffer(&w, LPO_F32, w.c);
	w.f[2] = buffer(&w, LPO_F32, w.c);
	w.f[3] = buffer(&w, LPO_F32, 2 * w.c);
	scratch(&w, w.k->norm_scratch_bytes(w.be, layer ? w.m : w.n, w.c,
	    w.groups));
	one = bytes_of(&w, count);
	snprintf(s, sizeof(s), "%lld @ %lld", (long long)w.c,
	    (long long)side(b, at));
	line(&w, layer ? "layer_norm_fwd" : "group_norm_silu_fwd", s, w.n, 0,
	    2 * one, layer ? run_layer_norm : run_group_norm);
	line(&w, layer ? "layer_norm_bwd" : "group_norm_silu_bwd", s, w.n, 0,
	    3 * one, layer ? run_layer_norm_bwd : run_group_norm_bwd);
	w.flag = 1;
	line(&w, layer ? "layer_norm_bwd+w" : "group_norm_silu_bwd+w", s, w.n,
	    0, 3 * one, layer ? run_layer_norm_bwd : run_group_norm_bwd);
	done(&w);
}

/* ----------------------------------------------------------- elementwise */

static int
run_geglu(void *arg)
{
	struct work *w = arg;

	return w->k->geglu_fwd(w->be, w->dt, w->p[1], w->p[0], w->m, w->c);
}

static int
run_geglu_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->geglu_bwd(w->be, w->dt, w->p[2], w->p[1], w->p[0], w->m,
	    w->c, 0);
}

static int
run_add(void *arg)
{
	struct work *w = arg;

	return w->k->add(w->be, w->dt, w->p[1], w->p[0], w->p[2], w->count);
}

static int
run_acc(void *arg)
{
	struct work *w = arg;

	return w->k->acc(w->be, w->dt, w->p[1], w->p[0], w->count);
}

static int
run_silu(void *arg)
{
	struct work *w = arg;

	return w->k->act_fwd(w->be, w->dt, LPO_SILU, w->p[1], w->p[0],
	    w->count);
}

static int
run_silu_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->act_bwd(w->be, w->dt, LPO_SILU, w->p[2], w->p[1],
	    w->p[0], w->count, 0);
}

static int
run_add_rows(void *arg)
{
	struct work *w = arg;

	return w->k->add_rows_fwd(w->be, w->dt, w->p[1], w->p[0], w->p[2],
	    w->n, w->hw, w->c);
}

static int
run_add_rows_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->add_rows_bwd(w->be, w->dt, w->p[2], w->p[0], w->n,
	    w->hw, w->c, 0);
}

static int
run_convert(void *arg)
{
	struct work *w = arg;

	return w->k->convert(w->be, w->p[1], w->dt, w->p[0],
	    w->dt == LPO_F32 ? LPO_BF16 : LPO_F32, w->count);
}

static int
run_concat(void *arg)
{
	struct work *w = arg;

	return w->k->concat_fwd(w->be, w->dt, w->p[1], w->p[0], w->p[2],
	    w->m, w->c, w->c);
}

static int
run_concat_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->concat_bwd(w->be, w->dt, w->p[0], w->p[2], w->p[1],
	    w->m, w->c, w->c, 0);
}

static int
run_mean_pool(void *arg)
{
	struct work *w = arg;

	return w->k->mean_pool_fwd(w->be, w->dt, w->p[1], w->p[0], w->n,
	    w->hw, w->c);
}

static void
image(struct bench *b, enum lpo_dtype dt, int64_t at, int64_t c)
{
	struct work w;
	double one;
	char s[80];
	int i;

	start(&w, b, dt);
	w.n = rows(b);
	w.hw = side(b, at) * side(b, at);
	w.c = channels(b, c);
	w.m = w.n * w.hw;
	w.count = w.m * w.c;
	for (i = 0; i < 3; i++)		/* room for f32 */
		buffer(&w, dt, dt == LPO_BF16 ? 2 * w.count : w.count);
	one = bytes_of(&w, w.count);
	snprintf(s, sizeof(s), "%lld @ %lld", (long long)w.c,
	    (long long)side(b, at));
	line(&w, "add", s, w.n, 0, 3 * one, run_add);
	line(&w, "acc", s, w.n, 0, 3 * one, run_acc);
	line(&w, "silu_fwd", s, w.n, 0, 2 * one, run_silu);
	line(&w, "silu_bwd", s, w.n, 0, 3 * one, run_silu_bwd);
	line(&w, "add_rows_fwd", s, w.n, 0, 2 * one, run_add_rows);
	line(&w, "add_rows_bwd", s, w.n, 0, one, run_add_rows_bwd);
	line(&w, "convert", s, w.n, 0, 6 * (double)w.count, run_convert);
	line(&w, "mean_pool_fwd", s, w.n, 0, one, run_mean_pool);
	w.c /= 2;
	line(&w, "concat_fwd", s, w.n, 0, 2 * one, run_concat);
	line(&w, "concat_bwd", s, w.n, 0, 2 * one, run_concat_bwd);
	done(&w);
}

static void
geglu(struct bench *b, enum lpo_dtype dt, int64_t at, int64_t c)
{
	struct work w;
	double one;
	char s[80];

	start(&w, b, dt);
	w.m = rows(b) * side(b, at) * side(b, at);
	w.c = channels(b, c);
	buffer(&w, dt, 2 * w.m * w.c);
	buffer(&w, dt, w.m * w.c);
	buffer(&w, dt, 2 * w.m * w.c);
	one = bytes_of(&w, w.m * w.c);
	snprintf(s, sizeof(s), "%lld x %lld", (long long)w.m, (long long)w.c);
	line(&w, "geglu_fwd", s, rows(b), 0, 3 * one, run_geglu);
	line(&w, "geglu_bwd", s, rows(b), 0, 5 * one, run_geglu_bwd);
	done(&w);
}

static int
run_upsample(void *arg)
{
	struct work *w = arg;

	return w->k->upsample_fwd(w->be, w->dt, w->p[1], w->p[0], w->n,
	    w->hw, w->hw, w->c, 2 * w->hw, 2 * w->hw);
}

static int
run_upsample_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->upsample_bwd(w->be, w->dt, w->p[0], w->p[1], w->n,
	    w->hw, w->hw, w->c, 2 * w->hw, 2 * w->hw, 0);
}

static void
upsample(struct bench *b, enum lpo_dtype dt, int64_t at, int64_t c)
{
	struct work w;
	double moved;
	char s[80];

	start(&w, b, dt);
	w.n = rows(b);
	w.hw = side(b, at);
	w.c = channels(b, c);
	w.count = w.n * w.hw * w.hw * w.c;
	buffer(&w, dt, w.count);
	buffer(&w, dt, 4 * w.count);
	moved = bytes_of(&w, 5 * w.count);
	snprintf(s, sizeof(s), "%lld @ %lld", (long long)w.c, (long long)w.hw);
	line(&w, "upsample_fwd", s, w.n, 0, moved, run_upsample);
	line(&w, "upsample_bwd", s, w.n, 0, moved, run_upsample_bwd);
	done(&w);
}

static int
run_gather(void *arg)
{
	struct work *w = arg;

	return w->k->gather_rows_fwd(w->be, w->dt, w->p[1], w->p[0], w->p[2],
	    2 * w->n, w->c, w->n);
}

static int
run_gather_bwd(void *arg)
{
	struct work *w = arg;

	return w->k->gather_rows_bwd(w->be, w->dt, w->p[0], w->p[1], w->p[2],
	    2 * w->n, w->c, w->n, 0);
}

/* Every row twice, as guidance has it. */
static void
gather(struct bench *b, enum lpo_dtype dt, int64_t at, int64_t c)
{
	struct work w;
	int32_t index[64];
	double one;
	char s[80];
	int i;

	start(&w, b, dt);
	w.n = rows(b) / 2;
	w.c = side(b, at) * side(b, at) * channels(b, c);
	buffer(&w, dt, w.n * w.c);
	buffer(&w, dt, 2 * w.n * w.c);
	for (i = 0; i < 2 * w.n; i++)
		index[i] = i / 2;
	if (buffer(&w, LPO_F32, 64) != NULL)
		w.k->upload(w.be, w.p[2], index, sizeof(index[0]) *
		    (size_t)(2 * w.n));
	one = bytes_of(&w, w.n * w.c);
	snprintf(s, sizeof(s), "%lld to %lld rows of %lld", (long long)w.n,
	    (long long)(2 * w.n), (long long)w.c);
	line(&w, "gather_rows_fwd", s, 2 * w.n, 0, 3 * one, run_gather);
	line(&w, "gather_rows_bwd", s, 2 * w.n, 0, 3 * one, run_gather_bwd);
	done(&w);
}

/* -------------------------------------------------- training and transfers */

static int
run_adamw(void *arg)
{
	struct work *w = arg;
	const struct lpo_adamw o = { .lr = 1e-5f, .beta1 = 0.9f,
	    .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 1e-4f,
	    .grad_scale = 1, .step = 10 };

	return w->k->adamw(w->be, w->list, w->n, &o);
}

static int
run_sum_squares(void *arg)
{
	struct work *w = arg;

	return w->k->sum_squares(w->be, w->p[5], w->sums, w->counts, w->n);
}

/* n tensors of `count` elements that lie one after the other. */
static void
optimiser(struct bench *b, enum lpo_dtype dt, int64_t n, int64_t count)
{
	struct work w;
	int64_t all, i;
	char s[80];
	float *p[4];

	start(&w, b, dt);
	w.n = n;
	w.count = b->tiny ? count / 100 + 1 : count;
	all = n * w.count;
	for (i = 0; i < 4; i++)
		p[i] = buffer(&w, LPO_F32, all);
	buffer(&w, dt, all);
	buffer(&w, LPO_F32, 2);		/* the sum, in f64 */
	w.k->zero(w.be, p[1], (size_t)all * 4);	/* moments */
	w.k->zero(w.be, p[2], (size_t)all * 4);
	for (i = 0; i < n && p[3] != NULL; i++) {
		w.list[i] = (struct lpo_adamw_tensor){ p[0] + i * w.count,
		    p[1] + i * w.count, p[2] + i * w.count,
		    p[3] + i * w.count, dt == LPO_F32 ? (void *)(p[0] +
		    i * w.count) : (char *)w.p[4] + 2 * i * w.count, dt,
		    w.count };
		w.sums[i] = p[3] + i * w.count;
		w.counts[i] = w.count;
	}
	snprintf(s, sizeof(s), "%lld tensors of %lld", (long long)n,
	    (long long)w.count);
	line(&w, "adamw", s, 0, 0, (double)all * (dt == LPO_F32 ? 28 : 30),
	    run_adamw);
	line(&w, "sum_squares", s, 0, 0, 4 * (double)all, run_sum_squares);
	done(&w);
}

static int
run_zero(void *arg)
{
	struct work *w = arg;

	return w->k->zero(w->be, w->p[0], (size_t)w->count);
}

static int
run_copy(void *arg)
{
	struct work *w = arg;

	return w->k->copy(w->be, w->p[0], w->p[1], (size_t)w->count);
}

static int
run_upload(void *arg)
{
	struct work *w = arg;

	return w->k->upload(w->be, w->p[0], w->host, (size_t)w->count);
}

static int
run_download(void *arg)
{
	struct work *w = arg;

	return w->k->download(w->be, w->host, w->p[0], (size_t)w->count);
}

static void
transfer(struct bench *b, int64_t bytes)
{
	struct work w;
	char s[80];

	start(&w, b, LPO_F32);
	w.count = b->tiny ? bytes / 1000 : bytes;
	buffer(&w, LPO_F32, w.count / 4 + 1);
	buffer(&w, LPO_F32, w.count / 4 + 1);
	if ((w.host = lpo_alloc(b->ctx, (size_t)w.count, 1)) != NULL) {
		snprintf(s, sizeof(s), "%lld bytes", (long long)w.count);
		line(&w, "zero", s, 0, 0, (double)w.count, run_zero);
		line(&w, "copy", s, 0, 0, 2 * (double)w.count, run_copy);
		line(&w, "upload", s, 0, 0, (double)w.count, run_upload);
		line(&w, "download", s, 0, 0, (double)w.count, run_download);
	}
	lpo_free(w.host);
	done(&w);
}

/* --------------------------------------------------------------- sections */

/* A large product in each type, and a copy. */
int
bench_ceilings(struct bench *b)
{
	int64_t size = b->tiny ? 256 : b->gpu ? 8192 : 2048;
	struct work w;
	double ms;
	char s[80];
	int i;

	for (i = b->bf16; i >= 0; i--) {
		start(&w, b, i ? LPO_BF16 : LPO_F32);
		w.section = "ceiling";
		w.m = w.n = w.c = size;
		w.groups = 1;
		buffer(&w, w.dt, size * size);
		buffer(&w, w.dt, size * size);
		buffer(&w, w.dt, size * size);
		scratch(&w, w.k->linear_scratch_bytes(w.be, LPO_FWD, w.dt,
		    size, size, size, 1));
		snprintf(s, sizeof(s), "%lld^3", (long long)size);
		ms = line(&w, "linear_fwd", s, 0, 2.0 * (double)size *
		    (double)(size * size), 0, run_linear);
		if (ms > 0)
			b->flops[i] = 2e3 * (double)size * (double)(size *
			    size) / ms;
		done(&w);
	}
	start(&w, b, LPO_F32);
	w.section = "ceiling";
	w.count = b->tiny ? 1 << 20 : 1 << 30;
	buffer(&w, LPO_F32, w.count / 4);
	buffer(&w, LPO_F32, w.count / 4);
	snprintf(s, sizeof(s), "%lld bytes", (long long)w.count);
	ms = line(&w, "copy", s, 0, 0, 2.0 * (double)w.count, run_copy);
	if (ms > 0)
		b->copied = 2e3 * (double)w.count / ms;
	done(&w);
	return 0;
}

static void
convolutions(struct bench *b, enum lpo_dtype dt)
{
	static const struct {
		int64_t at, ci, co, k, stride;
		int more;
	} all[] = {
		{ 64, 4, 320, 3, 1, 0 },
		{ 64, 320, 320, 3, 1, WITH_RESIDUAL | WITH_WEIGHT },
		{ 64, 640, 320, 3, 1, 0 }, { 64, 960, 320, 3, 1, 0 },
		{ 64, 640, 640, 3, 1, 0 }, { 64, 320, 4, 3, 1, 0 },
		{ 64, 320, 320, 3, 2, WITH_WEIGHT },
		{ 64, 640, 320, 1, 1, 0 }, { 64, 960, 320, 1, 1, 0 },
		{ 32, 320, 640, 3, 1, 0 },
		{ 32, 640, 640, 3, 1, WITH_RESIDUAL | WITH_WEIGHT },
		{ 32, 960, 640, 3, 1, 0 }, { 32, 1280, 640, 3, 1, 0 },
		{ 32, 1920, 640, 3, 1, 0 }, { 32, 1280, 1280, 3, 1, 0 },
		{ 32, 640, 640, 3, 2, 0 }, { 32, 320, 640, 1, 1, 0 },
		{ 32, 1920, 640, 1, 1, 0 },
		{ 16, 640, 1280, 3, 1, 0 },
		{ 16, 1280, 1280, 3, 1, WITH_RESIDUAL | WITH_WEIGHT },
		{ 16, 1920, 1280, 3, 1, 0 }, { 16, 2560, 1280, 3, 1, 0 },
		{ 16, 1280, 1280, 3, 2, 0 }, { 16, 2560, 1280, 1, 1, 0 },
		{ 8, 1280, 1280, 3, 1, WITH_RESIDUAL | WITH_WEIGHT },
		{ 8, 2560, 1280, 3, 1, 0 }, { 8, 2560, 1280, 1, 1, 0 }
	};
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++)
		conv(b, dt, all[i].at, all[i].ci, all[i].co, all[i].k,
		    all[i].stride, all[i].more);
}

static void
products(struct bench *b, enum lpo_dtype dt)
{
	static const int64_t level[][2] = {	/* tokens of a row, channels */
		{ 4096, 320 }, { 1024, 640 }, { 256, 1280 }, { 64, 1280 }
	};
	int64_t m, c;
	int i;

	for (i = 0; i < 4; i++) {
		m = 20 * level[i][0];
		c = level[i][1];
		linear(b, dt, m, c, c, 1);		/* q, k, v, out */
		linear(b, dt, m, 8 * c, c, i == 0);	/* feed-forward */
		linear(b, dt, m, c, 4 * c, i == 0);
		linear(b, dt, 20 * 77, c, 768, 0);	/* k, v of the text */
	}
	linear(b, dt, 20, 1280, 1280, 0);		/* time */
	for (i = 0; i < 4; i++)
		lora(b, dt, 20 * level[i][0], level[i][1], level[i][1], 4);
}

static void
attentions(struct bench *b, enum lpo_dtype dt)
{
	static const int64_t level[][2] = {	/* tokens, channels of a head */
		{ 4096, 40 }, { 1024, 80 }, { 256, 160 }, { 64, 160 }
	};
	int64_t n = rows(b);
	int i;

	for (i = 0; i < 4; i++) {
		attention(b, dt, n, level[i][0], level[i][0], 8, level[i][1],
		    0);
		attention(b, dt, n, level[i][0], 77, 8, level[i][1], 1);
	}
	/* SDXL */
	attention(b, dt, b->tiny ? 1 : 8, 4096, 4096, 10, 64, 0);
	attention(b, dt, b->tiny ? 1 : 8, 1024, 1024, 20, 64, 0);
}

static void
others(struct bench *b, enum lpo_dtype dt)
{
	static const int64_t groups[][2] = {
		{ 64, 320 }, { 64, 640 }, { 64, 960 }, { 32, 640 },
		{ 32, 1280 }, { 32, 1920 }, { 16, 1280 }, { 16, 2560 },
		{ 8, 1280 }, { 8, 2560 }
	};
	static const int64_t level[][2] = {
		{ 64, 320 }, { 32, 640 }, { 16, 1280 }, { 8, 1280 }
	};
	size_t i;

	for (i = 0; i < sizeof(groups) / sizeof(*groups); i++)
		norm(b, dt, groups[i][0], groups[i][1], 0);
	for (i = 0; i < 4; i++) {
		norm(b, dt, level[i][0], level[i][1], 1);
		geglu(b, dt, level[i][0], 4 * level[i][1]);
		image(b, dt, level[i][0], level[i][1]);
		upsample(b, dt, level[i][0] / 2, level[i][1]);
		gather(b, dt, level[i][0], level[i][1]);
	}
	optimiser(b, dt, LIST, 3000);		/* LoRA's */
	optimiser(b, dt, LIST, 1 << 21);	/* a network's */
}

/* f32: a few of the largest, for the fraction. */
int
bench_ops(struct bench *b)
{
	enum lpo_dtype dt = b->bf16 ? LPO_BF16 : LPO_F32;

	convolutions(b, dt);
	products(b, dt);
	attentions(b, dt);
	others(b, dt);
	conv(b, LPO_F32, 64, 320, 320, 3, 1, WITH_RESIDUAL | WITH_WEIGHT);
	conv(b, LPO_F32, 16, 1280, 1280, 3, 1, 0);
	linear(b, LPO_F32, 20 * 4096, 320, 320, 1);
	linear(b, LPO_F32, 20 * 1024, 5120, 640, 0);
	attention(b, LPO_F32, rows(b), 4096, 4096, 8, 40, 0);
	attention(b, LPO_F32, rows(b), 256, 256, 8, 160, 0);
	norm(b, LPO_F32, 64, 320, 0);
	norm(b, LPO_F32, 64, 320, 1);
	transfer(b, 64 << 20);
	return 0;
}
