/*
 * SHA-256 in plain C; CRC32C by the SSE4.2 instruction or a table.
 */
#include "lib/base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const uint32_t K[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
	0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
	0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
};

static inline uint32_t
rotr(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void
sha256_block(uint32_t h[8], const uint8_t *p)
{
	uint32_t w[64], a, b, c, d, e, f, g, k, t1, t2;
	int i;

	for (i = 0; i < 16; i++, p += 4)
		w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
		    (uint32_t)p[2] << 8 | p[3];
	for (; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] +
		    (rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^
		    w[i - 15] >> 3) +
		    (rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10);
	a = h[0], b = h[1], c = h[2], d = h[3];
	e = h[4], f = h[5], g = h[6], k = h[7];
	for (i = 0; i < 64; i++) {
		t1 = k + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) +
		    ((e & f) ^ (~e & g)) + K[i] + w[i];
		t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) +
		    ((a & b) ^ (a & c) ^ (b & c));
		k = g, g = f, f = e, e = d + t1;
		d = c, c = b, b = a, a = t1 + t2;
	}
	h[0] += a, h[1] += b, h[2] += c, h[3] += d;
	h[4] += e, h[5] += f, h[6] += g, h[7] += k;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* The same by the SHA instructions: 2 rounds each, state as ABEF and CDGH. */
__attribute__((target("sha,sse4.1"))) static void
sha256_blocks_ni(uint32_t h[8], const uint8_t *p, size_t n)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL,
	    0x0405060700010203LL);
	__m128i t, s0, s1, a, b, m[4], k;
	int i;

	t = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xb1);
	s1 = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)),
	    0x1b);
	s0 = _mm_alignr_epi8(t, s1, 8);
	s1 = _mm_blend_epi16(s1, t, 0xf0);
	for (; n > 0; n--, p += 64) {
		a = s0, b = s1;
		for (i = 0; i < 4; i++)
			m[i] = _mm_shuffle_epi8(_mm_loadu_si128(
			    (const __m128i *)(p + 16 * i)), swap);
		for (i = 0; i < 16; i++) {
			k = _mm_add_epi32(m[i & 3],
			    _mm_loadu_si128((const __m128i *)(K + 4 * i)));
			s1 = _mm_sha256rnds2_epu32(s1, s0, k);
			s0 = _mm_sha256rnds2_epu32(s0, s1,
			    _mm_shuffle_epi32(k, 0x0e));
			/* w[16 + 4i ...] takes the place of w[4i ...]. */
			t = _mm_sha256msg1_epu32(m[i & 3], m[(i + 1) & 3]);
			t = _mm_add_epi32(t, _mm_alignr_epi8(m[(i + 3) & 3],
			    m[(i + 2) & 3], 4));
			m[i & 3] = _mm_sha256msg2_epu32(t, m[(i + 3) & 3]);
		}
		s0 = _mm_add_epi32(s0, a);
		s1 = _mm_add_epi32(s1, b);
	}
	t = _mm_shuffle_epi32(s0, 0x1b);
	s1 = _mm_shuffle_epi32(s1, 0xb1);
	_mm_storeu_si128((__m128i *)h, _mm_blend_epi16(t, s1, 0xf0));
	_mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(s1, t, 8));
}

#include <cpuid.h>

/* cpuid leaves a virtual machine, which takes a microsecond: ask once. */
static int
has_sha(void)
{
	static _Atomic int known;	/* 0 not yet, 1 no, 2 yes */
	unsigned a, b = 0, c = 0, d;
	int k = known;

	if (k == 0)
		known = k = 1 + (__get_cpuid_count(7, 0, &a, &b, &c, &d) &&
		    (b >> 29 & 1) && __builtin_cpu_supports("sse4.1"));
	return k == 2;
}

/* Eight bytes an instruction; the chain of one sum is its latency, 3 cycles. */
__attribute__((target("sse4.2"))) static uint32_t
crc32c_sse(uint32_t crc, const uint8_t *p, size_t n)
{
	uint64_t c = ~crc, w;

	for (; n >= 8; n -= 8, p += 8) {
		memcpy(&w, p, 8);
		c = _mm_crc32_u64(c, w);
	}
	for (; n > 0; n--, p++)
		c = _mm_crc32_u8((uint32_t)c, *p);
	return ~(uint32_t)c;
}
#endif

