/* Encoded preferences at rest, filtered and ordered. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/base/philox.h"
#include "lib/train/pairset.h"

struct item {
	int32_t shard;
	int32_t index;		/* within the shard */
	int32_t row;
	int8_t cross, tie, first_wins;
	json_t *extra;		/* with joined scores; NULL: as in the shard */
};

struct lpo_pairset {
	lpo_ctx *ctx;
	lpo_shard **shard;
	char **name;
	int64_t n_shards;
	struct item *item;
	int64_t items, cap;
	int64_t rows;
	int64_t label[3];	/* before filters: first, second, tie */
	uint32_t crc;
	int fd;			/* the spool; -1: none */
};

/* --------------------------------------------------------------- spool */

static int
write_all(lpo_ctx *c, int fd, const char *dir, const char *p, size_t n)
{
	ssize_t k;

	while (n > 0) {
		k = write(fd, p, n);
		if (k < 0 && errno == EINTR && !lpo_ctx_stopped(c))
			continue;
		if (k < 0)
			return lpo_ctx_stopped(c) ? LPO_ESTOP : lpo_fail(c,
			    LPO_EIO, "cannot write a spool file in '%s': %s "
			    "(--spool names another folder)", dir,
			    strerror(errno));
		p += k;
		n -= (size_t)k;
	}
	return 0;
}

