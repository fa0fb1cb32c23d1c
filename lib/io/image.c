/*
 * Images: which decoder, what limits, EXIF orientation, floats.
 */
#include <math.h>
#include <string.h>
#include <strings.h>

#include "lib/base/file.h"
#include "lib/io/decode.h"
#include "lib/io/image.h"

/* A larger file is no picture we would take. */
#define MAX_FILE ((size_t)1 << 30)

enum lpo_image_kind
lpo_image_kind(const void *data, size_t bytes)
{
	const uint8_t *p = data;

	if (bytes >= 3 && memcmp(p, "\xff\xd8\xff", 3) == 0)
		return LPO_IMAGE_JPEG;
	if (bytes >= 8 && memcmp(p, "\x89PNG\r\n\x1a\n", 8) == 0)
		return LPO_IMAGE_PNG;
	if (bytes >= 12 && memcmp(p, "RIFF", 4) == 0 &&
	    memcmp(p + 8, "WEBP", 4) == 0)
		return LPO_IMAGE_WEBP;
	return LPO_IMAGE_UNKNOWN;
}

const char *
lpo_image_type(const char *name)
{
	static const char *const types[] = { "png", "jpg", "jpeg", "webp" };
	const char *dot = strrchr(name, '.');
	size_t i;

	dot = dot != NULL ? dot + 1 : name;
	for (i = 0; i < sizeof(types) / sizeof(*types); i++)
		if (strcasecmp(dot, types[i]) == 0)
			return types[i];
	return NULL;
}

void
lpo_image_free(struct lpo_image *im)
{
	lpo_free(im->rgb);
	memset(im, 0, sizeof(*im));
}

int
lpo_decode_begin(lpo_ctx *c, struct lpo_image *out, int64_t w, int64_t h,
    const struct lpo_image_opts *o)
{
	if (w < 1 || h < 1)
		return lpo_fail(c, LPO_EFORMAT, "image has no pixels");
	if (w > o->max_pixels / h)
		return lpo_fail(c, LPO_EFORMAT, "image of %lld x %lld pixels "
		    "is over the limit of %lld pixels", (long long)w,
		    (long long)h, (long long)o->max_pixels);
	if (w * h > o->max_bytes / 3)
		return lpo_fail(c, LPO_EFORMAT, "image of %lld x %lld pixels "
		    "is over the limit of %lld bytes", (long long)w,
		    (long long)h, (long long)o->max_bytes);
	out->rgb = lpo_alloc(c, (size_t)(w * h), 3);
	if (out->rgb == NULL)
		return LPO_ENOMEM;
	out->w = w;
	out->h = h;
	return 0;
}

/*
 * Tag 0x0112 of the first directory of a TIFF block.  Every offset in it is a
 * stranger's word.
 */
static int
tiff_orientation(const uint8_t *p, size_t bytes)
{
	uint32_t (*get16)(const uint8_t *), (*get32)(const uint8_t *);
	uint32_t off, i, n, v;

	if (bytes < 8)
		return 1;
	if (memcmp(p, "II*\0", 4) == 0) {
		get16 = lpo_le16;
		get32 = lpo_le32;
	} else if (memcmp(p, "MM\0*", 4) == 0) {
		get16 = lpo_be16;
		get32 = lpo_be32;
	} else {
		return 1;
	}
	off = get32(p + 4);
	if (off > bytes - 2)
		return 1;
	n = get16(p + off);
	p += off + 2;
	bytes -= off + 2;
	for (i = 0; i < n && (i + 1) * 12 <= bytes; i++, p += 12) {
		if (get16(p) != 0x0112)
			continue;
		v = get16(p + 8);	/* a SHORT sits left in its 4 bytes */
		if (get16(p + 2) != 3 || get32(p + 4) != 1 || v < 1 || v > 8)
			return 1;
		return (int)v;
	}
	return 1;
}

/* An EXIF block: a TIFF block, in JPEG and some WebP after "Exif\0\0". */
static int
exif_orientation(const uint8_t *p, size_t bytes)
{
	if (bytes >= 6 && memcmp(p, "Exif\0\0", 6) == 0)
		return tiff_orientation(p + 6, bytes - 6);
	return tiff_orientation(p, bytes);
}

static int
jpeg_orientation(const uint8_t *p, size_t bytes)
{
	size_t at = 2, len;

	while (at + 4 <= bytes && p[at] == 0xff) {
		if (p[at + 1] == 0xff) {	/* fill byte */
			at++;
			continue;
		}
		len = lpo_be16(p + at + 2);
		if (p[at + 1] == 0xda || len < 2 || len > bytes - at - 2)
			return 1;
		if (p[at + 1] == 0xe1 && len >= 8 &&
		    memcmp(p + at + 4, "Exif\0\0", 6) == 0)
			return exif_orientation(p + at + 4, len - 2);
		at += 2 + len;
	}
	return 1;
}

