/*
 * The CUDA backend's frame: devices, memory, errors, recorded lists of calls,
 * and the table of its ops.  One stream carries everything.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda.h"

#define WORKSPACE_BYTES	((size_t)64 << 20)
/* What upload copies through, memory that the device reads by itself. */
#define SLOT_BYTES	((size_t)4 << 20)
enum { SLOTS = 8 };

/* be->priv; the first member is what the ops know of it. */
struct base {
	struct cuda c;
	struct lpo_device device;
	char *slot[SLOTS];
	cudaEvent_t read[SLOTS];	/* the device has read the slot */
	int at;				/* the slot being filled */
	size_t used;			/* bytes of it */
};

static struct base *
base_of(struct cuda *c)
{
	return (struct base *)c;
}

/* ------------------------------------------------------------- errors */

int
cuda_fail(struct cuda *c, int code, const char *what, const char *why)
{
	snprintf(c->error, sizeof c->error, "%s: %s", what, why);
	return code;
}

/*
 * An error that is not taken back by cudaGetLastError would be found again by
 * the next launch, which has no part in it.
 */
int
cuda_check(struct cuda *c, cudaError_t e, const char *what)
{
	if (e == cudaSuccess)
		return 0;
	(void)cudaGetLastError();
	switch (e) {
	case cudaErrorMemoryAllocation:
		return cuda_fail(c, LPO_ENOMEM, what, cudaGetErrorString(e));
	case cudaErrorNoDevice:
	case cudaErrorInvalidDevice:
	case cudaErrorInsufficientDriver:
	case cudaErrorNoKernelImageForDevice:
	case cudaErrorDevicesUnavailable:
		return cuda_fail(c, LPO_ENODEV, what, cudaGetErrorString(e));
	default:
		return cuda_fail(c, LPO_ECUDA, what, cudaGetErrorString(e));
	}
}

int
cuda_check_lt(struct cuda *c, cublasStatus_t s, const char *what)
{
	char why[128];

	if (s == CUBLAS_STATUS_SUCCESS)
		return 0;
	(void)cudaGetLastError();
	snprintf(why, sizeof why, "cuBLASLt: %s", cublasLtGetStatusString(s));
	return cuda_fail(c, s == CUBLAS_STATUS_ALLOC_FAILED ? LPO_ENOMEM :
	    s == CUBLAS_STATUS_ARCH_MISMATCH ? LPO_ENODEV : LPO_ECUDA, what,
	    why);
}

/* cuDNN's own last words say which attribute of which descriptor it was. */
int
cuda_check_dnn(struct cuda *c, cudnnStatus_t s, const char *what)
{
	char why[400], last[256] = "";
	char *end;

	if (s == CUDNN_STATUS_SUCCESS)
		return 0;
	(void)cudaGetLastError();
	cudnnGetLastErrorString(last, sizeof last);
	if ((end = strchr(last, '\n')) != NULL)
		*end = '\0';
	snprintf(why, sizeof why, "cuDNN: %s%s%s", cudnnGetErrorString(s),
	    last[0] != '\0' ? ": " : "", last);
	return cuda_fail(c, s == CUDNN_STATUS_ALLOC_FAILED ? LPO_ENOMEM :
	    s == CUDNN_STATUS_ARCH_MISMATCH ? LPO_ENODEV : LPO_ECUDA, what,
	    why);
}

int
cuda_done(struct cuda *c, const char *what)
{
	cudaError_t e = cudaGetLastError();

	if (e == cudaSuccess && c->checked)
		e = cudaStreamSynchronize(c->stream);
	if (e == cudaSuccess)	/* the words of an older error are over */
		c->error[0] = '\0';
	return cuda_check(c, e, what);
}

const char *
cuda_error(lpo_backend *be)
{
	return cuda_of(be)->error;
}

/* ------------------------------------------------------------- memory */

