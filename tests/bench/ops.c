/*
 * Speed of the ops at real shapes: milliseconds, GFLOP/s, and the fraction of
 * the best large product of the same run, level and dtype; of ops that the
 * memory bounds, GB/s and the fraction of a copy.  Nothing is asserted.
 * usage: ops.t [portable|avx2|avx512|amx [product|memory|split]]
 * split: products of f32 that is split, as amx can
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernel.h"
#include "lib/base/progress.h"

static lpo_backend be;
static enum lpo_dtype dt;
static double ceiling;

struct work {
	struct lpo_conv_shape conv;
	struct lpo_attn_shape attn;
	int64_t m, n, k;	/* memory: rows, channels, images */
	void *x, *w, *y, *o, *g1, *g2, *g3, *scratch;
	float *lse;
};

static void *
buffer(int64_t count)
{
	float *f = be.k->alloc(&be, (size_t)count * 4);
	void *p = be.k->alloc(&be, (size_t)count * 4);
	int64_t i;

	if (f == NULL || p == NULL)
		exit(1);
	for (i = 0; i < count; i++)
		f[i] = (float)((i * 7919 % 2003) - 1001) / 1001;
	be.k->convert(&be, p, dt, f, LPO_F32, count);
	be.k->free(&be, f);
	return p;
}

/* The best of several runs in about so many seconds. */
static double
best_ms(int (*run)(struct work *), struct work *w, double seconds)
{
	double best = 1e30, start = lpo_now_s(), t;
	int i;

	for (i = 0; i < 3 || (i < 1000 && lpo_now_s() - start < seconds); i++) {
		t = lpo_now_s();
		if (run(w) < 0)
			return -1;
		t = lpo_now_s() - t;
		if (t < best)
			best = t;
	}
	return best * 1e3;
}

static void
line(const char *op, const char *shape, double flops, double ms)
{
	double rate = flops / ms / 1e6;

	if (ms < 0) {
		printf("%-18s %-30s not at this level\n", op, shape);
		return;
	}
	if (ceiling == 0)
		ceiling = rate;
	printf("%-18s %-30s %9.3f ms %8.1f GFLOP/s %5.2f\n", op, shape, ms,
	    rate, rate / ceiling);
	fflush(stdout);
}

static int
run_linear(struct work *w)
{
	return be.k->linear_fwd(&be, dt, w->y, w->x, w->w, NULL, NULL,
	    w->m, w->n, w->k, 1, w->scratch);
}

static int
run_linear_weight(struct work *w)
{
	return be.k->linear_bwd_weight(&be, dt, w->lse, NULL, w->y, w->x,
	    w->m, w->n, w->k, 1, 1, w->scratch);
}

static int
run_conv(struct work *w)
{
	return be.k->conv_fwd(&be, dt, w->y, w->x, w->w, NULL, NULL,
	    &w->conv, w->scratch);
}

static int
run_conv_data(struct work *w)
{
	return be.k->conv_bwd_data(&be, dt, w->x, w->y, w->w, &w->conv, 0,
	    w->scratch);
}

static int
run_conv_weight(struct work *w)
{
	return be.k->conv_bwd_weight(&be, dt, w->lse, NULL, w->y, w->x,
	    &w->conv, 1, w->scratch);
}

static int
run_attn(struct work *w)
{
	return be.k->attention_fwd(&be, dt, w->o, w->lse, w->x, w->w, w->y,
	    &w->attn, w->scratch);
}

static int
run_attn_bwd(struct work *w)
{
	return be.k->attention_bwd(&be, dt, w->g1, w->g2, w->g3, w->o, w->o,
	    w->lse, w->x, w->w, w->y, &w->attn, 0, w->scratch);
}

static void
release(struct work *w)
{
	void *all[] = { w->x, w->w, w->y, w->o, w->g1, w->g2, w->g3,
	    w->scratch, w->lse };
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++)
		be.k->free(&be, all[i]);
}

