/*
 * The CLIP tokenizer with the rules of transformers' fast tokenizer (variant
 * "Fa" of spec/models.md 4): added tokens cut out, NFC, white space to one
 * space, lower case per code point, the CLIP pattern, byte-level BPE.
 * Vocabulary, special tokens, padding and length all come from the files.
 * Letters are those of the linked pcre2 and utf8proc (Unicode 14 and 15).
 */
#ifndef LPO_MODEL_TOKENIZER_H
#define LPO_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "lib/base/ctx.h"

typedef struct lpo_tokenizer lpo_tokenizer;

/*
 * Open a diffusers folder's tokenizer/ or tokenizer_2/ (`dir` is that folder):
 * vocab.json, merges.txt, and, where present, special_tokens_map.json,
 * tokenizer_config.json, added_tokens.json; or transformers 5's single
 * tokenizer.json in place of the first two (its vocabulary, merges and added
 * tokens; the rules stay CLIP's).  *tok is the caller's (lpo_tokenizer_close)
 * and keeps `ctx`.
 * LPO_ENOTFOUND: no vocabulary; LPO_EFORMAT: a file that makes no sense,
 * named with line or key, or no model_max_length.
 */
int	 lpo_tokenizer_open(lpo_ctx *ctx, lpo_tokenizer **tok,
	    const char *dir);
void	 lpo_tokenizer_close(lpo_tokenizer *);	/* NULL is fine */

/*
 * ids [max_length] = bos, the first max_length - 2 ids of text, eos, then pad
 * to the end.  LPO_EFORMAT: text is not UTF-8 or longer than 1 MB.  The
 * scratch inside is reused: one thread at a time per tokenizer.
 */
int	 lpo_tokenizer_encode(lpo_tokenizer *, int32_t *ids,
	    const char *text);
/* The same for text that may hold NUL. */
int	 lpo_tokenizer_encode_bytes(lpo_tokenizer *, int32_t *ids,
	    const char *text, size_t bytes);

/*
 * ids of the whole text without bos, eos, padding or truncation.  *ids points
 * into the tokenizer, until the next call.
 */
int	 lpo_tokenizer_encode_plain(lpo_tokenizer *, const int32_t **ids,
	    int64_t *count, const char *text, size_t bytes);

int64_t	 lpo_tokenizer_max_length(const lpo_tokenizer *);
/* 1 + the largest id: the rows an embedding table must have at least. */
int64_t	 lpo_tokenizer_vocab_size(const lpo_tokenizer *);
int32_t	 lpo_tokenizer_bos(const lpo_tokenizer *);
int32_t	 lpo_tokenizer_eos(const lpo_tokenizer *);
int32_t	 lpo_tokenizer_pad(const lpo_tokenizer *);
/* The token's text as in vocab.json, NULL for an id that has none. */
const char *lpo_tokenizer_token(const lpo_tokenizer *, int32_t id);

#endif