void *
cuda_alloc(lpo_backend *be, size_t bytes)
{
	struct cuda *c = cuda_of(be);
	size_t all = 0, left = 0;
	cudaError_t e;
	void *p = NULL;

	if (bytes == 0)		/* a NULL would be a failure */
		bytes = 1;
	e = c->checked ? cudaMallocManaged(&p, bytes) : cudaMalloc(&p, bytes);
	if (e == cudaSuccess)
		return p;
	if (e != cudaErrorMemoryAllocation ||
	    cudaMemGetInfo(&left, &all) != cudaSuccess)
		(void)cuda_check(c, e, "alloc");
	else
		snprintf(c->error, sizeof c->error, "alloc: out of memory: "
		    "%zu MiB asked for, %zu MiB of %zu are free", bytes >> 20,
		    left >> 20, all >> 20);
	(void)cudaGetLastError();
	return NULL;
}

void
cuda_free(lpo_backend *be, void *p)
{
	(void)cuda_check(cuda_of(be), cudaFree(p), "free");
}

/*
 * The next slot to fill.  The device may still have to read it: what was
 * queued when it was left is waited for.
 */
static int
next_slot(struct base *b)
{
	int rc;

	if ((rc = cuda_check(&b->c, cudaEventRecord(b->read[b->at],
	    b->c.stream), "upload")) != 0)
		return rc;
	b->at = (b->at + 1) % SLOTS;
	b->used = 0;
	return cuda_check(&b->c, cudaEventSynchronize(b->read[b->at]),
	    "upload");
}

/*
 * Through memory of our own: the caller's is free again on return, and yet
 * the host waits for nothing but a slot, so that a step's small inputs are
 * queued behind the step before, and a large file is read while the device
 * takes its beginning.
 */
int
cuda_upload(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	struct base *b = base_of(cuda_of(be));
	char *to = (char *)dst;
	const char *from = (const char *)src;
	size_t n;
	int rc;

	if (b->c.capturing)
		return cuda_fail(&b->c, LPO_EINVAL, "upload",
		    "not between graph_begin and graph_end");
	for (; bytes > 0; bytes -= n, to += n, from += n) {
		if (b->used == SLOT_BYTES && (rc = next_slot(b)) != 0)
			return rc;
		n = SLOT_BYTES - b->used;
		n = bytes < n ? bytes : n;
		memcpy(b->slot[b->at] + b->used, from, n);
		rc = cuda_check(&b->c, cudaMemcpyAsync(to,
		    b->slot[b->at] + b->used, n, cudaMemcpyHostToDevice,
		    b->c.stream), "upload");
		if (rc != 0)
			return rc;
		b->used += (n + 63) / 64 * 64;
	}
	return cuda_done(&b->c, "upload");
}

int
cuda_download(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	struct cuda *c = cuda_of(be);
	int rc;

	if (c->capturing)
		return cuda_fail(c, LPO_EINVAL, "download",
		    "not between graph_begin and graph_end");
	if (bytes > 0 && (rc = cuda_check(c, cudaMemcpyAsync(dst, src, bytes,
	    cudaMemcpyDeviceToHost, c->stream), "download")) != 0)
		return rc;
	return cuda_check(c, cudaStreamSynchronize(c->stream), "download");
}

/* Memory that the device writes by itself, and when it has. */
struct landing {
	void *host;
	cudaEvent_t there;
};

void *
cuda_landing_new(lpo_backend *be, size_t bytes)
{
	struct cuda *c = cuda_of(be);
	struct landing *l = (struct landing *)calloc(1, sizeof *l);

	if (l == NULL) {
		(void)cuda_fail(c, LPO_ENOMEM, "landing_new", "out of memory");
		return NULL;
	}
	if (cuda_check(c, cudaHostAlloc(&l->host, bytes > 0 ? bytes : 1,
	    cudaHostAllocDefault), "landing_new") == 0 && cuda_check(c,
	    cudaEventCreateWithFlags(&l->there, cudaEventDisableTiming),
	    "landing_new") == 0)
		return l;
	cuda_landing_free(be, l);
	return NULL;
}

