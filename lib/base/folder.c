/*
 * Folders: listing, removing, publishing at once, and the lock of an output.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/file.h"

int
lpo_ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);

	return n >= m && strcmp(s + n - m, end) == 0;
}

int
lpo_has_extension(const char *path, const char *extension)
{
	size_t n = strlen(path), m = strlen(extension);

	return n >= m && strcasecmp(path + n - m, extension) == 0;
}

int
lpo_file_exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

int
lpo_is_dir(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int64_t
lpo_file_size(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

/* The length of path without trailing slashes; "/" stays. */
static size_t
bare(const char *path)
{
	size_t n = strlen(path);

	while (n > 1 && path[n - 1] == '/')
		n--;
	return n;
}

char *
lpo_dirname(lpo_ctx *c, const char *path)
{
	size_t n = bare(path);

	while (n > 0 && path[n - 1] != '/')
		n--;
	if (n == 0)
		return lpo_strdup(c, ".");
	while (n > 1 && path[n - 1] == '/')
		n--;
	return lpo_asprintf(c, "%.*s", (int)n, path);
}

char *
lpo_path_join(lpo_ctx *c, const char *dir, const char *name)
{
	size_t n = strlen(dir);

	if (name[0] == '/' || n == 0)
		return lpo_strdup(c, name);
	return lpo_asprintf(c, "%s%s%s", dir, dir[n - 1] == '/' ? "" : "/",
	    name);
}

int
lpo_mkdir_p(lpo_ctx *c, const char *path)
{
	char *p, *q;
	int rc = 0;

	if ((p = lpo_strdup(c, path)) == NULL)
		return LPO_ENOMEM;
	p[bare(p)] = '\0';
	for (q = p + 1;; q++) {
		char was = *q;

		if (was != '/' && was != '\0')
			continue;
		*q = '\0';
		if (mkdir(p, 0777) != 0) {
			struct stat st;
			int e = errno;

			/* "exists", yet is not there: removed meanwhile */
			if (stat(p, &st) == 0 ? !S_ISDIR(st.st_mode) :
			    e != EEXIST || errno != ENOENT) {
				rc = lpo_fail(c, LPO_EIO, "cannot make folder "
				    "'%s': %s", p, strerror(e));
				break;
			}
		}
		if ((*q = was) == '\0')
			break;
	}
	lpo_free(p);
	return rc;
}

int
lpo_dir_sync(lpo_ctx *c, const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

	if (fd < 0)
		return lpo_fail(c, LPO_EIO, "cannot open folder '%s': %s",
		    dir, strerror(errno));
	/* Some file systems have no fsync for folders and say EINVAL. */
	if (fsync(fd) != 0 && errno != EINVAL)
		rc = lpo_fail(c, LPO_EIO, "cannot write folder '%s' to disk: "
		    "%s", dir, strerror(errno));
	close(fd);
	return rc;
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

void
lpo_names_free(char **names, int64_t n)
{
	int64_t i;

	for (i = 0; i < n; i++)
		lpo_free(names[i]);
	lpo_free(names);
}

int
lpo_dir_list(lpo_ctx *c, char ***names, int64_t *n, const char *dir)
{
	char **list = NULL, **q;
	int64_t have = 0, room = 0;
	struct dirent *e;
	int rc = 0;
	DIR *d;

	*names = NULL;
	*n = 0;
	if ((d = opendir(dir)) == NULL)
		return lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND : LPO_EIO,
		    "cannot open folder '%s': %s", dir, strerror(errno));
	while (errno = 0, (e = readdir(d)) != NULL) {
		if (strcmp(e->d_name, ".") == 0 ||
		    strcmp(e->d_name, "..") == 0)
			continue;
		if (have == room) {
			room = room * 2 + 16;
			q = lpo_realloc(c, list, (size_t)room * sizeof(*q));
			if (q == NULL) {
				rc = LPO_ENOMEM;
				goto out;
			}
			list = q;
		}
		if ((list[have] = lpo_strdup(c, e->d_name)) == NULL) {
			rc = LPO_ENOMEM;
			goto out;
		}
		have++;
	}
	if (errno != 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot read folder '%s': %s", dir,
		    strerror(errno));
		goto out;
	}
	if (have > 0)
		qsort(list, (size_t)have, sizeof(*list), by_name);
	*names = list;
	*n = have;
	list = NULL;
	have = 0;
out:
	closedir(d);
	lpo_names_free(list, have);
	return rc;
}

