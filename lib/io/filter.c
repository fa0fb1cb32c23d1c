/*
 * The stages of a filter in their order: scores joined, ties dropped, MPCF,
 * the user's SQL expression.
 */
#include "lib/io/filter.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/filter_priv.h"

enum { SCORES, TIES, MPCF, WHERE, N_STAGES };

struct lpo_filters {
	lpo_ctx *c;
	int mpcf;
	unsigned use;
	int drop_ties;
	struct lpo_score_file *scores;
	struct lpo_where *where;
	struct lpo_filter_stage stage[N_STAGES];
	int kind[N_STAGES];	/* SCORES … of stage i */
	int n;
	char mpcf_name[16];
};

static const struct criterion {
	const char *name;
	unsigned bit;
	double tie;		/* a tie's absolute gap is below this */
} criteria[] = {		/* method.md 2.2 */
	{ "aesthetic", LPO_MPCF_AESTHETIC, 0.2 },
	{ "clipscore", LPO_MPCF_CLIPSCORE, 0.03 },
	{ "vqascore", LPO_MPCF_VQASCORE, 0.07 }
};

/* The win-lose gap of the aesthetic score is above this, of others above 0. */
static const double aesthetic_limit[4] = { 0, 0, -0.5, -1 };

int
lpo_filter_name(lpo_ctx *c, int *mpcf, const char *name)
{
	static const char *const names[] = {
		"none", "mpcf1", "mpcf2", "mpcf3"
	};
	int i;

	for (i = 0; i < 4; i++)
		if (strcmp(names[i], name) == 0) {
			*mpcf = i;
			return 0;
		}
	return lpo_fail(c, LPO_EINVAL, "filter '%s' is none of none, mpcf1, "
	    "mpcf2, mpcf3", name);
}

int
lpo_filter_use(lpo_ctx *c, unsigned *use, const char *list)
{
	const char *p = list;
	size_t n, i;

	*use = 0;
	while (*p != '\0') {
		n = strcspn(p, ",");
		for (i = 0; i < 3; i++)
			if (strlen(criteria[i].name) == n &&
			    strncmp(criteria[i].name, p, n) == 0)
				break;
		if (i == 3)
			return lpo_fail(c, LPO_EINVAL, "criterion '%.*s' is "
			    "none of aesthetic, clipscore, vqascore", (int)n,
			    p);
		*use |= criteria[i].bit;
		p += n + (p[n] == ',');
	}
	if (*use == 0)
		return lpo_fail(c, LPO_EINVAL, "no criterion is left");
	return 0;
}

static void
add_stage(lpo_filters *f, int kind, const char *name)
{
	f->kind[f->n] = kind;
	f->stage[f->n++].name = name;
}

int
lpo_filter_open(lpo_ctx *c, lpo_filters **out,
    const struct lpo_filter_options *o)
{
	lpo_filters *f;
	int rc = 0;
	size_t i;

	*out = NULL;
	if (o->mpcf < 0 || o->mpcf > 3)
		return lpo_fail(c, LPO_EINVAL, "no filter mpcf%d", o->mpcf);
	if ((f = lpo_alloc(c, 1, sizeof(*f))) == NULL)
		return LPO_ENOMEM;
	f->c = c;
	f->mpcf = o->mpcf;
	f->use = o->mpcf_use ? o->mpcf_use : LPO_MPCF_ALL;
	f->drop_ties = o->drop_ties;
	if (o->scores != NULL) {
		rc = lpo_score_file_open(c, &f->scores, o->scores,
		    o->join_by_row);
		add_stage(f, SCORES, "scores");
	}
	if (o->drop_ties)
		add_stage(f, TIES, "drop-ties");
	if (o->mpcf > 0) {
		snprintf(f->mpcf_name, sizeof(f->mpcf_name), "mpcf%d",
		    o->mpcf);
		add_stage(f, MPCF, f->mpcf_name);
		for (i = 0; i < 3; i++)
			if (!(f->use & criteria[i].bit))
				lpo_notice(c, "%s: the criterion '%s' is not "
				    "used", f->mpcf_name, criteria[i].name);
	}
	if (rc == 0 && o->where != NULL) {
		rc = lpo_where_open(c, &f->where, o->where);
		add_stage(f, WHERE, "where");
	}
	if (rc != 0) {
		lpo_filter_close(f);
		return rc;
	}
	*out = f;
	return 0;
}

