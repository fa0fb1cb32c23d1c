/*
 * Preloaded into a tool, makes its n-th call of one kind fail.
 *
 *	FAULT_CALL	read write sync rename open close unlink malloc
 *	FAULT_AT	1, 2, ...: which; 0: none, only count
 *	FAULT_ON	set: from then on all fail
 *	FAULT_HOW	an errno's name; "short": half is read or written;
 *			"kill": SIGKILL instead of the call
 *	FAULT_UNDER	folder: only files below it, by absolute path
 *	FAULT_FROM	malloc: part of the name of the object that calls;
 *			"exe" is the program itself
 *	FAULT_LOG	file that gets "CALL N PATH" at the first fault, and
 *			"total N" at the end
 *	FAULT_PLACES	file that gets at the end, for each place that calls,
 *			the numbers of its first, second and last call.  A
 *			place is the whole stack and the file's name without
 *			its digits; malloc's are a function and its caller
 *			anywhere in the stack, the first time only
 *
 * Standard error is never touched: it has to say what went wrong.
 */
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *call, *under, *logname, *placesname;
static long at = -1, on;
static int err, how_short, how_kill, ready;
static atomic_long count, told;
static struct { uintptr_t lo, hi; } text[8];
static int texts;

/* Which calls came from where; an open hash table, without malloc. */
enum { PLACES = 1 << 15, DEPTH = 48 };
static struct { uint64_t key; long first, second, last; } place[PLACES];
static atomic_flag busy = ATOMIC_FLAG_INIT;

#define REAL(type, name, ...) \
	static type (*real)(__VA_ARGS__); \
	if (real == NULL) \
		real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* Objects whose allocations fail: the executable has no name here. */
static int
note_object(struct dl_phdr_info *o, size_t size, void *arg)
{
	const char *want = arg;
	int i;

	(void)size;
	if (strcmp(want, "exe") == 0 ? o->dlpi_name[0] != '\0' :
	    strstr(o->dlpi_name, want) == NULL)
		return 0;
	for (i = 0; i < o->dlpi_phnum && texts < 8; i++)
		if (o->dlpi_phdr[i].p_type == PT_LOAD &&
		    (o->dlpi_phdr[i].p_flags & PF_X)) {
			text[texts].lo = o->dlpi_addr + o->dlpi_phdr[i].p_vaddr;
			text[texts].hi = text[texts].lo +
			    o->dlpi_phdr[i].p_memsz;
			texts++;
		}
	return 0;
}

__attribute__((constructor)) static void
start(void)
{
	static const struct { const char *name; int value; } codes[] = {
		{ "EIO", EIO }, { "ENOSPC", ENOSPC }, { "EDQUOT", EDQUOT },
		{ "EMFILE", EMFILE }, { "EACCES", EACCES },
		{ "ENOMEM", ENOMEM }
	};
	const char *how = getenv("FAULT_HOW"), *from = getenv("FAULT_FROM");
	void *stack[DEPTH];
	size_t i;

	call = getenv("FAULT_CALL");
	under = getenv("FAULT_UNDER");
	logname = getenv("FAULT_LOG");
	placesname = getenv("FAULT_PLACES");
	on = getenv("FAULT_ON") != NULL;
	if (call == NULL || getenv("FAULT_AT") == NULL)
		return;
	if (from != NULL)
		dl_iterate_phdr(note_object, (void *)(uintptr_t)from);
	err = EIO;
	for (i = 0; how != NULL && i < sizeof(codes) / sizeof(*codes); i++)
		if (strcmp(how, codes[i].name) == 0)
			err = codes[i].value;
	how_short = how != NULL && strcmp(how, "short") == 0;
	how_kill = how != NULL && strcmp(how, "kill") == 0;
	at = atol(getenv("FAULT_AT"));
	if (placesname != NULL)
		backtrace(stack, DEPTH);	/* the first one allocates */
	ready = 1;
	unsetenv("LD_PRELOAD");		/* children are not disturbed */
}

static void
say(const char *what, long n, const char *path)
{
	char line[PATH_MAX + 64];
	long fd;
	int len;

	if (logname == NULL)
		return;
	len = snprintf(line, sizeof(line), "%s %ld %s\n", what, n,
	    path != NULL ? path : "");
	fd = syscall(SYS_openat, AT_FDCWD, logname, O_WRONLY | O_CREAT |
	    O_APPEND, 0666);
	if (fd < 0)
		return;
	syscall(SYS_write, fd, line, (size_t)len);
	syscall(SYS_close, fd);
}

static uint64_t
mix(uint64_t key, uint64_t v)
{
	return (key ^ v) * 1099511628211u;
}

