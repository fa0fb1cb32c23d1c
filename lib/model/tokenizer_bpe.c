/*
 * Byte-level BPE: a vocabulary by hash, merges by hash of two ids, and the
 * merging itself with a heap, so that a word of a million letters takes
 * n log n.
 */
#include <string.h>

#include "lib/model/tokenizer_impl.h"

int
lpo_tokenizer_room(lpo_ctx *c, void *array_ptr, int64_t *cap, int64_t need,
    size_t size)
{
	void **array = array_ptr, *p;
	int64_t n = *cap;

	if (need <= n)
		return 0;
	while (n < need)
		n = n ? 2 * n : 64;
	p = lpo_realloc(c, *array, (size_t)n * size);
	if (p == NULL)
		return LPO_ENOMEM;
	*array = p;
	*cap = n;
	return 0;
}

/* FNV-1a */
static uint32_t
hash_text(const char *s, size_t len)
{
	uint64_t h = 0xcbf29ce484222325u;
	size_t i;

	for (i = 0; i < len; i++)
		h = (h ^ (uint8_t)s[i]) * 0x100000001b3u;
	return (uint32_t)(h ^ h >> 32);
}

static uint32_t
hash_pair(int32_t left, int32_t right)
{
	uint64_t h = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

	h *= 0x9e3779b97f4a7c15u;
	return (uint32_t)(h >> 32);
}

/* The slot of s, or the empty one where it would be. */
static uint32_t *
find_slot(const lpo_tokenizer *t, const char *s, size_t len)
{
	uint32_t i = hash_text(s, len) & t->slot_mask;
	const struct lpo_token *e;

	for (; t->slot[i] != 0; i = (i + 1) & t->slot_mask) {
		e = &t->token[t->slot[i] - 1];
		if (e->len == len && memcmp(t->bytes + e->at, s, len) == 0)
			break;
	}
	return &t->slot[i];
}

int32_t
lpo_bpe_id(const lpo_tokenizer *t, const char *s, size_t len)
{
	uint32_t slot = *find_slot(t, s, len);

	return slot == 0 ? -1 : t->token[slot - 1].id;
}

/*
 * GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other
 * 68, in order, for U+0100 and on.  Writes UTF-8, returns its length.
 */
static size_t
byte_letter(char *to, int byte)
{
	int i, cp = 0x100;

	if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff &&
	    byte != 0xad)) {
		cp = byte;
	} else {
		for (i = 0; i < byte; i++)
			cp += i < 0x21 || (i > 0x7e && i < 0xa1) || i == 0xad;
	}
	if (cp < 0x80) {
		to[0] = (char)cp;
		return 1;
	}
	to[0] = (char)(0xc0 | cp >> 6);
	to[1] = (char)(0x80 | (cp & 0x3f));
	return 2;
}

/* Check a token and its id, and give the bytes it needs. */
static int
check_token(lpo_ctx *c, const char *key, const json_t *id, int64_t *bytes,
    const char *name)
{
	size_t len = strlen(key);

	if (!json_is_integer(id) || json_integer_value(id) < 0 ||
	    json_integer_value(id) > LPO_TOKENIZER_MAX_ID)
		return lpo_fail(c, LPO_EFORMAT,
		    "%s: the id of '%.100s' is not an integer from 0 to %d",
		    name, key, LPO_TOKENIZER_MAX_ID);
	if (len > LPO_TOKENIZER_MAX_TOKEN)
		return lpo_fail(c, LPO_EFORMAT,
		    "%s: token '%.100s...' is longer than %d bytes", name,
		    key, LPO_TOKENIZER_MAX_TOKEN);
	*bytes += (int64_t)len + 1;
	return 0;
}

