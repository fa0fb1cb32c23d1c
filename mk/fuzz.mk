# A fuzz target is one file of tests/fuzz, with libFuzzer's entry point.
# `make check` links it with a driver that replays its corpus; `make fuzz`
# compiles library and targets again by clang with its sanitizers.  The
# kernels read no files: their objects are taken as they are.
FUZZ_CC		= clang
FUZZ_SRC	= $(sort $(wildcard tests/fuzz/*.c))
FUZZ_CFLAGS	= -O1 -g -fno-omit-frame-pointer \
		  -fsanitize=fuzzer-no-link,address,undefined \
		  -fno-sanitize-recover=undefined
# omp.h and its library are gcc's, so that clang's own are not needed
FUZZ_OPENMP	= -Wno-unknown-pragmas -Wno-unused-parameter -idirafter $(BUILD)/fuzz/include
FUZZERS		= $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz-%)
T		= 60

$(BUILD)/libcli.a: $(CLI_SRC:%.c=$(BUILD)/%.o)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^
$(FUZZ_SRC:%.c=$(BUILD)/%.t): %.t: %.o $(BUILD)/tests/replay.o $(BUILD)/libcli.a $(BUILD)/liblpo.a
	$(Q)$(LINK) -o $@ $^ $(LIBS)
$(FUZZERS): $(BUILD)/fuzz-%: $(BUILD)/tests/fuzz/%.o $(BUILD)/libcli.a $(BUILD)/liblpo.a
	$(Q)$(LINK) -fsanitize=fuzzer -o $@ $^ $(LIBS)

fuzz-build: $(FUZZERS)
fuzz: $(BUILD)/liblpo.a
	@echo 'int LLVMFuzzerTestOneInput(const char *p, long n); \
	    int LLVMFuzzerTestOneInput(const char *p, long n) \
	    { return n > 0 && p[0] == 0; }' | $(FUZZ_CC) -x c \
	    -fsanitize=fuzzer,address,undefined -o $(BUILD)/has-fuzzer - \
	    2> /dev/null || { echo "make fuzz: no $(FUZZ_CC) with libFuzzer" \
	    "here; 'make deps-fuzz' installs clang libclang-rt-14-dev" >&2; \
	    exit 1; }
	@mkdir -p $(BUILD)/fuzz/include
	@ln -sf $$(gcc -print-file-name=include/omp.h) $(BUILD)/fuzz/include
	@$(MAKE) --no-print-directory fuzz-build BUILD=$(BUILD)/fuzz \
	    KBUILD=$(BUILD) CC=$(FUZZ_CC) CFLAGS='$(FUZZ_CFLAGS)' \
	    OPENMP='$(FUZZ_OPENMP)' LIBS='$(LIBS) -lgomp'
	@sh tests/fuzz/run.sh $(BUILD)/fuzz $(T) $(ONLY)

deps-fuzz:
	@echo "installing: clang libclang-rt-14-dev"
	@$(SUDO) apt-get update -qq
	@DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq \
	    --no-install-recommends clang libclang-rt-14-dev > /dev/null

-include $(FUZZ_SRC:%.c=$(BUILD)/%.d) $(BUILD)/tests/replay.d

.PHONY: fuzz fuzz-build deps-fuzz
