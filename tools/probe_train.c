/* lpo-probe: DDIM, the LPO loss and step, Philox. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/philox.h"
#include "lib/train/lpo_loss.h"
#include "tools/probe.h"

/* ----------------------------------------------------------------- ddim */

/* The table, the sampling steps in their order, and thresholds on them. */
static int
put_schedule(struct lpo_probe *p, const struct lpo_schedule *s)
{
	int64_t n = p->o->steps, i;
	int64_t *t = lpo_alloc(p->ctx, (size_t)n, sizeof *t);
	struct lpo_ddim *step = lpo_alloc(p->ctx, (size_t)n, sizeof *step);
	double *th = lpo_alloc(p->ctx, (size_t)n, sizeof *th);
	float *abar = lpo_probe_new(p, s->train_steps);
	float *out_t = lpo_probe_new(p, n), *out_th = lpo_probe_new(p, n);
	struct lpo_threshold spec;
	int rc = lpo_errcode(p->ctx);

	if (rc != 0 || (rc = lpo_schedule_timesteps(p->ctx, s, t, n)) != 0)
		goto out;
	memcpy(abar, s->abar, (size_t)s->train_steps * sizeof *abar);
	for (i = 0; i < n; i++) {
		out_t[i] = (float)t[i];
		lpo_schedule_ddim(s, &step[i], t[i], n, 1, 1);
	}
	if ((rc = lpo_probe_put(p, "timesteps", 1, &n, out_t)) != 0 ||
	    (rc = lpo_probe_put(p, "alphas_cumprod", 1, &s->train_steps,
	    abar)) != 0 || p->o->threshold == NULL ||
	    (rc = lpo_threshold_parse(p->ctx, &spec,
	    p->o->threshold)) != 0)
		goto out;
	lpo_threshold_table(&spec, th, step, n);
	for (i = 0; i < n; i++)
		out_th[i] = (float)th[i];
	rc = lpo_probe_put(p, "threshold", 1, &n, out_th);
out:
	lpo_free(th);
	lpo_free(step);
	lpo_free(t);
	return rc;
}

static int
probe_ddim(struct lpo_probe *p)
{
	int64_t s[4] = { -1, -1, -1, -1 }, ts[1], *t, i, k, n;
	struct lpo_schedule sched = { 0 };
	struct lpo_ddim d;
	float *x, *e, *z = NULL, *x0, *mu, *sigma, *prev;
	int rc;

	if ((x = lpo_probe_f32(p, "x_t", 4, s)) == NULL)
		return lpo_errcode(p->ctx);
	ts[0] = s[0];
	n = s[1] * s[2] * s[3];
	e = lpo_probe_f32(p, "eps", 4, s);
	t = lpo_probe_i64(p, "timestep", 1, ts);
	if (lpo_probe_has(p, "noise"))
		z = lpo_probe_f32(p, "noise", 4, s);
	x0 = lpo_probe_new(p, s[0] * n);
	mu = lpo_probe_new(p, s[0] * n);
	prev = lpo_probe_new(p, s[0] * n);
	sigma = lpo_probe_new(p, s[0]);
	if (lpo_errcode(p->ctx) != 0)
		return lpo_errcode(p->ctx);
	if ((rc = lpo_schedule_load(p->ctx, &sched, p->cli->o.model)) != 0)
		return rc;
	for (i = 0; i < s[0] && rc == 0; i++) {
		if (t[i] < 0 || t[i] >= sched.train_steps) {
			rc = lpo_fail(p->ctx, LPO_EINVAL, "timestep %lld is "
			    "not in 0..%lld", (long long)t[i],
			    (long long)sched.train_steps - 1);
			break;
		}
		lpo_schedule_ddim(&sched, &d, t[i], p->o->steps, p->o->eta,
		    0);
		sigma[i] = (float)d.sigma;
		for (k = i * n; k < (i + 1) * n; k++) {
			double xk = (double)x[k], ek = (double)e[k];

			x0[k] = (float)(d.x0_x * xk + d.x0_eps * ek);
			mu[k] = (float)(d.c_x * xk + d.c_eps * ek);
			if (z != NULL)
				prev[k] = (float)(d.c_x * xk + d.c_eps * ek +
				    d.sigma * (double)z[k]);
		}
	}
	if (rc == 0)
		rc = put_schedule(p, &sched);
	lpo_schedule_free(&sched);
	if (rc != 0 || (rc = lpo_probe_put(p, "x0", 4, s, x0)) != 0 ||
	    (rc = lpo_probe_put(p, "mu", 4, s, mu)) != 0 ||
	    (rc = lpo_probe_put(p, "sigma", 1, ts, sigma)) != 0)
		return rc;
	return z != NULL ? lpo_probe_put(p, "x_prev", 4, s, prev) : 0;
}