static void
note(uint64_t key, long n, int once)
{
	size_t i = (key ^ key >> 32) % PLACES, tries;

	for (tries = 0; place[i].first != 0 && place[i].key != key; tries++) {
		if (tries == PLACES)
			abort();
		i = (i + 1) % PLACES;
	}
	place[i].key = key;
	if (place[i].first == 0)
		place[i].first = n;
	else if (!once && place[i].second == 0)
		place[i].second = n;
	else if (!once)
		place[i].last = n;
}

static void
note_place(const char *path, long n)
{
	void *stack[DEPTH];
	uint64_t key = 14695981039346656037u;
	int depth = backtrace(stack, DEPTH), i;

	while (atomic_flag_test_and_set(&busy))
		;
	if (path == NULL)
		for (i = 0; i + 1 < depth; i++)
			note(mix(mix(key, (uintptr_t)stack[i]),
			    (uintptr_t)stack[i + 1]), n, 1);
	else {
		for (i = 0; i < depth; i++)
			key = mix(key, (uintptr_t)stack[i]);
		for (; *path != '\0'; path++)
			if (!isdigit((unsigned char)*path))
				key = mix(key, (uint8_t)*path);
		note(key, n, 0);
	}
	atomic_flag_clear(&busy);
}

__attribute__((destructor)) static void
end(void)
{
	FILE *f;
	int i;

	if (!ready)
		return;
	ready = 0;
	say("total", atomic_load(&count), NULL);
	if (placesname == NULL || (f = fopen(placesname, "a")) == NULL)
		return;
	for (i = 0; i < PLACES; i++)
		if (place[i].first != 0)
			fprintf(f, "%ld\n%ld\n%ld\n", place[i].first,
			    place[i].second, place[i].last);
	fclose(f);
}

/* 1: this call is to fail. */
static int
fault(const char *kind, const char *path)
{
	long n;

	if (!ready || strcmp(kind, call) != 0)
		return 0;
	if (under != NULL && (path == NULL ||
	    strncmp(path, under, strlen(under)) != 0))
		return 0;
	n = atomic_fetch_add(&count, 1) + 1;
	if (placesname != NULL)
		note_place(path, n);
	if (at <= 0 || n < at || (n > at && !on))
		return 0;
	if (atomic_fetch_add(&told, 1) == 0)
		say(kind, n, path);
	if (how_kill)
		kill(getpid(), SIGKILL);
	if (!how_short)
		errno = err;
	return 1;
}

static const char *
path_of(int fd, char *out)
{
	char link[32];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, out, PATH_MAX - 1);
	if (n < 0)
		return NULL;
	out[n] = '\0';
	return out;
}

/* A name as given, made absolute. */
static const char *
absolute(const char *name, char *out)
{
	size_t n;

	if (name[0] == '/' || getcwd(out, PATH_MAX) == NULL)
		return name;
	n = strlen(out);
	snprintf(out + n, PATH_MAX - n, "/%s", name);
	return out;
}

static int
fault_fd(const char *kind, int fd)
{
	char path[PATH_MAX];

	if (!ready || fd == STDERR_FILENO || strcmp(kind, call) != 0)
		return 0;
	return fault(kind, path_of(fd, path));
}

static int
fault_name(const char *kind, const char *name)
{
	char path[PATH_MAX];

	if (!ready || strcmp(kind, call) != 0)
		return 0;
	return fault(kind, absolute(name, path));
}

/* ------------------------------------------------------------------ files */

ssize_t
write(int fd, const void *p, size_t n)
{
	REAL(ssize_t, write, int, const void *, size_t);

	if (!fault_fd("write", fd))
		return real(fd, p, n);
	return how_short ? real(fd, p, (n + 1) / 2) : -1;
}

ssize_t
pwrite64(int fd, const void *p, size_t n, off64_t off)
{
	REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);

	if (!fault_fd("write", fd))
		return real(fd, p, n, off);
	return how_short ? real(fd, p, (n + 1) / 2, off) : -1;
}

ssize_t
pwrite(int fd, const void *p, size_t n, off_t off)
{
	return pwrite64(fd, p, n, off);
}

int
ftruncate64(int fd, off64_t n)
{
	REAL(int, ftruncate64, int, off64_t);

	return fault_fd("write", fd) && !how_short ? -1 : real(fd, n);
}

int
ftruncate(int fd, off_t n)
{
	return ftruncate64(fd, n);
}

int
fsync(int fd)
{
	REAL(int, fsync, int);

	return fault_fd("sync", fd) ? -1 : real(fd);
}

int
fdatasync(int fd)
{
	REAL(int, fdatasync, int);

	return fault_fd("sync", fd) ? -1 : real(fd);
}

