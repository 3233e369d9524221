# Tests of the cache.
check_PROGRAMS += tests/unit/test_format tests/unit/test_cache tests/unit/test_cache_random
TESTS += tests/unit/test_format tests/unit/test_cache tests/unit/test_cache_random
tests_unit_test_format_SOURCES = tests/unit/test_format.c
tests_unit_test_format_LDADD = $(BS_TEST_LIBS)
tests_unit_test_cache_SOURCES = tests/unit/test_cache.c tests/unit/cache_group.c tests/unit/cache_group.h
tests_unit_test_cache_LDADD = $(BS_TEST_LIBS)
tests_unit_test_cache_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc
tests_unit_test_cache_random_SOURCES = tests/unit/test_cache_random.c tests/unit/cache_group.c \
    tests/unit/cache_group.h
tests_unit_test_cache_random_LDADD = $(BS_TEST_LIBS)
