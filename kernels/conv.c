/*
 * Convolution as implicit products over channels-last rows: a row of A is the
 * patch of one output pixel, fetched block by block; nothing of the size of
 * all patches is ever in memory.  The backward pass to the input gathers: a
 * pixel of dx collects the pixels of dy that it was read for.
 */
#include "kernels/gemm.h"
#include "kernels/ints.h"
#include "kernels/levels.h"

/*
 * Columns c0 .. c0+nc-1 of line `t` of a patch (its tw * c values, contiguous
 * in the image) whose first pixel is (ih, iw) of image n; zeros outside.
 */
static void
patch_line(const struct lpo_src *s, float *dst, int64_t n, int64_t ih,
    int64_t iw, int64_t c0, int64_t nc)
{
	int64_t lo = max64(c0, -iw * s->c), hi = c0 + nc;

	hi = min64(hi, (s->w - iw) * s->c);
	if (ih < 0 || ih >= s->h || hi <= lo) {
		memset(dst, 0, (size_t)nc * 4);
		return;
	}
	if (lo > c0)
		memset(dst, 0, (size_t)(lo - c0) * 4);
	lpo_widen(dst + (lo - c0), s->base, s->dt,
	    ((n * s->h + ih) * s->w + iw) * s->c + lo, hi - lo);
	if (hi < c0 + nc)
		memset(dst + (hi - c0), 0, (size_t)(c0 + nc - hi) * 4);
}

/* Rows are output pixels, columns (tap line, tap, channel). */
static void
fetch_patches(const struct lpo_src *s, float *dst, int64_t ld, int64_t r0,
    int64_t nr, int64_t c0, int64_t nc)
{
	int64_t line = s->tw * s->c, n = r0 / (s->p * s->q);
	int64_t p = r0 / s->q % s->p, q = r0 % s->q;
	int64_t r, t, c, len;

	for (r = 0; r < nr; r++, dst += ld) {
		t = c0 / line;
		c = c0 % line;
		for (int64_t at = 0; at < nc; at += len, t++, c = 0) {
			len = min64(line - c, nc - at);
			patch_line(s, dst + at, n, p * s->stride + s->off_h + t,
			    q * s->stride + s->off_w, c, len);
		}
		if (++q < s->q)
			continue;
		q = 0;
		if (++p == s->p) {
			p = 0;
			n++;
		}
	}
}

/*
 * The weight seen from the input: row ((t, u), co) is the ci values of tap
 * (i0 - t step, j0 - u step) of output channel co.
 */
static void
fetch_weight(const struct lpo_src *s, float *dst, int64_t ld, int64_t r0,
    int64_t nr, int64_t c0, int64_t nc)
{
	int64_t r, tap, o, i, j;

	for (r = r0; r < r0 + nr; r++, dst += ld) {
		tap = r / s->co;
		o = r % s->co;
		i = s->i0 - tap / s->tw * s->step;
		j = s->j0 - tap % s->tw * s->step;
		lpo_widen(dst, s->base, s->dt,
		    ((o * s->kh + i) * s->kw + j) * s->c + c0, nc);
	}
}

/* Patches of x under the output pixels. */
static struct lpo_src
patches(const struct lpo_conv_shape *s, enum lpo_dtype dt, const void *x)
{
	struct lpo_src a = { .base = x, .dt = dt };

	a.fetch = fetch_patches;
	a.h = s->h;
	a.w = s->w;
	a.c = s->ci;
	a.p = s->ho;
	a.q = s->wo;
	a.th = s->kh;
	a.tw = s->kw;
	a.stride = s->stride;
	a.off_h = -s->pad_top;
	a.off_w = -s->pad_left;
	return a;
}

