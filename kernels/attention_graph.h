/*
 * Attention forward as cuDNN sees it: a graph of one operation, and the first
 * deterministic engine that can run it.  C and C++ alike: a test asks without
 * a device whether every attention of the networks has an engine.
 */
#ifndef LPO_ATTENTION_GRAPH_H
#define LPO_ATTENTION_GRAPH_H

#include <cudnn.h>

#include "kernels/kernel.h"

enum { ATTENTION_PARTS = 48 };

/* bf16, no mask; a row of q has its own k and v. */
struct attention_key {
	int64_t n, lq, lk, heads, d, ldq, ldk;
};

/* run is NULL where no engine will do. */
struct attention_plan {
	struct attention_key key;
	cudnnBackendDescriptor_t run;
	int64_t workspace_bytes;
	/* What it was made from, for as long as it lives. */
	cudnnBackendDescriptor_t parts[ATTENTION_PARTS];
	int count;
	cudnnStatus_t status;		/* the first that failed */
};

struct attention_data {
	const void *q, *k, *v;
	void *o, *lse, *workspace;	/* lse [n, heads, lq] f32 */
};

/*
 * May cuDNN be asked?  Then *key is the shape as it has it: rows of q that
 * share k and v follow each other, so without a mask they are one longer
 * sequence, n = nk.
 */
int	cuda_attention_suits(struct attention_key *key, enum lpo_dtype,
	    const struct lpo_attn_shape *);
/*
 * Fill in the plan of p->key, the rest being zeros; for a handle, or for the
 * device that `properties` tells of where there is none.
 */
void	cuda_attention_plan_make(struct attention_plan *p, cudnnHandle_t,
	    cudnnBackendDescriptor_t properties);
/* On the handle's stream. */
cudnnStatus_t cuda_attention_plan_run(const struct attention_plan *,
    cudnnHandle_t, const struct attention_data *);
void	cuda_attention_plan_free(struct attention_plan *);

#endif
