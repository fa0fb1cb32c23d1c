/*
 * Preference records: to and from JSON, and the set that an input is.
 */
#include "lib/io/record.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/record_priv.h"

#define SUM_CHUNK ((size_t)16 << 20)

void
lpo_record_clear(struct lpo_record *r)
{
	lpo_free(r->id);
	lpo_free(r->prompt);
	lpo_free(r->image[0]);
	lpo_free(r->image[1]);
	json_decref(r->extra);
	memset(r, 0, sizeof(*r));
}

int
lpo_record_is_tie(const struct lpo_record *r)
{
	return r->label_0 == r->label_1;
}

int
lpo_record_from_json(lpo_ctx *c, struct lpo_record *r, const json_t *v)
{
	const char *prompt = NULL, *key = "";
	const json_t *extra;
	int rc;

	memset(r, 0, sizeof(*r));
	rc = lpo_json_need_str(c, &prompt, v, "prompt");
	if (rc == 0)
		rc = lpo_json_need_int(c, &r->row, v, "row");
	if (rc == 0)
		rc = lpo_json_str(c, &key, v, "key", "");
	if (rc == 0)
		rc = lpo_json_real(c, &r->label_0, v, "label_0", 0.5);
	if (rc == 0)
		rc = lpo_json_real(c, &r->label_1, v, "label_1", 0.5);
	if (rc == 0)
		rc = lpo_json_int(c, &r->num_example_per_prompt, v,
		    "num_example_per_prompt", 1);
	if (rc == 0 && strlen(key) >= sizeof(r->key))
		rc = lpo_fail(c, LPO_EFORMAT, "key '%.60s' is too long",
		    key);
	if (rc == 0 && (r->num_example_per_prompt < 1 || r->row < 0))
		rc = lpo_fail(c, LPO_EFORMAT, "row or num_example_per_prompt "
		    "is negative");
	if (rc == 0 && (r->prompt = lpo_strdup(c, prompt)) == NULL)
		rc = LPO_ENOMEM;
	if (rc == 0) {
		if (key[0] != '\0')
			snprintf(r->key, sizeof(r->key), "%s", key);
		else
			snprintf(r->key, sizeof(r->key), "%09lld",
			    (long long)r->row);
		if (lpo_json_get(v, "id") != NULL &&
		    (r->id = lpo_json_text(c, v, "id")) == NULL)
			rc = lpo_errcode(c);
	}
	if (rc == 0) {
		extra = lpo_json_get(v, "extra");
		/* Shallow: filters may add members to a record's own. */
		r->extra = extra ? json_copy((json_t *)(uintptr_t)extra) :
		    json_object();
		if (r->extra == NULL)
			rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
		else if (!json_is_object(r->extra))
			rc = lpo_fail(c, LPO_EFORMAT, "'extra' is not an "
			    "object");
	}
	if (rc != 0)
		lpo_record_clear(r);
	return rc;
}

int
lpo_record_to_json(lpo_ctx *c, json_t **out, const struct lpo_record *r)
{
	json_t *o = json_pack("{s:s,s:s,s:I,s:f,s:f,s:I,s:O}", "key", r->key,
	    "prompt", r->prompt, "row", (json_int_t)r->row, "label_0",
	    r->label_0, "label_1", r->label_1, "num_example_per_prompt",
	    (json_int_t)r->num_example_per_prompt, "extra", r->extra);

	*out = NULL;
	if (o == NULL || (r->id != NULL &&
	    json_object_set_new(o, "id", json_string(r->id)) != 0)) {
		json_decref(o);
		return lpo_fail(c, LPO_ENOMEM, "%s: cannot make the record",
		    r->key);
	}
	*out = o;
	return 0;
}

