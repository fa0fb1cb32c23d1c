/*
 * A linear layer with its LoRA in one call, as CUDA has it: against f64, and
 * the same bits twice.
 */
#include "tests/ops/linear.h"

/* SD1.5's, widths of one and two strips a warp, odd ones, and wide ranks. */
static const struct {
	struct problem p;
	int64_t r;
} loras[] = {
	{ { 640, 320, 320, 4 }, 4 }, { { 154, 1280, 768, 2 }, 4 },
	{ { 90, 1280, 1280, 2 }, 4 }, { { 333, 640, 640, 1 }, 1 },
	{ { 77, 96, 160, 1 }, 16 }, { { 65, 1280, 1280, 1 }, 16 },
	{ { 15, 8, 1280, 1 }, 5 }, { { 51, 768, 72, 1 }, 9 },
	{ { 33, 33, 65, 1 }, 4 }, { { 130, 640, 320, 2 }, 64 },
	{ { 20, 1288, 64, 1 }, 4 }
};

static size_t
max_need(lpo_backend *be, enum lpo_pass pass, enum lpo_dtype dt,
    const struct problem *p, int64_t r)
{
	size_t need[3] = {
		be->k->linear_scratch_bytes(be, pass, dt, p->m, p->n, p->k,
		    p->groups),
		be->k->linear_scratch_bytes(be, pass, dt, p->m, r, p->k,
		    p->groups),
		be->k->linear_scratch_bytes(be, pass, dt, p->m, p->n, r,
		    p->groups)
	};
	size_t most = need[0];
	int i;

	for (i = 1; i < 3; i++)
		most = need[i] > most ? need[i] : most;
	return most;
}

/* The values that are there now, in v. */
static void
read_back(struct buf *b)
{
	int64_t i;

	for (i = 0; i < b->count; i++)
		b->v[i] = get(b, i);
}

static void
check_lora_forward(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p, int64_t rank)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf w = buf_new(be, dt, p->n * p->k, 2);
	struct buf y = buf_new(be, dt, p->m * p->n, 3);
	struct buf r = buf_new(be, dt, p->m * p->n, 3);
	struct buf bias = buf_new(be, LPO_F32, p->n, 4);
	struct buf a = buf_new(be, dt, rank * p->k, 5);
	struct buf b = buf_new(be, dt, p->n * rank, 6);
	struct buf aux = buf_new(be, dt, p->m * rank, 7);
	struct problem down = { p->m, rank, p->k, p->groups };
	struct truth t, ta, low;
	struct scratch s;
	char what[64];
	int i, kind, rc;

	for (i = 0; i < 6; i++) {
		kind = i / 2;
		snprintf(what, sizeof(what), "LoRA %d%s%s", (int)rank,
		    i % 2 ? " + bias" : "", residuals[kind]);
		buf_start(&y, kind == 1);
		buf_poison(&aux);
		s = scratch_new(be, max_need(be, LPO_FWD, dt, p, rank));
		rc = be->k->lora_fwd(be, dt, y.p, aux.p, x.p, w.p,
		    i % 2 ? bias.p : NULL, kind == 0 ? NULL : kind == 1 ?
		    y.p : r.p, a.p, b.p, p->m, p->n, p->k, rank, 0.75f, s.p);
		ta = truth_new(&aux, 0, NULL, 1);
		reference(ta.want, ta.magnitude, p->m, rank, p->k, x.v, p->k,
		    1, a.v, p->k, 1, 1);
		/* what is added to the product of w: aux is as it was found */
		read_back(&aux);
		t = truth_new(&r, kind != 0, i % 2 ? bias.v : NULL, p->n);
		low = truth_new(&r, 0, NULL, 1);
		reference(low.want, t.added, p->m, p->n, rank, aux.v, rank, 1,
		    b.v, rank, 1, 0.75);
		reference(t.want, t.magnitude, p->m, p->n, rank, aux.v, rank,
		    1, b.v, rank, 1, 0.75);
		reference(t.want, t.magnitude, p->m, p->n, p->k, x.v, p->k, 1,
		    w.v, p->k, 1, 1);
		check(level, what, p, dt, &y, &t, rc, &s);
		s = scratch_new(be, 1);
		check(level, "LoRA's down", &down, dt, &aux, &ta, rc, &s);
		truth_free(&low);
	}
	buf_free(&x);
	buf_free(&w);
	buf_free(&y);
	buf_free(&r);
	buf_free(&bias);
	buf_free(&a);
	buf_free(&b);
	buf_free(&aux);
}