/* Links are removed, never followed. */
int
lpo_rmtree(lpo_ctx *c, const char *path)
{
	char **names = NULL, *sub;
	int64_t i, n = 0;
	struct stat st;
	int rc = 0;

	if (lstat(path, &st) != 0) {
		if (errno == ENOENT || errno == ENOTDIR)
			return 0;
		return lpo_fail(c, LPO_EIO, "cannot stat '%s': %s", path,
		    strerror(errno));
	}
	if (S_ISDIR(st.st_mode)) {
		if ((rc = lpo_dir_list(c, &names, &n, path)) != 0)
			return rc;
		for (i = 0; i < n && rc == 0; i++) {
			sub = lpo_path_join(c, path, names[i]);
			rc = sub == NULL ? LPO_ENOMEM : lpo_rmtree(c, sub);
			lpo_free(sub);
		}
		lpo_names_free(names, n);
		if (rc == 0 && rmdir(path) != 0 && errno != ENOENT)
			rc = lpo_fail(c, LPO_EIO, "cannot remove folder "
			    "'%s': %s", path, strerror(errno));
	} else if (unlink(path) != 0 && errno != ENOENT)
		rc = lpo_fail(c, LPO_EIO, "cannot remove '%s': %s", path,
		    strerror(errno));
	return rc;
}

/* fsync every file below, then the folders that name them. */
static int
sync_tree(lpo_ctx *c, const char *path)
{
	char **names = NULL, *sub;
	int64_t i, n = 0;
	int fd, rc;

	if (!lpo_is_dir(path)) {
		if ((fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)) < 0)
			return lpo_fail(c, LPO_EIO, "cannot open '%s': %s",
			    path, strerror(errno));
		rc = fsync(fd) == 0 ? 0 : lpo_fail(c, LPO_EIO,
		    "cannot write '%s' to disk: %s", path, strerror(errno));
		close(fd);
		return rc;
	}
	if ((rc = lpo_dir_list(c, &names, &n, path)) != 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++) {
		sub = lpo_path_join(c, path, names[i]);
		rc = sub == NULL ? LPO_ENOMEM : sync_tree(c, sub);
		lpo_free(sub);
	}
	lpo_names_free(names, n);
	return rc != 0 ? rc : lpo_dir_sync(c, path);
}

int
lpo_folder_begin(lpo_ctx *c, char **tmp, const char *dir)
{
	int rc;

	*tmp = lpo_asprintf(c, "%.*s.tmp.%ld", (int)bare(dir), dir,
	    (long)getpid());
	if (*tmp == NULL)
		return LPO_ENOMEM;
	if ((rc = lpo_rmtree(c, *tmp)) == 0 && mkdir(*tmp, 0777) != 0)
		rc = lpo_fail(c, LPO_EIO, "cannot make folder '%s': %s", *tmp,
		    strerror(errno));
	if (rc != 0) {
		lpo_free(*tmp);
		*tmp = NULL;
	}
	return rc;
}

