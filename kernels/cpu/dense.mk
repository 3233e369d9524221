# The device layer, the dispatch, and the CPU kernels of dense ops.
libbs_kernels_a_SOURCES += kernels/device.c
libbs_kernels_a_SOURCES += kernels/ops_check.h
libbs_kernels_a_SOURCES += kernels/ops_dense.c
libbs_kernels_a_SOURCES += kernels/ops_cache.c
libbs_kernels_a_SOURCES += kernels/cpu/cpu_ops.h
libbs_kernels_a_SOURCES += kernels/cpu/pool.h
libbs_kernels_a_SOURCES += kernels/cpu/pool.c
libbs_kernels_a_SOURCES += kernels/cpu/backend.c
