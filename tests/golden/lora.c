/*
 * LoRA on every layer against peft: outputs and gradients; then the same
 * through files of every form.
 */
#include <unistd.h>

#include "lib/model/lora.h"
#include "tests/golden/golden.h"

/* A UNet, one recorded evaluation of two rows, and the LoRA's golden file. */
struct rig {
	struct golden g;	/* of the LoRA */
	lpo_st *base;
	lpo_unet *u;
	lpo_tape *t;
	struct lpo_unet_in in;
	lpo_var *out;
	int64_t count;		/* of out */
	float *plain;		/* out without LoRA */
	int64_t rank;
	float alpha;
};

static int
set_inputs(struct rig *r)
{
	static const float step[2] = { 7, 401 };
	static const float ids[12] = { 64, 96, 0, 8, 64, 96, 48, 48, 4, 0,
	    64, 64 };
	const struct lpo_unet_config *c = lpo_unet_cfg(r->u);
	float x[256];
	int64_t i;
	int rc;

	for (i = 0; i < 2; i++)
		lpo_sinusoid(x + i * c->channels[0], step[i], c->channels[0],
		    c->flip_sin_to_cos, c->freq_shift);
	if ((rc = lpo_var_set(r->t, r->in.time, x)) < 0 ||
	    (rc = g_set(r->t, r->in.sample, "sample", 2, 0, 0)) < 0 ||
	    (rc = g_set(r->t, r->in.context, "context", 1, 1, 0)) < 0)
		return rc;
	if (!c->text_time)
		return 0;
	for (i = 0; i < 12; i++)
		lpo_sinusoid(x + i * c->add_time_dim, ids[i], c->add_time_dim,
		    c->flip_sin_to_cos, c->freq_shift);
	if ((rc = lpo_var_set(r->t, r->in.time_ids, x)) < 0)
		return rc;
	return g_set(r->t, r->in.text_embeds, "text_embeds", 1, 1, 0);
}

/* Record and run forward, with backward if `grad`. */
static int
run(struct rig *r, int64_t h, int64_t w, int grad)
{
	const struct lpo_unet_config *c = lpo_unet_cfg(r->u);
	struct lpo_plan plan;
	lpo_tape *t;
	int rc;

	lpo_tape_free(r->t);
	memset(&r->in, 0, sizeof(r->in));
	if ((t = r->t = lpo_tape_new(r->g.c, &r->g.be, LPO_F32, 2)) == NULL)
		return LPO_ENOMEM;
	r->in.copies = 1;
	r->in.sample = lpo_input(t, 2, h, w, 4, LPO_F32, grad);
	r->in.time = lpo_input(t, 2, 1, 1, c->channels[0], LPO_F32, 0);
	r->in.context = lpo_input(t, 2, 5, 1, c->context_dim, LPO_F32, grad);
	if (c->text_time) {
		r->in.text_embeds = lpo_input(t, 2, 1, 1, 20, LPO_F32, grad);
		r->in.time_ids = lpo_input(t, 2, 1, 1, 48, LPO_F32, 0);
	}
	r->out = lpo_unet_fwd(t, r->u, &r->in);
	lpo_output(t, r->out, grad);
	if ((rc = lpo_tape_plan(t, grad, &plan)) < 0 ||
	    (rc = lpo_tape_commit(t, NULL)) < 0 ||
	    (rc = set_inputs(r)) < 0 ||
	    (rc = lpo_tape_forward(t, 0)) < 0 || !grad)
		return rc;
	if ((rc = g_set(t, r->out, "d_out", 1, 0, 1)) < 0)
		return rc;
	return lpo_tape_backward(t);
}

/* 1: open; 0: failed; -1: this machine has no such level. */
static int
open_rig(struct rig *r, const char *name, const char *base, int64_t h,
    int64_t w, const char *level)
{
	char path[128];

	memset(r, 0, sizeof(*r));
	if (!g_open(&r->g, name, level))
		return -1;
	snprintf(path, sizeof(path), "tests/golden/models/%s.safetensors",
	    base);
	r->rank = atoi(lpo_st_meta(r->g.st, "rank"));
	r->alpha = (float)atoi(lpo_st_meta(r->g.st, "alpha"));
	if (lpo_st_open(r->g.c, &r->base, path) < 0 ||
	    g_write_model(&r->g, r->base, "diffusion_pytorch_model",
	    NULL) < 0 ||
	    lpo_unet_load(r->g.c, &r->g.be, &r->u, r->g.tmp, LPO_F32, 0) < 0 ||
	    run(r, h, w, 0) < 0)
		return ok(0, "%s: %s", name, lpo_errmsg(r->g.c));
	r->count = lpo_var_count(r->out);
	r->plain = malloc((size_t)r->count * sizeof(*r->plain));
	return lpo_var_get(r->t, r->out, r->plain) == 0;
}

