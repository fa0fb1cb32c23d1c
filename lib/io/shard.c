/*
 * A shard in memory: walked and verified once, then samples by position.
 */
#include "lib/io/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard_priv.h"

struct sample {
	int64_t first;		/* its members: first .. first + n - 1 */
	int n, json, ours;
};

struct lpo_shard {
	char *name;
	struct lpo_map map;
	struct lpo_raw_member *m;	/* data point into the map */
	int64_t n_m, room_m;
	struct sample *s;
	int64_t n, room;
	int64_t *order;		/* positions sorted by key */
	json_t *run, *end;
	struct lpo_set set;
};

void
lpo_sample_clear(struct lpo_sample *s)
{
	int i;

	for (i = 0; i < s->n_members; i++) {
		lpo_free(s->member[i].name);
		lpo_free(s->member[i].bytes);
	}
	lpo_free(s->member);
	lpo_free(s->key);
	json_decref(s->json);
	memset(s, 0, sizeof(*s));
}

const struct lpo_member *
lpo_sample_find(const struct lpo_sample *s, const char *name)
{
	int i;

	for (i = 0; i < s->n_members; i++)
		if (strcmp(s->member[i].name, name) == 0)
			return &s->member[i];
	return NULL;
}

int
lpo_sample_add(lpo_ctx *c, struct lpo_sample *s, const char *name,
    uint8_t *bytes, int64_t size)
{
	struct lpo_member *grown = lpo_realloc(c, s->member,
	    (size_t)(s->n_members + 1) * sizeof(*grown));
	char *copy;

	if (grown != NULL)
		s->member = grown;
	copy = grown == NULL ? NULL : lpo_strdup(c, name);
	if (copy == NULL) {
		lpo_free(bytes);
		return LPO_ENOMEM;
	}
	s->member[s->n_members].name = copy;
	s->member[s->n_members].bytes = bytes;
	s->member[s->n_members++].size = size;
	return 0;
}

static int
load_json(lpo_ctx *c, json_t **out, const struct lpo_raw_member *m,
    const char *file)
{
	int rc;

	*out = NULL;
	if (m == NULL) {
		*out = json_object();
		return *out ? 0 : lpo_fail(c, LPO_ENOMEM, "out of memory");
	}
	rc = lpo_json_load(c, out, (const char *)m->data, (size_t)m->size,
	    file);
	if (rc == 0 && !json_is_object(*out)) {
		json_decref(*out);
		*out = NULL;
		rc = lpo_fail(c, LPO_EFORMAT, "%s: not an object", file);
	}
	if (rc == LPO_EFORMAT)
		lpo_fail_prefix(c, "sample '%s'", m->key);
	return rc;
}

int
lpo_raw_to_sample(lpo_ctx *c, struct lpo_sample *out,
    struct lpo_raw_sample *r, const char *file)
{
	const struct lpo_raw_member *j = r->json < 0 ? NULL : &r->m[r->json];
	uint8_t *bytes;
	int i, rc;

	memset(out, 0, sizeof(*out));
	if ((out->key = lpo_strdup(c, r->m[0].key)) == NULL)
		return LPO_ENOMEM;
	out->verified = r->ours;
	rc = load_json(c, &out->json, j, file);
	for (i = 0; i < r->n && rc == 0; i++) {
		if (i == r->json)
			continue;
		if (r->m[i].own != NULL) {
			bytes = r->m[i].own;
			r->m[i].own = NULL;
		} else if ((bytes = lpo_alloc(c, (size_t)r->m[i].size, 1)) ==
		    NULL) {
			rc = LPO_ENOMEM;
			break;
		} else
			memcpy(bytes, r->m[i].data, (size_t)r->m[i].size);
		rc = lpo_sample_add(c, out, r->m[i].name, bytes,
		    r->m[i].size);
	}
	if (rc != 0)
		lpo_sample_clear(out);
	return rc;
}

/* Move a sample of the walk into the index. */
static int
index_sample(lpo_ctx *c, lpo_shard *sh, struct lpo_raw_sample *r)
{
	struct lpo_raw_member *m;
	struct sample *s;

	if (sh->n_m + r->n > sh->room_m) {
		int64_t room = (sh->n_m + r->n) * 2;

		m = lpo_realloc(c, sh->m, (size_t)room * sizeof(*m));
		if (m == NULL)
			return LPO_ENOMEM;
		sh->m = m;
		sh->room_m = room;
	}
	if (sh->n == sh->room) {
		int64_t room = sh->room * 2 + 64;

		s = lpo_realloc(c, sh->s, (size_t)room * sizeof(*s));
		if (s == NULL)
			return LPO_ENOMEM;
		sh->s = s;
		sh->room = room;
	}
	memcpy(sh->m + sh->n_m, r->m, (size_t)r->n * sizeof(*r->m));
	s = &sh->s[sh->n++];
	s->first = sh->n_m;
	s->n = r->n;
	s->json = r->json;
	s->ours = r->ours;
	sh->n_m += r->n;
	r->n = 0;		/* the index owns the names now */
	return 0;
}

