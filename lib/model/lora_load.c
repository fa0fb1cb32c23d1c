/* LoRA files of every form that UNets meet (models.md 7, ecosystem.md 3.3). */
#include <math.h>
#include <string.h>

#include "lib/base/file.h"
#include "lib/base/json.h"
#include "lib/io/safetensors.h"
#include "lib/model/lora_priv.h"

/* What a file has for one layer, by role. */
struct found {
	const struct lpo_st_tensor *t[3];
};

struct loader {
	lpo_ctx *ctx;
	lpo_lora_set *set;
	lpo_st *st;
	struct lpo_lora_names *names;
	struct found *found;	/* one per layer of the UNet */
	json_t *peft;		/* PEFT's settings, NULL: none */
	const char *prefix;	/* of their names in `peft` */
	int64_t text;		/* tensors for text encoders */
};

/* Adapters that are more than B A: taking only a part would be wrong. */
static int
refuse_others(struct loader *l, const char *key)
{
	static const char *const others[] = {
		"dora_scale", "lora_magnitude_vector", "hada_", "lokr_",
		"lora_mid", "oft_", "lora_bias"
	};
	size_t i;

	for (i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (strstr(key, others[i]) != NULL)
			return lpo_fail(l->ctx, LPO_EFORMAT,
			    "%s: '%s': only plain LoRA is supported",
			    lpo_st_path(l->st), key);
	return 0;
}

static int
is_text(const char *key)
{
	return strncmp(key, "lora_te", 7) == 0 ||
	    strncmp(key, "text_encoder", 12) == 0;
}

/*
 * Find the tensor's layer.  A file may hold the same layers in two forms; the
 * first in key order counts, "lora_unet_" before "unet.", and is whole.
 */
static int
sort_in(struct loader *l, const struct lpo_st_tensor *t)
{
	const struct lpo_unet_layer *all, *at;
	char name[LPO_LORA_NAME];
	struct found *f;
	int64_t n;
	int role, rc;

	if ((rc = refuse_others(l, t->key)) < 0)
		return rc;
	if (is_text(t->key)) {
		l->text++;
		return 0;
	}
	if ((role = lpo_lora_parse_key(name, t->key)) < 0)
		return lpo_fail(l->ctx, LPO_EFORMAT,
		    "%s: '%s' is not a LoRA key of a known form",
		    lpo_st_path(l->st), t->key);
	if ((at = lpo_lora_names_find(l->names, name)) == NULL)
		return lpo_fail(l->ctx, LPO_EFORMAT, "%s: '%s': this UNet has "
		    "no such layer (a LoRA for another model?)",
		    lpo_st_path(l->st), t->key);
	all = lpo_unet_layers(l->set->unet, &n);
	f = &l->found[at - all];
	if (f->t[role] == NULL)
		f->t[role] = t;
	return 0;
}

/* ----------------------------------------------------------------- alpha */

static const json_t *
peft_get(const struct loader *l, const char *key)
{
	char buf[64];

	strcpy(buf, l->prefix);
	strcat(buf, key);
	return lpo_json_get(l->peft, buf);
}

/*
 * What stands where a number should, such as "8", would be taken for 0: a LoRA
 * that does nothing, without a word; "yes" for a flag that is off.
 */
static int
check_peft(struct loader *l, const char *path)
{
	/* what begins by taking a part out of the model's own weights */
	static const char *const moved[] = {
		"pissa", "olora", "loftq", "corda"
	};
	static const char *const flags[] = { "use_dora", "use_rslora" };
	const json_t *map = peft_get(l, "alpha_pattern");
	const json_t *alpha = peft_get(l, "lora_alpha");
	const char *init, *key;
	size_t i;
	json_t *v;

	if (!json_is_object(l->peft))
		return lpo_fail(l->ctx, LPO_EFORMAT, "%s: PEFT's settings are "
		    "no object", path);
	if (alpha != NULL && !json_is_number(alpha))
		return lpo_fail(l->ctx, LPO_EFORMAT, "%s: 'lora_alpha' is not "
		    "a number", path);
	if (map != NULL && !json_is_object(map))
		return lpo_fail(l->ctx, LPO_EFORMAT, "%s: 'alpha_pattern' is "
		    "no object", path);
	json_object_foreach((json_t *)(uintptr_t)map, key, v)
		if (!json_is_number(v))
			return lpo_fail(l->ctx, LPO_EFORMAT, "%s: "
			    "alpha_pattern '%s' is not a number", path, key);
	for (i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		v = (json_t *)(uintptr_t)peft_get(l, flags[i]);
		if (v != NULL && !json_is_boolean(v))
			return lpo_fail(l->ctx, LPO_EFORMAT, "%s: '%s' is not "
			    "true or false", path, flags[i]);
	}
	init = json_string_value(peft_get(l, "init_lora_weights"));
	for (i = 0; init != NULL && i < sizeof(moved) / sizeof(moved[0]); i++)
		if (strncmp(init, moved[i], strlen(moved[i])) == 0)
			return lpo_fail(l->ctx, LPO_EFORMAT, "%s: "
			    "'init_lora_weights' is '%.32s': such a LoRA goes "
			    "with weights that PEFT has changed; convert it "
			    "there to a plain one", path, init);
	return 0;
}

/* PEFT's settings: in the metadata, or in a file beside. */
static int
read_peft(struct loader *l, const char *path)
{
	const char *text = lpo_st_meta(l->st, "lora_adapter_metadata");
	const struct lpo_st_tensor *first = lpo_st_at(l->st, 0);
	char *dir = NULL, *file = NULL;
	int rc = LPO_ENOMEM;

	l->prefix = "unet.";
	if (text != NULL) {
		rc = lpo_json_load(l->ctx, &l->peft, text, strlen(text),
		    "lora_adapter_metadata");
		return rc < 0 ? rc : check_peft(l, path);
	}
	if (first == NULL || strncmp(first->key, "base_model.model.", 17) != 0)
		return 0;
	l->prefix = "";
	if ((dir = lpo_dirname(l->ctx, path)) == NULL ||
	    (file = lpo_path_join(l->ctx, dir, "adapter_config.json")) == NULL)
		goto out;
	rc = 0;
	if (lpo_file_exists(file)) {
		rc = lpo_json_load_file(l->ctx, &l->peft, file, 1 << 20);
		if (rc == 0)
			rc = check_peft(l, file);
	} else
		lpo_notice(l->ctx, "%s: no adapter_config.json beside it: "
		    "LoRA scale 1 taken", path);
out:
	lpo_free(dir);
	lpo_free(file);
	return rc;
}

/*
 * alpha_pattern's value for a path, as PEFT's get_pattern_key() finds it: keys
 * are ends of paths, whole ones with a ^ before, and the first that fits
 * counts.  A real regular expression is refused.
 */
static int
alpha_pattern(struct loader *l, const char *path, double *alpha)
{
	const json_t *map = peft_get(l, "alpha_pattern");
	const char *key, *end;	/* the loop goes on from key itself */
	size_t n, m = strlen(path);
	int whole, found = 0;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)map, key, v) {
		whole = key[0] == '^';
		end = key + whole;
		n = strlen(end);
		n -= n > 0 && end[n - 1] == '$';
		if (strcspn(end, "\\|[](){}*+?") < n)
			return lpo_fail(l->ctx, LPO_EFORMAT,
			    "%s: alpha_pattern '%s' is not supported",
			    lpo_st_path(l->st), key);
		if (!found && n <= m && strncmp(path + m - n, end, n) == 0 &&
		    (n == m || (!whole && path[m - n - 1] == '.'))) {
			*alpha = json_number_value(v);
			found = 1;
		}
	}
	return 0;
}