/* ------------------------------------------------------------- LPO's loss */

struct pairs {		/* what lpo-loss and lpo-step have in common */
	int64_t s[4], n, count;
	float *x_t, *win, *lose;
	int64_t *t;
	struct lpo_schedule sched;
	double loss;
	float *ratio_win, *ratio_lose, *d_eps;
};

static int
read_pairs(struct lpo_probe *p, struct pairs *q)
{
	int64_t ts[1], i;
	int rc;

	for (i = 0; i < 4; i++)
		q->s[i] = -1;
	if ((q->x_t = lpo_probe_f32(p, "x_t", 4, q->s)) == NULL)
		return lpo_errcode(p->ctx);
	ts[0] = q->n = q->s[0];
	q->count = q->s[1] * q->s[2] * q->s[3];
	q->win = lpo_probe_f32(p, "x_win", 4, q->s);
	q->lose = lpo_probe_f32(p, "x_lose", 4, q->s);
	q->t = lpo_probe_i64(p, "timestep", 1, ts);
	q->ratio_win = lpo_probe_new(p, q->n);
	q->ratio_lose = lpo_probe_new(p, q->n);
	q->d_eps = lpo_probe_new(p, q->n * q->count);
	if (lpo_errcode(p->ctx) != 0)
		return lpo_errcode(p->ctx);
	if ((rc = lpo_schedule_load(p->ctx, &q->sched, p->cli->o.model)) != 0)
		return rc;
	for (i = 0; i < q->n; i++)
		if (q->t[i] < 0 || q->t[i] >= q->sched.train_steps)
			return lpo_fail(p->ctx, LPO_EINVAL, "timestep %lld is "
			    "not in 0..%lld", (long long)q->t[i],
			    (long long)q->sched.train_steps - 1);
	return 0;
}

/* The mean over pairs; any order of elements, as long as it is one. */
static void
pair_loss(struct lpo_probe *p, struct pairs *q, const float *eps,
    const float *eps_ref)
{
	const struct lpo_pair_loss opt = { .beta = p->o->beta,
	    .clip = p->o->clip };
	struct lpo_pair_out o;
	struct lpo_ddim d;
	int64_t i, at;

	q->loss = 0;
	for (i = 0; i < q->n; i++) {
		at = i * q->count;
		/* clamped as the official code, so that sigma > 0 at t = 1 */
		lpo_schedule_ddim(&q->sched, &d, q->t[i], p->o->steps,
		    p->o->eta, 1);
		lpo_pair_loss_eval(&opt, &o, q->d_eps + at,
		    1.0 / (double)q->n, &d, eps + at, eps_ref + at,
		    q->x_t + at, q->win + at, q->lose + at, q->count);
		q->loss += o.loss / (double)q->n;
		q->ratio_win[i] = (float)o.ratio_win;
		q->ratio_lose[i] = (float)o.ratio_lose;
	}
}

static int
probe_lpo_loss(struct lpo_probe *p)
{
	struct pairs q = { .loss = 0 };
	float *eps, *ref;
	int rc;

	if ((rc = read_pairs(p, &q)) != 0)
		goto out;
	eps = lpo_probe_f32(p, "eps", 4, q.s);
	ref = lpo_probe_f32(p, "eps_ref", 4, q.s);
	if (eps == NULL || ref == NULL) {
		rc = lpo_errcode(p->ctx);
		goto out;
	}
	pair_loss(p, &q, eps, ref);
	if ((rc = lpo_probe_put_scalar(p, "loss", q.loss)) != 0 ||
	    (rc = lpo_probe_put(p, "ratio_win", 1, &q.n, q.ratio_win)) != 0 ||
	    (rc = lpo_probe_put(p, "ratio_lose", 1, &q.n,
	    q.ratio_lose)) != 0)
		goto out;
	if (p->o->grad)
		rc = lpo_probe_put(p, "d_eps", 4, q.s, q.d_eps);
out:
	lpo_schedule_free(&q.sched);
	return rc;
}

