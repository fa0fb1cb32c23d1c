/*
 * Several shards one after the other, or a stream from a pipe.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard_priv.h"

/* ---- Names ---- */

struct names {
	char **p;
	int64_t n, room;
};

static int
add_name(lpo_ctx *c, struct names *v, const char *name)
{
	char **grown;

	if (v->n == v->room) {
		grown = lpo_realloc(c, v->p,
		    (size_t)(v->room * 2 + 16) * sizeof(*grown));
		if (grown == NULL)
			return LPO_ENOMEM;
		v->p = grown;
		v->room = v->room * 2 + 16;
	}
	if ((v->p[v->n] = lpo_strdup(c, name)) == NULL)
		return LPO_ENOMEM;
	v->n++;
	return 0;
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* 1: "pre%06dpost" with one %d; its parts. */
static int
parse_pattern(const char *arg, size_t *pre, size_t *post, int *width)
{
	const char *p = strchr(arg, '%');

	if (p == NULL || strchr(p + 1, '%') != NULL)
		return 0;
	*pre = (size_t)(p - arg);
	*width = 0;
	for (p++; *p >= '0' && *p <= '9' && *width < 100; p++)
		*width = *width * 10 + *p - '0';
	*post = (size_t)(p + 1 - arg);
	return *p == 'd' && *width <= 20;
}

/* The number of a name of this form, -1 when it is not of it. */
static int64_t
pattern_number(const char *name, const char *base, size_t pre,
    const char *post, int width)
{
	const char *p = name + pre;
	size_t n;

	if (strncmp(name, base, pre) != 0)
		return -1;
	n = strspn(p, "0123456789");
	if (n == 0 || n > 18 || (int)n < width || ((int)n > width &&
	    n > 1 && *p == '0') || strcmp(p + n, post) != 0)
		return -1;
	return strtoll(p, NULL, 10);
}

static int
expand_pattern(lpo_ctx *c, struct names *v, const char *arg, size_t pre,
    size_t post, int width)
{
	char *dir = lpo_dirname(c, arg), **list = NULL, *full;
	const char *slash = strrchr(arg, '/');
	size_t cut = slash == NULL ? 0 : (size_t)(slash - arg) + 1;
	int64_t i, n = 0, was = v->n;
	int rc;

	if (dir == NULL)
		return LPO_ENOMEM;
	if (cut > pre) {
		rc = lpo_fail(c, LPO_EINVAL, "'%s': %%d in a folder's name",
		    arg);
		goto out;
	}
	if ((rc = lpo_dir_list(c, &list, &n, dir)) != 0)
		goto out;
	for (i = 0; i < n && rc == 0; i++) {
		if (pattern_number(list[i], arg + cut, pre - cut, arg + post,
		    width) < 0)
			continue;
		full = lpo_asprintf(c, "%.*s%s", (int)cut, arg, list[i]);
		rc = full == NULL ? LPO_ENOMEM : add_name(c, v, full);
		lpo_free(full);
	}
	if (rc == 0 && v->n == was)
		rc = lpo_fail(c, LPO_ENOTFOUND, "no file '%s'", arg);
out:
	lpo_names_free(list, n);
	lpo_free(dir);
	return rc;
}

static int
expand_glob(lpo_ctx *c, struct names *v, const char *arg)
{
	glob_t g;
	size_t i;
	int r = glob(arg, 0, NULL, &g), rc = 0;

	if (r == GLOB_NOMATCH)
		return lpo_fail(c, LPO_ENOTFOUND, "no file '%s'", arg);
	if (r != 0)
		return lpo_fail(c, r == GLOB_NOSPACE ? LPO_ENOMEM : LPO_EIO,
		    "cannot list '%s'", arg);
	for (i = 0; i < g.gl_pathc && rc == 0; i++)
		rc = add_name(c, v, g.gl_pathv[i]);
	globfree(&g);
	return rc;
}

/* Shorter numbers first, so that 10 follows 9 without leading zeros. */
static int
by_length_and_name(const void *a, const void *b)
{
	size_t m = strlen(*(char *const *)a), n = strlen(*(char *const *)b);

	return m != n ? (m < n ? -1 : 1) : by_name(a, b);
}

int
lpo_shards_expand(lpo_ctx *c, char ***names, int64_t *n,
    const char *const *args, int n_args)
{
	struct names v = { NULL, 0, 0 };
	size_t pre, post;
	int64_t was;
	int i, width, rc = 0;

	*names = NULL;
	*n = 0;
	for (i = 0; i < n_args && rc == 0; i++) {
		was = v.n;
		if (lpo_file_exists(args[i]))
			rc = add_name(c, &v, args[i]);
		else if (parse_pattern(args[i], &pre, &post, &width)) {
			rc = expand_pattern(c, &v, args[i], pre, post, width);
			if (rc == 0)
				qsort(v.p + was, (size_t)(v.n - was),
				    sizeof(*v.p), by_length_and_name);
		} else if (strpbrk(args[i], "*?[") != NULL)
			rc = expand_glob(c, &v, args[i]);
		else
			rc = lpo_fail(c, LPO_ENOTFOUND, "cannot open '%s': "
			    "%s", args[i], strerror(ENOENT));
	}
	if (rc != 0) {
		lpo_names_free(v.p, v.n);
		return rc;
	}
	*names = v.p;
	*n = v.n;
	return 0;
}

/* ---- Before the first sample is used: is the set whole? ---- */

/*
 * The quick look: the end record of our writer stands 2048 bytes before the
 * end of the file.  1: not so (cut, or packed anew by other programs).
 * run_crc: that of the run record it belongs to.
 */
static int
peek_end(lpo_ctx *c, struct lpo_section *s, char run_crc[9], const char *path)
{
	char head[512] = "", tail[2048] = "";
	json_t *end = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
	off_t size;

	if (fd < 0)
		return lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND : LPO_EIO,
		    "cannot open '%s': %s", path, strerror(errno));
	memset(s, 0, sizeof(*s));
	size = lseek(fd, 0, SEEK_END);
	if (pread(fd, head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
	    strcmp(head, LPO_RUN_MEMBER) == 0) {
		s->ours = 1;
		if (size < 2048 || pread(fd, tail, sizeof(tail), size - 2048)
		    != (ssize_t)sizeof(tail) ||
		    strcmp(tail, LPO_END_MEMBER) != 0)
			rc = 1;
		else
			rc = lpo_end_parse(c, &end, s, tail + 512,
			    strnlen(tail + 512, 512), path);
		snprintf(run_crc, 9, "%s", rc != 0 ? "" : json_string_value(
		    json_object_get(end, "run_crc32c")));
	}
	json_decref(end);
	close(fd);
	return rc;
}

/*
 * Run id and pairs, from the run record at the file's beginning.  1: it is not
 * the one of the end record, so there are several.
 */
static int
peek_run(lpo_ctx *c, struct lpo_section *s, const char *run_crc,
    const char *path)
{
	struct lpo_map map;
	struct lpo_scan scan;
	char crc[9];
	int rc;

	if ((rc = lpo_map_open(c, &map, path)) != 0)
		return rc;
	rc = lpo_scan_open(c, &scan, &map, -1, path);
	if (rc == 0 && (rc = lpo_scan_peek(&scan)) >= 0) {
		memcpy(s->run, scan.now.run, sizeof(s->run));
		s->pairs = scan.now.pairs;
		lpo_crc_text(crc, scan.run_crc);
		rc = strcmp(crc, run_crc) != 0;
	}
	lpo_scan_close(&scan);
	lpo_map_close(&map);
	return rc;
}

static int
collect_quick(lpo_ctx *c, struct lpo_set *set, char *const *names, int64_t n)
{
	struct lpo_section s;
	char run_crc[9] = "";
	int64_t i;
	int rc = 0;

	for (i = 0; i < n && rc == 0; i++) {
		rc = peek_end(c, &s, run_crc, names[i]);
		if (rc == 0 && s.ours)
			rc = peek_run(c, &s, run_crc, names[i]);
		if (rc == 0)
			rc = lpo_set_add(c, set, &s, names[i]);
	}
	return rc;
}

/*
 * A set that does not look whole at a glance is looked at in full: one file
 * may hold several shards (`cat a.tar b.tar > all.tar`).
 */
static int
check_files(lpo_ctx *c, struct lpo_set *set, char *const *names, int64_t n,
    unsigned flags)
{
	lpo_shard **sh;
	int64_t i;
	int rc = collect_quick(c, set, names, n);

	if (rc == 0)
		rc = lpo_set_check(c, set, 0);
	if (rc == 0 || (rc != 1 && rc != LPO_EFORMAT))
		return rc;
	lpo_clear(c);
	lpo_set_free(set);
	if ((sh = lpo_alloc(c, (size_t)n, sizeof(*sh))) == NULL)
		return LPO_ENOMEM;
	for (rc = 0, i = 0; i < n && rc == 0; i++)
		rc = lpo_shard_open(c, &sh[i], names[i]);
	if (rc == 0)
		rc = lpo_shard_collect(c, set, sh, names, n);
	if (rc == 0)
		rc = lpo_set_check(c, set, flags);
	for (i = 0; i < n; i++)
		lpo_shard_close(sh[i]);
	lpo_free(sh);
	return rc;
}

/* "dir/x-000012.tar" -> 12 and the length of "dir/x-"; -1: no number. */
static int64_t
file_number(const char *path, size_t *prefix)
{
	const char *base = strrchr(path, '/'), *p;
	size_t n;

	base = base ? base + 1 : path;
	p = base + strcspn(base, ".");
	for (n = 0; p > base && p[-1] >= '0' && p[-1] <= '9' && n < 18; n++)
		p--;
	*prefix = (size_t)(p - path);
	return n == 0 ? -1 : strtoll(p, NULL, 10);
}

/*
 * Foreign shards have no count: a hole in the numbers of files that follow
 * one another and share their name is all that can be seen.
 */
static int
check_numbers(lpo_ctx *c, const struct lpo_set *set, unsigned flags)
{
	int64_t i, a, b;
	size_t p, q;

	for (i = 1; i < set->n; i++) {
		if (set->s[i].ours || set->s[i - 1].ours)
			continue;
		a = file_number(set->file[i - 1], &p);
		b = file_number(set->file[i], &q);
		if (a < 0 || b <= a + 1 || p != q ||
		    strncmp(set->file[i - 1], set->file[i], p) != 0)
			continue;
		if (!(flags & LPO_SHARDS_ALLOW_MISSING))
			return lpo_fail(c, LPO_EFORMAT, "'%s' is followed by "
			    "'%s': a gap%s", set->file[i - 1], set->file[i],
			    lpo_shards_way_out(flags));
		lpo_notice(c, "'%s' is followed by '%s': a gap",
		    set->file[i - 1], set->file[i]);
	}
	return 0;
}

/* ---- Reading ---- */

struct lpo_shards {
	lpo_ctx *c;
	unsigned flags;
	char **names;
	int64_t n, at;		/* files; the one that is open */
	lpo_shard *shard;
	int64_t i;		/* its next sample */
	char *stream_name;
	struct lpo_scan scan;	/* stream */
	struct lpo_raw_sample raw;
	struct lpo_set set;
	json_t *run;
	uint32_t crc;
	int stream, foreign_said, ended;
};

/* The first run record stands for all: the others are compatible. */
static void
keep_run(lpo_shards *r, const json_t *run)
{
	if (r->run == NULL && run != NULL)
		r->run = json_incref((json_t *)(uintptr_t)run);
}

/* Verify the file at r->at and make it the present one. */
static int
open_file(lpo_shards *r)
{
	const json_t *run;
	int rc;

	lpo_shard_close(r->shard);
	r->shard = NULL;
	r->i = 0;
	rc = lpo_shard_open(r->c, &r->shard, r->names[r->at]);
	if (rc != 0)
		return rc;
	run = lpo_shard_run(r->shard);
	if (r->run != NULL && run != NULL)
		rc = lpo_run_compatible(r->c, r->run, run, r->names[r->at]);
	if (rc == 0)
		keep_run(r, run);
	return rc;
}

static int
shards_new(lpo_ctx *c, lpo_shards **out, unsigned flags)
{
	lpo_shards *r = lpo_alloc(c, 1, sizeof(*r));

	*out = NULL;
	if (r == NULL)
		return LPO_ENOMEM;
	r->c = c;
	r->flags = flags;
	*out = r;
	return 0;
}

int
lpo_shards_open_fd(lpo_ctx *c, lpo_shards **out, int fd, const char *name)
{
	lpo_shards *r;
	int rc;

	if ((rc = shards_new(c, &r, 0)) != 0) {
		*out = NULL;
		return rc;
	}
	r->stream = 1;
	if ((r->stream_name = lpo_strdup(c, name)) == NULL)
		rc = LPO_ENOMEM;
	if (rc == 0)
		rc = lpo_scan_open(c, &r->scan, NULL, fd, r->stream_name);
	if (rc == 0)
		rc = lpo_scan_peek(&r->scan);
	if (rc < 0) {
		lpo_shards_close(r);
		*out = NULL;
		return rc;
	}
	keep_run(r, r->scan.run);
	*out = r;
	return 0;
}

int
lpo_shards_open(lpo_ctx *c, lpo_shards **out, const char *const *args,
    int n_args, unsigned flags)
{
	lpo_shards *r;
	int rc;

	if (n_args == 0 || (n_args == 1 && strcmp(args[0], "-") == 0)) {
		rc = lpo_shards_open_fd(c, out, STDIN_FILENO,
		    "standard input");
		if (rc == 0)
			(*out)->flags = flags;
		return rc;
	}
	*out = NULL;
	if ((rc = shards_new(c, &r, flags)) != 0)
		return rc;
	rc = lpo_shards_expand(c, &r->names, &r->n, args, n_args);
	if (rc == 0)
		rc = check_files(c, &r->set, r->names, r->n, flags);
	if (rc == 0)
		rc = check_numbers(c, &r->set, flags);
	if (rc == 0)
		rc = open_file(r);
	if (rc != 0) {
		lpo_shards_close(r);
		return rc;
	}
	*out = r;
	return 0;
}

static int
next_stream(lpo_shards *r, struct lpo_sample *out)
{
	const struct lpo_raw_member *j;
	int rc;

	if (r->ended)
		return 1;
	while ((rc = lpo_scan_next(&r->scan, &r->raw)) == 2) {
		rc = lpo_set_add(r->c, &r->set, &r->scan.now, r->stream_name);
		if (rc != 0)
			return rc;
	}
	if (rc == 1) {
		r->ended = 1;
		rc = lpo_set_check(r->c, &r->set, r->flags);
		return rc != 0 ? rc : 1;
	}
	if (rc != 0)
		return rc;
	if (!r->raw.ours && !r->foreign_said) {
		r->foreign_said = 1;
		lpo_notice(r->c, "%s: no sums and no end record: unverified",
		    r->stream_name);
	}
	if (r->raw.json >= 0) {
		j = &r->raw.m[r->raw.json];
		r->crc = lpo_crc32c(r->crc, j->data, (size_t)j->size);
	}
	return lpo_raw_to_sample(r->c, out, &r->raw, r->stream_name);
}

int
lpo_shards_next(lpo_shards *r, struct lpo_sample *out)
{
	const uint8_t *json;
	int64_t n;
	int rc;

	memset(out, 0, sizeof(*out));
	if (r->stream)
		return next_stream(r, out);
	while (r->shard == NULL || r->i == lpo_shard_samples(r->shard)) {
		if (r->at + 1 >= r->n)
			return 1;
		r->at++;
		if ((rc = open_file(r)) != 0)
			return rc;
	}
	if ((rc = lpo_shard_get(r->c, out, r->shard, r->i)) != 0)
		return rc;
	if (lpo_shard_has_json(r->shard, r->i) &&
	    (rc = lpo_shard_peek(r->c, &json, &n, r->shard, r->i, "json")) == 0)
		r->crc = lpo_crc32c(r->crc, json, (size_t)n);
	if (rc != 0)
		lpo_sample_clear(out);
	r->i++;
	return rc;
}

const json_t *
lpo_shards_run(const lpo_shards *r)
{
	return r->run;
}

int
lpo_shards_files(const lpo_shards *r)
{
	return (int)r->n;
}

int64_t
lpo_shards_pairs(const lpo_shards *r)
{
	const json_t *v = json_object_get(r->run, "pairs");
	int64_t i, n = 0;

	if (r->stream)
		return json_is_integer(v) ? json_integer_value(v) : -1;
	for (i = 0; i < r->set.n; i++) {
		const struct lpo_section *s = &r->set.s[i];

		if (!s->ours || s->pairs < 0 || (s->shard == 0 &&
		    __builtin_add_overflow(n, s->pairs, &n)))
			return -1;
	}
	return n;
}

uint32_t
lpo_shards_crc32c(const lpo_shards *r)
{
	return r->crc;
}

void
lpo_shards_close(lpo_shards *r)
{
	if (r == NULL)
		return;
	lpo_shard_close(r->shard);
	lpo_names_free(r->names, r->n);
	if (r->stream)
		lpo_scan_close(&r->scan);
	lpo_raw_sample_free(&r->raw);
	lpo_set_free(&r->set);
	json_decref(r->run);
	lpo_free(r->stream_name);
	lpo_free(r);
}
