/*
 * A tokenizer's folder.  Which file wins follows transformers 5: where
 * tokenizer_config.json has an added_tokens_decoder, that alone names the
 * added tokens; otherwise special_tokens_map.json goes over the config, and
 * added_tokens.json (or tokenizer.json's list) adds to it.  So SD2.1's pad
 * token is "!" although its config says otherwise.
 */
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/model/source.h"
#include "lib/model/tokenizer_impl.h"

#define MAX_ADDED	10000
#define MAX_LENGTH	65536
#define FILE_LIMIT	((size_t)256 << 20)

struct files {
	char *vocab_path, *merges_path, *config_path, *map_path, *added_path,
	    *json_path;
	json_t *config, *map, *added, *json;
};

/* transformers' named special tokens, in its order. */
static const char *const named[] = {
	"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
	"cls_token", "mask_token"
};
#define N_NAMED ((int)(sizeof(named) / sizeof(named[0])))

/* An optional file: *json stays NULL where it is absent. */
static int
load_optional(lpo_ctx *c, json_t **json, char **path, const char *dir,
    const char *name)
{
	int err;

	if ((*path = lpo_path_join(c, dir, name)) == NULL)
		return LPO_ENOMEM;
	if (!lpo_source_has(*path))
		return 0;
	if ((err = lpo_source_json(c, json, *path, FILE_LIMIT)) != 0)
		return err;
	if (!json_is_object(*json))
		return lpo_fail(c, LPO_EFORMAT, "%s: not a JSON object",
		    *path);
	return 0;
}

static void
files_free(struct files *f)
{
	lpo_free(f->vocab_path);
	lpo_free(f->merges_path);
	lpo_free(f->config_path);
	lpo_free(f->map_path);
	lpo_free(f->added_path);
	lpo_free(f->json_path);
	json_decref(f->config);
	json_decref(f->map);
	json_decref(f->added);
	json_decref(f->json);
}

/* ---- vocabulary and merges ---- */

/* One line of merges.txt, "a b". */
static int
merge_line(lpo_tokenizer *t, const char *line, size_t len, int32_t rank,
    int64_t number, const char *path)
{
	const char *gap = memchr(line, ' ', len);
	size_t na = gap == NULL ? 0 : (size_t)(gap - line);

	if (na == 0 || na + 1 == len ||
	    memchr(gap + 1, ' ', len - na - 1) != NULL)
		return lpo_fail(t->ctx, LPO_EFORMAT, "%s:%lld: not two tokens "
		    "with a space between", path, (long long)number);
	return lpo_bpe_merge(t, line, na, gap + 1, len - na - 1, rank, path);
}

static int
merges_text(lpo_tokenizer *t, const char *text, size_t bytes,
    const char *path)
{
	const char *p = text, *end = text + bytes, *nl;
	int64_t lines = 1, number = 0;
	int32_t rank = 0;
	size_t len;
	int err;

	for (; (p = memchr(p, '\n', (size_t)(end - p))) != NULL; p++)
		lines++;
	if (lines > LPO_TOKENIZER_MAX_ID)
		return lpo_fail(t->ctx, LPO_EFORMAT, "%s: too many merges",
		    path);
	if ((err = lpo_bpe_merges_begin(t, lines)) != 0)
		return err;
	for (p = text; p < end; p = nl + 1) {
		number++;
		nl = memchr(p, '\n', (size_t)(end - p));
		if (nl == NULL)
			nl = end;
		len = (size_t)(nl - p);
		if (len > 0 && p[len - 1] == '\r')
			len--;
		if (len == 0 || (len >= 8 && memcmp(p, "#version", 8) == 0))
			continue;
		if ((err = merge_line(t, p, len, rank++, number, path)) != 0)
			return err;
	}
	return 0;
}