/* -------------------------------------------------------------- LPO's step */

struct step {
	struct lpo_probe *p;
	struct pairs q;
	lpo_unet *unet;
	lpo_lora_set *lora;
	lpo_tape *t;
	struct lpo_unet_in in;
	lpo_var *out;
	int copies;
	float *both;		/* [n, copies, h, w, c], and its gradient */
	float *eps, *ref;	/* [n, c, h, w], after guidance */
};

/* The network's two halves to one guided epsilon in file order. */
static int
guided(struct step *s, float *eps, int flags)
{
	int64_t i, j, k, hw = s->q.s[2] * s->q.s[3], c = s->q.s[1];
	float g = (float)s->p->o->guidance;
	int rc;

	if ((rc = lpo_probe_set_inputs(s->p, s->t)) != 0 ||
	    (rc = lpo_tape_forward(s->t, flags)) != 0 ||
	    (rc = lpo_var_get(s->t, s->out, s->both)) != 0)
		return rc;
	for (i = 0; i < s->q.n; i++) {
		const float *a = s->both + i * s->copies * hw * c;
		const float *b = a + hw * c;

		for (j = 0; j < hw; j++)
			for (k = 0; k < c; k++, a++, b++)
				eps[(i * c + k) * hw + j] = s->copies == 1 ?
				    *a : *b + g * (*a - *b);
	}
	return 0;
}

static int
step_once(void *arg)
{
	struct step *s = arg;
	int64_t i, j, k, hw = s->q.s[2] * s->q.s[3], c = s->q.s[1];
	float g = (float)s->p->o->guidance, d;
	int rc;

	if ((rc = lpo_params_zero_grad(lpo_lora_params(s->lora))) != 0 ||
	    (rc = guided(s, s->ref, LPO_LORA_OFF)) != 0 ||
	    (rc = guided(s, s->eps, 0)) != 0)
		return rc;
	pair_loss(s->p, &s->q, s->eps, s->ref);
	for (i = 0; i < s->q.n; i++)
		for (j = 0; j < hw; j++)
			for (k = 0; k < c; k++) {
				float *a = s->both + ((i * s->copies) * hw +
				    j) * c + k;

				d = s->q.d_eps[(i * c + k) * hw + j];
				*a = s->copies == 1 ? d : g * d;
				if (s->copies == 2)
					a[hw * c] = (1 - g) * d;
			}
	if ((rc = lpo_var_set_grad(s->t, s->out, s->both)) != 0)
		return rc;
	return lpo_tape_backward(s->t);
}

/* Per pair its own row of `cond`, then the one row of `uncond`. */
static int
set_two(struct step *s, lpo_var *v, const float *cond, const float *uncond,
    int64_t count)
{
	float *x = lpo_probe_new(s->p, lpo_var_count(v));
	int64_t i;

	if (x == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < s->q.n; i++) {
		memcpy(x + i * s->copies * count, cond + i * count,
		    (size_t)count * sizeof *x);
		if (s->copies == 2)
			memcpy(x + (i * 2 + 1) * count, uncond,
			    (size_t)count * sizeof *x);
	}
	return lpo_probe_input(s->p, v, x);
}

