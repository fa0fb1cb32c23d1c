# Which lines of lib/ `make check` runs.  The kernels' objects are taken as
# they are: their tests are about numbers, not lines.
coverage: $(BUILD)/liblpo.a
	@find $(BUILD)/cov -name '*.gcda' -delete 2> /dev/null || true
	@$(MAKE) --no-print-directory check BUILD=$(BUILD)/cov \
	    BIN=$(BUILD)/cov/bin KBUILD=$(BUILD) CUDA=no CFLAGS='-O1 -g --coverage'
	@sh tests/coverage.sh $(BUILD)/cov

.PHONY: coverage