static void
close_rig(struct rig *r)
{
	lpo_tape_free(r->t);
	lpo_unet_free(r->u);
	lpo_st_close(r->base);
	free(r->plain);
	g_close(&r->g);
}

/* 1 if the last walk's output has the bits of the model without LoRA. */
static int
is_plain(struct rig *r)
{
	float *x = malloc((size_t)r->count * sizeof(*x));
	int same = lpo_var_get(r->t, r->out, x) == 0 &&
	    memcmp(x, r->plain, (size_t)r->count * sizeof(*x)) == 0;

	free(x);
	return same;
}

static int
fill(struct rig *r, lpo_params *ps)
{
	float *x;
	int64_t i;
	int rc = 0;

	for (i = 0; i < ps->n && rc == 0; i++) {
		x = g_uniform(ps->p[i]->key, ps->p[i]->count, 0.25f);
		rc = lpo_param_import(ps, ps->p[i], x);
		free(x);
	}
	return rc < 0 ? ok(0, "%s", lpo_errmsg(r->g.c)) : 1;
}

static void
test_init(struct rig *r, int64_t h, int64_t w)
{
	lpo_lora_set *s = NULL;
	lpo_params *ps;
	double sum = 0, n = 0;
	float x[4096];
	int64_t i, j, b = 0;

	if (lpo_lora_attach(r->g.c, &s, r->u, LPO_LORA_ATTENTION, 4, 4,
	    7) < 0 || run(r, h, w, 0) < 0) {
		ok(0, "%s: %s", r->g.name, lpo_errmsg(r->g.c));
		return;
	}
	ps = lpo_lora_params(s);
	for (i = 0; i < ps->n; i++) {
		if (ps->p[i]->count > 4096 ||
		    lpo_param_export(ps, ps->p[i], x) < 0)
			continue;
		b += strstr(ps->p[i]->key, "lora_B") != NULL;
		if (strstr(ps->p[i]->key, "lora_A") == NULL)
			continue;
		for (j = 0; j < ps->p[i]->count; j++, n++)
			sum += (double)x[j] * (double)x[j];
	}
	ok(is_plain(r), "%s: a fresh LoRA changes nothing", r->g.name);
	ok(n > 1000 && 2 * b == ps->n && fabs(sqrt(sum / n) * 4 - 1) < 0.1,
	    "%s: A is drawn with deviation 1/rank (%.3f)", r->g.name,
	    sqrt(sum / n));
	lpo_lora_free(s);
}

/* ----------------------------------------------------------------- files */

struct names {
	const lpo_st *st;
	const char *form;
	int bad, n;
};

/* Is there a line "FORM NAME PATH", where key begins with NAME and '.'? */
static int
find_name(const char *forms, const char *form, const char *key)
{
	char kind[16], name[256], path[256];
	const char *s = forms;
	int at;

	while (sscanf(s, "%15s %255s %255s%n", kind, name, path, &at) == 3) {
		if (strcmp(kind, form) == 0 &&
		    strncmp(key, name, strlen(name)) == 0 &&
		    key[strlen(name)] == '.')
			return 1;
		s += at;
	}
	return 0;
}

static int
check_name(void *arg, const char *key, int rank, const int64_t *shape,
    const float *data)
{
	struct names *n = arg;

	(void)rank;
	(void)shape;
	(void)data;
	n->n++;
	n->bad += !find_name(lpo_st_meta(n->st, "forms"), n->form, key);
	return 0;
}

/* Load `path`, run, and compare with the golden output. */
static lpo_lora_set *
load_and_check(struct rig *r, const char *path, const char *what,
    float strength, int64_t h, int64_t w)
{
	lpo_lora_set *s = NULL;

	printf("# %s\n", what);
	if (lpo_lora_load(r->g.c, &s, r->u, path, strength, 1) < 0 ||
	    run(r, h, w, 1) < 0) {
		ok(0, "%s: %s", what, lpo_errmsg(r->g.c));
		lpo_clear(r->g.c);
		return s;
	}
	g_check(&r->g, r->t, r->out, "out", 0, 0);
	return s;
}

