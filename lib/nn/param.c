/* Parameters: storage, layout at the file border, training state. */
#include "lib/nn/param.h"

#include <omp.h>
#include <string.h>

#include "lib/base/half.h"
#include "lib/nn/dry.h"

static int
device(lpo_params *ps, int rc, const char *what)
{
	if (rc == 0)
		return 0;
	return lpo_fail(ps->ctx, rc, "%s failed on device '%s'%s%s", what,
	    ps->be->k->name, ps->be->k->error(ps->be)[0] ? ": " : "",
	    ps->be->k->error(ps->be));
}

static void *
device_room(lpo_params *ps, int64_t count, enum lpo_dtype dt)
{
	size_t bytes = (size_t)count * lpo_dtype_bytes(dt);
	void *p = ps->be->k->alloc(ps->be, bytes);

	if (p == NULL) {
		lpo_fail(ps->ctx, LPO_ENOMEM, "no memory: %zu bytes on "
		    "device '%s'", bytes, ps->be->k->name);
		return NULL;
	}
	ps->bytes += (int64_t)bytes;
	return p;
}

static void *
device_alloc(lpo_params *ps, int64_t count, enum lpo_dtype dt)
{
	size_t bytes = (size_t)count * lpo_dtype_bytes(dt);
	void *p = device_room(ps, count, dt);

	if (p != NULL && device(ps, ps->be->k->zero(ps->be, p, bytes),
	    "zero") < 0) {
		ps->be->k->free(ps->be, p);
		ps->bytes -= (int64_t)bytes;
		return NULL;
	}
	return p;
}

int
lpo_params_init(lpo_params *ps, lpo_ctx *c, lpo_backend *be,
    enum lpo_dtype dt)
{
	memset(ps, 0, sizeof(*ps));
	ps->ctx = c;
	ps->be = be;
	ps->dtype = dt;
	if (dt != LPO_F32 && dt != LPO_BF16)
		return lpo_fail(c, LPO_EINVAL, "weights cannot be stored as %s",
		    lpo_dtype_name(dt));
	return 0;
}

static void
param_free(lpo_params *ps, lpo_param *p)
{
	const struct lpo_kernels *k = ps->be != NULL ? ps->be->k : NULL;

	if (k != NULL) {
		if (p->master != p->w)
			k->free(ps->be, p->master);
		k->free(ps->be, p->w);
		k->free(ps->be, p->grad);
		k->free(ps->be, p->m);
		k->free(ps->be, p->v);
	}
	lpo_free(p->key);
	lpo_free(p);
}

void
lpo_params_free(lpo_params *ps)
{
	int64_t i;

	if (ps == NULL)
		return;
	for (i = 0; i < ps->n; i++)
		param_free(ps, ps->p[i]);
	if (ps->be != NULL) {
		ps->be->k->landing_free(ps->be, ps->sumsq_landing);
		ps->be->k->free(ps->be, ps->sumsq);
	}
	lpo_free(ps->p);
	memset(ps, 0, sizeof(*ps));
}

static int
shape_count(lpo_ctx *c, const char *key, int rank, const int64_t *shape,
    int64_t *count)
{
	int i;

	*count = 1;
	for (i = 0; i < rank; i++)
		if (shape[i] < 1 || __builtin_mul_overflow(*count, shape[i],
		    count) || *count > INT64_MAX / 16)
			return lpo_fail(c, LPO_EINVAL,
			    "'%s' has an impossible shape", key);
	return 0;
}

/* zero 0: the value comes at once, nobody needs to see zeros before. */
static lpo_param *
param_new(lpo_params *ps, const char *key, enum lpo_param_kind kind,
    int rank, const int64_t *shape, int zero)
{
	lpo_param *p = NULL, **list;
	int64_t count, cap;

	if (rank < 0 || rank > 4 || (kind == LPO_KERNEL && rank != 4) ||
	    (kind == LPO_MATRIX && rank < 2)) {
		lpo_fail(ps->ctx, LPO_EINVAL, "'%s' has rank %d", key, rank);
		return NULL;
	}
	if (shape_count(ps->ctx, key, rank, shape, &count) < 0)
		return NULL;
	if (ps->n == ps->cap) {
		cap = ps->cap ? 2 * ps->cap : 64;
		list = lpo_realloc(ps->ctx, ps->p,
		    (size_t)cap * sizeof(*list));
		if (list == NULL)
			return NULL;
		ps->p = list;
		ps->cap = cap;
	}
	if ((p = lpo_alloc(ps->ctx, 1, sizeof(*p))) == NULL)
		return NULL;
	p->kind = kind;
	p->rank = rank;
	memcpy(p->shape, shape, (size_t)rank * sizeof(*shape));
	p->count = count;
	p->dtype = kind == LPO_MATRIX || kind == LPO_KERNEL ? ps->dtype :
	    LPO_F32;
	if ((p->key = lpo_strdup(ps->ctx, key)) == NULL || (ps->be != NULL &&
	    (p->w = zero ? device_alloc(ps, count, p->dtype) :
	    device_room(ps, count, p->dtype)) == NULL)) {
		param_free(ps, p);
		return NULL;
	}
	ps->p[ps->n++] = p;
	return p;
}

