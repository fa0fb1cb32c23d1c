/*
 * Speed of what is not the network: start of a program, shards, noisy pairs,
 * pictures, tokens.  Each figure stands beside a ceiling or a peer of the same
 * run.  Nothing is asserted.  usage: io.t   (BIN: the programs' folder;
 * PYTHON: an interpreter whose Pillow is the peer for pictures)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <jpeglib.h>

#include "lib/base/progress.h"
#include "lib/io/image.h"
#include "lib/io/npy.h"
#include "lib/io/resize.h"
#include "lib/io/shard.h"
#include "lib/model/tokenizer.h"

enum { SAMPLES = 1500, MOMENTS = 8 * 64 * 64, SIDE = 1024, TO = 512 };

static lpo_ctx *c;
static char dir[] = "/tmp/lpo-bench-XXXXXX";

static char *
at(const char *name)
{
	static char path[4][128];
	static int k;

	k = (k + 1) % 4;
	snprintf(path[k], sizeof(path[k]), "%s/%s", dir, name);
	return path[k];
}

static void
row(const char *what, double figure, const char *unit, const char *beside,
    double other, const char *other_unit)
{
	printf("%-34s %10.4g %-10s %s %.4g %s\n", what, figure, unit, beside,
	    other, other_unit);
	fflush(stdout);
}

static void
need(int rc)
{
	if (rc < 0) {
		fprintf(stderr, "io: %s\n", lpo_errmsg(c));
		exit(1);
	}
}

/* Least wall seconds of n runs of a shell command. */
static double
command_s(const char *cmd, int n)
{
	double best = 1e30, t;

	while (n-- > 0) {
		t = lpo_now_s();
		if (system(cmd) != 0) {
			fprintf(stderr, "io: '%s' failed\n", cmd);
			return 0;
		}
		t = lpo_now_s() - t;
		best = t < best ? t : best;
	}
	return best;
}

static void
start(const char *bin)
{
	char cmd[256];
	double empty = command_s("exec true", 50), t;

	snprintf(cmd, sizeof(cmd), "exec %s/lpo-train --help > /dev/null",
	    bin);
	t = command_s(cmd, 50);
	row("lpo-train --help", 1e3 * t, "ms", "beside", 1e3 * empty,
	    "ms of an empty program; at most 20 wanted");
}

/* ---- shards */

static uint8_t *
moments(int64_t *size, int64_t i)
{
	static uint16_t half[MOMENTS];
	static const int64_t shape[] = { 8, 64, 64 };
	uint8_t *npy;
	int64_t k;

	/* halves between 0.5 and 1 that compress badly */
	for (k = 0; k < MOMENTS; k++)
		half[k] = (uint16_t)(0x3800 |
		    ((uint64_t)(k + i * 7919) * 2654435761u >> 7 & 0x3ff));
	need(lpo_npy_make(c, &npy, size, LPO_NPY_F2, 3, shape, half));
	return npy;
}

static void
write_moments(const char *path)
{
	json_t *run = json_pack("{s:i, s:s, s:s, s:[], s:i, s:{s:f, s:i, "
	    "s:s}, s:{s:f, s:f, s:s, s:i, s:s}, s:i}", "format", 1, "kind",
	    "moments", "run", "0123456789abcdef", "parents", "samples",
	    SAMPLES, "latent", "scaling_factor", 0.18215, "channels", 4,
	    "vae_sha256", "0", "scheduler", "beta_start", 0.00085,
	    "beta_end", 0.012, "beta_schedule", "scaled_linear",
	    "num_train_timesteps", 1000, "prediction_type", "epsilon",
	    "size_px", 512);
	struct lpo_sample s;
	lpo_shardw *w;
	uint8_t *npy;
	int64_t i, size;
	char key[16], name[16];
	int k;

	need(lpo_shardw_open(c, &w, path, run));
	for (i = 0; i < SAMPLES; i++) {
		memset(&s, 0, sizeof(s));
		snprintf(key, sizeof(key), "%09d", (int)i);
		s.key = lpo_strdup(c, key);
		s.json = json_pack("{s:s, s:f, s:f, s:i, s:i, s:{}}",
		    "prompt", "a lake", "label_0", 1.0, "label_1", 0.0,
		    "num_example_per_prompt", 1, "row", (int)i, "extra");
		for (k = 0; k < 2; k++) {
			npy = moments(&size, 2 * i + k);
			snprintf(name, sizeof(name), "moments_%d.npy", k);
			need(lpo_sample_add(c, &s, name, npy, size));
		}
		need(lpo_shardw_put(w, &s));
		lpo_sample_clear(&s);
	}
	need(lpo_shardw_finish(w, 0, 0, 1));
	json_decref(run);
}