/* SDXL: pooled texts and time ids, set after the tape has its memory. */
static int
set_added(struct step *s, int64_t pooled)
{
	const struct lpo_unet_config *c = lpo_unet_cfg(s->unet);
	int64_t se[2] = { s->q.n, pooled }, su[2] = { 1, pooled };
	int64_t si[2] = { s->q.n, 6 }, i;
	float *e = lpo_probe_f32(s->p, "text_embeds", 2, se);
	float *u = lpo_probe_f32(s->p, "uncond_text_embeds", 2, su);
	float *ids = lpo_probe_f32(s->p, "time_ids", 2, si);
	float *rows = lpo_probe_new(s->p, s->q.n * s->copies * 6);
	int rc;

	if (e == NULL || u == NULL || ids == NULL || rows == NULL)
		return lpo_errcode(s->p->ctx);
	for (i = 0; i < s->q.n * s->copies; i++)
		memcpy(rows + i * 6, ids + i / s->copies * 6,
		    6 * sizeof *rows);
	if ((rc = set_two(s, s->in.text_embeds, e, u, pooled)) != 0)
		return rc;
	return lpo_probe_sinusoids(s->p, s->in.time_ids, s->unet, rows,
	    s->q.n * s->copies * 6, c->add_time_dim);
}

/* 1: all tokens of the one row are the same. */
static int
is_flat(const float *text, int64_t length, int64_t dim)
{
	return memcmp(text, text + dim, (size_t)((length - 1) * dim) *
	    sizeof *text) == 0;
}

static int
step_record(struct step *s, const float *uncond, int64_t length, int64_t dim,
    int64_t pooled)
{
	const struct lpo_unet_config *c = lpo_unet_cfg(s->unet);
	const int64_t *d = s->q.s;
	int rc;

	s->in.copies = s->copies;
	s->in.flat_uncond = is_flat(uncond, length, dim);
	s->in.sample = lpo_input(s->t, s->q.n, d[2], d[3], d[1], LPO_F32, 0);
	s->in.time = lpo_input(s->t, s->q.n, 1, 1, c->channels[0], LPO_F32, 0);
	s->in.context = lpo_input(s->t, s->q.n * s->copies, length, 1, dim,
	    LPO_F32, 0);
	if (c->text_time) {
		s->in.text_embeds = lpo_input(s->t, s->q.n * s->copies, 1, 1,
		    pooled, LPO_F32, 0);
		s->in.time_ids = lpo_input(s->t, s->q.n * s->copies, 1, 1,
		    6 * c->add_time_dim, LPO_F32, 0);
	}
	s->out = lpo_unet_fwd(s->t, s->unet, &s->in);
	lpo_output(s->t, s->out, 1);
	if ((rc = lpo_tape_plan(s->t, 1, NULL)) != 0)
		return rc;
	return lpo_tape_commit(s->t, NULL);
}

static int
step_inputs(struct step *s, const float *cond, const float *uncond,
    int64_t row, int64_t pooled)
{
	const struct lpo_unet_config *c = lpo_unet_cfg(s->unet);
	int64_t n = s->q.n, i;
	float *x = lpo_probe_new(s->p, n * s->q.count);
	float *time = lpo_probe_new(s->p, n);
	int rc;

	s->eps = lpo_probe_new(s->p, n * s->q.count);
	s->ref = lpo_probe_new(s->p, n * s->q.count);
	s->both = lpo_probe_new(s->p, n * s->copies * s->q.count);
	if (x == NULL || time == NULL || s->eps == NULL || s->ref == NULL ||
	    s->both == NULL)
		return LPO_ENOMEM;
	lpo_probe_to_hwc(x, s->q.x_t, n, s->q.s[1], s->q.s[2] * s->q.s[3]);
	for (i = 0; i < n; i++)
		time[i] = (float)s->q.t[i];
	if ((rc = lpo_probe_input(s->p, s->in.sample, x)) != 0 ||
	    (rc = lpo_probe_sinusoids(s->p, s->in.time, s->unet, time, n,
	    c->channels[0])) != 0 ||
	    (rc = set_two(s, s->in.context, cond, uncond, row)) != 0)
		return rc;
	return c->text_time ? set_added(s, pooled) : 0;
}

