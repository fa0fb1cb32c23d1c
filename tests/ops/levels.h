/*
 * What the tests of products share: each level this CPU has in turn, values,
 * guarded buffers and comparison with f64.
 */
#ifndef TESTS_OPS_LEVELS_H
#define TESTS_OPS_LEVELS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernel.h"
#include "tests/tap.h"

#define GUARD 64	/* bytes behind each buffer that nobody may touch */

/* A tensor in its storage type, and the same values in f64. */
struct buf {
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

/* Values in -1 .. 1 that bf16 holds exactly, so that f64 sees the same. */
__attribute__((unused)) static struct buf
buf_new(enum lpo_dtype dt, int64_t count, uint32_t seed)
{
	struct buf b = { .count = count, .dt = dt };
	size_t bytes = (size_t)count * lpo_dtype_bytes(dt);
	int64_t i;

	b.p = malloc(bytes + GUARD);
	b.v = malloc((size_t)count * sizeof(double) + 1);
	if (b.p == NULL || b.v == NULL)
		abort();
	memset((char *)b.p + bytes, 0x5a, GUARD);
	for (i = 0; i < count; i++) {
		uint64_t x = ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u + seed;
		float f;

		x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
		x ^= x >> 32;
		f = ((float)(x & 255) - 127.5f) / 128;
		if (dt == LPO_F32) {
			/* more bits than bf16 has */
			f += (float)(x >> 8 & 0xffff) / (1 << 24);
			((float *)b.p)[i] = f;
		} else {
			uint32_t u;

			memcpy(&u, &f, 4);
			((uint16_t *)b.p)[i] = (uint16_t)(u >> 16);
		}
		b.v[i] = get(&b, i);
	}
	return b;
}

__attribute__((unused)) static void
buf_free(struct buf *b)
{
	free(b->p);
	free(b->v);
	memset(b, 0, sizeof(*b));
}

/* Back to the values it had when made. */
__attribute__((unused)) static void
buf_reset(struct buf *b)
{
	int64_t i;

	for (i = 0; i < b->count; i++) {
		float f = (float)b->v[i];
		uint32_t u;

		memcpy(&u, &f, 4);
		if (b->dt == LPO_F32)
			((float *)b->p)[i] = f;
		else
			((uint16_t *)b->p)[i] = (uint16_t)(u >> 16);
	}
}

__attribute__((unused)) static int
guard_whole(const struct buf *b)
{
	const unsigned char *g = (unsigned char *)b->p +
	    (size_t)b->count * lpo_dtype_bytes(b->dt);
	int i, whole = 1;

	for (i = 0; i < GUARD; i++)
		whole &= g[i] == 0x5a;
	return whole;
}

/*
 * The largest error in units of what is allowed: 2e-6 of the sum of absolute
 * products (long f32 sums) and, in bf16, half a unit of the result.
 */
__attribute__((unused)) static double
worst(const struct buf *b, const double *want, const double *magnitude)
{
	double bad = 0, e;
	int64_t i;

	for (i = 0; i < b->count; i++) {
		e = fabs(get(b, i) - want[i]) / (2e-6 * magnitude[i] + 1e-30 +
		    (b->dt == LPO_BF16 ? fabs(want[i]) / 256 : 0));
		if (!(e <= bad))
			bad = e;
	}
	return bad;
}

/* Scratch full of NaN, so that a read of what was not written shows. */
struct scratch {
	char *p;
	size_t bytes;
};

__attribute__((unused)) static struct scratch
scratch_new(size_t bytes)
{
	struct scratch s = { malloc(bytes + GUARD), bytes };

	if (s.p == NULL)
		abort();
	memset(s.p, 0xff, bytes);
	memset(s.p + bytes, 0x5a, GUARD);
	return s;
}

/* Frees it; 1 if nothing was written behind its end. */
__attribute__((unused)) static int
scratch_done(struct scratch *s)
{
	int i, whole = 1;

	for (i = 0; i < GUARD; i++)
		whole &= s->p[s->bytes + (size_t)i] == 0x5a;
	free(s->p);
	return whole;
}

/* Run f for each level, skipping by name what this CPU lacks. */
__attribute__((unused)) static void
each_level(void (*f)(lpo_backend *, const char *level))
{
	enum lpo_isa isa;
	lpo_backend be;

	for (isa = LPO_ISA_PORTABLE; isa <= LPO_ISA_AMX; isa++) {
		if (lpo_cpu_open(&be, isa, 0) != 0) {
			skip("no %s", lpo_isa_name(isa));
			continue;
		}
		f(&be, lpo_isa_name(isa));
		lpo_cpu_close(&be);
	}
}

#endif