static void
shards(const char *bin)
{
	char *path = at("m.tar"), cmd[256];
	struct stat st;
	struct lpo_sample s;
	lpo_shards *in;
	double t, read, copy;
	FILE *f;
	char *buf;
	int rc;

	write_moments(path);
	stat(path, &st);
	for (read = 1e30, rc = 0; rc < 3; rc++) {
		const char *arg = path;

		t = lpo_now_s();
		need(lpo_shards_open(c, &in, &arg, 1, 0));
		memset(&s, 0, sizeof(s));
		while (lpo_shards_next(in, &s) == 0)
			lpo_sample_clear(&s);
		lpo_shards_close(in);
		t = lpo_now_s() - t;
		read = t < read ? t : read;
	}
	buf = malloc(1 << 20);
	for (copy = 1e30, rc = 0; rc < 3; rc++) {
		t = lpo_now_s();
		f = fopen(path, "r");
		while (f != NULL && fread(buf, 1, 1 << 20, f) > 0)
			;
		fclose(f);
		t = lpo_now_s() - t;
		copy = t < copy ? t : copy;
	}
	free(buf);
	row("shards read and checked, copied", 1e-9 * (double)st.st_size /
	    read, "GB/s", "beside", 1e-9 * (double)st.st_size / copy,
	    "of read(2) alone; at least 1 wanted");
	snprintf(cmd, sizeof(cmd), "exec %s/lpo-pairs -q --db none -j 1 %s "
	    "> /dev/null", bin, path);
	t = command_s(cmd, 3);
	snprintf(cmd, sizeof(cmd), "exec cat %s > /dev/null", path);
	row("lpo-pairs, one thread", SAMPLES / t, "pairs/s", "beside",
	    SAMPLES / command_s(cmd, 3), "of cat; at least 1500 wanted");
}

/* ---- pictures */

static void
write_jpeg(const char *path)
{
	struct jpeg_compress_struct j;
	struct jpeg_error_mgr e;
	FILE *f = fopen(path, "wb");
	uint8_t line[SIDE * 3];
	JSAMPROW rows = line;
	int x, y;

	j.err = jpeg_std_error(&e);
	jpeg_create_compress(&j);
	jpeg_stdio_dest(&j, f);
	j.image_width = j.image_height = SIDE;
	j.input_components = 3;
	j.in_color_space = JCS_RGB;
	jpeg_set_defaults(&j);
	jpeg_set_quality(&j, 90, TRUE);
	jpeg_start_compress(&j, TRUE);
	for (y = 0; y < SIDE; y++) {
		for (x = 0; x < SIDE * 3; x++)
			line[x] = (uint8_t)((x * y >> 9) + (x ^ y) % 23);
		jpeg_write_scanlines(&j, &rows, 1);
	}
	jpeg_finish_compress(&j);
	jpeg_destroy_compress(&j);
	fclose(f);
}

/* Pillow's milliseconds for the same file; 0: no Pillow. */
static double
pillow_ms(const char *path)
{
	const char *python = getenv("PYTHON");
	char cmd[1024];
	double ms = 0;
	FILE *f;

	snprintf(cmd, sizeof(cmd), "%s -c '\n"
	    "import time\n"
	    "from PIL import Image\n"
	    "best = 9e9\n"
	    "for _ in range(20):\n"
	    "    t = time.perf_counter()\n"
	    "    i = Image.open(\"%s\").convert(\"RGB\")\n"
	    "    i.resize((%d, %d), Image.BILINEAR).tobytes()\n"
	    "    best = min(best, time.perf_counter() - t)\n"
	    "print(best * 1e3)' 2> /dev/null", python != NULL ? python :
	    "python3", path, TO, TO);
	if ((f = popen(cmd, "r")) == NULL)
		return 0;
	if (fscanf(f, "%lf", &ms) != 1)
		ms = 0;
	pclose(f);
	return ms;
}

static void
pictures(void)
{
	char *path = at("a.jpg");
	struct lpo_image im;
	uint8_t *to = malloc((size_t)TO * TO * 3);
	double best = 1e30, t, peer;
	int i;

	write_jpeg(path);
	for (i = 0; i < 20; i++) {
		t = lpo_now_s();
		need(lpo_image_read(c, &im, path, NULL));
		need(lpo_resize_u8(c, to, TO, TO, im.rgb, im.w, im.h, 3,
		    LPO_BILINEAR));
		lpo_image_free(&im);
		t = 1e3 * (lpo_now_s() - t);
		best = t < best ? t : best;
	}
	free(to);
	peer = pillow_ms(path);
	if (peer > 0)
		row("JPEG 1024 to 512, decode + resize", best, "ms", "beside",
		    peer, "of Pillow; no more wanted");
	else
		row("JPEG 1024 to 512, decode + resize", best, "ms",
		    "no Pillow;", 1e3 / best, "a second");
}

/* ---- tokens */

static void
tokens(void)
{
	static const char *const words[] = { "photo", "of", "a", "beautiful",
	    "woman", "in", "the", "forest", "highly", "detailed,",
	    "intricate", "sharp", "focus,", "cinematic", "lighting", "8k" };
	lpo_tokenizer *tok;
	int32_t ids[256];
	char text[512];
	double t;
	int i, k, n = 50000;

	need(lpo_tokenizer_open(c, &tok, "tests/golden/tokenizer/sd15"));
	t = lpo_now_s();
	for (i = 0; i < n; i++) {
		text[0] = '\0';
		for (k = 0; k < 20; k++) {
			strcat(text, words[(i * 7 + k * (i % 13 + 1)) % 16]);
			strcat(text, " ");
		}
		need(lpo_tokenizer_encode(tok, ids, text));
	}
	t = lpo_now_s() - t;
	lpo_tokenizer_close(tok);
	row("tokenizer, 20 words", n / t, "prompts/s", "at least", 50000,
	    "wanted");
}

int
main(void)
{
	const char *bin = getenv("BIN");
	char cmd[256];

	if (mkdtemp(dir) == NULL || (c = lpo_ctx_new()) == NULL)
		return 1;
	bin = bin != NULL ? bin : "bin";
	start(bin);
	shards(bin);
	pictures();
	tokens();
	lpo_ctx_free(c);
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	return system(cmd) != 0;
}