lpo_param *
lpo_param_add(lpo_params *ps, const char *key, enum lpo_param_kind kind,
    int rank, const int64_t *shape)
{
	return param_new(ps, key, kind, rank, shape, 1);
}

lpo_param *
lpo_param_find(const lpo_params *ps, const char *key)
{
	int64_t i;

	for (i = 0; i < ps->n; i++)
		if (strcmp(ps->p[i]->key, key) == 0)
			return ps->p[i];
	return NULL;
}

/* file [o, i, kh, kw] <-> memory [o, kh, kw, i]; others are the same. */
static void
relayout(const lpo_param *p, float *memory, float *file, int to_memory)
{
	int64_t o, i, s, ci = p->shape[1], sp;
	float *a, *b;

	if (p->kind != LPO_KERNEL) {
		if (to_memory)
			memcpy(memory, file, (size_t)p->count * sizeof(float));
		else
			memcpy(file, memory, (size_t)p->count * sizeof(float));
		return;
	}
	sp = p->shape[2] * p->shape[3];
	for (o = 0; o < p->shape[0]; o++)
		for (s = 0; s < sp; s++)
			for (i = 0; i < ci; i++) {
				a = &memory[(o * sp + s) * ci + i];
				b = &file[(o * ci + i) * sp + s];
				if (to_memory)
					*a = *b;
				else
					*b = *a;
			}
}

/* master -> w, where they differ */
static int
refresh(lpo_params *ps, lpo_param *p)
{
	if (p->master == NULL || (void *)p->master == p->w)
		return 0;
	return device(ps, ps->be->k->convert(ps->be, p->w, p->dtype,
	    p->master, LPO_F32, p->count), "convert");
}

int
lpo_param_import(lpo_params *ps, lpo_param *p, const float *host)
{
	const struct lpo_kernels *k = ps->be->k;
	size_t bytes = (size_t)p->count * sizeof(float);
	float *tmp = NULL, *dev = p->master;
	int rc = LPO_ENOMEM;

	if ((tmp = lpo_alloc(ps->ctx, (size_t)p->count, sizeof(float))) == NULL)
		goto out;
	relayout(p, tmp, (float *)(uintptr_t)host, 1);
	if (p->dtype == LPO_F32)
		dev = p->w;
	else if (dev == NULL && (dev = k->alloc(ps->be, bytes)) == NULL) {
		rc = lpo_fail(ps->ctx, LPO_ENOMEM,
		    "no %zu bytes of memory for '%s'", bytes, p->key);
		goto out;
	}
	if ((rc = device(ps, k->upload(ps->be, dev, tmp, bytes),
	    "upload")) < 0)
		goto out;
	if (p->dtype != LPO_F32)
		rc = device(ps, k->convert(ps->be, p->w, p->dtype, dev,
		    LPO_F32, p->count), "convert");
out:
	if (dev != p->master && (void *)dev != p->w)
		k->free(ps->be, dev);
	lpo_free(tmp);
	return rc;
}

/* ------------------------------------------- values made piece by piece */

/*
 * Elements: what stays in a thread's cache where the weights are the host's
 * memory, and what is worth a transfer where they are a device's.
 */
enum { PIECE = 16384, DEVICE_PIECE = 1 << 17 };

struct making {
	lpo_params *ps;
	lpo_param *p;
	void (*get)(const void *, int64_t, float *, int64_t);
	const void *arg;
	int64_t piece;		/* elements; of a kernel: whole rows */
	int64_t pieces;
	int here;		/* weights are the host's memory */
};

static int64_t
first_bad(const float *x, int64_t n)
{
	uint32_t u;
	int64_t i;

	for (i = 0; i < n; i++) {
		memcpy(&u, &x[i], sizeof(u));
		if ((u & 0x7f800000) == 0x7f800000)
			return i;
	}
	return -1;
}