/* Whatever became of the calls, nothing is still to be written to it. */
void
cuda_landing_free(lpo_backend *be, void *landing)
{
	struct landing *l = (struct landing *)landing;

	if (l == NULL)
		return;
	(void)cudaStreamSynchronize(cuda_stream(be));
	if (l->there != NULL)
		(void)cudaEventDestroy(l->there);
	(void)cudaFreeHost(l->host);
	(void)cudaGetLastError();
	free(l);
}

int
cuda_land(lpo_backend *be, void *landing, const void *src, size_t bytes)
{
	struct landing *l = (struct landing *)landing;
	struct cuda *c = cuda_of(be);
	int rc;

	if (c->capturing)
		return cuda_fail(c, LPO_EINVAL, "land",
		    "not between graph_begin and graph_end");
	if (bytes > 0 && (rc = cuda_check(c, cudaMemcpyAsync(l->host, src,
	    bytes, cudaMemcpyDeviceToHost, c->stream), "land")) != 0)
		return rc;
	rc = cuda_check(c, cudaEventRecord(l->there, c->stream), "land");
	return rc != 0 ? rc : cuda_done(c, "land");
}

int
cuda_landed(lpo_backend *be, void *landing, const void **host)
{
	struct landing *l = (struct landing *)landing;

	*host = l->host;
	return cuda_check(cuda_of(be), cudaEventSynchronize(l->there),
	    "landed");
}

int
cuda_zero(lpo_backend *be, void *dst, size_t bytes)
{
	struct cuda *c = cuda_of(be);
	int rc;

	if (bytes == 0)
		return 0;
	rc = cuda_check(c, cudaMemsetAsync(dst, 0, bytes, c->stream), "zero");
	return rc != 0 ? rc : cuda_done(c, "zero");
}

int
cuda_copy(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	struct cuda *c = cuda_of(be);
	int rc;

	if (bytes == 0 || dst == src)
		return 0;
	rc = cuda_check(c, cudaMemcpyAsync(dst, src, bytes,
	    cudaMemcpyDeviceToDevice, c->stream), "copy");
	return rc != 0 ? rc : cuda_done(c, "copy");
}

int
cuda_sync(lpo_backend *be)
{
	struct cuda *c = cuda_of(be);

	if (c->capturing)
		return cuda_fail(c, LPO_EINVAL, "sync",
		    "not between graph_begin and graph_end");
	return cuda_check(c, cudaStreamSynchronize(c->stream), "sync");
}

int
cuda_memory(lpo_backend *be, size_t *free_bytes, size_t *all_bytes)
{
	return cuda_check(cuda_of(be), cudaMemGetInfo(free_bytes, all_bytes),
	    "memory");
}

/* ------------------------------------------------------------- graphs */

/*
 * Relaxed: a kernel that is loaded at its first launch, as all are, may
 * allocate; the stricter modes would end the recording there.
 */
int
cuda_graph_begin(lpo_backend *be)
{
	struct cuda *c = cuda_of(be);
	int rc;

	if (c->checked)		/* each call waits for its work */
		return LPO_ENODEV;
	if (c->capturing)
		return cuda_fail(c, LPO_EINVAL, "graph_begin",
		    "a graph is being recorded");
	rc = cuda_check(c, cudaStreamBeginCapture(c->stream,
	    cudaStreamCaptureModeRelaxed), "graph_begin");
	c->capturing = rc == 0;
	return rc;
}

int
cuda_graph_end(lpo_backend *be, void **graph)
{
	struct cuda *c = cuda_of(be);
	cudaGraph_t g = NULL;
	cudaGraphExec_t run = NULL;
	int rc;

	*graph = NULL;
	if (!c->capturing)
		return cuda_fail(c, LPO_EINVAL, "graph_end",
		    "no graph is being recorded");
	c->capturing = 0;
	rc = cuda_check(c, cudaStreamEndCapture(c->stream, &g), "graph_end");
	if (rc == 0)
		rc = cuda_check(c, cudaGraphInstantiate(&run, g, 0),
		    "graph_end");
	if (rc == 0)
		rc = cuda_check(c, cudaGraphUpload(run, c->stream),
		    "graph_end");
	if (g != NULL)
		(void)cudaGraphDestroy(g);
	if (rc != 0 && run != NULL)
		(void)cudaGraphExecDestroy(run);
	else
		*graph = run;
	return rc;
}

