/* Linear layers: problems, and the truth in f64. */
#ifndef TESTS_OPS_LINEAR_H
#define TESTS_OPS_LINEAR_H

#include "tests/ops/levels.h"

struct problem {
	int64_t m, n, k, groups;
};

static const char *
dt_name(enum lpo_dtype dt)
{
	return dt == LPO_F32 ? "f32" : "bf16";
}

/* want[m,n] += alpha a b^T, by strides; magnitude gets absolute values */
static void
reference(double *want, double *magnitude, int64_t m, int64_t n, int64_t k,
    const double *a, int64_t ai, int64_t ak, const double *b, int64_t bj,
    int64_t bk, double alpha)
{
	int64_t i, j, l;

	for (i = 0; i < m; i++)
		for (j = 0; j < n; j++) {
			double s = 0, t = 0, x;

			for (l = 0; l < k; l++) {
				x = a[i * ai + l * ak] * b[j * bj + l * bk];
				s += x;
				t += fabs(x);
			}
			want[i * n + j] += alpha * s;
			magnitude[i * n + j] += fabs(alpha) * t;
		}
}

struct truth {
	double *want, *magnitude, *added;
};

/* What there is besides the products: start where added, row or NULL. */
static struct truth
truth_new(const struct buf *start, int add, const double *row, int64_t n)
{
	struct truth t;
	int64_t i;

	t.want = calloc((size_t)start->count, sizeof(double));
	t.magnitude = calloc((size_t)start->count, sizeof(double));
	t.added = calloc((size_t)start->count, sizeof(double));
	if (t.want == NULL || t.magnitude == NULL || t.added == NULL)
		abort();
	for (i = 0; i < start->count; i++) {
		t.want[i] = start_of(start, i, add) + (row ? row[i % n] : 0);
		t.magnitude[i] = fabs(start_of(start, i, add)) +
		    (row ? fabs(row[i % n]) : 0);
		t.added[i] = t.magnitude[i];
	}
	return t;
}

static void
truth_free(struct truth *t)
{
	free(t->want);
	free(t->magnitude);
	free(t->added);
}

static void
check(const char *level, const char *what, const struct problem *p,
    enum lpo_dtype dt, const struct buf *got, struct truth *t, int rc,
    struct scratch *s)
{
	double e = worst(got, t->want, t->magnitude,
	    dt == LPO_BF16 && got->dt == LPO_BF16 ? t->added : NULL);
	int whole = scratch_done(s);

	ok(rc == 0 && e <= 1 && guard_whole(got) && whole,
	    "%s %s %s %dx%dx%d: error %.2g of what is allowed", level,
	    dt_name(dt), what, (int)p->m, (int)p->n, (int)p->k, e);
	truth_free(t);
}

static const char *const residuals[] = { "", " + y", " + another" };

#endif