/* tokenizer.json: "a b" or ["a", "b"] */
static int
merges_json(lpo_tokenizer *t, const json_t *merges, const char *path)
{
	const char *a, *b;
	const json_t *v;
	size_t i;
	int err;

	if (!json_is_array(merges) ||
	    json_array_size(merges) > LPO_TOKENIZER_MAX_ID)
		return lpo_fail(t->ctx, LPO_EFORMAT,
		    "%s: no list of merges", path);
	err = lpo_bpe_merges_begin(t, (int64_t)json_array_size(merges));
	for (i = 0; err == 0 && i < json_array_size(merges); i++) {
		v = json_array_get(merges, i);
		if (json_is_string(v)) {
			err = merge_line(t, json_string_value(v),
			    json_string_length(v), (int32_t)i, (int64_t)i + 1,
			    path);
			continue;
		}
		a = json_string_value(json_array_get(v, 0));
		b = json_string_value(json_array_get(v, 1));
		if (json_array_size(v) != 2 || a == NULL || b == NULL)
			return lpo_fail(t->ctx, LPO_EFORMAT,
			    "%s: merge %zu is not two tokens", path, i + 1);
		err = lpo_bpe_merge(t, a, strlen(a), b, strlen(b),
		    (int32_t)i, path);
	}
	return err;
}

/* From vocab.json and merges.txt, or where they are not, tokenizer.json. */
static int
load_bpe(lpo_tokenizer *t, struct files *f)
{
	lpo_ctx *c = t->ctx;
	json_t *vocab = NULL, *model;
	char *text = NULL;
	size_t bytes;
	int err;

	if (f->json != NULL && (!lpo_source_has(f->vocab_path) ||
	    !lpo_source_has(f->merges_path))) {
		model = json_object_get(f->json, "model");
		err = lpo_bpe_vocab(t, json_object_get(model, "vocab"),
		    f->json_path);
		return err ? err : merges_json(t,
		    json_object_get(model, "merges"), f->json_path);
	}
	err = lpo_source_json(c, &vocab, f->vocab_path, FILE_LIMIT);
	if (err == 0)
		err = lpo_bpe_vocab(t, vocab, f->vocab_path);
	if (err == 0)
		err = lpo_source_read(c, &text, &bytes, f->merges_path,
		    FILE_LIMIT);
	if (err == 0)
		err = merges_text(t, text, bytes, f->merges_path);
	lpo_free(text);
	json_decref(vocab);
	return err;
}

/* ---- added tokens ---- */

/* What a file says of a token; -1: normalized exactly if not special. */
struct spec {
	const char *content;
	int normalized, special, lstrip, rstrip, single_word;
};

static int
flag(const json_t *v, const char *key, int absent)
{
	v = json_object_get(v, key);
	return json_is_boolean(v) ? json_is_true(v) : absent;
}

/* A string, or an object with "content"; content NULL: neither. */
static struct spec
spec_of(const json_t *v)
{
	struct spec s = { NULL, 0, 1, 0, 0, 0 };

	if (json_is_string(v)) {
		s.content = json_string_value(v);
	} else if (json_is_object(v)) {
		s.content = json_string_value(json_object_get(v, "content"));
		s.normalized = flag(v, "normalized", -1);
		s.special = flag(v, "special", 0);
		s.lstrip = flag(v, "lstrip", 0);
		s.rstrip = flag(v, "rstrip", 0);
		s.single_word = flag(v, "single_word", 0);
	}
	return s;
}

static struct lpo_added *
find_added(const lpo_tokenizer *t, const char *content)
{
	int i;

	for (i = 0; i < t->n_added; i++)
		if (strcmp(t->added[i].content, content) == 0)
			return &t->added[i];
	return NULL;
}

/* An added token's id, else the vocabulary's, else -1. */
static int32_t
id_of(const lpo_tokenizer *t, const char *content)
{
	const struct lpo_added *a = find_added(t, content);

	return a != NULL ? a->id : lpo_bpe_id(t, content, strlen(content));
}

/*
 * Add a token, or change what is known of it.  One that is not in the
 * vocabulary gets the next free id, whatever id a file gives it: that is what
 * the reference does.
 */
