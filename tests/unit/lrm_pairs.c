/* Pairs of a stream: what is refused, by name; agreement with its interval. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/io/npy.h"
#include "lib/train/lrm_pairs.h"
#include "tests/tap.h"

#define MODEL "tests/golden/lrm/sd"

static lpo_ctx *c;
static const int64_t shape[3] = { 4, 6, 4 };

/* A good pair; `json` replaces members of its KEY.json. */
static void
make(struct lpo_sample *s, const char *json, float first, int dims)
{
	float x[96] = { 0 };
	uint8_t *bytes;
	int64_t size;
	json_t *more;
	int k;

	memset(s, 0, sizeof(*s));
	s->key = lpo_strdup(c, "000000007-e0");
	s->json = json_pack("{s:s, s:f, s:f, s:i, s:i, s:i}", "prompt", "ab",
	    "label_0", 1.0, "label_1", 0.0, "timestep_0", 51, "timestep_1",
	    51, "num_example_per_prompt", 2);
	if (json != NULL && lpo_json_load(c, &more, json, strlen(json),
	    "test") == 0) {
		json_object_update(s->json, more);
		json_decref(more);
	}
	x[0] = first;
	x[25] = 5;		/* channel 1, second place */
	for (k = 0; k < 2; k++)
		if (lpo_npy_make(c, &bytes, &size, LPO_NPY_F4, dims,
		    shape + 3 - dims, x) == 0)
			lpo_sample_add(c, s, k ? "latent_1.npy" :
			    "latent_0.npy", bytes, size);
}

static void
refused(lpo_lrm_batch *b, const char *json, float first, int dims,
    const char *word)
{
	struct lpo_sample s;
	int rc;

	make(&s, json, first, dims);
	rc = lpo_lrm_batch_add(b, &s);
	ok(rc == LPO_EFORMAT && strstr(lpo_errmsg(c), word) != NULL &&
	    strstr(lpo_errmsg(c), "000000007-e0") != NULL, "refused: %s",
	    lpo_errmsg(c));
	lpo_clear(c);
	lpo_sample_clear(&s);
}

static void
stream(lpo_lrm *m, const char *json, int want)
{
	json_t *j;

	if (lpo_json_load(c, &j, json, strlen(json), "run") < 0)
		return;
	ok(lpo_lrm_stream_check(c, j, lpo_lrm_cfg(m)) == want, "stream: %s",
	    lpo_errmsg(c));
	lpo_clear(c);
	json_decref(j);
}

static void
rates(void)
{
	struct lpo_lrm_rate *r = NULL;
	int64_t n = 0, i;
	const int64_t t[4][2] = { { 401, 401 }, { 1, 1 }, { 1, 51 },
	    { 951, 951 } };
	const float up[2] = { 2, 1 }, even[2] = { 1, 1 };
	int rc = 0;

	for (i = 0; i < 10; i++)	/* 8 of 10 right at t = 401 */
		rc |= lpo_lrm_rate_add(c, &r, &n, t[0], (double[2]){
		    i < 8, i >= 8 }, up);
	rc |= lpo_lrm_rate_add(c, &r, &n, t[1], (double[2]){ 1, 0 }, even);
	rc |= lpo_lrm_rate_add(c, &r, &n, t[2], (double[2]){ 0, 1 }, up);
	rc |= lpo_lrm_rate_add(c, &r, &n, t[3], (double[2]){ .5, .5 }, up);
	ok(rc == 0 && n == 5 && r[0].t == -1 && r[1].t == -2 &&
	    r[2].t == 1 && r[3].t == 401 && r[4].t == 951,
	    "all, mixed, then timesteps in order");
	ok(r[0].n == 12 && r[0].right == 8, "ties have no say");
	ok(r[2].right == 0 && r[2].n == 1, "equal scores are wrong");
	/* Wilson's interval for 8 of 10: 0.4902 .. 0.9433 */
	ok(fabs(r[3].low - 0.4902) < 1e-4 && fabs(r[3].high - 0.9433) < 1e-4,
	    "Wilson's interval, %.4f to %.4f", r[3].low, r[3].high);
	ok(r[4].n == 0 && isnan(r[4].rate), "nothing to say is NaN");
	lpo_free(r);
	r = NULL;
	n = 0;
	/* Newcombe (1998): 81 of 263 gives 0.2553, 0.3662 */
	for (i = 0; i < 263; i++)
		rc |= lpo_lrm_rate_add(c, &r, &n, t[0], (double[2]){
		    i < 81, i >= 81 }, up);
	ok(rc == 0 && fabs(r[0].low - 0.2553) < 5e-5 &&
	    fabs(r[0].high - 0.3662) < 5e-5, "81 of 263, %.4f to %.4f",
	    r[0].low, r[0].high);
	lpo_free(r);
}

