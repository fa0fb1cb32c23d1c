/*
 * Preferences from a folder (NAME_w.*, NAME_l.*, NAME.txt) and from
 * WebDataset tars.
 */
#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/image.h"
#include "lib/io/record_priv.h"

/* "cat.jpg", not "jpg" or ".jpg". */
static int
is_image_name(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot != NULL && dot > name && lpo_image_type(name) != NULL;
}

/* The length of a name without its extension. */
static size_t
stem(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot ? (size_t)(dot - name) : strlen(name);
}

/* First line of FILE without its end; LPO_ENOTFOUND: no such file. */
static int
read_prompt(lpo_records *rs, char **prompt, const char *dir, const char *name,
    size_t n_name)
{
	char *path = lpo_asprintf(rs->c, "%s/%.*s.txt", dir, (int)n_name,
	    name);
	size_t n;
	int rc;

	*prompt = NULL;
	if (path == NULL)
		return LPO_ENOMEM;
	rc = LPO_ENOTFOUND;
	if (lpo_file_exists(path) &&
	    (rc = lpo_file_read(rs->c, prompt, &n, path, 1 << 20)) == 0) {
		lpo_sha256_update(&rs->sum, *prompt, n);
		while (n > 0 && strchr("\r\n", (*prompt)[n - 1]) != NULL)
			(*prompt)[--n] = '\0';
		if (!lpo_utf8_valid(*prompt, n))
			rc = lpo_fail(rs->c, LPO_EFORMAT, "%s: not UTF-8",
			    path);
	}
	lpo_free(path);
	return rc;
}

/* A file of list[] that is NAME + suffix + image extension; NULL: none. */
static const char *
find_image(char **list, int64_t n, const char *name, size_t n_name,
    const char *suffix)
{
	int64_t i;
	size_t m = strlen(suffix);

	for (i = 0; i < n; i++)
		if (is_image_name(list[i]) && stem(list[i]) == n_name + m
		    && strncmp(list[i], name, n_name) == 0 &&
		    strncmp(list[i] + n_name, suffix, m) == 0)
			return list[i];
	return NULL;
}

/* Record a bad row and forget the failure, or pass it on. */
static int
bad_row(lpo_records *rs, int rc, const char *dir, const char *name)
{
	char *why;

	if (rc != LPO_EFORMAT && rc != LPO_ENOTFOUND)
		return rc;
	why = lpo_asprintf(rs->c, "%s/%s: %s", dir, name, lpo_errmsg(rs->c)[0]
	    ? lpo_errmsg(rs->c) : "no prompt in a .txt beside it");
	lpo_clear(rs->c);
	return lpo_records_add_bad(rs, why);
}

/* One pair: winner and loser by path, prompt from NAME.txt in `txt`. */
static int
folder_row(lpo_records *rs, const char *dir, const char *const txt[2],
    const char *name, size_t n_name, const char *win, const char *lose,
    const char *lose_dir)
{
	struct lpo_row r;
	int k, rc = LPO_ENOTFOUND;

	memset(&r, 0, sizeof(r));
	r.sample = -1;
	r.label_0 = 1;
	for (k = 0; k < 2 && rc == LPO_ENOTFOUND; k++)
		rc = read_prompt(rs, &r.prompt, txt[k], name, n_name);
	if (rc == 0 && lose == NULL)
		rc = lpo_fail(rs->c, LPO_EFORMAT, "no losing image");
	if (rc == 0) {
		r.id = lpo_asprintf(rs->c, "%.*s", (int)n_name, name);
		r.image[0] = lpo_path_join(rs->c, dir, win);
		r.image[1] = lpo_path_join(rs->c, lose_dir, lose);
		if (r.id == NULL || r.image[0] == NULL || r.image[1] == NULL)
			rc = LPO_ENOMEM;
	}
	/* Names belong to the input: the pairs are found by them. */
	lpo_sha256_update(&rs->sum, win, strlen(win) + 1);
	if (rc == 0)
		return lpo_records_add(rs, &r);
	lpo_row_clear(&r);
	return bad_row(rs, rc, dir, win);
}

/* w/NAME.*, l/NAME.* */
static int
two_folders(lpo_records *rs, const char *dir, const char *w, const char *l)
{
	const char *const txt[2] = { dir, w };
	char **win = NULL, **lose = NULL;
	int64_t i, n = 0, m = 0;
	int rc;

	rc = lpo_dir_list(rs->c, &win, &n, w);
	if (rc == 0)
		rc = lpo_dir_list(rs->c, &lose, &m, l);
	for (i = 0; i < n && rc == 0; i++)
		if (is_image_name(win[i]))
			rc = folder_row(rs, w, txt, win[i], stem(win[i]),
			    win[i], find_image(lose, m, win[i], stem(win[i]),
			    ""), l);
	lpo_names_free(win, n);
	lpo_names_free(lose, m);
	return rc;
}