static int
add(lpo_tokenizer *t, const struct spec *s)
{
	struct lpo_added *a = find_added(t, s->content);
	int64_t cap = t->cap_added;
	int err, i;

	if (s->content[0] == '\0')
		return 0;
	if (a == NULL) {
		if (t->n_added == MAX_ADDED)
			return lpo_fail(t->ctx, LPO_EFORMAT,
			    "more than %d added tokens", MAX_ADDED);
		err = lpo_tokenizer_room(t->ctx, &t->added, &cap,
		    t->n_added + 1, sizeof(*t->added));
		if (err != 0)
			return err;
		t->cap_added = (int)cap;
		a = &t->added[t->n_added];
		memset(a, 0, sizeof(*a));
		a->id = lpo_bpe_id(t, s->content, strlen(s->content));
		if (a->id < 0) {
			a->id = (int32_t)t->n_tokens;
			for (i = 0; i < t->n_added; i++)
				if (t->added[i].id >= a->id)
					a->id = t->added[i].id + 1;
		}
		a->content = lpo_strdup(t->ctx, s->content);
		if (a->content == NULL)
			return LPO_ENOMEM;
		t->n_added++;
	}
	a->special = s->special;
	a->normalized = s->normalized < 0 ? !s->special : s->normalized;
	a->lstrip = s->lstrip;
	a->rstrip = s->rstrip;
	a->single_word = s->single_word;
	return 0;
}

/* Is content the value of a named special token? */
static int
is_named(const json_t *config, const char *content)
{
	struct spec s;
	int i;

	for (i = 0; i < N_NAMED; i++) {
		s = spec_of(json_object_get(config, named[i]));
		if (s.content != NULL && strcmp(s.content, content) == 0)
			return 1;
	}
	return 0;
}

struct numbered {
	int64_t id;
	struct spec spec;
};

/* Insertion sort by id, stable: the lists are short or in order already. */
static void
sort_numbered(struct numbered *a, size_t n)
{
	struct numbered x;
	size_t i, j;

	for (i = 1; i < n; i++) {
		x = a[i];
		for (j = i; j > 0 && a[j - 1].id > x.id; j--)
			a[j] = a[j - 1];
		a[j] = x;
	}
}

/* "123" as an id; -1 where it is none */
static int64_t
id_key(const char *s)
{
	int64_t v = 0;

	if (*s == '\0' || strlen(s) > 9)
		return -1;
	for (; *s != '\0'; s++) {
		if (*s < '0' || *s > '9')
			return -1;
		v = 10 * v + (*s - '0');
	}
	return v;
}

/*
 * The tokens of an added_tokens_decoder {"id": {...}}, of an added_tokens.json
 * {"content": id} or of tokenizer.json's added_tokens [{"id": , ...}]: into
 * list, which has room for all; returns how many, or an error.
 */
static int64_t
list_numbered(lpo_tokenizer *t, struct numbered *list, json_t *from,
    const json_t *config, const char *path)
{
	struct numbered *x = list;
	const char *key;
	json_t *v;
	size_t i;

	if (json_is_array(from)) {
		json_array_foreach(from, i, v) {
			x->spec = spec_of(v);
			x++->id = json_integer_value(json_object_get(v,
			    "id"));
		}
	} else {
		json_object_foreach(from, key, v) {
			x->spec = spec_of(v);
			x->id = id_key(key);
			if (json_is_integer(v)) {
				x->id = json_integer_value(v);
				x->spec = (struct spec){ key, -1,
				    is_named(config, key), 0, 0, 0 };
			}
			x++;
		}
	}
	for (i = 0; i < (size_t)(x - list); i++)
		if (list[i].spec.content == NULL || list[i].id < 0 ||
		    list[i].id > LPO_TOKENIZER_MAX_ID)
			return lpo_fail(t->ctx, LPO_EFORMAT,
			    "%s: an added token without content or id", path);
	return x - list;
}