/* The file's scale for one layer, before strength. */
static int
find_scale(struct loader *l, const struct lpo_unet_layer *at,
    const struct found *f, int64_t rank, float *scale)
{
	double alpha = (double)rank;
	float one;
	int rc;

	if (f->t[LPO_LORA_ALPHA] != NULL) {
		if (f->t[LPO_LORA_ALPHA]->count != 1)
			return lpo_fail(l->ctx, LPO_EFORMAT,
			    "%s: '%s' is not one number", lpo_st_path(l->st),
			    f->t[LPO_LORA_ALPHA]->key);
		if ((rc = lpo_st_f32(l->ctx, &one,
		    f->t[LPO_LORA_ALPHA])) < 0) {
			lpo_fail_prefix(l->ctx, "%s", lpo_st_path(l->st));
			return rc;
		}
		alpha = one;
	} else if (l->peft != NULL) {
		if (json_is_true(peft_get(l, "use_dora")))
			return lpo_fail(l->ctx, LPO_EFORMAT,
			    "%s: use_dora: only plain LoRA is supported",
			    lpo_st_path(l->st));
		if (peft_get(l, "lora_alpha") != NULL)
			alpha = json_number_value(peft_get(l, "lora_alpha"));
		if ((rc = alpha_pattern(l, at->path, &alpha)) < 0)
			return rc;
		if (json_is_true(peft_get(l, "use_rslora")))
			alpha *= sqrt((double)rank);
	}
	*scale = (float)(alpha / (double)rank);
	if (!isfinite(*scale))
		return lpo_fail(l->ctx, LPO_EFORMAT, "%s: alpha of '%s' is not "
		    "finite", lpo_st_path(l->st), at->path);
	return 0;
}

/* --------------------------------------------------------------- weights */

/* Equal but for ones at the end. */
static int
same_shape(const struct lpo_st_tensor *t, const lpo_param *p)
{
	int i, n = t->ndim > p->rank ? t->ndim : p->rank;

	for (i = 0; i < n; i++)
		if ((i < t->ndim ? t->shape[i] : 1) !=
		    (i < p->rank ? p->shape[i] : 1))
			return 0;
	return 1;
}

