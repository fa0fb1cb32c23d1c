/*
 * What must hold between records: an end record agrees with itself, runs
 * that are read together agree, no shard of a set is missing or twice.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard_priv.h"

int
lpo_end_parse(lpo_ctx *c, json_t **out, struct lpo_section *s,
    const void *data, size_t n, const char *file)
{
	char *text = NULL, crc[9] = "";
	const char *self = NULL, *run = NULL, *sums = NULL;
	json_t *end = NULL;
	int rc;

	*out = NULL;
	rc = lpo_json_load_strict(c, &end, data, n, file);
	if (rc == 0)
		rc = lpo_json_need_str(c, &self, end, "end_crc32c");
	if (rc == 0)
		rc = lpo_json_need_str(c, &run, end, "run_crc32c");
	if (rc == 0)
		rc = lpo_json_need_str(c, &sums, end, "crc32c");
	if (rc == 0)
		rc = lpo_json_need_int(c, &s->samples, end, "samples");
	if (rc == 0)
		rc = lpo_json_need_int(c, &s->skipped, end, "skipped");
	if (rc == 0)
		rc = lpo_json_need_int(c, &s->shard, end, "shard");
	if (rc == 0)
		rc = lpo_json_need_int(c, &s->shards, end, "shards");
	if (rc != 0)
		goto out;
	/* The record's own sum is over the record without it. */
	snprintf(crc, sizeof(crc), "%.8s", self);
	json_object_del(end, "end_crc32c");
	if ((text = lpo_json_dumps(c, end)) == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	rc = lpo_json_set(c, end, "end_crc32c", json_string(crc));
	if (rc != 0)
		goto out;
	lpo_crc_text(crc, lpo_crc32c(0, text, strlen(text)));
	if (strcmp(crc, json_string_value(json_object_get(end,
	    "end_crc32c"))) != 0 || s->shard < 0 || s->shard >= s->shards)
		rc = lpo_fail(c, LPO_EFORMAT, "the end record is damaged");
out:
	lpo_free(text);
	if (rc == 0)
		*out = end;
	else {
		json_decref(end);
		if (rc == LPO_EFORMAT)
			lpo_fail_prefix(c, "%s: %s", file, LPO_END_MEMBER);
	}
	return rc;
}

int
lpo_run_compatible(lpo_ctx *c, const json_t *a, const json_t *b,
    const char *file)
{
	static const char *const fields[] = {
		"format", "kind", "latent", "scheduler", "size_px"
	};
	size_t i;

	for (i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		const json_t *x = lpo_json_get(a, fields[i]);
		const json_t *y = lpo_json_get(b, fields[i]);
		char *p, *q;

		if (x == y || (x != NULL && y != NULL && json_equal(x, y)))
			continue;
		p = lpo_json_dumps(c, x);
		q = lpo_json_dumps(c, y);
		if (p != NULL && q != NULL)
			lpo_fail(c, LPO_EFORMAT, "%s: '%s' is %.200s, but "
			    "%.200s in what was read before", file, fields[i],
			    q, p);
		lpo_free(p);
		lpo_free(q);
		return lpo_errcode(c);
	}
	return 0;
}

int
lpo_set_add(lpo_ctx *c, struct lpo_set *set, const struct lpo_section *s,
    const char *file)
{
	struct lpo_section *grown;
	const char **files;

	if (set->n == set->room) {
		int64_t room = set->room * 2 + 16;

		grown = lpo_realloc(c, set->s, (size_t)room * sizeof(*grown));
		if (grown != NULL)
			set->s = grown;
		files = grown == NULL ? NULL : lpo_realloc(c,
		    (void *)(uintptr_t)set->file,
		    (size_t)room * sizeof(*files));
		if (files == NULL)
			return LPO_ENOMEM;
		set->file = files;
		set->room = room;
	}
	set->s[set->n] = *s;
	set->file[set->n++] = file;
	return 0;
}

void
lpo_set_free(struct lpo_set *set)
{
	lpo_free(set->s);
	lpo_free((void *)(uintptr_t)set->file);
	memset(set, 0, sizeof(*set));
}

static int
by_run_and_shard(const void *a, const void *b)
{
	const struct lpo_section *const *x = a, *const *y = b;
	int r = strcmp((*x)->run, (*y)->run);

	if (r != 0)
		return r;
	return (*x)->shard < (*y)->shard ? -1 : (*x)->shard > (*y)->shard;
}

const char *
lpo_shards_way_out(unsigned flags)
{
	return flags & LPO_SHARDS_OPTIONAL ?
	    " (--allow-missing goes on without)" : "";
}

static int
missing(lpo_ctx *c, const char *run, int64_t first, int64_t count,
    int64_t shards, unsigned flags)
{
	char which[64];

	if (count == 1)
		snprintf(which, sizeof(which), "shard %lld is",
		    (long long)first);
	else
		snprintf(which, sizeof(which), "shards %lld to %lld are",
		    (long long)first, (long long)(first + count - 1));
	if (flags & LPO_SHARDS_ALLOW_MISSING) {
		lpo_notice(c, "run %s: %s missing, of %lld", run, which,
		    (long long)shards);
		return 0;
	}
	return lpo_fail(c, LPO_EFORMAT, "run %s: %s missing, of %lld%s", run,
	    which, (long long)shards, lpo_shards_way_out(flags));
}

int
lpo_set_check(lpo_ctx *c, struct lpo_set *set, unsigned flags)
{
	struct lpo_section **p = lpo_alloc(c, (size_t)set->n, sizeof(*p));
	int64_t i, n = 0, next = 0;
	int rc = 0;

	if (p == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < set->n; i++)
		if (set->s[i].ours)
			p[n++] = &set->s[i];
	qsort(p, (size_t)n, sizeof(*p), by_run_and_shard);
	for (i = 0; i < n && rc == 0; i++) {
		struct lpo_section *s = p[i], *prev = i ? p[i - 1] : NULL;
		int begins = prev == NULL || strcmp(prev->run, s->run) != 0;
		int ends = i + 1 == n || strcmp(p[i + 1]->run, s->run) != 0;

		next = begins ? 0 : prev->shard + 1;
		if (!begins && prev->shard == s->shard)
			rc = lpo_fail(c, LPO_EFORMAT, "%s: shard %lld of run "
			    "%s is there twice (also '%s')",
			    set->file[s - set->s], (long long)s->shard, s->run,
			    set->file[prev - set->s]);
		else if (!begins && prev->shards != s->shards)
			rc = lpo_fail(c, LPO_EFORMAT, "%s: one of %lld shards, "
			    "'%s' one of %lld", set->file[s - set->s],
			    (long long)s->shards, set->file[prev - set->s],
			    (long long)prev->shards);
		else if (s->shard > next)
			rc = missing(c, s->run, next, s->shard - next,
			    s->shards, flags);
		if (rc == 0 && ends && s->shard + 1 < s->shards)
			rc = missing(c, s->run, s->shard + 1,
			    s->shards - s->shard - 1, s->shards, flags);
	}
	lpo_free(p);
	return rc;
}
