/*
 * The report: one self-contained HTML file.  The page's own text, style and
 * script are report.html beside this file; here the data are put into it.
 */
#ifndef LPO_SCORE_REPORT_H
#define LPO_SCORE_REPORT_H

#include <jansson.h>

#include "lib/base/ctx.h"

/*
 * Write `data` into the page and the page to `path`, atomically.  The members
 * of data:
 *
 *	title, generator, run		strings
 *	prompts, per_prompt		numbers
 *	systems [{name, model, lora}]	the first is the one compared with
 *	scorers [name]
 *	results [{scorer, system, mean_base, mean, difference [3], win [3]}]
 *	items [{prompt, images [data URL], scores [[per scorer] per system]}]
 *	curves [{tool, name, points [[step, value]]}]
 *	commands [{argv, run, inputs [{role, path, sha256}]}]
 */
int	 lpo_report_write(lpo_ctx *, const char *path, const json_t *data);

/* "data:image/png;base64,...": lpo_free() it. */
char	*lpo_report_data_url(lpo_ctx *, const char *type, const void *bytes,
	    size_t n);

#endif
