/*
 * Inside the tokenizer: what its three files share.
 *   tokenizer_load.c   the folder's files
 *   tokenizer_bpe.c    vocabulary, merges, one word to ids
 *   tokenizer.c        text to words, added tokens, the public calls
 */
#ifndef LPO_MODEL_TOKENIZER_IMPL_H
#define LPO_MODEL_TOKENIZER_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>

#include "lib/model/tokenizer.h"

#define LPO_TOKENIZER_MAX_TEXT	((size_t)1 << 20)	/* bytes */
#define LPO_TOKENIZER_MAX_TOKEN	1000			/* bytes */
#define LPO_TOKENIZER_MAX_ID	((1 << 24) - 1)

/* A token of vocab.json; text at bytes + at, NUL after it. */
struct lpo_token {
	uint32_t at, len;
	int32_t id;
};

/* left and right become id; lower ranks first.  left < 0: an empty slot. */
struct lpo_merge {
	int32_t left, right, rank, id;
};

/* A letter or more of the word at hand; id < 0: merged into the one before. */
struct lpo_symbol {
	int32_t id, prev, next;
};

/* A merge that may be done at symbol `pos`, if that still gives `id`. */
struct lpo_candidate {
	int32_t rank, pos, id;
};

/*
 * A token looked for in the text before anything else.  Normalised ones are
 * compared, normalised themselves, with the normalised text.
 */
struct lpo_added {
	char *content, *match;
	size_t match_len;
	int32_t id;
	int normalized, special, lstrip, rstrip, single_word;
	int next;		/* with the same first byte; -1: none */
};

struct lpo_tokenizer {
	lpo_ctx *ctx;
	int64_t max_length;
	int32_t bos, eos, pad, unk;	/* unk -1: none */
	int split_special;

	/* vocabulary: token index + 1 by hash, token index by id */
	char *bytes;
	struct lpo_token *token;
	int64_t n_tokens;
	uint32_t *slot, slot_mask;
	int32_t *by_id, max_id;
	int32_t byte_id[256], last_byte_id[256];	/* -1: not in it */

	struct lpo_merge *merge;
	uint32_t merge_mask;

	struct lpo_added *added;
	int n_added, cap_added;
	int head[2][256];		/* [normalized][first byte] */

	pcre2_general_context *pcre_ctx;
	pcre2_code *pattern;
	pcre2_match_data *match;

	/* scratch, kept from call to call */
	int32_t *cp, *cp2;
	int64_t cap_cp, cap_cp2;
	char *norm;
	int64_t cap_norm, norm_len;
	struct lpo_symbol *symbol;
	int64_t cap_symbol;
	struct lpo_candidate *heap;
	int64_t cap_heap, n_heap;
	int32_t *id;
	int64_t cap_id, n_ids;
};

/* Make room for `need` elements of `size` bytes; old ones are kept. */
int	lpo_tokenizer_room(lpo_ctx *, void *array_ptr, int64_t *cap,
	    int64_t need, size_t size);

/* {"token": id, ...}; `name` is the file's, for messages. */
int	lpo_bpe_vocab(lpo_tokenizer *, json_t *vocab, const char *name);
int	lpo_bpe_merges_begin(lpo_tokenizer *, int64_t count);
/* The next merge, a with b; not NUL-terminated. */
int	lpo_bpe_merge(lpo_tokenizer *, const char *a, size_t na,
	    const char *b, size_t nb, int32_t rank, const char *name);
int32_t	lpo_bpe_id(const lpo_tokenizer *, const char *s, size_t len);
/* Append the ids of one word. */
int	lpo_bpe_word(lpo_tokenizer *, const uint8_t *s, size_t len);

/* Text to tok->norm, norm_len: NFC, white space to ' ', lower case. */
int	lpo_tokenizer_normalize(lpo_tokenizer *, const char *s, size_t len);
/* Everything of tok that does not come from files. */
int	lpo_tokenizer_prepare(lpo_tokenizer *);

#endif