int
LPO_FN(lpo_conv_fwd)(lpo_backend *be, enum lpo_dtype dt, void *y,
    const void *x, const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s, void *scratch)
{
	int64_t m = s->n * s->ho * s->wo, k = s->kh * s->kw * s->ci;
	struct lpo_src a = patches(s, dt, x);
	struct lpo_src b = { .base = w, .dt = dt, .ld = k };
	int rc;

	if (lpo_conv_is_linear(s))
		return LPO_FN(lpo_linear_fwd)(be, dt, y, x, w, bias, residual,
		    m, s->co, s->ci, 1, scratch);
	if (LPO_FN(lpo_winograd)(be, LPO_FWD, dt, y, x, w, bias, residual, s,
	    scratch))
		return 0;
	rc = LPO_FN(lpo_conv_strips)(be, LPO_FWD, dt, y, x, w, bias, residual,
	    s, scratch);
	if (rc != 0)
		return rc < 0 ? rc : 0;
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){ .m = m, .n = s->co, .k = k,
	    .a = &a, .b = &b, .b_transposed = 1,
	    .y = { y, dt, 1, m, 0, 0, s->co }, .bias = bias, .more = residual,
	    .alpha = 1, .threads = be->threads, .scratch = scratch });
	return 0;
}

/*
 * One axis of the backward pass.  Input positions x = stride * p + phase are
 * reached by the taps first, first + stride, ...: y = (x + pad - tap) / stride.
 * Walking the taps downwards makes y grow: y = p + off + t.
 */
struct phase {
	int64_t size;		/* positions p */
	int64_t taps, last;	/* how many, and the largest */
	int64_t off;
};

static struct phase
make_phase(int64_t phase, int64_t size, int64_t stride, int64_t pad,
    int64_t kernel)
{
	int64_t first = (phase + pad) % stride;
	struct phase f;

	f.size = size > phase ? (size - phase - 1) / stride + 1 : 0;
	f.taps = first < kernel ? (kernel - 1 - first) / stride + 1 : 0;
	f.last = first + (f.taps - 1) * stride;
	f.off = (phase + pad - first) / stride - (f.taps - 1);
	return f;
}

/* dx of the pixels of one phase: a convolution of dy with some of the taps */
static void
bwd_data_phase(lpo_backend *be, enum lpo_dtype dt, void *dx, const void *dy,
    const void *w, const struct lpo_conv_shape *s, int64_t ph, int64_t pw,
    int add, void *scratch)
{
	struct phase v = make_phase(ph, s->h, s->stride, s->pad_top, s->kh);
	struct phase u = make_phase(pw, s->w, s->stride, s->pad_left, s->kw);
	struct lpo_src a = { .fetch = fetch_patches, .base = dy, .dt = dt,
	    .h = s->ho, .w = s->wo, .c = s->co, .p = v.size, .q = u.size,
	    .th = v.taps, .tw = u.taps, .stride = 1, .off_h = v.off,
	    .off_w = u.off };
	struct lpo_src b = { .fetch = fetch_weight, .base = w, .dt = dt,
	    .c = s->ci, .tw = u.taps, .co = s->co, .kh = s->kh, .kw = s->kw,
	    .i0 = v.last, .j0 = u.last, .step = s->stride };
	void *base = (char *)dx + (ph * s->w + pw) * s->ci *
	    (int64_t)lpo_dtype_bytes(dt);

	if (v.size * u.size * v.taps * u.taps <= 0)
		return;
	LPO_FN(lpo_gemm)(&(struct lpo_gemm){
	    .m = s->n * v.size * u.size, .n = s->ci,
	    .k = v.taps * u.taps * s->co, .a = &a, .b = &b,
	    .y = { base, dt, v.size, u.size, s->h * s->w * s->ci,
	    s->stride * s->w * s->ci, s->stride * s->ci }, .alpha = 1,
	    .more = add ? base : NULL, .threads = be->threads,
	    .scratch = scratch });
}

