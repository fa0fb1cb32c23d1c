/* Ops on rows of channels: values against f64, bits across threads. */
#include "tests/ops/levels.h"

/*
 * Largest error in units of `rel` of (|want| + 1), and bf16 rounding; sums of
 * many rows have more to lose.
 */
static double
off(const struct buf *b, const double *want, double rel)
{
	double bad = 0, e;
	int64_t i;

	for (i = 0; i < b->count; i++) {
		e = fabs(get(b, i) - want[i]) / (rel * (fabs(want[i]) + 1) +
		    (b->dt == LPO_BF16 ? fabs(want[i]) / 256 : 0));
		bad = worse(bad, e);
	}
	return guard_whole(b) ? bad : INFINITY;
}

/* b as it must be before it is added to, or set; and what counts of it. */
static double *
start(struct buf *b, int add)
{
	double *w = malloc((size_t)b->count * sizeof(double));
	int64_t i;

	buf_start(b, add);
	for (i = 0; i < b->count; i++)
		w[i] = start_of(b, i, add);
	return w;
}

/* The worst of y, f, dr and dx of one shape. */
static void
rows_case(lpo_backend *be, enum lpo_dtype dt, const int64_t shape[3],
    double e[4])
{
	int64_t n = shape[0], hw = shape[1], c = shape[2], j;
	struct buf x = buf_new(be, dt, n * hw * c, 1);
	struct buf y = buf_new(be, dt, n * hw * c, 2);
	struct buf dx = buf_new(be, dt, n * hw * c, 3);
	struct buf r = buf_new(be, dt, n * c, 4);
	struct buf f = buf_new(be, LPO_F32, n * c, 5);
	double *want;
	int add;

	for (add = 0; add < 2; add++) {
		want = start(&dx, add);
		be->k->mean_pool_bwd(be, dt, dx.p, f.p, n, hw, c, add);
		for (j = 0; j < n * hw * c; j++)
			want[j] += f.v[j / (hw * c) * c + j % c] / (double)hw;
		e[3] = worse(e[3], off(&dx, want, 1e-6));
		free(want);
	}
	want = start(&y, 0);
	be->k->add_rows_fwd(be, dt, y.p, x.p, r.p, n, hw, c);
	for (j = 0; j < n * hw * c; j++)
		want[j] = x.v[j] + r.v[j / (hw * c) * c + j % c];
	e[0] = worse(e[0], off(&y, want, 1e-6));
	free(want);
	want = start(&f, 0);
	be->k->mean_pool_fwd(be, dt, f.p, x.p, n, hw, c);
	for (j = 0; j < n * hw * c; j++)
		want[j / (hw * c) * c + j % c] += x.v[j] / (double)hw;
	e[1] = worse(e[1], off(&f, want, 1e-6));
	free(want);
	for (add = 0; add < 2; add++) {
		want = start(&r, add);
		be->k->add_rows_bwd(be, dt, r.p, x.p, n, hw, c, add);
		for (j = 0; j < n * hw * c; j++)
			want[j / (hw * c) * c + j % c] += x.v[j];
		e[2] = worse(e[2], off(&r, want, 1e-5));
		free(want);
	}
	buf_free(&x);
	buf_free(&y);
	buf_free(&r);
	buf_free(&f);
	buf_free(&dx);
}

static void
test_add_rows(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	static const int64_t shapes[][3] = { { 1, 1, 1 }, { 3, 5, 7 },
	    { 2, 131, 80 }, { 5, 64, 129 }, { 2, 4096, 320 }, { 4, 64, 1280 },
	    { 3, 1023, 333 } };
	double e[4] = { 0 };
	int i;

	for (i = 0; i < (on_cuda(be) ? 7 : 4); i++)
		rows_case(be, dt, shapes[i], e);
	ok(e[0] <= 1 && e[2] <= 1, "%s %s add_rows: %.2f, %.2f of the allowed",
	    level, lpo_dtype_name(dt), e[0], e[2]);
	ok(e[1] <= 1 && e[3] <= 1, "%s %s mean_pool: %.2f, %.2f of the "
	    "allowed", level, lpo_dtype_name(dt), e[1], e[3]);
}

