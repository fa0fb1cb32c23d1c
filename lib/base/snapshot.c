/* Snapshots of a run: self-verifying folders, the two newest kept. */
#include "lib/base/snapshot.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/base/progress.h"

#define FORMAT 1
#define MANIFEST "manifest.json"
#define MANIFEST_LIMIT ((size_t)16 << 20)

struct lpo_snap {
	lpo_ctx *ctx;
	char *dir;
	char *run;
	int64_t found;		/* number of the snapshot to go back to, -1 */
	int64_t next;		/* number of the next one */
	json_t *manifest;	/* of `found` */
	char *counters;
	/* the one being written */
	char *path, *tmp;
	json_t *blobs;
	double since_s;
};

static int
path_of(const lpo_snap *s, char **out, int64_t number)
{
	*out = lpo_asprintf(s->ctx, "%s/snap-%09" PRId64, s->dir, number);
	return *out == NULL ? LPO_ENOMEM : 0;
}

/* The number in "snap-000000012", or -1. */
static int64_t
number_of(const char *name)
{
	int64_t n = 0;
	int i;

	if (strncmp(name, "snap-", 5) != 0 || strlen(name) != 14)
		return -1;
	for (i = 5; i < 14; i++) {
		if (name[i] < '0' || name[i] > '9')
			return -1;
		n = n * 10 + name[i] - '0';
	}
	return n;
}

/* CRC32C of the manifest's canonical text without its own sum. */
static int
manifest_sum(lpo_ctx *c, char hex[9], json_t *j)
{
	char *text;

	json_object_del(j, "crc32c");
	if ((text = lpo_json_dumps(c, j)) == NULL)
		return LPO_ENOMEM;
	snprintf(hex, 9, "%08" PRIx32, lpo_crc32c(0, text, strlen(text)));
	lpo_free(text);
	return 0;
}

static int
verify_blob(lpo_ctx *c, const char *dir, const char *name, const json_t *b)
{
	struct lpo_map map = { 0 };
	const char *want;
	char hex[9], *path = NULL;
	int64_t bytes;
	int rc;

	if ((rc = lpo_json_need_int(c, &bytes, b, "bytes")) < 0 ||
	    (rc = lpo_json_need_str(c, &want, b, "crc32c")) < 0)
		return rc;
	if ((path = lpo_path_join(c, dir, name)) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_map_open(c, &map, path)) < 0)
		goto out;
	if ((int64_t)map.bytes != bytes) {
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' has %zu bytes, not %lld",
		    path, map.bytes, (long long)bytes);
		goto out;
	}
	snprintf(hex, sizeof(hex), "%08" PRIx32, lpo_crc32c(0, map.data,
	    map.bytes));
	if (strcmp(hex, want) != 0)
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' is damaged", path);
out:
	lpo_map_close(&map);
	lpo_free(path);
	return rc;
}

/* *manifest of a snapshot that is whole; LPO_EINVAL: another run's. */
static int
verify(lpo_snap *s, json_t **manifest, const char *dir)
{
	lpo_ctx *c = s->ctx;
	char *path, want[9] = "", got[9];
	const char *run, *name;
	json_t *j = NULL, *blobs, *b;
	int64_t format;
	int rc;

	if ((path = lpo_path_join(c, dir, MANIFEST)) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_json_load_file(c, &j, path, MANIFEST_LIMIT)) < 0)
		goto out;
	if ((rc = lpo_json_need_str(c, &name, j, "crc32c")) < 0)
		goto out;
	snprintf(want, sizeof(want), "%s", name);
	if ((rc = manifest_sum(c, got, j)) < 0)
		goto out;
	if (strcmp(want, got) != 0) {
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' is damaged", path);
		goto out;
	}
	if ((rc = lpo_json_need_int(c, &format, j, "format")) < 0 ||
	    (rc = lpo_json_need_str(c, &run, j, "run")) < 0)
		goto out;
	if (format != FORMAT || strcmp(run, s->run) != 0) {
		rc = lpo_fail(c, LPO_EINVAL, "'%s' belongs to run %.16s "
		    "(format %lld), not %s", dir, run, (long long)format,
		    s->run);
		goto out;
	}
	blobs = lpo_json_get(j, "blobs");
	json_object_foreach(blobs, name, b)
		if ((rc = verify_blob(c, dir, name, b)) < 0)
			goto out;
	*manifest = j;
	j = NULL;