static void
test_save(struct rig *r, lpo_lora_set **s, int64_t h, int64_t w)
{
	static const char *const what[] = { "kohya", "diffusers", "both" };
	static const char *const meta[] = { "ss_output_name", "mine",
	    "lpo.run", "{}", NULL };
	struct names n = { r->g.st, lpo_unet_cfg(r->u)->text_time ? "ldm" :
	    "kohya", 0, 0 };
	char path[3][128];
	lpo_st *st = NULL;
	int i;

	lpo_lora_each(r->g.c, *s, LPO_LORA_KOHYA, 0, check_name, &n);
	ok(n.bad == 0 && n.n > 100, "%s: %d keys, as diffusers names them in "
	    "'%s' form", r->g.name, n.n, n.form);
	for (i = 0; i < 3; i++) {
		snprintf(path[i], sizeof(path[i]), "%s/%s.safetensors",
		    r->g.tmp, what[i]);
		ok(lpo_lora_save(r->g.c, *s, path[i], (enum lpo_lora_format)i,
		    1, meta) == 0, "%s: save %s: %s", r->g.name, what[i],
		    lpo_errmsg(r->g.c));
	}
	lpo_lora_free(*s);
	for (i = 0; i < 3; i++) {
		*s = load_and_check(r, path[i], what[i], 1, h, w);
		lpo_lora_free(*s);
	}
	*s = NULL;
	if (lpo_st_open(r->g.c, &st, path[0]) == 0)
		ok(strcmp(lpo_st_meta(st, "ss_output_name"), "mine") == 0 &&
		    strcmp(lpo_st_meta(st, "lpo.run"), "{}") == 0 &&
		    strcmp(lpo_st_meta(st, "format"), "pt") == 0 &&
		    atoi(lpo_st_meta(st, "ss_network_dim")) == r->rank &&
		    strncmp(lpo_st_meta(st, "modelspec.architecture"),
		    "stable-diffusion-", 17) == 0, "%s: metadata", r->g.name);
	lpo_st_close(st);
}

/* The key a layer's tensor has in the form; 0: the form lacks this layer. */
static int
form_key(char out[320], const lpo_st *st, const char *form, const char *path,
    int up)
{
	char kind[16], name[256], of[256], *p;
	const char *s = lpo_st_meta(st, "forms");
	int at;

	if (strcmp(form, "peft") == 0)
		return snprintf(out, 320, "unet.%.250s.lora_%c.weight", path,
		    up ? 'B' : 'A');
	if (strcmp(form, "pure") == 0)
		return snprintf(out, 320,
		    "base_model.model.%.250s.lora_%c.weight", path,
		    up ? 'B' : 'A');
	if (strcmp(form, "old") == 0) {
		snprintf(of, sizeof(of), "%.250s", path);
		if ((p = strstr(of, ".to_")) == NULL)
			return snprintf(out, 320, "unet.%.250s.lora.%s.weight",
			    path, up ? "up" : "down");
		*p = '\0';
		p += 1;
		if (strcmp(p, "to_out.0") == 0)
			p[6] = '\0';
		return snprintf(out, 320, "unet.%.200s.processor.%s_lora."
		    "%s.weight", of, p, up ? "up" : "down");
	}
	while (sscanf(s, "%15s %255s %255s%n", kind, name, of, &at) == 3) {
		s += at;
		if (strcmp(kind, form) == 0 && strcmp(of, path) == 0)
			return snprintf(out, 320, "%s.lora_%s.weight", name,
			    up ? "up" : "down");
	}
	return 0;
}

/* Write the golden LoRA in a form of somebody else's. */
static int
write_form(struct rig *r, const char *file, const char *form)
{
	char key[256], out[320], path[256];
	int64_t shape[4], n, count, kept = 0;
	int rank, i, rc, up;
	float *data[1024];
	lpo_stw *w = NULL;
	size_t len;

	rc = lpo_stw_new(r->g.c, &w);
	for (n = 0; rc == 0 && n < 1000 && g_key(r->g.st, n, key, &rank,
	    shape); n++) {
		for (i = 0, count = 1; i < rank; i++)
			count *= shape[i];
		len = strlen(key) - strlen(".lora_A.weight");
		snprintf(path, sizeof(path), "%.*s", (int)len, key);
		up = key[len + 6] == 'B';
		if (!form_key(out, r->g.st, form, path, up))
			continue;
		data[kept] = g_uniform(key, count, 0.25f);
		rc = lpo_stw_add_f32(w, out, LPO_F32, rank, shape,
		    data[kept++]);
		if (rc < 0 || !up || strncmp(out, "lora_unet_", 10) != 0)
			continue;
		*strchr(out, '.') = '\0';
		strcat(out, ".alpha");
		rc = lpo_stw_add_f32(w, out, LPO_F32, 0, NULL, &r->alpha);
	}
	if (rc == 0 && strcmp(form, "peft") == 0) {
		snprintf(out, sizeof(out), "{\"unet.r\": %d, "
		    "\"unet.lora_alpha\": %d}", (int)r->rank, (int)r->alpha);
		rc = lpo_stw_meta(w, "lora_adapter_metadata", out);
	}
	if (rc == 0 && strcmp(form, "pure") == 0) {
		snprintf(out, sizeof(out), "{\"r\": %d, \"lora_alpha\": %d}",
		    (int)r->rank, (int)r->alpha);
		rc = g_write_text(r->g.c, r->g.tmp, "adapter_config.json",
		    out);
	}
	if (rc == 0)
		rc = lpo_stw_write(w, file);
	lpo_stw_free(w);
	while (kept > 0)
		free(data[--kept]);
	return rc;
}

