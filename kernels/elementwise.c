/*
 * Ops on flat arrays: activations, GEGLU, sums, guidance, conversion, AdamW.
 * Each cuts its array into fixed chunks; a chunk is one thread's.
 */
#include "kernels/ints.h"
#include "kernels/load.h"
#include "kernels/levels.h"

#include <math.h>

enum {
	CHUNK = 8192,		/* elements; a multiple of every VL */
	SERIAL = 4 * CHUNK,	/* below this a parallel region costs more */
	SUM_SLICES = 64
};

/* What becomes bf16 needs no more digits than that has. */
inlined vf
act_value(enum lpo_dtype dt, enum lpo_act f, vf x)
{
	vf pdf;

	switch (f) {
	case LPO_SILU:
		return dt == LPO_BF16 ? vf_silu_bf16(x) : x * vf_sigmoid(x);
	case LPO_GELU:
		return dt == LPO_BF16 ? vf_gelu_bf16(x) : x * vf_cdf(x, &pdf);
	case LPO_QUICK_GELU:
		return x * vf_sigmoid(1.702f * x);
	case LPO_RELU:
		return vf_select(x < 0.0f, (vf){0}, x);
	}
	return x;
}

inlined vf
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

/* The loop `piece` with f a constant, as BY_DTYPE does for dt. */
#define BY_ACT(f, piece, ...)						\
	((f) == LPO_SILU ? piece(LPO_SILU, __VA_ARGS__) :		\
	(f) == LPO_GELU ? piece(LPO_GELU, __VA_ARGS__) :		\
	(f) == LPO_QUICK_GELU ? piece(LPO_QUICK_GELU, __VA_ARGS__) :	\
	piece(LPO_RELU, __VA_ARGS__))

inlined void
act_vec(int64_t i, int64_t n, enum lpo_dtype dt, enum lpo_act f, void *y,
    const void *x)
{
	vst_n(dt, y, i, n, act_value(dt, f, vld_n(dt, x, i, n)));
}

inlined void
act_piece(enum lpo_act f, enum lpo_dtype dt, void *y, const void *x,
    int64_t n)
{
	int64_t i;

	BY_VEC(i, n, act_vec, dt, f, y, x);
}

inlined void
act_some(enum lpo_dtype dt, enum lpo_act f, void *y, const void *x, int64_t n)
{
	BY_ACT(f, act_piece, dt, y, x, n);
}

int
LPO_FN(lpo_act_fwd)(lpo_backend *b, enum lpo_dtype dt, enum lpo_act f,
    void *y, const void *x, int64_t count)
{
	int64_t at;

	(void)b;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK)
		BY_DTYPE(dt, act_some, f, elem(dt, y, at), elem(dt, x, at),
		    min64(CHUNK, count - at));
	return 0;
}

inlined void
slope_vec(int64_t i, int64_t n, enum lpo_dtype dt, enum lpo_act f, void *dx,
    const void *dy, const void *x, int add)
{
	vput_fma(dt, add, dx, i, n, vld_n(dt, dy, i, n),
	    act_slope(f, vld_n(dt, x, i, n)));
}

inlined void
slope_piece(enum lpo_act f, enum lpo_dtype dt, void *dx, const void *dy,
    const void *x, int64_t n, int add)
{
	int64_t i;

	if (add)
		BY_VEC(i, n, slope_vec, dt, f, dx, dy, x, 1);
	else
		BY_VEC(i, n, slope_vec, dt, f, dx, dy, x, 0);
}

inlined void
slope_some(enum lpo_dtype dt, enum lpo_act f, void *dx, const void *dy,
    const void *x, int64_t n, int add)
{
	BY_ACT(f, slope_piece, dt, dx, dy, x, n, add);
}

int
LPO_FN(lpo_act_bwd)(lpo_backend *b, enum lpo_dtype dt, enum lpo_act f,
    void *dx, const void *dy, const void *x, int64_t count, int add)
{
	int64_t at;

	(void)b;
	if (dx == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK)
		BY_DTYPE(dt, slope_some, f, elem(dt, dx, at),
		    elem(dt, dy, at), elem(dt, x, at),
		    min64(CHUNK, count - at), add);
	return 0;
}

inlined void
geglu_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *y, const void *xa,
    const void *xg)
{
	vst_n(dt, y, i, n, vld_n(dt, xa, i, n) *
	    act_value(dt, LPO_GELU, vld_n(dt, xg, i, n)));
}

inlined void
geglu_row(enum lpo_dtype dt, void *y, const void *x, int64_t c)
{
	int64_t i;

	BY_VEC(i, c, geglu_vec, dt, y, x, elem(dt, x, c));
}

int
LPO_FN(lpo_geglu_fwd)(lpo_backend *b, enum lpo_dtype dt, void *y,
    const void *x, int64_t m, int64_t c)
{
	int64_t r;

	(void)b;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r++)
		BY_DTYPE(dt, geglu_row, elem(dt, y, r * c),
		    elem(dt, x, 2 * r * c), c);
	return 0;
}

/* da (+)= dy gelu(g), dg (+)= dy a gelu'(g) */
inlined void
geglu_dx_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *da, void *dg,
    const void *dy, const void *xa, const void *xg, int add)
{
	vf d = vld_n(dt, dy, i, n), g = vld_n(dt, xg, i, n), pdf;
	vf cdf = vf_cdf(g, &pdf);

	vput_fma(dt, add, da, i, n, d, g * cdf);
	vput_fma(dt, add, dg, i, n, d * vld_n(dt, xa, i, n),
	    vf_fma(g, pdf, cdf));
}