static int
vocab_alloc(lpo_tokenizer *t, json_t *vocab, const char *name)
{
	lpo_ctx *c = t->ctx;
	const char *key;
	json_t *id;
	int64_t bytes = 0, slots = 64;
	size_t n = json_object_size(vocab);
	int err;

	if (!json_is_object(vocab) || n == 0)
		return lpo_fail(c, LPO_EFORMAT, "%s: no vocabulary", name);
	json_object_foreach(vocab, key, id) {
		if ((err = check_token(c, key, id, &bytes, name)) != 0)
			return err;
		if (json_integer_value(id) > t->max_id)
			t->max_id = (int32_t)json_integer_value(id);
	}
	if (n > LPO_TOKENIZER_MAX_ID || bytes > UINT32_MAX)
		return lpo_fail(c, LPO_EFORMAT, "%s: too large", name);
	while (slots < 2 * (int64_t)n)
		slots *= 2;
	t->slot_mask = (uint32_t)slots - 1;
	t->bytes = lpo_alloc(c, (size_t)bytes, 1);
	t->token = lpo_alloc(c, n, sizeof(*t->token));
	t->slot = lpo_alloc(c, (size_t)slots, sizeof(*t->slot));
	t->by_id = lpo_alloc(c, (size_t)t->max_id + 1, sizeof(*t->by_id));
	if (t->bytes == NULL || t->token == NULL || t->slot == NULL ||
	    t->by_id == NULL)
		return LPO_ENOMEM;
	return 0;
}

int
lpo_bpe_vocab(lpo_tokenizer *t, json_t *vocab, const char *name)
{
	struct lpo_token *e;
	const char *key;
	json_t *id;
	char s[8];
	size_t n;
	uint32_t at = 0;
	int err, b;

	if ((err = vocab_alloc(t, vocab, name)) != 0)
		return err;
	json_object_foreach(vocab, key, id) {
		e = &t->token[t->n_tokens];
		e->at = at;
		e->len = (uint32_t)strlen(key);
		e->id = (int32_t)json_integer_value(id);
		memcpy(t->bytes + at, key, e->len + 1);
		at += e->len + 1;
		t->n_tokens++;
		*find_slot(t, key, e->len) = (uint32_t)t->n_tokens;
		t->by_id[e->id] = (int32_t)t->n_tokens;
	}
	for (b = 0; b < 256; b++) {
		n = byte_letter(s, b);
		t->byte_id[b] = lpo_bpe_id(t, s, n);
		memcpy(s + n, "</w>", 4);
		t->last_byte_id[b] = lpo_bpe_id(t, s, n + 4);
	}
	return 0;
}

int
lpo_bpe_merges_begin(lpo_tokenizer *t, int64_t count)
{
	int64_t i, slots = 64;

	while (slots < 2 * count)
		slots *= 2;
	t->merge = lpo_alloc(t->ctx, (size_t)slots, sizeof(*t->merge));
	if (t->merge == NULL)
		return LPO_ENOMEM;
	t->merge_mask = (uint32_t)slots - 1;
	for (i = 0; i < slots; i++)
		t->merge[i].left = -1;
	return 0;
}

/* The merge of two ids, or the empty slot where it would be. */
static struct lpo_merge *
find_merge(const lpo_tokenizer *t, int32_t left, int32_t right)
{
	uint32_t i = hash_pair(left, right) & t->merge_mask;
	struct lpo_merge *m;

	for (;; i = (i + 1) & t->merge_mask) {
		m = &t->merge[i];
		if (m->left < 0 || (m->left == left && m->right == right))
			return m;
	}
}

int
lpo_bpe_merge(lpo_tokenizer *t, const char *a, size_t na, const char *b,
    size_t nb, int32_t rank, const char *name)
{
	char both[2 * LPO_TOKENIZER_MAX_TOKEN];
	struct lpo_merge *m;
	int32_t left, right, id = -1;

	left = lpo_bpe_id(t, a, na);
	right = lpo_bpe_id(t, b, nb);
	if (left >= 0 && right >= 0) {
		memcpy(both, a, na);
		memcpy(both + na, b, nb);
		id = lpo_bpe_id(t, both, na + nb);
	}
	if (id < 0)
		return lpo_fail(t->ctx, LPO_EFORMAT, "%s: merge %d, '%.*s' "
		    "with '%.*s': a token of it is not in the vocabulary",
		    name, rank + 1, (int)(na < 100 ? na : 100), a,
		    (int)(nb < 100 ? nb : 100), b);
	m = find_merge(t, left, right);
	*m = (struct lpo_merge){ left, right, rank, id };
	return 0;
}

