/*
 * Preferences from a folder (NAME_w.*, NAME_l.*, NAME.txt) and from
 * WebDataset tars.
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/json.h"
#include "lib/io/image.h"
#include "lib/io/record_priv.h"

/* "cat.jpg", not "jpg"; nor hidden ones such as macOS's "._cat.jpg". */
static int
is_image_name(const char *name)
{
	return name[0] != '.' && strchr(name, '.') != NULL &&
	    lpo_image_type(name) != NULL;
}

/* The length of a name without its extension. */
static size_t
stem(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot ? (size_t)(dot - name) : strlen(name);
}

/* A caption's text: without the mark before UTF-8, and its line's end. */
static const char *
caption_text(const char *p, size_t *n)
{
	size_t mark = lpo_utf8_mark(p, *n);

	p += mark;
	*n -= mark;
	while (*n > 0 && strchr("\r\n", p[*n - 1]) != NULL)
		--*n;
	return p;
}

/* The text of FILE without its end; LPO_ENOTFOUND: no such file. */
static int
read_prompt(lpo_records *rs, char **prompt, const char *dir, const char *name,
    size_t n_name)
{
	char *path = lpo_asprintf(rs->c, "%s/%.*s.txt", dir, (int)n_name,
	    name);
	const char *text;
	size_t n;
	int rc;

	*prompt = NULL;
	if (path == NULL)
		return LPO_ENOMEM;
	rc = LPO_ENOTFOUND;
	if (lpo_file_exists(path) &&
	    (rc = lpo_file_read(rs->c, prompt, &n, path, 1 << 20)) == 0) {
		lpo_sha256_update(&rs->sum, *prompt, n);
		text = caption_text(*prompt, &n);
		memmove(*prompt, text, n);
		(*prompt)[n] = '\0';
		if (!lpo_utf8_valid(*prompt, n))
			rc = lpo_fail(rs->c, LPO_EFORMAT, "%s: not UTF-8",
			    path);
	}
	lpo_free(path);
	return rc;
}

/*
 * A file of list[], which is sorted, that is NAME + suffix + image extension,
 * the suffix ending in the dot; NULL: none.
 */
