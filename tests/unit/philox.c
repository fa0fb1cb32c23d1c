/*
 * Philox against Random123's known answers; normals against libm and their
 * distribution; the permutation.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox_priv.h"
#include "lib/base/hash.h"
#include "tests/tap.h"

static void
known(void)
{
	static const uint32_t v[3][10] = {	/* kat_vectors: counter, key */
		{ 0, 0, 0, 0, 0, 0,
		  0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
		{ ~0u, ~0u, ~0u, ~0u, ~0u, ~0u,
		  0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
		{ 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822,
		  0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 }
	};
	struct lpo_draw d = { 0x299f31d0a4093822, (enum lpo_purpose)0x03,
	    0x85a308d3, 0x1319, 0x8a2e, 0x707344 };
	uint32_t out[4];
	int i;

	for (i = 0; i < 3; i++) {
		lpo_philox4x32(out, v[i], v[i] + 4);
		ok(memcmp(out, v[i] + 6, 16) == 0, "known answer %d", i);
	}
	ok(lpo_draw_u32(&d, 4 * (uint64_t)0x243f6a88 + 2) == 0x5001e420,
	    "the fields stand where design.md says");
}

static void
normals(void)
{
	enum { N = 1 << 20 };
	struct lpo_draw d = { 42, LPO_DRAW_NOISE, 7, 1, 951, 1 };
	float *x = malloc(N * sizeof(*x)), piece[64];
	double worst = 0, sum = 0, sq = 0, cube = 0, four = 0, u, v, r;
	int64_t i, n, bad = 0, tail = 0;
	char hex[65];

	lpo_draw_normal(&d, 0, x, N);
	for (i = 0; i < N; i += 2) {
		u = (lpo_draw_u32(&d, (uint64_t)i) + 1.0) / 4294967296.0;
		v = lpo_draw_u32(&d, (uint64_t)i + 1) / 4294967296.0;
		r = sqrt(-2 * log(u));
		worst = worse(worst, fabs(x[i] - r * cos(2 * M_PI * v)));
		worst = worse(worst, fabs(x[i + 1] - r * sin(2 * M_PI * v)));
	}
	ok(worst < 1e-6, "a million normals: %.2g from libm at most", worst);
	for (i = 0; i < N; i++) {
		sum += x[i];
		sq += (double)x[i] * x[i];
		cube += pow(x[i], 3);
		four += pow(x[i], 4);
		tail += fabsf(x[i]) > 3;
	}
	/* Five standard errors each: 1, 2, 15, 96 over n; p(|x|>3). */
	ok(fabs(sum / N) < 5 * sqrt(1.0 / N), "mean %.2g", sum / N);
	ok(fabs(sq / N - 1) < 5 * sqrt(2.0 / N), "variance %.6f", sq / N);
	ok(fabs(cube / N) < 5 * sqrt(15.0 / N), "skew %.2g", cube / N);
	ok(fabs(four / N - 3) < 5 * sqrt(96.0 / N), "kurtosis %.5f", four / N);
	ok(fabs(tail / (double)N - 0.0026998) < 5 * sqrt(0.0027 / N),
	    "tails beyond 3: %.6f", tail / (double)N);
	for (i = 0; i < 40; i++)
		for (n = 0; n <= 20; n++) {
			lpo_draw_normal(&d, (uint64_t)i, piece, n);
			bad += memcmp(piece, x + i, (size_t)n * 4) != 0;
		}
	ok(bad == 0, "any piece is that piece of the whole");
	/* Frozen: other bits would make old runs unrepeatable. */
	lpo_sha256_of(hex, x, N * sizeof(*x));
	ok(strncmp(hex, "619d03205990c07a", 16) == 0, "the bits of a million: %.16s",
	    hex);
	free(x);
}

/* The wide form has the bits of the plain one. */
static void
wide(void)
{
	enum { N = 4 * LPO_NORMAL_BLOCKS };
	struct lpo_draw d = { 0, LPO_DRAW_NOISE, 0, 0, 0, 0 };
	float a[N], b[N];
	int i, bad = 0;

	if (!lpo_philox_has_avx2()) {
		skip("no AVX2");
		return;
	}
	for (i = 0; i < 20000; i++) {
		d.seed = (uint64_t)i * 0x9e3779b97f4a7c15u;
		d.item = (uint32_t)i * 77;
		d.candidate = (uint32_t)i & 3;
		lpo_normal_blocks(a, &d, (uint64_t)i << 20);
		lpo_normal_blocks_avx2(b, &d, (uint64_t)i << 20);
		bad += memcmp(a, b, sizeof(a)) != 0;
	}
	ok(bad == 0, "20000 x %d normals, plain and wide", N);
}

static void
permutation(void)
{
	static const uint64_t size[] = { 1, 2, 3, 5, 16, 17, 1000, 65537 };
	struct lpo_draw d = { 1, LPO_DRAW_SHUFFLE, 0, 0, 0, 0 };
	uint8_t *seen = malloc(70000);
	int64_t count[5][5] = { { 0 } }, bad, i, j;
	double chi = 0;
	size_t k;

	for (k = 0; k < sizeof(size) / sizeof(*size); k++) {
		uint64_t n = size[k], u, fixed = 0;

		memset(seen, 0, n);
		for (bad = 0, u = 0; u < n; u++) {
			uint64_t p = lpo_draw_permute(&d, u, n);

			fixed += p == u;
			bad += p >= n || seen[p]++;
		}
		ok(bad == 0 && (n < 1000 || fixed < 12),
		    "a permutation of %llu (%llu stay)",
		    (unsigned long long)n, (unsigned long long)fixed);
	}
	for (i = 0; i < 10000; i++) {
		d.epoch = (uint32_t)i;
		for (j = 0; j < 5; j++)
			count[j][lpo_draw_permute(&d, (uint64_t)j, 5)]++;
	}
	for (i = 0; i < 25; i++) {
		double e = (double)count[i / 5][i % 5] - 2000;

		chi += e * e / 2000;
	}
	ok(chi < 45, "each place equally likely: chi2(16) = %.1f", chi);
	ok(lpo_draw_permute(&d, 5, (uint64_t)1 << 59) < (uint64_t)1 << 59,
	    "large n");
	free(seen);
}

int
main(void)
{
	struct lpo_draw d = { 5, LPO_DRAW_TIMESTEP, 0, 0, 0, 0 };
	int64_t count[20] = { 0 }, i;
	double chi = 0;

	known();
	normals();
	wide();
	permutation();
	for (i = 0; i < 100000; i++)
		count[lpo_draw_below(&d, (uint64_t)i, 20)]++;
	for (i = 0; i < 20; i++)
		chi += pow((double)count[i] - 5000, 2) / 5000;
	ok(chi < 50, "uniform below 20: chi2(19) = %.1f", chi);
	return done_testing();
}
