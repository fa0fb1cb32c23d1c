/* lpo-probe: tokenizer, image, text encoders, VAE, UNet. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/image.h"
#include "lib/io/resize.h"
#include "lib/model/clip.h"
#include "lib/model/tokenizer.h"
#include "lib/model/vae.h"
#include "tools/probe.h"

/* ----------------------------------------------------------- tokenizers */

static int
print_ids(struct lpo_probe *p, lpo_tokenizer *tok, int32_t *ids,
    const char *text, size_t bytes)
{
	int64_t i, n = lpo_tokenizer_max_length(tok);
	int rc = lpo_tokenizer_encode_bytes(tok, ids, text, bytes);

	for (i = 0; i < n && rc == 0; i++)
		printf("%d%c", ids[i], i < n - 1 ? ' ' : '\n');
	(void)p;
	return rc;
}

/* A line is a prompt, or with --json a JSON string, which may have \n. */
static int
tokenize_line(struct lpo_probe *p, lpo_tokenizer *tok, int32_t *ids,
    const char *line, size_t n)
{
	json_t *v = NULL;
	int rc;

	if (!p->cli->o.json)
		return print_ids(p, tok, ids, line, n);
	v = json_loadb(line, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
	if (!json_is_string(v)) {
		json_decref(v);
		return lpo_fail(p->ctx, LPO_EFORMAT, "'%.*s' is not a JSON "
		    "string", (int)n, line);
	}
	rc = print_ids(p, tok, ids, json_string_value(v),
	    json_string_length(v));
	json_decref(v);
	return rc;
}

static int
tokenizer_part(struct lpo_probe *p, const char *part)
{
	lpo_tokenizer *tok = NULL;
	char *dir = NULL, *line = NULL;
	int32_t *ids = NULL;
	size_t cap = 0;
	ssize_t n;
	int64_t row = 0;
	int rc;

	if ((rc = lpo_cli_model_part(p->cli, &dir, part)) != 0 ||
	    (rc = lpo_tokenizer_open(p->ctx, &tok, dir)) != 0)
		goto out;
	ids = lpo_alloc(p->ctx, (size_t)lpo_tokenizer_max_length(tok),
	    sizeof *ids);
	if (ids == NULL)
		rc = LPO_ENOMEM;
	while (rc == 0 && (n = getline(&line, &cap, stdin)) >= 0) {
		row++;
		if (n > 0 && line[n - 1] == '\n')
			n--;
		rc = tokenize_line(p, tok, ids, line, (size_t)n);
		if (rc != 0)
			lpo_fail_prefix(p->ctx, "line %lld", (long long)row);
	}
	/* a stop or an error ends getline() too */
	if (rc == 0 && lpo_ctx_stopped(p->ctx))
		rc = lpo_fail(p->ctx, LPO_ESTOP, "stopped");
	else if (rc == 0 && !feof(stdin))
		rc = lpo_fail(p->ctx, LPO_EIO, "cannot read standard input: "
		    "%s", strerror(errno));
out:
	free(line);
	lpo_free(ids);
	lpo_tokenizer_close(tok);
	lpo_free(dir);
	return rc;
}

static int
probe_tokenizer(struct lpo_probe *p)
{
	return tokenizer_part(p, "tokenizer");
}

static int
probe_tokenizer_2(struct lpo_probe *p)
{
	return tokenizer_part(p, "tokenizer_2");
}

/* ---------------------------------------------------------------- image */

static int
probe_image(struct lpo_probe *p)
{
	int64_t s = p->o->size_px, shape[4] = { 1, 3, s, s };
	struct lpo_image_opts opts = { .exif = p->o->exif };
	struct lpo_image img = { 0 };
	uint8_t *rgb = NULL;
	float *hwc, *chw;
	int rc;

	if (p->o->file == NULL || s == 0)
		return lpo_cli_usage(p->cli, "image: give --file IMG and "
		    "-s SIZE");
	if ((rc = lpo_image_read(p->ctx, &img, p->o->file, &opts)) != 0)
		return rc;
	hwc = lpo_probe_new(p, s * s * 3);
	chw = lpo_probe_new(p, s * s * 3);
	rgb = lpo_alloc(p->ctx, (size_t)(s * s), 3);
	rc = hwc == NULL || chw == NULL || rgb == NULL ? LPO_ENOMEM :
	    lpo_resize_u8(p->ctx, rgb, s, s, img.rgb, img.w, img.h, 3,
	    LPO_BILINEAR);
	if (rc == 0) {
		lpo_image_to_float(hwc, rgb, s * s * 3);
		lpo_probe_to_chw(chw, hwc, 1, 3, s * s);
		rc = lpo_probe_put(p, "image", 4, shape, chw);
	}
	lpo_free(rgb);
	lpo_image_free(&img);
	return rc;
}

/* ----------------------------------------------------------------- text */

struct walk {
	struct lpo_probe *p;
	lpo_tape *t;
};

static int
forward(void *arg)
{
	struct walk *w = arg;
	int rc = lpo_probe_set_inputs(w->p, w->t);

	return rc != 0 ? rc : lpo_tape_forward(w->t, 0);
}

static int
put_text(struct lpo_probe *p, lpo_tape *t, const struct lpo_clip_out *o,
    int projected)
{
	const lpo_var *v = o->last_hidden;
	const int64_t tokens[3] = { v->n, v->h, v->c };
	const int64_t row[2] = { v->n, v->c };
	int64_t proj[2] = { v->n, 0 };
	int rc;

	if ((rc = lpo_probe_put_var(p, t, "last_hidden_state", v, 3,
	    tokens)) != 0 ||
	    (rc = lpo_probe_put_var(p, t, "penultimate", o->penultimate, 3,
	    tokens)) != 0 ||
	    (rc = lpo_probe_put_var(p, t, "pooled", o->pooled, 2, row)) != 0)
		return rc;
	if (!projected)
		return 0;
	proj[1] = o->projected->c;
	return lpo_probe_put_var(p, t, "projected", o->projected, 2, proj);
}

static int
text_part(struct lpo_probe *p, const char *part)
{
	int64_t shape[2] = { -1, -1 }, n, l, i;
	lpo_clip *clip = NULL;
	lpo_tape *t = NULL;
	struct lpo_clip_out out;
	lpo_var *ids, *eos;
	int32_t *host, *at_eos;
	char *dir = NULL;
	enum lpo_dtype dt = lpo_cli_precision(p->cli);
	int rc;

	if ((host = lpo_probe_ids(p, "input_ids", 2, shape)) == NULL)
		return lpo_errcode(p->ctx);
	n = shape[0];
	l = shape[1];
	if ((rc = lpo_cli_model_part(p->cli, &dir, part)) != 0 ||
	    (rc = lpo_clip_load(p->ctx, &p->cli->be, &clip, dir, dt)) != 0 ||
	    (rc = lpo_clip_check_ids(p->ctx, clip, host, n * l)) != 0)
		goto out;
	rc = LPO_ENOMEM;
	/* i32 in the room of an f32 */
	at_eos = (int32_t *)(void *)lpo_probe_new(p, n);
	t = lpo_tape_new(p->ctx, &p->cli->be, dt, n);
	if (at_eos == NULL || t == NULL)
		goto out;
	for (i = 0; i < n; i++)
		at_eos[i] = (int32_t)(i * l + lpo_clip_eos(clip,
		    host + i * l, l));
	ids = lpo_input(t, n, l, 1, 1, LPO_I32, 0);
	eos = lpo_input(t, n, 1, 1, 1, LPO_I32, 0);
	lpo_clip_fwd(t, clip, ids, eos, &out);
	lpo_output(t, out.last_hidden, 0);
	lpo_output(t, out.penultimate, 0);
	lpo_output(t, out.pooled, 0);
	if (out.projected != NULL)
		lpo_output(t, out.projected, 0);
	if ((rc = lpo_tape_plan(t, 0, NULL)) != 0 ||
	    (rc = lpo_tape_commit(t, NULL)) != 0 ||
	    (rc = lpo_probe_input(p, ids, host)) != 0 ||
	    (rc = lpo_probe_input(p, eos, at_eos)) != 0 ||
	    (rc = lpo_probe_run(p, forward, &(struct walk){ p, t })) != 0)
		goto out;
	rc = put_text(p, t, &out, out.projected != NULL);
out:
	lpo_tape_free(t);
	lpo_clip_free(clip);
	lpo_free(dir);
	return rc;
}

static int
probe_text(struct lpo_probe *p)
{
	return text_part(p, "text_encoder");
}

static int
probe_text_2(struct lpo_probe *p)
{
	return text_part(p, "text_encoder_2");
}

/* ------------------------------------------------------------------ VAE */

static int
vae_part(struct lpo_probe *p, int parts, const char *in, const char *out)
{
	int64_t shape[4] = { -1, -1, -1, -1 };
	enum lpo_dtype dt = lpo_cli_precision(p->cli);
	lpo_vae *vae = NULL;
	lpo_tape *t = NULL;
	lpo_var *x, *y;
	float *chw, *hwc;
	char *dir = NULL;
	int rc;

	if ((chw = lpo_probe_f32(p, in, 4, shape)) == NULL)
		return lpo_errcode(p->ctx);
	if ((rc = lpo_cli_model_part(p->cli, &dir, "vae")) != 0 ||
	    (rc = lpo_vae_load(p->ctx, &p->cli->be, &vae, dir, dt,
	    parts)) != 0)
		goto out;
	rc = LPO_ENOMEM;
	hwc = lpo_probe_new(p, shape[0] * shape[1] * shape[2] * shape[3]);
	t = lpo_tape_new(p->ctx, &p->cli->be, dt, 1);
	if (hwc == NULL || t == NULL)
		goto out;
	lpo_probe_to_hwc(hwc, chw, shape[0], shape[1], shape[2] * shape[3]);
	x = lpo_input(t, shape[0], shape[2], shape[3], shape[1], LPO_F32, 0);
	y = parts == LPO_VAE_ENCODER ? lpo_vae_encode(t, vae, x) :
	    lpo_vae_decode(t, vae, x);
	lpo_output(t, y, 0);
	if ((rc = lpo_tape_plan(t, 0, NULL)) != 0 ||
	    (rc = lpo_tape_commit(t, NULL)) != 0 ||
	    (rc = lpo_probe_input(p, x, hwc)) != 0 ||
	    (rc = lpo_probe_run(p, forward, &(struct walk){ p, t })) != 0)
		goto out;
	rc = lpo_probe_put_image(p, t, out, y, 0);
out:
	lpo_tape_free(t);
	lpo_vae_free(vae);
	lpo_free(dir);
	return rc;
}

static int
probe_vae_encode(struct lpo_probe *p)
{
	return vae_part(p, LPO_VAE_ENCODER, "image", "moments");
}

static int
probe_vae_decode(struct lpo_probe *p)
{
	return vae_part(p, LPO_VAE_DECODER, "latent", "image");
}

/* ----------------------------------------------------------------- UNet */

struct unet_run {
	struct lpo_probe *p;
	lpo_unet *unet;
	lpo_lora_set *lora;
	lpo_tape *t;
	struct lpo_unet_in in;
	lpo_var *out;
	float *d_out;		/* [n, h, w, c], NULL: forward only */
	int64_t n;
};

static int
unet_once(void *arg)
{
	struct unet_run *r = arg;
	int rc;

	if ((rc = lpo_probe_set_inputs(r->p, r->t)) != 0)
		return rc;
	if (r->d_out == NULL)
		return lpo_tape_forward(r->t, 0);
	/* gradients add up: every repeat starts from zero */
	if (r->lora != NULL &&
	    (rc = lpo_params_zero_grad(lpo_lora_params(r->lora))) != 0)
		return rc;
	if (r->p->o->full &&
	    (rc = lpo_params_zero_grad(lpo_unet_params(r->unet))) != 0)
		return rc;
	if ((rc = lpo_tape_forward(r->t, 0)) != 0 ||
	    (rc = lpo_var_set_grad(r->t, r->out, r->d_out)) != 0)
		return rc;
	return lpo_tape_backward(r->t);
}

/* SDXL's addition embedding. */
static int
unet_added(struct unet_run *r, float **embeds, float **ids)
{
	const struct lpo_unet_config *c = lpo_unet_cfg(r->unet);
	int64_t se[2] = { r->n, -1 }, si[2] = { r->n, 6 };

	if (!c->text_time)
		return 0;
	*embeds = lpo_probe_f32(r->p, "text_embeds", 2, se);
	*ids = lpo_probe_f32(r->p, "time_ids", 2, si);
	if (*embeds == NULL || *ids == NULL)
		return lpo_errcode(r->p->ctx);
	r->in.text_embeds = lpo_input(r->t, r->n, 1, 1, se[1], LPO_F32, 0);
	r->in.time_ids = lpo_input(r->t, r->n, 1, 1, 6 * c->add_time_dim,
	    LPO_F32, 0);
	return 0;
}

static int
unet_results(struct unet_run *r)
{
	struct lpo_probe *p = r->p;
	int rc;

	if ((rc = lpo_probe_put_image(p, r->t, "out", r->out, 0)) != 0 ||
	    r->d_out == NULL)
		return rc;
	if ((rc = lpo_probe_put_image(p, r->t, "d_sample", r->in.sample,
	    1)) != 0)
		return rc;
	if (r->lora != NULL &&
	    (rc = lpo_probe_put_lora_grads(p, r->lora)) != 0)
		return rc;
	return p->o->full ? lpo_probe_put_grads(p, lpo_unet_params(r->unet),
	    "grad.") : 0;
}

static int
unet_record_and_run(struct unet_run *r, const int64_t s[4],
    const float *sample, const int64_t *t, const float *context,
    const int64_t cs[3])
{
	struct lpo_probe *p = r->p;
	const struct lpo_unet_config *c = lpo_unet_cfg(r->unet);
	float *x, *time, *embeds = NULL, *ids = NULL, *d;
	int64_t ds[4] = { s[0], c->out_channels, s[2], s[3] }, i;
	int rc;

	r->in.copies = 1;
	r->in.sample = lpo_input(r->t, r->n, s[2], s[3], s[1], LPO_F32,
	    p->o->grad);
	r->in.time = lpo_input(r->t, r->n, 1, 1, c->channels[0], LPO_F32, 0);
	r->in.context = lpo_input(r->t, r->n, cs[1], 1, cs[2], LPO_F32, 0);
	if ((rc = unet_added(r, &embeds, &ids)) != 0)
		return rc;
	r->out = lpo_unet_fwd(r->t, r->unet, &r->in);
	lpo_output(r->t, r->out, p->o->grad);
	if ((rc = lpo_tape_plan(r->t, p->o->grad, NULL)) != 0 ||
	    (rc = lpo_tape_commit(r->t, NULL)) != 0)
		return rc;
	x = lpo_probe_new(p, lpo_var_count(r->in.sample));
	time = lpo_probe_new(p, r->n);
	if (x == NULL || time == NULL)
		return LPO_ENOMEM;
	lpo_probe_to_hwc(x, sample, r->n, s[1], s[2] * s[3]);
	for (i = 0; i < r->n; i++)
		time[i] = (float)t[i];
	if ((rc = lpo_probe_input(p, r->in.sample, x)) != 0 ||
	    (rc = lpo_probe_sinusoids(p, r->in.time, r->unet, time, r->n,
	    c->channels[0])) != 0 ||
	    (rc = lpo_probe_input(p, r->in.context, context)) != 0)
		return rc;
	if (embeds != NULL && ((rc = lpo_probe_input(p, r->in.text_embeds,
	    embeds)) != 0 || (rc = lpo_probe_sinusoids(p, r->in.time_ids,
	    r->unet, ids, r->n * 6, c->add_time_dim)) != 0))
		return rc;
	if (p->o->grad) {
		if ((d = lpo_probe_f32(p, "d_out", 4, ds)) == NULL)
			return lpo_errcode(p->ctx);
		r->d_out = lpo_probe_new(p, lpo_var_count(r->out));
		if (r->d_out == NULL)
			return LPO_ENOMEM;
		lpo_probe_to_hwc(r->d_out, d, r->n, ds[1], ds[2] * ds[3]);
	}
	if ((rc = lpo_probe_run(p, unet_once, r)) != 0)
		return rc;
	return unet_results(r);
}

static int
probe_unet(struct lpo_probe *p)
{
	int64_t s[4] = { -1, -1, -1, -1 }, ts[1], cs[3] = { -1, -1, -1 }, *t;
	enum lpo_dtype dt = lpo_cli_precision(p->cli);
	struct unet_run r = { .p = p };
	float *sample, *context;
	char *dir = NULL;
	double start;
	int rc;

	if ((sample = lpo_probe_f32(p, "sample", 4, s)) == NULL)
		return lpo_errcode(p->ctx);
	ts[0] = cs[0] = r.n = s[0];
	if ((t = lpo_probe_i64(p, "timestep", 1, ts)) == NULL ||
	    (context = lpo_probe_f32(p, "encoder_hidden_states", 3,
	    cs)) == NULL)
		return lpo_errcode(p->ctx);
	if ((rc = lpo_cli_model_part(p->cli, &dir, "unet")) != 0)
		goto out;
	start = lpo_cli_now();
	if ((rc = lpo_unet_load(p->ctx, &p->cli->be, &r.unet, dir, dt,
	    0)) != 0)
		goto out;
	lpo_cli_detail(p->cli, "weights of %lld bytes in %.2f s",
	    (long long)lpo_unet_params(r.unet)->bytes, lpo_cli_now() - start);
	if (p->o->lora != NULL && (rc = lpo_lora_load(p->ctx, &r.lora, r.unet,
	    p->o->lora, 1, p->o->grad)) != 0)
		goto out;
	if (p->o->full &&
	    (rc = lpo_params_want_grads(lpo_unet_params(r.unet))) != 0)
		goto out;
	r.t = lpo_tape_new(p->ctx, &p->cli->be, dt, r.n);
	rc = r.t == NULL ? LPO_ENOMEM : unet_record_and_run(&r, s, sample, t,
	    context, cs);
out:
	lpo_tape_free(r.t);
	lpo_lora_free(r.lora);
	lpo_unet_free(r.unet);
	lpo_free(dir);
	return rc;
}

const struct lpo_probe_component lpo_probe_models[] = {
	{ "tokenizer", probe_tokenizer, 0, 1 },
	{ "tokenizer_2", probe_tokenizer_2, 0, 1 },
	{ "image", probe_image, 0, 0 },
	{ "text", probe_text, 1, 1 },
	{ "text_2", probe_text_2, 1, 1 },
	{ "vae-encode", probe_vae_encode, 1, 1 },
	{ "vae-decode", probe_vae_decode, 1, 1 },
	{ "unet", probe_unet, 1, 1 },
	{ NULL, NULL, 0, 0 }
};