json_t *
lpo_record_field(const struct lpo_record *r, const char *name)
{
	if (strcmp(name, "key") == 0)
		return json_string(r->key);
	if (strcmp(name, "row") == 0)
		return json_integer(r->row);
	if (strcmp(name, "id") == 0)
		return r->id ? json_string(r->id) : NULL;
	if (strcmp(name, "prompt") == 0)
		return json_string(r->prompt);
	if (strcmp(name, "label_0") == 0)
		return json_real(r->label_0);
	if (strcmp(name, "label_1") == 0)
		return json_real(r->label_1);
	if (strcmp(name, "num_example_per_prompt") == 0)
		return json_integer(r->num_example_per_prompt);
	return json_incref(json_object_get(r->extra, name));
}

/* A tar may be large, and a signal does not wait for all of it. */
int
lpo_records_sum(lpo_records *rs, const void *data, size_t n)
{
	const uint8_t *p = data;
	size_t k;

	for (; n > 0; p += k, n -= k) {
		if (lpo_ctx_stopped(rs->c))
			return lpo_fail(rs->c, LPO_ESTOP, "stopped");
		k = n < SUM_CHUNK ? n : SUM_CHUNK;
		lpo_sha256_update(&rs->sum, p, k);
	}
	return 0;
}

/* ---- Rows ---- */

void
lpo_row_clear(struct lpo_row *r)
{
	lpo_free(r->prompt);
	lpo_free(r->id);
	lpo_free(r->extra);
	lpo_free(r->error);
	lpo_free(r->image[0]);
	lpo_free(r->image[1]);
	memset(r, 0, sizeof(*r));
}

int
lpo_records_add(lpo_records *rs, struct lpo_row *r)
{
	struct lpo_row *grown;

	if (rs->n == rs->room) {
		int64_t room = rs->room * 2 + 256;

		grown = lpo_realloc(rs->c, rs->row,
		    (size_t)room * sizeof(*grown));
		if (grown == NULL) {
			lpo_row_clear(r);
			return LPO_ENOMEM;
		}
		rs->row = grown;
		rs->room = room;
	}
	rs->row[rs->n++] = *r;
	memset(r, 0, sizeof(*r));
	return 0;
}

int
lpo_records_add_bad(lpo_records *rs, char *error)
{
	struct lpo_row r;

	if (error == NULL)
		return LPO_ENOMEM;
	memset(&r, 0, sizeof(r));
	r.error = error;
	return lpo_records_add(rs, &r);
}

char *
lpo_json_text(lpo_ctx *c, const json_t *obj, const char *key)
{
	const json_t *v = lpo_json_get(obj, key);

	if (v == NULL)
		return NULL;
	if (json_is_array(v) || json_is_object(v)) {
		lpo_fail(c, LPO_EFORMAT, "'%s' is a list or an object, not a "
		    "text", key);
		return NULL;
	}
	return json_is_string(v) ? lpo_strdup(c, json_string_value(v)) :
	    lpo_json_dumps(c, v);
}

/* A number, also where it stands as text.  1: absent or empty. */
static int
number(lpo_ctx *c, double *out, const json_t *obj, const char *key)
{
	json_t *v = lpo_json_get(obj, key), *cell = NULL;
	int rc = 0;

	if (v == NULL || (json_is_string(v) && json_string_length(v) == 0))
		return 1;
	if (json_is_string(v) &&
	    (v = cell = lpo_json_cell(c, json_string_value(v))) == NULL)
		return LPO_ENOMEM;
	if (json_is_boolean(v))
		*out = json_is_true(v);
	else if (json_is_number(v))
		*out = json_number_value(v);
	else
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' is not a number", key);
	json_decref(cell);
	return rc;
}

/* 0, 1 (0.0 and 1.0 where a table's column became one of reals) or tie. */
static int
preferred(lpo_ctx *c, struct lpo_row *r, const json_t *obj)
{
	char *text;
	json_t *v;
	double x;
	int rc = 0;

	if (lpo_json_get(obj, "preferred") == NULL)
		return lpo_fail(c, LPO_EFORMAT, "neither label_0 and label_1 "
		    "nor preferred");
	if ((text = lpo_json_text(c, obj, "preferred")) == NULL)
		return lpo_errcode(c);
	if ((v = lpo_json_cell(c, text)) == NULL)
		rc = LPO_ENOMEM;
	x = json_is_number(v) ? json_number_value(v) : -1;
	if (x == 0 || x == 1) {
		r->label_0 = 1 - x;
		r->label_1 = x;
	} else if (strcasecmp(text, "tie") == 0)
		r->label_0 = r->label_1 = 0.5;
	else if (rc == 0)
		rc = lpo_fail(c, LPO_EFORMAT, "preferred is '%.40s', not 0, 1 "
		    "or tie", text);
	json_decref(v);
	lpo_free(text);
	return rc;
}