static const char *
key_of(const lpo_shard *sh, int64_t i)
{
	return sh->m[sh->s[i].first].key;
}

struct entry {
	const char *key;
	int64_t i;
};

static int
by_key(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	int r = strcmp(x->key, y->key);

	return r != 0 ? r : x->i < y->i ? -1 : x->i > y->i;
}

/* sh->order; equal keys are an error in verified samples. */
static int
sort_keys(lpo_ctx *c, lpo_shard *sh)
{
	struct entry *e = lpo_alloc(c, (size_t)sh->n, sizeof(*e));
	int64_t i;
	int rc = 0;

	sh->order = lpo_alloc(c, (size_t)sh->n, sizeof(*sh->order));
	if (e == NULL || sh->order == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	for (i = 0; i < sh->n; i++) {
		e[i].key = key_of(sh, i);
		e[i].i = i;
	}
	qsort(e, (size_t)sh->n, sizeof(*e), by_key);
	for (i = 0; i < sh->n && rc == 0; i++) {
		sh->order[i] = e[i].i;
		/* Several runs in one file may have the same rows. */
		if (i > 0 && strcmp(e[i].key, e[i - 1].key) == 0 &&
		    sh->s[e[i].i].ours && sh->set.n == 1)
			rc = lpo_fail(c, LPO_EFORMAT, "%s: sample '%s' is "
			    "there twice", sh->name, e[i].key);
	}
out:
	lpo_free(e);
	return rc;
}

/* `cat a.tar a.tar`: nobody may take it for one shard of half the samples. */
static int
add_section(lpo_ctx *c, lpo_shard *sh, const struct lpo_section *s)
{
	int64_t i;

	for (i = 0; i < sh->set.n; i++)
		if (sh->set.s[i].shard == s->shard &&
		    strcmp(sh->set.s[i].run, s->run) == 0)
			return lpo_fail(c, LPO_EFORMAT, "%s: shard %lld of "
			    "run %s is there twice", sh->name,
			    (long long)s->shard, s->run);
	return lpo_set_add(c, &sh->set, s, sh->name);
}

static int
walk(lpo_ctx *c, lpo_shard *sh)
{
	struct lpo_raw_sample r = { NULL, 0, 0, -1, 0 };
	struct lpo_scan scan;
	int foreign = 0, rc;

	rc = lpo_scan_open(c, &scan, &sh->map, -1, sh->name);
	while (rc == 0 || rc == 2) {
		if (lpo_ctx_stopped(c)) {
			rc = lpo_fail(c, LPO_ESTOP, "stopped");
			break;
		}
		rc = lpo_scan_next(&scan, &r);
		if (rc == 2) {
			int e = add_section(c, sh, &scan.now);

			rc = e != 0 ? e : 2;
		} else if (rc == 0) {
			foreign |= !r.ours;
			rc = index_sample(c, sh, &r);
		}
	}
	if (rc == 1) {
		sh->run = json_incref(scan.run);
		sh->end = json_incref(scan.end);
		rc = sort_keys(c, sh);
		if (foreign)
			lpo_notice(c, "%s: no sums and no end record: "
			    "unverified", sh->name);
	}
	lpo_raw_sample_free(&r);
	lpo_scan_close(&scan);
	return rc;
}

int
lpo_shard_open_fd(lpo_ctx *c, lpo_shard **out, int fd, const char *name)
{
	lpo_shard *sh = lpo_alloc(c, 1, sizeof(*sh));
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (sh == NULL)
		return rc;
	if ((sh->name = lpo_strdup(c, name)) == NULL ||
	    (rc = lpo_map_fd(c, &sh->map, fd, name)) != 0 ||
	    (rc = walk(c, sh)) != 0) {
		lpo_shard_close(sh);
		return rc;
	}
	*out = sh;
	return 0;
}

int
lpo_shard_open(lpo_ctx *c, lpo_shard **out, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;

	*out = NULL;
	if (fd < 0)
		return lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND : LPO_EIO,
		    "cannot open '%s': %s", path, strerror(errno));
	rc = lpo_shard_open_fd(c, out, fd, path);
	close(fd);
	return rc;
}

void
lpo_shard_close(lpo_shard *sh)
{
	int64_t i;

	if (sh == NULL)
		return;
	for (i = 0; i < sh->n_m; i++)
		lpo_free(sh->m[i].key);
	lpo_free(sh->m);
	lpo_free(sh->s);
	lpo_free(sh->order);
	lpo_set_free(&sh->set);
	json_decref(sh->run);
	json_decref(sh->end);
	lpo_map_close(&sh->map);
	lpo_free(sh->name);
	lpo_free(sh);
}

int64_t
lpo_shard_samples(const lpo_shard *sh)
{
	return sh->n;
}

const json_t *
lpo_shard_run(const lpo_shard *sh)
{
	return sh->run;
}

const json_t *
lpo_shard_end(const lpo_shard *sh)
{
	return sh->end;
}

const char *
lpo_shard_key(const lpo_shard *sh, int64_t i)
{
	return i >= 0 && i < sh->n ? key_of(sh, i) : NULL;
}