static int
import(struct loader *l, lpo_param *p, const struct lpo_st_tensor *t)
{
	float *x;
	int64_t i;
	int rc;

	if (!same_shape(t, p))
		return lpo_fail(l->ctx, LPO_EFORMAT,
		    "%s: the shape of '%s' does not fit '%s'",
		    lpo_st_path(l->st), t->key, p->key);
	if ((x = lpo_alloc(l->ctx, (size_t)t->count, sizeof(*x))) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_st_f32(l->ctx, x, t)) < 0)
		lpo_fail_prefix(l->ctx, "%s", lpo_st_path(l->st));
	for (i = 0; i < t->count && rc == 0; i++)
		if (!isfinite(x[i]))
			rc = lpo_fail(l->ctx, LPO_EFORMAT,
			    "%s: element %lld of '%s' is not finite",
			    lpo_st_path(l->st), (long long)i, t->key);
	if (rc == 0)
		rc = lpo_param_import(&l->set->params, p, x);
	lpo_free(x);
	return rc;
}

static int
load_layer(struct loader *l, const struct lpo_unet_layer *at,
    const struct found *f, float strength)
{
	const struct lpo_st_tensor *a = f->t[LPO_LORA_DOWN];
	const struct lpo_st_tensor *b = f->t[LPO_LORA_UP];
	struct lpo_lora_item *it;
	float scale = 1;
	int i, rc;

	if (a == NULL || b == NULL)
		return lpo_fail(l->ctx, LPO_EFORMAT,
		    "%s: '%s' has no %s matrix", lpo_st_path(l->st), at->path,
		    a == NULL ? "down" : "up");
	if (a->ndim < 2 || b->ndim < 2 || b->shape[1] != a->shape[0] ||
	    a->shape[0] < 1)
		return lpo_fail(l->ctx, LPO_EFORMAT,
		    "%s: '%s' and '%s' differ in rank", lpo_st_path(l->st),
		    a->key, b->key);
	if ((rc = find_scale(l, at, f, a->shape[0], &scale)) < 0 ||
	    (rc = lpo_lora_put(l->set, &it, at, a->shape[0],
	    scale * strength)) < 0 ||
	    (rc = import(l, it->lora.a, a)) < 0 ||
	    (rc = import(l, it->lora.b, b)) < 0)
		return rc;
	for (i = 0; i < 3; i++)
		if (f->t[i] != NULL && (it->key[i] = lpo_strdup(l->ctx,
		    f->t[i]->key)) == NULL)
			return LPO_ENOMEM;
	return 0;
}

static int
load(struct loader *l, const char *path, float strength)
{
	const struct lpo_unet_layer *all;
	int64_t i, n;
	int rc;

	all = lpo_unet_layers(l->set->unet, &n);
	if ((l->found = lpo_alloc(l->ctx, (size_t)n,
	    sizeof(*l->found))) == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_st_open(l->ctx, &l->st, path)) < 0 ||
	    (rc = lpo_lora_names_new(l->ctx, &l->names, l->set->unet)) < 0 ||
	    (rc = read_peft(l, path)) < 0)
		return rc;
	for (i = 0; i < lpo_st_count(l->st); i++)
		if ((rc = sort_in(l, lpo_st_at(l->st, i))) < 0)
			return rc;
	for (i = 0; i < n; i++)
		if ((l->found[i].t[0] != NULL || l->found[i].t[1] != NULL ||
		    l->found[i].t[2] != NULL) && (rc = load_layer(l, &all[i],
		    &l->found[i], strength)) < 0)
			return rc;
	if (l->set->n == 0)
		return lpo_fail(l->ctx, LPO_EFORMAT,
		    "%s: no LoRA for a UNet in it", path);
	if (l->text > 0)
		lpo_notice(l->ctx, "%s: %lld tensors for text encoders are "
		    "not used", path, (long long)l->text);
	return 0;
}

int
lpo_lora_load(lpo_ctx *c, lpo_lora_set **out, lpo_unet *u, const char *path,
    float strength, int train)
{
	struct loader l = { .ctx = c };
	int rc;

	*out = NULL;
	if (!isfinite(strength))
		return lpo_fail(c, LPO_EINVAL, "%s: a strength of %g", path,
		    (double)strength);
	if ((rc = lpo_lora_new(c, &l.set, u)) == 0)
		rc = load(&l, path, strength);
	if (rc == 0 && train)
		rc = lpo_params_train_all(&l.set->params);
	if (rc == 0) {
		*out = l.set;
		l.set = NULL;
	}
	lpo_lora_free(l.set);
	lpo_lora_names_free(l.names);
	lpo_free(l.found);
	json_decref(l.peft);
	lpo_st_close(l.st);
	return rc;
}