/* label_0 and label_1, or preferred. */
static int
labels(lpo_ctx *c, struct lpo_row *r, const json_t *obj)
{
	int a, b;

	if ((a = number(c, &r->label_0, obj, "label_0")) < 0)
		return a;
	if ((b = number(c, &r->label_1, obj, "label_1")) < 0)
		return b;
	if (a == 1 && b == 1)
		return preferred(c, r, obj);
	if (a == 1)
		r->label_0 = 1 - r->label_1;
	if (b == 1)
		r->label_1 = 1 - r->label_0;
	if (!(r->label_0 >= 0 && r->label_1 >= 0) ||
	    fabs(r->label_0 + r->label_1 - 1) > 1e-6)
		return lpo_fail(c, LPO_EFORMAT, "label_0 %g and label_1 %g do "
		    "not sum to 1", r->label_0, r->label_1);
	return 0;
}

static int
is_core(const char *name)
{
	static const char *const core[] = {
		"prompt", "caption", "image_0", "image_1", "image", "label_0",
		"label_1", "preferred", "id", "num_example_per_prompt",
		"key", "row", "crc32c", "extra"
	};
	size_t i;

	for (i = 0; i < sizeof(core) / sizeof(*core); i++)
		if (strcmp(core[i], name) == 0)
			return 1;
	return 0;
}

/* Everything that is not a field of its own. */
static int
extras(lpo_ctx *c, struct lpo_row *r, json_t *obj)
{
	json_t *extra = json_object(), *v = lpo_json_get(obj, "extra");
	const char *key;
	int rc = 0;

	if (extra == NULL || (json_is_object(v) &&
	    json_object_update(extra, v) != 0))
		rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
	json_object_foreach(obj, key, v)
		if (rc == 0 && !is_core(key))
			rc = lpo_json_set(c, extra, key, json_incref(v));
	/* caption beside prompt is a column like others. */
	if (rc == 0 && lpo_json_get(obj, "prompt") != NULL &&
	    (v = lpo_json_get(obj, "caption")) != NULL)
		rc = lpo_json_set(c, extra, "caption", json_incref(v));
	if (rc == 0 && json_object_size(extra) > 0 &&
	    (r->extra = lpo_json_dumps(c, extra)) == NULL)
		rc = LPO_ENOMEM;
	json_decref(extra);
	return rc;
}

int
lpo_row_from_json(lpo_records *rs, struct lpo_row *r, json_t *obj)
{
	int images_only = rs->flags & LPO_RECORDS_IMAGES_ONLY, rc;
	lpo_ctx *c = rs->c;
	double n = 0;

	if (!json_is_object(obj))
		return lpo_fail(c, LPO_EFORMAT, "not an object");
	r->prompt = lpo_json_text(c, obj,
	    lpo_json_get(obj, "prompt") ? "prompt" : "caption");
	if (r->prompt == NULL && lpo_errcode(c) == 0) {
		if (!images_only)
			return lpo_fail(c, LPO_EFORMAT, "no prompt");
		r->prompt = lpo_strdup(c, "");
	}
	if (r->prompt == NULL)
		return lpo_errcode(c);
	if (rs->flags != 0)
		r->label_0 = r->label_1 = 0.5;
	else if ((rc = labels(c, r, obj)) != 0)
		return rc;
	if ((r->id = lpo_json_text(c, obj, "id")) == NULL &&
	    lpo_errcode(c) != 0)
		return lpo_errcode(c);
	if (r->id != NULL && r->id[0] == '\0') {
		lpo_free(r->id);
		r->id = NULL;
	}
	rc = number(c, &n, obj, "num_example_per_prompt");
	if (rc < 0)
		return rc;
	if (rc == 0 && !(n >= 1 && n <= 1e9 && n == floor(n)))
		return lpo_fail(c, LPO_EFORMAT, "num_example_per_prompt is %g",
		    n);
	r->n = (int64_t)n;
	return extras(c, r, obj);
}