int
cuda_graph_run(lpo_backend *be, void *graph)
{
	struct cuda *c = cuda_of(be);

	return cuda_check(c, cudaGraphLaunch((cudaGraphExec_t)graph,
	    c->stream), "graph_run");
}

void
cuda_graph_free(lpo_backend *be, void *graph)
{
	if (graph != NULL)
		(void)cuda_check(cuda_of(be), cudaGraphExecDestroy(
		    (cudaGraphExec_t)graph), "graph_free");
}

/* ---------------------------------------------------------- the table */

#define OP(name) .name = cuda_##name
static const struct lpo_kernels table = {
	.abi = LPO_KERNEL_ABI, .size_bytes = sizeof(struct lpo_kernels),
	.name = "cuda",
	OP(alloc), OP(free), OP(upload), OP(download), OP(landing_new),
	OP(landing_free), OP(land), OP(landed), OP(zero), OP(copy), OP(sync),
	 OP(error), OP(memory), OP(graph_begin), OP(graph_end),
	OP(graph_run), OP(graph_free), OP(linear_fwd), OP(linear_bwd_data),
	OP(linear_bwd_weight), OP(linear_scratch_bytes), OP(lora_fwd),
	OP(lora_bwd), OP(conv_fwd),
	OP(conv_bwd_data), OP(conv_bwd_weight), OP(conv_scratch_bytes),
	OP(attention_fwd), OP(attention_bwd), OP(attention_scratch_bytes),
	OP(group_norm_fwd), OP(group_norm_bwd), OP(norm_scratch_bytes),
	OP(layer_norm_fwd), OP(layer_norm_bwd), OP(act_fwd), OP(act_bwd),
	OP(geglu_fwd), OP(geglu_bwd), OP(add), OP(acc), OP(add_rows_fwd),
	OP(add_rows_bwd), OP(upsample_fwd), OP(upsample_bwd), OP(concat_fwd),
	OP(concat_bwd), OP(mean_pool_fwd), OP(mean_pool_bwd),
	OP(gather_rows_fwd), OP(gather_rows_bwd), OP(embed_fwd), OP(embed_bwd),
	OP(guide_fwd), OP(guide_bwd), OP(convert), OP(convert_acc), OP(adamw),
	OP(sum_squares)
};
#undef OP

/* ------------------------------------------------------------ devices */

/* Asked for, never run: code for the device is in this file or in none. */
static __global__ void
probe(int *x)
{
	*x = 0;
}

static void
say(char *text, size_t text_bytes, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (text != NULL && text_bytes > 0)
		vsnprintf(text, text_bytes, fmt, ap);
	va_end(ap);
}

/* The number of devices, or LPO_ENODEV. */
static int
count_devices(char *text, size_t text_bytes)
{
	int driver = 0, n = 0;
	cudaError_t e;

	(void)cudaDriverGetVersion(&driver);
	e = cudaGetDeviceCount(&n);
	(void)cudaGetLastError();
	if (e == cudaSuccess && n > 0)
		return n;
	if (driver == 0)
		say(text, text_bytes, "no NVIDIA driver on this machine");
	else if (e == cudaErrorInsufficientDriver)
		say(text, text_bytes, "the NVIDIA driver is too old: it knows "
		    "CUDA %d.%d, and CUDA %d.%d is needed", driver / 1000,
		    driver % 1000 / 10, CUDART_VERSION / 1000,
		    CUDART_VERSION % 1000 / 10);
	else if (e == cudaSuccess || e == cudaErrorNoDevice)
		say(text, text_bytes, "the NVIDIA driver shows no device");
	else
		say(text, text_bytes, "CUDA: %s", cudaGetErrorString(e));
	return LPO_ENODEV;
}

