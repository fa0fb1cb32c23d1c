/*
 * Writing a shard: run record, samples with their sums, end record.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/hash.h"
#include "lib/base/json.h"
#include "lib/io/shard_priv.h"

struct lpo_shardw {
	lpo_ctx *c;
	lpo_out *out;
	struct archive *a;
	struct lpo_section now;
	uint32_t run_crc, json_crc;
	int failed;
};

void
lpo_crc_text(char out[9], uint32_t crc)
{
	snprintf(out, 9, "%08x", (unsigned)crc);
}

json_t *
lpo_end_make(lpo_ctx *c, const struct lpo_section *s, uint32_t run_crc,
    uint32_t json_crc)
{
	char crc[9], run[9], self[9], *text = NULL;
	json_t *o;

	lpo_crc_text(crc, json_crc);
	lpo_crc_text(run, run_crc);
	o = json_pack("{s:s,s:s,s:I,s:I,s:I,s:I}", "crc32c", crc,
	    "run_crc32c", run, "samples", (json_int_t)s->samples, "skipped",
	    (json_int_t)s->skipped, "shard", (json_int_t)s->shard, "shards",
	    (json_int_t)s->shards);
	if (o == NULL)
		lpo_fail(c, LPO_ENOMEM, "out of memory");
	else if ((text = lpo_json_dumps(c, o)) != NULL) {
		lpo_crc_text(self, lpo_crc32c(0, text, strlen(text)));
		if (lpo_json_set(c, o, "end_crc32c", json_string(self)) == 0) {
			lpo_free(text);
			return o;
		}
	}
	lpo_free(text);
	json_decref(o);
	return NULL;
}

/*
 * Never fails towards libarchive, which leaks after a failed write; the
 * failure is kept here and looked at after each call.
 */
static la_ssize_t
write_cb(struct archive *a, void *arg, const void *p, size_t n)
{
	lpo_shardw *w = arg;

	(void)a;
	if (w->failed == 0)
		w->failed = lpo_out_write(w->out, p, n);
	return (la_ssize_t)n;
}

/* The output's failure has its text already; others are libarchive's. */
static int
failed(lpo_shardw *w)
{
	if (w->failed == 0 && lpo_tar_no_memory(w->a))
		w->failed = lpo_fail(w->c, LPO_ENOMEM, "out of memory");
	else if (w->failed == 0)
		w->failed = lpo_fail(w->c, LPO_EIO, "cannot write tar: %s",
		    archive_error_string(w->a));
	return w->failed;
}

static int
put_member(lpo_shardw *w, const char *path, const void *data, int64_t size)
{
	struct archive_entry *e;
	int bad;

	if (w->failed)
		return w->failed;
	if ((e = archive_entry_new()) == NULL)
		return w->failed = lpo_fail(w->c, LPO_ENOMEM,
		    "out of memory");
	/* Nothing of time, host and user: equal content, equal bytes. */
	archive_entry_set_pathname(e, path);
	archive_entry_set_filetype(e, AE_IFREG);
	archive_entry_set_perm(e, 0644);
	archive_entry_set_size(e, size);
	archive_entry_set_mtime(e, 0, 0);
	archive_entry_set_uid(e, 0);
	archive_entry_set_gid(e, 0);
	bad = archive_write_header(w->a, e) != ARCHIVE_OK ||
	    (size > 0 && archive_write_data(w->a, data, (size_t)size) !=
	    (la_ssize_t)size);
	archive_entry_free(e);
	return bad ? failed(w) : w->failed;
}

static int
put_json(lpo_shardw *w, const char *path, const json_t *v, uint32_t *crc)
{
	char *text = lpo_json_dumps(w->c, v);
	int rc;

	if (text == NULL)
		return w->failed = LPO_ENOMEM;
	if (crc != NULL)
		*crc = lpo_crc32c(*crc, text, strlen(text));
	rc = put_member(w, path, text, (int64_t)strlen(text));
	lpo_free(text);
	return rc;
}

