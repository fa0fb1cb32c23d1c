/* Noise schedule and DDIM: models.md 6. */
#include "lib/train/schedule.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "lib/base/json.h"
#include "lib/model/config.h"
#include "lib/model/source.h"

#define MAX_TRAIN_STEPS 100000

static const char *const beta_names[] = { "linear", "scaled_linear" };
static const char *const prediction_names[] = { "epsilon", "v_prediction" };
static const char *const spacing_names[] = {
	"leading", "trailing", "linspace"
};

/*
 * torch.linspace in f32, bit for bit: the lower half counts up from the
 * start, the upper half down from the end, and a vector of eight decides by
 * its first element (models.md 6.1).
 */
static void
linspace(float *out, int64_t n, float start, float end)
{
	float step = (end - start) / (float)(n - 1), base;
	int64_t i, i0;

	for (i = 0; i < n; i++) {
		i0 = i - i % 8;
		base = i0 < n / 2 ? fmaf(step, (float)i0, start) :
		    fmaf(-step, (float)(n - 1 - i0), end);
		out[i] = fmaf((float)(i - i0), step, base);
	}
}

int
lpo_schedule_init(lpo_ctx *c, struct lpo_schedule *s)
{
	double product = 1;
	float b, alpha;
	int64_t i;
	int scaled = s->beta_schedule == LPO_BETA_SCALED_LINEAR, rc;

	if (s->train_steps < 2 || s->train_steps > MAX_TRAIN_STEPS)
		return lpo_fail(c, LPO_EFORMAT, "'num_train_timesteps' is "
		    "%lld", (long long)s->train_steps);
	if (!(s->beta_start > 0 && s->beta_start <= s->beta_end &&
	    s->beta_end < 1))
		return lpo_fail(c, LPO_EFORMAT, "'beta_start' %g and "
		    "'beta_end' %g do not lie in 0..1 in this order",
		    s->beta_start, s->beta_end);
	if (s->steps_offset < 0 || s->steps_offset >= s->train_steps)
		return lpo_fail(c, LPO_EFORMAT, "'steps_offset' is %lld",
		    (long long)s->steps_offset);
	s->abar = lpo_alloc(c, (size_t)s->train_steps, sizeof(*s->abar));
	if (s->abar == NULL)
		return LPO_ENOMEM;
	if (scaled)
		linspace(s->abar, s->train_steps, (float)sqrt(s->beta_start),
		    (float)sqrt(s->beta_end));
	else
		linspace(s->abar, s->train_steps, (float)s->beta_start,
		    (float)s->beta_end);
	for (i = 0; i < s->train_steps; i++) {
		b = s->abar[i];
		if (scaled)
			b *= b;
		alpha = 1.0f - b;
		product *= (double)alpha;
		s->abar[i] = (float)product;
	}
	/* all that is computed divides by them, and by 1 less them */
	if (s->abar[0] < 1 && s->abar[s->train_steps - 1] >= FLT_MIN)
		return 0;
	rc = lpo_fail(c, LPO_EFORMAT, "'num_train_timesteps' %lld from "
	    "'beta_start' %g to 'beta_end' %g: the cumulative alphas go from "
	    "%g to %g, without noise at the beginning or without signal at "
	    "the end", (long long)s->train_steps, s->beta_start, s->beta_end,
	    (double)s->abar[0], (double)s->abar[s->train_steps - 1]);
	lpo_schedule_free(s);
	return rc;
}

void
lpo_schedule_free(struct lpo_schedule *s)
{
	lpo_free(s->abar);
	s->abar = NULL;
}

/* *out = index of the member's string among n names; absent: the default. */
static int
choice(lpo_ctx *c, int *out, const json_t *j, const char *key,
    const char *const *names, int n, int dflt)
{
	const char *s;
	int i, rc;

	if ((rc = lpo_json_str(c, &s, j, key, names[dflt])) < 0)
		return rc;
	for (i = 0; i < n; i++)
		if (strcmp(s, names[i]) == 0) {
			*out = i;
			return 0;
		}
	return lpo_fail(c, LPO_EFORMAT, "'%s' is '%.32s', which is not "
	    "supported", key, s);
}

