/*
 * PNG by libpng.  Rows are unpacked into the result itself, as one or two
 * bytes a pixel at the row's start, and spread to RGB afterwards from the
 * right: interlaced files need no second picture.
 */
#include <string.h>

#include "lib/io/decode.h"
#include "lib/io/png_priv.h"

struct job {
	struct png_job base;	/* first */
	struct lpo_image *out;
	const uint8_t *data;
	size_t bytes, at;
	png_structp png;
	png_infop info;
	uint8_t palette[256][3];	/* beyond its end: black, as Pillow */
};

static void
on_read(png_structp png, png_bytep to, size_t n)
{
	struct job *j = png_get_io_ptr(png);

	if (n > j->bytes - j->at)
		png_error(png, "file is cut short");
	memcpy(to, j->data + j->at, n);
	j->at += n;
}

/*
 * Spread one row of w pixels to RGB in place.  grey_max: 1, 3, 15 or 255, or
 * 65535 for two big-endian bytes a pixel, which Pillow clips at 255 (its mode
 * I;16 keeps the number, not the brightness).
 */
static void
spread(uint8_t *row, int64_t w, int grey_max, uint8_t (*palette)[3])
{
	int64_t x;
	int v;

	for (x = w - 1; x >= 0; x--) {
		if (palette != NULL) {
			memcpy(row + 3 * x, palette[row[x]], 3);
			continue;
		}
		if (grey_max == 65535)
			v = row[2 * x] ? 255 : row[2 * x + 1];
		else
			v = row[x] * (255 / grey_max);
		memset(row + 3 * x, v, 3);
	}
}

static void
read_palette(struct job *j)
{
	png_colorp p;
	int i, n;

	if (!png_get_PLTE(j->png, j->info, &p, &n))
		return;
	for (i = 0; i < n && i < 256; i++) {
		j->palette[i][0] = p[i].red;
		j->palette[i][1] = p[i].green;
		j->palette[i][2] = p[i].blue;
	}
}

/*
 * What libpng is asked for: one byte a sample, unscaled; the high byte of 16
 * bits except in plain grey; no alpha; no gamma, no palette, no tRNS.
 */
static void
set_transforms(struct job *j)
{
	png_byte type = png_get_color_type(j->png, j->info);
	png_byte depth = png_get_bit_depth(j->png, j->info);

	if (depth < 8)
		png_set_packing(j->png);
	if (depth == 16 && type != PNG_COLOR_TYPE_GRAY)
		png_set_strip_16(j->png);
	if (type & PNG_COLOR_MASK_ALPHA)
		png_set_strip_alpha(j->png);
}

static void
read_pixels(struct job *j)
{
	png_byte type = png_get_color_type(j->png, j->info);
	png_byte depth = png_get_bit_depth(j->png, j->info);
	int64_t y, stride = j->out->w * 3;
	int pass, passes;

	set_transforms(j);
	passes = png_set_interlace_handling(j->png);
	png_read_update_info(j->png, j->info);
	for (pass = 0; pass < passes; pass++)
		for (y = 0; y < j->out->h; y++)
			png_read_row(j->png, j->out->rgb + y * stride, NULL);
	if (type & PNG_COLOR_MASK_COLOR && type != PNG_COLOR_TYPE_PALETTE)
		return;
	if (type == PNG_COLOR_TYPE_GRAY_ALPHA)
		depth = 8;
	for (y = 0; y < j->out->h; y++)
		spread(j->out->rgb + y * stride, j->out->w, (1 << depth) - 1,
		    type == PNG_COLOR_TYPE_PALETTE ? j->palette : NULL);
}

/* Everything libpng may jump out of; it changes no local after setjmp(). */
static int
decode(struct job *j, const struct lpo_image_opts *opts)
{
	int err;

	if (setjmp(j->base.jump))
		return lpo_fail(j->base.c, j->base.nomem ? LPO_ENOMEM :
		    LPO_EFORMAT, "damaged PNG: %s", j->base.text);
	j->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, j, on_error,
	    on_warning, j, on_malloc, on_free);
	if (j->png == NULL)
		return lpo_fail(j->base.c, LPO_ENOMEM, "cannot start libpng");
	j->info = png_create_info_struct(j->png);
	if (j->info == NULL)
		return lpo_fail(j->base.c, LPO_ENOMEM, "cannot start libpng");
	png_set_read_fn(j->png, j, on_read);
	/* Our limits hold, not libpng's million pixels a side. */
	png_set_user_limits(j->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
	/* Text, profiles, times: skipped unread.  A wrong CRC is an error. */
	png_set_keep_unknown_chunks(j->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
	png_set_crc_action(j->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
	png_read_info(j->png, j->info);
	err = lpo_decode_begin(j->base.c, j->out,
	    png_get_image_width(j->png, j->info),
	    png_get_image_height(j->png, j->info), opts);
	if (err != 0)
		return err;
	read_palette(j);
	read_pixels(j);
	return 0;
}

int
lpo_decode_png(lpo_ctx *c, struct lpo_image *out, const uint8_t *data,
    size_t bytes, const struct lpo_image_opts *opts)
{
	struct job j;
	int err;

	memset(&j, 0, sizeof(j));
	j.base.c = c;
	j.out = out;
	j.data = data;
	j.bytes = bytes;
	err = decode(&j, opts);
	png_destroy_read_struct(&j.png, &j.info, NULL);
	return err;
}
