# CPU kernels of the cache ops. One file a line.
libbs_kernels_a_SOURCES += kernels/cpu/kv_layout.h
libbs_kernels_a_SOURCES += kernels/cpu/fault.h
libbs_kernels_a_SOURCES += kernels/cpu/hadamard.h
libbs_kernels_a_SOURCES += kernels/cpu/quantize.h
libbs_kernels_a_SOURCES += kernels/cpu/quantize_simd.h
libbs_kernels_a_SOURCES += kernels/kv_canonical.c
libbs_kernels_a_SOURCES += kernels/cpu/slots.c
libbs_kernels_a_SOURCES += kernels/cpu/rope.c
libbs_kernels_a_SOURCES += kernels/cpu/hadamard.c
libbs_kernels_a_SOURCES += kernels/cpu/append.c
libbs_kernels_a_SOURCES += kernels/cpu/quantize.c
libbs_kernels_a_SOURCES += kernels/cpu/quantize_scalar.c
libbs_kernels_a_SOURCES += kernels/cpu/quantize_avx2.c
libbs_kernels_a_SOURCES += kernels/cpu/quantize_avx512.c
libbs_kernels_a_SOURCES += kernels/cpu/pack.c
libbs_kernels_a_SOURCES += kernels/cpu/merge.c
libbs_kernels_a_SOURCES += kernels/cpu/unrotate.c
