/* Ops on rows of channels: values against f64, bits across threads. */
#include "tests/ops/levels.h"
#include "tests/ops/reopen.h"

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
		if (!(e <= bad))
			bad = e;
	}
	return guard_whole(b) ? bad : INFINITY;
}

static double *
start(const struct buf *b)
{
	double *w = malloc((size_t)b->count * sizeof(double));

	memcpy(w, b->v, (size_t)b->count * sizeof(double));
	return w;
}

/* x, y, r and the expected r, y of one shape of [n, hw, c] and [n, c] */
static void
test_add_rows(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	static const int64_t shapes[][3] = { { 1, 1, 1 }, { 3, 5, 7 },
	    { 2, 131, 80 }, { 5, 64, 129 } };
	double fwd = 0, bwd = 0, pool = 0, pool_bwd = 0, *want;
	struct buf x, y, r, f, dx;
	int64_t n, hw, c, j;
	int i;

	for (i = 0; i < 4; i++) {
		n = shapes[i][0];
		hw = shapes[i][1];
		c = shapes[i][2];
		x = buf_new(dt, n * hw * c, 1);
		y = buf_new(dt, n * hw * c, 2);
		dx = buf_new(dt, n * hw * c, 3);
		r = buf_new(dt, n * c, 4);
		f = buf_new(LPO_F32, n * c, 5);
		be->k->mean_pool_bwd(be, dt, dx.p, f.p, n, hw, c);
		want = start(&dx);
		for (j = 0; j < n * hw * c; j++)
			want[j] += f.v[j / (hw * c) * c + j % c] / (double)hw;
		pool_bwd = fmax(pool_bwd, off(&dx, want, 1e-6));
		free(want);
		be->k->mean_pool_fwd(be, dt, f.p, x.p, n, hw, c);
		want = calloc((size_t)(n * c), sizeof(double));
		for (j = 0; j < n * hw * c; j++)
			want[j / (hw * c) * c + j % c] += x.v[j] / (double)hw;
		pool = fmax(pool, off(&f, want, 1e-6));
		free(want);
		be->k->add_rows_fwd(be, dt, y.p, x.p, r.p, n, hw, c);
		want = start(&x);
		for (j = 0; j < n * hw * c; j++)
			want[j] += r.v[j / (hw * c) * c + j % c];
		fwd = fmax(fwd, off(&y, want, 1e-6));
		free(want);
		be->k->add_rows_bwd(be, dt, r.p, x.p, n, hw, c);
		want = start(&r);
		for (j = 0; j < n * hw * c; j++)
			want[j / (hw * c) * c + j % c] += x.v[j];
		bwd = fmax(bwd, off(&r, want, 1e-5));
		free(want);
		buf_free(&x);
		buf_free(&y);
		buf_free(&r);
		buf_free(&f);
		buf_free(&dx);
	}
	ok(fwd <= 1 && bwd <= 1, "%s %s add_rows: %.2f, %.2f of the allowed",
	    level, lpo_dtype_name(dt), fwd, bwd);
	ok(pool <= 1 && pool_bwd <= 1, "%s %s mean_pool: %.2f, %.2f of the "
	    "allowed", level, lpo_dtype_name(dt), pool, pool_bwd);
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
	    { 1, 7, 6, 5, 4, 3 } };
	double fwd = 0, bwd = 0, *want;
	int64_t n, h, w, c, ho, wo, j, pix, src;
	struct buf x, y;
	int i;

	for (i = 0; i < 6; i++) {
		n = shapes[i][0];
		h = shapes[i][1];
		w = shapes[i][2];
		c = shapes[i][3];
		ho = shapes[i][4];
		wo = shapes[i][5];
		x = buf_new(dt, n * h * w * c, 1);
		y = buf_new(dt, n * ho * wo * c, 2);
		be->k->upsample_bwd(be, dt, x.p, y.p, n, h, w, c, ho, wo);
		want = start(&x);
		for (j = 0; j < n * ho * wo * c; j++) {
			pix = j / c;
			src = pix / wo / ho * h + nearest(pix / wo % ho, h, ho);
			src = src * w + nearest(pix % wo, w, wo);
			want[src * c + j % c] += y.v[j];
		}
		bwd = fmax(bwd, off(&x, want, 1e-6));
		free(want);
		buf_reset(&x);
		be->k->upsample_fwd(be, dt, y.p, x.p, n, h, w, c, ho, wo);
		want = malloc((size_t)y.count * sizeof(double));
		for (j = 0; j < n * ho * wo * c; j++) {
			pix = j / c;
			src = pix / wo / ho * h + nearest(pix / wo % ho, h, ho);
			src = src * w + nearest(pix % wo, w, wo);
			want[j] = x.v[src * c + j % c];
		}
		fwd = fmax(fwd, off(&y, want, 1e-9));
		free(want);
		buf_free(&x);
		buf_free(&y);
	}
	ok(fwd <= 1 && bwd <= 1, "%s %s upsample: %.2f, %.2f of the allowed",
	    level, lpo_dtype_name(dt), fwd, bwd);
}