/* Put `tmp` in the place of the folder `to`; then `tmp` names the old one. */
static int
exchange(lpo_ctx *c, const char *tmp, const char *to)
{
	char *old;
	int rc = 0;

	if (renameat2(AT_FDCWD, tmp, AT_FDCWD, to, RENAME_EXCHANGE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return lpo_fail(c, LPO_EIO, "cannot exchange '%s' and '%s': "
		    "%s", tmp, to, strerror(errno));
	/* The file system can't: for a moment there is neither. */
	if ((old = lpo_asprintf(c, "%s.old", tmp)) == NULL)
		return LPO_ENOMEM;
	if (rename(to, old) != 0)
		rc = lpo_fail(c, LPO_EIO, "cannot rename '%s' to '%s': %s",
		    to, old, strerror(errno));
	else if (rename(tmp, to) != 0) {
		rc = lpo_fail(c, LPO_EIO, "cannot rename '%s' to '%s': %s",
		    tmp, to, strerror(errno));
		if (rename(old, to) != 0)
			lpo_fail_prefix(c, "'%s' is '%s' now", to, old);
	} else if (rename(old, tmp) != 0)
		rc = lpo_fail(c, LPO_EIO, "cannot rename '%s' to '%s': %s",
		    old, tmp, strerror(errno));
	lpo_free(old);
	return rc;
}

int
lpo_folder_publish(lpo_ctx *c, char **tmp, const char *dir, int replace)
{
	char *to = NULL, *parent = NULL;
	int rc, exists;

	to = lpo_asprintf(c, "%.*s", (int)bare(dir), dir);
	parent = lpo_dirname(c, dir);
	if (to == NULL || parent == NULL) {
		rc = LPO_ENOMEM;
		goto out;
	}
	if ((rc = sync_tree(c, *tmp)) != 0)
		goto out;
	/* An empty folder is replaced by rename() itself. */
	exists = lpo_file_exists(to) && rmdir(to) != 0;
	if (exists && !replace)
		rc = lpo_fail(c, LPO_EINVAL, "'%s' is there already", to);
	else if (exists)
		rc = exchange(c, *tmp, to);
	else if (rename(*tmp, to) != 0)
		rc = lpo_fail(c, LPO_EIO, "cannot rename '%s' to '%s': %s",
		    *tmp, to, strerror(errno));
	if (rc == 0)
		rc = lpo_dir_sync(c, parent);
	if (rc == 0 && exists)
		rc = lpo_rmtree(c, *tmp);
out:
	lpo_free(to);
	lpo_free(parent);
	if (rc != 0) {
		lpo_folder_abort(tmp);
		return rc;
	}
	lpo_free(*tmp);
	*tmp = NULL;
	return 0;
}

void
lpo_folder_abort(char **tmp)
{
	lpo_ctx *c;

	if (*tmp == NULL)
		return;
	/* A context of its own: what failed first stays in the caller's. */
	if ((c = lpo_ctx_new()) != NULL)
		lpo_rmtree(c, *tmp);
	lpo_ctx_free(c);
	lpo_free(*tmp);
	*tmp = NULL;
}

/* Is `name` BASE.tmp.PID, or anything.tmp.PID where base is NULL? */
static int
is_tmp(const char *name, const char *base)
{
	const char *dot = strrchr(name, '.');
	size_t n;

	if (dot == NULL || dot[1] == '\0' ||
	    dot[1 + strspn(dot + 1, "0123456789")] != '\0' ||
	    (n = (size_t)(dot - name)) < 4 ||
	    strncmp(dot - 4, ".tmp", 4) != 0)
		return 0;
	return base == NULL || (strlen(base) == n - 4 &&
	    strncmp(name, base, n - 4) == 0);
}

static int
sweep(lpo_ctx *c, const char *dir, const char *base)
{
	char **names = NULL, *full;
	int64_t i, n = 0;
	int rc;

	if ((rc = lpo_dir_list(c, &names, &n, dir)) != 0)
		return rc;
	for (i = 0; i < n && rc == 0; i++) {
		if (!is_tmp(names[i], base))
			continue;
		full = lpo_path_join(c, dir, names[i]);
		rc = full == NULL ? LPO_ENOMEM : lpo_rmtree(c, full);
		lpo_free(full);
	}
	lpo_names_free(names, n);
	return rc;
}

int
lpo_tmp_sweep(lpo_ctx *c, const char *path)
{
	char *dir = lpo_dirname(c, path), *base, *slash;
	int rc = LPO_ENOMEM;

	base = lpo_asprintf(c, "%.*s", (int)bare(path), path);
	if (dir != NULL && base != NULL) {
		slash = strrchr(base, '/');
		rc = sweep(c, dir, slash != NULL ? slash + 1 : base);
	}
	lpo_free(dir);
	lpo_free(base);
	return rc;
}

int
lpo_tmp_sweep_dir(lpo_ctx *c, const char *dir)
{
	return sweep(c, dir, NULL);
}

struct lpo_lock {
	char *path;
	int fd;
};

/* "4711", from what the holder wrote. */
static void
holder(int fd, char *text, size_t size)
{
	ssize_t n = pread(fd, text, size - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, " \n")] = '\0';
	if (text[0] == '\0')
		snprintf(text, size, "unknown");
}

static void
lock_write(int fd)
{
	char boot[64] = "", text[128];
	int b = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = b >= 0 ? read(b, boot, sizeof(boot) - 1) : 0;
	int len;

	if (b >= 0)
		close(b);
	boot[n > 0 ? n : 0] = '\0';
	boot[strcspn(boot, "\n")] = '\0';
	len = snprintf(text, sizeof(text), "%ld %s\n", (long)getpid(), boot);
	/* For people's eyes only: the flock is what counts. */
	if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)len, 0) < 0)
		return;
}

int
lpo_lock_take(lpo_ctx *c, lpo_lock **lock, const char *path)
{
	lpo_lock *l = lpo_alloc(c, 1, sizeof(*l));
	struct stat a, b;
	char pid[32];
	int rc = LPO_ENOMEM, e;

	*lock = NULL;
	if (l == NULL)
		return rc;
	l->fd = -1;
	if ((l->path = lpo_strdup(c, path)) == NULL)
		goto out;
	for (;;) {
		l->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
		if (l->fd < 0) {
			rc = lpo_fail(c, errno == ENOENT ? LPO_ENOTFOUND :
			    LPO_EIO, "cannot open '%s': %s", path,
			    strerror(errno));
			goto out;
		}
		if (flock(l->fd, LOCK_EX | LOCK_NB) != 0) {
			e = errno;
			holder(l->fd, pid, sizeof(pid));
			rc = e == EWOULDBLOCK ? lpo_fail(c, LPO_EINVAL,
			    "process %s works on this ('%s' is locked)", pid,
			    path) : lpo_fail(c, LPO_EIO,
			    "cannot lock '%s': %s", path, strerror(e));
			goto out;
		}
		/*
		 * Between open and flock the last holder may have removed the
		 * file: then the lock is on a file without a name.
		 */
		if (fstat(l->fd, &a) == 0 && stat(path, &b) == 0 &&
		    a.st_ino == b.st_ino && a.st_dev == b.st_dev)
			break;
		close(l->fd);
	}
	lock_write(l->fd);
	*lock = l;
	return 0;
out:
	if (l->fd >= 0)
		close(l->fd);
	lpo_free(l->path);
	lpo_free(l);
	return rc;
}

int
lpo_lock_release(lpo_lock *l)
{
	int e;

	if (l == NULL)
		return 0;
	e = unlink(l->path) == 0 || errno == ENOENT ? 0 : errno;
	close(l->fd);
	lpo_free(l->path);
	lpo_free(l);
	return e;
}
