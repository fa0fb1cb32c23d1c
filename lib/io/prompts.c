/* Lists of prompts. */
#include "lib/io/prompts.h"

#include <string.h>

#include "lib/base/hash.h"
#include "lib/io/table.h"

static int
no_column(lpo_ctx *c, const lpo_table *t, int64_t line)
{
	return lpo_fail(c, LPO_EFORMAT, "%s:%lld: no column 'prompt' or "
	    "'caption'", lpo_table_path(t), (long long)line);
}

static int
add(lpo_ctx *c, struct lpo_prompts *p, const char *text)
{
	int64_t cap;
	char **list;

	if (p->n == p->cap) {
		cap = p->cap ? 2 * p->cap : 256;
		list = lpo_realloc(c, p->text, (size_t)cap * sizeof(*list));
		if (list == NULL)
			return LPO_ENOMEM;
		p->text = list;
		p->cap = cap;
	}
	if ((p->text[p->n] = lpo_strdup(c, text)) == NULL)
		return LPO_ENOMEM;
	p->n++;
	return 0;
}

int
lpo_prompts_read(lpo_ctx *c, struct lpo_prompts *p, const char *path)
{
	int64_t empty = 0, first = 0;
	lpo_table *t = NULL;
	const char *text;
	int column, rc;

	memset(p, 0, sizeof(*p));
	if ((rc = lpo_table_open(c, &t, path, LPO_TABLE_AUTO)) < 0)
		goto out;
	while ((rc = lpo_table_next(t)) == 0) {
		column = lpo_table_find(t, "prompt");
		if (lpo_table_get(t, column) == NULL)
			column = lpo_table_find(t, "caption");
		if ((text = lpo_table_get(t, column)) == NULL) {
			rc = no_column(c, t, lpo_table_line(t));
			goto out;
		}
		if (lpo_table_nested(t, column)) {
			rc = lpo_fail(c, LPO_EFORMAT, "%s:%lld: the prompt is "
			    "a list or an object, not a text",
			    lpo_table_path(t), (long long)lpo_table_line(t));
			goto out;
		}
		if ((rc = add(c, p, text)) < 0)
			goto out;
		if (text[0] == '\0' && empty++ == 0)
			first = lpo_table_line(t);
	}
	if (rc < 0)
		goto out;
	if (empty > 0)
		lpo_notice(c, "%s:%lld: an empty prompt, %lld in all",
		    lpo_table_path(t), (long long)first, (long long)empty);
	/* a single prompt where a table should be is its header */
	rc = p->n > 0 ? 0 : lpo_table_columns(t) > 0 &&
	    lpo_table_find(t, "prompt") < 0 &&
	    lpo_table_find(t, "caption") < 0 ? no_column(c, t, 1) :
	    lpo_fail(c, LPO_EFORMAT, "'%s' has no prompts",
	    lpo_table_path(t));
out:
	lpo_table_close(t);
	if (rc < 0)
		lpo_prompts_free(p);
	return rc;
}

void
lpo_prompts_sha256(const struct lpo_prompts *p, char hex[65])
{
	struct lpo_sha256 h;
	int64_t i;

	lpo_sha256_init(&h);
	for (i = 0; i < p->n; i++)
		lpo_sha256_update(&h, p->text[i], strlen(p->text[i]) + 1);
	lpo_sha256_hex(&h, hex);
}

void
lpo_prompts_free(struct lpo_prompts *p)
{
	int64_t i;

	for (i = 0; i < p->n; i++)
		lpo_free(p->text[i]);
	lpo_free(p->text);
	memset(p, 0, sizeof(*p));
}