/* PEFT's settings beside a file: the alphas they mean, or what is wrong. */
static void
test_settings(struct rig *r)
{
	static const struct {
		const char *text, *wrong;
		double min, max;	/* < 0: times the rank's root */
	} v[] = {
		{ "{\"lora_alpha\": 6}", NULL, 6, 6 },
		{ "{\"lora_alpha\": 6.5, \"use_rslora\": false}", NULL, 6.5,
		  6.5 },
		{ "{\"lora_alpha\": 6, \"use_rslora\": true}", NULL, -6, -6 },
		{ "{\"lora_alpha\": 6, \"alpha_pattern\": {\"to_q\": 3, "
		  "\"^mid_block.attentions.0.proj_in$\": 9}}", NULL, 3, 9 },
		{ "{\"lora_alpha\": 6, \"alpha_pattern\": {\"o_q\": 3, "
		  "\"^to_q\": 4}}", NULL, 6, 6 },
		{ "{\"lora_alpha\": 6, \"alpha_pattern\": {\"proj_in\": 9, "
		  "\"attentions.0.proj_in\": 3}}", NULL, 6, 9 },
		{ "{\"alpha_pattern\": {\"to_[qk]\": 3}}", "alpha_pattern "
		  "'to_[qk]' is not supported", 0, 0 },
		{ "{\"lora_alpha\": \"6\"}", "adapter_config.json: "
		  "'lora_alpha' is not a number", 0, 0 },
		{ "{\"alpha_pattern\": {\"to_q\": \"3\"}}",
		  "adapter_config.json: alpha_pattern 'to_q' is not a number",
		  0, 0 },
		{ "[]", "adapter_config.json: PEFT's settings are no object",
		  0, 0 },
		{ "{\"use_dora\": true}", "use_dora: only plain LoRA is "
		  "supported", 0, 0 },
		{ "{\"lora_alpha\": 1e300}", "is not finite", 0, 0 },
		{ "{\"alpha_pattern\": [3]}", "adapter_config.json: "
		  "'alpha_pattern' is no object", 0, 0 },
		{ "{\"use_rslora\": \"yes\"}", "adapter_config.json: "
		  "'use_rslora' is not true or false", 0, 0 },
		{ "{\"init_lora_weights\": \"pissa_niter_4\"}",
		  "'init_lora_weights' is 'pissa_niter_4'", 0, 0 },
		{ "{\"lora_alpha\": 6, \"init_lora_weights\": true}", NULL, 6,
		  6 },
		{ "{\"lora_alpha\": 6, \"init_lora_weights\": "
		  "\"gaussian\"}", NULL, 6, 6 }
	};
	double root = sqrt((double)r->rank), min, max;
	struct lpo_lora_shape is;
	lpo_lora_set *s = NULL;
	char path[128], file[128];
	size_t i;
	int rc;

	snprintf(path, sizeof(path), "%s/settings.safetensors", r->g.tmp);
	rc = write_form(r, path, "pure");
	for (i = 0; rc == 0 && i < sizeof(v) / sizeof(*v); i++) {
		g_write_text(r->g.c, r->g.tmp, "adapter_config.json",
		    v[i].text);
		rc = lpo_lora_load(r->g.c, &s, r->u, path, 1, 1);
		if (v[i].wrong != NULL) {
			ok(rc == LPO_EFORMAT && strstr(lpo_errmsg(r->g.c),
			    v[i].wrong) != NULL, "%s", lpo_errmsg(r->g.c));
			lpo_clear(r->g.c);
			rc = 0;
			continue;
		}
		if (rc < 0)
			break;
		lpo_lora_shape(s, &is);
		min = v[i].min < 0 ? -v[i].min * root : v[i].min;
		max = v[i].max < 0 ? -v[i].max * root : v[i].max;
		ok(fabs(is.alpha_min - min) < 1e-5 &&
		    fabs(is.alpha_max - max) < 1e-5, "%s: alpha %g to %g",
		    v[i].text, is.alpha_min, is.alpha_max);
		lpo_lora_free(s);
	}
	ok(rc == 0, "PEFT's settings %s", lpo_errmsg(r->g.c));
	snprintf(file, sizeof(file), "%s/adapter_config.json", r->g.tmp);
	unlink(file);
	if (lpo_lora_load(r->g.c, &s, r->u, path, 1, 1) == 0) {
		lpo_lora_shape(s, &is);
		ok(is.alpha_min == (double)r->rank && is.alpha_max ==
		    (double)r->rank, "no settings: scale 1");
		lpo_lora_free(s);
	}
}

