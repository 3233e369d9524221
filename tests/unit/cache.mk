# Tests of the cache.
BS_CACHE_TESTS = tests/unit/test_format tests/unit/test_cache tests/unit/test_cache_memory tests/unit/test_cache_random
check_PROGRAMS += $(BS_CACHE_TESTS)
TESTS += $(BS_CACHE_TESTS)
BS_CACHE_GROUP = tests/unit/cache_group.c tests/unit/cache_group.h
tests_unit_test_format_SOURCES = tests/unit/test_format.c
tests_unit_test_format_LDADD = $(BS_TEST_LIBS)
tests_unit_test_cache_SOURCES = tests/unit/test_cache.c $(BS_CACHE_GROUP)
tests_unit_test_cache_LDADD = $(BS_TEST_LIBS)
tests_unit_test_cache_memory_SOURCES = tests/unit/test_cache_memory.c $(BS_CACHE_GROUP)
tests_unit_test_cache_memory_LDADD = $(BS_TEST_LIBS)
tests_unit_test_cache_memory_LDFLAGS = $(AM_LDFLAGS) -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc
tests_unit_test_cache_random_SOURCES = tests/unit/test_cache_random.c $(BS_CACHE_GROUP)
tests_unit_test_cache_random_LDADD = $(BS_TEST_LIBS)
check_PROGRAMS += tests/unit/test_fill
TESTS += tests/unit/test_fill
tests_unit_test_fill_SOURCES = tests/unit/test_fill.c
tests_unit_test_fill_LDADD = $(BS_TEST_LIBS)
