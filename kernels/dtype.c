/* Types of numbers: their names and sizes, for every backend. */
#include "kernels/kernel.h"

static const struct {
	const char *name;
	size_t bytes;
} dtypes[] = {
	[LPO_F32] = { "F32", 4 }, [LPO_BF16] = { "BF16", 2 },
	[LPO_F16] = { "F16", 2 }, [LPO_F64] = { "F64", 8 },
	[LPO_I64] = { "I64", 8 }, [LPO_I32] = { "I32", 4 },
	[LPO_U8] = { "U8", 1 }
};

size_t
lpo_dtype_bytes(enum lpo_dtype dt)
{
	return dtypes[dt].bytes;
}

const char *
lpo_dtype_name(enum lpo_dtype dt)
{
	return dtypes[dt].name;
}