static int
check_read_key(void *arg, const char *key, int rank, const int64_t *shape,
    const float *data)
{
	struct names *n = arg;

	(void)rank;
	(void)shape;
	(void)data;
	n->n++;
	n->bad += lpo_st_find(n->st, key) == NULL;
	return 0;
}

static void
test_forms(struct rig *r, int64_t h, int64_t w)
{
	static const char *const form[] = { "kohya", "ldm", "peft", "pure",
	    "old" };
	struct names n;
	lpo_lora_set *s;
	char path[128];
	lpo_st *st;
	int i;

	for (i = 0; i < 5; i++) {
		if (i == 1 && !lpo_unet_cfg(r->u)->text_time)
			continue;
		snprintf(path, sizeof(path), "%s/%s.safetensors", r->g.tmp,
		    form[i]);
		if (write_form(r, path, form[i]) < 0) {
			ok(0, "%s", lpo_errmsg(r->g.c));
			continue;
		}
		/* nothing says alpha in the oldest form: give it as strength */
		s = load_and_check(r, path, form[i], i == 4 ? r->alpha /
		    (float)r->rank : 1, h, w);
		memset(&n, 0, sizeof(n));
		st = NULL;
		if (s != NULL && lpo_st_open(r->g.c, &st, path) == 0) {
			n.st = st;
			lpo_lora_each(r->g.c, s, LPO_LORA_AS_READ, 1,
			    check_read_key, &n);
			ok(n.bad == 0 && n.n == lpo_lora_params(s)->n,
			    "%s: %d gradients under the file's own keys",
			    r->g.name, n.n);
		}
		lpo_st_close(st);
		lpo_lora_free(s);
	}
}

static void
test_lora(const char *name, const char *base, int64_t h, int64_t w,
    const char *level)
{
	lpo_lora_set *s = NULL;
	struct rig r;
	int rc = open_rig(&r, name, base, h, w, level);

	if (rc < 0)
		return;
	if (rc == 0)
		goto out;
	test_init(&r, h, w);
	if (lpo_lora_attach(r.g.c, &s, r.u, LPO_LORA_ALL, r.rank, r.alpha,
	    1) < 0 || !fill(&r, lpo_lora_params(s)) || run(&r, h, w, 1) < 0) {
		ok(0, "%s: %s", name, lpo_errmsg(r.g.c));
		goto out;
	}
	g_check(&r.g, r.t, r.out, "out", 0, 0);
	g_check(&r.g, r.t, r.in.sample, "grad_sample", 0, 1);
	g_check(&r.g, r.t, r.in.context, "grad_context", 1, 1);
	g_check_grads(&r.g, lpo_lora_params(s), NULL);
	ok(set_inputs(&r) == 0 &&
	    lpo_tape_forward(r.t, LPO_LORA_OFF) == 0 && is_plain(&r),
	    "%s: a walk without LoRA has the base's bits", name);
	test_save(&r, &s, h, w);
	test_forms(&r, h, w);
	test_settings(&r);
out:
	lpo_lora_free(s);
	close_rig(&r);
}

int
main(void)
{
	test_lora("lora15", "unet15", 7, 9, "auto");
	test_lora("loraxl", "unetxl", 8, 12, "auto");
	test_lora("lora15", "unet15", 7, 9, "portable");
	test_lora("lora15", "unet15", 7, 9, "cuda");
	test_lora("loraxl", "unetxl", 8, 12, "cuda");
	return done_testing();
}