int
lpo_shardw_open(lpo_ctx *c, lpo_shardw **out, const char *path,
    const json_t *run)
{
	lpo_shardw *w = lpo_alloc(c, 1, sizeof(*w));
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (w == NULL)
		return rc;
	w->c = c;
	if ((rc = lpo_out_open(c, &w->out, path)) != 0)
		goto out;
	if ((w->a = archive_write_new()) == NULL) {
		rc = lpo_fail(c, LPO_ENOMEM, "out of memory");
		goto out;
	}
	/*
	 * ustar, pax only where a name or size needs it; no padding to 10240
	 * bytes, so the end record stands 2048 bytes before the file's end.
	 */
	if (archive_write_set_format_pax_restricted(w->a) != ARCHIVE_OK ||
	    archive_write_set_bytes_per_block(w->a, 0) != ARCHIVE_OK ||
	    archive_write_set_bytes_in_last_block(w->a, 1) != ARCHIVE_OK ||
	    archive_write_open(w->a, w, NULL, write_cb, NULL) != ARCHIVE_OK) {
		rc = failed(w);
		goto out;
	}
	if ((rc = put_json(w, LPO_RUN_MEMBER, run, &w->run_crc)) != 0)
		goto out;
	*out = w;
	return 0;
out:
	lpo_shardw_abort(w);
	return rc;
}

/* Adds "key" and "crc32c" to the sample's json. */
static int
add_sums(lpo_shardw *w, struct lpo_sample *s)
{
	json_t *sums = json_object();
	char crc[9];
	int i, rc = 0;

	if (sums == NULL)
		return lpo_fail(w->c, LPO_ENOMEM, "out of memory");
	for (i = 0; i < s->n_members && rc == 0; i++) {
		lpo_crc_text(crc, lpo_crc32c(0, s->member[i].bytes,
		    (size_t)s->member[i].size));
		if (json_object_get(sums, s->member[i].name) != NULL)
			rc = lpo_fail(w->c, LPO_EINVAL, "%s: member '%s' "
			    "twice", s->key, s->member[i].name);
		else
			rc = lpo_json_set(w->c, sums, s->member[i].name,
			    json_string(crc));
	}
	if (rc == 0)
		rc = lpo_json_set(w->c, s->json, "key", json_string(s->key));
	if (rc == 0)
		rc = lpo_json_set(w->c, s->json, "crc32c", json_incref(sums));
	json_decref(sums);
	return rc;
}

int
lpo_shardw_put(lpo_shardw *w, struct lpo_sample *s)
{
	char path[LPO_SHARD_NAME_MAX];
	int i, rc;

	if (w->failed)
		return w->failed;
	if (s->key[0] == '\0' || strpbrk(s->key, "./") != NULL ||
	    strlen(s->key) > 200 || strncmp(s->key, "__", 2) == 0)
		return lpo_fail(w->c, LPO_EINVAL, "'%s' is no key", s->key);
	if ((rc = add_sums(w, s)) != 0)
		return w->failed = rc;
	for (i = 0; i < s->n_members; i++) {
		const struct lpo_member *m = &s->member[i];

		if (m->name[0] == '\0' || strchr(m->name, '/') ||
		    strlen(m->name) > 200 || strcmp(m->name, "json") == 0)
			return w->failed = lpo_fail(w->c, LPO_EINVAL,
			    "%s: '%s' is no member name", s->key, m->name);
		snprintf(path, sizeof(path), "%s.%s", s->key, m->name);
		if ((rc = put_member(w, path, m->bytes, m->size)) != 0)
			return rc;
	}
	snprintf(path, sizeof(path), "%s.json", s->key);
	if ((rc = put_json(w, path, s->json, &w->json_crc)) != 0)
		return rc;
	w->now.samples++;
	return 0;
}

int64_t
lpo_shardw_samples(const lpo_shardw *w)
{
	return w->now.samples;
}

int
lpo_shardw_finish(lpo_shardw *w, int64_t skipped, int64_t shard,
    int64_t shards)
{
	json_t *end = NULL;
	lpo_out *out;
	int rc = w->failed;

	w->now.skipped = skipped;
	w->now.shard = shard;
	w->now.shards = shards;
	if (rc != 0)
		goto out;
	end = lpo_end_make(w->c, &w->now, w->run_crc, w->json_crc);
	if (end == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if ((rc = put_json(w, LPO_END_MEMBER, end, NULL)) != 0)
		goto out;
	if (archive_write_close(w->a) != ARCHIVE_OK || w->failed) {
		rc = failed(w);
		goto out;
	}
	out = w->out;
	w->out = NULL;
	rc = lpo_out_commit(out);
out:
	json_decref(end);
	lpo_shardw_abort(w);
	return rc;
}

void
lpo_shardw_abort(lpo_shardw *w)
{
	if (w == NULL)
		return;
	/*
	 * libarchive closes on free and would write the end of the archive:
	 * into standard output that would be a lie.
	 */
	if (w->failed == 0)
		w->failed = LPO_ESTOP;
	archive_write_free(w->a);
	lpo_out_abort(w->out);
	lpo_free(w);
}