static const char *
find_image(char **list, int64_t n, const char *name, size_t n_name,
    const char *suffix)
{
	size_t m = strlen(suffix);
	int64_t lo = 0, hi = n, mid;
	int r;

	while (lo < hi) {		/* the first that begins so */
		mid = lo + (hi - lo) / 2;
		r = strncmp(list[mid], name, n_name);
		if (r == 0)
			r = strncmp(list[mid] + n_name, suffix, m);
		if (r < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < n && strncmp(list[lo], name, n_name) == 0 &&
	    strncmp(list[lo] + n_name, suffix, m) == 0; lo++)
		if (is_image_name(list[lo]) &&
		    stem(list[lo]) + 1 == n_name + m)
			return list[lo];
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

/* A name becomes the row's id, and JSON has no other text than UTF-8. */
static int
name_is_text(lpo_records *rs, const char *name, size_t n)
{
	return lpo_utf8_valid(name, n) ? 0 : lpo_fail(rs->c, LPO_EFORMAT,
	    "its name is not UTF-8");
}

/* One pair: winner and loser by path, prompt from NAME.txt in `txt`. */
static int
folder_row(lpo_records *rs, const char *dir, const char *const txt[2],
    const char *name, size_t n_name, const char *win, const char *lose,
    const char *lose_dir)
{
	struct lpo_row r;
	int k, rc = LPO_ENOTFOUND;

	if (lpo_ctx_stopped(rs->c))
		return lpo_fail(rs->c, LPO_ESTOP, "stopped");
	memset(&r, 0, sizeof(r));
	r.sample = -1;
	r.label_0 = 1;
	for (k = 0; k < 2 && rc == LPO_ENOTFOUND; k++)
		rc = read_prompt(rs, &r.prompt, txt[k], name, n_name);
	if (rc == 0 && lose == NULL)
		rc = lpo_fail(rs->c, LPO_EFORMAT, "no losing image");
	if (rc == 0)
		rc = name_is_text(rs, name, n_name);
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

/* A losing image that no preferred one goes with. */
static int
lone_loser(lpo_records *rs, const char *dir, const char *name)
{
	return bad_row(rs, lpo_fail(rs->c, LPO_EFORMAT, "no preferred image"),
	    dir, name);
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
			    "."), l);
	for (i = 0; i < m && rc == 0; i++)
		if (is_image_name(lose[i]) && find_image(win, n, lose[i],
		    stem(lose[i]), ".") == NULL)
			rc = lone_loser(rs, l, lose[i]);
	lpo_names_free(win, n);
	lpo_names_free(lose, m);
	return rc;
}

/* The length of NAME where a name is NAME + suffix + image extension; else 0 */
static size_t
pair_name(const char *name, const char *suffix)
{
	size_t k = stem(name), m = strlen(suffix);

	return is_image_name(name) && k > m && strncmp(name + k - m, suffix,
	    m) == 0 ? k - m : 0;
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

	for (i = 0; i < n && rc == 0; i++)
		if ((k = pair_name(list[i], "_w")) > 0)
			rc = folder_row(rs, dir, txt, list[i], k, list[i],
			    find_image(list, n, list[i], k, "_l."), dir);
	if (rc == 0 && rs->n == was)
		rc = lpo_fail(rs->c, LPO_EFORMAT, "'%s' has neither NAME_w.* "
		    "nor folders w and l", dir);
	for (i = 0; i < n && rc == 0; i++)
		if ((k = pair_name(list[i], "_l")) > 0 &&
		    find_image(list, n, list[i], k, "_w.") == NULL)
			rc = lone_loser(rs, dir, list[i]);
	lpo_names_free(list, n);
	return rc;
}

static int
image_row(lpo_records *rs, const char *dir, const char *name,
    const char *full, const char *rel)
{
	struct lpo_row r;
	int rc;

	memset(&r, 0, sizeof(r));
	r.sample = -1;
	r.label_0 = r.label_1 = 0.5;
	rc = read_prompt(rs, &r.prompt, dir, name, stem(name));
	if (rc == LPO_ENOTFOUND)
		rc = (r.prompt = lpo_strdup(rs->c, "")) == NULL ?
		    LPO_ENOMEM : 0;
	if (rc == 0)
		rc = name_is_text(rs, rel, strlen(rel));
	r.id = lpo_strdup(rs->c, rel);
	r.image[0] = lpo_strdup(rs->c, full);
	if (r.id == NULL || r.image[0] == NULL)
		rc = LPO_ENOMEM;
	lpo_sha256_update(&rs->sum, rel, strlen(rel) + 1);
	if (rc == 0)
		return lpo_records_add(rs, &r);
	lpo_row_clear(&r);
	return bad_row(rs, rc, dir, name);
}

/* A folder and those it is in. */
struct folder {
	const struct folder *up;
	dev_t device;
	ino_t inode;
};

/* Links to folders are followed, but not to one that they are in. */
static int
in_itself(const struct folder *f)
{
	const struct folder *up;

	for (up = f->up; up != NULL; up = up->up)
		if (up->device == f->device && up->inode == f->inode)
			return 1;
	return 0;
}

/* Every image below; prompts where there are .txt beside them. */
static int
all_images(lpo_records *rs, const char *dir, const char *rel,
    const struct folder *up)
{
	struct folder here = { up, 0, 0 };
	char **list = NULL, *full = NULL, *sub = NULL;
	struct stat st;
	int64_t i, n = 0;
	int rc;

	if (stat(dir, &st) == 0) {
		here.device = st.st_dev;
		here.inode = st.st_ino;
		if (in_itself(&here)) {
			lpo_notice(rs->c, "'%s' is a folder that it is in: "
			    "left out", dir);
			return 0;
		}
	}
	rc = lpo_dir_list(rs->c, &list, &n, dir);
	for (i = 0; i < n && rc == 0; i++) {
		if (lpo_ctx_stopped(rs->c)) {
			rc = lpo_fail(rs->c, LPO_ESTOP, "stopped");
			break;
		}
		full = lpo_path_join(rs->c, dir, list[i]);
		sub = lpo_path_join(rs->c, rel, list[i]);
		if (full == NULL || sub == NULL)
			rc = LPO_ENOMEM;
		else if (list[i][0] != '.' && lpo_is_dir(full))
			rc = all_images(rs, full, sub, &here);
		else if (is_image_name(list[i]))
			rc = image_row(rs, dir, list[i], full, sub);
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
		rc = all_images(rs, path, "", NULL);
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
	size_t length;
	const char *name, *text;

	if (lpo_json_get(o, "prompt") || lpo_json_get(o, "caption"))
		return 0;
	for (m = 0; (name = lpo_shard_member(sh, i, m)) != NULL; m++)
		if (strcmp(name, "txt") == 0)
			break;
	if (name == NULL)
		return 0;
	if ((rc = lpo_shard_peek(rs->c, &p, &n, sh, i, "txt")) != 0)
		return rc;
	length = (size_t)n;
	text = caption_text((const char *)p, &length);
	v = json_stringn(text, length);
	if (v == NULL)
		return lpo_fail(rs->c, LPO_EFORMAT, "the caption is not "
		    "UTF-8");
	return lpo_json_set(rs->c, o, "prompt", v);
}

static int
key_as_id(lpo_records *rs, struct lpo_row *r, const char *key)
{
	int rc = name_is_text(rs, key, strlen(key));

	if (rc == 0 && (r->id = lpo_strdup(rs->c, key)) == NULL)
		rc = LPO_ENOMEM;
	return rc;
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
	if (rc == 0 && r.id == NULL)
		rc = key_as_id(rs, &r, lpo_shard_key(sh, i));
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
	rc = lpo_records_sum(rs, map.data, map.bytes);
	lpo_map_close(&map);
	if (rc == 0)
		rc = lpo_shard_open(rs->c, &tars[rs->n_tars - 1], path);
	for (i = 0; rc == 0 && i < lpo_shard_samples(tars[rs->n_tars - 1]);
	    i++)
		rc = lpo_ctx_stopped(rs->c) ? lpo_fail(rs->c, LPO_ESTOP,
		    "stopped") : tar_row(rs, tars[rs->n_tars - 1], i);
	return rc;
}
