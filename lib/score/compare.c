/* Paired comparisons of systems. */
#include "lib/score/compare.h"

#include <string.h>

static int
same_tables(lpo_ctx *c, const struct lpo_scores *s, int64_t systems)
{
	int64_t i, k;

	for (i = 1; i < systems; i++) {
		if (s[i].n != s[0].n || s[i].names != s[0].names)
			return lpo_fail(c, LPO_EFORMAT, "systems were scored "
			    "on %lld and %lld images", (long long)s[0].n,
			    (long long)s[i].n);
		for (k = 0; k < s[0].names; k++)
			if (strcmp(s[i].name[k], s[0].name[k]) != 0)
				return lpo_fail(c, LPO_EFORMAT, "scores '%s' "
				    "and '%s' do not match", s[0].name[k],
				    s[i].name[k]);
	}
	return 0;
}

/* Column k as an array of its own; its mean. */
static double
column(double *out, const struct lpo_scores *s, int64_t k)
{
	double sum = 0;
	int64_t i;

	for (i = 0; i < s->n; i++)
		sum += out[i] = s->value[i * s->names + k];
	return sum / (double)s->n;
}

int
lpo_compare(lpo_ctx *c, struct lpo_comparison **out, int64_t *n,
    const struct lpo_scores *s, int64_t systems, const int64_t *first,
    int64_t prompts, int64_t resamples, uint64_t seed)
{
	double *a = NULL, *b = NULL, *diff = NULL, *win = NULL;
	double *weight = NULL;
	struct lpo_comparison *list = NULL, *v;
	int64_t i, k;
	int rc;

	*out = NULL;
	*n = 0;
	if ((rc = same_tables(c, s, systems)) < 0)
		return rc;
	rc = LPO_ENOMEM;
	a = lpo_alloc(c, (size_t)s->n + 1, sizeof(*a));
	b = lpo_alloc(c, (size_t)s->n + 1, sizeof(*b));
	diff = lpo_alloc(c, (size_t)prompts + 1, sizeof(*diff));
	win = lpo_alloc(c, (size_t)prompts + 1, sizeof(*win));
	weight = lpo_alloc(c, (size_t)prompts + 1, sizeof(*weight));
	list = lpo_alloc(c, (size_t)((systems - 1) * s->names) + 1,
	    sizeof(*list));
	if (a == NULL || b == NULL || diff == NULL || win == NULL ||
	    weight == NULL || list == NULL)
		goto out;
	/* by its pictures, so that the difference is that of the means */
	for (i = 0; i < prompts; i++)
		weight[i] = (double)(first[i + 1] - first[i]);
	for (k = 0; k < s->names; k++)
		for (i = 1; i < systems; i++) {
			v = &list[(*n)++];
			v->scorer = s->name[k];
			v->system = i;
			v->mean_base = column(b, &s[0], k);
			v->mean = column(a, &s[i], k);
			lpo_paired(diff, win, a, b, first, prompts);
			if ((rc = lpo_bootstrap(c, &v->difference, diff,
			    weight, prompts, resamples, seed, 0)) < 0 ||
			    (rc = lpo_bootstrap(c, &v->win, win, weight,
			    prompts, resamples, seed, 0)) < 0)
				goto out;
		}
	rc = 0;
	*out = list;
	list = NULL;
out:
	lpo_free(a);
	lpo_free(b);
	lpo_free(diff);
	lpo_free(win);
	lpo_free(weight);
	lpo_free(list);
	return rc;
}
