/* What torch files made by hand are made of. */
#ifndef TESTS_UNIT_TORCH_BYTES_H
#define TESTS_UNIT_TORCH_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* `bytes` of v behind the n that p has, little-endian */
static void
le(uint8_t *p, size_t *n, uint64_t v, int bytes)
{
	while (bytes-- > 0) {
		p[(*n)++] = (uint8_t)v;
		v >>= 8;
	}
}

/* Pickled: a storage of n elements; tensor of one, offset, size, stride */
#define STORAGE(type, key, n) "(X\7\0\0\0storagec" type "\nX" key \
	"X\3\0\0\0cpu" n "tQ"
#define REBUILD(storage, rest) "ctorch._utils\n_rebuild_tensor_v2\n(" \
	storage rest "\x89)tR"

#endif
