/*
 * The CLIP tokenizer: text to words to ids.  spec/models.md 4, variant Fa.
 */
#include "lib/model/tokenizer.h"

#include <string.h>

#include <utf8proc.h>

#include "lib/model/tokenizer_impl.h"

/*
 * White space is Unicode's, spelled out: pcre2's own \s has U+180E in it.  The
 * special strings in front are cut in three, as the byte-level stage of the
 * reference does when they did not match as added tokens.
 */
#define SPACE "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}" \
	"\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define PATTERN "(<\\|)(startoftext|endoftext)(\\|>)|'s|'t|'re|'ve|'m|'ll|'d" \
	"|\\p{L}++|\\p{N}|[^" SPACE "\\p{L}\\p{N}]++"

static int
is_space(int32_t c)
{
	return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 ||
	    c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
	    c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* ---- normalisation ---- */

static int
combining_class(int32_t cp)
{
	return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/*
 * Canonical order: each run of marks sorted by class, stably.  utf8proc does
 * it by exchanging neighbours, which a text of marks alone makes quadratic;
 * here counting does it.  tmp has room for n.
 */
static void
order_marks(int32_t *cp, int64_t n, int32_t *tmp)
{
	int64_t count[257], i, j, k;

	for (i = 0; i < n; i = j + 1) {
		for (j = i; j < n && combining_class(cp[j]) != 0; j++)
			;
		if (j - i < 2)
			continue;
		memset(count, 0, sizeof(count));
		for (k = i; k < j; k++)
			count[(combining_class(cp[k]) & 255) + 1]++;
		for (k = 0; k < 256; k++)
			count[k + 1] += count[k];
		for (k = i; k < j; k++)
			tmp[count[combining_class(cp[k]) & 255]++] = cp[k];
		memcpy(cp + i, tmp, (size_t)(j - i) * sizeof(*cp));
	}
}

/* NFC code points of s into t->cp; the count, or an error. */
static int64_t
compose(lpo_tokenizer *t, const char *s, size_t len)
{
	const uint8_t *p = (const uint8_t *)s;
	utf8proc_ssize_t used, m;
	int64_t at = 0, n = 0, left = (int64_t)len;
	int32_t cp;
	int err, bound = 0, options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;

	/* No code point has more than four in its decomposition. */
	if ((err = lpo_tokenizer_room(t->ctx, &t->cp, &t->cap_cp,
	    4 * left + 8, sizeof(*t->cp))) != 0 ||
	    (err = lpo_tokenizer_room(t->ctx, &t->cp2, &t->cap_cp2,
	    4 * left + 8, sizeof(*t->cp2))) != 0)
		return err;
	for (; at < left; at += used, n += m) {
		used = utf8proc_iterate(p + at, left - at, &cp);
		if (used < 1)
			return lpo_fail(t->ctx, LPO_EFORMAT,
			    "text is not UTF-8 at byte %lld", (long long)at);
		m = utf8proc_decompose_char(cp, t->cp + n, t->cap_cp - n,
		    options, &bound);
		if (m < 0 || m > t->cap_cp - n)
			return lpo_fail(t->ctx, LPO_EFORMAT,
			    "U+%04X cannot be decomposed", (unsigned)cp);
	}
	order_marks(t->cp, n, t->cp2);
	return utf8proc_normalize_utf32(t->cp, n, options);
}

static int
normalize_ascii(lpo_tokenizer *t, const char *s, size_t len)
{
	size_t i;
	int err;

	t->norm_len = 0;
	if ((err = lpo_tokenizer_room(t->ctx, &t->norm, &t->cap_norm,
	    (int64_t)len + 1, 1)) != 0)
		return err;
	for (i = 0; i < len; i++) {
		if (!is_space(s[i]))
			t->norm[t->norm_len++] = s[i] >= 'A' && s[i] <= 'Z' ?
			    (char)(s[i] + 32) : s[i];
		else if (i == 0 || !is_space(s[i - 1]))
			t->norm[t->norm_len++] = ' ';
	}
	return 0;
}

int
lpo_tokenizer_normalize(lpo_tokenizer *t, const char *s, size_t len)
{
	int64_t i, n;
	uint8_t *to;
	int err;

	for (i = 0; i < (int64_t)len && !(s[i] & 0x80); i++)
		;
	if (i == (int64_t)len)
		return normalize_ascii(t, s, len);
	if ((n = compose(t, s, len)) < 0)
		return (int)n;
	/* U+0130 makes two of one, three bytes; all others at most four. */
	if ((err = lpo_tokenizer_room(t->ctx, &t->norm, &t->cap_norm,
	    4 * n + 8, 1)) != 0)
		return err;
	for (to = (uint8_t *)t->norm, i = 0; i < n; i++) {
		if (is_space(t->cp[i])) {
			if (i == 0 || !is_space(t->cp[i - 1]))
				*to++ = ' ';
			continue;
		}
		to += utf8proc_encode_char(utf8proc_tolower(t->cp[i]), to);
		/* The one letter whose lower case is two: i, dot above. */
		if (t->cp[i] == 0x130)
			to += utf8proc_encode_char(0x307, to);
	}
	t->norm_len = (char *)to - t->norm;
	return 0;
}

/* ---- words ---- */

/* Ids of text without added tokens: each match of the pattern is a word. */
static int
encode_words(lpo_tokenizer *t, const char *s, size_t len)
{
	const uint8_t *p = (const uint8_t *)s;
	PCRE2_SIZE *v = pcre2_get_ovector_pointer(t->match);
	size_t at = 0;
	int i, rc, err = 0;

	while (at < len && err == 0) {
		rc = pcre2_match(t->pattern, p, len, at, PCRE2_NO_UTF_CHECK,
		    t->match, NULL);
		if (rc == PCRE2_ERROR_NOMATCH)
			break;
		if (rc < 0)
			return lpo_fail(t->ctx, rc == PCRE2_ERROR_NOMEMORY ?
			    LPO_ENOMEM : LPO_EINVAL,
			    "pcre2 failed with %d", rc);
		/* groups 1 to 3, where they matched, else the whole */
		for (i = rc > 1 ? 1 : 0; i < rc && err == 0; i++)
			err = lpo_bpe_word(t, p + v[2 * i],
			    v[2 * i + 1] - v[2 * i]);
		at = v[1];
	}
	return err;
}

/* ---- added tokens ---- */

/* \w of Unicode's rules for regular expressions, as Rust's regex has it. */
static int
is_word(int32_t cp)
{
	switch (utf8proc_category(cp)) {
	case UTF8PROC_CATEGORY_LU:
	case UTF8PROC_CATEGORY_LL:
	case UTF8PROC_CATEGORY_LT:
	case UTF8PROC_CATEGORY_LM:
	case UTF8PROC_CATEGORY_LO:
	case UTF8PROC_CATEGORY_MN:
	case UTF8PROC_CATEGORY_MC:
	case UTF8PROC_CATEGORY_ME:
	case UTF8PROC_CATEGORY_ND:
	case UTF8PROC_CATEGORY_NL:
	case UTF8PROC_CATEGORY_PC:
		return 1;
	default:
		/* joiners; letters in circles and squares are alphabetic */
		return cp == 0x200c || cp == 0x200d ||
		    (cp >= 0x24b6 && cp <= 0x24e9) ||
		    (cp >= 0x1f130 && cp <= 0x1f149) ||
		    (cp >= 0x1f150 && cp <= 0x1f169) ||
		    (cp >= 0x1f170 && cp <= 0x1f189);
	}
}

/* The code point that begins at s[at]; its length in *used. */
static int32_t
char_at(const char *s, size_t len, size_t at, size_t *used)
{
	int32_t cp = -1;
	utf8proc_ssize_t n = utf8proc_iterate((const uint8_t *)s + at,
	    (utf8proc_ssize_t)(len - at), &cp);

	*used = n < 1 ? 1 : (size_t)n;
	return cp;
}

/* The code point that ends before s[at]; its length in *used. */
static int32_t
char_before(const char *s, size_t at, size_t *used)
{
	size_t from = at - 1;

	while (from > 0 && at - from < 4 && (s[from] & 0xc0) == 0x80)
		from--;
	return char_at(s, at, from, used);
}

/* Does the token at s[start, stop) count, and how far does it reach? */
static int
accept(const lpo_tokenizer *t, const struct lpo_added *a, const char *s,
    size_t len, size_t *start, size_t *stop)
{
	size_t n;

	if (t->split_special && a->special)
		return 0;
	if (a->single_word && ((*start > 0 &&
	    is_word(char_before(s, *start, &n))) || (*stop < len &&
	    is_word(char_at(s, len, *stop, &n)))))
		return 0;
	if (a->lstrip)
		while (*start > 0 && is_space(char_before(s, *start, &n)))
			*start -= n;
	if (a->rstrip)
		while (*stop < len && is_space(char_at(s, len, *stop, &n)))
			*stop += n;
	return 1;
}

/* The longest added token that begins at s, NULL when none does. */
static const struct lpo_added *
added_at(const lpo_tokenizer *t, int normalized, const char *s, size_t len)
{
	const struct lpo_added *a, *best = NULL;
	int i = t->head[normalized][(uint8_t)s[0]];

	for (; i >= 0; i = a->next) {
		a = &t->added[i];
		if (a->match_len <= len && memcmp(a->match, s,
		    a->match_len) == 0 && (best == NULL ||
		    a->match_len > best->match_len))
			best = a;
	}
	return best;
}

static int
push_id(lpo_tokenizer *t, int32_t id)
{
	int err = lpo_tokenizer_room(t->ctx, &t->id, &t->cap_id, t->n_ids + 1,
	    sizeof(*t->id));

	if (err == 0)
		t->id[t->n_ids++] = id;
	return err;
}

static int	encode_raw(lpo_tokenizer *, const char *, size_t);

/*
 * Cut the text at added tokens, leftmost longest; what lies between goes on
 * to the next stage.
 */
static int
split(lpo_tokenizer *t, int normalized, const char *s, size_t len)
{
	int (*rest)(lpo_tokenizer *, const char *, size_t) =
	    normalized ? encode_words : encode_raw;
	const struct lpo_added *a;
	size_t at = 0, done = 0, start, stop;
	int err = 0;

	while (at < len && err == 0) {
		a = added_at(t, normalized, s + at, len - at);
		if (a == NULL) {
			at++;
			continue;
		}
		start = at;
		at = stop = at + a->match_len;
		if (!accept(t, a, s, len, &start, &stop))
			continue;
		/* White space may be the token's before already. */
		if (start > done)
			err = rest(t, s + done, start - done);
		if (err == 0)
			err = push_id(t, a->id);
		done = stop;
	}
	if (err == 0 && done < len)
		err = rest(t, s + done, len - done);
	return err;
}

/* A piece of raw text: normalise, cut again at the normalised tokens. */
static int
encode_raw(lpo_tokenizer *t, const char *s, size_t len)
{
	int err = lpo_tokenizer_normalize(t, s, len);

	return err ? err : split(t, 1, t->norm, (size_t)t->norm_len);
}

/* ---- preparation ---- */

static void *
pcre_alloc(PCRE2_SIZE n, void *c)
{
	return lpo_alloc(c, 1, n);
}

static void
pcre_free(void *p, void *c)
{
	(void)c;
	lpo_free(p);
}

static int
compile(lpo_tokenizer *t)
{
	PCRE2_SIZE at;
	int code;

	t->pcre_ctx = pcre2_general_context_create(pcre_alloc, pcre_free,
	    t->ctx);
	if (t->pcre_ctx != NULL) {
		pcre2_compile_context *cc;

		cc = pcre2_compile_context_create(t->pcre_ctx);
		if (cc != NULL)
			t->pattern = pcre2_compile((PCRE2_SPTR)PATTERN,
			    PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
			    &code, &at, cc);
		pcre2_compile_context_free(cc);
	}
	if (t->pattern != NULL)
		t->match = pcre2_match_data_create_from_pattern(t->pattern,
		    t->pcre_ctx);
	if (t->match == NULL)
		return lpo_fail(t->ctx, LPO_ENOMEM, "cannot compile the "
		    "token pattern");
	return 0;
}

int
lpo_tokenizer_prepare(lpo_tokenizer *t)
{
	struct lpo_added *a;
	const char *s;
	size_t n;
	int i, err, *head;

	if ((err = compile(t)) != 0)
		return err;
	memset(t->head, -1, sizeof(t->head));
	/* From the last: of two that normalise alike the first is found. */
	for (i = t->n_added - 1; i >= 0; i--) {
		a = &t->added[i];
		s = a->content;
		n = strlen(s);
		if (a->normalized) {
			if ((err = lpo_tokenizer_normalize(t, s, n)) != 0)
				return err;
			s = t->norm;
			n = (size_t)t->norm_len;
		}
		a->match = lpo_alloc(t->ctx, n + 1, 1);
		if (a->match == NULL)
			return LPO_ENOMEM;
		memcpy(a->match, s, n);
		a->match_len = n;
		head = &t->head[a->normalized][(uint8_t)a->match[0]];
		a->next = *head;
		*head = i;
	}
	return 0;
}

/* ---- the public calls ---- */

int
lpo_tokenizer_encode_plain(lpo_tokenizer *t, const int32_t **ids,
    int64_t *count, const char *text, size_t bytes)
{
	int err;

	*ids = NULL;
	*count = t->n_ids = 0;
	if (bytes > LPO_TOKENIZER_MAX_TEXT)
		return lpo_fail(t->ctx, LPO_EFORMAT,
		    "text of %zu bytes is longer than %zu", bytes,
		    LPO_TOKENIZER_MAX_TEXT);
	if ((err = split(t, 0, text, bytes)) != 0)
		return err;
	*ids = t->id;
	*count = t->n_ids;
	return 0;
}

int
lpo_tokenizer_encode_bytes(lpo_tokenizer *t, int32_t *ids, const char *text,
    size_t bytes)
{
	const int32_t *plain;
	int64_t i, n;
	int err;

	err = lpo_tokenizer_encode_plain(t, &plain, &n, text, bytes);
	if (err != 0)
		return err;
	if (n > t->max_length - 2)
		n = t->max_length - 2;
	ids[0] = t->bos;
	for (i = 0; i < n; i++)
		ids[1 + i] = plain[i];
	ids[1 + n] = t->eos;
	for (i = n + 2; i < t->max_length; i++)
		ids[i] = t->pad;
	return 0;
}

int
lpo_tokenizer_encode(lpo_tokenizer *t, int32_t *ids, const char *text)
{
	return lpo_tokenizer_encode_bytes(t, ids, text, strlen(text));
}

int64_t
lpo_tokenizer_max_length(const lpo_tokenizer *t)
{
	return t->max_length;
}

int64_t
lpo_tokenizer_vocab_size(const lpo_tokenizer *t)
{
	int64_t n = t->max_id + 1;
	int i;

	for (i = 0; i < t->n_added; i++)
		if (t->added[i].id >= n)
			n = t->added[i].id + 1;
	return n;
}

int32_t
lpo_tokenizer_bos(const lpo_tokenizer *t)
{
	return t->bos;
}

int32_t
lpo_tokenizer_eos(const lpo_tokenizer *t)
{
	return t->eos;
}

int32_t
lpo_tokenizer_pad(const lpo_tokenizer *t)
{
	return t->pad;
}

const char *
lpo_tokenizer_token(const lpo_tokenizer *t, int32_t id)
{
	int i;

	for (i = 0; i < t->n_added; i++)
		if (t->added[i].id == id)
			return t->added[i].content;
	if (id < 0 || id > t->max_id || t->by_id[id] == 0)
		return NULL;
	return t->bytes + t->token[t->by_id[id] - 1].at;
}

void
lpo_tokenizer_close(lpo_tokenizer *t)
{
	int i;

	if (t == NULL)
		return;
	for (i = 0; i < t->n_added; i++) {
		lpo_free(t->added[i].content);
		lpo_free(t->added[i].match);
	}
	lpo_free(t->added);
	lpo_free(t->bytes);
	lpo_free(t->token);
	lpo_free(t->slot);
	lpo_free(t->by_id);
	lpo_free(t->merge);
	pcre2_match_data_free(t->match);
	pcre2_code_free(t->pattern);
	pcre2_general_context_free(t->pcre_ctx);
	lpo_free(t->cp);
	lpo_free(t->cp2);
	lpo_free(t->norm);
	lpo_free(t->symbol);
	lpo_free(t->heap);
	lpo_free(t->id);
	lpo_free(t);
}
