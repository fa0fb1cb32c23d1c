/* Lists of prompts. */
#include "lib/io/prompts.h"

#include <string.h>

#include "lib/io/csv.h"

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
	lpo_table *t = NULL;
	const char *text;
	int rc;

	memset(p, 0, sizeof(*p));
	if ((rc = lpo_table_open(c, &t, path, LPO_TABLE_AUTO)) < 0)
		goto out;
	while ((rc = lpo_table_next(t)) == 0) {
		text = lpo_table_field(t, "prompt");
		if (text == NULL)
			text = lpo_table_field(t, "caption");
		if (text == NULL) {
			rc = lpo_fail(c, LPO_EFORMAT, "%s:%lld: no column "
			    "'prompt' or 'caption'", path,
			    (long long)lpo_table_line(t));
			goto out;
		}
		if ((rc = add(c, p, text)) < 0)
			goto out;
	}
	if (rc < 0)
		goto out;
	rc = p->n > 0 ? 0 : lpo_fail(c, LPO_EFORMAT, "'%s' has no prompts",
	    path);
out:
	lpo_table_close(t);
	if (rc < 0)
		lpo_prompts_free(p);
	return rc;
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
