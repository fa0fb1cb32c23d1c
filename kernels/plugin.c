/*
 * Finds and opens lpo-cuda.so.  It is looked for by absolute path only: what
 * the loader's search path holds is not asked, so that a library of another
 * version is never met by chance.
 */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/plugin.h"

#define FILE_NAME "lpo-cuda.so"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const struct lpo_plugin *plugin;
static char why[1024];		/* it is not there */

static void __attribute__((format(printf, 1, 2)))
refuse(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof why, fmt, ap);
	va_end(ap);
}

/*
 * Beside the executable, or in ../lib/lpo from there, which is where `make
 * install` puts it whatever the prefix.  The kernel knows the executable's
 * place, even if it was started through a link or by PATH.
 */
static int
near_us(char *path, size_t size)
{
	static const char *const place[] = { "", "../lib/lpo/" };
	char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
	char *slash;
	size_t i;

	if (n <= 0)
		return 0;
	exe[n] = '\0';
	if ((slash = strrchr(exe, '/')) == NULL)
		return 0;
	slash[1] = '\0';
	for (i = 0; i < sizeof place / sizeof *place; i++)
		if (snprintf(path, size, "%s%s" FILE_NAME, exe, place[i]) <
		    (int)size && access(path, F_OK) == 0)
			return 1;
	return 0;
}

/* 1 with the file's name, or 0 with the reason in `why`. */
static int
find(char *path, size_t size)
{
	const char *given = getenv("LPO_CUDA_PLUGIN");

	if (given == NULL || *given == '\0') {
		if (near_us(path, size))
			return 1;
		refuse("no CUDA plug-in: no " FILE_NAME " beside the program "
		    "or in ../lib/lpo from there ('make cuda' builds it)");
		return 0;
	}
	if (*given == '/' && access(given, F_OK) == 0 &&
	    snprintf(path, size, "%s", given) < (int)size)
		return 1;
	refuse("no CUDA plug-in: LPO_CUDA_PLUGIN, '%.512s', is %s", given,
	    *given == '/' ? "no file" : "no absolute path");
	return 0;
}

/* The loader's own words, and what helps against the usual two. */
static void
cannot_load(const char *path, const char *words)
{
	const char *hint = "";

	if (words == NULL)
		words = "unknown error";
	if (strstr(words, "cannot open shared object") != NULL)
		hint = strstr(words, "libcudnn") != NULL ?
		    "; install cuDNN 9 or add its folder to LD_LIBRARY_PATH" :
		    "; install CUDA's cuBLAS or add its folder to "
		    "LD_LIBRARY_PATH";
	/* they begin with the name of what is missing, or with ours */
	if (strncmp(words, path, strlen(path)) == 0 &&
	    strncmp(words + strlen(path), ": ", 2) == 0)
		words += strlen(path) + 2;
	refuse("cannot load '%.256s': %.*s%s", path,
	    (int)strcspn(words, "\n"), words, hint);
}

/*
 * Once for the process.  The library stays: CUDA's threads outlive a close.
 * Its own libraries are found at once (RTLD_NOW), so that a missing one is a
 * message here and not the end of the process in the middle of a run.
 */
static void
load(void)
{
	const struct lpo_plugin *p;
	char path[PATH_MAX];
	void *so;

	if (!find(path, sizeof path))
		return;
	if ((so = dlopen(path, RTLD_NOW | RTLD_LOCAL)) == NULL) {
		cannot_load(path, dlerror());
		return;
	}
	p = dlsym(so, "lpo_plugin");
	if (p == NULL)
		refuse("'%.256s' is no plug-in of lpo-tools", path);
	else if (p->abi != LPO_KERNEL_ABI || p->size_bytes != sizeof *p ||
	    p->kernels->abi != LPO_KERNEL_ABI ||
	    p->kernels->size_bytes != sizeof *p->kernels)
		refuse("'%.256s' belongs to another version of lpo-tools "
		    "(interface %u, needed: %u): 'make cuda' builds it anew",
		    path, (unsigned int)p->abi, (unsigned int)LPO_KERNEL_ABI);
	else
		plugin = p;
}

static int
ready(char *text, size_t text_bytes)
{
	pthread_once(&once, load);
	if (plugin != NULL)
		return 0;
	snprintf(text, text_bytes, "%s", why);
	return LPO_ENODEV;
}

int
lpo_cuda_open(lpo_backend *be, int device, int flags, char *text,
    size_t text_bytes)
{
	memset(be, 0, sizeof *be);
	if (ready(text, text_bytes) != 0)
		return LPO_ENODEV;
	return plugin->open(be, device, flags, text, text_bytes);
}

void
lpo_cuda_close(lpo_backend *be)
{
	if (be != NULL && be->k != NULL)
		plugin->close(be);
}

int
lpo_cuda_devices(struct lpo_device *list, int max, char *text,
    size_t text_bytes)
{
	if (ready(text, text_bytes) != 0)
		return LPO_ENODEV;
	return plugin->devices(list, max, text, text_bytes);
}

int
lpo_cuda_device(lpo_backend *be, struct lpo_device *d)
{
	return plugin->device(be, d);
}

const char *
lpo_cuda_versions(void)
{
	char text[1024];

	return ready(text, sizeof text) == 0 ? plugin->versions() : "";
}
