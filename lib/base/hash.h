/*
 * SHA-256 (FIPS 180-4) for identity, CRC32C (Castagnoli) for damage.
 */
#ifndef LPO_BASE_HASH_H
#define LPO_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "lib/base/ctx.h"

struct lpo_sha256 {
	uint32_t h[8];
	uint64_t bytes;
	uint8_t buf[64];
	int plain;	/* set after init: not the SHA instructions (tests) */
};

void	 lpo_sha256_init(struct lpo_sha256 *);
void	 lpo_sha256_update(struct lpo_sha256 *, const void *, size_t bytes);
void	 lpo_sha256_final(struct lpo_sha256 *, uint8_t out[32]);
/* Final, as 64 lower-case hex digits and a NUL. */
void	 lpo_sha256_hex(struct lpo_sha256 *, char out[65]);
/* All at once. */
void	 lpo_sha256_of(char out[65], const void *, size_t bytes);
/*
 * Of a file's bytes.  lpo_db_file_sha256() in lib/io/db.h remembers the
 * answer for large files.  LPO_EIO, LPO_ESTOP.
 */
int	 lpo_sha256_file(lpo_ctx *, char out[65], const char *path);

/*
 * Incremental: crc = lpo_crc32c(0, a, n); crc = lpo_crc32c(crc, b, m) is the
 * sum of a followed by b.  lpo_crc32c(0, "123456789", 9) = e3069283.
 */
uint32_t lpo_crc32c(uint32_t crc, const void *, size_t bytes);
/* The table way, for tests and machines without SSE4.2. */
uint32_t lpo_crc32c_table(uint32_t crc, const void *, size_t bytes);

#endif