/* Elements of piece i. */
static int64_t
piece_count(const struct making *m, int64_t i)
{
	int64_t left = m->p->count - i * m->piece;

	return left < m->piece ? left : m->piece;
}

/* Where make_piece() leaves its piece: in the one half of buf or the other. */
static float *
made(const struct making *m, float *buf)
{
	int steps = (m->p->kind == LPO_KERNEL) + (m->p->dtype != LPO_F32);

	return steps == 1 ? buf + m->piece : buf;
}

/* Piece i in its final form by way of buf[2 * piece]; bad or -1. */
static int64_t
make_piece(const struct making *m, int64_t i, float *buf)
{
	const lpo_param *p = m->p;
	lpo_param rows = *p;
	int64_t n = piece_count(m, i), bad, k;
	float *f = buf, *g = buf + m->piece;
	uint16_t *half;

	m->get(m->arg, i * m->piece, f, n);
	if ((bad = first_bad(f, n)) >= 0)
		return i * m->piece + bad;
	if (p->kind == LPO_KERNEL) {
		rows.shape[0] = n / (p->count / p->shape[0]);
		rows.count = n;
		relayout(&rows, g, f, 1);
		f = g;
		g = buf;
	}
	if (p->dtype != LPO_F32) {
		half = (uint16_t *)g;
		for (k = 0; k < n; k++)
			half[k] = lpo_f32_to_bf16(f[k]);
	}
	return -1;
}

static int
put_piece(const struct making *m, int64_t i, float *buf)
{
	size_t bytes = lpo_dtype_bytes(m->p->dtype);

	return m->ps->be->k->upload(m->ps->be, (char *)m->p->w +
	    (size_t)(i * m->piece) * bytes, made(m, buf),
	    (size_t)piece_count(m, i) * bytes);
}

/*
 * Pieces `from` to `to` - 1, each in a part of buf: its thread's where that
 * stores it, else its own, from where this thread uploads it afterwards (a
 * device is spoken to by one thread).
 */
static int
make_some(const struct making *m, int64_t from, int64_t to, int threads,
    float *buf, int64_t *least)
{
	int64_t i, b, first = *least;
	float *at;
	int rc = 0, one;

#pragma omp parallel for schedule(dynamic) reduction(min:first) \
    reduction(min:rc) num_threads(threads) \
    private(b, at, one)
	for (i = from; i < to; i++) {
		at = buf + 2 * m->piece * (m->here ? omp_get_thread_num() :
		    i - from);
		b = make_piece(m, i, at);
		if (b >= 0 && b < first)
			first = b;
		one = b < 0 && m->here ? put_piece(m, i, at) : 0;
		rc = one < rc ? one : rc;
	}
	*least = first;
	for (i = from; i < to && !m->here && rc == 0 &&
	    first == INT64_MAX; i++)
		rc = put_piece(m, i, buf + 2 * m->piece * (i - from));
	return rc;
}

static int
make_all(struct making *m, int64_t *bad)
{
	const lpo_param *p = m->p;
	lpo_backend *be = m->ps->be;
	int64_t row = p->kind == LPO_KERNEL ? p->count / p->shape[0] : 1;
	int64_t want, i, step, least = INT64_MAX;
	int threads = be->threads > 0 ? be->threads : 1, rc = 0;
	float *buf;

	m->here = strcmp(be->k->name, "cpu") == 0;
	want = m->here ? PIECE : DEVICE_PIECE;
	m->piece = row >= want ? row : want / row * row;
	if (m->piece > p->count)
		m->piece = p->count;
	m->pieces = (p->count + m->piece - 1) / m->piece;
	if (threads > m->pieces)
		threads = (int)m->pieces;
	/* not cleared: that would take as long as a drawing */
	buf = lpo_realloc(m->ps->ctx, NULL, (size_t)threads * 2 *
	    (size_t)m->piece * sizeof(*buf));
	if (buf == NULL)
		return LPO_ENOMEM;
	step = m->here ? m->pieces : threads;
	for (i = 0; i < m->pieces && rc == 0 && least == INT64_MAX; i += step)
		rc = make_some(m, i, i + step < m->pieces ? i + step :
		    m->pieces, threads, buf, &least);
	lpo_free(buf);
	*bad = least == INT64_MAX ? -1 : least;
	return device(m->ps, rc, "upload");
}