static int64_t
nearest(int64_t dst, int64_t src_len, int64_t dst_len)
{
	int64_t s;

	if (dst_len == 2 * src_len)
		return dst / 2;
	s = (int64_t)((float)dst * ((float)src_len / (float)dst_len));
	return s < src_len ? s : src_len - 1;
}

static void
test_upsample(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	static const int64_t shapes[][6] = { { 1, 1, 1, 1, 2, 2 },
	    { 2, 4, 5, 20, 8, 10 }, { 2, 3, 4, 7, 5, 9 },
	    { 1, 9, 5, 33, 17, 11 }, { 3, 16, 16, 40, 32, 32 },
	    { 1, 7, 6, 5, 4, 3 }, { 2, 32, 32, 640, 64, 64 } };
	double fwd = 0, bwd = 0, *want;
	int64_t n, h, w, c, ho, wo, j, pix, src;
	struct buf x, y;
	int i, add;

	for (i = 0; i < (on_cuda(be) ? 7 : 6); i++) {
		n = shapes[i][0];
		h = shapes[i][1];
		w = shapes[i][2];
		c = shapes[i][3];
		ho = shapes[i][4];
		wo = shapes[i][5];
		x = buf_new(be, dt, n * h * w * c, 1);
		y = buf_new(be, dt, n * ho * wo * c, 2);
		for (add = 0; add < 2; add++) {
			want = start(&x, add);
			be->k->upsample_bwd(be, dt, x.p, y.p, n, h, w, c, ho,
			    wo, add);
			for (j = 0; j < n * ho * wo * c; j++) {
				pix = j / c;
				src = pix / wo / ho * h +
				    nearest(pix / wo % ho, h, ho);
				src = src * w + nearest(pix % wo, w, wo);
				want[src * c + j % c] += y.v[j];
			}
			bwd = worse(bwd, off(&x, want, 1e-6));
			free(want);
		}
		buf_poison(&y);
		buf_reset(&x);
		be->k->upsample_fwd(be, dt, y.p, x.p, n, h, w, c, ho, wo);
		want = malloc((size_t)y.count * sizeof(double));
		for (j = 0; j < n * ho * wo * c; j++) {
			pix = j / c;
			src = pix / wo / ho * h + nearest(pix / wo % ho, h, ho);
			src = src * w + nearest(pix % wo, w, wo);
			want[j] = x.v[src * c + j % c];
		}
		fwd = worse(fwd, off(&y, want, 1e-9));
		free(want);
		buf_free(&x);
		buf_free(&y);
	}
	ok(fwd <= 1 && bwd <= 1, "%s %s upsample: %.2f, %.2f of the allowed",
	    level, lpo_dtype_name(dt), fwd, bwd);
}

/* Both gradients at once and each alone, set and added to. */
static double
concat_case(lpo_backend *be, enum lpo_dtype dt, int64_t m, int64_t ca,
    int64_t cb)
{
	struct buf a = buf_new(be, dt, m * ca, 1);
	struct buf b = buf_new(be, dt, m * cb, 2);
	struct buf y = buf_new(be, dt, m * (ca + cb), 3);
	double *wa, *wb, *wy, e = 0;
	int64_t j, c;
	int add;

	for (add = 0; add < 8; add++) {
		wa = start(&a, add & LPO_ADD_A);
		wb = start(&b, add & LPO_ADD_B);
		if (add < 4) {
			be->k->concat_bwd(be, dt, a.p, b.p, y.p, m, ca, cb,
			    add);
		} else {
			be->k->concat_bwd(be, dt, NULL, b.p, y.p, m, ca, cb,
			    add & 3);
			be->k->concat_bwd(be, dt, a.p, NULL, y.p, m, ca, cb,
			    add & 3);
		}
		for (j = 0; j < y.count; j++) {
			c = j % (ca + cb);
			if (c < ca)
				wa[j / (ca + cb) * ca + c] += y.v[j];
			else
				wb[j / (ca + cb) * cb + c - ca] += y.v[j];
		}
		e = worse(e, worse(off(&a, wa, 1e-6), off(&b, wb, 1e-6)));
		free(wa);
		free(wb);
	}
	buf_reset(&a);
	buf_reset(&b);
	wy = start(&y, 0);
	be->k->concat_fwd(be, dt, y.p, a.p, b.p, m, ca, cb);
	for (j = 0; j < y.count; j++) {
		c = j % (ca + cb);
		wy[j] = c < ca ? a.v[j / (ca + cb) * ca + c] :
		    b.v[j / (ca + cb) * cb + c - ca];
	}
	e = worse(e, off(&y, wy, 1e-9));
	free(wy);
	buf_free(&a);
	buf_free(&b);
	buf_free(&y);
	return e;
}

