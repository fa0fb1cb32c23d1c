/*
 * Tables.  The first byte chooses the format.  Every row has the header's
 * columns and clean text; what is read from CSV comes back from the same
 * fields written as RFC 4180 has it.
 */
#include "lib/base/json.h"
#include "lib/io/table.h"
#include "tests/fuzz/fuzz.h"

struct text {
	char *p;
	size_t n, room;
};

static void
add(struct text *t, const char *s, size_t n)
{
	while (t->n + n + 1 > t->room) {
		t->room = t->room * 2 + 64;
		if ((t->p = realloc(t->p, t->room)) == NULL)
			abort();
	}
	memcpy(t->p + t->n, s, n);
	t->n += n;
	t->p[t->n] = '\0';
}

/* The field in quotes, quotes doubled. */
static void
quoted(struct text *t, const char *s, int last)
{
	add(t, "\"", 1);
	for (; *s != '\0'; s++)
		add(t, *s == '"' ? "\"\"" : s, *s == '"' ? 2 : 1);
	add(t, last ? "\"\r\n" : "\",", last ? 3 : 2);
}

static void
look(lpo_ctx *c, lpo_table *t, struct text *csv)
{
	int i, n = lpo_table_columns(t);
	const char *s;
	json_t *v;

	for (i = 0; i < n; i++) {
		CHECK(lpo_table_name(t, i) != NULL);
		CHECK(lpo_table_find(t, lpo_table_name(t, i)) == i);
		if ((s = lpo_table_get(t, i)) == NULL)
			continue;
		CHECK(lpo_utf8_valid(s, strlen(s)));
		v = lpo_table_json(t, i);
		CHECK(v != NULL);
		json_decref(v);
		if (csv != NULL)
			quoted(csv, s, i + 1 == n);
	}
	lpo_clear(c);
}

/* Reads all; csv: the good rows again.  The first failure, or 1. */
static int
read_all(lpo_ctx *c, lpo_table *t, struct text *csv, size_t n)
{
	size_t calls = 0;
	int64_t was = -1;
	int rc, first = 1;

	for (;;) {
		CHECK(calls++ <= n + 2);
		if ((rc = lpo_table_next(t)) == 1)
			return first;
		if (rc == 0) {
			CHECK(lpo_table_row(t) > was);
			was = lpo_table_row(t);
			look(c, t, csv);
			continue;
		}
		CHECK(lpo_errmsg(c)[0] != '\0');
		first = rc;
		if (!lpo_table_can_continue(t))
			return rc;
		lpo_clear(c);
	}
}

static void
again(lpo_ctx *c, const struct text *csv)
{
	struct text twice = { NULL, 0, 0 };
	lpo_table *t = NULL;
	int i;

	CHECK(lpo_table_open_memory(c, &t, csv->p, csv->n, "again",
	    LPO_TABLE_CSV) == 0);
	for (i = 0; i < lpo_table_columns(t); i++)
		quoted(&twice, lpo_table_name(t, i),
		    i + 1 == lpo_table_columns(t));
	CHECK(read_all(c, t, &twice, csv->n) == 1);
	CHECK(twice.n == csv->n && memcmp(twice.p, csv->p, csv->n) == 0);
	lpo_table_close(t);
	free(twice.p);
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const enum lpo_table_format format[] = { LPO_TABLE_CSV,
	    LPO_TABLE_TSV, LPO_TABLE_JSONL, LPO_TABLE_JSON, LPO_TABLE_LINES };
	lpo_ctx *c = fuzz_begin();
	struct text csv = { NULL, 0, 0 };
	lpo_table *t = NULL;
	int rc, i, form = n > 0 ? p[0] % 5 : 0, back;

	if (n > 0)
		p++, n--;
	rc = lpo_table_open_memory(c, &t, p, n, "fuzz", format[form]);
	back = rc == 0 && (form < 2 || form == 4);
	for (i = 0; back && i < lpo_table_columns(t); i++)
		quoted(&csv, lpo_table_name(t, i),
		    i + 1 == lpo_table_columns(t));
	if (rc == 0)
		rc = read_all(c, t, back ? &csv : NULL, n);
	lpo_table_close(t);
	if (back) {
		lpo_clear(c);
		again(c, &csv);
	}
	free(csv.p);
	if (rc < 0 && lpo_errcode(c) == 0)
		lpo_fail(c, rc, "a bad row");
	return fuzz_end(rc, (1 << 20) + 1024 * n);
}
