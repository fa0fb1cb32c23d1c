/*
 * PNG writing by libpng into memory.
 */
#include <string.h>

#include <utf8proc.h>

#include "lib/io/png.h"
#include "lib/io/png_priv.h"

/* Fixed, so that the bytes are: zlib's own default and all five filters. */
#define LEVEL 6

struct job {
	struct png_job base;	/* first */
	uint8_t *data;
	size_t bytes, room;
	png_structp png;
	png_infop info;
	png_textp texts;
};

static void
on_write(png_structp png, png_bytep from, size_t n)
{
	struct job *j = png_get_io_ptr(png);
	size_t room = j->room;
	uint8_t *p;

	if (n > SIZE_MAX / 4 - j->bytes)
		png_error(png, "file too large");
	while (room < j->bytes + n)
		room = room ? room * 2 : 1 << 16;
	if (room != j->room) {
		p = lpo_realloc(j->base.c, j->data, room);
		if (p == NULL) {
			j->base.nomem = 1;
			png_error(png, "out of memory");
		}
		j->data = p;
		j->room = room;
	}
	memcpy(j->data + j->bytes, from, n);
	j->bytes += n;
}

static void
on_flush(png_structp png)
{
	(void)png;
}

/* PNG's rule: 1..79 printable bytes, no space at an end or twice in a row. */
static int
keyword_ok(const char *k)
{
	size_t i, n = strlen(k);

	if (n < 1 || n > 79 || k[0] == ' ' || k[n - 1] == ' ')
		return 0;
	for (i = 0; i < n; i++)
		if (k[i] < 0x20 || k[i] > 0x7e ||
		    (k[i] == ' ' && k[i + 1] == ' '))
			return 0;
	return 1;
}

/* 1 ASCII, 0 other UTF-8, -1 neither */
static int
text_kind(const char *s)
{
	utf8proc_ssize_t n, left = (utf8proc_ssize_t)strlen(s);
	utf8proc_int32_t cp;
	int ascii = 1;

	for (; left > 0; s += n, left -= n) {
		n = utf8proc_iterate((const utf8proc_uint8_t *)s, left, &cp);
		if (n < 1)
			return -1;
		ascii &= cp < 0x80;
	}
	return ascii;
}

static int
make_texts(struct job *j, const struct lpo_png_text *texts, int count)
{
	static char empty[1];
	int i, kind;

	if (count == 0)
		return 0;
	j->texts = lpo_alloc(j->base.c, (size_t)count, sizeof(*j->texts));
	if (j->texts == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < count; i++) {
		kind = text_kind(texts[i].text);
		if (!keyword_ok(texts[i].keyword))
			return lpo_fail(j->base.c, LPO_EINVAL,
			    "'%s' cannot be a keyword in a PNG",
			    texts[i].keyword);
		if (kind < 0)
			return lpo_fail(j->base.c, LPO_EINVAL,
			    "text '%s' of a PNG is not UTF-8",
			    texts[i].keyword);
		j->texts[i].compression = kind ? PNG_TEXT_COMPRESSION_NONE :
		    PNG_ITXT_COMPRESSION_NONE;
		/* libpng copies both and writes to neither. */
		j->texts[i].key = (png_charp)(uintptr_t)texts[i].keyword;
		j->texts[i].text = (png_charp)(uintptr_t)texts[i].text;
		if (kind)
			j->texts[i].text_length = strlen(texts[i].text);
		else
			j->texts[i].itxt_length = strlen(texts[i].text);
		j->texts[i].lang = empty;
		j->texts[i].lang_key = empty;
	}
	return 0;
}

/* Everything libpng may jump out of; it changes no local after setjmp(). */
static int
encode(struct job *j, const uint8_t *rgb, int64_t w, int64_t h, int count)
{
	int64_t y;

	if (setjmp(j->base.jump))
		return lpo_fail(j->base.c, j->base.nomem ? LPO_ENOMEM :
		    LPO_EINVAL, "cannot write a PNG: %s", j->base.text);
	j->png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, j, on_error,
	    on_warning, j, on_malloc, on_free);
	if (j->png == NULL)
		return lpo_fail(j->base.c, LPO_ENOMEM, "cannot start libpng");
	j->info = png_create_info_struct(j->png);
	if (j->info == NULL)
		return lpo_fail(j->base.c, LPO_ENOMEM, "cannot start libpng");
	png_set_write_fn(j->png, j, on_write, on_flush);
	png_set_user_limits(j->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
	png_set_compression_level(j->png, LEVEL);
	png_set_compression_mem_level(j->png, 8);
	png_set_compression_strategy(j->png, 1 /* Z_FILTERED */);
	png_set_filter(j->png, PNG_FILTER_TYPE_BASE, PNG_ALL_FILTERS);
	png_set_IHDR(j->png, j->info, (png_uint_32)w, (png_uint_32)h, 8,
	    PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_BASE,
	    PNG_FILTER_TYPE_BASE);
	if (count > 0)
		png_set_text(j->png, j->info, j->texts, count);
	png_write_info(j->png, j->info);
	for (y = 0; y < h; y++)
		png_write_row(j->png, rgb + y * w * 3);
	png_write_end(j->png, NULL);
	return 0;
}

int
lpo_png_encode(lpo_ctx *c, uint8_t **out, size_t *bytes, const uint8_t *rgb,
    int64_t w, int64_t h, const struct lpo_png_text *texts, int count)
{
	struct job j;
	int err;

	*out = NULL;
	*bytes = 0;
	if (w < 1 || h < 1 || w > INT32_MAX / 8 || h > INT32_MAX / 8)
		return lpo_fail(c, LPO_EINVAL, "a PNG cannot have %lld x "
		    "%lld pixels", (long long)w, (long long)h);
	memset(&j, 0, sizeof(j));
	j.base.c = c;
	err = make_texts(&j, texts, count);
	if (err == 0)
		err = encode(&j, rgb, w, h, count);
	png_destroy_write_struct(&j.png, &j.info);
	lpo_free(j.texts);
	if (err != 0) {
		lpo_free(j.data);
		return err;
	}
	*out = j.data;
	*bytes = j.bytes;
	return 0;
}
