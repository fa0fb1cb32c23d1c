/*
 * Walking a tar: members grouped into samples, sums and end records checked.
 * Names are data only; nothing is ever extracted.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard_priv.h"

enum { CHUNK = 1 << 18 };

static void
member_free(struct lpo_raw_member *m)
{
	lpo_free(m->key);
	lpo_free(m->own);
	memset(m, 0, sizeof(*m));
}

void
lpo_raw_sample_clear(struct lpo_raw_sample *r)
{
	while (r->n > 0)
		member_free(&r->m[--r->n]);
	r->json = -1;
	r->ours = 0;
}

void
lpo_raw_sample_free(struct lpo_raw_sample *r)
{
	lpo_raw_sample_clear(r);
	lpo_free(r->m);
	memset(r, 0, sizeof(*r));
}

static void
count_zeros(struct lpo_scan *s, const uint8_t *p, int64_t n)
{
	int64_t i = n;

	while (i > 0 && p[i - 1] == 0 && n - i < 4096)
		i--;
	s->zeros = i == 0 ? s->zeros + n : n - i;
}

/* The whole map as one block: then data_block() points into the map. */
static la_ssize_t
read_map(struct archive *a, void *arg, const void **p)
{
	struct lpo_scan *s = arg;

	(void)a;
	if (s->done)
		return 0;
	s->done = 1;
	*p = s->map->data;
	count_zeros(s, s->map->data, (int64_t)s->map->bytes);
	return (la_ssize_t)s->map->bytes;
}

static la_ssize_t
read_fd(struct archive *a, void *arg, const void **p)
{
	struct lpo_scan *s = arg;
	ssize_t n;

	do {
		if (lpo_ctx_stopped(s->c)) {
			s->stopped = 1;
			archive_set_error(a, EINTR, "stopped");
			return -1;
		}
		n = read(s->fd, s->buf, CHUNK);
	} while (n < 0 && errno == EINTR);
	if (n < 0) {
		archive_set_error(a, errno, "%s", strerror(errno));
		return -1;
	}
	count_zeros(s, s->buf, n);
	*p = s->buf;
	return n;
}

/* Where libarchive has no words, it had no memory for them. */
int
lpo_tar_no_memory(struct archive *a)
{
	return archive_errno(a) == ENOMEM || archive_error_string(a) == NULL;
}

static int
no_tar(struct lpo_scan *s)
{
	const char *unpack = s->map != NULL ? lpo_unpacker(s->map->data,
	    s->map->bytes) : lpo_unpacker(s->buf, CHUNK);

	if (lpo_tar_no_memory(s->a))
		return lpo_fail(s->c, LPO_ENOMEM, "%s: out of memory",
		    s->name);
	if (!s->stopped && unpack != NULL)
		return lpo_fail(s->c, LPO_EFORMAT, "%s: compressed: unpack "
		    "it with '%s'", s->name, unpack);
	return lpo_fail(s->c, s->stopped ? LPO_ESTOP : LPO_EFORMAT,
	    "%s: not a tar: %s", s->name, archive_error_string(s->a));
}

int
lpo_scan_open(lpo_ctx *c, struct lpo_scan *s, const struct lpo_map *map,
    int fd, const char *name)
{
	memset(s, 0, sizeof(*s));
	s->c = c;
	s->map = map;
	s->fd = fd;
	s->name = name;
	if (map == NULL && (s->buf = lpo_alloc(c, CHUNK, 1)) == NULL)
		return LPO_ENOMEM;
	/* its own entry and table libarchive 3.6 would use without looking */
	if ((s->entry = archive_entry_new()) == NULL ||
	    (s->a = archive_read_new()) == NULL ||
	    archive_read_set_callback_data(s->a, s) != ARCHIVE_OK)
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	/* tar only: no compression, so no bombs; `cat` of shards is one. */
	if (archive_read_support_format_tar(s->a) != ARCHIVE_OK ||
	    archive_read_support_format_empty(s->a) != ARCHIVE_OK ||
	    archive_read_set_options(s->a, "tar:read_concatenated_archives")
	    != ARCHIVE_OK || archive_read_open(s->a, s, NULL,
	    map ? read_map : read_fd, NULL) != ARCHIVE_OK)
		return no_tar(s);
	return 0;
}

void
lpo_scan_close(struct lpo_scan *s)
{
	if (s->a != NULL)
		archive_read_free(s->a);
	archive_entry_free(s->entry);
	json_decref(s->run);
	json_decref(s->end);
	member_free(&s->ahead);
	lpo_free(s->buf);
	memset(s, 0, sizeof(*s));
}