/* A flag that changes the maths in a way this code does not have. */
static int
refuse(lpo_ctx *c, const json_t *j, const char *key)
{
	int on, rc;

	if ((rc = lpo_json_bool(c, &on, j, key, 0)) < 0)
		return rc;
	if (on)
		return lpo_fail(c, LPO_EFORMAT, "'%s' is not supported", key);
	return 0;
}

static int
read_config(lpo_ctx *c, struct lpo_schedule *s, json_t *j)
{
	int beta = 0, prediction = 0, spacing = 0, clip, rc;
	const char *class;

	if (!json_is_object(j))
		return lpo_fail(c, LPO_EFORMAT, "not a JSON object");
	/* without betas: DDIM's defaults would stand in for another noise */
	if ((rc = lpo_json_str(c, &class, j, "_class_name", "")) < 0)
		return rc;
	if (strncmp(class, "EDM", 3) == 0 ||
	    strncmp(class, "FlowMatch", 9) == 0)
		return lpo_fail(c, LPO_EFORMAT, "'_class_name' is '%.48s', "
		    "whose noise is not supported", class);
	lpo_config_strip(j);
	if ((rc = lpo_json_real(c, &s->beta_start, j, "beta_start",
	    0.0001)) < 0 ||
	    (rc = lpo_json_real(c, &s->beta_end, j, "beta_end", 0.02)) < 0 ||
	    (rc = lpo_json_int(c, &s->train_steps, j, "num_train_timesteps",
	    1000)) < 0 ||
	    (rc = lpo_json_int(c, &s->steps_offset, j, "steps_offset",
	    0)) < 0 ||
	    (rc = lpo_json_bool(c, &s->set_alpha_to_one, j,
	    "set_alpha_to_one", 1)) < 0 ||
	    (rc = choice(c, &beta, j, "beta_schedule", beta_names, 2,
	    0)) < 0 ||
	    (rc = choice(c, &prediction, j, "prediction_type",
	    prediction_names, 2, 0)) < 0 ||
	    (rc = choice(c, &spacing, j, "timestep_spacing", spacing_names, 3,
	    0)) < 0 ||
	    (rc = refuse(c, j, "rescale_betas_zero_snr")) < 0 ||
	    (rc = refuse(c, j, "use_flow_sigmas")) < 0 ||
	    (rc = refuse(c, j, "thresholding")) < 0 ||
	    (rc = lpo_json_bool(c, &clip, j, "clip_sample", 0)) < 0)
		return rc;
	if (clip)
		lpo_notice(c, "'clip_sample' of the scheduler is ignored: "
		    "latents are not clipped");
	if (lpo_json_get(j, "trained_betas") != NULL)
		return lpo_fail(c, LPO_EFORMAT,
		    "'trained_betas' is not supported");
	s->beta_schedule = (enum lpo_beta_schedule)beta;
	s->prediction = (enum lpo_prediction)prediction;
	s->spacing = (enum lpo_spacing)spacing;
	return lpo_schedule_init(c, s);
}

int
lpo_schedule_parse(lpo_ctx *c, struct lpo_schedule *s, const char *json,
    const char *where)
{
	json_t *j = NULL;
	int rc;

	memset(s, 0, sizeof(*s));
	if ((rc = lpo_json_load(c, &j, json, strlen(json), where)) < 0)
		return rc;
	if ((rc = read_config(c, s, j)) < 0)
		lpo_fail_prefix(c, "%s", where);
	json_decref(j);
	return rc;
}

int
lpo_schedule_load(lpo_ctx *c, struct lpo_schedule *s, const char *model_dir)
{
	json_t *j = NULL;
	char *path;
	int rc;

	memset(s, 0, sizeof(*s));
	path = lpo_asprintf(c, "%s/scheduler/scheduler_config.json",
	    model_dir);
	if (path == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_source_json(c, &j, path, 0)) == 0 &&
	    (rc = read_config(c, s, j)) < 0)
		lpo_fail_prefix(c, "%s", path);
	json_decref(j);
	lpo_free(path);
	return rc;
}

