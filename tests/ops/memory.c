/*
 * What a backend has besides its ops: memory and copies, errors that are told
 * and do not stick, and recorded lists of calls.  CUDA is opened checked, as
 * for the tests of ops, and once more as programs open it.
 */
#include "tests/ops/levels.h"

enum { N = 5003, M = 96, K = 64 };

static void
copies(lpo_backend *be, const char *level)
{
	float in[N], out[N];
	float *a = be->k->alloc(be, sizeof(in));
	float *b = be->k->alloc(be, sizeof(in));
	int i, good = a != NULL && b != NULL, bad = 0;

	for (i = 0; i < N; i++)
		in[i] = (float)i * 0.5f;
	good = good && (uintptr_t)a % 64 == 0 && (uintptr_t)b % 64 == 0;
	good = good && be->k->upload(be, a, in, sizeof(in)) == 0 &&
	    be->k->zero(be, b, sizeof(in)) == 0 &&
	    be->k->copy(be, b + 3, a + 1, 1000 * sizeof(*a)) == 0 &&
	    be->k->download(be, out, b, sizeof(out)) == 0 &&
	    be->k->upload(be, b, out, 0) == 0 && be->k->sync(be) == 0;
	for (i = 0; i < N; i++)
		bad += out[i] != (i < 3 || i >= 1003 ? 0 : in[i - 2]);
	ok(good && bad == 0, "%s: upload, zero, copy, download", level);
	be->k->free(be, a);
	be->k->free(be, b);
	be->k->free(be, NULL);
}

/* What was asked for first is what was there then. */
static void
landings(lpo_backend *be, const char *level)
{
	float in[N], *a = be->k->alloc(be, sizeof(in));
	void *l[2] = { be->k->landing_new(be, sizeof(in)),
	    be->k->landing_new(be, sizeof(in)) };
	const void *got[2] = { NULL, NULL };
	int i, j, good = a != NULL && l[0] != NULL && l[1] != NULL, bad = 0;

	for (j = 0; j < 2; j++) {
		for (i = 0; i < N; i++)
			in[i] = (float)(i + N * j);
		good = good && be->k->upload(be, a, in, sizeof(in)) == 0 &&
		    be->k->land(be, l[j], a, sizeof(in)) == 0;
	}
	good = good && be->k->zero(be, a, sizeof(in)) == 0;
	for (j = 0; j < 2; j++)
		good = good && be->k->landed(be, l[j], &got[j]) == 0;
	for (j = 0; j < 2 && good; j++)
		for (i = 0; i < N; i++)
			bad += ((const float *)got[j])[i] !=
			    (float)(i + N * j);
	good = good && be->k->land(be, l[0], a, 4) == 0 &&
	    be->k->landed(be, l[0], &got[0]) == 0;
	ok(good && bad == 0 && *(const float *)got[0] == 0, "%s: two landings "
	    "hold what was there when they were asked for", level);
	/* asked for, and not waited for */
	good = good && be->k->upload(be, a, in, sizeof(in)) == 0 &&
	    be->k->land(be, l[1], a, sizeof(in)) == 0;
	be->k->landing_free(be, l[0]);
	be->k->landing_free(be, l[1]);
	be->k->landing_free(be, NULL);
	be->k->free(be, a);
	ok(good && be->k->sync(be) == 0, "%s: and may be freed at any time",
	    level);
}

static void
amounts(lpo_backend *be, const char *level)
{
	size_t unused = 0, all = 0;
	float x[4] = { 1, 2, 3, 4 }, *p;
	int rc = be->k->memory(be, &unused, &all);

	ok(rc == 0 && unused > 0 && unused <= all, "%s: %zu of %zu MB are "
	    "free", level, unused >> 20, all >> 20);
	ok(be->k->alloc(be, SIZE_MAX / 2) == NULL, "%s: too much is refused: "
	    "%s", level, be->k->error(be));
	p = be->k->alloc(be, sizeof(x));
	ok(p != NULL && be->k->upload(be, p, x, sizeof(x)) == 0 &&
	    be->k->act_fwd(be, LPO_F32, LPO_RELU, p, p, 4) == 0 &&
	    be->k->download(be, x, p, sizeof(x)) == 0 && x[3] == 4,
	    "%s: and what comes after it is not", level);
	be->k->free(be, p);
}

