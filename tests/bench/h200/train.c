/*
 * A whole LPO iteration by phase, and a step of the reward model's training,
 * of random models: what is learnt is nothing, what it takes is all there.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/progress.h"
#include "lib/train/lpo.h"
#include "lib/train/lrm_train.h"
#include "tests/bench/h200/bench.h"

enum { MAX_PROMPTS = 32 };

/*
 * A table of kernels that knows how long the host waited for the device, and
 * the device for the host: from the moment that the host learns of the end of
 * the last walk until it calls for the next, nothing but copies is queued.
 * The host's work is dear there and only there.
 */
static struct {
	const struct lpo_kernels *real;
	struct lpo_kernels table;
	double waited_s, uploaded_s, idle_s;
	double idle_since;		/* 0: a walk is queued */
	int64_t walks;			/* calls of walks so far */
	struct {
		void *landing;
		int64_t walks;		/* that it is behind */
	} at[8];
	int next;
} watch;

static void
watch_walk(void)
{
	watch.walks++;
	if (watch.idle_since > 0)
		watch.idle_s += lpo_now_s() - watch.idle_since;
	watch.idle_since = 0;
}

/* The host has waited from `start` for what is behind so many walks. */
static void
watch_wait(double start, int64_t walks)
{
	double now = lpo_now_s();

	watch.waited_s += now - start;
	if (walks == watch.walks && watch.idle_since == 0)
		watch.idle_since = now;
}

static int
watched_download(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	double t = lpo_now_s();
	int rc = watch.real->download(be, dst, src, bytes);

	watch_wait(t, watch.walks);
	return rc;
}

static int
watched_upload(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	double t = lpo_now_s();
	int rc = watch.real->upload(be, dst, src, bytes);

	watch.uploaded_s += lpo_now_s() - t;
	return rc;
}

static int
watched_land(lpo_backend *be, void *landing, const void *src, size_t bytes)
{
	int i, n = (int)(sizeof(watch.at) / sizeof(*watch.at));

	for (i = 0; i < n && watch.at[i].landing != landing; i++)
		;
	if (i == n)
		i = watch.next = (watch.next + 1) % n;
	watch.at[i].landing = landing;
	watch.at[i].walks = watch.walks;
	return watch.real->land(be, landing, src, bytes);
}

static int
watched_landed(lpo_backend *be, void *landing, const void **host)
{
	double t = lpo_now_s();
	int i, n = (int)(sizeof(watch.at) / sizeof(*watch.at)), rc;

	rc = watch.real->landed(be, landing, host);
	for (i = 0; i < n && watch.at[i].landing != landing; i++)
		;
	watch_wait(t, i < n ? watch.at[i].walks : 0);
	return rc;
}

static int
watched_sync(lpo_backend *be)
{
	double t = lpo_now_s();
	int rc = watch.real->sync(be);

	watch_wait(t, watch.walks);
	return rc;
}

static int
watched_graph(lpo_backend *be, void *graph)
{
	int rc = watch.real->graph_run(be, graph);

	watch_walk();
	return rc;
}

/* Walks that are not recorded yet: every one has convolutions. */
static int
watched_conv(lpo_backend *be, enum lpo_dtype dt, void *y, const void *x,
    const void *w, const float *bias, const void *residual,
    const struct lpo_conv_shape *s, void *scratch)
{
	watch_walk();
	return watch.real->conv_fwd(be, dt, y, x, w, bias, residual, s,
	    scratch);
}

static int
watched_conv_bwd(lpo_backend *be, enum lpo_dtype dt, void *dx,
    const void *dy, const void *w, const struct lpo_conv_shape *s, int add,
    void *scratch)
{
	watch_walk();
	return watch.real->conv_bwd_data(be, dt, dx, dy, w, s, add, scratch);
}

static void
watch_begin(struct bench *b)
{
	memset(&watch, 0, sizeof(watch));
	watch.real = b->be.k;
	watch.table = *b->be.k;
	watch.table.download = watched_download;
	watch.table.upload = watched_upload;
	watch.table.land = watched_land;
	watch.table.landed = watched_landed;
	watch.table.sync = watched_sync;
	watch.table.conv_fwd = watched_conv;
	watch.table.conv_bwd_data = watched_conv_bwd;
	if (watch.real->graph_begin != NULL)
		watch.table.graph_run = watched_graph;
	b->be.k = &watch.table;
}

static void
watch_end(struct bench *b)
{
	b->be.k = watch.real;
}