/* ---- The set ---- */

static int
by_prompt(const void *a, const void *b)
{
	const struct lpo_row *const *x = a, *const *y = b;

	return strcmp((*x)->prompt, (*y)->prompt);
}

/* num_example_per_prompt where the input has none: rows with that prompt. */
static int
count_prompts(lpo_records *rs)
{
	struct lpo_row **p;
	int64_t i, j, k, n = 0;

	p = lpo_alloc(rs->c, (size_t)rs->n, sizeof(*p));
	if (p == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < rs->n; i++)
		if (rs->row[i].error == NULL)
			p[n++] = &rs->row[i];
	qsort(p, (size_t)n, sizeof(*p), by_prompt);
	for (i = 0; i < n; i = j) {
		for (j = i; j < n && by_prompt(&p[i], &p[j]) == 0; j++)
			;
		for (k = i; k < j; k++)
			if (p[k]->n == 0)
				p[k]->n = j - i;
	}
	lpo_free(p);
	return 0;
}

/* An empty cell may be meant or be lost; nobody sees it in a million rows. */
static void
tell_empty(const lpo_records *rs)
{
	int64_t i, n = 0;

	for (i = 0; i < rs->n; i++)
		n += rs->row[i].error == NULL && rs->row[i].prompt[0] == '\0';
	if (n > 0 && !(rs->flags & LPO_RECORDS_IMAGES_ONLY))
		lpo_notice(rs->c, "rows with an empty prompt: %lld",
		    (long long)n);
}

int
lpo_records_open(lpo_ctx *c, lpo_records **out, const char *const *paths,
    int n_paths, unsigned flags)
{
	lpo_records *rs = lpo_alloc(c, 1, sizeof(*rs));
	int i, rc = 0;

	*out = NULL;
	if (rs == NULL)
		return LPO_ENOMEM;
	rs->c = c;
	rs->flags = flags;
	lpo_sha256_init(&rs->sum);
	for (i = 0; i < n_paths && rc == 0; i++) {
		if (lpo_is_dir(paths[i]))
			rc = lpo_records_folder(rs, paths[i]);
		else if (lpo_has_extension(paths[i], ".tar"))
			rc = lpo_records_tar(rs, paths[i]);
		else
			rc = lpo_records_table(rs, paths[i]);
	}
	if (rc == 0)
		rc = count_prompts(rs);
	if (rc != 0) {
		lpo_records_close(rs);
		return rc;
	}
	tell_empty(rs);
	*out = rs;
	return 0;
}

void
lpo_records_close(lpo_records *rs)
{
	int64_t i;

	if (rs == NULL)
		return;
	for (i = 0; i < rs->n; i++)
		lpo_row_clear(&rs->row[i]);
	for (i = 0; i < rs->n_tars; i++) {
		lpo_shard_close(rs->tar[i]);
		lpo_free(rs->tar_name[i]);
	}
	lpo_free(rs->tar);
	lpo_free(rs->tar_name);
	lpo_free(rs->row);
	lpo_free(rs);
}

int64_t
lpo_records_count(const lpo_records *rs)
{
	return rs->n;
}

const char *
lpo_records_error(const lpo_records *rs, int64_t i)
{
	return rs->row[i].error;
}

/* The row, or the reason why it is none. */
static int
good_row(lpo_ctx *c, const struct lpo_row **r, const lpo_records *rs,
    int64_t i)
{
	if (i < 0 || i >= rs->n)
		return lpo_fail(c, LPO_EINVAL, "no row %lld", (long long)i);
	*r = &rs->row[i];
	if ((*r)->error != NULL)
		return lpo_fail(c, LPO_EFORMAT, "%s", (*r)->error);
	return 0;
}

