/*
 * Convolutions as cuDNN sees them: a graph of operations, and of the engines
 * that can run it the first that keeps our promises.  C and C++ alike: a test
 * asks without a device whether every convolution we know has an engine.
 */
#ifndef LPO_CONV_GRAPH_H
#define LPO_CONV_GRAPH_H

#include <cudnn.h>

#include "kernels/kernel.h"

enum {
	CONV_ADD = 1		/* the result is added to what is there */
};

/* Compared bytewise: no padding in it. */
struct conv_key {
	struct lpo_conv_shape s;
	int32_t pass;		/* enum lpo_pass */
	int32_t dt;		/* of all tensors */
	int32_t flags;
	int32_t align;		/* 1 .. 16 bytes, of all pointers */
};

/* Where plans are made for: a handle, or properties where there is none. */
struct conv_device {
	cudnnHandle_t handle;
	cudnnBackendDescriptor_t properties;
};

enum { CONV_PARTS = 32 };

/* plan is NULL where no engine will do. */
struct conv_plan {
	cudnnBackendDescriptor_t plan;
	size_t workspace_bytes;
	/* What it was made from, for as long as it lives. */
	cudnnBackendDescriptor_t parts[CONV_PARTS];
	int count;
};

/* By pass: dx, dy and dw are in the places of x, y and w. */
struct conv_data {
	const void *x, *w, *y, *workspace;
};

/*
 * Make the plan of a convolution with at most cap bytes of workspace.  An
 * error is one of a descriptor; that no engine will do is none.
 */
cudnnStatus_t cuda_conv_plan_make(struct conv_plan *,
    const struct conv_key *, const struct conv_device *, size_t cap);
/* On the handle's stream. */
cudnnStatus_t cuda_conv_plan_run(const struct conv_plan *, cudnnHandle_t,
    const struct conv_data *);
void	cuda_conv_plan_free(struct conv_plan *);

#endif
