/*
 * Reading whole files, and writing them so that a kill or a power cut leaves
 * the old version or the new one.
 */
#include "lib/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/json.h"

enum { BUFFER = 256 << 10 };

struct lpo_out {
	lpo_ctx *c;
	char *path;
	char *tmp;		/* NULL: written directly */
	int fd, own_fd, failed;
	int64_t bytes;
	size_t have;
	uint8_t *buf;
};

static void
out_free(lpo_out *o)
{
	if (o->own_fd && o->fd >= 0)
		close(o->fd);
	lpo_free(o->path);
	lpo_free(o->tmp);
	lpo_free(o->buf);
	lpo_free(o);
}

/* What to write to: a link's target, so that the link stays a link. */
static char *
out_path(lpo_ctx *c, const char *path)
{
	struct stat st;
	char *real, *copy;

	if (lstat(path, &st) != 0 || !S_ISLNK(st.st_mode) ||
	    (real = realpath(path, NULL)) == NULL)
		return lpo_strdup(c, path);
	copy = lpo_strdup(c, real);
	free(real);
	return copy;
}

int
lpo_out_open(lpo_ctx *c, lpo_out **out, const char *path)
{
	lpo_out *o = lpo_alloc(c, 1, sizeof(*o));
	struct stat st;
	int rc = LPO_ENOMEM;

	*out = NULL;
	if (o == NULL)
		return rc;
	o->c = c;
	o->fd = -1;
	o->own_fd = 1;
	if ((o->buf = lpo_alloc(c, BUFFER, 1)) == NULL)
		goto out;
	if (strcmp(path, "-") == 0) {
		o->fd = STDOUT_FILENO;
		o->own_fd = 0;
		if ((o->path = lpo_strdup(c, "standard output")) == NULL)
			goto out;
		*out = o;
		return 0;
	}
	if ((o->path = out_path(c, path)) == NULL)
		goto out;
	if (stat(o->path, &st) == 0 && !S_ISREG(st.st_mode)) {
		if (S_ISDIR(st.st_mode)) {
			rc = lpo_fail(c, LPO_EINVAL, "'%s' is a folder", path);
			goto out;
		}
		o->fd = open(o->path, O_WRONLY | O_CLOEXEC);
	} else {
		o->tmp = lpo_asprintf(c, "%s.tmp.%ld", o->path,
		    (long)getpid());
		if (o->tmp == NULL)
			goto out;
		o->fd = open(o->tmp,
		    O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
		    0666);
	}
	if (o->fd < 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot create '%s': %s",
		    o->tmp ? o->tmp : path, strerror(errno));
		lpo_free(o->tmp);	/* nothing there to remove */
		o->tmp = NULL;
		goto out;
	}
	*out = o;
	return 0;
out:
	out_free(o);
	return rc;
}

static int
out_push(lpo_out *o, const uint8_t *p, size_t n)
{
	ssize_t w;

	while (n > 0) {
		w = write(o->fd, p, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return o->failed = lpo_fail(o->c,
			    errno == EPIPE ? LPO_EPIPE : LPO_EIO,
			    "cannot write '%s': %s", o->path, strerror(errno));
		p += w;
		n -= (size_t)w;
	}
	return 0;
}

int
lpo_out_flush(lpo_out *o)
{
	size_t n = o->have;

	if (o->failed)
		return o->failed;
	o->have = 0;
	return out_push(o, o->buf, n);
}

int
lpo_out_write(lpo_out *o, const void *data, size_t n)
{
	int rc;

	if (o->failed)
		return o->failed;
	o->bytes += (int64_t)n;
	if (n >= BUFFER - o->have && (rc = lpo_out_flush(o)) != 0)
		return rc;
	if (n >= BUFFER)
		return out_push(o, data, n);
	if (n > 0)
		memcpy(o->buf + o->have, data, n);
	o->have += n;
	return 0;
}

int
lpo_out_printf(lpo_out *o, const char *fmt, ...)
{
	char text[1024], *big = text;
	va_list ap;
	int n, rc;

	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n < 0)
		return lpo_fail(o->c, LPO_EINVAL, "cannot format '%s'", fmt);
	if ((size_t)n >= sizeof(text)) {
		big = lpo_alloc(o->c, (size_t)n + 1, 1);
		if (big == NULL)
			return o->failed = LPO_ENOMEM;
		va_start(ap, fmt);
		vsnprintf(big, (size_t)n + 1, fmt, ap);
		va_end(ap);
	}
	rc = lpo_out_write(o, big, (size_t)n);
	if (big != text)
		lpo_free(big);
	return rc;
}