static int
step_open(struct step *s)
{
	struct lpo_probe *p = s->p;
	enum lpo_dtype dt = lpo_cli_precision(p->cli);
	char *dir = NULL;
	int rc;

	if (p->o->lora == NULL)
		return lpo_cli_usage(p->cli, "lpo-step: give --lora FILE");
	if ((rc = read_pairs(p, &s->q)) != 0 ||
	    (rc = lpo_cli_model_part(p->cli, &dir, "unet")) != 0 ||
	    (rc = lpo_unet_load(p->ctx, &p->cli->be, &s->unet, dir, dt,
	    0)) != 0 || (rc = lpo_lora_load(p->ctx, &s->lora, s->unet,
	    p->o->lora, 1, 1)) != 0)
		goto out;
	s->copies = p->o->guidance == 1 ? 1 : 2;
	s->t = lpo_tape_new(p->ctx, &p->cli->be, dt, s->q.n);
	rc = s->t == NULL ? LPO_ENOMEM : 0;
out:
	lpo_free(dir);
	return rc;
}

static int
probe_lpo_step(struct lpo_probe *p)
{
	int64_t cs[3] = { -1, -1, -1 }, us[3] = { 1, -1, -1 };
	int64_t ps[2] = { -1, -1 };
	struct step s = { .p = p };
	float *cond, *uncond;
	int rc;

	if ((rc = step_open(&s)) != 0)
		goto out;
	cs[0] = s.q.n;
	cond = lpo_probe_f32(p, "encoder_hidden_states", 3, cs);
	us[1] = cs[1];
	us[2] = cs[2];
	uncond = lpo_probe_f32(p, "uncond_hidden_states", 3, us);
	if (lpo_unet_cfg(s.unet)->text_time)
		lpo_probe_f32(p, "text_embeds", 2, ps);
	if ((rc = lpo_errcode(p->ctx)) != 0 ||
	    (rc = step_record(&s, uncond, cs[1], cs[2],
	    ps[1])) != 0 ||
	    (rc = step_inputs(&s, cond, uncond, cs[1] * cs[2], ps[1])) != 0 ||
	    (rc = lpo_probe_run(p, step_once, &s)) != 0 ||
	    (rc = lpo_probe_put_scalar(p, "loss", s.q.loss)) != 0 ||
	    (rc = lpo_probe_put(p, "eps", 4, s.q.s, s.eps)) != 0 ||
	    (rc = lpo_probe_put(p, "eps_ref", 4, s.q.s, s.ref)) != 0)
		goto out;
	if (p->o->grad)
		rc = lpo_probe_put_lora_grads(p, s.lora);
out:
	lpo_tape_free(s.t);
	lpo_lora_free(s.lora);
	lpo_unet_free(s.unet);
	lpo_schedule_free(&s.q.sched);
	return rc;
}

/* --------------------------------------------------------------- Philox */

static int
probe_philox(struct lpo_probe *p)
{
	int64_t cs[2] = { -1, 4 }, ks[2] = { -1, 2 }, *c, *k, *out, i, j;

	if ((c = lpo_probe_i64(p, "counter", 2, cs)) == NULL)
		return lpo_errcode(p->ctx);
	ks[0] = cs[0];
	k = lpo_probe_i64(p, "key", 2, ks);
	out = (int64_t *)(void *)lpo_probe_new(p, 8 * cs[0]);
	if (k == NULL || out == NULL)
		return lpo_errcode(p->ctx);
	for (i = 0; i < cs[0]; i++) {
		const uint32_t counter[4] = { (uint32_t)c[4 * i],
		    (uint32_t)c[4 * i + 1], (uint32_t)c[4 * i + 2],
		    (uint32_t)c[4 * i + 3] };
		const uint32_t key[2] = { (uint32_t)k[2 * i],
		    (uint32_t)k[2 * i + 1] };
		uint32_t w[4];

		lpo_philox4x32(w, counter, key);
		for (j = 0; j < 4; j++)
			out[4 * i + j] = w[j];
	}
	return lpo_probe_put_i64(p, "random", 2, cs, out);
}

const struct lpo_probe_component lpo_probe_train[] = {
	{ "ddim", probe_ddim, 1, 1 },
	{ "lpo-loss", probe_lpo_loss, 1, 1 },
	{ "lpo-step", probe_lpo_step, 1, 1 },
	{ "philox", probe_philox, 1, 0 },
	{ NULL, NULL, 0, 0 }
};
