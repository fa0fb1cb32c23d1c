/*
 * Every attention of the networks that is cuDNN's to do has a deterministic
 * engine, on a device that need not be here: plans are finalised from the
 * properties of one.  cuDNN compiles these engines, for which it needs the
 * driver's library.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#endif

#include "tests/tap.h"

#if __has_include(<cudnn.h>) && __has_include(<cuda_runtime_api.h>)
#include "kernels/attention_graph.cu"

#define JSON "tests/golden/h200_deviceprop.json"

/* The few calls that attention_graph.cu makes, found when the test runs. */
static void *library;

#define FORWARD(name, params, args) \
	cudnnStatus_t name params \
	{ \
		cudnnStatus_t (*f) params; \
		*(void **)&f = dlsym(library, #name); \
		return f == NULL ? CUDNN_STATUS_NOT_INITIALIZED : f args; \
	}
FORWARD(cudnnBackendCreateDescriptor, (cudnnBackendDescriptorType_t type,
    cudnnBackendDescriptor_t *d), (type, d))
FORWARD(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t d), (d))
FORWARD(cudnnBackendFinalize, (cudnnBackendDescriptor_t d), (d))
FORWARD(cudnnBackendSetAttribute, (cudnnBackendDescriptor_t d,
    cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
    int64_t n, const void *value), (d, name, type, n, value))
FORWARD(cudnnBackendGetAttribute, (cudnnBackendDescriptor_t const d,
    cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
    int64_t n, int64_t *got, void *value), (d, name, type, n, got, value))
FORWARD(cudnnBackendExecute, (cudnnHandle_t handle,
    cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),
    (handle, plan, pack))

/* n, nk, lq, lk, heads, d, ldq, ldk, causal */
static const struct lpo_attn_shape shapes[] = {
	/* UNet of SD 1.5 at 64x64 */
	{ 20, 20, 4096, 4096, 8, 40, 320, 320, 0 },
	{ 20, 20, 1024, 1024, 8, 80, 640, 640, 0 },
	{ 20, 20, 256, 256, 8, 160, 1280, 1280, 0 },
	{ 20, 20, 64, 64, 8, 160, 1280, 1280, 0 },
	{ 20, 20, 4096, 77, 8, 40, 320, 320, 0 },
	{ 20, 5, 4096, 77, 8, 40, 320, 320, 0 },
	{ 20, 5, 1024, 77, 8, 80, 640, 640, 0 },
	{ 20, 5, 256, 77, 8, 160, 1280, 1280, 0 },
	{ 2, 1, 64, 77, 8, 160, 1280, 1280, 0 },
	/* of SDXL at 128x128 */
	{ 2, 2, 4096, 4096, 10, 64, 640, 640, 0 },
	{ 2, 2, 1024, 1024, 20, 64, 1280, 1280, 0 },
	{ 2, 1, 4096, 77, 10, 64, 640, 640, 0 },
	{ 2, 1, 1024, 77, 20, 64, 1280, 1280, 0 },
	/* VAE; parts of wider rows; odd lengths; CLIP's patches */
	{ 1, 1, 4096, 4096, 1, 512, 512, 512, 0 },
	{ 2, 2, 1024, 1024, 8, 80, 1920, 1920, 0 },
	{ 2, 2, 333, 65, 3, 32, 96, 96, 0 },
	{ 4, 4, 257, 257, 16, 64, 1024, 1024, 0 }
};

static cudnnBackendDescriptor_t
open_device(void)
{
	cudnnBackendDescriptor_t d = NULL;
	char text[4096];
	size_t n;
	FILE *f = fopen(JSON, "r");

	if (f == NULL)
		return NULL;
	n = fread(text, 1, sizeof(text), f);
	fclose(f);
	if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR,
	    &d) != CUDNN_STATUS_SUCCESS)
		return NULL;
	if (cudnnBackendSetAttribute(d,
	    CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
	    (int64_t)n, text) == CUDNN_STATUS_SUCCESS &&
	    cudnnBackendFinalize(d) == CUDNN_STATUS_SUCCESS)
		return d;
	cudnnBackendDestroyDescriptor(d);
	return NULL;
}

static void
check(const struct lpo_attn_shape *s, cudnnBackendDescriptor_t device)
{
	struct attention_plan p;
	int suits;

	memset(&p, 0, sizeof(p));
	suits = cuda_attention_suits(&p.key, LPO_BF16, s);
	if (suits)
		cuda_attention_plan_make(&p, NULL, device);
	ok(suits && p.run != NULL, "%d/%d rows, %d heads of %d, %dx%d: an "
	    "engine", (int)s->n, (int)s->nk, (int)s->heads, (int)s->d,
	    (int)s->lq, (int)s->lk);
	cuda_attention_plan_free(&p);
}

int
main(void)
{
	cudnnBackendDescriptor_t device = NULL;
	size_t i;

#ifdef __SANITIZE_ADDRESS__
	/* cuDNN's own leaks */
	__lsan_disable();
#endif
	library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
	if (library != NULL)
		device = open_device();
	if (device == NULL)
		skip("no cuDNN that plans without a device");
	else if (dlopen("libcuda.so.1", RTLD_NOW) == NULL)
		skip("no driver: engines that are compiled");
	else
		for (i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
			check(&shapes[i], device);
	if (device != NULL)
		cudnnBackendDestroyDescriptor(device);
	return done_testing();
}

#else

int
main(void)
{
	skip("built without cuDNN");
	return done_testing();
}

#endif
