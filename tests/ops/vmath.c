/*
 * The vector functions of each level against libm in f64.  The header is
 * compiled here at this file's own level; the other levels are reached
 * through the activations, whose formulas they are.
 */
#include <float.h>

#include "kernels/vmath.h"
#include "kernels/load.h"
#include "tests/ops/levels.h"

static double
ulps(float got, double want)
{
	float f = (float)want;

	if (isnan(want) || isnan(got))
		return isnan(want) && isnan(got) ? 0 : 1e9;
	if (isinf(f) || isinf(got))
		return f == got ? 0 : 1e9;
	return fabs(got - want) / fmax(fabs((double)nextafterf(f, INFINITY) -
	    f), 1.4e-45);
}

static vf
one(vf (*f)(vf), float x)
{
	return f(vf_set1(x));
}

static vf
cdf(vf x)
{
	vf pdf;

	return vf_cdf(x, &pdf);
}

static void
test_exp(void)
{
	double bad = 0, bad2 = 0, bad3, e;
	float x, y;
	int i;

	for (i = 0; i < 2000000; i++) {
		x = -110 + 200 * (float)i / 2000000;
		e = ulps(one(vf_exp, x)[0], exp(x));
		bad = worse(bad, e);
		x = -124.9f + 126 * (float)i / 2000000;
		e = fabs(one(vf_exp2_soft, x)[0] / exp2(x) - 1);
		bad2 = e > bad2 ? e : bad2;
	}
	ok(bad <= 2, "exp within 2 ulp on -110 .. 90: %.2f", bad);
	for (i = 0, bad3 = 0; i < 1000000; i++) {
		x = expf(-80 + 160 * (float)i / 1000000);
		e = fabs(one(vf_log, x)[0] - log(x));
		e /= 1e-7 + 2e-7 * fabs(log(x));
		bad3 = e > bad3 ? e : bad3;
	}
	ok(bad3 <= 1 && one(vf_log, 1)[0] == 0 && isnan(one(vf_log, NAN)[0]),
	    "log: %.2f of the allowed", bad3);
	ok(bad2 <= 2.5e-7, "exp2_soft: relative error %.2g", bad2);
	ok(isnan(one(vf_exp, NAN)[0]) && isnan(one(vf_exp, -NAN)[0]) &&
	    isnan(one(vf_exp2_soft, NAN)[0]), "exp of NaN is NaN");
	y = INFINITY;
	ok(one(vf_exp, y)[0] == y && one(vf_exp, -y)[0] == 0 &&
	    one(vf_exp, 0)[0] == 1 && one(vf_exp, 200)[0] == y &&
	    one(vf_exp, 88.7f)[0] < y, "exp of 0, Inf and beyond");
	ok(one(vf_exp2_soft, -y)[0] == 0 && one(vf_exp2_soft, -1e30f)[0] == 0,
	    "a masked key weighs exactly 0");
}

static void
test_normal(void)
{
	double cdf_bad = 0, sig_bad = 0, e;
	float x, y = INFINITY;
	int i;

	for (i = -1000000; i <= 1000000; i++) {
		x = (float)i * 1.2e-5f;
		e = fabs(one(cdf, x)[0] / (0.5 * erfc(-x / sqrt(2))) - 1);
		e /= 5e-7 + x * x * 6e-8;
		cdf_bad = worse(cdf_bad, e);
		x *= 5;
		e = fabs(one(vf_sigmoid, x)[0] * (1 + exp(-x)) - 1);
		sig_bad = worse(sig_bad, e);
	}
	ok(cdf_bad <= 1, "normal distribution: %.2f of the allowed", cdf_bad);
	ok(sig_bad <= 3e-7, "sigmoid: relative error %.2g", sig_bad);
	ok(isnan(one(vf_sigmoid, NAN)[0]) && isnan(one(cdf, NAN)[0]),
	    "NaN comes through");
	ok(one(cdf, y)[0] == 1 && one(cdf, -y)[0] == 0 &&
	    one(vf_sigmoid, y)[0] == 1 && one(vf_sigmoid, -y)[0] == 0,
	    "the ends");
}

/* Each f16 to f32 and back, and rounding of everything between. */
static void
test_f16(void)
{
	uint16_t h[VL], back[VL];
	int bad = 0, wrong = 0, j;
	uint32_t i;
	float a, b;

	for (i = 0; i < 65536; i += VL) {
		for (j = 0; j < VL; j++)
			h[j] = (uint16_t)(i + (uint32_t)j);
		vf_store_f16(back, vf_load_f16(h));
		for (j = 0; j < VL; j++)
			bad += back[j] != h[j] && !((h[j] & 0x7fff) > 0x7c00 &&
			    back[j] == (h[j] | 0x200));
	}
	ok(bad == 0, "every f16 comes back from f32");
	/* between neighbours: the nearer, in the middle the even one */
	for (i = 0; i < 0x7bff; i++) {
		a = f16_to_f32((uint16_t)i);
		b = f16_to_f32((uint16_t)(i + 1));
		wrong += f32_to_f16(a + (b - a) * 0.49f) != i;
		wrong += f32_to_f16(a + (b - a) * 0.51f) != i + 1;
		wrong += f32_to_f16(a + (b - a) * 0.5f) != i + (i & 1);
	}
	ok(wrong == 0, "f32 to f16 rounds to nearest even: %d wrong", wrong);
	ok(f32_to_f16(65519.9f) == 0x7bff && f32_to_f16(65520) == 0x7c00 &&
	    f32_to_f16(-1e9f) == 0xfc00 && f32_to_f16(1e-9f) == 0 &&
	    (f32_to_f16(NAN) & 0x7fff) > 0x7c00, "ends of f16");
}

