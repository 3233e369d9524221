# CPU kernels of the cache ops. One file a line.
libbs_kernels_a_SOURCES += kernels/cpu/kv_layout.h
