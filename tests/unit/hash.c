/* SHA-256 against FIPS 180-4's examples, CRC32C against RFC 3720's. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/half.h"
#include "lib/base/hash.h"
#include "tests/tap.h"

static void
sha(void)
{
	static const char *text[] = { "", "abc",
		"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq" };
	static const char *want[] = {
	    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
	    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
	    "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
	};
	static char a[1000000], hex[65], one[65];
	struct lpo_sha256 s;
	size_t i, n, bad = 0;

	for (i = 0; i < 3; i++) {
		lpo_sha256_of(hex, text[i], strlen(text[i]));
		ok(strcmp(hex, want[i]) == 0, "sha256 of '%s'", text[i]);
	}
	memset(a, 'a', sizeof(a));
	lpo_sha256_of(hex, a, sizeof(a));
	ok(strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67"
	    "f1809a48a497200e046d39ccc7112cd0") == 0, "a million a");
	for (n = 0; n < 260; n++) {	/* any cut gives the same */
		lpo_sha256_of(one, a, n);
		lpo_sha256_init(&s);
		s.plain = 1;
		for (i = 0; i < n; i += 1 + i % 7)
			lpo_sha256_update(&s, a + i,
			    i + 1 + i % 7 < n ? 1 + i % 7 : n - i);
		lpo_sha256_hex(&s, hex);
		bad += strcmp(hex, one) != 0;
	}
	ok(bad == 0, "pieces by plain C give what the whole gives, 260 lengths");
}

static void
crc(void)
{
	uint8_t b[4096];
	size_t i, bad = 0;

	ok(lpo_crc32c(0, "123456789", 9) == 0xe3069283, "check value");
	memset(b, 0, 32);
	ok(lpo_crc32c(0, b, 32) == 0x8a9136aa, "32 zeros (RFC 3720)");
	memset(b, 0xff, 32);
	ok(lpo_crc32c(0, b, 32) == 0x62a8ab43, "32 ones (RFC 3720)");
	for (i = 0; i < 32; i++)
		b[i] = (uint8_t)i;
	ok(lpo_crc32c(0, b, 32) == 0x46dd794e, "0..31 (RFC 3720)");
	for (i = 0; i < sizeof(b); i++)
		b[i] = (uint8_t)(i * 2654435761u >> 24);
	for (i = 0; i < 300; i++) {
		uint32_t whole = lpo_crc32c_table(0, b + i, 1000);

		bad += lpo_crc32c(0, b + i, 1000) != whole;
		bad += lpo_crc32c(lpo_crc32c(0, b + i, i), b + 2 * i,
		    1000 - i) != whole;
	}
	ok(bad == 0, "instruction and table agree, at any offset and cut");
}

/* f32 -> f16 against a search over all f16 values around it. */
static void
half(void)
{
	int64_t i, bad = 0;
	uint32_t u;

	for (i = 0; i < 65536; i++) {
		float f = lpo_f16_to_f32((uint16_t)i);

		if (f == f)
			bad += lpo_f32_to_f16(f) != i;
		else
			bad += (lpo_f32_to_f16(f) & 0x7c00) != 0x7c00;
	}
	ok(bad == 0, "every f16 comes back");
	bad = 0;
	for (i = 0; i < 0x7c00 - 1; i++) {	/* between neighbours */
		float a = lpo_f16_to_f32((uint16_t)i);
		float b = lpo_f16_to_f32((uint16_t)(i + 1));
		float mid = (a + b) / 2, up, down;

		memcpy(&u, &mid, 4);
		u++;
		memcpy(&up, &u, 4);
		u -= 2;
		memcpy(&down, &u, 4);
		bad += lpo_f32_to_f16(mid) != (i & 1 ? i + 1 : i);
		bad += lpo_f32_to_f16(up) != i + 1;
		bad += lpo_f32_to_f16(down) != i;
	}
	ok(bad == 0, "halfway goes to even, beside it to the nearer");
	ok(lpo_f32_to_f16(65519.99f) == 0x7bff &&
	    lpo_f32_to_f16(65520.0f) == 0x7c00 &&
	    lpo_f32_to_f16(-1e30f) == 0xfc00, "f16 overflow");
	ok(lpo_f32_to_bf16(1.00390625f) == 0x3f80 &&
	    lpo_f32_to_bf16(1.01171875f) == 0x3f82 &&
	    lpo_bf16_to_f32(0x3f80) == 1, "bf16 halfway goes to even");
}

int
main(void)
{
	char path[] = "/tmp/lpo-hash-XXXXXX", hex[65];
	lpo_ctx *c = lpo_ctx_new();
	int fd = mkstemp(path);

	sha();
	crc();
	half();
	ok(fd >= 0 && write(fd, "abc", 3) == 3 &&
	    lpo_sha256_file(c, hex, path) == 0 &&
	    strncmp(hex, "ba7816bf8f01cfea", 16) == 0, "file");
	close(fd);
	unlink(path);
	ok(lpo_sha256_file(c, hex, path) == LPO_ENOTFOUND, "absent file: %s",
	    lpo_errmsg(c));
	lpo_ctx_free(c);
	return done_testing();
}
