/*
 * Whole networks on the tape, at full size: UNet, the reward model's half,
 * VAE, text encoder.  FLOPs are the plan's, bytes the plan's arena and the
 * weights.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/model/clip.h"
#include "lib/model/lora.h"
#include "lib/model/unet.h"
#include "lib/model/vae.h"
#include "tests/bench/h200/bench.h"

enum { TOKENS = 77, MAX_OUT = LPO_UNET_MAX_BLOCKS + 1 };

/* A network at one number of rows. */
struct net {
	struct bench *b;
	lpo_tape *tape;
	lpo_arena *arena;
	struct lpo_plan plan;
	lpo_var *out[MAX_OUT];
	int outs, backward, flags;
	float *grad;			/* of out[0] */
};

/* ------------------------------------------------------------- on a tape */

static int
set_normals(struct net *n, lpo_var *v, uint32_t item)
{
	float *x;
	int rc;

	if (v == NULL)
		return lpo_tape_error(n->tape);
	if ((x = bench_normals(n->b, lpo_var_count(v), item)) == NULL)
		return LPO_ENOMEM;
	rc = lpo_var_set(n->tape, v, x);
	lpo_free(x);
	return rc;
}

/*
 * An input that is set once and keeps its value over many walks: as an output
 * it does, no other buffer takes its place.
 */
static lpo_var *
input(struct net *n, int64_t rows, int64_t h, int64_t w, int64_t c,
    enum lpo_dtype dt)
{
	lpo_var *v = lpo_input(n->tape, rows, h, w, c, dt, 0);

	lpo_output(n->tape, v, 0);
	return v;
}

/* Plan and commit what was recorded; inputs can be set then. */
static int
settle(struct net *n)
{
	int i, rc;

	for (i = 0; i < n->outs; i++)
		lpo_output(n->tape, n->out[i], n->backward);
	if ((rc = lpo_tape_plan(n->tape, n->backward, &n->plan)) < 0 ||
	    (rc = lpo_tape_commit(n->tape, n->arena)) < 0)
		return rc;
	if (n->backward && (n->grad = bench_normals(n->b,
	    lpo_var_count(n->out[0]), 9)) == NULL)
		return LPO_ENOMEM;
	return 0;
}

static int
run_net(void *arg)
{
	struct net *n = arg;
	int rc = lpo_tape_forward(n->tape, n->flags);

	if (rc < 0 || !n->backward)
		return rc;
	if ((rc = lpo_var_set_grad(n->tape, n->out[0], n->grad)) < 0)
		return rc;
	return lpo_tape_backward(n->tape);
}

static void
net_free(struct net *n)
{
	lpo_tape_free(n->tape);
	lpo_free(n->grad);
	n->tape = NULL;
	n->grad = NULL;
}

/* One walk's output, and its gradients' norm: the same on every device. */
static int
say_values(struct net *n, const struct bench_line *l, lpo_params *trained)
{
	int64_t i, count = lpo_var_count(n->out[0]);
	float *x = lpo_alloc(n->b->ctx, (size_t)count, sizeof(*x));
	double sum = 0, squares = 0;
	int rc = LPO_ENOMEM;

	if (x == NULL || (trained != NULL &&
	    (rc = lpo_params_zero_grad(trained)) < 0) ||
	    (rc = run_net(n)) < 0 ||
	    (rc = lpo_var_get(n->tape, n->out[0], x)) < 0 ||
	    (trained != NULL &&
	    (rc = lpo_params_grad_sumsq(trained, &squares)) < 0))
		goto out;
	for (i = 0; i < count; i++)
		sum += (double)x[i] * x[i];
	bench_say("%s %s, %lld rows: output's rms %.4g, gradient's norm %.4g",
	    l->section, l->name, (long long)l->rows,
	    sqrt(sum / (double)count), sqrt(squares));
out:
	lpo_free(x);
	return rc;
}

/* Time it; weights: the parameters' bytes. */
static int
net_line(struct net *n, struct bench_line *l, int64_t weights,
    lpo_params *trained)
{
	int rc;

	if (n->b->values)
		return say_values(n, l, trained);
	rc = bench_time(n->b, &l->ms, run_net, n);
	l->flops = n->plan.fwd_flops + (n->backward ? n->plan.bwd_flops +
	    n->plan.recompute_flops : 0);
	l->bytes = n->plan.arena_bytes + n->plan.constant_bytes +
	    (size_t)weights;
	if (rc < 0)
		return rc;
	bench_put(n->b, l);
	return say_values(n, l, trained);
}

/* ------------------------------------------------------------------ UNet */

