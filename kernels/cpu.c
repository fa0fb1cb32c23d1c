/*
 * The CPU backend: which level this machine and its system allow, the table
 * of each level, and plain memory.
 */
#include <sys/syscall.h>

#include <cpuid.h>
#include <omp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/levels.h"
#include "kernels/onednn.h"

#define HUGE_BYTES ((size_t)2 << 20)

enum {
	HAS_AVX2 = 1, HAS_FMA = 2, HAS_F16C = 4, HAS_AVX512 = 8,
	HAS_AVX512_BF16 = 16, HAS_AMX = 32
};

static const struct {
	int bit;
	const char *name;
} feature_names[] = {
	{ HAS_AMX, "amx" }, { HAS_AVX512_BF16, "avx512_bf16" },
	{ HAS_AVX512, "avx512" }, { HAS_AVX2, "avx2" }, { HAS_FMA, "fma" },
	{ HAS_F16C, "f16c" }
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int features;
static char feature_text[64];

/* The registers that the system saves on a switch (XCR0). */
static uint64_t
saved_state(void)
{
	uint32_t lo, hi;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

/* Linux hands out the tile registers to those who ask only. */
static int
amx_permitted(void)
{
	const long arch_req_xcomp_perm = 0x1023, tile_data = 18;

	return syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

static int
find_features(void)
{
	unsigned int a, b, c, d, b7, d7, a71;
	uint64_t saved;
	int f = 0;

	if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_OSXSAVE) == 0)
		return 0;
	saved = saved_state();
	if (!__get_cpuid_count(7, 0, &a, &b7, &b, &d7))
		return 0;
	if (!__get_cpuid_count(7, 1, &a71, &b, &a, &d))
		a71 = 0;
	if ((saved & 0x6) != 0x6 || (c & bit_AVX) == 0)
		return 0;
	f |= b7 & bit_AVX2 ? HAS_AVX2 : 0;
	f |= c & bit_FMA ? HAS_FMA : 0;
	f |= c & bit_F16C ? HAS_F16C : 0;
	if ((saved & 0xe6) != 0xe6)
		return f;
	if (b7 & bit_AVX512F && b7 & bit_AVX512BW && b7 & bit_AVX512DQ &&
	    b7 & bit_AVX512VL)
		f |= HAS_AVX512;
	if (f & HAS_AVX512 && a71 & (1u << 5))
		f |= HAS_AVX512_BF16;
	/* amx-bf16 and amx-tile */
	if (f & HAS_AVX512_BF16 && d7 & (1u << 22) && d7 & (1u << 24) &&
	    (saved & 0x60000) == 0x60000 && amx_permitted())
		f |= HAS_AMX;
	return f;
}

static void
look(void)
{
	size_t i;

	features = find_features();
	for (i = 0; i < sizeof(feature_names) / sizeof(*feature_names); i++) {
		if ((features & feature_names[i].bit) == 0)
			continue;
		if (feature_text[0] != '\0')
			strcat(feature_text, ",");
		strcat(feature_text, feature_names[i].name);
	}
}

static int
has(int bits)
{
	pthread_once(&once, look);
	return (features & bits) == bits;
}

const char *
lpo_cpu_features(void)
{
	has(0);
	return feature_text;
}

enum lpo_isa
lpo_cpu_best_isa(void)
{
	if (has(HAS_AVX2 | HAS_FMA | HAS_F16C | HAS_AVX512 | HAS_AMX))
		return LPO_ISA_AMX;
	if (has(HAS_AVX2 | HAS_FMA | HAS_F16C | HAS_AVX512))
		return LPO_ISA_AVX512;
	if (has(HAS_AVX2 | HAS_FMA | HAS_F16C))
		return LPO_ISA_AVX2;
	return LPO_ISA_PORTABLE;
}

int
lpo_cpu_has_bf16(enum lpo_isa isa)
{
	if (isa == LPO_ISA_AUTO)
		isa = lpo_cpu_best_isa();
	return isa >= LPO_ISA_AVX512 && has(HAS_AVX512_BF16);
}

static const char *const isa_names[] = {
	"auto", "portable", "avx2", "avx512", "amx"
};

const char *
lpo_isa_name(enum lpo_isa isa)
{
	return (unsigned int)isa <= LPO_ISA_AMX ? isa_names[isa] : "unknown";
}

int
lpo_isa_parse(const char *s)
{
	int i;

	for (i = LPO_ISA_AUTO; i <= LPO_ISA_AMX; i++)
		if (strcmp(s, isa_names[i]) == 0)
			return i;
	return LPO_EINVAL;
}

/* Large pages spare TLB misses where one buffer holds a whole plan. */
static void *
cpu_alloc(lpo_backend *be, size_t bytes)
{
	size_t align = bytes >= 2 * HUGE_BYTES ? HUGE_BYTES : 64;
	void *p;

	(void)be;
	if (bytes > (size_t)PTRDIFF_MAX - align)	/* no object is larger */
		return NULL;
	bytes = (bytes + align - 1) / align * align;
	p = aligned_alloc(align, bytes > 0 ? bytes : align);
	if (p != NULL && align == HUGE_BYTES)
		(void)madvise(p, bytes, MADV_HUGEPAGE);
	return p;
}

static void
cpu_free(lpo_backend *be, void *p)
{
	(void)be;
	free(p);
}

static int
cpu_copy(lpo_backend *be, void *dst, const void *src, size_t bytes)
{
	(void)be;
	if (bytes > 0)
		memmove(dst, src, bytes);
	return 0;
}

/* There is nothing to wait for: the copy is made at once. */
static void *
cpu_landing_new(lpo_backend *be, size_t bytes)
{
	return cpu_alloc(be, bytes);
}

static int
cpu_land(lpo_backend *be, void *landing, const void *src, size_t bytes)
{
	return cpu_copy(be, landing, src, bytes);
}

static int
cpu_landed(lpo_backend *be, void *landing, const void **host)
{
	(void)be;
	*host = landing;
	return 0;
}

static int
cpu_zero(lpo_backend *be, void *dst, size_t bytes)
{
	(void)be;
	if (bytes > 0)
		memset(dst, 0, bytes);
	return 0;
}

static int
cpu_sync(lpo_backend *be)
{
	(void)be;
	return 0;
}

static const char *
cpu_error(lpo_backend *be)
{
	(void)be;
	return "";
}

static int
cpu_memory(lpo_backend *be, size_t *free_bytes, size_t *all_bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	(void)be;
	*free_bytes = page * (size_t)sysconf(_SC_AVPHYS_PAGES);
	*all_bytes = page * (size_t)sysconf(_SC_PHYS_PAGES);
	return 0;
}

#define MEMORY_OPS							\
	.abi = LPO_KERNEL_ABI, .size_bytes = sizeof(struct lpo_kernels),\
	.name = "cpu", .alloc = cpu_alloc, .free = cpu_free,		\
	.upload = cpu_copy, .download = cpu_copy,			\
	.landing_new = cpu_landing_new, .landing_free = cpu_free,	\
	.land = cpu_land, .landed = cpu_landed, .zero = cpu_zero,	\
	.copy = cpu_copy, .sync = cpu_sync, .error = cpu_error,		\
	.memory = cpu_memory,
#define ENTRY(op, s) .op = lpo_##op##s,

static const struct lpo_kernels tables[] = {
	[LPO_ISA_PORTABLE] = {
		MEMORY_OPS LPO_LEVEL_OPS(ENTRY, _portable)
	},
	[LPO_ISA_AVX2] = {
		MEMORY_OPS LPO_LEVEL_OPS(ENTRY, _avx2)
	},
	[LPO_ISA_AVX512] = {
		MEMORY_OPS LPO_LEVEL_OPS(ENTRY, _avx512)
	},
	[LPO_ISA_AMX] = {
		MEMORY_OPS LPO_AMX_OPS(ENTRY, _amx)
		LPO_NORM_OPS(ENTRY, _avx512) LPO_ELEMENTWISE_OPS(ENTRY, _avx512)
	}
};

/*
 * libgomp's threads spin for milliseconds before they sleep, and beside any
 * other load that starves the thread they wait for (measured on two busy
 * cores: 40 times slower).  It spins briefly when more OpenMP threads exist
 * than CPUs, so one more exists, asleep for good.  Who sets GOMP_SPINCOUNT or
 * OMP_WAIT_POLICY gets what was asked for; GOMP_SPINCOUNT=1000 is best.
 */
static void *
one_thread_more(void *arg)
{
#pragma omp parallel num_threads(2)
	__asm__ volatile("");
	for (;;)
		pause();
	return arg;
}

static pthread_once_t spin_once = PTHREAD_ONCE_INIT;

static void
spin_briefly(void)
{
	sigset_t all, old;
	pthread_t t;

	if (getenv("OMP_WAIT_POLICY") != NULL ||
	    getenv("GOMP_SPINCOUNT") != NULL)
		return;
	/* Signals are for the program's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&t, NULL, one_thread_more, NULL) == 0)
		pthread_detach(t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* What a container's share of CPU time comes to in CPUs; 0: no limit. */
static int
quota_cpus(void)
{
	double quota, period;
	FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
	int n;

	if (f == NULL)
		return 0;
	n = fscanf(f, "%lf %lf", &quota, &period);
	fclose(f);
	if (n != 2 || quota <= 0 || period <= 0 || quota > 1e5 * period)
		return 0;
	n = (int)(quota / period + 0.999);
	return n;
}

int
lpo_cpu_open(lpo_backend *be, enum lpo_isa isa, int threads)
{
	enum lpo_isa best = lpo_cpu_best_isa();
	int quota = quota_cpus(), rc;

	memset(be, 0, sizeof(*be));
	if (isa > LPO_ISA_AMX || threads < 0)
		return LPO_EINVAL;
	if (isa > best)
		return LPO_ENODEV;
	if (threads == 0) {
		threads = omp_get_num_procs();
		if (quota > 0 && quota < threads)
			threads = quota;
	}
	be->isa = isa == LPO_ISA_AUTO ? best : isa;
	be->threads = threads;
	be->k = &tables[be->isa];
	omp_set_dynamic(0);
	omp_set_num_threads(threads);
	if (threads > 1)
		pthread_once(&spin_once, spin_briefly);
	rc = lpo_onednn_open(be);
	if (rc != 0)
		memset(be, 0, sizeof(*be));
	return rc;
}

int
lpo_cpu_split(lpo_backend *be)
{
	if (be->isa < LPO_ISA_AMX)
		return LPO_ENODEV;
	be->split = 1;
	return 0;
}

void
lpo_cpu_close(lpo_backend *be)
{
	if (be == NULL)
		return;
	lpo_onednn_close(be);
	memset(be, 0, sizeof(*be));
}