static int
has_code(void)
{
	struct cudaFuncAttributes a;
	cudaError_t e = cudaFuncGetAttributes(&a, probe);

	(void)cudaGetLastError();
	return e == cudaSuccess;
}

/*
 * What a device is; made the current one, its context made.  One that cannot
 * be had now, another process's alone perhaps, is not usable, text says why.
 */
static int
look_at(struct lpo_device *d, int i, char *text, size_t text_bytes)
{
	struct cudaDeviceProp p;
	cudaError_t e;

	memset(d, 0, sizeof *d);
	if ((e = cudaGetDeviceProperties(&p, i)) == cudaSuccess) {
		snprintf(d->name, sizeof d->name, "%.127s", p.name);
		d->major = p.major;
		d->minor = p.minor;
		d->processors = p.multiProcessorCount;
		d->memory_bytes = p.totalGlobalMem;
		if ((e = cudaSetDevice(i)) == cudaSuccess)
			e = cudaMemGetInfo(&d->free_bytes, &d->memory_bytes);
	}
	(void)cudaGetLastError();
	if (e != cudaSuccess) {
		say(text, text_bytes, "%s", cudaGetErrorString(e));
		return LPO_ENODEV;
	}
	d->usable = has_code();
	return 0;
}

static int
devices(struct lpo_device *list, int max, char *text, size_t text_bytes)
{
	int i, n, was = -1;

	if ((n = count_devices(text, text_bytes)) < 0)
		return n;
	(void)cudaGetDevice(&was);
	for (i = 0; i < n && i < max; i++)
		(void)look_at(&list[i], i, text, text_bytes);
	if (was >= 0)
		(void)cudaSetDevice(was);
	(void)cudaGetLastError();
	return i;
}

static int
device_of(lpo_backend *be, struct lpo_device *d)
{
	size_t all;

	*d = base_of(cuda_of(be))->device;
	return cuda_memory(be, &d->free_bytes, &all);
}

static const char *
versions(void)
{
	static char text[128];
	int driver = 0, run = 0, lt = (int)cublasLtGetVersion(),
	    dnn = (int)cudnnGetVersion(), n;

	(void)cudaDriverGetVersion(&driver);
	(void)cudaRuntimeGetVersion(&run);
	(void)cudaGetLastError();
	n = snprintf(text, sizeof text, "CUDA %d.%d, cuBLAS %d.%d.%d, "
	    "cuDNN %d.%d.%d, ", run / 1000, run % 1000 / 10, lt / 10000,
	    lt / 100 % 100, lt % 100, dnn / 10000, dnn / 100 % 100,
	    dnn % 100);
	if (driver == 0)
		say(text + n, sizeof text - (size_t)n, "no driver");
	else
		say(text + n, sizeof text - (size_t)n, "driver %d.%d",
		    driver / 1000, driver % 1000 / 10);
	return text;
}

/* ------------------------------------------------------ open and close */

static void
close_base(struct base *b)
{
	struct cuda *c = &b->c;
	cudaGraph_t cut = NULL;
	int i;

	if (c->capturing && cudaStreamEndCapture(c->stream, &cut) ==
	    cudaSuccess)
		(void)cudaGraphDestroy(cut);
	if (c->stream != NULL)
		(void)cudaStreamSynchronize(c->stream);
	if (c->linear != NULL)
		cuda_linear_free(c);
	if (c->conv != NULL)
		cuda_conv_free(c);
	if (c->attention != NULL)
		cuda_attention_free(c);
	if (c->dnn != NULL)
		(void)cudnnDestroy(c->dnn);
	if (c->lt != NULL)
		(void)cublasLtDestroy(c->lt);
	for (i = 0; i < SLOTS; i++)
		if (b->read[i] != NULL)
			(void)cudaEventDestroy(b->read[i]);
	(void)cudaFreeHost(b->slot[0]);
	(void)cudaFree(c->workspace);
	if (c->stream != NULL)
		(void)cudaStreamDestroy(c->stream);
	(void)cudaGetLastError();
	free(b);
}