/* What is asked of a UNet: rows = groups * copies. */
struct ask {
	const char *section, *name;
	lpo_unet *unet;
	lpo_lora_set *lora;
	enum lpo_dtype dt;
	int64_t rows, per_group;	/* latents of one prompt */
	int copies, half, backward, flags;
	lpo_arena *arena;
};

static void
inputs(struct net *n, struct lpo_unet_in *in, const struct ask *a)
{
	const struct lpo_unet_config *cfg = lpo_unet_cfg(a->unet);
	int64_t latents = a->rows / a->copies;
	int64_t texts = latents / a->per_group * a->copies;

	in->copies = a->copies;
	in->sample = input(n, latents, cfg->sample_size, cfg->sample_size,
	    cfg->in_channels, LPO_F32);
	in->time = input(n, latents, 1, 1, cfg->channels[0], LPO_F32);
	in->context = input(n, texts, TOKENS, 1, cfg->context_dim, LPO_F32);
	if (!cfg->text_time)
		return;
	in->text_embeds = input(n, texts, 1, 1, cfg->add_in_dim - 6 *
	    cfg->add_time_dim, LPO_F32);
	in->time_ids = input(n, texts, 1, 1, 6 * cfg->add_time_dim, LPO_F32);
}

static int
net_unet(struct net *n, struct bench *b, const struct ask *a)
{
	struct lpo_unet_in in = { 0 };
	int rc;

	memset(n, 0, sizeof(*n));
	n->b = b;
	n->arena = a->arena;
	n->backward = a->backward;
	n->flags = a->flags;
	n->tape = lpo_tape_new(b->ctx, &b->be, a->dt, a->rows / a->copies /
	    a->per_group);
	if (n->tape == NULL)
		return LPO_ENOMEM;
	inputs(n, &in, a);
	if (a->half)
		n->outs = lpo_unet_features(n->tape, a->unet, &in, n->out);
	else {
		n->out[0] = lpo_unet_fwd(n->tape, a->unet, &in);
		n->outs = 1;
	}
	if ((rc = settle(n)) < 0 ||
	    (rc = set_normals(n, in.sample, 1)) < 0 ||
	    (rc = set_normals(n, in.time, 2)) < 0 ||
	    (rc = set_normals(n, in.context, 3)) < 0 ||
	    in.time_ids == NULL)
		return rc;
	if ((rc = set_normals(n, in.text_embeds, 4)) < 0)
		return rc;
	return set_normals(n, in.time_ids, 5);
}

/* A failure (no memory, say) is said; the next number of rows has its turn. */
static void
unet_line(struct bench *b, const struct ask *a)
{
	struct bench_line l = { .section = a->section, .name = a->name,
	    .dt = a->dt, .rows = a->rows };
	const struct lpo_unet_config *cfg = lpo_unet_cfg(a->unet);
	lpo_params *lora;
	struct net n;
	int rc;

	snprintf(l.shape, sizeof(l.shape), "%lldx%lld%s%s",
	    (long long)cfg->sample_size, (long long)cfg->sample_size,
	    a->copies > 1 ? ", guided" : "", a->lora == NULL ? "" :
	    ", LoRA");
	lora = a->lora != NULL ? lpo_lora_params(a->lora) : NULL;
	rc = net_unet(&n, b, a);
	if (rc == 0)
		rc = net_line(&n, &l, lpo_unet_params(a->unet)->bytes +
		    (lora != NULL ? lora->bytes : 0), lora);
	if (rc < 0) {
		bench_say("%s %s, %lld rows: %s", a->section, a->name,
		    (long long)a->rows, lpo_errmsg(b->ctx));
		lpo_clear(b->ctx);
	}
	net_free(&n);
}

static int
load_unet(struct bench *b, lpo_unet **u, int xl, enum lpo_dtype dt, int half)
{
	char dir[64];

	snprintf(dir, sizeof(dir), "%s/unet", bench_model(b, xl));
	return lpo_unet_load(b->ctx, &b->be, u, dir, dt, half);
}

/* Not the full numbers of rows. */
static int
few(const struct bench *b)
{
	return b->tiny || b->values;
}

static enum lpo_dtype
narrow(const struct bench *b)
{
	return b->bf16 ? LPO_BF16 : LPO_F32;
}

/*
 * Forward at some numbers of rows (0 ends them), forward and backward with a
 * LoRA at others.
 */