static void
test_concat(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { M = 301, CA = 37, CB = 80 };
	struct buf a = buf_new(dt, M * CA, 1), b = buf_new(dt, M * CB, 2);
	struct buf y = buf_new(dt, M * (CA + CB), 3);
	double *wa = start(&a), *wb = start(&b), *wy = start(&y), e;
	int64_t j, c;

	be->k->concat_bwd(be, dt, NULL, b.p, y.p, M, CA, CB);
	be->k->concat_bwd(be, dt, a.p, NULL, y.p, M, CA, CB);
	for (j = 0; j < y.count; j++) {
		c = j % (CA + CB);
		if (c < CA)
			wa[j / (CA + CB) * CA + c] += y.v[j];
		else
			wb[j / (CA + CB) * CB + c - CA] += y.v[j];
	}
	e = fmax(off(&a, wa, 1e-6), off(&b, wb, 1e-6));
	buf_reset(&a);
	buf_reset(&b);
	be->k->concat_fwd(be, dt, y.p, a.p, b.p, M, CA, CB);
	for (j = 0; j < y.count; j++) {
		c = j % (CA + CB);
		wy[j] = c < CA ? a.v[j / (CA + CB) * CA + c] :
		    b.v[j / (CA + CB) * CB + c - CA];
	}
	e = fmax(e, off(&y, wy, 1e-9));
	ok(e <= 1, "%s %s concat: %.2f of the allowed", level,
	    lpo_dtype_name(dt), e);
	free(wa);
	free(wb);
	free(wy);
	buf_free(&a);
	buf_free(&b);
	buf_free(&y);
}

static void
test_gather(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { N = 9, ROWS = 6, C = 5003 };
	static const int32_t index[N] = { 5, 0, 3, 3, 1, 5, 5, 2, 0 };
	static const int32_t bad[2] = { 1, ROWS };
	struct buf x = buf_new(dt, ROWS * C, 1), y = buf_new(dt, N * C, 2);
	double *wx = start(&x), *wy = start(&y), e, n = dt == LPO_F32 ? 1 : 3;
	int64_t i, j;

	be->k->gather_rows_bwd(be, dt, x.p, y.p, index, N, C, ROWS);
	for (i = 0; i < N; i++)
		for (j = 0; j < C; j++)
			wx[index[i] * C + j] += y.v[i * C + j];
	/* in bf16 every addition rounds, at values up to 4 */
	e = off(&x, wx, dt == LPO_F32 ? 1e-6 : n / 128);
	buf_reset(&x);
	be->k->gather_rows_fwd(be, dt, y.p, x.p, index, N, C, ROWS);
	for (i = 0; i < N; i++)
		for (j = 0; j < C; j++)
			wy[i * C + j] = x.v[index[i] * C + j];
	e = fmax(e, off(&y, wy, 1e-9));
	ok(e <= 1 && be->k->gather_rows_fwd(be, dt, y.p, x.p, bad, 2, C,
	    ROWS) == LPO_EINVAL, "%s %s gather_rows: %.2f of the allowed",
	    level, lpo_dtype_name(dt), e);
	free(wx);
	free(wy);
	buf_free(&x);
	buf_free(&y);
}

static void
test_embed(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { N = 7, L = 11, C = 517, VOCAB = 30 };
	struct buf t = buf_new(LPO_F32, VOCAB * C, 1);
	struct buf p = buf_new(LPO_F32, L * C, 2);
	struct buf y = buf_new(dt, N * L * C, 3);
	double *wt = start(&t), *wp = start(&p), *wy = start(&y), e;
	int32_t id[N * L];
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
	e = fmax(off(&t, wt, 2e-6), off(&p, wp, 2e-6));
	buf_reset(&t);
	buf_reset(&p);
	be->k->embed_fwd(be, dt, y.p, id, t.p, p.p, N, L, C);
	for (i = 0; i < N * L; i++)
		for (j = 0; j < C; j++)
			wy[i * C + j] = t.v[id[i] * C + j] + p.v[i % L * C + j];
	e = fmax(e, off(&y, wy, 1e-6));
	be->k->embed_fwd(be, dt, y.p, id, t.p, NULL, N, L, C);
	for (i = 0; i < N * L; i++)
		for (j = 0; j < C; j++)
			wy[i * C + j] = t.v[id[i] * C + j];
	e = fmax(e, off(&y, wy, 1e-6));
	ok(e <= 1, "%s %s embed: %.2f of the allowed", level,
	    lpo_dtype_name(dt), e);
	free(wt);
	free(wp);
	free(wy);
	buf_free(&t);
	buf_free(&p);
	buf_free(&y);
}

/* The ops that sum over rows: bits on 1 to 4 threads, and row by row. */
static void
test_bits(lpo_backend *be, const char *level, enum lpo_dtype dt)
{
	enum { N = 4, H = 12, W = 20, C = 90 };
	int64_t e = (int64_t)lpo_dtype_bytes(dt), k, hw = H * W;
	struct buf x = buf_new(dt, N * hw * C, 1), r[2], f[2], u[2];
	int threads, good = 1, i;

	for (threads = 1; threads <= 4; threads++)
		for (i = 0; i < 2; i++) {
			reopen(be, threads);
			if (threads > 1 && i == 0)
				continue;
			r[i] = buf_new(dt, N * C, 2);
			f[i] = buf_new(LPO_F32, N * C, 3);
			u[i] = buf_new(dt, N * hw / 4 * C, 4);
			for (k = 0; k < N; k += i ? 1 : N) {
				int64_t n = i ? 1 : N;
				char *xk = (char *)x.p + k * hw * C * e;

				be->k->add_rows_bwd(be, dt, (char *)r[i].p +
				    k * C * e, xk, n, hw, C);
				be->k->mean_pool_fwd(be, dt, (float *)f[i].p +
				    k * C, xk, n, hw, C);
				be->k->upsample_bwd(be, dt, (char *)u[i].p +
				    k * hw / 4 * C * e, xk, n, H / 2, W / 2,
				    C, H, W);
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
	ok(good, "%s %s: row by row and 1 to 4 threads, same bits", level,
	    lpo_dtype_name(dt));
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
