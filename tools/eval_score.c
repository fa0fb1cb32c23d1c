/* lpo-eval: scorers on a tar of pictures. */
#include <stdio.h>
#include <string.h>

#include "tools/eval.h"

int
eval_scorer(lpo_cli *cli, const char *spec, char **name, const char **command)
{
	const char *eq = strchr(spec, '=');
	size_t i;

	if (eq == NULL || eq == spec || eq[1] == '\0')
		return lpo_cli_usage(cli, "bad --scorer '%s': want NAME=CMD",
		    spec);
	*name = lpo_strdup(cli->ctx, spec);
	if (*name == NULL)
		return LPO_ENOMEM;
	(*name)[eq - spec] = '\0';
	for (i = 0; (*name)[i] != '\0'; i++)
		if (strchr(".:\t ", (*name)[i]) != NULL) {
			lpo_free(*name);
			*name = NULL;
			return lpo_cli_usage(cli, "--scorer '%s': no '.', ':' "
			    "or blank in a scorer's name", spec);
		}
	*command = eq + 1;
	return 0;
}

int
eval_scorers_check(lpo_cli *cli, const struct lpo_cli_list *l)
{
	const char *command;
	char *name;
	size_t n;
	int i, k, rc;

	if (l->n == 0)
		return lpo_cli_usage(cli, "--scorer NAME=CMD is needed");
	for (i = 0; i < l->n; i++) {
		if ((rc = eval_scorer(cli, l->v[i], &name, &command)) != 0)
			return rc;
		lpo_free(name);
		n = (size_t)(command - l->v[i]);
		for (k = 0; k < i; k++)
			if (strncmp(l->v[k], l->v[i], n) == 0)
				return lpo_cli_usage(cli, "--scorer: two are "
				    "called '%.*s'", (int)n - 1, l->v[i]);
	}
	return 0;
}

/* Columns of b after those of a; b is emptied. */
static int
append(lpo_ctx *c, struct lpo_scores *a, struct lpo_scores *b)
{
	struct lpo_scores both;
	const char **names;
	int64_t i, k, total = a->names + b->names;
	int rc = LPO_ENOMEM;

	if (a->name == NULL) {
		*a = *b;
		memset(b, 0, sizeof(*b));
		return 0;
	}
	names = lpo_alloc(c, (size_t)total, sizeof(*names));
	if (names == NULL)
		return LPO_ENOMEM;
	for (k = 0; k < total; k++)
		names[k] = k < a->names ? a->name[k] : b->name[k - a->names];
	if ((rc = lpo_scores_new(c, &both, names, total, a->n)) == 0) {
		for (i = 0; i < a->n; i++) {
			memcpy(both.value + i * total, a->value + i *
			    a->names, (size_t)a->names * sizeof(double));
			memcpy(both.value + i * total + a->names, b->value +
			    i * b->names, (size_t)b->names * sizeof(double));
		}
		lpo_scores_free(a);
		*a = both;
	}
	lpo_free(names);
	lpo_scores_free(b);
	return rc;
}

int
eval_score_tar(lpo_cli *cli, const struct lpo_cli_list *scorers,
    struct lpo_scores *out, const char *tar, const char *const *key,
    int64_t n)
{
	struct lpo_scores one;
	const char *command;
	char *name = NULL;
	int i, rc = 0;

	memset(out, 0, sizeof(*out));
	for (i = 0; i < scorers->n && rc == 0; i++) {
		if ((rc = eval_scorer(cli, scorers->v[i], &name,
		    &command)) != 0)
			break;
		fflush(NULL);	/* the child must not print it again */
		rc = lpo_score_external(cli->ctx, &one, name, command, tar,
		    key, n);
		if (rc == 0)
			rc = append(cli->ctx, out, &one);
		lpo_free(name);
		name = NULL;
	}
	if (rc != 0)
		lpo_scores_free(out);
	return rc;
}
