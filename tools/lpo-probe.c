/* lpo-probe: one component, tensors in, tensors out. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "lib/base/file.h"
#include "lib/base/state.h"
#include "lib/model/save.h"
#include "tools/probe.h"

#define O(name, letter, arg, type, member, min, max, help) \
	{ name, letter, arg, help, type, \
	  offsetof(struct lpo_probe_opts, member), 0, min, max }
static const struct lpo_cli_option options[] = {
	O("component", 'c', "NAME", LPO_CLI_STRING, component, 0, 0,
	    "what to run; without it the components are listed"),
	O("input", 'i', "FILE", LPO_CLI_STRING, input, 0, 0,
	    "safetensors with its inputs, NCHW"),
	O("lora", 0, "FILE", LPO_CLI_STRING, lora, 0, 0,
	    "unet, lpo-step: LoRA on the UNet"),
	O("lrm", 'r', "DIR", LPO_CLI_STRING, lrm, 0, 0,
	    "lrm, lrm-loss: the reward model"),
	O("grad", 0, NULL, LPO_CLI_FLAG, grad, 0, 0,
	    "gradients too"),
	O("full", 0, NULL, LPO_CLI_FLAG, full, 0, 0,
	    "unet --grad: of every weight"),
	O("file", 0, "IMG", LPO_CLI_STRING, file, 0, 0,
	    "image: the picture file"),
	O("exif", 0, NULL, LPO_CLI_FLAG, exif, 0, 0,
	    "image: turned as its EXIF orientation says"),
	O("size", 's', "PX", LPO_CLI_I64, size_px, 1, 16384,
	    "image: side of the square"),
	O("steps", 0, "N", LPO_CLI_I64, steps, 1, 1000,
	    "ddim, lpo-loss, lpo-step: sampling steps (20)"),
	O("threshold", 0, "SPEC", LPO_CLI_STRING, threshold, 0, 0,
	    "ddim: as lpo-train's, one for each of its steps"),
	O("eta", 0, "X", LPO_CLI_F64, eta, 0, 1,
	    "ddim, lpo-loss, lpo-step (1)"),
	O("beta", 0, "X", LPO_CLI_F64, beta, 0, 1e9,
	    "lpo-loss, lpo-step (500)"),
	O("clip", 0, "X", LPO_CLI_F64, clip, 0, 1,
	    "lpo-loss, lpo-step: ratios stay in 1-X..1+X (0.1)"),
	O("guidance", 0, "X", LPO_CLI_F64, guidance, 0, 1000,
	    "lpo-step (5), lrm, lrm-loss (their own)"),
	O("criterion", 0, "pair|batch|both", LPO_CLI_CHOICE, criterion, 0, 0,
	    "lrm-loss (pair)"),
	O("batch-coeff", 0, "X", LPO_CLI_F64, batch_coeff, 0, 1e9,
	    "lrm-loss: weight of batch in both (1)"),
	O("aux-coeff", 0, "X", LPO_CLI_F64, aux_coeff, 0, 1e9,
	    "lrm-loss: weight of pairs with two timesteps (1)"),
	O("freeze-text", 0, NULL, LPO_CLI_FLAG, freeze_text, 0, 0,
	    "lrm-loss --grad: none of the text encoders"),
	O("devices", 0, NULL, LPO_CLI_FLAG, devices, 0, 0,
	    "list what this machine can compute with, and nothing else"),
	O("save", 0, "DIR", LPO_CLI_STRING, save, 0, 0,
	    "write the model as a diffusers folder, and nothing else"),
	O("dtype", 0, "f32|f16|bf16", LPO_CLI_CHOICE, dtype, 0, 0,
	    "--save: storage of the weights (f32)"),
	O("repeat", 0, "N", LPO_CLI_I64, repeat, 1, 1000000,
	    "run N times, print min and median ms and peak memory"),
	{ NULL, 0, NULL, NULL, LPO_CLI_FLAG, 0, 0, 0, 0 }
};

static const struct lpo_cli_tool tool = {
	"lpo-probe", "one component: tensors in, tensors out",
	"-c COMPONENT [-m DIR] -i in.safetensors -o out.safetensors "
	"[options]\n--save DIR -m MODEL\n--devices", options
};

static const struct lpo_probe_component *
find(const char *name)
{
	static const struct lpo_probe_component *const table[] = {
		lpo_probe_models, lpo_probe_train, lpo_probe_lrm };
	const struct lpo_probe_component *c;
	size_t i;

	for (i = 0; i < sizeof table / sizeof *table; i++)
		for (c = table[i]; c->name != NULL; c++) {
			if (name == NULL)
				puts(c->name);
			else if (strcmp(name, c->name) == 0)
				return c;
		}
	return NULL;
}

static int
by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void
report_times(struct lpo_probe *p)
{
	int64_t n = p->o->repeat;
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	qsort(p->ms, (size_t)n, sizeof *p->ms, by_value);
	printf(p->cli->o.json ? "{\"component\":\"%s\",\"min_ms\":%.3f,"
	    "\"median_ms\":%.3f,\"peak_rss_bytes\":%lld}\n" :
	    "%s\t%.3f\t%.3f\t%lld\n", p->o->component, p->ms[0],
	    n % 2 ? p->ms[n / 2] : (p->ms[n / 2 - 1] + p->ms[n / 2]) / 2,
	    1024LL * u.ru_maxrss);
}

static int
check(struct lpo_probe *p, const struct lpo_probe_component *c)
{
	lpo_cli *cli = p->cli;
	int tensors = strncmp(c->name, "tokenizer", 9) != 0, rc;

	if (cli->nargs > 0)
		return lpo_cli_usage(cli, "'%s': no operands are expected",
		    cli->args[0]);
	if (c->needs_model && (rc = lpo_cli_need_model(cli)) != 0)
		return rc;
	if (c->takes_input && p->o->input == NULL)
		return lpo_cli_usage(cli, "%s: give -i in.safetensors",
		    c->name);
	if (!tensors)
		return 0;
	/* --repeat's line and the tensors cannot both go to stdout */
	if (cli->o.output == NULL && !lpo_cli_given(cli, "repeat"))
		return lpo_cli_usage(cli, "%s: give -o out.safetensors",
		    c->name);
	if (cli->o.output != NULL && lpo_cli_to_stdout(cli)) {
		if (lpo_cli_given(cli, "repeat"))
			return lpo_cli_usage(cli, "--repeat prints on "
			    "standard output: give -o FILE");
		return lpo_cli_binary_stdout(cli);
	}
	return 0;
}

