/*
 * JPEG by libjpeg: grey, YCbCr, RGB, and CMYK or YCCK as Pillow reads them.
 *
 * The source never makes up an end-of-image marker (libjpeg's own memory
 * source does): a file that is cut short is an error, not a grey bottom half.
 */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "lib/io/decode.h"

/* A hostile progressive file can ask for any number of passes. */
#define MAX_SCANS 500

struct job {
	struct jpeg_error_mgr err;	/* libjpeg knows this address ... */
	struct jpeg_progress_mgr progress;
	struct jpeg_source_mgr src;
	struct jpeg_decompress_struct jpeg;
	jmp_buf jump;
	char text[JMSG_LENGTH_MAX];
	lpo_ctx *c;
	struct lpo_image *out;
	const struct lpo_image_opts *opts;
	uint8_t *row;			/* one row of CMYK */
};

static void
on_error(j_common_ptr jpeg)
{
	struct job *j = jpeg->client_data;

	jpeg->err->format_message(jpeg, j->text);
	longjmp(j->jump, 1);
}

static void
on_message(j_common_ptr jpeg)
{
	(void)jpeg;		/* warnings: Pillow takes the pixels, too */
}

static void
on_progress(j_common_ptr jpeg)
{
	struct job *j = jpeg->client_data;

	if (j->jpeg.input_scan_number > MAX_SCANS) {
		snprintf(j->text, sizeof(j->text), "more than %d scans",
		    MAX_SCANS);
		longjmp(j->jump, 1);
	}
}

static void
src_nothing(j_decompress_ptr jpeg)
{
	(void)jpeg;
}

/* There is no more: the caller sees a suspended decoder. */
static boolean
src_fill(j_decompress_ptr jpeg)
{
	(void)jpeg;
	return FALSE;
}

static void
src_skip(j_decompress_ptr jpeg, long n)
{
	struct jpeg_source_mgr *s = jpeg->src;

	if (n <= 0)
		return;
	if ((size_t)n > s->bytes_in_buffer)
		n = (long)s->bytes_in_buffer;
	s->next_input_byte += n;
	s->bytes_in_buffer -= (size_t)n;
}

/*
 * Adobe's CMYK is stored inverted, and Pillow assumes that of every file.
 * With k' = the stored K:  r = k' - (255 - c') k' / 255, rounded as Pillow's
 * MULDIV255.
 */
static void
rgb_from_cmyk(uint8_t *rgb, const uint8_t *cmyk, int64_t w)
{
	int64_t x;
	int i, k, t;

	for (x = 0; x < w; x++, rgb += 3, cmyk += 4) {
		k = cmyk[3];
		for (i = 0; i < 3; i++) {
			t = (255 - cmyk[i]) * k + 128;
			t = k - (((t >> 8) + t) >> 8);
			rgb[i] = (uint8_t)(t < 0 ? 0 : t);
		}
	}
}

static int
cut_short(struct job *j)
{
	return lpo_fail(j->c, LPO_EFORMAT, "JPEG is cut short");
}

static int
read_rows(struct job *j)
{
	struct jpeg_decompress_struct *d = &j->jpeg;
	JSAMPROW row;
	uint8_t *to;
	int cmyk = d->out_color_space == JCS_CMYK;

	while (d->output_scanline < d->output_height) {
		to = j->out->rgb + (int64_t)d->output_scanline * j->out->w * 3;
		row = cmyk ? j->row : to;
		if (jpeg_read_scanlines(d, &row, 1) != 1)
			return cut_short(j);
		if (cmyk)
			rgb_from_cmyk(to, j->row, j->out->w);
	}
	return 0;
}

/* Everything libjpeg may jump out of; it changes no local after setjmp(). */
static int
decode(struct job *j, const uint8_t *data, size_t bytes)
{
	struct jpeg_decompress_struct *d = &j->jpeg;
	int err;

	if (setjmp(j->jump))
		return d->err->msg_code == JERR_OUT_OF_MEMORY ?
		    lpo_fail(j->c, LPO_ENOMEM, "out of memory in libjpeg") :
		    lpo_fail(j->c, LPO_EFORMAT, "damaged JPEG: %s", j->text);
	jpeg_create_decompress(d);
	d->src = &j->src;
	d->progress = &j->progress;
	j->src.next_input_byte = data;
	j->src.bytes_in_buffer = bytes;
	if (jpeg_read_header(d, TRUE) != JPEG_HEADER_OK)
		return cut_short(j);
	if (d->num_components == 2 || d->num_components > 4)
		return lpo_fail(j->c, LPO_EFORMAT,
		    "JPEG with %d components is not supported",
		    d->num_components);
	err = lpo_decode_begin(j->c, j->out, d->image_width, d->image_height,
	    j->opts);
	if (err != 0)
		return err;
	d->out_color_space = d->num_components == 4 ? JCS_CMYK : JCS_RGB;
	if (d->num_components == 4) {
		j->row = lpo_alloc(j->c, d->image_width, 4);
		if (j->row == NULL)
			return LPO_ENOMEM;
	}
	if (!jpeg_start_decompress(d))
		return cut_short(j);
	/* No jpeg_finish_decompress(): all rows are what is asked for. */
	return read_rows(j);
}

int
lpo_decode_jpeg(lpo_ctx *c, struct lpo_image *out, const uint8_t *data,
    size_t bytes, const struct lpo_image_opts *opts)
{
	struct job j;
	int err;

	memset(&j, 0, sizeof(j));
	j.c = c;
	j.out = out;
	j.opts = opts;
	j.jpeg.err = jpeg_std_error(&j.err);
	j.jpeg.client_data = &j;
	j.err.error_exit = on_error;
	j.err.output_message = on_message;
	j.progress.progress_monitor = on_progress;
	j.src.init_source = src_nothing;
	j.src.term_source = src_nothing;
	j.src.fill_input_buffer = src_fill;
	j.src.skip_input_data = src_skip;
	j.src.resync_to_restart = jpeg_resync_to_restart;
	err = decode(&j, data, bytes);
	jpeg_destroy_decompress(&j.jpeg);
	lpo_free(j.row);
	return err;
}
