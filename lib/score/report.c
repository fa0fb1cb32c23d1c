/* The report's data put into its page. */
#include "lib/score/report.h"

#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"

extern const char lpo_page_report[];	/* report.html, by the Makefile */

/*
 * JSON inside a script element: "</" must not appear, nor "<!--"; both are
 * kept by writing '<' as its escape.
 */
static int
write_json(lpo_out *o, const char *text)
{
	const char *lt;
	int rc = 0;

	while (rc == 0 && (lt = strchr(text, '<')) != NULL) {
		if ((rc = lpo_out_write(o, text, (size_t)(lt - text))) == 0)
			rc = lpo_out_write(o, "\\u003c", 6);
		text = lt + 1;
	}
	return rc < 0 ? rc : lpo_out_write(o, text, strlen(text));
}

int
lpo_report_write(lpo_ctx *c, const char *path, const json_t *data)
{
	static const char mark[] = "@DATA@";
	const char *at = strstr(lpo_page_report, mark);
	char *text = NULL;
	lpo_out *o = NULL;
	int rc;

	if ((text = lpo_json_dumps(c, data)) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_out_open(c, &o, path)) < 0 ||
	    (rc = lpo_out_write(o, lpo_page_report,
	    (size_t)(at - lpo_page_report))) < 0 ||
	    (rc = write_json(o, text)) < 0 ||
	    (rc = lpo_out_write(o, at + sizeof(mark) - 1,
	    strlen(at + sizeof(mark) - 1))) < 0) {
		lpo_out_abort(o);
		goto out;
	}
	rc = lpo_out_commit(o);
out:
	lpo_free(text);
	return rc;
}

char *
lpo_report_data_url(lpo_ctx *c, const char *type, const void *bytes, size_t n)
{
	static const char code[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	    "abcdefghijklmnopqrstuvwxyz0123456789+/";
	const unsigned char *b = bytes;
	size_t head = strlen(type) + 13, i, left;
	char *url = lpo_alloc(c, head + (n + 2) / 3 * 4 + 1, 1), *p;
	uint32_t v;

	if (url == NULL)
		return NULL;
	p = url + strlen("data:");
	memcpy(url, "data:", 5);
	memcpy(p, type, strlen(type));
	p += strlen(type);
	memcpy(p, ";base64,", 8);
	p += 8;
	for (i = 0; i < n; i += 3) {
		left = n - i;
		v = (uint32_t)b[i] << 16 | (left > 1 ? b[i + 1] << 8 : 0) |
		    (left > 2 ? b[i + 2] : 0);
		*p++ = code[v >> 18];
		*p++ = code[v >> 12 & 63];
		*p++ = left > 1 ? code[v >> 6 & 63] : '=';
		*p++ = left > 2 ? code[v & 63] : '=';
	}
	return url;
}