/* A trainer and what it works on. */
struct rig {
	struct bench *b;
	const char *section, *model;
	int xl;
	enum lpo_dtype dtype;		/* of the policy */
	int64_t rank, prompts, batch, steps;
	const char *threshold;		/* which decides how many are pairs */
	lpo_policy_texts *texts;
	lpo_lrm_texts *lrm_texts;
	lpo_lrm *lrm;
	lpo_unet *unet;
	lpo_lora_set *lora;
	struct lpo_schedule schedule;
	struct lpo_lpo_parts parts;
	lpo_lpo *lpo;
};

static enum lpo_dtype
narrow(const struct bench *b)
{
	return b->bf16 ? LPO_BF16 : LPO_F32;
}

static void
drop(struct rig *r)
{
	lpo_lpo_free(r->lpo);
	lpo_lora_free(r->lora);
	lpo_unet_free(r->unet);
	lpo_lrm_texts_free(r->lrm_texts);
	lpo_policy_texts_free(r->texts);
	lpo_lrm_free(r->lrm);
	lpo_schedule_free(&r->schedule);
}

static int
prompts(struct rig *r)
{
	static const char *const thing[] = { "a lake", "an old man's face",
	    "a red bicycle", "two cats on a sofa, watercolour" };
	const char *list[MAX_PROMPTS];
	lpo_ctx *c = r->b->ctx;
	lpo_text *text = NULL;
	int64_t i;
	int rc;

	for (i = 0; i < r->prompts; i++)
		list[i] = thing[i % 4];
	if ((rc = lpo_text_open(c, &r->b->be, &text, r->model,
	    r->dtype)) < 0 || (rc = lpo_policy_texts_new(c, &r->texts, text,
	    list, r->prompts)) < 0)
		goto out;
	r->parts.length = lpo_text_length(text);
	r->parts.dim = lpo_text_dim(text);
	r->parts.pooled_dim = lpo_text_pooled_dim(text);
	if ((rc = lpo_lrm_open(c, &r->b->be, &r->lrm, r->model, r->model,
	    narrow(r->b), NULL)) == 0)
		rc = lpo_lrm_texts_new(c, &r->lrm_texts, r->lrm, list,
		    r->prompts);
out:
	lpo_text_free(text);
	return rc;
}

static int
options(const struct rig *r, struct lpo_lpo_options *out)
{
	int64_t side = lpo_unet_cfg(r->unet)->sample_size;
	struct lpo_lpo_options o = {
		.seed = 1, .h = side, .w = side, .height_px = 8 * side,
		.width_px = 8 * side, .steps = r->steps, .candidates = 4,
		.prompts = r->prompts, .batch = r->batch, .t_hi = INT64_MAX,
		.eta = 1, .guidance = 5,
		.loss = { .beta = 500, .clip = 0.1 },
		.adamw = { .lr = 6e-5f, .beta1 = 0.9f, .beta2 = 0.999f,
		    .eps = 1e-8f, .weight_decay = 1e-4f }
	};
	size_t left = 0, all = 0;

	/* what is free, but for a tenth */
	r->b->be.k->memory(&r->b->be, &left, &all);
	o.memory_bytes = left / 10 * 9;
	*out = o;
	return lpo_threshold_parse(r->b->ctx, &out->threshold, r->threshold);
}

static int
make(struct rig *r)
{
	lpo_ctx *c = r->b->ctx;
	struct lpo_lpo_options o;
	char dir[64];
	int rc;

	r->model = bench_model(r->b, r->xl);
	snprintf(dir, sizeof(dir), "%s/unet", r->model);
	if ((rc = prompts(r)) < 0 ||
	    (rc = lpo_schedule_load(c, &r->schedule, r->model)) < 0 ||
	    (rc = lpo_unet_load(c, &r->b->be, &r->unet, dir, r->dtype,
	    0)) < 0 || (rc = lpo_lora_attach(c, &r->lora, r->unet,
	    LPO_LORA_ATTENTION, r->rank, (float)r->rank, 1)) < 0 ||
	    (rc = lpo_lrm_load_unet(r->lrm)) < 0 ||
	    (rc = options(r, &o)) < 0)
		return rc;
	r->parts.be = &r->b->be;
	r->parts.dtype = r->dtype;
	r->parts.unet = r->unet;
	r->parts.lora = r->lora;
	r->parts.schedule = &r->schedule;
	r->parts.texts = r->texts;
	r->parts.prompts = r->prompts;
	r->parts.lrm = r->lrm;
	r->parts.lrm_texts = r->lrm_texts;
	return lpo_lpo_new(c, &r->lpo, &r->parts, &o);
}

/* ---------------------------------------------------------- an iteration */

/* Seconds of the phases. */
struct phases {
	double all[3], waited[3], uploaded[3], idle[3];
};

/*
 * The device goes on from piece to piece; a phase ends where the host has its
 * result, and the first scores may be under way by the end of the rollout.
 * So it is waited for where nothing is begun ahead, at the end of all.
 */