static int
unet_lines(struct bench *b, struct ask *a, const int64_t *fwd,
    const int64_t *both, int64_t rank)
{
	lpo_arena arena = { .mem = NULL };
	int rc, i;

	a->arena = &arena;
	a->per_group = 1;
	a->name = "forward";
	for (i = 0, a->copies = 1; fwd[i] > 0; i++) {
		a->rows = fwd[i];
		unet_line(b, a);
	}
	if (both[0] == 0)
		goto out;
	a->copies = 2;
	a->rows = both[0];
	unet_line(b, a);
	if ((rc = lpo_lora_attach(b->ctx, &a->lora, a->unet,
	    LPO_LORA_ATTENTION, rank, (float)rank, 1)) < 0) {
		lpo_arena_free(&b->be, &arena);
		return rc;
	}
	unet_line(b, a);
	a->backward = 1;
	a->name = "forward+backward";
	for (a->copies = 1; a->copies <= 2; a->copies++)
		for (i = 0; both[i] > 0; i++) {
			a->rows = both[i];
			unet_line(b, a);
		}
out:
	lpo_lora_free(a->lora);
	lpo_arena_free(&b->be, &arena);
	return 0;
}

int
bench_unet(struct bench *b)
{
	static const int64_t two[] = { 2, 4, 0 }, small[] = { 2, 0 };
	static const int64_t fwd[] = { 2, 10, 20, 40, 80, 0 };
	static const int64_t both[] = { 20, 10, 0 };
	struct ask a = { .section = "unet", .dt = narrow(b) };
	int rc;

	if ((rc = load_unet(b, &a.unet, 0, a.dt, 0)) == 0)
		rc = unet_lines(b, &a, few(b) ? two : fwd,
		    few(b) ? small : both, 4);
	lpo_unet_free(a.unet);
	return rc;
}

int
bench_unet_f32(struct bench *b)
{
	static const int64_t small[] = { 2, 0 }, fwd[] = { 4, 0 };
	struct ask a = { .section = "f32", .dt = LPO_F32 };
	int rc;

	if ((rc = load_unet(b, &a.unet, 0, a.dt, 0)) == 0)
		rc = unet_lines(b, &a, few(b) ? small : fwd,
		    few(b) ? small : fwd, 4);
	lpo_unet_free(a.unet);
	return rc;
}

int
bench_sdxl(struct bench *b)
{
	static const int64_t small[] = { 2, 0 }, rows[] = { 8, 2, 0 };
	struct ask a = { .section = "sdxl", .dt = narrow(b) };
	int rc;

	if ((rc = load_unet(b, &a.unet, 1, a.dt, 0)) == 0)
		rc = unet_lines(b, &a, few(b) ? small : rows,
		    few(b) ? small : rows, b->tiny ? 4 : 64);
	lpo_unet_free(a.unet);
	return rc;
}

/* The image side of the reward model is the UNet's half, pooled. */
int
bench_lrm(struct bench *b)
{
	static const int64_t small[] = { 2, 0 }, rows[] = { 20, 80, 160, 0 };
	struct ask a = { .section = "lrm", .dt = narrow(b), .half = 1 };
	static const int64_t none[] = { 0 };
	lpo_arena arena = { .mem = NULL };
	int rc;

	if ((rc = load_unet(b, &a.unet, 0, a.dt, 1)) < 0)
		return rc;
	rc = unet_lines(b, &a, few(b) ? small : rows, none, 0);
	a.arena = &arena;
	a.copies = 2;			/* as candidates are scored */
	a.per_group = few(b) ? 1 : 4;
	a.rows = few(b) ? 2 : 160;
	unet_line(b, &a);
	a.rows = few(b) ? 2 : 40;
	unet_line(b, &a);
	lpo_arena_free(&b->be, &arena);
	lpo_unet_free(a.unet);
	return rc;
}

/* --------------------------------------------------------- VAE and texts */

/* decode 1: n pictures from latents; 0: the other way. */
static int
vae_line(struct bench *b, lpo_vae *v, enum lpo_dtype dt, int64_t n,
    int64_t side_px, int decode)
{
	const struct lpo_vae_config *cfg = lpo_vae_cfg(v);
	struct bench_line l = { .section = "vae", .name = decode ? "decode" :
	    "encode", .dt = dt, .rows = n };
	struct net t = { .b = b };
	int64_t side = decode ? side_px / cfg->factor : side_px;
	lpo_var *in;
	int rc = LPO_ENOMEM;

	snprintf(l.shape, sizeof(l.shape), "%lldx%lld px", (long long)side_px,
	    (long long)side_px);
	if ((t.tape = lpo_tape_new(b->ctx, &b->be, dt, 1)) == NULL)
		goto out;
	in = input(&t, n, side, side, decode ? cfg->latent_channels :
	    cfg->in_channels, LPO_F32);
	t.out[0] = decode ? lpo_vae_decode(t.tape, v, in) :
	    lpo_vae_encode(t.tape, v, in);
	t.outs = 1;
	if ((rc = settle(&t)) == 0 && (rc = set_normals(&t, in, 6)) == 0)
		rc = net_line(&t, &l, lpo_vae_params(v)->bytes, NULL);
out:
	net_free(&t);
	return rc;
}

