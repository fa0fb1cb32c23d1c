/*
 * In place of lib/io/torch.c, and of libarchive, where everything is in one
 * file: random models have no state_dict.pt.
 */
#include "lib/io/safetensors_priv.h"

int
lpo_torch_sniff(const uint8_t *p, size_t bytes)
{
	(void)p;
	(void)bytes;
	return 0;
}

int
lpo_st_add_torch(lpo_ctx *c, lpo_st *st, const uint8_t *p, size_t bytes,
    const char *file)
{
	(void)st;
	(void)p;
	(void)bytes;
	return lpo_fail(c, LPO_EFORMAT, "'%s' cannot be read here", file);
}