static int
bad_tar(struct lpo_scan *s)
{
	if (s->stopped)
		return lpo_fail(s->c, LPO_ESTOP, "stopped");
	if (lpo_tar_no_memory(s->a))
		return lpo_fail(s->c, LPO_ENOMEM, "%s: out of memory",
		    s->name);
	return lpo_fail(s->c, LPO_EFORMAT, "%s: damaged tar after byte %lld: "
	    "%s", s->name, (long long)s->at, archive_error_string(s->a));
}

/* Data of the present member: a piece of the map, or memory of our own. */
static int
member_data(struct lpo_scan *s, struct lpo_raw_member *m, const char *path)
{
	const void *p = NULL;
	size_t n = 0, room = 0;
	la_int64_t off = 0;
	int64_t have = 0;
	uint8_t *q;
	int r;

	m->data = (const uint8_t *)"";
	while ((r = archive_read_data_block(s->a, &p, &n, &off)) ==
	    ARCHIVE_OK) {
		if (n == 0)
			continue;
		if (off != have || (s->map != NULL && have > 0) ||
		    have + (int64_t)n > m->size)
			return lpo_fail(s->c, LPO_EFORMAT, "%s: '%s' is a "
			    "sparse file", s->name, path);
		if (s->map != NULL)
			m->data = p;
		else {
			/* Grown as data come: a header may lie. */
			if ((size_t)have + n > room) {
				room = ((size_t)have + n) * 2;
				if (room > (size_t)m->size)
					room = (size_t)m->size;
				q = lpo_realloc(s->c, m->own, room);
				if (q == NULL)
					return LPO_ENOMEM;
				m->own = q;
			}
			memcpy(m->own + have, p, n);
			m->data = m->own;
		}
		have += (int64_t)n;
	}
	if (r != ARCHIVE_EOF)
		return bad_tar(s);
	if (have != m->size)
		return lpo_fail(s->c, LPO_EFORMAT, "%s: '%s' has %lld bytes "
		    "and not %lld: cut, or a sparse file", s->name, path,
		    (long long)have, (long long)m->size);
	m->crc = lpo_crc32c(0, m->data, (size_t)m->size);
	return 0;
}

/*
 * "a/b/KEY.x.y" -> "a/b/KEY" and "x.y" as WebDataset has it; of our own
 * records ("__run__/run.json") the key is the whole name.  1: to be skipped.
 */
static int
split_name(struct lpo_scan *s, struct lpo_raw_member *m, const char *path)
{
	const char *base, *dot;
	size_t n;

	while (strncmp(path, "./", 2) == 0)
		path += 2;
	base = strrchr(path, '/');
	base = base ? base + 1 : path;
	dot = strchr(base, '.');
	n = strcspn(path, "/");
	if (strncmp(path, "__", 2) == 0 && path[n] == '/' && n > 4 &&
	    strncmp(path + n - 2, "__", 2) == 0) {
		if (strcmp(path, LPO_RUN_MEMBER) != 0 &&
		    strcmp(path, LPO_END_MEMBER) != 0)
			return 1;
		dot = path + strlen(path);
	} else if (dot == NULL || dot == base)
		return 1;
	if ((m->key = lpo_strdup(s->c, path)) == NULL)
		return LPO_ENOMEM;
	n = (size_t)(dot - path);
	m->name = m->key + n + (m->key[n] != '\0');
	m->key[n] = '\0';
	return 0;
}

/* The next regular member, 1 at the end of the input. */
static int
next_member(struct lpo_scan *s, struct lpo_raw_member *m)
{
	struct archive_entry *e = s->entry;
	const char *path;
	int r, rc;

	memset(m, 0, sizeof(*m));
	if (s->eof)
		return 1;
	for (;;) {
		r = archive_read_next_header2(s->a, e);
		if (r == ARCHIVE_EOF) {
			if (s->zeros < 1024)
				return lpo_fail(s->c, LPO_EFORMAT, "%s: cut: "
				    "no end of archive", s->name);
			s->eof = 1;
			return 1;
		}
		if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
			return bad_tar(s);
		s->at = archive_read_header_position(s->a);
		if ((path = archive_entry_pathname_utf8(e)) == NULL)
			path = archive_entry_pathname(e);
		if (path == NULL || strlen(path) >= LPO_SHARD_NAME_MAX)
			return lpo_fail(s->c, LPO_EFORMAT, "%s: a member's "
			    "name at byte %lld cannot be read", s->name,
			    (long long)s->at);
		if (archive_entry_filetype(e) == AE_IFDIR)
			continue;
		if (archive_entry_filetype(e) != AE_IFREG ||
		    archive_entry_hardlink(e) != NULL)
			return lpo_fail(s->c, LPO_EFORMAT, "%s: '%s' is not a "
			    "regular file", s->name, path);
		m->size = archive_entry_size(e);
		if (m->size < 0 || m->size > LPO_SHARD_MEMBER_MAX)
			return lpo_fail(s->c, LPO_EFORMAT, "%s: '%s' has "
			    "%lld bytes", s->name, path, (long long)m->size);
		if ((rc = split_name(s, m, path)) == 1)
			continue;	/* libarchive skips its data */
		if (rc == 0)
			rc = member_data(s, m, path);
		if (rc != 0)
			member_free(m);
		return rc;
	}
}