static int
iterate(struct rig *r, struct phases *p)
{
	enum lpo_lpo_phase phase;
	int64_t done, total;
	double t;
	int rc;

	memset(p, 0, sizeof(*p));
	do {
		phase = lpo_lpo_where(r->lpo, &done, &total);
		watch.waited_s = watch.uploaded_s = watch.idle_s = 0;
		t = lpo_now_s();
		if ((rc = lpo_lpo_advance(r->lpo)) < 0)
			return rc;
		if (rc == 1 && bench_sync(r->b) < 0)
			return lpo_errcode(r->b->ctx);
		p->all[phase] += lpo_now_s() - t;
		p->waited[phase] += watch.waited_s;
		p->uploaded[phase] += watch.uploaded_s;
		p->idle[phase] += watch.idle_s;
	} while (rc == 0);
	return 0;
}

static void
put_phases(struct rig *r, int64_t n, const struct phases *s)
{
	static const char *const phase[] = { "rollout", "score", "train" };
	const struct lpo_lpo_report *p = lpo_lpo_report(r->lpo);
	struct lpo_lpo_plan plan;
	struct bench_line l = { .section = r->section, .dt = r->dtype };
	double flops[3], all = 0, all_s = 0;
	int i;

	lpo_lpo_plan(r->lpo, &plan);
	flops[LPO_PH_ROLLOUT] = plan.rollout_flops;
	flops[LPO_PH_SCORE] = plan.score_flops;
	flops[LPO_PH_TRAIN] = plan.pair_flops * (double)p->pairs;
	for (i = 0; i < 3; i++) {
		snprintf(l.shape, sizeof(l.shape), "iteration %lld, %lld "
		    "pairs", (long long)n, (long long)p->pairs);
		l.name = phase[i];
		l.dt = i == LPO_PH_SCORE ? narrow(r->b) : r->dtype;
		l.ms = 1e3 * s->all[i];
		l.flops = flops[i];
		bench_put(r->b, &l);
		bench_say("%s %s: %.1f ms waiting for the device, %.1f "
		    "uploading, %.1f else on the host; the device had no walk "
		    "to do for %.1f", r->section, phase[i],
		    1e3 * s->waited[i], 1e3 * s->uploaded[i], 1e3 *
		    (s->all[i] - s->waited[i] - s->uploaded[i]),
		    1e3 * s->idle[i]);
		all += flops[i];
		all_s += s->all[i];
	}
	if (p->skipped_steps > 0)
		bench_say("%s: %lld steps left out: %s not finite", r->section,
		    (long long)p->skipped_steps, p->bad_loss ? "loss" :
		    "gradient");
	bench_say("%s: %lld of %lld transitions valid, loss %.4g", r->section,
	    (long long)p->valid, (long long)p->transitions, p->loss);
	l.name = "all";
	l.dt = r->dtype;
	l.ms = 1e3 * all_s;
	l.flops = all;
	l.bytes = bench_used(r->b);
	bench_put(r->b, &l);
}

/* iterations: the first makes plans and finds the threshold. */
static int
lpo(struct rig *r, int iterations)
{
	struct lpo_lpo_plan plan;
	struct phases s;
	double t = lpo_now_s();
	int i, rc;

	watch_begin(r->b);
	if ((rc = make(r)) == 0) {
		lpo_lpo_plan(r->lpo, &plan);
		bench_say("%s: %.2f s to load; %lld prompts, %lld steps, "
		    "rollouts of %lld, micro-batches of %lld, scores of "
		    "%lld prompts at once; activations of %zu MiB",
		    r->section, lpo_now_s() - t, (long long)r->prompts,
		    (long long)r->steps, (long long)plan.cut.rollout,
		    (long long)plan.cut.pairs,
		    (long long)plan.cut.scoring,
		    plan.activation_bytes >> 20);
	}
	for (i = 0; i < iterations && rc == 0; i++)
		if ((rc = iterate(r, &s)) == 0)
			put_phases(r, i, &s);
	drop(r);
	watch_end(r->b);
	return rc;
}

/* The official run's: 5 prompts a card, about 50 valid pairs of 100. */
int
bench_lpo(struct bench *b)
{
	struct rig r = { .b = b, .section = "lpo", .dtype = narrow(b),
	    .rank = 4, .prompts = 5, .batch = 10, .steps = 20,
	    .threshold = "quantile:0.5" };

	if (b->tiny)
		r.prompts = 2, r.steps = 4, r.batch = 2;
	return lpo(&r, b->tiny || b->quick ? 2 : 3);
}