/* u = scale dy b; magnitude: of its products, and of its rounding to bf16 */
static struct truth
lora_inner(const struct problem *p, int64_t rank, const struct buf *u,
    const struct buf *dy, const struct buf *b)
{
	struct truth t = truth_new(u, 0, NULL, 1);
	int64_t i;

	reference(t.want, t.magnitude, p->m, rank, p->n, dy->v, p->n, 1, b->v,
	    1, rank, 0.75);
	for (i = 0; i < u->count && u->dt == LPO_BF16; i++)
		t.magnitude[i] += fabs(t.want[i]) / 256 / 2e-6;
	return t;
}

/* which: 1 dx, 2 da, 4 db are asked for */
static void
check_lora_backward(lpo_backend *be, const char *level, enum lpo_dtype dt,
    const struct problem *p, int64_t rank, int which)
{
	struct buf x = buf_new(be, dt, p->m * p->k, 1);
	struct buf dy = buf_new(be, dt, p->m * p->n, 2);
	struct buf a = buf_new(be, dt, rank * p->k, 5);
	struct buf b = buf_new(be, dt, p->n * rank, 6);
	struct buf aux = buf_new(be, dt, p->m * rank, 7);
	struct buf dx = buf_new(be, dt, p->m * p->k, 3);
	struct buf da = buf_new(be, LPO_F32, rank * p->k, 4);
	struct buf db = buf_new(be, LPO_F32, p->n * rank, 8);
	struct truth u = lora_inner(p, rank, &aux, &dy, &b);
	struct truth tx = truth_new(&dx, 1, NULL, 1);
	struct truth ta = truth_new(&da, 1, NULL, 1);
	struct truth tb = truth_new(&db, 1, NULL, 1);
	struct problem pa = { p->m, rank, p->k, 1 }, pb = { p->m, p->n, rank,
	    1 };
	double *no = calloc((size_t)(p->m * p->k), sizeof(double));
	double *abs_a = calloc((size_t)a.count, sizeof(double));
	double *abs_x = calloc((size_t)x.count, sizeof(double));
	struct scratch s;
	char what[64];
	int64_t i;
	int rc;

	if (no == NULL || abs_a == NULL || abs_x == NULL)
		abort();
	for (i = 0; i < a.count; i++)
		abs_a[i] = fabs(a.v[i]);
	for (i = 0; i < x.count; i++)
		abs_x[i] = fabs(x.v[i]);
	if (which & 1) {
		reference(tx.want, no, p->m, p->k, rank, u.want, rank, 1, a.v,
		    1, p->k, 1);
		reference(tx.magnitude, no, p->m, p->k, rank, u.magnitude,
		    rank, 1, abs_a, 1, p->k, 1);
	}
	if (which & 2) {
		reference(ta.want, no, rank, p->k, p->m, u.want, 1, rank, x.v,
		    1, p->k, 1);
		reference(ta.magnitude, no, rank, p->k, p->m, u.magnitude, 1,
		    rank, abs_x, 1, p->k, 1);
	}
	if (which & 4)
		reference(tb.want, tb.magnitude, p->n, rank, p->m, dy.v, 1,
		    p->n, aux.v, 1, rank, 0.75);
	s = scratch_new(be, max_need(be, LPO_BWD_DATA, dt, p, rank) +
	    max_need(be, LPO_BWD_WEIGHT, dt, p, rank) +
	    ((size_t)aux.count * lpo_dtype_bytes(dt) + 63) / 64 * 64);
	rc = be->k->lora_bwd(be, dt, which & 1 ? dx.p : NULL, which & 2 ?
	    da.p : NULL, which & 4 ? db.p : NULL, dy.p, x.p, aux.p, a.p, b.p,
	    p->m, p->n, p->k, rank, 0.75f, p->groups, s.p);
	snprintf(what, sizeof(what), "LoRA %d backward to x (%d)", (int)rank,
	    which);
	check(level, what, p, dt, &dx, &tx, rc, &s);
	s = scratch_new(be, 1);
	check(level, "LoRA backward to a", &pa, dt, &da, &ta, rc, &s);
	s = scratch_new(be, 1);
	check(level, "LoRA backward to b", &pb, dt, &db, &tb, rc, &s);
	truth_free(&u);
	free(no);
	free(abs_a);
	free(abs_x);
	buf_free(&x);
	buf_free(&dy);
	buf_free(&a);
	buf_free(&b);
	buf_free(&aux);
	buf_free(&dx);
	buf_free(&da);
	buf_free(&db);
}