static int
png_orientation(const uint8_t *p, size_t bytes)
{
	size_t at = 8, len;

	while (at + 8 <= bytes) {
		len = lpo_be32(p + at);
		if (len > bytes - at - 8)
			return 1;
		if (memcmp(p + at + 4, "eXIf", 4) == 0)
			return exif_orientation(p + at + 8, len);
		if (len + 4 > bytes - at - 8)
			return 1;
		at += 12 + len;
	}
	return 1;
}

static int
webp_orientation(const uint8_t *p, size_t bytes)
{
	size_t at = 12, len;

	while (at + 8 <= bytes) {
		len = lpo_le32(p + at + 4);
		if (len > bytes - at - 8)
			return 1;
		if (memcmp(p + at, "EXIF", 4) == 0)
			return exif_orientation(p + at + 8, len);
		at += 8 + len + (len & 1);
	}
	return 1;
}

int
lpo_image_orientation(const void *data, size_t bytes)
{
	switch (lpo_image_kind(data, bytes)) {
	case LPO_IMAGE_JPEG:
		return jpeg_orientation(data, bytes);
	case LPO_IMAGE_PNG:
		return png_orientation(data, bytes);
	case LPO_IMAGE_WEBP:
		return webp_orientation(data, bytes);
	case LPO_IMAGE_UNKNOWN:
		break;
	}
	return 1;
}

/*
 * Turn the picture as the tag says, like Pillow's ImageOps.exif_transpose.
 * 5..8 swap the axes; then each of the first row and column may be mirrored.
 */
static int
orient(lpo_ctx *c, struct lpo_image *im, int tag)
{
	int swap = tag >= 5;
	int flip_x = tag == 2 || tag == 3 || tag == 7 || tag == 8;
	int flip_y = tag == 3 || tag == 4 || tag == 6 || tag == 7;
	int64_t w = swap ? im->h : im->w, h = swap ? im->w : im->h;
	int64_t x, y, sx, sy;
	uint8_t *to, *d;
	const uint8_t *s;

	if (tag == 1)
		return 0;
	to = lpo_alloc(c, (size_t)(w * h), 3);
	if (to == NULL)
		return LPO_ENOMEM;
	for (d = to, y = 0; y < h; y++) {
		for (x = 0; x < w; x++, d += 3) {
			sx = swap ? y : x;
			sy = swap ? x : y;
			if (flip_x)
				sx = im->w - 1 - sx;
			if (flip_y)
				sy = im->h - 1 - sy;
			s = im->rgb + 3 * (sy * im->w + sx);
			d[0] = s[0];
			d[1] = s[1];
			d[2] = s[2];
		}
	}
	lpo_free(im->rgb);
	im->rgb = to;
	im->w = w;
	im->h = h;
	return 0;
}

int
lpo_image_decode(lpo_ctx *c, struct lpo_image *out, const void *data,
    size_t bytes, const struct lpo_image_opts *opts)
{
	struct lpo_image_opts o = { 0, 0, 0 };
	int err;

	memset(out, 0, sizeof(*out));
	if (opts != NULL)
		o = *opts;
	if (o.max_pixels <= 0)
		o.max_pixels = LPO_IMAGE_MAX_PIXELS;
	if (o.max_bytes <= 0)
		o.max_bytes = LPO_IMAGE_MAX_BYTES;
	switch (lpo_image_kind(data, bytes)) {
	case LPO_IMAGE_JPEG:
		err = lpo_decode_jpeg(c, out, data, bytes, &o);
		break;
	case LPO_IMAGE_PNG:
		err = lpo_decode_png(c, out, data, bytes, &o);
		break;
	case LPO_IMAGE_WEBP:
		err = lpo_decode_webp(c, out, data, bytes, &o);
		break;
	default:
		err = lpo_fail(c, LPO_EFORMAT,
		    "neither a JPEG nor a PNG nor a WebP image");
	}
	if (err == 0 && o.exif)
		err = orient(c, out, lpo_image_orientation(data, bytes));
	if (err != 0)
		lpo_image_free(out);
	return err;
}

void
lpo_image_to_float(float *x, const uint8_t *rgb, int64_t count)
{
	int64_t i;

	for (i = 0; i < count; i++)
		x[i] = (float)rgb[i] / 255.0f * 2.0f - 1.0f;
}

void
lpo_image_from_float(uint8_t *rgb, const float *x, int64_t count)
{
	int64_t i;
	float v;

	for (i = 0; i < count; i++) {
		v = x[i] * 0.5f + 0.5f;
		v = v > 0.0f ? v : 0.0f;	/* also for NaN */
		v = v < 1.0f ? v : 1.0f;
		rgb[i] = (uint8_t)lrintf(v * 255.0f);
	}
}

int
lpo_image_read(lpo_ctx *c, struct lpo_image *out, const char *path,
    const struct lpo_image_opts *opts)
{
	char *data = NULL;
	size_t bytes;
	int err;

	memset(out, 0, sizeof(*out));
	err = lpo_file_read(c, &data, &bytes, path, MAX_FILE);
	if (err == 0) {
		err = lpo_image_decode(c, out, data, bytes, opts);
		if (err != 0)
			lpo_fail_prefix(c, "cannot decode '%s'", path);
	}
	lpo_free(data);
	return err;
}