const char *
lpo_shard_member(const lpo_shard *sh, int64_t i, int m)
{
	return i >= 0 && i < sh->n && m >= 0 && m < sh->s[i].n ?
	    sh->m[sh->s[i].first + m].name : NULL;
}

int64_t
lpo_shard_find(const lpo_shard *sh, const char *key)
{
	int64_t lo = 0, hi = sh->n, mid;

	while (lo < hi) {
		mid = lo + (hi - lo) / 2;
		if (strcmp(key_of(sh, sh->order[mid]), key) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < sh->n && strcmp(key_of(sh, sh->order[lo]), key) == 0 ?
	    sh->order[lo] : -1;
}

/*
 * The map is the file: someone may have written into it since the walk, and
 * disks forget.  So each use checks the sum that the walk found.
 */
static int
recheck(lpo_ctx *c, const lpo_shard *sh, const struct lpo_raw_member *m)
{
	if (lpo_crc32c(0, m->data, (size_t)m->size) == m->crc)
		return 0;
	return lpo_fail(c, LPO_EFORMAT, "%s: '%s.%s' has changed since it was "
	    "verified", sh->name, m->key, m->name);
}

static int
get_sample(lpo_ctx *c, const struct sample **s, lpo_shard *sh, int64_t i)
{
	if (i < 0 || i >= sh->n)
		return lpo_fail(c, LPO_EINVAL, "%s: no sample %lld", sh->name,
		    (long long)i);
	*s = &sh->s[i];
	return 0;
}

int
lpo_shard_get_json(lpo_ctx *c, json_t **out, lpo_shard *sh, int64_t i)
{
	const struct lpo_raw_member *m;
	const struct sample *s = NULL;
	int rc;

	*out = NULL;
	if ((rc = get_sample(c, &s, sh, i)) != 0)
		return rc;
	m = s->json < 0 ? NULL : &sh->m[s->first + s->json];
	if (m != NULL && (rc = recheck(c, sh, m)) != 0)
		return rc;
	return load_json(c, out, m, sh->name);
}

int
lpo_shard_get(lpo_ctx *c, struct lpo_sample *out, lpo_shard *sh, int64_t i)
{
	struct lpo_raw_sample r;
	const struct sample *s = NULL;
	int k, rc;

	memset(out, 0, sizeof(*out));
	if ((rc = get_sample(c, &s, sh, i)) != 0)
		return rc;
	for (k = 0; k < s->n; k++)
		if ((rc = recheck(c, sh, &sh->m[s->first + k])) != 0)
			return rc;
	r.m = sh->m + s->first;
	r.n = s->n;
	r.json = s->json;
	r.ours = s->ours;
	return lpo_raw_to_sample(c, out, &r, sh->name);
}

int
lpo_shard_peek(lpo_ctx *c, const uint8_t **data, int64_t *bytes,
    lpo_shard *sh, int64_t i, const char *name)
{
	const struct sample *s = NULL;
	int k, rc;

	*data = NULL;
	*bytes = 0;
	if ((rc = get_sample(c, &s, sh, i)) != 0)
		return rc;
	for (k = 0; k < s->n; k++) {
		const struct lpo_raw_member *m = &sh->m[s->first + k];

		if (strcmp(m->name, name) != 0)
			continue;
		if ((rc = recheck(c, sh, m)) != 0)
			return rc;
		*data = m->data;
		*bytes = m->size;
		return 0;
	}
	return lpo_fail(c, LPO_ENOTFOUND, "%s: no member '%s.%s'", sh->name,
	    key_of(sh, i), name);
}

int
lpo_shard_has_json(const lpo_shard *sh, int64_t i)
{
	return sh->s[i].json >= 0;
}

int
lpo_shard_collect(lpo_ctx *c, struct lpo_set *set, lpo_shard *const *sh,
    char *const *names, int64_t n)
{
	static const struct lpo_section foreign;
	const json_t *first = NULL;
	int64_t i, k;
	int rc = 0;

	for (i = 0; i < n && rc == 0; i++) {
		const char *name = names != NULL ? names[i] : sh[i]->name;

		if (sh[i]->set.n == 0)
			rc = lpo_set_add(c, set, &foreign, name);
		for (k = 0; k < sh[i]->set.n && rc == 0; k++)
			rc = lpo_set_add(c, set, &sh[i]->set.s[k], name);
		if (rc == 0 && first != NULL && sh[i]->run != NULL)
			rc = lpo_run_compatible(c, first, sh[i]->run, name);
		if (first == NULL)
			first = sh[i]->run;
	}
	return rc;
}

int
lpo_shard_check_set(lpo_ctx *c, lpo_shard *const *sh, int64_t n,
    unsigned flags)
{
	struct lpo_set set = { NULL, NULL, 0, 0 };
	int rc = lpo_shard_collect(c, &set, sh, NULL, n);

	if (rc == 0)
		rc = lpo_set_check(c, &set, flags);
	lpo_set_free(&set);
	return rc;
}