static void
linear(int64_t m, int64_t n, int64_t k)
{
	struct work w = { .m = m, .n = n, .k = k };
	double flops = 2.0 * (double)m * (double)(n * k);
	size_t fwd = be.k->linear_scratch_bytes(&be, LPO_FWD, dt, m, n, k, 1);
	size_t bwd = be.k->linear_scratch_bytes(&be, LPO_BWD_WEIGHT, dt, m,
	    n, k, 1);
	char text[64];

	w.x = buffer(m * k);
	w.w = buffer(n * k);
	w.y = buffer(m * n);
	w.lse = be.k->alloc(&be, (size_t)(n * k) * 4);
	w.scratch = be.k->alloc(&be, (fwd > bwd ? fwd : bwd) + 64);
	be.k->zero(&be, w.lse, (size_t)(n * k) * 4);
	snprintf(text, sizeof(text), "%lld x %lld x %lld", (long long)m,
	    (long long)n, (long long)k);
	line("linear", text, flops, best_ms(run_linear, &w, 0.5));
	line("linear dw", text, flops, best_ms(run_linear_weight, &w, 0.5));
	release(&w);
}

static void
conv(int64_t n, int64_t side, int64_t ci, int64_t co)
{
	struct work w = { .conv = { n, side, side, ci, co, 3, 3, 1, 1, 1,
	    side, side } };
	double flops = 18.0 * (double)(n * side * side) * (double)(ci * co);
	size_t need = 0, s;
	char text[64];
	int pass;

	for (pass = LPO_FWD; pass <= LPO_BWD_WEIGHT; pass++) {
		s = be.k->conv_scratch_bytes(&be, (enum lpo_pass)pass, dt,
		    &w.conv, 1);
		need = s > need ? s : need;
	}
	w.x = buffer(n * side * side * ci);
	w.w = buffer(9 * ci * co);
	w.y = buffer(n * side * side * co);
	w.lse = be.k->alloc(&be, (size_t)(9 * ci * co) * 4);
	w.scratch = be.k->alloc(&be, need + 64);
	be.k->zero(&be, w.lse, (size_t)(9 * ci * co) * 4);
	snprintf(text, sizeof(text), "%lld x %lld @ %lld^2, %lld rows",
	    (long long)ci, (long long)co, (long long)side, (long long)n);
	line("conv 3x3", text, flops, best_ms(run_conv, &w, 0.5));
	line("conv 3x3 dx", text, flops, best_ms(run_conv_data, &w, 0.5));
	line("conv 3x3 dw", text, flops, best_ms(run_conv_weight, &w, 0.5));
	release(&w);
}

static void
attention(int64_t n, int64_t lq, int64_t lk, int64_t heads, int64_t d)
{
	struct work w = { .attn = { n, n, lq, lk, heads, d, heads * d,
	    heads * d, 0 } };
	double flops = 4.0 * (double)(n * heads * d) * (double)(lq * lk);
	int64_t q = n * lq * heads * d, k = n * lk * heads * d;
	size_t fwd, bwd;
	char text[64];

	fwd = be.k->attention_scratch_bytes(&be, LPO_FWD, dt, &w.attn);
	bwd = be.k->attention_scratch_bytes(&be, LPO_BWD_DATA, dt, &w.attn);
	w.x = buffer(q);
	w.w = buffer(k);
	w.y = buffer(k);
	w.o = buffer(q);
	w.g1 = buffer(q);
	w.g2 = buffer(k);
	w.g3 = buffer(k);
	w.lse = be.k->alloc(&be, (size_t)(n * heads * lq) * 4);
	w.scratch = be.k->alloc(&be, (fwd > bwd ? fwd : bwd) + 64);
	snprintf(text, sizeof(text), "%lld x %lld, %lld heads of %lld",
	    (long long)lq, (long long)lk, (long long)heads, (long long)d);
	line("attention", text, flops, best_ms(run_attn, &w, 0.5));
	line("attention bwd", text, 2.5 * flops, best_ms(run_attn_bwd, &w, 0.5));
	release(&w);
}

/* Ops on rows of channels.  x and g1 hold two rows of channels per row. */

static int
run_copy(struct work *w)
{
	return be.k->convert(&be, w->y, dt, w->x, dt, w->m * w->n);
}