out:
	json_decref(j);
	lpo_free(path);
	return rc;
}

/*
 * Remove what killed writers left, and every snapshot but two.  What cannot be
 * removed does no harm; a context of its own, so that its text is not taken
 * for that of a later failure.
 */
static void
prune(lpo_snap *s, int64_t keep1, int64_t keep2, int only_tmp)
{
	lpo_ctx *c = lpo_ctx_new();
	char **names, *path;
	int64_t i, n, number;

	if (c == NULL || lpo_dir_list(c, &names, &n, s->dir) < 0) {
		lpo_ctx_free(c);
		return;
	}
	for (i = 0; i < n; i++) {
		if (strncmp(names[i], "snap-", 5) != 0)
			continue;
		number = number_of(names[i]);
		if (number >= 0 && (only_tmp || number == keep1 ||
		    number == keep2))
			continue;
		if ((path = lpo_path_join(c, s->dir, names[i])) == NULL)
			break;
		lpo_rmtree(c, path);
		lpo_free(path);
	}
	lpo_names_free(names, n);
	lpo_ctx_free(c);
}

/* Newest first; names are sorted. */
static int
find(lpo_snap *s)
{
	char **names = NULL, *path = NULL;
	int64_t i, n = 0, number, bad = 0;
	int rc;

	if ((rc = lpo_dir_list(s->ctx, &names, &n, s->dir)) < 0)
		return rc;
	for (i = n - 1; i >= 0 && s->found < 0; i--) {
		if ((number = number_of(names[i])) < 0)
			continue;
		if (number >= s->next)
			s->next = number + 1;
		if ((rc = path_of(s, &path, number)) < 0)
			break;
		rc = verify(s, &s->manifest, path);
		lpo_free(path);
		if (rc == 0)
			s->found = number;
		else if (rc == LPO_EFORMAT || rc == LPO_ENOTFOUND) {
			lpo_notice(s->ctx, "saved state passed over: %s",
			    lpo_errmsg(s->ctx));
			lpo_clear(s->ctx);
			bad++;
			rc = 0;
		} else
			break;
	}
	lpo_names_free(names, n);
	if (rc == 0 && s->found < 0 && bad > 0)
		rc = lpo_fail(s->ctx, LPO_EFORMAT, "none of the %lld saved "
		    "states in '%s' is whole (--fresh discards them)",
		    (long long)bad, s->dir);
	return rc;
}

