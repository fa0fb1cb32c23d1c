/*
 * Ops on flat arrays: activations, GEGLU, sums, guidance, conversion, AdamW.
 * Each cuts its array into fixed chunks; a chunk is one thread's.
 */
#include "kernels/load.h"
#include "kernels/levels.h"

#include <math.h>

enum {
	CHUNK = 8192,		/* elements; a multiple of every VL */
	SERIAL = 4 * CHUNK,	/* below this a parallel region costs more */
	SUM_SLICES = 64
};

static inline int64_t
min64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static inline vf
act_value(enum lpo_act f, vf x)
{
	vf pdf;

	switch (f) {
	case LPO_SILU:
		return x * vf_sigmoid(x);
	case LPO_GELU:
		return x * vf_cdf(x, &pdf);
	case LPO_QUICK_GELU:
		return x * vf_sigmoid(1.702f * x);
	case LPO_RELU:
		return vf_select(x < 0.0f, (vf){0}, x);
	}
	return x;
}

static inline vf
act_slope(enum lpo_act f, vf x)
{
	vf s, pdf;

	switch (f) {
	case LPO_SILU:
		s = vf_sigmoid(x);
		return s * vf_fma(x, 1.0f - s, vf_set1(1.0f));
	case LPO_GELU:
		s = vf_cdf(x, &pdf);
		return vf_fma(x, pdf, s);
	case LPO_QUICK_GELU:
		s = vf_sigmoid(1.702f * x);
		return s * vf_fma(1.702f * x, 1.0f - s, vf_set1(1.0f));
	case LPO_RELU:
		return vf_select(x <= 0.0f, (vf){0}, vf_set1(1.0f));
	}
	return x;
}

int
LPO_FN(lpo_act_fwd)(lpo_backend *b, enum lpo_dtype dt, enum lpo_act f,
    void *y, const void *x, int64_t count)
{
	int64_t at;

	(void)b;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK) {
		int64_t i, end = min64(at + CHUNK, count);

		for (i = at; i < end; i += VL)
			vst(dt, y, i, end, act_value(f, vld(dt, x, i, end)));
	}
	return 0;
}

int
LPO_FN(lpo_act_bwd)(lpo_backend *b, enum lpo_dtype dt, enum lpo_act f,
    void *dx, const void *dy, const void *x, int64_t count, int add)
{
	int64_t at;

	(void)b;
	if (dx == NULL)
		return 0;
	begin_grad(dt, dx, count, add);
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK) {
		int64_t i, end = min64(at + CHUNK, count);

		for (i = at; i < end; i += VL)
			vacc_fma(dt, dx, i, end, vld(dt, dy, i, end),
			    act_slope(f, vld(dt, x, i, end)));
	}
	return 0;
}

int
LPO_FN(lpo_geglu_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    const void *x, int64_t m, int64_t c)
{
	int64_t r;

	(void)b;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r++) {
		const void *xa = elem(dt, x, 2 * r * c);
		const void *xg = elem(dt, x, (2 * r + 1) * c);
		void *yr = elem(dt, y, r * c);
		int64_t i;

		for (i = 0; i < c; i += VL)
			vst(dt, yr, i, c, vld(dt, xa, i, c) *
			    act_value(LPO_GELU, vld(dt, xg, i, c)));
	}
	return 0;
}

int
LPO_FN(lpo_geglu_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    const void *dy, const void *x, int64_t m, int64_t c, int add)
{
	int64_t r;

	(void)b;
	if (dx == NULL)
		return 0;
	begin_grad(dt, dx, 2 * m * c, add);
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r++) {
		const void *xa = elem(dt, x, 2 * r * c);
		const void *xg = elem(dt, x, (2 * r + 1) * c);
		const void *dyr = elem(dt, dy, r * c);
		void *da = elem(dt, dx, 2 * r * c);
		void *dg = elem(dt, dx, (2 * r + 1) * c);
		vf g, cdf, pdf, d;
		int64_t i;

		for (i = 0; i < c; i += VL) {
			d = vld(dt, dyr, i, c);
			g = vld(dt, xg, i, c);
			cdf = vf_cdf(g, &pdf);
			vacc_fma(dt, da, i, c, d, g * cdf);
			vacc_fma(dt, dg, i, c, d * vld(dt, xa, i, c),
			    vf_fma(g, pdf, cdf));
		}
	}
	return 0;
}

