/* Tables: the same rows from five formats, quoting, bad rows, limits. */
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/table.h"
#include "tests/tap.h"

static lpo_ctx *c;

/* All rows as "a|b;c|d;", errors as "!" where reading went on, "X" not. */
static const char *
rows(const char *text, size_t n, enum lpo_table_format format)
{
	static char out[4096];
	lpo_table *t = NULL;
	size_t k = 0;
	int i, rc;

	lpo_clear(c);
	rc = lpo_table_open_memory(c, &t, text, n, "m", format);
	if (rc != 0)
		return "E";
	out[0] = '\0';
	while ((rc = lpo_table_next(t)) != 1 && k < sizeof(out) - 256) {
		if (rc < 0) {
			k += (size_t)snprintf(out + k, sizeof(out) - k, "%s",
			    lpo_table_can_continue(t) ? "!;" : "X");
			if (!lpo_table_can_continue(t))
				break;
			lpo_clear(c);
			continue;
		}
		for (i = 0; i < lpo_table_columns(t); i++)
			k += (size_t)snprintf(out + k, sizeof(out) - k,
			    "%s%.60s", i ? "|" : "", lpo_table_get(t, i) ?
			    lpo_table_get(t, i) : "~");
		k += (size_t)snprintf(out + k, sizeof(out) - k, ";");
	}
	lpo_table_close(t);
	return out;
}

static void
formats(void)
{
	static const struct {
		const char *text;
		enum lpo_table_format f;
		const char *want;
	} v[] = {
	    { "a,b\n1,x\n2,y\n", LPO_TABLE_CSV, "1|x;2|y;" },
	    { "a,b\r\n1,x\r\n2,y", LPO_TABLE_CSV, "1|x;2|y;" },
	    { "a,b\r1,x\r2,y\r", LPO_TABLE_CSV, "1|x;2|y;" },
	    { "\xef\xbb\xbf" "a,b\n1,x\n", LPO_TABLE_CSV, "1|x;" },
	    { "a,b\n\n\n1,x\n\n", LPO_TABLE_CSV, "1|x;" },
	    { "a,b\n\"x,\"\"y\"\"\",\"l1\nl2\"\n3,4\n", LPO_TABLE_CSV,
	      "x,\"y\"|l1\nl2;3|4;" },
	    { "a,b\n 1 , x \n", LPO_TABLE_CSV, " 1 | x ;" },
	    { "a,b\n,\n", LPO_TABLE_CSV, "|;" },
	    { "a,b\n6\" nail,x\n", LPO_TABLE_CSV, "6\" nail|x;" },
	    { "a,b\n1\n1,2\n1,2,3\n3,4\n", LPO_TABLE_CSV, "!;1|2;!;3|4;" },
	    { "a,b\n1,\xff\n2,y\n", LPO_TABLE_CSV, "!;2|y;" },
	    { "a,b\n1,\"open\n2,y\n", LPO_TABLE_CSV, "X" },
	    { "a,a\n1,2\n", LPO_TABLE_CSV, "E" },
	    { "", LPO_TABLE_CSV, "E" },
	    { "a,b\n", LPO_TABLE_CSV, "" },
	    { "a\tb\nx\\ty\t\\\\n\\n\n\n\"q\"\t\n", LPO_TABLE_TSV,
	      "x\ty|\\n\n;\"q\"|;" },
	    { "{\"a\":1,\"b\":\"x\"}\n\n  \n{\"b\":null,\"a\":0.5}\n"
	      "{\"c\":[1,2]}\n", LPO_TABLE_JSONL, "1|x;0.5|~;~|~|[1,2];" },
	    { "{\"a\":1}\n{\"a\":\n7\n{\"a\":2}", LPO_TABLE_JSONL,
	      "1;!;!;2;" },
	    { "[{\"a\":1},{\"a\":2}]", LPO_TABLE_JSON, "1;2;" },
	    { "[\"a cat\",\"a dog\"]", LPO_TABLE_JSON, "a cat;a dog;" },
	    { "{\"a\":[1,2],\"b\":[3,4]}", LPO_TABLE_JSON, "1|3;2|4;" },
	    { "{\"a\":[1,2],\"b\":[3]}", LPO_TABLE_JSON, "X" },
	    { "{\"0\":{\"a\":1},\"1\":{\"a\":2}}", LPO_TABLE_JSON, "1;2;" },
	    { "{\"0\":\"x\",\"1\":\"y\"}", LPO_TABLE_JSON, "x;y;" },
	    { "[1]", LPO_TABLE_JSON, "!;" }, { "7", LPO_TABLE_JSON, "E" },
	    { "a cat, red\n\n\"a dog\"\r\nx", LPO_TABLE_LINES,
	      "a cat, red;\"a dog\";x;" },
	};
	const char *got;
	size_t i;

	for (i = 0; i < sizeof(v) / sizeof(*v); i++) {
		got = rows(v[i].text, strlen(v[i].text), v[i].f);
		ok(strcmp(got, v[i].want) == 0, "format %d row %zu %s",
		    v[i].f, i, lpo_errmsg(c));
	}
	ok(strcmp(rows("a,b\n1,x\0y\n2,z\n", 14, LPO_TABLE_CSV), "!;2|z;")
	    == 0, "NUL is refused");
}