int
main(void)
{
	lpo_backend be;
	lpo_lrm *m = NULL;
	lpo_lrm_batch *b = NULL;
	const struct lpo_lrm_pair *p;
	struct lpo_sample s;
	int64_t got[3];
	int i;

	c = lpo_ctx_new();
	if (lpo_cpu_open(&be, LPO_ISA_AUTO, 1) < 0 || lpo_lrm_new(c, &be, &m,
	    MODEL, LPO_F32, NULL, NULL, 1) < 0 ||
	    lpo_lrm_batch_new(c, &b, m, shape) < 0) {
		printf("Bail out! %s\n", lpo_errmsg(c));
		return 1;
	}
	for (i = 0; i < 40; i++) {
		make(&s, NULL, (float)i, 3);
		if (lpo_lrm_batch_add(b, &s) < 0)
			break;
		lpo_sample_clear(&s);
	}
	ok(i == 40 && lpo_lrm_batch_count(b) == 40, "forty pairs");
	p = lpo_lrm_batch_pairs(b);
	ok(p[39].latent[1][0] == 39 && p[39].latent[0][5] == 5 &&
	    p[39].t[0] == 51 && p[39].num_example == 2 &&
	    p[39].label[0] == 1, "channels last, facts");
	make(&s, NULL, 0, 3);
	ok(lpo_lrm_sample_shape(c, got, &s) == 0 && got[0] == 4 &&
	    got[1] == 6 && got[2] == 4, "shape");
	lpo_sample_clear(&s);
	refused(b, NULL, NAN, 3, "finite");
	refused(b, NULL, 0, 2, "latent_0.npy");
	refused(b, "{\"label_0\": 0.7}", 0, 3, "labels");
	refused(b, "{\"label_0\": -1, \"label_1\": 2}", 0, 3, "labels");
	refused(b, "{\"timestep_0\": -1}", 0, 3, "timestep");
	refused(b, "{\"timestep_0\": null}", 0, 3, "timestep_0");
	refused(b, "{\"prompt\": 3}", 0, 3, "prompt");
	refused(b, "{\"num_example_per_prompt\": 0}", 0, 3, "num_example");
	ok(lpo_lrm_batch_count(b) == 40, "none of them stayed");
	stream(m, "{\"kind\": \"pairs\", \"latent\": {\"channels\": 4, "
	    "\"scaling_factor\": 0.5}}", 0);
	stream(m, "{\"kind\": \"moments\"}", LPO_EFORMAT);
	stream(m, "{\"kind\": \"pairs\", \"latent\": {\"channels\": 16}}",
	    LPO_EFORMAT);
	stream(m, "{\"kind\": \"pairs\", \"latent\": {\"scaling_factor\": "
	    "0.13}}", LPO_EFORMAT);
	rates();
	lpo_lrm_batch_free(b);
	lpo_lrm_free(m);
	lpo_cpu_close(&be);
	lpo_ctx_free(c);
	return done_testing();
}