int
LPO_FN(lpo_add)(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    const void *b, int64_t count)
{
	int64_t at;

	(void)be;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK) {
		int64_t i, end = min64(at + CHUNK, count);

		for (i = at; i < end; i += VL)
			vst(dt, y, i, end, vld(dt, a, i, end) +
			    vld(dt, b, i, end));
	}
	return 0;
}

int
LPO_FN(lpo_acc)(lpo_backend *b, enum lpo_dtype dt, void *y, const void *a,
    int64_t count)
{
	return LPO_FN(lpo_add)(b, dt, y, y, a, count);
}

int
LPO_FN(lpo_guide_fwd)(lpo_backend *b, float *y, const float *x, float g,
    int64_t groups, int64_t r, int64_t c)
{
	int64_t len = r * c, k;

	(void)b;
#pragma omp parallel for schedule(static) if (groups * len > SERIAL)
	for (k = 0; k < groups; k++) {
		const float *xc = x + 2 * k * len, *xu = xc + len;
		int64_t i;
		vf u;

		for (i = 0; i < len; i += VL) {
			u = vld(LPO_F32, xu, i, len);
			u = vf_fma(vld(LPO_F32, xc, i, len) - u, vf_set1(g), u);
			vst(LPO_F32, y + k * len, i, len, u);
		}
	}
	return 0;
}

int
LPO_FN(lpo_guide_bwd)(lpo_backend *b, float *dx, const float *dy, float g,
    int64_t groups, int64_t r, int64_t c, int add)
{
	int64_t len = r * c, k;

	(void)b;
	if (dx == NULL)
		return 0;
	begin_grad(LPO_F32, dx, 2 * groups * len, add);
#pragma omp parallel for schedule(static) if (groups * len > SERIAL)
	for (k = 0; k < groups; k++) {
		float *dc = dx + 2 * k * len, *du = dc + len;
		int64_t i;
		vf d;

		for (i = 0; i < len; i += VL) {
			d = vld(LPO_F32, dy + k * len, i, len);
			vacc_fma(LPO_F32, dc, i, len, d, vf_set1(g));
			vacc_fma(LPO_F32, du, i, len, d, vf_set1(1.0f - g));
		}
	}
	return 0;
}

static int
can_convert(enum lpo_dtype dt)
{
	return dt == LPO_F32 || dt == LPO_BF16 || dt == LPO_F16;
}

/*
 * Every pair passes through f32, which holds bf16 and f16 exactly: so there
 * is one rounding.
 */
int
LPO_FN(lpo_convert)(lpo_backend *b, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t count)
{
	int64_t at;

	(void)b;
	if (!can_convert(dst_dt) || !can_convert(src_dt))
		return LPO_EINVAL;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK) {
		int64_t i, end = min64(at + CHUNK, count);

		if (dst_dt == src_dt) {
			memcpy(elem(dst_dt, dst, at), elem(src_dt, src, at),
			    (size_t)((end - at) * elem_bytes(dst_dt)));
			continue;
		}
		for (i = at; i < end; i += VL)
			vst(dst_dt, dst, i, end, vld(src_dt, src, i, end));
	}
	return 0;
}

int
LPO_FN(lpo_convert_acc)(lpo_backend *b, void *dst, enum lpo_dtype dst_dt,
    const void *src, enum lpo_dtype src_dt, int64_t count)
{
	int64_t at;

	(void)b;
	if (!can_convert(dst_dt) || !can_convert(src_dt))
		return LPO_EINVAL;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK) {
		int64_t i, end = min64(at + CHUNK, count);

		for (i = at; i < end; i += VL)
			vacc(dst_dt, dst, i, end, vld(src_dt, src, i, end));
	}
	return 0;
}

