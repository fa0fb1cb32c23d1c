/* JSON helpers: canonical text, typed getters, limits; progress lines. */
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/base/json.h"
#include "lib/base/progress.h"
#include "tests/tap.h"

static lpo_ctx *c;

static json_t *
load(const char *text)
{
	json_t *v = NULL;

	lpo_clear(c);
	lpo_json_load(c, &v, text, strlen(text), "m");
	return v;
}

static void
canonical(void)
{
	static const char *const v[][2] = {
		{ "{\"b\": 1, \"a\": [true, null, 0.1]}",
		  "{\"a\":[true,null,0.1],\"b\":1}" },
		{ "[1e-4, 1.0, 1e300, -0.0, 3e0, 0.30000000000000004, 1e22]",
		  "[0.0001,1.0,1e+300,-0.0,3.0,0.30000000000000004,1e+22]" },
		{ "\"\\u00e9\\\"\\\\\\n\\u0001/\"",
		  "\"\xc3\xa9\\\"\\\\\\n\\u0001/\"" },
		{ "{}", "{}" }, { "[]", "[]" }, { "9007199254740993",
		  "9007199254740993" }
	};
	json_t *a, *b;
	size_t i;
	char *s;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		a = load(v[i][0]);
		s = lpo_json_dumps(c, a);
		b = load(s);
		ok(strcmp(s, v[i][1]) == 0 && json_equal(a, b), "%s", s);
		lpo_free(s);
		json_decref(a);
		json_decref(b);
	}
	a = load("{\"b\":[1,2],\"a\":{\"c\":[{}]}}");
	s = lpo_json_pretty(c, a);
	ok(strcmp(s, "{\n  \"a\": {\n    \"c\": [\n      {}\n    ]\n  },\n"
	    "  \"b\": [1, 2]\n}\n") == 0, "for people");
	lpo_free(s);
	json_decref(a);
}

static void
getters(void)
{
	json_t *o = load("{\"i\":7,\"r\":0.5,\"w\":8.0,\"s\":\"x\","
	    "\"n\":null,\"b\":false,\"l\":[1,2],\"m\":[1,\"x\"]}");
	const char *s;
	int64_t i, l[2];
	double r;
	int b, n;

	ok(lpo_json_int(c, &i, o, "i", 1) == 0 && i == 7 &&
	    lpo_json_int(c, &i, o, "w", 1) == 0 && i == 8 &&
	    lpo_json_int(c, &i, o, "n", 3) == 0 && i == 3 &&
	    lpo_json_int(c, &i, o, "none", 4) == 0 && i == 4, "int");
	ok(lpo_json_int(c, &i, o, "r", 1) == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_json_real(c, &r, o, "i", 1) == 0 && r == 7 &&
	    lpo_json_real(c, &r, o, "n", .25) == 0 && r == .25, "real");
	ok(lpo_json_real(c, &r, o, "s", 1) == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_json_bool(c, &b, o, "b", 1) == 0 && b == 0 &&
	    lpo_json_bool(c, &b, o, "n", 1) == 0 && b == 1 &&
	    lpo_json_bool(c, &b, o, "i", 1) == LPO_EFORMAT, "bool");
	lpo_clear(c);
	ok(lpo_json_str(c, &s, o, "s", "d") == 0 && strcmp(s, "x") == 0 &&
	    lpo_json_str(c, &s, o, "n", NULL) == 0 && s == NULL &&
	    lpo_json_str(c, &s, o, "i", NULL) == LPO_EFORMAT, "string");
	lpo_clear(c);
	ok(lpo_json_need_str(c, &s, o, "n") == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_json_need_int(c, &i, NULL, "i") == LPO_EFORMAT &&
	    lpo_json_need_real(c, &r, o, "none") == LPO_EFORMAT, "needed");
	lpo_clear(c);
	ok(lpo_json_ints(c, l, &n, 2, o, "l") == 0 && n == 2 && l[1] == 2 &&
	    lpo_json_ints(c, l, &n, 2, o, "i") == 0 && n == 1 && l[0] == 7 &&
	    lpo_json_ints(c, l, &n, 2, o, "none") == 0 && n == 0, "array");
	ok(lpo_json_ints(c, l, &n, 1, o, "l") == LPO_EFORMAT, "%s",
	    lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_json_ints(c, l, &n, 2, o, "m") == LPO_EFORMAT, "a word in it");
	lpo_clear(c);
	json_decref(o);
}

