# Tests of the cache ops.
BS_KV_TESTS = tests/kernels/test_quantize tests/kernels/test_pack tests/kernels/test_append tests/kernels/test_merge
check_PROGRAMS += $(BS_KV_TESTS)
TESTS += $(BS_KV_TESTS)
tests_kernels_test_quantize_SOURCES = tests/kernels/test_quantize.c tests/kernels/kv_fixture.h
tests_kernels_test_quantize_LDADD = $(BS_TEST_LIBS)
tests_kernels_test_pack_SOURCES = tests/kernels/test_pack.c tests/kernels/kv_fixture.h
tests_kernels_test_pack_LDADD = $(BS_TEST_LIBS)
tests_kernels_test_append_SOURCES = tests/kernels/test_append.c tests/kernels/kv_fixture.h
tests_kernels_test_append_LDADD = $(BS_TEST_LIBS)
tests_kernels_test_merge_SOURCES = tests/kernels/test_merge.c tests/kernels/kv_fixture.h
tests_kernels_test_merge_LDADD = $(BS_TEST_LIBS)
check_PROGRAMS += tests/kernels/test_attend
TESTS += tests/kernels/test_attend
tests_kernels_test_attend_SOURCES = tests/kernels/test_attend.c
tests_kernels_test_attend_LDADD = $(BS_TEST_LIBS)
