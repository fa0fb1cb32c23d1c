/* The table of built-in scorers, and one way over the pictures for all. */
#include "lib/score/scorer.h"

#include <math.h>
#include <string.h>

#include <omp.h>

#include "lib/score/embedder.h"

/* The table: a line each, lpo_scorer_NAME being the class in its file. */
#define SCORERS(ONE) \
	ONE(clip) \
	ONE(aesthetic) \
	ONE(lrm)

#define DECLARE(name) extern const struct lpo_scorer_class lpo_scorer_##name;
#define ENTRY(name) &lpo_scorer_##name,

SCORERS(DECLARE)

static const struct lpo_scorer_class *const classes[] = {
	SCORERS(ENTRY) NULL
};

struct scorer {
	const struct lpo_scorer_class *cls;
	char *name;
	void *self;
	int64_t first, columns;		/* in the table */
};

struct lpo_scorers {
	lpo_ctx *ctx;
	struct lpo_scorer_opts o;
	struct scorer *s;
	lpo_embedder **eye;
	int n, eyes;
	int64_t columns;
	lpo_ctx **worker;		/* a context for each thread */
	int workers;
};

const struct lpo_scorer_class *
lpo_scorer_at(int i)
{
	return classes[i];
}

const struct lpo_scorer_class *
lpo_scorer_find(const char *spec, const char **arg)
{
	size_t n = strcspn(spec, ":");
	int i;

	for (i = 0; spec[n] == ':' && classes[i] != NULL; i++)
		if (strlen(classes[i]->kind) == n &&
		    strncmp(classes[i]->kind, spec, n) == 0) {
			*arg = spec + n + 1;
			return classes[i];
		}
	return NULL;
}

int
lpo_scorers_new(lpo_ctx *c, lpo_scorers **out, const struct lpo_scorer_opts *o)
{
	lpo_scorers *s = lpo_alloc(c, 1, sizeof(*s));
	int i;

	*out = NULL;
	if (s == NULL)
		return LPO_ENOMEM;
	s->ctx = c;
	s->o = *o;
	s->workers = omp_get_max_threads();
	s->worker = lpo_alloc(c, (size_t)s->workers, sizeof(*s->worker));
	for (i = 0; s->worker != NULL && i < s->workers; i++)
		if ((s->worker[i] = lpo_ctx_new()) == NULL)
			break;
	if (s->worker == NULL || i < s->workers) {
		lpo_scorers_free(s);
		return lpo_fail(c, LPO_ENOMEM, "out of memory");
	}
	*out = s;
	return 0;
}

void
lpo_scorers_free(lpo_scorers *s)
{
	int i;

	if (s == NULL)
		return;
	for (i = 0; i < s->n; i++) {
		s->s[i].cls->close(s->s[i].self);
		lpo_free(s->s[i].name);
	}
	for (i = 0; i < s->eyes; i++)
		lpo_embedder_close(s->eye[i]);
	for (i = 0; s->worker != NULL && i < s->workers; i++)
		lpo_ctx_free(s->worker[i]);
	lpo_free(s->worker);
	lpo_free(s->eye);
	lpo_free(s->s);
	lpo_free(s);
}

int
lpo_scorers_add(lpo_scorers *s, const char *name, const char *spec)
{
	const struct lpo_scorer_class *cls;
	const char *arg = NULL;
	struct scorer *v;
	int rc;

	if ((cls = lpo_scorer_find(spec, &arg)) == NULL)
		return lpo_fail(s->ctx, LPO_EINVAL, "'%s' is no built-in "
		    "scorer", spec);
	v = lpo_realloc(s->ctx, s->s, (size_t)(s->n + 1) * sizeof(*v));
	if (v == NULL)
		return LPO_ENOMEM;
	s->s = v;
	v += s->n;
	memset(v, 0, sizeof(*v));
	v->cls = cls;
	v->first = s->columns;
	while (cls->column[v->columns] != NULL)
		v->columns++;
	if ((v->name = lpo_strdup(s->ctx, name)) == NULL)
		return LPO_ENOMEM;
	s->n++;
	s->columns += v->columns;
	if ((rc = cls->open(s, &v->self, arg)) < 0)
		lpo_fail_prefix(s->ctx, "scorer '%s'", name);
	return rc;
}

int
lpo_scorers_count(const lpo_scorers *s)
{
	return s->n;
}