int
bench_vae(struct bench *b)
{
	enum lpo_dtype dt = narrow(b);
	int64_t px = b->tiny ? 64 : 512;
	lpo_vae *v = NULL;
	char dir[64];
	int rc;

	snprintf(dir, sizeof(dir), "%s/vae", bench_model(b, 0));
	if ((rc = lpo_vae_load(b->ctx, &b->be, &v, dir, dt, LPO_VAE_ENCODER |
	    LPO_VAE_DECODER)) < 0 ||
	    (rc = vae_line(b, v, dt, 1, px, 0)) < 0 ||
	    (rc = vae_line(b, v, dt, few(b) ? 2 : 8, px, 0)) < 0)
		goto out;
	rc = vae_line(b, v, dt, few(b) ? 1 : 4, px, 1);
out:
	lpo_vae_free(v);
	return rc;
}

static int
clip_line(struct bench *b, lpo_clip *m, enum lpo_dtype dt, int64_t rows)
{
	struct bench_line l = { .section = "clip", .name = "encode",
	    .dt = dt, .rows = rows };
	struct net t = { .b = b };
	struct lpo_clip_out out = { NULL, NULL, NULL, NULL };
	int64_t i, count = rows * TOKENS;
	int32_t *id = lpo_alloc(b->ctx, (size_t)count, sizeof(*id));
	lpo_var *ids;
	int rc = LPO_ENOMEM;

	snprintf(l.shape, sizeof(l.shape), "%d tokens", TOKENS);
	if (id == NULL ||
	    (t.tape = lpo_tape_new(b->ctx, &b->be, dt, 1)) == NULL)
		goto out;
	for (i = 0; i < count; i++)
		id[i] = (int32_t)(i * 7919 % lpo_clip_cfg(m)->vocab);
	ids = input(&t, rows, TOKENS, 1, 1, LPO_I32);
	lpo_clip_fwd(t.tape, m, ids, NULL, &out);
	t.out[0] = out.last_hidden;
	t.outs = 1;
	if ((rc = settle(&t)) == 0 &&
	    (rc = lpo_var_set(t.tape, ids, id)) == 0)
		rc = net_line(&t, &l, lpo_clip_params(m)->bytes, NULL);
out:
	net_free(&t);
	lpo_free(id);
	return rc;
}

int
bench_clip(struct bench *b)
{
	enum lpo_dtype dt = narrow(b);
	lpo_clip *m = NULL;
	char dir[64];
	int rc;

	snprintf(dir, sizeof(dir), "%s/text_encoder", bench_model(b, 0));
	if ((rc = lpo_clip_load(b->ctx, &b->be, &m, dir, dt)) == 0 &&
	    (rc = clip_line(b, m, dt, 2)) == 0)
		rc = clip_line(b, m, dt, 16);
	lpo_clip_free(m);
	return rc;
}

/* --------------------------------------------------------------- profile */

/* The walk as it is, then op by op. */
static int
profile(struct bench *b, struct ask *a, const char *section)
{
	struct net n;
	int i, rc, walks = b->tiny ? 1 : 3;

	unet_line(b, a);
	trace_begin(b);
	if ((rc = net_unet(&n, b, a)) == 0 && (rc = run_net(&n)) == 0 &&
	    (rc = bench_sync(b)) == 0) {
		trace_forget();
		for (i = 0; i < walks && rc == 0; i++)
			rc = run_net(&n);
	}
	if (rc == 0)
		trace_put(b, section, a->dt, a->rows, walks);
	net_free(&n);
	trace_end(b);
	return rc;
}

int
bench_profile(struct bench *b)
{
	struct ask a = { .section = "profile", .dt = narrow(b), .copies = 1,
	    .per_group = 1, .rows = b->tiny ? 2 : 20, .name = "forward" };
	lpo_arena arena = { .mem = NULL };
	int rc;

	a.arena = &arena;
	if ((rc = load_unet(b, &a.unet, 0, a.dt, 0)) < 0 ||
	    (rc = profile(b, &a, "profile-fwd")) < 0 ||
	    (rc = lpo_lora_attach(b->ctx, &a.lora, a.unet,
	    LPO_LORA_ATTENTION, 4, 4, 1)) < 0)
		goto out;
	a.copies = 2;
	a.backward = 1;
	a.name = "forward+backward";
	rc = profile(b, &a, "profile-both");
out:
	lpo_lora_free(a.lora);
	lpo_unet_free(a.unet);
	lpo_arena_free(&b->be, &arena);
	return rc;
}
