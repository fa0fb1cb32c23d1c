/*
 * Records from every kind of input, and the filters: MPCF's strict limits,
 * SQL, joined scores.
 */
#include <archive.h>
#include <archive_entry.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/filter.h"
#include "lib/io/record.h"
#include "tests/tap.h"

static char dir[] = "/tmp/lpo-filter-XXXXXX";
static lpo_ctx *c;
static volatile sig_atomic_t stop;
static int notices;
static char last_notice[512];

static void
on_notice(void *arg, const char *text)
{
	(void)arg;
	notices++;
	snprintf(last_notice, sizeof(last_notice), "%s", text);
}

static char *
at(const char *name)
{
	static char path[32][256];
	static int k;

	k = (k + 1) % 32;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

static char *
put(const char *name, const char *text)
{
	lpo_file_write(c, at(name), text, strlen(text));
	return at(name);
}

/* Rows 0 to 2 and 7 of the table below. */
static void
csv_rows(lpo_records *rs)
{
	struct lpo_record r, again;
	json_t *v, *w;
	char *back;

	ok(lpo_records_get(c, &r, rs, 0) == 0 && r.label_0 == 1 &&
	    strcmp(r.id, "007") == 0 && strcmp(r.key, "000000000") == 0 &&
	    r.num_example_per_prompt == 3 &&
	    strcmp(r.image[0], at("x.png")) == 0 &&
	    strcmp(r.image[1], at("y/z.jpg")) == 0, "a row, paths from the "
	    "file's folder, good rows of the prompt counted");
	v = lpo_record_field(&r, "aesthetic_gap");
	ok(json_is_real(v) && json_object_size(r.extra) == 2,
	    "further columns are extra");
	json_decref(v);
	lpo_record_to_json(c, &v, &r);
	back = lpo_json_dumps(c, v);
	ok(strcmp(back, "{\"extra\":{\"aesthetic_gap\":0.25,\"note\":\"say "
	    "\\\"hi\\\"\"},\"id\":\"007\",\"key\":\"000000000\",\"label_0\":"
	    "1.0,\"label_1\":0.0,\"num_example_per_prompt\":3,\"prompt\":"
	    "\"a cat\",\"row\":0}") == 0, "%s", back);
	lpo_record_from_json(c, &again, v);
	lpo_record_to_json(c, &w, &again);
	ok(json_equal(v, w), "and back");
	lpo_free(back);
	json_decref(v);
	json_decref(w);
	lpo_record_clear(&again);
	lpo_record_clear(&r);
	lpo_records_get(c, &r, rs, 1);
	ok(strcmp(r.image[1], "/abs.jpg") == 0 && json_is_null(
	    json_object_get(r.extra, "note")), "absolute path, empty cell");
	lpo_record_clear(&r);
	lpo_records_get(c, &r, rs, 2);
	ok(r.id == NULL && strcmp(r.prompt, "42") == 0 &&
	    lpo_record_is_tie(&r), "a tie, no id, a prompt that is a number");
	lpo_record_clear(&r);
	lpo_records_get(c, &r, rs, 7);
	ok(r.label_0 == 0 && r.label_1 == 1, "one label gives the other");
	lpo_record_clear(&r);
}

/* x.png comes into being. */
static void
csv_image(lpo_records *rs)
{
	char a[65], b[65];
	uint8_t *data;
	int64_t n;

	ok(lpo_records_image(c, &data, &n, rs, 0, 0) == LPO_ENOTFOUND, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_records_sha256(c, a, rs);
	put("x.png", "bytes");
	ok(lpo_records_image(c, &data, &n, rs, 0, 0) == 0 && n == 5 &&
	    memcmp(data, "bytes", 5) == 0, "an image's bytes");
	lpo_free(data);
	lpo_records_sha256(c, b, rs);
	ok(strcmp(a, b) != 0, "another image, another sum");
}

static void
records_csv(void)
{
	const char *path = put("p.csv",
	    "id,prompt,image_0,image_1,label_0,label_1,aesthetic_gap,note\n"
	    "007,a cat,x.png,y/z.jpg,1,0,0.25,\"say \"\"hi\"\"\"\n"
	    "b,a cat,x.png,/abs.jpg,0,1,-1,\n"
	    ",42,x.png,y.png,0.5,0.5,0,q\n"
	    "d,a dog,x.png,y.png,1,1,0,q\n"
	    "e,a dog,x.png,y.png,yes,0,0,q\n"
	    "f,a dog,,y.png,1,0,0,q\n"
	    "g,too,few\n"
	    "h,a cat,x.png,y.png,,1,0,q\n");
	lpo_records *rs = NULL;
	struct lpo_record r;
	int i;

	if (!ok(lpo_records_open(c, &rs, &path, 1, 0) == 0 &&
	    lpo_records_count(rs) == 8, "csv %s", lpo_errmsg(c)))
		return;
	csv_rows(rs);
	for (i = 3; i < 7; i++)
		ok(lpo_records_error(rs, i) != NULL &&
		    lpo_records_get(c, &r, rs, i) == LPO_EFORMAT, "%s",
		    lpo_errmsg(c)), lpo_clear(c);
	csv_image(rs);
	lpo_records_close(rs);
	path = put("q.csv", "prompt,image_0\nx,y\n");
	ok(lpo_records_open(c, &rs, &path, 1, 0) == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
}

static void
records_jsonl(void)
{
	const char *path = put("q.jsonl", "{\"caption\":\"x\",\"image_0\":\"a\","
	    "\"image_1\":\"b\",\"preferred\":1,\"num_example_per_prompt\":9}"
	    "\n{\n{\"prompt\":\"x\",\"image_0\":\"a\",\"image_1\":\"b\","
	    "\"preferred\":\"tie\",\"more\":[1,2]}\n{\"prompt\":\"x\"}\n"
	    "{\"prompt\":\"x\",\"image_0\":\"a\",\"image_1\":\"b\","
	    "\"preferred\":\"left\"}\n");
	lpo_records *rs = NULL;
	struct lpo_record r;

	ok(lpo_records_open(c, &rs, &path, 1, 0) == 0 &&
	    lpo_records_count(rs) == 5 && lpo_records_error(rs, 1) != NULL &&
	    lpo_records_error(rs, 3) != NULL &&
	    lpo_records_error(rs, 4) != NULL, "jsonl %s", lpo_errmsg(c));
	lpo_records_get(c, &r, rs, 0);
	ok(r.label_1 == 1 && r.num_example_per_prompt == 9, "preferred");
	lpo_record_clear(&r);
	lpo_records_get(c, &r, rs, 2);
	ok(lpo_record_is_tie(&r) && r.num_example_per_prompt == 2, "tie");
	lpo_record_clear(&r);
	lpo_records_close(rs);
}

/* One row, and what is said of it: NULL where it is good. */
static void
one_row(const char *file, const char *text, const char *want)
{
	const char *path = put(file, text), *is;
	lpo_records *rs = NULL;
	int rc = lpo_records_open(c, &rs, &path, 1, 0);

	is = rc == 0 && lpo_records_count(rs) == 1 ?
	    lpo_records_error(rs, 0) : lpo_errmsg(c);
	ok(want == NULL ? is == NULL : is != NULL && strstr(is, want) != NULL,
	    "%s", is != NULL ? is : text);
	lpo_records_close(rs);
	lpo_clear(c);
}

static void
records_words(void)
{
#define ROW	"{\"image_0\":\"a\",\"image_1\":\"b\",\"prompt\":\"x\","
	static const char *const v[][2] = {
		{ ROW "\"label_0\":true,\"label_1\":false}", NULL },
		{ ROW "\"label_0\":\"1\"}", NULL },
		{ ROW "\"preferred\":1,\"caption\":\"y\"}", NULL },
		{ ROW "\"label_0\":[1]}", "r.jsonl:1: 'label_0' is not a "
		  "number" },
		{ ROW "\"label_0\":1,\"label_1\":0.5}", "r.jsonl:1: label_0 1 "
		  "and label_1 0.5 do not sum to 1" },
		{ ROW "\"label_0\":-1,\"label_1\":2}", "do not sum to 1" },
		{ ROW "\"preferred\":\"left\"}", "r.jsonl:1: preferred is "
		  "'left', not 0, 1 or tie" },
		{ ROW "\"note\":1}", "r.jsonl:1: neither label_0 and label_1 "
		  "nor preferred" },
		{ ROW "\"preferred\":0,\"num_example_per_prompt\":1.5}",
		  "r.jsonl:1: num_example_per_prompt is 1.5" },
		{ ROW "\"preferred\":0,\"num_example_per_prompt\":0}",
		  "r.jsonl:1: num_example_per_prompt is 0" },
		{ "{\"image_0\":\"a\",\"image_1\":\"b\",\"preferred\":0}",
		  "r.jsonl:1: no prompt" },
		{ "{\"image_0\":\"a\",\"prompt\":\"x\",\"preferred\":0}",
		  "r.jsonl:1: no image_1" },
		{ "[1,2]", "r.jsonl:1: " },
		{ "{\"prompt\":\"x\\udc00\"}", "r.jsonl:1: " }
	};
#undef ROW
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++)
		one_row("r.jsonl", v[i][0], v[i][1]);
	one_row("r.csv", "prompt,image_0,image_1,preferred\n"
	    "\xff,a,b,0\n", "r.csv:2: ");
	one_row("r.csv", "prompt,image_0,image_1,preferred\n"
	    "\"x,a,b,0\n", "r.csv:2: ");
	one_row("r.tsv", "prompt\timage_0\timage_1\tpreferred\n"
	    "x\ta\tb\n", "r.tsv:2: 3 fields where the header has 4");
}

static void
records_folders(void)
{
	const char *path[2];
	lpo_records *rs = NULL;
	struct lpo_record r;

	mkdir(at("f"), 0777);
	put("f/cat_w.png", "1");
	put("f/cat_l.jpg", "2");
	put("f/cat.txt", "a cat\n");
	put("f/dog_w.png", "1");
	put("f/owl_w.png", "1");
	put("f/owl.txt", "an owl");
	path[0] = at("f");
	ok(lpo_records_open(c, &rs, path, 1, 0) == 0 &&
	    lpo_records_count(rs) == 3, "folder %s", lpo_errmsg(c));
	ok(lpo_records_get(c, &r, rs, 0) == 0 && r.label_0 == 1 &&
	    strcmp(r.prompt, "a cat") == 0 && strcmp(r.id, "cat") == 0 &&
	    strcmp(r.image[1], at("f/cat_l.jpg")) == 0, "its pair");
	lpo_record_clear(&r);
	ok(strstr(lpo_records_error(rs, 1), "dog_w.png: no prompt in a .txt "
	    "beside it") != NULL, "%s", lpo_records_error(rs, 1));
	ok(strstr(lpo_records_error(rs, 2), "owl_w.png: no losing image") !=
	    NULL, "%s", lpo_records_error(rs, 2));
	lpo_records_close(rs);
	put("f/cat.txt", "a c\xe4t\n");
	lpo_records_open(c, &rs, path, 1, 0);
	ok(strstr(lpo_records_error(rs, 0), "cat.txt: not UTF-8") != NULL,
	    "%s", lpo_records_error(rs, 0));
	lpo_records_close(rs);
	put("f/dog_w.txt", "\xff");
	lpo_records_open(c, &rs, path, 1, LPO_RECORDS_IMAGES_ONLY);
	ok(lpo_records_count(rs) == 4 && strstr(lpo_records_error(rs, 2),
	    "dog_w.txt: not UTF-8") != NULL, "%s", lpo_records_error(rs, 2));
	lpo_records_close(rs);
	mkdir(at("g"), 0777);
	mkdir(at("g/w"), 0777);
	mkdir(at("g/l"), 0777);
	put("g/w/a.png", "1");
	put("g/l/a.webp", "1");
	put("g/a.txt", "an a");
	path[0] = at("g");
	path[1] = at("p.csv");
	ok(lpo_records_open(c, &rs, path, 2, 0) == 0 &&
	    lpo_records_count(rs) == 9, "w and l, and a table behind");
	ok(lpo_records_get(c, &r, rs, 1) == 0 && r.row == 1 &&
	    strcmp(r.id, "007") == 0, "rows are counted through");
	lpo_record_clear(&r);
	lpo_records_close(rs);
	ok(lpo_records_open(c, &rs, path, 1, LPO_RECORDS_IMAGES_ONLY) == 0 &&
	    lpo_records_count(rs) == 2 && lpo_records_get(c, &r, rs, 0) == 0
	    && strcmp(r.id, "l/a.webp") == 0 && r.image[1] == NULL,
	    "images only, below folders too");
	lpo_record_clear(&r);
	lpo_records_close(rs);
	put("u.csv", "prompt,image_0,image_1\na,x.png,y.png\nb,,z.png\n");
	path[0] = at("u.csv");
	ok(lpo_records_open(c, &rs, path, 1, 0) == LPO_EFORMAT &&
	    strstr(lpo_errmsg(c), "no column 'label_0'") != NULL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_records_open(c, &rs, path, 1, LPO_RECORDS_UNLABELLED) == 0 &&
	    lpo_records_get(c, &r, rs, 0) == 0 && r.label_0 == 0.5 &&
	    strstr(r.image[1], "/y.png") != NULL,
	    "no labels where none are wanted");
	lpo_record_clear(&r);
	ok(strstr(lpo_records_error(rs, 1), "u.csv:3: no image_0") != NULL,
	    "but both images");
	lpo_records_close(rs);
	mkdir(at("h"), 0777);
	path[0] = at("h");
	ok(lpo_records_open(c, &rs, path, 1, 0) == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_records_open(c, &rs, path, 1, LPO_RECORDS_IMAGES_ONLY) ==
	    LPO_EFORMAT && strstr(lpo_errmsg(c), "no images in '") != NULL,
	    "%s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
records_tar(void)
{
	static const char *const m[][2] = {
		{ "a.json", "{\"caption\":\"a cat\",\"label_0\":0,"
		  "\"label_1\":1,\"s\":3}" }, { "a.0.jpg", "A0" },
		{ "a.1.jpg", "A1" }, { "b.jpg_0", "B0" }, { "b.jpg_1", "B1" },
		{ "b.json", "{\"label_0\":1,\"label_1\":0}" },
		{ "b.txt", "a dog\n" }, { "c.image_0.png", "C0" },
		{ "c.json", "{\"prompt\":\"x\",\"preferred\":0}" },
		{ "d.json", "{\"preferred\":0}" }, { "d.txt", "\xff" },
		{ "d.0.jpg", "D0" }, { "d.1.jpg", "D1" }
	};
	struct archive *a = archive_write_new();
	struct archive_entry *e;
	struct lpo_record r;
	lpo_records *rs = NULL;
	const char *path = at("w.tar");
	uint8_t *data;
	int64_t n;
	size_t i;

	archive_write_set_format_ustar(a);
	archive_write_open_filename(a, path);
	for (i = 0; i < sizeof(m) / sizeof(*m); i++) {
		e = archive_entry_new();
		archive_entry_set_pathname(e, m[i][0]);
		archive_entry_set_filetype(e, AE_IFREG);
		archive_entry_set_perm(e, 0644);
		archive_entry_set_size(e, (la_int64_t)strlen(m[i][1]));
		archive_write_header(a, e);
		archive_write_data(a, m[i][1], strlen(m[i][1]));
		archive_entry_free(e);
	}
	archive_write_free(a);
	ok(lpo_records_open(c, &rs, &path, 1, 0) == 0 &&
	    lpo_records_count(rs) == 4, "WebDataset %s", lpo_errmsg(c));
	ok(lpo_records_get(c, &r, rs, 0) == 0 && r.label_1 == 1 &&
	    strcmp(r.prompt, "a cat") == 0 && strcmp(r.id, "a") == 0 &&
	    json_integer_value(json_object_get(r.extra, "s")) == 3, "record");
	ok(strstr(r.image[1], "w.tar:a.1.jpg") != NULL, "%s", r.image[1]);
	lpo_record_clear(&r);
	ok(lpo_records_image(c, &data, &n, rs, 1, 1) == 0 && n == 2 &&
	    memcmp(data, "B1", 2) == 0, "image of the second");
	lpo_free(data);
	lpo_records_get(c, &r, rs, 1);
	ok(strcmp(r.prompt, "a dog") == 0, "its caption from the .txt");
	lpo_record_clear(&r);
	ok(strstr(lpo_records_error(rs, 2), "w.tar/c: no image 1") != NULL,
	    "%s", lpo_records_error(rs, 2));
	ok(strstr(lpo_records_error(rs, 3), "w.tar/d: the caption is not "
	    "UTF-8") != NULL, "%s", lpo_records_error(rs, 3));
	lpo_records_close(rs);
}

/* A record with these labels and this JSON as extra. */
static void
make(struct lpo_record *r, double label_0, const char *extra)
{
	memset(r, 0, sizeof(*r));
	r->row = 17;
	snprintf(r->key, sizeof(r->key), "000000017");
	r->prompt = lpo_strdup(c, "a red cat");
	r->id = lpo_strdup(c, "i17");
	r->label_0 = label_0;
	r->label_1 = 1 - label_0;
	r->num_example_per_prompt = 1;
	lpo_json_load(c, &r->extra, extra, strlen(extra), "extra");
}

/* 1 kept, 0 not, < 0 error. */
static int
keep(const struct lpo_filter_options *o, double label_0, const char *extra)
{
	struct lpo_record r;
	lpo_filters *f = NULL;
	int k = 0, rc;

	lpo_clear(c);
	make(&r, label_0, extra);
	if ((rc = lpo_filter_open(c, &f, o)) == 0)
		rc = lpo_filter_keep(f, &k, &r);
	lpo_filter_close(f);
	lpo_record_clear(&r);
	return rc != 0 ? rc : k;
}

static int
mpcf(int strategy, double label_0, double a, double clip, double vqa)
{
	struct lpo_filter_options o = { .mpcf = strategy };
	char extra[160];

	snprintf(extra, sizeof(extra), "{\"aesthetic_gap\":%.17g,"
	    "\"clipscore_gap\":%.17g,\"vqascore_gap\":%.17g}", a, clip, vqa);
	return keep(&o, label_0, extra);
}

static void
mpcf_limits(void)
{
	struct lpo_filter_options o = { .mpcf = 2 };
	const char *images = "{\"aesthetic_0\":5,\"aesthetic_1\":5.25,"
	    "\"clipscore_0\":0.3,\"clipscore_1\":0.25,\"vqascore_0\":0.9,"
	    "\"vqascore_1\":0.5}", *close = "{\"aesthetic_0\":5,"
	    "\"aesthetic_1\":5.1,\"clipscore_0\":0.3,\"clipscore_1\":0.31,"
	    "\"vqascore_0\":0.5,\"vqascore_1\":0.45}";
	int k;

	for (k = 1; k <= 3; k++) {
		double a = k == 1 ? 0 : k == 2 ? -0.5 : -1;

		ok(mpcf(k, 1, a + 0.001, 0.001, 0.001) == 1 &&
		    mpcf(k, 0, a + 0.001, 0.001, 0.001) == 1 &&
		    mpcf(k, 1, a, 0.001, 0.001) == 0 &&
		    mpcf(k, 1, a + 0.001, 0, 0.001) == 0 &&
		    mpcf(k, 1, a + 0.001, 0.001, 0) == 0, "mpcf%d: limits are "
		    "strict", k);
		ok(mpcf(k, .5, 0.19, 0.029, 0.069) == 1 &&
		    mpcf(k, .5, -0.19, -0.029, -0.069) == 1 &&
		    mpcf(k, .5, 0.2, 0, 0) == 0 &&
		    mpcf(k, .5, -0.3, 0, 0) == 0 &&
		    mpcf(k, .5, 0, 0.03, 0) == 0 &&
		    mpcf(k, .5, 0, 0, 0.07) == 0, "mpcf%d: ties by the "
		    "absolute gap", k);
	}
	ok(keep(&o, 1, images) == 1, "per-image scores, image 0 preferred");
	ok(keep(&o, 0, images) == 0, "image 1 preferred: the gap turns");
	ok(keep(&o, .5, images) == 0 && keep(&o, .5, close) == 1, "a tie");
	ok(keep(&o, 1, "{\"aesthetic_gap\":1,\"clipscore_gap\":1}") ==
	    LPO_EFORMAT, "%s", lpo_errmsg(c));
	ok(keep(&o, 1, "{\"aesthetic_gap\":-9,\"clipscore_gap\":1}") ==
	    LPO_EFORMAT, "missing also where another criterion fails");
	ok(keep(&o, 1, "{\"aesthetic_gap\":\"n/a\",\"clipscore_gap\":1}") ==
	    LPO_EFORMAT, "%s", lpo_errmsg(c));
	ok(keep(&o, 1, "{\"aesthetic_gap\":null,\"clipscore_gap\":1}") ==
	    LPO_EFORMAT, "%s", lpo_errmsg(c));
	notices = 0;
	ok(lpo_filter_use(c, &o.mpcf_use, "aesthetic,clipscore") == 0 &&
	    keep(&o, 1, "{\"aesthetic_gap\":1,\"clipscore_gap\":1}") == 1 &&
	    notices == 1, "said: %s", last_notice);
	ok(lpo_filter_use(c, &o.mpcf_use, "beauty") == LPO_EINVAL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_filter_name(c, &k, "mpcf4") == LPO_EINVAL, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_filter_name(c, &k, "mpcf3") == 0 && k == 3 &&
	    lpo_filter_name(c, &k, "none") == 0 && k == 0, "names");
}

static void
where(void)
{
	static const struct {
		const char *sql;
		int want;
	} v[] = {
		{ "a > -0.5 and b = 'x'", 1 }, { "a > 0.5", 0 },
		{ "a between 0.2 and 0.3", 1 }, { "nul is null", 1 },
		{ "nul > 1", 0 }, { "nul", 0 }, { "1", 1 }, { "0", 0 },
		{ "prompt like '%red%'", 1 }, { "id = 'i17'", 1 },
		{ "row = 17 and label_0 > label_1", 1 },
		{ "length(prompt) = 9 -- comment", 1 },
		{ "json_extract(list, '$[1]') = 5", 1 }, { "yes", 1 },
		{ "\"od\"\"d. name\" = 3", 1 }, { "num = '007'", 1 },
		{ "nope > 1", LPO_EINVAL }, { "\"nope\" > 1", LPO_EINVAL },
		{ "a >", LPO_EINVAL }, { "1); select (1", LPO_EINVAL },
		{ "load_extension('x')", LPO_EINVAL },
		{ "readfile('/etc/passwd') is null", LPO_EINVAL },
		{ "", LPO_EINVAL }, { "a = json('{')", LPO_EINVAL }
	};
	struct lpo_filter_options o = { 0 };
	lpo_filters *f = NULL;
	struct lpo_record r;
	size_t i;
	int k, n = 0;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		o.where = v[i].sql;
		ok(keep(&o, 1, "{\"a\":0.25,\"b\":\"x\",\"nul\":null,\"list\":"
		    "[4,5],\"yes\":true,\"od\\\"d. name\":3,\"num\":\"007\"}")
		    == v[i].want, "%s%s%s", v[i].sql, v[i].want < 0 ? ": " :
		    "", lpo_errmsg(c));
	}
	lpo_clear(c);
	o.where = "length(zeroblob(900000000)) > 0";
	ok(keep(&o, 1, "{}") == LPO_EINVAL, "too large: %s", lpo_errmsg(c));
	lpo_clear(c);
	/* Without end; a signal came. */
	o.where = "exists (with recursive t(x) as (select 1 union all select "
	    "x + 1 from t) select x from t where x < 0)";
	lpo_ctx_stop_flag(c, &stop);
	stop = 1;
	ok(keep(&o, 1, "{}") == LPO_ESTOP, "endless: %s", lpo_errmsg(c));
	stop = 0;
	lpo_clear(c);
	/* Records of other columns than the first. */
	o.where = "a > 1";
	lpo_filter_open(c, &f, &o);
	for (i = 0; i < 4; i++) {
		make(&r, i == 3 ? .5 : 1, i == 0 ? "{\"a\":2}" : i == 1 ?
		    "{\"c\":1}" : i == 2 ? "{\"d\":1,\"a\":1}" :
		    "{\"a\":3}");
		if (lpo_filter_keep(f, &k, &r) == 0)
			n += k;
		lpo_record_clear(&r);
	}
	ok(n == 2 && lpo_filter_stages(f) == 1 &&
	    lpo_filter_stage_at(f, 0)->pairs_in == 4 &&
	    lpo_filter_stage_at(f, 0)->pairs_out == 2 &&
	    lpo_filter_stage_at(f, 0)->ties_in == 1 &&
	    lpo_filter_stage_at(f, 0)->ties_out == 1, "columns that come "
	    "later, and counts %s", lpo_errmsg(c));
	lpo_filter_close(f);
}

static void
scores(void)
{
	struct lpo_filter_options o = { .where = "judge > 4" };
	struct lpo_record r;
	lpo_filters *f = NULL;
	int k;

	o.scores = put("s.csv", "id,judge,x\ni16,1,0\ni17,5,7\n");
	ok(keep(&o, 1, "{}") == 1, "joined by id %s", lpo_errmsg(c));
	notices = 0;
	ok(keep(&o, 1, "{\"judge\":0}") == 1 && notices == 1, "said: %s",
	    last_notice);
	o.scores = put("s.csv", "id,judge,x\ni16,1,0\ni18,5,7\n");
	ok(keep(&o, 1, "{}") == LPO_EFORMAT, "%s", lpo_errmsg(c));
	o.scores = put("s.csv", "id,judge\ni16,1\ni16,5\n");
	ok(keep(&o, 1, "{}") == LPO_EFORMAT, "%s", lpo_errmsg(c));
	o.scores = put("s.csv", "ID,judge\ni16,1\n");
	ok(keep(&o, 1, "{}") == LPO_EFORMAT, "%s", lpo_errmsg(c));
	o.scores = at("absent.csv");
	ok(keep(&o, 1, "{}") == LPO_ENOTFOUND, "%s", lpo_errmsg(c));
	o.scores = put("s.csv", "judge\n1\n5\n");
	o.join_by_row = 1;
	ok(keep(&o, 1, "{}") == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_filter_open(c, &f, &o) == 0 && lpo_filter_rows(f, 2) == 0 &&
	    lpo_filter_rows(f, 3) == LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
	make(&r, 1, "{}");
	r.row = 1;
	ok(lpo_filter_keep(f, &k, &r) == 0 && k == 1 &&
	    json_object_get(r.extra, "judge") != NULL, "joined by row");
	lpo_record_clear(&r);
	lpo_filter_close(f);
	o = (struct lpo_filter_options){ .drop_ties = 1, .mpcf = 1 };
	ok(keep(&o, .5, "{}") == 0, "dropped before its columns are asked");
}

static void
out_of_memory(void)
{
	const char *path = at("p.csv");
	lpo_records *rs = NULL;
	struct lpo_record r;
	int rc = LPO_ENOMEM;
	long n;

	for (n = 0; n < 1000 && rc != 0; n++) {
		lpo_alloc_fail_at(n);
		lpo_clear(c);
		rc = lpo_records_open(c, &rs, &path, 1, 0);
		if (rc == 0)
			rc = lpo_records_get(c, &r, rs, 0);
		lpo_alloc_fail_at(-1);
		if (rc == 0)
			lpo_record_clear(&r);
		lpo_records_close(rs);
		rs = NULL;
		if (rc != 0 && rc != LPO_ENOMEM)
			break;
		/* libcsv's second try lets some pass. */
		if (rc == 0 && n < 60)
			rc = LPO_ENOMEM;
	}
	ok(rc == 0 && n > 20, "%ld failing allocations, each LPO_ENOMEM (%s)",
	    n - 1, lpo_errmsg(c));
	lpo_clear(c);
}

int
main(void)
{
	c = lpo_ctx_new();
	if (c == NULL || mkdtemp(dir) == NULL)
		return 1;
	lpo_ctx_on_notice(c, on_notice, NULL);
	records_csv();
	records_jsonl();
	records_words();
	records_folders();
	records_tar();
	mpcf_limits();
	where();
	scores();
	out_of_memory();
	ok(lpo_rmtree(c, dir) == 0, "clean up");
	lpo_ctx_free(c);
	return done_testing();
}
