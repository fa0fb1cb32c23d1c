/*
 * judge: an external scorer for lpo-eval.  Reads a tar of images (KEY.png)
 * with their prompts (KEY.json) on standard input; prints a header line, then
 * key, alignment, aesthetic and preference of each image.
 */
#include "judge_core.h"

#include <archive.h>
#include <archive_entry.h>
#include <jansson.h>
#include <png.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MEMBER_BYTES (16 << 20)

/* A sample whose two members have not both been read yet. */
struct sample {
	char *key;
	uint8_t *rgb;
	struct lpo_spec spec;
	int has_spec;
};

struct judge {
	int facts;		/* also print each kind of fact */
	struct sample *waiting;
	size_t n_waiting, room;
};

static int
fail(const char *format, ...)
{
	va_list ap;

	fputs("judge: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	return -1;
}

static struct sample *
find(struct judge *j, const char *key)
{
	struct sample *s;

	for (size_t i = 0; i < j->n_waiting; i++)
		if (strcmp(j->waiting[i].key, key) == 0)
			return &j->waiting[i];
	if (j->n_waiting == j->room) {
		size_t room = j->room == 0 ? 16 : 2 * j->room;

		s = realloc(j->waiting, room * sizeof(*s));
		if (s == NULL)
			return NULL;
		j->waiting = s;
		j->room = room;
	}
	s = &j->waiting[j->n_waiting];
	memset(s, 0, sizeof(*s));
	if ((s->key = strdup(key)) == NULL)
		return NULL;
	j->n_waiting++;
	return s;
}

/* Removes a sample; the order of those that wait doesn't matter. */
static void
forget(struct judge *j, struct sample *s)
{
	free(s->key);
	free(s->rgb);
	*s = j->waiting[--j->n_waiting];
}

static int
read_png(struct sample *s, const char *name, const void *data, size_t bytes)
{
	png_image image;
	int rc = -1;

	memset(&image, 0, sizeof(image));
	image.version = PNG_IMAGE_VERSION;
	if (png_image_begin_read_from_memory(&image, data, bytes) == 0)
		return fail("cannot decode '%s': %s", name, image.message);
	image.format = PNG_FORMAT_RGB;
	if (image.width != LPO_WORLD_SIDE_PX ||
	    image.height != LPO_WORLD_SIDE_PX) {
		fail("'%s' is %u x %u pixels, not %d x %d", name, image.width,
		    image.height, LPO_WORLD_SIDE_PX, LPO_WORLD_SIDE_PX);
	} else if (s->rgb != NULL) {
		fail("'%s' comes twice", name);
	} else if ((s->rgb = malloc(LPO_WORLD_BYTES)) == NULL) {
		fail("out of memory");
	} else if (png_image_finish_read(&image, NULL, s->rgb, 0, NULL) == 0) {
		fail("cannot decode '%s': %s", name, image.message);
	} else {
		rc = 0;
	}
	png_image_free(&image);
	return rc;
}

static int
read_json(struct sample *s, const char *name, const void *data, size_t bytes)
{
	json_error_t why;
	json_t *j = json_loadb(data, bytes, 0, &why);
	const char *prompt;
	int rc = -1;

	if (j == NULL)
		return fail("'%s': %s", name, why.text);
	prompt = json_string_value(json_object_get(j, "prompt"));
	if (prompt == NULL)
		fail("'%s' has no text 'prompt'", name);
	else if (s->has_spec)
		fail("'%s' comes twice", name);
	else if (lpo_world_parse(prompt, &s->spec) != 0)
		fail("'%s': the prompt '%s' is not of this world", name,
		    prompt);
	else
		rc = 0;
	s->has_spec = 1;
	json_decref(j);
	return rc;
}

static void
print_share(double share)
{
	if (share < 0.0)
		printf("\t");
	else
		printf("\t%.6f", share);
}

static void
rate(const struct judge *j, const struct sample *s)
{
	struct lpo_view view;
	struct lpo_verdict v;

	lpo_judge_look(s->rgb, &view);
	lpo_judge_rate(&view, &s->spec, &v);
	printf("%s\t%.6f\t%.6f\t%.6f", s->key, v.alignment, v.aesthetic,
	    v.preference);
	if (j->facts) {
		print_share(v.count);
		print_share(v.size);
		print_share(v.colour);
		print_share(v.shape);
		print_share(v.where);
		print_share(v.relation);
		print_share(view.beauty.white);
		print_share(view.beauty.calm);
		print_share(view.beauty.sharp);
		print_share(view.beauty.whole);
	}
	putchar('\n');
}

/* One member: of interest are KEY.png and KEY.json, KEY up to the first dot
 * of the file's name; names starting with "__" are notes to readers. */
static int
take(struct judge *j, const char *name, const void *data, size_t bytes)
{
	const char *base = strrchr(name, '/');
	const char *dot = strchr(base == NULL ? name : base, '.');
	struct sample *s;
	char *key;
	int rc;

	if (strncmp(name, "__", 2) == 0 || dot == NULL ||
	    (strcmp(dot, ".png") != 0 && strcmp(dot, ".json") != 0))
		return 0;
	if ((key = strndup(name, (size_t)(dot - name))) == NULL)
		return fail("out of memory");
	s = find(j, key);
	free(key);
	if (s == NULL)
		return fail("out of memory");
	rc = strcmp(dot, ".png") == 0 ? read_png(s, name, data, bytes) :
	    read_json(s, name, data, bytes);
	if (rc == 0 && s->rgb != NULL && s->has_spec) {
		rate(j, s);
		forget(j, s);
	}
	return rc;
}

static int
take_entry(struct judge *j, struct archive *a, struct archive_entry *e)
{
	const char *name = archive_entry_pathname(e);
	int64_t bytes = archive_entry_size(e);
	void *data;
	int rc;

	if (name == NULL || archive_entry_filetype(e) != AE_IFREG)
		return 0;
	if (bytes < 0 || bytes > MAX_MEMBER_BYTES)
		return strncmp(name, "__", 2) == 0 ? 0 :
		    fail("'%s' is too large", name);
	if ((data = malloc((size_t)bytes + 1)) == NULL)
		return fail("out of memory");
	if (archive_read_data(a, data, (size_t)bytes) != bytes)
		rc = fail("'%s' is cut short", name);
	else
		rc = take(j, name, data, (size_t)bytes);
	free(data);
	return rc;
}

static int
judge_stream(struct judge *j)
{
	struct archive *a = archive_read_new();
	struct archive_entry *e;
	int rc = -1, got = ARCHIVE_FATAL;

	if (a == NULL)
		return fail("out of memory");
	archive_read_support_format_tar(a);
	if (archive_read_open_FILE(a, stdin) != ARCHIVE_OK) {
		fail("cannot read standard input: %s",
		    archive_error_string(a));
		goto out;
	}
	while ((got = archive_read_next_header(a, &e)) == ARCHIVE_OK)
		if (take_entry(j, a, e) != 0)
			goto out;
	if (got != ARCHIVE_EOF)
		fail("not a sound tar: %s", archive_error_string(a));
	else if (j->n_waiting > 0)
		fail("'%s' has no %s", j->waiting[0].key,
		    j->waiting[0].rgb == NULL ? "picture" : "prompt");
	else
		rc = 0;
out:
	archive_read_free(a);
	return rc;
}

int
main(int argc, char **argv)
{
	struct judge j;
	int rc;

	memset(&j, 0, sizeof(j));
	if (argc == 2 && strcmp(argv[1], "--help") == 0) {
		puts("usage: judge [--facts] <images.tar\n\n"
		    "  --facts  also count, size, colour, shape, place and\n"
		    "           relation, empty where the prompt is silent,\n"
		    "           and whiteness, calm, sharpness, wholeness");
		return fflush(stdout) != 0;
	}
	j.facts = argc == 2 && strcmp(argv[1], "--facts") == 0;
	if (argc > 1 && !j.facts) {
		fprintf(stderr, "judge: bad usage; see --help\n");
		return 2;
	}
	printf("key\talignment\taesthetic\tpreference%s\n", j.facts ?
	    "\tcount\tsize\tcolour\tshape\tplace\trelation"
	    "\twhite\tcalm\tsharp\twhole" : "");
	rc = judge_stream(&j);
	while (j.n_waiting > 0)
		forget(&j, &j.waiting[0]);
	free(j.waiting);
	if (fflush(stdout) != 0 || ferror(stdout))
		rc = fail("cannot write standard output");
	return rc != 0;
}
