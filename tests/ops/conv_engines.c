/*
 * Every convolution that the networks and the tests of ops make has an engine
 * of cuDNN that keeps our promises, on a device that need not be here: plans
 * are finalised from the properties of one.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
void	__lsan_disable(void);	/* gcc may come without its header */
#endif

#include "tests/tap.h"

#if __has_include(<cudnn.h>) && __has_include(<cuda_runtime_api.h>)
#include "kernels/conv_graph.cu"

#define JSON "tests/golden/h200_deviceprop.json"

/* The few calls that conv_graph.cu makes, found when the test runs. */
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

/* n, h, w, ci, co, kh, kw, stride, pad_top, pad_left, ho, wo */
static const struct lpo_conv_shape odd[] = {
	{ 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1 },
	{ 2, 7, 9, 5, 11, 3, 3, 1, 1, 1, 7, 9 },
	{ 4, 8, 8, 48, 33, 3, 3, 1, 1, 1, 8, 8 },
	{ 2, 8, 8, 4, 48, 3, 3, 1, 1, 1, 8, 8 },
	{ 2, 8, 8, 48, 4, 3, 3, 1, 1, 1, 8, 8 },
	{ 2, 8, 8, 40, 56, 3, 3, 2, 1, 1, 4, 4 },
	{ 2, 8, 8, 16, 24, 3, 3, 2, 0, 0, 4, 4 },
	{ 1, 9, 7, 6, 10, 3, 3, 2, 1, 1, 5, 4 },
	{ 1, 7, 10, 3, 17, 3, 3, 2, 0, 0, 3, 5 },
	{ 2, 6, 5, 33, 20, 1, 1, 2, 0, 0, 3, 3 },
	{ 2, 28, 28, 3, 19, 14, 14, 14, 0, 0, 2, 2 },
	{ 1, 5, 6, 7, 9, 2, 5, 1, 0, 3, 6, 8 },
	{ 1, 4, 4, 3, 8, 5, 3, 3, 2, 0, 3, 2 },
	{ 2, 3, 3, 64, 64, 3, 3, 1, 3, 3, 7, 7 },
	{ 2, 12, 12, 64, 96, 3, 3, 1, 1, 1, 12, 12 },
	{ 2, 12, 12, 128, 64, 3, 3, 2, 1, 1, 6, 6 },
	{ 2, 13, 11, 64, 64, 3, 3, 2, 0, 0, 6, 6 },
	{ 1, 40, 32, 16, 16, 3, 3, 1, 1, 1, 40, 32 },
	{ 1, 70, 32, 16, 24, 3, 3, 2, 1, 1, 35, 16 },
	{ 1, 71, 31, 24, 16, 3, 3, 2, 0, 0, 35, 15 },
	{ 1, 70, 32, 16, 16, 3, 3, 2, 0, 0, 35, 16 },
	{ 1, 45, 32, 16, 16, 5, 3, 1, 2, 1, 45, 32 },
	{ 4, 8, 8, 160, 160, 3, 3, 1, 1, 1, 8, 8 },
	/* CLIP's patches */
	{ 20, 224, 224, 3, 1024, 14, 14, 14, 0, 0, 16, 16 }
};

/* 3x3 of the networks: size, channels in and out, stride, padding before */
static const struct net {
	int size, ci, co, stride, pad;
} nets[] = {
	/* UNet of SD 1.5 at 64x64 */
	{ 64, 4, 320, 1, 1 }, { 64, 320, 320, 1, 1 }, { 64, 320, 4, 1, 1 },
	{ 64, 320, 320, 2, 1 }, { 32, 320, 640, 1, 1 },
	{ 32, 640, 640, 1, 1 }, { 32, 640, 640, 2, 1 },
	{ 16, 640, 1280, 1, 1 }, { 16, 1280, 1280, 1, 1 },
	{ 16, 1280, 1280, 2, 1 }, { 8, 1280, 1280, 1, 1 },
	{ 8, 2560, 1280, 1, 1 }, { 16, 2560, 1280, 1, 1 },
	{ 16, 1920, 1280, 1, 1 }, { 32, 1280, 1280, 1, 1 },
	{ 32, 1920, 640, 1, 1 }, { 32, 1280, 640, 1, 1 },
	{ 32, 960, 640, 1, 1 }, { 64, 640, 640, 1, 1 },
	{ 64, 960, 320, 1, 1 }, { 64, 640, 320, 1, 1 },
	/* of SDXL at 128x128 */
	{ 128, 4, 320, 1, 1 }, { 128, 320, 320, 1, 1 },
	{ 128, 320, 4, 1, 1 }, { 128, 320, 320, 2, 1 },
	{ 64, 640, 640, 2, 1 }, { 32, 640, 1280, 1, 1 },
	{ 64, 320, 640, 1, 1 }, { 32, 2560, 1280, 1, 1 },
	{ 32, 1920, 1280, 1, 1 }, { 64, 1280, 1280, 1, 1 },
	{ 64, 1920, 640, 1, 1 }, { 64, 1280, 640, 1, 1 },
	{ 64, 960, 640, 1, 1 }, { 128, 640, 640, 1, 1 },
	{ 128, 960, 320, 1, 1 }, { 128, 640, 320, 1, 1 },
	/* VAE at 512x512 */
	{ 512, 3, 128, 1, 1 }, { 512, 128, 128, 1, 1 },
	{ 512, 128, 128, 2, 0 }, { 256, 128, 256, 1, 1 },
	{ 256, 256, 256, 1, 1 }, { 256, 256, 256, 2, 0 },
	{ 128, 256, 512, 1, 1 }, { 128, 512, 512, 1, 1 },
	{ 128, 512, 512, 2, 0 }, { 64, 512, 512, 1, 1 },
	{ 64, 512, 8, 1, 1 }, { 64, 4, 512, 1, 1 },
	{ 256, 512, 512, 1, 1 }, { 256, 512, 256, 1, 1 },
	{ 512, 256, 256, 1, 1 }, { 512, 256, 128, 1, 1 },
	{ 512, 128, 3, 1, 1 }
};