inlined void
geglu_dx_row(enum lpo_dtype dt, void *dx, const void *dy, const void *x,
    int64_t c, int add)
{
	void *dg = elem(dt, dx, c);
	const void *g = elem(dt, x, c);
	int64_t i;

	if (add)
		BY_VEC(i, c, geglu_dx_vec, dt, dx, dg, dy, x, g, 1);
	else
		BY_VEC(i, c, geglu_dx_vec, dt, dx, dg, dy, x, g, 0);
}

int
LPO_FN(lpo_geglu_bwd)(lpo_backend *b, enum lpo_dtype dt, void *dx,
    const void *dy, const void *x, int64_t m, int64_t c, int add)
{
	int64_t r;

	(void)b;
	if (dx == NULL)
		return 0;
#pragma omp parallel for schedule(static) if (m * c > SERIAL)
	for (r = 0; r < m; r++)
		BY_DTYPE(dt, geglu_dx_row, elem(dt, dx, 2 * r * c),
		    elem(dt, dy, r * c), elem(dt, x, 2 * r * c), c, add);
	return 0;
}

inlined void
add_vec(int64_t i, int64_t n, enum lpo_dtype dt, void *y, const void *a,
    const void *b)
{
	vst_n(dt, y, i, n, vld_n(dt, a, i, n) + vld_n(dt, b, i, n));
}

inlined void
add_some(enum lpo_dtype dt, void *y, const void *a, const void *b, int64_t n)
{
	int64_t i;

	BY_VEC(i, n, add_vec, dt, y, a, b);
}

int
LPO_FN(lpo_add)(lpo_backend *be, enum lpo_dtype dt, void *y, const void *a,
    const void *b, int64_t count)
{
	int64_t at;

	(void)be;
#pragma omp parallel for schedule(static) if (count > SERIAL)
	for (at = 0; at < count; at += CHUNK)
		BY_DTYPE(dt, add_some, elem(dt, y, at), elem(dt, a, at),
		    elem(dt, b, at), min64(CHUNK, count - at));
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
#pragma omp parallel for schedule(static) if (groups * len > SERIAL)
	for (k = 0; k < groups; k++) {
		float *dc = dx + 2 * k * len, *du = dc + len;
		int64_t i;
		vf d;

		for (i = 0; i < len; i += VL) {
			int64_t w = min64(VL, len - i);

			d = vld_n(LPO_F32, dy + k * len, i, w);
			vput_fma(LPO_F32, add, dc, i, w, d, vf_set1(g));
			vput_fma(LPO_F32, add, du, i, w, d,
			    vf_set1(1.0f - g));
		}
	}
	return 0;
}

static int
can_convert(enum lpo_dtype dt)
{
	return dt == LPO_F32 || dt == LPO_BF16 || dt == LPO_F16;
}

inlined void
convert_vec(int64_t i, int64_t n, enum lpo_dtype src_dt, void *dst,
    enum lpo_dtype dst_dt, const void *src, int add)
{
	vput(dst_dt, add, dst, i, n, vld_n(src_dt, src, i, n));
}

inlined void
convert_pair(enum lpo_dtype src_dt, void *dst, enum lpo_dtype dst_dt,
    const void *src, int64_t n, int add)
{
	int64_t i;

	if (add)
		BY_VEC(i, n, convert_vec, src_dt, dst, dst_dt, src, 1);
	else
		BY_VEC(i, n, convert_vec, src_dt, dst, dst_dt, src, 0);
}

inlined void
convert_some(enum lpo_dtype dst_dt, void *dst, enum lpo_dtype src_dt,
    const void *src, int64_t n, int add)
{
	if (src_dt == LPO_F32)
		convert_pair(LPO_F32, dst, dst_dt, src, n, add);
	else if (src_dt == LPO_BF16)
		convert_pair(LPO_BF16, dst, dst_dt, src, n, add);
	else
		convert_pair(LPO_F16, dst, dst_dt, src, n, add);
}

/*
 * dst = src or, if `add`, dst += src.  Every pair passes through f32, which
 * holds bf16 and f16 exactly: so there is one rounding.
 */
static void
convert_any(void *dst, enum lpo_dtype dst_dt, const void *src,
    enum lpo_dtype src_dt, int64_t n, int add)
{
	if (dst_dt == LPO_F32)
		convert_some(LPO_F32, dst, src_dt, src, n, add);
	else if (dst_dt == LPO_BF16)
		convert_some(LPO_BF16, dst, src_dt, src, n, add);
	else
		convert_some(LPO_F16, dst, src_dt, src, n, add);
}

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
		int64_t n = min64(CHUNK, count - at);
		void *to = elem(dst_dt, dst, at);
		const void *from = elem(src_dt, src, at);

		if (dst_dt == src_dt)
			memcpy(to, from, (size_t)(n * elem_bytes(dst_dt)));
		else
			convert_any(to, dst_dt, from, src_dt, n, 0);
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
	for (at = 0; at < count; at += CHUNK)
		convert_any(elem(dst_dt, dst, at), dst_dt,
		    elem(src_dt, src, at), src_dt, min64(CHUNK, count - at),
		    1);
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
