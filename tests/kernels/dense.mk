# The dense CPU kernels, weight blocks, sampling.
check_PROGRAMS += tests/kernels/test_quants tests/kernels/test_gemm tests/kernels/test_sampling
TESTS += tests/kernels/test_quants tests/kernels/test_gemm tests/kernels/test_sampling
tests_kernels_test_quants_SOURCES = tests/kernels/test_quants.c
tests_kernels_test_quants_LDADD = $(BS_TEST_LIBS)
tests_kernels_test_gemm_SOURCES = tests/kernels/test_gemm.c
tests_kernels_test_gemm_LDADD = $(BS_TEST_LIBS)
tests_kernels_test_sampling_SOURCES = tests/kernels/test_sampling.c
tests_kernels_test_sampling_LDADD = $(BS_TEST_LIBS)
# Graphs, timers, the streaming read: no MPI, so that it runs where only a GPU is.
check_PROGRAMS += tests/kernels/test_graph
TESTS += tests/kernels/test_graph
tests_kernels_test_graph_SOURCES = tests/kernels/test_graph.c
tests_kernels_test_graph_LDADD = $(BS_GPU_TEST_LIBS)