int
close(int fd)
{
	REAL(int, close, int);

	if (!fault_fd("close", fd))
		return real(fd);
	real(fd);		/* as Linux does: it is closed all the same */
	errno = err;
	return -1;
}

int
rename(const char *a, const char *b)
{
	REAL(int, rename, const char *, const char *);

	return fault_name("rename", b) ? -1 : real(a, b);
}

int
renameat2(int da, const char *a, int db, const char *b, unsigned flags)
{
	REAL(int, renameat2, int, const char *, int, const char *, unsigned);

	return fault_name("rename", b) ? -1 : real(da, a, db, b, flags);
}

int
unlink(const char *a)
{
	REAL(int, unlink, const char *);

	return fault_name("unlink", a) ? -1 : real(a);
}

int
rmdir(const char *a)
{
	REAL(int, rmdir, const char *);

	return fault_name("unlink", a) ? -1 : real(a);
}

int
mkdir(const char *a, mode_t mode)
{
	REAL(int, mkdir, const char *, mode_t);

	return fault_name("open", a) ? -1 : real(a, mode);
}

int
open64(const char *name, int flags, ...)
{
	REAL(int, open64, const char *, int, ...);
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(ap, mode_t);
	va_end(ap);
	return fault_name("open", name) ? -1 : real(name, flags, mode);
}

int
open(const char *name, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & (O_CREAT | O_TMPFILE))
		mode = va_arg(ap, mode_t);
	va_end(ap);
	return open64(name, flags, mode);
}

FILE *
fopen64(const char *name, const char *mode)
{
	REAL(FILE *, fopen64, const char *, const char *);

	return fault_name("open", name) ? NULL : real(name, mode);
}

FILE *
fopen(const char *name, const char *mode)
{
	return fopen64(name, mode);
}

ssize_t
read(int fd, void *p, size_t n)
{
	REAL(ssize_t, read, int, void *, size_t);

	if (!fault_fd("read", fd))
		return real(fd, p, n);
	return how_short ? real(fd, p, (n + 1) / 2) : -1;
}

ssize_t
pread64(int fd, void *p, size_t n, off64_t off)
{
	REAL(ssize_t, pread64, int, void *, size_t, off64_t);

	if (!fault_fd("read", fd))
		return real(fd, p, n, off);
	return how_short ? real(fd, p, (n + 1) / 2, off) : -1;
}

ssize_t
pread(int fd, void *p, size_t n, off_t off)
{
	return pread64(fd, p, n, off);
}

void *
mmap64(void *at, size_t n, int prot, int flags, int fd, off64_t off)
{
	REAL(void *, mmap64, void *, size_t, int, int, int, off64_t);

	return fd >= 0 && fault_fd("read", fd) && !how_short ? MAP_FAILED :
	    real(at, n, prot, flags, fd, off);
}

void *
mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
	return mmap64(at, n, prot, flags, fd, off);
}

struct dirent *
readdir(DIR *d)
{
	REAL(struct dirent *, readdir, DIR *);

	return fault_fd("read", dirfd(d)) && !how_short ? NULL : real(d);
}

/* ----------------------------------------------------------------- memory */

/* glibc's own names: dlsym() itself allocates. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static int
no_memory(void *caller)
{
	uintptr_t a = (uintptr_t)caller;
	int i;

	if (!ready || strcmp(call, "malloc") != 0)
		return 0;
	for (i = 0; i < texts; i++)
		if (a >= text[i].lo && a < text[i].hi)
			break;
	if (texts == 0 ? getenv("FAULT_FROM") != NULL : i == texts)
		return 0;
	if (!fault("malloc", NULL))
		return 0;
	errno = ENOMEM;
	return 1;
}

#define CALLER	__builtin_return_address(0)

void *
malloc(size_t n)
{
	return no_memory(CALLER) ? NULL : __libc_malloc(n);
}

void *
calloc(size_t n, size_t size)
{
	return no_memory(CALLER) ? NULL : __libc_calloc(n, size);
}

void *
realloc(void *p, size_t n)
{
	return no_memory(CALLER) ? NULL : __libc_realloc(p, n);
}

void *
memalign(size_t align, size_t n)
{
	return no_memory(CALLER) ? NULL : __libc_memalign(align, n);
}

void *
aligned_alloc(size_t align, size_t n)
{
	return no_memory(CALLER) ? NULL : __libc_memalign(align, n);
}

int
posix_memalign(void **p, size_t align, size_t n)
{
	if (no_memory(CALLER) || (*p = __libc_memalign(align, n)) == NULL)
		return ENOMEM;
	return 0;
}