lpo_ctx *
lpo_scorers_ctx(const lpo_scorers *s)
{
	return s->ctx;
}

const struct lpo_scorer_opts *
lpo_scorers_opts(const lpo_scorers *s)
{
	return &s->o;
}

int
lpo_scorers_embedder(lpo_scorers *s, struct lpo_embedder **out,
    const char *dir)
{
	lpo_embedder **list;
	int i, rc;

	for (i = 0; i < s->eyes; i++)
		if (strcmp(lpo_embedder_dir(s->eye[i]), dir) == 0) {
			*out = s->eye[i];
			return 0;
		}
	list = lpo_realloc(s->ctx, s->eye, (size_t)(i + 1) * sizeof(*list));
	if (list == NULL)
		return LPO_ENOMEM;
	s->eye = list;
	if ((rc = lpo_embedder_open(s->ctx, out, &s->o, dir)) == 0)
		s->eye[s->eyes++] = *out;
	return rc;
}

/* --------------------------------------------------------------- a chunk */

struct chunk {
	lpo_scorers *s;
	const struct lpo_score_source *src;
	struct lpo_scores *out;
	struct lpo_score_item item[LPO_SCORER_SLOTS];
	int64_t index[LPO_SCORER_SLOTS];	/* pictures in the slots */
	char *error[LPO_SCORER_SLOTS];		/* why one is bad */
	int64_t n;
};

static void
item_clear(struct lpo_score_item *it)
{
	lpo_free(it->bytes);
	lpo_free(it->prompt);
	lpo_free(it->name);
	memset(it, 0, sizeof(*it));
}

/* Decoded, and given to all who keep pixels. */
static int
put_picture(struct chunk *k, lpo_ctx *c, int64_t slot)
{
	const struct lpo_score_item *it = &k->item[slot];
	lpo_scorers *s = k->s;
	struct lpo_image im;
	int i, rc;

	if ((rc = lpo_image_decode(c, &im, it->bytes, it->size, NULL)) < 0)
		return rc;
	for (i = 0; i < s->eyes && rc == 0; i++)
		rc = lpo_embedder_put(c, s->eye[i], slot, &im);
	for (i = 0; i < s->n && rc == 0; i++)
		if (s->s[i].cls->put != NULL)
			rc = s->s[i].cls->put(c, s->s[i].self, slot, &im);
	lpo_image_free(&im);
	return rc;
}

/* All pictures of the chunk in parallel; what is wrong with each. */
static int
put_pictures(struct chunk *k)
{
	int64_t i;
	int no_memory = 0;

#pragma omp parallel for schedule(dynamic) reduction(|:no_memory)
	for (i = 0; i < k->n; i++) {
		lpo_ctx *c = k->s->worker[omp_get_thread_num()];
		int rc = put_picture(k, c, i);

		if (rc == 0)
			continue;
		k->error[i] = lpo_strdup(c, lpo_errmsg(c));
		/* a full memory must not look like a bad picture */
		no_memory |= rc == LPO_ENOMEM || k->error[i] == NULL;
		lpo_clear(c);
	}
	return no_memory ? lpo_fail(k->s->ctx, LPO_ENOMEM, "out of memory "
	    "while decoding pictures") : 0;
}

/* A bad picture: left out, its scores NaN, or an error. */
static int
bad_picture(struct chunk *k, int64_t at, const char *why)
{
	double *v = k->out->value + at * k->out->names;
	int64_t i;

	for (i = 0; i < k->out->names; i++)
		v[i] = NAN;
	return k->src->bad(k->src->arg, at, why);
}

static int
check_scores(struct chunk *k, int64_t slot, const double *v)
{
	const struct lpo_scores *t = k->out;
	int64_t i;

	for (i = 0; i < t->names; i++)
		if (!isfinite(v[i]))
			return lpo_fail(k->s->ctx, LPO_EFORMAT, "'%s' of '%s' "
			    "is not a finite number", t->name[i],
			    k->item[slot].name);
	return 0;
}

