/* Tables of scores. */
#include "lib/score/scores.h"

#include <string.h>

int
lpo_scores_new(lpo_ctx *c, struct lpo_scores *s, const char *const *name,
    int64_t names, int64_t n)
{
	int64_t i;

	memset(s, 0, sizeof(*s));
	s->names = names;
	s->n = n;
	s->name = lpo_alloc(c, (size_t)names + 1, sizeof(*s->name));
	s->value = lpo_alloc(c, (size_t)(names * n) + 1, sizeof(*s->value));
	if (s->name == NULL || s->value == NULL) {
		lpo_scores_free(s);
		return LPO_ENOMEM;
	}
	for (i = 0; i < names; i++)
		if ((s->name[i] = lpo_strdup(c, name[i])) == NULL) {
			lpo_scores_free(s);
			return LPO_ENOMEM;
		}
	return 0;
}

void
lpo_scores_free(struct lpo_scores *s)
{
	int64_t i;

	for (i = 0; s->name != NULL && i < s->names; i++)
		lpo_free(s->name[i]);
	lpo_free(s->name);
	lpo_free(s->value);
	memset(s, 0, sizeof(*s));
}

int
lpo_scores_append(lpo_ctx *c, struct lpo_scores *a,
    const struct lpo_scores *b, int64_t first, int64_t count)
{
	int64_t i, k, had = a->names, total = had + count;
	struct lpo_scores both;
	const char **names;
	int rc;

	names = lpo_alloc(c, (size_t)total + 1, sizeof(*names));
	if (names == NULL)
		return LPO_ENOMEM;
	for (k = 0; k < total; k++)
		names[k] = k < had ? a->name[k] : b->name[first + k - had];
	if ((rc = lpo_scores_new(c, &both, names, total, b->n)) == 0) {
		for (i = 0; i < b->n; i++) {
			if (had > 0)
				memcpy(both.value + i * total, a->value +
				    i * had, (size_t)had * sizeof(double));
			memcpy(both.value + i * total + had, b->value +
			    i * b->names + first, (size_t)count *
			    sizeof(double));
		}
		lpo_scores_free(a);
		*a = both;
	}
	lpo_free(names);
	return rc;
}
