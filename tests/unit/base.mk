# Tests of src/base.
check_PROGRAMS += tests/unit/test_options tests/unit/test_progress tests/unit/test_checksum
tests_unit_test_options_SOURCES = tests/unit/test_options.c
tests_unit_test_options_LDADD = libbs_base.a $(CMOCKA_LIBS)
tests_unit_test_progress_SOURCES = tests/unit/test_progress.c
tests_unit_test_progress_LDADD = libbs_base.a $(CMOCKA_LIBS)
tests_unit_test_checksum_SOURCES = tests/unit/test_checksum.c
tests_unit_test_checksum_LDADD = libbs_base.a $(CMOCKA_LIBS)
TESTS += tests/unit/test_options tests/unit/test_progress tests/unit/test_checksum