/* Twice, the same bits. */
static void
check_lora_bits(lpo_backend *be, const char *level,
    const struct problem *p, int64_t rank)
{
	struct buf x = buf_new(be, LPO_BF16, p->m * p->k, 1);
	struct buf dy = buf_new(be, LPO_BF16, p->m * p->n, 2);
	struct buf a = buf_new(be, LPO_BF16, rank * p->k, 5);
	struct buf b = buf_new(be, LPO_BF16, p->n * rank, 6);
	struct buf aux = buf_new(be, LPO_BF16, p->m * rank, 7);
	struct buf dx[2], da[2], db[2];
	struct scratch s;
	int i, rc = 0;

	for (i = 0; i < 2; i++) {
		dx[i] = buf_new(be, LPO_BF16, p->m * p->k, 3);
		da[i] = buf_new(be, LPO_F32, rank * p->k, 4);
		db[i] = buf_new(be, LPO_F32, p->n * rank, 8);
		s = scratch_new(be, max_need(be, LPO_BWD_DATA, LPO_BF16, p,
		    rank) + max_need(be, LPO_BWD_WEIGHT, LPO_BF16, p, rank) +
		    ((size_t)aux.count * 2 + 63) / 64 * 64);
		rc |= be->k->lora_bwd(be, LPO_BF16, dx[i].p, da[i].p, db[i].p,
		    dy.p, x.p, aux.p, a.p, b.p, p->m, p->n, p->k, rank, 0.75f,
		    p->groups, s.p);
		scratch_done(&s);
	}
	ok(rc == 0 && buf_same(&dx[0], &dx[1]) && buf_same(&da[0], &da[1]) &&
	    buf_same(&db[0], &db[1]), "%s bf16 LoRA %d backward, %dx%dx%d: "
	    "same bits twice", level, (int)rank, (int)p->m, (int)p->n,
	    (int)p->k);
	for (i = 0; i < 2; i++) {
		buf_free(&dx[i]);
		buf_free(&da[i]);
		buf_free(&db[i]);
	}
	buf_free(&x);
	buf_free(&dy);
	buf_free(&a);
	buf_free(&b);
	buf_free(&aux);
}

static void
all_loras(lpo_backend *be, const char *level)
{
	static const struct problem tall = { 8192, 320, 320, 2 };
	enum lpo_dtype dt;
	size_t i;

	for (dt = LPO_F32; dt <= LPO_BF16; dt++)
		for (i = 0; i < sizeof(loras) / sizeof(*loras); i++) {
			check_lora_forward(be, level, dt, &loras[i].p,
			    loras[i].r);
			check_lora_backward(be, level, dt, &loras[i].p,
			    loras[i].r, 7);
		}
	for (i = 0; i < 7; i++)
		check_lora_backward(be, level, LPO_BF16, &loras[0].p,
		    loras[0].r, (int)i);
	check_lora_backward(be, level, LPO_BF16, &tall, 4, 7);
	check_lora_bits(be, level, &tall, 4);
	check_lora_bits(be, level, &loras[2].p, 4);
}

int
main(void)
{
	lpo_backend be;

	if (backend_open(&be, "cuda", 0, LPO_PLUGIN_CHECKED)) {
		ok(be.k->lora_fwd != NULL && be.k->lora_bwd != NULL,
		    "cuda has a layer and its LoRA in one call");
		all_loras(&be, "cuda");
		backend_close(&be);
	}
	return done_testing();
}
