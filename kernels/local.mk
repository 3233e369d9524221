noinst_LIBRARIES += libbs_kernels.a
libbs_kernels_a_SOURCES = kernels/kernels.h kernels/backend.h kernels/fault_kind.h kernels/types.c
libbs_kernels_a_CFLAGS = $(AM_CFLAGS) $(CBLAS_CFLAGS) $(VECTORIZE_CFLAGS)
include kernels/cpu/dense.mk
include kernels/cpu/cache.mk

# CUDA: .cu files are compiled by nvcc and linked by the C compiler with the static runtime.
SUFFIXES = .cu
BS_CUDA_SOURCES = kernels/cuda/cuda_private.h kernels/cuda/kv_layout.h kernels/cuda/backend.cu kernels/cuda/merge.cu
BS_CUDA_SOURCES += kernels/cuda/fault.h kernels/cuda/warp_head.h kernels/cuda/quantizer.h kernels/cuda/quantize_tile.h
BS_CUDA_SOURCES += kernels/cuda/quantize.cu kernels/cuda/append.cu kernels/cuda/pack.cu kernels/cuda/slots.cu
BS_CUDA_SOURCES += kernels/cuda/rope.cu kernels/cuda/unrotate.cu kernels/cuda/attend.cu kernels/cuda/attend.cuh
BS_CUDA_SOURCES += kernels/cuda/attend_kernel.cuh kernels/cuda/attend_plan.cuh kernels/cuda/attend_load.cuh
BS_CUDA_SOURCES += kernels/cuda/attend_merge.cuh kernels/cuda/attend_ptx.cuh kernels/cuda/attend_rows.cuh
BS_CUDA_SOURCES += kernels/cuda/attend_warp.cuh kernels/cuda/attend_int8.cu kernels/cuda/attend_int4.cu
BS_CUDA_SOURCES += kernels/cuda/attend_int2.cu kernels/cuda/attend_k4v2.cu kernels/cuda/attend_k8v4.cu
BS_CUDA_SOURCES += kernels/cuda/attend_args.h kernels/cuda/attend_chunk.cu kernels/cuda/attend_chunk.cuh
BS_CUDA_SOURCES += kernels/cuda/attend_chunk_kernel.cuh
BS_CUDA_SOURCES += kernels/cuda/attend_wgmma.cu kernels/cuda/wgmma.cuh kernels/cuda/dequantize_tile.cu
BS_CUDA_SOURCES += kernels/cuda/graph.cu kernels/cuda/stream_read.cu kernels/cuda/tokens.cu kernels/cuda/overlap.h
BS_CUDA_SOURCES += kernels/cuda/embed.cu kernels/cuda/rmsnorm.cu kernels/cuda/silu_mul.cu kernels/cuda/dense.h
BS_CUDA_SOURCES += kernels/cuda/gemm.cu kernels/cuda/gemm_any.cu kernels/cuda/gemv.cu kernels/cuda/chain.cu kernels/cuda/gemm_cublas.cu
BS_CUDA_SOURCES += kernels/cuda/candidates.cu kernels/cuda/sample.cu kernels/cuda/mark_seen.cu kernels/cuda/random.cu
if HAVE_CUDA
libbs_kernels_a_SOURCES += $(BS_CUDA_SOURCES)
else
EXTRA_DIST += $(BS_CUDA_SOURCES)
endif
# Warpgroup products need an architecture of their own.
BS_NVCC_ARCH = $(NVCC_GENCODE)
kernels/cuda/attend_wgmma.$(OBJEXT): BS_NVCC_ARCH = $(NVCC_GENCODE_90A)
.cu.$(OBJEXT):
	@$(MKDIR_P) $(@D)/$(DEPDIR)
	$(AM_V_NVCC)$(NVCC) -ccbin $(CXX) $(BS_NVCC_ARCH) -std=c++17 -O3 -lineinfo -Xcompiler -Wall,-Wno-unused-function \
	    $(DEFS) $(AM_CPPFLAGS) $(CPPFLAGS) $(NVCCFLAGS) -MD -MF $(@D)/$(DEPDIR)/$(*F).cu.Po -MT $@ -c -o $@ $<
AM_V_NVCC = $(am__v_NVCC_@AM_V@)
am__v_NVCC_ = $(am__v_NVCC_@AM_DEFAULT_V@)
am__v_NVCC_0 = @echo "  NVCC    " $@;
am__v_NVCC_1 =
-include kernels/cuda/$(DEPDIR)/*.cu.Po
distclean-local: distclean-cuda
distclean-cuda:
	-rm -f kernels/cuda/$(DEPDIR)/*.cu.Po
