/*
 * Runs a fuzz target over its corpus, tests/fuzz/corpus/NAME, and over the
 * same small set of damages of every file in it.  With arguments: these files
 * alone, and what was said of each.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

#define DAMAGES 40
#define BIG (1 << 20)

int	LLVMFuzzerTestOneInput(const uint8_t *, size_t);
const char *fuzz_said(void);

/* Exactly n bytes of memory, so that a byte too far is seen. */
static void
feed(const uint8_t *p, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);

	if (copy == NULL)
		exit(1);
	memcpy(copy, p, n);
	LLVMFuzzerTestOneInput(copy, n);
	free(copy);
}

static uint8_t *
slurp(const char *path, size_t *n)
{
	FILE *f = fopen(path, "rb");
	uint8_t *p = malloc(BIG);

	if (f == NULL || p == NULL) {
		perror(path);
		exit(1);
	}
	*n = fread(p, 1, BIG, f);
	fclose(f);
	return p;
}

/* One to three bits or bytes changed, or a piece cut out. */
static void
damages(const uint8_t *p, size_t n, uint32_t x)
{
	uint8_t *q = malloc(n);
	size_t at, len, m;
	int i, k;

	for (i = 0; i < DAMAGES && q != NULL && n > 0; i++) {
		memcpy(q, p, n);
		m = n;
		for (k = 0; k < 1 + i % 3; k++) {
			x = x * 1664525 + 1013904223;
			at = (x >> 8) % n;
			if (i % 2 == 0)
				q[at] ^= (uint8_t)(1 << (x >> 5) % 8);
			else
				q[at] = (uint8_t)(x >> 24);
		}
		if (i % 5 == 4) {
			at = (x >> 8) % n;
			len = (x >> 3) % (n - at + 1);
			memmove(q + at, q + at + len, n - at - len);
			m = n - len;
		}
		feed(q, m);
	}
	free(q);
}

static int
show(int n, char **paths)
{
	uint8_t *p;
	size_t bytes;
	int i;

	for (i = 0; i < n; i++) {
		p = slurp(paths[i], &bytes);
		feed(p, bytes);
		printf("%s\t%s\n", paths[i], fuzz_said());
		free(p);
	}
	return 0;
}

int
main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');
	char dir[256], path[600];
	struct dirent **list;
	uint8_t *p;
	size_t bytes;
	int i, n, files = 0;

	if (argc > 1)
		return show(argc - 1, argv + 1);
	name = name ? name + 1 : argv[0];
	snprintf(dir, sizeof(dir), "tests/fuzz/corpus/%.*s",
	    (int)strcspn(name, "."), name);
	if ((n = scandir(dir, &list, NULL, alphasort)) < 0) {
		ok(0, "no corpus %s", dir);
		return done_testing();
	}
	feed((const uint8_t *)"", 0);
	for (i = 0; i < n; i++) {
		if (list[i]->d_name[0] != '.') {
			snprintf(path, sizeof(path), "%s/%s", dir,
			    list[i]->d_name);
			printf("# %s\n", path);
			fflush(stdout);
			p = slurp(path, &bytes);
			feed(p, bytes);
			damages(p, bytes, (uint32_t)files++);
			free(p);
		}
		free(list[i]);
	}
	free(list);
	ok(files > 0, "%d inputs replayed, and %d damages of each", files,
	    DAMAGES);
	return done_testing();
}