/* Lower ranks first, among equals the leftmost. */
static int
before(const struct lpo_candidate *a, const struct lpo_candidate *b)
{
	return a->rank != b->rank ? a->rank < b->rank : a->pos < b->pos;
}

/* Push what symbols i and its next would make; there is room. */
static void
heap_push(lpo_tokenizer *t, int32_t i)
{
	struct lpo_candidate c, *h = t->heap;
	const struct lpo_merge *m;
	int64_t k, up;

	if (i < 0 || t->symbol[i].next < 0)
		return;
	m = find_merge(t, t->symbol[i].id, t->symbol[t->symbol[i].next].id);
	if (m->left < 0)
		return;
	c = (struct lpo_candidate){ m->rank, i, m->id };
	for (k = t->n_heap++; k > 0; k = up) {
		up = (k - 1) / 2;
		if (!before(&c, &h[up]))
			break;
		h[k] = h[up];
	}
	h[k] = c;
}

static struct lpo_candidate
heap_pop(lpo_tokenizer *t)
{
	struct lpo_candidate *h = t->heap, top = h[0], c = h[--t->n_heap];
	int64_t k = 0, down;

	for (;; k = down) {
		down = 2 * k + 1;
		if (down >= t->n_heap)
			break;
		if (down + 1 < t->n_heap && before(&h[down + 1], &h[down]))
			down++;
		if (!before(&h[down], &c))
			break;
		h[k] = h[down];
	}
	h[k] = c;
	return top;
}

/*
 * The cheapest merge first, again and again.  A candidate is out of date when
 * its symbol was merged away or its neighbour changed; the latter shows in the
 * id, since another pair of texts makes another text.
 */
static void
merge_all(lpo_tokenizer *t, int32_t n)
{
	struct lpo_symbol *s = t->symbol;
	struct lpo_candidate c;
	const struct lpo_merge *m;
	int32_t i, right;

	t->n_heap = 0;
	for (i = 0; i < n; i++)
		heap_push(t, i);
	while (t->n_heap > 0) {
		c = heap_pop(t);
		right = s[c.pos].next;
		if (s[c.pos].id < 0 || right < 0)
			continue;
		m = find_merge(t, s[c.pos].id, s[right].id);
		if (m->left < 0 || m->id != c.id)
			continue;
		s[c.pos].id = c.id;
		s[c.pos].next = s[right].next;
		s[right].id = -1;
		if (s[right].next >= 0)
			s[s[right].next].prev = c.pos;
		heap_push(t, s[c.pos].prev);
		heap_push(t, c.pos);
	}
}

int
lpo_bpe_word(lpo_tokenizer *t, const uint8_t *word, size_t len)
{
	int32_t n = (int32_t)len, i, id;
	int err;

	/* Each merge pushes two at most. */
	if ((err = lpo_tokenizer_room(t->ctx, &t->symbol, &t->cap_symbol, n,
	    sizeof(*t->symbol))) != 0 ||
	    (err = lpo_tokenizer_room(t->ctx, &t->heap, &t->cap_heap,
	    3 * (int64_t)n, sizeof(*t->heap))) != 0 ||
	    (err = lpo_tokenizer_room(t->ctx, &t->id, &t->cap_id,
	    t->n_ids + n, sizeof(*t->id))) != 0)
		return err;
	for (i = 0; i < n; i++) {
		id = i == n - 1 ? t->last_byte_id[word[i]] :
		    t->byte_id[word[i]];
		if (id < 0)
			id = t->unk;
		if (id < 0)
			return lpo_fail(t->ctx, LPO_EFORMAT, "the vocabulary "
			    "has neither byte 0x%02x nor an unknown token",
			    word[i]);
		t->symbol[i] = (struct lpo_symbol){ id, i - 1,
		    i == n - 1 ? -1 : i + 1 };
	}
	merge_all(t, n);
	for (i = 0; i >= 0 && n > 0; i = t->symbol[i].next)
		t->id[t->n_ids++] = t->symbol[i].id;
	return 0;
}