static void
limits(void)
{
	char deep[200];
	json_t *v = NULL;

	ok(load("{\"a\":\n1,\n}") == NULL, "%s", lpo_errmsg(c));
	ok(load("") == NULL && load("{\"a\":\"\xff\"}") == NULL, "%s",
	    lpo_errmsg(c));
	/* jansson alone reads this as {"a":1} and passes the rest over */
	lpo_clear(c);
	ok(lpo_json_load(c, &v, "{\"a\":1}\0{]", 10, "m") == LPO_EFORMAT &&
	    v == NULL, "%s", lpo_errmsg(c));
	memset(deep, '[', 64);
	memset(deep + 64, ']', 64);
	deep[128] = '\0';
	v = load(deep);
	ok(v != NULL, "64 levels");
	json_decref(v);
	memset(deep, '[', 65);
	memset(deep + 65, ']', 65);
	deep[130] = '\0';
	ok(load(deep) == NULL, "%s", lpo_errmsg(c));
	v = load("\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
	    "[[[[[[[[[[[[[[[[\\\"[[[[[[[[[[[[[[[[[[[\"");
	ok(v != NULL, "brackets in a string don't count");
	json_decref(v);
	v = load("{\"a\":1,\"a\":2}");
	ok(json_integer_value(json_object_get(v, "a")) == 2, "the last of "
	    "equal keys counts");
	json_decref(v);
	ok(lpo_json_load_strict(c, &v, "{\"a\":1,\"a\":2}", 13, "m") ==
	    LPO_EFORMAT, "%s", lpo_errmsg(c));
	lpo_clear(c);
	ok(lpo_json_load_file(c, &v, "/nonexistent.json", 0) ==
	    LPO_ENOTFOUND, "%s", lpo_errmsg(c));
	lpo_clear(c);
}

static void
cells(void)
{
	static const struct {
		const char *text;
		json_type type;
	} v[] = {
		{ "12", JSON_INTEGER }, { "-3", JSON_INTEGER },
		{ "0", JSON_INTEGER }, { "007", JSON_STRING },
		{ "1.50", JSON_REAL }, { "-1e-5", JSON_REAL },
		{ "1.", JSON_STRING }, { ".5", JSON_STRING },
		{ "+1", JSON_STRING }, { "1e", JSON_STRING },
		{ "nan", JSON_STRING }, { "1e999", JSON_STRING },
		{ "99999999999999999999", JSON_STRING }, { "", JSON_STRING },
		{ " 1", JSON_STRING }, { "0x10", JSON_STRING },
		{ "-", JSON_STRING }, { "true", JSON_STRING }
	};
	size_t i;
	int bad = 0;
	json_t *j;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		j = lpo_json_cell(c, v[i].text);
		bad += json_typeof(j) != v[i].type;
		json_decref(j);
	}
	ok(bad == 0, "cells become numbers only where JSON has them");
	ok(lpo_utf8_valid("a\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 10) &&
	    !lpo_utf8_valid("\xc0\x80", 2) && !lpo_utf8_valid("\xe2\x82", 2)
	    && !lpo_utf8_valid("\xed\xa0\x80", 3) &&
	    !lpo_utf8_valid("\xf4\x90\x80\x80", 4) &&
	    !lpo_utf8_valid("a\0b", 3) && !lpo_utf8_valid("\x80", 1) &&
	    !lpo_utf8_valid("\xe0\x80\xaf", 3), "UTF-8");
}

static double now;
static char line[640];
static int lines, lasts;

static double
clock_s(void)
{
	return now;
}