static void
test_bf16(void)
{
	float x[VL] = {0};
	uint16_t h[VL];
	int bad = 0, i;
	uint32_t u;

	for (i = 0; i < 4000000; i++) {
		u = (uint32_t)i * 1073 + 12345;
		memcpy(x, &u, 4);
		vf_store_bf16(h, vf_load(x));
		bad += h[0] != f32_to_bf16(x[0]);
		/* the bits below decide; ties go to the even one */
		if (isfinite(x[0]))
			bad += (u + 0x7fff + (u >> 16 & 1)) >> 16 != h[0];
		else
			bad += isnan(x[0]) != isnan(bf16_to_f32(h[0]));
	}
	ok(bad == 0, "f32 to bf16 rounds to nearest even, NaN stays NaN");
}

/* The activations of a level on one range of x. */
static void
test_level(lpo_backend *be, const char *level)
{
	enum { N = 40001 };
	float *x = guarded(be, N * sizeof(*x)), *y = guarded(be,
	    N * sizeof(*y));
	double gelu = 0, silu = 0, e;
	int i;

	for (i = 0; i < N; i++)
		x[i] = (float)(i - N / 2) * 6e-4f;
	be->k->act_fwd(be, LPO_F32, LPO_GELU, y, x, N);
	for (i = 0; i < N; i++) {
		e = 0.5 * x[i] * erfc(-x[i] / sqrt(2));
		e = fabs(y[i] - e) / (1e-9 + fabs(e) * (6e-7 + x[i] * x[i] *
		    6e-8));
		gelu = e > gelu ? e : gelu;
	}
	be->k->act_fwd(be, LPO_F32, LPO_SILU, y, x, N);
	for (i = 0; i < N; i++) {
		e = x[i] / (1 + exp(-(double)x[i]));
		e = fabs(y[i] - e) / (1e-9 + fabs(e) * 4e-7);
		silu = e > silu ? e : silu;
	}
	ok(gelu <= 1 && silu <= 1, "%s: gelu and silu in relative terms, "
	    "%.2f and %.2f of the allowed", level, gelu, silu);
	dev_free(be, x);
	dev_free(be, y);
}

/*
 * SiLU and GELU of every bf16 value with the magnitudes they are meant for,
 * in bf16: half a unit, and 3 % of that for the formula.  NaN and the ends
 * behave.
 */
static void
test_cpu_level_bf16(lpo_backend *be, const char *level)
{
	enum { N = 65536 };
	static const enum lpo_act acts[] = { LPO_SILU, LPO_GELU };
	double bad[2] = { 0, 0 }, v, want, e;
	int i, k, good = 1;
	uint16_t *x, *y;

	if (on_cuda(be))
		return;
	x = guarded(be, N * 2);
	y = guarded(be, N * 2);
	for (i = 0; i < N; i++)
		x[i] = (uint16_t)i;
	for (k = 0; k < 2; k++) {
		be->k->act_fwd(be, LPO_BF16, acts[k], y, x, N);
		for (i = 0; i < N; i++) {
			v = half_float(x[i]);
			if (isnan(v) || v == INFINITY)
				good &= isnan(v) ? isnan(half_float(y[i])) :
				    half_float(y[i]) == INFINITY;
			if (v < -87)
				good &= fabs(half_float(y[i])) < 2e-36;
			if (!(fabs(v) <= (k == 0 ? 86 : 12.8)) ||
			    fabs(v) < 1e-36)
				continue;
			want = k == 0 ? v / (1 + exp(-v)) :
			    0.5 * v * erfc(-v / sqrt(2));
			e = fabs(half_float(y[i]) - want) /
			    ldexp(1, ilogb(want) - 8);
			bad[k] = e > bad[k] ? e : bad[k];
		}
	}
	ok(good && bad[0] <= 1.03 && bad[1] <= 1.03, "%s: silu and gelu in "
	    "bf16, %.3f and %.3f half units, NaN and the ends", level, bad[0],
	    bad[1]);
	dev_free(be, x);
	dev_free(be, y);
}

int
main(void)
{
	test_exp();
	test_normal();
	test_f16();
	test_bf16();
	each_level(test_level);
	each_level(test_cpu_level_bf16);
	return done_testing();
}
