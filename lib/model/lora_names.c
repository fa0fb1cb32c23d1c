/*
 * The names under which LoRA files know a UNet's layers (models.md 7.1).
 * Underscores are ambiguous, so names are never taken apart: every name a
 * known layer can have goes into one sorted table.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/model/lora_priv.h"

/* ------------------------------------------------------------- LDM names */

/* Names inside a resnet, and the few modules outside the blocks. */
static const char *const inner[][2] = {
	{ "conv1", "in_layers.2" }, { "conv2", "out_layers.3" },
	{ "time_emb_proj", "emb_layers.1" },
	{ "conv_shortcut", "skip_connection" }
};
static const char *const outer[][2] = {
	{ "conv_in", "input_blocks.0.0" }, { "conv_out", "out.2" },
	{ "time_embedding.linear_1", "time_embed.0" },
	{ "time_embedding.linear_2", "time_embed.2" },
	{ "add_embedding.linear_1", "label_emb.0.0" },
	{ "add_embedding.linear_2", "label_emb.0.2" }
};

static const char *
resnet_name(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(inner) / sizeof(inner[0]); i++)
		if (strcmp(name, inner[i][0]) == 0)
			return inner[i][1];
	return name;
}

/* down_blocks.B.: each layer is a block of its own, and so is a sampler. */
static int
down_path(char *out, const struct lpo_unet_config *g, const char *path)
{
	int64_t first = 1;
	int b, j, i, at = 0;

	if (sscanf(path, "down_blocks.%d.%n", &b, &at) != 1 || at == 0)
		return -1;
	for (i = 0; i < b; i++)
		first += g->layers[i] + 1;
	path += at;
	at = 0;
	if (sscanf(path, "resnets.%d.%n", &j, &at) == 1 && at > 0)
		return snprintf(out, LPO_LORA_NAME, "input_blocks.%lld.0.%s",
		    (long long)first + j, resnet_name(path + at));
	if (sscanf(path, "attentions.%d.%n", &j, &at) == 1 && at > 0)
		return snprintf(out, LPO_LORA_NAME, "input_blocks.%lld.1.%s",
		    (long long)first + j, path + at);
	return snprintf(out, LPO_LORA_NAME, "input_blocks.%lld.0.op",
	    (long long)(first + g->layers[b]));
}

/* up_blocks.B.: a sampler belongs to its block's last layer. */
static int
up_path(char *out, const struct lpo_unet_config *g, const char *path)
{
	int64_t first = 0;
	int b, j, i, at = 0;

	if (sscanf(path, "up_blocks.%d.%n", &b, &at) != 1 || at == 0)
		return -1;
	for (i = 0; i < b; i++)
		first += g->layers[g->blocks - 1 - i] + 1;
	path += at;
	at = 0;
	if (sscanf(path, "resnets.%d.%n", &j, &at) == 1 && at > 0)
		return snprintf(out, LPO_LORA_NAME, "output_blocks.%lld.0.%s",
		    (long long)first + j, resnet_name(path + at));
	if (sscanf(path, "attentions.%d.%n", &j, &at) == 1 && at > 0)
		return snprintf(out, LPO_LORA_NAME, "output_blocks.%lld.1.%s",
		    (long long)first + j, path + at);
	return snprintf(out, LPO_LORA_NAME, "output_blocks.%lld.%d.conv",
	    (long long)(first + g->layers[g->blocks - 1 - b]),
	    g->up_cross[b] ? 2 : 1);
}

static int
mid_path(char *out, const char *path)
{
	int j, at = 0;

	if (sscanf(path, "mid_block.resnets.%d.%n", &j, &at) == 1 && at > 0)
		return snprintf(out, LPO_LORA_NAME, "middle_block.%d.%s",
		    2 * j, resnet_name(path + at));
	if (sscanf(path, "mid_block.attentions.%d.%n", &j, &at) == 1 && at > 0)
		return snprintf(out, LPO_LORA_NAME, "middle_block.1.%s",
		    path + at);
	return -1;
}

int
lpo_lora_ldm_path(char out[LPO_LORA_NAME], const struct lpo_unet_config *g,
    const char *path)
{
	size_t i;
	int n;

	for (i = 0; i < sizeof(outer) / sizeof(outer[0]); i++)
		if (strcmp(path, outer[i][0]) == 0)
			return snprintf(out, LPO_LORA_NAME, "%s",
			    outer[i][1]) < 0 ? -1 : 0;
	if (strncmp(path, "down_blocks.", 12) == 0)
		n = down_path(out, g, path);
	else if (strncmp(path, "up_blocks.", 10) == 0)
		n = up_path(out, g, path);
	else
		n = mid_path(out, path);
	return n < 0 || n >= LPO_LORA_NAME ? -1 : 0;
}

int
lpo_lora_kohya_name(char out[LPO_LORA_NAME], const struct lpo_unet_config *g,
    const char *path, int ldm)
{
	char buf[LPO_LORA_NAME];
	char *p;
	int n;

	if (ldm) {
		if (lpo_lora_ldm_path(buf, g, path) < 0)
			return -1;
		path = buf;
	}
	n = snprintf(out, LPO_LORA_NAME, "lora_unet_%s", path);
	if (n < 0 || n >= LPO_LORA_NAME)
		return -1;
	for (p = out; *p != '\0'; p++)
		if (*p == '.')
			*p = '_';
	return 0;
}

