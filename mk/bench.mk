# tests/bench/h200 twice: for the CPU, to try it out; and for GPUs in one file
# that needs nothing but CUDA, cuBLAS, cuDNN and libc where it runs.
H200_OBJ	= $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard \
		  tests/bench/h200/*.c)))
H200_CPU	= $(filter-out %/device_cuda.o %/none.o,$(H200_OBJ))
H200_GPU	= $(filter-out %/device_cpu.o,$(H200_OBJ))
H200_LIBS	= -l:libjansson.a -l:libpcre2-8.a -l:libutf8proc.a \
		  -l:libgomp.a -l:libstdc++.a -lcudart_static \
		  -lcublasLt -lcudnn -lpthread -lrt -ldl -lm -static-libgcc

$(BUILD)/tests/bench/h200.t: $(H200_CPU) $(BUILD)/liblpo.a
	$(Q)$(LINK) -o $@ $^ $(LIBS)
$(BIN)/bench-h200: $(H200_GPU) $(CU_OBJ) $(BUILD)/liblpo.a
	@mkdir -p $(BIN)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ \
	    $(foreach d,$(CUDA_LIB_DIRS),-L$(d) -Wl,-rpath,$(d)) $(H200_LIBS)

ifneq ($(CUDA_MISSING),)
bench-h200:
	@echo "make bench-h200: not found: $(CUDA_MISSING)" >&2; exit 1
else
bench-h200: $(BIN)/bench-h200
endif

-include $(H200_OBJ:.o=.d)

.PHONY: bench-h200