static int
spool_stdin(lpo_ctx *c, int *out, const char *dir)
{
	const size_t size = 1 << 20;
	char *buf = NULL;
	int64_t total = 0;
	ssize_t n;
	int fd = -1, rc;

	dir = lpo_scratch_dir(dir);
	if ((rc = lpo_scratch_file(c, &fd, dir)) != 0)
		return rc;
	if ((buf = lpo_alloc(c, size, 1)) == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	for (;;) {
		n = read(STDIN_FILENO, buf, size);
		if (lpo_ctx_stopped(c)) {
			rc = LPO_ESTOP;
			goto out;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			rc = lpo_fail(c, LPO_EIO, "cannot read standard "
			    "input: %s", strerror(errno));
			goto out;
		}
		if (n == 0)
			break;
		if ((rc = write_all(c, fd, dir, buf, (size_t)n)) != 0)
			goto out;
		total += n;
	}
	lpo_notice(c, "standard input spooled, %.1f MB", (double)total / 1e6);
	*out = fd;
	fd = -1;
out:
	lpo_free(buf);
	if (fd >= 0)
		close(fd);
	return rc;
}

/* ---------------------------------------------------------------- open */

int
lpo_pair_kind_check(lpo_ctx *c, const json_t *run, const char *name)
{
	const char *kind;
	int rc;

	if (run == NULL)
		return 0;
	if ((rc = lpo_json_str(c, &kind, run, "kind", "moments")) != 0)
		return rc;
	return strcmp(kind, "moments") == 0 ? 0 : lpo_fail(c, LPO_EFORMAT,
	    "'%s' holds %s, not moments: lpo-pairs reads what lpo-encode "
	    "writes", name, kind);
}

static const char *
name_of(const lpo_pairset *s, int64_t shard)
{
	return s->name != NULL ? s->name[shard] : "standard input";
}

static int
check_kind(lpo_pairset *s)
{
	int64_t i;
	int rc = 0;

	for (i = 0; i < s->n_shards && rc == 0; i++)
		rc = lpo_pair_kind_check(s->ctx, lpo_shard_run(s->shard[i]),
		    name_of(s, i));
	return rc;
}

int
lpo_pairset_open(lpo_ctx *c, lpo_pairset **out, const char *const *args,
    int n_args, const char *spool, unsigned flags)
{
	lpo_pairset *s = lpo_alloc(c, 1, sizeof *s);
	int64_t i;
	int rc = 0;

	*out = NULL;
	if (s == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->fd = -1;
	if (n_args == 0 || (n_args == 1 && strcmp(args[0], "-") == 0)) {
		if ((rc = spool_stdin(c, &s->fd, spool)) != 0)
			goto out;
		s->n_shards = 1;
	} else if ((rc = lpo_shards_expand(c, &s->name, &s->n_shards, args,
	    n_args)) != 0)
		goto out;
	s->shard = lpo_alloc(c, (size_t)s->n_shards, sizeof *s->shard);
	if (s->shard == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	for (i = 0; i < s->n_shards && rc == 0; i++)
		rc = s->fd >= 0 ?
		    lpo_shard_open_fd(c, &s->shard[i], s->fd,
		    "standard input") :
		    lpo_shard_open(c, &s->shard[i], s->name[i]);
	if (rc == 0)
		rc = check_kind(s);
	if (rc == 0)
		rc = lpo_shard_check_set(c, s->shard, s->n_shards, flags);
	for (i = 0; i < s->n_shards && rc == 0; i++)
		s->rows += lpo_shard_samples(s->shard[i]);
out:
	if (rc != 0)
		lpo_pairset_close(s);
	else
		*out = s;
	return rc;
}

void
lpo_pairset_close(lpo_pairset *s)
{
	int64_t i;

	if (s == NULL)
		return;
	for (i = 0; s->shard != NULL && i < s->n_shards; i++)
		lpo_shard_close(s->shard[i]);
	for (i = 0; i < s->items; i++)
		json_decref(s->item[i].extra);
	lpo_names_free(s->name, s->name != NULL ? s->n_shards : 0);
	lpo_free(s->shard);
	lpo_free(s->item);
	if (s->fd >= 0)
		close(s->fd);
	lpo_free(s);
}

const json_t *
lpo_pairset_run(const lpo_pairset *s)
{
	return lpo_shard_run(s->shard[0]);
}

json_t *
lpo_pairset_parents(const lpo_pairset *s)
{
	json_t *out = json_array(), *have;
	const json_t *id;
	int64_t i;
	size_t k;

	for (i = 0; i < s->n_shards; i++) {
		id = json_object_get(lpo_shard_run(s->shard[i]), "run");
		if (!json_is_string(id))
			continue;
		json_array_foreach(out, k, have)
			if (json_equal(have, id))
				break;
		if (k == json_array_size(out))
			json_array_append(out, (json_t *)id);
	}
	return out;
}

int64_t
lpo_pairset_rows(const lpo_pairset *s)
{
	return s->rows;
}

uint32_t
lpo_pairset_crc32c(const lpo_pairset *s)
{
	return s->crc;
}

/* -------------------------------------------------------------- select */

static int
add_item(lpo_pairset *s, const struct item *it)
{
	struct item *p;

	if (s->items == s->cap) {
		s->cap = s->cap ? 2 * s->cap : 1024;
		p = lpo_realloc(s->ctx, s->item, (size_t)s->cap * sizeof *p);
		if (p == NULL)
			return LPO_ENOMEM;
		s->item = p;
	}
	s->item[s->items++] = *it;
	return 0;
}

static int
get_record(lpo_ctx *c, struct lpo_record *r, const lpo_pairset *s,
    int64_t shard, int64_t index)
{
	json_t *json = NULL;
	int rc;

	rc = lpo_shard_get_json(c, &json, s->shard[shard], index);
	if (rc == 0)
		rc = lpo_record_from_json(c, r, json);
	if (rc != 0)
		lpo_fail_prefix(c, "%s: '%s'", name_of(s, shard),
		    lpo_shard_key(s->shard[shard], index));
	json_decref(json);
	return rc;
}

static int
sum_members(lpo_pairset *s, int64_t shard, int64_t i)
{
	static const char *const names[] = { "json", "moments_0.npy",
	    "moments_1.npy" };
	const uint8_t *p;
	int64_t n;
	int k, rc, last = lpo_shard_run(s->shard[shard]) != NULL ? 1 : 3;

	for (k = 0; k < last; k++) {
		rc = lpo_shard_peek(s->ctx, &p, &n, s->shard[shard], i,
		    names[k]);
		if (rc != 0)
			return rc;
		s->crc = lpo_crc32c(s->crc, p, (size_t)n);
	}
	return 0;
}

static int
select_one(lpo_pairset *s, lpo_filters *f, struct item *it)
{
	struct lpo_record r;
	json_t *before = NULL;
	int keep = 0, rc;

	memset(&r, 0, sizeof r);
	rc = get_record(s->ctx, &r, s, it->shard, it->index);
	if (rc != 0)
		goto out;
	s->label[lpo_record_is_tie(&r) ? 2 : r.label_0 < r.label_1]++;
	before = json_deep_copy(r.extra);
	rc = lpo_filter_keep(f, &keep, &r);
	if (rc != 0 || !keep)
		goto out;
	if (r.row < 0 || r.row > INT32_MAX) {
		rc = lpo_fail(s->ctx, LPO_EFORMAT, "'%s': row %lld", r.key,
		    (long long)r.row);
		goto out;
	}
	it->row = (int32_t)r.row;
	it->tie = (int8_t)lpo_record_is_tie(&r);
	it->first_wins = r.label_0 > r.label_1;
	/* the filters joined scores: what is read again won't have them */
	if (!json_equal(before, r.extra))
		it->extra = json_incref(r.extra);
	rc = add_item(s, it);
out:
	json_decref(before);
	lpo_record_clear(&r);
	return rc;
}

static int
by_row(const void *a, const void *b)
{
	int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;

	return (x > y) - (x < y);
}

/* Draws belong to rows: two inputs with the same rows would share noise. */
static int
check_rows(lpo_pairset *s)
{
	int32_t *row;
	int64_t i;
	int rc = 0;

	row = lpo_alloc(s->ctx, (size_t)s->items + 1, sizeof *row);
	if (row == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < s->items; i++)
		row[i] = s->item[i].row;
	qsort(row, (size_t)s->items, sizeof *row, by_row);
	for (i = 1; i < s->items && rc == 0; i++)
		if (row[i] == row[i - 1])
			rc = lpo_fail(s->ctx, LPO_EFORMAT, "row %d is there "
			    "twice: give several inputs to one lpo-encode, "
			    "which numbers them through", row[i]);
	lpo_free(row);
	return rc;
}

int
lpo_pairset_select(lpo_pairset *s, lpo_filters *f, int cross)
{
	int64_t k, i, n;
	int rc;

	if ((rc = lpo_filter_rows(f, s->rows)) != 0)
		return rc;
	for (k = 0; k < s->n_shards; k++) {
		n = lpo_shard_samples(s->shard[k]);
		for (i = 0; i < n; i++) {
			struct item it = { .shard = (int32_t)k,
			    .index = (int32_t)i };

			if (lpo_ctx_stopped(s->ctx))
				return LPO_ESTOP;
			if ((rc = sum_members(s, k, i)) != 0 ||
			    (rc = select_one(s, f, &it)) != 0)
				return rc;
		}
	}
	if ((rc = check_rows(s)) != 0 || !cross)
		return rc;
	n = s->items;
	for (i = 0; i < n; i++) {
		struct item it = s->item[i];

		if (it.tie)
			continue;
		it.cross = 1;
		json_incref(it.extra);
		if ((rc = add_item(s, &it)) != 0) {
			json_decref(it.extra);
			return rc;
		}
	}
	return 0;
}

int64_t
lpo_pairset_items(const lpo_pairset *s)
{
	return s->items;
}

void
lpo_pairset_labels(const lpo_pairset *s, int64_t count[3])
{
	memcpy(count, s->label, sizeof s->label);
}

/* --------------------------------------------------------------- items */

void
lpo_pairset_pick(const lpo_pairset *s, struct lpo_pair_pick *p, int64_t at,
    uint64_t seed, int shuffle)
{
	struct lpo_draw d = { .seed = seed, .purpose = LPO_DRAW_SHUFFLE };

	p->epoch = (uint32_t)(at / s->items);
	p->item = at % s->items;
	d.epoch = p->epoch;
	if (shuffle)
		p->item = (int64_t)lpo_draw_permute(&d, (uint64_t)p->item,
		    (uint64_t)s->items);
}

void
lpo_pairset_fact(const lpo_pairset *s, struct lpo_pair_fact *f, int64_t item)
{
	const struct item *it = &s->item[item];

	f->row = it->row;
	f->cross = it->cross;
	f->tie = it->tie;
	f->first_wins = it->first_wins;
}

int
lpo_pairset_record(lpo_ctx *c, struct lpo_record *r, const lpo_pairset *s,
    int64_t item)
{
	const struct item *it = &s->item[item];
	int rc;

	memset(r, 0, sizeof *r);
	rc = get_record(c, r, s, it->shard, it->index);
	if (rc == 0 && it->extra != NULL) {
		json_decref(r->extra);
		/* a copy: jansson's counts are not for several threads */
		r->extra = json_deep_copy(it->extra);
		if (r->extra == NULL)
			rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
	}
	return rc;
}

int
lpo_pairset_sample(lpo_ctx *c, struct lpo_sample *out, const lpo_pairset *s,
    const struct lpo_pair_opts *o, const struct lpo_pair_pick *p)
{
	static const char *const name[2] = { "moments_0.npy",
	    "moments_1.npy" };
	const struct item *it = &s->item[p->item];
	struct lpo_pair_in in = { .epoch = p->epoch, .cross = it->cross };
	struct lpo_record r;
	int i, rc;

	memset(out, 0, sizeof *out);
	if ((rc = lpo_pairset_record(c, &r, s, p->item)) != 0)
		goto out;
	in.record = &r;
	for (i = 0; i < 2 && rc == 0; i++)
		rc = lpo_shard_peek(c, &in.moments[i], &in.bytes[i],
		    s->shard[it->shard], it->index, name[i]);
	if (rc == 0)
		rc = lpo_pair_sample(c, out, o, &in);
out:
	lpo_record_clear(&r);
	return rc;
}

int
lpo_pairset_shape(lpo_ctx *c, int64_t shape[3], const lpo_pairset *s)
{
	struct lpo_npy a;
	const uint8_t *p;
	int64_t n, k;
	int rc;

	for (k = 0; k < s->n_shards; k++)
		if (lpo_shard_samples(s->shard[k]) > 0)
			break;
	if (k == s->n_shards)
		return lpo_fail(c, LPO_EFORMAT, "the input is empty");
	if ((rc = lpo_shard_peek(c, &p, &n, s->shard[k], 0,
	    "moments_0.npy")) != 0 ||
	    (rc = lpo_npy_parse(c, &a, p, (size_t)n, "moments_0.npy")) != 0)
		return rc;
	if (a.ndim != 3)
		return lpo_fail(c, LPO_EFORMAT, "moments are not [2c, h, w]");
	memcpy(shape, a.shape, 3 * sizeof *shape);
	return 0;
}