int64_t
lpo_out_bytes(const lpo_out *o)
{
	return o->bytes;
}

int
lpo_out_commit(lpo_out *o)
{
	lpo_ctx *c = o->c;
	char *dir = NULL;
	int rc = lpo_out_flush(o), fd = o->fd;

	if (rc == 0 && lpo_json_memory_failed())
		rc = lpo_fail(c, LPO_ENOMEM, "cannot write '%s': out of "
		    "memory", o->path);
	if (rc != 0 || o->tmp == NULL)
		goto out;
	/*
	 * A failed fsync is not tried again: the kernel has dropped the
	 * pages, a second call would succeed without them.
	 */
	if (fsync(fd) != 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot write '%s' to disk: %s",
		    o->path, strerror(errno));
		goto out;
	}
	o->fd = -1;
	if (close(fd) != 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot close '%s': %s", o->path,
		    strerror(errno));
		goto out;
	}
	if ((dir = lpo_dirname(c, o->path)) == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if (rename(o->tmp, o->path) != 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot rename '%s' to '%s': %s",
		    o->tmp, o->path, strerror(errno));
		goto out;
	}
	lpo_free(o->tmp);
	o->tmp = NULL;
	rc = lpo_dir_sync(c, dir);
out:
	lpo_free(dir);
	if (rc != 0 && o->tmp != NULL)
		unlink(o->tmp);
	out_free(o);
	return rc;
}

void
lpo_out_abort(lpo_out *o)
{
	if (o == NULL)
		return;
	if (o->tmp != NULL)
		unlink(o->tmp);
	out_free(o);
}

int
lpo_file_write(lpo_ctx *c, const char *path, const void *data, size_t n)
{
	lpo_out *o;
	int rc;

	if ((rc = lpo_out_open(c, &o, path)) != 0)
		return rc;
	if ((rc = lpo_out_write(o, data, n)) != 0) {
		lpo_out_abort(o);
		return rc;
	}
	return lpo_out_commit(o);
}

int
lpo_file_write_text(lpo_ctx *c, const char *dir, const char *name,
    const char *text)
{
	char *path = lpo_path_join(c, dir, name);
	int rc = path == NULL ? LPO_ENOMEM : lpo_file_write(c, path, text,
	    strlen(text));

	lpo_free(path);
	return rc;
}

/*
 * Whose trouble it is: the name's (not there, not ours to read), or the
 * system's (no descriptor, a bad disk), which another file would meet too.
 */
static int
open_code(int e)
{
	switch (e) {
	case ENOENT:
		return LPO_ENOTFOUND;
	case EACCES:
	case EISDIR:
	case ELOOP:
	case ENAMETOOLONG:
	case ENOTDIR:
	case EPERM:
		return LPO_EINVAL;
	default:
		return LPO_EIO;
	}
}

int
lpo_file_link(lpo_ctx *c, const char *to, const char *from)
{
	struct lpo_map m;
	int rc;

	if (linkat(AT_FDCWD, from, AT_FDCWD, to, AT_SYMLINK_FOLLOW) == 0)
		return 0;
	/* another file system, or one without links; or no such file */
	if ((rc = lpo_map_open(c, &m, from)) != 0)
		return rc;
	rc = lpo_file_write(c, to, m.data, m.bytes);
	lpo_map_close(&m);
	return rc;
}

