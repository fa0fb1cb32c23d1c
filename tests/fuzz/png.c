#include "tests/fuzz/image.h"

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	return image_one(p, n, LPO_IMAGE_PNG);
}