static int
run_silu(struct work *w)
{
	return be.k->act_fwd(&be, dt, LPO_SILU, w->y, w->x, w->m * w->n);
}

static int
run_silu_bwd(struct work *w)
{
	return be.k->act_bwd(&be, dt, LPO_SILU, w->g1, w->y, w->x,
	    w->m * w->n, 0);
}

static int
run_geglu(struct work *w)
{
	return be.k->geglu_fwd(&be, dt, w->y, w->x, w->m, w->n);
}

static int
run_geglu_bwd(struct work *w)
{
	return be.k->geglu_bwd(&be, dt, w->g1, w->y, w->x, w->m, w->n, 0);
}

static int
run_group_norm(struct work *w)
{
	return be.k->group_norm_fwd(&be, dt, w->y, w->lse, w->x, w->w, w->w,
	    w->k, w->m / w->k, w->n, 32, 1e-5f, 1);
}

static int
run_group_norm_plain(struct work *w)
{
	return be.k->group_norm_fwd(&be, dt, w->y, w->lse, w->x, w->w, w->w,
	    w->k, w->m / w->k, w->n, 32, 1e-5f, 0);
}

static int
run_group_norm_bwd(struct work *w)
{
	return be.k->group_norm_bwd(&be, dt, w->g1, NULL, NULL, w->y, w->x,
	    w->lse, w->w, w->w, w->k, w->m / w->k, w->n, 32, 1, 1, 0,
	    w->scratch);
}

static int
run_group_norm_all(struct work *w)
{
	return be.k->group_norm_bwd(&be, dt, w->g1, w->g2, w->g2, w->y, w->x,
	    w->lse, w->w, w->w, w->k, w->m / w->k, w->n, 32, 1, 1, 0,
	    w->scratch);
}

static int
run_layer_norm(struct work *w)
{
	return be.k->layer_norm_fwd(&be, dt, w->y, w->lse, w->x, w->w, w->w,
	    w->m, w->n, 1e-5f);
}

static int
run_layer_norm_bwd(struct work *w)
{
	return be.k->layer_norm_bwd(&be, dt, w->g1, NULL, NULL, w->y, w->x,
	    w->lse, w->w, w->m, w->n, 1, 0, w->scratch);
}

static int
run_layer_norm_all(struct work *w)
{
	return be.k->layer_norm_bwd(&be, dt, w->g1, w->g2, w->g2, w->y, w->x,
	    w->lse, w->w, w->m, w->n, 1, 0, w->scratch);
}

static int
run_add(struct work *w)
{
	return be.k->add(&be, dt, w->y, w->x, w->g1, w->m * w->n);
}

static int
run_add_rows(struct work *w)
{
	return be.k->add_rows_fwd(&be, dt, w->y, w->x, w->g1, w->k,
	    w->m / w->k, w->n);
}

static int
run_add_rows_bwd(struct work *w)
{
	return be.k->add_rows_bwd(&be, dt, w->g1, w->x, w->k, w->m / w->k,
	    w->n, 0);
}

static int
run_concat(struct work *w)
{
	return be.k->concat_fwd(&be, dt, w->g1, w->x, w->y, w->m, w->n, w->n);
}

static int
run_concat_bwd(struct work *w)
{
	return be.k->concat_bwd(&be, dt, w->x, w->y, w->g1, w->m, w->n, w->n,
	    0);
}

/* to four times the rows, from images that are 16 wide */
static int
run_upsample(struct work *w)
{
	int64_t h = w->m / w->k / 64;

	return be.k->upsample_fwd(&be, dt, w->y, w->x, w->k, h, 16, w->n,
	    2 * h, 32);
}

static int
run_upsample_bwd(struct work *w)
{
	int64_t h = w->m / w->k / 64;

	return be.k->upsample_bwd(&be, dt, w->g1, w->y, w->k, h, 16, w->n,
	    2 * h, 32, 0);
}

