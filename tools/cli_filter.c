/* Options of the filters that lpo-encode and lpo-pairs share. */
#include "tools/cli_filter.h"

int
lpo_cli_filter_open(lpo_cli *cli, lpo_filters **out,
    const struct lpo_cli_filter *f)
{
	struct lpo_filter_options o = { .where = f->where,
	    .scores = f->scores, .join_by_row = f->join_by_row,
	    .drop_ties = f->drop_ties };
	int rc;

	*out = NULL;
	if ((f->filter != NULL &&
	    lpo_filter_name(cli->ctx, &o.mpcf, f->filter) != 0) ||
	    (f->mpcf_use != NULL &&
	    lpo_filter_use(cli->ctx, &o.mpcf_use, f->mpcf_use) != 0))
		return lpo_cli_usage(cli, "%s", lpo_errmsg(cli->ctx));
	if (f->mpcf_use != NULL && o.mpcf == 0)
		return lpo_cli_usage(cli, "--mpcf-use needs --filter");
	if (f->join_by_row && f->scores == NULL)
		return lpo_cli_usage(cli, "--join-by-row needs --scores");
	if (f->scores != NULL && (rc = lpo_cli_input_file(cli, "scores",
	    f->scores)) != 0)
		return rc;
	return lpo_filter_open(cli->ctx, out, &o);
}