static int
is_run(const struct lpo_raw_member *m)
{
	return strcmp(m->key, LPO_RUN_MEMBER) == 0;
}

static int
is_end(const struct lpo_raw_member *m)
{
	return strcmp(m->key, LPO_END_MEMBER) == 0;
}

/* A run record opens a section of ours. */
static int
begin_section(struct lpo_scan *s, const struct lpo_raw_member *m)
{
	const char *id = NULL;
	json_t *run = NULL;
	int64_t format, pairs = -1;
	int rc;

	rc = lpo_json_load_strict(s->c, &run, (const char *)m->data,
	    (size_t)m->size, s->name);
	if (rc == 0)
		rc = lpo_json_need_int(s->c, &format, run, "format");
	if (rc == 0)
		rc = lpo_json_need_str(s->c, &id, run, "run");
	if (rc == 0)
		rc = lpo_json_int(s->c, &pairs, run, "pairs", -1);
	if (rc == 0 && format != 1)
		rc = lpo_fail(s->c, LPO_EFORMAT, "shard format %lld is not "
		    "known", (long long)format);
	if (rc == 0 && strlen(id) > 64)
		rc = lpo_fail(s->c, LPO_EFORMAT, "'run' is longer than 64 "
		    "characters");
	if (rc == 0 && s->run != NULL)
		rc = lpo_run_compatible(s->c, s->run, run, s->name);
	if (rc != 0) {
		if (rc == LPO_EFORMAT)
			lpo_fail_prefix(s->c, "%s: %s", s->name,
			    LPO_RUN_MEMBER);
		json_decref(run);
		return rc;
	}
	memset(&s->now, 0, sizeof(s->now));
	s->now.ours = 1;
	s->now.pairs = pairs;
	snprintf(s->now.run, sizeof(s->now.run), "%s", id);
	s->run_crc = m->crc;
	s->json_crc = 0;
	s->state = SCAN_OURS;
	if (s->run == NULL)
		s->run = run;
	else
		json_decref(run);
	return 0;
}

static int
end_section(struct lpo_scan *s, const struct lpo_raw_member *m)
{
	struct lpo_section said = s->now;
	const char *run, *crc;
	json_t *end = NULL;
	char want_run[9], want[9];
	int rc;

	if (s->state != SCAN_OURS)
		return lpo_fail(s->c, LPO_EFORMAT, "%s: an end record without "
		    "a beginning", s->name);
	rc = lpo_end_parse(s->c, &end, &said, m->data, (size_t)m->size,
	    s->name);
	if (rc != 0)
		return rc;
	run = json_string_value(json_object_get(end, "run_crc32c"));
	crc = json_string_value(json_object_get(end, "crc32c"));
	lpo_crc_text(want_run, s->run_crc);
	lpo_crc_text(want, s->json_crc);
	if (said.samples != s->now.samples)
		rc = lpo_fail(s->c, LPO_EFORMAT, "%s: %lld samples where the "
		    "end record says %lld", s->name,
		    (long long)s->now.samples, (long long)said.samples);
	else if (strcmp(run, want_run) != 0 || strcmp(crc, want) != 0)
		rc = lpo_fail(s->c, LPO_EFORMAT, "%s: the records' sum is not "
		    "that of the end record", s->name);
	if (rc != 0) {
		json_decref(end);
		return rc;
	}
	s->now = said;
	json_decref(s->end);
	s->end = end;
	s->state = SCAN_BETWEEN;
	return 0;
}

/* The sample's members against the sums in its KEY.json. */
static int
check_sums(struct lpo_scan *s, const struct lpo_raw_sample *r)
{
	const struct lpo_raw_member *j = &r->m[r->json];
	const json_t *sums;
	json_t *v = NULL;
	const char *key;
	char crc[9];
	int i, rc;

	rc = lpo_json_load_strict(s->c, &v, (const char *)j->data,
	    (size_t)j->size, s->name);
	if (rc != 0) {
		lpo_fail_prefix(s->c, "sample '%s'", j->key);
		return rc;
	}
	key = json_string_value(json_object_get(v, "key"));
	sums = json_object_get(v, "crc32c");
	if (key == NULL || strcmp(key, j->key) != 0 || !json_is_object(sums) ||
	    json_object_size(sums) != (size_t)r->n - 1)
		rc = lpo_fail(s->c, LPO_EFORMAT, "%s: sample '%s' is not what "
		    "its record says", s->name, j->key);
	for (i = 0; i < r->n && rc == 0; i++) {
		if (i == r->json)
			continue;
		key = json_string_value(json_object_get(sums, r->m[i].name));
		lpo_crc_text(crc, r->m[i].crc);
		if (key == NULL || strcmp(key, crc) != 0)
			rc = lpo_fail(s->c, LPO_EFORMAT, "%s: '%s.%s' has "
			    "CRC32C %s, not %s", s->name, j->key, r->m[i].name,
			    crc, key ? key : "any known");
	}
	json_decref(v);
	return rc;
}

