# Tests of GPU kernels: built where nvcc is, skipped (77) where no GPU is. They link the kernels and their base alone,
# without MPI, so that a program can be carried to a machine that has a GPU and little else.
# A log is named after the test without .gpu: a name that a test without .gpu has too would overwrite it.
TEST_EXTENSIONS += .gpu
GPU_LOG_COMPILER =
BS_GPU_TEST_LIBS = libbs_kernels.a libbs_base.a $(CMOCKA_LIBS) $(CBLAS_LIBS) $(CUDA_LIBS) -lm -lpthread
BS_GPU_TEST_SOURCES = tests/kernels/gpu_fixture.h tests/kernels/kv_fixture.h
if HAVE_CMOCKA
if HAVE_CUDA
BS_GPU_TESTS = tests/kernels/test_cache.gpu tests/kernels/test_append_gpu.gpu tests/kernels/test_attend_gpu.gpu
BS_GPU_TESTS += tests/kernels/test_dense.gpu tests/kernels/test_sampling_gpu.gpu tests/kernels/test_chain.gpu
check_PROGRAMS += $(BS_GPU_TESTS)
TESTS += $(BS_GPU_TESTS)
tests_kernels_test_cache_gpu_SOURCES = tests/kernels/test_cache_gpu.c tests/kernels/kv_draw.h $(BS_GPU_TEST_SOURCES)
tests_kernels_test_cache_gpu_LDADD = $(BS_GPU_TEST_LIBS)
tests_kernels_test_attend_gpu_gpu_SOURCES = tests/kernels/test_attend_gpu.c tests/kernels/attend_cases.h
tests_kernels_test_attend_gpu_gpu_LDADD = $(BS_GPU_TEST_LIBS)
tests_kernels_test_append_gpu_gpu_SOURCES = tests/kernels/test_append_gpu.c $(BS_GPU_TEST_SOURCES)
tests_kernels_test_append_gpu_gpu_LDADD = $(BS_GPU_TEST_LIBS)
tests_kernels_test_dense_gpu_SOURCES = tests/kernels/test_dense_gpu.c tests/kernels/dense_fixture.h $(BS_GPU_TEST_SOURCES)
tests_kernels_test_dense_gpu_LDADD = $(BS_GPU_TEST_LIBS)
tests_kernels_test_chain_gpu_SOURCES = tests/kernels/test_chain_gpu.c tests/kernels/dense_fixture.h $(BS_GPU_TEST_SOURCES)
tests_kernels_test_chain_gpu_LDADD = $(BS_GPU_TEST_LIBS)
tests_kernels_test_sampling_gpu_gpu_SOURCES = tests/kernels/test_sampling_gpu.c tests/kernels/dense_fixture.h $(BS_GPU_TEST_SOURCES)
tests_kernels_test_sampling_gpu_gpu_LDADD = $(BS_GPU_TEST_LIBS)
endif
endif
# Random weights and pages: the same bits where there is a GPU, the CPU alone elsewhere.
check_PROGRAMS += tests/kernels/test_random
TESTS += tests/kernels/test_random
tests_kernels_test_random_SOURCES = tests/kernels/test_random.c $(BS_GPU_TEST_SOURCES)
tests_kernels_test_random_LDADD = $(BS_GPU_TEST_LIBS)
# Drawn ids on their way to the next step, likewise.
check_PROGRAMS += tests/kernels/test_tokens
TESTS += tests/kernels/test_tokens
tests_kernels_test_tokens_SOURCES = tests/kernels/test_tokens.c $(BS_GPU_TEST_SOURCES)
tests_kernels_test_tokens_LDADD = $(BS_GPU_TEST_LIBS)