static void
sha256_blocks(struct lpo_sha256 *s, const uint8_t *p, size_t n)
{
#if defined(__x86_64__)
	if (!s->plain && has_sha()) {
		sha256_blocks_ni(s->h, p, n);
		return;
	}
#endif
	for (; n > 0; n--, p += 64)
		sha256_block(s->h, p);
}

void
lpo_sha256_init(struct lpo_sha256 *s)
{
	static const uint32_t h[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
		0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
	};

	memset(s, 0, sizeof(*s));
	memcpy(s->h, h, sizeof(h));
}

void
lpo_sha256_update(struct lpo_sha256 *s, const void *data, size_t n)
{
	const uint8_t *p = data;
	size_t have = s->bytes % 64, take;

	if (n == 0)
		return;
	s->bytes += n;
	if (have > 0) {
		take = n < 64 - have ? n : 64 - have;
		memcpy(s->buf + have, p, take);
		p += take;
		n -= take;
		if (have + take < 64)
			return;
		sha256_blocks(s, s->buf, 1);
	}
	sha256_blocks(s, p, n / 64);
	memcpy(s->buf, p + n / 64 * 64, n % 64);
}

void
lpo_sha256_final(struct lpo_sha256 *s, uint8_t out[32])
{
	uint64_t bits = s->bytes * 8;
	uint8_t pad[72] = { 0x80 };
	size_t have = s->bytes % 64, n = (have < 56 ? 56 : 120) - have;
	int i;

	for (i = 0; i < 8; i++)
		pad[n + (size_t)i] = (uint8_t)(bits >> (56 - 8 * i));
	lpo_sha256_update(s, pad, n + 8);
	for (i = 0; i < 32; i++)
		out[i] = (uint8_t)(s->h[i / 4] >> (24 - i % 4 * 8));
}

void
lpo_sha256_hex(struct lpo_sha256 *s, char out[65])
{
	static const char digit[] = "0123456789abcdef";
	uint8_t raw[32];
	int i;

	lpo_sha256_final(s, raw);
	for (i = 0; i < 32; i++) {
		out[2 * i] = digit[raw[i] >> 4];
		out[2 * i + 1] = digit[raw[i] & 15];
	}
	out[64] = '\0';
}

void
lpo_sha256_of(char out[65], const void *data, size_t n)
{
	struct lpo_sha256 s;

	lpo_sha256_init(&s);
	lpo_sha256_update(&s, data, n);
	lpo_sha256_hex(&s, out);
}

int
lpo_sha256_file(lpo_ctx *c, char out[65], const char *path)
{
	enum { CHUNK = 1 << 20 };
	struct lpo_sha256 s;
	uint8_t *buf = NULL;
	ssize_t n;
	int fd, rc = 0;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND : LPO_EIO,
		    "cannot open '%s': %s", path, strerror(errno));
	buf = lpo_alloc(c, CHUNK, 1);
	if (buf == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	lpo_sha256_init(&s);
	while ((n = read(fd, buf, CHUNK)) != 0) {
		if (lpo_ctx_stopped(c)) {
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
			goto out;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			rc = lpo_fail(c, LPO_EIO, "cannot read '%s': %s", path,
			    strerror(errno));
			goto out;
		}
		lpo_sha256_update(&s, buf, (size_t)n);
	}
	lpo_sha256_hex(&s, out);
out:
	lpo_free(buf);
	close(fd);
	return rc;
}

/* One byte of the reflected polynomial 0x82f63b78, four bits at a time. */
uint32_t
lpo_crc32c_table(uint32_t crc, const void *data, size_t n)
{
	static const uint32_t nibble[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
		0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
		0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
		0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75
	};
	const uint8_t *p = data;
	uint32_t c = ~crc;

	for (; n > 0; n--, p++) {
		c ^= *p;
		c = c >> 4 ^ nibble[c & 15];
		c = c >> 4 ^ nibble[c & 15];
	}
	return ~c;
}

uint32_t
lpo_crc32c(uint32_t crc, const void *data, size_t n)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return crc32c_sse(crc, data, n);
#endif
	return lpo_crc32c_table(crc, data, n);
}
