/*
 * WebP by libwebp, lossy and lossless.  Of an animation the first frame, on a
 * black canvas, which is what is left of Pillow's transparent one without its
 * alpha.
 */
#include <errno.h>
#include <string.h>

#include <webp/decode.h>

#include "lib/io/decode.h"

/*
 * libwebp calls most pictures damaged for which its memory does not suffice;
 * malloc leaves its mark, where errno was 0 before.
 */
static int
failed(lpo_ctx *c, VP8StatusCode status)
{
	if (errno == ENOMEM)
		status = VP8_STATUS_OUT_OF_MEMORY;
	switch (status) {
	case VP8_STATUS_OUT_OF_MEMORY:
		return lpo_fail(c, LPO_ENOMEM, "out of memory in libwebp");
	case VP8_STATUS_SUSPENDED:
	case VP8_STATUS_NOT_ENOUGH_DATA:
		return lpo_fail(c, LPO_EFORMAT, "WebP is cut short");
	case VP8_STATUS_UNSUPPORTED_FEATURE:
		return lpo_fail(c, LPO_EFORMAT, "WebP of an unknown kind");
	default:
		return lpo_fail(c, LPO_EFORMAT, "damaged WebP");
	}
}

/* Decode a picture of w x h onto the canvas at (x, y); it must fit. */
static int
decode_at(lpo_ctx *c, struct lpo_image *out, int64_t x, int64_t y, int64_t w,
    int64_t h, const uint8_t *data, size_t bytes)
{
	WebPDecoderConfig cfg;
	VP8StatusCode status;
	int64_t stride = out->w * 3;

	if (!WebPInitDecoderConfig(&cfg))
		return lpo_fail(c, LPO_EFORMAT, "libwebp of another version");
	cfg.output.colorspace = MODE_RGB;
	cfg.output.is_external_memory = 1;
	cfg.output.u.RGBA.rgba = out->rgb + y * stride + x * 3;
	cfg.output.u.RGBA.stride = (int)stride;
	cfg.output.u.RGBA.size = (size_t)((h - 1) * stride + w * 3);
	errno = 0;
	status = WebPDecode(data, bytes, &cfg);
	WebPFreeDecBuffer(&cfg.output);
	return status == VP8_STATUS_OK ? 0 : failed(c, status);
}

/* The first chunk with this name from *at on; NULL when there is none. */
static const uint8_t *
find_chunk(const uint8_t *data, size_t bytes, size_t at, const char *name,
    size_t *len)
{
	while (at + 8 <= bytes) {
		*len = lpo_le32(data + at + 4);
		if (*len > bytes - at - 8)
			return NULL;
		if (memcmp(data + at, name, 4) == 0)
			return data + at + 8;
		at += 8 + *len + (*len & 1);
	}
	return NULL;
}

/*
 * ANMF: x/2, y/2, w-1, h-1, duration (24 bits each), flags, then the frame's
 * chunks, which libwebp decodes without a RIFF header.
 */
static int
first_frame(lpo_ctx *c, struct lpo_image *out, const uint8_t *data,
    size_t bytes)
{
	const uint8_t *p;
	WebPBitstreamFeatures f;
	VP8StatusCode status;
	size_t len;
	int64_t x, y;

	p = find_chunk(data, bytes, 12, "ANMF", &len);
	if (p == NULL || len < 16)
		return failed(c, VP8_STATUS_NOT_ENOUGH_DATA);
	x = 2 * (int64_t)(lpo_le32(p) & 0xffffff);
	y = 2 * (int64_t)(lpo_le32(p + 3) & 0xffffff);
	status = WebPGetFeatures(p + 16, len - 16, &f);
	if (status != VP8_STATUS_OK)
		return failed(c, status);
	if (x + f.width > out->w || y + f.height > out->h)
		return failed(c, VP8_STATUS_BITSTREAM_ERROR);
	return decode_at(c, out, x, y, f.width, f.height, p + 16, len - 16);
}

int
lpo_decode_webp(lpo_ctx *c, struct lpo_image *out, const uint8_t *data,
    size_t bytes, const struct lpo_image_opts *opts)
{
	WebPBitstreamFeatures f;
	VP8StatusCode status;
	int err;

	errno = 0;
	status = WebPGetFeatures(data, bytes, &f);
	if (status != VP8_STATUS_OK)
		return failed(c, status);
	/* libwebp is content where the picture is whole; Pillow wants all. */
	if (lpo_le32(data + 4) > bytes - 8)
		return failed(c, VP8_STATUS_NOT_ENOUGH_DATA);
	err = lpo_decode_begin(c, out, f.width, f.height, opts);
	if (err != 0)
		return err;
	/* libwebp counts a row's bytes in an int. */
	if (out->w > INT32_MAX / 3)
		return failed(c, VP8_STATUS_UNSUPPORTED_FEATURE);
	if (f.has_animation)
		return first_frame(c, out, data, bytes);
	return decode_at(c, out, 0, 0, f.width, f.height, data, bytes);
}