/* Add what numbered lists there are, in the order of their ids. */
static int
add_numbered(lpo_tokenizer *t, struct files *f)
{
	json_t *decoder = json_object_get(f->config, "added_tokens_decoder");
	json_t *one = decoder, *two = NULL;
	const char *path = f->config_path;
	struct numbered *list;
	int64_t n, m = 0, i;
	int err = 0;

	if (decoder == NULL) {
		one = f->added;
		path = f->added_path;
		two = json_object_get(f->json, "added_tokens");
	}
	n = (int64_t)(json_object_size(one) + json_array_size(two));
	if (n == 0)
		return 0;
	list = lpo_alloc(t->ctx, (size_t)n, sizeof(*list));
	if (list == NULL)
		return LPO_ENOMEM;
	n = list_numbered(t, list, one, f->config, path);
	if (n >= 0 && two != NULL)
		m = list_numbered(t, list + n, two, f->config, f->json_path);
	if (n < 0 || m < 0)
		err = (int)(n < 0 ? n : m);
	if (err == 0) {
		sort_numbered(list, (size_t)(n + m));
		for (i = 0; i < n + m && err == 0; i++) {
			if (is_named(f->config, list[i].spec.content))
				list[i].spec.special = 1;
			err = add(t, &list[i].spec);
		}
	}
	lpo_free(list);
	return err;
}

/* A token of the config or the map, unless a numbered list had it. */
static int
add_named(lpo_tokenizer *t, const json_t *v, int n_numbered)
{
	struct spec s = spec_of(v);
	int i;

	if (s.content == NULL)
		return 0;
	for (i = 0; i < n_numbered; i++)
		if (strcmp(t->added[i].content, s.content) == 0)
			return 0;
	s.special = 1;
	return add(t, &s);
}

static int
ends_with_token(const char *key)
{
	size_t n = strlen(key);

	return n > 6 && strcmp(key + n - 6, "_token") == 0;
}

static int
add_all(lpo_tokenizer *t, struct files *f)
{
	static const char *const lists[] = { "additional_special_tokens",
	    "extra_special_tokens" };
	const char *key;
	json_t *v, *list;
	size_t i;
	int k, n, err;

	if ((err = add_numbered(t, f)) != 0)
		return err;
	n = t->n_added;
	for (k = 0; k < N_NAMED && err == 0; k++)
		err = add_named(t, json_object_get(f->config, named[k]), n);
	/* a model's own: "image_token": "<img>" */
	json_object_foreach(f->config, key, v) {
		for (k = 0; k < N_NAMED && strcmp(key, named[k]) != 0; k++)
			;
		if (err == 0 && k == N_NAMED && ends_with_token(key))
			err = add_named(t, v, n);
	}
	for (k = 0; k < 2; k++) {
		list = json_object_get(f->config, lists[k]);
		json_array_foreach(list, i, v)
			if (err == 0)
				err = add_named(t, v, n);
		if (json_is_object(list))
			json_object_foreach(list, key, v)
				if (err == 0)
					err = add_named(t, v, n);
	}
	return err;
}

/* ---- the folder ---- */

/* Where a file does not name a token, the class's own default holds. */
static int
set_default(lpo_ctx *c, json_t *config, const char *key, const char *value)
{
	if (json_object_get(config, key) != NULL)
		return 0;
	return lpo_json_set(c, config, key, json_string(value));
}

/* All settings into f->config, where the rest is read from. */
static int
merge_config(lpo_tokenizer *t, struct files *f)
{
	const json_t *fast = json_object_get(f->config, "added_tokens_decoder");
	lpo_ctx *c = t->ctx;
	int err;

	if (f->map != NULL && fast == NULL &&
	    json_object_update(f->config, f->map) != 0)
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	if ((err = set_default(c, f->config, "bos_token",
	    "<|startoftext|>")) != 0 ||
	    (err = set_default(c, f->config, "eos_token",
	    "<|endoftext|>")) != 0 ||
	    (err = set_default(c, f->config, "unk_token",
	    "<|endoftext|>")) != 0)
		return err;
	return set_default(c, f->config, "pad_token", "<|endoftext|>");
}

