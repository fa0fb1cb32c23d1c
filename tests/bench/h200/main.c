/* The table, the clock and the sections. */
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/base/philox.h"
#include "lib/base/progress.h"
#include "tests/bench/h200/bench.h"

static const struct {
	const char *name;
	int (*run)(struct bench *);
	const char *what;
} sections[] = {
	{ "ceilings", bench_ceilings, "large products and copies; always" },
	{ "ops", bench_ops, "every op at SD1.5's shapes, 20 rows" },
	{ "unet", bench_unet, "SD1.5's UNet, bf16, with and without LoRA" },
	{ "lrm", bench_lrm, "the reward model's half of it" },
	{ "vae", bench_vae, "the VAE's encoder and decoder" },
	{ "clip", bench_clip, "the text encoder" },
	{ "profile", bench_profile, "where a UNet's time goes, op by op" },
	{ "f32", bench_unet_f32, "SD1.5's UNet in f32" },
	{ "lpo", bench_lpo, "an LPO iteration, bf16" },
	{ "lrm-train", bench_lrm_train, "a step of the reward model" },
	{ "lpo-f32", bench_lpo_f32, "an LPO iteration, the policy in f32" },
	{ "sdxl", bench_sdxl, "SDXL's UNet, bf16" },
	{ "lpo-sdxl", bench_lpo_sdxl, "SDXL's LPO iteration" }
};
enum { N_SECTIONS = sizeof(sections) / sizeof(sections[0]) };

/* ------------------------------------------------------------- the table */

static void
figure(int digits, double x)
{
	if (x > 0)
		printf("\t%.*g", digits, x);
	else
		printf("\t-");
}

void
bench_put(struct bench *b, const struct bench_line *l)
{
	double s = l->ms / 1e3, top = b->flops[l->dt == LPO_BF16];
	double rate = l->flops / s, moved = l->moved / s;

	printf("%s\t%s\t%s\t%s\t%lld", l->section, l->name, l->shape,
	    l->dt == LPO_BF16 ? "bf16" : "f32", (long long)l->rows);
	figure(4, l->ms);
	figure(4, l->rows > 0 ? l->ms / (double)l->rows : 0);
	figure(4, rate / 1e12);
	figure(4, moved / 1e9);
	figure(3, rate > 0 ? (top > 0 ? rate / top : 0) :
	    b->copied > 0 ? moved / b->copied : 0);
	if (l->bytes > 0)
		printf("\t%zu\n", l->bytes);
	else
		printf("\t-\n");
	fflush(stdout);
}