int
bench_lpo_f32(struct bench *b)
{
	struct rig r = { .b = b, .section = "lpo-f32", .dtype = LPO_F32,
	    .rank = 4, .prompts = 5, .batch = 10, .steps = 20,
	    .threshold = "quantile:0.5" };

	if (b->tiny)
		r.prompts = 2, r.steps = 4, r.batch = 2;
	return lpo(&r, 1);
}

/* 4 prompts a card, about 40 pairs of 80. */
int
bench_lpo_sdxl(struct bench *b)
{
	struct rig r = { .b = b, .section = "lpo-sdxl", .xl = 1,
	    .dtype = narrow(b), .rank = 64, .prompts = 4, .batch = 4,
	    .steps = 20, .threshold = "quantile:0.5" };

	if (b->tiny)
		r.prompts = 2, r.steps = 4, r.batch = 2, r.rank = 4;
	return lpo(&r, b->quick ? 1 : 2);
}

/* ------------------------------------------------------- the reward model */

/* n pairs that share their prompt's ids; label 0 is preferred. */
static int
make_pairs(struct bench *b, lpo_lrm *m, struct lpo_lrm_pair *p, int64_t n,
    int64_t count, float **latents, int32_t *ids[2])
{
	int64_t i, l = lpo_lrm_length(m);
	int k;

	for (k = 0; k < 2; k++)
		if ((ids[k] = lpo_alloc(b->ctx, (size_t)l,
		    sizeof(int32_t))) == NULL)
			return LPO_ENOMEM;
	if ((*latents = bench_normals(b, 2 * n * count, 8)) == NULL)
		return LPO_ENOMEM;
	for (i = 0; i < n; i++) {
		p[i] = (struct lpo_lrm_pair){
		    .latent = { *latents + 2 * i * count,
		    *latents + (2 * i + 1) * count },
		    .t = { 1 + i * 50 % 951, 1 + i * 50 % 951 },
		    .ids = { ids[0], ids[1] }, .label = { 1, 0 },
		    .num_example = 1 };
	}
	return lpo_lrm_tokenize(m, ids, "a lake in the mountains");
}

static int
steps(struct bench *b, lpo_lrm_trainer *r, const struct lpo_lrm_pair *p,
    int64_t pairs)
{
	struct lpo_lrm_train_plan plan;
	struct bench_line l = { .section = "lrm-train", .dt = narrow(b),
	    .rows = pairs };
	struct lpo_lrm_step out;
	int i, rc, n = b->tiny || b->quick ? 2 : 4;
	double t;

	lpo_lrm_trainer_plan(r, &plan);
	for (i = 0; i < n; i++) {
		t = lpo_now_s();
		if ((rc = lpo_lrm_trainer_step(r, &out, p)) < 0 ||
		    (rc = bench_sync(b)) < 0)
			return rc;
		l.name = "step";
		l.ms = 1e3 * (lpo_now_s() - t);
		l.flops = plan.step_flops;
		l.bytes = plan.arena_bytes + plan.state_bytes +
		    plan.weight_bytes;
		snprintf(l.shape, sizeof(l.shape), "step %d, %lld pairs in "
		    "passes of %lld", i, (long long)pairs,
		    (long long)plan.micro_batch);
		bench_put(b, &l);
	}
	return 0;
}

int
bench_lrm_train(struct bench *b)
{
	struct lpo_lrm_train_opts o = { .batch = b->tiny ? 2 : 16,
	    .steps = 100, .warmup = 10, .lr = 1e-5, .weight_decay = 0.3,
	    .max_grad_norm = 1, .schedule = LPO_LR_OFFICIAL,
	    .criterion = LPO_LRM_PAIR, .batch_coeff = 1, .aux_coeff = 1 };
	struct lpo_lrm_pair pair[16];
	lpo_lrm_trainer *r = NULL;
	lpo_lrm *m = NULL;
	float *latents = NULL;
	int32_t *ids[2] = { NULL, NULL };
	size_t left, all;
	int rc;

	if ((rc = lpo_lrm_open(b->ctx, &b->be, &m, bench_model(b, 0),
	    bench_model(b, 0), narrow(b), NULL)) < 0)
		goto out;
	o.h = o.w = lpo_lrm_sample_size(m);
	if (b->be.k->memory(&b->be, &left, &all) == 0)
		o.memory_bytes = left / 10 * 9;
	if ((rc = make_pairs(b, m, pair, o.batch, o.h * o.w *
	    lpo_lrm_cfg(m)->latent_channels, &latents, ids)) == 0 &&
	    (rc = lpo_lrm_trainer_new(b->ctx, &r, m, &o)) == 0)
		rc = steps(b, r, pair, o.batch);
out:
	lpo_lrm_trainer_free(r);
	lpo_lrm_free(m);
	lpo_free(latents);
	lpo_free(ids[0]);
	lpo_free(ids[1]);
	return rc;
}