static void
test_concat(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	double e = concat_case(be, dt, 301, 37, 80);

	e = worse(e, concat_case(be, dt, 64, 24, 40));
	if (on_cuda(be))
		e = worse(e, concat_case(be, dt, 8192, 640, 320));
	ok(e <= 1, "%s %s concat: %.2f of the allowed", level,
	    lpo_dtype_name(dt), e);
}

static void
test_gather(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { N = 9, ROWS = 6, C = 5003 };
	static const int32_t order[N] = { 5, 0, 3, 3, 1, 5, 5, 0, 0 };
	static const int32_t wrong[2] = { 1, ROWS };
	int32_t *index = dev_new(be, order, sizeof(order));
	int32_t *bad = dev_new(be, wrong, sizeof(wrong));
	struct buf x = buf_new(be, dt, ROWS * C, 1);
	struct buf y = buf_new(be, dt, N * C, 2);
	double *want, e = 0;
	int64_t i, j;
	int add, refused;

	for (add = 0; add < 2; add++) {
		want = start(&x, add);
		be->k->gather_rows_bwd(be, dt, x.p, y.p, index, N, C, ROWS,
		    add);
		for (i = 0; i < N; i++)
			for (j = 0; j < C; j++)
				want[order[i] * C + j] += y.v[i * C + j];
		/* in bf16 every addition rounds, at values up to 4 */
		e = worse(e, off(&x, want, dt == LPO_F32 ? 1e-6 : 3.0 / 128));
		free(want);
	}
	buf_reset(&x);
	want = start(&y, 0);
	be->k->gather_rows_fwd(be, dt, y.p, x.p, index, N, C, ROWS);
	for (i = 0; i < N; i++)
		for (j = 0; j < C; j++)
			want[i * C + j] = x.v[order[i] * C + j];
	e = worse(e, off(&y, want, 1e-9));
	free(want);
	/* a checked CUDA looks at the indices before it starts, too */
	refused = be->k->gather_rows_fwd(be, dt, y.p, x.p, bad, 2, C, ROWS) ==
	    LPO_EINVAL;
	ok(e <= 1 && refused && guard_at(index, sizeof(order)), "%s %s "
	    "gather_rows: %.2f of the allowed", level, lpo_dtype_name(dt), e);
	dev_free(be, index);
	dev_free(be, bad);
	buf_free(&x);
	buf_free(&y);
}

