noinst_LIBRARIES += libbs_kernels.a
libbs_kernels_a_SOURCES = kernels/kernels.h kernels/backend.h kernels/types.c
libbs_kernels_a_CFLAGS = $(AM_CFLAGS) $(CBLAS_CFLAGS)
include kernels/cpu/dense.mk
include kernels/cpu/cache.mk