static struct conv_device device;

static int
open_device(void)
{
	char text[4096];
	size_t n;
	FILE *f = fopen(JSON, "r");

	if (f == NULL)
		return -1;
	n = fread(text, 1, sizeof(text), f);
	fclose(f);
	return cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR,
	    &device.properties) != CUDNN_STATUS_SUCCESS ||
	    cudnnBackendSetAttribute(device.properties,
	    CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
	    (int64_t)n, text) != CUDNN_STATUS_SUCCESS ||
	    cudnnBackendFinalize(device.properties) != CUDNN_STATUS_SUCCESS ?
	    -1 : 0;
}

/* 1 if there is a plan */
static int
has_plan(const struct lpo_conv_shape *s, enum lpo_pass pass,
    enum lpo_dtype dt, int flags, int align)
{
	struct conv_plan p;
	struct conv_key k;
	int has;

	memset(&k, 0, sizeof(k));
	k.s = *s;
	k.pass = pass;
	k.dt = dt;
	k.flags = flags;
	k.align = align;
	cuda_conv_plan_make(&p, &k, &device, (size_t)512 << 20);
	has = p.plan != NULL;
	if (getenv("LPO_TEST_VERBOSE") != NULL)
		printf("# %d %s %d: %s %.1f MB\n", (int)pass, dt == LPO_F32 ?
		    "f32" : "bf16", flags, has ? "has" : "none",
		    (double)p.workspace_bytes / 1e6);
	cuda_conv_plan_free(&p);
	return has;
}

static void
check(const struct lpo_conv_shape *s, int align)
{
	/* How kernels/conv.cu calls cuDNN. */
	static const struct way {
		enum lpo_pass pass;
		enum lpo_dtype dt;
		int flags;
		const char *text;
	} ways[] = {
		{ LPO_FWD, LPO_F32, 0, "forward f32" },
		{ LPO_FWD, LPO_F32, CONV_ADD, "forward f32 added" },
		{ LPO_FWD, LPO_BF16, 0, "forward bf16" },
		{ LPO_FWD, LPO_BF16, CONV_ADD, "forward bf16 added" },
		{ LPO_BWD_DATA, LPO_F32, 0, "data f32" },
		{ LPO_BWD_DATA, LPO_F32, CONV_ADD, "data f32 added" },
		{ LPO_BWD_DATA, LPO_BF16, 0, "data bf16" },
		{ LPO_BWD_DATA, LPO_BF16, CONV_ADD, "data bf16 added" },
		{ LPO_BWD_WEIGHT, LPO_F32, CONV_ADD, "weight f32" },
		{ LPO_BWD_WEIGHT, LPO_BF16, 0, "weight bf16" }
	};
	size_t i;
	char missing[512] = "";

	for (i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
		if (!has_plan(s, ways[i].pass, ways[i].dt, ways[i].flags,
		    align))
			snprintf(missing + strlen(missing), sizeof(missing) -
			    strlen(missing), " (%s)", ways[i].text);
	}
	ok(missing[0] == '\0', "%dx%d/%d on %dx%dx%dx%d to %d:%s", (int)s->kh,
	    (int)s->kw, (int)s->stride, (int)s->n, (int)s->h, (int)s->w,
	    (int)s->ci, (int)s->co, missing);
}

static void
check_nets(int rows)
{
	size_t i;

	for (i = 0; i < sizeof(nets) / sizeof(*nets); i++) {
		const struct net *t = &nets[i];
		int out = t->size / t->stride;
		struct lpo_conv_shape s = { rows, t->size, t->size, t->ci,
		    t->co, 3, 3, t->stride, t->pad, t->pad, out, out };

		check(&s, 16);
	}
}

int
main(void)
{
	size_t i;

#ifdef __SANITIZE_ADDRESS__
	/* cuDNN's own leaks */
	__lsan_disable();
#endif
	library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
	if (library == NULL || open_device() != 0) {
		skip("no cuDNN that plans without a device");
		return done_testing();
	}
	for (i = 0; i < sizeof(odd) / sizeof(*odd); i++)
		check(&odd[i], 16);
	for (i = 0; i < sizeof(odd) / sizeof(*odd); i++)
		check(&odd[i], 4);
	check_nets(2);
	check_nets(20);
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
