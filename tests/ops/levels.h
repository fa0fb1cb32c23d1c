/*
 * What the tests of ops share: each level this CPU has in turn and CUDA,
 * values, guarded buffers and comparison with f64.
 *
 * Every buffer that an op sees is the backend's own.  CUDA is opened as a
 * checked one, whose memory the loops here may read and write.
 */
#ifndef TESTS_OPS_LEVELS_H
#define TESTS_OPS_LEVELS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/kernel.h"
#include "tests/backend.h"

#define GUARD 64	/* bytes behind each buffer that nobody may touch */

/* Memory of the backend with a guard behind it. */
__attribute__((unused)) static void *
guarded(lpo_backend *be, size_t bytes)
{
	char *p = be->k->alloc(be, bytes + GUARD);

	if (p == NULL)
		abort();
	memset(p + bytes, 0x5a, GUARD);
	return p;
}

__attribute__((unused)) static int
guard_at(const void *p, size_t bytes)
{
	const unsigned char *g = (const unsigned char *)p + bytes;
	int i, whole = 1;

	for (i = 0; i < GUARD; i++)
		whole &= g[i] == 0x5a;
	return whole;
}

/* What an op reads that is no tensor: indices, tokens. */
__attribute__((unused)) static void *
dev_new(lpo_backend *be, const void *src, size_t bytes)
{
	void *p = guarded(be, bytes);

	memcpy(p, src, bytes);
	return p;
}

__attribute__((unused)) static void
dev_free(lpo_backend *be, void *p)
{
	be->k->free(be, p);
}

/* A tensor in its storage type, and the same values in f64. */
struct buf {
	lpo_backend *be;
	void *p;
	double *v;
	int64_t count;
	enum lpo_dtype dt;
};

__attribute__((unused)) static float
half_float(uint16_t h)
{
	uint32_t u = (uint32_t)h << 16;
	float f;

	memcpy(&f, &u, 4);
	return f;
}

__attribute__((unused)) static double
get(const struct buf *b, int64_t i)
{
	return b->dt == LPO_F32 ? ((float *)b->p)[i] :
	    half_float(((uint16_t *)b->p)[i]);
}

/* bf16: the bits below are cut off. */
__attribute__((unused)) static void
put(struct buf *b, int64_t i, float f)
{
	uint32_t u;

	memcpy(&u, &f, 4);
	if (b->dt == LPO_F32)
		((float *)b->p)[i] = f;
	else
		((uint16_t *)b->p)[i] = (uint16_t)(u >> 16);
}

__attribute__((unused)) static size_t
buf_bytes(const struct buf *b)
{
	return (size_t)b->count * lpo_dtype_bytes(b->dt);
}

/* Values in -1 .. 1 that bf16 holds exactly, so that f64 sees the same. */
__attribute__((unused)) static struct buf
buf_new(lpo_backend *be, enum lpo_dtype dt, int64_t count, uint32_t seed)
{
	struct buf b = { .be = be, .count = count, .dt = dt };
	int64_t i;

	b.p = guarded(be, buf_bytes(&b));
	b.v = malloc((size_t)count * sizeof(double) + 1);
	if (b.v == NULL)
		abort();
	for (i = 0; i < count; i++) {
		uint64_t x = ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u + seed;
		float f;

		x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
		x ^= x >> 32;
		f = ((float)(x & 255) - 127.5f) / 128;
		if (dt == LPO_F32)	/* more bits than bf16 has */
			f += (float)(x >> 8 & 0xffff) / (1 << 24);
		put(&b, i, f);
		b.v[i] = get(&b, i);
	}
	return b;
}

__attribute__((unused)) static void
buf_free(struct buf *b)
{
	b->be->k->free(b->be, b->p);
	free(b->v);
	memset(b, 0, sizeof(*b));
}

/* Back to the values it had when made. */
__attribute__((unused)) static void
buf_reset(struct buf *b)
{
	int64_t i;

	for (i = 0; i < b->count; i++)
		put(b, i, (float)b->v[i]);
}