/* --save and --devices: all else that was asked for would not be done. */
static int
alone(lpo_cli *cli, const char *name)
{
	static const char *const other[] = { "component", "input", "output",
	    "lora", "lrm", "file", "repeat", "save" };
	size_t i;

	if (cli->nargs > 0)
		return lpo_cli_usage(cli, "'%s': no operands are expected",
		    cli->args[0]);
	for (i = 0; i < sizeof other / sizeof *other; i++)
		if (strcmp(other[i], name) != 0 &&
		    lpo_cli_given(cli, other[i]))
			return lpo_cli_usage(cli, "--%s and --%s exclude each "
			    "other", name, other[i]);
	return 0;
}

static int
save(lpo_cli *cli, const struct lpo_probe_opts *o)
{
	static const enum lpo_dtype dtypes[] = { LPO_F32, LPO_F16, LPO_BF16 };
	int64_t bytes;
	int rc;

	if ((rc = lpo_cli_need_model(cli)) != 0 ||
	    (rc = alone(cli, "save")) != 0)
		return rc;
	if (!cli->o.force && lpo_file_exists(o->save))
		return lpo_fail(cli->ctx, LPO_EINVAL, "'%s' is there already: "
		    "--force overwrites it", o->save);
	if (cli->o.dry_run) {
		lpo_cli_plan(cli, "model", "%s", cli->o.model);
		lpo_cli_plan(cli, "folder", "%s", o->save);
		return LPO_CLI_DONE;
	}
	if ((rc = lpo_model_save(cli->ctx, cli->o.model, o->save,
	    dtypes[o->dtype], LPO_MODEL_ALL, cli->o.force,
	    lpo_cli_threads(cli), &bytes)) == 0)
		lpo_cli_note(cli, "'%s': %lld bytes of weights", o->save,
		    (long long)bytes);
	return rc;
}