static int
run_chunk(struct chunk *k)
{
	const char *prompt[LPO_SCORER_SLOTS];
	int64_t names = k->out->names, i;
	lpo_scorers *s = k->s;
	double *value;
	int j, rc;

	for (j = 0; j < s->eyes; j++)
		lpo_embedder_begin(s->eye[j]);
	if ((rc = put_pictures(k)) < 0)
		return rc;
	for (i = 0; i < k->n; i++) {
		prompt[i] = k->item[i].prompt;
		if (k->error[i] != NULL && k->src->bad == NULL)
			return lpo_fail(s->ctx, LPO_EFORMAT, "%s: %s",
			    k->item[i].name, k->error[i]);
	}
	value = lpo_alloc(s->ctx, (size_t)(LPO_SCORER_SLOTS * names),
	    sizeof(*value));
	if (value == NULL)
		return LPO_ENOMEM;
	for (j = 0; j < s->n && rc == 0; j++)
		if ((rc = s->s[j].cls->run(s->s[j].self, value +
		    s->s[j].first, names, prompt, k->n)) < 0)
			lpo_fail_prefix(s->ctx, "scorer '%s'", s->s[j].name);
	for (i = 0; i < k->n && rc == 0; i++)
		if (k->error[i] != NULL)
			rc = bad_picture(k, k->index[i], k->error[i]);
		else if ((rc = check_scores(k, i, value + i * names)) == 0)
			memcpy(k->out->value + k->index[i] * names, value +
			    i * names, (size_t)names * sizeof(*value));
	lpo_free(value);
	return rc;
}

static void
chunk_clear(struct chunk *k)
{
	int64_t i;

	for (i = 0; i < LPO_SCORER_SLOTS; i++) {
		item_clear(&k->item[i]);
		lpo_free(k->error[i]);
		k->error[i] = NULL;
	}
	k->n = 0;
}

/* ------------------------------------------------------------ all of them */

static int
new_table(lpo_scorers *s, struct lpo_scores *out, int64_t n)
{
	char **name = lpo_alloc(s->ctx, (size_t)s->columns + 1,
	    sizeof(*name));
	int64_t k;
	int i, rc = name == NULL ? LPO_ENOMEM : 0;

	for (i = 0; i < s->n && rc == 0; i++)
		for (k = 0; k < s->s[i].columns && rc == 0; k++)
			if ((name[s->s[i].first + k] = lpo_asprintf(s->ctx,
			    "%s.%s", s->s[i].name, s->s[i].cls->column[k])) ==
			    NULL)
				rc = LPO_ENOMEM;
	if (rc == 0)
		rc = lpo_scores_new(s->ctx, out, (const char *const *)name,
		    s->columns, n);
	for (k = 0; name != NULL && k < s->columns; k++)
		lpo_free(name[k]);
	lpo_free(name);
	return rc;
}

static int
take_picture(struct chunk *k, int64_t i)
{
	const struct lpo_score_source *src = k->src;
	lpo_ctx *c = k->s->ctx;
	char *why;
	int rc;

	k->index[k->n] = i;
	if ((rc = src->get(src->arg, i, &k->item[k->n])) == 0) {
		k->n++;
		return 0;
	}
	item_clear(&k->item[k->n]);
	if (src->bad == NULL || rc == LPO_ENOMEM || rc == LPO_EIO ||
	    rc == LPO_ESTOP)
		return rc;
	if ((why = lpo_strdup(c, lpo_errmsg(c))) == NULL)
		return LPO_ENOMEM;
	lpo_clear(c);
	rc = bad_picture(k, i, why);
	lpo_free(why);
	return rc;
}

int
lpo_scorers_run(lpo_scorers *s, struct lpo_scores *out,
    const struct lpo_score_source *src)
{
	struct chunk k = { .s = s, .src = src, .out = out };
	int64_t i;
	int rc;

	memset(out, 0, sizeof(*out));
	if ((rc = new_table(s, out, src->n)) < 0)
		return rc;
	for (i = 0; i < src->n && rc == 0; i++) {
		if (lpo_ctx_stopped(s->ctx)) {
			rc = lpo_fail(s->ctx, LPO_ESTOP, "stopped");
			break;
		}
		if ((rc = take_picture(&k, i)) < 0 ||
		    (k.n < LPO_SCORER_SLOTS && i + 1 < src->n))
			continue;
		rc = k.n > 0 ? run_chunk(&k) : 0;
		chunk_clear(&k);
		if (rc == 0 && src->progress != NULL)
			src->progress(src->arg, i + 1);
	}
	chunk_clear(&k);
	if (rc < 0)
		lpo_scores_free(out);
	return rc;
}
