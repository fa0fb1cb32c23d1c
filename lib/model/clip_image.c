/* Pictures for CLIP. */
#include "lib/model/clip_image.h"

#include <math.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/resize.h"

enum { PILLOW_BILINEAR = 2, PILLOW_BICUBIC = 3 };

/* ---------------------------------------------------------------- config */

/* Steps that the code always does. */
static int
check_steps(lpo_ctx *c, const json_t *j)
{
	static const char *const steps[] = { "do_resize", "do_center_crop",
	    "do_rescale", "do_normalize", "do_convert_rgb" };
	size_t i;
	int on, rc;

	for (i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		if ((rc = lpo_json_bool(c, &on, j, steps[i], 1)) < 0)
			return rc;
		if (!on)
			return lpo_fail(c, LPO_EFORMAT, "'%s' is false; only "
			    "true is supported", steps[i]);
	}
	return lpo_json_bool(c, &on, j, "do_pad", 0) < 0 ? lpo_errcode(c) :
	    on ? lpo_fail(c, LPO_EFORMAT, "'do_pad' is true; only false is "
	    "supported") : 0;
}

static int
side(lpo_ctx *c, int64_t *out, const json_t *j, const char *key,
    const char *name)
{
	int rc = lpo_json_need_int(c, out, j, name);

	if (rc == 0 && (*out < 1 || *out > 1 << 14))
		rc = lpo_fail(c, LPO_EFORMAT, "'%s' is %lld, not in 1..16384",
		    name, (long long)*out);
	return rc == 0 ? 0 : lpo_fail_prefix(c, "'%s'", key);
}

/* "size": 224 (old) or {"shortest_edge": 224} */
static int
read_size(lpo_ctx *c, int64_t *out, const json_t *j)
{
	const json_t *v = lpo_json_get(j, "size");

	if (v == NULL)
		return 0;
	if (!json_is_object(v))
		return side(c, out, j, "size", "size");
	if (lpo_json_get(v, "shortest_edge") == NULL)
		return lpo_fail(c, LPO_EFORMAT, "'size' has no "
		    "'shortest_edge': no other way is supported");
	return side(c, out, v, "size", "shortest_edge");
}

/* "crop_size": 224 (old) or {"height": 224, "width": 224} */
static int
read_crop(lpo_ctx *c, int64_t *out, const json_t *j)
{
	const json_t *v = lpo_json_get(j, "crop_size");
	int64_t h, w;
	int rc;

	if (v == NULL)
		return 0;
	if (!json_is_object(v))
		return side(c, out, j, "crop_size", "crop_size");
	if ((rc = side(c, &h, v, "crop_size", "height")) < 0 ||
	    (rc = side(c, &w, v, "crop_size", "width")) < 0)
		return rc;
	if (h != w)
		return lpo_fail(c, LPO_EFORMAT, "'crop_size' is no square");
	*out = h;
	return 0;
}

static int
read_three(lpo_ctx *c, float out[3], const json_t *j, const char *key,
    int positive)
{
	const json_t *v = lpo_json_get(j, key), *x;
	size_t i;

	if (v == NULL)
		return 0;
	for (i = 0; i < 3; i++) {
		x = json_array_get(v, i);
		if (json_array_size(v) != 3 || !json_is_number(x) ||
		    !isfinite((float)json_number_value(x)) ||
		    (positive && !((float)json_number_value(x) > 0)))
			return lpo_fail(c, LPO_EFORMAT, "'%s' is not three "
			    "%snumbers", key, positive ? "positive " : "");
		out[i] = (float)json_number_value(x);
	}
	return 0;
}