int
lpo_file_read(lpo_ctx *c, char **data, size_t *bytes, const char *path,
    size_t limit)
{
	int std = strcmp(path, "-") == 0, fd = STDIN_FILENO, rc = 0;
	size_t have = 0, room = 0, want;
	struct stat st;
	char *p = NULL, *q;
	ssize_t n;

	*data = NULL;
	*bytes = 0;
	if (!std && (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return lpo_fail(c, open_code(errno), "cannot open '%s': %s",
		    path, strerror(errno));
	want = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ?
	    (size_t)st.st_size : 64 << 10;
	for (;;) {
		if (want > limit)
			want = limit;	/* + 1 below shows what is longer */
		if (have >= room) {
			room = have < want ? want + 1 : have * 2 + 4096;
			q = lpo_realloc(c, p, room + 1);
			if (q == NULL) {
				rc = LPO_ENOMEM;
				goto out;
			}
			p = q;
		}
		n = read(fd, p + have, room - have);
		if (n < 0 && errno == EINTR && !lpo_ctx_stopped(c))
			continue;
		if (n < 0) {
			rc = lpo_fail(c, errno == EINTR ? LPO_ESTOP :
			    open_code(errno),
			    "cannot read '%s': %s", path, strerror(errno));
			goto out;
		}
		if (n == 0)
			break;
		have += (size_t)n;
		if (have > limit) {
			rc = lpo_fail(c, LPO_EFORMAT,
			    "'%s' is larger than %zu bytes", path, limit);
			goto out;
		}
	}
	p[have] = '\0';
	*data = p;
	*bytes = have;
	p = NULL;
out:
	lpo_free(p);
	if (!std)
		close(fd);
	return rc;
}

const char *
lpo_unpacker(const void *data, size_t bytes)
{
	static const struct { const char *begin, *program; } kinds[] = {
		{ "\x1f\x8b", "gzip -dc" },
		{ "\x28\xb5\x2f\xfd", "zstd -dc" },
		{ "\xfd" "7zXZ", "xz -dc" }
	};
	size_t i, n;

	for (i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		n = strlen(kinds[i].begin);
		if (bytes >= n && memcmp(data, kinds[i].begin, n) == 0)
			return kinds[i].program;
	}
	return NULL;
}

int
lpo_map_fd(lpo_ctx *c, struct lpo_map *m, int fd, const char *name)
{
	struct stat st;
	void *p;

	m->data = (const uint8_t *)"";
	m->bytes = 0;
	if (fstat(fd, &st) != 0)
		return lpo_fail(c, LPO_EIO, "cannot stat '%s': %s", name,
		    strerror(errno));
	if (!S_ISREG(st.st_mode))
		return lpo_fail(c, LPO_EINVAL, "'%s' is not a regular file",
		    name);
	if (st.st_size == 0)
		return 0;
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return lpo_fail(c, errno == ENOMEM ? LPO_ENOMEM : LPO_EIO,
		    "cannot map '%s': %s", name, strerror(errno));
	m->data = p;
	m->bytes = (size_t)st.st_size;
	return 0;
}

int
lpo_map_open(lpo_ctx *c, struct lpo_map *m, const char *path)
{
	int fd, rc;

	m->data = NULL;
	m->bytes = 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND : LPO_EIO,
		    "cannot open '%s': %s", path, strerror(errno));
	rc = lpo_map_fd(c, m, fd, path);
	close(fd);
	return rc;
}

void
lpo_map_drop(const void *data, size_t bytes)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t from = ((uintptr_t)data + page - 1) / page * page;
	uintptr_t to = ((uintptr_t)data + bytes) / page * page;

	if (to > from)
		(void)madvise((void *)from, to - from, MADV_DONTNEED);
}

void
lpo_map_close(struct lpo_map *m)
{
	if (m->bytes > 0)
		munmap((void *)(uintptr_t)m->data, m->bytes);
	m->data = NULL;
	m->bytes = 0;
}

const char *
lpo_scratch_dir(const char *dir)
{
	if (dir == NULL)
		dir = getenv("TMPDIR");
	return dir == NULL || dir[0] == '\0' ? "/var/tmp" : dir;
}

int
lpo_scratch_file(lpo_ctx *c, int *fd, const char *dir)
{
	char *path;

	*fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (*fd >= 0)
		return 0;
	/* a file system without such files */
	if ((path = lpo_asprintf(c, "%s/lpo-XXXXXX", dir)) == NULL)
		return LPO_ENOMEM;
	*fd = mkostemp(path, O_CLOEXEC);
	if (*fd >= 0)
		unlink(path);
	lpo_free(path);
	if (*fd < 0)
		return lpo_fail(c, LPO_EIO, "cannot make a file in '%s': %s",
		    dir, strerror(errno));
	return 0;
}

int
lpo_map_scratch(lpo_ctx *c, void **mem, size_t bytes)
{
	const char *dir = lpo_scratch_dir(NULL);
	int fd, rc, e;

	*mem = NULL;
	if ((rc = lpo_scratch_file(c, &fd, dir)) != 0)
		return rc;
	if ((e = posix_fallocate(fd, 0, (off_t)bytes)) != 0)
		rc = lpo_fail(c, LPO_EIO, "no %zu bytes in '%s': %s", bytes,
		    dir, strerror(e));
	else if ((*mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
	    fd, 0)) == MAP_FAILED) {
		*mem = NULL;
		rc = lpo_fail(c, LPO_EIO, "cannot map a file of '%s': %s",
		    dir, strerror(errno));
	}
	close(fd);
	return rc;
}
