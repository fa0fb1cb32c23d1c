/*
 * Backends that are opened on demand.  lpo-cuda.so exports one symbol,
 * `lpo_plugin`; what is not of this ABI and size is refused.
 */
#ifndef LPO_PLUGIN_H
#define LPO_PLUGIN_H

#include "kernels/kernel.h"

/*
 * Memory from alloc is seen by host and device alike, and every call waits
 * for its work and returns its error: for the tests of ops.
 */
enum { LPO_PLUGIN_CHECKED = 1 };

struct lpo_device {
	char name[128];
	int major, minor;	/* compute capability */
	int processors;
	size_t memory_bytes, free_bytes;
	int usable;		/* the plug-in has code for it */
};

struct lpo_plugin {
	uint32_t abi;		/* LPO_KERNEL_ABI */
	uint32_t size_bytes;	/* sizeof(struct lpo_plugin) */
	const struct lpo_kernels *kernels;
	/*
	 * 0 or LPO_E* and one line in text.  CUDA's current device belongs to
	 * a thread, and open sets the caller's: the backend is that thread's,
	 * and one device is open at a time.
	 */
	int (*open)(lpo_backend *, int device, int flags, char *text,
	    size_t text_bytes);
	void (*close)(lpo_backend *);
	/* Up to max devices; their number, or LPO_E* and one line in text. */
	int (*devices)(struct lpo_device *, int max, char *text,
	    size_t text_bytes);
	/* The device of an open backend. */
	int (*device)(lpo_backend *, struct lpo_device *);
	/*
	 * "CUDA 13.0, cuBLAS 13.1.0, cuDNN 9.19.0, driver 13.0"; the last is
	 * what no result depends on.
	 */
	const char *(*versions)(void);
};

/*
 * Open lpo-cuda.so, from beside the executable or ../lib/lpo from there
 * (PREFIX/lib/lpo), or what LPO_CUDA_PLUGIN names, and a device of it.
 * LPO_ENODEV: no plug-in, no driver, no such device or no code for it; text
 * says which, in one line.
 */
int	lpo_cuda_open(lpo_backend *, int device, int flags, char *text,
	    size_t text_bytes);
void	lpo_cuda_close(lpo_backend *);
int	lpo_cuda_devices(struct lpo_device *, int max, char *text,
	    size_t text_bytes);
int	lpo_cuda_device(lpo_backend *, struct lpo_device *);
/* As the plug-in's, or "" where there is none. */
const char *lpo_cuda_versions(void);

#endif