char *
lpo_schedule_json(lpo_ctx *c, const struct lpo_schedule *s)
{
	json_t *j;
	char *text = NULL;

	j = json_pack("{s:f, s:f, s:s, s:I, s:s}",
	    "beta_start", s->beta_start, "beta_end", s->beta_end,
	    "beta_schedule", beta_names[s->beta_schedule],
	    "num_train_timesteps", (json_int_t)s->train_steps,
	    "prediction_type", prediction_names[s->prediction]);
	if (j == NULL)
		lpo_fail(c, LPO_ENOMEM, "out of memory");
	else
		text = lpo_json_dumps(c, j);
	json_decref(j);
	return text;
}

int
lpo_schedule_timesteps(lpo_ctx *c, const struct lpo_schedule *s, int64_t *t,
    int64_t n)
{
	int64_t k, ratio, total = s->train_steps;
	double step;

	if (n < 1 || n > total)
		return lpo_fail(c, LPO_EINVAL, "%lld sampling steps of %lld",
		    (long long)n, (long long)total);
	ratio = total / n;
	for (k = 0; k < n; k++)
		switch (s->spacing) {
		case LPO_SPACING_LEADING:
			t[k] = (n - 1 - k) * ratio + s->steps_offset;
			break;
		case LPO_SPACING_TRAILING:
			/* numpy.arange's step: its second value less 1st */
			step = (double)total - (double)total / (double)n -
			    (double)total;
			t[k] = (int64_t)nearbyint((double)total +
			    (double)k * step) - 1;
			break;
		case LPO_SPACING_LINSPACE:
			step = n > 1 ? (double)(total - 1) / (double)(n - 1) :
			    0;
			t[k] = (int64_t)nearbyint((double)(n - 1 - k) * step);
			break;
		}
	if (t[0] >= total)
		return lpo_fail(c, LPO_EINVAL, "%lld sampling steps with "
		    "'steps_offset' %lld reach beyond the last timestep",
		    (long long)n, (long long)s->steps_offset);
	return 0;
}

void
lpo_schedule_ddim(const struct lpo_schedule *s, struct lpo_ddim *d, int64_t t,
    int64_t n, double eta, int clamp)
{
	double a, ap, direction, eps_x, eps_e;

	assert(t >= 0 && t < s->train_steps && n >= 1 && n <= s->train_steps);
	d->t = t;
	d->prev = t - s->train_steps / n;
	a = d->abar_t = (double)s->abar[t];
	if (d->prev >= 0)
		ap = (double)s->abar[d->prev];
	else
		ap = clamp || !s->set_alpha_to_one ? (double)s->abar[0] : 1;
	if (d->prev < 0)
		d->prev = 0;
	d->abar_prev = ap;
	/* t = 0: there abar_prev is abar_t, and rounding may go below 0 */
	d->sigma = eta * sqrt(fmax(0, (1 - ap) / (1 - a) * (1 - a / ap)));
	direction = sqrt(fmax(0, 1 - ap - d->sigma * d->sigma));
	if (s->prediction == LPO_PREDICT_V) {
		d->x0_x = sqrt(a);
		d->x0_eps = -sqrt(1 - a);
		eps_x = sqrt(1 - a);
		eps_e = sqrt(a);
	} else {
		d->x0_x = 1 / sqrt(a);
		d->x0_eps = -sqrt(1 - a) / sqrt(a);
		eps_x = 0;
		eps_e = 1;
	}
	d->c_x = sqrt(ap) * d->x0_x + direction * eps_x;
	d->c_eps = sqrt(ap) * d->x0_eps + direction * eps_e;
}

void
lpo_schedule_add_noise(const struct lpo_schedule *s, float *out,
    const float *x0, const float *noise, int64_t t, int64_t count)
{
	float a = sqrtf(s->abar[t]), b = sqrtf(1.0f - s->abar[t]);
	int64_t i;

	assert(t >= 0 && t < s->train_steps);
	for (i = 0; i < count; i++)
		out[i] = a * x0[i] + b * noise[i];
}