/* Device copies of values from buf_new of the CPU. */
static void *
uploaded(lpo_backend *be, lpo_backend *cpu, enum lpo_dtype dt, int64_t n,
    uint32_t seed)
{
	struct buf b = buf_new(cpu, dt, n, seed);
	void *p = be->k->alloc(be, buf_bytes(&b));

	if (p == NULL || be->k->upload(be, p, b.p, buf_bytes(&b)) != 0)
		abort();
	buf_free(&b);
	return p;
}

/* y = x w + y, twice over, and a norm: what a piece of a walk looks like. */
static int
calls(lpo_backend *be, enum lpo_dtype dt, void *y, void *x, void *w,
    float *stats, float *gamma, void *scratch)
{
	int i, rc = 0;

	for (i = 0; i < 2; i++)
		rc |= be->k->linear_fwd(be, dt, y, x, w, NULL, y, M, K, K, 1,
		    scratch);
	rc |= be->k->layer_norm_fwd(be, dt, x, stats, y, gamma, gamma, M, K,
	    1e-5f);
	return rc;
}

/* Recorded and run three times: what three times the calls make. */
static void
graphs(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	size_t bytes = M * K * lpo_dtype_bytes(dt);
	char *got = malloc(bytes), *want = malloc(bytes);
	void *y[2], *x[2], *w, *scratch, *graph = NULL;
	float *stats, *gamma;
	lpo_backend cpu;
	int i, good = 1, rc = LPO_ENODEV;

	if (lpo_cpu_open(&cpu, LPO_ISA_PORTABLE, 1) != 0)
		abort();
	for (i = 0; i < 2; i++) {
		y[i] = uploaded(be, &cpu, dt, M * K, 1);
		x[i] = uploaded(be, &cpu, dt, M * K, 2);
	}
	w = uploaded(be, &cpu, dt, K * K, 3);
	gamma = uploaded(be, &cpu, LPO_F32, K, 4);
	stats = uploaded(be, &cpu, LPO_F32, 2 * M, 5);
	scratch = be->k->alloc(be, be->k->linear_scratch_bytes(be, LPO_FWD,
	    dt, M, K, K, 1) + 1);
	for (i = 0; i < 3; i++)
		good &= calls(be, dt, y[0], x[0], w, stats, gamma, scratch) ==
		    0;
	if (be->k->graph_begin != NULL && (rc = be->k->graph_begin(be)) == 0) {
		good &= calls(be, dt, y[1], x[1], w, stats, gamma, scratch) ==
		    0 && be->k->graph_end(be, &graph) == 0;
		for (i = 0; i < 3 && good; i++)
			good &= be->k->graph_run(be, graph) == 0;
	}
	if (rc == LPO_ENODEV) {
		skip("%s: no recorded calls", level);
	} else {
		good &= be->k->download(be, want, y[0], bytes) == 0 &&
		    be->k->download(be, got, y[1], bytes) == 0 &&
		    memcmp(got, want, bytes) == 0;
		good &= be->k->download(be, want, x[0], bytes) == 0 &&
		    be->k->download(be, got, x[1], bytes) == 0 &&
		    memcmp(got, want, bytes) == 0;
		ok(rc == 0 && good, "%s %s: recorded calls run three times: "
		    "%s", level, lpo_dtype_name(dt), be->k->error(be));
		be->k->graph_free(be, graph);
	}
	for (i = 0; i < 2; i++) {
		be->k->free(be, y[i]);
		be->k->free(be, x[i]);
	}
	be->k->free(be, w);
	be->k->free(be, gamma);
	be->k->free(be, stats);
	be->k->free(be, scratch);
	free(got);
	free(want);
	lpo_cpu_close(&cpu);
}

static void
test_level(lpo_backend *be, const char *level)
{
	ok(be->k->abi == LPO_KERNEL_ABI && be->k->size_bytes ==
	    sizeof(struct lpo_kernels), "%s: the table is of this version",
	    level);
	ok(be->k->error(be) != NULL && *be->k->error(be) == '\0',
	    "%s: no error yet", level);
	copies(be, level);
	landings(be, level);
	amounts(be, level);
	graphs(be, level, LPO_F32);
	graphs(be, level, LPO_BF16);
}

int
main(void)
{
	lpo_backend be;

	each_level(test_level);
	if (backend_open(&be, "cuda", 0, 0)) {
		test_level(&be, "cuda, unchecked");
		backend_close(&be);
	}
	return done_testing();
}