static void
on_line(void *arg, const char *text, int last)
{
	(void)arg;
	snprintf(line, sizeof(line), "%s", text);
	lines++;
	lasts += last;
}

static void
progress(void)
{
	struct lpo_progress p;
	char b[64];
	int i;

	lpo_progress_start(&p, "encode", "images", 1000, 200, 0, on_line,
	    NULL);
	p.clock_s = clock_s;
	p.start_s = p.last_s = p.mark[0].s = p.mark[1].s = now = 100;
	for (i = 0; i < 120; i++) {
		now += 1;
		lpo_progress_at(&p, 200 + 2 * (i + 1), "loss 0.61");
	}
	ok(lines == 2, "one line a minute where there is no terminal");
	ok(strcmp(line, "encode: 440/1000 images (44%), 2.00/s, 4 min 40 s "
	    "left, loss 0.61") == 0, "%s", line);
	for (; i < 400; i++) {
		now += 1;
		lpo_progress_at(&p, 200 + 2 * (i + 1), NULL);
	}
	lpo_progress_end(&p);
	ok(lasts == 1 && strcmp(line, "encode: 1000/1000 images (100%), "
	    "2.00/s, 6 min 40 s") == 0, "%s", line);
	/* a slow start is forgotten, and what is left settles */
	lpo_progress_start(&p, "train", "iterations", 100, 0, 0, on_line,
	    NULL);
	p.clock_s = clock_s;
	p.start_s = p.last_s = p.mark[0].s = p.mark[1].s = now = 100;
	for (i = 0; i < 10; i++) {
		now += 60;
		lpo_progress_at(&p, 0.1 * (i + 1), NULL);
	}
	ok(strcmp(line, "train: 1/100 iterations (1%), 600.0 s each, 16 h "
	    "30 min left") == 0, "parts of a unit: %s", line);
	for (i = 0; i < 40; i++) {
		now += 60;
		lpo_progress_at(&p, 2 + i, NULL);
	}
	ok(strcmp(line, "train: 41/100 iterations (41%), 60.0 s each, 59 min "
	    "00 s left") == 0, "four times as long after: %s", line);
	lpo_progress_start(&p, "pairs", "pairs", 0, 0, 1, NULL, NULL);
	lpo_progress_at(&p, 5, NULL);
	lpo_progress_end(&p);
	lpo_duration_text(b, sizeof(b), 3725);
	ok(strcmp(b, "1 h 02 min") == 0, "%s", b);
	lpo_duration_text(b, sizeof(b), 200000);
	ok(strcmp(b, "2 d 07 h") == 0, "%s", b);
}

/*
 * Each allocation of a parse and a dump failing, in a process of its own: out
 * of memory, never bad input, never another text.
 */
static void
no_memory(void)
{
	static const char text[] = "{\"a\":[1,2.5,\"a longer string, to grow "
	    "the parser's buffer\",{\"k\":null}],\"b\":{},\"c\":true}";
	int n, status = 1, none = 0, wrong = 0;

	for (n = 0; n < 2000 && status != 0; n++) {
		if (fork() == 0) {
			char *out = NULL;
			json_t *v;

			lpo_json_memory();
			lpo_clear(c);
			lpo_alloc_fail_at(n);
			if (lpo_json_load(c, &v, text, strlen(text), "m") == 0)
				out = lpo_json_dumps(c, v);
			lpo_alloc_fail_at(-1);
			_exit(out != NULL ? strcmp(out, text) != 0 :
			    lpo_errcode(c) == LPO_ENOMEM ? 3 : 4);
		}
		if (wait(&status) < 0 || (status != 0 &&
		    (!WIFEXITED(status) || WEXITSTATUS(status) != 3)))
			wrong++;
		else
			none += status != 0;
	}
	ok(status == 0 && none > 20 && wrong == 0, "%d times out of memory, "
	    "%d times something else", none, wrong);
}

int
main(void)
{
	c = lpo_ctx_new();
	canonical();
	getters();
	limits();
	cells();
	no_memory();
	progress();
	lpo_ctx_free(c);
	return done_testing();
}
