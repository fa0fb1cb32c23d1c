/*
 * The CLIP tokenizer against transformers' (tests/golden/tokenizer.txt), and
 * broken folders.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/model/tokenizer.h"
#include "tests/tap.h"

#define GOLDEN "tests/golden/tokenizer"

/* \xHH to bytes, in place; the length */
static size_t
unescape(char *s)
{
	char *from = s, *to = s, hex[3] = "";

	while (*from != '\0') {
		if (*from == '\\') {
			memcpy(hex, from + 2, 2);
			*to++ = (char)strtol(hex, NULL, 16);
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	return (size_t)(to - s);
}

/* bos, text, eos, pad to max_length, of plain ids */
static int
padded_ok(lpo_tokenizer *t, const char *text, size_t len, const int32_t *ids,
    int64_t n)
{
	int64_t max = lpo_tokenizer_max_length(t), i, bad = 0;
	int32_t *full = malloc((size_t)max * sizeof(*full)), want;

	if (lpo_tokenizer_encode_bytes(t, full, text, len) != 0)
		bad = 1;
	n = n > max - 2 ? max - 2 : n;
	for (i = 0; i < max && bad == 0; i++) {
		want = i == 0 ? lpo_tokenizer_bos(t) :
		    i <= n ? ids[i - 1] : i == n + 1 ? lpo_tokenizer_eos(t) :
		    lpo_tokenizer_pad(t);
		bad += full[i] != want;
	}
	free(full);
	return bad == 0;
}

static void
test_string(lpo_ctx *c, lpo_tokenizer *t, char *line, const char *name)
{
	char *tab = strchr(line, '\t'), *p = tab + 1, *end;
	int32_t want[8192];
	const int32_t *ids;
	int64_t n, n_want = 0, i;
	size_t len;
	int err, good;

	*tab = '\0';
	for (; n_want < 8192; p = end) {
		want[n_want] = (int32_t)strtol(p, &end, 10);
		if (end == p)
			break;
		n_want++;
	}
	good = ok(1, "%s: %.60s", name, line);
	len = unescape(line);
	err = lpo_tokenizer_encode_plain(t, &ids, &n, line, len);
	for (i = 0; err == 0 && i < n && i < n_want; i++)
		if (ids[i] != want[i])
			break;
	if (err != 0 || n != n_want || i != n) {
		good = 0;
		ok(0, "%lld ids, wanted %lld, first difference at %lld %s",
		    (long long)n, (long long)n_want, (long long)i,
		    lpo_errmsg(c));
	}
	if (good && !padded_ok(t, line, len, want, n_want))
		ok(0, "bos, eos, padding or truncation");
}

static lpo_tokenizer *
test_folder(lpo_ctx *c, const char *line, char *name)
{
	int max, bos, eos, pad, size, err;
	lpo_tokenizer *t = NULL;
	char dir[200];

	if (sscanf(line, "= %63s %d %d %d %d %d", name, &max, &bos, &eos,
	    &pad, &size) != 6)
		return NULL;
	snprintf(dir, sizeof(dir), GOLDEN "/%s", name);
	err = lpo_tokenizer_open(c, &t, dir);
	ok(err == 0 && lpo_tokenizer_max_length(t) == max &&
	    lpo_tokenizer_bos(t) == bos && lpo_tokenizer_eos(t) == eos &&
	    lpo_tokenizer_pad(t) == pad && lpo_tokenizer_vocab_size(t) == size,
	    "%s opened %s", name, lpo_errmsg(c));
	return t;
}

static void
test_golden(lpo_ctx *c)
{
	char *data = NULL, *line, *next, name[64] = "";
	lpo_tokenizer *t = NULL;
	size_t bytes;

	if (!ok(lpo_file_read(c, &data, &bytes, GOLDEN ".txt", 1 << 24) == 0,
	    "golden file read"))
		return;
	for (line = data; *line != '\0'; line = next) {
		next = strchr(line, '\n');
		*next++ = '\0';
		if (line[0] == '=' && line[1] == ' ') {
			lpo_tokenizer_close(t);
			t = test_folder(c, line, name);
			if (t == NULL)
				break;
		} else {
			test_string(c, t, line, name);
		}
	}
	lpo_tokenizer_close(t);
	lpo_free(data);
}

static void
test_text(lpo_ctx *c)
{
	static const char *const bad[] = { "a\xff", "\xc0\x80", "\xed\xa0\x80",
	    "caf\xc3", "\xf4\x90\x80\x80" };
	lpo_tokenizer *t = NULL;
	int32_t ids[77];
	const int32_t *plain;
	char *big = malloc((1 << 20) + 1);
	int64_t n;
	int i, err;

	ok(lpo_tokenizer_open(c, &t, GOLDEN "/sd15/") == 0, "sd15/");
	for (i = 0; i < 5; i++) {
		ok(lpo_tokenizer_encode(t, ids, bad[i]) == LPO_EFORMAT,
		    "not UTF-8: %s", lpo_errmsg(c));
		lpo_clear(c);
	}
	ok(strcmp(lpo_tokenizer_token(t, 0), "!") == 0 &&
	    strcmp(lpo_tokenizer_token(t, lpo_tokenizer_eos(t)),
	    "<|endoftext|>") == 0 &&
	    lpo_tokenizer_token(t, -1) == NULL &&
	    lpo_tokenizer_token(t, 1 << 20) == NULL, "tokens by id");
	/* The longest text allowed, as one word and as marks in bad order. */
	memset(big, 'a', 1 << 20);
	err = lpo_tokenizer_encode_plain(t, &plain, &n, big, 1 << 20);
	ok(err == 0 && n > 1000, "a word of a megabyte: %lld ids", (long long)n);
	for (i = 0; i < 1 << 20; i += 4)
		memcpy(big + i, "\xcc\x87\xcc\xa3", 4);
	err = lpo_tokenizer_encode_plain(t, &plain, &n, big, 1 << 20);
	ok(err == 0 && n > 1000, "a megabyte of marks: %lld ids", (long long)n);
	ok(lpo_tokenizer_encode_plain(t, &plain, &n, big, (1 << 20) + 1) ==
	    LPO_EFORMAT, "one byte more: %s", lpo_errmsg(c));
	lpo_clear(c);
	lpo_tokenizer_close(t);
	free(big);
}

/* ---- broken folders ---- */

struct broken {
	const char *what, *vocab, *merges, *config;
	int err;
};

#define V "{\"a\": 0, \"b\": 1, \"ab\": 2, \"<|startoftext|>\": 3, " \
	"\"<|endoftext|>\": 4}"
#define C "{\"model_max_length\": 8}"

static const struct broken broken[] = {
	{ "works", V, "#version: 0.2\na b\n", C, 0 },
	{ "no newline at the end, CRLF", V, "a b\r\n\r\na b", C, 0 },
	{ "no merges", V, "", C, 0 },
	{ "no vocabulary", NULL, "a b\n", C, LPO_ENOTFOUND },
	{ "no merges.txt", V, NULL, C, LPO_ENOTFOUND },
	{ "vocabulary is a list", "[1]", "", C, LPO_EFORMAT },
	{ "empty vocabulary", "{}", "", C, LPO_EFORMAT },
	{ "negative id", "{\"a\": -1}", "", C, LPO_EFORMAT },
	{ "huge id", "{\"a\": 99999999999}", "", C, LPO_EFORMAT },
	{ "id is a string", "{\"a\": \"0\"}", "", C, LPO_EFORMAT },
	{ "vocabulary cut short", "{\"a\": 0, ", "", C, LPO_EFORMAT },
	{ "unknown part", V, "a c\n", C, LPO_EFORMAT },
	{ "unknown result", V, "b a\n", C, LPO_EFORMAT },
	{ "one word in a line", V, "a b\nab\n", C, LPO_EFORMAT },
	{ "three words in a line", V, "a b c\n", C, LPO_EFORMAT },
	{ "no length", V, "a b\n", "{}", LPO_EFORMAT },
	{ "no config", V, "a b\n", NULL, LPO_EFORMAT },
	{ "length 1", V, "a b\n", "{\"model_max_length\": 1}", LPO_EFORMAT },
	{ "huge length", V, "", "{\"model_max_length\": 1e30}", LPO_EFORMAT },
	{ "config is a list", V, "a b\n", "[]", LPO_EFORMAT },
	{ "no end token", V, "a b\n",
	    "{\"model_max_length\": 8, \"eos_token\": null}", LPO_EFORMAT },
	{ "padded left", V, "a b\n",
	    "{\"model_max_length\": 8, \"padding_side\": \"left\"}",
	    LPO_EFORMAT },
	{ "added token without content", V, "a b\n",
	    "{\"model_max_length\": 8, \"added_tokens_decoder\": "
	    "{\"7\": {}}}", LPO_EFORMAT },
	{ "added token with a strange id", V, "a b\n",
	    "{\"model_max_length\": 8, \"added_tokens_decoder\": "
	    "{\"x\": {\"content\": \"x\"}}}", LPO_EFORMAT },
};

static void
put(lpo_ctx *c, const char *dir, const char *name, const char *text)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (text == NULL)
		unlink(path);
	else
		lpo_file_write(c, path, text, strlen(text));
}

static void
test_broken(lpo_ctx *c)
{
	char dir[] = "/tmp/lpo-tokenizer-XXXXXX";
	const struct broken *b = broken;
	lpo_tokenizer *t;
	int err;

	if (!ok(mkdtemp(dir) != NULL, "a folder to write in"))
		return;
	for (; b < broken + sizeof(broken) / sizeof(broken[0]); b++) {
		put(c, dir, "vocab.json", b->vocab);
		put(c, dir, "merges.txt", b->merges);
		put(c, dir, "tokenizer_config.json", b->config);
		err = lpo_tokenizer_open(c, &t, dir);
		ok(err == b->err && (err == 0) == (t != NULL), "%s: %s",
		    b->what, lpo_errmsg(c));
		lpo_tokenizer_close(t);
		lpo_clear(c);
	}
	lpo_rmtree(c, dir);
}

/*
 * jansson 2.14 ignores a failing allocation in its token buffer and goes on
 * with half a token, so a failure may also show as a strange file, or not.
 */
static void
test_nomem(lpo_ctx *c, const char *dir)
{
	lpo_tokenizer *t;
	int32_t ids[77];
	int err, good = 0, bad = 0;
	long n;

	for (n = 0; good < 50 && n < 20000; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		err = lpo_tokenizer_open(c, &t, dir);
		if (err == 0)
			err = lpo_tokenizer_encode(t, ids,
			    "caf\xc3\xa9 <cat-toy> cat\xcc\x81");
		lpo_alloc_fail_at(-1);
		bad += err != 0 && err != LPO_ENOMEM && err != LPO_EFORMAT;
		good = err == 0 ? good + 1 : 0;
		lpo_tokenizer_close(t);
	}
	lpo_clear(c);
	ok(good == 50 && bad == 0, "%s: %ld failing allocations survived",
	    dir, n - 50);
}

int
main(void)
{
	lpo_ctx *c = lpo_ctx_new();

	test_golden(c);
	test_text(c);
	test_broken(c);
	test_nomem(c, GOLDEN "/few");
	test_nomem(c, GOLDEN "/decoder");
	lpo_ctx_free(c);
	return done_testing();
}