int
lpo_snap_open(lpo_ctx *c, lpo_snap **out, const char *dir, const char *run)
{
	lpo_snap *s;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if ((s = lpo_alloc(c, 1, sizeof(*s))) == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->found = -1;
	s->since_s = lpo_now_s();
	if ((s->dir = lpo_strdup(c, dir)) == NULL ||
	    (s->run = lpo_strdup(c, run)) == NULL)
		goto out;
	prune(s, 0, 0, 1);
	if ((rc = find(s)) < 0)
		goto out;
	if (s->found >= 0 && (s->counters = lpo_json_dumps(c,
	    lpo_json_get(s->manifest, "counters"))) == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	*out = s;
	s = NULL;
out:
	lpo_snap_close(s);
	return rc;
}

void
lpo_snap_close(lpo_snap *s)
{
	if (s == NULL)
		return;
	lpo_folder_abort(&s->tmp);
	json_decref(s->manifest);
	json_decref(s->blobs);
	lpo_free(s->counters);
	lpo_free(s->path);
	lpo_free(s->dir);
	lpo_free(s->run);
	lpo_free(s);
}

int
lpo_snap_found(const lpo_snap *s)
{
	return s->found >= 0;
}

const char *
lpo_snap_counters(const lpo_snap *s)
{
	return s->counters;
}

int64_t
lpo_snap_blob_bytes(const lpo_snap *s, const char *name)
{
	const json_t *b = lpo_json_get(lpo_json_get(s->manifest, "blobs"),
	    name);

	return b == NULL ? -1 :
	    (int64_t)json_integer_value(json_object_get(b, "bytes"));
}

int
lpo_snap_read(lpo_snap *s, const char *name, void *data, size_t bytes)
{
	struct lpo_map map = { 0 };
	char *dir = NULL, *path = NULL;
	int64_t have = lpo_snap_blob_bytes(s, name);
	int rc;

	if (have < 0 || (uint64_t)have != bytes)
		return lpo_fail(s->ctx, LPO_EFORMAT, "the saved '%s' has %lld "
		    "bytes, not %zu", name, (long long)have, bytes);
	if ((rc = path_of(s, &dir, s->found)) < 0)
		return rc;
	if ((path = lpo_path_join(s->ctx, dir, name)) == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if ((rc = lpo_map_open(s->ctx, &map, path)) < 0)
		goto out;
	if (map.bytes != bytes)
		rc = lpo_fail(s->ctx, LPO_EFORMAT, "'%s' has changed", path);
	else if (bytes > 0)
		memcpy(data, map.data, bytes);
out:
	lpo_map_close(&map);
	lpo_free(path);
	lpo_free(dir);
	return rc;
}

int
lpo_snap_begin(lpo_snap *s)
{
	int rc;

	lpo_folder_abort(&s->tmp);
	lpo_free(s->path);
	s->path = NULL;
	json_decref(s->blobs);
	if ((s->blobs = json_object()) == NULL)
		return lpo_fail(s->ctx, LPO_ENOMEM, "out of memory");
	if ((rc = path_of(s, &s->path, s->next)) < 0)
		return rc;
	return lpo_folder_begin(s->ctx, &s->tmp, s->path);
}

int
lpo_snap_blob(lpo_snap *s, const char *name, const void *data, size_t bytes)
{
	char *path, hex[9];
	int rc;

	if (s->tmp == NULL)
		return lpo_fail(s->ctx, LPO_EINVAL, "a blob before begin");
	if ((path = lpo_path_join(s->ctx, s->tmp, name)) == NULL)
		return LPO_ENOMEM;
	rc = lpo_file_write(s->ctx, path, data, bytes);
	lpo_free(path);
	if (rc < 0)
		return rc;
	snprintf(hex, sizeof(hex), "%08" PRIx32, lpo_crc32c(0, data, bytes));
	return lpo_json_set(s->ctx, s->blobs, name, json_pack("{s:I, s:s}",
	    "bytes", (json_int_t)bytes, "crc32c", hex));
}

/* The manifest of what has been written, as text with its sum. */
static int
make_manifest(lpo_snap *s, json_t **out, const char *counters)
{
	json_t *j = NULL, *count = NULL;
	char hex[9];
	int rc;

	if ((rc = lpo_json_load(s->ctx, &count, counters, strlen(counters),
	    "counters")) < 0)
		return rc;
	j = json_pack("{s:i, s:s, s:O, s:O}", "format", FORMAT, "run",
	    s->run, "counters", count, "blobs", s->blobs);
	json_decref(count);
	if (j == NULL)
		return lpo_fail(s->ctx, LPO_ENOMEM, "out of memory");
	if ((rc = manifest_sum(s->ctx, hex, j)) == 0)
		rc = lpo_json_set(s->ctx, j, "crc32c", json_string(hex));
	if (rc < 0)
		json_decref(j);
	else
		*out = j;
	return rc;
}

int
lpo_snap_commit(lpo_snap *s, const char *counters)
{
	char *path = NULL, *text = NULL, *copy = NULL;
	json_t *j = NULL;
	int rc;

	if (s->tmp == NULL)
		return lpo_fail(s->ctx, LPO_EINVAL, "commit before begin");
	if ((rc = make_manifest(s, &j, counters)) < 0)
		return rc;
	rc = LPO_ENOMEM;
	if ((text = lpo_json_dumps(s->ctx, j)) == NULL ||
	    (copy = lpo_strdup(s->ctx, counters)) == NULL ||
	    (path = lpo_path_join(s->ctx, s->tmp, MANIFEST)) == NULL)
		goto out;
	if ((rc = lpo_file_write(s->ctx, path, text, strlen(text))) < 0 ||
	    (rc = lpo_folder_publish(s->ctx, &s->tmp, s->path, 0)) < 0)
		goto out;
	prune(s, s->next, s->found, 0);
	s->found = s->next++;
	json_decref(s->manifest);
	s->manifest = j;
	j = NULL;
	lpo_free(s->counters);
	s->counters = copy;
	copy = NULL;
	s->since_s = lpo_now_s();
out:
	json_decref(j);
	lpo_free(copy);
	lpo_free(text);
	lpo_free(path);
	return rc;
}

int
lpo_snap_due(const lpo_snap *s, double every_s)
{
	return lpo_now_s() - s->since_s >= every_s;
}