lpo_param *
lpo_param_make(lpo_params *ps, const char *key, enum lpo_param_kind kind,
    int rank, const int64_t *shape, void (*get)(const void *, int64_t,
    float *, int64_t), const void *arg, int64_t *bad)
{
	struct making m = { .ps = ps, .get = get, .arg = arg };

	*bad = -1;
	if ((m.p = param_new(ps, key, kind, rank, shape, 0)) == NULL)
		return NULL;
	if (ps->be != NULL && !lpo_dry_is(ps->be) && make_all(&m, bad) < 0)
		return NULL;
	return m.p;
}

/* Device f32 or bf16 values to the host in the file's layout. */
static int
export_from(lpo_params *ps, const lpo_param *p, const void *dev,
    enum lpo_dtype dt, float *host)
{
	const struct lpo_kernels *k = ps->be->k;
	size_t bytes = (size_t)p->count * sizeof(float);
	float *tmp = NULL;
	void *f32 = NULL;
	int rc = LPO_ENOMEM;

	if ((tmp = lpo_alloc(ps->ctx, (size_t)p->count, sizeof(float))) == NULL)
		goto out;
	if (dt != LPO_F32) {
		if ((f32 = k->alloc(ps->be, bytes)) == NULL) {
			rc = lpo_fail(ps->ctx, LPO_ENOMEM,
			    "no %zu bytes of memory for '%s'", bytes, p->key);
			goto out;
		}
		if ((rc = device(ps, k->convert(ps->be, f32, LPO_F32, dev, dt,
		    p->count), "convert")) < 0)
			goto out;
		dev = f32;
	}
	if ((rc = device(ps, k->download(ps->be, tmp, dev, bytes),
	    "download")) < 0)
		goto out;
	relayout(p, tmp, host, 0);
out:
	k->free(ps->be, f32);
	lpo_free(tmp);
	return rc;
}

int
lpo_param_export(lpo_params *ps, const lpo_param *p, float *host)
{
	if (p->master != NULL)
		return export_from(ps, p, p->master, LPO_F32, host);
	return export_from(ps, p, p->w, p->dtype, host);
}

int
lpo_param_export_grad(lpo_params *ps, const lpo_param *p, float *host)
{
	if (p->grad == NULL)
		return lpo_fail(ps->ctx, LPO_EINVAL, "'%s' is frozen", p->key);
	return export_from(ps, p, p->grad, LPO_F32, host);
}

static int
want_grad(lpo_params *ps, lpo_param *p)
{
	if (p->grad == NULL)
		p->grad = device_alloc(ps, p->count, LPO_F32);
	return p->grad == NULL ? LPO_ENOMEM : 0;
}

int
lpo_params_want_grads(lpo_params *ps)
{
	int64_t i;
	int rc;

	for (i = 0; i < ps->n; i++)
		if ((rc = want_grad(ps, ps->p[i])) < 0)
			return rc;
	return 0;
}

static int
trains(const lpo_param *p)
{
	return p->v != NULL;
}

int
lpo_param_train(lpo_params *ps, lpo_param *p)
{
	if (trains(p))
		return 0;
	if (p->dtype == LPO_F32)
		p->master = p->w;
	else if ((p->master = device_alloc(ps, p->count, LPO_F32)) == NULL ||
	    device(ps, ps->be->k->convert(ps->be, p->master, LPO_F32, p->w,
	    p->dtype, p->count), "convert") < 0)
		return lpo_errcode(ps->ctx);
	if (want_grad(ps, p) < 0 ||
	    (p->m = device_alloc(ps, p->count, LPO_F32)) == NULL ||
	    (p->v = device_alloc(ps, p->count, LPO_F32)) == NULL)
		return LPO_ENOMEM;
	return 0;
}

int
lpo_params_train_all(lpo_params *ps)
{
	int64_t i;
	int rc;

	for (i = 0; i < ps->n; i++)
		if ((rc = lpo_param_train(ps, ps->p[i])) < 0)
			return rc;
	return 0;
}

int
lpo_params_zero_grad(lpo_params *ps)
{
	int64_t i;
	int rc;

	for (i = 0; i < ps->n; i++)
		if (ps->p[i]->grad != NULL && (rc = device(ps,
		    ps->be->k->zero(ps->be, ps->p[i]->grad,
		    (size_t)ps->p[i]->count * sizeof(float)), "zero")) < 0)
			return rc;
	return 0;
}

/* Where the sum is made and where it lands, on first use. */
static int
sumsq_place(lpo_params *ps)
{
	const struct lpo_kernels *k = ps->be->k;

	if (ps->sumsq == NULL)
		ps->sumsq = k->alloc(ps->be, sizeof(*ps->sumsq));
	if (ps->sumsq != NULL && ps->sumsq_landing == NULL)
		ps->sumsq_landing = k->landing_new(ps->be,
		    sizeof(*ps->sumsq));
	return ps->sumsq_landing != NULL ? 0 : lpo_fail(ps->ctx, LPO_ENOMEM,
	    "no memory for a sum of squares");
}