void
lpo_filter_close(lpo_filters *f)
{
	if (f == NULL)
		return;
	lpo_score_file_close(f->scores);
	lpo_where_close(f->where);
	lpo_free(f);
}

int
lpo_filter_rows(lpo_filters *f, int64_t n_rows)
{
	return f->scores == NULL ? 0 : lpo_score_file_rows(f->scores, n_rows);
}

/* A number of the record; 1: there is no such column. */
static int
number(lpo_ctx *c, double *x, const struct lpo_record *r, const char *name)
{
	const json_t *v = json_object_get(r->extra, name);

	if (v == NULL)
		return 1;
	if (!json_is_number(v) || !isfinite(json_number_value(v)))
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not a number", name);
	*x = json_number_value(v);
	return 0;
}

/* score(preferred) - score(other), from the images' own scores. */
static int
image_gap(lpo_ctx *c, double *out, const struct lpo_record *r,
    const char *name)
{
	double s[2] = { 0, 0 };
	char column[32];
	int k, rc;

	for (k = 0; k < 2; k++) {
		snprintf(column, sizeof(column), "%s_%d", name, k);
		if ((rc = number(c, &s[k], r, column)) < 0)
			return rc;
		if (rc == 1)
			return lpo_fail(c, LPO_EFORMAT, "no column '%s_gap', "
			    "nor '%s_0' and '%s_1' (--mpcf-use drops a "
			    "criterion)", name, name, name);
	}
	*out = r->label_0 > r->label_1 ? s[0] - s[1] : s[1] - s[0];
	return 0;
}

/* Of a tie the absolute gap, whichever way it was written. */
static int
gap(lpo_ctx *c, double *out, const struct lpo_record *r, const char *name)
{
	char column[32];
	int rc;

	*out = 0;
	snprintf(column, sizeof(column), "%s_gap", name);
	if ((rc = number(c, out, r, column)) == 1)
		rc = image_gap(c, out, r, name);
	if (lpo_record_is_tie(r))
		*out = fabs(*out);
	return rc;
}

static int
mpcf(lpo_filters *f, int *keep, const struct lpo_record *r)
{
	int tie = lpo_record_is_tie(r), rc;
	double x = 0, limit;
	size_t i;

	*keep = 1;
	for (i = 0; i < 3; i++) {
		if (!(f->use & criteria[i].bit))
			continue;
		if ((rc = gap(f->c, &x, r, criteria[i].name)) != 0)
			return rc;
		limit = i == 0 ? aesthetic_limit[f->mpcf] : 0;
		if (tie ? !(x < criteria[i].tie) : !(x > limit))
			*keep = 0;	/* go on: a missing column shows */
	}
	return 0;
}

int
lpo_filter_keep(lpo_filters *f, int *keep, struct lpo_record *r)
{
	int i, rc = 0, tie = lpo_record_is_tie(r);

	*keep = 1;
	for (i = 0; i < f->n && *keep; i++) {
		switch (f->kind[i]) {
		case SCORES:
			rc = lpo_score_file_join(f->scores, r);
			break;
		case TIES:
			*keep = !tie;
			break;
		case MPCF:
			rc = mpcf(f, keep, r);
			break;
		default:
			rc = lpo_where_test(f->where, keep, r);
		}
		if (rc != 0) {
			*keep = 0;
			lpo_fail_prefix(f->c, "row %lld", (long long)r->row);
			return rc;
		}
		f->stage[i].pairs_in++;
		f->stage[i].ties_in += tie;
		f->stage[i].pairs_out += *keep;
		f->stage[i].ties_out += tie && *keep;
	}
	return 0;
}

int
lpo_filter_stages(const lpo_filters *f)
{
	return f->n;
}

const struct lpo_filter_stage *
lpo_filter_stage_at(const lpo_filters *f, int i)
{
	return i >= 0 && i < f->n ? &f->stage[i] : NULL;
}