static int
append(struct lpo_scan *s, struct lpo_raw_sample *r)
{
	struct lpo_raw_member *m = &s->ahead, *grown;
	int i;

	if (r->n == LPO_SHARD_MEMBERS_MAX)
		return lpo_fail(s->c, LPO_EFORMAT, "%s: sample '%s' has more "
		    "than %d members", s->name, m->key, LPO_SHARD_MEMBERS_MAX);
	for (i = 0; i < r->n; i++)
		if (strcmp(r->m[i].name, m->name) == 0)
			return lpo_fail(s->c, LPO_EFORMAT, "%s: '%s.%s' is "
			    "there twice", s->name, m->key, m->name);
	if (r->n == r->room) {
		grown = lpo_realloc(s->c, r->m,
		    (size_t)(r->room * 2 + 8) * sizeof(*grown));
		if (grown == NULL)
			return LPO_ENOMEM;
		r->m = grown;
		r->room = r->room * 2 + 8;
	}
	if (strcmp(m->name, "json") == 0)
		r->json = r->n;
	r->m[r->n++] = *m;
	memset(m, 0, sizeof(*m));
	s->has_ahead = 0;
	return 0;
}

int
lpo_scan_peek(struct lpo_scan *s)
{
	int rc;

	while (!s->has_ahead) {
		if ((rc = next_member(s, &s->ahead)) != 0)
			return rc;
		s->has_ahead = 1;
		if (!is_run(&s->ahead))
			break;
		rc = s->state == SCAN_OURS ? lpo_fail(s->c, LPO_EFORMAT,
		    "%s: a run without its end record", s->name) :
		    begin_section(s, &s->ahead);
		member_free(&s->ahead);
		s->has_ahead = 0;
		if (rc != 0)
			return rc;
	}
	if (s->state == SCAN_BETWEEN && !is_end(&s->ahead)) {
		s->state = SCAN_FOREIGN;
		memset(&s->now, 0, sizeof(s->now));
		s->now.shards = 1;
	}
	return 0;
}

/* Does the member ahead belong to the sample begun? */
static int
same_sample(const struct lpo_scan *s, const struct lpo_raw_sample *r)
{
	return r->ours == (s->state == SCAN_OURS) && !is_end(&s->ahead) &&
	    strcmp(s->ahead.key, r->m[0].key) == 0;
}

/* Add members while they belong to the sample begun; ours end with .json. */
static int
collect(struct lpo_scan *s, struct lpo_raw_sample *r)
{
	int rc = append(s, r);

	r->ours = s->state == SCAN_OURS;
	s->now.samples++;
	while (rc == 0 && !(r->ours && r->json >= 0)) {
		rc = lpo_scan_peek(s);
		if ((rc == 0 && !same_sample(s, r)) || rc == 1) {
			if (!r->ours)
				return 0;
			return lpo_fail(s->c, LPO_EFORMAT, "%s: sample '%s' "
			    "ends without its record", s->name, r->m[0].key);
		}
		if (rc == 0)
			rc = append(s, r);
	}
	return rc;
}

int
lpo_scan_next(struct lpo_scan *s, struct lpo_raw_sample *r)
{
	int rc;

	lpo_raw_sample_clear(r);
	if ((rc = lpo_scan_peek(s)) < 0)
		return rc;
	if (rc == 1) {
		if (s->state != SCAN_OURS)
			return 1;
		return lpo_fail(s->c, LPO_EFORMAT, "%s: ends without its end "
		    "record: its writer did not finish, or it was cut",
		    s->name);
	}
	if (is_end(&s->ahead)) {
		rc = end_section(s, &s->ahead);
		member_free(&s->ahead);
		s->has_ahead = 0;
		return rc != 0 ? rc : 2;
	}
	if ((rc = collect(s, r)) != 0)
		return rc;
	if (r->ours) {
		if ((rc = check_sums(s, r)) != 0)
			return rc;
		s->json_crc = lpo_crc32c(s->json_crc, r->m[r->json].data,
		    (size_t)r->m[r->json].size);
	}
	return 0;
}