/* "a.tar:KEY.0.jpg" or the path. */
static char *
image_name(lpo_ctx *c, const lpo_records *rs, const struct lpo_row *r, int k)
{
	if (r->sample < 0)
		return lpo_strdup(c, r->image[k]);
	return lpo_asprintf(c, "%s:%s.%s", rs->tar_name[r->source],
	    lpo_shard_key(rs->tar[r->source], r->sample), r->image[k]);
}

int
lpo_records_get(lpo_ctx *c, struct lpo_record *rec, lpo_records *rs,
    int64_t i)
{
	const struct lpo_row *r = NULL;
	int k, rc;

	memset(rec, 0, sizeof(*rec));
	if ((rc = good_row(c, &r, rs, i)) != 0)
		return rc;
	snprintf(rec->key, sizeof(rec->key), "%09lld", (long long)i);
	rec->row = i;
	rec->label_0 = r->label_0;
	rec->label_1 = r->label_1;
	rec->num_example_per_prompt = r->n;
	rc = LPO_ENOMEM;
	if ((rec->prompt = lpo_strdup(c, r->prompt)) == NULL ||
	    (r->id != NULL && (rec->id = lpo_strdup(c, r->id)) == NULL))
		goto out;
	for (k = 0; k < 2; k++)
		if (r->image[k] != NULL &&
		    (rec->image[k] = image_name(c, rs, r, k)) == NULL)
			goto out;
	if (r->extra != NULL)
		rc = lpo_json_load(c, &rec->extra, r->extra,
		    strlen(r->extra), "extra");
	else if ((rec->extra = json_object()) != NULL)
		rc = 0;
	else
		lpo_fail(c, rc, "out of memory");
out:
	if (rc != 0)
		lpo_record_clear(rec);
	return rc;
}

int
lpo_records_image(lpo_ctx *c, uint8_t **data, int64_t *bytes, lpo_records *rs,
    int64_t i, int which)
{
	const struct lpo_row *r = NULL;
	const uint8_t *p;
	char *file;
	size_t n;
	int rc;

	*data = NULL;
	*bytes = 0;
	if ((rc = good_row(c, &r, rs, i)) != 0)
		return rc;
	if (which < 0 || which > 1 || r->image[which] == NULL)
		return lpo_fail(c, LPO_EINVAL, "row %lld has no image %d",
		    (long long)i, which);
	if (r->sample < 0) {
		rc = lpo_file_read(c, &file, &n, r->image[which],
		    LPO_IMAGE_LIMIT);
		*data = (uint8_t *)file;
		*bytes = (int64_t)n;
		return rc;
	}
	rc = lpo_shard_peek(c, &p, bytes, rs->tar[r->source], r->sample,
	    r->image[which]);
	if (rc != 0)
		return rc;
	if ((size_t)*bytes > LPO_IMAGE_LIMIT)
		return lpo_fail(c, LPO_EFORMAT, "image of %lld bytes",
		    (long long)*bytes);
	if ((*data = lpo_alloc(c, (size_t)*bytes, 1)) == NULL)
		return LPO_ENOMEM;
	memcpy(*data, p, (size_t)*bytes);
	return 0;
}

int
lpo_records_sha256(lpo_ctx *c, char out[65], lpo_records *rs)
{
	struct lpo_sha256 s = rs->sum;
	char text[32];
	int64_t i;
	int k;

	(void)c;
	/* Of images in files the size: their bytes are read once, later. */
	for (i = 0; i < rs->n; i++)
		for (k = 0; k < 2; k++) {
			if (rs->row[i].sample >= 0 ||
			    rs->row[i].image[k] == NULL)
				continue;
			snprintf(text, sizeof(text), "%lld\n",
			    (long long)lpo_file_size(rs->row[i].image[k]));
			lpo_sha256_update(&s, text, strlen(text));
		}
	lpo_sha256_hex(&s, out);
	return 0;
}