static void
close_backend(lpo_backend *be)
{
	if (be == NULL)
		return;
	if (be->priv != NULL)
		close_base(base_of(cuda_of(be)));
	memset(be, 0, sizeof *be);
}

static int
make_slots(struct base *b)
{
	struct cuda *c = &b->c;
	void *p = NULL;
	int i, rc;

	rc = cuda_check(c, cudaHostAlloc(&p, SLOTS * SLOT_BYTES,
	    cudaHostAllocDefault), "pinned memory");
	for (i = 0; i < SLOTS && rc == 0; i++) {
		b->slot[i] = (char *)p + (size_t)i * SLOT_BYTES;
		rc = cuda_check(c, cudaEventCreateWithFlags(&b->read[i],
		    cudaEventDisableTiming), "event");
	}
	return rc;
}

static int
make_base(struct base *b)
{
	struct cuda *c = &b->c;
	int rc;

	if ((rc = cuda_check(c, cudaStreamCreateWithFlags(&c->stream,
	    cudaStreamNonBlocking), "stream")) != 0 ||
	    (rc = cuda_check(c, cudaMalloc(&c->workspace, WORKSPACE_BYTES),
	    "workspace")) != 0 || (rc = make_slots(b)) != 0 ||
	    (rc = cuda_check_lt(c, cublasLtCreate(&c->lt), "open")) != 0 ||
	    (rc = cuda_check_dnn(c, cudnnCreate(&c->dnn), "open")) != 0)
		return rc;
	c->workspace_bytes = WORKSPACE_BYTES;
	return cuda_check_dnn(c, cudnnSetStream(c->dnn, c->stream), "open");
}

/* One line on a device that is there and has no code in this file. */
static int
no_code(const struct lpo_device *d, char *text, size_t text_bytes)
{
	static const int arch[] = { __CUDA_ARCH_LIST__ };
	char list[128] = "";
	size_t i, at = 0;

	for (i = 0; i < sizeof arch / sizeof *arch && at < sizeof list; i++)
		at += (size_t)snprintf(list + at, sizeof list - at, " %d.%d",
		    arch[i] / 100, arch[i] / 10 % 10);
	say(text, text_bytes, "%s has compute capability %d.%d, this plug-in "
	    "has code for%s", d->name, d->major, d->minor, list);
	return LPO_ENODEV;
}

static int
open_backend(lpo_backend *be, int device, int flags, char *text,
    size_t text_bytes)
{
	struct lpo_device d;
	struct base *b;
	int n, rc;

	memset(be, 0, sizeof *be);
	if ((n = count_devices(text, text_bytes)) < 0)
		return n;
	if (device < 0 || device >= n) {
		say(text, text_bytes, "the last one here is 'cuda:%d'", n - 1);
		return LPO_ENODEV;
	}
	if ((rc = look_at(&d, device, text, text_bytes)) != 0)
		return rc;
	if (!d.usable)
		return no_code(&d, text, text_bytes);
	if ((b = (struct base *)calloc(1, sizeof *b)) == NULL) {
		say(text, text_bytes, "out of memory");
		return LPO_ENOMEM;
	}
	b->device = d;
	b->c.device = device;
	b->c.sm = d.major * 10 + d.minor;
	b->c.processors = d.processors;
	b->c.checked = (flags & LPO_PLUGIN_CHECKED) != 0;
	if ((rc = make_base(b)) != 0) {
		say(text, text_bytes, "%s: %s", d.name, b->c.error);
		close_base(b);
		return rc;
	}
	be->k = &table;
	be->threads = 1;
	be->priv = &b->c;
	return 0;
}

extern "C" {
extern __attribute__((visibility("default")))
const struct lpo_plugin lpo_plugin;
const struct lpo_plugin lpo_plugin = {
	.abi = LPO_KERNEL_ABI, .size_bytes = sizeof(struct lpo_plugin),
	.kernels = &table, .open = open_backend, .close = close_backend,
	.devices = devices, .device = device_of, .versions = versions
};
}