int
lpo_params_grad_sumsq_start(lpo_params *ps)
{
	const float **x = lpo_alloc(ps->ctx, (size_t)ps->n + 1, sizeof(*x));
	int64_t *count = lpo_alloc(ps->ctx, (size_t)ps->n + 1,
	    sizeof(*count));
	int64_t i, n = 0;
	int rc = LPO_ENOMEM;

	if (x == NULL || count == NULL || (rc = sumsq_place(ps)) < 0)
		goto out;
	for (i = 0; i < ps->n; i++) {
		if (ps->p[i]->grad == NULL)
			continue;
		x[n] = ps->p[i]->grad;
		count[n++] = ps->p[i]->count;
	}
	if ((rc = device(ps, ps->be->k->sum_squares(ps->be, ps->sumsq, x,
	    count, n), "sum of squares")) == 0)
		rc = device(ps, ps->be->k->land(ps->be, ps->sumsq_landing,
		    ps->sumsq, sizeof(*ps->sumsq)), "sum of squares");
out:
	lpo_free(x);
	lpo_free(count);
	return rc;
}

int
lpo_params_grad_sumsq_finish(lpo_params *ps, double *out)
{
	const void *sum;
	int rc;

	*out = 0;
	if (ps->sumsq_landing == NULL)
		return lpo_fail(ps->ctx, LPO_EINVAL,
		    "a sum of squares that was not started");
	rc = device(ps, ps->be->k->landed(ps->be, ps->sumsq_landing, &sum),
	    "sum of squares");
	if (rc == 0)
		memcpy(out, sum, sizeof(*out));
	return rc;
}

int
lpo_params_grad_sumsq(lpo_params *ps, double *out)
{
	int rc;

	*out = 0;
	rc = lpo_params_grad_sumsq_start(ps);
	return rc < 0 ? rc : lpo_params_grad_sumsq_finish(ps, out);
}

int
lpo_params_adamw(lpo_params *ps, const struct lpo_adamw *opt)
{
	struct lpo_adamw_tensor *list;
	const lpo_param *p;
	int64_t i, n = 0;
	int rc;

	list = lpo_alloc(ps->ctx, (size_t)ps->n + 1, sizeof(*list));
	if (list == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < ps->n; i++) {
		p = ps->p[i];
		if (!trains(p))
			continue;
		list[n].p = p->master;
		list[n].m = p->m;
		list[n].v = p->v;
		list[n].g = p->grad;
		list[n].w = p->w;
		list[n].w_dt = p->dtype;
		list[n++].count = p->count;
	}
	rc = device(ps, ps->be->k->adamw(ps->be, list, n, opt), "AdamW");
	lpo_free(list);
	return rc;
}

int64_t
lpo_params_state_count(const lpo_params *ps, int64_t first, int64_t n)
{
	int64_t i, count = 0;

	for (i = first; i < first + n && i < ps->n; i++)
		if (trains(ps->p[i]))
			count += 3 * ps->p[i]->count;
	return count;
}

int
lpo_params_get_state(lpo_params *ps, int64_t first, int64_t n, float *host)
{
	lpo_param *p;
	int64_t i;
	int j, rc;

	for (i = first; i < first + n && i < ps->n; i++) {
		p = ps->p[i];
		if (!trains(p))
			continue;
		for (j = 0; j < 3; j++, host += p->count)
			if ((rc = device(ps, ps->be->k->download(ps->be, host,
			    j == 0 ? p->master : j == 1 ? p->m : p->v,
			    (size_t)p->count * sizeof(float)),
			    "download")) < 0)
				return rc;
	}
	return 0;
}

int
lpo_params_set_state(lpo_params *ps, int64_t first, int64_t n,
    const float *host)
{
	lpo_param *p;
	int64_t i;
	int j, rc;

	for (i = first; i < first + n && i < ps->n; i++) {
		p = ps->p[i];
		if (!trains(p))
			continue;
		for (j = 0; j < 3; j++, host += p->count)
			if ((rc = device(ps, ps->be->k->upload(ps->be,
			    j == 0 ? p->master : j == 1 ? p->m : p->v, host,
			    (size_t)p->count * sizeof(float)), "upload")) < 0)
				return rc;
		if ((rc = refresh(ps, p)) < 0)
			return rc;
	}
	return 0;
}