static void
test_embed(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { N = 7, L = 11, C = 517, VOCAB = 30 };
	struct buf t = buf_new(be, LPO_F32, VOCAB * C, 1);
	struct buf p = buf_new(be, LPO_F32, L * C, 2);
	struct buf y = buf_new(be, dt, N * L * C, 3);
	double *wt = start(&t, 1), *wp = start(&p, 1), *wy = start(&y, 1), e;
	int32_t *id = guarded(be, N * L * sizeof(*id));
	int64_t i, j;

	for (i = 0; i < N * L; i++)
		id[i] = (int32_t)(i * i % VOCAB);
	be->k->embed_bwd(be, dt, t.p, NULL, y.p, id, N, L, C);
	be->k->embed_bwd(be, dt, NULL, p.p, y.p, id, N, L, C);
	for (i = 0; i < N * L; i++)
		for (j = 0; j < C; j++) {
			wt[id[i] * C + j] += y.v[i * C + j];
			wp[i % L * C + j] += y.v[i * C + j];
		}
	e = worse(off(&t, wt, 2e-6), off(&p, wp, 2e-6));
	buf_reset(&t);
	buf_reset(&p);
	buf_poison(&y);
	be->k->embed_fwd(be, dt, y.p, id, t.p, p.p, N, L, C);
	for (i = 0; i < N * L; i++)
		for (j = 0; j < C; j++)
			wy[i * C + j] = t.v[id[i] * C + j] + p.v[i % L * C + j];
	e = worse(e, off(&y, wy, 1e-6));
	be->k->embed_fwd(be, dt, y.p, id, t.p, NULL, N, L, C);
	for (i = 0; i < N * L; i++)
		for (j = 0; j < C; j++)
			wy[i * C + j] = t.v[id[i] * C + j];
	e = worse(e, off(&y, wy, 1e-6));
	ok(e <= 1, "%s %s embed: %.2f of the allowed", level,
	    lpo_dtype_name(dt), e);
	free(wt);
	free(wp);
	free(wy);
	dev_free(be, id);
	buf_free(&t);
	buf_free(&p);
	buf_free(&y);
}

/*
 * The ops that sum over rows: bits on 1 to 4 threads, and row by row (CUDA:
 * again and again).
 */
static void
test_bits(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { N = 4, H = 12, W = 20, C = 90 };
	int64_t e = (int64_t)lpo_dtype_bytes(dt), k, hw = H * W;
	struct buf x = buf_new(be, dt, N * hw * C, 1), r[2], f[2], u[2];
	int threads, good = 1, i;

	for (threads = 1; threads <= 4; threads++)
		for (i = 0; i < 2; i++) {
			int64_t n = i && !on_cuda(be) ? 1 : N;

			reopen(be, threads);
			if (threads > 1 && i == 0)
				continue;
			r[i] = buf_new(be, dt, N * C, 2);
			f[i] = buf_new(be, LPO_F32, N * C, 3);
			u[i] = buf_new(be, dt, N * hw / 4 * C, 4);
			for (k = 0; k < N; k += n) {
				char *xk = (char *)x.p + k * hw * C * e;

				be->k->add_rows_bwd(be, dt, (char *)r[i].p +
				    k * C * e, xk, n, hw, C, 1);
				be->k->mean_pool_fwd(be, dt, (float *)f[i].p +
				    k * C, xk, n, hw, C);
				be->k->upsample_bwd(be, dt, (char *)u[i].p +
				    k * hw / 4 * C * e, xk, n, H / 2, W / 2,
				    C, H, W, 1);
			}
			if (i == 0)
				continue;
			good &= !memcmp(r[0].p, r[1].p, (size_t)(N * C * e)) &&
			    !memcmp(f[0].p, f[1].p, N * C * 4) &&
			    !memcmp(u[0].p, u[1].p,
			    (size_t)(N * hw / 4 * C * e));
			buf_free(&r[1]);
			buf_free(&f[1]);
			buf_free(&u[1]);
		}
	ok(good, "%s %s: %s, same bits", level, lpo_dtype_name(dt),
	    on_cuda(be) ? runs(be) : "row by row and 1 to 4 threads");
	buf_free(&x);
	buf_free(&r[0]);
	buf_free(&f[0]);
	buf_free(&u[0]);
}

static void
test_level(lpo_backend *be, const char *level)
{
	enum lpo_dtype dt;

	for (dt = LPO_F32; dt <= LPO_BF16; dt++) {
		test_add_rows(be, level, dt);
		test_upsample(be, level, dt);
		test_concat(be, level, dt);
		test_gather(be, level, dt);
		test_embed(be, level, dt);
		test_bits(be, level, dt);
	}
}

int
main(void)
{
	each_level(test_level);
	return done_testing();
}
