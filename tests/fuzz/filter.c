/*
 * Filters: --where, a line "----", --scores' table.  The first byte: kind of
 * table, how to join, which MPCF.  Three records go through.
 */
#include "lib/io/filter.h"
#include "tests/fuzz/fuzz.h"

/* SQL that is slow or large by what it says, not by a fault of ours. */
static int
greedy(const char *sql)
{
	static const char *const words[] = { "blob", "recursive", "printf",
	    "format", "replace", "||", "group_concat", "char" };
	size_t i;

	for (i = 0; i < sizeof(words) / sizeof(*words); i++)
		if (strcasestr(sql, words[i]) != NULL)
			return 1;
	return strlen(sql) > 400;
}

static int
through(lpo_ctx *c, lpo_filters *f)
{
	const struct lpo_filter_stage *st;
	struct lpo_record r;
	int64_t kept = 0;
	int i, keep, rc = 0;

	for (i = 0; i < 3 && rc == 0; i++) {
		memset(&r, 0, sizeof(r));
		r.row = i;
		snprintf(r.key, sizeof(r.key), "%09d", i);
		r.id = lpo_asprintf(c, "%d", i);
		r.prompt = lpo_strdup(c, "a cat");
		r.label_0 = i / 2.0;
		r.label_1 = 1 - i / 2.0;
		r.num_example_per_prompt = 1;
		r.extra = json_pack("{s:f,s:f,s:f,s:s}", "aesthetic_gap",
		    i - 1.0, "clipscore_gap", 0.25, "vqascore_gap", 0.5,
		    "source", "x");
		keep = -1;
		rc = lpo_filter_keep(f, &keep, &r);
		CHECK(rc < 0 || keep == 0 || keep == 1);
		kept += keep == 1;
		lpo_record_clear(&r);
	}
	for (i = 0; rc == 0 && (st = lpo_filter_stage_at(f, i)); i++) {
		CHECK(st->pairs_out <= st->pairs_in);
		if (i + 1 == lpo_filter_stages(f))
			CHECK(st->pairs_out == kept);
	}
	return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	static const char *const name[] = { "s.csv", "s.tsv", "s.jsonl",
	    "s.json" };
	lpo_ctx *c = fuzz_begin();
	struct lpo_filter_options o = { 0 };
	lpo_filters *f = NULL;
	const uint8_t *part;
	char *where;
	size_t bytes;
	unsigned k = n > 0 ? p[0] : 0;
	int rc = 0;

	if (n > 0)
		p++, n--;
	part = fuzz_part(p, n, 0, &bytes);
	where = fuzz_string(part, bytes);
	part = fuzz_part(p, n, 1, &bytes);
	if (bytes > 0)
		o.scores = fuzz_put(name[k % 4], part, bytes);
	o.join_by_row = k >> 2 & 1;
	o.mpcf = (int)(k >> 3 & 3);
	o.drop_ties = k >> 5 & 1;
	if (where[0] != '\0')
		o.where = where;
	if (o.where == NULL || !greedy(where)) {
		rc = lpo_filter_open(c, &f, &o);
		if (rc == 0)
			rc = through(c, f);
		lpo_filter_close(f);
	}
	free(where);
	return fuzz_end(rc, (16 << 20) + 2048 * n);
}