static void
places(void)
{
	const char *text = "id,x\n\n\"a\nb\",1\nq,2.50\nr,007\ns,\n";
	lpo_table *t;
	json_t *v;

	lpo_clear(c);
	ok(lpo_table_open_memory(c, &t, text, strlen(text), "m.csv",
	    LPO_TABLE_AUTO) == 0 && lpo_table_find(t, "x") == 1 &&
	    lpo_table_find(t, "y") == -1, "columns by name");
	ok(lpo_table_next(t) == 0 && lpo_table_line(t) == 3 &&
	    lpo_table_row(t) == 0, "line %lld of the first row",
	    (long long)lpo_table_line(t));
	ok(lpo_table_next(t) == 0 && lpo_table_line(t) == 5 &&
	    lpo_table_row(t) == 1, "line of the second, after a quoted end");
	v = lpo_table_json(t, 1);
	ok(json_is_real(v) && json_real_value(v) == 2.5, "a number");
	json_decref(v);
	lpo_table_next(t);
	v = lpo_table_json(t, 1);
	ok(json_is_string(v), "007 stays text");
	json_decref(v);
	lpo_table_next(t);
	v = lpo_table_json(t, 1);
	ok(json_is_null(v), "an empty cell is null");
	json_decref(v);
	ok(lpo_table_field(t, "none") == NULL && lpo_table_next(t) == 1 &&
	    lpo_table_next(t) == 1, "the end stays the end");
	lpo_table_close(t);
}

static void
limits(void)
{
	size_t n = (size_t)17 << 20;
	char *big = malloc(n);

	memset(big, 'x', n);
	memcpy(big, "a\n", 2);
	ok(strcmp(rows(big, n, LPO_TABLE_CSV), "X") == 0, "%.70s",
	    lpo_errmsg(c));
	memset(big + 2, '\n', n - 2);
	big[2] = '"';
	ok(strcmp(rows(big, n, LPO_TABLE_CSV), "X") == 0, "%.70s",
	    lpo_errmsg(c));
	memset(big, ',', n);
	big[20000] = '\n';
	ok(strcmp(rows(big, n, LPO_TABLE_CSV), "E") == 0, "%.70s",
	    lpo_errmsg(c));
	free(big);
}

/* 10000 columns are taken, one more is not. */
static void
columns(void)
{
	static char wide[6 * 10001 + 1];
	lpo_table *t = NULL;
	int n, k, rc;

	lpo_clear(c);
	for (n = 10000; n <= 10001; n++) {
		for (k = 0; k < n; k++)
			sprintf(wide + 6 * k, "%05d%c", k, k + 1 < n ? ',' :
			    '\n');
		rc = lpo_table_open_memory(c, &t, wide, 6 * (size_t)n, "w",
		    LPO_TABLE_CSV);
		ok(n == 10000 ? rc == 0 && lpo_table_columns(t) == n :
		    rc == LPO_EFORMAT && strstr(lpo_errmsg(c),
		    "w:1: more than 10000 fields") != NULL, "%d columns %s",
		    n, lpo_errmsg(c));
		lpo_clear(c);
		lpo_table_close(t);
		t = NULL;
	}
}

/* Any bytes, in any format: no crash, an end. */
static void
noise(void)
{
	const char alphabet[] = "a,\"\n\r\t\\{}[]:1.-e \xc3\xa4";
	uint32_t x = 7;
	char text[64];
	size_t i, n;
	int k;

	for (k = 0; k < 20000; k++) {
		x = x * 1664525 + 1013904223;
		n = x >> 26;
		for (i = 0; i < n; i++) {
			x = x * 1664525 + 1013904223;
			text[i] = alphabet[(x >> 24) % sizeof(alphabet)];
		}
		rows(text, n, (enum lpo_table_format)(1 + k % 5));
	}
	ok(1, "20000 random texts");
}

static void
out_of_memory(void)
{
	const char *text = "a,b\n\"x y\",2\n";
	lpo_table *t = NULL;
	int rc, bad = 0, failed = 0;
	long n;

	for (n = 0; n < 50; n++) {
		lpo_clear(c);
		lpo_alloc_fail_at(n);
		rc = lpo_table_open_memory(c, &t, text, strlen(text), "m",
		    LPO_TABLE_CSV);
		if (rc == 0)
			rc = lpo_table_next(t);
		lpo_alloc_fail_at(-1);
		/* libcsv tries again with less, so a failure may pass. */
		if (rc == 0)
			bad += strcmp(lpo_table_field(t, "a"), "x y") != 0;
		else
			bad += rc != LPO_ENOMEM;
		failed += rc != 0;
		lpo_table_close(t);
		t = NULL;
	}
	ok(bad == 0 && failed > 5, "%d failing allocations, each LPO_ENOMEM",
	    failed);
}

int
main(void)
{
	c = lpo_ctx_new();
	formats();
	places();
	limits();
	columns();
	noise();
	out_of_memory();
	lpo_ctx_free(c);
	return done_testing();
}
