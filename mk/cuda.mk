# The CUDA plug-in, lpo-cuda.so: one file with code for each of CUDA_ARCHS.
# Built by `make` where nvcc, cuBLAS and cuDNN are found; CUDA=no leaves it out.
# All six: 220 s of CPU time with CUDA 13.0, a file of 30 MB.
#
#	make CUDA_ARCHS=90a	for an H100 or H200 alone, a sixth of the time
#	make cuda NVCC=/opt/cuda/bin/nvcc CUDNN_HOME=/opt/cudnn
CUDA		?=
CUDA_ARCHS	?= 80 86 89 90a 100 120
NVCC		?= $(firstword $(wildcard $(addsuffix /nvcc,\
		  $(subst :, ,$(PATH)) /usr/local/cuda/bin)))
CUDA_HOME	?= $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDNN_HOME	?=
CUDA_DIRS	:= $(if $(CUDNN_HOME),$(CUDNN_HOME)) $(CUDA_HOME) \
		  $(CUDA_HOME)/targets/x86_64-linux /usr/local /usr
CUDA_MISSING	:= $(if $(wildcard $(NVCC)),,nvcc) \
		  $(foreach h,cublasLt.h cudnn.h,$(if $(wildcard $(addsuffix \
		  /$(h),$(addsuffix /include,$(CUDA_DIRS)) \
		  /usr/include/x86_64-linux-gnu)),,$(h)))
CUDA_MISSING	:= $(strip $(CUDA_MISSING))
# A folder of a -l library: for the linker, and for the loader afterwards.
cuda_lib	= $(patsubst %/,%,$(dir $(firstword $(wildcard $(addsuffix \
		  /lib$(1).so,$(addsuffix /lib64,$(CUDA_DIRS)) \
		  $(addsuffix /lib,$(CUDA_DIRS)) /usr/lib/x86_64-linux-gnu)))))
CUDA_LIB_DIRS	= $(sort $(call cuda_lib,cublasLt) $(call cuda_lib,cudnn))

K_CU		= $(sort $(wildcard kernels/*.cu))
CU_OBJ		= $(K_CU:%=$(KBUILD)/%.o)
PLUGIN		= $(BIN)/lpo-cuda.so
# Contraction is nvcc's default: a * b + c is one fma, as in the CPU kernels.
NVCC_COMPILE	= $(NVCC) -I. $(addprefix -I,$(wildcard $(addsuffix /include,\
		  $(CUDNN_HOME)))) -std=c++17 -O3 --threads 2 \
		  $(foreach a,$(CUDA_ARCHS),\
		  -gencode=arch=compute_$(a),code=sm_$(a)) \
		  -Xcompiler -Wall,-Wextra,-fvisibility=hidden,-fPIC \
		  -Wno-deprecated-gpu-targets
# The CUDA runtime is inside, its names with the others' kept to ourselves.
NVCC_LINK	= $(NVCC) -shared -cudart static -Wno-deprecated-gpu-targets \
		  $(addprefix -L,$(CUDA_LIB_DIRS)) \
		  $(addprefix -Xlinker -rpath=,$(CUDA_LIB_DIRS)) \
		  -Xlinker --exclude-libs=ALL -Xlinker --no-undefined

ifeq ($(CUDA),no)
all_plugin:
else ifneq ($(CUDA_MISSING),)
all_plugin:
	@echo "no CUDA plug-in: not found: $(CUDA_MISSING)"
else
all_plugin: $(PLUGIN)
endif

ifneq ($(CUDA_MISSING),)
cuda:
	@echo "make cuda: not found: $(CUDA_MISSING);" \
	    "NVCC, CUDA_HOME and CUDNN_HOME say where" >&2; exit 1
else
cuda:
	@start=$$(date +%s); \
	$(MAKE) --no-print-directory $(PLUGIN) && \
	echo "$(PLUGIN): $$(($$(stat -c %s $(PLUGIN)) >> 10)) KiB for" \
	    "$(addprefix sm_,$(CUDA_ARCHS)), $$(($$(date +%s) - start)) s"
endif

$(BUILD)/cuda-flags: FORCE
	@mkdir -p $(BUILD)
	@echo '$(NVCC_COMPILE)' | cmp -s - $@ || echo '$(NVCC_COMPILE)' > $@
$(KBUILD)/%.cu.o: %.cu $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(Q)$(NVCC_COMPILE) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(PLUGIN): $(CU_OBJ)
	@mkdir -p $(BIN)
	$(Q)$(NVCC_LINK) -o $@ $^ -lcublasLt -lcudnn

-include $(CU_OBJ:.o=.d)

.PHONY: cuda all_plugin