/* NAME_w.*, NAME_l.* */
static int
one_folder(lpo_records *rs, const char *dir)
{
	const char *const txt[2] = { dir, dir };
	char **list = NULL;
	int64_t i, n = 0, was = rs->n;
	size_t k;
	int rc = lpo_dir_list(rs->c, &list, &n, dir);

	for (i = 0; i < n && rc == 0; i++) {
		k = stem(list[i]);
		if (!is_image_name(list[i]) || k < 3 ||
		    strncmp(list[i] + k - 2, "_w", 2) != 0)
			continue;
		rc = folder_row(rs, dir, txt, list[i], k - 2, list[i],
		    find_image(list, n, list[i], k - 2, "_l"), dir);
	}
	if (rc == 0 && rs->n == was)
		rc = lpo_fail(rs->c, LPO_EFORMAT, "'%s' has neither NAME_w.* "
		    "nor folders w and l", dir);
	lpo_names_free(list, n);
	return rc;
}

/* Every image below; prompts where there are .txt beside them. */
static int
all_images(lpo_records *rs, const char *dir, const char *rel)
{
	char **list = NULL, *full = NULL, *sub = NULL;
	struct lpo_row r;
	int64_t i, n = 0;
	int rc = lpo_dir_list(rs->c, &list, &n, dir);

	for (i = 0; i < n && rc == 0; i++) {
		full = lpo_path_join(rs->c, dir, list[i]);
		sub = lpo_path_join(rs->c, rel, list[i]);
		if (full == NULL || sub == NULL)
			rc = LPO_ENOMEM;
		else if (list[i][0] != '.' && lpo_is_dir(full))
			rc = all_images(rs, full, sub);
		else if (is_image_name(list[i])) {
			memset(&r, 0, sizeof(r));
			r.sample = -1;
			r.label_0 = r.label_1 = 0.5;
			rc = read_prompt(rs, &r.prompt, dir, list[i],
			    stem(list[i]));
			if (rc == LPO_ENOTFOUND)
				rc = (r.prompt = lpo_strdup(rs->c, "")) ==
				    NULL ? LPO_ENOMEM : 0;
			r.id = lpo_strdup(rs->c, sub);
			r.image[0] = lpo_strdup(rs->c, full);
			if (r.id == NULL || r.image[0] == NULL)
				rc = LPO_ENOMEM;
			lpo_sha256_update(&rs->sum, sub, strlen(sub) + 1);
			if (rc == 0)
				rc = lpo_records_add(rs, &r);
			else {
				lpo_row_clear(&r);
				rc = bad_row(rs, rc, dir, list[i]);
			}
		}
		lpo_free(full);
		lpo_free(sub);
	}
	lpo_names_free(list, n);
	return rc;
}

int
lpo_records_folder(lpo_records *rs, const char *path)
{
	char *w = NULL, *l = NULL;
	int64_t was = rs->n;
	int rc = LPO_ENOMEM;

	if (rs->flags & LPO_RECORDS_IMAGES_ONLY) {
		rc = all_images(rs, path, "");
		if (rc == 0 && rs->n == was)
			rc = lpo_fail(rs->c, LPO_EFORMAT, "no images in '%s'",
			    path);
		return rc;
	}
	w = lpo_path_join(rs->c, path, "w");
	l = lpo_path_join(rs->c, path, "l");
	if (w != NULL && l != NULL)
		rc = lpo_is_dir(w) && lpo_is_dir(l) ?
		    two_folders(rs, path, w, l) : one_folder(rs, path);
	lpo_free(w);
	lpo_free(l);
	return rc;
}

/* ---- Tars ---- */

/* Is the member image k: 0.jpg, image_0.png, jpg_0, image_0? */
static int
is_image_k(const char *name, int k)
{
	char want[32];
	size_t n;

	snprintf(want, sizeof(want), "jpg_%d", k);
	if (strcmp(name, want) == 0)
		return 1;
	snprintf(want, sizeof(want), "image_%d", k);
	n = strlen(want);
	if (strcmp(name, want) == 0 || (strncmp(name, want, n) == 0 &&
	    name[n] == '.' && is_image_name(name)))
		return 1;
	return name[0] == '0' + k && name[1] == '.' && is_image_name(name);
}