static const struct {
	const char *name;
	int (*run)(struct work *);
	double tensors;		/* of m x n that must move */
} memory_ops[] = {
	{ "copy", run_copy, 2 },
	{ "silu", run_silu, 2 }, { "silu bwd", run_silu_bwd, 3 },
	{ "geglu", run_geglu, 3 }, { "geglu bwd", run_geglu_bwd, 5 },
	{ "group norm", run_group_norm_plain, 2 },
	{ "group norm silu", run_group_norm, 2 },
	{ "group norm bwd", run_group_norm_bwd, 3 },
	{ "group norm bwd, all", run_group_norm_all, 3 },
	{ "layer norm", run_layer_norm, 2 },
	{ "layer norm bwd", run_layer_norm_bwd, 3 },
	{ "layer norm bwd, all", run_layer_norm_all, 3 },
	{ "add", run_add, 3 }, { "add rows", run_add_rows, 2 },
	{ "add rows bwd", run_add_rows_bwd, 1 },
	{ "concat", run_concat, 4 }, { "concat bwd", run_concat_bwd, 4 },
	{ "upsample", run_upsample, 1.25 },
	{ "upsample bwd", run_upsample_bwd, 1.25 }
};

/* k images of side^2 rows of c channels */
static void
memory(int64_t k, int64_t side, int64_t c)
{
	struct work w = { .m = k * side * side, .n = c, .k = k };
	int64_t count = w.m * c;
	enum lpo_dtype now = dt;
	double ms, rate, copy = 0;
	size_t i;

	w.x = buffer(2 * count);
	w.y = buffer(count);
	w.g1 = buffer(2 * count);
	dt = LPO_F32;
	w.w = buffer(c);
	w.g2 = buffer(c);
	w.lse = (float *)buffer(2 * w.m + 64 * k);
	dt = now;
	w.scratch = be.k->alloc(&be, be.k->norm_scratch_bytes(&be, w.m, c, k) +
	    64);
	printf("%lld images, %lld @ %lld^2\n", (long long)k, (long long)c,
	    (long long)side);
	for (i = 0; i < sizeof(memory_ops) / sizeof(*memory_ops); i++) {
		ms = best_ms(memory_ops[i].run, &w, 0.1);
		rate = memory_ops[i].tensors * (double)count *
		    (double)lpo_dtype_bytes(dt) / ms / 1e6;
		copy = i == 0 ? rate : copy;
		printf("%-20s %9.3f ms %8.2f GB/s %5.2f\n",
		    memory_ops[i].name, ms, rate, rate / copy);
		fflush(stdout);
	}
	release(&w);
}

static void
products(void)
{
	linear(2048, 2048, 2048);
	linear(8192, 320, 320);
	linear(512, 10240, 1280);
	conv(2, 64, 320, 320);
	conv(2, 16, 1280, 1280);
	conv(48, 8, 48, 48);
	conv(48, 4, 80, 80);
	attention(2, 4096, 4096, 8, 40);
	attention(2, 4096, 77, 8, 40);
	attention(48, 64, 64, 4, 12);
}

int
main(int argc, char **argv)
{
	const char *part = argc > 2 ? argv[2] : "";
	int isa = argc > 1 ? lpo_isa_parse(argv[1]) : LPO_ISA_AUTO, i;
	int split = strcmp(part, "split") == 0;

	if (isa < 0 || lpo_cpu_open(&be, (enum lpo_isa)isa, 0) < 0 ||
	    (split && lpo_cpu_split(&be) < 0)) {
		fprintf(stderr, "ops: no level '%s' here\n",
		    argc > 1 ? argv[1] : "auto");
		return 2;
	}
	for (i = 0; i < (lpo_cpu_has_bf16(be.isa) && !split ? 2 : 1); i++) {
		dt = i == 0 ? LPO_F32 : LPO_BF16;
		ceiling = 0;
		printf("%s, %s, %d threads; last column: fraction of the "
		    "first line, or of a copy\n", lpo_isa_name(be.isa), lpo_dtype_name(dt),
		    be.threads);
		if (strcmp(part, "memory") != 0)
			products();
		if (strcmp(part, "product") != 0 && !split) {
			memory(20, 64, 320);
			memory(4, 64, 320);
			memory(8, 16, 1280);
		}
	}
	lpo_cpu_close(&be);
	return 0;
}