/* NaN in every place: what an op must set, it must not have read. */
__attribute__((unused)) static void
buf_poison(struct buf *b)
{
	memset(b->p, 0xff, buf_bytes(b));
}

/* As it must be before a _bwd that adds to it, or sets it. */
__attribute__((unused)) static void
buf_start(struct buf *b, int add)
{
	if (add)
		buf_reset(b);
	else
		buf_poison(b);
}

/* What it held before counts only where it is added to. */
__attribute__((unused)) static double
start_of(const struct buf *b, int64_t i, int add)
{
	return add ? b->v[i] : 0;
}

__attribute__((unused)) static int
buf_same(const struct buf *a, const struct buf *b)
{
	return memcmp(a->p, b->p, buf_bytes(a)) == 0;
}

/* The values of `from` in f32 on another backend. */
__attribute__((unused)) static struct buf
buf_widen(lpo_backend *be, const struct buf *from)
{
	struct buf b = { .be = be, .count = from->count, .dt = LPO_F32 };
	int64_t i;

	b.p = guarded(be, buf_bytes(&b));
	b.v = malloc((size_t)b.count * sizeof(double) + 1);
	if (b.v == NULL)
		abort();
	for (i = 0; i < b.count; i++) {
		b.v[i] = from->v[i];
		put(&b, i, (float)b.v[i]);
	}
	return b;
}

__attribute__((unused)) static int
guard_whole(const struct buf *b)
{
	return guard_at(b->p, buf_bytes(b));
}

/*
 * What roundings to bf16 may be off, each half a unit, which is up to 2^-8 of
 * what is rounded.  CUDA's libraries round at every step (as they do for
 * PyTorch): the product, that times alpha or with a residual added, a bias,
 * the result; of a weight's gradient, which is f32, the product alone.
 * `added`, 0 where there is none, is the sum of the absolute values of what
 * is added; either product is at most |result| + added.
 */
__attribute__((unused)) static double
roundings(const struct buf *b, double result, double added)
{
	double r = fabs(result), product = r + added;

	if (!on_cuda(b->be) || added <= 0)
		return b->dt == LPO_BF16 ? r / 256 : 0;
	return (b->dt == LPO_BF16 ? r + 2 * product + added : product) / 256;
}

/*
 * What a sum may be off, of its absolute products: 2e-6, for long f32 sums;
 * 2^-15 where f32 is split, as split.h has it.
 */
__attribute__((unused)) static double
share(const struct buf *b)
{
	return 2e-6 + (b->dt == LPO_F32 && b->be->split ? 0x1p-15 : 0);
}

/*
 * The largest error in units of what is allowed: that share, and in bf16 the
 * roundings.
 */
__attribute__((unused)) static double
worst(const struct buf *b, const double *want, const double *magnitude,
    const double *added)
{
	double bad = 0, e;
	int64_t i;

	for (i = 0; i < b->count; i++) {
		e = fabs(get(b, i) - want[i]) / (share(b) * magnitude[i] +
		    1e-30 + roundings(b, want[i], added != NULL ? added[i] : 0));
		bad = worse(bad, e);
	}
	return bad;
}

/*
 * The same against another backend's f32, where the sums are too long for f64
 * loops: both err, and the sum of absolute products is about `magnitude`.
 */
__attribute__((unused)) static double
worst_of(const struct buf *b, const struct buf *want, double magnitude,
    double added)
{
	double bad = 0, e, w;
	int64_t i;

	for (i = 0; i < b->count; i++) {
		w = ((float *)want->p)[i];
		e = fabs(get(b, i) - w) / ((share(b) + 2e-6) * magnitude +
		    roundings(b, w, added));
		bad = worse(bad, e);
	}
	return guard_whole(b) ? bad : INFINITY;
}

/* Scratch full of NaN, so that a read of what was not written shows. */
struct scratch {
	lpo_backend *be;
	char *p;
	size_t bytes;
};