static int
find_members(lpo_records *rs, struct lpo_row *r, lpo_shard *sh, int64_t i)
{
	int only = rs->flags & LPO_RECORDS_IMAGES_ONLY, k, m;
	const char *name;

	for (m = 0; (name = lpo_shard_member(sh, i, m)) != NULL; m++)
		for (k = 0; k < (only ? 1 : 2); k++) {
			if (r->image[k] != NULL || !(is_image_k(name, k) ||
			    (only && lpo_image_type(name) != NULL)))
				continue;
			if ((r->image[k] = lpo_strdup(rs->c, name)) == NULL)
				return LPO_ENOMEM;
		}
	if (r->image[0] == NULL || (!only && r->image[1] == NULL))
		return lpo_fail(rs->c, LPO_EFORMAT, "no image %d",
		    r->image[0] != NULL);
	return 0;
}

/* A caption in KEY.txt, where KEY.json has none. */
static int
caption(lpo_records *rs, json_t *o, lpo_shard *sh, int64_t i)
{
	const uint8_t *p;
	json_t *v;
	int64_t n;
	int m, rc;
	const char *name;

	if (lpo_json_get(o, "prompt") || lpo_json_get(o, "caption"))
		return 0;
	for (m = 0; (name = lpo_shard_member(sh, i, m)) != NULL; m++)
		if (strcmp(name, "txt") == 0)
			break;
	if (name == NULL)
		return 0;
	if ((rc = lpo_shard_peek(rs->c, &p, &n, sh, i, "txt")) != 0)
		return rc;
	while (n > 0 && (p[n - 1] == '\n' || p[n - 1] == '\r'))
		n--;
	v = json_stringn((const char *)p, (size_t)n);
	if (v == NULL)
		return lpo_fail(rs->c, LPO_EFORMAT, "the caption is not "
		    "UTF-8");
	return lpo_json_set(rs->c, o, "prompt", v);
}

static int
tar_row(lpo_records *rs, lpo_shard *sh, int64_t i)
{
	struct lpo_row r;
	json_t *o = NULL;
	int rc;

	memset(&r, 0, sizeof(r));
	r.sample = i;
	r.source = rs->n_tars - 1;
	rc = lpo_shard_get_json(rs->c, &o, sh, i);
	if (rc == 0)
		rc = caption(rs, o, sh, i);
	if (rc == 0)
		rc = lpo_row_from_json(rs, &r, o);
	if (rc == 0 && r.id == NULL &&
	    (r.id = lpo_strdup(rs->c, lpo_shard_key(sh, i))) == NULL)
		rc = LPO_ENOMEM;
	if (rc == 0)
		rc = find_members(rs, &r, sh, i);
	json_decref(o);
	if (rc == 0)
		return lpo_records_add(rs, &r);
	lpo_row_clear(&r);
	return bad_row(rs, rc, rs->tar_name[rs->n_tars - 1],
	    lpo_shard_key(sh, i));
}

int
lpo_records_tar(lpo_records *rs, const char *path)
{
	size_t n = (size_t)rs->n_tars + 1;
	struct lpo_map map;
	lpo_shard **tars;
	char **names;
	int64_t i;
	int rc;

	tars = lpo_realloc(rs->c, rs->tar, n * sizeof(*tars));
	if (tars != NULL)
		rs->tar = tars;
	names = lpo_realloc(rs->c, rs->tar_name, n * sizeof(*names));
	if (names != NULL)
		rs->tar_name = names;
	if (tars == NULL || names == NULL)
		return LPO_ENOMEM;
	tars[rs->n_tars] = NULL;
	if ((names[rs->n_tars] = lpo_strdup(rs->c, path)) == NULL)
		return LPO_ENOMEM;
	rs->n_tars++;
	if ((rc = lpo_map_open(rs->c, &map, path)) != 0)
		return rc;
	lpo_sha256_update(&rs->sum, map.data, map.bytes);
	lpo_map_close(&map);
	rc = lpo_shard_open(rs->c, &tars[rs->n_tars - 1], path);
	for (i = 0; rc == 0 && i < lpo_shard_samples(tars[rs->n_tars - 1]);
	    i++)
		rc = lpo_ctx_stopped(rs->c) ? lpo_fail(rs->c, LPO_ESTOP,
		    "stopped") : tar_row(rs, tars[rs->n_tars - 1], i);
	return rc;
}
