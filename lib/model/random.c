/* Random models: kinds, names, and how wide each weight is drawn. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/hash.h"
#include "lib/model/random_kinds.h"

#define PREFIX "random:"
/* In every hash: weights that are drawn otherwise are another model. */
#define GENERATION "lpo-random-1"

static const struct lpo_random_kind kinds[] = {
	{ "sd15", LPO_RANDOM_SD15, "[320, 640, 1280, 1280]", "8", "1", 64, 32,
	    768, 0, 0, "[128, 256, 512, 512]", 32, 512, "0.18215", 0.18215,
	    { { 768, 3072, 12, 12, 768, "quick_gelu" } }, 49408 },
	{ "sd21", LPO_RANDOM_SD21, "[320, 640, 1280, 1280]",
	    "[5, 10, 20, 20]", "1", 64, 32, 1024, 0, 0,
	    "[128, 256, 512, 512]", 32, 768, "0.18215", 0.18215,
	    { { 1024, 4096, 23, 16, 512, "gelu" } }, 49408 },
	{ "sdxl", LPO_RANDOM_SDXL, "[320, 640, 1280]", "[5, 10, 20]",
	    "[1, 2, 10]", 128, 32, 2048, 256, 2816, "[128, 256, 512, 512]",
	    32, 1024, "0.13025", 0.13025,
	    { { 768, 3072, 12, 12, 768, "quick_gelu" },
	    { 1280, 5120, 32, 20, 1280, "gelu" } }, 49408 },
	{ "tiny", LPO_RANDOM_SD15, "[16, 32, 64, 64]", "2", "1", 16, 8, 48, 0,
	    0, "[8, 16, 32, 32]", 8, 128, "0.18215", 0.18215,
	    { { 48, 96, 3, 4, 48, "quick_gelu" } }, 514 },
	{ "tiny21", LPO_RANDOM_SD21, "[16, 32, 64, 64]", "[2, 4, 8, 8]", "1",
	    16, 8, 64, 0, 0, "[8, 16, 32, 32]", 8, 128, "0.18215", 0.18215,
	    { { 64, 128, 3, 4, 32, "gelu" } }, 514 },
	{ "tinyxl", LPO_RANDOM_SDXL, "[16, 32, 64]", "[2, 4, 8]",
	    "[1, 2, 3]", 16, 8, 112, 16, 160, "[8, 16, 32, 32]", 8, 128,
	    "0.13025", 0.13025,
	    { { 48, 96, 3, 4, 48, "quick_gelu" },
	    { 64, 128, 4, 4, 64, "gelu" } }, 514 }
};
#define N_KINDS (sizeof(kinds) / sizeof(kinds[0]))

int
lpo_random_is(const char *path)
{
	return strncmp(path, PREFIX, sizeof(PREFIX) - 1) == 0;
}

/* The seed after KIND, and the rest after the slashes; NULL: no seed there. */
static const char *
parse_seed(const char *p, uint64_t *seed)
{
	char *end;

	*seed = 0;
	if (*p == ':') {
		if (p[1] < '0' || p[1] > '9' || strspn(p + 1, "0123456789") >
		    18)
			return NULL;
		*seed = strtoull(p + 1, &end, 10);
		p = end;
	}
	if (*p != '\0' && *p != '/')
		return NULL;
	return p + strspn(p, "/");
}

/* 0, -1: no such kind, -2: no seed after it. */
static int
parse(struct lpo_random *r, const char *path)
{
	const char *name = path + sizeof(PREFIX) - 1;
	size_t i, n = strcspn(name, ":/");

	for (i = 0; i < N_KINDS; i++)
		if (strlen(kinds[i].name) == n &&
		    strncmp(kinds[i].name, name, n) == 0)
			break;
	if (i == N_KINDS)
		return -1;
	r->kind = &kinds[i];
	r->rest = parse_seed(name + n, &r->seed);
	return r->rest != NULL ? 0 : -2;
}

int
lpo_random_parse(lpo_ctx *c, struct lpo_random *r, const char *path)
{
	char all[128] = "";
	size_t i, at = 0;
	int rc = parse(r, path);

	if (rc == -2)
		return lpo_fail(c, LPO_EINVAL, "'%s': a seed from 0 to 10^18 "
		    "follows the second colon", path);
	if (rc == 0)
		return 0;
	for (i = 0; i < N_KINDS; i++)
		at += (size_t)snprintf(all + at, sizeof(all) - at, "%s%s",
		    i > 0 ? ", " : "", kinds[i].name);
	return lpo_fail(c, LPO_EINVAL, "'%s': the random models are %s", path,
	    all);
}

int
lpo_random_sha256(lpo_ctx *c, char out[65], const char *path)
{
	struct lpo_random r;
	struct lpo_sha256 s;
	char *name;
	int rc;

	if ((rc = lpo_random_parse(c, &r, path)) != 0)
		return rc;
	name = lpo_asprintf(c, GENERATION "/%s:%llu/%s", r.kind->name,
	    (unsigned long long)r.seed, r.rest);
	if (name == NULL)
		return LPO_ENOMEM;
	lpo_sha256_init(&s);
	lpo_sha256_update(&s, name, strlen(name));
	lpo_sha256_hex(&s, out);
	lpo_free(name);
	return 0;
}