/* --dry-run: what would go in and where it would go. */
static int
plan(const struct lpo_probe *p)
{
	const struct lpo_st_tensor *t;
	lpo_cli *cli = p->cli;
	char shape[24 * LPO_ST_DIMS];
	int64_t i;
	int k, at;

	lpo_cli_plan(cli, "component", "%s", p->o->component);
	for (i = 0; p->in != NULL && (t = lpo_st_at(p->in, i)) != NULL; i++) {
		shape[0] = '\0';
		for (k = at = 0; k < t->ndim; k++)
			at += snprintf(shape + at, sizeof shape - (size_t)at,
			    "%s%lld", k > 0 ? "x" : " ",
			    (long long)t->shape[k]);
		lpo_cli_plan(cli, t->key, "%s%s", t->dtype_name, shape);
	}
	if (cli->o.output != NULL)
		lpo_cli_plan(cli, "output", "%s", cli->o.output);
	return LPO_CLI_DONE;
}

static int
write_out(struct lpo_probe *p)
{
	const char *path = p->cli->o.output;
	lpo_state *lock = NULL;
	int rc = 0;

	if (!lpo_cli_to_stdout(p->cli))
		rc = lpo_state_lock(p->ctx, &lock, path);
	if (rc == 0)
		rc = lpo_stw_write(p->out, path);
	return lpo_state_end(lock, rc);
}

static int
work(lpo_cli *cli, const struct lpo_probe_opts *o)
{
	struct lpo_probe p = { .cli = cli, .ctx = cli->ctx, .o = o };
	const struct lpo_probe_component *c;
	int i, rc;

	if (o->devices)
		return (rc = alone(cli, "devices")) != 0 ? rc :
		    lpo_probe_devices(cli);
	if (o->save != NULL)
		return save(cli, o);
	if (lpo_cli_given(cli, "dtype"))
		return lpo_cli_usage(cli, "--dtype is for --save");
	c = find(o->component);
	if (o->component == NULL)
		return 0;
	if (c == NULL)
		return lpo_cli_usage(cli, "-c: no component '%s' (lpo-probe "
		    "without -c lists them)", o->component);
	if ((rc = check(&p, c)) != 0 || (rc = lpo_cli_backend(cli)) != 0)
		return rc;
	p.ms = lpo_alloc(cli->ctx, (size_t)o->repeat, sizeof *p.ms);
	if (p.ms == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_stw_new(cli->ctx, &p.out)) != 0 || (c->takes_input &&
	    (rc = lpo_st_open(cli->ctx, &p.in, o->input)) != 0))
		goto out;
	if (cli->o.dry_run) {
		rc = plan(&p);
		goto out;
	}
	rc = c->run(&p);
	if (rc == 0 && cli->o.output != NULL &&
	    strncmp(c->name, "tokenizer", 9) != 0)
		rc = write_out(&p);
	if (rc == 0 && lpo_cli_given(cli, "repeat"))
		report_times(&p);
out:
	lpo_stw_free(p.out);
	lpo_st_close(p.in);
	for (i = 0; i < p.n_kept; i++)
		lpo_free(p.kept[i]);
	lpo_free(p.kept);
	lpo_free(p.ms);
	return rc;
}

int
main(int argc, char **argv)
{
	struct lpo_probe_opts o = { .repeat = 1, .steps = 20, .eta = 1,
	    .beta = 500, .clip = 0.1, .guidance = 5,
	    .batch_coeff = 1, .aux_coeff = 1 };
	lpo_cli cli;
	int rc;

	rc = lpo_cli_start(&cli, &tool, &o, argc, argv);
	if (rc == 0)
		rc = work(&cli, &o);
	return lpo_cli_end(&cli, rc);
}