void
bench_say(const char *fmt, ...)
{
	va_list ap;

	printf("# ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

/* ------------------------------------------------------------- the clock */

int
bench_fail(struct bench *b, int rc, const char *what)
{
	if (rc >= 0)
		return rc;
	return lpo_fail(b->ctx, rc, "%s failed: %s", what,
	    b->be.k->error(&b->be));
}

int
bench_sync(struct bench *b)
{
	return bench_fail(b, b->be.k->sync(&b->be), "sync");
}

static int
batch(struct bench *b, double *s, int (*run)(void *), void *arg, int64_t n)
{
	double t = lpo_now_s();
	int64_t i;
	int rc;

	for (i = 0; i < n; i++)
		if ((rc = run(arg)) < 0)
			return bench_fail(b, rc, "a run");
	rc = bench_sync(b);
	*s = (lpo_now_s() - t) / (double)n;
	return rc;
}

static int
by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* The first run makes plans and graphs, the second says how long one takes. */
int
bench_time(struct bench *b, double *ms, int (*run)(void *), void *arg)
{
	double want = b->tiny ? 1e-4 : b->quick ? 4e-3 : 8e-3;
	double s[5], one;
	int64_t n;
	int i, batches = b->quick || b->tiny ? 3 : 5, rc;

	if ((rc = batch(b, &one, run, arg, 1)) < 0 ||
	    (rc = batch(b, &one, run, arg, 2)) < 0)
		return rc;
	n = one > 0 ? (int64_t)(want / one) + 1 : 1000;
	n = n > 1000 ? 1000 : n == 1 ? 2 : n;
	if (one > 1)
		n = 1;
	for (i = 0; i < batches; i++)
		if ((rc = batch(b, &s[i], run, arg, n)) < 0)
			return rc;
	qsort(s, (size_t)batches, sizeof(*s), by_value);
	*ms = s[batches / 2] * 1e3;
	return 0;
}

/* ------------------------------------------------------------- the memory */

size_t
bench_used(struct bench *b)
{
	size_t left, all;

	if (b->be.k->memory(&b->be, &left, &all) < 0)
		return 0;
	return all - left;
}

float *
bench_normals(struct bench *b, int64_t count, uint32_t item)
{
	struct lpo_draw d = { .seed = 1, .purpose = LPO_DRAW_INIT,
	    .item = item };
	float *x = lpo_alloc(b->ctx, (size_t)count, sizeof(*x));

	if (x != NULL)
		lpo_draw_normal(&d, 0, x, count);
	return x;
}

static int
make_normals(struct bench *b)
{
	const struct lpo_kernels *k = b->be.k;
	float *x = bench_normals(b, BENCH_NORMALS, 0);
	size_t bytes = BENCH_NORMALS * sizeof(*x);
	int rc = LPO_ENOMEM;

	b->normals[0] = k->alloc(&b->be, bytes);
	b->normals[1] = k->alloc(&b->be, bytes / 2);
	if (x == NULL || b->normals[0] == NULL || b->normals[1] == NULL)
		goto out;
	if ((rc = k->upload(&b->be, b->normals[0], x, bytes)) == 0)
		rc = k->convert(&b->be, b->normals[1], LPO_BF16,
		    b->normals[0], LPO_F32, BENCH_NORMALS);
	bench_fail(b, rc, "drawing of numbers");
out:
	lpo_free(x);
	return rc;
}

/* What was drawn once, over and over, by copies that double. */
void *
bench_buffer(struct bench *b, enum lpo_dtype dt, int64_t count)
{
	const struct lpo_kernels *k = b->be.k;
	size_t all = (size_t)count * lpo_dtype_bytes(dt), done, some;
	size_t one = BENCH_NORMALS * lpo_dtype_bytes(dt);
	char *p = k->alloc(&b->be, all + 64);

	if (p == NULL) {
		lpo_fail(b->ctx, LPO_ENOMEM, "no %zu bytes", all);
		return NULL;
	}
	done = all < one ? all : one;
	k->copy(&b->be, p, b->normals[dt == LPO_BF16], done);
	for (; done < all; done += some) {
		some = all - done < done ? all - done : done;
		k->copy(&b->be, p + done, p, some);
	}
	return p;
}

const char *
bench_model(const struct bench *b, int xl)
{
	return xl ? (b->tiny ? "random:tinyxl" : "random:sdxl") :
	    b->tiny ? "random:tiny" : "random:sd15";
}

/* ------------------------------------------------------------- the program */

static int
usage(void)
{
	int i;

	printf("usage: h200 [-qtv] [-d DEVICE] [section ...]\n"
	    "  -d --device  cpu or cpu:LEVEL; cuda or cuda:N\n"
	    "  -q --quick   fewer and shorter batches\n"
	    "  -t --tiny    small models and shapes, to try it out\n"
	    "  -v --values  of networks, no times: to compare devices\n"
	    "  -h --help    this\n"
	    "Tab-separated lines on standard output; sections (all):\n");
	for (i = 0; i < N_SECTIONS; i++)
		printf("  %-11s  %s\n", sections[i].name, sections[i].what);
	return 0;
}

static int
options(struct bench *b, const char **device, int argc, char **argv)
{
	static const struct option table[] = {
		{ "device", required_argument, NULL, 'd' },
		{ "quick", no_argument, NULL, 'q' },
		{ "tiny", no_argument, NULL, 't' },
		{ "values", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	int ch;

	while ((ch = getopt_long(argc, argv, "d:qtvh", table, NULL)) != -1)
		switch (ch) {
		case 'd':
			*device = optarg;
			break;
		case 'q':
			b->quick = 1;
			break;
		case 't':
			b->tiny = 1;
			break;
		case 'v':
			b->values = 1;
			break;
		case 'h':
			return 1;
		default:
			return -1;
		}
	return 0;
}

static int
section_of(const char *name)
{
	int i;

	for (i = 0; i < N_SECTIONS; i++)
		if (strcmp(sections[i].name, name) == 0)
			return i;
	fprintf(stderr, "h200: no section '%s'\n", name);
	return -1;
}

/* One section; its failure is said, and the others go on. */
static int
run_section(struct bench *b, int i)
{
	double t = lpo_now_s();
	int rc = sections[i].run(b);

	if (rc < 0) {
		bench_say("%s: %s", sections[i].name, lpo_errmsg(b->ctx));
		fprintf(stderr, "h200: %s: %s\n", sections[i].name,
		    lpo_errmsg(b->ctx));
		lpo_clear(b->ctx);
	}
	bench_say("%s: %.2f s, %zu MiB in use after it", sections[i].name,
	    lpo_now_s() - t, bench_used(b) >> 20);
	return rc < 0;
}

static void
notice(void *arg, const char *text)
{
	(void)arg;
	bench_say("%s", text);
}

static void
heading(struct bench *b)
{
	time_t now = time(NULL);
	struct tm tm;
	char date[32];

	gmtime_r(&now, &tm);
	strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	bench_say("lpo-tools " LPO_VERSION ", %s UTC%s%s", date,
	    b->quick ? ", quick" : "", b->tiny ? ", tiny" : "");
	device_say(b);
	printf("section\tname\tshape\tdtype\trows\tms\tms_row\ttflops\tgbs\t"
	    "fraction\tbytes\n");
}

int
main(int argc, char **argv)
{
	struct bench b = { 0 };
	const char *device = NULL;
	char text[256] = "";
	int want[N_SECTIONS] = { 1 }, i, s, failed = 0;

	if ((i = options(&b, &device, argc, argv)) != 0)
		return i > 0 ? usage() : 2;
	for (i = 0; optind + i < argc; i++) {
		if ((s = section_of(argv[optind + i])) < 0)
			return 2;
		want[s] = 1;
	}
	for (s = 0; i == 0 && s < N_SECTIONS; s++)
		want[s] = 1;
	if ((b.ctx = lpo_ctx_new()) == NULL)
		return 1;
	lpo_ctx_on_notice(b.ctx, notice, NULL);
	if (device_open(&b, device, text, sizeof(text)) < 0) {
		fprintf(stderr, "h200: %s\n", text);
		lpo_ctx_free(b.ctx);
		return 1;
	}
	heading(&b);
	if (make_normals(&b) < 0) {
		fprintf(stderr, "h200: %s\n", lpo_errmsg(b.ctx));
		failed = 1;
	}
	for (s = 0; s < N_SECTIONS && !(failed && s == 0); s++)
		if (want[s])
			failed += run_section(&b, s);
	b.be.k->free(&b.be, b.normals[0]);
	b.be.k->free(&b.be, b.normals[1]);
	device_close(&b);
	lpo_ctx_free(b.ctx);
	return failed != 0;
}
