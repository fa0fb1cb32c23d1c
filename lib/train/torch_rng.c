/*
 * torch.randn.  On the CPU (aten/src/ATen/native/cpu/DistributionTemplates.h,
 * normal_fill): n uniforms of 24 bits, then in place, in runs of 16,
 *
 *	u1 = 1 - x[j], u2 = x[j + 8], j = 0..7
 *	x[j]     = sqrt(-2 ln u1) cos(2 pi u2)
 *	x[j + 8] = sqrt(-2 ln u1) sin(2 pi u2)
 *
 * Where 16 does not divide n the last 16 values are drawn again.
 *
 * On CUDA thread i draws curand_normal4 from subsequence i and keeps the first
 * of the four: words 0 and 1 of Philox with counter (call, 0, i, 0).
 */
#include "lib/train/torch_rng.h"

#include <math.h>

#include "lib/base/philox.h"

#define N 624
#define M 397

struct mt {
	uint32_t s[N];
	int i;
};

/* torch seeds mt19937 with the low 32 bits. */
static void
mt_seed(struct mt *m, uint32_t seed)
{
	int i;

	m->s[0] = seed;
	for (i = 1; i < N; i++)
		m->s[i] = 1812433253u * (m->s[i - 1] ^ m->s[i - 1] >> 30) +
		    (uint32_t)i;
	m->i = N;
}

static void
mt_next_block(struct mt *m)
{
	uint32_t y;
	int k;

	for (k = 0; k < N; k++) {
		y = (m->s[k] & 0x80000000u) | (m->s[(k + 1) % N] &
		    0x7fffffffu);
		m->s[k] = m->s[(k + M) % N] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu :
		    0);
	}
	m->i = 0;
}

static float
mt_uniform(struct mt *m)
{
	uint32_t y;

	if (m->i == N)
		mt_next_block(m);
	y = m->s[m->i++];
	y ^= y >> 11;
	y ^= y << 7 & 0x9d2c5680u;
	y ^= y << 15 & 0xefc60000u;
	y ^= y >> 18;
	return (float)(y & 0xffffff) * 0x1p-24f;
}

static void
fill_16(float *x)
{
	int j;

	for (j = 0; j < 8; j++) {
		float u1 = 1 - x[j], u2 = x[j + 8];
		float radius = sqrtf(-2 * logf(u1));
		float theta = 2.0f * 3.14159265358979323846f * u2;

		x[j] = radius * cosf(theta);
		x[j + 8] = radius * sinf(theta);
	}
}

static void
randn(struct mt *m, float *out, int64_t n)
{
	int64_t i;

	for (i = 0; i < n; i++)
		out[i] = mt_uniform(m);
	for (i = 0; i + 16 <= n; i += 16)
		fill_16(out + i);
	if (n % 16 != 0) {
		for (i = n - 16; i < n; i++)
			out[i] = mt_uniform(m);
		fill_16(out + n - 16);
	}
}

int
lpo_torch_randn(lpo_ctx *c, float *out, int64_t n, uint64_t seed,
    int64_t call)
{
	struct mt m;

	if (n < 16)
		return lpo_fail(c, LPO_EINVAL, "torch draws %lld values in "
		    "another way", (long long)n);
	mt_seed(&m, (uint32_t)seed);
	/* earlier calls are drawn again: no state to keep per picture */
	for (; call >= 0; call--)
		randn(&m, out, n);
	return 0;
}

void
lpo_torch_cuda_randn(float *out, int64_t n, uint64_t seed, int64_t call)
{
	const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
	const float unit = 2.3283064e-10f;	/* curand's 2^-32, 2 pi 2^-32 */
	const float turn = 2.3283064e-10f * 6.2831855f;
	uint32_t w[4];
	int64_t i;

	for (i = 0; i < n; i++) {
		const uint32_t counter[4] = { (uint32_t)call, 0, (uint32_t)i,
		    (uint32_t)((uint64_t)i >> 32) };

		lpo_philox4x32(w, counter, key);
		out[i] = sqrtf(-2 * logf((float)w[0] * unit + unit / 2)) *
		    sinf((float)w[1] * turn + turn / 2);
	}
}