int
lpo_random_has(const char *path)
{
	struct lpo_random r;
	const char *f;
	size_t n;
	int i;

	if (parse(&r, path) != 0)
		return 0;
	for (n = strlen(r.rest); n > 0 && r.rest[n - 1] == '/'; )
		n--;
	for (i = 0; (f = lpo_random_file(&r, i)) != NULL; i++)
		if (n == 0 || (strncmp(f, r.rest, n) == 0 &&
		    (f[n] == '\0' || f[n] == '/')))
			return 1;
	return 0;
}

/* --------------------------------------------------------------- weights */

/*
 * Gains of layers by the end of their path.  Inputs that went through SiLU
 * have an rms of 0.6, through a gated or plain GELU 0.65: what follows makes
 * up for it.  Residual branches come back at about a half, so that the sum
 * of many stays near 1.  Queries and keys are wide enough for attention to
 * choose: of thousands of equal weights nothing would be left but a mean.
 */
static const struct {
	const char *tail;
	float gain;
} gains[] = {
	{ "conv1", 1.6f }, { "conv2", 0.8f }, { "time_emb_proj", 0.8f },
	{ "to_q", 1.5f }, { "to_k", 1.5f }, { "q_proj", 1.5f },
	{ "k_proj", 1.5f }, { "to_out.0", 0.7f }, { "out_proj", 0.7f },
	{ "ff.net.2", 0.8f }, { "mlp.fc2", 0.8f }, { "proj_out", 0.5f },
	{ "linear_1", 1.4f }, { "linear_2", 1.6f },
	{ "decoder.conv_out", 0.5f },	/* pixels mostly in -1..1 */
	{ "encoder.conv_in", 1.7f }, { "conv_out", 1.6f },
	{ "token_embedding", 0.7f }, { "position_embedding", 0.7f }
};

static float
gain_of(const char *key, size_t n)
{
	size_t i, m;

	for (i = 0; i < sizeof(gains) / sizeof(gains[0]); i++) {
		m = strlen(gains[i].tail);
		if (n >= m && strncmp(key + n - m, gains[i].tail, m) == 0)
			return gains[i].gain;
	}
	return 1;
}

/*
 * quant_conv's output is mean and log variance.  Means are as wide as real
 * ones, so that latents times the scaling factor are near 1; the posterior
 * is narrow.
 */
static void
quant(const struct lpo_random *r, struct lpo_random_tensor *t,
    const char *key, int64_t count)
{
	float s = (float)r->kind->scaling_factor;

	if (strcmp(key, "quant_conv.weight") == 0) {
		t->from = count / 2;
		t->std2 = t->std;
		t->std /= s;
	} else if (strcmp(key, "quant_conv.bias") == 0) {
		t->from = count / 2;
		t->mean2 = -6;
		t->std2 = t->std;
	} else if (strcmp(key, "post_quant_conv.weight") == 0)
		t->std *= s;
}

void
lpo_random_tensor(const struct lpo_random *r, const char *part,
    struct lpo_random_tensor *t, const char *key, int rank,
    const int64_t *shape)
{
	const char *dot = strrchr(key, '.');
	size_t n = dot != NULL ? (size_t)(dot - key) : strlen(key);
	unsigned char h[32];
	struct lpo_sha256 s;
	int64_t count = 1;
	int i;

	for (i = 0; i < rank; i++)
		count *= shape[i];
	lpo_sha256_init(&s);
	lpo_sha256_update(&s, GENERATION, sizeof(GENERATION));
	lpo_sha256_update(&s, r->kind->name, strlen(r->kind->name) + 1);
	lpo_sha256_update(&s, part, strlen(part) + 1);
	lpo_sha256_update(&s, key, strlen(key));
	lpo_sha256_final(&s, h);
	memset(t, 0, sizeof(*t));
	t->draw.seed = r->seed;
	t->draw.purpose = LPO_DRAW_INIT;
	t->draw.item = (uint32_t)h[0] | (uint32_t)h[1] << 8 |
	    (uint32_t)h[2] << 16 | (uint32_t)h[3] << 24;
	t->draw.epoch = (uint32_t)h[4] | (uint32_t)h[5] << 8;
	t->draw.step = (uint32_t)h[6] | (uint32_t)h[7] << 8;
	t->draw.candidate = (uint32_t)h[8] | (uint32_t)h[9] << 8 |
	    (uint32_t)h[10] << 16;
	t->from = INT64_MAX;
	t->std = 0.1f;
	if (rank == 1 && dot != NULL && strcmp(dot, ".weight") == 0)
		t->mean = 1;			/* of a norm */
	else if (rank > 1 && strstr(key, "_embedding.weight") != NULL)
		t->std = gain_of(key, n);
	else if (rank > 1)
		t->std = (float)((double)gain_of(key, n) /
		    sqrt((double)(count / shape[0])));
	quant(r, t, key, count);
}

void
lpo_random_draw(const struct lpo_random_tensor *t, int64_t first, float *out,
    int64_t n)
{
	int64_t i, cut = t->from - first;

	cut = cut < 0 ? 0 : cut > n ? n : cut;
	lpo_draw_normal(&t->draw, (uint64_t)first, out, n);
	for (i = 0; i < cut; i++)
		out[i] = t->mean + t->std * out[i];
	for (; i < n; i++)
		out[i] = t->mean2 + t->std2 * out[i];
}