int
LPO_FN(lpo_conv_bwd_data)(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, const struct lpo_conv_shape *s, int add,
    void *scratch)
{
	int64_t ph, pw;
	int rc;

	if (lpo_conv_is_linear(s))
		return LPO_FN(lpo_linear_bwd_data)(be, dt, dx, dy, w, s->n *
		    s->h * s->w, s->co, s->ci, 1, add, scratch);
	if (LPO_FN(lpo_winograd)(be, LPO_BWD_DATA, dt, dx, dy, w, NULL,
	    add ? dx : NULL, s, scratch))
		return 0;
	rc = LPO_FN(lpo_conv_strips)(be, LPO_BWD_DATA, dt, dx, dy, w, NULL,
	    add ? dx : NULL, s, scratch);
	if (rc != 0)
		return rc < 0 ? rc : 0;
	/* a phase that no tap reaches is left out below */
	if (!add && s->stride > 1) {
		memset(dx, 0, (size_t)(s->n * s->h * s->w * s->ci) *
		    lpo_dtype_bytes(dt));
		add = 1;
	}
	for (ph = 0; ph < s->stride; ph++)
		for (pw = 0; pw < s->stride; pw++)
			bwd_data_phase(be, dt, dx, dy, w, s, ph, pw, add != 0,
			    scratch);
	return 0;
}

int
LPO_FN(lpo_conv_bwd_weight)(lpo_backend *be, enum lpo_dtype dt, float *dw,
    float *db, const void *dy, const void *x, const struct lpo_conv_shape *s,
    int64_t groups, void *scratch)
{
	int64_t m = s->n * s->ho * s->wo;
	struct lpo_src a = { .base = dy, .dt = dt, .ld = s->co };
	struct lpo_src b = patches(s, dt, x);

	if (groups < 1 || s->n % groups != 0)
		return LPO_EINVAL;
	if (lpo_conv_is_linear(s))
		return LPO_FN(lpo_linear_bwd_weight)(be, dt, dw, db, dy, x, m,
		    s->co, s->ci, 1, groups, scratch);
	if (dw != NULL)
		LPO_FN(lpo_gemm_groups)(&(struct lpo_gemm_groups){
		    .m = s->co, .n = s->kh * s->kw * s->ci,
		    .k = m / groups, .groups = groups, .a = &a, .b = &b,
		    .y = dw, .alpha = 1, .threads = be->threads,
		    .scratch = scratch });
	if (db != NULL)
		LPO_FN(lpo_column_sums)(db, dt, dy, m / groups, s->co, 1,
		    groups, be->threads);
	return 0;
}

size_t
LPO_FN(lpo_conv_scratch_bytes)(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_conv_shape *s, int64_t groups)
{
	int64_t m = s->n * s->ho * s->wo;
	size_t most, one;
	int64_t ph, pw;

	if (lpo_conv_is_linear(s))
		return LPO_FN(lpo_linear_scratch_bytes)(be, pass, dt, m, s->co,
		    s->ci, groups);
	if (pass == LPO_BWD_WEIGHT)
		return LPO_FN(lpo_gemm_groups_scratch_bytes)(be->threads);
	most = LPO_FN(lpo_winograd_scratch_bytes)(be, pass, dt, s);
	if (most > 0)
		return most;
	most = LPO_FN(lpo_conv_strips_scratch_bytes)(be, pass, dt, s);
	if (pass == LPO_FWD) {
		one = LPO_FN(lpo_gemm_scratch_bytes)(m, s->co,
		    s->kh * s->kw * s->ci, be->threads);
		return one > most ? one : most;
	}
	for (ph = 0; ph < s->stride; ph++)
		for (pw = 0; pw < s->stride; pw++) {
			struct phase v = make_phase(ph, s->h, s->stride,
			    s->pad_top, s->kh);
			struct phase u = make_phase(pw, s->w, s->stride,
			    s->pad_left, s->kw);

			/* of one pixel, three phases of four are empty */
			if (v.size == 0 || u.size == 0)
				continue;
			one = LPO_FN(lpo_gemm_scratch_bytes)(s->n * v.size *
			    u.size, s->ci, v.taps * u.taps * s->co,
			    be->threads);
			most = one > most ? one : most;
		}
	return most;
}