/*
 * torch.optim.AdamW:
 *	p *= 1 - lr wd
 *	m += (g - m) (1 - beta1);  v = beta2 v + (1 - beta2) g^2
 *	p -= (lr / bc1) * (m / (sqrt(v) / sqrt(bc2) + eps))
 * The corrections are taken in f64: 1 - beta^step cancels for early steps.
 */
static void
adamw_one(const struct lpo_adamw_tensor *t, const struct lpo_adamw *o)
{
	float w1 = (float)(1.0 - (double)o->beta1), b2 = o->beta2;
	float w2 = (float)(1.0 - (double)b2), scale = o->grad_scale;
	float decay = (float)(1.0 - (double)o->lr * (double)o->weight_decay);
	float step = (float)(o->lr / (1.0 - pow(o->beta1, (double)o->step)));
	float root = (float)sqrt(1.0 - pow(b2, (double)o->step));
	float eps = o->eps, *p = t->p, *m = t->m, *v = t->v;
	const float *g = t->g;
	int64_t count = t->count, at;

#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK) {
		int64_t i, end = min64(at + CHUNK, count);
		vf gv, mv, vv, pv;

		for (i = at; i < end; i += VL) {
			gv = vf_mul(vld(LPO_F32, g, i, end), vf_set1(scale));
			mv = vld(LPO_F32, m, i, end);
			vv = vld(LPO_F32, v, i, end);
			pv = vf_mul(vld(LPO_F32, p, i, end), vf_set1(decay));
			mv = vf_fma(gv - mv, vf_set1(w1), mv);
			vv = vf_fma(w2 * gv, gv, vf_mul(vv, vf_set1(b2)));
			pv = vf_fnma(mv / (vf_sqrt(vv) / root + eps),
			    vf_set1(step), pv);
			vst(LPO_F32, m, i, end, mv);
			vst(LPO_F32, v, i, end, vv);
			vst(LPO_F32, p, i, end, pv);
		}
	}
}

int
LPO_FN(lpo_adamw)(lpo_backend *b, const struct lpo_adamw_tensor *t,
    int64_t n, const struct lpo_adamw *o)
{
	int64_t i;
	int rc = 0;

	for (i = 0; i < n && rc == 0; i++) {
		adamw_one(&t[i], o);
		if (t[i].w != t[i].p)
			rc = LPO_FN(lpo_convert)(b, t[i].w, t[i].w_dt, t[i].p,
			    LPO_F32, t[i].count);
	}
	return rc;
}

/* Sum of x^2 over [from, to) in 8 f64 lanes, added lane by lane. */
static double
slice_squares(const float *x, int64_t from, int64_t to)
{
	double s[8] = {0}, d;
	int64_t i, j;

	for (i = from; i + 8 <= to; i += 8)
		for (j = 0; j < 8; j++) {
			d = x[i + j];
			s[j] += d * d;
		}
	for (j = 0; i < to; i++, j++) {
		d = x[i];
		s[j] += d * d;
	}
	return ((s[0] + s[1]) + (s[2] + s[3])) +
	    ((s[4] + s[5]) + (s[6] + s[7]));
}

/* The cuts depend on count alone, so the bits do not depend on threads. */
static double
sum_squares_one(const float *x, int64_t count)
{
	int64_t size = (count + SUM_SLICES - 1) / SUM_SLICES, k;
	double part[SUM_SLICES], sum = 0.0;

#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (k = 0; k < SUM_SLICES; k++)
		part[k] = slice_squares(x, min64(k * size, count),
		    min64((k + 1) * size, count));
	for (k = 0; k < SUM_SLICES; k++)
		sum += part[k];
	return sum;
}

int
LPO_FN(lpo_sum_squares)(lpo_backend *b, double *out, const float *const *x,
    const int64_t *count, int64_t n)
{
	int64_t i;

	(void)b;
	*out = 0.0;
	for (i = 0; i < n; i++)
		*out += sum_squares_one(x[i], count[i]);
	return 0;
}