static int
named_id(lpo_tokenizer *t, struct files *f, const char *key, int32_t *id)
{
	struct spec s = spec_of(json_object_get(f->config, key));

	*id = s.content == NULL ? -1 : id_of(t, s.content);
	if (*id < 0)
		return lpo_fail(t->ctx, LPO_EFORMAT, "%s: no '%s'",
		    f->config_path, key);
	return 0;
}

static int
right_side(lpo_tokenizer *t, struct files *f, const char *key)
{
	const char *side;
	int err = lpo_json_str(t->ctx, &side, f->config, key, "right");

	if (err == 0 && strcmp(side, "right") != 0)
		err = lpo_fail(t->ctx, LPO_EFORMAT,
		    "'%s' can only be \"right\"", key);
	return err ? lpo_fail_prefix(t->ctx, "%s", f->config_path) : 0;
}

static int
read_settings(lpo_tokenizer *t, struct files *f)
{
	struct spec unk;
	lpo_ctx *c = t->ctx;
	int err;

	err = lpo_json_need_int(c, &t->max_length, f->config,
	    "model_max_length");
	if (err == 0 && (t->max_length < 2 || t->max_length > MAX_LENGTH))
		err = lpo_fail(c, LPO_EFORMAT,
		    "'model_max_length' is not from 2 to %d", MAX_LENGTH);
	if (err == 0)
		err = lpo_json_bool(c, &t->split_special, f->config,
		    "split_special_tokens", 0);
	if (err != 0)
		return lpo_fail_prefix(c, "%s", f->config_path);
	if ((err = right_side(t, f, "padding_side")) != 0 ||
	    (err = right_side(t, f, "truncation_side")) != 0 ||
	    (err = named_id(t, f, "bos_token", &t->bos)) != 0 ||
	    (err = named_id(t, f, "eos_token", &t->eos)) != 0 ||
	    (err = named_id(t, f, "pad_token", &t->pad)) != 0)
		return err;
	/* BPE's own unknown token must be in the vocabulary itself. */
	unk = spec_of(json_object_get(f->config, "unk_token"));
	t->unk = unk.content == NULL ? -1 : lpo_bpe_id(t, unk.content,
	    strlen(unk.content));
	return 0;
}

static int
load(lpo_tokenizer *t, struct files *f, const char *dir)
{
	lpo_ctx *c = t->ctx;
	int err;

	if ((f->vocab_path = lpo_path_join(c, dir, "vocab.json")) == NULL ||
	    (f->merges_path = lpo_path_join(c, dir, "merges.txt")) == NULL)
		return LPO_ENOMEM;
	if ((err = load_optional(c, &f->config, &f->config_path, dir,
	    "tokenizer_config.json")) != 0 ||
	    (err = load_optional(c, &f->map, &f->map_path, dir,
	    "special_tokens_map.json")) != 0 ||
	    (err = load_optional(c, &f->added, &f->added_path, dir,
	    "added_tokens.json")) != 0 ||
	    (err = load_optional(c, &f->json, &f->json_path, dir,
	    "tokenizer.json")) != 0)
		return err;
	if (f->config == NULL && (f->config = json_object()) == NULL)
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	if ((err = load_bpe(t, f)) != 0 ||
	    (err = merge_config(t, f)) != 0 ||
	    (err = add_all(t, f)) != 0 ||
	    (err = read_settings(t, f)) != 0)
		return err;
	return lpo_tokenizer_prepare(t);
}

int
lpo_tokenizer_open(lpo_ctx *c, lpo_tokenizer **tok, const char *dir)
{
	struct files f = { 0 };
	lpo_tokenizer *t;
	int err;

	*tok = NULL;
	t = lpo_alloc(c, 1, sizeof(*t));
	if (t == NULL)
		return LPO_ENOMEM;
	t->ctx = c;
	err = load(t, &f, dir);
	files_free(&f);
	if (err != 0) {
		lpo_tokenizer_close(t);
		return err;
	}
	*tok = t;
	return 0;
}