static int
read_fields(lpo_ctx *c, struct lpo_clip_image *g, const json_t *j,
    int64_t image_px)
{
	int64_t filter;
	int rc;

	if ((rc = check_steps(c, j)) < 0 ||
	    (rc = read_size(c, &g->short_px, j)) < 0 ||
	    (rc = read_crop(c, &g->crop_px, j)) < 0 ||
	    (rc = lpo_json_int(c, &filter, j, "resample",
	    PILLOW_BICUBIC)) < 0 ||
	    (rc = lpo_json_real(c, &g->rescale, j, "rescale_factor",
	    g->rescale)) < 0 ||
	    (rc = read_three(c, g->mean, j, "image_mean", 0)) < 0 ||
	    (rc = read_three(c, g->std, j, "image_std", 1)) < 0)
		return rc;
	if (filter != PILLOW_BICUBIC && filter != PILLOW_BILINEAR)
		return lpo_fail(c, LPO_EFORMAT, "'resample' is %lld; only 3 "
		    "(bicubic) and 2 (bilinear) are supported",
		    (long long)filter);
	g->bicubic = filter == PILLOW_BICUBIC;
	if (!isfinite(g->rescale))
		return lpo_fail(c, LPO_EFORMAT, "'rescale_factor' is not "
		    "finite");
	if (g->crop_px != image_px)
		return lpo_fail(c, LPO_EFORMAT, "'crop_size' is %lld, the "
		    "model's 'image_size' %lld", (long long)g->crop_px,
		    (long long)image_px);
	if (g->short_px < g->crop_px)
		return lpo_fail(c, LPO_EFORMAT, "'size' %lld is less than "
		    "'crop_size' %lld", (long long)g->short_px,
		    (long long)g->crop_px);
	return 0;
}

/* The file's object; LPO_ENOTFOUND where neither file is there. */
static int
load_file(lpo_ctx *c, json_t **j, char **path, const char *dir)
{
	json_t *all = NULL;
	int rc;

	if ((*path = lpo_path_join(c, dir, "preprocessor_config.json")) ==
	    NULL)
		return LPO_ENOMEM;
	if (lpo_file_exists(*path))
		return lpo_json_load_file(c, j, *path, 0);
	lpo_free(*path);
	if ((*path = lpo_path_join(c, dir, "processor_config.json")) == NULL)
		return LPO_ENOMEM;
	if (!lpo_file_exists(*path))
		return LPO_ENOTFOUND;
	if ((rc = lpo_json_load_file(c, &all, *path, 0)) < 0)
		return rc;
	*j = json_incref(json_object_get(all, "image_processor"));
	json_decref(all);
	return *j == NULL ? LPO_ENOTFOUND : 0;
}

int
lpo_clip_image_read(lpo_ctx *c, struct lpo_clip_image *g, const char *dir,
    int64_t image_px)
{
	*g = (struct lpo_clip_image){ .short_px = 224, .crop_px = 224,
	    .bicubic = 1, .rescale = 1.0 / 255,
	    .mean = { 0.48145466f, 0.4578275f, 0.40821073f },
	    .std = { 0.26862954f, 0.26130258f, 0.27577711f } };
	json_t *j = NULL;
	char *path = NULL;
	int rc = load_file(c, &j, &path, dir);

	if (rc == 0 && !json_is_object(j))
		rc = lpo_fail(c, LPO_EFORMAT, "%s: not an object", path);
	else if (rc == 0 && (rc = read_fields(c, g, j, image_px)) < 0)
		lpo_fail_prefix(c, "%s", path);
	else if (rc == LPO_ENOTFOUND) {
		lpo_notice(c, "'%s' has no preprocessor_config.json: "
		    "pictures are cut to %lld pixels as CLIP does", dir,
		    (long long)image_px);
		g->short_px = g->crop_px = image_px;
		rc = 0;
	}
	json_decref(j);
	lpo_free(path);
	return rc;
}

/* ---------------------------------------------------------------- pixels */

int
lpo_clip_image_pixels(lpo_ctx *c, float *px, const struct lpo_clip_image *g,
    const struct lpo_image *im)
{
	int64_t s = g->short_px, n = g->crop_px, i;
	int64_t w = im->w <= im->h ? s : s * im->w / im->h;
	int64_t h = im->w <= im->h ? s * im->h / im->w : s;
	struct lpo_window view = { (w - n) / 2, (h - n) / 2, n, n };
	uint8_t *u8 = lpo_alloc(c, (size_t)(n * n), 3);
	float table[3][256];
	int k, v, rc;

	if (u8 == NULL)
		return LPO_ENOMEM;
	for (k = 0; k < 3; k++)
		for (v = 0; v < 256; v++)
			table[k][v] = ((float)(v * g->rescale) - g->mean[k]) /
			    g->std[k];
	if ((rc = lpo_resize_window_u8(c, u8, &view, w, h, im->rgb, im->w,
	    im->h, 3, g->bicubic ? LPO_BICUBIC : LPO_BILINEAR)) == 0)
		for (i = 0; i < n * n * 3; i++)
			px[i] = table[i % 3][u8[i]];
	lpo_free(u8);
	return rc;
}