__attribute__((unused)) static struct scratch
scratch_new(lpo_backend *be, size_t bytes)
{
	struct scratch s = { be, guarded(be, bytes), bytes };

	memset(s.p, 0xff, bytes);
	return s;
}

/* Frees it; 1 if nothing was written behind its end. */
__attribute__((unused)) static int
scratch_done(struct scratch *s)
{
	int whole = guard_at(s->p, s->bytes);

	s->be->k->free(s->be, s->p);
	return whole;
}

/*
 * One level of the CPU in a process of its own, for oneDNN's level is fixed
 * once in each (kernels/onednn.h): in one for all, the products of the levels
 * after the first would not be oneDNN's.
 */
__attribute__((unused)) static void
level_apart(void (*f)(lpo_backend *, const char *level), const char *level)
{
	int count[2], ends[2], status = 0;
	lpo_backend be;
	pid_t pid;

	fflush(stdout);
	if (pipe(ends) != 0 || (pid = fork()) < 0)
		abort();
	if (pid == 0) {
		if (backend_open(&be, level, 0, 0)) {
			f(&be, level);
			backend_close(&be);
		}
		count[0] = tap_n;
		count[1] = tap_bad;
		exit(write(ends[1], count, sizeof(count)) != sizeof(count));
	}
	close(ends[1]);
	if (read(ends[0], count, sizeof(count)) == sizeof(count)) {
		tap_n = count[0];
		tap_bad = count[1];
	}
	close(ends[0]);
	if (waitpid(pid, &status, 0) != pid || status != 0)
		ok(0, "%s: ended with status %d", level, status);
}

/* Run f for each level, skipping by name what this machine lacks. */
__attribute__((unused)) static void
each_level(void (*f)(lpo_backend *, const char *level))
{
	enum lpo_isa isa;
	lpo_backend be;

	for (isa = LPO_ISA_PORTABLE; isa <= LPO_ISA_AMX; isa++)
		level_apart(f, lpo_isa_name(isa));
	if (backend_open(&be, "cuda", 0, LPO_PLUGIN_CHECKED)) {
		f(&be, "cuda");
		backend_close(&be);
	}
}

/* A test of emulated tiles: `all` of it, on a backend that has the rest. */
__attribute__((unused)) static int
emulated(void (*all)(lpo_backend *))
{
	lpo_backend be;

	if (ok(lpo_cpu_open(&be, LPO_ISA_PORTABLE, 4) == 0, "open")) {
		all(&be);
		lpo_cpu_close(&be);
	}
	return done_testing();
}

/* The same for the level amx with f32 split. */
__attribute__((unused)) static void
split_level(void (*f)(lpo_backend *, const char *level))
{
	lpo_backend be;

	if (!backend_open(&be, "amx", 0, 0))
		return;
	ok(lpo_cpu_split(&be) == 0, "amx splits f32");
	f(&be, "amx, split");
	backend_close(&be);
}

/* bf16 is the last; where f32 is split, bf16 is as without. */
__attribute__((unused)) static enum lpo_dtype
last_dtype(const lpo_backend *be)
{
	return be->split ? LPO_F32 : LPO_BF16;
}

/*
 * The same level again with another number of threads, to see the same bits.
 * CUDA has none; there the promise is the same bits from run to run.
 */
__attribute__((unused)) static int
reopen(lpo_backend *be, int threads)
{
	enum lpo_isa isa = be->isa;
	int split = be->split, rc;

	if (on_cuda(be))
		return 0;
	lpo_cpu_close(be);
	rc = lpo_cpu_open(be, isa, threads);
	return rc == 0 && split ? lpo_cpu_split(be) : rc;
}

__attribute__((unused)) static int
repeats(const lpo_backend *be)
{
	return on_cuda(be) ? 2 : 4;
}

/* The two promises in words. */
__attribute__((unused)) static const char *
runs(const lpo_backend *be)
{
	return on_cuda(be) ? "run after run" : "with 1 .. 4 threads";
}

#endif
