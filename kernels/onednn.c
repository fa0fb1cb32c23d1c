/* The one file that meets oneDNN (see onednn.h). */
#include <dnnl.h>

#include "kernels/onednn.h"

#define STR2(x)	#x
#define STR(x)	STR2(x)

const char *
lpo_cpu_library_version(void)
{
	return "oneDNN " STR(DNNL_VERSION_MAJOR) "." STR(DNNL_VERSION_MINOR)
	    "." STR(DNNL_VERSION_PATCH);
}

int
lpo_onednn_open(lpo_backend *be)
{
	be->priv = NULL;
	return 0;
}

void
lpo_onednn_close(lpo_backend *be)
{
	be->priv = NULL;
}
