/*
 * What libpng calls back in a reader and in a writer: errors jump, warnings
 * are dropped, memory is the library's.
 */
#ifndef LPO_IO_PNG_PRIV_H
#define LPO_IO_PNG_PRIV_H

#include <setjmp.h>
#include <stdio.h>

#include <png.h>

#include "lib/base/ctx.h"

/* What libpng's three pointers lead to: the first member of a job. */
struct png_job {
	jmp_buf jump;
	char text[200];		/* the error's */
	lpo_ctx *c;
	int nomem;
};

static inline void
on_error(png_structp png, png_const_charp text)
{
	struct png_job *j = png_get_error_ptr(png);

	snprintf(j->text, sizeof(j->text), "%s", text);
	longjmp(j->jump, 1);
}

static inline void
on_warning(png_structp png, png_const_charp text)
{
	(void)png;
	(void)text;
}

static inline png_voidp
on_malloc(png_structp png, png_alloc_size_t n)
{
	struct png_job *j = png_get_mem_ptr(png);
	void *p = lpo_alloc(j->c, 1, n);

	j->nomem |= p == NULL;
	return p;
}

static inline void
on_free(png_structp png, png_voidp p)
{
	(void)png;
	lpo_free(p);
}

#endif
