/*
 * Attention on the device: forward of few keys through our own kernel for
 * Hopper (attention_few.cu), else through cuDNN where it has an engine
 * (attention_graph.cu), else through our own kernels (attention_flash.cu);
 * scratch of both passes.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/attention_flash.h"
#include "kernels/attention_graph.h"

/* attention_bwd.cu */
size_t	cuda_attention_bwd_bytes(enum lpo_dtype,
	    const struct lpo_attn_shape *);

enum { ALIGN = 256 };		/* of cuDNN's workspace */

struct plan {
	struct plan *next;
	struct attention_plan p;
};

struct cuda_attention {
	struct plan *plans;
};

static const struct attention_plan *
find(struct cuda *cu, const struct attention_key *key)
{
	struct plan *e = cu->attention == NULL ? NULL : cu->attention->plans;

	while (e != NULL && memcmp(&e->p.key, key, sizeof(*key)) != 0)
		e = e->next;
	return e == NULL ? NULL : &e->p;
}

/*
 * The same, made where there is none, but not while a graph is recorded; NULL
 * means that our own kernel does the work.
 */
static const struct attention_plan *
find_or_make(struct cuda *cu, const struct attention_key *key)
{
	const struct attention_plan *p = find(cu, key);
	struct plan *e;

	if (p != NULL || cu->capturing)
		return p;
	if (cu->attention == NULL)
		cu->attention = (struct cuda_attention *)calloc(1,
		    sizeof(*cu->attention));
	e = (struct plan *)calloc(1, sizeof(*e));
	if (cu->attention == NULL || e == NULL) {
		free(e);
		return NULL;
	}
	e->p.key = *key;
	cuda_attention_plan_make(&e->p, cu->dnn, NULL);
	/* what was tried in vain is not for the next launch to report */
	cudaGetLastError();
	e->next = cu->attention->plans;
	cu->attention->plans = e;
	return &e->p;
}

void
cuda_attention_free(struct cuda *cu)
{
	struct plan *e, *next;

	if (cu->attention == NULL)
		return;
	for (e = cu->attention->plans; e != NULL; e = next) {
		next = e->next;
		cuda_attention_plan_free(&e->p);
		free(e);
	}
	free(cu->attention);
	cu->attention = NULL;
}

/* to[i][h][x] = from[i / r][h][i mod r][x], rows i, heads h, queries x */
static __global__ void
unfold(float *__restrict__ to, const float *__restrict__ from, int64_t count,
    int64_t heads, int64_t lq, int64_t r)
{
	int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
	int64_t i = at / (heads * lq), h = at / lq % heads, x = at % lq;

	if (at < count)
		to[at] = from[((i / r * heads + h) * r + i % r) * lq + x];
}

static int64_t
lse_count(const struct lpo_attn_shape *s)
{
	return s->n * s->heads * s->lq;
}

static uintptr_t
align_up(uintptr_t x)
{
	return (x + ALIGN - 1) / ALIGN * ALIGN;
}

/*
 * Scratch: the workspace, then the log-sum-exps where they are not wanted, or
 * where rows that share k and v bring them in another order than ours.
 */
static int
forward_dnn(struct cuda *cu, const struct attention_plan *p, void *o,
    float *lse, const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	uintptr_t work = align_up((uintptr_t)scratch);
	float *stats = lse != NULL && s->nk == s->n ? lse : (float *)align_up(
	    work + (size_t)p->workspace_bytes);
	struct attention_data x = { q, k, v, o, stats, (void *)work };
	int64_t count = lse_count(s);
	int rc = cuda_check_dnn(cu, cuda_attention_plan_run(p, cu->dnn, &x),
	    "attention");

	if (rc == 0 && lse != NULL && stats != lse)
		unfold<<<(unsigned)((count + 255) / 256), 256, 0,
		    cu->stream>>>(lse, stats, count, s->heads, s->lq,
		    s->n / s->nk);
	return rc != 0 ? rc : cuda_done(cu, "attention");
}

/* cuDNN's tensors and our copies are, and so must be the pointers. */
static int
aligned(const void *o, const void *q, const void *k, const void *v)
{
	return (((uintptr_t)o | (uintptr_t)q | (uintptr_t)k | (uintptr_t)v) &
	    15) == 0;
}

static int
bad_shape(const struct lpo_attn_shape *s)
{
	return s->n < 1 || s->nk < 1 || s->n % s->nk != 0 || s->lq < 1 ||
	    s->lk < 1 || s->heads < 1 || s->heads > INT32_MAX || s->d < 1 ||
	    s->d > INT32_MAX;
}

int
cuda_attention_fwd(lpo_backend *be, enum lpo_dtype dt, void *o, float *lse,
    const void *q, const void *k, const void *v,
    const struct lpo_attn_shape *s, void *scratch)
{
	struct cuda *cu = cuda_of(be);
	const struct attention_plan *p = NULL;
	struct attention_key key;

	if (s->n == 0)
		return 0;
	if (bad_shape(s) || (dt != LPO_F32 && dt != LPO_BF16))
		return cuda_fail(cu, LPO_EINVAL, "attention", "bad shape");
	if (cuda_attention_few_suits(cu, dt, s) && aligned(o, q, k, v))
		return cuda_attention_few(cu, o, lse, q, k, v, s);
	if (cuda_attention_suits(&key, dt, s) && aligned(o, q, k, v))
		p = find_or_make(cu, &key);
	if (p == NULL || p->run == NULL)
		return cuda_flash_fwd(cu, dt, o, lse, q, k, v, s);
	return forward_dnn(cu, p, o, lse, q, k, v, s, scratch);
}

/* Also the place where plans are made, ahead of any graph. */
size_t
cuda_attention_scratch_bytes(lpo_backend *be, enum lpo_pass pass,
    enum lpo_dtype dt, const struct lpo_attn_shape *s)
{
	const struct attention_plan *p;
	struct attention_key key;

	if (pass != LPO_FWD)
		return cuda_attention_bwd_bytes(dt, s);
	if (bad_shape(s) || !cuda_attention_suits(&key, dt, s) ||
	    cuda_attention_few_suits(cuda_of(be), dt, s))
		return 0;
	p = find_or_make(cuda_of(be), &key);
	if (p == NULL || p->run == NULL)
		return 0;
	return (size_t)p->workspace_bytes + 2 * ALIGN +
	    (size_t)lse_count(s) * sizeof(float);
}