/* ------------------------------------------------------------------ keys */

int
lpo_lora_parse_key(char out[LPO_LORA_NAME], const char *key)
{
	/* the longer of two that both fit stands first */
	static const struct {
		const char *tail;
		enum lpo_lora_role role;
	} tails[] = {
		{ ".lora_A.default.weight", LPO_LORA_DOWN },
		{ ".lora_B.default.weight", LPO_LORA_UP },
		{ ".lora_A.weight", LPO_LORA_DOWN },
		{ ".lora_B.weight", LPO_LORA_UP },
		{ ".lora_down.weight", LPO_LORA_DOWN },
		{ ".lora_up.weight", LPO_LORA_UP },
		{ ".lora.down.weight", LPO_LORA_DOWN },
		{ ".lora.up.weight", LPO_LORA_UP },
		{ "_lora.down.weight", LPO_LORA_DOWN },
		{ "_lora.up.weight", LPO_LORA_UP },
		{ ".alpha", LPO_LORA_ALPHA }
	};
	static const char *const heads[] = {
		"base_model.model.", "module.", "unet."
	};
	size_t i, n, m;

	for (i = 0; i < sizeof(heads) / sizeof(heads[0]); i++)
		if (strncmp(key, heads[i], strlen(heads[i])) == 0)
			key += strlen(heads[i]);
	n = strlen(key);
	for (i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
		m = strlen(tails[i].tail);
		if (n <= m || strcmp(key + n - m, tails[i].tail) != 0)
			continue;
		if (n - m >= LPO_LORA_NAME)
			return -1;
		memcpy(out, key, n - m);
		out[n - m] = '\0';
		return (int)tails[i].role;
	}
	return -1;
}

/* ----------------------------------------------------------------- table */

struct name {
	char *text;
	const struct lpo_unet_layer *layer;
};

struct lpo_lora_names {
	lpo_ctx *ctx;
	struct name *name;	/* sorted */
	size_t n;
};

static int
by_text(const void *a, const void *b)
{
	return strcmp(((const struct name *)a)->text,
	    ((const struct name *)b)->text);
}

static int
add(struct lpo_lora_names *t, const char *text,
    const struct lpo_unet_layer *l)
{
	struct name *e = &t->name[t->n];

	if ((e->text = lpo_strdup(t->ctx, text)) == NULL)
		return LPO_ENOMEM;
	e->layer = l;
	t->n++;
	return 0;
}

/* X.to_out.0 -> X.processor.to_out, X.to_q -> X.processor.to_q */
static int
processor_name(char *out, const struct lpo_unet_layer *l)
{
	const char *to = strstr(l->path, ".to_");
	char *zero;
	int n;

	if (!l->attention || to == NULL)
		return -1;
	n = snprintf(out, LPO_LORA_NAME, "%.*s.processor%s",
	    (int)(to - l->path), l->path, to);
	if (n < 0 || n >= LPO_LORA_NAME)
		return -1;
	if ((zero = strstr(out, ".to_out.0")) != NULL)
		zero[strlen(".to_out")] = '\0';
	return 0;
}

/* At most four names a layer. */
static int
add_all(struct lpo_lora_names *t, const struct lpo_unet_config *g,
    const struct lpo_unet_layer *l)
{
	char buf[LPO_LORA_NAME];
	int rc;

	if ((rc = add(t, l->path, l)) < 0)
		return rc;
	if (lpo_lora_kohya_name(buf, g, l->path, 0) == 0 &&
	    (rc = add(t, buf, l)) < 0)
		return rc;
	if (lpo_lora_kohya_name(buf, g, l->path, 1) == 0 &&
	    (rc = add(t, buf, l)) < 0)
		return rc;
	if (processor_name(buf, l) == 0)
		return add(t, buf, l);
	return 0;
}

int
lpo_lora_names_new(lpo_ctx *c, struct lpo_lora_names **out, lpo_unet *u)
{
	const struct lpo_unet_layer *l;
	struct lpo_lora_names *t;
	int64_t i, n;
	int rc;

	*out = NULL;
	l = lpo_unet_layers(u, &n);
	if ((t = lpo_alloc(c, 1, sizeof(*t))) == NULL)
		return LPO_ENOMEM;
	t->ctx = c;
	if ((t->name = lpo_alloc(c, (size_t)(4 * n + 1),
	    sizeof(*t->name))) == NULL) {
		lpo_lora_names_free(t);
		return LPO_ENOMEM;
	}
	for (i = 0; i < n; i++)
		if ((rc = add_all(t, lpo_unet_cfg(u), &l[i])) < 0) {
			lpo_lora_names_free(t);
			return rc;
		}
	qsort(t->name, t->n, sizeof(*t->name), by_text);
	*out = t;
	return 0;
}

void
lpo_lora_names_free(struct lpo_lora_names *t)
{
	size_t i;

	if (t == NULL)
		return;
	for (i = 0; i < t->n; i++)
		lpo_free(t->name[i].text);
	lpo_free(t->name);
	lpo_free(t);
}

const struct lpo_unet_layer *
lpo_lora_names_find(const struct lpo_lora_names *t, const char *name)
{
	struct name want = { .text = (char *)(uintptr_t)name };
	const struct name *e;

	e = bsearch(&want, t->name, t->n, sizeof(*t->name), by_text);
	return e != NULL ? e->layer : NULL;
}
