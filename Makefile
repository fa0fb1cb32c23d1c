# lpo-tools.  `make help` says what there is.
ifeq ($(origin CC),default)
CC		= gcc
endif
Q		?= @
CFLAGS		?= -O2 -g
PREFIX		?= /usr/local
DESTDIR		?=
BUILD		?= build
KBUILD		= $(BUILD)
BIN		?= bin

VERSION		= 0.1.0
WARN		= -Wall -Wextra -Wpedantic -Wshadow -Wvla
P_CPPFLAGS	= -I. -D_GNU_SOURCE -DLPO_VERSION='"$(VERSION)"'
OPENMP		= -fopenmp
P_CFLAGS	= -std=c11 $(WARN) -fno-math-errno $(OPENMP)
LIBS		= -ldnnl -larchive -lsqlite3 -lcsv -ljansson -ljpeg -lpng \
		  -lwebp -lpcre2-8 -lutf8proc -lz -ldl -lm

# Files of kernels/ that are compiled once per CPU level; the rest once.
# Contraction is on there: a * b + c is one fma wherever the level has it.
K_ONCE		= kernels/cpu.c kernels/dtype.c kernels/onednn.c \
		  kernels/plugin.c
K_AMX		= $(sort $(wildcard kernels/*_amx.c))
K_MULTI		= $(filter-out $(K_ONCE) $(K_AMX),$(sort $(wildcard kernels/*.c)))
F_portable	=
F_avx2		= -mavx2 -mfma -mf16c
F_avx512	= -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq \
		  -mavx512vl -mprefer-vector-width=512
F_amx		= $(F_avx512) -mavx512bf16 -mamx-tile -mamx-bf16
ISAS		= portable avx2 avx512

LIB_SRC		= $(sort $(wildcard lib/*/*.c))
TOOL_SRC	= $(sort $(wildcard tools/lpo-*.c))
CLI_SRC		= $(filter-out $(TOOL_SRC),$(sort $(wildcard tools/*.c)))
TOOLS		= $(TOOL_SRC:tools/%.c=$(BIN)/%)
DEMO		= $(BIN)/demo-world $(BIN)/judge

OBJ		= $(LIB_SRC:%.c=$(BUILD)/%.o) $(SCHEMAS) $(PAGES) \
		  $(patsubst %.c,$(KBUILD)/%.o,$(wildcard $(K_ONCE))) \
		  $(K_AMX:%.c=$(KBUILD)/%.o) \
		  $(foreach i,$(ISAS),$(K_MULTI:%.c=$(KBUILD)/%.$(i).o))
SCHEMAS		= $(patsubst %.sql,$(BUILD)/%.sql.o,$(sort $(wildcard schemas/*.sql)))
PAGES		= $(patsubst %.html,$(BUILD)/%.html.o,$(sort $(wildcard lib/*/*.html)))
TESTS		= $(patsubst %.c,$(BUILD)/%.t,$(sort $(wildcard tests/unit/*.c \
		  tests/ops/*.c tests/golden/*.c tests/fuzz/*.c)))
BENCHES		= $(patsubst %.c,$(BUILD)/%.t,$(sort $(wildcard tests/bench/*.c)))
SHTESTS		= $(sort $(wildcard tests/cli/*.t))

all: $(TOOLS) $(DEMO) all_plugin

help:
	@sed -n 's/^#: //p' Makefile

#: make              programs in bin/, the CUDA plug-in where nvcc is
#: make cuda         the plug-in alone, or what is missing to build it
#: make deps         install the Debian packages this needs
#: make demo         the whole method on the embedded tiny world; DEVICE=cuda
#: make demo-seeds   the same for five seeds, pooled
#: make check        build and run all tests
#: make check-kill   kill -9 at random moments, N=100 a stage, and signals
#: make check-faults system calls and allocations failing one by one; full disks
#: make asan         the tests under AddressSanitizer and UBSan
#: make fuzz T=60    every parser against libFuzzer, T seconds each
#: make deps-fuzz    install what that needs besides: clang
#: make coverage     lines of lib/ that the tests run, by gcov
#: make lint         manual pages, shell scripts, schemas
#: make bench        speed, as ratios to a ceiling of the same run
#: make bench-h200   bin/bench-h200: the same on a GPU, in one file to copy there
#: make install      to DESTDIR and PREFIX
#: make clean        remove what was built

# A change of flags rebuilds everything.
FLAGS_NOW	= $(CC) $(CFLAGS) $(CPPFLAGS) $(LDFLAGS) $(P_CFLAGS)
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)
	@echo '$(FLAGS_NOW)' | cmp -s - $@ || echo '$(FLAGS_NOW)' > $@
FORCE:

COMPILE		= $(CC) $(P_CPPFLAGS) $(CPPFLAGS) $(P_CFLAGS) $(CFLAGS) -MMD -MP

$(BUILD)/kernels/%_amx.o: kernels/%_amx.c $(BUILD)/flags | deps-check
	@mkdir -p $(@D)
	$(Q)$(COMPILE) $(F_amx) -ffp-contract=fast -c -o $@ $<
define MULTI_RULE
$(BUILD)/kernels/%.$(1).o: kernels/%.c $(BUILD)/flags | deps-check
	@mkdir -p $$(@D)
	$(Q)$(COMPILE) $(F_$(1)) -DLPO_ISA_SUFFIX=_$(1) -ffp-contract=fast -O3 -c -o $$@ $$<
endef
$(foreach i,$(ISAS),$(eval $(call MULTI_RULE,$(i))))
# Floating-point exceptions' flags are read by nobody: without them a clamp in
# a loop becomes a vector's, with the same values.
$(BUILD)/%.o: %.c $(BUILD)/flags | deps-check
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -ffp-contract=off -fno-trapping-math -c -o $@ $<

# schemas/x.sql becomes the C string lpo_schema_x; what version N adds to it,
# schemas/x.N.sql, lpo_schema_x_N.
$(BUILD)/schemas/%.sql.o: schemas/%.sql $(BUILD)/flags
	@mkdir -p $(@D)
	@{ echo 'extern const char lpo_schema_$(subst .,_,$*)[];'; \
	   echo 'const char lpo_schema_$(subst .,_,$*)[] ='; \
	   sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&\\n"/' $<; echo ';'; \
	} > $(BUILD)/schemas/$*.sql.c
	$(Q)$(CC) -std=c11 $(CFLAGS) -c -o $@ $(BUILD)/schemas/$*.sql.c

# lib/x/y.html becomes the C string lpo_page_y.
$(BUILD)/%.html.o: %.html $(BUILD)/flags
	@mkdir -p $(@D)
	@{ echo 'extern const char lpo_page_$(*F)[];'; \
	   echo 'const char lpo_page_$(*F)[] ='; \
	   sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&\\n"/' $<; echo ';'; \
	} > $(BUILD)/$*.html.c
	$(Q)$(CC) -std=c11 $(CFLAGS) -c -o $@ $(BUILD)/$*.html.c

$(BUILD)/liblpo.a: $(OBJ)
	@rm -f $@
	$(Q)$(AR) rcs $@ $(OBJ)

LINK		= $(CC) $(CFLAGS) $(LDFLAGS) $(OPENMP)

$(TOOLS): $(BIN)/%: $(BUILD)/tools/%.o $(CLI_SRC:%.c=$(BUILD)/%.o) $(BUILD)/liblpo.a
	@mkdir -p $(BIN)
	$(Q)$(LINK) -o $@ $^ $(LIBS)
$(BIN)/demo-world: $(BUILD)/demo/render.o $(BUILD)/demo/world.o $(BUILD)/demo/judge_core.o
	@mkdir -p $(BIN)
	$(Q)$(LINK) -o $@ $^ -lpng -larchive -ljansson -lm
$(BIN)/judge: $(BUILD)/demo/judge.o $(BUILD)/demo/judge_core.o $(BUILD)/demo/world.o
	@mkdir -p $(BIN)
	$(Q)$(LINK) -o $@ $^ -lpng -larchive -ljansson -lm
$(BUILD)/demo/selftest.t: $(BUILD)/demo/selftest.o $(BUILD)/demo/judge_core.o $(BUILD)/demo/world.o
	$(Q)$(LINK) -o $@ $^ -lpng -larchive -ljansson -lm
$(BUILD)/tests/%.t: $(BUILD)/tests/%.o $(BUILD)/liblpo.a
	$(Q)$(LINK) -o $@ $^ $(LIBS)

include mk/deps.mk
include mk/cuda.mk
include mk/fuzz.mk
include mk/coverage.mk
include mk/bench.mk

-include $(OBJ:.o=.d) $(TOOLS:$(BIN)/%=$(BUILD)/tools/%.d) \
	$(CLI_SRC:%.c=$(BUILD)/%.d) $(TESTS:.t=.d) $(wildcard $(BUILD)/demo/*.d)

# prove's last lines are counted into one: N passed, N failed, N skipped.
# Benchmarks are built with the tests, so that they follow the library.
check: all $(TESTS) $(BENCHES) $(BUILD)/demo/selftest.t $(BUILD)/tests/bench/h200.t
	@BIN=$(BIN) BUILD=$(BUILD) CC='$(CC)' \
	LPO_CUDA_PLUGIN=$$(ls $(abspath $(PLUGIN)) 2> /dev/null) tests/run.sh \
	    $(TESTS) $(BUILD)/demo/selftest.t $(SHTESTS)

# The same under AddressSanitizer and UBSan.  The library's threads are
# OpenMP's, which the address sanitizer understands.
asan:
	@ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=halt_on_error=1 \
	LSAN_OPTIONS=suppressions=tests/lsan.supp:print_suppressions=0 \
	$(MAKE) --no-print-directory check BUILD=$(BUILD)/asan \
	    BIN=$(BUILD)/asan/bin CUDA=no CFLAGS='-O1 -g -fno-omit-frame-pointer \
	    -fsanitize=address,undefined -fno-sanitize-recover=undefined'

# Shown with their seeds, to be repeated: N=7 SEED=123 STAGES=train.
N		?= 100
SEED		?= 1
EACH		?= 1
STAGES		?=
check-kill: all
	@BIN=$(BIN) tests/faults/kill.sh -n $(N) -s $(SEED) $(STAGES)
	@BIN=$(BIN) tests/faults/kill.sh -g -n $(N) -s $(SEED) $(STAGES)
check-faults: all
	@BIN=$(BIN) CC='$(CC)' tests/faults/faults.sh -e $(EACH) $(STAGES)
	@BIN=$(BIN) tests/faults/full.sh $(STAGES)

# The plug-in takes minutes to build: only where it is asked for.
DEMO_NEEDS	= $(TOOLS) $(DEMO) $(if $(filter cuda%,$(DEVICE)),all_plugin)
demo: $(DEMO_NEEDS)
	@BIN=$(BIN) demo/run.sh
demo-seeds: $(DEMO_NEEDS)
	@BIN=$(BIN) demo/seeds.sh

lint:
	@mandoc -T lint -W warning man/*.[157]
	@shellcheck -x demo/*.sh tests/*.sh tests/fuzz/*.sh tests/faults/*.sh \
	    tests/cli/*.t .ci/run
	@cat $(sort $(wildcard schemas/*.sql)) | sqlite3 -bail :memory:

bench: all $(BENCHES)
	@for b in $(BENCHES); do BIN=$(BIN) $$b || exit 1; done

install: all
	for s in 1 5 7; do \
	    install -d $(DESTDIR)$(PREFIX)/share/man/man$$s && \
	    install -m 644 man/*.$$s $(DESTDIR)$(PREFIX)/share/man/man$$s || \
	    exit 1; done
	install -d $(DESTDIR)$(PREFIX)/bin
	install $(TOOLS) $(DESTDIR)$(PREFIX)/bin
	test ! -f $(PLUGIN) || \
	    install -D $(PLUGIN) $(DESTDIR)$(PREFIX)/lib/lpo/lpo-cuda.so

clean:
	rm -rf $(BUILD) $(BIN)

.PHONY: all help check check-kill check-faults clean FORCE deps deps-check asan lint bench demo demo-seeds install
.SECONDARY:
